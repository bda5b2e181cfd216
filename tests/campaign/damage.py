"""Ways to damage a file, each drawn from a random generator; they say what they did and what may follow from it.

What may follow: "any" (refused, or the right numbers of the file as it is now), "values" (nothing but a value was
changed, which another file could have as well: other numbers are all right) or "refuse" (nonsense: must be refused).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from . import gguf_layout

Damage = tuple[str, str]  # what was done, what may follow

NESTED = "[" * 100_000 + "]" * 100_000
WRONG: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 1.5, -0.5, 1e-30, 1e308, -1e308, 2**31, 2**63, 2**70, float("nan"),
    float("inf"), "", "x", "5", "false", "\0", "é" * 1000, [], {}, [1], [None], {"a": 1}, [[1, 2], [3]], "../x",
]  # fmt: skip


def flip(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


def cut(rng: Random, content: bytes) -> tuple[bytes, str]:
    length = rng.choice([0, 1, 7, 8, 9, rng.randrange(len(content)), rng.randrange(len(content)), len(content) - 1])
    return content[:length], f"cut to {length} of {len(content)} bytes"


def whole_file(rng: Random, file: Path) -> Damage:
    """Something else stands in a file's place."""
    content = file.read_bytes()
    kinds: dict[str, Callable[[], object]] = {
        "missing": lambda: None,
        "a folder": lambda: file.mkdir(),
        "a link to itself": lambda: file.symlink_to(file.name),
        "a link to nothing": lambda: file.symlink_to("nothing"),
        "a pipe": lambda: os.mkfifo(file),
        "/dev/zero": lambda: file.symlink_to("/dev/zero"),
        "empty": lambda: file.write_bytes(b""),
        "zeros": lambda: file.write_bytes(bytes(len(content))),
        "random bytes": lambda: file.write_bytes(rng.randbytes(min(len(content), 4096))),
        "a pointer of Git LFS": lambda: file.write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 548105171\n"
        ),
        "a web page": lambda: file.write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>\n"),
        "a byte order mark before it": lambda: file.write_bytes(b"\xef\xbb\xbf" + content),
        "in UTF-16": lambda: file.write_bytes(content.decode("latin-1").encode("utf-16")),
        "twice in a row": lambda: file.write_bytes(2 * content),
        "followed by a byte": lambda: file.write_bytes(content + b"x"),
        "a zip file": lambda: file.write_bytes(b"PK\x03\x04" + content),
    }
    name = rng.choice(sorted(kinds))
    file.unlink()
    kinds[name]()
    return f"{file.name}: {name}", "any"


def text_file(rng: Random, file: Path) -> Damage:
    """A JSON file as text: cut, a bit flipped, a piece repeated or left out, or something of another kind."""
    content = file.read_bytes()
    way = rng.randrange(6)
    if way == 0:
        content, what = cut(rng, content)
    elif way < 3:
        at, bit = rng.randrange(len(content)), rng.randrange(8)
        content, what = flip(content, at, bit), f"bit {bit} of byte {at} flipped"
    elif way == 3:
        start = rng.randrange(len(content))
        stop = min(len(content), start + rng.choice([1, 2, 8, 64]))
        content, what = content[:start] + content[stop:], f"bytes {start} to {stop} left out"
    elif way == 4:
        start = rng.randrange(len(content))
        piece = content[start : start + rng.choice([1, 8, 64])]
        content, what = content[:start] + piece + content[start:], f"{len(piece)} bytes repeated at {start}"
    else:
        other = rng.choice(["[]", "5", "null", '"x"', "{}", "true", "NaN", NESTED, '{"a":' * 5000 + "1" + "}" * 5000])
        content, what = other.encode(), f"replaced by {other[:12]}"
    file.write_bytes(content)
    return f"{file.name}: {what}", "any"


