"""Bars on stderr: shown where they are wanted, and in the unit of what is counted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


PROGRAM = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from makers import make, make_pairs
from tqdm import tqdm
import interp
tqdm.get_lock()  # made before the fork, as by any bar
if (child := os.fork()) == 0:
    tqdm.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
edit = interp.Edit("z", {"layer": 1, "head": 0})
print(len(interp.sweep(make("gpt2"), make_pairs((4, 4)), [interp.Variant([edit])], progress=False)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_killed_process_that_held_the_lock_of_all_bars_stops_nobody() -> None:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "2\n", done.stderr
