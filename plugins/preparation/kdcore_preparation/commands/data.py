"""`kdcore data`: inspect and verify prepared data."""

from __future__ import annotations

import argparse

from kdcore import Command

_SAMPLES = 3


class DataCommand(Command):
    """Inspect or verify a folder of prepared data.

    `kdcore data inspect FOLDER` shows its sources, counts, sequence lengths, some sequences as text, the fraction of
    unknown tokens, and likely problems. `kdcore data verify FOLDER` compares all files with their checksums and exits
    with 2 if a file is damaged.
    """

    help = "inspect or verify prepared data"
    subcommands = ("inspect", "verify")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare inspect or verify, FOLDER, --samples."""
        parser.add_argument(
            "action",
            choices=self.subcommands,
            help="print statistics and samples, or compare all files with their checksums",
        )
        parser.add_argument("folder", metavar="FOLDER", help="folder that kdcore prepare wrote")
        parser.add_argument(
            "--samples", metavar="N", type=int, default=_SAMPLES, help=f"sequences of each split to show [{_SAMPLES}]"
        )

    def run(self, arguments: argparse.Namespace) -> int:
        """Inspect or verify, and print the result."""
        from kdcore import PreparedData

        data = PreparedData.open(arguments.folder)
        if arguments.action == "inspect":
            from kdcore_preparation.inspection import describe

            for line in describe(data, max(0, arguments.samples)):
                print(line)
        else:
            data.verify()
            files = [shard for split in data.manifest.splits.values() for shard in split.shards]
            size = sum(shard.bytes for shard in files) / 1e6
            print(f"{arguments.folder}: {len(files)} files, {size:,.1f} MB, all checksums match")
        return 0
