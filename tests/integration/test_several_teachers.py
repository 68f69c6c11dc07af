"""Several teachers: what a loss computes depends on its own teacher only, alone or as part of a composite."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

import kdcore
from kdcore.commands.main import main
from kdcore.training.engine.teachers import CompositeTeacher
from kdcore.training.loop.sampling import SampleOrder
from kdcore.training.run.build import make_plan
from kdcore.training.run.run import RunResult, train_recipe

STEPS = 6


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Callable[..., Path]:
    """Save a small random BERT with the tests' tokenizer: `teacher(name, **changes of its configuration)`."""
    made: dict[str, Path] = {}

    def save(name: str, **changes: Any) -> Path:
        if name not in made:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
            sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
            config = BertConfig(
                **{"vocab_size": len(tokenizer), "max_position_embeddings": 64, "initializer_range": 0.2}
                | sizes
                | changes
            )
            torch.manual_seed(100 + len(made))
            made[name] = tmp_path_factory.mktemp(name)
            BertForMaskedLM(config).save_pretrained(made[name])
            tokenizer.save_pretrained(made[name])
        return made[name]

    return save


@pytest.fixture
def recipe(small_recipe: Path, teacher_folder: Path, teacher: Callable[..., Path]) -> Path:
    """The small recipe with the teachers `first` and `second`, and no losses that read one."""
    path = small_recipe.with_name("several.yaml")
    path.write_text(
        f"""\
extends: small.yaml
run: {{name: several}}
teacher: null
teachers:
  first: {{path: {teacher_folder}}}
  second: {{path: {teacher("second")}}}
losses: {{hidden_mse: null}}
""",
        encoding="utf-8",
    )
    return path


TWO = [
    "losses.one={name: hidden_mse, layers: last, teacher: first}",
    "losses.two={name: hidden_mse, layers: [[1, 0]], teacher: second, weight: 0.5}",
]


def rows_of(result: RunResult) -> list[dict[str, Any]]:
    lines = (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "train/loss" in row]


def states_of(folder: Path, batch: Any) -> tuple[torch.Tensor, ...]:
    """Hidden states of all blocks as transformers computes them, embeddings first: real tokens only."""
    with torch.no_grad():
        found = AutoModel.from_pretrained(folder).eval()(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), output_hidden_states=True
        )
    return tuple(states[batch.attention_mask] for states in found.hidden_states)


def test_a_run_with_two_teachers_is_a_plain_loop_with_both(
    recipe: Path, teacher_folder: Path, teacher: Callable[..., Path]
) -> None:
    """A loop of torch and transformers only, in which both teachers' terms are computed by hand."""
    result = kdcore.train(recipe, [*TWO, f"training.budget.steps={STEPS}"])
    plan = make_plan(kdcore.load_recipe(recipe, [*TWO, f"training.budget.steps={STEPS}"]))
    student = plan.build_student().network
    blocks = student.base_model.encoder.layer
    trained = [parameter for name, parameter in student.named_parameters() if "cls." not in name]
    groups = [[one for one in trained if (one.ndim >= 2) == decays] for decays in (True, False)]
    settings = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6}
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.01}, {"params": groups[1], "weight_decay": 0.0}], **settings
    )
    order = SampleOrder(plan.task.num_samples("train"), 3)
    kept: dict[int, torch.Tensor] = {}
    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda _, args, output, index=index: kept.update({index: output}))
    expected = []
    for step in range(STEPS):
        batch = plan.task.batch("train", *order.take(step * 8, 8))
        student.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        own = [kept[index][batch.attention_mask] for index in range(2)]
        terms = [
            (own[1] - states_of(teacher_folder, batch)[4]).square().mean(),
            (own[0] - states_of(teacher("second"), batch)[2]).square().mean(),
        ]
        loss = terms[0] + 0.5 * terms[1]
        expected.append([loss.item(), *(term.item() for term in terms)])
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * plan.scheduler.factor(plan.start.at(step, 0.0))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    logged = [[row["train/loss"], row["train/one/hidden_mse"], row["train/two/hidden_mse"]] for row in rows_of(result)]
    np.testing.assert_allclose(logged, expected, rtol=2e-5)
    export = AutoModel.from_pretrained(result.export)
    trained_weights = dict(student.base_model.named_parameters())
    for name, weight in export.named_parameters():
        if "pooler" not in name and "key.bias" not in name:  # the gradient of a key's bias is 0 but for rounding
            torch.testing.assert_close(weight, trained_weights[name], rtol=1e-4, atol=2e-6, msg=name)


