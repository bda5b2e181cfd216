"""The study of attribution patching: its table against the sweep, its figures, its sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from makers import KINDS, RECURRENT, make, pairs_of

import interp
from analyses import activation_patching
from analyses import attribution_patching as study
from analyses.attribution_patching import METHODS, Asked, compared, plot, plot_agreement, run, run_several, summary
from analyses.cli import main
from analyses.sections.attribution_patching import report
from interp.errors import InterpError, PromptError, UnknownName
from interp.tasks import ioi

UNITS = ("head", "kv_head", "ssm_head", "ssm_group", "channel")
EVERY = [
    ("z", "head", 8),
    ("q,k,v", "head", 16),
    ("resid_pre", "role", 6),
    ("mlp_out", "pos", 10),
    ("z", "head,role", 24),
    ("pattern", "head,query,key", 120),
    ("post", "neuron", 128),
    ("attn_out", None, 2),
]


@pytest.mark.parametrize(("site", "by", "cells"), EVERY)
def test_the_sample_is_what_activation_patching_measures(site: str, by: str | None, cells: int) -> None:
    model, pairs = make("llama_gqa"), pairs_of(5, 5)
    frame = run(model, pairs, site=site, by=by, sample=6, progress=False)
    assert len(frame) == 2 * cells and (frame["cells"] == cells).all()
    done = frame[frame["sample"] != ""]
    assert len(done) == 2 * min(6, cells) and frame["exact"].notna().sum() == len(done)
    if by != "neuron":
        every = activation_patching.run(model, pairs, site=site, by=by, progress=False)
        keys = [
            name
            for name in ("site", "layer", "head", "kv_head", "pos", "role", "query", "key", "prompt")
            if name in every
        ]
        both = done.merge(every, on=keys, suffixes=("", "_patched"))
        assert len(both) == len(done)
        np.testing.assert_allclose(both["exact_effect"], both["effect_patched"], atol=1e-4)
        np.testing.assert_allclose(both["exact"], both["value_patched"] - both["base_value"], atol=1e-5)
    for figure in (plot(frame), plot_agreement(frame)):
        figure.canvas.draw()
    table = summary(frame)
    assert len(table) == cells and table["value"].abs().is_monotonic_decreasing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_every_model(kind: str, method: str) -> None:
    frame = run(make(kind), pairs_of(5, 4), site="q", by="head,role", method=method, steps=2, sample=3, progress=False)
    assert np.isfinite(frame["value"]).all() and (frame["method"] == method).all()
    assert len(compared(frame)) == 6


@pytest.mark.parametrize(
    ("kind", "site", "by", "cells"),
    [
        ("mamba", None, ..., 2 * 3), ("hybrid", None, ..., 3 * 3), ("mamba", "y", "channel", 48),
        ("mamba", "conv,delta,B,C,gate,state", "role", 36), ("mamba2", "gated", "head,role", 36),
        ("mamba2", "B", "ssm_group", 4), ("mamba2", "state", "pos", 10), ("hybrid", "z,gated", "head", 10),
        ("one_part_a_layer", None, "neuron", 20),
    ],
)  # fmt: skip
def test_state_space_layers_have_cells_too(kind: str, site: str | None, by: Any, cells: int) -> None:
    model, pairs = make(kind), pairs_of(5, 5)
    frame = run(model, pairs, site=site, by=by, sample=6, progress=False)
    assert len(frame) == 2 * cells and (frame["cells"] == cells).all() and np.isfinite(frame["value"]).all()
    done = frame[frame["sample"] != ""]
    assert done["exact"].notna().all() and len(done) == 2 * min(6, cells)
    if by != "neuron":
        every = activation_patching.run(model, pairs, site=site, by=by, progress=False)
        keys = [name for name in ("site", "layer", *UNITS, "pos", "role", "prompt") if name in every]
        both = done.merge(every, on=keys, suffixes=("", "_patched"))
        assert len(both) == len(done)
        np.testing.assert_allclose(both["exact"], both["value_patched"] - both["base_value"], atol=1e-5)
    for figure in (plot(frame), plot_agreement(frame)):
        figure.canvas.draw()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", RECURRENT)
def test_every_method_runs_on_state_space_layers(kind: str, method: str) -> None:
    frame = run(make(kind), pairs_of(5, 4), site="delta,C", by="role", method=method, steps=2, sample=3, progress=False)
    assert np.isfinite(frame["value"]).all() and set(frame["site"]) == {"delta", "C"}


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_report_names_heads_and_mixers(kind: str) -> None:
    model = make(kind)
    frame, section, findings = report(model, pairs_of(5, 4, 5), {}, progress=False)
    kinds = {"mamba2": "head", "attn": "head", "mamba": "mixer"}
    words = sorted({kinds[mixer] for mixer in model.cfg.mixers if mixer is not None})
    assert len(findings) == len(words)
    for word, finding in zip(words, findings, strict=True):
        assert f" {word} " in finding
    mixers = frame[frame["site"] == "out"]
    if len(mixers):
        means = mixers.groupby("layer")["effect"].mean()
        best = means.abs().idxmax()
        assert f"is mixer {best} ({means[best]:+.2f}" in findings[-1]
    assert "nan" not in " ".join(section.text)
    assert "attribution_patching_recurrence" in [item.name for item in section.figures]
    for item in section.figures:
        item.figure.canvas.draw()


def test_tables_that_share_their_runs_are_those_made_alone() -> None:
    model, pairs = make("llama_gqa"), pairs_of(5, 4, 5)
    asked = [Asked("z", "head"), Asked(["q", "k"], "head"), Asked(["q", "k"], "head", method="qk-fix")]
    for one, found in zip(asked, run_several(model, pairs, asked, sample=6, progress=False), strict=True):
        alone = run(model, pairs, site=one.site, by=one.by, method=one.method, sample=6, progress=False)
        assert found["sample"].tolist() == alone["sample"].tolist()
        for column in ("value", "exact", "base_value", "source_value"):
            np.testing.assert_allclose(found[column], alone[column], rtol=1e-4, atol=1e-5)
    with pytest.raises(InterpError, match="share their gradients, and these methods do not: atp, drop"):
        run_several(model, pairs, [Asked("z"), Asked("z", method="drop")], progress=False)


def test_cells_that_activation_patching_has_measured_are_not_patched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = make("llama_gqa"), pairs_of(5, 4, 5)
    frames = [activation_patching.run(model, pairs, site=site, by=by) for site, by in (("z", "head"), ("k", "head"))]
    frames.append(activation_patching.run(model, pairs, site="z", by="head", direction="noise"))
    asked = [Asked("z", "head"), Asked(["q", "k"], "head")]
    alone = run_several(model, pairs, asked, sample=8, progress=False)
    seen = []

    def sweep_values(model: Any, pairs: Any, variants: Any, *args: Any, **options: Any) -> Any:
        seen.extend(variants)
        return measured(model, pairs, variants, *args, **options)

    measured = study.sweep_values
    monkeypatch.setattr(study, "sweep_values", sweep_values)
    found = run_several(model, pairs, asked, sample=8, patched=pd.concat(frames), progress=False)
    assert {cell.labels["site"] for cell in seen} == {"q"}
    for one, other in zip(found, alone, strict=True):
        for column in ("value", "exact", "base_value", "source_value"):
            np.testing.assert_allclose(one[column], other[column], rtol=1e-4, atol=1e-5)
    few = run_several(model, pairs[:2], asked[:1], sample=8, patched=frames[0], progress=False)[0]  # other prompts
    pd.testing.assert_frame_equal(few, run(model, pairs[:2], site="z", by="head", sample=8), check_exact=False)


def test_directions_are_those_of_activation_patching() -> None:
    model, pairs = make("attn_only").double(), pairs_of(5, 4)
    for direction in ("denoise", "noise"):
        frame = run(model, pairs, site="z", direction=direction, sample=8, progress=False)
        last = frame[frame["layer"] == 1]  # linear, so that the estimate is exact
        np.testing.assert_allclose(last["effect"], last["exact_effect"], atol=1e-6)
        every = activation_patching.run(model, pairs, direction=direction, progress=False)
        np.testing.assert_allclose(frame["base_value"], every["base_value"], rtol=1e-6)
        np.testing.assert_allclose(frame["source_value"], every["source_value"], rtol=1e-6)


def test_of_many_neurons_the_largest_have_rows_and_all_count_for_p() -> None:
    model, pairs = make("gpt2"), pairs_of(5, 4, 6, 5)
    every = summary(run(model, pairs, by="neuron", sample=4, progress=False)).set_index(["layer", "neuron"])
    few = run(model, pairs, by="neuron", sample=4, most=10, progress=False)
    table = summary(few).set_index(["layer", "neuron"])
    assert len(every) == 128 and 10 <= len(table) <= 12
    both = table.merge(every, left_index=True, right_index=True, suffixes=("", "_every"))
    assert (both["p_adjusted"] >= both["p_adjusted_every"] - 1e-12).all()


@pytest.mark.parametrize(
    ("kind", "changes", "lengths"),
    [("llama_gqa", {}, (5, 4)), ("attn_only", {"n_layers": 1}, (2,)), ("neox", {}, (5, 5, 4))],
)
def test_a_report_says_what_was_found(kind: str, changes: dict[str, int], lengths: tuple[int, ...]) -> None:
    frame, section, findings = report(make(kind, **changes), pairs_of(*lengths), {}, progress=False)
    best = summary(frame[(frame["site"] == "z")].drop(columns=["kv_head", "neuron"], errors="ignore")).iloc[0]
    assert f"L{best['layer']}H{best['head']} ({best['value']:+.2f}" in findings[0]
    assert "nan" not in " ".join(section.text) and len(section.appended_figures) == 2
    assert isinstance(section.appended_tables[0][1], pd.DataFrame)


def test_figures_refuse_mixed_granularities() -> None:
    model, pairs = make("gpt2"), pairs_of(5)
    mixed = pd.concat([run(model, pairs, by=by, sample=1, progress=False) for by in ("head", "neuron")])
    with pytest.raises(InterpError, match="mixes cells by head, neuron"):
        plot(mixed)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"method": "atp*"}, UnknownName, "did you mean"),
        ({"direction": "back"}, UnknownName, "choose from 'denoise', 'noise'"),
        ({"by": "pos"}, PromptError, "prompts of one length"),
        ({"by": "neuron", "site": "z"}, UnknownName, "no site of neurons matches 'z'"),
        ({"metric": "correct"}, UnknownName, "metric with a gradient"),
        ({"sample": 0}, InterpError, "sample must be at least 1, not 0"),
    ],
)  # fmt: skip
def test_what_the_study_cannot_do_is_refused(options: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        run(make("gpt2"), pairs_of(5, 4), **options)  # type: ignore[arg-type]


def test_the_command_prints_heads_and_neurons(talker: Path) -> None:
    words = ["run", "attribution-patching", "--model", str(talker), "--prompt", "Mary saw Paul", "--quiet"]
    words += ["--corrupt", "Mary saw John", "--answer", " Mary", "--wrong", " John", "--sample", "4"]
    for more in ([], ["--by", "neuron"], ["--site", "q", "--method", "atp-star"]):
        done = CliRunner().invoke(main, [*words, *more])
        assert done.exit_code == 0 and "exact" in done.stdout, done.output


@pytest.mark.slow
def test_on_the_real_model_the_correction_brings_queries_and_keys_closer() -> None:
    model = interp.load("smollm2-135m")
    pairs = ioi(model, n=4)
    off = {}
    for method in ("atp", "qk-fix"):
        found = compared(run(model, pairs, site="q,k", method=method, sample=20, progress=False))
        off[method] = found.set_index("quantity").loc["relative error", "value"]
    assert off["qk-fix"] < off["atp"]
