"""Weight files in a directory: safetensors, in one file or in shards, and torch's own format where it is safe to read.

Nothing is read but headers until a tensor is asked for. Every reading opens the file anew: a mapped file counts as used
memory for as long as it is open, and a large model would count twice.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.errors import WeightsError

Tensors = dict[str, Callable[[], Tensor]]


def open_weights(folder: Path) -> tuple[Tensors, tuple[Path, ...]]:
    """The tensors of a Hugging Face model directory by name, and the files they are in.

    Raises:
        WeightsError: no weights, a truncated or missing file, or a pickle that is unsafe to read.
    """
    for name, open_file in (("model.safetensors", open_safetensors), ("pytorch_model.bin", open_torch)):
        if (folder / name).is_file():
            return open_file(folder / name), (folder / name,)
        if (folder / f"{name}.index.json").is_file():
            return _open_shards(folder / f"{name}.index.json", open_file)
    raise WeightsError(f"{folder} holds no model.safetensors (and no pytorch_model.bin), but {contents(folder)}")


def open_safetensors(file: Path) -> Tensors:
    """The tensors of one safetensors file by name."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: partial(_from_safetensors, file, name) for name in opened.keys()}  # noqa: SIM118, no mapping
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is no safetensors file that can be read: {error}") from error


def open_torch(file: Path) -> Tensors:
    """The tensors of a file that `torch.save` wrote, if torch reads it without running code from it."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # torch raises many kinds
        reason = str(error).strip().splitlines()[0].partition(". ")[0]
        raise WeightsError(
            f"{file} is a pickled checkpoint, refused as torch.load(weights_only=True) does not read it ({reason}); "
            "save it as safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{file} must hold a state dict of tensors, not {type(state).__name__}")
    return {name: partial(state.__getitem__, name) for name in state}


def contents(folder: Path) -> str:
    """What a directory holds, in a few words."""
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        WeightsError: there is no such file, or it holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise WeightsError(f"{file} is no JSON that can be read: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} must hold a JSON object, not {type(content).__name__}")
    return content


def _from_safetensors(file: Path, name: str) -> Tensor:
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"tensor {name!r} of {file} cannot be read: {error}") from error


def _open_shards(index: Path, open_file: Callable[[Path], Tensors]) -> tuple[Tensors, tuple[Path, ...]]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict):
        raise WeightsError(f"{index} has no 'weight_map'")
    files = tuple(index.parent / name for name in sorted(set(where.values())))
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise WeightsError(f"{index} names shards that are not there: {', '.join(absent)}")
    shards = {file.name: open_file(file) for file in files}
    lost = [name for name, file in where.items() if name not in shards[file]]
    if lost:
        raise WeightsError(f"{index} says that {lost[0]!r} is in {where[lost[0]]}, but it is not")
    return {name: shards[file][name] for name, file in where.items()}, files