def test_with_one_teacher_under_a_label_a_run_is_that_of_the_plain_recipe(
    small_recipe: Path, recipe: Path, teacher_folder: Path
) -> None:
    one = ["teachers.second=null", "losses.hidden_mse={layers: last}"]
    labelled, plain = kdcore.train(recipe, one), kdcore.train(small_recipe)
    assert [row["train/loss"] for row in rows_of(labelled)] == [row["train/loss"] for row in rows_of(plain)]


def first_batch(recipe: Path, overrides: list[str]) -> Any:
    plan = make_plan(kdcore.load_recipe(recipe, overrides))
    return plan, plan.task.batch("train", *SampleOrder(plan.task.num_samples("train"), 3).take(0, 8))


def student_states(teacher_folder: Path, batch: Any) -> np.ndarray:
    """The initial student is blocks 1 and 3 of the first teacher."""
    student = AutoModel.from_pretrained(teacher_folder).eval()
    student.encoder.layer = torch.nn.ModuleList([student.encoder.layer[1], student.encoder.layer[3]])
    with torch.no_grad():
        states = student(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).last_hidden_state
    return states[batch.attention_mask].numpy().astype(np.float64)


def test_an_average_of_hidden_states_is_that_of_its_members(
    recipe: Path, teacher_folder: Path, teacher: Callable[..., Path]
) -> None:
    overrides = [
        "teachers.both={average: [first, second]}",
        "losses.mean={name: hidden_mse, layers: last, teacher: both}",
        "training.budget.steps=1",
    ]
    logged = rows_of(kdcore.train(recipe, overrides))[0]["train/mean/hidden_mse"]
    _, batch = first_batch(recipe, overrides)
    sides = [states_of(folder, batch)[4].numpy().astype(np.float64) for folder in (teacher_folder, teacher("second"))]
    expected = ((student_states(teacher_folder, batch) - (sides[0] + sides[1]) / 2) ** 2).mean()
    assert logged == pytest.approx(expected, rel=1e-5)
    assert logged != pytest.approx(((student_states(teacher_folder, batch) - sides[0]) ** 2).mean(), rel=1e-2)


