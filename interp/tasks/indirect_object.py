"""Indirect object identification: who is given something, after both names and then the giver's name again?

Wang et al. 2022, "Interpretability in the Wild" (arXiv 2211.00593), section 2: in "When John and Mary went to the
store, John gave a bottle of milk to" the next word is the indirect object IO (Mary), not the subject S (John).

1. Only names that are one token for this tokenizer are used, so that exchanging names keeps all positions. 2. A prompt
is a template filled with two names, a place and an object; every second prompt names the subject first. 3. The corrupt
prompt differs only in names: `swap_subject` repeats the indirect object instead of the subject, which flips the answer;
`random_names` has three different other names, so that nothing points to the answer (the paper's p_ABC, section 3).
"""

from __future__ import annotations

import random
import string
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp.arguments import checked, is_whole, shown, whole_number
from interp.arguments import seed as check_seed
from interp.errors import PromptError, check_choice, unknown
from interp.prompts.pairs import PromptPairs
from interp.prompts.single_tokens import enough, single_tokens, tokenizer_of

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel

# {A} and {B} are the two people in the order in which they are named, {S} is the one who gives.
TEMPLATES = (
    "As soon as {A} and {B} reached the {place}, {S} handed the {object} to",
    "While {A} and {B} were waiting at the {place}, {S} passed the {object} to",
    "On Monday {A} and {B} met outside the {place}, and {S} gave the {object} to",
    "Yesterday {A} and {B} walked home from the {place}, and {S} lent the {object} to",
    "After {A} and {B} had a long talk at the {place}, {S} offered the {object} to",
    "Last night {A} and {B} sat together in the {place} until {S} gave the {object} to",
    "Since {A} and {B} both worked at the {place}, {S} showed the {object} to",
    "During the trip {A} and {B} stopped at the {place}, where {S} handed the {object} to",
    "Just before {A} and {B} left the {place}, {S} gave the {object} to",
    "Everyone saw {A} and {B} at the {place} when {S} presented the {object} to",
    "Early this morning {A} and {B} opened the {place}, and then {S} showed the {object} to",
    "For an hour {A} and {B} argued at the {place}, but in the end {S} left the {object} to",
    "The day {A} and {B} got back from the {place}, {S} gave the {object} to",
    "Long after {A} and {B} had found the {place}, {S} promised the {object} to",
    "Once {A} and {B} were alone in the {place}, {S} quietly gave the {object} to",
)
NAMES = (
    *("Aaron", "Adam", "Alan", "Alex", "Alice", "Amanda", "Amy", "Andrea", "Andrew", "Anna", "Anthony", "Arthur"),
    *("Barbara", "Ben", "Betty", "Brian", "Bruce", "Carl", "Carol", "Charles", "Chris", "Claire", "Daniel", "David"),
    *("Diana", "Donald", "Dorothy", "Edward", "Elizabeth", "Emily", "Emma", "Eric", "Eva", "Frank", "Fred", "Gary"),
    *("George", "Grace", "Hannah", "Harry", "Helen", "Henry", "Howard", "Ian", "Jack", "Jacob", "James", "Jane"),
    *("Jason", "Jennifer", "Jessica", "Jim", "Joe", "John", "Jonathan", "Joseph", "Joshua", "Julia", "Karen", "Kate"),
    *("Keith", "Kelly", "Kevin", "Larry", "Laura", "Leo", "Linda", "Lisa", "Louis", "Lucy", "Margaret", "Maria"),
    *("Martin", "Mary", "Matthew", "Michael", "Michelle", "Nancy", "Nick", "Oliver", "Oscar", "Patricia", "Patrick"),
    *("Paul", "Peter", "Philip", "Rachel", "Ralph", "Rebecca", "Richard", "Robert", "Roger", "Ruth", "Sam", "Samuel"),
    *("Sandra", "Sara", "Sarah", "Scott", "Simon", "Sophia", "Stephen", "Steve", "Susan", "Thomas", "Tim", "Tom"),
    *("Tony", "Victor", "Victoria", "Walter", "William"),
)
PLACES = (
    *("bakery", "beach", "bookshop", "bridge", "cinema", "farm", "garden", "harbor", "hospital", "hotel", "kitchen"),
    *("library", "market", "museum", "office", "park", "restaurant", "school", "station", "theater", "village"),
)
OBJECTS = (
    *("apple", "basket", "book", "bottle", "camera", "candle", "coat", "guitar", "hammer", "key", "lamp", "letter"),
    *("map", "necklace", "painting", "pencil", "phone", "ring", "umbrella", "watch"),
)
CORRUPTIONS = {
    "swap_subject": "the second mention of the subject is replaced by the indirect object: this flips the answer",
    "random_names": "three other names replace IO, S1 and S2: nothing points to the answer",
}
ORDERS = {"ABBA": "IO first, then S", "BABA": "S first, then IO"}


