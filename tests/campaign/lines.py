"""Something happens at a drawn line of Python code: so that a moment can be drawn, and be brought back."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

WATCHED = ("/interp/", "/contextlib.py")


@contextlib.contextmanager
def counted(stop: int | None = None, happens: Callable[[], object] = int) -> Iterator[list[int]]:
    """Count lines of `interp`, and of context managers, as they run; before the line `stop` something happens."""
    count = [0]

    def line(frame: FrameType, event: str, arg: object) -> Any:
        if event == "line":
            count[0] += 1
            if count[0] == stop:
                happens()
        return line

    def call(frame: FrameType, event: str, arg: object) -> Any:
        return line if any(part in frame.f_code.co_filename for part in WATCHED) else None

    sys.settrace(call)
    try:
        yield count
    finally:
        sys.settrace(None)
