"""Models behind a transformer_lens bridge: the oracle for our own families, and the long tail that we run through it.

TransformerLens computes the same weights by other code, so that equal values at every site are evidence for both.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import makers
import pytest
import torch
import transformers
from checkpoints import GPT2_SIZES, GQA, NATIVE, PADDED, bridge_of, transformers_model
from torch import Tensor, nn

import interp
from interp.edits import Edit, Variant
from interp.errors import ConfigError, HookError, InterpError, PromptError, UnknownName, WeightsError
from interp.heads.from_patterns import random_sequences
from interp.hooked.generation import generate
from interp.hooked.hooks import HookPoint
from interp.hooked.model import HookedModel
from interp.loading.bridge import from_bridge, is_bridge
from interp.loading.bridged_model import BridgedModel
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.sweeps.sweep import sweep
from interp.tasks import induction
from interp.weights.huggingface.families import FAMILIES


def close(value: Tensor, expected: Tensor, rtol: float = 1e-6) -> None:
    """Equal up to a fraction of the largest entry: transformers turns and normalises in float32 at best."""
    makers.close(value, expected, rtol)


# transformer_lens takes seconds to import, and warns of what is deprecated below it.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

# Families that these tests hide from our table, so that the bridge runs them: its code has many ways to do one thing.
FOREIGN: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("opt", {**PADDED, "ffn_dim": 44, "word_embed_proj_dim": 32}),
    "bloom": ("bloom", {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0}),
    "phi": ("phi", PADDED),
    "gemma2": ("gemma2", GQA),
    "gptj": ("gptj", {**GPT2_SIZES, "rotary_dim": 4}),
}


# Families that only the bridge has.
UNKNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "codegen": ("codegen", {**GPT2_SIZES, "rotary_dim": 4}),
    "glm4": ("glm4", {**GQA, "head_dim": 8, "pad_token_id": 0}),
    "mpt": ("mpt", {"vocab_size": 61, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 48}),
    "vaultgemma": ("vaultgemma", {**GQA, "head_dim": 8}),
}


@pytest.fixture(autouse=True)
def hidden() -> Iterator[None]:
    with mock.patch.dict(FAMILIES):  # which puts the families back in their order
        for model_type in FOREIGN:
            del FAMILIES[model_type]
        yield


@pytest.fixture(params=NATIVE)
def native_bridge(request: pytest.FixtureRequest) -> Any:
    return bridge_of(transformers_model(*NATIVE[request.param]))


@pytest.fixture(params=FOREIGN)
def foreign(request: pytest.FixtureRequest) -> tuple[str, BridgedModel, Any]:
    """A family that is not ours: its name, the bridged model, and transformers' own."""
    own = transformers_model(*FOREIGN[request.param])
    model = from_bridge(bridge_of(copy.deepcopy(own)))
    assert isinstance(model, BridgedModel)
    return request.param, model, own


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(1, 61, (2, 7), generator=torch.Generator().manual_seed(1))


# Sites of our table where a bridge of one of our own families differs, and why. All others must agree.
NOT_COMPARED = {
    # The bridge gives neither of them where it takes the rotation of a fused projection apart itself (GPT-NeoX).
    "gpt_neox": ("rot_q", "rot_k"),
    "gpt_neox-sequential": ("rot_q", "rot_k"),
}
# Scores agree where a query may look; elsewhere ours are -inf and the bridge's the smallest number of the dtype.


