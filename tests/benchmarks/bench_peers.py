"""A training step against the same step of other frameworks, each taken as its own users take it.

    python tests/benchmarks/bench_peers.py [--peers textbrewer torchdistill] [--sequences 8] [--repeats 3]

Peers are not required by this package: what cannot be imported is printed and skipped. `--no-deps` keeps them from
exchanging torch:

    pip install --no-deps textbrewer torchdistill pillow

A peer computes whatever it is given, so it is given both: `masked_lm`, models with their heads as they are pre-trained,
and `encoder`, models without, which is the least that its users can ask for.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
from measuring import interleaved, ratio, single_thread
from torch import Tensor
from transformers import BertForMaskedLM, BertModel
from transformers.utils import logging
from workload import Side, Workload, difference, make_batch

from kdcore.signals import Batch

MODELS = {"masked_lm": BertForMaskedLM, "encoder": BertModel}
LEARNING_RATE = 1e-4
MASKED_MSE = "MaskedHiddenMSE"


@dataclass
class PeerSide(Side):
    """A step that a framework takes on its own.

    Attributes:
        take: forward of both models, loss, backward, update.
    """

    take: Callable[[Batch], object]

    def step(self, batch: Batch) -> None:
        """What the framework's loop does with a batch."""
        self.take(batch)


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """A batch as a tokenizer of transformers gives it."""
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask.long()
    return {"input_ids": batch.input_ids, "attention_mask": mask}


def load_models(workload: Workload, models: str, **keys: Any) -> tuple[Any, Any, dict[str, Tensor]]:
    """Teacher, student, and the student's parameters by the names of the base model."""
    cls = MODELS[models]
    teacher = cls.from_pretrained(workload.teacher_folder, **keys).eval()
    student = cls.from_pretrained(workload.student_folder, **keys).train()
    return teacher, student, dict(student.base_model.named_parameters())


def textbrewer_side(workload: Workload, models: str, block: int, padded: bool) -> PeerSide:
    """`GeneralDistiller` with an intermediate match, adaptors as in TextBrewer's examples, and its own training loop.

    `hidden_mse` is a mean over the positions of `inputs_mask`. Checkpoints are the one thing of the loop left out.
    """
    textbrewer: Any = importlib.import_module("textbrewer")
    teacher, student, parameters = load_models(workload, models, output_hidden_states=True)
    match = {"layer_T": block + 1, "layer_S": 6, "feature": "hidden", "loss": "hidden_mse", "weight": 1}

    def adaptor(batch: dict[str, Tensor], outputs: Any) -> dict[str, Any]:
        return {"hidden": outputs.hidden_states, "inputs_mask": batch["attention_mask"]}

    with tempfile.TemporaryDirectory() as unused:  # made by the configuration, whether anything is stored or not
        settings = textbrewer.TrainingConfig(device="cpu", output_dir=unused, ckpt_steps=1_000_000)
    objective = textbrewer.DistillationConfig(intermediate_matches=[match])
    distiller = textbrewer.GeneralDistiller(settings, objective, teacher, student, adaptor, adaptor)
    distiller.save_and_callback = lambda *_: None
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)

    def loss(batch: Batch) -> Tensor:
        total: Tensor = distiller.train_on_batch(inputs_of(batch), {})[0]
        return total

    def take(batch: Batch) -> None:
        with distiller:
            distiller.train(optimizer, [inputs_of(batch)], num_steps=1)

    return PeerSide(loss, parameters, optimizer, student, take)


class MaskedHiddenMSE(torch.nn.Module):
    """What a user of torchdistill registers to leave padding out: its targets are the attention mask."""

    def __init__(self, student: str, teacher: str) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, student: dict[str, Any], teacher: dict[str, Any], targets: Tensor) -> Tensor:
        """Mean squared error at real positions."""
        real = targets.bool()
        own, theirs = student[self.student]["output"][real], teacher[self.teacher]["output"][real]
        return torch.nn.functional.mse_loss(own, theirs)


