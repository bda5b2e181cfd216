"""Localisation methods, side by side: which edges, or which nodes, does a behaviour depend on?

Each method takes the same case (a model, prompts, a kind of ablation) and gives one score for every edge of
`interp.circuits.graph` or every node of `interp.ground_truth.known_circuits.parts`; larger means that it matters more.
Scores are averaged over prompts by magnitude. `METHODS` lists all methods, between the exact patching as the best and
random scores as the worst; `compared` holds one against what is known to matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.attribution import node_scores
from interp.attribution.run_values import run_values
from interp.circuits import edge_scores
from interp.circuits.graph import Graph
from interp.circuits.search import acdc, circuits
from interp.edits import Edit, Variant
from interp.errors import unknown
from interp.ground_truth.known_circuits import parts
from interp.hooked.model import HookedModel
from interp.prompts.pairs import PromptPairs
from interp.sweeps.sweep import sweep_values
from interp.variants.ablations import replacements

TAUS = (0.5, 0.2, 0.1, 0.05, 0.02)  # thresholds of ACDC, as parts of the clean metric
STEPS = 5  # of integrated gradients, as the field uses them


@dataclass(frozen=True)
class Case:
    """What a method is given: a model, its prompts, and how things are ablated."""

    model: HookedModel
    pairs: PromptPairs
    graph: Graph
    ablation: str
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        """Graph, ablation and seed, as `interp.circuits.edge_scores` takes them."""
        return {"graph": self.graph, "ablation": self.ablation, "seed": self.seed}

    def edges(self, scores: Tensor) -> Tensor:
        """The mean magnitude over prompts.  # [prompt, sender, receiver] -> [edge]"""
        senders, receivers = torch.tensor(self.graph.edges).unbind(1)
        return scores.abs().mean(0)[senders, receivers]

    def variants(self) -> list[Variant]:
        """One variant for every node, which ablates it."""
        nodes = parts(self.graph)
        sites = dict.fromkeys(part.site for part in nodes)
        ablated = replacements(self.model, self.pairs, sites, self.ablation, seed=self.seed)
        variants = []
        for part in nodes:
            value = ablated[part.site]
            if part.head is None:
                variants.append(Variant([Edit(part.site, {}, source=value)]))
            else:
                where = {str(part.axis): part.head}
                variants.append(Variant([Edit(part.site, where, source=value[:, :, [part.head]])]))
        return variants


@dataclass(frozen=True)
class Method:
    """A way to find the edges, or nodes, that matter: `score(case)` is larger for those that matter more.  # [item]"""

    name: str
    kind: str
    score: Callable[[Case], Tensor]


def _exact_edges(case: Case) -> Tensor:
    return case.edges(edge_scores.exact(case.model, case.pairs, **case.options, progress=False))


def _eap(case: Case) -> Tensor:
    return case.edges(edge_scores.eap(case.model, case.pairs, **case.options))


def _eap_ig(case: Case, path: str = "inputs") -> Tensor:
    return case.edges(edge_scores.eap_ig(case.model, case.pairs, **case.options, steps=STEPS, path=path))


def _greedy(case: Case) -> Tensor:
    """How early an edge joins a circuit that greedy search grows from the logits, by the scores of EAP-IG."""
    scores = edge_scores.eap_ig(case.model, case.pairs, **case.options, steps=STEPS).abs()
    sizes = list(range(1, case.graph.n_edges + 1))
    grown = circuits(scores, sizes, case.graph, selection="greedy")
    return case.edges(torch.stack([circuit.edges for circuit in grown]).double())


def _acdc(case: Case) -> Tensor:
    """The largest threshold at which an edge is kept; each run starts from the circuit of the next smaller one."""
    clean = run_values(case.model, case.pairs).base
    left, scores = case.graph.allowed, torch.zeros(case.graph.allowed.shape, dtype=torch.float64)
    for share in sorted(TAUS):
        tau = share * float(clean.abs().mean())
        kept = acdc(
            case.model,
            case.pairs,
            tau=tau,
            metric="logit_diff",
            ablation=case.ablation,
            seed=case.seed,
            candidates=left,
            progress=False,
        )
        left = kept.edges
        scores[left] = share
    return case.edges(scores[None])


def _estimate(case: Case, **options: Any) -> Tensor:
    cells = case.variants()
    scores = node_scores.estimate(case.model, case.pairs, cells, base="clean", source="corrupt", **options)
    return scores.abs().mean(1)


def _exact_nodes(case: Case) -> Tensor:
    cells = case.variants()
    measured = sweep_values(case.model, case.pairs, cells, base="clean", source="corrupt", progress=False)
    return torch.from_numpy(np.abs(measured.changes).mean(1))


def _random(case: Case, kind: str) -> Tensor:
    n = case.graph.n_edges if kind == "edge" else len(parts(case.graph))
    return torch.from_numpy(np.random.default_rng([case.seed, n, len(case.ablation)]).random(n))


METHODS = (
    Method("exact edge patching", "edge", _exact_edges),
    Method("ACDC", "edge", _acdc),
    Method("EAP-IG, activations", "edge", lambda case: _eap_ig(case, "activations")),
    Method("EAP-IG, inputs", "edge", _eap_ig),
    Method("EAP-IG, greedy", "edge", _greedy),
    Method("EAP", "edge", _eap),
    Method("random edges", "edge", lambda case: _random(case, "edge")),
    Method("exact node patching", "node", _exact_nodes),
    Method("AtP with QK fix", "node", lambda case: _estimate(case, qk_fix=True)),
    Method("AtP with QK fix and GradDrop", "node", lambda case: _estimate(case, qk_fix=True, drop=True)),
    Method("AtP with integrated gradients", "node", lambda case: _estimate(case, steps=STEPS)),
    Method("attribution patching (AtP)", "node", _estimate),
    Method("random nodes", "node", lambda case: _random(case, "node")),
)
"""Every method; to add one, add a line here."""


def get_method(name: str) -> Method:
    """The method of this name.

    Raises:
        UnknownName: there is none; the message offers the nearest.
    """
    for method in METHODS:
        if method.name == name:
            return method
    raise unknown("method", name, [method.name for method in METHODS])


def compared(method: Method, case: Case, matters: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, float]:
    """How well a method tells what matters from what does not, and how long it takes.

    Args:
        method, case: the method, and what it is given.
        matters: whether each edge or node matters, [item], as `interp.ground_truth.known_circuits.truth` says.

    Returns:
        "AUROC" and "average precision" (NaN where none or all matter), and "seconds" of wall time.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    start = time.perf_counter()
    scores = method.score(case).double().cpu().numpy()
    seconds = time.perf_counter() - start
    mixed = 0 < matters.sum() < len(matters)
    return {
        "AUROC": roc_auc_score(matters, scores) if mixed else np.nan,
        "average precision": average_precision_score(matters, scores) if mixed else np.nan,
        "seconds": seconds,
    }
