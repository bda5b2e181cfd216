"""Chunks on a real Ray cluster of two workers: all of them, once, with the values of this process, whatever dies."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from makers import make, make_pairs

from interp.edits import Edit, Variant
from interp.errors import ConfigError, InterpError, UnknownName
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.sweeps import plan as plans
from interp.sweeps.ray_executor import RayExecutor, Worker, _hand_out, _room, _shares
from interp.sweeps.sweep import sweep

ray = pytest.importorskip("ray", reason="the extra interp[ray] is not installed")

pytestmark = pytest.mark.alone
WAITS = 300  # seconds, longer than any test here may take
ARRIVES = 0.5  # seconds for what a worker has finished to reach the caller


class PeculiarError(Exception):
    """One that cannot be pickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


ERRORS: dict[str, Callable[[], Exception]] = {
    "unknown": lambda: UnknownName("no site matches 'hook_zz'; did you mean 'hook_z'?"),
    "value": lambda: ValueError("a metric of the user's"),
    "peculiar": lambda: PeculiarError("this", "that"),
}


@dataclass(frozen=True)
class Chunks:
    """A job whose chunks are prompts drawn from their numbers; `what` happens in the chunk `at`.

    Every run leaves a file `chunk.pid` in `folder`.
    """

    model: GPT
    folder: Path
    what: str = "nothing"
    at: int = -1

    def run(self, chunk: int) -> np.ndarray:
        before = self.runs(chunk)
        (self.folder / f"{chunk}.{os.getpid()}").touch()
        if self.what == "both":
            soon(lambda: len(set(self.runs())) == 2)  # the other worker has begun, too
            assert torch.get_num_threads() == 1
        if chunk == self.at:
            if self.what == "die" or (self.what == "die once" and not before):
                time.sleep(ARRIVES)
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == "wait" and not before:
                time.sleep(WAITS)
            if self.what in ERRORS:
                raise ERRORS[self.what]()
        tokens = torch.randint(0, 29, (8, 16), generator=torch.Generator().manual_seed(chunk))
        with torch.no_grad():
            return self.model(tokens)[:, -1].double().numpy()

    def to(self, device: torch.device) -> Self:
        assert device == torch.device("cpu")
        return self

    def runs(self, chunk: int | str = "*") -> list[int]:
        """The processes that have begun a chunk."""
        return [int(path.suffix[1:]) for path in self.folder.glob(f"{chunk}.*")]


