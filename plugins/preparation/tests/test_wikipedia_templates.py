"""The text kept from templates in the languages of wikis, and the counts of dropped templates."""

from __future__ import annotations

import html
import random
import re
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from kdcore_preparation.pipeline.data_recipe import DataRecipe, build_corpora, identify, load_tokenizers
from kdcore_preparation.readers.character_account import CharacterStage
from kdcore_preparation.readers.input_files import FileHashes
from kdcore_preparation.readers.named_counts import NamedCounts, most_frequent, summarised
from kdcore_preparation.readers.wikipedia.language_variants import resolve_variants
from kdcore_preparation.readers.wikipedia.wiki_languages import Wiki
from kdcore_preparation.readers.wikipedia.wikipedia_corpus import WikipediaCorpus
from kdcore_preparation.readers.wikipedia.wikitext import WikitextCleaner

from kdcore import load_config
from kdcore.commands.main import main
from kdcore.errors import DataError, InputError

NAMESPACES = {
    "en": ("Media", "File", "Category"),
    "de": ("Medium", "Datei", "Kategorie"),
    "fr": ("Média", "Fichier", "Catégorie"),
    "zh": ("Media", "File", "Category"),
}


def dump(path: Path, language: str, *texts: str) -> Path:
    media, file, category = NAMESPACES.get(language, NAMESPACES["en"])
    pages = "".join(
        f"<page><title>P{number}</title><ns>0</ns><id>{number}</id><revision><id>{number}</id>"
        f"<model>wikitext</model><text>{html.escape(text, quote=False)}</text></revision></page>\n"
        for number, text in enumerate(texts, start=1)
    )
    path.write_text(
        f'<mediawiki version="0.11" xml:lang="{language}"><siteinfo><dbname>{language}wiki</dbname><namespaces>'
        f'<namespace key="-2">{media}</namespace><namespace key="0" /><namespace key="6">{file}</namespace>'
        f'<namespace key="14">{category}</namespace></namespaces></siteinfo>\n{pages}</mediawiki>\n',
        encoding="utf-8",
    )
    return path


def read(path: Path, **keys: Any) -> list[str]:
    corpus = WikipediaCorpus(WikipediaCorpus.Config(path=str(path), **keys))
    return [document.text for document in corpus.documents()]


def clean(wikitext: str, language: str = "en", **keys: Any) -> list[str]:
    return WikitextCleaner(Wiki.of(language), **keys).paragraphs(wikitext, Counter())


REPORTED = {
    "en": [
        (
            "The lake holds {{formatnum:1200}} fish {{as of|2014|lc=y}}, the formula is {{chem|C|2|H|6}} and its "
            'cafes, {{nihongo|"tea houses"|茶屋|chaya}}, are old.',
            "The lake holds 1,200 fish as of 2014, the formula is C2H6 and its "
            'cafes, "tea houses" (茶屋, chaya), are old.',
        ),
        (
            "She is {{convert|6|ft|2|in|m}} tall; her boxes measure {{cvt|5|x|3|x|2|m}}.",
            "She is 6 ft 2 in tall; her boxes measure 5 x 3 x 2 m.",
        ),
        (
            "He wrote: {{quote|text=A sentence that the reader should see.|author=Him}} Then he left. "
            "{{blockquote|1=With = in it.}}",
            "He wrote: A sentence that the reader should see. Then he left. With = in it.",
        ),
        (
            "'''!!!''' (said 'chk chk chk') is a band from California.\n\nThey made records.",
            "!!! (said 'chk chk chk') is a band from California.\nThey made records.",
        ),
        (
            "|x| is the absolute value of the number x.\n\nIt is never negative.",
            "|x| is the absolute value of the number x.\nIt is never negative.",
        ),
    ],
    "fr": [
        (
            "La source jaillit à {{unité|2000|m}} d'altitude. Elle est née le {{date|17|octobre|1973}} au "
            "{{s|XX|e}}. Pourquoi pas ? Bien sûr !",
            "La source jaillit à 2 000 m d'altitude. Elle est née le 17 octobre 1973 au XXe siècle. Pourquoi pas ? "
            "Bien sûr !",
        )
    ],
    "de": [
        (
            "Der Ort liegt am Fluss. [[Bild:Ort.jpg|mini|hochkant=1.2|Blick auf den Ort]] Er ist alt.",
            "Der Ort liegt am Fluss. Er ist alt.",
        ),
        ("Am Fluss. [[Datei:Ort.jpg|mini|Blick]] Ende.", "Am Fluss. Ende."),
    ],
    "zh": [
        (
            "-{zh-hans:计算机;zh-hant:電腦}-是一种机器，-{A|zh-cn:软件;zh-tw:軟體}-在其上运行。",
            "计算机是一种机器，软件在其上运行。",
        ),
        (
            "网站http://example.com。这一句和下一句都没有空格。第三句也在这一段。\n\n第二段。",
            "网站。这一句和下一句都没有空格。第三句也在这一段。\n第二段。",
        ),
    ],
}


