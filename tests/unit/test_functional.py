"""`kdcore.functional` against float64 NumPy, and against the losses of the same names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_testing import compute_loss

import kdcore
from kdcore.registry import losses

B, L, HEADS, WIDTH, CLASSES = 3, 5, 2, 8, 7
LENGTHS = np.array([5, 2, 4])
REAL = np.arange(L) < LENGTHS[:, None]
GENERATOR = np.random.default_rng(11)


def array(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape)


def tensor(value: np.ndarray) -> torch.Tensor:
    return torch.tensor(value)


HIDDEN = [array(B, L, WIDTH) for _ in range(2)]  # of student and teacher
QUERY, KEY, VALUE = ([array(B, HEADS, L, WIDTH // HEADS) for _ in range(2)] for _ in range(3))
LOGITS = [array(B, L, CLASSES) for _ in range(2)]
TOKENS = np.where(REAL & (GENERATOR.random((B, L)) < 0.6), GENERATOR.integers(0, CLASSES, (B, L)), -100)
SCORES = [array(B, CLASSES) for _ in range(2)]


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def kl(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    own, theirs = log_softmax(student), log_softmax(teacher)
    return (np.exp(theirs) * (theirs - own)).sum(-1)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def over_sequences(distance: Callable[[np.ndarray, np.ndarray], Any], own: Any, theirs: Any) -> float:
    """Sum a distance of the score maps (A, l, l) of each sequence, cut to its real tokens."""
    total = 0.0
    for sequence, length in enumerate(LENGTHS):
        maps = []
        for left, right in (own, theirs):
            x, y = left[sequence, :, :length], right[sequence, :, :length]
            maps.append(x @ y.transpose(0, 2, 1) / np.sqrt(x.shape[-1]))
        total += distance(*maps).sum()
    return total


def mean_of_correlations(own: np.ndarray, theirs: np.ndarray, axis: int) -> tuple[float, int]:
    """Sum `1 - r` along an axis of probabilities (B, A, L, L), over real entries, and count correlations."""
    used = np.broadcast_to(REAL[:, None, :, None] & REAL[:, None, None, :], own.shape)
    moved = [np.moveaxis(one, axis, -1).reshape(-1, own.shape[axis]) for one in (own, theirs, used)]
    total, count = 0.0, 0
    for one, other, real in zip(*moved, strict=True):
        chosen = real.astype(bool)
        if chosen.sum() > (1 if axis == 0 else 0):
            total += 1 - np.corrcoef(one[chosen], other[chosen])[0, 1]
            count += 1
    return total, count


def probabilities(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(query.shape[-1])
    return np.exp(log_softmax(np.where(REAL[:, None, None, :], scores, -1e30)))


def pearson(axis: int) -> Callable[[], tuple[float, int]]:
    return lambda: mean_of_correlations(probabilities(QUERY[0], KEY[0]), probabilities(QUERY[1], KEY[1]), axis)


def both(values: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    return tensor(values[0]), tensor(values[1])


N = int(LENGTHS.sum())
PAIRS = int((LENGTHS**2).sum())
F = kdcore.functional
WEIGHT = array(WIDTH, WIDTH)
IDS = np.array([1, 4, 2])
LABELLED = TOKENS != -100
lengths = tensor(LENGTHS)
attention = [tuple(map(tensor, pair)) for pair in zip(QUERY, KEY, strict=True)]

Reference = Callable[[], tuple[float, int]]
CASES: dict[str, tuple[Callable[[], Any], Reference]] = {
    "hidden_mse": (
        lambda: F.hidden_mse(*both(HIDDEN), lengths),
        lambda: (((HIDDEN[0] - HIDDEN[1])[REAL] ** 2).sum(), N * WIDTH),
    ),
    "hidden_mse_cls": (
        lambda: F.hidden_mse_cls(*both([one[:, 0] for one in HIDDEN])),
        lambda: (((HIDDEN[0] - HIDDEN[1])[:, 0] ** 2).sum(), B * WIDTH),
    ),
    "hidden_cosine": (
        lambda: F.hidden_cosine(*both(HIDDEN), lengths),
        lambda: ((1 - (unit(HIDDEN[0]) * unit(HIDDEN[1])).sum(-1))[REAL].sum(), N),
    ),
    "hidden_pkd": (
        lambda: F.hidden_pkd(*both([one[:, 0] for one in HIDDEN])),
        lambda: (((unit(HIDDEN[0]) - unit(HIDDEN[1]))[:, 0] ** 2).sum(), B),
    ),
    "hidden_mse_concat": (
        lambda: F.hidden_mse_concat([tensor(HIDDEN[0])], [tensor(HIDDEN[1])], tensor(WEIGHT), lengths),
        lambda: (((HIDDEN[0] @ WEIGHT.T - HIDDEN[1])[REAL] ** 2).sum(), N * WIDTH),
    ),
    "attention_kl": (
        lambda: F.attention_kl(*attention, lengths),
        lambda: (over_sequences(kl, (QUERY[0], KEY[0]), (QUERY[1], KEY[1])), HEADS * N),
    ),
    "attention_mse": (
        lambda: F.attention_mse(*attention, lengths),
        lambda: (
            over_sequences(lambda own, theirs: (own - theirs) ** 2, (QUERY[0], KEY[0]), (QUERY[1], KEY[1])),
            HEADS * PAIRS,
        ),
    ),
    "value_relation_kl": (
        lambda: F.value_relation_kl(*both(VALUE), lengths),
        lambda: (over_sequences(kl, (VALUE[0], VALUE[0]), (VALUE[1], VALUE[1])), HEADS * N),
    ),
    "minilm_v2": (
        lambda: F.minilm_v2(*both(VALUE), lengths),
        lambda: (over_sequences(kl, (VALUE[0], VALUE[0]), (VALUE[1], VALUE[1])), HEADS * N),
    ),
    "masked_lm": (
        lambda: F.masked_lm(tensor(LOGITS[0]), tensor(TOKENS)),
        lambda: (
            -np.take_along_axis(log_softmax(LOGITS[0])[LABELLED], TOKENS[LABELLED][:, None], -1).sum(),
            int(LABELLED.sum()),
        ),
    ),
    "soft_targets": (
        lambda: F.soft_targets(*both(LOGITS), lengths, temperature=2.0),
        lambda: (4 * kl(LOGITS[0] / 2, LOGITS[1] / 2)[REAL].sum(), N),
    ),
    "classification": (
        lambda: F.classification(tensor(SCORES[0]), tensor(IDS)),
        lambda: (-np.take_along_axis(log_softmax(SCORES[0]), IDS[:, None], -1).sum(), B),
    ),
    "contrastive": (
        lambda: F.contrastive(*embeddings()[0], *embeddings()[1], temperature=0.5),
        lambda: contrastive_reference(),
    ),
    **{
        f"attention_pearson/{term}": (
            lambda term=term: F.attention_pearson(*attention, lengths)[term],
            pearson(axis),
        )
        for term, axis in (("keys", 3), ("queries", 2), ("heads", 1), ("sequences", 0))
    },
}


def embeddings() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = np.random.default_rng(5)
    own = [tensor(unit(generator.standard_normal((B, 4)))) for _ in range(2)]
    return own, [tensor(unit(generator.standard_normal((B, 6, 4)))) for _ in range(2)]


def contrastive_reference() -> tuple[float, int]:
    (student, teacher), (own_memory, their_memory) = ([one.numpy() for one in side] for side in embeddings())
    total = 0.0
    for anchor, partner, memory in ((student, teacher, their_memory), (teacher, student, own_memory)):
        positive = np.exp((anchor * partner).sum(-1, keepdims=True) / 0.5)
        negative = np.exp((memory @ anchor[:, :, None])[:, :, 0] / 0.5)
        z_by_n = np.concatenate([positive, negative], -1).mean()  # Z / n: the mean over this batch
        # D(x) = p / (p + K / n) with p = exp(x) / Z and K = 6
        accepted, rejected = (scores / (scores + 6 * z_by_n) for scores in (positive, negative))
        total -= np.log(accepted).sum() + np.log(1 - rejected).sum()
    return total / 2, B


@pytest.mark.parametrize("name", CASES)
def test_a_function_is_its_definition_in_float64(name: str) -> None:
    function, reference = CASES[name]
    total, (expected, count) = function(), reference()
    assert total.sum.dtype == torch.float64
    assert total.sum.item() == pytest.approx(expected, rel=1e-10)
    assert int(total.count) == count
    assert total.mean.item() == pytest.approx(expected / count, rel=1e-10)


PACKAGES = ("attention", "contrastive", "hidden-mse", "minilm", "pearson", "supervised")


def test_every_loss_of_the_core_and_of_its_methods_has_a_function_and_a_reference() -> None:
    packages = {"kdcore", *(f"kdcore-{package}" for package in PACKAGES)}
    names = {entry.name for entry in losses.entries() if entry.distribution in packages}
    assert len(names) >= 13
    assert names <= set(dir(F))
    assert {name for name in names if getattr(F, name, None) is None} == set()
    assert names <= {name.partition("/")[0] for name in CASES}


SIGNALS = [
    {"hidden": [HIDDEN[side]], "query": [QUERY[side]], "key": [KEY[side]], "value": [VALUE[side]]} for side in (0, 1)
]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("hidden_mse", {}),
        ("hidden_mse_cls", {}),
        ("hidden_cosine", {}),
        ("hidden_pkd", {"layers": "last"}),
        ("attention_kl", {}),
        ("attention_mse", {}),
        ("value_relation_kl", {}),
        ("minilm_v2", {"relations": {"query": 0, "key": 0, "value": 1}}),
    ],
)
def test_a_loss_has_the_value_of_its_function(name: str, config: dict[str, Any]) -> None:
    found = compute_loss(name, config, student=SIGNALS[0], teacher=SIGNALS[1], attention_mask=REAL)
    assert found["total"] == pytest.approx(CASES[name][0]().mean.item(), rel=1e-12)


def test_losses_on_predictions_have_the_values_of_their_functions() -> None:
    student, teacher = ({"hidden": [HIDDEN[side]], "logits": LOGITS[side]} for side in (0, 1))
    found = compute_loss("masked_lm", student=student, teacher=None, attention_mask=REAL, labels=TOKENS)
    assert found["total"] == pytest.approx(CASES["masked_lm"][0]().mean.item(), rel=1e-12)
    keys = {"positions": "all", "temperature": 2.0}
    found = compute_loss("soft_targets", keys, student=student, teacher=teacher, attention_mask=REAL)
    assert found["total"] == pytest.approx(CASES["soft_targets"][0]().mean.item(), rel=1e-12)


def test_functions_of_other_kinds_of_outputs() -> None:
    own, theirs = SCORES
    total = F.soft_targets(tensor(own), tensor(theirs), problem_type="regression")
    assert total.mean.item() == pytest.approx(((own - theirs) ** 2).sum() / B)
    several = (GENERATOR.random((B, CLASSES)) < 0.5).astype(np.int64)
    p = 1 / (1 + np.exp(-own))
    expected = -(several * np.log(p) + (1 - several) * np.log(1 - p)).mean(-1).sum()
    total = F.classification(tensor(own), tensor(several), problem_type="multi_label_classification")
    assert (total.sum.item(), total.count) == (pytest.approx(expected), B)
    numbers = array(B)
    total = F.classification(tensor(own[:, :1]), tensor(numbers), problem_type="regression")
    assert total.sum.item() == pytest.approx(((own[:, 0] - numbers) ** 2).sum())
    tags = F.classification(tensor(LOGITS[0]), tensor(TOKENS))
    assert int(tags.count) == LABELLED.sum()
    assert tags.sum.item() == pytest.approx(CASES["masked_lm"][0]().sum.item())


def test_relation_heads_of_other_numbers_are_those_of_merged_heads() -> None:
    merged = [value.transpose(0, 2, 1, 3).reshape(B, L, 1, WIDTH).transpose(0, 2, 1, 3) for value in VALUE]
    total = F.minilm_v2(*both(VALUE), lengths, relation_heads=1)
    expected = over_sequences(kl, (merged[0], merged[0]), (merged[1], merged[1]))
    assert (total.sum.item(), total.count) == (pytest.approx(expected), N)


def test_gradients_reach_the_students_tensors_and_not_the_padding() -> None:
    student = tensor(HIDDEN[0]).requires_grad_()
    F.hidden_mse(student, tensor(HIDDEN[1]), lengths).mean.backward()
    assert student.grad is not None
    assert torch.equal(student.grad.abs().sum(-1) > 0, tensor(REAL))


def test_a_name_without_a_loss_and_one_without_a_function_say_so() -> None:
    with pytest.raises(AttributeError, match=r"(?s)unknown loss `hidden_mso`.*Did you mean `hidden_mse`"):
        _ = F.hidden_mso

    @kdcore.register_loss("without_function")
    class WithoutFunction(kdcore.Loss):
        def requests(self) -> Any: ...

        def counts(self, batch: Any) -> Any: ...

        def forward(self, student: Any, teacher: Any, batch: Any) -> Any: ...

    with pytest.raises(AttributeError, match="the loss `without_function` is not available as a function of tensors"):
        _ = F.without_function
    assert "without_function" in losses.names()
    assert "without_function" not in dir(F)
    del losses._registered["without_function"]


def test_dir_lists_functions_only_and_the_module_has_no_other_names() -> None:
    assert all(callable(getattr(F, name)) for name in dir(F))
    assert {"embedding", "similarity", "info_nce", "listwise_kl", "margin_mse"} <= set(dir(F))
    for name in ("losses", "Any", "PluginError", "annotations"):
        with pytest.raises(AttributeError):
            getattr(F, name)


NUMBERS = torch.arange(1.0, 5.0)


@pytest.mark.parametrize("student", [NUMBERS, NUMBERS[:, None]])
@pytest.mark.parametrize("other", [NUMBERS, NUMBERS[:, None]])
def test_equal_numbers_have_no_distance_in_either_shape(student: torch.Tensor, other: torch.Tensor) -> None:
    for function in (F.classification, F.soft_targets):
        total = function(student, other, problem_type="regression")
        assert (total.sum.item(), total.count) == (0, 4)
        assert function(student, other + 2, problem_type="regression").mean.item() == 4


def test_labels_may_have_a_last_axis_of_one() -> None:
    for shape in ((B,), (B, 1)):
        total = F.classification(tensor(SCORES[0]), tensor(IDS).view(shape))
        assert total.sum.item() == pytest.approx(CASES["classification"][1]()[0], rel=1e-10)
    several = (GENERATOR.random((B, L, CLASSES)) < 0.5).astype(np.int64)
    p = 1 / (1 + np.exp(-LOGITS[0]))
    expected = -(several * np.log(p) + (1 - several) * np.log(1 - p)).mean()
    total = F.classification(tensor(LOGITS[0]), tensor(several), problem_type="multi_label_classification")
    assert total.mean.item() == pytest.approx(expected, rel=1e-10)


STATES, OTHERS = both(HIDDEN)
SCORE, OTHER_SCORE = both(SCORES)
FLAT = torch.zeros(B, dtype=torch.int64)
(QUERIES, KEYS), _ = attention
NEGATIVES = torch.zeros(B, 6, CLASSES)

MISFITS: dict[str, tuple[Callable[[], Any], str]] = {
    "width": (lambda: F.hidden_mse(STATES, OTHERS[..., :1], lengths), r"student \(3, 5, 8\), teacher \(3, 5, 1\)"),
    "tokens": (lambda: F.hidden_cosine(STATES, OTHERS[:, :1]), r"student \(3, 5, 8\), teacher \(3, 1, 8\)"),
    "one row": (lambda: F.hidden_pkd(STATES[:, 0], OTHERS[:1, 0]), r"student \(3, 8\), teacher \(1, 8\)"),
    "one first token": (lambda: F.hidden_mse_cls(STATES[:, 0], OTHERS[:1, 0]), r"\(3, 8\), teacher \(1, 8\)"),
    "rows with lengths": (lambda: F.hidden_mse(STATES[0], OTHERS[0], lengths), r"states \(5, 8\), expected \(B, L, d"),
    "blocks": (
        lambda: F.hidden_mse_concat([STATES], [OTHERS[:1]], tensor(WEIGHT)),
        r"first \(3, 5, 8\), one \(1, 5, 8\)",
    ),
    "map": (lambda: F.hidden_mse_concat([STATES], [OTHERS], tensor(WEIGHT)[:1]), r"weight \(1, 8\), expected \(8, 8\)"),
    "logits": (lambda: F.soft_targets(SCORE, OTHER_SCORE[:, :1]), r"student \(3, 7\), teacher \(3, 1\)"),
    "several labels": (
        lambda: F.classification(SCORE, SCORE[:1], problem_type="multi_label_classification"),
        r"logits \(3, 7\), labels \(1, 7\)",
    ),
    "two numbers": (
        lambda: F.classification(SCORE, FLAT, problem_type="regression"),
        r"logits \(3, 7\), labels \(3,\), expected logits \(3, 1\), labels \(3,\)",
    ),
    "labels": (lambda: F.classification(STATES, FLAT), r"logits \(3, 5, 8\), labels \(3,\)"),
    "transposed labels": (lambda: F.masked_lm(STATES, tensor(TOKENS).T), r"logits \(3, 5, 8\), labels \(5, 3\)"),
    "queries and keys": (
        lambda: F.attention_kl((QUERIES, KEYS[:1]), attention[1]),
        r"left \(3, 2, 5, 4\), right \(1, 2, 5, 4\)",
    ),
    "sequences": (
        lambda: F.attention_mse(attention[0], (QUERIES[:2], KEYS[:2])),
        r"student \(3, 2, 5, 4\), teacher \(2, 2, 5, 4\)",
    ),
    "sequence lengths": (
        lambda: F.value_relation_kl(QUERIES, QUERIES[:, :, :4]),
        r"student \(3, 2, 5, 4\), teacher \(3, 2, 4, 4\)",
    ),
    "heads": (lambda: F.minilm_v2(QUERIES, KEYS, relation_heads=3), r"left \(3, 2, 5, 4\), expected .* 3 heads"),
    "correlations": (
        lambda: F.attention_pearson(attention[0], (QUERIES[:, :1], KEYS[:, :1]), lengths),
        r"student \(3, 2, 5, 4\), teacher \(3, 1, 5, 4\)",
    ),
    "negatives": (
        lambda: F.contrastive(SCORE, OTHER_SCORE, NEGATIVES, NEGATIVES[:1]),
        r"student_negatives \(3, 6, 7\), teacher_negatives \(1, 6, 7\)",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_shapes_that_do_not_fit_are_refused(case: str) -> None:
    call, found = MISFITS[case]
    with pytest.raises(ValueError, match=rf"^the shapes of tensors do not match \(found .*{found}"):
        call()


WITH_LENGTHS: dict[str, Callable[[Any], Any]] = {
    "hidden_mse": lambda given: F.hidden_mse(STATES, OTHERS, given),
    "hidden_cosine": lambda given: F.hidden_cosine(STATES, OTHERS, given),
    "hidden_mse_concat": lambda given: F.hidden_mse_concat([STATES], [OTHERS], tensor(WEIGHT), given),
    "soft_targets": lambda given: F.soft_targets(*both(LOGITS), given, temperature=2.0),
    "attention_kl": lambda given: F.attention_kl(*attention, given),
    "attention_mse": lambda given: F.attention_mse(*attention, given),
    "value_relation_kl": lambda given: F.value_relation_kl(*both(VALUE), given),
    "minilm_v2": lambda given: F.minilm_v2(*both(VALUE), given),
    "attention_pearson/keys": lambda given: F.attention_pearson(*attention, given)["keys"],
}


@pytest.mark.parametrize("name", WITH_LENGTHS)
def test_lengths_may_be_a_list_or_an_array_and_must_fit(name: str) -> None:
    function, (expected, count) = WITH_LENGTHS[name], CASES[name][1]()
    for given in (LENGTHS.tolist(), LENGTHS, tensor(LENGTHS)):
        total = function(given)
        assert (total.sum.item(), int(total.count)) == (pytest.approx(expected, rel=1e-10), count)
    for given in ([5, 2, 6], np.array([-1, 2, 3])):
        with pytest.raises(ValueError, match=r"length out of range \(found \[.*\], expected 0 to 5 tokens\)"):
            function(given)
    with pytest.raises(ValueError, match=r"lengths \(2,\), expected \(3,\)"):
        function([5, 2])


def test_values_of_lengths_on_a_device_are_not_read() -> None:
    on_device = torch.empty(B, dtype=torch.int64, device="meta")
    assert kdcore.real_lengths(on_device, B, L) is on_device
    with pytest.raises(ValueError, match=r"lengths \(3,\), expected \(2,\)"):
        kdcore.real_lengths(on_device, 2, L)


def test_an_unknown_problem_type_is_refused() -> None:
    for function, other in ((F.soft_targets, OTHER_SCORE), (F.classification, FLAT)):
        with pytest.raises(ValueError, match=r"unknown problem_type \(found 'nonsense', expected single_label_"):
            function(SCORE, other, problem_type="nonsense")


def test_the_sum_of_totals_is_the_total_of_the_whole_batch() -> None:
    whole = F.hidden_mse(STATES, OTHERS, lengths)
    parts = F.hidden_mse(STATES[:1], OTHERS[:1], lengths[:1]) + F.hidden_mse(STATES[1:], OTHERS[1:], lengths[1:])
    assert parts.count == whole.count
    assert parts.mean.item() == pytest.approx(whole.mean.item(), rel=1e-12)


def test_no_gradient_reaches_the_teachers_tensors() -> None:
    def leaves(values: Any) -> Any:
        return tuple(one.clone().requires_grad_() for one in values)

    weight = tensor(WEIGHT).requires_grad_()
    pairs: dict[str, Callable[[Any, Any], Any]] = {
        "hidden_mse": lambda own, theirs: F.hidden_mse(own[0], theirs[0]),
        "hidden_cosine": lambda own, theirs: F.hidden_cosine(own[0], theirs[0]),
        "hidden_pkd": lambda own, theirs: F.hidden_pkd(own[0], theirs[0]),
        "hidden_mse_concat": lambda own, theirs: F.hidden_mse_concat(own, theirs, weight, project="teacher"),
        "soft_targets": lambda own, theirs: F.soft_targets(own[0], theirs[0]),
        "regression": lambda own, theirs: F.soft_targets(own[0], theirs[0], problem_type="regression"),
        "several": lambda own, theirs: F.soft_targets(own[0], theirs[0], problem_type="multi_label_classification"),
    }
    for function in pairs.values():
        own, theirs = leaves([STATES]), leaves([OTHERS])
        function(own, theirs).mean.backward()
        assert own[0].grad.abs().sum() > 0
        assert theirs[0].grad is None
    assert weight.grad is not None
    for name in ("attention_kl", "attention_mse", "attention_pearson"):
        own, theirs = leaves(attention[0]), leaves(attention[1])
        total = getattr(F, name)(own, theirs, lengths)
        (total["keys"] if isinstance(total, dict) else total).mean.backward()
        assert all(one.grad.abs().sum() > 0 for one in own)
        assert all(one.grad is None for one in theirs)
