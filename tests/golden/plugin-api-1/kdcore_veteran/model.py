"""The model `veteran`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from kdcore import (
    Batch,
    ClassHead,
    ComponentConfig,
    DataError,
    Encoder,
    InputError,
    Model,
    ModelInfo,
    PathOrHubName,
    SignalRequest,
    Signals,
)


class VeteranModelEncoder(Encoder):
    """A network of transformers whose hidden states are read; it always runs as a whole."""

    def __init__(self, network: nn.Module, info: ModelInfo) -> None:
        super().__init__()
        self.network: Any = network
        self.info = info
        self.classifier = None if info.num_classes is None else nn.Linear(info.hidden_size, info.num_classes)

    def forward(self, batch: Batch, request: SignalRequest) -> Signals:
        """Run the network and keep the hidden states that are asked for."""
        mask = None if batch.attention_mask is None else batch.attention_mask.long()
        states = self.network(input_ids=batch.input_ids, attention_mask=mask, output_hidden_states=True).hidden_states
        hidden = {block: states[0 if block == "embeddings" else block + 1] for block in request.hidden_blocks}
        logits = None if not request.class_logits else self.classifier(states[-1][:, 0])
        return Signals(batch, hidden, {}, {}, logits)

    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write config.json and model.safetensors."""
        self.network.config.dtype = torch.float32
        state = {
            name.removeprefix("network."): tensor for name, tensor in weights.items() if name.startswith("network.")
        }
        self.network.save_pretrained(folder, state_dict=state)


class VeteranModel(Model):
    """Any encoder that `AutoModel` loads, for losses on hidden states.

    A teacher has a `path`. A student has a `config`, whose missing keys are the teacher's, and random weights.
    """

    class Config(ComponentConfig):
        """Keys of the sections `teacher` and `student`."""

        path: PathOrHubName | None = Field(None, description="Teacher: folder or hub name.")
        config: dict[str, Any] = Field(default_factory=dict, description="Student: keys of its configuration.")

    config: Config

    def __init__(self, config: Config, role: Literal["teacher", "student"], teacher: Model | None) -> None:
        super().__init__(config, role, teacher)
        if (config.path is None) == (role == "teacher"):
            wanted = "needs a `path`" if role == "teacher" else "has no `path`: it starts from random weights"
            raise InputError(f"the {role} {wanted}", key="path")
        if config.path is not None:
            try:
                self.network_config = AutoConfig.from_pretrained(config.path)
            except (OSError, ValueError) as error:
                raise DataError("there is no model that transformers knows", where=config.path) from error
        elif isinstance(teacher, VeteranModel):
            values = teacher.network_config.to_dict() | config.config
            self.network_config = AutoConfig.for_model(**values)
        else:
            raise InputError("the student takes the sizes of a teacher of the same model", key="config")
        sizes = self.network_config
        self.info = ModelInfo(
            architecture=sizes.model_type,
            num_layers=sizes.num_hidden_layers,
            hidden_size=sizes.hidden_size,
            num_heads=sizes.num_attention_heads,
            head_size=sizes.hidden_size // sizes.num_attention_heads,
            vocab_size=sizes.vocab_size,
            max_length=sizes.max_position_embeddings,
            has_lm_head=False,
        )

    def set_classes(self, head: ClassHead) -> None:
        """A linear map of the first token's state."""
        self.info = replace(self.info, num_classes=head.num_outputs, class_labels=head.labels)

    @property
    def source(self) -> str | None:
        """The teacher's folder or hub name; None for a student, whose weights are random."""
        return self.config.path

    def vocabulary(self) -> Mapping[str, int] | None:
        """Token to id of the tokenizer beside the teacher's weights."""
        if self.source is None:
            return None
        try:
            vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(self.source).get_vocab()
        except (OSError, ValueError):
            return None  # there is none: the vocabularies cannot be compared
        return vocabulary

    def load_teacher(self, request: SignalRequest) -> Encoder:
        """Load the weights, in float32."""
        _refuse_all_but_hidden_states(request)
        assert self.source is not None
        network = AutoModel.from_pretrained(self.source, dtype=torch.float32)
        return VeteranModelEncoder(network, self.info)

    def build_student(self, request: SignalRequest) -> Encoder:
        """Make a network with random weights, in float32."""
        _refuse_all_but_hidden_states(request)
        network = AutoModel.from_config(self.network_config, dtype=torch.float32)
        return VeteranModelEncoder(network, self.info)


def _refuse_all_but_hidden_states(request: SignalRequest) -> None:
    if request.attention_parts or request.prediction_positions:
        raise InputError(
            "a loss reads attention or predictions, and this model answers hidden states only",
            hint="use losses on hidden states, or the model `transformers`",
        )
