"""Greater-than: does the model know that the end of a span of years is later than its beginning?

Hanna et al. 2023, "How does GPT-2 compute greater-than?: Interpreting mathematical abilities in a pre-trained language
model" (arXiv 2305.00586): after "The war lasted from the year 1732 to the year 17" comes a number above 32.

1. The tokenizer determines where the prompt ends: after the century, if a year's last two digits (or its third digit
   alone) are the next token; otherwise at another place where the next token distinguishes the years of a century.
2. The next token represents the years that begin with it: it is right if all of them are later than the beginning,
   wrong if all are earlier or the same, and neither otherwise.
3. All right and all wrong tokens are answers of their pair; the first right one is as far above the beginning as the
   first wrong one is below.
4. The corrupt prompt begins in the year 01 of the same century, so that almost any year is later.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from interp.arguments import checked
from interp.arguments import seed as check_seed
from interp.errors import PromptError
from interp.prompts.pairs import PromptPairs
from interp.prompts.single_tokens import enough, next_token, single_tokens, tokenizer_of
from interp.prompts.templates import About, Draw, fill, turns, write

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel
    from interp.text.tokenizer import Tokenizer

# XX is the century of the beginning, Y its third digit, Z its fourth; E is the part of the end that the prompt gives.
TEMPLATES = (
    "The {NOUN} lasted from the year {XX}{Y}{Z} to the year {E}",
    "Historians agree that the {NOUN} went on from the year {XX}{Y}{Z} to the year {E}",
    "The whole {NOUN} took place between the year {XX}{Y}{Z} and the year {E}",
    "We read that the {NOUN} began in the year {XX}{Y}{Z} and ended in the year {E}",
)
NOUNS = (
    *(
        "war",
        "siege",
        "reign",
        "trial",
        "strike",
        "voyage",
        "study",
        "project",
        "famine",
        "journey",
        "mission",
        "debate",
    ),
    *("campaign", "crisis", "drought", "alliance", "treaty", "festival", "expedition", "construction", "conflict"),
    *("dispute", "revolt", "truce", "experiment", "tour", "search", "feud", "boom", "regime"),
)
CENTURIES = ("11", "12", "13", "14", "15", "16", "17", "18")
CUTS = (2, 0, 1)  # how many digits of the end the prompt gives, best first
ABOUT = About(
    "greater_than",
    "greater-than",
    "After “{clean}” comes a later year, such as one that goes on with “{right}”. How does the model compare the two?",
    "Hanna et al. 2023, arXiv 2305.00586",
)
Pieces = dict[int, list[int]]


@checked
def greater_than(
    model: HookedModel,
    n: int = 32,
    *,
    seed: int = 0,
    aligned: bool = False,
    prepend_bos: bool | None = None,
) -> PromptPairs:
    """Prompts that continue with a year later than one that they name.

    Every pair has many right and wrong next tokens: `answer_sets` has all of them, `answers` the first of each, and
    `interp.tasks.prob_diff()` is the metric of Hanna et al. over them. Roles: `NOUN`; of the beginning `XX` (the
    century), `Y` and `Z` (its third and fourth digit), each if it is a token of its own; `END`.

    Args:
        model: its tokenizer determines where the prompts end and what the answers are.
        n: how many pairs, all different.
        seed: of the draws; no global generator is touched.
        aligned: one template, which the seed chooses, so that a position means the same in every prompt.
        prepend_bos: as in `model.to_tokens`.

    Raises:
        PromptError: a model without a tokenizer, or one whose next tokens do not distinguish years.

    Source: Hanna et al. 2023 (arXiv 2305.00586), section 2.
    """
    tokenizer = tokenizer_of(model)
    nouns = single_tokens(model, NOUNS)
    enough(nouns, "nouns", 1)
    cut, pieces = _cut(tokenizer)
    seed = check_seed(seed)
    rng = random.Random(seed)
    templates = turns(rng, TEMPLATES, aligned=aligned)
    pairs = write(
        model,
        ABOUT,
        _draws(rng, templates, nouns.kept, cut, pieces),
        n,
        aligned=aligned,
        prepend_bos=prepend_bos,
        roles=("NOUN", "XX", "Y", "Z"),
        notes={
            "seed": seed,
            "templates": list(templates),
            "digits_said": cut,
            "centuries": list(pieces),
            "words_kept": list(nouns.kept),
            "words_dropped": list(nouns.dropped),
        },
    )
    pairs.notes["metric"] = "prob_diff"
    return pairs


@checked
def split_years(tokenizer: Tokenizer, text: str, beginning: str, said: int) -> tuple[list[int], list[int]]:
    """The next tokens after a text that continue to later years, and those that continue to earlier years or the same.

    Args:
        tokenizer: reads the text and the years.
        text: the prompt, which ends with the first `said` digits of the end.
        beginning: the year of the beginning, four digits; the end is in its century.
        said: how many digits of the end the text already has.

    Returns:
        Right and wrong tokens, those nearest to the year of the beginning first; both may be empty.
    """
    return _split(_pieces(tokenizer, text, beginning[:2], said), int(beginning[2:]))


def _split(pieces: Pieces, year: int) -> tuple[list[int], list[int]]:
    right = [token for token, years in pieces.items() if min(years) > year]
    wrong = [token for token, years in pieces.items() if max(years) <= year]
    return sorted(right, key=lambda token: pieces[token]), sorted(wrong, key=lambda token: pieces[token], reverse=True)


def _pieces(tokenizer: Tokenizer, text: str, century: str, said: int) -> Pieces:
    """Every next token after a text that ends in a year of a century -> the years that begin with it."""
    pieces: Pieces = {}
    for year in range(100):
        token = next_token(tokenizer, text, f"{century}{year:02}"[said:], whole=False)
        if token is not None:
            pieces.setdefault(token, []).append(year)
    return pieces


def _cut(tokenizer: Tokenizer) -> tuple[int, dict[str, Pieces]]:
    """How many digits of the end the prompt gives, and for each suitable century: next token -> its years.

    Raises:
        PromptError: no next token distinguishes years.
    """
    for cut in CUTS:
        pieces = {century: _pieces(tokenizer, f" to the year {century[:cut]}", century, cut) for century in CENTURIES}
        # More than two tokens, and nearly all years: a few years may be words of their own.
        suited = {
            century: years for century, years in pieces.items() if len(years) > 2 and sum(map(len, years.values())) > 80
        }
        if suited:
            return cut, suited
    raise PromptError(
        "the task 'greater_than' cannot be written for this model: its tokenizer splits years so that no next token "
        "tells the years of a century apart"
    )


def _draws(
    rng: random.Random,
    templates: Sequence[str],
    nouns: Sequence[str],
    cut: int,
    centuries: dict[str, Pieces],
) -> Iterator[Draw]:
    """Templates in turn."""
    while True:
        for template in templates:
            century, year = rng.choice(list(centuries)), rng.randint(2, 98)
            pieces = centuries[century]
            right, wrong = _split(pieces, year)
            if not right or not wrong:
                continue
            away = rng.randrange(min(len(right), len(wrong)))
            words = {"NOUN": rng.choice(nouns), "XX": century, "E": century[:cut]}
            digits = f"{year:02}"
            later, earlier = (f"{century}{pieces[answers[away]][0]:02}"[cut:] for answers in (right, wrong))
            clean = fill(template, words | {"Y": digits[0], "Z": digits[1]})
            corrupt = fill(template, words | {"Y": "0", "Z": "1"})
            yield Draw(clean, corrupt, later, earlier, whole=False, also=(tuple(right), tuple(wrong)))