@dataclass(frozen=True)
class _Draw:
    """The words that fill one template; `others` are three names different from the two."""

    template: str
    order: str
    io: str
    s: str
    others: tuple[str, ...]
    place: str
    object: str

    def text(self, io: str, s1: str, s2: str) -> str:
        a, b = (io, s1) if self.order == "ABBA" else (s1, io)
        return self.template.format(A=a, B=b, S=s2, place=self.place, object=self.object)

    @property
    def clean(self) -> str:
        return self.text(self.io, self.s, self.s)

    def corrupt(self, corruption: str) -> str:
        return self.text(self.io, self.s, self.io) if corruption == "swap_subject" else self.text(*self.others)


@checked
def ioi(
    model: HookedModel,
    n: int = 32,
    *,
    seed: int = 0,
    corrupt: str = "swap_subject",
    template: int | str | None = None,
    aligned: bool = False,
    prepend_bos: bool | None = None,
) -> PromptPairs:
    """Prompts of indirect object identification, half of them in each order of the names.

    The right answer is the indirect object's name, the wrong one the subject's. Roles: `IO`, `S1`, `S1+1` (the token
    after it), `S2`, `END`; they have the same positions in the corrupt prompt. A smaller `n` gives the first prompts of
    a larger one.

    Args:
        model: its tokenizer decides which names can be used.
        n: how many pairs, all different.
        seed: of the draws; no global generator is touched.
        corrupt: "swap_subject" or "random_names", see `CORRUPTIONS`.
        template: the number of one of `TEMPLATES`, or a text with {A}, {B}, {S} and optionally {place}, {object}; None
            uses all in turn.
        aligned: make a position mean the same in every prompt, for maps by position: one template (if none is given,
            the seed chooses one), and places and objects of equally many tokens. The order of IO and S1 still
            alternates.
        prepend_bos: as in `model.to_tokens`.

    Raises:
        UnknownName: a corruption or template that does not exist.
        PromptError: a model without a tokenizer, or one that leaves too few names for `n` different prompts.

    Source: Wang et al. 2022 (arXiv 2211.00593), section 2.
    """
    check_choice("corruption", corrupt, CORRUPTIONS)
    n = whole_number("n", n, least=1, refuse=PromptError)
    templates = _templates(template)
    words = single_tokens(model, NAMES)
    names = enough(words, "names", 5)  # two people, and three others
    places: tuple[str, ...] = PLACES
    objects: tuple[str, ...] = OBJECTS
    seed = check_seed(seed)
    rng = random.Random(seed)
    if aligned:
        templates = (rng.choice(templates),)
        places, objects = _as_long(model, templates[0], prepend_bos)
    _check_enough(names, templates, n)
    drawn = _draws(rng, templates, names, places, objects)
    draws = [next(drawn) for _ in range(n)]
    return PromptPairs.from_text(
        model,
        clean=[draw.clean for draw in draws],
        corrupt=[draw.corrupt(corrupt) for draw in draws],
        answers=[(f" {draw.io}", f" {draw.s}") for draw in draws],
        roles=[_roles(model, draw, prepend_bos) for draw in draws],
        prepend_bos=prepend_bos,
        name="ioi",
        notes={
            "title": "indirect object identification",
            "question": f"After “{draws[0].clean}” comes “{draws[0].io}”, the name that was said only once. Where "
            "does the model take it from?",
            "source": "Wang et al. 2022, arXiv 2211.00593, section 2",
            "n": n,
            "seed": seed,
            "corrupt": corrupt,
            "aligned": aligned,
            "orders": {order: sum(draw.order == order for draw in draws) for order in ORDERS},
            "templates": {text: sum(draw.template == text for draw in draws) for text in templates},
            "names_kept": list(names),
            "names_dropped": list(words.dropped),
        },
    )


