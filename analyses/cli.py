"""The command `interp`: reports, studies, models, and a quick look at one text.

What a command needs is imported when it runs: help, the list of studies and that of models come without torch. What
the list says of a study is the docstring of its file, which is read and not imported.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import pkgutil
from pathlib import Path
from typing import Any

import click

import analyses
from interp.errors import unknown
from interp.study.options import PLACE, Whole, model_options, number_options
from interp.study.refusals import Refusing
from interp.ui.terminal import show, show_rows

NOT_STUDIES = ("cli", "report", "sections")


def study_names() -> list[str]:
    """The modules of this package that are studies, in alphabetical order."""
    return sorted(info.name for info in pkgutil.iter_modules(analyses.__path__) if info.name not in NOT_STUDIES)


class Study(click.Command):
    """A study's command before it is used: its name, and what its file's docstring says; the rest is in its module."""

    def __init__(self, name: str) -> None:
        super().__init__(name.replace("_", "-"), add_help_option=False)
        self.module = name

    def get_short_help_str(self, limit: int = 45) -> str:
        """The beginning of the docstring."""
        spec = importlib.util.find_spec(f"analyses.{self.module}")
        assert spec is not None and spec.origin is not None
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        return click.Command(None, help=ast.get_docstring(tree)).get_short_help_str(limit)

    @functools.cached_property
    def real(self) -> click.Command:
        """The command that the study's module makes."""
        command = importlib.import_module(f"analyses.{self.module}").main
        assert isinstance(command, click.Command)
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """A context of the study's own command, which is imported here."""
        return self.real.make_context(info_name, args, parent, **extra)


class Studies(click.Group):
    """Every study as a command; a module is imported when its command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The studies' names, with hyphens."""
        return [name.replace("_", "-") for name in study_names()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The command of one study."""
        name = cmd_name.replace("-", "_")
        if name not in study_names():
            raise unknown("study", cmd_name, self.list_commands(ctx))
        return Study(name)


class Commands(Refusing, click.Group):
    """All commands; what any of them refuses is told in one line, from the first import on."""


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="interp")
def main() -> None:
    """Look inside language models: figure reports, single studies, and quick readings."""


main.add_command(Studies("run", help="Run one study on a task or on a prompt of your own."))


@main.command()
@click.argument("task")
@model_options
@click.option("--out", type=PLACE, help="Folder of the report; reports/TASK by default.")
@number_options("How many prompts the task writes.", "Seed of the prompts and of the intervals.")
@click.option("--study", "studies", multiple=True, help="Only this study; repeat for several.  [all]")
@click.option("--check/--no-check", default=True, show_default=True, help="Compare the logits with transformers'.")
@click.option("--quiet", is_flag=True, help="No progress.")
def report(
    task: str,
    source: str,
    device: str | None,
    dtype: str,
    out: Path | None,
    n: int,
    seed: int,
    studies: tuple[str, ...],
    check: bool,
    quiet: bool,
) -> None:
    """Write a figure report of how a model solves TASK: one HTML page, its figures, their numbers, full provenance."""
    from analyses.report import write

    page = write(
        task,
        source,
        out=out or Path("reports") / Path(task).stem,
        n=n,
        seed=seed,
        studies=studies or None,
        device=device,
        dtype=dtype,
        check=check,
        quiet=quiet,
    )
    click.echo(page)


@main.command()
@click.option("--all", "families", is_flag=True, help="List the families that load, and what each was checked against.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines instead of a table.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV instead of a table.")
def models(families: bool, as_json: bool, as_csv: bool) -> None:
    """List the models that load by a short name, and what else `--model` takes."""
    if families:
        from interp.weights.huggingface import about

        show_rows(about.families(), as_json=as_json, as_csv=as_csv)
        return
    from interp.loading.named import MODELS

    rows = [{"name": m.name, "parameters": m.parameters, "description": m.description} for m in MODELS.values()]
    show_rows(rows, as_json=as_json, as_csv=as_csv)
    click.echo("--model also takes a Hugging Face folder or repository, or a .gguf file", err=True)


@main.command()
@click.argument("text")
@model_options
@click.option("--answer", default=None, help="A next token whose rank (1 is first) and probability are shown.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines instead of a table.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV instead of a table.")
def lens(
    text: str, source: str, device: str | None, dtype: str, answer: str | None, as_json: bool, as_csv: bool
) -> None:
    """Show what a model would say after TEXT if it stopped at each layer (a logit lens)."""
    from analyses import logit_lens
    from interp.loading.load import load
    from interp.study.prompts import load_prompts

    model = load(source, device=device, dtype=dtype)
    pairs = load_prompts(model, prompt=text, answer=answer)
    table = logit_lens.top_tokens(logit_lens.run(model, pairs), answer=answer is not None)
    show(table, as_json=as_json, as_csv=as_csv, most=None)


@main.command()
@model_options
@click.option("--against", default=None, help="A second model of the same vocabulary, to compare with.")
@click.option("--port", type=Whole(0, 65535), default=0, show_default=True, help="Where; 0 takes one that is free.")
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page.")
def explore(source: str, device: str | None, dtype: str, against: str | None, port: int, browser: bool) -> None:
    """Serve a page, to this machine alone, in which a prompt and any part can be changed; Ctrl-C ends it."""
    from interp.loading.load import load
    from interp.ui.explorer.scene import Other
    from interp.ui.explorer.serve import serve

    options = "".join(f", {name}={value!r}" for name, value in (("device", device), ("dtype", dtype)) if value)
    model, other = load(source, device=device, dtype=dtype), None
    if against is not None:
        second = load(against, device=device, dtype=dtype)
        other = Other(second, f"interp.load({against!r}{options})", second.cfg.model_name or against)
    loaded = f"interp.load({source!r}{options})"
    serve(model, loaded=loaded, port=port, browser=browser, tell=click.echo, other=other)


if __name__ == "__main__":
    main()
