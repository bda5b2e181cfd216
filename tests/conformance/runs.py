"""Sweeps against full forwards, and decompositions against what they are said to sum to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from makers import make_pairs, plain_forwards, stack_pairs
from torch import Tensor

from interp.circuits.graph import Graph, output_bias
from interp.circuits.run import run_circuits
from interp.edits import Edit, Variant
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import InterpError
from interp.models.gpt import GPT
from interp.sites import stream_after
from interp.sweeps.sweep import sweep

from .cell import Cell, difference, holds
from .subject import Subject, inputs

SWEEP = 2e-5  # of the largest logit, in float32
SUMS = 1e-5
OPS = ("set", "zero", "add", "scale")
ROLES = ("first", "middle", "end", None)
PLACES = (0, -1, None)  # the same in a model of two stacks, which has no roles in both


def drawn(subject: Subject) -> list[Variant]:
    """Edits of every site of the model, with operations and positions in turn; the last ones change two sites."""
    singles = []
    for at, (name, point) in enumerate(subject.ours.hook_dict.items()):
        roles: tuple[Any, ...] = PLACES if isinstance(subject.ours, EncoderDecoder) else ROLES
        op, role = OPS[at % len(OPS)], roles[at // 2 % len(roles)]
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
    ours = subject.ours
    pairs = stack_pairs() if isinstance(ours, EncoderDecoder) else make_pairs((8, 5, 8), shared=2)
    variants = drawn(subject)[:: 1 if subject.thorough else 5]
    frame = sweep(ours, pairs, variants, base="corrupt", source="clean", progress=False)
    values = frame["value"].to_numpy().reshape(len(variants), len(pairs))
    found, largest = 0.0, ""
    for row, variant in zip(values, variants, strict=True):
        for at, logits in enumerate(plain_forwards(ours, pairs, variant, "corrupt", "clean")):
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
    cap = subject.one.cfg.output_logits_soft_cap if isinstance(subject.ours, GPT) else None
    return logits if not cap else cap * torch.atanh(logits / cap)


def _streams(subject: Subject, tokens: Tensor) -> list[float]:
    """What was written before each layer is what enters it."""
    ours = subject.ours
    _, cache = ours.run_with_cache(*inputs(ours, tokens))
    stacks = [(ours.cfg, cache)]
    if isinstance(ours, EncoderDecoder):
        stacks = [(ours.cfg.encoder, cache.encoder), (ours.cfg.decoder, cache.decoder)]
    found = []
    for cfg, own in stacks:
        for layer in range(cfg.n_layers + 1):
            stream = own["resid_pre", layer] if layer < cfg.n_layers else own[stream_after(cfg, layer - 1)]
            found.append(difference(own.decompose_resid(layer).sum(0), stream))
            if cfg.has_attention and cfg.shared is None:  # heads of shared blocks write to no stream
                found.append(difference(own.stack_head_results(layer, incl_remainder=True).sum(0), stream))
    return found


def _senders(subject: Subject, tokens: Tensor) -> list[float]:
    """What senders of edges and constants write is the final stream."""
    graph, ours = Graph.of(subject.ours), subject.one
    _, cache = ours.run_with_cache(tokens)
    with_heads = [name for name in graph.sender_sites if name.endswith(("hook_z", "hook_gated"))]
    biases = [bias for name in with_heads if (bias := output_bias(ours, name)) is not None]
    written = graph.sent(ours, dict(cache.items())).sum(0) + sum(biases)
    return [difference(written, cache["resid_post", ours.cfg.n_layers - 1])]


def _shares(subject: Subject, tokens: Tensor) -> list[float]:
    """Shares of a logit are the logit, less constants."""
    ours = subject.ours
    logits, cache = ours.run_with_cache(*inputs(ours, tokens))
    if isinstance(ours, EncoderDecoder):
        tokens, cache, ours = inputs(ours, tokens)[1], cache.decoder, ours.decoder
    shares = cache.logit_attrs(cache.decompose_resid(), tokens).sum(0)  # [batch, pos]
    b, b_U = getattr(ours.ln_final, "b", None), ours.unembed.b_U
    constant = torch.zeros(logits.shape[-1]) if b_U is None else b_U
    if b is not None:
        constant = constant + ours.uncapped_logits(b) - ours.uncapped_logits(torch.zeros_like(b))  # [d_vocab]
    own = uncapped(subject, logits).gather(-1, tokens[..., None])[..., 0]
    return [difference(shares + constant[tokens], own)]


def _edges(subject: Subject, _: Tensor) -> list[float]:
    """All edges give the run of the model, no edge the run in which everything is replaced."""
    graph, ours = Graph.of(subject.ours), subject.one
    pairs, found = make_pairs((7, 5)), []
    circuits = torch.stack([graph.allowed, torch.zeros_like(graph.allowed)])
    values = run_circuits(ours, pairs, circuits, graph, base="clean", ablation="corrupt", progress=False)
    for row, side in zip(values, (pairs.clean, pairs.corrupt), strict=True):
        for at, n in enumerate(pairs.lengths.tolist()):
            right, wrong = pairs.answers[at]
            last = ours(side[at : at + 1, :n])[0, -1].double()
            found.append(float((row[at] - (last[right] - last[wrong])).abs() / last.abs().max()))
    return found


@torch.no_grad()
def decomposition(subject: Subject) -> Cell:
    """Parts of the residual stream against the stream, and of a logit against the logit; the whole and no circuit.

    A part that is refused is told of; the cell is refused where all are.
    """
    found: list[float] = []
    refused = dict[str, None]()
    for part in (_streams, _senders, _shares, _edges):
        try:
            found += part(subject, subject.tokens(2, 9))
        except InterpError as error:
            refused[str(error)] = None
    told = "; ".join(refused)
    return holds(max(found), SUMS, told) if found else Cell("refused", told=told)


CHECKS = {"sweep": sweeps, "decomposition": decomposition}
