"""Agreement: does the verb take the number of its subject, even with a noun of the other number in between?

Linzen et al. 2016, "Assessing the Ability of LSTMs to Learn Syntax-Sensitive Dependencies" (arXiv 1611.01368): after
"The keys to the cabinet" the verb is `are`, although `cabinet` is nearer.

1. Only nouns whose singular and plural are one token each are used, so that a change of number keeps all positions.
2. A prompt is a subject, a preposition and a second noun, the attractor; subjects alternate between singular and
plural, and attractors between the other and the same number. 3. The corrupt prompt has the subject in its other number,
which flips the answer.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from interp.arguments import checked
from interp.arguments import seed as check_seed
from interp.errors import check_choice
from interp.prompts.pairs import PromptPairs
from interp.prompts.single_tokens import Words, enough, single_tokens, tokenizer_of
from interp.prompts.templates import About, Draw, fill, turns, write

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel

TEMPLATES = (
    "The {S} near the {A}",
    "The {S} behind the {A}",
    "The {S} next to the {A}",
    "The {S} beside the {A}",
    "The {S} in front of the {A}",
    "The {S} across from the {A}",
    "The {S} on the side of the {A}",
    "The {S} with the {A}",
    "As we could all see, the {S} near the {A}",
    "Everyone knows that the {S} behind the {A}",
)
NOUNS = {
    **{"book": "books", "boy": "boys", "car": "cars", "chair": "chairs", "dog": "dogs", "doctor": "doctors"},
    **{
        "flower": "flowers",
        "friend": "friends",
        "girl": "girls",
        "house": "houses",
        "key": "keys",
        "letter": "letters",
    },
    **{"light": "lights", "machine": "machines", "painting": "paintings", "photo": "photos", "picture": "pictures"},
    **{"player": "players", "poster": "posters", "report": "reports", "road": "roads", "sign": "signs", "box": "boxes"},
    **{"student": "students", "table": "tables", "teacher": "teachers", "tower": "towers", "tree": "trees"},
    **{"truck": "trucks", "wall": "walls", "window": "windows", "worker": "workers", "bird": "birds", "door": "doors"},
    **{"artist": "artists", "author": "authors", "bridge": "bridges", "building": "buildings", "camera": "cameras"},
    **{"child": "children", "man": "men", "woman": "women", "horse": "horses", "bottle": "bottles", "gate": "gates"},
}
VERBS = {"is": "are", "was": "were", "has": "have"}
ATTRACTORS = {
    "both": "alternately of the number that the subject does not have and of the subject's number",
    "opposite": "always of the number that the subject does not have",
    "same": "always of the subject's number",
}
ABOUT = About(
    "agreement",
    "subject-verb agreement",
    "After “{clean}” comes “{right}”, in the number of the subject. Where does the model take it from?",
    "Linzen et al. 2016, arXiv 1611.01368",
)


@checked
def agreement(
    model: HookedModel,
    n: int = 32,
    *,
    seed: int = 0,
    attractor: str = "both",
    aligned: bool = False,
    prepend_bos: bool | None = None,
) -> PromptPairs:
    """Prompts of subject-verb agreement across a second noun, half of them with a plural subject.

    The right answer is the verb in the number of the subject, the wrong one in the other. Roles: `S` (the subject) and
    `END`, the last token, which is the attractor.

    Args:
        model: its tokenizer decides which nouns and verbs can be used.
        n: how many pairs, all different.
        seed: of the draws; no global generator is touched.
        attractor: a name in `ATTRACTORS`.
        aligned: one template, which the seed chooses, so that a position means the same in every prompt.
        prepend_bos: as in `model.to_tokens`.

    Raises:
        UnknownName: a kind of attractor that does not exist.
        PromptError: a model without a tokenizer, or one that leaves too few words.

    Source: Linzen et al. 2016 (arXiv 1611.01368).
    """
    check_choice("kind of attractor", attractor, ATTRACTORS)
    nouns, verbs = (_both_numbers(model, words) for words in (NOUNS, VERBS))
    enough(nouns, "nouns (with their plurals)", 2)
    enough(verbs, "verbs (with their plurals)", 1)
    seed = check_seed(seed)
    tokenizer, rng = tokenizer_of(model), random.Random(seed)
    templates = turns(rng, TEMPLATES, aligned=aligned)
    return write(
        model,
        ABOUT,
        _draws(rng, templates, nouns.kept, verbs.kept, attractor),
        n,
        aligned=aligned,
        prepend_bos=prepend_bos,
        notes={
            "seed": seed,
            "attractor": attractor,
            "templates": list(templates),
            "words_kept": {"nouns": list(nouns.kept), "verbs": list(verbs.kept)},
            "words_dropped": {"nouns": list(nouns.dropped), "verbs": list(verbs.dropped)},
            "answer_kinds": {
                "singular": [tokenizer.single_id(f" {verb}") for verb in verbs.kept],
                "plural": [tokenizer.single_id(f" {VERBS[verb]}") for verb in verbs.kept],
            },
        },
    )


def _both_numbers(model: HookedModel, plurals: dict[str, str]) -> Words:
    """The singulars that are one token and whose plurals are, too."""
    single, plural = (set(single_tokens(model, words).kept) for words in (plurals, plurals.values()))
    kept = tuple(word for word in plurals if word in single and plurals[word] in plural)
    return Words(kept, tuple(word for word in plurals if word not in kept))


def _draws(
    rng: random.Random, templates: Sequence[str], nouns: Sequence[str], verbs: Sequence[str], attractor: str
) -> Iterator[Draw]:
    """Templates in turn, each with both numbers of the subject and of the attractor before the next."""
    opposites = {"both": (True, False), "opposite": (True,), "same": (False,)}[attractor]
    verb = itertools.cycle(verbs)
    while True:
        for template in templates:
            for opposite, plural in itertools.product(opposites, (True, False)):
                subject, other = rng.sample(nouns, 2)
                forms = (subject, NOUNS[subject])
                near = NOUNS[other] if plural != opposite else other
                singular = next(verb)
                rest = (f" {singular}", f" {VERBS[singular]}")
                yield Draw(
                    fill(template, {"S": forms[plural], "A": near}),
                    fill(template, {"S": forms[not plural], "A": near}),
                    rest[plural],
                    rest[not plural],
                    kind=f"{'plural' if plural else 'singular'} subject, {'other' if opposite else 'same'} number",
                )
