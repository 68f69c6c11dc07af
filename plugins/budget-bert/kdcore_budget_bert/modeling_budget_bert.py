"""academic-budget-bert's encoder: BERT with norms before or after the attention and feed-forward layers.

"How to Train BERT with an Academic Budget" (EMNLP 2021). Part of kdcore-budget-bert, licensed under Apache 2.0. Saved
models include a copy of this file, so that `AutoModel.from_pretrained(folder, trust_remote_code=True)` requires only
transformers 5. Weights have BERT's names. With norms after the layers, LayerNorm and a norm of the embeddings, the
model is BERT.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple


@strict  # needs annotations that are types, so this file must not postpone their evaluation
class BudgetBertConfig(BertConfig):  # type: ignore[misc]  # transformers has no types
    """BERT's configuration with three more keys.

    Attributes:
        norm_position: `pre`: the inputs of the attention and feed-forward layers and the last block's output are
            normalised; `post`: the sums of the layers' inputs and outputs are normalised.
        norm: `layer_norm`, or `rms_norm`, which neither subtracts a mean nor adds a bias.
        embedding_norm: whether the embeddings are normalised.
    """

    model_type = "budget-bert"

    norm_position: Literal["pre", "post"] = "pre"
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    embedding_norm: bool = False


def make_norm(config: BudgetBertConfig) -> nn.Module:
    """Construct the norm that the configuration names, of the model's width."""
    cls = nn.RMSNorm if config.norm == "rms_norm" else nn.LayerNorm
    return cls(config.hidden_size, eps=config.layer_norm_eps)


class BudgetBertEmbeddings(nn.Module):
    """The sum of word, position and token type embeddings, with an optional norm."""

    def __init__(self, config: BudgetBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = make_norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        """Embed tokens (B, L), or use the given embeddings (B, L, d)."""
        states = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        length, longest = states.shape[1], self.position_embeddings.num_embeddings
        if length > longest and position_ids is None:
            raise ValueError(
                f"a sequence exceeds the position embeddings (found {length} tokens, expected at most {longest})"
            )
        types, positions = self.token_type_embeddings, self.position_embeddings
        states = states + (types.weight[0] if token_type_ids is None else types(token_type_ids))
        states = states + (positions.weight[:length] if position_ids is None else positions(position_ids))
        embedded: Tensor = self.dropout(self.LayerNorm(states))
        return embedded


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Compute attention step by step, for `attn_implementation="eager"`; also return the probabilities (B, A, L, L)."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = nn.functional.dropout(scores.softmax(-1), p=dropout, training=module.training)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


class BudgetBertSelfAttention(nn.Module):
    """Multi-head attention without the output projection, computed by any attention kernel of transformers."""

    is_causal = False  # read by the kernels

    def __init__(self, config: BudgetBertConfig) -> None:
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
                f"{config.num_attention_heads}"
            )
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, states: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Compute weighted values (B, L, d), and probabilities if the kernel returns them."""
        query, key, value = (
            project(states).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        dropout = self.dropout.p if self.training else 0.0
        scaling = self.head_size**-0.5
        values, probabilities = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return values.flatten(2), probabilities


class BudgetBertOutput(nn.Module):
    """The layers around attention or the feed-forward layer: projection, residual, and a norm before or after them."""

    def __init__(self, config: BudgetBertConfig, input_size: int) -> None:
        super().__init__()
        self.norm_first = config.norm_position == "pre"
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = make_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def enter(self, states: Tensor) -> Tensor:
        """Return the input of the enclosed part."""
        return self.LayerNorm(states) if self.norm_first else states

    def forward(self, inner: Tensor, states: Tensor) -> Tensor:
        """Project the enclosed part's output for `states`, and add it to them."""
        states = self.dropout(self.dense(inner)) + states
        return states if self.norm_first else self.LayerNorm(states)


