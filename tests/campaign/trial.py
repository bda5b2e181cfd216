"""Cases in child processes: limits, and what came of it.

1. A child is forked from this process, in an empty folder. A case may take so much time and memory (`Limits`).
2. The child runs the case, whose result it leaves in a file. A case that raises is judged by what it raises.
3. A child that ended without a result crashed, hung or was killed for its memory.
4. Where forking would take longer than the cases, a child takes several. What may be another's fault is then tried
   again alone.
"""

from __future__ import annotations

import faulthandler
import gc
import itertools
import os
import pickle
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from interp.errors import InterpError

# What may come of a case, and whether that is as it should be.
KINDS = {
    "refused": True,  # with an error of interp.errors, or the command line's exit code 2
    "right": True,  # it went on, with the right numbers
    "unseen": True,  # other numbers, after a change to nothing but the values in somebody else's file
    "different": False,  # other numbers, without a word
    "accepted": False,  # something that has to be refused was not
    "raw": False,  # an exception that is not interp's own
    "crash": False,  # the process died
    "hang": False,
    "memory": False,
}
OUTCOME, TITLE, SAID = ".outcome", ".title", ".said"
# Of these, what came before in the same process may be the cause, and what comes after may suffer.
SPOILS = {"different", "crash", "hang", "memory"}


@dataclass(frozen=True)
class Limits:
    """Of one case: seconds of processor time, seconds altogether, bytes beyond what the process has (None: any)."""

    processor: int = 10
    seconds: float = 30
    memory: int | None = 3 << 29


@dataclass(frozen=True)
class Outcome:
    """What came of a case: its kind, what was tried, and what was said."""

    kind: str
    title: str
    detail: str = ""


@dataclass(frozen=True)
class Ended:
    """A case that has ended."""

    number: int
    outcome: Outcome
    seconds: float


Case = Callable[[], Outcome]


def tell(title: str) -> None:
    """What is about to be tried, for the case that the child does not live to say it."""
    Path(TITLE).write_text(title, encoding="utf-8", errors="backslashreplace")


def attempt(
    numbers: Iterator[int],
    case: Callable[[int], Case],
    *,
    jobs: int = 1,
    until: float = float("inf"),
    together: int = 1,
    limits: Limits = Limits(),
) -> Iterator[Ended]:
    """Try cases as they end, `jobs` children at a time; none is begun after the moment `until` (of time.monotonic).

    A child takes up to `together` cases, one after the other. What went wrong beside others is tried again alone.
    """
    running: dict[int, _Child] = {}
    poll = select.poll()
    alone: list[int] = []
    gc.collect()
    gc.freeze()
    while True:
        while len(running) < jobs and (alone or time.monotonic() < until):
            batch = [alone.pop()] if alone else list(itertools.islice(numbers, together))
            if not batch:
                break
            child = _start(batch, case, until, limits)
            running[child.handle] = child
            poll.register(child.handle, select.POLLIN)
        if not running:
            return
        ready = {handle for handle, _ in poll.poll(200)}
        for child in list(running.values()):
            late = child.handle not in ready and child.is_late()
            if late:
                _kill_group(child.process)
            if not late and child.handle not in ready:
                continue
            _, status, _ = os.wait4(child.process, 0)
            poll.unregister(child.handle)
            os.close(child.handle)
            del running[child.handle]
            _kill_group(child.process)  # what it may have started
            left = list(child.batch)
            for ended in child.results(status, late):
                left.remove(ended.number)
                if ended.outcome.kind not in SPOILS or len(child.batch) == 1:
                    yield ended
                else:
                    alone.append(ended.number)
            shutil.rmtree(child.folder, ignore_errors=True)
            numbers = itertools.chain(left, numbers)


