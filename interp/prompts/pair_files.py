"""Pairs of prompts as a JSON file, and the digest that identifies them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from interp.arguments import checked
from interp.errors import PromptError
from interp.files.checksums import of_values, plain_json
from interp.files.whole_files import read_saved, write_whole
from interp.prompts.answers import AnswerSets, NoAnswers, no_answers, sets_by_text
from interp.text.padding import pad

FORMAT = "interp.PromptPairs 1"


class SavedPairs:
    """The part of `PromptPairs` that handles files; the attributes are described there."""

    clean: Tensor
    corrupt: Tensor
    mask: Tensor
    answers: Tensor
    roles: tuple[dict[str, int], ...]
    clean_texts: tuple[str, ...]
    corrupt_texts: tuple[str, ...]
    str_tokens: tuple[tuple[str, ...], ...]
    corrupt_str_tokens: tuple[tuple[str, ...], ...]
    name: str
    notes: dict[str, Any]
    answer_sets: AnswerSets
    encoder: Any  # pairs of this kind, or None

    @property
    def lengths(self) -> Tensor:
        """The number of real tokens of each pair [n]."""
        return self.mask.sum(1)

    def digest(self) -> str:
        """SHA-256 of everything that affects a model's score: token ids without padding, answers and roles."""
        content: list[Any] = [
            [row["clean"], row["corrupt"], row["answers"], sorted(row["roles"].items()), *row.get("answer_sets", ())]
            for row in self._plain_pairs()
        ]
        if self.encoder is not None:
            content.append(self.encoder.digest())
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    def _plain(self) -> dict[str, Any]:
        """What a file holds, in plain JSON values."""
        padding = self.clean[~self.mask]
        return {
            "name": self.name,
            "digest": self.digest(),
            "notes": plain_json("notes", self.notes),
            "pad_id": int(padding[0]) if len(padding) else 0,
            "pairs": self._plain_pairs(),
            **({"encoder": self.encoder._plain()} if self.encoder is not None else {}),
        }

    def _plain_pairs(self) -> list[dict[str, Any]]:
        """Each pair as plain JSON values."""
        lengths = self.lengths.tolist()
        return [
            {
                "clean": self.clean[at, :length].tolist(),
                "corrupt": self.corrupt[at, :length].tolist(),
                "answers": None if isinstance(self.answers, NoAnswers) else self.answers[at].tolist(),
                **({"answer_sets": self.answer_sets[at]} if self.answer_sets else {}),
                "roles": self.roles[at],
                "clean_text": self.clean_texts[at],
                "corrupt_text": self.corrupt_texts[at],
                "str_tokens": self.str_tokens[at],
                "corrupt_str_tokens": self.corrupt_str_tokens[at],
            }
            for at, length in enumerate(lengths)
        ]

    @checked
    def save(self, path: str | Path) -> Path:
        """Write the pairs as JSON, whole or not at all; `load` reads them back.

        Raises:
            OutputError: the file cannot be written.
        """
        path = Path(path)
        content = {"format": FORMAT, **self._plain()}
        text = json.dumps({**content, "sha256": of_values(content)}, ensure_ascii=False, indent=1) + "\n"
        write_whole(path, text.encode(), what="prompt pairs")
        return path

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Self:
        """The pairs that `save` wrote.

        Raises:
            PromptError: a file that is missing, holds something else, or was changed after it was saved.
        """
        content = read_saved(Path(path), FORMAT, what="prompt pairs", refuse=PromptError)
        try:
            read = content.get("encoder")
            make: Any = cls
            pairs = make(**_fields(content), encoder=None if read is None else make(**_fields(read)))
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
            if isinstance(error, PromptError):
                raise
            raise PromptError(f"{str(path)!r} holds incomplete or damaged prompt pairs: {error}") from None
        if pairs.digest() != content.get("digest"):
            raise PromptError(f"{str(path)!r} was changed after it was saved: its pairs do not have its digest")
        if "sha256" in content and content.pop("sha256") != of_values(content):
            raise PromptError(f"{str(path)!r} was changed after it was saved: it does not have its checksum")
        if not pairs.has_answers:
            return pairs
        sets = sets_by_text(pairs.notes, pairs.clean_texts, pairs.answers.tolist())
        return dataclasses.replace(pairs, answer_sets=sets) if sets else pairs


def _fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `PromptPairs` in a saved file."""
    rows, fill = content["pairs"], content["pad_id"]
    clean, mask = pad([row["clean"] for row in rows], fill)
    none = all(row["answers"] is None for row in rows)
    return {
        "clean": clean,
        "corrupt": pad([row["corrupt"] for row in rows], fill)[0],
        "mask": mask,
        "answers": no_answers() if none else torch.tensor([row["answers"] for row in rows]),
        "answer_sets": tuple(row["answer_sets"] for row in rows if "answer_sets" in row),
        "roles": tuple(row["roles"] for row in rows),
        "clean_texts": tuple(row["clean_text"] for row in rows),
        "corrupt_texts": tuple(row["corrupt_text"] for row in rows),
        "str_tokens": tuple(tuple(row["str_tokens"]) for row in rows),
        "corrupt_str_tokens": tuple(tuple(row["corrupt_str_tokens"]) for row in rows),
        "name": content["name"],
        "notes": content["notes"],
    }
