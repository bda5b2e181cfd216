"""What an edit can reach: where in the depth of a model it acts, at which positions, and which rows it needs.

Depth is counted in steps, two for each layer: before positions look at one another (2 layer), and after (2 layer + 1);
the unembedding is the last. Every prompt of a variant has its own rows:

1. An edit changes a value at some positions. One that copies from a run changes it only where the runs differ: from
   the first token in which they do, if the model is causal. One that adds a tensor changes it where that is not 0.
2. Within a step each position is by itself. When positions look at one another, a change at one reaches all that look
   at it: later ones in a causal model, all of them in a bidirectional one. A changed query reaches itself alone. In a
   layer that calls a shared transformer block all of the block comes before the mixer, which takes its queries further.
3. So the rows of a variant begin with its first edit and only grow on the way down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from interp.arguments import entries
from interp.config import ModelConfig
from interp.edits import Edit, Index, Variant
from interp.errors import PromptError
from interp.hooked.model import HookedModel
from interp.prompts.pairs import PromptPairs
from interp.sites import AFTER_LAYERS, NORMS, Site, axis_sizes, in_shared_block, unknown_site

Mask = np.ndarray[tuple[int, int], np.dtype[np.bool_]]  # [prompt, pos]
Numbers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Differs = Callable[["Placed"], Mask]

# What changes one query alone, and what changes keys, values or all of a position's input; the rest comes after
# positions have looked at one another.
QUERY_SITES = {
    "q", "rot_q", "q_input", "q_norm.scale", "q_norm.normalized", "attn_scores", "pattern", "sinks",
    "C", "y", "gate", "mixer.pattern",
}  # fmt: skip
INPUT_SITES = {
    "embed", "pos_embed", "token_type_embed", "embed.ln.scale", "embed.ln.normalized", "resid_pre", "ln1.scale",
    "ln1.normalized",
    "k", "v", "rot_k", "k_input", "v_input", "k_norm.scale", "k_norm.normalized",
    "shared_block_in", "shared_block_mid", "shared_block_out", "mixer_in", "ln_mixer.scale", "ln_mixer.normalized",
    "in", "conv", "delta", "B", "state",
}  # fmt: skip
# What depends on the token and its position alone, in the first layer.
LOCAL_SITES = (QUERY_SITES | INPUT_SITES) - {
    "attn_scores",
    "pattern",
    "shared_block_mid",
    "shared_block_out",
    "ln_mixer.scale",
    "ln_mixer.normalized",
    "conv",
    "delta",
    "B",
    "C",
    "state",
    "y",
    "mixer.pattern",
}
# What depends on more, if the layer calls a shared block before its mixer.
AFTER_SHARED = {"mixer_in", "in", "gate"}


@dataclass(frozen=True, eq=False)
class Placed:
    """An edit, and where it acts on given prompts.

    Attributes:
        edit: the edit.
        name: its full site name.
        site: its row in the table of sites.
        step: where in the depth.
        rows: the positions (queries, of a pattern) that it names [prompt, pos], real ones only.
        indices: for every other axis of the site those that it names [prompt, how many]; None for all of them.
            Keys that are named for different numbers in different prompts are padded with -1.
        query: whether it reaches its own row alone where positions look at one another.
    """

    edit: Edit
    name: str
    site: Site
    step: int
    rows: Mask
    indices: tuple[Numbers | None, ...]
    query: bool = False


class Placer:
    """Finds the place of edits on given prompts; remembers what edits have in common.

    Args:
        model: its configuration and sites.
        pairs: the prompts.
        read: the positions that the metric reads [prompt, pos]; what is changed after the last attention, or in its
            queries, matters there alone.
    """

    def __init__(self, model: HookedModel, pairs: PromptPairs, read: Mask) -> None:
        self.model = model
        self.pairs = pairs
        self.real: Mask = pairs.mask.cpu().numpy()
        self.read = read
        self._rows: dict[object, Mask] = {}
        self._steps: dict[str, tuple[int, bool]] = {}
        self._indices: dict[object, Numbers] = {}

    def place(self, edit: Edit) -> Placed:
        """The place of one edit.

        Raises:
            UnknownName: a site, layer, head or role that does not exist.
            PromptError: a position outside some prompt.
        """
        name = edit.name(self.model.cfg)
        point = self.model.hook_dict.get(name)
        if point is None:
            raise unknown_site(name, self.model.hook_dict)
        site = point.site
        axes = [axis for axis in site.axes if axis != "batch"]
        row_axis = "query" if "query" in axes else "pos"
        axes.remove(row_axis)
        if name not in self._steps:
            layer = point.layer() if site.per_layer else None
            query = site.short in QUERY_SITES and not _before_mixer(site, layer, self.model.cfg)
            self._steps[name] = step_of(site, layer, self.model.cfg), query
        step, query = self._steps[name]
        late = step + query > 2 * (self.model.cfg.n_layers - 1)
        return Placed(
            edit,
            name,
            site,
            step,
            self._added_rows(edit, site, self._named_rows(edit.where.get(row_axis), late)),
            tuple(self._named(axis, edit.where.get(axis)) for axis in axes),
            query,
        )

    def _named_rows(self, index: Index, late: bool) -> Mask:
        key = (_key(index), late)
        if key not in self._rows:
            rows = self.real
            if isinstance(index, slice):
                rows = self._sliced(index)
            elif index is not None:
                rows = np.zeros_like(self.real)
                np.put_along_axis(rows, self.pairs.positions(index).cpu().numpy(), True, axis=1)
            self._rows[key] = rows & self.read if late else rows
        return self._rows[key]

    def _added_rows(self, edit: Edit, site: Site, rows: Mask) -> Mask:
        """Those of the rows that an edit names at which it adds anything: all of them, unless it adds a tensor."""
        source = edit.source
        if edit.op != "add" or not isinstance(source, Tensor) or tuple(site.axes[:2]) != ("batch", "pos"):
            return rows
        if source.ndim != len(site.axes) or source.shape[:2] != rows.shape:
            return rows
        key = ("added", id(source), id(rows))
        if key not in self._rows:
            self._rows[key] = rows & (source != 0).flatten(2).any(2).cpu().numpy()
        return self._rows[key]

    def _sliced(self, index: slice) -> Mask:
        """The positions of each prompt that a slice names, which may be more in one than in another."""
        rows = np.zeros_like(self.real)
        for row, length in zip(rows, self.real.sum(1).tolist(), strict=True):
            row[: int(length)][index] = True
        if not rows.any():
            raise PromptError(f"{index} names no position of any prompt")
        return rows

    def _named(self, axis: str, index: Index) -> Numbers | None:
        if index is None and (axis != "key" or bool(self.real.all())):
            return None
        key = (axis, _key(index))
        if key not in self._indices:
            self._indices[key] = self._numbers(axis, index)
        return self._indices[key]

    def _numbers(self, axis: str, index: Index) -> Numbers:
        n, width = self.real.shape
        if axis == "key" and (index is None or isinstance(index, slice)):
            # Padding is left out: given a score it would be looked at.
            there = np.where(self.real if index is None else self._sliced(index), np.arange(width), width)
            kept = np.sort(there, axis=1)[:, : int((there < width).sum(1).max())]
            return np.where(kept < width, kept, -1)
        if axis == "key":
            assert index is not None
            found = np.sort(self.pairs.positions(index).cpu().numpy(), axis=1)
        else:
            assert not isinstance(index, str)
            one = np.unique(entries(axis, index, axis_sizes(self.model.cfg)[axis]))
            found = np.broadcast_to(one, (n, len(one)))
        return found


class Placement:
    """Where the edits of many variants act, and where what they copy can differ from the base run.

    It follows from the prompts and not from what a run computes, so that it is found once: the plan asks for all
    prompts, a chunk for those of its block. A variant is placed when somebody first asks for it; a worker of a cluster,
    which gets the variants without their placement, places those of its own chunks alone.

    Args:
        model, pairs, variants, base, source: as `interp.sweep` takes them.
        read: as `Placer` takes it.
    """

    def __init__(
        self,
        model: HookedModel,
        pairs: PromptPairs,
        variants: Sequence[Variant],
        read: Mask,
        *,
        base: str,
        source: str,
    ) -> None:
        self.model = model
        self.pairs = pairs
        self.variants = variants
        self.differs = token_differences(pairs, base, source, model.cfg)
        self._placer = Placer(model, pairs, read)
        self._edits: dict[int, tuple[Placed, ...]] = {}

    @property
    def real(self) -> Mask:
        """[prompt, pos], False at padding."""
        return self._placer.real

    def edits(self, variant: int) -> tuple[Placed, ...]:
        """The edits of a variant, which is given by its number.

        Raises:
            UnknownName, PromptError: as `Placer.place`.
        """
        if variant not in self._edits:
            self._edits[variant] = tuple(self._placer.place(edit) for edit in self.variants[variant].edits)
        return self._edits[variant]

    def block(self, prompts: tuple[int, int]) -> BlockPlacement:
        """What it says of some neighbouring prompts, first and after the last."""
        return BlockPlacement(self, prompts)


class BlockPlacement:
    """A `Placement` for a block of prompts: as wide as the longest of them, counted from the first of them."""

    def __init__(self, whole: Placement, prompts: tuple[int, int]) -> None:
        self._whole = whole
        self._prompts = slice(*prompts)
        self._width = int(whole.real[self._prompts].sum(1).max())
        self._cut: dict[int, Numbers] = {}
        self.real = self._rows(whole.real)

    def edits(self, variant: int) -> list[Placed]:
        """The edits of a variant, which is given by its number."""
        return [
            replace(
                edit,
                rows=self._rows(edit.rows),
                indices=tuple(None if index is None else self._own(index) for index in edit.indices),
            )
            for edit in self._whole.edits(variant)
        ]

    def differs(self, placed: Placed) -> Mask:
        """Where the source run can differ from the base run at the site of an edit, judged by tokens."""
        return self._rows(self._whole.differs(placed))

    def _rows(self, rows: Mask) -> Mask:
        """[prompt, pos] of all prompts -> those of the block."""
        return rows[self._prompts, : self._width]

    def _own(self, index: Numbers) -> Numbers:
        """[prompt, how many] of all prompts -> those of the block, without columns that are padding in each of them."""
        if id(index) not in self._cut:  # thousands of edits share few indices
            own = index[self._prompts]
            self._cut[id(index)] = own[:, : int((own >= 0).sum(1).max())]
        return self._cut[id(index)]


def _key(index: Index) -> object:
    """What tells the index of an edit from others: slices are no keys of a dictionary."""
    return ("slice", index.start, index.stop, index.step) if isinstance(index, slice) else index


def step_of(site: Site, layer: int | None, cfg: ModelConfig) -> int:
    """Where in the depth of a model a site is."""
    if layer is None:
        return 2 * cfg.n_layers if site.template.startswith(AFTER_LAYERS) else 0
    if _before_mixer(site, layer, cfg):
        return 2 * layer
    on_stream = cfg.norms_on_stream and NORMS.match(site.template) is not None  # after the attention
    return 2 * layer + (on_stream or site.short not in QUERY_SITES | INPUT_SITES)


def _before_mixer(site: Site, layer: int | None, cfg: ModelConfig) -> bool:
    """Whether a site is of a shared block, so that a layer's mixer comes after it."""
    return layer is not None and cfg.shares(layer) and in_shared_block(site)


