"""Metrics against scipy's own softmax and entropy, row by row, and the identities that normalised effects obey."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import make
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor

from interp import metrics
from interp.errors import PromptError, UnknownName
from interp.metrics import (
    DIGESTS,
    METRICS,
    Metric,
    at_last,
    check_answers,
    digest,
    get_metric,
    measure,
    normalised_effect,
)
from interp.prompts.pairs import PromptPairs
from interp.resume.fingerprint import fingerprint

OF_ANSWERS = [name for name in METRICS if not METRICS[name].whole]  # those of one position


def by_hand(name: str, logits: np.ndarray, right: int, wrong: int, reference: np.ndarray) -> float:
    """One row's value, the long way."""
    return {
        "logit_diff": lambda: logits[right] - logits[wrong],
        "logit": lambda: logits[right],
        "log_prob": lambda: log_softmax(logits)[right],
        "prob": lambda: softmax(logits)[right],
        "rank": lambda: sum(other > logits[right] for other in logits),
        "correct": lambda: float(logits[right] > logits[wrong]),
        "kl": lambda: rel_entr(softmax(reference), softmax(logits)).sum(),
    }[name]()


@pytest.mark.parametrize("name", OF_ANSWERS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), size=st.integers(2, 40), scale=st.sampled_from([0.1, 3, 30])
)
def test_every_metric_is_what_it_says(name: str, seed: int, rows: int, size: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    logits, reference = (np.round(rng.normal(scale=scale, size=(rows, size)), 1) for _ in range(2))  # ties happen
    answers = np.array([rng.permutation(size)[:2] for _ in range(rows)])
    got = METRICS[name].fn(torch.tensor(logits), torch.tensor(answers), torch.tensor(reference))
    expected = [by_hand(name, logits[row], *answers[row], reference[row]) for row in range(rows)]
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OF_ANSWERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    logits, reference = torch.randn(2, 4, 300).mul(8).to(dtype)
    answers = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
    got = METRICS[name].fn(logits, answers, reference)
    assert got.dtype == torch.float32
    assert torch.equal(got, METRICS[name].fn(logits.float(), answers, reference.float()))


def test_rank_counts_only_what_stands_strictly_above() -> None:
    logits = torch.tensor([[3.0, 5.0, 5.0, 1.0, 5.0, 9.0]])
    rank = METRICS["rank"].fn
    assert [int(rank(logits, torch.tensor([[at, 0]]))) for at in range(6)] == [4, 1, 1, 5, 1, 0]


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_broken_logits_give_nan_and_not_a_good_rank(name: str) -> None:
    logits = torch.full((1, 4), float("nan"))
    assert METRICS[name].fn(logits, torch.tensor([[0, 1]]), torch.zeros(1, 4)).isnan().all()


def test_kl_of_a_run_to_itself_is_zero_and_grows_elsewhere() -> None:
    logits = torch.randn(5, 30, dtype=torch.float64)
    answers = torch.tensor([[0, 1]] * 5)
    kl = METRICS["kl"].fn
    assert torch.equal(kl(logits, answers, logits), torch.zeros(5, dtype=torch.float64))
    shifted = kl(logits + 7, answers, logits)  # the same distribution
    assert shifted.abs().max() < 1e-12
    assert (kl(logits * 2, answers, logits) > 1e-3).all()


def test_kl_takes_tokens_that_are_ruled_out() -> None:
    answers = torch.tensor([[0, 1]])
    run, never = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[0.0, 0.0, -torch.inf]], dtype=torch.float64)
    kl = METRICS["kl"].fn
    assert float(kl(run, answers, never)) == pytest.approx(np.log(3 / 2))  # 2 * 1/2 * log((1/2) / (1/3))
    assert float(kl(never, answers, run)) == np.inf
    run.requires_grad_(True)
    kl(run, answers, never).sum().backward()
    assert run.grad is not None and bool(run.grad.isfinite().all())


