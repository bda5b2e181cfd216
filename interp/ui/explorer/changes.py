"""What a scene changes: a part, where, and how, written as `L9H6:zero`, `L9H6@3:patch` or `L5H5->L9H9 q:scale:0.5`.

1. A part has its name (`interp.names`): a head, a neuron, an expert, an MLP, ... What else a model has is named by its
   site: `resid_pre 5` and `state 3` are a site of a layer, `L3S2 state` and `L9H6 pattern` a part's place in it,
   `L9H6 q` what a head's query reads. `L5H5->L9H9 q` is what one part gives another.
2. `@3`, `@2-4`, `@3-end` and `@end` are positions; without, all are changed.
3. `zero` takes away, `patch` gives what the second prompt has, `scale:NUMBER` multiplies and `set:NUMBER` replaces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interp.arguments import real_number, shown
from interp.circuits.graph import Graph
from interp.circuits.paths import edge_edits
from interp.edits import Edit, Index, Variant
from interp.errors import ConfigError, PromptError, UnknownName
from interp.hooked.model import HookedModel
from interp.names import ARROW, PART_KINDS, READS, Part, spelled
from interp.prompts.pairs import PromptPairs
from interp.sites import axis_sizes, find_act_name, site_names

NUMBERED = ("scale", "set")
OPS = ("zero", "patch", *NUMBERED)
PLACE = re.compile(r"([0-9]{1,9}|end)(?:-([0-9]{1,9}|end))?")
SITE = re.compile(r"([A-Za-z_0-9.]+) ([0-9]{1,9})")
LAST = -1  # the last position of a prompt


@dataclass(frozen=True)
class Change:
    """One change of a scene.

    Attributes:
        what: the part, site or edge, as it was written.
        pos: the positions, as in an `Edit`; None for all.
        op: one of `OPS`.
        number: what it scales by or sets to.
    """

    what: str
    pos: Index
    op: str
    number: float | None = None

    @property
    def patches(self) -> bool:
        """Whether it copies from the second prompt."""
        return self.op == "patch"

    @property
    def of_edge(self) -> bool:
        """Whether it changes what one part gives another."""
        return ARROW in self.what

    @property
    def factor(self) -> float | None:
        """What the part that an edge carries is multiplied by; None where it is patched."""
        return 0.0 if self.op == "zero" else self.number

    def edits(self, model: HookedModel, pairs: PromptPairs) -> list[Edit]:
        """What it changes in the run of a scene's prompts.

        Raises:
            InterpError: what this model does not have.
        """
        if self.of_edge:
            return edge_edits(model, pairs, self.what, factor=self.factor, pos=self.pos)
        return [self.edit(model)]

    def edit(self, model: HookedModel) -> Edit:
        """The same of anything but an edge."""
        site, where = _place(model, self.what)
        if self.pos is not None:
            name = find_act_name(site, where.get("layer"), site_names(model.cfg))  # type: ignore[arg-type]
            axes = site_names(model.cfg)[name].axes if name in site_names(model.cfg) else ()
            where["query" if "query" in axes else "pos"] = self.pos
        made = {
            "zero": lambda: Edit(site, where, "zero"),
            "patch": lambda: Edit(site, where, "set", "source"),
            "scale": lambda: Edit(site, where, "scale", self.number),
            "set": lambda: Edit(site, where, "set", self.number),
        }[self.op]()
        made.name(model.cfg)  # refuses what this model does not have
        return made


def change_of(text: str) -> Change:
    """A change from its text.

    Raises:
        ConfigError: it is not written as changes are.
    """
    target, _, rest = text.partition(":")
    what, at, place = target.partition("@")
    op, _, number = rest.partition(":")
    if op not in OPS or (op in NUMBERED) != bool(number):
        raise ConfigError(
            "a change is written PART:zero, PART:patch, PART:scale:NUMBER or PART:set:NUMBER, such as L9H6:zero, "
            f"not {shown(text)}"
        )
    if op == "set" and ARROW in what:
        raise ConfigError(
            f"what one part gives another can be taken away, patched or scaled, and not set: {shown(text)}"
        )
    pos = _positions(place, text) if at else None
    if op not in NUMBERED:
        return Change(what.strip(), pos, op)
    word = "factor" if op == "scale" else "value"
    try:
        return Change(what.strip(), pos, op, real_number(f"the {word} of a change", float(number)))
    except ValueError as error:  # no number, or no finite one
        raise ConfigError(f"the {word} of a change must be a finite number, not {shown(number)}") from error


def _positions(place: str, text: str) -> Index:
    """The positions after `@`."""
    found = PLACE.fullmatch(place.strip())
    if found is None:
        raise ConfigError(f"positions are written @3, @2-4, @3-end or @end, as in L9H6@3:zero, not {shown(text)}")
    first, last = (None if one is None else LAST if one == "end" else int(one) for one in found.groups())
    if last is None or first == last:
        return first
    if first == LAST or (last != LAST and last < first):  # type: ignore[operator]
        raise ConfigError(f"the positions {place.strip()!r} end before they begin")
    return slice(first, None if last == LAST else last + 1)


def _place(model: HookedModel, what: str) -> tuple[str, dict[str, Index]]:
    """The short name of a site, and where in it, of a part or site as it was written."""
    part, site = spelled(what), ""
    if part is None and (found := SITE.fullmatch(what)):
        return found[1], {"layer": int(found[2])}
    if part is None and " " in what:
        name, _, site = what.rpartition(" ")
        part = spelled(name)
    if part is None:
        part = Part.parse(what)  # refuses it
    where = _numbered(part)
    if part.reads is not None:
        if READS[part.reads] == "kv_head" and part.kind == "head":
            where = {"layer": part.layer, "kv_head": _kv_head(model, part)}
        return f"{part.reads}_input", where
    if not site and not part.row.site:
        raise UnknownName(f"{part.name} has no single site that holds its output, so it cannot be changed")
    return site or part.row.site, where


def _numbered(part: Part) -> dict[str, Index]:
    """Where a part is: its layer, and its number on the axis of its kind."""
    layer: dict[str, Index] = {} if part.layer is None else {"layer": part.layer}
    return layer | ({} if part.row.axis is None else {part.row.axis: part.index})


def _kv_head(model: HookedModel, part: Part) -> int:
    """The key-value head that a query head reads."""
    assert part.index is not None
    return part.index // max(model.cfg.n_heads // max(model.cfg.n_kv_heads, 1), 1)


def changes_of(texts: Sequence[str]) -> list[Change]:
    """All changes of a scene."""
    return [change_of(text) for text in texts]


def check(model: HookedModel, changes: Sequence[Change], length: int) -> None:
    """Refuse what a model does not have, and positions beyond a prompt, before anything runs.

    Raises:
        UnknownName: a part that the model does not have.
        PromptError: a position that the prompt does not have.
    """
    for change in changes:
        last = change.pos.stop - 1 if isinstance(change.pos, slice) and change.pos.stop else change.pos
        last = last.start if isinstance(last, slice) else last
        if isinstance(last, int) and last >= length:
            raise PromptError(f"position {last} of a change is beyond the prompt, which has {length} tokens")
        if change.of_edge:
            Graph.of(model)  # refuses models without
        else:
            change.edit(model)


def variant_of(model: HookedModel, pairs: PromptPairs, changes: Sequence[Change]) -> Variant:
    """The edits of all changes, in their order."""
    return Variant([edit for change in changes for edit in change.edits(model, pairs)])


def examples(model: HookedModel) -> list[dict[str, Any]]:
    """The kinds of part that a model has, each with the names of the first and of the last, for a page to offer."""
    names, sizes, found = site_names(model.cfg), axis_sizes(model.cfg), []
    for kind, row in PART_KINDS.items():
        if not row.site or "{layer}" not in row.name:
            continue
        layers = [at for at in range(model.cfg.n_layers) if _has(names, row.site, at, row.axis)]
        if layers:
            most = 1 if row.axis is None else sizes.get(row.axis, 1)
            ends = (
                Part(kind, at, None if row.axis is None else i) for at, i in ((layers[0], 0), (layers[-1], most - 1))
            )
            found.append({"kind": kind, "word": row.word, "names": list(dict.fromkeys(one.name for one in ends))})
    return found


def _has(names: Any, site: str, layer: int, axis: str | None) -> bool:
    full = find_act_name(site, layer, names)
    return full in names and (axis is None or axis in names[full].axes)
