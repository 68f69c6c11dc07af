from __future__ import annotations

import pytest

from kdcore import InputError, make_sweep, read_axes


def test_every_combination_has_a_folder_of_its_own(project):
    cells = make_sweep(["recipe.yaml"], ["training.batch_size=16"], read_axes(["seed=1,2", "optimizer.lr=1e-4,5e-4"]))
    assert [cell.folder.relative_to(project).as_posix() for cell in cells] == [
        "runs/hidden/seed=1-lr=1e-4",
        "runs/hidden/seed=1-lr=5e-4",
        "runs/hidden/seed=2-lr=1e-4",
        "runs/hidden/seed=2-lr=5e-4",
    ]
    assert cells[1].overrides == ["training.batch_size=16", "seed=1", "optimizer.lr=5e-4", 'run.id="seed=1-lr=5e-4"']


def test_recipes_are_an_axis_even_if_they_share_a_name(project):
    (project / "other.yaml").write_text("extends: recipe.yaml\n", encoding="utf-8")
    cells = make_sweep(["recipe.yaml", "other.yaml"], [], read_axes(["seed=1,2"]))
    assert [cell.folder.name for cell in cells] == ["recipe-seed=1", "recipe-seed=2", "other-seed=1", "other-seed=2"]


def test_values_that_are_lists_or_no_names_of_folders(project):
    axes = read_axes(["student.config.hidden_sizes=[1,2],[3,4]", "teacher.path=a/b,c/d"])
    assert axes == {"student.config.hidden_sizes": ["[1,2]", "[3,4]"], "teacher.path": ["a/b", "c/d"]}
    cells = make_sweep(["recipe.yaml"], [], axes)
    names = {cell.folder.name for cell in cells}
    assert len(names) == 4
    assert all("/" not in name for name in names)


def test_two_axes_that_end_alike_are_told_apart(project):
    axes = read_axes(["optimizer.weight=1", "losses.masked_lm.weight=2"])
    (cell,) = make_sweep(["recipe.yaml"], [], axes)
    assert cell.folder.name == "optimizer.weight=1-masked_lm.weight=2"


def test_axes_come_from_a_file(project):
    (project / "sweep.yaml").write_text("axes: {seed: [1, 2], training.precision: [fp32, bf16]}\n", encoding="utf-8")
    assert read_axes(["sweep.yaml"]) == {"seed": ["1", "2"], "training.precision": ["fp32", "bf16"]}


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (["seed=1,1"], "the axis `seed` has duplicate values"),
        (["seed="], "has no values"),
        (["seed=1", "seed=2"], "duplicate axis `seed`"),
        (["run.id=1,2"], "it is set by the sweep"),
        (["nothing.yaml"], "neither an axis nor an existing file"),
        (["=1"], "the axis has no key"),
    ],
)
def test_axes_that_cannot_be(project, axes, words):
    with pytest.raises(InputError, match=words):
        read_axes(axes)


def test_a_value_that_the_recipe_refuses_is_told_before_anything_is_sent(project):
    with pytest.raises(InputError, match=r"training\.batch_size"):
        make_sweep(["recipe.yaml"], [], read_axes(["training.batch_size=8,none"]))
