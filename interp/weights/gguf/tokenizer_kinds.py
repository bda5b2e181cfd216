"""The five kinds of tokenizer that `tokenizer.ggml.model` names, each built as transformers builds it.

1. `gpt2`: byte-level BPE with the merges in the file; text is split as `pre_tokenizers.py` says.
2. `llama`: SentencePiece BPE, whose merges follow from the scores (a piece with a higher score is merged first; Kudo
   and Richardson 2018). A space before every text belongs to it unless the file says otherwise. The Gemma models before
   the fourth have this kind without that space; their merges follow the order of the pieces, as in transformers.
3. `gemma4`: the same letters as `llama`, with the merges in the file.
4. `t5`: SentencePiece Unigram, the division of a text whose pieces have the largest sum of scores.
5. `bert`: WordPiece. llama.cpp spells its tokens as SentencePiece does, "▁word" and "rest" for "word" and "##rest".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.arguments import shown
from interp.errors import WeightsError, nearest
from interp.weights.gguf.pre_tokenizers import PRE_TOKENIZERS, splitter
from interp.weights.gguf.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, Vocabulary

if TYPE_CHECKING:
    import tokenizers

SPACE = "\u2581"
T5_BLANKS = 100  # <extra_id_0> to <extra_id_99>


@dataclass(frozen=True)
class Built:
    """A tokenizer without its special tokens.

    Args:
        backend: the tokenizer.
        tokens: the tokens of the file, spelled as the tokenizer has them.
        types: their types, as the tokenizer treats them.
        special: the types of token that become special tokens.
        front: the entry for the token before every text, and whether it is added where the file does not say so; None
            adds none, whatever the file says.
        back: the same for the token behind every text.
    """

    backend: tokenizers.Tokenizer
    tokens: list[str]
    types: list[int]
    special: tuple[int, ...] = (CONTROL,)
    front: tuple[str, bool] | None = ("bos", False)
    back: tuple[str, bool] = ("eos", False)


def byte_level(vocabulary: Vocabulary) -> Built:
    """Byte-level BPE.

    Raises:
        WeightsError: the file names a way of splitting text that is not supported.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    name = vocabulary.metadata["tokenizer.ggml.pre"]
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        close = nearest(shown(name), PRE_TOKENIZERS)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise WeightsError(
            f"{vocabulary.name}: tokenizer.ggml.pre={shown(name)} is not supported, and any other would give wrong "
            f"ids; {hint}supported are {', '.join(PRE_TOKENIZERS)}"
        )
    pre = PRE_TOKENIZERS[name]
    model = models.BPE(vocab=vocabulary.ids, merges=_merges(vocabulary), ignore_merges=pre.ignore_merges)
    backend = Tokenizer(model)
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = splitter(pre)
    backend.decoder = decoders.ByteLevel()
    return Built(backend, vocabulary.tokens, vocabulary.types, front=("bos", pre.add_bos))


def sentencepiece_bpe(vocabulary: Vocabulary) -> Built:
    """SentencePiece BPE, with merges that follow from the pieces.

    Raises:
        WeightsError: the file asks for changes to the text that are not supported.
    """
    for key in ("remove_extra_whitespaces", "precompiled_charsmap"):
        if vocabulary.metadata.get(f"tokenizer.ggml.{key}"):
            raise WeightsError(
                f"{vocabulary.name}: tokenizer.ggml.{key} changes the text before it is split and is not supported"
            )
    scores, tokens, types = vocabulary.scores(), list(vocabulary.tokens), list(vocabulary.types)
    gemma = str(vocabulary.metadata.get("general.architecture")).startswith("gemma")
    if gemma:
        # The converter writes a run of spaces as it stands in a text. For the model it is a piece, made by merging.
        known = set(tokens)
        for id_, token in enumerate(tokens):
            run = SPACE * len(token)
            if len(token) > 1 and not token.strip(" ") and run not in known:
                tokens[id_], types[id_] = run, NORMAL
    joined = {token for token, type_ in zip(tokens, types, strict=True) if type_ == NORMAL}
    ids = {token: id_ for id_, token in enumerate(tokens)}
    lengths = sorted({len(piece) for piece in joined})  # cut only where a piece can end: one may be very long
    merges = [
        (piece[:cut], piece[cut:])
        for piece in joined
        for cut in itertools.takewhile(len(piece).__gt__, lengths)
        if piece[:cut] in joined and piece[cut:] in joined
    ]

    def by_score(pair: tuple[str, str]) -> tuple[float, int, int]:
        return -scores[ids[pair[0] + pair[1]]], ids[pair[0]], ids[pair[1]]

    def by_place(pair: tuple[str, str]) -> tuple[int, int]:
        return ids[pair[0] + pair[1]], -len(pair[0])

    merges.sort(key=by_place if gemma else by_score)
    prefix = vocabulary.flag("add_space_prefix", not gemma)
    backend = _with_spaces(_bpe(vocabulary, ids, merges, byte_fallback=BYTE in types), prefix=prefix)
    return Built(backend, tokens, types, special=(CONTROL, UNKNOWN), front=("bos", True))


