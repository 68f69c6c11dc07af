"""Suites: files that define tasks, the fine-tuning grid, and probes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from kdcore_embeddings import EmbeddingTexts
from kdcore_supervised import GlueData, GlueName, LabelledData, Metric, SpanMetric, TaggedData
from pydantic import Field, model_validator

from kdcore import Budget, ComponentConfig, DataSource, FolderName, PathString

Reference = Literal["initial", "teacher", "random"]
LearningRate = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

_GRID_KEYS = ("run", "seed", "teacher", "teachers", "student", "task", "losses", "tracking", "imports", "extends")


class SuiteTask(ComponentConfig):
    """Labelled texts on which every model is fine-tuned."""

    data: LabelledData | TaggedData
    metric: Literal[Metric, SpanMetric] | None = Field(
        None, description="The score; default: the metric of the GLUE task, or the usual metric for the kind of labels."
    )

    @model_validator(mode="after")
    def _metric_fits(self) -> SuiteTask:
        if self.metric is not None and self.metric not in self.data.metrics:
            raise ValueError(
                f"`metric: {self.metric}` cannot be used with labels that are {self.data.kind} "
                f"(expected one of {', '.join(self.data.metrics)})"
            )
        return self

    @property
    def main_metric(self) -> str:
        """The metric that selects hyperparameters and compares models."""
        return self.metric or self.data.main_metric


class GlueTasks(ComponentConfig):
    """Several of GLUE's tasks from one folder."""

    folder: PathString = Field(description="GLUE's folder, with one subfolder per task.")
    tasks: list[GlueName] = Field(min_length=1, description="Names of the tasks.")
    max_length: int = Field(
        128, ge=4, description="Maximum number of tokens, including special tokens; longer sequences are truncated."
    )


class CostProbe(ComponentConfig):
    """Number of parameters, bytes on disk, and speed and memory of inference, measured on randomly drawn tokens."""

    batch_size: int = Field(8, gt=0, description="Sequences per forward pass.")
    sequence_length: int = Field(128, gt=2, description="Tokens per sequence.")
    latency: list[Annotated[int, Field(gt=0)]] = Field(
        default_factory=list, description="Batch sizes whose latency per forward pass is also measured."
    )


class MaskedLMProbe(ComponentConfig):
    """Loss on masked tokens of held-out text; only for models that come with a masked-LM head."""

    data: DataSource = Field(description="A prepared folder, or a data recipe or its file, with held-out text.")
    sequences: int = Field(512, gt=0, description="Maximum number of sequences.")


class AgreementProbe(ComponentConfig):
    """Agreement of embeddings, similarities and nearest neighbours with the teacher's on held-out text."""

    data: DataSource = Field(description="A prepared folder, or a data recipe or its file, with held-out text.")
    sequences: int = Field(512, gt=1, description="Maximum number of sequences.")
    neighbours: int = Field(10, gt=0, description="Number of nearest neighbours to compare.")


class RetrievalProbe(ComponentConfig):
    """Retrieval on frozen, mean-pooled embeddings: find the second half of a held-out passage from its first half."""

    data: DataSource = Field(description="A prepared folder, or a data recipe or its file, with held-out text.")
    passages: int = Field(2000, gt=1, description="Maximum number of passages.")


class EmbeddingsProbe(ComponentConfig):
    """Scores of a sentence encoder's embeddings, computed with all modules: STS, pair classification, retrieval."""

    tasks: dict[FolderName, EmbeddingTexts] = Field(min_length=1, description="Label -> texts.")


class LinearProbe(ComponentConfig):
    """A linear classifier (or regression) on frozen, mean-pooled embeddings, for each task of the suite."""

    texts: int = Field(2000, gt=1, description="Maximum number of texts to fit on.")


class Probes(ComponentConfig):
    """Measurements besides fine-tuning; each is optional."""

    cost: CostProbe | None = None
    masked_lm: MaskedLMProbe | None = None
    agreement: AgreementProbe | None = None
    linear: LinearProbe | None = None
    retrieval: RetrievalProbe | None = None
    embeddings: EmbeddingsProbe | None = None


class Suite(ComponentConfig):
    """Tasks, the fine-tuning grid, and probes.

    Every model is fine-tuned on every task once for each combination of learning rate, batch size and seed. `recipe`
    contains additional keys for the fine-tuning recipes, such as `optimizer` or `training.precision`.
    """

    name: FolderName = Field(description="Name of the suite.")
    tasks: dict[FolderName, SuiteTask] = Field(default_factory=dict, description="Label -> task.")
    glue: GlueTasks | None = None
    learning_rates: list[LearningRate] = Field([5e-5], min_length=1)
    batch_sizes: list[Annotated[int, Field(gt=0)]] = Field([32], min_length=1)
    seeds: list[Seed] = Field([1, 2, 3], description="Seeds of fine-tuning runs; an empty list disables fine-tuning.")
    budget: Budget = Budget(epochs=3)
    recipe: dict[str, Any] = Field(default_factory=dict, description="Additional keys of every trial's recipe.")
    references: list[Reference] = Field(
        default_factory=list,
        description="Additional models to measure: `initial` for the runs' students before training, `teacher` for "
        "the runs' teachers, `random` for their students' architectures with random weights.",
    )
    probes: Probes = Probes()

    @model_validator(mode="after")
    def _consistent(self) -> Suite:
        if not self.all_tasks and self.probes == Probes():
            raise ValueError("a suite needs `tasks`, `glue` or `probes`")
        if not self.seeds and self.probes == Probes():
            raise ValueError("a suite without `seeds` fine-tunes nothing, so it needs `probes`")
        for name in ("learning_rates", "batch_sizes", "seeds", "references"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"`{name}` names a value twice")
        twice = sorted(set(self.tasks) & set(self.glue.tasks if self.glue else ()))
        if twice:
            raise ValueError(f"the task `{twice[0]}` is in `tasks` and in `glue`")
        for key in self.recipe:
            if key in _GRID_KEYS:
                raise ValueError(f"`recipe.{key}` is determined by the suite and cannot be set")
        if self.probes.linear is not None and not self.all_tasks:
            raise ValueError("`probes.linear` needs `tasks` or `glue`")
        return self

    @property
    def all_tasks(self) -> dict[str, SuiteTask]:
        """Tasks by label, including GLUE's."""
        found = dict(self.tasks)
        if self.glue is not None:
            for name in self.glue.tasks:
                data = LabelledData(glue=GlueData(folder=self.glue.folder, task=name), max_length=self.glue.max_length)
                found[name] = SuiteTask(data=data)
        return found