@pytest.mark.parametrize("family", NATIVE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_our_own_families_agree_with_the_bridge_at_every_site(family: str, dtype: torch.dtype, tokens: Tensor) -> None:
    bridge = bridge_of(transformers_model(*NATIVE[family], dtype=dtype))
    model = from_bridge(bridge)
    assert isinstance(model, GPT) and model.dtype == dtype
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens, names_filter=lambda name: True)
        for switch in ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in"):
            getattr(bridge, f"set_{switch}")(True)
        theirs: dict[str, Tensor] = {}
        named = [name for name in model.hook_dict if name in bridge.hook_dict]

        def keep(name: str, value: Tensor, hook: Any) -> None:
            theirs[name] = value.clone()

        expected = bridge.run_with_hooks(tokens, fwd_hooks=[(name, partial(keep, name)) for name in named])
    close(logits, expected, 1e-5)
    missing = {model.hook_dict[name].site.short for name in model.hook_dict if name not in theirs}
    assert missing == set(NOT_COMPARED.get(family, ()))
    for name, value in theirs.items():
        ours = cache[name]
        if name.endswith("attn_scores"):
            allowed = ours.isfinite()
            assert torch.equal(allowed, torch.ones_like(allowed).tril())
            assert bool((value[~allowed] < -1e30).all())
            ours, value = ours[allowed], value[allowed]
        close(ours, value, 1e-5 if dtype == torch.float32 else 1e-6)


def edits(model: HookedModel) -> list[str]:
    """Every site that a bridged model lets be changed."""
    return [name for name in model.hook_dict if name not in getattr(model, "read_only", ())]


def test_a_bridged_model_computes_as_our_own_under_every_edit(native_bridge: Any, tokens: Tensor) -> None:
    own, model = from_bridge(native_bridge), BridgedModel(native_bridge, None)
    assert not model.read_only and len(model.hook_dict) > 30

    def change(value: Tensor, hook: HookPoint) -> Tensor:
        return value * torch.linspace(0.7, 1.4, value.shape[-1], dtype=value.dtype)

    with torch.no_grad():
        plain = own(tokens)
        close(model(tokens), plain)
        for name in edits(model):
            expected = own.run_with_hooks(tokens, fwd_hooks=[(name, change)])
            assert not torch.allclose(expected, plain), name
            close(model.run_with_hooks(tokens, fwd_hooks=[(name, change)]), expected)
        close(model(tokens), plain)


def test_a_bridged_model_has_our_own_models_values_and_gradients(native_bridge: Any, tokens: Tensor) -> None:
    own, model = from_bridge(native_bridge), BridgedModel(native_bridge, None)
    names = list(model.hook_dict)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])
    for given in (None, mask):
        runs = [
            m.run_with_cache(tokens, "loss", names_filter=names, incl_bwd=True, attention_mask=given)
            for m in (own, model)
        ]
        (loss, expected), (ours, cache) = runs
        close(ours, loss)
        assert set(cache) == set(expected) and len(cache) == 2 * len(names)
        for name in cache if given is None else ():
            close(cache[name], expected[name])


def test_a_hook_that_returns_its_input_changes_no_bit(foreign: tuple[str, BridgedModel, Any], tokens: Tensor) -> None:
    _, model, _ = foreign
    with torch.no_grad():
        plain = model(tokens)
        assert torch.equal(model.run_with_hooks(tokens, fwd_hooks=[(lambda name: True, lambda x, hook: x)]), plain)
        logits, cache = model.run_with_cache(tokens, names_filter=lambda name: True)
    assert torch.equal(logits, plain) and set(cache) == set(model.hook_dict)


def test_foreign_families_give_transformers_values(foreign: tuple[str, BridgedModel, Any], tokens: Tensor) -> None:
    family, model, own = foreign
    names = ["blocks.*.hook_resid_pre", "blocks.*.hook_resid_post", "blocks.*.attn.hook_pattern"]
    with torch.no_grad():
        expected = own(tokens, output_hidden_states=True, output_attentions=True)
        logits, cache = model.run_with_cache(tokens, names_filter=names)
        close(logits, expected.logits)
        for layer in range(2):
            close(cache["resid_pre", layer], expected.hidden_states[layer])
            close(cache["pattern", layer], expected.attentions[layer])
        close(cache["resid_post", 0], expected.hidden_states[1])
        close(model.ln_final(cache["resid_post", 1]), expected.hidden_states[2])  # theirs ends behind the norm
        close(model.unembed(expected.hidden_states[2]), expected.logits)
        close(model(tokens, "loss"), own(tokens, labels=tokens).loss, 1e-6)
    assert set(cache) == {f"blocks.{layer}.{rest}" for layer in range(2) for rest in (n[9:] for n in names)}, family


