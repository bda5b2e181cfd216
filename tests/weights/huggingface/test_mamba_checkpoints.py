"""Mamba checkpoints of Hugging Face: against transformers, against the papers' equations, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from checkpoints import NEMOTRON, SMALL, STATE_SPACE
from torch import Tensor

import interp
from interp.errors import ConfigError, WeightsError
from interp.models.gpt import Mamba
from interp.weights.huggingface.configs.mamba import N_CTX
from interp.weights.huggingface.families import configure

# What the published file of a 130 million parameter Mamba says beside what transformers 5 writes.
OLDER: dict[str, Any] = {
    "d_model": 24, "n_layer": 2, "d_inner": 48, "rms_norm": True, "fused_add_norm": True, "ssm_cfg": {},
    "pad_vocab_size_multiple": 8, "torch_dtype": "float32", "transformers_version": "4.39.0.dev0",
}  # fmt: skip


def config(kind: str, **options: Any) -> Any:
    return transformers.AutoConfig.for_model(kind, **{**STATE_SPACE[kind], **options})


def tiny(kind: str, seed: int = 0, **options: Any) -> Any:
    """A random transformers model in which every weight matters to the logits, and states last for some positions."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config(kind, **options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_offset = parameter.ndim == 1 and not name.endswith("A_log")
            parameter.normal_(0.5 if is_offset else 0.0, 0.3)
    return model


