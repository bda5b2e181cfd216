"""Bars on stderr: shown where they are wanted, and in the unit of what is counted."""

from __future__ import annotations

import pytest

from interp.progress import counting


@pytest.mark.parametrize("progress", [None, False])
def test_without_a_terminal_nothing_is_shown_unless_it_is_asked_for(
    progress: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(counting("abc", desc="letters", progress=progress)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("rate", [True, False])
def test_a_bar_says_how_many_of_what_are_done(rate: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with counting(desc="reading", total=4, unit=" pages", rate=rate, progress=True) as bar:
        bar.set_postfix_str("of two books")
        bar.update(4)
    told = capsys.readouterr()
    last = told.err.split("\r")[-1]
    assert last.startswith("reading: 100%") and "4/4" in last and "of two books" in last and told.out == ""
    assert ("4/4 pages [" in last) != rate and ("pages/s" in last) == rate
