"""Fingerprints: equal for what is the same in any process, different for everything else."""

from __future__ import annotations

import dataclasses
import functools
import operator
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import make

from interp.config import ModelConfig, RopeScaling
from interp.edits import Edit, Variant
from interp.errors import ConfigError
from interp.metrics import METRICS, get_metric
from interp.resume.fingerprint import fingerprint

TOKENS = torch.tensor([[1, 2, 3]])

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


def plainly(value: Any) -> Any:
    """A value in a form whose equality is that of fingerprints: types count, floats by their bits, dicts in order."""
    if isinstance(value, float):
        return ("float", np.float64(value).tobytes())
    if isinstance(value, list | tuple):
        return (type(value).__name__, tuple(map(plainly, value)))
    if isinstance(value, dict):
        return ("dict", tuple((plainly(name), plainly(inner)) for name, inner in value.items()))
    return (type(value).__name__, value)


def unbound(bind: bool) -> Callable[..., Any]:
    if bind:
        later = 1
    return lambda: later


def copied(value: Any) -> Any:
    """The same value in objects of its own."""
    if isinstance(value, list | tuple):
        return type(value)(map(copied, value))
    if isinstance(value, dict):
        return {copied(name): copied(inner) for name, inner in value.items()}
    return value


@settings(max_examples=120, deadline=None)
@given(VALUES, VALUES)
def test_equal_values_have_equal_prints_and_others_differ(first: Any, second: Any) -> None:
    assert fingerprint(copied(first)) == fingerprint(first)
    assert (fingerprint(first) == fingerprint(second)) == (plainly(first) == plainly(second))
    assert fingerprint([first, second]) != fingerprint([[first, second]]) != fingerprint([first])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=4), max_size=5), st.lists(st.text(max_size=4), max_size=5))
def test_texts_do_not_run_together(first: list[str], second: list[str]) -> None:
    assert (fingerprint(first) == fingerprint(second)) == (first == second)
    assert (fingerprint(set(first)) == fingerprint(set(second))) == (set(first) == set(second))


def add(x: torch.Tensor, hook: Any) -> torch.Tensor:
    return x + SHIFT


def scaled(by: Any) -> Callable[..., Any]:
    return lambda x, hook: x * by


def default(by: float) -> Callable[..., Any]:
    def fn(x: Any, hook: Any, by: float = by) -> Any:
        return x * by

    return fn


def keyword(by: float) -> Callable[..., Any]:
    def fn(x: Any, *, by: float = by) -> Any:
        return x * by

    return fn


def count_down(n: int) -> int:
    return 0 if n == 0 else count_up(n - 1)


def count_up(n: int) -> int:
    return 1 + count_down(n)


class Steer:
    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, x: Any, hook: Any) -> Any:
        return x * self.by

    def plus(self, x: Any, hook: Any) -> Any:
        return x + self.by

    @staticmethod
    def twice(x: Any, hook: Any) -> Any:
        return x * 2


@dataclasses.dataclass(frozen=True)
class Setting:
    name: str
    by: float

    @functools.cached_property
    def half(self) -> float:
        return self.by / 2


SHIFT = 1.5
SEVERAL: list[Any] = [
    None, True, 1, 1.0, "1", b"1", bytearray(b"1"), 1j, [1], (1,), {1}, frozenset([1]), {1: 1},
    MappingProxyType({1: 1}),
    0.0, -0.0, float("nan"), [], (), {}, "", b"", [[]], ..., range(3), slice(3), 2**100, OrderedDict(a=1, b=2),
    OrderedDict(b=2, a=1), {"a": 1, "b": 2}, {"b": 2, "a": 1}, Path("a"), Path("b"),
    np.float32(1), np.float64(1), np.int64(1), np.bool_(True), np.array(1.0), np.array([1.0]), np.array([[1.0]]),
    np.array([1.0], dtype=np.float32), np.array([1, 2]), np.array([1, "2"], dtype=object),
    np.array([1, 2], dtype=object),
    torch.tensor(1.0), torch.tensor([1.0]), torch.tensor([[1.0]]), torch.tensor([1.0]).bfloat16(), torch.tensor([1]),
    torch.tensor([1.0]).half(), torch.tensor([0.0]), torch.tensor([-0.0]), torch.tensor([]), torch.tensor([True]),
    torch.tensor([1 + 2j]), torch.tensor([1 + 2j]).conj(), torch.zeros(2, 3), torch.zeros(3, 2),
    torch.float32, torch.bfloat16, torch.device("cpu"), torch.Size([1]), np.dtype("f4"),
    torch.relu, torch.sigmoid, torch.nn.functional.gelu, torch.nn.functional.softmax, torch.Tensor.relu, np.exp, len,
    operator.add, "".join, "a".join, torch, np, torch.nn.Linear, Steer, Setting, int,
    functools.partial(add, hook=1), functools.partial(add, hook=2), functools.partial(count_up, hook=1),
    add, scaled(2), scaled(3), scaled(2.0), scaled(torch.ones(2)), scaled(torch.zeros(2)), scaled(torch.ones(2).half()),
    default(1), default(2), keyword(1), keyword(2), count_up, count_down, lambda x: x + 1, lambda x: x + 2,
    unbound(True), unbound(False), lambda x: x - 1, lambda x: x.sin(), lambda x: x.cos(), lambda y: y + 1,
    lambda x: (lambda: x + 1), lambda x: (lambda: x + 2),
    Steer(1), Steer(2), Steer(1).plus, Steer(2).plus, Steer(1).__call__, Steer.plus, Steer.twice,
    Setting("a", 1), Setting("a", 2), Setting("b", 1), METRICS["logit_diff"], METRICS["kl"], get_metric(scaled(2)),
    *(Edit("z", {"layer": layer, **where}, op, source)
      for layer in (0, 1) for where in ({}, {"head": 1}, {"pos": 1})
      for op, source in (("set", None), ("set", "base"), ("add", "base"), ("scale", 2), ("scale", 2.5),
                         ("zero", None))),
    Edit("q", {"layer": 0}), Edit("z", {"layer": 0, "pos": [1, 2]}), Edit("z", {"layer": 0, "pos": "END"}),
    Variant([]), Variant([], {"a": 1}), Variant([Edit("z")]), Variant([Edit("z"), Edit("z")]), [Edit("z"), Edit("z")],
]  # fmt: skip