def tokens_of(shape: tuple[int, int] = (3, 21)) -> Tensor:
    return torch.randint(1, SMALL["vocab_size"], shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(model: Any, theirs: Any, tokens: Tensor) -> float:
    return float((model(tokens) - theirs(tokens, use_cache=False).logits).abs().max())


@pytest.mark.parametrize(("kind", "options"), [
    ("mamba", {}), ("mamba", {"use_bias": True, "conv_kernel": 2, "intermediate_size": 40}), ("falcon_mamba", {}),
    ("mamba2", {}), ("mamba2", {"use_bias": True, "n_groups": 1, "time_step_limit": (0.3, 0.9)}),
])  # fmt: skip
@torch.no_grad()
def test_float64_logits_equal_the_papers_equations_step_by_step(kind: str, options: dict[str, Any]) -> None:
    theirs = tiny(kind, **options).double()
    tokens = tokens_of((2, 30))
    logits = interp.load(theirs)(tokens)
    assert logits.dtype == torch.float64
    for row, prompt in enumerate(tokens):
        assert float((logits[row] - step_by_step(theirs, prompt)).abs().max()) < 1e-10


def step_by_step(theirs: Any, prompt: Tensor) -> Tensor:
    """Logits of one prompt from transformers' tensors, a position at a time.  # [pos] -> [pos, d_vocab]"""
    w, cfg = theirs.state_dict(), theirs.config
    layer = mamba2_layer if cfg.model_type == "mamba2" else mamba_layer
    resid = w["backbone.embeddings.weight"][prompt]
    for at in range(cfg.num_hidden_layers):
        here = f"backbone.layers.{at}."
        own = {name.removeprefix(here + "mixer."): tensor for name, tensor in w.items() if name.startswith(here)}
        x = root_mean_square(resid, cfg.layer_norm_epsilon) * w[here + "norm.weight"]
        resid = resid + layer(own, x, cfg)
    final = root_mean_square(resid, cfg.layer_norm_epsilon) * w["backbone.norm_f.weight"]
    return final @ w["lm_head.weight"].T


def root_mean_square(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def convolution(w: dict[str, Tensor], inputs: list[Tensor]) -> Tensor:
    """SiLU of the weighted sum of the last few inputs, of which the newest has the last weight."""
    kernel = w["conv1d.weight"][:, 0]  # [channel, d_conv]
    total = torch.zeros_like(inputs[-1]) + w.get("conv1d.bias", 0.0)
    for back, value in enumerate(reversed(inputs[-kernel.shape[1] :])):
        total = total + kernel[:, -1 - back] * value
    return F.silu(total)


def mamba_layer(w: dict[str, Tensor], x: Tensor, cfg: Any) -> Tensor:
    """Gu and Dao 2023, algorithm 2 and figure 3."""
    A, sizes = -w["A_log"].exp(), [w["dt_proj.weight"].shape[1], cfg.state_size, cfg.state_size]
    h, inputs, out = torch.zeros_like(A), [], []
    for now in x:
        inner, gate = (w["in_proj.weight"] @ now + w.get("in_proj.bias", 0.0)).chunk(2)
        inputs.append(inner)
        u = convolution(w, inputs)
        low, B, C = (w["x_proj.weight"] @ u).split(sizes)
        if cfg.model_type == "falcon_mamba":
            low, B, C = (root_mean_square(part, cfg.mixer_rms_eps) for part in (low, B, C))
        delta = (w["dt_proj.weight"] @ low + w["dt_proj.bias"]).exp().log1p()
        h = (delta[:, None] * A).exp() * h + torch.outer(delta * u, B)
        y = h @ C + w["D"] * u
        out.append(w["out_proj.weight"] @ (y * F.silu(gate)) + w.get("out_proj.bias", 0.0))
    return torch.stack(out)


def mamba2_layer(w: dict[str, Tensor], x: Tensor, cfg: Any) -> Tensor:
    """Dao and Gu 2024, section 7.1 and figure 6, head by head."""
    A, inner, shared = -w["A_log"].exp(), cfg.num_heads * cfg.head_dim, cfg.n_groups * cfg.state_size
    states = [torch.zeros(cfg.head_dim, cfg.state_size, dtype=x.dtype) for _ in range(cfg.num_heads)]
    inputs, out = [], []
    for now in x:
        projected = w["in_proj.weight"] @ now + w.get("in_proj.bias", 0.0)
        gate, to_convolve, dt = projected.split([inner, inner + 2 * shared, cfg.num_heads])
        inputs.append(to_convolve)
        u, B, C = convolution(w, inputs).split([inner, shared, shared])
        B, C = B.view(cfg.n_groups, -1), C.view(cfg.n_groups, -1)
        delta = (dt + w["dt_bias"]).exp().log1p().clamp(*cfg.time_step_limit)
        ys = []
        for head, own in enumerate(u.view(cfg.num_heads, -1)):
            group = head * cfg.n_groups // cfg.num_heads
            states[head] = (delta[head] * A[head]).exp() * states[head] + delta[head] * torch.outer(own, B[group])
            ys.append(states[head] @ C[group] + w["D"][head] * own)
        gated = (torch.cat(ys) * F.silu(gate)).view(cfg.n_groups, -1)
        normed = root_mean_square(gated, cfg.layer_norm_epsilon).flatten() * w["norm.weight"]
        out.append(w["out_proj.weight"] @ normed + w.get("out_proj.bias", 0.0))
    return torch.stack(out)


@pytest.mark.parametrize("kind", STATE_SPACE)
@torch.no_grad()
def test_greedy_text_equals_transformers(kind: str) -> None:
    theirs = tiny(kind)
    theirs.generation_config.eos_token_id = None
    tokens = tokens_of((2, 9))
    expected = theirs.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=12, pad_token_id=0
    )
    model = interp.load(theirs)
    assert expected.shape == (2, 21)
    for cached in (True, False):
        assert torch.equal(model.generate(tokens, 12, do_sample=False, use_past_kv_cache=cached), expected)


@pytest.mark.parametrize("kind", STATE_SPACE)
@torch.no_grad()
def test_half_precision_is_as_near_to_float32_as_transformers(kind: str) -> None:
    theirs, tokens = tiny(kind), tokens_of()
    exact = theirs(tokens).logits
    ours = (interp.load(theirs, dtype="bfloat16")(tokens).float() - exact).abs().mean()
    assert 0 < ours < 1.5 * (theirs.to(torch.bfloat16)(tokens).logits - exact).abs().mean()


@pytest.mark.parametrize("kind", ["jamba", "nemotron_h"])
def test_a_directory_of_a_hybrid_is_checked(kind: str, tmp_path: Path) -> None:
    tiny(kind).save_pretrained(tmp_path)
    assert interp.load(tmp_path, check=True).cfg.model_name == tmp_path.name


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_a_directory_is_checked_and_its_older_names_are_read(kind: str, tmp_path: Path) -> None:
    theirs = tiny(kind)
    theirs.save_pretrained(tmp_path)
    model = interp.load(tmp_path, check=True)
    assert isinstance(model, Mamba)
    tokens = tokens_of()
    assert difference(model, theirs, tokens) < 1e-4
    file = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(file)
    older = {name.replace("embeddings.", "embedding."): tensor for name, tensor in state.items()}
    assert older.keys() != state.keys()
    safetensors.torch.save_file(older, file, metadata={"format": "pt"})
    options = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(options | OLDER))
    with torch.no_grad():
        assert torch.equal(interp.load(tmp_path)(tokens), model(tokens))


