"""Weight files in a directory: safetensors, in one file or in shards, and torch's own format where it is safe to read.

Only headers are read until a tensor is needed. Every read opens the file anew, because a mapped file counts as used
memory for as long as it is open, and a large model would count twice.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.arguments import shown
from interp.errors import WeightsError
from interp.files.foreign_files import read_json, refuse_pointer
from interp.weights.checkpoint import Stored, in_memory

Tensors = dict[str, Stored]
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# safetensors' names of the number types that models compute in; other types keep safetensors' name.
DTYPES = {"F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16}


def open_weights(folder: Path) -> tuple[Tensors, tuple[Path, ...]]:
    """The tensors of a Hugging Face model directory by name, and the files they are in.

    Raises:
        WeightsError: no weights, a truncated or missing file, or a pickle that is unsafe to read.
    """
    for name, open_file in zip(WEIGHT_FILES, (open_safetensors, open_torch), strict=True):
        if (folder / name).is_file():
            return open_file(folder / name), (folder / name,)
        if (folder / f"{name}.index.json").is_file():
            return _open_shards(folder / f"{name}.index.json", open_file)
    raise WeightsError(f"{folder} holds no model.safetensors (and no pytorch_model.bin), but {contents(folder)}")


def open_safetensors(file: Path) -> Tensors:
    """The tensors of one safetensors file by name."""
    refuse_pointer(file)
    tensors: Tensors = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118, not a mapping
                header = opened.get_slice(name)
                dtype = DTYPES.get(header.get_dtype(), header.get_dtype())
                read = partial(_from_safetensors, file, name)
                tensors[name] = Stored(read, tuple(header.get_shape()), dtype, name)
        return tensors
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is not a readable safetensors file: {error}") from error


def open_torch(file: Path) -> Tensors:
    """The tensors of a file that `torch.save` wrote, if torch can read it without running code from it."""
    refuse_pointer(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # torch raises many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise WeightsError(
            f"{file} is a pickled checkpoint that torch.load(weights_only=True) refuses to read ({reason}); "
            "save it as safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{file} must hold a state dict of tensors, not {type(state).__name__}")
    strange = [name for name in state if not isinstance(name, str)]
    if strange:
        raise WeightsError(f"{file} must hold tensors under names, not under {shown(strange[0])}")
    return {name: in_memory(tensor, name) for name, tensor in state.items()}


def contents(folder: Path) -> str:
    """The first names in a directory, for messages."""
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def _from_safetensors(file: Path, name: str) -> Tensor:
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"tensor {name!r} of {file} cannot be read: {error}") from error


def _open_shards(index: Path, open_file: Callable[[Path], Tensors]) -> tuple[Tensors, tuple[Path, ...]]:
    where = _weight_map(index)
    files = {shard: index.parent / shard for shard in sorted(set(where.values()))}
    absent = [shard for shard, file in files.items() if not _is_file(file)]
    if absent:
        raise WeightsError(f"{index} names shards that do not exist: {', '.join(map(shown, absent))}")
    shards = {shard: open_file(file) for shard, file in files.items()}
    missing = [name for name, shard in where.items() if name not in shards[shard]]
    if missing:
        raise WeightsError(f"{index} says that {missing[0]!r} is in {where[missing[0]]}, but it is not")
    return {name: shards[shard][name] for name, shard in where.items()}, tuple(files.values())


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name that is too long for a file system
        return False


def shards_of(index: Path) -> set[str]:
    """The shards that an index names; none if there is no index."""
    return set(_weight_map(index).values()) if index.is_file() else set()


def _weight_map(index: Path) -> dict[str, str]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict):
        raise WeightsError(f"{index} has no 'weight_map' that says which shard each tensor is in")
    for name, shard in where.items():
        if not isinstance(shard, str) or not stays_inside(shard):
            raise WeightsError(
                f"{index} says that {name!r} is in {shown(shard)}; expected a file in or below its folder"
            )
    return where


def stays_inside(name: str) -> bool:
    """Whether a name stays below its folder, on any system. Links may lead anywhere: the hub's cache has such links."""
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    rooted = PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or PureWindowsPath(name).root
    return bool(parts) and not rooted and ".." not in parts and "\0" not in name
