"""Sweeps that are killed, interrupted, repeated, shared or changed: nothing finished is lost, nothing is mixed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import RECURRENT, make, make_pairs

from interp.edits import Edit, Variant
from interp.errors import ConfigError, OutputError, SweepInterrupted, UnknownName
from interp.sweeps import plan as plans
from interp.sweeps import progress
from interp.sweeps.run_chunk import Job
from interp.sweeps.sweep import plan_sweep, sweep

TESTS = Path(__file__).parents[1]
HEADS = [
    Variant([Edit("z", {"layer": layer, "head": head})], {"head": f"{layer}.{head}"})
    for layer in (0, 1)
    for head in range(4)
]

# Heads beside key-value heads: no row has a label in every column.
TWO_KINDS = [
    *(Variant([Edit("z", {"layer": 1, "head": head})], {"head": head}) for head in range(4)),
    *(Variant([Edit("k", {"layer": 0, "kv_head": head})], {"kv_head": head}) for head in range(2)),
]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plans.ROWS, "cpu", 12)


def stopping_after(count: int, error: type[BaseException]) -> Any:
    def run(job: Job, chunks: Sequence[int]) -> Generator[tuple[int, Any], None, None]:
        for done, index in enumerate(chunks):
            if done == count:
                raise error
            yield index, job.run(index)

    return run


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("variants", [HEADS, TWO_KINDS], ids=["heads", "heads and key-value heads"])
def test_an_interrupted_sweep_goes_on_with_the_same_bytes(variants: list[Variant], tmp_path: Path) -> None:
    model, pairs = make("llama_gqa"), make_pairs((6, 4, 7, 5), shared=1)
    whole = sweep(model, pairs, variants, out=tmp_path / "whole", progress=False)
    assert whole.equals(sweep(model, pairs, variants, progress=False))
    chunks = plan_sweep(model, pairs, variants).chunks
    assert len(chunks) > 6
    for count in (0, 1, len(chunks) // 2, len(chunks) - 1):
        out = tmp_path / str(count)
        with pytest.raises(SweepInterrupted, match="the same sweep with the same folder goes on from there") as stopped:
            sweep(model, pairs, variants, out=out, progress=False, executor=stopping_after(count, KeyboardInterrupt))
        kept = stopped.value.frame
        assert kept.equals(whole.loc[kept.index]) and len(kept) == sum(chunk.cells for chunk in chunks[:count])
        assert len(list(out.glob("chunk-*.parquet"))) == count
        assert sweep(model, pairs, variants, out=out, progress=False).equals(whole)
        assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("kind", RECURRENT)
def test_sweeps_of_state_space_layers_go_on_too(kind: str, tmp_path: Path) -> None:
    model, pairs = make(kind), make_pairs((6, 4, 7, 5), shared=1)
    sites = [name for name in model.hook_dict if "mixer" in name]
    variants = [Variant([Edit(name)], {"name": name}) for name in sites]
    whole = sweep(model, pairs, variants, out=tmp_path / "whole", progress=False)
    with pytest.raises(SweepInterrupted):
        sweep(
            model, pairs, variants, out=tmp_path / "cut", progress=False, executor=stopping_after(4, KeyboardInterrupt)
        )
    assert sweep(model, pairs, variants, out=tmp_path / "cut", progress=False).equals(whole)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_a_finished_sweep_is_read_and_not_run(tmp_path: Path) -> None:
    model, pairs = make("gpt2"), make_pairs((6, 4))
    whole = sweep(model, pairs, HEADS, out=tmp_path, progress=False)
    again = sweep(model, pairs, HEADS, out=tmp_path, progress=False, executor=stopping_after(0, ZeroDivisionError))
    assert again.equals(whole)


def test_the_plan_that_was_stored_first_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = make("gpt2"), make_pairs((6, 4, 5))
    whole = sweep(model, pairs, HEADS, out=tmp_path / "whole", progress=False)
    with pytest.raises(SweepInterrupted):
        sweep(model, pairs, HEADS, out=tmp_path / "cut", progress=False, executor=stopping_after(3, KeyboardInterrupt))
    monkeypatch.setitem(plans.ROWS, "cpu", 1000)  # as on a machine with more memory
    assert sweep(model, pairs, HEADS, out=tmp_path / "cut", progress=False).equals(whole)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_an_error_in_the_middle_keeps_what_was_finished(tmp_path: Path) -> None:
    model, pairs = make("gpt2"), make_pairs((6, 4, 5))
    with pytest.raises(ZeroDivisionError):
        sweep(model, pairs, HEADS, out=tmp_path, progress=False, executor=stopping_after(3, ZeroDivisionError))
    assert len(list(tmp_path.glob("chunk-*.parquet"))) == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metric": "prob"}, "metric"),
        ({"base": "clean", "source": "corrupt"}, "sides"),
        ({"variants": HEADS[1:]}, "variants"),
        ({"variants": [Variant(v.edits, {"head": 0}) for v in HEADS]}, "variants"),
        ({"pairs": make_pairs((6, 4), seed=1)}, "prompts"),
        ({"model": make("gpt2", seed=4)}, "model"),
        ({"model": make("gpt2").double()}, "device"),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {"model": make("gpt2"), "pairs": make_pairs((6, 4)), "variants": HEADS}
    sweep(**given, out=tmp_path, progress=False)
    before = content(tmp_path)
    with pytest.raises(OutputError, match=f"holds another sweep: .*{told}"):
        sweep(**{**given, **change}, out=tmp_path, progress=False)
    assert content(tmp_path) == before


def test_a_weight_that_changed_is_noticed(tmp_path: Path) -> None:
    model, pairs = make("gpt2"), make_pairs((6, 4))
    sweep(model, pairs, HEADS, out=tmp_path, progress=False)
    with torch.no_grad():
        model.block(1).attn.W_z[0, 0] += 1e-3
    with pytest.raises(OutputError, match="model"):
        sweep(model, pairs, HEADS, out=tmp_path, progress=False)


def test_what_a_journal_cannot_know_is_refused(tmp_path: Path) -> None:
    model, pairs = make("gpt2"), make_pairs((6, 4))
    with model.hooks([("blocks.0.hook_mlp_out", lambda value, hook: 0 * value)]):
        with pytest.raises(ConfigError, match="hooks are attached"):
            sweep(model, pairs, HEADS, out=tmp_path, progress=False)
        model(pairs.clean)
    with pytest.raises(UnknownName, match="no executor matches 'rai'; did you mean 'ray'"):
        sweep(model, pairs, HEADS, executor="rai")


def test_damage_is_computed_again(tmp_path: Path) -> None:
    model, pairs = make("gpt2"), make_pairs((6, 4))
    whole = sweep(model, pairs, HEADS, out=tmp_path, progress=False)
    before = content(tmp_path)
    path = sorted(tmp_path.glob("chunk-*.parquet"))[2]
    path.write_bytes(path.read_bytes()[:100])
    assert sweep(model, pairs, HEADS, out=tmp_path, progress=False).equals(whole)
    assert content(tmp_path) == before


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[2])
from makers import make, make_pairs
from interp.edits import Edit, Variant
from interp.sweeps import plan as plans
from interp.sweeps.sweep import sweep
import torch
torch.set_num_threads(1)
plans.ROWS["cpu"] = 12
model, pairs = make("llama_gqa", n_layers=4), make_pairs((7, 7, 5, 6) * 2)
cells = [Variant([Edit("z", {"layer": l, "head": h, "pos": p})], {"l": l, "h": h, "p": p})
         for l in range(4) for h in range(4) for p in range(5)]
frame = sweep(model, pairs, cells, out=sys.argv[1], progress=False)
frame.to_csv(sys.argv[1] + ".csv", index=False)
print("done")
"""


