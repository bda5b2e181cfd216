"""From a model to a Hugging Face family: the options of its config.json, and tensors under the family's names.

1. The configuration is written as each family in turn would write it (`written_options`), and read back with the
   reader of `families`. A family is used only if the same configuration comes back, so that no option is lost.
2. The family's table is applied in reverse: each row's pattern is reversed, and weights that the family keeps in one
   tensor are joined.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from interp.config import ModelConfig
from interp.errors import ConfigError, UnknownName
from interp.models.gpt import GPT
from interp.weights.build import weights
from interp.weights.checkpoint import Row
from interp.weights.huggingface.configs.written import OPTIONS
from interp.weights.huggingface.families import Family, configure

IGNORED = {"model_name", "initializer_range", "seed", "use_attn_scale", "attn_only", "layer_types"}
# Fields that matter only in models with the part that they describe.
OF_ATTENTION = {
    "d_head", "n_heads", "n_key_value_heads", "attn_scale", "attn_in_bias", "attn_out_bias", "attention_dir",
}  # fmt: skip
OF_LOCAL = {"window_size", "rotary_base_local", "rope_scaling_local"}
OF_ROTARY = {"rotary_dim", "rotary_base", "rotary_adjacent_pairs", "rope_scaling", "nope_layers"}
OF_MLP = {"d_mlp", "act_fn", "gated_mlp", "mlp_bias"}
OF_STATES = {"d_inner", "d_state", "d_conv", "conv_bias", "mamba_bias"}
OF_MAMBA1 = {"dt_rank", "ssm_normalization_type"}
OF_MAMBA2 = {"d_ssm_head", "n_ssm_groups", "dt_limit"}


def describe(cfg: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The family that computes what a configuration says, and the options of its config.json.

    Raises:
        ConfigError: no family does, or one that is not written; the message says how the nearest one differs.
    """
    for has, what in (
        (cfg.shared is not None, "with shared blocks ('shared+mamba2' layers)"),
        (cfg.experts is not None, "with experts"),
        (cfg.has_attention and not cfg.causal, "that looks both ways"),
    ):
        if has:
            raise ConfigError(
                f"a model {what} is not written as a Hugging Face folder. Save the model in interp's own format: "
                "interp.save(model, folder)"
            )
    wanted = computed(cfg)
    tried: dict[str, dict[str, str]] = {}
    for name, options_of in OPTIONS.items():
        options = {"model_type": name, **options_of(cfg), "tie_word_embeddings": cfg.tie_word_embeddings}
        options |= {"vocab_size": cfg.d_vocab, "initializer_range": float(cfg.initializer_range)}
        try:
            family, read_back = configure(options)
        except (ConfigError, UnknownName) as error:
            tried[name] = {"": str(error)}
            continue
        assert isinstance(read_back, ModelConfig)  # none of `OPTIONS` has two stacks
        described = computed(read_back)
        if described == wanted:
            if not all(isinstance(options.get(expand, 1), int) for expand in ("expand", "mamba_expand")):
                raise ConfigError(
                    f"d_inner={cfg.d_inner} is not a multiple of d_model={cfg.d_model}, as transformers requires. Save "
                    "the model in interp's own format: interp.save(model, folder)"
                )
            return family, options
        # A field that only one of the two has depends on another field, which differs as well and is listed.
        tried[name] = {
            field: f"{field}={described[field]!r} where this model has {value!r}"
            for field, value in wanted.items()
            if field in described and described[field] != value
        }
    name = min(tried, key=lambda name: len(tried[name]) + 100 * ("" in tried[name]))
    raise ConfigError(
        f"no Hugging Face family computes what this model does; the nearest, {name}, differs: "
        f"{'; '.join(tried[name].values())}. Save the model in interp's own format: interp.save(model, folder)"
    )


def computed(cfg: ModelConfig) -> dict[str, Any]:
    """The fields of a configuration that affect what the model computes, and the kind of each layer."""
    silent = set(IGNORED)
    rotary = cfg.positional_embedding_type == "rotary"
    local = tuple("global" if cfg.attention_kind(at).window is None else "local" for at in range(cfg.n_layers))
    for there, fields in (
        (cfg.has_attention, OF_ATTENTION),
        ("local" in local, OF_LOCAL),
        (rotary, OF_ROTARY),
        (cfg.has_mlp, OF_MLP),
        (cfg.has_attention and cfg.has_mlp, {"parallel_attn_mlp"}),
        (cfg.has_mamba, OF_STATES),
        ("mamba" in cfg.mixers, OF_MAMBA1),
        ("mamba2" in cfg.mixers, OF_MAMBA2),
        (cfg.ssm_normalization_type is not None, {"ssm_eps"}),
        # Mamba's files give no maximum length, and without position embeddings it does not affect the numbers.
        (cfg.positional_embedding_type != "none", {"n_ctx"}),
        (cfg.normalization_type is not None, {"final_norm"}),
        (cfg.normalization_type is not None or "mamba2" in cfg.mixers, {"eps"}),
    ):
        silent |= set() if there else fields
    relevant = {name: value for name, value in cfg.to_dict().items() if name not in silent}
    relevant |= {"attn_types": local} if cfg.has_attention else {}
    return relevant | {"layers": tuple(cfg.layer_type(layer) for layer in range(cfg.n_layers))}


def tensors(model: GPT, family: Family) -> dict[str, Tensor]:
    """A model's weights under a family's names and in its shapes, on the CPU."""
    parts: dict[str, dict[int | str, Tensor]] = {}  # their name -> the part -> our weight
    rows: dict[str, Row] = {}
    for name, weight in weights(model).items():
        row = family.row(name)
        rows[row.theirs] = row
        part = 0 if row.part is None else row.part
        parts.setdefault(row.theirs, {})[part] = weight.cpu()
    found: dict[str, Tensor] = {}
    for name, of_tensor in parts.items():
        tensor = _theirs(rows[name], of_tensor)
        pieces = enumerate(tensor.unbind()) if "{i}" in name else [(0, tensor)]
        # The head is not inside the module that the prefix names.
        full = name if name.startswith("lm_head.") else family.prefixes[0] + name
        found |= {full.replace("{i}", str(at)): piece.contiguous() for at, piece in pieces}
    return found


def _theirs(row: Row, parts: dict[int | str, Tensor]) -> Tensor:
    if row.part is None:
        tensor = parts[0]
    elif isinstance(row.part, str):
        q, k, v = (parts[at] for at in "qkv")
        if row.pattern is not None and "slot" in row.pattern:  # [kv_head, slot, ...]: queries, a key, a value of each
            tensor = torch.cat([q.unflatten(0, (k.shape[0], -1)), k[:, None], v[:, None]], dim=1)
        else:
            tensor = torch.cat([q, k, v])
    else:
        tensor = torch.stack([parts[at] for at in range(len(parts))])
    if row.pattern is not None:
        theirs, _, ours = row.pattern.partition(" -> ")
        tensor = rearrange(tensor, f"{ours} -> {theirs}")
    assert row.skipped is not None  # of no family of `OPTIONS`
    return torch.cat([tensor.new_zeros(row.skipped, *tensor.shape[1:]), tensor]).contiguous()
