"""Edge attribution: which component's output, read by which other component, moves the answer?

1. Every reader (a head's query, key or value input, a state-space layer, an MLP, the unembedding) reads a sum over what
   earlier components wrote. An edge is one term of such a sum.
2. The effect of an edge is the change of the metric when the reader gets what the writer would have written if it were
   ablated: by default, in the corrupt prompt.
3. Gradients estimate the effects of all edges at once: EAP at the clean run, EAP-IG averaged along a path from the
   ablated to the clean input, or one layer's activations after the other.
4. The edges with the largest estimates, and as many drawn at random, are measured exactly. They say how far the
   estimates are off, and how many large edges they may have missed.

Source: Syed et al. 2023 (https://arxiv.org/abs/2310.10348, "Attribution Patching Outperforms Automated Circuit
Discovery", section 3); Hanna et al. 2024 (https://arxiv.org/abs/2403.17806, "Have Faith in Faithfulness", section 3);
Mueller et al. 2025 (https://arxiv.org/abs/2504.13151, "MIB").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from interp import figures, stats
from interp.arguments import checked
from interp.attribution.estimate_check import agreement, choose, means, ranked, tabulated
from interp.attribution.gradients import AnyMetric, check_steps
from interp.attribution.run_values import of_sweep
from interp.circuits.edge_scores import eap_ig, measured_edges
from interp.circuits.graph import Graph
from interp.errors import check_choice
from interp.figures.axes import Axis
from interp.frames import restored, restoring
from interp.hooked.model import HookedModel
from interp.metrics import get_metric
from interp.prompts.pairs import PromptPairs
from interp.study.command import study_command
from interp.study.options import whole
from interp.study.shared_options import ABLATION, METRIC, STEPS, method_option
from interp.study.sweep_options import SweepOptions

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from interp.figures.style import Figure

METHODS = {"eap": None, "eap-ig-inputs": "inputs", "eap-ig-activations": "activations"}
EDGE = ["edge", "sender", "receiver", "sender_layer", "receiver_layer"]
SHOWN = 20


@checked
def run(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    method: str = "eap-ig-inputs",
    steps: int = 5,
    ablation: str = "corrupt",
    metric: AnyMetric = "logit_diff",
    sample: int = 100,
    most: int = 1000,
    seed: int = 0,
    **options: Unpack[SweepOptions],
) -> pd.DataFrame:
    """Estimate the effect of every edge, and measure that of some.

    Args:
        model: the model.
        pairs: clean and corrupt prompts; the clean ones are run, ablated values are from the corrupt ones.
        method: "eap", "eap-ig-inputs" or "eap-ig-activations".
        steps: points of the path of integrated gradients.
        ablation: what stands for a writer's value, a name of `interp.variants.ablations.ABLATIONS`.
        metric: as `interp.sweep` takes it, if it has a gradient.
        sample: how many edges are measured exactly, half of them those with the largest estimates.
        most: how many edges have rows, those with the largest estimates; measured ones always do.
        seed: of the random edges, and of an ablation that draws.
        options: `max_memory, out, progress, executor`, as `interp.sweep` takes them.

    Returns:
        A row for each of these edges and every prompt: `method, ablation, edge` (as files of circuits name it),
        `sender, receiver` (as other tables write them), `sender_layer, receiver_layer` (-1 is the embedding), `sample`
        ("top", "random" or ""), `cells` (how many edges were estimated), `prompt, metric, value` (the estimated change
        of the metric), `exact` (the measured one, where it was measured), `base_value, source_value`, `effect` and
        `exact_effect` (the changes as parts of the difference between the clean run, 0, and the corrupt run, 1).

    Raises:
        UnknownName: a method, an ablation, a metric that does not exist or has no gradient.
        InterpError: a model without split inputs, what `interp.sweep` refuses; SweepInterrupted as there.
    """
    check_choice("method", method, METHODS)
    check_steps(steps)
    ways: dict[str, Any] = {"ablation": ablation, "metric": metric, "seed": seed}
    scores = scored(model, pairs, method=method, steps=steps, max_memory=options.get("max_memory"), **ways)
    return table_of(model, pairs, scores, method=method, sample=sample, most=most, **ways, **options)


def scored(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    method: str = "eap-ig-inputs",
    steps: int = 5,
    max_memory: int | None = None,
    **options: Any,
) -> Tensor:
    """The estimates of all edges [prompt, sender, receiver]; arguments as in `run`."""
    path = METHODS[method]
    steps = 1 if path is None else steps
    return eap_ig(model, pairs, steps=steps, path=path or "inputs", max_memory=max_memory, **options)


def table_of(
    model: HookedModel,
    pairs: PromptPairs,
    scores: Tensor,
    *,
    method: str = "eap-ig-inputs",
    ablation: str = "corrupt",
    metric: AnyMetric = "logit_diff",
    sample: int = 100,
    most: int = 1000,
    seed: int = 0,
    **options: Unpack[SweepOptions],
) -> pd.DataFrame:
    """What `run` returns, from estimates that are there already; arguments as there."""
    graph, pairs = Graph.of(model), pairs.to(model.device)
    places = graph.allowed.nonzero()  # [edge, 2]
    estimates = scores[:, places[:, 0], places[:, 1]].double().T.cpu().numpy()  # [edge, prompt]
    chosen = choose(estimates.mean(1), sample, seed=seed)
    edges = [graph.edges[at] for at in chosen]
    measured = measured_edges(model, pairs, edges, graph, metric=metric, ablation=ablation, seed=seed, **options)
    facts = {"method": method, "ablation": ablation}
    return tabulated(
        lambda edge: {**facts, **_edge(graph, *graph.edges[edge])},
        estimates,
        measured.changes,
        chosen=chosen,
        most=most,
        runs=of_sweep(measured),
        metric=get_metric(metric).name,
    )


def _edge(graph: Graph, sender: int, receiver: int) -> dict[str, Any]:
    writer, reader = graph.senders[sender], graph.receivers[receiver]
    ends = (graph.edge_name(sender, receiver), writer.label, reader.label, writer.layer, reader.layer)
    return dict(zip(EDGE, ends, strict=True))


@checked
@restoring
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean estimated effect of every edge over prompts with intervals, the exact one beside it, largest first.

    `p_adjusted` takes account of all edges that were estimated, those without rows among them.
    """
    return ranked(frame, [*(name for name in ("method", "ablation") if name in frame), *EDGE])


