"""How a task's prompts become pairs: templates are filled, roles are located, and draws that do not fit are left out.

1. A template is filled with words; the place of each word in the text is kept (`Written`). 2. A task draws clean and
corrupt texts and their answers (`Draw`), without end. 3. `write` keeps the draws that fit this tokenizer: both texts
have the same length, every role has the same position in both, answers are one token. The others are counted by reason.
4. Aligned prompts are those of the commonest layout: one length, every role at one position.

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

MAX_VAIN_DRAWS = 1500  # after so many draws in a row without a new prompt, there are no more
SAMPLE = 64  # the number of prompts that decide which layout is the commonest

Form = TypeVar("Form")


@dataclass(frozen=True)
class About:
    """What a task is, for its readers.

    Attributes:
        name: the key in `interp.tasks.TASKS`.
        title: the name in reports.
        question: the question that the task puts to a model; {clean} is the first prompt, {right} its answer.
        source: the paper that describes it.
    """

    name: str
    title: str
    question: str
    source: str


@dataclass(frozen=True)
class Written:
    """A text, and the span of each named part: the first character, and the character after the last."""

    text: str
    spans: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Draw:
    """One pair of prompts before a tokenizer has seen it.

    Attributes:
        clean: the clean text; its spans are the roles.
        corrupt: the corrupt text, with the same spans.
        right: what follows the clean text, with the space before it.
        wrong: the wrong answer, in the same form.
        whole: whether both must be one token; if not, their first tokens are the answers.
        kind: a label by which the prompts are counted in the notes, such as the template.
        also: all right and all wrong tokens, if there are more than the first of each.
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
    """The number of draws that did not fit, by reason."""

    counts: Counter[str] = field(default_factory=Counter)

    def why(self) -> str:
        reasons = (f"{count} had {reason}" for reason, count in self.counts.most_common())
        return "; of those drawn, " + ", ".join(reasons) if self.counts else ""


def fill(template: str, words: Mapping[str, str]) -> Written:
    """A template with its fields filled; every field becomes a named part.

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
    """The order in which templates take turns; aligned prompts all have the same template."""
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
    """The first n draws that fit this model's tokenizer, as pairs of prompts.

    Args:
        model: its tokenizer reads the texts.
        about: the description of the task.
        draws: any number of them, also without end.
        n: how many pairs, all different.
        aligned: only prompts of the commonest layout.
        prepend_bos: as in `model.to_tokens`.
        roles: the parts of the texts that become roles, in addition to `END`; None takes every part. If two are at the
            same token, the first is kept.
        notes: further notes on how the pairs were made.

    Raises:
        PromptError: a model without a tokenizer, fewer than n different prompts.
    """
    n = whole_number("n", n, least=1, most=MOST, refuse=PromptError)
    tokenizer = tokenizer_of(model)
    # 3. The draws that fit; 4. those of the commonest layout.
    refused = _Refused()
    rows = _fitting(model, tokenizer, draws, prepend_bos, roles, refused)
    kept = list(itertools.islice(_alike(rows) if aligned else rows, n))
    if len(kept) < n:
        raise PromptError(
            f"only {len(kept)} different{' aligned' if aligned else ''} prompts of the task {about.name!r} fit this "
            f"tokenizer, not {n}{refused.why()}"
        )
    first = kept[0].draw
    kinds = Counter(row.draw.kind for row in kept if row.draw.kind)
    return PromptPairs.from_text(
        model,
        clean=[row.draw.clean.text for row in kept],
        corrupt=[row.draw.corrupt.text for row in kept],
        answers=[row.answers for row in kept],
        roles=[row.roles for row in kept],
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
    """The draws that fit, each clean text once."""
    seen: set[str] = set()
    in_vain = 0
    for draw in draws:
        in_vain += 1
        if in_vain > MAX_VAIN_DRAWS:
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
    """A draw as this tokenizer reads it, or the reason why it does not fit."""
    clean, corrupt = (tokenizer.encode(side.text, prepend_bos=prepend_bos) for side in (draw.clean, draw.corrupt))
    if len(clean) != len(corrupt):
        return "prompts of unequal lengths"
    if len(clean) > model.cfg.n_ctx:
        return f"more tokens than the model's context of {model.cfg.n_ctx}"
    places, other = (positions(tokenizer, side, prepend_bos) for side in (draw.clean, draw.corrupt))
    if places is None or places != other:
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
    by_position: dict[int, str] = {}  # without the last position, whose role is END
    for role in places if roles is None else roles:
        if places.get(role, len(clean) - 1) != len(clean) - 1:
            by_position.setdefault(places[role], role)
    of_roles = {role: at for at, role in by_position.items()} | {"END": len(clean) - 1}
    return _Row(draw, (rights, wrongs), of_roles, len(clean))


def positions(tokenizer: Tokenizer, written: Written, prepend_bos: bool | None = None) -> dict[str, int] | None:
    """For every part, the position of the token with its last character; None if some part has no such token.

    Empty parts are left out.

    Raises:
        PromptError: a tokenizer written in Python, such as Marian's, which does not say where its tokens stand.
    """
    bare = tokenizer.backend.encode(written.text, add_special_tokens=False)
    if not hasattr(bare, "offsets"):
        raise PromptError(
            f"tokenizer {tokenizer.name!r} does not say which characters a token holds, which this task needs to place "
            "its roles; write the pairs yourself: PromptPairs.from_text, or interp.tasks.from_file"
        )
    front = tokenizer.n_before(tokenizer.encode(written.text, prepend_bos=prepend_bos), written.text)
    if front is None:
        return None
    places = {}
    for name, (begin, end) in written.spans.items():
        if begin == end:
            continue
        holds = [at for at, (start, stop) in enumerate(bare.offsets) if start < end <= stop]
        if not holds:
            return None
        places[name] = front + holds[-1]
    return places


def _alike(rows: Iterator[_Row]) -> Iterator[_Row]:
    """The rows of the layout that is commonest among the first `SAMPLE` rows."""
    first = list(itertools.islice(rows, SAMPLE))
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
        elif in_vain > MAX_VAIN_DRAWS:
            return
