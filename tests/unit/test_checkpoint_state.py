"""What a checkpoint stores of a process, which files it trusts, and how optimizer state is cut for other processes."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import golden
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdcore.errors import InputError, PluginError
from kdcore.training.checkpoint import format as files
from kdcore.training.checkpoint.process_state import (
    random_states,
    read_process_state,
    restore_random_states,
    write_process_state,
)
from kdcore.training.engine.engine import _not_plain, move_state
from kdcore.training.engine.module import Term
from kdcore.training.engine.pickled_names import foreign_names
from kdcore.training.engine.resharding import float32_weights, read_parts, reshard
from kdcore.training.engine.tensors import read_tensors, write_tensors

CPU = torch.device("cpu")


def test_a_process_state_comes_back_with_its_types_and_order(tmp_path):
    state = {
        "z/a": {"~": torch.tensor(1.5), "~1": torch.arange(3)},
        "steps": 3,
        "seconds": 3.0,
        "losses": [0.1, 2.0],
        "none": None,
        "terms": {},
    }
    assert [path.name for path in write_process_state(state, tmp_path, 7)] == [
        "process-7.safetensors",
        "process-7.json",
    ]
    assert set(safetensors.torch.load_file(tmp_path / "process-7.safetensors")) == {"/z~1a/~0", "/z~1a/~01"}
    back = read_process_state(tmp_path, 7, 2)
    assert list(back) == list(state)
    assert torch.equal(back["z/a"]["~"], torch.tensor(1.5))
    assert torch.equal(back["z/a"]["~1"], torch.arange(3))
    assert {key: back[key] for key in back if key != "z/a"} == {key: state[key] for key in state if key != "z/a"}
    assert (type(back["steps"]), type(back["seconds"])) == (int, float)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"own": {"thing": object()}}, "/own/thing: this value cannot be checkpointed (found object"),
        ({"own": {Term("a", "b"): 1}}, "/own: this key cannot be checkpointed"),
        ({"own": [torch.ones(1)]}, "/own: this value cannot be checkpointed (found list"),
    ],
)
def test_what_is_neither_tensor_nor_json_is_refused(tmp_path, state, words):
    with pytest.raises(PluginError) as caught:
        write_process_state(state, tmp_path, 0)
    assert words in str(caught.value)


def test_random_states_are_those_of_the_moment(tmp_path):
    random.gauss(), np.random.standard_normal()  # each keeps a second number for the next call
    write_process_state(random_states(CPU), tmp_path, 0)

    def draw() -> list[object]:
        return [random.gauss(0, 1), random.random(), *np.random.standard_normal(3).tolist(), *torch.rand(3).tolist()]

    first = draw()
    assert draw() != first
    restore_random_states(read_process_state(tmp_path, 0, 2), CPU)
    assert draw() == first


@pytest.mark.parametrize("position", [-1, 625, 10**6, 2**40, "1", None])
def test_a_random_state_that_numpy_would_read_beyond_is_refused(position):
    before, state = np.random.get_state(), random_states(CPU)
    state["numpy"]["position"] = position
    with pytest.raises((TypeError, ValueError)):
        restore_random_states(state, CPU)
    assert np.random.get_state()[2] == before[2]


def test_values_of_format_1_that_hold_themselves_are_an_input_error(tmp_path):
    random_state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    own: dict[str, object] = {}
    own["own"] = own
    write_tensors({"random": random_state, "own": own}, tmp_path / "process-0.pt")
    with pytest.raises(InputError, match=r"process-0\.pt: cannot be read"):
        read_process_state(tmp_path, 0, 1)


@pytest.mark.parametrize("term", [Term("a", "a"), Term("a", "b"), Term("a", "b/c")])
def test_a_term_is_its_text(term):
    assert Term.parse(str(term)) == term


STATE = {"step": 4, "seconds": 1.5, "done_seconds": 1, "world_size": 1, "zero_stage": 0}


def test_a_state_of_a_later_version_is_read_and_an_older_one_has_stage_0(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps(STATE | {"of a later version": [1]}), encoding="utf-8")
    assert files.read_state(tmp_path) == files.TrainingState(4, 1.5, 1.0, 1, 0, stage=0)
    (tmp_path / "state.json").write_text(json.dumps(STATE | {"stage": 2}), encoding="utf-8")
    assert files.read_state(tmp_path).stage == 2


@pytest.mark.parametrize("key", STATE)
@pytest.mark.parametrize(
    "value", ["1", None, [], {}, True, -1, float("nan"), 10**30, 10**400], ids=lambda value: repr(value)[:40]
)
def test_a_state_of_another_type_is_named(tmp_path, key, value):
    fits = key in ("seconds", "done_seconds") and value in (-1, 10**30)
    (tmp_path / "state.json").write_text(json.dumps(STATE | {key: value}), encoding="utf-8")
    if fits:
        assert getattr(files.read_state(tmp_path), key) == float(value)
        return
    with pytest.raises(InputError) as caught:
        files.read_state(tmp_path)
    assert f"{tmp_path}/state.json: {key}: has the wrong type" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "1", "{", "\0", '{"step": 1, "step": 2}', "[" * 100_000, "1" * 5000])
def test_a_state_that_is_none_is_named(tmp_path, text):
    (tmp_path / "state.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"state\.json: "):
        files.read_state(tmp_path)


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps(STATE), encoding="utf-8")
    (folder / "process-0.json").write_text("{}", encoding="utf-8")
    golden.write_manifest(folder, {"format": 2, "files": {}})
    golden.rewrite_manifest(folder)
    assert files.problems_of(folder) == []
    return folder


GOOD = {"size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
ENTRIES = {
    "another file": ("notes.txt", GOOD, "names 'notes.txt', which is not a checkpoint file"),
    "a file above": ("../process-0.json", GOOD, "names '../process-0.json', which is not a checkpoint file"),
    "a file above the engine": (
        "engine/../process-0.pt",
        GOOD,
        "names 'engine/../process-0.pt', which is not a checkpoint file",
    ),
    "an absolute name": ("/etc/passwd", GOOD, "names '/etc/passwd', which is not a checkpoint file"),
    "NUL": ("process-0\0.json", GOOD, "names 'process-0\\x00.json', which is not a checkpoint file"),
    "a newline": ("process-0.json\n", GOOD, "names 'process-0.json\\n', which is not a checkpoint file"),
    "an empty name": ("", GOOD, "names '', which is not a checkpoint file"),
    "a long name": ("x" * 10_000, GOOD, "which is not a checkpoint file"),
    "a file that is not there": ("process-1.json", GOOD, "process-1.json is missing"),
    "a size below zero": (
        "process-0.json",
        GOOD | {"size": -1},
        "has no size in bytes for 'process-0.json' (found -1)",
    ),
    "a huge size": (
        "process-0.json",
        GOOD | {"size": 10**4000},
        "has no size in bytes for 'process-0.json' (found 1000",
    ),
    "a broken size": ("process-0.json", GOOD | {"size": 2.0}, "has no size in bytes for 'process-0.json' (found 2.0)"),
    "true as a size": ("process-0.json", GOOD | {"size": True}, "has no size in bytes for 'process-0.json'"),
    "a number as a hash": ("process-0.json", GOOD | {"sha256": 1}, "has no sha256 for 'process-0.json' (found 1)"),
    "a short hash": ("process-0.json", GOOD | {"sha256": "ab"}, "has no sha256 for 'process-0.json' (found ab)"),
    "a list as an entry": ("process-0.json", [1, 2], "has no size and sha256 for 'process-0.json'"),
    "one key more": ("process-0.json", GOOD | {"mode": 1}, "has no size and sha256 for 'process-0.json'"),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_a_manifest_that_was_edited_is_named_with_its_entry(tmp_path, case):
    folder = checkpoint(tmp_path / "checkpoints" / "step-0000004")
    name, entry, words = ENTRIES[case]
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    content["files"][name] = entry
    golden.write_manifest(folder, content)
    (problem,) = files.problems_of(folder)
    assert words in problem
    assert len(problem) < 300
    with pytest.raises(InputError) as caught:
        files.latest_checkpoint(tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[1]", "{}", "[" * 100_000, "1" * 5000, "\0", '{"format": 2}', '{"format": "2", "files": {}}'),
        *('{"format": 2, "files": []}', '{"format": 2, "format": 2}', '{"format": -1, "files": {}}'),
        '{"format": 1e999, "files": {}}',
    ],
)
def test_a_manifest_of_other_types_is_named(tmp_path, text):
    folder = checkpoint(tmp_path / "step-0000004")
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    (problem,) = files.problems_of(folder)
    assert problem.startswith("manifest.json is corrupt")
    assert files.size_of(folder) == 0


def test_a_manifest_with_a_name_twice_is_named(tmp_path):
    folder = checkpoint(tmp_path / "step-0000004")
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    (folder / "manifest.json").write_text(text.replace('"state.json"', '"process-0.json"'), encoding="utf-8")
    assert files.problems_of(folder) == ["manifest.json is corrupt: duplicate key 'process-0.json'"]


def test_links_and_files_that_came_later_are_named(tmp_path):
    folder = checkpoint(tmp_path / "step-0000004")
    (folder / ".nfs0001").touch()  # of a network file system, which keeps a removed file that is open
    assert files.problems_of(folder) == []
    (folder / "extra.json").touch()
    (folder / "engine").symlink_to(tmp_path, target_is_directory=True)
    (folder / "process-0.json").rename(tmp_path / "elsewhere")
    (folder / "process-0.json").symlink_to(tmp_path / "elsewhere")
    assert sorted(files.problems_of(folder)) == [
        "engine is not listed in manifest.json",
        "extra.json is not listed in manifest.json",
        "process-0.json is a link (expected a regular file)",
    ]


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "process-0.json"])
@pytest.mark.parametrize("kind", ["pipe", "endless", "large"])
def test_what_cannot_be_read_to_its_end_is_named(tmp_path, name, kind):
    """In another process: one that waits for the end of such a file cannot be stopped by a test."""
    folder = checkpoint(tmp_path / "checkpoints" / "step-0000004")
    (folder / name).unlink()
    for path in (folder / name, tmp_path / "checkpoints" / "latest"):
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "endless":
            path.symlink_to("/dev/zero")
        else:
            with path.open("wb") as file:
                file.truncate(1 << 40)  # takes no space on the disk
    program = (
        "import sys, pathlib, resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        "from kdcore.errors import InputError\n"
        "from kdcore.training.checkpoint import format as files\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "assert files.pointed_to(folder.parent.parent) is None\n"
        "print(*files.problems_of(folder))\n"
        "try:\n"
        "    files.read_json(folder / sys.argv[2])\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), name], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert name in first
    assert f"{name}: cannot be read" in second


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(JSON)
def test_any_json_as_a_manifest_or_state_is_an_input_error(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("any")
    for content in (value, {"format": 2, "files": value}, {"format": 2, "files": {"state.json": value}}):
        (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
        assert files.problems_of(folder)
        (folder / "state.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(InputError):
            files.read_state(folder)


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


def test_files_that_refer_to_other_code_are_not_read(tmp_path):
    write_tensors({"weight": torch.ones(2), "loss": Evil()}, tmp_path / "evil.pt")
    assert foreign_names(tmp_path / "evil.pt") == ["posix.system"]
    with pytest.raises(InputError, match=r"evil\.pt: refers to posix\.system"):
        read_tensors(tmp_path / "evil.pt")
    torch.save({"loss": Evil()}, tmp_path / "four.pt", pickle_protocol=4)
    with pytest.raises(InputError, match=r"four\.pt: refers to the pickle operation"):
        read_tensors(tmp_path / "four.pt")
    for name, content in {"raw": pickle.dumps(Evil()), "empty": b"", "noise": b"PK\3\4" + bytes(100)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: cannot be read"):
            read_tensors(tmp_path / name)


def test_a_small_file_cannot_hold_much(tmp_path):
    """torch unpacks compressed records, and records that share their bytes, into memory of any size."""
    good, packed, shared = (tmp_path / f"{name}.pt" for name in ("good", "packed", "shared"))
    write_tensors([torch.zeros(1_000_000), torch.zeros(1_000_000)], good)
    with zipfile.ZipFile(good) as archive, zipfile.ZipFile(packed, "w") as target:
        for entry in archive.infolist():
            kind = zipfile.ZIP_STORED if entry.filename.endswith(".pkl") else zipfile.ZIP_DEFLATED
            target.writestr(entry.filename, archive.read(entry), kind)
    with zipfile.ZipFile(good) as archive, zipfile.ZipFile(shared, "w") as target:
        for entry in archive.infolist():
            if not entry.filename.endswith("/data/1"):
                target.writestr(entry.filename, archive.read(entry))
        (first,) = (entry for entry in target.infolist() if entry.filename.endswith("/data/0"))
        second = copy(first)
        second.filename = first.filename[:-1] + "1"
        target.filelist.append(second)
        target.NameToInfo[second.filename] = second
    assert packed.stat().st_size < 100_000
    assert shared.stat().st_size < 5_000_000
    for path in (packed, shared):
        with pytest.raises(InputError, match=r"cannot be read: not a file written by torch\.save"):
            read_tensors(path)


def test_a_tensor_with_more_elements_than_are_stored_is_not_read(tmp_path):
    huge = torch.zeros(1, dtype=torch.bfloat16).expand(10**12)
    for place, content in enumerate([huge, {"module": OrderedDict(weight=huge)}, [(1, {"a": [huge]})]]):
        path = tmp_path / f"{place}.pt"
        write_tensors(content, path)
        assert path.stat().st_size < 2000
        for mmap in (False, True):
            with pytest.raises(InputError, match=rf"{place}\.pt: cannot be read: a tensor of shape \(1000000000000,\)"):
                read_tensors(path, mmap=mmap)


def test_lists_that_hold_each_other_many_times_are_read_at_once(tmp_path):
    content: list = []
    for _ in range(60):  # 2**60 paths to the innermost list
        content = [content, content]
    content.append(content)
    write_tensors(content, tmp_path / "shared.pt")
    assert len(read_tensors(tmp_path / "shared.pt")) == 3


def test_any_flipped_byte_is_read_or_is_an_input_error(tmp_path):
    """Of the pickle, and of the archive's directory behind it."""
    folder = checkpoint(tmp_path / "step-0000004")
    path = folder / "process-0.pt"
    write_tensors({"weight": torch.ones(2), "names": ["a", {"b": torch.nn.Parameter(torch.ones(1))}]}, path)
    good, draw = path.read_bytes(), random.Random(0)
    golden.rewrite_manifest(folder)
    for _ in range(600):
        content = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            content[draw.choice([draw.randrange(500), -draw.randint(1, 500)])] = draw.randrange(256)
        path.write_bytes(content)
        files.foreign_files(folder)
        with suppress(InputError):
            read_tensors(path)