class BudgetBertAttention(nn.Module):
    """Attention with the layers around it."""

    def __init__(self, config: BudgetBertConfig) -> None:
        super().__init__()
        self.self = BudgetBertSelfAttention(config)
        self.output = BudgetBertOutput(config, config.hidden_size)

    def forward(self, states: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Return states (B, L, d) after attention, and probabilities if the kernel returns them."""
        values, probabilities = self.self(self.output.enter(states), attention_mask, **kwargs)
        return self.output(values, states), probabilities


class BudgetBertIntermediate(nn.Module):
    """The wide part of the feed-forward part."""

    def __init__(self, config: BudgetBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, states: Tensor) -> Tensor:
        """Project (B, L, d) to (B, L, intermediate_size)."""
        wide: Tensor = self.activation(self.dense(states))
        return wide


class BudgetBertLayer(nn.Module):
    """One block."""

    def __init__(self, config: BudgetBertConfig) -> None:
        super().__init__()
        self.attention = BudgetBertAttention(config)
        self.intermediate = BudgetBertIntermediate(config)
        self.output = BudgetBertOutput(config, config.intermediate_size)

    def forward(self, states: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Return states (B, L, d) after the block, and attention probabilities if the kernel returns them."""
        states, probabilities = self.attention(states, attention_mask, **kwargs)
        return self.output(self.intermediate(self.output.enter(states)), states), probabilities


class BudgetBertEncoder(nn.Module):
    """All blocks, and with pre-LN a norm after the last block."""

    def __init__(self, config: BudgetBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BudgetBertLayer(config) for _ in range(config.num_hidden_layers))
        self.final_norm = make_norm(config) if config.norm_position == "pre" else nn.Identity()


class BudgetBertPooler(nn.Module):
    """The first token's state, projected."""

    def __init__(self, config: BudgetBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        """Pool (B, L, d) to (B, d)."""
        first: Tensor = self.dense(states[:, 0])
        return first.tanh()


class BudgetBertTransform(nn.Module):
    """The transform of the masked-LM head before its decoder."""

    def __init__(self, config: BudgetBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = make_norm(config)

    def forward(self, states: Tensor) -> Tensor:
        """Project, activate, normalise."""
        transformed: Tensor = self.LayerNorm(self.activation(self.dense(states)))
        return transformed


class BudgetBertPredictions(nn.Module):
    """The masked-LM head. Its decoder has a bias, even if its weight is tied to the word embeddings."""

    def __init__(self, config: BudgetBertConfig) -> None:
        super().__init__()
        self.transform = BudgetBertTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))  # the decoder's, under its name in saved BERTs

    def forward(self, states: Tensor) -> Tensor:
        """Compute logits (..., V) of states (..., d)."""
        logits: Tensor = self.decoder(self.transform(states))
        return logits


class BudgetBertHeads(nn.Module):
    """Wrapper that gives the masked-LM head the same name as in BERT."""

    def __init__(self, config: BudgetBertConfig) -> None:
        super().__init__()
        self.predictions = BudgetBertPredictions(config)

    def forward(self, states: Tensor) -> Tensor:
        """Compute logits (..., V) of states (..., d)."""
        logits: Tensor = self.predictions(states)
        return logits


class BudgetBertPreTrainedModel(PreTrainedModel):  # type: ignore[misc]  # transformers has no types
    """Common code of the models: weight initialisation, attention kernels, and saving with this file."""

    config_class = BudgetBertConfig
    base_model_prefix = "bert"
    _no_split_modules = ["BudgetBertEmbeddings", "BudgetBertLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BudgetBertPredictions):
            nn.init.zeros_(module.bias)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model with a configuration that references its classes in this file."""
        module = __name__.rpartition(".")[2]
        self.config.auto_map = {auto: f"{module}.{cls.__name__}" for auto, cls in AUTO_CLASSES.items()}
        super().save_pretrained(save_directory, *args, **kwargs)


class BudgetBertModel(BudgetBertPreTrainedModel):
    """The encoder without a head."""

    def __init__(self, config: BudgetBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = BudgetBertEmbeddings(config)
        self.encoder = BudgetBertEncoder(config)
        self.pooler = BudgetBertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embeddings."""
        self.embeddings.word_embeddings = value

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode token ids; arguments and outputs match those of transformers' BERT.

        The last element of `hidden_states` is taken after the final norm, like `last_hidden_state`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        states = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=states, attention_mask=attention_mask)
        hidden, attentions = [], []
        for block in self.encoder.layer:
            hidden.append(states)
            states, probabilities = block(states, mask, **kwargs)
            attentions.append(probabilities)
        states = self.encoder.final_norm(states)
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=None if self.pooler is None else self.pooler(states),
            hidden_states=(*hidden, states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


class BudgetBertForMaskedLM(BudgetBertPreTrainedModel):
    """The encoder with its masked-LM head."""

    _tied_weights_keys = {  # noqa: RUF012
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def __init__(self, config: BudgetBertConfig) -> None:
        super().__init__(config)
        self.bert = BudgetBertModel(config, add_pooling_layer=False)
        self.cls = BudgetBertHeads(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the decoder."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the decoder."""
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(self, input_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any) -> MaskedLMOutput:
        """Predict tokens; arguments and outputs match those of transformers' BERT. In `labels`, -100 means no label."""
        outputs = self.bert(input_ids, return_dict=True, **kwargs)
        logits = self.cls(outputs.last_hidden_state)
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class BudgetBertForSequenceClassification(BudgetBertPreTrainedModel):
    """The encoder with a classifier on the pooled state, for fine-tuning."""

    def __init__(self, config: BudgetBertConfig) -> None:
        super().__init__(config)
        self.bert = BudgetBertModel(config)
        dropout = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self, input_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Classify texts; arguments and outputs match those of transformers' BERT."""
        outputs = self.bert(input_ids, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


AUTO_CLASSES: dict[str, Any] = {
    "AutoConfig": BudgetBertConfig,
    "AutoModel": BudgetBertModel,
    "AutoModelForMaskedLM": BudgetBertForMaskedLM,
    "AutoModelForSequenceClassification": BudgetBertForSequenceClassification,
}
for _auto, _cls in AUTO_CLASSES.items():
    _cls.register_for_auto_class(_auto)  # so that saved models include this file
