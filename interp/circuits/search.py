"""Which edges form a circuit? Three ways from scores, or from the model itself, to a set of edges.

1. `threshold` takes the edges with the best scores, wherever they are, and prunes those on no path from the embedding
   to the logits.
2. `greedy` starts at the logits and repeatedly takes the best edge into a node that is in the circuit already; the
   inputs of that edge's sender then join the candidates.
3. `acdc` needs no scores: from the last reader to the first, and for each from the last writer to the first, it removes
   an edge for good if the metric then changes by less than `tau`. It tries edges in groups: one batch removes one edge,
   then two, and so on, up to the first edge that has to stay. The decisions are those of trying one edge at a time.

A score is the change of the metric when the edge is ablated (`interp.circuits.edge_scores`). What is best is a choice:
the largest change of either sign ("magnitude"), the edges that hold the metric up ("fall": it falls without them), or
those that hold it down ("rise").

Source: Syed et al. 2023 ("Attribution Patching Outperforms Automated Circuit Discovery", thresholds); Hanna et al. 2024
("Have Faith in Faithfulness", section 3, greedy search); Conmy et al. 2023 ("Towards Automated Circuit Discovery",
algorithm 1).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import checked, is_whole, real_number, shown
from interp.circuits.circuit import Circuit, feeds, on_paths, origin
from interp.circuits.graph import Graph
from interp.circuits.run import run_circuits
from interp.errors import InterpError, check_choice
from interp.hooked.model import HookedModel
from interp.metrics import Metric, digest, get_metric
from interp.progress import counting
from interp.prompts.pairs import PromptPairs
from interp.resume.fingerprint import fingerprint
from interp.resume.journal import Journal
from interp.version import __version__

RANKS = {"magnitude": "largest change of either sign", "fall": "the metric falls most", "rise": "the metric rises most"}
SELECTIONS = ("greedy", "threshold")
MAX_GROUP = 16  # edges that ACDC tries in one batch


@checked
def threshold(
    scores: Tensor, n: int, graph: Graph, *, rank: str = "magnitude", found: Mapping[str, Any] | None = None
) -> Circuit:
    """The n edges with the best scores, less those on no path from the embedding to the logits.

    Args:
        scores: [sender, receiver], or [prompt, sender, receiver], which is averaged; edges without a score (NaN) are
            never taken.
        n: how many edges to take before pruning.
        graph: all edges.
        rank: what is best, a name of `RANKS`.
        found: facts about how the scores were made, to be kept with the circuit.

    Raises:
        InterpError: more edges than there are, scores of another shape.
        UnknownName: a rank that does not exist.
    """
    return circuits(scores, [n], graph, selection="threshold", rank=rank, found=found)[0]


@checked
def greedy(
    scores: Tensor, n: int, graph: Graph, *, rank: str = "magnitude", found: Mapping[str, Any] | None = None
) -> Circuit:
    """n edges chosen from the logits towards the embedding, the best edge into the circuit first, less those that no
    path connects to the embedding.

    Args and Raises: as `threshold`.
    """
    return circuits(scores, [n], graph, selection="greedy", rank=rank, found=found)[0]


@checked
def circuits(
    scores: Tensor,
    sizes: list[int],
    graph: Graph,
    *,
    selection: str = "greedy",
    rank: str = "magnitude",
    found: Mapping[str, Any] | None = None,
) -> list[Circuit]:
    """A circuit of each size, by one selection. Before pruning, a larger circuit contains every smaller one.

    Args:
        scores, graph, rank, found: as in `threshold`.
        sizes: edges before pruning.
        selection: "greedy" or "threshold".

    Raises:
        InterpError, UnknownName: as `threshold`.
    """
    check_choice("selection", selection, SELECTIONS)
    mean = _mean(scores, graph)
    better = _better(mean, rank)
    n_scored = int(torch.isfinite(better).sum())
    for size in sizes:
        if not is_whole(size) or not 0 <= size <= n_scored:
            raise InterpError(
                f"a circuit cannot have {shown(size)} edges: give a whole number from 0 to {n_scored}, the number of "
                "edges with a score"
            )
    sizes = [int(size) for size in sizes]
    largest = max(sizes, default=0)
    if selection == "threshold":
        order = better.flatten().argsort(descending=True, stable=True)[:largest]
    else:
        order = torch.tensor(_from_logits(better, graph, largest), dtype=torch.int64)
    chosen = []
    for size in sizes:
        edges = torch.zeros(graph.allowed.numel(), dtype=torch.bool)
        edges[order[:size]] = True
        facts = {**(found or {}), "selection": selection, "rank": rank, "n_taken": size}
        chosen.append(Circuit(graph, on_paths(graph, edges.view(graph.allowed.shape)), mean, facts))
    return chosen


def _mean(scores: Tensor, graph: Graph) -> Tensor:
    """Mean scores over prompts, NaN where there is no edge.  # [sender, receiver]"""
    mean = scores.detach().cpu().double()
    mean = mean.nanmean(0) if mean.ndim == 3 else mean
    if mean.shape != graph.allowed.shape:
        raise InterpError(
            f"scores have shape {list(scores.shape)}, and must be [sender, receiver] = {list(graph.allowed.shape)}, or "
            "[prompt, sender, receiver]"
        )
    return mean.masked_fill(~graph.allowed, torch.nan)


