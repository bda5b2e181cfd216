"""Docstring arguments: does the model describe the next argument of a function in a Python docstring?

Heimersheim and Janiak 2023, "A Circuit for Python Docstrings in a 4-Layer Attention-Only Transformer": the function has
the arguments A, B, C among others, the docstring describes A and B, and after the next `:param` comes C.

1. Only words that are one token are used. 2. A prompt is a definition with two arguments before A, then A, B, C and one
more, and the lines of its docstring for A and B. 3. The corrupt prompt differs only in the definition: `swap_next`
exchanges C and the argument after it, which flips the answer; `random_def` has other names for A, B and C, so that
nothing points to the answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from interp.arguments import checked
from interp.arguments import seed as check_seed
from interp.errors import check_choice
from interp.prompts.pairs import PromptPairs
from interp.prompts.single_tokens import enough, single_tokens
from interp.prompts.templates import About, Draw, fill, write

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel

TEMPLATE = '''
def {NAME}(self, {O1}, {O2}, {A_def}, {B_def}, {C_def}, {D_def}):
    """{W1} {W2} {W3}

    :param {A_doc}: {W4} {W5}
    :param {B_doc}: {W6} {W7}
    :param'''
ROLES = ("NAME", "A_def", "B_def", "C_def", "D_def", "A_doc", "B_doc")
ARGUMENTS = (
    *("action", "array", "author", "base", "batch", "cache", "channel", "client", "code", "color", "column", "config"),
    *("context", "count", "data", "date", "default", "depth", "entry", "error", "event", "field", "file", "filter"),
    *("format", "group", "handler", "header", "height", "host", "image", "index", "input", "item", "key", "label"),
    *("layer", "length", "level", "limit", "line", "link", "list", "loader", "lock", "mask", "message", "method"),
    *("mode", "model", "module", "name", "node", "number", "object", "offset", "option", "order", "output", "owner"),
    *("page", "parent", "parser", "path", "pattern", "place", "point", "port", "prefix", "project", "query", "queue"),
    *("range", "rate", "reader", "record", "region", "request", "result", "root", "row", "rule", "sample", "scale"),
    *("schema", "score", "server", "session", "shape", "size", "source", "stage", "state", "status", "step", "style"),
    *("table", "target", "task", "text", "time", "title", "token", "tree", "type", "unit", "user", "value", "version"),
    *("view", "weight", "width", "window", "worker", "writer", "zone"),
)
WORDS = (
    *(
        "able",
        "apple",
        "blue",
        "calm",
        "early",
        "fresh",
        "gentle",
        "green",
        "happy",
        "heavy",
        "island",
        "kind",
        "large",
    ),
    *("light", "little", "loud", "morning", "mountain", "narrow", "new", "old", "orange", "plain", "quick", "quiet"),
    *("river", "round", "sharp", "silver", "simple", "small", "soft", "spring", "stone", "strong", "summer", "warm"),
    *("water", "white", "wide", "winter", "wooden", "yellow", "young"),
)
CORRUPTIONS = {
    "swap_next": "in the definition C and the argument after it are exchanged: this flips the answer",
    "random_def": "in the definition A, B and C have other names: nothing points to the answer",
}
ABOUT = About(
    "docstring",
    "docstring arguments",
    "The docstring has described two arguments; after the third “:param” comes “{right}”, the next in the definition. "
    "How does the model find it?",
    "Heimersheim and Janiak 2023, A Circuit for Python Docstrings in a 4-Layer Attention-Only Transformer",
)


@checked
def docstring(
    model: HookedModel,
    n: int = 32,
    *,
    seed: int = 0,
    corrupt: str = "swap_next",
    aligned: bool = False,
    prepend_bos: bool | None = None,
) -> PromptPairs:
    """Prompts that continue with the argument of a function that its docstring describes next.

    The right answer is C, the wrong one D, the argument after it. Roles: `NAME` of the function; `A_def`, `B_def`,
    `C_def`, `D_def` in the definition; `A_doc` and `B_doc` in the docstring; `END`.

    Args:
        model: its tokenizer decides which names can be used.
        n: how many pairs, all different.
        seed: of the draws; no global generator is touched.
        corrupt: a name in `CORRUPTIONS`.
        aligned: no effect: all names are one token, so that a position means the same in every prompt anyway.
        prepend_bos: as in `model.to_tokens`.

    Raises:
        UnknownName: a corruption that does not exist.
        PromptError: a model without a tokenizer, or one that leaves too few words.

    Source: Heimersheim and Janiak 2023.
    """
    check_choice("corruption", corrupt, CORRUPTIONS)
    arguments, words = single_tokens(model, ARGUMENTS), single_tokens(model, WORDS)
    enough(arguments, "names of arguments", 10)
    enough(words, "words of a docstring", 7)
    seed = check_seed(seed)
    return write(
        model,
        ABOUT,
        _draws(random.Random(seed), arguments.kept, words.kept, corrupt),
        n,
        aligned=aligned,
        prepend_bos=prepend_bos,
        roles=ROLES,
        notes={
            "seed": seed,
            "corrupt": corrupt,
            "words_kept": {"arguments": list(arguments.kept), "words": list(words.kept)},
            "words_dropped": {"arguments": list(arguments.dropped), "words": list(words.dropped)},
        },
    )


def _draws(rng: random.Random, arguments: Sequence[str], words: Sequence[str], corrupt: str) -> Iterator[Draw]:
    while True:
        name, first, second, a, b, c, d, *others = rng.sample(arguments, 10)
        filled = dict(zip([f"W{at}" for at in range(1, 8)], rng.sample(words, 7), strict=True))
        filled |= {"NAME": name, "O1": first, "O2": second, "A_doc": a, "B_doc": b}
        clean = {"A_def": a, "B_def": b, "C_def": c, "D_def": d}
        if corrupt == "swap_next":
            other = clean | {"C_def": d, "D_def": c}
        else:
            other = clean | dict(zip(("A_def", "B_def", "C_def"), others, strict=True))
        yield Draw(fill(TEMPLATE, filled | clean), fill(TEMPLATE, filled | other), f" {c}", f" {d}")
