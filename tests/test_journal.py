"""The journal: whole parts or none, whatever happens to the process, the disk or the files."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from interp.errors import ConfigError, OutputError
from interp.resume.journal import FULL, MANIFEST, Journal

KEY = {"model": "3f" * 32, "prompts": "90" * 32, "metric": "logit_diff"}
PLAN = {"chunks": 4, "blocks": [[0, 8], [8, 12]], "rows": 64}
PARTS = [f"chunk-{at:05}" for at in range(4)]


def columns(at: int) -> dict[str, np.ndarray]:
    return {"value": np.random.default_rng(at).normal(size=900), "row": np.arange(900)}


def start(folder: Path) -> Journal:
    return Journal.open(folder, KEY, PLAN)


def filled(folder: Path) -> Journal:
    journal = start(folder)
    for at, part in enumerate(PARTS):
        journal.write(part, columns(at))
    return journal


def work(folder: str) -> None:
    """What the processes of these tests do: what is not finished."""
    journal = start(Path(folder))
    for at, part in enumerate(PARTS):
        if part not in journal.finished():
            journal.write(part, columns(at))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(program: str, *words: object) -> str:
    """Run a program that knows this file, in a process of its own, and give what it prints."""
    begin = "import os, random, signal, sys, time\nimport pyarrow.parquet\nfrom test_journal import start, work\n"
    command = [sys.executable, "-c", begin + program, *map(str, words)]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_was_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    odd = np.array([0.0, -0.0, np.inf, np.nan, 5e-324]).view(np.int64)
    odd[3] += 7  # a NaN of its own
    given = {
        "value": odd.view(np.float64),
        "short": np.arange(5, dtype=np.float32),
        "half": np.arange(5, dtype=np.float16),
        "byte": np.arange(5, dtype=np.int8),
        "yes": np.array([True, False, True, True, False]),
    }
    journal = start(tmp_path / "a" / "b")
    journal.write("runs-00000", given)
    read = journal.read("runs-00000")
    assert list(read) == list(given)
    for name, values in given.items():
        assert read[name].dtype == values.dtype and read[name].tobytes() == values.tobytes(), name


def test_the_same_sweep_goes_on_and_its_stored_plan_counts(tmp_path: Path) -> None:
    assert start(tmp_path).finished() == set()
    first = start(tmp_path)
    first.write(PARTS[1], columns(1))
    again = Journal.open(tmp_path, dict(reversed(KEY.items())), {"chunks": 99})
    assert again.finished() == {PARTS[1]}
    assert again.plan == PLAN == first.plan and again.key == KEY


def test_a_plan_is_the_same_for_the_process_that_made_it(tmp_path: Path) -> None:
    first = Journal.open(tmp_path, KEY, {"sizes": (1, 2), "by layer": {10: 1, 9: 2}})
    again = Journal.open(tmp_path, KEY, {})
    assert first == again and first.plan == {"sizes": [1, 2], "by layer": {"10": 1, "9": 2}}


def test_the_same_columns_give_the_same_files(tmp_path: Path) -> None:
    filled(tmp_path / "a")
    filled(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert set(files(tmp_path / "a")) == {MANIFEST, *(f"{part}.parquet" for part in PARTS)}


def test_another_sweep_is_refused_and_told_apart(tmp_path: Path) -> None:
    before = (filled(tmp_path), files(tmp_path))[1]
    with pytest.raises(OutputError) as caught:
        Journal.open(tmp_path, {**KEY, "prompts": "91" * 32, "metric": "kl", "seed": "1"}, PLAN)
    text = str(caught.value)
    assert "prompts (was 90909090…, is 91919191…), metric (was logit_diff, is kl)" in text
    assert "seed (was not there, is 1)" in text and "model" not in text
    assert "another --out, or remove the folder" in text
    with pytest.raises(OutputError, match="metric \\(was logit_diff, is not there\\)"):
        Journal.open(tmp_path, {name: KEY[name] for name in ("model", "prompts")}, PLAN)
    assert files(tmp_path) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds notes\.txt and no manifest"):
        start(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"report": {"format": "interp report"}}))
    with pytest.raises(OutputError, match=r"its manifest\.json belongs to something else"):
        start(tmp_path)
    with pytest.raises(OutputError, match="is a file"):
        start(tmp_path / "notes.txt")
    with pytest.raises(OutputError, match="is a file"):
        start(tmp_path / "notes.txt" / "inner")
    assert (tmp_path / "notes.txt").read_text() == "mine" and len(files(tmp_path)) == 2


def test_every_damage_to_the_manifest_is_noticed(tmp_path: Path) -> None:
    start(tmp_path)
    whole = (tmp_path / MANIFEST).read_bytes()
    damaged = [b"", whole[:40], whole[:-20], b"\0" * len(whole), b"[]", whole.replace(b'"rows": 64', b'"rows": 65')]
    for content in damaged:
        assert content != whole
        (tmp_path / MANIFEST).write_bytes(content)
        with pytest.raises(OutputError, match=r"manifest\.json (is damaged|belongs to something else)"):
            start(tmp_path)
    (tmp_path / MANIFEST).write_bytes(whole)
    start(tmp_path)


def test_every_damage_to_a_part_is_noticed_and_mended(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    path = tmp_path / f"{PARTS[2]}.parquet"
    whole = path.read_bytes()

    def flipped(at: int) -> bytes:
        return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]

    cuts = [b"", b"PAR1", whole[:-1], whole[: len(whole) // 2], whole + b"\0", b"\0" * len(whole)]
    generator = np.random.default_rng(0)
    flips = [flipped(int(at)) for at in [0, *generator.integers(len(whole), size=60), len(whole) - 1]]
    for content in [*cuts, *flips]:
        path.write_bytes(content)
        assert journal.finished() == set(PARTS) - {PARTS[2]}
        with pytest.raises(OutputError, match=r"chunk-00002 is missing from .* or damaged; run the same again"):
            journal.read(PARTS[2])
    journal.write(PARTS[2], columns(2))
    assert path.read_bytes() == whole and journal.finished() == set(PARTS)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "dangling link", "unreadable"])
def test_what_only_has_the_name_of_a_part_is_not_there_and_is_replaced(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = filled(tmp_path)
    place = tmp_path / f"{PARTS[1]}.parquet"
    whole = place.read_bytes()
    place.unlink()
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(place.name)
    elif kind == "unreadable":
        place.write_bytes(whole)
        place.chmod(0)
        if os.access(place, os.R_OK):
            pytest.skip("root reads everything")
    else:
        place.symlink_to("/dev/null" if kind == "device" else tmp_path / "nowhere")
    found: list[set[str]] = []
    reading = threading.Thread(target=lambda: found.append(start(tmp_path).finished()), daemon=True)
    reading.start()
    reading.join(60)  # to open a pipe would wait for ever
    assert found == [set(PARTS) - {PARTS[1]}]
    with pytest.raises(OutputError, match=f"{PARTS[1]} is missing"):
        journal.read(PARTS[1])
    journal.write(PARTS[1], columns(1))
    assert place.read_bytes() == whole and not place.is_symlink()


def test_a_folder_in_the_place_of_a_part_or_a_pipe_in_that_of_the_manifest_is_refused_at_once(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    (tmp_path / f"{PARTS[1]}.parquet").unlink()
    (tmp_path / f"{PARTS[1]}.parquet").mkdir()
    with pytest.raises(
        OutputError, match=rf"{PARTS[1]}\.parquet is a folder where a file of a sweep belongs: remove it"
    ):
        journal.finished()
    (tmp_path / MANIFEST).unlink()
    os.mkfifo(tmp_path / MANIFEST)
    told: list[str] = []

    def opens() -> None:
        try:
            start(tmp_path)
        except OutputError as error:
            told.append(str(error))

    opening = threading.Thread(target=opens, daemon=True)
    opening.start()
    opening.join(60)
    assert len(told) == 1 and "not a file" in told[0] and str(tmp_path) in told[0]


def test_parts_of_another_sweep_or_name_do_not_count(tmp_path: Path) -> None:
    late = filled(tmp_path / "sweep")
    for path in (tmp_path / "sweep").iterdir():
        path.unlink()  # somebody removes the folder's content while a process still works on it
    other = Journal.open(tmp_path / "sweep", {**KEY, "metric": "kl"}, PLAN)
    late.write(PARTS[0], columns(0))
    assert other.finished() == set()
    other.write(PARTS[0], columns(0))
    (tmp_path / "sweep" / f"{PARTS[0]}.parquet").rename(tmp_path / "sweep" / f"{PARTS[1]}.parquet")
    assert other.finished() == set()


def test_what_is_no_part_is_refused(tmp_path: Path) -> None:
    journal = start(tmp_path)
    for part in ("", "chunk", "../chunk-1", "chunk-1.parquet", "Chunk-1", "chunk-1\n"):
        with pytest.raises(ConfigError, match="is not a part's name"):
            journal.write(part, columns(0))
    with pytest.raises(ConfigError, match=r"'value' is float64 \[2, 2\]; expected numbers or bools \[rows\]"):
        journal.write(PARTS[0], {"value": np.zeros((2, 2))})
    with pytest.raises(ConfigError, match="as many in every column"):
        journal.write(PARTS[0], {"value": np.zeros(2), "row": np.zeros(3)})
    with pytest.raises(ConfigError, match="'name' is object"):
        journal.write(PARTS[0], {"name": np.array(["a"], dtype=object)})
    assert set(files(tmp_path)) == {MANIFEST}


@pytest.mark.parametrize("code", FULL)
@pytest.mark.parametrize("step", ["write", "fsync"])
def test_a_full_disk_says_what_is_safe_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, step: str
) -> None:
    journal = start(tmp_path)
    journal.write(PARTS[0], columns(0))
    before = files(tmp_path)
    real: Callable[..., int] = getattr(os, step)

    def full(handle: int, *content: memoryview) -> int:
        if not content or len(content[0]) < 1000:
            raise OSError(code, os.strerror(code))
        return real(handle, content[0][:1000])  # part of it still fits

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(OutputError) as caught:
            journal.write(PARTS[1], columns(1))
        with pytest.raises(OutputError, match="cannot hold a sweep"):
            start(tmp_path / "other")
    what, then = FULL[code]
    assert str(caught.value) == (
        f"{what} while writing chunk-00001 to {tmp_path}: 1 of 4 finished chunks are kept; {then} and run the same "
        "again"
    )
    assert files(tmp_path / "other") == {}
    (tmp_path / "other").rmdir()
    assert files(tmp_path) == before
    journal.write(PARTS[1], columns(1))
    assert journal.finished() == {PARTS[0], PARTS[1]}


def test_a_real_limit_on_files_is_met_the_same_way(tmp_path: Path) -> None:
    program = """
