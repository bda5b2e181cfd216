"""Prompt pairs: what they hold, what they refuse, and that taking a part or a file of them loses nothing."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from interp.config import ModelConfig
from interp.errors import OutputError, PromptError, UnknownName
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.text.tokenizer import Tokenizer

CLEAN = "When John and Mary went to the store, John gave a bottle of milk to"
CORRUPT = "When John and Mary went to the store, Mary gave a bottle of milk to"
SHORT, SHORT_CORRUPT = "Mary went to John and", "John went to John and"


@pytest.fixture(scope="module")
def reader() -> GPT:
    """A tiny model whose tokenizer has the words of CLEAN, with a space in front, as tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<s>"],
        show_progress=False,
        min_frequency=1,
    )
    backend.train_from_iterator([CLEAN], trainer)
    tokenizer = Tokenizer(backend, bos_token_id=1, pad_token_id=0)
    cfg = ModelConfig(n_layers=1, d_model=8, d_head=4, n_ctx=24, d_vocab=len(tokenizer), seed=0)
    return GPT(cfg, tokenizer)


@pytest.fixture
def pairs(reader: GPT) -> PromptPairs:
    return PromptPairs.from_text(
        reader,
        clean=[CLEAN, SHORT, CLEAN],
        corrupt=[CORRUPT, SHORT_CORRUPT, CORRUPT],
        answers=[(" Mary", " John"), (" milk", " store"), (" Mary", " of")],
        roles=[{"IO": " Mary", "S2": 9, "END": -1}, {"IO": 0, "END": -1}, {"IO": " Mary", "S2": 9, "END": -1}],
        name="store",
        notes={"seed": 3, "who": "Zoë"},
    )


def contents(pairs: PromptPairs) -> dict[str, Any]:
    """Everything in plain values, to compare."""
    return {
        field.name: value.tolist() if isinstance(value := getattr(pairs, field.name), torch.Tensor) else value
        for field in dataclasses.fields(pairs)
    }


def test_text_becomes_the_tokenizer_s_ids_padded_on_the_right(reader: GPT, pairs: PromptPairs) -> None:
    assert reader.tokenizer is not None
    tokens, mask = reader.to_batch([CLEAN, SHORT, CLEAN])
    assert torch.equal(pairs.clean, tokens) and torch.equal(pairs.mask, mask)
    assert torch.equal(pairs.corrupt, reader.to_tokens([CORRUPT, SHORT_CORRUPT, CORRUPT]))
    assert pairs.lengths.tolist() == [len(reader.tokenizer.encode(text)) for text in (CLEAN, SHORT, CLEAN)]
    assert len(set(pairs.lengths.tolist())) == 2  # so that padding was tried
    assert pairs.last.tolist() == [n - 1 for n in pairs.lengths.tolist()]
    assert pairs.answers[1].tolist() == [reader.to_single_token(" milk"), reader.to_single_token(" store")]
    assert pairs.str_tokens[1] == tuple(reader.to_str_tokens(SHORT))
    assert pairs.corrupt_str_tokens[0] == tuple(reader.to_str_tokens(CORRUPT))
    assert pairs.clean_texts[1] == SHORT and pairs.corrupt_texts[0] == CORRUPT
    assert (pairs.clean.dtype, pairs.corrupt.dtype, pairs.answers.dtype) == (torch.int64,) * 3


def test_roles_are_positions_numbers_from_the_end_or_tokens(reader: GPT, pairs: PromptPairs) -> None:
    shown = reader.to_str_tokens(CLEAN)
    assert pairs.roles[0] == {"IO": shown.index(" Mary"), "S2": 9, "END": len(shown) - 1}
    assert shown[9] == " John"
    assert pairs.role_positions("END").tolist() == pairs.last.tolist()
    assert pairs.role_names == ("IO", "END")
    with pytest.raises(UnknownName, match="no role matches 'EDN'; did you mean 'END'"):
        pairs.role_positions("EDN")
    with pytest.raises(PromptError, match="pair 1 has no role 'S2', only 'IO', 'END'"):
        pairs.role_positions("S2")


def test_one_role_mapping_stands_for_every_pair(reader: GPT) -> None:
    pairs = PromptPairs.from_text(
        reader, [CLEAN, SHORT], [CORRUPT, SHORT_CORRUPT], answers=[(1, 2), (3, 4)], roles={"END": -1}
    )
    assert pairs.role_positions("END").tolist() == pairs.last.tolist()


