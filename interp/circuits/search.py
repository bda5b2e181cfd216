"""Which edges are a circuit? Three ways from scores, or from the model itself, to a set of edges.

1. `threshold` takes the edges with the best scores, wherever they lie, and prunes what is on no path from the embedding
   to the logits.
2. `greedy` begins at the logits and takes, again and again, the best edge into what is in the circuit already; its
   sender's inputs then join the edges to choose from.
3. `acdc` needs no scores: from the last reader to the first, and for each from the last writer to the first, it takes
   an edge away for good if the metric then changes by less than `tau`. It tries edges in groups: several are taken away
   one on top of the other in one batch, up to the first that is to stay. The decisions are those of one edge at a time.

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
from interp.metrics import Metric, get_metric
from interp.progress import counting
from interp.prompts.pairs import PromptPairs
from interp.resume.fingerprint import fingerprint
from interp.resume.journal import Journal

RANKS = {"magnitude": "largest change of either sign", "fall": "the metric falls most", "rise": "the metric rises most"}
SELECTIONS = ("greedy", "threshold")
MOST_TOGETHER = 16  # edges that ACDC takes away in one batch


@checked
def threshold(
    scores: Tensor, n: int, graph: Graph, *, rank: str = "magnitude", found: Mapping[str, Any] | None = None
) -> Circuit:
    """The n edges with the best scores, less those on no path from the embedding to the logits.

    Args:
        scores: [sender, receiver], or [prompt, sender, receiver], which is averaged; edges without a score (NaN) are
            never taken.
        n: how many edges to take before pruning.
        graph: the edges there are.
        rank: what is best, a name of `RANKS`.
        found: what the circuit is to say of how it was found.

    Raises:
        InterpError: more edges than there are, scores of another shape.
        UnknownName: a rank that does not exist.
    """
    return circuits(scores, [n], graph, selection="threshold", rank=rank, found=found)[0]


@checked
def greedy(
    scores: Tensor, n: int, graph: Graph, *, rank: str = "magnitude", found: Mapping[str, Any] | None = None
) -> Circuit:
    """n edges chosen from the logits upwards, the best edge into the circuit first, less those without a way to the
    embedding.

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
    """A circuit of each size, by one selection; a larger one contains every smaller one, but for what pruning leaves.

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
                f"a circuit of {shown(size)} edges cannot be chosen: there are {n_scored} edges with a score"
            )
    sizes = [int(size) for size in sizes]
    most = max(sizes, default=0)
    order = better.flatten().argsort(descending=True, stable=True) if selection == "threshold" else None
    taken = order[:most] if order is not None else torch.tensor(_from_logits(better, graph, most), dtype=torch.int64)
    made = []
    for size in sizes:
        edges = torch.zeros(graph.allowed.numel(), dtype=torch.bool)
        edges[taken[:size]] = True
        chosen = on_paths(graph, edges.view(graph.allowed.shape))
        facts = {**(found or {}), "selection": selection, "rank": rank, "n_taken": size}
        made.append(Circuit(graph, chosen, mean, facts))
    return made


def _mean(scores: Tensor, graph: Graph) -> Tensor:
    mean = scores.detach().cpu().double()
    mean = mean.nanmean(0) if mean.ndim == 3 else mean
    if mean.shape != graph.allowed.shape:
        raise InterpError(
            f"scores are {list(scores.shape)}, expected [sender, receiver] = {list(graph.allowed.shape)}, or with the "
            "prompts in front"
        )
    return mean.masked_fill(~graph.allowed, torch.nan)


def _better(mean: Tensor, rank: str) -> Tensor:
    """Scores of which a larger one is better; minus infinity where there is none."""
    check_choice("rank", rank, RANKS)
    better = mean.abs() if rank == "magnitude" else -mean if rank == "fall" else mean
    return better.nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))


def _from_logits(better: Tensor, graph: Graph, n: int) -> list[int]:
    """The first n edges that greedy search takes, as places in the flattened table."""
    table, feed = better.numpy(), feeds(graph).numpy()
    n_receivers = table.shape[1]
    open_edges: list[tuple[float, int]] = []
    seen = np.zeros(n_receivers, dtype=bool)

    def open_receivers(receivers: np.ndarray[Any, Any]) -> None:
        for receiver in receivers[~seen[receivers]].tolist():
            seen[receiver] = True
            for sender in np.isfinite(table[:, receiver]).nonzero()[0].tolist():
                heapq.heappush(open_edges, (-table[sender, receiver], sender * n_receivers + receiver))

    open_receivers(np.array([n_receivers - 1]))
    taken: list[int] = []
    while open_edges and len(taken) < n:
        _, edge = heapq.heappop(open_edges)
        taken.append(edge)
        open_receivers(feed[:, edge // n_receivers].nonzero()[0])
    return taken


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
    """Automatic circuit discovery: take away every edge that the metric does not miss.

    An edge is missed if without it the mean of the metric over the prompts changes by `tau` or more: rises, for a
    metric that compares with the whole model ("kl"); changes either way, for others. Each edge is tried once, so this
    takes a run of every prompt for every candidate, and some more; edges into a head that nothing
    reads any more cost nothing.

    Args:
        model: the model.
        pairs: the prompts.
        tau: how much of a change is too much, in the metric's unit.
        metric, base, ablation, seed, max_memory: as in `interp.circuits.run.run_circuits`.
        candidates: the circuit, or mask [sender, receiver], to begin with; edges outside it are ablated from the
            start. None begins with the whole model, which is for small ones.
        out: a folder for what was decided of each receiver. The same call with the same folder goes on with it.
        progress: a bar on stderr; None shows it on a terminal.

    Returns:
        The circuit, with the change that each of its edges made when it was tried as its score.

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
    found = origin(model, **facts)
    journal = None if out is None else Journal.open(out, _key(found, edges, measure, seed, model), {})
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
                read = receiver == len(graph.receivers) - 1 or bool(edges[feed[receiver]].any())
                changes = _missed(edges, receiver, tried, mean_of, measure, tau) if read else {}
                edges[tried, receiver] = False
                edges[list(changes), receiver] = True
                scores[list(changes), receiver] = torch.tensor(list(changes.values()), dtype=torch.float64)
                if journal is not None:
                    stays, change = edges[tried, receiver].numpy(), scores[tried, receiver].numpy()
                    journal.write(part, {"kept": stays, "score": change})
            bar.update(len(tried))
            bar.set_postfix_str(f"{int(edges.sum()):,} left")
    return Circuit(graph, on_paths(graph, edges), scores, found)


