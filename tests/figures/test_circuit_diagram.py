"""A circuit's picture shows its nodes in order, its edges by score, and how many it leaves out."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from makers import make
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch, PathPatch
from shown import panels, texts

from interp import figures
from interp.circuits.circuit import Circuit, random_circuits
from interp.circuits.graph import Graph
from interp.errors import InterpError, UnknownName
from interp.figures.circuit_diagram import edge_table


def circuit_of(kind: str = "gpt2", n: int = 25) -> Circuit:
    graph = Graph.of(make(kind))
    scores = torch.randn(graph.allowed.shape, generator=torch.Generator().manual_seed(2)).double()
    return Circuit(graph, next(random_circuits(graph, n, 1)).edges, scores)


def curves(figure: figures.Figure) -> list[PathPatch]:
    return [patch for patch in panels(figure)[0].patches if isinstance(patch, PathPatch)]


@pytest.mark.parametrize("kind", ["gpt2", "llama_gqa", "neox", "attn_only", "hybrid", "one_part_a_layer"])
def test_nodes_stand_in_the_order_of_computation_and_edges_go_down(kind: str) -> None:
    circuit = circuit_of(kind)
    figure = figures.circuit(circuit)
    (axes,) = panels(figure)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    found = texts(figure)
    assert {node.label for node in circuit.nodes} | {"logits"} <= found
    for curve in curves(figure):
        ends = curve.get_path().vertices
        assert ends[-1][1] > ends[0][1]
    where = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert where["embed"] == min(where.values()) and where["logits"] == max(where.values())
    boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    spans = sorted((round(box.get_y(), 3), box.get_x(), box.get_x() + box.get_width()) for box in boxes)
    assert all(a[2] <= b[1] + 1e-9 for a, b in pairwise(spans) if a[0] == b[0])


def test_colour_and_width_are_the_score() -> None:
    graph = Graph.of(make("gpt2"))
    edges, scores = torch.zeros_like(graph.allowed), torch.full(graph.allowed.shape, torch.nan)
    for name, score in (("input->m0", -2.0), ("m0->m1", 1.0), ("m1->logits", 0.1), ("input->logits", torch.nan)):
        edges[graph.edge(name)], scores[graph.edge(name)] = True, score
    drawn_curves = curves(figures.circuit(Circuit(graph, edges, scores)))
    by_width = sorted(drawn_curves, key=lambda curve: -curve.get_linewidth())
    red, blue = (to_rgb(curve.get_edgecolor()) for curve in by_width[:2])
    assert red[0] > red[2] and blue[2] > blue[0]
    assert len({curve.get_linewidth() for curve in drawn_curves}) == 4
    grey = [curve for curve in drawn_curves if np.ptp(to_rgb(curve.get_edgecolor())) < 1e-6]
    assert len(grey) == 1  # the one without a score


def test_the_strongest_edges_are_drawn_and_the_rest_counted() -> None:
    circuit = circuit_of()
    figure = figures.circuit(circuit, most=12)
    assert len(curves(figure)) == 12
    left_out = re.compile(r"(\d+) of (\d+) edges")
    (said,) = filter(None, map(left_out.match, texts(figure)))
    assert said.groups() == ("12", str(circuit.n_edges))
    assert not any(map(left_out.match, texts(figures.circuit(circuit, most=1000))))


def test_a_table_of_edges_says_who_reads_whom_and_draws_the_same() -> None:
    circuit = circuit_of("llama_gqa")
    table = edge_table(circuit)
    assert set(table["edge"]) == set(circuit.names)
    assert circuit.scores is not None
    expected = {name: float(circuit.scores[circuit.graph.edge(name)]) for name in circuit.names}
    assert all(expected[row.edge] == row.value for row in table.itertuples())
    for row in table[table["reads"] == "k"].itertuples():  # a key-value head is drawn at heads of its group
        assert int(row.receiver_node.partition("h")[2]) // 2 == int(row.receiver.partition("kv")[2][0])
    assert len(curves(figures.circuit(table))) == len(curves(figures.circuit(circuit))) == min(len(table), 1000)
    bare = figures.circuit(Circuit(circuit.graph, circuit.edges))
    assert len(bare.axes) == 1  # without scores there is no colour bar
    hybrid = circuit_of("hybrid", 60)  # what a Mamba-2 layer reads is drawn at its heads, all rows have their layer
    table = edge_table(hybrid)
    assert table.loc[table["receiver"] == "s0", "receiver_node"].str.startswith("s0.h").all()
    assert {"layer 0", "layer 1", "layer 2"} <= texts(figures.circuit(hybrid, most=60))


def test_what_cannot_be_drawn_is_refused() -> None:
    graph = Graph.of(make("gpt2"))
    with pytest.raises(InterpError, match="has no edges"):
        figures.circuit(Circuit(graph, torch.zeros_like(graph.allowed)))
    with pytest.raises(UnknownName, match="no column of the frame matches 'from_row'"):
        figures.circuit(edge_table(circuit_of()).drop(columns="from_row"))
