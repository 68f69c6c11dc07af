"""Which block teaches which, and how widths are bridged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdcore import InputError, Projections, resolve_pairs


@pytest.mark.parametrize(
    ("layers", "depths", "expected"),
    [
        ("last", (12, 6), [(11, 5)]),
        ("uniform", (12, 6), [(1, 0), (3, 1), (5, 2), (7, 3), (9, 4), (11, 5)]),
        ("uniform", (6, 3), [(1, 0), (3, 1), (5, 2)]),
        ("all", (12, 6), [(1, 0), (3, 1), (5, 2), (7, 3), (9, 4), (11, 5)]),
        ("all", (12, 5), [(1, 0), (4, 1), (6, 2), (9, 3), (11, 4)]),
        ("all", (2, 3), [(0, 0), (0, 1), (1, 2)]),
        ("skip", (12, 6), [(1, 0), (3, 1), (5, 2), (7, 3), (9, 4)]),
        ("first", (12, 3), [(0, 0), (1, 1), (2, 2)]),
        ([[11, 5], ["embeddings", "embeddings"]], (12, 6), [(11, 5), ("embeddings", "embeddings")]),
        ([[-1, -1], [-12, 0]], (12, 6), [(11, 5), (0, 0)]),
        ([[3, 5], [11, 5]], (12, 6), [(3, 5), (11, 5)]),
    ],
)
def test_layers_are_paired_by_rule_or_one_by_one(layers: Any, depths: tuple[int, int], expected: list[Any]) -> None:
    assert list(resolve_pairs(layers, *depths)) == expected


@pytest.mark.parametrize(
    ("layers", "depths", "words"),
    [
        ("uniform", (12, 5), ["multiple", "[1, 0]", "[11, 4]"]),
        ("first", (3, 6), ["6 blocks", "3"]),
        ("skip", (2, 1), ["the list of pairs is empty"]),
        ([], (12, 6), ["the list of pairs is empty"]),
        ([[12, 5]], (12, 6), ["block 12 does not exist", "teacher has 12 blocks", "0 to 11"]),
        ([[11, -7]], (12, 6), ["block -7 does not exist", "student has 6 blocks"]),
    ],
)
def test_layers_that_do_not_pair_are_an_error_with_the_way_out(
    layers: Any, depths: tuple[int, int], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        resolve_pairs(layers, *depths)
    for word in words:
        assert word in str(caught.value)


def test_widths_that_are_equal_need_no_projection_and_others_get_one_a_pair() -> None:
    pairs = resolve_pairs("uniform", 4, 2)
    assert not list(Projections(pairs, 8, 8, "auto").parameters())
    project = Projections(pairs, 8, 12, "auto")
    assert [tuple(weight.shape) for weight in project.parameters()] == [(12, 8), (12, 8)]
    states = torch.randn(5, 8)
    torch.testing.assert_close(project(states, 1), states @ list(project.parameters())[1].T)
    with pytest.raises(InputError, match=r"projection: hidden sizes differ \(student 8, teacher 12\)"):
        Projections(pairs, 8, 12, "none")


@pytest.mark.parametrize(("given", "computed"), [(torch.float16, torch.float32), (torch.float64, torch.float64)])
def test_projections_compute_in_float32_or_better(given: torch.dtype, computed: torch.dtype) -> None:
    project = Projections(resolve_pairs("last", 2, 2), 8, 12, "auto").half()
    assert project(torch.randn(5, 8, dtype=given), 0).dtype == computed
