"""Tiny GGUF files, written by `gguf` itself as llama.cpp's converter lays them out, with and without a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from interp.weights.gguf.pre_tokenizers import PRE_TOKENIZERS, splitter

CORPUS = [
    "When John and Mary went to the store, John gave a bottle of milk to Mary.",
    "def add(a, b):\n    return a + b  # 12345\n\n\nprint(add(1, 22))",
    "Привет, мир! 日本語のテキスト नमस्ते दुनिया مرحبا 🙂 naïve café",
    "   spaces    and\ttabs\r\n and don't we'll they're " * 3,
]
Metadata = dict[str, Any]
GGUF_LLAMA = {
    "llama.block_count": 2, "llama.context_length": 64, "llama.embedding_length": 64, "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.rope.dimension_count": 16,
    "llama.rope.freq_base": 50000.0, "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.vocab_size": 320,
}  # fmt: skip


def write(path: Path, architecture: str, metadata: Metadata, tensors: dict[str, torch.Tensor], **kinds: str) -> Path:
    """A GGUF file of float32 tensors, quantised where `kinds` names a type for a tensor's last word but one."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, tensor in tensors.items():
        array = tensor.detach().float().contiguous().numpy()
        kind = gguf.GGMLQuantizationType[kinds.get(name.split(".")[-2], "F32")]
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def interleaved(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """What llama.cpp's converter does to the rows of q and k (conversion/llama.py, `permute`)."""
    return weight.reshape(n_heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def llama_weights(*, tied: bool = True, bias: bool = False, seed: int = 0) -> tuple[dict[str, torch.Tensor], Any]:
    """The tensors of a GGUF file, and the transformers model they were converted from."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    theirs = model.state_dict()
    tensors = {
        "token_embd.weight": theirs["model.embed_tokens.weight"],
        "output_norm.weight": theirs["model.norm.weight"],
    }
    if not tied:
        tensors["output.weight"] = theirs["lm_head.weight"]
    names = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    for layer in range(2):
        for stored, name in names.items():
            for part in ("weight", "bias"):
                tensor = theirs.get(f"model.layers.{layer}.{name}.{part}")
                if tensor is not None:
                    n_heads = {"attn_q": 4, "attn_k": 2}.get(stored)
                    tensors[f"blk.{layer}.{stored}.{part}"] = interleaved(tensor, n_heads) if n_heads else tensor
    return tensors, model


def byte_level(pre: str, **extra: Any) -> tuple[RustTokenizer, Metadata]:
    """A tiny byte-level BPE as the models named `pre` have it, and its metadata as llama.cpp's converter writes it."""
    rules = PRE_TOKENIZERS[pre]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    rust = RustTokenizer(models.BPE(ignore_merges=rules.ignore_merges))
    rust.pre_tokenizer = splitter(rules)
    if rules.nfc:
        rust.normalizer = normalizers.NFC()
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=319, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    rust.train_from_iterator(CORPUS, trainer)
    rust.add_tokens(["<think>"])
    model = json.loads(rust.to_str())["model"]
    tokens = [rust.id_to_token(id_) for id_ in range(rust.get_vocab_size())]
    types = [3 if token in special else 4 if token == "<think>" else 1 for token in tokens]
    return rust, {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False, **extra,
    }  # fmt: skip


def with_tokenizer(folder: Path, metadata: Metadata) -> Path:
    return write(folder / "tiny.gguf", "llama", GGUF_LLAMA | metadata, llama_weights()[0])


def sentencepiece_vocabulary(processor: Any, *, user_defined: Sequence[str] = (), **extra: Any) -> Metadata:
    """The entries that llama.cpp's converter writes for a SentencePiece model."""
    ids = range(processor.vocab_size())
    tokens, scores, types = [processor.id_to_piece(id_) for id_ in ids], [], []
    for id_, token in enumerate(tokens):
        own = token in user_defined
        kinds = {6: processor.is_byte(id_), 3: processor.is_control(id_), 2: processor.is_unknown(id_), 4: own, 1: True}
        types.append(next(kind for kind, holds in kinds.items() if holds))
        scores.append(-1000.0 if own else processor.get_score(id_))
        tokens[id_] = token.replace("\u2581", " ") if own else token  # as it stands in a text
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types, **extra,
    }  # fmt: skip


# The architecture of each family in a GGUF file, and its metadata beside the sizes, as llama.cpp's converter writes it.
EXPERTS = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
CONVERTED: dict[str, tuple[str, dict[str, str]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": (
        "gemma2",
        {
            "attention.sliding_window": "sliding_window", "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
    ),
    "gemma3_text": ("gemma3", {"attention.sliding_window": "sliding_window"}),
    "olmo2": ("olmo2", {}),
    "phi": ("phi2", {}),
    "phi3": ("phi3", {"rope.scaling.original_context_length": "original_max_position_embeddings"}),
    "starcoder2": ("starcoder2", {}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gptneox", {}),
    "bloom": ("bloom", {}),
    "falcon": ("falcon", {}),
    "mixtral": ("llama", {**EXPERTS, "expert_count": "num_local_experts"}),
    "qwen2_moe": (
        "qwen2moe",
        {
            **EXPERTS, "expert_feed_forward_length": "moe_intermediate_size",
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
        },
    ),
    "qwen3_moe": ("qwen3moe", {**EXPERTS, "expert_feed_forward_length": "moe_intermediate_size"}),
    "olmoe": ("olmoe", EXPERTS),
    "gpt_oss": (
        "gpt-oss",
        {
            **EXPERTS, "expert_count": "num_local_experts", "expert_feed_forward_length": "intermediate_size",
            "attention.sliding_window": "sliding_window",
        },
    ),
    "mamba": ("mamba", {}),
    "mamba2": ("mamba2", {}),
}  # fmt: skip


EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")


def converted(model: Any) -> tuple[str, Metadata, dict[str, torch.Tensor]]:
    """A transformers model as llama.cpp's converter writes it: architecture, metadata, tensors.

    Names are those of gguf's own map; what the converter changes of the tensors is done here as its `conversion/` does.
    """
    config = model.config
    architecture = CONVERTED[config.model_type][0]
    heads = getattr(config, "num_attention_heads", 0)
    kv_heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or heads
    if config.model_type == "falcon" and config.multi_query and not config.new_decoder_architecture:
        kv_heads = 1
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config.num_hidden_layers
    )
    tensors: dict[str, torch.Tensor] = {}
    for theirs, tensor in model.state_dict().items():
        if theirs == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if ".experts." in theirs or theirs.endswith("sinks"):
            tensors |= _of_experts(config, theirs, tensor)
            continue
        plain = theirs.replace("dt_bias", "dt_proj.bias")
        plain = plain.removeprefix("transformer.") if architecture == "bloom" else plain
        name = names.get_name(plain, try_suffixes=(".weight", ".bias"))
        assert name is not None, theirs
        tensors[name] = _as_converted(config, theirs, tensor, heads, kv_heads)
    rope = _rope(config)
    if rope.get("rope_type") == "longrope":
        for kind in ("long", "short"):
            tensors[f"rope_factors_{kind}.weight"] = torch.tensor(rope[f"{kind}_factor"])
    metadata = _metadata(config, heads, kv_heads)
    return architecture, {f"{architecture}.{key}": value for key, value in metadata.items()}, tensors


def _rope(config: Any) -> Metadata:
    rope: Metadata = getattr(config, "rope_parameters", None) or {}
    return rope.get("full_attention", rope)


def _metadata(config: Any, heads: int, kv_heads: int) -> Metadata:
    """What the converter writes of a configuration, without the architecture's name."""
    metadata: Metadata = {
        "block_count": config.num_hidden_layers, "embedding_length": config.hidden_size,
        "context_length": getattr(config, "max_position_embeddings", 64), "attention.head_count": heads,
        "feed_forward_length": getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
    }  # fmt: skip
    if heads:
        metadata["attention.head_count_kv"] = kv_heads
    if getattr(config, "head_dim", None) and heads:
        metadata |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    eps = next(float(getattr(config, name)) for name in EPSILONS if hasattr(config, name))
    rms = config.model_type.startswith("mamba") or hasattr(config, "rms_norm_eps")
    metadata[f"attention.layer_norm_{'rms_' if rms else ''}epsilon"] = eps
    if config.model_type.startswith("mamba"):
        metadata |= _of_mamba(config)
    rope = _rope(config)
    if "rope_theta" in rope:
        metadata["rope.freq_base"] = float(rope["rope_theta"])
    if rope.get("rope_type") in ("linear", "yarn"):
        metadata |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope.get("rope_type") == "yarn":
        metadata["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if rope.get("partial_rotary_factor"):
        metadata["rope.dimension_count"] = int(rope["partial_rotary_factor"] * config.hidden_size) // heads
    own = CONVERTED[config.model_type][1]
    return metadata | {key: getattr(config, name) for key, name in own.items() if getattr(config, name) is not None}


def _of_experts(config: Any, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the converter makes of a tensor of all experts of a layer, or of its sinks."""
    here, last = name.partition(".layers.")[2].partition(".")[0], name.rpartition(".")[2]
    if last == "sinks":
        return {f"blk.{here}.attn_sinks.weight": tensor}
    kind, oss = "bias" if last.endswith("_bias") else "weight", config.model_type == "gpt_oss"
    if last.startswith("down"):
        return {f"blk.{here}.ffn_down_exps.{kind}": tensor.mT if oss and kind == "weight" else tensor}
    parts = (tensor[..., ::2], tensor[..., 1::2]) if oss else tensor.chunk(2, dim=1)
    return {
        f"blk.{here}.ffn_{part}_exps.{kind}": piece.mT if oss and kind == "weight" else piece
        for part, piece in zip(("gate", "up"), parts, strict=True)
    }


def _of_mamba(config: Any) -> Metadata:
    inner = int(config.expand * config.hidden_size)
    first = config.model_type == "mamba"
    rank = config.time_step_rank if first else config.num_heads
    return {
        "ssm.conv_kernel": config.conv_kernel, "ssm.inner_size": inner, "ssm.state_size": config.state_size,
        "ssm.time_step_rank": rank, "feed_forward_length": 0,
        **({"ssm.dt_b_c_rms": False} if first else {"ssm.group_count": config.n_groups}),
    }  # fmt: skip


def _as_converted(config: Any, name: str, tensor: torch.Tensor, heads: int, kv_heads: int) -> torch.Tensor:
    """One tensor as the converter changes it."""
    kind = config.model_type
    if kind in ("llama", "mixtral") and ("q_proj" in name or "k_proj" in name):
        return interleaved(tensor, heads if "q_proj" in name else kv_heads)
    if kind.startswith("gemma") and name.endswith("norm.weight"):
        return tensor + 1
    if kind == "gpt2" and name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight")):
        return tensor.T
    if "query_key_value" in name and kind in ("bloom", "gpt_neox"):
        return torch.cat(tuple(tensor.unflatten(0, (heads, 3, -1)).unbind(1))).reshape(tensor.shape)
    if "query_key_value" in name:
        groups = tensor.unflatten(0, (kv_heads, heads // kv_heads + 2, -1))
        return torch.cat((groups[:, :-2].flatten(0, 2), groups[:, -2].flatten(0, 1), groups[:, -1].flatten(0, 1)))
    if name.endswith("conv1d.weight"):
        return tensor.squeeze(1)
    if name.endswith(("A_log", ".D")):
        tensor = -tensor.exp() if name.endswith("A_log") else tensor
        return tensor[:, None] if kind == "mamba2" else tensor
    if kind == "mamba2" and name.endswith("mixer.norm.weight"):
        return tensor.reshape(config.n_groups, -1)
    return tensor
