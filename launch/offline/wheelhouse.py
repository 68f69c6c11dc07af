"""Collect the wheels that a machine without a package index lacks: `make wheelhouse`.

    python launch/offline/wheelhouse.py --python-version 3.12 --platform manylinux_2_28_x86_64 --installed freeze.txt

pip resolves the requirements and downloads the wheels. It uses the environment markers of this interpreter, which may
differ from the target's, so the result is checked against the target's markers and missing wheels are added. Installed
packages are represented by empty wheels of the same version, so that pip cannot replace them. Their requirements are
assumed to be installed on the target.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from kdcore.errors import InfrastructureError, InputError, KdcoreError, Problem

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = (ROOT, *sorted(file.parent for file in ROOT.glob("plugins/*/pyproject.toml")), ROOT / "launch")
SOURCES_ONLY = ("deepspeed",)
"""Packages without wheels on the index, which are built here."""
MANYLINUX_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_ROUNDS = 5


class Target:
    """The machine that the wheels are for.

    Args:
        python_version: Python version, such as `3.12`.
        platform: platform tag, such as `manylinux_2_28_x86_64`, which requires glibc 2.28 or newer.

    Raises:
        InputError: an argument does not have this form.
    """

    def __init__(self, python_version: str, platform: str) -> None:
        if not re.fullmatch(r"3\.\d+", python_version):
            raise InputError(f"not a Python version (found {python_version}, expected one like 3.12)")
        found = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", platform)
        if not found:
            raise InputError(f"not a wheel platform tag (found {platform}, expected one like manylinux_2_28_x86_64)")
        self.python_version = python_version
        minor, self.machine = int(found[1]), found[2]
        self.platforms = [f"manylinux_2_{number}_{self.machine}" for number in range(minor, 4, -1)]
        self.platforms += [f"{name}_{self.machine}" for number, name in MANYLINUX_NAMES.items() if number <= minor]

    @property
    def tag(self) -> str:
        """The tag that pip prefers to all others on this machine."""
        python = "cp" + self.python_version.replace(".", "")
        return f"{python}-{python}-{self.platforms[0]}"

    def environment(self, extra: str) -> dict[str, str]:
        """Return the values of environment markers."""
        return {
            "extra": extra,
            "implementation_name": "cpython",
            "implementation_version": f"{self.python_version}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python_version}.0",
            "python_version": self.python_version,
            "sys_platform": "linux",
        }

    def needs(self, wheel: Path, extras: Iterable[str] = ()) -> list[Requirement]:
        """List what a wheel requires on this machine, with these extras."""
        with ZipFile(wheel) as archive:
            (name,) = (one for one in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", one))
            lines = HeaderParser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []
        requirements, environments = map(Requirement, lines), [self.environment(extra) for extra in ("", *extras)]
        return [one for one in requirements if not one.marker or any(map(one.marker.evaluate, environments))]


def read_freeze(file: Path) -> dict[str, Version]:
    """Read the versions of packages by canonical name from the output of `pip freeze`; skip editable packages.

    Raises:
        InputError: a line has no version.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        hint = "pass the output of `python -m pip freeze` on the machine (make wheelhouse INSTALLED=FILE)"
        raise InputError(f"cannot be read ({error})", where=str(file), hint=hint) from error
    found: dict[str, Version] = {}
    for number, line in enumerate(lines, 1):
        text = line.split(" #")[0].strip()
        if not text or text.startswith(("#", "-")):
            continue
        try:
            requirement = Requirement(text)
            if requirement.url:
                version = parse_wheel_filename(requirement.url.split("#")[0].rpartition("/")[2])[1]
            else:
                (version,) = (Version(one.version) for one in requirement.specifier if one.operator == "==")
        except (InvalidRequirement, InvalidVersion, ValueError) as error:
            raise InputError(
                f"the line contains no package version (found {text}, expected NAME==VERSION)",
                where=f"{file}:{number}",
                hint="`python -m pip list --format=freeze` lists only names and versions",
            ) from error
        found[canonicalize_name(requirement.name)] = version
    return found


def pip(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter's pip."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=False, env=os.environ | variables | {"LC_ALL": "C"}
    )


def build(installed: Mapping[str, Version], folder: Path) -> None:
    """Build the wheels of kdcore, of its plugins, and of required packages without wheels on the index.

    Raises:
        InfrastructureError: a wheel cannot be built.
    """
    done = pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, *PROJECTS)
    if done.returncode:
        raise InfrastructureError(f"the wheels of kdcore cannot be built: {last_error(done.stderr)}")
    required = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    for requirement in map(Requirement, required):
        name = requirement.name
        if name in SOURCES_ONLY and name not in installed:
            options = ("--quiet", "--no-deps", "--no-binary", name, "--constraint", ROOT / "constraints.txt")
            done = pip("wheel", *options, "--wheel-dir", folder, str(requirement), DS_BUILD_OPS="0")
            if done.returncode:
                raise InfrastructureError(f"the wheel of {name} cannot be built: {last_error(done.stderr)}")


