"""The comparison page in a real headless browser: wide, on a phone, printed, and without a network."""

from __future__ import annotations

import html
import http.server
import importlib.util
import json
import os
import re
import shutil
import socketserver
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kdcore_evaluation.run.results import ResultRow, read_rows, write_rows

from kdcore.commands.main import main

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")

AXE = importlib.util.find_spec("axe_playwright_python")  # only its copy of axe-core is read, in the browser
PAGES = [("page", 360), ("page", 768), ("page", 1280), ("odd", 360), ("odd", 1280)]

# Measures pages in frames from inside: what is wider than the screen, how large texts of plots are, what was fetched,
# what axe-core objects to, what pointer and keyboard show.
MEASURE = """
<script>
const measure = frame => {
  const page = frame.contentDocument, view = frame.contentWindow;
  const drawings = [...page.querySelectorAll("svg[role=img]")];
  const texts = [...page.querySelectorAll("svg text")].map(text => text.getBoundingClientRect().height);
  const wide = [...page.querySelectorAll("main *, header *")].filter(element =>
    element.getBoundingClientRect().right > view.innerWidth + 1 && !element.closest(".scroll, pre, .unseen"));
  const outside = drawings.flatMap(plot => [...plot.querySelectorAll("text, .mark")].filter(
    text => { const a = text.getBoundingClientRect(), b = plot.getBoundingClientRect();
              return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1; }));
  const crossing = boxes => boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b =>
      a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1));
  const boxes = (plot, what) => [...plot.querySelectorAll(what)].map(text => text.getBoundingClientRect());
  return {
    scroll: page.documentElement.scrollWidth, width: view.innerWidth, smallest: Math.min(...texts),
    wide: wide.map(element => element.outerHTML.slice(0, 80)), plots: drawings.map(plot => plot.clientWidth),
    outside: outside.map(text => text.outerHTML.slice(0, 80)),
    overlapping: drawings.flatMap(plot => crossing(boxes(plot, "text"))).length,
    covered: drawings.flatMap(plot => crossing(boxes(plot, ".series:not(.faint) .mark"))).length,
    background: view.getComputedStyle(page.body).backgroundColor,
    fetched: view.performance.getEntriesByType("resource").map(entry => entry.name)};
};
const use = frame => {
  const page = frame.contentDocument, view = frame.contentWindow;
  const plot = page.querySelector(".plot"), svg = plot.querySelector("svg"), tip = page.querySelector(".tip");
  const shown = () => tip.hidden ? null : tip.innerText.split("\\n");
  const before = shown();
  const box = svg.querySelector(".mark").getBoundingClientRect();
  const at = {clientX: box.left + box.width / 2 + 3, clientY: box.top + box.height / 2 + 3, bubbles: true};
  svg.dispatchEvent(new view.PointerEvent("pointermove", at));
  const pointed = shown();
  svg.dispatchEvent(new view.PointerEvent("pointerleave", {pointerType: "mouse"}));
  const left = shown(), read = [];
  for (const key of ["ArrowRight", "ArrowDown", "ArrowUp"]) {
    plot.dispatchEvent(new view.KeyboardEvent("keydown", {key, bubbles: true}));
    read.push(page.getElementById("reading").textContent);
  }
  plot.dispatchEvent(new view.KeyboardEvent("keydown", {key: "Escape", bubbles: true}));
  return {before, pointed, left, read, escaped: shown(), focusable: plot.tabIndex, name: plot.ariaLabel};
};
const check = async frame => {
  const view = frame.contentWindow, script = frame.contentDocument.createElement("script");
  script.textContent = await (await fetch("axe.min.js")).text();
  frame.contentDocument.head.append(script);
  const found = await view.axe.run(view.document);
  return found.violations.map(one => `${one.id}: ${one.nodes.map(node => node.html.slice(0, 200)).join(" | ")}`);
};
addEventListener("load", async () => {
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const own = measure(frame);
    own.used = use(frame);
    own.violations = CHECK ? await check(frame) : [];
    found.push(own);
  }
  document.body.dataset.measured = JSON.stringify(found);
});
</script>
""".replace("CHECK", "true" if AXE else "false")


class Server(socketserver.ThreadingTCPServer):
    """Serves one folder and remembers what was asked for."""

    allow_reuse_address = True
    asked: list[str]


