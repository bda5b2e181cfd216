from __future__ import annotations

import functools
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
CELL_TIMEOUT = 300  # seconds
ABSOLUTE_PATH = re.compile(r"""(?:^|[\s"'(=])(?:/(?:home|root|Users|work|tmp|mnt|opt|usr|var|etc)/|~/|[A-Za-z]:\\)""")

# Run after the notebook's own cells: what its figures show, as one line of JSON.
SHOWN = {
    "probe_heads": """
import json

print(json.dumps({
    "loss": table.set_index("run")["value"].to_dict(),
    "first_copy": [float(losses[run][:, : half - 1].mean()) for run in losses],
    "effect": effects.set_index("head")["value"].to_dict(),
    "low": effects.set_index("head")["ci_low"].to_dict(),
    "by_role": by_role.set_index("role")["value"].to_dict(),
    "patched": f"L{layer}H{head}",
    "direct": {run: part.tolist() for run, part in parts.items()},
}))
""",
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


@functools.cache
def executed(path: Path, folder: Path) -> Any:
    """The notebook with its outputs, run in a kernel of its own, away from the repository and without a network."""
    notebook = read(path)
    if path.stem in SHOWN:
        notebook.cells.append(nbformat.v4.new_code_cell(SHOWN[path.stem]))
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    client.execute(env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"})
    return notebook


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def text(notebook: Any) -> str:
    """All that a notebook printed, its tables included."""
    shown = (output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs(notebook))
    return "\n".join(shown)


def test_there_are_notebooks() -> None:
    assert "probe_heads" in [path.stem for path in NOTEBOOKS]


@each_notebook
def test_a_notebook_is_stored_clean(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        assert not ABSOLUTE_PATH.search(cell.source), cell.source
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None and not cell.metadata, cell.source


@each_notebook
def test_every_code_cell_is_introduced(path: Path) -> None:
    cells = read(path).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    for before, cell in itertools.pairwise(cells):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown" and len(before.source) > 40, cell.source


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs_quietly(path: Path, folder: Path) -> None:
    notebook = executed(path, folder)
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert not [output.text for output in outputs(notebook) if output.get("name") == "stderr"]
    assert not list(folder.iterdir()), "a notebook leaves no files behind"


@pytest.mark.slow
def test_probe_heads_shows_what_it_says(folder: Path) -> None:
    notebook = executed(ROOT / "docs" / "notebooks" / "probe_heads.ipynb", folder)
    figures = [output.data["image/png"] for output in outputs(notebook) if "image/png" in output.get("data", {})]
    assert len(figures) == 8 and min(map(len, figures)) > 10_000

    printed = text(notebook)
    assert re.search(r"0 +Mary +0\.9", printed)  # the model's first answer, with its probability
    table = re.search(r"induction previous token\n0 +(L\d+H\d+) (0\.\d+) +(L\d+H\d+) (0\.\d+)\n1 +(L\d+H\d+)", printed)
    assert table and float(table[2]) > 0.8 and float(table[4]) > 0.8
    induction, previous, second = table[1], table[3], table[5]
    assert {"L17H3", "L17H4", "L17H5"} < set(re.findall(r"L\d+H\d+", printed))  # "neighbours in one layer"

    shown = json.loads(printed.strip().splitlines()[-1])
    loss, (_, control, *_) = shown["loss"], list(shown["loss"])
    assert control.endswith("(control)")
    rise = {run: loss[run] - loss["all heads"] for run in loss}
    assert abs(rise[control]) < 0.1
    assert rise[f"without {induction} (induction)"] > 1
    assert max(rise, key=lambda run: rise[run]) == f"without {previous} (previous token)"
    assert min(shown["first_copy"]) > 10 and max(loss.values()) < 10  # nothing can foretell the first copy

    patched = shown["patched"]
    assert patched == "L17H4" == second  # the third head of the first figure, and second in the table
    assert shown["effect"][patched] > 0.2 and shown["low"][patched] > 0.1
    assert all(abs(shown["effect"][head]) < 0.05 for head in (induction, "L17H3", "L17H5"))
    assert shown["by_role"]["S2"] == pytest.approx(shown["effect"][patched], abs=1e-3)
    assert all(abs(effect) < 1e-3 for role, effect in shown["by_role"].items() if role != "S2")

    clean, change = shown["direct"]["clean run"], shown["direct"]["change by patching L17H4"]
    assert abs(clean[17][4]) < 0.05 and abs(change[17][4]) < 0.05
    assert max(abs(part) for layer in change[18:] for part in layer) > 1
    # Layers before the patch write the same as before; only the final norm's scale, which all parts share, has changed.
    assert max(abs(part) for layer in change[:17] for part in layer) < 0.05
    assert clean[24][4] < -0.3 and change[24][4] < -0.3  # the fourth head of the first figure writes against the answer