import resource
from interp.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
try:
    work(sys.argv[1])
except OutputError as error:
    print(error)
"""
    start(tmp_path).write(PARTS[0], columns(0))
    assert f"file size limit reached while writing chunk-00001 to {tmp_path}: 1 of 4" in run(program, tmp_path)
    assert set(files(tmp_path)) == {MANIFEST, f"{PARTS[0]}.parquet"}
    assert start(tmp_path).finished() == {PARTS[0]}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    journal = filled(tmp_path)
    real = os.open

    def refuse(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(code, os.strerror(code))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match=f"{os.strerror(code)} while writing chunk-00000 to {tmp_path}: 4 of 4"):
        journal.write(PARTS[0], columns(0))
    with pytest.raises(OutputError, match=f"new cannot hold a sweep: {os.strerror(code)}; give another --out"):
        start(tmp_path / "new")
    assert start(tmp_path).finished() == set(PARTS)  # what is there can still be read


def test_ctrl_c_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = start(tmp_path)

    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        journal.write(PARTS[0], columns(0))
    assert set(files(tmp_path)) == {MANIFEST}


def test_leftovers_go_and_files_of_living_processes_stay(tmp_path: Path) -> None:
    filled(tmp_path)
    dead, living = (tmp_path / f".chunk-00009.parquet.{digit * 16}.partial" for digit in "ab")
    dead.write_bytes(b"half")
    living.write_bytes(b"half")
    with living.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert start(tmp_path).finished() == set(PARTS)
        assert living.exists() and not dead.exists()
    start(tmp_path)
    assert not living.exists()


def test_a_file_taken_for_a_leftover_before_it_was_locked_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = start(tmp_path)
    real, taken = fcntl.flock, []

    def late(handle: int, how: int) -> None:
        if not taken:
            taken.extend(tmp_path.glob("*.partial"))
            taken[0].unlink()
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    journal.write(PARTS[0], columns(0))
    assert taken and journal.finished() == {PARTS[0]} and len(files(tmp_path)) == 2


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_and_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*words: object) -> None:
        raise OSError(code, os.strerror(code))

    leftover = tmp_path / f".{MANIFEST}.{'a' * 16}.partial"
    leftover.write_bytes(b"half")
    monkeypatch.setattr(fcntl, "flock", refuse)
    if code == errno.EOPNOTSUPP:
        monkeypatch.setattr(os, "link", refuse)
    assert filled(tmp_path).finished() == set(PARTS)
    assert start(tmp_path).plan == PLAN
    assert leftover.exists()  # it cannot be known whose it is


def test_of_two_that_start_at_once_the_first_one_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link
    for other, expected in (({**KEY}, None), ({**KEY, "metric": "kl"}, "metric")):
        folder = tmp_path / str(expected)

        def slow(partial: Path, target: Path, other: dict[str, str] = other, folder: Path = folder) -> None:
            monkeypatch.setattr(os, "link", real)
            Journal.open(folder, other, {"chunks": 7}).write(PARTS[0], columns(0))
            real(partial, target)

        monkeypatch.setattr(os, "link", slow)
        if expected is None:
            assert start(folder).plan == {"chunks": 7}
        else:
            with pytest.raises(OutputError, match=expected):
                start(folder)
        assert set(files(folder)) == {MANIFEST, f"{PARTS[0]}.parquet"}


def test_killed_at_every_step_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """A process that dies at its n-th call of the system, for every n, then one that finishes."""
    program = """
