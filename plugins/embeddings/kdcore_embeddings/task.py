"""The task `embeddings`: texts whose embeddings a student learns."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field

from kdcore import (
    Batch,
    ComponentConfig,
    DataError,
    Head,
    HeadLevel,
    InputError,
    Model,
    PathOrHubName,
    Split,
    StoredData,
    Task,
    TaskOutputs,
    check_fit,
    tokenizer_fingerprint,
    vocabulary_size,
)
from kdcore_embeddings.batch_losses import GROUP_TEXTS
from kdcore_embeddings.data.text_tokens import TextTokenizer, TextTokens, common_units, whole_texts
from kdcore_embeddings.data.texts import TextData, TextPart, read_texts
from kdcore_embeddings.head import EMBEDDING, EmbeddingHead, embedding_head
from kdcore_embeddings.ranking_losses import GROUP_SCORES
from kdcore_embeddings.search_scores import MAIN_SCORE, random_scores, retrieval_scores
from kdcore_embeddings.sentence_export import write_sentence_folder
from kdcore_embeddings.teacher import SentenceTransformerModel

logger = logging.getLogger("kdcore")

_USUAL_LENGTH = 256
_ORDER = "random"  # in fingerprints; those of earlier runs, with batches of similar length, are without it
_USAGE = """\
from sentence_transformers import SentenceTransformer

