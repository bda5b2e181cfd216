"""The scans against loops written straight from the equations, in every form that a device may choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from einops import einsum
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrences import DUAL, SELECTIVE, Family, selective_inputs
from torch import Tensor

from interp.errors import PromptError
from interp.state_space import scan
from interp.state_space import scan_kernel as recurrence

families = pytest.mark.parametrize("mamba", [SELECTIVE, DUAL], ids=["selective", "dual"])


@pytest.fixture(params=["steps", "steps of few", "tree", "tree of few"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each form on this machine, whole and in small groups, blocks and chunks."""
    if request.param.startswith("tree"):
        monkeypatch.setattr(recurrence, "STEPWISE", ())
    if request.param.endswith("few"):
        monkeypatch.setattr(scan, "CHUNK", 3)
        for name in ("GROUP", "CACHED", "BLOCK"):
            monkeypatch.setattr(recurrence, name, 40)


def states_of(mamba: Family, parts: dict[str, Tensor]) -> Tensor:
    return mamba.states(**{name: part for name, part in parts.items() if name != "C"})


def pattern_of(mamba: Family, parts: dict[str, Tensor]) -> Tensor:
    return mamba.pattern(parts["delta"], parts["A"], parts["B"], parts["C"])


def near(one: Tensor, other: Tensor, *, within: float = 1e-10) -> bool:
    return one.shape == other.shape and bool(((one - other).abs() <= within * (1 + other.abs())).all())


@families
@pytest.mark.usefixtures("form")
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 5),
    pos=st.integers(1, 18),
    width=st.integers(1, 4),
    d_state=st.integers(1, 4),
    seed=st.integers(0, 99),
    zero=st.booleans(),
)
def test_every_form_is_the_recurrence(mamba: Family, zero: bool, **sizes: int) -> None:
    parts = mamba.draw(**sizes)
    before = {name: part.clone() for name, part in parts.items()}
    if zero:
        before["state"] = torch.zeros_like(parts["state"])
    y, states = mamba.loop(**before)
    given_parts = parts | ({"state": None} if zero else {})
    found, last = mamba.scan(**given_parts)
    assert near(found, y) and near(last, states[:, -1])
    found_states = states_of(mamba, given_parts)
    assert near(found_states, states) and near(mamba.read(found_states, parts["C"]), y)
    assert all(zero or torch.equal(parts[name], before[name]) for name in parts)  # inputs stay as they were


@families
def test_single_rows_are_those_of_the_whole_pattern(mamba: Family) -> None:
    parts = mamba.draw(batch=3, pos=6)
    of, query = torch.tensor([2, 0, 0, 1, 2]), torch.tensor([0, 5, 3, 2, 5])
    rows = mamba.rows(parts["delta"][of], parts["A"], parts["B"][of], parts["C"][of, query], query)
    assert near(rows, pattern_of(mamba, parts)[of, :, query])
    assert not rows[0, :, 1:].any()  # no row reads a later key


@families
@pytest.mark.parametrize("seed", [0, 1])
def test_the_scan_is_attention(mamba: Family, seed: int) -> None:
    parts = mamba.draw(pos=9, seed=seed)
    pattern = pattern_of(mamba, parts)
    y, _ = mamba.scan(**parts | {"state": None})
    assert near(einsum(pattern, parts["x"], mamba.mix), y)
    assert torch.equal(pattern, pattern.tril()) and pattern.tril().abs().amin((0, 1))[0, 0] > 0


@families
@pytest.mark.usefixtures("form")
def test_it_starts_from_a_state(mamba: Family) -> None:
    parts = mamba.draw(pos=11)
    y, last = mamba.scan(**parts)
    for cut in (0, 1, 4, 11):
        heads = {name: part[:, :cut] for name, part in parts.items() if name in ("x", "delta", "B", "C")}
        tails = {name: part[:, cut:] for name, part in parts.items() if name in ("x", "delta", "B", "C")}
        first, between = mamba.scan(A=parts["A"], state=parts["state"], **heads)
        second, end = mamba.scan(A=parts["A"], state=between, **tails)
        assert near(torch.cat([first, second], 1), y) and near(end, last)


