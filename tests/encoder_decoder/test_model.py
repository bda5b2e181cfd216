"""`interp.EncoderDecoder`: both stacks run, are cached and hooked, generate, and refuse what they cannot take."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.config import EncoderDecoderConfig, ModelConfig
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import ConfigError, HookError, InterpError, PromptError, UnknownName
from interp.hooked.cache import ActivationCache
from interp.models.gpt import GPT
from interp.sites import get_act_name
from tests.makers import STACKS, TINY, close, encoder_decoder

SOURCE = torch.tensor([[3, 5, 7, 11, 2], [4, 6, 8, 10, 12]])
PREFIX = torch.tensor([[1, 9, 13], [1, 2, 20]])


@pytest.fixture(params=STACKS, scope="module")
def model(request: pytest.FixtureRequest) -> EncoderDecoder:
    return encoder_decoder(request.param)


def test_every_site_is_cached_and_what_is_derived_is_what_a_forward_forms(model: EncoderDecoder) -> None:
    logits, every = model.run_with_cache(SOURCE, PREFIX, names_filter="*")
    again, usual = model.run_with_cache(SOURCE, PREFIX)
    assert set(every) == set(model.hook_dict) and len(usual) < len(every)
    close(again, logits)
    assert usual["decoder.cross_attn.q", 1] is usual["decoder.blocks.1.cross_attn.hook_q"]
    for name, value in every.items():
        sizes = {"batch": 2, "pos": 5 if name.startswith("encoder") else 3}
        if ".cross_attn.hook_k" not in name and ".cross_attn.hook_v" not in name:
            axes = model.hook_dict[name].site.axes
            expected = [sizes.get(axis, size) for axis, size in zip(axes, value.shape, strict=True)]
            assert list(value.shape) == expected
        close(usual[name], value)
        stack, _, rest = name.partition(".")
        close(getattr(usual, stack)[rest], value)


def test_derived_norms_come_from_the_stream_that_they_read(model: EncoderDecoder) -> None:
    _, every = model.run_with_cache(SOURCE, PREFIX, names_filter="*")
    _, some = model.run_with_cache(SOURCE, PREFIX, names_filter=["*resid*"])
    for name in model.hook_dict:
        if ".ln" in name and "embed" not in name:
            close(some[name], every[name])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_what_each_prompt_gives_alone(model: EncoderDecoder, side: str) -> None:
    def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        fill = [[0] * (width - len(row)) for row in rows]
        pairs = list(zip(rows, fill, strict=True))
        tokens = [gap + row if side == "left" else row + gap for row, gap in pairs]
        mask = [
            [False] * len(gap) + [True] * len(row) if side == "left" else [True] * len(row) + [False] * len(gap)
            for row, gap in pairs
        ]
        return torch.tensor(tokens), torch.tensor(mask)

    sources, prefixes = [[3, 5, 7, 11, 2], [4, 6], [9, 8, 7]], [[1, 9], [1, 2, 20, 4], [1]]
    (tokens, mask), (more, own) = padded(sources), padded(prefixes)
    logits, cache = model.run_with_cache(tokens, more, attention_mask=mask, decoder_attention_mask=own)
    pattern = cache["decoder.cross_attn.pattern", 0]
    for at, (source, prefix) in enumerate(zip(sources, prefixes, strict=True)):
        alone, its_cache = model.run_with_cache(torch.tensor([source]), torch.tensor([prefix]))
        close(logits[at][own[at]], alone[0], 2e-5)
        close(pattern[at][:, own[at]][:, :, mask[at]], its_cache["decoder.cross_attn.pattern", 0][0], 2e-5)
        assert not pattern[at][:, :, ~mask[at]].any()


def test_an_edit_in_the_encoder_reaches_every_position_of_the_decoder(model: EncoderDecoder) -> None:
    plain = model(SOURCE, PREFIX)

    def move(value: Tensor, hook: Any) -> Tensor:
        value[:, 2] += torch.arange(value.shape[-1]) % 3
        return value

    edited = model.run_with_hooks(SOURCE, PREFIX, fwd_hooks=[("encoder.blocks.1.hook_resid_pre", move)])
    assert bool(((edited - plain).abs().amax(-1) > 1e-4).all())
    later = model.run_with_hooks(SOURCE, PREFIX, fwd_hooks=[("decoder.blocks.0.hook_resid_mid", move)])
    close(later[:, :2], plain[:, :2])
    assert bool(((later - plain)[:, 2].abs().amax(-1) > 1e-4).all())


def test_every_gradient_reaches_the_encoder(model: EncoderDecoder) -> None:
    loss, cache = model.run_with_cache(SOURCE, PREFIX, "loss", incl_bwd=True)
    logits, same = model(SOURCE, PREFIX, "both")
    close(loss, same)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), PREFIX[:, 1:].flatten())
    close(loss, expected)
    assert bool(cache._tensors["encoder.hook_embed_grad"].any())
    model.zero_grad()


def test_both_halves_are_the_whole(model: EncoderDecoder) -> None:
    encoded = model.encode(SOURCE)
    close(model.decode(encoded, PREFIX), model(SOURCE, PREFIX))
    _, cache = model.run_with_cache(SOURCE, PREFIX)
    close(model.encode(cache["encoder.resid_pre", 1], start_at_layer=1).stream, encoded.stream)
    close(model.decode(encoded, cache["decoder.resid_pre", 1], start_at_layer=1), model(SOURCE, PREFIX))


def test_generation_with_kept_keys_is_that_without(model: EncoderDecoder) -> None:
    greedy = model.generate(SOURCE, 5, decoder_input=PREFIX, do_sample=False)
    assert greedy.shape == (2, 8)
    assert torch.equal(
        greedy, model.generate(SOURCE, 5, decoder_input=PREFIX, do_sample=False, use_past_kv_cache=False)
    )
    tokens = PREFIX
    for _ in range(5):
        tokens = torch.cat([tokens, model(SOURCE, tokens)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(greedy, tokens)
    mask = torch.tensor([[False, True, True, True, True]] * 2)
    drawn = model.generate(SOURCE, 4, attention_mask=mask, seed=3)
    assert drawn.shape == (2, 5) and drawn[:, 0].tolist() == [1, 1]
    assert torch.equal(drawn, model.generate(SOURCE[:, 1:], 4, seed=3))


def test_caches_can_be_copied_pickled_and_lose_their_batch(model: EncoderDecoder) -> None:
    _, cache = model.run_with_cache(SOURCE[:1], PREFIX[:1], remove_batch_dim=True)
    pattern = cache["decoder.cross_attn.pattern", 0]
    assert (
        pattern.shape == (model.cfg.decoder.n_heads, 3, 5)
        and cache.decoder["cross_attn.pattern", 0].shape == pattern.shape
    )
    close(copy.deepcopy(cache)["encoder.pattern", 1], cache["encoder.pattern", 1])
    loaded = pickle.loads(pickle.dumps(cache))
    close(loaded["decoder.hook_embed"], cache["decoder.hook_embed"])
    assert isinstance(cache.encoder, ActivationCache) and len(cache.encoder) + len(cache.decoder) == len(cache)


def test_names_of_sites_begin_with_their_stack(model: EncoderDecoder) -> None:
    assert get_act_name("decoder.z", 3) == "decoder.blocks.3.attn.hook_z"
    assert get_act_name("decoder.pattern", 3, "cross_attn") == "decoder.blocks.3.cross_attn.hook_pattern"
    assert get_act_name("encoder.scale") == "encoder.ln_final.hook_scale"
    _, cache = model.run_with_cache(SOURCE, PREFIX)
    with pytest.raises(UnknownName, match=r"which stack's 'z'\? Give cache\['decoder.z', 1\]"):
        cache["z", 1]
    with pytest.raises(UnknownName, match=r"blocks.1.attn.hook_z"):
        model.run_with_cache(SOURCE, PREFIX, names_filter="blocks.1.attn.hook_z")
    with pytest.raises(UnknownName, match="not one of this model's"):
        cache["encoder.z", 7]
    assert cache["encoder.z", -1] is cache[f"encoder.blocks.{model.cfg.encoder.n_layers - 1}.attn.hook_z"]


def test_what_cannot_be_run_is_refused(model: EncoderDecoder) -> None:
    for wrong, message in [
        (lambda: model(SOURCE, PREFIX[:1]), "the encoder has 2 prompts and the decoder 1"),
        (lambda: model(SOURCE, PREFIX + 20), "token id 40 is out of range"),
        (lambda: model(SOURCE[:, :0], PREFIX), "the encoder's prompt is empty"),
        (lambda: model(SOURCE, PREFIX[:, :0]), "the decoder's prompt is empty"),
        (lambda: model(torch.ones(2, 30, dtype=torch.long), PREFIX), "a prompt of 30 tokens is longer"),
        (lambda: model(SOURCE, PREFIX, attention_mask=torch.ones(2, 4)), "attention_mask has shape"),
        (lambda: model(SOURCE, PREFIX, "logit"), "return_type must be"),
        (lambda: model("a text", PREFIX), "no tokenizer"),
        (lambda: model(SOURCE, {1: 2}), "decoder_input must be"),
        (lambda: model.decode(SOURCE, PREFIX), "must be what model.encode gives"),
        (lambda: model.encode(SOURCE, start_at_layer=1), "needs the residual stream"),
        (lambda: model.run_with_cache(SOURCE, PREFIX, layers=[0]), "does not say of which stack"),
        (lambda: model.cfg.n_heads, "one in each stack: cfg.encoder.n_heads and cfg.decoder.n_heads"),
        (lambda: model.head_results(0, SOURCE), "model.decoder.head_results"),
        (lambda: model.decoder(PREFIX, None), "a decoder looks at what its encoder read"),
        (lambda: model.encoder.W_U, "no unembedding reads the encoder's output"),
        (lambda: model.encoder.attention(0, cross=True), "the encoder has no cross-attention"),
    ]:
        with pytest.raises(InterpError, match=message):
            wrong()
    with pytest.raises(HookError, match="returned"):
        model.run_with_hooks(SOURCE, PREFIX, fwd_hooks=[("decoder.hook_embed", lambda value, hook: value[:1])])
    silent = EncoderDecoder(EncoderDecoderConfig(model.cfg.encoder, model.cfg.decoder))
    with pytest.raises(PromptError, match="does not say which token a decoder's prompt begins with"):
        silent(SOURCE)


def test_configurations_that_do_not_fit_are_refused() -> None:
    encoder, decoder = ModelConfig(**TINY, attention_dir="bidirectional"), ModelConfig(**TINY, cross_attention=True)
    for wrong in (
        lambda: EncoderDecoderConfig(decoder, decoder),
        lambda: EncoderDecoderConfig(encoder, encoder),
        lambda: EncoderDecoderConfig(encoder.replace(d_model=8, n_heads=2), decoder),
        lambda: EncoderDecoderConfig(encoder.replace(d_vocab=30, d_vocab_out=30), decoder),
        lambda: EncoderDecoderConfig(encoder, decoder, decoder_start_token_id=29),
        lambda: decoder.replace(parallel_attn_mlp=True),
        lambda: decoder.replace(qk_norm="RMS"),
        lambda: EncoderDecoderConfig(encoder, decoder.replace(norm_placement="post")),
        lambda: EncoderDecoderConfig(encoder.replace(attn_only=True), decoder),
        lambda: GPT(decoder),
        lambda: GPT(encoder.replace(positional_embedding_type="relative")),
        lambda: EncoderDecoder(decoder),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError):
            wrong()
    cfg = EncoderDecoderConfig(encoder.replace(d_vocab=30, d_vocab_out=30), decoder, shared_embeddings=False)
    assert EncoderDecoderConfig.from_dict(cfg.to_dict()) == cfg and pickle.loads(pickle.dumps(cfg)) == cfg
    assert EncoderDecoder(cfg)(torch.tensor([[29]]), torch.tensor([[1]])).shape == (1, 1, 29)
