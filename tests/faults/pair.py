"""A program that trains a recipe several times over, as one of the processes that its environment names.

    pair.py RECIPE JOBS.json

A job is a list: the steps after which to end, or null; then overrides. fp16 is let through on CPUs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from kdcore.recipe.loading import load_recipe
from kdcore.training.run.run import train_recipe

if __name__ == "__main__":
    from deepspeed.accelerator import get_accelerator

    kind = type(get_accelerator())
    kind.is_fp16_supported = lambda self: True
    kind.supported_dtypes = lambda self: [torch.float, torch.half, torch.bfloat16]
    recipe, jobs = sys.argv[1:]
    for exit_steps, *overrides in json.loads(Path(jobs).read_text(encoding="utf-8")):
        train_recipe(load_recipe(recipe, overrides), exit_steps=exit_steps)
