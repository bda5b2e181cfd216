"""The options of every command: kinds of values, which model, which prompts, what is printed and saved.

What several studies ask is in `interp.study.shared_options`, which needs torch; help comes without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from interp.ui.listing import ORDERS

Option = Callable[..., Any]
"""What adds an option to a command, as `click.option` makes it."""


class Whole(click.IntRange):
    """A whole number in a range, and called so in messages."""

    name = "integer"


class Place(click.Path):
    """A path for what is written or read; one that no system can have is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        try:
            return super().convert(value, param, ctx)
        except (OSError, ValueError) as error:  # of a path with a NUL
            self.fail(f"{value!r} cannot be a path: {error}", param, ctx)


SEED = Whole(0, 2**63 - 1)
PLACE = Place(path_type=Path)


def whole(name: str, help: str, *, default: int | None = None, least: int = 1) -> Option:
    """An option that is a whole number from `least` on, with these words of help."""
    return click.option(name, type=Whole(min=least), default=default, show_default=default is not None, help=help)


def above_zero(name: str, help: str, *, default: float | None = None) -> Option:
    """An option that is a finite number above zero."""
    shown = default is not None
    return click.option(name, type=float, callback=_positive, default=default, show_default=shown, help=help)


def _positive(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise click.BadParameter(f"{value:g} is not a finite number above 0.", ctx, param)
    return value


def choice(name: str, choices: Iterable[str], *, default: str | None = None, help: str | None = None) -> Option:
    """An option that is one of some names; without a default it is left to the study."""
    kinds = click.Choice(list(choices))
    return click.option(name, type=kinds, default=default, show_default=default is not None, help=help)


def numbers(name: str, help: str) -> Option:
    """An option that is several finite numbers, as 1,2,4."""
    return click.option(name, callback=_numbers, help=help)


def _numbers(ctx: click.Context, param: click.Parameter, text: str | None) -> list[float] | None:
    try:
        given = None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        given = [math.nan]
    if given is not None and not all(map(math.isfinite, given)):
        raise click.BadParameter(f"{text!r} is not a list of finite numbers, such as 1,2,4")
    return given


def number_options(n: str, seed: str, *, default: int = 16) -> Option:
    """`--n` and `--seed` with these words of help."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        command = click.option("--seed", type=SEED, default=0, show_default=True, help=seed)(command)
        return whole("--n", n, default=default)(command)

    return add


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--model`, `--device` and `--dtype`."""
    for add in (
        click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16, float16 or float64."),
        click.option("--device", callback=_device, help="cpu, cuda, cuda:1, ...; the best there is by default."),
        click.option(
            "--model", "source", default="smollm2-135m", show_default=True, help="Name, folder or .gguf file."
        ),
    ):
        command = add(command)
    return command


def _device(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and value.partition(":")[0] == "meta":
        raise click.BadParameter("'meta' holds no numbers; expected cpu, cuda, cuda:1, ...", ctx, param)
    return value


def prompt_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--task`, `--n`, `--seed` and `--aligned`, or `--prompt` with its answers and its corrupt counterpart."""
    for add in (
        click.option("--wrong", default=None, help="The token that the answer is weighed against."),
        click.option("--answer", default=None, help="The right next token; the model's own first choice by default."),
        click.option(
            "--corrupt", default=None, help="With --prompt: a prompt of equal length that differs in one respect."
        ),
        click.option("--prompt", default=None, help="A prompt of your own instead of a task."),
        click.option(
            "--aligned", is_flag=True, help="Prompts whose positions line up; a study by position takes them anyway."
        ),
        number_options(
            "How many prompts; of a data file, at most.", "Seed of the task's prompts and of what a study draws."
        ),
        click.option(
            "--task",
            default="ioi",
            show_default=True,
            help="The task that writes the prompts, or a .csv, .jsonl or .json file that has them.",
        ),
    ):
        command = add(command)
    return command


def output_options(*, several: bool = False, goes_on: str = "") -> Option:
    """`--out`, `--json`, `--csv`, `--order` and `--quiet`."""
    figures = "figures, CSV" if several else "the figure, its CSV"

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--quiet", is_flag=True, help="No progress."),
            choice("--order", ORDERS, help="Rows of the table: by layer, the strongest marked, or by effect."),
            click.option("--csv", "as_csv", is_flag=True, help="Print every measurement as CSV."),
            click.option("--json", "as_json", is_flag=True, help="Print every measurement as JSON lines."),
            click.option("--out", type=PLACE, default=None, help=f"Folder for {figures} and a manifest{goes_on}."),
        ):
            command = option(command)
        return command

    return add
