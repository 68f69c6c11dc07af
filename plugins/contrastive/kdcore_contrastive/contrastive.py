"""Define the loss of contrastive representation distillation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, softplus

from kdcore import (
    Batch,
    InputError,
    Loss,
    LossConfig,
    ModelInfo,
    Requests,
    Signals,
    Total,
    at_least_float32,
    require_shapes,
    require_teacher,
)
from kdcore_contrastive.memory import Memory, log_mean_of_batch

_DEFAULT_NEGATIVES = 1024


def contrastive(
    student: Tensor,
    teacher: Tensor,
    student_negatives: Tensor,
    teacher_negatives: Tensor,
    *,
    temperature: float = 0.07,
    log_mean: Callable[[Tensor], Tensor] = log_mean_of_batch,
) -> Total:
    """Sum the mean of the losses towards the teacher and towards the student, and count B; see `Contrastive`.

    Args:
        student: (B, d) embeddings of norm 1.
        teacher: like `student`; it also receives a gradient, because the teacher's states pass through a learned map.
        student_negatives: (B, K, d) the student's embeddings of other samples.
        teacher_negatives: (B, K, d) the teacher's embeddings of other samples.
        temperature: tau.
        log_mean: function from scores (2, B, 1 + K) to log(Z / n) of each direction (2,); default: this batch's value.

    Raises:
        ValueError: the shapes do not match.
    """
    sizes = student_negatives.shape
    require_shapes(
        student.ndim == 2
        and teacher.shape == student.shape
        and teacher_negatives.shape == sizes
        and len(sizes) == 3
        and sizes[::2] == student.shape,
        "(B, d) twice and (B, K, d) twice",
        student=student,
        teacher=teacher,
        student_negatives=student_negatives,
        teacher_negatives=teacher_negatives,
    )
    positive = (student * teacher).sum(-1, keepdim=True)
    towards = [
        torch.cat([positive, (others.to(anchor.dtype) @ anchor[..., None]).squeeze(-1)], dim=-1)
        for anchor, others in ((student, teacher_negatives), (teacher, student_negatives))
    ]
    scores = torch.stack(towards) / temperature
    # p / (p + K / n) is the logistic function of log p - log(K / n), and log p + log n = score - log(Z / n).
    logits = scores - (log_mean(scores) + math.log(student_negatives.shape[1]))[:, None, None]
    return Total((softplus(-logits[..., 0]).sum() + softplus(logits[..., 1:]).sum()) / 2, len(student))


class Contrastive(Loss):
    """Contrastive representation distillation, CRD (Tian, Krishnan, Isola, ICLR 2020).

    Both models have embeddings `f = W h / |W h|` of the last block's first token. With `p(x) = exp(x / tau) / Z` and
    `D(x) = p(x) / (p(x) + K / n)`, a sample's loss towards the teacher is
    `-(log D(f_s f_t) + sum_k log(1 - D(f_s m_k)))` over K negatives m_k, the teacher's embeddings of other samples in a
    memory of all n; for the loss towards the student, the roles of the two models are swapped.

    Term `contrastive`: sum over sequences of the mean of both losses, divided by the number of sequences, B. Each
    direction has its own Z, which is n times the mean of `exp(x / tau)` over the first training batch and is constant
    afterwards.
    """

    class Config(LossConfig):
        """Keys of a `contrastive` entry."""

        samples: int = Field(ge=2, description="n, the number of training samples; each has a row in the memory.")
        negatives: int | None = Field(
            None,
            ge=1,
            description=f"K, the number of negatives per sample; default: {_DEFAULT_NEGATIVES}, or all other samples "
            "if there are fewer.",
        )
        other_classes: bool = Field(
            False, description="Draw negatives from other classes only; requires data with the column `labels`."
        )
        embedding_size: int = Field(128, ge=1, description="Width of the embeddings.")
        temperature: float = Field(0.07, gt=0, description="Temperature tau, which divides similarities.")
        momentum: float = Field(
            0.5, ge=0, lt=1, description="Weight of the old value when a row of the memory is updated."
        )

        @model_validator(mode="after")
        def _fewer_than_samples(self) -> Contrastive.Config:
            if self.negatives is not None and self.negatives >= self.samples:
                raise ValueError(f"`negatives` must be less than `samples`, {self.samples}")
            return self

    config: Config
    function = staticmethod(contrastive)

    couples_batch = True
    zero_when_equal = False
    compares_tokens = False  # the first tokens' states represent sequences

    def __init__(self, config: Config, teacher: ModelInfo | None, student: ModelInfo) -> None:
        super().__init__(config)
        teacher = require_teacher(config, teacher)
        self.blocks = student.num_layers - 1, teacher.num_layers - 1
        self.negatives = config.negatives or min(_DEFAULT_NEGATIVES, config.samples - 1)
        self.embed_student = nn.Linear(student.hidden_size, config.embedding_size, bias=False)
        self.embed_teacher = nn.Linear(teacher.hidden_size, config.embedding_size, bias=False)
        self.memory = Memory(config.samples, config.embedding_size, config.momentum)

    def requests(self) -> Requests:
        """Request the hidden states after the last blocks, the sample ids, and the labels if needed."""
        own, theirs = self.blocks
        columns = {"sample_ids", "labels"} if self.config.other_classes else {"sample_ids"}
        return Requests(teacher=Signals.hidden([theirs]), student=Signals.hidden([own]), columns=frozenset(columns))

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return B, the number of sequences.

        Raises:
            InputError: the data has more samples than the memory has rows.
        """
        ids = batch.columns["sample_ids"]
        if self.training and ids.device.type == "cpu" and (largest := int(ids.max())) >= self.config.samples:
            raise InputError(
                f"the memory of `{self.config.name}` has {self.config.samples} rows, but the data has sample {largest}",
                key=f"losses.{self.config.label}.samples",
                hint="set it to the number of training samples",
            )
        return {"contrastive": batch.num_sequences}

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> dict[str, Tensor]:
        """Return the sum of losses; in training, also update the memory with the samples of all processes."""
        assert teacher is not None
        ids = batch.columns["sample_ids"]
        labels = batch.columns["labels"] if self.config.other_classes else None
        if labels is not None and self.training:
            self.memory.see_classes(ids, labels)
        own = _embed(student.first(self.blocks[0]), self.embed_student)
        theirs = _embed(teacher.first(self.blocks[1]), self.embed_teacher)
        others = self.memory.draw(ids, labels, self.negatives)
        negatives = self.memory.embeddings[:, others]
        temperature, log_mean = self.config.temperature, self.memory.log_mean_of
        value = contrastive(own, theirs, *negatives, temperature=temperature, log_mean=log_mean).sum
        if self.training:
            self.memory.write(ids, torch.stack([own, theirs]))
        return {"contrastive": value}


def _embed(states: Tensor, embed: nn.Linear) -> Tensor:
    states = at_least_float32(states)
    return normalize(linear(states, embed.weight.to(states.dtype)), dim=-1)
