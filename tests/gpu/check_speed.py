"""Speed of a step in bf16 against a plain loop around bare encoders, with the longest kernels; compilation; profile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from material import make_words
from recording import Setting
from torch import nn
from torch.profiler import ProfilerActivity
from workload import Side, Workload, difference, make_batch, step_flops

from kdcore.recipe.loading import load_recipe
from kdcore.signals import Batch
from kdcore.training.run.device_peaks import data_sheet_peak
from kdcore.training.run.profiling import profile_recipe

KERNELS = 15
OUT_OF_MEMORY = "out of memory"


def shapes(setting: Setting) -> list[tuple[int, int]]:
    """Return sequences and length of batches with equal numbers of positions."""
    return [(4, 16), (2, 32)] if setting.small else [(256, 128), (16, 2048)]


def seconds_of(variants: Mapping[str, Callable[[], object]], device: str, repeats: int) -> dict[str, float]:
    """Run variants in turn and return the median seconds of each: of the device's clock, on a CPU of the wall's."""
    for variant in variants.values():
        variant()
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, variant in variants.items():
            if device == "cuda":
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                variant()
                end.record()
                end.synchronize()
                found[name].append(begin.elapsed_time(end) / 1e3)
            else:
                started = time.perf_counter()
                variant()
                found[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in found.items()}


def measured_peak(setting: Setting) -> float:
    """Return operations per second of large products in bf16, several between two waits."""
    size, products = (64, 2) if setting.small else (8192, 20)
    one, other = (torch.randn(size, size, device=setting.device, dtype=torch.bfloat16) for _ in range(2))

    def multiply() -> None:
        for _ in range(products):
            torch.mm(one, other)

    return 2.0 * size**3 * products / seconds_of({"product": multiply}, setting.device, 3)["product"]


def set_dropout(side: Side, rate: float) -> None:
    """Change every dropout of a student; the configuration's own rates are read when it is built."""
    for module in side.student.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate


def peak_memory(step: Callable[[], object], device: str) -> float | None:
    """Return the GB that a step allocates beside what was allocated before it; None on a CPU."""
    step()  # creates gradients and the optimizer's state
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def longest_kernels(step: Callable[[], object], device: str) -> list[dict[str, Any]]:
    """Return the kernels in which a step spends most time: name, milliseconds, calls."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    step()
    with torch.profiler.profile(activities=activities) as profiler:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
    on_device = device == "cuda"
    found = []
    for event in profiler.key_averages():
        if on_device and str(event.device_type).endswith("CPU"):
            continue  # an operator; its kernels have their own entries
        microseconds = event.self_device_time_total if on_device else event.self_cpu_time_total
        found.append({"kernel": event.key[:120], "ms": round(microseconds / 1e3, 3), "calls": event.count})
    return sorted(found, key=lambda one: -one["ms"])[:KERNELS]


def or_out_of_memory(measure: Callable[[], Any]) -> Any:
    """Return a measurement, or OUT_OF_MEMORY."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        pass  # tensors live as long as the exception
    torch.cuda.empty_cache()
    return OUT_OF_MEMORY


def measure_cell(
    setting: Setting, sides: Mapping[str, Side], batch: Batch, flops: float, peaks: Mapping[str, float | None]
) -> dict[str, Any]:
    """Measure one batch: seconds, ratio, tokens per second, MFU and memory of each side."""
    cell: dict[str, Any] = {}
    steps = {name: partial(side.step, batch) for name, side in sides.items()}
    for name, step in steps.items():
        cell[f"{name}_gb"] = or_out_of_memory(partial(peak_memory, step, setting.device))
    fitting = {name: step for name, step in steps.items() if cell[f"{name}_gb"] != OUT_OF_MEMORY}
    seconds = or_out_of_memory(lambda: seconds_of(fitting, setting.device, 2 if setting.small else 3))
    if seconds == OUT_OF_MEMORY:
        return cell
    cell |= {f"{name}_ms": value * 1e3 for name, value in seconds.items()}
    if "ours" in seconds:
        cell["tokens_per_second"] = batch.num_tokens / seconds["ours"]
        for name, peak in peaks.items():
            cell[name] = None if peak is None else flops / seconds["ours"] / peak
        if "plain" in seconds:
            cell["ratio"] = seconds["plain"] / seconds["ours"]
    return cell


