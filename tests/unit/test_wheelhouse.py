"""What `make wheelhouse` makes of a machine's packages, without a package index."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from packaging.version import Version

from kdcore.errors import InputError

SCRIPT = Path(__file__).parents[2] / "launch" / "offline" / "wheelhouse.py"


@pytest.fixture(scope="module")
def house() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT), run_name="wheelhouse")


@pytest.fixture
def target(house: dict[str, Any]) -> Any:
    return house["Target"]("3.12", "manylinux_2_28_x86_64")


def write_wheel(folder: Path, name: str, *requires: str, extras: tuple[str, ...] = ()) -> Path:
    stem = f"{name}-1.0"
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        "Version: 1.0",
        *(f"Provides-Extra: {extra}" for extra in extras),
    ]
    lines += [f"Requires-Dist: {one}" for one in requires]
    path = folder / f"{stem}-py3-none-any.whl"
    with ZipFile(path, "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{name}/_vendor/other-2.0.dist-info/METADATA", "Name: other\n")
    return path


def test_versions_are_read_from_pip_freeze(house: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "installed.txt"
    lines = (
        "# frozen",
        "torch==2.11.0+cu130",
        "ruamel.yaml==0.18.10  # comment",
        "-e git+https://host/kdcore#egg=kdcore",
        "Jinja2 @ file:///wheels/jinja2-3.1.6-py3-none-any.whl#sha256=00",
        "",
    )
    file.write_text("\n".join(lines), encoding="utf-8")
    assert house["read_freeze"](file) == {
        "torch": Version("2.11.0+cu130"),
        "ruamel-yaml": Version("0.18.10"),
        "jinja2": Version("3.1.6"),
    }


@pytest.mark.parametrize("line", ["numpy @ file:///croot/numpy/work", "numpy>=2", "numpy", "nonsense !"])
def test_a_line_without_a_version_is_refused_with_its_number(house: dict[str, Any], tmp_path: Path, line: str) -> None:
    (tmp_path / "installed.txt").write_text(f"torch==2.13.0\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"installed.txt:2: .*expected NAME==VERSION"):
        house["read_freeze"](tmp_path / "installed.txt")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("3.12", "win_amd64"), "found win_amd64, expected one like manylinux_2_28_x86_64"),
        (("python3", "manylinux_2_28_x86_64"), "found python3, expected one like 3.12"),
        (("", "manylinux_2_28_x86_64"), "expected one like 3.12"),
    ],
)
def test_an_unknown_target_is_refused(tmp_path: Path, arguments: tuple[str, str], expected: str) -> None:
    python, platform = arguments
    options = ["--python-version", python, "--platform", platform, "--installed", str(tmp_path / "none.txt")]
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_older_glibc_wheels_fit(target: Any) -> None:
    expected = [*(f"manylinux_2_{number}_x86_64" for number in range(28, 4, -1))]
    assert target.platforms == [*expected, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]


def test_an_installed_version_out_of_range_is_refused(house: dict[str, Any], target: Any, tmp_path: Path) -> None:
    write_wheel(tmp_path, "kdcore", "transformers>=5.17,<6", "torch>=2.6,<3", "numpy>=2")
    installed = {"transformers": Version("4.57.6"), "torch": Version("2.11.0+cu130"), "numpy": Version("1.26.4")}
    with pytest.raises(InputError) as caught:
        house["find_misfits"](installed, Path("installed.txt"), target, tmp_path)
    assert [str(problem).splitlines()[0] for problem in caught.value.problems] == [
        "installed.txt: an installed package is incompatible (found transformers 4.57.6, kdcore expected "
        "transformers<6,>=5.17)",
        "installed.txt: an installed package is incompatible (found numpy 1.26.4, kdcore expected numpy>=2)",
    ]


def test_a_package_that_does_not_fit_is_left_out_with_those_that_require_it(
    house: dict[str, Any], target: Any, tmp_path: Path
) -> None:
    write_wheel(tmp_path, "kdcore", "transformers>=5.17,<6")
    write_wheel(tmp_path, "kdcore_above", "kdcore>=0.1", "kdcore-deberta>=0.1")
    write_wheel(tmp_path, "kdcore_deberta", "kdcore>=0.1", "transformers>=5.20,<6")
    write_wheel(tmp_path, "kdcore_other", "kdcore>=0.1", "absent")
    write_wheel(tmp_path, "kdcore_top", "kdcore-above")
    installed = {"transformers": Version("5.17.0")}
    assert house["find_misfits"](installed, Path("installed.txt"), target, tmp_path) == {
        "kdcore-deberta": "found transformers 5.17.0, kdcore-deberta expected transformers<6,>=5.20",
        "kdcore-above": "requires kdcore-deberta, which is left out",
        "kdcore-top": "requires kdcore-above, which is left out",
    }
    assert house["find_misfits"]({"transformers": Version("5.20.0")}, Path("f"), target, tmp_path) == {}


def test_requirements_are_followed_with_the_markers_of_the_target(
    house: dict[str, Any], target: Any, tmp_path: Path
) -> None:
    first = write_wheel(
        tmp_path,
        "first",
        'second[fast]; python_version == "3.12" and platform_machine == "x86_64"',
        'older; python_version < "3.12"',
        'windows; sys_platform == "win32"',
        'present>=2; extra == "all"',
        extras=("all",),
    )
    second = write_wheel(tmp_path, "second", 'third; extra == "fast"', "absent>1", extras=("fast",))
    wheels = {"first": first, "second": second, "third": write_wheel(tmp_path, "third")}
    wheels["unused"] = write_wheel(tmp_path, "unused")
    installed = {"present": Version("2.0+local")}
    assert house["follow"](["first[all]"], wheels, installed, target) == ({"first", "second", "third"}, {"absent>1"})
    assert house["follow"](["third>=2"], wheels, installed, target)[1] == {"third>=2"}
    assert house["follow"](["present"], wheels, {"present": Version("1")}, target) == (set(), set())


def test_other_files_are_never_removed(house: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("text", encoding="utf-8")
    with pytest.raises(InputError, match="contains files other than wheels"):
        house["publish"](house["Wheelhouse"]([], {}), tmp_path)
    assert (tmp_path / "thesis.txt").is_file()


def test_the_image_installs_with_the_printed_options() -> None:
    """docs/offline.md and the Apptainer definition give the command that the script prints."""
    root = SCRIPT.parents[2]
    command = (
        "-m pip install --no-index --no-deps --require-hashes --find-links wheelhouse -r wheelhouse/requirements.txt"
    )
    options = 'options = "--no-index --no-deps --require-hashes"'
    assert options in SCRIPT.read_text(encoding="utf-8")
    for file in ("docs/offline.md", "launch/offline/kdcore.def"):
        assert command in (root / file).read_text(encoding="utf-8"), file
