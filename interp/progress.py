"""Progress bars on stderr: `counting` counts whatever a loop does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

WITHOUT_RATE = "{l_bar}{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}]{postfix}"


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
    return tqdm(items, desc=desc, total=total, unit=unit, bar_format=look, disable=disabled(progress))


def disabled(progress: bool | None) -> bool | None:
    """What tqdm calls `disable`, where None too is for a terminal only."""
    return None if progress is None else not progress
