"""A report as a whole: what does not apply says so, what was finished is kept, what was not asked for is not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analyses import attention_patterns, head_attribution, logit_lens, report
from interp.errors import InterpError, UnknownName


def written(talker: Path, out: Path, **options: Any) -> tuple[str, dict[str, Any]]:
    """The page of a small report and its manifest."""
    path = report.write("ioi", talker, out=out, n=2, device="cpu", check=False, quiet=True, **options)
    return path.read_text(encoding="utf-8"), json.loads((out / "manifest.json").read_text(encoding="utf-8"))


def test_only_the_chosen_studies_are_made_in_the_order_of_the_story(talker: Path, tmp_path: Path) -> None:
    page, manifest = written(talker, tmp_path / "r", studies=["head-attribution", "logit_lens"])
    assert list(manifest["seconds"]) == ["load", "behaviour", "logit_lens", "head_attribution", "checks"]
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
    assert "This study was not made: this model has no heads." in page
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
