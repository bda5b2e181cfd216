"""The studies against identities and against each other."""

from __future__ import annotations

import importlib
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from makers import make, pairs_of
from torch import Tensor

import interp
from analyses import (
    activation_patching,
    attention_patterns,
    attribution_patching,
    head_attribution,
    logit_lens,
    report,
)
from analyses.sections.attention_patterns import describe
from interp import stats
from interp.errors import ConfigError, InterpError, PromptError, UnknownName
from interp.metrics import METRICS, at_last
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.tasks import ioi


def last_logits(model: GPT, pairs: PromptPairs, side: str = "clean") -> Tensor:
    return at_last(model(getattr(pairs, side), attention_mask=pairs.mask), pairs).detach()


@pytest.fixture(scope="module")
def speaking(talker: Path) -> GPT:
    return interp.load(talker, device="cpu")


def test_the_last_row_of_a_logit_lens_is_the_models_own_output(any_model: GPT) -> None:
    model, pairs = any_model, pairs_of()
    frame = logit_lens.run(model, pairs)
    last = frame[frame["site"].str.endswith("resid_post")].set_index("metric")["value"]
    logits = last_logits(model, pairs)
    for metric in ("prob", "log_prob", "rank", "logit_diff"):
        expected = METRICS[metric].fn(logits, pairs.answers, None)
        assert last[metric].tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)
    assert last["kl"].abs().max() < 1e-5
    best = frame[frame["site"].str.endswith("resid_post") & (frame["metric"] == "top_prob") & (frame["k"] == 0)]
    assert best["top_token"].tolist() == [str(t) for t in logits.argmax(-1).tolist()]


def test_a_logit_lens_reads_every_depth_in_order(tmp_path: Path) -> None:
    model, pairs = make("llama_gqa"), pairs_of()
    frame = logit_lens.run(model, pairs, pos="all", top=2)
    depths = list(dict.fromkeys(zip(frame["layer"], frame["site"], strict=True)))
    assert depths == [(0, "resid_pre"), (0, "resid_mid"), (1, "resid_pre"), (1, "resid_mid"), (1, "resid_post")]
    assert len(frame) == 5 * 16 * (5 + 2)
    _, cache = model.run_with_cache(pairs.clean[1:, :4])
    log_prob = model.unembed(model.ln_final(cache["resid_mid", 0]))[0].log_softmax(-1).detach()
    at = frame[(frame["layer"] == 0) & (frame["site"] == "resid_mid") & (frame["prompt"] == 1)]
    expected = [float(log_prob[i, pairs.clean[1, i + 1]]) for i in range(3)] + [float(log_prob[3, pairs.answers[1, 0]])]
    assert at[at["metric"] == "log_prob"]["value"].tolist() == pytest.approx(expected, rel=1e-4)
    assert math.isnan(at[(at["metric"] == "logit_diff") & (at["pos"] == 0)]["value"].item())
    assert at["role"].unique().tolist() == ["first", "", "changed", "END"]
    for figure in (logit_lens.plot(frame), logit_lens.plot(logit_lens.run(model, pairs))):
        figure.savefig(tmp_path / "figure.png")
    assert list(logit_lens.top_tokens(frame).columns) == ["layer", "site", "top_1", "top_2"]


@pytest.mark.parametrize("metric", ["logit_diff", "logit"])
def test_attributions_sum_exactly_to_the_metric(any_model: GPT, metric: str) -> None:
    model, pairs = any_model, pairs_of()
    frame = head_attribution.run(model, pairs, metric=metric)
    values = frame.pivot(index="prompt", columns="component", values="value")
    expected = METRICS[metric].fn(last_logits(model, pairs), pairs.answers, None)
    capped = "after the soft cap"
    measured = values[capped if capped in values else "total"]
    assert measured.tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)
    assert (capped in values) == (model.cfg.output_logits_soft_cap is not None)
    parts = values.drop(columns=["total", "residue", capped], errors="ignore")
    assert parts.sum(axis=1).tolist() == pytest.approx(values["total"].tolist(), rel=1e-4, abs=1e-4)
    assert values["residue"].abs().max() < 1e-4
    mixers = [model.cfg.mixer(layer) for layer in range(model.cfg.n_layers)]
    assert (frame["kind"] == "head").sum() == 3 * mixers.count("attn") * model.cfg.n_heads
    assert (frame["kind"] == "ssm_head").sum() == 3 * mixers.count("mamba2") * model.cfg.n_ssm_heads
    assert (frame["kind"] == "mixer").sum() == 3 * mixers.count("mamba")
    assert ("channel" in set(frame["kind"])) == ("mamba" in mixers)
    assert len(head_attribution.summary(frame)) == frame["component"].nunique()


