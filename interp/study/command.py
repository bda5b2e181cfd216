"""The command line that every study shares: which model, which prompts, where the results go.

A study's module calls `study_command` once and gets a click command: a table on stdout (or JSON, or CSV), progress on
stderr, with `--out` the figure, its numbers and their provenance. A study that sweeps has a journal there, too, with
which a run that was killed goes on, and can say beforehand what it costs. What `interp` refuses ends in one line and
exit code 2.
"""

from __future__ import annotations

import errno
import functools
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interp.errors import InterpError, OutputError, PromptError, SweepInterrupted
from interp.study.sweep_options import chosen_executor, show_plan, sweep_options
from interp.text.characters import visible
from interp.ui.terminal import one_form, show

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure
    from interp.hooked.model import HookedModel
    from interp.prompts.pairs import PromptPairs
    from interp.sweeps.plan import Plan

LONGEST = 2000  # characters of a refusal


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
            self.fail(f"{value!r} is no path: {error}", param, ctx)


SEED = Whole(0, 2**63 - 1)
PLACE = Place(path_type=Path)


def whole(name: str, told: str, *, default: int | None = None, least: int = 1) -> Callable[..., Any]:
    """An option that is a whole number from `least` on, with these words of help."""
    return click.option(name, type=Whole(min=least), default=default, show_default=default is not None, help=told)


def above_zero(name: str, told: str, *, default: float | None = None) -> Callable[..., Any]:
    """An option that is a finite number above zero."""
    shown = default is not None
    return click.option(name, type=float, callback=_positive, default=default, show_default=shown, help=told)


