"""Addition in digits: what does a model say after "23+45="?

1. A prompt has some solved sums, the same in both prompts of a pair, and one unsolved sum. No sum has more digits than
   its numbers: otherwise its first token would usually be a 1, whatever the numbers are.
2. The corrupt prompt has another second number, so that its sum begins with another token: this flips the answer.
3. The answer is the sum's first token: one digit or the whole sum, depending on the tokenizer.

Source: Nikankin et al. 2024, "Arithmetic Without Algorithms: Language Models Solve Math With a Bag of Heuristics"
(arXiv 2410.21272), section 2, for the form of the prompts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from interp.arguments import checked, whole_number
from interp.arguments import seed as check_seed
from interp.errors import PromptError
from interp.prompts.pairs import PromptPairs
from interp.prompts.single_tokens import tokenizer_of
from interp.prompts.templates import About, Draw, Written, fill, write

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel

TEMPLATE = "{A1}{A2}+{B1}{B2}="
ABOUT = About(
    "digit_addition",
    "addition of numbers",
    "“{clean}” goes on with the sum, {right}. How does the model compute its first token?",
    "Nikankin et al. 2024, arXiv 2410.21272",
)


@checked
def digit_addition(
    model: HookedModel,
    n: int = 32,
    *,
    seed: int = 0,
    digits: int = 2,
    shots: int = 2,
    aligned: bool = False,
    prepend_bos: bool | None = None,
) -> PromptPairs:
    """Prompts that continue with the sum of two numbers.

    The right answer is the first token of the sum, the wrong one that of the corrupt prompt's sum. Roles: `A1` and `B1`
    (the first digits of the two numbers), `A2` and `B2` (their last tokens, if those differ), `END` (the "=").

    Args:
        model: its tokenizer determines which part of the sum is the answer.
        n: how many pairs, all different.
        seed: of the draws; no global generator is touched.
        digits: the number of digits of the two numbers.
        shots: the number of solved sums at the beginning.
        aligned: make a position mean the same in every prompt.
        prepend_bos: as in `model.to_tokens`.

    Raises:
        PromptError: a model without a tokenizer, numbers without digits, a negative number of shots.

    Source: Nikankin et al. 2024 (arXiv 2410.21272).
    """
    tokenizer_of(model)
    digits = whole_number("digits", digits, least=1, most=100, refuse=PromptError)
    shots, seed = whole_number("shots", shots, least=0, most=1000, refuse=PromptError), check_seed(seed)
    return write(
        model,
        ABOUT,
        _draws(random.Random(seed), digits, shots),
        n,
        aligned=aligned,
        prepend_bos=prepend_bos,
        notes={"seed": seed, "digits": digits, "shots": shots},
    )


def _draws(rng: random.Random, digits: int, shots: int) -> Iterator[Draw]:
    low, high = (10 ** (digits - 1) if digits > 1 else 0), 10**digits - 1

    def first() -> int:
        return rng.randint(low, high - low)

    def second(a: int) -> int:
        return rng.randint(low, high - a)

    while True:
        shown = ""
        for _ in range(shots):
            a = first()
            b = second(a)
            shown += f"{a}+{b}={a + b}, "
        a = first()
        b, other = second(a), second(a)
        if b != other:
            yield Draw(_sum(shown, a, b), _sum(shown, a, other), str(a + b), str(a + other), whole=False)


def _sum(shown: str, a: int, b: int) -> Written:
    one, two = str(a), str(b)
    return fill(shown + TEMPLATE, {"A1": one[0], "A2": one[1:], "B1": two[0], "B2": two[1:]})