def last_error(text: str) -> str:
    """Return the last line of pip's errors."""
    lines = [line for line in text.splitlines() if line.startswith("ERROR: ")]
    return (lines or text.strip().splitlines() or ["no message"])[-1].removeprefix("ERROR: ")


def find_misfits(installed: Mapping[str, Version], file: Path, target: Target, folder: Path) -> dict[str, str]:
    """Compare installed versions with the requirements of the built wheels.

    Args:
        installed: versions of installed packages by canonical name.
        file: the file that `installed` was read from.
        target: the target machine.
        folder: the wheels of kdcore and of its packages.

    Returns:
        The packages that cannot be installed, including packages that require one of them, with the reasons.

    Raises:
        InputError: kdcore itself cannot be installed.
    """
    needs = {str(parse_wheel_filename(one.name)[0]): target.needs(one) for one in sorted(folder.glob("kdcore*.whl"))}
    found: dict[str, str] = {}
    problems = []
    for name, requirements in needs.items():
        for one in requirements:
            version = installed.get(canonicalize_name(one.name))
            if version and not one.specifier.contains(version, prereleases=True):
                found[name] = f"found {one.name} {version}, {name} expected {one}"
                if name == "kdcore":
                    what = f"an installed package is incompatible ({found[name]})"
                    hint = f"install another {one.name} there, or delete its line, so that the wheelhouse contains one"
                    problems.append(Problem(what, str(file), hint=hint))
    if problems:
        raise InputError(problems)
    for _ in needs:
        for name, requirements in needs.items():
            for one in requirements:
                if canonicalize_name(one.name) in found and name not in found:
                    found[name] = f"requires {one.name}, which is left out"
    return found


def write_stubs(installed: Mapping[str, Version], target: Target, folder: Path) -> None:
    """Write an empty wheel for each installed package; pip prefers it to the index's wheel of the same version."""
    folder.mkdir()
    for name, version in installed.items():
        stem = f"{name.replace('-', '_')}-{version}"
        with ZipFile(folder / f"{stem}-999-{target.tag}.whl", "w") as archive:
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            archive.writestr(f"{stem}.dist-info/METADATA", text)
            archive.writestr(f"{stem}.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {target.tag}\n")
            archive.writestr(f"{stem}.dist-info/RECORD", "")


