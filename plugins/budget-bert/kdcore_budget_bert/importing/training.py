"""Convert the source system's flags for optimizer, schedule, budget, validation and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdcore_budget_bert.importing.draft import Draft
from kdcore_budget_bert.importing.flags import NO_LIMIT

_USUAL_SHARDS = 2560


@dataclass(frozen=True)
class Shards:
    """The source's unit of time: an epoch of the source is one shard of the training data, or one shard per process.

    Attributes:
        total: number of shards.
        at_once: number of shards in one epoch.
    """

    total: int
    at_once: int

    def share(self, epochs: int) -> float:
        """Convert epochs of the source to a fraction of one pass over all the data."""
        return float(f"{epochs * self.at_once / self.total:.9g}")

    def every(self, epochs: int) -> dict[str, float]:
        """Return epochs of the source as an interval."""
        return {"epochs": self.share(epochs)}

    def described(self, epochs: int) -> str:
        """Describe a number of epochs of the source in words."""
        return f"{epochs}{f' x {self.at_once}' if self.at_once > 1 else ''} of {self.total} shards"


def count_shards(draft: Draft, stated: int | None) -> Shards:
    """Count the shards in the command's data folder, if the folder exists here and no number is given."""
    folder = Path(draft.value("dataset_path")).expanduser()
    found = sum("train" in file.name for file in folder.glob("*.hdf5")) if folder.is_dir() else 0
    if stated is not None:
        total, known_from = stated, "--shards"
    elif found:
        total, known_from = found, f"as in {draft.value('dataset_path')}"
    else:
        total, known_from = _USUAL_SHARDS, "as in the source's instructions; use --shards for another number"
    draft.approximate(
        "an epoch of the source is one shard of the data, here a pass over all of it: intervals are parts of its "
        f"{total} shards ({known_from})"
    )
    if draft.value("data_loader_type") == "dist":
        return Shards(total, 1)
    processes = draft.command.processes
    counted = "one is assumed: the command does not specify it" if processes is None else f"{processes} of them"
    draft.approximate(f"an epoch of the source is one shard on each process ({counted})", "data_loader_type")
    return Shards(total, processes or 1)


def put_optimizer(draft: Draft) -> None:
    """Set the optimizer from the flags that the source's optimizer reads."""
    kind = draft.value("optimizer_type")
    draft.put("optimizer.name", kind, "optimizer_type")
    draft.flag("lr", "optimizer.lr")
    draft.flag("weight_decay", "optimizer.weight_decay")
    moments, lamb = ("adam_beta1", "adam_beta2", "adam_eps"), ("bias_correction", "max_coeff", "min_coeff")
    if kind in ("adam", "adamw"):
        betas = [draft.value("adam_beta1"), draft.value("adam_beta2")]
        draft.put("optimizer.betas", betas, "adam_beta1", "adam_beta2")
        draft.flag("adam_eps", "optimizer.eps")
    if kind == "lamb":
        draft.put("optimizer.betas", [0.9, 0.999], note="the source's lamb does not read --adam_beta1 and --adam_beta2")
        draft.put("optimizer.eps", 1e-8, note="nor --adam_eps")
        for name in lamb:
            draft.flag(name, f"optimizer.{name}")
    draft.leave_out(f"{kind} does not read it", *(moments if kind in ("lamb", "adafactor") else ()))
    draft.leave_out(f"{kind} does not read it", *(lamb if kind != "lamb" else ()))


def put_scheduler(draft: Draft) -> None:
    """Set the learning-rate schedule."""
    schedule, curve = draft.value("lr_schedule"), draft.value("curve")
    draft.put("scheduler.name", "exponential" if curve == "exp" else "linear", "curve")
    draft.put("scheduler.over", "time" if schedule == "time" else "steps", "lr_schedule")
    if schedule == "constant_step":
        draft.flag("num_warmup_steps", "scheduler.warmup_steps")
        draft.leave_out("constant_step does not read it", "warmup_proportion")
    else:
        draft.flag("warmup_proportion", "scheduler.warmup")
        draft.leave_out(f"{schedule} does not read it", "num_warmup_steps")
    if curve == "exp":
        draft.flag("decay_rate", "scheduler.decay_rate")
        draft.flag("decay_step", "scheduler.decay_step")
        if schedule == "time":
            draft.approximate("decay_step counts hours there, and steps here", "lr_schedule", "curve")
    else:
        draft.leave_out("linear does not read it", "decay_rate", "decay_step")
    if schedule == "step" and draft.value("max_steps") == NO_LIMIT:
        draft.refuse(
            "lr_schedule",
            "a schedule over steps needs --max_steps: without it, warm-up never ends",
            hint="Add --max_steps, or let --lr_schedule be time.",
        )