def _positive(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise click.BadParameter(f"{value:g} is not a finite number above 0.", ctx, param)
    return value


class RefusedError(click.ClickException):
    """An `InterpError` as the command line shows it: one line that a terminal can bear, exit code 2."""

    exit_code = 2

    def __init__(self, told: str) -> None:
        line = visible(" ".join(told.split("\n")))
        short = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
        super().__init__(line if len(line) <= LONGEST else short)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what `interp` or the system refuses into one line without a traceback, an interrupt into exit code 130."""
    try:
        yield
    except InterpError as error:
        raise RefusedError(str(error)) from error
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except UnicodeEncodeError as error:
        shown = visible(error.object[error.start : error.start + 1])
        told = f"this output takes no {shown!r}, as its encoding is {error.encoding}; set PYTHONIOENCODING=utf-8"
        raise RefusedError(told) from error
    except OSError as error:
        if error.errno == errno.EPIPE:  # who reads has had enough; click ends quietly
            raise
        place = f"{error.filename}: " if error.filename else ""
        raise RefusedError(f"{place}{error.strerror or error}") from error
    except MemoryError as error:
        raise RefusedError("there is not enough memory for this; try a smaller model or fewer prompts") from error


class Refusing(click.Command):
    """A command that ends in one line, whatever it refuses, and whatever its output cannot be written to."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """A context; help and the version are printed here."""
        with refusals():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        with refusals():
            return super().invoke(ctx)


def number_options(n: str, seed: str, *, default: int = 16) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
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


def load_prompts(
    model: HookedModel,
    *,
    task: str = "ioi",
    n: int = 16,
    seed: int = 0,
    aligned: bool = False,
    prompt: str | None = None,
    corrupt: str | None = None,
    answer: str | None = None,
    wrong: str | None = None,
) -> PromptPairs:
    """The prompts that the options ask for: a task's, a data file's, or the one that was typed."""
    from interp.prompts.pairs import PromptPairs
    from interp.tasks import get_task

    if prompt is None:
        if corrupt or answer or wrong:
            raise PromptError("--corrupt, --answer and --wrong belong to --prompt")
        return get_task(task)(model, n=n, seed=seed, aligned=aligned)
    first, second = _own_choices(model, prompt, answer)
    return PromptPairs.from_text(
        model, clean=[prompt], corrupt=[corrupt or prompt], answers=[(answer or first, wrong or second)], name="prompt"
    )


def _own_choices(model: HookedModel, prompt: str, answer: str | None) -> tuple[int, int]:
    """The model's likeliest next token and its likeliest other one than the answer."""
    import torch

    from interp.prompts.answers import answer_id

    with torch.no_grad():
        ranked = model(prompt)[0, -1].topk(2).indices.tolist()
    if answer is not None:
        given = answer_id(answer, "the answer", model, prompt)
        ranked = [given, *(token for token in ranked if token != given)]
    return ranked[0], ranked[1]


def study_command(
    run: Callable[..., pd.DataFrame],
    *,
    plot: Callable[[pd.DataFrame], Figure],
    summary: Callable[[pd.DataFrame], pd.DataFrame],
    options: Sequence[Callable[..., Any]] = (),
    plan: Callable[..., Plan] | None = None,
    by_position: Callable[..., bool] | None = None,
    kept: str | None = None,
) -> click.Command:
    """The command of one study.

    Args:
        run: the study, `run(model, pairs, **options)`; its module's docstring is the command's help. What it takes of
            `max_memory`, `executor` and `out` gets its options, and a journal under `--out`.
        plot: its figure.
        summary: the table that is printed.
        options: click options of this study; their names are `run`'s keywords. One that is not typed is left to `run`.
        plan: for `--dry-run`, `plan(model, pairs, **options)`, with `max_memory` where `run` has it.
        by_position: whether a study with these options needs prompts that line up, `by_position(**options)`.
        kept: the name of the folder under `--out` that `run` gets as its `out`; None is a sweep's journal.
    """
    module = inspect.getmodule(run)
    assert module is not None and module.__doc__ is not None
    spec = module.__spec__.name if module.__spec__ is not None else module.__name__
    name = spec.rpartition(".")[2].replace("_", "-")
    takes = inspect.signature(run).parameters
    goes_on = "; a run that was stopped goes on there" if "out" in takes and kept is None else ""

    @click.command(name, cls=Refusing, help=_reflow(module.__doc__))
    @model_options
    @prompt_options
    @sweep_options(takes, dry_run=plan is not None)
    @click.option(
        "--out",
        type=PLACE,
        default=None,
        help=f"Folder for the figure, its CSV and a manifest{goes_on}.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print every measurement as JSON lines.")
    @click.option("--csv", "as_csv", is_flag=True, help="Print every measurement as CSV.")
    @click.option("--quiet", is_flag=True, help="No progress.")
    def command(
        source: str,
        device: str | None,
        dtype: str,
        out: Path | None,
        as_json: bool,
        as_csv: bool,
        quiet: bool,
        task: str,
        n: int,
        seed: int,
        aligned: bool,
        prompt: str | None,
        corrupt: str | None,
        answer: str | None,
        wrong: str | None,
        dry_run: bool = False,
        **typed: Any,
    ) -> None:
        one_form(as_json, as_csv)
        if as_csv and dry_run:
            raise PromptError("a plan is no CSV: leave out --csv")
        chosen = {option: value for option, value in typed.items() if value is not None}
        machines = chosen_executor(chosen.pop("executor", None), chosen.pop("address", None))
        lined_up = prompt is None and by_position is not None and by_position(**chosen)
        if out is not None and not dry_run:
            check_folder(out)
        from interp.loading.load import load

        model = load(source, device=device, dtype=dtype)
        pairs = load_prompts(
            model,
            task=task,
            n=n,
            seed=seed,
            aligned=aligned or lined_up,
            prompt=prompt,
            corrupt=corrupt,
            answer=answer,
            wrong=wrong,
        )
        if lined_up and not (aligned or quiet):
            each = f"{len(pairs)} prompts of {pairs.mask.shape[1]} tokens whose positions line up"
            click.echo(f"by position, so --aligned: {each}", err=True)
        if not (quiet or dry_run) and (prompt is None or answer is not None):
            _say_whether_able(model, pairs)
        if dry_run:
            assert plan is not None
            show_plan(plan(model, pairs, **chosen), model, as_json=as_json)
            return
        given: dict[str, Any] = {"progress": False if quiet else None, "executor": machines, "seed": seed}
        if out is not None:
            given["out"] = out / (kept or f"{name}.sweep")
        try:
            frame = run(model, pairs, **chosen, **{key: given[key] for key in given if key in takes})
        except SweepInterrupted as stopped:
            again = "run the same command again" if out is not None else "on the command line, --out FOLDER"
            click.echo(f"{stopped} ({again})", err=True)
            sys.exit(130)
        show(frame if as_json or as_csv else summary(frame), as_json=as_json, as_csv=as_csv)
        if out is not None:
            for path in save_study(out, name, frame, plot(frame), model, pairs, seed=seed, options=typed):
                click.echo(path, err=True)

    return functools.reduce(lambda made, add: add(made), options, command)


def _say_whether_able(model: HookedModel, pairs: PromptPairs) -> None:
    """Say on stderr whether the model does the task, before anything is built on it."""
    from interp.study.behaviour import behaviour, verdict

    click.echo(verdict(behaviour(model, pairs), model.cfg.model_name), err=True)


def save_study(
    out: Path,
    name: str,
    frame: pd.DataFrame,
    figure: Figure,
    model: HookedModel,
    pairs: PromptPairs,
    *,
    seed: int,
    options: dict[str, Any],
) -> list[Path]:
    """Write the figure (PDF, SVG, PNG), every measurement (CSV) and `<name>.manifest.json`; the paths."""
    from interp.figures.style import save
    from interp.study.provenance import provenance

    check_folder(out)
    paths = save(figure, frame, out / name)
    manifest = out / f"{name}.manifest.json"
    record = provenance(
        model, pairs, metric=options.get("metric"), seed=seed, extra={"study": name, "options": options}
    )
    try:
        manifest.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {str(manifest)!r}: {error.strerror or error}") from error
    return [*paths, manifest]


def check_folder(out: Path) -> None:
    """Make a folder, and refuse one that cannot be written to.

    Raises:
        OutputError: it cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:  # a ValueError is of a path with a NUL
        told = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write to the folder {str(out)!r}: {told}") from error


def _reflow(doc: str) -> str:
    """A module's docstring for click: numbered steps keep their lines."""
    return "\n\n".join("\b\n" + part if part.lstrip().startswith("1.") else part for part in doc.strip().split("\n\n"))