def finish(job: Chunks, n: int = 12, **options: Any) -> dict[int, np.ndarray]:
    """All chunks on the cluster; each must come once, with the bits that this process computes."""
    chunks = list(range(3, 3 + n))
    found = list(RayExecutor(**options)(job, chunks))
    assert sorted(chunk for chunk, _ in found) == chunks
    for chunk, values in found:
        expected = Chunks(job.model, job.folder).run(chunk)
        assert values.dtype == np.float64 and values.flags.writeable and np.array_equal(values, expected)
    return dict(found)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def soon(happens: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait for something, as long as it may reasonably take."""
    until = time.monotonic() + seconds
    while not (found := happens()) and time.monotonic() < until:
        time.sleep(0.02)
    assert found
    return found


@pytest.fixture(scope="module", autouse=True)
def _workers_need_not_import_this_file() -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def small() -> GPT:
    return make("llama_gqa")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray of two CPUs that the user has started; its address."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.mark.slow
def test_a_cluster_of_this_machine_is_started_and_ended(small: GPT, tmp_path: Path) -> None:
    assert not ray.is_initialized()
    torch.set_num_threads(1)
    job = Chunks(small, tmp_path, "both")
    finish(job, workers=2)
    assert len(set(job.runs()) - {os.getpid()}) == 2
    assert not ray.is_initialized()
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ
    soon(lambda: not any(alive(pid) for pid in set(job.runs()) - {os.getpid()}))


def test_every_chunk_comes_once_with_the_same_bits(cluster: str, small: GPT, tmp_path: Path) -> None:
    job = Chunks(small, tmp_path, "both")
    finish(job, address="auto")  # which this process is connected to
    workers = set(job.runs()) - {os.getpid()}
    assert len(workers) == 2 and all(len(list(tmp_path.glob(f"{chunk}.*"))) == 2 for chunk in range(3, 15))
    assert ray.is_initialized()  # the user's own is left alone
    soon(lambda: not any(map(alive, workers)))  # but our workers have gone


def test_threads_can_be_chosen_and_the_job_may_hold_functions_of_a_script(cluster: str) -> None:
    @dataclass(frozen=True)
    class Told:
        measure: Callable[[], int]

        def run(self, chunk: int) -> np.ndarray:
            return np.array([self.measure(), chunk], dtype=np.float64)

        def to(self, device: torch.device) -> Self:
            return self

    job = Told(lambda: torch.get_num_threads())
    assert [values.tolist() for _, values in RayExecutor(workers=1, threads=2)(job, [7])] == [[2.0, 7.0]]


def test_a_worker_killed_in_the_middle_changes_nothing(cluster: str, small: GPT, tmp_path: Path) -> None:
    job = Chunks(small, tmp_path, "wait", at=5)

    def kill() -> None:
        os.kill(soon(lambda: job.runs(5))[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    began = time.monotonic()
    finish(job)
    killer.join()
    assert len(set(job.runs(5))) == 3  # the killed worker, another, and this process to compare
    assert time.monotonic() - began < WAITS  # nobody waited for the killed one to wake


def test_a_lost_worker_is_replaced(cluster: str, small: GPT, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = Chunks(small, tmp_path, "die once", at=6)
    finish(job, n=8, workers=1)
    assert len(set(job.runs()) - {os.getpid()}) == 2
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("a worker was lost while it was running chunk 6, which is given out again: ")


def test_a_sweep_on_two_workers_one_of_which_is_killed_has_the_table_of_one_process(
    cluster: str, small: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plans.ROWS, "cpu", 12)
    pairs = make_pairs((6, 4, 7, 5), shared=1)
    cells = [Variant([Edit("z", {"layer": layer, "head": head})]) for layer in (0, 1) for head in range(4)]
    fatal = tmp_path / "fatal"

    def deadly(logits: torch.Tensor, rows: PromptPairs) -> torch.Tensor:
        if fatal.exists() and int(rows.lengths[0]) == 7:  # once, in whichever worker comes to the third prompt first
            fatal.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return logits[:, 0, 3] - logits[:, 0, 4]

    alone = sweep(small, pairs, cells, deadly, out=tmp_path / "alone", progress=False)
    fatal.touch()
    shared = sweep(small, pairs, cells, deadly, out=tmp_path / "shared", progress=False, executor=RayExecutor())
    assert not fatal.exists()
    assert shared.equals(alone)
    kept = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("alone", "shared")]
    assert kept[0] == kept[1] and len(kept[0]) > 8


@pytest.mark.slow
def test_a_chunk_that_kills_every_worker_is_given_up(cluster: str, small: GPT, tmp_path: Path) -> None:
    job = Chunks(small, tmp_path, "die", at=4)
    with pytest.raises(InterpError, match=r"chunk 4 was given up: 3 workers were lost .* worker process has died"):
        list(RayExecutor()(job, [4]))  # alone, as a death may take the last word about its neighbour with it
    assert len(set(job.runs(4))) == 3
    soon(lambda: not any(map(alive, job.runs())))


def test_what_a_chunk_raises_reaches_the_caller_and_is_not_tried_again(
    cluster: str, small: GPT, tmp_path: Path
) -> None:
    job = Chunks(small, tmp_path, "unknown", at=4)
    with pytest.raises(UnknownName) as caught:
        list(RayExecutor(workers=1)(job, [3, 4, 5]))
    assert type(caught.value) is UnknownName and str(caught.value) == str(ERRORS["unknown"]())
    assert "in run" in str(caught.value.__cause__)  # the other process's traceback
    assert len(job.runs(4)) == 1


def test_an_error_that_cannot_travel_keeps_its_name_and_message(small: GPT, tmp_path: Path) -> None:
    worker = Worker()
    for what, kind, message in (
        ("value", ValueError, "a metric of the user's"),
        ("peculiar", InterpError, "PeculiarError: this and that"),
    ):
        worker.job = Chunks(small, tmp_path, what, at=4)
        with pytest.raises(kind) as caught:
            worker.run(4)
        assert type(caught.value) is kind and str(caught.value) == message


def test_a_caller_who_stops_ends_the_workers(cluster: str, small: GPT, tmp_path: Path) -> None:
    job = Chunks(small, tmp_path, "wait", at=5)
    results = RayExecutor()(job, range(3, 15))
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    soon(lambda: not any(map(alive, job.runs())))


@dataclass(frozen=True)
class Unwilling:
    """A job that workers cannot load."""

    dies: bool

    def __reduce__(self) -> Any:
        return (os.abort, ()) if self.dies else (int, ("no number",))


def test_a_job_that_cannot_be_loaded_is_refused(cluster: str) -> None:
    with pytest.raises(InterpError, match=r"could not load the job: ValueError: .* needs the Python environment"):
        list(RayExecutor(workers=1)(Unwilling(dies=False), [0]))  # type: ignore[arg-type]
    with pytest.raises(InterpError, match=r"the job cannot be sent to other processes: TypeError: .*lock"):
        list(RayExecutor(workers=1)(threading.Lock(), [0]))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_job_that_kills_whoever_loads_it_is_given_up(cluster: str) -> None:
    with pytest.raises(InterpError, match="3 workers in a row were lost while they were loading the job"):
        list(RayExecutor(workers=1)(Unwilling(dies=True), [0]))  # type: ignore[arg-type]


def test_a_cluster_without_room_is_not_waited_for(cluster: str, small: GPT, tmp_path: Path) -> None:
    with pytest.raises(InterpError, match=r"no worker could begin within 0\.5 seconds: the cluster has no room"):
        list(RayExecutor(cpus_per_worker=3, patience=0.5)(Chunks(small, tmp_path), [0]))
    with pytest.raises(InterpError, match="no worker could begin"):
        list(RayExecutor(gpus_per_worker=1, patience=0.5)(Chunks(small, tmp_path), [0]))


def test_another_cluster_than_the_connected_one_is_refused(cluster: str, small: GPT, tmp_path: Path) -> None:
    with pytest.raises(InterpError, match=f"is connected to the Ray cluster at {cluster}, not to one at 'other:6379'"):
        list(RayExecutor(address="other:6379")(Chunks(small, tmp_path), [0]))


SCRIPT = """
import json, pickle, sys
from pathlib import Path

import torch

from interp.sweeps.ray_executor import RayExecutor
from interp.sweeps.ray_connection import ray_module

torch.set_num_threads(1)
ray_module()  # or else this job would import it first, louder
job = pickle.loads(Path(sys.argv[1]).read_bytes())
found = dict(RayExecutor(address=sys.argv[2])(job, range(3, 11)))
print(json.dumps({chunk: values.tolist() for chunk, values in found.items()}))
"""


def script(job: Chunks, address: str) -> subprocess.Popen[str]:
    """A program of its own that joins the cluster."""
    (job.folder / "job").write_bytes(ray.cloudpickle.dumps(job))
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(job.folder / "job"), address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_program_joins_a_cluster_and_leaves_it(cluster: str, small: GPT, tmp_path: Path) -> None:
    job = Chunks(small, tmp_path, "die once", at=6)
    out, errors = script(job, cluster).communicate(timeout=90)
    found = json.loads(out)  # a lost worker puts nothing else on stdout
    assert {int(chunk) for chunk in found} == set(range(3, 11))
    for chunk, values in found.items():
        assert values == Chunks(small, tmp_path).run(int(chunk)).tolist()
    assert len(errors.splitlines()) == 1 and "a worker was lost while it was running chunk 6" in errors
    assert ray.nodes()[0]["Alive"]
    soon(lambda: not any(alive(pid) for pid in set(job.runs()) - {os.getpid()}))


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_leaves_the_cluster(cluster: str, small: GPT, tmp_path: Path) -> None:
    job = Chunks(small, tmp_path, "wait", at=5)
    program = script(job, cluster)
    soon(lambda: job.runs(5))
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does
    _, errors = program.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors.splitlines()[-1]
    soon(lambda: not any(map(alive, job.runs())))
    assert ray.nodes()[0]["Alive"]


def test_addresses_that_nobody_answers_at_are_refused_at_once(
    small: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        free = f"127.0.0.1:{taken.getsockname()[1]}"
        began = time.monotonic()
        for address, says in (
            (free, f"no Ray cluster answers at '{free}'"),
            ("no.such.host.invalid:6379", "no Ray cluster answers at 'no.such.host.invalid:6379'"),
            ("head", "'head' is not the address of a Ray cluster, expected 'auto' or 'host:port'"),
            ("head:port", "'head:port' is not the address"),
            ("head:99999999", "no Ray cluster answers at 'head:99999999'"),
            ("ray://head:10001", "Ray Client addresses such as 'ray://head:10001' are not supported"),
        ):
            with pytest.raises(InterpError, match=says):
                list(RayExecutor(address=address)(Chunks(small, tmp_path), [0]))
            monkeypatch.setenv("RAY_ADDRESS", address)
            with pytest.raises(InterpError, match=says):
                list(RayExecutor(address="auto")(Chunks(small, tmp_path), [0]))
            monkeypatch.delenv("RAY_ADDRESS")
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(free)  # left behind by a cluster that crashed
        with pytest.raises(InterpError, match=f"no Ray cluster answers at '{free}'"):
            list(RayExecutor(address="auto")(Chunks(small, tmp_path), [0]))
    assert time.monotonic() - began < 20


def test_a_cluster_that_refuses_says_why(small: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(reason: str) -> Callable[..., None]:
        def init(**options: Any) -> None:
            raise ConnectionError("Failed to connect to Ray cluster") from RuntimeError(reason)

        return init

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        for reason, says in (
            ("ray.exceptions.AuthenticationError: InvalidAuthToken", "it asks for a token"),
            ("TimedOut", "Failed to connect to Ray cluster"),
        ):
            monkeypatch.setattr(ray, "init", refuse(reason))
            with pytest.raises(InterpError, match=f"could be joined at '{address}': {says}"):
                list(RayExecutor(address=address)(Chunks(small, tmp_path), [0]))


def test_without_ray_the_error_says_what_to_install(
    small: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InterpError, match=r"needs Ray: pip install 'interp\[ray\]'"):
        list(RayExecutor()(Chunks(small, tmp_path), [0]))


def test_nothing_to_run_starts_nothing(small: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(RayExecutor()(Chunks(small, tmp_path), [])) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workers": 0}, "workers must be at least 1, not 0"),
        ({"threads": -1}, "threads must be at least 1, not -1"),
        ({"cpus_per_worker": -0.5}, "cpus_per_worker must be a finite number >= 0, not -0.5"),
        ({"gpus_per_worker": 2}, "gpus_per_worker must be a finite number from 0 to 1, not 2"),
        ({"patience": -1}, "patience must be a finite number >= 0, not -1"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RayExecutor(**options)


class Nodes:
    """Stands for the module: a cluster of these machines."""

    def __init__(self, *resources: dict[str, float]) -> None:
        self.resources = resources

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": one} for one in self.resources] + [
            {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 9.0}}
        ]


@pytest.mark.parametrize(
    ("asked", "threads", "expected"),
    [
        ({"gpus_per_worker": 0}, 4, (4, 0, 16 + 2)),  # the machines of 64 and of 8 CPUs
        ({"gpus_per_worker": 0, "cpus_per_worker": 10}, 4, (10, 0, 6)),
        ({}, 4, (1, 1, 8)),
        ({"gpus_per_worker": 0.5}, 4, (1, 0.5, 16)),
        ({"gpus_per_worker": 0.5, "cpus_per_worker": 8}, 4, (8, 0.5, 8)),
        ({"workers": 3}, 4, (1, 1, 3)),
        ({"gpus_per_worker": 0}, 100, (64, 0, 1)),  # more threads than any machine has
    ],
)
def test_workers_fill_the_machines(asked: dict[str, Any], threads: int, expected: tuple[float, float, int]) -> None:
    machines = Nodes({"CPU": 64.0, "GPU": 8.0}, {"CPU": 8.0}, {"memory": 1.0})
    assert _room(machines, RayExecutor(**asked), threads) == expected
    assert _room(Nodes({"CPU": 8.0}), RayExecutor(), 3) == (3, 0, 2)


@pytest.mark.parametrize(("n", "workers"), [(1, 1), (7, 3), (12, 4), (3, 8)])
def test_shares_are_neighbours_and_even(n: int, workers: int) -> None:
    shares = _shares(range(n), workers)
    assert [chunk for share in shares for chunk in share] == list(range(n))
    assert len(shares) == min(n, workers) and max(map(len, shares)) - min(map(len, shares)) <= 1


class Deaf:
    """An actor that keeps what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    @property
    def run(self) -> Self:
        return self

    def remote(self, chunk: int) -> object:
        self.asked.append(chunk)
        return object()


def test_no_worker_hoards_chunks_and_none_is_idle_while_there_are_some() -> None:
    actors, shares = {at: Deaf() for at in range(3)}, _shares(range(9), 3)
    pending: dict[Any, tuple[int, int | None]] = {}
    _hand_out(actors, {0}, pending, shares)  # the others wait for a machine
    assert [actors[at].asked for at in range(3)] == [[0, 1], [], []]
    _hand_out(actors, {0}, pending, shares)
    assert len(pending) == 2
    pending.clear()
    _hand_out(actors, {0}, pending, shares)
    assert actors[0].asked == [0, 1, 2, 5] and len(pending) == 2  # its last one, and the end of the longest share
    pending.clear()
    _hand_out(actors, {0, 2}, pending, shares)
    assert [list(share) for share in shares] == [[], [3], []]
    assert sorted(chunk for chunk in pending.values()) == [(0, 4), (0, 8), (2, 6), (2, 7)]
