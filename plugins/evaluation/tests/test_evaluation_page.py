"""The comparison page: every figure on it is found in the rows, and everybody can read it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import shutil
import statistics
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from urllib.parse import unquote

import pytest
from kdcore_evaluation.report.markup import figure
from kdcore_evaluation.report.plots import HEIGHT, WIDTH, Axis, Drawing, Mark, Series, draw
from kdcore_evaluation.run.results import ResultRow, read_rows
from scipy import stats

from kdcore.commands.main import main

VOID = {"meta", "link", "wbr", "br"}


class Parsed(HTMLParser):
    """Elements with their attributes, numbers of `data`, and the words of tables that are not such numbers."""

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
    """Everything that may be on the page, computed from result rows and rows of metrics without kdcore's help."""
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
    theirs = {row.metric: row.value for row in rows if row.kind == "cost" and row.model == "teacher"}
    for row in rows:
        if row.kind == "cost":
            model, relative = re.sub(r"-\d+( .*)?$", "", row.model), row.value / theirs[row.metric]
            samples.setdefault((model, hash(row.metric)), []).append(row.value)
            if row.share in (None, 1.0):
                samples.setdefault((f"{model} relative", hash(row.metric)), []).append(relative)
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
    for method in ("attention_mse", "hidden_mse", "minilm_v2"):
        runs = [row_values(project / f"runs/tiny/{method}-{seed}", "held_out/loss") for seed in (43, 44, 45)]
        for values in ([own[0] for own in runs], [own[-1] for own in runs]):
            yield statistics.fmean(values)
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


