"""Sweeps against full forwards, and decompositions against what they are said to sum to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from makers import make_pairs, plain_forwards
from torch import Tensor

from interp.circuits.graph import Graph, output_bias
from interp.circuits.run import run_circuits
from interp.edits import Edit, Variant
from interp.errors import InterpError
from interp.models.gpt import GPT
from interp.sweeps.sweep import sweep

from .cell import Cell, difference, holds
from .subject import Subject

SWEEP = 2e-5  # of the largest logit, in float32
SUMS = 1e-5
OPS = ("set", "zero", "add", "scale")
ROLES = ("first", "middle", "end", None)


def drawn(subject: Subject) -> list[Variant]:
    """Edits of every site of the model, with operations and positions in turn; the last ones change two sites."""
    singles = []
    for at, (name, point) in enumerate(subject.ours.hook_dict.items()):
        op, role = OPS[at % len(OPS)], ROLES[at // 2 % len(ROLES)]
        if "attn_scores" in name and op in ("add", "scale"):
            op = "set"  # masked scores have no sums
        op = "set" if point.site.whole else op
        axis = next(axis for axis in point.site.axes if axis in ("pos", "query"))
        where: dict[str, Any] = {} if role is None else {axis: role}
        singles.append(Edit(name, where, op, source=0.5 if op == "scale" else None))
    variants = [[edit] for edit in singles]
    variants += [[one, singles[-1 - at]] for at, one in enumerate(singles[: len(singles) // 2 : 4])]
    return [Variant(edits, {"cell": at}) for at, edits in enumerate(variants)]


@torch.no_grad()
def sweeps(subject: Subject) -> Cell:
    """A sweep of edits at every site, against a plain forward with hooks for each of them."""
    pairs, variants = make_pairs((8, 5, 8), shared=2), drawn(subject)[:: 1 if subject.thorough else 5]
    frame = sweep(subject.ours, pairs, variants, base="corrupt", source="clean", progress=False)
    values = frame["value"].to_numpy().reshape(len(variants), len(pairs))
    found, largest = 0.0, ""
    for row, variant in zip(values, variants, strict=True):
        for at, logits in enumerate(plain_forwards(subject.ours, pairs, variant, "corrupt", "clean")):
            right, wrong = pairs.answers[at]
            expected = float(logits[right] - logits[wrong])
            if np.isnan(expected) and np.isnan(row[at]):
                continue
            apart = abs(row[at] - expected) / max(1.0, float(logits.abs().max()))
            if not apart <= found:
                found, largest = apart, f"largest at {variant.edits}"
    return holds(found, SWEEP, "" if found <= SWEEP else largest)


def uncapped(subject: Subject, logits: Tensor) -> Tensor:
    """Logits before their soft cap, of which linear attributions speak; as they are in a model that has none."""
    cap = getattr(subject.ours.cfg, "output_logits_soft_cap", None)
    return logits if not cap else cap * torch.atanh(logits / cap)


@torch.no_grad()
def decomposition(subject: Subject) -> Cell:
    """Parts of the residual stream against the stream, and of a logit against the logit; the whole and no circuit."""
    ours, cfg = subject.ours, subject.ours.cfg
    tokens = subject.tokens(2, 9)
    logits, cache = ours.run_with_cache(tokens)
    found = []
    # 1. What was written before each layer is what enters it.
    for layer in range(cfg.n_layers + 1):
        stream = cache["resid_pre", layer] if layer < cfg.n_layers else cache["resid_post", layer - 1]
        found.append(difference(cache.decompose_resid(layer).sum(0), stream))
        if cfg.has_attention and cfg.shared is None:
            found.append(difference(cache.stack_head_results(layer, incl_remainder=True).sum(0), stream))
    # 2. Shares of a logit are the logit, less constants.
    shares = cache.logit_attrs(cache.decompose_resid(), tokens).sum(0)  # [batch, pos]
    b = getattr(ours.ln_final, "b", None)
    constant = ours.b_U if b is None else ours.b_U + b @ ours.W_U  # [d_vocab]
    own = uncapped(subject, logits).gather(-1, tokens[..., None])[..., 0]
    found.append(difference(shares + constant[tokens], own))
    if cfg.shared is not None:  # it has no edges
        return holds(max(found), SUMS, _refusal(ours))
    # 3. What senders and constants write is the final stream.
    graph = Graph.of(ours)
    with_heads = [name for name in graph.sender_sites if name.endswith(("hook_z", "hook_gated"))]
    biases = [bias for name in with_heads if (bias := output_bias(ours, name)) is not None]
    written = graph.sent(ours, dict(cache.items())).sum(0) + sum(biases)
    found.append(difference(written, cache["resid_post", cfg.n_layers - 1]))
    # 4. All edges give the run of the model, no edge the run in which everything is replaced.
    pairs = make_pairs((7, 5))
    circuits = torch.stack([graph.allowed, torch.zeros_like(graph.allowed)])
    values = run_circuits(ours, pairs, circuits, graph, base="clean", ablation="corrupt", progress=False)
    for row, side in zip(values, (pairs.clean, pairs.corrupt), strict=True):
        for at, n in enumerate(pairs.lengths.tolist()):
            right, wrong = pairs.answers[at]
            last = ours(side[at : at + 1, :n])[0, -1].double()
            found.append(float((row[at] - (last[right] - last[wrong])).abs() / last.abs().max()))
    return holds(max(found), SUMS)


def _refusal(ours: GPT) -> str:
    """Why a model has no edges."""
    try:
        Graph.of(ours)
    except InterpError as error:
        return f"no edges: {error}"
    raise AssertionError("this model has edges")


CHECKS = {"sweep": sweeps, "decomposition": decomposition}
