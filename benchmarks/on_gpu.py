"""What `on_gpu.sh` runs: the parts in turn, each in its share of the time; one table, on stdout and as JSON.

1. `tests`: the numerical part of the tests with the models on the device.
2. `checks`: sweeps against full forwards in several number types; the scans of Mamba in every form against a loop
   (`gpu_checks.py`).
3. `sweeps`: whole sweeps at published sizes against a loop of full forwards (`gpu_sweeps.py`).

A part that fails makes a row with its error, and the rest goes on. What no time was left for is a row, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import einops  # noqa: F401
    import numpy as np
    import torch
except ImportError as error:
    print(f"on_gpu: {error.name} is missing and could not be installed: nothing can be run", file=sys.stderr)
    sys.exit(2)

Result = dict[str, Any]


class TimeIsUp(Exception):
    """The share of a part is used up."""


@dataclass
class Part:
    """One part of the run.

    Attributes:
        name: as `--only` takes it.
        share: the part of the remaining time that it may take, of all shares that are left.
        run: makes rows one after another; given the options and the moment at which its time is up.
    """

    name: str
    share: float
    run: Callable[[argparse.Namespace, float], Iterator[Result]]


def tests(options: argparse.Namespace, until: float) -> Iterator[Result]:
    from gpu_checks import device_tests

    yield from device_tests(options, until)


def checks(options: argparse.Namespace, until: float) -> Iterator[Result]:
    import gpu_checks

    yield from gpu_checks.sweeps_against_forwards(options)
    yield from gpu_checks.scans_against_loops(options)
    yield from gpu_checks.attention_by_kernels(options)


def sweeps(options: argparse.Namespace, until: float) -> Iterator[Result]:
    import gpu_sweeps

    yield from gpu_sweeps.rows(options)


PARTS = (Part("checks", 0.3, checks), Part("sweeps", 0.45, sweeps), Part("tests", 0.25, tests))


def run_part(part: Part, options: argparse.Namespace, seconds: float) -> Iterator[Result]:
    """The rows of a part; its error or the end of its time as a row."""

    def stop(*_: Any) -> None:
        raise TimeIsUp

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, seconds))
    try:
        yield from part.run(options, time.time() + seconds)
    except TimeIsUp:
        yield {"row": "the rest of this part", "verdict": f"left out: its {seconds:.0f} s were over"}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error}"[:300]
        yield {
            "row": "the rest of this part",
            "verdict": f"failed: {told} ({Path(where.filename).name}:{where.lineno})",
        }
        traceback.print_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def about(options: argparse.Namespace) -> Result:
    """The machine and the versions."""
    cuda = options.device == "cuda"
    found = {
        "device": torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()})",
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "driver memory MiB": torch.cuda.mem_get_info()[1] // 2**20 if cuda else None,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "small": options.small,
    }
    return {name: value for name, value in found.items() if value is not None}


def shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if value == 0 or 1e-2 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return f"{value:.1e}"


def table(rows: list[Result]) -> str:
    """Rows as text: what every row has first, then its own numbers by name."""
    first = ["part", "row", "dtype", "verdict"]
    lines = [[*first, "numbers"]]
    for row in rows:
        numbers = ", ".join(f"{name} {shown(value)}" for name, value in row.items() if name not in first)
        lines.append([*(str(row.get(name, "")) for name in first), numbers])
    wide = [max(len(line[at]) for line in lines) if at != 3 else 8 for at in range(4)]
    return "\n".join(
        "  ".join(text.ljust(w) for text, w in zip(line, [*wide, 0], strict=True)).rstrip() for line in lines
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="tiny shapes: goes through every part in a minute or two")
    parser.add_argument("--limit", type=float, default=360.0, help="seconds that all may take (360)")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--only", default=",".join(part.name for part in PARTS), help="parts, in this order")
    options = parser.parse_args()
    known = {part.name: part for part in PARTS}
    options.only = options.only.split(",")
    for name in options.only:
        if name not in known:
            parser.error(f"no part is called {name!r}; choose from {', '.join(known)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("on_gpu: torch sees no CUDA device (a dry run: --device cpu --small)", file=sys.stderr)
        sys.exit(2)
    return options


def main() -> None:
    options = arguments()
    start = float(os.environ.get("INTERP_GPU_START", time.time()))
    end = start + 0.95 * options.limit
    parts = [part for part in PARTS if part.name in options.only]
    head, rows = about(options), []
    print(", ".join(f"{name} {value}" for name, value in head.items()), flush=True)
    for at, part in enumerate(parts):
        share = part.share / sum(other.share for other in parts[at:])
        seconds = share * (end - time.time())
        if seconds < 2:
            rows.append({"part": part.name, "row": "all of this part", "verdict": "left out: no time was left"})
            continue
        began = time.perf_counter()
        for row in run_part(part, options, seconds):
            rows.append({"part": part.name, **row})
            print(f"[{time.time() - start:5.0f} s]", rows[-1], file=sys.stderr, flush=True)
            write(options.json, head, rows)
        print(f"{part.name} took {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    print(table(rows))
    write(options.json, head, rows)
    bad = [row for row in rows if not str(row["verdict"]).startswith(("ok", "left out"))]
    print(f"{len(rows) - len(bad)} rows without a fault, {len(bad)} with one, {time.time() - start:.0f} s in all")
    sys.exit(1 if bad else 0)


def write(file: Path | None, head: Result, rows: list[Result]) -> None:
    if file is not None:
        file.write_text(json.dumps({"about": head, "rows": rows}, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
