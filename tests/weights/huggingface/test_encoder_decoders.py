"""Families with an encoder and a decoder: logits, padding and generation are those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import ConfigError, PromptError, WeightsError
from tests.checkpoints import BART_SIZES, SEQ2SEQ, T5_SIZES, relative_difference, tiny

SOURCE = torch.randint(3, 61, (3, 23), generator=torch.Generator().manual_seed(1))
PREFIX = torch.randint(3, 61, (3, 17), generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=SEQ2SEQ, scope="module")
def both(request: pytest.FixtureRequest) -> tuple[Any, EncoderDecoder]:
    theirs = tiny(*SEQ2SEQ[request.param])
    ours = interp.load(theirs)
    assert isinstance(ours, EncoderDecoder)
    return theirs, ours


@torch.no_grad()
def test_logits_and_patterns_are_those_of_transformers(both: tuple[Any, EncoderDecoder]) -> None:
    theirs, ours = both
    logits, cache = ours.run_with_cache(SOURCE, PREFIX)
    expected = theirs(input_ids=SOURCE, decoder_input_ids=PREFIX, output_attentions=True)
    assert relative_difference(logits, expected.logits) < 1e-5
    for layer, pattern in enumerate(expected.cross_attentions):
        assert relative_difference(cache["decoder.cross_attn.pattern", layer], pattern) < 1e-5
    for layer, pattern in enumerate(expected.decoder_attentions):
        assert relative_difference(cache["decoder.pattern", layer], pattern) < 1e-5
    for layer, pattern in enumerate(expected.encoder_attentions):
        assert relative_difference(cache["encoder.pattern", layer], pattern) < 1e-5


@torch.no_grad()
def test_a_batch_padded_on_the_right_gives_the_same_logits(both: tuple[Any, EncoderDecoder]) -> None:
    theirs, ours = both
    mask, own = torch.ones_like(SOURCE), torch.ones_like(PREFIX)
    mask[1, 15:], own[2, 11:] = 0, 0
    logits = ours(SOURCE, PREFIX, attention_mask=mask, decoder_attention_mask=own)
    expected = theirs(
        input_ids=SOURCE, decoder_input_ids=PREFIX, attention_mask=mask, decoder_attention_mask=own
    ).logits
    assert relative_difference(logits[own.bool()], expected[own.bool()]) < 1e-5


@st.composite
def drawn(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A family and sizes of a model of it."""
    layers, heads = st.integers(1, 3), st.sampled_from([1, 2, 3])
    if draw(st.booleans()):
        sizes = {**T5_SIZES, "num_layers": draw(layers), "num_decoder_layers": draw(layers), "num_heads": draw(heads)}
        buckets = draw(st.sampled_from([4, 6, 8, 32]))
        return "t5", {
            **sizes,
            "d_kv": draw(st.integers(1, 9)),
            "relative_attention_num_buckets": buckets,
            "relative_attention_max_distance": draw(st.sampled_from([buckets, 40, 128])),
            "feed_forward_proj": draw(st.sampled_from(["relu", "gated-gelu", "gated-silu", "gelu"])),
            "tie_word_embeddings": draw(st.booleans()),
            "layer_norm_epsilon": draw(st.sampled_from([1e-6, 1e-3])),
        }
    sizes = {f"{stack}_{what}": draw(values) for stack in ("encoder", "decoder") for what, values in (
        ("layers", layers), ("attention_heads", heads), ("ffn_dim", st.integers(3, 50)),
    )}  # fmt: skip
    more = {
        "scale_embedding": draw(st.booleans()),
        "activation_function": draw(st.sampled_from(["gelu", "relu", "swish"])),
    }
    return draw(st.sampled_from(["bart", "marian"])), {**BART_SIZES, **sizes, **more, "d_model": 12}


@settings(max_examples=12, deadline=None, derandomize=True)
@given(drawn())
@torch.no_grad()
def test_any_sizes_give_the_logits_of_transformers(given_sizes: tuple[str, dict[str, Any]]) -> None:
    theirs = tiny(*given_sizes)
    logits = interp.load(theirs)(SOURCE, PREFIX)
    assert relative_difference(logits, theirs(input_ids=SOURCE, decoder_input_ids=PREFIX).logits) < 1e-5


