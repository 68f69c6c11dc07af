"""The flags of the source system's `run_pretraining.py`, as data: type, default and recipe keys of each flag.

The source is the code of "How to Distill your BERT" (ACL 2023), built on academic-budget-bert. Defaults are taken from
its argument classes. docs/source-command.md contains this table, and a test compares the two.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

FlagType = Literal["switch", "integer", "number", "text"]
FlagValue = bool | int | float | str

NO_LIMIT = sys.maxsize
"""The source's default for an unlimited number of steps."""

METHODS = (
    "hidden_mse",
    "hidden_cls",
    "hidden_mse_combine",
    "att_kl",
    "att_mse",
    "att_val_og",
    "minilm_v2",
    "pear_col",
    "att_mse_hidden_mse",
    "att_kl_hidden_mse",
    "att_val_two_stage",
)

NO_NSP = "kdcore has no next-sentence prediction, which does not help encoders (RoBERTa, 2019, section 4.2)"
NO_AUGMENTATION = "kdcore does not replace tokens with random ones: teachers provide no useful signal on such text"
FASTEST = "no key: kdcore always uses the fastest implementation"
NOT_READ = "no key: the source's pre-training does not read it"


@dataclass(frozen=True)
class Flag:
    """One flag of the source.

    Attributes:
        name: name without dashes.
        type: type of the value; `switch` is a boolean that is true if the flag has no value.
        default: the source's default; None if it has none.
        keys: keys of a recipe that the flag sets; empty if it has no counterpart.
        remark: differences of kdcore, in one or two sentences.
        choices: values that the source allows, if it restricts them.
        bare: whether kdcore accepts the flag without a value although the source requires one.
    """

    name: str
    type: FlagType
    default: FlagValue | None
    keys: tuple[str, ...]
    remark: str
    choices: tuple[str, ...] = ()
    bare: bool = False


def _config(name: str, type: FlagType, default: FlagValue, remark: str = "") -> Flag:
    return Flag(name, type, default, (f"student.config.{name}",), remark)