@pytest.mark.parametrize("language", REPORTED)
def test_articles_that_lost_text_keep_it(tmp_path: Path, language: str) -> None:
    texts, expected = zip(*REPORTED[language], strict=True)
    assert read(dump(tmp_path / "dump.xml", language, *texts)) == list(expected)


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("{{convert|10|-|20|km|mi}}", "10–20 km"),
        ("{{convert|5|km|mi|0}}", "5 km"),
        ("{{convert|5|km|0}}", "5 km"),
        ("{{Convert | 5<!-- about --> | km2 | abbr = on }}", "5 km²"),
        ("{{convert|20|to|30|C|F}}", "20 to 30 °C"),
        ("{{convert|5|lb|6|oz|kg}}", "5 lb 6 oz"),
        ("{{convert|3|by|4|m}}", "3 by 4 m"),
        ("{{convert|1,200|sqmi}}", "1,200 sq mi"),
        ("{{convert|6|ft|2+1/2|in|m|2}}", "6 ft 2+1/2 in"),
        ("{{convert|6|ft|2|in|to|6|ft|4|in|m}}", "6 ft 2 in to 6 ft 4 in"),
        ("{{convert|5|e6acre}} {{convert|5|±|0.1|m}}", "5 million acre 5 ± 0.1 m"),
        ("{{height|ft=6|in=2}}", "6 ft 2 in"),
        ("{{formatnum:1234567.5}}", "1,234,567.5"),
        ("{{formatnum:1,200|R}}", "1200"),
        ("{{formatnum:{{lc:1200}}}}", "1,200"),
        ("{{As of|2014|3|5}}", "As of 5 March 2014"),
        ("{{as of|2014|3|lc=y|df=us}}", "as of March 2014"),
        ("{{as_of|2014|since=y}}", "Since 2014"),
        ("{{as of|2014-03-05|lc=y}} {{As of|2014|03|05|lc=no}}", "as of 5 March 2014 As of 5 March 2014"),
        ("{{as of|2014|alt=In that year}}", "In that year"),
        ("{{val|1234.5|0.2|e=5|u=m/s2}}", "(1234.5±0.2)×10⁵ m/s²"),
        ("{{val|7|+1|-2|ul=kg}}", "7 +1 −2 kg"),
        ("{{val|5|up=s|u=m}} {{val|5|-|7|u=m.s-1}} {{val|5|(2)|e=-4|u=%}}", "5 m/s 5–7 m⋅s⁻¹ 5(2)×10⁻⁴%"),
        ("{{chem2|CH3CH2OH}} {{chem|H|2|O}}", "CH3CH2OH H2O"),
        ("{{frac|3|1|2}} {{frac|8}}", "3 1⁄2 1⁄8"),
        (
            "{{nihongo|Tokyo|東京}} {{nihongo||東京|Tōkyō}} {{nihongo|Tokyo||Tōkyō|extra=x}} {{nihongo3|Tōkyō|東京}}",
            "Tokyo (東京) Tōkyō (東京) Tokyo (Tōkyō, x) Tōkyō (東京)",
        ),
        ("{{IPA|/x/}} {{IPA|fr|paʁi}} {{IPA-fr|paʁi|lang|a.ogg}} {{IPAc-en|pron|ˈ|b|ɑː|l}}", "/x/ paʁi paʁi /ˈbɑːl/"),
        ("{{IPA-pl|jan|lang}} {{IPA-de|aʊ|pron|De-au.ogg}} {{IPA-ja|ai|i}}", "jan aʊ ai"),
        ("{{IPA|pl|jan|lang}} {{IPA|jan|lang}} {{IPA|fr|lang|paʁi}} {{IPA|us|ə}} {{IPA|lang|y}}", "jan jan paʁi ə y"),
        (
            "{{lang|fr|la [[Ville|ville]]}} {{lang|fr|text=x & y}} {{lang-de|Hund}} {{langx|fr|chien}}",
            "la ville x & y Hund chien",
        ),
        ("{{transl|ar|DIN|kitāb}} {{script/Hebrew|אב}}", "kitāb אב"),
        ("{{ LANG \n| fr \n| a&nbsp;b }} {{Template:lang|fr|c}} {{subst:lang|fr|d}}", "a b c d"),
        ("{{quote|1=a=b}} {{Quote|a<ref>no</ref> b|Him|a book}} {{cquote|c {{nowrap|d {{x}} e}}.}}", "a=b a b c d e."),
        ("[[A|{{lang|fr|caption}}]] '''{{nowrap|b [[c]]}}'''", "caption b c"),
        ("{{lang|fr|{{lang|de|a}}<!-- no --> b}}", "a b"),
        ("{{ill|Name|de|Seite|lt=shown}} {{abbr|WHO|World Health Organization}}", "shown WHO"),
        ("a{{snd}}b {{!}}c{{!}} {{'}}s", "a – b |c| 's"),
        ("{{HMS|Victory|1765|6}} {{USS|Enterprise|CVN-65}}", "HMS Victory USS Enterprise (CVN-65)"),
        (
            "{{ill|de|A|B|C}} {{bibleverse|1|John|4:18|KJV}} {{music|flat}} {{sfrac|3n + 1|2}}",
            "C 1 John 4:18 ♭ (3n + 1)⁄2",
        ),
        ("{{circa|1900}} {{US$|5 million}} {{lc:ABC}}", "c. 1900 US$5 million abc"),
    ],
)
def test_templates_are_written_as_readers_see_them(wikitext: str, expected: str) -> None:
    assert clean(wikitext) == [expected]


