"""`edited`: what a plain forward gives in the block is what a sweep measures of the same variant."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
from interp.edits import Edit, Variant
from interp.errors import ConfigError, HookError, PromptError, UnknownName
from interp.hooked.model import HookedModel
from interp.lenses.read import depths, read
from interp.metrics import measure
from interp.prompts.pairs import PromptPairs
from interp.sites import site_names
from interp.sweeps.sweep import sweep
from interp.variants.edited import edited
from tests.makers import (
    MASKED,
    RECURRENT,
    encoder_decoder,
    make,
    make_pairs,
    pairs_of,
    plain_forwards,
    stack_pairs,
)

SIDES = [("corrupt", "clean"), ("clean", "corrupt"), ("clean", "clean")]
# Each with one of the directions: what the two runs are of is all that these change.
SOME = list(zip(("gpt2", "gemma2", "bert", "residual_attn", *RECURRENT, *MASKED), itertools.cycle(SIDES), strict=False))


def same(model: HookedModel, pairs: PromptPairs, variants: Sequence[Variant], base: str, source: str) -> None:
    """The metric of the logits in the block is the sweep's cell, for every variant."""
    frame = sweep(model, pairs, variants, base=base, source=source, progress=False)
    cells = frame["value"].to_numpy().reshape(len(variants), len(pairs))
    for variant, cell in zip(variants, cells, strict=True):
        with edited(model, pairs, variant, base=base, source=source) as inside:
            assert inside is model
            logits = model(**pairs.inputs(base)) if variant.edits else None
        if logits is not None:
            within = 2e-5 * max(1.0, float(logits.nan_to_num(0, 0, 0).abs().max()))
            np.testing.assert_allclose(measure("logit_diff", logits, pairs), cell, rtol=1e-5, atol=within)
    assert not any(point.has_hooks for point in model.hook_dict.values())


@pytest.mark.parametrize(("kind", "sides"), SOME)
@torch.no_grad()
def test_patching_any_site_is_the_sweep_s_cell(kind: str, sides: tuple[str, str]) -> None:
    model = make(kind)
    variants = []
    for at, (name, site) in enumerate(site_names(model.cfg).items()):
        row = "query" if "query" in site.axes else "pos"
        place: list[Any] = [{}, {row: "changed"}, {row: [0, -1]}, {row: slice(1, None)}]
        variants.append(Variant([Edit(name, place[at % 4])]))
    same(model, pairs_of(6, 4, 6), variants, *sides)


def operations(model: HookedModel, pairs: PromptPairs, site: str) -> list[Variant]:
    """Every operation with every kind of source at one site."""
    with torch.no_grad():
        _, cache = model.run_with_cache(**pairs.inputs("clean"))
    value = cache[site]
    one = torch.randn(value.shape[2:], generator=torch.Generator().manual_seed(0))
    at = {"pos": "changed"}
    edits = [Edit(site, at, "zero"), Edit(site, {}, "scale", 0.5), Edit(site, {"pos": [0, 2]}, "scale", one)]
    for given in (None, "source", "base", cache, dict(cache), value, one, 0.3):
        edits += [Edit(site, at, "set", given), Edit(site, {}, "add", given), Edit(site, {"pos": 1}, "mean", given)]
    edits.append(Edit(site, at, "set", lambda value, hook: 2 * value.flip(0)))
    edits.append(Edit(site, {}, "add", lambda value, hook: value.cumsum(1)))
    return [*(Variant([edit]) for edit in edits), Variant([edits[1], edits[0]]), Variant(edits[3:6])]


@pytest.mark.parametrize(("base", "source"), SIDES)
@pytest.mark.parametrize("kind", ["llama_gqa", "mamba2"])
def test_every_operation_and_source_is_the_sweep_s_cell(kind: str, base: str, source: str) -> None:
    model, pairs = make(kind), pairs_of(6, 4, 6)
    with torch.no_grad():
        same(model, pairs, operations(model, pairs, "blocks.0.hook_resid_post"), base, source)
        same(model, pairs, operations(model, pairs, "blocks.1.hook_resid_post"), base, source)


@pytest.mark.parametrize(("kind", "sides"), [("t5", SIDES[0]), ("bart", SIDES[1])])
@torch.no_grad()
def test_two_stacks(kind: str, sides: tuple[str, str]) -> None:
    model, pairs = encoder_decoder(kind), stack_pairs(decoder_differs=True)
    variants = [Variant([Edit(name)]) for name in site_names(model.cfg)]
    variants.append(Variant([Edit("decoder.cross_attn.pattern", {"layer": 0, "key": "changed"}, "zero")]))
    both = [Edit("encoder.resid_pre", {"layer": 1, "pos": "changed"}), Edit("decoder.z", {"layer": 1, "pos": "last"})]
    same(model, pairs, [*variants, Variant(both)], *sides)


