"""Rotary embeddings: by which angles queries and keys are turned, and how the frequencies are stretched.

Pair i of `dim` rotated channels turns by position times theta_i = base^(-2i / dim) (Su et al. 2021, section 3.2.2). The
scalings of longer contexts change theta; `RopeScaling` has their sources. Two of them depend on how long the prompt is,
so that every prompt of a batch has frequencies of its own: padded to a longer one, it keeps those that it has alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from interp.config import AttentionKind, ModelConfig, RopeScaling
from interp.precision import wide_type


def rotary_angles(
    cfg: ModelConfig, kind: AttentionKind, positions: Tensor, lengths: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine of every position's angles, shaped to be multiplied with pairs of channels.

    Args:
        cfg: the model's configuration.
        kind: of the layers that rotate so.
        positions: [batch, pos].
        lengths: of the whole prompt that each position belongs to, [batch, 1] or [batch, pos].
        dtype: of the result; angles are computed in float32 at least.

    Returns:
        Two tensors [batch, pos, 1, ...] whose last two axes are as `pair_axis` says.
    """
    assert cfg.rotary_dim is not None and kind.rotary_base is not None
    wide, scaling = wide_type(dtype), kind.rope_scaling
    steps = torch.arange(0, cfg.rotary_dim, 2, device=positions.device).to(wide) / cfg.rotary_dim
    frequency = _frequencies(kind.rotary_base, scaling, steps, lengths[..., None])  # [..., rotary_dim / 2]
    angle = (positions[..., None].to(wide) * frequency)[:, :, None]  # [batch, pos, 1, rotary_dim / 2]
    cos, sin = angle.cos(), angle.sin()
    factor = None if scaling is None else scaling.attention_factor
    if factor is not None and factor != 1.0:
        cos, sin = cos * factor, sin * factor
    pair = pair_axis(cfg)
    return cos.unsqueeze(pair).to(dtype), torch.stack((-sin, sin), dim=pair).to(dtype)


def pair_axis(cfg: ModelConfig) -> int:
    """Which of two axes tells the members of a rotated pair apart, once the channels are folded into two axes.

    Channels i and i + rotary_dim / 2 form a pair (GPT-NeoX, Llama), or 2i and 2i + 1 (Su et al. 2021, GPT-J).
    """
    return -1 if cfg.rotary_adjacent_pairs else -2


def _frequencies(base: float, scaling: RopeScaling | None, steps: Tensor, lengths: Tensor) -> Tensor:
    """Frequencies at `steps`, which are 2i / dim [pair]; `lengths` is [batch, pos or 1, 1].

    Returns:
        [pair], or [batch, pos or 1, pair] where they depend on the prompt's length.
    """
    plain = 1.0 / base**steps
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "dynamic":
        return _dynamic(base, scaling, steps, lengths)
    if scaling.kind == "llama3":
        # Between the two wavelengths the divided and the plain frequency are blended.
        turns = scaling.original_n_ctx * plain / (2 * math.pi)
        kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        return _blended(plain, scaling.factor, kept.clamp(0, 1))
    if scaling.kind == "yarn":
        return _blended(plain, scaling.factor, _yarn_share(base, scaling, len(steps)).to(plain))
    short, long = (plain.new_tensor(factors) for factors in (scaling.short_factor, scaling.long_factor))
    return 1.0 / (torch.where(lengths > scaling.original_n_ctx, long, short) * base**steps)


def _blended(plain: Tensor, factor: float, kept: Tensor) -> Tensor:
    return kept * plain + (1 - kept) * plain / factor


def _dynamic(base: float, scaling: RopeScaling, steps: Tensor, lengths: Tensor) -> Tensor:
    """The base grows with the length beyond the trained context, so that the lowest frequency is divided by as much."""
    if len(steps) < 2:  # one frequency, which is 1 whatever the base
        return 1.0 / base**steps
    dim = 2 * len(steps)
    beyond = lengths.clamp(min=scaling.original_n_ctx).to(steps) / scaling.original_n_ctx
    stretched = base * (scaling.factor * beyond - (scaling.factor - 1)) ** (dim / (dim - 2))
    return 1.0 / stretched**steps


def _yarn_share(base: float, scaling: RopeScaling, n_pairs: int) -> Tensor:
    """How much of its plain frequency each pair keeps [pair]: all at `beta_fast` turns in the trained context, nothing
    at `beta_slow`.
    """

    def pair_with(turns: float) -> float:
        return 2 * n_pairs * math.log(scaling.original_n_ctx / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * n_pairs - 1)
    if first == last:
        last += 0.001  # one pair is the boundary
    return 1 - ((torch.arange(n_pairs, dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
