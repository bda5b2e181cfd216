"""A table on stdout: as JSON or CSV, or as aligned columns with invisible characters named."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from interp.errors import PromptError
from interp.text.characters import columns, isolated, visible

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 40


def show(frame: pd.DataFrame, *, as_json: bool = False, as_csv: bool = False, most: int | None = MAX_ROWS) -> None:
    """Print a table to stdout: JSON lines, CSV, or aligned columns.

    Args:
        frame: the table.
        as_json: JSON lines.
        as_csv: CSV.
        most: aligned columns have at most this many rows: those in the middle are left out, and a line says so. None
            prints all.
    """
    one_form(as_json, as_csv)
    if as_json:
        click.echo(frame.to_json(orient="records", lines=True, force_ascii=False), nl=False)
    elif as_csv:
        click.echo(frame.to_csv(index=False), nl=False, color=True)  # otherwise click removes escape sequences
    else:
        series = [frame.iloc[:, at] for at in range(frame.shape[1])]
        cells = [
            [None if missing else value for value, missing in zip(one.tolist(), one.isna(), strict=True)]
            for one in series
        ]
        _show_columns(list(map(str, frame.columns)), cells, most)


def show_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool = False, as_csv: bool = False) -> None:
    """`show` for a few rows that are not a DataFrame, because importing pandas would take longer than all the rest."""
    one_form(as_json, as_csv)
    heads = list(rows[0])
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))
    elif as_csv:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([heads, *(row.values() for row in rows)])
        click.echo(text.getvalue(), nl=False, color=True)
    else:
        _show_columns(heads, [[row[head] for row in rows] for head in heads], None)


def one_form(as_json: bool, as_csv: bool) -> None:
    """Refuse JSON and CSV together.

    Raises:
        PromptError: both were requested.
    """
    if as_json and as_csv:
        raise PromptError("--json and --csv were both given: choose one")


def _show_columns(heads: Sequence[str], cells: Sequence[Sequence[Any]], most: int | None) -> None:
    """Print columns of values: numbers at the right, text at the left, with invisible characters named."""
    texts = [[visible(head), *map(_cell, column)] for head, column in zip(heads, cells, strict=True)]
    wide = [max(map(columns, column)) for column in texts]
    left = [any(isinstance(value, str) for value in column) for column in cells]
    lines = []
    for row in zip(*texts, strict=True):
        padded = []
        for text, width, is_left in zip(row, wide, left, strict=True):
            blank = " " * (width - columns(text))
            padded.append(isolated(text) + blank if is_left else blank + text)
        lines.append("  ".join(padded).rstrip())
    total = len(lines) - 1
    if most is not None and total > most:
        omitted = f"{total - most:,} of {total:,} rows left out"
        lines[1 + most // 2 : total + 1 - (most - most // 2)] = [f"... {omitted} here ..."]
        click.echo("\n".join(lines))
        click.echo(f"{omitted} in the middle: --csv prints every measurement", err=True)
    else:
        click.echo("\n".join(lines))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else visible(str(value))
