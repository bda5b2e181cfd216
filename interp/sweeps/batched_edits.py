"""Making the edits of many variants at once, in a batch that holds the rows of all of them.

1. For each site, edits that do the same thing (set from a run, scale, ...) with the same kind of index are one group,
   so that a chunk of a thousand variants costs a handful of indexed assignments and not a thousand.
2. A second edit of one variant at one site belongs to a later turn: it sees what the first has done.
3. When the forward comes to the site, a group looks up the rows that its cells have there now, and changes them.

A cell is one variant on one prompt. Values are seen with rows first: [row, the site's other axes].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(eq=False)
class _AssignmentGroup:
    """Edits that are made by one indexed assignment; the lists have an entry for each edit."""

    op: str
    source: Tensor | None  # rows first: [prompt, pos, ...]
    function: HookFunction | None
    cells: list[Numbers] = field(default_factory=list)
    rows: list[Mask] = field(default_factory=list)
    inner: list[list[Numbers | None]] = field(default_factory=list)
    factors: list[Numbers] = field(default_factory=list)


class Changes:
    """The edits of a chunk, made by `hook` at every site of `names`.

    Args:
        values: what an edit copies from, or multiplies by, in the site's axes and for the prompts of the block.
        base: what the base run had at a site, for functions that are given whole values.
    """

    def __init__(self, values: SourceOf, base: Mapping[str, Tensor]) -> None:
        self.layout: Layout | None = None
        self._values = values
        self._base = base
        self._groups: dict[str, dict[Any, _AssignmentGroup]] = {}
        self._sources: dict[object, Tensor] = {}

    @property
    def names(self) -> list[str]:
        """The sites that are edited."""
        return list(self._groups)

    def add(self, placed: Sequence[Placed], cells: Numbers, prompts: Numbers) -> None:
        """Add a variant, which is `cells` [cell] of the chunk, on `prompts` [cell] of the block."""
        turns: dict[str, int] = {}
        for edit in placed:
            turn = turns[edit.name] = turns.get(edit.name, -1) + 1
            what = self._what(edit)
            for chosen, inner in _of_equal_number([None if i is None else i[prompts] for i in edit.inner]):
                counts = tuple(None if index is None else index.shape[1] for index in inner)
                groups = self._groups.setdefault(edit.name, {})
                if (turn, what, counts) not in groups:
                    groups[turn, what, counts] = self._group(edit, what)
                group = groups[turn, what, counts]
                group.cells.append(cells[chosen])
                group.rows.append(edit.rows[prompts[chosen]])
                group.inner.append(inner)
                if what[1] is None and isinstance(edit.edit.source, int | float):
                    group.factors.append(np.full(len(group.cells[-1]), float(edit.edit.source)))

    def _what(self, edit: Placed) -> tuple[str, object]:
        """The operation of an edit, and what tells its source from others."""
        op, source = edit.edit.op, edit.edit.source
        if op == "zero" or (op == "scale" and isinstance(source, int | float)):
            return op, None
        if isinstance(source, int | float):
            return op, source
        return op, edit.edit.run if edit.edit.run is not None else ("at", id(source))

    def _group(self, edit: Placed, what: tuple[str, object]) -> _AssignmentGroup:
        op = "set" if edit.edit.op == "mean" else edit.edit.op
        if what[1] is None:
            return _AssignmentGroup(op, None, None)
        if edit.edit.computed:
            called = by_position(edit.edit.source, f"the edit at {edit.edit.site!r}")  # type: ignore[arg-type]
            return _AssignmentGroup(op, None, called)
        key = (edit.name, what)
        if key not in self._sources:
            self._sources[key] = rows_first(self._values(edit), edit.site)
        return _AssignmentGroup(op, self._sources[key], None)

    def hook(self, value: Tensor, hook: HookPoint) -> Tensor:
        """The hook function that makes every edit of a site, in a batch as `layout` says."""
        seen = rows_first(value, hook.site)
        new = seen.flatten(0, 1).clone()  # [row, ...]
        groups = self._groups[hook.name]
        for key in sorted(groups, key=lambda key: int(key[0])):
            group = groups[key]
            if group.function is None:
                inner = [_joined(parts) for parts in zip(*group.inner, strict=True)]
                factors = np.concatenate(group.factors) if group.factors else None
                cells, rows = np.concatenate(group.cells), np.concatenate(group.rows)
                self._assign(new, group.op, group.source, factors, cells, rows, inner)
                continue
            for cells, rows, own in zip(group.cells, group.rows, group.inner, strict=True):
                source = self._computed(group.function, cells, new, hook)
                self._assign(new, group.op, source, None, cells, rows, own)
        return rows_first(new.view(seen.shape), hook.site)

    def _assign(
        self,
        new: Tensor,
        op: str,
        source: Tensor | None,
        factors: Numbers | None,
        cells: Numbers,
        rows: Mask,
        inner: Sequence[Numbers | None],
    ) -> None:
        """Change `new` [row, ...] in place: the rows of `cells` at positions that are True in `rows` [cell, pos]."""
        assert self.layout is not None
        row_of = self.layout.row_of[cells]
        which, position = np.nonzero(rows & (row_of >= 0))
        if not len(which):
            return

        # Every index has an axis of its own, so that rows, heads and channels combine freely. The rows' stands first,
        # and with it all of them: slices follow.
        n_axes = 1 + sum(index is not None for index in inner)
        axis = 0

        def index(numbers: Numbers) -> Tensor:
            shape = [1] * n_axes
            shape[0] = len(which)
            if axis:
                shape[axis] = numbers.shape[1]
            return torch.from_numpy(np.ascontiguousarray(numbers)).to(new.device).reshape(shape)

        row = index(row_of[which, position])
        from_row = (index(self.layout.prompt[cells[which]]), index(position))
        others: list[Tensor | slice] = []
        for numbers in inner:
            if numbers is None:
                others.append(slice(None))
            else:
                axis += 1
                others.append(index(numbers[which]))
        at = (row, *others)
        if op == "zero":
            new[at] = 0
            return
        here = new[at] if op in ("add", "scale") else None
        if source is not None:
            given = source[(*from_row, *others)].to(new.dtype)
        else:
            assert factors is not None and here is not None
            given = torch.from_numpy(factors[which]).to(new).reshape(-1, *[1] * (here.ndim - 1))
        if here is not None:
            given = here + given if op == "add" else here * given
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
        if not isinstance(made, Tensor) or made.is_complex() or list(made.shape) != shape:
            given = f"{list(made.shape)} {made.dtype}" if isinstance(made, Tensor) else shown(made)
            raise HookError(
                f"the function of an edit at {hook.name!r} returned {given}, expected [{', '.join(hook.site.axes)}] = "
                f"{shape} {value.dtype}: what it was given, of one variant"
            )
        return rows_first(made, hook.site)


def _of_equal_number(inner: list[Numbers | None]) -> list[tuple[Any, list[Numbers | None]]]:
    """Cells that name equally many indices: prompts of different lengths have different numbers of keys."""
    padded = [index for index in inner if index is not None and (index < 0).any()]
    if not padded:
        return [(slice(None), inner)]
    counts = (padded[0] >= 0).sum(1)
    found: list[tuple[Any, list[Numbers | None]]] = []
    for count in np.unique(counts):
        chosen = np.nonzero(counts == count)[0]
        found.append(
            (
                chosen,
                [
                    None if index is None else index[chosen, :count] if index is padded[0] else index[chosen]
                    for index in inner
                ],
            )
        )
    return found


def _joined(parts: Sequence[Numbers | None]) -> Numbers | None:
    whole = [part for part in parts if part is not None]
    return np.concatenate(whole) if whole else None