@pytest.mark.parametrize("name", ["logit_diff", "logit", "log_prob", "prob", "kl"])
def test_smooth_metrics_have_their_gradient(name: str) -> None:
    logits = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    reference, answers = torch.randn(3, 6, dtype=torch.float64), torch.tensor([[0, 1], [5, 2], [3, 4]])
    assert torch.autograd.gradcheck(lambda x: METRICS[name].fn(x, answers, reference), logits)


@pytest.fixture
def pairs() -> PromptPairs:
    return PromptPairs.from_tokens(
        [[3, 4, 5, 6], [7, 8], [1, 2, 3]], [[3, 4, 9, 6], [7, 9], [1, 9, 3]], answers=[(1, 2), (3, 4), (5, 6)]
    )


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_measure_reads_each_prompt_s_last_token(name: str, pairs: PromptPairs) -> None:
    model = make("llama_gqa")
    with torch.no_grad():
        logits = model(pairs.clean, attention_mask=pairs.mask)
        reference = model(pairs.corrupt, attention_mask=pairs.mask)
        got = measure(name, logits, pairs, reference=reference)
        for at, one in enumerate(pairs):  # alone, without padding
            assert bool(one.mask.all())
            alone = measure(name, model(one.clean), one, reference=model(one.corrupt))
            torch.testing.assert_close(got[at : at + 1], alone, rtol=1e-4, atol=1e-5)
    row = torch.arange(3)
    assert torch.equal(at_last(logits, pairs), logits[row, torch.tensor([3, 1, 2])])


def test_a_function_of_all_logits_is_a_metric(pairs: PromptPairs) -> None:
    def spread(logits: Tensor, pairs: PromptPairs) -> Tensor:
        """Largest minus smallest logit anywhere.

        More words.
        """
        return (logits * pairs.mask[..., None]).amax((1, 2)) - logits.amin((1, 2))

    logits = torch.randn(3, 4, 11)
    metric = get_metric(spread)
    assert (metric.name, metric.definition, metric.whole) == ("spread", "Largest minus smallest logit anywhere.", True)
    assert torch.equal(measure(spread, logits, pairs), spread(logits, pairs))
    assert get_metric(lambda logits, pairs: logits[:, 0, 0]).name == "custom"
    assert get_metric(metric) is metric and get_metric("kl") is METRICS["kl"]


def test_what_cannot_be_measured_is_refused(pairs: PromptPairs) -> None:
    logits = torch.randn(3, 4, 11)
    with pytest.raises(UnknownName, match="no metric matches 'logitdiff'; did you mean 'logit_diff'"):
        get_metric("logitdiff")
    with pytest.raises(UnknownName, match="choose from 'logit_diff'"):
        get_metric(3)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="'kl' compares with a reference run"):
        measure("kl", logits, pairs)
    with pytest.raises(PromptError, match="'kl' compares with a reference run"):
        METRICS["kl"].fn(logits[:, 0], pairs.answers, None)
    with pytest.raises(PromptError, match=r"logits are \[2, 4, 11\], expected .* of 3 pairs padded to 4"):
        measure("prob", logits[:2], pairs)
    with pytest.raises(PromptError, match=r"pair 2: the wrong answer, id 6, is out of range: .* 0 to 5"):
        measure("prob", logits[..., :6], pairs)
    with pytest.raises(PromptError, match=r"'mean' returned \[\], expected a tensor \[3\]"):
        measure(Metric("mean", lambda logits, pairs: logits.mean(), "", "", whole=True), logits, pairs)
    check_answers(pairs.answers, 7)


FINITE = st.floats(-1e3, 1e3)


@settings(max_examples=100, deadline=None)
@given(base=FINITE, source=FINITE, share=st.floats(-3, 3))
def test_effect_is_the_share_of_the_way(base: float, source: float, share: float) -> None:
    value = base + share * (source - base)
    effect = float(normalised_effect(value, base, source))
    if abs(source - base) <= 1e-5 * max(abs(source), abs(base)):
        assert np.isnan(effect)
    else:
        assert effect == pytest.approx(share, abs=1e-6)


