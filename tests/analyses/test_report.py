"""A report as a whole: what does not apply says so, what was finished is kept, what was not asked for is not run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import STATES
from vocabularies import names_tokenizer

from analyses import report
from analyses.sections import attention_patterns, head_attribution, logit_lens
from interp.config import ModelConfig
from interp.errors import InterpError, UnknownName
from interp.figures import style
from interp.models.gpt import Mamba
from interp.text.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def _no_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedding fonts takes a third of the time of a small report; `test_cli` makes one with all its files."""
    monkeypatch.setattr(style, "FORMATS", {name: how for name, how in style.FORMATS.items() if name != "pdf"})


def written(talker: Path, out: Path, **options: Any) -> tuple[str, dict[str, Any]]:
    """The page of a small report and its manifest."""
    path = report.write("ioi", talker, out=out, n=2, device="cpu", check=False, quiet=True, **options)
    return path.read_text(encoding="utf-8"), manifest_of(out)


def test_only_the_chosen_studies_are_made_in_the_order_of_the_story(talker: Path, tmp_path: Path) -> None:
    page, manifest = written(talker, tmp_path / "r", studies=["head-attribution", "logit_lens"])
    assert list(manifest["seconds"]) == ["load", "behaviour", "logit_lens", "head_attribution", "checks", "mechanism"]
    places = ["mechanism", "steps", "prompts", "logit-lens", "attribution", "checks", "conclusion"]
    assert sorted(places, key=lambda place: page.index(f'<h2 id="{place}"')) == places
    # The answer to the question, the picture, what it shows, and only then the contents.
    marks = ["<b>Answer.</b>", 'id="figure-mechanism"', "numerical checks", "<nav", '<h2 id="steps"', 'id="one-part"']
    assert sorted(marks, key=page.index) == marks and "too few" in page
    assert page.index('<h2 id="logit-lens"') < page.index('<h2 id="attribution"') and "patching_heads" not in page
    assert manifest["not_made"] == {} and manifest["stopped_in"] is None


def test_a_study_that_does_not_exist_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'logit_lens'"):
        report.write("ioi", "no such model", out=tmp_path / "r", studies=["logit-lense"])
    assert not (tmp_path / "r").exists()