def torchdistill_side(workload: Workload, models: str, block: int, padded: bool) -> PeerSide:
    """`DistillationBox` with forward hooks on the blocks and AdamW, driven as the loops of its examples do.

    Without padding the loss is what torchdistill offers, torch's `MSELoss` between two outputs. That knows of no
    padding; with padding it is a loss registered with torchdistill, which is its way to add one.
    """
    distillation = import_torchdistill()
    importlib.import_module("torchdistill.losses.mid_level")
    registry: Any = importlib.import_module("torchdistill.losses.registry")
    registry.register_mid_level_loss(key=MASKED_MSE)(MaskedHiddenMSE)
    teacher, student, parameters = load_models(workload, models)
    prefix = "bert." if models == "masked_lm" else ""
    own, theirs = f"{prefix}encoder.layer.5", f"{prefix}encoder.layer.{block}"
    term: dict[str, Any] = {"weight": 1.0}
    if padded:
        term["criterion"] = {"key": MASKED_MSE, "kwargs": {"student": own, "teacher": theirs}}
    else:
        term["criterion"] = {"key": "MSELoss", "kwargs": {"reduction": "mean"}}
        ends = {
            "input": {"is_from_teacher": False, "module_path": own, "io": "output"},
            "target": {"is_from_teacher": True, "module_path": theirs, "io": "output"},
        }
        term["criterion_wrapper"] = {"key": "SimpleLossWrapper", "kwargs": ends}
    forward = {"forward_proc": "forward_batch_only_as_kwargs"}
    settings = {
        "num_epochs": 1,
        "teacher": {**forward, "forward_hook": {"output": [theirs]}, "requires_grad": False},
        "student": {**forward, "forward_hook": {"output": [own]}},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": LEARNING_RATE}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"hidden_mse": term}}},
    }
    box = distillation.get_distillation_box(teacher, student, {}, settings, torch.device("cpu"), None, False, 1)
    box.pre_epoch_process(epoch=0)

    def loss(batch: Batch) -> Tensor:
        inputs = inputs_of(batch)
        total: Tensor = box.forward_process(inputs, inputs["attention_mask"])
        return total

    def take(batch: Batch) -> None:
        total = loss(batch)
        box.post_forward_process(loss=total)
        total.item()  # the examples write every loss down

    return PeerSide(loss, parameters, box.optimizer, student, take)


def import_torchdistill() -> Any:
    """Its module of distillation, with or without torchvision.

    torchdistill imports torchvision for a list of image models, which no step here uses. Where there is none
    (wheels of package indexes are built for CUDA, and beside a torch for CPUs not even transformers can be imported
    any more), empty modules with the names that it looks for stand in while torchdistill is imported.
    """
    stand_ins: dict[str, ModuleType] = {}
    if importlib.util.find_spec("torchvision") is None and "torchdistill.core.distillation" not in sys.modules:
        for module, names in IMAGE_MODELS.items():
            stand_ins[module] = ModuleType(module)
            stand_ins[module].__dict__.update({name: torch.nn.Module for name in names})
            parent, _, child = module.rpartition(".")
            if parent:
                setattr(stand_ins[parent], child, stand_ins[module])
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("torchdistill.core.distillation")
    finally:
        for module in stand_ins:
            del sys.modules[module]


IMAGE_MODELS: dict[str, tuple[str, ...]] = {
    "torchvision": (),
    "torchvision.datasets": (),
    "torchvision.models": (),
    "torchvision.models.densenet": ("_DenseBlock", "_Transition"),
    "torchvision.models.detection": (),
    "torchvision.models.resnet": ("BasicBlock", "conv1x1"),
    "torchvision.models.segmentation": (),
}
INSTALL = {"textbrewer": "textbrewer", "torchdistill": "torchdistill pillow"}
PEERS: dict[str, Callable[[Workload, str, int, bool], PeerSide]] = {
    "textbrewer": textbrewer_side,
    "torchdistill": torchdistill_side,
}