@torch.no_grad()
def test_every_logit_is_that_of_the_prompts_alone() -> None:
    model, pairs = make("llama_gqa"), pairs_of(6, 4, 6)
    variant = Variant([Edit("z", {"layer": 0, "head": [0, 2]}), Edit("resid_post", {"layer": 1, "pos": 0}, "zero")])
    with edited(model, pairs, variant):
        logits = model(pairs.corrupt, attention_mask=pairs.mask)
    for at, alone in enumerate(plain_forwards(model, pairs, variant, "corrupt", "clean", read=None)):
        torch.testing.assert_close(logits[at, : len(alone)], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_caches_and_lenses_see_the_edit() -> None:
    model, pairs = make("gpt2"), pairs_of(6, 4, 6)
    edit = Edit("z", {"layer": 0, "head": 1}, "zero")
    with interp.edited(model, pairs, edit, base="clean"):
        _, cache = model.run_with_cache(pairs.clean, attention_mask=pairs.mask)
        lens = read(model, pairs, depths(model), lenses={"logit": None})
    real = cache["z", 0][pairs.mask]  # [place, head, d_head]
    assert not real[:, 1].any() and real[:, 0].all()
    cell = sweep(model, pairs, [Variant([edit])], "prob", base="clean", source="clean", progress=False)["value"]
    last = lens[(lens["metric"] == "prob") & (lens["layer"] == 1) & (lens["site"] == "resid_post")]["value"]
    np.testing.assert_allclose(last, cell, rtol=1e-4)


def test_gradients_flow_through_it() -> None:
    model, pairs = make("gpt2"), pairs_of()
    with edited(model, pairs, Edit("z", {"layer": 0, "head": 1}, "zero")):
        model(pairs.corrupt, "loss", attention_mask=pairs.mask).backward()
    slope = model.attention(0).W_z.grad  # [d_model, head d_head]: of what the heads' outputs are multiplied by
    assert slope is not None
    assert bool(slope[:, :4].any()) and not slope[:, 4:8].any()


@torch.no_grad()
def test_blocks_within_blocks_and_hooks_around() -> None:
    model, pairs = make("gpt2"), pairs_of()
    first, second = Edit("z", {"layer": 0, "head": 1}, "zero"), Edit("mlp_out", {"layer": 1}, "scale", 0.5)
    with edited(model, pairs, first), edited(model, pairs, second):
        nested = model(**pairs.inputs("corrupt"))
    with edited(model, pairs, [first, second]):
        together = model(**pairs.inputs("corrupt"))
    torch.testing.assert_close(nested, together)


@torch.no_grad()
def test_other_threads_run_without_it() -> None:
    model, pairs = make("gpt2"), pairs_of()
    plain, found = model(**pairs.inputs("corrupt")), []

    def elsewhere() -> None:
        with torch.no_grad():
            found.append(model(**pairs.inputs("corrupt")))

    with edited(model, pairs, Edit("z", {"layer": 0}, "zero")):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        inside: Tensor = model(**pairs.inputs("corrupt"))
    assert torch.equal(found[0], plain) and not torch.allclose(inside, plain)


@torch.no_grad()
def test_what_cannot_be_run_is_refused() -> None:
    model, pairs = make("gpt2"), make_pairs((6, 4, 6))
    edit = Edit("z", {"layer": 0}, "zero")
    with (
        pytest.raises(HookError, match="3 prompts of its pairs together, padded to 6 positions"),
        edited(model, pairs, edit),
    ):
        model(pairs.corrupt[:1])
    with pytest.raises(HookError, match="the model was not called inside the block"), edited(model, pairs, edit):
        pass
    with pytest.raises(UnknownName, match="did you mean 'head'"):
        edited(model, pairs, Edit("z", {"layer": 0, "haed": 1}))
    with pytest.raises(UnknownName, match="did you mean 'clean'"):
        edited(model, pairs, edit, base="cleen")
    with pytest.raises(PromptError, match="position 5 is outside prompt 1"):
        edited(model, pairs, Edit("z", {"layer": 0, "pos": 5}))
    with pytest.raises(ConfigError, match="variant must be Variant or Edit or a list of Edits"):
        edited(model, pairs, "z")  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="takes no pairs with"):
        edited(model, stack_pairs(), edit)