class Pair(NamedTuple):
    first: int
    second: int


def with_attribute(tensor: torch.Tensor) -> torch.Tensor:
    tensor.note = "kept"
    return tensor


DTYPES = [
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "complex64", "float16"),
    *("bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"),
]
HELD = {
    **{name: torch.tensor([0, 1, 1]).to(getattr(torch, name)) for name in DTYPES},
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "view": torch.arange(6.0).reshape(2, 3).t()[1:],
    "size": torch.Size([1, 2]),
    "ordered": OrderedDict(b=1, a=2),
    "nested": {1: [(2.5, "x", None, True, 10**40)]},
}
NOT_HELD = {
    "defaultdict": (defaultdict(int, a=1), "an object of type defaultdict"),
    "counter": (Counter("aab"), "an object of type Counter"),
    "named tuple": (Pair(1, 2), "an object of type Pair"),
    "set": ({1}, "an object of type set"),
    "number of NumPy": (np.float64(1), "an object of type float64"),
    "sparse": (torch.eye(2).to_sparse(), "a sparse tensor"),
    "sparse rows": (torch.eye(2).to_sparse_csr(), "a sparse tensor"),
    "meta": (torch.ones(2, device="meta"), "a meta tensor"),
    "expanded": (torch.ones(1).expand(2), "an expanded tensor"),
    "expanded parameter": (torch.nn.Parameter(torch.ones(2, 1).expand(2, 2)), "an expanded tensor"),
    "tensor with an attribute": (with_attribute(torch.ones(2)), "a tensor with the attribute `note`"),
    "parameter with an attribute": (with_attribute(torch.nn.Parameter(torch.ones(2))), "attribute `note`"),
}


