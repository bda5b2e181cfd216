"""Text to ids: transformers is the oracle for every kind of tokenizer, trained tiny here."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RustTokenizer

import interp
from interp.errors import PromptError, WeightsError
from interp.text.padding import as_mask, pad
from interp.text.tokenizer import Tokenizer, labels

CORPUS = [
    "When John and Mary went to the store, John gave a bottle of milk to Mary.",
    "def add(a, b):\n    return a + b  # 12345\n\n\nprint(add(1, 22))",
    "Привет, мир! 日本語のテキスト नमस्ते दुनिया مرحبا 🙂 naïve café",
    "   spaces    and\ttabs\r\n and don't we'll they're " * 3,
]
MIXED = [
    "Hello world",
    " leading and trailing  ",
    "x = 10\n    y = 20\n\n2. two   3",
    "café cafe\u0301 naïve ½ ²",
    "Привет 日本語 مرحبا नमस्ते",
    "🙂👩‍💻🏳️‍🌈𝔘",
    "a<|endoftext|>b <s>c</s><pad>",
    "don't WE'LL  \t\r\n" + " " * 30 + "end",
    "a\x00\x01b\u200b\u00a0c",
]
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train(special: list[str], *, split: str | None = None, nfc: bool = False, bos: str | None = None) -> RustTokenizer:
    """A byte-level BPE of 400 tokens with the special ones first."""
    rust = RustTokenizer(models.BPE())
    if nfc:
        rust.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    cut = [pre_tokenizers.Split(Regex(split), behavior="isolated")] if split else []
    rust.pre_tokenizer = pre_tokenizers.Sequence([*cut, byte_level])
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(CORPUS, trainer)
    if bos is not None:
        rust.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, rust.token_to_id(bos))]
        )
    return rust


def gpt2_like() -> tuple[RustTokenizer, str, dict[str, str]]:
    end = "<|endoftext|>"
    return train([end]), "gpt2", {"bos_token": end, "eos_token": end}


def llama_like() -> tuple[RustTokenizer, str, dict[str, str]]:
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return train(["<s>", "</s>", "<pad>"], split=QWEN_SPLIT, bos="<s>"), "llama", names


def qwen_like() -> tuple[RustTokenizer, str, dict[str, str]]:
    end = "<|endoftext|>"
    return train([end], split=QWEN_SPLIT, nfc=True), "qwen2", {"eos_token": end, "pad_token": end}


def neox_like() -> tuple[RustTokenizer, str, dict[str, str]]:
    end = "<|endoftext|>"
    rust = train([end, "<|padding|>"], nfc=True)
    rust.add_tokens([AddedToken(" " * n, normalized=True) for n in (4, 3, 2)])
    return rust, "gpt_neox", {"bos_token": end, "eos_token": end}


LIKE = [gpt2_like, llama_like, qwen_like, neox_like]


@pytest.fixture(params=LIKE, ids=lambda like: like.__name__)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model directory whose tokenizer transformers wrote."""
    from transformers import PreTrainedTokenizerFast

    rust, model_type, names = request.param()
    PreTrainedTokenizerFast(tokenizer_object=rust, **names).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "bos_token_id": 7, "eos_token_id": 8}))
    return tmp_path


@pytest.fixture(scope="module")
def llama() -> Tokenizer:
    rust, _, _ = llama_like()
    return Tokenizer(rust, bos_token_id=0, eos_token_id=1, pad_token_id=2, name="tiny")


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return Tokenizer(gpt2_like()[0], bos_token_id=0, eos_token_id=0, name="tiny")


def test_directory_equals_auto_tokenizer(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    for ours in (Tokenizer.from_directory(folder), Tokenizer.from_transformers(theirs)):
        assert ours is not None
        for text in [*MIXED, ""]:
            ids = theirs(text)["input_ids"]
            assert ours.encode(text) == ids
            assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
            kept = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special_tokens=True) == kept
            assert ours.str_tokens(ids) == [theirs.decode([i], clean_up_tokenization_spaces=False) for i in ids]
        for name in ("bos_token", "eos_token", "pad_token"):
            assert getattr(ours, name) == getattr(theirs, name)
            assert getattr(ours, f"{name}_id") == getattr(theirs, f"{name}_id")
        assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
        assert ours.get_vocab() == theirs.get_vocab()


