"""The recurrences of both Mambas as loops written straight from their equations, beside the functions that scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.state_space import scan


@dataclass(frozen=True)
class Family:
    """The functions of one Mamba and a loop over its equations."""

    scan: Callable[..., tuple[Tensor, Tensor]]
    states: Callable[..., Tensor]
    read: Callable[..., Tensor]
    pattern: Callable[..., Tensor]
    rows: Callable[..., Tensor]
    loop: Callable[..., tuple[Tensor, Tensor]]
    draw: Callable[..., dict[str, Tensor]]
    mix: str


def selective_loop(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, state: Tensor
) -> tuple[Tensor, Tensor]:
    """y and every state."""
    ys, states = [x[:, :0]], [state[:, None][:, :0]]
    for t in range(x.shape[1]):
        step = delta[:, t, :, None]
        state = torch.exp(step * A) * state + step * B[:, t, None] * x[:, t, :, None]
        ys.append((C[:, t, None] * state).sum(-1)[:, None])
        states.append(state[:, None])
    return torch.cat(ys, 1), torch.cat(states, 1)


def dual_loop(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, state: Tensor) -> tuple[Tensor, Tensor]:
    """y and every state; a head reads the group that it lies in."""
    heads = x.shape[2]
    y, states = torch.zeros_like(x), state.new_zeros(x.shape[0], 0, *state.shape[1:])
    for t in range(x.shape[1]):
        now = []
        for head in range(heads):
            group, step = head * B.shape[2] // heads, delta[:, t, head, None, None]
            entering = step * x[:, t, head, :, None] * B[:, t, group, None]
            now.append(torch.exp(step * A[head]) * state[:, head] + entering)
        state = torch.stack(now, 1)
        read = [state[:, head] @ C[:, t, head * B.shape[2] // heads, :, None] for head in range(heads)]
        y = torch.cat([y[:, :t], torch.stack(read, 1)[:, None, ..., 0], y[:, t + 1 :]], 1)
        states = torch.cat([states, state[:, None]], 1)
    return y, states


def selective_inputs(
    batch: int = 2, pos: int = 7, width: int = 3, d_state: int = 4, seed: int = 0
) -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(seed)
    shapes = {"x": (batch, width, pos), "delta": (batch, pos, width), "A": (width, d_state)}
    shapes |= {"B": (batch, pos, d_state), "C": (batch, pos, d_state), "state": (batch, width, d_state)}
    parts = {name: torch.randn(shape, generator=make, dtype=torch.float64) for name, shape in shapes.items()}
    parts["x"] = parts["x"].mT  # as a convolution leaves it
    return parts | {"delta": parts["delta"].exp(), "A": -parts["A"].exp()}


def dual_inputs(batch: int = 2, pos: int = 7, width: int = 2, d_state: int = 4, seed: int = 0) -> dict[str, Tensor]:
    make, groups = torch.Generator().manual_seed(seed), 1 + seed % 2
    heads = width * groups
    shapes = {"x": (batch, pos, heads, 3), "delta": (batch, pos, heads), "A": (heads,)}
    shapes |= {name: (batch, pos, groups, d_state) for name in "BC"} | {"state": (batch, heads, 3, d_state)}
    parts = {name: torch.randn(shape, generator=make, dtype=torch.float64) for name, shape in shapes.items()}
    return parts | {"delta": parts["delta"].exp(), "A": -parts["A"].exp()}


SELECTIVE = Family(
    scan.selective_scan,
    scan.selective_states,
    scan.selective_read,
    scan.selective_pattern,
    scan.selective_rows,
    selective_loop,
    selective_inputs,
    "batch channel query key, batch key channel -> batch query channel",
)
DUAL = Family(
    scan.dual_scan,
    scan.dual_states,
    scan.dual_read,
    scan.dual_pattern,
    scan.dual_rows,
    dual_loop,
    dual_inputs,
    "batch head query key, batch key head d -> batch query head d",
)
