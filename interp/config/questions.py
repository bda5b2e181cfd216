"""What follows from the fields of a `ModelConfig`: of the whole model, and of each of its layers."""

from __future__ import annotations

import functools
from typing import NamedTuple

from interp.arguments import one_of_layers
from interp.config.experts import Experts
from interp.config.fields import MAMBAS, ConfigFields
from interp.config.rope_scaling import RopeScaling


class AttentionKind(NamedTuple):
    """What one attention layer does differently from another: layers of the same kind share masks and angles.

    Attributes:
        window: how many positions a query sees, its own included; None for all.
        rotary_base, rope_scaling: of its rotary embedding; a base of None rotates nothing.
    """

    window: int | None
    rotary_base: float | None
    rope_scaling: RopeScaling | None


class ConfigQuestions(ConfigFields):
    """What follows from the fields of a `ModelConfig`."""

    @property
    def n_kv_heads(self) -> int:
        """The number of key and value heads: `n_key_value_heads`, or `n_heads` where that is None."""
        return self.n_heads if self.n_key_value_heads is None else self.n_key_value_heads

    def layer_type(self, layer: int) -> str:
        """What a layer is made of: one of `LAYER_TYPES`.

        Raises:
            UnknownName: no whole number, or not one of the model's layers.
        """
        if type(layer) is not int or not 0 <= layer < self.n_layers:  # in a forward it is one, and costs no call
            layer = one_of_layers(layer, self.n_layers)
        if self.layer_types is not None:
            return self.layer_types[layer]
        return "attn" if self.attn_only else "attn+mlp" if self.experts is None else "attn+moe"

    def mixer(self, layer: int) -> str | None:
        """What mixes positions in a layer: "attn", "mamba", "mamba2", or None in a layer that has only an MLP.

        Of a layer that shares a transformer block it is the mixer that writes to the residual stream.
        """
        first = self.layer_type(layer).removeprefix("shared+").partition("+")[0]
        return None if first in ("mlp", "moe") else first

    def mixers_in(self, layer: int) -> tuple[str, ...]:
        """Everything that mixes positions in a layer, in the order of computation: in most of them one, or none."""
        mixer = self.mixer(layer)
        return () if mixer is None else ("attn", mixer) if self.shares(layer) else (mixer,)

    def shares(self, layer: int) -> bool:
        """Whether a layer calls a transformer block that it shares with others."""
        return self.layer_type(layer).startswith("shared+")

    def attends(self, layer: int) -> bool:
        """Whether a layer has attention heads, its own or those of a shared block."""
        return "attn" in self.mixers_in(layer)

    def first_call(self, layer: int) -> int:
        """The first layer that calls the shared block of a layer."""
        calls = self.layers_that_share
        assert self.shared is not None
        return calls[calls.index(layer) % self.shared.n_blocks]

    @functools.cached_property
    def layers_that_share(self) -> tuple[int, ...]:
        """The layers that call shared blocks."""
        return tuple(at for at in range(self.n_layers if self.layer_types is not None else 0) if self.shares(at))

    def attention_kind(self, layer: int) -> AttentionKind:
        """How far a layer's attention sees, and how it rotates."""
        local = self.window_size is not None and (self.attn_types is None or self.attn_types[layer] == "local")
        base, scaling = (
            (self.rotary_base, self.rope_scaling)
            if self.rotary_base_local is None or not local
            else (self.rotary_base_local, self.rope_scaling_local)
        )
        rotates = self.positional_embedding_type == "rotary" and layer not in self.nope_layers
        window = self.window_size if local else None
        return AttentionKind(window, base, scaling) if rotates else AttentionKind(window, None, None)

    @functools.cached_property
    def attention_kinds(self) -> frozenset[AttentionKind]:
        """Every kind of attention layer that the model has."""
        alike = self.attn_types is None and not self.nope_layers and self.layer_types is None
        different = range(min(self.n_layers, 1) if alike else self.n_layers)  # as in `mixers`
        return frozenset(self.attention_kind(layer) for layer in different if self.attends(layer))

    @property
    def turns_by_length(self) -> bool:
        """Whether rotary frequencies depend on how long the whole prompt is."""
        scalings = (kind.rope_scaling for kind in self.attention_kinds)
        return any(scaling is not None and scaling.kind in ("dynamic", "longrope") for scaling in scalings)

    def keys_stay(self, before: int, after: int) -> bool:
        """Whether keys of a prompt of `before` positions are still right once it has `after`."""
        for kind in self.attention_kinds:
            scaling = kind.rope_scaling
            if scaling is None or max(before, after) <= scaling.original_n_ctx:
                continue
            grows = scaling.kind == "dynamic" and before != after
            if grows or (scaling.kind == "longrope" and min(before, after) <= scaling.original_n_ctx):
                return False
        return True

    def layers_with(self, *mixers: str) -> list[int]:
        """The layers in which one of `mixers` mixes positions."""
        return [layer for layer in range(self.n_layers) if not set(mixers).isdisjoint(self.mixers_in(layer))]

    def mlp_in(self, layer: int) -> bool:
        """Whether a layer has an MLP, or a mixture of them, that writes to the residual stream."""
        return self.layer_type(layer).endswith(("mlp", "moe"))

    def experts_in(self, layer: int) -> Experts | None:
        """The experts among which a layer's router chooses; None in a layer without."""
        return self.experts if self.layer_type(layer).endswith("moe") else None

    def neurons_in(self, layer: int) -> int:
        """How many neurons of a layer's MLP a position takes: of a mixture those of the chosen and the shared experts.

        0 where the layer has none.
        """
        experts = self.experts_in(layer)
        if experts is not None:
            return experts.experts_per_token * experts.d_expert + (experts.d_shared or 0)
        return self.d_mlp or 0 if self.mlp_in(layer) or self.shares(layer) else 0

    @functools.cached_property
    def mixers(self) -> frozenset[str | None]:
        """Everything that mixes positions in some layer."""
        # Without layer_types all layers are alike, and a damaged file may claim billions: one stands for all.
        different = range(self.n_layers) if self.layer_types is not None else range(min(self.n_layers, 1))
        every = (mixer for layer in different for mixer in self.mixers_in(layer) or (None,))
        return frozenset(every) or frozenset({"attn"})

    @property
    def has_attention(self) -> bool:
        """Whether any layer has attention."""
        return "attn" in self.mixers

    @functools.cached_property
    def has_shared(self) -> bool:
        """Whether any layer calls a shared transformer block."""
        return any(kind.startswith("shared+") for kind in self.layer_types or ())

    @property
    def has_mamba(self) -> bool:
        """Whether any layer is a state-space layer."""
        return not self.mixers.isdisjoint(MAMBAS)

    @functools.cached_property
    def has_mlp(self) -> bool:
        """Whether any layer has an MLP, or a mixture of them."""
        if self.layer_types is None or not self.n_layers:
            return not self.attn_only
        return self.has_shared or any(self.mlp_in(layer) for layer in range(self.n_layers))

    @functools.cached_property
    def has_plain_mlp(self) -> bool:
        """Whether any layer has an MLP that is not a mixture."""
        if self.layer_types is None or not self.n_layers:
            return self.has_mlp and self.experts is None
        return self.has_shared or any(kind.endswith("mlp") for kind in self.layer_types)

    @property
    def n_ssm_heads(self) -> int:
        """Heads of a Mamba-2 layer."""
        return (self.d_inner or 0) // self.d_ssm_head

    @property
    def causal(self) -> bool:
        """Whether a position sees only itself and earlier ones."""
        return self.attention_dir == "causal"

    @property
    def has_norm_weights(self) -> bool:
        """Whether the norms multiply by weights."""
        return self.normalization_type in ("LN", "RMS")

    @property
    def has_norm_bias(self) -> bool:
        """Whether the norms add a bias."""
        return self.normalization_type == "LN" and self.norm_bias

    @property
    def norms_before(self) -> bool:
        """Whether attention and MLP read the stream through norms."""
        return self.normalization_type is not None and self.norm_placement in ("pre", "both")

    @property
    def norms_after(self) -> bool:
        """Whether what attention and MLP make passes through norms before it is added to the stream."""
        return self.norm_placement in ("post", "both")

    @property
    def linear_output(self) -> bool:
        """Whether the unembedding reads the stream through nothing but a norm, so that parts have shares of logits."""
        return self.mlm_act_fn is None

    @property
    def norms_on_stream(self) -> bool:
        """Whether the stream itself passes through norms, so that it is not the sum of what was written to it."""
        return self.norm_placement == "residual"

    @property
    def centers(self) -> bool:
        """Whether the norms subtract the mean (layer norm) or not (RMS norm, or none)."""
        return self.normalization_type in ("LN", "LNPre")
