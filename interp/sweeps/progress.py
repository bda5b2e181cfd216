"""The progress bar of a sweep, which judges the time left by what the remaining chunks cost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from interp.progress import WITHOUT_RATE, Silent, is_shown
from interp.sweeps.plan import Plan


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


@contextmanager
def progress_bar(plan: Plan, waiting: Sequence[int], show: bool | None) -> Iterator[Progress]:
    """A bar on stderr for the chunks that are waiting.

    Args:
        plan: all chunks.
        waiting: those that are to be run; the others are finished.
        show: True, False, or None for a terminal only.
    """
    cells = sum(plan.chunks[index].cells for index in waiting)
    counter: Any = _bar(plan, cells) if is_shown(show) else Silent()
    with counter as bar:
        bar.spent = 0.0
        bar.left = sum(plan.chunks[index].operations for index in waiting)
        yield Progress(plan, plan.cells - cells, bar)


def _bar(plan: Plan, cells: int) -> Any:
    """A tqdm bar for so many cells that are left."""
    from tqdm import tqdm

    class Bar(tqdm):
        """Time left by operations, as a cell in the last layer costs a fraction of one in the first."""

        spent = left = 0.0

        @property
        def format_dict(self) -> dict[str, Any]:
            fields: dict[str, Any] = super().format_dict
            if self.spent and self.total > self.n:
                seconds = (time.time() - self.start_t) * self.left / self.spent
                fields["rate"] = (self.total - self.n) / max(seconds, 1e-9)
            return fields

    initial = plan.cells - cells
    return Bar(desc="sweep", total=plan.cells, initial=initial, unit=" cells", bar_format=WITHOUT_RATE)
