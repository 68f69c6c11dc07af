"""What `budget_bert` computes in each of its forms, against its definition in float64 NumPy."""

from __future__ import annotations

import copy
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdcore_budget_bert.model import BudgetBert
from kdcore_testing import check_model

from kdcore import Batch, Encoder, Signals

LAYERS, HEADS, VOCABULARY = 3, 4, 50
FORMS = [
    {"norm_position": position, "norm": norm, "embedding_norm": embedding_norm}
    for position in ("pre", "post")
    for norm in ("layer_norm", "rms_norm")
    for embedding_norm in (False, True)
]
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
}
EVERYTHING = (
    Signals.hidden(["embeddings", *range(LAYERS)])
    | Signals.attention(["query", "key", "value"], range(LAYERS))
    | Signals.predictions("masked")
    | Signals.predictions("all")
)

every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(str(value) for value in form.values()))


def described(**keys: Any) -> BudgetBert:
    return BudgetBert(BudgetBert.Config(config=SIZES | keys), "student", None)


def made(**keys: Any) -> Encoder:
    """A student whose weights, including norms and biases, are random and large enough to distinguish everything."""
    encoder = described(**keys).build_student(EVERYTHING)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.4, generator=generator)
    return encoder.eval()


def batch_of(lengths: tuple[int, ...], width: int | None = None) -> Batch:
    width = width or max(lengths)
    tokens = np.random.default_rng(4).integers(1, VOCABULARY, (len(lengths), 12))[:, :width]
    real = np.arange(width) < np.array(lengths)[:, None]
    tokens = np.where(real, tokens, 0)
    masked = np.flatnonzero(real & (np.arange(width) % 3 == 1))
    return Batch(
        input_ids=torch.from_numpy(tokens),
        attention_mask=None if real.all() else torch.from_numpy(real),
        lengths=np.array(lengths),
        token_index=torch.from_numpy(np.flatnonzero(real)),
        masked_index=torch.from_numpy(masked),
        masked_labels=torch.from_numpy(tokens.reshape(-1)[masked]),
    )


def one_sequence(encoder: Encoder, form: dict[str, Any], tokens: np.ndarray) -> dict[Any, np.ndarray]:
    """All signals of a sequence (l,) without padding, computed from the definition."""
    weights = {name.removeprefix("network."): tensor.double().numpy() for name, tensor in encoder.state_dict().items()}

    def norm(states: np.ndarray, name: str) -> np.ndarray:
        if form["norm"] == "rms_norm":
            return states / np.sqrt((states**2).mean(-1, keepdims=True) + 1e-12) * weights[f"{name}.weight"]
        centred = states - states.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(states: np.ndarray, name: str) -> np.ndarray:
        return states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def gelu(states: np.ndarray) -> np.ndarray:
        return states * 0.5 * (1 + np.vectorize(math.erf)(states / math.sqrt(2)))

    pre, found = form["norm_position"] == "pre", {}
    embeddings = "bert.embeddings"
    states = weights[f"{embeddings}.word_embeddings.weight"][tokens]
    states = states + weights[f"{embeddings}.position_embeddings.weight"][: len(tokens)]
    states = states + weights[f"{embeddings}.token_type_embeddings.weight"][0]
    if form["embedding_norm"]:
        states = norm(states, f"{embeddings}.LayerNorm")
    found["embeddings"] = states
    for block in range(LAYERS):
        name = f"bert.encoder.layer.{block}"
        inside = norm(states, f"{name}.attention.output.LayerNorm") if pre else states
        query, key, value = (
            linear(inside, f"{name}.attention.self.{part}").reshape(len(tokens), HEADS, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = np.exp(query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1]))
        mixed = scores / scores.sum(-1, keepdims=True) @ value
        mixed = mixed.swapaxes(0, 1).reshape(len(tokens), -1)
        states = states + linear(mixed, f"{name}.attention.output.dense")
        states = states if pre else norm(states, f"{name}.attention.output.LayerNorm")
        inside = norm(states, f"{name}.output.LayerNorm") if pre else states
        states = states + linear(gelu(linear(inside, f"{name}.intermediate.dense")), f"{name}.output.dense")
        states = states if pre else norm(states, f"{name}.output.LayerNorm")
        found |= {("query", block): query, ("key", block): key, ("value", block): value, block: states}
    if pre:
        states = norm(states, "bert.encoder.final_norm")
        found[LAYERS - 1] = states
    head = "cls.predictions"
    inside = norm(gelu(linear(states, f"{head}.transform.dense")), f"{head}.transform.LayerNorm")
    found["logits"] = linear(inside, f"{head}.decoder")
    return found