@pytest.mark.parametrize(
    ("language", "wikitext", "expected"),
    [
        (
            "de",
            "{{enS|city}}, {{frS|Ville}} {{Zitat|Text=Ein Satz.|Autor=A}} {{formatnum:1234.5}}",
            "city, Ville Ein Satz. 1.234,5",
        ),
        (
            "fr",
            "{{Unité|10|km|h|-1}} {{nombre|12000|habitants}} {{XIXe siècle}} {{sp|XIX|e|XX|e}} {{1er}} {{refnec|vrai}}",
            "10 km⋅h⁻¹ 12 000 habitants XIXe siècle XIXe et XXe siècles 1er vrai",
        ),
        (
            "fr",
            "{{date-|1|janvier|2000}} {{citation|oui}} {{langue|en|city}} {{formatnum:1200}}",
            "1er janvier 2000 « oui » city 1 200",
        ),
        (
            "es",
            "{{siglo|XX}} {{siglo|V|a|s}} {{unidad|20000|m}} {{cita|1=a = b}} {{fecha|17|10|1973}}",
            "siglo XX siglo V a. C. 20 000 m a = b 17 de octubre de 1973",
        ),
        ("it", "{{M|2000|u=m}} {{citazione|testo|autore}} {{formatnum:12000}}", "2 000 m testo 12 000"),
        ("pt", "{{séc|XX}} {{fmtn|20000|m}} {{dtlink|17|10|1973}}", "século XX 20 000 m 17 de outubro de 1973"),
        (
            "ru",
            "{{num|12000|км²}} {{lang-en|Moscow}} {{s|1920—1930}} {{нп5|Имя|Текст|en|Name}} {{дата|17|10|1973}}",
            "12 000 км² Moscow 1920—1930 Текст 17 октября 1973",
        ),
        (
            "ja",
            "{{読み仮名|東京|とうきょう}}は{{仮リンク|名前|en|Name|label=表示}}{{lang|en|Tokyo}}",
            "東京（とうきょう）は表示Tokyo",
        ),
        (
            "zh",
            "{{lang|en|Text}}{{tsl|en|Name||名字}}{{bd|1950年|1月2日|2000年|3月4日}}",
            "Text名字（1950年1月2日—2000年3月4日）",
        ),
        ("ko", "{{llang|en|Seoul}} {{한자|서울|漢城}} {{임시링크|이름|en|Name}}", "Seoul 서울(漢城) 이름"),
        ("ar", "{{إنج|Cairo}} {{وصلة إنترويكي|تر=X|عر=نص|لغ=en}}", "Cairo نص"),
    ],
)
def test_the_templates_of_other_wikis_are_known(language: str, wikitext: str, expected: str) -> None:
    assert clean(wikitext, language) == [expected]


