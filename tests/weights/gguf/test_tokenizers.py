"""Tokenizers of GGUF files: vocabularies trained here, written as metadata by `gguf`, compared with transformers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import regex
import sentencepiece
from gguf_files import CORPUS, GGUF_LLAMA, Metadata, byte_level, sentencepiece_vocabulary, write
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertTokenizer,
    CohereTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    GPTNeoXTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3_5Tokenizer,
    T5Tokenizer,
)
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from interp.errors import WeightsError
from interp.text.tokenizer import Tokenizer
from interp.weights.gguf.pre_tokenizers import PRE_TOKENIZERS, splitter
from interp.weights.gguf.tokenizer import build_tokenizer, read_tokenizer

PIECES = ["<start_of_turn>", "<table>"]
RUNS = [*("\n" * n for n in range(2, 6)), *("\u2581" * n for n in range(2, 9))]
TEXTS = [
    "",
    " ",
    "Hello world, HELLO iPhone getUserName",
    "two  spaces, trailing  ",
    "def f(x):\n    return x + 42  # 3.14\n\n\n\ttab",
    "In 2024, 1,000,000 people, 1234567 and v1.2.3 or 12345678abc",
    "café cafe\u0301 naïve Ωμέγα \u212a \u2126",
    "Привет, мир! 日本語のテキスト と カタカナ 中文，句。 한국어 मराठी नमस्ते مرحبا؟ ไทย ភាសា",
    "🙂👩‍💻🏳️‍🌈𝔘 ½ ²³ ① ٣٤٥",
    "don't WE'LL I'VE 'tis  \t\r\n" + " " * 30 + "end",
    "a\x00\x01b\u200b\u00a0c \u3000d",
    '!!! ... (a) [b]{c} "quoted" <d> a|b x=y+z $5 50% #tag /path\\file `code` ~',
    *CORPUS,
]
SPECIALS = ["<|im_start|>user\nhi<|endoftext|>b<think> c", "<start_of_turn>user\n\n\nhi<eos>b<table>x"]


def noise(n: int) -> list[str]:
    """Texts of random characters out of those above, spaces and newlines often."""
    source, letters = random.Random(0), "".join(TEXTS) + " \n\t" * 40
    return ["".join(source.choices(letters, k=source.randrange(1, 40))) for _ in range(n)]


def file_of(folder: Path, metadata: Metadata, architecture: str = "llama") -> Path:
    """A file that holds a vocabulary alone, as llama.cpp publishes them."""
    return write(folder / "vocabulary.gguf", architecture, metadata, {})


def read(path: Path, **options: Any) -> Tokenizer:
    tokenizer = read_tokenizer(path, **options)
    assert tokenizer is not None
    return tokenizer


def transformers_reads(path: Path) -> Backend:
    architecture, found, _ = get_gguf_tokenizer(str(path))
    return convert_gguf_tokenizer(architecture, found)[0]


def assert_equal(ours: Tokenizer, theirs: Any, texts: Sequence[str], *, ends: bool = False) -> None:
    """The same ids and the same text of them; `theirs` is transformers' or a Rust tokenizer."""
    backend = getattr(theirs, "backend_tokenizer", theirs)
    for text in texts:
        ids = ours.encode(text) if ends else ours.at_start(text)
        assert ids == backend.encode(text, add_special_tokens=ends).ids, text
        for skip in (False, True):
            assert ours.decode(ids, skip) == backend.decode(ids, skip_special_tokens=skip), text


# Byte-level: the models' own classes, their own tokenizer.json, and llama.cpp's expressions.

CLASSES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "jais", "roberta-bpe", "exaone4"), GPT2Tokenizer),
    **dict.fromkeys(("olmo", "modern-bert", "mpt"), GPTNeoXTokenizer),
    "qwen2": Qwen2Tokenizer,
    "qwen35": Qwen3_5Tokenizer,
    "command-r": CohereTokenizer,
}


@pytest.mark.parametrize("pre", CLASSES)
def test_byte_level_tokenizers_equal_the_classes_of_transformers(tmp_path: Path, pre: str) -> None:
    _, metadata = byte_level(pre)
    vocab = {token: id_ for id_, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    theirs = CLASSES[pre](vocab=vocab, merges=merges)
    theirs.add_special_tokens({"additional_special_tokens": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]})
    theirs.add_tokens(["<think>"])
    assert_equal(read(file_of(tmp_path, metadata)), theirs, [*TEXTS, SPECIALS[0], *noise(20)])