def test_no_two_of_many_kinds_of_value_are_taken_for_one() -> None:
    prints = [fingerprint(value) for value in SEVERAL]
    for at, found in enumerate(prints):
        assert prints.index(found) == at, f"{SEVERAL[prints.index(found)]!r} and {SEVERAL[at]!r}"
    assert prints == [fingerprint(value) for value in SEVERAL]


def test_what_is_made_again_has_the_same_print() -> None:
    pairs: list[tuple[Any, Any]] = [
        (scaled(2), scaled(2)),
        (scaled(torch.ones(3)), scaled(torch.ones(3))),
        (default(1), default(1)),
        (Steer(1), Steer(1)),
        (Steer(1).plus, Steer(1).plus),
        (functools.partial(add, hook=[1]), functools.partial(add, hook=[1])),
        (torch.arange(6.0).reshape(2, 3), torch.arange(6.0).reshape(3, 2).reshape(2, 3)),
        (torch.arange(6.0).reshape(2, 3).T, torch.arange(6.0).reshape(2, 3).T.contiguous()),
        (torch.ones(1).expand(3), torch.ones(3)),
        (np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(6).reshape(2, 3)),
        (torch.nn.Parameter(torch.ones(2)), torch.ones(2)),
        ({"a", "b", "c"}, {"c", "b", "a"}),
        (frozenset([add, len]), frozenset([len, add])),
        (Variant([Edit("z")]), Variant((Edit("z"),))),
        (Edit("z", {"layer": 0, "pos": [1, 2]}), Edit("z", {"pos": (1, 2), "layer": 0})),
        (Edit("z", {"pos": range(2)}), Edit("z", {"pos": (0, 1)})),
        (Variant([], {"a": 1, "b": 2}), Variant([], {"b": 2, "a": 1})),
        ([scaled(2)] * 2, [scaled(2), scaled(2)]),
    ]
    for first, second in pairs:
        assert fingerprint(first) == fingerprint(second), first
    setting = Setting("a", 1)
    before = fingerprint(setting)
    assert setting.half == 0.5 and fingerprint(setting) == before


def test_the_globals_that_a_function_reads_count(monkeypatch: pytest.MonkeyPatch) -> None:
    here = sys.modules[__name__]

    def inner(x: Any) -> Any:
        return [add(x, None) for _ in range(2)]

    before = [fingerprint(fn) for fn in (add, inner, Steer(1), count_up)]
    monkeypatch.setattr(here, "SHIFT", 2.5)
    after = [fingerprint(fn) for fn in (add, inner, Steer(1), count_up)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True, True]
    monkeypatch.setattr(here, "count_down", lambda n: n)
    assert fingerprint(count_up) != before[3]
    monkeypatch.setattr(Steer, "__call__", lambda self, x, hook: x)
    assert fingerprint(Steer(1)) != before[2]


def test_attributes_wrappers_and_decorators_count() -> None:
    def marked(positions: list[int]) -> Callable[..., Any]:
        fn = scaled(2)
        fn.positions = positions  # type: ignore[attr-defined]
        return fn

    assert fingerprint(marked([-1])) == fingerprint(marked([-1])) != fingerprint(marked([0]))
    for decorate in (torch.no_grad(), functools.lru_cache, torch.inference_mode()):
        wrapped: Any = decorate
        assert fingerprint(wrapped(scaled(2))) == fingerprint(wrapped(scaled(2))) != fingerprint(wrapped(scaled(3)))
    assert len({fingerprint(torch.no_grad()(add)), fingerprint(add), fingerprint(torch.no_grad()(count_up))}) == 3