def test_no_length_is_too_long_and_sizes_are_as_published() -> None:
    options = {"model_type": "mamba", "vocab_size": 50280, "hidden_size": 768, "num_hidden_layers": 24}
    cfg = configure(options | {"_name_or_path": "x", "ssm_cfg": {}})[1]
    assert (cfg.n_ctx, cfg.d_inner, cfg.d_state, cfg.dt_rank, cfg.d_conv) == (N_CTX, 1536, 16, 48, 4)
    assert cfg.tie_word_embeddings and cfg.conv_bias and not cfg.mamba_bias
    options |= {"model_type": "mamba2", "num_heads": 24, "n_groups": 1}
    cfg = configure(options | {"time_step_limit": [0.0, {"__float__": "Infinity"}], "norm_before_gate": True})[1]
    assert (cfg.d_inner, cfg.d_state, cfg.n_ssm_heads, cfg.dt_limit) == (1536, 128, 24, None)
    assert configure(options | {"time_step_limit": [0.1, math.inf]})[1].dt_limit == (0.1, math.inf)


@pytest.mark.parametrize("kind", STATE_SPACE)
def test_everything_that_transformers_writes_is_known(kind: str) -> None:
    written = config(kind)
    assert configure(written.to_dict())[1] == configure(json.loads(written.to_json_string(use_diff=False)))[1]


def test_a_hybrid_has_attention_where_its_options_say() -> None:
    cfg = configure({**config("bamba").to_dict(), "attn_rotary_emb": 4, "mamba_d_head": "auto"})[1]
    assert cfg.layer_types == ("mamba2+mlp", "attn+mlp", "mamba2+mlp", "attn+mlp")
    assert (cfg.rotary_dim, cfg.d_ssm_head, cfg.n_ctx) == (4, 8, 64)
    assert configure({**config("bamba").to_dict(), "num_key_value_heads": None})[1].n_kv_heads == 3
    assert not configure({**config("bamba").to_dict(), "attn_layer_indices": None})[1].has_attention


