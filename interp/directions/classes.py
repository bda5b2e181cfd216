"""What tells two kinds of prompts apart: a class for every prompt, to probe for and to steer by.

1. By the kind of the right answer where a task says what kinds there are (a verb's number), by the right answer, by the
   order in which the answers are named, clean or corrupt, or by labels of your own.
2. A contrast that does not tell the prompts apart, or has more classes than can be told apart, is refused or, with
   "auto", passed over.
3. Pairs with the same two answers are one group, so that what is held out has other answers than what was trained on.
"""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.arguments import checked, is_several, plain, shown
from interp.errors import PromptError, unknown
from interp.hooked.model import HookedModel
from interp.prompts.pairs import PromptPairs

CONTRASTS = {
    "kind": "which kind of answer is right",
    "answer": "which answer is right",
    "order": "whether the right or the wrong answer is named first",
    "side": "whether the prompt is clean or corrupt",
}
FEWEST_GROUPS = 5

Array = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Contrast:
    """A class for every prompt.

    Attributes:
        name: what the classes are about, a name of `CONTRASTS` or "labels".
        classes: their names.
        clean: the class of every clean prompt [prompt].
        corrupt: the class of every corrupt prompt [prompt], None where only clean prompts have one.
        group: pairs of one group [prompt] belong together, in training or in what is held out.
        grouped_by: "pair", or "answers" where pairs with the same two answers are one group.
    """

    name: str
    classes: tuple[str, ...]
    clean: Array
    corrupt: Array | None
    group: Array
    grouped_by: str

    @property
    def sides(self) -> dict[str, Array]:
        """The sides of the pairs that have classes, with them."""
        return {"clean": self.clean} if self.corrupt is None else {"clean": self.clean, "corrupt": self.corrupt}


@checked
def contrast(
    model: HookedModel,
    pairs: PromptPairs,
    label: str = "auto",
    *,
    labels: Sequence[Any] | None = None,
    most: int | None = None,
) -> Contrast:
    """The classes of prompts.

    Args:
        model: names answers by its tokens.
        pairs: the prompts. A corrupt prompt's right answer is taken to be the pair's wrong one.
        label: "kind", "answer", "order" or "side", as `CONTRASTS` says them; "auto" takes the first that these prompts
            allow.
        labels: classes of your own instead: one for each clean prompt [prompt], or one for each clean and each corrupt
            prompt [prompt, 2].
        most: how many classes there may be.

    Raises:
        UnknownName: a label that does not exist.
        PromptError: prompts that the label does not tell apart, labels of another shape or of a single class, too many
            classes.
    """
    if labels is not None:
        if label != "auto":
            raise PromptError(f"labels of your own were given together with label={label!r}: leave out one of them")
        told = _own(pairs, labels)
        if most is not None and len(told.classes) > most:
            raise PromptError(f"labels have {len(told.classes)} classes, and only {most} can be told apart here")
        return told
    if label != "auto" and label not in CONTRASTS:
        raise unknown("label", label, [*CONTRASTS, "auto"])
    for name in CONTRASTS if label == "auto" else [label]:
        found = {"kind": _by_kind, "answer": _by_answer, "order": _by_order, "side": _by_side}[name](model, pairs)
        if isinstance(found, Contrast) and (most is None or len(found.classes) <= most):
            return found
        if isinstance(found, Contrast):
            found = f"{len(found.classes)} classes are more than the {most} that can be told apart here"
        if label == name or name == "side":
            raise PromptError(f"label={name!r} does not tell these prompts apart: {found}")
    raise AssertionError("side is the last contrast")


