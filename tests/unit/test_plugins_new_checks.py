"""The checks of models, corpora and tasks accept what is right and report what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from kdcore_preparation import CharacterAccount
from kdcore_testing import check_corpus, check_model, check_task

from kdcore import Batch, ComponentConfig, Corpus, Document, MaskedLM, PathString, SignalRequest, Signals
from kdcore.models.transformers import TransformersModel

STUDENT = {"config": {"num_hidden_layers": 2}, "initialize": {"from": "teacher"}}


def test_the_built_in_ones_pass(teacher_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    check_model("transformers", teacher={"path": str(teacher_folder)}, student=STUDENT)
    check_corpus("text", {"path": str(corpus_file)})
    check_task("masked_lm", task_config(teacher_folder, corpus_file), cache=tmp_path)


def task_config(teacher_folder: Path, corpus_file: Path) -> dict[str, Any]:
    corpora = [{"name": "text", "path": str(corpus_file)}]
    return {"data": {"tokenizer": str(teacher_folder), "corpora": corpora, "sequence_length": 48, "held_out": 0.1}}


def broken_model(change: Any) -> type[TransformersModel]:
    """The built-in model with encoders whose forward pass is changed."""

    class Broken(TransformersModel):
        def load_teacher(self, request: SignalRequest) -> Any:
            return change(super().load_teacher(request))

        def build_student(self, request: SignalRequest) -> Any:
            return change(super().build_student(request))

    return Broken


def changed_forward(change: Any) -> Any:
    def wrap(encoder: Any) -> Any:
        original = encoder.forward

        def forward(batch: Batch, request: SignalRequest) -> Signals:
            return change(batch, request, original)

        encoder.forward = forward
        return encoder

    return wrap


def without_mask(batch: Batch, request: SignalRequest, original: Any) -> Any:
    answers = original(replace(batch, attention_mask=None), request)
    return Signals(batch, answers._hidden, {}, {})


def with_noise(batch: Batch, request: SignalRequest, original: Any) -> Any:
    answers = original(batch, request)
    return Signals(batch, {key: one + 0.1 * torch.randn_like(one) for key, one in answers._hidden.items()}, {}, {})


def detached(batch: Batch, request: SignalRequest, original: Any) -> Any:
    answers = original(batch, request)
    states = {key: one.detach().requires_grad_() for key, one in answers._hidden.items()}
    return Signals(batch, states, {}, {})


def half(encoder: Any) -> Any:
    return encoder.to(torch.bfloat16)


def forgetful_export(encoder: Any) -> Any:
    original = encoder.export
    encoder.export = lambda folder, weights: original(
        folder, {name: one for name, one in weights.items() if "layer.1.output" not in name}
    )
    return encoder


def stale_export(encoder: Any) -> Any:
    original, own = encoder.export, {name: one.clone() for name, one in encoder.state_dict().items()}
    encoder.export = lambda folder, weights: original(folder, own)
    return encoder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed_forward(without_mask), "further padding changes|other sequences of the batch change"),
        (changed_forward(with_noise), "a second forward pass changes"),
        (changed_forward(detached), "no gradient reaches the student's weights"),
        (half, "is torch.bfloat16, not float32"),
        (forgetful_export, "missing in the export for `AutoModel`"),
        (stale_export, "exporting the weights changes the states"),
    ],
)
def test_a_model_is_told_what_it_does_wrong(teacher_folder: Path, change: Any, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_model(broken_model(change), teacher={"path": str(teacher_folder)}, student=STUDENT)


class Lines(Corpus):
    """One document a line, as it should be; the others below are not."""

    class Config(ComponentConfig):
        path: PathString

    def files(self) -> Mapping[str, Path]:
        return {"lines": Path(self.config.path)}

    def documents(self) -> Iterator[Document]:
        for number, line in enumerate(Path(self.config.path).read_text(encoding="utf-8").splitlines()):
            yield Document(str(number), line)


class ByPath(Lines):
    def files(self) -> Mapping[str, Path]:
        return {str(path): path for path in super().files().values()}


class AtOnce(Lines):
    def documents(self) -> Any:
        return list(super().documents())


class WithEmpty(Lines):
    def documents(self) -> Iterator[Document]:
        yield from super().documents()
        yield Document("empty", "  ")


class OneId(Lines):
    def documents(self) -> Iterator[Document]:
        for document in super().documents():
            yield Document("same", document.text)


class Forgetful(Lines):
    def documents(self) -> Iterator[Document]:
        if not self.report:
            yield from super().documents()
        self.report["runs"] += 1


class Losing(Lines):
    """Keep an account that lacks the characters that are dropped."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.characters = CharacterAccount()

    def documents(self) -> Iterator[Document]:
        for document in super().documents():
            text = document.text[:-1]
            self.characters.stage("lines").received += len(document.text)
            self.characters.stage("lines").passed += len(text)
            yield Document(document.id, text)


