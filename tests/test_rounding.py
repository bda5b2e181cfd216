"""What rounding alone makes is no effect: in no number type, by no ratio, in no table, figure or sentence."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from makers import make

import interp
from analyses import activation_patching, circuit, edge_attribution
from analyses.sections.activation_patching import report
from interp import stats
from interp.attribution.estimate_check import agreement
from interp.attribution.run_values import run_values
from interp.circuits.faithfulness import areas, completeness, faithfulness, minimality
from interp.circuits.graph import Graph
from interp.circuits.run import run_circuits
from interp.edits import Edit, Variant
from interp.errors import PromptError
from interp.ground_truth.identities import facts
from interp.ground_truth.known_circuits import induction, truth
from interp.metric_rounding import rounding
from interp.metrics import METRICS, Metric, measure, read
from interp.prompts.pairs import PromptPairs
from interp.rounding import assumed, normalised_effect, of_effect, of_logits, quotient, reason
from interp.study.sentences import how_estimates_agree

HALVES = [torch.bfloat16, torch.float16]
TYPES = [torch.float32, *HALVES]
TWINS = 7, 8  # two tokens that mean nearly the same to `twins`


def twin_pairs(n: int = 4, length: int = 6) -> PromptPairs:
    """Pairs that differ in one token, which is one of `TWINS` on either side."""
    rows = torch.randint(9, 29, (n, length), generator=torch.Generator().manual_seed(3))
    clean, corrupt = rows.clone(), rows.clone()
    clean[:, 2], corrupt[:, 2] = TWINS
    roles = {"twin": 2, "END": length - 1}
    return PromptPairs.from_tokens(clean, corrupt, answers=[(i, i + 4) for i in range(n)], roles=roles)


def twins(kind: str, dtype: torch.dtype, *, apart: float = 0.1) -> interp.GPT:
    """A model with two tokens whose embeddings differ by less than the number type can tell at the end."""
    model = make(kind).to(dtype)
    with torch.no_grad():
        one, other = TWINS
        model.embed.W_E[other] = model.embed.W_E[one] * (1 + apart * torch.finfo(dtype).eps)
    return model


def heads(model: interp.GPT) -> list[Variant]:
    cells = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    return [Variant([Edit("z", {"layer": at, "head": head})], {"layer": at, "head": head}) for at, head in cells]


def test_a_logit_is_uncertain_by_its_type_and_its_size() -> None:
    eps = torch.finfo(torch.float32).eps
    size = torch.tensor([1.0, 40.0])
    assert of_logits(size, torch.float32).tolist() == [16 * eps, 640 * eps]
    assert of_logits(size, torch.float64).tolist() == [16 * 2**-52, 640 * 2**-52]
    for half in HALVES:
        assert of_logits(size, half).tolist() == pytest.approx(
            [s * (4 * torch.finfo(half).eps + 12 * eps) for s in (1, 40)]
        )
    assert assumed([1.0, -3.0], [2.0, 0.0]).tolist() == pytest.approx([64 * eps, 96 * eps])


def test_one_rule_divides() -> None:
    assert np.array_equal(quotient([3.0, 3.0, 3.0], [2.0, -1e-3, 0.0], 1e-3), [1.5, np.nan, np.nan], equal_nan=True)
    effect = normalised_effect([1.0, 1.0], [0.0, 0.0], [1e-3, 2e-3], rounding=[1e-3, 1e-3])
    assert np.array_equal(effect, [np.nan, 500.0], equal_nan=True)


def test_a_metric_is_uncertain_by_what_its_logits_are() -> None:
    pairs = PromptPairs.from_tokens([[1, 2], [3, 4]], answers=[(0, 1), (2, 3)])
    logits = torch.zeros(2, 2, 50)
    logits[0, -1, :2] = torch.tensor([10.0, 10.0 + 1e-6])  # which of the two is above is rounding
    logits[1, -1, 2:4] = torch.tensor([9.0, -20.0])
    largest = logits.abs().amax((1, 2))
    step = of_logits(largest, torch.float32)

    def off(metric: str, reference: torch.Tensor | None = None) -> torch.Tensor:
        seen = read(METRICS[metric], logits, pairs)
        return rounding(METRICS[metric], seen, pairs, reference, largest)

    torch.testing.assert_close(off("logit_diff"), 2 * step, rtol=0.02, atol=0)
    torch.testing.assert_close(off("logit"), step, rtol=0.02, atol=0)
    assert off("correct").tolist() == [1, 0] and off("rank").tolist() == [1, 0]
    assert (off("log_prob") <= 2 * step * 1.02).all() and (off("prob") <= step / 2 * 1.02).all()
    assert off("prob")[0] > step[0] / 5  # two tokens share nearly all: the slope of a probability is a quarter
    assert (off("kl", logits[:, -1]) <= step**2).all()  # the divergence of equal runs grows with the square
    of_sets = PromptPairs.from_tokens([[1, 2], [3, 4]], answers=[([0, 4, 7], [1, 2]), ([2, 9], 3)])
    seen = read(METRICS["logit_diff"], logits, of_sets)
    sets = rounding(METRICS["logit_diff"], seen, of_sets, None, largest)
    torch.testing.assert_close(sets, 2 * step, rtol=0.02, atol=0)
    several = Metric("several", lambda logits, pairs: logits.double().square().sum((1, 2)), "", "", whole=True)
    want = [2 * 20 * float(step[0]), 2 * 29 * float(step[1])]
    got = rounding(several, read(several, logits, pairs), pairs, None, largest)
    assert (got > 0).all() and got[0] <= want[0] * 1.02 and got[1] <= want[1] * 1.02


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["gpt2", "llama_gqa", "mamba", "hybrid", "no_norm_relu"])
@torch.no_grad()
def test_rounding_covers_what_rounding_does(kind: str, dtype: torch.dtype) -> None:
    """Against float64, on the same weights: no difference of two runs is further off than it says."""
    model = make(kind).to(dtype)
    exact = make(kind).to(dtype).double()
    tokens = torch.randint(0, 29, (40, 8), generator=torch.Generator().manual_seed(1))
    other = tokens.clone()
    other[:, 3] = (other[:, 3] + 1) % 29
    pairs = PromptPairs.from_tokens(tokens, other, answers=[(i % 29, (i + 5) % 29) for i in range(40)])
    site = "z" if kind not in ("mamba",) else "out"
    layers = [
        at
        for at in range(model.cfg.n_layers)
        if f"blocks.{at}.{'attn' if site == 'z' else 'mixer'}.hook_{site}" in model.hook_dict
    ]
    variants = [Variant([Edit(site, {"layer": at})], {"layer": at}) for at in layers]
    got, want = (interp.sweep(one, pairs, variants, progress=False) for one in (model, exact))
    for column in ("value", "source_value"):
        off = (got[column] - got["base_value"]) - (want[column] - want["base_value"])
        assert (off.abs() <= got["rounding"]).all()
    assert got["effect"].notna().any()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["gpt2", "llama_gqa", "alibi"])
@torch.no_grad()
def test_nearly_equal_pairs_have_no_effect(kind: str, dtype: torch.dtype) -> None:
    model, pairs = twins(kind, dtype), twin_pairs()
    frame = interp.sweep(model, pairs, heads(model), progress=False)
    assert frame["effect"].isna().all() and frame["value"].notna().all()
    table = activation_patching.summary(activation_patching.run(model, pairs, progress=False))
    assert table["value"].isna().all() and (table["n"] == 0).all()
    assert table["reason"].str.fullmatch(r"the two runs differ by no more than rounding \(\S+\)").all()
    _, section, findings = report(model, pairs, {}, progress=False)
    assert all("no more than rounding" in said and "nan" not in said for said in findings)
    for item in section.figures:
        item.figure.canvas.draw()
        assert any("no more than rounding" in text.get_text().replace("\n", " ") for text in item.figure.texts)


@pytest.mark.parametrize("dtype", TYPES)
@torch.no_grad()
def test_nearly_equal_pairs_have_no_circuit(dtype: torch.dtype) -> None:
    model, pairs = twins("llama_gqa", dtype), twin_pairs()
    graph = Graph.of(model)
    ends = torch.stack([graph.allowed, torch.zeros_like(graph.allowed), graph.allowed.triu(1) & graph.allowed])
    whole, empty, some = run_circuits(model, pairs, ends, graph, progress=False)
    off = run_values(model, pairs).rounding
    interval = faithfulness(some, whole, empty, rounding=off)
    assert all(np.isnan(part) for part in (interval.value, interval.ci_low, interval.ci_high))
    both = areas([0.0, 1.0], torch.stack([empty, whole]), whole, empty, rounding=off)
    assert all(np.isnan(found.value) for found in both.values())
    of_all = interp.Circuit(graph, graph.allowed)
    assert completeness(model, pairs, of_all, draws=1, progress=False)["incompleteness"].isna().all()
    assert minimality(model, pairs, of_all, [1, 2], progress=False)["score"].isna().all()
    frame = circuit.run(model, pairs, method="eap", sizes="3,10", progress=False)
    assert frame["faithfulness"].isna().all()
    assert circuit.summary(frame)["reason"].str.contains("no more than rounding").all()
    assert circuit.integrals(frame)["value"].isna().all()


@torch.no_grad()
def test_estimates_of_nothing_are_not_held_against_nothing() -> None:
    model, pairs = twins("llama_gqa", torch.float32), twin_pairs()
    frame = edge_attribution.run(model, pairs, sample=6, progress=False)
    assert frame["effect"].isna().all() and frame["exact_effect"].isna().all()
    table = agreement(frame, by="edge", n_cells=int(frame["cells"].iloc[0]))
    found = table.set_index("quantity")["value"]
    assert found[["correlation", "rank correlation", "correlation of shuffled cells", "relative error"]].isna().all()
    assert np.isnan(found["same sign"]) and "nan" not in how_estimates_agree(table)
    with pytest.raises(PromptError, match=r"no difference to account for: .* no more than rounding"):
        facts(model, pairs, steps=2)


def test_a_known_model_of_which_nothing_is_left_has_no_truth() -> None:
    known = induction()
    pairs = known.prompts(4)
    right = truth(known, pairs)
    assert right["changes"].any() and right["effect"].notna().all()
    # The same model whose answers are equal on paper: one column of the unembedding, written twice.
    with torch.no_grad():
        known.model.unembed.W_U[:] = known.model.unembed.W_U[:, :1]
    nothing = truth(known, pairs)
    assert nothing["effect"].isna().all() and not nothing["changes"].any()


def test_pairs_that_differ_keep_their_effects_beside_pairs_that_do_not() -> None:
    model, pairs = twins("gpt2", torch.float32), twin_pairs(4)
    clean = pairs.clean.clone()
    clean[0, 2] = 20  # this pair's two runs differ
    mixed = PromptPairs.from_tokens(clean, pairs.corrupt, answers=pairs.answers)
    frame = interp.sweep(model, mixed, heads(model), progress=False)
    assert frame.groupby("prompt")["effect"].count().tolist() == [8, 0, 0, 0]
    own = frame[frame["prompt"] == 0]
    want = (own["value"] - own["base_value"]) / (own["source_value"] - own["base_value"])
    np.testing.assert_allclose(own["effect"], want)
    table = stats.summarise(frame, by=["layer", "head"], value="effect")
    assert (table["n"] == 1).all() and table["reason"].str.startswith("3 of 4 prompts left out: ").all()
    assert "reason" not in stats.summarise(frame, by=["layer", "head"], value="value")


def test_a_mean_within_rounding_is_not_significant() -> None:
    rows = [(cell, at, size * (1 + 0.01 * at)) for cell, size in (("noise", 1e-6), ("effect", 1e-3)) for at in range(8)]
    frame = pd.DataFrame(rows, columns=["cell", "prompt", "value"])
    plain = stats.tested(frame, "cell", n_resamples=20).set_index("cell")["p"]
    assert (plain < 1e-6).all()  # each is far from zero by its own spread
    known = stats.tested(frame, "cell", n_resamples=20, rounding=np.full(16, 1e-5)).set_index("cell")["p"]
    assert known["noise"] == 1 and known["effect"] == plain["effect"]


def test_an_effect_is_uncertain_by_its_part_of_the_difference() -> None:
    frame = pd.DataFrame({"base_value": [0.0, 1.0], "source_value": [4.0, 1.0], "rounding": [0.1, 0.1]})
    assert np.array_equal(of_effect(frame), [0.025, np.nan], equal_nan=True)
    assert math.isclose(of_effect(frame.drop(columns="rounding"))[0], 32 * 2**-23)


def test_a_reason_says_how_many() -> None:
    assert reason(0, 3, 1.0) == ""
    assert reason(3, 3, 2.5e-4) == "the two runs differ by no more than rounding (0.00025)"
    assert reason(1, 3, 2.5e-4).startswith("1 of 3 prompts left out: ")


@torch.no_grad()
def test_run_values_are_those_of_two_forwards() -> None:
    model, pairs = make("llama_gqa"), twin_pairs()
    values = run_values(model, pairs, "log_prob")
    for side, value in (("clean", values.base), ("corrupt", values.source)):
        torch.testing.assert_close(value, measure("log_prob", model(getattr(pairs, side)), pairs))
    frame = interp.sweep(model, pairs, heads(model)[:1], "log_prob", base="clean", source="corrupt", progress=False)
    # What is left of moved and unmoved values in float32: a few of their own digits.
    np.testing.assert_allclose(frame["rounding"], values.rounding, rtol=0.3)
