"""What reaches a receiver when one sender is patched, along the paths that are left open.

A path leads from a sender (the embedding, a head, a state-space layer, an MLP) to the input of a receiver (the query,
key or value input of a head, a state-space layer, an MLP, the unembedding). Path patching asks what the sender passes
to the receiver along it:

1. Run the base and the source prompts.
2. Run the base prompts with the sender as in the source run. Whatever may not carry its change is kept as in the base
   run. `direct`: only the residual stream itself carries the change. `mlps`: later MLPs carry it too; heads and
   state-space layers, which mix positions, are kept. `all`: every later component carries it.
3. What the receiver reads in that run replaces its input, and nothing else, in a last run of the base prompts, in which
   all that follows is free to change. `routes` makes the edits of this run for `interp.sweep`.

Several receivers can form one set. Each gets what it reads in step 2, whatever the others of the set change.

Source: Wang et al. 2022 ("Interpretability in the Wild", section 3.1 and appendix B), whose third choice is `mlps`;
Goldowsky-Dill et al. 2023 ("Localizing Model Behavior with Path Patching", section 3).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.arguments import checked, is_whole, shown
from interp.circuits.graph import Graph, Node
from interp.edits import Edit, Index
from interp.errors import PromptError, UnknownName, check_choice, unknown
from interp.hooked.cache import ActivationCache
from interp.hooked.hooks import HookPoint, attached
from interp.hooked.model import HookedModel
from interp.names import READS, Part, edge_ends, spelled
from interp.progress import counting
from interp.prompts.pairs import PromptPairs

THROUGH = {
    "direct": "the residual stream alone",
    "mlps": "the residual stream and later MLPs, heads and state-space layers frozen",
    "all": "all later heads, state-space layers and MLPs",
}
"""The choices of what may carry a sender's change to a receiver."""

SENDERS = ("mixers", "heads", "mlps", "input", "all")
MIXERS = ("attn", "ssm")
MOST_BYTES = 2**28  # of what reaches the receivers, held at a time
BATCH_POSITIONS = 2048  # positions that run together in step 2


@dataclass(frozen=True)
class Receivers:
    """Receivers that are patched together.

    Attributes:
        name: as tables write it: `L9H6 q`, `L9H6 q + L9H9 q`, `logits`.
        nodes: their indices in the graph's `receivers`.
    """

    name: str
    nodes: tuple[int, ...]


@checked
def parse_receivers(text: str | Sequence[str], graph: Graph, model: HookedModel) -> list[Receivers]:
    """Receivers by their names, one set for each part between commas.

    Args:
        text: `L9H6:q` (or `L9H6<q>`, `a9.h6<q>`), `L9H6` for all three inputs of a head, `MLP 3` or `m3`, `mixer 3` or
            `s3` for a state-space layer, `logits`; `+` joins a set. Keys and values of a query head with grouped
            queries are those of its kv head.
        graph, model: where they are looked up.

    Raises:
        UnknownName: a receiver that the model does not have; a head of a state-space layer, all of whose heads read the
            same input.

    >>> from interp import GPT, ModelConfig
    >>> model = GPT(ModelConfig(n_layers=2, d_model=8, n_ctx=8, d_head=4, d_vocab=9))
    >>> [one.name for one in parse_receivers("L1H0:q+L1H1:q, logits", Graph.of(model), model)]
    ['L1H0 q + L1H1 q', 'logits']
    """
    parts = text.split(",") if isinstance(text, str) else list(text)
    sets = []
    for part in parts:
        nodes = dict.fromkeys(at for one in part.split("+") for at in _receivers(one.strip(), graph, model))
        sets.append(Receivers(" + ".join(graph.receivers[at].label for at in nodes), tuple(nodes)))
    return list(dict.fromkeys(sets))


def _receivers(name: str, graph: Graph, model: HookedModel) -> Iterator[int]:
    """The receivers that a name means, as indices of the graph."""
    part, there = spelled(name), [node.part for node in graph.receivers]
    whole = None if part is None or part.index is None else Part("mixer", part.layer)
    if whole in there:
        raise UnknownName(
            f"no receiver matches {name!r}: all heads of state-space layer {whole.layer} read the same input; use "
            f"{whole.node!r}"
        )
    if part is None or part.index is None or not part.row.inputs:
        yield graph.receiver(name)
        return
    group = model.cfg.n_heads // max(model.cfg.n_kv_heads, 1)
    every = READS if part.kind == "head" else ("k", "v")
    for read in every if part.reads is None else [part.reads]:
        shared = READS[read] == "kv_head" and group > 1
        head = part.index // group if shared and part.kind == "head" else part.index
        yield graph.receiver(Part("kv_head" if shared else part.kind, part.layer, head, read).node)


