"""A layer that calls a transformer block which it shares with other layers (Glorioso et al. 2024, "The Zamba2 Suite").

1. both = the residual stream and the token embedding, side by side.
2. attn_out = attention(ln1(both)); mlp_out = MLP(ln2(attn_out)). Neither is added to what it read.
3. mixer_in = resid_pre + mlp_out W_shared: the block writes to the input of the layer's Mamba-2 mixer alone.
4. resid_post = resid_pre + mixer(ln_mixer(mixer_in)).

Layers that call the same block have its weights in common. What each has of its own are `W_shared` and adapters, maps
of low rank that are added to input weights (Hu et al. 2021, "LoRA").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.config import ModelConfig
from interp.errors import PromptError
from interp.forward.forward_context import Context
from interp.hooked.hooks import HookPoint
from interp.hooked.past import PastKeyValues
from interp.models.attention import Attention
from interp.models.block import Block
from interp.models.layers import MLP, Norm


class Adapter(nn.Module):
    """A map of low rank beside a weight: x W_narrow^T W_wide^T."""

    def __init__(self, d_in: int, rank: int, d_out: int) -> None:
        super().__init__()
        self.W_narrow = nn.Parameter(torch.empty(rank, d_in))
        self.W_wide = nn.Parameter(torch.empty(d_out, rank))

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the outcome of the weight.  # [..., d_in] -> [..., d_out]"""
        return F.linear(F.linear(x, self.W_narrow), self.W_wide)

    @property
    def rows(self) -> Tensor:
        """The map as one matrix.  # [d_out, d_in]"""
        return self.W_wide @ self.W_narrow


class WideNorm(Norm):
    """The norm of the residual stream and the token embedding, side by side [..., d_both]."""

    def _make_weights(self, cfg: ModelConfig) -> None:
        self.w = nn.Parameter(torch.empty(2 * cfg.d_model)) if cfg.has_norm_weights else None
        self.b = nn.Parameter(torch.empty(2 * cfg.d_model)) if cfg.has_norm_bias else None


class SharedAttention(Attention):
    """The attention of a shared block, as one layer calls it; `W_Q`, `W_K` and `W_V` include the layer's adapters."""

    def __init__(self, cfg: ModelConfig, layer: int, points: Mapping[str, HookPoint]) -> None:
        super().__init__(cfg, layer, points, d_in=2 * cfg.d_model)
        self.adapters: nn.ModuleDict | None = None
        if cfg.shared is not None and cfg.shared.attn_adapters and cfg.shared.adapter_rank is not None:
            rank, width = cfg.shared.adapter_rank, cfg.n_heads * cfg.d_head
            self.adapters = nn.ModuleDict({letter: Adapter(2 * cfg.d_model, rank, width) for letter in "QKV"})

    def all_heads(self, x: Tensor) -> Tensor:
        """Queries, keys and values of all heads, one after another.  # [..., d_both] -> [..., row]"""
        made = super().all_heads(x)
        if self.adapters is None:
            return made
        return made + torch.cat([adapter(x) for adapter in self.adapters.values()], dim=-1)

    @property
    def W_Q(self) -> Tensor:
        """Query weights [head, d_both, d_head]."""
        return self._adapted("Q")

    @property
    def W_K(self) -> Tensor:
        """Key weights [kv_head, d_both, d_head]."""
        return self._adapted("K")

    @property
    def W_V(self) -> Tensor:
        """Value weights [kv_head, d_both, d_head]."""
        return self._adapted("V")

    def _adapted(self, letter: str) -> Tensor:
        weight = of_block(self, f"W_{letter}")
        adapter = None if self.adapters is None else self.adapters[letter]
        if not isinstance(adapter, Adapter):
            return weight
        return weight + adapter.rows.unflatten(0, (-1, self.cfg.d_head)).transpose(1, 2)


class SharedMLP(MLP):
    """The MLP of a shared block, as one layer calls it; `W_gate` and `W_in` include the layer's adapter."""

    def __init__(self, cfg: ModelConfig, d_mlp: int, sites: str, points: Mapping[str, HookPoint]) -> None:
        super().__init__(cfg, d_mlp, sites, points)
        rank = None if cfg.shared is None else cfg.shared.adapter_rank
        self.adapter = None if rank is None else Adapter(cfg.d_model, rank, 2 * d_mlp)  # of the gate, then of the input

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What neurons are made of.  # [..., d_mlp] each"""
        linear, gate = super().inputs(x)
        if self.adapter is None or gate is None:
            return linear, gate
        more_gate, more_linear = self.adapter(x).chunk(2, dim=-1)
        return linear + more_linear, gate + more_gate

    @property
    def W_in(self) -> Tensor:
        """Input weights [d_model, d_mlp]."""
        weight = of_block(self, "W_in")
        return weight if self.adapter is None else weight + self.adapter.rows.chunk(2)[1].T

    @property
    def W_gate(self) -> Tensor | None:
        """Gate weights [d_model, d_mlp]."""
        if self.W_gate_up is None:
            return None
        weight = of_block(self, "W_gate")
        return weight if self.adapter is None else weight + self.adapter.rows.chunk(2)[0].T