@pytest.mark.parametrize(
    ("language", "links"),
    [
        ("de", "[[Bild:a.jpg|mini|x]] [[datei:a.jpg|x]] [[Medium:a.ogg]] [[Kategorie:X]]"),
        ("fr", "[[Fichier:a.jpg|vignette|x [[y]]]] [[Image:a.jpg]] [[Catégorie:X]]"),
        ("es", "[[Archivo:a.jpg|thumb|x]] [[Imagen:a.jpg]] [[Categoría:X]]"),
        ("it", "[[Immagine:a.jpg|thumb|x]] [[File:a.jpg]] [[Categoria:X]]"),
        ("pt", "[[Ficheiro:a.jpg|x]] [[Arquivo:a.jpg|x]] [[Imagem:a.jpg|x]] [[Categoria:X]]"),
        ("ru", "[[Файл:a.jpg|мини|x]] [[Изображение:a.jpg|x]] [[Категория:X]]"),
        ("ja", "[[ファイル:a.jpg|thumb|x]] [[画像:a.jpg|x]] [[Category:X]]"),
        ("zh", "[[文件:a.jpg|缩略图|x]] [[檔案:a.jpg|x]] [[图像:a.jpg]] [[分类:X]]"),
        ("ko", "[[파일:a.jpg|섬네일|x]] [[그림:a.jpg|x]] [[분류:X]]"),
        ("ar", "[[ملف:a.jpg|تصغير|x]] [[صورة:a.jpg|x]] [[تصنيف:X]]"),
        ("", "[[Bild:a.jpg|mini|x]] [[ファイル:a.jpg|x]]"),
    ],
)
def test_files_and_categories_have_other_names_in_other_languages(language: str, links: str) -> None:
    assert clean(f"A {links} b.", language) == ["A b."]


def test_the_title_replaces_the_variable_for_it(tmp_path: Path) -> None:
    assert read(dump(tmp_path / "dump.xml", "en", "'''{{PAGENAME}}''' is a page.")) == ["P1 is a page."]


