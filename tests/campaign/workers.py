"""Workers of a Ray cluster, killed at drawn moments of a sweep: is the table, and the journal, the same to the byte?

1. A sweep with a journal is run by one process.
2. It is run by two workers of a Ray cluster, one of which is killed when a drawn number of chunks is on disk.
3. Table and files must be those of the one process. Where Ray is not installed nothing is tried.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import threading
import time
from pathlib import Path
from random import Random

import pandas as pd
from makers import make, make_pairs

import interp
from interp.edits import Edit, Variant
from interp.sweeps import plan as plans

from .trial import Case, Limits, Outcome, tell

JOBS = 1
LIMITS = Limits(processor=100, seconds=240, memory=None)  # Ray's own memory is mapped, and its start takes a while
ALONE: list[tuple[pd.DataFrame, dict[str, bytes]]] = []


def prepare(home: Path) -> None:
    plans.ROWS["cpu"] = 12
    ALONE[:] = [(_swept(home / "alone", "local"), _content(home / "alone"))]


def _swept(folder: Path, executor: str | interp.RayExecutor) -> pd.DataFrame:
    heads = [Variant([Edit("z", {"layer": la, "head": h})], {"head": f"{la}.{h}"}) for la in (0, 1) for h in range(4)]
    pairs = make_pairs((6, 4, 7, 5) * 3, shared=1)
    return interp.sweep(make("llama_gqa"), pairs, heads, out=folder, progress=False, executor=executor)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def count() -> int:
    return 200 if importlib.util.find_spec("ray") else 0


def case(seed: int, number: int) -> Case:
    def run() -> Outcome:
        rng = Random(f"workers {seed} {number}")
        plans.ROWS["cpu"] = 12
        chunks, first = rng.randrange(12), rng.random() < 0.5
        title = f"a worker is killed when {chunks} chunks are on disk"
        tell(title)
        folder, ended, killed = Path("out").absolute(), threading.Event(), list[int]()

        def kill() -> None:
            while not ended.is_set() and not killed:
                time.sleep(0.002)
                if len(list(folder.glob("chunk-*"))) >= chunks and (found := _workers()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(found[0 if first else -1], signal.SIGKILL)
                        killed.append(1)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            frame = _swept(folder, interp.RayExecutor(workers=2, threads=1))
        finally:
            ended.set()
            killer.join()
        expected, files = ALONE[0]
        problems = [] if frame.equals(expected) else ["the table is another"]
        problems += [] if _content(folder) == files else ["the journal has other bytes"]
        return Outcome("different" if problems else "right", title, "; ".join(problems) or f"{len(killed)} killed")

    return run


def _workers() -> list[int]:
    """The processes below this one that are workers of a Ray cluster with something to do."""
    parents, workers = {}, []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            stat = (place / "stat").read_text()
            parents[int(place.name)] = int(stat.rpartition(")")[2].split()[1])
            if (place / "cmdline").read_bytes().startswith(b"ray::Worker"):
                workers.append(int(place.name))

    def below(process: int) -> bool:
        while process > 1 and process != os.getpid():
            process = parents.get(process, 0)
        return process == os.getpid()

    return [worker for worker in workers if below(worker)]