def dying(folder, last):
    count = 0
    def counted(real):
        def call(*words):
            nonlocal count
            count += 1
            if count == last and real is write:
                real(words[0], words[1][:100])  # half a file
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*words)
        return call
    write = os.write
    for name in ("mkdir", "open", "write", "fsync", "link", "replace", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    work(folder)

def forked(job, *words):
    child = os.fork()
    if not child:
        try:
            job(*words)
        finally:
            os._exit(0)
    return child

root, last, left = sys.argv[1], 0, 0
while True:
    last += 1
    folder = f"{root}/{last}"
    status = os.waitpid(forked(dying, folder, last), 0)[1]
    if not os.WIFSIGNALED(status):
        break
    left += any(name.endswith(".partial") for name in os.listdir(folder)) if os.path.exists(folder) else 0
    usable = start(folder)
    assert all(len(usable.read(part)["value"]) == 900 for part in usable.finished())
    work(folder)
print(last, left)
"""
    filled(tmp_path / "whole")
    steps, left = map(int, run(program, tmp_path).split())
    assert steps > 30 and left > 10  # it was killed in the middle of files, not only between them
    for last in range(1, steps + 1):
        assert files(tmp_path / str(last)) == files(tmp_path / "whole"), last


def test_killed_at_any_moment_while_another_works_too(tmp_path: Path) -> None:
    """Two processes on one folder, one of them killed at random moments, until both are through."""
    program = """
def slowly(folder):
    write = os.write
    os.write = lambda handle, content: write(handle, content[:300])
    work(folder)

def forked(folder):
    child = os.fork()
    if not child:
        code = 1
        try:
            slowly(folder)
            code = 0
        finally:
            os._exit(code)
    return child

moments = random.Random(0)
killed = 0
for round in range(8):
    folder = f"{sys.argv[1]}/{round}"
    steady, victim = forked(folder), forked(folder)
    time.sleep(moments.uniform(0, 0.08))
    os.kill(victim, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(victim, 0)[1])
    assert os.waitpid(steady, 0)[1] == 0, "the other process was disturbed"
    work(folder)
print(killed)
"""
    filled(tmp_path / "whole")
    assert int(run(program, tmp_path)) > 0
    for number in range(8):
        assert files(tmp_path / str(number)) == files(tmp_path / "whole")