def test_effect_takes_tensors_arrays_and_columns() -> None:
    value = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    base, source = [1.0, 1.0, 1.0], [3.0, 1.0, -1.0]
    expected = [[0.0, np.nan, -1.0], [1.5, np.nan, -2.5]]
    half: Any = torch.tensor(value, dtype=torch.bfloat16, requires_grad=True)
    for one in (value, np.array(value), torch.tensor(value), half, pd.DataFrame(value)):
        np.testing.assert_array_equal(normalised_effect(one, torch.tensor(base), pd.Series(source)), expected)


def test_effect_is_nan_where_only_rounding_separates_the_runs() -> None:
    base = np.float32(20.0)
    assert np.isnan(normalised_effect(21.0, base, np.nextafter(base, np.float32(30))))
    assert normalised_effect(3e-7, 1e-7, 5e-7) == pytest.approx(
        0.5
    )  # small numbers are no rounding error by themselves
    assert np.isnan(normalised_effect(1.0, 0.0, 0.0))
    assert np.isnan(normalised_effect(1.0, float("nan"), 0.0))


IDS = torch.tensor([[1, -1], [2, 3]])


@pytest.mark.parametrize("name", ["mean_logit", "joint_logit", "best_logit", "joint_log_prob"])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        *[({"ids": ids}, "ids must be token ids") for ids in (IDS.float(), IDS > 0, IDS[0], IDS[:1], IDS[:, :0])],
        *[({"ids": torch.tensor(1)}, "ids must be token ids"), ({"ids": IDS + 3}, "id 5 is out of range")],
        ({"ids": IDS - 1}, "id -2 is out of range: these logits have ids 0 to 4"),
        *[({"logits": torch.ones(shape)}, "logits must be real numbers") for shape in ((), (5,), (1, 2, 5))],
        *[({"logits": torch.ones(2, 5, dtype=kind)}, "logits must be real") for kind in (torch.int64, torch.complex64)],
    ],
)
def test_no_logits_and_no_ids_are_refused(name: str, wrong: dict[str, Tensor], says: str) -> None:
    with pytest.raises(PromptError, match=says):
        getattr(metrics, name)(**{"logits": torch.ones(2, 5), "ids": IDS, **wrong})


@pytest.mark.parametrize("wrong", [torch.tensor(1.5), IDS.float(), IDS[0], IDS[:, :1], IDS[:, :, None, None]])
@pytest.mark.parametrize("call", [metrics.sides, lambda answers: check_answers(answers, 5)])
def test_no_answers_are_refused(call: Any, wrong: Tensor) -> None:
    with pytest.raises(PromptError, match="answers must be token ids"):
        call(wrong)


@pytest.mark.parametrize("wrong", [torch.zeros(0), torch.ones(2), torch.ones(2, 0), IDS, IDS > 0])
def test_the_largest_logit_is_of_logits(wrong: Tensor) -> None:
    with pytest.raises(PromptError, match="logits must be real numbers"):
        metrics.largest_logit(wrong)


def test_a_journal_knows_our_metrics_by_name_and_a_users_by_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert DIGESTS.keys() == METRICS.keys() and len(set(DIGESTS.values())) == len(DIGESTS)
    assert digest(get_metric("logit_diff")) == DIGESTS["logit_diff"]
    own = dataclasses.replace(METRICS["logit_diff"], fn=lambda logits, answers, reference: logits[:, 0])
    monkeypatch.setitem(METRICS, "own", dataclasses.replace(own, name="own"))
    assert digest(get_metric("own")) == fingerprint(get_metric("own"))
    assert digest(own) not in DIGESTS.values() and digest(own) != digest(dataclasses.replace(own, unit="nats"))
