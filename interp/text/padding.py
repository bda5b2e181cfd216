"""Prompts of different lengths padded to one rectangle, and the masks that mark the real tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from interp.arguments import is_whole, plain, shown, whole_number
from interp.errors import PromptError

MOST_ID = 2**31 - 1
MASK_OF = "attention_mask"  # the attribute in which a padded batch of `model.to_tokens` carries its mask


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int, side: Literal["right", "left"] = "right"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences of different lengths padded to one rectangle, and a mask of the real tokens.

    Returns:
        tokens [batch, pos] int64 and attention_mask [batch, pos] bool, True at real positions.

    Raises:
        PromptError: no sequence, an empty one, a `pad_id` that is not an id, or a side that is neither right nor left.

    >>> tokens, mask = pad([[5, 6, 7], [8]], pad_id=0, side="left")
    >>> tokens.tolist(), mask.tolist()
    ([[5, 6, 7], [0, 0, 8]], [[True, True, True], [False, False, True]])
    """
    if not isinstance(side, str) or side not in ("right", "left"):
        raise PromptError(f"padding side must be 'right' or 'left', not {shown(side)}")
    fill = whole_number("pad_id", pad_id, least=0, most=MOST_ID, refuse=PromptError)
    if len(sequences) == 0:
        raise PromptError("there is no sequence to pad; give at least one")
    length = max(len(sequence) for sequence in sequences)
    tokens = torch.full((len(sequences), length), fill, dtype=torch.int64)  # [batch, pos]
    mask = torch.zeros(len(sequences), length, dtype=torch.bool)  # [batch, pos]
    for row, sequence in enumerate(sequences):
        if len(sequence) == 0:
            raise PromptError(f"sequence {row} is empty; every prompt needs at least one token")
        real = slice(0, len(sequence)) if side == "right" else slice(length - len(sequence), length)
        tokens[row, real] = torch.as_tensor(whole_ids(sequence), dtype=torch.int64)
        mask[row, real] = True
    return tokens, mask


def padding_of(tokens: torch.Tensor) -> torch.Tensor | None:
    """The mask of a padded batch from `model.to_tokens`; None if the tensor carries no mask."""
    mask: torch.Tensor | None = getattr(tokens, MASK_OF, None)
    return mask if mask is not None and mask.shape == tokens.shape else None


def as_mask(mask: Any, what: str = "attention_mask") -> torch.Tensor:
    """A tensor, an array or lists as a mask of booleans, True at real tokens.

    Raises:
        PromptError: numbers other than 0 and 1, such as a mask to be added to scores, which has 0 at real tokens.

    >>> as_mask([[0, 1, 1]]).tolist()
    [[False, True, True]]
    """
    try:
        values = mask if isinstance(mask, torch.Tensor) else torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PromptError(f"{what} must be True or 1 at real tokens, [batch, pos], not {mask!r:.80}: {error}") from None
    if values.dtype == torch.bool:
        return values
    if values.is_complex():
        raise PromptError(f"{what} must be True or 1 at real tokens and False or 0 at padding, not {shown(mask)}")
    other = (values != 0) & (values != 1)
    if bool(other.any()):
        wrong = values[other][0].item()
        hint = "; this looks like one that is added to scores, where 0 means real: give mask == 0" * (wrong < 0)
        raise PromptError(f"{what} must be True or 1 at real tokens and False or 0 at padding, not {wrong}{hint}")
    return values == 1


def check_attention_mask(mask: Tensor | Sequence[Any], shape: tuple[int, int], *, gaps: bool = True) -> Tensor:
    """The mask as booleans; `gaps` says whether real tokens may have padding between them.

    Raises:
        PromptError: it has numbers other than 0 and 1, does not fit tokens of `shape`, leaves a prompt empty, or has a
            gap although `gaps` is False.
    """
    mask = as_mask(mask)
    if tuple(mask.shape) != shape:
        raise PromptError(f"attention_mask has shape {list(mask.shape)}, expected [batch, pos] = {list(shape)}")
    if not bool(mask.any(1).all()):
        row = int((~mask.any(1)).nonzero()[0])
        raise PromptError(f"prompt {row} is empty: its attention_mask has no real token")
    if not gaps and bool((((~mask[:, 1:] & mask[:, :-1]).cumsum(1) > 0) & mask[:, 1:]).any()):
        raise PromptError(
            "attention_mask has padding between real tokens; a state-space layer needs them next to each other, padded "
            "on the left or on the right"
        )
    return mask


def whole_ids(ids: Iterable[int]) -> list[int]:
    """Token ids as Python's integers.

    Raises:
        PromptError: something that is not an integer, or a nested list.
    """
    values = ids.tolist() if isinstance(ids, torch.Tensor) else ids
    if isinstance(values, str | bytes | set | frozenset | Mapping):
        raise PromptError(f"token ids must stand in a sequence, not in {shown(values)}")
    checked = []
    for value in values if isinstance(values, Iterable) else [values]:
        if not is_whole(value) or not 0 <= plain(value) <= MOST_ID:
            raise PromptError(f"token ids must be integers >= 0 in one flat sequence, not {value!r}")
        checked.append(int(plain(value)))
    return checked
