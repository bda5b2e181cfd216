"""What reaches a receiver when one sender is patched, by the paths that are left open.

A path leads from a sender (the embedding, a head, a state-space layer, an MLP) to the input of a receiver (the query,
key or value input of a head, a state-space layer, an MLP, the unembedding). Path patching asks what the sender tells
the receiver that way:

1. Run the base and the source prompts.
2. Run the base prompts with the sender as in the source run, and everything that may not carry its change as in the
   base run. `direct`: nothing carries it but the residual stream itself. `mlps`: MLPs see it and pass it on; what mixes
   positions, heads and state-space layers, writes what it did. `all`: everything later does.
3. What the receiver now reads is put into its input, and there alone, in a last run of the base prompts, which goes on
   as it will. `routes` makes the variants of this run for `interp.sweep`.

Several receivers together are one set, each with what it reads in step 2, whatever the others of the set do to it.

Source: Wang et al. 2022 ("Interpretability in the Wild", section 3.1 and appendix B), whose third choice is `mlps`;
Goldowsky-Dill et al. 2023 ("Localizing Model Behavior with Path Patching", section 3).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.arguments import checked
from interp.circuits.graph import Graph, Node
from interp.edits import Edit, Index
from interp.errors import UnknownName, check_choice, unknown
from interp.hooked.cache import ActivationCache
from interp.hooked.hooks import HookPoint, attached
from interp.hooked.model import HookedModel
from interp.names import READS, Part, spelled
from interp.progress import counting
from interp.prompts.pairs import PromptPairs

THROUGH = {
    "direct": "the residual stream alone",
    "mlps": "the residual stream and later MLPs, heads and state-space layers frozen",
    "all": "all later heads, state-space layers and MLPs",
}
"""What may carry a sender's change to a receiver."""

SENDERS = ("mixers", "heads", "mlps", "input", "all")
MIXERS = ("attn", "ssm")
ROWS = 2048  # positions that run together in step 2


@dataclass(frozen=True)
class Receivers:
    """Receivers that are patched together.

    Attributes:
        name: as tables write it: `L9H6 q`, `L9H6 q + L9H9 q`, `logits`.
        nodes: their places in the graph's `receivers`.
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
        UnknownName: a receiver that the model does not have; a head of a state-space layer, whose heads read together.

    >>> from interp import GPT, ModelConfig
    >>> model = GPT(ModelConfig(n_layers=2, d_model=8, n_ctx=8, d_head=4, d_vocab=9))
    >>> [one.name for one in parse_receivers("L1H0:q+L1H1:q, logits", Graph.of(model), model)]
    ['L1H0 q + L1H1 q', 'logits']
    """
    parts = text.split(",") if isinstance(text, str) else list(text)
    made = []
    for part in parts:
        nodes = dict.fromkeys(at for one in part.split("+") for at in _receivers(one.strip(), graph, model))
        made.append(Receivers(" + ".join(graph.receivers[at].label for at in nodes), tuple(nodes)))
    return list(dict.fromkeys(made))


