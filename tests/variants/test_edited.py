"""An edit outside a sweep changes a forward as the sweep does."""

from __future__ import annotations

import pytest
import torch
from makers import make, pairs_of

import interp
from interp.edits import Edit, Variant
from interp.errors import ConfigError, HookError, UnknownName
from interp.hooked.model import HookedModel
from interp.metrics import evaluate, get_metric, read
from interp.models.gpt import GPT


def variants(model: GPT) -> list[Variant]:
    half = Edit("z", {"layer": 1, "head": 0}, "scale", 0.5)
    return [
        Variant([Edit("z", {"layer": 0, "head": [0, 2]}, "zero")]),
        Variant([half, Edit("z", {"layer": 0, "head": 1, "pos": -1})]),
        Variant([half, half]),
        Variant([Edit("mlp_out", {"layer": 1}, "mean", "base")]),
        Variant([Edit("pattern", {"layer": 0, "head": 1, "query": -1}, "set", "source")]),
        Variant([Edit("resid_pre", {"layer": 1, "pos": 2}, "add", torch.ones(model.cfg.d_model))]),
        Variant([Edit("z", {"layer": 1, "head": 1}, "set", lambda value, hook: value.flip(1))]),
    ]


@pytest.mark.parametrize("base", ["clean", "corrupt"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_forward_in_the_block_is_the_sweeps_cell(kind: str, base: str) -> None:
    model, pairs = make(kind), pairs_of(9, 7, 9)
    source = "clean" if base == "corrupt" else "corrupt"
    table = interp.sweep(model, pairs, variants(model), base=base, source=source, progress=False)
    metric = get_metric("logit_diff")
    for at, variant in enumerate(variants(model)):
        with interp.edited(model, pairs, variant, base=base, source=source):
            logits = model(**pairs.inputs(base))
        expected = torch.tensor(table["value"].to_numpy()[at * len(pairs) : (at + 1) * len(pairs)])
        found = evaluate(metric, read(metric, logits, pairs), pairs, None).double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_model_is_as_before_after_the_block(model: HookedModel) -> None:
    pairs = pairs_of(6)
    before = model(**pairs.inputs("clean"))
    with (
        pytest.raises(ZeroDivisionError),
        interp.edited(
            model, pairs, Variant([Edit("mlp_out" if not model.cfg.attn_only else "z", {"layer": 0}, "zero")])
        ),
    ):
        raise ZeroDivisionError
    assert torch.equal(model(**pairs.inputs("clean")), before)


def test_what_cannot_be_edited_is_refused_by_name() -> None:
    model, pairs = make("llama"), pairs_of(6)
    zero = Variant([Edit("z", {"layer": 0, "head": 0}, "zero")])
    with pytest.raises(UnknownName, match="head 9 is not one of this model's 4"):
        interp.edited(model, pairs, Variant([Edit("z", {"layer": 0, "head": 9}, "zero")])).__enter__()
    with pytest.raises(UnknownName, match="'cleaned'"):
        interp.edited(model, pairs, zero, base="cleaned").__enter__()
    with pytest.raises(HookError, match=r"prompts of shape \[1, 6\], and the model was run on \[1, 5\]"):  # noqa: SIM117
        with interp.edited(model, pairs, zero):
            model(pairs.clean[:, :5])
    with pytest.raises(HookError, match="never ran"), interp.edited(model, pairs, zero):
        pass
    with pytest.raises(ConfigError, match="variant must be Variant"):
        interp.edited(model, pairs, "zero").__enter__()  # type: ignore[arg-type]
