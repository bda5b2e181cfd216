"""The command `interp`: reports, studies, models, and a quick look at one text."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import click

import analyses
from interp.command import model_options, refusals, show
from interp.errors import unknown

NOT_STUDIES = ("cli", "report")


def study_names() -> list[str]:
    """The modules of this package that are studies, in alphabetical order."""
    return sorted(info.name for info in pkgutil.iter_modules(analyses.__path__) if info.name not in NOT_STUDIES)


class Studies(click.Group):
    """Every study as a command; a module is imported when its command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The studies' names, with hyphens."""
        return [name.replace("_", "-") for name in study_names()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The command of one study."""
        name = cmd_name.replace("-", "_")
        if name not in study_names():
            with refusals():
                raise unknown("study", cmd_name, self.list_commands(ctx))
        command = importlib.import_module(f"analyses.{name}").main
        assert isinstance(command, click.Command)
        return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="interp")
def main() -> None:
    """Look inside language models: figure reports, single studies, and quick readings."""


main.add_command(Studies("run", help="Run one study on a task or on a prompt of your own."))


@main.command()
@click.argument("task")
@model_options
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Folder of the report; reports/TASK by default."
)
@click.option("--n", default=16, show_default=True, help="How many prompts the task writes.")
@click.option("--seed", default=0, show_default=True, help="Seed of the prompts and of the intervals.")
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

    with refusals():
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
@click.option("--json", "as_json", is_flag=True, help="JSON lines instead of a table.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV instead of a table.")
def models(as_json: bool, as_csv: bool) -> None:
    """List the models that load by a short name, and what else `--model` takes."""
    import pandas as pd

    from interp.weights.load import MODELS

    with refusals():
        rows = [{"name": m.name, "parameters": m.parameters, "description": m.description} for m in MODELS.values()]
        show(pd.DataFrame(rows), as_json=as_json, as_csv=as_csv)
        click.echo("--model also takes a Hugging Face folder or repository, or a .gguf file", err=True)


@main.command()
@click.argument("text")
@model_options
@click.option("--json", "as_json", is_flag=True, help="JSON lines instead of a table.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV instead of a table.")
def lens(text: str, source: str, device: str | None, dtype: str, as_json: bool, as_csv: bool) -> None:
    """Show what a model would say after TEXT if it stopped at each layer (a logit lens)."""
    from analyses import logit_lens
    from interp.command import load_prompts
    from interp.weights.load import load

    with refusals():
        model = load(source, device=device, dtype=dtype)
        pairs = load_prompts(model, prompt=text)
        show(logit_lens.top_tokens(logit_lens.run(model, pairs)), as_json=as_json, as_csv=as_csv)


if __name__ == "__main__":
    main()