@pytest.mark.parametrize("pre", [pre for pre in GGUF_PRE_TOKENIZER_SPLITS if not PRE_TOKENIZERS[pre].nfc])
def test_byte_level_tokenizers_equal_what_transformers_reads(tmp_path: Path, pre: str) -> None:
    path = file_of(tmp_path, byte_level(pre)[1])
    theirs = transformers_reads(path)
    if PRE_TOKENIZERS[pre].ignore_merges:  # which transformers leaves out when it reads a GGUF file
        theirs.model.ignore_merges = True
    assert_equal(read(path), theirs, [*TEXTS, SPECIALS[0], *noise(20)])


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def in_bytes(*, words: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words}


EACH_DIGIT = {"type": "Digits", "individual_digits": True}
# The pre-tokenizers in tokenizer.json of tiiuae/falcon-7b, deepseek-ai/deepseek-coder-6.7b-instruct, bigscience/bloom,
# deepseek-ai/DeepSeek-V3, HuggingFaceTB/SmolLM-135M and bigcode/starcoder2-7b.
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "falcon": [
        {"type": "Punctuation", "behavior": "Contiguous"},
        in_bytes(words=True),
        {"type": "Digits", "individual_digits": False},
        split("[0-9][0-9][0-9]"),
    ],
    "deepseek-coder": [
        *(split(pattern) for pattern in ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+")),
        EACH_DIGIT,
        in_bytes(words=False),
    ],
    "bloom": [split(" ?[^(\\s|[.,!?…。，、।۔،])]+"), in_bytes(words=False)],
    "deepseek-v3": [
        split(r"\p{N}{1,3}"),
        split("[一-龥぀-ゟ゠-ヿ]+"),
        split(
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
            "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
        ),
        in_bytes(words=False),
    ],
    "smollm": [EACH_DIGIT, in_bytes(words=True)],
    "starcoder": [EACH_DIGIT, in_bytes(words=True)],
}


@pytest.mark.parametrize("pre", PUBLISHED)
def test_byte_level_tokenizers_equal_the_tokenizer_json_that_their_models_have(tmp_path: Path, pre: str) -> None:
    rust, metadata = byte_level(pre)
    content = json.loads(rust.to_str())
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": PUBLISHED[pre]}
    theirs = PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(json.dumps(content)))
    assert_equal(read(file_of(tmp_path, metadata)), theirs, [*TEXTS, SPECIALS[0], *noise(20)])


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
SHORT = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
LIKE_LLAMA3 = SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LIKE_QWEN2 = LIKE_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
BIG, SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
WITHOUT_WORD = r"[^\r\n\p{L}\p{N}]?"
LIKE_GPT4O = (
    rf"{WITHOUT_WORD}{BIG}*{SMALL}+{SHORT}?|{WITHOUT_WORD}{BIG}+{SMALL}*{SHORT}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# llama.cpp's expressions for models whose rule it states in full (src/llama-vocab.cpp).
LLAMA_CPP = {
    "codeshell": [r"\p{N}", GPT2],
    "exaone": [r"\p{N}", GPT2],
    "trillion": [GPT2],
    "glm4": [LIKE_LLAMA3],
    "dbrx": [LIKE_LLAMA3],
    "stablelm2": [LIKE_QWEN2],
    "grok-2": [LIKE_QWEN2],
    "solar-open": [LIKE_QWEN2],
    "laguna": [r"[^\n]+|[\n]+", LIKE_QWEN2],
    "ufakzeka": [LIKE_QWEN2.removeprefix(SHORT + "|")],
    "gpt-4o": [LIKE_GPT4O],
    "granite-embed-multi-97m": [LIKE_GPT4O],
    # Written out, because the models' engine of expressions ends a word elsewhere than Python's does at "2³".
    "tiny_aya": [r"\d{1,3}(?=(?:\d{3})*(?![\p{L}\p{M}\p{N}\p{Pc}]))", LIKE_GPT4O],
    "superbpe": [r"\p{N}+", r"(?=(\d{3})+(?!\d))"],
    "poro-chat": [" ?[^(\\s|.,!?…。，、।۔،)]+"],
    "viking": [" ?[^(\\s|.,!?…。，、।۔،)]+", r"\p{N}"],
    "seed-coder": [LIKE_QWEN2.replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}\r\n]+")],
    "bailingmoe": [
        r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    ],
    "exaone-moe": [
        SHORT + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    ],
    "jais-2": [
        LIKE_LLAMA3.removesuffix(r"\s+(?!\S)|\s+")
        + "|".join(rf"\s{{{2**power}}}(?!\S)" for power in range(9, 1, -1))
        + r"|\s{1,2}(?!\S)|\s{1}"
    ],
    "minicpm5": [r"\p{N}{1,3}", LIKE_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+")],
    "chameleon": [
        r"<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\\t\\n]|    |  )", r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]", GPT2,
    ],
    "youtu": [
        "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
        LIKE_GPT4O.replace(r"\p{N}{1,3}", r"\p{N}"),
    ],
}  # fmt: skip


