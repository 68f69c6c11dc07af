"""The workload: a BERT-base teacher, a student of 6 blocks, length 128, random weights; a step ours, and a plain one.

The plain steps are what a user of transformers writes: both models with their heads, everything put out, autograd and
AdamW as they come. The losses are the same to rounding, which `check_equal` makes sure of before anything is timed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, softmax
from transformers import BertConfig, BertForMaskedLM

from kdcore.models.transformers import TransformersModel
from kdcore.recipe.schema import TEACHER
from kdcore.registry import losses as registered_losses
from kdcore.registry import optimizers
from kdcore.signals import Batch
from kdcore.training.engine.module import DistillationModule, Term
from kdcore.training.engine.teachers import FrozenTeachers

LENGTH = 128
OBJECTIVES: dict[str, dict[str, Any]] = {
    "hidden_mse": {"name": "hidden_mse"},
    "minilm_v2_12": {"name": "minilm_v2", "relation_heads": 12},
    "minilm_v2_48": {"name": "minilm_v2", "relation_heads": 48},
    "attention_kl": {"name": "attention_kl"},
    "soft_targets": {"name": "soft_targets"},
}


def sizes(small: bool) -> dict[str, int]:
    """BERT-base; small for a try-out of the benchmark itself."""
    if not small:
        return {}
    return {"hidden_size": 96, "intermediate_size": 192, "vocab_size": 500, "num_attention_heads": 12}


def make_batch(sequences: int, padding: float, vocab_size: int, seed: int = 0, length: int = LENGTH) -> Batch:
    """Random tokens, 15% of them to be predicted; lengths vary around what leaves `padding` of all positions empty."""
    generator = np.random.default_rng(seed)
    mean, spread = length * (1 - padding), length * min(padding, 0.3)
    lengths = np.full(sequences, length)
    if padding:
        lengths = np.linspace(mean - spread, mean + spread, sequences).round().astype(int)
        generator.shuffle(lengths)
        lengths[lengths.argmax()] = length
    real = np.arange(length) < lengths[:, None]
    tokens = np.where(real, generator.integers(5, vocab_size, real.shape), 0)
    masked = real & (generator.random(real.shape) < 0.15)
    return Batch(
        input_ids=torch.from_numpy(tokens),
        attention_mask=None if real.all() else torch.from_numpy(real),
        lengths=lengths.astype(np.int64),
        token_index=torch.from_numpy(np.flatnonzero(real)),
        masked_index=torch.from_numpy(np.flatnonzero(masked)),
        masked_labels=torch.from_numpy(tokens[masked]),
    )


def step_flops(batch: Batch, heads: bool, hidden: int = 768, vocab: int = 30522) -> float:
    """What has to be multiplied for the real tokens: teacher once, student three times (forward, both gradients)."""
    lengths = batch.lengths.astype(float)
    tokens = lengths.sum()
    block = 2 * 12 * hidden**2 * tokens + 4 * hidden * (lengths**2).sum()
    head = 2 * (hidden**2 + hidden * vocab) * batch.num_masked if heads else 0.0
    return (12 + 3 * 6) * block + 4 * head


@dataclass
class Side:
    """A way to take a step.

    Attributes:
        loss: computes the objective of a batch.
        parameters: name to parameter of the student, by the names of transformers' base model.
        optimizer: of the student.
        student: the trained module.
        teachers: the frozen models.
    """

    loss: Callable[[Batch], Tensor]
    parameters: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    student: nn.Module
    teachers: tuple[nn.Module, ...]

    def step(self, batch: Batch) -> None:
        """Forward, backward, update."""
        self.loss(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Workload:
    """Both models on disk, from which each side loads its own."""

    def __init__(self, objective: str, small: bool = False, max_length: int = 512) -> None:
        torch.manual_seed(0)
        self.objective = objective
        self.folder = tempfile.TemporaryDirectory()
        self.keys = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **sizes(small)}
        self.keys["max_position_embeddings"] = max_length
        self.config = BertConfig(**self.keys)
        teacher = BertForMaskedLM(self.config)
        for parameter in teacher.parameters():  # fresh weights attend evenly everywhere: nothing to teach
            parameter.data.mul_(2.0 if parameter.ndim > 1 else 1.0)
        self.teacher_folder = Path(self.folder.name, "teacher")
        self.student_folder = Path(self.folder.name, "student")
        teacher.save_pretrained(self.teacher_folder)
        student = BertForMaskedLM(BertConfig(**self.keys, num_hidden_layers=6))
        student.save_pretrained(self.student_folder)

    def ours(self, compiled: bool = False, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Side:
        """The step as kdcore takes it, without engine and loop; `compiled` as with `training.compile`."""
        teacher = TransformersModel(TransformersModel.Config(path=str(self.teacher_folder)), "teacher", None)
        start = {
            "initialize": {"from": str(self.student_folder), "blocks": "first"},
            "config": {"num_hidden_layers": 6},
        }
        student = TransformersModel(TransformersModel.Config.model_validate(start), "student", teacher)
        keys = OBJECTIVES[self.objective]
        cls = registered_losses.get(keys["name"])
        loss = cls(cls.Config(label="loss", **keys), teacher.info, student.info)
        requests = loss.requests()
        encoder = teacher.load_teacher(requests.teacher)
        frozen = FrozenTeachers({TEACHER: encoder}, {})
        frozen.to(torch.device(device)).to(dtype)
        module = DistillationModule(student.build_student(requests.student), {"loss": loss}).to(device, dtype)
        if compiled:
            frozen.compile_parts()
            module.student.compile_parts()

        def compute(batch: Batch) -> Tensor:
            answers = frozen(batch, {TEACHER: requests.teacher})
            counts = module.counts(batch)
            sums: dict[Term, Tensor] = module(batch, answers, ["loss"])
            return torch.stack([value / counts[term] for term, value in sums.items()]).sum()

        network = module.student.network
        network = network.base_model
        optimizer = optimizers.get("adamw")
        built = optimizer(optimizer.Config(lr=1e-4)).build(
            [{"params": list(module.parameters()), "weight_decay": 0.01}]
        )
        return Side(compute, dict(network.named_parameters()), built, module, (encoder,))

    def plain(
        self, wrong: bool = False, bare: bool = False, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Side:
        """The step as a user of transformers writes it.

        Args:
            wrong: teach another of the teacher's blocks.
            bare: call the encoders without their heads, which are applied to masked positions if the loss needs them.
            device: of both models.
            dtype: of both models, without autocast.
        """
        attention = "eager" if self.objective == "attention_kl" else "sdpa"
        teacher = BertForMaskedLM.from_pretrained(self.teacher_folder, attn_implementation=attention).eval()
        student = BertForMaskedLM.from_pretrained(self.student_folder, attn_implementation=attention).train()
        teacher, student = teacher.to(device, dtype), student.to(device, dtype)
        block = 10 if wrong else 11
        losses = {
            "hidden_mse": plain_hidden_mse,
            "minilm_v2_12": plain_minilm(teacher, student, block, 12),
            "minilm_v2_48": plain_minilm(teacher, student, block, 48),
            "attention_kl": plain_attention_kl,
            "soft_targets": plain_soft_targets,
        }
        own_loss = losses[self.objective]

        def compute(batch: Batch) -> Tensor:
            mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask.long()
            asked: dict[str, bool] = {}
            if self.objective == "hidden_mse":
                asked = {"output_hidden_states": True}
            if self.objective == "attention_kl":
                asked = {"output_attentions": True}
            if self.objective == "soft_targets" and bare:
                asked = {"masked_rows": True}
            with torch.no_grad():
                theirs = run_plain(teacher, bare, batch, mask, asked)
            own = run_plain(student, bare, batch, mask, asked)
            loss: Tensor = own_loss(own, theirs, mask.bool(), batch, block)
            return loss

        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=device == "cuda")
        return Side(compute, dict(student.bert.named_parameters()), optimizer, student, (teacher,))


def run_plain(model: Any, bare: bool, batch: Batch, mask: Tensor, asked: dict[str, bool]) -> Any:
    """Run a model with its head, or bare; with `masked_rows` the bare one predicts at masked positions only."""
    if not bare:
        return model(batch.input_ids, attention_mask=mask, **asked)
    if "masked_rows" not in asked:
        return model.bert(batch.input_ids, attention_mask=mask, **asked)
    states = model.bert(batch.input_ids, attention_mask=mask).last_hidden_state
    return model.cls(states.flatten(0, 1)[batch.masked_index])


def plain_hidden_mse(own: Any, theirs: Any, mask: Tensor, batch: Batch, block: int) -> Tensor:
    """Mean squared error of the last hidden states at real tokens."""
    difference = own.hidden_states[-1][mask] - theirs.hidden_states[block + 1][mask]
    return difference.square().mean()


def plain_attention_kl(own: Any, theirs: Any, mask: Tensor, batch: Batch, block: int) -> Tensor:
    """Divergence of the last attention maps at real queries."""
    p, q = theirs.attentions[block], own.attentions[-1]
    divergence = (p * (p.clamp_min(1e-30).log() - q.clamp_min(1e-30).log())).sum(-1)
    return divergence.transpose(1, 2)[mask].mean()


def plain_soft_targets(own: Any, theirs: Any, mask: Tensor, batch: Batch, block: int) -> Tensor:
    """Divergence of predictions at masked positions."""
    rows = [
        (side if isinstance(side, Tensor) else side.logits.flatten(0, 1)[batch.masked_index]).float()
        for side in (own, theirs)
    ]
    wrong = 2.0 if block == 10 else 1.0
    return kl_div(log_softmax(rows[0], -1), softmax(rows[1] / wrong, -1), reduction="sum") / batch.num_masked


def plain_relations(states: Tensor, heads: int, mask: Tensor) -> Tensor:
    """Log softmax of scaled products of (B, L, d) split into `heads`: (B, heads, L, L)."""
    split = states.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = split @ split.transpose(-1, -2) / split.shape[-1] ** 0.5
    return log_softmax(scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min), -1)


def plain_relation_loss(own: Tensor, theirs: Tensor, heads: int, mask: Tensor) -> Tensor:
    """Divergence of relations, a mean over real queries and heads."""
    target = plain_relations(theirs, heads, mask)
    divergence = (target.exp() * (target - plain_relations(own, heads, mask))).sum(-1)
    return divergence.transpose(1, 2)[mask].mean()


def plain_minilm(teacher: Any, student: Any, block: int, heads: int) -> Callable[..., Tensor]:
    """MiniLMv2 with forward hooks on the projections."""
    seen: dict[tuple[str, str], Tensor] = {}

    def watch(whose: str, part: str, module: Any) -> None:
        module.register_forward_hook(lambda _, args, output: seen.__setitem__((whose, part), output))

    parts = ("query", "key", "value")
    for part in parts:
        watch("teacher", part, getattr(teacher.bert.encoder.layer[block].attention.self, part))
        watch("student", part, getattr(student.bert.encoder.layer[-1].attention.self, part))

    def loss(own: Any, theirs: Any, mask: Tensor, batch: Batch, block: int) -> Tensor:
        return sum(plain_relation_loss(seen["student", part], seen["teacher", part], heads, mask) for part in parts)  # type: ignore[return-value]

    return loss


def difference(one: Side, other: Side, batch: Batch) -> tuple[float, float]:
    """How far two sides are apart in loss and in gradients, relative to the first."""
    values = []
    for side in (one, other):
        loss = side.loss(batch)
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in side.parameters.items() if p.grad is not None}
        side.optimizer.zero_grad(set_to_none=True)
        values.append((loss.item(), gradients))
    (loss, gradients), (other_loss, others) = values
    shared = [name for name in gradients if name in others and not name.startswith("pooler")]
    whole = torch.cat([gradients[name].flatten() for name in shared])
    distance = torch.cat([others[name].flatten() for name in shared]) - whole
    return abs(other_loss - loss) / abs(loss), (distance.norm() / whole.norm()).item()


def check_equal(workload: Workload, ours: Side, plain: Side, batch: Batch) -> str:
    """Compare losses and gradients, and detect a wrong variant; return a line about it.

    Raises:
        AssertionError: they are not equal, or the wrong one passes.
    """
    loss, gradient = difference(ours, plain, batch)
    wrong_loss, wrong_gradient = difference(ours, workload.plain(wrong=True), batch)
    found = f"loss differs by {loss:.1e}, gradients by {gradient:.1e}; wrong: {wrong_loss:.1e}, {wrong_gradient:.1e}"
    assert loss < 1e-5, found
    assert gradient < 1e-4, found
    assert min(wrong_loss, wrong_gradient) > 1e-3, found
    return found


__all__ = ["LENGTH", "OBJECTIVES", "Side", "Workload", "check_equal", "make_batch", "step_flops"]