def test_attribution_of_a_head_is_what_removing_it_alone_would_take_away() -> None:
    model, pairs = make("attn_only"), pairs_of(5, 5)  # no norm: the last layer's heads act directly and linearly
    frame = head_attribution.run(model, pairs).set_index(["component", "prompt"])["value"]

    def without(x: Tensor, hook: object) -> Tensor:
        return torch.cat([x[:, :, :2], torch.zeros_like(x[:, :, 2:3]), x[:, :, 3:]], dim=2)

    cut = model.run_with_hooks(pairs.clean, fwd_hooks=[("blocks.1.attn.hook_z", without)])[:, -1].detach()
    gone = METRICS["logit_diff"].fn(last_logits(model, pairs) - cut, pairs.answers, None)
    assert frame["L1H2"].tolist() == pytest.approx(gone.tolist(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("kind", "part"), [("mamba2", "L1S4"), ("mamba", "L1C7"), ("hybrid", "L2C23")])
def test_attribution_of_a_part_of_a_mixer_is_what_removing_it_alone_would_take_away(kind: str, part: str) -> None:
    model, pairs = make(kind, normalization_type=None, d_mlp=4), pairs_of(5, 5)
    layer, index = int(part[1]), int(part[3:])
    if model.block(layer).mlp is not None:
        torch.nn.init.zeros_(model.block(layer).mlp.W_down)  # type: ignore[union-attr, arg-type]
    frame = head_attribution.run(model, pairs, channels=48).set_index(["component", "prompt"])["value"]

    def without(x: Tensor, hook: object) -> Tensor:
        return torch.cat([x[:, :, :index], torch.zeros_like(x[:, :, :1]), x[:, :, index + 1 :]], dim=2)

    cut = model.run_with_hooks(pairs.clean, fwd_hooks=[(f"blocks.{layer}.mixer.hook_gated", without)])[:, -1].detach()
    gone = METRICS["logit_diff"].fn(last_logits(model, pairs) - cut, pairs.answers, None)
    assert frame[part].tolist() == pytest.approx(gone.tolist(), rel=1e-3, abs=1e-5)


def test_channels_with_rows_are_those_that_write_most() -> None:
    model, pairs = make("mamba"), pairs_of()
    every = head_attribution.run(model, pairs, channels=48)
    sizes = every[every["kind"] == "channel"].groupby("component")["value"].mean().abs().sort_values(ascending=False)
    few = head_attribution.run(model, pairs, channels=5)
    assert set(few[few["kind"] == "channel"]["component"]) == set(sizes.index[:5]) and len(sizes) == 48
    whole = head_attribution.run(model, pairs, channels=0)
    assert set(whole["component"]) >= {"mixer 0", "mixer 1"} and "channel" not in set(whole["kind"])
    assert whole.groupby(["layer", "prompt"])["value"].sum().tolist() == pytest.approx(
        few.groupby(["layer", "prompt"])["value"].sum().tolist(), abs=1e-5
    )
    for frame in (few, whole):
        head_attribution.plot(frame).canvas.draw()
    with pytest.raises(InterpError, match="channels must be at least 0, not -1"):
        head_attribution.run(model, pairs, channels=-1)


@pytest.mark.parametrize(
    ("site", "by", "cells"),
    [
        ("z", "head", 8),
        ("k", "head", 4),
        ("resid_pre", "role", 6),
        ("mlp_out", "pos", 12),
        ("pattern", "head", 8),
        ("attn_out", None, 2),
    ],
)
def test_patching_has_a_cell_for_every_layer_and_value(site: str, by: str | None, cells: int) -> None:
    model, pairs = make("llama_gqa"), pairs_of(6, 6)
    frame = activation_patching.run(model, pairs, site=site, by=by, progress=False)
    assert len(frame) == cells * 2
    summary = activation_patching.summary(frame)
    assert len(summary) == cells and summary["n"].eq(2).all()
    activation_patching.plot(frame).canvas.draw()


def test_denoising_and_noising_are_each_others_mirror_where_everything_is_patched() -> None:
    model, pairs = make("gpt2"), pairs_of()
    for direction, base in (("denoise", "corrupt"), ("noise", "clean")):
        frame = activation_patching.run(model, pairs, site="resid_pre", by=None, direction=direction, progress=False)
        assert frame["effect"].tolist() == pytest.approx([1.0] * len(frame), abs=1e-3)
        expected = METRICS["logit_diff"].fn(last_logits(model, pairs, base), pairs.answers, None)
        assert frame["base_value"][:3].tolist() == pytest.approx(expected.tolist(), rel=1e-4)
        assert (frame["direction"] == direction).all()


def test_the_residual_stream_matters_from_where_the_prompts_differ() -> None:
    frame = activation_patching.run(make("neox"), pairs_of(), site="resid_pre", by="role", progress=False)
    effect = frame.pivot_table(index="layer", columns="role", values="effect")
    assert effect.loc[0, "changed"] == pytest.approx(1, abs=1e-3)
    assert effect.loc[0, "first"] == effect.loc[1, "first"] == 0 and effect.loc[0, "END"] == 0


@pytest.mark.parametrize("kind", ["llama_gqa", "bidirectional"])
def test_attention_of_every_query_sums_to_one(kind: str) -> None:
    model, pairs = make(kind), pairs_of()
    frame = attention_patterns.run(model, pairs)
    sums = frame.groupby(["layer", "head", "prompt", "query"])["value"].sum()
    assert len(sums) == 2 * 4 * 16 and sums.tolist() == pytest.approx([1.0] * len(sums), abs=1e-5)
    one = attention_patterns.run(model, pairs, heads=["L1H2"])
    _, cache = model.run_with_cache(pairs.clean[:1])
    value = one[(one["prompt"] == 0) & (one["query"] == 4) & (one["key"] == 2)]["value"].item()
    assert value == pytest.approx(float(cache["pattern", 1][0, 2, 4, 2]), rel=1e-4)
    assert re.findall(r"\d+", attention_patterns.plot(frame).get_suptitle()) == ["6", "8"]  # heads shown, of all
    assert not attention_patterns.plot(one).get_suptitle()
    attention_patterns.plot(frame).canvas.draw()


def test_heads_without_a_link_between_roles_are_named_together() -> None:
    rows = [("END", "S", 0.6, 0), ("END", "END", 0.4, 0), ("END", "S", 0.1, 1), ("S", "S", 0.9, 2), ("S", "IO", 0.3, 3)]
    table = pd.DataFrame(rows, columns=["query_role", "key_role", "value", "head"]).assign(layer=1)
    told = describe(table, [f"L1H{head}" for head in (2, 0, 3, 1)], "END")
    said = [re.findall(r"L\d+H\d+|\d\.\d+|\b(?:END|IO|S)\b", part) for part in told.split("; ")]
    assert said == [["L1H0", "END", "S", "0.60"], ["L1H3", "S", "IO", "0.30"], ["0.2", "L1H2", "L1H1"]]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m, p: logit_lens.run(m, p, pos="end"), UnknownName, "no pos matches 'end'"),
        (lambda m, p: head_attribution.run(m, p, metric="kl"), UnknownName, "metric of head attribution"),
        (lambda m, p: activation_patching.run(m, p, site="zz"), UnknownName, "no site matches 'zz'"),
        (lambda m, p: activation_patching.run(m, p, by="neuron"), UnknownName, "choose from 'head', 'pos', 'role'"),
        (lambda m, p: activation_patching.run(m, p, by="pos"), PromptError, "prompts of one length"),
        (lambda m, p: activation_patching.run(m, p, site="resid_pre", by="head"), UnknownName, "axis of 'resid_pre'"),
        (lambda m, p: activation_patching.run(m, p, direction="noisy"), UnknownName, "did you mean 'noise'"),
        (lambda m, p: attention_patterns.run(m, p, heads=["L7H1"]), UnknownName, "the nearest is L1H1"),
        *[(lambda m, p, n=n: attribution_patching.run(m, p, steps=n), ConfigError, "steps must be") for n in (0, -1)],
        (lambda m, p: attention_patterns.run(m, p, heads=["first"]), UnknownName, "heads are written L0H0 to L1H3"),
    ],
)  # fmt: skip
def test_what_a_study_cannot_do_is_refused(call: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call(make("gpt2"), pairs_of())  # type: ignore[operator]


def test_every_study_has_what_the_package_promises() -> None:
    modules = report.chosen_studies()
    assert [m.__name__.rpartition(".")[2] for m in modules] == [
        "logit_lens", "tuned_lens", "head_attribution", "head_detectors", "ablation", "activation_patching",
        "attribution_patching", "attention_patterns", "path_patching", "edge_attribution", "circuit",
        "probes", "steering", "patchscope",
    ]  # fmt: skip
    for section in modules:
        study = importlib.import_module(section.__name__.replace(".sections", ""))
        assert all(hasattr(study, name) for name in ("run", "summary", "plot", "main")) and hasattr(section, "report")
        assert "1. " in study.__doc__ and "Source: " in study.__doc__


def test_the_sections_of_a_report_are_made_of_the_numbers_which_are_drawn_again_once(
    speaking: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = ioi(speaking, n=3)
    story = report.Story()
    report.behaviour(speaking, pairs, story)
    table = dict(story.sections[0].tables)
    shown = next(frame for caption, frame in table.items() for frame in [table[caption]] if "clean prompt" in frame)
    expected = METRICS["logit_diff"].fn(last_logits(speaking, pairs), pairs.answers, None)
    assert shown["logit difference on clean"].tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)
    assert "of 3 prompts" in story.findings[0]
    results: dict[str, pd.DataFrame] = {}
    bootstrap, drawn = stats.bootstrap, list[bytes]()

    def counted(values: Any, **options: Any) -> stats.Interval:
        if options.get("n_resamples") != 1:
            drawn.append(values.tobytes())
        return bootstrap(values, **options)

    monkeypatch.setattr(stats, "bootstrap", counted)
    for module in report.chosen_studies():
        drawn.clear()
        frame, section, findings = module.report(speaking, pairs, results)
        assert len(drawn) == len(set(drawn)), module.__name__
        results[module.__name__.rpartition(".")[2]] = frame
        assert len(frame) and (section.figures or section.appended_figures) and findings
    story.results |= results
    report.checks(speaking, pairs, story, compare=True)
    checks = story.sections[-1].tables[0][1]
    assert (checks["result"] == "holds").all() and len(checks) == 4, checks
