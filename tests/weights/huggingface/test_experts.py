"""Families of mixtures of experts against transformers: drawn configurations, padding, generation, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import GROUPED, MIXTURES, change_weights, relative_difference, tiny, tokens_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import interp
from interp.errors import ConfigError, WeightsError
from interp.weights.huggingface.families import FAMILIES, configure

KINDS = sorted({kind for kind, _ in MIXTURES.values()})
LLAMA_LIKE = [kind for kind in KINDS if kind not in ("jamba", "nemotron_h")]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(LLAMA_LIKE),
    n_kv_heads=st.sampled_from([1, 2, 4]),
    n_layers=st.integers(1, 3),
    experts=st.tuples(st.integers(1, 6), st.integers(1, 6)).map(sorted),
    normalized=st.booleans(),
    tied=st.booleans(),
    theta=st.sampled_from([100.0, 10000.0]),
)
def test_drawn_configurations_equal_transformers(
    kind: str, n_kv_heads: int, n_layers: int, experts: list[int], normalized: bool, tied: bool, theta: float
) -> None:
    per_token, n_experts = experts
    options: dict[str, Any] = {
        **GROUPED,
        "num_key_value_heads": n_kv_heads,
        "num_hidden_layers": n_layers,
        "num_local_experts" if kind in ("mixtral", "gpt_oss") else "num_experts": n_experts,
        "num_experts_per_tok": per_token,
        "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "moe_intermediate_size": 12,
        "shared_expert_intermediate_size": 20,
        "norm_topk_prob": normalized,
        "head_dim": 8,
    }
    own = FAMILIES[kind].configure
    given_to = {name: value for name, value in options.items() if hasattr(config_of(kind), name)}
    theirs = tiny(kind, given_to, seed=n_layers)
    assert own(theirs.config.to_dict()).experts is not None
    model, tokens = interp.load(theirs), tokens_for(theirs)
    with torch.no_grad():
        assert relative_difference(model(tokens), theirs(tokens).logits) < 1e-5


def config_of(kind: str) -> Any:
    return transformers.AutoConfig.for_model(kind)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", ["mixtral-window", "qwen2_moe", "gpt_oss", "jamba-experts", "nemotron_h-groups"])
def test_padded_rows_equal_the_unpadded_prompts(case: str, side: str) -> None:
    theirs = tiny(*MIXTURES[case])
    model = interp.load(theirs)
    prompts = [tokens_for(theirs)[row, :length] for row, length in enumerate((20, 7, 1))]
    batch, mask = torch.zeros(3, 20, dtype=torch.int64), torch.zeros(3, 20, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        real = slice(0, len(prompt)) if side == "right" else slice(20 - len(prompt), 20)
        batch[row, real], mask[row, real] = prompt, True
    padded = model(batch, attention_mask=mask)
    for row, prompt in enumerate(prompts):
        assert relative_difference(padded[row, mask[row]], theirs(prompt[None]).logits[0]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe", "olmoe", "gpt_oss", "jamba-experts", "nemotron_h-experts"])
def test_a_prompt_that_is_continued_has_the_logits_of_the_whole(case: str) -> None:
    theirs = tiny(*MIXTURES[case])
    model, tokens = interp.load(theirs), tokens_for(theirs, (2, 14))
    past = interp.PastKeyValues(model.cfg.n_layers)
    parts = [model(part, past_kv_cache=past) for part in torch.tensor_split(tokens, [9, 10, 11], dim=1)]
    assert relative_difference(torch.cat(parts, dim=1), theirs(tokens).logits) < 1e-5


def test_a_file_with_all_experts_of_a_layer_in_one_tensor_loads_too(tmp_path: Path) -> None:
    theirs = tiny(*MIXTURES["qwen2_moe-some-layers"])
    theirs.save_pretrained(tmp_path)
    state = theirs.state_dict()
    layer = "model.layers.1.mlp.experts."
    single = {f"{layer}{at}.{name}_proj.weight": None for at in range(5) for name in ("gate", "up", "down")}
    fused = {f"{layer}{name}": state[f"{layer}{name}"] for name in ("gate_up_proj", "down_proj")}
    change_weights(tmp_path, **{name.replace(".", "__"): value for name, value in (single | fused).items()})
    tokens = tokens_for(theirs)
    with torch.no_grad():
        assert torch.equal(interp.load(tmp_path)(tokens), interp.load(theirs)(tokens))


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    tiny(*MIXTURES["olmoe"]).save_pretrained(tmp_path)
    change_weights(tmp_path, model__layers__1__mlp__experts__3__up_proj__weight=None)
    with pytest.raises(WeightsError, match=r"missing: 'layers.1.mlp.experts.3.up_proj.weight'"):
        interp.load(tmp_path)


def test_a_mixture_is_saved_in_interps_own_format(tmp_path: Path) -> None:
    model = interp.load(tiny(*MIXTURES["qwen2_moe"]))
    with pytest.raises(ConfigError, match=r"a model with experts is not written .*own format"):
        interp.save(model, tmp_path, format="huggingface")
    interp.save(model, tmp_path)
    again = interp.load(tmp_path)
    assert again.cfg == model.cfg and torch.equal(again.W_router, model.W_router)


@pytest.mark.parametrize(
    ("case", "change", "named"),
    [
        ("mixtral", {"num_local_experts": 1}, "experts_per_token=2 must be at most 1"),
        ("mixtral", {"n_shared_experts": 1}, "n_shared_experts=1 is not a known option of a mixtral model"),
        ("qwen2_moe", {"mlp_only_layers": "0"}, "mlp_only_layers must be a list of layers, not '0'"),
        ("qwen2_moe", {"norm_topk_prob": 1}, "norm_topk_prob must be true or false, not 1"),
        ("qwen3_moe", {"moe_intermediate_size": 0}, "moe_intermediate_size must be at least 1, not 0"),
        ("olmoe", {"num_experts": "4"}, "num_experts must be an integer"),
        ("gpt_oss", {"swiglu_limit": 0}, "swiglu_limit must be a finite number > 0, not 0"),
        ("gpt_oss", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config is not supported"),
        ("mixtral", {"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config is not supported"),
    ],
)
def test_what_would_change_the_numbers_is_refused_by_name(case: str, change: dict[str, Any], named: str) -> None:
    kind, options = MIXTURES[case]
    with pytest.raises(ConfigError, match=named):
        configure({"model_type": kind, **options, **change})


@torch.no_grad()
@pytest.mark.parametrize("case", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "nemotron_h-groups"])
def test_scores_choice_and_weights_are_those_of_the_hooked_transformers_module(case: str) -> None:
    theirs = tiny(*MIXTURES[case])
    model, tokens = interp.load(theirs), tokens_for(theirs, (2, 9))
    seen: list[Any] = []
    routers = [module for module in theirs.modules() if type(module).__name__.endswith("opKRouter")]
    routers += [module for module in theirs.modules() if type(module).__name__.endswith("TopkRouter")]
    for router in routers:
        router.register_forward_hook(lambda module, given, made: seen.append(made))
    theirs(tokens)
    _, cache = model.run_with_cache(tokens)
    layers = [layer for layer in range(model.cfg.n_layers) if model.cfg.experts_in(layer) is not None]
    assert len(seen) == len(layers)
    for layer, (scores, weights, indices) in zip(layers, seen, strict=True):
        ours = cache["router_scores", layer].flatten(0, 1)
        assert relative_difference(ours, scores) < 1e-5
        order = indices.sort(-1)
        assert torch.equal(cache["expert_indices", layer].flatten(0, 1).sort(-1).values, order.values)
        chosen = cache["expert_weights", layer].flatten(0, 1).gather(-1, order.values)
        assert relative_difference(chosen, weights.gather(-1, order.indices)) < 1e-5
