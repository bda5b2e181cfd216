"""The edges of a model: which component reads what which other component wrote.

1. The residual stream is a sum: of the embedding, of what every head adds and of what every MLP adds. Each reader (the
   query, key or value input of a head, an MLP, the unembedding) reads the sum of all that was written before it.
2. An edge is one term of one such sum. So a reader's input can be changed as if a single writer had written something
   else, and a circuit is a set of edges.
3. Writers are called senders, readers receivers, as in path patching. Names are those of circuit files: `input`,
   `a3.h1` and `m3` send; `a3.h1<q>`, `a3.kv0<k>` (`h` where every head has keys of its own), `m3` and `logits` receive;
   an edge is `a1.h2->a3.h1<q>`.

Source: Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits", on the residual stream as a channel);
names as Hanna et al. 2024 ("Have Faith in Faithfulness") and Mueller et al. 2025 ("MIB") write them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.config import ModelConfig
from interp.errors import InterpError, UnknownName, unknown
from interp.model import HookedModel

READS = {"q": "head", "k": "kv_head", "v": "kv_head"}
"""What a head reads by, and the axis that tells its readers apart."""

HEAD = re.compile(r"l(\d+)h(\d+)|a(\d+)\.h(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Node:
    """A place that writes to the residual stream or reads from it.

    Attributes:
        name: as in circuit files.
        site: the full name of the site that holds its value: what a head mixed (`hook_z`), what an MLP adds, the input
            that a receiver reads.
        layer: its layer; -1 for the embedding, the number of layers for the unembedding.
        stage: a receiver reads the senders of earlier stages.
        head: its index on the site's head axis; None where there is none.
        reads: "q", "k" or "v" for the inputs of heads.
    """

    name: str
    site: str
    layer: int
    stage: int
    head: int | None = None
    reads: str | None = None

    @property
    def label(self) -> str:
        """The name as figures write it: `L3H1`, `L3KV0 k`, `MLP 3`, `embed`, `logits`."""
        if self.head is None:
            return {"input": "embed", "logits": "logits"}.get(self.name, f"MLP {self.layer}")
        head = f"L{self.layer}{'KV' if 'kv' in self.name else 'H'}{self.head}"
        return head if self.reads is None else f"{head} {self.reads}"


@dataclass(frozen=True)
class Graph:
    """All senders, receivers and edges of one architecture; make it with `Graph.of`."""

    senders: tuple[Node, ...]
    receivers: tuple[Node, ...]

    @classmethod
    def of(cls, model: HookedModel) -> Graph:
        """The graph of a model.

        Raises:
            InterpError: a model that has not all of the sites, such as a bridged one without split inputs.
        """
        graph = _graph(model.cfg)
        lacking = [name for name in (*graph.sender_sites, *graph.receiver_sites) if name not in model.hook_dict]
        if lacking:
            raise InterpError(
                f"edges need the site {lacking[0]!r}, which this {type(model).__name__} does not have; patching whole "
                "activations (`interp.sweep` at 'z', 'mlp_out', 'resid_pre') does without it"
            )
        return graph

    @functools.cached_property
    def allowed(self) -> Tensor:
        """Which edges there are.  # [sender, receiver] bool"""
        sent = torch.tensor([node.stage for node in self.senders])
        read = torch.tensor([node.stage for node in self.receivers])
        return sent[:, None] < read

    @functools.cached_property
    def n_edges(self) -> int:
        """How many edges there are."""
        return int(self.allowed.sum())

    @functools.cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """Every edge as (sender, receiver), senders in their order."""
        return tuple((sender, receiver) for sender, receiver in self.allowed.nonzero().tolist())

    @functools.cached_property
    def sender_sites(self) -> tuple[str, ...]:
        """The sites from which `sent` reads, in the order of computation."""
        return tuple(dict.fromkeys(node.site for node in self.senders))

    @functools.cached_property
    def receiver_sites(self) -> tuple[str, ...]:
        """The sites that receivers read, in the order of computation."""
        return tuple(dict.fromkeys(node.site for node in self.receivers))

    def edge_name(self, sender: int, receiver: int) -> str:
        """An edge's name, as `a1.h2->a3.h1<q>`."""
        return f"{self.senders[sender].name}->{self.receivers[receiver].name}"

    def edge(self, name: str) -> tuple[int, int]:
        """The edge of this name, as (sender, receiver).

        Raises:
            UnknownName: no such sender or receiver, or one that comes before what it would read.
        """
        source, arrow, target = name.partition("->")
        if not arrow:
            raise UnknownName(f"no edge matches {name!r}; edges are written 'a0.h1->a2.h0<q>' or 'm3->logits'")
        sender, receiver = self.sender(source.strip()), self.receiver(target.strip())
        if not self.allowed[sender, receiver]:
            raise UnknownName(f"no edge matches {name!r}: {target} comes before {source}, or beside it")
        return sender, receiver

    def sender(self, name: str) -> int:
        """Where the sender of this name stands in `senders`; `L3H1` and `MLP 3` are understood, too."""
        return _find("sender", name, self.senders)

    def receiver(self, name: str) -> int:
        """Where the receiver of this name stands in `receivers`; `L3H1<q>` is understood, too."""
        return _find("receiver", name, self.receivers)

    def sent(self, model: HookedModel, values: Mapping[str, Tensor], senders: Iterable[int] | None = None) -> Tensor:
        """What senders add to the residual stream.

        Args:
            model: for the heads' output weights.
            values: the values at `sender_sites`: a cache, or replacements for them.
            senders: which, by their place; None takes all.

        Returns:
            [sender, batch, pos, d_model], of heads without the attention's output bias.
        """
        chosen = range(len(self.senders)) if senders is None else senders
        results: dict[str, Tensor] = {}
        parts = []
        for node in (self.senders[at] for at in chosen):
            if node.head is None:
                parts.append(values[node.site])
                continue
            if node.site not in results:
                results[node.site] = model.head_results(node.layer, values[node.site])
            parts.append(results[node.site][:, :, node.head])
        return torch.stack(parts)

    def received(self, values: Mapping[str, Tensor], receivers: Iterable[int] | None = None) -> Tensor:
        """The entries of receivers in the values, or gradients, at `receiver_sites`.

        Returns:
            [receiver, batch, pos, d_model].
        """
        chosen = range(len(self.receivers)) if receivers is None else receivers
        nodes = [self.receivers[at] for at in chosen]
        return torch.stack([values[n.site] if n.head is None else values[n.site][:, :, n.head] for n in nodes])


