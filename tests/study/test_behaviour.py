"""Whether a model does a task: the measurement against prompts one by one, the verdict against what it may say."""

from __future__ import annotations

import math
import re

import pandas as pd
import pytest
import torch
from makers import make, pairs_of

import interp
from interp.errors import InterpError, UnknownName
from interp.metrics import METRICS
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.study import behaviour as doing
from interp.tasks import induction

ABOVE = "it puts the right answer above the wrong one in"
ONE = "1 prompt is too few to say whether it does the task"


def said(right: int, n: int, *, by: float = 2.0, first: int | None = None, prob: float = 0.25) -> pd.DataFrame:
    """A table in which the first `right` of n prompts are right, by some logits, and the first `first` of them said."""
    values = [by if at < right else -by for at in range(n)]
    rows = [("clean", at, "logit_diff", value, "x") for at, value in enumerate(values)]
    rows += [("clean", at, "correct", float(value > 0), "x") for at, value in enumerate(values)]
    if first is not None:
        rows += [("clean", at, "prob", prob, "x") for at in range(n)]
        rows += [("clean", at, "rank", float(at >= first) * 7, "x") for at in range(n)]
    return pd.DataFrame(rows, columns=["side", "prompt", "metric", "value", "says"])


def test_every_number_is_what_a_forward_of_the_prompt_alone_gives(model: GPT) -> None:
    pairs = pairs_of()
    frame = doing.behaviour(model, pairs).set_index(["side", "metric", "prompt"])
    assert len(frame) == 2 * 4 * 3
    for side, rows in (("clean", pairs.clean), ("corrupt", pairs.corrupt)):
        for at, (row, length) in enumerate(zip(rows, pairs.lengths.tolist(), strict=True)):
            last = model(row[None, :length])[:, -1].detach()
            for name in doing.METRIC_NAMES:
                expected = float(METRICS[name].fn(last, pairs.answers[at : at + 1], None))
                assert frame.loc[(side, name, at), "value"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
            assert frame.loc[(side, "rank", at), "says"] == str(int(last.argmax()))


def test_prompts_that_are_too_many_for_one_forward_are_run_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = make("llama_gqa"), pairs_of(6, 4, 6, 3, 5)
    whole = doing.behaviour(model, pairs)
    monkeypatch.setattr(doing, "MOST_LOGITS", 2 * 6 * 29)
    parts = doing.behaviour(model, pairs)
    assert parts["value"].tolist() == pytest.approx(whole["value"].tolist(), rel=1e-4, abs=1e-5)
    assert parts.drop(columns="value").equals(whole.drop(columns="value"))


def test_a_pair_without_a_contrast_has_one_side_and_half_precision_gives_numbers() -> None:
    pairs = PromptPairs.from_tokens([[1, 2, 3], [4, 5]], answers=[(1, 2), (3, 4)])
    model = make("gpt2")
    frame = doing.behaviour(model, pairs)
    assert set(frame["side"]) == {"clean"} and "corrupt" not in doing.verdict(frame, "it")
    half = doing.behaviour(model.to(torch.bfloat16), pairs)
    assert half["value"].notna().all() and set(half["metric"]) == set(doing.METRIC_NAMES)


def test_one_more_metric_is_measured_and_told() -> None:
    model, pairs = make("gpt2"), pairs_of()
    frame = doing.behaviour(model, pairs, metric="log_prob")
    values = frame.pivot_table(index=["side", "prompt"], columns="metric", values="value")
    assert values["log_prob"].map(math.exp).tolist() == pytest.approx(values["prob"].tolist(), rel=1e-5)
    assert "; its log_prob is -" in doing.verdict(frame, "it")
    with pytest.raises(UnknownName, match="did you mean 'log_prob'"):
        doing.behaviour(model, pairs, metric="log_prb")
    with pytest.raises(InterpError, match="metric 'kl' compares two runs"):
        doing.behaviour(model, pairs, metric="kl")


@pytest.mark.parametrize(
    ("right", "n", "does", "says"),
    [
        (
            31,
            32,
            True,
            f"it does the task: {ABOVE} 97% of 32 prompts (95% interval 84% to 100%)",
        ),
        (
            23,
            32,
            True,
            f"it does the task better than by guessing: {ABOVE} 72% of 32",
        ),
        (17, 32, False, "it does not do the task, as far as 32 prompts can tell (p = 0.43 by guessing)"),
        (
            2,
            32,
            False,
            f"it does not do the task, it does the opposite: {ABOVE} 6% of 32",
        ),
        (5, 5, True, f"it does the task: {ABOVE} 100% of 5 prompts"),
        (4, 4, None, "4 prompts are too few to say whether it does the task"),
        (0, 4, None, "4 prompts are too few to say whether it does the task"),
        (
            1,
            1,
            None,
            f"{ONE}: it prefers the right answer of the two, with a logit",
        ),
        (
            0,
            1,
            None,
            f"{ONE}: it prefers the wrong answer of the two, with a logit",
        ),
    ],
)
def test_the_verdict_says_no_more_than_the_count_can(right: int, n: int, does: bool | None, says: str) -> None:
    frame = said(right, n)
    ability = doing.able(frame)
    guessed = sum(math.comb(n, k) for k in range(right, n + 1)) / 2**n  # the exact test, written out
    assert ability.p == pytest.approx(guessed) and (ability.right, ability.n) == (right, n)
    assert ability.does is does and ability.ci_low <= ability.share <= ability.ci_high
    sentence = doing.verdict(frame, "it")
    assert sentence.startswith(says) and sentence.endswith(".") and "nan" not in sentence


@pytest.mark.parametrize(
    ("right", "first", "n", "opening", "own"),
    [
        (
            20,
            1,
            20,
            "it tells the right answer from the wrong one, but in most prompts says something else: ",
            "5% (0% ",
        ),
        (20, 20, 20, "it does the task: ", "100% (83% to 100%)"),
        (15, 4, 20, "it tells the right answer from the wrong one better than by guessing, but in most", "20% (6% to"),
        (10, 2, 20, "it does not do the task, as far as 20 prompts can tell", "10% (1% to 32%)"),
    ],
)
def test_the_verdict_tells_the_better_of_two_from_what_is_said(
    right: int, first: int, n: int, opening: str, own: str
) -> None:
    frame = said(right, n, first=first, prob=0.03)
    ability = doing.able(frame)
    assert (ability.right, ability.first, ability.prob) == (right, first, pytest.approx(0.03))
    sentence = doing.verdict(frame, "it")
    assert sentence.startswith(opening)
    assert f" {right / n:.0%} of {n} prompts" in sentence and f" {own}" in sentence and " 0.03 " in sentence
    assert re.findall(r"[\d.]+%?", doing.verdict(said(1, 1, first=0, prob=0.03), "it"))[-1] == "0.03."


def test_the_summary_names_what_is_scored_where() -> None:
    model, pairs = make("gpt2"), pairs_of()
    frame = doing.behaviour(model, pairs)
    table = doing.summary(frame)
    assert table.groupby("side")["scored"].unique().map(list).to_dict() == {
        "clean": ["clean answer on the clean prompt"],
        "corrupt": ["clean answer on the corrupt prompt"],
    }
    of = table.set_index(["side", "metric"])
    for side in ("clean", "corrupt"):
        ranks = frame[(frame["side"] == side) & (frame["metric"] == "rank")]["value"]
        assert of.loc[(side, "first"), "value"] == (ranks == 0).mean()
        assert of.loc[(side, "first"), "measured"] == "share with right as the likeliest token"


def test_the_exact_interval_leaves_out_what_the_count_makes_unlikely() -> None:
    ability = doing.able(said(9, 12))

    def tail(share: float, counts: range) -> float:
        return sum(math.comb(12, k) * share**k * (1 - share) ** (12 - k) for k in counts)

    assert tail(ability.ci_low, range(9, 13)) == pytest.approx(0.025, rel=1e-4)
    assert tail(ability.ci_high, range(10)) == pytest.approx(0.025, rel=1e-4)
    table = doing.summary(said(9, 12)).set_index("metric")
    assert (table.loc["correct", "ci_low"], table.loc["correct", "ci_high"]) == (ability.ci_low, ability.ci_high)


def test_a_table_without_the_measurement_is_refused() -> None:
    with pytest.raises(InterpError, match="this table has no 'correct' of the corrupt side"):
        doing.able(said(3, 4), side="corrupt")


def test_the_toy_model_does_induction_and_says_what_comes_next() -> None:
    model = interp.load("toy", device="cpu")
    pairs = induction(model, n=16, prepend_bos=True)
    frame = doing.behaviour(model, pairs)
    assert doing.able(frame).does and doing.verdict(frame, "toy").startswith("toy does the task: ")
    told = frame[(frame["side"] == "clean") & (frame["metric"] == "rank")].set_index("prompt")
    top = told[told["value"] == 0]
    assert len(top) > 12
    assert top["says"].tolist() == [str(int(pairs.answers[at, 0])) for at in top.index]