def test_directory_does_not_import_transformers(tmp_path: Path) -> None:
    gpt2_like()[0].save(str(tmp_path / "tokenizer.json"))
    code = (
        "import sys; from interp.text.tokenizer import Tokenizer; t = Tokenizer.from_directory(sys.argv[1]);"
        "assert t.encode('a b') and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])


def test_tokens_that_only_the_settings_declare(tmp_path: Path) -> None:
    """transformers adds them; so do we, with their flags."""
    from transformers import AutoTokenizer

    rust, _, _ = gpt2_like()
    rust.save(str(tmp_path / "tokenizer.json"))
    think = {"content": "<think>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    declared = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {"400": {**think, "special": False}},
        "additional_special_tokens": ["<|extra|>"],
        "eos_token": "<|endoftext|>",
        "pad_token": "<|new_pad|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(declared))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    ours, theirs = Tokenizer.from_directory(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours is not None
    text = "a  <think> b<|extra|>c<|new_pad|><|endoftext|>"
    assert ours.encode(text) == theirs(text)["input_ids"]
    assert ours.pad_token_id == theirs.pad_token_id
    assert len(ours) == len(theirs) > 400


def test_old_directories_keep_special_tokens_elsewhere(tmp_path: Path) -> None:
    rust, _, _ = llama_like()
    rust.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<s>"}}))
    # 1 is a special token here; 9 is not, and can only be the default of some other model.
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [1, 5], "pad_token_id": 9}))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer is not None
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, None)


def test_directory_without_a_tokenizer(tmp_path: Path) -> None:
    assert Tokenizer.from_directory(tmp_path) is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenizer_file_is_named(tmp_path: Path, name: str) -> None:
    gpt2_like()[0].save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_text('{"version": ')
    with pytest.raises(WeightsError, match=name):
        Tokenizer.from_directory(tmp_path)


def test_tokenizer_without_tokenizer_json_goes_through_transformers(tmp_path: Path) -> None:
    rust, _, _ = gpt2_like()
    model = json.loads(rust.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer is not None
    for text in MIXED:
        assert tokenizer.encode(text) == rust.encode(text).ids


def test_transformers_tokenizer_without_a_rust_backend() -> None:
    from transformers import ByT5Tokenizer

    theirs = ByT5Tokenizer()
    ours = Tokenizer.from_transformers(theirs)
    for text in MIXED[:6]:
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.encode(text)[-1] == theirs.eos_token_id
        assert ours.encode(text, prepend_bos=False) == ours.encode(text)
    assert ours.decode(ours.encode("naïve"), skip_special_tokens=True) == "naïve"
    assert copy.deepcopy(ours).encode("a") == ours.encode("a")
    assert ours.single_id("a") == theirs.convert_tokens_to_ids("a")


def test_a_transformers_tokenizer_is_copied() -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=gpt2_like()[0], pad_token="<|endoftext|>")
    ours = Tokenizer.from_transformers(theirs)
    before = ours.encode("When John")
    theirs(["a", "When John and Mary"], padding="max_length", max_length=3, truncation=True)
    theirs.add_tokens(["John"])
    assert ours.encode("When John") == before


def test_prepend_bos(llama: Tokenizer) -> None:
    bare = llama.encode("When John", prepend_bos=False)
    assert 0 not in bare
    assert llama.encode("When John") == [0, *bare]
    assert llama.encode("When John", prepend_bos=True) == [0, *bare]
    assert llama.encode("<s>When John", prepend_bos=True) == [0, *bare]
    assert llama.encode("") == [0]
    assert llama.encode("", prepend_bos=True) == [0]
    assert llama.encode("", prepend_bos=False) == []


def test_prepend_bos_where_the_model_adds_none(gpt2: Tokenizer) -> None:
    bare = gpt2.encode("When John")
    assert 0 not in bare
    assert gpt2.encode("When John", prepend_bos=False) == bare
    assert gpt2.encode("When John", prepend_bos=True) == [0, *bare]
    assert gpt2.encode("") == []
    with pytest.raises(PromptError, match="no BOS"):
        Tokenizer(gpt2.backend).encode("a", prepend_bos=True)


def test_an_appended_eos_stays() -> None:
    rust, _, _ = llama_like()
    rust.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A", "</s>"], pair=None, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = Tokenizer(rust, bos_token_id=0, eos_token_id=1)
    bare = rust.encode("John", add_special_tokens=False).ids
    assert tokenizer.encode("John") == tokenizer.encode("John", prepend_bos=True) == [0, *bare, 1]
    assert tokenizer.encode("John", prepend_bos=False) == [*bare, 1]


@settings(deadline=None, max_examples=50)
@given(text=st.text())
def test_every_text_survives(gpt2: Tokenizer, text: str) -> None:
    ids = gpt2.encode(text)
    assert gpt2.decode(ids) == text
    assert b"".join(gpt2.token_bytes(ids)) == text.encode()


