"""Settings of rounding: TF32, deterministic algorithms, and the precision of a teacher."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils import deterministic

from kdcore.errors import InputError
from kdcore.models import transformers as models
from kdcore.models.transformers import TransformersModel
from kdcore.recipe.schema import Budget, TrainingSettings
from kdcore.signals import Signals
from kdcore.training.engine.teachers import FrozenTeachers
from kdcore.training.runtime.numerics import numerics

GPU, CPU = torch.device("cuda"), torch.device("cpu")


def settings(**keys):
    return TrainingSettings(budget=Budget(steps=1), batch_size=1, **keys)


@pytest.mark.parametrize(
    ("device", "keys", "precision"),
    [
        (GPU, {"precision": "bf16"}, "high"),
        (GPU, {"precision": "fp16"}, "high"),
        (GPU, {"precision": "fp32"}, "highest"),
        (GPU, {"precision": "fp32", "tf32": True}, "high"),
        (GPU, {"precision": "bf16", "tf32": False}, "highest"),
        (CPU, {"precision": "bf16", "tf32": True}, "highest"),
    ],
)
def test_tf32_follows_precision_and_setting_on_a_gpu(device, keys, precision):
    with numerics(settings(**keys), device):
        assert torch.get_float32_matmul_precision() == precision
    assert torch.get_float32_matmul_precision() == "highest"


def test_deterministic_algorithms_are_used_inside_only(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    fills = deterministic.fill_uninitialized_memory
    with numerics(settings(), GPU):
        assert not torch.are_deterministic_algorithms_enabled()
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with numerics(settings(deterministic=True), GPU):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not deterministic.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled()
    assert deterministic.fill_uninitialized_memory == fills


def test_settings_that_the_caller_has_made_stay(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for value in (True, False):
            with numerics(settings(deterministic=value), CPU):
                assert torch.are_deterministic_algorithms_enabled()
                assert torch.is_deterministic_algorithms_warn_only_enabled() is not value
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled()
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    finally:
        torch.use_deterministic_algorithms(False)


def load(path, **keys):
    model = TransformersModel(TransformersModel.Config(path=str(path), **keys), "teacher", None)
    return model.load_teacher(Signals.hidden([3]) | Signals.predictions("all"))


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_a_teacher_is_loaded_in_its_precision(model_type, name, dtype, saved_model, monkeypatch):
    expected = load(saved_model(model_type)).to(dtype)
    loaded, original = [], models.load_weights
    monkeypatch.setattr(
        models, "load_weights", lambda *args, **keys: loaded.append(keys["dtype"]) or original(*args, **keys)
    )
    teacher = load(saved_model(model_type), dtype=name)
    assert loaded == [dtype], "no copy in float32"
    tensors = dict(expected.state_dict()) | dict(expected.named_buffers())
    found = dict(teacher.state_dict()) | dict(teacher.named_buffers())
    assert {name: one.dtype for name, one in found.items()} == {name: one.dtype for name, one in tensors.items()}
    for key, tensor in tensors.items():
        assert torch.equal(found[key], tensor), key


def test_the_engine_casts_teachers_without_a_precision_of_their_own(saved_model):
    teachers = {name: load(saved_model("bert"), dtype=name) for name in ("fp32", "bf16")}
    teachers["default"] = load(saved_model("bert"))
    FrozenTeachers(teachers, {}).to(torch.device("cpu")).to(torch.float16)
    found = {name: next(teacher.parameters()).dtype for name, teacher in teachers.items()}
    assert found == {"fp32": torch.float32, "bf16": torch.bfloat16, "default": torch.float16}


def test_a_student_has_the_precision_of_training(saved_model):
    teacher = TransformersModel(TransformersModel.Config(path=str(saved_model("bert"))), "teacher", None)
    with pytest.raises(InputError, match="valid for a teacher only") as caught:
        TransformersModel(TransformersModel.Config(dtype="bf16"), "student", teacher)
    assert "student.dtype" in str(caught.value)
    assert "training.precision" in str(caught.value)
