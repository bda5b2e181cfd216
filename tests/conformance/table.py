"""The page of all families: what holds of each, measured, and what is special about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import transformers

import interp
from interp.weights.huggingface import about

from .cell import Cell

BEGIN, END = "<!-- conformance: begin -->", "<!-- conformance: end -->"
WORDS = {"wrong": "**WRONG**", "does not apply": "—"}
Measured = Mapping[str, Mapping[str, Cell]]  # family -> check -> cell


def shown(cell: Cell, notes: dict[str, int]) -> str:
    """A cell as the table has it; what it tells becomes a note below."""
    text = f"{cell.difference:.0e}" if cell.kind == "holds" and cell.difference is not None else ""
    text = text or WORDS.get(cell.kind, cell.kind)
    return f"{text} ({notes.setdefault(cell.told, len(notes) + 1)})" if cell.told else text


def markdown(measured: Measured) -> str:
    """Two tables, a line for each family in both, and the notes of the first."""
    heads, notes = list(next(iter(measured.values()))), dict[str, int]()
    lines = [_line(["family", *heads]), "|---|" + "---:|" * len(heads)]
    lines += [_line([f"`{name}`", *(shown(cells[head], notes) for head in heads)]) for name, cells in measured.items()]
    lines += ["", *(f"{number}. {_line_of(told)}" for told, number in notes.items())] if notes else []
    lines += ["", _line(["family", "what it is", "compared with", "special"]), "|---|---|---|---|"]
    for row in about.families():
        if row["model_type"] in measured:
            names = f"`{row['model_type']}`", f"`{row['checked_against']}`"
            lines.append(_line([names[0], row["family"], names[1], row["quirks"] or "—"]))
    return "\n".join(lines)


def families_of(page: str) -> list[str]:
    """The families that the first table of a page has, in its order."""
    measured = page.partition(BEGIN)[2].partition("\n\n")[0]
    return [line.split("`")[1] for line in measured.splitlines() if line.startswith("| `")]


def into_page(page: Path, measured: Measured) -> None:
    """Write the tables anew between the marks of a page."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page} has no place for the tables: {BEGIN} ... {END}")
    made = f"interp {interp.__version__}, transformers {transformers.__version__}, torch {torch.__version__}."
    page.write_text(f"{before}{BEGIN}\n{markdown(measured)}\n\n{made}\n{END}{after}", encoding="utf-8")


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _line_of(text: str) -> str:
    return " ".join(text.split())
