"""Circuits from scores, and ACDC, against plain versions of the same algorithms."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import drawn_edges, make, pairs_of
from torch import Tensor

from interp.circuits.circuit import Circuit, feeds, on_paths
from interp.circuits.graph import Graph
from interp.circuits.run import run_circuits
from interp.circuits.search import acdc, circuits, greedy, threshold
from interp.errors import ConfigError, InterpError, OutputError, UnknownName
from interp.metrics import METRICS
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs


def scores_of(graph: Graph, seed: int = 0) -> Tensor:
    scores = torch.randn(graph.allowed.shape, generator=torch.Generator().manual_seed(seed)).double()
    return scores.masked_fill(~graph.allowed, torch.nan)


def from_logits(graph: Graph, better: Tensor, n: int) -> Tensor:
    """Greedy search that looks at every edge into the circuit in every step."""
    feed, taken = feeds(graph), torch.zeros_like(graph.allowed)
    for _ in range(n):
        inside = feed[:, taken.any(1)].any(1)
        inside[-1] = True
        open_edges = better.masked_fill(~(graph.allowed & ~taken & inside), -torch.inf)
        taken.view(-1)[open_edges.argmax()] = True
    return on_paths(graph, taken)


@pytest.mark.parametrize("kind", ["llama_gqa", "neox", "attn_only", "hybrid", "one_part_a_layer"])
@pytest.mark.parametrize(("rank", "sign"), [("magnitude", 0), ("fall", -1), ("rise", 1)])
def test_selections_are_what_plain_search_gives(kind: str, rank: str, sign: int) -> None:
    graph = Graph.of(make(kind))
    scores = scores_of(graph)
    better = scores.abs() if sign == 0 else sign * scores
    for n in (1, 5, 20, 60):
        found = greedy(scores, n, graph, rank=rank)
        assert torch.equal(found.edges, from_logits(graph, better.nan_to_num(nan=-torch.inf), n))
        best = better.flatten().nan_to_num(nan=-torch.inf).topk(n).indices
        chosen = torch.zeros(graph.allowed.numel(), dtype=torch.bool)
        chosen[best] = True
        cut = threshold(scores, n, graph, rank=rank)
        assert torch.equal(cut.edges, on_paths(graph, chosen.view(graph.allowed.shape)))
        assert found.found["n_taken"] == n and found.found["rank"] == rank


def test_larger_circuits_contain_smaller_ones_and_all_edges_are_the_model() -> None:
    graph = Graph.of(make("gpt2"))
    each = torch.stack([scores_of(graph, seed) for seed in range(3)])
    for selection in ("greedy", "threshold"):
        made = circuits(each, [0, 10, 40, graph.n_edges], graph, selection=selection)
        assert [c.n_edges for c in (made[0], made[-1])] == [0, graph.n_edges]
        assert all((small & large).n_edges == small.n_edges for small, large in pairwise(made))
        assert made[1].scores is not None
        assert torch.allclose(made[1].scores, each.mean(0), equal_nan=True)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda g: greedy(scores_of(g), g.n_edges + 1, g), InterpError, "edges with a score"),
        (lambda g: greedy(torch.zeros(2, 2), 1, g), InterpError, r"scores have shape \[2, 2\]"),
        (lambda g: greedy(scores_of(g), 1, g, rank="best"), UnknownName, "no rank matches 'best'"),
        (lambda g: circuits(scores_of(g), [1], g, selection="gredy"), UnknownName, "did you mean 'greedy'"),
    ],
)  # fmt: skip
def test_what_cannot_be_selected_is_refused(call: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call(Graph.of(make("gpt2")))  # type: ignore[operator]


def one_at_a_time(model: GPT, pairs: PromptPairs, start: Tensor, tau: float, metric: str) -> Tensor:
    """ACDC as it is written down: one edge, one run."""
    graph, now = Graph.of(model), start.clone()

    def value(edges: Tensor) -> float:
        return float(run_circuits(model, pairs, edges[None], graph, metric=metric).mean())

    for receiver in reversed(range(len(graph.receivers))):
        for sender in reversed(range(len(graph.senders))):
            if now[sender, receiver]:
                less = now.clone()
                less[sender, receiver] = False
                change = value(less) - value(now)
                if (change if METRICS[metric].needs_reference else abs(change)) < tau:
                    now = less
    return on_paths(graph, now)


@pytest.mark.parametrize(
    ("kind", "metric", "tau"),
    [("llama_gqa", "kl", 0.02), ("attn_only", "logit_diff", 0.01), ("mamba2", "logit_diff", 0.02)],
)
def test_acdc_decides_as_one_edge_at_a_time(kind: str, metric: str, tau: float) -> None:
    model, pairs = make(kind), pairs_of(5, 5)
    graph = Graph.of(model)
    start = on_paths(graph, drawn_edges(graph, 0.7)[0])
    found = acdc(model, pairs, tau=tau, metric=metric, candidates=start)
    assert torch.equal(found.edges, one_at_a_time(model, pairs, start, tau, metric))
    assert 0 < found.n_edges < int(start.sum())
    assert found.scores is not None and (found.scores[found.edges].abs() >= tau).all()


def test_acdc_begins_with_the_whole_model_and_a_large_tau_leaves_nothing() -> None:
    model, pairs = make("attn_only", n_layers=1), pairs_of(4, 4)
    graph = Graph.of(model)
    assert acdc(model, pairs, tau=1e9).n_edges == 0
    kept = acdc(model, pairs, tau=0)
    assert kept.found["n_candidates"] == graph.n_edges and kept.n_edges > 0


def test_acdc_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = make("attn_only"), pairs_of(5, 5)
    calls, most = [0], [10**6]

    def counted(*args: Any, **options: Any) -> Tensor:
        calls[0] += 1
        if calls[0] > most[0]:
            raise KeyboardInterrupt
        return run_circuits(*args, **options)

    monkeypatch.setattr("interp.circuits.search.run_circuits", counted)
    whole = acdc(model, pairs, tau=0.002, out=tmp_path / "whole")
    once, most[0] = calls[0], (3 * calls[0]) // 2
    with pytest.raises(KeyboardInterrupt):
        acdc(model, pairs, tau=0.002, out=tmp_path / "part")
    assert list((tmp_path / "part").glob("receiver-*"))
    calls[0], most[0] = 0, once - 1  # enough for the rest, too little for all of it
    again = acdc(model, pairs, tau=0.002, out=tmp_path / "part")
    assert torch.equal(again.edges, whole.edges) and again.n_edges > 0
    assert again.scores is not None and whole.scores is not None
    assert torch.equal(again.scores[again.edges], whole.scores[whole.edges])
    with pytest.raises(OutputError, match="tau"):
        acdc(model, pairs, tau=0.003, out=tmp_path / "part")


def test_a_tau_that_is_none_is_refused() -> None:
    model = make("attn_only")
    with pytest.raises(ConfigError, match="tau, in the metric's unit, must be a finite number >= 0, not -1"):
        acdc(model, pairs_of(4), tau=-1.0)
    with pytest.raises(InterpError, match="edges of a circuit are"):
        acdc(model, pairs_of(4), tau=1.0, candidates=Circuit(Graph.of(model), torch.zeros(1, 1)))