path = "."  # this folder, or its name on the hub
model = SentenceTransformer(path)
queries = model.encode_query(["a query"])  # adds the prompt `query`, if the model has one
documents = model.encode_document(["a document", "another one"])  # the same with `document`
print(model.similarity(queries, documents))
"""


class Prompts(ComponentConfig):
    """Prompts that are put before texts."""

    query: str = Field("", description="Precedes queries.")
    document: str = Field("", description="Precedes all other texts.")


class Embeddings(Task):
    """Texts whose embeddings the student learns; each model prepends its own prompt and tokenises them separately."""

    class Config(ComponentConfig):
        """Keys of the task `embeddings`; missing ones are taken from the teacher's folder."""

        data: TextData
        tokenizer: PathOrHubName | None = Field(
            None, description="Default: the tokenizer of the student's initial weights, or the teacher's tokenizer."
        )
        max_length: int | None = Field(
            None,
            ge=4,
            description="Maximum number of tokens in a sequence of the student, including special tokens; longer "
            "sequences are truncated. Default: the teacher's limit, or 256.",
        )
        prompts: Prompts | None = Field(
            None, description="Prompts that precede the student's texts; default: the teacher's prompts."
        )
        dimension: int | None = Field(
            None, ge=1, description="Width of the embeddings; default: as in the teacher, or the student's hidden size."
        )
        pooling: Literal["mean", "cls"] | None = Field(
            None,
            description="Pooling of a text's states: their mean, or the first token's state. Default: the teacher's.",
        )
        normalize: bool | None = Field(
            None, description="Whether embeddings are scaled to length 1; default: the teacher's setting."
        )
        similarity: Literal["cosine", "dot", "euclidean", "manhattan"] | None = Field(
            None, description="Similarity function recorded in the export; default: the teacher's, or cosine."
        )
        teacher_tokenizer: PathOrHubName | None = Field(None, description="Default: the teacher's tokenizer.")
        teacher_max_length: int | None = Field(None, ge=4, description="Default: the limit of the teacher's folder.")
        teacher_prompts: Prompts | None = Field(None, description="Default: the prompts of the teacher's folder.")
        teacher_lower_case: bool | None = Field(
            None, description="Whether the teacher's texts are converted to lower case; default: its folder's setting."
        )

    config: Config

    masks_tokens = False
    columns: ClassVar[Mapping[str, HeadLevel] | None] = {
        "sample_ids": "sequence",
        GROUP_TEXTS: "sequence",
        GROUP_SCORES: "sequence",
    }

    @classmethod
    def completed(cls, config: ComponentConfig, student: Model, teacher: Model | None) -> ComponentConfig:
        """Fill in missing keys from the teacher's folder and from the models."""
        assert isinstance(config, cls.Config)
        folder = teacher.folder if isinstance(teacher, SentenceTransformerModel) else None
        head = None if teacher is None else teacher.info.head(EMBEDDING)
        source = None if teacher is None else teacher.source
        limits = [model.info.max_length for model in (teacher, student) if model is not None]
        theirs = limits[0] if folder is None or folder.max_length is None else min(folder.max_length, limits[0])
        usual = min(theirs, limits[-1]) if folder is not None else min(_USUAL_LENGTH, *limits)
        prompts = Prompts()
        if folder is not None:
            prompts = Prompts(query=folder.prompt("query"), document=folder.prompt("document", "passage", "corpus"))
        modes = () if folder is None else folder.modes
        known = {
            "tokenizer": student.source or source,
            "max_length": usual,
            "prompts": prompts,
            "dimension": student.info.hidden_size if head is None else head.num_outputs,
            "pooling": "cls" if modes == ("cls",) else "mean",
            "normalize": folder is not None and folder.normalizes,
            "similarity": "cosine" if folder is None else folder.similarity,
            "teacher_tokenizer": source,
            "teacher_max_length": theirs if folder is not None else config.max_length or usual,
            "teacher_prompts": prompts,
            "teacher_lower_case": folder is not None and folder.lower_case,
        }
        missing = {name: value for name, value in known.items() if getattr(config, name) is None}
        return config.model_copy(update=missing)

    @classmethod
    def heads(cls, config: ComponentConfig) -> tuple[Head, ...]:
        """Return the head `embedding`.

        Raises:
            InputError: the width is not set.
        """
        return (cls._head(config),)

    @classmethod
    def _head(cls, config: ComponentConfig) -> EmbeddingHead:
        assert isinstance(config, cls.Config)
        if config.dimension is None:
            raise InputError("the width of embeddings is not set", key="task.dimension")
        return embedding_head(config.dimension, config.pooling or "mean", normalize=bool(config.normalize))

    def __init__(self, config: Config, seed: int, cache: Path) -> None:
        super().__init__(config, seed, cache)
        if config.tokenizer is None:
            raise InputError(
                "no tokenizer is set, and the models have no weights to take one from",
                key="task.tokenizer",
                hint="set it to a folder or hub name",
            )
        length = config.max_length or _USUAL_LENGTH
        self.student_tokenizer = TextTokenizer(config.tokenizer, length)
        self.teacher_tokenizer = TextTokenizer(
            config.teacher_tokenizer or config.tokenizer,
            config.teacher_max_length or length,
            lower_case=bool(config.teacher_lower_case),
            own_side=config.teacher_tokenizer is not None,
        )
        self._prompts = config.prompts or Prompts()
        self._teacher_prompts = config.teacher_prompts or self._prompts
        self._check_prompts()
        report: Counter[str] = Counter()
        train, held_out = read_texts(config.data, report)
        self.parts: dict[Split, TextPart] = {"train": train, "held_out": held_out}
        self._text_numbers = {split: _numbered(part.texts) for split, part in self.parts.items()}
        self._own = {split: self._encode(split, self.student_tokenizer, self._prompts) for split in self.parts}
        theirs = {
            split: self._encode(split, self.teacher_tokenizer, self._teacher_prompts, part.sources)
            for split, part in self.parts.items()
        }
        same = all(
            np.array_equal(self._own[split].tokens, one.tokens) and np.array_equal(self._own[split].ends, one.ends)
            for split, one in theirs.items()
        )
        tokenizers = [tokenizer_fingerprint(one.tokenizer) for one in (self.student_tokenizer, self.teacher_tokenizer)]
        self._theirs = None if same and tokenizers[0] == tokenizers[1] else theirs
        self._log(report)
        digest = hashlib.sha256("".join(tokenizers).encode())
        for tokens in (*self._own.values(), *theirs.values()):
            digest.update(tokens.fingerprint())
        for part in self.parts.values():
            digest.update(repr(part.width).encode() + (b"" if part.scores is None else part.scores.tobytes()))
        self._data_fingerprint = digest.hexdigest()
        self._by_length = False

    @classmethod
    def resumed(cls, config: ComponentConfig, seed: int, cache: Path, stored: StoredData) -> Self:
        """Open the texts of a run. A run that began with batches of similar length keeps this order."""
        assert isinstance(config, cls.Config)
        task = cls(config, seed, cache)
        task._by_length = stored.fingerprint == task._data_fingerprint
        return task

    def _encode(
        self, split: Split, tokenizer: TextTokenizer, prompts: Prompts, texts: list[str] | None = None
    ) -> TextTokens:
        part = self.parts[split]
        first = prompts.document if part.width == 1 else prompts.query
        return tokenizer.encode(texts or part.texts, [first, *[prompts.document] * (part.width - 1)] * len(part))

    def _check_prompts(self) -> None:
        """Reject prompts that leave no tokens for texts."""
        sides = (
            ("", self.student_tokenizer, self._prompts),
            ("teacher_", self.teacher_tokenizer, self._teacher_prompts),
        )
        for whose, tokenizer, prompts in sides:
            for name in ("query", "document"):
                found = tokenizer.prompt_tokens(getattr(prompts, name))
                if found >= tokenizer.max_length:
                    raise DataError(
                        f"the prompt leaves no tokens for texts (found {found}, expected less than "
                        f"{tokenizer.max_length})",
                        key=f"task.{whose}prompts.{name}",
                        hint=f"shorten it, or raise task.{whose}max_length",
                    )

    def _log(self, report: Counter[str]) -> None:
        sizes = ", ".join(f"{split} {len(part):,}" for split, part in self.parts.items())
        width = self.config.data.width
        logger.info(f"texts: {sizes}" + ("" if width == 1 else f" groups of {width}"))
        for what, count in report.items():
            if count:
                logger.info(f"texts: {count:,} {what}")
        sides = [("student", "task.max_length", self.student_tokenizer, self._own)]
        if self._theirs is not None:
            sides.append(("teacher", "task.teacher_max_length", self.teacher_tokenizer, self._theirs))
        for whose, key, tokenizer, tokens in sides:
            cut = sum(one.cut for one in tokens.values())
            if cut:
                logger.info(
                    f"texts: {cut:,} are longer than {tokenizer.max_length} tokens of the {whose} ({key}) and were "
                    "truncated"
                )

    @property
    def fingerprint(self) -> str:
        """Hash of both models' tokens and tokenizers, and of the order of texts; independent of file locations."""
        found = self._data_fingerprint
        return found if self._by_length else hashlib.sha256(f"{found} {_ORDER}".encode()).hexdigest()

    @property
    def batch_identity(self) -> dict[str, str]:
        """The data without the order of texts, so that a teacher's stored signals can be used with any order."""
        return {"data": self._data_fingerprint}

    @property
    def separate_views(self) -> bool:
        """Whether the teacher receives different tokens than the student."""
        return self._theirs is not None

    def check(self, student: Model, teacher: Model | None) -> None:
        """Compare lengths and vocabularies with the models.

        Raises:
            DataError: lengths or vocabularies do not match.
            InputError: the teacher excludes prompts from its pooling.
        """
        folder = teacher.folder if isinstance(teacher, SentenceTransformerModel) else None
        if folder is not None and not folder.include_prompt and self._teacher_prompts != Prompts():
            raise InputError(
                "the teacher excludes tokens of prompts from its pooling (`include_prompt: false`), which is not "
                "supported",
                key="task.teacher_prompts",
                hint="set task.teacher_prompts: {query: '', document: ''} to use the teacher without prompts",
            )
        self._check_fit(student, None if self.separate_views else teacher, self.student_tokenizer, self._own, "")
        if teacher is not None and self._theirs is not None:
            self._check_fit(None, teacher, self.teacher_tokenizer, self._theirs, "teacher_")

    def _check_fit(
        self,
        student: Model | None,
        teacher: Model | None,
        tokenizer: TextTokenizer,
        tokens: Mapping[Split, TextTokens],
        prefix: str,
    ) -> None:
        check_fit(
            student,
            teacher,
            vocabulary=tokenizer.tokenizer.get_vocab,
            vocab_size=vocabulary_size(tokenizer.tokenizer),
            longest=max(int(one.lengths.max(initial=0)) for one in tokens.values()),
            where=tokenizer.source,
            shorter=f"lower task.{prefix}max_length",
            own_tokenizer=f"set task.{prefix}tokenizer to the {{whose}}'s",
            pad_id=tokenizer.tokenizer.pad_token_id,
            tokenizer=lambda: tokenizer.tokenizer,
        )

    def num_samples(self, split: Split) -> int:
        """Return the number of texts, or of groups."""
        return len(self.parts[split]) if split in self.parts else 0

    @property
    def distinct_epochs(self) -> int | None:
        """Return 1, because every epoch has the same texts; None for groups, whose texts are not samples."""
        return 1 if self.config.data.width == 1 else None

    def lengths(self, split: Split) -> np.ndarray | None:
        """Return None for training, whose batches are drawn in random order; otherwise lengths (n,) in tokens.

        Texts of similar length often have similar content, so batches of such texts have correlated gradients, and
        packed computation does not need them. The length of a group is the length of its longest text in the student's
        tokens.
        """
        if split == "train" and not self._by_length:
            return None
        longest: np.ndarray = self._own[split].lengths.reshape(-1, self.config.data.width).max(1, initial=0)
        return longest

    def _rows(self, samples: np.ndarray) -> np.ndarray:
        """Return the indices of the texts (B * k,) of samples (B,)."""
        width = self.config.data.width
        return (np.asarray(samples, dtype=np.int64)[:, None] * width + np.arange(width)).reshape(-1)

    def batch(self, split: Split, samples: np.ndarray, epochs: np.ndarray) -> Batch:
        """Return these texts, which are the same in every epoch; for groups, all texts, group by group."""
        rows, part = self._rows(samples), self.parts[split]
        columns = {"sample_ids": torch.from_numpy(rows)}
        if part.width > 1:
            texts = self._text_numbers[split].reshape(-1, part.width)
            columns[GROUP_TEXTS] = torch.from_numpy(texts[rows // part.width])
        if part.scores is not None:
            columns[GROUP_SCORES] = torch.from_numpy(part.scores[rows // part.width])
        batch = replace(self._own[split].batch(rows), columns=columns)
        if self._theirs is None:
            return batch
        if self.config.data.translations is None:
            own, theirs = common_units(self._own[split], self._theirs[split], rows)
        else:
            own, theirs = (whole_texts(side[split], rows) for side in (self._own, self._theirs))
        teacher = replace(self._theirs[split].batch(rows), columns=columns, units=theirs)
        return replace(batch, units=own, teacher=teacher)

    def draw(self, split: Split, samples: np.ndarray, epochs: np.ndarray, fraction: float = 1.0) -> Batch:
        """Return a batch with split, sample indices and epochs on the host."""
        width = self.config.data.width
        return self.batch(split, samples, epochs).of_samples(split, self._rows(samples), np.repeat(epochs, width))

    @property
    def metric(self) -> str | None:
        """The score that selects the best student, if there are groups; None otherwise."""
        return None if self.config.data.width == 1 else MAIN_SCORE

    def scores(self, split: Split, outputs: TaskOutputs) -> dict[str, float]:
        """Search the documents of all groups of the split for each query's document, and return the scores."""
        part, vectors = self.parts[split], np.asarray(outputs)
        numbers = self._text_numbers[split]
        is_query = np.arange(len(vectors)) % part.width == 0
        _, first = np.unique(numbers[~is_query], return_index=True)
        documents = np.flatnonzero(~is_query)[first]
        place = {int(number): row for row, number in enumerate(numbers[documents])}
        relevant: dict[int, set[int]] = {}
        for query, document in numbers.reshape(-1, part.width)[:, :2].tolist():
            relevant.setdefault(query, set()).add(place[document])
        _, asked = np.unique(numbers[is_query], return_index=True)
        queries = np.flatnonzero(is_query)[asked]
        return retrieval_scores(
            vectors[queries],
            vectors[documents],
            [relevant[int(number)] for number in numbers[queries]],
            self.config.similarity or "cosine",
        )

    def baselines(self, split: Split) -> dict[str, float]:
        """Return the expected scores of a random order of the documents; empty without groups."""
        part = self.parts[split]
        if part.width == 1 or not len(part):
            return {}
        groups = np.array(part.texts, dtype=object).reshape(-1, part.width)
        return random_scores(len(set(groups[:, 1:].reshape(-1).tolist())))

    def write_predictions(self, folder: Path, split: Split, outputs: TaskOutputs) -> None:
        """Write each text with its embedding as Parquet."""
        import pyarrow
        from pyarrow import parquet

        columns = {"text": self.parts[split].texts, "embedding": list(np.asarray(outputs, dtype=np.float32))}
        parquet.write_table(pyarrow.table(columns), folder / f"{split}.parquet")

    def sequences(self, split: Split, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the student's tokens (B, L) and lengths (B,); for groups, those of the queries."""
        return self._own[split].rows(self._rows(samples)[:: self.config.data.width])

    def teacher_sequences(self, split: Split, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the teacher's tokens (B, L) and lengths (B,); None if they equal the student's."""
        return (
            None if self._theirs is None else self._theirs[split].rows(self._rows(samples)[:: self.config.data.width])
        )

    def texts(self, split: Split, samples: np.ndarray) -> list[str] | None:
        """Return the teacher's texts for samples, without prompts; None for groups."""
        part = self.parts[split]
        texts = part.texts if part.sources is None else part.sources
        return [texts[sample] for sample in samples] if part.width == 1 else None

    def save_tokenizer(self, folder: Path) -> None:
        """Write the student's tokenizer.

        As in training, the tokenizer encodes special tokens that occur in a text as text, and truncates and pads at the
        end.
        """
        tokenizer = self.student_tokenizer.tokenizer
        for name, value in (("split_special_tokens", True), ("padding_side", "right"), ("truncation_side", "right")):
            setattr(tokenizer, name, value)
            tokenizer.init_kwargs[name] = value
        tokenizer.save_pretrained(folder)

    def finish_export(self, folder: Path) -> None:
        """Write the modules that sentence-transformers needs to load the student."""
        prompts = {name: text for name, text in self._prompts.model_dump().items() if isinstance(text, str)}
        symmetric = self._prompts.query == self._prompts.document != ""
        write_sentence_folder(
            folder,
            self._head(self.config),
            max_length=self.student_tokenizer.max_length,
            prompts=prompts if any(prompts.values()) else {},
            default_prompt="document" if symmetric else None,
            similarity=self.config.similarity or "cosine",
        )

    def card_usage(self) -> tuple[Mapping[str, str], str]:
        """Return metadata and example code for sentence-transformers, which adds the prompts."""
        tags = {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"}
        return tags, _USAGE


def _numbered(texts: list[str]) -> np.ndarray:
    """Number texts (n,), with the same number for equal texts."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)
