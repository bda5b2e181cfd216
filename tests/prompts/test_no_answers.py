"""Pairs without answers: they are looked at, saved and swept by metrics that need none; the rest is refused by name."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.edits import Edit, Variant
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import PromptError
from interp.lenses.read import depths, read
from interp.metrics import METRICS, Metric, logit_weights, measure
from interp.prompts.pairs import PromptPairs
from interp.study.behaviour import behaviour
from interp.sweeps.sweep import sweep
from tests.makers import encoder_decoder, make, pairs_of, stack_pairs
from tests.vocabularies import names_tokenizer, reader

VARIANTS = [Variant([Edit("resid_post", {"layer": 0})])]
SAYS = r"these prompts have no answers.*give answers=\[\(right, wrong\), ...\] to PromptPairs.from_text or from_tokens"


@pytest.fixture
def pairs() -> PromptPairs:
    return without(pairs_of(6, 4, 6))


def without(pairs: PromptPairs) -> PromptPairs:
    return PromptPairs.from_tokens(pairs.clean, pairs.corrupt, mask=pairs.mask, roles=list(pairs.roles))


def test_prompts_to_look_at() -> None:
    model = reader(names_tokenizer())
    pairs = PromptPairs.from_text(model, "Then John gave Mary")
    assert not pairs.has_answers and repr(pairs.answers) == "no answers" and not pairs.contrast
    _, cache = model.run_with_cache(**pairs.inputs("clean"))
    assert list(cache.tidy("z", 0)["token"].unique()) == pairs.labels(0)
    given = PromptPairs.from_text(model, "Then John gave Mary", answers=(1, 2))
    assert torch.equal(given.clean, pairs.clean) and given.digest() != pairs.digest() and given.has_answers


def test_they_are_cut_moved_copied_and_saved(pairs: PromptPairs, tmp_path: Path) -> None:
    for same in (pairs[[0, 1, 2]], pairs.to("cpu"), dataclasses.replace(pairs), copy.deepcopy(pairs),
                 pickle.loads(pickle.dumps(pairs)), PromptPairs.load(pairs.save(tmp_path / "pairs.json"))):  # fmt: skip
        assert not same.has_answers and same.digest() == pairs.digest() and torch.equal(same.clean, pairs.clean)
    assert pairs[1].digest() != pairs.digest()


@pytest.mark.parametrize("metric", METRICS)
@torch.no_grad()
def test_metrics_that_need_none_run_and_others_say_what_is_missing(metric: str, pairs: PromptPairs) -> None:
    model, given = make("gpt2"), pairs_of(6, 4, 6)
    logits, other = (model(**pairs.inputs(side)) for side in ("clean", "corrupt"))
    if metric in ("kl", "loss"):
        found, expected = (sweep(model, p, VARIANTS, metric, progress=False)["value"] for p in (pairs, given))
        assert found.tolist() == expected.tolist()
        both = [measure(metric, logits, p, reference=other, side="clean") for p in (pairs, given)]
        assert torch.equal(*both)
        return
    with pytest.raises(PromptError, match=f"{SAYS[:30]}.*metric '{metric}' is of them"):
        sweep(model, pairs, VARIANTS, metric, progress=False)
    with pytest.raises(PromptError, match=f"metric '{metric}' is of them"):
        measure(metric, logits, pairs)


@torch.no_grad()
def test_functions_of_ones_own(pairs: PromptPairs) -> None:
    model = make("gpt2")
    frame = sweep(model, pairs, VARIANTS, lambda logits, rows: logits[:, 0, 3], progress=False)
    assert frame["value"].notna().all()
    plain = Metric("plain", lambda logits, answers, reference: logits[:, 3], "", "")
    assert sweep(model, pairs, VARIANTS, plain, progress=False)["value"].notna().all()
    for asks in (
        lambda logits, rows: logits[:, 0, rows.answers[:, 0]].diagonal(),
        Metric("asks", lambda logits, answers, reference: logits.gather(1, answers)[:, 0], "", ""),
    ):
        with pytest.raises(PromptError, match=SAYS):
            sweep(model, pairs, VARIANTS, asks, progress=False)


@torch.no_grad()
def test_two_stacks() -> None:
    model, given = encoder_decoder("t5"), stack_pairs()
    assert given.encoder is not None and isinstance(model, EncoderDecoder)
    pairs = PromptPairs.from_tokens(
        given.encoder.clean,
        given.encoder.corrupt,
        mask=given.encoder.mask,
        decoder=[row[:n].tolist() for row, n in zip(given.clean, given.lengths.tolist(), strict=True)],
    )
    variants = [Variant([Edit("encoder.z", {"layer": 0})])]
    found, expected = (sweep(model, p, variants, "kl", progress=False)["value"] for p in (pairs, given))
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "call",
    [
        lambda model, pairs: read(model, pairs, depths(model), lenses={"logit": None}),
        lambda model, pairs: logit_weights(pairs),
        lambda model, pairs: behaviour(model, pairs),
        lambda model, pairs: pairs.answer_table,
        lambda model, pairs: [*pairs.answers],
        lambda model, pairs: len(pairs.answers),
        lambda model, pairs: pairs.answers.tolist(),
        lambda model, pairs: torch.equal(pairs.answers, pairs.clean),
    ],
)
def test_whoever_asks_for_them_is_told(call: Callable[..., Any], pairs: PromptPairs) -> None:
    with pytest.raises(PromptError, match=SAYS):
        call(make("gpt2"), pairs)
