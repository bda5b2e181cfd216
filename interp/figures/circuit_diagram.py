"""A circuit as a picture: nodes in layers, the embedding on top; an edge with a larger score is wider and darker.

1. Nodes are in rows: the heads of a layer (or its state-space mixer), then its MLP. Rows without a node of the circuit
   are left out.
2. Within a row nodes move towards the mean position of their neighbours, row by row, down and up again, so that few
   edges cross (Sugiyama et al. 1981, barycentres).
3. Edges are curves from sender to receiver, blue for a positive score and red for a negative one. If a circuit has too
   many edges to distinguish, those with the largest scores are drawn, and the figure says how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_hex
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from interp.arguments import checked
from interp.circuits.circuit import Circuit, feeds
from interp.circuits.graph import Node
from interp.errors import InterpError
from interp.figures.axes import column, numbers, spread
from interp.figures.glyphs import width, written
from interp.figures.style import INK, MUTED, RULE, SMALL, TEXT_WIDTH, Figure, blank, styled
from interp.names import spelled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW, MIN_HEIGHT = 0.34, 2.4  # inches: of a row, and of the figure
GAP = 5.0  # points on either side of a node
MAX_EDGES = 60
STRONG = colormaps["RdBu"](np.r_[np.linspace(0, 0.36, 128), np.linspace(0.64, 1, 128)])
"""Red to blue without the pale colours, in which a thin line would not be visible on white."""

EDGE = [
    *("edge", "sender", "receiver", "reads", "receiver_node"),
    *("from_label", "to_label", "from_row", "to_row", "value"),
]
READS = {"q": "#0072B2", "k": "#009E73", "v": "#CC79A7"}


@dataclass(frozen=True)
class _Place:
    """Where a node is drawn: its row, its label, and its distance from the left in points."""

    row: int
    label: str
    across: float


@checked
@styled()
def circuit(
    frame: pd.DataFrame | Circuit,
    *,
    most: int = MAX_EDGES,
    limit: float | None = None,
    label: str = "score",
    title: str | None = None,
) -> Figure:
    """A circuit as a layered graph, layer 0 at the top.

    Args:
        frame: a `Circuit`, or one row for each edge with the columns of `edge_table`.
        most: draw at most this many edges, those with the largest magnitude.
        limit: the score of the widest edge and the darkest colour; None takes the largest magnitude.
        label, title: as `interp.figures` describes them.

    Raises:
        UnknownName: a column that the frame does not have.
        InterpError: a circuit without edges.
    """
    table = frame if isinstance(frame, pd.DataFrame) else edge_table(frame)
    if table.empty:
        raise InterpError("there is nothing to draw: the circuit has no edges")
    scores = numbers(table, "value")
    for name in ("edge", "from_row", "to_row"):
        column(table, name)
    order = np.argsort(-np.abs(np.nan_to_num(scores)), kind="stable")
    names = table["edge"].iloc[order].drop_duplicates()
    drawn = table.iloc[order]
    drawn = drawn[drawn["edge"].isin(set(names[:most]))]
    scored = np.isfinite(numbers(drawn, "value")).any()
    limit = limit or (float(np.nanmax(np.abs(numbers(drawn, "value")))) if scored else 0.0) or 1.0
    places, rows = _places(drawn)
    across = max(place.across + width(place.label, SMALL) / 2 for place in places.values()) + GAP
    figure = blank(TEXT_WIDTH, max(MIN_HEIGHT, ROW * len(rows) + 0.6))
    axes = figure.subplots()
    axes.set(xlim=(-GAP, max(across, 120)), ylim=(len(rows) - 0.4, -0.6))
    axes.set_yticks(range(len(rows)), labels=rows)
    axes.tick_params(axis="y", length=0, labelcolor=MUTED)
    axes.set_xticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    colours = ScalarMappable(Normalize(-limit, limit), ListedColormap(STRONG))
    for edge in reversed(list(drawn.itertuples(index=False))):
        value = float(edge.value)
        tint = to_hex(STRONG[int(255 * (min(max(value / limit, -1), 1) + 1) / 2)]) if np.isfinite(value) else RULE
        thick = 0.4 + 2.2 * min(abs(value) / limit, 1.0) if np.isfinite(value) else 0.6
        _edge(axes, places[edge.sender], places[edge.receiver_node], tint, thick, READS.get(edge.reads))
    for name, place in places.items():
        _node(axes, place, faint=name in ("input", "logits"))
    _explain(figure, axes, colours, label if scored else None, drawn, len(names))
    if title:
        figure.suptitle(written(title), x=0.01, ha="left", weight="bold", size=7.0)
    return figure


def edge_table(circuit: Circuit) -> pd.DataFrame:
    """A circuit's edges for a figure or a file.

    Returns:
        `edge` (its name), `sender, receiver` (names), `reads` (q, k, v or empty), `receiver_node` (a node that uses
        what the receiver reads), `from_label, to_label` (as figures write them), `from_row, to_row` (depth) and `value`
        (its score; NaN without one).
    """
    graph, feed = circuit.graph, feeds(circuit.graph)
    rows = []
    inner = circuit.edges.any(1)
    for sender, receiver in circuit.edges.nonzero().tolist():
        source, target = graph.senders[sender], graph.receivers[receiver]
        # Every head of a group reads its key or value: draw the edge to those that the circuit continues from.
        onward = feed[receiver].nonzero()[:, 0].tolist()
        ends: list[Node] = [graph.senders[at] for at in onward if inner[at]] or [graph.senders[at] for at in onward]
        for end in ends or [target]:
            rows.append(
                {
                    "edge": graph.edge_name(sender, receiver),
                    "sender": source.name,
                    "receiver": target.name,
                    "reads": target.reads or "",
                    "receiver_node": end.name,
                    "from_label": source.label,
                    "to_label": end.label,
                    "from_row": _depth(source),
                    "to_row": _depth(end),
                    "value": float("nan") if circuit.scores is None else float(circuit.scores[sender, receiver]),
                }
            )
    return pd.DataFrame(rows, columns=EDGE)


def _depth(node: Node) -> int:
    """Rows in the order of computation: embedding, mixer and MLP of every layer, logits."""
    return -1 if node.name == "input" else 2 * node.layer + (node.kind == "mlp")


def _places(table: pd.DataFrame) -> tuple[dict[str, _Place], list[str]]:
    """Where every node is drawn, and the names of the rows."""
    labels: dict[str, str] = {}
    depth: dict[str, int] = {}
    for edge in table.itertuples(index=False):
        labels |= {edge.sender: edge.from_label, edge.receiver_node: edge.to_label}
        depth |= {edge.sender: edge.from_row, edge.receiver_node: edge.to_row}
    levels = sorted(set(depth.values()))
    rows = [sorted(name for name in labels if depth[name] == level) for level in levels]
    neighbours: dict[str, list[str]] = {name: [] for name in labels}
    for edge in table.itertuples(index=False):
        neighbours[edge.sender].append(edge.receiver_node)
        neighbours[edge.receiver_node].append(edge.sender)
    across = {name: float(at - (len(row) - 1) / 2) for row in rows for at, name in enumerate(row)}  # in nodes
    for sweep in range(6):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = {name: float(np.mean([across[other] for other in neighbours[name]])) for name in row}
            row.sort(key=lambda name: (wanted[name], name))
            across |= _apart(row, wanted)
    step = max((width(label, SMALL) + 2 * GAP for label in labels.values()), default=1.0)  # points
    leftmost = min(across.values())
    places = {
        name: _Place(at, labels[name], (across[name] - leftmost + 0.5) * step)
        for at, row in enumerate(rows)
        for name in row
    }
    names = [_row_name(row, labels) for row in rows]
    return places, ["" if at and name == names[at - 1] else name for at, name in enumerate(names)]


def _apart(row: Sequence[str], wanted: dict[str, float]) -> dict[str, float]:
    """Positions in this order, at least 1 apart, and as close to the wanted ones as possible."""
    return dict(zip(row, spread([wanted[name] for name in row], 1.0), strict=True))


def _row_name(row: Sequence[str], labels: dict[str, str]) -> str:
    part = spelled(labels[row[0]])
    return "" if part is None or part.layer is None else f"layer {part.layer}"


def _node(axes: Axes, place: _Place, *, faint: bool) -> None:
    half = width(place.label, SMALL) / 2 + 2
    box = FancyBboxPatch(
        (place.across - half, place.row - 0.2), 2 * half, 0.4, boxstyle="round,pad=0,rounding_size=0.12"
    )
    box.set(facecolor="#f2f2f2" if faint else "white", edgecolor=RULE, linewidth=0.6, zorder=3)
    axes.add_patch(box)
    axes.text(place.across, place.row, place.label, ha="center", va="center_baseline", size=SMALL, color=INK, zorder=4)


def _edge(
    axes: Axes,
    start: _Place,
    end: _Place,
    colour: str,
    thick: float,
    reads: str | None,
) -> None:
    top, low = start.row + 0.2, end.row - 0.2
    bend = (low - top) / 2
    curve = Path(
        [(start.across, top), (start.across, top + bend), (end.across, low - bend), (end.across, low)],
        [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4],
    )
    axes.add_patch(PathPatch(curve, facecolor="none", edgecolor=colour, linewidth=thick, capstyle="butt", zorder=2))
    if reads is not None:
        axes.plot([end.across], [low], marker="o", markersize=2.2, color=reads, linewidth=0, zorder=2.5)


def _explain(
    figure: Figure, axes: Axes, colours: ScalarMappable, label: str | None, drawn: pd.DataFrame, count: int
) -> None:
    """The colour bar, a legend for the dots at heads, and how many edges are drawn if not all are."""
    if label is not None:
        bar = figure.colorbar(colours, ax=axes, shrink=0.6, aspect=22, pad=0.01, fraction=0.04)
        bar.set_label(written(label))
        bar.outline.set_linewidth(0.4)
        bar.ax.yaxis.set_major_locator(MaxNLocator(5, symmetric=True))
    reads = [letter for letter in READS if letter in set(drawn["reads"])]
    handles = [
        axes.plot([], [], marker="o", markersize=2.5, linewidth=0, color=READS[letter], label=name)[0]
        for letter, name in (("q", "query"), ("k", "key"), ("v", "value"))
        if letter in reads
    ]
    if handles:
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    shown = drawn["edge"].nunique()
    if count > shown:
        note = f"{shown} of {count} edges, those with the largest scores"
        axes.set_title(note, loc="right", weight="normal", size=SMALL, color=MUTED)