def test_one_pair_may_be_given_bare_and_without_a_contrast(reader: GPT) -> None:
    pairs = PromptPairs.from_text(reader, CLEAN, answers=(" Mary", " John"))
    listed = PromptPairs.from_text(reader, [CLEAN], [CLEAN], answers=[(" Mary", " John")])
    assert contents(pairs) == contents(listed)
    assert torch.equal(pairs.clean, pairs.corrupt)


def test_bos_is_as_asked_and_positions_count_it(reader: GPT) -> None:
    bare = PromptPairs.from_text(reader, CLEAN, CORRUPT, answers=(" Mary", " John"), roles={"IO": " Mary"})
    opened = PromptPairs.from_text(
        reader, CLEAN, CORRUPT, answers=(" Mary", " John"), roles={"IO": " Mary"}, prepend_bos=True
    )
    assert opened.clean[0].tolist() == [1, *bare.clean[0].tolist()]
    assert opened.roles[0]["IO"] == bare.roles[0]["IO"] + 1


def test_labels_number_the_tokens(pairs: PromptPairs) -> None:
    assert pairs.labels(1) == ["0: Ma", "1: ry", "2: went", "3: to", "4: John", "5: and"]
    assert pairs.labels(-1)[9] == "9: John"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"corrupt": [CORRUPT, "Mary and went to John and"]},
            r"pair 1: the clean prompt has 6 tokens and the corrupt one 7, .* differ at position 2",
        ),
        (
            {"clean": [CLEAN, "John went to the"], "corrupt": [CORRUPT, "John went to the store"]},
            "pair 1: .* differ at position 5",
        ),
        ({"clean": [CLEAN, ""]}, "pair 1: the clean prompt is empty"),
        ({"corrupt": ["", SHORT_CORRUPT]}, "pair 0: the corrupt prompt is empty"),
        ({"clean": [], "corrupt": []}, "no prompt was given"),
        ({"corrupt": [CORRUPT]}, "2 clean prompts but 1 corrupt"),
        ({"answers": [(" Mary", " John")]}, "2 clean prompts but 1 answers"),
        ({"answers": [(" Mary", " John"), (" Mary",)]}, "pair 1: answers must be .right, wrong., not .' Mary',."),
        ({"answers": (" Mary", " John")}, "pair 0: answers must be .right, wrong., not ' Mary'"),
        ({"answers": [(" Mary", " John"), (" John", " John")]}, "pair 1: .* are the same token, ' John'"),
        ({"answers": [(" Mary", "Mary"), (" John", " to")]}, r"pair 0: the wrong answer 'Mary' .*\['Ma', 'ry'\]"),
        ({"answers": [(" Mary", "Mary"), (" John", " to")]}, "with a space in front, ' Mary' is one"),
        ({"answers": [(" Mary", " John"), (5, 10**6)]}, "pair 1: the wrong answer, id 1000000, is out of range"),
        ({"answers": [(" Mary", " John"), (-1, 5)]}, "pair 1: the right answer, id -1, is out of range"),
        ({"roles": [{}]}, "2 clean prompts but 1 roles"),
        ({"roles": [{}, {"END": 6}]}, "pair 1: role 'END' is at position 6, .* 0 to 5"),
        ({"roles": [{}, {"END": -7}]}, "pair 1: role 'END' is at position -7"),
        ({"roles": [{"S": " John"}, {}]}, r"pair 0: role 'S': the token ' John' is at positions \[1, 9\]"),
        ({"roles": [{"S": " milk"}, {"S": " milk"}]}, "pair 1: role 'S': the token ' milk' does not occur"),
        ({"roles": [{"S": "Mary"}, {}]}, "pair 0: role 'S': 'Mary' is not one token but 2"),
        ({"clean": [CLEAN, SHORT * 6], "corrupt": [CORRUPT, SHORT * 6]}, "pair 1: a prompt of .* context of 24"),
    ],
)
def test_what_does_not_pair_is_refused_by_name(reader: GPT, change: dict[str, Any], says: str) -> None:
    good: dict[str, Any] = {
        "clean": [CLEAN, SHORT],
        "corrupt": [CORRUPT, SHORT_CORRUPT],
        "answers": [(" Mary", " John"), (" to", " the")],
    }
    PromptPairs.from_text(reader, **good)
    with pytest.raises(PromptError, match=says):
        PromptPairs.from_text(reader, **{**good, **change})


def test_unequal_lengths_show_both_prompts_where_they_part(reader: GPT) -> None:
    with pytest.raises(PromptError) as caught:
        PromptPairs.from_text(reader, "When John and Mary went to", "When John and Mary, went to", answers=(1, 2))
    assert "differ at position 4: from 2 on" in str(caught.value)
    assert "clean reads [' and', ' Mary', ' went', ' to'] and corrupt [' and', ' Mary', ',', ' went', ' to']" in str(
        caught.value
    )


