"""The study of paths: its table, figure and sentences, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from makers import EDGED, SUMS, make, pairs_of

from analyses import activation_patching, head_attribution, path_patching
from analyses.sections.path_patching import report
from interp.circuits.graph import Graph
from interp.errors import InterpError, PromptError, UnknownName
from interp.prompts.pairs import PromptPairs


@pytest.mark.parametrize("kind", SUMS)
def test_every_head_is_a_sender_to_the_logits(kind: str) -> None:
    model, pairs = make(kind), pairs_of()
    frame = path_patching.run(model, pairs, progress=False)
    assert len(frame) == 2 * model.cfg.n_heads * 3
    summary = path_patching.summary(frame)
    assert summary["n"].eq(3).all() and (summary["p_adjusted"] >= summary["p"]).all()
    path_patching.plot(frame).canvas.draw()


@pytest.mark.parametrize("kind", EDGED)
def test_heads_and_state_space_layers_are_senders_to_the_logits(kind: str) -> None:
    model, pairs = make(kind), pairs_of()
    frame = path_patching.run(model, pairs, progress=False)
    graph = Graph.of(model)
    assert set(frame["sender"]) == {node.label for node in graph.senders if node.kind in ("attn", "ssm")}
    sites = {"L": {"z", "gated"}, "m": {"out"}}
    assert all(row.site in sites[row.sender[0]] for row in frame.itertuples())
    path_patching.plot(frame).canvas.draw()
    path_patching.plot(path_patching.run(model, pairs, senders="all", progress=False)).canvas.draw()


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "hybrid"])
def test_by_all_paths_to_the_logits_a_state_space_layer_is_patched_whole(kind: str) -> None:
    model, pairs = make(kind), pairs_of()
    site, by = ("out", None) if kind == "mamba" else ("gated", "ssm_head")
    keys = ["layer", *(["ssm_head"] if by else []), "prompt"]
    paths = path_patching.run(model, pairs, through="all", direction="denoise", progress=False)
    paths = paths[paths["site"] == site].set_index(keys)["effect"]
    whole = activation_patching.run(model, pairs, site=site, by=by, progress=False).set_index(keys)["effect"]
    both = pd.concat([paths, whole], axis=1, join="inner")
    assert len(both) == len(paths) > 0
    np.testing.assert_allclose(*both.to_numpy().T, atol=1e-3)


def test_many_heads_of_a_hybrid_are_one_grid() -> None:
    layers = ("mamba2", "attn+mlp", "mamba2")
    model = make("hybrid", d_ssm_head=2, n_ssm_groups=1, layer_types=layers, ssm_normalization_type=None)
    frame = path_patching.run(model, pairs_of(), senders="heads", progress=False)
    figure = path_patching.plot(frame)
    (axes,) = (axes for axes in figure.axes if axes.get_xlabel() == "head")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2"]


def test_without_a_norm_a_direct_path_to_the_logits_is_the_difference_of_direct_attributions() -> None:
    model, pairs = make("attn_only"), pairs_of(6, 6)
    frame = path_patching.run(model, pairs, senders="all", progress=False).set_index(["sender", "prompt"])
    sides = [pairs, PromptPairs.from_tokens(pairs.corrupt, pairs.clean, answers=pairs.answers)]
    clean, corrupt = (head_attribution.run(model, side).set_index(["component", "prompt"])["value"] for side in sides)
    for sender in ("L0H1", "L1H3"):
        for prompt in (0, 1):
            expected = corrupt[sender, prompt] - clean[sender, prompt]
            row = frame.loc[(sender, prompt)]
            assert row["value"] - row["base_value"] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert frame.groupby("prompt")["effect"].sum().tolist() == pytest.approx([1, 1], abs=1e-3)  # nothing is left over


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_by_all_paths_to_the_logits_it_is_activation_patching(direction: str) -> None:
    model, pairs = make("llama_gqa"), pairs_of()
    keys = ["layer", "head", "prompt"]
    paths = path_patching.run(model, pairs, through="all", direction=direction, progress=False).set_index(keys)
    whole = activation_patching.run(model, pairs, direction=direction, progress=False).set_index(keys)
    assert paths["effect"].sort_index().tolist() == pytest.approx(whole["effect"].sort_index().tolist(), abs=1e-3)


def test_only_senders_that_come_first_have_rows() -> None:
    model, pairs = make("llama_gqa"), pairs_of()
    frame = path_patching.run(model, pairs, receivers="L1H0:k,m0,logits", senders="all", progress=False)
    senders = frame.groupby("receiver", sort=False)["sender"].agg(lambda names: list(dict.fromkeys(names)))
    first = ["embed", "L0H0", "L0H1", "L0H2", "L0H3"]
    assert senders["MLP 0"] == first and senders["L1KV0 k"] == [*first, "MLP 0"] and len(senders["logits"]) == 11
    assert set(frame["site"]) == {"embed", "z", "mlp_out"} and frame.loc[frame["site"] != "z", "head"].isna().all()
    path_patching.plot(frame).canvas.draw()


def test_places_are_cells_and_together_they_are_not_more_than_everywhere() -> None:
    model, pairs = make("gpt2"), pairs_of(6, 6)
    options: dict[str, Any] = {"receivers": "L1H0:v", "senders": "input", "progress": False}
    frame = path_patching.run(model, pairs, pos="changed,END", **options)
    assert list(dict.fromkeys(frame["role"])) == ["changed", "END"]
    ends = frame[frame["role"] == "END"]
    assert ends["effect"].abs().max() == pytest.approx(0, abs=1e-5)  # the last tokens of both prompts are the same
    everywhere = path_patching.run(model, pairs, **options)
    changed = frame[frame["role"] == "changed"]  # and the embedding differs at this position alone
    assert changed["value"].tolist() == pytest.approx(everywhere["value"].tolist(), rel=1e-4)
    assert changed["effect"].abs().min() > 0
    last = path_patching.run(model, pairs, pos=[-1, 4], **options)
    assert set(last["pos"]) == {-1, 4}
    path_patching.plot(last).canvas.draw()


def test_what_is_held_in_memory_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, pairs = make("gpt2"), pairs_of()
    options: dict[str, Any] = {"receivers": "L1H0:q,logits", "senders": "all", "through": "mlps", "progress": False}
    whole = path_patching.run(model, pairs, **options)
    monkeypatch.setattr("interp.circuits.paths.MOST_BYTES", 3 * 2 * pairs.mask.numel() * 16 * 4)
    parts = path_patching.run(model, pairs, **options, out=tmp_path / "kept")
    keys = ["receiver", "sender", "prompt"]
    pd.testing.assert_frame_equal(
        *(frame.sort_values(keys).reset_index(drop=True) for frame in (whole, parts)), rtol=1e-4, atol=1e-4
    )
    assert len(list((tmp_path / "kept").iterdir())) == 4
    again = path_patching.run(model, pairs, **options, out=tmp_path / "kept")
    assert again.equals(parts)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"direction": "noisy"}, UnknownName, "did you mean 'noise'"),
        ({"through": "mlp"}, UnknownName, "did you mean 'mlps'"),
        ({"receivers": "L5H0:q"}, UnknownName, "no receiver matches"),
        ({"senders": "L5H0"}, UnknownName, "no sender matches"),
        ({"receivers": "L0H0:q"}, InterpError, "none of the senders 'mixers' comes before L0H0 q"),
        ({"pos": "S2"}, UnknownName, "no role matches 'S2'"),
        ({"pos": 5}, PromptError, "outside prompt 1"),
        ({"metric": "logit_dif"}, UnknownName, "did you mean 'logit_diff'"),
    ],
)  # fmt: skip
def test_what_is_no_path_is_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        path_patching.run(make("gpt2"), pairs_of(), **options, progress=False)


@pytest.mark.parametrize("kind", EDGED)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_report_goes_back_to_what_state_space_layers_read(kind: str, depth: int) -> None:
    types = make(kind).cfg.layer_types
    assert types is not None
    model, pairs = make(kind, layer_types=types * depth, n_layers=depth * len(types)), pairs_of(6, 6, 6, 6)
    patched = activation_patching.run(model, pairs, site="out", by=None, progress=False)
    frame, section, findings = report(model, pairs, {"activation_patching": patched}, progress=False)
    logits = frame[frame["receiver"] == "logits"].groupby("sender")["effect"].mean()
    best = logits.abs().idxmax()
    assert f"path from {best} has the largest effect ({logits[best]:+.2f}" in findings[0]
    assert len(section.figures) + len(section.appended_figures) == len(findings) and not any(
        "nan" in text for text in section.text
    )
    graph = Graph.of(model)
    ends = {end for name in set(frame["receiver"]) for end in name.split(" + ")}
    assert all(graph.receiver(end) >= 0 for end in ends if end.startswith("mixer"))
    if depth == 2 and kind in ("mamba", "mamba2"):
        assert any(end.startswith("mixer") for end in ends) and len(findings) > 1


@pytest.mark.parametrize("kind", ["llama_gqa", "attn_only"])
def test_a_report_goes_back_from_the_logits(kind: str) -> None:
    model, pairs = make(kind, n_layers=3), pairs_of(6, 6, 6, 6)
    patched = activation_patching.run(model, pairs, progress=False)
    frame, section, findings = report(model, pairs, {"activation_patching": patched}, progress=False)
    logits = frame[frame["receiver"] == "logits"].groupby("sender")["effect"].mean()
    best = logits.abs().idxmax()
    assert f"path from {best} has the largest effect ({logits[best]:+.2f}" in findings[0]
    assert (
        len(section.figures) + len(section.appended_figures) == len(findings) == 3
        and "One step further back" in findings[2]
    )
    assert not any("nan" in text for text in section.text)


def test_a_report_of_one_layer_one_prompt_or_equal_prompts() -> None:
    shallow = make("gpt2", n_layers=1)
    _, section, findings = report(shallow, pairs_of(5), {}, progress=False)
    assert len(section.figures) + len(section.appended_figures) == len(findings) == 1 and "interval" not in findings[0]
    pairs = pairs_of(5, 5)
    same = PromptPairs.from_tokens(pairs.clean, pairs.clean, answers=pairs.answers)
    _, section, findings = report(make("gpt2"), same, {}, progress=False)
    assert "the two runs differ by no more than rounding" in findings[0]


def test_half_precision_gives_nearly_the_same() -> None:
    model, pairs = make("llama_gqa"), pairs_of()
    full = path_patching.run(model, pairs, receivers="logits,L1H0:v", senders="heads", progress=False)
    half = path_patching.run(
        model.to(torch.bfloat16), pairs, receivers="logits,L1H0:v", senders="heads", progress=False
    )
    change, expected = (frame["value"] - frame["base_value"] for frame in (half, full))
    assert (change - expected).abs().max() < 0.1 < expected.abs().max()


def test_the_command_line_takes_receivers_and_senders(talker: Path) -> None:
    options = [
        "--model",
        str(talker),
        "--n",
        "2",
        "--receiver",
        "L1H0:q",
        "--sender",
        "heads",
        "--pos",
        "END",
        "--quiet",
    ]
    done = CliRunner().invoke(path_patching.main, [*options, "--csv"])
    assert done.exit_code == 0, done.output
    rows = done.stdout.strip().splitlines()
    assert len(rows) == 1 + 4 * 2 and rows[1].startswith("noise,direct,L1H0 q,L0H0,z,0,0,END,0,logit_diff")
