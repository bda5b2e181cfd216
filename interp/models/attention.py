"""The attention mixer: queries, keys and values, positions, a fused or an explicit path, keys and values of a prefix.

Multi-head attention after Vaswani et al. 2017 ("Attention Is All You Need", section 3.2), with fewer key and value
heads than query heads where a model says so (Ainslie et al. 2023, "GQA", section 2.2).

1. x, the normalised residual stream, is projected to q, k and v; rotary models turn q and k by their position.
2. Keys and values of an earlier part of the prompt, if given, are put in front.
3. Fused path: one kernel from q, k, v to z. Explicit path, in the layers where somebody asked for the scores or the
   pattern: scores = q k / sqrt(d_head), pattern = softmax(scores), z = pattern v.
4. W_O maps z back to the residual stream: all heads at once or, where somebody asked for `result`, one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import Tensor, nn

from interp.config import ModelConfig
from interp.forward.forward_context import Context, causal_mask, pair_axis
from interp.forward.packed_rows import Packed
from interp.hooked.hooks import HookPoint
from interp.hooked.past import PastKeyValues
from interp.precision import wide_type

# Queries of a sequence up to which small matrix products are faster than the fused kernel (docs/log.md).
FEW_QUERIES = 8


class Attention(nn.Module):
    """The attention of one layer: normalised residual stream [batch, pos, d_model] in, the same shape out.

    Weights lie as the matrix products want them: `W_qkv` [(head + 2 kv_head) * d_head, d_model] holds queries, keys and
    values under one another. `W_Q` and the rest are views in TransformerLens's shapes.
    """

    def __init__(self, cfg: ModelConfig, layer: int, points: Mapping[str, HookPoint]) -> None:
        super().__init__()
        self.cfg = cfg
        self.layer = layer
        rows = (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.d_head
        self.W_qkv = nn.Parameter(torch.empty(rows, cfg.d_model))
        self.b_qkv = nn.Parameter(torch.empty(rows)) if cfg.attn_in_bias else None
        self.W_z = nn.Parameter(torch.empty(cfg.d_model, cfg.n_heads * cfg.d_head))
        self.b_z = nn.Parameter(torch.empty(cfg.d_model)) if cfg.attn_out_bias else None
        here = f"blocks.{layer}.attn.hook_"
        self.hook_q, self.hook_k, self.hook_v = (points[here + name] for name in "qkv")
        self.hook_attn_scores, self.hook_pattern = points[here + "attn_scores"], points[here + "pattern"]
        self.hook_z, self.hook_result = points[here + "z"], points[here + "result"]
        self.hook_rot_q, self.hook_rot_k = points.get(here + "rot_q"), points.get(here + "rot_k")

    def mix(
        self,
        x: Tensor,
        context: Context,
        *,
        split: Mapping[str, Tensor] | None = None,
        past: PastKeyValues | None = None,
    ) -> Tensor:
        """Values mixed by the pattern, before `hook_z`.  # [batch, pos, head, d_head]

        `split` maps "q", "k" or "v" to an input of its own for every head, [batch, pos, head, d_model].
        """
        q, k, v = self.project(x, split or {})
        if context.cos is not None and self.hook_rot_q is not None and self.hook_rot_k is not None:
            q = self.hook_rot_q(self.rotate(q, context))
            k = self.hook_rot_k(self.rotate(k, context))
        if context.packed is not None:
            return self.attend_packed(q, k, v, context.packed, context.groups)
        if past is not None:
            k, v = past.extend(self.layer, k, v)
        return (self.attend if self.explicit else self.attend_fused)(q, k, v, context)

    def write(self, z: Tensor) -> Tensor:
        """What the layer adds to the residual stream, of what its heads mixed.  # [batch, pos, d_model]"""
        z = self.hook_z(z)
        if self.hook_result.wanted:
            results = self.hook_result(self.head_results(z))
            out = results.sum(2)  # [batch, pos, d_model]
            return (out if self.b_z is None else out + self.b_z).to(results.dtype)  # autocast leaves some sums wide
        return F.linear(z.flatten(2), self.W_z, self.b_z)

    @property
    def explicit(self) -> bool:
        """Whether somebody wants the scores or the pattern."""
        return self.hook_attn_scores.wanted or self.hook_pattern.wanted

    def project(self, x: Tensor, split: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [batch, pos, head, d_head], keys and values [batch, pos, kv_head, d_head]."""
        cfg = self.cfg
        qkv = F.linear(x, self.W_qkv, self.b_qkv).unflatten(-1, (-1, cfg.d_head))
        q, k, v = qkv.split([cfg.n_heads, cfg.n_kv_heads, cfg.n_kv_heads], dim=2)
        if split:
            parts = {"q": (q, self.W_Q, self.b_Q), "k": (k, self.W_K, self.b_K), "v": (v, self.W_V, self.b_V)}
            q, k, v = (
                (einsum(split[name], W, "batch pos head d_model, head d_model d_head -> batch pos head d_head") + b).to(
                    plain.dtype
                )
                if name in split
                else plain
                for name, (plain, W, b) in parts.items()
            )
        return self.hook_q(q), self.hook_k(k), self.hook_v(v)

    def rotate(self, x: Tensor, context: Context) -> Tensor:
        """Turn pairs (a, b) of the first `rotary_dim` channels of x [batch, pos, head, d_head] by an angle each.

        (a, b) -> (a cos - b sin, b cos + a sin); `context.sin` carries the signs, so one product with the pairs swapped
        does both.
        """
        assert context.cos is not None and context.sin is not None and self.cfg.rotary_dim is not None
        rotary_dim, pair = self.cfg.rotary_dim, pair_axis(self.cfg)
        turned = x if rotary_dim == self.cfg.d_head else x[..., :rotary_dim]
        pairs = turned.unflatten(-1, (-1, 2) if pair == -1 else (2, -1))
        turned = torch.addcmul(pairs * context.cos, pairs.flip(pair), context.sin).flatten(-2)
        return turned if rotary_dim == self.cfg.d_head else torch.cat((turned, x[..., rotary_dim:]), dim=-1)

    def attend_fused(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """z [batch, pos, head, d_head] from one kernel, which forms no pattern."""
        assert self.cfg.attn_scale is not None
        mask, causal = context.allowed, context.causal
        if context.bias is not None:
            allowed = self._allowed(context)
            mask = context.bias if allowed is None else context.bias.masked_fill(~allowed, float("-inf"))
            causal = False
        z = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=causal,
            scale=1 / self.cfg.attn_scale,
            enable_gqa=self.cfg.n_kv_heads < self.cfg.n_heads,
        )
        return z.transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """z [batch, pos, head, d_head], by way of the scores and the pattern [batch, head, query, key]."""
        pattern = self.hook_pattern(self.softmax(self.hook_attn_scores(self.scores(q, k, context))))
        return einsum(pattern, self.to_query_heads(v), "batch head query key, batch key head d -> batch query head d")

    def attend_few(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """z [batch, pos, head, d_head] by small matrix products: for few queries faster than the fused kernel."""
        assert self.cfg.attn_scale is not None and context.allowed is not None
        kv_heads = self.cfg.n_kv_heads
        q = rearrange(q, "batch query (kv group) d -> (batch kv) (query group) d", kv=kv_heads)
        k = rearrange(k, "batch key kv d -> (batch kv) d key")
        v = rearrange(v, "batch key kv d -> (batch kv) key d")
        penalty = torch.zeros_like(context.allowed, dtype=q.dtype).masked_fill(~context.allowed, float("-inf"))
        penalty = penalty if context.bias is None else penalty + context.bias
        penalty = penalty.expand(-1, self.cfg.n_heads, -1, -1)
        penalty = rearrange(penalty, "batch (kv group) query key -> (batch kv) (query group) key", kv=kv_heads)
        z = self.softmax(torch.baddbmm(penalty, q, k, alpha=1 / self.cfg.attn_scale)) @ v
        group = self.cfg.n_heads // kv_heads
        return rearrange(z, "(batch kv) (query group) d -> batch query (kv group) d", kv=kv_heads, group=group)

    def attend_packed(self, q: Tensor, k: Tensor, v: Tensor, packed: Packed, groups: Sequence[Context]) -> Tensor:
        """z [1, row, head, d_head] of rows whose sequences go back to a base run.

        Scores and patterns of all rows are in one tensor [1, head, row, key] when they pass their hook points.
        """
        keys, values = packed.keys_values(self.layer, k[0], v[0])  # [sequence, pos, kv_head, d_head]
        parts = []
        if not self.explicit:
            for group, context in zip(packed.groups, groups, strict=True):
                own = q[0, group.rows].unflatten(0, (-1, group.length))  # [sequence, query, head, d_head]
                attend = self.attend_few if group.length <= FEW_QUERIES else self.attend_fused
                parts.append(attend(own, keys[group.sequences], values[group.sequences], context).flatten(0, 1))
            return torch.cat(parts)[None]
        for group, context in zip(packed.groups, groups, strict=True):
            own = q[0, group.rows].unflatten(0, (-1, group.length))
            scores = self.scores(own, keys[group.sequences], context)
            parts.append(rearrange(scores, "sequence head query key -> head (sequence query) key"))
        pattern = self.hook_pattern(self.softmax(self.hook_attn_scores(torch.cat(parts, dim=1)[None])))[0]
        parts = []
        for group in packed.groups:
            own = pattern[:, group.rows].unflatten(1, (-1, group.length))  # [head, sequence, query, key]
            v_own = self.to_query_heads(values[group.sequences])
            z = einsum(own, v_own, "head sequence query key, sequence key head d -> sequence query head d")
            parts.append(z.flatten(0, 1))
        return torch.cat(parts)[None]

    def scores(self, q: Tensor, k: Tensor, context: Context) -> Tensor:
        """Scaled scores [batch, head, query, key] of rotated q and k; -inf where a query may not look."""
        assert self.cfg.attn_scale is not None
        keys = self.to_query_heads(k)
        scores = einsum(q, keys, "batch query head d, batch key head d -> batch head query key") / self.cfg.attn_scale
        if context.bias is not None:
            scores = scores + context.bias
        allowed = self._allowed(context)
        return scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))

    def softmax(self, scores: Tensor) -> Tensor:
        """Softmax over the keys, in float32 at least."""
        return scores.softmax(-1, dtype=wide_type(scores.dtype)).to(scores.dtype)

    def to_query_heads(self, x: Tensor) -> Tensor:
        """Keys or values [batch, pos, kv_head, d_head], repeated for the query heads that share them."""
        group = self.cfg.n_heads // self.cfg.n_kv_heads
        return x if group == 1 else repeat(x, "batch pos kv_head d -> batch pos (kv_head group) d", group=group)

    def head_results(self, z: Tensor) -> Tensor:
        """What each head adds to the residual stream, without b_O.  # [batch, pos, head, d_model]"""
        return einsum(z, self.W_O, "batch pos head d_head, head d_head d_model -> batch pos head d_model")

    def _allowed(self, context: Context) -> Tensor | None:
        if context.causal:
            n = context.positions.shape[1]
            return causal_mask(n, n, context.positions.device)
        return context.allowed

    def _rows(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = parameter.unflatten(0, (-1, self.cfg.d_head))  # [all heads, d_head, ...]
        q, k, v = heads.split([self.cfg.n_heads, self.cfg.n_kv_heads, self.cfg.n_kv_heads])
        return q, k, v

    def _biases(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._rows(self.W_qkv.new_zeros(self.W_qkv.shape[0]) if self.b_qkv is None else self.b_qkv)

    @property
    def W_Q(self) -> Tensor:
        """Query weights [head, d_model, d_head]; a view, as the other weights here."""
        return self._rows(self.W_qkv)[0].transpose(1, 2)

    @property
    def W_K(self) -> Tensor:
        """Key weights [kv_head, d_model, d_head]."""
        return self._rows(self.W_qkv)[1].transpose(1, 2)

    @property
    def W_V(self) -> Tensor:
        """Value weights [kv_head, d_model, d_head]."""
        return self._rows(self.W_qkv)[2].transpose(1, 2)

    @property
    def W_O(self) -> Tensor:
        """Output weights [head, d_head, d_model]."""
        return rearrange(self.W_z, "d_model (head d_head) -> head d_head d_model", d_head=self.cfg.d_head)

    @property
    def b_Q(self) -> Tensor:
        """Query biases [head, d_head]; zeros where the model has none."""
        return self._biases()[0]

    @property
    def b_K(self) -> Tensor:
        """Key biases [kv_head, d_head]; zeros where the model has none."""
        return self._biases()[1]

    @property
    def b_V(self) -> Tensor:
        """Value biases [kv_head, d_head]; zeros where the model has none."""
        return self._biases()[2]

    @property
    def b_O(self) -> Tensor:
        """Output bias [d_model]; zeros where the model has none."""
        return self.W_z.new_zeros(self.cfg.d_model) if self.b_z is None else self.b_z
