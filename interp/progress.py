"""Progress bars on stderr: whether one is shown, and of a sweep how much time is left.

1. `counting` counts whatever a loop does. 2. `progress_bar` counts the cells of a sweep, and judges the time left by
what the remaining chunks cost.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from interp.plan import Plan

WITHOUT_RATE = "{l_bar}{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}]{postfix}"


@dataclass
class Progress:
    """How far a sweep is.

    Attributes:
        plan: what is run.
        done: cells that are finished, those that needed nothing among them.
        bar: what shows it.
    """

    plan: Plan
    done: int
    bar: Any

    def finish(self, index: int) -> None:
        """Count a chunk as finished."""
        chunk = self.plan.chunks[index]
        self.done += chunk.cells
        self.bar.spent += chunk.operations
        self.bar.left = max(self.bar.left - chunk.operations, 0.0)
        self.bar.update(chunk.cells)


def counting(
    items: Iterable[Any] | None = None,
    *,
    desc: str,
    progress: bool | None,
    total: int | None = None,
    unit: str = "it",
    rate: bool = True,
) -> Any:
    """A bar on stderr, as tqdm has it: around what a loop goes through, or in a `with` block that updates it.

    Args:
        items: what is gone through.
        desc: what is done.
        progress: True, False, or None for a terminal only.
        total: how many steps there are, where `items` does not say.
        unit: what a step is; it stands behind numbers, with the space that it needs.
        rate: say how many there are a second.
    """
    from tqdm import tqdm

    look = None if rate else WITHOUT_RATE
    return tqdm(items, desc=desc, total=total, unit=unit, bar_format=look, disable=_disabled(progress))


def _disabled(progress: bool | None) -> bool | None:
    """What tqdm calls `disable`, where None too is for a terminal only."""
    return None if progress is None else not progress


@contextmanager
def progress_bar(plan: Plan, waiting: Sequence[int], show: bool | None) -> Iterator[Progress]:
    """A bar on stderr for the chunks that are waiting.

    Args:
        plan: all chunks.
        waiting: those that are to be run; the others are finished.
        show: True, False, or None for a terminal only.
    """
    from tqdm import tqdm

    class Bar(tqdm):
        """Time left by operations, as a cell in the last layer costs a fraction of one in the first."""

        spent = left = 0.0

        @property
        def format_dict(self) -> dict[str, Any]:
            told: dict[str, Any] = super().format_dict
            if self.spent and self.total > self.n:
                seconds = (time.time() - self.start_t) * self.left / self.spent
                told["rate"] = (self.total - self.n) / max(seconds, 1e-9)
            return told

    cells = sum(plan.chunks[index].cells for index in waiting)
    with Bar(
        desc="sweep",
        total=plan.cells,
        initial=plan.cells - cells,
        unit=" cells",
        bar_format=WITHOUT_RATE,
        disable=_disabled(show),
    ) as bar:
        bar.left = sum(plan.chunks[index].operations for index in waiting)
        yield Progress(plan, plan.cells - cells, bar)
