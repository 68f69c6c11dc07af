"""Losses alone, forward and backward, against the plain formula: speed and memory.

    python tests/benchmarks/bench_losses.py [--sequences 16] [--repeats 5]

The states that losses read are made up; what is timed is what a loss adds to a step. For `soft_targets` that includes
the vocabulary projection: the plain way computes logits at every position, ours at masked ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import PeakMemory, interleaved, ratio, single_thread
from torch import Tensor
from torch.nn.functional import kl_div, linear, log_softmax, softmax
from workload import LENGTH, make_batch, plain_relation_loss

from kdcore.losses.soft_targets import SoftTargetsLoss
from kdcore.registry import losses as registered
from kdcore.signals import AttentionTap, ModelInfo, Signals

INFO = ModelInfo("bert", 1, 768, 12, 64, 30522, 512)
CASES = ("minilm_v2_12", "minilm_v2_48", "soft_targets")


def relations(heads: int, sequences: int, padding: float) -> dict[str, Callable[[], tuple[float, list[Tensor]]]]:
    """MiniLMv2 both ways: value and gradient of the student's query, key and value."""
    batch = make_batch(sequences, padding, 30522)
    torch.manual_seed(0)
    own, theirs = ({part: torch.randn(sequences, LENGTH, 768) for part in ("query", "key", "value")} for _ in range(2))
    cls = registered.get("minilm_v2")
    loss = cls(cls.Config(name="minilm_v2", label="loss", relation_heads=heads), INFO, INFO)
    mask = torch.ones(sequences, LENGTH, dtype=torch.bool) if batch.attention_mask is None else batch.attention_mask
    seen = None if batch.attention_mask is None else batch.attention_mask[:, None, None, :]

    def signals(states: dict[str, Tensor]) -> Signals:
        q, k, v = (states[part].unflatten(-1, (12, 64)).transpose(1, 2) for part in ("query", "key", "value"))
        return Signals(batch, {}, {0: AttentionTap(q, k, v, seen, 0.125)}, {})

    def ours() -> tuple[float, list[Tensor]]:
        leaves = {part: states.clone().requires_grad_() for part, states in own.items()}
        sums = loss(signals(leaves), signals(theirs), batch)
        total = torch.stack([sums[part] / count for part, count in loss.counts(batch).items()]).sum()
        total.backward()
        return total.item(), [leaf.grad for leaf in leaves.values()]

    def plain() -> tuple[float, list[Tensor]]:
        leaves = {part: states.clone().requires_grad_() for part, states in own.items()}
        terms = [plain_relation_loss(leaves[part], theirs[part], heads, mask) for part in leaves]
        total = torch.stack(terms).sum()
        total.backward()
        return total.item(), [leaf.grad for leaf in leaves.values()]

    return {"ours": ours, "plain": plain}


def predictions(sequences: int, padding: float) -> dict[str, Callable[[], tuple[float, list[Tensor]]]]:
    """Soft targets both ways, from last hidden states to their gradient."""
    batch = make_batch(sequences, padding, 30522)
    torch.manual_seed(0)
    own, theirs = (torch.randn(sequences, LENGTH, 768) for _ in range(2))
    decoder = torch.randn(30522, 768) * 0.05
    config = SoftTargetsLoss.Config(name="soft_targets", label="loss")
    loss = SoftTargetsLoss(config, INFO, INFO)

    def rows(states: Tensor) -> Tensor:
        return states.flatten(0, 1).index_select(0, batch.masked_index)

    def ours() -> tuple[float, list[Tensor]]:
        leaf = own.clone().requires_grad_()
        with torch.no_grad():
            teacher = Signals(batch, {}, {}, {"masked": linear(rows(theirs), decoder)})
        student = Signals(batch, {}, {}, {"masked": linear(rows(leaf), decoder)})
        total = loss(student, teacher, batch)["soft_targets"] / batch.num_masked
        total.backward()
        return total.item(), [leaf.grad]

    def plain() -> tuple[float, list[Tensor]]:
        leaf = own.clone().requires_grad_()
        with torch.no_grad():
            target = linear(theirs, decoder)
        logits = linear(leaf, decoder)
        flat = [states.flatten(0, 1)[batch.masked_index] for states in (logits, target)]
        total = kl_div(log_softmax(flat[0], -1), softmax(flat[1], -1), reduction="sum") / batch.num_masked
        total.backward()
        return total.item(), [leaf.grad]

    return {"ours": ours, "plain": plain}


def variants(case: str, sequences: int, padding: float) -> dict[str, Callable[[], tuple[float, list[Tensor]]]]:
    """Both ways of a case."""
    if case == "soft_targets":
        return predictions(sequences, padding)
    return relations(int(case.rpartition("_")[2]), sequences, padding)


def check_equal(found: dict[str, Callable[[], tuple[float, list[Tensor]]]]) -> str:
    """Equal values and gradients at real tokens; a doubled one would not be."""
    (value, gradients), (plain_value, plain_gradients) = found["ours"](), found["plain"]()
    gradient, plain_gradient = torch.stack(gradients), torch.stack(plain_gradients)
    distance = ((gradient - plain_gradient).norm() / plain_gradient.norm()).item()
    wrong = ((2 * gradient - plain_gradient).norm() / plain_gradient.norm()).item()
    differences = f"value differs by {abs(value - plain_value) / plain_value:.1e}, gradient by {distance:.1e}"
    assert abs(value - plain_value) < 1e-5 * plain_value, differences
    assert distance < 1e-4 < wrong, differences
    return differences


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--padding", nargs="+", type=float, default=[0.0, 0.3])
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", choices=("ours", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    single_thread()
    if arguments.memory:
        found = variants(arguments.cases[0], arguments.sequences, arguments.padding[0])
        PeakMemory.reset()
        before = PeakMemory.read()["now"]
        found[arguments.memory]()
        print(PeakMemory.read()["peak"] - before)
        return
    for case in arguments.cases:
        for padding in arguments.padding:
            found = variants(case, arguments.sequences, padding)
            equality = check_equal(found)
            timings = interleaved(found, arguments.repeats)
            middle, low, high = ratio(timings, "plain", "ours")
            peaks = []
            for side in ("ours", "plain"):
                command = [sys.executable, str(Path(__file__)), "--memory", side, "--cases", case]
                command += ["--padding", str(padding), "--sequences", str(arguments.sequences)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                peaks.append(float(output.splitlines()[-1]))
            row = {
                "loss": case,
                "padding": padding,
                "speed": round(middle, 2),
                "lowest": round(low, 2),
                "highest": round(high, 2),
                "memory": round(peaks[0] / peaks[1], 2),
                "memory_mb": f"{peaks[0]:.0f} of {peaks[1]:.0f}",
                "equality": equality,
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
