"""Checkpoints of ZeRO stages 1 and 2 for another number of processes, through DeepSpeed's universal format.

There the state of each parameter is a file of its own. Tried from 1 to 2 and from 2 to 1 processes: what is trained on
from there differs by float32's rounding (DeepSpeed 0.19.8).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import torch

from kdcore.errors import InputError, MachineError
from kdcore.training.agreement import by_main
from kdcore.training.checkpoint_files import ENGINE_FOLDER, size_of, staging_folder
from kdcore.training.distributed import Processes
from kdcore.training.quiet import quiet

_PART = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
_OWN_OF_ADAM = {"exp_avg", "exp_avg_sq", "step"}


@contextmanager
def universal_copy(checkpoint: Path, processes: Processes) -> Iterator[Path]:
    """A copy of the engine's part of a checkpoint that any number of processes can load; removed in the end.

    Raises:
        InputError: the optimizer's state is not such that it can be dealt anew.
        MachineError: there is no space for the copy.
    """
    copy = staging_folder(checkpoint).with_name(f"{staging_folder(checkpoint).name}-universal")
    by_main(processes, lambda: _convert(checkpoint, copy))
    try:
        yield copy
    finally:
        processes.barrier()
        if processes.is_main:
            shutil.rmtree(copy, ignore_errors=True)


def _convert(checkpoint: Path, copy: Path) -> None:
    needed, free = 2 * size_of(checkpoint), shutil.disk_usage(checkpoint).free
    if free < needed:
        raise MachineError(
            f"{checkpoint}: to go on in another number of processes takes {needed / 1e6:,.0f} MB for a while, "
            f"{free / 1e6:,.0f} MB are free"
        )
    _check_optimizer(checkpoint)
    shutil.rmtree(copy, ignore_errors=True)
    # It goes by patterns, which a folder's own name may upset.
    with quiet(), chdir(checkpoint.parent):
        from deepspeed.checkpoint import ds_to_universal

        ds_to_universal.main(
            argparse.Namespace(
                input_folder=f"{checkpoint.name}/{ENGINE_FOLDER}",
                output_folder=copy.name,
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )


def _check_optimizer(checkpoint: Path) -> None:
    part = torch.load(checkpoint / ENGINE_FOLDER / _PART, weights_only=False, map_location="cpu", mmap=True)
    states = part["optimizer_state_dict"]["base_optimizer_state"]["state"].values()
    other = {str(name) for state in states for name in state} ^ _OWN_OF_ADAM
    if other:
        world_size = part["optimizer_state_dict"]["partition_count"][0]
        raise InputError(
            "the state of this optimizer cannot be dealt to another number of processes "
            f"({', '.join(sorted(other))}); that works for those that keep what Adam keeps",
            where=str(checkpoint),
            hint=f"start with {world_size} processes, as it was written, or train with `training.zero_stage: 0`",
        )
