"""What a state-space layer makes of its inputs: its outputs, its states, and the attention that it equals.

A channel of Mamba-1 ("selective") carries a state h of d_state numbers from position to position, and so does every
channel of a head of Mamba-2 ("dual"), where one number A decays the states of the whole head:

1. Recurrence: h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t, from a state that is given or zero.
2. Read-out: y_t = C_t h_t. The term D x_t is the caller's.
3. Unrolled, y = pattern x: query q reads key k with the weight C_q exp(A (delta_{k+1} + ... + delta_q)) B_k delta_k,
   a number for every channel in Mamba-1, for every head in Mamba-2.
4. Mamba-1 has too many decays for matrix products and takes the recurrence as it stands (`scan_kernel.py`). Mamba-2 is
   computed in chunks: inside one, y = pattern x as in 3, two matrix products; a state is carried between chunks, and
   what it was before a chunk is read by all of the chunk's positions at once. C B^T is computed once a group.

A position with delta = 0 leaves the state as it was, which is what padding needs. 16-bit inputs are computed in
float32, and y is returned in their type; states stay in float32.

Sources: Gu and Dao 2023 ("Mamba", section 3, algorithm 2; B discretised as in their code, after Euler); Dao and Gu 2024
("Transformers are SSMs", section 6 and listing 1: chunks); Ali et al. 2024 ("The hidden attention of Mamba models",
section 3: the pattern).
"""

from __future__ import annotations

import math

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor

from interp.errors import PromptError
from interp.precision import wide_type
from interp.state_space.scan_kernel import recurrence, recurrent_states

LOG2_E = 1 / math.log(2)
CHUNK = 64  # positions of Mamba-2 at once (docs/log.md)


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What the channels of Mamba-1 read out, without the D term, and the state after the last position.

    Args:
        x: what enters the state [batch, pos, channel].
        delta: the step of every channel, the same shape; not negative.
        A: [channel, d_state], negative.
        B: how x enters the state [batch, pos, d_state].
        C: how y is read from it, the same shape.
        state: before the first position [batch, channel, d_state]; None is zero.

    Returns:
        y [batch, pos, channel] and the last state [batch, channel, d_state]; both have gradients, of first order.

    Raises:
        PromptError: the state has another shape.
    """
    first = _first(state, (x.shape[0], *A.shape), x)
    wide, delta, A, B, C = (part.to(first.dtype) for part in (x, delta, A, B, C))
    exponents = (A * LOG2_E).mT.contiguous()
    delta = delta.contiguous()
    y, last = recurrence(delta, (delta * wide).contiguous(), exponents, B, C, first.mT)
    return y.to(x.dtype), last.mT


def selective_states(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, *, state: Tensor | None = None) -> Tensor:
    """Every state of Mamba-1.  # [batch, pos, channel, d_state]

    Arguments and errors are those of `selective_scan`.
    """
    first = _first(state, (x.shape[0], *A.shape), x)
    x, delta, A, B = (part.to(first.dtype) for part in (x, delta, A, B))
    decay = torch.exp2(delta[:, :, None] * (A * LOG2_E).mT.contiguous())  # [batch, pos, d_state, channel]
    return recurrent_states(decay, (delta * x)[:, :, None] * B[..., None], first.mT).mT


def selective_read(states: Tensor, C: Tensor) -> Tensor:
    """y = C h of states [batch, pos, channel, d_state] and C [batch, pos, d_state].  # [batch, pos, channel]"""
    return (C.to(states.dtype)[..., None, :] @ states.mT)[..., 0, :]


