"""`ModelConfig`: the one description of every model in this package.

A published model, a toy model from a paper and a hand-made circuit differ only in the values of its fields. They have
TransformerLens's names where it has them, and the names of the authors' code for state-space layers.

1. Fields are checked one by one (`contradictions.check_kinds`, `check_layers`).
2. What is not given follows from the rest.
3. What contradicts something else is refused (`contradictions.check`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from interp.arguments import shown
from interp.config import contradictions
from interp.config.checks import check_fields
from interp.config.experts import Experts
from interp.config.questions import ConfigQuestions
from interp.config.rope_scaling import RopeScaling
from interp.config.shared_blocks import SharedBlocks
from interp.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig(ConfigQuestions):
    """Everything that determines the computation of a model, apart from its weights.

    Sizes: `d_model` is the width of the residual stream; `n_heads` query heads of `d_head` channels read and write it;
    there are `n_key_value_heads` heads of keys and values (fewer than `n_heads` is grouped-query attention).
    `d_vocab_out` differs from `d_vocab` in models whose outputs are not their input tokens.

    Norms: `LN` and `RMS` have weights; `LNPre` and `RMSPre` only centre and scale (TransformerLens's folded form).
    `norm_bias=False` leaves layer norm without its bias, `norm_unit_offset` stores weights less 1 (Gemma).
    `norm_placement` says where a layer has norms: `pre` before attention and MLP, `post` after each, before what it
    made is added to the stream (OLMo 2), `both` (Gemma 2), `residual` on the stream itself, after what attention and
    MLP added to it (Vaswani et al. 2017, section 3.1; BERT). With `shared_norm` a parallel MLP reads the stream through
    the attention's norm (GPT-J). `embed_norm` is a norm after the token embedding (BLOOM), with `embed_norm_of_sum`
    after the sum of all embeddings (BERT). With `first_norm=False` the first layer's mixer has none of its own
    (ModernBERT).

    Masked tokens: `n_token_types` rows of a further embedding say which segment a token is of (Devlin et al. 2018,
    "BERT", section 3). With `mlm_act_fn` there is a head between the stream and the unembedding: a linear map, this
    activation function and a norm; `mlm_bias` is the bias of its linear map.

    Scales: `embed_scale` multiplies the token embedding, `residual_scale` what attention and MLP add, `logit_scale` the
    logits. `output_logits_soft_cap` and `attn_scores_soft_cap` are the c of c tanh(x / c), which logits and scores go
    through (Gemma Team 2024, "Gemma 2", section 2).

    Positions: `standard` is a learned table added to the embedding, `sinusoidal` the fixed one of Vaswani et al. 2017
    (section 3.5; with `sinusoidal_halves` all sines come before all cosines), `rotary` turns queries and keys (Su et
    al. 2021, section 3.4) in their first `rotary_dim` channels, `alibi` lowers scores with distance (Press et al. 2021,
    section 3), `relative` adds a learned number for each head and distance, of which there are `relative_buckets`;
    those beyond `relative_max_distance` share the last one (Raffel et al. 2020, "T5", section 2.1; in the stacks of an
    `interp.EncoderDecoder`), `none` leaves order to the causal mask or to the recurrence. `auto` is `standard` for a
    model with attention and `none` for one without. `alibi_bfloat16` rounds slope times position to bfloat16 and scales
    it like the scores (Falcon). Layers in `nope_layers` do not rotate.

    Attention: with `window_size` a query of a local layer sees that many positions, its own included, to the left, and
    where attention looks both ways as many to the right; `attn_types` says of each layer whether it is `global` or
    `local`, and None makes all of them local. Local layers may have a `rotary_base_local` of their own, with
    `rope_scaling_local` in place of `rope_scaling`. `qk_norm` is a norm of queries and keys before rotation: `RMS` or
    `LN` of each head, with the same weights for all, `LN_each_head` with weights for each and no bias, `RMS_all_heads`
    of all heads together. `clip_qkv` bounds values, and queries and keys after their norm; `attn_sinks` gives every
    head a score of looking nowhere (Xiao et al. 2023, "StreamingLLM"; gpt-oss). With `cross_attention` every layer also
    looks at the output of an encoder, between attention and MLP: see `EncoderDecoderConfig`.

    Layers: `layer_types` says for each layer what mixes positions, and whether an MLP or a mixture of experts follows:
    one of `attn+mlp`, `attn`, `mlp`, `mamba`, `mamba+mlp`, `mamba2`, `mamba2+mlp`, `attn+moe`, `moe`, `mamba+moe`,
    `mamba2+moe`, `shared+mamba2`; None makes all of them `attn+mlp`, `attn` with `attn_only`, or `attn+moe` with
    `experts`, which describes the mixtures. In a `shared+mamba2` layer the mixer's input comes in part from a
    transformer block that several layers share; `shared` describes these blocks.

    State-space layers (Gu and Dao 2023, "Mamba"; Dao and Gu 2024, "Transformers are SSMs"): `d_inner` channels, each
    with a state of `d_state` numbers, after a convolution over `d_conv` positions. Mamba-2 has heads of `d_ssm_head`
    channels, in `n_ssm_groups` groups that each share one B and one C. `dt_rank` is the rank of Mamba-1's projection
    to the step size; `dt_limit` bounds Mamba-2's step size. Only `n_ctx` limits the length of a prompt.
    `ssm_normalization_type` is the norm over Mamba-1's B, C and low-rank step size: `RMS` (Lieber et al. 2024,
    "Jamba", section 6.4), `RMSPre` without weights (Zuo et al. 2024, "Falcon Mamba"), or None; `ssm_eps` is what it
    adds to the mean square.

    Raises:
        ConfigError: a value that is unknown or contradicts another one.
    """

    def __post_init__(self) -> None:
        def settle(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        contradictions.check_kinds(self)
        contradictions.check_layers(self)
        if self.has_attention:
            self._settle_heads(settle)
        else:
            for name in ("n_heads", "n_key_value_heads", "d_head"):
                settle(name, 0)
        if self.positional_embedding_type == "auto":
            settle("positional_embedding_type", "standard" if self.has_attention else "none")
        if self.d_vocab_out == -1:
            settle("d_vocab_out", self.d_vocab)
        if not self.has_mlp:
            settle("act_fn", None)
        if not self.has_plain_mlp:
            settle("d_mlp", None)
        elif self.d_mlp is None:
            settle("d_mlp", 4 * self.d_model)
        if self.positional_embedding_type == "rotary" and self.rotary_dim is None:
            settle("rotary_dim", self.d_head)
        if self.attn_scale is None and self.has_attention:
            settle("attn_scale", self.d_head**0.5 if self.use_attn_scale else 1.0)
        if self.has_mamba:
            settle("d_inner", 2 * self.d_model if self.d_inner is None else self.d_inner)
            settle("d_state", self.d_state or (16 if "mamba" in self.mixers else 128))
            settle("dt_rank", self.dt_rank or math.ceil(self.d_model / 16))
        contradictions.check(self)

    def _settle_heads(self, settle: Callable[[str, object], None]) -> None:
        if self.d_head == -1 and self.n_heads > 0 and self.d_model % self.n_heads == 0:
            settle("d_head", self.d_model // self.n_heads)
        if self.n_heads == -1:
            if self.d_head < 1:
                raise ConfigError("a model with attention needs d_head or n_heads")
            if self.d_model % self.d_head:
                raise ConfigError(f"d_model={self.d_model} is not a multiple of d_head={self.d_head}: give n_heads")
            settle("n_heads", self.d_model // self.d_head)
        if self.n_key_value_heads is None:
            settle("n_key_value_heads", self.n_heads)

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a manifest or a JSON file; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The configuration that `to_dict` wrote.

        Raises:
            ConfigError: not a mapping, an unknown field, or a missing field that is needed.
        """
        check_fields(cls, values)
        kinds = {"rope_scaling": RopeScaling, "rope_scaling_local": RopeScaling}
        for name, kind in {**kinds, "experts": Experts, "shared": SharedBlocks}.items():
            part = values.get(name)
            if isinstance(part, Mapping):
                check_fields(kind, part)
                values = {**values, name: kind(**part)}
        return cls(**values)


def check_config(cfg: Any) -> None:
    """Refuse what is not a configuration.

    Raises:
        ConfigError: something else.
    """
    if not isinstance(cfg, ModelConfig):
        raise ConfigError(f"cfg must be a ModelConfig, not {shown(cfg)}")
