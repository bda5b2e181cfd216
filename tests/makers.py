"""What many tests are made with: tiny seeded models, pairs of prompts, and plain forwards to compare a sweep with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.circuits.graph import Graph
from interp.config import EncoderDecoderConfig, Experts, ModelConfig, RopeScaling, SharedBlocks
from interp.edits import Edit, Variant
from interp.encoder_decoder.model import EncoderDecoder
from interp.hooked.model import HookedModel
from interp.models.encoder import Encoder
from interp.models.gpt import GPT, Mamba
from interp.prompts.pairs import PromptPairs
from interp.sweeps.sweep import sweep

TINY: dict[str, Any] = {
    "n_layers": 2, "d_model": 16, "n_ctx": 24, "d_head": 4, "d_vocab": 29, "n_heads": 4,
    "seed": 3, "initializer_range": 0.4,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "positional_embedding_type": "rotary", "normalization_type": "RMS", "gated_mlp": True, "act_fn": "silu",
    "attn_in_bias": False, "attn_out_bias": False, "mlp_bias": False, "unembed_bias": False,
}  # fmt: skip

# One for each way of building a transformer.
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "neox": {"positional_embedding_type": "rotary", "rotary_dim": 2, "parallel_attn_mlp": True, "act_fn": "gelu"},
    "llama": {**LLAMA, "tie_word_embeddings": True},
    "llama_gqa": {**LLAMA, "n_key_value_heads": 2, "rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 16)},
    "gptj_pairs": {"positional_embedding_type": "rotary", "rotary_adjacent_pairs": True, "n_key_value_heads": 1},
    "attn_only": {"attn_only": True, "normalization_type": None, "d_vocab_out": 11},
    "no_norm_relu": {"normalization_type": None, "act_fn": "relu", "d_mlp": 24},
    "bidirectional": {"attention_dir": "bidirectional", "act_fn": "solu", "normalization_type": "LNPre"},
    "alibi": {"positional_embedding_type": "alibi", "n_heads": 3, "normalization_type": "RMSPre"},
    "sinusoidal": {"positional_embedding_type": "sinusoidal", "use_attn_scale": False},
    "no_positions": {"positional_embedding_type": "none", "final_norm": False},
    "gemma2": {
        **LLAMA,
        "act_fn": "gelu_new",
        "norm_placement": "both",
        "norm_unit_offset": True,
        "embed_scale": 4.0,
        "attn_types": ("local", "global"),
        "window_size": 3,
        "attn_scores_soft_cap": 2.0,
        "output_logits_soft_cap": 3.0,
        "n_key_value_heads": 2,
        "attn_scale": 3.0,
        "tie_word_embeddings": True,
    },
    "gemma3": {
        **LLAMA,
        "norm_placement": "both",
        "norm_unit_offset": True,
        "attn_types": ("local", "global"),
        "window_size": 4,
        "rotary_base_local": 50.0,
        "rope_scaling": RopeScaling("linear", 2.0),
        "qk_norm": "RMS",
    },
    "olmo2": {**LLAMA, "norm_placement": "post", "qk_norm": "RMS_all_heads", "n_key_value_heads": 2, "clip_qkv": 2.5},
    "cohere": {
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": True,
        "parallel_attn_mlp": True,
        "shared_norm": True,
        "norm_bias": False,
        "qk_norm": "LN_each_head",
        "logit_scale": 0.3,
        "residual_scale": 0.7,
    },
    "sinks": {
        **LLAMA,
        "attn_sinks": True,
        "window_size": 2,
        "nope_layers": (1,),
        "qk_norm": "LN",
        "n_key_value_heads": 1,
        "rope_scaling": RopeScaling("yarn", 4.0, original_n_ctx=8),
        "attn_out_bias": True,
        "norm_placement": "both",
    },
    "dynamic": {**LLAMA, "rope_scaling": RopeScaling("dynamic", 3.0, original_n_ctx=4)},
    "longrope": {
        **LLAMA,
        "rope_scaling": RopeScaling("longrope", 2.0, original_n_ctx=5, short_factor=(1.0, 2.0), long_factor=(3.0, 4.0)),
    },
    "falcon": {
        "positional_embedding_type": "alibi",
        "alibi_bfloat16": True,
        "n_key_value_heads": 1,
        "embed_norm": True,
        "parallel_attn_mlp": True,
    },
    "experts": {**LLAMA, "experts": Experts(4, 2, 6)},
    "shared_expert": {
        **LLAMA,
        "layer_types": ("attn+moe", "attn+mlp"),
        "experts": Experts(5, 2, 7, normalize_weights=False, d_shared=9, shared_gate=True),
    },
    "clamped_experts": {
        **LLAMA,
        "attn_sinks": True,
        "norm_placement": "both",
        "experts": Experts(3, 2, 8, router_bias=True, expert_bias=True, swiglu_limit=0.8),
    },
}

# Norms on the residual stream, as in the first Transformers.
KINDS |= {
    "bert": {
        "norm_placement": "residual", "attention_dir": "bidirectional", "act_fn": "gelu", "final_norm": False,
        "embed_norm": True, "embed_norm_of_sum": True,
    },
    "vaswani": {
        "norm_placement": "residual", "positional_embedding_type": "sinusoidal", "act_fn": "relu", "final_norm": False,
        "embed_scale": 2.0, "tie_word_embeddings": True,
    },
    "residual_attn": {
        "norm_placement": "residual", "normalization_type": "RMS", "attn_only": True, "n_key_value_heads": 2,
        "positional_embedding_type": "rotary",
    },
}  # fmt: skip
# Models whose residual stream is the sum of what was written to it: those that have edges.
SUMS = [kind for kind, own in KINDS.items() if own.get("norm_placement") != "residual"]
CAUSAL = [kind for kind, own in KINDS.items() if own.get("attention_dir") != "bidirectional"]

STATES: dict[str, Any] = {
    "normalization_type": "RMS", "d_inner": 24, "d_state": 3, "dt_rank": 3, "d_ssm_head": 4, "n_ssm_groups": 2,
    "unembed_bias": False,
}  # fmt: skip
# Models with state-space layers: they have no heads at all, or none in some layers.
RECURRENT: dict[str, dict[str, Any]] = {
    "mamba": {**STATES, "layer_types": ("mamba",) * 2, "tie_word_embeddings": True},
    "mamba2": {**STATES, "layer_types": ("mamba2",) * 2, "dt_limit": (0.05, 0.8), "mamba_bias": True},
    "hybrid": {
        **STATES, "n_layers": 3, "layer_types": ("mamba2", "attn+mlp", "mamba+mlp"), "n_key_value_heads": 2,
        "positional_embedding_type": "rotary", "conv_bias": False, "ssm_normalization_type": "RMS", "ssm_eps": 0.1,
    },
    "one_part_a_layer": {
        **STATES, "n_layers": 4, "layer_types": ("mlp", "mamba2", "attn", "mamba"), "d_mlp": 20, "act_fn": "relu2",
        "ssm_normalization_type": "RMSPre", "ssm_eps": 0.1,
    },
    "shared_blocks": {
        **STATES, "n_layers": 4, "layer_types": ("shared+mamba2", "mamba2", "shared+mamba2", "shared+mamba2"),
        "initializer_range": 0.2,
        "shared": SharedBlocks(2, adapter_rank=3, attn_adapters=True), "d_head": 8, "d_mlp": 20, "gated_mlp": True,
        "act_fn": "gelu", "positional_embedding_type": "rotary", "attn_in_bias": False, "attn_out_bias": False,
    },
    "grouped_experts": {
        **STATES, "n_layers": 3, "layer_types": ("mamba2+moe", "moe", "attn+moe"), "act_fn": "relu2",
        "experts": Experts(
            6, 2, 5, router="sigmoid", weight_factor=1.5, n_groups=3, groups_per_token=2, d_shared=4,
            d_latent=9,
        ),
    },
}  # fmt: skip
# Those of them that have edges, and all kinds that have: a shared block reads more than the residual stream, and writes
# nothing to it.
EDGED = [kind for kind, own in RECURRENT.items() if "shared" not in own]
EDGES = [*SUMS, *EDGED]
# Models with an encoder and a decoder: what both stacks have, and what the encoder and the decoder have beside it.
T5: dict[str, Any] = {
    **LLAMA, "positional_embedding_type": "relative", "relative_buckets": 8, "relative_max_distance": 12,
    "use_attn_scale": False, "act_fn": "gelu_new",
}  # fmt: skip
STACKS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "t5": (T5, {"n_layers": 3}, {"tie_word_embeddings": True, "logit_scale": 0.25}),
    "pre_norm": ({"n_heads": 4}, {"n_heads": 2, "d_head": 8}, {"n_key_value_heads": 2}),
    "bart": (
        {"norm_placement": "residual", "final_norm": False, "embed_norm": True, "embed_norm_of_sum": True},
        {"n_heads": 2, "d_head": 8},
        {"tie_word_embeddings": True, "embed_scale": 2.0},
    ),
}
# Encoders with a masked-token head, which is not linear.
MASKED: dict[str, dict[str, Any]] = {
    "bert_mlm": {**KINDS["bert"], "n_token_types": 2, "mlm_act_fn": "gelu", "tie_word_embeddings": True},
    "modernbert": {
        **LLAMA, "normalization_type": "LN", "norm_bias": False, "first_norm": False, "embed_norm": True,
        "act_fn": "gelu", "attention_dir": "bidirectional", "attn_types": ("global", "local"), "window_size": 2,
        "rotary_base_local": 50.0, "mlm_act_fn": "gelu", "mlm_bias": False,
    },
}  # fmt: skip
# Parameters that start as ones, zeros or constants: norms, biases, and two of a mixer.
CONSTANT = re.compile(r"[wb].*|D|A_log|sinks")
# Longer steps and slower decay than at the start of training, so that states matter beside D x, and for long.
FAR_FROM_START = {"b_dt": 3.0, "A_log": -1.5}


def make(kind: str, **changes: Any) -> GPT:
    """A tiny model of one kind, with weights large enough for every part to matter, biases and norms included."""
    own = (KINDS | RECURRENT | MASKED)[kind]
    made = GPT if kind in KINDS else Mamba if kind in RECURRENT else Encoder
    model = made(ModelConfig(**{**TINY, **own, **changes}))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name.rpartition(".")[2]
            if CONSTANT.fullmatch(last):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            parameter.add_(FAR_FROM_START.get(last, 0.0))
    return model


def every_expert(experts: Experts) -> Experts:
    """The same experts, of which a router chooses all."""
    return replace(experts, experts_per_token=experts.n_experts, groups_per_token=experts.n_groups)


def encoder_decoder(kind: str) -> EncoderDecoder:
    """A tiny model with an encoder and a decoder, of one kind of `STACKS`; as `make`."""
    both, encoder, decoder = STACKS[kind]
    both = {**TINY, **both}
    cfg = EncoderDecoderConfig(
        ModelConfig(**{**both, **encoder, "attention_dir": "bidirectional"}),
        ModelConfig(**{**both, **decoder, "cross_attention": True}),
        decoder_start_token_id=1,
    )
    return with_constants(EncoderDecoder(cfg))


def with_constants(model: EncoderDecoder) -> EncoderDecoder:
    """The model with norms and biases that matter."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if CONSTANT.fullmatch(name.rpartition(".")[2]):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def pairs_of(*lengths: int) -> PromptPairs:
    """Pairs of these lengths (or of 6, 4 and 6) that differ in the last token but one; single tokens have no pair."""
    lengths = lengths or (6, 4, 6)
    generator = torch.Generator().manual_seed(8)
    clean = [torch.randint(0, 29, (n,), generator=generator).tolist() for n in lengths]
    answers = [(i, i + 4) for i in range(len(lengths))]
    if min(lengths) == 1:
        return PromptPairs.from_tokens(clean, answers=answers, roles=[{"first": 0, "END": n - 1} for n in lengths])
    corrupt = [[*row[:-2], (row[-2] + 1) % 29, row[-1]] for row in clean]
    roles = [{"first": 0, "changed": n - 2, "END": n - 1} for n in lengths]
    return PromptPairs.from_tokens(clean, corrupt, answers=answers, roles=roles)


