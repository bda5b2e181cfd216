"""Tasks: functions that write `PromptPairs` for whatever tokenizer a model has.

A task is named like its function (`interp.tasks.ioi`), and its module by the words of that name: a module `ioi` would
be the same attribute of this package as the function `ioi`.
"""

from __future__ import annotations

from collections.abc import Callable

from interp.errors import unknown
from interp.prompts import PromptPairs
from interp.tasks.indirect_object import ioi

__all__ = ["TASKS", "get_task", "ioi"]

TASKS: dict[str, Callable[..., PromptPairs]] = {"ioi": ioi}


def get_task(name: str) -> Callable[..., PromptPairs]:
    """The task of this name: a function `task(model, n=..., seed=..., aligned=...) -> PromptPairs`.

    With `aligned=True` its prompts have one length, and a position means the same in each of them.

    Raises:
        UnknownName: there is none; the message offers the nearest.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]
