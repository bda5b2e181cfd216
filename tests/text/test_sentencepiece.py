"""Tokenizers that put a space before every text, as Llama 2, Mistral and Phi-3 do: answers, roles, words and tasks."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from vocabularies import vocabulary

from interp.config import ModelConfig
from interp.errors import PromptError
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.prompts.single_tokens import next_token
from interp.tasks import TASKS, from_file, get_task, induction
from interp.text.tokenizer import Tokenizer
from interp.weights.gguf.tokenizer import build_tokenizer

SPACE = "\u2581"
SPECIAL = ["<unk>", "<s>", "</s>"]
LETTERS = [SPACE, *string.ascii_letters, *string.digits, *string.punctuation]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CLEAN = "When Mary and John went out, John gave milk to"
CORRUPT = "When Mary and John went out, Mary gave milk to"


def pieces(words: list[str]) -> list[tuple[str, tuple[str, str]]]:
    """Every beginning of every word with the space before it, and the merge that makes it."""
    found = {}
    for word in words:
        for end in range(1, len(word) + 1):
            found.setdefault(SPACE + word[:end], (SPACE + word[: end - 1], word[end - 1]))
    return list(found.items())


def bpe(*, legacy: bool) -> Tokenizer:
    """The two forms of a Llama tokenizer.json: the space is a normalizer's (`legacy`) or a pre-tokenizer's."""
    made = pieces([*vocabulary(), "milk", "out"])
    vocab = {piece: at for at, piece in enumerate([*SPECIAL, *BYTES, *LETTERS, *(piece for piece, _ in made)])}
    merges = [merge for _, merge in made]
    backend = Backend(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return finished(backend)


def unigram() -> Tokenizer:
    """A Unigram model whose every word gets its space, without bytes to fall back on."""
    scored = [(SPACE + word, -2.0) for word in [*vocabulary(), "milk", "out"]]
    scored = [*((token, 0.0) for token in SPECIAL), *scored, *((letter, -20.0) for letter in [*LETTERS, "\n"])]
    backend = Backend(models.Unigram(list(dict(scored).items()), unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")
    backend.decoder = decoders.Metaspace(SPACE, prepend_scheme="always")
    return finished(backend)


def finished(backend: Backend) -> Tokenizer:
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens(SPECIAL)
    return Tokenizer(backend, bos_token_id=1, eos_token_id=2)


def gguf() -> Tokenizer:
    """What a GGUF file of a Llama describes: pieces with scores, from which the merges follow."""
    made = [piece for piece, _ in pieces([*vocabulary(), "milk", "out"])]
    tokens = [*SPECIAL, *BYTES, *LETTERS, *made]
    tokenizer = build_tokenizer(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [0.0] * (len(tokens) - len(made)) + [-float(len(piece)) for piece in made],
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        },
        name="a file",
    )
    assert tokenizer is not None
    return tokenizer


FORMS: dict[str, Callable[[], Tokenizer]] = {
    "prepend": lambda: bpe(legacy=True),
    "metaspace": lambda: bpe(legacy=False),
    "unigram": unigram,
    "gguf": gguf,
}


@pytest.fixture(scope="module", params=FORMS)
def model(request: pytest.FixtureRequest) -> GPT:
    tokenizer = FORMS[request.param]()
    return GPT(ModelConfig(n_layers=1, d_model=4, d_head=4, n_ctx=256, d_vocab=len(tokenizer), seed=0), tokenizer)


def entry(model: GPT, token: str) -> int:
    """The id of an entry of the vocabulary, in its own spelling."""
    assert model.tokenizer is not None
    found = model.tokenizer.token_to_id(token)
    assert found is not None
    return found


def test_an_answer_is_the_token_that_follows_its_prompt(model: GPT) -> None:
    mary, john = entry(model, "▁Mary"), entry(model, "▁John")
    pairs = PromptPairs.from_text(model, CLEAN, CORRUPT, answers=(" Mary", " John"))
    assert pairs.answers.tolist() == [[mary, john]]
    whole = model.to_tokens(f"{CLEAN} Mary")
    assert torch.equal(pairs.clean, whole[:, :-1]) and whole[0, -1] == mary
    with pytest.raises(PromptError, match=r"the right answer 'Mary' is not one token .* in front, ' Mary' is one"):
        PromptPairs.from_text(model, CLEAN, CORRUPT, answers=("Mary", " John"))
    digits = PromptPairs.from_text(model, "2+3=", "2+4=", answers=("5", "6"))
    assert digits.answers.tolist() == [[entry(model, "5"), entry(model, "6")]]


def test_one_word_within_a_text_is_another_token_than_at_its_beginning(model: GPT) -> None:
    assert model.to_single_token(" Mary") == entry(model, "▁Mary") and model.to_single_token("M") == entry(model, "M")
    with pytest.raises(PromptError, match=r"'Mary' is not one token but 4: \['M', 'a', 'r', 'y'\]; .* ' Mary' is one"):
        model.to_single_token("Mary")


def test_tokens_show_the_space_that_belongs_to_them(model: GPT) -> None:
    ids = [entry(model, token) for token in ("<s>", "▁the", "t", "▁", "▁to", "o")]
    assert model.to_str_tokens(ids) == ["<s>", " the", "t", " ", " to", "o"]
    assert model.tokenizer is not None and model.tokenizer.labels(ids)[1:3] == ["1: the", "2: t"]
    # Read one after another, tokens are the text, but for the space that stands before every text.
    shown = model.to_str_tokens(CLEAN, prepend_bos=False)
    assert "".join(shown) == f" {CLEAN}" and shown[1:3] == [" Mary", " and"]
    assert model.to_string(model.to_tokens(CLEAN, prepend_bos=False)) == [CLEAN]


def test_bytes_and_spaces_come_back_as_the_library_decodes_them() -> None:
    for make in (FORMS["prepend"], FORMS["metaspace"], FORMS["gguf"]):
        tokenizer = make()
        for text in ("caf\u00e9 \u65e5\u672c", "a\nb", "two  spaces", "\ttab"):
            ids = tokenizer.encode(text, prepend_bos=False)
            assert tokenizer.decode(ids) == text == tokenizer.backend.decode(ids)
            assert b"".join(tokenizer.token_bytes(ids)).decode() == f" {text}"


def test_roles_are_found_within_a_prompt_and_at_its_beginning(model: GPT) -> None:
    roles = {"IO": " Mary", "FIRST": "When", "END": " to"}
    pairs = PromptPairs.from_text(model, CLEAN, CORRUPT, answers=(" Mary", " John"), roles=roles)
    assert pairs.roles == ({"IO": 2, "FIRST": 1, "END": len(pairs.clean[0]) - 1},)
    # The first token has no space before it in the text: " Mary" is the one in the middle alone, "Mary" the first.
    text = "Mary and John saw that Mary gave milk to"
    both = {"LATER": " Mary", "FIRST": "Mary"}
    named = PromptPairs.from_text(model, text, answers=(" Mary", " John"), roles=both).roles[0]
    assert named["FIRST"] == 1 < named["LATER"] and pairs.str_tokens[0][pairs.roles[0]["IO"]] == " Mary"
    shown = PromptPairs.from_text(model, "the" + CLEAN[0].lower() + CLEAN[1:], answers=(" Mary", " John"))
    place = shown.str_tokens[0][1]  # as the table of tokens shows the first token, with a space that the text has not
    again = PromptPairs.from_text(model, shown.clean_texts[0], answers=(" Mary", " John"), roles={"FIRST": place})
    assert again.roles == ({"FIRST": 1},)
    with pytest.raises(PromptError, match=r"role 'S': the token ' John' is at positions \[4, \d+\]"):
        PromptPairs.from_text(model, CLEAN, CORRUPT, answers=(" Mary", " John"), roles={"S": " John"})


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_written(model: GPT, task: str) -> None:
    pairs = get_task(task)(model, n=8)
    assert len(pairs) == 8 and model.tokenizer is not None
    if task == "induction":
        return
    for at, text in enumerate(pairs.clean_texts):
        for token in pairs.answers[at].tolist():
            rest = model.tokenizer.str_tokens([token])[0]
            assert next_token(model.tokenizer, text, rest) == token


def test_induction_draws_words_with_their_space(model: GPT) -> None:
    pairs = induction(model, n=4)
    words = [token for row in pairs.str_tokens for token in row[1:]]
    assert all(word[0] == " " and word[1:].isalpha() for word in words)


def test_columns_of_a_file_follow_their_prompt(model: GPT, tmp_path: Path) -> None:
    row = {"clean": CLEAN, "corrupt": CORRUPT, "answer": " Mary", "wrong_answer": " John", "role:IO": " Mary"}
    (tmp_path / "own.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "answer": "Mary"}))
    pairs = from_file(model, tmp_path / "own.jsonl")
    assert pairs.answers.tolist() == [[entry(model, "▁Mary"), entry(model, "▁John")]] and pairs.roles[0]["IO"] == 2
    assert pairs.notes["first_answers"] == [" Mary", " John"] and pairs.notes["left_out"] == 1
    assert "'Mary' is not one token here, but ' Mary' is" in pairs.notes["left_out_because"][0]


def test_a_tokenizer_without_such_a_space_reads_a_text_as_it_stands() -> None:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.model = models.BPE({letter: at for at, letter in enumerate(sorted(alphabet))}, [])
    spaced = Tokenizer(backend)
    assert spaced.str_tokens(spaced.encode("ab")) == [" ", "a", "b"] and spaced.str_tokens(spaced.within("ab")) == [
        "a",
        "b",
    ]
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain = Tokenizer(backend)
    assert plain.within("ab") == plain.encode("ab") == spaced.within("ab")