@functools.lru_cache(maxsize=8)
def _graph(cfg: ModelConfig) -> Graph:
    senders = [Node("input", "blocks.0.hook_resid_pre", -1, -1)]
    receivers = []
    sizes = {"head": cfg.n_heads, "kv_head": cfg.n_kv_heads}
    own = "h" if cfg.n_kv_heads == cfg.n_heads else "kv"
    for layer in range(cfg.n_layers):
        block, first = f"blocks.{layer}", 2 * layer
        for reads, axis in READS.items():
            letter = "h" if axis == "head" else own
            receivers += [
                Node(f"a{layer}.{letter}{head}<{reads}>", f"{block}.hook_{reads}_input", layer, first, head, reads)
                for head in range(sizes[axis])
            ]
        senders += [
            Node(f"a{layer}.h{head}", f"{block}.attn.hook_z", layer, first, head) for head in range(cfg.n_heads)
        ]
        if not cfg.attn_only:
            stage = first if cfg.parallel_attn_mlp else first + 1
            receivers.append(Node(f"m{layer}", f"{block}.hook_mlp_in", layer, stage))
            senders.append(Node(f"m{layer}", f"{block}.hook_mlp_out", layer, stage))
    end = cfg.n_layers
    receivers.append(Node("logits", f"blocks.{end - 1}.hook_resid_post", end, 2 * end))
    return Graph(tuple(senders), tuple(receivers))


def _find(kind: str, name: str, nodes: Sequence[Node]) -> int:
    plain = name.strip().lower().replace(" ", "")
    spelled = re.sub(r"^l(\d+)(h|kv)(\d+)", r"a\1.\2\3", re.sub(r"^mlp(\d+)$", r"m\1", plain))
    names = [node.name for node in nodes]
    if spelled not in names:
        raise unknown(kind, name, names)
    return names.index(spelled)


def parse_head(name: str, model: HookedModel) -> tuple[int, int]:
    """`L9H6`, or `a9.h6`, as (layer, head).

    Raises:
        UnknownName: another form, or a head that the model does not have.
    """
    found = HEAD.fullmatch(name.strip())
    last = f"L{model.cfg.n_layers - 1}H{model.cfg.n_heads - 1}"
    if found is None:
        raise UnknownName(f"no head matches {name!r}; heads are written L0H0 to {last}")
    layer, head = (int(part) for part in found.groups() if part is not None)
    if layer >= model.cfg.n_layers or head >= model.cfg.n_heads:
        near = f"L{min(layer, model.cfg.n_layers - 1)}H{min(head, model.cfg.n_heads - 1)}"
        raise UnknownName(f"no head matches {name!r}; this model's are L0H0 to {last}, the nearest is {near}")
    return layer, head