_TABLE = (
    # models
    Flag(
        "model_type",
        "text",
        "bert-mlm",
        ("student.config.model_type", "task.name"),
        "`bert-mlm-roberta` is the same encoder with another tokenizer, that of the prepared data. `bert-mlm-nsp` is "
        f"refused: {NO_NSP}.",
        ("bert-mlm", "bert-mlm-roberta", "bert-mlm-nsp"),
    ),
    Flag(
        "tokenizer_name",
        "text",
        None,
        ("task.data.tokenizer",),
        "fixed when the data is prepared; the vocabulary is compared with those of teacher and student",
    ),
    _config("vocab_size", "integer", 30522, "a student initialized from the teacher has the teacher's value"),
    _config("hidden_size", "integer", 1024),
    _config("num_hidden_layers", "integer", 24),
    _config("num_attention_heads", "integer", 16),
    _config("intermediate_size", "integer", 4096),
    _config("hidden_act", "text", "gelu"),
    _config("hidden_dropout_prob", "number", 0.1),
    _config("attention_probs_dropout_prob", "number", 0.1),
    _config(
        "max_position_embeddings", "integer", 512, "a student initialized from the teacher has the teacher's value"
    ),
    _config("type_vocab_size", "integer", 2, "a student initialized from the teacher has the teacher's value"),
    _config("initializer_range", "number", 0.02),
    Flag(
        "encoder_ln_mode",
        "text",
        "pre-ln",
        ("student.name", "student.config.norm_position"),
        "post-ln with a norm of the embeddings is BERT (`student.name: transformers`); every other form is "
        "`student.name: budget_bert`, which always applies the last norm of pre-ln",
        ("pre-ln", "post-ln"),
    ),
    Flag(
        "layer_norm_type",
        "text",
        "apex",
        ("student.name", "student.config.norm"),
        "`pytorch` and `apex` are the same norm, `layer_norm`; PyTorch has replaced apex's implementation",
        ("pytorch", "apex", "rms_norm"),
    ),
    Flag("layernorm_embedding", "switch", False, ("student.name", "student.config.embedding_norm"), ""),
    Flag("fused_linear_layer", "switch", True, (), FASTEST),
    Flag("sparse_mask_prediction", "switch", True, (), f"{FASTEST}: logits of masked positions only"),
    Flag("hugging_face", "switch", False, (), NOT_READ),
    Flag("model_name_or_path", "text", None, (), NOT_READ),
    Flag("config_name", "text", None, (), NOT_READ),
    Flag("cache_dir", "text", None, (), NOT_READ),
    Flag("pretrain_run_args", "text", None, (), NOT_READ),
    # distillation
    Flag("distillation", "switch", False, ("teacher",), "if omitted: `masked_lm` and no teacher"),
    Flag("teacher_path", "text", None, ("teacher.path",), "a Hugging Face folder or hub name"),
    Flag(
        "method",
        "text",
        None,
        ("losses",),
        "a combination has several entries, two stages are a schedule of their weights; "
        "recipes/how-to-distill-your-bert has a recipe for each",
        METHODS,
    ),
    Flag(
        "layer_selection",
        "text",
        "1,3,5,7,9,11",
        ("losses.*.layers",),
        "teacher blocks, counted from 0. A single one is paired with the student's last block, several with "
        "one student block each; the "
        "source ignores blocks without a partner, kdcore refuses them. `pear_col` compares the last blocks, and "
        "the source's `hidden_mse_combine` uses all blocks.",
    ),
    Flag(
        "student_initialize",
        "text",
        None,
        ("student.initialize",),
        "a Hugging Face folder; without a value (refused by the source, but used in its example) the "
        "teacher's blocks, evenly spaced",
        bare=True,
    ),
    Flag("aug", "switch", False, (), f"refused: {NO_AUGMENTATION}"),
    Flag("fearture_learn", "text", None, (), NOT_READ),
    # optimizer
    Flag(
        "optimizer_type",
        "text",
        "adamw",
        ("optimizer.name",),
        "biases and norm weights have no weight decay; the pooler is not trained, as in the source, "
        "because no loss reads it; `lamb` and `adafactor` require unpartitioned tensors and fp32.",
        ("adam", "adamw", "lamb", "adafactor"),
    ),
    Flag("lr", "number", 0.011, ("optimizer.lr",), ""),
    Flag("weight_decay", "number", 0.01, ("optimizer.weight_decay",), ""),
    Flag("adam_beta1", "number", 0.9, ("optimizer.betas",), "read by `adam` and `adamw`"),
    Flag("adam_beta2", "number", 0.999, ("optimizer.betas",), "read by `adam` and `adamw`"),
    Flag("adam_eps", "number", 1e-6, ("optimizer.eps",), "read by `adam` and `adamw`"),
    Flag("bias_correction", "switch", False, ("optimizer.bias_correction",), "read by `lamb`"),
    Flag("max_coeff", "number", 0.3, ("optimizer.max_coeff",), "read by `lamb`"),
    Flag("min_coeff", "number", 0.01, ("optimizer.min_coeff",), "read by `lamb`"),
    # schedule and budget
    Flag(
        "lr_schedule",
        "text",
        "time",
        ("scheduler.over",),
        "`constant_step` is `over: steps` with `warmup_steps` instead of `warmup`",
        ("step", "constant_step", "time"),
    ),
    Flag("curve", "text", "linear", ("scheduler.name",), "`exp` is `exponential`", ("linear", "exp")),
    Flag("warmup_proportion", "number", 0.06, ("scheduler.warmup",), "read by `step` and `time`"),
    Flag("num_warmup_steps", "integer", 1000, ("scheduler.warmup_steps",), "read by `constant_step`"),
    Flag("decay_rate", "number", 0.99, ("scheduler.decay_rate",), "read by `exp`"),
    Flag("decay_step", "integer", 1000, ("scheduler.decay_step",), "read by `exp`"),
    Flag(
        "max_steps",
        "integer",
        NO_LIMIT,
        ("training.budget.steps",),
        "checked at each step; in the source, once per shard",
    ),
    Flag("max_steps_per_epoch", "integer", NO_LIMIT, (), "no key: kdcore uses all data"),
    Flag("num_epochs", "integer", 1000000, ("training.budget.epochs",), "an epoch of the source is one shard"),
    Flag("total_training_time", "number", 24.0, ("training.budget.hours",), ""),
    Flag(
        "early_exit_time_marker",
        "number",
        24.0,
        ("training.budget.exit_after_hours",),
        "omitted if later than `total_training_time`",
    ),
    # batches and engine
    Flag("train_batch_size", "integer", 65536, ("training.batch_size",), ""),
    Flag("train_micro_batch_size_per_gpu", "integer", 32, ("training.micro_batch_size",), ""),
    Flag(
        "gradient_accumulation_steps",
        "integer",
        1,
        (),
        "no key: follows from batch size, micro-batch size and number of processes, as in the source",
    ),
    Flag("gradient_clipping", "number", 1.0, ("training.gradient_clipping",), ""),
    Flag(
        "fp16",
        "switch",
        False,
        ("training.precision",),
        "if omitted: `fp32`. The loss scale has the same initial value and updates.",
    ),
    Flag(
        "fp16_backend",
        "text",
        "ds",
        ("training.precision",),
        "DeepSpeed's mixed precision, which also approximates `apex`",
        ("ds", "apex"),
    ),
    Flag("fp16_opt", "text", "O2", (), "no key: apex's optimization level"),
    Flag("deepspeed", "switch", False, (), "no key: always DeepSpeed; its keys belong under `training.deepspeed`"),
    Flag("prescale_gradients", "switch", False, ("training.deepspeed.prescale_gradients",), ""),
    Flag("gradient_predivide_factor", "integer", None, ("training.deepspeed.gradient_predivide_factor",), ""),
    Flag("wall_clock_breakdown", "switch", False, ("training.deepspeed.wall_clock_breakdown",), ""),
    Flag("steps_per_print", "integer", 100, ("training.deepspeed.steps_per_print",), "omitted if not given"),
    Flag("deepspeed_transformer_kernel", "switch", False, (), FASTEST),
    Flag("stochastic_mode", "switch", False, (), FASTEST),
    Flag("attention_dropout_checkpoint", "switch", False, (), FASTEST),
    Flag("normalize_invertible", "switch", False, (), FASTEST),
    Flag("gelu_checkpoint", "switch", False, (), FASTEST),
    Flag("local_rank", "integer", -1, (), "no key: set by the launcher"),
    # data
    Flag(
        "dataset_path",
        "text",
        "books_wiki_en_corpus",
        ("task.data", "task.masking"),
        "a folder of hdf5 shards; their masks are used unchanged (`masking: static`)",
    ),
    Flag(
        "data_loader_type",
        "text",
        "per_device",
        ("task.order",),
        "`dist` is `global`, `per_device` is `per_process`; an epoch of the source is one shard, or one per process",
        ("dist", "per_device"),
    ),
    Flag("num_workers", "integer", 4, (), "no key: one background thread is fast enough"),
    Flag("async_worker", "switch", True, (), "no key: always asynchronous"),
    Flag(
        "max_predictions_per_seq",
        "integer",
        20,
        (),
        "no key: it limited the masks stored in the shards; for dynamic masks it is `task.masking.max_predictions`",
    ),
    Flag("add_nsp", "switch", False, (), f"refused: {NO_NSP}"),
    # validation and early stopping
    Flag("do_validation", "switch", False, ("validation.every",), "if omitted: `never`"),
    Flag("validation_epochs", "integer", 10, ("validation.every",), "an epoch of the source is one shard"),
    Flag("validation_epochs_begin", "integer", 1, ("validation.begin.every",), "an epoch of the source is one shard"),
    Flag("validation_epochs_end", "integer", 1, ("validation.end.every",), "an epoch of the source is one shard"),
    Flag(
        "validation_begin_proportion",
        "number",
        0.1,
        ("validation.begin.share",),
        "a fraction of the budget; in the source, a fraction of the hours",
    ),
    Flag(
        "validation_end_proportion",
        "number",
        0.1,
        ("validation.end.share",),
        "a fraction of the budget; in the source, a fraction of the hours",
    ),
    Flag("validation_micro_batch", "integer", 16, ("validation.batch_size",), ""),
    Flag(
        "use_early_stopping",
        "switch",
        False,
        ("early_stopping",),
        "a non-finite loss always ends a run",
    ),
    Flag("early_stop_time", "integer", 720, ("early_stopping.after_minutes",), ""),
    Flag("early_stop_eval_loss", "number", 2.1, ("early_stopping.max_loss",), ""),
    Flag("scale_cnt_limit", "integer", 100, ("early_stopping.max_steps_at_min_loss_scale",), "consecutive steps"),
    # checkpoints
    Flag(
        "num_epochs_between_checkpoints",
        "integer",
        -1,
        ("checkpoints.every",),
        "an epoch of the source is one shard. kdcore keeps the last two checkpoints, the source all; without the flag "
        "kdcore writes one "
        "every half hour, the source only at the end.",
    ),
    Flag("load_training_checkpoint", "text", None, (), "no key: the same command resumes the run"),
    Flag("load_checkpoint_id", "text", None, (), "no key: kdcore resumes from the newest checkpoint"),
    Flag(
        "finetune_time_markers",
        "text",
        None,
        ("checkpoints.export_at",),
        "fractions of the budget, at the step that reaches them; in the source, fractions of the hours, after a shard",
    ),
    Flag("finetune_checkpoint_at_end", "switch", True, ("checkpoints.export_at_end",), ""),
    # naming and logging
    Flag("seed", "integer", 42, ("seed",), ""),
    Flag("output_dir", "text", None, ("run.folder",), "`runs` if not given; required by the source"),
    Flag("job_name", "text", "pretraining_experiment", ("run.name",), ""),
    Flag("current_run_id", "text", "", ("run.id",), "`1` if not given"),
    Flag(
        "project_name",
        "text",
        "budget-lm-pretraining",
        ("tracking",),
        "project of the tracker `wandb`, used if the package kdcore-wandb is installed",
    ),
    Flag("print_steps", "integer", 100, ("logging.every",), ""),
    Flag("log_throughput_every", "integer", 20, (), "no key: every row of metrics contains the throughput"),
)

FLAGS = {flag.name: flag for flag in _TABLE}
"""Every flag by its name, in table order."""
