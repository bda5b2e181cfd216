"""A table on stdout: data as they are, or columns for the eye, in which everything can be seen."""

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

MOST_ROWS = 40


def show(frame: pd.DataFrame, *, as_json: bool = False, as_csv: bool = False, most: int | None = MOST_ROWS) -> None:
    """Print a table to stdout: JSON lines, CSV, or columns for the eye.

    Args:
        frame: the table.
        as_json: JSON lines.
        as_csv: CSV.
        most: of more rows than this, those in the middle are left out for the eye, with a word; None prints all.
    """
    one_form(as_json, as_csv)
    if as_json:
        click.echo(frame.to_json(orient="records", lines=True, force_ascii=False), nl=False)
    elif as_csv:
        click.echo(frame.to_csv(index=False), nl=False, color=True)  # click takes escape sequences out otherwise
    else:
        series = [frame.iloc[:, at] for at in range(frame.shape[1])]
        cells = [
            [None if missing else value for value, missing in zip(one.tolist(), one.isna(), strict=True)]
            for one in series
        ]
        _show_columns(list(map(str, frame.columns)), cells, most)


def show_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool = False, as_csv: bool = False) -> None:
    """`show` for a few rows that are no DataFrame, whose import takes longer than all else."""
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
    """Refuse both forms of data at once.

    Raises:
        PromptError: both are asked for.
    """
    if as_json and as_csv:
        raise PromptError("choose one of --json and --csv")


def _show_columns(heads: Sequence[str], cells: Sequence[Sequence[Any]], most: int | None) -> None:
    """Columns of values as lines: numbers at the right, text at the left with what cannot be seen named."""
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
        gone = f"{total - most:,} of {total:,} rows left out here"
        lines[1 + most // 2 : total + 1 - (most - most // 2)] = [f"... {gone} ..."]
        click.echo("\n".join(lines))
        click.echo(f"{gone.removesuffix(' here')} in the middle: --csv prints every measurement", err=True)
    else:
        click.echo("\n".join(lines))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else visible(str(value))
