"""Layers that call shared transformer blocks: what they compute, what they have in common, and what they refuse."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from makers import close, make, pairs_of
from torch import Tensor

from interp.attribution.gradients import gradients
from interp.config import ModelConfig, SharedBlocks
from interp.errors import ConfigError, InterpError, UnknownName
from interp.heads.qk_ov import ov
from interp.hooked.past import PastKeyValues
from interp.models import gpt
from interp.models.gpt import GPT
from interp.models.shared_block import SharedBlock
from interp.weights.build import weights


def shared_block(model: GPT, layer: int) -> SharedBlock:
    block = model.block(layer)
    assert isinstance(block, SharedBlock)
    return block


def rms(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"n_key_value_heads": 2, "shared": SharedBlocks(2, adapter_rank=3)}])
@pytest.mark.parametrize("layer", [0, 3])
def test_a_layer_is_what_the_equations_say(layer: int, changes: dict[str, Any], tokens: Tensor) -> None:
    model = make("shared_blocks", positional_embedding_type="none", rotary_dim=None, **changes).double()
    cfg, block = model.cfg, shared_block(model, layer)
    _, cache = model.run_with_cache(tokens)
    attn, mlp, heads = block.attn, block.mlp, cfg.n_heads
    assert attn is not None and mlp is not None and block.ln_mixer is not None
    both = torch.cat((cache["resid_pre", layer], cache["embed"]), dim=-1)
    x = rms(both, block.ln1.w, cfg.eps)
    q, k, v = (torch.einsum("bpd,hdc->bhpc", x, W) for W in (attn.W_Q, attn.W_K, attn.W_V))
    k, v = (part.repeat_interleave(heads // cfg.n_kv_heads, 1) for part in (k, v))
    scores = q @ k.mT / cfg.attn_scale
    pattern = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)
    made = torch.einsum("bhpc,hcd->bpd", pattern @ v, attn.W_O)
    y = rms(made, block.ln2.w, cfg.eps)
    out = ((F.gelu(y @ mlp.W_gate + mlp.b_gate) * (y @ mlp.W_in + mlp.b_in)) @ mlp.W_out + mlp.b_out) @ block.W_shared
    read = cache["resid_pre", layer] + out
    for name, expected in {
        "shared_block_in": both, "pattern": pattern, "shared_block_mid": made, "shared_block_out": out,
        "mixer_in": read, "ln_mixer.normalized": rms(read, torch.ones(1), cfg.eps),
        "resid_post": cache["resid_pre", layer] + cache["out", layer],
    }.items():  # fmt: skip
        close(cache[name, layer], expected, rtol=1e-9)


def test_layers_that_call_one_block_have_its_weights_in_common(tokens: Tensor) -> None:
    model = make("shared_blocks")  # two blocks, called by layers 0, 2 and 3
    for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), make("shared_blocks").double()):
        first, other, again = (shared_block(same, layer) for layer in (0, 2, 3))
        names = [name for name, _ in first.named_parameters() if name.startswith(("ln1", "attn", "ln2", "mlp"))]
        common = {name for name in names if again.get_parameter(name) is first.get_parameter(name)}
        assert common == {name for name in names if "adapter" not in name}
        assert not any(other.get_parameter(name) is first.get_parameter(name) for name in names)
    listed = weights(model)
    assert "blocks.0.attn.W_Q" in listed and "blocks.2.attn.W_Q" in listed and "blocks.3.attn.W_Q" not in listed
    assert sum(weight.numel() for weight in listed.values()) == sum(p.numel() for p in model.parameters())
    # Gradients of all calls add up in it.
    model(tokens).square().mean().backward()
    assert shared_block(model, 0).attn.W_qkv.grad is shared_block(model, 3).attn.W_qkv.grad


def test_heads_read_by_their_own_input_what_they_read_together(tokens: Tensor) -> None:
    model = make("shared_blocks").double()
    plain = model(tokens)
    split = [f"blocks.3.hook_{name}_input" for name in "qkv"]
    close(model.run_with_hooks(tokens, fwd_hooks=[(split, lambda x, hook: x.clone())]), plain, rtol=1e-12)


def test_the_stream_of_the_first_layer_is_not_the_embedding_beside_it(tokens: Tensor) -> None:
    model, pairs = make("shared_blocks").double(), pairs_of(6, 4)

    def run(name: str) -> Tensor:
        hook: Callable[..., Tensor] = lambda x, hook: 1.5 * x  # noqa: E731
        logits: Tensor = model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])
        return logits

    assert not torch.allclose(run("hook_embed"), run("blocks.0.hook_resid_pre"), rtol=1e-3)
    slopes = gradients(model, pairs, ["hook_embed", "blocks.0.hook_resid_pre", "blocks.2.hook_shared_block_in"]).slopes
    assert not torch.allclose(slopes["hook_embed"], slopes["blocks.0.hook_resid_pre"], rtol=1e-3)


def test_a_prompt_in_pieces_keeps_keys_and_states(tokens: Tensor) -> None:
    model = make("shared_blocks")
    past = PastKeyValues(model.cfg.n_layers)
    model(tokens[:, :3], past_kv_cache=past)
    for kept in (copy.deepcopy(past), past):
        close(model(tokens[:, 3:], past_kv_cache=kept), model(tokens)[:, 3:], rtol=1e-4)
        assert len(kept) == tokens.shape[1]
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :2] = False
    past = PastKeyValues(model.cfg.n_layers)
    pieces = [model(part, attention_mask=own, past_kv_cache=past) for part, own in zip(
        tokens.split([4, 3], dim=1), mask.split([4, 3], dim=1), strict=True
    )]  # fmt: skip
    close(torch.cat(pieces, dim=1)[mask], model(tokens, attention_mask=mask)[mask], rtol=1e-4)


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda model, cache: cache.stack_head_results(), "heads of this model are of shared blocks and write nothing"),
        (lambda model, cache: model.head_results(0, cache["z", 0]), "heads of layer 0 are of a shared block"),
        (lambda model, cache: cache.decompose_resid(2, apply_ln=True), "layer 2 reads the residual stream twice"),
        (lambda model, cache: ov(model, 0), "weights of heads do not compose where shared blocks read"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(act: Callable[..., object], says: str, tokens: Tensor) -> None:
    model = make("shared_blocks")
    _, cache = model.run_with_cache(tokens)
    with pytest.raises(InterpError, match=says):
        act(model, cache)


def test_a_site_of_another_layer_is_refused_with_what_there_is() -> None:
    with pytest.raises(UnknownName, match="did you mean"):
        make("shared_blocks").run_with_cache(torch.tensor([[1, 2]]), names_filter="blocks.1.hook_shared_block_in")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"positional_embedding_type": "standard", "rotary_dim": None}, "positional_embedding_type='standard' is not"),
        ({"embed_norm": True}, "embed_norm=True is not supported together with 'shared.mamba2' layers"),
        ({"gated_mlp": False}, "gated_mlp=False is not supported together"),
        ({"normalization_type": None}, "normalization_type=None is not supported together"),
        ({"n_key_value_heads": 2}, "attn_adapters=True of the shared blocks needs as many key and value heads"),
        ({"shared": "two"}, "shared must be a SharedBlocks or None, not 'two'"),
    ],
)
def test_what_a_shared_block_does_not_compute_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make("shared_blocks", **changes)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"n_blocks": 0}, "n_blocks of the shared blocks must be"),
        ({"adapter_rank": 1.5}, "adapter_rank of the shared blocks must be"),
        ({"attn_adapters": 1}, "attn_adapters of the shared blocks must be True or False"),
        ({"attn_adapters": True}, "attn_adapters=True of the shared blocks needs adapter_rank"),
    ],
)
def test_shared_blocks_that_cannot_be_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SharedBlocks(**fields)


def test_only_layers_that_share_have_shared_blocks() -> None:
    cfg = make("shared_blocks").cfg
    assert cfg.layers_that_share == (0, 2, 3) and [cfg.first_call(layer) for layer in (0, 2, 3)] == [0, 2, 0]
    assert cfg.mixers_in(0) == ("attn", "mamba2") and cfg.mixers_in(1) == ("mamba2",)
    assert cfg.layers_with("attn") == [0, 2, 3] and cfg.mixer(0) == "mamba2" and not cfg.mlp_in(0)
    assert make("hybrid", shared=SharedBlocks(3)).cfg == make("hybrid").cfg
    without = cfg.to_dict() | {"shared": None}
    assert ModelConfig.from_dict({**without}).shared == SharedBlocks()


def test_a_block_is_counted_once_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = make("shared_blocks").cfg
    whole = sum(parameter.numel() for parameter in GPT(cfg).parameters()) * 4
    monkeypatch.setattr(gpt, "SURELY_FITS", 0)
    monkeypatch.setattr(gpt, "_memory", lambda place: whole)
    GPT(cfg)
    monkeypatch.setattr(gpt, "_memory", lambda place: whole - 1)
    with pytest.raises(ConfigError, match="this configuration asks for"):
        GPT(cfg)
