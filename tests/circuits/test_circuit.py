"""Circuits: pruned to paths, combined, drawn at random, saved and read back."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import pytest
import torch
from makers import EDGED, drawn_edges, make
from torch import Tensor

from interp.circuits.circuit import Circuit, feeds, on_paths, origin, random_circuits
from interp.circuits.graph import Graph
from interp.errors import InterpError, OutputError
from interp.models.gpt import GPT

HYBRIDS = (("mamba", "attn", "mlp"), ("attn", "mamba", "mlp"))


def drawn(graph: Graph, share: float, seed: int = 0) -> Tensor:
    return drawn_edges(graph, share, seed=seed)[0]


def paths_by_networkx(graph: Graph, edges: Tensor) -> Tensor:
    """The edges between descendants of the embedding and ancestors of the logits, where each receiver is joined to the
    senders that compute with it.
    """
    layer = next((n.layer for n in graph.receivers if n.reads is not None), 0)  # that has attention
    group = max(len([n for n in graph.senders if n.layer == layer and n.kind == "attn"]), 1)
    kv_heads = max(len([n for n in graph.receivers if n.layer == layer and n.reads == "k"]), 1)
    net = nx.DiGraph()
    net.add_nodes_from(["out input", "in logits"])
    for node in graph.receivers:
        for sender in graph.senders:
            same = sender.layer == node.layer and sender.kind == node.kind
            each = 1 if node.reads == "q" else group // kv_heads
            if same and (node.head is None or (sender.head is not None and sender.head // each == node.head)):
                net.add_edge(f"in {node.name}", f"out {sender.name}")
    names = [
        (at, f"out {graph.senders[at[0]].name}", f"in {graph.receivers[at[1]].name}") for at in edges.nonzero().tolist()
    ]
    net.add_edges_from([(one, other) for _, one, other in names])
    after, before = nx.descendants(net, "out input") | {"out input"}, nx.ancestors(net, "in logits") | {"in logits"}
    kept = torch.zeros_like(edges)
    for at, one, other in names:
        kept[tuple(at)] = one in after and other in before
    return kept


def test_pruning_keeps_what_lies_on_a_path(edged_model: GPT) -> None:
    graph = Graph.of(edged_model)
    for seed, share in enumerate([0.02, 0.06, 0.1, 0.3]):
        edges = drawn(graph, share, seed)
        kept = on_paths(graph, edges)
        assert torch.equal(kept, paths_by_networkx(graph, edges))
        assert torch.equal(on_paths(graph, kept), kept)
    assert torch.equal(on_paths(graph, graph.allowed), graph.allowed)


def test_a_key_value_input_feeds_every_head_of_its_group() -> None:
    graph = Graph.of(make("llama_gqa"))
    fed = feeds(graph)[graph.receiver("a1.kv1<v>")].nonzero()[:, 0].tolist()
    assert [graph.senders[at].name for at in fed] == ["a1.h2", "a1.h3"]
    assert not feeds(graph)[-1].any()


def test_what_a_state_space_layer_reads_feeds_all_that_it_writes() -> None:
    graph = Graph.of(make("hybrid"))
    fed = feeds(graph)[graph.receiver("s0")].nonzero()[:, 0].tolist()
    assert [graph.senders[at].name for at in fed] == [f"s0.h{head}" for head in range(6)]
    fed = feeds(graph)[graph.receiver("s2")].nonzero()[:, 0].tolist()
    assert [graph.senders[at].name for at in fed] == ["s2"]


@pytest.mark.parametrize("kind", ["gpt2", "llama_gqa", "attn_only", *EDGED])
def test_random_circuits_have_their_size_and_no_dead_ends(kind: str) -> None:
    graph = Graph.of(make(kind, **({} if kind in EDGED else {"n_layers": 3})))
    for size in {min(size, graph.n_edges) for size in (0, 1, 2, 3, 7, 40, graph.n_edges - 1, graph.n_edges)}:
        first, second = random_circuits(graph, size, 2, seed=1)
        assert first.n_edges == second.n_edges == size
        assert torch.equal(first.pruned().edges, first.edges)
        again = next(iter(random_circuits(graph, size, 1, seed=1)))
        assert torch.equal(again.edges, first.edges)
    with pytest.raises(InterpError, match="cannot be drawn"):
        list(random_circuits(graph, graph.n_edges + 1, 1))


def test_sets_of_edges_combine_and_compare() -> None:
    graph = Graph.of(make("gpt2"))
    one, other = Circuit(graph, drawn(graph, 0.3, 1)), Circuit(graph, drawn(graph, 0.3, 2))
    both, either = one & other, one | other
    assert set(both.names) == set(one.names) & set(other.names)
    assert set(either.names) == set(one.names) | set(other.names)
    compared = one.compare(other)
    assert compared["shared"] == both.n_edges
    assert compared["precision"] == both.n_edges / other.n_edges and compared["recall"] == both.n_edges / one.n_edges
    assert compared["jaccard"] == both.n_edges / either.n_edges
    assert {node.name for node in one.nodes} == {name.partition("->")[0] for name in one.names}
    with pytest.raises(InterpError, match="heads 4 and 3"):
        one.compare(Circuit(Graph.of(make("alibi")), Graph.of(make("alibi")).allowed))


def test_a_saved_circuit_comes_back_and_only_to_its_architecture(tmp_path: Path) -> None:
    model = make("llama_gqa")
    graph = Graph.of(model)
    scores = torch.randn(graph.allowed.shape, generator=torch.Generator().manual_seed(0)).double()
    circuit = Circuit(graph, drawn(graph, 0.2), scores, origin(model, method="eap", n=3))
    path = circuit.save(tmp_path / "circuit.json")
    loaded = Circuit.load(path, make("llama_gqa", seed=9))
    assert torch.equal(loaded.edges, circuit.edges) and loaded.found == circuit.found
    assert loaded.scores is not None and torch.equal(loaded.scores[circuit.edges], scores[circuit.edges])
    assert loaded.scores[~circuit.edges].isnan().all()
    content = json.loads(path.read_text())
    assert set(content["edges"]) == set(circuit.names) and content["found"]["method"] == "eap"
    bare = Circuit(graph, circuit.edges).save(tmp_path / "bare.json")
    assert Circuit.load(bare, model).scores is None
    with pytest.raises(InterpError, match="kv_heads 2 and 4"):
        Circuit.load(path, make("llama"))
    with pytest.raises(InterpError, match="layers 2 and 3"):
        Circuit.load(path, make("llama_gqa", n_layers=3))
    with pytest.raises(OutputError, match="cannot be written"):
        circuit.save(tmp_path / "nowhere" / "circuit.json")


def test_the_weights_that_a_circuit_was_found_in_are_told_apart() -> None:
    first, second = make("gpt2"), make("gpt2", seed=9)
    assert origin(first)["weights"] == origin(make("gpt2"))["weights"] != origin(second)["weights"]


@pytest.mark.parametrize("recurrent_kind", EDGED)
def test_circuits_of_state_space_layers_are_saved_and_told_apart(recurrent_kind: str, tmp_path: Path) -> None:
    recurrent = make(recurrent_kind)
    graph = Graph.of(recurrent)
    circuit = Circuit(graph, drawn(graph, 0.4))
    path = circuit.save(tmp_path / "circuit.json")
    assert torch.equal(Circuit.load(path, recurrent).edges, circuit.edges)
    for kind in ["gpt2", *EDGED]:
        other = make(kind)
        if other.cfg.layer_types != recurrent.cfg.layer_types:
            with pytest.raises(InterpError, match=r"another architecture.*(layers|heads) \d and \d"):
                Circuit.load(path, other)
    one, other = (Graph.of(make("hybrid", layer_types=types)) for types in HYBRIDS)
    with pytest.raises(InterpError, match=r"layer_types 1 ssm, 1 attn, 1 mlp and 1 attn, 1 ssm, 1 mlp$"):
        Circuit(one, one.allowed).compare(Circuit(other, other.allowed))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("not json", "does not hold a circuit"),
        ('{"format": "interp.PromptPairs 1"}', "its format is not"),
        ("changed", "was changed after it was saved"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str | None, says: str) -> None:
    model = make("gpt2")
    path = tmp_path / "circuit.json"
    if text == "changed":
        Circuit(Graph.of(model), drawn(Graph.of(model), 0.2)).save(path)
        path.write_text(path.read_text().replace('"found": {}', '"found": {"method": "eap"}'))
    elif text is not None:
        path.write_text(text)
    with pytest.raises(InterpError, match=says):
        Circuit.load(path, model)


def test_edges_that_do_not_exist_are_refused() -> None:
    graph = Graph.of(make("gpt2"))
    with pytest.raises(InterpError, match="do not exist in its graph, such as"):
        Circuit(graph, torch.ones_like(graph.allowed))
    with pytest.raises(InterpError, match=r"edges of a circuit are \[2, 3\]"):
        Circuit(graph, torch.ones(2, 3))
