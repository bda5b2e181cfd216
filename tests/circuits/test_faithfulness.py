"""Faithfulness, its areas, completeness and minimality, against their definitions and a model with two ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from makers import drawn_edges, make, pairs_of

from interp.circuits.circuit import Circuit, on_paths
from interp.circuits.faithfulness import (
    FRACTIONS,
    areas,
    cmd,
    completeness,
    cpr,
    edge_counts,
    faithfulness,
    halves,
    minimality,
    without,
)
from interp.circuits.graph import Graph
from interp.circuits.run import run_circuits
from interp.errors import ConfigError, InterpError


def test_faithfulness_is_a_ratio_of_means_with_the_ends_at_1_and_0() -> None:
    rng = np.random.default_rng(0)
    full, empty, value = rng.normal(3, 1, 9), rng.normal(-1, 1, 9), rng.normal(2, 1, (4, 9))
    found = faithfulness([*value, full, empty], full, empty)
    expected = (value.mean(1) - empty.mean()) / (full.mean() - empty.mean())
    assert found.value == pytest.approx([*expected, 1, 0])
    assert (found.ci_low[:4] < found.value[:4]).all() and (found.value[:4] < found.ci_high[:4]).all()
    assert found.ci_low[4:] == pytest.approx([1, 0]) and found.ci_high[4:] == pytest.approx([1, 0])
    assert (found.n == 9).all()


def test_the_interval_is_that_of_prompts_drawn_again() -> None:
    rng = np.random.default_rng(1)
    full, empty, value = rng.normal(3, 1, 7), rng.normal(-1, 1, 7), rng.normal(2, 1, 7)
    draws = np.random.default_rng(5).integers(7, size=(300, 7))
    ratios = [(value[d].mean() - empty[d].mean()) / (full[d].mean() - empty[d].mean()) for d in draws]
    found = faithfulness(value, full, empty, n_resamples=300, seed=5, confidence=0.8)
    assert (float(found.ci_low), float(found.ci_high)) == pytest.approx(tuple(np.quantile(ratios, [0.1, 0.9])))


def test_one_prompt_has_no_bounds_and_equal_ends_no_faithfulness() -> None:
    one = faithfulness([[2.0]], [3.0], [1.0])
    assert one.value == [0.5] and np.isnan(one.ci_low).all() and one.n == [1]
    assert np.isnan(faithfulness([[2.0, 3.0]], [1.0, 2.0], [2.0, 1.0]).value).all()
    with pytest.raises(InterpError, match="value has 2 prompts"):
        faithfulness([[1.0, 2.0]], [1.0], [0.0])
    with pytest.raises(InterpError, match="confidence must lie"):
        faithfulness([[1.0, 2.0]], [1.0, 2.0], [0.0, 0.0], confidence=95)


def test_areas_are_trapezoids_over_the_shares_of_mib() -> None:
    assert FRACTIONS == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    assert cpr(FRACTIONS, [1.0] * 10) == pytest.approx(0.999) and cmd(FRACTIONS, [1.0] * 10) == 0
    curve = [0.1, 0.4, 0.9, 1.3, 1.6, 1.2, 0.8, 1.1, 1.0, 1.0]
    under = sum((b - a) * (x + y) / 2 for a, b, x, y in zip(FRACTIONS, FRACTIONS[1:], curve, curve[1:], strict=False))
    off = [abs(1 - x) for x in curve]
    apart = sum((b - a) * (x + y) / 2 for a, b, x, y in zip(FRACTIONS, FRACTIONS[1:], off, off[1:], strict=False))
    assert cpr(FRACTIONS, curve) == pytest.approx(under) and cmd(FRACTIONS, curve) == pytest.approx(apart)
    assert cpr(FRACTIONS[::-1], curve[::-1]) == pytest.approx(under)
    with pytest.raises(InterpError, match="at least two fractions"):
        cmd([1.0], [1.0])


def test_areas_of_measured_circuits_have_intervals() -> None:
    rng = np.random.default_rng(0)
    full, empty = np.full(8, 2.0), np.zeros(8)
    value = np.stack([rng.normal(1, 0.3, 8), full])
    found = areas([0.2, 1.0], value, full, empty)
    curve = faithfulness(value, full, empty).value
    assert float(found["cpr"].value) == pytest.approx(cpr([0.2, 1.0], curve))
    assert float(found["cmd"].value) == pytest.approx(cmd([0.2, 1.0], curve))
    for interval in found.values():
        assert interval.ci_low < interval.value < interval.ci_high and interval.n == 8
    alone = areas([0.2, 1.0], value[:, :1], full[:1], empty[:1])
    assert np.isnan(alone["cmd"].ci_low)


def test_sizes_are_shares_or_numbers_of_edges() -> None:
    graph = Graph.of(make("gpt2"))
    assert edge_counts(None, graph) == sorted({int(f * graph.n_edges) for f in FRACTIONS})
    assert edge_counts("0.5, 3", graph) == [3, graph.n_edges // 2, graph.n_edges]
    assert edge_counts([1, 0.0], graph) == [0, 1, graph.n_edges]
    for wrong in ("many", "-0.1", "2.5", str(graph.n_edges + 1), "nan"):
        with pytest.raises(ConfigError, match="is not a circuit size"):
            edge_counts([wrong], graph)


def test_incompleteness_is_what_the_definition_says() -> None:
    model, pairs = make("llama_gqa"), pairs_of(5, 5, 5)
    graph = Graph.of(model)
    circuit = Circuit(graph, on_paths(graph, drawn_edges(graph, 0.5)[0]))
    table = completeness(model, pairs, circuit, draws=2, seed=4)
    ends = torch.stack([graph.allowed, torch.zeros_like(graph.allowed)])
    full, empty = run_circuits(model, pairs, ends).mean(1).tolist()
    for row, part in zip(table.itertuples(), halves(circuit, 2, seed=4), strict=False):
        masks = torch.stack([without(circuit.edges, part), without(graph.allowed, part)])
        own, whole = ((run_circuits(model, pairs, masks).mean(1) - empty) / (full - empty)).tolist()
        assert (row.circuit, row.model, row.nodes) == pytest.approx((own, whole, len(part)), abs=1e-4)
        assert row.incompleteness == pytest.approx(abs(own - whole), abs=1e-4)
    assert len(table) == 3 and table["part"].iloc[-1] == "all its nodes"
    everything = completeness(model, pairs, Circuit(graph, graph.allowed), draws=2)
    assert everything["incompleteness"].max() < 1e-5


def test_a_node_that_nothing_needs_has_no_score_and_one_on_every_path_all() -> None:
    model, pairs = make("gpt2"), pairs_of(5, 5, 5)
    graph = Graph.of(model)
    edges = torch.zeros_like(graph.allowed)
    for name in ("input->a0.h1<v>", "a0.h1->logits", "input->m0", "m0->m1"):  # m1 leads nowhere
        edges[graph.edge(name)] = True
    circuit = Circuit(graph, edges)
    table = minimality(model, pairs, circuit, draws=0).set_index("node")["score"]
    ends = torch.stack([graph.allowed, torch.zeros_like(graph.allowed), edges])
    full, empty, own = run_circuits(model, pairs, ends).mean(1).tolist()
    assert list(table.index) == ["MLP 0", "L0H1"]
    assert table["MLP 0"] == pytest.approx(0, abs=1e-5)
    assert table["L0H1"] == pytest.approx(abs((own - empty) / (full - empty)), rel=1e-3) and table["L0H1"] > 1e-3
    once = minimality(model, pairs, circuit, [graph.sender("a0.h1")], draws=3)
    assert once["score"].tolist() == pytest.approx([table["L0H1"]], rel=1e-3)
