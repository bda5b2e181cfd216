"""Logits of every family equal transformers' on configurations drawn at random, in batches padded on either side.

1. Entries of a family's configuration that are in `AXES` get drawn values; those in `DERIVED` follow from others.
2. A value that our loader refuses by name goes back to what it was, so that the rest is tried. Sizes that do not fit
   one another, and what transformers refuses, are drawn anew.
3. Logits are compared to 1e-5 of the largest one. Where rounding alone makes more of a difference, as when a norm
   divides next to nothing by its size, they are compared in float64, transformers' norms and scans too.

INTERP_EXAMPLES says how many are drawn for each family.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from checkpoints import relative_difference, tiny
from conformance.subject import changed, in_a_batch, of_theirs, real, written
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

import interp
from interp.errors import ConfigError
from interp.models.gpt import GPT
from interp.weights.huggingface.families import FAMILIES, configure

# Of transformers, on entries that it will not use, such as tokens outside a vocabulary.
pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLES = int(os.environ.get("INTERP_EXAMPLES", "10"))
ROUNDING = 1e-3  # more than this is no rounding, however a model multiplies it
N_POS, SHORT = 19, 8

SCALED: dict[str, Any] = {"rope_theta": 300.0, "factor": 3.0, "original_max_position_embeddings": 8}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "default", "rope_theta": 100.0},
    {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5},
    {"rope_type": "linear", **SCALED},
    {"rope_type": "dynamic", **SCALED},
    {"rope_type": "yarn", **SCALED},
    {"rope_type": "yarn", **SCALED, "beta_fast": 4.0, "beta_slow": 2.0, "attention_factor": 0.5},
    {"rope_type": "llama3", **SCALED, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
]
NAMES: dict[tuple[str, ...], list[Any]] = {
    # Sizes: every width is a multiple of every number of heads, and that of every number of key and value heads.
    ("hidden_size", "n_embd"): [16, 32, 48],
    ("num_hidden_layers", "n_layer"): [1, 2, 3],
    ("num_attention_heads", "n_head"): [2, 4],
    ("num_key_value_heads", "num_kv_heads"): [1, 2],
    ("head_dim", "mamba_d_head", "mamba_head_dim"): [4, 8, 12],
    ("intermediate_size", "n_inner", "ffn_dim", "moe_intermediate_size"): [20, 44],
    ("max_position_embeddings", "n_positions"): [24, 64],
    ("state_size", "mamba_d_state", "ssm_state_size"): [4, 9],
    ("conv_kernel", "mamba_d_conv"): [2, 3, 4],
    ("expand", "mamba_expand"): [1, 2, 3],
    ("mamba_num_heads",): [2, 6],
    ("n_groups", "mamba_n_groups"): [1, 2],
    ("time_step_rank", "mamba_dt_rank"): [1, 3],
    # Layers
    ("n_mamba_heads",): [2, 6],
    ("num_mem_blocks", "adapter_rank"): [1, 2, 3],
    ("layers_block_type",): [
        ["linear_attention", "full_attention", "mlp"], ["full_attention"], ["mlp", "linear_attention", "mlp"],
        ["hybrid"] * 2, ["hybrid", "linear_attention", "hybrid"],
    ],
    ("attn_layer_indices",): [[], [0], [1], [0, 1]],
    ("attn_layer_period",): [1, 2, 3],
    ("num_experts", "num_local_experts"): [2, 4],
    ("num_experts_per_tok",): [1, 2],
    # Positions and windows
    ("rope_parameters",): ROPES,
    ("sliding_window",): [None, 5],
    ("use_sliding_window",): [False, True],
    ("max_window_layers",): [0, 1],
    # Numbers
    ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "mixer_rms_eps"): [1e-6, 1e-5, 0.05],
    ("time_step_limit",): [(0.0, float("inf")), (0.3, 0.9), (0.0, 0.7)],
    ("time_step_min",): [0.001, 0.6],
    ("attn_logit_softcapping", "final_logit_softcapping"): [None, 3.0],
    ("query_pre_attn_scalar",): [4, 16],
    ("logit_scale", "attention_multiplier", "residual_multiplier"): [0.5, 2.0],
    ("embedding_multiplier", "logits_scaling"): [0.5, 2.0],
    ("clip_qkv",): [None, 0.5],
    # Activation functions and flags
    ("hidden_act", "activation_function", "mlp_hidden_act", "hidden_activation"): ["gelu", "gelu_pytorch_tanh", "silu"],
    (
        "attention_bias", "mlp_bias", "use_bias", "use_conv_bias", "mamba_conv_bias", "mamba_proj_bias", "bias",
        "tie_word_embeddings", "use_parallel_residual", "scale_attn_weights", "qkv_bias", "use_qkv_bias", "enable_bias",
        "parallel_attn", "multi_query", "new_decoder_architecture", "alibi", "qk_layernorm", "use_qk_norm",
        "use_mem_rope", "use_shared_attention_adapter", "add_bias_linear", "use_long_context",
        "norm_topk_prob", "do_layer_norm_before", "apply_residual_connection_post_layernorm",
    ): [False, True],
}  # fmt: skip
AXES = {name: values for names, values in NAMES.items() for name in names}
# Entries that follow from others; any of them may be missing.
DERIVED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "num_heads": lambda o: o["expand"] * o["hidden_size"] // o["head_dim"],
    "mamba_n_heads": lambda o: o["mamba_expand"] * o["hidden_size"] // o["mamba_d_head"],
    "num_hidden_layers": lambda o: len(o["layers_block_type"]),
    "attn_layer_offset": lambda o: o["attn_layer_period"] - 1,
}


def fits(name: str, options: dict[str, Any]) -> bool:
    """Whether an entry can be derived in this family: what it follows from is there."""
    try:
        DERIVED[name](options)
    except KeyError:
        return False
    return True


@st.composite
def options_of(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """A configuration of a family that our loader takes."""
    plain = written(family, {})[1]
    drawn = {name: draw(st.sampled_from(AXES[name]), label=name) for name in AXES if name in plain}
    if any(isinstance(own, dict) for own in (plain.get("rope_parameters") or {}).values()):  # one set for each kind
        drawn["rope_parameters"] = {kind: draw(st.sampled_from(ROPES)) for kind in plain["rope_parameters"]}
    while True:
        made = {name: rule({**plain, **drawn}) for name, rule in DERIVED.items() if name in plain and fits(name, plain)}
        try:
            configure(written(family, {**drawn, **made})[0])
            return changed(family, {**drawn, **made})
        except ConfigError as refusal:
            # What is refused inside an object, such as the kind of rotary scaling, is named without it.
            refused = [name for name in drawn if name in str(refusal)]
            refused += [name for name, value in drawn.items() if isinstance(value, dict) and not refused]
        except Exception:  # whatever the checks of transformers raise
            refused = [name for name in drawn if name == "layers_block_type"]  # each family has kinds of its own
        assume(refused)
        del drawn[refused[0]]


class InDouble(ModuleType):
    """torch for a module of transformers, where what is written to be computed in float32 is computed in float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def in_double(theirs: Any, patch: pytest.MonkeyPatch) -> Any:
    """The model in float64 throughout: after `double()` alone norms and scans still convert their input to float32."""
    patch.setattr(sys.modules[type(theirs).__module__], "torch", InDouble("torch"))
    patch.setattr(torch.Tensor, "float", torch.Tensor.double)
    return theirs.double()


