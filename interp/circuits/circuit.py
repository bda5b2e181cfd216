"""`Circuit`: a set of edges that is claimed to do a model's work, and how it was found.

1. A circuit is a mask over the edges of a `Graph`. Two circuits of one architecture have a union, an intersection and a
   comparison.
2. An edge counts only if it lies on a path from the embedding to the logits; `pruned` takes the others away. A head is
   reached when any of its inputs is (query, key or value), and a key-value head serves every head of its group. The
   one input of a state-space layer serves all of its heads.
3. `random_circuits` draws circuits of a size, as a control.
4. `save` writes a circuit as JSON with the names of its edges, `load` reads it back for a model of the same
   architecture.

Source: Hanna et al. 2024 ("Have Faith in Faithfulness", section 2, circuits as edges); names and pruning as in Mueller
et al. 2025 ("MIB", circuit localisation).
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import MOST, checked, is_whole, shown, whole_number
from interp.arguments import seed as check_seed
from interp.circuits.graph import Graph, Node
from interp.errors import InterpError
from interp.files.checksums import of_values
from interp.files.whole_files import read_saved, write_whole
from interp.hooked.model import HookedModel
from interp.resume.fingerprint import fingerprint

FORMAT = "interp.Circuit 1"

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, eq=False, repr=False)
class Circuit:
    """Some of the edges of a graph.

    Attributes:
        graph: all edges of the architecture.
        edges: which are in the circuit [sender, receiver] bool.
        scores: what an edge was judged by [sender, receiver], NaN where there is none; or None.
        found: how the circuit was found, in plain JSON values: method, metric, ablation, prompts, model, ...

    Raises:
        InterpError: edges or scores that do not fit the graph.
    """

    graph: Graph
    edges: Tensor
    scores: Tensor | None = None
    found: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.graph, Graph):
            raise InterpError(f"the graph of a circuit must be a Graph, not {shown(self.graph)}")
        shape = self.graph.allowed.shape
        for name, table in (("edges", self.edges), ("scores", self.scores)):
            if not isinstance(table, Tensor) and (table is not None or name == "edges"):
                raise InterpError(f"{name} of a circuit must be a tensor [sender, receiver], not {shown(table)}")
            if table is not None and table.shape != shape:
                raise InterpError(
                    f"{name} of a circuit are {list(table.shape)}, expected [sender, receiver] = {list(shape)}"
                )
        edges = self.edges.cpu() != 0
        beyond = (edges & ~self.graph.allowed).nonzero()
        if len(beyond):
            name = self.graph.edge_name(*beyond[0].tolist())
            raise InterpError(f"{len(beyond)} edges of the circuit do not exist in its graph, such as {name}")
        object.__setattr__(self, "edges", edges)
        if self.scores is not None:
            object.__setattr__(self, "scores", self.scores.detach().cpu().double())

    @property
    def n_edges(self) -> int:
        """How many edges it has."""
        return int(self.edges.sum())

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The senders that something in the circuit reads, in their order."""
        return tuple(self.graph.senders[at] for at in self.edges.any(1).nonzero()[:, 0].tolist())

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its edges, as `a1.h2->a3.h1<q>`, senders in their order."""
        return tuple(self.graph.edge_name(sender, receiver) for sender, receiver in self.edges.nonzero().tolist())

    def pruned(self) -> Circuit:
        """The same circuit without edges that lie on no path from the embedding to the logits."""
        return Circuit(self.graph, on_paths(self.graph, self.edges), self.scores, self.found)

    def __or__(self, other: Circuit) -> Circuit:
        """The edges of either."""
        return Circuit(self.graph, self.edges | self._same(other).edges, found={"union of": _both(self, other)})

    def __and__(self, other: Circuit) -> Circuit:
        """The edges of both."""
        return Circuit(self.graph, self.edges & self._same(other).edges, found={"shared by": _both(self, other)})

    @checked
    def compare(self, other: Circuit) -> dict[str, float]:
        """How much of this circuit another one has.

        Returns:
            `shared` (edges in both), `precision` (their share of `other`), `recall` (their share of this one),
            `jaccard` (their share of the union); NaN where there is nothing to take a share of.

        Raises:
            InterpError: a circuit of another architecture.
        """
        shared = int((self.edges & self._same(other).edges).sum())
        whole = {"precision": other.n_edges, "recall": self.n_edges, "jaccard": (self | other).n_edges}
        return {"shared": shared, **{name: shared / n if n else float("nan") for name, n in whole.items()}}

    def _same(self, other: Circuit) -> Circuit:
        if architecture(other.graph) != architecture(self.graph):
            raise InterpError(
                f"circuits of different architectures have no edges in common: {_differences(self.graph, other.graph)}"
            )
        return other

    def __repr__(self) -> str:
        method = f", found by {self.found['method']}" if "method" in self.found else ""
        return f"Circuit({self.n_edges} of {self.graph.n_edges} edges, {len(self.nodes)} nodes{method})"

    @checked
    def save(self, path: str | Path) -> Path:
        """Write the circuit as JSON, whole or not at all; `load` reads it back.

        Raises:
            OutputError: the file cannot be written.
        """
        path = Path(path)
        content = self._plain()
        text = json.dumps({**content, "digest": of_values(content)}, ensure_ascii=False, indent=1) + "\n"
        write_whole(path, text.encode(), what="a circuit")
        return path

    @classmethod
    @checked
    def load(cls, path: str | Path, model: HookedModel) -> Circuit:
        """The circuit that `save` wrote, for a model of the same architecture; its weights may be others.

        Raises:
            InterpError: a file that is missing, is something else, was changed since, or holds a circuit of another
                architecture.
        """
        content = read_saved(Path(path), FORMAT, what="a circuit", refuse=InterpError)
        digest = content.pop("digest", None)
        if digest != of_values(content):
            raise InterpError(f"{str(path)!r} was changed after it was saved: its circuit does not have its digest")
        graph = Graph.of(model)
        if content["architecture"] != architecture(graph):
            raise InterpError(
                f"{str(path)!r} holds a circuit of another architecture than this model's: "
                f"{_differences(content['architecture'], graph)}"
            )
        edges, scores = torch.zeros(graph.allowed.shape, dtype=torch.bool), None
        if content["scored"]:
            scores = torch.full(graph.allowed.shape, torch.nan, dtype=torch.float64)
        for name, score in content["edges"].items():
            at = graph.edge(name)
            edges[at] = True
            if scores is not None and score is not None:
                scores[at] = score
        return cls(graph, edges, scores, content["found"])

    def _plain(self) -> dict[str, Any]:
        """The circuit as plain JSON values; of the scores those of its own edges."""
        found = {}
        for sender, receiver in self.edges.nonzero().tolist():
            score = float("nan") if self.scores is None else float(self.scores[sender, receiver])
            found[self.graph.edge_name(sender, receiver)] = score if np.isfinite(score) else None
        return {
            "format": FORMAT,
            "architecture": architecture(self.graph),
            "found": dict(self.found),
            "scored": self.scores is not None,
            "edges": found,
        }


@checked
def origin(model: HookedModel, **facts: Any) -> dict[str, Any]:
    """What a circuit's `found` should say of the model, by name and by the SHA-256 of its configuration and weights.

    Args:
        model: the model; its weights are read once.
        facts: anything else, in plain JSON values, such as `method="eap"`.
    """
    weights = fingerprint([model.cfg, dict(model.state_dict())])
    return {**facts, "model": model.cfg.model_name, "weights": weights}


def architecture(graph: Graph) -> dict[str, int | bool | str]:
    """What two models must have in common for their edges to be the same."""
    layers: dict[int, list[Node]] = {}
    for node in graph.receivers[:-1]:
        layers.setdefault(node.layer, []).append(node)
    kinds = ["+".join(dict.fromkeys(node.kind for node in layer)) for layer in layers.values()]
    attention = next((layer for layer in layers.values() if layer[0].kind == "attn"), [])
    found: dict[str, int | bool | str] = {
        "layers": graph.receivers[-1].layer,
        "heads": sum(node.reads == "q" for node in attention),
        "kv_heads": sum(node.reads == "k" for node in attention),
        "mlps": any(kind.endswith("mlp") for kind in kinds),
        "parallel": any(layer[-1].kind == "mlp" and layer[-1].stage % 2 == 0 for layer in layers.values()),
    }
    if len(set(kinds)) > 1 or not attention:
        heads = [node.layer for node in graph.senders if node.kind == "ssm" and node.head is not None]
        found["ssm_heads"] = max((heads.count(layer) for layer in heads), default=0)
        # Such as "2 ssm, 1 attn+mlp"; layers of Mamba-2 are "ssm of heads".
        named = [f"{kind} of heads" if layer in heads else kind for layer, kind in zip(layers, kinds, strict=True)]
        found["layer_types"] = ", ".join(f"{len(list(run))} {kind}" for kind, run in itertools.groupby(named))
    return found


def feeds(graph: Graph) -> Tensor:
    """Which senders compute with what a receiver reads.  # [receiver, sender] bool

    The query input of a head feeds that head, a key or value input every head of its group, the input of an MLP or of a
    state-space layer all that it writes.
    """
    return torch.from_numpy(_feeds(graph))


@functools.lru_cache(maxsize=8)
def _feeds(graph: Graph) -> Mask:
    reads = [node.reads for node in graph.receivers]
    group = reads.count("q") // max(reads.count("k"), 1)
    table = np.zeros((len(graph.receivers), len(graph.senders)), dtype=bool)
    for at, node in enumerate(graph.receivers[:-1]):
        for to, sender in enumerate(graph.senders):
            if (sender.layer, sender.kind) != (node.layer, node.kind):
                continue
            if sender.head is None or node.head is None:
                table[at, to] = True
            else:
                table[at, to] = node.head == (sender.head if node.reads == "q" else sender.head // group)
    return table


def on_paths(graph: Graph, edges: Tensor) -> Tensor:
    """The edges among some that lie on a path from the embedding to the logits.  # [sender, receiver] bool"""
    table, feed = (edges.cpu() & graph.allowed).numpy(), _feeds(graph)
    reached = np.zeros(len(graph.senders), dtype=bool)
    for at, node in enumerate(graph.senders):
        inputs = feed[:, at]
        reached[at] = node.stage < 0 or bool((table[:, inputs] & reached[:, None]).any())
    used = np.zeros(len(graph.receivers), dtype=bool)
    used[-1] = True
    for at in range(len(graph.receivers) - 2, -1, -1):
        used[at] = bool((table[feed[at]] & used).any())
    return torch.from_numpy(table & reached[:, None] & used)


