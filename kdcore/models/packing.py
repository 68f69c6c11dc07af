"""Pack the real tokens of a padded batch into a single row, one sequence after another.

Everything in an encoder except attention is computed per token, so sequence boundaries do not matter as long as each
token keeps its position. Attention is computed per sequence.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from kdcore.layers import at_least_float32
from kdcore.signals import AttentionPattern, Batch

logger = logging.getLogger("kdcore")

_MAX_HEAD_SIZE = 256  # of the kernels for packed sequences
_HEAD_SIZE_STEP = 8


@dataclass(frozen=True)
class AttentionCall:
    """Properties that all attention calls of a model share.

    Attributes:
        dtype: precision of query, key and value.
        head_size: d_k.
        scale: scale factor of the dot products.
        dropout: whether dropout is applied to attention probabilities.
        mask: `none`, `window` (a limit on the distance between query and key) or `other`, such as a bias.
    """

    dtype: torch.dtype
    head_size: int
    scale: float
    dropout: bool
    mask: Literal["none", "window", "other"]


@dataclass(frozen=True)
class AttentionKernels:
    """The attention kernels that a device and the installed packages provide.

    Attributes:
        device: type of the device.
        capability: compute capability of a CUDA device.
        varlen: names of the arguments of torch's `varlen_attn`, which differ between versions; None if torch lacks it.
        flash_attn: whether the package flash-attn can be imported.
    """

    device: str
    capability: tuple[int, int] = (0, 0)
    varlen: frozenset[str] | None = None
    flash_attn: bool = False

    @classmethod
    @cache
    def of(cls, device: torch.device) -> AttentionKernels:
        """Find the kernels for a device."""
        if device.type != "cuda":
            return cls(device.type)
        varlen, flash = _varlen_attention(), _flash_attention()
        names = None if varlen is None else frozenset(inspect.signature(varlen).parameters)
        return cls(device.type, torch.cuda.get_device_capability(device), names, flash is not None)


@dataclass(frozen=True)
class AttentionPath:
    """How attention is computed on packed sequences.

    Attributes:
        kernel: `sequences` (torch's kernel for each sequence), `padded` (torch's kernel for the padded batch),
            `varlen_attn` of torch, or the package `flash_attn`.
        reason: why this kernel was chosen.
        head_size: the size to which heads are padded with zeros.
    """

    kernel: Literal["sequences", "padded", "varlen_attn", "flash_attn"]
    reason: str
    head_size: int


def choose_attention_path(call: AttentionCall, kernels: AttentionKernels) -> AttentionPath:
    """Choose the fastest method that these calls and kernels allow for attention on packed sequences.

    If necessary, heads are padded to a multiple of 8, which avoids padding sequences to equal lengths. Kernels pad
    heads to 32, 64 or 128 internally, so the only extra cost is a copy of query, key and value.
    """
    size = -(-call.head_size // _HEAD_SIZE_STEP) * _HEAD_SIZE_STEP
    if kernels.device == "cpu":
        return AttentionPath("sequences", "on a CPU, calls of a kernel have little overhead", call.head_size)
    kernel: Literal["padded", "varlen_attn", "flash_attn"] = "padded"
    if kernels.device != "cuda":
        reason = f"the device is not a CUDA device (found {kernels.device})"
    elif kernels.capability < (8, 0):
        reason = f"compute capability {kernels.capability[0]}.{kernels.capability[1]} is below 8.0"
    elif call.dtype not in (torch.float16, torch.bfloat16):
        reason = f"kernels for packed sequences need half precision (found {call.dtype})".replace("torch.", "")
    elif size > _MAX_HEAD_SIZE:
        reason = f"the head size exceeds {_MAX_HEAD_SIZE}"
    elif call.mask == "other":
        reason = "kernels for packed sequences support no bias or mask"
    else:
        missing = _missing_in_varlen(call, size, kernels.varlen)
        if missing is None:
            kernel, reason = "varlen_attn", "torch's kernel supports these calls"
        elif kernels.flash_attn:
            kernel, reason = "flash_attn", missing
        else:
            reason = f"{missing}, and the package flash-attn is not installed"
    return AttentionPath(kernel, reason, call.head_size if kernel == "padded" else size)


def _missing_in_varlen(call: AttentionCall, size: int, names: frozenset[str] | None) -> str | None:
    """Describe a feature that these calls need but torch's `varlen_attn` lacks; None if there is none."""
    if names is None:
        return f"torch {torch.__version__} has no varlen_attn"
    if call.dropout:
        return "torch's varlen_attn has no dropout"
    if call.mask == "window" and "window_size" not in names:
        return f"varlen_attn of torch {torch.__version__} has no window_size"
    if "scale" not in names and call.scale != size**-0.5:
        return f"varlen_attn of torch {torch.__version__} has no scale"
    return None


