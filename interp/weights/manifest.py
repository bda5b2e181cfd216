"""The checksums beside a model that `interp.save` wrote, so that a damaged file is never loaded.

`interp.json` lists every file of the model with its SHA-256. It is the first file to be moved into the folder, and
`interp.load` checks the others against it before reading them: a file that is damaged, or missing because writing was
interrupted, is refused by name.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from interp.arguments import shown
from interp.errors import WeightsError
from interp.files.foreign_files import read_json
from interp.weights.checkpoint import sha256_of
from interp.weights.files import stays_inside

FILE = "interp.json"
DIGEST = re.compile(r"[0-9a-f]{64}")


def write(folder: Path) -> None:
    """Write the manifest of all files in a folder."""
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
            raise WeightsError(f"{file} is damaged: it must hold the SHA-256 of each file, not {shown(digest)}")
    return dict(named)


def check(folder: Path) -> None:
    """Check the files of a folder against its manifest, if it has one.

    Raises:
        WeightsError: a file that is missing or was changed.
    """
    digests = files(folder)
    missing = [name for name in digests if not (folder / name).is_file()]
    if missing:
        raise WeightsError(f"{folder} is incomplete: {FILE} lists {', '.join(missing)}, which interp.save wrote")
    for name, digest in digests.items():
        actual = sha256_of(folder / name)
        if actual != digest:
            raise WeightsError(
                f"{folder / name} is not as interp.save wrote it: its SHA-256 is {actual}, but {FILE} says {digest}. "
                f"It was damaged or changed; if the change is intended, delete {FILE}"
            )