def json_value(rng: Random, file: Path) -> Damage:
    """One entry of a JSON object, at any depth, gets another value, goes, comes, or is there twice."""
    text = file.read_text(encoding="utf-8")
    whole = json.loads(text)
    places = list(_places(whole))
    if rng.random() < 0.7:  # entries near the top matter most
        places = [place for place in places if len(place) <= 2]
    path = rng.choice(places)
    owner = whole
    for step in path[:-1]:
        owner = owner[step]
    key, named = path[-1], ".".join(map(str, path))
    way = rng.randrange(10)
    if way < 6:
        new = rng.choice(WRONG)
        owner[key] = new
        what = f"{named} = {new!r:.40}"
    elif way == 6:
        del owner[key]
        what = f"{named} left out"
    elif way == 7:
        other = rng.choice([place for place in places if place[:-1] == path[:-1]])[-1]
        owner[key], owner[other] = owner[other], owner[key]
        what = f"{named} and {other} exchanged"
    elif way == 8 and isinstance(owner, dict):
        name = rng.choice(["x", "", "rope_scaling", "quantization_config", "n_layers", "auto_map", str(key) + "s"])
        owner[name] = rng.choice(WRONG)
        what = f"{name!r} = {owner[name]!r:.40} beside {named}"
    else:
        file.write_text(text.replace(f'"{path[0]}":', f'"{path[0]}": {json.dumps(rng.choice(WRONG))}, "{path[0]}":', 1))
        return f"{file.name}: {path[0]} twice", "any"
    file.write_text(json.dumps(whole), encoding="utf-8")
    return f"{file.name}: {what}", "any"


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """The path to every entry of a JSON value; of long lists and objects, of the first few."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:40]:
        yield (*path, key)
        yield from _places(inner, (*path, key))


NONSENSE: dict[str, list[Any]] = {
    "rms_norm_eps": [-1.0, float("nan"), float("inf")],
    "layer_norm_epsilon": [-1.0, float("nan")],
    "layer_norm_eps": [-1.0, float("nan")],
    "rope_theta": [0, -10000.0, float("nan"), float("inf")],
    "num_hidden_layers": [0, -1, 1.5, "2", True, 10_000, 10**9, 2**70, None],
    "n_layer": [0, -1, 1.5, 10_000, 10**9],
    "hidden_size": [0, -32, 1.5, "32", 2**40, 2**70],
    "vocab_size": [0, -1, 2**40, "many"],
    "num_attention_heads": [0, -4, 1.5, 2**40],
    "num_key_value_heads": [0, -2, 1.5, 3],
    "intermediate_size": [-1, 2**40, "big"],
    "max_position_embeddings": [0, -1, 1.5],
    "tie_word_embeddings": ["false", "no", 2, []],
    "attention_bias": ["false", "no", []],
    "hidden_act": [5, None, "x", []],
    "model_type": [5, None, "", "x", []],
    "state_size": [0, -1, 2**40],
    "conv_kernel": [0, -1, 2**40],
    "expand": [0, -1, float("nan")],
}


def nonsense(rng: Random, file: Path) -> Damage:
    """An option of config.json gets a value that no model has."""
    config = json.loads(file.read_text(encoding="utf-8"))
    # Where rope_theta stands in an object of its own.
    owners = [config, *(value for value in config.values() if isinstance(value, dict))]
    names = [(owner, name) for owner in owners for name in owner if name in NONSENSE]
    owner, name = rng.choice(names)
    owner[name] = rng.choice(NONSENSE[name])
    file.write_text(json.dumps(config), encoding="utf-8")
    return f"{file.name}: {name} = {owner[name]!r}", "refuse"


# Safetensors


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a sound safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: dict[str, Any] | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def safetensors_bytes(rng: Random, file: Path) -> Damage:
    """A safetensors file: cut, or a bit flipped in its header or in its data."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    way, follows = rng.randrange(4), "any"
    if way == 0:
        content, what = cut(rng, content)
    elif way < 3:
        at, bit = rng.randrange(start), rng.randrange(8)
        content, what = flip(content, at, bit), f"bit {bit} of byte {at} of the header flipped"
    else:
        at, bit = rng.randrange(start, len(content)), rng.randrange(8)
        content, what, follows = flip(content, at, bit), f"bit {bit} of byte {at} of the data flipped", "values"
    file.write_bytes(content)
    return f"{file.name}: {what}", follows