# Where transformers computes what the MLP of the first layer adds to the residual stream.
MLP_OUT: dict[str, Callable[[Any], nn.Module]] = {
    "opt": lambda own: own.model.decoder.layers[0].fc2,
    "bloom": lambda own: own.transformer.h[0].mlp.dense_4h_to_h,
    "phi": lambda own: own.model.layers[0].mlp,
    "gemma2": lambda own: own.model.layers[0].post_feedforward_layernorm,
    "gptj": lambda own: own.transformer.h[0].mlp,
}
ATTN_OUT: dict[str, Callable[[Any], nn.Module]] = {
    "opt": lambda own: own.model.decoder.layers[0].self_attn.out_proj,
    "bloom": lambda own: own.transformer.h[0].self_attention.dense,
    "phi": lambda own: own.model.layers[0].self_attn.dense,
    "gemma2": lambda own: own.model.layers[0].post_attention_layernorm,
    "gptj": lambda own: own.transformer.h[0].attn.out_proj,
}


@pytest.mark.parametrize(("site", "places"), [("mlp_out", MLP_OUT), ("attn_out", ATTN_OUT)])
def test_zeroing_a_part_equals_doing_so_in_transformers(
    foreign: tuple[str, BridgedModel, Any], tokens: Tensor, site: str, places: dict[str, Callable[[Any], nn.Module]]
) -> None:
    family, model, own = foreign
    handle = places[family](own).register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    with torch.no_grad():
        expected = own(tokens).logits
        handle.remove()
        hook = (f"blocks.0.hook_{site}", lambda x, hook: torch.zeros_like(x))
        close(model.run_with_hooks(tokens, fwd_hooks=[hook]), expected)
        assert not torch.allclose(expected, own(tokens).logits)


def test_a_change_of_resid_mid_is_a_change_of_the_residual_stream(
    foreign: tuple[str, BridgedModel, Any], tokens: Tensor
) -> None:
    _, model, _ = foreign
    name = "blocks.0.hook_resid_mid"
    if name not in model.hook_dict:
        assert model.cfg.parallel_attn_mlp
        return
    shift = torch.randn(32, generator=torch.Generator().manual_seed(2), dtype=model.dtype)
    with torch.no_grad():
        through_attn = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_attn_out", lambda x, hook: x + shift)])
        close(model.run_with_hooks(tokens, fwd_hooks=[(name, lambda x, hook: x + shift)]), through_attn)


@pytest.mark.parametrize("family", FOREIGN)
def test_padded_rows_give_the_numbers_of_the_prompt_alone(family: str, tokens: Tensor) -> None:
    # In float64 transformers' own softmax, in float32, makes NaN of a row that is all padding.
    model = from_bridge(bridge_of(transformers_model(*FOREIGN[family], dtype=torch.float32)))
    short = tokens[:1, :5]
    fill = torch.zeros(1, 2, dtype=torch.long)
    with torch.no_grad():
        alone, cached = model.run_with_cache(short, names_filter="blocks.1.attn.hook_z")
        for row, at in ((torch.cat([short, fill], 1), slice(0, 5)), (torch.cat([fill, short], 1), slice(2, 7))):
            batch = torch.cat([row, tokens[1:]])
            mask = torch.ones_like(batch, dtype=torch.bool)
            mask[0] = False
            mask[0, at] = True
            logits, cache = model.run_with_cache(batch, names_filter="blocks.1.attn.hook_z", attention_mask=mask)
            close(logits[:1, at], alone, 1e-5)
            close(cache["z", 1][:1, at], cached["z", 1], 1e-5)
            assert not torch.allclose(model(batch)[:1, at], alone) or at.start == 0