def assert_close(ours: torch.Tensor, theirs: np.ndarray | torch.Tensor) -> None:
    torch.testing.assert_close(ours, torch.as_tensor(theirs), rtol=1e-9, atol=1e-9)


@every_form
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@torch.no_grad()
def test_every_signal_is_its_definition(form: dict[str, Any], tied: bool) -> None:
    encoder = made(**form, tie_word_embeddings=tied).double()
    lengths = (7, 3, 10)
    batch = batch_of(lengths)
    signals = encoder(batch, EVERYTHING)
    expected = [
        one_sequence(encoder, form, tokens[:length].numpy())
        for tokens, length in zip(batch.input_ids, lengths, strict=True)
    ]
    for place in ("embeddings", *range(LAYERS)):
        assert_close(signals.tokens(place), np.concatenate([one[place] for one in expected]))
        assert_close(signals.first(place), np.stack([one[place][0] for one in expected]))
    for block in range(LAYERS):
        for part in ("query", "key", "value"):
            (chunk,) = signals.heads(part, block)
            assert chunk.scale == 0.5
            for row, one in enumerate(expected):
                assert_close(chunk.states[row, :, : lengths[row]], one[part, block])
    assert_close(signals.logits("all"), np.concatenate([one["logits"] for one in expected]))
    rows = [torch.as_tensor(one["logits"][np.arange(len(one["logits"])) % 3 == 1]) for one in expected]
    assert_close(signals.logits("masked"), torch.cat(rows))


@every_form
def test_what_holds_for_every_model(form: dict[str, Any], bert_folder: Path) -> None:
    check_model("budget_bert", teacher={"path": str(bert_folder)}, student={"config": {"num_hidden_layers": 2} | form})


@every_form
@torch.no_grad()
def test_padding_changes_nothing_and_hides_from_every_row(form: dict[str, Any]) -> None:
    encoder = made(**form).double()
    short, long = (encoder(batch_of((7, 3), width), EVERYTHING) for width in (7, 12))
    for place in ("embeddings", *range(LAYERS)):
        assert_close(long.tokens(place), short.tokens(place))
    for positions in ("masked", "all"):
        assert_close(long.logits(positions), short.logits(positions))
    mask = next(long.heads("query", 0)).mask
    assert mask is not None
    assert mask.dtype == torch.bool
    assert mask.expand(2, HEADS, 12, 12).sum(-1).unique().tolist() == [3, 7]


@every_form
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_near_and_its_gradients_are_finite(form: dict[str, Any], dtype: torch.dtype) -> None:
    encoder, batch = made(**form), batch_of((7, 3, 12))
    with torch.no_grad():
        exact = encoder(batch, EVERYTHING)
    signals = encoder.to(dtype)(batch, EVERYTHING)
    for place in ("embeddings", *range(LAYERS)):
        theirs = exact.tokens(place)
        distance = (signals.tokens(place).float() - theirs).norm() / theirs.norm()
        assert distance < (0.005 if dtype == torch.float16 else 0.05), place
    loss = signals.logits("masked").float().logsumexp(-1).sum() + signals.tokens(LAYERS - 1).float().square().mean()
    loss.backward()
    for name, parameter in encoder.named_parameters():
        if not name.startswith("pooler."):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def test_only_what_is_asked_for_runs() -> None:
    ran: Counter[str] = Counter()
    encoder = made(norm_position="pre")
    for name, module in encoder.named_modules():
        if name in ("network.cls", "pooler") or name.rpartition(".")[0] == "network.bert.encoder.layer":
            module.register_forward_hook(lambda *_, name=name: ran.update([name.removeprefix("network.")]))
    blocks = [f"bert.encoder.layer.{block}" for block in range(LAYERS)]
    for request, expected in (
        (Signals.hidden(["embeddings"]), []),
        (Signals.attention(["value"], [0]), blocks[:1]),
        (Signals.hidden([0]) | Signals.attention(["key"], [1]), blocks[:2]),
        (Signals.hidden([2]), blocks),
        (Signals.predictions("masked"), [*blocks, "cls"]),
    ):
        ran.clear()
        encoder(batch_of((4, 2)), request)
        assert ran == Counter(expected)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@torch.no_grad()
