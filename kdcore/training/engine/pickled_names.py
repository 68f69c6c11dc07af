"""List the classes and functions that a file written by torch refers to, without loading it. Does not import torch."""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path

DEEPSPEED = (
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
"""The classes of DeepSpeed in its model and optimizer files (0.19.8, ZeRO stages 0 to 2, all precisions)."""

FORMAT_1 = (
    "kdcore.training.module.Term",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
)
"""The names in the process files of format 1, besides torch's. They do not change when classes are moved later."""

_TENSORS = re.compile(
    r"collections\.OrderedDict|_codecs\.encode|torch\.(?:storage\.)?\w+Storage"
    r"|torch\._utils\._rebuild_(?:tensor_v[23]|parameter)"
    r"|torch\.(?:Size|Tensor|device|nn\.parameter\.Parameter|bool|b?float\d+\w*|u?int\d+|complex\d+)"
)
# Operations that construct objects without a GLOBAL; torch never writes them.
_NAMELESS = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "PERSID", "NEWOBJ_EX"}


def foreign_names(path: Path) -> list[str]:
    """List the foreign names in a file, such as `posix.system`, sorted; empty if there are none.

    Raises:
        ValueError: the file does not have the format of `torch.save`.
        OSError: the file cannot be read.
    """
    names: set[str] = set()
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            records = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
            # A small file of compressed or overlapping records would take any amount of memory.
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if len(records) != 1 or not stored or sum(entry.file_size for entry in entries) > size:
                raise ValueError("not a file written by torch.save")
            for operation, argument, _ in pickletools.genops(archive.read(records[0])):
                if operation.name == "GLOBAL":
                    names.add(str(argument).replace(" ", "."))
                elif operation.name in _NAMELESS:
                    names.add(f"the pickle operation {operation.name}")
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError("not a file written by torch.save") from error
    known = {*DEEPSPEED, *FORMAT_1}
    return sorted(name for name in names if name not in known and not _TENSORS.fullmatch(name))
