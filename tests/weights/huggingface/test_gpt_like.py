"""GPT-Neo, GPT-J, OPT, BLOOM, Falcon and Phi: padding, generation, published config.json files, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checkpoints import BLOOM, CASES, FALCON, GPTJ, GROUPED_FALCON, NEO, OPT, PHI, relative_difference, tiny, tokens_for

import interp
from interp.config import ModelConfig
from interp.errors import ConfigError, InterpError
from interp.weights.huggingface.configs.written import OPTIONS
from interp.weights.huggingface.families import configure
from interp.weights.huggingface.write import computed, describe

# One case for each way in which positions enter.
POSITIONS = ["gpt_neo", "gptj", "opt", "bloom-six-heads", "falcon-groups", "falcon-alibi", "phi"]

# What config.json files of the hub say, with tiny sizes.
SUMMARY = {
    "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True,
}  # fmt: skip
WRITTEN: dict[str, Any] = {"torch_dtype": "float16", "transformers_version": "4.27.0", "use_cache": True}
MEGATRON = {
    "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "masked_softmax_fusion": True, "offset_alibi": 100,
    "pretraining_tp": 2, "skip_bias_add": True, "skip_bias_add_qkv": False, "slow_but_exact": False, "unk_token_id": 0,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "EleutherAI/gpt-neo-125m and roneneldan/TinyStories-33M": {
        "model_type": "gpt_neo", **NEO, **SUMMARY, **WRITTEN, "architectures": ["GPTNeoForCausalLM"],
        "activation_function": "gelu_new", "attention_dropout": 0, "attention_layers": ["global", "local"],
        "embed_dropout": 0, "gradient_checkpointing": False, "initializer_range": 0.02, "intermediate_size": None,
        "layer_norm_epsilon": 1e-5, "resid_dropout": 0, "window_size": 256, "tokenizer_class": "GPT2Tokenizer",
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50, "temperature": 0.9}},
    },
    "EleutherAI/gpt-j-6b": {
        "model_type": "gptj", **GPTJ, **SUMMARY, **WRITTEN, "activation_function": "gelu_new", "attn_pdrop": 0.0,
        "embd_pdrop": 0.0, "gradient_checkpointing": False, "initializer_range": 0.02, "layer_norm_epsilon": 1e-5,
        "n_inner": None, "resid_pdrop": 0.0, "rotary": True, "scale_attn_weights": True, "tie_word_embeddings": False,
        "task_specific_params": {"text-generation": {"do_sample": True}}, "tokenizer_class": "GPT2Tokenizer",
    },
    "facebook/opt-125m": {
        "model_type": "opt", **OPT, **WRITTEN, "_remove_final_layer_norm": False, "activation_dropout": 0.0,
        "activation_function": "relu", "attention_dropout": 0.0, "do_layer_norm_before": True, "dropout": 0.1,
        "init_std": 0.02, "layerdrop": 0.0, "prefix": "</s>", "word_embed_proj_dim": 32,
    },
    "facebook/galactica-125m": {
        "model_type": "opt", **OPT, **WRITTEN, "_remove_final_layer_norm": False, "activation_function": "gelu",
        "do_layer_norm_before": True, "enable_bias": True, "layer_norm_elementwise_affine": True, "init_std": 0.02,
        "learned_embeddings": True, "scale_embeddings": False, "word_embed_proj_dim": 32, "layerdrop": 0.0,
    },
    "bigscience/bloom-560m": {
        "model_type": "bloom", **BLOOM, **WRITTEN, **MEGATRON, "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0, "hidden_dropout": 0.0, "initializer_range": 0.02, "layer_norm_epsilon": 1e-5,
        "n_inner": None, "seq_length": 2048,
    },
    "bigscience/bloom-7b1": {
        "model_type": "bloom", **BLOOM, **WRITTEN, **MEGATRON, "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0, "hidden_dropout": 0.0, "n_embed": 32, "num_attention_heads": 4,
    },
    "tiiuae/falcon-7b": {
        "model_type": "falcon", **{name: value for name, value in FALCON.items() if name != "max_position_embeddings"},
        **WRITTEN, "alibi": False, "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_falcon.FalconConfig"}, "bias": False, "hidden_dropout": 0.0,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-5, "multi_query": True, "new_decoder_architecture": False,
        "parallel_attn": True,
    },
    "tiiuae/falcon-rw-1b": {
        "model_type": "falcon", **FALCON, **WRITTEN, "alibi": True, "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0, "bias": True, "hidden_dropout": 0.0, "multi_query": False, "parallel_attn": False,
        "new_decoder_architecture": False,
    },
    "tiiuae/falcon-11B": {
        "model_type": "falcon", **GROUPED_FALCON, **WRITTEN, "activation": "gelu", "alibi": False,
        "attention_dropout": 0.0, "bias": False, "ff_factor": 4, "ffn_hidden_size": 128, "hidden_dropout": 0.0,
        "multi_query": True, "num_ln_in_parallel_attn": None, "parallel_attn": True, "rope_scaling": None,
        "rope_theta": 500042.0, "tie_word_embeddings": False,
    },
    "microsoft/phi-2": {
        "model_type": "phi", **PHI, **WRITTEN, "attention_dropout": 0.0, "embd_pdrop": 0.0, "hidden_act": "gelu_new",
        "initializer_range": 0.02, "layer_norm_eps": 1e-5, "num_key_value_heads": 4, "partial_rotary_factor": 0.5,
        "qk_layernorm": False, "resid_pdrop": 0.1, "rope_scaling": None, "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", POSITIONS)
def test_padded_rows_equal_the_unpadded_prompts(case: str, side: str) -> None:
    theirs = tiny(*CASES[case])
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
@pytest.mark.parametrize("case", POSITIONS)
def test_generation_keeps_what_came_before_as_transformers_does(case: str) -> None:
    theirs = tiny(*CASES[case])
    model, prompt = interp.load(theirs), tokens_for(theirs, (2, 6))
    ours = model.generate(prompt, max_new_tokens=14, do_sample=False, stop_at_eos=False)
    expected = theirs.generate(
        prompt, max_new_tokens=14, do_sample=False, eos_token_id=None, attention_mask=torch.ones_like(prompt)
    )
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("published", PUBLISHED)
def test_published_configurations_are_read_whole(published: str) -> None:
    options = PUBLISHED[published]
    cfg = configure(options)[1]
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads) == (2, 32, 4)
    assert computed(configure(describe(cfg)[1])[1]) == computed(cfg)


WRITTEN = [case for case, (kind, _) in CASES.items() if kind in OPTIONS]


@pytest.mark.parametrize("case", WRITTEN)
def test_what_a_family_writes_of_itself_it_reads_again(case: str) -> None:
    kind, options = CASES[case]
    cfg = configure({"model_type": kind, **options})[1]
    if cfg.experts is not None:
        with pytest.raises(ConfigError, match="experts"):
            describe(cfg)
        return
    written = OPTIONS[kind](cfg) | {"vocab_size": cfg.d_vocab, "tie_word_embeddings": cfg.tie_word_embeddings}
    assert computed(configure({"model_type": kind, **written})[1]) == computed(cfg)


def test_attention_layers_of_gpt_neo_stand_above_its_attention_types() -> None:
    options = {"model_type": "gpt_neo", **NEO, "attention_types": [[["global"], 2]]}
    assert configure(options)[1].window_size is None
    assert configure({**options, "attention_layers": ["local", "global"]})[1].attn_types == ("local", "global")


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        ("gpt_neo", {"attention_types": [[["global", "local"], 12]]}, "for each of num_layers=2"),
        ("gpt_neo", {"attention_types": [[["global"], 10**12]]}, "for each of num_layers=2"),
        ("gpt_neo", {"attention_types": ["global", "local"]}, "pairs of a list and its repetitions"),
        ("gpt_neo", {"attention_layers": ["global", "locl"]}, "'locl'; did you mean 'local'"),
        ("gptj", {"rotary": False}, "rotary=False"),
        ("gptj", {"scale_attn_weights": False}, "scale_attn_weights=False"),
        ("gptj", {"hidden_size": 16}, "hidden_size=16 contradicts n_embd, 32"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before=False"),
        ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim=16 contradicts hidden_size, 32"),
        ("opt", {"scale_embeddings": True}, "scale_embeddings=True"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm=True"),
        ("bloom", {"alibi": False}, "alibi=False is not a known option of a bloom model"),
        ("falcon", {"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn=False"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn=2 .* it must be 1"),
        ("bloom", {"slow_but_exact": True, "pretraining_tp": 2}, "slow_but_exact=True with pretraining_tp above 1"),
        ("falcon", {"multi_query": False, "num_kv_heads": 2}, "num_kv_heads=2 contradicts num_attention_heads, 4"),
        ("phi", {"partial_rotary_factor": 1.5}, "at most 1, not 1.5"),
        ("phi3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type='linear'.*phi3"),
    ],
)
def test_what_transformers_cannot_run_or_we_cannot_is_refused_by_name(
    kind: str, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(InterpError, match=named):
        configure({"model_type": kind, **CASES[kind][1], **change})


def test_a_shared_table_of_positions_begins_at_its_third_row() -> None:
    theirs = tiny(*CASES["opt"])
    table = theirs.model.decoder.embed_positions.weight
    assert torch.equal(interp.load(theirs).W_pos, table[2:])


@pytest.mark.parametrize(
    "change",
    [
        {"attn_types": ("global", "local"), "window_size": 3},
        {"embed_scale": 2.0},
        {"qk_norm": "RMS_all_heads"},
        {"attn_sinks": True},
    ],
)
def test_what_no_family_has_is_named_when_a_model_is_described(change: dict[str, Any]) -> None:
    cfg = ModelConfig(n_layers=2, d_model=16, n_ctx=8, d_head=4, d_vocab=11, unembed_bias=False, **change)
    with pytest.raises(ConfigError, match=rf"{next(iter(change))}=.* where this model has"):
        describe(cfg)
