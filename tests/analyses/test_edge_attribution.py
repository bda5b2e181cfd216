"""The study of edges: its table, its figures, its sentences."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from makers import EDGES, make, pairs_of

import interp
from analyses.cli import main
from analyses.edge_attribution import compared, plot, plot_agreement, run, summary
from analyses.sections.edge_attribution import report
from interp.circuits.edge_scores import eap, exact
from interp.circuits.graph import Graph
from interp.errors import InterpError, UnknownName
from interp.tasks import ioi


@pytest.mark.parametrize("kind", EDGES)
def test_a_table_has_estimates_of_edges_and_exact_effects_of_some(kind: str) -> None:
    model, pairs = make(kind), pairs_of(6, 4)
    graph = Graph.of(model)
    frame = run(model, pairs, method="eap", sample=10, most=20, progress=False)
    assert min(20, graph.n_edges) <= frame["edge"].nunique() <= 25  # those drawn at random have rows, too
    scores = eap(model, pairs, graph)
    for row in frame.iloc[::5].itertuples():
        sender, receiver = graph.edge(row.edge)
        assert row.value == pytest.approx(float(scores[row.prompt, sender, receiver]), abs=1e-6)
    done = frame[frame["sample"] != ""]
    assert done["edge"].nunique() == min(10, graph.n_edges) and done["exact"].notna().all()
    assert frame[frame["sample"] == ""]["exact"].isna().all() and (frame["cells"] == graph.n_edges).all()
    found = exact(model, pairs, list(done["edge"].unique()), graph, progress=False)
    for row in done.itertuples():
        sender, receiver = graph.edge(row.edge)
        assert row.exact == pytest.approx(float(found[row.prompt, sender, receiver]), abs=1e-6)
        gap = row.source_value - row.base_value
        assert row.exact_effect == pytest.approx(row.exact / gap, rel=1e-4) and row.effect == pytest.approx(
            row.value / gap
        )


def test_the_largest_edges_come_first_and_all_edges_count_for_p() -> None:
    model, pairs = make("gpt2"), pairs_of(5, 5, 5, 5)
    every = summary(run(model, pairs, most=10**6, sample=4, progress=False)).set_index("edge")
    few = summary(run(model, pairs, most=15, sample=4, progress=False)).set_index("edge")
    assert few["value"].abs().is_monotonic_decreasing and len(few) < len(every)
    both = few.merge(every, left_index=True, right_index=True, suffixes=("", "_every"))
    assert (both["p_adjusted"] >= both["p_adjusted_every"] - 1e-12).all()
    np.testing.assert_allclose(both["value"], both["value_every"], rtol=1e-6)
    assert few["exact"].notna().sum() == 4


@pytest.mark.parametrize(
    ("kind", "changes", "lengths"),
    [("llama_gqa", {}, (5, 4)), ("attn_only", {"n_layers": 1}, (2,)), ("hybrid", {}, (5, 4))],
)
def test_a_report_says_what_was_found(kind: str, changes: dict[str, int], lengths: tuple[int, ...]) -> None:
    model, pairs = make(kind, **changes), pairs_of(*lengths)
    frame, section, findings = report(model, pairs, {}, progress=False)
    first = summary(frame).iloc[0]
    assert f"`{first['edge']}` ({first['value']:+.2f}" in findings[0] and "nan" not in " ".join(section.text)
    assert section.figures[0].name == "edges_top" and len(section.appended_tables[0][1]) == 6
    for figure in (plot(frame), plot_agreement(frame)):
        figure.canvas.draw()
    graph = Graph.of(model)
    for edge, sender, receiver in frame[["edge", "sender", "receiver"]].drop_duplicates().itertuples(index=False):
        ends = graph.edge(edge)
        assert (graph.senders[ends[0]].label, graph.receivers[ends[1]].label) == (sender, receiver)


def test_prompts_without_a_contrast_have_no_effects_and_still_a_report() -> None:
    model = make("gpt2")
    pairs = interp.PromptPairs.from_tokens([[1, 2, 3]], answers=[(4, 5)])
    frame = run(model, pairs, sample=4, progress=False)
    assert frame["value"].abs().max() < 1e-6 and frame["effect"].isna().all()


def test_the_command_prints_edges(talker: Path) -> None:
    words = [
        "run",
        "edge-attribution",
        "--model",
        str(talker),
        "--prompt",
        "Mary saw Paul",
        "--corrupt",
        "Mary saw John",
    ]
    done = CliRunner().invoke(main, [*words, "--answer", " Mary", "--wrong", " John", "--sample", "5", "--quiet"])
    assert done.exit_code == 0 and "->" in done.stdout, done.output
    refused = CliRunner().invoke(main, [*words, "--metric", "rank"])
    assert refused.exit_code == 2 and "metric with a gradient" in refused.output


@pytest.mark.parametrize("study", ["edge-attribution", "circuit"])
def test_the_manifest_says_in_how_many_steps_the_path_was_taken(study: str, talker: Path, tmp_path: Path) -> None:
    words = ["run", study, "--model", str(talker), "--n", "2", "--quiet", "--out", str(tmp_path)]
    assert CliRunner().invoke(main, words).exit_code == 0
    assert json.loads((tmp_path / f"{study}.manifest.json").read_text())["options"]["steps"] == 5


def test_what_the_study_cannot_do_is_refused() -> None:
    with pytest.raises(InterpError, match="steps must be at least 1, not 0"):
        run(make("gpt2"), pairs_of(4), method="eap", steps=0)
    with pytest.raises(UnknownName, match="did you mean 'eap-ig-inputs'"):
        run(make("gpt2"), pairs_of(4), method="eap-ig-input")


@pytest.mark.slow
def test_on_the_real_model_exact_edges_confirm_the_estimates() -> None:
    model = interp.load("smollm2-135m")
    frame = run(model, ioi(model, n=4), sample=20, progress=False)
    found = compared(frame).set_index("quantity")
    assert found.loc["correlation", "value"] > found.loc["correlation of shuffled cells", "ci_high"]
    assert torch.isfinite(torch.tensor(frame["value"].to_numpy())).all()
