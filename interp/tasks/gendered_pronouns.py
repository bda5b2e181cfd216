"""Gendered pronouns: does the model use the pronoun that usually goes with a name?

Mathwin et al. 2023, "Identifying a Preliminary Circuit for Predicting Gendered Pronouns in GPT-2 Small": after "So
Alice is such a good friend, isn't" the next word is `she`.

1. Only names that are one token are used, so that exchanging names keeps all positions. 2. A prompt is a template with
a name and a word for what the person is; every second name is a woman's. 3. The corrupt prompt has a name of the other
gender, which flips the answer.

The names are those that English text most often uses with one of the two pronouns; what is measured is that habit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from interp.arguments import checked
from interp.arguments import seed as check_seed
from interp.prompts.pairs import PromptPairs
from interp.prompts.single_tokens import enough, single_tokens
from interp.prompts.templates import About, Draw, fill, turns, write

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel

TEMPLATES = (
    "So {NAME} is such a good {WORD}, isn't",
    "Then {NAME} was quite a famous {WORD}, wasn't",
    "Today {NAME} stayed at home with a {WORD} because",
    "Last year {NAME} wrote to an old {WORD}, and then",
    "Back then {NAME} was not yet a {WORD}, but later",
    "When {NAME} was still a young {WORD},",
    "Although {NAME} had never been a {WORD},",
)
WORDS = (
    *("friend", "teacher", "doctor", "writer", "singer", "player", "student", "neighbor", "lawyer", "painter"),
    *("driver", "cook", "farmer", "leader", "dancer", "runner", "reader", "scientist", "speaker"),
)
WOMEN = (
    *(
        "Alice",
        "Amanda",
        "Amy",
        "Anna",
        "Barbara",
        "Betty",
        "Carol",
        "Claire",
        "Diana",
        "Dorothy",
        "Elizabeth",
        "Emily",
    ),
    *("Emma", "Eva", "Grace", "Hannah", "Helen", "Jane", "Jennifer", "Jessica", "Julia", "Karen", "Kate", "Laura"),
    *("Linda", "Lisa", "Lucy", "Margaret", "Maria", "Mary", "Michelle", "Nancy", "Patricia", "Rachel", "Rebecca"),
    *("Ruth", "Sandra", "Sarah", "Sophia", "Susan", "Victoria"),
)
MEN = (
    *("Adam", "Alan", "Andrew", "Anthony", "Arthur", "Ben", "Brian", "Carl", "Charles", "Daniel", "David", "Donald"),
    *("Edward", "Eric", "Frank", "Fred", "Gary", "George", "Harry", "Henry", "Jack", "Jacob", "James", "Jason", "John"),
    *(
        "Joseph",
        "Kevin",
        "Larry",
        "Louis",
        "Mark",
        "Martin",
        "Michael",
        "Patrick",
        "Paul",
        "Peter",
        "Philip",
        "Richard",
    ),
    *("Robert", "Roger", "Simon", "Stephen", "Thomas", "Tom", "Walter", "William"),
)
ABOUT = About(
    "pronouns",
    "gendered pronouns",
    "After “{clean}” comes “{right}”. Where does the model take the gender from?",
    "Mathwin et al. 2023, Identifying a Preliminary Circuit for Predicting Gendered Pronouns in GPT-2 Small",
)


@checked
def pronouns(
    model: HookedModel,
    n: int = 32,
    *,
    seed: int = 0,
    aligned: bool = False,
    prepend_bos: bool | None = None,
) -> PromptPairs:
    """Prompts that continue with `she` or `he`, half of them each.

    The right answer is the pronoun of the clean prompt's name, the wrong one the other. Roles: `NAME`, `WORD` (what the
    person is), `END`.

    Args:
        model: its tokenizer decides which names and words can be used.
        n: how many pairs, all different.
        seed: of the draws; no global generator is touched.
        aligned: one template, which the seed chooses, so that a position means the same in every prompt.
        prepend_bos: as in `model.to_tokens`.

    Raises:
        PromptError: a model without a tokenizer, or one that leaves too few words.

    Source: Mathwin et al. 2023.
    """
    women, men, words = (single_tokens(model, listed) for listed in (WOMEN, MEN, WORDS))
    enough(women, "names of women", 1)
    enough(men, "names of men", 1)
    enough(words, "words for a person", 1)
    seed = check_seed(seed)
    rng = random.Random(seed)
    templates = turns(rng, TEMPLATES, aligned=aligned)
    return write(
        model,
        ABOUT,
        _draws(rng, templates, women.kept, men.kept, words.kept),
        n,
        aligned=aligned,
        prepend_bos=prepend_bos,
        notes={
            "seed": seed,
            "templates": list(templates),
            "words_kept": {"women": list(women.kept), "men": list(men.kept), "words": list(words.kept)},
            "words_dropped": {"women": list(women.dropped), "men": list(men.dropped), "words": list(words.dropped)},
        },
    )


def _draws(
    rng: random.Random, templates: Sequence[str], women: Sequence[str], men: Sequence[str], words: Sequence[str]
) -> Iterator[Draw]:
    """Templates in turn, each with a woman's and with a man's name before the next."""
    while True:
        for template in templates:
            for clean, corrupt, right, wrong in ((women, men, " she", " he"), (men, women, " he", " she")):
                word = rng.choice(words)
                yield Draw(
                    fill(template, {"NAME": rng.choice(clean), "WORD": word}),
                    fill(template, {"NAME": rng.choice(corrupt), "WORD": word}),
                    right,
                    wrong,
                    kind=right.strip(),
                )