def test_starting_and_stopping_at_a_layer(foreign: tuple[str, BridgedModel, Any], tokens: Tensor) -> None:
    _, model, _ = foreign
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens, names_filter="blocks.*.hook_resid_*")
        for layer, name in enumerate(
            ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post")
        ):
            close(model(tokens, stop_at_layer=layer), cache[name])
            close(model(cache[name], start_at_layer=layer), logits)
        middle = cache["resid_pre", 1]
        close(model(middle, start_at_layer=1, stop_at_layer=2), cache["resid_post", 1])
        assert torch.equal(model(middle, start_at_layer=-1, stop_at_layer=1), middle)
        for names, options in (
            ("blocks.0.hook_resid_post", {"start_at_layer": 1}),
            ("hook_embed" if "hook_embed" in model.hook_dict else "blocks.0.hook_resid_pre", {"start_at_layer": 1}),
        ):
            with pytest.raises(HookError, match="never ran"):
                model.run_with_hooks(middle, fwd_hooks=[(names, lambda x, hook: None)], **options)
        with pytest.raises(HookError, match="never ran"):
            model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: None)], stop_at_layer=1)


def test_decompositions_sum_or_are_refused(foreign: tuple[str, BridgedModel, Any], tokens: Tensor) -> None:
    family, model, _ = foreign
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens, names_filter=lambda name: True)
        final = cache["resid_post", 1]
        parts = cache.decompose_resid(-1, incl_embeds=False).sum(0) + cache["resid_pre", 0]
        close(parts, final)
        scaled = cache.apply_ln_to_stack(final[None])[0]
        norm = model.norm_before(2)
        assert norm is not None
        close(scaled if norm.b is None else scaled + norm.b, model.ln_final(final))
        if family == "gemma2":  # a norm behind the attention, a cap on the logits
            with pytest.raises(InterpError, match="heads of layer 0 do not add up"):
                model.head_results(0, cache["z", 0])
            with pytest.raises(InterpError, match="capped"):
                _ = model.W_U
            return
        for layer in range(2):
            heads, bias = model.head_results(layer, cache["z", layer]), model.bias_result(layer, cache["z", layer])
            close(heads.sum(-2) if bias is None else heads.sum(-2) + bias, cache["attn_out", layer])
        close(model.ln_final(final) @ model.W_U + model.unembed(torch.zeros_like(final)), logits)


def test_a_sweep_runs_on_a_bridged_model(foreign: tuple[str, BridgedModel, Any], tokens: Tensor) -> None:
    _, model, _ = foreign
    corrupt = torch.cat([tokens[:, :3], 61 - tokens[:, 3:4], tokens[:, 4:]], 1)
    pairs = PromptPairs.from_tokens(tokens, corrupt, answers=[(5, 9), (7, 30)])
    variants = [
        Variant([Edit("z", where={"layer": layer, "head": 1}, op="set", source="source")], labels={"layer": layer})
        for layer in range(2)
    ]
    frame = sweep(model, pairs, variants, progress=False)
    with torch.no_grad():
        for layer in range(2):
            name = f"blocks.{layer}.attn.hook_z"
            clean = model.run_with_cache(tokens, names_filter=name)[1][name]

            def patch(z: Tensor, hook: HookPoint, clean: Tensor = clean) -> Tensor:
                return torch.cat([z[:, :, :1], clean[:, :, 1:2], z[:, :, 2:]], 2)

            logits = model.run_with_hooks(corrupt, fwd_hooks=[(name, patch)])[torch.arange(2), -1]
            expected = logits[torch.arange(2), torch.tensor([5, 7])] - logits[torch.arange(2), torch.tensor([9, 30])]
            values = frame[frame["layer"] == layer].sort_values("prompt")["value"].to_numpy()
            close(torch.tensor(values), expected)


def test_greedy_generation_equals_transformers(foreign: tuple[str, BridgedModel, Any], tokens: Tensor) -> None:
    _, model, own = foreign
    prompt = tokens[:, :3]
    expected = own.generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(model.generate(prompt, 4, do_sample=False, stop_at_eos=False), expected)
    with pytest.raises(InterpError, match="use_past_kv_cache=False"):
        generate(model, prompt, 1)