def pinned(installed: Mapping[str, Version]) -> list[str]:
    """List the tested versions of packages that are not installed, as constraints."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return [str(one) for one in tested if canonicalize_name(one.name) not in installed]


def download(roots: list[str], installed: Mapping[str, Version], target: Target, work: Path, file: Path) -> Path:
    """Resolve and download `roots` with their requirements, in the tested versions if these are compatible.

    Args:
        roots: requirements.
        installed: packages that keep their version.
        target: the target machine.
        work: a folder that contains the folders `built` and `stubs`.
        file: the file that `installed` was read from.

    Returns:
        The folder of the wheels.

    Raises:
        InputError: the installed packages rule out every solution.
        InfrastructureError: pip fails for another reason.
    """
    folder = work / "found"
    options = ["--quiet", "--only-binary", ":all:", "--implementation", "cp"]
    options += ["--python-version", target.python_version]
    for platform in target.platforms:
        options += ["--platform", platform]
    kept = [f"{name}=={version}" for name, version in installed.items()]
    for constraints in (kept + pinned(installed), kept):
        shutil.rmtree(folder, ignore_errors=True)
        (work / "constraints.txt").write_text("\n".join(constraints), encoding="utf-8")
        links = ("--find-links", work / "built", "--find-links", work / "stubs")
        given = ("--constraint", work / "constraints.txt")
        done = pip("download", *options, *links, *given, "--dest", folder, *roots)
        if not done.returncode:
            return folder
    conflict = re.search(r"The conflict is caused by:\n(.*?)\n\n", done.stdout + done.stderr, re.DOTALL)
    if conflict:
        lines = [" ".join(line.split()) for line in conflict[1].splitlines()]
        raise InputError(
            f"the installed packages are incompatible with the requirements of kdcore: {'; '.join(lines)}",
            where=str(file),
            hint="delete the line of a package that the wheelhouse may replace",
        )
    raise InfrastructureError(f"pip cannot collect the wheels: {last_error(done.stderr)}")


def follow(
    roots: Iterable[str], wheels: Mapping[str, Path], installed: Mapping[str, Version], target: Target
) -> tuple[set[str], set[str]]:
    """Follow all requirements of `roots` recursively, using the markers of the target.

    Args:
        roots: requirements.
        wheels: wheels by canonical name.
        installed: versions of installed packages by canonical name.
        target: the target machine.

    Returns:
        The names of the required wheels, and the requirements that neither wheels nor installed packages meet.
    """
    queue, seen = [Requirement(root) for root in roots], set()
    needed: set[str] = set()
    missing: set[str] = set()
    while queue:
        one = queue.pop()
        one.marker = None
        name, key = canonicalize_name(one.name), str(one)
        if key in seen:
            continue
        seen.add(key)
        version = installed.get(name) or (parse_wheel_filename(wheels[name].name)[1] if name in wheels else None)
        if version is None or not one.specifier.contains(version, prereleases=True):
            missing.add(key)
        elif name not in installed:
            needed.add(name)
            queue += target.needs(wheels[name], one.extras)
    return needed, missing


@dataclass(frozen=True)
class Wheelhouse:
    """The wheels to copy to the target.

    Attributes:
        wheels: wheels to install.
        left_out: wheels of this repository that are copied but not installed, with the reasons.
    """

    wheels: list[Path]
    left_out: dict[Path, str]


def collect(installed: Mapping[str, Version], file: Path, target: Target, limit: float, work: Path) -> Wheelhouse:
    """Build and download all wheels that the target lacks.

    Args:
        installed: packages of the target.
        file: the file that `installed` was read from.
        target: the target machine.
        limit: maximum total size of the wheels in MB. kdcore itself is always collected. Its packages follow, ordered
            by the size of their requirements.
        work: an empty folder.

    Raises:
        InputError: the installed packages are incompatible.
        InfrastructureError: pip cannot build or download a wheel.
    """
    kept = {name: version for name, version in installed.items() if not re.match(r"kdcore($|-)", name)}
    build(kept, work / "built")
    built = {str(parse_wheel_filename(wheel.name)[0]): wheel for wheel in sorted((work / "built").glob("kdcore*.whl"))}
    misfits = find_misfits(kept, file, target, work / "built")
    write_stubs(kept, target, work / "stubs")
    roots = [name for name in built if name not in misfits]
    for _ in range(_ROUNDS):
        folder = download(roots, kept, target, work, file)
        wheels = {str(parse_wheel_filename(wheel.name)[0]): wheel for wheel in folder.glob("*.whl")}
        _, missing = follow(roots, wheels, kept, target)
        if not missing:
            break
        roots += sorted(missing)
    else:
        raise InfrastructureError(f"pip left requirements unresolved: {', '.join(sorted(missing))}")

    def megabytes(names: Iterable[str]) -> float:
        return sum(wheels[name].stat().st_size for name in names) / 1e6

    chosen, left_out = follow(["kdcore"], wheels, kept, target)[0], {built[name]: why for name, why in misfits.items()}
    needed = {name: follow([name], wheels, kept, target)[0] for name in built if name not in misfits}
    for name, names in sorted(needed.items(), key=lambda item: megabytes(item[1])):
        if megabytes(chosen | names) <= limit:
            chosen |= names
        elif name not in chosen:
            more = megabytes(names - chosen)
            left_out[built[name]] = f"adds {more:.1f} MB with its requirements, limit {limit:g} MB"
    return Wheelhouse([wheels[name] for name in sorted(chosen)], left_out)


def publish(found: Wheelhouse, output: Path) -> None:
    """Copy the wheels to a folder, with `requirements.txt`; files from an earlier call are removed.

    Raises:
        InputError: the folder contains other files.
    """
    if output.exists() and any(one.suffix != ".whl" and one.name != "requirements.txt" for one in output.iterdir()):
        raise InputError("the folder contains files other than wheels", where=str(output), hint="choose a new folder")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    lines = []
    for wheel in found.wheels:
        name, version, *_ = parse_wheel_filename(wheel.name)
        lines.append(f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    for wheel in (*found.wheels, *found.left_out):
        shutil.copy(wheel, output)
    (output / "requirements.txt").write_text("".join(lines), encoding="utf-8")


def main() -> int:
    """Collect the wheels and print the command that installs them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python-version", required=True, metavar="3.12")
    parser.add_argument("--platform", required=True, metavar="manylinux_2_28_x86_64")
    parser.add_argument("--installed", required=True, type=Path, metavar="FILE", help="output of `pip freeze` there")
    parser.add_argument("--output", type=Path, default=ROOT / "wheelhouse", metavar="FOLDER")
    parser.add_argument("--limit", type=float, default=60.0, metavar="MB", help="size of all wheels (default: 60)")
    arguments = parser.parse_args()
    try:
        target, installed = Target(arguments.python_version, arguments.platform), read_freeze(arguments.installed)
        with tempfile.TemporaryDirectory() as work:
            found = collect(installed, arguments.installed, target, arguments.limit, Path(work))
            publish(found, arguments.output)
    except KdcoreError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    size = sum(wheel.stat().st_size for wheel in arguments.output.glob("*.whl")) / 1e6
    for wheel, why in found.left_out.items():
        print(f"left out: {parse_wheel_filename(wheel.name)[0]} ({why})")
    folder = arguments.output.name
    print(
        f"{arguments.output}: {len(found.wheels)} packages to install, {size:.1f} MB. Install them on the machine with"
    )
    options = "--no-index --no-deps --require-hashes"
    print(f"python -m pip install {options} --find-links {folder} -r {folder}/requirements.txt")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
