"""Scores of edges: how would the metric change if one reader read one writer's ablated value instead of its own?

1. An edge ends in a reader's input, which is a sum over writers (`interp.circuits.graph`). Ablating the edge adds to
   that input what the writer would write if it were ablated, less what it writes.
2. `exact` makes that change and measures it, edge by edge, with `interp.sweep`.
3. `eap` (edge attribution patching) estimates it for all edges at once, to first order: the change of what is written
   times the metric's gradient at the reader's input.
4. `eap_ig` takes the mean of that gradient at several points between the run and its ablated form. With
   `path="inputs"` the input embedding moves; with `path="activations"` one layer's writers move at a time, and the
   gradients found then serve their own edges alone. (In MIB's code every edge gets the mean over all of those runs.)

Every score has the same meaning, metric(ablated) - metric(base), and the same layout: [prompt, sender, receiver], NaN
where there is no edge. Key and value readers are one for each key-value head.

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
from interp.attribution.gradients import AnyMetric, check_steps, path_slopes, values_at
from interp.attribution.prompt_batches import batches, cut
from interp.circuits.graph import Graph
from interp.edits import Edit, Variant
from interp.errors import InterpError, PromptError, check_choice, unknown
from interp.hooked.model import HookedModel
from interp.precision import widened
from interp.prompts.pair_checks import other_side
from interp.prompts.pairs import PromptPairs
from interp.sweeps.sweep import Executor, measure
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
        graph: `Graph.of(model)`, if it is there already.
        metric: as `interp.attribution.gradients.gradients` takes it.
        base: the side that is run.
        ablation: what stands for a writer's value, a name of `interp.variants.ablations.ABLATIONS`; "corrupt" is the
            run of the other side, and means and draws are over that side's prompts, too.
        seed: of the draws.
        max_memory: as in `interp.attribution.gradients.gradients`.

    Returns:
        Estimates of metric(ablated) - metric(base) [prompt, sender, receiver], NaN where no edge is; in
        float32, of a float64 model in float64.

    Raises:
        InterpError: a model without split inputs, a metric without a slope, an ablation that the prompts do not allow.

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
        steps: points of the path, the first of them next to the ablated end and the last at the base run; with one,
            this is `eap`.
        path: what moves from its ablated to its own value: "inputs", the embedding; "activations", all that one layer's
            heads, its state-space mixer or its MLP write, one layer after the other, which takes as many runs as there
            are layers of both.

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
    instead = replacements(model, pairs, graph.sender_sites, ablation, run=other_side(base), seed=seed)
    parts = []
    for at, part in batches(model, pairs, graph.receiver_sites, max_memory=max_memory):
        own = values_at(model, part, graph.sender_sites, base)
        ablated = {name: cut(value, at, part, model.hook_dict[name].site) for name, value in instead.items()}
        change = widened(graph.sent(model, ablated)) - widened(graph.sent(model, own))  # [sender, prompt, pos, d_model]
        scores = change.new_full((len(part), len(graph.senders), len(graph.receivers)), torch.nan)
        for moving, senders, receivers in _legs(graph, path, steps):
            slopes = path_slopes(
                model,
                part,
                dict.fromkeys(graph.receivers[receiver].site for receiver in receivers),
                metric,
                path={moving: (ablated[moving], own[moving])},
                steps=steps,
                base=base,
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
        model, pairs, graph, metric, base, ablation, seed: as in `eap`; the metric needs no slope.
        edges: names, as `a1.h2->a3.h1<q>`, or (sender, receiver) by their places in the graph; None takes every edge.
        max_memory, out, progress, executor: as `interp.sweep` takes them.

    Returns:
        metric(ablated) - metric(base) [prompt, sender, receiver] in float64, NaN where no edge was measured.

    Raises:
        UnknownName: an edge that the graph does not have.
        InterpError: as `eap` and `interp.sweep`.
    """
    pairs, graph = pairs.to(model.device), graph or Graph.of(model)
    chosen = graph.edges if edges is None else chosen_edges(graph, edges)
    if not chosen:
        raise PromptError("exact edge patching needs at least one edge")
    cells = variants(model, pairs, chosen, graph, base=base, ablation=ablation, seed=seed)
    sides = {"base": base, "source": other_side(base)}
    measured = measure(
        model, pairs, cells, metric, **sides, max_memory=max_memory, out=out, progress=progress, executor=executor
    )
    scores = torch.full((len(pairs), len(graph.senders), len(graph.receivers)), torch.nan, dtype=torch.float64)
    senders, receivers = (torch.tensor(ends) for ends in zip(*chosen, strict=True))
    scores[:, senders, receivers] = torch.tensor(measured.changes.T)
    return scores.to(model.device)


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
        edges: (sender, receiver) by their places in the graph.
    """
    edges = chosen_edges(graph, edges)
    if not edges:
        raise InterpError("there is nothing to edit: give at least one edge")
    senders = list(dict.fromkeys(sender for sender, _ in edges))
    sites = list(dict.fromkeys(graph.senders[sender].site for sender in senders))
    instead = replacements(model, pairs, sites, ablation, run=other_side(base), seed=seed)
    own = values_at(model, pairs, sites, base)
    change = graph.sent(model, instead, senders) - graph.sent(model, own, senders)  # [sender, prompt, pos, d_model]
    # Edits that share a source are made together, so that every edge of a writer gets the same tensor.
    written = {sender: (one, one[:, :, None]) for sender, one in zip(senders, change, strict=True)}
    made = []
    for sender, receiver in edges:
        node = graph.receivers[receiver]
        where = {} if node.head is None else {model.hook_dict[node.site].site.axes[2]: node.head}
        edit = Edit(node.site, where, op="add", source=written[sender][node.head is not None])
        made.append(Variant((edit,), {"sender": graph.senders[sender].name, "receiver": node.name}))
    return made


def chosen_edges(graph: Graph, edges: Edges) -> tuple[tuple[int, int], ...]:
    """Edges by their places in the graph, each once.

    Raises:
        UnknownName: an edge that the graph does not have.
    """
    found = []
    if isinstance(edges, str | bytes) or not isinstance(edges, Iterable) or getattr(edges, "ndim", 1) == 0:
        raise InterpError(f"edges must be several, each a name or (sender, receiver), not {shown(edges)}")
    for edge in edges:
        if isinstance(edge, str):
            found.append(graph.edge(edge))
            continue
        two: list[Any] = list(edge) if isinstance(edge, Iterable) and getattr(edge, "ndim", 1) != 0 else [edge]
        if len(two) != 2 or not all(map(is_whole, two)):
            raise InterpError(f"an edge is a name, such as 'a0.h1->logits', or (sender, receiver), not {shown(edge)}")
        sender, receiver = two
        there = 0 <= sender < len(graph.senders) and 0 <= receiver < len(graph.receivers)
        if not (there and graph.allowed[sender, receiver]):
            raise unknown("edge", edge, [str(one) for one in graph.edges])
        found.append((int(sender), int(receiver)))
    return tuple(dict.fromkeys(found))


def _legs(graph: Graph, path: str, steps: int) -> Iterator[tuple[str, list[int], list[int]]]:
    """The site that moves along a path, the senders that are scored then, and the receivers behind them."""
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
