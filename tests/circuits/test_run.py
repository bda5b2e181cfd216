"""Circuits are run as a plain loop, receiver by receiver, says they should be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from makers import drawn_edges, make, pairs_of
from torch import Tensor

from interp.attribution.run_values import run_values
from interp.circuits.circuit import Circuit
from interp.circuits.graph import Graph
from interp.circuits.run import run_circuits
from interp.errors import ConfigError, InterpError, UnknownName
from interp.hooked.hooks import HookPoint
from interp.metrics import METRICS, measure
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.variants.ablations import replacements


@torch.no_grad()
def naive(model: GPT, graph: Graph, tokens: Tensor, ablated: dict[str, Tensor], edges: Tensor) -> Tensor:
    """Logits [1, pos, d_vocab_out] of a circuit on one prompt: a full forward for every receiver, one after the other,
    finds what its senders write by now and adds to its input what the missing edges change.
    """
    added: dict[str, Tensor] = {}

    def add(value: Tensor, hook: HookPoint) -> Tensor:
        return value + added[hook.name] if hook.name in added else value

    hooks: list[tuple[str, Callable[..., Tensor]]] = [(name, add) for name in graph.receiver_sites]
    instead = graph.sent(model, ablated)  # [sender, 1, pos, d_model]
    for at, node in enumerate(graph.receivers):
        with model.hooks(hooks):
            _, cache = model.run_with_cache(tokens, names_filter=[*graph.sender_sites, node.site])
        change = (instead - graph.sent(model, cache))[graph.allowed[:, at] & ~edges[:, at]].sum(0)  # [1, pos, d_model]
        place = added.setdefault(node.site, torch.zeros_like(cache[node.site]))
        if node.head is None:
            place += change
        else:
            place[:, :, node.head] += change
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    assert isinstance(logits, Tensor)
    return logits


def one_by_one(model: GPT, pairs: PromptPairs, masks: Tensor, kind: str, base: str, metric: str) -> Tensor:
    graph = Graph.of(model)
    other = "corrupt" if base == "clean" else "clean"
    instead = replacements(model, pairs, graph.sender_sites, kind, run=other, seed=3)
    values = torch.zeros(len(masks), len(pairs), dtype=torch.float64)
    for prompt, length in enumerate(pairs.lengths.tolist()):
        tokens = getattr(pairs, base)[prompt : prompt + 1, :length]
        ablated = {name: value[prompt : prompt + 1, :length] for name, value in instead.items()}
        whole = model(tokens)
        for circuit, edges in enumerate(masks):
            logits = naive(model, graph, tokens, ablated, edges)
            values[circuit, prompt] = measure(metric, logits, pairs[prompt], reference=whole, side=base)
    return values


def test_circuits_are_what_a_loop_over_receivers_says(edged_model: GPT) -> None:
    pairs = pairs_of()
    masks = drawn_edges(Graph.of(edged_model), 0.1, 0.5, 0.9)
    found = run_circuits(edged_model, pairs, masks)
    expected = one_by_one(edged_model, pairs, masks, "corrupt", "clean", "logit_diff")
    assert torch.allclose(found, expected, atol=2e-4), (found - expected).abs().max()
    assert found.std(0).min() > 1e-3  # the circuits differ


@pytest.mark.parametrize(
    ("of", "kind"),
    [
        *(("llama_gqa", kind) for kind in ("zero", "mean", "mean_by_role", "resample")),
        ("one_part_a_layer", "mean"),
        ("hybrid", "zero"),
    ],
)
def test_every_ablation_stands_in_for_senders(of: str, kind: str) -> None:
    model, pairs = make(of).double(), pairs_of(6, 6, 6)  # a norm of zeros is all rounding error
    masks = drawn_edges(Graph.of(model), 0.3, 0.8)
    found = run_circuits(model, pairs, masks, base="corrupt", ablation=kind, seed=3, metric="kl")
    assert torch.allclose(found, one_by_one(model, pairs, masks, kind, "corrupt", "kl"), atol=1e-7)


@torch.no_grad()
def test_all_edges_are_the_base_run_and_none_the_ablated_run(edged_model: GPT) -> None:
    model, pairs = edged_model, pairs_of()
    graph = Graph.of(model)
    masks = torch.stack([graph.allowed, torch.zeros_like(graph.allowed)])
    found = run_circuits(model, pairs, masks, graph, max_memory=2**22)
    clean, corrupt = (
        measure("logit_diff", model(getattr(pairs, side), attention_mask=pairs.mask), pairs).double()
        for side in ("clean", "corrupt")
    )
    alone = run_circuits(model, pairs, masks[:1], graph)
    off = run_values(model, pairs).rounding
    assert ((alone[0] - clean).abs() <= off).all()
    assert ((found - torch.stack([clean, corrupt])).abs() <= 2 * off).all()  # sums of many senders, cut in parts


@pytest.mark.parametrize("kind", ["neox", "hybrid"])
def test_together_alone_and_in_little_memory_circuits_give_the_same(kind: str) -> None:
    model, pairs = make(kind), pairs_of(6, 4, 6, 5, 3)
    masks = drawn_edges(Graph.of(model), 0.7, 0.05, 0.4, 0.4)
    together = run_circuits(model, pairs, masks)
    alone = torch.cat([run_circuits(model, pairs, mask[None]) for mask in masks])
    little = run_circuits(model, pairs, masks, max_memory=150_000)
    assert torch.allclose(together, alone, atol=1e-5) and torch.allclose(together, little, atol=1e-5)
    circuits = [Circuit(Graph.of(model), mask) for mask in masks]
    assert torch.equal(run_circuits(model, pairs, circuits), together)


@pytest.mark.parametrize("metric", [*METRICS, lambda logits, pairs: logits.mean((1, 2))])
def test_every_metric_reads_a_circuit(metric: str) -> None:
    model, pairs = make("gpt2"), pairs_of(5, 5)
    masks = drawn_edges(Graph.of(model), 0.6)
    found = run_circuits(model, pairs, masks, metric=metric)
    assert torch.allclose(found, one_by_one(model, pairs, masks, "corrupt", "clean", metric), atol=2e-4)


def test_one_token_half_precision_and_one_layer() -> None:
    short = pairs_of(1)
    model = make("gpt2", n_layers=1)
    masks = drawn_edges(Graph.of(model), 0.0, 0.5)
    zeroed = run_circuits(model, short, masks, ablation="zero")
    assert torch.allclose(zeroed, one_by_one(model, short, masks, "zero", "clean", "logit_diff"), atol=1e-5)
    pairs, half = pairs_of(), make("llama_gqa")
    masks = drawn_edges(Graph.of(half), 0.5)
    exact = run_circuits(half, pairs, masks)
    rounded = run_circuits(half.to(torch.bfloat16), pairs, masks)
    assert torch.isfinite(rounded).all() and torch.allclose(rounded, exact, atol=0.3)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"base": "left"}, UnknownName, "no side matches 'left'"),
        ({"metric": "logit_dif"}, UnknownName, "did you mean 'logit_diff'"),
        ({"ablation": "noise"}, UnknownName, "no ablation matches"),
        ({"max_memory": 10}, ConfigError, "max_memory=10 bytes is too little"),
        ({"circuits": []}, InterpError, "at least one"),
        ({"circuits": torch.ones(1, 2, 3)}, InterpError, r"circuits are \[1, 2, 3\]"),
        ({"circuits": torch.ones(1, 11, 27)}, InterpError, "edges that the model does not have"),
    ],
)
def test_what_cannot_be_run_is_refused(change: dict[str, object], error: type[Exception], says: str) -> None:
    model = make("gpt2")
    options = {"circuits": Graph.of(model).allowed[None], **change}
    with pytest.raises(error, match=says):
        run_circuits(model, pairs_of(), options.pop("circuits"), **options)  # type: ignore[arg-type]
