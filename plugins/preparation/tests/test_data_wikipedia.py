from __future__ import annotations

import bz2
import gzip
import html
import itertools
import random
from collections import Counter
from pathlib import Path

import pytest
from kdcore_preparation.readers.wikipedia import wikipedia_dump
from kdcore_preparation.readers.wikipedia.wikipedia_corpus import WikipediaCorpus
from kdcore_preparation.readers.wikipedia.wikipedia_dump import DumpPart
from kdcore_preparation.readers.wikipedia.wikitext import WikitextCleaner

from kdcore import Part
from kdcore.errors import DataError


def page(number: int, text: str, *, namespace: int = 0, extra: str = "", model: str = "wikitext") -> str:
    return (
        f"<page><title>T{number}</title><ns>{namespace}</ns><id>{number}</id>{extra}"
        f"<revision><id>9{number}</id><model>{model}</model><text>{html.escape(text)}</text></revision></page>"
    )


def dump(*pages: str) -> bytes:
    return (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo><namespaces>'
        '<namespace key="0"/><namespace key="6">Datei</namespace><namespace key="14">Kategorie</namespace>'
        f"</namespaces></siteinfo>{''.join(pages)}</mediawiki>"
    ).encode()


def read(path: Path) -> tuple[dict[str, str], dict[str, int]]:
    corpus = WikipediaCorpus(WikipediaCorpus.Config(path=str(path)))
    return {document.id: document.text for document in corpus.documents()}, dict(corpus.report)


def clean(wikitext: str) -> list[str]:
    return WikitextCleaner().paragraphs(wikitext, Counter())


def test_articles_are_read_and_everything_else_is_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "dump.xml"
    path.write_bytes(
        dump(
            page(1, "First."),
            page(2, "Talk.", namespace=1),
            page(3, "#REDIRECT [[T1]]"),
            page(4, "#WEITERLEITUNG [[T1]]", extra='<redirect title="T1"/>'),
            page(5, "{}", model="json"),
            page(6, "{{Only a template}}"),
            page(7, "Last.\n\nAgain."),
        )
    )
    assert read(path) == (
        {"1": "First.", "7": "Last.\nAgain."},
        {
            "pages of other namespaces skipped": 1,
            "redirects skipped": 2,
            "pages that are not wikitext skipped": 1,
            "articles without text skipped": 1,
            "templates dropped\nonly a template\n{{Only a template}}": 1,
        },
    )


@pytest.mark.parametrize("start", ["<page\n>", '<page id="1">', '<page\txml:space="preserve">'])
def test_pages_may_have_attributes_and_redirects_begin_with_white_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    texts = ["First.", "\n #redirect [[T1]]", "Third, not a #redirect."]
    path = tmp_path / "dump.xml"
    pages = [page(number, text).replace("<page>", start, 1) for number, text in enumerate(texts, start=1)]
    path.write_bytes(dump("<pages/>", *pages, page(4, "Last.")))
    expected = ({"1": "First.", "3": "Third, not a #redirect.", "4": "Last."}, {"redirects skipped": 1})
    assert read(path) == expected
    monkeypatch.setattr(wikipedia_dump, "_CHUNK", 5)
    parts = DumpPart(path, Part("dump.xml", path.stat().st_size, "dump.xml"))
    assert [each.startswith(start.encode()) for each in parts.pages()] == [True, True, True, False]


def test_a_multistream_dump_is_read_to_its_end(tmp_path: Path) -> None:
    whole = dump(page(1, "First."), page(2, "Second."))
    path = tmp_path / "dump.xml.bz2"
    path.write_bytes(bz2.compress(whole[:300]) + bz2.compress(whole[300:500]) + bz2.compress(whole[500:]))
    assert read(path)[0] == {"1": "First.", "2": "Second."}


def test_a_dump_in_parts_is_one_corpus(tmp_path: Path) -> None:
    (tmp_path / "part1.xml").write_bytes(dump(page(1, "First.")))
    (tmp_path / "part2.xml.bz2").write_bytes(bz2.compress(dump(page(2, "Second."))))
    assert read(tmp_path)[0] == {"1": "First.", "2": "Second."}


