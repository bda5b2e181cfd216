"""Whether a model does a task at all: nothing can be explained that it does not do.

1. Both sides of every pair are run; the answers' logit difference, probability and rank are read at the last position
   (or at the role "MASK").
2. A prompt counts as right when the right answer's logit is above the wrong one's. Guessing gives a half; an exact
   binomial test says whether the count can be guessing, and an exact interval (`interp.stats.share_interval`) how sure
   the share is.
3. To be above one wrong answer is not to be said: how often the right answer is the likeliest of all tokens is told as
   well, and what probability it has.
4. `verdict` says it in a sentence, also when there are too few prompts to say.

What is right is right for the clean prompt, also where the corrupt one is run.
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
from interp.hooked.model import HookedModel
from interp.metrics import METRICS, Metric, get_metric, measure
from interp.prompts.pairs import PromptPairs, fitting
from interp.study.sentences import bounds, counted, interval
from interp.tasks.answer_sets import prob_diff

if TYPE_CHECKING:
    import pandas as pd

METRIC_NAMES = ("logit_diff", "correct", "prob", "rank")
MOST_LOGITS = 2**26  # numbers that one forward may give: 256 MB in float32
RELIABLE = 0.8
SPOKEN = 0.5  # the share of prompts from which on a model is said to say the answer
SCORED = {"clean": "clean answer on the clean prompt", "corrupt": "clean answer on the corrupt prompt"}
MEASURED = {
    "logit_diff": "logit, right minus wrong",
    "correct": "share with right above wrong",
    "first": "share with right as the likeliest token",
    "prob": "probability of right",
    "rank": "tokens above right",
}


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
        first: how many prompts have the right answer as the likeliest of all tokens; None where that is not known.
        prob: the right answer's mean probability; None where that is not known.
    """

    does: bool | None
    right: int
    n: int
    ci_low: float
    ci_high: float
    p: float
    p_wrong: float
    first: int | None = None
    prob: float | None = None

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
        `says` (the likeliest token there). The corrupt side is left out where it is the clean one.

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
    pairs = fitting(model, pairs).to(model.device)
    sides, tokenizer = ("clean", "corrupt") if pairs.contrast else ("clean",), model.answer_tokenizer
    size = max(1, MOST_LOGITS // (pairs.mask.shape[1] * model.cfg.d_vocab_out))
    rows = []
    for side in sides:
        values: dict[str, list[float]] = {name: [] for name in wanted}
        says: list[str] = []
        for start in range(0, len(pairs), size):
            part = pairs[start : start + size]
            logits = model(**part.inputs(side))
            first = logits[torch.arange(len(part), device=logits.device), part.read_at].argmax(-1)
            says += [tokenizer.str_tokens([token])[0] if tokenizer else str(token) for token in first.tolist()]
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
    """Mean over prompts with intervals, for each side and metric, and what each is of.

    `scored` names the answer that counts as right and the prompt that it is scored on; `measured` says the metric in
    words. `first` is the share of prompts whose likeliest token is the right answer.
    """
    table = stats.summarise(_with_first(frame), by=["side", "metric"])
    words = [MEASURED.get(metric, metric.replace("_", " ")) for metric in table["metric"]]
    table.insert(0, "scored", table["side"].map(SCORED))
    table.insert(table.columns.get_loc("metric") + 1, "measured", words)
    return table


def _with_first(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with rows of the metric `first`, after those of `correct`."""
    import pandas as pd

    rank = frame[frame["metric"] == "rank"]
    first = rank.assign(metric="first", value=(rank["value"] == 0).astype(float).where(rank["value"].notna()))
    both = pd.concat([frame, first], ignore_index=True)
    order = ["logit_diff", "correct", "first", "prob", "rank"]
    place = both["metric"].map({name: at for at, name in enumerate(order)}).fillna(len(order))
    sides = both["side"].map({side: at for at, side in enumerate(frame["side"].unique())})
    return both.assign(_side=sides, _place=place).sort_values(["_side", "_place"], kind="stable")[list(frame)]


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
        raise InterpError(
            f"this table has no 'correct' of the {side} side: give one of `interp.study.behaviour.behaviour`"
        )
    n, right = len(values), int(values.sum())
    above, below = (float(binomtest(right, n, 0.5, alternative=way).pvalue) for way in ("greater", "less"))
    low, high = map(float, stats.share_interval(right, n))
    decided = min(above, below) < stats.SURE
    does = above < stats.SURE if decided else (None if 0.5**n >= stats.SURE else False)
    first, prob = (frame.loc[(frame["side"] == side) & (frame["metric"] == name), "value"] for name in ("rank", "prob"))
    return Ability(
        *(does, right, n, low, high, above, below),
        first=int((first == 0).sum()) if len(first) == n else None,
        prob=float(prob.mean()) if len(prob) else None,
    )


@checked
def verdict(frame: pd.DataFrame, name: str, *, masked: bool = False) -> str:
    """One sentence: whether the model called `name` does the task, how often, by how much, how sure.

    How often the right answer is above the wrong one, and how often it is what the model itself would say next.

    Args:
        frame: as `behaviour` gives it.
        name: what to call the model.
        masked: whether it says a masked token, and not the next one.
    """
    ability = able(frame)
    table = stats.summarise(frame, by=["side", "metric"]).set_index(["side", "metric"])
    prompts = counted(ability.n)
    if ability.does is None:
        opening = f"{prompts} {'is' if ability.n == 1 else 'are'} too few to say whether {name} does the task"
    elif ability.does:
        spoken = ability.first is None or ability.first >= SPOKEN * ability.n
        what = "does the task" if spoken else "tells the right answer from the wrong one"
        opening = f"{name} {what}{'' if ability.share >= RELIABLE else ' better than by guessing'}"
        opening += "" if spoken else ", but in most prompts says something else"
    elif ability.p_wrong < stats.SURE:
        opening = f"{name} does not do the task, it does the opposite"
    else:
        opening = f"{name} does not do the task, as far as {prompts} can tell (p = {ability.p:.2f} by guessing)"
    clean = table.loc[("clean", "logit_diff")]
    if ability.n > 1:
        said = (
            f"{opening}: it puts the right answer above the wrong one in {ability.share:.0%} of {prompts} "
            f"({interval(vars(ability), '.0%')}), by {_by(clean)} logits on average"
        )
    else:
        preferred = "right" if ability.right else "wrong"
        said = f"{opening}: it prefers the {preferred} answer of the two, with a logit difference of {_by(clean)}"
    said += _own_words(ability, "likeliest token at the mask" if masked else "own next token")
    usual = [metric for metric in table.loc["clean"].index if metric not in METRIC_NAMES]
    said += "".join(f"; its {metric} is {_by(table.loc[('clean', metric)])}" for metric in usual)
    if ("corrupt", "logit_diff") in table.index:
        corrupt = table.loc[("corrupt", "logit_diff")]["value"]
        said += f"; the clean answers' difference on the corrupt prompts is {corrupt:.2f}"
    return f"{said}."


@checked
def in_short(frame: pd.DataFrame, name: str) -> str:
    """The same without details, for a summary.

    Args:
        frame, name: as `verdict` has them.
    """
    ability = able(frame)
    if ability.does is None:
        opening = f"{counted(ability.n)} cannot tell whether {name} does the task"
    elif ability.does:
        opening = f"{name} does the task"
    elif ability.p_wrong < stats.SURE:
        opening = f"{name} does the opposite of the task"
    else:
        opening = f"{name} does not do the task"
    difference = frame[(frame["metric"] == "logit_diff") & (frame["side"] == "clean")]
    clean = stats.summarise(difference, by=["metric"]).iloc[0]
    return (
        f"{opening}: the right answer is above the wrong one in {ability.right} of {counted(ability.n)} "
        f"({interval(vars(ability), '.0%')}), by {_by(clean)} logits on average."
    )


def failures(frame: pd.DataFrame) -> list[int]:
    """The prompts on which the right answer is not above the wrong one, on the clean side."""
    rows = frame[(frame["side"] == "clean") & (frame["metric"] == "correct")]
    return rows.loc[rows["value"] < 1, "prompt"].tolist()


def _own_words(ability: Ability, what: str) -> str:
    """How often the right answer is what the model itself says, and its probability, where both are known."""
    if ability.first is None or ability.prob is None:
        return ""
    if ability.n == 1:
        said = "; the right answer is " + ("" if ability.first else "not ") + f"its {what}"
        return f"{said}, and has probability {ability.prob:.2g}"
    low, high = map(float, stats.share_interval(ability.first, ability.n))
    share = f"{ability.first / ability.n:.0%} ({low:.0%} to {high:.0%})"
    return f"; the right answer is its {what} in {share}, and has probability {ability.prob:.2g} on average"


def _by(row: pd.Series) -> str:
    """A mean with its interval, where it has one."""
    return f"{row['value']:.2f}{bounds(row, before=' (', after=')')}"
