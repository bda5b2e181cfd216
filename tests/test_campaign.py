"""The campaign's own judgement: what is planted is found, and called what it is."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import time
from pathlib import Path
from random import Random

import pytest
import torch
from campaign import damage, gguf_layout, table
from campaign.lines import counted
from campaign.trial import KINDS, Case, Ended, Limits, Outcome, attempt, tell
from gguf_files import GGUF_LLAMA, llama_weights, write
from makers import make

from interp.errors import InterpError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the campaign forks and reads /proc")
LIMITS = Limits(processor=1, seconds=4, memory=1 << 29)


def refused() -> Outcome:
    raise InterpError("no such thing")


def raw() -> Outcome:
    tell("a table")
    return Outcome(str({}["absent"]), "")


def crash() -> Outcome:
    tell("a crash")
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def busy() -> Outcome:
    tell("a loop")
    while True:
        pass


def asleep() -> Outcome:
    tell("a pipe")
    os.mkfifo("pipe")
    Path("pipe").read_bytes()
    raise AssertionError


def memory() -> Outcome:
    return Outcome("right", str(torch.zeros(1 << 30).sum()))


def exits() -> Outcome:
    os._exit(3)


def writes() -> Outcome:
    assert not list(Path().iterdir())  # a folder of its own
    Path("file").write_text("x")
    return Outcome("right", f"in {Path.cwd().name}")


def different() -> Outcome:
    model = make("gpt2")
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = model(tokens)
        model.block(1).attn.W_z[0, 0] += 1e-3
        return Outcome("right" if torch.equal(model(tokens), before) else "different", "a weight")


PLANTED: list[tuple[Case, str]] = [
    *[(refused, "refused"), (raw, "raw"), (crash, "crash"), (writes, "right"), (busy, "hang"), (writes, "right")],
    *[(asleep, "hang"), (memory, "memory"), (exits, "crash"), (different, "different"), (writes, "right")],
]


@pytest.mark.parametrize("together", [1, 4])
def test_what_is_planted_is_called_what_it_is(together: int) -> None:
    numbers = iter(range(len(PLANTED)))
    ended = list(attempt(numbers, lambda number: PLANTED[number][0], jobs=2, together=together, limits=LIMITS))
    found = {one.number: one.outcome for one in ended}
    assert len(ended) == len(found)
    assert {number: outcome.kind for number, outcome in found.items()} == {
        number: kind for number, (_, kind) in enumerate(PLANTED)
    }
    assert found[0].detail == "InterpError: no such thing"
    assert found[1].title == "a table" and found[1].detail.startswith("KeyError: 'absent'")
    assert "SIGSEGV" in found[2].detail and found[4].title == "a loop" and found[6].title == "a pipe"
    assert set(KINDS) >= {kind for _, kind in PLANTED}


def test_nothing_is_begun_when_the_time_is_up() -> None:
    assert not list(attempt(iter(range(5)), lambda number: writes, until=time.monotonic()))


def test_what_went_wrong_beside_others_is_tried_again_alone() -> None:
    """A case that leaves something behind, and so spoils the next one of its process, is not to blame it."""
    spoilt: list[int] = []

    def case(number: int) -> Case:
        def run() -> Outcome:
            kind = "different" if spoilt and number == 1 else "right"
            spoilt.append(number)
            return Outcome(kind, "")

        return run

    ended = list(attempt(iter(range(3)), case, together=3))
    assert {one.number: one.outcome.kind for one in ended} == {0: "right", 1: "right", 2: "right"}


def test_a_moment_is_a_line() -> None:
    model, tokens = make("gpt2"), torch.tensor([[1, 2, 3]])
    model(tokens)  # what the first forward sets up is not counted
    gc.collect()  # nor what earlier tests have left, whose end may be a line of ours
    with counted() as whole:
        model(tokens)
    assert whole.lines > 100
    for at in (1, whole.lines // 2, whole.lines):
        with pytest.raises(KeyboardInterrupt), counted(at, lambda: signal.raise_signal(signal.SIGINT)) as reached:
            model(tokens)
        assert reached.lines == at
    with counted() as again:
        model(tokens)
    assert again.lines == whole.lines


def test_every_byte_of_a_gguf_file_is_structure_or_a_value(tmp_path: Path) -> None:
    content = write(tmp_path / "a.gguf", "llama", GGUF_LLAMA, llama_weights()[0]).read_bytes()
    here = gguf_layout.layout(content)
    covered = sorted(here.structure + here.values)
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(covered[:-1]))
    assert 0 <= covered[-1][0] - covered[-2][1] < 32 and covered[-1][1] == len(content) and covered[0][0] == 0
    same = gguf_layout.with_entry(gguf_layout.without_key(content, "llama.block_count"), "x", 4, bytes(4))
    assert gguf_layout.layout(same).keys.keys() == (here.keys.keys() - {"llama.block_count"}) | {"x"}
    assert same[gguf_layout.layout(same).data :] == content[here.data :]


def test_a_case_is_made_from_its_seed_and_number(tmp_path: Path) -> None:
    said = []
    for name in ("one", "two"):
        file = tmp_path / name / "config.json"
        file.parent.mkdir()
        said.append([])
        for at, way in enumerate([damage.text_file, damage.json_value, damage.nonsense, damage.whole_file]):
            file.write_text('{"a": 1, "b": [2, {"c": "x"}], "rms_norm_eps": 1e-5}')
            said[-1].append(way(Random(f"{at}"), file))
    assert said[0] == said[1]


def test_the_page_gets_the_table(tmp_path: Path) -> None:
    counts = table.Counts()
    counts.add("files", Ended(3, Outcome("refused", "x"), 0.1))
    assert counts.goals_met()
    counts.add("files", Ended(4, Outcome("raw", "a file", "KeyError: 'x'\ninterp/one.py:3"), 0.1))
    assert not counts.goals_met()
    page, parts = tmp_path / "page.md", {"files": (1.0, "damaged files")}
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    for _ in range(2):
        table.into_page(page, counts, {"files": 2.0}, parts, seed=7)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| damaged files | 2 | 1 | 0 | 0 | 0 | 0 | 1 | 0 | 0 | 0 | 2 |" in text and text.count("Seed 7") == 1
    assert "--only files --seed 7 --case 4" in table.findings(counts, 7)