def test_threads_wait_their_turn_and_run_no_hooks_of_others(tokens: Tensor) -> None:
    model: Any = from_bridge(bridge_of(transformers_model(*FOREIGN["opt"])))
    plain = model(tokens)
    inside, go_on = threading.Event(), threading.Event()

    def hold(value: Tensor, hook: HookPoint) -> Tensor:
        inside.set()
        assert go_on.wait(60)
        return value * 0.5

    with ThreadPoolExecutor(2) as pool:
        edits = [("blocks.0.hook_resid_post", hold)]
        first = pool.submit(model.run_with_hooks, tokens, fwd_hooks=edits, stop_at_layer=1)
        assert inside.wait(60)
        second = pool.submit(model, tokens)
        done, _ = wait([second], timeout=0.5)
        go_on.set()
        assert not done and first.result().shape == (*tokens.shape, model.cfg.d_model)
        assert torch.equal(second.result(), plain)
    edited = model.run_with_hooks(tokens, fwd_hooks=edits, stop_at_layer=1)
    assert torch.equal(first.result(), edited) and torch.equal(model(tokens), plain)


def test_what_an_interrupt_leaves_in_a_bridge_does_nothing(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = from_bridge(bridge_of(transformers_model(*FOREIGN["opt"])))
    plain, theirs = model(tokens), model.bridge(tokens)
    _, cache = model.run_with_cache(tokens, names_filter="blocks.1.hook_resid_pre")

    @contextmanager
    def stays(point: Any, fn: Any) -> Iterator[None]:
        point.add_hook(lambda value, hook: fn(value))
        yield

    monkeypatch.setattr("interp.loading.bridged_model.tapped", stays)
    half = ("blocks.1.hook_resid_mid", lambda value, hook: value * 0.5)
    model.run_with_hooks(tokens, fwd_hooks=[half])
    model(cache["resid_pre", 1] * 0.5, start_at_layer=1)
    model(tokens, stop_at_layer=1)
    assert torch.equal(model(tokens), plain) and torch.equal(model.bridge(tokens), theirs)


def test_hooks_and_inputs_are_held_to_our_contract(foreign: tuple[str, BridgedModel, Any], tokens: Tensor) -> None:
    _, model, _ = foreign

    before = [len(point.fwd_hooks) for point in model.bridge.hook_dict.values()]  # some are the bridge's own

    def fail(value: Tensor, hook: HookPoint) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.*.hook_mlp_out", fail)])
    assert [len(point.fwd_hooks) for point in model.bridge.hook_dict.values()] == before
    assert not any(point.wanted for point in model.hook_dict.values())
    with pytest.raises(UnknownName, match=r"did you mean 'blocks\.0\.hook_mlp_out'"):
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_mlp_outt", fail)])
    with pytest.raises(HookError, match="returned"):
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: x[:1])])
    with pytest.raises(PromptError, match="out of range"):
        model(tokens + 60)
    with pytest.raises(PromptError, match="attention_mask has shape"):
        model(tokens, attention_mask=torch.ones(2, 3))
    with pytest.raises(PromptError, match="no tokenizer"):
        model("text")
    with pytest.raises(UnknownName, match="out of range"):
        model(tokens, stop_at_layer=3)


def test_a_pattern_that_is_handed_out_after_its_use_can_only_be_read(tokens: Tensor) -> None:
    model = from_bridge(bridge_of(transformers_model(*FOREIGN["opt"])))
    assert isinstance(model, BridgedModel)
    assert model.read_only == {"blocks.0.attn.hook_pattern", "blocks.1.attn.hook_pattern"}
    for name in model.read_only:
        model.run_with_hooks(tokens, fwd_hooks=[(name, lambda x, hook: None)])
        with pytest.raises(HookError, match="can be read but not changed"):
            model.run_with_hooks(tokens, fwd_hooks=[(name, lambda x, hook: x * 0.5)])
        with pytest.raises(HookError, match="can be read but not changed"):
            model.run_with_hooks(tokens, bwd_hooks=[(name, lambda x, hook: None)])


# What the trial leaves out, of the names that both have, besides those that need a switch of the bridge's.
LEFT_OUT = {
    "opt": {"attn_scores", "ln2.scale", "ln2.normalized"},  # the pattern once more; [batch * pos, d_model]
    "bloom": {"embed"},  # TransformerLens's is the norm behind the embedding
    "phi": set(),
    "gemma2": set(),
    "gptj": {"attn_scores", "q", "k", "rot_q", "rot_k"},  # the pattern once more; nothing shows the rotated ones
}
SWITCHED = {"q_input", "k_input", "v_input", "mlp_in", "result"}