def test_a_truncated_dump_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "dump.xml.bz2"
    whole = bz2.compress(dump(*(page(number, f"Text {number}.") for number in range(3000))))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match=r"dump\.xml\.bz2: the .* damaged or ends too early(.|\n)*download the file again"
    ):
        read(path)
    path = tmp_path / "dump.xml"
    path.write_bytes(dump(page(1, "First."), page(2, "Second."))[:-60])
    with pytest.raises(DataError, match=r"dump\.xml: the dump is damaged or ends too early, after 1 whole pages"):
        read(path)


@pytest.mark.parametrize("cut", ["<page><ti", "</mediaw"])
def test_a_dump_whose_end_is_missing_gives_its_whole_pages_and_says_so(tmp_path: Path, cut: str) -> None:
    whole = dump(page(1, "First."), page(2, "Second."), page(3, "Third."))
    path = tmp_path / "dump.xml"
    path.write_bytes(whole[: whole.rindex(cut.encode()) + len(cut)])
    kept, message = read_damaged(path)
    assert kept == (["1", "2"] if "page" in cut else ["1", "2", "3"])
    assert f"ends too early, after {len(kept)} whole pages" in message


def read_damaged(path: Path) -> tuple[list[str], str]:
    corpus = WikipediaCorpus(WikipediaCorpus.Config(path=str(path)))
    kept: list[str] = []
    with pytest.raises(DataError) as caught:
        kept.extend(document.id for document in corpus.documents())
    return kept, str(caught.value)


def test_damage_in_the_middle_of_a_multistream_dump_costs_its_part_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = multistream(200, 10)
    monkeypatch.setattr(wikipedia_dump, "COMPRESSED_PART_BYTES", 1000)
    path = tmp_path / "dump.xml.bz2"
    damaged = bytearray(b"".join(streams))
    place = len(streams[0]) + sum(len(stream) for stream in streams[1:10])
    damaged[place + 60 : place + 90] = bytes(30)
    path.write_bytes(damaged)
    corpus = WikipediaCorpus(WikipediaCorpus.Config(path=str(path)))
    kept: list[int] = []
    errors: list[str] = []
    for part in corpus.parts():
        try:
            for document in corpus.read(part):
                kept.append(int(document.id))
        except DataError as error:
            errors.append(str(error))
    assert len(errors) == 1
    assert "dump.xml.bz2: the compressed file is damaged" in errors[0]
    assert kept == sorted(set(kept))
    assert 150 < len(kept) < 200
    assert {*range(1, 80), *range(150, 201)} <= set(kept)


def multistream(pages: int, a_stream: int) -> list[bytes]:
    """A dump compressed as by Wikimedia: the header, streams of several pages, and the footer."""
    generator = random.Random(pages)
    texts = [" ".join(str(generator.random()) for _ in range(20)) for _ in range(pages)]
    head, *found = dump(*(page(number, text) for number, text in enumerate(texts, start=1))).split(b"<page>")
    found[-1], foot = found[-1].split(b"</mediawiki>")
    bodies = [b"".join(b"<page>" + each for each in found[at : at + a_stream]) for at in range(0, pages, a_stream)]
    return [bz2.compress(piece) for piece in (head, *bodies, foot + b"</mediawiki>")]


def test_parts_of_any_size_together_hold_each_page_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wikipedia_dump, "_CHUNK", 300)
    streams = multistream(40, 3)
    whole = b"".join(bz2.decompress(stream) for stream in streams)
    generator = random.Random(0)
    cuts = sorted(generator.sample(range(len(whole)), 25))
    anywhere = [bz2.compress(whole[start:end]) for start, end in itertools.pairwise([0, *cuts, len(whole)])]
    expected = [str(number) for number in range(1, 41)]
    for name, content in {"a.bz2": b"".join(streams), "b.bz2": b"".join(anywhere), "c.xml": whole}.items():
        path = tmp_path / name
        path.write_bytes(content)
        for size in (100, 700, 1500, 10**6):
            monkeypatch.setattr(wikipedia_dump, "PART_BYTES", size)
            monkeypatch.setattr(wikipedia_dump, "COMPRESSED_PART_BYTES", size)
            corpus = WikipediaCorpus(WikipediaCorpus.Config(path=str(path)))
            parts = corpus.parts()
            assert sum(part.bytes for part in parts) == len(content)
            assert [document.id for part in parts for document in corpus.read(part)] == expected
            if len(content) > 2 * size and size > 100:
                assert len(parts) > 2


