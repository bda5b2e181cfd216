"""Mixtures of experts against the formula written out, position by position, and against one another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from makers import KINDS, RECURRENT, close, make
from torch import Tensor

from interp.config import Experts, ModelConfig
from interp.errors import ConfigError, HookError
from interp.models.gpt import GPT
from interp.models.layers import ACTIVATIONS
from interp.models.moe import MoE

MIXTURES = [kind for kind, own in (KINDS | RECURRENT).items() if "experts" in own]
DTYPE = torch.float64


def routed(model: GPT) -> list[int]:
    return [layer for layer in range(model.cfg.n_layers) if isinstance(model.block(layer).mlp, MoE)]


def written_out(mlp: Any, cfg: ModelConfig, x: Tensor, weights: Tensor) -> Tensor:
    """What one position is given by experts with these weights: one neuron's formula after the other.  # [d_model]"""
    act, out = ACTIVATIONS[cfg.act_fn or ""], torch.zeros_like(x)
    for expert, weight in enumerate(weights):
        inner = x @ mlp.W_in[expert] + mlp.b_in[expert]
        if cfg.gated_mlp:
            gate, limit = x @ mlp.W_gate[expert] + mlp.b_gate[expert], mlp.experts.swiglu_limit
            if limit is None:
                inner = act(gate) * inner
            else:
                gate, inner = gate.clamp(max=limit), inner.clamp(-limit, limit)
                inner = (inner + 1) * gate * torch.sigmoid(mlp.experts.swiglu_alpha * gate)
        else:
            inner = act(inner)
        out = out + weight * (inner @ mlp.W_out[expert] + mlp.b_out[expert])
    return out


def chosen_by_hand(mlp: Any, scores: Tensor) -> list[int]:
    """The experts of one position, best first, from its scores [expert]."""
    experts, value = mlp.experts, scores.tolist()
    among = range(len(value))
    if experts.router == "sigmoid":
        value = (scores.sigmoid() + mlp.b_choice).tolist()
        size = experts.n_experts // experts.n_groups
        groups = [range(at, at + size) for at in range(0, experts.n_experts, size)]
        best = sorted(groups, key=lambda group: -sum(sorted(value[one] for one in group)[-2:]))
        among = [one for group in best[: experts.groups_per_token] for one in group]
    return sorted(among, key=lambda one: -value[one])[: experts.experts_per_token]


@torch.no_grad()
@pytest.mark.parametrize("kind", MIXTURES)
def test_a_mixture_is_the_formula_at_every_position(kind: str, tokens: Tensor) -> None:
    model = make(kind).to(DTYPE)
    cfg, experts = model.cfg, model.cfg.experts
    _, cache = model.run_with_cache(tokens)
    for layer in routed(model):
        mlp: Any = model.block(layer).mlp
        here = f"blocks.{layer}.mlp.hook_"
        inputs = cache["ln2.normalized", layer] * model.block(layer).ln2.w
        read = inputs if mlp.latent_in is None else inputs @ mlp.latent_in.W + mlp.latent_in.b
        close(cache[here + "router_scores"], inputs @ mlp.W_router + (0 if mlp.b_router is None else mlp.b_router))
        for x, scores, indices, weights, out in zip(
            read.flatten(0, 1),
            *(cache[here + site].flatten(0, 1) for site in ("router_scores", "expert_indices", "expert_weights")),
            cache["expert_out", layer].sum(2).flatten(0, 1),
            strict=True,
        ):
            chosen = chosen_by_hand(mlp, scores)
            assert indices.tolist() == chosen
            expected = torch.zeros_like(scores)
            expected[chosen] = (scores.sigmoid() if experts.router == "sigmoid" else scores.softmax(-1))[chosen]
            if experts.normalize_weights:
                expected = expected / expected.sum()
            close(weights, expected * experts.weight_factor)
            made = written_out(mlp, cfg, x, weights)
            close(out, made if mlp.latent_out is None else made @ mlp.latent_out.W)


@torch.no_grad()
@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_and_the_shared_one_sum_to_what_the_mixture_gives(kind: str, tokens: Tensor) -> None:
    model = make(kind).to(DTYPE)
    layer = routed(model)[0]
    _, cache = model.run_with_cache(tokens)
    parts = cache["expert_out", layer].sum(2)
    if model.cfg.experts.d_shared is not None:
        parts = parts + cache["shared_out", layer]
    if model.cfg.experts.d_latent is not None:
        parts = parts + model.block(layer).mlp.latent_out.b
    block = model.block(layer)
    close(parts if block.ln2_post is None else block.ln2_post.unhooked(parts), cache["mlp_out", layer])


@torch.no_grad()
@pytest.mark.parametrize("kind", MIXTURES)
def test_a_forward_that_forms_every_expert_gives_the_same_logits(kind: str, tokens: Tensor) -> None:
    model = make(kind).to(DTYPE)
    names = [name for name in model.hook_dict if "hook_expert_" in name]
    logits, formed = model.run_with_cache(tokens, names_filter=names)
    close(logits, model(tokens))
    _, cache = model.run_with_cache(tokens)  # which derives them
    for name in names:
        close(cache[name].to(DTYPE), formed[name].to(DTYPE))


