"""`kdcore recipe import`: commands of the source system become recipes, and no flag is lost."""

from __future__ import annotations

import io
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kdcore_budget_bert.importing.conversion import import_command
from kdcore_budget_bert.importing.flags import FLAGS, METHODS, NO_LIMIT, Flag

from kdcore import InputError, load_recipe, registry, resolve_pairs
from kdcore.commands.main import main
from kdcore.recipe.paths import shipped_recipes
from kdcore.recipe.yaml import read_yaml

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "source-command.md").read_text(encoding="utf-8")
COMMAND = (ROOT / "tests" / "source-command.sh").read_text(encoding="utf-8")
SHORT = "run_pretraining.py --tokenizer_name bert-base-uncased"
DISTILS = f"{SHORT} --distillation --teacher_path t --num_hidden_layers 6"
BERT = "--encoder_ln_mode post-ln --layernorm_embedding"


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def imported(command: str, **options: Any) -> dict[str, Any]:
    """The recipe's keys and values."""
    text = import_command(command, "stdin", **options)
    Path("imported.yaml").write_text(text, encoding="utf-8")
    data: dict[str, Any] = read_yaml(Path("imported.yaml")).plain()
    return data


def at(data: Mapping[str, Any], key: str) -> Any:
    value: Any = data
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def pipe(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(command.encode())))