@families
@pytest.mark.usefixtures("form")
def test_no_step_leaves_the_state(mamba: Family) -> None:
    parts = mamba.draw()
    parts["delta"][:, -3:] = 0
    _, last = mamba.scan(**parts)
    short = {name: part[:, :-3] if name in ("x", "delta", "B", "C") else part for name, part in parts.items()}
    assert near(last, mamba.scan(**short)[1], within=1e-15)
    parts["delta"] = torch.zeros_like(parts["delta"])
    assert torch.equal(mamba.scan(**parts)[1], parts["state"])


@families
@pytest.mark.usefixtures("form")
def test_nothing_in_nothing_out(mamba: Family) -> None:
    parts = mamba.draw(pos=0)
    y, last = mamba.scan(**parts)
    assert y.shape == parts["x"].shape and torch.equal(last, parts["state"])
    assert states_of(mamba, parts).shape == (2, 0, *last.shape[1:])
    assert pattern_of(mamba, parts).shape[-2:] == (0, 0)
    assert not mamba.scan(**parts | {"state": None})[1].any()
    y, last = mamba.scan(**mamba.draw(batch=0))
    assert y.shape[:2] == (0, 7) and len(last) == 0


@families
@pytest.mark.usefixtures("form")
def test_gradients_are_those_of_the_loop(mamba: Family) -> None:
    parts = {name: part.requires_grad_() for name, part in mamba.draw(pos=8).items()}
    y, last = mamba.scan(**parts)
    states = states_of(mamba, parts)
    wanted_y, wanted = mamba.loop(**parts)
    make = torch.Generator().manual_seed(1)
    slope = torch.randn(wanted.shape, generator=make, dtype=torch.float64)
    for found, expected in (
        ((y**2).sum() + (last**3).sum(), (wanted_y**2).sum() + (wanted[:, -1] ** 3).sum()),
        (last.sin().sum(), wanted[:, -1].sin().sum()),
        ((states * slope).sum(), (wanted * slope).sum()),
    ):
        ours = torch.autograd.grad(found, [*parts.values()], allow_unused=True, retain_graph=True)
        theirs = torch.autograd.grad(expected, [*parts.values()], allow_unused=True, retain_graph=True)
        for name, one, other in zip(parts, ours, theirs, strict=True):
            one, other = (torch.zeros_like(parts[name]) if part is None else part for part in (one, other))
            assert near(one, other), name


@families
@pytest.mark.usefixtures("form")
def test_gradients_are_the_rates_of_change(mamba: Family) -> None:
    parts = {name: part.requires_grad_() for name, part in mamba.draw(1, 4, 1, 2, seed=1).items()}
    names, values = [*parts], tuple(parts.values())

    def of(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given_parts: function(dict(zip(names, given_parts, strict=True)))

    assert torch.autograd.gradcheck(of(lambda now: mamba.scan(**now)), values)
    assert torch.autograd.gradcheck(of(lambda now: pattern_of(mamba, now)), values)


@families
def test_a_gradient_of_one_input_alone(mamba: Family) -> None:
    parts = mamba.draw()
    for name, part in parts.items():
        alone = part.clone().requires_grad_()
        (slope,) = torch.autograd.grad(mamba.scan(**parts | {name: alone})[0].sum(), alone)
        (expected,) = torch.autograd.grad(mamba.loop(**parts | {name: alone})[0].sum(), alone)
        assert near(slope, expected), name


def test_a_gradient_keeps_a_state_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {name: part.requires_grad_() for name, part in selective_inputs(pos=64).items()}
    monkeypatch.setattr(recurrence, "CACHED", 16 * 2 * 3 * 4)  # numbers of 16 positions
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda part: kept.append(part) or part, lambda part: part):
        scan.selective_scan(**parts)
    states = [part for part in kept if part.shape == (2, 4, 3)]
    assert len(states) == 64 // 16
    assert all(part.numel() <= 64 * 2 * 4 for part in kept)
    kept.clear()
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(lambda part: kept.append(part), lambda part: part):
        y, last = scan.selective_scan(**parts)
    assert not kept and not y.requires_grad and not last.requires_grad


