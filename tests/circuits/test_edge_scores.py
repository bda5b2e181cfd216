"""Scores of edges against loops of full forwards, against each other, and where they must be exact."""

from __future__ import annotations

import pytest
import torch
from makers import EDGED, EDGES, make, pairs_of
from torch import Tensor

from interp.attribution.gradients import gradients
from interp.attribution.run_values import run_values
from interp.circuits.edge_scores import chosen_edges, eap, eap_ig, exact
from interp.circuits.graph import Graph
from interp.errors import ConfigError, InterpError, UnknownName
from interp.hooked.hooks import HookPoint
from interp.metrics import measure
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.variants.ablations import replacements


def written(model: GPT, pairs: PromptPairs, graph: Graph, sender: int, ablation: str) -> Tensor:
    """What ablation changes of what a sender writes."""
    _, cache = model.run_with_cache(pairs.clean, attention_mask=pairs.attention_mask)
    instead = replacements(model, pairs, graph.sender_sites, ablation)
    return (graph.sent(model, instead, [sender]) - graph.sent(model, cache, [sender]))[0].detach()


def by_hand(model: GPT, pairs: PromptPairs, graph: Graph, edge: tuple[int, int], ablation: str = "corrupt") -> Tensor:
    """The effect of one edge from one full forward with a hook at the receiver's input."""
    node, change = graph.receivers[edge[1]], written(model, pairs, graph, edge[0], ablation)

    def add(value: Tensor, hook: HookPoint) -> Tensor:
        if node.head is None:
            return value + change
        new = value.clone()
        new[:, :, node.head] += change
        return new

    logits = model.run_with_hooks(pairs.clean, attention_mask=pairs.mask, fwd_hooks=[(node.site, add)])
    return (measure("logit_diff", logits, pairs) - run_values(model, pairs)[0]).detach()


def some(graph: Graph, n: int = 12) -> list[tuple[int, int]]:
    order = torch.randperm(graph.n_edges, generator=torch.Generator().manual_seed(1))[:n]
    return [graph.edges[at] for at in order.tolist()]


@pytest.mark.parametrize("kind", EDGES)
def test_exact_edges_are_those_of_full_forwards(kind: str) -> None:
    model, pairs = make(kind), pairs_of(6, 4)
    graph = Graph.of(model)
    found = exact(model, pairs, some(graph), graph, progress=False)
    for edge in some(graph):
        expected = by_hand(model, pairs, graph, edge)
        assert found[:, edge[0], edge[1]].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert int((~found.isnan()).sum()) == 2 * len(some(graph))


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_every_ablation_means_the_same_to_all_scores(ablation: str) -> None:
    model, pairs = make("no_norm_relu").double(), pairs_of(5, 5, 5)
    graph = Graph.of(model)
    edges = [edge for edge in graph.edges if graph.receivers[edge[1]].name == "logits"]
    found = exact(model, pairs, edges, graph, ablation=ablation, progress=False)
    for scores in (eap(model, pairs, graph, ablation=ablation), eap_ig(model, pairs, graph, ablation=ablation)):
        for sender, receiver in edges:  # without a norm the logits are linear in what they read
            assert scores[:, sender, receiver].tolist() == pytest.approx(found[:, sender, receiver].tolist(), abs=1e-9)
    expected = by_hand(model, pairs, graph, edges[1], ablation)
    assert found[:, edges[1][0], edges[1][1]].tolist() == pytest.approx(expected.tolist(), abs=1e-9)


@pytest.mark.parametrize("kind", EDGES)
def test_eap_is_the_change_times_the_gradient_edge_by_edge(kind: str) -> None:
    model, pairs = make(kind).double(), pairs_of(6, 4)
    graph = Graph.of(model)
    scores, slopes = eap(model, pairs, graph), gradients(model, pairs, graph.receiver_sites).slopes
    assert torch.equal(scores.isnan(), ~graph.allowed.expand_as(scores))
    for sender, receiver in some(graph):
        node = graph.receivers[receiver]
        slope = slopes[node.site] if node.head is None else slopes[node.site][:, :, node.head]
        expected = (written(model, pairs, graph, sender, "corrupt") * slope).sum((1, 2))
        assert scores[:, sender, receiver].tolist() == pytest.approx(expected.tolist(), abs=1e-9)


