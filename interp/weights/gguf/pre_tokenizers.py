r"""How byte-level BPE text is split before it is merged, for each name that llama.cpp has for it.

1. A GGUF file names the rule in `tokenizer.ggml.pre`; the names are llama.cpp's (src/llama-vocab.cpp).
2. Each name has here the pre-tokenizer of the tokenizer.json of the models that it is used for, as a row of steps: a
   regular expression, whose matches become pieces of their own, or one of the named steps below.
3. llama.cpp's own expressions differ from the models' in places, and so do their ids. The models' own are right:
   SmolLM cuts off every digit before anything else, DeepSeek LLM cuts numbers into digits, Kimi cuts before a capital
   letter inside a word. Where a model's file could not be compared, its rule is the one that llama.cpp cites.

Left out are `default`, which says nothing, and `gemma4`, `sarvam-moe`, `granite-embed-multi-311m` and `whitespace`,
which are names for text that is not spelled in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

# Steps that tokenizers has a class for. Every rule spells text by the letters of its bytes: WORDS also splits as GPT-2
# does, BYTES only spells.
WORDS, BYTES = "words of GPT-2, as bytes", "bytes"
DIGITS, NUMBERS, PUNCTUATION, MARKS = "each digit", "whole numbers", "runs of punctuation", "each punctuation mark"

CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
ENDS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ENDS_WITH_SLASH = ENDS.replace(r"[\r\n]*|", r"[\r\n/]*|", 1)
LLAMA3 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + ENDS
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
JAIS2 = LLAMA3.removesuffix(r"\s+(?!\S)|\s+") + (
    r"\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)"
    r"|\s{1,2}(?!\S)|\s{1}"
)
# Words that change from small to capital letters are cut there.
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ENDING_LOW, ALL_UPPER = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
TEKKEN = rf"{ENDING_LOW}|{ALL_UPPER}|\p{{N}}{ENDS_WITH_SLASH}"
GPT4O = rf"{ENDING_LOW}{CONTRACTION}?|{ALL_UPPER}{CONTRACTION}?|\p{{N}}{{1,3}}{ENDS_WITH_SLASH}"
KIMI = r"\p{Han}+|" + GPT4O.replace(ENDS_WITH_SLASH, ENDS).replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]")
YOUTU = (
    r"[\uac00-\ud7a3\u3131-\u318e]+|[！…“”‘’—：；，\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+"
    r"|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    GPT4O.replace(r"\p{N}{1,3}", r"\p{N}"),
)
CHINESE_AND_KANA = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
ASIAN = (
    r"[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2e80-\u2fdf\u0e00-\u0e7f"
    r"\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
THREE_FROM_THE_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
CHINESE_AND_KOREAN = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DEEPSEEK_LETTERS = (
    r"\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    r"\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    r"\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    r"\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    r"\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    r"\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    r"\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    r"\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    r"\uff41-\uff5a\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}"
    r"\x{118a0}-\x{118df}\x{1e900}-\x{1e943}]+"
)
DEEPSEEK_MARKS = r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
NO_MARKS = r" ?[^(\s|.,!?…。，、।۔،)]+"
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
SEED = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
EXAONE_MOE = (
    CONTRACTION + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Pre:
    """How byte-level text is prepared: the steps of splitting, and what goes with them.

    Args:
        steps: regular expressions and named steps, in order.
        nfc: whether text is first brought to Unicode's composed form.
        ignore_merges: whether a piece that is a token as a whole is that token, whatever the merges say.
        add_bos: whether a BOS is added where the file does not say so.
    """

    steps: tuple[str, ...] = (WORDS,)
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


LIKE_LLAMA3 = Pre((LLAMA3, BYTES), ignore_merges=True, add_bos=True)
LIKE_STARCODER = Pre((DIGITS, WORDS))
LIKE_BLOOM = Pre((NO_MARKS, BYTES))
LIKE_QWEN2 = Pre((QWEN2, BYTES))
LIKE_GPT4O = Pre((GPT4O, BYTES))
LIKE_DEEPSEEK3 = Pre((r"\p{N}{1,3}", CHINESE_AND_KANA, DEEPSEEK3, BYTES))
LIKE_BAILING = Pre((BAILING, BYTES))
LIKE_AYA = Pre((r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O, BYTES), nfc=True)

PRE_TOKENIZERS = {
    "gpt-2": Pre(),
    "phi-2": Pre(),
    "olmo": Pre(nfc=True),  # the GPT-NeoX tokenizer: Pythia, OLMo
    "modern-bert": Pre(nfc=True),  # the same
    "mpt": Pre(nfc=True),
    **dict.fromkeys(("jais", "gigachat", "exaone4", "trillion", "granite-docling", "mellum", "a.x-4.0"), Pre()),
    **dict.fromkeys(("roberta-bpe", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de"), Pre()),
    "jina-v2-code": Pre(),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"), LIKE_STARCODER),
    "command-r": Pre((DIGITS, WORDS), nfc=True),
    # Here the text is spelled as bytes before numbers are cut, so that the letter of a byte may count as a number.
    "falcon": Pre((PUNCTUATION, WORDS, NUMBERS, "[0-9][0-9][0-9]")),
    "chameleon": Pre(
        (r"<sentinel:[0-9]+>", r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", DIGITS, MARKS, WORDS),
        add_bos=True,
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0"), LIKE_LLAMA3),
    **dict.fromkeys(("lfm2", "jina-v5-nano"), LIKE_LLAMA3),
    **dict.fromkeys(("smaug-bpe", "dbrx", "glm4", "chatglm-bpe"), Pre((LLAMA3, BYTES))),
    "jais-2": Pre((JAIS2, BYTES)),
    "minicpm5": Pre((r"\p{N}{1,3}", LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+"), BYTES), ignore_merges=True),
    "qwen2": Pre((QWEN2, BYTES), nfc=True),
    "qwen35": Pre((QWEN35, BYTES), nfc=True),
    "f2llmv2": Pre((QWEN2, BYTES), nfc=True),  # made from Qwen 3
    **dict.fromkeys(("stablelm2", "hunyuan"), Pre((QWEN2, BYTES), nfc=True)),  # their tokenizers' code does the same
    **dict.fromkeys(("deepseek-r1-qwen", "kormo", "megrez", "solar-open", "grok-2"), LIKE_QWEN2),
    "ufakzeka": Pre((QWEN2.removeprefix(f"{CONTRACTION}|"), BYTES)),
    "laguna": Pre((r"[^\n]+|[\n]+", QWEN2, BYTES)),
    "seed-coder": Pre((SEED, BYTES)),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), LIKE_BAILING),
    "exaone-moe": Pre((EXAONE_MOE, BYTES)),
    "tekken": Pre((TEKKEN, BYTES), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), LIKE_GPT4O),
    "granite-embed-multi-97m": Pre((GPT4O, BYTES), ignore_merges=True),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), LIKE_AYA),
    "kimi-k2": Pre((KIMI, BYTES), ignore_merges=True),  # a tokenizer of tiktoken, which looks for whole pieces first
    "youtu": Pre((*YOUTU, BYTES), ignore_merges=True),
    "deepseek-llm": Pre(
        (r"[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_MARKS, r"\s+$", CHINESE_AND_KOREAN, DIGITS, BYTES),
    ),
    "deepseek-coder": Pre((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CHINESE_AND_KOREAN, DIGITS, BYTES)),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), LIKE_DEEPSEEK3),
    "spark2_5": Pre(
        (r"\p{N}{1,3}", CHINESE_AND_KANA, DEEPSEEK3.replace(r"+[\r\n]*|\s*[\r\n]+", r"+|[\r\n]"), r"\p{N}", BYTES)
    ),
    "afmoe": Pre((THREE_FROM_THE_RIGHT, ASIAN, DEEPSEEK3, BYTES)),
    "superbpe": Pre((r"\p{N}+", r"(?=(\d{3})+(?!\d))", BYTES)),
    **dict.fromkeys(("bloom", "gpt3-finnish", "poro-chat"), LIKE_BLOOM),
    "viking": Pre((NO_MARKS, DIGITS, BYTES)),
}


def splitter(pre: Pre) -> tokenizers.pre_tokenizers.PreTokenizer:
    """The pre-tokenizer that takes these steps."""
    from tokenizers import Regex, pre_tokenizers

    named: dict[str, Any] = {
        WORDS: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        BYTES: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        DIGITS: pre_tokenizers.Digits(individual_digits=True),
        NUMBERS: pre_tokenizers.Digits(individual_digits=False),
        PUNCTUATION: pre_tokenizers.Punctuation(behavior="contiguous"),
        MARKS: pre_tokenizers.Punctuation(behavior="isolated"),
    }
    steps = [named.get(step) or pre_tokenizers.Split(Regex(step), behavior="isolated") for step in pre.steps]
    return pre_tokenizers.Sequence(steps)
