"""Modular addition: a + b modulo p, a task for small models that are trained on nothing else.

Nanda et al. 2023, "Progress Measures for Grokking via Mechanistic Interpretability" (arXiv 2301.05217), section 3: a
model is given the tokens `a`, `b`, `=` and answers with the number (a + b) mod p, numbers being the tokens 0 to p - 1.

1. For a model without a tokenizer a prompt is these ids; for one with a tokenizer it is a line of text. 2. The corrupt
prompt has another b, and its sum is the wrong answer: this flips the answer.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from typing import TYPE_CHECKING

from interp.arguments import checked, is_whole, shown, whole_number
from interp.arguments import seed as check_seed
from interp.errors import PromptError
from interp.prompts.pairs import PromptPairs
from interp.prompts.templates import About, Draw, fill, write

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel

TEXT = "({a}+{b}) mod {p}="
ABOUT = About(
    "modular_addition",
    "modular addition",
    "After “{clean}” comes “{right}”. How does the model compute it?",
    "Nanda et al. 2023, arXiv 2301.05217, section 3",
)


@checked
def modular_addition(
    model: HookedModel,
    n: int = 32,
    *,
    seed: int = 0,
    p: int | None = None,
    equals: int | None = None,
    text: str | None = None,
    aligned: bool = False,
    prepend_bos: bool | None = None,
) -> PromptPairs:
    """Prompts `a b =` that continue with (a + b) mod p.

    The right answer is the clean prompt's sum, the wrong one the corrupt prompt's. Roles: `a`, `b`, `END` (the `=`).

    Args:
        model: with a tokenizer the prompts are text, without one they are ids.
        n: how many pairs, all different.
        seed: of the draws; no global generator is touched.
        p: the modulus. With text, None is 10. With ids, None is the number of the model's outputs, or, if it has as
            many inputs, one less, for the "=".
        equals: with ids, the token of "="; None takes the token after the numbers; if there is none, prompts are `a b`.
        text: with text, the form of a prompt with {a}, {b} and optionally {p}; by default `TEXT`.
        aligned: with text, make a position mean the same in every prompt; with ids it always does.
        prepend_bos: as in `model.to_tokens`; with text only.

    Raises:
        PromptError: a modulus below 2 or above the model's vocabulary, a text without {a} and {b}, more prompts than
            p x p, an option for text with a model without a tokenizer, or the reverse.

    Source: Nanda et al. 2023 (arXiv 2301.05217), section 3.
    """
    n = whole_number("n", n, least=1, refuse=PromptError)
    p = None if p is None else whole_number("p", p, least=2, refuse=PromptError)
    seed = check_seed(seed)
    rng = random.Random(seed)
    if model.tokenizer is None:
        if text is not None or prepend_bos is not None:
            raise PromptError("text and prepend_bos need a model with a tokenizer; this model has none")
        return _in_ids(model, n, rng, p, equals, seed, aligned)
    if equals is not None:
        raise PromptError("equals needs a model without a tokenizer; this model has one and gets text")
    form, modulus = TEXT if text is None else text, 10 if p is None else p
    fields = [name for _, name, _, _ in string.Formatter().parse(form) if name is not None]
    if sorted(set(fields) - {"p"}) != ["a", "b"] or len(fields) != len(set(fields)):
        raise PromptError(
            f"the text {form!r} has the fields {fields}: expected {{a}} and {{b}} once each, and optionally {{p}}"
        )
    return write(
        model,
        ABOUT,
        _draws(rng, form, modulus),
        n,
        aligned=aligned,
        prepend_bos=prepend_bos,
        roles=("a", "b"),
        notes={"seed": seed, "p": modulus, "text": form},
    )


def _draws(rng: random.Random, form: str, p: int) -> Iterator[Draw]:
    while True:
        a, b, other = (rng.randrange(p) for _ in range(3))
        if b != other:
            clean, corrupt = (fill(form, {"a": str(a), "b": str(x), "p": str(p)}) for x in (b, other))
            yield Draw(clean, corrupt, str((a + b) % p), str((a + other) % p), whole=True)


def _in_ids(
    model: HookedModel, n: int, rng: random.Random, p: int | None, equals: int | None, seed: int, aligned: bool
) -> PromptPairs:
    cfg = model.cfg
    if p is None:
        p = cfg.d_vocab_out if cfg.d_vocab_out < cfg.d_vocab else cfg.d_vocab - 1
    if not 2 <= p <= min(cfg.d_vocab, cfg.d_vocab_out):
        raise PromptError(
            f"p={p} needs the numbers 0 to {p - 1} as tokens and as answers; this model has {cfg.d_vocab} tokens and "
            f"{cfg.d_vocab_out} answers"
        )
    if equals is not None and not (is_whole(equals) and 0 <= equals < cfg.d_vocab):
        raise PromptError(f"equals={shown(equals)} is not a token of this model: they are 0 to {cfg.d_vocab - 1}")
    if not 1 <= n <= p * p:
        raise PromptError(f"there are {p} x {p} = {p * p} different prompts, not {n}")
    end = equals if equals is not None else p if p < cfg.d_vocab else None
    sums: dict[tuple[int, int], int] = {}  # (a, b) -> the other b
    while len(sums) < n:
        a, b, other = (rng.randrange(p) for _ in range(3))
        if b != other:
            sums.setdefault((a, b), other)
    tail = [] if end is None else [end]
    first, second = next(iter(sums))
    example = " ".join(map(str, (first, second, *tail)))
    return PromptPairs.from_tokens(
        [[a, b, *tail] for a, b in sums],
        [[a, other, *tail] for (a, _), other in sums.items()],
        answers=[((a + b) % p, (a + other) % p) for (a, b), other in sums.items()],
        roles={"a": 0, "b": 1} | ({} if end is None else {"END": 2}),
        name=ABOUT.name,
        notes={
            "title": ABOUT.title,
            "question": ABOUT.question.format(clean=example, right=(first + second) % p),
            "source": ABOUT.source,
            "metric": "logit_diff",
            "n": n,
            "seed": seed,
            "aligned": aligned,
            "p": p,
            "equals": end,
        },
    )
