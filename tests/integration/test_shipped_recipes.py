"""Every recipe that kdcore ships is accepted and trains, on small random models of the depth that it is written for."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

import kdcore
from kdcore.recipe.paths import shipped_recipes

FOLDER = shipped_recipes()
OTHERS = ("base", "suites")  # parts of recipes; suites of `kdcore evaluate`
RECIPES = sorted(
    path.relative_to(FOLDER).as_posix()
    for path in FOLDER.rglob("*.yaml")
    if path.parent.name not in OTHERS and path.name != "table.yaml"
)
METHODS = {
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
}
LABELLED = [name for name in RECIPES if "task-specific/" in name or name.startswith("fine-tuning/")]
EMBEDDINGS = [name for name in RECIPES if name.startswith("embeddings/")]
NARROW = "student.config={hidden_size: 24, intermediate_size: 48}"
SMALLER = {
    "academic-budget-bert/bert-large-24h.yaml": [
        "student.config={hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 48}",
    ],
    "how-to-distill-your-bert/hidden_mse_init.yaml": [
        "student.config={hidden_size: 48, intermediate_size: 96}",
        "checkpoints.export_at=[0.5]",
    ],
    "minilm/6x384.yaml": [NARROW],
    "minilm_v2/6x384.yaml": [NARROW, "losses.minilm_v2.relation_heads=6"],
    "tinybert/general-4x312.yaml": [NARROW],
}


@pytest.fixture(scope="module")
def deep_teacher(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A random BERT of 12 blocks and 12 heads, 48 wide, with its masked-LM head."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=96,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("deep-teacher")
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def overrides(
    deep_teacher: Path, corpus_file: Path, cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What makes a recipe small: models, data, budget and batch; the rest stays as it is shipped."""
    monkeypatch.setenv("KDCORE_CACHE", str(cache_folder))
    monkeypatch.chdir(tmp_path)
    corpora = f"[{{name: text, path: {corpus_file}}}]"
    data = f"{{tokenizer: {deep_teacher}, sequence_length: 48, held_out: 0.1, corpora: {corpora}}}"
    return [
        f"teacher.path={deep_teacher}",
        f"task.data={data}",
        "training={budget: {steps: 4}, batch_size: 8, micro_batch_size: 4, precision: fp32}",
        "logging.every=1",
        "tracking=[jsonl]",
    ]


@pytest.fixture
def labelled(overrides: list[str], deep_teacher: Path, tmp_path: Path) -> list[str]:
    """The same for a recipe on labelled texts; the teacher has a head for their classes."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    fine_tuned = tmp_path / "fine-tuned"
    labels = {"id2label": {0: "con", 1: "pro"}, "label2id": {"con": 0, "pro": 1}}
    AutoModelForSequenceClassification.from_pretrained(deep_teacher, **labels).save_pretrained(fine_tuned)
    AutoTokenizer.from_pretrained(deep_teacher).save_pretrained(fine_tuned)
    lines = "".join(f"{'good of ' * (number % 5)}{number},{['con', 'pro'][number % 2]}\n" for number in range(40))
    (tmp_path / "texts.csv").write_text(f"text,label\n{lines}", encoding="utf-8")
    columns = "text: text, label: label, labels: [con, pro]"
    return [
        f"teacher.path={fine_tuned}",
        f"task.data={{train: texts.csv, split: {{validation: 0.2}}, {columns}}}",
        *overrides[2:],
    ]


@pytest.fixture
def tagged(overrides: list[str], deep_teacher: Path, tmp_path: Path) -> list[str]:
    """The same for a recipe on texts with labelled spans; the teacher has a head for their tags."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    tags = ["O", "B-name", "I-name"]
    labels = {"id2label": dict(enumerate(tags)), "label2id": {tag: number for number, tag in enumerate(tags)}}
    fine_tuned = tmp_path / "fine-tuned"
    AutoModelForTokenClassification.from_pretrained(deep_teacher, **labels).save_pretrained(fine_tuned)
    AutoTokenizer.from_pretrained(deep_teacher).save_pretrained(fine_tuned)
    rows = "".join(f"{'good O' if number % 3 else 'best B-name'}\n{number} O\n\n" for number in range(40))
    (tmp_path / "texts.conll").write_text(rows, encoding="utf-8")
    return [
        f"teacher.path={fine_tuned}",
        "task.data={train: texts.conll, split: {validation: 0.2}, labels: [name]}",
        *overrides[2:],
    ]


