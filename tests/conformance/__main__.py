"""Measure conformance: `python -m tests.conformance --help`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from interp.weights.huggingface.families import FAMILIES

from . import gradients, parity, runs, sites, table
from .cell import Cell, measured, worst
from .subject import Subject, configurations

CHECKS = parity.CHECKS | sites.CHECKS | runs.CHECKS | gradients.CHECKS


def main() -> int:
    """Run what was asked for; 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=sys.modules[__package__].__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", action="append", choices=FAMILIES, help="this family; repeat for several")
    parser.add_argument("--check", action="append", choices=CHECKS, help="this check; repeat for several")
    parser.add_argument("--page", type=Path, help="a page whose tables are written anew; needs every family and check")
    asked = parser.parse_args()
    if asked.page is not None and (asked.only or asked.check):
        parser.error("--page is made of every family and every check")
    torch.set_num_threads(1)
    found = {name: _family(name, asked.check or list(CHECKS)) for name in asked.only or FAMILIES}
    if asked.page is not None:
        table.into_page(asked.page, found)
    return int(any(cell.kind == "wrong" for cells in found.values() for cell in cells.values()))


def _family(name: str, checks: list[str]) -> dict[str, Cell]:
    """What comes of a family's configurations, told on stderr one by one."""
    by_check: dict[str, list[Cell]] = {check: [] for check in checks}
    for case, options in configurations(name).items():
        subject = Subject.of(name, options)
        for check, cells in by_check.items():
            cells.append(cell := measured(CHECKS[check], subject))
            said = "" if cell.difference is None else f"{cell.difference:.1e}"
            print(f"{case:32} {check:14} {cell.kind:14} {said:8} {cell.told}", file=sys.stderr, flush=True)
    return {check: worst(cells) for check, cells in by_check.items()}


if __name__ == "__main__":
    sys.exit(main())
