"""Circuits: how few of a model's edges do its work, and are they all that does it?

1. Score every edge by what ablating it changes (EAP-IG by default), or find a circuit without scores (ACDC), on the
   first half of the prompts.
2. Take the best edges, in sizes from a thousandth of all edges to all of them, and keep those on a path from the
   embedding to the logits.
3. On the other half of the prompts, run every circuit with all other edges ablated. Its faithfulness is 0 where nothing
   is left of the metric and 1 where all is. CPR is the area under faithfulness over the share of edges, CMD the area
   between faithfulness and 1.
4. Run random circuits of the same sizes: the control.
5. Of the smallest circuit that is faithful, ask whether it is complete (nothing outside does the same work) and minimal
   (every node matters).

Source: Hanna et al. 2024 ("Have Faith in Faithfulness"); Mueller et al. 2025 ("MIB", CPR and CMD); Conmy et al. 2023
("Towards Automated Circuit Discovery"); Wang et al. 2022 ("Interpretability in the Wild", section 4). The definitions
are those of `interp.circuits.faithfulness`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch

from interp import figures
from interp.arguments import MOST, checked, real_number, whole_number
from interp.attribution.gradients import AnyMetric
from interp.attribution.run_values import run_values
from interp.circuits.circuit import Circuit, origin, random_circuits
from interp.circuits.edge_scores import eap, eap_ig
from interp.circuits.faithfulness import areas, completeness, edge_counts, faithfulness, minimality
from interp.circuits.graph import Graph
from interp.circuits.run import run_circuits
from interp.circuits.search import RANKS, SELECTIONS, acdc, circuits
from interp.errors import check_choice
from interp.figures.axes import Axis
from interp.figures.circuit_diagram import edge_table
from interp.hooked.model import HookedModel
from interp.metrics import get_metric, normalised_effect
from interp.prompts.pairs import PromptPairs
from interp.rounding import of_rows, reason
from interp.study.command import above_zero, check_folder, study_command, whole
from interp.ui.page import FigureItem, Section
from interp.variants.ablations import ABLATIONS

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

ORDER = 70
METHODS = ("eap", "eap-ig-inputs", "eap-ig-activations", "acdc")
ENOUGH = 0.85  # faithfulness of a circuit that is looked at more closely
REPORTED = 24  # prompts of a report, half of them to find circuits and half to run them
PARTS, NODES, CLOSER = 6, 12, 8  # random halves, nodes and prompts of the tests of one circuit
SLIGHT = 0.01  # of the model's faithfulness: a node that never matters more is not needed
TABLE = ["method", "selection", "rank", "fraction", "n_taken", "n_edges", "n_nodes", "draw"]


@checked
def run(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    method: str = "eap-ig-inputs",
    steps: int = 5,
    selection: str = "greedy",
    rank: str = "magnitude",
    sizes: str | Sequence[float] | None = None,
    tau: float = 0.01,
    candidates: int = 500,
    ablation: str = "corrupt",
    metric: AnyMetric = "logit_diff",
    draws: int = 2,
    seed: int = 0,
    max_memory: int | None = None,
    out: str | Path | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Find circuits of several sizes on one half of the prompts, and run them, and random ones, on the other.

    Args:
        model: the model.
        pairs: clean and corrupt prompts; the clean ones are run. A single prompt serves for both halves.
        method: "eap", "eap-ig-inputs", "eap-ig-activations" or "acdc".
        steps: points of the path of integrated gradients.
        selection: "greedy" (from the logits upwards) or "threshold".
        rank: which edges are best: a name of `interp.circuits.search.RANKS`.
        sizes: shares of all edges, or whole numbers of edges above 1, as a list or as "0.001,0.01,500"; None takes the
            ten of MIB. The whole model is always among them.
        tau: of ACDC, which compares by KL divergence: how much of it, in nats, an edge must be worth.
        candidates: of ACDC, how many edges it begins with, the best by EAP-IG.
        ablation: what stands for a sender's value, a name of `interp.variants.ablations.ABLATIONS`.
        metric: as `interp.sweep` takes it, if it has a gradient.
        draws: random circuits of each size.
        seed: of random circuits, and of an ablation that draws.
        max_memory: as in `interp.circuits.run.run_circuits`.
        out: a folder for the circuits as JSON, which `interp.circuits.circuit.Circuit.load` reads.
        progress: a bar on stderr; None shows it on a terminal.

    Returns:
        A row for every circuit and prompt of the second half: `method, selection, rank, fraction` (the share of all
        edges that was taken), `n_taken, n_edges` (before and after pruning), `n_nodes, draw` (of random circuits),
        `prompt, metric, value, full_value, empty_value` (the whole model's and the fully ablated one's), `rounding`
        (how far rounding alone can take the metric: where these two differ by no more, there is no faithfulness) and
        `faithfulness`, of this prompt alone.

    Raises:
        UnknownName: a method, selection, rank or ablation that does not exist.
        ConfigError: sizes that are none.
        InterpError: a model without split inputs, a metric without a gradient.
    """
    draws = whole_number("draws", draws, least=0, most=MOST)
    search = Search(method, steps, selection, rank, tau, candidates)
    options = {"ablation": ablation, "metric": metric, "seed": seed, "max_memory": max_memory}
    find_on, run_on = _halves(pairs)
    found = _find(model, find_on, search, sizes, progress, options)
    if out is not None:
        _save(found, Path(out))
    return _measured(model, run_on, found, draws, progress, options)


