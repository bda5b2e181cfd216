"""Activation patching against transformer_lens's own loop, and what its tables and figures say."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Generator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from makers import RECURRENT, make, started_pairs
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.text import Text
from torch import Tensor

from analyses.activation_patching import plan, plot, run, summary
from analyses.cli import main
from analyses.sections.activation_patching import report
from interp.errors import ConfigError, InterpError, UnknownName
from interp.figures.style import Figure
from interp.metrics import measure
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.sweeps.run_chunk import Job
from interp.variants.granularity import GRANULARITIES

EVERY = [("llama_gqa", name) for name in GRANULARITIES] + [
    *(("gpt2", name) for name in ("block_every", "attn_head_k_by_pos", "attn_head_all_pos_every")),
    *(("neox", name) for name in ("block_every", "attn_head_by_pos_every")),
    *(("attn_only", name) for name in ("attn_out", "attn_head_all_pos_every")),
    ("bidirectional", "attn_head_pattern_dest_src_pos"),
]
THEIR_AXES = {"head_index": "head", "dest_pos": "query", "src_pos": "key", "example": "prompt"}
THEIR_SITES = {"out": "z"}
LINKS = {"query", "key", "query_token", "key_token", "query_role", "key_role"}


def theirs(name: str, model: GPT, pairs: PromptPairs) -> pd.DataFrame:
    """What transformer_lens's function of this name measures on our model, cell by cell."""
    from transformer_lens import patching

    _, clean = model.run_with_cache(pairs.clean)
    sizes = {"n_layers": model.cfg.n_layers, "n_heads": model.cfg.n_heads, "n_key_value_heads": model.cfg.n_kv_heads}
    shell = SimpleNamespace(cfg=SimpleNamespace(**sizes, device="cpu"), run_with_hooks=model.run_with_hooks)

    def logit_diff(logits: Tensor) -> Tensor:
        right, wrong = logits[:, -1].gather(1, pairs.answers).unbind(1)
        return right - wrong

    with torch.no_grad():
        result = getattr(patching, f"get_act_patch_{name}")(shell, pairs.corrupt, clean, logit_diff, reduce="none")
    frame = result.to_dataframe().rename(columns=THEIR_AXES).drop(columns="metric")
    if "patch_type_name" not in frame:
        return frame
    return frame.assign(site=frame["patch_type_name"].replace(THEIR_SITES)).drop(
        columns=["patch_type", "patch_type_name"]
    )


@pytest.mark.slow  # transformer_lens takes seconds to import
@pytest.mark.filterwarnings("ignore")  # ... and imports what is deprecated
@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_granularity_measures_what_transformer_lens_measures(kind: str, name: str) -> None:
    model, pairs = make(kind).eval(), started_pairs(4, 4)
    ours = run(model, pairs, granularity=name, progress=False)
    if "kv_head" in ours:
        ours["head"] = ours["kv_head"].fillna(ours["head"]) if "head" in ours else ours["kv_head"]
    expected = theirs(name, model, pairs)
    cell = [column for column in expected if column != "value"]
    both = ours.merge(expected, on=cell, suffixes=("", "_expected"))
    assert len(both) == len(ours) == len(ours[cell].drop_duplicates())
    assert both["value"].tolist() == pytest.approx(both["value_expected"].tolist(), rel=1e-4, abs=1e-5)
    assert both["effect"].abs().max() > 1e-3
    missing = expected.merge(ours[cell], on=cell, how="left", indicator=True).query("_merge == 'left_only'")
    if "key" in cell and model.cfg.causal:
        assert (missing["key"] > missing["query"]).all() and len(missing) == 2 * 4 * 6 * 2
        base = missing["prompt"].map(ours.groupby("prompt")["base_value"].first())
        assert missing["value"].tolist() == pytest.approx(base.tolist(), rel=1e-5)  # zero in both runs
    else:
        padded = 2 * (4 - model.cfg.n_kv_heads) * 2 * 2 * (4 if "pos" in cell else 1) if "site" in cell else 0
        assert len(missing) == (padded if "head" in cell else 0)
        assert (missing["value"] == 0).all()  # they fill up kv heads with zeros


