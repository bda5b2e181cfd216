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

Source: Hanna et al. 2024 (https://arxiv.org/abs/2403.17806, "Have Faith in Faithfulness"); Mueller et al. 2025
(https://arxiv.org/abs/2504.13151, "MIB", CPR and CMD); Conmy et al. 2023 (https://arxiv.org/abs/2304.14997, "Towards
Automated Circuit Discovery"); Wang et al. 2022 (https://arxiv.org/abs/2211.00593, "Interpretability in the Wild",
section 4). The definitions are those of `interp.circuits.faithfulness`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interp import figures
from interp.arguments import MOST, checked, whole_number
from interp.attribution.gradients import AnyMetric
from interp.circuits.circuit import Circuit
from interp.circuits.finding import MEASURED, METHODS, Search, find, integrals, run_beside_random, size_means
from interp.circuits.search import RANKS, SELECTIONS
from interp.figures.axes import Axis
from interp.frames import restored, restoring
from interp.hooked.model import HookedModel
from interp.prompts.pairs import PromptPairs
from interp.study.command import study_command
from interp.study.options import above_zero, choice, whole
from interp.study.output import check_folder
from interp.study.shared_options import ABLATION, STEPS, method_option, metric_option

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure


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
        A row for every circuit and prompt of the second half, as `interp.circuits.finding.run_beside_random` gives it:
        `method, selection, rank, fraction, n_taken, n_edges, n_nodes, draw, prompt, metric, value, full_value,
        empty_value`, `rounding` (how far rounding alone can take the metric: where these two differ by no more, there
        is no faithfulness) and `faithfulness`, of this prompt alone.

    Raises:
        UnknownName: a method, selection, rank or ablation that does not exist.
        ConfigError: sizes that are none.
        InterpError: a model without split inputs, a metric without a gradient.
    """
    draws = whole_number("draws", draws, least=0, most=MOST)
    search = Search(method, steps, selection, rank, tau, candidates)
    options: dict[str, Any] = {"ablation": ablation, "metric": metric, "seed": seed, "max_memory": max_memory}
    options["progress"] = progress
    find_on, run_on = halves(pairs)
    found = find(model, find_on, search, sizes, **options)
    if out is not None:
        _save(found, Path(out))
    return run_beside_random(model, run_on, found, draws, **options)


def halves(pairs: PromptPairs) -> tuple[PromptPairs, PromptPairs]:
    """The prompts that circuits are found on, and those that they are run on."""
    half = len(pairs) // 2
    return (pairs[:half], pairs[half:]) if half else (pairs, pairs)


def _save(found: Sequence[Circuit], folder: Path) -> None:
    """Every circuit but the whole model as a file, named by its size."""
    check_folder(folder)
    for circuit in found:
        if circuit.n_edges < circuit.graph.n_edges:
            circuit.save(folder / f"circuit-{circuit.n_edges:06d}.json")


@checked
@restoring
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Faithfulness of every size, a ratio of means over prompts, with intervals; random circuits of a size together."""
    return size_means(frame)


@checked
@restoring
def plot(frame: pd.DataFrame, *, table: pd.DataFrame | None = None, areas: pd.DataFrame | None = None) -> Figure:
    """Faithfulness over the share of edges, found circuits against random ones, with the areas of `integrals` above.

    `table` is the frame's summary and `areas` its `integrals`, where they are there already.
    """
    table = summary(frame) if table is None else restored(table)
    areas = integrals(frame) if areas is None else restored(areas)
    table = table.sort_values("fraction", kind="stable")
    table["share"] = [f"{float(f'{100 * fraction:.2g}'):g}%" for fraction in table["fraction"]]
    title = "; ".join(
        f"{method}: " + ", ".join(f"{row.metric} {row.value:.2f}" for row in part.itertuples())
        for method, part in areas.dropna(subset="value").groupby("method", sort=False)
    )
    measured = table["metric"].iloc[0].removeprefix(MEASURED)
    label = f"faithfulness (share of the {measured})".replace("_", " ")
    across = Axis("share", title="edges taken, as a share of all")
    return figures.lines(table, x=across, hue="method", label=label, title=title or None)


main = study_command(
    run,
    plot=plot,
    summary=summary,
    natural="",
    kept="circuits",
    options=[
        metric_option("logit_diff, log_prob, prob, ..."),
        ABLATION,
        whole("--draws", "Random circuits of each size.  [2]", least=0),
        whole("--candidates", "Of ACDC: how many edges it begins with.  [500]"),
        above_zero("--tau", "Of ACDC: the KL divergence that an edge must be worth.  [0.01]"),
        click.option("--sizes", help="Shares of all edges, or numbers of edges: 0.001,0.01,500.  [those of MIB]"),
        choice("--rank", RANKS, help="Which edges are best.  [magnitude]"),
        choice("--selection", SELECTIONS, help="From the logits up, or anywhere.  [greedy]"),
        STEPS,
        method_option(METHODS, "eap-ig-inputs"),
    ],
)

if __name__ == "__main__":
    main()
