"""The built site: links, search without a network, phone and desktop. `make test-docs` builds it first."""

from __future__ import annotations

import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(__file__).parents[2] / "build" / "docs" / "html"
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
pytestmark = pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="the site is not built (make docs)")
WIDE = """
<script>
addEventListener("load", () => {
  const frame = document.querySelector("iframe");
  document.body.dataset.measured = frame.contentDocument.documentElement.scrollWidth + "/" + frame.clientWidth;
});
</script>
"""


class Links(HTMLParser):
    """Collect the anchors of a page, and what it links to or loads."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif tag in ("script", "img", "link", "iframe"):
            self.loaded |= {given[name] for name in ("src", "href") if name in given}


@pytest.fixture(scope="module")
def pages() -> dict[Path, Links]:
    return {file.resolve(): Links(file) for file in sorted(SITE.rglob("*.html"))}


def test_links_within_the_site_lead_to_pages_and_headings(pages: dict[Path, Links]) -> None:
    broken, checked = [], 0
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            anchors = pages[target].anchors if target in pages else set()
            checked += 1
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append(f"{file.relative_to(SITE.resolve())}: {link}")
    assert checked > 1000
    assert not broken


def test_pages_load_nothing_from_a_network(pages: dict[Path, Links]) -> None:
    loaded = {link for page in pages.values() for link in page.loaded}
    assert loaded
    assert not [link for link in loaded if urlsplit(link).scheme or urlsplit(link).netloc]


def dom(tmp_path: Path, address: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--allow-file-access-from-files", f"--user-data-dir={tmp_path}/p"]
    command += ["--virtual-time-budget=8000", "--dump-dom", address]
    environment = {**os.environ, "HOME": str(tmp_path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True, env=environment).stdout


@needs_chromium
@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("gradient caching", "recipes.html"),
        ("attention_pearson", "reference/components/loss.html"),
        ("resolve_pairs", "reference/python/losses.html"),
        ("conll", "tutorials/tagger.html"),
    ],
)
def test_search_works_from_a_disk(words: str, page: str, tmp_path: Path) -> None:
    found = dom(tmp_path, f"{(SITE / 'search.html').as_uri()}?q={words.replace(' ', '+')}")
    assert "Search finished" in found
    assert f'<a href="{page}' in found.partition("search-results")[2]


@needs_chromium
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("page", ["index.html", "recipes.html", "performance.html", "reference/components/loss.html"])
def test_no_page_is_wider_than_the_screen(page: str, width: int, tmp_path: Path) -> None:
    frame = f'<iframe style="border:0" width="{width}" height="900" src="{(SITE / page).resolve().as_uri()}"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!doctype html><body>{frame}{WIDE}</body>", encoding="utf-8")
    text = dom(tmp_path, (tmp_path / "frame.html").as_uri()).partition('data-measured="')[2].partition('"')[0]
    scroll, shown = map(int, text.split("/"))
    assert shown == width
    assert scroll <= shown
