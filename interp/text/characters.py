r"""Text that is safe to show: invisible characters are named, and right-to-left text does not reorder its neighbours.

A prompt may hold anything: control characters that a terminal obeys, marks that reverse the direction of what follows,
characters without a shape or a width. Tables, pages, figures and messages show them as `<U+202E>`, a line break as `⏎`,
and isolate right-to-left text (Hebrew, Arabic) from the text around it. Data files keep the text itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

LINE = "⏎"
NAMED = {"\n": LINE, "\t": "⇥", "\r": "␍"}
JOINERS = "\u200c\u200d"
# Letters and marks (by category) without a shape: a joiner that joins nothing, fillers of Korean and Khmer.
SHAPELESS = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
LATIN = 0x2FF  # no letter up to here needs a joiner
STRONG = {"R", "AL"}
DIVIDING = ",.;:!?'\"-–—\u060c\u061b\u061f"
FIRST_STRONG, END = "\u2068", "\u2069"  # the marks that isolate the text between them (Unicode's annex 9)


def visible(text: str) -> str:
    r"""Text in one line: line breaks, control and direction characters and characters without a width by name.

    >>> print(visible("one\ntwo\x1b[2J \u202eabc\u200b"))
    one⏎two<U+001B>[2J <U+202E>abc<U+200B>
    """
    return text if text.isascii() and text.isprintable() else "".join(_each(text))


def visible_lines(text: str) -> str:
    r"""`visible`, with line breaks kept as well as shown.

    >>> print(visible_lines("one\ntwo"))
    one⏎
    two
    """
    return f"{LINE}\n".join(map(visible, text.split("\n")))


def visible_token(token: str) -> str:
    r"""One token: without the space before a word, other spaces as `·`, empty text as `∅`, a lone accent on a circle.

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
    """Text to be placed beside other text: with isolating marks around it if anything runs from right to left."""
    return f"{FIRST_STRONG}{text}{END}" if right_to_left(text) else text


def runs(text: str, *, sentences: bool = False) -> Iterator[tuple[str, bool]]:
    """Text in pieces, each with whether it runs from right to left.

    Args:
        text: in one line.
        sentences: treat right-to-left words with punctuation between them as one sentence and keep them in one piece;
            if not, they are items of a list and each is a piece.

    >>> text = "to \u05d0\u05d1 \u05d2, \u05d3 (0.5)"
    >>> [(len(piece), turned) for piece, turned in runs(text)]
    [(3, False), (4, True), (2, False), (1, True), (6, False)]
    >>> [(len(piece), turned) for piece, turned in runs(text, sentences=True)]
    [(3, False), (7, True), (6, False)]
    """
    end = 0
    joined = " ," if sentences else " "
    for turned in re.finditer(rf"R(?:[Rm{joined}]*[Rm])?", "".join(map(_direction, text))):
        if turned.start() > end:
            yield text[end : turned.start()], False
        yield text[turned.start() : turned.end()], True
        end = turned.end()
    if end < len(text):
        yield text[end:], False


def columns(text: str) -> int:
    """The number of columns that a text takes in a terminal.

    >>> columns("Mary"), columns("中文")
    (4, 4)
    """
    if text.isascii():
        return len(text)
    narrow = sum(unicodedata.category(c) in ("Mn", "Me", "Cf") for c in text)
    return len(text) - narrow + sum(unicodedata.east_asian_width(c) in "WF" for c in text)


def _direction(character: str) -> str:
    """R for right-to-left letters, m for a mark on a letter, " " for a space, "," for punctuation, else L."""
    direction = unicodedata.bidirectional(character)
    if direction in STRONG:
        return "R"
    return "m" if direction == "NSM" else " " if character == " " else "," if character in DIVIDING else "L"


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
