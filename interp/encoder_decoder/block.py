"""One block of a decoder: self-attention, cross-attention, MLP, each of which adds to the residual stream."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from interp.config import ModelConfig
from interp.encoder_decoder.cross_attention import CrossAttention, DecoderContext
from interp.forward.forward_context import Context
from interp.hooked.hooks import HookPoint
from interp.hooked.past import PastKeyValues
from interp.models.block import Block
from interp.models.layers import Norm


class DecoderBlock(Block):
    """A `Block` with a second mixer between attention and MLP, which looks at the encoder's output."""

    def __init__(self, cfg: ModelConfig, layer: int, points: Mapping[str, HookPoint]) -> None:
        super().__init__(cfg, layer, points)
        here = f"blocks.{layer}"
        normed = cfg.norms_before or cfg.norms_on_stream
        self.ln_cross = Norm(cfg, f"{here}.ln_cross", points) if normed else None
        self.cross_attn = CrossAttention(cfg, layer, points)
        self.hook_cross_attn_out = points[f"{here}.hook_cross_attn_out"]
        self.hook_resid_mid_cross = points[f"{here}.hook_resid_mid_cross"]
        self.hook_normalized_resid_mid_cross = points.get(f"{here}.hook_normalized_resid_mid_cross")

    def forward(self, resid: Tensor, context: Context, past: PastKeyValues | None = None) -> Tensor:
        """The residual stream [batch, pos, d_model] after this layer."""
        assert isinstance(context, DecoderContext) and self.attn is not None
        assert self.hook_attn_out is not None and self.hook_resid_mid is not None
        resid, mixed = self.mix(resid, context, past)
        resid = self.hook_resid_mid(resid + self.hook_attn_out(self._added(self.attn.write(mixed), None)))
        if self.hook_normalized_resid_mid is not None and self.ln1 is not None:
            resid = self.hook_normalized_resid_mid(self.ln1(resid))
        x = resid if self.norms_on_stream or self.ln_cross is None else self.ln_cross(resid)
        made = self.cross_attn.write(self.cross_attn.look(x, context))
        resid = self.hook_resid_mid_cross(resid + self.hook_cross_attn_out(self._added(made, None)))
        if self.hook_normalized_resid_mid_cross is not None and self.ln_cross is not None:
            resid = self.hook_normalized_resid_mid_cross(self.ln_cross(resid))
        return self._left(resid + self._mlp_out(resid))
