"""Text to train on: what is cut, what is written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from makers import CAUSAL, KINDS, make

import interp
from interp.errors import PromptError, UnknownName
from interp.lenses import training_text as texts
from interp.models.gpt import GPT

WORDS = "When John and Mary went to the store , John gave a bottle to Mary . "


@pytest.fixture(scope="module")
def speaking(talker: Path) -> GPT:
    return interp.load(talker, device="cpu")


def test_a_file_is_cut_without_losing_or_inventing_a_token(speaking: GPT, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text(WORDS * 5, encoding="utf-8")
    found = texts.prepare(speaking, file, length=7)
    assert speaking.tokenizer is not None
    ids = speaking.tokenizer.encode(WORDS * 5)
    end = speaking.tokenizer.eos_token_id
    ids += [] if end is None else [end]
    assert found.tokens.flatten().tolist() == ids[: len(ids) // 7 * 7] and found.tokens.shape[1] == 7
    assert found.made == "words.txt"
    assert torch.equal(texts.prepare(speaking, file, length=7, most=2).tokens, found.tokens[:2])


def test_json_lines_and_documents_are_the_same_text(speaking: GPT, tmp_path: Path) -> None:
    given = [WORDS, "Mary gave\u2028John a store", WORDS * 2]
    file = tmp_path / "rows.jsonl"
    rows = [json.dumps({"text": text, "id": i}, ensure_ascii=False) for i, text in enumerate(given)]
    file.write_text("\n\n".join(rows) + "\n", encoding="utf-8")
    read = texts.prepare(speaking, file, length=5)
    assert torch.equal(read.tokens, texts.prepare(speaking, given, length=5).tokens)
    assert texts.documents(file) == given


def test_written_text_is_the_models_own_and_repeatable(speaking: GPT) -> None:
    state = torch.get_rng_state()
    first, again = (texts.write(speaking, 5, length=9, seed=4) for _ in range(2))
    assert torch.equal(first.tokens, again.tokens) and first.tokens.shape == (5, 9)
    assert not torch.equal(first.tokens, texts.write(speaking, 5, length=9, seed=5).tokens)
    assert torch.equal(state, torch.get_rng_state())
    assert "seed 4" in first.made


def test_written_text_follows_the_models_probabilities() -> None:
    model = make("llama", initializer_range=1.0)
    found = texts.write(model, 3, length=6, temperature=0.0).tokens
    for at in range(1, 6):
        assert found[:, at].tolist() == model(found[:, :at])[:, -1].argmax(-1).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_gets_text_that_it_can_read(kind: str) -> None:
    model = make(kind)
    found = texts.write(model, 3, length=99, progress=False)
    assert found.tokens.shape == (3, model.cfg.n_ctx)
    model(found.tokens)  # refuses ids that it does not have
    writes = kind in CAUSAL and kind != "attn_only"  # the last answers from another alphabet
    assert found.made.startswith("text that the model wrote" if writes else "random tokens")


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("a.csv", b"x", UnknownName, "no kind of text file matches '.csv'"),
        ("a.txt", b"\xff\xfe\x00", PromptError, "is not UTF-8: byte 0 is 0xff"),
        ("a.txt", b"Mary", PromptError, "fewer than one sequence of 7"),
        (
            "a.jsonl",
            b'{"text": "Mary"}\n{"words": "John"}',
            PromptError,
            "line 2 .* needs a string under \"text\".*only 'words'",
        ),
        ("a.jsonl", b"Mary", PromptError, "line 1 .* is not JSON"),
    ],
)
def test_files_that_do_not_do_are_refused(
    speaking: GPT, tmp_path: Path, name: str, content: bytes, error: type[Exception], says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=says):
        texts.prepare(speaking, tmp_path / name, length=7)


def test_what_a_model_cannot_read_is_refused(tmp_path: Path) -> None:
    model = make("gpt2")
    with pytest.raises(PromptError, match="id 29 is out of range: this model's ids are 0 to 28"):
        texts.prepare(model, torch.tensor([[1, 29]]))
    with pytest.raises(PromptError, match="longer than the model's context of 24"):
        texts.prepare(model, torch.ones(2, 25, dtype=torch.int64))
    with pytest.raises(PromptError, match="no tokenizer"):
        texts.prepare(model, ["Mary"])
    with pytest.raises(PromptError, match="cannot be read"):
        texts.prepare(model, tmp_path / "nowhere.txt")
    with pytest.raises(PromptError, match=r"not \[3\]"):
        texts.Texts(torch.tensor([1, 2, 3]), "flat")
    with pytest.raises(PromptError, match="at least 1"):
        texts.write(model, 0)


def test_lines_that_are_nested_too_deeply_and_names_that_no_file_has_are_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    for path in (tmp_path / "deep.jsonl", tmp_path / "a\0b.txt"):
        with pytest.raises(PromptError, match=r"line 1 of|cannot be read"):
            texts.documents(path)
