"""The training texts of labelled data, as raw text without labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from kdcore_preparation import content_key, input_files, table_files
from pydantic import Field

from kdcore import Corpus, CorpusConfig, DataError, Document
from kdcore_supervised.data.glue import glue_folder
from kdcore_supervised.data.labelled import LabelledData, read_labelled


class LabelledCorpus(Corpus):
    """Read the texts of the part `train` of labelled data, without their labels.

    Texts that also occur in another part are left out, even if case, white space or punctuation differ, so that a
    student does not train on validation or test texts. Each text of a pair is a document. Texts without content are
    skipped. All texts that are left out are counted.
    """

    class Config(CorpusConfig):
        """Keys of the corpus: the labelled data, and how much of it is read."""

        data: LabelledData = Field(description="Labelled texts, as `task.data` of `sequence_classification`.")
        texts: int | None = Field(
            None, ge=1, description="Maximum number of records to read, spread evenly over the part; default: all."
        )

    config: Config

    def files(self) -> Mapping[str, Path]:
        """List the files of the part `train`; empty for a dataset on the hub."""
        data = self.config.data
        if data.glue is not None and data.glue_task is not None:
            name = data.glue_task.train
            return {name: glue_folder(data.glue.folder, data.glue.task) / name}
        if data.huggingface is not None:
            return {} if data.huggingface.path is None else input_files(data.huggingface.path)
        return table_files(str(data.train))

    def documents(self) -> Iterator[Document]:
        """Yield documents, named after their record and, for pairs, the number of the text.

        Raises:
            DataError: as for `read_labelled`.
        """
        try:
            train, *others = read_labelled(self.config.data, self.report)
        except DataError as error:  # its keys are those of `task.data`
            raise DataError(replace(problem, key=None) for problem in error.problems) from error
        elsewhere = {content_key(text) for part in others for column in part.texts for text in column}
        count = min(len(train), self.config.texts or len(train))
        for record in np.linspace(0, len(train), count, endpoint=False).astype(np.int64):
            for number, column in enumerate(train.texts):
                text = column[record]
                if not text:
                    self.report["empty documents skipped"] += 1
                elif content_key(text) in elsewhere:
                    self.report["texts of other parts left out"] += 1
                else:
                    yield Document(f"{train.ids[record]}:{number}" if number else train.ids[record], text)