def test_a_model_without_a_tokenizer_takes_ids(reader: GPT) -> None:
    mute = GPT(reader.cfg)
    with pytest.raises(PromptError, match=r"no tokenizer: use PromptPairs\.from_tokens"):
        PromptPairs.from_text(mute, CLEAN, CORRUPT, answers=(1, 2))
    with pytest.raises(PromptError, match="pair 0: the right answer must be a token id, not ' Mary'"):
        PromptPairs.from_tokens([[5]], [[6]], answers=[(" Mary", 3)])
    with pytest.raises(PromptError, match="pair 0: role 'S' must be a position, not ' Mary'"):
        PromptPairs.from_tokens([[5]], [[6]], answers=[(1, 3)], roles={"S": " Mary"})
    with pytest.raises(PromptError, match="pair 1: the clean prompt has 2 tokens and the corrupt one 1"):
        PromptPairs.from_tokens([[5], [5, 6]], [[6], [5]], answers=[(1, 3), (1, 3)])
    with pytest.raises(PromptError, match="pair 1: the clean prompt is empty"):
        PromptPairs.from_tokens([[5], []], [[6], []], answers=[(1, 3), (1, 3)])


def test_ids_and_text_make_the_same_pairs(reader: GPT, pairs: PromptPairs) -> None:
    lengths = pairs.lengths.tolist()
    rows = [[row[:n] for row, n in zip(side.tolist(), lengths, strict=True)] for side in (pairs.clean, pairs.corrupt)]
    ids = PromptPairs.from_tokens(*rows, answers=pairs.answers, roles=pairs.roles)
    assert ids.digest() == pairs.digest()
    assert torch.equal(ids.clean, pairs.clean) and torch.equal(ids.mask, pairs.mask)
    assert PromptPairs.from_tokens(torch.tensor(rows[0][:1]), answers=(3, 4)).clean.tolist() == rows[0][:1]


ROWS = st.lists(
    st.integers(1, 6).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 50), min_size=n, max_size=n)] * 2)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, data=st.data())
def test_a_part_is_what_would_have_been_made_of_the_part(rows: list[tuple[list[int], list[int]]], data: Any) -> None:
    def make(chosen: list[int]) -> PromptPairs:
        return PromptPairs.from_tokens(
            [rows[at][0] for at in chosen],
            [rows[at][1] for at in chosen],
            answers=[(at, at + 1) for at in chosen],
            roles=[{"END": -1, "START": 0} for _ in chosen],
        )

    n = len(rows)
    whole = make(list(range(n)))
    chosen = data.draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=8))
    assert contents(whole[chosen]) == contents(make([at % n for at in chosen]))
    assert whole[chosen].digest() == make([at % n for at in chosen]).digest()
    start = data.draw(st.integers(0, n - 1))
    assert contents(whole[start:]) == contents(make(list(range(start, n))))
    assert contents(whole[start]) == contents(make([start]))
    bools = torch.tensor([at >= start for at in range(n)])
    assert contents(whole[bools]) == contents(whole[start:])
    assert [contents(one) for one in whole] == [contents(make([at])) for at in range(n)]


@pytest.mark.parametrize("index", [3, -4, [0, 3], slice(3, None), [], torch.tensor([True, False]), 0.5])
def test_a_part_that_is_not_there_is_refused(pairs: PromptPairs, index: Any) -> None:
    with pytest.raises(PromptError, match="pair"):
        pairs[index]


def test_the_digest_is_of_what_the_model_sees(pairs: PromptPairs) -> None:
    shuffled = tuple(dict(reversed(role.items())) for role in pairs.roles)
    padded = {k: torch.nn.functional.pad(getattr(pairs, k), (0, 2)) for k in ("clean", "corrupt", "mask")}
    for same in ({"name": "other"}, {"notes": {}}, {"roles": shuffled}, padded):
        assert dataclasses.replace(pairs, **same).digest() == pairs.digest()
    other = pairs.clean.clone()
    other[1, 2] += 1
    for changed in (
        {"clean": other},
        {"corrupt": other},
        {"answers": pairs.answers.flip(1)},
        {"roles": ({**pairs.roles[0], "IO": 1}, *pairs.roles[1:])},
    ):
        assert dataclasses.replace(pairs, **changed).digest() != pairs.digest()
    assert pairs[[1, 0, 2]].digest() != pairs.digest()