def selective_pattern(delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The attention matrix of every channel of Mamba-1: y = pattern x, without D.  # [batch, channel, query, key]

    Arguments are those of `selective_scan`; a query reads no later key.
    """
    delta, A, B, C = (part.to(wide_type(delta.dtype)) for part in (delta, A, B, C))
    steps = delta.mT  # [batch, channel, pos]
    between = _between(steps)
    pattern = torch.zeros_like(between)
    for decay, write, read in zip((A * LOG2_E).unbind(1), B.unbind(2), C.unbind(2), strict=True):
        alike = (read[:, :, None] * write[:, None]).tril()  # [batch, query, key]
        pattern.addcmul_(torch.exp2(between * decay[:, None, None]), alike[:, None])
    return pattern * steps[:, :, None]


def selective_rows(delta: Tensor, A: Tensor, B: Tensor, C: Tensor, query: Tensor) -> Tensor:
    """Single rows of `selective_pattern`, each of a sequence of its own.  # [row, channel, key]

    Args:
        delta: of the row's sequence [row, key, channel].
        A: [channel, d_state].
        B: of the row's sequence [row, key, d_state].
        C: at the row's own position [row, d_state].
        query: that position [row].
    """
    delta, A, B, C = (part.to(wide_type(delta.dtype)) for part in (delta, A, B, C))
    steps, seen = _until(delta, query)
    between, alike = _suffixes(steps), B * C[:, None]
    pattern = torch.zeros_like(between)
    for decay, weight in zip((A * LOG2_E).unbind(1), (alike * seen[..., None]).unbind(2), strict=True):
        pattern.addcmul_(torch.exp2(between * decay), weight[..., None])
    return (pattern * delta).mT


def dual_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What the heads of Mamba-2 read out, without the D term, and the state after the last position.

    Args:
        x: what enters the state [batch, pos, ssm_head, d_ssm_head].
        delta: the step of every head [batch, pos, ssm_head]; not negative.
        A: [ssm_head], negative.
        B: how x enters the state [batch, pos, ssm_group, d_state]; the heads of a group are neighbours.
        C: how y is read from it, the same shape.
        state: before the first position [batch, ssm_head, d_ssm_head, d_state]; None is zero.

    Returns:
        y [batch, pos, ssm_head, d_ssm_head] and the last state [batch, ssm_head, d_ssm_head, d_state]; both have
        gradients.

    Raises:
        PromptError: the state has another shape.
    """
    first = _first(state, _dual_shape(x, B), x)
    if not x.shape[1]:
        return torch.zeros_like(x), first
    wide, delta, A, B, C = (part.to(first.dtype) for part in (x, delta, A, B, C))
    before = None
    if state is not None:
        before = rearrange(first, "batch (group head) d_head n -> batch group n (head d_head)", group=B.shape[2])
    ys = []
    parts = (wide * delta[..., None], delta * A, B, C)
    for u, decay, write, read in zip(*(part.split(CHUNK, 1) for part in parts), strict=True):
        y, before = _chunk(u, decay, write, read, before)
        ys.append(y)
    assert before is not None
    last = rearrange(before, "batch group n (head d_head) -> batch (group head) d_head n", d_head=x.shape[3])
    return torch.cat(ys, 1).to(x.dtype), last


def dual_states(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, *, state: Tensor | None = None) -> Tensor:
    """Every state of Mamba-2.  # [batch, pos, ssm_head, d_ssm_head, d_state]

    Arguments and errors are those of `dual_scan`.
    """
    first = _first(state, _dual_shape(x, B), x)
    x, delta, A, B = (part.to(first.dtype) for part in (x, delta, A, B))
    added = (x * delta[..., None])[..., None] * _per_head(B, x.shape[2])[:, :, :, None]
    return recurrent_states(torch.exp(delta * A)[..., None, None], added, first)


def dual_read(states: Tensor, C: Tensor) -> Tensor:
    """y = C h of states [batch, pos, ssm_head, d_ssm_head, d_state] and C [batch, pos, ssm_group, d_state].

    # [batch, pos, ssm_head, d_ssm_head]
    """
    return (_per_head(C.to(states.dtype), states.shape[2])[..., None, :] @ states.mT)[..., 0, :]


def dual_pattern(delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The attention matrix of every head of Mamba-2: y = pattern x, without D.  # [batch, ssm_head, query, key]

    Arguments are those of `dual_scan`; a query reads no later key.
    """
    delta, A, B, C = (part.to(wide_type(delta.dtype)) for part in (delta, A, B, C))
    return _weights(_between((delta * A).mT), B, C) * delta.mT[:, :, None]


def dual_rows(delta: Tensor, A: Tensor, B: Tensor, C: Tensor, query: Tensor) -> Tensor:
    """Single rows of `dual_pattern`, each of a sequence of its own.  # [row, ssm_head, key]

    Args:
        delta: of the row's sequence [row, key, ssm_head].
        A: [ssm_head].
        B: of the row's sequence [row, key, ssm_group, d_state].
        C: at the row's own position [row, ssm_group, d_state].
        query: that position [row].
    """
    delta, A, B, C = (part.to(wide_type(delta.dtype)) for part in (delta, A, B, C))
    steps, seen = _until(delta, query)
    alike = einsum(B, C, "row key group d_state, row group d_state -> row key group") * seen[..., None]
    alike = repeat(alike, "row key group -> row key (group head)", head=A.shape[0] // B.shape[2])
    return (torch.exp(_suffixes(steps) * A) * alike * delta).mT


def _until(steps: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """[row, key, ...] up to each row's own position, and which keys these are [row, key]."""
    seen = torch.arange(steps.shape[1], device=steps.device) <= query[:, None]
    return steps * seen[..., None], seen.to(steps.dtype)


def _suffixes(steps: Tensor) -> Tensor:
    """Sums of [row, key, ...] after each key."""
    later = steps.flip(1).cumsum(1).flip(1)[:, 1:]
    return torch.cat((later, torch.zeros_like(steps[:, :1])), dim=1)


def _chunk(u: Tensor, decay: Tensor, B: Tensor, C: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """y [batch, pos, head, d_head] of a chunk, and the state after it [batch, group, d_state, (head d_head)].

    Args:
        u: delta x [batch, pos, head, d_head].
        decay: delta A [batch, pos, head].
        B: [batch, pos, group, d_state]; C: the same.
        before: the state before the chunk; None is zero.
    """
    groups, d_head = B.shape[2], u.shape[3]
    between = _between(decay.mT)  # [batch, head, query, key]
    y = (_weights(between, B, C) @ u.transpose(1, 2)).transpose(1, 2)
    until_end = between[:, :, -1].exp().mT  # [batch, pos, head]
    kept = rearrange(u * until_end[..., None], "batch pos (group head) d -> batch group pos (head d)", group=groups)
    added = B.permute(0, 2, 3, 1) @ kept
    if before is None:
        return y, added
    read = rearrange(C.transpose(1, 2) @ before, "batch group pos (head d) -> batch pos (group head) d", d=d_head)
    y = torch.addcmul(y, read, decay.cumsum(1).exp()[..., None])
    through = repeat(decay.sum(1).exp(), "batch (group head) -> batch group 1 (head d)", group=groups, d=d_head)
    return y, torch.addcmul(added, before, through)


def _weights(between: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """C_q exp(between) B_k, 0 where the key is later.  # [batch, head, query, key]"""
    alike = einsum(C, B, "batch query group d_state, batch key group d_state -> batch group query key").tril()
    heads = between.unflatten(1, (B.shape[2], -1))  # [batch, group, head, query, key]
    return (heads.exp() * alike[:, :, None]).flatten(1, 2)


def _between(steps: Tensor) -> Tensor:
    """Sums of [..., pos] after each key up to each query, 0 where the key is later.  # [..., query, key]

    Summed anew for every key: a difference of two long sums would lose the digits of a short one.
    """
    return steps[..., None].expand(*steps.shape, steps.shape[-1]).tril(-1).cumsum(-2)


def _per_head(x: Tensor, heads: int) -> Tensor:
    """[batch, pos, ssm_group, d_state] -> [batch, pos, ssm_head, d_state]"""
    return repeat(x, "batch pos group d_state -> batch pos (group head) d_state", head=heads // x.shape[2])


def _dual_shape(x: Tensor, B: Tensor) -> tuple[int, ...]:
    """Of a state of Mamba-2."""
    return (x.shape[0], *x.shape[2:], B.shape[3])


def _first(state: Tensor | None, shape: tuple[int, ...], x: Tensor) -> Tensor:
    """The state before the first position, in the precision of states."""
    if state is None:
        return x.new_zeros(shape, dtype=wide_type(x.dtype))
    if tuple(state.shape) != shape:
        raise PromptError(
            f"a state of the shape {list(state.shape)} was given, but this layer and batch need {list(shape)}"
        )
    return state.to(wide_type(x.dtype))
