"""The view of a circuit: its parts in the order of computation, and what each reads of which."""

from __future__ import annotations

import math

from interp.circuits.circuit import Circuit
from interp.errors import InterpError
from interp.figures.circuit_diagram import edge_table
from interp.ui.views.view import Part


def of_circuit(circuit: Circuit) -> Part:
    """A circuit as a graph whose edges are as wide as their scores.

    Raises:
        InterpError: a circuit without edges.
    """
    table = edge_table(circuit)
    if not len(table):
        raise InterpError("the circuit has no edges to show")
    nodes = {
        row[name]: {"name": row[name], "label": row[label], "row": int(row[depth])}
        for row in table.to_dict("records")
        for name, label, depth in (("sender", "from_label", "from_row"), ("receiver_node", "to_label", "to_row"))
    }
    edges = [
        {
            "from": row["sender"],
            "to": row["receiver_node"],
            "reads": row["reads"],
            "value": None if math.isnan(row["value"]) else row["value"],
        }
        for row in table.to_dict("records")
    ]
    edges.sort(key=lambda edge: -abs(edge["value"] or 0.0))
    note = f"{circuit.n_edges} of {circuit.graph.n_edges:,} edges; wider is stronger. "
    note += "Without a red one the metric falls, without a blue one it rises."
    if circuit.scores is None:
        note = f"{circuit.n_edges} of {circuit.graph.n_edges:,} edges, without scores."
    return Part("graph", "Circuit", {"nodes": list(nodes.values()), "edges": edges, "note": note})
