"""Edits and sweeps against a plain loop of full forwards with hand-written hooks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from makers import KINDS, RECURRENT, make, make_pairs
from torch import Tensor

from interp import metrics
from interp.edits import Edit, Variant
from interp.errors import ConfigError, InterpError, PromptError, UnknownName
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.sites import site_names
from interp.sweeps.sweep import sweep


def naive(
    model: GPT, pairs: PromptPairs, name: str, change: Callable[[Tensor, Tensor, int], Tensor], base: str, source: str
) -> list[float]:
    """One full forward a prompt, unpadded: `change(value, source value, prompt)` at one site; logit differences."""
    found = []
    for i, n in enumerate(pairs.lengths.tolist()):
        prompt, other = getattr(pairs, base)[i : i + 1, :n], getattr(pairs, source)[i : i + 1, :n]
        kept = model.run_with_cache(other, names_filter=[name])[1][name]
        logits = model.run_with_hooks(prompt, fwd_hooks=[(name, lambda x, hook, k=kept, i=i: change(x.clone(), k, i))])
        right, wrong = pairs.answers[i]
        found.append(float((logits[0, -1, right] - logits[0, -1, wrong]).detach()))
    return found


def test_patching_a_head_equals_the_plain_loop(model: GPT) -> None:
    pairs = make_pairs((6, 4, 6))
    heads = [(layer, head) for layer in range(2) for head in range(model.cfg.n_heads)]
    variants = [Variant([Edit("z", {"layer": layer, "head": h})], {"layer": layer, "head": h}) for layer, h in heads]
    frame = sweep(model, pairs, variants, base="corrupt", source="clean", progress=False)
    assert len(frame) == len(heads) * 3 and list(frame.columns[:2]) == ["layer", "head"]
    for layer, head in heads:

        def patch(x: Tensor, k: Tensor, i: int, head: int = head) -> Tensor:
            x[:, :, head] = k[:, :, head]
            return x

        expected = naive(model, pairs, f"blocks.{layer}.attn.hook_z", patch, "corrupt", "clean")
        got = frame[(frame["layer"] == layer) & (frame["head"] == head)].sort_values("prompt")["value"].tolist()
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-5)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_edit_at_any_site_equals_the_plain_loop(data: st.DataObject) -> None:
    model = make(data.draw(st.sampled_from(sorted(KINDS | RECURRENT))))
    pairs = make_pairs((6, 4, 6))
    name = data.draw(st.sampled_from(list(site_names(model.cfg))))
    axes = model.hook_dict[name].site.axes
    op = data.draw(st.sampled_from(["set", "add", "scale", "zero"]))
    position = next(axis for axis in axes if axis in ("pos", "query"))
    role = data.draw(st.sampled_from(["first", "middle", "end", None]))
    where: dict[str, Any] = {} if role is None else {position: role}
    if "attn_scores" in name and op in ("scale", "add"):
        op = "set"  # -inf has no sums
    if model.hook_dict[name].site.whole:
        op = "set"  # numbers of experts, which have none either
    edit = Edit(name, where, op, source={"scale": 0.5}.get(op))
    base, source = data.draw(st.sampled_from([("corrupt", "clean"), ("clean", "corrupt"), ("clean", "clean")]))
    frame = sweep(model, pairs, [Variant([edit], {"cell": 0})], base=base, source=source, progress=False)

    def change(x: Tensor, k: Tensor, i: int) -> Tensor:
        new = {"set": k, "add": x + k, "scale": 0.5 * x, "zero": torch.zeros_like(x)}[op]
        if role is None:
            return new
        at = [slice(None)] * axes.index(position) + [pairs.roles[i][role]]
        x[tuple(at)] = new[tuple(at)]
        return x

    expected = naive(model, pairs, name, change, base, source)
    largest = max(1.0, *(abs(v) for v in expected))
    assert frame["value"].tolist() == pytest.approx(expected, rel=2e-4, abs=5e-5 * largest, nan_ok=True)


def test_patching_everything_gives_the_source_run_and_nothing_gives_the_base(any_model: GPT) -> None:
    pairs = make_pairs((6, 4, 6))
    # Shared blocks read the embedding again, beside the stream.
    entering = Edit("resid_pre", {"layer": 0}) if any_model.cfg.shared is None else Edit("embed")
    variants = [
        Variant([Edit("resid_post", {"layer": any_model.cfg.n_layers - 1})], {"cell": "all"}),
        Variant([entering], {"cell": "input"}),
        Variant([Edit("resid_pre", {"layer": 1}, source="base")], {"cell": "own"}),
        Variant([], {"cell": "none"}),
    ]
    frame = sweep(any_model, pairs, variants, progress=False).set_index("cell")
    for cell, effect in (("all", 1), ("input", 1), ("own", 0), ("none", 0)):
        assert frame.loc[cell, "effect"].tolist() == pytest.approx([effect] * 3, abs=1e-3)


def test_an_edit_that_restores_what_another_changed_is_made() -> None:
    model, pairs = make("gpt2"), make_pairs((6, 6))
    zero, restore = Edit("mlp_out", {"layer": 0}, "zero"), Edit("resid_post", {"layer": 1}, source="base")
    frame = sweep(
        model, pairs, [Variant([zero], {"cell": "cut"}), Variant([zero, restore], {"cell": "back"})], progress=False
    )
    frame = frame.set_index("cell")
    assert frame.loc["back", "effect"].abs().max() < 1e-4 < frame.loc["cut", "effect"].abs().min()


def test_a_cell_that_copies_equal_values_is_exactly_zero() -> None:
    model = make("llama_gqa")
    pairs = PromptPairs.from_tokens([[1, 2, 3, 4]], [[1, 2, 5, 4]], answers=[(1, 2)])
    cells = [
        Variant([Edit("resid_pre", {"layer": layer, "pos": p})], {"layer": layer, "pos": p})
        for layer in (0, 1)
        for p in range(4)
    ]
    frame = sweep(model, pairs, cells, progress=False).set_index(["layer", "pos"])["effect"]
    assert all(frame[layer, pos] == 0 for layer in (0, 1) for pos in (0, 1)) and frame[0, 3] == 0
    assert frame[0, 2] == pytest.approx(1, abs=1e-4) and frame[1, 3] != 0


def test_several_edits_are_made_together() -> None:
    model, pairs = make("llama_gqa"), make_pairs((6, 4, 6))
    edits = [Edit("z", {"layer": 1, "head": [0, 3]}), Edit("mlp_out", {"layer": 0, "pos": [-1, 0]}, "zero")]
    frame = sweep(model, pairs, [Variant(edits, {})], progress=False)
    expected = []
    for i, n in enumerate(pairs.lengths.tolist()):
        kept = model.run_with_cache(pairs.clean[i : i + 1, :n])[1]["z", 1]

        def patch(x: Tensor, hook: Any, kept: Tensor = kept) -> Tensor:
            return torch.stack([kept[:, :, h] if h in (0, 3) else x[:, :, h] for h in range(4)], dim=2)

        def zero(x: Tensor, hook: Any) -> Tensor:
            return torch.cat([0 * x[:, :1], x[:, 1:-1], 0 * x[:, -1:]], dim=1)

        logits = model.run_with_hooks(
            pairs.corrupt[i : i + 1, :n], fwd_hooks=[("blocks.1.attn.hook_z", patch), ("blocks.0.hook_mlp_out", zero)]
        )
        expected.append(float((logits[0, -1, pairs.answers[i, 0]] - logits[0, -1, pairs.answers[i, 1]]).detach()))
    assert frame["value"].tolist() == pytest.approx(expected, rel=1e-4)


def test_mean_ablation_leaves_padding_out() -> None:
    model, pairs = make("gpt2"), make_pairs((6, 4))
    _, short = model.run_with_cache(pairs.clean[1:, :4])
    _, long = model.run_with_cache(pairs.clean[:1])
    own = long["mlp_out", 0][0]
    mean = own.clone()
    mean[:4] = (own[:4] + short["mlp_out", 0][0]) / 2
    edit = Edit("mlp_out", {"layer": 0}, "mean")
    frame = sweep(model, pairs, [Variant([edit], {})], base="clean", source="clean", progress=False)
    logits = model.run_with_hooks(pairs.clean[:1], fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: mean[None])])
    expected = metrics.measure("logit_diff", logits, pairs[:1])
    assert frame["value"][0] == pytest.approx(float(expected.detach()), rel=1e-4)


def test_sources_of_every_kind_agree() -> None:
    model, pairs = make("llama_gqa"), make_pairs((6, 6, 6))
    _, cache = model.run_with_cache(pairs.clean)
    sources = ["source", cache, cache["v", 1], lambda x, hook: cache[hook.name], None]
    variants = [Variant([Edit("v", {"layer": 1, "kv_head": 0}, source=s)], {"i": i}) for i, s in enumerate(sources)]
    frame = sweep(model, pairs, variants, progress=False)
    values = frame.pivot(index="prompt", columns="i", values="value")
    for i in range(1, len(sources)):
        assert values[i].tolist() == pytest.approx(values[0].tolist(), rel=1e-5)


def test_metrics_of_every_kind() -> None:
    model, pairs = make("gpt2"), make_pairs((6, 4, 6))
    everything = [Variant([Edit("resid_post", {"layer": 1})], {})]
    for metric in metrics.METRICS:
        frame = sweep(model, pairs, everything, metric, progress=False)
        assert frame["value"].tolist() == pytest.approx(frame["source_value"].tolist(), rel=1e-4, abs=1e-5)
        assert (frame["metric"] == metric).all()
    kl = sweep(model, pairs, everything, "kl", progress=False)
    assert kl["source_value"].abs().max() < 1e-5 and (kl["base_value"] > 1e-3).all()

    def own(logits: Tensor, rows: PromptPairs) -> Tensor:
        return logits[:, 0, 0] + len(rows)

    frame = sweep(model, pairs, everything, own, progress=False)
    assert frame["value"].tolist() == pytest.approx((model(pairs.clean)[:, 0, 0] + 3).detach().tolist(), rel=1e-4)
    with pytest.raises(PromptError, match=r"expected a tensor \[3\]"):
        sweep(model, pairs, everything, lambda logits, rows: logits.sum(), progress=False)


def test_effects_are_undefined_where_the_runs_agree() -> None:
    model = make("gpt2")
    pairs = PromptPairs.from_tokens([[1, 2, 3]], [[1, 2, 3]], answers=[(4, 5)])
    frame = sweep(model, pairs, [Variant([Edit("z", {"layer": 0})], {})], progress=False)
    assert math.isnan(frame["effect"][0])


@pytest.mark.parametrize(
    ("edit", "error", "says"),
    [
        (Edit("zz", {"layer": 0}), UnknownName, "no site matches 'zz'"),
        (Edit("z", {"layer": 2}), UnknownName, "layer 2 .* is not one of this model's layers, 0 to 1"),
        (Edit("z", {"layer": 0, "head": 4}), UnknownName, "head 4 is not one of this model's 4, 0 to 3"),
        (Edit("k", {"layer": 0, "head": 1}), UnknownName, "no axis of 'k' matches 'head'.*'kv_head'"),
        (Edit("z", {"layer": 0, "pos": "S2"}), InterpError, "S2"),
        (Edit("z", {"layer": 0, "pos": 5}), PromptError, "position 5 is outside prompt 1, which has 4 tokens"),
        (Edit("z", {"layer": 0, "head": "IO"}), UnknownName, "only positions can be given by role"),
        (Edit("z", {}), UnknownName, "needs a layer"),
        (Edit("pre_linear", {"layer": 0}), UnknownName, "did you mean"),
        (Edit("z", {"layer": 0}, source=torch.zeros(5)), PromptError, "does not broadcast"),
    ],
)
def test_edits_that_cannot_be_made_are_refused(edit: Edit, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        sweep(make("gpt2"), make_pairs((6, 4, 6)), [Variant([edit], {})], progress=False)


def test_arguments_that_make_no_sense_are_refused() -> None:
    model, pairs = make("gpt2"), make_pairs((6, 4, 6))
    with pytest.raises(UnknownName, match="did you mean 'set'"):
        Edit("z", op="sett")
    with pytest.raises(ConfigError, match="'scale' needs a number"):
        Edit("z", op="scale")
    with pytest.raises(ConfigError, match="takes no source"):
        Edit("z", op="zero", source="base")
    with pytest.raises(UnknownName, match="no side matches 'cleen'; did you mean 'clean'"):
        sweep(model, pairs, [Variant([], {})], base="cleen")
    with pytest.raises(UnknownName, match="did you mean 'logit_diff'"):
        sweep(model, pairs, [Variant([], {})], "logit_dif")
    with pytest.raises(PromptError, match="at least one variant"):
        sweep(model, pairs, [])


def test_hooks_are_gone_after_a_sweep_that_failed() -> None:
    model = make("gpt2")
    with pytest.raises(ZeroDivisionError):
        sweep(
            model,
            make_pairs((6, 4, 6)),
            [Variant([Edit("z", {"layer": 0}, source=lambda x, hook: 1 / 0)], {})],
            progress=False,
        )
    assert not any(point.hooks for point in model.hook_dict.values())


def test_something_else_than_variants_is_refused() -> None:
    edit = Edit("z", {"layer": 0})
    for wrong in (Variant([edit]), [edit]):
        with pytest.raises(ConfigError, match="variants must be a list of Variants, not"):
            sweep(make("gpt2"), make_pairs((6, 4, 6)), wrong, progress=False)  # type: ignore[arg-type]


def _no_chunk(job: Any, chunks: Any) -> Any:
    yield 5


def _foreign_chunk(job: Any, chunks: Any) -> Any:
    yield 99, job.run(0)


def _no_values(job: Any, chunks: Any) -> Any:
    yield chunks[0], None


def _too_few(job: Any, chunks: Any) -> Any:
    yield chunks[0], job.run(chunks[0])[:1, :1]


def _ends_early(job: Any, chunks: Any) -> Any:
    yield from ()


@pytest.mark.parametrize(
    ("executor", "says"),
    [
        *[(wrong, "executor must be 'local', 'ray'") for wrong in (lambda: 0, lambda job, chunks: 0, int, print)],
        *[(wrong, "executor must yield") for wrong in (_no_chunk, _foreign_chunk, _no_values, _too_few)],
        (_ends_early, "ended without the values of"),
    ],
)
def test_something_else_than_an_executor_is_refused(executor: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        sweep(make("gpt2"), make_pairs((6, 4, 6)), [Variant((), {})], executor=executor)