def test_a_cell_of_a_pattern_is_one_query_and_one_key() -> None:
    model, pairs = make("llama_gqa"), started_pairs(5)
    frame = run(model, pairs, site="pattern", by="head,query,key", progress=False).set_index(
        ["layer", "head", "query", "key"]
    )
    name = "blocks.1.attn.hook_pattern"
    _, clean = model.run_with_cache(pairs.clean, names_filter=[name])

    def patched(pattern: Tensor, hook: object) -> Tensor:
        pattern = pattern.clone()
        pattern[:, 3, 4, 1] = clean[name][:, 3, 4, 1]
        return pattern

    logits = model.run_with_hooks(pairs.corrupt, fwd_hooks=[(name, patched)])[0, -1].detach()
    right, wrong = pairs.answers[0].tolist()
    assert frame.loc[(1, 3, 4, 1), "value"] == pytest.approx(float(logits[right] - logits[wrong]), rel=1e-4)
    assert frame.loc[(1, 3, 4, 1), "effect"] != 0


@pytest.mark.parametrize(
    ("kind", "site", "by", "cells", "columns"),
    [
        ("llama_gqa", "z", "head,pos", 2 * 4 * 5, {"head", "pos", "token", "role"}),
        ("llama_gqa", "z", ("pos", "head"), 2 * 5 * 4, {"head", "pos", "token", "role"}),
        ("llama_gqa", "k,v", "head,pos", 2 * 2 * 2 * 5, {"kv_head", "pos", "token", "role"}),
        ("llama_gqa", ["z", "k"], "head", 2 * 4 + 2 * 2, {"head", "kv_head"}),
        ("llama_gqa", "hook_z, z", "layer", 2, set()),
        ("llama_gqa", "resid_pre,mlp_out", None, 4, set()),
        ("llama_gqa", "z", "head,role", 2 * 4 * 2, {"head", "role"}),
        ("llama_gqa", "z,pattern", "head,role", 2 * 2 * 4 * 2, {"head", "role"}),
        ("llama_gqa", "pattern", "query", 2 * 5, {"query", "query_token", "query_role"}),
        ("llama_gqa", "pattern", "pos", 2 * 5, {"pos", "token", "role"}),
        ("llama_gqa", "pattern", "query,key", 2 * 15, LINKS),
        ("bidirectional", "pattern", "query,key", 2 * 25, LINKS),
        ("llama_gqa", "attn_scores", "head,key", 2 * 4 * 5, {"head", "key", "key_token", "key_role"}),
    ],
)  # fmt: skip
def test_cells_are_cut_by_any_axes_of_a_site(kind: str, site: Any, by: Any, cells: int, columns: set[str]) -> None:
    frame = run(make(kind), started_pairs(5, 5), site=site, by=by, progress=False)
    measured = {"direction", "site", "layer", "prompt", "metric", "value", "base_value", "source_value", "effect"}
    measured.add("rounding")
    assert len(frame) == cells * 2 and set(frame) == measured | columns
    assert list(frame)[:3] == ["direction", "site", "layer"] and list(frame)[-1] == "effect"
    table = summary(frame)
    assert len(table) == cells and (table["n"] == 2).all()
    assert columns <= set(table)


def test_the_directions_are_two() -> None:
    with pytest.raises(UnknownName, match="no direction matches 'denoising'; did you mean 'denoise'"):
        run(make("gpt2"), started_pairs(5), direction="denoising")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"granularity": "resid_pre"},
        {"site": "q,k", "by": "role"},
        {"by": None, "direction": "noise", "metric": "kl"},
    ],
)
def test_a_plan_has_the_cells_that_a_run_measures(options: dict[str, Any]) -> None:
    model, pairs = make("llama_gqa"), started_pairs(5, 5)
    planned = plan(model, pairs, **options, max_memory=10**7)
    assert planned.cells == len(run(model, pairs, **options, progress=False)) and planned.max_memory == 10**7
    assert not any(point.has_hooks for point in model.hook_dict.values())


def test_a_run_hands_its_means_to_the_sweep(tmp_path: Path) -> None:
    model, pairs = make("gpt2"), started_pairs(5, 5)
    seen = []

    def executor(job: Job, chunks: Sequence[int]) -> Generator[tuple[int, Any], None, None]:
        for index in chunks:
            seen.append(job.plan.max_memory)
            yield index, job.run(index)

    options: dict[str, Any] = {"granularity": "attn_head_out_by_pos", "progress": False}
    for _ in range(2):  # the second finds everything in the folder
        frame = run(model, pairs, **options, out=tmp_path / "cells", executor=executor, max_memory=10**7)
        assert frame.equals(run(model, pairs, **options))
        assert seen == [10**7] * len(plan(model, pairs, granularity=options["granularity"]).chunks)
    with pytest.raises(ConfigError, match="max_memory=10 bytes is too little"):
        run(model, pairs, **options, max_memory=10)


