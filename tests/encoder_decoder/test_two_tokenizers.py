"""Marian's two SentencePiece models: what the encoder reads is cut by one, what the decoder writes by the other."""

from __future__ import annotations

import copy
import json
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from vocabularies import names_tokenizer

import interp
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import PromptError
from interp.lenses.read import depths, read
from interp.prompts.pairs import PromptPairs
from interp.study.behaviour import behaviour
from interp.tasks import from_file, get_task
from interp.text.tokenizer import Tokenizer
from tests.checkpoints import SEQ2SEQ, tiny
from tests.makers import close

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")  # transformers' advice

SPACE = "\u2581"
LETTERS = [SPACE, *"abcdefghijklmnopqrstuvwxyz"]
ENGLISH = [f"{SPACE}{word}" for word in ("the", "house", "is", "small", "large", "in", "a")]
GERMAN = [f"{SPACE}{word}" for word in ("das", "haus", "ist", "klein", "alt", "in")] + ["er"]
CLEAN, CORRUPT, BEGUN = "the house is small", "the house is large", "das haus ist"
TEXTS = ["das haus ist klein", "kleiner", "in a house", "the", ""]


def sentencepiece_file(path: Path, words: Sequence[str]) -> None:
    """A unigram model of these words and the single letters, in SentencePiece's protocol buffer."""
    content = b""
    special = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]  # piece, score, kind
    for piece, score, kind in [*special, *((w, -2.0, 1) for w in words), *((one, -9.0, 1) for one in LETTERS)]:
        text = piece.encode()
        entry = bytes([0x0A, len(text)]) + text + b"\x15" + struct.pack("<f", score) + bytes([0x18, kind])
        content += bytes([0x0A, len(entry)]) + entry
    path.write_bytes(content)


