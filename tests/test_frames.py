"""Frames that were kept in a file sum up and look the same as before."""

from __future__ import annotations

import importlib
import inspect
import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from makers import make, named_pairs

from analyses import circuit as circuit_study
from analyses import edge_attribution, head_attribution, head_detectors, logit_lens, patchscope, path_patching, probes
from interp import figures, frames
from interp.errors import ConfigError
from interp.figures.style import Figure

STUDIES: list[tuple[str, dict[str, Any]]] = [
    ("logit_lens", {}),
    ("logit_lens", {"pos": "all", "top": 2}),
    ("head_attribution", {}),
    ("head_detectors", {"n": 2}),
    ("ablation", {"cumulative": 2, "draws": 1}),
    ("activation_patching", {"site": "resid_pre", "by": "role"}),
    ("attribution_patching", {"sample": 4}),
    ("attribution_patching", {"site": "resid_pre", "by": "role", "sample": 4}),
    ("attention_patterns", {}),
    ("path_patching", {}),
    ("edge_attribution", {"sample": 4}),
    ("circuit", {"sizes": "0.1,1.0", "draws": 1}),
    ("probes", {"shuffles": 2, "by": "role"}),
    ("patchscope", {}),
    ("steering", {"labels": [(at % 2, 1 - at % 2) for at in range(6)], "neutral": None}),
    ("tuned_lens", {"sequences": 8, "length": 12, "steps": 1}),
]


KEPT: dict[tuple[str, str, str], pd.DataFrame] = {}


def measured(name: str, options: dict[str, Any], kind: str = "gpt2") -> pd.DataFrame:
    """What a study measures, once."""
    key = (name, str(options), kind)
    if key not in KEPT:
        KEPT[key] = _measured(name, options, kind)
    return KEPT[key]


def _measured(name: str, options: dict[str, Any], kind: str) -> pd.DataFrame:
    run = importlib.import_module(f"analyses.{name}").run
    quiet = {"progress": False} if "progress" in inspect.signature(run).parameters else {}
    return run(make(kind), named_pairs(6), **options, **quiet)


def same_rows(table: pd.DataFrame, other: pd.DataFrame) -> None:
    """Equal values; a column of whole numbers may have another type, as float32 may be the digits of a CSV file."""
    pd.testing.assert_frame_equal(table, other, check_dtype=False, rtol=1e-6)


def drawn(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "options"), STUDIES, ids=str)
def test_a_studys_frame_sums_up_and_looks_the_same_from_a_file(name: str, options: dict[str, Any]) -> None:
    study, frame = importlib.import_module(f"analyses.{name}"), measured(name, options)
    back = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    same_rows(study.summary(back), study.summary(frame))
    assert drawn(study.plot(back)) == drawn(study.plot(frame))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("kind", ["gpt2", "hybrid"])
def test_a_frame_that_is_read_again_is_written_as_it_was(kind: str, suffix: str, tmp_path: Path) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet files need pyarrow")
    for name, options in STUDIES[:1] + STUDIES[2:3] + STUDIES[4:5] + STUDIES[9:10]:
        frame, path = measured(name, options, kind), tmp_path / f"{name}.{suffix}"
        frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
        study = importlib.import_module(f"analyses.{name}")
        same_rows(study.summary(frames.read(path)), study.summary(frame))
        assert frames.read(path).to_csv() == frames.restored(frame).to_csv()


def test_reading_keeps_tokens_that_look_like_nothing_or_like_numbers(tmp_path: Path) -> None:
    words = ["", "None", "NA", " 7", "01", "nan"]
    layers = pd.array([0, None, 2, 3, 4, 5], "Int64")
    frame = pd.DataFrame({"token": words, "layer": layers, "value": [0.1, None, 1e-300, 3.0, float("inf"), 0.0]})
    frame.to_csv(tmp_path / "frame.csv", index=False)
    back = frames.read(tmp_path / "frame.csv")
    assert back["token"].tolist() == words and back["layer"].equals(frame["layer"])
    assert back["value"].equals(frame["value"])
    with pytest.raises(ConfigError, match=r"absent\.csv.* cannot be read as a table"):
        frames.read(tmp_path / "absent.csv")


def test_a_frame_that_is_right_is_left_alone() -> None:
    frame = pd.DataFrame({"role": ["S", ""], "layer": [0, 1], "rank": [1, 2], "value": [1.0, 2.0]})
    assert frames.restored(frame) is frame
    fractions = pd.DataFrame({"pos": [0.5, 1.0]})
    assert frames.restored(fractions) is fractions


def test_figures_draw_a_table_with_empty_roles_from_a_file() -> None:
    table = pd.DataFrame({"layer": [0, 0, 1, 1], "role": ["", "S"] * 2, "value": [1.0, 2.0, 3.0, 4.0]})
    back = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    for draw in (
        lambda frame: figures.heatmap(frame, x="role", y="layer"),
        lambda frame: figures.bars(frame[:2], x="role"),
    ):
        assert drawn(draw(back)) == drawn(draw(table))
    assert drawn(figures.lines(back, x="layer", hue="role")) == drawn(figures.lines(table, x="layer", hue="role"))


@pytest.mark.parametrize(
    ("draw", "study", "options"),
    [
        (logit_lens.plot_rank, logit_lens, {}),
        (logit_lens.plot_answer, logit_lens, {}),
        (lambda frame: head_attribution.plot_parts(frame, "head"), head_attribution, {}),
        (head_detectors.plot_scores, head_detectors, {"n": 2}),
        (patchscope.plot_layers, patchscope, {}),
        (lambda frame: probes.plot_scores(frame, ["A", "END"]), probes, {"shuffles": 2, "by": "role"}),
    ],
)
def test_figures_of_summaries_take_the_frame_alike(draw: Any, study: Any, options: dict[str, Any]) -> None:
    frame = measured(study.__name__.rpartition(".")[2], options)
    assert drawn(draw(frame)) == drawn(draw(study.summary(frame)))


def test_a_summary_that_is_there_already_is_drawn_as_it_is() -> None:
    frame = measured("path_patching", {})
    table = path_patching.summary(frame)
    assert drawn(path_patching.plot(frame, table=table)) == drawn(path_patching.plot(frame))
    frame = measured("edge_attribution", {"sample": 4})
    table = edge_attribution.summary(frame)
    assert drawn(edge_attribution.plot(frame, table=table)) == drawn(edge_attribution.plot(frame))
    frame = measured("circuit", {"sizes": "0.1,1.0", "draws": 1})
    tables = {"table": circuit_study.summary(frame), "areas": circuit_study.integrals(frame)}
    assert drawn(circuit_study.plot(frame, **tables)) == drawn(circuit_study.plot(frame))