def rows_first(value: Tensor, site: Site) -> Tensor:
    """[batch, head, query, key] with queries in front of heads, and back again; everything else as it is."""
    return value.transpose(1, 2) if "query" in site.axes else value


def token_differences(pairs: PromptPairs, base: str, source: str, cfg: ModelConfig) -> Differs:
    """Where a run of `source` can differ from one of `base`, judged by their tokens."""
    own = LOCAL_SITES - AFTER_SHARED if cfg.n_layers and cfg.shares(0) else LOCAL_SITES
    real = pairs.mask.cpu().numpy()
    local: Mask = (getattr(pairs, base) != getattr(pairs, source)).cpu().numpy() & real
    later = np.logical_or.accumulate(local, axis=1) & real if cfg.causal else local.any(1, keepdims=True) & real
    nowhere = np.zeros_like(real)

    def differs(placed: Placed) -> Mask:
        if placed.edit.run == "base" or placed.site.short in ("pos_embed", "token_type_embed"):
            return nowhere
        return local if placed.step == 0 and placed.site.short in own else later

    return differs


def value_differences(base: Mapping[str, Tensor], source: Mapping[str, Tensor], tokens: Differs) -> Differs:
    """Where two runs do differ, bit for bit, at the places that an edit names; where nothing was stored, by tokens."""
    known: dict[object, np.ndarray[Any, np.dtype[np.bool_]]] = {}

    def differs(placed: Placed) -> Mask:
        may = tokens(placed)
        if not may.any() or placed.name not in base or placed.name not in source:
            return may
        named = tuple(index is not None for index in placed.indices)
        if (placed.name, named) not in known:
            there = rows_first(base[placed.name] != source[placed.name], placed.site)
            for axis in reversed(range(len(named))):
                there = there if named[axis] else there.any(2 + axis)
            known[placed.name, named] = there.cpu().numpy()
        there_too = known[placed.name, named]  # [prompt, pos, the named axes]
        indices = [index for index in placed.indices if index is not None]
        at: list[Numbers] = []
        for axis, index in enumerate((np.arange(may.shape[0])[:, None], np.arange(may.shape[1])[None], *indices)):
            shape = [1] * (2 + len(indices))  # every index has an axis of its own; they differ from prompt to prompt
            shape[0], shape[axis] = len(index), index.shape[1] if axis else len(index)
            at.append(index.reshape(shape))
        found = there_too[tuple(at)]
        return may & found.any(axis=tuple(range(2, found.ndim)))

    return differs


