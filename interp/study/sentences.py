"""What the sentences of reports are made of: numbers with their intervals, counts, lists of words.

A sentence says how sure its number is where prompts tell it; of one prompt there is no interval, and none is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interp.arguments import checked

if TYPE_CHECKING:
    import pandas as pd

    from interp.prompts.pairs import PromptPairs

BANDS = "bands are 95% bootstrap intervals over prompts"


def bounds(row: Any, form: str = ".2f", *, turned: bool = False, before: str = "", after: str = "") -> str:
    """The ends of a row's interval; "" where it has none.

    Args:
        row: has `ci_low` and `ci_high`, as a row of a summary has them.
        form: how numbers are written.
        turned: the interval of the number with its sign turned.
        before, after: what surrounds the ends, where there are any.

    >>> bounds({"ci_low": 0.1, "ci_high": 0.25}, before=" (", after=")")
    ' (0.10 to 0.25)'
    """
    low, high = row["ci_low"], row["ci_high"]
    if low != low:  # NaN
        return ""
    low, high = (-high, -low) if turned else (low, high)
    return f"{before}{low:{form}} to {high:{form}}{after}"


def interval(row: Any, form: str = ".2f", *, turned: bool = False, before: str = "", after: str = "") -> str:
    """The same in words; arguments as `bounds` has them.

    >>> interval({"ci_low": 0.1, "ci_high": 0.25}, before=", "), interval({"ci_low": 0.1, "ci_high": 0.25}, turned=True)
    (', 95% interval 0.10 to 0.25', '95% interval -0.25 to -0.10')
    """
    return bounds(row, form, turned=turned, before=f"{before}95% interval ", after=after)


def answered_at(pairs: PromptPairs) -> str:
    """Where the answers of prompts are read, in words.

    >>> from interp.prompts.pairs import PromptPairs
    >>> answered_at(PromptPairs.from_tokens([[5, 6]], answers=[(1, 2)]))
    'at the last position'
    """
    return "at the last position" if pairs.answer_place == -1 else "at the mask"


def counted(n: int, word: str = "prompt") -> str:
    """A number of things.

    >>> counted(1), counted(12, "head")
    ('1 prompt', '12 heads')
    """
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def counted_of(n: int, total: int, word: str = "prompt") -> str:
    """A number of things, and of how many where these are not all.

    >>> counted_of(8, 8), counted_of(8, 32)
    ('8 prompts', '8 of 32 prompts')
    """
    return counted(n, word) if n == total else f"{n:,} of {counted(total, word)}"


def listed(words: Sequence[str]) -> str:
    """Words one after another.

    >>> listed(["heads"]), listed(["heads", "mixers"]), listed(["q", "k", "v"])
    ('heads', 'heads and mixers', 'q, k and v')
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), "".join(words[-1:]))))


def spelled(name: str) -> str:
    """A metric or a kind of ablation as figures and sentences write it.

    >>> spelled("logit_diff"), spelled("mean_by_role")
    ('logit difference', 'mean by role')
    """
    return name.replace("_", " ").replace("logit diff", "logit difference")


def two_decimals(value: float) -> str:
    """Two decimals, and no minus before 0.00.

    >>> two_decimals(-0.001), two_decimals(-1.5)
    ('0.00', '-1.50')
    """
    return f"{round(value, 2) + 0.0:.2f}"


@checked
def how_estimates_agree(table: pd.DataFrame, what: str = "cells") -> str:
    """What `interp.attribution.estimate_check.agreement` found; what could not be measured is left out.

    Args:
        table: its table, with its own `least`.
        what: what the cells are, in the plural.
    """
    at = table.set_index("quantity")
    alike, shuffled, sign = (at.loc[name] for name in ("correlation", "correlation of shuffled cells", "same sign"))
    off, missed = at.loc["relative error"], at.loc["missed"]
    parts = []
    if alike["value"] == alike["value"]:  # not NaN
        parts.append(
            f"correlate {alike['value']:.2f} with them{interval(alike, before=' (', after=')')}, where shuffled {what} "
            f"stay below {shuffled['ci_high']:.2f}"
        )
    if sign["n"]:
        parts.append(f"have the sign of {round(sign['value'] * sign['n'])} of the {int(sign['n'])} large ones")
    if off["value"] == off["value"]:
        parts.append(f"are off by {off['value']:.0%} of their mean magnitude")
    said = f", estimates {listed(parts)}." if parts else " nothing can be said."
    drawn = int(missed["n"])
    bound = f"At most {int(missed['ci_high']):,} large {what} were missed (95% bound, from {drawn} drawn at random)"
    if missed["value"] == 0 and not drawn:
        bound = f"No other {what} are left"
    return (
        f"Against the exact effects of {int(alike['n'])} {what}{said} {bound}; large is a tenth of the largest effect "
        "that was measured."
    )
