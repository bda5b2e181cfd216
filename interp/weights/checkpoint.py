"""What every checkpoint reader returns: a configuration, tensors under TransformerLens's names, a tokenizer, a source.

Shapes and number types are known from a file's header, before any tensor is read or memory is reserved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from interp.config import EncoderDecoderConfig, ModelConfig
from interp.errors import WeightsError
from interp.text.tokenizer import Tokenizer

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Row:
    """Where one of our weights is stored: their tensor's name, the einops pattern to our shape, and the part.

    A name with `{i}` means several tensors, numbered from 0, which are stacked. `part` is the number of the part in a
    tensor that fuses several weights, or which heads of one that holds queries, keys and values under one another: "q",
    "k" or "v". With an axis `slot` in the pattern they lie in groups, of which each has its queries, a key and a value.
    In an `interleaved` tensor the two members of a rotary pair are next to each other. `skipped` rows at the start of
    theirs belong to no position; None skips as many as there are more than the model has positions.
    """

    theirs: str
    pattern: str | None = None
    part: int | str | None = None
    interleaved: bool = False
    skipped: int | None = 0


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor that is read when it is called.

    `dtype` is torch's, or the file's own name of a type that torch does not compute with; `origin` is the tensor's name
    in the file.
    """

    read: Callable[[], Tensor] = field(repr=False)
    shape: tuple[int, ...]
    dtype: torch.dtype | str
    origin: str | None = None

    def __call__(self) -> Tensor:
        """The tensor itself."""
        return self.read()


def in_memory(tensor: Tensor, origin: str | None = None) -> Stored:
    """A tensor that is already in memory."""
    return Stored(lambda: tensor, tuple(tensor.shape), tensor.dtype, origin)


def equal(one: Stored, other: Stored) -> bool:
    """Whether two tensors hold the same numbers in the same type."""
    if one.dtype != other.dtype or one.dtype not in FLOATS or one.shape != other.shape:
        return False
    a, b = one(), other()
    return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or torch.equal(a, b)


def refuse_deeper(n_layers: object, names: Iterable[str], where: object) -> None:
    """Refuse a configuration with more layers than the weights have, before anything is built for each layer.

    Args:
        n_layers: the number of layers in the configuration.
        names: the tensors' names, in which every number is that of a layer.
        where: the weights, for the message.

    Raises:
        WeightsError: the configuration has more layers.
    """
    stored = len({part for name in names for part in name.split(".") if part.isdigit()})
    if isinstance(n_layers, int) and n_layers > stored:
        raise WeightsError(f"the weights of {where} have {stored} layers, but their configuration has {n_layers}")


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
        """SHA-256 of the weight files, in hex, computed now; None for weights that were never in a file.

        For one file it is what `sha256sum` prints; for several, the SHA-256 of the lines that `sha256sum` prints.

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
    """A model on disk, of which only names and shapes have been read.

    `tensors` have TransformerLens's names and shapes; a tensor that is read may share memory with the file or with
    another tensor.
    """

    cfg: ModelConfig | EncoderDecoderConfig
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


# Several names stand for one formula, computed by another kernel or with constants written in another way.
ACTIVATION_NAMES = {
    "relu": "relu",
    "relu2": "relu2",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}