def test_published_names_of_nemotron_h_are_read() -> None:
    # Of its published files: letters for layers, and heads under another name.
    given = {name: value for name, value in NEMOTRON.items() if name != "layers_block_type"}
    given |= {"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*-", "num_hidden_layers": 5, "use_bias": False}
    cfg = configure({**given, "attention_head_dim": 8, "rms_norm_eps": 1e-5, "time_step_limit": [0.0, math.inf]})[1]
    assert cfg.layer_types == ("mamba2", "mlp", "mamba2", "attn", "mlp")
    assert (cfg.act_fn, cfg.d_head, cfg.positional_embedding_type, cfg.dt_limit) == (
        "relu2",
        8,
        "none",
        (0.6, math.inf),
    )
    with pytest.raises(ConfigError, match="num_hidden_layers=4 contradicts the number of layers that are named, 5"):
        configure({**given, "num_hidden_layers": 4})


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        (
            "mamba",
            {"time_step_limit": [0.1, 0.2]},
            r"time_step_limit=\[0.1, 0.2\] is not a known option of a mamba model",
        ),
        ("mamba", {"sate_size": 4}, "sate_size=4 .*did you mean 'state_size'"),
        ("mamba2", {"n_group": 4}, "n_group=4 .*did you mean 'n_groups'"),
        ("mamba2", {"attn_layer_idx": [1]}, "attn_layer_idx"),
        ("mamba", {"ssm_cfg": {"layer": "Mamba2"}}, "ssm_cfg"),
        ("mamba", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("mamba2", {"rms_norm": False}, "rms_norm=False"),
        ("mamba", {"d_model": 25}, "d_model=25 contradicts hidden_size, 24"),
        ("mamba", {"n_layer": 3}, "n_layer=3 contradicts num_hidden_layers, 2"),
        ("mamba", {"d_inner": 50}, "d_inner=50 contradicts intermediate_size"),
        ("mamba2", {"intermediate_size": 50}, "intermediate_size=50 contradicts expand"),
        ("mamba2", {"num_heads": 5}, "num_heads=5 heads of head_dim=8 channels contradict .*48"),
        ("mamba2", {"n_groups": 4}, "n_ssm_groups=4 must divide the 6 heads"),
        ("mamba2", {"time_step_limit": [0.5, 0.1]}, "dt_limit must be"),
        ("mamba2", {"time_step_limit": 0.5}, "time_step_limit must be .*not 0.5"),
        ("mamba2", {"time_step_limit": [0.0, "inf"]}, "time_step_limit must be"),
        ("mamba", {"state_size": 0}, "state_size must be at least 1, not 0"),
        ("mamba", {"expand": "2"}, "expand must be a finite number > 0, not '2'"),
        ("mamba", {"use_bias": "no"}, "use_bias must be true or false, not 'no'"),
        ("mamba", {"time_step_rank": "big"}, "time_step_rank must be an integer"),
        ("bamba", {"attn_layer_indices": [1, 4]}, "attn_layer_indices has 4, expected layers below 4"),
        ("bamba", {"attn_rotary_emb": 8}, "attn_rotary_emb=8 contradicts the rotary part of a head, 4"),
        ("bamba", {"partial_rotary_factor": 1.0}, "partial_rotary_factor=1.0 contradicts"),
        ("bamba", {"mamba_d_head": 7}, "mamba_n_heads=6 heads of mamba_d_head=7 channels contradict .*48"),
        ("bamba", {"num_experts": 4}, "num_experts=4 is not a known option of a bamba model"),
        ("bamba", {"num_experts_per_tok": 2}, "num_experts_per_tok=2 is not a known option of a bamba model"),
        ("mamba", {"use_falcon_mambapy": True}, "use_falcon_mambapy=True is not a known option of a mamba model"),
        ("falcon_mamba", {"mixer_rms_eps": 0}, "mixer_rms_eps must be a finite number > 0, not 0"),
        ("mamba", {"mixer_rms_eps": 1e-6}, "mixer_rms_eps=1e-06 is not a known option of a mamba model"),
        ("jamba", {"num_experts": 4, "num_experts_per_tok": 5}, "experts_per_token=5 must be at most 4"),
        ("jamba", {"attn_layer_offset": 3}, "attn_layer_offset=3 must be below attn_layer_period=3"),
        ("jamba", {"mamba_inner_layernorms": False}, "mamba_inner_layernorms=False is not supported"),
        ("jamba", {"sliding_window": 8}, "sliding_window=8 is not a known option of a jamba model"),
        ("nemotron_h", {"layers_block_type": ["moe"], "moe_latent_size": 0}, "moe_latent_size must be at least 1"),
        ("nemotron_h", {"layers_block_type": ["linear_attentoin"]}, "did you mean 'linear_attention'"),
        ("nemotron_h", {"attention_bias": True}, "attention_bias=True is not supported"),
        ("nemotron_h", {"mlp_hidden_act": "relu3"}, "mlp_hidden_act='relu3' is not supported; .*nearest is 'relu'"),
        ("nemotron_h", {"attention_head_dim": 4}, "attention_head_dim=4 contradicts head_dim, 8"),
        ("mamba", {"model_type": "mambo2"}, "model_type 'mambo2' is not supported; .*'mamba2'"),
        ("mamba", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_would_change_the_numbers_is_refused_by_name(kind: str, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        configure(config(kind).to_dict() | change)


def test_a_missing_size_is_named() -> None:
    with pytest.raises(ConfigError, match=r"this mamba model has no entry 'hidden_size'"):
        configure({"model_type": "mamba", "num_hidden_layers": 2})


def test_bad_weights_are_named(tmp_path: Path) -> None:
    tiny("mamba").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    state = safetensors.torch.load_file(file)

    def loading(changes: dict[str, Tensor | None]) -> None:
        kept = {name: tensor for name, tensor in (state | changes).items() if tensor is not None}
        safetensors.torch.save_file(kept, file, metadata={"format": "pt"})
        interp.load(tmp_path)

    mixer = "backbone.layers.1.mixer."
    with pytest.raises(WeightsError, match=r"missing: 'layers.1.mixer.A_log'"):
        loading({mixer + "A_log": None})
    with pytest.raises(WeightsError, match=r"not expected: 'layers.1.mixer.in_proj.bias'"):
        loading({mixer + "in_proj.bias": torch.zeros(96)})
    with pytest.raises(WeightsError, match=r"'backbone.layers.1.mixer.conv1d.weight' has shape \[48, 2, 4\]"):
        loading({mixer + "conv1d.weight": torch.zeros(48, 2, 4)})
    with pytest.raises(WeightsError, match=r"'blocks.1.mixer.W_x' .*has shape \[11, 48\], expected \[12, 48\]"):
        loading({mixer + "x_proj.weight": torch.zeros(11, 48)})
    with pytest.raises(WeightsError, match=r"'blocks.1.mixer.D' .*holds NaN"):
        loading({mixer + "D": torch.full((48,), math.nan)})
    file.write_bytes(whole[:-100])
    with pytest.raises(WeightsError, match=r"model.safetensors is not a readable safetensors file"):
        interp.load(tmp_path)
