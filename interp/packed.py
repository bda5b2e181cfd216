"""Rows of many edited runs in one batch: each sequence is some positions of a prompt whose others are known already.

A sweep runs the same prompt under many edits, and an edit changes few positions. `Packed` says which rows stand in the
batch: all rows of all sequences lie one after another, so that whatever works on each position by itself is one large
matrix product without padding. Attention alone looks across rows: a sequence's keys and values are the base run's, with
its own in the places of its own rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Group:
    """Neighbouring sequences of equal length: `rows` of the batch, `sequences` of the list, `length` rows in each."""

    rows: slice
    sequences: slice
    length: int


@dataclass(frozen=True, eq=False)
class Packed:
    """Which position of which prompt each row of a batch is.

    Attributes:
        prompt: the prompt of every sequence [sequence].
        sequence: the sequence of every row [row]; rows of one sequence are neighbours, in the order of their positions.
        position: where every row stands in its prompt [row].
        groups: the sequences of equal length, which are neighbours.
        prefix: for every layer the base run's rotated keys and values [prompt, pos, kv_head, d_head].
        mask: [prompt, pos], True at real tokens.
    """

    prompt: Tensor
    sequence: Tensor
    position: Tensor
    groups: tuple[Group, ...]
    prefix: Mapping[int, KeysValues]
    mask: Tensor

    @property
    def row_prompt(self) -> Tensor:
        """The prompt of every row [row]."""
        return self.prompt[self.sequence]

    def keys_values(self, layer: int, k: Tensor, v: Tensor) -> KeysValues:
        """Keys and values of whole sequences from those of the rows.

        [row, kv_head, d_head] -> [sequence, pos, kv_head, d_head].
        """
        before_k, before_v = self.prefix[layer]
        whole_k, whole_v = before_k.index_select(0, self.prompt), before_v.index_select(0, self.prompt)
        at = self.sequence * before_k.shape[1] + self.position
        whole_k.flatten(0, 1).index_copy_(0, at, k)
        whole_v.flatten(0, 1).index_copy_(0, at, v)
        return whole_k, whole_v

    def allowed(self, causal: bool) -> Tensor:
        """Which keys each row may look at.  # [row, key]"""
        real = self.mask[self.row_prompt]
        if not causal:
            return real
        keys = torch.arange(self.mask.shape[1], device=self.position.device)
        return real & (keys <= self.position[:, None])


def pack(rows: Tensor, prompt: Tensor, prefix: Mapping[int, KeysValues], mask: Tensor) -> tuple[Packed, Tensor]:
    """A batch of the rows that are True in `rows` [cell, pos], and the cells in the order of its sequences.

    Args:
        rows: [cell, pos] bool, on the CPU; cells without rows have no sequence.
        prompt: the prompt of each cell [cell].
        prefix, mask: as in `Packed`.

    Returns:
        The batch, and for each of its sequences the cell that it is [sequence].
    """
    lengths = rows.sum(1)
    order = torch.argsort(lengths, stable=True)
    order = order[lengths[order] > 0]
    lengths = lengths[order]
    chosen = rows[order].nonzero()  # [row, (sequence, position)], in order
    groups, row, first = [], 0, 0
    for length, count in zip(*(x.tolist() for x in lengths.unique_consecutive(return_counts=True)), strict=True):
        groups.append(Group(slice(row, row + length * count), slice(first, first + count), length))
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
    return packed, order