def test_a_patterns_position_is_its_destination() -> None:
    model, pairs = make("gpt2"), started_pairs(5, 5)
    by_pos, by_query = (run(model, pairs, site="pattern", by=by, progress=False) for by in ("head,pos", "head,query"))
    assert by_pos["value"].tolist() == by_query["value"].tolist()
    assert by_pos["pos"].tolist() == by_query["query"].tolist()


def test_positions_carry_the_clean_token_and_its_role() -> None:
    pairs = started_pairs(5, 5)
    frame = run(make("gpt2"), pairs, granularity="resid_pre", progress=False)
    at = frame[(frame["prompt"] == 1) & (frame["pos"] == 1)].iloc[0]
    assert (at["token"], at["role"]) == (str(int(pairs.clean[1, 1])), "changed")
    table = summary(frame).drop_duplicates("pos").set_index("pos")
    assert table.loc[0, "token"] == "7" and table.loc[1, "token"] == "…" and table.loc[1, "role"] == "changed"


def test_two_roles_that_take_turns_at_a_position_are_both_named() -> None:
    rows = [[1, 2, 3], [4, 5, 3]]
    roles = [{"IO": 0, "S": 1, "END": 2}, {"S": 0, "IO": 1, "END": 2}]
    pairs = PromptPairs.from_tokens(rows, [[9, 9, 3], [8, 8, 3]], answers=[(1, 2), (4, 5)], roles=roles)
    frame = run(make("gpt2"), pairs, site="z", by="pos", progress=False)
    assert set(summary(frame)["role"]) == {"IO/S", "S/IO", "END"}
    assert {"0: IO/S", "1: S/IO", "2: 3"} <= texts(plot(frame))


def panels(figure: Figure) -> dict[str, np.ndarray[Any, Any]]:
    """The numbers of every panel by its title."""
    axes = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    meshes = [next(artist for artist in panel.collections if isinstance(artist, QuadMesh)) for panel in axes]
    titles = [panel.get_title(loc="left") for panel in axes]
    return {title: mesh.get_array().filled(np.nan) for title, mesh in zip(titles, meshes, strict=True)}


def texts(figure: Figure) -> set[str]:
    FigureCanvasAgg(figure).draw()
    return {text.get_text().replace("\n", " ") for text in figure.findobj(Text) if text.get_visible()} - {""}


def test_the_map_of_a_block_has_a_panel_for_every_site_and_names_positions_and_runs() -> None:
    frame = run(make("gpt2"), started_pairs(5, 5), granularity="block_every", progress=False)
    figure = plot(frame)
    shown = panels(figure)
    assert list(shown) == ["resid_pre", "attn_out", "mlp_out"]
    means = frame[frame["site"] == "mlp_out"].pivot_table(index="layer", columns="pos", values="effect")
    np.testing.assert_allclose(shown["mlp_out"], means)
    assert {"0: 7", "1: changed", "2: …", "4: END", "effect on logit diff (0 corrupt run, 1 clean run)"} <= texts(
        figure
    )
    noised = plot(run(make("gpt2"), started_pairs(5, 5), granularity="resid_pre", direction="noise", progress=False))
    assert "effect on logit diff (0 clean run, 1 corrupt run)" in texts(noised)


def test_a_key_value_head_stands_under_the_heads_that_read_it() -> None:
    frame = run(make("llama_gqa"), started_pairs(5, 5), granularity="attn_head_all_pos_every", progress=False)
    shown = panels(plot(frame))
    assert list(shown) == ["z", "q", "k (by key-value head)", "v (by key-value head)", "pattern"]
    means = frame[frame["site"] == "k"].pivot_table(index="layer", columns="kv_head", values="effect").to_numpy()
    np.testing.assert_allclose(shown["k (by key-value head)"], means.repeat(2, axis=1))
    alone = plot(frame[frame["site"] == "k"].drop(columns="head"))
    assert panels(alone)[""].shape == (2, 2) and "key-value head" in texts(alone)
    by_pos = plot(run(make("llama_gqa"), started_pairs(5, 5), granularity="attn_head_v_by_pos", progress=False))
    assert {"L1KV0", "key-value head"} <= texts(by_pos)
    every = panels(plot(run(make("gpt2"), started_pairs(5), granularity="attn_head_all_pos_every", progress=False)))
    assert list(every) == ["z", "q", "k", "v", "pattern"]