def row_values(run: Path, metric: str) -> list[float]:
    """Values of one metric in the order of the file."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line[metric] for line in lines if metric in line]


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
        # The table of runs shows minutes, sizes relative to the teacher are percentages.
        options = (value / scale, value * 100 if "%" in text else value / 60)
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
    assert not names & {"img", "iframe", "object", "embed", "video", "audio"}
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "srcset", "action", "style"):
            value = attributes.get(name)
            inside = value is None or value.startswith("#") or (tag, value) == ("link", "data:,")
            assert inside or ("download" in attributes and str(value).startswith("data:text/csv")), (tag, value)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", page)
    assert len(page) < 200_000


def test_plots_are_told_in_words_and_beside_them_in_tables(page: str):
    parsed = Parsed(page)
    plots = [attributes for tag, attributes in parsed.elements if tag == "svg" and attributes.get("role") == "img"]
    assert len(plots) == 1 + 3 * 2 + 1 + 2, "scores, steps and time for each method, budget, size, speed"
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in plots:
        assert attributes["aria-labelledby"] in ids
        assert attributes["aria-describedby"] in ids
    for tag, attributes in parsed.elements:
        if tag == "svg":
            assert attributes.get("role") == "img" or attributes.get("aria-hidden") == "true"
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")
        if attributes.get("class") == "scroll":
            assert attributes.get("tabindex") == "0"
            assert attributes.get("aria-label")
    assert sum(tag == "table" for tag, _ in parsed.elements) == 2 + 1 + 3 + 1 + 1 + 1
    assert dict(parsed.elements)["html"] == {"lang": "en"}
    described = re.search(r'id="budget-plot-text">([^<]*)<', page)
    assert described is not None
    assert "hidden_mse: 25%: 0.6" in described[1]
    assert "random weights 0.4" in described[1]


def downloads(page: str) -> dict[str, list[list[str]]]:
    """Rows of the CSV files of a page, by their names."""
    links = [attributes for _, attributes in Parsed(page).elements if "download" in attributes]
    texts = {str(link["download"]): unquote(str(link["href"]).partition(",")[2]) for link in links}
    return {name: list(csv.reader(io.StringIO(text))) for name, text in texts.items()}


def test_every_plot_has_its_values_as_csv(page: str, compared_project: Path):
    found = downloads(page)
    plots = [
        attributes for tag, attributes in Parsed(page).elements if tag == "svg" and attributes.get("role") == "img"
    ]
    assert {f"{str(one['aria-labelledby']).removesuffix('-title')}.csv" for one in plots} == set(found) - {"scores.csv"}
    header, *rows = found["steps-0.csv"]
    assert header == ["series", "step", "loss", "low", "high"]
    losses = {}
    for run in ("hidden_mse-43", "hidden_mse-44", "hidden_mse-45"):
        for name, metric in (("held-out", "held_out/loss"), ("training", "train/loss")):
            losses[f"tiny/{run}, {name} loss"] = row_values(compared_project / "runs" / "tiny" / run, metric)
    own = {name: [float(row[2]) for row in rows if row[0] == name] for name in dict.fromkeys(row[0] for row in rows)}
    before = own.pop("before training")
    assert own == losses
    assert before == pytest.approx([1.01]), "one line for three seeds"
    scores = [row for row in found["scores-0.csv"] if row[0] == "hidden_mse"]
    single = [float(row[2]) for row in scores[1:]]
    assert len(single) == 3
    assert float(scores[0][2]) == pytest.approx(statistics.fmean(single))
    assert [row[0] for row in found["scores-0.csv"][-3:]] == [
        "teacher teacher",
        "random weights",
        "majority-class baseline",
    ]


def test_references_are_listed_from_the_teacher_to_the_majority(compared_project: Path, tmp_path: Path):
    from kdcore_evaluation.run.results import write_rows

    evaluation = tmp_path / "evaluations" / "quick"
    shutil.copytree(compared_project, tmp_path, dirs_exist_ok=True)
    change = {"role": "initial", "export": "initial", "share": 0.0}
    rows = read_rows(evaluation)
    initial = [
        ResultRow(**{**vars(row), **change, "model": f"{row.model} initial", "value": row.value / 2})
        for row in rows
        if row.export == "final"
    ]
    write_rows(evaluation, [*rows, *initial])
    file = tmp_path / "page.html"
    arguments = ["--by", "task.name", "--results", str(evaluation), "--html", str(file)]
    assert main(["compare", str(evaluation), *arguments]) == 0
    text = file.read_text(encoding="utf-8")
    names = ["teacher teacher", "before training: masked_lm", "random weights", "majority-class baseline"]
    body = re.search(r'<tbody class="references">(.*?)</tbody>', text, re.DOTALL)
    assert body is not None
    assert re.findall(r'<th scope="row">(.*?)</th>', body[1].replace("<wbr>", "")) == names
    found = downloads(text)["scores-0.csv"]
    assert [row[0] for row in found[-4:]] == [names[0], "before training", *names[2:]]
    half = statistics.fmean(row.value for row in initial if (row.split, row.learning_rate) == ("test", 1e-4))
    assert float(found[-3][2]) == pytest.approx(half)
    assert "<span>before training 0.3" in text, "in the legend, with its value"


def test_losses_are_shown_with_their_baselines_and_collapse_with_its_numbers(
    compared_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Means over three runs: one collapsed at its last validation, and another collapsed earlier but recovered."""
    losses = {43: (2.0, 0.5), 44: (2.2, 0.7), 45: (2.1, 1.6)}
    for seed, values in losses.items():
        run = tmp_path / "runs" / "tiny" / f"hidden_mse-{seed}"
        shutil.copytree(compared_project / "runs" / "tiny" / run.name, run)
        rows = []
        for step, value in zip((0, 100), values, strict=True):
            losses_of_step = {"held_out/hidden_mse": value, "held_out/loss": value, "held_out/accuracy": 0.5}
            constants = {"constant/hidden_mse": 1.6, "constant/loss": 1.6}
            checks = {"check/student_rank": 1.25, "check/teacher_rank": 20.06}
            signs = {"finding/student_rank": 1, "finding/hidden_mse": 1} if (seed, step) in ((45, 100), (43, 0)) else {}
            rows.append({"step": step, **losses_of_step, **constants, **checks, **signs})
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "page.html"
    assert main(["compare", str(tmp_path / "runs"), "--results", str(compared_project), "--html", str(file)]) == 0
    text = file.read_text(encoding="utf-8").replace("<wbr>", "")
    numbers = [value for value, _ in Parsed(text).numbers]
    explained = [1 - after / 1.6 for _, after in losses.values()]
    interval = stats.t.interval(0.95, 2, statistics.fmean(explained), statistics.stdev(explained) / math.sqrt(3))
    for expected in (2.1, statistics.fmean((0.5, 0.7, 1.6)), 1.6, statistics.fmean(explained), *interval):
        assert expected == pytest.approx(min(numbers, key=lambda value: abs(value - expected)), rel=1e-9)
    assert ">41.7%<" in text
    assert "accuracy" not in text, "a score has no constant prediction"
    (warning,) = re.findall(r'<section class="warning".*?</section>', text, re.DOTALL)
    assert re.findall(r'<th scope="row">(.*?)</th>', warning) == ["tiny/hidden_mse-45"] * 2
    cells = [re.sub("<.*?>", "", one) for one in re.findall(r"<td.*?</td>", warning)]
    rank = ["effective rank of the pooled states", "1.2", "20.1 (teacher)"]
    assert cells == [*rank, "held-out hidden_mse", "1.6", "1.6 (best constant prediction)"]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert line == (
        "warning: tiny/hidden_mse-45: may have collapsed or learned nothing: effective rank of the pooled states 1.2 "
        "(teacher: 20.1); held-out hidden_mse 1.6 (best constant prediction: 1.6)"
    )
    lines = {row[0]: float(row[2]) for row in downloads(text)["steps-0.csv"][1:] if not row[1]}
    expected = {"constant prediction": 1.6, "before training (lowest)": 2.0, "before training (highest)": 2.2}
    assert lines == pytest.approx(expected)


