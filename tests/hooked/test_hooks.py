"""Hooks: names, scopes, errors; what they return and what they must not leave behind."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from makers import make
from torch import Tensor

from interp.errors import HookError, PromptError, UnknownName
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.sites import SITES, get_act_name, match, site_names


def hooked(model: GPT) -> int:
    return sum(len(point.hooks) for point in model.hook_dict.values())


def test_a_hook_that_returns_its_input_changes_no_bit(any_model: GPT, tokens: Tensor) -> None:
    plain = any_model(tokens)
    for name, point in any_model.hook_dict.items():
        same = any_model.run_with_hooks(tokens, fwd_hooks=[(name, lambda x, hook: x.clone())])
        if point.site.on_demand:
            torch.testing.assert_close(same, plain, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(same, plain), name


def test_every_site_has_the_axes_that_the_table_says(any_model: GPT, tokens: Tensor) -> None:
    cfg = any_model.cfg
    sizes = {
        "batch": 3, "pos": 7, "query": 7, "key": 7, "one": 1, "head": cfg.n_heads, "kv_head": cfg.n_kv_heads,
        "d_model": cfg.d_model, "d_head": cfg.d_head, "d_mlp": cfg.d_mlp, "channel": 24, "ssm_head": 6, "d_ssm_head": 4,
        "ssm_group": 2, "d_state": 3, "conv_channel": 24 + 2 * 2 * 3,
    }  # fmt: skip
    sizes |= {"d_both": 2 * cfg.d_model}
    if (experts := cfg.experts) is not None:
        sizes |= {"expert": experts.n_experts, "slot": experts.experts_per_token, "d_expert": experts.d_expert}
        sizes |= {"d_shared": experts.d_shared}
    seen = {}
    for other in ("mixer.hook_state", "mixer.hook_pattern"):  # two ways to the same y, of which one may be changed
        wanted = [name for name in any_model.hook_dict if not name.endswith(other)]
        with any_model.hooks([(wanted, lambda x, hook: seen.update({hook.name: x.shape}))]):
            any_model(tokens)
    assert list(seen) and set(seen) == set(site_names(cfg))
    for name, shape in seen.items():
        assert shape == tuple(sizes[axis] for axis in any_model.hook_dict[name].site.axes), name


def test_every_site_reaches_the_logits(any_model: GPT, tokens: Tensor) -> None:
    plain = any_model(tokens)
    noise = torch.Generator().manual_seed(1)
    for name, point in any_model.hook_dict.items():
        if name.endswith("hook_attn_scores"):
            continue
        changed = any_model.run_with_hooks(
            tokens,
            fwd_hooks=[
                (
                    name,
                    lambda x, hook: (
                        x * (1 + torch.rand(x.shape, generator=noise)) if x.is_floating_point() else (x + 1) % 3
                    ),
                )
            ],
        )
        silent = point.site.short == "k_input" and not changed.ne(plain).any()
        assert silent or not torch.allclose(changed, plain, atol=1e-6), name


def test_an_edit_of_one_head_equals_removing_its_result(tokens: Tensor) -> None:
    model = make("llama_gqa")

    def zero(x: Tensor, hook: Any, head: int) -> Tensor:
        return torch.cat([x[:, :, :head], torch.zeros_like(x[:, :, head : head + 1]), x[:, :, head + 1 :]], dim=2)

    by_z = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", partial(zero, head=2))])
    by_result = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_result", partial(zero, head=2))])
    torch.testing.assert_close(by_z, by_result, rtol=1e-4, atol=1e-5)


def test_split_inputs_reach_one_head_alone(tokens: Tensor) -> None:
    model = make("llama_gqa")
    for which, site in (("q", "rot_q"), ("k", "rot_k"), ("v", "v")):
        _, plain = model.run_with_cache(tokens)

        def nudge(x: Tensor, hook: Any) -> Tensor:
            x = x.clone()
            x[:, :, 1] += torch.randn(x.shape[-1])
            return x

        with model.hooks([(f"blocks.1.hook_{which}_input", nudge)]):
            _, changed = model.run_with_cache(tokens, names_filter=f"blocks.1.attn.hook_{site}")
        differs = [
            not torch.allclose(plain[site, 1][:, :, h], changed[site, 1][:, :, h], atol=1e-5)
            for h in range(plain[site, 1].shape[2])
        ]
        assert differs == [h == 1 for h in range(len(differs))]


def test_hooks_go_when_the_block_ends_and_when_something_raises(tokens: Tensor) -> None:
    model = make("gpt2")

    def explode(x: Tensor, hook: Any) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", explode)])
    with pytest.raises(UnknownName), model.hooks([("hook_embed", explode), ("nonsense", explode)]):
        pass
    with pytest.raises(KeyboardInterrupt), model.hooks([("hook_embed", explode)]):
        raise KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), model.hooks([("*", explode)]):
        model.run_with_cache(tokens)
    assert hooked(model) == 0


def test_nested_blocks_each_remove_their_own(tokens: Tensor) -> None:
    model = make("gpt2")
    with model.hooks([("hook_embed", lambda x, hook: x * 0)]):
        with model.hooks([("hook_embed", lambda x, hook: x + 1)]):
            model(tokens)
            assert hooked(model) == 2
        assert hooked(model) == 1
        _, cache = model.run_with_cache(tokens)
        assert not cache["embed"].any()
    assert hooked(model) == 0


def test_a_hook_that_never_ran_is_reported(tokens: Tensor) -> None:
    model = make("gpt2")
    look = [("blocks.1.hook_resid_post", lambda x, hook: None)]
    with pytest.raises(HookError, match=r"blocks.1.hook_resid_post.* never ran"):
        model.run_with_hooks(tokens, fwd_hooks=look, stop_at_layer=1)
    with pytest.raises(HookError, match="never ran"), model.hooks(look):
        pass
    with pytest.raises(HookError, match="never ran"):
        model.run_with_cache(tokens, names_filter=["hook_embed", "blocks.1.attn.hook_z"], stop_at_layer=1)
    model.run_with_hooks(tokens, fwd_hooks=[("blocks.*.hook_resid_post", lambda x, hook: None)], stop_at_layer=1)


@pytest.mark.parametrize("value", [lambda x: x[:, :1], lambda x: x.double(), lambda x: 3.0])
def test_what_a_hook_returns_is_checked(tokens: Tensor, value: Any) -> None:
    with pytest.raises(
        HookError, match=r"blocks.0.attn.hook_z.*(expected \[batch, pos, head, d_head\]|expected a tensor)"
    ):
        make("gpt2").run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_z", lambda x, hook: value(x))])


def test_hooks_take_their_point_in_either_way(tokens: Tensor) -> None:
    model = make("gpt2")
    names: list[str] = []

    def keyword(x: Tensor, *, hook: Any) -> None:
        names.append(hook.name)

    def partially(x: Tensor, head: int, hook: Any) -> None:
        names.append(f"{hook.layer()} {head}")

    model.run_with_hooks(
        tokens,
        fwd_hooks=[
            ("hook_embed", keyword),
            ("blocks.1.hook_resid_pre", partial(partially, head=7)),
            (["ln_final.hook_scale"], lambda x, point: names.append(point.name)),
        ],
    )
    assert names == ["hook_embed", "1 7", "ln_final.hook_scale"]


def test_gradients_at_sites_equal_finite_differences(tokens: Tensor) -> None:
    model = make("llama_gqa").double()
    gradients: dict[str, Tensor] = {}
    names = [
        "blocks.0.attn.hook_pattern",
        "blocks.1.hook_resid_pre",
        "blocks.1.ln2.hook_scale",
        "blocks.0.mlp.hook_post",
    ]

    def value(fwd: Any = ()) -> Tensor:
        return model.run_with_hooks(tokens, fwd_hooks=[*fwd, (names[0], lambda x, hook: None)])[:, -1, 3].sum()

    with model.hooks(bwd_hooks=[(names, lambda g, hook: gradients.update({hook.name: g.clone()}))]):
        value().backward()
    for name in names:
        noise = torch.randn(gradients[name].shape, dtype=torch.float64)
        if name.endswith("pattern"):
            noise = noise.tril()
        up, down = (value([(name, lambda x, hook, s=s, noise=noise: x + s * 1e-6 * noise)]) for s in (1, -1))
        expected = float((up - down).detach() / 2e-6)
        assert float((gradients[name] * noise).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-8), name


def test_a_backward_hook_without_gradients_is_refused(tokens: Tensor) -> None:
    with torch.no_grad(), pytest.raises(HookError, match="needs a gradient"):
        make("gpt2").run_with_hooks(tokens, bwd_hooks=[("hook_embed", lambda g, hook: None)])


def test_backward_hooks_replace_gradients(tokens: Tensor) -> None:
    model = make("gpt2")
    loss = model.run_with_hooks(
        tokens, return_type="loss", bwd_hooks=[("blocks.1.hook_resid_pre", lambda g, hook: g * 0)]
    )
    loss.backward()
    assert not model.blocks[0].mlp.W_up.grad.any() and model.blocks[1].mlp.W_up.grad.any()


def test_hooks_that_stay_until_reset(tokens: Tensor) -> None:
    model = make("gpt2")
    plain = model(tokens)
    model.add_hook("hook_embed", lambda x, hook: x * 0)
    assert not torch.allclose(model(tokens), plain)
    model.reset_hooks()
    assert torch.equal(model(tokens), plain) and hooked(model) == 0


def test_split_inputs_and_norm_edits_of_one_layer_contradict(tokens: Tensor) -> None:
    model = make("gpt2")
    look = ("blocks.0.hook_q_input", lambda x, hook: None)
    model.run_with_hooks(tokens, fwd_hooks=[look, ("blocks.0.ln1.hook_scale", lambda x, hook: x)])
    with pytest.raises(HookError, match="choose one"):
        model.run_with_hooks(tokens, fwd_hooks=[look, ("blocks.0.ln1.hook_scale", lambda x, hook: 2 * x)])


def test_names_are_matched_or_the_nearest_is_offered() -> None:
    names = list(site_names(make("gpt2").cfg))
    assert match("blocks.*.attn.hook_z", names) == ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]
    assert match(["ln_final.*", "hook_embed"], names) == [
        "hook_embed",
        "ln_final.hook_scale",
        "ln_final.hook_normalized",
    ]
    assert match(lambda name: name.endswith("pattern"), names) == match("*pattern", names)
    with pytest.raises(
        UnknownName, match=r"no site matches 'blocks.1.attn.hook_paterns'; did you mean 'blocks.1.attn.hook_pattern'"
    ):
        match("blocks.1.attn.hook_paterns", names)
    with pytest.raises(UnknownName, match="selects none"):
        match(lambda name: False, names)


def test_short_names_stand_for_full_ones() -> None:
    for site in SITES:
        layer = 4 if site.per_layer else None
        assert get_act_name(site.short, layer) == site.name(layer)
    assert get_act_name("attn", 2) == "blocks.2.attn.hook_pattern"
    assert get_act_name("normalized", 2, "ln2") == "blocks.2.ln2.hook_normalized"
    with pytest.raises(UnknownName, match="needs a layer"):
        get_act_name("z")
    with pytest.raises(UnknownName, match="did you mean 'resid_post'"):
        get_act_name("resid_pots", 1)


def test_what_is_asked_for_in_the_wrong_form_is_explained(tokens: Tensor) -> None:
    model = make("gpt2")
    with pytest.raises(UnknownName, match=r"its full name is 'blocks\.\*\.attn\.hook_pattern'"):
        model.run_with_cache(tokens, names_filter="pattern")
    with pytest.raises(HookError, match="list of pairs"):
        model.run_with_hooks(tokens, fwd_hooks=("hook_embed", lambda x, hook: x))
    with pytest.raises(PromptError, match="must be token ids, a text or several texts, not list"):
        model([[1, 2], [3, 4]])
    pairs = PromptPairs.from_tokens([[1, 2]], answers=[(1, 2)])
    with pytest.raises(PromptError, match=r"give \.clean or \.corrupt"):
        model(pairs)