def effects(n_layers: int, cut: dict[str, int], *, site: str = "z") -> pd.DataFrame:
    """A table as `run` gives it: effects grow with the head and are largest at position 0."""
    frame = pd.MultiIndex.from_product(
        [range(n_layers), *map(range, cut.values()), range(2)], names=["layer", *cut, "prompt"]
    ).to_frame(index=False)
    first = frame[next(name for name in cut if name != "head")]
    effect = (frame["head"] + frame["layer"] / 10) / (1.0 + first)
    return frame.assign(direction="denoise", site=site, metric="logit_diff", effect=effect)


def test_of_heads_by_position_the_strongest_are_rows_in_the_models_order() -> None:
    figure = plot(effects(3, {"head": 12, "pos": 4}))
    assert any(re.findall(r"\d+", text) == ["24", "36"] for text in texts(figure))  # heads shown, of all
    (shown,) = panels(figure).values()
    assert shown.shape == (24, 4)
    np.testing.assert_allclose(shown[:, 0], [head + layer / 10 for layer in range(3) for head in range(4, 12)])
    assert {"L0H4", "L2H11", "head", "position"} <= texts(figure) and "L0H3" not in texts(figure)
    few = plot(effects(2, {"head": 3, "pos": 4}))
    assert next(iter(panels(few).values())).shape == (6, 4) and not any("largest" in text for text in texts(few))