def test_pairs_come_back_from_a_file_and_a_pickle(pairs: PromptPairs, tmp_path: Path) -> None:
    path = pairs.save(tmp_path / "pairs.json")
    assert contents(PromptPairs.load(path)) == contents(pairs)
    assert contents(pickle.loads(pickle.dumps(pairs))) == contents(pairs)
    assert contents(PromptPairs.load(pairs[1].save(path))) == contents(pairs[1])
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_pairs_are_refused(pairs: PromptPairs, tmp_path: Path) -> None:
    path = pairs.save(tmp_path / "pairs.json")
    saved = json.loads(path.read_text())

    def after(**change: Any) -> Path:
        path.write_text(json.dumps({**saved, **change}))
        return path

    with pytest.raises(PromptError, match="changed after it was saved"):
        PromptPairs.load(after(pairs=saved["pairs"][:2]))
    with pytest.raises(PromptError, match="its format is not"):
        PromptPairs.load(after(format="other"))
    with pytest.raises(PromptError, match="incomplete or damaged"):
        PromptPairs.load(after(pairs=[{"clean": [1]}]))
    path.write_text(json.dumps(saved)[:100])
    with pytest.raises(PromptError, match="does not hold prompt pairs"):
        PromptPairs.load(path)
    with pytest.raises(PromptError, match="cannot be read"):
        PromptPairs.load(tmp_path / "missing.json")


def test_a_file_that_cannot_be_written_is_left_as_it_was(pairs: PromptPairs, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    for path in (taken, tmp_path / "missing" / "pairs.json", pairs.save(tmp_path / "file") / "below.json"):
        with pytest.raises(OutputError, match="cannot be written"):
            pairs.save(path)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file", taken] and not list(taken.iterdir())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"clean": torch.zeros(3, 0, dtype=torch.int64)}, "at least one pair"),
        ({"corrupt": torch.zeros(3, 2, dtype=torch.int64)}, "corrupt is .*, expected the shape of clean"),
        ({"mask": torch.zeros(3, 17, dtype=torch.int64)}, "mask"),
        ({"answers": torch.zeros(3, dtype=torch.int64)}, "expected .3, 2."),
        ({"answers": torch.ones(3, 2, dtype=torch.int64)}, "pair 0: .* same token, id 1"),
        ({"roles": ()}, "roles has 0 entries"),
        ({"roles": ({}, {"END": 6}, {})}, "pair 1: role 'END' is at 6, but positions are 0 to 5"),
        ({"str_tokens": (("a",), ("b",), ("c",))}, "pair 0: str_tokens names 1 tokens"),
    ],
)
def test_pairs_that_contradict_themselves_cannot_be_made(pairs: PromptPairs, change: dict[str, Any], says: str) -> None:
    with pytest.raises(PromptError, match=says):
        dataclasses.replace(pairs, **change)


def test_padding_stands_on_the_right(pairs: PromptPairs) -> None:
    with pytest.raises(PromptError, match="then False at the padding"):
        dataclasses.replace(pairs, mask=pairs.mask.flip(1))


def test_a_printed_value_says_what_it_is(pairs: PromptPairs) -> None:
    assert repr(pairs) == "PromptPairs('store', n=3, 6 to 16 tokens, roles=('IO', 'END'))"


def test_moving_to_a_device_keeps_everything(pairs: PromptPairs) -> None:
    moved = pairs.to(torch.device("cpu"))
    assert contents(moved) == contents(pairs) and moved.digest() == pairs.digest()


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, torch.tensor, np.array])
def test_every_kind_of_whole_number_is_one(kind: Any) -> None:
    rows = [[kind(token) for token in row] for row in ([5, 6, 7], [5, 8])]
    pairs = PromptPairs.from_tokens(rows, answers=[(kind(1), kind(2)), (kind(3), kind(4))], roles={"S": kind(1)})
    assert pairs.clean.tolist() == [[5, 6, 7], [5, 8, 0]] and pairs.answers.tolist() == [[1, 2], [3, 4]]
    assert pairs.roles == ({"S": 1}, {"S": 1}) and type(pairs.roles[0]["S"]) is int
    pairs.digest()


