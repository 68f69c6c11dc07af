"""Stored runs that somebody has damaged or changed on purpose: the file is named, exit code 2, nothing is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import golden
import pytest
import torch

from kdcore.commands.main import main
from kdcore.recipe.loading import load_recipe
from kdcore.training.checkpoint import format as checkpoint_files
from kdcore.training.engine.tensors import read_tensors, write_tensors
from kdcore.training.run.run import train_recipe

WATCHED = Path(__file__).with_name("watched.py")
MODEL = "engine/mp_rank_00_model_states.pt"
PART = "engine/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored run with its checkpoint of step 4, of format 1, and one of step 6 as it is written now."""
    root = tmp_path_factory.mktemp("stored")
    run = golden.copy_golden("bf16-zero1", root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCORE_CACHE", str(root / "cache"))
        train_recipe(load_recipe(run / "recipe.yaml"), exit_steps=6)
    return run


@pytest.fixture
def run(stored: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with step 6 only; every test begins with it undamaged."""
    monkeypatch.setenv("KDCORE_CACHE", str(stored.parents[1] / "cache"))
    fresh = stored.with_name("fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(stored, fresh)
    stored_name = (fresh / "recipe.yaml").read_text(encoding="utf-8").replace("id: bf16-zero1", "id: fresh")
    (fresh / "recipe.yaml").write_text(stored_name, encoding="utf-8")
    shutil.rmtree(fresh / "checkpoints" / golden.STEP)
    return fresh


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(checkpoint_files.logger, "warning", found.append)
    return found


def step_6(run: Path) -> Path:
    return run / "checkpoints" / "step-0000006"


def with_manifest(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """The change, after which somebody has written the manifest anew."""

    def changed(folder: Path) -> None:
        change(folder)
        golden.rewrite_manifest(folder)

    return changed


def cut(folder: Path) -> None:
    content = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(content[: len(content) // 2])


def flip(folder: Path) -> None:
    content = bytearray((folder / PART).read_bytes())
    content[len(content) // 2] ^= 255
    (folder / PART).write_bytes(content)


def replace_by_link(folder: Path) -> None:
    (folder / PART).rename(folder.parent / "elsewhere.pt")
    (folder / PART).symlink_to(folder.parent / "elsewhere.pt")


def edit_manifest(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    content["files"]["../../recipe.yaml"] = content["files"].pop(MODEL)
    golden.write_manifest(folder, content)


def raise_format(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    golden.write_manifest(folder, {**content, "format": 9})


def edit_state(folder: Path) -> None:
    content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    (folder / "state.json").write_text(json.dumps({**content, "step": "six"}), encoding="utf-8")


def raise_stage(folder: Path) -> None:
    content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    (folder / "state.json").write_text(json.dumps({**content, "stage": 1}), encoding="utf-8")


def drop_own_state(folder: Path) -> None:
    (folder / "process-0.json").write_text('{"random": {}, "own": []}', encoding="utf-8")


def damage_header(folder: Path) -> None:
    content = bytearray((folder / "process-0.safetensors").read_bytes())
    content[:8] = (1 << 62).to_bytes(8, "little")
    (folder / "process-0.safetensors").write_bytes(content)


def drop_parameter(folder: Path) -> None:
    content = read_tensors(folder / MODEL)
    content["module"].popitem()
    write_tensors(content, folder / MODEL)


def empty_part(folder: Path) -> None:
    write_tensors({"optimizer_state_dict": {"base_optimizer_state": [1]}}, folder / PART)


# What is done to the checkpoint of step 6, and the words of the message that name what is wrong.
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (cut, f"{MODEL} has "),
    "bits flipped": (flip, f"{PART} is corrupt (found sha256"),
    "missing": (lambda folder: (folder / MODEL).unlink(), f"{MODEL} is missing"),
    "one more": (
        lambda folder: (folder / "engine" / "x_optim_states.pt").touch(),
        "engine/x_optim_states.pt is not listed in manifest.json",
    ),
    "a link": (replace_by_link, f"{PART} is a link (expected a regular file)"),
    "a name outside": (edit_manifest, "manifest.json names '../../recipe.yaml', which is not a checkpoint file"),
    "a newer format": (raise_format, "manifest.json has an unsupported format (found 9, expected at most 2)"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    "a state of other types": (with_manifest(edit_state), "state.json: step: has the wrong type (found 'six'"),
    "a stage that the recipe has not": (
        with_manifest(raise_stage),
        "the recipe lacks the stage of the checkpoint (found stage 1, expected 0 to 0)",
    ),
    "other own state": (with_manifest(drop_own_state), "process-0.json"),
    "safetensors without header": (with_manifest(damage_header), "process-0.safetensors: cannot be read"),
    "torch's file cut": (with_manifest(cut), MODEL),
    "a parameter less": (with_manifest(drop_parameter), MODEL),
    "no optimizer state": (with_manifest(empty_part), PART),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_the_only_checkpoint_is_named_and_ends_with_2(run, damage, capsys):
    change, words = DAMAGE[damage]
    change(step_6(run))
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert main(["train", str(run / "recipe.yaml")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before, "no start from zero"


@pytest.mark.parametrize("value", [5, [[]], [None]], ids=str)
def test_parts_of_other_types_are_named_when_they_are_cut_anew(tmp_path, monkeypatch, value, capsys):
    run = golden.copy_golden("bf16-zero1-two-processes", tmp_path)
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    folder = run / "checkpoints" / golden.STEP
    content = read_tensors(folder / PART)
    key = "param_slice_mappings" if value == [None] else "partition_count"
    content["optimizer_state_dict"][key] = value
    write_tensors(content, folder / PART)
    golden.rewrite_manifest(folder)
    assert main(["train", str(run / "recipe.yaml")]) == 2
    assert f"{folder / 'engine'}: " in capsys.readouterr().err


def cut_embeddings(folder: Path) -> None:
    content = read_tensors(folder / MODEL)
    name = next(name for name in content["module"] if name.endswith("word_embeddings.weight"))
    content["module"][name] = content["module"][name][:3]
    write_tensors(content, folder / MODEL)


@pytest.mark.parametrize("change", [drop_parameter, cut_embeddings])
def test_weights_of_another_student_are_neither_exported_nor_examined(tmp_path, monkeypatch, change, capsys):
    run = golden.copy_golden("fp32-zero0", tmp_path)
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    with_manifest(change)(run / "checkpoints" / golden.STEP)
    for command in [["export", str(run), str(tmp_path / "out")], ["debug", "batch", str(run), "6"]]:
        assert main(command) == 2, command
        assert f"{MODEL}: does not match this run: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["fp32-zero0", "bf16-zero1", "bf16-zero2", "bf16-zero1-two-processes"])
@pytest.mark.parametrize("what", ["exp_avg", "weights", "rows"])
def test_state_of_another_shape_is_an_input_error_that_names_it(tmp_path, monkeypatch, name, what, capsys):
    """The fused Adam of torch would read beyond the end of a shorter state, and DeepSpeed pads weights."""
    run = golden.copy_golden(name, tmp_path)
    monkeypatch.setenv("KDCORE_CACHE", str(tmp_path / "cache"))
    folder = run / "checkpoints" / golden.STEP
    path = folder / (MODEL if name == "fp32-zero0" else PART)
    content = read_tensors(path)
    part = content["optimizer"] if name == "fp32-zero0" else content["optimizer_state_dict"]["base_optimizer_state"]
    if what == "exp_avg":
        part["state"][0]["exp_avg"] = part["state"][0]["exp_avg"][:3].clone()
    elif name == "fp32-zero0":
        content["module"]["student.network.bert.embeddings.word_embeddings.weight"] = torch.ones(3, 16)
    else:
        masters = content["optimizer_state_dict"]["single_partition_of_fp32_groups"]
        masters[0] = torch.nn.Parameter(
            masters[0].detach()[:1].clone() if what == "weights" else masters[0].view(2, -1)
        )
    write_tensors(content, path)
    golden.rewrite_manifest(folder)
    assert main(["train", str(run / "recipe.yaml")]) == 2
    error = capsys.readouterr().err
    assert f"{folder / 'engine'}" in error
    assert "does not match this run: " in error or "cannot be resharded" in error
    if name != "bf16-zero1-two-processes" and what != "rows":  # torch's messages there
        assert "student.network.bert.embeddings.word_embeddings.weight" in error
        assert what in error or name == "fp32-zero0"


@pytest.mark.parametrize("value", [["model.safetensors"], "x", {"model.safetensors": 1}], ids=str)
def test_sums_of_the_teacher_of_other_types_are_named(run, value, capsys):
    path = run / "environment.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"teacher_sha256": value}), encoding="utf-8")
    assert main(["train", str(run / "recipe.yaml")]) == 2
    key = "teacher_sha256.model.safetensors" if isinstance(value, dict) else "teacher_sha256"
    found = repr(next(iter(value.values())) if isinstance(value, dict) else value)
    assert f"{path}: {key}: has the wrong type (found {found}, expected " in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "bits flipped", "missing", "one more", "a link", "a name outside"])
def test_where_an_older_checkpoint_is_good_it_is_taken_with_a_warning(run, stored, damage, warnings):
    shutil.copytree(stored / "checkpoints" / golden.STEP, run / "checkpoints" / golden.STEP)
    change, words = DAMAGE[damage]
    change(step_6(run))
    assert main(["export", str(run), str(run / "out")]) == 0
    first, second = (warning for warning in warnings if "revision 1 of the preparation" not in warning)
    assert words in first
    assert f"using {golden.STEP} instead" in second


@pytest.mark.parametrize("damage", ["a newer format"])
def test_a_newer_checkpoint_is_not_left_for_an_older_one(run, stored, damage, capsys):
    shutil.copytree(stored / "checkpoints" / golden.STEP, run / "checkpoints" / golden.STEP)
    raise_format(step_6(run))
    assert main(["export", str(run), str(run / "out")]) == 2
    assert DAMAGE[damage][1] in capsys.readouterr().err


@pytest.mark.parametrize("text", ["../../../etc", "/etc/passwd", "step-0000006/../..", "\0", "step-" + "9" * 5000, "é"])
def test_a_pointer_to_somewhere_else_is_not_followed(run, text, warnings):
    (run / "checkpoints" / "latest").write_text(text, encoding="latin-1")
    assert main(["export", str(run), str(run / "out")]) == 0
    assert "the file latest, which names the newest checkpoint, is missing or damaged" in warnings[0]


class Touch:
    """Runs code when it is unpickled: makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def hidden_in_the_archive(file: Path, mark: Path) -> None:
    """Leave all in place but the pickle within torch's archive."""
    with zipfile.ZipFile(file) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, pickle.dumps(Touch(mark), 2) if name.endswith("data.pkl") else content)


REPLACE: dict[str, Callable[[Path, Path], object]] = {
    "torch.save": lambda file, mark: torch.save(Touch(mark), file),
    "one value": lambda file, mark: torch.save({**read_tensors(file), "global_steps": Touch(mark)}, file),
    "protocol 4": lambda file, mark: torch.save(Touch(mark), file, pickle_protocol=4),
    "a bare pickle": lambda file, mark: file.write_bytes(pickle.dumps(Touch(mark))),
    "within the archive": hidden_in_the_archive,
}


@pytest.mark.parametrize("kind", REPLACE)
@pytest.mark.parametrize(
    ("step", "name"),
    [(4, MODEL), (4, PART), (4, "process-0.pt"), (6, MODEL), (6, PART)],
    ids=lambda value: str(value).rpartition("/")[2],
)
def test_a_replaced_pickle_with_a_manifest_to_it_runs_nothing(run, stored, step, name, kind, tmp_path, capsys):
    if step == 4:
        shutil.copytree(stored / "checkpoints" / golden.STEP, run / "checkpoints" / golden.STEP)
        shutil.rmtree(step_6(run))
        (run / "checkpoints" / "latest").write_text(golden.STEP, encoding="utf-8")
    folder = run / "checkpoints" / f"step-{step:07d}"
    mark = tmp_path / "mark"
    REPLACE[kind](folder / name, mark)
    golden.rewrite_manifest(folder)
    for command in [
        ["train", str(run / "recipe.yaml")],
        ["export", str(run), str(tmp_path / "out")],
        ["export", str(run), str(tmp_path / "out"), "--checkpoint", str(step)],
        ["checkpoint", "verify", str(run)],
        ["checkpoint", "list", str(run)],
        ["checkpoint", "show", str(run)],
        ["debug", "batch", str(run), "8"],
    ]:
        assert main(command) == 2, command
        output = capsys.readouterr()
        assert name in output.out + output.err, command
        assert not mark.exists(), command


def test_no_command_unpickles_a_class_on_its_own(run, stored, tmp_path):
    """torch's reader of plain values takes classes from a list, without the event that Python's unpickler gives."""
    shutil.copytree(stored / "checkpoints" / golden.STEP, run / "checkpoints" / golden.STEP)
    shutil.rmtree(step_6(run))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in [
        ["train", str(run / "recipe.yaml")],
        ["export", str(run), str(tmp_path / "out")],
        ["checkpoint", "verify", str(run)],
        ["checkpoint", "show", str(run)],
        ["checkpoint", "list", str(run)],
        ["debug", "batch", str(run), "8"],
    ]:
        done = subprocess.run(
            [sys.executable, str(WATCHED), str(tmp_path / "found"), *command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "found").read_text(encoding="utf-8") == "", command
    check = f"import pickle; pickle.loads({pickle.dumps(Touch(tmp_path / 'mark'))!r})"
    watched = WATCHED.read_text(encoding="utf-8").replace("from kdcore.commands.main import main", check)
    (tmp_path / "watched.py").write_text(watched.replace("main(sys.argv[2:])", "0"), encoding="utf-8")
    subprocess.run([sys.executable, str(tmp_path / "watched.py"), str(tmp_path / "found")], check=True)
    assert (tmp_path / "found").read_text(encoding="utf-8") == "posix.system\n", "the watch sees what it looks for"
