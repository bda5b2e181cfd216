"""How a command ends that is refused or interrupted: one line that says why, without a traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from interp.errors import InterpError
from interp.text.characters import visible

LONGEST = 2000  # characters of a refusal


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
