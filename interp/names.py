"""The parts of a model and what they are called: `L9H6`, `L9S3`, `MLP 9`, `mixer 9`, and the inputs of heads, `L9H6 q`.

1. `PART_KINDS` is the one table of kinds of parts: how each is named, which site holds what it writes, and which axis
   of that site tells parts of one layer apart. A kind is also the column of tables that holds a part's number.
2. `Part` is one of them: it has its name, reads one back (`Part.parse`), and sorts in the order of computation.
3. Files of circuits name the same parts as Hanna et al. 2024 and Mueller et al. 2025 do: `a9.h6`, `m9`, `a9.h6<q>`, and
   edges `a1.h2->a3.h1<q>`. `Part.node` and `edge_name` write these, and `Part.parse` reads them, too.
4. `MIXER_PARTS` says what the mixer of a layer is taken apart into: attention, Mamba-1 and Mamba-2 differ in that.

Source of the second spelling: Hanna et al. 2024 ("Have Faith in Faithfulness") and Mueller et al. 2025 ("MIB").
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from interp.arguments import checked, is_whole, plain, shown, whole_number
from interp.errors import UnknownName, check_choice, nearest, unknown
from interp.sites import get_act_name

ARROW = "->"
READS = {"q": "head", "k": "kv_head", "v": "kv_head"}
"""What a head reads by (query, key and value), and the axis that tells these inputs of a layer apart."""

READ_WORDS = {"q": "queries", "k": "keys", "v": "values"}
"""The same in words."""


@dataclass(frozen=True)
class PartKind:
    """One row of the table of kinds.

    Attributes:
        name: how tables and figures write such a part.
        word: what sentences call it.
        site: the short name of the site that holds what it writes; empty where that is not one site.
        axis: the axis of the site that tells the parts of a layer apart; None for a whole layer's, or the model's.
        node: how files of circuits write it; None where they do not have it.
        inputs: whether it reads by query, key and value inputs of its own.
    """

    name: str
    word: str
    site: str = ""
    axis: str | None = None
    node: str | None = None
    inputs: bool = False

    @property
    def plural(self) -> str:
        """What sentences call several of them."""
        return f"{self.word}s"


# In the order of computation within a layer, which is how parts are sorted.
PART_KINDS: dict[str, PartKind] = {
    "embed": PartKind("embed", "embedding", "embed", node="input"),
    "pos_embed": PartKind("pos_embed", "position embedding", "pos_embed"),
    "token_type_embed": PartKind("token_type_embed", "segment embedding", "token_type_embed"),
    "head": PartKind("L{layer}H{index}", "head", "z", "head", "a{layer}.h{index}", inputs=True),
    "encoder_head": PartKind("E{layer}H{index}", "encoder head", "encoder.z", "head"),
    "cross_head": PartKind("L{layer}X{index}", "cross-attention head", "cross_attn.z", "head"),
    "kv_head": PartKind("L{layer}KV{index}", "key-value head", "", "kv_head", "a{layer}.kv{index}", inputs=True),
    "ssm_head": PartKind("L{layer}S{index}", "state-space head", "gated", "ssm_head", "s{layer}.h{index}"),
    "ssm_group": PartKind("L{layer}G{index}", "state-space group", "", "ssm_group"),
    "channel": PartKind("L{layer}C{index}", "channel", "gated", "channel"),
    "attention": PartKind("attention {layer}", "attention", "attn_out"),
    "mixer": PartKind("mixer {layer}", "mixer", "out", node="s{layer}"),
    "expert": PartKind("L{layer}E{index}", "expert", "expert_out", "expert"),
    "neuron": PartKind("L{layer}N{index}", "neuron", "post", "d_mlp"),
    "mlp": PartKind("MLP {layer}", "MLP", "mlp_out", node="m{layer}"),
    "logits": PartKind("logits", "unembedding", node="logits"),
}
ORDER = list(PART_KINDS)
UNITS = tuple(kind for kind, row in PART_KINDS.items() if row.axis is not None)
"""Kinds of which a layer has several: each is the column of tables that holds their numbers."""

WHOLES = {row.site: kind for kind, row in PART_KINDS.items() if row.site and row.axis is None and "{layer}" in row.name}
"""The sites that hold what a whole attention, mixer or MLP adds to the residual stream, and the kind of part it is."""


@dataclass(frozen=True)
class MixerParts:
    """What the mixer of one kind of layer is taken apart into.

    Attributes:
        whole: the kind of part that it is as a whole.
        unit: the kind of its smallest parts.
        usual: the kind that studies take where none is asked for: its heads, or the whole of one without heads.
    """

    whole: str
    unit: str
    usual: str

    @property
    def heads(self) -> bool:
        """Whether it has heads."""
        return self.usual == self.unit


MIXER_PARTS: dict[str, MixerParts] = {
    "attn": MixerParts(whole="attention", unit="head", usual="head"),
    "mamba2": MixerParts(whole="mixer", unit="ssm_head", usual="ssm_head"),
    "mamba": MixerParts(whole="mixer", unit="channel", usual="mixer"),
}
"""By what mixes positions in a layer, as `ModelConfig.mixer` says it."""


@functools.total_ordering
@dataclass(frozen=True)
class Part:
    """A part of a model, or one of a head's inputs.

    Attributes:
        kind: a name of `PART_KINDS`.
        layer: its layer; None for the embeddings and the unembedding.
        index: its number in the layer, for a kind of which a layer has several.
        reads: "q", "k" or "v" for that input of a head.

    Raises:
        UnknownName: a kind that does not exist, or a layer, number or input where the kind has none (or needs one).

    >>> Part("head", 9, 6).name, Part("mixer", 9).name, Part("kv_head", 3, 0, "k").name, Part("mlp", 9).node
    ('L9H6', 'mixer 9', 'L3KV0 k', 'm9')
    """

    kind: str
    layer: int | None = None
    index: int | None = None
    reads: str | None = None

    def __post_init__(self) -> None:
        check_choice("kind of part", self.kind, PART_KINDS)
        row = self.row
        for name, needed in (("layer", "{layer}" in row.name), ("index", row.axis is not None)):
            given = getattr(self, name)
            if needed:
                object.__setattr__(self, name, whole_number(name, given, least=0, refuse=UnknownName))
            elif given is not None:
                raise UnknownName(f"a part of the kind {self.kind!r} has no {name}: leave out {shown(given)}")
        if self.reads is not None:
            check_choice(f"input of the kind {self.kind!r}", self.reads, READS if row.inputs else ())

    @property
    def row(self) -> PartKind:
        """What is true of every part of its kind."""
        return PART_KINDS[self.kind]

    @functools.cached_property
    def name(self) -> str:
        """As tables and figures write it."""
        return _filled(self.row.name, self) + ("" if self.reads is None else f" {self.reads}")

    @functools.cached_property
    def node(self) -> str:
        """As files of circuits write it.

        Raises:
            UnknownName: a kind of part that they do not have.
        """
        if self.row.node is None:
            raise UnknownName(
                f"{self.name} is not a node of a circuit; nodes are heads (L9H6, L9S3), mixers (mixer 9), MLPs (MLP 9)"
            )
        return _filled(self.row.node, self) + ("" if self.reads is None else f"<{self.reads}>")

    @property
    def full_site(self) -> str:
        """The full name of the site that holds what it writes.

        Raises:
            UnknownName: a part whose output is not one site, such as a key-value head.
        """
        if not self.row.site:
            raise UnknownName(f"{self.name} has no single site that holds its output")
        return get_act_name(self.row.site, self.layer)

    @property
    def labels(self) -> dict[str, Any]:
        """What a row of a table says of it: `component, site, layer`, and its number in the column of its kind."""
        own = {} if self.index is None else {self.kind: self.index}
        return {"component": self.name, "site": self.row.site, "layer": self.layer, **own}

    def __lt__(self, other: Part) -> bool:
        return self._place < other._place

    @functools.cached_property
    def _place(self) -> tuple[float, int, int, str]:
        """Where it stands in the order of computation."""
        layer = (
            -1
            if self.kind in ("embed", "pos_embed", "token_type_embed")
            else float("inf")
            if self.layer is None
            else self.layer
        )
        return layer, ORDER.index(self.kind), -1 if self.index is None else self.index, self.reads or ""

    @classmethod
    @checked
    def parse(cls, text: str, among: Iterable[Part] | None = None) -> Part:
        """The part of a name, in either spelling, whatever its capitals and spaces.

        Args:
            text: `L9H6`, `a9.h6`, `MLP 9`, `m9`, ...; an input as `L9H6 q`, `L9H6:q`, `L9H6<q>` or `a9.h6<q>`.
            among: the parts that there are; None allows every layer and number.

        Raises:
            UnknownName: another name, or a part that is not among them; the message has the nearest valid ones.

        >>> Part.parse("L9H9:q") == Part.parse("a9.h9<q>") == Part("head", 9, 9, "q")
        True
        >>> Part.parse("L9Q6")
        Traceback (most recent call last):
            ...
        interp.errors.UnknownName: no part matches 'L9Q6'; did you mean 'L9X6' or 'L9S6' or 'L9N6'?
        """
        part = spelled(text)
        if among is not None:
            there = list(among)
            if part not in there:
                raise unknown("part", text, [one.name for one in there])
        if part is None:
            raise _unknown(text)
        return part


@functools.lru_cache(maxsize=65536)
def spelled(text: str) -> Part | None:
    """As `Part.parse`; None where the text is no part's name."""
    squeezed = re.sub(r"\s", "", text).lower()
    for kind, form in FORMS:
        if found := form.fullmatch(squeezed):
            given = found.groupdict()
            layer, index = (None if given.get(one) is None else int(given[one]) for one in ("layer", "index"))
            return Part(kind, layer, index, given.get("reads"))
    return None