def test_what_is_left_out_is_known(foreign: tuple[str, BridgedModel, Any]) -> None:
    family, model, _ = foreign
    left = {
        name.rpartition("hook_")[2] if "ln" not in name else name[9:].replace("hook_", "") for name in model.left_out
    }
    assert left - SWITCHED == LEFT_OUT[family]


@pytest.mark.parametrize("family", UNKNOWN)
def test_a_family_that_is_not_ours_goes_through_the_bridge(family: str, tokens: Tensor) -> None:
    own = transformers_model(*UNKNOWN[family])
    model = from_bridge(bridge_of(copy.deepcopy(own)))
    assert isinstance(model, BridgedModel) and "blocks.0.attn.hook_z" in model.hook_dict
    with torch.no_grad():
        close(model(tokens), own(tokens).logits)


def test_an_option_that_our_family_lacks_goes_through_the_bridge(tokens: Tensor) -> None:
    own = transformers_model("falcon", {**PADDED, "num_attention_heads": 4, "activation": "tanh"})
    model = from_bridge(bridge_of(copy.deepcopy(own)))
    assert isinstance(model, BridgedModel) and "blocks.0.attn.hook_z" in model.hook_dict
    with torch.no_grad():
        close(model(tokens), own(tokens).logits)


def test_norms_without_weights_are_left_out_and_all_else_works(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FAMILIES, "olmo")
    own = transformers_model("olmo", PADDED)
    model = from_bridge(bridge_of(copy.deepcopy(own)))
    assert not any("ln" in name for name in model.hook_dict) and len(model.hook_dict) > 20
    with torch.no_grad():
        expected = own(tokens, output_hidden_states=True)
        logits, cache = model.run_with_cache(tokens, names_filter="blocks.*.hook_resid_*")
        close(logits, expected.logits)
        close(model.unembed(model.ln_final(cache["resid_post", 1])), expected.logits)
        with pytest.raises(InterpError, match="ln_final is not a plain norm"):
            model.norm_before(2)


def test_a_model_that_looks_both_ways_is_found_to() -> None:
    torch.manual_seed(0)
    bert = transformers.BertForMaskedLM(transformers.BertConfig(**PADDED, attn_implementation="eager")).eval()
    assert from_bridge(bridge_of(bert)).cfg.attention_dir == "bidirectional"
    assert from_bridge(bridge_of(transformers_model(*FOREIGN["phi"]))).cfg.attention_dir == "causal"


@pytest.mark.parametrize(
    ("site", "elsewhere"),
    [
        ("blocks.0.hook_attn_out", "blocks.0.mlp.hook_out"),
        ("blocks.0.hook_mlp_out", "blocks.0.attn.hook_out"),
        ("hook_embed", "blocks.0.ln1.hook_out"),
        ("blocks.1.attn.hook_q", "blocks.1.attn.k.hook_out"),
        ("blocks.1.attn.hook_v", "blocks.1.attn.k.hook_out"),
        ("blocks.1.attn.hook_z", "blocks.1.attn.v.hook_out"),
        ("blocks.0.attn.hook_attn_scores", "blocks.0.attn.hook_pattern"),
        ("blocks.0.ln1.hook_normalized", "blocks.0.ln1.hook_out"),
        ("blocks.1.mlp.hook_pre", "blocks.1.mlp.out.hook_in"),
        ("blocks.1.mlp.hook_post", "blocks.1.mlp.in.hook_out"),
    ],
)
def test_a_name_that_stands_for_another_point_is_found_out(site: str, elsewhere: str) -> None:
    own = transformers_model(*FOREIGN["phi"], dtype=torch.float32)
    with torch.no_grad():
        own.model.embed_tokens.weight[:, 3] *= (
            3000  # trained models have such a channel, beside which all else is small
        )
    bridge = bridge_of(own)
    names = bridge.hook_dict
    assert names[site] is not names[elsewhere]

    class Misnamed(type(bridge)):  # type: ignore[misc]
        @property
        def hook_dict(self) -> dict[str, Any]:
            return {**names, site: names[elsewhere]}

    assert site in BridgedModel(bridge, None).hook_dict
    bridge.__class__ = Misnamed
    assert site not in BridgedModel(bridge, None).hook_dict


