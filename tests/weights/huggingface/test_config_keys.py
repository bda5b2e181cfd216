"""No entry of a config.json is ignored in silence: each is changed, and logits equal transformers' or it is refused.

1. A family's tiny configuration is written out as transformers does it; to its entries come those that other families
   have (`FOREIGN`). Each is changed alone to other legal values: those of `LEGAL` or, for flags and numbers, another.
2. Values that transformers itself refuses are passed over; one at least must be legal.
3. Our loader refuses the change by name, or the logits of a random model with that configuration are equal. So an entry
   that both sides ignore holds, and one that we alone ignore does not.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from checkpoints import relative_difference, tiny
from conformance.subject import changed, inputs, of_theirs, written
from torch import Tensor

import interp
from interp.errors import InterpError
from interp.weights.huggingface.families import FAMILIES, configure

# Of transformers, on older spellings of entries: as an error, a warning would pass for a refusal.
pytestmark = pytest.mark.filterwarnings("ignore")
Changes = dict[str, Any]
TOKENS = torch.randint(6, 61, (2, 14), generator=torch.Generator().manual_seed(1))

# What any configuration of transformers has, and what says nothing of the computation: they are changed all at once.
COMMON: Changes = {
    "architectures": ["Other"], "output_hidden_states": True, "output_attentions": True,
    "id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}, "problem_type": "regression",
    "chunk_size_feed_forward": 1, "use_cache": False, "bos_token_id": 3, "eos_token_id": 4, "pad_token_id": 5,
}  # fmt: skip
# Which class and version wrote the file, the type of the weights, which are loaded as they are, and what a forward of
# transformers returns.
NO_OPTIONS = {"transformers_version", "model_type", "_name_or_path", "dtype", "return_dict", "output_router_logits"}

ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "silu", "mish")
SCALED: Changes = {"rope_theta": 300.0, "factor": 3.0, "original_max_position_embeddings": 8}
ROPES = [
    {"rope_type": "default", "rope_theta": 50.0},
    {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5},
    {"rope_type": "linear", **SCALED},
    {"rope_type": "dynamic", **SCALED},
    {"rope_type": "yarn", **SCALED},
    {"rope_type": "yarn", **SCALED, "beta_fast": 4.0, "beta_slow": 2.0, "attention_factor": 0.5},
    {"rope_type": "llama3", **SCALED, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "longrope", **SCALED, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
]
NESTED = [
    {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in both.items()}
    for both in (
        {"full_attention": 50.0, "sliding_attention": 90.0},
        {"full_attention": 20.0, "sliding_attention": 20.0},
    )
]
LEGAL: dict[str, list[Any]] = {
    "hidden_size": [64, 96],
    "n_embd": [48],
    "num_attention_heads": [2, 6],
    "n_head": [2],
    "num_key_value_heads": [1, 2, 3, None],
    "head_dim": [16, 4],
    "hidden_act": [*ACTIVATIONS],
    "activation_function": [*ACTIVATIONS],
    "mlp_hidden_act": [*ACTIVATIONS],
    "mamba_hidden_act": [*ACTIVATIONS],
    "n_inner": [40],
    "num_heads": [4, 16],
    "mamba_n_heads": [4, 12],
    "mamba_d_head": [16, 4],
    "mamba_num_heads": [4],
    "mamba_head_dim": [4],
    "n_mamba_heads": [4, 12],
    "hybrid_layer_ids": [[1], [2, 1]],
    "mamba_ngroups": [1],
    "n_groups": [1],
    "mamba_n_groups": [1],
    "expand": [4],
    "mamba_expand": [4],
    "intermediate_size": [36, 80],
    "rope_parameters": [*ROPES, *NESTED],
    "rope_scaling": ROPES,
    "sliding_window": [5],
    "layer_types": [["sliding_attention"] * 2, ["full_attention", "sliding_attention"]],
    "layers_block_type": [
        ["full_attention", "mlp", "linear_attention"],
        ["hybrid", "linear_attention", "hybrid"],
    ],
    "mtp_layers_block_type": [["full_attention", "mlp"]],
    "attn_layer_indices": [[0], []],
    "expert_layer_offset": [0, 1],
    "mlp_only_layers": [[0], [1]],
    "moe_intermediate_size": [16, 24, 48],
    "time_step_limit": [(0.3, 0.9), (0.0, 0.5)],
    "time_step_init_scheme": ["constant"],
    "mamba_ssm_cache_dtype": ["bfloat16"],
    "moe_latent_size": [12],
    "summary_type": ["last"],
    "use_bidirectional_attention": [True, False],
    "hidden_activation": [*ACTIVATIONS],
    "no_rope_layers": [[1, 0], [0, 1, 1, 0]],
    "query_pre_attn_scalar": [3],
    "attn_logit_softcapping": [2.0, None],
    "final_logit_softcapping": [2.0, None],
    "clip_qkv": [0.3, None],
    "attention_types": [[[["local", "global"], 1]]],
    "attention_layers": [["local", "local"]],
    "rotary_dim": [2, None],
    "word_embed_proj_dim": [16],
    "ffn_hidden_size": [36],
    "num_kv_heads": [1, 2],
    "num_ln_in_parallel_attn": [1, 2],
    "activation": [*ACTIVATIONS],
    "_sliding_window_pattern": [3],
    "layer_norm_elementwise_affine": [False],
    "summary_activation": ["tanh"],
    "classifier_dropout": [0.3],
    "classifier_activation": [*ACTIVATIONS],
    "classifier_pooling": ["mean"],
    "forced_eos_token_id": [3],
    "n_heads": [2],
    "dim": [16],
    "d_model": [12, 36],
    "encoder_attention_heads": [2],
    "decoder_attention_heads": [2],
    "feed_forward_proj": ["gated-gelu", "gated-silu", "gelu", "relu"],
    "dense_act_fn": ["gelu"],
    "is_gated_act": [True],
}
# Entries that have to change together, tried where one alone is not legal.
TOGETHER: dict[str, list[Changes]] = {
    "hidden_size": [{"hidden_size": 16, "num_heads": 4}, {"hidden_size": 16, "mamba_n_heads": 4}],
    "num_heads": [{"num_heads": 4, "head_dim": 16}],
    "head_dim": [{"num_heads": 4, "head_dim": 16}],
    "expand": [{"expand": 4, "num_heads": 16}],
    "mamba_n_heads": [{"mamba_n_heads": 4, "mamba_d_head": 16}],
    "n_group": [{"n_group": 3, "topk_group": 2}],
    "topk_group": [{"n_group": 3, "topk_group": 2}],
    "num_layers": [{"num_layers": 3, "attention_types": [[["global"], 3]]}],
    "mamba_d_head": [{"mamba_n_heads": 4, "mamba_d_head": 16}],
    "mamba_expand": [{"mamba_expand": 4, "mamba_n_heads": 16}],
    "num_hidden_layers": [{"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}],
    "layer_types": [
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5},
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5, "use_sliding_window": True},
        {"layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"]},
    ],
}
# Entries that transformers takes in one way only, beside the others of the tiny configuration.
UNCHANGED = {
    *("is_encoder_decoder", "add_cross_attention"),
    *("attention_layers", "attention_types", "_sliding_window_pattern", "layer_types", "sliding_window"),
    *("attention_hidden_size", "attention_head_dim", "mamba_headdim", "hybrid_layer_ids"),
}
# Entries of which one says whether the others count, tried in every family that has them.
SWITCHED: list[Changes] = [
    {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1},
    {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 0},
    {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]},
    {"sliding_window": 5, "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]},
    {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
    {"tie_word_embeddings": True, "hidden_act": "gelu"},
]
# Entries of some families that others may read, too, or that older files have.
FOREIGN: Changes = {
    "head_dim": 16, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "sliding_window": 5,
    "rope_theta": 50.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "partial_rotary_factor": 0.5,
    "attn_logit_softcapping": 2.0, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 3, "logit_scale": 0.5,
    "attention_multiplier": 0.5, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 2.0,
    "qk_layernorm": True, "use_qk_norm": True, "clip_qkv": 0.1, "alibi": True, "parallel_attn": True, "qkv_bias": True,
    "hidden_act": "relu", "rms_norm_eps": 0.3, "layer_norm_eps": 0.3, "layer_norm_epsilon": 0.3, "is_causal": False,
    "use_parallel_residual": True, "scale_attn_weights": False, "rotary_dim": 4, "no_rope_layers": [0, 1],
}  # fmt: skip


def others(name: str, value: Any) -> list[Any]:
    """Other values of an entry that may be legal."""
    if name in LEGAL:
        return [other for other in LEGAL[name] if other != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    if isinstance(value, float):
        return [2 * value + 0.1]
    raise AssertionError(f"{name}={value!r}: give LEGAL other values of it")


def built(family: str, changes: Changes) -> tuple[Any, Tensor] | None:
    """A random transformers model with these changes and its logits; None if transformers refuses them."""
    try:
        theirs = tiny(family, changed(family, changes))
        with torch.no_grad():
            return theirs, of_theirs(theirs, TOKENS)
    except Exception:  # whatever its checks, or torch, raise
        return None


def refusal(changes: Changes, error: InterpError) -> str:
    """ "refused" where an entry, or one inside it, is named."""
    words = {*changes, *(key for value in changes.values() if isinstance(value, dict) for key in value)}
    return "refused" if any(word in str(error) for word in words) else f"{changes}: refused with {error}"


def verdict(family: str, changes: Changes) -> str | None:
    """What becomes of a change: "equal", "refused", or None if it is not legal; anything else says what is wrong."""
    if (found := built(family, changes)) is None:
        return None
    theirs, logits = found
    try:
        ours = interp.load(theirs)
    except InterpError as error:
        return refusal(changes, error)
    with torch.no_grad():
        difference = relative_difference(ours(*inputs(ours, TOKENS)), logits)
    if 1e-5 <= difference < 1e-3:  # whether it is rounding shows in a wider type
        theirs = theirs.double()
        with torch.no_grad():
            difference = relative_difference(interp.load(theirs)(*inputs(ours, TOKENS)), of_theirs(theirs, TOKENS))
    if not difference < 1e-5:
        return f"{changes}: logits differ by {difference:.0e}"
    # A file without the entries that transformers fills in gives the same model.
    try:
        raw, full = fields({"model_type": family, **changed(family, changes)}), fields(theirs.config.to_dict())
    except InterpError as error:
        return refusal(changes, error)
    apart = [f"{name}={raw[name]!r} of {full[name]!r}" for name in raw if raw[name] != full[name]]
    return f"{changes}: read from a file as {', '.join(apart)}" if apart else "equal"


def fields(options: Changes) -> Changes:
    """What is read of a configuration, without the model's name and what untrained weights are drawn with."""
    read = dataclasses.asdict(configure(options)[1])
    return {name: value for name, value in read.items() if name not in ("model_name", "initializer_range")}


