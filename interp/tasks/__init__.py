"""Tasks: functions that write `PromptPairs` for any model's tokenizer, and `from_file` for prompts of your own.

A task has the name of its function (`interp.tasks.ioi`), and its module has another name: a module `ioi` and the
function `ioi` would be the same attribute of this package.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interp.arguments import checked
from interp.errors import PromptError, unknown
from interp.hooked.model import HookedModel
from interp.prompts.pairs import PromptPairs
from interp.tasks.answer_sets import prob_diff
from interp.tasks.data_files.columns import SUFFIXES
from interp.tasks.data_files.from_files import from_file
from interp.tasks.digit_sums import digit_addition
from interp.tasks.docstring_arguments import docstring
from interp.tasks.factual_recall import facts
from interp.tasks.gendered_pronouns import pronouns
from interp.tasks.indirect_object import ioi
from interp.tasks.later_years import greater_than
from interp.tasks.modular_sums import modular_addition
from interp.tasks.repeated_tokens import induction
from interp.tasks.subject_verb import agreement

__all__ = [
    "TASKS",
    "agreement",
    "digit_addition",
    "docstring",
    "facts",
    "from_file",
    "get_task",
    "greater_than",
    "induction",
    "ioi",
    "modular_addition",
    "prob_diff",
    "pronouns",
]

TASKS: dict[str, Callable[..., PromptPairs]] = {
    "ioi": ioi,
    "greater_than": greater_than,
    "induction": induction,
    "agreement": agreement,
    "docstring": docstring,
    "facts": facts,
    "pronouns": pronouns,
    "modular_addition": modular_addition,
    "digit_addition": digit_addition,
}


@checked
def get_task(name: str | Path) -> Callable[..., PromptPairs]:
    """The task with this name, or from this data file: `task(model, n=..., seed=..., aligned=...) -> PromptPairs`.

    With `aligned=True` a task's prompts have the same length, and a position means the same in each of them.

    Args:
        name: a name in `TASKS`, with underscores or hyphens, or the path of a .csv, .jsonl or .json file, whose first n
            pairs `from_file` reads, whatever the seed.

    Raises:
        UnknownName: there is no such task; the message offers the nearest.
        PromptError: a file that does not exist.

    >>> get_task("greater-than").__name__
    'greater_than'
    """
    if str(name).endswith(SUFFIXES):
        if not os.path.isfile(name):  # also False for a name that no file can have
            raise PromptError(f"there is no data file {str(name)!r}")
        return functools.partial(_of_file, path=Path(name))
    plain = str(name).replace("-", "_")
    if plain not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[plain]


def _of_file(model: HookedModel, n: int | None = 32, *, path: Path, seed: int = 0, **options: Any) -> PromptPairs:
    return from_file(model, path, n=n, **options)
