"""A report's folder: replaced as a whole, or left as it was.

1. `check_output` refuses, before anything is computed, a place that cannot be written or that holds files of others.
2. `replacing` gives a temporary folder next to it to write into.
3. When everything is written, the new folder takes the old one's place by renaming; on any failure the temporary folder
   is deleted.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from interp.errors import InterpError, OutputError
from interp.files.whole_files import DESKTOP_FILES, read_json

MANIFEST = "manifest.json"
FORMAT = "interp report"


def check_output(out: str | Path) -> Path:
    """The absolute path of a folder that a report may be written to; the check leaves no files.

    The folder may be missing, empty, or hold an earlier report and nothing else.

    Raises:
        OutputError: it is a file, holds other files, or its parent cannot be written.
    """
    try:
        folder = Path(os.path.expanduser(out)).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, no such user, links in a circle
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{str(out)!r} cannot be the name of a folder: {reason}") from None
    if folder == Path.cwd():
        raise OutputError(f"{out} is the current folder, which a report cannot replace; name a folder inside it")
    try:
        parent = next(path for path in folder.parents if path.exists())
    except OSError as error:
        raise OutputError(f"{str(out)!r} cannot be the name of a folder: {error.strerror or error}") from None
    if not parent.is_dir():
        raise OutputError(f"{out} cannot be a report folder: {parent} is a file")
    try:
        if folder.exists():
            _check_ours(folder, out)
        probe = _sibling(parent / folder.name)
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        if isinstance(error, InterpError):
            raise
        raise OutputError(f"{out} cannot be written: {error.strerror or error} ({parent})") from error
    return folder


@contextmanager
def replacing(out: str | Path) -> Iterator[Path]:
    """A new folder to write a report into, which replaces `out` when the `with` block ends without an error.

    If it ends with an error or Ctrl-C, an earlier report stays as it was.

    Raises:
        OutputError: as `check_output`, or a file cannot be written.
    """
    folder = check_output(out)
    fresh, old = _sibling(folder), _sibling(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
        yield fresh
        check_output(out)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    except BaseException as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, InterpError):
            raise OutputError(f"the report {out} could not be written: {error.strerror or error}") from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sibling(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")


def _check_ours(folder: Path, out: str | Path) -> None:
    """Refuse a folder that contains any file that no earlier report wrote."""
    if not folder.is_dir():
        raise OutputError(f"{out} is a file; a report needs a folder")
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    names = {path.relative_to(folder).as_posix() for path in files if path.name not in DESKTOP_FILES}
    if foreign := sorted(names - _written(folder)):
        what = foreign[0] if len(foreign) == 1 else f"{foreign[0]} and {len(foreign) - 1} more"
        raise OutputError(
            f"{out} is not replaced, because it contains {what}, which no report wrote; name a new or an empty folder"
        )


def _written(folder: Path) -> set[str]:
    """The files that the report in this folder lists in its manifest; none if there is no manifest of a report."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        report = read_json(folder / MANIFEST)["report"]
        if report["format"] == FORMAT:
            return {MANIFEST, *report["files"]}
    return set()
