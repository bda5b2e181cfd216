"""Pairs of prompts for their reader: texts, answers, and what stands at each role."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.arguments import whole_number

if TYPE_CHECKING:
    import pandas as pd

    from interp.hooked.model import HookedModel


def examples(pairs: Any, n: Any, model: HookedModel | None) -> pd.DataFrame:
    """The first of `PromptPairs` as a table, as their method `examples` describes it."""
    import pandas as pd

    rows = range(min(whole_number("n", n, least=1), len(pairs)))
    read = pairs if pairs.encoder is None else pairs.encoder
    columns: dict[str, list[str]] = {"clean": [read.clean_texts[at] for at in rows]}
    if pairs.contrast:
        columns["corrupt"] = [read.corrupt_texts[at] for at in rows]
    if pairs.encoder is not None:
        columns["decoder"] = [pairs.clean_texts[at] for at in rows]
    if pairs.has_answers:
        texts = _texts(read, model)
        table = pairs.answer_table.tolist()
        for side, what in enumerate(("right", "wrong")):
            columns[what] = [", ".join(texts(token) for token in table[at][side] if token >= 0) for at in rows]
    for own in dict.fromkeys((read, pairs)):
        labels = {at: own.labels(at) for at in rows}
        for role in dict.fromkeys(role for of_pair in own.roles for role in of_pair):
            named = [labels[at][own.roles[at][role]] if role in own.roles[at] else "" for at in rows]
            columns[role if role not in columns else f"role {role}"] = named
    return pd.DataFrame(columns)


def _texts(pairs: Any, model: HookedModel | None) -> Any:
    """The text of an answer: the model's, or that of the same token in a prompt, or its id."""
    known: dict[int, str] = {}
    for tokens, texts in ((pairs.clean, pairs.str_tokens), (pairs.corrupt, pairs.corrupt_str_tokens)):
        for row, named in zip(tokens.tolist(), texts, strict=True):
            known |= dict(zip(row, named, strict=False))

    def text(token: int) -> str:
        if model is not None and model.tokenizer is not None:
            return str(model.to_string([token]))
        return known.get(token, str(token))

    return text
