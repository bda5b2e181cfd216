"""How pairs are shown: their texts, answers and roles in a table."""

from __future__ import annotations

import pytest

from interp.errors import ConfigError
from interp.prompts.pairs import PromptPairs
from tests.makers import pairs_of, stack_pairs
from tests.vocabularies import names_tokenizer, reader


def test_a_table_of_texts_answers_and_roles() -> None:
    model = reader(names_tokenizer())
    pairs = PromptPairs.from_text(
        model, ["Then John gave Mary", "Then Mary gave John"], ["Then Mary gave Mary", "Then John gave John"],
        answers=[(" Mary", " John"), (" John", " Mary")], roles={"first": 0, "END": -1},
    )  # fmt: skip
    frame = pairs.examples(model=model)
    assert list(frame.columns) == ["clean", "corrupt", "right", "wrong", "first", "END"]
    assert frame["clean"].tolist() == list(pairs.clean_texts) and frame["corrupt"].tolist() == list(pairs.corrupt_texts)
    assert frame["right"].tolist() == [" Mary", " John"]
    assert frame["END"].tolist() == [pairs.labels(0)[-1], pairs.labels(1)[-1]]
    assert pairs.examples()["right"].tolist() == [" Mary", " John"]  # tokens of the prompts are known without a model
    assert len(pairs.examples(1)) == 1
    with pytest.raises(ConfigError, match="n must be at least 1"):
        pairs.examples(0)


def test_print_and_notebooks_show_it() -> None:
    pairs = pairs_of(6, 4, 6)
    assert str(pairs) == f"{pairs!r}\n{pairs.examples().to_string()}" and "\n" not in repr(pairs)
    shown = pairs._repr_html_()
    assert "<table" in shown and "2: " in shown
    odd = PromptPairs.from_tokens([[1, 2]], name="<script>")
    assert "<script>" not in odd._repr_html_() and repr(odd).endswith("no answers)")
    assert list(odd.examples().columns) == ["clean"]


def test_two_stacks_and_several_answers() -> None:
    frame = stack_pairs().examples(2)
    assert list(frame.columns) == ["clean", "corrupt", "decoder", "right", "wrong", "changed", "END"]
    several = PromptPairs.from_tokens([[1, 2]], answers=[([3, 4], 5)], roles={"right": 1})
    assert several.examples().loc[0].tolist() == ["1 2", "3, 4", "5", "1: 2"]
