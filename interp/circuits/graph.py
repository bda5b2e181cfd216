"""The edges of a model: which component reads what which other component wrote.

1. The residual stream is a sum: of the embedding, of what every head adds and of what every MLP adds. Each reader (the
   query, key or value input of a head, an MLP, the unembedding) reads the sum of all that was written before it. A
   state-space layer reads once; it writes as a whole, or in Mamba-2 head by head.
2. An edge is one term of one such sum. So a reader's input can be changed as if a single writer had written something
   else, and a circuit is a set of edges.
3. Writers are called senders, readers receivers, as in path patching. Names are those of circuit files
   (`interp.names`): `input`, `a3.h1` and `m3` send; `a3.h1<q>`, `a3.kv0<k>` (`h` where every head has keys of its own),
   `m3` and `logits` receive; an edge is `a1.h2->a3.h1<q>`. A state-space layer receives as `s3` and sends as `s3`, in
   Mamba-2 as `s3.h1`.

Source: Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits", on the residual stream as a channel).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from einops import einsum
from torch import Tensor

from interp.arguments import checked, entries
from interp.config import MAMBAS, ModelConfig
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import InterpError, UnknownName, unknown
from interp.hooked.model import HookedModel
from interp.models.gpt import GPT
from interp.names import MIXER_PARTS, READS, Part, edge_ends, edge_name, spelled
from interp.sites import axis_sizes
from interp.state_space.mixer import MambaMixer

KINDS = {
    "embed": "input",
    **dict.fromkeys(("head", "kv_head"), "attn"),
    **dict.fromkeys(("ssm_head", "mixer"), "ssm"),
    "mlp": "mlp",
    "logits": "logits",
}
"""What a node belongs to, by the kind of part that it is."""


@dataclass(frozen=True)
class Node:
    """A place that writes to the residual stream or reads from it.

    Attributes:
        part: which part of the model it is, or which input of a head.
        site: the full name of the site that holds its value: what a head mixed (`hook_z`, of Mamba-2 `hook_gated`),
            what an MLP or a Mamba-1 layer adds, the input that a receiver reads.
        layer: its layer; -1 for the embedding, the number of layers for the unembedding.
        stage: a receiver reads the senders of earlier stages.
    """

    part: Part
    site: str
    layer: int
    stage: int

    @property
    def name(self) -> str:
        """As in circuit files: `a3.h1`, `a3.kv0<k>`, `s3.h1` of Mamba-2, `s3`, `m3`, `input`, `logits`."""
        return self.part.node

    @property
    def label(self) -> str:
        """As figures write it: `L3H1`, `L3KV0 k`, `L3S1` of Mamba-2, `mixer 3`, `MLP 3`, `embed`, `logits`."""
        return self.part.name

    @property
    def head(self) -> int | None:
        """Its index on the site's head axis; None where there is none."""
        return self.part.index

    @property
    def reads(self) -> str | None:
        """For the inputs of heads "q", "k" or "v"."""
        return self.part.reads

    @property
    def kind(self) -> str:
        """What it belongs to: "input", "attn", "ssm" (a state-space layer), "mlp" or "logits"."""
        return KINDS[self.part.kind]

    @property
    def axis(self) -> str | None:
        """The site's axis that tells heads apart; None where there is none."""
        if self.head is None:
            return None
        return self.part.row.axis if self.reads is None else READS[self.reads]


