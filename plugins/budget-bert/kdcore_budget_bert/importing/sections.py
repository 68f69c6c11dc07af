"""Convert the source system's flags for names, models, data, losses and trackers."""

from __future__ import annotations

from typing import Any

from kdcore import Problem, component_names
from kdcore_budget_bert.importing.draft import Draft
from kdcore_budget_bert.importing.flags import FASTEST, FLAGS, METHODS, NO_AUGMENTATION, NO_NSP, NOT_READ

_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
)
_EMBEDDING_SIZES = ("vocab_size", "max_position_embeddings", "type_vocab_size")
_DISTILLATION = ("teacher_path", "method", "layer_selection", "student_initialize")
_TWO_HALVES: tuple[dict[str, Any], dict[str, Any]] = ({"active": [0.0, 0.5]}, {"active": [0.5, 1.0]})
# Method of the source -> loss of kdcore -> its keys in addition to `layers`; a loss without a teacher has no layers.
_LOSSES: dict[str, dict[str, dict[str, Any]]] = {
    "hidden_mse": {"hidden_mse": {}},
    "hidden_cls": {"hidden_mse_cls": {}},
    "hidden_mse_combine": {"hidden_mse_concat": {"project": "student"}},
    "att_kl": {"attention_kl": {}},
    "att_mse": {"attention_mse": {}},
    "att_val_og": {"attention_kl": {}, "value_relation_kl": {}},
    "minilm_v2": {"minilm_v2": {}},
    "pear_col": {"attention_pearson": {}},
    "att_mse_hidden_mse": {"attention_mse": {}, "hidden_mse": {}},
    "att_kl_hidden_mse": {"attention_kl": {}, "hidden_mse": {}},
    "att_val_two_stage": {
        "masked_lm": _TWO_HALVES[0],
        "attention_kl": _TWO_HALVES[1],
        "value_relation_kl": _TWO_HALVES[1],
    },
}
_DEPARTURES = {
    "hidden_cls": "the source's code compares all tokens of each batch's first sequence; here the first token of each",
    "hidden_mse_combine": "the source's code maps all blocks of the teacher by a matrix that is never trained; here one"
    " that is trained maps the student's blocks, side by side, to as many of the teacher's",
    "minilm_v2": "the source's code compares its first block with the student's last one, and drops the others",
    "pear_col": "the source's code is above 0 for equal models, and lets padding count; here it is 0, and does not",
    "att_val_two_stage": "the source's second stage never starts, and its halves are of the hours; here it does, and "
    "they are of the budget",
}


def put_run(draft: Draft) -> None:
    """Set the run folder and the seed."""
    draft.flag("job_name", "run.name")
    if draft.value("current_run_id"):
        run_id = draft.value("current_run_id")
        draft.put(
            "run.id", int(run_id) if run_id.isdecimal() and str(int(run_id)) == run_id else run_id, "current_run_id"
        )
    if draft.value("output_dir") is not None:
        draft.flag("output_dir", "run.folder")
    draft.flag("seed", "seed")


def put_models(draft: Draft) -> None:
    """Set teacher and student."""
    _refuse_what_is_not_wanted(draft)
    distils = draft.value("distillation")
    if distils and draft.value("teacher_path") is None:
        draft.problems.append(Problem("the flag is missing", draft.where("distillation"), "--teacher_path"))
    elif distils:
        draft.put("teacher.name", "transformers", "distillation")
        draft.flag("teacher_path", "teacher.path")
    for name in _DISTILLATION if not distils else ():
        draft.value(name)
        if draft.given(name):
            draft.refuse(name, "this means nothing without --distillation", hint="Add --distillation, or leave it out.")
    norm_position, norm = draft.value("encoder_ln_mode"), draft.value("layer_norm_type")
    form = ("encoder_ln_mode", "layer_norm_type", "layernorm_embedding")
    is_bert = norm_position == "post-ln" and norm != "rms_norm" and draft.value("layernorm_embedding")
    if is_bert:
        draft.put("student.name", "transformers", *form, note="together BERT")
        draft.put("student.config.model_type", "bert", "model_type")
    else:
        draft.put("student.name", "budget_bert", "model_type")
        draft.put("student.config.norm_position", norm_position.removesuffix("-ln"), "encoder_ln_mode")
        draft.put("student.config.norm", "rms_norm" if norm == "rms_norm" else "layer_norm", "layer_norm_type")
        draft.flag("layernorm_embedding", "student.config.embedding_norm")
    if draft.value("model_type") == "bert-mlm-roberta":
        draft.approximate(
            "the same encoder as bert-mlm, also in the source; the data's tokenizer is used", "model_type"
        )
    for name in _SIZES:
        draft.flag(name, f"student.config.{name}")
    copies = distils and draft.given("student_initialize") and draft.value("student_initialize") is None
    for name in _EMBEDDING_SIZES:
        draft.value(name)
        if draft.given(name) or not copies:
            draft.flag(name, f"student.config.{name}")
    if copies and not is_bert:
        draft.refuse(
            "student_initialize",
            "without a folder, the teacher's blocks are copied, but a student of this form cannot use the blocks of a "
            f"BERT: {draft.as_given(*form)}",
            hint="Name a folder, leave the flag out, or let the student be a BERT: --encoder_ln_mode post-ln, "
            "--layer_norm_type pytorch, --layernorm_embedding.",
        )
    _put_initialize(draft, copies)


def _refuse_what_is_not_wanted(draft: Draft) -> None:
    if draft.value("model_type") == "bert-mlm-nsp":
        draft.refuse("model_type", NO_NSP, ("bert-mlm", "bert-mlm-roberta"))
    if draft.value("add_nsp"):
        draft.refuse("add_nsp", NO_NSP, hint="Leave it out.")
    if draft.value("aug"):
        draft.refuse("aug", NO_AUGMENTATION, hint="Leave it out.")
    draft.leave_out("kdcore always behaves this way", "aug", "add_nsp")