def checkpoint(folder: Path, *, separate: bool, german: Sequence[str] = GERMAN, left_out: Sequence[str] = ()) -> Any:
    """A tiny Marian checkpoint with its tokenizer; returns transformers' model and tokenizer.

    `left_out` are entries that the decoder's own vocabulary lacks, so that it is shorter than the encoder's.
    """
    folder.mkdir(exist_ok=True)
    for name, words in (("source", ENGLISH), ("target", german)):
        sentencepiece_file(folder / f"{name}.spm", words)
    own = [["</s>", "<unk>", *words, *LETTERS, "<pad>"] for words in (ENGLISH, german)]
    own[1] = [token for token in own[1] if token not in left_out]
    if not separate:
        own = [list(dict.fromkeys([*own[0][:-1], *own[1]]))]
    vocabularies = [{token: at for at, token in enumerate(tokens)} for tokens in own]
    for name, vocabulary in zip(("vocab.json", "target_vocab.json"), vocabularies, strict=False):
        (folder / name).write_text(json.dumps(vocabulary))
    more = {"target_vocab_file": str(folder / "target_vocab.json"), "separate_vocabs": True} if separate else {}
    files = [str(folder / name) for name in ("source.spm", "target.spm", "vocab.json")]
    tokenizer = transformers.MarianTokenizer(*files, **more)
    tokenizer.save_pretrained(folder)
    pad = vocabularies[-1]["<pad>"]
    ids = {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": 0, "bos_token_id": 0}
    sizes = {"vocab_size": len(vocabularies[0]), "decoder_vocab_size": len(vocabularies[-1])}
    options = SEQ2SEQ["marian-two-vocabularies" if separate else "marian"][1]
    model = tiny("marian", {**options, **sizes, **ids})
    model.save_pretrained(folder)
    return model, tokenizer


@pytest.fixture(params=[False, True], ids=["one-vocabulary", "two-vocabularies"], scope="module")
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model as interp loads it, and transformers' model and tokenizer."""
    folder = tmp_path_factory.mktemp("marian")
    expected = checkpoint(folder, separate=request.param)
    return interp.load(folder), *expected


def target_ids(tokenizer: Any, text: str) -> list[int]:
    """What transformers reads a decoder's text as, without the end of sequence."""
    ids: list[int] = tokenizer(text_target=text, add_special_tokens=False).input_ids
    return ids


def test_each_stack_reads_its_own_tokens(both: Any) -> None:
    model, reference, tokenizer = both
    start = model.cfg.decoder_start_token_id
    for text in TEXTS:
        assert model.to_tokens(text)[0].tolist() == tokenizer(text).input_ids
        tokens, _ = model.decoder_tokens([text], 1)
        assert tokens[0].tolist() == [start, *target_ids(tokenizer, text)]
        assert model.answer_tokenizer.encode(text or "a") == tokenizer(text_target=text or "a").input_ids
    assert target_ids(tokenizer, BEGUN) != tokenizer(BEGUN, add_special_tokens=False).input_ids
    logits = model(CLEAN, BEGUN)
    more = torch.tensor([[start, *target_ids(tokenizer, BEGUN)]])
    close(logits, reference(**tokenizer(CLEAN, return_tensors="pt"), decoder_input_ids=more).logits, 1e-5)


def test_what_is_generated_is_the_decoders_text(both: Any) -> None:
    model, reference, tokenizer = both
    given = tokenizer(CLEAN, return_tensors="pt")
    ids = reference.generate(**given, max_new_tokens=8, do_sample=False, num_beams=1)
    assert model.generate(CLEAN, 8, do_sample=False) == tokenizer.decode(ids[0], skip_special_tokens=True)
    own = model.generate(model.to_tokens(CLEAN), 8, do_sample=False)
    assert model.to_string(own[0]) == tokenizer.decode(own[0])


def test_special_tokens_of_the_decoders_vocabulary_have_their_own_ids(tmp_path: Path) -> None:
    checkpoint(tmp_path, separate=True, left_out=["x", "y"])
    model = interp.load(tmp_path)
    pad, other = (one.get_vocab()["<pad>"] for one in (model.answer_tokenizer, model.tokenizer))
    assert (model.answer_tokenizer.pad_token_id, model.tokenizer.pad_token_id) == (pad, other) == (other - 2, other)
    assert (model.to_string([pad]), model.tokenizer.decode([pad])) == ("<pad>", "y")
    # A text that has ended is filled with an id that the decoder can read.
    tokens = model.to_tokens([CLEAN] * 32)
    drawn = {"temperature": 50.0, "seed": 0}
    end = int(model.generate(tokens, 1, **drawn, stop_at_eos=False)[0, -1])
    rows = model.generate(tokens, 4, **drawn, eos_token_id=end)
    assert rows[0].tolist() == [pad, end, pad, pad, pad]
    assert "<pad>" not in model.generate(CLEAN, 4, do_sample=False)
    # The answer of every position of the decoder is one of its own vocabulary, however long the encoder's is.
    pairs = PromptPairs.from_text(model, CLEAN, CORRUPT, answers=(" klein", " alt"), decoder=BEGUN)
    assert set(read(model, pairs, depths(model), lenses={"logit": None}, pos="all")["pos"]) == {0, 1, 2, 3}


def test_pairs_have_the_decoders_answers_and_the_labels_of_each_stack(both: Any) -> None:
    model, _, tokenizer = both
    pairs = PromptPairs.from_text(
        model, CLEAN, CORRUPT, answers=(" klein", " alt"), roles={"size": " small"}, decoder=BEGUN
    )
    assert pairs.encoder is not None
    assert pairs.answers.tolist() == [[target_ids(tokenizer, "klein")[0], target_ids(tokenizer, "alt")[0]]]
    assert pairs.clean[0, 1:].tolist() == target_ids(tokenizer, BEGUN)
    assert pairs.str_tokens[0] == ("<pad>", " das", " haus", " ist")
    assert pairs.encoder.str_tokens[0] == (" the", " house", " is", " small", "</s>")
    assert pairs.encoder.roles == ({"size": 3},)
    with pytest.raises(PromptError, match=r"' small' is not one token but \d"):
        PromptPairs.from_text(model, CLEAN, CORRUPT, answers=(" small", " alt"), decoder=BEGUN)


def test_texts_and_tokens_one_by_one(both: Any) -> None:
    model, _, tokenizer = both
    (klein,) = target_ids(tokenizer, "klein")
    assert model.to_single_token(" klein") == klein
    assert model.to_string([klein]) == "klein"
    assert torch.equal(model.tokens_to_residual_directions(" klein"), model.W_U[:, klein])
    with pytest.raises(PromptError, match="' small' is not one token"):
        model.to_single_token(" small")
    assert model.to_str_tokens(CLEAN) == [" the", " house", " is", " small", "</s>"]
    assert model.to_str_tokens(model.to_tokens(CLEAN)) == model.to_str_tokens(CLEAN)
    assert model.tokenizer.decode(model.to_tokens(CLEAN)[0].tolist(), skip_special_tokens=True) == CLEAN


def test_every_id_of_each_vocabulary_has_its_own_token(both: Any) -> None:
    model, _, _ = both
    for tokenizer in (model.tokenizer, model.answer_tokenizer):
        for token, id_ in tokenizer.get_vocab().items():
            assert (tokenizer.id_to_token(id_), tokenizer.token_to_id(token)) == (token, id_)
            assert tokenizer.str_tokens([id_]) == [token.replace(SPACE, " ")] or token == SPACE


def test_a_data_file_with_a_decoders_side(both: Any, tmp_path: Path) -> None:
    model, _, tokenizer = both
    row = {"clean": CLEAN, "corrupt": CORRUPT, "answer": " klein", "wrong_answer": " alt", "decoder": BEGUN}
    pd.DataFrame([row, {**row, "answer": " small"}]).to_csv(tmp_path / "own.csv", index=False)
    pairs = from_file(model, tmp_path / "own.csv")
    assert pairs.answers.tolist() == [[*target_ids(tokenizer, "klein"), *target_ids(tokenizer, "alt")]]
    assert pairs.notes["first_answers"] == [" klein", " alt"]
    assert (pairs.notes["left_out"], pairs.str_tokens[0][1:]) == (1, (" das", " haus", " ist"))


def test_a_task_that_cannot_place_its_roles_says_what_to_do(both: Any) -> None:
    with pytest.raises(PromptError, match=r"does not say which characters a token holds.*PromptPairs\.from_text"):
        get_task("digit_addition")(both[0], 4)


def test_tables_name_predictions_as_the_decoder_spells_them(both: Any) -> None:
    model, _, tokenizer = both
    pairs = PromptPairs.from_text(model, CLEAN, CORRUPT, answers=(" klein", " alt"), decoder=BEGUN)
    best = model(**pairs.inputs("clean"))[0, -1].argmax()
    entry = tokenizer.convert_ids_to_tokens(int(best)).replace(SPACE, " ")
    table = read(model, pairs, depths(model), lenses={"logit": None}, top=1)
    assert table[table["metric"] == "top_prob"]["top_token"].iloc[-1].strip() == entry.strip()
    assert behaviour(model, pairs)["says"].iloc[0].strip() == entry.strip()


def test_both_sides_survive_saving_pickling_and_copying(both: Any, tmp_path: Path) -> None:
    model, _, _ = both
    saved = interp.load(interp.save(model, tmp_path / "saved"))
    assert isinstance(saved, EncoderDecoder)
    for again in (saved.tokenizer, pickle.loads(pickle.dumps(model.tokenizer)), copy.deepcopy(model.tokenizer)):
        assert again is not None and again.digest() == model.tokenizer.digest()
        for text in TEXTS:
            assert again.encode(text) == model.tokenizer.encode(text)
            assert again.of_decoder.encode(text) == model.answer_tokenizer.encode(text)
    assert torch.equal(saved(CLEAN, BEGUN), model(CLEAN, BEGUN))


def test_a_digest_tells_tokenizers_with_other_decoders_apart(tmp_path: Path) -> None:
    words = [*GERMAN[:-1], "re"]  # another way to cut the same letters
    digests = set()
    for name, german in (("one", GERMAN), ("other", words), ("same", GERMAN)):
        _, tokenizer = checkpoint(tmp_path / name, separate=False)
        sentencepiece_file(tmp_path / name / "target.spm", german)  # with the vocabulary of all three
        tokenizer = transformers.MarianTokenizer.from_pretrained(tmp_path / name)
        digests.add(Tokenizer.from_transformers(tokenizer).digest())
    assert len(digests) == 2


def test_a_tokenizer_of_one_kind_of_text_is_its_own_decoders() -> None:
    tokenizer = Tokenizer(names_tokenizer(["Mary"]))
    assert tokenizer.of_decoder is tokenizer
    for again in (copy.copy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert again.of_decoder is again