def test_a_concatenation_has_the_width_of_all_members_in_their_order(
    recipe: Path, teacher_folder: Path, teacher: Callable[..., Path]
) -> None:
    wide = teacher("wide", hidden_size=48)
    overrides = [
        f"teachers.wide={{path: {wide}}}",
        "teachers.both={concat: [wide, first]}",
        "student.from=first",
        "losses.cat={name: hidden_mse, layers: last, teacher: both}",
    ]
    plan, batch = first_batch(recipe, overrides)
    assert plan.losses["cat"].project.maps[0].shape == (80, 32)
    from kdcore.training.engine.teachers import FrozenTeachers

    teachers = FrozenTeachers(plan.load_teachers(), plan.composites)
    found = teachers(batch, plan.requests.teachers)["both"].tokens(3)
    expected = torch.cat([states_of(wide, batch)[4], states_of(teacher_folder, batch)[4]], dim=-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    losses = [row["train/cat/hidden_mse"] for row in rows_of(kdcore.train(recipe, overrides))]
    assert losses[-1] < losses[0]


def test_an_average_of_predictions_is_that_of_probabilities(
    recipe: Path, teacher_folder: Path, teacher: Callable[..., Path]
) -> None:
    overrides = [
        "teachers.both={average: [first, second]}",
        "losses.kl={name: soft_targets, teacher: both, temperature: 2}",
        "training.budget.steps=1",
    ]
    logged = rows_of(kdcore.train(recipe, overrides))[0]["train/kl/soft_targets"]
    plan, batch = first_batch(recipe, overrides)

    def log_probabilities(model: Any, temperature: float) -> np.ndarray:
        with torch.no_grad():
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
        rows = logits.reshape(-1, logits.shape[-1])[batch.masked_index].double() / temperature
        return (rows - rows.logsumexp(-1, keepdim=True)).numpy()

    sides = [AutoModelForMaskedLM.from_pretrained(folder).eval() for folder in (teacher_folder, teacher("second"))]
    mean = np.mean([np.exp(log_probabilities(side, 1.0)) for side in sides], axis=0)
    softened = mean ** (1 / 2)
    softened /= softened.sum(-1, keepdims=True)
    own = log_probabilities(plan.build_student().network.eval(), 2.0)
    expected = 4 * (softened * (np.log(softened) - own)).sum(-1).mean()
    assert logged == pytest.approx(expected, rel=1e-4)


def test_each_teacher_is_loaded_and_run_only_as_deep_as_its_own_losses_read(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.bert import modeling_bert

    plan = make_plan(kdcore.load_recipe(recipe, [*TWO, "losses.masked_lm={weight: 0.1}"]))
    loaded = plan.load_teachers()
    depths = {
        label: {name.split("layer.")[1].split(".")[0] for name in model.state_dict() if "layer." in name}
        for label, model in loaded.items()
    }
    assert depths == {"first": {"0", "1", "2", "3"}, "second": {"0", "1"}}
    late = make_plan(kdcore.load_recipe(recipe, ["losses.one={name: hidden_mse, layers: last, teacher: second}"]))
    assert list(late.load_teachers()) == ["second"]

    ran: list[int] = []
    original = modeling_bert.BertLayer.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() and args[0].device.type != "meta":
            ran.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(modeling_bert.BertLayer, "forward", counted)
    composite = "teachers.both={average: [first, second]}"
    both = "losses.three={name: hidden_mse, layers: [[2, 1]], teacher: both}"
    kdcore.train(
        recipe,
        [*TWO, composite, both, "training.budget.steps=2", "task.data.held_out=0", "validation.every=never"],
    )
    # Each loss alone on a small batch: 4, 2 and 3 + 3 blocks. Then two steps with the union: 4 blocks of one, 3 of two.
    assert len(ran) == (4 + 2 + 6) + 2 * (4 + 3)


def test_the_students_missing_configuration_and_weights_are_those_of_the_teacher_that_it_names(
    recipe: Path, teacher: Callable[..., Path]
) -> None:
    named = ["teachers.wide={path: " + str(teacher("wide", hidden_size=48)) + "}", "student.from=wide"]
    losses = ["losses.one={name: hidden_mse, layers: last, teacher: wide}", "training.budget.steps=1"]
    plan = make_plan(kdcore.load_recipe(recipe, [*named, *losses]))
    assert plan.student.info.hidden_size == 48
    theirs = AutoModel.from_pretrained(teacher("wide")).encoder.layer[3].output.dense.weight
    assert torch.equal(plan.build_student().network.base_model.encoder.layer[1].output.dense.weight, theirs)
    assert make_plan(kdcore.load_recipe(recipe, [*losses[1:], *TWO])).student.info.hidden_size == 32


def test_resuming_needs_the_same_weights_of_every_teacher(
    recipe: Path, teacher: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    second = tmp_path / "second"
    shutil.copytree(teacher("second"), second)
    overrides = [*TWO, f"teachers.second.path={second}"]
    whole = rows_of(kdcore.train(recipe, [*overrides, "run.id=whole"]))
    half = train_recipe(kdcore.load_recipe(recipe, overrides), exit_steps=3)
    continued = kdcore.train(recipe, overrides)
    assert continued.folder == half.folder
    assert [row["train/loss"] for row in rows_of(continued)] == [row["train/loss"] for row in whole]
    stored = json.loads((half.folder / "environment.json").read_text(encoding="utf-8"))
    assert set(stored["teachers_sha256"]) == {"first", "second"}

    model = BertForMaskedLM.from_pretrained(second)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight += 1
    model.save_pretrained(second)
    assert main(["train", str(recipe), *overrides, "training.budget.steps=8"]) == 2
    error = capsys.readouterr().err
    assert "several.yaml" in error or "teachers.second.path=" in error
    assert "teachers.second.path: model.safetensors has changed" in error
    assert main(["train", str(recipe), *overrides, "losses.two.teacher=first", "training.budget.steps=8"]) == 2
    error = capsys.readouterr().err
    assert "losses.two.teacher: differs from the recipe" in error
    assert "(found 'first', expected 'second')" in error


def test_commands_on_a_run_understand_several_teachers(
    recipe: Path, capsys: pytest.CaptureFixture[str], teacher_folder: Path
) -> None:
    composite = ["teachers.both={average: [first, second]}", "losses.mean={name: hidden_mse, teacher: both}"]
    result = kdcore.train(recipe, [*TWO, *composite])
    assert result.export is not None
    card = (result.export / "README.md").read_text(encoding="utf-8")
    assert "(`first`), " in card
    assert "(`second`) |" in card
    for command in (["summary", str(result.folder)], ["debug", "batch", str(result.folder), "2"]):
        assert main(command) == 0, capsys.readouterr().err
        shown = capsys.readouterr().out
        assert (
            ("second: " in shown)
            if command[0] == "summary"
            else ("two/hidden_mse " in shown and "mean/hidden_mse " in shown)
        )
    assert main(["profile", str(recipe), *TWO, *composite, "--steps", "1"]) == 0, capsys.readouterr().err
    assert main(["export", str(result.folder), "exported"]) == 0, capsys.readouterr().err
    for action in ("check", "show"):
        assert main(["recipe", action, str(recipe), *TWO, *composite]) == 0
    assert "teacher: second" in capsys.readouterr().out


MISTAKES = {
    "none named": (["losses.one={name: hidden_mse}"], "losses.one.teacher: the recipe has several teachers"),
    "unknown": (
        ["losses.one={name: hidden_mse, teacher: frist}"],
        "losses.one.teacher: 'frist' is not the label of a teacher",
    ),
    "no teachers": (
        ["teachers=null", "student.initialize=null", "losses.one={name: hidden_mse, teacher: first}"],
        "losses.one.teacher: the loss names a teacher, but the recipe has no `teachers`",
    ),
    "both keys": (["teacher={path: first}", *TWO], "teachers: a recipe has either `teacher` or `teachers`"),
    "unknown member": (
        ["teachers.both={average: [first, third]}", *TWO],
        "teachers.both.average.1: 'third' is not the label of a teacher",
    ),
    "one member": (["teachers.both={concat: [first]}", *TWO], "teachers.both.concat: must have at least 2 items"),
    "twice": (["teachers.both={concat: [first, first]}", *TWO], "must list each member only once"),
    "two combinations": (
        ["teachers.both={concat: [first, second], average: [first, second]}", *TWO],
        "requires exactly one of `average` and `concat`",
    ),
    "composite of composites": (
        ["teachers.both={average: [first, second]}", "teachers.all={average: [both, first]}", *TWO],
        "teachers.all.average.0: 'both' is not the label of a teacher",
    ),
    "student": (["student.from=both", *TWO], "student.from: 'both' is not the label of a teacher"),
    "attention": (
        ["teachers.both={average: [first, second]}", "losses.kl={name: attention_kl, teacher: both}"],
        "losses.kl: queries, keys and values of several teachers cannot be combined by `average`",
    ),
    "predictions": (
        ["teachers.both={concat: [first, second]}", "losses.kl={name: soft_targets, teacher: both}"],
        "losses.kl: predictions of several teachers cannot be concatenated",
    ),
    "keys of a model": (["teachers.second.pth=x", *TWO], "teachers.second.pth: unknown key `pth`"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_refused_with_their_place(
    recipe: Path, case: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    overrides, message = MISTAKES[case]
    assert main(["train", str(recipe), *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, "different numbers of blocks (found `first`: 4, `other`: 3)"),
        ({"hidden_size": 48}, "different hidden sizes (found `first`: 32, `other`: 48)"),
    ],
)
def test_an_average_of_different_shapes_is_refused_with_file_and_line(
    recipe: Path,
    teacher: Callable[..., Path],
    changes: dict[str, int],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = teacher(f"other-{'-'.join(changes)}", **changes)
    text = recipe.read_text(encoding="utf-8").replace("losses: ", f"  other: {{path: {other}}}\nlosses: ")
    text = text.replace("  other:", "  both: {average: [first, other]}\n  other:")
    text = text.replace("{hidden_mse: null}", "\n  hidden_mse: {layers: last, teacher: both}")
    recipe.write_text(text, encoding="utf-8")
    assert main(["train", str(recipe)]) == 2
    assert f"{recipe}:10: losses.hidden_mse: the combined teachers have {message}" in capsys.readouterr().err


def classifier(folder: Path, tokenizer_folder: Path, labels: list[str]) -> Path:
    from transformers import BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        **names,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("way", ["average", "two losses"])
def test_teachers_with_different_orders_of_labels_are_refused_with_file_and_line(
    small_recipe: Path, tmp_path: Path, tokenizer_folder: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one = classifier(tmp_path / "one", tokenizer_folder, ["sad", "glad"])
    other = classifier(tmp_path / "other", tokenizer_folder, ["glad", "sad"])
    lines = [f"abc {number},{'glad' if number % 2 else 'sad'}" for number in range(40)]
    (tmp_path / "mood.csv").write_text("text,mood\n" + "\n".join(lines) + "\n", encoding="utf-8")
    both = "  both: {average: [one, other]}\n" if way == "average" else ""
    losses = "  kl: {name: soft_targets, positions: classes, teacher: both}\n"
    if way == "two losses":
        losses = "".join(losses.replace("kl", name).replace("both", name) for name in ("one", "other"))
    recipe = tmp_path / "moods.yaml"
    recipe.write_text(
        f"run: {{name: moods}}\nteachers:\n  one: {{path: {one}}}\n  other: {{path: {other}}}\n{both}"
        "student:\n  config: {num_hidden_layers: 1}\ntask:\n  name: sequence_classification\n"
        "  data: {train: mood.csv, text: text, label: mood, labels: [sad, glad], split: {validation: 0.2}}\n"
        f"losses:\n{losses}training: {{budget: {{steps: 2}}, batch_size: 8}}\n",
        encoding="utf-8",
    )
    assert main(["train", str(recipe)]) == 2
    error = capsys.readouterr().err
    if way == "average":
        assert f"{recipe}:5: teachers.both: the combined teachers have different classes" in error
        assert "(found `one`: sad, glad, `other`: glad, sad)" in error
    else:
        assert f"{recipe}:12: losses.other: " in error
        assert (
            "the same classes in the same order, but the teacher's are glad, sad and the student's sad, glad" in error
        )


def info(**changes: Any) -> kdcore.ModelInfo:
    sizes = {"num_layers": 2, "hidden_size": 8, "num_heads": 2, "head_size": 4, "vocab_size": 9, "max_length": 16}
    return kdcore.ModelInfo(architecture="bert", **sizes | changes)


class Outputs(kdcore.Signals):
    """Signals with the outputs of one head only."""

    def __init__(self, outputs: torch.Tensor) -> None:
        self._only = outputs

    def outputs(self, name: str) -> torch.Tensor:
        return self._only


SIDES = [torch.tensor([[2.0, -1.0], [300.0, -300.0]]), torch.tensor([[-0.5, 0.25], [280.0, -400.0]])]


@pytest.mark.parametrize(
    ("problem_type", "expected"),
    [
        ("regression", lambda one, other: (one + other) / 2),
        ("multi_label_classification", lambda one, other: np.log(one + other) - np.log(2 - one - other)),
        ("single_label_classification", lambda one, other: np.log(one + other) - np.log(2)),
    ],
)
def test_what_is_averaged_depends_on_the_problem(problem_type: str, expected: Any) -> None:
    """Computed from probabilities in float64 where they can be represented; far from 0 the result stays finite."""
    head = kdcore.Head.sequence_classes(("a", "b"), problem_type)
    composite = CompositeTeacher("average", {"one": info(heads=(head,)), "other": info(heads=(head,))})
    composite.check(kdcore.Signals.head(head.name))
    found = composite.combine(None, [Outputs(side) for side in SIDES]).outputs(head.name)  # type: ignore[arg-type]
    assert torch.isfinite(found).all()
    sides = [side[:1].double().numpy() for side in SIDES]
    if problem_type.startswith("multi"):
        sides = [1 / (1 + np.exp(-side)) for side in sides]
    elif problem_type.startswith("single"):
        sides = [np.exp(side) / np.exp(side).sum(-1, keepdims=True) for side in sides]
    np.testing.assert_allclose(found[:1].numpy(), expected(*sides), rtol=1e-5)


def test_heads_that_cannot_be_averaged_are_refused() -> None:
    classes = kdcore.Head.sequence_classes
    for heads, message in (
        ([classes(("a", "b")), classes(("a", "b"), "multi_label_classification")], "different problem types"),
        ([classes(("a", "b")), classes(("a", "b", "c"))], "different classes"),
        ([classes(("b", "a")), classes(("a", "b"))], "different classes"),
    ):
        with pytest.raises(kdcore.RecipeError, match=message):
            CompositeTeacher("average", {str(number): info(heads=(head,)) for number, head in enumerate(heads)})
    unnamed = {"one": info(heads=(classes(num_outputs=2),)), "other": info(heads=(classes(("a", "b")),))}
    assert CompositeTeacher("average", unnamed).info.head("sequence_classes").labels == ("a", "b")  # type: ignore[union-attr]
    embedding = info(heads=(kdcore.Head("embedding", "sequence", 4),))
    composite = CompositeTeacher("average", {"one": embedding, "other": embedding})
    with pytest.raises(kdcore.RecipeError, match="outputs of the head `embedding` cannot be averaged"):
        composite.check(kdcore.Signals.head("embedding"))
    with pytest.raises(kdcore.RecipeError, match="cannot be factored"):
        composite.check(kdcore.Signals.predictions("all", factored=True))
