"""The edits of a page on a whole task: the logit difference without and with them, with intervals over prompts.

1. A task of `interp.tasks` writes prompts for the model. The clean ones are run; patches copy from each one's own
   corrupt prompt. A position's number means another word in every prompt, so edits act at all positions or at
   the last one.
2. Each prompt's logit difference is measured without and with the edits, a few prompts at a time.
3. Means over prompts have 95% intervals (`interp.stats`), and so has the change. The page's own prompt stands beside.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from interp.edits import Edit, Variant
from interp.errors import ConfigError, PromptError, check_choice
from interp.hooked.model import HookedModel
from interp.lenses.read import token_text
from interp.metrics import METRICS, evaluate, read
from interp.prompts.pairs import PromptPairs
from interp.stats import bootstrap
from interp.sweeps.plan import expected_seconds
from interp.sweeps.sweep import plan_sweep
from interp.tasks import TASKS, get_task
from interp.text.characters import visible_token
from interp.ui.explorer.changes import LAST, Change, changes_of, check, variant_of
from interp.ui.explorer.pace import Pace
from interp.ui.explorer.scene import CLEAN, CORRUPT, Scene, answer_id, pairs_of, patched
from interp.ui.explorer.sight import run_of
from interp.ui.explorer.worker import stopping

N, SEED = 16, 0  # prompts of a task, and how they are drawn
AT_ONCE = 4  # prompts in a forward, whose logits are held
METRIC = METRICS["logit_diff"]
CUT = "whole task"  # by which its pace is known


class Tasks:
    """The prompts of every task that was asked for, which depend on the model alone."""

    def __init__(self, model: HookedModel) -> None:
        self._model = model
        self._kept: dict[str, PromptPairs] = {}

    def pairs(self, name: str) -> PromptPairs:
        """The prompts of a task.

        Raises:
            UnknownName: there is no such task.
            PromptError: a task that this model's tokenizer does not allow.
        """
        check_choice("task", name, TASKS)
        if name not in self._kept:
            self._kept[name] = get_task(name)(self._model, n=N, seed=SEED).to(self._model.device)
        return self._kept[name]

    def offered(self) -> list[str]:
        """The tasks to choose from: those that need no text, of a model without a tokenizer."""
        if self._model.tokenizer is not None:
            return list(TASKS)
        found = []
        for name in TASKS:
            with suppress(PromptError):
                self.pairs(name)
                found.append(name)
        return found


def _changes(model: HookedModel, scene: Scene) -> list[Change]:
    """The edits of a scene.

    Raises:
        ConfigError: one at a position that means another word in every prompt.
    """
    changes = changes_of(scene.edits)
    for text, change in zip(scene.edits, changes, strict=True):
        if change.pos is not None and change.pos != LAST:
            raise ConfigError(
                f"{text} acts at positions by their numbers, which mean other words in every prompt of a task: over a "
                "whole task edits act at all positions, or at the last, as in L9H6@end:zero"
            )
    check(model, changes, 1)
    return changes


def plan_task(model: HookedModel, scene: Scene, name: str, tasks: Tasks, pace: Pace) -> dict[str, Any]:
    """What a whole task will cost, once its edits are known to be such as act in it."""
    _changes(model, scene)
    pairs = tasks.pairs(name)
    return {"prompts": len(pairs), "seconds": pace.expected(CUT, _forecast(model, pairs))}


def _forecast(model: HookedModel, pairs: PromptPairs) -> float:
    """Seconds of a run without and of a run with an edit that everything comes after."""
    first = Variant([Edit("resid_pre", {"layer": 0}, "zero")])
    return expected_seconds(plan_sweep(model, pairs, [first], METRIC, base=CLEAN, source=CORRUPT), model)


def whole_task(
    model: HookedModel, scene: Scene, name: str, tasks: Tasks, pace: Pace, stop: threading.Event
) -> dict[str, Any]:
    """The logit differences.

    Args:
        model: the model.
        scene: its edits act in every prompt; its prompt stands beside.
        name: of a task in `TASKS`.
        tasks: the prompts of this server's model.
        pace: of this server, which learns from it.
        stop: set when nobody waits any more.
    """
    changes, pairs = _changes(model, scene), tasks.pairs(name)
    answers = _answers(model, scene)
    own = pairs_of(model, scene, answers, patched=patched(scene)).to(model.device)
    with pace.timed(CUT, _forecast(model, pairs)), stopping(model, stop):
        of_task = _differences(model, pairs, changes)  # [run, prompt]
        of_own = _differences(model, own, changes)[:, 0]
    values = np.stack([*of_task, of_task[1] - of_task[0]])
    mean, _, low, high = bootstrap(values, seed=SEED)
    beside = [*of_own, of_own[1] - of_own[0]]
    rows = zip(("without the edits", "with the edits", "change"), mean, low, high, beside, strict=True)
    return {
        "n": len(pairs),
        "answers": [visible_token(token_text(model, one)) for one in answers],
        "rows": [
            {"what": what, "mean": float(m), "low": float(lo), "high": float(hi), "own": float(here)}
            for what, m, lo, hi, here in rows
        ][: 3 if changes else 1],
    }


def _answers(model: HookedModel, scene: Scene) -> tuple[int, int]:
    """The page's answers; where they are not given, the two likeliest tokens of the model's own run."""
    if all(scene.answers):
        right, wrong = (answer_id(model, one) for one in scene.answers)
    else:
        plain = pairs_of(model, scene, patched=False).to(model.device)
        with torch.no_grad():
            right, wrong = model(plain.clean)[0, -1].topk(2).indices.tolist()
    if right == wrong:
        raise PromptError("the two answers are the same token: a logit difference needs two that differ")
    return right, wrong


@torch.no_grad()
def _differences(model: HookedModel, pairs: PromptPairs, changes: list[Change]) -> np.ndarray[Any, Any]:
    """The logit difference of each prompt without and with changes [run, prompt]."""
    found: list[list[np.ndarray[Any, Any]]] = [[], []]
    for first in range(0, len(pairs), AT_ONCE):
        some = pairs[first : first + AT_ONCE]
        for values, variant in zip(found, (Variant([]), variant_of(model, some, changes)), strict=True):
            with run_of(model, some, variant):
                logits = model(**some.inputs(CLEAN))
            values.append(evaluate(METRIC, read(METRIC, logits, some), some, None).double().cpu().numpy())
    return np.stack([np.concatenate(values) for values in found])
