"""How a task's prompts become pairs: templates are filled, roles found in the text, what does not fit is left out.

1. A template is filled with words; where each stands in the text is kept (`Written`). 2. A task draws clean and corrupt
texts and what follows them (`Draw`), without end. 3. `write` takes the draws that this tokenizer leaves in order: both
texts of one length, every role at one position in both, answers that are one token. The others are counted by reason.
4. Prompts that are to be aligned keep the commonest layout: one length, every role at one position.

A draw never depends on how many prompts are wanted, so a smaller number gives the first prompts of a larger one.
"""

from __future__ import annotations

import itertools
import random
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from interp.arguments import MOST, checked, whole_number
from interp.errors import PromptError
from interp.prompts.pairs import PromptPairs
from interp.prompts.single_tokens import next_token, tokenizer_of

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel
    from interp.text.tokenizer import Tokenizer

MOST_IN_VAIN = 1500  # draws in a row that give nothing new: then there is nothing new
LOOKED_AT = 64  # how many prompts decide which layout is the commonest

Form = TypeVar("Form")


@dataclass(frozen=True)
class About:
    """What a task is, for its readers.

    Attributes:
        name: its name in `interp.tasks.TASKS`.
        title: what reports call it.
        question: what it asks of a model; {clean} is the first prompt, {right} its answer.
        source: who described it.
    """

    name: str
    title: str
    question: str
    source: str


@dataclass(frozen=True)
class Written:
    """A text, and where its named parts stand in it, from the first character to behind the last."""

    text: str
    spans: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Draw:
    """One pair of prompts before a tokenizer has seen it.

    Attributes:
        clean: the clean text; its spans are the roles.
        corrupt: the corrupt text, with the same spans.
        right: what follows the clean text, with the space before it.
        wrong: what it is weighed against.
        whole: whether both have to be one token; otherwise their first tokens are the answers.
        kind: what a reader may count the prompts by, such as the template.
        also: all tokens that are right and all that are wrong, where there are more than the first of each.
    """

    clean: Written
    corrupt: Written
    right: str
    wrong: str
    whole: bool = True
    kind: str = ""
    also: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())


@dataclass(frozen=True)
class _Row:
    draw: Draw
    answers: tuple[list[int], list[int]]
    roles: dict[str, int]
    length: int


@dataclass
class _Refused:
    """How many draws did not fit, by reason."""

    counts: Counter[str] = field(default_factory=Counter)

    def why(self) -> str:
        told = (f"{count} had {reason}" for reason, count in self.counts.most_common())
        return "; of those drawn, " + ", ".join(told) if self.counts else ""


def fill(template: str, words: Mapping[str, str]) -> Written:
    """A template with its fields filled; every field is a part with its name.

    >>> fill("The {S} of {A}", {"S": "key", "A": "two"})
    Written(text='The key of two', spans={'S': (4, 7), 'A': (11, 14)})
    """
    text, spans = "", {}
    for plain, name, _, _ in string.Formatter().parse(template):
        text += plain
        if name is not None:
            spans[name] = (len(text), len(text) + len(words[name]))
            text += words[name]
    return Written(text, spans)


def turns(rng: random.Random, forms: Sequence[Form], *, aligned: bool) -> tuple[Form, ...]:
    """The order in which templates take turns; prompts that are to be aligned have one for all."""
    return (rng.choice(forms),) if aligned else tuple(rng.sample(forms, len(forms)))