def test_a_study_that_does_not_apply_says_so_and_the_others_go_on(
    talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise InterpError("this model has no heads")

    monkeypatch.setattr(head_attribution, "report", refuse)
    page, manifest = written(talker, tmp_path / "r", studies=["logit-lens", "head-attribution", "attention-patterns"])
    assert ": this model has no heads." in page
    assert manifest["not_made"] == {"head_attribution": "this model has no heads"}
    assert "Attention patterns" in page and "Logit lens" in page


def test_an_interrupt_keeps_what_was_finished(talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(attention_patterns, "report", interrupt)
    page, manifest = written(talker, tmp_path / "r", studies=["logit-lens", "attention-patterns"])
    assert manifest["stopped_in"] == "attention_patterns" and "logit_lens" in manifest["seconds"]
    assert "stopped during the study" in page and "Likeliest token" in page
    monkeypatch.setattr(logit_lens, "report", interrupt)
    with pytest.raises(KeyboardInterrupt):
        written(talker, tmp_path / "s", studies=["logit-lens", "attention-patterns"])
    assert not (tmp_path / "s").exists()


def test_sections_are_in_the_folder_as_they_finish_and_stderr_says_when(
    talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    out, made, options = tmp_path / "r", attention_patterns.report, {"studies": ["logit-lens", "attention-patterns"]}

    def looking(*args: Any, **options: Any) -> Any:
        seen.append(((out / "index.html").read_text(encoding="utf-8"), manifest_of(out)))
        return made(*args, **options)

    monkeypatch.setattr(attention_patterns, "report", looking)
    report.write("ioi", talker, out=out, n=2, device="cpu", check=False, **options)
    page, manifest = seen.pop()
    assert "Likeliest token" in page and "still being written" in page
    assert manifest["to_come"] == ["attention_patterns", "checks", "mechanism"]
    first, *lines = [line for line in capsys.readouterr().err.splitlines() if "report" in line]
    assert first == f"a report of 2 studies is written to {out}, section by section"
    steps = ["load", "behaviour", "logit_lens", "attention_patterns", "checks", "mechanism"]
    assert [line.split()[1].rstrip(",") for line in lines] == steps and lines[2].endswith(" s (step 3 of 6)")
    whole, manifest = (out / "index.html").read_text(encoding="utf-8"), manifest_of(out)
    assert "still being written" not in whole and "to_come" not in manifest
    files = manifest["report"]["files"]
    for name, digest in files.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    # An earlier report stays until the new one is complete; figures that are drawn anew are the same.
    written(talker, out, **options)
    assert seen.pop() == (whole, manifest)
    again = manifest_of(out)["report"]["files"]
    assert again.keys() == files.keys() and {name for name in again if again[name] != files[name]} <= {"index.html"}
    assert not capsys.readouterr().err


def manifest_of(out: Path) -> dict[str, Any]:
    """The manifest of a report."""
    return json.loads((out / "manifest.json").read_text(encoding="utf-8"))


def recurrent_folder(kind: str, folder: Path) -> Path:
    """A folder with a tiny untrained Mamba in Hugging Face's files, whose tokenizer knows names."""
    import transformers

    backend = names_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": backend.get_vocab_size()}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    torch.manual_seed(0)
    if kind == "mamba":
        cfg = transformers.MambaConfig(**sizes, **ends, initializer_range=0.4)
        transformers.MambaForCausalLM(cfg).save_pretrained(folder)
    else:
        heads = {"expand": 2, "num_heads": 8, "head_dim": 4, "n_groups": 2}
        cfg = transformers.Mamba2Config(**sizes, **ends, **heads, initializer_range=0.4)
        transformers.Mamba2ForCausalLM(cfg).save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    return folder


def test_hidden_attention_stands_where_attention_patterns_stand(tmp_path: Path) -> None:
    chosen = ["head-attribution", "head-detectors", "activation-patching", "attention-patterns"]
    page, manifest = written(recurrent_folder("mamba2", tmp_path / "model"), tmp_path / "r", studies=chosen)
    assert "Hidden attention of the" in page and "Attention patterns of the heads" not in page
    assert manifest["not_made"] == {} and "only channels of Mamba-1 layers" not in page
    assert "numerical checks that were run hold" in page


@pytest.mark.slow
def test_a_whole_report_on_a_state_space_model(tmp_path: Path) -> None:
    folder = recurrent_folder("mamba", tmp_path / "model")
    path = report.write("ioi", folder, out=tmp_path / "r", n=2, device="cpu", check=True, quiet=True)
    page, manifest = path.read_text(encoding="utf-8"), json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert "Hidden attention of the" in page and "Attention patterns of the heads" not in page
    assert set(manifest["not_made"]) == {"head_detectors"} and "only the channels of Mamba-1 layers" in page
    assert "All 4 numerical checks that were run hold" in page


@pytest.mark.slow
def test_a_report_on_a_hybrid_shows_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(names_tokenizer(), bos_token_id=0)
    types = ("mamba", "attn+mlp", "mamba2+mlp")
    cfg = ModelConfig(
        **STATES, n_layers=3, d_model=16, n_ctx=128, n_heads=4, d_vocab=len(tokenizer), layer_types=types, seed=3
    )
    monkeypatch.setattr(report, "load", lambda source, **options: Mamba(cfg.replace(initializer_range=0.4), tokenizer))
    chosen = ["head-attribution", "head-detectors", "attention-patterns", "path-patching", "ablation", "circuit"]
    page, manifest = written(tmp_path, tmp_path / "r", studies=chosen)
    assert manifest["not_made"] == {} and len(manifest["seconds"]) == 4 + len(chosen)
    assert "Attention patterns of the heads" in page and "Hidden attention of the mixers" in page
