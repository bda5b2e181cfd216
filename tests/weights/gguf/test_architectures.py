"""Files that hold a random transformers model, as llama.cpp's converter would write it, give that model's logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import CASES, relative_difference, tiny, tokens_for
from gguf_files import CONVERTED, converted, write

import interp
from interp.errors import ConfigError
from interp.weights.gguf.config import CONFIGURE

# Configurations that a GGUF file can describe: sizes that llama.cpp computes, and options that it knows.
LEFT_OUT = {
    "gpt2-untied": "the width of the MLP and the activation are the architecture's",
    "gpt2-unscaled": "scores are always scaled",
    "gpt_neox-sequential": "biases and parallel parts are tried in another test",
    "llama-llama3": "its factors are a tensor, tried in another test",
    "llama-dynamic": "llama.cpp has no such scaling",
    "llama-longrope": "llama.cpp has it for Phi-3 alone",
    "qwen2-window": "llama.cpp has no windows for it",
    "qwen3-biases": "llama.cpp has no biases for it",
    "gemma2-uncapped": "the caps are always written",
    "starcoder2": "llama.cpp has no windows for it",
    "falcon-groups-one-norm": "the width of the MLP and biases are the architecture's",
    **dict.fromkeys(("falcon-plain", "falcon-sequential"), "llama.cpp has its parts in parallel alone"),
    **dict.fromkeys(("falcon-alibi", "falcon-groups-alibi"), "llama.cpp has rotary positions alone"),
    "phi-query-and-key-norms": "llama.cpp has no such norms for it",
    "phi-dynamic": "llama.cpp has no such scaling",
    **dict.fromkeys(("mixtral-window", "qwen2_moe-window", "qwen3_moe-window"), "llama.cpp has no windows for it"),
    "qwen2_moe-some-layers": "llama.cpp has experts in every layer",
    "olmoe-clipped": "llama.cpp has no bounds of queries and keys for it, and weights that are not normalised",
    "gpt_oss-clamped": "llama.cpp fixes what experts clamp",
    "mamba-biases": "llama.cpp has no biases of projections",
    "mamba2-biases": "llama.cpp has no biases of projections",
}
KINDS = [name for name, (kind, _) in CASES.items() if kind in CONVERTED and name not in LEFT_OUT]


@pytest.mark.parametrize("case", KINDS)
def test_logits_equal_those_of_the_model_in_the_file(case: str, tmp_path: Path) -> None:
    kind, options = CASES[case]
    if kind == "gemma3_text":  # llama.cpp fixes the pattern of local layers and their base
        rope = {**options["rope_parameters"], "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
        options = {**options, "sliding_window_pattern": 6, "num_hidden_layers": 7, "rope_parameters": rope}
        options |= {"query_pre_attn_scalar": options["head_dim"], "final_logit_softcapping": None}
    if kind == "qwen3_moe":  # llama.cpp always normalises the weights of experts
        options = {**options, "norm_topk_prob": True}
    if kind == "gemma2":
        options = {**options, "query_pre_attn_scalar": options["head_dim"]}
    theirs = tiny(kind, options)
    architecture, metadata, tensors = converted(theirs)
    model = interp.load(write(tmp_path / "tiny.gguf", architecture, metadata, tensors))
    tokens = tokens_for(theirs, (2, 40))
    with torch.no_grad():
        assert relative_difference(model(tokens), theirs(tokens).logits) < 1e-5


def test_every_architecture_is_tried() -> None:
    assert {CONVERTED[CASES[name][0]][0] for name in KINDS} == set(CONFIGURE)


@pytest.mark.parametrize(
    ("case", "changed", "says"),
    [
        ("qwen3", {"qwen3.attention.causal": False}, "attention.causal=False may change the computation"),
        (
            "phi3-longrope",
            {"phi3.rope.scaling.original_context_length": 0},
            "original_context_length=0 must be at least 1",
        ),
    ],
)
def test_metadata_that_nothing_can_be_computed_with_is_refused_by_name(
    case: str, changed: dict[str, object], says: str, tmp_path: Path
) -> None:
    architecture, metadata, tensors = converted(tiny(*CASES[case]))
    with pytest.raises(ConfigError, match=says):
        interp.load(write(tmp_path / "tiny.gguf", architecture, metadata | changed, tensors))
