"""Factual recall: does the model know a fact about the subject that the prompt names?

Meng et al. 2022, "Locating and Editing Factual Associations in GPT" (arXiv 2202.05262) and Geva et al. 2023,
"Dissecting Recall of Factual Associations in Auto-Regressive Language Models" (arXiv 2304.14767): a fact is a subject,
a relation and an object, and a prompt of the first two asks for the third.

1. Only facts whose object is one token are used. 2. A prompt is one of a relation's templates with a subject. 3. The
corrupt prompt has another subject of equally many tokens and with another object, which flips the answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from interp.arguments import checked
from interp.arguments import seed as check_seed
from interp.errors import unknown
from interp.prompts.pairs import PromptPairs
from interp.prompts.single_tokens import Words, enough, single_tokens
from interp.prompts.templates import About, Draw, fill, turns, write

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel

# relation -> its templates, each with the subject {S}, and its facts, subject -> object.
RELATIONS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "capital": (
        ("The capital of {S} is the city of", "Everyone knows that the capital of {S} is"),
        {
            **{"France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon"},
            **{"Austria": "Vienna", "Russia": "Moscow", "Japan": "Tokyo", "China": "Beijing", "Egypt": "Cairo"},
            **{"Greece": "Athens", "Ireland": "Dublin", "Poland": "Warsaw", "Hungary": "Budapest", "Cuba": "Havana"},
            **{"Belgium": "Brussels", "Denmark": "Copenhagen", "Sweden": "Stockholm", "Norway": "Oslo", "Peru": "Lima"},
            **{"Finland": "Helsinki", "Turkey": "Ankara", "Iran": "Tehran", "Iraq": "Baghdad", "Kenya": "Nairobi"},
            **{"Canada": "Ottawa", "Australia": "Canberra", "England": "London", "Scotland": "Edinburgh"},
        },
    ),
    "language": (
        ("The official language of {S} is", "In the schools of {S}, most children are taught in"),
        {
            **{"France": "French", "Germany": "German", "Austria": "German", "Italy": "Italian", "Spain": "Spanish"},
            **{"Mexico": "Spanish", "Argentina": "Spanish", "Brazil": "Portuguese", "Portugal": "Portuguese"},
            **{"Russia": "Russian", "Japan": "Japanese", "China": "Chinese", "Greece": "Greek", "Poland": "Polish"},
            **{"Sweden": "Swedish", "Denmark": "Danish", "Turkey": "Turkish", "Egypt": "Arabic", "Iraq": "Arabic"},
            **{"England": "English", "Australia": "English", "Ukraine": "Ukrainian", "Iran": "Persian"},
        },
    ),
    "continent": (
        ("On a map of the world, {S} lies on the continent of", "As a country, {S} belongs to the continent of"),
        {
            **{"France": "Europe", "Germany": "Europe", "Italy": "Europe", "Spain": "Europe", "Poland": "Europe"},
            **{"Sweden": "Europe", "Norway": "Europe", "Greece": "Europe", "Kenya": "Africa", "Nigeria": "Africa"},
            **{"Ghana": "Africa", "Uganda": "Africa", "Zambia": "Africa", "Egypt": "Africa", "Japan": "Asia"},
            **{"China": "Asia", "India": "Asia", "Thailand": "Asia", "Vietnam": "Asia", "Mongolia": "Asia"},
        },
    ),
    "country": (
        ("The city of {S} is located in the country of", "Travellers who arrive in {S} have come to the country of"),
        {
            **{"Paris": "France", "Lyon": "France", "Berlin": "Germany", "Munich": "Germany", "Hamburg": "Germany"},
            **{"Rome": "Italy", "Milan": "Italy", "Venice": "Italy", "Florence": "Italy", "Madrid": "Spain"},
            **{"Barcelona": "Spain", "Lisbon": "Portugal", "Vienna": "Austria", "Moscow": "Russia", "Tokyo": "Japan"},
            **{"Beijing": "China", "Shanghai": "China", "Cairo": "Egypt", "Athens": "Greece", "Dublin": "Ireland"},
            **{"Toronto": "Canada", "Montreal": "Canada", "Sydney": "Australia", "Melbourne": "Australia"},
            **{"Mumbai": "India", "Delhi": "India", "Istanbul": "Turkey", "Nairobi": "Kenya", "Lagos": "Nigeria"},
        },
    ),
    "opposite": (
        ("The opposite of the word {S} is the word", "The word {S} is the opposite of the word"),
        {
            **{"hot": "cold", "cold": "hot", "big": "small", "small": "big", "fast": "slow", "slow": "fast"},
            **{"old": "new", "new": "old", "high": "low", "low": "high", "light": "dark", "dark": "light"},
            **{"hard": "soft", "soft": "hard", "strong": "weak", "weak": "strong", "rich": "poor", "poor": "rich"},
            **{"wet": "dry", "dry": "wet", "good": "bad", "bad": "good", "thick": "thin", "thin": "thick"},
        },
    ),
}
ABOUT = About(
    "facts",
    "factual recall",
    "After “{clean}” comes “{right}”. Where does the model keep that, and how does it get to the end of the prompt?",
    "Meng et al. 2022, arXiv 2202.05262; Geva et al. 2023, arXiv 2304.14767",
)


@checked
def facts(
    model: HookedModel,
    n: int = 32,
    *,
    seed: int = 0,
    relation: str | None = None,
    aligned: bool = False,
    prepend_bos: bool | None = None,
) -> PromptPairs:
    """Prompts that ask for a fact: capitals, languages, continents, countries of cities, opposites.

    The right answer is the object of the clean prompt's subject, the wrong one that of the corrupt prompt's subject.
    Roles: `S` (the last token of the subject) and `END`.

    Args:
        model: its tokenizer decides which facts can be used.
        n: how many pairs, all different in their clean prompt.
        seed: of the draws; no global generator is touched.
        relation: one of `RELATIONS`; None uses all in turn.
        aligned: one template and subjects of equally many tokens, so that a position means the same in every prompt;
            if no relation is given, the seed chooses one.
        prepend_bos: as in `model.to_tokens`.

    Raises:
        UnknownName: a relation that does not exist.
        PromptError: a model without a tokenizer, or one that leaves too few facts.

    Source: Meng et al. 2022 (arXiv 2202.05262), Geva et al. 2023 (arXiv 2304.14767).
    """
    if relation is not None and relation not in RELATIONS:
        raise unknown("relation", relation, RELATIONS)
    known = {name: of_relation for name, (_, of_relation) in RELATIONS.items() if relation in (None, name)}
    objects = single_tokens(model, (thing for of_relation in known.values() for thing in of_relation.values()))
    usable = {name: {s: o for s, o in pairs.items() if o in objects.kept} for name, pairs in known.items()}
    usable = {name: pairs for name, pairs in usable.items() if len(set(pairs.values())) > 1}
    if not usable:
        enough(Words((), (*objects.kept, *objects.dropped)), "objects of facts", 2)
    seed = check_seed(seed)
    rng = random.Random(seed)
    forms = turns(rng, [(name, template) for name in usable for template in RELATIONS[name][0]], aligned=aligned)
    return write(
        model,
        ABOUT,
        _draws(rng, forms, usable),
        n,
        aligned=aligned,
        prepend_bos=prepend_bos,
        notes={
            "seed": seed,
            "relation": relation,
            "words_kept": {name: len(pairs) for name, pairs in usable.items()},
            "words_dropped": {name: len(pairs) - len(usable.get(name, ())) for name, pairs in known.items()},
        },
    )


def _draws(
    rng: random.Random, forms: Sequence[tuple[str, str]], facts: Mapping[str, Mapping[str, str]]
) -> Iterator[Draw]:
    """Relations and their templates in turn."""
    while True:
        for name, template in forms:
            (one, right), (other, wrong) = rng.sample(list(facts[name].items()), 2)
            if right != wrong:
                yield Draw(
                    fill(template, {"S": one}), fill(template, {"S": other}), f" {right}", f" {wrong}", kind=name
                )