def put_training(draft: Draft, shards: Shards) -> None:
    """Set budget, batches and precision."""
    steps = draft.value("max_steps")
    if steps < NO_LIMIT:
        draft.flag("max_steps", "training.budget.steps")
    elif draft.value("lr_schedule") == "constant_step":
        draft.flag("max_steps", "training.budget.steps", note="no limit, so that the rate does not fall")
    draft.value("num_epochs")
    if draft.given("num_epochs"):
        epochs = draft.value("num_epochs")
        draft.put("training.budget.epochs", shards.share(epochs), "num_epochs", note=shards.described(epochs))
    hours, exit_after = draft.value("total_training_time"), draft.value("early_exit_time_marker")
    draft.flag("total_training_time", "training.budget.hours")
    if exit_after <= hours:
        draft.flag("early_exit_time_marker", "training.budget.exit_after_hours")
    else:
        draft.leave_out(f"the run ends before, after {hours:g} hours", "early_exit_time_marker")
    draft.leave_out("kdcore goes through all of the data", "max_steps_per_epoch")
    draft.flag("train_batch_size", "training.batch_size")
    draft.flag("train_micro_batch_size_per_gpu", "training.micro_batch_size")
    draft.leave_out("follows from the other sizes, also in the source", "gradient_accumulation_steps")
    batch, micro = draft.value("train_batch_size"), draft.value("train_micro_batch_size_per_gpu")
    if min(batch, micro) > 0 and batch % micro:
        draft.refuse("train_micro_batch_size_per_gpu", f"the batch size {batch} is not a multiple of {micro}")
    _put_precision(draft)
    draft.flag("gradient_clipping", "training.gradient_clipping")
    for name in ("prescale_gradients", "gradient_predivide_factor", "wall_clock_breakdown", "steps_per_print"):
        draft.value(name)
        if draft.given(name):
            draft.flag(name, f"training.deepspeed.{name}")


def _put_precision(draft: Draft) -> None:
    half, optimizer = draft.value("fp16"), draft.value("optimizer_type")
    if half and optimizer in ("lamb", "adafactor"):
        draft.put("training.precision", "fp32", "fp16", "optimizer_type")
        draft.approximate(
            f"{optimizer} needs whole tensors, which fp16 (ZeRO stage 1) does not have here: the run is slower and "
            "takes more memory",
            "fp16",
        )
    else:
        draft.put("training.precision", "fp16" if half else "fp32", "fp16")
    backend = draft.value("fp16_backend")
    if half and backend == "apex":
        draft.approximate("DeepSpeed's mixed precision in the place of apex's", "fp16_backend")
    draft.leave_out("DeepSpeed's is what kdcore has" if half else "has no effect without --fp16",
                    *(["fp16_backend"] if not half or backend == "ds" else []))  # fmt: skip
    draft.leave_out("a level of apex", "fp16_opt")


def put_occasions(draft: Draft, shards: Shards) -> None:
    """Set validation, checkpoints, exports and early stopping."""
    phases = ("begin", "end")
    names = ["validation_epochs", "validation_micro_batch"]
    names += [name for phase in phases for name in (f"validation_epochs_{phase}", f"validation_{phase}_proportion")]
    if draft.value("do_validation"):
        epochs = draft.value("validation_epochs")
        draft.put("validation.every", shards.every(epochs), "do_validation", "validation_epochs",
                  note=shards.described(epochs))  # fmt: skip
        for phase in phases:
            share, epochs = draft.value(f"validation_{phase}_proportion"), draft.value(f"validation_epochs_{phase}")
            if share == 0:
                draft.leave_out(
                    "that part has no length", f"validation_{phase}_proportion", f"validation_epochs_{phase}"
                )
                continue
            draft.flag(f"validation_{phase}_proportion", f"validation.{phase}.share")
            draft.put(f"validation.{phase}.every", shards.every(epochs), f"validation_epochs_{phase}",
                      note=shards.described(epochs))  # fmt: skip
        draft.flag("validation_micro_batch", "validation.batch_size")
    else:
        draft.put("validation.every", "never", "do_validation")
        draft.leave_out("has no effect without --do_validation", *names)
    _put_checkpoints(draft, shards)
    _put_early_stopping(draft)


def _put_checkpoints(draft: Draft, shards: Shards) -> None:
    epochs = draft.value("num_epochs_between_checkpoints")
    if epochs > 0:
        draft.put("checkpoints.every", shards.every(epochs), "num_epochs_between_checkpoints",
                  note=shards.described(epochs))  # fmt: skip
    else:
        draft.put("checkpoints.every", {"minutes": 30}, "num_epochs_between_checkpoints")
        draft.approximate(
            "the source saves none during training; checkpoints every half hour let an interrupted run resume",
            "num_epochs_between_checkpoints",
        )
    draft.approximate("the last `checkpoints.keep` checkpoints are kept (2 by default); the source keeps all")
    draft.leave_out(
        "the same command continues the run; the source's checkpoints cannot be read",
        "load_training_checkpoint",
        "load_checkpoint_id",
    )
    markers = draft.value("finetune_time_markers")
    if markers is not None:
        try:
            shares = [float(marker) for marker in markers.split(",")]
            draft.put("checkpoints.export_at", shares, "finetune_time_markers")
        except ValueError:
            draft.refuse("finetune_time_markers", f"`{markers}` is not a list of shares", "as 0.25,0.5,0.75")
    draft.flag("finetune_checkpoint_at_end", "checkpoints.export_at_end")


def _put_early_stopping(draft: Draft) -> None:
    bounds = ("early_stop_time", "early_stop_eval_loss")
    if draft.value("use_early_stopping") and draft.value("do_validation"):
        draft.put("early_stopping.after_minutes", draft.value(bounds[0]), "use_early_stopping", bounds[0])
        draft.flag(bounds[1], "early_stopping.max_loss")
    elif draft.value("use_early_stopping"):
        draft.leave_out(
            "has no effect without --do_validation, but for --scale_cnt_limit", "use_early_stopping", *bounds
        )
    else:
        draft.leave_out("has no effect without --use_early_stopping", "use_early_stopping", *bounds)
    draft.flag("scale_cnt_limit", "early_stopping.max_steps_at_min_loss_scale")
