"""Small files, and folders of files: written whole or not at all, and read only if they are regular files.

1. The content is written to a temporary file in the same folder. 2. That file is renamed to the final name and replaces
an existing file in one step. 3. Any failure becomes an `OutputError`, and no partial file is left. The temporary file
is locked while its process lives; if a process is killed, the next one that writes the same file removes what it left.
4. A pipe, a socket or a device is refused at once, because opening it could wait for ever.

The files of a folder are all written before the first one is renamed.

Results that several processes write are handled by `interp.resume.journal`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interp.errors import InterpError, OutputError

DESKTOP_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}  # written by file managers; nobody misses them
PARTIAL = re.compile(r"\..+\.[0-9a-f]{16}\.partial")


def write_whole(path: Path, content: bytes, *, what: str, make_folder: bool = False) -> None:
    """Write a file, whole or not at all; if it cannot be written, an existing file stays as it was.

    Args:
        path: the file.
        content: all its bytes.
        what: what it holds, for the message, such as "a circuit".
        make_folder: also make a missing folder; messages then name the folder.

    Raises:
        OutputError: it cannot be written.
    """
    with _told(path.parent if make_folder else path, what):
        if not path.name:
            raise IsADirectoryError(errno.EISDIR, "this is a folder, and no name of a file")
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        with partial_file(path) as (partial, handle):
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.replace(partial, path)
    with contextlib.suppress(OSError):  # a folder that cannot be listed
        remove_leftovers(path.parent, f"{path.name}.")


@contextlib.contextmanager
def whole_folder(folder: Path, *, what: str, first: str) -> Iterator[Path]:
    """A temporary folder to write files in; when the block ends, they move to `folder`.

    Args:
        folder: where the files go; it is made if it is missing, and its other files stay.
        what: what the files hold, for the message, such as "a model".
        first: the file that is moved first. Files are moved one by one; this one lets a reader check that the others
            belong to it.

    Raises:
        OutputError: the files cannot be written; nothing in the folder has changed.
    """
    with _told(folder, what):
        existed = folder.is_dir()
    staged = (folder if existed else folder.parent) / f".{folder.name}.{secrets.token_hex(8)}.partial"
    try:
        with _told(folder, what):
            staged.mkdir(parents=True)
        yield staged
        if not existed:
            os.replace(staged, folder)  # all of them in one step
            return
        for file in sorted(staged.iterdir(), key=lambda file: file.name != first):
            os.replace(file, folder / file.name)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{what} cannot be written to {str(folder)!r}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def place_of(path: str | Path, *, what: str) -> Path:
    """Where something shall be written: a path with the home folder in place of `~`, and one that can be.

    Args:
        path: what the caller gave.
        what: what is written there, for the message, such as "a lens".

    Raises:
        OutputError: a path that no file can have, such as one with a NUL, or below a file.
    """
    with _told(path, what), contextlib.suppress(FileNotFoundError):
        place = Path(os.path.expanduser(path))
        place.stat()
    return place


@contextlib.contextmanager
def _told(place: str | Path, what: str) -> Iterator[None]:
    """Refuse with the place what the system refuses: with a `ValueError` names that no file can have."""
    try:
        yield
    except OutputError:
        raise
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise OutputError(f"{what} cannot be written to {str(place)!r}: {why}") from None


def read_regular(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: it is missing, cannot be read, or is not a file but a folder, a pipe, a socket or a device.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except ValueError as error:  # a name that no file can have
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, not a file", str(path))
        return file.read()


def read_json(path: Path) -> Any:
    """The content of a JSON file in UTF-8.

    Raises:
        OSError: as `read_regular`.
        JSONDecodeError, UnicodeDecodeError: it holds something else.
    """
    try:
        return json.loads(read_regular(path).decode("utf-8"))
    except RecursionError:
        raise json.JSONDecodeError("it is nested too deeply", "", 0) from None


@contextlib.contextmanager
def partial_file(target: Path) -> Iterator[tuple[Path, int]]:
    """A new, locked temporary file beside `target`; after the block no file has the temporary name."""
    while True:
        partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
        handle = -1
        try:
            try:
                handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                _lock(handle, wait=True)
                if os.fstat(handle).st_nlink:  # 0: another process removed it as a leftover before it was locked
                    yield partial, handle
                    return
            finally:
                partial.unlink(missing_ok=True)
        finally:  # once more, in case an interrupt kept the inner block from doing it
            partial.unlink(missing_ok=True)
            if handle >= 0:
                os.close(handle)


def remove_leftovers(folder: Path, of: str = "") -> None:
    """Remove the temporary files of processes that have ended; with `of`, only those of this target."""
    for name in os.listdir(folder):
        if PARTIAL.fullmatch(name) and name.startswith(f".{of}"):
            with contextlib.suppress(OSError):
                handle = os.open(folder / name, os.O_RDWR | os.O_NONBLOCK)
                try:
                    if _lock(handle, wait=False):
                        os.unlink(folder / name)
                finally:
                    os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    """Lock a file until it is closed or its process ends; False if another process has it or the disk has no locks."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def read_saved(path: Path, form: str, *, what: str, refuse: type[InterpError]) -> dict[str, Any]:
    """The JSON object of a file that `interp` wrote, recognised by its entry "format".

    Args:
        path: the file.
        form: the expected format, such as "interp.Circuit 1".
        what: what the file should hold, for messages.
        refuse: the error to raise.

    Raises:
        InterpError: of the class `refuse`: a file that is missing or has another format.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise refuse(f"{what} cannot be read from {str(path)!r}: {error.strerror or error}") from None
    except ValueError as error:
        raise refuse(f"{str(path)!r} does not hold {what}: {error}") from None
    if not isinstance(content, dict) or content.get("format") != form:
        raise refuse(f"{str(path)!r} does not hold {what}: its format is not {form!r}")
    return content
