"""Each file of a checkpoint, damaged in each way: named, and the newest good checkpoint taken instead."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import kdcore
from kdcore.commands.main import main
from kdcore.training.checkpoint import format as checkpoint_files
from kdcore.training.checkpoint.format import latest_checkpoint, problems_of

FILES = [
    "engine/mp_rank_00_model_states.pt",
    "engine/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "process-0.json",
    "process-0.safetensors",
    "state.json",
    "manifest.json",
]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def cut_to_nothing(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def zero(file: Path) -> None:
    content = bytearray(file.read_bytes())
    start = len(content) // 3
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    file.write_bytes(content)


def delete(file: Path) -> None:
    file.unlink()


@pytest.fixture
def run(small_recipe: Path) -> Callable[[], Path]:
    return lambda: kdcore.train(small_recipe, ["checkpoints.every=3", "training.zero_stage=1"]).folder


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(checkpoint_files.logger, "warning", found.append)
    return found


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def trained(kept: Path, tmp_path: Path, run: Callable[[], Path]) -> Path:
    """A run with the checkpoints of steps 3 and 6; trained once."""
    if not (kept / "run").exists():
        shutil.copytree(run(), kept / "run")
    return Path(shutil.copytree(kept / "run", tmp_path / "copy"))


def test_a_checkpoint_consists_of_these_files(trained):
    folder = trained / "checkpoints" / "step-0000006"
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == sorted(FILES)


@pytest.mark.parametrize("damage", [cut, cut_to_nothing, flip, zero, delete])
@pytest.mark.parametrize("file", FILES)
def test_damage_is_named_and_the_older_checkpoint_is_taken(trained, file, damage, warnings, capsys):
    damage(trained / "checkpoints" / "step-0000006" / file)
    assert latest_checkpoint(trained) == trained / "checkpoints" / "step-0000003"
    first, second = warnings
    assert f"checkpoint step-0000006 is damaged: {file} " in first
    assert "using step-0000003 instead" in second
    assert main(["checkpoint", "verify", str(trained)]) == 1
    good, bad = capsys.readouterr().out.splitlines()
    assert good == "step-0000003  valid"
    assert bad.startswith(f"step-0000006  {file} ")


def test_every_bit_of_the_manifest_counts(trained):
    folder = trained / "checkpoints" / "step-0000006"
    manifest = folder / "manifest.json"
    content = manifest.read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        manifest.write_bytes(changed)
        assert problems_of(folder), place


def test_training_goes_on_from_the_good_one_and_says_so(small_recipe, run):
    folder = run()
    whole = (folder / "exports" / "final" / "model.safetensors").read_bytes()
    flip(folder / "checkpoints" / "step-0000006" / FILES[0])
    shutil.rmtree(folder / "exports")
    command = [sys.executable, "-m", "kdcore.commands.main", "train", str(small_recipe), "checkpoints.every=3"]
    done = subprocess.run([*command, "training.zero_stage=1"], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "step-0000006 is damaged: engine/mp_rank_00_model_states.pt is corrupt (found sha256" in done.stderr
    assert "continued from step-0000003" in done.stderr
    assert (folder / "exports" / "final" / "model.safetensors").read_bytes() == whole
    assert main(["checkpoint", "verify", str(folder)]) == 0


def test_no_good_checkpoint_is_an_error_and_no_start_from_zero(small_recipe, run):
    folder = run()
    for step in (3, 6):
        flip(folder / "checkpoints" / f"step-{step:07d}" / FILES[1])
    with pytest.raises(kdcore.InputError, match="step-0000006 is damaged") as caught:
        run()
    assert "step-0000003 is damaged" in str(caught.value)
    assert "run.id=NEW" in str(caught.value)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(kdcore.InputError, match="written checkpoints, but none are left"):
        run()


@pytest.mark.parametrize("content", [None, "step-00", "step-0000007"], ids=["missing", "torn", "of no checkpoint"])
def test_a_pointer_that_does_not_help_is_told_and_the_newest_is_taken(trained, content, warnings):
    pointer = trained / "checkpoints" / "latest"
    pointer.unlink() if content is None else pointer.write_text(content, encoding="utf-8")
    assert latest_checkpoint(trained) == trained / "checkpoints" / "step-0000006"
    assert "latest" in warnings[0]


def test_export_takes_nothing_that_is_damaged(trained, tmp_path, capsys):
    flip(trained / "checkpoints" / "step-0000006" / FILES[1])
    assert main(["export", str(trained), str(tmp_path / "out"), "--checkpoint", "6"]) == 2
    assert FILES[1] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_that_was_slipped_in_is_not_unpickled(trained):
    folder = trained / "checkpoints" / "step-0000006"
    shutil.copy(folder / FILES[0], folder / "engine" / "mp_rank_01_model_states.pt")
    assert latest_checkpoint(trained) == trained / "checkpoints" / "step-0000003"
