"""The vocabulary in a GGUF file's metadata: its tokens, their types, and the entries that say how they are used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from interp.arguments import shown
from interp.errors import WeightsError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a file in the order of their ids, and their types; `name` is the file, for messages."""

    name: str
    metadata: dict[str, Any] = field(repr=False)
    tokens: list[str] = field(repr=False)
    types: list[int] = field(repr=False)

    @property
    def ids(self) -> dict[str, int]:
        """The id of each token."""
        return {token: id_ for id_, token in enumerate(self.tokens)}

    @property
    def unknown(self) -> int | None:
        """The id of the token for what is not in the vocabulary."""
        return self.types.index(UNKNOWN) if UNKNOWN in self.types else None

    def flag(self, key: str, default: bool) -> bool:
        """An entry that is true or false.

        Raises:
            WeightsError: it is neither.
        """
        value = self.metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, bool):
            raise WeightsError(f"{self.name}: tokenizer.ggml.{key} must be true or false, not {shown(value)}")
        return value

    def entries(self, key: str, kind: type) -> list[Any]:
        """An entry that is a list.

        Raises:
            WeightsError: it is missing, or something else.
        """
        return _entries(self.metadata, key, kind, self.name)

    def special_id(self, key: str) -> int | None:
        """The id of a token with a part to play, such as `bos`; None if the file names none.

        Raises:
            WeightsError: it is not the id of a token.
        """
        id_ = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if id_ is not None and (type(id_) is not int or not 0 <= id_ < len(self.tokens)):
            known = f"the {len(self.tokens)} tokens"
            raise WeightsError(f"{self.name}: tokenizer.ggml.{key}_token_id={shown(id_)} is outside {known}")
        return id_

    def scores(self) -> list[float]:
        """The score of each token.

        Raises:
            WeightsError: they are missing, or there are more or fewer than tokens.
        """
        scores = self.entries("scores", float)
        if len(scores) != len(self.tokens):
            raise WeightsError(f"{self.name}: {len(self.tokens)} tokens have {len(scores)} scores")
        return scores


def vocabulary_of(metadata: dict[str, Any], name: str) -> Vocabulary:
    """The vocabulary of a file.

    Raises:
        WeightsError: the file has no list of tokens, a token twice, or types that are not one for each token.
    """
    tokens = _entries(metadata, "tokens", str, name)
    has_types = "tokenizer.ggml.token_type" in metadata
    types = _entries(metadata, "token_type", int, name) if has_types else [NORMAL] * len(tokens)
    distinct = len(set(tokens))
    if distinct != len(tokens) or len(types) != len(tokens):
        raise WeightsError(f"{name}: {len(tokens)} tokens, {distinct} of them distinct, have {len(types)} types")
    return Vocabulary(name, metadata, tokens, types)


def _entries(metadata: dict[str, Any], key: str, kind: type, name: str) -> list[Any]:
    values = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise WeightsError(f"{name}: tokenizer.ggml.{key} is missing or not a list of {kind.__name__}")
    return values