def test_of_patterns_by_destination_and_source_the_strongest_heads_are_panels() -> None:
    frame = effects(3, {"head": 4, "query": 3, "key": 3}, site="pattern")
    frame = frame[frame["key"] <= frame["query"]]
    figure = plot(frame.sample(frac=1, random_state=0))
    shown = panels(figure)
    assert list(shown) == [f"L{layer}H{head}" for layer in range(3) for head in (1, 2, 3)]
    assert np.isnan(shown["L2H3"][0, 1:]).all() and shown["L2H3"][1, 0] == pytest.approx(3.2 / 2)  # [query, key]
    assert {"destination (query)", "source (key)"} <= texts(figure)


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize(("site", "by"), [("state", "pos"), ("B,C,delta", "role"), ("y", "pos"), ("gated,out", None)])
def test_a_cell_of_a_mixer_is_a_full_forward_with_its_values(kind: str, site: str, by: str | None) -> None:
    model, pairs = make(kind), started_pairs(6, 6)
    frame = run(model, pairs, site=site, by=by, progress=False)
    _, clean = model.run_with_cache(pairs.clean)
    cells = frame[frame["prompt"] == 1].to_dict("records")
    for cell in cells[:: max(1, len(cells) // 6)]:
        name = f"blocks.{cell['layer']}.mixer.hook_{cell['site']}"
        at: Any = slice(None) if by is None else pairs.roles[1][cell["role"]] if by == "role" else cell["pos"]

        def patch(x: Tensor, hook: Any, name: str = name, at: Any = at) -> Tensor:
            new = x.clone()
            new[:, at] = clean[name][:, at]
            return new

        logits = model.run_with_hooks(pairs.corrupt, fwd_hooks=[(name, patch)]).detach()
        expected = measure("logit_diff", logits, pairs)[1]
        assert cell["value"] == pytest.approx(float(expected), rel=1e-3, abs=1e-4), cell
    plot(frame).canvas.draw()


@pytest.mark.parametrize("kind", RECURRENT)
def test_patching_everything_that_layers_add_gives_the_source_run(kind: str) -> None:
    model, pairs = make(kind), started_pairs(5, 5)
    last = model.cfg.n_layers - 1
    frame = run(model, pairs, site="resid_post", by=None, progress=False)
    assert frame[frame["layer"] == last]["effect"].tolist() == pytest.approx([1.0] * 2, abs=1e-4)
    usual = run(model, pairs, progress=False)
    assert set(usual["site"]) <= {"out", "attn_out"} and set(usual["role"]) == {"changed", "END"}
    whole = plan(model, pairs, site="out", by=None)
    assert whole.n_variants == sum(model.cfg.mixer(layer) in ("mamba", "mamba2") for layer in range(last + 1))


def test_heads_of_both_kinds_of_layers_share_a_figure_and_keep_their_names() -> None:
    model, pairs = make("hybrid"), started_pairs(5, 5)
    frame = run(model, pairs, by="head", progress=False)
    panels = {axes.get_title(loc="left") for axes in plot(frame).axes} - {""}
    assert panels == {"z", "gated"}
    by_pos = plot(run(model, pairs, by="head,pos", progress=False))
    names = {text.get_text() for axes in by_pos.axes for text in axes.get_yticklabels()}
    assert {"L1H0", "L0S5"} <= names


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_report_patches_every_head_or_mixer(kind: str) -> None:
    model, pairs = make(kind), started_pairs(6, 4, 6)
    frame, section, findings = report(model, pairs, {}, progress=False)
    mixers = model.cfg.mixers
    expected = {"attn": "patching_heads", "mamba2": "patching_ssm_heads", "mamba": "patching_mixers"}
    shown = [item.name for item in section.figures]
    assert shown == ["patching_roles", *(name for mixer, name in expected.items() if mixer in mixers)]
    by_part = frame[frame["role"].isna()]
    means = by_part.groupby(["site", "layer", *({"head", "ssm_head"} & set(frame))], dropna=False)["effect"].mean()
    assert f"({means.max():+.2f}, 95%" in findings[1] and f"({means.min():+.2f})" in findings[1]
    assert "the state by role" in section.figures[0].title


def test_figures_compare_directions_and_refuse_mixed_granularities() -> None:
    model, pairs = make("gpt2"), started_pairs(5, 5)
    ways = {
        way: run(model, pairs, granularity="attn_out", direction=way, progress=False) for way in ("denoise", "noise")
    }
    both = plot(pd.concat(list(ways.values())))
    assert list(panels(both)) == ["denoise", "noise"]
    assert "effect on logit diff (0 base run, 1 source run)" in texts(both)
    by_head = run(model, pairs, progress=False)
    with pytest.raises(InterpError, match="one figure shows one granularity; this frame mixes cells by head, pos"):
        plot(pd.concat([ways["noise"], by_head]))


# Seven tokens, as the tiny tokenizer cuts them.
PAIR = ("--prompt", "Mary saw Paul", "--corrupt", "Mary saw John", "--answer", " Mary", "--wrong", " John", "--quiet")


def call(talker: Path, *words: str) -> Any:
    return CliRunner().invoke(main, ["run", "activation-patching", "--model", str(talker), *words])


@pytest.mark.parametrize(
    ("words", "cells"),
    [
        (["--granularity", "attn_head_out_by_pos"], 2 * 4 * 7),
        (["--granularity", "attn_head_pattern_dest_src_pos"], 2 * 4 * 28),
        (["--granularity", "attn_head_by_pos_every"], (3 * 4 + 2 * 2) * 2 * 7),
        (["--site", "resid_pre,attn_out,mlp_out", "--by", "pos"], 3 * 2 * 7),
        (["--site", "k,v", "--by", "head,pos"], 2 * 2 * 2 * 7),
        (["--by", "layer"], 2),
        ([], 2 * 4),
    ],
)
def test_the_command_takes_granularities_sites_and_axes(words: list[str], cells: int, talker: Path) -> None:
    done = call(talker, *PAIR, *words, "--csv")
    assert done.exit_code == 0, (done.output, done.exception)
    assert len(pd.read_csv(io.StringIO(done.stdout))) == cells


def test_the_command_keeps_what_was_asked_for_with_the_figure(talker: Path, tmp_path: Path) -> None:
    done = call(talker, *PAIR, "--granularity", "block_every", "--out", str(tmp_path))
    assert done.exit_code == 0, (done.output, done.exception)
    assert (tmp_path / "activation-patching.pdf").exists()
    options = json.loads((tmp_path / "activation-patching.manifest.json").read_text())["options"]
    assert (options["granularity"], options["site"], options["by"]) == ("block_every", None, None)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--granularity", "resid_pree"], "no granularity matches 'resid_pree'; did you mean 'resid_pre'"),
        (["--granularity", "resid_pre", "--by", "head"], "leave out site and by"),
        (["--granularity", "resid_pre", "--site", "z"], "leave out site and by"),
        (["--by", "head,position"], "no axis to patch by matches 'position'"),
        (["--site", "q,zz"], "no site matches 'zz'"),
    ],
)
def test_the_command_refuses_in_one_line(words: list[str], says: str, talker: Path) -> None:
    done = call(talker, *PAIR, *words)
    assert done.exit_code == 2 and says in done.stderr and not done.stdout
    assert done.stderr.strip().count("\n") == 0 and "Traceback" not in done.output