def pieces(expressions: Sequence[str], text: str) -> list[str]:
    """A text cut by one expression after the other, each within the pieces of the one before it."""
    parts = [text]
    for expression in expressions:
        cut: list[str] = []
        for part in parts:
            at = 0
            for match in regex.finditer(expression, part):
                cut += [part[at : match.start()], match[0]]
                at = match.end()
            cut.append(part[at:])
        parts = [part for part in cut if part]
    return parts


@pytest.mark.parametrize("pre", LLAMA_CPP)
def test_text_is_split_as_llama_cpp_splits_it(pre: str) -> None:
    for text in [*TEXTS, "<sentinel:12>IMGIMGABZ", " " * 700 + "x", *noise(60)]:
        found = [text[start:stop] for _, (start, stop) in splitter(PRE_TOKENIZERS[pre]).pre_tokenize_str(text)]
        assert found == pieces(LLAMA_CPP[pre], text), text


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("kimi-k2", "iPhone 漢字kana 1234", ["i", "Phone", " ", "漢字", "kana", " ", "123", "4"]),
        ("afmoe", "1234567 x日本", ["1", "234", "567", " x", "日本"]),
        ("spark2_5", "a 12\n\nb", ["a", " ", "1", "2", "\n", "\n", "b"]),
        # Its expression for marks takes plain letters too, and cuts them from those with an accent.
        ("deepseek-llm", "ete été 12\n\n日本", ["ete", " é", "t", "é", " ", "1", "2", "\n", "\n", "日本"]),
    ],
)
def test_rules_that_only_their_models_have(pre: str, text: str, expected: list[str]) -> None:
    found = [text[start:stop] for _, (start, stop) in splitter(PRE_TOKENIZERS[pre]).pre_tokenize_str(text)]
    assert found == expected


def test_every_rule_keeps_the_whole_text() -> None:
    for pre in PRE_TOKENIZERS.values():
        for text in TEXTS:
            spans = [range(start, stop) for _, (start, stop) in splitter(pre).pre_tokenize_str(text)]
            assert {at for span in spans for at in span} == set(range(len(text)))


# SentencePiece: transformers and SentencePiece itself.


def trained(folder: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece model of a few hundred pieces."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*CORPUS * 3, *["x\n\ny\n\n\nz"] * 3]), model_prefix=str(folder / "model"),
        normalization_rule_name="identity", character_coverage=0.98, remove_extra_whitespaces=False, minloglevel=2,
        hard_vocab_limit=False, **options,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "model.model"))


def gemma(folder: Path) -> tuple[sentencepiece.SentencePieceProcessor, Metadata]:
    """A model with the options and the special pieces that Gemma's has."""
    processor = trained(
        folder, model_type="bpe", vocab_size=540, byte_fallback=True, add_dummy_prefix=False, pad_id=0, eos_id=1,
        bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", split_digits=True,
        allow_whitespace_only_pieces=True, user_defined_symbols=[*PIECES, *RUNS],
    )  # fmt: skip
    return processor, sentencepiece_vocabulary(
        processor, user_defined=[*PIECES, *RUNS],
        **{"tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.padding_token_id": 0},
    )  # fmt: skip


SPACED = ["  x", "a\n  b\n\n\n\n\n\n\nc", "        8", " " * 9 + "x", " " * 17, "▁▁▁ a", "\t\t", "a     b"]