@dataclass(frozen=True)
class Graph:
    """All senders, receivers and edges of one architecture; make it with `Graph.of`."""

    senders: tuple[Node, ...]
    receivers: tuple[Node, ...]

    @classmethod
    @checked
    def of(cls, model: HookedModel) -> Graph:
        """The graph of a model.

        Raises:
            InterpError: a model that has not all of the sites, such as a bridged one without split inputs, one with
                norms on the residual stream, which then is no sum, or one with shared transformer blocks.
        """
        if isinstance(model, EncoderDecoder):
            raise InterpError(
                "edges are between the parts of one residual stream, and this model has two, which cross-attention "
                "connects; patch whole activations of both instead: `interp.sweep` at 'encoder.z' or 'decoder.z'"
            )
        if model.cfg.norms_on_stream:
            raise InterpError(
                "edges need a residual stream that is the sum of what was written to it, and in this model it passes "
                "through norms between the layers (norm_placement='residual'), so that what one component changes for "
                "a reader depends on all others; patch whole activations instead: `interp.sweep` at 'z', 'mlp_out' or "
                "'resid_pre'"
            )
        if model.cfg.shared is not None:
            raise InterpError(
                "edges need components that read the residual stream and write to it, and the shared blocks of this "
                "model ('shared+mamba2' layers) read the token embedding beside it and write to the input of a mixer; "
                "patch whole activations instead: `interp.sweep` at 'z', 'shared_block_out', 'gated' or 'resid_pre'"
            )
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

    @functools.cached_property
    def _sender_places(self) -> dict[Part, int]:
        return {node.part: at for at, node in enumerate(self.senders)}

    @functools.cached_property
    def _receiver_places(self) -> dict[Part, int]:
        return {node.part: at for at, node in enumerate(self.receivers)}

    @checked
    def edge_name(self, sender: int, receiver: int) -> str:
        """An edge's name, as `a1.h2->a3.h1<q>`."""
        (source,), (target,) = (
            entries(what, [at], len(among), refuse=UnknownName)
            for what, at, among in (("sender", sender, self.senders), ("receiver", receiver, self.receivers))
        )
        return edge_name(self.senders[source].part, self.receivers[target].part)

    @checked
    def edge(self, name: str) -> tuple[int, int]:
        """The edge of this name, as (sender, receiver).

        Raises:
            UnknownName: no such sender or receiver, or one that comes before what it would read.
        """
        source, target = edge_ends(name)
        sender, receiver = self.sender(source), self.receiver(target)
        if not self.allowed[sender, receiver]:
            raise UnknownName(f"no edge matches {name!r}: {target} comes before {source}, or beside it")
        return sender, receiver

    @checked
    def sender(self, name: str) -> int:
        """Where the sender of this name stands in `senders`; `L3H1` and `MLP 3` are understood, too."""
        return _find("sender", name, self._sender_places)

    @checked
    def receiver(self, name: str) -> int:
        """Where the receiver of this name stands in `receivers`; `L3H1<q>` is understood, too."""
        return _find("receiver", name, self._receiver_places)

    def sent(self, model: HookedModel, values: Mapping[str, Tensor], senders: Iterable[int] | None = None) -> Tensor:
        """What senders add to the residual stream.

        Args:
            model: for the heads' output weights.
            values: the values at `sender_sites`: a cache, or replacements for them.
            senders: which, by their place; None takes all.

        Returns:
            [sender, batch, pos, d_model], of heads without the output bias that their layer has.
        """
        chosen = range(len(self.senders)) if senders is None else senders
        results: dict[str, Tensor] = {}
        parts = []
        for node in (self.senders[at] for at in chosen):
            if node.head is None:
                parts.append(values[node.site])
                continue
            if node.site not in results:
                results[node.site] = head_results(model, node.site, values[node.site])
            parts.append(results[node.site][:, :, node.head])
        return torch.stack(parts)

    def changed(
        self, model: HookedModel, base: Mapping[str, Tensor], source: Mapping[str, Tensor], senders: Iterable[int]
    ) -> Tensor:
        """How the residual stream changes if one sender alone is as in the source run.

        Where a norm follows the attention, a head also changes the scale at which the others of its layer are added.

        Args:
            model, senders: as in `sent`.
            base, source: the values of both runs at `sender_sites`.

        Returns:
            [sender, batch, pos, d_model].
        """
        senders = list(senders)
        if not model.cfg.norms_after:
            return self.sent(model, source, senders) - self.sent(model, base, senders)
        parts = []
        for node in (self.senders[at] for at in senders):
            value = source[node.site]
            if node.head is not None:
                value = base[node.site].clone()
                value[:, :, node.head] = source[node.site][:, :, node.head]
            parts.append(written(model, node.site, value) - written(model, node.site, base[node.site]))
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
    senders = [Node(Part("embed"), "blocks.0.hook_resid_pre", -1, -1)]
    receivers: list[Node] = []
    sizes = {"head": cfg.n_heads, "kv_head": cfg.n_kv_heads}
    own = "head" if cfg.n_kv_heads == cfg.n_heads else "kv_head"
    for layer in range(cfg.n_layers):
        block, first, mixer = f"blocks.{layer}", 2 * layer, cfg.mixer(layer)
        if mixer == "attn":
            for reads, axis in READS.items():
                kind = "head" if axis == "head" else own
                receivers += [
                    Node(Part(kind, layer, head, reads), f"{block}.hook_{reads}_input", layer, first)
                    for head in range(sizes[axis])
                ]
            heads = [Part("head", layer, head) for head in range(cfg.n_heads)]
            senders += [Node(head, head.full_site, layer, first) for head in heads]
        elif mixer in MAMBAS:
            whole = Part("mixer", layer)
            receivers.append(Node(whole, f"{block}.hook_mixer_in", layer, first))
            parts = [Part("ssm_head", layer, head) for head in range(n_heads(cfg, layer))] or [whole]
            senders += [Node(part, part.full_site, layer, first) for part in parts]
        if cfg.mlp_in(layer):
            stage = first if cfg.parallel_attn_mlp and mixer is not None else first + 1
            mlp = Part("mlp", layer)
            receivers.append(Node(mlp, f"{block}.hook_mlp_in", layer, stage))
            senders.append(Node(mlp, mlp.full_site, layer, stage))
    end = cfg.n_layers
    receivers.append(Node(Part("logits"), f"blocks.{end - 1}.hook_resid_post", end, 2 * end))
    return Graph(tuple(senders), tuple(receivers))