@checked
def random_circuits(graph: Graph, n: int, draws: int, *, seed: int = 0) -> Iterator[Circuit]:
    """Circuits of n edges drawn at random, all of them on paths from the embedding to the logits.

    1. Random walks from the logits back to the embedding are added until half of the edges are there. 2. The rest is
    drawn among the edges between the nodes that they went through. (Edges drawn without regard to paths would nearly
    all be pruned from a small circuit.)

    Args:
        graph: the edges there are.
        n: how many edges.
        draws: how many circuits.
        seed: of the draws.

    Raises:
        InterpError: more edges than there are.
    """
    if not is_whole(n) or not 0 <= n <= graph.n_edges:
        raise InterpError(f"a circuit of {shown(n)} edges cannot be drawn: this model has {graph.n_edges}")
    n, draws, seed = int(n), whole_number("draws", draws, least=0, most=MOST), check_seed(seed)
    for draw in range(draws):
        rng = np.random.default_rng([seed, n, draw])
        yield Circuit(graph, torch.from_numpy(_drawn(graph, n, rng)), found={"method": "random", "draw": draw})


def _drawn(graph: Graph, n: int, rng: np.random.Generator) -> Mask:
    allowed: Mask = graph.allowed.numpy()
    feed: Mask = feeds(graph).numpy()
    edges: Mask = allowed & (n == graph.n_edges)
    stuck = 0
    while (missing := n - int(edges.sum())) > 0:
        path = _walk(allowed, feed, rng) if stuck < 50 else _shortest(allowed, feed, min(missing, 2), rng)
        new = [edge for edge in path if not edges[edge]]
        stuck = 0 if new and len(new) <= missing else stuck + 1
        if stuck > 100:
            edges[:], stuck = False, 0  # what is there leaves no room for a whole path: begin again
        elif len(new) <= missing:
            for edge in new:
                edges[edge] = True
        senders = np.asarray(edges.any(1))
        if 2 * edges.sum() < n and stuck < 50 and not senders.all():
            continue
        receivers = np.asarray(feed[:, senders].any(1))
        receivers[-1] = True
        free = rng.permutation(np.argwhere(allowed & ~edges & senders[:, None] & receivers))
        chosen = free[: n - int(edges.sum())]
        edges[chosen[:, 0], chosen[:, 1]] = True
    return edges


def _walk(allowed: Mask, feed: Mask, rng: np.random.Generator) -> list[tuple[int, int]]:
    """A random path from the embedding to the logits, its edges from the last to the first."""
    receiver, path = allowed.shape[1] - 1, []
    while True:
        sender = int(rng.choice(allowed[:, receiver].nonzero()[0]))
        path.append((sender, receiver))
        if not feed[:, sender].any():
            return path
        receiver = int(rng.choice(feed[:, sender].nonzero()[0]))


def _shortest(allowed: Mask, feed: Mask, n: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """A path of one or two edges."""
    last = allowed.shape[1] - 1
    if n == 1:
        return [(0, last)]
    sender = int(rng.choice(np.flatnonzero(feed.any(0))))
    return [(sender, last), (0, int(rng.choice(feed[:, sender].nonzero()[0])))]


def _both(one: Circuit, other: Circuit) -> list[dict[str, Any]]:
    return [dict(one.found), dict(other.found)]


def _differences(one: Graph | Mapping[str, Any], other: Graph) -> str:
    first = architecture(one) if isinstance(one, Graph) else one
    second = architecture(other)
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return ", ".join(f"{name} {first.get(name)} and {second.get(name)}" for name in names)
