"""Rows of many edited runs in one batch: each sequence is some positions of a prompt whose others are known already.

A sweep runs the same prompt under many edits, and an edit changes few positions. `Packed` says which rows are in the
batch: all rows of all sequences lie one after another, so that whatever works on each position by itself is one large
matrix product without padding. Mixers alone look across rows. For attention, a sequence's keys and values are the base
run's, with its own in the places of its own rows; a state-space layer starts from the base run's state.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]
# What a layer looks back at, by short site name: "k" and "v", or "in", "state" and "slot".
PrefixValues = Mapping[str, Tensor]

# Rows [run, length] of a packed batch (None: whole prompts) that a recurrence runs through, and the state before each.
Piece = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class EqualLengths:
    """Neighbouring sequences of equal length: `rows` of the batch, `sequences` of the list, `length` rows in each."""

    rows: slice
    sequences: slice
    length: int


@dataclass(frozen=True, eq=False)
class Runs:
    """Rows that stand at neighbouring positions of one sequence, many runs of equal length.

    Attributes:
        rows: which rows of the batch [run, length].
        prompt: the prompt of every run [run].
        start: the position of its first row [run].
    """

    rows: Tensor
    prompt: Tensor
    start: Tensor

    def before(self, known: Tensor, count: int, mask: Tensor) -> Tensor:
        """What the base run has at the `count` positions before each run; 0 where there is none, and at padding.

        [prompt, pos, ...] -> [run, count, ...].
        """
        at = self.start[:, None] + torch.arange(-count, 0, device=self.start.device)
        there = (at >= 0) & mask[self.prompt[:, None], at.clamp(min=0)]
        return where(there, known[self.prompt[:, None], at.clamp(min=0)])

    def states(self, known: PrefixValues, mask: Tensor) -> Tensor | None:
        """The state before each run [run, ...]; None where all of them begin with their prompt.

        The base run's states are kept before some positions alone: `known["slot"]` [pos] says which stands where.
        """
        if "state" not in known:
            return None
        before = (self.start - 1).clamp(min=0)
        there = (self.start > 0) & mask[self.prompt, before]
        return where(there, known["state"][self.prompt, known["slot"][self.start]])


@dataclass(frozen=True, eq=False)
class Packed:
    """Which position of which prompt each row of a batch is.

    Attributes:
        prompt: the prompt of every sequence [sequence].
        sequence: the sequence of every row [row]; rows of one sequence are neighbours, in the order of their positions.
        position: the position of every row in its prompt [row].
        groups: the sequences of equal length, which are neighbours.
        prefix: for every layer what its mixer looks back at in the base run [prompt, pos, ...]: rotated keys and
            values, or inputs of the convolution and states.
        mask: [prompt, pos], True at real tokens.
    """

    prompt: Tensor
    sequence: Tensor
    position: Tensor
    groups: tuple[EqualLengths, ...]
    prefix: Mapping[int, PrefixValues]
    mask: Tensor

    @property
    def row_prompt(self) -> Tensor:
        """The prompt of every row [row]."""
        return self.prompt[self.sequence]

    def keys_values(self, layer: int, k: Tensor, v: Tensor) -> KeysValues:
        """Keys and values of whole sequences from those of the rows.

        [row, kv_head, d_head] -> [sequence, pos, kv_head, d_head].
        """
        known = self.prefix[layer]
        return self.completed(known["k"], k), self.completed(known["v"], v)

    def completed(self, known: Tensor, rows: Tensor) -> Tensor:
        """Whole sequences: the base run's values, with the rows' in their places.

        [prompt, pos, ...], [row, ...] -> [sequence, pos, ...].
        """
        whole = known.index_select(0, self.prompt)
        whole.flatten(0, 1).index_copy_(0, self.sequence * known.shape[1] + self.position, rows)
        return whole

    @functools.cached_property
    def runs(self) -> tuple[Runs, ...]:
        """The rows, in runs of neighbours."""
        n_rows = len(self.sequence)
        together = (self.sequence[1:] == self.sequence[:-1]) & (self.position[1:] == self.position[:-1] + 1)
        first = torch.cat((together.new_ones(min(1, n_rows)), ~together)).nonzero()[:, 0]
        lengths = torch.diff(first, append=first.new_tensor([n_rows]))
        found = []
        for length in lengths.unique().tolist():
            start = first[lengths == length]
            rows = start[:, None] + torch.arange(length, device=start.device)
            found.append(Runs(rows, self.row_prompt[start], self.position[start]))
        return tuple(found)

    def allowed(self, causal: bool, window: int | None = None) -> Tensor:
        """Which keys each row may look at: with a window, no more than so many.  # [row, key]"""
        seen = self.mask[self.row_prompt]
        keys, own = torch.arange(self.mask.shape[1], device=self.position.device), self.position[:, None]
        if causal:
            seen = seen & (keys <= own)
        return seen if window is None else seen & (keys > own - window) & (keys < own + window)


def at_rows(value: Tensor, place: Tensor | None) -> Tensor:
    """[1, row, ...] at some rows [run, length] -> [run, length, ...]; without them as it is."""
    return value if place is None else value[0, place]


def joined(parts: Sequence[Tensor], pieces: Sequence[Piece]) -> Tensor:
    """Parts [run, length, ...] of a packed batch as rows [1, row, ...]; the one part of whole prompts as it is."""
    if pieces[0][0] is None:
        return parts[0]
    places = torch.cat([place.flatten() for place, _ in pieces if place is not None])
    flat = torch.cat([part.flatten(0, 1) for part in parts])
    rows = torch.empty_like(flat)
    rows[places] = flat
    return rows[None]


def where(there: Tensor, found: Tensor) -> Tensor:
    """`found` [..., more axes] where `there` [...] is True, and 0 elsewhere."""
    return found * there.reshape(*there.shape, *[1] * (found.ndim - there.ndim)).to(found.dtype)


def pack(
    rows: Tensor, prompt: Tensor, prefix: Mapping[int, PrefixValues], mask: Tensor
) -> tuple[Packed, Tensor, Tensor]:
    """A batch of the rows that are True in `rows` [cell, pos], and where each of its rows comes from.

    Args:
        rows: [cell, pos] bool, on the CPU; cells without rows have no sequence.
        prompt: the prompt of each cell [cell].
        prefix, mask: as in `Packed`.

    Returns:
        The batch, and the cell [row] and the position [row] of each of its rows, on the CPU: nobody waits for a device.
    """
    lengths = rows.sum(1)
    order = torch.argsort(lengths, stable=True)
    order = order[lengths[order] > 0]
    lengths = lengths[order]
    chosen = rows[order].nonzero()  # [row, (sequence, position)], in order
    groups, row, first = [], 0, 0
    for length, count in zip(*(x.tolist() for x in lengths.unique_consecutive(return_counts=True)), strict=True):
        groups.append(EqualLengths(slice(row, row + length * count), slice(first, first + count), length))
        row, first = row + length * count, first + count
    device = mask.device
    packed = Packed(
        prompt=prompt[order].to(device),
        sequence=chosen[:, 0].to(device),
        position=chosen[:, 1].to(device),
        groups=tuple(groups),
        prefix=prefix,
        mask=mask,
    )
    return packed, order[chosen[:, 0]], chosen[:, 1]