def _own(pairs: PromptPairs, labels: Sequence[Any]) -> Contrast:
    if isinstance(labels, set | frozenset):
        raise PromptError(f"labels must be in the order of the prompts, in a list, not in {shown(labels)}")
    given = [tuple(row) if is_several(row) else (row,) for row in labels]
    if len(given) != len(pairs) or {len(row) for row in given} not in ({1}, {2}):
        raise PromptError(
            f"labels must be one for each of {len(pairs)} clean prompts, or [prompt, 2] for clean and corrupt ones, "
            f"not {len(given)} of {sorted({len(row) for row in given})}"
        )
    table = [[plain(one) for one in row] for row in given]
    for one in itertools.chain(*table):
        if not isinstance(one, str | numbers.Real) or one != one:
            raise PromptError(f"labels must be texts or numbers, not {shown(one)}")
    classes = sorted({one for row in table for one in row}, key=lambda one: (str(type(one)), one))
    if len(classes) < 2:
        raise PromptError(f"labels need at least two classes, and these are all {classes[0]!r}")
    ids = np.array([[classes.index(one) for one in row] for row in table])  # [prompt, side]
    return _made(pairs, "labels", [str(one) for one in classes], ids[:, 0], ids[:, 1] if ids.shape[1] > 1 else None)


def _made(pairs: PromptPairs, name: str, classes: Sequence[str], clean: Array, corrupt: Array | None) -> Contrast:
    sets = {pair: at for at, pair in enumerate(dict.fromkeys(frozenset(pair) for pair in pairs.answers.tolist()))}
    group = np.array([sets[frozenset(pair)] for pair in pairs.answers.tolist()])
    shared = min(len(pairs), FEWEST_GROUPS) <= len(sets) < len(pairs)
    return Contrast(
        name,
        tuple(classes),
        clean,
        corrupt,
        group if shared else np.arange(len(pairs)),
        "answers" if shared else "pair",
    )


def _by_answer(model: HookedModel, pairs: PromptPairs) -> Contrast | str:
    ids = pairs.answers.cpu().numpy()
    if bool((pairs.clean == pairs.corrupt).all(1).any()):
        return "a corrupt prompt that is its clean one has no other answer"
    classes = list(dict.fromkeys(ids.flatten().tolist()))
    rare = min(int((ids == one).sum()) for one in classes)
    if rare < 2 or len(classes) > max(2, len(pairs) // 4):
        return f"{len(pairs)} pairs have {len(classes)} different answers, the rarest {rare} times"
    shown = [str(one) if model.tokenizer is None else model.tokenizer.str_tokens([one])[0] for one in classes]
    index = {one: at for at, one in enumerate(classes)}
    clean, corrupt = np.array([[index[one] for one in row] for row in ids.tolist()]).T
    return _made(pairs, "answer", shown, clean, corrupt)


def _by_kind(model: HookedModel, pairs: PromptPairs) -> Contrast | str:
    kinds = pairs.notes.get("answer_kinds")
    if not kinds:
        return "their task names no kinds of answers"
    index = {token: at for at, tokens in enumerate(kinds.values()) for token in tokens}
    ids = pairs.answers.tolist()
    if not all(token in index for row in ids for token in row):
        return f"some answer is none of the kinds {', '.join(kinds)}"
    clean, corrupt = np.array([[index[token] for token in row] for row in ids]).T
    if len(np.unique([clean, corrupt])) < 2:
        return "all answers are of one kind"
    return _made(pairs, "kind", tuple(kinds), clean, corrupt)


def _by_order(model: HookedModel, pairs: PromptPairs) -> Contrast | str:
    found = []
    for side, first in (("clean", 0), ("corrupt", 1)):
        named = (getattr(pairs, side)[:, None] == pairs.answers[:, :, None]) & pairs.mask[:, None]  # [n, 2, pos]
        if not bool(named.any(-1).all()):
            return "not every prompt names both of its answers"
        at = named.int().argmax(-1)
        found.append((at[:, first] > at[:, 1 - first]).long().cpu().numpy())
    if len(np.unique(found)) < 2:
        return "every prompt names its answers in the same order"
    return _made(pairs, "order", ("right answer first", "wrong answer first"), found[0], found[1])


def _by_side(model: HookedModel, pairs: PromptPairs) -> Contrast | str:
    if bool((pairs.clean == pairs.corrupt).all(1).any()):
        return "some corrupt prompt is its clean one"
    zeros = np.zeros(len(pairs), dtype=np.int64)
    return _made(pairs, "side", ("clean", "corrupt"), zeros, zeros + 1)