def test_an_alias_of_another_language_is_an_article() -> None:
    assert clean("The [[Bild:x|newspaper]] reports.") == ["The newspaper reports."]


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("甲-{简体}-乙", "甲简体乙"),
        ("-{T|zh-hans:标题}-甲-{H|zh-cn:软件;zh-tw:軟體}-乙-{N|zh-cn}-丙", "甲乙丙"),
        ("-{R|zh-cn:a}-", "zh-cn:a"),
        ("-{zh-tw:只有}-。", "只有。"),
        ("-{zh-hans:a&nbsp;b;zh-hant:c}-", "a b"),
        ("-{zh-hans:甲-{乙}-;zh-hant:x}-", "甲乙"),
        ("[[软件|-{zh-hans:计;zh-hant:計}-]]、-{[[乾隆]]}-", "计、乾隆"),
        ("{{lang|zh|-{A|zh-cn:软;zh-tw:軟}-}}", "软"),
        ("-{H|巨集=>zh-cn:宏;}-甲", "甲"),
        ("甲-{{x}}-乙", "甲--乙"),
        ("<nowiki>-{zh-hans:a;zh-hant:b}-</nowiki>", "-{zh-hans:a;zh-hant:b}-"),
        ("甲 -{ 乙", "甲 -{ 乙"),
    ],
)
def test_a_language_variant_is_chosen_as_the_main_form_shows_it(wikitext: str, expected: str) -> None:
    assert clean(wikitext, "zh") == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-{a}-<!-- -{b}- --><math>-{c}-</math >-{d}-", "a<!-- -{b}- --><math>-{c}-</math >d"),
        ("<MATH>-{a}-</math><math/>-{b}-</math>", "<MATH>-{a}-</math><math/>b</math>"),
        ("<math>-{a}-<nowiki>-{b}-</nowiki><pre -{c}->", "<math>a<nowiki>-{b}-</nowiki><pre c>"),
        ("-{a}-<!-- -{b}-", "a<!-- -{b}-"),
        ("-{a}- " + "<math>x " * 50_000, "a " + "<math>x " * 50_000),
        ("-{a}- " + "<!-->" * 50_000, "a " + "<!-->" * 50_000),
    ],
)
def test_variants_are_left_alone_in_elements_that_are_closed(text: str, expected: str) -> None:
    start = time.process_time()
    assert resolve_variants(text, ["zh-hans"]) == (expected, len(text) - len(expected))
    assert time.process_time() - start < 2


def test_the_variant_can_be_stated_and_is_left_alone_in_wikis_without_variants(tmp_path: Path) -> None:
    text = "-{zh-hans:计算机;zh-hant:電腦}-与-{zh-cn:软件;zh-tw:軟體;zh-hk:軟件}-"
    path = dump(tmp_path / "dump.xml", "zh", text)
    assert read(path) == ["计算机与软件"]
    assert read(path, variant="zh-tw") == ["電腦与軟體"]
    assert read(path, variant="zh-hk") == ["電腦与軟件"]
    assert clean("-{zh-hans:a;zh-hant:b}-") == ["-{zh-hans:a;zh-hant:b}-"]
    assert clean("-{sr-ec:а;sr-el:b}-", "sr", variant="sr-el") == ["b"]


@pytest.mark.parametrize(
    ("language", "wikitext", "expected"),
    [
        ("en", "See http://y.org/a?b=(c), or (https://z.org/d). End.", "See, or. End."),
        ("ja", "http://example.comを参照。", "を参照。"),
        ("th", "ดูhttp://example.com/aเว็บไซต์", "ดูเว็บไซต์"),
        ("de", "Unter http://example.org/Köln_Süd steht mehr.", "Unter steht mehr."),
        ("zh", "群 irc://example.com/a。还有 mailto:a@example.com，后文。", "群。还有，后文。"),
        ("zh", "见[http://example.com 网站]和http://example.com/a（二）。", "见网站和（二）。"),
    ],
)
def test_a_bare_address_ends_where_it_must(language: str, wikitext: str, expected: str) -> None:
    assert clean(wikitext, language) == [expected]


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        (
            "Mot {{x}} ! Autre<ref>a</ref> ; « mot » : oui&nbsp;? Fin {{x}}, suite {{x}}.",
            "Mot ! Autre ; « mot » : oui ? Fin, suite.",
        ),
        ("Un (mot {{x}}) ; deux.", "Un (mot) ; deux."),
    ],
)
def test_french_spaces_before_punctuation_stay(wikitext: str, expected: str) -> None:
    assert clean(wikitext, "fr") == [expected]


