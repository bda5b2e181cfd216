"""The tokenizer that a GGUF file describes in its metadata, built as the model's own tokenizer.json has it.

1. `tokenizer.ggml.model` gives the kind: `gpt2` is byte-level BPE with its merges, `llama` is SentencePiece BPE, whose
   merges follow from the scores (a piece with a higher score is merged first; Kudo and Richardson 2018).
2. `tokenizer.ggml.pre` names how byte-level text is split before merging. A file without this entry (older converters
   left it out, or wrote `default`) is refused unless the caller of `interp.load` names it. SentencePiece needs none.
   The names are llama.cpp's (src/llama-vocab.cpp); each has here the pre-tokenizer of the models that it is used for.
   SmolLM splits off every digit, which changes the ids of a run of spaces or newlines before a digit; transformers 5
   does not do so when it reads a GGUF file.
3. Control tokens become special tokens, user-defined ones added tokens; BOS and EOS are added as the file says.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.arguments import shown
from interp.errors import WeightsError, nearest
from interp.text.tokenizer import Tokenizer
from interp.text.tokenizer_files import refused

if TYPE_CHECKING:
    import tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
SPACE = "\u2581"

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Pre:
    """How byte-level text is prepared: `split` is a regular expression, None means that of GPT-2."""

    split: str | None = None
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


PRE_TOKENIZERS = {
    "gpt-2": Pre(),
    "phi-2": Pre(),
    "olmo": Pre(nfc=True),  # the GPT-NeoX tokenizer: Pythia, OLMo
    "mpt": Pre(nfc=True),
    "smollm": Pre(digits=True),
    "starcoder": Pre(digits=True),
    "refact": Pre(digits=True),
    "llama-bpe": Pre(LLAMA3, ignore_merges=True, add_bos=True),
    "llama3": Pre(LLAMA3, ignore_merges=True, add_bos=True),
    "llama-v3": Pre(LLAMA3, ignore_merges=True, add_bos=True),
    "falcon3": Pre(LLAMA3, ignore_merges=True, add_bos=True),
    "smaug-bpe": Pre(LLAMA3),
    "dbrx": Pre(LLAMA3),
    "qwen2": Pre(QWEN2, nfc=True),
    "deepseek-r1-qwen": Pre(QWEN2),
    "tekken": Pre(TEKKEN, ignore_merges=True, add_bos=True),
}


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
    if kind not in ("gpt2", "llama"):
        raise WeightsError(
            f"{name}: tokenizer.ggml.model={shown(kind)} is not supported; choose from 'gpt2', 'llama', or give the "
            "model's own tokenizer with interp.load(..., tokenizer=)"
        )
    metadata = _with_pre(metadata, kind, name, pre_tokenizer)
    tokens = _list(metadata, "tokens", str, name)
    vocab = {token: id_ for id_, token in enumerate(tokens)}
    has_types = "tokenizer.ggml.token_type" in metadata
    types = _list(metadata, "token_type", int, name) if has_types else [NORMAL] * len(tokens)
    if len(vocab) != len(tokens) or len(types) != len(tokens):
        raise WeightsError(f"{name}: {len(tokens)} tokens, {len(vocab)} of them distinct, have {len(types)} types")
    import tokenizers

    bos, eos, pad = (_special_id(metadata, key, tokens, name) for key in ("bos", "eos", "padding"))
    with refused(f"{name}: the tokenizer in the metadata cannot be built", WeightsError):
        backend, adds_bos = (_byte_level if kind == "gpt2" else _sentencepiece)(metadata, vocab, types, name)
        special = (CONTROL, UNKNOWN) if kind == "llama" else (CONTROL,)
        backend.add_tokens(
            [
                tokenizers.AddedToken(token, normalized=False, special=type_ in special)
                for token, type_ in zip(tokens, types, strict=True)
                if type_ in (*special, USER_DEFINED)
            ]
        )
        _add_ends(backend, metadata, bos, eos, name, adds_bos=adds_bos)
        short = Path(name).stem
        return Tokenizer(backend, bos_token_id=bos, eos_token_id=eos, pad_token_id=pad, name=short)


def _with_pre(metadata: dict[str, Any], kind: str, name: str, chosen: str | None) -> dict[str, Any]:
    """The metadata, with the caller's choice of how text is split, if the file has none."""
    stored = metadata.get("tokenizer.ggml.pre")
    missing = stored in (None, "", "default")
    if chosen is not None and (kind != "gpt2" or not missing):
        reason = (
            "has a SentencePiece tokenizer, which needs none"
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


def _byte_level(
    metadata: dict[str, Any], vocab: dict[str, int], types: list[int], name: str
) -> tuple[tokenizers.Tokenizer, bool]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre_name = metadata["tokenizer.ggml.pre"]
    if not isinstance(pre_name, str) or pre_name not in PRE_TOKENIZERS:
        close = nearest(shown(pre_name), PRE_TOKENIZERS)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise WeightsError(
            f"{name}: tokenizer.ggml.pre={shown(pre_name)} is not supported, and any other would give wrong ids; "
            f"{hint}supported are {', '.join(PRE_TOKENIZERS)}"
        )
    pre = PRE_TOKENIZERS[pre_name]
    merges = [tuple(merge.split(" ")) for merge in _list(metadata, "merges", str, name)]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre.ignore_merges))
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if pre.digits else []
    if pre.split is not None:
        steps.append(pre_tokenizers.Split(Regex(pre.split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.split is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend, pre.add_bos


def _sentencepiece(
    metadata: dict[str, Any], vocab: dict[str, int], types: list[int], name: str
) -> tuple[tokenizers.Tokenizer, bool]:
    from tokenizers import Tokenizer, decoders, models, normalizers

    for key in ("remove_extra_whitespaces", "precompiled_charsmap"):
        if metadata.get(f"tokenizer.ggml.{key}"):
            raise WeightsError(f"{name}: tokenizer.ggml.{key} changes the text before it is split and is not supported")
    scores = _list(metadata, "scores", float, name)
    if len(scores) != len(vocab):
        raise WeightsError(f"{name}: {len(vocab)} tokens have {len(scores)} scores")
    normal = {token for (token, id_) in vocab.items() if types[id_] == NORMAL}
    lengths = sorted({len(piece) for piece in normal})  # cut only where a piece can end: one may be very long
    merges = [
        (scores[vocab[piece]], (piece[:cut], piece[cut:]))
        for piece in normal
        for cut in itertools.takewhile(len(piece).__gt__, lengths)
        if piece[:cut] in normal and piece[cut:] in normal
    ]
    merges.sort(key=lambda merge: (-merge[0], vocab[merge[1][0]], vocab[merge[1][1]]))
    unknown = types.index(UNKNOWN) if UNKNOWN in types else None
    backend = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[pair for _, pair in merges],
            unk_token=None if unknown is None else next(token for token, id_ in vocab.items() if id_ == unknown),
            fuse_unk=True,
            byte_fallback=BYTE in types,
        )
    )
    prefix = _flag(metadata, "add_space_prefix", True, name)
    replace = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace] if prefix else [replace])
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend, True