@pytest.fixture(scope="module")
def folder(compared_project: Path, odd_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pages, and one that shows both in frames of several widths."""
    project, folder = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("browser")
    shutil.copytree(compared_project, project, dirs_exist_ok=True)
    enrich(project)
    evaluation = str(project / "evaluations" / "quick")
    assert main(["compare", evaluation, "--results", evaluation, "--html", str(folder / "page.html")]) == 0
    odd = ["--by", "run", "--results", str(odd_project / "evaluations" / "odd"), "--html", str(folder / "odd.html")]
    assert main(["compare", str(odd_project / "runs"), *odd]) == 0
    frames = "".join(
        f'<iframe style="border:0" width="{width}" height="900" src="{page}.html"></iframe>' for page, width in PAGES
    )
    (folder / "frames.html").write_text(f"<!doctype html><body>{frames}{MEASURE}</body>", encoding="utf-8")
    if AXE is not None and AXE.origin is not None:
        shutil.copy(Path(AXE.origin).with_name("axe.min.js"), folder)
    return folder


def enrich(project: Path) -> None:
    """Add students before training to the results, constants and a collapse to the metrics, and layers to a run."""
    evaluation = project / "evaluations" / "quick"
    rows = read_rows(evaluation)
    change = {"role": "initial", "export": "initial", "share": 0.0}
    initial = [
        ResultRow(**{**vars(row), **change, "model": f"{row.model} initial", "value": row.value - 0.1})
        for row in rows
        if row.export == "final"
    ]
    write_rows(evaluation, [*rows, *initial])
    blocks = ["embeddings", *range(12)]
    similarities = {"student": [[abs(row - column) / 12 for column in range(13)] for row in range(13)]}
    report = {"export": "final", "teacher": "teacher", "sequences": 40, "tokens": 4096, "heads": [], "errors": []}
    report |= {"teacher_blocks": blocks, "student_blocks": blocks, "pairs": [[3, 3]], "dominant": {}}
    report |= {"cka": similarities, "cka_without_dominant": similarities}
    (project / "runs" / "tiny" / "hidden_mse-43" / "layers.json").write_text(json.dumps(report))
    for path in project.glob("runs/*/*/metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            if "held_out/loss" in line:
                line |= {"held_out/hidden_mse": line["held_out/loss"], "constant/hidden_mse": 0.9, "constant/loss": 0.9}
                line |= {"check/student_rank": 1.25, "check/teacher_rank": 20.06}
                line |= {"finding/student_rank": 1} if "hidden_mse-45" in str(path) else {}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, text: str, *arguments: object) -> None:
            self.server.asked.append(self.path)  # type: ignore[attr-defined]

    with Server(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


class Measured(NamedTuple):
    """What was found in each frame, and the colour scheme."""

    scheme: str
    frames: list[dict[str, Any]]


def chromium(tmp_path: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *arguments]
    environment = {**os.environ, "HOME": str(tmp_path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True, env=environment).stdout


@pytest.fixture(scope="module", params=["light", "dark"])
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, server: Server) -> Measured:
    """What is found in each frame of `PAGES`, with the colour scheme that the reader prefers."""
    server.asked.clear()
    dark = ["--blink-settings=preferredColorScheme=0"] if request.param == "dark" else []
    address = f"http://127.0.0.1:{server.server_address[1]}/frames.html"
    dom = chromium(tmp_path_factory.mktemp("profile"), "--virtual-time-budget=30000", *dark, "--dump-dom", address)
    text = dom.partition('data-measured="')[2].partition('"')[0]
    return Measured(request.param, json.loads(html.unescape(text)))


def test_nothing_is_cut_off_and_texts_can_be_read(measured: Measured) -> None:
    for (page, width), found in zip(PAGES, measured.frames, strict=True):
        where = f"{page} at {width} pixels"
        assert found["width"] == width
        assert found["wide"] == [], where
        assert found["scroll"] == width, f"{where} is wider than the screen"
        assert found["outside"] == [], f"parts of a plot are cut off: {where}"
        assert found["overlapping"] == 0, f"words of a plot cover each other: {where}"
        assert found["covered"] == 0, f"points of a plot cover each other: {where}"
        assert found["smallest"] >= 9.5, where
        assert len(found["plots"]) == (10 if page == "page" else 3)
        assert min(found["plots"]) > {360: 300, 768: 300, 1280: 320}[width], where


def test_it_follows_the_night(measured: Measured) -> None:
    expected = {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 22, 28)"}[measured.scheme]
    assert {found["background"] for found in measured.frames} == {expected}


@pytest.mark.skipif(AXE is None, reason="axe-core is missing: pip install --no-deps axe-playwright-python")
def test_axe_finds_nothing(measured: Measured) -> None:
    for (page, width), found in zip(PAGES, measured.frames, strict=True):
        assert found["violations"] == [], f"{page} at {width} pixels, {measured.scheme}"


def test_pointer_and_keyboard_show_values(measured: Measured) -> None:
    for (page, width), found in zip(PAGES, measured.frames, strict=True):
        used = found["used"]
        assert used["before"] is used["left"] is used["escaped"] is None
        assert used["focusable"] == 0
        if page == "page":
            assert used["name"] == "sentiment accuracy. Arrow keys read the values."
            label, text = used["pointed"]
            assert label == "hidden_mse"
            assert re.fullmatch(r"0\.71\d \[0\.\d{3}, 0\.\d{3}\]", text), width
            assert used["read"][0] == f"{label}: {text}"
            assert used["read"][1].startswith("attention_mse: 0.66")
            assert used["read"][2] == used["read"][0]


def test_it_asks_for_nothing_else(measured: Measured, server: Server) -> None:
    assert [found["fetched"] for found in measured.frames] == [[]] * len(PAGES)
    own = {"/frames.html", "/page.html", "/odd.html", "/axe.min.js"}
    assert {path for path in server.asked if "favicon" not in path} <= own


def test_it_opens_from_a_file_and_prints(tmp_path: Path, folder: Path) -> None:
    page = (folder / "page.html").as_uri()
    screenshot, printed = tmp_path / "wide.png", tmp_path / "page.pdf"
    chromium(tmp_path, "--window-size=1280,1600", f"--screenshot={screenshot}", page)
    assert struct.unpack(">II", screenshot.read_bytes()[16:24]) == (1280, 1600)
    assert screenshot.stat().st_size > 50_000, "there is hardly anything on it"
    chromium(tmp_path, f"--print-to-pdf={printed}", "--no-pdf-header-footer", page)
    content = printed.read_bytes()
    assert content.startswith(b"%PDF")
    assert 1 <= content.count(b"/Type /Page\n") + content.count(b"/Type /Page/") <= 8
