"""The tokenizer that a GGUF file describes in its metadata, built as the model's own tokenizer.json has it.

1. `tokenizer.ggml.model` gives the kind (tokenizer_kinds.py).
2. `tokenizer.ggml.pre` names how byte-level text is split before merging (pre_tokenizers.py). A file without this entry
   (older converters left it out, or wrote `default`) is refused unless the caller of `interp.load` names it. The other
   kinds need none.
3. Control tokens become special tokens, user-defined ones added tokens; BOS and EOS are added as the file says.

A file need not hold a model: llama.cpp publishes vocabularies alone, and `read_tokenizer` reads those too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interp.arguments import shown
from interp.errors import WeightsError
from interp.text.tokenizer import Tokenizer
from interp.text.tokenizer_files import refused
from interp.weights.gguf.container import open_gguf
from interp.weights.gguf.pre_tokenizers import PRE_TOKENIZERS
from interp.weights.gguf.tokenizer_kinds import KINDS, Built
from interp.weights.gguf.vocabulary import USER_DEFINED, Vocabulary, vocabulary_of


def read_tokenizer(path: str | Path, *, pre_tokenizer: str | None = None) -> Tokenizer | None:
    """The tokenizer of a GGUF file, with or without a model in it; None if the file has none.

    Args:
        path: the file.
        pre_tokenizer: one of `PRE_TOKENIZERS`, if the file does not say how its byte-level tokenizer splits text.

    Raises:
        WeightsError: the file or its tokenizer cannot be read.
    """
    return build_tokenizer(open_gguf(path).metadata, name=str(path), pre_tokenizer=pre_tokenizer)


def build_tokenizer(metadata: dict[str, Any], *, name: str, pre_tokenizer: str | None = None) -> Tokenizer | None:
    """The tokenizer of a GGUF file's metadata, or None if the file has none.

    Args:
        metadata: the file's entries.
        name: the file, for messages and provenance.
        pre_tokenizer: one of `PRE_TOKENIZERS`, if the file does not say how its byte-level tokenizer splits text.

    Raises:
        WeightsError: a kind of tokenizer or pre-tokenizer that is not supported, or metadata that contradicts itself.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        return None
    if not isinstance(kind, str) or kind not in KINDS:
        raise WeightsError(
            f"{name}: tokenizer.ggml.model={shown(kind)} is not supported; choose from "
            f"{', '.join(repr(known) for known in KINDS)}, or give the model's own tokenizer with "
            "interp.load(..., tokenizer=)"
        )
    vocabulary = vocabulary_of(_with_pre(metadata, kind, name, pre_tokenizer), name)
    bos, eos, pad = (vocabulary.special_id(key) for key in ("bos", "eos", "padding"))
    with refused(f"{name}: the tokenizer in the metadata cannot be built", WeightsError):
        built = KINDS[kind](vocabulary)
        _add_tokens(built)
        _add_ends(built, vocabulary)
        return Tokenizer(built.backend, bos_token_id=bos, eos_token_id=eos, pad_token_id=pad, name=Path(name).stem)


def _with_pre(metadata: dict[str, Any], kind: str, name: str, chosen: str | None) -> dict[str, Any]:
    """The metadata, with the caller's choice of how text is split, if the file has none."""
    stored = metadata.get("tokenizer.ggml.pre")
    missing = stored in (None, "", "default")
    if chosen is not None and (kind != "gpt2" or not missing):
        kind_of = "SentencePiece" if kind != "bert" else "WordPiece"
        reason = (
            f"has a {kind_of} tokenizer, which needs none"
            if kind != "gpt2"
            else f"already has tokenizer.ggml.pre={shown(stored)}"
        )
        raise WeightsError(f"{name} {reason}; leave out pre_tokenizer={chosen!r}")
    if kind == "gpt2" and missing and chosen is None:
        raise WeightsError(
            f"{name} does not say how its tokenizer splits text (tokenizer.ggml.pre is "
            f"{'missing' if stored is None else repr(stored)}), and a wrong guess would give wrong ids: name it with "
            f"interp.load(..., pre_tokenizer=), one of {', '.join(PRE_TOKENIZERS)}, or give the model's own tokenizer "
            "with tokenizer="
        )
    return metadata if chosen is None else {**metadata, "tokenizer.ggml.pre": chosen}


def _add_tokens(built: Built) -> None:
    """Mark the tokens that are found in a text as a whole, whatever stands around them."""
    import tokenizers

    added = [
        tokenizers.AddedToken(token, normalized=False, special=type_ in built.special)
        for token, type_ in zip(built.tokens, built.types, strict=True)
        if type_ in (*built.special, USER_DEFINED)
    ]
    built.backend.add_tokens(added)


def _add_ends(built: Built, vocabulary: Vocabulary) -> None:
    """Put the tokens before and behind every text that the file, or the kind of tokenizer, asks for."""
    from tokenizers.processors import TemplateProcessing

    front = None if built.front is None else _end(vocabulary, *built.front)
    back = _end(vocabulary, *built.back)
    if front is None and back is None:
        return
    ends = {id_: built.tokens[id_] for id_ in (front, back) if id_ is not None}
    template = [ends[front]] if front is not None else []
    template += ["$A"] + ([ends[back]] if back is not None else [])
    built.backend.post_processor = TemplateProcessing(
        single=template, pair=[*template, "$B"], special_tokens=[(token, id_) for id_, token in ends.items()]
    )


def _end(vocabulary: Vocabulary, key: str, default: bool) -> int | None:
    flag = "sep" if key == "seperator" else key  # llama.cpp spells the two entries differently
    return vocabulary.special_id(key) if vocabulary.flag(f"add_{flag}_token", default) else None
