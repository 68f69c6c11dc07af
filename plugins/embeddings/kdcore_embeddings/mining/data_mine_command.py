"""`kdcore data mine`: add hard negatives to pairs of a query and its document."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kdcore import Command, InputError

_NEGATIVES = 8
_MARGIN = 0.05


class DataMineCommand(Command):
    """Add hard negatives to pairs of a query and a document that belongs to it.

    For each query, the documents of all pairs are searched exhaustively, with the embeddings of a sentence encoder.
    Negatives are the documents with the highest scores that do not belong to the query and whose score is at most
    (1 - margin) times the score of the query's document; more similar documents are likely to be relevant as well. The
    output is a JSON Lines file for the task `embeddings` with `query`, `positive`, `negatives` and `scores` (of the
    positive document, then of the negatives). Scores are similarities of the sentence encoder, or raw logits of a
    --cross-encoder. The same input always produces the same file.
    """

    help = "add hard negatives to pairs of a query and its document"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare FILE and the options."""
        parser.add_argument("file", metavar="FILE", help="pairs: file, folder or glob of csv, tsv, jsonl or parquet")
        parser.add_argument("--teacher", required=True, metavar="FOLDER", help="sentence encoder that scores documents")
        parser.add_argument("--output", required=True, metavar="FILE", help="where to write the groups (.jsonl)")
        parser.add_argument("--query", default="query", metavar="COLUMN", help="column of queries [query]")
        parser.add_argument("--positive", default="positive", metavar="COLUMN", help="column of documents [positive]")
        parser.add_argument("--documents", metavar="FILE", help="further documents to search, in the column `text`")
        parser.add_argument("--cross-encoder", metavar="FOLDER", help="reranker whose logits are written as scores")
        parser.add_argument(
            "--negatives", type=int, default=_NEGATIVES, metavar="N", help=f"negatives per query [{_NEGATIVES}]"
        )
        parser.add_argument(
            "--margin", type=float, default=_MARGIN, metavar="M", help=f"relative margin, from 0 to 1 [{_MARGIN}]"
        )

    def run(self, arguments: argparse.Namespace) -> int:
        """Mine, write the groups and print counts."""
        from kdcore_embeddings.mining.mined_groups import mine_groups

        if arguments.negatives < 1:
            raise InputError(f"--negatives must be at least 1 (found {arguments.negatives})", key="--negatives")
        if not 0 <= arguments.margin < 1:
            raise InputError(f"--margin must be at least 0 and below 1 (found {arguments.margin:g})", key="--margin")
        output = Path(arguments.output)
        if output.suffix != ".jsonl":
            raise InputError("the name does not end with .jsonl", where=str(output), key="--output")
        if output.exists():
            raise InputError("the file already exists", where=str(output), hint="remove it, or choose another --output")
        counts = mine_groups(
            arguments.file,
            (arguments.query, arguments.positive),
            arguments.teacher,
            output,
            documents=arguments.documents,
            cross_encoder=arguments.cross_encoder,
            count=arguments.negatives,
            margin=arguments.margin,
            report=lambda line: print(line, file=sys.stderr),
        )
        for what, count in counts.items():
            print(f"{output}: {count:,} {what}")
        return 0