@checked
@restoring
def compared(frame: pd.DataFrame) -> pd.DataFrame:
    """How estimates and exact effects agree, as `interp.attribution.estimate_check.agreement` has it."""
    return agreement(frame, by="edge", n_cells=int(frame["cells"].iloc[0]))


@checked
@restoring
def plot(frame: pd.DataFrame, *, table: pd.DataFrame | None = None) -> Figure:
    """The edges with the largest estimates: the estimate of each, and where it was measured its exact effect.

    `table` is the frame's summary, where it is there already.
    """
    import pandas as pd

    if why := stats.why_nothing(frame, "effect"):
        return figures.nothing(why)
    largest = (summary(frame) if table is None else restored(table)).head(SHOWN)
    part = frame[frame["edge"].isin(largest["edge"])]
    measured = part.dropna(subset=["exact_effect"])
    exact_effects = stats.summarise(measured, by="edge", value="exact_effect")
    both = pd.concat([largest.assign(kind="estimate"), exact_effects.assign(kind="exact")])
    names = Axis("edge", title="", values=list(largest["edge"]), labels=_labels(part))
    total = int(frame["cells"].iloc[0])
    title = f"The {len(largest)} of {total:,} edges with the largest estimates" if len(largest) < total else None
    return figures.bars(both, x=names, hue="kind", horizontal=True, label=_label(frame), title=title)


@checked
@restoring
def plot_agreement(frame: pd.DataFrame) -> Figure:
    """Estimate against exact effect of every edge that was measured; on the diagonal they are equal."""
    if why := stats.why_nothing(frame, "effect"):
        return figures.nothing(why)
    table = means(frame, "edge")
    return figures.estimates(table.assign(name=table["edge"].map(_labels(frame))))


def _labels(frame: pd.DataFrame) -> dict[str, str]:
    """Edges as figures write them: `L23H3 → L24H4 q`."""
    ends = frame.drop_duplicates("edge")[["edge", "sender", "receiver"]].itertuples(index=False)
    return {edge: f"{sender} → {receiver}" for edge, sender, receiver in ends}


def _label(frame: pd.DataFrame) -> str:
    return f"effect on {frame['metric'].iloc[0]} (0 clean run, 1 corrupt run)".replace("_", " ")


main = study_command(
    run,
    plot=plot,
    summary=summary,
    options=[
        METRIC,
        whole("--sample", "How many edges are measured exactly.", default=100, least=0),
        whole("--most", "How many edges are listed.", default=1000, least=0),
        ABLATION,
        STEPS,
        method_option(METHODS, "eap-ig-inputs"),
    ],
)

if __name__ == "__main__":
    main()
