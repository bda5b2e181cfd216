"""The values of sites that a forward forms on demand, from what one run has at their neighbours.

A cache gives them without having stored them (`interp.hooked.cache`), as the forward would have computed them:

| site | from |
|---|---|
| `ln1.*`, `ln2.*` | the residual stream that the norm reads |
| `q_input`, `k_input`, `v_input`, `mixer_in`, `mlp_in` | the residual stream that the part reads |
| the same where a layer calls a shared block | what the block reads, or the stream and what it makes |
| `attn_scores`, `pattern` | queries and keys, or the scores if these are stored |
| `result` | `z` |
| `state`, `mixer.pattern` | what the recurrence runs on (`RECURRENT`) |
| `expert_pre`, `expert_pre_linear` | what the MLP's norm makes of the residual stream |
| `expert_post`, `expert_out` | the one before, and the experts' weights |

A derivation gives None where the run does not have what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from einops import repeat
from torch import Tensor, nn

from interp.config import ModelConfig
from interp.forward.forward_context import make_context
from interp.models.block import Block
from interp.models.layers import Norm
from interp.models.moe import MoE
from interp.sites import normed_on_stream, stream_between
from interp.state_space.mixer import RECURRENT


@dataclass(frozen=True, eq=False)
class LayerRun:
    """What one run has stored of a layer.

    Attributes:
        cfg: the model's configuration.
        layer: the layer's number.
        block: its weights.
        tensors: full site name -> value.
        attention_mask: of the run [batch, pos]; None without padding.
        relative: the table of relative positions [bucket, head], where the model has one.
    """

    cfg: ModelConfig
    layer: int
    block: Block
    tensors: Mapping[str, Tensor]
    attention_mask: Tensor | None
    relative: Tensor | None = None

    def stored(self, name: str) -> Tensor | None:
        """The value of a site of this layer, such as `attn.hook_z`, if it is stored."""
        return self.tensors.get(f"blocks.{self.layer}.{name}")

    @property
    def resid_pre(self) -> Tensor | None:
        """The residual stream that enters the layer."""
        return self.stored("hook_resid_pre")

    @property
    def mlp_in(self) -> Tensor | None:
        """The residual stream that the MLP reads: with parallel parts, or without a mixer, what enters the layer."""
        own = self.stored("hook_mlp_in")
        if own is not None:
            return own
        direct = self.block.parallel or self.cfg.mixer(self.layer) is None
        return self.resid_pre if direct else self.tensors.get(stream_between(self.cfg, self.layer))

    @property
    def mixer_in(self) -> Tensor | None:
        """What a state-space mixer reads: the stream, and what a shared block adds to it for the mixer alone."""
        own, pre, made = self.stored("hook_mixer_in"), self.resid_pre, self.stored("hook_shared_block_out")
        if own is not None or not self.cfg.shares(self.layer):
            return pre if own is None else own
        return None if pre is None or made is None else pre + made

    def norm_input(self, norm: str) -> Tensor | None:
        """What "ln1", "ln2" or "ln_mixer" normalises: the residual stream, or what a shared block has there."""
        if norm == "ln_mixer":
            return self.mixer_in
        if self.cfg.shares(self.layer):
            return self.stored("hook_shared_block_in" if norm == "ln1" else "hook_shared_block_mid")
        if self.cfg.norms_on_stream:
            return self.tensors.get(normed_on_stream(self.cfg, self.layer, norm))
        return self.resid_pre if norm == "ln1" else self.mlp_in

    def split_input(self, letter: str) -> Tensor | None:
        """What every query, key or value head ("q", "k", "v") reads.  # [batch, pos, head, d_model]"""
        pre = self.stored("hook_shared_block_in") if self.cfg.shares(self.layer) else self.resid_pre
        heads = self.block.heads[letter]
        return None if pre is None else repeat(pre, "batch pos d_model -> batch pos head d_model", head=heads)

    def head_results(self) -> Tensor | None:
        """What each head adds to the residual stream.  # [batch, pos, head, d_model]"""
        attn, z = self.block.attn, self.stored("attn.hook_z")
        return None if attn is None or z is None else attn.head_results(z)

    def scores(self) -> Tensor | None:
        """Scaled scores.  # [batch, head, query, key]"""
        attn, scores = self.block.attn, self.stored("attn.hook_attn_scores")
        if attn is None or scores is not None:
            return scores
        turned = "" if attn.hook_rot_q is None else "rot_"
        q, k = self.stored(f"attn.hook_{turned}q"), self.stored(f"attn.hook_{turned}k")
        if q is None or k is None:
            return None
        mask, table = self.attention_mask, self.relative
        context = make_context(
            self.cfg, q.shape[1], attention_mask=mask, relative=table, device=q.device, dtype=q.dtype
        )
        return attn.scores(q, k, context.sights[attn.kind])

    def pattern(self) -> Tensor | None:
        """Attention probabilities.  # [batch, head, query, key]"""
        attn, scores = self.block.attn, self.scores()
        return None if attn is None or scores is None else attn.softmax(scores, self.stored("attn.hook_sinks"))

    def recurrent(self, site: str) -> Tensor | None:
        """The states ("state") or the hidden attention ("pattern") of a state-space layer."""
        mixer = self.block.mixer
        values = {name: value for name in RECURRENT if (value := self.stored(f"mixer.hook_{name}")) is not None}
        if mixer is None or len(values) < len(RECURRENT):
            return None
        return mixer.derive(site, self.attention_mask, **values)

    def expert_inputs(self, which: int) -> Tensor | None:
        """What the neurons of every expert are made of: the gate, or else the input (0), and the other branch (1)."""
        mlp, stored = self.block.mlp, self.stored(f"mlp.hook_expert_{('pre', 'pre_linear')[which]}")
        if not isinstance(mlp, MoE) or stored is not None:
            return stored
        norm, normalized, stream = self.block.ln2, self.stored("ln2.hook_normalized"), self.mlp_in
        if norm is not None and normalized is not None:
            return mlp.inputs(norm.weighed(normalized))[which]
        if stream is None:
            return None
        return mlp.inputs(stream if norm is None else norm.unhooked(stream))[which]

    def expert_neurons(self) -> Tensor | None:
        """The neurons of every expert.  # [batch, pos, expert, d_expert]"""
        mlp, stored = self.block.mlp, self.stored("mlp.hook_expert_post")
        pre, linear = self.expert_inputs(0), self.expert_inputs(1)
        if not isinstance(mlp, MoE) or stored is not None or pre is None:
            return stored
        return mlp.activate(pre, linear)

    def expert_out(self) -> Tensor | None:
        """The weighted output of every expert.  # [batch, pos, expert, d_model]"""
        mlp, neurons, weights = self.block.mlp, self.expert_neurons(), self.stored("mlp.hook_expert_weights")
        if not isinstance(mlp, MoE) or neurons is None or weights is None:
            return None
        return mlp.outputs(neurons, weights)