def test_a_single_compressed_stream_is_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wikipedia_dump, "COMPRESSED_PART_BYTES", 100)
    whole = b"".join(bz2.decompress(stream) for stream in multistream(20, 5))
    for compress in (bz2.compress, gzip.compress):
        path = tmp_path / "dump.xml.packed"
        path.write_bytes(compress(whole))
        corpus = WikipediaCorpus(WikipediaCorpus.Config(path=str(path)))
        assert [(part.start, part.end, part.bytes) for part in corpus.parts()] == [(0, None, path.stat().st_size)]
        assert len(list(corpus.documents())) == 20


def test_a_page_of_invalid_xml_costs_no_other_one_and_is_an_error_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "dump.xml"
    path.write_bytes(dump(page(1, "First."), page(2, "Second.").replace("</ns>", "</nn>"), page(3, "Third.")))
    kept, message = read_damaged(path)
    assert kept == ["1", "3"]
    assert "dump.xml: page 2 of the part `dump.xml` is not valid XML (mismatched tag" in message


def test_broken_bytes_in_a_page_are_replaced_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "dump.xml"
    path.write_bytes(dump(page(1, "Firsté.")).replace("é".encode(), b"\xe9"))
    assert read(path) == ({"1": "First\ufffd."}, {"broken UTF-8 replaced": 1})


def test_a_dump_with_histories_is_refused_before_memory_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wikipedia_dump, "MAX_PAGE_BYTES", 2**20)
    monkeypatch.setattr(wikipedia_dump, "_CHUNK", 2**16)
    path = tmp_path / "dump.xml"
    path.write_bytes(dump(page(1, "First."), page(2, "x" * 2**21)))
    kept, message = read_damaged(path)
    assert kept == ["1"]
    assert "page 2 is longer than 1 MiB" in message
    assert "histories" in message


def test_what_is_no_dump_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(b"<html><body/></html>")
    with pytest.raises(DataError, match="not a MediaWiki dump: its first element is <html>"):
        read(path)
    path.write_bytes(dump())
    with pytest.raises(DataError, match="contains no pages"):
        read(path)
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "missing.xml")


def test_memory_does_not_grow_with_the_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(wikipedia_dump, "_CHUNK", 2**14)
    path = tmp_path / "dump.xml"
    path.write_bytes(dump(*(page(number, "word " * 1000) for number in range(200))))
    corpus = WikipediaCorpus(WikipediaCorpus.Config(path=str(path)))
    next(corpus.documents())  # imports
    tracemalloc.start()
    assert sum(1 for _ in corpus.documents()) == 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 5


