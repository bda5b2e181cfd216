"""The errors of `interp`: each says what was given, what was expected and the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class InterpError(Exception):
    """Anything that `interp` refuses; the command line prints it without a traceback and exits with 2."""

    def __str__(self) -> str:
        # KeyError would print the repr of the message.
        return str(self.args[0]) if self.args else ""


class UnknownName(InterpError, KeyError):
    """A model, site, task, metric, study or option that does not exist."""


class ConfigError(InterpError, ValueError):
    """A model configuration, or an argument, that contradicts itself or asks for what is not supported."""


class WeightsError(InterpError, ValueError):
    """Weights that are missing, extra, of the wrong shape, not finite, truncated or unsafe to read."""


class ParityError(InterpError, ArithmeticError):
    """Logits that differ from those of a reference implementation by more than is allowed."""


class PromptError(InterpError, ValueError):
    """Text or token ids that this model cannot take, or prompts that do not form a pair."""


class HookError(InterpError, RuntimeError):
    """A hook that could not do what was asked: it never ran, or returned the wrong shape."""


class OutputError(InterpError, OSError):
    """A folder or file that cannot be written."""


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of a sweep.

    Attributes:
        frame: the table of the cells that were finished.
    """

    def __init__(self, message: str, frame: Any) -> None:
        super().__init__(message)
        self.frame = frame


def nearest(name: str, choices: Iterable[str], *, most: int = 3) -> list[str]:
    """The `most` closest spellings of `name` among `choices`, best first."""
    return difflib.get_close_matches(name, list(choices), n=most, cutoff=0.5)


def check_choice(kind: str, value: object, choices: Iterable[str | None]) -> None:
    """Refuse a value that is not one of `choices`.

    Raises:
        UnknownName: it is not one of them.
    """
    # A list or a dictionary cannot be looked up at all, so the type is asked first.
    if not (isinstance(value, str) or value is None) or value not in choices:
        raise unknown(kind, value, [choice for choice in choices if choice is not None])


def unknown(kind: str, name: object, choices: Iterable[str]) -> UnknownName:
    """An `UnknownName` that offers the nearest of `choices`, or lists them when they are few.

    >>> print(unknown("metric", "logit_dif", ["logit_diff", "kl"]))
    no metric matches 'logit_dif'; did you mean 'logit_diff'?
    """
    choices, shortened = list(choices), f"{name!s:.200}"
    close = nearest(shortened, choices)
    if close:
        hint = "did you mean " + " or ".join(repr(c) for c in close) + "?"
    elif not choices:
        hint = "there are none"
    elif len(choices) <= 30:
        hint = "choose from " + ", ".join(repr(c) for c in choices)
    else:
        hint = f"there are {len(choices)}, such as " + ", ".join(repr(c) for c in choices[:5])
    return UnknownName(f"no {kind} matches {shortened!r}; {hint}")
