"""Run the campaign: `python -m tests.campaign --help`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

# Name of a part, the share of the time that it may take, and what it asks.
PARTS = {
    "files": (0.3, "damaged files of models"),
    "saved": (0.1, "damaged files that interp itself wrote"),
    "kills": (0.1, "processes killed while they write"),
    "workers": (0.1, "workers of a Ray cluster killed"),
    "interrupts": (0.15, "interrupts, and hooks that raise"),
    "calls": (0.15, "wrong arguments in Python"),
    "commands": (0.1, "wrong arguments on the command line"),
}


def main() -> int:
    """Run what was asked for; 1 where a goal is missed."""
    asked = _arguments()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "agg"}
    home = Path(tempfile.mkdtemp(prefix="interp-campaign-"))
    tempfile.tempdir = str(home)
    try:
        return _campaign(asked, home)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _campaign(asked: argparse.Namespace, home: Path) -> int:
    import torch

    torch.set_num_threads(1)
    from . import table
    from .trial import KINDS, Limits, attempt

    begun, counted, seconds = time.monotonic(), table.Counts(), dict[str, float]()
    names = asked.only or list(PARTS)
    share = sum(PARTS[name][0] for name in names)
    for name in names:
        part: Any = import_module(f".{name}", __package__)
        place = home / name
        place.mkdir()
        part.prepare(place)
        started = time.monotonic()
        until = float("inf") if asked.case is not None else started + 60 * asked.minutes * PARTS[name][0] / share

        def case(number: int, part: Any = part) -> Any:
            return part.case(asked.seed, number)

        options = {"jobs": getattr(part, "JOBS", asked.jobs), "together": getattr(part, "TOGETHER", 1)}
        options |= {"until": until, "limits": getattr(part, "LIMITS", Limits())}
        for ended in attempt(_numbers(asked, name, part.count()), case, **options):
            counted.add(name, ended)
            if not KINDS[ended.outcome.kind] or asked.case is not None:
                table.show(name, ended, asked.seed)
        seconds[name] = time.monotonic() - started
    print(f"{sum(seconds.values()):.0f} s of trying, {time.monotonic() - begun:.0f} s in all\n", file=sys.stderr)
    print(table.markdown(counted, seconds, PARTS))
    if asked.out is not None:
        table.write(asked.out, counted, seconds, PARTS, asked.seed)
    if asked.page is not None:
        table.into_page(asked.page, counted, seconds, PARTS, asked.seed)
    return 0 if counted.goals_met() else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=sys.modules[__package__].__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; repeat for several")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=12, help="for all parts together, after their preparation")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cases at a time")
    parser.add_argument("--case", type=int, action="append", help="one case, by its number; needs one --only")
    parser.add_argument("--out", type=Path, help="folder for outcomes.csv, table.csv and table.md")
    parser.add_argument("--page", type=Path, help="a page whose table is written anew")
    asked = parser.parse_args()
    if asked.case is not None and len(asked.only or ()) != 1:
        parser.error("--case belongs to one part: give --only")
    return asked


def _numbers(asked: argparse.Namespace, name: str, count: int) -> Iterator[int]:
    """The cases in the order in which they are tried: drawn, so that any part of them is a fair one."""
    if asked.case is not None:
        return iter(asked.case)
    numbers = list(range(count))
    Random(f"order {name} {asked.seed}").shuffle(numbers)
    return iter(numbers)


if __name__ == "__main__":
    sys.exit(main())