@dataclass(frozen=True)
class Search:
    """How circuits are looked for; see `run`."""

    method: str = "eap-ig-inputs"
    steps: int = 5
    selection: str = "greedy"
    rank: str = "magnitude"
    tau: float = 0.01
    candidates: int = 500

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        for name, least in (("steps", 1), ("candidates", 1)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least=least))
        object.__setattr__(self, "tau", real_number("tau", self.tau, least=0))


def _halves(pairs: PromptPairs) -> tuple[PromptPairs, PromptPairs]:
    """The prompts that circuits are found on, and those that they are run on."""
    half = len(pairs) // 2
    return (pairs[:half], pairs[half:]) if half else (pairs, pairs)


def _find(
    model: HookedModel,
    pairs: PromptPairs,
    search: Search,
    sizes: str | Sequence[float] | None,
    progress: bool | None,
    options: dict[str, Any],
) -> list[Circuit]:
    """Circuits of these sizes, or the one that ACDC finds, and the whole model as the last."""
    graph = Graph.of(model)
    counts = edge_counts(sizes, graph)
    if search.method == "eap":
        scores = eap(model, pairs, graph, **options)
    else:
        path = "activations" if search.method == "eap-ig-activations" else "inputs"
        scores = eap_ig(model, pairs, graph, steps=search.steps, path=path, **options)
    facts = origin(
        model,
        method=search.method,
        steps=1 if search.method == "eap" else search.steps,
        metric=get_metric(options["metric"]).name,
        ablation=options["ablation"],
        prompts=pairs.digest(),
        n_prompts=len(pairs),
    )
    if search.method != "acdc":
        return circuits(scores, counts, graph, selection=search.selection, rank=search.rank, found=facts)
    counts = [min(search.candidates, graph.n_edges), graph.n_edges]
    first, whole = circuits(scores, counts, graph, rank=search.rank, found=facts)
    rest = {name: value for name, value in options.items() if name != "metric"}
    return [acdc(model, pairs, tau=search.tau, candidates=first, progress=progress, **rest), whole]