@pytest.mark.parametrize("kind", ["llama_gqa", "hybrid"])
@pytest.mark.parametrize("path", ["inputs", "activations"])
def test_one_step_is_eap(path: str, kind: str) -> None:
    model, pairs = make(kind), pairs_of(6, 4)
    same = eap_ig(model, pairs, steps=1, path=path)
    assert torch.equal(same.nan_to_num(), eap(model, pairs).nan_to_num())
    other = eap_ig(model, pairs, steps=3, path=path)
    assert not torch.allclose(other.nan_to_num(), same.nan_to_num(), rtol=1e-3)


@pytest.mark.parametrize("kind", ["gpt2", "neox", "mamba", "mamba2"])
def test_along_activations_the_last_writers_account_for_all_that_they_do(kind: str) -> None:
    changes = {"layer_types": (kind,)} if kind in EDGED else {}
    model, pairs = make(kind, n_layers=1, **changes).double(), pairs_of(5, 5)
    graph = Graph.of(model)
    site = graph.sender_sites[-1]  # read by the unembedding alone
    scores = eap_ig(model, pairs, graph, steps=100, path="activations")
    senders = [at for at, node in enumerate(graph.senders) if node.site == site]
    instead = replacements(model, pairs, [site])[site]
    logits = model.run_with_hooks(pairs.clean, fwd_hooks=[(site, lambda value, hook: instead)])
    expected = (measure("logit_diff", logits, pairs) - run_values(model, pairs)[0]).detach()
    total = scores[:, senders, graph.receiver("logits")].sum(1)
    assert total.tolist() == pytest.approx(expected.tolist(), rel=0.03, abs=1e-3)


def test_key_value_readers_are_one_for_a_group() -> None:
    graph = Graph.of(make("llama_gqa"))
    found = eap(make("llama_gqa"), pairs_of(5), graph)
    assert found.shape == (1, 1 + 2 * (4 + 1), 2 * (4 + 2 + 2 + 1) + 1)
    edge = graph.edge("m0->a1.kv1<v>")
    assert float(found[0][edge]) != 0


def test_prompts_one_after_the_other_give_the_same_scores() -> None:
    model, pairs = make("gpt2"), pairs_of(4, 6, 5)
    whole = eap_ig(model, pairs, steps=2)
    parts = eap_ig(model, pairs, steps=2, max_memory=1)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_scores_work_in_half_precision() -> None:
    model, pairs = make("llama"), pairs_of(5, 4)
    exact_scores, rough = eap(model, pairs), eap(model.bfloat16(), pairs)
    assert rough.dtype == torch.float32
    both = torch.stack([exact_scores.nan_to_num().flatten(), rough.nan_to_num().flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.98


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m, p: exact(m, p, ["m1->m0"]), UnknownName, "comes before"),
        (lambda m, p: exact(m, p, []), InterpError, "at least one edge"),
        (lambda m, p: exact(m, p, ["a0.h9->m1"]), UnknownName, "no sender matches"),
        (lambda m, p: chosen_edges(Graph.of(m), [(9, 0)]), UnknownName, "no edge matches"),
        (lambda m, p: eap_ig(m, p, path="input"), UnknownName, "did you mean 'inputs'"),
        (lambda m, p: eap_ig(m, p, steps=0), ConfigError, "steps must be"),
        (lambda m, p: eap(m, p, ablation="nought"), UnknownName, "no ablation matches"),
        (lambda m, p: eap(m, p, base="source"), UnknownName, "no side matches"),
        (lambda m, p: eap(m, p, metric="rank"), UnknownName, "metric with a gradient"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused(call: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call(make("gpt2"), pairs_of(5))  # type: ignore[operator]
