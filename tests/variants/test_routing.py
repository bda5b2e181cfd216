"""Edits of routers in one pass, against forwards with hooks."""

from __future__ import annotations

import pytest
import torch
from makers import compare, make, pairs_of

from interp.edits import Edit, Variant
from interp.errors import ConfigError, HookError, InterpError, UnknownName
from interp.sweeps.sweep import plan_sweep, sweep
from interp.variants.ablations import replacements
from interp.variants.routing import send_to, without_expert


@pytest.mark.parametrize("kind", ["experts", "shared_expert", "clamped_experts", "grouped_experts"])
def test_edits_of_a_router_in_one_pass_are_full_forwards(kind: str) -> None:
    model, pairs = make(kind), pairs_of(6, 4, 6)
    edits = [
        send_to(0, 2),
        send_to(0, 1, pos="changed"),
        send_to(0, 0, slot=1, pos=-1),
        without_expert(0, 2),
        without_expert(0, 1, pos=1),
    ]
    variants = [Variant(edit) for edit in edits] + [Variant((edits[1], edits[3]))]
    assert plan_sweep(model, pairs, variants).packed
    compare(model, pairs, variants, "clean", "corrupt")


def test_a_position_that_is_sent_to_the_expert_that_it_has_does_not_change() -> None:
    model, pairs = make("experts"), pairs_of(6)
    _, cache = model.run_with_cache(pairs.clean)
    best = int(cache["expert_indices", 1][0, 2, 0])
    variants = [Variant(send_to(1, best, pos=2, slot=0), {"layer": 1})]
    frame = sweep(model, pairs, variants, base="clean", source="corrupt", progress=False)
    assert frame["value"][0] == pytest.approx(frame["base_value"][0], rel=1e-6)


def test_experts_that_there_are_not_are_refused() -> None:
    model, pairs = make("experts"), pairs_of(6)
    for edit, kind, named in (
        (send_to(0, 4), HookError, "0 to 3, but an edit put 4 there"),
        (without_expert(0, 4), UnknownName, "expert 4 is not one of this model's 4, 0 to 3"),
        (send_to(0, 1, slot=2), UnknownName, "slot 2 is not one of this model's 2"),
    ):
        with pytest.raises(kind, match=named):
            sweep(model, pairs, [Variant(edit)], progress=False)
    for source, kind, named in (
        (1.5, ConfigError, r"source=1.5 at .*expert_indices'"),
        (torch.tensor([1.0, 1.5]), ConfigError, r"source holds 1.5 at"),
        (torch.tensor(float("nan")), ConfigError, r"source holds nan at"),
        (lambda value, hook: value + 0.5, HookError, r"returned .* torch.float32, expected .* torch.int64"),
    ):
        with pytest.raises(kind, match=named):
            sweep(model, pairs, [Variant(Edit("expert_indices", {"layer": 0}, "set", source))], progress=False)
    with pytest.raises(UnknownName, match="expert must be at least 0, not -1"):
        send_to(0, -1)


def test_numbers_of_experts_have_no_mean() -> None:
    model, pairs = make("experts"), pairs_of(6, 6)
    with pytest.raises(ConfigError, match="holds the numbers of experts, which can only be set"):
        sweep(model, pairs, [Variant(Edit("expert_indices", {"layer": 0}, op="mean"))], progress=False)
    with pytest.raises(InterpError, match="whole numbers, of which there is no mean"):
        replacements(model, pairs, ["blocks.0.mlp.hook_expert_indices"], "mean")
