"""Text to train on: a user's file, or text that the model itself writes, cut into sequences of equal length.

1. A file is .txt (one document) or .jsonl (a document a line, under "text"). Documents are joined, with the model's
   end-of-sequence token between them if it has one, and cut.
2. Without a file the model writes: every sequence begins with the beginning-of-sequence token, or a random token if
   there is none, and continues with draws at temperature 1. So the text has the model's own distribution.
3. A model that cannot write (a bidirectional one, or one whose output vocabulary is not its input vocabulary) gets
   random tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from interp.arguments import MOST, checked, shown, whole_number
from interp.arguments import seed as check_seed
from interp.errors import PromptError, unknown
from interp.hooked.model import HookedModel
from interp.progress import counting

SUFFIXES = (".txt", ".jsonl")
WRITE_SEQUENCES = 64  # sequences that are written together


@dataclass(frozen=True, eq=False)
class Texts:
    """Sequences of one length.

    Attributes:
        tokens: ids [sequence, pos] int64.
        made: what they are, in words, for provenance and captions.
    """

    tokens: Tensor
    made: str

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or 0 in self.tokens.shape or self.tokens.is_floating_point():
            raise PromptError(
                f"texts must be token ids [sequence, pos] of an integer type, not {list(self.tokens.shape)} of "
                f"{self.tokens.dtype}"
            )

    def __len__(self) -> int:
        return len(self.tokens)


@checked
def prepare(
    model: HookedModel,
    source: Texts | Tensor | str | Path | Sequence[str],
    *,
    length: int = 64,
    most: int | None = None,
) -> Texts:
    """`Texts` from a file, documents, or ids.

    Args:
        model: its tokenizer cuts text into tokens.
        source: `Texts` or ids [sequence, pos], which are used unchanged; a file; or documents.
        length: tokens in a sequence, for files and documents; at most the model's context.
        most: keep at most this many sequences, the first ones; None keeps all.

    Raises:
        PromptError: a file that cannot be read, text of less than one sequence, ids that this model does not have.
        UnknownName: a file that is neither .txt nor .jsonl.
    """
    if isinstance(source, str | Path):
        path = Path(os.path.expanduser(source))
        texts = _cut(model, documents(path), length, path.name)
    elif isinstance(source, Tensor):
        texts = Texts(source, "token ids that were given")
    elif isinstance(source, Texts):
        texts = source
    else:
        if not isinstance(source, Sequence) or not all(isinstance(one, str) for one in source):
            raise PromptError(f"text must be token ids, a file, or a list of documents, not {shown(source)}")
        texts = _cut(model, list(source), length, f"{len(source)} documents")
    ids = texts.tokens
    if ids.ndim != 2 or not ids.numel() or ids.dtype == torch.bool or ids.is_floating_point():
        raise PromptError(f"text as ids must be whole numbers [sequence, pos], not {list(ids.shape)} of {ids.dtype}")
    most = None if most is None else whole_number("most", most, least=1, refuse=PromptError)
    low, high = (int(id_) for id_ in torch.aminmax(ids))
    if low < 0 or high >= model.cfg.d_vocab:
        raise PromptError(
            f"token id {low if low < 0 else high} is out of range: this model's ids are 0 to {model.cfg.d_vocab - 1}"
        )
    if ids.shape[1] > model.cfg.n_ctx:
        raise PromptError(
            f"sequences of {ids.shape[1]} tokens are longer than the model's context of {model.cfg.n_ctx}: cut them"
        )
    return texts if most is None or len(texts) <= most else Texts(ids[:most], texts.made)


def documents(path: Path) -> list[str]:
    """The documents of a .txt or .jsonl file in UTF-8.

    Raises:
        UnknownName: a file that is neither .txt nor .jsonl.
        PromptError: a file that cannot be read, or a line without "text"; the message names it.
    """
    if path.suffix not in SUFFIXES:
        raise unknown("kind of text file", path.suffix or path.name, SUFFIXES)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PromptError(f"text cannot be read from {str(path)!r}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{str(path)!r} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
        ) from None
    except ValueError as error:  # a path with a NUL
        raise PromptError(f"text cannot be read from {str(path)!r}: {error}") from None
    if path.suffix == ".txt":
        return [text]
    texts = []
    for number, line in enumerate(text.split("\n"), start=1):  # a document may contain other kinds of line end
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PromptError(f"line {number} of {str(path)!r} is not JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            has = ", ".join(map(repr, row)) if isinstance(row, dict) else type(row).__name__
            raise PromptError(
                f'line {number} of {str(path)!r} needs a string under "text", and has only {has or "nothing"}'
            )
        texts.append(row["text"])
    return texts


def _cut(model: HookedModel, texts: Sequence[str], length: int, name: str) -> Texts:
    """Documents joined and cut into sequences of `length` tokens; the remainder at the end is dropped."""
    length = _length(model, length)
    if model.tokenizer is None:
        raise PromptError("this model has no tokenizer: give token ids [sequence, pos], or let it write its own text")
    ids: list[int] = []
    for document in texts:
        row = model.tokenizer.encode(document)
        end = model.tokenizer.eos_token_id
        ids += row if end is None or not row or row[-1] == end else [*row, end]
    if len(ids) < length:
        raise PromptError(f"{name} has {len(ids)} tokens, fewer than one sequence of {length}: give more text")
    rows = len(ids) // length
    return Texts(torch.tensor(ids[: rows * length]).unflatten(0, (rows, length)), name)


@checked
def write(
    model: HookedModel,
    n: int,
    *,
    length: int = 64,
    seed: int = 0,
    temperature: float = 1.0,
    progress: bool | None = None,
) -> Texts:
    """Sequences that the model writes itself.

    Args:
        model: the model that writes.
        n: how many sequences.
        length: tokens in each, the first included; at most the model's context.
        seed: of all draws; torch's global generator is not touched.
        temperature: divides the logits.
        progress: a bar on stderr; None shows one in a terminal.
    """
    n = whole_number("the number of sequences", n, least=1, most=MOST, refuse=PromptError)
    length, seed = _length(model, length), check_seed(seed)
    cfg, tokenizer = model.cfg, model.tokenizer
    generator = torch.Generator().manual_seed(seed)
    if not cfg.causal or cfg.d_vocab_out != cfg.d_vocab:
        return Texts(torch.randint(cfg.d_vocab, (n, length), generator=generator), "random tokens")
    bos = None if tokenizer is None else tokenizer.bos_token_id
    first = torch.full((n, 1), bos) if bos is not None else torch.randint(cfg.d_vocab, (n, 1), generator=generator)
    seeds = torch.randint(2**31, (n,), generator=generator).tolist()
    parts = []
    with counting(total=n, desc="writing text", unit=" sequences", progress=progress) as bar:
        for start in range(0, n, WRITE_SEQUENCES):
            rows = first[start : start + WRITE_SEQUENCES]
            options = {"temperature": temperature, "seed": seeds[start], "stop_at_eos": False}
            parts.append(model.generate(rows, length - 1, **options).cpu())
            bar.update(len(rows))
    begins = "random tokens" if tokenizer is None or bos is None else repr(tokenizer.bos_token)
    return Texts(
        torch.cat(parts), f"text that the model wrote (from {begins}, temperature {temperature:g}, seed {seed})"
    )


def _length(model: HookedModel, length: int) -> int:
    return min(whole_number("length", length, least=1, refuse=PromptError), model.cfg.n_ctx)
