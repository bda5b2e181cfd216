"""The states of a recurrence, of which hooks may change some.

1. The states are computed and shown to the hooks that change them.
2. At the first position where one of them did, its value counts, and the states after it are computed anew from it.
3. The hooks are called again, with the states that now follow; positions up to that one are settled. So several edits
   mean what they would mean one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from interp.errors import HookError
from interp.forward.packed_rows import Piece, at_rows, joined
from interp.hooked.hooks import HookPoint


def as_hooks_leave_them(
    point: HookPoint, run: Callable[[Tensor | None, int | None, Tensor | None], Tensor], pieces: Sequence[Piece]
) -> Tensor:
    """The states of all positions [batch, pos, ...], after the hooks of `point`.

    Args:
        point: `hook_state` of a mixer.
        run: the states of the rows at a place of a packed batch, after a position (None: from the first on), from the
            state before them (None: zero).
        pieces: where the rows lie that follow one another, and the state before them.

    Raises:
        HookError: a hook that changes states where another asks for their gradient.
    """
    if point.changes and point.watches_gradient:
        raise HookError(
            f"a hook changes {point.name!r} where a backward hook asks for its gradient: "
            "take the gradient of what the hook returns"
        )
    parts = [run(place, None, state) for place, state in pieces]
    states = joined(parts, pieces)
    done = -1
    while point.changes:
        new = point.change(states)
        differs = (new != states).flatten(2).any(-1)  # [batch, pos]
        firsts = [_first_change(at_rows(differs, place), done) for place, _ in pieces]
        if all(first is None for first in firsts):
            break
        done = min(first for first in firsts if first is not None)
        for which, (place, _) in enumerate(pieces):
            if done >= parts[which].shape[1]:
                continue
            changed = at_rows(new, place)[:, done]
            later = run(place, done, changed)
            parts[which] = torch.cat((parts[which][:, :done], changed[:, None], later), dim=1)
        states = joined(parts, pieces)
    point.observe(states)
    return states


def _first_change(differs: Tensor, done: int) -> int | None:
    """The first position after `done` at which any of [batch, pos] is True."""
    later = differs[:, done + 1 :].any(0).nonzero()
    return done + 1 + int(later[0]) if len(later) else None


# What is the gradient at a state? What would follow from changing it: what is read there, and every later state.


def states_one_by_one(
    states: Callable[..., Tensor], x: Tensor, delta: Tensor, A: Tensor, B: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """States [batch, pos, ...] that each follow from the value of the one before, and their decays of the same shape.

    Args:
        states: `selective_states` or `dual_states`, whose arguments the others are.
    """
    # Without a gradient by hand: an interrupt at the end of a `no_grad` block would leave gradients off for good.
    found = states(*(part.detach() for part in (x, delta, A, B)), state=None if state is None else state.detach())
    first = torch.zeros_like(found[:, :1]) if state is None else state[:, None].to(found.dtype)
    before = torch.cat((first, found[:, :-1]), dim=1).flatten(0, 1)
    x, delta, B = (part.flatten(0, 1)[:, None] for part in (x, delta, B))  # [batch pos, 1, ...]
    own = states(x, delta, A, B, state=before).view_as(found)
    still = (part.detach() for part in (torch.zeros_like(x), delta, A, B))
    decay = states(*still, state=torch.ones_like(before)).view_as(found)
    return own, decay


def linked(states: Tensor, decay: Tensor) -> Tensor:
    """The same states, whose gradient also reaches those that each follows from; differentiable once."""
    found: Tensor = _Linked.apply(states, decay)
    return found


class _Linked(torch.autograd.Function):
    """Step 3 above."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, decay: Tensor) -> Tensor:
        ctx.save_for_backward(decay)
        return states.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (decay,) = ctx.saved_tensors
        slope = slope.clone()
        for t in range(slope.shape[1] - 1, 0, -1):
            slope[:, t - 1].addcmul_(decay[:, t], slope[:, t])
        return slope, None