@checked
def head_results(model: HookedModel, site: str, value: Tensor) -> Tensor:
    """What each head adds to the residual stream, without its layer's output bias.

    Where a norm follows the attention, what the bias adds depends on what the heads add: each has an equal part of it.

    Args:
        model: for the output weights.
        site: the full name of a sender's site that has heads: a `hook_z`, or a `hook_gated` of Mamba-2.
        value: its value [..., head, d_head].

    Returns:
        [..., head, d_model].
    """
    layer = model.hook_dict[site].layer()
    if site.endswith("hook_z"):
        results = model.head_results(layer, value)
        bias = model.bias_result(layer, value) if model.cfg.norms_after else None
        return results if bias is None else results + bias[..., None, :] / results.shape[-2]
    W_out = _mixer(model, layer).W_out.unflatten(1, value.shape[-2:])  # [d_model, head, d_head]
    return einsum(value, W_out, "... head d_head, d_model head d_head -> ... head d_model")


def written(model: HookedModel, site: str, value: Tensor) -> Tensor:
    """What a value at a sender's site adds to the residual stream, a layer's bias too [batch, pos, d_model]."""
    if model.hook_dict[site].site.axes[2:] == ("d_model",):
        return value
    results, bias = head_results(model, site, value).sum(2), output_bias(model, site)
    return results if bias is None else results + bias


def output_bias(model: HookedModel, site: str) -> Tensor | None:
    """What the layer of such a site adds beside what `head_results` gives [d_model]; None where that is all."""
    layer = model.hook_dict[site].layer()
    if not site.endswith("hook_z"):
        return _mixer(model, layer).b_out
    if model.cfg.norms_after:
        return None  # it is in the heads' results
    nothing = torch.zeros(model.cfg.n_heads, model.cfg.d_head, device=model.device, dtype=model.dtype)
    return model.bias_result(layer, nothing)


def _mixer(model: HookedModel, layer: int) -> MambaMixer:
    assert isinstance(model, GPT)
    mixer = model.block(layer).mixer
    assert mixer is not None
    return mixer


def _find(kind: str, name: str, places: Mapping[Part, int]) -> int:
    part = spelled(name)
    if part is None or part not in places:
        raise unknown(kind, name, [one.node for one in places])
    return places[part]


def n_heads(cfg: ModelConfig, layer: int) -> int:
    """How many heads a layer has, of attention or of Mamba-2; 0 in others."""
    kind = _head_kind(cfg, layer)
    return 0 if kind is None else axis_sizes(cfg)[kind]


def _head_kind(cfg: ModelConfig, layer: int) -> str | None:
    """The kind of part that the heads of a layer are; None in a layer without any."""
    own = MIXER_PARTS.get(cfg.mixer(layer) or "")
    return own.usual if own is not None and own.heads else None


def parse_head(name: str, model: HookedModel) -> tuple[int, int]:
    """`L9H6`, or `a9.h6`, as (layer, head); of a Mamba-2 layer `L9S6`, or `s9.h6`.

    Raises:
        UnknownName: another form, or a head that the model does not have.
    """
    part, cfg = spelled(name), model.cfg
    there = [layer for layer in range(cfg.n_layers) if n_heads(cfg, layer)]
    if not there:
        raise UnknownName(f"no head matches {name!r}; no layer of this model has heads")
    first, last = (_head(cfg, layer, number).name for layer, number in ((there[0], 0), (there[-1], None)))
    if part is None or part.kind not in ("head", "ssm_head") or part.reads is not None:
        raise UnknownName(f"no head matches {name!r}; heads are written {first} to {last}")
    layer, head = part.layer or 0, part.index or 0
    near = _head(cfg, min(there, key=lambda one: abs(one - layer)), head)
    if near != part:
        raise UnknownName(f"no head matches {name!r}; this model's are {first} to {last}, the nearest is {near.name}")
    return layer, head


def _head(cfg: ModelConfig, layer: int, head: int | None) -> Part:
    """A head of a layer that has some, the last one at most."""
    last = n_heads(cfg, layer) - 1
    return Part(_head_kind(cfg, layer) or "", layer, last if head is None else min(head, last))