def _varlen_attention() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch before 2.10
        return None
    return varlen_attn


def _flash_attention() -> Callable[..., Tensor] | None:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:  # not installed, or built for another torch
        return None
    kernel: Callable[..., Tensor] = flash_attn_varlen_func
    return kernel


_counts_operations: ContextVar[bool] = ContextVar("counts_operations", default=False)


@contextmanager
def countable_attention() -> Iterator[None]:
    """Compute attention per sequence within the context; torch cannot count operations of packed kernels."""
    token = _counts_operations.set(True)
    try:
        yield
    finally:
        _counts_operations.reset(token)


class AttentionPaths:
    """The attention paths of one model, chosen and logged once for each kind of call."""

    def __init__(self, model: str) -> None:
        """Create the paths; `model` is the model's name in the log."""
        self._model = model
        self._chosen: dict[tuple[torch.device, AttentionCall], AttentionPath] = {}

    def path(self, device: torch.device, call: AttentionCall) -> AttentionPath:
        """Return the path for calls on a device."""
        key = (device, call)
        if key not in self._chosen:
            path = self._chosen[key] = choose_attention_path(call, AttentionKernels.of(device))
            parts = [str(call.dtype).removeprefix("torch."), f"heads of {call.head_size}"]
            parts += [f"padded to {path.head_size}"] if path.head_size != call.head_size else []
            parts += [] if call.mask == "none" else ["windows" if call.mask == "window" else "a bias or mask"]
            parts += ["dropout"] if call.dropout else []
            level = logging.DEBUG if path.kernel == "sequences" else logging.INFO
            text = "attention of %s on unpadded tokens (%s): %s, because %s"
            logger.log(level, text, self._model, ", ".join(parts), path.kernel, path.reason)
        return self._chosen[key]


