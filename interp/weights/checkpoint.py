"""What every checkpoint reader gives: a configuration, tensors under TransformerLens's names, a tokenizer, a source.

Shapes and number types are known from the header of a file, before a tensor is read or memory reserved for any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from interp.config import ModelConfig
from interp.errors import WeightsError
from interp.text.tokenizer import Tokenizer

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Row:
    """Where one of our weights lies: their tensor, the pattern to our shape, and which part of a fused tensor.

    `interleaved` rows have the two members of a rotary pair next to each other.
    """

    theirs: str
    pattern: str | None = None
    part: int | None = None
    interleaved: bool = False


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor that is read when it is called for.

    `dtype` is torch's, or the file's own name of a type that torch does not compute with; `origin` is the name that the
    file has for it.
    """

    read: Callable[[], Tensor] = field(repr=False)
    shape: tuple[int, ...]
    dtype: torch.dtype | str
    origin: str | None = None

    def __call__(self) -> Tensor:
        """The tensor itself."""
        return self.read()


def in_memory(tensor: Tensor, origin: str | None = None) -> Stored:
    """A tensor that is there already."""
    return Stored(lambda: tensor, tuple(tensor.shape), tensor.dtype, origin)


def equal(one: Stored, other: Stored) -> bool:
    """Whether two tensors hold the same numbers in the same type."""
    if one.dtype != other.dtype or one.dtype not in FLOATS or one.shape != other.shape:
        return False
    a, b = one(), other()
    return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or torch.equal(a, b)


def refuse_deeper(n_layers: object, names: Iterable[str], where: object) -> None:
    """Refuse a configuration of more layers than the weights have, before anything is made for each of them.

    Args:
        n_layers: what the configuration says.
        names: the tensors' names, in which the numbers are those of layers.
        where: the weights, for the message.

    Raises:
        WeightsError: it does.
    """
    stored = len({part for name in names for part in name.split(".") if part.isdigit()})
    if isinstance(n_layers, int) and n_layers > stored:
        raise WeightsError(f"the weights of {where} have {stored} layers, and their configuration asks for {n_layers}")


@dataclass(frozen=True)
class Source:
    """Where weights came from, for the provenance of results.

    `kind` is the format (`gguf`, `huggingface`, `transformers`, ...), `location` a path or repository id, `revision`
    the commit of a repository, `files` the weight files in the order they were read.
    """

    kind: str
    location: str
    revision: str | None = None
    files: tuple[Path, ...] = ()

    def sha256(self) -> str | None:
        """SHA-256 of the weight files, in hex, read now; None for weights that were never in a file.

        One file gives its own digest, as `sha256sum` prints it; several give the digest of their lines `digest  name`.

        Raises:
            WeightsError: a file that can no longer be read.
        """
        if not self.files:
            return None
        digests = [(sha256_of(file), file.name) for file in self.files]
        if len(digests) == 1:
            return digests[0][0]
        return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in digests).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model on disk, read as far as its names and shapes.

    `tensors` are under TransformerLens's names and in its shapes; one that is read may be a view that shares memory
    with the file or with another tensor.
    """

    cfg: ModelConfig
    tensors: Mapping[str, Stored]
    tokenizer: Tokenizer | None
    source: Source


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        WeightsError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"weight file {file} cannot be read: {error.strerror or error}") from error


# gelu_fast and gelu_pytorch_tanh are gelu_new's formula, written with other constants or by another kernel.
ACTIVATION_NAMES = {
    "relu": "relu",
    "relu2": "relu2",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "silu": "silu",
    "swish": "silu",
}
