"""Files that others wrote: JSON objects and the values in them, read so that every fault becomes one sentence.

1. A Git LFS pointer, which a clone without LFS has in place of a large file, is refused and named as what it is.
2. JSON that is damaged, nested too deeply or not an object is refused with the file's name; so is an entry of the wrong
   type.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interp.arguments import shown
from interp.errors import WeightsError
from interp.files import whole_files

LFS = b"version https://git-lfs.github.com/spec/"
KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "an integer"}


def refuse_pointer(file: Path) -> None:
    """Refuse a file whose content was left in Git LFS.

    Raises:
        WeightsError: the file is a pointer, or cannot be read.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(len(LFS))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if start == LFS:
        raise WeightsError(
            f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder, or download the file"
        )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        WeightsError: there is no such file, or it holds something else.
    """
    refuse_pointer(file)
    try:
        content = whole_files.read_json(file)
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise WeightsError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} must hold a JSON object, not {type(content).__name__}")
    return content


def entry(content: dict[str, Any], name: str, *kinds: type, file: Path) -> Any:
    """An entry of a JSON object, None where it is missing.

    Raises:
        WeightsError: its type is not one of `kinds`.
    """
    value = content.get(name)
    if value is None or type(value) in kinds:  # not isinstance: true is not an integer
        return value
    raise WeightsError(f"{file}: {name} must be {' or '.join(KINDS[kind] for kind in kinds)}, not {shown(value)}")
