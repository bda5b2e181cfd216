"""Sweeps over both stacks: every cell is that of a plain forward with hooks, whatever was skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.edits import Edit, Variant
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import ConfigError, PromptError, UnknownName
from interp.metrics import Metric
from interp.prompts.pairs import PromptPairs
from interp.sweeps.sweep import plan_sweep, sweep
from tests.makers import STACKS, encoder_decoder, make

LENGTHS, PREFIXES = (6, 4, 6), (3, 1, 2)


def pairs_of(*, decoder_differs: bool = False) -> PromptPairs:
    """Pairs whose encoders differ in one token, the third; and whose decoders do in the last, if asked."""
    generator = torch.Generator().manual_seed(8)
    clean = [torch.randint(2, 29, (n,), generator=generator).tolist() for n in LENGTHS]
    corrupt = [[*row[:2], 1 + row[2] % 28, *row[3:]] for row in clean]
    prefixes = [[1, *torch.randint(2, 29, (n - 1,), generator=generator).tolist()] for n in PREFIXES]
    answers = [(i, i + 4) for i in range(3)]
    roles = [{"changed": 2, "END": n - 1} for n in LENGTHS]
    if not decoder_differs:
        return PromptPairs.from_tokens(clean, corrupt, answers=answers, roles=roles, decoder=prefixes)
    encoder = PromptPairs.from_tokens(clean, corrupt, answers=answers, roles=roles)
    others = [[*row[:-1], 3] for row in prefixes]
    pairs = PromptPairs.from_tokens(prefixes, others, answers=answers, roles=[{"last": n - 1} for n in PREFIXES])
    return PromptPairs(**{**vars(pairs), "encoder": encoder})


@pytest.fixture(params=STACKS, scope="module")
def model(request: pytest.FixtureRequest) -> EncoderDecoder:
    return encoder_decoder(request.param)


def single(pairs: PromptPairs, at: int, side: str) -> dict[str, Tensor]:
    """What a forward of one unpadded prompt takes."""
    assert pairs.encoder is not None
    lengths = int(pairs.encoder.lengths[at]), int(pairs.lengths[at])
    tokens = (getattr(pairs.encoder, side), getattr(pairs, side))
    return {"input": tokens[0][at : at + 1, : lengths[0]], "decoder_input": tokens[1][at : at + 1, : lengths[1]]}


def chosen(edit: Edit, hook: Any, pairs: PromptPairs, at: int, value: Tensor) -> tuple[Tensor, ...]:
    """Where an edit acts on one prompt, by axis."""
    assert pairs.encoder is not None
    cross = ".cross_attn.hook_" in hook.name
    rows = pairs.encoder if hook.name.startswith("encoder") or (cross and hook.name[-1] in "kv") else pairs
    keys = pairs.encoder if cross else rows
    index = []
    for axis, size in zip(hook.site.axes, value.shape, strict=True):
        given, own = edit.where.get(axis), keys if axis == "key" else rows
        if isinstance(given, str):
            given = own.roles[at][given]
        length = int(own.lengths[at]) if axis in ("pos", "query", "key") else size
        index.append(torch.arange(size) if given is None else torch.tensor(np.atleast_1d(given)) % length)
    return torch.meshgrid(*index, indexing="ij")


Runs = dict[tuple[int, str], Mapping[str, Tensor]]  # of each prompt and side, what every site has


@torch.no_grad()
def plain_runs(model: EncoderDecoder, pairs: PromptPairs) -> Runs:
    return {
        (at, side): model.run_with_cache(**single(pairs, at, side), names_filter="*")[1]
        for at in range(len(pairs))
        for side in ("clean", "corrupt")
    }


@torch.no_grad()
def by_hand(
    model: EncoderDecoder, pairs: PromptPairs, variant: Variant, at: int, base: str, source: str, runs: Runs
) -> Tensor:
    """The logits at the last position of one prompt, from a plain forward of it alone with a hook for each edit."""
    hooks = []
    for edit in variant.edits:
        name = edit.name(model.cfg)
        kept = None
        if edit.run is not None:
            side = base if edit.run == "base" else source
            kept = runs[at, side][name]

        def hook(value: Tensor, hook: Any, edit: Edit = edit, kept: Tensor | None = kept) -> Tensor:
            index, new = chosen(edit, hook, pairs, at, value), value.clone()
            given = edit.source if kept is None else kept[index]
            if edit.op == "zero":
                new[index] = 0
            elif edit.op == "scale":
                new[index] *= edit.source
            else:
                new[index] = given + (new[index] if edit.op == "add" else 0)
            return new

        hooks.append((name, hook))
    return model.run_with_hooks(**single(pairs, at, base), fwd_hooks=hooks)[0, -1]


def compare(
    model: EncoderDecoder, pairs: PromptPairs, variants: Sequence[Variant], base: str = "corrupt", **options: Any
) -> None:
    source = "clean" if base == "corrupt" else "corrupt"
    frame = sweep(model, pairs, variants, base=base, source=source, progress=False, **options)
    values, runs = frame["value"].to_numpy().reshape(len(variants), len(pairs)), plain_runs(model, pairs)
    for row, variant in zip(values, variants, strict=True):
        for at, (right, wrong) in enumerate(pairs.answers.tolist()):
            logits = by_hand(model, pairs, variant, at, base, source, runs)
            within = 2e-5 * max(1.0, float(logits.abs().max()))
            assert row[at] == pytest.approx(float(logits[right] - logits[wrong]), abs=within), (variant, at)


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
    compare(model, pairs_of(decoder_differs=base == "clean"), variants, base)


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
    compare(model, pairs_of(), variants)


def test_mean_and_functions_as_sources(model: EncoderDecoder) -> None:
    pairs = pairs_of()
    name = "encoder.blocks.0.hook_resid_post"
    frame = sweep(model, pairs, [Variant([Edit(name, {"pos": 1}, "mean")])], progress=False)
    caches = [model.run_with_cache(**single(pairs, at, "clean"))[1] for at in range(3)]
    mean = torch.stack([cache[name][0, 1] for cache in caches]).mean(0)
    compare(model, pairs, [Variant([Edit(name, {"pos": 1}, "set", mean)])])
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
    pairs = pairs_of()
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
    pairs = pairs_of()
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
    pairs = pairs_of()
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
    pairs = pairs_of()
    assert pairs.encoder is not None and pairs[1].encoder is not None
    assert pairs[1].encoder.clean.shape == (1, 4) and pairs[1].clean.shape == (1, 1)
    loaded = PromptPairs.load(pairs.save(tmp_path / "pairs.json"))
    assert loaded.encoder is not None and loaded.digest() == pairs.digest() != pairs_of(decoder_differs=True).digest()
    assert torch.equal(loaded.encoder.corrupt, pairs.encoder.corrupt) and loaded.encoder.roles == pairs.encoder.roles
    assert set(pairs.inputs("clean")) == {"input", "attention_mask", "decoder_input", "decoder_attention_mask"}
    with pytest.raises(PromptError, match="the encoder has 2 pairs and the decoder 3"):
        PromptPairs(**{**vars(pairs), "encoder": pairs.encoder[:2]})