@pytest.mark.parametrize("architecture", ["gemma", "gemma2", "gemma3"])
def test_gemma(tmp_path: Path, architecture: str) -> None:
    processor, metadata = gemma(tmp_path)
    path = file_of(tmp_path, metadata | {"tokenizer.ggml.add_space_prefix": False}, architecture)
    ours, texts = read(path), [*TEXTS, SPECIALS[1], *SPACED, *noise(60)]
    assert_equal(ours, transformers_reads(path), texts)
    assert ours.encode("a") == [2, *ours.at_start("a")] and len(ours) == processor.vocab_size()
    for text in texts:
        # SentencePiece cuts the longest run of spaces first, transformers merges from the shortest.
        if "<eos>" not in text and " " * 9 not in text:
            assert ours.at_start(text) == processor.encode(text), text
            assert ours.decode(ours.at_start(text)) == text.replace("▁", " "), text
    # No Gemma puts a space before a text, whatever an older file leaves out.
    assert read(file_of(tmp_path, metadata, architecture)).digest() == ours.digest()


def test_gemma_4_has_its_merges_in_the_file(tmp_path: Path) -> None:
    processor, metadata = gemma(tmp_path)
    tokens = [processor.id_to_piece(id_) for id_ in range(processor.vocab_size())]
    score = {token: processor.get_score(id_) for id_, token in enumerate(tokens)}
    pairs = [(piece[:cut], piece[cut:]) for piece in tokens for cut in range(1, len(piece))]
    pairs = sorted(
        (pair for pair in pairs if score.keys() >= set(pair)), key=lambda pair: (-score[pair[0] + pair[1]], pair)
    )
    metadata |= {
        "tokenizer.ggml.model": "gemma4", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in pairs], "tokenizer.ggml.add_bos_token": True,
    }  # fmt: skip
    path = file_of(tmp_path, metadata, "gemma4")
    ours = read(path)
    assert_equal(ours, transformers_reads(path), [*TEXTS, SPECIALS[1], *SPACED], ends=True)
    types = metadata["tokenizer.ggml.token_type"]
    theirs = GemmaTokenizer(vocab={token: id_ for id_, token in enumerate(tokens)}, merges=pairs)
    theirs.add_tokens([token for token, type_ in zip(tokens, types, strict=True) if type_ == 4])
    assert_equal(ours, theirs, TEXTS)


def test_llama(tmp_path: Path) -> None:
    """With a space before every text as Phi-3's tokenizer.json has it; SentencePiece has the same ids."""
    processor = trained(tmp_path, model_type="bpe", vocab_size=500, byte_fallback=True)
    ends = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    path = file_of(tmp_path, sentencepiece_vocabulary(processor, **ends), "phi3")
    ours = read(path)
    assert_equal(ours, transformers_reads(path), [*TEXTS, *SPACED, *noise(60)])
    for text in [*TEXTS, *SPACED]:
        assert ours.encode(text) == [1, *processor.encode(text)], text


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_t5(tmp_path: Path, byte_fallback: bool) -> None:
    processor = trained(
        tmp_path, model_type="unigram", vocab_size=400, byte_fallback=byte_fallback, pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1,
    )  # fmt: skip
    metadata = sentencepiece_vocabulary(processor) | {"tokenizer.ggml.model": "t5", "tokenizer.ggml.eos_token_id": 1}
    ours = read(file_of(tmp_path, metadata | {"tokenizer.ggml.remove_extra_whitespaces": False}, "t5"))
    for text in [*TEXTS, *SPACED]:
        assert ours.encode(text) == [*processor.encode(text), 1], text
        assert ours.decode(ours.at_start(text), True) == processor.decode(processor.encode(text)).replace(" ⁇ ", "")


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_t5_with_changes_to_the_text(tmp_path: Path, byte_fallback: bool) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3), model_prefix=str(tmp_path / "model"), model_type="unigram", vocab_size=400,
        hard_vocab_limit=False, minloglevel=2, byte_fallback=byte_fallback, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "model.model"))
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((tmp_path / "model.model").read_bytes())
    table = proto.normalizer_spec.precompiled_charsmap
    plain = sentencepiece_vocabulary(processor)
    size = processor.vocab_size()
    blanks = {
        "tokenizer.ggml.tokens": plain["tokenizer.ggml.tokens"] + [f"[PAD{size + at}]" for at in range(100)],
        "tokenizer.ggml.scores": plain["tokenizer.ggml.scores"] + [-10000.0] * 100,
        "tokenizer.ggml.token_type": plain["tokenizer.ggml.token_type"] + [5] * 100,
    }
    metadata = plain | blanks | {
        "tokenizer.ggml.model": "t5", "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.remove_extra_whitespaces": True,
        "tokenizer.ggml.precompiled_charsmap": [byte - 256 if byte > 127 else byte for byte in table],  # signed
    }  # fmt: skip
    ours = read(file_of(tmp_path, metadata, "t5"))
    texts = [*TEXTS, *SPACED, "ﬁ Ａ ㍿ ①"]
    for text in texts:
        assert ours.encode(text) == [*processor.encode(text), 1], text
        assert ours.decode(ours.at_start(text), True) == processor.decode(processor.encode(text)).replace(" ⁇ ", "")
    if not byte_fallback:  # T5's own class has none
        vocab = plain["tokenizer.ggml.tokens"] + [f"<extra_id_{99 - at}>" for at in range(100)]
        theirs = T5Tokenizer(
            vocab=list(zip(vocab, blanks["tokenizer.ggml.scores"], strict=True)), _spm_precompiled_charsmap=table
        )
        assert_equal(ours, theirs, [*texts, "a <extra_id_3> b</s> c<extra_id_99>"], ends=True)


