"""The study of circuits: its rows are what the rooms say, its report is true whatever the model does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from makers import make, pairs_of

import interp
from analyses import circuit as study
from analyses.sections import circuit as told
from analyses.sections import edge_attribution as edges
from interp.circuits.circuit import Circuit
from interp.circuits.edge_scores import eap
from interp.circuits.faithfulness import cmd, cpr, faithfulness
from interp.circuits.graph import Graph
from interp.circuits.run import run_circuits
from interp.circuits.search import circuits
from interp.errors import ConfigError, UnknownName
from interp.models.gpt import GPT
from interp.study.sections import ReportResults, edge_scores_of
from interp.tasks import ioi


@pytest.mark.parametrize("kind", ["llama_gqa", "neox", "attn_only", "one_part_a_layer"])
def test_rows_are_circuits_found_on_one_half_and_run_on_the_other(kind: str, tmp_path: Path) -> None:
    model, pairs = make(kind), pairs_of(6, 4, 6, 5)
    graph = Graph.of(model)
    frame = study.run(model, pairs, method="eap", sizes="20,0.5", draws=2, out=tmp_path, progress=False)
    made = circuits(eap(model, pairs[:2]), [20, graph.n_edges // 2, graph.n_edges], graph)
    expected = run_circuits(model, pairs[2:], made).numpy()
    own = frame[frame["method"] == "eap"].pivot(index="n_taken", columns="prompt", values="value")
    np.testing.assert_allclose(own, expected, atol=1e-5)
    assert frame[frame["method"] == "eap"]["n_edges"].unique().tolist() == [c.n_edges for c in made]
    random = frame[frame["method"] == "random"]
    assert random.groupby("n_edges")["draw"].nunique().tolist()[-1] == 1
    assert set(random["n_edges"]) == {c.n_edges for c in made}
    whole = frame[frame["n_edges"] == graph.n_edges]
    assert whole["faithfulness"].dropna().eq(1).all() and (whole["value"] == whole["full_value"]).all()
    saved = Circuit.load(next(tmp_path.glob("circuit-*.json")), model)
    assert any(torch.equal(saved.edges, one.edges) for one in made) and saved.found["method"] == "eap"


def test_the_summary_and_the_areas_are_those_of_the_definitions() -> None:
    frame = study.run(make("gpt2"), pairs_of(5, 5, 5, 5, 5, 5), steps=2, draws=3, progress=False)
    table, areas = study.summary(frame), study.integrals(frame).set_index(["method", "metric"])["value"]
    for method in ("eap-ig-inputs", "random"):
        part = frame[frame["method"] == method]
        mean = part.groupby(["fraction", "prompt"])["value"].mean().unstack()
        ends = [part.groupby("prompt")[name].first().to_numpy() for name in ("full_value", "empty_value")]
        curve = faithfulness(mean.to_numpy(), *ends).value
        assert table[table["method"] == method]["value"].tolist() == pytest.approx(curve.tolist())
        assert areas[method, "CPR"] == pytest.approx(cpr(mean.index, curve))
        assert areas[method, "CMD"] == pytest.approx(cmd(mean.index, curve))
    assert table["n"].eq(3).all() and set(table["draws"]) == {1, 3}
    study.plot(frame).canvas.draw()


def test_acdc_is_a_method_too(tmp_path: Path) -> None:
    model = make("attn_only")
    frame = study.run(model, pairs_of(5, 5), method="acdc", tau=0.005, candidates=40, progress=False)
    own = frame[frame["method"] == "acdc"]
    assert own["n_edges"].nunique() == 2 and own["n_edges"].min() < 40
    study.plot(frame).savefig(tmp_path / "acdc.png")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"method": "acdk"}, UnknownName, "did you mean 'acdc'"),
        ({"sizes": "few"}, ConfigError, "is not a circuit size"),
        ({"rank": "best"}, UnknownName, "no rank matches"),
        ({"selection": "any"}, UnknownName, "no selection matches"),
        ({"metric": "rank"}, UnknownName, "rank"),
    ],
)
def test_what_the_study_cannot_do_is_refused(options: dict[str, str], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        study.run(make("gpt2"), pairs_of(4, 4), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "lengths"), [
    ("gpt2", (5, 5, 5)), ("attn_only", (5,)), ("alibi", (6, 4)), ("hybrid", (5, 5, 5)), ("mamba", (6, 4))
])  # fmt: skip
def test_a_report_is_made_of_the_numbers(kind: str, lengths: tuple[int, ...]) -> None:
    model = make(kind, n_layers=1) if len(lengths) == 1 else make(kind)
    frame, section, findings = told.report(model, pairs_of(*lengths), {}, progress=False)
    table = study.summary(frame)
    own = table[(table["method"] != "random") & (table["value"] >= told.ENOUGH)].sort_values("n_edges")
    assert f"has {own['n_edges'].iloc[0]:,} of {Graph.of(model).n_edges:,} edges" in findings[0]
    assert ("95% interval" in findings[0]) == (len(lengths) - len(lengths) // 2 > 1)
    complete, minimal = (frame for _, frame in section.appended_tables[1:])
    assert complete["part"].iloc[-1] == "all its nodes" and minimal["score"].ge(0).all()
    for item in (*section.figures, *section.appended_figures):
        item.figure.canvas.draw()


def test_a_report_takes_the_scores_that_edge_attribution_has_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs, results = make("llama_gqa"), pairs_of(6, 4, 6, 5), ReportResults()
    expected = told.report(model, pairs, {}, progress=False).frame
    edges.report(model, pairs, results, progress=False)
    monkeypatch.setattr("interp.circuits.finding.eap_ig", lambda *_, **__: pytest.fail("they are made anew"))
    found = told.report(model, pairs, results, progress=False).frame
    np.testing.assert_allclose(found["value"], expected["value"], rtol=1e-4, atol=1e-5)
    monkeypatch.undo()
    assert edge_scores_of(results, pairs) is not None and edge_scores_of(results, pairs[:2]) is None  # other prompts


def test_a_report_says_where_nothing_is_to_be_found() -> None:
    model, pairs = make("gpt2"), pairs_of(5, 5, 5)
    same = type(pairs).from_tokens(pairs.clean, pairs.clean, answers=pairs.answers)
    _, section, findings = told.report(model, same, {}, progress=False)
    assert findings == [section.text[-1]]
    assert re.fullmatch(r"No circuit .*: the two runs differ by no more than rounding \(.*\)\.", findings[0])


def test_the_command_prints_a_table_and_saves_circuits(talker: Path, tmp_path: Path) -> None:
    words = [
        "--model",
        str(talker),
        "--n",
        "2",
        "--method",
        "eap",
        "--sizes",
        "10,40",
        "--out",
        str(tmp_path),
        "--quiet",
    ]
    done = CliRunner().invoke(study.main, words)
    assert done.exit_code == 0, done.output
    assert "faithfulness in logit_diff" in done.output
    saved = list(tmp_path.glob("**/circuit-*.json"))
    assert saved and Circuit.load(saved[0], interp.load(talker, device="cpu")).found["n_prompts"] == 1


@pytest.mark.slow
def test_the_circuit_of_indirect_objects_in_a_real_model() -> None:
    model: GPT = interp.load("smollm2-135m", device="cpu")
    frame = study.run(model, ioi(model, n=4), steps=2, sizes="0.01", draws=1, progress=False)
    table = study.summary(frame).set_index(["method", "fraction"])["value"]
    own, random = table["eap-ig-inputs"], table["random"]
    assert (own > 0.5).all() and random.iloc[0] < 0.1
