from __future__ import annotations

import pytest
from kdcore_launch.profile import Profile, load_profile, shipped_profiles

from kdcore import InputError


def profile(tmp_path, text: str, *overrides: str) -> Profile:
    (tmp_path / "profile.yaml").write_text(text, encoding="utf-8")
    return load_profile(str(tmp_path / "profile.yaml"), overrides)


@pytest.mark.parametrize("name", [path.name for path in sorted(shipped_profiles().glob("*.yaml"))])
def test_every_shipped_profile_can_be_used_by_its_name(name):
    assert load_profile(name) == load_profile(name.removesuffix(".yaml"))


def test_there_is_a_profile_for_a_laptop_a_node_several_nodes_and_a_preemptible_queue():
    assert load_profile("laptop").world_size == 1
    assert load_profile("slurm-8xa100").world_size == 8
    assert load_profile("slurm-4x8xa100").world_size == 32
    assert (
        load_profile("slurm-preemptible").restarts.without_progress
        > load_profile("slurm-1xgpu").restarts.without_progress
    )


def test_a_process_a_gpu_and_one_without():
    assert Profile(gpus_per_node=4, nodes=2).world_size == 8
    assert Profile().world_size == 1
    assert Profile(gpus_per_node=4, processes_per_node=2).processes == 2


@pytest.mark.parametrize(
    ("written", "minutes"), [("90", 90), ("24:00:00", 1440), ("2-12:00", 3600), ("'00:00:30'", 1), ("1-00:00:00", 1440)]
)
def test_times_are_written_as_slurm_writes_them(tmp_path, written, minutes):
    assert profile(tmp_path, f"time: {written}\nstop_before_end: 10\n").time == minutes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partitoin: gpu", ["partitoin", "partition", "profile.yaml:1"]),
        ("time: 12:30", ["'12:30' is ambiguous"]),
        ("time: soon", ["'soon' is not a valid time"]),
        ("time: 1", ["stop_before_end: must be less than the time limit (found 300 s, limit 60 s)"]),
        ("nodes: 0", ["nodes", "profile.yaml:1"]),
        ("sbatch: [--output=x]", ["--output", "the run folder"]),
        ("sbatch: [exclusive]", ["'exclusive' is not a valid argument"]),
        ("container: {image: a.sif, runtime: docker}", ["apptainer", "pyxis"]),
        ("restarts: {without_progres: 3}", ["without_progress"]),
        ("memory: much", ["memory"]),
    ],
)
def test_a_mistake_names_its_line_and_what_is_allowed(tmp_path, text, words):
    with pytest.raises(InputError) as caught:
        profile(tmp_path, text)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_an_unknown_profile_lists_those_that_ship():
    with pytest.raises(InputError, match=r"slurm-8xa100[\s\S]*Did you mean `slurm-8xa100`") as caught:
        load_profile("slurm-8xa10.yaml")
    assert caught.value.exit_code == 2


def test_values_of_the_command_line_win(tmp_path):
    made = profile(tmp_path, "partition: gpu\ntime: 60\n", "partition=debug", "restarts.without_progress=9")
    assert (made.partition, made.restarts.without_progress) == ("debug", 9)