def test_namespaces_of_files_and_categories_are_known_in_the_wikis_language(tmp_path: Path) -> None:
    path = tmp_path / "dump.xml"
    path.write_bytes(dump(page(1, "Text[[Datei:Bild.jpg|mini|Ein [[Bild]]]].\n\n[[Kategorie:Text]]")))
    assert read(path)[0] == {"1": "Text."}


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("'''Bold''' and ''italic'' text.", ["Bold and italic text."]),
        ("A [[link]], a [[Target (place)|shown]] one and [[plural]]s.", ["A link, a shown one and plurals."]),
        ("See [http://x.org the site] or [http://x.org] or http://y.org/a?b now.", ["See the site or or now."]),
        ("Text.<ref>No.</ref><ref name=x/> More.<!-- no -->", ["Text. More."]),
        ("A {{template|with={{another}}}} b.", ["A b."]),
        ("He ran {{convert|5|km|mi|abbr=on}} to {{lang|fr|la [[Ville]]}}.", ["He ran 5 km to la Ville."]),
        ("A ({{IPA|x}}; {{lang-grc|y}}) b ({{x}}, c).", ["A (x; y) b (c)."]),
        ("A ({{x}}; {{y}}) b, {{x}}, c {{x}}. D [{{x}}]; (see {{x}} ) e.", ["A b, c. D; (see) e."]),
        ("A call f(), for (;;) and g , h ? ( i ) stay.", ["A call f(), for (;;) and g , h ? ( i ) stay."]),
        ("5&nbsp;km&mdash;far &lt;b&gt; &#233;", ["5 km—far <b> é"]),
        ("[[File:A.jpg|thumb|A [[caption]] here]]Text.[[Category:C]]", ["Text."]),
        ("The [[:Category:Dogs]] and [[de:Hund]].", ["The Category:Dogs and."]),
        ("Before.\n{| class=x\n! a\n|-\n| b || c\n|}\nAfter.", ["Before.", "After."]),
        ("So <math>x^2</math> is.<gallery>\nFile:A.jpg|no\n</gallery>", ["So is."]),
        ("One\nparagraph.\n\nAnother.", ["One paragraph.", "Another."]),
        ("* one\n** two\n# three\n; term : meaning\nText.", ["one", "two", "three", "term: meaning", "Text."]),
        ("H<sub>2</sub>O<br/>and <code>x</code>", ["H2O and x"]),
        ("__NOTOC__\nText.", ["Text."]),
        ("<nowiki>[[not a link]]</nowiki>", ["[[not a link]]"]),
        ("Write <nowiki>''x''</nowiki> or <nowiki>{{y}}</nowiki>.", ["Write ''x'' or {{y}}."]),
        ("<nowiki><ref>a</ref><br></nowiki> __TOC__<nowiki>__NOTOC__</nowiki>", ["<ref>a</ref><br> __NOTOC__"]),
        ("<nowiki>* a\n| b\n\n== c ==</nowiki> d", ["* a | b == c == d"]),
        ("See <nowiki>http://x.org/?a:b</nowiki>, '<nowiki/>''b''", ["See http://x.org/?a:b, 'b"]),
        ("{{lang|en|<nowiki>[[File:x.jpg]]</nowiki>}} {{gone|<nowiki>}}</nowiki>}}e", ["[[File:x.jpg]] e"]),
        ("The tag &lt;ref&gt; and &#91;&#91;x&#93;&#93;, &#39;&#39;y&#39;&#39;", ["The tag <ref> and [[x]], ''y''"]),
        ("<div><p>a</div>b <li>c </u>d<hr/>", ["a", "b c d"]),
        ("a<b and c>d, p < i, &lt;p&gt;", ["a<b and c>d, p < i, <p>"]),
        ("&#124; a\n&#33; b\n|-\n| c", ["| a ! b"]),
    ],
)
def test_markup_becomes_plain_text(wikitext: str, expected: list[str]) -> None:
    assert clean(wikitext) == expected


@pytest.mark.parametrize(
    "word",
    [
        "REDIRECT", "Weiterleitung", "REDIRECTION", "REDIRECCIÓN", "RINVIA", "REDIRECIONAMENTO", "ПЕРЕНАПРАВЛЕНИЕ",
        "перенаправление", "転送", "重定向", "넘겨주기", "تحويل", "redirect ", "REDIRECT:", "DOORVERWIJZING",
    ],
)  # fmt: skip
def test_redirects_are_recognised_by_their_word_in_any_language(tmp_path: Path, word: str) -> None:
    path = tmp_path / "dump.xml"
    texts = [f"#{word} [[T1]]", f"\n＃{word}[[T1#Part|x]] {{{{R}}}}", f"#{word} is a word.", f"A #{word} [[T1]]"]
    path.write_bytes(dump(*[page(number, text) for number, text in enumerate(texts, start=1)]))
    documents, report = read(path)
    assert documents == {"3": f"{word.strip()} is a word.", "4": f"A #{word} T1".replace("  ", " ")}
    assert report["redirects skipped"] == 2


def test_headings_stay_where_text_follows_them() -> None:
    wikitext = (
        "Lead.\n== A ==\n=== A1 ===\nText.\n== Empty ==\n{{gone}}\n=== Empty too ===\n== B ==\n* item\n== End ==\n"
    )
    assert clean(wikitext) == ["Lead.", "A", "A1", "Text.", "B", "item"]


def test_broken_markup_is_removed_and_counted() -> None:
    report: Counter[str] = Counter()
    wikitext = "Good [[text]] and {{broken\n\n| cell\n\nend]] here</div>."
    assert WikitextCleaner().paragraphs(wikitext, report) == ["Good text and broken", "end here."]
    assert report == {"pieces of broken markup removed": 3, "lines of unclosed tables dropped": 1}
