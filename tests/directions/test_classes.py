"""Contrasts: which class every prompt has, by its answers, its task or labels of your own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from makers import make, named_pairs

from interp.directions.classes import contrast
from interp.errors import PromptError, UnknownName
from interp.prompts.pairs import PromptPairs


def test_order_says_which_answer_is_named_first() -> None:
    model, pairs = make("gpt2"), named_pairs(6)
    told = contrast(model, pairs)
    assert told.name == "order" and told.classes == ("right answer first", "wrong answer first")
    assert told.clean.tolist() == [1, 0, 0, 1, 0, 0]
    # In a corrupt prompt the pair's wrong answer is right: pair 0 names 2 first, pair 1 names 13 first.
    assert told.corrupt is not None and told.corrupt.tolist() == [1, 0, 0, 1, 0, 0]


def test_auto_takes_the_answers_where_they_are_few_and_sides_where_nothing_else_is_left() -> None:
    model = make("gpt2")
    rows = [[1, 2 + i, 3] for i in range(6)]
    other = [[1, 2 + i, 4] for i in range(6)]
    verbs = PromptPairs.from_tokens(rows, other, answers=[(20, 21), (21, 20)] * 3)
    told = contrast(model, verbs)
    assert (told.name, told.classes, told.grouped_by) == ("answer", ("20", "21"), "pair")
    assert told.clean.tolist() == [0, 1] * 3 and told.corrupt is not None and told.corrupt.tolist() == [1, 0] * 3
    many = PromptPairs.from_tokens(rows, other, answers=[(10 + i, 20 + i) for i in range(6)])
    side = contrast(model, many)
    assert side.name == "side" and side.clean.tolist() == [0] * 6 and side.sides["corrupt"].tolist() == [1] * 6


def test_pairs_with_the_same_answers_are_one_group_where_enough_groups_are_left() -> None:
    rows = [[1, 2, 3 + i] for i in range(8)]
    answers = [(10 + i % 5, 20) if i < 5 else (20, 10 + i % 5) for i in range(8)]
    pairs = PromptPairs.from_tokens(rows, [[1, 2, 15 + i] for i in range(8)], answers=answers)
    told = contrast(make("gpt2"), pairs, "side")
    assert told.grouped_by == "answers" and told.group.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    few = contrast(make("gpt2"), pairs[:6], "side")
    assert few.group.tolist() == [0, 1, 2, 3, 4, 0]
    assert contrast(make("gpt2"), pairs[[0, 5, 1, 6]], "side").grouped_by == "pair"


def test_labels_of_your_own_are_of_clean_prompts_or_of_both() -> None:
    model, pairs = make("gpt2"), named_pairs(4)
    one = contrast(model, pairs, labels=["b", "a", "b", "a"])
    assert one.classes == ("a", "b") and one.clean.tolist() == [1, 0, 1, 0] and one.corrupt is None
    both = contrast(model, pairs, labels=torch.tensor([[3, 7], [3, 7], [7, 3], [3, 3]]))
    assert both.classes == ("3", "7") and both.clean.tolist() == [0, 0, 1, 0]
    assert both.corrupt is not None and both.corrupt.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"label": "ordr"}, UnknownName, "no label matches 'ordr'; did you mean 'order'"),
        ({"label": "answer"}, PromptError, "4 pairs have 8 different answers"),
        ({"labels": [1, 2]}, PromptError, "one for each of 4 clean prompts"),
        ({"labels": [1, 1, 1, 1]}, PromptError, "at least two classes, and these are all 1"),
        ({"labels": [1, 2, 3, 4], "most": 2}, PromptError, "4 classes, and at most 2"),
        ({"labels": [1, 2, 1, 2], "label": "side"}, PromptError, "leave out one"),
    ],
)
def test_what_tells_nothing_apart_is_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        contrast(make("gpt2"), named_pairs(4), **options)


def test_sides_that_are_the_same_prompt_have_no_contrast() -> None:
    pairs = PromptPairs.from_tokens([[1, 2], [3, 4]], answers=[(5, 6), (7, 8)])
    with pytest.raises(PromptError, match="some corrupt prompt equals its clean one"):
        contrast(make("gpt2"), pairs)


def test_a_task_may_name_kinds_of_answers() -> None:
    model, rows = make("gpt2"), [[1, 2 + i, 3] for i in range(6)]
    kinds = {"singular": [20, 22, 24], "plural": [21, 23, 25]}
    answers = [(20, 21), (23, 22), (24, 25), (21, 20), (22, 23), (25, 24)]
    other = [[1, 2 + i, 4] for i in range(6)]
    pairs = PromptPairs.from_tokens(rows, other, answers=answers, notes={"answer_kinds": kinds})
    told = contrast(model, pairs)
    assert (told.name, told.classes) == ("kind", ("singular", "plural"))
    assert told.clean.tolist() == [0, 1, 0, 1, 0, 1] and told.sides["corrupt"].tolist() == [1, 0, 1, 0, 1, 0]
    assert contrast(model, pairs[[1, 3, 5]], "kind").clean.tolist() == [1, 1, 1]
    for notes, why in (({}, "names no kinds"), ({"answer_kinds": {"odd": [21]}}, "none of the kinds odd")):
        lacking = PromptPairs.from_tokens(rows, other, answers=answers, notes=notes)
        with pytest.raises(PromptError, match=why):
            contrast(model, lacking, "kind")
