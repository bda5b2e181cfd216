"""Progress bars on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, Self

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
    if not is_shown(progress):
        return Silent(items)
    from tqdm import tqdm

    return tqdm(items, desc=desc, total=total, unit=unit, bar_format=None if rate else WITHOUT_RATE)


def is_shown(progress: bool | None) -> bool:
    """Whether there is a bar: as asked for, or where stderr is a terminal."""
    return bool(sys.stderr and sys.stderr.isatty()) if progress is None else progress


class Silent:
    """What takes a bar's place where none is shown.

    A tqdm bar, shown or not, takes a lock that processes share: if a forked process is killed while it holds the lock,
    every later bar of the others waits for ever.
    """

    def __init__(self, items: Iterable[Any] | None = None) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items or ())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def update(self, steps: float = 1) -> None:
        """Count nothing."""

    def set_postfix(self, **shown: object) -> None:
        """Show nothing."""

    def set_postfix_str(self, text: str) -> None:
        """Show nothing."""

    def write(self, text: str, file: Any = None) -> None:
        """Print a line, as a bar does above itself."""
        print(text, file=file)