def changed(placed: Placed, differs: Differs) -> Mask:
    """The positions where an edit may change anything [prompt, pos]."""
    if placed.edit.op == "set" and placed.edit.run is not None:
        return placed.rows & differs(placed)
    return placed.rows


RowsByStep = tuple[tuple[int, Mask], ...]  # (step, the rows that are run from this step on), in order of depth


def rows_by_step(changes: Sequence[tuple[Placed, Mask]], causal: bool, real: Mask, n_layers: int) -> RowsByStep:
    """The rows that a variant needs: at which steps they become more, and which they are from there on.

    Args:
        changes: the edits and where each may change anything, from `changed`.
        causal: whether positions look only at earlier ones.
        real: [prompt, pos], False at padding.
        n_layers: how deep the model is.
    """
    steps: dict[int, list[tuple[Placed, Mask]]] = {}
    for edit, rows in changes:
        if rows.any():
            steps.setdefault(edit.step, []).append((edit, rows))
    found: dict[int, Mask] = {}
    now = np.zeros_like(real)
    done = n_layers  # the layer of the step before; at first none
    for step in sorted(steps):
        layer = step // 2
        if done < layer:
            # Positions look at what is changed so far in the layer after the last edit; from there on down to this step
            # no more rows are reached: whoever looks at one of them is one of them.
            now = found[2 * (done + 1)] = _looking_at(now, causal, real)
        queries = [rows for edit, rows in steps[step] if edit.query]
        others = [rows for edit, rows in steps[step] if not edit.query]
        now = np.logical_or.reduce([now, *others])
        if step % 2 == 0 and layer < n_layers:
            # Positions look at one another within this step; a changed query reaches its own row alone.
            now = np.logical_or.reduce([_looking_at(now, causal, real), *queries])
        found[step] = now
        done = layer
    if steps and done + 1 < n_layers:
        found[2 * (done + 1)] = _looking_at(now, causal, real)
    return tuple(sorted(found.items(), key=lambda step_rows: step_rows[0]))