def _measured(
    model: HookedModel,
    pairs: PromptPairs,
    found: Sequence[Circuit],
    draws: int,
    progress: bool | None,
    options: dict[str, Any],
) -> pd.DataFrame:
    """The rows of circuits, the whole model the last of them, and of random circuits of their sizes."""
    import pandas as pd

    graph = found[-1].graph
    sizes = [circuit.n_edges for circuit in found]
    control = [list(random_circuits(graph, size, draws, seed=options["seed"])) for size in sizes[:-1]]
    empty = Circuit(graph, torch.zeros_like(graph.allowed))
    every = [empty, *found, *(drawn for group in control for drawn in group)]
    none, *values = run_circuits(model, pairs, every, graph, progress=progress, **options).numpy()
    whole = values[len(found) - 1]

    def row(like: Circuit, own: Circuit, value: Any, **other: Any) -> dict[str, Any]:
        taken = like.found.get("n_taken", like.n_edges)
        names = {name: own.found.get(name, "") for name in TABLE[:3]}
        sizes = {"fraction": taken / graph.n_edges, "n_taken": taken, "n_edges": own.n_edges, "n_nodes": len(own.nodes)}
        return {**names, **sizes, "draw": own.found.get("draw"), "value": value, **other}

    rows = [row(circuit, circuit, value) for circuit, value in zip(found, values, strict=False)]
    of = [(like, own) for like, group in zip(found, control, strict=False) for own in group]
    rows += [row(like, own, value) for (like, own), value in zip(of, values[len(found) :], strict=True)]
    if of:  # random circuits of all edges are the whole model
        rows.append({**rows[len(found) - 1], "method": "random", "selection": "", "rank": "", "draw": 0})
    frame = pd.DataFrame(rows).astype({"draw": "Int64"})
    frame["metric"] = get_metric(options["metric"]).name
    frame["prompt"] = [list(range(len(pairs)))] * len(frame)
    frame = frame.explode(["prompt", "value"], ignore_index=True).astype({"prompt": int, "value": float})
    frame["full_value"], frame["empty_value"] = whole[frame["prompt"]], none[frame["prompt"]]
    frame["rounding"] = run_values(model, pairs, options["metric"]).rounding.cpu().numpy()[frame["prompt"]]
    ends = frame["empty_value"], frame["full_value"]
    frame["faithfulness"] = normalised_effect(frame["value"], *ends, rounding=frame["rounding"])
    return frame[[*TABLE, "prompt", "metric", "value", "full_value", "empty_value", "rounding", "faithfulness"]]


