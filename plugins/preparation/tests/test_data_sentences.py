from __future__ import annotations

import random
import time

import pytest
from kdcore_preparation.pipeline.sentence_splitting import split_sentences

# fmt: off
AWKWARD = [
    "a", "B.", ".", "!", "?", "\n", "\n\n", "\t", "\r\n", "。", "？", "Dr.", "U.S.", "e.g.", '"', "“", "”", "'",
    "(", ")", "[1]", "1.", "*", "-", "i)", "!!", "...", "…", "é", "日本", "😀", " ", "  ", "\x85", "\xa0", "\u2028",
    "\u3000", "\u0301", "I\x85. B", "x" * 50,
]
# fmt: on


def test_joined_together_sentences_are_the_text() -> None:
    choice = random.Random(0)
    for _ in range(5000):
        text = "".join(choice.choices(AWKWARD, k=choice.randint(0, 30)))
        sentences = split_sentences(text)
        assert "".join(sentences) == text
        assert all(sentences)
        assert not any(each.isspace() for each in sentences[1:] if "\n" not in text)


def test_full_stops_of_abbreviations_initials_and_numbers_end_no_sentence() -> None:
    sentences = ["Dr. J. R. Smith et al. paid $3.5 million in the U.S. ", "Why? ", "“Nobody knows.” ", "It rained."]
    assert split_sentences("".join(sentences)) == sentences


def test_sentences_of_other_scripts_end_too() -> None:
    assert split_sentences("これは文です。次の文です。") == ["これは文です。", "次の文です。"]


def test_paragraphs_are_never_joined() -> None:
    assert split_sentences("A heading\n\nText of it\nMore. Last") == ["A heading\n\n", "Text of it\n", "More. ", "Last"]


@pytest.mark.parametrize("piece", ["word ", ".", '"a. ', "(a. ", "a.\n", "1. a ", "x", "Dr. ", "This is it. "])
def test_no_text_takes_more_time_than_its_length_deserves(piece: str) -> None:
    start = time.process_time()
    split_sentences(piece * (1_000_000 // len(piece)))
    assert time.process_time() - start < 3


@pytest.mark.parametrize("end", ["。", "？」", "！", "!", "?", "।"])
def test_text_without_spaces_takes_linear_time(end: str) -> None:
    letters = random.Random(0).choices([chr(code) for code in range(0x4E00, 0x9000)], k=400_000)
    text = "".join(letter + end * (place % 20 == 0) for place, letter in enumerate(letters))
    start = time.process_time()
    sentences = split_sentences(text)
    assert time.process_time() - start < 3
    assert "".join(sentences) == text
    assert all(sentences)
    assert len(sentences) > 15_000


def test_long_paragraphs_are_split_like_short_ones() -> None:
    sentences = ["他来了。", "“谁？”", "她问道！", "Dr. Li left. ", "Who? ", "是的。\u3000"] * 4000
    assert split_sentences("".join(sentences)) == [
        sentence
        for short in range(0, len(sentences), 6)
        for sentence in split_sentences("".join(sentences[short : short + 6]))
    ]


def test_a_failure_of_the_segmenter_loses_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    import sentencex

    class PanicException(BaseException):
        pass

    def panic(*_: str) -> list[str]:
        raise PanicException("not a char boundary")

    monkeypatch.setattr(sentencex, "segment", panic)
    assert split_sentences("One. Two.\nThree.") == ["One. Two.\n", "Three."]
    monkeypatch.setattr(sentencex, "segment", lambda *_: ["One."])
    assert split_sentences("One. Two.") == ["One. Two."]
    monkeypatch.setattr(sentencex, "segment", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        split_sentences("One.")
