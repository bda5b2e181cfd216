"""The GGUF container: metadata, and tensors that are dequantised when they are read.

1. Header: magic, version, the number of tensors and of metadata entries; then the entries; then the tensor table
   (name, shape, type, offset); then, aligned, the data. (ggml-org/ggml, docs/gguf.md, versions 2 and 3.)
2. The header is parsed here and not by `gguf.GGUFReader`, which makes several array objects for every string of the
   vocabulary: 5 s against 0.15 s for SmolLM2's 98,000 strings. Every read is checked against the file's size.
3. The numbers are those of `gguf.quants`. Its own loop takes 16 rows at a time; slabs of 4096 blocks give the same bits
   three times as fast, without a second copy of the tensor.
"""

from __future__ import annotations

import functools
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.arguments import shown
from interp.errors import WeightsError, nearest
from interp.files.foreign_files import refuse_pointer

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
DEFAULT_ALIGNMENT = 32
SLAB = 4096  # blocks


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file; `shape` is in torch's order, rows first."""

    name: str
    shape: tuple[int, ...]
    kind: str
    raw: np.ndarray = field(repr=False)  # uint8 [rows, bytes of a row]

    def load(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """The part from `start` to `stop` of the first axis (rows, elements of a vector, experts) as float32."""
        if len(self.shape) < 2:
            return _dequantise(self.raw, self.kind)[start:stop]
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        rows = math.prod(self.shape[1:-1])  # of one entry of the first axis
        part = _dequantise(self.raw[start * rows : stop * rows], self.kind)
        return part.view(max(stop - start, 0), *self.shape[1:])


@dataclass(frozen=True)
class GGUFFile:
    """The metadata and the tensors of a GGUF file."""

    path: Path
    metadata: dict[str, Any] = field(repr=False)
    tensors: dict[str, StoredTensor] = field(repr=False)

    def tensor(self, name: str) -> StoredTensor:
        """A tensor that must exist.

        Raises:
            WeightsError: it does not.
        """
        if name not in self.tensors:
            close = nearest(name, self.tensors, most=1)
            hint = f"; the nearest name in the file is {close[0]!r}" if close else ""
            raise WeightsError(f"{self.path}: tensor {name!r} is missing{hint}")
        return self.tensors[name]


def open_gguf(path: str | Path) -> GGUFFile:
    """Map a GGUF file and read its header; no tensor is read yet.

    Raises:
        WeightsError: not a GGUF file, damaged or truncated, one part of several, or a tensor type that `gguf` cannot
            dequantise.
    """
    path = Path(path)
    refuse_pointer(path)
    try:
        size = path.stat().st_size
        # Copy-on-write, because torch wants writable memory; nothing is ever written.
        data = np.memmap(path, dtype=np.uint8, mode="c").view(np.ndarray) if size else np.empty(0, dtype=np.uint8)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    if bytes(data[:4]) != b"GGUF":
        raise WeightsError(f"{path} is not a GGUF file: it begins with {bytes(data[:4])!r}, not with b'GGUF'")
    cursor = _Cursor(path, data, position=4)
    version = cursor.number("I", "the version")
    if version not in (2, 3):
        swapped = " (its bytes are in big-endian order)" if version & 0xFFFF == 0 else ""
        raise WeightsError(f"{path} is a GGUF file of version {version}{swapped}; versions 2 and 3 can be read")
    n_tensors = cursor.number("Q", "the number of tensors")
    metadata = _metadata(cursor, cursor.number("Q", "the number of metadata entries"))
    _refuse_part(path, metadata)
    table = [_table_entry(cursor) for _ in range(n_tensors)]
    return GGUFFile(path, metadata, _tensors(cursor, data, table, metadata))


def _metadata(cursor: _Cursor, n_entries: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(n_entries):
        key = cursor.string("a metadata key")
        if key in metadata:
            raise WeightsError(f"{cursor.path} is damaged: metadata {key!r} appears twice")
        metadata[key] = cursor.value(cursor.number("I", f"the type of {key!r}"), key)
    return metadata


def _tensors(
    cursor: _Cursor, data: np.ndarray, table: list[tuple[str, tuple[int, ...], int, int]], metadata: dict[str, Any]
) -> dict[str, StoredTensor]:
    """The tensors of the table, whose data begin at the first multiple of the alignment after the header."""
    path, alignment = cursor.path, metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise WeightsError(f"{path} is damaged: general.alignment={shown(alignment)} is not a power of two")
    base = -(-cursor.position // alignment) * alignment
    tensors: dict[str, StoredTensor] = {}
    end = 0  # of the tensors so far, in bytes of the data
    for name, shape, code, offset in table:
        if name in tensors:
            raise WeightsError(f"{path} is damaged: tensor {name!r} appears twice")
        # As in llama.cpp, tensors follow one another in the table's order, so that none can overlap another.
        if offset != end:
            raise WeightsError(
                f"{path} is damaged: tensor {name!r} is at byte {offset} of the data, expected {end}, where the "
                f"one before it ends (in multiples of {alignment}): tensors must neither overlap nor leave gaps"
            )
        tensors[name] = _stored(path, data, name, shape, code, base + offset)
        end += -(-tensors[name].raw.size // alignment) * alignment
    return tensors


def _refuse_part(path: Path, metadata: dict[str, Any]) -> None:
    """Refuse one part of a model that llama.cpp has split."""
    count, number = metadata.get("split.count", 0), metadata.get("split.no", 0)
    if type(count) is not int or type(number) is not int:
        raise WeightsError(f"{path}: split.count and split.no must be integers, not {shown(count)}, {shown(number)}")
    if count > 1:
        raise WeightsError(
            f"{path} is part {number + 1} of {count} of one model: merge the parts with llama.cpp's "
            "`llama-gguf-split --merge FIRST_PART WHOLE.gguf` and load the whole"
        )


class _Cursor:
    """Reads one value after the other; if the file ends too early, its error says what was being read."""

    def __init__(self, path: Path, data: np.ndarray, position: int) -> None:
        self.path, self.size, self.position = path, data.size, position
        self.bytes = memoryview(data.data)

    def take(self, n_bytes: int, what: str) -> int:
        """The position of the next `n_bytes`; the cursor moves past them."""
        start = self.position
        if n_bytes > self.size - start:
            raise WeightsError(
                f"{self.path} is truncated or damaged: {what} needs {n_bytes} bytes from byte {start} on, "
                f"but the file has {self.size} bytes"
            )
        self.position += n_bytes
        return start

    def number(self, code: str, what: str) -> int:
        return struct.unpack_from(f"<{code}", self.bytes, self.take(struct.calcsize(f"<{code}"), what))[0]

    def string(self, what: str) -> str:
        length = self.number("Q", what)
        start = self.take(length, what)
        try:
            return str(self.bytes[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            raise WeightsError(f"{self.path} is damaged: {what} at byte {start} is not UTF-8 text") from error

    def strings(self, count: int, what: str) -> list[str]:
        """`count` strings; without a function call for each, because vocabularies are long."""
        data, position, unpack, texts = self.bytes, self.position, struct.Struct("<Q").unpack_from, []
        try:
            for _ in range(count):
                (length,) = unpack(data, position)
                end = position + 8 + length
                if end > self.size:
                    break
                texts.append(str(data[position + 8 : end], "utf-8"))
                position = end
        except (struct.error, UnicodeDecodeError):
            pass
        if len(texts) < count:
            raise WeightsError(f"{self.path} is truncated or damaged: string {len(texts)} of {what} is incomplete")
        self.position = position
        return texts

    def value(self, kind: int, key: str) -> Any:
        if kind in NUMBERS:
            value = self.number(NUMBERS[kind], repr(key))
            # As the shortest decimal that rounds to the float32: 1e-05, not 9.999999747378752e-06.
            return float(str(np.float32(value))) if NUMBERS[kind] == "f" else value
        if kind == STRING:
            return self.string(repr(key))
        if kind != ARRAY:
            raise WeightsError(f"{self.path} is damaged: metadata {key!r} has the unknown type {kind}")
        element, count = self.number("I", repr(key)), self.number("Q", repr(key))
        if element == STRING:
            return self.strings(count, repr(key))
        if element not in NUMBERS:
            raise WeightsError(f"{self.path}: metadata {key!r} is an array of type {element}, which is not supported")
        code = NUMBERS[element]
        start = self.take(count * struct.calcsize(f"<{code}"), repr(key))
        return list(struct.unpack_from(f"<{count}{code}", self.bytes, start))


def _table_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string("the name of a tensor")
    n_axes = cursor.number("I", f"the shape of tensor {name!r}")
    if not 1 <= n_axes <= 4:
        raise WeightsError(f"{cursor.path} is damaged: tensor {name!r} has {n_axes} axes, but ggml has 1 to 4")
    shape = tuple(cursor.number("Q", f"the shape of tensor {name!r}") for _ in range(n_axes))[::-1]
    return name, shape, cursor.number("I", f"the type of tensor {name!r}"), cursor.number("Q", f"tensor {name!r}")


def _stored(path: Path, data: np.ndarray, name: str, shape: tuple[int, ...], code: int, start: int) -> StoredTensor:
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(code)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise WeightsError(f"{path}: tensor {name!r} has the unknown ggml type {code}") from None
    if not _can_dequantise(kind.name):
        raise WeightsError(f"{path}: tensor {name!r} is of type {kind.name}, which the gguf package cannot dequantise")
    columns = shape[-1]
    if columns % block:
        raise WeightsError(f"{path} is damaged: rows of {columns} in {name!r} are not whole blocks of {kind.name}")
    rows, row_bytes = math.prod(shape[:-1]), columns // block * block_bytes
    stop = start + rows * row_bytes
    if stop > data.size:
        raise WeightsError(
            f"{path} is truncated: tensor {name!r} ends at byte {stop}, but the file has {data.size} bytes"
        )
    return StoredTensor(name, shape, kind.name, data[start:stop].reshape(rows, row_bytes))


@functools.cache
def _can_dequantise(kind: str) -> bool:
    import gguf

    quantisation = gguf.GGMLQuantizationType[kind]
    _, block_bytes = gguf.GGML_QUANT_SIZES[quantisation]
    try:
        gguf.quants.dequantize(np.zeros((1, block_bytes), dtype=np.uint8), quantisation)
    except NotImplementedError:
        return False
    return True


def _dequantise(raw: np.ndarray, kind: str) -> torch.Tensor:
    """All blocks of `raw`, in order, as one float32 vector; float32 itself is a view of the file."""
    import gguf

    quantisation = gguf.GGMLQuantizationType[kind]
    if kind == "F32":
        return torch.from_numpy(gguf.quants.dequantize(raw.reshape(-1), quantisation))
    block, block_bytes = gguf.GGML_QUANT_SIZES[quantisation]
    raw = raw.reshape(-1, block_bytes)
    values = np.empty((len(raw), block), dtype=np.float32)
    with np.errstate(all="ignore"):  # infinities and NaN are refused later, when a model is built
        for start in range(0, len(raw), SLAB):
            slab = raw[start : start + SLAB].reshape(1, -1)
            values[start : start + SLAB] = gguf.quants.dequantize(slab, quantisation).reshape(-1, block)
    return torch.from_numpy(values.reshape(-1))