def test_text_that_begins_with_a_mark_of_tables_is_kept_and_rows_are_not() -> None:
    kept = ["!Kung people live.", "||x|| is the norm.", "|x||y| = |xy|", "! Attention all", "!n = n! / e", "|-5| is 5."]
    report: Counter[str] = Counter()
    assert WikitextCleaner().paragraphs("\n\n".join(kept), report) == kept
    assert clean("== !!! ==\nText of it.") == ["!!!", "Text of it."]
    assert not report
    rows = "{| class=x\n! a\n|b\n\nText.\n|-\n|c\n== H ==\n|y| is a number.\n{{start}}\n! a !! b\n|-\n| c\n{{end}}\n"
    rows += '\n| align="left" | d\n\n| e\n| f\n'
    assert WikitextCleaner().paragraphs(rows, report) == ["Text.", "H", "|y| is a number."]
    assert report["lines of unclosed tables dropped"] == 11


def test_recipes_extend_the_table_of_templates() -> None:
    templates = {
        "Mine": 2,
        "by name": "words",
        "written": "{1|a} of <{b}, >{-1}",
        "lang": "drop",
        "convert": "{1}",
    }
    wikitext = (
        "{{mine|a|b}}, {{By_name|words=c|d}}, {{written|a=x|y}}, {{written|x|y|b=z}}. {{lang|fr|e}} {{cvt|1|m}} "
        "{{convert|2|m}}"
    )
    assert clean("{{formatnum:1200}} a", templates={"formatnum": "drop"}) == ["a"]
    assert clean(wikitext, templates=templates) == ["b, c, y of y, x of z, y. 1 m 2"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("quote", 0, "numbered from 1"),
        ("quote", "", "it is empty"),
        ("quote", "{1", "brace"),
        ("quote", "{1} <and>", "has no argument"),
        ("quote", "{1} <{2}", "`<` without `>`"),
        ("quote", "{1}>", "`>` without `<`"),
        ("{{quote}}", 1, "is not a template's name"),
        ("Template:quote", 1, "is not a template's name"),
        ("LANG", 1, "`lang` and `LANG` are one template"),
    ],
)
def test_wrong_rules_are_refused_with_their_line(tmp_path: Path, key: str, value: object, message: str) -> None:
    from kdcore_preparation.pipeline.data_recipe import DataRecipe

    recipe = tmp_path / "data.yaml"
    recipe.write_text(
        f"corpora:\n  - name: wikipedia\n    path: dump.xml\n    templates:\n      lang: 2\n"
        f"      {key!r}: {value!r}\ntokenizer: x\n"
    )
    with pytest.raises(InputError, match=message) as caught:
        load_config(recipe, DataRecipe, [])
    assert f"data.yaml:{4 if key == 'LANG' else 6}" in str(caught.value)


def test_a_wrong_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="not the code of a language variant"):
        WikipediaCorpus.Config(path="x", variant="zh-xx")