@checked
def write(
    model: HookedModel,
    about: About,
    draws: Iterable[Draw],
    n: int,
    *,
    aligned: bool = False,
    prepend_bos: bool | None = None,
    roles: Sequence[str] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> PromptPairs:
    """The first n draws that this model's tokenizer leaves in order, as pairs of prompts.

    Args:
        model: its tokenizer cuts the texts.
        about: what the task is.
        draws: as many as are asked for, without end or to an end.
        n: how many pairs, all different.
        aligned: only prompts of the commonest layout.
        prepend_bos: as in `model.to_tokens`.
        roles: the parts of the texts that are roles, and `END`; None takes every part. Of two at one token the first
            stays.
        notes: what else to remember of how they were made.

    Raises:
        PromptError: a model without a tokenizer, fewer than n different prompts.
    """
    n = whole_number("n", n, least=1, most=MOST, refuse=PromptError)
    tokenizer = tokenizer_of(model)
    refused = _Refused()
    rows = _fitting(model, tokenizer, draws, prepend_bos, roles, refused)
    taken = list(itertools.islice(_alike(rows) if aligned else rows, n))
    if len(taken) < n:
        raise PromptError(
            f"this tokenizer leaves {len(taken)} different prompts of the task {about.name!r}"
            f"{' that are aligned' if aligned else ''}, not {n}{refused.why()}"
        )
    first = taken[0].draw
    kinds = Counter(row.draw.kind for row in taken if row.draw.kind)
    return PromptPairs.from_text(
        model,
        clean=[row.draw.clean.text for row in taken],
        corrupt=[row.draw.corrupt.text for row in taken],
        answers=[row.answers for row in taken],
        roles=[row.roles for row in taken],
        prepend_bos=prepend_bos,
        name=about.name,
        notes={
            "title": about.title,
            "question": about.question.format(clean=first.clean.text, right=first.right.strip()),
            "source": about.source,
            "metric": "logit_diff",
            "n": n,
            "aligned": aligned,
            **({"kinds": dict(kinds)} if kinds else {}),
            "draws_left_out": dict(refused.counts),
            **(notes or {}),
        },
    )


def _fitting(
    model: HookedModel,
    tokenizer: Tokenizer,
    draws: Iterable[Draw],
    prepend_bos: bool | None,
    roles: Sequence[str] | None,
    refused: _Refused,
) -> Iterator[_Row]:
    """The draws that fit, each text once."""
    seen: set[str] = set()
    in_vain = 0
    for draw in draws:
        in_vain += 1
        if in_vain > MOST_IN_VAIN:
            return
        if draw.clean.text in seen:
            continue
        row = _row(model, tokenizer, draw, prepend_bos, roles)
        if isinstance(row, str):
            refused.counts[row] += 1
            continue
        seen.add(draw.clean.text)
        in_vain = 0
        yield row


def _row(
    model: HookedModel, tokenizer: Tokenizer, draw: Draw, prepend_bos: bool | None, roles: Sequence[str] | None
) -> _Row | str:
    """A draw as this tokenizer cuts it, or why it does not fit."""
    clean, corrupt = (tokenizer.encode(side.text, prepend_bos=prepend_bos) for side in (draw.clean, draw.corrupt))
    if len(clean) != len(corrupt):
        return "prompts of unequal lengths"
    if len(clean) > model.cfg.n_ctx:
        return f"more tokens than the model's context of {model.cfg.n_ctx}"
    found, other = (positions(tokenizer, side, prepend_bos) for side in (draw.clean, draw.corrupt))
    if found is None or found != other:
        return "roles at other positions in the corrupt prompt"
    right, wrong = (next_token(tokenizer, draw.clean.text, rest, whole=draw.whole) for rest in (draw.right, draw.wrong))
    if right is None or wrong is None:
        return "an answer that is not one token"
    if right == wrong:
        return "answers that begin with the same token"
    rights, wrongs = (list(dict.fromkeys((one, *more))) for one, more in zip((right, wrong), draw.also, strict=True))
    if set(rights) & set(wrongs):
        return "answers that are right and wrong"
    if max(*rights, *wrongs) >= model.cfg.d_vocab_out:
        return "an answer that the model cannot give"
    standing: dict[int, str] = {}  # position -> role; the end is wanted under its own name
    for role in found if roles is None else roles:
        if found.get(role, len(clean) - 1) != len(clean) - 1:
            standing.setdefault(found[role], role)
    named = {role: at for at, role in standing.items()} | {"END": len(clean) - 1}
    return _Row(draw, (rights, wrongs), named, len(clean))


def positions(tokenizer: Tokenizer, written: Written, prepend_bos: bool | None = None) -> dict[str, int] | None:
    """The position of the token that holds the last character of every part, or None where a part has none.

    An empty part has no position.
    """
    bare = tokenizer.backend.encode(written.text, add_special_tokens=False)
    front = tokenizer.n_before(tokenizer.encode(written.text, prepend_bos=prepend_bos), written.text)
    if front is None:
        return None
    found = {}
    for name, (begin, end) in written.spans.items():
        if begin == end:
            continue
        holds = [at for at, (start, stop) in enumerate(bare.offsets) if start < end <= stop]
        if not holds:
            return None
        found[name] = front + holds[-1]
    return found


def _alike(rows: Iterator[_Row]) -> Iterator[_Row]:
    """The rows of the layout that is commonest among the first of them."""
    first = list(itertools.islice(rows, LOOKED_AT))
    if not first:
        return
    layouts = Counter((row.length, tuple(row.roles.items())) for row in first)
    usual = max(layouts, key=lambda layout: layouts[layout])
    in_vain = 0
    for row in itertools.chain(first, rows):
        in_vain += 1
        if (row.length, tuple(row.roles.items())) == usual:
            in_vain = 0
            yield row
        elif in_vain > MOST_IN_VAIN:
            return
