"""The checksums beside a model that `interp.save` wrote, so that no changed bit of it is ever taken for a weight.

`interp.json` names every file of the model with its SHA-256. It is the first of them to take its place, and
`interp.load` holds the files against it before it reads them: what was damaged later, or only half written, is refused
by its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from interp.arguments import shown
from interp.errors import WeightsError
from interp.files.foreign_files import read_json
from interp.weights.checkpoint import sha256_of
from interp.weights.files import stays_inside

FILE = "interp.json"
DIGEST = re.compile(r"[0-9a-f]{64}")


def write(folder: Path) -> None:
    """Name every file that is in a folder."""
    names = sorted(file.name for file in folder.iterdir() if file.name != FILE)
    content = {"format": "interp model", "sha256": {name: sha256_of(folder / name) for name in names}}
    (folder / FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def files(folder: Path) -> dict[str, str]:
    """The digest of every file that the manifest of a folder names; {} where there is none.

    Raises:
        WeightsError: a manifest that is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return {}
    digests = read_json(file).get("sha256")
    named = digests.items() if isinstance(digests, dict) else [("sha256", digests)]
    for name, digest in named:
        if not (stays_inside(name) and isinstance(digest, str) and DIGEST.fullmatch(digest)):
            raise WeightsError(
                f"{file} is damaged: it must give a SHA-256 for the name of each file, not {shown(digest)}"
            )
    return dict(named)


def check(folder: Path) -> None:
    """Hold the files of a folder against its manifest, if it has one.

    Raises:
        WeightsError: a file that is missing or not as it was saved.
    """
    digests = files(folder)
    lost = [name for name in digests if not (folder / name).is_file()]
    if lost:
        raise WeightsError(f"{folder} lacks {_named(lost)}: by its {FILE}, interp.save wrote more than is there")
    for name, digest in digests.items():
        found = sha256_of(folder / name)
        if found != digest:
            raise WeightsError(
                f"{folder / name} is not as interp.save wrote it: its SHA-256 is {found}, and {FILE} says {digest}. It "
                f"is damaged, or was changed since; if the change is meant, delete {FILE}"
            )


def _named(names: Iterable[str]) -> str:
    return ", ".join(names)