def _templates(template: int | str | None) -> tuple[str, ...]:
    if template is None:
        return TEMPLATES
    if is_whole(template):
        if not 0 <= int(template) < len(TEMPLATES):
            raise unknown("template", template, map(str, range(len(TEMPLATES))))
        return (TEMPLATES[int(template)],)
    if not isinstance(template, str):
        raise PromptError(f"template must be a template's number or a text, not {shown(template)}")
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    people = [name for name in fields if name in ("A", "B", "S")]
    if people != ["A", "B", "S"] or set(fields) - {"A", "B", "S", "place", "object"}:
        raise PromptError(
            f"the template {template!r} has the fields {fields}: expected {{A}}, {{B}} and {{S}} once each and in this "
            "order, and optionally {place} and {object}"
        )
    return (template,)


def _as_long(model: HookedModel, template: str, prepend_bos: bool | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The places and the objects with which a template has its most common number of tokens."""
    tokenizer = tokenizer_of(model)
    words: dict[str, tuple[str, ...]] = {"place": PLACES, "object": OBJECTS}
    for field in words:
        lengths = []
        for word in words[field]:
            filled = {"A": "A", "B": "B", "S": "A", **{name: kept[0] for name, kept in words.items()}, field: word}
            lengths.append(len(tokenizer.encode(template.format(**filled), prepend_bos=prepend_bos)))
        usual = Counter(lengths).most_common(1)[0][0]
        words[field] = tuple(word for word, length in zip(words[field], lengths, strict=True) if length == usual)
    return words["place"], words["object"]


def _check_enough(names: tuple[str, ...], templates: tuple[str, ...], n: int) -> None:
    most = len(names) * (len(names) - 1) * len(ORDERS) * len(templates)
    if n > most:
        raise PromptError(f"{len(names)} names and {len(templates)} templates give {most} different prompts, not {n}")


def _draws(
    rng: random.Random,
    templates: tuple[str, ...],
    names: tuple[str, ...],
    places: tuple[str, ...],
    objects: tuple[str, ...],
) -> Iterator[_Draw]:
    """Different draws without end: templates in turn, each in both orders before the next."""
    turn = rng.sample(templates, len(templates))
    seen: set[tuple[str, str, str, str]] = set()
    while True:
        for template in turn:
            for order in ORDERS:
                while True:
                    io, s, *others = rng.sample(names, 5)
                    place, thing = rng.choice(places), rng.choice(objects)
                    if (template, order, io, s) not in seen:
                        break
                seen.add((template, order, io, s))
                yield _Draw(template, order, io, s, tuple(others), place, thing)


def _roles(model: HookedModel, draw: _Draw, prepend_bos: bool | None) -> dict[str, int]:
    """The positions of the names in the clean prompt, found by their tokens."""
    tokenizer = tokenizer_of(model)
    ids = tokenizer.encode(draw.clean, prepend_bos=prepend_bos)
    io = [at for at, token in enumerate(ids) if token == tokenizer.single_id(f" {draw.io}")]
    s = [at for at, token in enumerate(ids) if token == tokenizer.single_id(f" {draw.s}")]
    if len(io) != 1 or len(s) != 2:
        raise PromptError(
            f"the names of {draw.clean!r} are not single tokens in it: {tokenizer.str_tokens(ids)}; put a space before "
            "every name of a template"
        )
    return {"IO": io[0], "S1": s[0], "S1+1": s[0] + 1, "S2": s[1], "END": len(ids) - 1}