@dataclass
class _Child:
    """A process that tries some cases; where it leaves what came of them."""

    batch: list[int]
    limits: Limits
    folder: Path
    process: int
    handle: int
    done: int = 0
    since: float = field(default_factory=time.monotonic)

    def is_late(self) -> bool:
        """Whether the case that it is at takes too long."""
        done = sum((self.folder / str(number) / OUTCOME).exists() for number in self.batch)
        if done > self.done:
            self.done, self.since = done, time.monotonic()
        return time.monotonic() - self.since > self.limits.seconds

    def results(self, status: int, late: bool) -> Iterator[Ended]:
        """What came of the cases that were tried: those that ended, and the one at which the process did."""
        for number in self.batch:
            folder = self.folder / str(number)
            try:
                outcome, seconds = pickle.loads((folder / OUTCOME).read_bytes())
                yield Ended(number, outcome, seconds)
            except (OSError, EOFError, pickle.UnpicklingError):
                if folder.exists():  # else the time was up
                    yield Ended(number, _lost(folder, status, late, self.limits), time.monotonic() - self.since)
                return


def _start(batch: list[int], case: Callable[[int], Case], until: float, limits: Limits) -> _Child:
    folder = Path(tempfile.mkdtemp(prefix="cases-"))
    process = os.fork()
    if process:
        return _Child(batch, limits, folder, process, os.pidfd_open(process))
    try:
        _run(batch, case, folder, until, limits)
    finally:
        os._exit(0)


def _run(batch: list[int], case: Callable[[int], Case], folder: Path, until: float, limits: Limits) -> None:
    """In the child: try the cases, each in an empty folder of its own."""
    os.setpgid(0, 0)
    faulthandler.disable()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limits.memory is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + limits.memory,) * 2)
    warnings.simplefilter("ignore")
    for at, number in enumerate(batch):
        if at and time.monotonic() > until:
            return
        here = folder / str(number)
        work = here / "a" / "b" / "c"  # so that paths with some ".." stay inside
        work.mkdir(parents=True)
        os.chdir(work)
        said = os.open(here / SAID, os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.close(said)
        spent = resource.getrusage(resource.RUSAGE_SELF)
        soon = int(spent.ru_utime + spent.ru_stime) + 1 + limits.processor
        resource.setrlimit(resource.RLIMIT_CPU, (soon, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        torch.manual_seed(0)
        begun = time.monotonic()
        outcome = judged(case(number))
        if not outcome.title:
            outcome = Outcome(outcome.kind, _read(work / TITLE), outcome.detail)
        sys.stdout.flush()
        partial = here / f"{OUTCOME}.partial"
        partial.write_bytes(pickle.dumps((outcome, time.monotonic() - begun)))
        partial.rename(here / OUTCOME)
        if outcome.kind in SPOILS:
            return  # it may have left something that the next would be blamed for


def judged(case: Case) -> Outcome:
    """What came of a case that ran to its end or raised."""
    try:
        return case()
    except InterpError as error:
        return Outcome("refused", "", f"{type(error).__name__}: {error}")
    except BaseException as error:  # a panic in Rust is no Exception
        text = f"{type(error).__name__}: {error}"
        short = isinstance(error, MemoryError) or "can't allocate memory" in text or "Cannot allocate memory" in text
        return Outcome("memory" if short else "raw", "", f"{text[:300]}\n{_where(error)}")


def _where(error: BaseException) -> str:
    """The last lines of the traceback that are in this repository, innermost last."""
    root = str(Path(__file__).parent.parent.parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(root)]
    kept = [frame for frame in frames if f"{os.sep}campaign{os.sep}" not in frame.filename.removeprefix(root)]
    lines = [f"{frame.filename.removeprefix(root + os.sep)}:{frame.lineno} {frame.line}" for frame in kept]
    return " <- ".join(reversed(lines[-3:]))


def _lost(folder: Path, status: int, late: bool, limits: Limits) -> Outcome:
    """What came of a case whose process ended, or was ended, without a result."""
    title = _read(folder / "a" / "b" / "c" / TITLE)
    said = _read(folder / SAID)[-600:]
    if late:
        return Outcome("hang", title, f"it had not ended after {limits.seconds:g} s; {said}")
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number == signal.SIGXCPU:
        return Outcome("hang", title, f"{limits.processor} s of processor time")
    if number == signal.SIGKILL or "memory allocation of" in said or "Cannot allocate memory" in said:
        return Outcome("memory", title, said)
    return Outcome("crash", title, f"{signal.Signals(number).name if number else 'it ended without a result'}; {said}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _kill_group(process: int) -> None:
    try:
        os.killpg(process, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