@pytest.mark.parametrize("name", HELD)
def test_state_that_is_written_can_be_read(tmp_path, name):
    assert _not_plain(HELD[name]) is None
    write_tensors({"state": HELD[name]}, tmp_path / "state.pt")
    back = read_tensors(tmp_path / "state.pt")["state"]
    if isinstance(HELD[name], torch.Tensor):
        assert (back.dtype, back.shape, type(back)) == (HELD[name].dtype, HELD[name].shape, type(HELD[name]))
        assert back.detach().to(torch.complex128).tolist() == HELD[name].detach().to(torch.complex128).tolist()
    else:
        assert back == HELD[name]


@pytest.mark.parametrize("name", NOT_HELD)
def test_state_that_could_not_be_read_is_refused_before_it_is_written(tmp_path, name):
    value, words = NOT_HELD[name]
    assert words in str(_not_plain({"state": [value]}))
    write_tensors({"state": value}, tmp_path / "state.pt")
    with pytest.raises(InputError):  # so to write it would lose the checkpoint
        read_tensors(tmp_path / "state.pt")


STORED_FILES = sorted(golden.STORED.glob("runs/*/checkpoints/*/**/*.pt"))


@pytest.mark.parametrize("path", STORED_FILES, ids=lambda path: path.relative_to(golden.STORED / "runs").as_posix())
def test_a_stored_file_holds_nothing_foreign(path):
    assert foreign_names(path) == []
    assert read_tensors(path)


