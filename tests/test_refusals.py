"""What is of another kind than a function takes is refused by name, whatever it is, and nothing raw comes through."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import make
from torch import Tensor
from vocabularies import names_tokenizer

import interp
from interp.config import ModelConfig
from interp.directions import Direction
from interp.directions.classes import contrast
from interp.errors import ConfigError, HookError, InterpError, PromptError, UnknownName, WeightsError
from interp.models.gpt import GPT, Mamba
from interp.prompts import PromptPairs
from interp.sites import match, site_names
from interp.sweeps.ray_executor import RayExecutor
from interp.text.padding import pad
from interp.text.tokenizer import Tokenizer
from interp.variants.granularity import asked
from interp.weights.transformer_lens import load_transformer_lens, to_transformer_lens

WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "-1": lambda: -1,
    "1.5": lambda: 1.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "vast": lambda: 2**70,
    "text": lambda: "x",
    "no text": lambda: "",
    "half a surrogate pair": lambda: "\udcff",
    "bytes": lambda: b"x",
    "list": list,
    "list of None": lambda: [None],
    "mixed": lambda: ["x", 5],
    "ragged": lambda: [[1, 2], [3]],
    "mapping": lambda: {"x": 5},
    "mapping of numbers": lambda: {5: 5},
    "set": lambda: {1, 2},
    "function": lambda: lambda: 0,
    "class": lambda: ModelConfig,
    "slice": lambda: slice(1, 2),
    "number of NumPy": lambda: np.float32(0.5),
    "array": lambda: np.zeros((2, 2)),
    "number of torch": lambda: torch.tensor(1.5),
    "no numbers": lambda: torch.zeros(0),
    "tensor": lambda: torch.ones(2, 3),
    "bools": lambda: torch.tensor([True, False]),
}
TEXTS = {"text", "no text", "half a surrogate pair"}
NUMBERS = {"-1", "1.5", "number of NumPy", "number of torch"}
SIZES: dict[str, Any] = {"n_layers": 2, "d_model": 16, "n_ctx": 8, "d_head": 4, "d_vocab": 29}


def _pairs(**changes: Any) -> PromptPairs:
    return PromptPairs.from_tokens(**{"clean": [[1, 2], [3]], "answers": [(1, 2), (3, 4)], **changes})


@functools.cache
def _tokenizer() -> Tokenizer:
    return Tokenizer(names_tokenizer())


@functools.cache
def _model() -> GPT:
    return make("gpt2")


# What takes one argument, and those of WRONG that it takes.
ONE: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
    "state_dict": (lambda x: load_transformer_lens(_model().cfg, x), set()),
    "a tensor of a state_dict": (
        lambda x: load_transformer_lens(_model().cfg, to_transformer_lens(_model()) | {"embed.W_E": x}),
        set(),
    ),
    "cfg of a state_dict": (lambda x: load_transformer_lens(x, to_transformer_lens(_model())), set()),
    "a field of a state_dict's cfg": (
        lambda x: load_transformer_lens(SIZES | {"positional_embedding_type": x}, to_transformer_lens(_model())),
        set(),
    ),
    "tokenizer of a state_dict": (
        lambda x: load_transformer_lens(_model().cfg, to_transformer_lens(_model()), tokenizer=x),
        {"None"},
    ),
    "tokenizer of a model": (lambda x: GPT(_model().cfg, x), {"None"}),
    "tokenizer of load": (lambda x: interp.load("toy", tokenizer=x), {"None"}),
    "revision": (lambda x: interp.load("toy", revision=x), {"None", *TEXTS}),
    "pre_tokenizer": (lambda x: interp.load("toy", pre_tokenizer=x), {"None"}),
    "cfg": (GPT, set()),
    "cfg of a Mamba": (Mamba, set()),
    "cfg of sites": (site_names, set()),
    "from_dict": (ModelConfig.from_dict, set()),
    "layer_types": (lambda x: ModelConfig(**SIZES, layer_types=x), {"None"}),
    "positional_embedding_type": (lambda x: ModelConfig(**SIZES, positional_embedding_type=x), set()),
    "normalization_type": (lambda x: ModelConfig(**SIZES, normalization_type=x), {"None"}),
    "dt_limit": (lambda x: ModelConfig(**SIZES, dt_limit=x), {"None"}),
    "d_head": (lambda x: ModelConfig(**{**SIZES, "d_head": x}, n_heads=4), {"-1"}),
    "layer_type": (_model().cfg.layer_type, {"-1"}),
    "mixer": (make("mamba").cfg.mixer, {"-1"}),
    "mlp_in": (_model().cfg.mlp_in, {"-1"}),
    "name": (lambda x: _pairs(name=x), TEXTS),
    "notes": (lambda x: _pairs(notes=x), {"None", "mapping", "mapping of numbers"}),
    "notes of pairs": (lambda x: dataclasses.replace(_pairs(), notes=x), {"mapping", "mapping of numbers"}),
    "pad_id": (lambda x: _pairs(pad_id=x), set()),
    "clean": (lambda x: _pairs(clean=x), {"ragged"}),
    "answers": (lambda x: _pairs(answers=x), {"None"}),
    "answers of one pair": (lambda x: _pairs(clean=[[1, 2]], answers=x), {"None"}),
    "mask": (lambda x: _pairs(mask=x), {"None"}),
    "roles": (lambda x: _pairs(roles=x), {"None"}),
    "role": (lambda x: _pairs(roles={"A": x}), {"-1"}),
    "labels": (lambda x: contrast(_model(), _pairs(), labels=x), {"bools", "mixed"}),
    "label": (lambda x: contrast(_model(), _pairs(), labels=["a", x]), {*TEXTS, "True", *NUMBERS, "vast", "inf"}),
    "names": (lambda x: match("*", x), {"mapping"}),
    "wanted": (lambda x: match(x, ["hook_z"]), {"None", "list", "list of None", "no numbers"}),
    "id_to_token": (_tokenizer().id_to_token, set()),
    "token_to_id": (_tokenizer().token_to_id, {"text", "no text"}),
    "id of is_unknown": (lambda x: _tokenizer().is_unknown(x, "Tom"), set()),
    "text of is_unknown": (lambda x: _tokenizer().is_unknown(5, x), {"text", "no text"}),
    "ids of n_before": (lambda x: _tokenizer().n_before(x, "Tom"), {"list", "no numbers"}),
    "rest": (lambda x: _tokenizer().following("Tom", x), {"text", "no text"}),
    "prepend_bos": (lambda x: _tokenizer().encode("Tom", prepend_bos=x), {"None"}),
    "side of pad": (lambda x: pad([[1], [2, 3]], 0, x), set()),
    "from_transformers": (Tokenizer.from_transformers, set()),
    "from_directory": (Tokenizer.from_directory, TEXTS),
    "vector": (lambda x: Direction(x, "z", 0), {"tensor", "number of torch", "no numbers"}),
    "site of a direction": (lambda x: Direction(torch.ones(4), x, 0), TEXTS),
    "layer of a direction": (lambda x: Direction(torch.ones(4), "z", x), {"vast"}),
    "head of a direction": (lambda x: Direction(torch.ones(4), "z", 0, x), {"None"}),
    "made": (lambda x: Direction(torch.ones(4), "z", 0, made=x), {"mapping", "mapping of numbers"}),
    "address": (lambda x: RayExecutor(address=x), {"None", *TEXTS}),
    "workers": (lambda x: RayExecutor(workers=x), {"None", "vast"}),
    "cpus_per_worker": (lambda x: RayExecutor(cpus_per_worker=x), {"None", "vast"} | NUMBERS - {"-1"}),
    "gpus_per_worker": (lambda x: RayExecutor(gpus_per_worker=x), {"None", "number of NumPy"}),
    "patience": (lambda x: RayExecutor(patience=x), {"inf", "vast"} | NUMBERS - {"-1"}),
    "generate": (lambda x: _model().generate(x, 1), set()),
    "tokens": (_model().to_string, set()),
    "by": (lambda x: asked(by=x), {"None", *TEXTS, "list", "no numbers"}),
    "hooks": (lambda x: _model().hooks(x), {"list", "no numbers"}),
    "dir": (lambda x: _model().add_hook("hook_embed", lambda value, hook: None, x), set()),
}


@pytest.mark.parametrize("what", ONE)
def test_what_is_of_another_kind_is_refused(what: str) -> None:
    call, fits = ONE[what]
    for name, wrong in WRONG.items():
        refused = ""
        try:
            call(wrong())
        except InterpError as error:
            refused = str(error)
        assert (len(refused) > 20) == (name not in fits), f"{name}: {refused or 'accepted'}"


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: load_transformer_lens(_model().cfg, 1.5), WeightsError, "mapping from names to tensors, not 1.5"),
        (lambda: _pairs(name=b"x"), PromptError, "name must be text, not b'x'"),
        (lambda: _pairs(pad_id=1.5), PromptError, "pad_id must be an integer .*, not 1.5"),
        (lambda: ModelConfig.from_dict({"n_layer": 1}), ConfigError, "no field 'n_layer'; did you mean 'n_layers'"),
        (lambda: _model().cfg.mixer(5), UnknownName, r"layer 5 is not one of this model's 2 layers \(0 to 1\)"),
        (lambda: GPT({}), ConfigError, "cfg must be a ModelConfig, not {}"),
        (lambda: interp.load("toy", tokenizer="x"), ConfigError, "must be a tokenizer of transformers, not 'x'"),
        (lambda: match("*", 5), UnknownName, "names must be the names of sites, in a list, not 5"),
        (lambda: match(lambda: True, ["z"]), UnknownName, "called with the name of a site, and <lambda>"),
        (lambda: _tokenizer().id_to_token(-1), PromptError, "a token id must be at least 0, not -1"),
        (lambda: RayExecutor(address=5), ConfigError, "address must be text, such as .*, or None, not 5"),
        (lambda: _model().generate(torch.zeros(0)), PromptError, "token ids, integers .*, not "),
    ],
)  # fmt: skip
def test_what_is_refused_is_said(call: Callable[[], Any], kind: type[InterpError], says: str) -> None:
    with pytest.raises(kind, match=says):
        call()


def test_names_that_no_file_can_have_are_no_model(tmp_path: Path) -> None:
    for name in ("x" * 5000, "~\0", "./" + "y" * 300):
        with pytest.raises(InterpError):
            interp.load(name)
        assert Tokenizer.from_directory(name) is None


def test_what_json_cannot_hold_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="notes must be plain JSON values to be saved"):
        _pairs(notes={"x": np.zeros(2)}).save(tmp_path / "pairs.json")
    with pytest.raises(ConfigError, match="how a direction was made must be plain JSON values"):
        Direction(torch.ones(4), "z", 0, made={"x": torch.ones(2)}).save(tmp_path / "direction")
    assert not list(tmp_path.iterdir())


class Halves:
    def __call__(self, value: Tensor, hook: Any) -> Tensor:
        return value / 2


class Alone:
    def __call__(self, value: Tensor) -> Tensor:
        return value / 2


def _decorated(value: Tensor) -> Tensor:
    return value / 2


@functools.wraps(_decorated)
def _wrapper(value: Tensor, hook: Any) -> Tensor:
    return _decorated(value)


@functools.wraps(lambda value, *, hook: None)
def _passing_on(*args: Any, **kwargs: Any) -> Tensor:
    assert "hook" in kwargs
    return args[0] / 2


@pytest.mark.parametrize(
    "function",
    [
        lambda value, hook: value / 2,
        lambda value, point: value / 2,
        lambda value, hook=None: value / 2,
        lambda value, *, hook: value / 2,
        lambda *args: args[0] / 2,
        functools.partial(lambda factor, value, hook: value * factor, 0.5),
        Halves(),
        _wrapper,
        _passing_on,
    ],
)
def test_a_function_that_takes_a_value_and_its_hook_is_attached(function: Any) -> None:
    model, tokens = make("gpt2"), torch.tensor([[1, 2, 3]])
    expected = model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", lambda value, hook: value / 2)])
    with model.hooks([("hook_embed", function)]):
        assert torch.equal(model(tokens), expected)
    model.add_hook("hook_embed", function)
    assert torch.equal(model(tokens), expected)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda value: value, r"<lambda>\(value\) does not take that: too many positional arguments"),
        (lambda: 0, r"<lambda>\(\) does not take that"),
        (lambda value, hook, more: value, r"missing a required argument: 'more'"),
        (lambda hook: 0, r"multiple values for argument 'hook'"),
        (Alone(), r"Alone\(value: .*\).* does not take that"),
        (functools.partial(_wrapper, None, None), "partial.* does not take that"),
    ],
)
def test_a_function_that_does_not_is_refused_when_it_is_attached(function: Any, says: str) -> None:
    model = make("gpt2")
    for attach in (
        lambda: model.hooks([("blocks.1.attn.hook_z", function)]),
        lambda: model.hooks(bwd_hooks=[("blocks.1.attn.hook_z", function)]),
        lambda: model.add_hook("blocks.1.attn.hook_z", function),
    ):
        with pytest.raises(HookError, match=r"'blocks.1.attn.hook_z' is called with \(value, hook\), and .*" + says):
            attach()
    with pytest.raises(HookError, match=r"'blocks.0.attn.hook_z' and 1 more is called with"):
        model.add_hook("*.hook_z", function)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_layers": 10**9}, r"13,120.0 GB of weights"),
        ({"d_vocab": 10**12}, r"132,000.0 GB of weights"),
        ({"d_model": 10**6, "d_head": 1000}, r"96,000.4 GB of weights"),
        ({"layer_types": ("mamba", "attn"), "d_model": 10**6, "d_inner": 10**7, "n_heads": 1}, "GB of weights"),
        ({"d_model": 2**44, "d_head": 2**40}, "no tensor can have the sizes"),
    ],
)
def test_a_model_beyond_the_memory_is_refused_before_it_is_made(changes: dict[str, Any], says: str) -> None:
    cfg = ModelConfig(**{**SIZES, **changes})
    with pytest.raises(ConfigError, match=says):
        (Mamba if cfg.has_mamba else GPT)(cfg)


def test_the_weights_of_a_large_model_are_counted_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = ModelConfig(n_layers=3, d_model=1024, d_inner=2048, n_heads=8, d_head=128, n_ctx=64, d_vocab=500,
                      layer_types=("mamba", "attn+mlp", "mamba"))  # fmt: skip
    needed = 4 * sum(parameter.numel() for parameter in Mamba(cfg).parameters())
    monkeypatch.setattr("interp.models.gpt._memory", lambda place: needed)
    Mamba(cfg)
    monkeypatch.setattr("interp.models.gpt._memory", lambda place: needed - 1)
    with pytest.raises(ConfigError, match=f"asks for {needed / 1e9:.1f} GB of weights, and cpu has"):
        Mamba(cfg)
