"""Weights in MXFP4, as gpt-oss is published: 32 numbers of four bits share one factor.

A tensor `X` [..., row, column] is stored as two: `X_blocks` [..., column, block, 16], in which a byte holds two numbers
(the low bits are the first), and `X_scales` [..., column, block], the exponents of the blocks' factors plus 127. A
number is its entry of `NUMBERS` times 2 to the power of its block's exponent, which bfloat16 holds exactly.

Source: Rouhani et al. 2023 ("Microscaling Data Formats for Deep Learning", section 2, and the OCP specification).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from interp.errors import WeightsError
from interp.weights.checkpoint import Stored

BLOCKS, SCALES = "_blocks", "_scales"
# The numbers of four bits: a sign, two bits of exponent, one of fraction (E2M1).
NUMBERS = [sign * size for sign in (1.0, -1.0) for size in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)]
BYTES = 16  # of a block
BYTE_TYPES = (torch.uint8, "U8")


def dequantized(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors, with each pair of blocks and scales as the one that they stand for; it is decoded when it is read.

    Raises:
        WeightsError: blocks and scales that do not fit together.
    """
    found = dict(tensors)
    for name in tensors:
        whole = name.removesuffix(BLOCKS)
        if whole != name and whole + SCALES in tensors:
            found[whole] = _pair(found.pop(name), found.pop(whole + SCALES), whole)
    return found


def _pair(blocks: Stored, scales: Stored, name: str) -> Stored:
    bytes_ = blocks.dtype in BYTE_TYPES and scales.dtype in BYTE_TYPES
    if not bytes_ or len(blocks.shape) < 3 or blocks.shape != (*scales.shape, BYTES):
        raise WeightsError(
            f"{name + BLOCKS!r} has shape {list(blocks.shape)} of {blocks.dtype} and {name + SCALES!r} "
            f"{list(scales.shape)} of {scales.dtype}; expected bytes, [..., column, block, {BYTES}] and "
            "[..., column, block]"
        )
    *before, columns, n_blocks, _ = blocks.shape
    shape = (*before, 2 * BYTES * n_blocks, columns)
    return Stored(partial(_decoded, blocks, scales), shape, torch.bfloat16, blocks.origin)


def _decoded(blocks: Stored, scales: Stored) -> Tensor:
    packed, exponents = blocks(), scales()
    *before, columns, n_blocks, _ = packed.shape
    packed = packed.reshape(-1, columns, n_blocks, BYTES)
    exponents = exponents.reshape(-1, columns, n_blocks)
    numbers = torch.tensor(NUMBERS)
    out = torch.empty(len(packed), columns, 2 * BYTES * n_blocks, dtype=torch.bfloat16)
    for one, exponent, place in zip(packed, exponents, out, strict=True):  # one at a time: there may be many
        pairs = torch.stack((one & 0xF, one >> 4), dim=-1).flatten(-2)  # [column, block, 32]
        power = exponent.to(torch.int32)[..., None] - 127
        place.copy_(torch.ldexp(numbers[pairs.long()], power).flatten(-2))  # [column, row]
    return out.mT.reshape(*before, 2 * BYTES * n_blocks, columns)
