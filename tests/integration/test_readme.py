"""The README's method is a whole one, and its recipe is accepted."""

from __future__ import annotations

import re
from pathlib import Path

import kdcore

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def block(language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    (found,) = [text for text in blocks if containing in text]
    return found


def test_the_method_trains_as_a_file_that_a_recipe_imports(small_recipe: Path) -> None:
    code = block("python", "class LastCosine").replace(
        "class LastCosine", '@kdcore.register_loss("last_cosine")\nclass LastCosine'
    )
    (small_recipe.parent / "my_loss.py").write_text(code, encoding="utf-8")
    overrides = ["imports=[my_loss.py]", "losses.hidden_mse=null", "losses.last_cosine={}", "training.budget.steps=15"]
    held_out = kdcore.train(small_recipe, [*overrides, "student.config.hidden_size=16", "student.initialize=null"])
    assert 0 < held_out.held_out["last_cosine/cosine"] < 0.9


def test_the_recipe_is_accepted_up_to_its_paths(tmp_path: Path, teacher_folder: Path, corpus_file: Path) -> None:
    text = block("yaml", "my-student").replace("my-text/", str(corpus_file))
    text = text.replace("bert-base-uncased", str(teacher_folder))
    path = tmp_path / "my-student.yaml"
    path.write_text(text, encoding="utf-8")
    recipe = kdcore.load_recipe(path, [f"teacher.path={teacher_folder}"])
    components = recipe.components()
    assert list(components.losses) == ["hidden_mse", "masked_lm"]
    assert recipe.settings.training.batch_size == 1024
