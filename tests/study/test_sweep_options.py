"""The options of studies that sweep, by themselves and as a user of the command line meets them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from makers import make
from shown import call, ok

from interp.errors import ConfigError
from interp.prompts.pairs import PromptPairs
from interp.study.sweep_options import (
    SweepOptions,
    chosen_executor,
    in_folder,
    parse_bytes,
    show_plan,
    sweep_options,
)
from interp.sweeps import plan as plans
from interp.sweeps.plan import Plan
from interp.sweeps.ray_executor import RayExecutor
from interp.sweeps.run_chunk import Job
from interp.sweeps.sweep import plan_sweep
from interp.variants.granularity import variants


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("8GiB", 8 * 2**30),
        (" 8 gib ", 8 * 2**30),
        ("500MB", 500_000_000),
        ("1.5kB", 1500),
        ("0.5KiB", 512),
        ("2TB", 2 * 10**12),
        ("64 B", 64),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_are_read_as_they_are_written(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "8G", "8Gib/s", "-1", "0", "0.5", "1e9", "nan", "8 8GiB", "1.2.3MB", "٣GiB"]
)
def test_what_is_no_size_is_refused_with_the_units_there_are(text: str) -> None:
    with pytest.raises(ConfigError, match=f"{re.escape(repr(text))} is not a size .* kB, MB, .* TiB, such as 8GiB"):
        parse_bytes(text)


def names(takes: set[str], *, dry_run: bool) -> set[str]:
    command = click.command()(sweep_options(takes, dry_run=dry_run)(lambda: None))
    return {option for param in command.params for option in param.opts}


def test_a_study_has_the_options_of_what_it_takes() -> None:
    assert names({"progress", "metric"}, dry_run=False) == set()
    assert names({"max_memory"}, dry_run=False) == {"--max-memory"}
    assert names({"executor"}, dry_run=True) == {"--executor", "--address", "--dry-run"}


def test_each_of_several_sweeps_has_a_folder_of_its_own(tmp_path: Path) -> None:
    given: SweepOptions = {"progress": False, "out": str(tmp_path)}
    assert in_folder(given, "single") == {"progress": False, "out": tmp_path / "single"}
    assert given["out"] == str(tmp_path)
    assert in_folder({"progress": False}, "single") == {"progress": False}


def test_an_executor_is_chosen_by_name_and_address() -> None:
    assert chosen_executor(None, None) == chosen_executor("local", None) == "local"
    assert chosen_executor("ray", None) == RayExecutor()
    assert chosen_executor("ray", "10.0.0.1:6379") == RayExecutor(address="10.0.0.1:6379")
    for name in (None, "local"):
        with pytest.raises(ConfigError, match="goes with --executor ray"):
            chosen_executor(name, "auto")


@pytest.fixture(scope="module")
def plan() -> Plan:
    model, pairs = make("gpt2"), PromptPairs.from_tokens([[1, 2, 3]], [[1, 4, 3]], answers=[(5, 6)])
    return plan_sweep(model, pairs, variants(model, pairs, site="z", by="head,pos"), max_memory=10**6)


def test_a_plan_is_shown_with_its_time(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(plan, make("gpt2"), as_json=False)
    shown = capsys.readouterr()
    assert shown.out.startswith(str(plan)) and not shown.err
    assert re.fullmatch(r"about [\d.e-]+ s in one process here \(1 thread\)", shown.out.splitlines()[-1])


def test_a_plan_in_json_has_the_same_numbers(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(plan, make("gpt2"), as_json=True)
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert (told["variants"], told["prompts"], told["cells"]) == (24, 1, 24)
    assert told["idle_cells"] == plan.idle >= 8  # position 0 is before the change
    assert told["chunks"] == len(plan.chunks) - 1 and told["operations"] == plan.operations
    assert 0 < told["memory"] <= told["max_memory"] == 10**6 and told["seconds"] > 0


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(0.0123, "0.012 s"), (42.4, "42 s"), (150, "2.5 min"), (5000, "83 min"), (10**5, "28 h"), (10**7, "2,778 h")],
)
def test_a_time_is_told_in_the_unit_that_keeps_it_short(
    seconds: float, says: str, plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("interp.sweeps.plan.expected_seconds", lambda plan, model: seconds)
    show_plan(plan, make("gpt2"), as_json=False)
    assert f"about {says} in" in capsys.readouterr().out


PATCHING = ("run", "activation-patching", "--n", 3, "--quiet")


def test_a_dry_run_prints_a_plan_and_runs_nothing(
    talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs(job: Job, index: int) -> None:
        raise AssertionError("something was run")

    monkeypatch.setattr(Job, "run", runs)
    words = [
        *PATCHING,
        "--model",
        talker,
        "--dry-run",
        "--out",
        tmp_path / "out",
        "--by",
        "role",
        "--site",
        "resid_pre,z",
    ]
    shown = ok(*words, "--max-memory", "20MB").stdout
    assert "20 variants x 3 prompts = 60 cells" in shown and "of 19 MiB allowed" in shown and "in one process" in shown
    assert json.loads(ok(*words, "--json").stdout)["cells"] == 60
    assert not list(tmp_path.iterdir())


def test_memory_executor_and_address_reach_the_sweep(
    talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def here(self: RayExecutor, job: Job, chunks: list[int]) -> Iterator[tuple[int, Any]]:
        used.append((self.address, job.plan.max_memory))
        for index in chunks:
            yield index, job.run(index)

    monkeypatch.setattr(RayExecutor, "__call__", here)
    options = ["--executor", "ray", "--address", "head:6379", "--max-memory", "20MB"]
    done = ok(*PATCHING, "--model", talker, "--csv", "--out", tmp_path, *options)
    assert used == [("head:6379", 20_000_000)]
    assert done.stdout == ok(*PATCHING, "--model", talker, "--csv").stdout
    typed = json.loads((tmp_path / "activation-patching.manifest.json").read_text())["options"]
    assert (typed["executor"], typed["address"], typed["max_memory"]) == ("ray", "head:6379", 20_000_000)


def test_ctrl_c_says_in_one_line_how_to_go_on(talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plans.ROWS, "cpu", 128)
    words = [*PATCHING, "--model", talker, "--granularity", "attn_head_out_by_pos"]
    run, parts = Job.run, []

    def interrupted(job: Job, index: int) -> Any:
        parts.append(index)
        if len(parts) % 4 == 0:
            raise KeyboardInterrupt
        return run(job, index)

    monkeypatch.setattr(Job, "run", interrupted)
    for out, says in (([], "with out=FOLDER .*--out FOLDER"), (["--out", tmp_path], "kept in .*run the same command")):
        done = call(*words, *out)
        assert done.exit_code == 130 and not done.stdout, (done.output, done.exception)
        (line,) = done.stderr.splitlines()
        assert re.match(rf"interrupted after [\d,]+ of 1,176 cells.*{says}", line)
    assert [path.name for path in tmp_path.iterdir()] == ["activation-patching.sweep"]
    monkeypatch.setattr(Job, "run", run)
    done = ok(*words, "--out", tmp_path)
    assert (tmp_path / "activation-patching.csv").exists() and "ci_low" in done.stdout


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--n", 4], "prompts (was"),
        (["--seed", 1], "prompts (was"),
        (["--site", "q"], "variants (was"),
        (["--metric", "kl"], "metric (was"),
        (["--direction", "noise"], "sides (was clean into corrupt, is corrupt into clean)"),
        (["--dtype", "bfloat16"], "device (was cpu, torch.float32"),
    ],
)
def test_a_folder_with_another_sweep_is_refused_and_left_as_it_is(
    change: list[object], says: str, talker: Path, tmp_path: Path
) -> None:
    words = [*PATCHING, "--model", talker, "--out", tmp_path]
    ok(*words)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = call(*words, *change)
    assert done.exit_code == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert f"{tmp_path}/activation-patching.sweep holds another sweep: " in line and says in line
    assert "give another --out, or remove the folder" in line
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert ok(*words, "--max-memory", "1GiB", "--json").exit_code == 0  # how it is run makes no other sweep


SWEEP = ("--granularity", "attn_head_by_pos_every", "--n", "8", "--max-memory", "1MB")


def begin(talker: Path, out: Path) -> subprocess.Popen[str]:
    """The command in a process of its own, with one thread, so that its numbers are always the same."""
    words = ["run", "activation-patching", "--model", str(talker), *SWEEP, "--quiet", "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "analyses.cli", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def uninterrupted(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    with begin(talker, out) as process:
        shown, told = process.communicate(timeout=120)
    assert process.returncode == 0 and "ci_low" in shown, told
    return out


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(talker: Path, tmp_path: Path, uninterrupted: Path) -> None:
    journal = tmp_path / "activation-patching.sweep"
    with begin(talker, tmp_path) as process:
        while len(list(journal.glob("chunk-*.parquet"))) < 5 and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        shown, told = process.communicate(timeout=60)
    kept = {path: path.stat().st_mtime_ns for path in journal.glob("chunk-*.parquet")}
    total = json.loads((journal / "manifest.json").read_text())["plan"]["chunks"]
    assert 5 <= len(kept) < total and not (tmp_path / "activation-patching.csv").exists() and not shown
    assert process.returncode == -signal.SIGKILL and not told
    with begin(talker, tmp_path) as process:
        shown, told = process.communicate(timeout=120)
    assert process.returncode == 0 and "ci_low" in shown, told
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())  # nothing was run twice
    for name in ("activation-patching.csv", "activation-patching.svg"):
        assert (tmp_path / name).read_bytes() == (uninterrupted / name).read_bytes()