class Packing:
    """The layout of a batch's real tokens in a single row.

    Attributes:
        width: L, the padded length of sequences.
    """

    def __init__(self, batch: Batch, paths: AttentionPaths | None = None) -> None:
        self._batch = batch
        self._paths = paths or AttentionPaths("a model")
        self._in_turn = _counts_operations.get()
        self._whole_masks: dict[int, tuple[Tensor | None, Tensor | None]] = {}
        self.width = int(batch.input_ids.shape[1])
        lengths = batch.lengths.tolist()
        self._runs = [(len(list(run)), length) for length, run in groupby(lengths)]

    def model_inputs(self, position_offset: int, token_types: Tensor | None) -> dict[str, Tensor]:
        """Return the inputs of a base model: a single row of N tokens with their positions."""
        inputs = {"input_ids": self.packed(self._batch.input_ids), "position_ids": self._columns[None]}
        inputs["position_ids"] = inputs["position_ids"] + position_offset
        if token_types is not None:
            inputs["token_type_ids"] = self.packed(token_types)
        return inputs

    def packed(self, padded: Tensor) -> Tensor:
        """Select the entries of real tokens (1, N) from (B, L)."""
        return padded.reshape(-1).index_select(0, self._batch.token_index)[None]

    def rows_of(self, flat_index: Tensor) -> Tensor:
        """Convert flat positions in the padded batch to positions among the real tokens."""
        return torch.searchsorted(self._batch.token_index, flat_index)

    @cached_property
    def first(self) -> Tensor:
        """Return the start position of each sequence: (B,)."""
        sequences = torch.arange(self._batch.num_sequences, device=self._batch.token_index.device)
        return self.rows_of(sequences * self.width)

    @cached_property
    def _columns(self) -> Tensor:
        return self._batch.token_index % self.width

    def means(self, states: Tensor) -> Tensor:
        """Average states (N, d) over the tokens of each sequence: (B, d)."""
        rows = self._batch.token_index // self.width
        precise = at_least_float32(states)  # a GPU would round a half-precision sum after every token
        sums = precise.new_zeros((self._batch.num_sequences, states.shape[-1])).index_add(0, rows, precise)
        mask = self._batch.attention_mask
        return (sums / (self.width if mask is None else mask.sum(1, keepdim=True))).to(states.dtype)

    def padded(self, states: Tensor) -> Tensor:
        """Unpack (N, ...) to (B, L, ...), with zeros in the padding."""
        size = self._batch.num_sequences * self.width
        whole = states.new_zeros((size, *states.shape[1:])).index_copy(0, self._batch.token_index, states)
        return whole.view(-1, self.width, *states.shape[1:])

    def whole_mask(self, mask: Tensor | None) -> Tensor | None:
        """Extend a block's mask for one sequence of full length to all sequences, broadcastable to (B, A, L, L).

        Padding queries keep the block's mask, so that no row is empty. Blocks with the same mask share the result.
        """
        if id(mask) not in self._whole_masks:
            self._whole_masks[id(mask)] = (mask, self._extended(mask))
        return self._whole_masks[id(mask)][1]

    def prepare_whole_mask(self, mask: Tensor) -> None:
        """Extend a mask that requires gradients before the blocks run, so that each block can be recomputed alone."""
        if AttentionKernels.of(mask.device).device != "cpu":
            self.whole_mask(mask)

    def _extended(self, mask: Tensor | None) -> Tensor | None:
        rows = self._batch.attention_mask
        if rows is None:
            return mask
        if mask is None:
            return rows[:, None, None, :]
        if mask.is_floating_point():
            return torch.where(rows[:, None, None, :], mask, torch.finfo(mask.dtype).min)
        return (mask & rows[:, None, None, :]) | ~rows[:, None, :, None]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout: float,
        scale: float,
        pattern: AttentionPattern | None = None,
    ) -> Tensor:
        """Compute attention within each sequence; return (1, N, A, d_k).

        Args:
            query: (N, A, d_k), of all real tokens.
            key: like `query`.
            value: like `query`.
            mask: the block's mask for one sequence of length L, broadcastable to (1, A, L, L), or None.
            dropout: fraction of the attention probabilities to drop.
            scale: scale factor of the dot products.
            pattern: structure of `mask`, if known.
        """
        tokens, window = [query, key, value], None if pattern is None or pattern.bias is not None else pattern.window
        kind: Literal["none", "window", "other"] = "none" if mask is None else "other" if window is None else "window"
        call = AttentionCall(query.dtype, query.shape[-1], scale, dropout > 0, kind)
        path = self._paths.path(query.device, call)
        if path.kernel == "sequences" or self._in_turn:
            output = self._attend_in_turn(tokens, mask, dropout, scale)
        elif path.kernel == "padded":
            output = self._attend_padded(tokens, mask, dropout, scale)
        else:
            output = self._attend_packed(path, tokens, window if kind == "window" else None, dropout, scale)
        return output[None]

    def _attend_packed(
        self, path: AttentionPath, tokens: list[Tensor], window: int | None, dropout: float, scale: float
    ) -> Tensor:
        """Call a kernel for packed sequences once."""
        size = tokens[0].shape[-1]
        tokens = [pad(states, (0, path.head_size - size)) for states in tokens] if path.head_size > size else tokens
        options: dict[str, Any] = {} if window is None else {"window_size": (window, window)}
        if path.kernel == "flash_attn":
            kernel = _flash_attention()
            deterministic = torch.are_deterministic_algorithms_enabled()
            options |= {"dropout_p": dropout, "softmax_scale": scale, "deterministic": deterministic}
        else:
            kernel = _varlen_attention()
            if scale != path.head_size**-0.5:  # the default, which is the only scale of torch 2.10
                options["scale"] = scale
        assert kernel is not None
        output: Tensor = kernel(*tokens, self._ends, self._ends, self._longest, self._longest, **options)
        return output[..., :size]

    def _attend_in_turn(self, tokens: list[Tensor], mask: Tensor | None, dropout: float, scale: float) -> Tensor:
        """Call the kernel once per run of sequences of equal length; on a CPU, calls have little overhead."""
        sizes = [count * length for count, length in self._runs]
        outputs = []
        for (count, length), *parts in zip(self._runs, *(torch.split(states, sizes) for states in tokens), strict=True):
            query, key, value = (part.view(count, length, *part.shape[1:]).transpose(1, 2) for part in parts)
            seen = None if mask is None else mask[..., :length, :length]
            output = scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout, scale=scale)
            outputs.append(output.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)

    def _attend_padded(self, tokens: list[Tensor], mask: Tensor | None, dropout: float, scale: float) -> Tensor:
        """Call the kernel once for all sequences; only attention is computed on padding."""
        query, key, value = (self.padded(states).transpose(1, 2) for states in tokens)
        output = scaled_dot_product_attention(
            query, key, value, attn_mask=self.whole_mask(mask), dropout_p=dropout, scale=scale
        )
        return output.transpose(1, 2).flatten(0, 1).index_select(0, self._batch.token_index)

    @cached_property
    def _ends(self) -> Tensor:
        last = self._batch.token_index.new_full((1,), self._batch.num_tokens)
        return torch.cat([self.first, last]).to(torch.int32)

    @cached_property
    def _longest(self) -> int:
        return int(self._batch.lengths.max())
