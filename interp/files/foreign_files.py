"""Files that others wrote: a JSON object and the values in it, read so that whatever is wrong is one sentence.

1. A Git LFS pointer, which stands where a clone without LFS has no content, is told from the file that it stands for.
2. JSON that is damaged, nested without end or no object is refused with the file's name; so is an entry of another kind
   than expected.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interp.errors import WeightsError
from interp.files import whole_files

LFS = b"version https://git-lfs.github.com/spec/"
KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a whole number"}


def refuse_pointer(file: Path) -> None:
    """Refuse a file whose content was left in Git LFS.

    Raises:
        WeightsError: it is a pointer, or cannot be read.
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
        raise WeightsError(f"{file} is no JSON that can be read: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} must hold a JSON object, not {type(content).__name__}")
    return content


def entry(content: dict[str, Any], name: str, *kinds: type, file: Path) -> Any:
    """An entry of a JSON object, None where there is none.

    Raises:
        WeightsError: it is of none of `kinds`.
    """
    value = content.get(name)
    if value is None or type(value) in kinds:  # JSON has no subclasses, and true is no whole number
        return value
    raise WeightsError(f"{file}: {name} must be {' or '.join(KINDS[kind] for kind in kinds)}, not {shown(value)}")


def shown(value: object) -> str:
    """A value as a message shows it, cut where it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a whole number of too many digits
        text = f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= 80 else text[:77] + "..."
