"""Weights under TransformerLens's names: there and back, its configuration fields, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import make
from torch import Tensor

import interp
from interp.errors import ConfigError, OutputError, WeightsError
from interp.loading.save import save
from interp.models.gpt import GPT
from interp.weights.build import weights
from interp.weights.transformer_lens import config_of, load_transformer_lens, to_transformer_lens

# What TransformerLens 2 writes for a small attention-only model.
THEIR_CONFIG: dict[str, Any] = {
    "n_layers": 2, "d_model": 16, "n_ctx": 24, "d_head": 4, "d_vocab": 29, "n_heads": 4, "d_mlp": None, "act_fn": None,
    "attn_only": True, "normalization_type": None, "attn_scale": 2.0, "use_attn_scale": True, "eps": 1e-05,
    "positional_embedding_type": "standard", "attention_dir": "causal", "d_vocab_out": 11, "device": "cuda",
    "dtype": "torch.float32", "init_mode": "gpt2", "initializer_range": -1.0, "n_params": 2048, "rotary_base": 10000,
    "tokenizer_prepends_bos": None, "window_size": None, "attn_scores_soft_cap": -1.0, "output_logits_soft_cap": -1.0,
    "use_NTK_by_parts_rope": False, "NTK_by_parts_factor": 8.0, "num_experts": None, "final_rms": False, "seed": 5,
    "use_local_attn": False, "attn_types": None, "default_prepend_bos": True, "use_split_qkv_input": True,
}  # fmt: skip


def equal_logits(one: GPT, other: GPT, tokens: Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(one(tokens), other(tokens))


def test_every_model_survives_the_round_trip(any_model: GPT, tokens: Tensor) -> None:
    copy = load_transformer_lens(any_model.cfg, to_transformer_lens(any_model))
    assert equal_logits(copy, any_model, tokens)
    assert {name: p.requires_grad for name, p in copy.named_parameters()} == {
        n: True for n, _ in any_model.named_parameters()
    }


def test_every_model_survives_the_disk(any_model: GPT, tokens: Tensor, tmp_path: Path) -> None:
    save(any_model, tmp_path / "new" / "folder")
    copy = interp.load(tmp_path / "new" / "folder")
    assert copy.cfg == any_model.cfg
    assert copy.source.sha256() is not None
    assert equal_logits(copy, any_model, tokens)


def test_the_listed_weights_are_all_there_are_and_no_copies(any_model: GPT) -> None:
    listed = weights(any_model)
    assert sum(tensor.numel() for tensor in listed.values()) == sum(p.numel() for p in any_model.parameters())
    for tensor in listed.values():
        tensor.fill_(0.25)
    assert all(bool((parameter == 0.25).all()) for parameter in any_model.parameters())


def test_saving_where_nothing_can_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"a model cannot be written to"):
        save(make("gpt2"), tmp_path / "file")


def test_numpy_arrays_buffers_and_grouped_names(tokens: Tensor) -> None:
    model = make("llama_gqa")
    state: dict[str, Any] = {
        name.replace(".W_K", "._W_K").replace(".W_V", "._W_V"): np.asarray(tensor)
        for name, tensor in to_transformer_lens(model).items()
    }
    state["blocks.0.attn.W_O"].flags.writeable = False
    state |= {f"blocks.1.attn.{name}": np.zeros((4, 4)) for name in ("mask", "IGNORE", "rotary_sin", "rotary_cos")}
    assert equal_logits(load_transformer_lens(model.cfg, state), model, tokens)


def test_their_configuration_as_a_dict_or_an_object(tokens: Tensor) -> None:
    model = make("attn_only")

    class Config:
        def to_dict(self) -> dict[str, Any]:
            return THEIR_CONFIG

    for cfg in (THEIR_CONFIG, Config()):
        copy = load_transformer_lens(cfg, to_transformer_lens(model))
        assert equal_logits(copy, model, tokens)
    assert copy.cfg.initializer_range == pytest.approx(0.8 / 4)
    assert copy.dtype == torch.float32
    assert (
        load_transformer_lens(THEIR_CONFIG | {"dtype": "torch.float64"}, to_transformer_lens(model)).dtype
        == torch.float64
    )


def test_biases_in_no_layer_are_absent_and_in_one_layer_are_missing_in_the_other(tokens: Tensor) -> None:
    state = to_transformer_lens(make("attn_only"))
    bare = {name: tensor for name, tensor in state.items() if ".b_" not in name}
    zeros = {name: torch.zeros_like(tensor) if ".b_" in name else tensor for name, tensor in state.items()}
    model = load_transformer_lens(THEIR_CONFIG, bare)
    assert not (model.cfg.attn_in_bias or model.cfg.attn_out_bias or model.cfg.unembed_bias)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), load_transformer_lens(THEIR_CONFIG, zeros)(tokens))
    with pytest.raises(WeightsError, match=r"missing: 'blocks.1.attn.b_K'"):
        load_transformer_lens(THEIR_CONFIG, {name: t for name, t in state.items() if name != "blocks.1.attn.b_K"})
    with pytest.raises(WeightsError, match=r"missing: 'blocks.0.attn.b_K', .* and 3 more"):
        load_transformer_lens(make("attn_only").cfg, bare)


def test_scale_rotary_and_activation_fields_mean_what_they_mean_to_transformer_lens() -> None:
    rotary = THEIR_CONFIG | {
        "positional_embedding_type": "rotary", "attn_only": False, "act_fn": "gelu_fast", "use_attn_scale": False,
        "use_NTK_by_parts_rope": True, "NTK_original_ctx_len": 32, "use_local_attn": True, "window_size": 24,
    }  # fmt: skip
    cfg = config_of(rotary, {})
    assert (cfg.attn_scale, cfg.rotary_dim, cfg.act_fn) == (1.0, 4, "gelu_new")
    assert cfg.rope_scaling == interp.RopeScaling("llama3", 8.0, 1.0, 4.0, 32)
    assert config_of(THEIR_CONFIG | {"attn_scale": -1}, {}).attn_scale == 2.0
    assert config_of(THEIR_CONFIG | {"attn_scale": 7}, {}).attn_scale == 7.0


def test_norms_caps_and_windows_mean_what_they_mean_to_transformer_lens() -> None:
    theirs = THEIR_CONFIG | {
        "attn_only": False, "act_fn": "gelu", "normalization_type": "RMS", "positional_embedding_type": "rotary",
        "attn_scores_soft_cap": 50.0, "output_logits_soft_cap": 30.0, "use_qk_norm": True, "post_embedding_ln": True,
        "use_normalization_before_and_after": True, "use_local_attn": True, "window_size": 8,
        "attn_types": ["local", "global"], "rotary_base_local": 100.0, "use_yarn_rope": True, "yarn_factor": 4.0,
        "yarn_original_max_position_embeddings": 6,
    }  # fmt: skip
    cfg = config_of(theirs, {})
    assert (cfg.attn_scores_soft_cap, cfg.output_logits_soft_cap, cfg.qk_norm) == (50.0, 30.0, "RMS")
    assert (cfg.norm_placement, cfg.embed_norm) == ("both", True)
    yarn = interp.RopeScaling("yarn", 4.0, original_n_ctx=6)
    assert [tuple(cfg.attention_kind(layer)) for layer in range(2)] == [(8, 100.0, None), (None, 10000.0, yarn)]
    assert config_of(theirs | {"use_local_attn": False}, {}).window_size is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_local_attn": True}, "use_local_attn=True needs window_size"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"normalization_type": "LN", "final_rms": True}, "final_rms=True"),
        ({"num_experts": 4}, "num_experts=4"),
        ({"positional_embedding_type": "shortformer"}, "shortformer"),
        ({"attn_only": False, "act_fn": "solu_ln"}, "solu_ln.*did you mean 'solu'"),
        ({"gated_mpl": True}, "gated_mpl=True.*did you mean 'gated_mlp'"),
        ({"d_vocab": None}, "lacks d_vocab"),
    ],
)
def test_fields_that_change_the_numbers_are_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config_of(THEIR_CONFIG | change, {})


def test_a_gated_mlp_takes_their_input_bias_only_when_it_is_zero(tokens: Tensor) -> None:
    model = make("llama", mlp_bias=True)
    state = to_transformer_lens(model)
    assert equal_logits(load_transformer_lens(model.cfg, state), model, tokens)
    theirs = {name: tensor for name, tensor in state.items() if not name.endswith("b_gate")}
    with pytest.raises(WeightsError, match=r"b_in' of a gated MLP is not zero"):
        load_transformer_lens(model.cfg, theirs)
    theirs |= {name: torch.zeros_like(tensor) for name, tensor in theirs.items() if name.endswith("mlp.b_in")}
    copy = load_transformer_lens(model.cfg, theirs)
    assert torch.equal(copy.b_out, model.b_out) and not bool(copy.b_in.any() or copy.b_gate.any())


def test_a_folded_unembedding_unties(tokens: Tensor) -> None:
    model = make("llama")
    state = to_transformer_lens(model)
    assert load_transformer_lens(model.cfg, state).cfg.tie_word_embeddings
    state["unembed.W_U"] = state["unembed.W_U"] * 2
    folded = load_transformer_lens(model.cfg, state)
    assert not folded.cfg.tie_word_embeddings
    with torch.no_grad():
        torch.testing.assert_close(folded(tokens), 2 * model(tokens))


def test_bad_tensors_are_named(tokens: Tensor) -> None:
    model = make("gpt2")
    state = to_transformer_lens(model)

    def loading(**changes: Any) -> GPT:
        return load_transformer_lens(model.cfg, state | {k.replace("__", "."): v for k, v in changes.items()})

    with pytest.raises(WeightsError, match=r"not expected: 'blocks.0.mlp.W_inn' \(nearest: 'blocks.0.mlp.W_in'\)"):
        loading(blocks__0__mlp__W_inn=state["blocks.0.mlp.W_in"])
    with pytest.raises(WeightsError, match=r"'blocks.0.attn.W_Q' has shape \[16, 4, 4\], expected \[4, 16, 4\]"):
        loading(blocks__0__attn__W_Q=torch.zeros(16, 4, 4))
    for value in (float("nan"), float("inf"), float("-inf")):
        bad = state["blocks.1.mlp.W_in"].clone()
        bad[3, 5] = value
        with pytest.raises(WeightsError, match=r"'blocks.1.mlp.W_in' holds NaN or infinite values"):
            loading(blocks__1__mlp__W_in=bad)
    with pytest.raises(WeightsError, match=r"'embed.W_E' has no values"):
        loading(embed__W_E=torch.empty(29, 16, device="meta"))
    with pytest.raises(WeightsError, match=r"'embed.W_E' must be a tensor or an array of numbers, not 'weights'"):
        loading(embed__W_E="weights")
    renamed = {name.replace("mlp", "ffn"): tensor for name, tensor in state.items()}
    with pytest.raises(
        WeightsError, match=r"missing: 'blocks.0.mlp.W_in' \(nearest.*and 2 more; not expected.*and 2 more"
    ):
        load_transformer_lens(model.cfg, renamed)


def test_values_that_overflow_the_dtype_are_refused_and_large_finite_ones_are_not() -> None:
    model = make("gpt2")
    state = to_transformer_lens(model)
    state["embed.W_E"] = torch.full((29, 16), 3e38)
    assert load_transformer_lens(model.cfg, state).W_E[0, 0] == 3e38
    with pytest.raises(
        WeightsError,
        match=r"'embed.W_E' holds values up to 3e\+38, but float16 holds at most 65504.*dtype='float32' or",
    ):
        load_transformer_lens(model.cfg, state, dtype=torch.float16)


@pytest.mark.slow
def test_the_weights_that_transformer_lens_shows_give_transformers_logits(tmp_path: Path) -> None:
    # TransformerLens 4 has no HookedTransformer; its bridge shows the same tensors under the same names.
    transformers = pytest.importorskip("transformers")
    from transformer_lens.model_bridge import TransformerBridge

    config = transformers.GPT2Config(
        vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=48, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    tokens = torch.randint(0, 61, (2, 48))
    with torch.no_grad():
        expected = theirs(tokens).logits
    bridge = TransformerBridge.boot_transformers(str(tmp_path), hf_model=theirs, device="cpu")
    state = {
        "embed.W_E": bridge.W_E,
        "pos_embed.W_pos": bridge.W_pos,
        "unembed.W_U": bridge.W_U,
        "unembed.b_U": bridge.b_U,
    }
    for layer, block in enumerate(bridge.blocks):
        state |= {f"blocks.{layer}.attn.{x}_{y}": getattr(bridge, f"{x}_{y}")[layer] for x in "Wb" for y in "QKVO"}
        state |= {
            f"blocks.{layer}.mlp.{x}_{y}": getattr(bridge, f"{x}_{y}")[layer] for x in "Wb" for y in ("in", "out")
        }
        state |= {f"blocks.{layer}.{ln}.{x}": getattr(getattr(block, ln), x) for ln in ("ln1", "ln2") for x in "wb"}
    state |= {"ln_final.w": bridge.ln_final.w, "ln_final.b": bridge.ln_final.b}
    model = load_transformer_lens(bridge.cfg, state)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), expected, rtol=1e-5, atol=1e-5)