def obstacle(peer: str, workload: Workload) -> str | None:
    """Why a peer cannot be measured, in words; None if it can."""
    try:
        side = PEERS[peer](workload, "encoder", 11, False)
        side.step(make_batch(1, 0.0, workload.config.vocab_size))
    except ModuleNotFoundError as error:
        return f"{peer}: left out, no module {error.name}: pip install --no-deps {INSTALL[peer]}"
    except Exception as error:  # an old package may fail with any error, which is printed
        return f"{peer}: does not run: {type(error).__name__}: {error}"
    return None


def check_equal(peer: str, models: str, workload: Workload, ours: Side, theirs: Side, batch: Batch) -> str:
    """Compare losses and gradients, and detect another block of the teacher; return a line about it.

    Raises:
        AssertionError: they are not equal, or the other block passes.
    """
    loss, gradient = difference(ours, theirs, batch)
    wrong = PEERS[peer](workload, models, 10, batch.attention_mask is not None)
    wrong_loss, wrong_gradient = difference(ours, wrong, batch)
    found = f"loss differs by {loss:.1e}, gradients by {gradient:.1e}; wrong: {wrong_loss:.1e}, {wrong_gradient:.1e}"
    assert loss < 1e-5, f"{peer}, {models}: {found}"
    assert gradient < 1e-4, f"{peer}, {models}: {found}"
    assert min(wrong_loss, wrong_gradient) > 1e-3, f"{peer}, {models}: {found}"
    return found


def padding_counted(workload: Workload, ours: Side, batch: Batch) -> str:
    """How far torchdistill's own loss is off on a padded batch."""
    with torch.no_grad():
        right, offered = (side.loss(batch) for side in (ours, torchdistill_side(workload, "encoder", 11, False)))
    apart = (offered / right - 1).abs().item()
    return f"its MSELoss counts padding, loss {apart:.1e} off; timed with a registered loss that leaves padding out"


def compare(peers: list[str], padding: float, sequences: int, repeats: int, workload: Workload) -> None:
    """Print a row for each peer and kind of models."""
    ours = workload.ours()
    batch = make_batch(sequences, padding, workload.config.vocab_size)
    padded = batch.attention_mask is not None
    sides: dict[str, Side] = {"ours": ours}
    rows: dict[str, dict[str, float | str]] = {}
    for peer in peers:
        remark = {"remark": padding_counted(workload, ours, batch)} if peer == "torchdistill" and padded else {}
        for models in MODELS:
            side = PEERS[peer](workload, models, 11, padded)
            name = f"{peer} {models}"
            rows[name] = {
                "peer": f"{peer} {version(peer)}",
                "models": models,
                "padding": round(1 - batch.num_tokens / batch.input_ids.numel(), 3),
                "equality": check_equal(peer, models, workload, ours, side, batch),
                **remark,
            }
            sides[name] = side
    timings = interleaved({name: partial(side.step, batch) for name, side in sides.items()}, repeats)
    for name, row in rows.items():
        middle, low, high = ratio(timings, name, "ours")
        speed = {"speed": round(middle, 2), "lowest": round(low, 2), "highest": round(high, 2)}
        print(json.dumps({**speed, **row, "spread": round(timings["ours"].spread, 2)}), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--padding", nargs="+", type=float, default=[0.0, 0.3])
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="tiny models, to try the benchmark itself")
    arguments = parser.parse_args()
    single_thread()
    logging.set_verbosity_error()  # that an encoder is without the head that lies beside it is meant
    workload = Workload("hidden_mse", arguments.small)
    obstacles = {peer: obstacle(peer, workload) for peer in arguments.peers}
    for obstacle in filter(None, obstacles.values()):
        print(obstacle, flush=True)
    peers = [peer for peer, obstacle in obstacles.items() if obstacle is None]
    if peers:
        for padding in arguments.padding:
            compare(peers, padding, arguments.sequences, arguments.repeats, workload)


if __name__ == "__main__":
    main()
