"""Run the notebooks of docs/notebooks and keep what they show: `python -m tests.notebooks` (make notebooks)."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
CELL_TIMEOUT = 300  # seconds


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def execute(notebook: Any, folder: Path) -> Any:
    """A notebook with its outputs, run in a kernel of its own, away from the repository and without a network."""
    options = {"timeout": CELL_TIMEOUT, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    client = NotebookClient(notebook, resources={"metadata": {"path": folder}}, **options)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    client.execute(env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"})
    return notebook


def main() -> None:
    """Run each notebook, or those that are named, and write it back with its outputs."""
    for path in NOTEBOOKS:
        if len(sys.argv) > 1 and path.stem not in sys.argv[1:]:
            continue
        notebook = read(path)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, Path(folder))
        notebook.metadata = {name: notebook.metadata[name] for name in ("kernelspec",)}
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