def _receivers(name: str, graph: Graph, model: HookedModel) -> Iterator[int]:
    part, there = spelled(name), [node.part for node in graph.receivers]
    whole = None if part is None or part.index is None else Part("mixer", part.layer)
    if whole in there:
        raise UnknownName(f"no receiver matches {name!r}: all of layer {whole.layer} reads the same, {whole.node!r}")
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
    """Senders by their names (`L3H1`, `mixer 3`, `MLP 3`, `input`), or groups of them; places in the graph.

    Groups are "mixers" (heads, and state-space layers without heads: all that mixes positions), "heads", "mlps" and
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
    """The names of `SENDERS` that mean this node too."""
    if node.kind in MIXERS:
        return ("mixers", "all") if node.head is None else ("mixers", "heads", "all")
    return ("mlps" if node.kind == "mlp" else "input", "all")


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
        senders: which, by their place in the graph.
        points: sites of the residual stream, as `point` gives them.
        through: a name of `THROUGH`.
        base, source: the sides of the pairs.
        progress: a bar on stderr where every sender needs a run of its own; None shows it on a terminal.

    Returns:
        Point -> [sender, prompt, pos, d_model]. At points before a sender it is the base run.

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
    found = {name: runs["base"][name].expand(len(senders), -1, -1, -1).clone() for name in points}
    batches = list(_batches(graph, senders, max(1, ROWS // pairs.mask.numel())))
    for batch in counting(batches, desc="paths", unit="batch", progress=progress):
        nodes = [graph.senders[senders[at]] for at in batch]
        for name, value in _run(model, pairs, nodes, points, runs, frozen).items():
            found[name][batch] = value
    return found


def _direct(
    model: HookedModel,
    graph: Graph,
    senders: Sequence[int],
    points: Sequence[str],
    runs: Mapping[str, ActivationCache],
) -> dict[str, Tensor]:
    """Every later point has what the sender changed, and nothing else."""
    change = graph.sent(model, runs["source"], senders) - graph.sent(model, runs["base"], senders)
    stages = torch.tensor([graph.senders[at].stage for at in senders], device=change.device)
    found = {}
    for name in points:
        reached = (stages < _stage(name, graph, model))[:, None, None, None]
        found[name] = runs["base"][name] + torch.where(reached, change, 0)
    return found


def _stage(name: str, graph: Graph, model: HookedModel) -> int:
    return next(node.stage for node in graph.receivers if point(node, model) == name)


def _batches(graph: Graph, senders: Sequence[int], most: int) -> Iterator[list[int]]:
    """Senders of one layer and site, at most so many at a time, by their place in `senders`."""
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
    """The points behind some senders of one site, each patched in rows of its own, from their layer on."""
    n, site, first = len(nodes), nodes[0].site, max(nodes[0].layer, 0)
    start = f"blocks.{first}.hook_resid_pre"
    behind = [name for name in points if int(name.split(".")[1]) >= first and (name != start or name == site)]
    if not behind:
        return {}

    def every(value: Tensor) -> Tensor:
        return value.expand(n, *value.shape).flatten(0, 1)  # [sender prompt, ...]

    def patched(value: Tensor, hook: HookPoint) -> Tensor:
        own = runs["base"][site] if hook.name in frozen else None
        new = (value if own is None else every(own)).unflatten(0, (n, -1)).clone()  # [sender, prompt, ...]
        for at, node in enumerate(nodes):
            if node.head is None:
                new[at] = runs["source"][site]
            else:
                new[at, :, :, node.head] = runs["source"][site][:, :, node.head]
        return new.flatten(0, 1)

    def held(value: Tensor, hook: HookPoint) -> Tensor:
        return every(runs["base"][hook.name])

    last = max(int(name.split(".")[1]) for name in behind)
    hooks: list[Any] = [(site, patched)]
    here = [name for name in frozen if first <= int(name.split(".")[1]) <= last and name != site]
    hooks += [(name, held) for name in sorted(here)]
    mask = pairs.attention_mask
    kept: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: HookPoint) -> None:
        kept[hook.name] = value.unflatten(0, (n, -1))

    with attached(model.hook_dict, hooks, readers=[(behind, keep)]):
        model(
            every(runs["base"][start]),
            attention_mask=None if mask is None else every(mask),
            start_at_layer=first,
            stop_at_layer=last + 1,
        )
    return kept


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
        sender: its place in the graph; receivers that do not come after it are left alone.
        receivers: the set.
        reads: point -> [prompt, pos, d_model], of this sender.
        pos: where, as an `Edit` has it; None is everywhere.

    Returns:
        One edit for each site, [] where no receiver comes after the sender.
    """
    together: dict[str, list[Node]] = {}
    for at in receivers.nodes:
        if graph.allowed[sender, at]:
            together.setdefault(graph.receivers[at].site, []).append(graph.receivers[at])
    edits = []
    for site, nodes in together.items():
        where: dict[str, Index] = {} if pos is None else {"pos": pos}
        value = reads[point(nodes[0], model)]
        if nodes[0].reads is not None:
            where[READS[nodes[0].reads]] = [node.head for node in nodes if node.head is not None]
            value = value[:, :, None]  # [prompt, pos, 1, d_model]
        edits.append(Edit(site, where, "set", value))
    return edits
