"""What every checkpoint reader gives: a configuration, tensors under TransformerLens's names, a tokenizer, a source."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from interp.config import ModelConfig
from interp.errors import WeightsError
from interp.tokens import Tokenizer


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
        digests = [(_sha256(file), file.name) for file in self.files]
        if len(digests) == 1:
            return digests[0][0]
        return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in digests).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model on disk, read as far as its names and shapes.

    `tensors` maps TransformerLens's names to functions that read one tensor, float or as stored, in TransformerLens's
    shape; the tensor may be a view that shares memory with the file or with another tensor.
    """

    cfg: ModelConfig
    tensors: Mapping[str, Callable[[], torch.Tensor]]
    tokenizer: Tokenizer | None
    source: Source


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"weight file {file} cannot be read: {error.strerror or error}") from error
