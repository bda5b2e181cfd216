"""The command line as a user meets it: tables, files, one line and exit code 2 for what is refused."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import re
import runpy
import sys
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from analyses.cli import main, study_names
from analyses.report import chosen_studies


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def ok(*words: object) -> Result:
    result = call(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def of_prompts(study: str) -> bool:
    """Whether a study takes a model and prompts, and not known models of its own."""
    return "task" in {option.name for option in command_of(study).params}


def command_of(study: str) -> click.Command:
    command = importlib.import_module(f"analyses.{study.replace('-', '_')}").main
    assert isinstance(command, click.Command)
    return command


@pytest.mark.parametrize("study", [name.replace("_", "-") for name in study_names()])
def test_every_study_prints_its_table_and_writes_its_files(study: str, talker: Path, tmp_path: Path) -> None:
    if not of_prompts(study):
        pytest.skip("has tests of its own: it takes no prompts")
    base, out = ["run", study, "--model", talker, "--n", 4, "--quiet"], tmp_path / "new" / "folder"
    lines = [json.loads(line) for line in ok(*base, "--out", out, "--json").stdout.splitlines()]
    files = {path.name for path in out.iterdir()}
    run = importlib.import_module(f"analyses.{study.replace('-', '_')}").run
    journal = "circuits" if study == "circuit" else f"{study}.sweep"
    kept = {journal} if "out" in inspect.signature(run).parameters else set()
    assert files == {f"{study}.{kind}" for kind in ("pdf", "svg", "png", "csv", "manifest.json")} | kept
    saved = pd.read_csv(out / f"{study}.csv")
    assert len(lines) == len(saved) > 3
    expected = [float("nan") if line["value"] is None else line["value"] for line in lines]
    assert saved["value"].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True)
    manifest = json.loads((out / f"{study}.manifest.json").read_text())
    assert manifest["study"] == study and manifest["prompts"] and manifest["versions"]["torch"]


def test_a_study_prints_a_summary_or_every_measurement(talker: Path) -> None:
    base = ["run", "logit-lens", "--model", talker, "--n", 3, "--quiet"]
    assert "ci_low" in ok(*base).stdout
    frame = pd.read_csv(io.StringIO(ok(*base, "--csv").stdout))
    lines = [json.loads(line) for line in ok(*base, "--json").stdout.splitlines()]
    assert frame["value"].tolist() == pytest.approx([line["value"] for line in lines], rel=1e-5, abs=1e-6)


def test_a_prompt_of_ones_own(talker: Path) -> None:
    words = ["run", "logit-lens", "--model", talker, "--prompt", "Mary saw John and", "--csv"]
    frame = pd.read_csv(io.StringIO(ok(*words).stdout))
    final = frame[(frame["site"] == "resid_post") & (frame["metric"] == "rank")]
    assert final["value"].tolist() == [0]  # the answer is the model's own first choice
    named = pd.read_csv(io.StringIO(ok(*words, "--answer", " John").stdout))
    assert not named[named["metric"] == "prob"]["value"].equals(frame[frame["metric"] == "prob"]["value"])
    pair = ["--prompt", "Mary saw Paul", "--corrupt", "Mary saw John", "--answer", " Mary", "--wrong", " John"]
    patched = ok(
        "run", "activation-patching", "--model", talker, "--site", "resid_pre", "--by", "pos", "--quiet", *pair
    )
    assert "resid_pre" in patched.stdout
    lens = ok("lens", "Mary saw John and", "--model", talker)
    assert lens.stdout.splitlines()[0].split()[:3] == ["layer", "site", "top_1"]


def test_a_report_is_complete_and_replaces_an_earlier_one(talker: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    base = ["report", "ioi", "--model", talker, "--out", out, "--quiet"]
    ok(*base, "--n", 3, "--study", "logit-lens")
    result = ok(*base, "--n", 4)
    assert Path(result.stdout.strip()) == out / "index.html"
    page, manifest = (out / "index.html").read_text(), json.loads((out / "manifest.json").read_text())
    assert "Content-Security-Policy" in page and not re.search(r"(?:src|href)=.https?:", page)
    modules = chosen_studies()
    assert list(manifest["seconds"]) == ["load", "behaviour", *(m.__name__.split(".")[1] for m in modules), "checks"]
    assert manifest["not_made"] == {} and page.count("<h2 id=") == len(modules) + 3  # prompts, checks, provenance
    stems = {path.stem for path in (out / "figures").iterdir()}
    assert stems == {figure["name"] for figure in manifest["report"]["figures"]} and len(stems) > len(modules)
    assert all((out / "figures" / f"{stem}.{kind}").exists() for stem in stems for kind in ("pdf", "svg", "png", "csv"))
    assert manifest["weights"]["sha256"] and manifest["metric"]
    before = (out / "manifest.json").read_bytes()
    assert call("report", "ioi", "--model", talker, "--out", out, "--n", 10**6, "--quiet").exit_code == 2
    assert (out / "manifest.json").read_bytes() == before


def test_models_are_listed() -> None:
    assert "smollm2-135m" in ok("models").stdout
    assert {json.loads(line)["name"] for line in ok("models", "--json").stdout.splitlines()} == {"smollm2-135m", "toy"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["report", "ioii"], "no task matches 'ioii'; did you mean 'ioi'"),
        (["report", "ioi", "--model", "smollm2"], "smollm2-135m"),
        (["report", "ioi", "--model", "toy"], "no tokenizer"),
        (["report", "ioi", "--out", "/proc/nowhere"], "/proc/nowhere"),
        (["run", "logit-lense"], "did you mean 'logit-lens'"),
        (["run", "logit-lens", "--model", "{talker}", "--prompt", ""], "empty"),
        (["run", "logit-lens", "--model", "{talker}", "--prompt", "Mary " * 199], "context of 128"),
        (["run", "logit-lens", "--model", "{talker}", "--prompt", "Mary", "--answer", " Nebuchad"], "not one token"),
        (["run", "logit-lens", "--model", "{talker}", "--answer", " Mary"], "belong to --prompt"),
        (["run", "logit-lens", "--model", "{talker}", "--prompt", "Mary", "--json", "--csv"], "choose one"),
        (["run", "logit-lens", "--model", "{talker}", "--dtype", "float31"], "did you mean 'float3"),
        (["run", "activation-patching", "--model", "{talker}", "--site", "hook_zz"], "no site matches"),
        (["run", "activation-patching", "--model", "{talker}", "--metric", "logit_dif"], "did you mean 'logit_diff'"),
        (["run", "attention-patterns", "--model", "{talker}", "--head", "L2H0"], "the nearest is L1H0"),
        (["run", "activation-patching", "--model", "{talker}", "--prompt", "Mary saw", "--corrupt", "Mary"], "length"),
        (["run", "logit-lens", "--model", "{talker}", "--out", "/proc/nowhere"], "cannot write"),
        (["run", "logit-lens", "--pos", "middle"], "'last', 'all'"),
        (["run", "logit-lens", "--max-memory", "8GiB"], "No such option"),
        (["run", "logit-lens", "--dry-run"], "No such option"),
        (["run", "activation-patching", "--max-memory", "8G"], "'8G' is no size of memory"),
        (["run", "activation-patching", "--max-memory", "8kB"], "max_memory=8,000 bytes is too little"),
        (["run", "activation-patching", "--executor", "rai"], "'local', 'ray'"),
        (["run", "activation-patching", "--address", "auto"], "goes with --executor ray"),
        (["run", "activation-patching", "--executor", "ray", "--address", "nowhere"], "'host:port' of its head node"),
        (["run", "activation-patching", "--dry-run", "--csv"], "a plan is no CSV"),
        (["lens", ""], "empty"),
    ],
)  # fmt: skip
def test_what_is_refused_ends_in_one_line_and_exit_code_2(words: list[str], says: str, talker: Path) -> None:
    filled = [word.replace("{talker}", str(talker)) for word in words]
    if "--model" not in filled and filled[0] != "report" and filled[1] != "logit-lense":
        filled += ["--model", str(talker)]
    result = call(*filled)
    assert result.exit_code == 2, (result.output, result.exception)
    assert says in result.stderr and "Traceback" not in result.output and not result.stdout


def test_a_study_runs_as_a_module_and_refuses_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["analyses/logit_lens.py", *words])
        monkeypatch.delitem(sys.modules, "analyses.logit_lens", raising=False)  # as a process begins
        with pytest.raises(SystemExit) as caught:
            runpy.run_module("analyses.logit_lens", run_name="__main__", alter_sys=True)
        return caught.value.code, *capsys.readouterr()

    code, _, told = run("--model", "nonesuch")
    assert code == 2 and "Traceback" not in told and "nonesuch" in told
    assert told.strip().count("\n") == 0, told
    code, shown, _ = run("--help")
    assert code == 0 and "Logit lens" in shown


def test_a_study_by_position_takes_prompts_that_line_up(talker: Path) -> None:
    words = ["run", "activation-patching", "--n", 3, "--model", talker, "--csv"]
    done = ok(*words, "--granularity", "resid_pre")
    frame = pd.read_csv(io.StringIO(done.stdout))
    assert frame.groupby("prompt")["pos"].nunique().tolist() == [frame["pos"].max() + 1] * 3
    assert f"--aligned: 3 prompts of {frame['pos'].max() + 1} tokens whose positions line up" in done.stderr
    typed = ok(*words, "--granularity", "resid_pre", "--aligned")
    assert typed.stdout == done.stdout and "--aligned" not in typed.stderr
    assert not ok(*words, "--by", "pos", "--quiet").stderr
    roles = ok(*words, "--by", "role")
    assert "--aligned" not in roles.stderr and roles.stdout != ok(*words, "--by", "role", "--aligned").stdout