@families
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_runs_where_gradients_are_off(mamba: Family, mode: Callable[[], Any]) -> None:
    parts = {name: part.requires_grad_() for name, part in mamba.draw().items()}
    expected = mamba.scan(**parts)
    with mode():
        found = mamba.scan(**parts)
        assert near(states_of(mamba, parts)[:, -1], expected[1])
        assert pattern_of(mamba, parts).isfinite().all()
    assert all(near(one, other.detach()) for one, other in zip(found, expected, strict=True))


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types_are_computed_in_float32(mamba: Family, dtype: torch.dtype) -> None:
    parts = {name: part.to(dtype) for name, part in mamba.draw(pos=20).items()}
    y, last = mamba.scan(**parts)
    wide, wide_last = mamba.scan(**{name: part.float() for name, part in parts.items()})
    assert y.dtype == dtype and torch.equal(y, wide.to(dtype))
    assert last.dtype == torch.float32 and torch.equal(last, wide_last)
    exact, states = mamba.loop(**{name: part.double() for name, part in parts.items()})
    assert near(wide.double(), exact, within=1e-5) and near(last.double(), states[:, -1], within=1e-5)
    assert states_of(mamba, parts).dtype == pattern_of(mamba, parts).dtype == torch.float32


@families
@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steep_decays_underflow_quietly(mamba: Family, dtype: torch.dtype) -> None:
    parts = {name: part.to(dtype) for name, part in mamba.draw(pos=12).items()}
    parts["delta"] = parts["delta"] * torch.tensor([1e-6, 1e4, 1.0, 3e2]).repeat(3).view(
        12, *[1] * (parts["A"].ndim > 0)
    )
    values = [part.requires_grad_() for part in parts.values()]
    y, last = mamba.scan(**parts)
    exact, states = mamba.loop(**{name: part.detach().double() for name, part in parts.items()})
    tight = 1e-10 if dtype == torch.float64 else 2e-5
    assert near(y.double(), exact, within=tight) and near(last.double(), states[:, -1], within=tight)
    for found in (y.sum() + last.sum(), pattern_of(mamba, parts).sum(), states_of(mamba, parts).sum()):
        slopes = torch.autograd.grad(found, values, allow_unused=True)
        assert all(slope is None or slope.isfinite().all() for slope in slopes)


@families
def test_a_long_step_costs_later_ones_no_digits(mamba: Family) -> None:
    parts = mamba.draw(pos=12)
    parts["delta"] = torch.full_like(parts["delta"], 1e-3)
    parts["delta"][:, 1] = 1e5
    exact = pattern_of(mamba, parts)
    found = pattern_of(mamba, {name: part.float() for name, part in parts.items()})
    assert ((found - exact).abs() <= 2e-6 * exact.abs().amax((-1, -2), keepdim=True))[..., 2:, 2:].all()
    later = exact[..., 2:, 2:].abs().amax((-1, -2), keepdim=True)
    assert ((found - exact)[..., 2:, 2:].abs() <= 1e-5 * later).all()
    y, _ = mamba.scan(**{name: part.float() for name, part in parts.items()} | {"state": None})
    expected, _ = mamba.loop(**parts | {"state": torch.zeros_like(parts["state"])})
    assert near(y.double(), expected, within=1e-5)


@families
def test_a_state_of_another_model_is_refused(mamba: Family) -> None:
    parts = mamba.draw()
    wrong = parts["state"][..., 1:]
    for function in (mamba.scan, mamba.states):
        now = {name: part for name, part in parts.items() if name != "C" or function is mamba.scan}
        with pytest.raises(PromptError) as caught:
            function(**now | {"state": wrong})
        assert str(list(wrong.shape)) in str(caught.value) and str(list(parts["state"].shape)) in str(caught.value)
        with pytest.raises(PromptError, match="but this layer and batch need"):
            function(**now | {"state": parts["state"][:1]})