def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if kdcore-wandb were not installed."""
    names = {"kdcore.trackers": ["jsonl", "tensorboard"]}
    monkeypatch.setattr("kdcore_budget_bert.importing.sections.component_names", names.__getitem__)


# The example of the source, as it is printed.

FIVE_SHARDS = {"epochs": 5 / 2560}
PRINTED: dict[str, dict[str, Any] | str] = {
    "model_type": {"student.config.model_type": "bert", "task.name": "masked_lm"},
    "deepspeed": "always DeepSpeed",
    "tokenizer_name": {"task.data.tokenizer": "bert-base-uncased"},
    "hidden_act": {"student.config.hidden_act": "gelu"},
    "hidden_dropout_prob": {"student.config.hidden_dropout_prob": 0.1},
    "attention_probs_dropout_prob": {"student.config.attention_probs_dropout_prob": 0.1},
    "encoder_ln_mode": {"student.name": "transformers"},
    "lr": {"optimizer.lr": 5e-4},
    "lr_schedule": {"scheduler.over": "steps"},
    "max_steps": {"training.budget.steps": 100000},
    "curve": {"scheduler.name": "linear"},
    "warmup_proportion": {"scheduler.warmup": 0.06},
    "gradient_clipping": {"training.gradient_clipping": 0.0},
    "optimizer_type": {"optimizer.name": "adamw"},
    "weight_decay": {"optimizer.weight_decay": 0.01},
    "adam_beta1": {"optimizer.betas.0": 0.9},
    "adam_beta2": {"optimizer.betas.1": 0.98},
    "adam_eps": {"optimizer.eps": 1e-6},
    "dataset_path": {"task.data.corpora.0.path": "~/data/budget/masked", "task.masking": "static"},
    "output_dir": {"run.folder": "~/code/academic-budget-bert/training-out"},
    "print_steps": {"logging.every": 100},
    "num_epochs_between_checkpoints": {"checkpoints.every": {"epochs": 100 / 2560}},
    "project_name": {"tracking.2": {"name": "wandb", "project": "budget-bert-pretraining-post"}},
    "validation_epochs": {"validation.every": FIVE_SHARDS},
    "validation_epochs_begin": {"validation.begin.every": FIVE_SHARDS},
    "validation_epochs_end": {"validation.end.every": FIVE_SHARDS},
    "validation_begin_proportion": {"validation.begin.share": 0.01},
    "validation_end_proportion": {"validation.end.share": 0.01},
    "validation_micro_batch": {"validation.batch_size": 64},
    "data_loader_type": {"task.order": "global"},
    "do_validation": {"validation.every": FIVE_SHARDS},
    "use_early_stopping": {"early_stopping.after_minutes": 180},
    "early_stop_time": {"early_stopping.after_minutes": 180},
    "early_stop_eval_loss": {"early_stopping.max_loss": 6},
    "seed": {"seed": 43},
    "layernorm_embedding": {"student.name": "transformers"},
    "hidden_size": {"student.config.hidden_size": 768},
    "num_hidden_layers": {"student.config.num_hidden_layers": 6},
    "num_attention_heads": {"student.config.num_attention_heads": 12},
    "intermediate_size": {"student.config.intermediate_size": 3072},
    "layer_selection": {"losses.hidden_mse.layers": [[11, 5]]},
    "distillation": {"teacher.name": "transformers"},
    "teacher_path": {"teacher.path": "models/teachers/bert-base-uncased"},
    "total_training_time": {"training.budget.hours": 90.0},
    "early_exit_time_marker": {"training.budget.exit_after_hours": 90.0},
    "train_batch_size": {"training.batch_size": 1024},
    "train_micro_batch_size_per_gpu": {"training.micro_batch_size": 256},
    "job_name": {"run.name": "hidden_mse_init"},
    "current_run_id": {"run.id": 1},
    "method": {"losses.hidden_mse.layers": [[11, 5]]},
    "finetune_time_markers": {"checkpoints.export_at": [round(0.05 * number, 2) for number in range(1, 20)]},
    "fused_linear_layer": "kdcore always uses the fastest implementation",
    "layer_norm_type": {"student.name": "transformers"},
    "fp16": {"training.precision": "fp16"},
    "fp16_backend": "DeepSpeed's is what kdcore has",
    "student_initialize": {"student.initialize": {"from": "teacher", "blocks": "uniform"}},
}
"""For each flag of the example its values in the recipe, or part of its remark."""


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Output of `kdcore recipe show` for the recipe converted from the example, which is piped in as printed."""
    pipe(COMMAND, monkeypatch)
    assert main(["recipe", "import"]) == 0
    Path("recipe.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert main(["recipe", "show", "recipe.yaml"]) == 0
    Path("shown.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    data: dict[str, Any] = read_yaml(Path("shown.yaml")).plain()
    return data


def test_each_value_of_the_example_is_in_the_recipe(shown: dict[str, Any]) -> None:
    recipe = Path("recipe.yaml").read_text(encoding="utf-8")
    assert set(PRINTED) == set(re.findall(r"--(\w+)", COMMAND))
    for flag, expected in PRINTED.items():
        if isinstance(expected, str):
            (line,) = [line for line in recipe.splitlines() if line.startswith(f"#   - --{flag}")]
            assert expected in line
            continue
        for key, value in expected.items():
            assert at(shown, key) == value, flag


def test_the_examples_recipe_passes_the_check(shown: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "check", "recipe.yaml"]) == 0
    assert "the recipe is valid" in capsys.readouterr().out


def test_the_bare_student_initialize_is_explained(shown: dict[str, Any]) -> None:
    header = Path("recipe.yaml").read_text(encoding="utf-8").partition("\n\n")[0].replace("\n#     ", " ")
    assert "--student_initialize: it names no folder, so the student starts from the teacher's blocks" in header


def test_the_shipped_recipe_is_the_example_but_for_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    without_wandb(monkeypatch)
    own = imported(COMMAND)
    shipped = load_recipe("kdcore:how-to-distill-your-bert/hidden_mse_init.yaml").data
    del own["run"]["folder"], own["task"]["data"], own["teacher"]["path"], shipped["teacher"]["path"]
    del own["task"]["masking"]  # comes with the data
    assert own == shipped


def test_without_kdcore_wandb_the_recipe_names_what_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    without_wandb(monkeypatch)
    recipe = import_command(COMMAND, "stdin")
    assert "tracking: [tensorboard, jsonl]" in recipe
    assert "pip install kdcore-wandb" in recipe
    assert "project: budget-bert-pretraining-post" in recipe.replace("\n#     ", " ")


# Nothing is dropped.

OTHER_VALUES: dict[str, str] = {
    "model_type": "bert-mlm-roberta",
    "encoder_ln_mode": "post-ln",
    "layer_norm_type": "rms_norm",
    "optimizer_type": "lamb",
    "lr_schedule": "constant_step",
    "curve": "exp",
    "fp16_backend": "apex",
    "data_loader_type": "dist",
    "finetune_time_markers": "0.5",
    "max_steps": "2000",
    "total_training_time": "48",
    "train_batch_size": "96",
    "train_micro_batch_size_per_gpu": "4",
}


def other_value(flag: Flag) -> str:
    if flag.type == "switch":
        return "false" if flag.default else "true"
    return OTHER_VALUES.get(flag.name) or {"integer": "3", "number": "0.25", "text": "words"}[flag.type]


@pytest.mark.parametrize("name", [name for name in FLAGS if name not in ("aug", "add_nsp", "distillation")])
def test_every_flag_of_the_source_is_in_the_recipe_as_a_value_or_a_remark(name: str) -> None:
    command = f"{SHORT} --lr_schedule constant_step --train_micro_batch_size_per_gpu 1"
    if name in ("method", "layer_selection", "teacher_path", "student_initialize"):
        command += " --distillation --teacher_path t --method hidden_mse --layer_selection 11"
    value = {"method": "hidden_mse", "layer_selection": "3"}.get(name) or other_value(FLAGS[name])
    assert f"--{name} {value}" in import_command(f"{command} --{name} {value}", "stdin")


def test_what_a_short_command_leaves_open_is_the_sources_default() -> None:
    recipe = imported(SHORT)
    assert "teacher" not in recipe
    assert recipe["losses"] == {"masked_lm": {}}
    assert recipe["student"]["name"] == "budget_bert"
    assert recipe["student"]["config"] == {
        "norm_position": "pre",
        "norm": "layer_norm",
        "embedding_norm": False,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    }
    assert recipe["optimizer"] == {
        "name": "adamw",
        "lr": 0.011,
        "weight_decay": 0.01,
        "betas": [0.9, 0.999],
        "eps": 1e-6,
    }
    assert recipe["scheduler"] == {"name": "linear", "over": "time", "warmup": 0.06}
    assert recipe["training"]["budget"] == {"hours": 24.0, "exit_after_hours": 24.0}
    assert recipe["training"]["batch_size"] == 65536
    assert recipe["training"]["micro_batch_size"] == 32
    assert recipe["training"]["gradient_clipping"] == 1.0
    assert recipe["training"]["precision"] == "fp32"
    assert recipe["validation"] == {"every": "never"}
    assert recipe["seed"] == 42


def test_the_early_exit_of_a_longer_budget_is_the_sources_default() -> None:
    assert imported(f"{SHORT} --total_training_time 90")["training"]["budget"]["exit_after_hours"] == 24.0


def test_an_exit_behind_the_end_is_left_out_with_a_remark() -> None:
    command = f"{SHORT} --total_training_time 12"
    assert "exit_after_hours" not in imported(command)["training"]["budget"]
    recipe = import_command(f"{command} --early_exit_time_marker 20", "stdin")
    assert "--early_exit_time_marker 20: the run ends before" in recipe


@pytest.mark.parametrize(
    "form", ["--encoder_ln_mode post-ln", "--layernorm_embedding", f"{BERT} --layer_norm_type rms_norm"]
)
def test_every_other_form_than_bert_is_the_sources_own_encoder(form: str) -> None:
    config = imported(f"{SHORT} {form}")["student"]
    assert config["name"] == "budget_bert"
    assert config["config"]["norm_position"] == ("post" if "post-ln" in form else "pre")
    assert config["config"]["norm"] == ("rms_norm" if "rms_norm" in form else "layer_norm")
    assert config["config"]["embedding_norm"] is ("embedding" in form)


@pytest.mark.parametrize("command", [SHORT, f"{SHORT} {BERT}", f"{DISTILS} --method hidden_mse {BERT}"])
def test_recipes_of_short_commands_pass_the_check(command: str) -> None:
    imported(command)
    assert main(["recipe", "check", "imported.yaml"]) == 0


@pytest.mark.parametrize(("optimizer", "keys"), [
    ("adam", {"betas": [0.9, 0.98], "eps": 1e-6}),
    ("lamb", {"betas": [0.9, 0.999], "eps": 1e-8, "bias_correction": False, "max_coeff": 0.3, "min_coeff": 0.01}),
    ("adafactor", {}),
])  # fmt: skip
def test_optimizers_have_the_keys_that_the_source_reads(optimizer: str, keys: dict[str, Any]) -> None:
    command = f"{SHORT} --optimizer_type {optimizer} --lr 1e-3 --adam_beta2 0.98 --fp16"
    recipe = imported(command)
    assert recipe["optimizer"] == {"name": optimizer, "lr": 1e-3, "weight_decay": 0.01, **keys}
    assert recipe["training"]["precision"] == ("fp16" if optimizer == "adam" else "fp32")
    assert main(["recipe", "check", "imported.yaml"]) == 0


@pytest.mark.parametrize(("flags", "keys"), [
    ("--lr_schedule time --curve linear", {"name": "linear", "over": "time", "warmup": 0.06}),
    ("--lr_schedule step --max_steps 9 --curve exp --decay_rate 0.5 --decay_step 3",
     {"name": "exponential", "over": "steps", "warmup": 0.06, "decay_rate": 0.5, "decay_step": 3}),
    ("--lr_schedule constant_step --max_steps 99 --num_warmup_steps 7",
     {"name": "linear", "over": "steps", "warmup_steps": 7}),
])  # fmt: skip
def test_schedules_have_the_keys_that_the_source_reads(flags: str, keys: dict[str, Any]) -> None:
    assert imported(f"{SHORT} {flags}")["scheduler"] == keys
    assert main(["recipe", "check", "imported.yaml"]) == 0


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_those_of_the_shipped_recipes(method: str) -> None:
    text = (shipped_recipes() / "how-to-distill-your-bert" / f"{method}.yaml").read_text(encoding="utf-8")
    said = re.search(r"--layer_selection ([\d,]+)", text)
    own = imported(f"{DISTILS} --method {method} --layer_selection {said[1] if said else 11}")["losses"]
    shipped = load_recipe(f"kdcore:how-to-distill-your-bert/{method}.yaml").data["losses"]
    for losses in (own, shipped):
        for keys in losses.values():
            if "layers" in keys:
                keys["layers"] = list(resolve_pairs(keys["layers"], 12, 6))
    assert own == shipped


def test_several_blocks_are_one_for_each_of_the_students() -> None:
    losses = imported(f"{DISTILS} --method att_mse_hidden_mse --layer_selection 0,2,4,6,8,10")["losses"]
    pairs = [[0, 0], [2, 1], [4, 2], [6, 3], [8, 4], [10, 5]]
    assert losses == {"attention_mse": {"layers": pairs}, "hidden_mse": {"layers": pairs}}


# Shards.


def test_shards_are_counted_where_the_data_lies(tmp_path: Path) -> None:
    for name in ("train_shard_0.hdf5", "train_shard_1.hdf5", "test_shard_0.hdf5", "notes.txt"):
        (tmp_path / name).touch()
    command = f"{SHORT} --dataset_path {tmp_path} --do_validation --num_epochs 8 --data_loader_type dist"
    assert imported(command)["validation"]["every"] == {"epochs": 5.0}
    assert imported(command)["training"]["budget"]["epochs"] == 4.0
    assert imported(command, shards=80)["training"]["budget"]["epochs"] == 0.1
    assert "parts of its 2 shards (as in" in import_command(command, "stdin").replace("\n#     ", " ")


def test_with_a_shard_on_each_process_an_epoch_is_as_many_shards() -> None:
    recipe = imported(f"deepspeed --num_gpus 4 {SHORT} --data_loader_type per_device --num_epochs 8", shards=64)
    assert recipe["training"]["budget"]["epochs"] == 0.5
    recipe = imported(f"deepspeed --num_gpus 4 {SHORT} --data_loader_type dist --num_epochs 8", shards=64)
    assert recipe["training"]["budget"]["epochs"] == 0.125
    assert "one is assumed" in import_command(f"deepspeed {SHORT}", "stdin").replace("\n#     ", " ")


def test_an_assumed_number_of_shards_is_stated() -> None:
    assert "use --shards for another number" in import_command(SHORT, "stdin").replace("\n#     ", " ")


# Commands as people paste them.

WAYS = {
    "no backslashes": COMMAND.replace("\\\n", "\n"),
    "one line": " ".join(COMMAND.replace("\\\n", " ").split()),
    "blanks behind backslashes": COMMAND.replace("\\\n", "\\  \n"),
    "line ends of Windows": COMMAND.replace("\n", "\r\n"),
    "a page's fence": f"```bash\n{COMMAND}```\n",
    "a prompt": f"$ {COMMAND}",
    "comments": "# my run\n" + COMMAND.replace("--seed 43 \\\n", "--seed 43  # not 42\n"),
    "equals signs": re.sub(r"(--\w+) ([\w./~])", r"\1=\2", COMMAND),
    "quotes": COMMAND.replace("hidden_mse_init", "'hidden_mse_init'").replace("gelu", '"gelu"'),
    "deepspeed": COMMAND.replace("python -m torch.distributed.launch", "deepspeed --num_gpus 4 --master_port=1234"),
    "torchrun": COMMAND.replace("python -m torch.distributed.launch", "OMP_NUM_THREADS=1 torchrun --nproc_per_node 2"),
    "no launcher": COMMAND.replace("python -m torch.distributed.launch", "python3.11 -u"),
    "flags alone": COMMAND.partition("\n")[2],
}


@pytest.mark.parametrize("way", WAYS)
def test_however_it_is_written_the_recipe_is_the_same(way: str) -> None:
    assert imported(WAYS[way]) == imported(COMMAND)


@pytest.mark.parametrize(
    ("start", "train"),
    [
        ("deepspeed --num_gpus 4", "--processes 4"),
        ("deepspeed", "--processes N"),
        ("torchrun --nproc-per-node=2 --nnodes=3", "--processes 6"),
        ("python", "kdcore-train RECIPE\n"),
    ],
)
def test_the_recipe_states_how_many_processes_the_launcher_starts(start: str, train: str) -> None:
    assert train in import_command(f"{start} {SHORT}", "stdin")


def test_variables_in_front_are_listed_by_name_alone() -> None:
    recipe = import_command(f"WANDB_API_KEY=secret OMP_NUM_THREADS=1 python {SHORT}", "stdin")
    assert "not part of a recipe: WANDB_API_KEY, OMP_NUM_THREADS" in recipe
    assert "secret" not in recipe


@pytest.mark.parametrize(("said", "value"), [
    ("--finetune_checkpoint_at_end false", False),
    ("--finetune_checkpoint_at_end No", False),
    ("--finetune_checkpoint_at_end=0", False),
    ("--no_finetune_checkpoint_at_end", False),
    ("--finetune_checkpoint_at_end", True),
    ("--finetune_checkpoint_at_end T", True),
    ("--finetune_checkpoint_at_end 0 --finetune_checkpoint_at_end 1", True),
])  # fmt: skip
def test_switches_are_read_as_the_source_reads_them(said: str, value: bool) -> None:
    assert imported(f"{SHORT} {said}")["checkpoints"]["export_at_end"] is value


def test_a_flag_that_is_repeated_is_listed() -> None:
    recipe = import_command(f"{SHORT} --lr 1 --lr 2", "stdin")
    assert "Given more than once; the last one counts: --lr" in recipe
    assert re.search(r"lr: 2 +# --lr 2", recipe)


def test_a_negative_number_is_a_value() -> None:
    assert imported(f"{DISTILS} --method hidden_mse --layer_selection -1")["losses"]["hidden_mse"]["layers"] == [
        [-1, 5]
    ]


# Mistakes of users.

MISTAKES = {
    "an unknown flag": ("--learning_rat 1", ["stdin:1: --learning_rat: ", "no such flag"]),
    "a misspelt flag": ("--hiden_size 8", ["--hiden_size", "Did you mean `--hidden_size`"]),
    "two at once": ("--lrr 1 --seed x", ["--lrr: ", "`--lr`", "--seed: `x` is not an integer"]),
    "a dash too few": ("-lr 1", ["-lr: ", "`--lr`"]),
    "no integer": ("--hidden_size 7.5", ["--hidden_size: `7.5` is not an integer"]),
    "no number": ("--lr fast", ["--lr: `fast` is not a number"]),
    "not finite": ("--lr nan", ["--lr: `nan` is not a number"]),
    "no switch": ("--fp16 maybe", ["--fp16: `maybe` is not true or false", "allowed: true, t, yes, y, 1, false"]),
    "no value": ("--lr --seed 1", ["--lr: the flag needs a value: a number"]),
    "a value for a negation": ("--no_async_worker 1", ["--no_async_worker: this flag takes no value"]),
    "an unknown choice": ("--curve linar", ["--curve: `linar` is not", "allowed: linear, exp", "mean `linear`"]),
    "no flag's value": (
        "--finetune_time_markers 0.1, 0.2",
        ["`0.2`: this does not belong to any flag", "Quote values that"],
    ),
    "a pipe": ("--seed 1 | tee log", ["`|`: this does not belong to any flag", "tee log"]),
    "augmentation": ("--aug", ["--aug: kdcore does not replace tokens"]),
    "next sentences": ("--add_nsp", ["--add_nsp: kdcore has no next-sentence prediction"]),
    "a model for them": ("--model_type bert-mlm-nsp", ["no next-sentence prediction", "bert-mlm, bert-mlm-roberta"]),
    "a method alone": ("--method hidden_mse", ["--method: this means nothing without --distillation"]),
    "no teacher": ("--distillation --method att_kl", ["--teacher_path: the flag is missing"]),
    "no method": ("--distillation --teacher_path t", ["--method: the flag is missing", "allowed: hidden_mse, "]),
    "an unknown method": ("--method hidden_msee", ["allowed: hidden_mse, ", "Did you mean `hidden_mse`"]),
    "no blocks": (
        "--distillation --teacher_path t --method hidden_mse --layer_selection last",
        ["--layer_selection: `last` is not a list of blocks"],
    ),
    "blocks that do not pair up": (
        "--distillation --teacher_path t --method hidden_mse --num_hidden_layers 4",
        ["--layer_selection: 1,3,5,7,9,11: 6 teacher blocks do not pair up with 4", "allowed: 1 block"],
    ),
    "a student that cannot copy": (
        "--distillation --teacher_path t --method hidden_mse --layer_selection 11 --student_initialize",
        ["--student_initialize: without a folder", "--encoder_ln_mode by default", "--layernorm_embedding"],
    ),
    "an endless warm-up": ("--lr_schedule step", ["--lr_schedule: a schedule over steps needs --max_steps"]),
    "an indivisible batch": (
        "--train_batch_size 100 --train_micro_batch_size_per_gpu 8",
        ["--train_micro_batch_size_per_gpu: the batch size 100 is not a multiple of 8"],
    ),
    "a marker at the end": (
        "--finetune_time_markers 0.5,1.0",
        ["--finetune_time_markers (checkpoints.export_at", "less"],
    ),
    "markers that fall": (
        "--finetune_time_markers 0.5,0.25",
        ["--finetune_time_markers", "must be strictly increasing"],
    ),
    "no markers": ("--finetune_time_markers half", ["`half` is not a list of shares"]),
    "parts of more than the budget": (
        "--do_validation --validation_begin_proportion 0.7 --validation_end_proportion 0.7",
        ["(validation)", "the sum of", "exceeds 1"],
    ),
    "a name that is a path": ("--job_name a/b", ["stdin:1: --job_name (run.name): 'a/b' is not a valid folder name"]),
    "no steps": ("--max_steps 0", ["--max_steps (training.budget.steps): must be greater than 0"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_by_the_name_of_its_flag(mistake: str) -> None:
    flags, words = MISTAKES[mistake]
    with pytest.raises(InputError) as caught:
        import_command(f"{SHORT} {flags}", "stdin")
    for word in words:
        assert word in str(caught.value)


def test_the_line_of_a_mistake_is_reported() -> None:
    with pytest.raises(InputError, match=r"^run\.sh:3: --lrr"):
        import_command("python run_pretraining.py \\\n --seed 1 \\\n --lrr 1", "run.sh")


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no command is given"), ("# nothing\n", "no command"), ("sbatch run.sh", "starts no Python script"),
     (f"{SHORT} --job_name 'a b", "the quote ' is not closed")],
)  # fmt: skip
def test_what_is_not_a_command_is_reported(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        import_command(text, "stdin")


# The command line.


def test_file_argument_and_pipe_are_read_alike(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run.sh").write_text(COMMAND, encoding="utf-8")
    found = []
    for arguments in (["run.sh"], ["-"], [], ["--command", COMMAND]):
        pipe(COMMAND, monkeypatch)
        assert main(["recipe", "import", *arguments]) == 0
        found.append(capsys.readouterr().out)
    assert len(set(found)) == 1


def test_an_output_file_is_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["recipe", "import", "--command", COMMAND, "--output", "recipe.yaml"]
    assert main(arguments) == 0
    before = Path("recipe.yaml").read_text(encoding="utf-8")
    assert before == import_command(COMMAND, "command")
    assert main(arguments) == 2
    assert "recipe.yaml: the file exists already" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["command.sh", "--output", "imported.yaml"],
            [
                "command.sh:2: --hiden_size",
                "Did you mean `--hidden_size`",
                "command.sh:3: --lr: `fast` is not a number",
            ],
        ),
        (["--command", "--aug true"], ["--aug: kdcore does not"]),
        (["nowhere.sh"], ["nowhere.sh: the file cannot be read"]),
        (["binary.sh"], ["binary.sh: this is not text"]),
        (
            ["--command", "--tokenizer_name x", "--output", "command.sh"],
            ["command.sh: the file exists already", "another --output"],
        ),
        (["--shards", "0"], ["--shards must be at least 1"]),
        (["command.sh", "--command", "--lr 1"], ["takes a file or a --command, not both"]),
        (["command.sh", "seed=3"], ["unrecognized arguments: seed=3"]),
    ],
)
def test_a_mistake_ends_with_exit_code_2_and_nothing_is_written(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("command.sh").write_text("python run_pretraining.py \\\n --hiden_size 8 \\\n --lr fast\n", encoding="utf-8")
    Path("binary.sh").write_bytes(b"\xff\xfe")
    assert main(["recipe", "import", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    for word in words:
        assert word in shown.err
    assert "Traceback" not in shown.err
    assert sorted(path.name for path in Path().iterdir()) == ["binary.sh", "command.sh"]


def test_kdcore_recipe_lists_it_and_names_its_package_where_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", "--help"]) == 0
    assert re.search(r"\n  import +from the package kdcore-budget-bert \d", capsys.readouterr().out)
    entries = [entry for entry in registry.commands.entries() if entry.distribution != "kdcore-budget-bert"]
    monkeypatch.setattr(registry.commands, "entries", lambda: entries)
    assert main(["recipe", "import", "--command", "--aug true"]) == 2
    assert "`pip install kdcore-budget-bert`" in capsys.readouterr().err
    assert main(["recipe", "--help"]) == 0
    assert "import " not in capsys.readouterr().out


def test_a_run_folder_below_the_home_folder_is_there(shown: dict[str, Any]) -> None:
    folder = load_recipe("recipe.yaml").settings.run.folder
    assert folder == str(Path.home() / "code/academic-budget-bert/training-out")


# The page about it.


def table_rows() -> list[str]:
    """The table as rows in Markdown: flag, default, keys, remark."""
    rows = []
    for flag in FLAGS.values():
        default = _default(flag)
        keys = ", ".join(f"`{key}`" for key in flag.keys)
        values = f"one of {', '.join(f'`{choice}`' for choice in flag.choices)}; " if flag.choices else ""
        rows.append(" | ".join((f"| `{flag.name}`", default, keys, f"{values}{flag.remark}".strip())).rstrip() + " |")
    return rows


def _default(flag: Flag) -> str:
    if flag.default is None or flag.default == "":
        return ""
    if flag.default == NO_LIMIT:
        return "no limit"
    return f"`{str(flag.default).lower() if flag.type == 'switch' else flag.default}`"


def test_the_table_of_the_documentation_is_that_of_the_importer() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert rows == table_rows()


def test_names_of_methods_give_hints_about_the_losses_that_import_puts() -> None:
    project = tomllib.loads((ROOT / "plugins/budget-bert/pyproject.toml").read_text(encoding="utf-8"))
    hints = project["tool"]["kdcore"]["names-of-papers"]["kdcore.losses"]
    ours = registry.component_names("kdcore.losses")
    assert set(hints) == {method for method in METHODS if method not in ours}
    for method, hint in hints.items():
        losses = imported(f"{DISTILS} --method {method}")["losses"]
        assert set(re.findall(r"`(.*?)`", hint)) == set(losses) - (set() if "masked_lm" in hint else {"masked_lm"})
