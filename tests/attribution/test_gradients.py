"""Gradients against differences of the metric, and the sum of integrated gradients against the difference of runs."""

from __future__ import annotations

import pytest
import torch
from makers import KINDS, RECURRENT, make, pairs_of
from torch import Tensor

from interp.attribution.gradients import INPUT, constant, gradients, integrated_gradients, path_slopes
from interp.attribution.prompt_batches import batches
from interp.attribution.run_values import run_values
from interp.errors import ConfigError, HookError, UnknownName
from interp.hooked.hooks import HookPoint
from interp.metrics import Metric, measure
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs


def moved(model: GPT, pairs: PromptPairs, name: str, by: Tensor, metric: str) -> Tensor:
    """The metric of clean runs with a site moved."""

    def add(value: Tensor, hook: HookPoint) -> Tensor:
        return value + by

    logits = model.run_with_hooks(pairs.clean, attention_mask=pairs.attention_mask, fwd_hooks=[(name, add)])
    return measure(metric, logits, pairs).detach()


SITES = ["q", "k", "v", "z", "pattern", "result"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_slope_is_the_metrics_rate_of_change_of_every_prompt(kind: str) -> None:
    model, pairs = make(kind).double(), pairs_of(6, 4, 5)
    names = [*(f"blocks.0.attn.hook_{site}" for site in SITES), "blocks.1.hook_q_input", "blocks.1.hook_resid_post"]
    names += ["blocks.1.hook_mlp_in", "blocks.0.mlp.hook_post"] if not model.cfg.attn_only else []
    names += [f"blocks.0.mlp.hook_{site}" for site in ("router_scores", "expert_weights", "shared_out")]
    names = [name for name in names if name in model.hook_dict]
    found = gradients(model, pairs, names, "log_prob")
    generator = torch.Generator().manual_seed(0)
    for name in names:
        way = torch.randn(found.values[name].shape, generator=generator, dtype=torch.float64)
        if "pattern" in name:  # padding is no key
            way = way * pairs.mask[:, None, None]
        there, back = (moved(model, pairs, name, way * step, "log_prob") for step in (1e-5, -1e-5))
        rate = (found.slopes[name] * way).flatten(1).sum(1)
        assert rate.tolist() == pytest.approx(((there - back) / 2e-5).tolist(), rel=1e-4, abs=1e-6), name
    assert found.metric.tolist() == pytest.approx(moved(model, pairs, INPUT, torch.zeros(1), "log_prob").tolist())


@pytest.mark.parametrize("kind", ["experts", "shared_expert", "clamped_experts"])
def test_a_slope_at_an_expert_is_the_metrics_rate_of_change(kind: str) -> None:
    model, pairs = make(kind).double(), pairs_of(6, 4, 5)
    names = [f"blocks.0.mlp.hook_expert_{site}" for site in ("weights", "pre", "pre_linear", "post", "out")]
    found = gradients(model, pairs, names, "log_prob")
    generator = torch.Generator().manual_seed(0)
    for name in names:
        way = torch.randn(found.values[name].shape, generator=generator, dtype=torch.float64)
        there, back = (moved(model, pairs, name, way * step, "log_prob") for step in (1e-5, -1e-5))
        rate = (found.slopes[name] * way).flatten(1).sum(1)
        assert rate.tolist() == pytest.approx(((there - back) / 2e-5).tolist(), rel=1e-4, abs=1e-6), name
    with pytest.raises(HookError, match="expert_indices' holds whole numbers, which have no gradient"):
        gradients(model, pairs, "blocks.0.mlp.hook_expert_indices")


MIXER = ["in", "conv", "delta", "B", "C", "state", "y", "gate", "gated", "out", "pattern"]


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_slope_in_a_state_space_layer_is_the_metrics_rate_of_change(kind: str) -> None:
    model, pairs = make(kind).double(), pairs_of(6, 4, 5)
    layers = [layer for layer in range(model.cfg.n_layers) if model.cfg.mixer(layer) not in ("attn", None)]
    names = [f"blocks.{layer}.mixer.hook_{site}" for layer in layers for site in MIXER]
    names += [f"blocks.{layer}.hook_mixer_in" for layer in layers]
    found = gradients(model, pairs, [name for name in names if "pattern" not in name], "log_prob")
    slopes = found.slopes | gradients(model, pairs, [name for name in names if "pattern" in name], "log_prob").slopes
    generator = torch.Generator().manual_seed(0)
    for name in names:
        way = torch.randn(slopes[name].shape, generator=generator, dtype=torch.float64)
        if "pattern" in name:  # padding is no key
            way = way * pairs.mask[:, None, None]
        there, back = (moved(model, pairs, name, way * step, "log_prob") for step in (1e-6, -1e-6))
        rate = (slopes[name] * way).flatten(1).sum(1)
        assert rate.tolist() == pytest.approx(((there - back) / 2e-6).tolist(), rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("kind", RECURRENT)
def test_the_gradient_of_a_state_accounts_for_all_later_ones(kind: str) -> None:
    """Alone, in a graph that begins there, and beside sites before and after it, a state has the same gradient."""
    model, pairs = make(kind).double(), pairs_of(6, 4)
    layer = next(layer for layer in range(model.cfg.n_layers) if model.cfg.mixer(layer) not in ("attn", None))
    name, read = f"blocks.{layer}.mixer.hook_state", f"blocks.{layer}.mixer.hook_C"
    alone = gradients(model, pairs, name).slopes[name]
    beside = gradients(model, pairs, [INPUT, name, read, f"blocks.{layer}.hook_resid_post"]).slopes[name]
    torch.testing.assert_close(alone, beside)
    y = gradients(model, pairs, f"blocks.{layer}.mixer.hook_y").slopes[f"blocks.{layer}.mixer.hook_y"]
    last = alone[0, 5]  # nothing follows: what is read of it there is all
    values = gradients(model, pairs, [read]).values[read][0, 5]
    if values.ndim == 2:
        values = values.repeat_interleave(model.cfg.n_ssm_heads // model.cfg.n_ssm_groups, 0)[:, None]
    torch.testing.assert_close(last, y[0, 5][..., None] * values)


@pytest.mark.parametrize("metric", ["logit", "prob", "kl", lambda logits, pairs: logits[:, 0, 3] ** 2])
def test_every_metric_with_a_slope_can_be_differentiated(metric: str) -> None:
    model, pairs = make("llama_gqa").double(), pairs_of(5, 4)
    slope = gradients(model, pairs, "blocks.0.attn.hook_v", metric, base="corrupt").slopes["blocks.0.attn.hook_v"]
    assert slope.shape == (2, 5, 2, 4) and slope.abs().sum((1, 2, 3)).min() > 0


def test_prompts_one_after_the_other_give_the_same(tokens: Tensor) -> None:
    model, pairs = make("neox"), pairs_of(4, 6, 5)
    names = ["blocks.0.attn.hook_pattern", "blocks.1.hook_resid_pre"]
    whole, parts = gradients(model, pairs, names), gradients(model, pairs, names, max_memory=1)
    assert len(list(batches(model, pairs, names, max_memory=1))) == 3
    for name in names:
        assert parts.slopes[name].shape == whole.slopes[name].shape
        torch.testing.assert_close(parts.slopes[name], whole.slopes[name], rtol=1e-4, atol=1e-6)
    at_padding = whole.slopes["blocks.1.hook_resid_pre"][~pairs.mask]
    assert at_padding.eq(0).all()


def test_weights_get_no_gradient_and_are_trained_as_before() -> None:
    model = make("gpt2")
    model.embed.W_E.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    gradients(model, pairs_of(5), "blocks.*.hook_resid_pre")
    with constant(model) as fixed:
        assert [parameter.requires_grad for parameter in model.parameters()] == before  # for other threads
        assert fixed.hook_dict["hook_embed"] is model.hook_dict["hook_embed"]
        for own, weight in zip(fixed.parameters(), model.parameters(), strict=True):
            assert not own.requires_grad and own.data_ptr() == weight.data_ptr()
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(point.has_hooks for point in model.hook_dict.values())


def test_a_layer_costs_what_it_keeps_and_sites_on_demand_more() -> None:
    def parts(kind: str, *names: str, **changes: object) -> int:
        model, pairs = make(kind, **changes), pairs_of(*[12] * 40)
        return len(list(batches(model, pairs, names, max_memory=300_000)))

    few = parts("mamba")
    assert few < parts("mamba", d_inner=96) and few < parts("mamba", n_layers=4, layer_types=("mamba",) * 4)
    for site in ("state", "pattern"):
        assert few < parts("mamba", f"blocks.0.mixer.hook_{site}", d_state=16)
    own = {"layer_types": ("mamba", "attn+mlp"), "n_layers": 2}
    assert parts("mamba", **{**own, "d_mlp": 400}) > parts("mamba", **own)


def test_a_stopped_site_passes_no_gradient_on() -> None:
    model, pairs = make("gpt2").double(), pairs_of(5)
    outs = [f"blocks.{layer}.hook_{part}_out" for layer in (0, 1) for part in ("attn", "mlp")]
    slopes = gradients(model, pairs, [INPUT, "blocks.0.attn.hook_z"], stop=outs).slopes
    final = gradients(model, pairs, "blocks.1.hook_resid_post").slopes["blocks.1.hook_resid_post"]
    torch.testing.assert_close(slopes[INPUT], final)  # all that is left is the way through the residual stream
    assert slopes["blocks.0.attn.hook_z"].eq(0).all()


def test_half_precision_is_differentiated_as_well() -> None:
    model, pairs = make("llama"), pairs_of(5, 4)
    exact = gradients(model, pairs, "blocks.0.attn.hook_z").slopes["blocks.0.attn.hook_z"]
    rough = gradients(model.bfloat16(), pairs, "blocks.0.attn.hook_z").slopes["blocks.0.attn.hook_z"]
    assert rough.dtype == torch.bfloat16
    assert float((rough.float() - exact).norm() / exact.norm()) < 0.1


# Where a router's choice changes on the way, the metric jumps.
CONTINUOUS = [kind for kind, own in (KINDS | RECURRENT).items() if "experts" not in own]


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_integrated_gradients_add_up_to_the_difference_of_the_runs(kind: str) -> None:
    model, pairs = make(kind), pairs_of(6, 4, 5)
    found = integrated_gradients(model, pairs, steps=100)
    base, source, _ = run_values(model, pairs)
    gap = (source - base).abs().max()
    assert float((found.sum(1) - (source - base)).abs().max() / gap) < 0.02
    same = pairs.clean == pairs.corrupt
    assert found[same].eq(0).all() and found[~same].ne(0).all()


def test_a_path_of_one_step_is_the_plain_gradient() -> None:
    model, pairs = make("gpt2"), pairs_of(5)
    name = "blocks.1.hook_resid_pre"
    plain = gradients(model, pairs, [INPUT, name])
    ends = {INPUT: (torch.zeros_like(plain.values[INPUT]), plain.values[INPUT])}
    assert torch.equal(path_slopes(model, pairs, [name], path=ends)[name], plain.slopes[name])
    assert not torch.equal(path_slopes(model, pairs, [name], path=ends, steps=2)[name], plain.slopes[name])


def steps(logits: Tensor, pairs: PromptPairs) -> Tensor:
    return logits.argmax(-1)[:, 0].float()


@pytest.mark.parametrize(
    ("metric", "names", "options", "error", "says"),
    [
        ("rank", "hook_embed", {}, UnknownName, "no metric with a gradient matches 'rank'"),
        ("correct", "hook_embed", {}, UnknownName, "'correct'"),
        (steps, "hook_embed", {}, HookError, "metric 'steps' gives no gradient"),
        ("logit", "blocks.*.hook_zz", {}, UnknownName, "no site matches"),
        ("logit", "hook_embed", {"base": "clear"}, UnknownName, "did you mean 'clean'"),
        ("logit", "hook_embed", {"max_memory": 0}, ConfigError, "positive number of bytes"),
        ("logit", ["blocks.0.ln1.hook_scale", "blocks.0.hook_q_input"], {}, HookError, "in a run of its own"),
    ],
)  # fmt: skip
def test_what_has_no_gradient_is_refused(
    metric: str | Metric, names: str, options: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        gradients(make("gpt2"), pairs_of(4), names, metric, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="steps must be at least 1, not 0"):
        integrated_gradients(make("gpt2"), pairs_of(4), steps=0)