def check_speed(setting: Setting, objective: str) -> None:
    """Measure one objective with both shapes, with and without padding and dropout."""
    findings, device = setting.findings, setting.device
    longest = max(length for _, length in shapes(setting))
    workload = Workload(objective, setting.small, max_length=longest)
    sides = {
        "ours": workload.ours(device=device, dtype=torch.bfloat16),
        "plain": workload.plain(bare=True, device=device, dtype=torch.bfloat16),
    }
    card = torch.cuda.get_device_name(0) if device == "cuda" else "cpu"
    peaks = {"mfu": data_sheet_peak(card, torch.bfloat16), "mfu_measured": measured_peak(setting)}
    findings.note("peaks", peaks)
    hidden, vocabulary = workload.config.hidden_size, workload.config.vocab_size
    cells: list[dict[str, Any]] = []
    for sequences, length in shapes(setting):
        for padding in (0.0, 0.3):
            batch = make_batch(sequences, padding, vocabulary, length=length).to(torch.device(device))
            flops = step_flops(batch, objective == "soft_targets", hidden, vocabulary)
            for dropout in (0.0, 0.1):
                for side in sides.values():
                    set_dropout(side, dropout)
                place = {"sequences": sequences, "length": length, "padding": padding, "dropout": dropout}
                if not dropout and length == min(length for _, length in shapes(setting)):
                    loss, gradient = difference(sides["ours"], sides["plain"], batch)
                    place |= {"loss_difference": loss, "gradient_difference": gradient}
                    findings.expect(
                        loss < 0.2 and gradient < 0.15,  # the plain loop rounds probabilities to bf16
                        f"padding {padding}: loss off by {loss:.1e}, gradients by {gradient:.1e} from the plain loop",
                    )
                cells.append(place | measure_cell(setting, sides, batch, flops, peaks))
                findings.note("cells", cells)
            if padding and length == shapes(setting)[0][1]:
                set_dropout(sides["ours"], 0.0)
                findings.note("kernels", longest_kernels(partial(sides["ours"].step, batch), device))


def check_compile(setting: Setting) -> None:
    """Compare compiled with uncompiled steps."""
    results = {}
    (sequences, length), *_ = shapes(setting)
    for objective in ("hidden_mse", "minilm_v2_12"):
        workload = Workload(objective, setting.small)
        sides = [workload.ours(compiled, setting.device, torch.bfloat16) for compiled in (False, True)]
        batch = make_batch(sequences, 0.3, workload.config.vocab_size, length=length).to(torch.device(setting.device))
        loss, gradient = difference(*sides, batch)
        plain, compiled = (partial(side.step, batch) for side in sides)
        seconds = seconds_of({"plain": plain, "compiled": compiled}, setting.device, 5)
        ratio = seconds["plain"] / seconds["compiled"]
        results[objective] = {"ratio": ratio, "loss_difference": loss, "gradient_difference": gradient}
        setting.findings.note("compiled", results)
        setting.findings.expect(loss < 2e-2 and gradient < 0.15, f"{objective}: compiled losses differ by {loss:.1e}")


def check_profile(setting: Setting) -> None:
    """Compare the operations per second of `kdcore profile` with those of the bare step at the same size."""
    sequences, length = shapes(setting)[0]
    workload = Workload("hidden_mse", setting.small)
    side = workload.ours(device=setting.device, dtype=torch.bfloat16)
    config = workload.config
    batch = make_batch(sequences, 0.0, config.vocab_size, length=length).to(torch.device(setting.device))
    seconds = seconds_of({"ours": partial(side.step, batch)}, setting.device, 5)["ours"]
    bare = step_flops(batch, False, config.hidden_size, config.vocab_size) / seconds
    del side
    words = make_words(config.vocab_size - 5)
    folder = workload.teacher_folder
    folder.joinpath("vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    folder.joinpath("tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    text = " ".join(words[number % len(words)] for number in range(8 * sequences * length))
    setting.folder.joinpath("text.txt").write_text(text)  # one document: sequences are full
    recipe = setting.folder / "profile.yaml"
    recipe.write_text(
        f"""\
run: {{name: profile, id: 1, folder: {setting.folder}/runs}}
teacher: {{path: {folder}}}
student:
  config: {{num_hidden_layers: 6}}
  initialize: {{from: teacher, blocks: uniform}}
task:
  name: masked_lm
  data:
    tokenizer: {folder}
    sequence_length: {length}
    held_out: 0
    corpora: [{{name: text, path: {setting.folder}/text.txt, documents: lines}}]
losses: {{hidden_mse: {{layers: last}}}}
training: {{budget: {{steps: 100}}, batch_size: {sequences}, precision: {"fp32" if setting.small else "bf16"}}}
validation: {{every: never}}
""",
        encoding="utf-8",
    )
    profile = profile_recipe(load_recipe(recipe, []), 2 if setting.small else 10)
    ratio = profile.flops / profile.step_seconds / bare
    setting.findings.note("bare_tflops", bare / 1e12)
    setting.findings.note("profile_tflops", profile.flops / profile.step_seconds / 1e12)
    setting.findings.note("profile_padding", profile.padding)
    setting.findings.note("ratio", ratio)
    if not setting.small:
        setting.findings.expect(0.9 < ratio < 1.1, f"kdcore profile: MFU is {ratio:.2f} times that of the bare step")
