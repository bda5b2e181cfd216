"""A class for every prompt, to probe for and to steer by.

1. The class is the kind of the right answer where the task names kinds (a verb's number), the right answer itself, the
   order in which the prompt names the answers, clean or corrupt, or a label of your own.
2. A contrast that gives all prompts one class, or too many classes, is refused; with "auto" the next one is tried.
3. Pairs with the same two answers form one group, so that held-out prompts have other answers than those trained on.
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
from interp.lenses.read import token_text
from interp.prompts.pairs import PromptPairs

CONTRASTS = {
    "kind": "which kind of answer is right",
    "answer": "which answer is right",
    "order": "whether the right or the wrong answer is named first",
    "side": "whether the prompt is clean or corrupt",
}
MIN_GROUPS = 5  # with fewer groups of answers each pair is a group of its own

Array = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Contrast:
    """A class for every prompt.

    Attributes:
        name: what distinguishes the classes: a name of `CONTRASTS`, or "labels".
        classes: the names of the classes.
        clean: the class of every clean prompt, as an index into `classes` [prompt].
        corrupt: the class of every corrupt prompt [prompt]; None where only clean prompts have one.
        group: the group of every pair [prompt]; a group is held out as a whole.
        grouped_by: "pair", or "answers" where pairs with the same two answers form one group.
    """

    name: str
    classes: tuple[str, ...]
    clean: Array
    corrupt: Array | None
    group: Array
    grouped_by: str

    @property
    def sides(self) -> dict[str, Array]:
        """Side of the pairs -> the classes of its prompts, for the sides that have classes."""
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
        model: its tokens name the answers.
        pairs: the prompts. A corrupt prompt's right answer is taken to be the pair's wrong one.
        label: "kind", "answer", "order" or "side", as `CONTRASTS` describes them; "auto" takes the first that these
            prompts allow.
        labels: classes of your own instead: one for each clean prompt [prompt], or one for each clean and each corrupt
            prompt [prompt, 2].
        most: the largest number of classes allowed; None allows any.

    Raises:
        UnknownName: a label that does not exist.
        PromptError: prompts that the label does not tell apart, labels of another shape or of a single class, too many
            classes.
    """
    if labels is not None:
        if label != "auto":
            raise PromptError(f"both labels and label={label!r} were given: leave out one of them")
        own = _own(pairs, labels)
        if most is not None and len(own.classes) > most:
            raise PromptError(f"labels have {len(own.classes)} classes, and at most {most} are allowed here")
        return own
    if label != "auto" and label not in CONTRASTS:
        raise unknown("label", label, [*CONTRASTS, "auto"])
    for name in CONTRASTS if label == "auto" else [label]:
        made = {"kind": _by_kind, "answer": _by_answer, "order": _by_order, "side": _by_side}[name](model, pairs)
        if isinstance(made, Contrast) and (most is None or len(made.classes) <= most):
            return made
        if isinstance(made, Contrast):
            made = f"it has {len(made.classes)} classes, and at most {most} are allowed here"
        if label == name or name == "side":
            raise PromptError(f"label={name!r} does not tell these prompts apart: {made}")
    raise AssertionError("side is the last contrast")


def _own(pairs: PromptPairs, labels: Sequence[Any]) -> Contrast:
    """The classes of a user's labels."""
    if isinstance(labels, set | frozenset):
        raise PromptError(f"labels must be in the order of the prompts, in a list, not in {shown(labels)}")
    rows = [tuple(row) if is_several(row) else (row,) for row in labels]
    if len(rows) != len(pairs) or {len(row) for row in rows} not in ({1}, {2}):
        raise PromptError(
            f"labels must be one for each of {len(pairs)} clean prompts, or [prompt, 2] for clean and corrupt ones, "
            f"not {len(rows)} rows of length {sorted({len(row) for row in rows})}"
        )
    table = [[plain(one) for one in row] for row in rows]
    for one in itertools.chain(*table):
        if not isinstance(one, str | numbers.Real) or one != one:
            raise PromptError(f"labels must be texts or numbers, not {shown(one)}")
    classes = sorted({one for row in table for one in row}, key=lambda one: (str(type(one)), one))
    if len(classes) < 2:
        raise PromptError(f"labels need at least two classes, and these are all {classes[0]!r}")
    ids = np.array([[classes.index(one) for one in row] for row in table])  # [prompt, side]
    clean, corrupt = ids[:, 0], ids[:, 1] if ids.shape[1] > 1 else None
    return _contrast(pairs, "labels", [str(one) for one in classes], clean, corrupt)


