"""What several processes remembered, merged for another number of them; what a teacher's weights are known by."""

from __future__ import annotations

import torch

from kdcore.training.checkpoint.manager import merge_own_states
from kdcore.utils.model_files import model_file_hashes


def test_sums_go_to_one_process_and_the_rest_is_the_same_everywhere():
    states = [
        {"steps": 3, "seen": 1.5, "terms": {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, "label": "x"},
        {"steps": 3, "seen": 2.0, "terms": {"a": torch.tensor(4.0)}, "label": "x"},
    ]
    main = merge_own_states(states, to_sum=True)
    other = merge_own_states(states, to_sum=False)
    assert main == {"steps": 3, "seen": 3.5, "terms": {"a": 5.0, "b": 2.0}, "label": "x"}
    assert other == {"steps": 3, "seen": 0.0, "terms": {"a": 0.0, "b": 0.0}, "label": "x"}


def test_the_weights_of_a_hub_name_are_those_of_its_commit_in_the_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--someone--teacher"
    (model / "refs").mkdir(parents=True)

    def publish(commit: str, content: str) -> None:
        (model / "snapshots" / commit).mkdir(parents=True)
        for name in ("config.json", "model.safetensors", "README.md"):
            (model / "snapshots" / commit / name).write_text(f"{name} {content}", encoding="utf-8")
        (model / "refs" / "main").write_text(commit, encoding="utf-8")

    publish("1" * 40, "first")
    first = model_file_hashes("someone/teacher")
    assert set(first) == {"config.json", "model.safetensors"}
    publish("2" * 40, "first")
    assert model_file_hashes("someone/teacher") == first
    publish("3" * 40, "second")
    assert model_file_hashes("someone/teacher")["model.safetensors"] != first["model.safetensors"]
    assert model_file_hashes("someone/unknown") == {}
