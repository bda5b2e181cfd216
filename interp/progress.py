"""Progress bars on stderr."""

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
    """A tqdm progress bar on stderr: around the items of a loop, or in a `with` block that updates it.

    Args:
        items: what the loop iterates over.
        desc: what is done.
        progress: True, False, or None to show it on a terminal only.
        total: the number of steps, where `items` has no length.
        unit: the name of a step; it follows the numbers directly, so begin it with a space if it needs one.
        rate: show the steps per second.
    """
    from tqdm import tqdm

    bar_format = None if rate else WITHOUT_RATE
    return tqdm(items, desc=desc, total=total, unit=unit, bar_format=bar_format, disable=disabled(progress))


def disabled(progress: bool | None) -> bool | None:
    """`progress` as tqdm's argument `disable`, where None also means "on a terminal only"."""
    return None if progress is None else not progress
