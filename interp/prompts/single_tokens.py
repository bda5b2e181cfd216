"""Words for prompts: which words of a list are one token for a tokenizer, and which token comes next after a text.

1. A word is kept if, with the text before it in a prompt, it is one token that spells the word; the dropped words are
   listed as well.
2. `next_token` gives the first token of a continuation, provided that the prompt's own tokens stay the same. So it
   finds, for any tokenizer, which token a prompt that ends inside a number asks for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp.arguments import checked
from interp.errors import PromptError

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel
    from interp.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Words:
    """A list of words, divided into those that are one token for a tokenizer and the others."""

    kept: tuple[str, ...]
    dropped: tuple[str, ...]


def tokenizer_of(model: HookedModel) -> Tokenizer:
    """The model's tokenizer.

    Raises:
        PromptError: it has none.
    """
    if model.tokenizer is None:
        raise PromptError("this task writes text, but this model has no tokenizer; set model.tokenizer")
    return model.tokenizer


@checked
def single_tokens(model: HookedModel, words: Iterable[str], *, before: str = " ") -> Words:
    """The words that are one token with `before` in front, and the others.

    Raises:
        PromptError: a model without a tokenizer.
    """
    tokenizer = tokenizer_of(model)
    kept: list[str] = []
    dropped: list[str] = []
    for word in dict.fromkeys(words):
        token = tokenizer.single_id(before + word)
        (kept if token is not None and spells(tokenizer, token, word) else dropped).append(word)
    return Words(tuple(kept), tuple(dropped))


def spells(tokenizer: Tokenizer, token: int, word: str) -> bool:
    """Whether a token alone spells this word, apart from spaces and case; a token for unknown words does not."""
    return tokenizer.decode([token]).strip().casefold() == word.strip().casefold()


def enough(words: Words, what: str, least: int) -> tuple[str, ...]:
    """The words that were kept, if there are at least `least` of them.

    Raises:
        PromptError: there are fewer.
    """
    kept = words.kept
    if len(kept) < least:
        raise PromptError(
            f"only {len(kept)} of {len(kept) + len(words.dropped)} {what} are one token for this tokenizer "
            f"({', '.join(kept) or 'none'}), but this task needs {least}: it cannot be written for this model"
        )
    return kept


def next_token(tokenizer: Tokenizer, text: str, rest: str, *, whole: bool = True) -> int | None:
    """The token that comes next when `rest` follows `text`.

    Args:
        tokenizer: gives the ids of both.
        text: the prompt.
        rest: how it goes on, with the space before a word.
        whole: whether `rest` must be one token that spells it; if not, its first token is enough.

    Returns:
        The id; None if the prompt has other tokens inside the longer text, or `rest` is not one token.
    """
    ids = tokenizer.following(text, rest)
    if not ids:
        return None
    token = ids[0]
    if whole:
        return token if len(ids) == 1 and spells(tokenizer, token, rest) else None
    return token if rest.strip().startswith(tokenizer.decode([token]).strip()) else None
