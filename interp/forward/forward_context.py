"""What every attention layer of one forward shares: positions, who may look at whom, and the angles of rotation.

1. Positions count from the start of each real prompt, on whichever side it is padded.
2. A mask says which keys a query may look at: not later ones in a causal model, and no padding.
3. Rotary models turn queries and keys by angles, ALiBi lowers scores, both by position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.config import ModelConfig
from interp.forward.packed_rows import Packed
from interp.precision import wide_type


@dataclass(frozen=True)
class Context:
    """What every attention layer of one forward shares.

    `positions` [batch or 1, pos] counts from the start of each real prompt. `allowed` [batch or 1, 1, query, key] is
    None where no mask is needed beyond `causal`. `bias` is ALiBi's, `cos` and `sin`
    are the rotary embedding's, shaped to be multiplied with pairs of channels (`Attention.rotate`). `packed` says which
    rows of which sequences the batch (of one) holds, and `groups` what each group of sequences of equal length shares.
    `real` [batch, pos] is True at real tokens, None where there is no padding.
    """

    positions: Tensor
    allowed: Tensor | None
    causal: bool
    bias: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    packed: Packed | None = None
    groups: tuple[Context, ...] = ()
    real: Tensor | None = None


def make_context(
    cfg: ModelConfig,
    n_pos: int,
    *,
    n_past: int = 0,
    attention_mask: Tensor | None = None,
    device: torch.device,
    dtype: torch.dtype,
) -> Context:
    """Positions, mask and rotary angles for `n_pos` tokens that follow `n_past` earlier ones.

    `attention_mask` [batch, n_past + n_pos] is True at real tokens. Padding positions look at themselves alone, so that
    no row of the pattern is empty; real positions never look at padding.
    """
    n_keys = n_past + n_pos
    if attention_mask is not None and bool(attention_mask.all()):
        attention_mask = None
    if attention_mask is None:
        key_positions = torch.arange(n_keys, device=device)[None]
        # The kernel's own causal mask serves a whole prompt; a single new token sees everything.
        plain = not cfg.causal or n_past == 0 or n_pos == 1
        allowed = None if plain else causal_mask(n_pos, n_keys, device)[None, None]
        causal = cfg.causal and n_past == 0
    else:
        key_positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        allowed = attention_mask[:, None, None, :].expand(-1, 1, n_pos, n_keys)
        if cfg.causal:
            allowed = allowed & causal_mask(n_pos, n_keys, device)
        allowed = allowed | torch.eye(n_pos, n_keys, dtype=torch.bool, device=device).roll(n_past, 1)
        causal = False
    positions = key_positions[:, n_past:]
    bias = _alibi(cfg, positions, key_positions, dtype) if cfg.positional_embedding_type == "alibi" else None
    cos, sin = _rotary_angles(cfg, positions, dtype) if cfg.positional_embedding_type == "rotary" else (None, None)
    real = None if attention_mask is None else attention_mask[:, n_past:]
    return Context(positions, allowed, causal, bias, cos, sin, real=real)


def packed_context(cfg: ModelConfig, packed: Packed, dtype: torch.dtype) -> Context:
    """Positions, masks and rotary angles for the rows of a packed batch [1, row]."""
    positions = packed.position[None]
    allowed = packed.allowed(cfg.causal)
    cos, sin = _rotary_angles(cfg, positions, dtype) if cfg.positional_embedding_type == "rotary" else (None, None)
    keys = torch.arange(allowed.shape[1], device=positions.device)[None]
    groups = []
    for group in packed.groups:
        own = positions[0, group.rows].unflatten(0, (-1, group.length))  # [sequence, query]
        bias = _alibi(cfg, own, keys, dtype) if cfg.positional_embedding_type == "alibi" else None
        seen = allowed[group.rows].unflatten(0, (-1, group.length))[:, None]  # [sequence, 1, query, key]
        groups.append(Context(own, seen, False, bias, None, None))
    return Context(positions, None, False, None, cos, sin, packed, tuple(groups))


def causal_mask(n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """True where a key is not later than the query; the last query stands on the last key.  # [query, key]"""
    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril(n_keys - n_queries)


def _alibi(cfg: ModelConfig, positions: Tensor, key_positions: Tensor, dtype: torch.dtype) -> Tensor:
    """Minus slope times distance (Press et al. 2021, section 3).  # [batch, head, query, key]"""
    power = 2 ** math.floor(math.log2(cfg.n_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(cfg.n_heads - power)]
    distance = (positions[:, None, :, None] - key_positions[:, None, None, :]).abs()
    return (-torch.tensor(slopes, device=positions.device)[:, None, None] * distance).to(dtype)


def _rotary_angles(cfg: ModelConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position times frequency, theta_i = base^(-2i/dim) (Su et al. 2021, section 3.2.2)."""
    assert cfg.rotary_dim is not None
    wide = wide_type(dtype)
    steps = torch.arange(0, cfg.rotary_dim, 2, device=positions.device).to(wide)
    frequency = 1.0 / cfg.rotary_base ** (steps / cfg.rotary_dim)
    scaling = cfg.rope_scaling
    if scaling is not None and scaling.kind == "linear":
        frequency = frequency / scaling.factor
    elif scaling is not None:
        # Between the two wavelengths the divided and the plain frequency are blended.
        turns = scaling.original_n_ctx * frequency / (2 * math.pi)
        plain = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        plain = plain.clamp(0, 1)
        frequency = plain * frequency + (1 - plain) * frequency / scaling.factor
    angle = (positions[..., None].to(wide) * frequency)[:, :, None]  # [batch, pos, 1, rotary_dim / 2]
    pair = pair_axis(cfg)
    sin = torch.stack((-angle.sin(), angle.sin()), dim=pair)
    return angle.cos().unsqueeze(pair).to(dtype), sin.to(dtype)


def pair_axis(cfg: ModelConfig) -> int:
    """Which of two axes tells the members of a rotated pair apart, once the channels are folded into two axes.

    Channels i and i + rotary_dim / 2 form a pair (GPT-NeoX, Llama), or 2i and 2i + 1 (Su et al. 2021, GPT-J).
    """
    return -1 if cfg.rotary_adjacent_pairs else -2
