"""The cache: what it holds, what it derives, and decompositions that sum to what they decompose."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from makers import close, make
from torch import Tensor

from interp.errors import HookError, InterpError, PromptError, UnknownName
from interp.models.gpt import GPT
from interp.sites import stream_after, stream_between


def test_caching_changes_no_bit_and_keeps_what_is_computed_anyway(any_model: GPT, tokens: Tensor) -> None:
    logits, cache = any_model.run_with_cache(tokens)
    assert torch.equal(logits, any_model(tokens))
    assert set(cache) == {name for name, point in any_model.hook_dict.items() if not point.site.on_demand}
    assert not any(value.requires_grad for value in cache.values())
    derived = [cache[name] for name, point in any_model.hook_dict.items() if point.site.on_demand]
    derived.append(cache.logit_attrs(cache.decompose_resid(), 1, 2))
    if any_model.cfg.has_attention and any_model.cfg.shared is None:  # whose heads write to the stream
        derived.append(cache.stack_head_results())
    assert not any(value.requires_grad for value in derived)


def test_derived_sites_equal_computed_ones(any_model: GPT, tokens: Tensor) -> None:
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, :2] = False
    _, cache = any_model.run_with_cache(tokens, attention_mask=mask)
    wanted = [name for name in any_model.hook_dict if any_model.hook_dict[name].site.on_demand]
    _, computed = any_model.run_with_cache(tokens, names_filter=wanted, attention_mask=mask)
    assert set(computed) == set(wanted)
    for name in wanted:
        assert name not in cache
        close(cache[name], computed[name], rtol=1e-4)
    norms = [
        name
        for name in any_model.hook_dict
        if any(part in name for part in (".ln1.", ".ln2.", ".ln_mixer.", "ln_final"))
    ]
    _, streams = any_model.run_with_cache(tokens, names_filter=lambda name: "resid" in name or "shared_block" in name)
    _, plain = any_model.run_with_cache(tokens)
    for name in norms:
        close(streams[name], plain[name])


@pytest.mark.parametrize("site", ["embed", "pos_embed"])
def test_what_no_other_site_determines_is_not_derived(site: str, tokens: Tensor) -> None:
    _, cache = make("gpt2").run_with_cache(tokens, names_filter="*resid*")
    with pytest.raises(UnknownName, match=f"'hook_{site}' was not cached and cannot be derived"):
        cache[site]


def test_what_a_hook_made_of_a_pattern_is_what_the_cache_holds(tokens: Tensor) -> None:
    model = make("gpt2")
    with model.hooks([("blocks.0.attn.hook_pattern", lambda x, hook: x * 0)]):
        _, cache = model.run_with_cache(tokens)
    assert not cache["pattern", 0].any() and cache["pattern", 1].any()
    assert not cache["z", 0].any()


def test_keys_in_every_form(tokens: Tensor) -> None:
    model = make("gpt2")
    _, cache = model.run_with_cache(tokens)
    full = cache["blocks.1.hook_resid_post"]
    for key in (("resid_post", 1), ("resid_post", -1), ("hook_resid_post", 1)):
        assert cache[key] is full or torch.equal(cache[key], full)
    assert torch.equal(cache["embed"], cache["hook_embed"])
    assert torch.equal(cache["scale", 0, "ln2"], cache["blocks.0.ln2.hook_scale"])
    assert torch.equal(cache["scale"], cache["ln_final.hook_scale"])
    assert ("z", 1) in cache and ("z", 7) not in cache and "nonsense" not in cache
    assert cache.get("nonsense") is None
    with pytest.raises(UnknownName, match="layer 2 is not one of this model's 2 layers"):
        cache["z", 2]
    with pytest.raises(UnknownName, match="did you mean"):
        cache["zz", 1]


def test_what_was_not_cached_says_so(tokens: Tensor) -> None:
    _, cache = make("gpt2").run_with_cache(tokens, names_filter="*hook_z")
    with pytest.raises(UnknownName, match="add it to names_filter"):
        cache["pattern", 0]
    _, cache = make("gpt2").run_with_cache(tokens, pos_slice=-1)
    with pytest.raises(UnknownName, match="pos_slice"):
        cache["pattern", 0]


@pytest.mark.parametrize("wanted", [-1, slice(2, 5), [0, 3]])
def test_positions_are_selected_before_they_are_stored(tokens: Tensor, wanted: Any) -> None:
    model = make("llama_gqa")
    _, whole = model.run_with_cache(tokens, names_filter=["*"])
    _, part = model.run_with_cache(tokens, names_filter=["*"], pos_slice=wanted)
    for name in whole:
        axes = model.hook_dict[name].site.axes
        axis = axes.index("query" if "query" in axes else "pos")
        index = [slice(None)] * axis + [wanted]
        assert torch.equal(part[name], whole[name][tuple(index)]), name
        assert part[name].untyped_storage().nbytes() == part[name].nbytes


def test_layers_are_selected_before_they_are_stored(tokens: Tensor) -> None:
    model = make("gpt2")
    _, cache = model.run_with_cache(tokens, layers=[-1])
    assert not any(name.startswith("blocks.0") for name in cache) and ("z", 1) in cache and "hook_embed" in cache
    with pytest.raises(PromptError, match="layer 5"):
        model.run_with_cache(tokens, layers=[5])


def test_only_the_layers_that_were_asked_compute_a_pattern(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama_gqa")
    explicit: list[int] = []
    for layer, block in enumerate(model.blocks):
        attend = block.attn.attend
        monkeypatch.setattr(block.attn, "attend", lambda *a, at=layer, f=attend: explicit.append(at) or f(*a))
    model.run_with_cache(tokens)
    assert explicit == []
    model.run_with_cache(tokens, names_filter="blocks.1.attn.hook_pattern")
    assert explicit == [1]


def test_gradients_are_kept_beside_values(tokens: Tensor) -> None:
    model = make("llama_gqa")
    loss, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
    _, graph = model.run_with_cache(tokens, detach=False, names_filter="*")
    again = model(tokens, return_type="loss")
    assert float(loss.detach()) == pytest.approx(float(again.detach()))
    logits, kept = model.run_with_cache(
        tokens, detach=False, names_filter=["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"]
    )
    expected = -logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
    for name, gradient in zip(kept, torch.autograd.grad(expected, list(kept.values())), strict=True):
        close(cache[f"{name}_grad"], gradient)
    assert graph["pattern", 0].requires_grad
    with pytest.raises(HookError, match="scalar"):
        model.run_with_cache(tokens, incl_bwd=True)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_what_a_hook_changes_in_place_is_not_what_was_stored_before(tokens: Tensor, mode: Any) -> None:
    model = make("gpt2")

    def in_place(x: Tensor, hook: Any) -> None:
        x[:, 0] = 0.0

    with mode():
        _, plain = model.run_with_cache(tokens)
        with model.hooks([("blocks.1.hook_resid_pre", in_place)]):
            _, cache = model.run_with_cache(tokens)
    assert torch.equal(cache["resid_post", 0], plain["resid_post", 0])
    assert not cache["resid_pre", 1][:, 0].any() and torch.equal(
        cache["resid_pre", 1][:, 1:], plain["resid_pre", 1][:, 1:]
    )


def test_a_tensor_that_a_hook_kept_and_changed_later_is_noticed_or_no_longer_the_caches(tokens: Tensor) -> None:
    model = make("gpt2")
    kept: list[Tensor] = []

    def keep(x: Tensor, hook: Any) -> Tensor:
        kept.append(x.clone())
        return kept[-1]

    def later(x: Tensor, hook: Any) -> None:
        kept[-1].zero_()

    hooks = [("blocks.0.hook_resid_post", keep), ("blocks.1.hook_resid_post", later)]
    notice = pytest.raises(HookError, match=r"changed in place.*blocks.0.hook_resid_post")
    with torch.no_grad(), notice, model.hooks(hooks):
        model.run_with_cache(tokens)
    with torch.inference_mode(), model.hooks(hooks):  # where torch does not count changes
        _, cache = model.run_with_cache(tokens)
        _, plain = model.run_with_cache(tokens)
    for name in ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"):
        assert torch.equal(cache[name], plain[name]) and cache[name].any()


@pytest.mark.parametrize("names", [None, ["blocks.*.attn.hook_[qkv]", "blocks.1.attn.hook_pattern"]])
def test_a_pickled_cache_leaves_its_model_behind(tokens: Tensor, names: Any) -> None:
    model = make("llama_gqa", d_vocab=5000)
    _, cache = model.run_with_cache(tokens, names_filter=names, detach=False)
    data = pickle.dumps(cache)
    size = sum(value.nbytes for value in cache.values())
    assert len(data) < size + 800 * len(cache) + 4000 < model.W_E.nbytes
    twin = pickle.loads(data)
    assert list(twin) == list(cache) and twin.has_batch_dim
    for name, value in cache.items():
        assert torch.equal(twin[name], value) and not twin[name].requires_grad
    assert torch.equal(twin["q", -1], cache["q", 1])
    with pytest.raises(UnknownName, match="layer 7 is not one of this model's 2 layers"):
        twin["q", 7]
    if names is None:
        with pytest.raises(InterpError, match=r"needs 'derive' of the model.*set cache\.model"):
            twin["pattern", 0]
        with pytest.raises(InterpError, match=r"needs 'to_unembed' of the model.*set cache\.model"):
            twin.accumulated_resid(apply_ln=True)
        twin.model = model
        assert torch.equal(twin["pattern", 0], cache["pattern", 0])
        assert torch.equal(twin.accumulated_resid(apply_ln=True), cache.accumulated_resid(apply_ln=True))


def test_a_copied_cache_shares_the_model_and_no_tensor(tokens: Tensor) -> None:
    model = make("gpt2")
    _, cache = model.run_with_cache(tokens[:1], detach=False, remove_batch_dim=True)
    twin, shallow, names = copy.deepcopy(cache), copy.copy(cache), list(cache)
    for other in (twin, shallow):
        assert other.model is model and not other.has_batch_dim and list(other) == names
        assert torch.equal(other["pattern", 1], cache["pattern", 1])
    ends = [other["resid_post", 1].sum() for other in (twin, cache)]
    slopes = [torch.autograd.grad(end, model.embed.W_E, retain_graph=True)[0] for end in ends]
    assert torch.equal(*slopes) and slopes[0].any()
    with torch.no_grad():
        twin["resid_post", 1].zero_()
    assert cache["resid_post", 1].any() and shallow["resid_post", 1].any()


def test_batch_dimension_and_device(tokens: Tensor) -> None:
    model = make("gpt2")
    _, cache = model.run_with_cache(tokens[:1], remove_batch_dim=True)
    assert cache["z", 0].shape == (7, 4, 4) and cache["pattern", 0].shape == (4, 7, 7)
    stack, labels = cache.decompose_resid(return_labels=True)
    close(stack.sum(0), cache["resid_post", -1])
    assert cache.logit_attrs(stack, 3, 5).shape == (len(labels), 7)
    with pytest.raises(PromptError, match="batch of 3"):
        model.run_with_cache(tokens)[1].remove_batch_dim()
    assert model.run_with_cache(tokens)[1].to("meta")["z", 0].device.type == "meta"


@pytest.mark.parametrize("reader", [(None, False), (0, False), (1, False), (1, True), (0, True)])
def test_components_sum_to_the_residual_stream(any_model: GPT, tokens: Tensor, reader: tuple[int | None, bool]) -> None:
    layer, mlp_input = reader
    _, cache = any_model.run_with_cache(tokens)
    stack, labels = cache.decompose_resid(layer, mlp_input=mlp_input, return_labels=True)
    assert len(stack) == len(labels) == len(set(labels))
    if layer is None:
        expected = cache[stream_after(any_model.cfg, any_model.cfg.n_layers - 1)]
    elif mlp_input and (between := stream_between(any_model.cfg, layer)) in any_model.hook_dict:
        expected = cache[between]
    elif mlp_input and any_model.cfg.norms_on_stream:  # what an MLP would read in a layer that has none
        expected = cache[stream_after(any_model.cfg, layer)]
    elif mlp_input:
        mixed = [name for name in (f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.mixer.hook_out") if name in cache]
        expected = cache["resid_pre", layer] + sum(cache[name] for name in mixed)
    else:
        expected = cache["resid_pre", layer]
    close(stack.sum(0), expected)


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_heads_and_their_remainder_sum_to_the_residual_stream(model: GPT, tokens: Tensor, layer: int) -> None:
    _, cache = model.run_with_cache(tokens)
    stack, labels = cache.stack_head_results(layer, incl_remainder=True, return_labels=True)
    assert labels[-1] == "remainder" and len(labels) == len(stack)
    close(stack.sum(0), cache[stream_after(model.cfg, 1)] if layer == -1 else cache["resid_pre", layer])
    if layer != 0 and not model.cfg.norms_on_stream:
        own, bias = stack[: model.cfg.n_heads].sum(0), model.bias_result(0, cache["z", 0])
        close(own if bias is None else own + bias, cache["attn_out", 0])
        if not model.cfg.norms_after and model.cfg.residual_scale == 1.0:
            close(stack[1], cache["result", 0][:, :, 1])


@pytest.mark.parametrize("kind", ["bert", "vaswani"])
def test_a_component_arrives_through_every_norm_on_its_way(kind: str, tokens: Tensor) -> None:
    model = make(kind)
    _, cache = model.run_with_cache(tokens)
    stack, labels = cache.decompose_resid(return_labels=True)
    norms = [(layer, name) for layer in range(2) for name in ("ln1", "ln2")]
    starts = {"0_attn_out": 0, "0_mlp_out": 1, "1_mlp_out": 3, "0_ln2_bias": 2}
    with torch.no_grad():
        for label, first in starts.items():
            bias = model.block(0).ln2.b.expand(3, 7, -1)
            part = bias if label == "0_ln2_bias" else cache[f"blocks.{label[0]}.hook_{label[2:]}"]
            for layer, name in norms[first:]:
                norm = getattr(model.block(layer), name)
                part = (part - part.mean(-1, keepdim=True)) / cache["scale", layer, name] * norm.w
            close(stack[labels.index(label)], part)
    assert ("embed_ln_bias" in labels) == model.cfg.embed_norm_of_sum and labels[-1] == "1_ln2_bias"


def test_logit_attributions_sum_to_the_logit_difference(any_model: GPT, tokens: Tensor) -> None:
    _, cache = any_model.run_with_cache(tokens)
    final = cache[stream_after(any_model.cfg, any_model.cfg.n_layers - 1)]
    logits = any_model.uncapped_logits(any_model.ln_final(final))
    n = any_model.cfg.d_vocab_out
    right, wrong = tokens[:, 0] % n, (tokens[:, 0] + 1) % n
    attrs = cache.logit_attrs(cache.decompose_resid(), right, wrong)
    constant = torch.zeros(n)
    norm = any_model.norm_before(any_model.cfg.n_layers)
    if norm is not None and norm.b is not None:
        constant = constant + (norm.b @ any_model.W_U).detach()
    constant = constant + any_model.b_U.detach()
    index = torch.arange(3)
    expected = logits[index, :, right] - logits[index, :, wrong] - (constant[right] - constant[wrong])[:, None]
    close(attrs.sum(0).detach(), expected.detach(), rtol=1e-4)
    one = cache.logit_attrs(cache.decompose_resid(pos_slice=-1), right, wrong, pos_slice=-1)
    close(one.detach(), attrs[:, :, -1].detach(), rtol=1e-4)
    first = cache.logit_attrs(cache.decompose_resid(), right[:1], wrong[:1], batch_slice=[0])
    close(first.detach(), attrs[:, :1].detach(), rtol=1e-4)


def test_accumulated_streams_are_the_rows_of_a_logit_lens(any_model: GPT, tokens: Tensor) -> None:
    logits, cache = any_model.run_with_cache(tokens)
    stack, labels = cache.accumulated_resid(incl_mid=True, apply_ln=True, return_labels=True)
    assert labels[0] == "0_pre" and labels[-1] == "final_post"
    close(any_model.unembed(stack[-1]).detach(), logits.detach())
    raw = cache.accumulated_resid(layer=1)
    assert len(raw) == 2
    close(raw[1], cache["resid_pre", 1])


def test_unknown_parts_are_refused(tokens: Tensor) -> None:
    _, cache = make("gpt2").run_with_cache(tokens)
    with pytest.raises(UnknownName, match="no mode matches 'heads'"):
        cache.decompose_resid(mode="heads")
    with pytest.raises(UnknownName, match="layer 3 is out of range"):
        cache.accumulated_resid(layer=3)
    with pytest.raises(PromptError, match="one shape"):
        cache.logit_attrs(cache.decompose_resid(), torch.tensor([1, 2, 3]), 2)


def test_a_stack_that_does_not_fit_is_refused(tokens: Tensor) -> None:
    model = make("gpt2")
    _, cache = model.run_with_cache(tokens)
    with pytest.raises(PromptError, match="pos_slice"):
        cache.logit_attrs(cache.decompose_resid(pos_slice=slice(2, 3)), 1)
    with pytest.raises(PromptError, match="do not fit a stack"):
        cache.logit_attrs(cache.decompose_resid(), torch.tensor([1, 2, 3, 4]))