def test_fault_12_the_final_norm_of_pre_ln_is_applied_whatever_is_read_and_however_many_blocks(
    num_layers: int, norm: str, tmp_path: Path
) -> None:
    """The state of an inner block is its output, even if the block is the last one that a teacher loads."""
    student = made(norm_position="pre", norm=norm, num_hidden_layers=num_layers)
    weights = student.state_dict()
    student.export(tmp_path, {name: tensor.clone() for name, tensor in weights.items()})
    teacher = BudgetBert(BudgetBert.Config(path=str(tmp_path)), "teacher", None)
    batch, handed_on = batch_of((5, 5)), []
    for block in student.get_submodule("network.bert.encoder.layer"):
        block.register_forward_hook(lambda module, args, output: handed_on.append(output[0].flatten(0, 1)))
    whole = Signals.hidden(range(num_layers))
    student(batch, whole)
    normalised = student.get_submodule("network.bert.encoder.final_norm")(handed_on[-1])
    assert (normalised - handed_on[-1]).abs().max() > 0.1
    for request in (whole, *(Signals.hidden([block]) for block in range(num_layers))):
        for encoder in (student, teacher.load_teacher(request).eval()):
            signals = encoder(batch, request)
            for block in request.hidden_blocks:
                expected = normalised if block == num_layers - 1 else handed_on[block]
                torch.testing.assert_close(signals.tokens(block), expected)


@pytest.mark.parametrize("key", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_each_dropout_key_acts_in_training_and_only_there(key: str) -> None:
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    batch, request = batch_of((9, 4)), Signals.hidden(["embeddings", LAYERS - 1])

    def states(encoder: Encoder, place: Any) -> torch.Tensor:
        return encoder(batch, request).tokens(place).detach()

    still = made(**none)
    expected = states(still, LAYERS - 1)
    assert torch.equal(states(still.train(), LAYERS - 1), expected)
    dropping = made(**none | {key: 0.5})
    assert torch.equal(states(dropping, LAYERS - 1), expected)
    dropping.train()
    assert not torch.allclose(states(dropping, LAYERS - 1), states(dropping, LAYERS - 1))
    dropped = (states(dropping, "embeddings") == 0).float().mean()
    assert dropped == 0 if key == "attention_probs_dropout_prob" else 0.4 < dropped < 0.6


def test_first_weights_are_as_the_configuration_says() -> None:
    torch.manual_seed(0)
    state = described(initializer_range=0.3, hidden_size=64, norm_position="pre").build_student(EVERYTHING).state_dict()
    for name, tensor in state.items():
        if tensor.dim() == 1:
            assert torch.equal(tensor, torch.full_like(tensor, "Norm.weight" in name or "norm.weight" in name)), name
        elif tensor.numel() > 1000:
            assert tensor.std().item() == pytest.approx(0.3, rel=0.1), name
    with torch.no_grad():
        assert not state["network.bert.embeddings.word_embeddings.weight"][0].any(), "padding has no embedding"


def test_a_copied_encoder_answers_for_itself() -> None:
    original, batch = made(), batch_of((4, 2))
    expected = original(batch, EVERYTHING).tokens(1)
    other = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.zero_()
    assert torch.equal(other(batch, EVERYTHING).tokens(1), expected)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_outside_kdcore_any_kernel_gives_the_same(implementation: str) -> None:
    from kdcore_budget_bert import BudgetBertModel

    encoder, batch = made(norm_position="pre"), batch_of((7, 3))
    signals = encoder(batch, EVERYTHING)
    network: Any = BudgetBertModel._from_config(
        copy.deepcopy(encoder.network.config), attn_implementation=implementation
    ).eval()
    network.load_state_dict(encoder.network.bert.state_dict(), strict=False)
    outputs = network(
        batch.input_ids,
        attention_mask=batch.attention_mask.long(),
        output_hidden_states=True,
        output_attentions=implementation == "eager",
    )
    for place, states in zip(["embeddings", *range(LAYERS)], outputs.hidden_states, strict=True):
        torch.testing.assert_close(states.flatten(0, 1)[batch.token_index], signals.tokens(place))
    if implementation == "eager":
        assert [tuple(one.shape) for one in outputs.attentions] == [(2, HEADS, 7, 7)] * LAYERS
        assert not outputs.attentions[0][1, :, :, 3:].any()
