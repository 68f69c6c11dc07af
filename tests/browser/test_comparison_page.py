"""The comparison page in a real headless browser: wide, on a phone, printed, and without a network."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socketserver
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

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

# Measures the page from inside: what is wider than the screen, how large texts of plots are, what was fetched.
MEASURE = """
<script>
addEventListener("load", () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument, view = frame.contentWindow;
  const texts = [...page.querySelectorAll("svg text")].map(text => text.getBoundingClientRect().height);
  const wide = [...page.querySelectorAll("main *, header *")].filter(element =>
    element.getBoundingClientRect().right > view.innerWidth + 1 && !element.closest(".scroll"));
  const plots = [...page.querySelectorAll("svg[role=img]")].map(plot => plot.getBoundingClientRect().width);
  const outside = [...page.querySelectorAll("svg[role=img]")].flatMap(plot => [...plot.querySelectorAll("text")].filter(
    text => { const a = text.getBoundingClientRect(), b = plot.getBoundingClientRect();
              return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1; }));
  const overlapping = [...page.querySelectorAll("svg[role=img]")].flatMap(plot => {
    const boxes = [...plot.querySelectorAll("text")].map(text => text.getBoundingClientRect());
    return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b =>
      a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1)); });
  document.body.dataset.measured = JSON.stringify({
    scroll: page.documentElement.scrollWidth, width: view.innerWidth, smallest: Math.min(...texts),
    wide: wide.map(element => element.outerHTML.slice(0, 80)), plots, outside: outside.map(text => text.textContent),
    overlapping: overlapping.length, background: view.getComputedStyle(page.body).backgroundColor,
    fetched: view.performance.getEntriesByType("resource").map(entry => entry.name)});
});
</script>
"""


class Server(socketserver.ThreadingTCPServer):
    """Serves one folder and remembers what was asked for."""

    allow_reuse_address = True
    asked: list[str]


@pytest.fixture(scope="module")
def folder(compared_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    evaluation = str(compared_project / "evaluations" / "quick")
    assert main(["compare", evaluation, "--results", evaluation, "--html", str(folder / "page.html")]) == 0
    for width in (390, 1200):
        frame = f'<iframe style="border:0" width="{width}" height="900" src="page.html"></iframe>'
        (folder / f"frame-{width}.html").write_text(f"<!doctype html><body>{frame}{MEASURE}</body>", encoding="utf-8")
    return folder


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


def chromium(tmp_path: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *arguments]
    environment = {**os.environ, "HOME": str(tmp_path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True, env=environment).stdout


def measured(tmp_path: Path, server: Server, width: int, *arguments: str) -> dict[str, object]:
    address = f"http://127.0.0.1:{server.server_address[1]}/frame-{width}.html"
    dom = chromium(tmp_path, "--virtual-time-budget=5000", *arguments, "--dump-dom", address)
    text = dom.partition('data-measured="')[2].partition('"')[0].replace("&quot;", '"')
    found: dict[str, object] = json.loads(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return found


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_cut_off_and_texts_can_be_read(width: int, tmp_path: Path, server: Server) -> None:
    found = measured(tmp_path, server, width)
    assert found["width"] == width
    assert found["wide"] == []
    assert found["scroll"] == width, "the page is wider than the screen"
    assert found["outside"] == [], "words of a plot are cut off"
    assert found["overlapping"] == 0, "words of a plot cover each other"
    assert float(str(found["smallest"])) >= 9.5
    plots = found["plots"]
    assert isinstance(plots, list)
    assert len(plots) == 9
    assert min(plots) > (0.85 if width == 390 else 0.3) * width


def test_it_follows_the_night(tmp_path: Path, server: Server) -> None:
    day = measured(tmp_path, server, 390)
    night = measured(tmp_path / "night", server, 390, "--blink-settings=preferredColorScheme=0")
    assert day["background"] == "rgb(255, 255, 255)"
    assert night["background"] == "rgb(18, 22, 28)"


def test_it_asks_for_nothing_else(tmp_path: Path, server: Server) -> None:
    server.asked.clear()
    found = measured(tmp_path, server, 1200)
    assert found["fetched"] == []
    assert {path for path in server.asked if "favicon" not in path} == {"/frame-1200.html", "/page.html"}


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
