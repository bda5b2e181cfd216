"""Circuits of several sizes found by one method, and what they and random ones of their sizes give.

1. `find` scores every edge (EAP, or EAP-IG along one of two paths) and takes the best in every size; ACDC finds one
   circuit, which it begins with the best edges by EAP-IG. The whole model is always the last.
2. `run_beside_random` runs them on other prompts, and random circuits of as many edges: the control.
3. `size_means` and `integrals` are the means over prompts: faithfulness of every size, and its areas.

Sources: as `interp.circuits.edge_scores` and `interp.circuits.search`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import checked, real_number, whole_number
from interp.attribution.run_values import run_values
from interp.circuits.circuit import Circuit, origin, random_circuits
from interp.circuits.edge_scores import eap, eap_ig
from interp.circuits.faithfulness import areas, edge_counts, faithfulness
from interp.circuits.graph import Graph
from interp.circuits.run import run_circuits
from interp.circuits.search import acdc, circuits
from interp.errors import check_choice
from interp.hooked.model import HookedModel
from interp.metrics import get_metric, normalised_effect
from interp.prompts.pairs import PromptPairs
from interp.rounding import of_rows, reason

if TYPE_CHECKING:
    import pandas as pd

METHODS = ("eap", "eap-ig-inputs", "eap-ig-activations", "acdc")
KINDS = ["method", "selection", "rank"]
SIZES = ["fraction", "n_taken", "n_edges", "n_nodes"]
SIZE = [*KINDS, *SIZES[:3]]
MEASURED = "faithfulness in "


@dataclass(frozen=True)
class Search:
    """How circuits are looked for.

    Attributes:
        method: a name of `METHODS`.
        steps: points of the path of integrated gradients.
        selection: a name of `interp.circuits.search.SELECTIONS`.
        rank: which edges are best, a name of `interp.circuits.search.RANKS`.
        tau: of ACDC, what an edge must be worth.
        candidates: of ACDC, how many edges it begins with.
    """

    method: str = "eap-ig-inputs"
    steps: int = 5
    selection: str = "greedy"
    rank: str = "magnitude"
    tau: float = 0.01
    candidates: int = 500

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        for name in ("steps", "candidates"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least=1))
        object.__setattr__(self, "tau", real_number("tau", self.tau, least=0))


def find(
    model: HookedModel,
    pairs: PromptPairs,
    search: Search,
    sizes: str | Sequence[float] | None,
    *,
    scores: Tensor | None = None,
    progress: bool | None = None,
    **options: Any,
) -> list[Circuit]:
    """Circuits of these sizes, or the one that ACDC finds, and the whole model as the last.

    Args:
        model, pairs: the model, and the prompts that circuits are found on.
        search: how.
        sizes: as `interp.circuits.faithfulness.edge_counts` takes them.
        scores: those of these prompts and this search, where they are there already [prompt, sender, receiver].
        progress: a bar on stderr; None shows it on a terminal.
        options: `ablation`, `metric`, `seed` and `max_memory`.
    """
    graph = Graph.of(model)
    counts = edge_counts(sizes, graph)
    if scores is None and search.method == "eap":
        scores = eap(model, pairs, graph, **options)
    elif scores is None:
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


def run_beside_random(
    model: HookedModel,
    pairs: PromptPairs,
    found: Sequence[Circuit],
    draws: int,
    *,
    progress: bool | None = None,
    **options: Any,
) -> pd.DataFrame:
    """What circuits give, and random circuits of their sizes.

    Args:
        model, pairs: the model, and the prompts that circuits are run on.
        found: from `find`, the whole model the last of them.
        draws: random circuits of each size.
        progress: a bar on stderr; None shows it on a terminal.
        options: `ablation`, `metric`, `seed` and `max_memory`.

    Returns:
        A row for every circuit and prompt: `method, selection, rank`, of random circuits "random" and ""; `fraction`
        (the share of all edges that was taken), `n_taken, n_edges` (before and after pruning), `n_nodes, draw`;
        `prompt, metric, value, full_value, empty_value` (the whole model's and the fully ablated one's), `rounding`
        and `faithfulness`, of this prompt alone.
    """
    import pandas as pd

    graph = found[-1].graph
    drawn = [list(random_circuits(graph, one.n_edges, draws, seed=options["seed"])) for one in found[:-1]]
    empty = Circuit(graph, torch.zeros_like(graph.allowed))
    every = [empty, *found, *(one for group in drawn for one in group)]
    none, *values = run_circuits(model, pairs, every, graph, progress=progress, **options).numpy()
    whole = values[len(found) - 1]

    rows = [{**_facts(one, one), "value": value} for one, value in zip(found, values, strict=False)]
    control = [(like, one) for like, group in zip(found, drawn, strict=False) for one in group]
    values = values[len(found) :]
    rows += [{**_facts(like, one), "value": value} for (like, one), value in zip(control, values, strict=True)]
    if control:  # random circuits of all edges are the whole model
        rows.append({**rows[len(found) - 1], "method": "random", "selection": "", "rank": "", "draw": 0})
    frame = pd.DataFrame(rows).astype({"draw": "Int64"})
    frame["metric"] = get_metric(options["metric"]).name
    frame["prompt"] = [list(range(len(pairs)))] * len(frame)
    frame = frame.explode(["prompt", "value"], ignore_index=True).astype({"prompt": int, "value": float})
    frame["full_value"], frame["empty_value"] = whole[frame["prompt"]], none[frame["prompt"]]
    frame["rounding"] = run_values(model, pairs, options["metric"]).rounding.cpu().numpy()[frame["prompt"]]
    ends = frame["empty_value"], frame["full_value"]
    frame["faithfulness"] = normalised_effect(frame["value"], *ends, rounding=frame["rounding"])
    measured = ["prompt", "metric", "value", "full_value", "empty_value", "rounding", "faithfulness"]
    return frame[[*KINDS, *SIZES, "draw", *measured]]


def _facts(like: Circuit, own: Circuit) -> dict[str, Any]:
    """What a row says of a circuit, and of the one whose size it has."""
    taken = like.found.get("n_taken", like.n_edges)
    sizes = (taken / like.graph.n_edges, taken, own.n_edges, len(own.nodes))
    return {
        **{name: own.found.get(name, "") for name in KINDS},
        **dict(zip(SIZES, sizes, strict=True)),
        "draw": own.found.get("draw"),
    }


@checked
def size_means(frame: pd.DataFrame) -> pd.DataFrame:
    """Faithfulness of every size, a ratio of means over prompts, with intervals; random circuits of a size together.

    Args:
        frame: from `run_beside_random`.

    Returns:
        A row for every method and size: `method, selection, rank, fraction, n_taken, n_edges`, mean `n_nodes`, how many
        `draws`, `metric, value, n` (of prompts), `ci_low, ci_high`, and `reason` where a faithfulness is missing.
    """
    import pandas as pd

    rows = []
    for keys, part in frame.groupby(SIZE, sort=False, dropna=False):
        table, full, empty, off = _tables(part)
        interval = faithfulness(table.mean(0), full, empty, rounding=off)
        numbers = {name: float(getattr(interval, name)) for name in ("value", "ci_low", "ci_high")}
        rows.append(
            {
                **dict(zip(SIZE, keys, strict=True)),
                "n_nodes": part["n_nodes"].mean(),
                "draws": len(table),
                "metric": MEASURED + part["metric"].iloc[0],
                "value": numbers["value"],
                "n": table.shape[1],
                "ci_low": numbers["ci_low"],
                "ci_high": numbers["ci_high"],
                "reason": reason(len(off), len(off), off.mean()) if np.isnan(numbers["value"]) else "",
            }
        )
    table = pd.DataFrame(rows)
    return table if table["reason"].any() else table.drop(columns="reason")


@checked
def integrals(frame: pd.DataFrame) -> pd.DataFrame:
    """CPR and CMD (`interp.circuits.faithfulness.areas`) of every method with intervals; one of a single size has none.

    Args:
        frame: from `run_beside_random`.

    Returns:
        Columns `method, metric, value, n` (of prompts), `ci_low, ci_high, sizes` (how many).
    """
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
