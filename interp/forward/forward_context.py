"""What the attention layers of one forward share: positions, who may look at whom, and the angles of rotation.

1. Positions count from the start of each real prompt, on whichever side it is padded.
2. A mask says which keys a query may look at: not later ones in a causal model, none beyond the window of a local
   layer (on either side, where attention looks both ways), and no padding.
3. Rotary models turn queries and keys by angles; ALiBi lowers scores, and relative biases change them, by distance.

Layers of one kind (`ModelConfig.attention_kind`) share all of it; most models have one kind, and others two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interp.config import AttentionKind, ModelConfig
from interp.forward.packed_rows import Packed
from interp.forward.relative import relative_bias
from interp.forward.rotary import rotary_angles


@dataclass(frozen=True)
class Sight:
    """Who may look at whom in the attention layers of one kind, and by which angles they turn.

    `allowed` [batch or 1, 1, query, key] is None where no mask is needed beyond `causal`. `bias` is ALiBi's or that of
    relative positions, `cos` and `sin` are the rotary embedding's, shaped to be multiplied with pairs of channels
    (`Attention.rotate`). `groups` are those of the sequences of equal length in a packed batch.
    """

    allowed: Tensor | None
    causal: bool
    bias: Tensor | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None
    groups: tuple[Sight, ...] = ()


@dataclass(frozen=True)
class Context:
    """What the layers of one forward share.

    `positions` [batch or 1, pos] counts from the start of each real prompt. `sights` is what attention layers of each
    kind share. `packed` says which rows of which sequences the batch (of one) holds. `real` [batch, pos] is True at
    real tokens, None where there is no padding. `embedded` [batch, pos, d_model] is the token embedding, for
    layers that read it beside the residual stream.
    """

    positions: Tensor
    sights: Mapping[AttentionKind, Sight]
    packed: Packed | None = None
    real: Tensor | None = None
    embedded: Tensor | None = None


def make_context(
    cfg: ModelConfig,
    n_pos: int,
    *,
    n_past: int = 0,
    attention_mask: Tensor | None = None,
    relative: Tensor | None = None,
    device: torch.device,
    dtype: torch.dtype,
) -> Context:
    """Positions, masks and rotary angles for `n_pos` tokens that follow `n_past` earlier ones.

    `attention_mask` [batch, n_past + n_pos] is True at real tokens. Padding positions look at themselves alone, so that
    no row of the pattern is empty; real positions never look at padding. `relative` [bucket, head] is the table of a
    model with relative positions.
    """
    n_keys = n_past + n_pos
    if attention_mask is not None and bool(attention_mask.all()):
        attention_mask = None
    if attention_mask is None:
        key_positions = torch.arange(n_keys, device=device)[None]
        lengths = key_positions.new_tensor([[n_keys]])
        # The kernel's own causal mask serves a whole prompt; a single new token sees everything.
        plain = not cfg.causal or n_past == 0 or n_pos == 1
        allowed = None if plain else causal_mask(n_pos, n_keys, device)[None, None]
        causal = cfg.causal and n_past == 0
    else:
        key_positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        lengths = attention_mask.long().sum(1, keepdim=True)
        allowed = attention_mask[:, None, None, :].expand(-1, 1, n_pos, n_keys)
        if cfg.causal:
            allowed = allowed & causal_mask(n_pos, n_keys, device)
        allowed = allowed | torch.eye(n_pos, n_keys, dtype=torch.bool, device=device).roll(n_past, 1)
        causal = False
    positions = key_positions[:, n_past:]
    sights = {}
    for kind in cfg.attention_kinds:
        bias = None if relative is None else relative_bias(cfg, relative, positions, key_positions)
        if cfg.positional_embedding_type == "alibi":
            bias = _alibi(cfg, positions, key_positions, dtype)
        sight = Sight(allowed, causal, bias, *_turns(cfg, kind, positions, lengths, dtype))
        if kind.window is not None and kind.window < n_keys:
            near = ~causal_mask(n_pos, n_keys, device, before=kind.window)
            near = near & causal_mask(n_pos, n_keys, device, before=0 if cfg.causal else 1 - kind.window)
            sight = replace(sight, allowed=near[None, None] if allowed is None else allowed & near, causal=False)
        sights[kind] = sight
    return Context(positions, sights, real=None if attention_mask is None else attention_mask[:, n_past:])


def packed_context(cfg: ModelConfig, packed: Packed, dtype: torch.dtype) -> Context:
    """Positions, masks and rotary angles for the rows of a packed batch [1, row]."""
    positions = packed.position[None]
    lengths = packed.mask.sum(1)[packed.row_prompt][None]  # [1, row]
    keys = torch.arange(packed.mask.shape[1], device=positions.device)[None]
    sights = {}
    for kind in cfg.attention_kinds:
        allowed = packed.allowed(cfg.causal, kind.window)
        groups = []
        for group in packed.groups:
            own = positions[0, group.rows].unflatten(0, (-1, group.length))  # [sequence, query]
            bias = _alibi(cfg, own, keys, dtype) if cfg.positional_embedding_type == "alibi" else None
            seen = allowed[group.rows].unflatten(0, (-1, group.length))[:, None]  # [sequence, 1, query, key]
            groups.append(Sight(seen, False, bias))
        sights[kind] = Sight(None, False, None, *_turns(cfg, kind, positions, lengths, dtype), tuple(groups))
    return Context(positions, sights, packed)


def causal_mask(n_queries: int, n_keys: int, device: torch.device, before: int = 0) -> Tensor:
    """True where a key is at least `before` positions before the query; the last query stands on the last key.

    [query, key]
    """
    mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return mask.tril(n_keys - n_queries - before)


def _turns(
    cfg: ModelConfig, kind: AttentionKind, positions: Tensor, lengths: Tensor, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Cosine and sine of the rotary embedding; None where layers of this kind do not rotate."""
    return (None, None) if kind.rotary_base is None else rotary_angles(cfg, kind, positions, lengths, dtype)


def _alibi(cfg: ModelConfig, positions: Tensor, key_positions: Tensor, dtype: torch.dtype) -> Tensor:
    """Minus slope times distance (Press et al. 2021, section 3).  # [batch, head, query, key]"""
    power = 2 ** math.floor(math.log2(cfg.n_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(cfg.n_heads - power)]
    if cfg.alibi_bfloat16:
        # Slope times position is rounded, and so the bias does not depend on the distance alone.
        assert cfg.attn_scale is not None
        slope = torch.tensor(slopes, device=positions.device, dtype=torch.bfloat16)[:, None, None]
        return ((slope * key_positions[:, None, None, :]).to(dtype) / cfg.attn_scale).expand(
            -1, -1, positions.shape[1], -1
        )
    distance = (positions[:, None, :, None] - key_positions[:, None, None, :]).abs()
    return (-torch.tensor(slopes, device=positions.device)[:, None, None] * distance).to(dtype)