def _missed(
    edges: Tensor,
    receiver: int,
    tried: list[int],
    mean_of: Callable[[Tensor], Tensor],
    metric: Metric,
    tau: float,
) -> dict[int, float]:
    """The senders, among those tried, whose edge into a receiver is missed, and the change that it makes."""
    now, kept = edges.clone(), dict[int, float]()
    before, at, together = float(mean_of(now[None])[0]), 0, MOST_TOGETHER
    while at < len(tried):
        group = tried[at : at + together]
        masks = now.repeat(len(group), 1, 1)
        for row, sender in enumerate(group):
            masks[row:, sender, receiver] = False
        values = [before, *mean_of(masks).tolist()]
        for row, sender in enumerate(group):
            change = values[row + 1] - values[row]
            at += 1
            if (change if metric.needs_reference else abs(change)) >= tau:
                kept[sender] = change
                together = max(1, row)
                break
            now[sender, receiver], before = False, values[row + 1]
        else:
            together = min(2 * together, MOST_TOGETHER)
    return kept


def _key(found: Mapping[str, Any], edges: Tensor, metric: Metric, seed: int, model: HookedModel) -> dict[str, str]:
    """All that the decisions depend on."""
    from interp.version import __version__

    facts = {name: str(value) for name, value in found.items()}
    return facts | {
        "candidates": fingerprint(edges),
        "definition": fingerprint(metric),
        "seed": str(seed),
        "device": f"{model.device.type}, {model.dtype}",
        "versions": f"interp {__version__}, torch {torch.__version__}",
    }
