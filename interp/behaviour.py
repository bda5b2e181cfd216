"""Whether a model does a task at all: nothing can be explained that it does not do.

1. Both sides of every pair are run; the answers' logit difference, probability and rank are read at the last position.
2. A prompt counts as right when the right answer's logit is above the wrong one's. Guessing gives a half; an exact
   binomial test says whether the count can be guessing, and its exact interval (Clopper and Pearson 1934) how sure the
   share is.
3. `verdict` says it in a sentence, also when there are too few prompts to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp import stats
from interp.arguments import checked
from interp.errors import InterpError
from interp.metrics import METRICS, Metric, get_metric, measure
from interp.model import HookedModel
from interp.prompts import PromptPairs
from interp.tasks.answer_sets import prob_diff

if TYPE_CHECKING:
    import pandas as pd

METRIC_NAMES = ("logit_diff", "correct", "prob", "rank")
MOST_LOGITS = 2**26  # numbers that one forward may give: 256 MB in float32
RELIABLE = 0.8


@dataclass(frozen=True)
class Ability:
    """What can be said of a model and a task.

    Attributes:
        does: True or False where the prompts tell it, None where they do not.
        right: how many prompts have the right answer above the wrong one.
        n: of how many.
        ci_low, ci_high: 95% interval of the share.
        p: probability of as many right answers or more by guessing.
        p_wrong: and of as few or fewer.
    """

    does: bool | None
    right: int
    n: int
    ci_low: float
    ci_high: float
    p: float
    p_wrong: float

    @property
    def share(self) -> float:
        """The share of prompts with the right answer above the wrong one."""
        return self.right / self.n


@checked
@torch.no_grad()
def behaviour(
    model: HookedModel, pairs: PromptPairs, *, metric: str | Metric | Callable[..., Tensor] | None = None
) -> pd.DataFrame:
    """What the model says on both sides of every pair.

    Args:
        model: the model.
        pairs: the prompts.
        metric: one more to measure; None takes the task's usual one (`pairs.notes["metric"]`).

    Returns:
        Columns `side` (clean, corrupt), `prompt`, `metric` (logit_diff, correct, prob, rank and the one more), `value`,
        `says` (the likeliest next token). The corrupt side is left out where it is the clean one.

    Raises:
        UnknownName: a metric that does not exist.
        InterpError: a metric that compares with another run.
    """
    import pandas as pd

    wanted = {name: METRICS[name] for name in METRIC_NAMES}
    extra = _usual(pairs) if metric is None else get_metric(metric)
    if extra.needs_reference:
        raise InterpError(f"metric {extra.name!r} compares two runs: behaviour needs one of a single run")
    wanted[extra.name] = extra
    pairs = pairs.to(model.device)
    sides = ("clean",) if torch.equal(pairs.clean, pairs.corrupt) else ("clean", "corrupt")
    size = max(1, MOST_LOGITS // (pairs.mask.shape[1] * model.cfg.d_vocab_out))
    rows = []
    for side in sides:
        values: dict[str, list[float]] = {name: [] for name in wanted}
        says: list[str] = []
        for start in range(0, len(pairs), size):
            part = pairs[start : start + size]
            logits = model(getattr(part, side), attention_mask=part.attention_mask)
            first = logits[torch.arange(len(part), device=logits.device), part.last].argmax(-1)
            says += [
                model.tokenizer.str_tokens([token])[0] if model.tokenizer else str(token) for token in first.tolist()
            ]
            for name, each in wanted.items():
                values[name] += measure(each, logits, part).float().tolist()
        for name, column in values.items():
            rows += [(side, at, name, value, says[at]) for at, value in enumerate(column)]
    return pd.DataFrame(rows, columns=["side", "prompt", "metric", "value", "says"])


def _usual(pairs: PromptPairs) -> Metric:
    """The metric that the task's notes name."""
    name = pairs.notes.get("metric", "logit_diff")
    if name == "prob_diff":
        return prob_diff(pairs)
    return METRICS.get(str(name), METRICS["logit_diff"])


@checked
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over prompts with intervals, for each side and metric; of `correct` the exact interval of a share."""
    table = stats.summarise(frame, by=["side", "metric"])
    for side in table["side"].unique():
        ability = able(frame, side=side)
        at = (table["side"] == side) & (table["metric"] == "correct")
        table.loc[at, ["ci_low", "ci_high"]] = ability.ci_low, ability.ci_high
    return table


@checked
def able(frame: pd.DataFrame, *, side: str = "clean") -> Ability:
    """Whether the right answer is above the wrong one more often than by guessing, by an exact binomial test.

    Args:
        frame: as `behaviour` gives it.
        side: the side of the pairs that counts.

    Raises:
        InterpError: a frame without a measurement of it.
    """
    from scipy.stats import binomtest

    values = frame.loc[(frame["side"] == side) & (frame["metric"] == "correct"), "value"].dropna()
    if values.empty:
        raise InterpError(f"this table has no 'correct' of the {side} side, as interp.behaviour.behaviour measures it")
    n, right = len(values), int(values.sum())
    above, below = (float(binomtest(right, n, 0.5, alternative=way).pvalue) for way in ("greater", "less"))
    interval = binomtest(right, n).proportion_ci(method="exact")
    decided = min(above, below) < stats.SURE
    does = above < stats.SURE if decided else (None if 0.5**n >= stats.SURE else False)
    return Ability(does, right, n, float(interval.low), float(interval.high), above, below)


@checked
def verdict(frame: pd.DataFrame, name: str) -> str:
    """One sentence: whether the model called `name` does the task, how often, by how much, how sure.

    Args:
        frame: as `behaviour` gives it.
        name: what to call the model.
    """
    ability = able(frame)
    table = stats.summarise(frame, by=["side", "metric"]).set_index(["side", "metric"])
    prompts = "1 prompt" if ability.n == 1 else f"{ability.n} prompts"
    if ability.does is None:
        opening = f"{prompts} {'is' if ability.n == 1 else 'are'} too few to say whether {name} does the task"
    elif ability.does:
        opening = f"{name} {'does the task' if ability.share >= RELIABLE else 'does the task better than by guessing'}"
    elif ability.p_wrong < stats.SURE:
        opening = f"{name} does not do the task, it does the opposite"
    else:
        opening = f"{name} does not do the task, as far as {prompts} can tell (p = {ability.p:.2f} by guessing)"
    clean = table.loc[("clean", "logit_diff")]
    if ability.n > 1:
        interval = f"95% interval {ability.ci_low:.0%} to {ability.ci_high:.0%}"
        said = (
            f"{opening}: it prefers the right answer in {ability.share:.0%} of {prompts} ({interval}), by {_by(clean)} "
            "logits on average"
        )
    else:
        preferred = "right" if ability.right else "wrong"
        said = f"{opening}: it prefers the {preferred} answer, with a logit difference of {_by(clean)}"
    usual = [metric for metric in table.loc["clean"].index if metric not in METRIC_NAMES]
    said += "".join(f"; its {metric} is {_by(table.loc[('clean', metric)])}" for metric in usual)
    if ("corrupt", "logit_diff") in table.index:
        said += f"; on the corrupt prompts the difference is {table.loc[('corrupt', 'logit_diff')]['value']:.2f}"
    return f"{said}."


def _by(row: pd.Series) -> str:
    """A mean with its interval, where it has one."""
    interval = f" ({row['ci_low']:.2f} to {row['ci_high']:.2f})" if row["ci_low"] == row["ci_low"] else ""
    return f"{row['value']:.2f}{interval}"