def folder_of(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


# WordPiece.


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("says_so", [True, False])
def test_bert(tmp_path: Path, lowercase: bool, says_so: bool) -> None:
    rust = Backend(models.WordPiece(unk_token="[UNK]"))
    rust.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    rust.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    vocab = rust.get_vocab()
    tokens = sorted(vocab, key=lambda token: vocab[token])
    theirs = BertTokenizer(vocab=vocab, do_lower_case=lowercase)
    metadata = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [
            token if token in special else token[2:] if token.startswith("##") else f"\u2581{token}" for token in tokens
        ],
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.unknown_token_id": 1, "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.seperator_token_id": 3,
    }  # fmt: skip
    if says_so:
        metadata["tokenizer.ggml.normalizer.lowercase"] = lowercase
    ours = read(file_of(tmp_path, metadata, "bert"))
    assert_equal(ours, theirs, [*TEXTS, "When [MASK] and Mary[SEP]went"], ends=True)


# Files.


def test_a_vocabulary_alone_gives_its_tokenizer(tmp_path: Path) -> None:
    rust, metadata = byte_level("llama-bpe")
    path = file_of(tmp_path, metadata)
    ours = read(path)
    assert_equal(ours, rust, TEXTS)
    assert (ours.name, ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == ("vocabulary", 1, 2, 0)
    del metadata["tokenizer.ggml.pre"]
    unnamed = file_of(folder_of(tmp_path, "unnamed"), metadata)
    with pytest.raises(WeightsError, match="does not say how its tokenizer splits text"):
        read_tokenizer(unnamed)
    assert read(unnamed, pre_tokenizer="llama-bpe").digest() == ours.digest()
    assert read_tokenizer(file_of(folder_of(tmp_path, "none"), GGUF_LLAMA)) is None
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="truncated or damaged"):
        read_tokenizer(tmp_path / "cut.gguf")


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("t5", {"token_type": [1, 1, 1]}, "needs a token for what is unknown"),
        ("t5", {"scores": [0.0]}, "3 tokens have 1 scores"),
        ("t5", {"precompiled_charsmap": "x"}, "precompiled_charsmap is missing or not a list of int"),
        ("t5", {"precompiled_charsmap": [1, 2]}, "cannot be built"),
        ("t5", {"remove_extra_whitespaces": 3}, "remove_extra_whitespaces must be true or false, not 3"),
        ("gemma4", {"merges": ["a b c"]}, "cannot be built"),
        ("gemma4", {}, "merges is missing"),
        ("bert", {"unknown_token_id": 9}, "unknown_token_id=9 is outside the 3 tokens"),
        ("bert", {"seperator_token_id": -1}, "seperator_token_id=-1 is outside the 3 tokens"),
        ("bert", {"normalizer.lowercase": "yes"}, "normalizer.lowercase must be true or false, not 'yes'"),
    ],
)
def test_metadata_that_contradicts_itself_is_refused(tmp_path: Path, kind: str, change: Metadata, message: str) -> None:
    entries = {"model": kind, "tokens": ["a", "<unk>", "</s>"], "token_type": [1, 2, 3], "scores": [0.0, 0.0, 0.0]}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in (entries | change).items()}
    with pytest.raises(WeightsError, match=message):
        build_tokenizer(metadata, name="a file")
