"""Something happens at a drawn line of Python code: so that a moment can be drawn, and be brought back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

WATCHED = ("/interp/", "/contextlib.py")


class counted:
    """A `with` block that counts lines of `interp`, and of context managers, as they run.

    Before the line `stop` something happens; `lines` is how many there were.
    """

    def __init__(self, stop: int | None = None, happens: Callable[[], object] = int) -> None:
        self.stop, self.happens, self.lines = stop, happens, 0

    def __enter__(self) -> counted:
        sys.settrace(self._call)
        return self

    def __exit__(self, *raised: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, arg: object) -> Any:
        return self._line if any(part in frame.f_code.co_filename for part in WATCHED) else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.stop:
                self.happens()
        return self._line
