"""The residual stack against identities: padding, prefixes, partial runs, hand-computed attention, gradients."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from makers import CAUSAL, RECURRENT, close, make
from torch import Tensor

from interp.errors import ConfigError, PromptError, UnknownName
from interp.hooked.past import PastKeyValues
from interp.models.gpt import GPT

EVERY_CAUSAL = [*CAUSAL, *RECURRENT]
# Of the two others, keys cannot be kept beyond the trained context.
CONTINUED = [kind for kind in EVERY_CAUSAL if kind not in ("dynamic", "longrope")]


def test_logits_have_the_vocabulary_of_the_answers(any_model: GPT, tokens: Tensor) -> None:
    assert any_model(tokens).shape == (3, 7, any_model.cfg.d_vocab_out)


def test_a_single_row_of_tokens_is_a_batch_of_one(any_model: GPT, tokens: Tensor) -> None:
    close(any_model(tokens[0]), any_model(tokens[:1]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_number_at_real_positions(any_model: GPT, tokens: Tensor, side: str) -> None:
    lengths = [7, 4, 1]
    batch, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.bool)
    for row, n in enumerate(lengths):
        at = slice(9 - n, 9) if side == "left" else slice(0, n)
        batch[row, at], mask[row, at] = tokens[row, :n], True
    logits, cache = any_model.run_with_cache(batch, attention_mask=mask)
    for row, n in enumerate(lengths):
        alone, own = any_model.run_with_cache(tokens[row : row + 1, :n])
        close(logits[row][mask[row]], alone[0])
        for name in own:
            if "batch" in any_model.hook_dict[name].site.axes and "pos" in any_model.hook_dict[name].site.axes:
                close(cache[name][row][mask[row]], own[name][0], rtol=1e-4)
        real = mask[row].nonzero()[:, 0]
        for name in (name for name in any_model.hook_dict if name.endswith("hook_pattern")):
            close(cache[name][row][:, real][:, :, real], own[name][0], rtol=1e-4)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("kind", EVERY_CAUSAL)
def test_later_tokens_do_not_change_earlier_logits(kind: str, tokens: Tensor) -> None:
    model = make(kind)
    other = tokens.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 29
    close(model(tokens)[:, :5], model(other)[:, :5])
    assert not torch.allclose(model(tokens)[:, 5:], model(other)[:, 5:])


def test_bidirectional_attention_sees_later_tokens(tokens: Tensor) -> None:
    model = make("bidirectional")
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % 29
    assert not torch.allclose(model(tokens)[:, 0], model(other)[:, 0])


@pytest.mark.parametrize("kind", CONTINUED)
@pytest.mark.parametrize("cuts", [[3], [1, 2, 6]])
def test_a_prefix_whose_keys_were_kept_gives_the_same_logits(kind: str, tokens: Tensor, cuts: list[int]) -> None:
    model = make(kind)
    past = PastKeyValues(model.cfg.n_layers)
    parts = [model(part, past_kv_cache=past) for part in torch.tensor_split(tokens, cuts, dim=1)]
    close(torch.cat(parts, dim=1), model(tokens))
    assert len(past) == 7


@pytest.mark.parametrize("kind", CONTINUED)
def test_a_padded_prefix_is_remembered(kind: str, tokens: Tensor) -> None:
    model = make(kind)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, :3] = False
    past = PastKeyValues(model.cfg.n_layers)
    model(tokens[:, :5], attention_mask=mask[:, :5], past_kv_cache=past)
    close(
        model(tokens[:, 5:], attention_mask=mask[:, 5:], past_kv_cache=past), model(tokens, attention_mask=mask)[:, 5:]
    )


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_keys_that_a_longer_prompt_turns_otherwise_are_refused(kind: str, tokens: Tensor) -> None:
    model = make(kind)
    past = PastKeyValues(model.cfg.n_layers)
    within = model.cfg.rope_scaling.original_n_ctx
    parts = [model(tokens[:, at], past_kv_cache=past) for at in (slice(0, 3), slice(3, within))]
    close(torch.cat(parts, dim=1), model(tokens[:, :within]))
    with pytest.raises(PromptError, match=f"keys of {within} earlier positions cannot be kept for a prompt of 7"):
        model(tokens[:, within:], past_kv_cache=past)
    padded = torch.cat([torch.zeros_like(tokens[:, : 7 - within]), tokens[:, :within]], dim=1)
    mask = torch.ones_like(padded).bool()
    mask[:, : 7 - within] = False
    past = PastKeyValues(model.cfg.n_layers)
    parts = [model(padded[:, at], attention_mask=mask[:, at], past_kv_cache=past) for at in (slice(0, 5), slice(5, 7))]
    close(torch.cat(parts, dim=1), model(padded, attention_mask=mask))


def test_the_layers_can_be_run_in_two_halves(any_model: GPT, tokens: Tensor) -> None:
    half = any_model(tokens, stop_at_layer=1)
    close(half, any_model.run_with_cache(tokens)[1]["resid_pre", 1])
    assert any_model(tokens, return_type=None) is None
    if any_model.cfg.shared is not None:
        with pytest.raises(PromptError, match="run the model from its tokens, without start_at_layer"):
            any_model(half, start_at_layer=1)
        return
    close(any_model(half, start_at_layer=1), any_model(tokens))
    close(any_model(half, start_at_layer=1 - any_model.cfg.n_layers), any_model(tokens))


def test_fused_attention_equals_explicit(model: GPT, tokens: Tensor) -> None:
    explicit, _ = model.run_with_cache(tokens, names_filter="*.hook_pattern")
    close(explicit, model(tokens))


def test_the_pattern_equals_one_written_out(tokens: Tensor) -> None:
    model = make("gpt2")
    _, cache = model.run_with_cache(tokens, names_filter=["*hook_q", "*hook_k", "*hook_v", "*hook_z", "*pattern"])
    q, k, v = (cache[name, 0].double() for name in "qkv")
    for head in range(4):
        scores = q[:, :, head] @ k[:, :, head].transpose(1, 2) / 2.0
        scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
        pattern = scores.exp() / scores.exp().sum(-1, keepdim=True)
        close(cache["pattern", 0][:, head].double(), pattern)
        close(cache["z", 0][:, :, head].double(), pattern @ v[:, :, head])


def test_grouped_heads_share_their_keys_and_values(tokens: Tensor) -> None:
    grouped = make("llama_gqa")
    full = make("llama_gqa", n_key_value_heads=4)
    with torch.no_grad():
        for small, large in zip(grouped.blocks, full.blocks, strict=True):
            large.load_state_dict({k: v for k, v in small.state_dict().items() if k != "attn.W_qkv"}, strict=False)
            large.attn.W_Q.copy_(small.attn.W_Q)
            large.attn.W_K.copy_(small.attn.W_K.repeat_interleave(2, dim=0))
            large.attn.W_V.copy_(small.attn.W_V.repeat_interleave(2, dim=0))
        for part in ("embed", "ln_final", "unembed"):
            getattr(full, part).load_state_dict(getattr(grouped, part).state_dict())
    close(grouped(tokens), full(tokens))
    assert grouped.W_K.shape == (2, 2, 16, 4) and grouped.W_Q.shape == (2, 4, 16, 4)


def test_rotation_depends_on_distance_alone(tokens: Tensor) -> None:
    model = make("llama")
    near = model(tokens)
    context = torch.cat([torch.zeros(3, 5, dtype=torch.long), tokens], dim=1)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[:, :5] = False
    attn = model.blocks[0].attn
    q = torch.randn(1, 12, 4, 4)
    from interp.forward.forward_context import make_context

    angles = make_context(model.cfg, 12, device=q.device, dtype=q.dtype).sights[attn.kind]
    same = q[:, :1].expand(-1, 12, -1, -1)
    turned = attn.rotate(same, angles)
    products = torch.einsum("bqhd,bkhd->hqk", turned, turned)
    for offset in range(1, 4):
        diagonal = products.diagonal(offset, 1, 2)
        close(diagonal, diagonal[:, :1].expand_as(diagonal), rtol=1e-4)
    close(model(context, attention_mask=mask)[:, 5:], near)


def test_alibi_subtracts_slope_times_distance() -> None:
    model = make("alibi", n_heads=4)
    _, cache = model.run_with_cache(torch.tensor([[1, 2, 3, 4]]))
    attn = model.blocks[0].attn
    plain = torch.einsum("bqhd,bkhd->bhqk", cache["q", 0], cache["k", 0]) / 2
    difference = (cache["attn_scores", 0] - plain)[0, :, 3]
    slopes = torch.tensor([2**-2, 2**-4, 2**-6, 2**-8])  # Press et al. 2021, section 3: 2^(-8/n), ...
    close(difference, -slopes[:, None] * torch.tensor([3.0, 2.0, 1.0, 0.0]), rtol=1e-4)
    assert attn.cfg.positional_embedding_type == "alibi"


def test_sinusoidal_positions_are_those_of_the_paper() -> None:
    table = make("sinusoidal").W_pos
    for pos in (0, 1, 5):
        for i in (0, 3, 7):
            angle = torch.tensor(pos / 10000 ** (2 * i / 16), dtype=torch.float64)
            close(table[pos, 2 * i : 2 * i + 2].double(), torch.stack([angle.sin(), angle.cos()]), rtol=1e-6)


def test_loss_is_the_mean_cross_entropy_of_the_next_token(tokens: Tensor) -> None:
    model = make("llama_gqa")
    logits, loss = model(tokens, return_type="both")
    expected = -logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    close(loss, expected.mean())
    close(model(tokens, return_type="loss", loss_per_token=True), expected)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, 4:] = False
    padded = model(tokens, return_type="loss", attention_mask=mask)
    close(padded, torch.cat([expected[0, :3], expected[1], expected[2]]).mean())


def test_weights_are_views_and_stacks(tokens: Tensor) -> None:
    model = make("llama_gqa")
    with torch.no_grad():
        before = model(tokens)
        model.blocks[1].attn.W_O[2] = 0.0
        assert not torch.allclose(model(tokens), before)
    assert bool((model.W_O[1, 2] == 0).all())
    x = torch.randn(5, 16)
    mlp = model.blocks[0].mlp
    close(mlp(x), (torch.nn.functional.silu(x @ mlp.W_gate) * (x @ mlp.W_in)) @ mlp.W_out)
    with pytest.raises(UnknownName, match="W_gate"):
        _ = make("gpt2").W_gate


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(any_model: GPT, tokens: Tensor, dtype: torch.dtype) -> None:
    logits = any_model(tokens)
    half = copy.deepcopy(any_model).to(dtype)(tokens)
    assert half.dtype == dtype
    assert float((half.float() - logits).detach().abs().max()) < 0.15 * float(logits.detach().abs().max())


def in_steps(model: GPT, tokens: Tensor, past: PastKeyValues, sizes: tuple[int, ...] = (3, 1, 2, 1)) -> Tensor:
    return torch.cat([model(part, past_kv_cache=past) for part in tokens.split(sizes, 1)], dim=1)


def slopes(model: GPT, value: Tensor) -> list[Tensor]:
    parameters, end = list(model.parameters()), value.square().sum()
    return list(torch.autograd.grad(end, parameters, materialize_grads=True, retain_graph=True))


@pytest.mark.parametrize("kind", CONTINUED)
def test_gradients_go_through_kept_keys_and_states(kind: str, tokens: Tensor) -> None:
    model = make(kind).double()
    past = PastKeyValues(model.cfg.n_layers)
    logits = in_steps(model, tokens, past)
    torch.testing.assert_close(logits, model(tokens), rtol=1e-6, atol=1e-8)
    for stepwise, whole in zip(slopes(model, logits), slopes(model, model(tokens)), strict=True):
        torch.testing.assert_close(stepwise, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", CONTINUED)
def test_one_run_continued_twice_has_both_gradients(kind: str, tokens: Tensor) -> None:
    model = make(kind).double()
    past = PastKeyValues(model.cfg.n_layers)
    model(tokens[:, :4], past_kv_cache=past)
    twin = copy.deepcopy(past)
    ends = [model(tokens[:, 4:], past_kv_cache=past), model(tokens[:, 4:].flip(1), past_kv_cache=twin)]
    wholes = [model(tokens)[:, 4:], model(torch.cat((tokens[:, :4], tokens[:, 4:].flip(1)), 1))[:, 4:]]
    for end, whole in zip(ends, wholes, strict=True):
        torch.testing.assert_close(end, whole, rtol=1e-6, atol=1e-8)
        for stepwise, expected in zip(slopes(model, end), slopes(model, whole), strict=True):
            torch.testing.assert_close(stepwise, expected, rtol=1e-5, atol=1e-6)
    there = pickle.loads(pickle.dumps(past))
    assert len(there) == 7 and not any(part.requires_grad for room in there._room if room for part in room)


MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


@pytest.mark.parametrize("first", MODES)
@pytest.mark.parametrize("then", MODES)
@pytest.mark.parametrize("kind", ["gpt2", "llama_gqa", "hybrid"])
def test_a_prefix_goes_on_in_another_mode(kind: str, first: str, then: str, tokens: Tensor) -> None:
    model = make(kind)
    past = PastKeyValues(model.cfg.n_layers)
    with MODES[first]():
        parts = [model(tokens[:, :2], past_kv_cache=past), model(tokens[:, 2:3], past_kv_cache=past)]
    with MODES[then]():
        parts += [model(tokens[:, at : at + 1], past_kv_cache=past) for at in (3, 4)]
    with MODES[first]():
        parts += [model(tokens[:, 5:], past_kv_cache=past)]
        torch.testing.assert_close(torch.cat([part.detach() for part in parts], 1), model(tokens).detach())


@pytest.mark.parametrize("kind", CONTINUED)
def test_a_forward_that_fails_adds_nothing_to_what_is_kept(kind: str, tokens: Tensor) -> None:
    model = make(kind)
    past = PastKeyValues(model.cfg.n_layers)

    def explode(value: Tensor, hook: Any) -> None:
        raise ZeroDivisionError

    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, 0] = False
    whole = model(tokens, attention_mask=mask)
    last = model.cfg.n_layers - 1
    ends = [name for name in model.hook_dict if name.startswith("ln_final")]
    with torch.no_grad():
        model(tokens[:, :4], attention_mask=mask[:, :4], past_kv_cache=past)
        for name in ["hook_embed", "blocks.1.hook_resid_pre", f"blocks.{last}.hook_resid_post", *ends]:
            with pytest.raises(ZeroDivisionError):
                model.run_with_hooks(tokens[:, 4:6], past_kv_cache=past, fwd_hooks=[(name, explode)])
            assert len(past) == 4
        with pytest.raises(PromptError):
            model(tokens[:, 4:], attention_mask=mask[:, :2], past_kv_cache=past)
        end = model(tokens[:, 4:], attention_mask=mask[:, 4:], past_kv_cache=past)
    torch.testing.assert_close(end, whole[:, 4:].detach())


@pytest.mark.parametrize("kind", ["llama_gqa", "bidirectional", *RECURRENT])
def test_models_copy_and_pickle_with_their_hook_points(kind: str, tokens: Tensor) -> None:
    model = make(kind)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        close(twin(tokens), model(tokens))
        with pytest.raises(Exception, match="never ran"), twin.hooks([("hook_embed", lambda x, hook: None)]):
            model(tokens)
        assert twin.run_with_hooks(tokens, fwd_hooks=[("hook_embed", lambda x, hook: x * 0)]).isfinite().all()


def test_seeded_models_are_equal_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    a, b = make("gpt2"), make("gpt2")
    assert torch.equal(a.W_E, b.W_E) and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (torch.zeros(1, 0, dtype=torch.long), "empty"),
        (torch.zeros(1, 25, dtype=torch.long), "longer than the model's context of 24"),
        (torch.tensor([[29]]), "token id 29 is out of range"),
        (torch.tensor([[-1]]), "token id -1 is out of range"),
        (torch.zeros(1, 2, 3, dtype=torch.long), "whole numbers"),
        (torch.zeros(1, 2), "whole numbers"),
        ("text", "no tokenizer"),
    ],
)
def test_prompts_it_cannot_take_are_refused(bad: Tensor | str, says: str) -> None:
    with pytest.raises(PromptError, match=says):
        make("gpt2")(bad)


def test_masks_that_do_not_fit_are_refused(tokens: Tensor) -> None:
    model = make("gpt2")
    with pytest.raises(PromptError, match=r"expected \[batch, pos\] = \[3, 7\]"):
        model(tokens, attention_mask=torch.ones(3, 6))
    empty = torch.ones(3, 7)
    empty[1] = 0
    with pytest.raises(PromptError, match="prompt 1 is empty"):
        model(tokens, attention_mask=empty)


def test_layers_out_of_range_are_refused(tokens: Tensor) -> None:
    with pytest.raises(UnknownName, match="stop_at_layer=3"):
        make("gpt2")(tokens, stop_at_layer=3)
    with pytest.raises(PromptError, match="residual stream"):
        make("gpt2")(tokens, start_at_layer=1)
    with pytest.raises(PromptError, match="return_type"):
        make("gpt2")(tokens, return_type="logit")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"act_fn": "gleu"}, "did you mean 'gelu'"),
        ({"n_key_value_heads": 3}, "multiple of n_key_value_heads=3"),
        ({"rotary_dim": 3, "positional_embedding_type": "rotary"}, "rotary_dim must be even"),
        ({"normalization_type": "BN"}, "normalization_type='BN'"),
        ({"d_model": 0}, "d_model must be"),
        ({"tie_word_embeddings": True, "d_vocab_out": 5}, "tied embeddings"),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make("gpt2", **changes)


def test_a_configuration_survives_plain_values() -> None:
    cfg = make("llama_gqa").cfg
    assert type(cfg).from_dict(cfg.to_dict()) == cfg
    with pytest.raises(ConfigError, match="did you mean 'n_heads'"):
        type(cfg).from_dict({**cfg.to_dict(), "n_head": 3})


def test_a_large_model_with_layers_of_two_kinds_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.models.gpt.SURELY_FITS", 1)  # so that its size is counted
    for kind in ("gemma2", "sinks", "hybrid"):
        assert make(kind).cfg.n_layers > 1


def test_norms_on_the_stream_are_those_of_torchs_own_encoder_layer(tokens: Tensor) -> None:
    model = make("vaswani", attention_dir="bidirectional")
    stream = model.run_with_cache(tokens)[1]["resid_pre", 0]
    with torch.no_grad():
        for block in model.blocks:
            theirs = torch.nn.TransformerEncoderLayer(16, 4, 64, dropout=0.0, batch_first=True, norm_first=False)
            theirs.load_state_dict({
                "self_attn.in_proj_weight": block.attn.W_qkv, "self_attn.in_proj_bias": block.attn.b_qkv,
                "self_attn.out_proj.weight": block.attn.W_z, "self_attn.out_proj.bias": block.attn.b_z,
                "linear1.weight": block.mlp.W_up, "linear1.bias": block.mlp.b_up,
                "linear2.weight": block.mlp.W_down, "linear2.bias": block.mlp.b_down,
                "norm1.weight": block.ln1.w, "norm1.bias": block.ln1.b,
                "norm2.weight": block.ln2.w, "norm2.bias": block.ln2.b,
            })  # fmt: skip
            stream = theirs(stream)
        close(model(tokens), model.unembed(stream))