def start_positions(found: Iterable[RowsByStep]) -> tuple[int, ...]:
    """The positions after the first at which rows of any variant begin, or go on after a gap, at a step where positions
    look at one another: before them a recurrence needs the base run's state.
    """
    masks = {id(rows): rows for steps in found for step, rows in steps if step % 2 == 0}
    begun = [_first_of_runs(rows).any(0) for rows in masks.values()]
    return tuple((np.logical_or.reduce(begun)[1:].nonzero()[0] + 1).tolist()) if begun else ()


def from_planned_starts(found: RowsByStep, planned: Sequence[int]) -> RowsByStep:
    """The same rows, and those between each one that begins and the last of the `planned` starts before it.

    Values may differ at fewer positions than tokens say, so that rows may begin later than was planned, where no state
    was kept to begin from. A row that is run without need has its value in the base run.
    """
    at = np.array([0, *planned])
    more: dict[int, Mask] = {}
    last: Mask | None = None
    for step, rows in found:
        rows = rows.copy() if last is None else rows | last
        for prompt, begin in np.argwhere(_first_of_runs(rows)).tolist() if step % 2 == 0 else ():
            rows[prompt, at[at <= begin][-1] : begin] = True
        last = more[step] = rows
    return tuple(more.items())


def _first_of_runs(rows: Mask) -> Mask:
    """Rows without one at the position before [prompt, pos]."""
    found = rows.copy()
    found[:, 1:] &= ~rows[:, :-1]
    return found


def _looking_at(rows: Mask, causal: bool, real: Mask) -> Mask:
    """The positions that look at any of these, themselves included [prompt, pos]."""
    reached = np.logical_or.accumulate(rows, axis=1) if causal else rows.any(1, keepdims=True)
    return reached & real
