"""Which bytes of a sound GGUF file say how it is built, and which are values that any other value could stand for.

Values are the numbers and texts of the metadata and the data of the tensors; everything else (counts, lengths, types,
names, shapes, places) is structure. See ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9


@dataclass
class Layout:
    """Byte ranges of structure and of values; where each key and each tensor's entry begins; where the data begins."""

    structure: list[tuple[int, int]] = field(default_factory=list)
    values: list[tuple[int, int]] = field(default_factory=list)
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)  # of the type, behind the name, and of the end
    tensors: dict[str, tuple[int, int]] = field(default_factory=dict)  # of the name's length, and of the end
    data: int = 0


def layout(content: bytes) -> Layout:
    """The layout of a sound file."""
    found, at = Layout(), 0

    def take(width: int, kind: list[tuple[int, int]]) -> int:
        nonlocal at
        kind.append((at, at + width))
        at += width
        return at - width

    def number(width: int) -> int:
        start = take(width, found.structure)
        return int.from_bytes(content[start : start + width], "little")

    def text(kind: list[tuple[int, int]]) -> str:
        length = number(8)
        start = take(length, kind)
        return content[start : start + length].decode("utf-8", "replace")

    def value(code: int) -> None:
        if code == STRING:
            text(found.values)
        elif code == ARRAY:
            inner, count = number(4), number(8)
            if inner == STRING:
                for _ in range(count):
                    text(found.values)
            else:
                take(WIDTHS[inner] * count, found.values)
        else:
            take(WIDTHS[code], found.values)

    take(8, found.structure)  # magic and version
    n_tensors, n_entries = number(8), number(8)
    for _ in range(n_entries):
        name = text(found.structure)
        start = at
        value(number(4))
        found.keys[name] = (start, at)
    for _ in range(n_tensors):
        start = at
        name = text(found.structure)
        axes = number(4)
        take(8 * axes + 4 + 8, found.structure)
        found.tensors[name] = (start, at)
    found.data = -(-at // 32) * 32
    found.values.append((found.data, len(content)))
    return found


def with_value(content: bytes, key: str, code: int, packed: bytes) -> bytes:
    """The file with another value for a key; the data stays aligned."""
    here = layout(content)
    start, end = here.keys[key]
    head = content[:start] + struct.pack("<I", code) + packed + content[end : list(here.tensors.values())[-1][1]]
    return head + b"\0" * (-len(head) % 32) + content[here.data :]


def without_key(content: bytes, key: str) -> bytes:
    """The file without a key."""
    here = layout(content)
    start, end = here.keys[key]
    begin = start - len(key.encode()) - 8
    count = struct.unpack_from("<Q", content, 16)[0]
    head = content[:16] + struct.pack("<Q", count - 1) + content[24:begin] + content[end : _table_end(here)]
    return head + b"\0" * (-len(head) % 32) + content[here.data :]


def with_entry(content: bytes, key: str, code: int, packed: bytes) -> bytes:
    """The file with one more entry of metadata, before the others."""
    here = layout(content)
    count = struct.unpack_from("<Q", content, 16)[0]
    name = key.encode()
    entry = struct.pack("<Q", len(name)) + name + struct.pack("<I", code) + packed
    head = content[:16] + struct.pack("<Q", count + 1) + entry + content[24 : _table_end(here)]
    return head + b"\0" * (-len(head) % 32) + content[here.data :]


def _table_end(here: Layout) -> int:
    return list(here.tensors.values())[-1][1]
