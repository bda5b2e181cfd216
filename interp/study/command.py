"""The command line that every study shares: which model, which prompts, where the results go.

A study's module calls `study_command` once and gets a click command: a table on stdout (or JSON, or CSV), progress on
stderr, with `--out` the figure, its numbers and their provenance. A study that sweeps has a journal there, too, with
which a run that was killed goes on, and can say beforehand what it costs. What `interp` refuses ends in one line and
exit code 2.

1. What was typed is checked, and so is the folder, before anything is loaded.
2. The model is loaded and the prompts are written; stderr says whether the model does the task.
3. With `--dry-run` the plan is printed; otherwise the study runs, its table is printed, and its files are written.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interp.errors import PromptError, SweepInterrupted
from interp.study.options import Option, model_options, output_options, prompt_options
from interp.study.output import check_folder, save_study
from interp.study.prompts import PROMPT_OPTIONS, load_prompts
from interp.study.refusals import Refusing
from interp.study.sweep_options import chosen_executor, show_plan, sweep_options
from interp.ui.listing import listing
from interp.ui.terminal import one_form, show

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure
    from interp.hooked.model import HookedModel
    from interp.prompts.pairs import PromptPairs
    from interp.sweeps.plan import Plan

    Plot = Callable[[pd.DataFrame], Figure]
    Summary = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass(frozen=True)
class OwnModels:
    """Of a study that makes its models and prompts itself, what its command has to know.

    Attributes:
        numbers: `--n` and `--seed`, as `number_options` has them.
        make: what `run` takes as `models`, made from the options, `make(n=, seed=, progress=, **options)`.
        record: what the manifest says of them, `record(models, frame, n=, seed=, **options)`.
        says: sentences for stderr.
        instead: flags that print another table, and nothing else, `instead[flag](models, n=, seed=)`.
    """

    numbers: Option
    make: Callable[..., Any]
    record: Callable[..., dict[str, Any]]
    says: Callable[[pd.DataFrame], Iterable[str]] = lambda frame: ()
    instead: Mapping[str, Callable[..., pd.DataFrame]] | None = None


@dataclass(frozen=True)
class Study:
    """A study as its command knows it; see `study_command`."""

    run: Callable[..., pd.DataFrame]
    plots: Mapping[str, Plot]
    summary: Callable[[pd.DataFrame], pd.DataFrame]
    plan: Callable[..., Plan] | None = None
    by_position: Callable[..., bool] | None = None
    kept: str | None = None
    own: OwnModels | None = None
    natural: str = "effect"
    instead: Mapping[str, tuple[Callable[..., pd.DataFrame], Summary]] = field(default_factory=dict)
    says: Callable[[HookedModel, pd.DataFrame], Iterable[str]] | None = None

    @property
    def module(self) -> Any:
        """Where `run` is written."""
        return inspect.getmodule(self.run)

    @property
    def name(self) -> str:
        """The name of its command and of its files."""
        spec = self.module.__spec__.name if self.module.__spec__ is not None else self.module.__name__
        return str(spec).rpartition(".")[2].replace("_", "-")

    @property
    def takes(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of `run`."""
        return inspect.signature(self.run).parameters

    def known(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of some arguments that `run` takes."""
        return _taken(self.run, given)

    def drawn(self, frame: pd.DataFrame) -> dict[str, Figure]:
        """Its figures, by the names of their files."""
        return {stem or self.name: plot(frame) for stem, plot in self.plots.items()}


@dataclass(frozen=True)
class Output:
    """What is printed, and where files go."""

    out: Path | None
    as_json: bool
    as_csv: bool
    quiet: bool
    order: str | None

    def __post_init__(self) -> None:
        one_form(self.as_json, self.as_csv)

    @property
    def progress(self) -> bool | None:
        """Bars on stderr: none, or on a terminal."""
        return False if self.quiet else None

    def tell(self, text: object) -> None:
        """A line on stderr, unless it is to be quiet."""
        if not self.quiet:
            click.echo(text, err=True)

    def show(self, frame: pd.DataFrame, summary: Summary, natural: str = "effect") -> None:
        """The rows of the summary that matter most, or every measurement as it was asked for."""
        if self.as_json or self.as_csv:
            show(frame, as_json=self.as_json, as_csv=self.as_csv)
            return
        listed = listing(summary(frame), self.order, natural=natural)
        show(listed.rows, most=None)
        if listed.left_out:
            click.echo(f"... {listed.left_out} ...")
            click.echo(f"{listed.left_out}: --csv prints every measurement", err=True)

    def save(self, study: Study, frame: pd.DataFrame, record: Callable[[], Mapping[str, Any]]) -> None:
        """Write the files if there is a folder, and print their paths to stderr."""
        if self.out is not None:
            for path in save_study(self.out, study.name, study.drawn(frame), frame, record()):
                click.echo(path, err=True)


def study_command(
    run: Callable[..., pd.DataFrame],
    *,
    plot: Plot | Mapping[str, Plot],
    summary: Callable[[pd.DataFrame], pd.DataFrame],
    options: Sequence[Option] = (),
    plan: Callable[..., Plan] | None = None,
    by_position: Callable[..., bool] | None = None,
    kept: str | None = None,
    own: OwnModels | None = None,
    natural: str = "effect",
    instead: Mapping[str, tuple[Callable[..., pd.DataFrame], Summary]] | None = None,
    says: Callable[[HookedModel, pd.DataFrame], Iterable[str]] | None = None,
) -> click.Command:
    """The command of one study.

    Args:
        run: the study, `run(model, pairs, **options)`; its module's docstring is the command's help. What it takes of
            `max_memory`, `executor` and `out` gets its options, and a journal under `--out`.
        plot: its figure, or several by the names of their files.
        summary: the table that is printed.
        options: click options of this study; their names are `run`'s keywords. One that is not typed is left to `run`.
        plan: for `--dry-run`, `plan(model, pairs, **options)`, with `max_memory` where `run` has it.
        by_position: whether a study with these options needs prompts that line up, `by_position(**options)`.
        kept: the name of the folder under `--out` that `run` gets as its `out`; None is a sweep's journal.
        own: of a study that makes its models and prompts itself, `run(models, n=, seed=, **options)`.
        natural: the order of `summary`'s rows, "effect", "layer" (by depth) or "" for any other.
        instead: flags of `options` that print another table, and nothing else: `frame(model, **options)`, of the
            options those that it takes, and its summary.
        says: sentences for stderr after the table, `says(model, frame)`.
    """
    plots = plot if isinstance(plot, Mapping) else {"": plot}
    study = Study(run, plots, summary, plan, by_position, kept, own, natural, instead or {}, says)

    def command(out: Path | None, as_json: bool, as_csv: bool, quiet: bool, order: str | None, **typed: Any) -> None:
        output = Output(out, as_json, as_csv, quiet, order)
        _on_own_models(study, output, typed) if own is not None else _on_prompts(study, output, typed)

    goes_on = "; a run that was stopped goes on there" if "out" in study.takes and kept is None else ""
    shared = [output_options(several=len(plots) > 1, goes_on=goes_on)]
    if own is None:
        shared += [sweep_options(study.takes, dry_run=plan is not None), prompt_options, model_options]
    else:
        shared.append(own.numbers)
    command = functools.reduce(lambda made, add: add(made), shared, command)
    made = click.command(study.name, cls=Refusing, help=_reflow(study.module.__doc__))(command)
    return functools.reduce(lambda made, add: add(made), options, made)


def _on_prompts(study: Study, output: Output, typed: dict[str, Any]) -> None:
    """Run a study of one model on the prompts that were asked for."""
    # 1. What was typed.
    source, device, dtype = (typed.pop(name) for name in ("source", "device", "dtype"))
    instead = [table for flag, table in study.instead.items() if typed.pop(flag)]
    asked, dry_run = {name: typed.pop(name) for name in PROMPT_OPTIONS}, typed.pop("dry_run", False)
    if output.as_csv and dry_run:
        raise PromptError("--dry-run cannot print CSV; drop --csv or use --json")
    chosen = _typed(typed)
    machines = chosen_executor(chosen.pop("executor", None), chosen.pop("address", None))
    lined_up = asked["prompt"] is None and study.by_position is not None and study.by_position(**chosen)
    if output.out is not None and not dry_run:
        check_folder(output.out)
    # 2. The model and the prompts.
    from interp.loading.load import load

    model = load(source, device=device, dtype=dtype)
    if instead:
        make, summary = instead[0]
        given = {"n": asked["n"], "seed": asked["seed"], "progress": output.progress, **chosen}
        output.show(make(model, **_taken(make, given)), summary)
        return
    pairs = load_prompts(model, **{**asked, "aligned": asked["aligned"] or lined_up})
    if lined_up and not asked["aligned"]:
        width = (pairs if pairs.encoder is None else pairs.encoder).mask.shape[1]
        output.tell(f"by position, so --aligned: {len(pairs)} prompts of {width} tokens whose positions line up")
    if not dry_run and not output.quiet and (asked["prompt"] is None or asked["answer"] is not None):
        output.tell(_whether_able(model, pairs))
    # 3. The plan, or the study.
    if dry_run:
        assert study.plan is not None
        show_plan(study.plan(model, pairs, **chosen), model, as_json=output.as_json)
        return
    given = {"progress": output.progress, "executor": machines, "seed": asked["seed"]}
    if output.out is not None:
        given["out"] = output.out / (study.kept or f"{study.name}.sweep")
    try:
        frame = study.run(model, pairs, **chosen, **study.known(given))
    except SweepInterrupted as stopped:
        again = "run the same command again" if output.out is not None else "on the command line, --out FOLDER"
        click.echo(f"{stopped} ({again})", err=True)
        sys.exit(130)
    output.show(frame, study.summary, study.natural)
    for sentence in () if study.says is None or output.quiet else study.says(model, frame):
        output.tell(sentence)
    output.save(study, frame, lambda: _origin(study, model, pairs, asked["seed"], typed))


def _on_own_models(study: Study, output: Output, typed: dict[str, Any]) -> None:
    """Run a study that makes its models and prompts itself."""
    own = study.own
    assert own is not None
    if output.out is not None:
        check_folder(output.out)
    numbers = {name: typed[name] for name in ("n", "seed")}
    instead = [table for flag, table in (own.instead or {}).items() if typed.pop(flag)]
    chosen = _typed(typed)
    models = own.make(**chosen, progress=output.progress)
    if instead:
        show(instead[0](models, **numbers), as_json=output.as_json, as_csv=output.as_csv)
        return
    frame = study.run(models=models, **study.known(chosen), progress=output.progress)
    output.show(frame, study.summary, study.natural)
    for sentence in own.says(frame):
        click.echo(sentence, err=True)

    def record() -> dict[str, Any]:
        from interp.study.provenance import checkout, versions

        made = {"study": study.name, **own.record(models, frame, **chosen)}
        return {**made, "versions": versions(), "git": checkout(Path(study.module.__file__))}

    output.save(study, frame, record)


def _taken(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some arguments that a function takes."""
    takes = inspect.signature(function).parameters
    return {name: value for name, value in given.items() if name in takes}


def _typed(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were typed, or have a default: the others are left to the study."""
    return {option: value for option, value in options.items() if value is not None and value != ()}


def _whether_able(model: HookedModel, pairs: PromptPairs) -> str:
    """Whether the model does the task, which is said before anything is built on it."""
    from interp.prompts.pair_checks import MASK
    from interp.study.behaviour import behaviour, verdict

    return verdict(behaviour(model, pairs), model.cfg.model_name, masked=pairs.answer_place == MASK)


def _origin(
    study: Study, model: HookedModel, pairs: PromptPairs, seed: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """How the measurements were made, for the manifest."""
    from interp.study.provenance import provenance

    extra = {"study": study.name, "options": options}
    return provenance(model, pairs, metric=options.get("metric"), seed=seed, extra=extra)


def _reflow(doc: str) -> str:
    """A module's docstring for click: numbered steps keep their lines."""
    return "\n\n".join("\b\n" + part if part.lstrip().startswith("1.") else part for part in doc.strip().split("\n\n"))