def started_pairs(*lengths: int) -> PromptPairs:
    """Pairs that begin with the same token, as with one that marks the start, and differ in the second and the last."""
    generator = torch.Generator().manual_seed(8)
    clean = [torch.randint(0, 29, (n,), generator=generator).tolist() for n in lengths]
    clean = [[7, *row[1:]] for row in clean]
    corrupt = [[row[0], (row[1] + 2) % 29, *row[2:-1], (row[-1] + 1) % 29] for row in clean]
    roles = [{"changed": 1, "END": n - 1} for n in lengths]
    return PromptPairs.from_tokens(clean, corrupt, answers=[(i, i + 4) for i in range(len(lengths))], roles=roles)


VOCABULARY, ANSWERS = 29, 11


def make_pairs(lengths: Sequence[int], shared: int = 0, seed: int = 0) -> PromptPairs:
    """Pairs that agree in their first `shared` tokens and in no other, with answers drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    clean = [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    corrupt = [
        row[:shared] + [(token + 1 + at % 3) % VOCABULARY for at, token in enumerate(row[shared:])] for row in clean
    ]
    right = torch.randint(0, ANSWERS - 1, (len(lengths),), generator=generator).tolist()
    roles = [{"first": 0, "middle": n // 2, "end": n - 1} for n in lengths]
    return PromptPairs.from_tokens(clean, corrupt, answers=[(r, r + 1) for r in right], roles=roles)


def named_pairs(n: int = 6) -> PromptPairs:
    """Prompts of two lengths that name both answers, in turning order; the corrupt one turns the order round."""
    clean, corrupt, answers, roles = [], [], [], []
    for i in range(n):
        right, wrong = 2 + i, 12 + i
        first, second = (right, wrong) if i % 3 else (wrong, right)
        extra = [25] * (i % 2)
        clean.append([1, *extra, first, second, 26, 27])
        corrupt.append([1, *extra, second, first, 26, 27] if i % 3 else [1, *extra, right, wrong, 28, 27])
        answers.append((right, wrong))
        roles.append({"A": 1 + len(extra), "END": 4 + len(extra)})
    return PromptPairs.from_tokens(clean, corrupt, answers=answers, roles=roles)


def drawn_edges(graph: Graph, *shares: float, seed: int = 1) -> Tensor:
    """Masks [mask, sender, receiver] that have about these shares of a graph's edges."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([(torch.rand(graph.allowed.shape, generator=generator) < p) & graph.allowed for p in shares])