@checked
def parse_senders(text: str | Sequence[str], graph: Graph) -> list[int]:
    """Indices in the graph's `senders` of names (`L3H1`, `mixer 3`, `MLP 3`, `input`) or groups.

    Groups are "mixers" (whatever mixes positions: heads, and state-space layers without heads), "heads", "mlps" and
    "all".

    Raises:
        UnknownName: a sender that the model does not have.
    """
    chosen: list[int] = []
    for name in (part.strip() for part in (text.split(",") if isinstance(text, str) else text)):
        if name in SENDERS:
            chosen += [at for at, node in enumerate(graph.senders) if name in _groups(node)]
        else:
            chosen.append(graph.sender(name))
    if not chosen:
        groups = [name for name in SENDERS if any(name in _groups(node) for node in graph.senders)]
        raise unknown("sender of this model", text, [*groups, *(node.label for node in graph.senders)])
    return sorted(set(chosen))


def _groups(node: Node) -> tuple[str, ...]:
    """The groups of `SENDERS` that include this node."""
    if node.kind in MIXERS:
        return ("mixers", "all") if node.head is None else ("mixers", "heads", "all")
    return ("mlps" if node.kind == "mlp" else "input", "all")


def parse_places(pos: int | str | Sequence[int | str] | None) -> list[dict[str, int | str]]:
    """The places at which receivers are changed, each as a label: a position, a role, or nothing for everywhere.

    Args:
        pos: one or several positions and roles, as "S2,END"; None is everywhere at once.

    Raises:
        PromptError: something that is neither.

    >>> parse_places("S2,-1"), parse_places(None)
    ([{'role': 'S2'}, {'pos': -1}], [{}])
    """
    if pos is None:
        return [{}]
    given: list[Any] = [pos]
    if isinstance(pos, Iterable) and not is_whole(pos):
        given = pos.split(",") if isinstance(pos, str) else list(pos)
    places: list[dict[str, int | str]] = []
    for one in given:
        if not isinstance(one, str) and not is_whole(one):
            raise PromptError(f"pos must be a position, a role, or several of them, not {shown(pos)}")
        text = str(one).strip() if isinstance(one, str) else str(int(one))
        places.append({"pos": int(text)} if text.lstrip("-").isdecimal() else {"role": text})
    return places


def sender_labels(node: Node) -> dict[str, Any]:
    """A sender as tables name it: `sender, site, layer` (0 of the embedding), and `head` or its own kind of head."""
    site = "embed" if node.kind == "input" else node.site.rpartition("hook_")[2]
    own = {"head": None} if node.axis is None else {node.axis: node.head}
    return {"sender": node.label, "site": site, "layer": max(node.layer, 0), **own}