@torch.no_grad()
def test_generation_is_that_of_transformers(both: tuple[Any, EncoderDecoder]) -> None:
    theirs, ours = both
    expected = theirs.generate(
        input_ids=SOURCE,
        max_new_tokens=12,
        do_sample=False,
        num_beams=1,
        eos_token_id=None,
        forced_eos_token_id=None,
        use_cache=False,  # its cache has a place for each layer of the encoder, and a decoder may be deeper
        bad_words_ids=None,
    )
    assert torch.equal(ours.generate(SOURCE, 12, do_sample=False, suppress_tokens=()), expected)


@torch.no_grad()
def test_tokens_that_a_file_forbids_are_never_written(tmp_path: Path) -> None:
    theirs = tiny(*SEQ2SEQ["marian"])
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "num_beams": 1, "eos_token_id": None}
    options |= {"forced_eos_token_id": None, "use_cache": False}
    free = theirs.generate(input_ids=SOURCE, bad_words_ids=None, **options)
    liked = int(free[0, 2])
    theirs.generation_config.bad_words_ids = [[liked], [1, 2]]  # of words of several tokens nothing is made
    theirs.save_pretrained(tmp_path)
    expected = theirs.generate(input_ids=SOURCE, **{**options, "bad_words_ids": [[liked]]})
    for ours in (interp.load(theirs), interp.load(tmp_path)):
        assert ours.cfg.suppress_tokens == (liked,)
        assert torch.equal(ours.generate(SOURCE, 8, do_sample=False), expected)
    assert not (expected == liked).any() and (free == liked).any()
    with pytest.raises(PromptError, match="suppress_tokens must be at most"):
        ours.generate(SOURCE, 8, suppress_tokens=[10**6])


@pytest.mark.parametrize("case", SEQ2SEQ)
@torch.no_grad()
def test_a_directory_is_read_as_the_model_in_memory(case: str, tmp_path: Path) -> None:
    theirs = tiny(*SEQ2SEQ[case])
    theirs.save_pretrained(tmp_path)
    logits = interp.load(tmp_path, check=True)(SOURCE, PREFIX)  # type: ignore[call-arg]
    assert relative_difference(logits, theirs(input_ids=SOURCE, decoder_input_ids=PREFIX).logits) < 1e-5


@torch.no_grad()
def test_an_unembedding_of_its_own_is_read(tmp_path: Path) -> None:
    theirs = tiny(*SEQ2SEQ["t5-v1.1"])
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(61, 24, generator=torch.Generator().manual_seed(3)))
    ours = interp.load(theirs)
    assert relative_difference(ours(SOURCE, PREFIX), theirs(input_ids=SOURCE, decoder_input_ids=PREFIX).logits) < 1e-5
    theirs = tiny(*SEQ2SEQ["marian"])
    del theirs.final_logits_bias
    theirs.register_buffer("final_logits_bias", torch.zeros(1, 61), persistent=False)
    ours = interp.load(theirs)
    assert relative_difference(ours(SOURCE, PREFIX), theirs(input_ids=SOURCE, decoder_input_ids=PREFIX).logits) < 1e-5


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    theirs = tiny(*SEQ2SEQ["t5"])
    theirs.config.strange_option = 3
    with pytest.raises(ConfigError, match="strange_option=3 is not a known option of a t5 model"):
        interp.load(theirs)
    theirs = tiny(*SEQ2SEQ["t5"])
    theirs.config.feed_forward_proj = "gated-gelo"
    with pytest.raises(ConfigError, match="feed_forward_proj"):
        interp.load(theirs)
    theirs = tiny(*SEQ2SEQ["t5"])
    theirs.encoder.embed_tokens = torch.nn.Embedding(61, 24)
    with pytest.raises(WeightsError, match="differ, but this model has one table for both"):
        interp.load(theirs)
