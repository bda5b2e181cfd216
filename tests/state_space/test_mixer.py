"""State-space layers against their equations, written out position by position, and what edits of them must do."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import makers
import pytest
import torch
from makers import RECURRENT, make, make_pairs
from torch import Tensor

import interp
from interp.config import ModelConfig
from interp.edits import Edit, Variant
from interp.errors import ConfigError, HookError, PromptError, UnknownName
from interp.hooked.past import PastKeyValues
from interp.models.gpt import GPT, Mamba
from interp.state_space.mamba2 import Mamba2
from interp.state_space.mixer import MambaMixer
from interp.sweeps.sweep import sweep

close = partial(makers.close, rtol=1e-10)

LAYERS = [(kind, layer) for kind, own in RECURRENT.items() for layer, of in enumerate(own["layer_types"]) if "ba" in of]
Change = tuple[str, Callable[..., Tensor]]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def softplus(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x))


def by_hand(mixer: MambaMixer, x: Tensor, change: Change = ("", lambda value: value)) -> dict[str, Tensor]:
    """Every site of a mixer from the papers' equations: x [batch, pos, d_model], the norm's output.

    `change` is made of one site's value when it is there; of the states as `fn(position, state)`, one by one.
    """
    cfg, two = mixer.cfg, isinstance(mixer, Mamba2)
    n, N, G = cfg.d_inner or 0, cfg.d_state or 0, cfg.n_ssm_groups
    n_batch, n_pos = x.shape[:2]
    found: dict[str, Tensor] = {}

    def put(site: str, value: Tensor) -> Tensor:
        found[site] = change[1](value) if site == change[0] else value
        return found[site]

    rows = x @ mixer.W_in.T + (0 if mixer.b_in is None else mixer.b_in)
    wide = n + 2 * G * N if two else n
    inner = put("in", rows[..., n : n + wide] if two else rows[..., :n])
    gate = rows[..., :n] if two else rows[..., n:]

    convolved = torch.zeros_like(inner)
    for t in range(n_pos):
        for back in range(min(t + 1, cfg.d_conv)):
            convolved[:, t] += mixer.W_conv[:, cfg.d_conv - 1 - back] * inner[:, t - back]
    conv = put("conv", silu(convolved + (0 if mixer.b_conv is None else mixer.b_conv)))
    u = conv[..., :n]

    if two:
        step = softplus(rows[..., n + wide :] + mixer.b_dt)
        delta = put("delta", step if cfg.dt_limit is None else step.clamp(*cfg.dt_limit))
        B = put("B", conv[..., n : n + G * N].reshape(n_batch, n_pos, G, N))
        C = put("C", conv[..., n + G * N :].reshape(n_batch, n_pos, G, N))
        heads = torch.arange(n) // cfg.d_ssm_head
        groups = heads // (cfg.n_ssm_heads // G)
        steps, B_of, C_of = delta[..., heads], B[:, :, groups], C[:, :, groups]
        A, D = -mixer.A_log.exp()[heads, None], mixer.D[heads]
    else:
        assert cfg.dt_rank is not None
        low, B, C = (u @ mixer.W_x.T).split([cfg.dt_rank, N, N], dim=-1)
        if cfg.ssm_normalization_type:
            low, B, C = (part / (part.pow(2).mean(-1, keepdim=True) + cfg.ssm_eps).sqrt() for part in (low, B, C))
        if cfg.ssm_normalization_type == "RMS":
            low, B, C = low * mixer.w_dt_norm, B * mixer.w_B_norm, C * mixer.w_C_norm
        delta = put("delta", softplus(low @ mixer.W_dt.T + mixer.b_dt))
        B, C = put("B", B), put("C", C)
        steps, B_of, C_of = delta, B[:, :, None], C[:, :, None]
        A, D = -mixer.A_log.exp(), mixer.D

    h = torch.zeros(n_batch, n, N, dtype=x.dtype)
    states = []
    for t in range(n_pos):
        h = torch.exp(steps[:, t, :, None] * A) * h + (steps * u)[:, t, :, None] * B_of[:, t]
        if change[0] == "state":
            h = change[1](t, mixer.like_y(h.mT).mT if not two else h.unflatten(1, (-1, cfg.d_ssm_head)))
            h = h.flatten(1, -2)
        states.append(h)
    found["state"] = torch.stack(states, 1)
    y = (C_of * found["state"]).sum(-1) + D * u
    if two:
        y, gate = (value.unflatten(-1, (-1, cfg.d_ssm_head)) for value in (y, gate))
        found["state"] = found["state"].unflatten(2, (-1, cfg.d_ssm_head))
    y, gate = put("y", y), put("gate", gate)
    gated = y * silu(gate)
    if two:
        parts = gated.flatten(2).unflatten(-1, (G, -1))
        parts = parts / (parts.pow(2).mean(-1, keepdim=True) + cfg.eps).sqrt()
        gated = (parts.flatten(2) * mixer.w_norm).unflatten(-1, (-1, cfg.d_ssm_head))
    gated = put("gated", gated)
    put("out", gated.flatten(2) @ mixer.W_out.T + (0 if mixer.b_out is None else mixer.b_out))
    return found


def wide_model(kind: str, layer: int, **changes: Any) -> tuple[GPT, MambaMixer]:
    model = make(kind, **changes).double().requires_grad_(False)
    mixer = model.block(layer).mixer
    assert mixer is not None
    return model, mixer


def read_by(model: GPT, layer: int, cache: Any) -> Tensor:
    """What a mixer reads, behind the norm."""
    block = model.block(layer)
    name, norm = ("ln1", block.ln1) if block.ln_mixer is None else ("ln_mixer", block.ln_mixer)
    assert norm is not None
    return cache["normalized", layer, name] * norm.w


@pytest.mark.parametrize(("kind", "layer"), LAYERS)
def test_every_site_is_what_the_equations_say(kind: str, layer: int, tokens: Tensor) -> None:
    model, mixer = wide_model(kind, layer)
    _, cache = model.run_with_cache(tokens)
    expected = by_hand(mixer, read_by(model, layer, cache))
    assert len(expected) == 10
    for site, value in expected.items():
        close(cache[site, layer], value)


@pytest.mark.parametrize("site", ["in", "conv", "delta", "B", "C", "y", "gate", "gated", "out"])
@pytest.mark.parametrize(("kind", "layer"), LAYERS)
def test_an_edit_of_a_site_reaches_what_the_equations_say(kind: str, layer: int, site: str, tokens: Tensor) -> None:
    model, mixer = wide_model(kind, layer)

    def change(value: Tensor, hook: Any = None) -> Tensor:
        changed = value.clone()
        changed[:, 2] *= -0.7
        changed[:, 4, 1] += 0.5
        return changed

    with model.hooks([(f"blocks.{layer}.mixer.hook_{site}", change)]):
        _, cache = model.run_with_cache(tokens, names_filter=["*ln1.hook_normalized", "*mixer*"])
    for name, value in by_hand(mixer, read_by(model, layer, cache), (site, change)).items():
        close(cache[name, layer], value)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("kind", "layer"), LAYERS)
def test_the_pattern_makes_y_of_x(kind: str, layer: int, side: str, tokens: Tensor) -> None:
    model, mixer = wide_model(kind, layer)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, slice(0, 3) if side == "left" else slice(4, 7)] = False
    mask[1, slice(0, 6) if side == "left" else slice(1, 7)] = False
    for wanted in (None, ["*mixer.hook_pattern", "*mixer.hook_conv", "*mixer.hook_y"]):  # derived, and computed
        _, cache = model.run_with_cache(tokens, attention_mask=mask, names_filter=wanted)
        pattern = cache["mixer.pattern", layer]
        assert not pattern.triu(1).any()
        x = mixer.like_y(cache["conv", layer][..., : mixer.cfg.d_inner])
        y = torch.einsum("buqk,bku...->bqu...", pattern, x)
        close(y[mask], cache["y", layer][mask])
        for row in range(3):  # no query reads padding
            assert not pattern[row][:, mask[row]][:, :, ~mask[row]].any()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("kind", "layer"), LAYERS)
def test_states_of_padded_prompts_are_those_of_the_prompts_alone(kind: str, layer: int, side: str) -> None:
    model, _ = wide_model(kind, layer)
    rows = [[4, 8, 15, 16, 23], [7, 7], [3]]
    batch, mask = torch.zeros(3, 6, dtype=torch.long), torch.zeros(3, 6, dtype=torch.bool)
    for at, row in enumerate(rows):
        place = slice(6 - len(row), 6) if side == "left" else slice(0, len(row))
        batch[at, place], mask[at, place] = torch.tensor(row), True
    _, derived = model.run_with_cache(batch, attention_mask=mask)
    _, computed = model.run_with_cache(batch, attention_mask=mask, names_filter="*mixer.hook_state")
    for at, row in enumerate(rows):
        _, alone = model.run_with_cache(torch.tensor([row]), names_filter="*mixer.hook_state")
        close(computed["state", layer][at, mask[at]], alone["state", layer][0])
        close(derived["state", layer][at, mask[at]], alone["state", layer][0])


def change_of(op: str, noise: Tensor) -> Callable[[Tensor], Tensor]:
    return {"set": lambda h: noise, "add": lambda h: h + noise, "scale": lambda h: -0.5 * h}[op]


@pytest.mark.parametrize("positions", [[3], [0], [1, 4], [2, 3, 6], list(range(7))])
@pytest.mark.parametrize("op", ["set", "add", "scale"])
@pytest.mark.parametrize(("kind", "layer"), LAYERS)
def test_states_follow_from_edited_ones(kind: str, layer: int, op: str, positions: list[int], tokens: Tensor) -> None:
    model, mixer = wide_model(kind, layer)
    name = f"blocks.{layer}.mixer.hook_state"
    shape = model.run_with_cache(tokens, names_filter=name)[1][name].shape
    noise = torch.randn(shape, dtype=torch.float64)

    def at_once(states: Tensor, hook: Any) -> Tensor:
        states = states.clone()
        for t in positions:
            states[:, t] = change_of(op, noise[:, t])(states[:, t])
        return states

    def one_by_one(t: int, h: Tensor) -> Tensor:
        return change_of(op, noise[:, t])(h) if t in positions else h

    with model.hooks([(name, at_once)]):
        logits, cache = model.run_with_cache(tokens, names_filter=["*ln1.hook_normalized", "*mixer*"])
    expected = by_hand(mixer, read_by(model, layer, cache), ("state", one_by_one))
    for site, value in expected.items():
        close(cache[site, layer], value)
    source = None if op == "scale" else noise
    edit = Edit("state", {"layer": layer, "pos": positions}, op, -0.5 if op == "scale" else source)
    pairs = interp.PromptPairs.from_tokens(tokens.tolist(), answers=[(1, 2)] * 3)
    frame = sweep(model, pairs, [Variant([edit])], base="clean", source="clean", progress=False)
    assert frame["value"].tolist() == pytest.approx((logits[:, -1, 1] - logits[:, -1, 2]).tolist(), abs=1e-9)


@pytest.mark.parametrize(("kind", "layer"), LAYERS)
def test_a_state_is_all_that_is_known_of_earlier_positions(kind: str, layer: int, tokens: Tensor) -> None:
    """Copying the states of another prompt at one position gives what the recurrence makes of both."""
    model, mixer = wide_model(kind, layer)
    other = tokens.flip(0)
    name, at = f"blocks.{layer}.mixer.hook_state", 3
    there = model.run_with_cache(other, names_filter=name)[1][name]

    def patch(states: Tensor, hook: Any) -> Tensor:
        return torch.cat([states[:, :at], there[:, at : at + 1], states[:, at + 1 :]], dim=1)

    with model.hooks([(name, patch)]):
        _, cache = model.run_with_cache(tokens, names_filter=["*ln1.hook_normalized", "*mixer*"])
    expected = by_hand(mixer, read_by(model, layer, cache), ("state", lambda t, h: there[:, at] if t == at else h))
    close(cache["y", layer], expected["y"])
    plain = model.run_with_cache(tokens)[1]
    close(cache["y", layer][:, :at], plain["y", layer][:, :at])
    assert not torch.allclose(cache["y", layer][:, at:], plain["y", layer][:, at:])


@pytest.mark.parametrize(("kind", "layer"), LAYERS)
def test_cutting_an_entry_of_the_pattern_takes_its_term_from_y(kind: str, layer: int, tokens: Tensor) -> None:
    model, mixer = wide_model(kind, layer)
    name, unit, query, key = f"blocks.{layer}.mixer.hook_pattern", 4, 5, 2

    def cut(pattern: Tensor, hook: Any) -> Tensor:
        pattern = pattern.clone()
        pattern[:, unit, query, key] = 0
        return pattern

    _, plain = model.run_with_cache(tokens)
    with model.hooks([(name, cut)]):
        logits, cache = model.run_with_cache(tokens)
    x = mixer.like_y(plain["conv", layer][..., : mixer.cfg.d_inner])
    expected = plain["y", layer].clone()
    weight = plain["mixer.pattern", layer][:, unit, query, key]
    expected[:, query, unit] -= weight.reshape(3, *[1] * (x.ndim - 3)) * x[:, key, unit]
    close(cache["y", layer], expected)
    assert weight.abs().max() > 1e-7
    units = "ssm_head" if isinstance(mixer, Mamba2) else "channel"
    edit = Edit("mixer.pattern", {"layer": layer, units: unit, "query": query, "key": key}, "zero")
    pairs = interp.PromptPairs.from_tokens(tokens.tolist(), answers=[(1, 2)] * 3)
    frame = sweep(model, pairs, [Variant([edit])], base="clean", source="clean", progress=False)
    assert frame["value"].tolist() == pytest.approx((logits[:, -1, 1] - logits[:, -1, 2]).tolist(), abs=1e-9)


def test_heads_of_a_group_share_B_and_C() -> None:
    model, mixer = wide_model("mamba2", 0)
    _, cache = model.run_with_cache(torch.tensor([[3, 1, 4, 1, 5]]))
    pattern = cache["mixer.pattern", 0][0] - torch.diag_embed(mixer.D[:, None].expand(-1, 5))
    delta, A = cache["delta", 0][0], -mixer.A_log.exp()
    for head in range(6):
        for query in range(5):
            for key in range(query + 1):
                C, B = cache["C", 0][0, query, head // 3], cache["B", 0][0, key, head // 3]
                decay = torch.exp(A[head] * delta[key + 1 : query + 1, head].sum())
                close(pattern[head, query, key], C @ B * decay * delta[key, head])


def test_step_sizes_stay_in_their_limits(tokens: Tensor) -> None:
    limits = (0.05, 0.8)
    _, free = make("mamba2", dt_limit=None).run_with_cache(tokens)
    _, bounded = make("mamba2").run_with_cache(tokens)
    assert free["delta", 0].min() < limits[0] and free["delta", 0].max() > limits[1]
    torch.testing.assert_close(bounded["delta", 0], free["delta", 0].clamp(*limits))


@pytest.mark.parametrize("d_conv", [1, 2, 6])
@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_convolutions_of_any_length(kind: str, d_conv: int, tokens: Tensor) -> None:
    model, mixer = wide_model(kind, 0, d_conv=d_conv)
    logits, cache = model.run_with_cache(tokens)
    close(cache["conv", 0], by_hand(mixer, read_by(model, 0, cache))["conv"])
    past = PastKeyValues(2)
    parts = [model(part, past_kv_cache=past) for part in torch.tensor_split(tokens, [1, 2, 5], dim=1)]
    close(torch.cat(parts, dim=1), logits)


SITES = ["in", "conv", "delta", "B", "C", "state", "mixer.pattern", "y", "gate", "gated", "out", "mixer_in"]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(("kind", "layer"), [("mamba", 0), ("mamba2", 1), ("hybrid", 0)])
def test_gradients_equal_finite_differences(kind: str, layer: int, site: str, tokens: Tensor) -> None:
    model, _ = wide_model(kind, layer)
    model.requires_grad_(True)
    name = interp.get_act_name(site, layer)
    gradients: list[Tensor] = []

    def value(change: Callable[[Tensor, Any], Tensor | None]) -> Tensor:
        return model.run_with_hooks(tokens, fwd_hooks=[(name, change)])[:, -1, 3].sum()

    with model.hooks(bwd_hooks=[(name, lambda g, hook: gradients.append(g.clone()))]):
        model(tokens)[:, -1, 3].sum().backward()
    noise = torch.randn(gradients[0].shape, dtype=torch.float64)
    noise = noise.tril() if site == "mixer.pattern" else noise
    if site == "state":
        noise[:, [0, 1, 3, 4, 5, 6]] = 0
    up, down = (value(lambda x, hook, s=s: x + s * 1e-6 * noise) for s in (1, -1))
    assert float((gradients[0] * noise).sum()) == pytest.approx(float((up - down).detach() / 2e-6), rel=1e-5, abs=1e-8)


def test_reading_states_leaves_the_gradients_of_weights_as_they_are(recurrent: GPT, tokens: Tensor) -> None:
    model, name = recurrent.double(), "*mixer.hook_state"
    found = []
    for run in (
        lambda: model(tokens, return_type="loss"),
        lambda: model.run_with_cache(tokens, return_type="loss", names_filter=name)[0],
        lambda: model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[(name, lambda h, hook: None)]),
    ):
        model.zero_grad()
        run().backward()
        found.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    for plain, *others in zip(*found, strict=True):
        for other in others:
            close(other, plain)


def test_no_gradient_is_made_up_at_a_state_that_is_changed(tokens: Tensor) -> None:
    name = "blocks.0.mixer.hook_state"
    with pytest.raises(HookError, match="of what the hook returns"):
        make("mamba").run_with_hooks(
            tokens, fwd_hooks=[(name, lambda h, hook: 2 * h)], bwd_hooks=[(name, lambda g, hook: None)]
        )


def test_states_and_pattern_of_one_layer_are_not_changed_together(tokens: Tensor) -> None:
    model = make("mamba")
    both = [(f"blocks.0.mixer.hook_{site}", lambda x, hook: 2 * x) for site in ("state", "pattern")]
    with pytest.raises(HookError, match="two ways to the same y"):
        model.run_with_hooks(tokens, fwd_hooks=both)
    pairs = make_pairs((5, 4))
    crossed = [
        Variant([Edit("state", {"layer": one}, "zero"), Edit("pattern", {"layer": 1 - one}, "scale", 0.5)])
        for one in (0, 1)
    ]
    values = sweep(model, pairs, crossed, progress=False)["value"].tolist()  # they share no chunk
    for at, one in enumerate(crossed):
        assert values[2 * at : 2 * at + 2] == pytest.approx(
            sweep(model, pairs, [one], progress=False)["value"].tolist()
        )


def test_the_pattern_is_of_whole_prompts(tokens: Tensor) -> None:
    model, past = make("mamba2"), PastKeyValues(2)
    model(tokens[:, :3], past_kv_cache=past)
    with pytest.raises(HookError, match="is of whole prompts: run them without past_kv_cache"):
        model.run_with_cache(tokens[:, 3:], past_kv_cache=past, names_filter="*mixer.hook_pattern")


@pytest.mark.parametrize("kind", RECURRENT)
def test_kept_states_copy_and_pickle(kind: str, tokens: Tensor) -> None:
    model, past = make(kind).requires_grad_(False), PastKeyValues(len(RECURRENT[kind]["layer_types"]))
    model(tokens[:, :4], past_kv_cache=past)
    twins = [copy.deepcopy(past), pickle.loads(pickle.dumps(past))]
    expected = model(tokens[:, 4:], past_kv_cache=past)
    for twin in twins:
        assert len(twin) == 4 and torch.equal(model(tokens[:, 4:], past_kv_cache=twin), expected)
    again = PastKeyValues(len(past._room))
    model(tokens[:, :4], past_kv_cache=again)
    with pytest.raises(PromptError, match="another model"):
        copy.deepcopy(model)(tokens[:, 4:], past_kv_cache=copy.deepcopy(again))


def test_what_another_model_or_batch_has_left_is_refused(tokens: Tensor) -> None:
    model, past = make("mamba"), PastKeyValues(2)
    model(tokens[:, :3], past_kv_cache=past)
    with pytest.raises(PromptError, match="holds what another model has computed"):
        make("mamba")(tokens[:, 3:], past_kv_cache=past)
    with pytest.raises(PromptError, match="holds 3 prompts, but 2 are to be continued"):
        model(tokens[:2, 3:], past_kv_cache=past)
    with pytest.raises(PromptError, match="made for 3 layers; this model has 2"):
        model(tokens, past_kv_cache=PastKeyValues(3))


def test_masks_that_a_recurrence_cannot_follow_are_refused(tokens: Tensor) -> None:
    model = make("hybrid")
    gap = torch.ones_like(tokens, dtype=torch.bool)
    gap[1, 2] = False
    with pytest.raises(PromptError, match="padding between real tokens"):
        model(tokens, attention_mask=gap)
    right = torch.ones_like(tokens, dtype=torch.bool)
    right[1, 5:] = False
    with pytest.raises(PromptError, match="must be padded on the left"):
        model(tokens, attention_mask=right, past_kv_cache=PastKeyValues(3))
    with pytest.raises(PromptError, match="padding between real tokens"):
        past = PastKeyValues(3)
        model(tokens, past_kv_cache=past)
        model(tokens, attention_mask=right.flip(1), past_kv_cache=past)


def test_a_state_of_the_wrong_shape_is_refused(tokens: Tensor) -> None:
    model, pairs = make("mamba"), make_pairs((5, 4))
    edit = Edit("state", {"layer": 0, "pos": 2}, source=torch.zeros(24, 4))
    with pytest.raises(PromptError, match="does not broadcast"):
        sweep(model, pairs, [Variant([edit])], progress=False)
    with pytest.raises(HookError, match=r"expected \[batch, pos, channel, d_state\] = \[3, 7, 24, 3\]"):
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.mixer.hook_state", lambda h, hook: h[..., :2])])
    mixer = model.block(0).mixer
    assert mixer is not None
    x = torch.zeros(1, 2, 24)
    with pytest.raises(PromptError, match=r"\[1, 24, 3\]"):
        mixer.scan(x, x, mixer.A, x[..., :3], x[..., :3], state=torch.zeros(1, 24, 4))


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, cache, tokens: cache["z", 0],
        lambda model, cache, tokens: Edit("z", {"layer": 0}).name(model.cfg),
        lambda model, cache, tokens: model.run_with_cache(tokens, names_filter="blocks.0.attn.hook_z"),
        lambda model, cache, tokens: model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_z", print)]),
        lambda model, cache, tokens: model.run_with_cache(tokens, names_filter="blocks.0.hook_attn_out"),
    ],
)
@pytest.mark.parametrize("kind", ["mamba", "mamba2", "hybrid"])
def test_a_site_that_a_layer_lacks_is_answered_with_those_it_has(kind: str, ask: Any, tokens: Tensor) -> None:
    model = make(kind)
    _, cache = model.run_with_cache(tokens)
    with pytest.raises(UnknownName, match=r"layer 0 has no attention, but a state-space mixer with the sites in, "):
        ask(model, cache, tokens)


def test_other_parts_that_a_layer_lacks_are_answered_too(tokens: Tensor) -> None:
    model = make("one_part_a_layer")
    _, cache = model.run_with_cache(tokens)
    for key, says in {
        ("y", 2): "layer 2 has no state-space mixer, but attention with the sites q, k, v, ",
        ("z", 0): "layer 0 has no attention, but an MLP with the sites pre, post",
        ("post", 1): "layer 1 has no MLP, but a state-space mixer with the sites in, ",
    }.items():
        with pytest.raises(UnknownName, match=says):
            cache[key]
    with pytest.raises(UnknownName, match="this model has no attention, but a state-space mixer"):
        make("mamba").run_with_cache(tokens, names_filter="*hook_z")
    with pytest.raises(UnknownName, match=r"its full name is 'blocks\.\*\.mixer\.hook_pattern'"):
        make("mamba").run_with_cache(tokens, names_filter="pattern")


def test_what_needs_heads_says_what_there_is(tokens: Tensor) -> None:
    model = make("mamba")
    _, cache = model.run_with_cache(tokens)
    with pytest.raises(UnknownName, match="no attention heads: decompose_resid"):
        cache.stack_head_results()
    with pytest.raises(UnknownName, match="mode='attn': choose from all, mixer"):
        cache.decompose_resid(mode="attn")
    for name in ("b_O", "W_Q", "W_in"):
        with pytest.raises(UnknownName, match=f"no {name}; its layers are made of: mamba"):
            getattr(model, name)
    with pytest.raises(UnknownName, match="layer 1 has no attention heads; layers of this model that have: none"):
        model.head_results(1, torch.zeros(1))
    hybrid = make("hybrid")
    with pytest.raises(UnknownName, match="layer 2 has no attention heads; layers of this model that have: 1"):
        hybrid.attention(2)
    with pytest.raises(UnknownName, match=r"b_O is not in every layer but in 1: take blocks\[l\].attn.b_O of each"):
        _ = hybrid.b_O
    _, cache = hybrid.run_with_cache(tokens)
    with pytest.raises(UnknownName, match="layer 0 has no MLP that could read the residual stream"):
        cache.decompose_resid(0, mlp_input=True, apply_ln=True)


def test_components_of_hybrids_have_the_names_of_what_wrote_them(tokens: Tensor) -> None:
    _, cache = make("hybrid").run_with_cache(tokens)
    _, labels = cache.decompose_resid(return_labels=True)
    assert labels == ["embed", "0_mixer_out", "1_attn_out", "1_mlp_out", "2_mixer_out", "2_mlp_out"]
    _, labels = cache.decompose_resid(mode="mixer", incl_embeds=False, return_labels=True)
    assert labels == ["0_mixer_out", "2_mixer_out"]
    _, labels = cache.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels == ["0_pre", "1_pre", "1_mid", "2_pre", "2_mid", "final_post"]
    heads, labels = cache.stack_head_results(incl_remainder=True, return_labels=True)
    assert labels == ["L1H0", "L1H1", "L1H2", "L1H3", "remainder"]
    torch.testing.assert_close(heads.sum(0), cache["resid_post", -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", range(4))
def test_components_reach_the_norm_that_their_reader_has(layer: int, tokens: Tensor) -> None:
    model = make("one_part_a_layer")
    _, cache = model.run_with_cache(tokens)
    rows = cache.decompose_resid(layer, apply_ln=True)
    norm = "ln2" if model.cfg.mixer(layer) is None else "ln1"
    weight = getattr(model.block(layer), norm).w
    expected = cache["normalized", layer, norm] * weight.detach()
    torch.testing.assert_close(rows.sum(0), expected, rtol=1e-4, atol=1e-5)


STATES = {"n_layers": 2, "d_model": 16, "n_ctx": 24, "d_vocab": 29, "d_inner": 24, "d_ssm_head": 4}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layer_types": ("mamba", "mama2")}, "layer_types='mama2' is not one of .*did you mean 'mamba2'"),
        ({"layer_types": ("mamba",)}, "layer_types names 1 layers, expected one for each of n_layers=2"),
        ({"layer_types": ("mamba",) * 2, "attn_only": True}, "attn_only=True contradicts layer_types"),
        ({"layer_types": ("mamba",) * 2, "attention_dir": "bidirectional"}, "which only look back"),
        ({"layer_types": ("mamba2",) * 2, "d_ssm_head": 5}, "d_inner=24 must be a multiple of d_ssm_head=5"),
        ({"layer_types": ("mamba2",) * 2, "n_ssm_groups": 4}, "n_ssm_groups=4 must divide the 6 heads"),
        ({"layer_types": ("mamba2",) * 2, "dt_limit": (0.5, 0.1)}, r"dt_limit must be \(least, most\)"),
        ({"layer_types": ("mamba2",) * 2, "dt_limit": (0.0, 1e308)}, r"infinite or a float32 number"),
        ({"layer_types": ("mamba2",) * 2, "dt_limit": 0.5}, r"dt_limit must be \(least, most\)"),
        ({"layer_types": ("mamba",) * 2, "d_conv": 0}, "d_conv must be at least 1"),
        (
            {"layer_types": ("mamba",) * 2, "positional_embedding_type": "rotary"},
            "'rotary' needs a layer with attention",
        ),
        ({"layer_types": ("mamba", "attn")}, "a model with attention needs d_head or n_heads"),
        ({"layer_types": ("mamba",) * 2, "gated_mlp": True}, "gated_mlp=True contradicts layers without an MLP"),
    ],
)
def test_layers_that_cannot_be_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ModelConfig(**{**STATES, **changes})


def test_a_mamba_has_state_space_layers() -> None:
    with pytest.raises(ConfigError, match="name them in layer_types"):
        Mamba(ModelConfig(n_layers=2, d_model=16, n_ctx=24, d_vocab=29, n_heads=4))
    assert isinstance(interp.Mamba(make("hybrid").cfg), GPT)


@pytest.mark.parametrize("kind", RECURRENT)
def test_configurations_survive_plain_values_and_changes(kind: str) -> None:
    cfg = make(kind).cfg
    assert ModelConfig.from_dict(cfg.to_dict()) == cfg
    assert ModelConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
    assert cfg.replace(n_ctx=48).replace(n_ctx=24) == cfg
    plain = {"positional_embedding_type": "none", "rotary_dim": None, "gated_mlp": False}
    alone = cfg.replace(n_layers=1, layer_types=("mamba",), **plain)
    assert alone.mixers == {"mamba"} and alone.n_heads == 0
    assert hash(cfg) == hash(ModelConfig.from_dict(cfg.to_dict()))


@pytest.mark.parametrize("kind", RECURRENT)
def test_everything_twice_gives_the_same_bits(kind: str, tokens: Tensor) -> None:
    model, pairs = make(kind), make_pairs((6, 1, 5), shared=1)
    assert torch.equal(model(tokens), model(tokens))
    names = [name for name in model.hook_dict if "mixer" in name]
    variants = [Variant([Edit(name)], {"name": name}) for name in names]
    assert sweep(model, pairs, variants, progress=False).equals(sweep(model, pairs, variants, progress=False))
    with torch.inference_mode():
        logits, cache = model.run_with_cache(tokens, names_filter=names)
        frame = sweep(model, pairs, variants, progress=False)
    torch.testing.assert_close(logits, model(tokens).detach(), rtol=1e-5, atol=1e-5)
    assert set(cache) == set(names)
    assert frame["value"].tolist() == pytest.approx(
        sweep(model, pairs, variants, progress=False)["value"].tolist(), abs=1e-5
    )


def test_hooks_on_states_are_gone_when_one_raises(tokens: Tensor) -> None:
    model = make("mamba")

    def explode(x: Tensor, hook: Any) -> Tensor:
        raise ZeroDivisionError

    for site in ("state", "pattern", "in"):
        with pytest.raises(ZeroDivisionError):
            model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.1.mixer.hook_{site}", explode)])
        with pytest.raises(ZeroDivisionError):
            sweep(model, make_pairs((5,)), [Variant([Edit(site, {"layer": 1}, source=explode)])], progress=False)
    assert not any(point.has_hooks for point in model.hook_dict.values())


@pytest.mark.parametrize("types", [("mamba",), ("mamba2",), ("mamba2+mlp",)])
def test_one_layer_and_one_token(types: tuple[str, ...]) -> None:
    model = make("mamba", n_layers=1, layer_types=types)
    _, cache = model.run_with_cache(torch.tensor([[5]]))
    mixer = model.block(0).mixer
    assert mixer is not None
    close_enough = {"rtol": 1e-4, "atol": 1e-5}
    for name, value in by_hand(mixer, read_by(model, 0, cache)).items():
        torch.testing.assert_close(cache[name, 0], value.detach(), **close_enough)
    pairs = interp.PromptPairs.from_tokens([[5]], [[6]], answers=[(1, 2)])
    variants = [Variant([Edit(name)]) for name in ("hook_embed", "blocks.0.mixer.hook_state")]
    frame = sweep(model, pairs, variants, progress=False)
    assert frame["effect"][0] == pytest.approx(1, abs=1e-4)
    with pytest.raises(PromptError, match="the prompt is empty"):
        model(torch.zeros(1, 0, dtype=torch.long))


def test_no_layers_at_all(tokens: Tensor) -> None:
    model = make("gpt2", n_layers=0)
    logits, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(logits, model.unembed(model.ln_final(cache["embed"] + cache["pos_embed"])))
