"""The one-pass engine against plain forwards: any edits, on any model, for any prompts, however the sweep is cut."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import KINDS, MASKED, RECURRENT, compare, make, make_pairs, plain_forwards
from torch import Tensor

from interp.edits import Edit, Variant
from interp.errors import ConfigError, HookError
from interp.metrics import Metric, measure
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.sites import axis_sizes, site_names
from interp.sweeps import plan as plans
from interp.sweeps import run_chunk as passes
from interp.sweeps.base_runs import BaseRunCache
from interp.sweeps.edit_reach import Placed, Placer
from interp.sweeps.sweep import plan_sweep, sweep, sweep_values

RESID = "blocks.1.hook_resid_pre"


@st.composite
def edits(draw: st.DrawFn, model: GPT, shortest: int) -> Edit:
    name = draw(st.sampled_from(list(site_names(model.cfg))))
    site = model.hook_dict[name].site
    sizes = axis_sizes(model.cfg)
    where: dict[str, Any] = {}
    for axis in site.axes:
        if axis in ("pos", "query", "key"):
            position = st.integers(-shortest, shortest - 1)
            choice = st.sampled_from(["first", "middle", "end"]) | position | st.lists(position, min_size=1, max_size=3)
        elif axis in sizes and sizes[axis] > 1:
            inside = st.integers(0, sizes[axis] - 1)
            choice = inside | st.lists(inside, min_size=1, max_size=3)
        else:
            continue
        if draw(st.booleans()):
            where[axis] = draw(choice)
    ops = ["set", "set", "zero"] if "scores" in name else ["set", "set", "add", "scale", "zero"]  # -inf has no sums
    if model.hook_dict[name].site.whole:  # numbers of experts can only be set
        return Edit(name, where, "set", draw(st.sampled_from([None, "source", "base", 1])))
    op = draw(st.sampled_from(ops))
    if op == "zero" and "_norm.hook_scale" in name:
        op = "set"  # scores of infinite queries or keys are what a kernel makes of them
    if op == "scale":
        source: Any = draw(st.sampled_from([0.5, -1.0, 2.0]))
    else:
        source = None if op == "zero" else draw(st.sampled_from([None, "source", "base", 0.25]))
    return Edit(name, where, op, source)


def _excluding(variant: Variant) -> bool:
    """Whether a norm and an input of its own for every head are edited in one layer, or both of a mixer's state and
    pattern, which is refused.
    """

    def layers(*ends: str) -> set[str]:
        return {edit.site.split(".")[1] for edit in variant.edits if edit.site.endswith(ends)}

    norms = {edit.site.split(".")[1] for edit in variant.edits if "ln1" in edit.site}
    split = layers("q_input", "k_input", "v_input")
    return bool(norms & split or layers("mixer.hook_state") & layers("mixer.hook_pattern"))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_sweep_equals_plain_forwards(data: st.DataObject) -> None:
    model = make(data.draw(st.sampled_from(sorted(KINDS | RECURRENT | MASKED))))
    lengths = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    pairs = make_pairs(lengths, data.draw(st.integers(0, 4)), data.draw(st.integers(0, 3)))
    edit = edits(model, min(lengths))
    variants = [
        Variant(data.draw(st.lists(edit, max_size=3)), {"cell": at}) for at in range(data.draw(st.integers(1, 5)))
    ]
    base, source = data.draw(st.sampled_from([("corrupt", "clean"), ("clean", "corrupt"), ("clean", "clean")]))
    rows = dict(plans.ROWS)
    plans.ROWS["cpu"] = data.draw(st.sampled_from([1, 5, 12, 512]))
    both = any(_excluding(variant) for variant in variants)
    try:
        compare(model, pairs, variants, base, source)
    except HookError as error:
        assert both and ("choose one" in str(error) or "change one" in str(error))
    finally:
        plans.ROWS.update(rows)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_hundreds_of_edits_in_one_variant(kind: str) -> None:
    model, pairs = make(kind), make_pairs((5, 7, 2), shared=1)
    generator = torch.Generator().manual_seed(3)
    variants = []
    for at in range(6):
        off = torch.rand(model.cfg.n_layers, model.cfg.n_heads, generator=generator) < 0.5
        heads = [Edit("z", {"layer": layer, "head": head}, "zero") for layer, head in off.nonzero().tolist()]
        back = [
            Edit("resid_post", {"layer": layer, "d_model": channel}, source="source")
            for layer in range(model.cfg.n_layers)
            for channel in range(0, model.cfg.d_model, 1 + at)
        ]
        variants.append(Variant(heads + back, {"circuit": at}))
    compare(model, pairs, variants, "corrupt", "clean")


@pytest.mark.parametrize("kind", sorted(KINDS | RECURRENT | MASKED))
def test_every_site_in_one_sweep(kind: str) -> None:
    """All sites at once, so that whatever must not share a batch would be seen."""
    model, pairs = make(kind), make_pairs((6, 4, 6), shared=2)
    variants = [Variant([Edit(name)], {"name": name}) for name in site_names(model.cfg)]
    compare(model, pairs, variants, "corrupt", "clean")


@pytest.mark.parametrize("kind", sorted(RECURRENT))
def test_a_hidden_attention_is_formed_of_what_other_edits_left(kind: str) -> None:
    model, pairs = make(kind), make_pairs((6, 4))
    layer = next(at for at in range(model.cfg.n_layers) if model.cfg.mixer(at) in ("mamba", "mamba2"))
    entry = Edit("pattern", {"layer": layer, "query": -1, "key": 1}, "scale", 0.3)
    variants = [
        Variant([Edit(site, {"layer": layer, "pos": pos}, "scale", 0.5), entry], {"site": site, "pos": pos})
        for site in ("in", "conv", "delta", "B", "C")
        for pos in (0, 1, -1)
    ]
    compare(model, pairs, variants, "corrupt", "clean")


def test_a_norm_in_one_layer_and_split_inputs_in_another_do_not_meet_in_a_chunk() -> None:
    model, pairs = make("llama_gqa"), make_pairs((6, 4))
    variants = [
        Variant([Edit(f"ln1.{name}", {"layer": norm}, "scale", 1.5), Edit("q_input", {"layer": 1 - norm, "head": 2})])
        for norm in (0, 1)
        for name in ("scale", "normalized")
    ]
    compare(model, pairs, variants, "corrupt", "clean")


def test_plan_counts_what_is_run_and_nothing_else() -> None:
    model, pairs = make("llama_gqa"), make_pairs((6, 6), shared=3)
    variants = [Variant([Edit("resid_pre", {"layer": layer, "pos": p})]) for layer in (0, 1) for p in range(6)]
    plan = plan_sweep(model, pairs, variants)
    assert plan.idle == 2 * 2 * 3 and sum(chunk.cells for chunk in plan.chunks) == 2 * 2 * 3
    assert {v for chunk in plan.chunks for v in chunk.variants} == {3, 4, 5, 9, 10, 11}
    # In each layer the cells at positions 3, 4 and 5 have the rows behind them, for two prompts.
    rows = 2 * (3 + 2 + 1)
    assert sum(chunk.rows for chunk in plan.chunks if chunk.variants) == 2 * rows
    cfg = model.cfg
    heads, kv_heads = cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head
    keys = 2 * sum(p + 1 for first in (3, 4, 5) for p in range(first, 6))
    look = rows * 2 * cfg.d_model * (heads + 2 * kv_heads) + keys * 4 * heads
    write = 2 * cfg.d_model * (heads + 3 * (cfg.d_mlp or 0))
    read = 2 * 2 * cfg.d_model
    # Both layers for the first six cells, the second for the others; at its end only the last position goes on.
    expected = (look + rows * write) + 2 * (look + 6 * write + 6 * read)
    assert sum(chunk.operations for chunk in plan.chunks if chunk.variants) == pytest.approx(expected)
    assert "24 cells, of which 12 change nothing" in str(plan)


def test_the_plan_promises_what_is_multiplied() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    # Long products and short attention, which the counter leaves out.
    model = make("gpt2", d_model=64, d_head=16, n_layers=3)
    pairs = make_pairs((7, 7, 7), shared=2)
    variants = [
        Variant([Edit("z", {"layer": layer, "head": head, "pos": p})])
        for layer in range(3)
        for head in range(model.cfg.n_heads)
        for p in range(7)
    ]
    plan = plan_sweep(model, pairs, variants)
    with FlopCounterMode(display=False) as counter:
        sweep(model, pairs, variants, progress=False)
    assert counter.get_total_flops() == pytest.approx(plan.operations, rel=0.1)


@pytest.mark.parametrize("kind", sorted(RECURRENT))
def test_the_plan_promises_what_state_space_layers_multiply(kind: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    wide = {"d_model": 128, "d_inner": 256, "d_ssm_head": 64, "d_state": 2, "d_mlp": 256, "n_heads": -1, "d_head": 32}
    model = make(kind, **wide, d_conv=1, n_key_value_heads=None)
    pairs = make_pairs((7, 7, 7), shared=2)
    variants = [
        Variant([Edit("resid_pre", {"layer": layer, "d_model": [part], "pos": p})])
        for layer in range(model.cfg.n_layers)
        for part in range(3)
        for p in range(7)
    ]
    plan = plan_sweep(model, pairs, variants)
    with FlopCounterMode(display=False) as counter:
        sweep(model, pairs, variants, progress=False)
    assert counter.get_total_flops() == pytest.approx(plan.operations, rel=0.1)


def test_layers_of_a_hybrid_are_counted_one_by_one() -> None:
    model, pairs = make("hybrid"), make_pairs((6, 6), shared=3)
    cfg = model.cfg
    last = [Variant([Edit("resid_pre", {"layer": layer, "pos": 5})]) for layer in range(3)]
    operations = [plan_sweep(model, pairs, [one]).chunks[-1].operations / 2 for one in last]
    read = 2 * cfg.d_model * 2
    mlp = 2 * cfg.d_model * 2 * (cfg.d_mlp or 0)
    recurrence = 6 * 24 * 3
    mamba = 2 * 16 * 48 + 2 * 4 * 24 + 2 * 24 * (3 + 2 * 3) + 2 * 3 * 24 + recurrence + 2 * 24 * 16
    attention = 2 * 16 * (16 + 2 * 8) + 6 * 4 * 16 + 2 * 16 * 16
    mamba2 = 2 * 16 * (24 + 36 + 6) + 2 * 4 * 36 + recurrence + 2 * 24 * 16
    assert operations[2] == pytest.approx(mamba + mlp + read)
    assert operations[1] - operations[2] == pytest.approx(attention + mlp)
    assert operations[0] - operations[1] == pytest.approx(mamba2)


@pytest.mark.parametrize("kind", sorted(RECURRENT))
def test_states_are_kept_before_those_positions_alone_where_rows_begin(kind: str) -> None:
    model, pairs = make(kind, n_ctx=64), make_pairs((40, 33), shared=5)
    mixer = 1 if kind == "one_part_a_layer" else 0
    late = [Variant([Edit("resid_post", {"layer": 0, "pos": [p, 30]}, "zero")]) for p in (12, 20)]
    assert plan_sweep(model, pairs, late).starts == (12, 20)  # at 30 nothing looks back that did not before
    queries = [Variant([Edit("C", {"layer": mixer, "pos": [9, 15]}, "zero")])]
    assert plan_sweep(model, pairs, queries).starts == (9, 15)
    every = [Variant([Edit("resid_pre", {"layer": 1, "d_model": 0})])]
    assert plan_sweep(model, pairs, every).starts == (5,)
    each = [Variant([Edit("resid_pre", {"layer": 1, "pos": p})]) for p in range(33)]
    assert plan_sweep(model, pairs, each).starts == tuple(range(5, 33))
    assert plan_sweep(model, pairs, [Variant([Edit("resid_pre", {"layer": 0}, "zero")])]).starts == ()
    one, all_of_them = (plan_sweep(model, pairs, variants).chunks[0].memory for variants in (every, each))
    layers = sum(str(model.cfg.mixer(layer)).startswith("mamba") for layer in range(1, model.cfg.n_layers))
    assert all_of_them - one == 27 * len(pairs) * layers * 24 * 3 * 4
    for variants in (late, queries, every, each[::4]):
        compare(model, pairs, variants, "corrupt", "clean")


def test_rows_that_begin_later_than_planned_begin_where_a_state_is_known() -> None:
    model = make("mamba", n_layers=1, layer_types=("mamba",))
    with torch.no_grad():
        model.W_E[:, 3] = torch.arange(29) % 3  # a channel that some tokens have in common
    pairs = PromptPairs.from_tokens([[1, 2, 3, 4, 5, 6]], [[1, 5, 6, 8, 5, 6]], answers=[(1, 2)])
    variants = [Variant([Edit("resid_pre", {"layer": 0, "d_model": 3})])]
    assert plan_sweep(model, pairs, variants).starts == (1,)  # but values differ from position 3 on
    compare(model, pairs, variants, "corrupt", "clean")


@pytest.mark.parametrize("kind", sorted(RECURRENT))
def test_long_prompts_are_cut_so_that_kept_states_fit(kind: str) -> None:
    model, pairs = make(kind, n_ctx=64), make_pairs((40,) * 6, shared=1)
    variants = [Variant([Edit("resid_pre", {"layer": 0, "pos": p})]) for p in range(0, 40, 3)]
    whole = plan_sweep(model, pairs, variants)
    budget = max(chunk.memory for chunk in whole.chunks) // 3
    plan = plan_sweep(model, pairs, variants, max_memory=budget)
    assert len({chunk.prompts for chunk in plan.chunks}) > len({chunk.prompts for chunk in whole.chunks})
    assert all(chunk.memory <= budget for chunk in plan.chunks)
    compare(model, pairs[:2], variants[:3], "corrupt", "clean", max_memory=budget)


def test_states_and_patterns_that_edits_form_are_counted() -> None:
    model, pairs = make("mamba", n_ctx=64), make_pairs((40, 40))
    plans_of = {
        site: plan_sweep(model, pairs, [Variant([Edit(site, {"layer": 1}, "zero")])], base="clean", source="clean")
        for site in ("y", "state", "pattern")
    }
    memory = {site: plan.chunks[-1].memory for site, plan in plans_of.items()}
    assert memory["state"] - memory["y"] > 4 * 80 * 24 * 3
    assert memory["pattern"] - memory["y"] > 4 * 2 * 24 * 40 * 40


@pytest.mark.parametrize("budget", [60_000, 200_000, 10_000_000])
def test_memory_bounds_change_the_plan_and_not_the_numbers(budget: int) -> None:
    model, pairs = make("llama_gqa"), make_pairs((6, 4, 7, 5, 6), shared=1)
    variants = [Variant([Edit("z", {"layer": layer, "head": head})]) for layer in (0, 1) for head in range(4)]
    plan = plan_sweep(model, pairs, variants, max_memory=budget)
    assert all(chunk.memory <= budget for chunk in plan.chunks)
    compare(model, pairs, variants, "corrupt", "clean", max_memory=budget)


def test_too_little_memory_is_refused_with_what_is_needed() -> None:
    model, pairs = make("llama_gqa"), make_pairs((6, 4))
    with pytest.raises(
        ConfigError, match=r"max_memory=1,000 bytes is too little: one variant on one prompt needs about"
    ):
        plan_sweep(model, pairs, [Variant([Edit("z", {"layer": 0})])], max_memory=1000)
    function = Variant([Edit("z", {"layer": 0}, source=lambda x, hook: x)])
    with pytest.raises(ConfigError, match="all prompts at once"):
        plan_sweep(model, pairs, [function], max_memory=1000)
    with pytest.raises(ConfigError, match="must be a positive number of bytes"):
        plan_sweep(model, pairs, [function], max_memory=-1)


def test_a_mean_is_over_all_prompts_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = make("llama_gqa"), make_pairs((6, 4, 7, 5, 6, 3))
    edits = [Edit("z", {"layer": 0, "head": 1}, "mean"), Edit("mlp_out", {"layer": 1, "pos": 1}, "mean", source="base")]
    variants = [Variant(edits), Variant([Edit("pattern", {"layer": 1}, "mean")]), Variant(edits[1:])]
    whole = sweep(model, pairs, variants, progress=False)
    monkeypatch.setitem(plans.ROWS, "cpu", 8)
    assert len({chunk.prompts for chunk in plan_sweep(model, pairs, variants).chunks}) > 3
    cut = sweep(model, pairs, variants, progress=False)
    assert cut["value"].tolist() == pytest.approx(whole["value"].tolist(), abs=1e-5)
    assert (whole["value"] - whole["base_value"]).abs().max() > 1e-3


def test_sources_that_are_given_are_cut_with_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = make("gpt2"), make_pairs((6, 4, 7, 5))
    mask = pairs.attention_mask
    _, cache = model.run_with_cache(pairs.clean, attention_mask=mask)
    at = {"layer": 1, "head": 2}
    variants = [Variant([Edit("z", at, source=source)]) for source in ("source", cache, cache["z", 1].detach())]
    variants.append(Variant([Edit("z", at, "add", source=cache["z", 1][:1, :1].detach())]))
    whole = sweep(model, pairs, variants, progress=False)["value"].to_numpy().reshape(4, -1)
    monkeypatch.setitem(plans.ROWS, "cpu", 8)
    cut = sweep(model, pairs, variants, progress=False)["value"].to_numpy().reshape(4, -1)
    assert np.allclose(whole, cut, atol=1e-5)
    assert np.allclose(whole[0], whole[1], atol=1e-5) and np.allclose(whole[0], whole[2], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_number_types(dtype: torch.dtype) -> None:
    model, pairs = make("llama_gqa").to(dtype), make_pairs((6, 1, 7), shared=1)
    variants = [Variant([Edit("z", {"layer": layer, "head": head})]) for layer in (0, 1) for head in range(4)]
    values = sweep(model, pairs, variants, progress=False)["value"].to_numpy().reshape(8, -1)
    for row, variant in zip(values, variants, strict=True):
        for at, logits in enumerate(plain_forwards(model, pairs, variant, "corrupt", "clean")):
            right, wrong = pairs.answers[at]
            allowed = (0.05 if dtype == torch.bfloat16 else 1e-12) * float(logits.detach().abs().max())
            assert row[at] == pytest.approx(float((logits[right] - logits[wrong]).detach()), abs=allowed)


def test_a_function_is_given_the_whole_value_of_every_prompt() -> None:
    model, pairs = make("gpt2"), make_pairs((6, 4, 6), shared=2)
    seen: list[Tensor] = []

    def look(value: Tensor, hook: Any) -> Tensor:
        seen.append(value)
        return -value

    first = Edit("z", {"layer": 0, "head": 1, "pos": 1}, "zero")
    sweep(model, pairs, [Variant([first, Edit("z", {"layer": 1, "pos": -1}, source=look)])], progress=False)
    for at, n in enumerate(pairs.lengths.tolist()):
        alone: list[Tensor] = []

        def cut(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[:, 1, 1] = 0
            return value

        hooks = [
            ("blocks.0.attn.hook_z", cut),
            ("blocks.1.attn.hook_z", lambda value, hook, to=alone: to.append(value)),
        ]
        model.run_with_hooks(pairs.corrupt[at : at + 1, :n], fwd_hooks=hooks)
        assert torch.allclose(seen[0][at, :n], alone[0][0], atol=1e-5)
    with pytest.raises(HookError, match=r"returned 'x', expected \[batch, pos, head, d_head\]"):
        sweep(model, pairs, [Variant([Edit("z", {"layer": 0}, source=lambda x, hook: "x")])], progress=False)  # type: ignore[arg-type,return-value]


def test_a_job_pickles_and_its_chunks_run_in_any_order() -> None:
    from interp.sweeps.sweep import _job

    model, pairs = make("llama_gqa"), make_pairs((6, 4, 5))
    variants = [Variant([Edit("z", {"layer": layer, "head": head})]) for layer in (0, 1) for head in range(4)]
    rows = dict(plans.ROWS)
    plans.ROWS["cpu"] = 12
    try:
        job = _job(model, pairs, variants, "logit_diff", "corrupt", "clean", None)
    finally:
        plans.ROWS.update(rows)
    assert len(job.plan.chunks) > 4
    other = pickle.loads(pickle.dumps(job))
    here = [job.run(index) for index in range(len(job.plan.chunks))]
    there = [other.run(index) for index in reversed(range(len(job.plan.chunks)))]
    for a, b in zip(here, reversed(there), strict=True):
        assert np.array_equal(a, b)


def test_a_pickled_job_has_what_its_edits_derive_from_a_cache() -> None:
    from interp.sweeps.sweep import _job

    model, pairs = make("llama_gqa"), make_pairs((6, 6))
    _, cache = model.run_with_cache(pairs.clean)
    assert "blocks.1.attn.hook_pattern" not in cache
    variants = [Variant([Edit("pattern", {"layer": 1, "head": head}, source=cache)]) for head in range(4)]
    job = _job(model, pairs, variants, "logit_diff", "corrupt", "clean", None)
    other = pickle.loads(pickle.dumps(job))
    for index in range(len(job.plan.chunks)):
        assert np.array_equal(job.run(index), other.run(index))


def test_somebody_elses_hooks_stay_in_force() -> None:
    model, pairs = make("gpt2"), make_pairs((6, 4))
    variants = [Variant([Edit("z", {"layer": layer, "head": head})]) for layer in (0, 1) for head in range(2)]

    def without(value: Tensor, hook: Any) -> Tensor:
        assert value.shape[0] in (1, len(pairs))  # the prompts as they are, whatever the sweep does
        return 0 * value

    plain = sweep(model, pairs, variants, progress=False)
    with model.hooks([("blocks.0.hook_mlp_out", without)]):
        compare(model, pairs, variants, "corrupt", "clean")
        cut = sweep(model, pairs, variants, progress=False)
    assert (cut["value"] - plain["value"]).abs().max() > 1e-3


def test_metrics_say_what_they_read() -> None:
    model, pairs = make("gpt2"), make_pairs((6, 4, 5), shared=1)
    variants = [Variant([Edit("z", {"layer": layer, "head": head})]) for layer in (0, 1) for head in range(2)]
    seen: list[list[int]] = []

    def whole(logits: Tensor, rows: PromptPairs) -> Tensor:
        at = rows.role_positions("middle")
        return logits[torch.arange(len(rows)), at, 3] - logits[torch.arange(len(rows)), at, 7]

    def narrow(logits: Tensor, rows: PromptPairs) -> Tensor:
        seen.append(list(logits.shape))
        return logits[:, 0, 0] - logits[:, 0, 1]

    wide = sweep(model, pairs, variants, whole, progress=False)
    says = Metric(
        "narrow", narrow, "logit 3 over 7 at the middle", "logits", whole=True, positions="middle", tokens=(3, 7)
    )
    told = sweep(model, pairs, variants, says, progress=False)
    assert told["value"].tolist() == pytest.approx(wide["value"].tolist(), rel=1e-5, abs=1e-6)
    assert seen and all(shape == [3, 1, 2] for shape in seen)
    assert plan_sweep(model, pairs, variants, says).operations < plan_sweep(model, pairs, variants, whole).operations


def test_what_is_equal_in_both_runs_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[int, int]] = []
    original = passes._in_one_pass

    def counted(job: Any, block: Any, cells: Any) -> Tensor:
        ran.extend(zip(cells.variant.tolist(), cells.prompt.tolist(), strict=True))
        return original(job, block, cells)

    monkeypatch.setattr(passes, "_in_one_pass", counted)
    model, pairs = make("no_norm_relu"), make_pairs((5, 5))
    name = "blocks.1.mlp.hook_post"
    neurons = range(model.cfg.d_mlp or 0)
    variants = [Variant([Edit(name, {"d_mlp": n})], {"neuron": n}) for n in neurons]
    frame = sweep(model, pairs, variants, progress=False)
    clean, corrupt = (model.run_with_cache(side)[1][name][:, -1] for side in (pairs.clean, pairs.corrupt))
    differs = clean != corrupt  # [prompt, neuron], where the metric reads
    assert 0 < differs.sum() < differs.numel()
    off = ~(model.run_with_cache(pairs.clean)[1][name] != model.run_with_cache(pairs.corrupt)[1][name]).any(1)
    assert off.any() and all((n, prompt) not in ran for prompt, n in off.nonzero().tolist())
    table = frame.set_index(["prompt", "neuron"])
    for prompt, n in (~differs).nonzero().tolist():
        assert table.loc[(prompt, n), "value"] == table.loc[(prompt, n), "base_value"]
    for prompt, n in differs.nonzero().tolist():
        assert table.loc[(prompt, n), "value"] != table.loc[(prompt, n), "base_value"]


@pytest.mark.parametrize("kind", ["llama_gqa", "mamba2"])
def test_where_a_tensor_adds_nothing_no_row_is_run(kind: str) -> None:
    model, pairs = make(kind), make_pairs((6, 4))
    added = torch.zeros(2, 6, model.cfg.d_model)
    added[0, 4], added[1, 2] = 1.0, -1.0
    late = Variant([Edit("resid_pre", {"layer": 1}, "add", added)])
    whole = Variant([Edit("resid_pre", {"layer": 1}, "add", torch.ones_like(added))])
    rows = [sum(chunk.rows for chunk in plan_sweep(model, pairs, [one]).chunks[1:]) for one in (late, whole)]
    assert rows == [2 + 2, 6 + 4]
    expected = model.run_with_hooks(
        pairs.corrupt, attention_mask=pairs.mask, fwd_hooks=[(RESID, lambda x, _: x + added)]
    )
    found = sweep(model, pairs, [late], progress=False)["value"]
    assert found.tolist() == pytest.approx(measure("logit_diff", expected, pairs).tolist(), abs=1e-5)


def test_a_sweep_of_one_side_runs_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = make("llama_gqa"), make_pairs((6, 4))
    ran = []
    run_side = BaseRunCache._run_side
    monkeypatch.setattr(BaseRunCache, "_run_side", lambda self, *of: ran.append(of[1]) or run_side(self, *of))
    cells = [Variant([Edit("z", {"layer": 1, "head": 0}, "zero")]), Variant([Edit("z", {"layer": 0}, "mean")])]
    alone = sweep(model, pairs, cells, base="clean", source="clean", progress=False)
    assert ran == ["clean"]
    both = sweep(model, pairs, cells[:1], base="clean", source="corrupt", progress=False)
    assert ran == ["clean", "clean", "corrupt"]
    assert alone["value"][: len(both)].tolist() == pytest.approx(both["value"].tolist(), abs=1e-5)
    assert alone["source_value"].tolist() == alone["base_value"].tolist()


def test_edits_are_placed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[Edit] = []
    original = Placer.place

    def counted(placer: Placer, edit: Edit) -> Placed:
        placed.append(edit)
        return original(placer, edit)

    monkeypatch.setattr(Placer, "place", counted)
    monkeypatch.setitem(plans.ROWS, "cpu", 8)
    model, pairs = make("gpt2"), make_pairs((5, 4, 3))
    variants = [Variant([Edit("z", {"layer": 1, "head": head}) for head in range(2)]), Variant([Edit("embed")])]
    assert len(plan_sweep(model, pairs, variants).chunks) > 2
    placed.clear()
    sweep(model, pairs, variants, progress=False)
    assert placed == [edit for variant in variants for edit in variant.edits]


def test_a_block_whose_prompts_are_too_short_for_a_slice_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = make("gpt2"), make_pairs((7, 3, 3, 6))
    variants = [
        Variant([Edit("resid_pre", {"layer": 1, "pos": slice(4, None)})]),
        Variant([Edit("pattern", {"layer": 0, "key": slice(4, None)}, op="zero")]),
    ]
    whole = sweep(model, pairs, variants, progress=False)["value"]
    monkeypatch.setitem(plans.ROWS, "cpu", 8)
    measured = sweep_values(model, pairs, variants, progress=False)
    assert measured.values.ravel() == pytest.approx(whole.to_numpy(), rel=1e-5)
    changes = np.abs(measured.changes)
    assert (changes[:, 1:3] < 1e-5).all() and (changes[:, [0, 3]] > 1e-4).all()


@pytest.mark.parametrize("kind", sorted(RECURRENT))
def test_blocks_of_short_prompts_know_nothing_of_later_starts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = make(kind), make_pairs((2, 9, 1))
    monkeypatch.setitem(plans.ROWS, "cpu", 8)
    variants = [Variant([Edit("resid_pre", {"layer": 1, "pos": -1})]), Variant([Edit("hook_embed", {"pos": "middle"})])]
    plan = plan_sweep(model, pairs, variants)
    assert len({chunk.prompts for chunk in plan.chunks}) == 3 and plan.starts == (1, 4, 8)
    compare(model, pairs, variants, "corrupt", "clean")