def _better(mean: Tensor, rank: str) -> Tensor:
    """Scores turned so that larger is better; minus infinity where there is no score."""
    check_choice("rank", rank, RANKS)
    better = mean.abs() if rank == "magnitude" else -mean if rank == "fall" else mean
    return better.nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))


def _from_logits(better: Tensor, graph: Graph, n: int) -> list[int]:
    """The first n edges that greedy search takes, as indices of the flattened table."""
    table, feed = better.numpy(), feeds(graph).numpy()
    n_receivers = table.shape[1]
    candidates: list[tuple[float, int]] = []  # a heap, the best edge first
    reached = np.zeros(n_receivers, dtype=bool)

    def reach(receivers: np.ndarray[Any, Any]) -> None:
        for receiver in receivers[~reached[receivers]].tolist():
            reached[receiver] = True
            for sender in np.isfinite(table[:, receiver]).nonzero()[0].tolist():
                heapq.heappush(candidates, (-table[sender, receiver], sender * n_receivers + receiver))

    reach(np.array([n_receivers - 1]))  # the logits
    edges: list[int] = []
    while candidates and len(edges) < n:
        _, edge = heapq.heappop(candidates)
        edges.append(edge)
        reach(feed[:, edge // n_receivers].nonzero()[0])
    return edges


@checked
def acdc(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    tau: float,
    metric: str | Metric | Callable[..., Tensor] = "kl",
    base: str = "clean",
    ablation: str = "corrupt",
    seed: int = 0,
    candidates: Circuit | Tensor | None = None,
    max_memory: int | None = None,
    out: str | Path | None = None,
    progress: bool | None = None,
) -> Circuit:
    """Automatic circuit discovery: remove every edge that the metric does not need.

    An edge is needed if without it the mean of the metric over the prompts changes by `tau` or more: rises, for a
    metric that compares with the whole model ("kl"); changes either way, for others. Each edge is tried once, so this
    takes a little more than one run of every prompt for every candidate; edges into a head whose output nothing reads
    any more take none.

    Args:
        model: the model.
        pairs: the prompts.
        tau: the change from which on an edge is needed, in the metric's unit.
        metric, base, ablation, seed, max_memory: as in `interp.circuits.run.run_circuits`.
        candidates: the circuit, or mask [sender, receiver], to start from; edges outside it are ablated from the
            start. None starts from the whole model, which only small models allow.
        out: a folder for the decisions on each receiver. The same call with the same folder continues from there.
        progress: a bar on stderr; None shows it on a terminal.

    Returns:
        The circuit. The score of an edge is the change of the metric when it was tried.

    Raises:
        ConfigError: `tau` is negative.
        InterpError: as `run_circuits`.
        OutputError: `out` holds something else, or cannot be written.

    Source: Conmy et al. 2023, algorithm 1.
    """
    tau = real_number("tau, in the metric's unit,", tau, least=0)
    graph, measure = Graph.of(model), get_metric(metric)
    edges = candidates.edges if isinstance(candidates, Circuit) else graph.allowed if candidates is None else candidates
    edges = on_paths(graph, edges)
    facts = {"method": "acdc", "tau": tau, "metric": measure.name, "base": base, "ablation": ablation}
    facts |= {"n_candidates": int(edges.sum()), "prompts": pairs.digest()}
    facts = origin(model, **facts)
    journal = None if out is None else Journal.open(out, _key(facts, edges, measure, seed, model), {})
    finished = set() if journal is None else journal.finished()
    scores, feed = torch.full(edges.shape, torch.nan, dtype=torch.float64), feeds(graph)

    def mean_of(masks: Tensor) -> Tensor:
        values = run_circuits(
            model,
            pairs,
            masks,
            graph,
            metric=measure,
            base=base,
            ablation=ablation,
            seed=seed,
            max_memory=max_memory,
            progress=False,
        )
        return values.mean(1)

    with counting(desc="acdc", total=int(edges.sum()), unit=" edges", rate=False, progress=progress) as bar:
        for receiver in reversed(range(len(graph.receivers))):
            tried = edges[:, receiver].nonzero()[:, 0].flip(0).tolist()
            part = f"receiver-{receiver:05d}"
            if tried and part in finished:
                assert journal is not None
                kept = journal.read(part)
                edges[tried, receiver] = torch.tensor(kept["kept"], dtype=torch.bool)
                scores[tried, receiver] = torch.tensor(kept["score"], dtype=torch.float64)
            elif tried:
                # An input matters only if something still reads the node that it feeds; the logits always matter.
                is_read = receiver == len(graph.receivers) - 1 or bool(edges[feed[receiver]].any())
                changes = _needed(edges, receiver, tried, mean_of, measure, tau) if is_read else {}
                edges[tried, receiver] = False
                edges[list(changes), receiver] = True
                scores[list(changes), receiver] = torch.tensor(list(changes.values()), dtype=torch.float64)
                if journal is not None:
                    stays, change = edges[tried, receiver].numpy(), scores[tried, receiver].numpy()
                    journal.write(part, {"kept": stays, "score": change})
            bar.update(len(tried))
            bar.set_postfix_str(f"{int(edges.sum()):,} left")
    return Circuit(graph, on_paths(graph, edges), scores, facts)


def _needed(
    edges: Tensor,
    receiver: int,
    tried: list[int],
    mean_of: Callable[[Tensor], Tensor],
    metric: Metric,
    tau: float,
) -> dict[int, float]:
    """The senders, among those tried, whose edge into a receiver is needed, and the change when it is removed."""
    left, needed = edges.clone(), dict[int, float]()
    before, at, size = float(mean_of(left[None])[0]), 0, MAX_GROUP
    while at < len(tried):
        # Mask 0 removes the first edge of the group, mask 1 the first two, and so on.
        group = tried[at : at + size]
        masks = left.repeat(len(group), 1, 1)  # [edge of the group, sender, receiver]
        for row, sender in enumerate(group):
            masks[row:, sender, receiver] = False
        values = [before, *mean_of(masks).tolist()]
        for row, sender in enumerate(group):
            change = values[row + 1] - values[row]
            at += 1
            if (change if metric.needs_reference else abs(change)) >= tau:
                # Later masks lack this edge, which stays: they are measured again in the next group.
                needed[sender] = change
                size = max(1, row)
                break
            left[sender, receiver], before = False, values[row + 1]
        else:
            size = min(2 * size, MAX_GROUP)
    return needed


def _key(facts: Mapping[str, Any], edges: Tensor, metric: Metric, seed: int, model: HookedModel) -> dict[str, str]:
    """Everything that the decisions depend on, for the journal."""
    return {name: str(value) for name, value in facts.items()} | {
        "candidates": fingerprint(edges),
        "definition": digest(metric),
        "seed": str(seed),
        "device": f"{model.device.type}, {model.dtype}",
        "versions": f"interp {__version__}, torch {torch.__version__}",
    }
