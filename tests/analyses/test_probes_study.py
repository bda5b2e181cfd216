"""The study of linear probes on models and prompts where it is known what can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from makers import RECURRENT, make

import interp
from analyses import probes
from analyses.sections.probes import report
from interp.directions.classes import contrast
from interp.directions.probes import Probe, held_out, per_prompt, rows_of
from interp.directions.steering import states
from interp.errors import PromptError, UnknownName
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.tasks import ioi


def marked_pairs(n: int = 8) -> PromptPairs:
    """Prompts of two lengths; the token at the role `mark` says the side, and nothing before it does."""
    generator = torch.Generator().manual_seed(2)
    starts = [torch.randint(10, 28, (3 + i % 2,), generator=generator).tolist() for i in range(n)]
    roles = [{"first": 0, "mark": len(start)} for start in starts]
    clean, corrupt = ([[*start, token, 9] for start in starts] for token in (4, 6))
    return PromptPairs.from_tokens(clean, corrupt, answers=[(1, 2 + i % 7) for i in range(n)], roles=roles)


def test_a_probe_reads_a_token_where_it_stands_and_not_before() -> None:
    frame = probes.run(make("llama_gqa"), marked_pairs(), label="side", shuffles=8, progress=False)
    table = probes.summary(frame).set_index(["metric", "layer", "role"])
    for metric in ("accuracy", "auroc"):
        assert table.loc[(metric, 0, "mark"), "value"] == 1
        assert table.loc[(metric, 0, "first"), "value"] == table.loc[(metric, 1, "first"), "value"] == 0.5
        assert table.loc[(metric, 0, "mark"), "p_adjusted"] < 0.05
    null = frame.groupby(["metric", "layer", "role"])["control"].transform("mean").clip(lower=0.5)
    assert frame["effect"].tolist() == pytest.approx((frame["value"] - null).tolist())
    assert len(frame) == 2 * 2 * 2 * 8 and set(frame["label"]) == {"side"}


def test_a_cell_has_the_scores_of_its_states() -> None:
    model, pairs = make("llama_gqa"), marked_pairs()
    frame = probes.run(model, pairs, site="z", by="head,role", label="side", seed=3, folds=4, progress=False)
    probe = Probe(folds=4, seed=3)
    told = contrast(model, pairs, "side")
    where = [{"layer": 1, "head": 2, "pos": "mark"}]
    read = torch.cat([states(model, pairs, "z", where, side=side)[0] for side in ("clean", "corrupt")])
    rows = rows_of(told, probe)
    values, control = held_out(read.numpy(), rows, probe)
    cell = frame[(frame["layer"] == 1) & (frame["head"] == 2) & (frame["role"] == "mark")]
    for metric in ("accuracy", "auroc"):
        part = cell[cell["metric"] == metric].set_index("prompt")
        assert part["value"].tolist() == per_prompt(values[metric], rows.prompt).tolist()
        assert part["control"].tolist() == per_prompt(control[metric], rows.prompt).tolist()


def test_labels_of_your_own_are_read_from_clean_prompts() -> None:
    rows = [[7, 5 if i % 2 else 3, 9] for i in range(10)]
    pairs = PromptPairs.from_tokens(rows, answers=[(1, 2)] * 10)
    labels = ["five" if i % 2 else "three" for i in range(10)]
    frame = probes.run(make("gpt2"), pairs, by="pos", labels=labels, progress=False)
    accuracy = probes.summary(frame[frame["metric"] == "accuracy"]).set_index(["layer", "pos"])["value"]
    assert accuracy[0, 1] == 1 and accuracy[0, 0] == pytest.approx(0.5, abs=0.5) and accuracy[1, 2] == 1
    assert set(frame["label"]) == {"labels"} and len(frame) == 2 * 3 * 2 * 10
    assert frame[frame["pos"] == 1]["token"].unique().tolist() == ["3", "5"]


@pytest.mark.parametrize(
    ("options", "cells"),
    [
        ({}, 2 * 2),
        ({"by": None}, 2),
        ({"site": "z", "by": "head"}, 2 * 4),
        ({"site": ["k", "v"], "by": "head,role"}, 2 * 2 * 2 * 2),
        ({"site": "mlp_out,attn_out", "by": "role"}, 2 * 2 * 2),
    ],
)
def test_every_cut_has_its_cells_and_a_figure(options: dict[str, Any], cells: int) -> None:
    frame = probes.run(make("llama_gqa"), marked_pairs(6), shuffles=1, progress=False, **options)
    assert len(frame) == cells * 2 * 6
    assert len(probes.summary(frame)) == cells * 2
    probes.plot(frame).canvas.draw()


def test_every_model_can_be_probed(model: GPT) -> None:
    pairs = marked_pairs(4)
    frame = probes.run(model, pairs, label="side", shuffles=1, progress=False)
    value = frame[(frame["metric"] == "accuracy") & (frame["layer"] == 0)].groupby("role")["value"].mean()
    assert value["mark"] == 1 and value["first"] == 0.5


@pytest.mark.parametrize("kind", RECURRENT)
def test_states_and_heads_of_mixers_can_be_probed(kind: str) -> None:
    model = make(kind)
    state = probes.run(model, marked_pairs(), site="state", by=None, label="side", shuffles=1, progress=False)
    mixers = [layer for layer in range(model.cfg.n_layers) if model.cfg.mixer(layer) in ("mamba", "mamba2")]
    assert sorted(set(state["layer"])) == mixers
    frame, section, _ = report(model, marked_pairs(), {}, progress=False)
    figures = [item.name for item in (*section.figures, *section.appended_figures)]
    assert ("probes_heads" in figures) == model.cfg.has_attention
    assert ("probes_ssm_heads" in figures) == ("mamba2" in model.cfg.mixers) == ("ssm_head" in frame)


def test_half_precision_is_read_in_float32() -> None:
    model = make("llama_gqa").to(torch.bfloat16)
    frame = probes.run(model, marked_pairs(4), label="side", shuffles=1, progress=False)
    assert frame[(frame["layer"] == 0) & (frame["role"] == "mark")]["value"].eq(1).all()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"by": "pos"}, PromptError, "prompts of one length"),
        ({"site": "pattern", "by": "head"}, PromptError, "has no .pos. axis"),
        ({"site": "resid_pre", "by": "head"}, UnknownName, "axis of 'resid_pre'"),
        ({"label": "answer"}, PromptError, "does not tell these prompts apart"),
        ({"site": "zz"}, UnknownName, "no site matches 'zz'"),
    ],
)
def test_what_cannot_be_probed_is_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        probes.run(make("gpt2"), marked_pairs(6), progress=False, **options)


def test_one_pair_is_refused_with_what_is_needed() -> None:
    with pytest.raises(PromptError, match="at least 2 pairs"):
        report(make("gpt2"), marked_pairs(1), {}, progress=False)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_sentences_of_a_report_are_those_of_its_numbers(talker: Path, n: int) -> None:
    model = interp.load(talker, device="cpu")
    frame, section, findings = report(model, ioi(model, n=n), {}, progress=False)
    assert len(section.figures) == len(section.appended_figures) == len(findings) == 1 and findings[0] in section.text
    stream = frame[(frame["site"] == "resid_pre") & (frame["metric"] == "accuracy")]
    table = probes.summary(stream.drop(columns="head"))
    best = table.iloc[0]
    assert f"{best['value']:.0%}" in findings[0]
    sure = bool(((table["p_adjusted"] < 0.05) & (table["effect"] > 0)).any())
    assert findings[0].startswith("A linear probe" if sure else "No linear probe")


def test_the_command_prints_the_summary(talker: Path) -> None:
    done = CliRunner().invoke(
        probes.main, ["--model", str(talker), "--n", "4", "--by", "layer", "--shuffles", "1", "--quiet"]
    )
    assert done.exit_code == 0, done.output
    assert "accuracy" in done.stdout and "p_adjusted" in done.stdout
