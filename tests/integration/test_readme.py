"""The README's recipe is accepted; the method of the page on the algorithm is a whole one."""

from __future__ import annotations

import re
from pathlib import Path

import kdcore

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ALGORITHM = (ROOT / "docs" / "explanation" / "algorithm.md").read_text(encoding="utf-8")


def block(page: str, language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)
    (found,) = [text for text in blocks if containing in text]
    return found


def test_the_method_trains_as_a_file_that_a_recipe_imports(small_recipe: Path) -> None:
    code = block(ALGORITHM, "python", "class LastCosine").replace(
        "class LastCosine", '@kdcore.register_loss("last_cosine")\nclass LastCosine'
    )
    (small_recipe.parent / "my_loss.py").write_text(code, encoding="utf-8")
    overrides = ["imports=[my_loss.py]", "losses.hidden_mse=null", "losses.last_cosine={}", "training.budget.steps=15"]
    held_out = kdcore.train(small_recipe, [*overrides, "student.config.hidden_size=16", "student.initialize=null"])
    assert 0 < held_out.held_out["last_cosine/cosine"] < 0.9


def test_the_recipe_is_accepted_up_to_its_paths(tmp_path: Path, teacher_folder: Path, corpus_file: Path) -> None:
    text = block(README, "yaml", "my-student").replace("my-text/", str(corpus_file))
    text = text.replace("bert-base-uncased", str(teacher_folder))
    path = tmp_path / "my-student.yaml"
    path.write_text(text, encoding="utf-8")
    recipe = kdcore.load_recipe(path, [f"teacher.path={teacher_folder}"])
    components = recipe.components()
    assert list(components.losses) == ["hidden_mse", "masked_lm"]
    assert recipe.settings.training.batch_size == 1024


def test_the_readme_is_short_and_its_links_lead_to_files() -> None:
    assert len(README.splitlines()) <= 150
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README):
        assert (ROOT / target).exists(), target


def test_the_readme_and_the_page_on_the_architecture_name_every_folder() -> None:
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for folder in ROOT.glob("plugins/*/pyproject.toml"):
        assert f"plugins/{folder.parent.name})" in architecture, folder.parent.name
        assert f"`{folder.parent.name}`" in README, folder.parent.name
    for module in (ROOT / "kdcore").glob("*/__init__.py"):
        assert f"`{module.parent.name}/`" in architecture or f"`kdcore/{module.parent.name}/" in architecture
