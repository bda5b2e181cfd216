"""The command line as a user meets it: tables, files, one line and exit code 2 for what is refused."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pytest
from shown import call, ok

import analyses
import interp
from analyses.cli import study_names
from analyses.report import chosen_studies
from interp.study.refusals import RefusedError, refusals
from interp.ui.terminal import show
from interp.weights.huggingface.families import FAMILIES


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
    names = [module.__name__.rpartition(".")[2] for module in modules]
    assert list(manifest["seconds"]) == ["load", "behaviour", *names, "checks", "mechanism"]
    others = ["mechanism", "one-part-title", "steps", "prompts", "checks", "conclusion"]
    others += ["appendix-of-this-report", "provenance-of-this-report"]
    heads = re.findall(r'<h2 id="([^"]+)"', page)
    assert manifest["not_made"] == {} and set(others) < set(heads) and len(heads) == len(modules) + len(others)
    stems = {path.stem for path in (out / "figures").iterdir()}
    assert stems == {figure["name"] for figure in manifest["report"]["figures"]} and len(stems) > len(modules)
    assert all((out / "figures" / f"{stem}.{kind}").exists() for stem in stems for kind in ("pdf", "svg", "png", "csv"))
    assert manifest["weights"]["sha256"] and manifest["metric"]
    before = (out / "manifest.json").read_bytes()
    assert call("report", "ioi", "--model", talker, "--out", out, "--n", 10**6, "--quiet").exit_code == 2
    assert (out / "manifest.json").read_bytes() == before


def test_models_are_listed() -> None:
    assert "smollm2-135m" in ok("models").stdout
    listed = {json.loads(line)["name"] for line in ok("models", "--json").stdout.splitlines()}
    assert listed == {"smollm2-135m", "gemma-3-270m", "toy"}


def test_families_are_listed() -> None:
    listed = [json.loads(line) for line in ok("models", "--all", "--json").stdout.splitlines()]
    assert [row["model_type"] for row in listed] == list(FAMILIES)
    assert {"LlamaForCausalLM", "MambaForCausalLM"} < {row["checked_against"] for row in listed}
    assert "learned positions" in ok("models", "--all").stdout


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
        (["run", "activation-patching", "--max-memory", "8G"], "'8G' is not a size of memory"),
        (["run", "activation-patching", "--max-memory", "8kB"], "max_memory=8,000 bytes is too little"),
        (["run", "activation-patching", "--executor", "rai"], "'local', 'ray'"),
        (["run", "activation-patching", "--address", "auto"], "goes with --executor ray"),
        (["run", "activation-patching", "--executor", "ray", "--address", "nowhere"], "'host:port' of its head node"),
        (["run", "activation-patching", "--dry-run", "--csv"], "--dry-run cannot print CSV"),
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


def test_help_and_lists_come_without_what_is_slow() -> None:
    slow = ["torch", "numpy", "pandas", "matplotlib", "scipy", "transformers", "jinja2"]
    calls = [["--help"], ["run", "--help"], ["run", "-h"], ["lens", "--help"], ["report", "--help"], ["models"]]
    calls += [["models", "--json"], ["models", "--csv"]]
    program = (
        "import sys; from click.testing import CliRunner; from analyses.cli import main\n"
        f"for words in {calls}:\n"
        "    result = CliRunner().invoke(main, words); assert result.exit_code == 0, (words, result.output)\n"
        f"    print([name for name in {slow} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]"] * len(calls), done.stderr


def test_a_study_is_listed_by_its_docstring_and_imported_when_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = tmp_path / "used"
    (tmp_path / "my_own_study.py").write_text(
        f'"""Mine: what is it good for?\\n\\nMore."""\nimport pathlib\nimport click\n'
        f"pathlib.Path({str(used)!r}).touch()\n"
        "@click.command('my-own-study')\ndef main():\n    click.echo('it ran')\n"
    )
    monkeypatch.setattr("analyses.__path__", [*analyses.__path__, str(tmp_path)])
    shown = ok("run", "--help").stdout
    assert re.search(r"my-own-study +Mine: what is it good for", shown) and "activation-patching" in shown
    assert not used.exists()
    assert ok("run", "my-own-study").stdout == "it ran\n" and used.exists()
    sys.modules.pop("analyses.my_own_study")


def test_a_long_table_loses_its_middle_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.DataFrame({"layer": range(61), "token": [f"t{at}" for at in range(61)], "value": [0.5] * 61})
    show(frame)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:21]] == [str(at) for at in range(20)]
    assert lines[21] == "... 21 of 61 rows left out here ..."
    assert [line.split()[0] for line in lines[22:]] == [str(at) for at in range(41, 61)]
    assert err == "21 of 61 rows left out in the middle: --csv prints every measurement\n"
    for most, rows in ((None, 61), (61, 61)):
        show(frame, most=most)
        assert capsys.readouterr().out.count("\n") == rows + 1


def test_the_quick_look_shows_every_layer(talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = pd.DataFrame({"layer": range(200), "top_1": ["x"] * 200})
    monkeypatch.setattr("analyses.logit_lens.top_tokens", lambda frame, answer: deep)
    done = ok("lens", "Mary saw John and", "--model", talker)
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [str(at) for at in range(200)]


def test_the_quick_look_shows_the_rank_of_an_answer(talker: Path) -> None:
    text, answer = "Mary saw John and", " Mary"
    shown = ok("lens", text, "--answer", answer, "--model", talker, "--csv").stdout
    table = pd.read_csv(io.StringIO(shown))
    assert list(table.columns)[:4] == ["layer", "site", "answer_rank", "answer_prob"]
    model = interp.load(talker, device="cpu")
    probs = model(model.to_tokens(text))[0, -1].detach().softmax(-1)
    own = probs[model.to_single_token(answer)]
    assert table["answer_rank"].iloc[-1] == int((probs > own).sum()) + 1
    assert table["answer_prob"].iloc[-1] == pytest.approx(float(own), rel=1e-4)
    assert "answer_rank" not in ok("lens", text, "--model", talker).stdout


@pytest.mark.parametrize("order", ["layer", "effect"])
def test_the_table_of_a_study_is_in_the_order_that_was_asked_for(talker: Path, order: str) -> None:
    base = ["run", "head-attribution", "--model", talker, "--n", 3, "--quiet"]
    lines = ok(*base, "--order", order).stdout.splitlines()
    assert ("strongest" in lines[0]) == (order == "layer") and len(lines) > 8
    head = lines[0].split()
    at = lines[0].index(" layer") + 1
    layers = [line[at : at + 5].strip() for line in lines[1:]]
    known = [int(layer) for layer in layers if layer]
    assert "layer" in head and (known == sorted(known)) == (order == "layer")


def test_a_table_for_the_eye_shows_what_cannot_be_seen_and_its_data_stay_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    odd = "a\u202eb\x1b[2J\nc"
    frame = pd.DataFrame({"token": [odd, "שלום", "中"], "value": [0.123456, float("nan"), 2.0], "n": [1, 22, 333]})
    show(frame)
    shown = "a<U+202E>b<U+001B>[2J⏎c"
    wide = len(shown)
    assert capsys.readouterr().out.splitlines() == [
        f"{'token':<{wide}}   value    n",
        f"{shown}  0.1235    1",
        "\u2068שלום\u2069" + " " * (wide - 4) + " " * 8 + "   22",
        "中" + " " * (wide - 2) + "       2  333",
    ]
    show(frame, as_json=True)
    assert json.loads(capsys.readouterr().out.splitlines()[0])["token"] == odd
    show(frame, as_csv=True)
    assert pd.read_csv(io.StringIO(capsys.readouterr().out))["token"][0] == odd


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "logit-lens", "--seed", str(2**70)], "'--seed': 1180591620717411303424 is not in the range"),
        (["run", "logit-lens", "--seed", "-1"], "'--seed': -1 is not in the range"),
        (["run", "logit-lens", "--n", "1.5"], "'--n': '1.5' is not a valid integer"),
        (["run", "logit-lens", "--n", "0"], "'--n': 0 is not in the range x>=1"),
        (["run", "logit-lens", "--n", "nan"], "'--n': 'nan' is not a valid integer"),
        (["run", "logit-lens", "--top", "0"], "'--top': 0 is not in the range x>=1"),
        (["run", "ablation", "--draws", "-1"], "'--draws': -1 is not in the range x>=0"),
        (["run", "circuit", "--tau", "nan"], "'--tau': nan is not a finite number above 0"),
        (["run", "probes", "--regularisation", "inf"], "'--regularisation': inf is not a finite number above 0"),
        (["run", "tuned-lens", "--lr", "-1"], "'--lr': -1 is not a finite number above 0"),
        (["run", "steering", "--strengths", "1,nan"], "'1,nan' is not a list of finite numbers"),
        (["run", "calibration", "--n", "0"], "'--n': 0 is not in the range"),
        (["run", "copying", "--steps", "0"], "'--steps': 0 is not in the range"),
        (["run", "logit-lens", "--device", "xx"], "device 'xx' cannot be used here"),
        (["run", "logit-lens", "--device", "meta"], "'meta' holds no numbers"),
        (["run", "logit-lens", "--task", "x" * 10**6], "no task matches"),
        (["run", "logit-lens", "--task", "x" * 5000 + ".csv"], "there is no data file"),
        (["run", "logit-lens", "--task", "x\x1b[2J"], "no task matches"),
        (["run", "logit-lens", "--out", "a\0b"], "cannot be a path: embedded null byte"),
        (["run", "logit-lens", "--out", "x" * 5000], "File name too long"),
        (["report", "ioi", "--out", "a\0b"], "cannot be a path: embedded null byte"),
        (["report", "ioi", "--out", "x" * 5000], "File name too long"),
        (["lens", "x", "--model", "~nobody-of-this-name/x"], "no model matches"),
        (["models", "--json", "--csv"], "choose one"),
    ],
)  # fmt: skip
def test_bad_values_end_in_a_short_refusal(words: list[str], says: str, talker: Path) -> None:
    own = {"--model"} & set(words) or words[0] == "models" or words[1] in ("calibration", "copying")
    result = call(*words, *([] if own else ["--model", talker]))
    assert result.exit_code == 2, (result.output, result.exception)
    assert says in result.stderr and "Traceback" not in result.output and not result.stdout
    assert len(result.stderr) < 3000 and "\x1b" not in result.stderr


@pytest.mark.parametrize("kind", ["file", "pipe", "folder"])
def test_what_stands_in_the_way_of_a_result_is_named(kind: str, talker: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (os.mkfifo if kind == "pipe" else os.mkdir)(out / "logit-lens.pdf")
    done = call("run", "logit-lens", "--model", talker, "--n", 2, "--quiet", "--out", out)
    assert done.exit_code == 2 and str(out) in done.stderr and "Traceback" not in done.output


def test_an_interrupt_ends_quietly_wherever_it_comes(talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    places = ("interp.loading.load.load", "interp.study.command.load_prompts", "analyses.cli.importlib.import_module")
    for place in places:
        with monkeypatch.context() as patched:
            patched.setattr(place, interrupted)
            done = call("run", "logit-lens", "--model", talker, "--quiet")
        assert (done.exit_code, done.stderr, done.stdout) == (130, "interrupted\n", "")


def test_what_the_system_refuses_is_one_line() -> None:
    for error, says in (
        (OSError(28, "No space left on device", "there"), "there: No space left on device"),
        (UnicodeEncodeError("ascii", "a中", 1, 2, "ordinal not in range"), "takes no '中', as its encoding is ascii"),
        (MemoryError(), "not enough memory"),
    ):
        with pytest.raises(RefusedError) as caught, refusals():
            raise error
        assert says in str(caught.value) and caught.value.exit_code == 2
    with pytest.raises(BrokenPipeError), refusals():
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(
    "words", [["cli", "--help"], ["cli", "--version"], ["cli", "models"], ["patchscope", "--help"]]
)
def test_output_that_cannot_be_written_ends_in_one_line(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", f"analyses.{words[0]}", *words[1:]], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (2, "Error: No space left on device\n")


def test_a_reader_that_has_had_enough_gets_no_traceback() -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "analyses.cli", "models", "--csv"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()
    told = running.stderr.read().decode()
    running.stderr.close()
    assert running.wait() in (0, 1) and "Traceback" not in told and "Exception" not in told