def test_surrogates(gpt2: Tokenizer) -> None:
    assert gpt2.encode("a \ud83d\ude42") == gpt2.encode("a 🙂")
    with pytest.raises(PromptError, match=r"U\+D83D at position 2"):
        gpt2.encode("a \ud83d")


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["a"]])
def test_only_text_is_encoded(gpt2: Tokenizer, text: object) -> None:
    with pytest.raises(PromptError, match=type(text).__name__):
        gpt2.encode(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [[-1], [1.5], ["a"], [[1, 2]], [None], [True], 7, [2**40]])
def test_only_ids_are_decoded(gpt2: Tokenizer, ids: object) -> None:
    if ids == 7:
        assert gpt2.decode(torch.tensor(7)) == gpt2.decode([7])  # type: ignore[arg-type]
        return
    with pytest.raises(PromptError, match="integers"):
        gpt2.decode(ids)  # type: ignore[arg-type]


def test_ids_of_any_kind(gpt2: Tokenizer) -> None:
    ids = gpt2.encode("When John")
    assert gpt2.decode(torch.tensor(ids)) == "When John"
    assert gpt2.decode(torch.tensor(ids).numpy()) == "When John"
    assert gpt2.decode(list(torch.tensor(ids))) == "When John"
    # A model's embedding may have more rows than its tokenizer has tokens.
    assert gpt2.decode([9999]) == "" and gpt2.id_to_token(9999) is None


def test_single_id(gpt2: Tokenizer, llama: Tokenizer) -> None:
    for tokenizer in (gpt2, llama):
        id_ = tokenizer.single_id(" John")
        assert id_ is not None and tokenizer.decode([id_]) == " John"
        assert tokenizer.single_id(" Johnny") is None
        assert tokenizer.single_id("") is None
    assert llama.single_id("</s>") == 1


def test_split_special_tokens() -> None:
    rust, _, _ = gpt2_like()
    tokenizer = Tokenizer(rust, split_special_tokens=True)
    assert 0 not in tokenizer.encode("a<|endoftext|>")
    assert 0 not in pickle.loads(pickle.dumps(tokenizer)).encode("a<|endoftext|>")


def test_pickles_and_copies(llama: Tokenizer) -> None:
    for other in (pickle.loads(pickle.dumps(llama)), copy.deepcopy(llama)):
        assert all(other.encode(text) == llama.encode(text) for text in MIXED)
        assert other.digest() == llama.digest()
        assert repr(other) == repr(llama)


def test_digest_sees_what_decides_the_ids(llama: Tokenizer) -> None:
    assert len(llama.digest()) == 64
    rust = RustTokenizer.from_str(llama.backend.to_str())
    rust.enable_padding(pad_id=2)
    same = Tokenizer(rust, bos_token_id=0, eos_token_id=1, pad_token_id=2, name="another")
    assert same.digest() == llama.digest()
    assert Tokenizer(rust, bos_token_id=0, eos_token_id=1, pad_token_id=1).digest() != llama.digest()
    rust.add_tokens(["John"])
    assert Tokenizer(rust, bos_token_id=0, eos_token_id=1, pad_token_id=2).digest() != llama.digest()


@pytest.mark.parametrize("side", ["right", "left"])
def test_pad(side: str) -> None:
    sequences = [[1, 2, 3], [4], [5, 6]]
    tokens, mask = pad(sequences, 9, side)  # type: ignore[arg-type]
    assert tokens.dtype == torch.int64 and mask.dtype == torch.bool
    assert tokens.shape == mask.shape == (3, 3)
    assert [row[real].tolist() for row, real in zip(tokens, mask, strict=True)] == sequences
    assert (tokens[~mask] == 9).all()
    assert mask[:, 0 if side == "right" else -1].all()


@pytest.mark.parametrize(
    ("sequences", "side", "message"),
    [([], "right", "no sequence"), ([[1], []], "right", "sequence 1 is empty"), ([[1]], "top", "'right' or 'left'")],
)
def test_what_cannot_be_padded(sequences: list[list[int]], side: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        pad(sequences, 0, side)  # type: ignore[arg-type]


def test_labels_of_tokens(gpt2: Tokenizer) -> None:
    ids = gpt2.encode(" John\n\n\t 🙂")
    text = " ".join(gpt2.labels(ids))
    assert "0: John" in text and "⏎" in text and "⇥" in text
    assert labels(["�"]) == ["0: �"]
    assert labels(["  x", "x ", "\u0301", "\u202e", "👩‍💻", "\u200d", "\x00"]) == [
        "0: ··x", "1: x·", "2: ◌\u0301", "3: <U+202E>", "4: 👩‍💻", "5: <U+200D>", "6: <U+0000>",
    ]  # fmt: skip


def test_labels_show_pieces_of_characters(gpt2: Tokenizer) -> None:
    ids = gpt2.encode("𝔘")  # not in the corpus: one token for each of its four bytes
    assert gpt2.labels(ids) == ["0: <F0>", "1: <9D>", "2: <94>", "3: <98>"]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text() | st.binary()))