def _list(metadata: dict[str, Any], key: str, kind: type, name: str) -> list[Any]:
    values = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise WeightsError(f"{name}: tokenizer.ggml.{key} is missing or not a list of {kind.__name__}")
    return values


def _flag(metadata: dict[str, Any], key: str, default: bool, name: str) -> bool:
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
        raise WeightsError(f"{name}: tokenizer.ggml.{key} must be true or false, not {shown(value)}")
    return value


def _special_id(metadata: dict[str, Any], key: str, tokens: list[str], name: str) -> int | None:
    id_ = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if id_ is not None and (type(id_) is not int or not 0 <= id_ < len(tokens)):
        raise WeightsError(f"{name}: tokenizer.ggml.{key}_token_id={shown(id_)} is outside the {len(tokens)} tokens")
    return id_


def _add_ends(
    backend: tokenizers.Tokenizer,
    metadata: dict[str, Any],
    bos: int | None,
    eos: int | None,
    name: str,
    *,
    adds_bos: bool,
) -> None:
    from tokenizers.processors import TemplateProcessing

    front = bos if _flag(metadata, "add_bos_token", adds_bos, name) else None
    back = eos if _flag(metadata, "add_eos_token", False, name) else None
    if front is None and back is None:
        return
    ends = {id_: backend.id_to_token(id_) for id_ in (front, back) if id_ is not None}
    template = [ends[front]] if front is not None else []
    template += ["$A"] + ([ends[back]] if back is not None else [])
    backend.post_processor = TemplateProcessing(
        single=template, pair=[*template, "$B"], special_tokens=[(token, id_) for id_, token in ends.items()]
    )
