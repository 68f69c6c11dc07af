"""What several processes remembered, merged for another number of them."""

from __future__ import annotations

import torch

from kdcore.training.checkpoint import merge_own_states


def test_sums_go_to_one_process_and_the_rest_is_the_same_everywhere():
    states = [
        {"steps": 3, "seen": 1.5, "terms": {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, "label": "x"},
        {"steps": 3, "seen": 2.0, "terms": {"a": torch.tensor(4.0)}, "label": "x"},
    ]
    main = merge_own_states(states, to_sum=True)
    other = merge_own_states(states, to_sum=False)
    assert main == {"steps": 3, "seen": 3.5, "terms": {"a": 5.0, "b": 2.0}, "label": "x"}
    assert other == {"steps": 3, "seen": 0.0, "terms": {"a": 0.0, "b": 0.0}, "label": "x"}
