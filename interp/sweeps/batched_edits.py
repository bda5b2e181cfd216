"""Making the edits of many variants at once, in a batch that holds the rows of all of them.

1. For each site, edits that do the same thing (set from a run, scale, ...) with the same kind of index are one group,
   so that a chunk of a thousand variants costs a handful of indexed assignments and not a thousand.
2. A second edit of one variant at one site belongs to a later turn: it sees what the first has done.
3. When the forward comes to the site, a group looks up the rows that its cells have there now, and changes them.

A cell is one variant on one prompt. Values are seen with rows first: [row, the site's other axes].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp.arguments import shown
from interp.errors import HookError
from interp.hooked.hooks import HookFunction, HookPoint, by_position
from interp.sweeps.edit_reach import Mask, Numbers, Placed, rows_first

SourceOf = Callable[[Placed], Tensor]


@dataclass(frozen=True, eq=False)
class Layout:
    """Which row of a batch is which cell at which position.

    Attributes:
        prompt: the prompt of every cell [cell].
        row_of: the row of every cell and position [cell, pos], -1 where it has none.
    """

    prompt: Numbers
    row_of: Numbers


class _Operation(NamedTuple):
    """What an edit does: `op`, and what tells its source from others; None for a number that each edit has."""

    op: str
    source: object


class _GroupKey(NamedTuple):
    """What the edits of one group have in common: one indexed assignment makes them all.

    Attributes:
        turn: how many edits of the same variant at the same site come before.
        operation: what they do.
        counts: how many indices they name on each axis of the site; None where they name none.
    """

    turn: int
    operation: _Operation
    counts: tuple[int | None, ...]


@dataclass(eq=False)
class _AssignmentGroup:
    """Edits that are made by one indexed assignment; the lists have an entry for each edit.

    Attributes:
        op: "set", "add", "scale" or "zero".
        source: what they copy, rows first [prompt, pos, ...]; None if each has a number or a function makes it.
        function: makes the source of each edit from the variant's value.
        cells: the cells of the chunk [cell].
        rows: the positions that change [cell, pos].
        indices: for every other axis of the site the indices that change [cell, how many], or None for all.
        factors: a number for each cell, where there is no source [cell].
    """

    op: str
    source: Tensor | None
    function: HookFunction | None
    cells: list[Numbers] = field(default_factory=list)
    rows: list[Mask] = field(default_factory=list)
    indices: list[list[Numbers | None]] = field(default_factory=list)
    factors: list[Numbers] = field(default_factory=list)

    def joined(self) -> _Assignment:
        """All of them in one."""
        indices = [_joined(parts) for parts in zip(*self.indices, strict=True)]
        factors = np.concatenate(self.factors) if self.factors else None
        return _Assignment(
            self.op, self.source, factors, np.concatenate(self.cells), np.concatenate(self.rows), indices
        )


class _Assignment(NamedTuple):
    """One indexed assignment: the attributes of `_AssignmentGroup`, of all its edits together."""

    op: str
    source: Tensor | None
    factors: Numbers | None
    cells: Numbers
    rows: Mask
    indices: Sequence[Numbers | None]


class Changes:
    """The edits of a chunk, made by `hook` at every site of `names`.

    Args:
        source_of: what an edit copies from, or multiplies by, in the site's axes and for the prompts of the block.
        base: what the base run had at a site, for functions that are given whole values.
    """

    def __init__(self, source_of: SourceOf, base: Mapping[str, Tensor]) -> None:
        self.layout: Layout | None = None
        self._source_of = source_of
        self._base = base
        self._groups: dict[str, dict[_GroupKey, _AssignmentGroup]] = {}
        self._sources: dict[object, Tensor] = {}

    @property
    def names(self) -> list[str]:
        """The sites that are edited."""
        return list(self._groups)

    def add(self, placed: Sequence[Placed], cells: Numbers, prompts: Numbers) -> None:
        """Add a variant, which is `cells` [cell] of the chunk, on `prompts` [cell] of the block."""
        turns: dict[str, int] = {}
        for edit in placed:
            # 2. A later edit at the same site has a later turn.
            turn = turns[edit.name] = turns.get(edit.name, -1) + 1
            operation = _operation(edit)
            groups = self._groups.setdefault(edit.name, {})
            for chosen, indices in _of_equal_number([None if i is None else i[prompts] for i in edit.indices]):
                # 1. What has the same key is one group.
                key = _GroupKey(turn, operation, tuple(None if index is None else index.shape[1] for index in indices))
                if key not in groups:
                    groups[key] = self._group(edit, operation)
                group = groups[key]
                group.cells.append(cells[chosen])
                group.rows.append(edit.rows[prompts[chosen]])
                group.indices.append(indices)
                if operation.source is None and isinstance(edit.edit.source, int | float):
                    group.factors.append(np.full(len(group.cells[-1]), float(edit.edit.source)))

    def _group(self, edit: Placed, operation: _Operation) -> _AssignmentGroup:
        """An empty group for edits like this one."""
        op = "set" if edit.edit.op == "mean" else edit.edit.op
        if operation.source is None:
            return _AssignmentGroup(op, None, None)
        if edit.edit.computed:
            called = by_position(edit.edit.source, f"the edit at {edit.edit.site!r}")  # type: ignore[arg-type]
            return _AssignmentGroup(op, None, called)
        key = (edit.name, operation)
        if key not in self._sources:
            self._sources[key] = rows_first(self._source_of(edit), edit.site)
        return _AssignmentGroup(op, self._sources[key], None)

    def hook(self, value: Tensor, hook: HookPoint) -> Tensor:
        """The hook function that makes every edit of a site, in a batch as `layout` says."""
        # 3. The rows of the batch, and one assignment for each group; for each edit where a function makes the source.
        seen = rows_first(value, hook.site)  # [batch, pos, ...]
        new = seen.flatten(0, 1).clone()  # [row, ...]
        groups = self._groups[hook.name]
        for key in sorted(groups, key=lambda key: key.turn):
            group = groups[key]
            if group.function is None:
                self._assign(new, group.joined())
                continue
            for cells, rows, indices in zip(group.cells, group.rows, group.indices, strict=True):
                source = self._computed(group.function, cells, new, hook)
                self._assign(new, _Assignment(group.op, source, None, cells, rows, indices))
        return rows_first(new.view(seen.shape), hook.site)

    def _assign(self, new: Tensor, edits: _Assignment) -> None:
        """Change `new` [row, ...] in place, at the rows that the edits' cells have at the positions that they change.

        An entry is one such row. Every index has an axis of its own in what it picks, as `np.ix_` makes them: entries
        on axis 0, then the named axes of the site in turn, so that each entry's own heads and channels combine freely.
        With the rows' index in front torch keeps these axes first, and those that are taken whole (slices) follow.
        """
        assert self.layout is not None
        row_of = self.layout.row_of[edits.cells]  # [cell, pos]
        cell, position = np.nonzero(edits.rows & (row_of >= 0))  # [entry], [entry]
        if not len(cell):
            return
        named = [None if index is None else index[cell] for index in edits.indices]  # [entry, how many]
        n_axes = 1 + sum(index is not None for index in named)

        def index(numbers: Numbers, axis: int = 0) -> Tensor:
            shape = [1] * n_axes
            shape[0] = len(cell)
            if axis:
                shape[axis] = numbers.shape[1]
            return torch.from_numpy(np.ascontiguousarray(numbers)).to(new.device).reshape(shape)

        axes = itertools.count(1)
        others = [slice(None) if numbers is None else index(numbers, next(axes)) for numbers in named]
        at = (index(row_of[cell, position]), *others)
        if edits.op == "zero":
            new[at] = 0
            return
        here = new[at] if edits.op in ("add", "scale") else None
        if edits.source is not None:
            prompt = self.layout.prompt[edits.cells[cell]]
            given = edits.source[(index(prompt), index(position), *others)].to(new.dtype)
        else:
            assert edits.factors is not None and here is not None
            given = torch.from_numpy(edits.factors[cell]).to(new).reshape(-1, *[1] * (here.ndim - 1))
        if here is not None:
            given = here + given if edits.op == "add" else here * given
        new[at] = given

    def _computed(self, function: HookFunction, cells: Numbers, new: Tensor, hook: HookPoint) -> Tensor:
        """What a function makes of a variant's whole value, rows first [prompt, pos, ...]."""
        assert self.layout is not None
        row_of = self.layout.row_of[cells]
        n_prompts, n_pos = len(cells), row_of.shape[1]
        if hook.name in self._base:
            whole = rows_first(self._base[hook.name], hook.site).clone()
        else:
            whole = new.new_zeros(n_prompts, n_pos, *new.shape[1:])
        which, position = np.nonzero(row_of >= 0)
        at = torch.from_numpy(self.layout.prompt[cells[which]]), torch.from_numpy(position)
        whole[at[0].to(new.device), at[1].to(new.device)] = new[
            torch.from_numpy(row_of[which, position]).to(new.device)
        ]
        value = rows_first(whole, hook.site).contiguous()
        made = function(value, hook)
        if made is None:
            made = value  # which it may have changed in place
        shape = list(rows_first(whole, hook.site).shape)  # not that of `value`, which a function can resize
        floats = isinstance(made, Tensor) and made.is_floating_point()
        numbers_of_experts = hook.site.whole and floats  # which would be cut off
        if not isinstance(made, Tensor) or made.is_complex() or numbers_of_experts or list(made.shape) != shape:
            given = f"{list(made.shape)} {made.dtype}" if isinstance(made, Tensor) else shown(made)
            raise HookError(
                f"the function of an edit at {hook.name!r} returned {given}, expected [{', '.join(hook.site.axes)}] = "
                f"{shape} {value.dtype}: what it was given, of one variant"
            )
        return rows_first(made, hook.site)


def _operation(edit: Placed) -> _Operation:
    op, source = edit.edit.op, edit.edit.source
    if op == "zero" or (op == "scale" and isinstance(source, int | float)):
        return _Operation(op, None)
    if isinstance(source, int | float):
        return _Operation(op, source)
    return _Operation(op, edit.edit.run if edit.edit.run is not None else ("at", id(source)))


def _of_equal_number(indices: list[Numbers | None]) -> list[tuple[Any, list[Numbers | None]]]:
    """Cells that name equally many indices, in parts: prompts of different lengths have different numbers of keys."""
    keys = next((index for index in indices if index is not None and (index < 0).any()), None)
    if keys is None:
        return [(slice(None), indices)]
    counts = (keys >= 0).sum(1)
    parts: list[tuple[Any, list[Numbers | None]]] = []
    for count in np.unique(counts):
        chosen = np.nonzero(counts == count)[0]
        own = [
            None if index is None else index[chosen, :count] if index is keys else index[chosen] for index in indices
        ]
        parts.append((chosen, own))
    return parts


def _joined(parts: Sequence[Numbers | None]) -> Numbers | None:
    whole = [part for part in parts if part is not None]
    return np.concatenate(whole) if whole else None
