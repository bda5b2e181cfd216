"""The options of a study that sweeps: memory, a folder for what is finished, machines; and what it would cost."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Container
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import click

from interp.errors import ConfigError

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel
    from interp.sweeps.plan import Plan
    from interp.sweeps.sweep import Executor

BYTE_UNITS = {
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGT", start=1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", start=1)},
}
SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")


class SweepOptions(TypedDict, total=False):
    """The arguments of a study that `interp.sweep` takes as they are; `run(..., **options: Unpack[SweepOptions])`.

    Attributes:
        max_memory: bytes to allocate beyond the weights; None takes a part of what is free.
        out: a folder for what is finished. The same call with the same folder goes on with it.
        progress: a bar on stderr; None shows it on a terminal.
        executor: "local", "ray" (a cluster of this machine alone), or an `interp.RayExecutor`.
    """

    max_memory: int | None
    out: str | Path | None
    progress: bool | None
    executor: str | Executor


def in_folder(options: SweepOptions, name: str) -> SweepOptions:
    """The options of one of a study's several sweeps, which is kept in a folder of its own under `out`."""
    out = options.get("out")
    return options if out is None else {**options, "out": Path(out) / name}


def parse_bytes(text: str) -> int:
    """A number of bytes, as a user writes it; letters may be small or large.

    Raises:
        ConfigError: something else, or less than one byte.

    >>> parse_bytes("8GiB"), parse_bytes("500 MB"), parse_bytes("1.5kb"), parse_bytes("123456")
    (8589934592, 500000000, 1500, 123456)
    """
    units = {"": 1, "b": 1, **{unit.lower(): size for unit, size in BYTE_UNITS.items()}}
    found = SIZE.fullmatch(text.strip())
    size = int(Decimal(found[1]) * units.get(found[2].lower(), 0)) if found else 0
    if size < 1:
        raise ConfigError(
            f"{text!r} is not a size of memory; give bytes, or a number with {', '.join(BYTE_UNITS)}, such as 8GiB"
        )
    return size


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_bytes(value)
    except ConfigError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def sweep_options(takes: Container[str], *, dry_run: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--max-memory`, `--executor` and `--address` for a study that takes them, and `--dry-run` where it has a plan."""
    from interp.sweeps.sweep import EXECUTORS  # imports torch

    options = []
    if dry_run:
        options.append(click.option("--dry-run", is_flag=True, help="Print what would be run and what it costs."))
    if "executor" in takes:
        options += [
            click.option("--address", help="With --executor ray: auto, or host:port of a cluster's head node."),
            click.option(
                "--executor", type=click.Choice(EXECUTORS), help="Where to run: in this process, or on Ray.  [local]"
            ),
        ]
    if "max_memory" in takes:
        told = "To allocate beyond the weights, as 8GiB or 500MB; a part of what is free by default."
        options.append(click.option("--max-memory", callback=_size, metavar="SIZE", help=told))
    return lambda command: functools.reduce(lambda made, add: add(made), options, command)


def chosen_executor(name: str | None, address: str | None) -> str | Executor:
    """What `interp.sweep` takes as its executor.

    Raises:
        ConfigError: an address without Ray.
    """
    if name == "ray":
        from interp.sweeps.ray_executor import RayExecutor  # imports pyarrow

        return RayExecutor(address=address)
    if address is not None:
        raise ConfigError("--address says where a Ray cluster is; it goes with --executor ray")
    return "local"


def show_plan(plan: Plan, model: HookedModel, *, as_json: bool) -> None:
    """Print what a sweep would run, and how long it should take here, to stdout."""
    import torch

    from interp.sweeps.plan import expected_seconds

    seconds = expected_seconds(plan, model)
    if not as_json:
        threads = torch.get_num_threads()
        where = {"cpu": f"{threads} {'thread' if threads == 1 else 'threads'}"}.get(model.device.type, model.device)
        click.echo(f"{plan}\nabout {_duration(seconds)} in one process here ({where})")
        return
    counts = {
        "variants": plan.n_variants,
        "prompts": plan.n_prompts,
        "cells": plan.cells,
        "idle_cells": plan.idle,
        "chunks": sum(bool(chunk.variants) for chunk in plan.chunks),
        "operations": plan.operations,
        "memory": max(chunk.memory for chunk in plan.chunks),
        "max_memory": plan.max_memory,
        "seconds": seconds,
    }
    click.echo(json.dumps(counts))


def _duration(seconds: float) -> str:
    """Seconds for the eye, in the unit that keeps them short."""
    size, unit = (1, "s") if seconds < 100 else (60, "min") if seconds < 6000 else (3600, "h")
    return f"{seconds / size:,.2g} {unit}" if seconds / size < 10 else f"{seconds / size:,.0f} {unit}"
