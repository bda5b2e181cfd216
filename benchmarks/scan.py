"""The scans of Mamba-1 and Mamba-2 alone, in the shapes of a 130M model, against plain loops over positions.

Prints medians in seconds and medians of the ratios of neighbouring runs, of every form interleaved in one process, on
the CPU and on a GPU if there is one. Run with `python benchmarks/scan.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from interleaved import interleaved, ratio
from torch import Tensor

from interp.state_space import scan_kernel as recurrence
from interp.state_space.scan import dual_scan, selective_scan

SHAPES = {(4, 16): 30, (8, 256): 7, (1, 2048): 5}  # batch, positions: rounds
Parts = dict[str, Tensor]


def selective_loop(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The recurrence as it is written, a position at a time."""
    state, u, ys = x.new_zeros(x.shape[0], *A.shape), delta * x, []
    for t in range(x.shape[1]):
        state = torch.exp(delta[:, t, :, None] * A) * state + u[:, t, :, None] * B[:, t, None]
        ys.append((state @ C[:, t, :, None])[..., 0])
    return torch.stack(ys, 1)


def dual_loop(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The same for Mamba-2 with one group."""
    state, u, ys = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[-1]), delta[..., None] * x, []
    for t in range(x.shape[1]):
        entering = u[:, t, ..., None] * B[:, t, :, None]
        state = torch.exp(delta[:, t] * A)[..., None, None] * state + entering
        ys.append((state @ C[:, t, :, :, None])[..., 0])
    return torch.stack(ys, 1)


def tree(**parts: Tensor) -> Tensor:
    """`selective_scan` in the form that it takes on a GPU."""
    stepwise, recurrence.STEPWISE = recurrence.STEPWISE, ()
    try:
        return selective_scan(**parts)[0]
    finally:
        recurrence.STEPWISE = stepwise


def selective(batch: int, length: int, *, channels: int = 1536, d_state: int = 16) -> Parts:
    return {
        "x": torch.randn(batch, length, channels),
        "delta": F.softplus(torch.randn(batch, length, channels) - 3),
        "A": -torch.arange(1.0, d_state + 1).repeat(channels, 1),
        "B": torch.randn(batch, length, d_state),
        "C": torch.randn(batch, length, d_state),
    }


def dual(batch: int, length: int, *, heads: int = 24, d_head: int = 64, d_state: int = 128) -> Parts:
    return {
        "x": torch.randn(batch, length, heads, d_head),
        "delta": F.softplus(torch.randn(batch, length, heads) - 3),
        "A": -torch.arange(1.0, heads + 1),
        "B": torch.randn(batch, length, 1, d_state),
        "C": torch.randn(batch, length, 1, d_state),
    }


def run(function: Callable[..., Any], parts: Parts, slope: bool) -> Callable[[], Any]:
    """A call that is over when it returns; with `slope`, of the gradients of all inputs too."""

    def timed() -> Any:
        now = {name: part.detach().requires_grad_(slope) for name, part in parts.items()}
        with torch.set_grad_enabled(slope):
            found = function(**now)
            y = found if isinstance(found, Tensor) else found[0]
            if slope:
                torch.autograd.grad((y * now["x"].detach()).sum(), [*now.values()])
        if y.is_cuda:
            torch.cuda.synchronize()
        return found

    return timed


def compare(title: str, functions: dict[str, Callable[..., Any]], parts: Parts, rounds: int, *, slope: bool) -> None:
    """Prints seconds of every function, and its ratio to the first."""
    first = next(iter(functions))
    seconds = interleaved({name: run(function, parts, slope) for name, function in functions.items()}, rounds)
    print(f"\n{title}, {'with gradients' if slope else 'forward'}, {rounds} rounds")
    for name, values in seconds.items():
        print(f"  {statistics.median(values):8.4f} s  {ratio(seconds, name, first):6.2f} x  {name}")


def main() -> None:
    torch.manual_seed(0)
    print(f"float32, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for (batch, length), rounds in SHAPES.items():
            title = f"{device}, {batch} x {length}"
            parts = {name: part.to(device) for name, part in selective(batch, length).items()}
            forms = {"selective_scan": selective_scan, "loop": selective_loop}
            compare(f"Mamba-1, {title}", forms | {"tree": tree}, parts, rounds, slope=False)
            if length < 1000:  # the gradient of a slice of the loop is as long as the whole: half a minute
                compare(f"Mamba-1, {title}", forms, parts, rounds // 2, slope=True)
            parts = {name: part.to(device) for name, part in dual(batch, length).items()}
            compare(f"Mamba-2, {title}", {"dual_scan": dual_scan, "loop": dual_loop}, parts, rounds, slope=False)
            # Autograd through the loop would hold every state several times: gigabytes.
            compare(f"Mamba-2, {title}", {"dual_scan": dual_scan}, parts, rounds, slope=True)


if __name__ == "__main__":
    main()
