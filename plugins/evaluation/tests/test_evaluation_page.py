"""The comparison page: every figure on it is found in the rows, and everybody can read it."""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
from kdcore_evaluation.report.plots import HEIGHT, WIDTH, Axis, Mark, Series, plot
from kdcore_evaluation.run.results import ResultRow, read_rows
from scipy import stats

from kdcore.commands.main import main

VOID = {"meta", "link", "wbr", "br"}


class Parsed(HTMLParser):
    """Elements with their attributes, numbers of `data`, and the words of tables that are no such numbers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.numbers: list[tuple[float, str]] = []
        self.words: list[str] = []
        self._value: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "data":
            self._value = dict(attrs)["value"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closes something else"
        if tag == "data":
            self._value = None

    def handle_data(self, text: str) -> None:
        if self._value is not None:
            self.numbers.append((float(self._value), text))
        elif "td" in self.open:
            self.words.append(text)


@pytest.fixture(scope="module")
def page(compared_project: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("page") / "page.html"
    evaluation = str(compared_project / "evaluations" / "quick")
    assert main(["compare", evaluation, "--results", evaluation, "--html", str(file)]) == 0
    return file.read_text(encoding="utf-8")


def statistics_of(project: Path) -> Iterator[float]:
    """Everything that may stand on the page, computed from result rows and rows of metrics without kdcore's help."""
    rows = read_rows(project / "evaluations" / "quick")
    yield from (row.chance for row in rows if row.chance is not None)
    for path in project.glob("runs/*/*/metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        yield from (value for line in lines for value in line.values())

    def run_mean(own: list[ResultRow]) -> float:
        validation = {lr: [r.value for r in own if (r.learning_rate, r.split) == (lr, "validation")]
                      for lr in {r.learning_rate for r in own}}  # fmt: skip
        best = max(validation, key=lambda lr: statistics.fmean(validation[lr]))
        chosen = [r.value for r in own if (r.learning_rate, r.split) == (best, "test")]
        return statistics.fmean(chosen)

    tuned = [row for row in rows if row.kind == "finetune"]
    samples: dict[tuple[str, float | None], list[float]] = {}
    for (run, share), own in itertools.groupby(tuned, key=lambda row: (row.run or row.model, row.share)):
        group = re.sub(r".*/|-\d+$", "", run)
        samples.setdefault((group, share), []).append(run_mean(list(own)))
    for row in rows:
        if row.kind == "cost":
            samples.setdefault((re.sub(r"-\d+( .*)?$", "", row.model), hash(row.metric)), []).append(row.value)
            yield row.value
    for model in ("teacher", "random weights"):
        one = [r.value for r in tuned if (r.model, r.split, r.learning_rate) == (model, "test", 1e-4)]
        samples[model, 2.0] = one
    for values in samples.values():
        yield statistics.fmean(values)
        yield len(values)
        if len(values) > 1:
            yield from stats.t.interval(
                0.95, len(values) - 1, statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
            )
    methods = [samples[method, 1.0] for method in ("attention_mse", "hidden_mse", "minilm_v2")]
    tests = [stats.ttest_rel(one, other) for one, other in itertools.combinations(methods, 2)]
    tests += [stats.ttest_ind(one, samples["teacher", 2.0], equal_var=False) for one in methods]
    for test, (one, other) in zip(
        tests, [*itertools.combinations(methods, 2), *((one, samples["teacher", 2.0]) for one in methods)], strict=True
    ):
        difference = statistics.fmean(one) - statistics.fmean(other)
        interval = test.confidence_interval(0.95)
        yield from (difference, interval.low, interval.high, -difference, -interval.low, -interval.high)
    ranked = sorted(test.pvalue for test in tests)
    yield from itertools.accumulate((min(1, (6 - rank) * p) for rank, p in enumerate(ranked)), max)


def test_every_figure_is_found_in_the_rows(page: str, compared_project: Path):
    parsed = Parsed(page)
    known = list(statistics_of(compared_project))
    assert len(parsed.numbers) > 100
    for value, text in parsed.numbers:
        assert any(value == pytest.approx(one, rel=1e-9, abs=1e-12) for one in known), (value, text)
        shown = float(re.sub(r"[^\d.e-]", "", text))
        scale = 1e6 if " M" in text else 1.0
        places = re.search(r"\.(\d+)", text)
        half = 0.5 * 10.0 ** -len(places[1]) if places else 0.51
        options = (value / scale, value / 60)  # the table of runs shows minutes
        assert any(shown == pytest.approx(option, abs=half, rel=1e-3) for option in options), text


def test_no_number_of_a_table_comes_from_elsewhere(page: str):
    known = re.compile(r"tiny/|43|44|45|dadadada|[\w ]*mse|minilm|v2")
    for words in Parsed(page).words:
        left = known.sub("", words)
        assert not re.search(r"\d", left) or re.fullmatch(r"\w{8}", words.strip()), words


def test_it_needs_nothing_but_itself(page: str):
    parsed = Parsed(page)
    assert not parsed.open
    names = {tag for tag, _ in parsed.elements}
    assert not names & {"script", "img", "iframe", "object", "embed", "video", "audio"}
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "srcset", "action", "style"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or (tag, value) == ("link", "data:,"), (tag, value)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", page)
    assert len(page) < 200_000


def test_plots_are_told_in_words_and_beside_them_in_tables(page: str):
    parsed = Parsed(page)
    plots = [attributes for tag, attributes in parsed.elements if tag == "svg" and attributes.get("role") == "img"]
    assert len(plots) == 3 * 2 + 1 + 2, "steps and time for each method, budget, size, speed"
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in plots:
        assert set(str(attributes["aria-labelledby"]).split()) <= set(ids)
    for tag, attributes in parsed.elements:
        if tag == "svg":
            assert attributes.get("role") == "img" or attributes.get("aria-hidden") == "true"
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")
        if attributes.get("class") == "scroll":
            assert attributes.get("tabindex") == "0"
            assert attributes.get("aria-label")
    assert sum(tag == "table" for tag, _ in parsed.elements) == 2 + 3 + 1 + 1 + 1
    assert dict(parsed.elements)["html"] == {"lang": "en"}
    described = re.search(r'id="budget-plot-text">([^<]*)<', page)
    assert described is not None
    assert "hidden_mse: 25% 0.6" in described[1]


def test_names_cannot_break_the_page(compared_project: Path, tmp_path: Path):
    import shutil

    run = tmp_path / "runs" / "x" / "1"
    shutil.copytree(compared_project / "runs" / "tiny" / "hidden_mse-43", run)
    recipe = (run / "recipe.yaml").read_text().replace("name: tiny", "name: '<b>&\"bad'")
    (run / "recipe.yaml").write_text(recipe)
    file = tmp_path / "page.html"
    assert main(["compare", str(run), "--by", "run", "--html", str(file)]) == 0
    text = file.read_text(encoding="utf-8")
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;" in text
    assert not Parsed(text).open


def contrast(first: str, second: str) -> float:
    """WCAG's contrast ratio of two colours such as #0060a8."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_text_and_lines_stand_out_by_day_and_by_night():
    css = resources.files("kdcore_evaluation.report").joinpath("page.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{([^}]*--ground[^}]*)\}", css)
    for block in (light, dark):
        colors = dict(re.findall(r"--(\w+): (#\w{6})", block))
        for ground in ("ground", "raised"):
            for name in ("text", "quiet", "link"):
                assert contrast(colors[name], colors[ground]) >= 4.5, name
        for number in range(8):
            assert contrast(colors[f"c{number}"], colors["ground"]) >= 3.0 + 0.5, number


def test_plots_stay_inside_and_are_well_formed():
    marks = [Mark(x, 10.0**x, (10.0**x / 2, 10.0**x * 1.5)) for x in range(-3, 4)]
    for axis in (Axis("loss"), Axis("loss", logarithmic=True)):
        many = [Series(f"{number} <&>", number, marks) for number in range(20)]
        text = plot("p", "title <&>", "words", many, Axis("steps"), axis)
        tree = ElementTree.fromstring(text)
        for line in tree.iter("polyline"):
            for place in line.attrib["points"].split():
                x, y = map(float, place.split(","))
                assert 0 <= x <= WIDTH
                assert 0 <= y <= HEIGHT
        assert len({path.attrib["d"].split()[0][0] for path in tree.iter("path")}) == 1
        ticks = [element.text for element in tree.iter("text") if element.attrib["class"] == "tick"]
        assert len(ticks) >= 6


@pytest.mark.parametrize("values", [[], [0.0], [0.5, 0.5], [float("nan")], [-1.0, 1.0], [1e-9, 1e9]])
def test_plots_take_whatever_comes(values: list[float]):
    for logarithmic in (False, True):
        series = [Series("a", 0, [Mark(number, value) for number, value in enumerate(values)])]
        ElementTree.fromstring(plot("p", "t", "d", series, Axis("x"), Axis("y", logarithmic=logarithmic)))


def test_long_curves_are_thinned_and_keep_their_end():
    marks = [Mark(float(x), float(x)) for x in range(10_000)]
    text = plot("p", "t", "d", [Series("a", 0, marks, markers=False)], Axis("x"), Axis("y"))
    assert len(text) < 6000
    places = ElementTree.fromstring(text).find("polyline")
    assert places is not None
    last = places.attrib["points"].split()[-1]
    whole = plot("p", "t", "d", [Series("a", 0, [marks[0], marks[-1]], markers=False)], Axis("x"), Axis("y"))
    end = ElementTree.fromstring(whole).find("polyline")
    assert end is not None
    assert end.attrib["points"].split()[-1] == last
