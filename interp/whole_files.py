"""A small file that is written whole or not at all, whatever happens on the way.

1. The content goes to a file of another name in the same folder. 2. That file takes the name that was asked for, in
place of what had it, in one step. 3. What goes wrong is an `OutputError`, and no part of a file is left.

Results that several processes write are the business of `interp.journal`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from interp.errors import OutputError


def write_whole(path: Path, content: bytes, *, what: str, make_folder: bool = False) -> None:
    """Write a file, whole or not at all; what stood there stays where it cannot be written.

    Args:
        path: the file.
        content: all of it.
        what: what it holds, for the message, such as "a circuit".
        make_folder: make the folder too, where it is missing; the folder is then what a message names.

    Raises:
        OutputError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        place = str(path.parent if make_folder else path)
        raise OutputError(f"{what} cannot be written to {place!r}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):  # it is gone when all went well
            partial.unlink()
