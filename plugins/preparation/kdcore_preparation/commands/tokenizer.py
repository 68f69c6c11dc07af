"""`kdcore tokenizer`: train a tokenizer on raw text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from kdcore import Command, DataError, InfrastructureError, InputError, add_overrides

_FEWEST_TOKENS = 16


class TokenizerCommand(Command):
    """Train a tokenizer on the corpora of a data recipe.

    train DATA.yaml FOLDER   a SentencePiece tokenizer (--kind unigram or bpe), a WordPiece one (--kind wordpiece) or a
                             byte-level BPE (--kind byte_level_bpe)

    AutoTokenizer can load the folder. Set `tokenizer` of a data recipe to it; DATA.yaml may already contain that key,
    which is ignored here. The tokenizer is exported together with students that are trained on data prepared with it.
    """

    help = "train a tokenizer on raw text"
    subcommands = ("train",)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the action, DATA.yaml, FOLDER, overrides and what to learn."""
        parser.add_argument("action", choices=self.subcommands)
        parser.add_argument("recipe", metavar="DATA.yaml", help="data recipe; only its `corpora` are read")
        parser.add_argument("folder", metavar="FOLDER", help="output folder; it appears only when it is complete")
        add_overrides(parser)
        kinds = ["unigram", "bpe", "wordpiece", "byte_level_bpe"]
        parser.add_argument("--kind", choices=kinds, required=True, help="kind of tokenizer")
        parser.add_argument(
            "--vocabulary", type=int, default=30_000, metavar="N", help="tokens, special ones included (30000)"
        )
        parser.add_argument("--lowercase", action="store_true", help="lower-case all text")
        parser.add_argument(
            "--sample",
            type=int,
            default=200,
            metavar="MEGABYTES",
            help="maximum size of the random sample to train on (200); training needs up to ten times as much memory",
        )

    def run(self, arguments: argparse.Namespace) -> int:
        """Train and print a summary."""
        for option, fewest in (("vocabulary", _FEWEST_TOKENS), ("sample", 1)):
            if getattr(arguments, option) < fewest:
                raise InputError(f"must be at least {fewest} (found {getattr(arguments, option)})", where=f"--{option}")
        from kdcore import Document, load_config
        from kdcore_preparation.pipeline.prepare import DataRecipe, build_corpora
        from kdcore_preparation.readers.named_counts import summarised
        from kdcore_preparation.tokenizer_training import check_free, train_tokenizer

        folder = Path(arguments.folder)
        check_free(folder)
        own = f"tokenizer={json.dumps(str(folder.absolute()))}"
        recipe = load_config(arguments.recipe, DataRecipe, [*arguments.overrides, own])
        corpora = build_corpora(recipe, where=arguments.recipe)

        def texts() -> Iterator[str]:
            for entry, corpus in zip(recipe.corpora, corpora, strict=True):
                for number, document in enumerate(corpus.documents(), start=1):
                    if not isinstance(document, Document):
                        raise DataError(
                            f"the corpus `{entry['name']}` contains token ids (expected text to train on)",
                            where=arguments.recipe,
                            hint="name corpora of text only",
                        )
                    if sys.stderr.isatty() and number % 1000 == 0:
                        print(f"\r{entry['name']}: {number:,} documents", end="", file=sys.stderr)
                    yield document.text

        try:
            trained = train_tokenizer(
                texts(),
                folder,
                kind=arguments.kind,
                vocabulary=arguments.vocabulary,
                lowercase=arguments.lowercase,
                sample_megabytes=arguments.sample,
            )
        except OSError as error:  # a full disk or a read-only folder
            raise InfrastructureError(f"{folder}: the tokenizer cannot be written: {error}") from error
        for entry, corpus in zip(recipe.corpora, corpora, strict=True):
            for what, count in summarised(corpus.report).items():
                print(f"{entry['name']}: {count:,} {what}")
        print(f"trained {trained.vocabulary:,} tokens on {trained.sampled:,} of {trained.characters:,} characters")
        print(f"{trained.tokens_a_word:.2f} tokens per word, {trained.unknown:.3%} of them unknown")
        print(f"tokenizer in {trained.folder}")
        return 0