@torch.no_grad()
def apart(ours: GPT, theirs: Any, prompts: list[Tensor], side: str) -> float:
    """The largest difference of logits in a padded batch from transformers' on each prompt alone."""
    alone = [of_theirs(theirs, prompt[None])[0] for prompt in prompts]
    both = zip(in_a_batch(ours, prompts, side), alone, strict=True)
    return max(relative_difference(*pair) for pair in both)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), side=st.sampled_from(["left", "right"]), seed=st.integers(0, 9))
def test_drawn_configurations_equal_transformers(family: str, data: st.DataObject, side: str, seed: int) -> None:
    options = data.draw(options_of(family))
    try:
        theirs = tiny(family, options, seed=seed)
        of_theirs(theirs, torch.ones(1, 9, dtype=torch.int64))
    except Exception:  # whatever transformers raises where it cannot run
        assume(False)
    tokens = real(theirs, torch.randint(1, 61, (2, N_POS), generator=torch.Generator().manual_seed(seed)))
    prompts = [tokens[0], tokens[1, :SHORT]]
    found = apart(interp.load(theirs), theirs, prompts, side)
    if not found < 1e-5:
        event("compared in float64")
        assert found < ROUNDING
        ours = interp.load(theirs.double())
        with pytest.MonkeyPatch.context() as patch:
            assert apart(ours, in_double(theirs, patch), prompts, side) < 1e-5