def in_groups(senders: Sequence[int], each: int) -> Iterator[Sequence[int]]:
    """Senders whose values of `arriving` fit into memory together.

    Args:
        senders: indices in the graph's `senders`.
        each: bytes of one sender's values. They alone decide, so that the same call makes the same groups.
    """
    size = max(1, MOST_BYTES // each)
    for first in range(0, len(senders), size):
        yield senders[first : first + size]


def point(node: Node, model: HookedModel) -> str:
    """The site of the residual stream that a receiver reads."""
    if node.name == "logits":
        return node.site
    mid = f"blocks.{node.layer}.hook_resid_mid"
    return f"blocks.{node.layer}.hook_resid_pre" if node.kind in MIXERS or mid not in model.hook_dict else mid


@checked
@torch.no_grad()
def arriving(
    model: HookedModel,
    pairs: PromptPairs,
    graph: Graph,
    senders: Sequence[int],
    points: Iterable[str],
    *,
    through: str = "direct",
    base: str = "clean",
    source: str = "corrupt",
    progress: bool | None = None,
) -> dict[str, Tensor]:
    """The residual stream at some points when one sender is as in the source run (step 2).

    Args:
        model, pairs, graph: the model, its prompts and its graph.
        senders: indices of the graph's `senders`, each patched by itself.
        points: sites of the residual stream, as `point` gives them.
        through: a name of `THROUGH`.
        base, source: the sides of the pairs.
        progress: a bar on stderr where every sender needs a run of its own; None shows it on a terminal.

    Returns:
        Point -> [sender, prompt, pos, d_model]. At points before a sender it equals the base run.

    Raises:
        UnknownName: a `through` that does not exist.
    """
    check_choice("choice of paths", through, THROUGH)
    points = list(dict.fromkeys(points))
    pairs = pairs.to(model.device)
    starts = {f"blocks.{max(graph.senders[at].layer, 0)}.hook_resid_pre" for at in senders}
    frozen = {node.site for node in graph.senders if node.kind in MIXERS} if through == "mlps" else set()
    sites = {graph.senders[at].site for at in senders}
    names = {"base": {*sites, *points, *starts, *frozen}, "source": sites}
    runs = {
        run: model.run_with_cache(
            getattr(pairs, side),
            names_filter=sorted(names[run]),
            attention_mask=pairs.attention_mask,
            return_type=None,
        )[1]
        for run, side in (("base", base), ("source", source))
    }
    if through == "direct":
        return _direct(model, graph, senders, points, runs)
    streams = {name: runs["base"][name].expand(len(senders), -1, -1, -1).clone() for name in points}
    batches = list(_batches(graph, senders, max(1, BATCH_POSITIONS // pairs.mask.numel())))
    for batch in counting(batches, desc="paths", unit="batch", progress=progress):
        nodes = [graph.senders[senders[at]] for at in batch]
        for name, value in _run(model, pairs, nodes, points, runs, frozen).items():
            streams[name][batch] = value
    return streams


def _direct(
    model: HookedModel,
    graph: Graph,
    senders: Sequence[int],
    points: Sequence[str],
    runs: Mapping[str, ActivationCache],
) -> dict[str, Tensor]:
    """The base run plus, at every point after a sender, the change of that sender's output."""
    change = graph.changed(model, runs["base"], runs["source"], senders)
    stages = torch.tensor([graph.senders[at].stage for at in senders], device=change.device)
    streams = {}
    for name in points:
        reached = (stages < _stage(name, graph, model))[:, None, None, None]
        streams[name] = runs["base"][name] + torch.where(reached, change, 0)  # [sender, prompt, pos, d_model]
    return streams


def _stage(name: str, graph: Graph, model: HookedModel) -> int:
    """The stage of the graph at which a point is read."""
    return next(node.stage for node in graph.receivers if point(node, model) == name)


def _batches(graph: Graph, senders: Sequence[int], most: int) -> Iterator[list[int]]:
    """Senders of one site at a time, at most `most` of them, as indices of `senders`."""
    groups: dict[str, list[int]] = {}
    for at, sender in enumerate(senders):
        groups.setdefault(graph.senders[sender].site, []).append(at)
    for group in groups.values():
        for first in range(0, len(group), most):
            yield group[first : first + most]


def _run(
    model: HookedModel,
    pairs: PromptPairs,
    nodes: Sequence[Node],
    points: Sequence[str],
    runs: Mapping[str, ActivationCache],
    frozen: Collection[str],
) -> dict[str, Tensor]:
    """The stream at the points after some senders of one site.  # point -> [sender, prompt, pos, d_model]

    Each sender is patched in its own copy of the prompts; the run starts at the senders' layer.
    """
    n, site, first = len(nodes), nodes[0].site, max(nodes[0].layer, 0)
    start = f"blocks.{first}.hook_resid_pre"
    later = [name for name in points if int(name.split(".")[1]) >= first and (name != start or name == site)]
    if not later:
        return {}

    def repeated(value: Tensor) -> Tensor:
        return value.expand(n, *value.shape).flatten(0, 1)  # [sender prompt, ...]

    def patch(value: Tensor, hook: HookPoint) -> Tensor:
        kept = repeated(runs["base"][site]) if hook.name in frozen else value
        new = kept.unflatten(0, (n, -1)).clone()  # [sender, prompt, ...]
        for at, node in enumerate(nodes):
            if node.head is None:
                new[at] = runs["source"][site]
            else:
                new[at, :, :, node.head] = runs["source"][site][:, :, node.head]
        return new.flatten(0, 1)

    def freeze(value: Tensor, hook: HookPoint) -> Tensor:
        return repeated(runs["base"][hook.name])

    last = max(int(name.split(".")[1]) for name in later)
    hooks: list[Any] = [(site, patch)]
    to_freeze = [name for name in frozen if first <= int(name.split(".")[1]) <= last and name != site]
    hooks += [(name, freeze) for name in sorted(to_freeze)]
    mask = pairs.attention_mask
    streams: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: HookPoint) -> None:
        streams[hook.name] = value.unflatten(0, (n, -1))

    with attached(model.hook_dict, hooks, readers=[(later, keep)]):
        model(
            repeated(runs["base"][start]),
            attention_mask=None if mask is None else repeated(mask),
            start_at_layer=first,
            stop_at_layer=last + 1,
        )
    return streams


@checked
def routes(
    model: HookedModel,
    graph: Graph,
    sender: int,
    receivers: Receivers,
    reads: Mapping[str, Tensor],
    *,
    pos: Index | None = None,
) -> list[Edit]:
    """The edits of step 3, which put into every receiver of a set what it reads.

    Args:
        model, graph: the model and its graph.
        sender: its index in the graph; receivers that do not come after it are not edited.
        receivers: the set.
        reads: point -> [prompt, pos, d_model], as `arriving` gives it for this sender.
        pos: the positions to edit, as in an `Edit`; None means all.

    Returns:
        One edit for each site, [] if no receiver comes after the sender.
    """
    by_site: dict[str, list[Node]] = {}
    for at in receivers.nodes:
        if graph.allowed[sender, at]:
            by_site.setdefault(graph.receivers[at].site, []).append(graph.receivers[at])
    edits = []
    for site, nodes in by_site.items():
        where: dict[str, Index] = {} if pos is None else {"pos": pos}
        value = reads[point(nodes[0], model)]
        if nodes[0].reads is not None:
            where[READS[nodes[0].reads]] = [node.head for node in nodes if node.head is not None]
            value = value[:, :, None]  # [prompt, pos, 1, d_model]
        edits.append(Edit(site, where, "set", value))
    return edits


@checked
@torch.no_grad()
def edge_edits(
    model: HookedModel,
    pairs: PromptPairs,
    edge: str,
    *,
    factor: float | None = None,
    pos: Index | None = None,
    base: str = "clean",
    source: str = "corrupt",
) -> list[Edit]:
    """Edits that change what one sender alone gives one receiver, through the residual stream alone.

    They add the change to what the receiver reads, so that those of several edges, and other edits, can be made
    together. Alone they do what `routes` does with what `arriving` gives for `through="direct"`.

    Args:
        model, pairs: the model and its prompts.
        edge: `L5H5->L9H9 q`, `MLP 3->logits`; the names are those of `parse_senders` and `parse_receivers`.
        factor: what the sender's part is multiplied by, 0 to take it away; None gives it what the source run has.
        pos: the positions of the receiver, as in an `Edit`; None means all.
        base, source: the sides of the pairs.

    Raises:
        InterpError: a model whose residual stream is no sum, as `Graph.of` says.
        UnknownName: a sender or receiver that the model does not have, or a receiver that comes before the sender.

    >>> from interp import GPT, ModelConfig
    >>> model = GPT(ModelConfig(n_layers=2, d_model=8, n_ctx=8, d_head=4, d_vocab=9))
    >>> pairs = PromptPairs.from_tokens([[1, 2, 3]])
    >>> [edit.site for edit in edge_edits(model, pairs, "L0H1->L1H0", factor=0)]
    ['blocks.1.hook_q_input', 'blocks.1.hook_k_input', 'blocks.1.hook_v_input']
    """
    graph, pairs = Graph.of(model), pairs.to(model.device)
    sender, targets = graph.sender(edge_ends(edge)[0]), edge_ends(edge)[1]
    nodes = [graph.receivers[at] for at in _receivers(targets, graph, model) if graph.allowed[sender, at]]
    if not nodes:
        raise UnknownName(
            f"no edge matches {edge!r}: {targets} comes before {graph.senders[sender].label}, or beside it"
        )
    site, end = graph.senders[sender].site, max(graph.senders[sender].layer, 0) + 1
    own, *other = (
        model.run_with_cache(**pairs.inputs(side), names_filter=[site], return_type=None, stop_at_layer=end)[1][site]
        for side in ([base, source] if factor is None else [base])
    )
    given = {site: other[0] if factor is None else own * factor}
    change = graph.changed(model, {site: own}, given, [sender])[0]  # [prompt, pos, d_model]
    edits = []
    for node in nodes:
        where: dict[str, Index] = {} if pos is None else {"pos": pos}
        if node.reads is not None:
            where[READS[node.reads]] = node.head
        edits.append(Edit(node.site, where, "add", change if node.head is None else change[:, :, None]))
    return edits
