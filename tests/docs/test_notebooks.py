from __future__ import annotations

import copy
import functools
import itertools
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.notebooks import NOTEBOOKS, ROOT, execute, read

ABSOLUTE_PATH = re.compile(r"""(?:^|[\s"'(=])(?:/(?:home|root|Users|work|tmp|mnt|opt|usr|var|etc)/|~/|[A-Za-z]:\\)""")
LARGEST = 1_500_000  # bytes of a file
NAMES = ["own_model_and_data", "patching_to_circuit", "probe_a_head"]

# Run after the notebook's own cells: what its text speaks of, as one line of JSON.
SHOWN = {
    "probe_a_head": """
import json

losses = loss.tolist()
print(json.dumps({
    "first": min(min(row[: half - 1]) for row in losses), "rise": rise.set_index("head")["value"].to_dict(),
    "means": [sum(row[at] for row in losses) / len(losses) for at in range(len(losses[0]))],
    "effect": effects.set_index("head")["value"].to_dict(), "low": effects.set_index("head")["ci_low"].to_dict(),
    "best": {kind: ["L{}H{}".format(*at) for at in heads] for kind, heads in best.items()},
    "by_role": by_role.set_index("role")["value"].to_dict(), "patched": f"L{layer}H{head}",
    "looks": [float(patterns.query(f"layer == {at}")["value"].max()) for at, _ in chosen],
    "differences": [float(before.mean()), float(after.mean())],
}))
""",
    "patching_to_circuit": """
import json

print(json.dumps({
    "where": [[row.layer, row.role, row.value] for row in where.itertuples()],
    "heads": {row.head: row.value for row in strongest.itertuples()},
    "low": effects["value"].min(), "small": float((effects["value"].abs() < 0.05).mean()),
    "at_roles": [[row.head, row.role, row.value] for row in at_roles.itertuples()],
    "edges": [one.n_edges for one in found], "all": found[0].graph.n_edges,
}))
""",
    "own_model_and_data": """
import json

print(json.dumps({
    "difference": float(difference.max()), "n": len(pairs),
    "where": [[row.layer, row.role, row.value] for row in where.itertuples()],
}))
""",
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@functools.cache
def executed(name: str, folder: Path) -> Any:
    """A notebook run anew, with a last cell that says what its text speaks of."""
    notebook = copy.deepcopy(read(ROOT / "docs" / "notebooks" / f"{name}.ipynb"))
    notebook.cells.append(nbformat.v4.new_code_cell(SHOWN[name]))
    return execute(notebook, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def text(notebook: Any) -> str:
    """All that a notebook printed, its tables included."""
    shown = (output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs(notebook))
    return "\n".join(shown)


def test_there_are_three_tutorials() -> None:
    assert [path.stem for path in NOTEBOOKS] == NAMES == sorted(SHOWN)


@each_notebook
def test_a_notebook_is_stored_with_what_it_shows(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert set(notebook.metadata) == {"kernelspec", "language_info"} and notebook.metadata.kernelspec.name == "python3"
    assert path.stat().st_size < LARGEST
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run `make notebooks`"
    assert all(not cell.metadata and not ABSOLUTE_PATH.search(cell.source) for cell in code)
    assert not ABSOLUTE_PATH.search(text(notebook))
    kinds = {kind for output in outputs(notebook) for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds <= {"image/png", "text/html", "text/plain"}
    assert {output.output_type for output in outputs(notebook)} <= {"stream", "execute_result"}
    assert all(output.get("name") != "stderr" for output in outputs(notebook))


@each_notebook
def test_every_code_cell_is_introduced(path: Path) -> None:
    cells = read(path).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    for before, cell in itertools.pairwise(cells):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown" and len(before.source) > 15, cell.source


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs_quietly_and_leaves_nothing(path: Path, folder: Path) -> None:
    notebook = executed(path.stem, folder)
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert not [output.text for output in outputs(notebook) if output.get("name") == "stderr"]
    figures = [output.data["image/png"] for output in outputs(notebook) if "image/png" in output.get("data", {})]
    assert figures and min(map(len, figures)) > 10_000
    assert not list(folder.iterdir()), "a notebook leaves no files behind"


def told(name: str, folder: Path) -> Any:
    return json.loads(text(executed(name, folder)).strip().splitlines()[-1])


@pytest.mark.slow
def test_probe_a_head_shows_what_it_says(folder: Path) -> None:
    shown = told("probe_a_head", folder)
    assert "Rank: 0" in text(executed("probe_a_head", folder))
    assert min(shown["looks"]) > 0.8
    means = shown["means"]
    assert min(means[:24]) > 10 and max(means[30:]) < 6  # nothing foretells the first copy; the second is foretold
    best = shown["best"]
    assert len({head.split("H")[0] for head in best["induction"]}) <= len(best["induction"]) - 2  # several in one layer
    rise = shown["rise"]
    control, induction, previous = (
        next(value for head, value in rise.items() if f"({kind})" in head)
        for kind in ("control", "induction", "previous token")
    )
    assert abs(control) < 0.1 and induction > 1 and previous == max(rise.values())
    patched, effect = shown["patched"], shown["effect"]
    assert 0.1 < effect[patched] < 0.6 and shown["low"][patched] > 0.05
    assert sum(abs(value) < 0.05 for value in effect.values()) >= 3  # good at induction, and no part in this
    assert shown["by_role"]["S2"] == pytest.approx(effect[patched], abs=1e-3)
    assert all(abs(value) < 0.01 for role, value in shown["by_role"].items() if role != "S2")
    before, after = shown["differences"]
    assert before < 0 and after > before


@pytest.mark.slow
def test_patching_to_circuit_shows_what_it_says(folder: Path) -> None:
    shown = told("patching_to_circuit", folder)
    where = {(layer, role): value for layer, role, value in shown["where"]}
    assert where[0, "S2"] == pytest.approx(1, abs=0.01) and where[29, "END"] > 0.8 and abs(where[29, "S2"]) < 0.1
    assert shown["small"] > 0.9 and shown["low"] < -0.1
    roles = {(head, role): value for head, role, value in shown["at_roles"]}
    for head, value in shown["heads"].items():
        place = "S2" if head.startswith("L17") else "END"
        assert abs(roles[head, place]) > 0.8 * abs(value), head
    assert any(head.startswith("L17") for head in shown["heads"])
    assert shown["edges"][0] <= 100 and 0.005 < shown["edges"][2] / shown["all"] < 0.02  # "about one edge in a hundred"


@pytest.mark.slow
def test_own_model_and_data_shows_what_it_says(folder: Path) -> None:
    shown = told("own_model_and_data", folder)
    printed = text(executed("own_model_and_data", folder))
    assert shown["n"] == 6 and "Rank: 0" in printed and "the same weights, the same logits: True" in printed
    assert float(re.search(r"differ by at most (\S+)", printed)[1]) < 1e-5  # type: ignore[index]
    assert all(float(one) > 0 for one in re.findall(r"^clean +(.*)$", printed, re.MULTILINE)[0].split())
    assert all(float(one) < 0 for one in re.findall(r"^corrupt +(.*)$", printed, re.MULTILINE)[0].split())
    where = {(layer, role): value for layer, role, value in shown["where"]}
    assert where[0, "COUNTRY"] == pytest.approx(1, abs=0.01) and where[29, "END"] > 0.5
    assert abs(where[29, "COUNTRY"]) < 0.1 and abs(where[0, "END"]) < 0.1