def _contrast(pairs: PromptPairs, name: str, classes: Sequence[str], clean: Array, corrupt: Array | None) -> Contrast:
    """A contrast with its groups: pairs with the same two answers, if there are enough such groups."""
    sets = {pair: at for at, pair in enumerate(dict.fromkeys(frozenset(pair) for pair in pairs.answers.tolist()))}
    group = np.array([sets[frozenset(pair)] for pair in pairs.answers.tolist()])
    shared = min(len(pairs), MIN_GROUPS) <= len(sets) < len(pairs)
    return Contrast(
        name,
        tuple(classes),
        clean,
        corrupt,
        group if shared else np.arange(len(pairs)),
        "answers" if shared else "pair",
    )


def _some_same(pairs: PromptPairs) -> bool:
    """Whether a corrupt prompt equals its clean one, of a model with two stacks in both."""
    same = (pairs.clean == pairs.corrupt).all(1)  # [prompt]
    if pairs.encoder is not None:
        same = same & (pairs.encoder.clean == pairs.encoder.corrupt).all(1)
    return bool(same.any())


def _by_answer(model: HookedModel, pairs: PromptPairs) -> Contrast | str:
    """The right answer as the class; a reason where these prompts do not allow it."""
    ids = pairs.answers.cpu().numpy()
    if _some_same(pairs):
        return "some corrupt prompt equals its clean one, and so has the same right answer"
    classes = list(dict.fromkeys(ids.flatten().tolist()))
    rare = min(int((ids == one).sum()) for one in classes)
    if rare < 2 or len(classes) > max(2, len(pairs) // 4):
        return f"{len(pairs)} pairs have {len(classes)} different answers, the rarest of them {rare} times"
    shown = [token_text(model, one) for one in classes]
    index = {one: at for at, one in enumerate(classes)}
    clean, corrupt = np.array([[index[one] for one in row] for row in ids.tolist()]).T
    return _contrast(pairs, "answer", shown, clean, corrupt)


def _by_kind(model: HookedModel, pairs: PromptPairs) -> Contrast | str:
    """The kind of the right answer as the class; a reason where these prompts do not allow it."""
    kinds = pairs.notes.get("answer_kinds")
    if not kinds:
        return "their task names no kinds of answers"
    index = {token: at for at, tokens in enumerate(kinds.values()) for token in tokens}
    ids = pairs.answers.tolist()
    if not all(token in index for row in ids for token in row):
        return f"some answer is of none of the kinds {', '.join(kinds)}"
    clean, corrupt = np.array([[index[token] for token in row] for row in ids]).T
    if len(np.unique([clean, corrupt])) < 2:
        return "all answers are of one kind"
    return _contrast(pairs, "kind", tuple(kinds), clean, corrupt)


def _by_order(model: HookedModel, pairs: PromptPairs) -> Contrast | str:
    """Which answer is named first as the class; a reason where these prompts do not allow it."""
    sides = []
    for side, right in (("clean", 0), ("corrupt", 1)):  # a corrupt prompt's right answer is the pair's wrong one
        named = (getattr(pairs, side)[:, None] == pairs.answers[:, :, None]) & pairs.mask[:, None]  # [prompt, 2, pos]
        if not bool(named.any(-1).all()):
            return "not every prompt names both of its answers"
        at = named.int().argmax(-1)  # [prompt, 2]
        sides.append((at[:, right] > at[:, 1 - right]).long().cpu().numpy())
    if len(np.unique(sides)) < 2:
        return "every prompt names its answers in the same order"
    return _contrast(pairs, "order", ("right answer first", "wrong answer first"), sides[0], sides[1])


def _by_side(model: HookedModel, pairs: PromptPairs) -> Contrast | str:
    """Clean or corrupt as the class; a reason where these prompts do not allow it."""
    if _some_same(pairs):
        return "some corrupt prompt equals its clean one"
    zeros = np.zeros(len(pairs), dtype=np.int64)
    return _contrast(pairs, "side", ("clean", "corrupt"), zeros, zeros + 1)
