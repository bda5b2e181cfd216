"""Ablation against a plain loop of full forwards, and its curves against their two ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import KINDS, RECURRENT, make, pairs_of
from torch import Tensor

from analyses import ablation
from analyses.sections.ablation import report
from interp.errors import InterpError, PromptError, UnknownName
from interp.metrics import measure
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.sites import get_act_name
from interp.variants.ablations import ABLATIONS, replacements
from interp.variants.components import components, replaced

SITES = ("z", "attn_out", "mlp_out", "post")


def sites_of(model: GPT) -> list[str]:
    return [site for site in SITES if get_act_name(site, 0) in model.hook_dict]


def has(model: GPT, site: str) -> bool:
    return any(get_act_name(site, layer) in model.hook_dict for layer in range(model.cfg.n_layers))


def without(model: GPT, pairs: PromptPairs, gone: list[tuple[str, int | None]], kind: str) -> list[float]:
    """The clean prompts with some components of full sites replaced, by hand, in one forward."""
    stands = replacements(model, pairs, {name for name, _ in gone}, kind, run=run_of(kind))

    def hook_for(name: str, index: int | None) -> Any:
        def hook(value: Tensor, hook: Any) -> Tensor:
            if index is None:
                return stands[name]
            kept = [stands[name] if at == index else value for at in range(value.shape[2])]
            return torch.stack([one[:, :, at] for at, one in enumerate(kept)], dim=2)

        return hook

    hooks = [(name, hook_for(name, index)) for name, index in gone]
    logits = model.run_with_hooks(pairs.clean, fwd_hooks=hooks, attention_mask=pairs.attention_mask)
    found: list[float] = measure("logit_diff", logits, pairs).detach().tolist()
    return found


def run_of(kind: str) -> str:
    return "corrupt" if kind == "corrupt" else "clean"


@pytest.mark.parametrize("kind", ABLATIONS)
def test_every_single_ablation_equals_a_full_forward(kind: str) -> None:
    model, pairs = make("llama_gqa", d_mlp=6), pairs_of(6, 4, 6, 4)
    frame = ablation.run(model, pairs, kind=kind, site=SITES, progress=False)
    values = frame.pivot(index="component", columns="prompt", values="value")
    parts = components(model, SITES)
    assert list(dict.fromkeys(frame["component"])) == [part.name for part in parts] and len(parts) == 8 + 2 + 2 + 12
    for part in parts:
        expected = without(model, pairs, [(part.full_site, part.index)], kind)
        assert values.loc[part.name].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4), part.name
    assert frame["effect"].tolist() == pytest.approx((frame["base_value"] - frame["value"]).tolist())
    clean = measure("logit_diff", model(pairs.clean, attention_mask=pairs.mask), pairs).detach().tolist()
    assert frame["base_value"][:4].tolist() == pytest.approx(clean, rel=1e-4)


@pytest.mark.parametrize("name", RECURRENT)
def test_every_single_ablation_of_a_mixer_equals_a_full_forward(name: str) -> None:
    model, pairs = make(name), pairs_of(6, 4, 6)
    sites = ["gated", "out", *(site for site in ("z", "mlp_out") if has(model, site))]
    for kind in ("mean_by_role", "corrupt"):
        frame = ablation.run(model, pairs, kind=kind, site=sites, progress=False)
        values = frame.pivot(index="component", columns="prompt", values="value")
        parts = components(model, sites)
        assert list(dict.fromkeys(frame["component"])) == [part.name for part in parts]
        for part in parts[::5]:
            expected = without(model, pairs, [(part.full_site, part.index)], kind)
            assert values.loc[part.name].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4), part.name


def test_what_is_taken_away_where_nothing_is_asked_for_depends_on_the_layers() -> None:
    heads = [f"L1H{head}" for head in range(4)]
    assert [part.name for part in components(make("hybrid"))] == [f"L0S{at}" for at in range(6)] + heads + ["mixer 2"]
    assert [part.name for part in components(make("mamba"))] == ["mixer 0", "mixer 1"]
    assert components(make("gpt2")) == components(make("gpt2"), ["z"])
    assert len(components(make("hybrid"), ["gated"])) == 6 + 24
    assert [part.name for part in components(make("mamba"), ["gated"], ["L1C23"])] == ["L1C23"]


@pytest.mark.parametrize("name", RECURRENT)
def test_curves_of_mixers_end_with_all_of_them_gone(name: str) -> None:
    model, pairs = make(name), pairs_of(6, 6, 4)
    frame = ablation.run(model, pairs, kind="zero", cumulative=99, draws=1, progress=False)
    parts = [(part.full_site, part.index) for part in components(model)]
    curves = ablation.recovery(frame).set_index(["stage", "order", "number"])["value"]
    gone = sum(without(model, pairs, parts, "zero")) / 3
    assert curves["ablate", "importance", len(parts)] == pytest.approx(gone, rel=1e-3, abs=1e-4)
    assert curves["restore", "random", len(parts)] == pytest.approx(frame["base_value"][:3].mean(), rel=1e-4)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_report_on_mixers_names_them(name: str) -> None:
    model, pairs = make(name), pairs_of(6, 4, 6, 6)
    frame, section, findings = report(model, pairs, {}, progress=False)
    there = [item.name for item in (*section.figures, *section.appended_figures)]
    kinds = [kind for kind, mixer in (("heads", "attn"), ("ssm_heads", "mamba2")) if mixer in model.cfg.mixers]
    assert there == ["ablation_layers", *(f"ablation_{kind}" for kind in kinds), "ablation_curves"]
    single = frame[(frame["stage"] == "single") & frame["component"].isin([part.name for part in components(model)])]
    loss = single[single["kind"] == "mean_by_role"].groupby("component")["effect"].mean()
    assert f"{loss.abs().idxmax()} has the largest effect" in findings[0]
    assert ("mixers" in findings[0]) == ("mamba" in model.cfg.mixers)
    for site in ("gated", "out"):
        ablation.plot(
            ablation.run(model, pairs, site=site, only=lambda n: n[-1] in "012", progress=False)
        ).canvas.draw()


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_can_be_ablated(name: str) -> None:
    model, pairs = make(name), pairs_of(6, 6, 4)
    frame = ablation.run(model, pairs, kind="zero,mean", site=sites_of(model), only=lambda n: "N" not in n)
    summary = ablation.summary(frame)
    assert len(summary) == 2 * 2 * (model.cfg.n_heads + 1 + model.cfg.has_mlp)
    assert summary["n"].eq(3).all() and summary["p_adjusted"].ge(summary["p"]).all()
    ablation.plot(frame).canvas.draw()


@pytest.mark.parametrize("name", ["experts", "shared_expert", "grouped_experts"])
def test_every_ablation_of_an_expert_equals_a_full_forward(name: str) -> None:
    model, pairs = make(name), pairs_of(6, 6, 4)
    frame = ablation.run(model, pairs, kind="zero,mean", site="expert_out", progress=False)
    assert set(frame["component"]) == {f"L{row.layer}E{row.expert}" for row in frame.itertuples()}
    for (kind, layer, expert), own in frame.groupby(["kind", "layer", "expert"]):
        expected = without(model, pairs, [(f"blocks.{layer}.mlp.hook_expert_out", expert)], kind)
        assert own["value"].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    n_layers = sum(model.cfg.experts_in(layer) is not None for layer in range(model.cfg.n_layers))
    assert len(ablation.summary(frame)) == 2 * n_layers * model.cfg.experts.n_experts
    ablation.plot(frame).canvas.draw()


def test_curves_begin_whole_and_end_with_everything_gone_and_back_again() -> None:
    model, pairs = make("gpt2"), pairs_of(6, 6, 4)
    frame = ablation.run(model, pairs, kind="mean", cumulative=99, draws=2, seed=1, progress=False)
    curves = ablation.recovery(frame).set_index(["stage", "order", "number"])["value"]
    heads = [(part.full_site, part.index) for part in components(model)]
    clean, gone = frame["base_value"][:3].mean(), sum(without(model, pairs, heads, "mean")) / 3
    for order in ("importance", "random"):
        assert curves["ablate", order, 0] == pytest.approx(clean, rel=1e-5)
        assert curves["restore", order, 8] == pytest.approx(clean, rel=1e-5)
        assert curves["ablate", order, 8] == pytest.approx(gone, rel=1e-3)
        assert curves["restore", order, 0] == pytest.approx(gone, rel=1e-3)
    single = ablation.summary(frame[frame["stage"] == "single"]).sort_values("value", ascending=False)
    ranked = [next(p for p in components(model) if p.name == name) for name in single["component"]]
    first = [(part.full_site, part.index) for part in ranked[:3]]
    assert curves["ablate", "importance", 3] == pytest.approx(sum(without(model, pairs, first, "mean")) / 3, rel=1e-3)
    left = [(part.full_site, part.index) for part in ranked[3:]]
    assert curves["restore", "importance", 3] == pytest.approx(sum(without(model, pairs, left, "mean")) / 3, rel=1e-3)
    ablation.plot(frame).canvas.draw()
    again = ablation.run(model, pairs, kind="mean", cumulative=99, draws=2, seed=1, progress=False)
    assert again["value"].equals(frame["value"])
    other = ablation.run(model, pairs, kind="mean", cumulative=99, draws=2, seed=2, progress=False)
    assert not other["value"].equals(frame["value"])


def test_a_mean_over_equal_prompts_and_a_component_that_gives_nothing_change_nothing() -> None:
    model = make("llama_gqa")
    same = PromptPairs.from_tokens([[1, 2, 3, 4]] * 2, [[1, 2, 5, 4]] * 2, answers=[(1, 2)] * 2)
    frame = ablation.run(model, same, kind="mean,resample", site="z,mlp_out", progress=False)
    assert frame["effect"].abs().max() < 1e-5
    with torch.no_grad():
        model.block(1).attn.W_z[:, 4:8] = 0  # what head 1 of layer 1 writes
    frame = ablation.run(model, pairs_of(), kind="zero", only="L1H1", progress=False)
    assert frame["effect"].abs().max() < 1e-5 and len(frame) == 3
    assert ablation.summary(frame)["p_adjusted"].notna().all()


def test_means_are_over_all_prompts_where_few_are_measured() -> None:
    model, pairs = make("gpt2"), pairs_of(6, 4, 6, 4)
    whole = ablation.run(model, pairs, kind="mean", progress=False).set_index(["component", "prompt"])["value"]
    few = ablation.run(model, pairs, kind="mean", measured=2, progress=False)
    assert sorted(set(few["prompt"])) == [0, 2]
    expected = [whole[name, prompt] for name, prompt in zip(few["component"], few["prompt"], strict=True)]
    assert few["value"].tolist() == pytest.approx(expected, rel=1e-4)
    alone = ablation.run(model, pairs[[0, 2]], kind="mean", progress=False)
    assert alone["value"].tolist() != pytest.approx(expected, rel=1e-4)


def test_the_other_side_can_stand_in() -> None:
    model, pairs = make("gpt2"), pairs_of(6, 6)
    frame = ablation.run(model, pairs, kind="mean", over="corrupt", only="L1H0", progress=False)
    edits = replaced(components(model, only=["L1H0"]), replacements(model, pairs, ["blocks.1.attn.hook_z"], "mean"))
    value = edits[0].source
    assert isinstance(value, Tensor)

    def hook(x: Tensor, hook: Any) -> Tensor:
        return torch.cat([value[:, :, :1], x[:, :, 1:]], dim=2)

    logits = model.run_with_hooks(pairs.clean, fwd_hooks=[("blocks.1.attn.hook_z", hook)])
    expected = measure("logit_diff", logits, pairs).detach().tolist()
    assert frame["value"].tolist() == pytest.approx(expected, rel=1e-4)


def test_a_sweep_that_was_finished_is_read_back(tmp_path: Path) -> None:
    model, pairs = make("gpt2"), pairs_of()
    first = ablation.run(model, pairs, cumulative=[2], out=tmp_path / "kept", progress=False)
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"single", "cumulative"}
    assert ablation.run(model, pairs, cumulative=[2], out=tmp_path / "kept", progress=False).equals(first)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"kind": "meen"}, UnknownName, "no ablation matches 'meen'; did you mean 'mean'"),
        ({"site": "zz"}, UnknownName, "no site of a component matches 'zz'"),
        ({"only": "L1H9"}, UnknownName, "no component matches 'L1H9'; did you mean"),
        ({"only": "L1N3"}, UnknownName, r"'L1N3' is of the site 'post', and .* 'z' were asked for: .*sites=\['post'\]"),
        ({"only": "L9*"}, UnknownName, "L9"),
        ({"over": "cleen"}, UnknownName, "did you mean 'clean'"),
        ({"measured": 0}, InterpError, "at least 1, not 0"),
        ({"cumulative": -1}, InterpError, "a number of components"),
        ({"cumulative": 2, "site": "z,attn_out"}, InterpError, "'attn_out' contains 'z'"),
        ({"kind": "resample"}, PromptError, "the only one of 4 tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_ablated_is_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ablation.run(make("gpt2"), pairs_of(), **options, progress=False)


def test_components_of_a_hybrid_contain_one_another_only_within_a_layer() -> None:
    model, pairs = make("hybrid"), pairs_of()
    with pytest.raises(InterpError, match="'out' contains 'gated'"):
        ablation.run(model, pairs, site="gated,out", cumulative=2, progress=False)
    ablation.run(model, pairs, site="gated,out", only=["L0S1", "mixer 2"], cumulative=2, draws=1, progress=False)
    with pytest.raises(UnknownName, match=r"no site of this model matches 'z'; choose from 'gated', 'out'"):
        ablation.run(make("mamba"), pairs, site="z", progress=False)


def test_a_model_without_mlps_says_so() -> None:
    with pytest.raises(UnknownName, match=r"no site of this model matches 'mlp_out'.*attn_out"):
        ablation.run(make("attn_only"), pairs_of(), site="mlp_out", progress=False)


def test_neurons_are_bars_and_curves_have_a_panel_for_every_kind() -> None:
    model, pairs = make("gpt2", d_mlp=30), pairs_of(6, 6)
    frame = ablation.run(model, pairs, kind="zero,mean", site="post", only="L1N*", progress=False)
    assert frame["neuron"].nunique() == 30 and set(frame["layer"]) == {1}
    ablation.plot(frame).canvas.draw()
    both = ablation.run(model, pairs, kind="zero,mean", cumulative=[1, 4], draws=1, progress=False)
    figure = ablation.plot(both)
    assert len(figure.axes) == 4
    figure.canvas.draw()
    table = ablation.summary(both)
    assert (
        list(table.columns[:4]) == ["kind", "stage", "order", "number"] and (table["metric"] == "logit_diff lost").all()
    )
    with pytest.raises(InterpError, match="cumulative=N"):
        ablation.recovery(frame)


@pytest.mark.parametrize("kind", ["llama_gqa", "attn_only", "neox"])
@pytest.mark.parametrize("lengths", [(6, 4, 6, 6), (5,)])
def test_a_report_tells_what_was_measured(kind: str, lengths: tuple[int, ...]) -> None:
    model, pairs = make(kind), pairs_of(*lengths)
    frame, section, findings = report(model, pairs, {}, progress=False)
    heads = frame[(frame["stage"] == "single") & (frame["site"] == "z")]
    loss = heads.groupby("component")["effect"].mean()
    best = loss.abs().idxmax()
    assert f"{best} has the largest effect" in findings[0] and f"changes by {-loss[best]:+.2f}" in findings[0]
    clean = heads.drop_duplicates("prompt")["base_value"].mean()
    assert f"{clean:.2f}" in findings[1]
    assert len(section.figures) + len(section.appended_figures) == 3 and not any("nan" in text for text in section.text)


def test_a_share_needs_a_metric_above_zero() -> None:
    model, pairs = make("gpt2"), pairs_of()
    table = ablation.summary(ablation.run(model, pairs, metric="kl", progress=False))
    assert table["share"].isna().all() and (table["value"] <= 0).all()
    frame = ablation.run(model, pairs, metric="prob", progress=False)
    table = ablation.summary(frame)
    base = frame.drop_duplicates("prompt")["base_value"].mean()
    assert table["share"].tolist() == pytest.approx((table["value"] / base).tolist())
    assert not math.isnan(base)
