"""Losses on embeddings against float64 references, and the requirements on every loss."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_embeddings.batch_losses import InfoNCELoss, SimilarityLoss
from kdcore_embeddings.head import embedding_head
from kdcore_embeddings.ranking_losses import ListwiseKLLoss, MarginMSELoss
from kdcore_embeddings.regression import EmbeddingLoss
from kdcore_testing import check_loss, compute_loss

from kdcore import DataError, InputError, ModelInfo, functional

HEAD = embedding_head(6, "mean", normalize=False)
MODEL = ModelInfo("bert", 2, 8, 4, 2, 11, 512, heads=(HEAD,))


def vectors(rows: int, width: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width))


def outputs(embeddings: np.ndarray) -> dict[str, Any]:
    return {"outputs": {"embedding": embeddings}}


def check_function(total: Any, mean: Any, count: int) -> None:
    """Compare what a function of `kdcore.functional` returns with a reference."""
    assert (total.sum.dtype, int(total.count)) == (torch.float64, count)
    np.testing.assert_allclose(total.mean.item(), mean, rtol=1e-10)


def unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)


@pytest.mark.parametrize("keys", [{}, {"dimensions": [2, 4], "nested_teacher": True}])
@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_requirements_on_the_regression(distance: str, keys: dict[str, Any]) -> None:
    check_loss(EmbeddingLoss, {"distance": distance, **keys}, student=MODEL, teacher=MODEL)


def test_values_of_the_regression_of_truncated_embeddings() -> None:
    own, theirs = vectors(5), vectors(5, seed=1)
    sides = [(own, theirs)] + [(unit(own[:, :width]), unit(theirs[:, :width])) for width in (2, 4)]
    squared = np.mean([((first - second) ** 2).sum() for first, second in sides]) / (5 * 6)
    cosine = np.mean([(1 - (unit(first) * unit(second)).sum(-1)).mean() for first, second in sides])
    keys = {"dimensions": [2, 4], "nested_teacher": True}
    for distance, expected in (("mse", squared), ("cosine", cosine)):
        config = {"distance": distance} | keys
        value = compute_loss(EmbeddingLoss, config, student=outputs(own), teacher=outputs(theirs))
        np.testing.assert_allclose(value["embedding"], expected, rtol=1e-10)


def test_truncated_embeddings_of_other_teachers_are_refused() -> None:
    for keys, message in [
        ({}, "needs a teacher whose first components are embeddings themselves"),
        ({"nested_teacher": True}, r"cannot be truncated to 6 components \(expected 1 to 5\)"),
    ]:
        with pytest.raises(InputError, match=message):
            compute_loss(
                EmbeddingLoss,
                {"dimensions": [6], **keys},
                student=outputs(vectors(4)),
                teacher=outputs(vectors(4)),
            )


def test_values_of_the_regression() -> None:
    own, theirs = vectors(5), vectors(5, seed=1)
    value = compute_loss(EmbeddingLoss, student=outputs(own), teacher=outputs(theirs))
    squared = ((own - theirs) ** 2).mean()
    np.testing.assert_allclose(value["embedding"], squared, rtol=1e-12)
    value = compute_loss(EmbeddingLoss, {"distance": "cosine"}, student=outputs(own), teacher=outputs(theirs))
    cosine = (1 - (unit(own) * unit(theirs)).sum(-1)).mean()
    np.testing.assert_allclose(value["embedding"], cosine, rtol=1e-12)
    tensors = torch.from_numpy(own), torch.from_numpy(theirs)
    check_function(functional.embedding(*tensors), squared, 5 * 6)
    check_function(functional.embedding(*tensors, distance="cosine"), cosine, 5)


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_the_baseline_of_the_regression_is_the_best_constant(distance: str) -> None:
    theirs = vectors(7, seed=2)
    loss = EmbeddingLoss(EmbeddingLoss.Config(name="embedding", label="e", distance=distance), MODEL, MODEL)
    signals: Any = type("Given", (), {"outputs": lambda self, name: torch.from_numpy(theirs)})()
    batch: Any = None
    found = loss.constant_baseline(loss.constant_sums(signals, batch))["embedding"]
    side = theirs if distance == "mse" else unit(theirs)
    constant = side.mean(0)
    if distance == "mse":
        expected = ((side - constant) ** 2).mean()
    else:
        expected = (1 - side @ (constant / np.linalg.norm(constant))).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_embeddings_of_the_teacher_that_are_not_finite_are_named() -> None:
    theirs = vectors(5, seed=1)
    theirs[1, 2], theirs[3, 0] = np.nan, np.inf
    with pytest.raises(DataError, match=r"the teacher's embeddings of 2 of 5 texts are not finite"):
        compute_loss(EmbeddingLoss, student=outputs(vectors(5)), teacher=outputs(theirs))


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def divergence(theirs: np.ndarray, own: np.ndarray) -> float:
    return float((softmax(theirs) * (np.log(softmax(theirs)) - np.log(softmax(own)))).sum())


def test_requirements_on_similarity() -> None:
    # Without `kl`, which is 0 for the two texts with which gradients are checked.
    check_loss(SimilarityLoss, {"distance": "mse"}, student=MODEL, teacher=MODEL)


@pytest.mark.parametrize("dimensions", [None, [2, 4]])
def test_values_of_similarity(dimensions: list[int] | None) -> None:
    own, theirs = vectors(5), vectors(5, width=9, seed=1)
    others = ~np.eye(5, dtype=bool)
    target = unit(theirs) @ unit(theirs).T
    widths = [6, *(dimensions or [])]
    kl, mse = [], []
    for width in widths:
        cosines = unit(own[:, :width]) @ unit(own[:, :width]).T
        rows = [divergence(target[i][others[i]] / 0.1, cosines[i][others[i]] / 0.1) for i in range(5)]
        kl.append(0.1**2 * np.mean(rows))
        mse.append(((cosines - target)[others] ** 2).mean())
    keys = {"dimensions": dimensions} if dimensions else {}
    for config, expected in (({"temperature": 0.1}, kl), ({"distance": "mse"}, mse)):
        value = compute_loss(SimilarityLoss, config | keys, student=outputs(own), teacher=outputs(theirs))
        np.testing.assert_allclose(value["similarity"], np.mean(expected), rtol=1e-10)
        total = functional.similarity(torch.from_numpy(own), torch.from_numpy(theirs), **config | keys)
        check_function(total, np.mean(expected), 5 * 4 if "distance" in config else 5)


def test_dimensions_that_do_not_fit_are_refused() -> None:
    columns, own = {"group_texts": np.zeros((4, 2), int)}, outputs(vectors(4))
    for loss in (SimilarityLoss, InfoNCELoss):
        with pytest.raises(InputError, match=r"cannot be truncated to 6 components \(expected 1 to 5\)"):
            compute_loss(loss, {"dimensions": [6]}, student=own, teacher=own, columns=columns)


def numbered_groups(size: int, width: int) -> np.ndarray:
    """Return the column of groups of different texts, for batches of whole groups."""
    rows = np.arange(size) // width
    return rows[:, None] * width + np.arange(width)


@pytest.mark.parametrize("dimensions", [None, [3]])
def test_values_of_info_nce(dimensions: list[int] | None) -> None:
    # Texts of four groups: query, positive, negative. Query 0 is in two groups; document 11 is positive in two and
    # negative in one; the negative of the last group is its query.
    texts = np.array([[0, 10, 20], [0, 11, 21], [1, 11, 22], [2, 12, 2]])
    own = vectors(12)
    allowed = {  # (group, slot) of the documents that each query is compared with
        0: [(0, 1), (0, 2), (1, 2), (2, 2), (3, 1), (3, 2)],  # 10 and 11 belong to query 0
        1: [(1, 1), (0, 2), (1, 2), (2, 2), (3, 1), (3, 2)],
        2: [(2, 1), (0, 1), (0, 2), (1, 2), (2, 2), (3, 1), (3, 2)],
        3: [(3, 1), (0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)],
    }
    values = []
    for width in [6, *(dimensions or [])]:
        groups = unit(own[:, :width]).reshape(4, 3, width)
        for query, places in allowed.items():
            scores = np.array([groups[query, 0] @ groups[place] for place in places]) / 0.2
            values.append(-np.log(softmax(scores)[0]))
    column = np.repeat(texts, 3, axis=0)
    config = {"temperature": 0.2} | ({"dimensions": dimensions} if dimensions else {})
    value = compute_loss(InfoNCELoss, config, student=outputs(own), teacher=None, columns={"group_texts": column})
    np.testing.assert_allclose(value["info_nce"], np.mean(values), rtol=1e-10)
    groups = torch.from_numpy(own).view(4, 3, 6)
    check_function(functional.info_nce(groups, torch.from_numpy(texts), **config), np.mean(values), 4)


def test_info_nce_of_different_texts_compares_all_documents() -> None:
    own = vectors(6)
    groups = unit(own).reshape(3, 2, 6)
    scores = groups[:, 0] @ groups[:, 1].T / 0.05
    expected = -np.log(np.diag(softmax(scores))).mean()
    check_function(functional.info_nce(torch.from_numpy(own).view(3, 2, 6)), expected, 3)


def test_functions_of_embeddings_refuse_shapes_that_do_not_fit() -> None:
    own = torch.from_numpy(vectors(4))
    texts = torch.zeros(4, dtype=torch.int64)
    for call in (
        lambda: functional.embedding(own, own[:1]),
        lambda: functional.similarity(own, own[:3]),
        lambda: functional.similarity(own, own, dimensions=[7]),
        lambda: functional.info_nce(own),
        lambda: functional.info_nce(own.view(2, 2, 6), texts),
        lambda: functional.margin_mse(own, own[:, :1]),
        lambda: functional.listwise_kl(own[0], own[0]),
    ):
        with pytest.raises(ValueError, match=r"shapes of tensors do not match \(found .*\((4, 6|2, 2, 6|6,)\)"):
            call()


def test_the_teachers_embeddings_get_no_gradient() -> None:
    own, theirs = (torch.from_numpy(vectors(4, seed=seed)).requires_grad_() for seed in (0, 1))
    for name in ("embedding", "similarity", "margin_mse", "listwise_kl"):
        own.grad = None
        getattr(functional, name)(own, theirs).mean.backward()
        assert own.grad is not None
        assert own.grad.abs().sum() > 0
        assert theirs.grad is None


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("scores", ["teacher", "data"])
def test_values_of_losses_on_scores(similarity: str, scores: str) -> None:
    own, theirs, given = vectors(8), vectors(8, width=9, seed=1), vectors(2, width=3, seed=2)
    columns = {"group_texts": numbered_groups(8, 4), "group_scores": np.repeat(given, 4, axis=0)}

    def products(embeddings: np.ndarray) -> np.ndarray:
        groups = embeddings.reshape(2, 4, -1)
        return np.einsum("nkc,nc->nk", groups[:, 1:], groups[:, 0])

    student = products(own) if similarity == "dot" else 3 * products(unit(own))
    target = given if scores == "data" else products(theirs)
    keys: dict[str, Any] = {"student": outputs(own), "columns": columns}
    keys["teacher"] = outputs(theirs) if scores == "teacher" else None
    if similarity == "cosine":
        keys["parameters"] = {"log_scale": [np.log(3.0)]}
    config = {"similarity": similarity, "scores": scores}
    margins = [side[:, :1] - side[:, 1:] for side in (student, target)]
    value = compute_loss(MarginMSELoss, config, **keys)
    expected_mse = ((margins[0] - margins[1]) ** 2).mean()
    np.testing.assert_allclose(value["margin_mse"], expected_mse, rtol=1e-10)
    value = compute_loss(ListwiseKLLoss, config | {"temperature": 2.0}, **keys)
    expected = 4 * sum(divergence(target[row] / 2, student[row] / 2) for row in range(2)) / 2
    np.testing.assert_allclose(value["listwise_kl"], expected, rtol=1e-10)
    tensors = torch.from_numpy(student), torch.from_numpy(target)
    check_function(functional.margin_mse(*tensors), expected_mse, 2 * 2)
    check_function(functional.listwise_kl(*tensors, temperature=2.0), expected, 2)


@pytest.mark.parametrize("loss", [MarginMSELoss, ListwiseKLLoss])
def test_losses_on_scores_refuse_groups_without_negatives(loss: type[MarginMSELoss] | type[ListwiseKLLoss]) -> None:
    own = outputs(vectors(4))
    with pytest.raises(InputError, match="compares the documents of a query, but each group has only one document"):
        compute_loss(loss, student=own, teacher=own, columns={"group_texts": numbered_groups(4, 2)})


@pytest.mark.parametrize(
    ("config", "expected"),
    [({"scores": "data"}, 20), ({}, 1), ({"scores": "data", "scale": 2.5}, 2.5)],
)
def test_the_learned_scale_has_its_start(config: dict[str, Any], expected: float) -> None:
    loss = MarginMSELoss(MarginMSELoss.Config(name="m", label="m", similarity="cosine", **config), MODEL, MODEL)
    assert loss.log_scale is not None
    assert loss.log_scale.shape == (1,)
    assert float(loss.log_scale.detach().exp()) == pytest.approx(expected)


def test_margins_that_dot_products_of_unit_vectors_cannot_have_are_refused() -> None:
    unit_length = replace(MODEL, heads=(embedding_head(6, "mean", normalize=True),))
    columns = {"group_texts": torch.from_numpy(numbered_groups(6, 3))}
    batches = [
        SimpleNamespace(columns=columns | {"group_scores": torch.tensor([[top, -0.5]] * 6)}, num_sequences=6)
        for top in (5.0, 1.5)
    ]
    wide: Any = batches[0]
    fitting: Any = batches[1]

    def made(student: ModelInfo, **config: Any) -> MarginMSELoss:
        return MarginMSELoss(MarginMSELoss.Config(name="m", label="m", scores="data", **config), None, student)

    with pytest.raises(InputError, match=r"at most 2, but the data has one of 5.5.*\n.*similarity: cosine"):
        made(unit_length).counts(wide)
    assert made(unit_length).counts(fitting) == {"margin_mse": 2}
    assert made(unit_length, similarity="cosine").counts(wide) == {"margin_mse": 2}
    assert made(MODEL).counts(wide) == {"margin_mse": 2}
    with pytest.raises(InputError, match="`scale` is used only with cosines"):
        made(MODEL, scale=3.0)


COUPLED = [
    (SimilarityLoss, {"temperature": 0.3, "dimensions": [3]}),
    (InfoNCELoss, {"temperature": 0.3, "dimensions": [3]}),
    (MarginMSELoss, {"similarity": "cosine"}),
    (ListwiseKLLoss, {"temperature": 0.5}),
]


@pytest.mark.parametrize(("loss", "config"), COUPLED)
def test_gradients_of_losses_on_batches_and_groups(loss: Any, config: dict[str, Any]) -> None:
    made = loss(loss.Config(name="l", label="l", **config), MODEL, MODEL).double()
    columns = {"group_texts": torch.from_numpy(numbered_groups(6, 3))}
    batch: Any = SimpleNamespace(columns=columns, num_sequences=6)

    def value(own: torch.Tensor) -> torch.Tensor:
        signals = [SimpleNamespace(outputs=lambda name, one=one: one) for one in (own, theirs)]
        (term,) = made(*signals, batch).values()
        return term

    theirs = torch.from_numpy(vectors(6, seed=1))
    own = torch.from_numpy(vectors(6)).requires_grad_()
    assert torch.autograd.gradcheck(value, (own,))
    for dtype in (torch.float16, torch.bfloat16):
        theirs = torch.from_numpy(vectors(6, seed=1)).to(dtype)
        rounded = own.detach().to(dtype)
        half = value(rounded)
        theirs = theirs.float()
        torch.testing.assert_close(half, value(rounded.float()), rtol=1e-5, atol=1e-7)
