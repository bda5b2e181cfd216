"""What are the states of a recurrence when hooks change some of them?

1. The states are computed and shown to the hooks that change them.
2. At the first position where one of them did, its value counts, and the states behind it are computed anew from it.
3. The hooks are called again, with the states that now follow; positions up to that one are settled. So several edits
   mean what they would mean one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from interp.errors import HookError
from interp.hooks import HookPoint
from interp.packed import Piece, at_rows, joined


def as_hooks_leave_them(
    point: HookPoint, run: Callable[[Tensor | None, int | None, Tensor | None], Tensor], pieces: Sequence[Piece]
) -> Tensor:
    """The states of all positions [batch, pos, ...], after the hooks of `point`.

    Args:
        point: `hook_state` of a mixer.
        run: the states of the rows at a place of a packed batch, behind a position (None: from the first on), from the
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
    """The first position behind `done` at which any of [batch, pos] is True."""
    later = differs[:, done + 1 :].any(0).nonzero()
    return done + 1 + int(later[0]) if len(later) else None