def test_the_source_of_a_module_of_ones_own_counts(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    mine = ModuleType("mine")
    mine.__file__ = str(file)
    prints = []
    for content in ("x = 1", "x = 1", "x = 2"):
        file.write_text(content)
        prints.append(fingerprint(scaled(mine)))
    assert prints[0] == prints[1] != prints[2]


def test_weights_inside_a_function_count() -> None:
    model, probe = make("gpt2"), torch.nn.Linear(4, 4)
    functions = [lambda x, hook: model.unembed(x), lambda x, hook: probe(x)]
    before = [fingerprint(fn) for fn in functions]
    model(TOKENS)
    probe(torch.zeros(4))
    assert [fingerprint(fn) for fn in functions] == before
    with torch.no_grad():
        model.W_E[0, 0] += 1e-6
        probe.weight[0, 0] += 1e-6
    assert not set(map(fingerprint, functions)) & set(before)


def test_a_cache_counts_by_the_tensor_that_the_edit_reads() -> None:
    model = make("gpt2")
    caches = [model.run_with_cache(TOKENS, names_filter=names)[1] for names in (None, ["blocks.1.attn.hook_z"], None)]
    edits = [Edit("z", {"layer": 1}, source=cache) for cache in caches]
    assert len(set(map(fingerprint, edits))) == 1
    assert fingerprint(edits[0]) != fingerprint(Edit("z", {"layer": 0}, source=caches[0]))
    assert fingerprint(Edit("blocks.1.attn.hook_z", source=caches[0])) == fingerprint(
        Edit("blocks.1.attn.hook_z", source=caches[1])
    )
    derived = Edit("pattern", {"layer": 1}, source=caches[0])
    before = fingerprint(derived)
    caches[0]["pattern", 1]
    assert fingerprint(derived) == before == fingerprint(Edit("pattern", {"layer": 1}, source=caches[2]))
    assert fingerprint(caches[1]) != fingerprint(caches[2])
    other = model.run_with_cache(TOKENS + 1)[1]
    assert fingerprint(Edit("z", {"layer": 1}, source=other)) != fingerprint(edits[0])


def test_what_leads_back_to_itself_ends() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    other: list[Any] = [2]
    other.append(other)
    assert fingerprint(ring) == fingerprint(ring) != fingerprint(other)
    registry: dict[str, Any] = {}
    registry["fn"] = lambda: registry
    assert fingerprint(registry) == fingerprint(registry) != fingerprint(registry["fn"])
    doubled: Any = [1]
    for _ in range(200):
        doubled = [doubled, doubled]
    assert fingerprint(doubled) != fingerprint(doubled[0])
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ConfigError, match="list is nested too deeply"):
        fingerprint(deep)


def test_what_another_process_could_not_recognise_is_refused_by_name() -> None:
    lock = threading.Lock()

    def locked(x: Any, hook: Any) -> Any:
        with lock:
            return x

    with pytest.raises(ConfigError, match=r"generator.*give the edit a tensor, or sweep without out"):
        fingerprint({"label": (n for n in "ab")})
    with pytest.raises(ConfigError, match=r"lock.*, which .*locked reads, could not be recognised in a later run"):
        fingerprint([Variant([Edit("z", source=locked)])])
    with pytest.raises(ConfigError, match=r"a torch\.strided tensor on meta could not"):
        fingerprint(torch.zeros(2, device="meta"))
    with pytest.raises(ConfigError, match=r"a torch\.sparse_coo tensor on cpu could not"):
        fingerprint(torch.eye(2).to_sparse())


def test_another_process_finds_the_same_prints() -> None:
    program = (
        "from test_fingerprint import *\n"
        "print(fingerprint([value for value in SEVERAL]), fingerprint({'a', 'b', len, add}))"
    )
    prints = []
    for seed in ("1", "2"):
        path = ":".join([str(Path(__file__).parent), *filter(None, sys.path)])
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": path, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        prints.append(done.stdout)
    assert prints[0] == prints[1] == f"{fingerprint(SEVERAL)} {fingerprint({'a', 'b', len, add})}\n"


def test_a_configuration_has_the_fingerprint_that_files_were_saved_with() -> None:
    """What these digests were before fields for further families were added; sweeps and lenses were saved with them."""
    sizes: dict[str, Any] = {"n_layers": 2, "d_model": 16, "n_ctx": 32, "d_head": 4, "d_vocab": 29, "seed": 0}
    plain = ModelConfig(**sizes)
    llama = ModelConfig(
        **sizes, normalization_type="RMS", positional_embedding_type="rotary", gated_mlp=True, act_fn="silu",
        n_key_value_heads=2, attn_in_bias=False, attn_out_bias=False, mlp_bias=False, unembed_bias=False,
        rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 16),
    )  # fmt: skip
    assert fingerprint(plain).startswith("e5f75ad3d362daf8")
    assert fingerprint(llama).startswith("41c38d57062d322d")
    others = [plain.replace(window_size=4), plain.replace(window_size=5), plain.replace(qk_norm="RMS"), plain]
    assert len({fingerprint(cfg) for cfg in others}) == 4
