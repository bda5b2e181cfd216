"""The decoder's second mixer: queries from its own residual stream, keys and values from the encoder's output.

Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from interp.config import ModelConfig
from interp.forward.forward_context import Context, Sight
from interp.forward.packed_rows import KeysValues
from interp.hooked.hooks import HookPoint
from interp.models.attention import Attention


@dataclass(frozen=True)
class Encoded:
    """What the encoder has made of its prompts, for the decoder to look at.

    Attributes:
        stream: its output, after the final norm if it has one [batch, source pos, d_model].
        mask: True at real tokens [batch, source pos]; None without padding.
    """

    stream: Tensor
    mask: Tensor | None = None

    def of(self, prompts: Tensor) -> Encoded:
        """Those of some prompts, each as often as it is named."""
        return Encoded(self.stream[prompts], None if self.mask is None else self.mask[prompts])


@dataclass(frozen=True)
class DecoderContext(Context):
    """What the layers of one forward of a decoder share: also the encoder's output.

    `kept` holds the keys and values of every layer's cross-attention once they are made; None makes them anew.
    """

    encoded: Encoded | None = None
    kept: dict[int, KeysValues] | None = None


def source_sight(mask: Tensor | None) -> Sight:
    """Who looks at whom: every position of the decoder at every real one of the encoder."""
    return Sight(None if mask is None else mask[:, None, None, :], False)


class CrossAttention(Attention):
    """The cross-attention of one layer; weights as in `Attention`, of which the keys' and values' read the encoder."""

    def __init__(self, cfg: ModelConfig, layer: int, points: Mapping[str, HookPoint]) -> None:
        super().__init__(cfg, layer, points, "cross_attn")

    def look(self, x: Tensor, context: DecoderContext) -> Tensor:
        """Values of the encoder's positions mixed by the pattern, before `hook_z`.  # [batch, pos, head, d_head]"""
        assert context.encoded is not None
        kept = context.kept
        q = self.hook_q(self._part(x, slice(self.cfg.n_heads)))
        if kept is not None and self.layer in kept:
            k, v = kept[self.layer]
        else:
            k, v = self.keys_values(context.encoded.stream)
        if kept is not None:
            kept[self.layer] = (k, v)
        sight = source_sight(context.encoded.mask)
        return (self.attend if self.explicit else self.attend_unseen)(q, k, v, sight, None)

    def keys_values(self, stream: Tensor) -> KeysValues:
        """Keys and values [batch, source pos, kv_head, d_head] of the encoder's output [batch, source pos, d_model]."""
        both = self._part(stream, slice(self.cfg.n_heads, None))
        k, v = both.split(self.cfg.n_kv_heads, dim=2)
        return self.hook_k(k), self.hook_v(v)

    def _part(self, x: Tensor, heads: slice) -> Tensor:
        """The projection to some of all heads, which lie under one another in `W_qkv`.  # [batch, pos, head, d_head]"""
        start = 0 if heads.start is None else heads.start * self.cfg.d_head
        rows = slice(start, None if heads.stop is None else heads.stop * self.cfg.d_head)
        bias = None if self.b_qkv is None else self.b_qkv[rows]
        return F.linear(x, self.W_qkv[rows], bias).unflatten(-1, (-1, self.cfg.d_head))
