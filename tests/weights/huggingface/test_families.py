"""Every Hugging Face family against transformers itself, on tiny random models (float32, eager attention)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CASES, GPT2_SIZES, LLAMA3, SIZES, relative_difference, tiny, tokens_for

import interp
from interp.errors import ConfigError
from interp.weights.huggingface.families import configure


@torch.no_grad()
def assert_equal_logits(model: interp.GPT, theirs: Any) -> None:
    tokens = tokens_for(theirs)
    assert relative_difference(model(tokens), theirs(tokens).logits) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_from_memory_and_from_a_directory(case: str, tmp_path: Path) -> None:
    theirs = tiny(*CASES[case])
    theirs.save_pretrained(tmp_path)
    assert_equal_logits(interp.load(theirs), theirs)
    assert_equal_logits(interp.load(tmp_path), theirs)


@pytest.mark.parametrize("case", ["gpt2", "gpt_neox", "llama-gqa-tied", "qwen2", "mamba", "mamba2", "bamba"])
def test_a_sharded_directory_gives_the_same_model(case: str, tmp_path: Path) -> None:
    theirs = tiny(*CASES[case])
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = interp.load(tmp_path)
    assert len(model.source.files) == len(list(tmp_path.glob("*.safetensors")))
    assert_equal_logits(model, theirs)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "case", ["gpt2", "gpt_neox", "llama-llama3", "mistral", "mamba-biases", "mamba2-biases", "bamba"]
)
def test_padded_rows_equal_the_unpadded_prompts(case: str, side: str) -> None:
    theirs = tiny(*CASES[case])
    model = interp.load(theirs)
    prompts = [tokens_for(theirs)[row, :length] for row, length in enumerate((20, 7, 1))]
    batch, mask = torch.zeros(3, 20, dtype=torch.int64), torch.zeros(3, 20, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        real = slice(0, len(prompt)) if side == "right" else slice(20 - len(prompt), 20)
        batch[row, real], mask[row, real] = prompt, True
    with torch.no_grad():
        padded = model(batch, attention_mask=mask)
        for row, prompt in enumerate(prompts):
            expected = theirs(prompt[None]).logits[0]
            assert relative_difference(padded[row, mask[row]], expected) < 1e-5


@pytest.mark.parametrize("case", ["llama-gqa-tied", "mamba", "mamba2-biases"])
def test_a_bare_model_with_tied_embeddings_has_logits_too(case: str) -> None:
    theirs = tiny(*CASES[case])
    assert_equal_logits(interp.load(theirs.base_model), theirs)


def test_a_model_in_memory_keeps_its_dtype_and_is_copied() -> None:
    theirs = tiny(*CASES["gpt2"]).double()
    model = interp.load(theirs)
    assert model.dtype == torch.float64
    assert interp.load(theirs, dtype="bfloat16").dtype == torch.bfloat16
    with torch.no_grad():
        theirs.transformer.wte.weight.zero_()
    assert bool(model.W_E.any())


def test_different_head_and_embedding_are_not_tied_whatever_the_configuration_says() -> None:
    theirs = tiny(*CASES["gpt2-untied"])
    theirs.config.tie_word_embeddings = True
    model = interp.load(theirs)
    assert not model.cfg.tie_word_embeddings
    assert_equal_logits(model, theirs)


def test_options_of_transformers_4_are_read() -> None:
    options = {
        **SIZES, "model_type": "llama", "rope_theta": 500.0,
        "rope_scaling": {"rope_type": "llama3", **{k: v for k, v in LLAMA3.items() if k != "rope_theta"}},
    }  # fmt: skip
    new = {**SIZES, "model_type": "llama", "rope_parameters": LLAMA3}
    assert configure(options)[1] == configure(new)[1]
    linear = {**SIZES, "model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}
    cfg = configure(linear)[1]
    assert cfg.rope_scaling == interp.RopeScaling("linear", 2.0)
    neox = {**SIZES, "model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 500}
    cfg = configure(neox)[1]
    assert (cfg.rotary_dim, cfg.rotary_base) == (4, 500.0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "rwkv"}, "model_type 'rwkv'.*gpt_neox"),
        ({"model_type": "lama"}, "nearest is 'llama'"),
        (
            {"model_type": "gpt2", **GPT2_SIZES, "scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx",
        ),
        ({"model_type": "gpt2", **GPT2_SIZES, "reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
        ({"model_type": "gpt2", **GPT2_SIZES, "add_cross_attention": True}, "add_cross_attention"),
        ({"model_type": "gpt2", **GPT2_SIZES, "activation_function": "mish"}, "activation_function='mish'"),
        ({"model_type": "gpt2", "n_layer": 2}, "has no entry 'n_embd'"),
        ({"hidden_act": "geglu"}, "hidden_act='geglu'"),
        ({"is_causal": False}, "is_causal=False"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": 33}, "hidden_size=33 is not a multiple of num_attention_heads=4"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_parameters": {"rope_type": "mrope", "factor": 2.0}}, "rope_type='mrope'"),
        ({"rope_parameters": {"rope_type": "yarn", "mrope_section": [1, 2]}}, "mrope_section"),
        ({"rope_parameters": {"rope_type": "longrope", "short_factor": 2.0, "long_factor": [1.0]}}, "short_factor"),
        ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [None]}}, "long_factor"),
        ({"use_cache_of_experts": True}, "use_cache_of_experts=True"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters for full_attention"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window must be at least 1, not 0"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ({"model_type": "gemma3_text", "layer_types": ["sliding_attention"]}, "layer_types names 1 layers"),
        ({"model_type": "qwen3", "layer_types": ["slide", "full_attention"]}, "no kind of layer.*'slide'"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "a 0 or a 1 for each of 2 layers"),
        ({"model_type": "gemma3"}, "text_config"),
    ],
)
def test_what_would_change_the_numbers_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        configure({"model_type": "llama", **SIZES, **change})


def test_a_window_that_no_layer_uses_is_no_obstacle() -> None:
    options = {**SIZES, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    assert configure(options)[1].n_layers == 2