def test_methods_are_named_without_the_packages_that_stored_recipes_state(compared_project: Path, tmp_path: Path):
    run = tmp_path / "runs" / "tiny" / "hidden_mse-43"
    shutil.copytree(compared_project / "runs" / "tiny" / run.name, run)
    recipe = (run / "recipe.yaml").read_text()
    stored = "losses: {mse: {name: 'kdcore-hidden-mse:hidden_mse'}, soft_targets: {}}"
    (run / "recipe.yaml").write_text(recipe.replace("losses: {hidden_mse: {}}", stored))
    file = tmp_path / "page.html"
    assert main(["compare", str(run), "--html", str(file)]) == 0
    text = file.read_text(encoding="utf-8").partition('<h2 id="repeat">')[0].replace("<wbr>", "")
    assert "hidden_mse + soft_targets: loss against steps" in text
    assert "kdcore-hidden-mse" not in text


def test_names_cannot_break_the_page(compared_project: Path, tmp_path: Path):
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


def test_odd_runs_make_a_valid_page_of_limited_size(odd_project: Path, tmp_path: Path):
    """60 groups, names with markup and 200 characters, NaN, infinities, one seed each, runs without metrics."""
    file = tmp_path / "page.html"
    evaluation = str(odd_project / "evaluations" / "odd")
    assert main(["compare", evaluation, "--by", "run", "--results", evaluation, "--html", str(file)]) == 0
    text = file.read_text(encoding="utf-8")
    parsed = Parsed(text)
    assert not parsed.open
    assert not {"b", "img"} & {tag for tag, _ in parsed.elements}
    assert len(text) < 1_500_000
    for _, attributes in parsed.elements:
        if "data-values" in attributes:
            for x, y, _words in json.loads(str(attributes["data-values"]), parse_constant=pytest.fail):
                assert math.isfinite(x + y)
    assert text.count("<summary>Recipe of ") == 60


def layer_report(shift: float) -> dict[str, object]:
    """A report of a teacher of two blocks and a student of one, as `kdcore summary --layers` writes it."""
    cka = {"student": [[0.5 + shift, 0.1], [0.2, None], [-0.01, 0.9 + shift]], "initial": [[0.0] * 2] * 3}
    values = {"student": 0.25 + shift, "initial": 0.75}
    groups = [{"lowest": 0, "highest": 8, "count": 1500, "values": values}]
    heads = [{"teacher": 1, "student": 0, "divergence": {"student": [0.125 + shift, 0.5], "initial": [0.75, None]}}]
    return {
        "export": "final",
        "teacher": "teacher",
        "sequences": 40,
        "tokens": 4096,
        "teacher_blocks": ["embeddings", 0, 1],
        "student_blocks": ["embeddings", 0],
        "pairs": [[1, 0]],
        "cka": cka,
        "cka_without_dominant": cka,
        "dominant": {"teacher": [[], [], []], "student": [[], []], "initial": [[], []]},
        "heads": heads,
        "errors": [{"measure": "state", "by": "position", "overall": values, "groups": groups}],
    }