def of_block(part: nn.Module, name: str) -> Any:
    """A weight of a shared block's part without a layer's adapter, as a view, or another attribute of the part."""
    kind = next((kind for kind in (Attention, MLP) if isinstance(part, kind)), type(part))
    plain = getattr(kind, name, None)
    return plain.fget(part) if isinstance(plain, property) and plain.fget is not None else getattr(part, name, None)


class SharedBlock(Block):
    """One layer that calls a shared block and then its own mixer.

    Args:
        cfg: the model's configuration.
        layer: the layer's number.
        points: the hook points of the model.
        first: the first layer that calls the same block, whose weights this one gets; None where it is this one.
    """

    def __init__(
        self, cfg: ModelConfig, layer: int, points: Mapping[str, HookPoint], first: SharedBlock | None = None
    ) -> None:
        super().__init__(cfg, layer, points)
        assert cfg.d_mlp is not None
        here = f"blocks.{layer}"
        self.ln1 = WideNorm(cfg, f"{here}.ln1", points)
        self.attn = SharedAttention(cfg, layer, points)
        self.ln2 = Norm(cfg, f"{here}.ln2", points)
        self.mlp = SharedMLP(cfg, cfg.d_mlp, f"{here}.mlp.hook_", points)
        self.ln_mixer = Norm(cfg, f"{here}.ln_mixer", points)
        self.W_shared = nn.Parameter(torch.empty(cfg.d_model, cfg.d_model))  # [d_model in, d_model out]
        self.hook_split = {name: points[f"{here}.hook_{name}_input"] for name in self.heads}
        self.hook_in, self.hook_mid, self.hook_out = (
            points[f"{here}.hook_shared_block_{name}"] for name in ("in", "mid", "out")
        )
        if first is not None:
            self._take_weights(first)

    def in_common(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """The weights of the block, which all layers that call it have: module, name and weight."""
        for part in ("ln1", "attn", "ln2", "mlp"):
            for path, module in self.get_submodule(part).named_modules(prefix=part):
                if not isinstance(module, Adapter):
                    for name, parameter in module.named_parameters(recurse=False):
                        yield path, name, parameter

    def _take_weights(self, first: SharedBlock) -> None:
        """Have the weights of the block in common with the first layer that calls it."""
        for path, name, parameter in first.in_common():
            setattr(self.get_submodule(path), name, parameter)

    def mix(self, resid: Tensor, context: Context, past: PastKeyValues | None = None) -> tuple[Tensor, Tensor]:
        """The shared block and the mixer: the residual stream, and what W_out of the mixer reads."""
        assert self.mixer is not None and self.ln_mixer is not None and self.hook_mixer_in is not None
        resid = self.hook_resid_pre(resid)
        own = resid + self._called(resid, context, past)
        if self.hook_mixer_in.wanted:
            own = self.hook_mixer_in(own)
        return resid, self.mixer.mix(self.ln_mixer(own), context, past=past)

    def write(self, resid: Tensor, mixed: Tensor) -> Tensor:
        """What the mixer adds to the residual stream; the shared block adds nothing to it."""
        assert self.mixer is not None
        return self.hook_resid_post(resid + self.mixer.write(mixed))

    def _called(self, resid: Tensor, context: Context, past: PastKeyValues | None) -> Tensor:
        """What the shared block adds to the mixer's input.  # [batch, pos, d_model]"""
        assert self.attn is not None and self.mlp is not None and self.ln1 is not None and self.ln2 is not None
        if context.embedded is None:
            raise PromptError(
                "a layer that shares a transformer block reads the token embedding beside the residual stream: run the "
                "model from its tokens, without start_at_layer"
            )
        both = self.hook_in(torch.cat((resid, context.embedded), dim=-1))  # [batch, pos, d_both]
        x = self.ln1(both)
        z = self.attn.mix(x, context, split=self._split_inputs(both, x), past=past)
        out = self.hook_mid(self.attn.write(z))  # [batch, pos, d_model]
        return self.hook_out(self.mlp(self.ln2(out)) @ self.W_shared)