def test_compatibility_mode_without_processing_is_raw(native_bridge: Any, tokens: Tensor) -> None:
    expected = native_bridge(tokens)
    native_bridge.enable_compatibility_mode(no_processing=True)
    with torch.no_grad():
        close(from_bridge(native_bridge)(tokens), expected)


def test_folded_weights_are_refused() -> None:
    for model_type, options in (NATIVE["gpt2"], FOREIGN["phi"]):
        bridge = bridge_of(transformers_model(model_type, options, torch.float32))
        bridge.enable_compatibility_mode()
        with pytest.raises(WeightsError, match="folded or centred"):
            from_bridge(bridge)


def test_weights_that_the_bridge_does_not_compute_with_are_refused() -> None:
    bridge = bridge_of(transformers_model(*NATIVE["gpt_neox"]))
    with torch.no_grad():
        bridge.blocks[0].attn.q.weight.mul_(2)  # a copy of a part of query_key_value
    with pytest.raises(WeightsError, match="differ from those of its weights"):
        from_bridge(bridge)
    bridge = bridge_of(transformers_model(*NATIVE["gpt2"]))
    bridge.add_hook("blocks.0.hook_mlp_out", lambda value, hook: value * 2)
    with pytest.raises(WeightsError, match="hooks are attached"):
        from_bridge(bridge)
    bridge.reset_hooks()
    assert isinstance(from_bridge(bridge), GPT)


def test_other_things_than_a_bridge_of_a_decoder_are_refused() -> None:
    model = transformers_model(*NATIVE["gpt2"])
    assert not is_bridge(model)
    with pytest.raises(ConfigError, match="takes a TransformerBridge of transformer_lens, not GPT2LMHeadModel"):
        from_bridge(model)
    bridge = bridge_of(model)
    assert is_bridge(bridge)
    bridge.train()
    with pytest.raises(ConfigError, match="training mode"):
        from_bridge(bridge)
    t5 = transformers.T5Config(
        vocab_size=61, d_model=32, d_kv=8, d_ff=44, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    with pytest.raises(ConfigError, match="t5 model has an encoder and a decoder"):
        from_bridge(bridge_of(transformers.T5ForConditionalGeneration(t5).eval()))
    phi = bridge_of(transformers_model(*FOREIGN["phi"]))
    with pytest.raises(ConfigError, match=r"bridge\.to"):
        from_bridge(phi, dtype=torch.float32)


def test_the_tokenizer_is_the_bridges() -> None:
    import tokenizers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()  # type: ignore[assignment]
    for model_type, options in (NATIVE["llama-gqa"], FOREIGN["phi"]):
        bridge = bridge_of(transformers_model(model_type, options))
        bridge.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0")
        model = from_bridge(bridge)
        assert model.to_tokens("w3 w1 w60").tolist() == [[3, 1, 60]]
        with torch.no_grad():
            close(model("w3 w1 w60"), bridge(torch.tensor([[3, 1, 60]])))


def test_load_takes_a_bridge(native_bridge: Any, tokens: Tensor) -> None:
    model = interp.load(native_bridge, check=True)
    assert isinstance(model, GPT)
    torch.testing.assert_close(model(tokens), native_bridge(tokens), rtol=1e-4, atol=1e-5)


def test_a_bridge_of_a_folder_without_a_tokenizer_has_none_and_draws_from_its_vocabulary(tmp_path: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    transformers_model(*UNKNOWN["codegen"]).save_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), device="cpu")
    assert bridge.tokenizer is not None  # transformers makes one up, of a single token
    model = from_bridge(bridge)
    assert model.tokenizer is None and isinstance(model, BridgedModel)
    sequences = random_sequences(model, 2)
    assert sequences.length > 3 and int(sequences.repeated.max()) < model.cfg.d_vocab == 61
    assert len(induction(model, n=2)) == 2
