"""One thread that computes, one request at a time, and stops when nobody waits for the answer any more.

1. A request is put in line; too long a line is refused.
2. While it computes, a reader at the stream that enters each layer (and at the final norm, which lenses pass for every
   depth) asks whether it is still wanted; sweeps, which take whole forwards where anybody reads, ask between chunks.
3. When the browser closes the connection, because the reader of the page types on or leaves, the answer is no.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor

from interp.hooked.hooks import HookPoint, attached
from interp.hooked.model import HookedModel
from interp.sweeps.run_chunk import Job, Values

T = TypeVar("T")

MOST_WAITING = 16  # requests; a page has one at a time


class CancelledRequest(Exception):
    """Nobody waits for the answer."""


class BusyError(Exception):
    """Too many requests wait already."""


class Worker:
    """The thread, and the requests that wait for it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="explorer")
        self._stops: set[threading.Event] = set()

    async def run(self, compute: Callable[[threading.Event], T], closed: Awaitable[object]) -> T:
        """What `compute` gives, in the thread.

        Args:
            compute: is given the event that says when to stop.
            closed: ends when nobody waits any more.

        Raises:
            BusyError: the line is too long.
            CancelledRequest: `closed` ended first.
        """
        gone = asyncio.ensure_future(closed)
        stop = threading.Event()
        try:
            if len(self._stops) >= MOST_WAITING:
                raise BusyError(f"{MOST_WAITING} requests wait already, which is the most: try again in a moment")
            self._stops.add(stop)
            result = asyncio.get_running_loop().run_in_executor(self._pool, compute, stop)
            both: set[asyncio.Future[Any]] = {result, gone}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            result.cancel()  # one that waits never begins
            raise CancelledRequest
        finally:
            stop.set()
            self._stops.discard(stop)
            gone.cancel()

    def close(self) -> None:
        """Stop what runs, and take nothing more."""
        for stop in self._stops:
            stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def stopping(model: HookedModel, stop: threading.Event) -> Iterator[None]:
    """Let the forwards of a `with` block end between two layers once `stop` is set."""

    def ask(value: Tensor, hook: HookPoint) -> None:
        if stop.is_set():
            raise CancelledRequest

    points = model.hook_dict
    asked = [name for name in points if name.endswith("hook_resid_pre") or name == "ln_final.hook_normalized"]
    with attached(points, readers=[(asked, ask)] if asked else [], must_run=False):
        yield


def stoppable(stop: threading.Event) -> Callable[[Job, Sequence[int]], Generator[tuple[int, Values], None, None]]:
    """An executor of sweeps that runs the chunks here, and asks before each whether to go on."""

    def run(job: Job, chunks: Sequence[int]) -> Generator[tuple[int, Values], None, None]:
        for index in chunks:
            if stop.is_set():
                raise CancelledRequest
            yield index, job.run(index)

    return run