@pytest.fixture
def sentences(overrides: list[str], deep_teacher: Path, corpus_file: Path, tmp_path: Path) -> list[str]:
    """The same for a recipe on plain texts; the teacher is a folder of sentence-transformers."""
    teacher = tmp_path / "sentence-teacher"
    shutil.copytree(deep_teacher, teacher)
    parts = [("", "Transformer"), ("1_Pooling", "Pooling")]
    types = [
        {"idx": n, "path": path, "type": f"sentence_transformers.models.{name}"} for n, (path, name) in enumerate(parts)
    ]
    (teacher / "modules.json").write_text(json.dumps(types), encoding="utf-8")
    (teacher / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True}
    (teacher / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    return [f"teacher.path={teacher}", f"task.data={{train: {corpus_file}, held_out: 0.1}}", *overrides[2:]]


@pytest.fixture
def pairs(overrides: list[str], deep_teacher: Path, tmp_path: Path) -> list[str]:
    """The same for a recipe on scored pairs of texts; the teacher has one output."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    fine_tuned = tmp_path / "cross-encoder"
    AutoModelForSequenceClassification.from_pretrained(deep_teacher, num_labels=1).save_pretrained(fine_tuned)
    AutoTokenizer.from_pretrained(deep_teacher).save_pretrained(fine_tuned)
    lines = "".join(f"teacher {number},{'good of ' * (number % 5)}{number},{number % 3}\n" for number in range(40))
    (tmp_path / "pairs.csv").write_text(f"query,document,relevance\n{lines}", encoding="utf-8")
    columns = "text: [query, document], label: relevance, regression: true, max_length: 48"
    return [
        f"teacher.path={fine_tuned}",
        f"task.data={{train: pairs.csv, split: {{validation: 0.2}}, {columns}}}",
        *overrides[2:],
    ]


def test_no_two_recipes_train_into_one_folder() -> None:
    names = [kdcore.load_recipe(f"kdcore:{recipe}", ["task.data=x"]).settings.run.name for recipe in RECIPES]
    assert sorted(names) == sorted(set(names))


def test_there_is_one_for_every_method_of_the_source_and_for_its_example() -> None:
    found = {path.stem for path in (FOLDER / "how-to-distill-your-bert").glob("*.yaml")}
    assert found == METHODS | {"hidden_mse_init", "table"}
    specific = {path.stem for path in (FOLDER / "how-to-distill-your-bert" / "task-specific").glob("*.yaml")}
    assert specific == {"kd", "hidden", "attention"}


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "quickstart.yaml"])
def test_a_recipe_says_what_it_is_and_asks_for_nothing_but_data(recipe: str, deep_teacher: Path) -> None:
    text = (FOLDER / recipe).read_text(encoding="utf-8")
    assert text.startswith("# "), "its first lines state what it is, and its source"
    assert len(text.splitlines()) < 30, "a recipe is short: what it shares is in a base"
    with pytest.raises(kdcore.RecipeError) as caught:
        kdcore.load_recipe(f"kdcore:{recipe}", [f"teacher.path={deep_teacher}"]).components()
    assert [problem.key for problem in caught.value.problems] == ["task.data"]
    needed = "`train` (" if recipe in EMBEDDINGS else "Add `data:` under `task:`"
    assert needed in str(caught.value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_accepted_and_trains(
    recipe: str, overrides: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = f"kdcore:{recipe}"
    if recipe in LABELLED:
        overrides = request.getfixturevalue("tagged" if "token_classification" in recipe else "labelled")
    if recipe.startswith("fine-tuning/"):
        overrides = ["student.initialize.from=fine-tuned", *overrides[1:]]
    if recipe in EMBEDDINGS:
        overrides = request.getfixturevalue("pairs" if "reranker" in recipe else "sentences")
    overrides = [*overrides, *SMALLER.get(recipe, [])]
    labels = list(kdcore.load_recipe(path, overrides).components().losses)
    result = kdcore.train(path, overrides)
    assert result.exit_code == 0
    assert result.folder.is_relative_to(tmp_path)
    lines = (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "train/loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    values = {name: value for row in rows for name, value in row.items() if name.split("/")[0] == "train"}
    for label in labels:
        own = [value for name, value in values.items() if name.split("/")[1] == label]
        assert own, f"`{label}` was never computed"
        assert all(math.isfinite(value) and value > 0 for value in own), own
    assert len({row["train/loss"] for row in rows}) == 4, "the student does not move"
    assert result.export is not None
    assert ("accuracy" in result.held_out) == (recipe in LABELLED)


def test_the_second_stage_of_two_starts_where_the_first_one_ends(overrides: list[str]) -> None:
    """Named after the source's fault 9: its two-stage schedule never runs."""
    result = kdcore.train("kdcore:how-to-distill-your-bert/att_val_two_stage.yaml", [*overrides, "run.id=stages"])
    lines = (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "train/loss" in row]
    first, second = {"train/masked_lm"}, {"train/attention_kl", "train/value_relation_kl"}
    assert [row.keys() & (first | second) for row in rows] == [first, first, second, second]