def test_layers_are_heat_maps_averaged_over_runs(compared_project: Path, tmp_path: Path):
    for seed, shift in ((43, 0.0), (44, 0.02)):
        run = tmp_path / "runs" / "tiny" / f"hidden_mse-{seed}"
        shutil.copytree(compared_project / "runs" / "tiny" / run.name, run)
        (run / "layers.json").write_text(json.dumps(layer_report(shift)))
    for seed, content in ((43, "{}"), (44, json.dumps({**layer_report(0.0), "student_blocks": ["embeddings"]}))):
        run = tmp_path / "runs" / "tiny" / f"minilm_v2-{seed}"
        shutil.copytree(compared_project / "runs" / "tiny" / run.name, run)
        (run / "layers.json").write_text(content)  # damaged, and of other blocks than its matrices
    file = tmp_path / "page.html"
    assert main(["compare", str(tmp_path / "runs"), "--html", str(file)]) == 0
    text = file.read_text(encoding="utf-8")
    assert not Parsed(text).open
    (section,) = re.findall(r'<section aria-labelledby="layers">.*?</section>', text, re.DOTALL)
    assert "<h3>hidden_mse (2 seeds)</h3>" in section
    assert "minilm_v2" not in section
    found = downloads(text)
    rows = found["cka-student-0.csv"]
    assert rows[0] == ["teacher's block", "student's block", "value"]
    assert [row[:2] for row in rows[1:4]] == [["embeddings", "embeddings"], ["embeddings", "0"], ["0", "embeddings"]]
    assert [float(row[2]) for row in rows[1:]] == pytest.approx([0.51, 0.1, 0.2, math.nan, -0.01, 0.91], nan_ok=True)
    assert [float(row[2]) for row in found["heads-student-0.csv"][1:]] == pytest.approx([0.135, 0.5])
    cells = re.findall(r'<td class="(h\d+(?: outlined)?)">(.*?)</td>', section)
    own = [(style, re.sub("<.*?>", "", words)) for style, words in cells[:6]]
    assert own == [
        ("h5", "0.51"),
        ("h1", "0.10"),
        ("h2", "0.20"),
        ("h0", "-"),
        ("h0", "-0.01"),
        ("h9 outlined", "0.91"),
    ]
    errors = re.sub("<.*?>", " ", section[section.index("<details>") :]).split()
    assert errors[-10:] == ["all", "1,500", "0.750", "0.260", "0", "to", "8", "1,500", "0.750", "0.260"]


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
        for hue in ("c0", "c1"):  # the darkest cells of heat maps
            parts = [(int(colors[hue][i : i + 2], 16) + int(colors["ground"][i : i + 2], 16)) // 2 for i in (1, 3, 5)]
            assert contrast(colors["text"], "#" + "".join(f"{part:02x}" for part in parts)) >= 4.5, hue
    assert ".heat .h10 { --level: 50%; }" in css


def places(drawing: Drawing) -> list[tuple[float, float]]:
    return [(x, y) for series in drawing.series for x, y, _ in series.values]


def test_plots_stay_inside():
    marks = [Mark(x, 10.0**x, (10.0**x / 2, 10.0**x * 1.5)) for x in range(-3, 4)]
    for axis in (Axis("loss"), Axis("loss", logarithmic=True)):
        many = [Series(f"{number} <&>", number, marks) for number in range(20)]
        drawing = draw(many, Axis("steps"), axis, separate=True)
        assert len(places(drawing)) == 20 * len(marks)
        for x, y in places(drawing):
            assert drawing.left <= x <= drawing.right <= WIDTH
            assert drawing.top <= y <= drawing.bottom <= HEIGHT
        assert len({path[0] for series in drawing.series for path, _ in series.markers}) == 1
        assert len(drawing.rows) + len(drawing.columns) >= 6


@pytest.mark.parametrize("values", [[], [0.0], [0.5, 0.5], [float("nan")], [-1.0, 1.0], [1e-9, 1e9], [math.inf, 1e200]])
def test_plots_take_whatever_comes(values: list[float]):
    for logarithmic in (False, True):
        series = [Series("a", 0, [Mark(number, value) for number, value in enumerate(values)])]
        drawing = draw(series, Axis("x"), Axis("y", logarithmic=logarithmic), separate=True)
        shown = [value for value in values if abs(value) <= 1e100 and (value > 0 or not logarithmic)]
        assert len(places(drawing)) == len(shown)
        assert all(math.isfinite(one) for place in places(drawing) for one in place)


def test_long_curves_are_thinned_and_keep_their_end():
    marks = [Mark(float(x), float(x)) for x in range(10_000)]
    own = places(draw([Series("a", 0, marks, markers=False)], Axis("x"), Axis("y")))
    assert len(own) <= 161
    whole = places(draw([Series("a", 0, [marks[0], marks[-1]], markers=False)], Axis("x"), Axis("y")))
    assert [own[0], own[-1]] == whole
    many = draw([Series("a", 0, marks, markers=False)] * 60, Axis("x"), Axis("y"))
    assert len(places(many)) < 5000, "sixty runs fit into a page, too"


def test_points_at_the_same_place_are_separated():
    for count in (2, 7, 15):
        series = [Series(str(n), n, [Mark(1.0, 0.7 + n * 1e-4, (0.69, 0.71))], line=False) for n in range(count)]
        far = Series("far", 0, [Mark(2.0, 0.7)], line=False)
        drawing = draw([*series, far], Axis("x"), Axis("y"), separate=True)
        *own, alone = places(drawing)
        assert drawing.shifted
        for first, second in itertools.combinations(own, 2):
            assert abs(first[0] - second[0]) >= 9, "markers have a width of 9"
        exact = draw([*series, far], Axis("x"), Axis("y"))
        assert not exact.shifted
        assert own[0] == places(exact)[0], "the first one is where it belongs"
        assert alone == places(exact)[-1]
        assert [y for _, y in own] == [y for _, y in places(exact)[:-1]], "values do not move"


def test_a_figure_lists_its_points_in_words():
    marks = [Mark(0, 1.0, text="step 0: 1"), Mark(5, 0.5, text="step 5: 0.5")]
    drawn = figure("a", "loss", [Series("run", 0, marks)], Axis("step"), Axis("loss"))
    assert drawn.description == "loss. run: step 0: 1, step 5: 0.5."
