"""`RayExecutor`: the chunks of a sweep on the machines of a Ray cluster.

1. The job, and with it the model, goes into the cluster's object store once; every worker loads it from there, and
   keeps it for all its chunks.
2. Each worker has a share of the chunks, neighbours together, because neighbours read the same base and source runs.
   Two at most are with a worker at a time; one that has finished its share takes from the end of the longest other.
3. A worker that is lost is replaced and its unfinished chunks are given out again. A chunk that was being run when its
   worker was lost, three times, ends the sweep; so does what a chunk raises by itself, which is never tried again.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
import pickle
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow
import torch

from interp.arguments import real_number, shown, whole_number
from interp.errors import ConfigError, InterpError
from interp.sweeps.ray_connection import connection, ray_module
from interp.version import __version__

AHEAD = 2  # chunks with a worker: the one it runs and the one that waits there
ATTEMPTS = 3
LAST_WORD = 10.0  # seconds for what a lost worker had finished to arrive

log = logging.getLogger(__name__)


class LostError(Exception):
    """A task that went with its worker."""


class ChunkRunner(Protocol):
    """What a worker runs; it is pickled once, with its model."""

    def run(self, chunk: int, /) -> np.ndarray:
        """The values of one chunk."""

    def to(self, device: torch.device, /) -> Any:
        """The same job on another device."""


@dataclass(frozen=True)
class RayExecutor:
    """Run the chunks of a sweep on a Ray cluster: `interp.sweep(..., executor=interp.RayExecutor(address="auto"))`.

    A Ray that this process is connected to already is used as it is, and left as it is. One that is started or joined
    here is left again when the sweep ends, however it ends.

    Attributes:
        address: None starts a cluster of this machine alone; "auto" joins the one that this machine belongs to, and
            "host:port" the one whose head node that is.
        workers: how many processes; None takes as many as the cluster has room for.
        threads: torch's threads in each; None takes as many as this process has.
        cpus_per_worker: what Ray reserves for each; None reserves one for each thread, and one beside a GPU.
        gpus_per_worker: the same, at most 1: two workers share a GPU at 0.5, and 0 keeps off GPUs. None takes one each
            where the cluster has any.
        patience: seconds to wait while no worker at all is running, such as in a queue for machines.

    Raises:
        ConfigError: a number that cannot be.
    """

    address: str | None = None
    workers: int | None = None
    threads: int | None = None
    cpus_per_worker: float | None = None
    gpus_per_worker: float | None = None
    patience: float = 600.0

    def __post_init__(self) -> None:
        if not isinstance(self.address, str | None):
            raise ConfigError(
                f"address must be text, such as 'auto' or 'host:port', or None, not {shown(self.address)}"
            )
        settled: dict[str, float] = {
            name: whole_number(name, getattr(self, name), least=1)
            for name in ("workers", "threads")
            if getattr(self, name) is not None
        }
        for name, most in (("cpus_per_worker", None), ("gpus_per_worker", 1)):
            if getattr(self, name) is not None:
                settled[name] = real_number(name, getattr(self, name), least=0, most=most)
        if not (isinstance(self.patience, float) and self.patience == math.inf):  # which waits as long as it takes
            settled["patience"] = real_number("patience", self.patience, least=0)
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    def __call__(self, job: ChunkRunner, chunks: Sequence[int]) -> Generator[tuple[int, np.ndarray], None, None]:
        """The values of every chunk, as workers finish them.

        Raises:
            InterpError: no Ray, no cluster at the address, a job that cannot be pickled or loaded, no worker within
                `patience`, a chunk that is lost with its worker three times. What `job.run` raises passes through.
        """
        if not chunks:
            return
        ray = ray_module()
        packed = _packed(job)
        threads = self.threads or torch.get_num_threads()
        # As many workers as are asked for shall run at once on this machine, on however few cores.
        cores = math.ceil(self.workers * (self.cpus_per_worker or threads)) if self.workers else None
        with connection(ray, self.address, cpus=cores):
            stored = ray.put(packed)
            del packed
            cpus, gpus, count = _room(ray, self, threads)
            device = "cuda" if gpus else "cpu"
            settings = (threads, torch.get_float32_matmul_precision())
            actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(Worker)

            def hire() -> tuple[Any, Any]:
                worker = actor.remote()
                return worker, worker.start.remote(stored, device, *settings)

            yield from _finish(ray, hire, _shares(chunks, count), self.patience)


class Worker:
    """One process of the cluster, with a job of its own."""

    job: ChunkRunner

    def start(self, packed: np.ndarray, device: str, threads: int, precision: str) -> tuple[str, str]:
        """Load the job onto `device`; the versions that its numbers depend on."""
        torch.set_num_threads(threads)  # Ray has set them to the CPUs that it reserved
        torch.set_float32_matmul_precision(precision)
        reader = pyarrow.BufferReader(pyarrow.py_buffer(packed))  # reads in the store, copies nothing
        # Not a file from somewhere: what the driver has packed, in the driver's own cluster.
        job = torch.load(reader, map_location=device, weights_only=False)
        self.job = job.to(torch.device(device))
        return _versions()

    def run(self, chunk: int) -> np.ndarray:
        """The values of one chunk."""
        try:
            return self.job.run(chunk)
        except Exception as error:
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:  # an exception of any kind may forbid it in any way
                raise InterpError(f"{type(error).__name__}: {error}") from None
            raise


def _last_words(
    ray: Any, worker: int, pending: dict[Any, tuple[int, int | None]], unfinished: set[int]
) -> Generator[tuple[int, np.ndarray], None, list[int | None]]:
    """What a lost worker had finished; its other tasks are returned. All of its tasks leave `pending`."""
    back: list[int | None] = []
    for task in [task for task, (other, _) in pending.items() if other == worker]:
        _, chunk = pending.pop(task)
        try:
            outcome = _outcome(ray, task, chunk, timeout=LAST_WORD)
        except LostError:
            back.append(chunk)
            continue
        if chunk is not None:
            unfinished.discard(chunk)
            yield chunk, outcome
    return back


def _finish(
    ray: Any, hire: Callable[[], tuple[Any, Any]], shares: list[deque[int]], patience: float
) -> Iterator[tuple[int, np.ndarray]]:
    """Hand out the chunks of `shares` until each has come back; then, or when anything is raised, end the workers.

    Args:
        ray: the module, connected.
        hire: begins one more worker; its actor, and the task that ends when it has loaded the job.
        shares: the chunks that each worker begins with; they are emptied.
        patience: as in `RayExecutor`.
    """
    unfinished = {chunk for share in shares for chunk in share}
    actors: dict[int, Any] = {}
    running: set[int] = set()  # workers that have loaded the job; one that waits for a machine is given no chunks
    pending: dict[Any, tuple[int, int | None]] = {}  # task -> its worker and chunk, oldest first; None is the start
    losses: Counter[int | None] = Counter()

    def begin(worker: int) -> None:
        running.discard(worker)
        actors[worker], task = hire()
        pending[task] = worker, None

    try:
        for worker in range(len(shares)):
            begin(worker)
        while unfinished:
            _hand_out(actors, running, pending, shares)
            ready, _ = ray.wait(list(pending), timeout=None if running else patience)
            if not ready:
                raise InterpError(
                    f"no worker could begin within {patience:g} seconds: the cluster has no room for one, or its "
                    "machines cannot be reached; `ray status` says what it has and what is asked of it"
                )
            worker, chunk = pending[ready[0]]
            try:
                outcome = _outcome(ray, ready[0], chunk)
            except LostError as lost:
                with suppress(Exception):  # it may only be out of reach; what it still sends would come twice
                    ray.kill(actors[worker])
                back = yield from _last_words(ray, worker, pending, unfinished)
                # A worker runs its oldest task, and the others only wait there.
                _count(losses, back[0], lost)
                shares[worker].extendleft(chunk for chunk in reversed(back) if chunk is not None)
                begin(worker)
                continue
            del pending[ready[0]]
            if chunk is None:
                _check_versions(outcome)
                losses[None] = 0
                running.add(worker)
            else:
                unfinished.discard(chunk)
                yield chunk, outcome
    finally:
        for actor in actors.values():
            with suppress(Exception):  # what is under way there is cancelled with it
                ray.kill(actor)


def _hand_out(
    actors: dict[int, Any],
    running: set[int],
    pending: dict[Any, tuple[int, int | None]],
    shares: list[deque[int]],
) -> None:
    """Give every running worker a chunk to run, then every one a chunk to wait there."""
    busy = Counter(worker for worker, _ in pending.values())
    for most in range(1, AHEAD + 1):
        for worker in sorted(running):
            # A worker whose own share is empty takes from the far end of the longest, which its owner comes to last.
            longest = max(shares, key=len)
            if busy[worker] < most and longest:
                chunk = shares[worker].popleft() if shares[worker] else longest.pop()
                pending[actors[worker].run.remote(chunk)] = worker, chunk
                busy[worker] += 1


def _outcome(ray: Any, task: Any, chunk: int | None, *, timeout: float | None = None) -> Any:
    """What a finished task returned, or raises what it raised; LostError when its worker has gone."""
    try:
        found = ray.get(task, timeout=timeout)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ray.exceptions.TaskCancelledError):
            raise LostError("it was interrupted") from error
        if chunk is None:
            raise InterpError(
                f"a worker could not load the job: {type(cause).__name__}: {cause}; "
                "every machine of the cluster needs the Python environment of this one"
            ) from error
        raise cause from error
    except ray.exceptions.RayError as error:
        raise LostError(_reason(error)) from error
    return found if chunk is None else np.array(found)  # Ray's own is a read-only view of the store


def _count(losses: Counter[int | None], chunk: int | None, lost: LostError) -> None:
    """Take note of a lost worker; ATTEMPTS on the same chunk, or on loading in a row, are too many."""
    losses[chunk] += 1
    if losses[chunk] < ATTEMPTS:
        doing = "loading the job" if chunk is None else f"running chunk {chunk}, which is given out again"
        log.warning("a worker was lost while it was %s: %s", doing, lost)
    elif chunk is None:
        raise InterpError(f"{ATTEMPTS} workers in a row were lost while they were loading the job: {lost}") from lost
    else:
        raise InterpError(
            f"chunk {chunk} was given up: {ATTEMPTS} workers were lost while they were running it, the last one so: "
            f"{lost}; if it needs more memory than a worker has, a smaller max_memory makes smaller chunks"
        ) from lost


def _reason(error: Exception) -> str:
    """The last line of what Ray says, which has the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:400] if lines else type(error).__name__


