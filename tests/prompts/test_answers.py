"""Several right or wrong answers of a pair: every metric against a loop, and sets that stay with their pairs."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import make
from scipy.special import log_softmax, logsumexp, softmax
from torch import Tensor

import interp
from analyses.head_attribution import run as head_attribution
from interp.attribution.gradients import gradients
from interp.circuits.graph import Graph
from interp.circuits.run import run_circuits
from interp.errors import ConfigError, PromptError
from interp.ground_truth.identities import _direct
from interp.lenses.read import read
from interp.metrics import METRICS, Metric, at_last, logit_weights, measure
from interp.prompts.pairs import PromptPairs
from interp.tasks import prob_diff

CLEAN = [[1, 2, 3], [4, 5], [1, 2, 3], [6, 7, 8, 9], [6, 7, 8, 9]]
CORRUPT = [[1, 9, 3], [4, 8], [1, 9, 3], [6, 5, 8, 9], [6, 5, 8, 9]]
# The first and the third prompt are the same, and so are the last two: their answers are not.
ANSWERS: list[Any] = [([5, 6], 7), (8, 9), ([7, 9, 2], [5, 6]), (3, [4, 1, 2]), ([10], [3])]


@pytest.fixture
def pairs() -> PromptPairs:
    return PromptPairs.from_tokens(CLEAN, CORRUPT, answers=ANSWERS)


def as_lists(answers: Any) -> list[list[list[int]]]:
    return [[side if isinstance(side, list) else [side] for side in pair] for pair in answers]


def by_hand(name: str, logits: np.ndarray, right: list[int], wrong: list[int]) -> float:
    return {
        "logit_diff": lambda: logits[right].mean() - logits[wrong].mean(),
        "logit": lambda: logits[right].mean(),
        "log_prob": lambda: logsumexp(log_softmax(logits)[right]),
        "prob": lambda: softmax(logits)[right].sum(),
        "rank": lambda: min(sum(other > logits[one] for other in logits) for one in right),
        "correct": lambda: float(max(logits[right]) > max(logits[wrong])),
        "prob_diff": lambda: softmax(logits)[right].sum() - softmax(logits)[wrong].sum(),
    }[name]()


def named(name: str) -> Metric:
    return prob_diff() if name == "prob_diff" else METRICS[name]


MEASURED = ["logit_diff", "logit", "log_prob", "prob", "rank", "correct", "prob_diff"]


@pytest.mark.parametrize("name", MEASURED)
def test_a_metric_measures_every_answer(pairs: PromptPairs, name: str) -> None:
    logits = torch.randn(5, 4, 11, dtype=torch.float64) * 3
    last = at_last(logits, pairs).numpy()
    expected = [by_hand(name, row, *sets) for row, sets in zip(last, as_lists(ANSWERS), strict=True)]
    assert measure(named(name), logits, pairs).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_set_of_one_is_the_answer_to_the_last_bit(name: str, dtype: torch.dtype) -> None:
    single = [(5, 7), (8, 9), (7, 5), (3, 4), (10, 3)]
    plain = PromptPairs.from_tokens(CLEAN, CORRUPT, answers=single)
    listed = PromptPairs.from_tokens(CLEAN, CORRUPT, answers=[([r], [w]) for r, w in single])
    assert listed.answer_sets == () and listed.digest() == plain.digest()
    mixed = PromptPairs.from_tokens(CLEAN, CORRUPT, answers=[*single[:-1], ([10, 2, 1], 3)])
    logits = (torch.randn(5, 4, 11) * 3).to(dtype)
    one, other, among = (measure(named(name), logits, given) for given in (plain, listed, mixed))
    assert torch.equal(one, other) and torch.equal(one[:-1], among[:-1])


def test_two_pairs_with_one_prompt_keep_their_own_answers(pairs: PromptPairs) -> None:
    model = make("gpt2")
    logits = model(pairs.clean, attention_mask=pairs.attention_mask).detach()
    found = measure(prob_diff(pairs), logits, pairs)
    alone = [
        measure(
            prob_diff(), logits[at : at + 1, :n], PromptPairs.from_tokens(CLEAN[at : at + 1], answers=[ANSWERS[at]])
        )
        for at, n in enumerate(pairs.lengths.tolist())
    ]
    assert found.tolist() == pytest.approx(torch.cat(alone).tolist(), abs=1e-6)
    assert found[0] != found[2] and found[3] != found[4]


def test_sets_follow_their_pairs(pairs: PromptPairs, tmp_path: Path) -> None:
    sets = tuple(tuple(map(tuple, pair)) for pair in as_lists(ANSWERS))
    assert pairs.answer_sets == sets and pairs.answers.tolist() == [[5, 7], [8, 9], [7, 5], [3, 4], [10, 3]]
    assert pairs[2:4].answer_sets == sets[2:4] and pairs[[3, 0]].answer_sets == (sets[3], sets[0])
    assert pairs[1].answer_sets == () and pairs[[1, 4]].answer_sets == ()  # one of each: as if made of these alone
    assert [one.answer_sets or None for one in pairs][2] == (sets[2],)
    assert pairs.to("cpu").answer_sets == sets and pickle.loads(pickle.dumps(pairs)).answer_sets == sets
    back = PromptPairs.load(pairs.save(tmp_path / "pairs.json"))
    assert back.answer_sets == sets and back.digest() == pairs.digest()
    assert pairs.answer_table[2].tolist() == [[7, 9, 2], [5, 6, -1]]


def test_the_digest_is_of_every_answer(pairs: PromptPairs) -> None:
    fewer = PromptPairs.from_tokens(CLEAN, CORRUPT, answers=[([5], 7), *ANSWERS[1:]])
    plain = PromptPairs.from_tokens(CLEAN, CORRUPT, answers=pairs.answers)
    assert len({pairs.digest(), fewer.digest(), plain.digest()}) == 3
    assert torch.equal(fewer.answers, pairs.answers)


@pytest.mark.parametrize("name", ["logit_diff", "prob", "prob_diff", "rank"])
@pytest.mark.parametrize("kind", ["gpt2", "llama_gqa", "mamba"])
def test_a_sweep_measures_them_in_chunks(pairs: PromptPairs, name: str, kind: str) -> None:
    model, metric = make(kind), named(name)
    variants = [
        interp.Variant((interp.Edit("resid_post", {"layer": layer, "pos": -1}),), {"layer": layer}) for layer in (0, 1)
    ]
    whole = interp.sweep(model, pairs, variants, metric=metric, progress=False)
    budget = 1 << 12
    while True:
        try:
            parts = interp.sweep(model, pairs, variants, metric=metric, max_memory=budget, progress=False)
            break
        except ConfigError:
            budget *= 2
    np.testing.assert_allclose(parts["value"], whole["value"], atol=1e-4)
    for side, column in (("clean", "source_value"), ("corrupt", "base_value")):
        logits = model(getattr(pairs, side), attention_mask=pairs.attention_mask).detach().double()
        last = at_last(logits, pairs).numpy()
        expected = [by_hand(name, row, *sets) for row, sets in zip(last, as_lists(ANSWERS), strict=True)]
        np.testing.assert_allclose(whole[column][:5], expected, atol=1e-4)


def test_circuits_gradients_and_direct_attributions_measure_them(pairs: PromptPairs) -> None:
    model = make("llama")
    graph = Graph.of(model)
    logits = model(pairs.clean, attention_mask=pairs.attention_mask).detach()
    expected = measure("logit_diff", logits, pairs)
    full = run_circuits(model, pairs, graph.allowed[None], graph, base="clean", progress=False)
    np.testing.assert_allclose(full[0], expected, atol=1e-4)
    np.testing.assert_allclose(_direct(model, pairs), expected, atol=1e-4)
    frame = head_attribution(model, pairs)
    total, residue = (frame[frame["component"] == name]["value"] for name in ("total", "residue"))
    np.testing.assert_allclose(total, expected, atol=1e-4)
    np.testing.assert_allclose(residue, 0, atol=1e-4)
    # At the last position of the last layer the gradient is that of the metric itself.
    found = gradients(model, pairs, ["blocks.1.hook_resid_post"])
    ids, weights = logit_weights(pairs)
    at = (torch.arange(5), pairs.last)
    resid = found.values["blocks.1.hook_resid_post"][at].requires_grad_()
    value = (model.unembed(model.ln_final(resid[:, None]))[:, 0].gather(-1, ids) * weights).sum()
    (slope,) = torch.autograd.grad(value, resid)
    torch.testing.assert_close(found.slopes["blocks.1.hook_resid_post"][at], slope, atol=1e-5, rtol=1e-4)


def test_a_lens_reads_every_answer_where_the_model_ends(pairs: PromptPairs) -> None:
    model = make("gpt2")
    name = "blocks.1.hook_resid_post"
    frame = read(model, pairs, [name], lenses={"logit": None})
    logits = model(pairs.clean, attention_mask=pairs.attention_mask).detach()
    for metric in ("prob", "log_prob", "rank", "logit_diff"):
        np.testing.assert_allclose(frame[frame["metric"] == metric]["value"], measure(metric, logits, pairs), atol=1e-4)


def test_a_metric_of_one_s_own_is_given_the_first_of_each(pairs: PromptPairs) -> None:
    seen = []

    def difference(logits: Tensor, answers: Tensor, reference: Tensor | None) -> Tensor:
        seen.append(answers)
        return logits.gather(-1, answers)[:, 0]

    logits = torch.randn(5, 4, 11)
    own = Metric("own", difference, "the first right answer's logit", "logits")
    assert torch.equal(measure(own, logits, pairs), at_last(logits, pairs).gather(-1, pairs.answers)[:, 0])
    assert torch.equal(seen[0], pairs.answers)


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([([], 7)], "pair 0: there is no right answer"),
        ([([5, 7], 7)], "pair 0: token 7 is among the right answers and among the wrong ones"),
        ([([5, 1.5], 7)], "pair 0: the right answer must be a text or a token id, not 1.5"),
        ([([5, 6], [7, True])], "pair 0: the wrong answer must be a text or a token id, not True"),
        ([([5, -1], 7)], "pair 0: the right answer, id -1, is out of range"),
        ([([[5]], 7)], r"pair 0: the right answer must be a text or a token id, not \[5\]"),
        ([{5, 6}], "pair 0: answers must be .right, wrong."),
        ([(1, 2), (3, 4)], "there are 1 clean prompts but 2 answers"),
    ],
)
def test_answers_that_are_none_are_refused(answers: Any, says: str) -> None:
    with pytest.raises(PromptError, match=says):
        PromptPairs.from_tokens([[1, 2]], answers=answers)


def test_answers_of_one_pair_may_stand_alone_and_be_of_any_whole_kind() -> None:
    for alone in (
        ([5, 6], 7),
        ([5, 6], [7]),
        [[5, 6], 7],
        (np.array([5, 6]), np.int64(7)),
        (torch.tensor([5, 6]), torch.tensor(7)),
    ):
        assert PromptPairs.from_tokens([[1, 2]], answers=alone).answer_sets == (((5, 6), (7,)),)


def test_sets_that_contradict_their_pairs_cannot_be_made(pairs: PromptPairs) -> None:
    import dataclasses

    for sets, says in (
        (pairs.answer_sets[:2], "answer_sets has 2 entries, expected one for each of 5 pairs"),
        ((((6,), (7,)), *pairs.answer_sets[1:]), "pair 0: its right answer, id 5, must be among its right answers"),
        ((((5, 7), (7,)), *pairs.answer_sets[1:]), "pair 0: token 7 is among the right answers and among the wrong"),
        ((((5, 5), (7,)), *pairs.answer_sets[1:]), "pair 0: its right answer"),
    ):
        with pytest.raises(PromptError, match=says):
            dataclasses.replace(pairs, answer_sets=sets)
    with pytest.raises(PromptError, match=r"pair 2: the right answer, id 9, is out of range: .* 0 to 8"):
        measure(
            "logit",
            torch.zeros(5, 4, 9),
            PromptPairs.from_tokens(CLEAN, answers=[(1, 2), (1, 2), ([1, 9], 2), (1, 2), (1, 2)]),
        )


def test_files_that_have_sets_by_text_are_read_where_that_is_clear(pairs: PromptPairs, tmp_path: Path) -> None:
    """As they were saved before pairs had sets: in the notes, one for each clean text."""
    plain = PromptPairs.from_tokens(CLEAN, CORRUPT, answers=pairs.answers)
    content = json.loads(plain.save(tmp_path / "pairs.json").read_text())
    del content["sha256"]  # such files have none
    content["notes"] = {"answer_sets": {"4 5": [[8, 1], [9]]}}
    (tmp_path / "pairs.json").write_text(json.dumps(content))
    back = PromptPairs.load(tmp_path / "pairs.json")
    assert back.answer_sets[1] == ((8, 1), (9,)) and back.answer_sets[0] == ((5,), (7,)) and back.notes == {}
    content["notes"] = {"answer_sets": {"1 2 3": [[5, 6], [7]]}}
    (tmp_path / "pairs.json").write_text(json.dumps(content))
    with pytest.raises(
        PromptError, match="pair 2: the file holds the answers of another pair with the same clean prompt"
    ):
        PromptPairs.load(tmp_path / "pairs.json")
