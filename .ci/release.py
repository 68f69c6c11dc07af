"""Set the version of all packages, or build them for a release. Nothing is uploaded.

    python .ci/release.py version 0.2.0    # pyproject.toml files, CITATION.cff, heading of CHANGELOG.md
    python .ci/release.py build            # dist/: source archives, wheels, SHA256SUMS

`make release` builds, checks the wheels, installs them into new environments and runs a smoke test there.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_RELEASED = "## Unreleased"


def projects(root: Path) -> list[Path]:
    """List the folders of all packages, kdcore first."""
    return [root, *sorted(file.parent for file in root.glob("plugins/*/pyproject.toml")), root / "launch"]


def version_of(folder: Path) -> str:
    """Return the version that a package's pyproject.toml states."""
    return str(tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def set_version(root: Path, version: str, today: datetime.date) -> None:
    """Write a version into all packages, the citation and the changelog.

    Args:
        root: the repository.
        version: `MAJOR.MINOR.PATCH`.
        today: the date of the release.

    Raises:
        SystemExit: the version has another form, or the changelog has no unreleased changes.
    """
    numbers = re.fullmatch(r"(\d+)\.(\d+)\.\d+", version)
    if not numbers:
        sys.exit(f"error: not a version (found {version}, expected MAJOR.MINOR.PATCH)")
    changelog = root / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8")
    if NOT_RELEASED not in text:
        sys.exit(f"error: {changelog.name}: no changes to release (expected a heading `{NOT_RELEASED}`)")
    changelog.write_text(re.sub(rf"{NOT_RELEASED}.*", f"## {version} ({today})", text, count=1), encoding="utf-8")
    major, minor = int(numbers[1]), int(numbers[2])
    fits = f">={major}.{minor},<{major}.{minor + 1}"
    for folder in projects(root):
        file = folder / "pyproject.toml"
        text = re.sub(r'^version = ".*"$', f'version = "{version}"', file.read_text(encoding="utf-8"), flags=re.M)
        file.write_text(re.sub(r'"(kdcore-[\w-]+)>=[\d.]+,<[\d.]+"', rf'"\1{fits}"', text), encoding="utf-8")
    citation = root / "CITATION.cff"
    text = citation.read_text(encoding="utf-8")
    citation.write_text(re.sub(r"^version: .*$", f"version: {version}", text, flags=re.M), encoding="utf-8")
    print(f"version {version}. Update the first paragraph of docs/api-stability.md by hand.")


def build(root: Path, dist: Path) -> None:
    """Build a source archive and a wheel of each package; the archive has to yield the same wheel.

    Args:
        root: the repository.
        dist: the folder, which is emptied first.

    Raises:
        SystemExit: versions differ, the changelog has no section for the version, or an archive is incomplete.
    """
    version = version_of(root)
    other = [folder.name for folder in projects(root) if version_of(folder) != version]
    if other:
        sys.exit(f"error: versions differ (expected {version} of {', '.join(other)})")
    if not re.search(rf"^## {re.escape(version)}\b", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.M):
        sys.exit(f"error: CHANGELOG.md: no section for this version (expected `## {version}`)")
    shutil.rmtree(dist, ignore_errors=True)
    for folder in projects(root):
        _hatchling(folder, dist)
    with tempfile.TemporaryDirectory() as work:
        for archive in sorted(dist.glob("*.tar.gz")):
            with tarfile.open(archive) as file:
                file.extractall(work, filter="data")
            stem = archive.name.removesuffix(".tar.gz")
            _hatchling(Path(work) / stem, Path(work) / "dist", "--target", "wheel")
            (again,) = (Path(work) / "dist").glob(f"{stem}-*.whl")
            if _contents(again) != _contents(dist / again.name):
                sys.exit(f"error: {archive.name}: does not yield the files of {again.name}")
    files = sorted([*dist.glob("*.whl"), *dist.glob("*.tar.gz")])
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (dist / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
    print(f"{dist}: {len(files)} files of version {version}")


def _hatchling(project: Path, dist: Path, *options: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(dist), *options]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {project.name} cannot be built: {done.stderr.strip()}")


def _contents(wheel: Path) -> dict[str, int]:
    with zipfile.ZipFile(wheel) as file:
        return {one.filename: one.CRC for one in file.infolist()}


def main() -> None:
    """Run the action."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("version").add_argument("version")
    actions.add_parser("build").add_argument("--dist", type=Path, default=ROOT / "dist", metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.action == "version":
        set_version(ROOT, arguments.version, datetime.date.today())
    else:
        build(ROOT, arguments.dist)


if __name__ == "__main__":
    main()