def _save(found: Sequence[Circuit], folder: Path) -> None:
    """Every circuit but the whole model as a file, named by its size."""
    check_folder(folder)
    for circuit in found:
        if circuit.n_edges < circuit.graph.n_edges:
            circuit.save(folder / f"circuit-{circuit.n_edges:06d}.json")


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Faithfulness of every size, a ratio of means over prompts, with intervals; random circuits of a size together."""
    import pandas as pd

    rows = []
    for keys, part in frame.groupby(TABLE[:6], sort=False, dropna=False):
        table, full, empty, off = _tables(part)
        interval = faithfulness(table.mean(0), full, empty, rounding=off)
        numbers = {name: float(getattr(interval, name)) for name in ("value", "ci_low", "ci_high")}
        rows.append(
            {
                **dict(zip(TABLE[:6], keys, strict=True)),
                "n_nodes": part["n_nodes"].mean(),
                "draws": len(table),
                "metric": "faithfulness in " + part["metric"].iloc[0],
                "value": numbers["value"],
                "n": table.shape[1],
                "ci_low": numbers["ci_low"],
                "ci_high": numbers["ci_high"],
                "reason": reason(len(off), len(off), off.mean()) if np.isnan(numbers["value"]) else "",
            }
        )
    table = pd.DataFrame(rows)
    return table if table["reason"].any() else table.drop(columns="reason")


def integrals(frame: pd.DataFrame) -> pd.DataFrame:
    """CPR and CMD of every method with intervals; a method with a single size has none."""
    import pandas as pd

    rows = []
    for method, part in frame.groupby("method", sort=False):
        sizes = [(fraction, _tables(one)) for fraction, one in part.groupby("fraction")]
        if len(sizes) < 2:
            continue
        values = np.stack([table.mean(0) for _, (table, *_) in sizes])
        _, full, empty, off = sizes[0][1]
        for name, interval in areas([fraction for fraction, _ in sizes], values, full, empty, rounding=off).items():
            numbers = {of: float(getattr(interval, of)) for of in ("value", "n", "ci_low", "ci_high")}
            rows.append({"method": method, "metric": name.upper(), **numbers, "sizes": len(sizes)})
    return pd.DataFrame(rows, columns=["method", "metric", "value", "n", "ci_low", "ci_high", "sizes"])


def _tables(part: pd.DataFrame) -> tuple[Any, Any, Any, Any]:
    """The metric of circuits of one size [draw, prompt], of the whole and of the ablated model, and its rounding."""
    table = part.assign(draw=part["draw"].fillna(0)).pivot(index="draw", columns="prompt", values="value")
    of = part.drop_duplicates("prompt").sort_values("prompt")
    full, empty = of["full_value"].to_numpy(), of["empty_value"].to_numpy()
    return table.to_numpy(), full, empty, of_rows(of, "full_value", "empty_value")


def plot(frame: pd.DataFrame) -> Figure:
    """Faithfulness over the share of edges, found circuits against random ones."""
    table = summary(frame).sort_values("fraction", kind="stable")
    table["share"] = [f"{float(f'{100 * fraction:.2g}'):g}%" for fraction in table["fraction"]]
    told = integrals(frame).dropna(subset="value")
    title = "; ".join(
        f"{method}: " + ", ".join(f"{row.metric} {row.value:.2f}" for row in part.itertuples())
        for method, part in told.groupby("method", sort=False)
    )
    label = f"faithfulness (share of the {frame['metric'].iloc[0]})".replace("_", " ")
    across = Axis("share", title="edges taken, as a share of all")
    return figures.lines(table, x=across, y="value", hue="method", label=label, title=title or None)


def report(
    model: HookedModel, pairs: PromptPairs, results: Mapping[str, pd.DataFrame], *, progress: bool | None = None
) -> tuple[pd.DataFrame, Section, list[str]]:
    """The section of a task's report: the curve, the smallest faithful circuit, its completeness and minimality."""
    total, pairs = len(pairs), pairs[:REPORTED]
    find_on, run_on = _halves(pairs)
    options: dict[str, Any] = {"ablation": "corrupt", "metric": "logit_diff", "seed": 0, "max_memory": None}
    found = _find(model, find_on, Search(), None, progress, options)
    frame = _measured(model, run_on, found, 2, progress, options)
    table = summary(frame)
    told = integrals(frame).set_index(["method", "metric"])
    own = table[table["method"] != "random"]
    faithful = own[own["value"] >= ENOUGH].sort_values("n_edges")
    where = (
        f"Circuits were found on {len(find_on)} prompts and run on {len(run_on)} others"
        if len(pairs) > 1
        else "Circuits were found and run on the same prompt, the only one there is"
    )
    where += f", of {total} prompts in all" * (total > len(pairs))
    text = [
        f"{where}. A circuit of faithfulness 1 gives the whole model's logit difference with every other edge "
        "carrying what it carries in the corrupt prompt; at 0 it gives no more than the corrupt prompt.",
    ]
    captions = "Mean over prompts; bands are 95% bootstrap intervals over prompts. The control is random circuits of "
    shown = [
        FigureItem(
            "circuit_faithfulness",
            "Faithfulness of circuits of every size",
            f"{captions}as many edges, two of each size, all of them on paths from the embedding to the logits.",
            plot(frame),
            table,
        )
    ]
    tables = [("Circuits of every size", table)]
    if faithful.empty:
        finding = f"No circuit can be called faithful on these prompts: {own['reason'].iloc[0]}."
        return frame, Section("Circuit", "circuit", [*text, finding], shown, tables), [finding]
    best = faithful.iloc[0]
    circuit = next(one for one in found if one.n_edges == best["n_edges"])
    finding = _told(best, table, told, circuit.graph)
    complete, minimal, closer = _closer(model, run_on[:CLOSER], circuit, progress, options)
    text += [finding, closer]
    lost = edge_table(circuit).assign(value=lambda table: -table["value"])  # scores are changes
    shown.append(
        FigureItem(
            "circuit_diagram",
            f"The smallest faithful circuit, {circuit.n_edges} edges",
            "Blue edges hold the logit difference up: ablated alone, it falls by the estimate. Red ones hold it down."
            + (" Dots say which input of a head an edge enters." if model.cfg.has_attention else "")
            + (" What a Mamba-2 layer reads is drawn at each of its heads." if "mamba2" in model.cfg.mixers else ""),
            figures.circuit(lost, label="estimated loss of the logit difference without the edge"),
            lost,
        )
    )
    tables += [("Completeness: parts of its nodes taken away from circuit and model", complete)]
    tables += [("Minimality: how much single nodes matter to it", minimal)]
    return frame, Section("Circuit", "circuit", text, shown, tables), [finding, closer]