@dataclass
class Place:
    numel: int
    start: int


SHAPES = {"a": (3, 4), "b": (5,), "c": (2, 3)}


def cut(flat: torch.Tensor, count: int, rank: int) -> tuple[torch.Tensor, dict[str, tuple[Place, Place]]]:
    """A part of a flat group, padded, and where the range of each parameter lies in the parameter and in the part."""
    size = -(-len(flat) // count)
    part = torch.cat([flat, torch.full((size * count - len(flat),), -1.0)])[rank * size : (rank + 1) * size]
    places, start = {}, 0
    for name, shape in SHAPES.items():
        end = start + int(np.prod(shape))
        low, high = max(start, rank * size), min(end, (rank + 1) * size)
        if low < high:
            places[name] = Place(high - low, low - start), Place(high - low, low - rank * size)
        start = end
    return part, places


def part_of(count: int, rank: int, flats: dict[str, torch.Tensor]) -> dict:
    parts = {key: cut(flat, count, rank)[0] for key, flat in flats.items()}
    places = {name: target for name, (_, target) in cut(flats["weights"], count, rank)[1].items()}
    state = {"moment": parts["moment"], "step": torch.tensor(5.0)}
    base = {"state": {0: state}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {
        "single_partition_of_fp32_groups": [parts["weights"]],
        "param_slice_mappings": [places],
        "base_optimizer_state": base,
        "partition_count": [count],
        "loss_scaler": "kept",
    }


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_optimizer_state_is_the_same_in_parts_of_another_number(before, after):
    flats = {"weights": torch.randn(23), "moment": torch.randn(23)}
    parts = [part_of(before, rank, flats) for rank in range(before)]
    whole = dict(zip(SHAPES, torch.split(flats["weights"], [12, 5, 6]), strict=True))
    for name, tensor in float32_weights(parts).items():
        assert torch.equal(tensor, whole[name])
    for rank in range(after):
        expected = part_of(after, rank, flats)
        parameters = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
        places = cut(flats["weights"], after, rank)[1]
        for name, parameter in parameters.items():
            found = places.get(name)
            parameter._hp_mapping = found and SimpleNamespace(
                lp_fragment_address=found[0], hp_fragment_address=found[1]
            )
        flat = torch.zeros_like(expected["single_partition_of_fp32_groups"][0])
        optimizer = SimpleNamespace(
            optimizer=SimpleNamespace(param_groups=[{"params": [flat]}]),
            param_names={parameter: name for name, parameter in parameters.items()},
            bit16_groups=[list(parameters.values())],
            state_dict=lambda expected=expected: expected,
        )
        found = reshard(parts, optimizer, Path("here"))
        padding = after * len(flat) - 23 if rank == after - 1 else 0
        for key, one, other in [
            ("weights", found["single_partition_of_fp32_groups"][0], expected["single_partition_of_fp32_groups"][0]),
            ("moment", *(each["base_optimizer_state"]["state"][0]["moment"] for each in (found, expected))),
        ]:
            assert one.shape == other.shape
            assert torch.equal(one[: len(flat) - padding], other[: len(flat) - padding]), key
            assert not one[len(flat) - padding :].any()
        assert found["base_optimizer_state"]["state"][0]["step"] == 5
        assert found["param_slice_mappings"] == expected["param_slice_mappings"]
        assert found["loss_scaler"] == "kept"


@pytest.mark.parametrize("before", [1, 2])
def test_resharded_state_lies_on_the_parameters_device(before):
    """The meta device replaces a GPU, whose fused AdamW reads step counts there."""
    flats = {"weights": torch.randn(23), "moment": torch.randn(23)}
    parts = [part_of(before, rank, flats) for rank in range(before)]
    parameters = {name: torch.zeros(shape, device="meta") for name, shape in SHAPES.items()}
    flat = torch.zeros(23, device="meta", requires_grad=True)
    for parameter, (source, target) in zip(parameters.values(), cut(torch.zeros(23), 1, 0)[1].values(), strict=True):
        parameter._hp_mapping = SimpleNamespace(lp_fragment_address=source, hp_fragment_address=target)
    base = torch.optim.AdamW([flat], fused=True)
    for part in parts:
        part["base_optimizer_state"]["param_groups"] = base.state_dict()["param_groups"]
    layers = SimpleNamespace(
        optimizer=base,
        param_names={parameter: name for name, parameter in parameters.items()},
        bit16_groups=[list(parameters.values())],
        state_dict=dict,
    )
    base.load_state_dict(reshard(parts, layers, Path("here"))["base_optimizer_state"])  # as DeepSpeed does
    assert {key: value.device.type for key, value in base.state[flat].items()} == {"moment": "meta", "step": "meta"}


@pytest.mark.parametrize(
    ("options", "device"), [({"fused": True}, "meta"), ({"capturable": True}, "meta"), ({}, "cpu")]
)
def test_state_that_a_loader_left_on_the_cpu_is_moved(options, device):
    """DeepSpeed's loader of universal checkpoints assigns step counts as they were read."""
    parameter = torch.zeros(4, device="meta", requires_grad=True)
    optimizer = torch.optim.AdamW([parameter], **options)
    optimizer.state[parameter] = {"step": torch.tensor(7.0), "exp_avg": torch.zeros(4), "name": "text"}
    move_state(optimizer)
    state = optimizer.state[parameter]
    assert state["step"].device.type == device  # torch's other kernels read it on the host
    assert state["exp_avg"].device.type == "meta"
    assert state["name"] == "text"


def test_state_that_is_not_element_by_element_is_not_cut():
    flats = {"weights": torch.randn(23), "moment": torch.randn(23)}
    parts = [part_of(2, rank, flats) for rank in range(2)]
    for part in parts:
        part["base_optimizer_state"]["state"][0]["factor"] = torch.ones(2, 3)
    flat = torch.zeros(23)
    parameters = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for parameter, (source, target) in zip(parameters.values(), cut(flat, 1, 0)[1].values(), strict=True):
        parameter._hp_mapping = SimpleNamespace(lp_fragment_address=source, hp_fragment_address=target)
    optimizer = SimpleNamespace(
        optimizer=SimpleNamespace(param_groups=[{"params": [flat]}]),
        param_names={parameter: name for name, parameter in parameters.items()},
        bit16_groups=[list(parameters.values())],
        state_dict=dict,
    )
    with pytest.raises(InputError, match=r"`factor` in the optimizer's state cannot be resharded") as caught:
        reshard(parts, optimizer, Path("here"))
    assert "start with --processes 2" in str(caught.value)


def test_a_missing_part_is_named(tmp_path):
    flats = {"weights": torch.randn(23), "moment": torch.randn(23)}
    for rank in (0, 2):
        write_tensors({"optimizer_state_dict": {}}, tmp_path / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    with pytest.raises(InputError, match=r"rank_0_mp_rank_00_optim_states\.pt: does not contain optimizer state"):
        read_parts(tmp_path)
    part = part_of(3, 0, flats) | {"param_slice_mappings": [{}], "loss_scaler": None}
    write_tensors({"optimizer_state_dict": part}, tmp_path / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(InputError, match="the optimizer's state of process 1 is missing"):
        read_parts(tmp_path)
