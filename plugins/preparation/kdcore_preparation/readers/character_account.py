"""Count the characters that a reader receives, drops, rewrites and passes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Self

from kdcore import CharactersEntry


class CharacterStage:
    """Counts of characters at one stage of reading.

    A stage is balanced if `received + net_change == dropped + passed`. All four are counted independently, from the
    lengths of the strings; none is derived by subtraction, so that `remainder` reveals characters that were not
    counted.

    Attributes:
        received: characters that the stage received.
        passed: characters passed on to the next stage; the last stage passes on the documents' texts.
        dropped: characters that were removed, by reason.
        rewritten: characters before and after rewriting, by reason: `{"line ends": [20, 10]}`.
    """

    __slots__ = ("dropped", "passed", "received", "rewritten")

    def __init__(self) -> None:
        self.received = 0
        self.passed = 0
        self.dropped: Counter[str] = Counter()
        self.rewritten: dict[str, list[int]] = {}

    def drop(self, reason: str, characters: int) -> None:
        """Count characters that were removed after they had been counted as received."""
        self.dropped[reason] += characters

    def refuse(self, reason: str, characters: int) -> None:
        """Count a text that is dropped as a whole and has not been counted as received."""
        self.received += characters
        self.dropped[reason] += characters

    def rewrite(self, reason: str, before: int, after: int) -> None:
        """Count characters that were replaced: their number before and after.

        For a substitution, count only the matched passages. For a function that rewrites a text as a whole, such as
        Unicode normalisation, count the whole text.
        """
        counts = self.rewritten.setdefault(reason, [0, 0])
        counts[0] += before
        counts[1] += after

    @property
    def net_change(self) -> int:
        """Number of characters after all rewriting minus the number before; negative if texts became shorter."""
        return sum(after - before for before, after in self.rewritten.values())

    @property
    def remainder(self) -> int:
        """Number of characters that disappeared (positive) or appeared (negative) uncounted; 0 if balanced."""
        return self.received + self.net_change - sum(self.dropped.values()) - self.passed

    def add(self, other: CharacterStage) -> None:
        """Add the counts of another account's stage."""
        self.received += other.received
        self.passed += other.passed
        self.dropped.update(other.dropped)
        for reason, (before, after) in other.rewritten.items():
            self.rewrite(reason, before, after)

    def clear(self) -> None:
        """Set all counts to 0."""
        self.received = self.passed = 0
        self.dropped.clear()
        self.rewritten.clear()


class CharacterAccount(dict[str, CharacterStage]):
    """The stages of a reader by name, in order: each receives the text that the previous one passes on.

    A reader that counts characters stores this object in `characters`, next to `report`, and creates all stages in
    `__init__`:

        class Reviews(FileCorpus):
            def __init__(self, config: Any) -> None:
                super().__init__(config)
                self._decode = self.characters.stage("decode")
                self._markup = self.characters.stage("markup")
                self._clean = self.characters.stage("clean")

            def _text(self, raw: bytes) -> str:
                marked = decode_utf8(raw, self.report, self._decode)
                self._markup.received += len(marked)
                text, tags = TAG.subn("", marked)
                if tags:
                    self._markup.drop("tags", len(marked) - len(text))
                self._markup.passed += len(text)
                return clean_text(text, self.report, self._clean)

    Whenever a document has been yielded, every stage must be balanced, and each stage must have received all characters
    that the previous stage passed on; `imbalances` lists the violations. The last stage passes on the documents' texts.
    A text that is cut into several documents is counted before the first of them is yielded. The characters of a
    skipped page or record are counted at the stage that skips it (`refuse` or `drop`). The account is cleared in place
    before each part is read, so a reader may keep references to its stages. Count with `len` of whole strings before
    and after a substitution that has matched, never in a loop over characters.

    The account is optional: for a reader without one (`characters` is None), characters are not checked.
    """

    def stage(self, name: str) -> CharacterStage:
        """Return a stage; a new stage is added after the existing ones."""
        return self.setdefault(name, CharacterStage())

    def add(self, other: Mapping[str, CharacterStage]) -> None:
        """Add the counts of another account with the same stages, such as the account of another part."""
        for name, stage in other.items():
            self.stage(name).add(stage)

    def entries(self) -> dict[str, CharactersEntry]:
        """Return the counts in their stored form, with reasons in descending order of characters."""
        return {
            name: CharactersEntry(
                received=stage.received,
                passed=stage.passed,
                dropped=dict(sorted(stage.dropped.items(), key=lambda item: (-item[1], item[0]))),
                rewritten=dict(sorted(stage.rewritten.items(), key=lambda item: (-item[1][0], item[0]))),
            )
            for name, stage in self.items()
        }

    @classmethod
    def of(cls, entries: Mapping[str, CharactersEntry]) -> Self:
        """Return the account of stored counts."""
        account = cls()
        for name, entry in entries.items():
            stage = account.stage(name)
            stage.received, stage.passed = entry.received, entry.passed
            stage.dropped.update(entry.dropped)
            stage.rewritten.update({reason: list(counts) for reason, counts in entry.rewritten.items()})
        return account

    def clear(self) -> None:
        """Set all counts to 0, keeping the stages."""
        for stage in self.values():
            stage.clear()

    def imbalances(self) -> list[str]:
        """Describe where characters are missing or surplus; empty if the account is balanced."""
        found = [
            f"{name}: {stage.remainder:,} of {stage.received:,} characters are unaccounted for"
            for name, stage in self.items()
            if stage.remainder
        ]
        for (before, first), (after, second) in pairwise(self.items()):
            if first.passed != second.received:
                found.append(
                    f"{before} passed on {first.passed:,} characters, but {after} received {second.received:,}"
                )
        return found