def _shares(chunks: Sequence[int], workers: int) -> list[deque[int]]:
    """The chunks in as many even runs of neighbours; fewer when there are fewer chunks."""
    workers = min(workers, len(chunks))
    cuts = [len(chunks) * at // workers for at in range(workers + 1)]
    return [deque(chunks[a:b]) for a, b in itertools.pairwise(cuts)]


def _room(ray: Any, asked: RayExecutor, threads: int) -> tuple[float, float, int]:
    """CPUs and GPUs to reserve for a worker, and how many workers there are to be."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus, cpus = asked.gpus_per_worker, asked.cpus_per_worker
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    if cpus is None:
        # More than any machine has would never be given.
        cpus = 1.0 if gpus else max(1.0, min(threads, max((node.get("CPU", 0) for node in nodes), default=1)))
    needs = {kind: amount for kind, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
    fit = sum(int(min(node.get(kind, 0) / amount for kind, amount in needs.items())) for node in nodes) if needs else 1
    return cpus, gpus, asked.workers or max(1, fit)


def _packed(job: ChunkRunner) -> np.ndarray:
    """The job as bytes: tensors that share memory still do, and those on a GPU can be loaded on another device."""
    from ray import cloudpickle

    file = io.BytesIO()
    try:
        torch.save(job, file, pickle_module=cloudpickle)  # which takes functions of a script or notebook, too
    except Exception as error:  # whatever the __reduce__ of a user's object raises
        raise InterpError(f"the job cannot be sent to other processes: {type(error).__name__}: {error}") from error
    return np.frombuffer(file.getbuffer(), dtype=np.uint8)


def _versions() -> tuple[str, str]:
    return __version__, torch.__version__.partition("+")[0]  # the rest names the build: cpu or cuda


def _check_versions(found: tuple[str, str]) -> None:
    if found != _versions():
        there, here = (" and ".join(("interp " + a, "torch " + b)) for a, b in (found, _versions()))
        raise InterpError(f"a worker has {there}, this process {here}; numbers would not be comparable")
