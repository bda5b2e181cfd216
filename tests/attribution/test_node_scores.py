"""Estimates against the sweep where they must be exact, and their corrections against what they say they compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from makers import EDGED, EDGES, KINDS, RECURRENT, make, pairs_of
from torch import Tensor

from interp.attribution.gradients import INPUT, path_slopes, values_at
from interp.attribution.node_scores import estimate, neurons
from interp.circuits import edge_scores
from interp.circuits.graph import Graph
from interp.edits import Edit, Variant
from interp.errors import ConfigError, InterpError, PromptError, UnknownName
from interp.loading.bridge import from_bridge
from interp.loading.bridged_model import BridgedModel
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.sites import axis_sizes
from interp.sweeps.sweep import sweep
from interp.variants.granularity import variants

UNITS = ("head", "kv_head", "ssm_head", "ssm_group")


def measured(model: GPT, pairs: PromptPairs, cells: list[Variant], **options: str) -> np.ndarray:
    frame = sweep(model, pairs, cells, progress=False, **options)  # type: ignore[arg-type]
    return (frame["value"] - frame["base_value"]).to_numpy().reshape(len(cells), -1)


def in_layer(cells: list[Variant], layer: int) -> list[Variant]:
    return [cell for cell in cells if cell.labels["layer"] == layer]


@pytest.mark.parametrize(
    ("site", "by"),
    [("z", "head"), ("v", "head,role"), ("pattern", "head,query,key"), ("attn_out", "pos"), ("resid_post", "role"),
     ("result", "head,pos"), ("z", None)],
)  # fmt: skip
def test_where_the_metric_is_linear_an_estimate_is_exact(site: str, by: str | None) -> None:
    model, pairs = make("attn_only").double(), pairs_of(5, 5)
    cells = in_layer(variants(model, pairs, site=site, by=by), 1)
    expected = measured(model, pairs, cells)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(estimate(model, pairs, cells), expected, atol=1e-9)


def test_every_operation_is_estimated_as_the_sweep_makes_it() -> None:
    model, pairs = make("attn_only").double(), pairs_of(6, 4)
    given = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    where = {"layer": 1, "head": [0, 2], "pos": -1}
    edits = [
        Edit("z", where, op="zero"),
        Edit("z", where, op="scale", source=0.3),
        Edit("z", where, op="add", source=given),
        Edit("z", where, op="set", source=given),
        Edit("z", {"layer": 1, "d_head": [1, 3]}),
    ]
    cells = [Variant((edit,)) for edit in edits] + [Variant((edits[0], Edit("z", {"layer": 1, "head": 1})))]
    sides = {"base": "clean", "source": "corrupt"}
    np.testing.assert_allclose(
        estimate(model, pairs, cells, **sides), measured(model, pairs, cells, **sides), atol=1e-9
    )


@pytest.mark.parametrize("kind", [*KINDS, *RECURRENT])
def test_small_changes_are_estimated_closely_at_every_site(kind: str) -> None:
    model, pairs = make(kind).double(), pairs_of(6, 4)
    generator = torch.Generator().manual_seed(2)
    cells = []
    for name, point in model.hook_dict.items():
        if point.site.short in ("scale", "ln2.scale", "ln1.scale", "attn_scores") or point.site.whole:
            continue
        where = {axis: 1 for axis in UNITS if axis in point.site.axes and axis_sizes(model.cfg)[axis] > 1}
        where |= {"pos": 1} if point.site.short == "state" else {}
        value = model.run_with_cache(pairs.corrupt, attention_mask=pairs.mask, names_filter=[name])[1][name]
        small = 1e-4 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        small = small.narrow(1, 1, 1) if "pos" in where else small
        cells.append(Variant((Edit(name, where, op="add", source=small),)))
    split = [cell for cell in cells if "_input" in cell.edits[0].site]
    hidden = [cell for cell in cells if "mixer.hook_pattern" in cell.edits[0].site]
    plain = [cell for cell in cells if cell not in split and cell not in hidden]
    for some in filter(len, (split, hidden, plain)):
        expected = measured(model, pairs, some)
        found = estimate(model, pairs, some).numpy()
        assert np.abs(found - expected).max() < 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("kind", EDGES)
def test_edges_are_estimated_as_edge_attribution_does(kind: str) -> None:
    model, pairs = make(kind).double(), pairs_of(6, 4)
    graph = Graph.of(model)
    edges = graph.edges[::7]
    scores = edge_scores.eap(model, pairs, graph)
    found = estimate(model, pairs, edge_scores.variants(model, pairs, edges, graph), base="clean", source="corrupt")
    expected = torch.stack([scores[:, sender, receiver] for sender, receiver in edges])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("by", ["head", "head,role", "role", None])
def test_behind_the_softmax_queries_and_keys_of_the_last_layer_are_exact(by: str | None) -> None:
    model, pairs = make("attn_only", n_key_value_heads=2).double(), pairs_of(6, 4, 5)  # linear in the pattern
    cells = in_layer(variants(model, pairs, site=["q", "k"], by=by), 1)
    expected = measured(model, pairs, cells)
    np.testing.assert_allclose(estimate(model, pairs, cells, qk_fix=True), expected, atol=1e-9)
    assert np.abs(estimate(model, pairs, cells).numpy() - expected).max() > 1e-3


@pytest.mark.parametrize("kind", ["llama_gqa", "gptj_pairs", "alibi", "bidirectional"])
def test_the_correction_is_the_change_of_the_pattern_times_its_gradient(kind: str) -> None:
    model, pairs = make(kind).double(), pairs_of(6, 4)
    cells = in_layer(variants(model, pairs, site=["q", "k"], by="head"), 0)
    found = estimate(model, pairs, cells, qk_fix=True)
    name = "blocks.0.attn.hook_pattern"
    slope = path_slopes(model, pairs, [name], base="corrupt", path={})[name]
    before = values_at(model, pairs, [name], "corrupt")[name]
    for cell, effect in zip(cells, found, strict=True):
        edit = cell.edits[0]
        site = edit.name(model.cfg)
        instead = values_at(model, pairs, [site], "clean")[site]
        at = next(index for axis, index in edit.where.items() if axis != "layer")

        def patch(value: Tensor, hook: object, instead: Tensor = instead, at: object = at) -> Tensor:
            new = value.clone()
            new[:, :, at] = instead[:, :, at]  # type: ignore[index]
            return new

        with model.hooks([(site, patch)]):
            after = values_at(model, pairs, [name], "corrupt")[name]
        expected = ((after - before) * slope).sum((1, 2, 3))
        assert effect.tolist() == pytest.approx(expected.tolist(), abs=1e-9)


def test_dropping_layers_is_the_mean_magnitude_over_the_other_layers() -> None:
    model, pairs = make("gpt2", n_layers=3).double(), pairs_of(5, 4)
    cells = variants(model, pairs, site="z", by="head")
    plain, found = estimate(model, pairs, cells), estimate(model, pairs, cells, drop=True)
    moved = values_at(model, pairs, ["blocks.1.attn.hook_z"], "clean")["blocks.1.attn.hook_z"]
    moved = moved - values_at(model, pairs, ["blocks.1.attn.hook_z"], "corrupt")["blocks.1.attn.hook_z"]
    magnitudes = []
    for layer in (0, 2):
        held = [f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.hook_mlp_out"]
        name = "blocks.1.attn.hook_z"
        slope = path_slopes(model, pairs, [name], base="corrupt", path={}, stop=held)[name]
        magnitudes.append((moved * slope).sum((1, 3)).abs())  # [prompt, head]
    expected = torch.stack(magnitudes).mean(0).T
    torch.testing.assert_close(found[4:8].abs(), expected)
    assert torch.equal(found.sign(), plain.sign())
    one = make("gpt2", n_layers=1)
    cells = variants(one, pairs, site="z", by="head")
    assert torch.equal(estimate(one, pairs, cells, drop=True), estimate(one, pairs, cells))  # no other layer is there


def test_dropping_a_state_space_layer_drops_all_that_it_writes() -> None:
    model, pairs = make("hybrid").double(), pairs_of(5, 4)  # Mamba-2, attention with an MLP, Mamba-1 with an MLP
    cells = variants(model, pairs, site="gated", by="ssm_head")
    name = "blocks.0.mixer.hook_gated"
    moved = values_at(model, pairs, [name], "clean")[name] - values_at(model, pairs, [name], "corrupt")[name]
    held = [["blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"], ["blocks.2.mixer.hook_out", "blocks.2.hook_mlp_out"]]
    slopes = [path_slopes(model, pairs, [name], base="corrupt", path={}, stop=stop)[name] for stop in held]
    expected = torch.stack([(moved * slope).sum((1, 3)).abs() for slope in slopes]).mean(0).T
    torch.testing.assert_close(estimate(model, pairs, cells, drop=True).abs(), expected)


@pytest.mark.parametrize("kind", EDGED)
def test_what_is_read_linearly_of_the_last_state_space_layer_is_estimated_exactly(kind: str) -> None:
    """Without a norm behind it, the metric is linear in what the last mixer gives, in C and in each of its states."""
    types = {"mamba": ("mamba2", "mamba"), "hybrid": ("attn+mlp", "mamba")}.get(kind, ("mamba", "mamba2"))
    model = make(kind, layer_types=types, n_layers=2, normalization_type=None).double()
    pairs, last = pairs_of(6, 4), types[1] == "mamba"
    sites = ["out", "gated", *(("y", "C", "state") if last else ())]  # Mamba-2 has a norm of its own behind y
    cells = in_layer(variants(model, pairs, site=sites, by="role"), 1)
    cells += in_layer(variants(model, pairs, site="gated", by="channel" if last else "ssm_head"), 1)
    expected = measured(model, pairs, cells)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(estimate(model, pairs, cells), expected, atol=1e-9)


def test_cancellation_hides_a_head_from_the_plain_gradient_alone() -> None:
    model = make("attn_only", n_layers=3).double()
    with torch.no_grad():  # the heads of layer 1 read the residual stream at their own position, and take it away again
        for parameter in (model.blocks[1].attn.W_qkv, model.blocks[1].attn.b_qkv, model.blocks[1].attn.W_z):
            parameter.zero_()
        for head in range(4):
            own = slice(4 * head, 4 * head + 4)
            model.blocks[1].attn.W_qkv[32:48][own, own] = torch.eye(4, dtype=torch.float64)
            model.blocks[1].attn.W_z[own, own] = -torch.eye(4, dtype=torch.float64)
        model.blocks[1].attn.b_z.zero_()
        model.blocks[2].attn.W_z.zero_()
        model.blocks[1].attn.W_z.mul_(0.99)
    one = PromptPairs.from_tokens([[3]], [[4]], answers=[(0, 1)])  # a single position attends to itself
    heads = in_layer(variants(model, one, site="z", by="head"), 0)
    plain, dropped = (estimate(model, one, heads, drop=drop).abs() for drop in (False, True))
    assert float((dropped / plain).min()) > 10


def test_integrated_gradients_account_for_the_whole_embedding() -> None:
    model, pairs = make("llama_gqa").double(), pairs_of(6, 4)
    everything = [Variant((Edit(INPUT),))]
    expected = measured(model, pairs, everything)
    np.testing.assert_allclose(estimate(model, pairs, everything, steps=100), expected, rtol=0.05)
    assert np.abs(estimate(model, pairs, everything).numpy() - expected).max() > 0.1 * np.abs(expected).max()


def test_every_neuron_is_a_cell() -> None:
    model, pairs = make("no_norm_relu").double(), pairs_of(5, 4)
    cells = neurons(model)
    assert len(cells) == 2 * 24 and cells[30].labels == {"site": "post", "layer": 1, "neuron": 6}
    last = cells[24:]
    np.testing.assert_allclose(estimate(model, pairs, last), measured(model, pairs, last), atol=1e-9)
    for site in ("resid_pre", "pre_linear"):
        with pytest.raises(UnknownName):
            neurons(model, site)


@pytest.mark.parametrize(("kind", "sites"), [("llama_gqa", "z,q,k,pattern"), ("hybrid", "z,q,k,gated,delta,y")])
def test_prompts_one_after_the_other_give_the_same_estimates(kind: str, sites: str) -> None:
    model, pairs = make(kind), pairs_of(4, 6, 5)
    cells = variants(model, pairs, site=sites, by="head,role")
    for options in ({}, {"qk_fix": True, "drop": True}, {"steps": 2}):
        whole = estimate(model, pairs, cells, **options)
        parts = estimate(model, pairs, cells, max_memory=1, **options)
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("edit", "options", "error", "says"),
    [
        (Edit("z", {"layer": 0}, source=lambda value, hook: value), {}, InterpError, "edited by a function"),
        (Edit("z", {"layer": 0}, op="mean"), {}, InterpError, "by a mean"),
        (Edit("z", {"layer": 5}), {}, UnknownName, "layer 5"),
        (Edit("z", {"layer": 0, "pos": 9}), {}, PromptError, "outside prompt 0"),
        (Edit("z", {"layer": 0}), {"steps": 0}, ConfigError, "steps must be"),
        (Edit("z", {"layer": 0}), {"steps": 3, "qk_fix": True}, ConfigError, "leave steps at 1"),
        (Edit("z", {"layer": 0}), {"steps": 3, "source": "corrupt"}, ConfigError, "both 'corrupt'"),
        (Edit("q", {"layer": 0, "d_head": 1}), {"qk_fix": True}, InterpError, "leave d_head out"),
        (Edit("z", {"layer": 0}), {"metric": "rank"}, UnknownName, "metric with a gradient"),
        (Edit("state", {"layer": 0}), {"of": "mamba"}, InterpError, "one position at a time"),
        (Edit("z", {"layer": 0}), {"of": "mamba"}, UnknownName, "with the sites in, conv, delta"),
    ],
)  # fmt: skip
def test_what_cannot_be_estimated_is_refused(
    edit: Edit, options: dict[str, object], error: type[Exception], says: str
) -> None:
    model, options = make(str(options.get("of", "gpt2"))), {name: options[name] for name in options if name != "of"}
    with pytest.raises(error, match=says):
        estimate(model, pairs_of(5), [Variant((edit,))], **options)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformer_lens warns of what is deprecated below it
@pytest.mark.parametrize("family", ["gpt_neox", "llama-gqa"])
def test_a_bridged_model_has_our_own_models_estimates(family: str) -> None:
    from checkpoints import NATIVE, bridge_of, transformers_model  # and with them transformers, seconds

    bridge = bridge_of(transformers_model(*NATIVE[family]))
    own, model, pairs = from_bridge(bridge), BridgedModel(bridge, None), pairs_of(6, 4)
    cells = variants(own, pairs, site="z,q", by="head,role")
    for options in ({}, {"drop": True}, {"steps": 3}):
        expected = estimate(own, pairs, cells, **options)
        assert float((estimate(model, pairs, cells, **options) - expected).abs().max()) < 1e-5 * float(
            expected.abs().max()
        )
    with pytest.raises(InterpError, match="leave it out"):
        estimate(model, pairs, cells, qk_fix=True)