@pytest.mark.parametrize("wrong", [1.5, 1.0, True, None, torch.tensor(1.7), np.float32(1), [1]])
def test_what_is_no_whole_number_is_refused_by_name(reader: GPT, wrong: Any) -> None:
    with pytest.raises(PromptError, match="pair 0: role 'S' must be a position or the text of a token, not "):
        PromptPairs.from_tokens([[5, 6]], answers=(1, 2), roles={"S": wrong})
    with pytest.raises(PromptError, match="pair 0: role 'S' must be a position"):
        PromptPairs.from_text(reader, CLEAN, answers=(1, 2), roles={"S": wrong})
    with pytest.raises(PromptError, match="pair 1: token ids must be integers"):
        PromptPairs.from_tokens([[5, 6], [5, wrong]], answers=[(1, 2)] * 2)
    if not isinstance(wrong, list):
        with pytest.raises(PromptError, match="pair 0: the wrong answer must be a text or a token id"):
            PromptPairs.from_tokens([[5, 6]], answers=[(1, wrong)])


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (5, "clean must be the ids of each prompt, .*, not 5"),
        ([5, 6], r"clean must be the ids of each prompt, .*; entry 0 is 5"),
        ("abc", "clean must be the ids of each prompt, .*, not 'abc'"),
        (torch.tensor([5, 6]), "clean must be the ids of each prompt, .*; entry 0 is 5"),
        (torch.rand(2, 3), "pair 0: token ids must be integers"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused(tokens: Any, says: str) -> None:
    with pytest.raises(PromptError, match=says):
        PromptPairs.from_tokens(tokens, answers=[(1, 2)] * 2)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_batch_needs_its_mask(reader: GPT, side: Any) -> None:
    texts = [CLEAN, SHORT]
    answers = [(" Mary", " John"), (" to", " the")]
    expected = PromptPairs.from_text(reader, texts, answers=answers)
    padded, mask = reader.to_batch(texts, padding_side=side)
    with pytest.raises(PromptError, match=r"clean is padded, its prompts have \d+ to \d+ tokens: give its mask"):
        PromptPairs.from_tokens(reader.to_tokens(texts, padding_side=side), answers=expected.answers)
    with pytest.raises(PromptError, match=r"corrupt is padded, some of its rows .* with up to \d+ times the id \d+"):
        PromptPairs.from_tokens([row[:6] for row in padded], padded, answers=expected.answers)
    for known in (mask, mask.tolist(), mask.long()):
        pairs = PromptPairs.from_tokens(padded, padded, answers=expected.answers, roles={"END": -1}, mask=known)
        assert torch.equal(pairs.mask, expected.mask) and pairs.lengths.tolist() == expected.lengths.tolist()
        assert torch.equal(pairs.clean[pairs.mask], expected.clean[expected.mask])
        assert [roles["END"] for roles in pairs.roles] == [n - 1 for n in pairs.lengths.tolist()]
    with pytest.raises(PromptError, match="not -inf; this looks like one that is added"):
        PromptPairs.from_tokens(
            padded, answers=expected.answers, mask=torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        )
    with pytest.raises(PromptError, match=r"mask is \[2, 3\], but clean has 2 prompts of \[\d+\] tokens"):
        PromptPairs.from_tokens(padded, answers=expected.answers, mask=mask[:, :3])
    with pytest.raises(PromptError, match="mask has padding between real tokens"):
        PromptPairs.from_tokens([[1, 2, 3]], answers=(1, 2), mask=[[1, 0, 1]])


def test_rows_that_only_end_alike_are_no_padding(reader: GPT) -> None:
    for rows in ([[5, 5, 5], [5, 6, 5]], [[1, 2, 2], [1, 3, 4]], [[7, 5, 5, 5], [7, 5, 6, 6]], [[5, 5, 5]]):
        assert PromptPairs.from_tokens(torch.tensor(rows), answers=[(1, 2)] * len(rows)).clean.tolist() == rows
    alike = reader.to_tokens([CLEAN, CLEAN])
    assert torch.equal(PromptPairs.from_tokens(alike, answers=[(1, 2)] * 2).clean, alike)


def test_an_answer_that_joins_its_prompt_is_refused(reader: GPT) -> None:
    """The space that a prompt ends with would belong to the next word."""
    text = "When John and "
    with pytest.raises(PromptError, match=r"the right answer 'Mary' is not a token after the prompt: the prompt's end"):
        PromptPairs.from_text(reader, text, answers=("Mary", " to"))
    mary = int(reader.to_single_token(" Mary"))
    assert PromptPairs.from_text(reader, text, answers=(mary, 1)).answers.tolist() == [[mary, 1]]


def test_several_answers_in_text(reader: GPT) -> None:
    mary, john, to = (reader.to_single_token(word) for word in (" Mary", " John", " to"))
    pairs = PromptPairs.from_text(reader, CLEAN, CORRUPT, answers=([" Mary", to], " John"))
    assert pairs.answer_sets == (((mary, to), (john,)),) and pairs.answers.tolist() == [[mary, john]]
    with pytest.raises(PromptError, match=r"pair 0: the wrong answer 'Mary' is not one token"):
        PromptPairs.from_text(reader, CLEAN, CORRUPT, answers=[(" John", [" to", "Mary"])])
