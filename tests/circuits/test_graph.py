"""The graph of edges: receivers read the sum of earlier senders; names go there and back."""

from __future__ import annotations

import pytest
import torch
from makers import EDGED, make

from interp.circuits.graph import Graph, parse_head
from interp.errors import InterpError, UnknownName
from interp.models.gpt import GPT


def bias(model: GPT, layer: int) -> torch.Tensor | None:
    """What a layer adds beside its heads; where a norm follows them, its bias is in what they add."""
    block = model.block(layer)
    if block.attn is not None:
        return None if model.cfg.norms_after else block.attn.b_O * model.cfg.residual_scale
    return block.mixer.b_out if model.cfg.mixer(layer) == "mamba2" and block.mixer is not None else None


@torch.no_grad()
def test_every_receiver_reads_the_sum_of_its_senders_and_of_biases(edged_model: GPT, tokens: torch.Tensor) -> None:
    graph = Graph.of(edged_model)
    names = [*graph.sender_sites, *graph.receiver_sites]
    _, cache = edged_model.run_with_cache(tokens, names_filter=names)
    sent, received = graph.sent(edged_model, cache), graph.received(cache)
    for at, node in enumerate(graph.receivers):
        behind_own = node.kind == "mlp" and not edged_model.cfg.parallel_attn_mlp
        biases = [bias(edged_model, layer) for layer in range(node.layer + behind_own)]
        expected = sent[graph.allowed[:, at]].sum(0) + sum(b for b in biases if b is not None)
        assert torch.allclose(received[at], expected, atol=1e-4), node.name


@pytest.mark.parametrize("kind", EDGED)
def test_every_layer_has_the_nodes_of_its_parts(kind: str) -> None:
    recurrent = make(kind)
    graph = Graph.of(recurrent)
    for layer in range(recurrent.cfg.n_layers):
        kinds = {node.kind for node in graph.senders if node.layer == layer}
        mixer = {"attn": {"attn"}, "mamba": {"ssm"}, "mamba2": {"ssm"}, None: set[str]()}[recurrent.cfg.mixer(layer)]
        assert kinds == mixer | ({"mlp"} if recurrent.cfg.mlp_in(layer) else set())
        assert {node.kind for node in graph.receivers if node.layer == layer} == kinds
    for node in graph.senders:
        axes = recurrent.hook_dict[node.site].site.axes
        assert node.axis == (axes[2] if node.head is not None else None)


def test_a_stream_that_passes_through_norms_has_no_edges() -> None:
    with pytest.raises(InterpError, match=r"edges need a residual stream that is the sum.*norm_placement='residual'"):
        Graph.of(make("bert"))


def test_shared_blocks_have_no_edges() -> None:
    with pytest.raises(
        InterpError, match=r"edges need components.*shared blocks.*`interp.sweep` at 'z', 'shared_block_out'"
    ):
        Graph.of(make("shared_blocks"))


def test_every_edge_has_a_name_that_finds_it(edged_model: GPT) -> None:
    graph = Graph.of(edged_model)
    names = [graph.edge_name(*edge) for edge in graph.edges]
    assert len(set(names)) == len(names) == graph.n_edges
    assert [graph.edge(name) for name in names] == list(graph.edges)


def test_edges_are_counted_as_in_the_published_graphs() -> None:
    gpt2 = make("gpt2", n_layers=12, n_heads=12)  # 32,491 edges: Hanna et al. 2024, section 3
    assert Graph.of(gpt2).n_edges == 32491


def test_labels_and_other_spellings() -> None:
    graph = Graph.of(make("llama_gqa"))
    heads = {f"L{layer}H{head}" for layer in (0, 1) for head in range(4)}
    assert {node.label for node in graph.senders} == {"embed", "MLP 0", "MLP 1"} | heads
    assert graph.receivers[graph.receiver("L1KV1<k>")].label == "L1KV1 k"
    assert graph.sender("L1H2") == graph.sender("a1.h2") and graph.receiver("MLP 1") == graph.receiver("m1")
    assert "a1.kv0<v>" in [node.name for node in graph.receivers]
    assert "a1.h0<v>" in [node.name for node in Graph.of(make("gpt2")).receivers]
    hybrid = Graph.of(make("hybrid"))  # Mamba-2, attention, Mamba-1 with an MLP
    assert {node.label for node in hybrid.receivers if node.kind == "ssm"} == {"mixer 0", "mixer 2"}
    assert hybrid.sender("L0S5") == hybrid.sender("s0.h5") and hybrid.sender("L1H3") == hybrid.sender("a1.h3")
    assert hybrid.sender("mixer 2") == hybrid.sender("s2") and hybrid.receiver("mixer 0") == hybrid.receiver("s0")
    assert hybrid.senders[hybrid.sender("s0.h5")].label == "L0S5"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a0.h1-m1", "edges are written"),
        ("a0.h9->m1", "no sender matches 'a0.h9'"),
        ("a0.h1->a1.h0<w>", "no receiver matches"),
        ("m1->a1.h0<q>", "comes before m1"),
        ("a0.h1->a0.h2<q>", "or beside it"),
    ],
)  # fmt: skip
def test_an_edge_that_does_not_exist_is_refused(name: str, says: str) -> None:
    with pytest.raises(UnknownName, match=says):
        Graph.of(make("gpt2")).edge(name)


@pytest.mark.parametrize(("kind", "site"), [("gpt2", "hook_q_input"), ("mamba", "hook_mixer_in")])
def test_a_model_without_split_inputs_is_refused(kind: str, site: str) -> None:
    model = make(kind)
    del model.hook_dict[f"blocks.0.{site}"]
    with pytest.raises(InterpError, match=site):
        Graph.of(model)


def test_heads_are_named_by_layer_and_number() -> None:
    model = make("gpt2")
    assert parse_head("L1H3", model) == parse_head("a1.h3", model) == parse_head(" l1h3", model) == (1, 3)
    with pytest.raises(UnknownName, match="the nearest is L1H1"):
        parse_head("L7H1", model)
    with pytest.raises(UnknownName, match="written L0H0 to L1H3"):
        parse_head("H3", model)
    hybrid = make("hybrid")
    assert parse_head("L0S5", hybrid) == parse_head("s0.h5", hybrid) == (0, 5)
    with pytest.raises(UnknownName, match="are L0S0 to L1H3, the nearest is L1H0"):
        parse_head("L2H0", hybrid)
    with pytest.raises(UnknownName, match="no layer of this model has heads"):
        parse_head("L0H0", make("mamba"))