def _told(best: Any, table: pd.DataFrame, told: pd.DataFrame, graph: Graph) -> str:
    """The finding about the smallest faithful circuit."""
    interval = f", 95% interval {best['ci_low']:.2f} to {best['ci_high']:.2f}" if best["n"] > 1 else ""
    chance = table[(table["method"] == "random") & (table["n_edges"] == best["n_edges"])]["value"]
    random = f"; random circuits of its size reach {_two(chance.iloc[0])}" if len(chance) else ""
    both = [(name, told["value"].get((best["method"], name))) for name in ("CPR", "CMD")]
    ends = [f"{name} {value:.2f}" for name, value in both if value is not None]
    area = f" Over all sizes: {', '.join(ends)}." if ends else ""
    share = best["n_edges"] / graph.n_edges
    return (
        f"The smallest circuit of faithfulness {ENOUGH} or more that was found has {best['n_edges']:,} of "
        f"{graph.n_edges:,} edges ({share:.2%}) and {best['n_nodes']:.0f} nodes: faithfulness {best['value']:.2f}"
        f"{interval} over {best['n']} {'prompt' if best['n'] == 1 else 'prompts'}{random}.{area}"
    )


def _two(value: float) -> str:
    """Two decimals, and no minus before 0.00."""
    return f"{round(value, 2) + 0.0:.2f}"


def _closer(
    model: HookedModel, pairs: PromptPairs, circuit: Circuit, progress: bool | None, options: dict[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Completeness and minimality of one circuit: a table of each, and what they say."""
    assert circuit.scores is not None
    weight = (circuit.scores.abs().nan_to_num() * circuit.edges).sum(1)[1:]
    weight = weight.masked_fill(~circuit.edges.any(1)[1:], torch.inf)
    least = (1 + weight.argsort(stable=True)[: min(NODES, int(weight.isfinite().sum()))]).tolist()
    complete = completeness(model, pairs, circuit, draws=PARTS, progress=progress, **options)
    says = [f"without all of its nodes the model keeps {_two(complete['model'].iloc[-1])}"]
    halves = complete["incompleteness"][:PARTS]
    says.insert(
        0,
        f"Without random halves of the circuit's nodes, circuit and model are {halves.mean():.2f} apart in "
        f"faithfulness on average and {halves.max():.2f} at most (0 is complete)",
    )
    minimal = minimality(model, pairs, circuit, least, progress=progress, **options)
    if len(minimal):
        idle = minimal[minimal["score"] < SLIGHT]["node"]
        names = f" ({', '.join(idle)})" if len(idle) else ""
        says.append(
            f"of the {len(minimal)} nodes with the smallest scores {len(idle)} never change it by {SLIGHT} or more"
            f"{names}"
        )
    return complete, minimal, "; ".join(says) + "."


main = study_command(
    run,
    plot=plot,
    summary=summary,
    kept="circuits",
    options=[
        click.option("--metric", default="logit_diff", show_default=True, help="logit_diff, log_prob, prob, ..."),
        click.option("--ablation", type=click.Choice(list(ABLATIONS)), default="corrupt", show_default=True),
        whole("--draws", "Random circuits of each size.  [2]", least=0),
        whole("--candidates", "Of ACDC: how many edges it begins with.  [500]"),
        above_zero("--tau", "Of ACDC: the KL divergence that an edge must be worth.  [0.01]"),
        click.option("--sizes", help="Shares of all edges, or numbers of edges: 0.001,0.01,500.  [those of MIB]"),
        click.option("--rank", type=click.Choice(list(RANKS)), help="Which edges are best.  [magnitude]"),
        click.option("--selection", type=click.Choice(SELECTIONS), help="From the logits up, or anywhere.  [greedy]"),
        whole("--steps", "Points of the path of integrated gradients.  [5]"),
        click.option("--method", type=click.Choice(METHODS), default="eap-ig-inputs", show_default=True),
    ],
)

if __name__ == "__main__":
    main()