def part_of(row: Mapping[str, Any]) -> Part | None:
    """The part that a row of a table is about, or None where it is about something else.

    Args:
        row: column -> value; what counts are `layer`, the columns named for kinds of parts, and `site`, which tells
            which of a layer's parts is meant where none of them has a number.

    >>> part_of({"layer": 9, "head": None, "ssm_head": 6}), part_of({"layer": 9, "site": "mlp_out"})
    (Part(kind='ssm_head', layer=9, index=6, reads=None), Part(kind='mlp', layer=9, index=None, reads=None))
    """
    layer = _number(row.get("layer"))
    if layer is None:
        return None
    for kind in UNITS:
        index = _number(row.get(kind))
        if index is not None:
            return Part(kind, layer, index)
    whole = WHOLES.get(str(row.get("site")))
    return None if whole is None else Part(whole, layer)


@checked
def edge_name(sender: Part, receiver: Part) -> str:
    """An edge as files of circuits write it: `a1.h2->a3.h1<q>`."""
    return f"{sender.node}{ARROW}{receiver.node}"


@checked
def edge_ends(name: str) -> tuple[str, str]:
    """The names of an edge's sender and receiver.

    Raises:
        UnknownName: a name without an arrow.
    """
    sender, arrow, receiver = name.partition(ARROW)
    if not arrow:
        raise UnknownName(f"no edge matches {name!r}; edges are written 'a0.h1->a2.h0<q>' or 'm3->logits'")
    return sender.strip(), receiver.strip()


