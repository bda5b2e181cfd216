"""MXFP4: decoded as transformers decodes it, and a folder of gpt-oss in it loads as the model that it stands for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoints import GPT_OSS, relative_difference, tiny, tokens_for
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import interp
from interp.errors import ConfigError, WeightsError
from interp.weights.checkpoint import in_memory
from interp.weights.mxfp4 import dequantized

WIDE = {**GPT_OSS, "hidden_size": 64, "intermediate_size": 32}


def drawn(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Blocks and scales of a tensor [expert, column, block]."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
    return blocks, torch.randint(118, 126, shape, generator=generator, dtype=torch.uint8)


def test_every_number_is_decoded_as_transformers_does() -> None:
    blocks, scales = drawn(3, 6, 2)
    blocks.view(-1)[:256] = torch.arange(256, dtype=torch.uint8)
    found = dequantized({"a_blocks": in_memory(blocks), "a_scales": in_memory(scales), "b": in_memory(blocks)})
    assert set(found) == {"a", "b"} and found["a"].shape == (3, 64, 6)
    expected = convert_moe_packed_tensors(blocks, scales)
    assert found["a"]().dtype == expected.dtype and torch.equal(found["a"](), expected)


def test_a_number_is_its_entry_times_its_blocks_factor() -> None:
    blocks, scales = torch.zeros(1, 1, 1, 16, dtype=torch.uint8), torch.full((1, 1, 1), 129, dtype=torch.uint8)
    blocks[0, 0, 0, 0] = 0x7F  # the low half is -6, the high half 6
    assert dequantized({"a_blocks": in_memory(blocks), "a_scales": in_memory(scales)})["a"]()[0, :3, 0].tolist() == [
        -24.0,
        24.0,
        0.0,
    ]


def test_a_folder_of_gpt_oss_in_mxfp4_is_the_model_that_it_stands_for(tmp_path: Path) -> None:
    theirs = tiny("gpt_oss", WIDE)
    state = theirs.state_dict()
    stored = {name: value for name, value in state.items() if not name.endswith(("gate_up_proj", "down_proj"))}
    for name in state.keys() - stored.keys():
        n_experts, rows, columns = state[name].shape
        blocks, scales = drawn(n_experts, columns, rows // 32, seed=len(name))
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        state[name].copy_(convert_moe_packed_tensors(blocks, scales))
    options = {**theirs.config.to_dict(), "quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(options))
    safetensors.torch.save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tokens = tokens_for(theirs)
    with torch.no_grad():
        assert relative_difference(interp.load(tmp_path)(tokens), theirs(tokens).logits) < 1e-5
    options["quantization_config"] = {"quant_method": "gptq"}
    (tmp_path / "config.json").write_text(json.dumps(options))
    with pytest.raises(ConfigError, match="quantization_config is not supported"):
        interp.load(tmp_path)


def test_blocks_and_scales_that_do_not_fit_are_named() -> None:
    blocks, scales = drawn(2, 3, 4)
    with pytest.raises(WeightsError, match=r"'a_blocks' has shape \[2, 3, 4, 16\].*'a_scales' \[2, 3, 3\]"):
        dequantized({"a_blocks": in_memory(blocks), "a_scales": in_memory(scales[..., :3])})
    with pytest.raises(WeightsError, match=r"torch.float32; expected bytes"):
        dequantized({"a_blocks": in_memory(blocks), "a_scales": in_memory(scales.float())})