def close(value: Tensor, expected: Tensor, rtol: float = 1e-5) -> None:
    """Equal up to a fraction of the largest entry; what is not finite, such as a masked score, is the same."""
    value, expected = value.detach(), expected.detach()
    assert value.shape == expected.shape
    finite = expected.isfinite()
    assert torch.equal(value[~finite], expected[~finite])
    value, expected = value[finite], expected[finite]
    assert float((value - expected).abs().max()) <= rtol * float(expected.abs().max())


def stack_pairs(*, decoder_differs: bool = False) -> PromptPairs:
    """Pairs whose encoders differ in one token, the third; and whose decoders do in the last, if asked."""
    lengths, n_own = (6, 4, 6), (3, 1, 2)
    generator = torch.Generator().manual_seed(8)
    clean = [torch.randint(2, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    corrupt = [[*row[:2], 1 + row[2] % (VOCABULARY - 1), *row[3:]] for row in clean]
    prefixes = [[1, *torch.randint(2, VOCABULARY, (n - 1,), generator=generator).tolist()] for n in n_own]
    answers = [(i, i + 4) for i in range(3)]
    roles = [{"changed": 2, "END": n - 1} for n in lengths]
    if not decoder_differs:
        return PromptPairs.from_tokens(clean, corrupt, answers=answers, roles=roles, decoder=prefixes)
    encoder = PromptPairs.from_tokens(clean, corrupt, answers=answers, roles=roles)
    others = [[*row[:-1], 3] for row in prefixes]
    pairs = PromptPairs.from_tokens(prefixes, others, answers=answers, roles=[{"last": n - 1} for n in n_own])
    return PromptPairs(**{**vars(pairs), "encoder": encoder})


def single(pairs: PromptPairs, at: int, side: str) -> tuple[Tensor, ...]:
    """What a forward of one unpadded prompt takes: tokens [1, pos], of the encoder before those of the decoder."""
    both = [pairs] if pairs.encoder is None else [pairs.encoder, pairs]
    return tuple(getattr(own, side)[at : at + 1, : int(own.lengths[at])] for own in both)


def index_of(where: dict[str, Any], hook: Any, pairs: PromptPairs, prompt: int, value: Tensor) -> tuple[Any, ...]:
    """Where an edit acts on one unpadded prompt [1, ...], as an index for `value[index]`."""
    rows = keys = pairs
    if pairs.encoder is not None:
        cross = ".cross_attn.hook_" in hook.name
        rows = pairs.encoder if hook.name.startswith("encoder") or (cross and hook.name[-1] in "kv") else pairs
        keys = pairs.encoder if cross else rows
    index = []
    for axis, size in zip(hook.site.axes, value.shape, strict=True):
        given, own = where.get(axis), keys if axis == "key" else rows
        length = int(own.lengths[prompt])
        if given is None:
            chosen = list(range(size))
        elif isinstance(given, str):
            chosen = [own.roles[prompt][given]]
        else:
            chosen = [at % length if axis in ("pos", "query", "key") else at for at in np.atleast_1d(given).tolist()]
        index.append(torch.tensor(chosen))
    return torch.meshgrid(*index, indexing="ij")


def plain_forwards(
    model: HookedModel, pairs: PromptPairs, variant: Variant, base: str, source: str, read: int | None = -1
) -> list[Any]:
    """Logits of each prompt at `read`, or all: a plain forward of it alone, unpadded, with a hook for each edit."""
    found = []
    for at in range(len(pairs)):
        tokens = {"base": single(pairs, at, base), "source": single(pairs, at, source)}
        hooks = []
        for edit in variant.edits:
            name = edit.name(model.cfg)
            kept = None
            if edit.op not in ("zero", "scale") and not isinstance(edit.source, int | float | Tensor):
                kept = model.run_with_cache(*tokens[edit.run or "base"], names_filter=[name])[1][name]

            def hook(value: Tensor, hook: Any, edit: Edit = edit, kept: Tensor | None = kept, at: int = at) -> Tensor:
                index = index_of(dict(edit.where), hook, pairs, at, value)
                new = value.clone()
                if edit.op == "zero":
                    new[index] = 0
                elif edit.op == "scale":
                    new[index] *= edit.source
                elif edit.op == "set":
                    new[index] = edit.source if kept is None else kept[index]
                elif edit.op == "add":
                    new[index] += edit.source if kept is None else kept[index]
                return new

            hooks.append((name, hook))
        logits = model.run_with_hooks(*tokens["base"], fwd_hooks=hooks)[0]
        found.append(logits if read is None else logits[read])
    return found


@torch.no_grad()
def compare(
    model: HookedModel, pairs: PromptPairs, variants: Sequence[Variant], base: str, source: str, **options: Any
) -> None:
    """Every cell of a sweep against the forward by hand, to 2e-5 of the largest logit."""
    frame = sweep(model, pairs, variants, base=base, source=source, progress=False, **options)
    values = frame["value"].to_numpy().reshape(len(variants), len(pairs))
    for row, variant in zip(values, variants, strict=True):
        for at, logits in enumerate(plain_forwards(model, pairs, variant, base, source)):
            right, wrong = pairs.answers[at]
            expected = float(logits[right] - logits[wrong])
            assert np.isfinite(row[at]) == np.isfinite(expected), (variant, at)
            if np.isfinite(expected):
                within = 2e-5 * max(1.0, float(logits.abs().max()))
                assert row[at] == pytest.approx(expected, abs=within), (variant, at)