def test_stated_rules_are_part_of_the_identity_of_data(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = str(dump(tmp_path / "dump.xml", "en", "Text."))
    stated: list[dict[str, Any]] = [
        {},
        {"templates": {}},
        {"templates": {"lang": 2}},
        {"templates": {"lang": 1}},
        {"variant": "zh-tw"},
    ]
    fingerprints = []
    for keys in stated:
        data = DataRecipe(corpora=[{"name": "wikipedia", "path": path, **keys}], tokenizer=str(tokenizer_folder))
        fingerprints.append(identify(data, build_corpora(data), load_tokenizers(data), FileHashes(None)).fingerprint)
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 4


def test_dropped_templates_are_counted_by_name_with_an_example(tmp_path: Path) -> None:
    text = (
        "A {{Foo bar|1}} b {{foo_bar}} c {{Baz|{{foo bar}}}} d {{lang|fr}} e {{#if:x|y}} f {{DEFAULTSORT:Z}}."
        " g {{since|2010}} h {{up to|2020}}."
        "<ref>{{Foo bar}}</ref>"
    )
    corpus = WikipediaCorpus(WikipediaCorpus.Config(path=str(dump(tmp_path / "dump.xml", "en", text))))
    list(corpus.documents())
    assert summarised(corpus.report) == {
        "templates dropped: foo bar, such as {{Foo bar|1}}": 2,
        "templates dropped: #if:, such as {{#if:x|y}}": 1,
        "templates dropped: baz, such as {{Baz|{{foo bar}}}}": 1,
        "templates dropped: defaultsort:, such as {{DEFAULTSORT:Z}}": 1,
        "templates dropped: lang, such as {{lang|fr}}": 1,
        "templates dropped: since, such as {{since|2010}}": 1,
        "templates dropped: up to, such as {{up to|2020}}": 1,
    }


def test_counts_by_name_are_added_over_parts_and_bounded() -> None:
    parts = []
    for part in range(3):
        counts, report = NamedCounts("things seen"), Counter({"other": 1})
        for number in range(300):
            for _ in range(300 - number):
                counts.count(report, f"n{number}", lambda part=part: f"example of part {part} {'x' * 100}")  # type: ignore[misc]
        parts.append(most_frequent(report))
    total: Counter[str] = Counter()
    for report in parts:
        assert len(report) <= 202
        total.update(report)
    lines = summarised(total)
    assert list(lines.items())[:3] == [
        ("other", 3),
        (f"things seen: n0, such as example of part 0 {'x' * 51}…", 900),
        (f"things seen: n1, such as example of part 0 {'x' * 51}…", 897),
    ]
    assert len(lines) == 22
    assert lines["things seen: others"] == 3 * sum(range(1, 301)) - 3 * sum(range(281, 301))


def test_prepare_shows_the_most_frequent_dropped_templates(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "dumps"
    folder.mkdir()
    for number in range(2):
        dump(folder / f"{number}.xml", "en", f"One {{{{rare|{number}}}}}.", "Two {{often}} {{often|x}}.", "Three.")
    recipe = tmp_path / "data.yaml"
    recipe.write_text(f"corpora: [{{name: wikipedia, path: {folder}}}]\ntokenizer: {tokenizer_folder}\n")
    assert main(["prepare", str(recipe), str(tmp_path / "prepared"), "--workers", "1"]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if "templates dropped" in line]
    assert shown == [
        "wikipedia: 4 templates dropped: often, such as {{often}}",
        "wikipedia: 2 templates dropped: rare, such as {{rare|0}}",
    ]


def test_a_dump_in_utf_16_is_refused(tmp_path: Path) -> None:
    path = dump(tmp_path / "dump.xml", "en", "Text.")
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        (tmp_path / "wide.xml").write_bytes(path.read_text(encoding="utf-8").encode(encoding))
        with pytest.raises(DataError, match=r"wide\.xml: is a UTF-16 dump(.|\n)*iconv"):
            read(tmp_path / "wide.xml")


NASTY = """{{Infobox x|a={{b|c}}|d=[[e]]}}<!-- c -->
'''A''' {{lang|fr|b [[c|d]]<ref>no</ref>}}
[[File:e.jpg|thumb|f [[g]] {{h}}]] &amp;&#x20;&#2;&nbsp;i&nbsp;. http://j.k/l, [http://m.n o p].
== Heading {{x}}<br>two ==
{| class="a"
| b || {{c}}
|}
* one <small style="x">two</small>
*# three {{{param|default}}}
; term : meaning
----
{{convert|6|ft<!-- in -->|2|in|m}} ({{x}}), {{x}} ; <span
class=b>broken</div> ''un'closed ''' [[half {{half
| row
<poem>
a
 b </poem><table><tr><td>c</td></tr></table><li>d</li> __NOTOC__ x__y
=== Empty ===
. ,
[[de:Hund]] [[Category:C]] [[:Category:D]] [[e#f|]] <math>x</math> {{quote|text=<div>g</div>

h}}
== Last =="""


def stage_of(wikitext: str, language: str = "en") -> tuple[CharacterStage, str]:
    stage = CharacterStage()
    return stage, "\n".join(WikitextCleaner(Wiki.of(language)).paragraphs(wikitext, Counter(), stage))


def test_every_dropped_character_is_counted_under_its_reason() -> None:
    reference, template, table = "<ref name=a>No [[b]].</ref>", "{{x|{{y}}|z={{lang|fr|z}}}}", "{|\n| a\n|}"
    file, comment, formula = "[[File:a.jpg|thumb|b [[c]]]]", "<!-- d -->", "<math>e</math>"
    text = (
        f"One{reference} two {template} three {file} four{comment} [[five|5]] &amp; {formula}six.\n\n{table}\n== A =="
    )
    stage, kept = stage_of(text)
    assert kept == "One two three four 5 & six."
    assert stage.dropped == {
        "references": len(reference),
        "templates": len(template),
        "tables": len(table),
        "files and categories": len(file),
        "comments": len(comment),
        "formulae": len(formula),
        "link targets": len("five"),
        "markup": len("[[|]]") + len("===="),
        "repeated spaces": 2,  # at the template and the file
        "headings without text below them": 1,
    }
    assert stage.rewritten["entities"] == [5, 1]
    assert (stage.received, stage.passed, stage.remainder) == (len(text), len(kept), 0)


@pytest.mark.parametrize("language", ["en", "fr", "zh"])
def test_characters_of_odd_pages_are_accounted_for(language: str) -> None:
    lines = NASTY.split("\n")
    for start in range(len(lines)):
        for end in range(start + 1, len(lines) + 1):
            text = "\n".join(lines[start:end])
            stage, kept = stage_of(text, language)
            assert (stage.received, stage.passed, stage.remainder) == (len(text), len(kept), 0)


def test_characters_of_random_markup_are_accounted_for() -> None:
    generator = random.Random(0)
    pieces = re.findall(r"\w+|\s+|\{\{|\}\}|\[\[|\]\]|<[^<>]*>|'+|=+|.", NASTY)
    pieces += ["-{", "}-", "zh-hans:", "。", "!!", "|-\n"]
    for _ in range(1500):
        text = "".join(generator.choices(pieces, k=generator.randint(1, 60)))
        stage, kept = stage_of(text, generator.choice(("en", "fr", "zh", "de")))
        assert (stage.received, stage.passed, stage.remainder) == (len(text), len(kept), 0), text


@pytest.mark.parametrize("language", REPORTED)
def test_the_account_of_a_dump_is_balanced_after_every_page(tmp_path: Path, language: str) -> None:
    texts = [text for text, _ in REPORTED[language]]
    path = dump(tmp_path / "dump.xml", language, *texts, NASTY, "#REDIRECT [[P1]]", "{{nothing}}")
    corpus = WikipediaCorpus(WikipediaCorpus.Config(path=str(path)))
    characters = 0
    for document in corpus.documents():
        characters += len(document.text)
        assert corpus.characters.imbalances() == []
    assert corpus.characters.imbalances() == []
    assert corpus.characters["pages"].received == sum(map(len, [*texts, NASTY, "#REDIRECT [[P1]]", "{{nothing}}"]))
    assert corpus.characters["pages"].dropped == {"redirects": len("#REDIRECT [[P1]]")}
    assert corpus.characters["clean"].passed == characters


def test_the_account_of_a_piece_of_wikipedia_is_balanced_after_every_page() -> None:
    try:
        files = metadata.files("gensim") or []
    except metadata.PackageNotFoundError:
        pytest.skip("gensim, which contains a piece of Wikipedia, is not installed")
    piece = next(Path(str(file.locate())) for file in files if str(file).endswith("shortened.bz2"))
    corpus = WikipediaCorpus(WikipediaCorpus.Config(path=str(piece)))
    characters = documents = 0
    for document in corpus.documents():
        characters += len(document.text)
        documents += 1
        assert corpus.characters.imbalances() == []
    assert documents == 106
    assert corpus.characters["pages"].received == 5_733_844  # the <text> of its 206 pages
    assert corpus.characters["clean"].passed == characters