def entries(family: str) -> Changes:
    """Every entry of a family's configuration, as transformers writes it."""
    own = written(family, {})[1]
    return {name: value for name, value in own.items() if name not in COMMON and name not in NO_OPTIONS}


def verdicts(family: str, several: list[Changes]) -> list[str]:
    """What becomes of those changes that are legal."""
    return [told for changes in several if (told := verdict(family, changes)) is not None]


def together(family: str, changes: Changes) -> list[str]:
    """`verdicts` of each change alone; as most of them change nothing, those that we take are tried all at once."""
    taken, said = dict(changes), list[str]()
    for name, value in changes.items():
        try:
            configure(written(family, {name: value})[0])
        except InterpError as error:
            said.append(refusal({name: value}, error))
            del taken[name]
        except Exception:  # transformers refuses it
            del taken[name]
    if verdict(family, taken) == "equal":
        return [*said, "equal"]
    return said + verdicts(family, [{name: value} for name, value in taken.items()])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_entry_changes_our_logits_as_it_changes_theirs_or_is_refused_by_name(family: str) -> None:
    own, said = entries(family), list[str]()
    for name, value in own.items():
        told = verdicts(family, [{name: other} for other in others(name, value)])
        told = told or verdicts(family, TOGETHER.get(name, []))
        assert told or name in UNCHANGED, f"transformers takes none of the values of {name!r} in LEGAL and TOGETHER"
        said += told
    said += together(family, {name: value for name, value in FOREIGN.items() if name not in own})
    said += verdicts(family, [changes for changes in SWITCHED if changes.keys() <= own.keys()])
    assert not [told for told in said if told not in ("equal", "refused")]
    assert said.count("equal") > len(own) // 3


@pytest.mark.parametrize("family", FAMILIES)
def test_what_every_configuration_has_changes_nothing(family: str) -> None:
    assert verdict(family, COMMON) == "equal"
