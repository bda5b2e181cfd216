"""`EncoderDecoderConfig`: the configuration of a model with an encoder and a decoder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interp.arguments import is_several, shown, whole_number
from interp.config.checks import check_fields
from interp.config.model_config import ModelConfig, check_config
from interp.errors import ConfigError

STACKS = ("encoder", "decoder")
"""The stacks of an encoder-decoder, and how the names of their sites begin."""


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """Everything that determines the computation of an `interp.EncoderDecoder`, apart from its weights.

    The encoder reads a prompt in both directions. The decoder continues another one from left to right, and looks at
    the encoder's output in every layer (Vaswani et al. 2017, "Attention Is All You Need", section 3.1).

    Attributes:
        encoder: of the first stack, with `attention_dir="bidirectional"`.
        decoder: of the second stack, with `cross_attention=True`. The unembedding is as its fields say; tied, it reads
            the decoder's token embedding.
        shared_embeddings: whether both stacks have one table of token embeddings.
        decoder_start_token_id: what the decoder's prompt begins with; None where a model does not say.

        suppress_tokens: ids that `generate` never writes, such as the padding token of Marian models.

    Raises:
        ConfigError: stacks that do not fit together.
    """

    encoder: ModelConfig
    decoder: ModelConfig
    shared_embeddings: bool = True
    decoder_start_token_id: int | None = None
    suppress_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for stack in STACKS:
            check_config(getattr(self, stack))
            own: ModelConfig = getattr(self, stack)
            if not own.n_layers or own.layer_types is not None or own.attn_only or own.experts is not None:
                raise ConfigError(f"the {stack} needs at least one layer, and all of attention and an MLP")
            if own.mlm_act_fn is not None or own.n_token_types:
                raise ConfigError(f"mlm_act_fn and n_token_types are of an Encoder; the {stack} has neither")
            if own.norm_placement not in ("pre", "residual"):
                raise ConfigError(
                    f"norm_placement of the {stack} must be 'pre' or 'residual', not {own.norm_placement!r}"
                )
        if self.encoder.causal:
            raise ConfigError("the encoder needs attention_dir='bidirectional'")
        if not self.decoder.cross_attention or self.encoder.cross_attention:
            raise ConfigError("cross_attention must be True in the decoder's configuration, and False in the encoder's")
        alike = ("d_model", "d_vocab") if self.shared_embeddings else ("d_model",)
        for name in alike:
            if getattr(self.encoder, name) != getattr(self.decoder, name):
                raise ConfigError(
                    f"{name} must be the same in both stacks, not {getattr(self.encoder, name)} in the encoder and "
                    f"{getattr(self.decoder, name)} in the decoder"
                )
        if self.decoder_start_token_id is not None:
            most = self.decoder.d_vocab - 1
            start = whole_number("decoder_start_token_id", self.decoder_start_token_id, least=0, most=most)
            object.__setattr__(self, "decoder_start_token_id", start)
        if not is_several(self.suppress_tokens):
            raise ConfigError(f"suppress_tokens must be token ids, not {shown(self.suppress_tokens)}")
        most = self.decoder.d_vocab_out - 1
        never = [whole_number("each of suppress_tokens", one, least=0, most=most) for one in self.suppress_tokens]
        object.__setattr__(self, "suppress_tokens", tuple(never))

    @classmethod
    def original_transformer(
        cls,
        *,
        d_vocab: int,
        n_ctx: int,
        n_layers: int = 6,
        d_model: int = 512,
        n_heads: int = 8,
        d_mlp: int = 2048,
        decoder_start_token_id: int | None = None,
        **fields: Any,
    ) -> EncoderDecoderConfig:
        """The Transformer of Vaswani et al. 2017, "Attention Is All You Need"; by default its base model (table 3).

        Norms are on the residual stream, after each sub-layer (section 3.1); attention has no biases (3.2.2), the MLP
        has ReLU and biases (3.3); source, target and output have one embedding, times the square root of `d_model` at
        both inputs (3.4); positions are sinusoidal (3.5). `fields` are further ones of both stacks, such as `seed`.
        """
        both: dict[str, Any] = {
            "d_vocab": d_vocab,
            "n_ctx": n_ctx,
            "n_layers": n_layers,
            "d_model": d_model,
            "n_heads": n_heads,
            "d_mlp": d_mlp,
            "act_fn": "relu",
            "norm_placement": "residual",
            "final_norm": False,
            "embed_scale": math.sqrt(d_model),
            "positional_embedding_type": "sinusoidal",
            "attn_in_bias": False,
            "attn_out_bias": False,
            "unembed_bias": False,
            **fields,
        }
        encoder = ModelConfig(**both, attention_dir="bidirectional")
        decoder = ModelConfig(**both, cross_attention=True, tie_word_embeddings=True)
        return cls(encoder, decoder, decoder_start_token_id=decoder_start_token_id)

    @property
    def d_model(self) -> int:
        """The width of both residual streams."""
        return self.decoder.d_model

    @property
    def d_vocab(self) -> int:
        """How many tokens the encoder reads."""
        return self.encoder.d_vocab

    @property
    def d_vocab_out(self) -> int:
        """How many tokens the decoder may answer."""
        return self.decoder.d_vocab_out

    @property
    def n_ctx(self) -> int:
        """The longest prompt that the encoder reads."""
        return self.encoder.n_ctx

    @property
    def model_name(self) -> str:
        """The model's name."""
        return self.decoder.model_name

    @property
    def has_mamba(self) -> bool:
        """Whether any layer is a state-space layer: none is."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a manifest or a JSON file; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderDecoderConfig:
        """The configuration that `to_dict` wrote.

        Raises:
            ConfigError: not a mapping, an unknown field, or a missing field that is needed.
        """
        check_fields(cls, values)
        stacks = {stack: ModelConfig.from_dict(values[stack]) for stack in STACKS}
        return cls(**{**values, **stacks})

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in _OF_A_STACK:
            raise ConfigError(
                f"an encoder-decoder has no {name!r} of its own, but one in each stack: cfg.encoder.{name} and "
                f"cfg.decoder.{name}. What asks for it is made for one stack: interp.sweep and gradients take sites of "
                "both, such as 'decoder.blocks.0.attn.hook_z'; the logit lens, head attribution and ablation read the "
                "decoder; the `encoder` and `decoder` of a cache take their streams apart"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


_OF_A_STACK = {field.name for field in dataclasses.fields(ModelConfig)} | set(dir(ModelConfig))
