"""Words for prompts: which of a list are one token for a tokenizer, and which token would come next after a text.

1. A word is kept when, with what stands before it in a prompt, it is one token that spells it; what is dropped is told.
2. `next_token` reads a continuation in its place: the token that it begins with, if the prompt's own tokens stay as
   they are. That decides, for any tokenizer, what a prompt that ends inside a number asks for.
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
    """A list of words as a tokenizer leaves it: those that are one token, and the others."""

    kept: tuple[str, ...]
    dropped: tuple[str, ...]


def tokenizer_of(model: HookedModel) -> Tokenizer:
    """The model's tokenizer.

    Raises:
        PromptError: it has none.
    """
    if model.tokenizer is None:
        raise PromptError("this task writes text, and this model has no tokenizer; set model.tokenizer")
    return model.tokenizer


@checked
def single_tokens(model: HookedModel, words: Iterable[str], *, before: str = " ") -> Words:
    """The words that, with `before` in front, are one token of their own.

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
    """Whether a token alone is this word, spaces and case aside; one that stands for all unknown words is not."""
    return tokenizer.decode([token]).strip().casefold() == word.strip().casefold()


def enough(words: Words, what: str, least: int) -> tuple[str, ...]:
    """The words that were kept, if they are at least `least`.

    Raises:
        PromptError: they are fewer.
    """
    kept = words.kept
    if len(kept) < least:
        raise PromptError(
            f"only {len(kept)} of {len(kept) + len(words.dropped)} {what} are one token for this tokenizer "
            f"({', '.join(kept) or 'none'}), and this task needs {least}: it cannot be written for this model"
        )
    return kept


def next_token(tokenizer: Tokenizer, text: str, rest: str, *, whole: bool = True) -> int | None:
    """The token that comes next when `text` goes on with `rest`.

    Args:
        tokenizer: cuts both.
        text: the prompt.
        rest: how it goes on, with the space before a word.
        whole: `rest` has to be one token that spells it; otherwise its first token is enough.

    Returns:
        None where the prompt has other tokens inside the longer text, or `rest` is not one token.
    """
    ids = tokenizer.following(text, rest)
    if not ids:
        return None
    token = ids[0]
    if whole:
        return token if len(ids) == 1 and spells(tokenizer, token, rest) else None
    return token if rest.strip().startswith(tokenizer.decode([token]).strip()) else None
