"""Files of the project about itself agree with the code: hooks, CI, changelog, citation."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
YAML_FILES = [".pre-commit-config.yaml", "CITATION.cff", *sorted(map(str, (ROOT / ".github").rglob("*.yml")))]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_hook_before_a_commit_runs_make_lint() -> None:
    ((hook,),) = ([*repository["hooks"]] for repository in read(".pre-commit-config.yaml")["repos"])
    assert (hook["entry"], hook["language"], hook["pass_filenames"]) == ("make lint", "system", False)


def test_the_workflow_runs_what_ci_run_runs_and_marks_unverified_versions() -> None:
    job = read(".github/workflows/ci.yml")["jobs"]["ci"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    versions = {row["python"]: row["verified"] for row in job["strategy"]["matrix"]["include"]}
    assert versions == {"3.11": True, "3.12": False, "3.13": False}
    assert job["continue-on-error"] == "${{ !matrix.verified }}"


@pytest.mark.parametrize("name", YAML_FILES, ids=lambda name: Path(name).name)
def test_files_of_yaml_are_maps(name: str) -> None:
    assert isinstance(read(name), dict)


def test_the_citation_states_the_version_and_licence_of_the_package() -> None:
    citation = read("CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_the_tested_versions_lie_within_the_declared_ranges() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = {one.name.lower(): one for line in pins if line[:1] != "#" for one in [Requirement(line)]}
    outside, compared = [], 0
    for file in [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml"), ROOT / "launch" / "pyproject.toml"]:
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        extras = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
        for line in [*project["dependencies"], *extras]:
            declared, pinned = Requirement(line), tested.get(Requirement(line).name.lower())
            if pinned is not None:
                (exact,) = pinned.specifier
                compared += 1
                if not declared.specifier.contains(exact.version):
                    outside.append(f"{project['name']}: {line} (tested: {exact.version})")
    assert compared > 50
    assert not outside


def test_the_guide_lists_the_suites_of_ci_run_and_of_the_makefile() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    suites = re.findall(r"^\| `make (\S+)` \|", guide, re.MULTILINE)
    (ran,) = re.findall(r"^for name in (.*); do$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert suites[: len(ran.split())] == ran.split()
    targets = re.findall(r"^(test\S*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(suites) == set(targets)


def test_every_deprecated_name_of_the_changelog_is_on_the_page_about_the_api() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "api-stability.md").read_text(encoding="utf-8").partition("## Deprecation")[2]
    words = set(re.findall(r"\w+", page.partition("\n## ")[0]))
    section = changelog.partition("### Deprecated")[2].partition("### ")[0].partition("):")[2]
    names = re.findall(r"`([\w.]+)`", section)
    assert len(names) == 21
    assert all(name.split(".")[-1] in words for name in names)


def test_every_page_is_in_the_navigation_and_every_public_name_in_the_reference() -> None:
    pages = {file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.md")}
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = {
        f"{line}.md"
        for block in re.findall(r"^```{toctree}\n(.*?)^```", index, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        if not line.startswith(":")
    }
    assert pages - {"index.md"} <= listed
    stub = (ROOT / "kdcore" / "__init__.pyi").read_text(encoding="utf-8")
    stage = (ROOT / "docs" / "site" / "stage.py").read_text(encoding="utf-8")
    starts = re.findall(r'"([\w.]+)"', stage.partition("API_PAGES = {")[2].partition("\n}")[0])
    modules = set(re.findall(r"^from \.([\w.]+) import", stub, re.MULTILINE))
    assert len(modules) > 30
    assert all(any(f"{module}.".startswith(f"{start}.") for start in starts) for module in modules), "see API_PAGES"


def test_links_of_the_projects_own_pages_lead_to_files() -> None:
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / target).exists(), f"{name}: {target}"
