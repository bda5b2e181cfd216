"""Scores of edges: how would the metric change if one reader read one writer's ablated value instead of its own?

1. An edge ends in a reader's input, which is a sum over writers (`interp.circuits.graph`). Ablating the edge adds to
   that input the writer's ablated output minus its own output.
2. `exact` makes that change and measures the metric, edge by edge, with `interp.sweep`.
3. `eap` (edge attribution patching) estimates it for all edges at once, to first order: the change of the writer's
   output times the metric's gradient at the reader's input.
4. `eap_ig` averages that gradient over several points between the ablated run and the base run. With `path="inputs"`
   the input embedding moves; with `path="activations"` the writers of one layer move at a time, and the gradients of
   that path score only the edges that leave those writers. (In MIB's code every edge gets the mean over all paths.)

Every score has the same meaning, metric(ablated) - metric(base), and the same layout: [prompt, sender, receiver], NaN
where there is no edge. There is one key reader and one value reader for each key-value head.

Source: Syed et al. 2023 ("Attribution Patching Outperforms Automated Circuit Discovery", section 3); Hanna et al. 2024
("Have Faith in Faithfulness", section 3); Mueller et al. 2025 ("MIB", on EAP-IG with inputs and activations).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from torch import Tensor

from interp.arguments import checked, is_whole, shown
from interp.attribution.gradients import AnyMetric, check_steps, differentiable, path_slopes, values_at
from interp.attribution.prompt_batches import batches, cut
from interp.attribution.shared_start import SharedStart, shared_start
from interp.circuits.graph import Graph
from interp.edits import Edit, Variant
from interp.errors import InterpError, PromptError, check_choice, unknown
from interp.hooked.model import HookedModel
from interp.precision import widened
from interp.prompts.pair_checks import other_side
from interp.prompts.pairs import PromptPairs
from interp.sweeps.sweep import Executor, Measured, sweep_values
from interp.variants.ablations import replacements

PATHS = ("inputs", "activations")
Edges = Iterable[str | tuple[int, int]]


@checked
def eap(
    model: HookedModel,
    pairs: PromptPairs,
    graph: Graph | None = None,
    *,
    metric: AnyMetric = "logit_diff",
    base: str = "clean",
    ablation: str = "corrupt",
    seed: int = 0,
    max_memory: int | None = None,
) -> Tensor:
    """Edge attribution patching: every edge's effect to first order, from one backward.

    Args:
        model: the model.
        pairs: the prompts.
        graph: `Graph.of(model)`, if it exists already.
        metric: as `interp.attribution.gradients.gradients` takes it.
        base: the side that is run.
        ablation: what replaces a writer's value, a name of `interp.variants.ablations.ABLATIONS`; "corrupt" is the run
            of the other side, and means and draws are over the prompts of that side, too.
        seed: of the draws.
        max_memory: as in `interp.attribution.gradients.gradients`.

    Returns:
        Estimates of metric(ablated) - metric(base) [prompt, sender, receiver], NaN where there is no edge; float32, or
        float64 for a float64 model.

    Raises:
        InterpError: a model without split inputs, a metric without a gradient, an ablation that the prompts do not
            allow.

    Source: Syed et al. 2023, section 3.
    """
    return eap_ig(
        model,
        pairs,
        graph,
        metric=metric,
        base=base,
        ablation=ablation,
        steps=1,
        seed=seed,
        max_memory=max_memory,
    )


@checked
@torch.no_grad()
def eap_ig(
    model: HookedModel,
    pairs: PromptPairs,
    graph: Graph | None = None,
    *,
    metric: AnyMetric = "logit_diff",
    base: str = "clean",
    ablation: str = "corrupt",
    steps: int = 5,
    path: str = "inputs",
    seed: int = 0,
    max_memory: int | None = None,
) -> Tensor:
    """Edge attribution with integrated gradients: `eap` with gradients averaged along a path.

    Args:
        model, pairs, graph, metric, base, ablation, seed, max_memory: as in `eap`.
        steps: points of the path, the first of them next to the ablated end and the last at the base run; with 1 this
            is `eap`.
        path: what moves from its ablated to its own value: "inputs" is the embedding; "activations" are the outputs of
            one layer's heads (or state-space mixer), then of its MLP, layer after layer, each in runs of its own.

    Returns:
        As `eap`.

    Raises:
        UnknownName: another path.
        ConfigError: `steps` below 1.
        InterpError: as `eap`.

    Source: Hanna et al. 2024, section 3 (inputs); Mueller et al. 2025 (activations).
    """
    check_choice("path", path, PATHS)
    check_steps(steps)
    pairs, graph = pairs.to(model.device), graph or Graph.of(model)
    replaced = replacements(model, pairs, graph.sender_sites, ablation, run=other_side(base), seed=seed)
    slope_of, parts = differentiable(metric), []
    for at, part in batches(model, pairs, graph.receiver_sites, max_memory=max_memory):
        # Where the two sides are the same nothing changes, so that no slope is needed there.
        start = shared_start(model, part, slope_of, base) if ablation == "corrupt" else SharedStart()
        own = {
            name: value[:, start.first :] for name, value in values_at(model, part, graph.sender_sites, base).items()
        }
        ablated = {
            name: cut(value, at, part, model.hook_dict[name].site)[:, start.first :] for name, value in replaced.items()
        }
        change = widened(graph.sent(model, ablated)) - widened(graph.sent(model, own))  # [sender, prompt, pos, d_model]
        scores = change.new_full((len(part), len(graph.senders), len(graph.receivers)), torch.nan)
        for moving, senders, receivers in _moves(graph, path, steps):
            slopes = path_slopes(
                model,
                part,
                dict.fromkeys(graph.receivers[receiver].site for receiver in receivers),
                metric,
                path={moving: (ablated[moving], own[moving])},
                steps=steps,
                base=base,
                start=start,
            )
            read = graph.received(slopes, receivers)  # [receiver, prompt, pos, d_model]
            product = einsum(change[senders], read, "sender n pos d_model, receiver n pos d_model -> n sender receiver")
            scores[:, torch.tensor(senders)[:, None], torch.tensor(receivers)] = product
        parts.append(scores)
    return torch.cat(parts).masked_fill(~graph.allowed.to(model.device), torch.nan)


@checked
def exact(
    model: HookedModel,
    pairs: PromptPairs,
    edges: Edges | None = None,
    graph: Graph | None = None,
    *,
    metric: AnyMetric = "logit_diff",
    base: str = "clean",
    ablation: str = "corrupt",
    seed: int = 0,
    max_memory: int | None = None,
    out: str | Path | None = None,
    progress: bool | None = None,
    executor: str | Executor = "local",
) -> Tensor:
    """Exact edge patching: the effect of ablating each of some edges by itself, measured.

    Args:
        model, pairs, graph, metric, base, ablation, seed: as in `eap`; the metric needs no gradient.
        edges: names such as `a1.h2->a3.h1<q>`, or (sender, receiver) as indices of the graph; None takes every edge.
        max_memory, out, progress, executor: as `interp.sweep` takes them.

    Returns:
        metric(ablated) - metric(base) [prompt, sender, receiver] in float64, NaN where no edge was measured.

    Raises:
        UnknownName: an edge that the graph does not have.
        InterpError: as `eap` and `interp.sweep`.
    """
    pairs, graph = pairs.to(model.device), graph or Graph.of(model)
    chosen = graph.edges if edges is None else chosen_edges(graph, edges)
    ways: dict[str, Any] = {"metric": metric, "base": base, "ablation": ablation, "seed": seed}
    rest: dict[str, Any] = {"max_memory": max_memory, "out": out, "progress": progress, "executor": executor}
    measured = measured_edges(model, pairs, chosen, graph, **ways, **rest)
    scores = torch.full((len(pairs), len(graph.senders), len(graph.receivers)), torch.nan, dtype=torch.float64)
    senders, receivers = (torch.tensor(ends) for ends in zip(*chosen, strict=True))
    scores[:, senders, receivers] = torch.tensor(measured.changes.T)
    return scores.to(model.device)


def measured_edges(
    model: HookedModel,
    pairs: PromptPairs,
    edges: Sequence[tuple[int, int]],
    graph: Graph,
    *,
    metric: AnyMetric = "logit_diff",
    base: str = "clean",
    ablation: str = "corrupt",
    seed: int = 0,
    **options: Any,
) -> Measured:
    """What `exact` measures of some edges [edge, prompt], beside the metric of both runs; arguments as there.

    Raises:
        InterpError: as `exact`.
    """
    if not edges:
        raise PromptError("exact edge patching needs at least one edge")
    cells = variants(model, pairs, edges, graph, base=base, ablation=ablation, seed=seed)
    return sweep_values(model, pairs, cells, metric, base=base, source=other_side(base), **options)


@checked
@torch.no_grad()
def variants(
    model: HookedModel,
    pairs: PromptPairs,
    edges: Sequence[tuple[int, int]],
    graph: Graph,
    *,
    base: str = "clean",
    ablation: str = "corrupt",
    seed: int = 0,
) -> list[Variant]:
    """One edit for every edge, for `interp.sweep`, labelled `sender` and `receiver` by name.

    Args:
        model, pairs, graph, base, ablation, seed: as in `eap`.
        edges: (sender, receiver) as indices of the graph.
    """
    edges = chosen_edges(graph, edges)
    if not edges:
        raise InterpError("no edges were given: name at least one to ablate")
    senders = list(dict.fromkeys(sender for sender, _ in edges))
    sites = list(dict.fromkeys(graph.senders[sender].site for sender in senders))
    replaced = replacements(model, pairs, sites, ablation, run=other_side(base), seed=seed)
    own = values_at(model, pairs, sites, base)
    change = graph.sent(model, replaced, senders) - graph.sent(model, own, senders)  # [sender, prompt, pos, d_model]
    # A sweep batches edits that share a source tensor. So every edge of a writer gets the same tensor: one for readers
    # without heads [prompt, pos, d_model], one for readers with heads [prompt, pos, 1, d_model].
    sources = {sender: (one, one[:, :, None]) for sender, one in zip(senders, change, strict=True)}
    cells = []
    for sender, receiver in edges:
        node = graph.receivers[receiver]
        where = {} if node.head is None else {model.hook_dict[node.site].site.axes[2]: node.head}
        edit = Edit(node.site, where, op="add", source=sources[sender][node.head is not None])
        cells.append(Variant((edit,), {"sender": graph.senders[sender].name, "receiver": node.name}))
    return cells


def chosen_edges(graph: Graph, edges: Edges) -> tuple[tuple[int, int], ...]:
    """Edges as (sender, receiver), indices of the graph, each once.

    Raises:
        UnknownName: an edge that the graph does not have.
        InterpError: something that is not a list of edges.
    """
    chosen = []
    if isinstance(edges, str | bytes) or not isinstance(edges, Iterable) or getattr(edges, "ndim", 1) == 0:
        raise InterpError(f"edges must be a list of edges, each a name or (sender, receiver), not {shown(edges)}")
    for edge in edges:
        if isinstance(edge, str):
            chosen.append(graph.edge(edge))
            continue
        ends: list[Any] = list(edge) if isinstance(edge, Iterable) and getattr(edge, "ndim", 1) != 0 else [edge]
        if len(ends) != 2 or not all(map(is_whole, ends)):
            raise InterpError(
                f"an edge must be a name, such as 'a0.h1->logits', or (sender, receiver), not {shown(edge)}"
            )
        sender, receiver = ends
        exists = 0 <= sender < len(graph.senders) and 0 <= receiver < len(graph.receivers)
        if not (exists and graph.allowed[sender, receiver]):
            raise unknown("edge", edge, [str(one) for one in graph.edges])
        chosen.append((int(sender), int(receiver)))
    return tuple(dict.fromkeys(chosen))


def _moves(graph: Graph, path: str, steps: int) -> Iterator[tuple[str, list[int], list[int]]]:
    """Each site that moves from its ablated to its own value, with the senders that its gradients score and the
    receivers after them.
    """
    every = list(range(len(graph.receivers)))
    if path == "inputs" or steps == 1:
        yield graph.senders[0].site, list(range(len(graph.senders))), every
        return
    for site in graph.sender_sites:
        senders = [at for at, node in enumerate(graph.senders) if node.site == site]
        stage = graph.senders[senders[0]].stage
        receivers = [at for at in every if graph.receivers[at].stage > stage]
        if receivers:
            yield site, senders, receivers