def _put_initialize(draft: Draft, copies: bool) -> None:
    if copies:
        draft.put("student.initialize.from", "teacher", "student_initialize")
        draft.put("student.initialize.blocks", "uniform")
        draft.approximate(
            "it names no folder, so the student starts from the teacher's blocks, evenly spaced (`uniform`), and "
            "its embeddings",
            "student_initialize",
        )
    elif draft.value("student_initialize") is not None:
        draft.flag("student_initialize", "student.initialize.from")
        draft.approximate(
            "a Hugging Face folder with the sizes in `student.config`. Checkpoints written by the source's own code "
            "cannot be read, because their weights have other names",
            "student_initialize",
        )


def put_task(draft: Draft) -> None:
    """Set the task and its data."""
    draft.put("task.name", "masked_lm", "model_type")
    path = draft.value("dataset_path")
    if draft.value("tokenizer_name") is None:
        draft.problems.append(Problem("the flag is missing (the source also requires it)", None, "--tokenizer_name"))
    draft.flag("tokenizer_name", "task.data.tokenizer")
    draft.put(
        "task.data.sequence_length",
        128,
        note="generate_samples.py --max_seq_length 128; the command does not specify it",
    )
    draft.put("task.data.held_out", 0.0, note="the test shards are held out already")
    draft.put(
        "task.data.corpora",
        [{"name": "hdf5", "path": path}],
        "dataset_path",
        note="reading them needs pip install 'kdcore-preparation[hdf5]'",
    )
    draft.put("task.masking", "static", "dataset_path", note="the masks in the shards")
    order = "global" if draft.value("data_loader_type") == "dist" else "per_process"
    draft.put("task.order", order, "data_loader_type")
    draft.leave_out("batches are always made in parallel with training", "num_workers", "async_worker")
    draft.leave_out("a bound that was kept when the masks were drawn", "max_predictions_per_seq")


def put_losses(draft: Draft) -> None:
    """Set the objective and the blocks that it pairs."""
    if not draft.value("distillation"):
        draft.put("losses.masked_lm", {}, note="--distillation is not given")
        return
    method = draft.value("method")
    if method is None:
        draft.problems.append(Problem("the flag is missing", draft.where("distillation"), "--method", METHODS))
        return
    draft.approximate(
        "padding is never counted, and the teacher has no dropout; the source's code differs in both", "method"
    )
    layers = _layers(draft, method)
    for loss, keys in _LOSSES[method].items():
        paired = {} if loss == "masked_lm" else {"layers": layers}
        flags = ("method",) if loss == "masked_lm" else ("method", "layer_selection")
        draft.put(f"losses.{loss}", paired | keys, *flags)
    several = isinstance(layers, list) and len(layers) > 1
    if method in _DEPARTURES and (method != "minilm_v2" or several):
        draft.approximate(_DEPARTURES[method], "method")
    elif several and "hidden_mse" in _LOSSES[method]:
        draft.approximate("the source's code uses only the last pair of hidden states; kdcore uses all pairs", "method")
    draft.leave_out(
        "has no effect: the source compares the last blocks", *(["layer_selection"] if layers == "last" else [])
    )


def _layers(draft: Draft, method: str) -> Any:
    """Return `layers` of the losses: the selected teacher blocks next to the student's."""
    selection, depth = draft.value("layer_selection"), draft.value("num_hidden_layers")
    if method == "pear_col":
        return "last"
    try:
        blocks = [int(block) for block in selection.split(",")]
    except ValueError:
        draft.refuse(
            "layer_selection", f"`{selection}` is not a list of blocks", "numbers with commas between, as 1,3,5"
        )
        return None
    if method == "hidden_mse_combine" and len(blocks) != depth:
        return "uniform"
    if len(blocks) == 1:
        return [[blocks[0], depth - 1]]
    if len(blocks) != depth:
        blocks_given = f"{selection}: {len(blocks)} teacher blocks"
        draft.refuse(
            "layer_selection",
            f"{blocks_given} do not pair up with {depth} student blocks (--num_hidden_layers)",
            f"1 block, for the student's last one, or {depth}",
        )
    return [[block, own] for own, block in enumerate(blocks)]


def put_logging(draft: Draft) -> None:
    """Set trackers and the interval of metrics."""
    draft.flag("print_steps", "logging.every")
    draft.leave_out("every row of metrics contains the throughput", "log_throughput_every")
    plain: list[Any] = ["tensorboard", "jsonl"]
    project = draft.value("project_name")
    if "wandb" in component_names("kdcore.trackers"):
        draft.put("tracking", [*plain, {"name": "wandb", "project": project}], "project_name")
    else:
        draft.put("tracking", plain)
        draft.approximate(
            f"wandb is not installed. After `pip install kdcore-wandb`: tracking: [tensorboard, jsonl, {{name: wandb, "
            f"project: {project}}}]",
            "project_name",
        )


def leave_out_the_rest(draft: Draft) -> None:
    """Omit flags that no recipe needs."""
    draft.leave_out("always DeepSpeed; its keys belong under `training.deepspeed`", "deepspeed")
    fastest = [name for name, flag in FLAGS.items() if flag.remark.startswith(FASTEST)]
    draft.leave_out("kdcore always uses the fastest implementation", *fastest)
    draft.leave_out("set by the launcher", "local_rank")
    not_read = [name for name, flag in FLAGS.items() if flag.remark == NOT_READ]
    draft.leave_out("the source's pre-training does not read it", *not_read)
