"""Sweeps over both stacks: every cell is that of a plain forward with hooks, whatever was skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interp.edits import Edit, Variant
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import ConfigError, PromptError, UnknownName
from interp.metrics import Metric
from interp.prompts.pairs import PromptPairs
from interp.sweeps.sweep import plan_sweep, sweep
from tests.makers import STACKS, compare, encoder_decoder, make, single, stack_pairs


@pytest.fixture(params=STACKS, scope="module")
def model(request: pytest.FixtureRequest) -> EncoderDecoder:
    return encoder_decoder(request.param)


@pytest.mark.parametrize("base", ["corrupt", "clean"])
def test_every_site_of_both_stacks_can_be_patched(model: EncoderDecoder, base: str) -> None:
    variants = []
    for name, point in model.hook_dict.items():
        row = "query" if "query" in point.site.axes else "pos"
        if base == "clean":
            head = {"head": 1} if "head" in point.site.axes else {}
            variants.append(Variant([Edit(name, {**head, ("key" if row == "query" else row): 0})]))
        else:
            variants.append(Variant([Edit(name, {row: -1} if ".1." in name else {})]))
    other = "corrupt" if base == "clean" else "clean"
    compare(model, stack_pairs(decoder_differs=base == "clean"), variants, base, other)


def test_every_operation_and_several_edits_at_once(model: EncoderDecoder) -> None:
    sites = ("encoder.blocks.1.attn.hook_z", "decoder.blocks.1.cross_attn.hook_v", "decoder.blocks.0.hook_mlp_out")
    variants = []
    for name in sites:
        variants += [Variant([Edit(name, {"pos": 0}, "zero")]), Variant([Edit(name, {"pos": [0, -1]}, "scale", 0.5)])]
        variants += [Variant([Edit(name, {}, "add", 0.3)]), Variant([Edit(name, {}, "set", "base")])]
    both = [
        Edit("encoder.resid_pre", {"layer": 1, "pos": "changed"}),
        Edit("decoder.cross_attn.z", {"layer": 1, "head": 1}),
    ]
    variants += [Variant(both), Variant(both[::-1]), Variant([*both, Edit("decoder.embed", {"pos": 0}, "scale", 2.0)])]
    variants += [Variant([Edit("decoder.cross_attn.pattern", {"layer": 0, "key": "changed"}, "zero")]), Variant([])]
    compare(model, stack_pairs(), variants, "corrupt", "clean")


def test_mean_and_functions_as_sources(model: EncoderDecoder) -> None:
    pairs = stack_pairs()
    name = "encoder.blocks.0.hook_resid_post"
    frame = sweep(model, pairs, [Variant([Edit(name, {"pos": 1}, "mean")])], progress=False)
    caches = [model.run_with_cache(*single(pairs, at, "clean"))[1] for at in range(3)]
    mean = torch.stack([cache[name][0, 1] for cache in caches]).mean(0)
    compare(model, pairs, [Variant([Edit(name, {"pos": 1}, "set", mean)])], "corrupt", "clean")
    again = sweep(model, pairs, [Variant([Edit(name, {"pos": 1}, "set", mean)])], progress=False)
    assert frame["value"].to_numpy() == pytest.approx(again["value"].to_numpy(), abs=1e-5)
    made = [
        Variant([Edit(site, {"pos": 0}, "set", lambda value, hook: value * 0.5)])
        for site in (name, "decoder.blocks.1.hook_attn_out")
    ]
    scaled = [Variant([Edit(v.edits[0].site, {"pos": 0}, "scale", 0.5)]) for v in made]
    values = [sweep(model, pairs, each, progress=False)["value"].to_numpy() for each in (made, scaled)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_small_memory_hooks_files_and_other_metrics_change_no_number(model: EncoderDecoder, tmp_path: Path) -> None:
    pairs = stack_pairs()
    variants = [Variant([Edit("encoder.z", {"layer": 1, "head": h})], {"head": h}) for h in range(2)]
    variants += [Variant([Edit("decoder.cross_attn.z", {"layer": 1, "head": h})], {"head": h}) for h in range(2)]
    expected = sweep(model, pairs, variants, progress=False)["value"].to_numpy()
    plan = plan_sweep(model, pairs, variants)
    least = max(chunk.memory for chunk in plan_sweep(model, pairs[[0]], variants[:1]).chunks)
    small = sweep(model, pairs, variants, progress=False, max_memory=4 * least)["value"].to_numpy()
    assert len(plan_sweep(model, pairs, variants, max_memory=4 * least).chunks) > len(plan.chunks)
    assert small == pytest.approx(expected, abs=1e-5)
    for _ in range(2):
        kept = sweep(model, pairs, variants, progress=False, out=tmp_path / "kept")["value"].to_numpy()
        assert (kept == expected).all()
    seen: list[int] = []
    with model.hooks([("encoder.hook_embed", lambda value, hook: seen.append(len(value)))]):
        assert sweep(model, pairs, variants, progress=False)["value"].to_numpy() == pytest.approx(expected, abs=1e-5)
    assert len(seen) == 2 + len(variants) and set(seen) == {3}
    whole = Metric("by hand", lambda logits, own: logits[range(len(own)), own.last, 3], "a logit", "logits", whole=True)
    for metric in ("kl", "prob", "rank", whole):
        assert sweep(model, pairs, variants, metric, progress=False)["value"].notna().all()
    with pytest.raises(ConfigError, match="is too little"):
        sweep(model, pairs, variants, max_memory=100)


def test_variants_of_the_decoder_alone_cost_less_than_those_of_the_encoder(model: EncoderDecoder) -> None:
    pairs = stack_pairs()
    costs = [
        plan_sweep(model, pairs, [Variant([Edit(name, {}, "zero")])]).chunks[-1].operations
        for name in (
            "decoder.blocks.1.attn.hook_z",
            "decoder.blocks.0.attn.hook_z",
            "encoder.blocks.1.attn.hook_z",
            "encoder.blocks.0.attn.hook_z",
        )
    ]
    assert costs == sorted(costs) and len(set(costs)) == len(costs)


def test_what_does_not_fit_is_refused(model: EncoderDecoder) -> None:
    pairs = stack_pairs()
    assert pairs.encoder is not None
    with pytest.raises(UnknownName, match=r"which stack's 'z'\?"):
        sweep(model, pairs, [Variant([Edit("z", {"layer": 0})])])
    with pytest.raises(UnknownName, match="is not one of this model's layers"):
        sweep(model, pairs, [Variant([Edit("decoder.z", {"layer": 5})])])
    with pytest.raises(UnknownName, match="no role matches 'changed'"):
        sweep(model, pairs, [Variant([Edit("decoder.z", {"layer": 1, "pos": "changed"})])])
    with pytest.raises(PromptError, match="an encoder and a decoder, and needs pairs with a prompt for each"):
        sweep(model, pairs.encoder, [Variant([Edit("decoder.z", {"layer": 1})])])
    with pytest.raises(PromptError, match="a single stack, and takes no pairs with a prompt for each"):
        sweep(make("gpt2"), pairs, [Variant([Edit("z", {"layer": 1})])])


def test_pairs_of_both_prompts_are_cut_saved_and_told_apart(tmp_path: Path) -> None:
    pairs = stack_pairs()
    assert pairs.encoder is not None and pairs[1].encoder is not None
    assert pairs[1].encoder.clean.shape == (1, 4) and pairs[1].clean.shape == (1, 1)
    loaded = PromptPairs.load(pairs.save(tmp_path / "pairs.json"))
    other = stack_pairs(decoder_differs=True)
    assert loaded.encoder is not None and loaded.digest() == pairs.digest() != other.digest()
    assert torch.equal(loaded.encoder.corrupt, pairs.encoder.corrupt) and loaded.encoder.roles == pairs.encoder.roles
    assert set(pairs.inputs("clean")) == {"input", "attention_mask", "decoder_input", "decoder_attention_mask"}
    with pytest.raises(PromptError, match="the encoder has 2 pairs and the decoder 3"):
        PromptPairs(**{**vars(pairs), "encoder": pairs.encoder[:2]})
