"""What is the gradient at a state? What would follow from changing it: what is read there, and every later state.

One tensor holds the states of all positions, and all it shows by itself is what each of them is read as. So:

1. Each state is computed once more from the value of the one before it, which counts as given.
2. That tensor is shown to hooks and caches. Behind it the states pass `linked` on their way to being read.
3. There the gradient g_t of what is read becomes G_t = g_t + exp(delta_{t+1} A) G_{t+1}, from the last position to the
   first: the same recurrence backwards, so that what reaches the tensor of 1 is all that follows from a state.

Source: Gu and Dao 2023 ("Mamba", eq. 2a); the rest is the chain rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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
