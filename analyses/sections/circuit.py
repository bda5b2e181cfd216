"""Circuits in a report: the curve, the smallest faithful circuit, its completeness and its minimality."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analyses.circuit import halves, plot, summary
from interp import figures
from interp.circuits.circuit import Circuit
from interp.circuits.faithfulness import completeness, least_scored, minimality
from interp.circuits.finding import Search, find, integrals, run_beside_random
from interp.circuits.graph import Graph
from interp.figures.circuit_diagram import edge_table
from interp.hooked.model import HookedModel
from interp.prompts.pairs import PromptPairs
from interp.study.sections import Results, StudyReport, edge_scores_of
from interp.study.sentences import BANDS, counted, interval, two_decimals
from interp.ui.page import FigureItem, Section

if TYPE_CHECKING:
    import pandas as pd

ORDER = 70
ENOUGH = 0.85  # faithfulness of a circuit that is looked at more closely
REPORTED = 24  # prompts, half of them to find circuits and half to run them
PARTS, NODES, CLOSER = 6, 12, 8  # random halves, nodes and prompts of the tests of one circuit
SLIGHT = 0.01  # of the model's faithfulness: a node that never matters more is not needed


def report(model: HookedModel, pairs: PromptPairs, results: Results, *, progress: bool | None = None) -> StudyReport:
    """The section of a task's report: the curve, the smallest faithful circuit, its completeness and minimality."""
    scores = edge_scores_of(results, pairs)  # of all prompts
    total, pairs = len(pairs), pairs[:REPORTED]
    find_on, run_on = halves(pairs)
    options: dict[str, Any] = {"ablation": "corrupt", "metric": "logit_diff", "seed": 0, "progress": progress}
    scores = None if scores is None else scores[: len(find_on)]
    found = find(model, find_on, Search(), None, scores=scores, **options)
    frame = run_beside_random(model, run_on, found, 2, **options)
    table, both = summary(frame), integrals(frame)
    own = table[table["method"] != "random"]
    faithful = own[own["value"] >= ENOUGH].sort_values("n_edges")
    text, items = [_intro(find_on, run_on, len(pairs), total)], [_curve(frame, table, both)]
    more = [("Circuits of every size", table)]
    if faithful.empty:
        finding = f"No circuit can be called faithful on these prompts: {own['reason'].iloc[0]}."
        return StudyReport(frame, Section("Circuit", "circuit", [*text, finding], items, appendix=more), [finding])

    best = faithful.iloc[0]
    circuit = next(one for one in found if one.n_edges == best["n_edges"])
    complete, minimal = _closer(model, run_on[:CLOSER], circuit, options)
    findings = [_smallest(best, table, both, circuit.graph), _what_it_needs(complete, minimal)]
    items.append(_diagram(model, circuit))
    more += [("Completeness: parts of its nodes taken away from circuit and model", complete)]
    more += [("Minimality: how much single nodes matter to it", minimal)]
    section = Section("Circuit", "circuit", [*text, *findings], items, appendix=more)
    inside = circuit.edges.any(1).nonzero()[:, 0].tolist()
    nodes = [circuit.graph.senders[at].label for at in inside if circuit.graph.senders[at].kind != "input"]
    frame.attrs["parts"] = dict.fromkeys(nodes, "yes")
    return StudyReport(frame, section, findings)


def _intro(find_on: PromptPairs, run_on: PromptPairs, n: int, total: int) -> str:
    where = (
        f"Circuits were found on {len(find_on)} prompts and run on {len(run_on)} others"
        if n > 1
        else "Circuits were found and run on the same prompt, the only one there is"
    )
    where += f", of {total} prompts in all" * (total > n)
    return (
        f"{where}. A circuit of faithfulness 1 gives the whole model's logit difference with every other edge "
        "carrying what it carries in the corrupt prompt; at 0 it gives no more than the corrupt prompt."
    )


def _curve(frame: pd.DataFrame, table: pd.DataFrame, both: pd.DataFrame) -> FigureItem:
    return FigureItem(
        "circuit_faithfulness",
        "Faithfulness of circuits of every size",
        f"Mean over prompts; {BANDS}. The control is random circuits of as many edges, two of each size, all of them "
        "on paths from the embedding to the logits.",
        plot(frame, table=table, areas=both),
        table,
    )


def _smallest(best: Any, table: pd.DataFrame, both: pd.DataFrame, graph: Graph) -> str:
    """The finding about the smallest faithful circuit."""
    chance = table[(table["method"] == "random") & (table["n_edges"] == best["n_edges"])]["value"]
    random = f"; random circuits of its size reach {two_decimals(chance.iloc[0])}" if len(chance) else ""
    known = both[both["method"] == best["method"]].set_index("metric")["value"]
    area = ""
    if {"CPR", "CMD"} <= set(known.index):
        area = (
            f" On average over all sizes, circuits reach {known['CPR']:.2f} (CPR), and are {known['CMD']:.2f} away "
            "from 1 (CMD)."
        )
    share = best["n_edges"] / graph.n_edges
    return (
        f"The smallest circuit of faithfulness {ENOUGH} or more that was found has {best['n_edges']:,} of "
        f"{graph.n_edges:,} edges ({share:.2%}) and {best['n_nodes']:.0f} nodes: faithfulness {best['value']:.2f}"
        f"{interval(best, before=', ')} over {counted(best['n'])}{random}.{area}"
    )


def _closer(
    model: HookedModel, pairs: PromptPairs, circuit: Circuit, options: dict[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Completeness and minimality of one circuit."""
    complete = completeness(model, pairs, circuit, draws=PARTS, **options)
    return complete, minimality(model, pairs, circuit, least_scored(circuit, NODES), **options)


def _what_it_needs(complete: pd.DataFrame, minimal: pd.DataFrame) -> str:
    """What completeness and minimality say."""
    halves = complete["incompleteness"][:PARTS]
    says = [
        f"Without random halves of the circuit's nodes, circuit and model are {halves.mean():.2f} apart in "
        f"faithfulness on average and {halves.max():.2f} at most (0 is complete)",
        f"without all of its nodes the model keeps {two_decimals(complete['model'].iloc[-1])}",
    ]
    if len(minimal):
        idle = minimal[minimal["score"] < SLIGHT]["node"]
        names = f" ({', '.join(idle)})" if len(idle) else ""
        says.append(
            f"of the {len(minimal)} nodes with the smallest scores {len(idle)} never change it by {SLIGHT} or more"
            f"{names}"
        )
    return "; ".join(says) + "."


def _diagram(model: HookedModel, circuit: Circuit) -> FigureItem:
    lost = edge_table(circuit).assign(value=lambda table: -table["value"])  # scores are changes
    return FigureItem(
        "circuit_diagram",
        f"The smallest faithful circuit, {circuit.n_edges} edges",
        "Blue edges hold the logit difference up: ablated alone, it falls by the estimate. Red ones hold it down."
        + (" Dots say which input of a head an edge enters." if model.cfg.has_attention else "")
        + (" What a Mamba-2 layer reads is drawn at each of its heads." if "mamba2" in model.cfg.mixers else ""),
        figures.circuit(lost, label="estimated loss of the logit difference without the edge"),
        lost,
        view="circuit",
    )
