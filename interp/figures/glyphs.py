"""Text for figures: made drawable and visible, measured, and cut to fit.

Figures use a font that ships with matplotlib, so that they look the same everywhere. It has no glyphs for Chinese,
Japanese, Korean and some other scripts; such characters are written as their code, never as an empty box.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby

from matplotlib import font_manager
from matplotlib.textpath import TextToPath

from interp.text import tokenizer as text_of
from interp.text.characters import right_to_left, visible_token

FAMILY = "DejaVu Sans"
FORWARD = "\u200e"  # an invisible mark: a label that begins with it runs from left to right


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(FAMILY)).get_charmap())


def drawable(text: str) -> str:
    """`text` with control characters, and characters that the font does not have, written as their codes in hex.

    Words that run from right to left keep their place: matplotlib would reverse the whole label.

    >>> print(drawable("naïve Жα 中文!"))
    naïve Жα <4E2D 6587>!
    """
    has_rtl = right_to_left(text)
    text = text.removeprefix(FORWARD) if has_rtl else text

    def pieces() -> Iterator[str]:
        for missing, run in groupby(text, key=lambda c: not c.isprintable() or ord(c) not in _glyphs()):
            characters = list(run)
            yield "<" + " ".join(f"{ord(c):04X}" for c in characters) + ">" if missing else "".join(characters)

    return FORWARD * has_rtl + "".join(pieces())


def written(text: str) -> str:
    """A study's text made drawable, with its line breaks kept."""
    return "\n".join(map(drawable, text.split("\n")))


def visible(token: str) -> str:
    r"""One token as a figure prints it: without its leading space, and with other invisible characters shown.

    >>> print(visible(" Mary"), visible("\n"), visible("  "))
    Mary ⏎ ··
    """
    return drawable(visible_token(token))


def position_labels(tokens: Sequence[str]) -> list[str]:
    """Axis labels `9: John` of a prompt's tokens; labels that have this form already are only made drawable.

    >>> position_labels(["When", " John"]) == position_labels(["0: When", "1: John"]) == ["0: When", "1: John"]
    True
    """
    numbered = all(re.match(rf"{position}: .", token, re.DOTALL) for position, token in enumerate(tokens))
    return [drawable(label) for label in (tokens if numbered else text_of.labels(tokens))]


def broken(text: str, size: float, room: float) -> str:
    r"""`text` broken at spaces into lines of at most `room` points.

    >>> broken("share of the logit difference", 7, 60)
    'share of the logit\ndifference'
    """
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and width(longer, size) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


@lru_cache(maxsize=4096)
def width(text: str, size: float) -> float:
    """Width in points of one line of text at a font size in points."""
    font = font_manager.FontProperties(family=FAMILY, size=size)
    return TextToPath().get_text_width_height_descent(text, font, ismath=False)[0]


def shorten(text: str, size: float, room: float) -> str:
    """`text`, cut with an ellipsis if it is wider than `room` points.

    >>> shorten("internationalisation", 7, 40)
    'internati…'
    """
    if width(text, size) <= room:
        return text
    for end in range(len(text) - 1, 0, -1):
        cut = text[:end].rstrip() + "…"
        if width(cut, size) <= room:
            return cut
    return "…"