def gemma4(vocabulary: Vocabulary) -> Built:
    """The tokenizer of Gemma 4; its BOS stands in the chat template, and the file's flag for it is not the model's."""
    model = _bpe(vocabulary, vocabulary.ids, _merges(vocabulary), byte_fallback=True)
    backend = _with_spaces(model, prefix=False)
    return Built(backend, vocabulary.tokens, vocabulary.types, special=(CONTROL, UNKNOWN), front=None)


def unigram(vocabulary: Vocabulary) -> Built:
    """SentencePiece Unigram.

    Raises:
        WeightsError: the table of characters is not one, or no token stands for what is unknown.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    if vocabulary.unknown is None:
        raise WeightsError(f"{vocabulary.name}: a t5 tokenizer needs a token for what is unknown (of type {UNKNOWN})")
    tokens, types = _with_blanks(vocabulary)
    scored = list(zip(tokens, vocabulary.scores(), strict=True))
    model = models.Unigram(scored, unk_id=vocabulary.unknown, byte_fallback=BYTE in types)
    prefix = vocabulary.flag("add_space_prefix", True)
    if vocabulary.flag("remove_extra_whitespaces", True):
        scheme = "always" if prefix else "never"
        backend = Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme)]
        )
        of_bytes: list[Any] = [decoders.ByteFallback()] if BYTE in types else []
        backend.decoder = decoders.Sequence([*of_bytes, decoders.Metaspace(SPACE, prepend_scheme=scheme)])
    else:
        backend = _with_spaces(model, prefix=prefix)
    if "tokenizer.ggml.precompiled_charsmap" in vocabulary.metadata:
        # The entries are bytes, signed or not.
        table = bytes(value & 0xFF for value in vocabulary.entries("precompiled_charsmap", int))
        steps: list[Any] = [normalizers.Precompiled(table)]
        backend.normalizer = normalizers.Sequence([*steps, *([backend.normalizer] if backend.normalizer else [])])
    return Built(backend, tokens, types, special=(CONTROL, UNKNOWN), back=("eos", True))


def wordpiece(vocabulary: Vocabulary) -> Built:
    """WordPiece, with the spelling that transformers has."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    def respelled(token: str, type_: int) -> str:
        if type_ == CONTROL or (token.startswith("[") and token.endswith("]")):
            return token
        return token.removeprefix(SPACE) if token.startswith(SPACE) else f"##{token}"

    tokens = [respelled(token, type_) for token, type_ in zip(vocabulary.tokens, vocabulary.types, strict=True)]
    unknown = vocabulary.special_id("unknown")
    backend = Tokenizer(
        models.WordPiece(
            {token: id_ for id_, token in enumerate(tokens)},
            unk_token="[UNK]" if unknown is None else tokens[unknown],
            max_input_chars_per_word=100,
        )
    )
    # A vocabulary for small letters alone has no capital in any piece; most files do not say which theirs is.
    pieces = (token for token, type_ in zip(tokens, vocabulary.types, strict=True) if type_ == NORMAL)
    lowercase = vocabulary.flag("normalizer.lowercase", all(piece == piece.lower() for piece in pieces))
    accents = vocabulary.flag("normalizer.strip_accents", lowercase)
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=accents)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    ends = ("bos", True), ("seperator", True)  # spelled so in the files
    return Built(backend, tokens, vocabulary.types, (CONTROL, UNKNOWN), *ends)


KINDS: dict[str, Callable[[Vocabulary], Built]] = {
    "gpt2": byte_level,
    "llama": sentencepiece_bpe,
    "gemma4": gemma4,
    "t5": unigram,
    "bert": wordpiece,
}


def _merges(vocabulary: Vocabulary) -> Any:
    return [tuple(merge.split(" ")) for merge in vocabulary.entries("merges", str)]


def _bpe(vocabulary: Vocabulary, ids: dict[str, int], merges: Any, *, byte_fallback: bool) -> Any:
    from tokenizers import models

    unknown = None if vocabulary.unknown is None else vocabulary.tokens[vocabulary.unknown]
    return models.BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback)


def _with_spaces(model: Any, *, prefix: bool) -> tokenizers.Tokenizer:
    """A tokenizer that reads every space as a letter, and maybe puts one before every text."""
    from tokenizers import Tokenizer, decoders, normalizers

    backend = Tokenizer(model)
    replace = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace] if prefix else [replace])
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _with_blanks(vocabulary: Vocabulary) -> tuple[list[str], list[int]]:
    """Tokens and types, with T5's names for the blanks in a prompt: a converter writes `[PAD32000]` and so on."""
    tokens, types = list(vocabulary.tokens), list(vocabulary.types)
    places = [id_ for id_, token in enumerate(tokens) if re.fullmatch(r"\[PAD\d+\]", token)][:T5_BLANKS]
    names = [f"<extra_id_{T5_BLANKS - 1 - at}>" for at in range(len(places))]
    if not set(names) & set(tokens):
        for id_, name in zip(places, names, strict=True):
            tokens[id_], types[id_] = name, CONTROL
    return tokens, types
