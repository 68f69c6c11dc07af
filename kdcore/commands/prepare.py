"""`kdcore prepare`: from raw text to a folder of prepared data."""

from __future__ import annotations

import argparse
import sys

from kdcore.commands.base import Command, add_overrides


class PrepareCommand(Command):
    """Read, tokenise, cut and split raw text as a data recipe says, into a folder that recipes name as `task.data`."""

    help = "turn raw text into data for training"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare DATA.yaml, FOLDER, overrides."""
        parser.add_argument("recipe", metavar="DATA.yaml", help="data recipe: corpora, tokenizer, sequence length")
        parser.add_argument("folder", metavar="FOLDER", help="folder to write; it appears when all is done")
        add_overrides(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        """Prepare and print what came out."""
        from kdcore.data.prepare import DataRecipe, PreparationProgress, prepare
        from kdcore.recipe.loading import load_config

        def show(progress: PreparationProgress) -> None:
            print(f"\r{progress.documents:,} documents, {progress.sequences:,} sequences", end="", file=sys.stderr)

        recipe = load_config(arguments.recipe, DataRecipe, arguments.overrides)
        prepared = prepare(recipe, arguments.folder, progress=show if sys.stderr.isatty() else None)
        if sys.stderr.isatty():
            print(file=sys.stderr)
        for name, split in prepared.manifest.splits.items():
            print(f"{name}: {split.documents:,} documents, {split.sequences:,} sequences, {split.tokens:,} tokens")
        for corpus, report in zip(recipe.corpora, prepared.manifest.reports, strict=True):
            for what, count in report.items():
                print(f"{corpus['name']}: {count:,} {what}")
        print(f"prepared in {prepared.folder}")
        return 0
