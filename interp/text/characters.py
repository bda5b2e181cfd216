r"""Text as it may be shown: what cannot be seen is named, and what runs from right to left stays where it stands.

A prompt may hold anything: control characters that a terminal obeys, marks that turn the direction of all that follows,
characters without a shape or a width. Tables, pages, figures and messages show them as `<U+202E>`, a line break as `⏎`,
and keep text that runs from right to left (Hebrew, Arabic) apart from its neighbours. Data files keep the text itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

LINE = "⏎"
NAMED = {"\n": LINE, "\t": "⇥", "\r": "␍"}
JOINERS = "\u200c\u200d"
# Letters and marks by category that have no shape: a joiner that joins nothing, fillers of Korean and Khmer.
SHAPELESS = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
LATIN = 0x2FF  # up to here no letter needs a joiner
STRONG = {"R", "AL"}
DIVIDING = ",.;:!?'\"-–—\u060c\u061b\u061f"
FIRST_STRONG, END = "\u2068", "\u2069"  # the marks that isolate what stands between them (Unicode's annex 9)


def visible(text: str) -> str:
    r"""Text in one line: line breaks, control and direction characters and those without a width as their names.

    >>> print(visible("one\ntwo\x1b[2J \u202eabc\u200b"))
    one⏎two<U+001B>[2J <U+202E>abc<U+200B>
    """
    return text if text.isascii() and text.isprintable() else "".join(_each(text))


def visible_lines(text: str) -> str:
    r"""`visible`, where line breaks also break the line.

    >>> print(visible_lines("one\ntwo"))
    one⏎
    two
    """
    return f"{LINE}\n".join(map(visible, text.split("\n")))


def visible_token(token: str) -> str:
    r"""One token: without the space before its word, other spaces as `·`, nothing as `∅`, a lone accent on a circle.

    >>> print(*map(visible_token, [" Mary", "\n", "  ", "", "\u0301"]))
    Mary ⏎ ·· ∅ ◌́
    """
    if len(token) > 1 and token[0] == " " and not token[1].isspace():
        token = token[1:]
    shown = visible(token).replace(" ", "·") or "∅"
    return "◌" + shown if unicodedata.category(shown[0]).startswith("M") else shown


def right_to_left(text: str) -> bool:
    """Whether anything in it runs from right to left."""
    return not text.isascii() and any(unicodedata.bidirectional(character) in STRONG for character in text)


def isolated(text: str) -> str:
    """Text for a place where others stand beside it: with marks around it where it runs from right to left."""
    return f"{FIRST_STRONG}{text}{END}" if right_to_left(text) else text


def runs(text: str, *, sentences: bool = False) -> Iterator[tuple[str, bool]]:
    """Text in pieces: what runs from right to left, and what stands between.

    Args:
        text: in one line.
        sentences: keep words with punctuation between together, as a sentence; else they are items of a list, which
            stay in their order.

    >>> text = "to \u05d0\u05d1 \u05d2, \u05d3 (0.5)"
    >>> [(len(piece), turned) for piece, turned in runs(text)]
    [(3, False), (4, True), (2, False), (1, True), (6, False)]
    >>> [(len(piece), turned) for piece, turned in runs(text, sentences=True)]
    [(3, False), (7, True), (6, False)]
    """
    end = 0
    joined = " ," if sentences else " "
    for found in re.finditer(rf"R(?:[Rm{joined}]*[Rm])?", "".join(map(_direction, text))):
        if found.start() > end:
            yield text[end : found.start()], False
        yield text[found.start() : found.end()], True
        end = found.end()
    if end < len(text):
        yield text[end:], False


def columns(text: str) -> int:
    """How many columns of a terminal a text takes.

    >>> columns("Mary"), columns("中文")
    (4, 4)
    """
    if text.isascii():
        return len(text)
    narrow = sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)
    return len(text) - narrow + sum(unicodedata.east_asian_width(c) in "WF" for c in text)


def _direction(character: str) -> str:
    """R for letters that run to the left, m for a mark on one, a space, a comma for what divides sentences, else L."""
    way = unicodedata.bidirectional(character)
    if way in STRONG:
        return "R"
    return "m" if way == "NSM" else " " if character == " " else "," if character in DIVIDING else "L"


def _each(text: str) -> Iterator[str]:
    for at, character in enumerate(text):
        code = ord(character)
        if character in NAMED:
            yield NAMED[character]
        elif 0xDC80 <= code <= 0xDCFF:  # a byte that surrogateescape could not decode
            yield f"<{code - 0xDC00:02X}>"
        elif character in JOINERS:
            around = [ord(c) for c in text[max(at - 1, 0) : at] + text[at + 1 : at + 2]]
            yield character if around and min(around) > LATIN else f"<U+{code:04X}>"
        elif (unicodedata.category(character)[0] in "CZ" and character != " ") or character in SHAPELESS:
            yield f"<U+{code:04X}>"
        else:
            yield character