def start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(out), str(TESTS)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(out: Path, chunks: int, process: subprocess.Popen[str]) -> None:
    while len(list(out.glob("chunk-*.parquet"))) < chunks and process.poll() is None:
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_and_run_again_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    told = start(whole).communicate(timeout=300)
    assert told[0] == "done\n", told[1]
    total = len(list(whole.glob("chunk-*.parquet")))
    for chunks in (1, total // 2):
        process = start(cut)
        wait_for(cut, chunks, process)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    process = start(cut)
    wait_for(cut, 2 * total // 3, process)
    process.send_signal(signal.SIGINT)
    assert "SweepInterrupted" in process.communicate(timeout=60)[1]
    assert len(list(cut.glob("chunk-*.parquet"))) < total
    assert start(cut).communicate(timeout=300)[0] == told[0]
    assert content(cut) == content(whole)
    assert cut.with_suffix(".csv").read_bytes() == whole.with_suffix(".csv").read_bytes()


@pytest.mark.slow
def test_two_processes_on_one_folder(tmp_path: Path) -> None:
    both = [start(tmp_path / "shared") for _ in range(2)]
    for process in both:
        told = process.communicate(timeout=300)
        assert process.returncode == 0, told[1]
    assert start(tmp_path / "alone").communicate(timeout=300)[0] == "done\n"
    assert content(tmp_path / "shared") == content(tmp_path / "alone")
    assert (tmp_path / "shared.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_finished(tmp_path: Path) -> None:
    program = """
import resource, signal
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
"""
    command = [sys.executable, "-c", program + PROGRAM, str(tmp_path / "full"), str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "OutputError" in done.stderr
    assert not list((tmp_path / "full").glob(".*.partial"))


def test_progress_counts_cells_and_is_quiet_when_told(capsys: pytest.CaptureFixture[str]) -> None:
    model, pairs = make("gpt2"), make_pairs((6, 4), shared=2)
    cells = [Variant([Edit("resid_pre", {"layer": layer, "pos": p})]) for layer in (0, 1) for p in range(4)]
    sweep(model, pairs, cells, progress=None)
    sweep(model, pairs, cells, progress=False)
    assert capsys.readouterr().err == ""
    sweep(model, pairs, cells, progress=True)
    told = capsys.readouterr().err
    assert "16/16 cells" in told and "100%" in told


def test_time_left_is_judged_by_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_sweep(make("gpt2"), make_pairs((6, 4)), HEADS)
    now = [1000.0]
    monkeypatch.setattr(progress.time, "time", lambda: now[0])
    with progress.progress_bar(plan, range(len(plan.chunks)), True) as bar:
        bar.bar.start_t = 1000.0
        now[0] += 10
        bar.finish(1)
        told = bar.bar.format_dict
        spent, left = plan.chunks[1].operations, plan.operations - plan.chunks[1].operations
        assert (told["total"] - told["n"]) / told["rate"] == pytest.approx(10 * left / spent)
        assert bar.done == plan.chunks[1].cells == bar.bar.n
