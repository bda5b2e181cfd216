"""Text as it may be shown: everything in it can be seen, and nothing moves its neighbours."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.figures.glyphs import drawable
from interp.text.characters import columns, isolated, runs, visible, visible_lines, visible_token

TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("When John and Mary", "When John and Mary"),
        ("naïve 中文 שלום  two", "naïve 中文 שלום  two"),
        ("a\nb\tc\rd", "a⏎b⇥c␍d"),
        ("\x00\x1b[2J\x07", "<U+0000><U+001B>[2J<U+0007>"),
        ("x\u202ey\u202c \u2066z\u2069", "x<U+202E>y<U+202C> <U+2066>z<U+2069>"),
        ("ad\u200bmin ad\u200dmin \ufeff\u00ad", "ad<U+200B>min ad<U+200D>min <U+FEFF><U+00AD>"),
        ("👩‍💻 क्‍ष", "👩‍💻 क्‍ष"),  # joiners that join
        ("\u3164\u115f\u034f", "<U+3164><U+115F><U+034F>"),
        ("\udcff\ud800", "<FF><U+D800>"),
    ],
)
def test_what_cannot_be_seen_has_its_name(text: str, shown: str) -> None:
    assert visible(text) == shown == visible(shown)


@given(st.text())
def test_nothing_that_turns_or_controls_is_left(text: str) -> None:
    for shown in (visible(text), visible_token(text), drawable(visible(text)).removeprefix("\u200e")):
        assert not set(shown) & set(TURNING) and not any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in shown)
    assert visible_lines(text).replace("⏎\n", "⏎") == visible(text)
    for sentences in (True, False):
        assert "".join(piece for piece, _ in runs(text, sentences=sentences)) == text


def test_words_that_run_to_the_left_are_isolated_one_by_one_or_as_a_sentence() -> None:
    text = "to שלום עולם, מה (0.5)"
    assert [piece for piece, turned in runs(text) if turned] == ["שלום עולם", "מה"]
    assert [piece for piece, turned in runs(text, sentences=True) if turned] == ["שלום עולם, מה"]
    assert isolated("to") == "to" and isolated(" שלום") == "\u2068 שלום\u2069"
    assert columns("שלום") == columns(isolated("שלום")) == 4
    assert drawable("1: שלום") == "\u200e1: שלום" == drawable(drawable("1: שלום"))