class Overstated(Lines):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.characters = CharacterAccount()

    def documents(self) -> Iterator[Document]:
        for document in super().documents():
            stage = self.characters.stage("lines")
            stage.received += len(document.text) + 1
            stage.passed += len(document.text) + 1
            yield document


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        (Losing, "`characters` is not balanced: lines: 1 of"),
        (Overstated, "the last stage of `characters`, 'lines', passed on"),
        (ByPath, "contains its folder"),
        (AtOnce, "yield one document at a time"),
        (WithEmpty, "'empty' is empty"),
        (OneId, "two documents have the id 'same'"),
        (Forgetful, "reading again gives different documents"),
    ],
)
def test_a_reader_is_told_what_it_does_wrong(corpus_file: Path, reader: type[Corpus], words: str) -> None:
    check_corpus(Lines, {"path": str(corpus_file)})
    with pytest.raises(AssertionError, match=words):
        check_corpus(reader, {"path": str(corpus_file)})


class ByChance(MaskedLM):
    def batch(self, split: Any, samples: np.ndarray, epochs: np.ndarray) -> Batch:
        return super().batch(split, samples, np.random.default_rng().integers(0, 1000, len(epochs)))


class ByNeighbours(MaskedLM):
    def batch(self, split: Any, samples: np.ndarray, epochs: np.ndarray) -> Batch:
        return super().batch(split, samples, epochs + np.arange(len(epochs)))


class PaddingScored(MaskedLM):
    def batch(self, split: Any, samples: np.ndarray, epochs: np.ndarray) -> Batch:
        batch = super().batch(split, samples, epochs)
        everywhere = torch.arange(batch.input_ids.numel())
        return replace(batch, masked_index=everywhere, masked_labels=batch.input_ids.reshape(-1))


class CutShort(MaskedLM):
    def sequences(self, split: Any, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = super().sequences(split, samples)
        return ids, lengths - 1


class WithColumn(MaskedLM):
    """Has the tokens once more, as a column."""

    columns: ClassVar = {**MaskedLM.columns, "again": "token"}

    def batch(self, split: Any, samples: np.ndarray, epochs: np.ndarray) -> Batch:
        batch = super().batch(split, samples, epochs)
        return replace(batch, columns={**batch.columns, "again": self.column(batch)})

    def column(self, batch: Batch) -> torch.Tensor:
        return batch.input_ids


class WithShortColumn(WithColumn):
    def column(self, batch: Batch) -> torch.Tensor:
        return batch.input_ids[:, 0]


class WithSecretColumn(WithColumn):
    columns: ClassVar = MaskedLM.columns


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (WithShortColumn, "the column `again` of level `token` has the shape"),
        (WithSecretColumn, "the column `again`, which `columns` does not declare"),
        (CutShort, "`sequences` of `train` has other lengths than `batch`"),
        (ByChance, "in a second call, samples of `train` give different sequences"),
        (ByNeighbours, "in another order, samples of `train` give different sequences"),
        (PaddingScored, "`masked_index` contains padding"),
    ],
)
def test_a_task_is_told_what_it_does_wrong(
    teacher_folder: Path, corpus_file: Path, tmp_path: Path, task: type[MaskedLM], words: str
) -> None:
    with pytest.raises(AssertionError, match=words):
        check_task(task, task_config(teacher_folder, corpus_file), cache=tmp_path)


def test_a_column_for_tokens_passes(teacher_folder: Path, corpus_file: Path, tmp_path: Path) -> None:
    check_task(WithColumn, task_config(teacher_folder, corpus_file), cache=tmp_path)