def test_labels_are_never_empty_and_stay_on_one_line(tokens: list[str | bytes]) -> None:
    for position, label in enumerate(labels(tokens)):
        assert label.startswith(f"{position}: ") and len(label) > len(f"{position}: ")
        assert label.isprintable() or "\u200c" in label or "\u200d" in label


def changed(change: dict[str, object]) -> str:
    """A tokenizer.json with some of its parts replaced."""
    return json.dumps(json.loads(llama_like()[0].to_str()) | change)


PANICS = {
    # Rust panics on both, which is no Exception in Python: one while the file is read, one while a text is encoded.
    "tokenizer.json is not a readable tokenizer": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/"}},
    "the tokenizer does not work: .* cannot encode 'a'": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {},
        }
    },
}


@pytest.mark.parametrize("says", PANICS)
def test_a_tokenizer_that_panics_is_refused(tmp_path: Path, says: str) -> None:
    (tmp_path / "tokenizer.json").write_text(changed(PANICS[says]))
    with pytest.raises(WeightsError, match=says):
        Tokenizer.from_directory(tmp_path)


def test_a_tokenizer_that_panics_later_is_refused() -> None:
    class PanicException(BaseException):
        """As the Rust library raises it: not an Exception, and not to be imported."""

    class Broken:
        def __init__(self, backend: RustTokenizer) -> None:
            self.backend = backend

        def __getattr__(self, name: str) -> object:
            return getattr(self.backend, name)

        def encode(self, text: str, add_special_tokens: bool = True) -> object:
            if "!" in text:
                raise PanicException("index out of bounds")
            if "?" in text:
                raise KeyboardInterrupt
            return self.backend.encode(text, add_special_tokens=add_special_tokens)

    tokenizer = Tokenizer(Broken(llama_like()[0]), name="weak")  # type: ignore[arg-type]
    for call in (tokenizer.encode, tokenizer.single_id, tokenizer.at_start):
        with pytest.raises(PromptError, match=r"tokenizer 'weak' cannot encode '.*a!': index out of bounds"):
            call("a!")
        with pytest.raises(KeyboardInterrupt):
            call("a?")
    with pytest.raises(PromptError, match=r"tokenizer 'weak' cannot encode 'a!'"):
        tokenizer.following("a", "!")


@pytest.mark.parametrize(
    "mask", [[[1, 1, 0]], np.array([[True, True, False]]), torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1, 1, 0]])]
)
def test_a_mask_is_of_zeros_and_ones(mask: object) -> None:
    assert as_mask(mask).tolist() == [[True, True, False]] and as_mask(mask).dtype == torch.bool


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.tensor([[0.0, 0.0, float("-inf")]]), "not -inf; this looks like one that is added to scores"),
        ([[0, 0, -10000]], "not -10000; this looks like one that is added"),
        ([[1, 2, 1]], "True or 1 at real tokens and False or 0 at padding, not 2$"),
        ([[1.0, float("nan")]], "not nan$"),
        ("yes", "mask must be True or 1 at real tokens, .batch, pos., not 'yes'"),
        ([[1, 0], [1]], r"mask must be True or 1 at real tokens, .batch, pos., not \[\[1, 0\], \[1\]\]"),
    ],
)
def test_other_masks_are_refused(mask: object, says: str) -> None:
    with pytest.raises(PromptError, match=says):
        as_mask(mask, "mask")


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_run_and_continued_by_its_mask(talker: Path, side: Literal["left", "right"]) -> None:
    model = interp.load(talker, device="cpu")
    texts = [" Mary", " Mary John Mary"]
    tokens, (ids, mask) = model.to_tokens(texts, padding_side=side), model.to_batch(texts, padding_side=side)
    with torch.no_grad():
        for row, text in enumerate(texts):
            alone = model(text)[0, -1]
            last = -1 if side == "left" else int(mask[row].sum()) - 1
            torch.testing.assert_close(model(tokens)[row, last], alone)
        torch.testing.assert_close(model(tokens, return_type="loss"), model(texts, return_type="loss"))
        if side == "left":
            expected = model.generate(ids, 3, do_sample=False, attention_mask=mask)
            assert torch.equal(model.generate(tokens, 3, do_sample=False), expected)
        else:
            with pytest.raises(PromptError, match="must be padded on the left"):
                model.generate(tokens, 3, do_sample=False)
    for kind in (torch.uint8, torch.int16):
        assert torch.equal(model(torch.tensor([[1, 2]], dtype=kind)), model(torch.tensor([[1, 2]])))
