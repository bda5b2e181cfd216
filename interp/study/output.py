"""What a study leaves in a folder: its figure with its numbers, and how they were made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure


def save_study(
    out: Path, name: str, drawn: Mapping[str, Figure], frame: pd.DataFrame, record: Mapping[str, Any]
) -> list[Path]:
    """Write each figure (PDF, SVG, PNG), every measurement (CSV) and `<name>.manifest.json`; the paths.

    Args:
        out: the folder.
        name: the study.
        drawn: figures by the names of their files.
        frame: every measurement.
        record: how it was made.

    Raises:
        OutputError: the folder cannot be written to.
    """
    from interp.figures.style import save

    check_folder(out)
    paths = [path for stem, figure in drawn.items() for path in save(figure, frame, out / stem)]
    manifest = out / f"{name}.manifest.json"
    try:
        manifest.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {str(manifest)!r}: {error.strerror or error}") from error
    return [*paths, manifest]


def check_folder(out: Path) -> None:
    """Make a folder, and refuse one that cannot be written to.

    Raises:
        OutputError: it cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:  # a ValueError is of a path with a NUL
        told = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write to the folder {str(out)!r}: {told}") from error
