"""The recurrence h_t = exp(delta_t A) h_{t-1} + B_t u_t, y_t = C_t h_t and its gradient, fast in plain torch.

Nothing here is more than this recurrence of Mamba-1; `scan.py` says what it is for. A state lies as
[batch, d_state, channel], so that delta and u are read along their memory and one number of B serves a row of it.

1. On a CPU positions are taken one by one. Sequences are taken in groups small enough that their state stays in the
   cache, and the decays exp(delta A) of some positions at once, as many as stay in the cache too.
2. Elsewhere a step is too little work. A block of positions is taken at once, in a tree: neighbours are joined, the
   joined half is solved the same way, and the other half follows from it. Decays are only multiplied, never divided by,
   so that nothing overflows.
3. Where a gradient is needed, the forward run keeps its inputs and the state before every block of positions. The
   gradient goes through the blocks from the last to the first: it computes the states of one anew, then the slopes
   g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}, which are the same recurrence backwards.

Exponentials are powers of two, which torch computes twice as fast (docs/log.md); the caller scales A for it.

Sources: Gu and Dao 2023 ("Mamba", section 3.3, which computes states anew in the backward pass too); Blelloch 1990
("Prefix sums and their applications", section 1.4, the tree).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

STEPWISE = ("cpu",)  # where positions are taken one by one
# Numbers in the states of a group of sequences, and in the decays or states at once, there and elsewhere (docs/log.md).
GROUP, CACHED, BLOCK = 2**18, 2**19, 2**25
LN2 = math.log(2)


def recurrence(delta: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """y [batch, pos, channel] and the last state [batch, d_state, channel]; differentiable once.

    Args:
        delta: [batch, pos, channel]; u: the same, what enters the state.
        A: [d_state, channel], for powers of two.
        B: [batch, pos, d_state]; C: the same.
        first: the state before the first position [batch, d_state, channel].
    """
    if u.device.type in STEPWISE and u.shape[0] > (rows := max(1, GROUP // A.numel())):
        groups = zip(*(part.split(rows) for part in (delta, u, B, C, first)), strict=True)
        found = [recurrence(d, v, A, b, c, h) for d, v, b, c, h in groups]
        return torch.cat([y for y, _ in found]), torch.cat([last for _, last in found])
    parts = (delta, u, A, B, C, first)
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        return _Recurrence.apply(*parts)
    return _forward(*parts)


def recurrent_states(decay: Tensor, added: Tensor, first: Tensor) -> Tensor:
    """Every h_t = decay_t h_{t-1} + added_t.  # [batch, pos, ...]

    `added` is the caller's to give away: it is written over where no gradient is needed.
    """
    decays, more = decay.transpose(0, 1), added.transpose(0, 1)
    if not (torch.is_grad_enabled() and any(part.requires_grad for part in (decay, added, first))):
        return _chain_(decays, more, first).transpose(0, 1)
    states = [first]
    for one, plus in zip(decays, more, strict=True):
        states.append(torch.addcmul(plus, one, states[-1]))
    return torch.stack(states, 1)[:, 1:]


def _forward(
    delta: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor, first: Tensor, kept: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """y and the last state; the state before every block is added to `kept`."""
    y, state = torch.empty_like(u), first.clone(memory_format=torch.contiguous_format)
    if kept is None and u.device.type in STEPWISE:
        _steps_(delta, u, A, B, C, state, y)
        return y, state
    for block, room in _blocks(u, A, rooms=2):
        if kept is not None:
            kept.append(state.clone())
        _, states = _block(delta[:, block], u[:, block], A, B[:, block], state, room)
        y[:, block] = _rows(C[:, block].transpose(0, 1), states)
        state.copy_(states[-1])
    return y, state


def _steps_(delta: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, y: Tensor) -> None:
    """One position after another: moves `state` on and writes into `y`."""
    ahead = _positions(u, A)
    decays = u.new_empty(ahead, *state.shape)
    ready = decays.unbind()
    steps = delta.transpose(0, 1)[:, :, None]  # [pos, batch, 1, channel]
    us, ys = u[:, :, None].unbind(1), y[:, :, None].unbind(1)
    Bs, Cs = B[..., None].unbind(1), C[:, :, None].unbind(1)
    for t in range(u.shape[1]):
        if t % ahead == 0:
            now = steps[t : t + ahead]
            torch.mul(now, A, out=decays[: len(now)]).exp2_()
        state.mul_(ready[t % ahead]).addcmul_(us[t], Bs[t])
        torch.bmm(Cs[t], state, out=ys[t])


def _positions(u: Tensor, A: Tensor) -> int:
    """How many positions' decays or states are held at once."""
    limit = CACHED if u.device.type in STEPWISE else BLOCK
    return max(1, min(u.shape[1], limit // max(1, u.shape[0] * A.numel())))


def _blocks(u: Tensor, A: Tensor, *, rooms: int) -> list[tuple[slice, Tensor]]:
    """Positions whose states are held at once, with room for them that all blocks share.

    Room is [room, pos, batch, d_state, channel].
    """
    length = _positions(u, A)
    room = u.new_empty(rooms, length, u.shape[0], *A.shape)
    return [(slice(t, t + length), room[:, : u.shape[1] - t]) for t in range(0, u.shape[1], length)]


def _block(delta: Tensor, u: Tensor, A: Tensor, B: Tensor, first: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Decays and states of a block, in room for two.  # [pos, batch, d_state, channel]"""
    decay = torch.mul(delta.transpose(0, 1)[:, :, None], A, out=room[0]).exp2_()
    added = torch.mul(u.transpose(0, 1)[:, :, None], B.transpose(0, 1)[..., None], out=room[1])
    return decay, _chain_(decay, added, first)


def _rows(rows: Tensor, matrices: Tensor) -> Tensor:
    """Each row [pos, batch, a] times its matrix [pos, batch, a, b].  # [batch, pos, b]"""
    return (rows[:, :, None] @ matrices)[:, :, 0].transpose(0, 1)


def _chain_(decay: Tensor, states: Tensor, first: Tensor) -> Tensor:
    """Turn what each position adds into states, in place.  # [pos, ...]"""
    if len(states):
        states[0].addcmul_(decay[0], first)
        _link_(decay[1:], states)
    return states


def _link_(links: Tensor, values: Tensor) -> None:
    """values_t += links_{t-1} values_{t-1}, in the order of t."""
    if values.device.type in STEPWISE:
        each = values.unbind()
        for before, link, value in zip(each, links.unbind(), each[1:], strict=False):
            value.addcmul_(link, before)
    else:
        _tree_(links, values)


def _tree_(links: Tensor, values: Tensor) -> None:
    """The same in a number of passes that grows with the logarithm of the positions."""
    if len(values) > 1:
        values[1::2].addcmul_(links[::2], values[:-1:2])
        _tree_(links[1:-1:2] * links[2::2], values[1::2])
        values[2::2].addcmul_(links[1::2], values[1:-1:2])


def _link_back_(links: Tensor, values: Tensor) -> None:
    """values_t += links_t values_{t+1}, from the last t to the first."""
    if values.device.type in STEPWISE:
        each = values.unbind()[::-1]
        for after, link, value in zip(each, links.unbind()[::-1], each[1:], strict=False):
            value.addcmul_(link, after)
    else:
        turned = values.flip(0)
        _tree_(links.flip(0), turned)
        values.copy_(turned.flip(0))


class _Recurrence(torch.autograd.Function):
    """`_forward` with a gradient: step 3 above."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        delta, u, A, B, C, first = parts
        found = _forward(delta, u, A, B, C, first, kept)
        ctx.save_for_backward(delta, u, A, B, C, *kept)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        delta, u, A, B, C, *kept = ctx.saved_tensors
        dy = dy.contiguous()
        ddelta, du, dA, dB, dC = slopes = tuple(torch.zeros_like(part) for part in (delta, u, A, B, C))
        for (block, room), before in reversed([*zip(_blocks(u, A, rooms=3), kept, strict=True)]):
            decay, states = _block(delta[:, block], u[:, block], A, B[:, block], before, room)
            dys, us, deltas, Bs, Cs = (part[:, block].transpose(0, 1) for part in (dy, u, delta, B, C))
            slope = torch.mul(dys[:, :, None], Cs[..., None], out=room[2])  # of the states, and of their shape
            slope[-1] += dlast
            _link_back_(decay[1:], slope)
            dC[:, block] = _rows(dys, states.mT)
            dB[:, block] = _rows(us, slope.mT)
            du[:, block] = _rows(Bs, slope)
            slope *= decay
            dlast = slope[0].clone()
            slope[1:] *= states[:-1]
            slope[0] *= before  # now of the exponents, but for ln 2
            torch.mul(slope, A, out=states)
            ddelta[:, block] = LN2 * states.sum(2).transpose(0, 1)
            torch.mul(slope, deltas[:, :, None], out=states)
            dA += LN2 * states.sum((0, 1))
        return *slopes, dlast
