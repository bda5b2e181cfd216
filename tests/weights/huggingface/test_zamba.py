"""Checkpoints of Zamba2: published spellings, tensors that repeat others, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from checkpoints import CASES, change_weights, relative_difference, tiny, tokens_for

import interp
from interp.errors import ConfigError, WeightsError
from interp.weights.huggingface.families import configure

OPTIONS: dict[str, Any] = {"model_type": "zamba2", **CASES["zamba2-two-blocks"][1]}
LATER = "model.layers.3.shared_transformer."  # which calls the block of layer 0


def test_the_defaults_are_those_of_the_model_with_2_7_billion_parameters() -> None:
    whole = transformers.Zamba2Config()
    _, ours = configure({"model_type": "zamba2", "num_hidden_layers": 54})
    _, full = configure(whole.to_dict())
    assert ours == full.replace(model_name=ours.model_name)
    named = whole.layers_block_type
    assert [ours.shares(layer) for layer in range(54)] == [kind == "hybrid" for kind in named]


def test_the_spelling_of_published_files_is_read() -> None:
    kinds = ["hybrid", "mamba", "hybrid", "hybrid"]
    more = {
        "layers_block_type": kinds, "hybrid_layer_ids": [0, 2, 3], "attention_head_dim": 12, "mamba_headdim": 8,
        "attention_hidden_size": 48, "kv_channels": 6, "num_query_groups": 4, "ffn_hidden_size": 96,
        "rope_theta": 10000, "use_shared_mlp_adapter": True, "use_mem_eff_path": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    assert configure({**OPTIONS, **more})[1] == configure(OPTIONS)[1]


def test_a_file_may_repeat_the_tensors_of_a_block(tmp_path: Path) -> None:
    theirs = tiny(*CASES["zamba2-two-blocks"])
    theirs.save_pretrained(tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert not any(name.startswith(LATER) for name in stored)
    once = interp.load(tmp_path)
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    assert any(name.startswith(LATER) for name in state)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tokens = tokens_for(theirs)
    with torch.no_grad():
        assert torch.equal(interp.load(tmp_path)(tokens), once(tokens))
        assert relative_difference(once(tokens), theirs(tokens, use_cache=False).logits) < 1e-5
    name = f"{LATER}self_attn.q_proj.weight"
    change_weights(tmp_path, **{name.replace(".", "__"): state[name] + 1})
    with pytest.raises(WeightsError, match=r"layers.3.shared_transformer.self_attn.q_proj.weight' and .* differ"):
        interp.load(tmp_path)


def test_a_missing_adapter_is_named(tmp_path: Path) -> None:
    tiny(*CASES["zamba2-two-blocks"]).save_pretrained(tmp_path)
    name = "model.layers.0.shared_transformer.feed_forward.gate_up_proj_adapter_list.2.1.weight"
    change_weights(tmp_path, **{name.replace(".", "__"): None})
    with pytest.raises(WeightsError, match=r"missing: '.*gate_up_proj_adapter_list.2.1.weight'"):
        interp.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False is not supported"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps=1e-06 contradicts the one of the norm in the mixers, 1e-05"),
        ({"hybrid_layer_ids": [0, 2]}, r"hybrid_layer_ids=\[0, 2\] contradicts the layers, \[0, 2, 3\]"),
        ({"hybrid_layer_ids": 0}, "hybrid_layer_ids=0 contradicts the layers"),
        ({"layers_block_type": ["hybrid", "mamba", "attention", "hybrid"]}, "layers_block_type .* has 'attention'"),
        ({"layers_block_type": "hybrid"}, "layers_block_type .* must be a list"),
        ({"num_hidden_layers": 5}, "num_hidden_layers=5 contradicts the number of layers that are named, 4"),
        ({"attention_head_dim": 6}, "attention_head_dim=6 contradicts hidden_size and num_attention_heads, 12"),
        ({"num_attention_heads": 5}, "twice hidden_size=24 is not a multiple of num_attention_heads=5"),
        ({"num_key_value_heads": 2}, "attn_adapters=True of the shared blocks needs as many key and value heads"),
        ({"n_mamba_heads": 5}, "n_mamba_heads=5 heads of mamba_headdim=9 channels contradict"),
        ({"use_shared_mlp_adapter": False}, "use_shared_mlp_adapter=False is not supported"),
        ({"sliding_window": 4}, "sliding_window=4 is not a known option of a zamba2 model"),
        ({"num_mem_blocks": 0}, "num_mem_blocks must be at least 1, not 0"),
    ],
)
def test_what_would_change_the_numbers_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        configure({**OPTIONS, **changes})
