"""`cache.tidy`: every row is the tensor's entry at the place that its columns name, for every site of every model."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from interp.errors import UnknownName
from interp.hooked.cache import ActivationCache
from interp.hooked.past import PastKeyValues
from interp.sites import AXIS_ALIASES, AXIS_WORDS, site_names
from tests.makers import KINDS, MASKED, RECURRENT, STACKS, encoder_decoder, make, pairs_of, stack_pairs
from tests.vocabularies import names_tokenizer, reader

LABELS = {"pos": "token", "query": "query_token", "key": "key_token"}


def check(frame: pd.DataFrame, value: Tensor, name: str, cfg: Any, rows: Tensor, keys: Tensor) -> None:
    """Every real entry of a value stands in one row, whose columns name its place; prompts are padded on the right."""
    site = site_names(cfg)[name]
    axes = [axis for axis in site.axes if axis != "one"]
    columns = ["prompt" if axis == "batch" else AXIS_WORDS.get(axis, axis) for axis in axes]
    labels = [LABELS[axis] for axis in axes if axis in LABELS]
    layer = ["layer"] if site.per_layer else []
    assert sorted(frame.columns) == sorted([*layer, *columns, *labels, "value"])
    if layer:
        assert set(frame["layer"]) == {int(name.split("blocks.")[1].split(".")[0])}
    found = value.reshape([size for axis, size in zip(site.axes, value.shape, strict=True) if axis != "one"]).numpy()
    places = tuple(frame[column].to_numpy() for column in columns)
    np.testing.assert_array_equal(frame["value"].to_numpy(), found[places])
    assert not frame.duplicated(columns).any()
    real = np.ones(found.shape, dtype=bool)
    for axis, mask in (("pos", rows), ("query", rows), ("key", keys)):
        if axis in axes:
            wide = [size if at in (0, axes.index(axis)) else 1 for at, size in enumerate(found.shape)]
            real &= mask.numpy().reshape(wide)
    assert len(frame) == real.sum()


@pytest.mark.parametrize("kind", [*KINDS, *RECURRENT, *MASKED])
@torch.no_grad()
def test_every_site_of_every_model(kind: str) -> None:
    model, pairs = make(kind), pairs_of(5, 3)
    _, cache = model.run_with_cache(pairs.clean, attention_mask=pairs.mask, names_filter="*")
    for name in model.hook_dict:
        frame = cache.tidy(name)
        check(frame, cache[name], name, model.cfg, pairs.mask, pairs.mask)
        if "token" in frame:
            assert set(frame.loc[frame["prompt"] == 1, "token"]) == set(pairs.labels(1))


@pytest.mark.parametrize("kind", STACKS)
@torch.no_grad()
def test_every_site_of_two_stacks(kind: str) -> None:
    model, pairs = encoder_decoder(kind), stack_pairs()
    assert pairs.encoder is not None
    masks = {"encoder": pairs.encoder.mask, "decoder": pairs.mask}
    _, cache = model.run_with_cache(**pairs.inputs("clean"), names_filter="*")
    for name, site in site_names(model.cfg).items():
        rows, keys = masks[site.rows_in], masks["encoder" if site.cross else site.rows_in]
        frame = cache.tidy(name)
        check(frame, cache[name], name, model.cfg, rows, keys)
        own = getattr(cache, site.stack)
        pd.testing.assert_frame_equal(frame, own.tidy(name.removeprefix(f"{site.stack}.")))
    frame = cache.tidy("decoder.cross_attn.pattern", 1)
    assert set(frame.loc[frame["prompt"] == 0, "key_token"]) == set(pairs.encoder.labels(0))
    assert set(frame.loc[frame["prompt"] == 0, "query_token"]) == set(pairs.labels(0))


@torch.no_grad()
def test_positions_count_from_the_start_of_the_real_prompt() -> None:
    model = make("llama")
    _, cache = model.run_with_cache(
        torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]]),
        attention_mask=torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool),
    )
    _, alone = model.run_with_cache(torch.tensor([[5, 6, 7]]))
    for site in ("z", "pattern", "post"):
        padded = cache.tidy(site, 1).query("prompt == 0")
        expected = alone.tidy(site, 1)
        pd.testing.assert_frame_equal(padded.drop(columns="value"), expected.drop(columns="value"))
        np.testing.assert_allclose(padded["value"], expected["value"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kept", [-1, slice(1, 3), [0, 2]])
@torch.no_grad()
def test_some_positions_alone_keep_their_numbers(kept: Any) -> None:
    model, tokens = make("gpt2"), torch.tensor([[3, 4, 5, 6]])
    _, whole = model.run_with_cache(tokens, names_filter="*")
    _, some = model.run_with_cache(tokens, names_filter="*", pos_slice=kept)
    for site, axis in (("z", "pos"), ("pattern", "query")):
        own, every = some.tidy(site, 0), whole.tidy(site, 0)
        chosen = np.atleast_1d(np.arange(4)[kept])
        expected = every[every[axis].isin(chosen)].reset_index(drop=True)
        pd.testing.assert_frame_equal(own, expected, check_dtype=False)


@torch.no_grad()
def test_earlier_positions_are_counted() -> None:
    model, tokens = make("gpt2"), torch.tensor([[3, 4, 5, 6]])
    past = PastKeyValues(model.cfg.n_layers)
    model(tokens[:, :3], past_kv_cache=past)
    _, cache = model.run_with_cache(tokens[:, 3:], past_kv_cache=past, names_filter="*")
    frame = cache.tidy("pattern", 1)
    assert set(frame["query"]) == {3} and sorted(set(frame["key"])) == [0, 1, 2, 3] and "key_token" not in frame


@torch.no_grad()
def test_what_else_a_cache_can_be() -> None:
    model = make("llama")
    tokens = torch.tensor([[3, 4, 5]])
    _, cache = model.run_with_cache(tokens, names_filter="*")
    frame = cache.tidy("pattern", -1)
    assert set(frame["layer"]) == {1} and list(frame.columns[:4]) == ["layer", "prompt", "head", "query"]
    pd.testing.assert_frame_equal(cache.tidy("scale", 0, "ln2"), cache.tidy("ln2.scale", 0))
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(cache)).tidy("pattern", 1), frame)
    by_hand = ActivationCache(dict(cache), model).tidy("pattern", 1)
    pd.testing.assert_frame_equal(by_hand, frame.drop(columns=["query_token", "key_token"]))
    pd.testing.assert_frame_equal(cache.remove_batch_dim().tidy("pattern", 1), frame)
    with pytest.raises(UnknownName, match="did you mean 'pattern'"):
        cache.tidy("patern", 1)
    assert AXIS_ALIASES["neuron"] == "d_mlp" and "neuron" in cache.tidy("post", 0)


def test_gradients_are_tidy_too() -> None:
    model = make("gpt2")
    _, cache = model.run_with_cache(torch.tensor([[3, 4, 5]]), "loss", incl_bwd=True)
    frame = cache.tidy("blocks.1.attn.hook_z_grad")
    np.testing.assert_array_equal(frame["value"], cache["blocks.1.attn.hook_z_grad"].flatten())


@torch.no_grad()
def test_tokens_are_told_as_text_and_stay_behind_in_a_pickle() -> None:
    model = reader(names_tokenizer())
    _, cache = model.run_with_cache(["Then John gave Mary", "Then John"])
    frame = cache.tidy("z", 0)
    for prompt, text in enumerate(["Then John gave Mary", "Then John"]):
        own = model.tokenizer.labels(model.tokenizer.encode(text))  # type: ignore[union-attr]
        assert list(frame.loc[frame["prompt"] == prompt, "token"].unique()) == own
    assert "3: John" in set(cache.tidy("pattern", 0)["key_token"])
    assert "token" not in pickle.loads(pickle.dumps(cache)).tidy("z", 0)


@pytest.mark.parametrize("kind", ["llama", "mamba2"])
def test_one_prompt_alone_is_its_part_of_the_table(kind: str) -> None:
    model, pairs = make(kind), pairs_of(9, 7)
    _, cache = model.run_with_cache(**pairs.inputs("clean"))
    for site in ("resid_post", "pattern"):
        whole = cache.tidy(site, 1, "mixer" if kind == "mamba2" and site == "pattern" else None)
        for at in (0, 1):
            one = cache.tidy(site, 1, "mixer" if kind == "mamba2" and site == "pattern" else None, prompt=at)
            assert one.equals(whole[whole["prompt"] == at].reset_index(drop=True))
    with pytest.raises(UnknownName, match="prompt must be at most 1, not 2"):
        cache.tidy("resid_post", 1, prompt=2)
