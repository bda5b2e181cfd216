"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from interp.errors import OutputError
from interp.files.whole_files import partial_file, place_of, read_json, read_regular, whole_folder, write_whole


def test_a_file_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    for content in (b"first\r\n", b"second\n"):
        write_whole(path, content, what="a thing")
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_what_goes_wrong_leaves_the_earlier_file_and_no_part_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "one.json"
    write_whole(path, b"first", what="a thing")

    def fails(partial: Path, target: Path) -> None:
        assert partial.read_bytes() == b"second" and target == path
        raise error

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        write_whole(path, b"second", what="a thing")
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_made_only_where_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "one.json"
    with pytest.raises(OutputError, match=r"a thing cannot be written to '.*one\.json': No such file"):
        write_whole(path, b"", what="a thing")
    assert not list(tmp_path.iterdir())
    write_whole(path, b"here", what="a thing", make_folder=True)
    assert path.read_bytes() == b"here"
    with pytest.raises(OutputError, match=r"a thing cannot be written to '.*one\.json'"):  # a file, and no folder
        write_whole(path / "below.json", b"", what="a thing", make_folder=True)
    assert path.read_bytes() == b"here"


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    left, others = tmp_path / f".one.json.{'0' * 16}.partial", tmp_path / f".two.json.{'0' * 16}.partial"
    left.write_bytes(b"half")
    others.write_bytes(b"half")
    with partial_file(tmp_path / "one.json") as (busy, _):
        write_whole(tmp_path / "one.json", b"whole", what="a thing")
        assert set(tmp_path.iterdir()) == {tmp_path / "one.json", busy, others}
    assert set(tmp_path.iterdir()) == {tmp_path / "one.json", others}


@pytest.mark.parametrize("read", [read_regular, read_json])
def test_only_files_are_read(tmp_path: Path, read: Callable[[Path], object]) -> None:
    (tmp_path / "one.json").write_bytes(b'{"a": 1}')
    assert read(tmp_path / "one.json") in (b'{"a": 1}', {"a": 1})
    os.mkfifo(tmp_path / "pipe")
    handle = os.open(tmp_path / "pipe", os.O_RDWR)  # so that nobody has to wait for the other end
    os.write(handle, b'{"a": 1}')
    for name in ("pipe", ".", "missing"):
        with pytest.raises(OSError):
            read(tmp_path / name)
    os.close(handle)


def test_json_that_is_none_or_too_deep_is_a_decoding_error(tmp_path: Path) -> None:
    for content in (b"", b"{", b"[" * 100_000):
        (tmp_path / "one.json").write_bytes(content)
        with pytest.raises(json.JSONDecodeError):
            read_json(tmp_path / "one.json")


def write_folder(path: Path) -> None:
    with whole_folder(path, what="a thing", first="one") as staged:
        (staged / "one").write_text("x")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "file/one", "file/folder/one"])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_whole(path, b"x", what="a thing"),
        lambda path: write_whole(path / "one", b"x", what="a thing", make_folder=True),
        write_folder,
        lambda path: place_of(path, what="a thing"),
    ],
)
def test_a_path_that_no_file_can_have_is_refused_by_name(
    tmp_path: Path, name: str, write: Callable[[Path], object]
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="a thing cannot be written to '"):
        write(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_file_needs_a_name(name: str) -> None:
    with pytest.raises(OutputError, match=r"a thing cannot be written to '.+': this is a folder"):
        write_whole(Path(name), b"x", what="a thing")


@pytest.mark.parametrize("read", [read_regular, read_json])
def test_a_name_that_no_file_can_have_is_an_error_of_the_system(read: Callable[[Path], object]) -> None:
    with pytest.raises(OSError, match="null byte"):
        read(Path("a\0b"))