@torch.no_grad()
def test_one_expert_is_an_mlp(tokens: Tensor) -> None:
    plain, mixture = make("llama", d_mlp=24), make("llama", experts=Experts(1, 1, 24))
    state = plain.state_dict()
    for name in list(state):
        if ".mlp." in name:
            state[name] = state[name][None]
    missing, unexpected = mixture.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("W_router_rows") for name in missing)
    close(mixture(tokens), plain(tokens))


@torch.no_grad()
def test_the_order_of_experts_makes_no_difference(tokens: Tensor) -> None:
    model, turned = make("clamped_experts"), make("clamped_experts")
    for block in turned.blocks:
        for name, weight in block.mlp.named_parameters():
            assert name.startswith(("W_", "b_"))
            weight.copy_(weight.roll(1, 0))
    close(turned(tokens), model(tokens))
    for site in ("router_scores", "expert_weights"):
        found, expected = (one.run_with_cache(tokens)[1][site, 1] for one in (turned, model))
        close(found, expected.roll(1, -1))


@torch.no_grad()
def test_edits_of_scores_choice_and_weights_go_on_from_there(tokens: Tensor) -> None:
    model = make("experts")
    here = "blocks.0.mlp.hook_"

    def run(site: str, change: Any) -> Any:
        names = [here + name for name in ("expert_indices", "expert_weights")] + ["blocks.0.hook_mlp_out"]
        with model.hooks([(here + site, lambda value, hook: change(value.clone()))]):
            cache = model.run_with_cache(tokens, names_filter=names)[1]
        return [cache[name] for name in names]

    indices, weights, out = run("router_scores", lambda value: value)
    without = run("router_scores", lambda value: value.index_fill(-1, torch.tensor([2]), -torch.inf))
    assert not bool(without[0].eq(2).any()) and bool(without[1][..., 2].eq(0).all())
    once = run("expert_indices", lambda value: torch.full_like(value, 3))
    close(once[1], torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(3, 7, 4))  # chosen twice, it counts once
    more = run("expert_weights", lambda value: value + torch.tensor([0.0, 0.5, 0.0, 0.0]))
    assert torch.equal(more[0], indices)
    alone = run("expert_indices", lambda value: torch.full_like(value, 1))[2]
    close(more[2], out + 0.5 * alone)  # an expert with a weight is computed, chosen or not
    close(run("expert_weights", lambda value: 2 * value)[2], 2 * out)
    assert not torch.equal(weights, more[1])


def test_experts_that_there_are_not_are_refused(tokens: Tensor) -> None:
    model = make("experts")
    name = "blocks.0.mlp.hook_expert_indices"
    with pytest.raises(HookError, match=r"numbers of experts, 0 to 3, but an edit put 4 there"):
        model.run_with_hooks(tokens, fwd_hooks=[(name, lambda value, hook: torch.full_like(value, 4))])


@torch.no_grad()
def test_equal_scores_are_told_apart_by_number(tokens: Tensor) -> None:
    model = make("experts")
    with torch.no_grad():
        model.block(0).mlp.W_router_rows.zero_()
    _, cache = model.run_with_cache(tokens)
    assert cache["expert_indices", 0].flatten(0, 1).unique(dim=0).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n_experts": 0}, "n_experts of the experts must be at least 1"),
        ({"experts_per_token": 5}, "experts_per_token=5 must be at most 4"),
        ({"router": "soft"}, "router='soft' of the experts is not supported; choose from softmax, sigmoid"),
        ({"n_groups": 3}, "n_experts=4 must be a multiple of n_groups=3"),
        ({"n_groups": 2}, "n_groups=2 of the experts needs router='sigmoid'"),
        ({"shared_gate": True}, "shared_gate=True of the experts needs d_shared"),
        ({"swiglu_limit": -1.0}, "swiglu_limit of the experts must be a finite number > 0"),
        ({"normalize_weights": 1}, "normalize_weights of the experts must be True or False"),
        ({"router": "sigmoid", "n_groups": 2, "groups_per_token": 3}, "groups_per_token=3 must be at most n_groups=2"),
    ],
)
def test_experts_that_contradict_themselves_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        replace(Experts(4, 2, 6), **changes)


def test_layers_with_experts_need_them() -> None:
    sizes: dict[str, Any] = {"n_layers": 2, "d_model": 8, "n_ctx": 8, "d_head": 4, "d_vocab": 9}
    with pytest.raises(ConfigError, match=r"layer_types has 'moe', which needs experts"):
        ModelConfig(**sizes, layer_types=("attn", "moe"))
    with pytest.raises(ConfigError, match=r"attn_only=True contradicts experts"):
        ModelConfig(**sizes, attn_only=True, experts=Experts(2, 1, 4))
    cfg = ModelConfig(**sizes, experts=Experts(2, 1, 4))
    assert cfg.layer_type(0) == "attn+moe" and cfg.d_mlp is None and ModelConfig.from_dict(cfg.to_dict()) == cfg
