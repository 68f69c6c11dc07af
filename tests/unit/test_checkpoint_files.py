"""Which checkpoints stay, what is put right after a kill, and `kdcore checkpoint`; checkpoints made without torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kdcore.commands.main import main
from kdcore.errors import InfrastructureError, InputError
from kdcore.training.checkpoint import format as files


def save(run: Path, step: int, keep: int = 2, *, milestone: bool = False, text: str = "weights") -> Path:
    folder = files.checkpoint_folder(run, step)
    staging = files.make_staging(folder)
    (staging / "process-0.json").write_text(f"{text} of {step}", encoding="utf-8")
    entries = {"process-0.json": files.describe_file(staging / "process-0.json", sync=True)}
    state = files.TrainingState(step, 1.5, 1.0, 1, 0, milestone)
    files.commit(folder, state, entries, keep, lambda: None)
    return folder


def steps(run: Path) -> list[int]:
    return [files.step_of(folder) for folder in files.all_checkpoints(run)]


def test_the_last_ones_and_milestones_are_kept(tmp_path):
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step, milestone=step == 2)
    assert steps(tmp_path) == [2, 4, 5]
    assert files.latest_checkpoint(tmp_path) == files.checkpoint_folder(tmp_path, 5)


def test_a_milestone_that_is_written_again_stays_one(tmp_path):
    save(tmp_path, 1, milestone=True)
    save(tmp_path, 1, text="later weights")
    for step in (2, 3, 4):
        save(tmp_path, step, keep=1)
    assert steps(tmp_path) == [1, 4]
    assert (files.checkpoint_folder(tmp_path, 1) / "process-0.json").read_text(encoding="utf-8") == "later weights of 1"


def test_a_milestone_whose_state_is_damaged_is_not_removed(tmp_path):
    folder = save(tmp_path, 1, milestone=True)
    (folder / "state.json").write_text("{", encoding="utf-8")
    for step in (2, 3):
        save(tmp_path, step, keep=1)
    assert steps(tmp_path) == [1, 3]


def test_a_run_that_was_set_back_drops_the_past_that_it_left(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=9)
    (tmp_path / "checkpoints" / "latest").write_text("step-0000001\n", encoding="utf-8")
    assert files.latest_checkpoint(tmp_path) == files.checkpoint_folder(tmp_path, 1)
    save(tmp_path, 2, keep=9, text="other weights")
    assert steps(tmp_path) == [1, 2]


def test_a_run_that_lost_its_folder_leaves_everything_as_it_was(tmp_path):
    save(tmp_path, 1)
    staging = files.make_staging(files.checkpoint_folder(tmp_path, 2))

    def taken() -> None:
        raise InfrastructureError("taken over")

    with pytest.raises(InfrastructureError):
        files.commit(files.checkpoint_folder(tmp_path, 2), files.TrainingState(2, 1, 1, 1, 0), {}, 1, taken)
    assert steps(tmp_path) == [1]
    assert files.pointed_to(tmp_path) == "step-0000001"
    assert staging.exists()


def test_cleaning_up_brings_back_a_checkpoint_that_was_being_replaced(tmp_path):
    folder = save(tmp_path, 1)
    folder.rename(folder.with_name(".replaced-step-0000001"))
    files.make_staging(files.checkpoint_folder(tmp_path, 2))
    files.clean_up(tmp_path)
    assert files.latest_checkpoint(tmp_path) == folder
    assert {path.name for path in folder.parent.iterdir()} == {"latest", "step-0000001"}


@pytest.mark.parametrize("clean", [True, False])
def test_nothing_is_written_through_a_link_in_the_place_of_the_staging_folder(tmp_path, clean):
    save(tmp_path / "run", 1)
    (tmp_path / "elsewhere").mkdir()
    files.staging_folder(files.checkpoint_folder(tmp_path / "run", 2)).symlink_to(tmp_path / "elsewhere")
    if clean:
        files.clean_up(tmp_path / "run")
    folder = save(tmp_path / "run", 2)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert not folder.is_symlink()
    assert files.problems_of(folder) == []


def test_a_checkpoint_in_the_folder_of_another_step_is_damaged(tmp_path):
    folder = save(tmp_path, 1)
    other = folder.rename(files.checkpoint_folder(tmp_path, 2))
    assert files.problems_of(other) == ["state.json: step: differs from the folder's (found 1, expected 2)"]


def test_a_run_that_never_saved_has_none(tmp_path):
    assert files.latest_checkpoint(tmp_path) is None
    files.make_staging(files.checkpoint_folder(tmp_path, 1))  # killed in its first save
    files.clean_up(tmp_path)
    assert files.latest_checkpoint(tmp_path) is None


def test_a_manifest_of_a_newer_kdcore_is_said_to_be_one(tmp_path):
    folder = save(tmp_path, 1)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8")) | {"format": 9}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert files.problems_of(folder) == ["manifest.json has an unsupported format (found 9, expected at most 2)"]
    with pytest.raises(InputError, match="found 9, expected at most 2"):
        files.latest_checkpoint(tmp_path)


@pytest.fixture
def run(tmp_path):
    for step in (100, 200):
        save(tmp_path, step, milestone=step == 100)
    return str(tmp_path)


def test_list_has_a_line_for_each(run, capsys):
    (files.checkpoint_folder(Path(run), 200) / "manifest.json").unlink()
    assert main(["checkpoint", "list", run]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step-0000100  20")
    assert "  1 process, ZeRO stage 0  milestone" in first
    assert second == "step-0000200  damaged: manifest.json is missing"


def test_verify_ends_with_1_if_one_is_damaged(run, capsys):
    assert main(["checkpoint", "verify", run]) == 0
    assert capsys.readouterr().out == "step-0000100  valid\nstep-0000200  valid\n"
    (files.checkpoint_folder(Path(run), 100) / "process-0.json").write_text("weights of 101", encoding="utf-8")
    assert main(["checkpoint", "verify", run, "200"]) == 0
    assert main(["checkpoint", "verify", run]) == 1
    assert "step-0000100  process-0.json is corrupt (found sha256" in capsys.readouterr().out


def test_show_prints_the_state_and_the_files(run, capsys):
    assert main(["checkpoint", "show", run]) == 0
    text = capsys.readouterr().out
    assert "step: 200\n" in text
    assert "  process-0.json  14 bytes  sha256 " in text
    assert main(["checkpoint", "show", run, "100"]) == 0
    assert "milestone: true" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "RUN", "150"], "no checkpoint of step 150"),
        (["list", "RUN", "100"], "`kdcore checkpoint list` does not accept a step"),
        (["verify", "nowhere"], "the folder contains no checkpoints"),
    ],
)
def test_mistakes_are_told(run, capsys, arguments, words):
    assert main(["checkpoint", *(run if argument == "RUN" else argument for argument in arguments)]) == 2
    assert words in capsys.readouterr().err


def test_old_folders_that_cannot_be_removed_at_once_do_not_look_like_checkpoints(tmp_path, monkeypatch):
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *arguments, **keywords: None)
        for step in (2, 3):
            save(tmp_path, step, keep=1)
        assert steps(tmp_path) == [3]
    files.clean_up(tmp_path)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"latest", "step-0000003"}