def _filled(template: str, part: Part) -> str:
    return template.format(layer=part.layer, index=part.index)


def _form(template: str, inputs: bool) -> re.Pattern[str]:
    """What a name looks like without spaces and capitals."""
    form = re.escape(re.sub(r"\s", "", template).lower())
    for number in ("layer", "index"):
        form = form.replace(re.escape(f"{{{number}}}"), f"(?P<{number}>[0-9]{{1,9}})")
    return re.compile(form + (r"(?:[:<]?(?P<reads>[qkv])>?)?" if inputs else ""))


FORMS = [
    (kind, _form(template, row.inputs))
    for kind, row in PART_KINDS.items()
    for template in dict.fromkeys((row.name, row.node))
    if template is not None
]


def _number(value: Any) -> int | None:
    """A whole number of a table, which may be missing, or stand in a column of floats because others are."""
    value = plain(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if is_whole(value) else None


def _unknown(text: str) -> UnknownName:
    """An error for a text that names no part, with the nearest names that have the same numbers in them."""
    layer, index, *_ = [*(int(number) for number in re.findall(r"[0-9]{1,9}", text)), 0, 0]
    names = [row.name.format(layer=layer, index=index) for row in PART_KINDS.values()]
    if not nearest(text, names):
        return UnknownName(f"no part matches {text!r:.200}; parts are named {', '.join(names)}")
    return unknown("part", text, names)