def norm_scale(norm: nn.Module | None, resid: Tensor | None) -> Tensor | None:
    """The divisor of a norm, from the residual stream that it reads.  # [..., 1]"""
    return norm.scale(resid) if isinstance(norm, Norm) and resid is not None else None


def normalized(norm: nn.Module | None, resid: Tensor | None) -> Tensor | None:
    """The normalised residual stream, before the norm's weights.  # [..., d_model]"""
    return norm.normalized(resid) if isinstance(norm, Norm) and resid is not None else None


IN_LAYER: dict[str, Callable[[LayerRun], Tensor | None]] = {
    "ln1.scale": lambda run: norm_scale(run.block.ln1, run.norm_input("ln1")),
    "ln1.normalized": lambda run: normalized(run.block.ln1, run.norm_input("ln1")),
    "ln2.scale": lambda run: norm_scale(run.block.ln2, run.norm_input("ln2")),
    "ln2.normalized": lambda run: normalized(run.block.ln2, run.norm_input("ln2")),
    "q_input": lambda run: run.split_input("q"),
    "k_input": lambda run: run.split_input("k"),
    "v_input": lambda run: run.split_input("v"),
    "ln_mixer.scale": lambda run: norm_scale(run.block.ln_mixer, run.norm_input("ln_mixer")),
    "ln_mixer.normalized": lambda run: normalized(run.block.ln_mixer, run.norm_input("ln_mixer")),
    "mixer_in": lambda run: run.mixer_in,
    "mlp_in": lambda run: run.mlp_in,
    "attn_scores": LayerRun.scores,
    "pattern": LayerRun.pattern,
    "result": LayerRun.head_results,
    "expert_pre": lambda run: run.expert_inputs(0),
    "expert_pre_linear": lambda run: run.expert_inputs(1),
    "expert_post": LayerRun.expert_neurons,
    "expert_out": LayerRun.expert_out,
    "state": lambda run: run.recurrent("state"),
    "mixer.pattern": lambda run: run.recurrent("pattern"),
}
"""Short site name -> its value from those of other sites of the layer."""

AT_THE_END: dict[str, Callable[[nn.Module, Tensor | None], Tensor | None]] = {
    "ln_final.scale": norm_scale,
    "ln_final.normalized": normalized,
}
"""The same after the last layer, from the final norm and the residual stream that it reads."""
