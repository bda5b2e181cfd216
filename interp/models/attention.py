"""The attention mixer: queries, keys and values, positions, a fused or an explicit path, keys and values of a prefix.

Multi-head attention after Vaswani et al. 2017 ("Attention Is All You Need", section 3.2), with fewer key and value
heads than query heads where a model says so (Ainslie et al. 2023, "GQA", section 2.2).

1. x, the normalised residual stream, is projected to q, k and v. Some models bound or normalise them; rotary models
   turn q and k by their position.
2. Keys and values of an earlier part of the prompt, if given, are put in front.
3. Fused path: one kernel from q, k, v to z. Explicit path, in the layers where somebody asked for the scores or the
   pattern: scores = q k / sqrt(d_head), pattern = softmax(scores), z = pattern v. A soft cap bounds the scores; a sink
   is a score of looking nowhere, of which the softmax knows and the pattern shows nothing, so that its rows sum to less
   than 1. Both go by way of the scores, since the kernel knows neither.
4. W_O maps z back to the residual stream: all heads at once or, where somebody asked for `result`, one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import Tensor, nn

from interp.config import ModelConfig
from interp.forward.forward_context import Context, Sight, causal_mask
from interp.forward.packed_rows import Packed
from interp.forward.rotary import pair_axis
from interp.hooked.hooks import HookPoint
from interp.hooked.past import PastKeyValues
from interp.models.layers import HeadNorm, soft_cap
from interp.precision import wide_type

# Queries of a sequence up to which small matrix products are faster than the fused kernel (docs/log.md).
FEW_QUERIES = 8


class Attention(nn.Module):
    """The attention of one layer: normalised residual stream [batch, pos, d_model] in, the same shape out.

    One that reads something else has another width there, `d_in`.

    Weights lie as the matrix products want them: `W_qkv` [(head + 2 kv_head) * d_head, d_model] holds queries, keys and
    values under one another. `W_Q` and the rest are views in TransformerLens's shapes.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        layer: int,
        points: Mapping[str, HookPoint],
        name: str = "attn",
        d_in: int | None = None,
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.layer = layer
        self.kind = cfg.attention_kind(layer)
        rows = (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.d_head
        self.W_qkv = nn.Parameter(torch.empty(rows, cfg.d_model if d_in is None else d_in))
        self.b_qkv = nn.Parameter(torch.empty(rows)) if cfg.attn_in_bias else None
        self.W_z = nn.Parameter(torch.empty(cfg.d_model, cfg.n_heads * cfg.d_head))
        self.b_z = nn.Parameter(torch.empty(cfg.d_model)) if cfg.attn_out_bias else None
        self.sinks = nn.Parameter(torch.empty(cfg.n_heads)) if cfg.attn_sinks else None
        path = f"blocks.{layer}.{name}"
        normed = f"{path}.q_norm.hook_scale" in points
        self.q_norm = HeadNorm(cfg, f"{path}.q_norm", points, cfg.n_heads) if normed else None
        self.k_norm = HeadNorm(cfg, f"{path}.k_norm", points, cfg.n_kv_heads) if normed else None
        here = f"{path}.hook_"
        self.hook_q, self.hook_k, self.hook_v = (points[here + name] for name in "qkv")
        self.hook_attn_scores, self.hook_pattern = points[here + "attn_scores"], points[here + "pattern"]
        self.hook_z, self.hook_result = points[here + "z"], points[here + "result"]
        self.hook_rot_q, self.hook_rot_k = points.get(here + "rot_q"), points.get(here + "rot_k")
        self.hook_sinks = points.get(here + "sinks")

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
        sight = context.sights[self.kind]
        q, k, v = self.project(x, split or {})
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self._clipped(self.q_norm(q)), self._clipped(self.k_norm(k))
        if self.hook_rot_q is not None and self.hook_rot_k is not None:
            q, k = (self.rotate(q, sight), self.rotate(k, sight)) if sight.cos is not None else (q, k)
            q, k = self.hook_rot_q(q), self.hook_rot_k(k)
        sinks = self._sinks(q)
        if context.packed is not None:
            return self.attend_packed(q, k, v, context.packed, sight.groups, sinks)
        if past is not None:
            k, v = past.extend(self.layer, k, v)
        return (self.attend if self.explicit else self.attend_unseen)(q, k, v, sight, sinks)

    def turn(self, q: Tensor, k: Tensor, sight: Sight) -> tuple[Tensor, Tensor]:
        """Queries and keys as scores compare them, normalised and turned by their positions, without hook points."""
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self._clipped(self.q_norm.unhooked(q)), self._clipped(self.k_norm.unhooked(k))
        return (q, k) if sight.cos is None else (self.rotate(q, sight), self.rotate(k, sight))

    def write(self, z: Tensor) -> Tensor:
        """What the layer adds to the residual stream, of what its heads mixed.  # [batch, pos, d_model]"""
        z = self.hook_z(z)
        if self.hook_result.wanted:
            results = self.hook_result(self.head_results(z))
            out = results.sum(2)  # [batch, pos, d_model]
            return (out if self.b_z is None else out + self.b_z).to(results.dtype)  # autocast leaves some sums wide
        return self.output(z)

    def output(self, z: Tensor) -> Tensor:
        """z W_O + b_O, all heads at once.  # [..., head, d_head] -> [..., d_model]"""
        return F.linear(z.flatten(-2), self.W_z, self.b_z)

    @property
    def explicit(self) -> bool:
        """Whether somebody wants the scores or the pattern."""
        return self.hook_attn_scores.wanted or self.hook_pattern.wanted

    def project(self, x: Tensor, split: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [batch, pos, head, d_head], keys and values [batch, pos, kv_head, d_head]."""
        cfg = self.cfg
        qkv = self.all_heads(x).unflatten(-1, (-1, cfg.d_head))
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
        if self.q_norm is None:  # otherwise their norms come first
            q, k = self._clipped(q), self._clipped(k)
        return self.hook_q(q), self.hook_k(k), self.hook_v(self._clipped(v))

    def all_heads(self, x: Tensor) -> Tensor:
        """Queries, keys and values of all heads, one after another.  # [..., d_model] -> [..., row]"""
        return F.linear(x, self.W_qkv, self.b_qkv)

    def _clipped(self, x: Tensor) -> Tensor:
        """Queries, keys or values within the model's bounds."""
        bound = self.cfg.clip_qkv
        return x if bound is None else x.clamp(-bound, bound)

    def rotate(self, x: Tensor, sight: Sight) -> Tensor:
        """Turn pairs (a, b) of the first `rotary_dim` channels of x [batch, pos, head, d_head] by an angle each.

        (a, b) -> (a cos - b sin, b cos + a sin); `sight.sin` carries the signs, so one product with the pairs swapped
        does both.
        """
        assert sight.cos is not None and sight.sin is not None and self.cfg.rotary_dim is not None
        rotary_dim, pair = self.cfg.rotary_dim, pair_axis(self.cfg)
        turned = x if rotary_dim == self.cfg.d_head else x[..., :rotary_dim]
        pairs = turned.unflatten(-1, (-1, 2) if pair == -1 else (2, -1))
        turned = torch.addcmul(pairs * sight.cos, pairs.flip(pair), sight.sin).flatten(-2)
        return turned if rotary_dim == self.cfg.d_head else torch.cat((turned, x[..., rotary_dim:]), dim=-1)

    def attend_unseen(self, q: Tensor, k: Tensor, v: Tensor, sight: Sight, sinks: Tensor | None) -> Tensor:
        """z [batch, pos, head, d_head] where nobody asks for scores or pattern."""
        if self.cfg.attn_scores_soft_cap is not None or sinks is not None:
            return self.attend_by_products(q, k, v, sight, sinks)
        return self.attend_fused(q, k, v, sight)

    def attend_fused(self, q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
        """z [batch, pos, head, d_head] from one kernel, which forms no pattern."""
        assert self.cfg.attn_scale is not None
        mask, causal = sight.allowed, sight.causal
        if sight.bias is not None:
            allowed = _allowed(sight, q, k)
            mask = sight.bias if allowed is None else sight.bias.masked_fill(~allowed, float("-inf"))
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

    def attend(self, q: Tensor, k: Tensor, v: Tensor, sight: Sight, sinks: Tensor | None) -> Tensor:
        """z [batch, pos, head, d_head], by way of the scores and the pattern [batch, head, query, key]."""
        pattern = self.hook_pattern(self.softmax(self.hook_attn_scores(self.scores(q, k, sight)), sinks))
        return einsum(pattern, self.to_query_heads(v), "batch head query key, batch key head d -> batch query head d")

    def attend_by_products(self, q: Tensor, k: Tensor, v: Tensor, sight: Sight, sinks: Tensor | None) -> Tensor:
        """z [batch, pos, head, d_head] by small matrix products: for few queries faster than the fused kernel."""
        assert self.cfg.attn_scale is not None
        kv_heads, n_queries, cap = self.cfg.n_kv_heads, q.shape[1], self.cfg.attn_scores_soft_cap
        allowed = _allowed(sight, q, k)
        q = rearrange(q, "batch query (kv group) d -> (batch kv) (query group) d", kv=kv_heads)
        k = rearrange(k, "batch key kv d -> (batch kv) d key")
        v = rearrange(v, "batch key kv d -> (batch kv) key d")
        penalty = q.new_zeros(1, 1, n_queries, k.shape[-1])
        penalty = penalty if allowed is None else torch.where(allowed, penalty, float("-inf"))
        penalty = penalty if sight.bias is None else penalty + sight.bias
        penalty = penalty.expand(len(q) // kv_heads, self.cfg.n_heads, -1, -1)
        penalty = rearrange(penalty, "batch (kv group) query key -> (batch kv) (query group) key", kv=kv_heads)
        if cap is None:
            scores = torch.baddbmm(penalty, q, k, alpha=1 / self.cfg.attn_scale)
        else:
            scores = soft_cap(torch.bmm(q, k) / self.cfg.attn_scale, cap) + penalty
        if sinks is not None:
            sinks = rearrange(sinks, "batch query (kv group) -> (batch kv) (query group)", kv=kv_heads)
        z = self._softmax(scores, sinks) @ v
        group = self.cfg.n_heads // kv_heads
        return rearrange(z, "(batch kv) (query group) d -> batch query (kv group) d", kv=kv_heads, group=group)

    def attend_packed(
        self, q: Tensor, k: Tensor, v: Tensor, packed: Packed, groups: Sequence[Sight], sinks: Tensor | None
    ) -> Tensor:
        """z [1, row, head, d_head] of rows whose sequences go back to a base run.

        Scores and patterns of all rows are in one tensor [1, head, row, key] when they pass their hook points.
        """
        keys, values = packed.keys_values(self.layer, k[0], v[0])  # [sequence, pos, kv_head, d_head]
        parts = []
        if not self.explicit:
            for group, sight in zip(packed.groups, groups, strict=True):
                own = q[0, group.rows].unflatten(0, (-1, group.length))  # [sequence, query, head, d_head]
                k_own, v_own = keys[group.sequences], values[group.sequences]
                aside = None if sinks is None else sinks[0, group.rows].unflatten(0, (-1, group.length))
                attend = self.attend_by_products if group.length <= FEW_QUERIES else self.attend_unseen
                parts.append(attend(own, k_own, v_own, sight, aside).flatten(0, 1))
            return torch.cat(parts)[None]
        for group, sight in zip(packed.groups, groups, strict=True):
            own = q[0, group.rows].unflatten(0, (-1, group.length))
            scores = self.scores(own, keys[group.sequences], sight)
            parts.append(rearrange(scores, "sequence head query key -> head (sequence query) key"))
        pattern = self.hook_pattern(self.softmax(self.hook_attn_scores(torch.cat(parts, dim=1)[None]), sinks))[0]
        parts = []
        for group in packed.groups:
            own = pattern[:, group.rows].unflatten(1, (-1, group.length))  # [head, sequence, query, key]
            v_own = self.to_query_heads(values[group.sequences])
            z = einsum(own, v_own, "head sequence query key, sequence key head d -> sequence query head d")
            parts.append(z.flatten(0, 1))
        return torch.cat(parts)[None]

    def scores(self, q: Tensor, k: Tensor, sight: Sight) -> Tensor:
        """Scaled scores [batch, head, query, key] of q and k as `turn` gives them; -inf where a query may not look."""
        assert self.cfg.attn_scale is not None
        keys, cap = self.to_query_heads(k), self.cfg.attn_scores_soft_cap
        scores = einsum(q, keys, "batch query head d, batch key head d -> batch head query key") / self.cfg.attn_scale
        scores = scores if cap is None else soft_cap(scores, cap)
        scores = scores if sight.bias is None else scores + sight.bias
        allowed = _allowed(sight, q, k)
        return scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))

    def softmax(self, scores: Tensor, sinks: Tensor | None = None) -> Tensor:
        """Softmax over the keys, in float32 at least.

        Args:
            scores: [batch, head, query, key].
            sinks: scores of looking nowhere [batch, query, head]; None takes those of the weights, if there are any.
        """
        if sinks is None and self.sinks is not None:
            sinks = self.sinks.expand(1, scores.shape[2], -1)
        return self._softmax(scores, None if sinks is None else sinks.transpose(1, 2))

    def _softmax(self, scores: Tensor, sinks: Tensor | None) -> Tensor:
        """Softmax over the last axis of scores; `sinks` [...] without that axis has one more score for each row."""
        wide = wide_type(scores.dtype)
        if sinks is None:
            return scores.softmax(-1, dtype=wide).to(scores.dtype)
        every = torch.cat((scores, sinks.expand(scores.shape[:-1])[..., None].to(scores.dtype)), dim=-1)
        return every.softmax(-1, dtype=wide)[..., :-1].to(scores.dtype)

    def _sinks(self, q: Tensor) -> Tensor | None:
        """The score that each query of each head has for looking nowhere.  # [batch, pos, head]"""
        if self.sinks is None or self.hook_sinks is None:
            return None
        return self.hook_sinks(self.sinks.expand(q.shape[0], q.shape[1], -1).contiguous())

    def to_query_heads(self, x: Tensor) -> Tensor:
        """Keys or values [batch, pos, kv_head, d_head], repeated for the query heads that share them."""
        group = self.cfg.n_heads // self.cfg.n_kv_heads
        return x if group == 1 else repeat(x, "batch pos kv_head d -> batch pos (kv_head group) d", group=group)

    def head_results(self, z: Tensor) -> Tensor:
        """What each head's part of W_O makes of z, without b_O.  # [..., head, d_head] -> [..., head, d_model]"""
        return einsum(z, self.W_O, "... head d_head, head d_head d_model -> ... head d_model")

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


def _allowed(sight: Sight, q: Tensor, k: Tensor) -> Tensor | None:
    """Which keys [batch, key, ...] each query [batch, query, ...] may look at; None where it may look at all."""
    return causal_mask(q.shape[1], k.shape[1], q.device) if sight.causal else sight.allowed
