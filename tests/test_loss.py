"""`metric="loss"`: the next-token loss of each prompt, as transformers means it, in sweeps and elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from interp.attribution.run_values import run_values
from interp.circuits.graph import Graph
from interp.circuits.run import run_circuits
from interp.edits import Edit, Variant
from interp.errors import ConfigError, PromptError
from interp.metrics import Metric, loss, measure
from interp.prompts.pairs import PromptPairs
from interp.sweeps.sweep import sweep
from interp.variants.edited import edited
from tests.makers import encoder_decoder, make, pairs_of, plain_forwards, single, stack_pairs

VARIANTS = [
    Variant([Edit("z", {"layer": 0, "head": 1})]),
    Variant([Edit("resid_post", {"layer": 1, "pos": "first"}, "zero")]),
    Variant([Edit("mlp_out", {"layer": 1}, "scale", 0.5), Edit("z", {"layer": 1, "head": [0, 2]}, "zero")]),
    Variant([]),
]


def transformers_loss(logits: Tensor, tokens: Tensor, positions: Any = None) -> float:
    """The loss of one prompt: labels are the tokens, moved by one; -100 leaves a position out."""
    chosen = range(len(tokens))[positions] if isinstance(positions, slice) else positions
    labels = tokens.clone()
    if positions is not None:
        out = [at for at in range(len(tokens)) if at - 1 not in list(chosen)]
        labels[out] = -100
    return float(F.cross_entropy(logits[:-1], labels[1:], ignore_index=-100))


@pytest.mark.parametrize("kind", ["gpt2", "llama_gqa", "gemma2", "bidirectional", "hybrid"])
@pytest.mark.parametrize(("base", "source"), [("corrupt", "clean"), ("clean", "corrupt")])
@torch.no_grad()
def test_a_sweep_is_plain_forwards(kind: str, base: str, source: str) -> None:
    model, pairs = make(kind), pairs_of(6, 4, 6)
    variants = VARIANTS
    if kind == "hybrid":
        variants = [Variant([Edit("resid_post", {"layer": 1, "pos": "changed"})]), Variant([])]
    for positions in (None, [0, 2], slice(-3, None), "first"):
        metric = "loss" if positions is None else loss(positions)
        frame = sweep(model, pairs, variants, metric, base=base, source=source, progress=False)
        found = frame["value"].to_numpy().reshape(len(variants), len(pairs))
        for variant, row in zip(variants, found, strict=True):
            alone = plain_forwards(model, pairs, variant, base, source, read=None)
            where = [0] if positions == "first" else positions
            prompts = [single(pairs, at, base)[0][0] for at in range(len(pairs))]
            expected = [transformers_loss(*one, where) for one in zip(alone, prompts, strict=True)]
            np.testing.assert_allclose(row, expected, rtol=2e-5)
        base_run = frame["base_value"].to_numpy()[: len(pairs)]
        np.testing.assert_allclose(base_run, found[-1], rtol=2e-5)  # of the variant without edits


@torch.no_grad()
def test_the_base_run_has_the_model_s_own_loss_and_the_source_run_is_compared_with_the_same_text() -> None:
    model, pairs = make("gpt2"), pairs_of(6, 4, 6)
    everything = [Variant([Edit("resid_post", {"layer": 1})])]
    frame = sweep(model, pairs, everything, "loss", progress=False)
    own = [float(model(single(pairs, at, "corrupt")[0], "loss")) for at in range(3)]
    np.testing.assert_allclose(frame["base_value"], own, rtol=1e-5)
    np.testing.assert_allclose(frame["effect"], 1, atol=1e-3)


@torch.no_grad()
def test_the_second_copy_of_a_repeated_text() -> None:
    model, half = make("llama"), 5
    once = torch.randint(0, 29, (4, half), generator=torch.Generator().manual_seed(1))
    tokens = torch.cat([once, once], 1)
    pairs = PromptPairs.from_tokens(tokens)
    edit = Edit("z", {"layer": 0, "head": 1}, "zero")
    frame = sweep(
        model, pairs, [Variant([edit])], loss(slice(half, None)), base="clean", source="clean", progress=False
    )
    plain = model(tokens, "loss", loss_per_token=True)[:, half:].mean(1)
    np.testing.assert_allclose(frame["base_value"], plain, rtol=1e-5)
    with edited(model, pairs, edit, base="clean"):
        logits, each = model(tokens, "both", loss_per_token=True)
    np.testing.assert_allclose(frame["value"], each[:, half:].mean(1), rtol=1e-5)
    np.testing.assert_allclose(measure(loss(slice(half, None)), logits, pairs), frame["value"], rtol=1e-5)


@torch.no_grad()
def test_two_stacks_have_the_decoder_s_loss() -> None:
    model, pairs = encoder_decoder("pre_norm"), stack_pairs()[[0, 2]]
    variant = Variant([Edit("encoder.resid_pre", {"layer": 1, "pos": "changed"})])
    frame = sweep(model, pairs, [variant], "loss", progress=False)
    alone = plain_forwards(model, pairs, variant, "corrupt", "clean", read=None)
    prompts = [single(pairs, at, "corrupt")[1][0] for at in range(2)]
    expected = [transformers_loss(*one) for one in zip(alone, prompts, strict=True)]
    np.testing.assert_allclose(frame["value"], expected, rtol=2e-5)
    with pytest.raises(PromptError, match="prompt 1 has none"):
        sweep(model, stack_pairs(), [variant], "loss", progress=False)


@torch.no_grad()
def test_circuits_and_single_runs_have_it_too() -> None:
    model, pairs = make("gpt2"), pairs_of(5, 5)
    own = [float(model(single(pairs, at, "clean")[0], "loss")) for at in range(2)]
    np.testing.assert_allclose(run_values(model, pairs, "loss").base, own, rtol=1e-5)
    graph = Graph.of(model)
    np.testing.assert_allclose(run_circuits(model, pairs, graph.allowed[None], metric="loss")[0], own, rtol=1e-5)


def test_it_has_a_slope_and_takes_half_precision() -> None:
    pairs = pairs_of(6, 4, 6)
    logits = torch.randn(3, 6, 29, requires_grad=True)
    measure("loss", logits, pairs, side="clean").sum().backward()
    assert logits.grad is not None and not logits.grad[1, 3:].any() and bool(logits.grad[0, :5].any(-1).all())
    half = measure("loss", logits.half(), pairs, side="clean")
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, measure("loss", logits.half().float(), pairs, side="clean"))


def test_what_has_no_loss_is_refused() -> None:
    model, pairs = make("gpt2"), pairs_of(6, 4, 6)
    logits = model(**pairs.inputs("clean")).detach()
    with pytest.raises(PromptError, match="say side='clean' or side='corrupt'"):
        measure("loss", logits, pairs)
    with pytest.raises(PromptError, match="prompt 0 has none"):
        sweep(model, pairs, VARIANTS, loss(-1), progress=False)
    with pytest.raises(PromptError, match="outside prompt 1, which has 4 tokens"):
        sweep(model, pairs, VARIANTS, loss([5]), progress=False)
    with pytest.raises(PromptError, match="this model predicts masked ones"):
        sweep(make("bert_mlm"), pairs, VARIANTS, "loss", progress=False)
    with pytest.raises(PromptError, match="none of this model's 11 outputs"):
        sweep(make("attn_only"), pairs, VARIANTS[:1], "loss", progress=False)
    with pytest.raises(ConfigError, match="needs whole=True"):
        Metric("own", lambda logits, pairs, following: logits[:, 0, 0], "", "", of_text=True)
    with pytest.raises(ConfigError, match="positions of a metric"):
        loss(0.5)  # type: ignore[arg-type]