def safetensors_header(rng: Random, file: Path) -> Damage:
    """A safetensors file whose header says something else of one tensor."""
    header, data = split(file.read_bytes())
    metadata = header.pop("__metadata__", None)
    name = rng.choice(sorted(header))
    entry = header[name]
    shape, (start, stop) = entry["shape"], entry["data_offsets"]
    others = [other for other in header if other != name and header[other]["shape"] == shape]
    longer = [len(data), len(data) + (stop - start)]
    changes: dict[str, Callable[[], object]] = {
        "shape turned round": lambda: entry.update(shape=shape[::-1]),
        "shape flat": lambda: entry.update(shape=[(stop - start) // 4]),
        "an axis of 1 more": lambda: entry.update(shape=[1, *shape]),
        "shape of huge numbers": lambda: entry.update(shape=[2**62, 2**62]),
        "shape of negative numbers": lambda: entry.update(shape=[-n for n in shape]),
        "shape empty": lambda: entry.update(shape=[]),
        "whole numbers": lambda: entry.update(dtype="I32"),
        "bools": lambda: entry.update(dtype="BOOL", shape=[4 * shape[0], *shape[1:]]),
        "half of float64": lambda: entry.update(dtype="F64", shape=[*shape[:-1], shape[-1] // 2]),
        "twice of float16": lambda: entry.update(dtype="F16", shape=[*shape[:-1], 2 * shape[-1]]),
        "four times fp8": lambda: entry.update(dtype="F8_E4M3", shape=[*shape[:-1], 4 * shape[-1]]),
        "an unknown type": lambda: entry.update(dtype="F31"),
        "left out": lambda: header.pop(name),
        "another name": lambda: header.update({name + "x": header.pop(name)}),
        "a second tensor": lambda: header.update({"x": {**entry, "data_offsets": longer}}),
        "a second one in the same place": lambda: header.update({"x": dict(entry)}),
        "a place behind the end": lambda: entry.update(data_offsets=longer),
        "a negative place": lambda: entry.update(data_offsets=[-4, stop - start - 4]),
        "a place of the wrong length": lambda: entry.update(data_offsets=[start, stop - 4]),
        "a place of huge numbers": lambda: entry.update(data_offsets=[2**63, 2**63 + stop - start]),
        "a place turned round": lambda: entry.update(data_offsets=[stop, start]),
        "the place of another": lambda: entry.update(data_offsets=header[(others or [name])[0]]["data_offsets"]),
        "no object": lambda: header.update({name: rng.choice([None, 5, "x", []])}),
        "metadata of another type": lambda: header.update({"__metadata__": rng.choice([5, {"format": 5}, [], "x"])}),
    }
    what = rng.choice(sorted(changes))
    changes[what]()
    data += bytes(stop - start) if what == "a second tensor" else b""
    if metadata is not None and "__metadata__" not in header:
        header["__metadata__"] = metadata
    file.write_bytes(joined(header, data))
    return f"{file.name}: {name}: {what}", "any"


def safetensors_tensor(rng: Random, file: Path) -> Damage:
    """A sound safetensors file of other tensors: NaN, infinite, of another type, extra, exchanged."""
    import safetensors.torch
    import torch

    state = safetensors.torch.load_file(file)
    name = rng.choice(sorted(state))
    tensor, follows = state[name], "refuse"
    way = rng.choice(
        ["nan", "inf", "int32", "int8", "uint8", "bool", "fp8", "float16", "float64", "exchanged", "extra"]
    )
    if way in ("nan", "inf"):
        tensor = tensor.clone()
        tensor.view(-1)[rng.randrange(tensor.numel())] = float(way)
    elif way == "extra":
        state["x." + name] = tensor.clone()
    elif way == "exchanged":
        twins = [other for other in state if other != name and state[other].shape == tensor.shape]
        other = rng.choice(twins or [name])
        tensor, state[other], follows = state[other].clone(), tensor.clone(), "values"
    else:
        kinds = {"fp8": torch.float8_e4m3fn}
        tensor = tensor.to(kinds.get(way) or getattr(torch, way))
        follows = "any" if way.startswith("float") else "refuse"
    safetensors.torch.save_file({**state, name: tensor}, file, metadata={"format": "pt"})
    return f"{file.name}: {name}: {way}", follows


def safetensors_text(rng: Random, file: Path) -> Damage:
    """A safetensors file whose header is no header."""
    content = file.read_bytes()
    header, data = split(content)
    texts: dict[str, bytes] = {
        "nested deeply": b'{"x":' + NESTED.encode() + b"}",
        "nothing": b"",
        "a list": b"[]",
        "no JSON": b"{" * 50,
        "a name twice": json.dumps(header).encode()[:-1]
        + b", "
        + json.dumps({name: header[name] for name in header if name != "__metadata__"}).encode()[1:],
        "spaces": b" " * 10_000_000,
    }
    name = rng.choice([*sorted(texts), "its length huge", "its length of the file"])
    if name.startswith("its length"):
        length = 2**63 - 1 if "huge" in name else len(content)
        file.write_bytes(struct.pack("<Q", length) + content[8:])
    else:
        file.write_bytes(joined(texts[name], data))
    return f"{file.name}: header: {name}", "any"


def index(rng: Random, file: Path) -> Damage:
    """The index of a sharded checkpoint names other files."""
    whole = json.loads(file.read_text(encoding="utf-8"))
    where = whole["weight_map"]
    name = rng.choice(sorted(where))
    shard, folder = where[name], file.parent
    outside = folder.parent / "outside.safetensors"
    outside.write_bytes((folder / shard).read_bytes())
    ways: dict[str, tuple[Any, str]] = {
        "outside the folder": ("../outside.safetensors", "refuse"),
        "outside by its whole path": (str(outside), "refuse"),
        "out and in again": (f"../{folder.name}/{shard}", "any"),
        "with a dot": (f"./{shard}", "any"),
        "another shard": (rng.choice(sorted(set(where.values()) - {shard})), "any"),
        "a file that is not there": ("x.safetensors", "refuse"),
        "the folder": (".", "refuse"),
        "nothing": ("", "refuse"),
        "NUL": ("\0", "refuse"),
        "a long name": ("x" * 10_000, "refuse"),
        "the configuration": ("config.json", "refuse"),
        "null": (None, "refuse"),
        "a number": (5, "refuse"),
        "a list": ([shard], "refuse"),
        "an object": ({"a": 1}, "refuse"),
        "in a folder below": (f"deep/er/{shard}", "any"),
    }
    what = rng.choice(sorted(ways))
    new, follows = ways[what]
    if what == "in a folder below":
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / shard).rename(folder / new)
    every = rng.random() < 0.5 or what == "in a folder below"
    for one in [key for key in where if where[key] == shard] if every else [name]:
        where[one] = new
    file.write_text(json.dumps(whole), encoding="utf-8")
    return f"{file.name}: {'all of ' + shard if every else name} in {what}", follows


# GGUF


def gguf_bytes(rng: Random, file: Path) -> Damage:
    """A GGUF file: cut, or a bit flipped in its structure or in its values."""
    content = file.read_bytes()
    here = gguf_layout.layout(content)
    way, follows = rng.randrange(5), "any"
    if way == 0:
        content, what = cut(rng, content)
    else:
        kind = "values" if way == 1 else "structure"
        start, stop = rng.choice(getattr(here, kind))
        at, bit = rng.randrange(start, max(stop, start + 1)), rng.randrange(8)
        content, what = flip(content, at, bit), f"bit {bit} of byte {at} ({kind}) flipped"
        follows = "values" if way == 1 else "any"
    file.write_bytes(content)
    return f"{file.name}: {what}", follows


def gguf_number(rng: Random, file: Path) -> Damage:
    """A count, length, type or place in a GGUF file gets a number that cannot be."""
    content = bytearray(file.read_bytes())
    here = gguf_layout.layout(bytes(content))
    places = [(8, 8, "the number of tensors"), (16, 8, "the number of entries"), (4, 4, "the version")]
    for key, (start, _) in here.keys.items():
        places.append((start, 4, f"the type of {key}"))
        if int.from_bytes(content[start : start + 4], "little") == gguf_layout.ARRAY:
            places += [(start + 4, 4, f"the inner type of {key}"), (start + 8, 8, f"the length of {key}")]
    for name, (start, stop) in here.tensors.items():
        places += [
            (start, 8, f"the length of the name {name}"),
            (start + 8 + len(name), 4, f"the axes of {name}"),
            (stop - 20, 8, f"the last size of {name}"),
            (stop - 12, 4, f"the type of {name}"),
            (stop - 8, 8, f"the place of {name}"),
        ]
    at, width, what = rng.choice(places)
    number = rng.choice([0, 1, 2, 7, 9, 31, 32, 64, 1000, 2**31 - 1, 2**32 - 1, 2**62, 2**64 - 1]) % 256**width
    content[at : at + width] = number.to_bytes(width, "little")
    file.write_bytes(content)
    follows = "values" if what.startswith("the place") and number % 32 == 0 else "any"
    return f"{file.name}: {what} is {number}", follows


def gguf_entry(rng: Random, file: Path) -> Damage:
    """An entry of a GGUF file's metadata goes, comes, or gets a value of another type or of no sense."""
    content = file.read_bytes()
    here = gguf_layout.layout(content)
    key = rng.choice(sorted(here.keys))
    text = struct.pack("<Q", 1) + b"x"
    values: list[tuple[str, int, bytes]] = [
        ("the text x", 8, text),
        ("the empty text", 8, struct.pack("<Q", 0)),
        ("true", 7, b"\1"),
        ("-1", 5, struct.pack("<i", -1)),
        ("0", 4, struct.pack("<I", 0)),
        ("2**32-1", 4, struct.pack("<I", 2**32 - 1)),
        ("2**64-1", 10, struct.pack("<Q", 2**64 - 1)),
        ("NaN", 6, struct.pack("<f", float("nan"))),
        ("infinity", 12, struct.pack("<d", float("inf"))),
        ("-0.5", 6, struct.pack("<f", -0.5)),
        ("0.0", 6, struct.pack("<f", 0.0)),
        ("an empty array", 9, struct.pack("<IQ", 4, 0)),
        ("an array of two", 9, struct.pack("<IQii", 5, 2, 1, 2)),
        ("an array of arrays", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQi", 5, 1, 1)),
        ("arrays nested deeply", 9, struct.pack("<IQ", 9, 1) * 50_000),
    ]
    said, code, packed = rng.choice(values)
    way = rng.randrange(4)
    if way == 0:
        damaged, what = gguf_layout.without_key(content, key), f"{key} left out"
    elif way == 1:
        new = rng.choice(["llama.x", "split.count", "general.alignment", "general.quantization_version", key, "x", ""])
        damaged, what = gguf_layout.with_entry(content, new, code, packed), f"{new!r} = {said} besides"
    else:
        damaged, what = gguf_layout.with_value(content, key, code, packed), f"{key} = {said}"
    file.write_bytes(damaged)
    return f"{file.name}: {what}", "any"


def gguf_tensors(rng: Random, file: Path) -> Damage:
    """Two tensors of a GGUF file in one place or of one name; NaN in one; no name of how text is cut; a part only."""
    content = file.read_bytes()
    here = gguf_layout.layout(content)
    way = rng.choice(["overlap", "name twice", "nan", "no pre", "part of several", "halfway"])
    one, other = rng.sample(sorted(here.tensors), 2)
    (start, stop), (first, last) = here.tensors[one], here.tensors[other]
    if way in ("overlap", "halfway"):
        place = content[last - 8 : last]
        if way == "halfway":
            place = struct.pack("<Q", struct.unpack("<Q", place)[0] + 32)
        damaged, what = content[: stop - 8] + place + content[stop:], f"{one} overlaps {other} ({way})"
    elif way == "name twice":
        name = content[first : first + 8 + len(other)]
        table = content[:start] + name + content[start + 8 + len(one) : list(here.tensors.values())[-1][1]]
        damaged, what = table + b"\0" * (-len(table) % 32) + content[here.data :], f"{one} is called {other}, too"
    elif way == "nan":
        at = here.data + struct.unpack("<Q", content[stop - 8 : stop])[0]
        damaged, what = content[:at] + struct.pack("<f", float("nan")) + content[at + 4 :], f"{one} begins with NaN"
    elif way == "no pre":
        damaged, what = gguf_layout.without_key(content, "tokenizer.ggml.pre"), "no tokenizer.ggml.pre"
    else:
        damaged, what = gguf_layout.with_entry(content, "split.count", 2, struct.pack("<H", 2)), "split.count = 2"
    file.write_bytes(damaged)
    return f"{file.name}: {what}", "refuse"
