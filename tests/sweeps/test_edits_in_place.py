"""Functions that edit in place mean what the same edit means when made on a copy: at every site, in every mode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
import torch
from makers import KINDS, RECURRENT, every_expert, make
from torch import Tensor

from interp.edits import Edit, Variant
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.sweeps.sweep import sweep

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": partial(torch.autocast, "cpu", dtype=torch.bfloat16),
}
# Learned positions, one key head that all share, both generations of states and of their heads, with attention or not.
SOME = ("gpt2", "gptj_pairs", "mamba", "mamba2", "hybrid")


def halve(x: Tensor, hook: Any) -> None:
    x.mul_(0.5)


def halved(x: Tensor, hook: Any) -> Tensor:
    return x.mul_(0.5)


def cut(x: Tensor, hook: Any) -> None:
    x[:, 2] = 0
    x[..., 0] += 1


PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "no return": (halve, lambda x, hook: x * 0.5),
    "a return": (halved, lambda x, hook: x * 0.5),
    "slices": (cut, lambda x, hook: (y := x.clone(), cut(y, hook), y)[2]),
}


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 29, (2, 5), generator=torch.Generator().manual_seed(0))


def same(one: Tensor, other: Tensor) -> None:
    tolerance = 2e-2 if one.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("edit", PAIRS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", SOME)
def test_an_edit_in_place_is_the_edit_of_a_copy(kind: str, mode: str, edit: str, tokens: Tensor) -> None:
    model = make(kind)
    order = list(model.hook_dict)
    with MODES[mode]():
        _, plain = model.run_with_cache(tokens)
        for name in order:
            found = []
            for fn in PAIRS[edit]:
                with model.hooks([(name, fn)]):
                    found.append(model.run_with_cache(tokens))
            (logits, cache), (expected, other) = found
            same(logits, expected)
            assert list(cache) == list(other)
            for kept in cache:
                same(cache[kept], other[kept])
                if order.index(kept) < order.index(name) and kept.split(".")[:2] != name.split(".")[:2]:
                    same(cache[kept], plain[kept])  # what came before is as it was


@pytest.mark.parametrize("kind", SOME)
def test_an_edit_in_place_has_the_gradient_of_the_edit_of_a_copy(kind: str, tokens: Tensor) -> None:
    model = make(kind)
    for name in model.hook_dict:
        slopes = []
        for fn in PAIRS["slices"]:
            logits = model.run_with_hooks(tokens, fwd_hooks=[(name, fn)])
            slopes.append(torch.autograd.grad(logits.square().sum(), list(model.parameters()), materialize_grads=True))
        for one, other in zip(*slopes, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", SOME)
def test_a_gradient_that_is_edited_in_place_is_a_copy(kind: str, tokens: Tensor) -> None:
    model = make(kind)
    for name in (name for name in model.hook_dict if not name.endswith("mixer.hook_pattern")):
        slopes = []
        for fn in PAIRS["no return"]:
            loss = model.run_with_hooks(tokens, return_type="loss", bwd_hooks=[(name, fn)])
            slopes.append(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))
        for one, other in zip(*slopes, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_each_function_has_a_tensor_of_its_own(tokens: Tensor) -> None:
    model = make("gpt2")
    given: list[Tensor] = []

    def keep(x: Tensor, hook: Any) -> None:
        given.append(x)

    with torch.no_grad(), model.hooks([("blocks.0.hook_resid_post", keep), ("blocks.0.hook_resid_post", halve)]):
        _, cache = model.run_with_cache(tokens)
    assert torch.equal(given[0] * 0.5, cache["resid_post", 0])


def test_nobody_pays_for_copies_where_nobody_edits(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model, copies = make("gpt2"), []
    clone = Tensor.clone
    monkeypatch.setattr(Tensor, "clone", lambda x, **options: (copies.append(x), clone(x, **options))[1])
    model.run_with_cache(tokens)
    assert not copies
    model.run_with_hooks(tokens, fwd_hooks=[("blocks.*.hook_resid_post", lambda x, hook: None)])
    assert len(copies) == 2


@pytest.mark.parametrize("kind", SOME)
def test_functions_of_edits_may_edit_in_place(kind: str) -> None:
    model, pairs = make(kind), made_pairs()
    for name in model.hook_dict:
        frames = [
            sweep(model, pairs, [Variant([Edit(name, source=fn)])], progress=False)  # type: ignore[arg-type]
            for fn in PAIRS["slices"]
        ]
        torch.testing.assert_close(*(torch.tensor(frame["value"].to_numpy()) for frame in frames), msg=name)


def made_pairs() -> PromptPairs:
    generator = torch.Generator().manual_seed(8)
    clean, corrupt = torch.randint(0, 29, (2, 2, 6), generator=generator).tolist()
    return PromptPairs.from_tokens(clean, corrupt, answers=[(1, 2), (3, 4)])


def by_hand(model: GPT, pairs: PromptPairs, edit: Edit, name: str) -> Tensor:
    """The metric of an edit, from a plain forward with a hook."""
    _, source = model.run_with_cache(pairs.clean, names_filter=name)
    new = source[name]
    change = (lambda x, hook: new) if edit.source == "source" else (lambda x, hook: x * 0.5)
    logits = model.run_with_hooks(pairs.corrupt, fwd_hooks=[(name, change)])[:, -1].float()
    right, wrong = ([answer[side] for answer in ((1, 2), (3, 4))] for side in (0, 1))
    rows = torch.arange(2)
    return (logits[rows, right] - logits[rows, wrong]).detach()


@pytest.mark.parametrize("kind", [*KINDS, *RECURRENT])
def test_sweeps_under_autocast_are_forwards_under_autocast(kind: str) -> None:
    experts = (KINDS | RECURRENT)[kind].get("experts")
    # Every expert is chosen: in 16 bits rounding alone may change a choice.
    all_of_them = {} if experts is None else {"experts": every_expert(experts)}
    model, pairs = make(kind, **all_of_them), made_pairs()
    edits = {
        (name, op): Edit(name, op=op, source=source)  # type: ignore[arg-type]
        for name in model.hook_dict
        for op, source in (("set", "source"), ("scale", 0.5))
        if op == "set" or not model.hook_dict[name].site.whole
    }
    variants = [Variant([edit], labels={"site": name, "op": op}) for (name, op), edit in edits.items()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        frame = sweep(model, pairs, variants, "logit_diff", progress=False).set_index(["site", "op"])["value"]
        expected = {key: by_hand(model, pairs, edit, key[0]) for key, edit in edits.items()}
        size = float(model(pairs.corrupt).detach().abs().max())
    for key, value in expected.items():
        found = torch.tensor(frame.loc[key].to_numpy())
        torch.testing.assert_close(
            found, value.double(), rtol=0, atol=0.05 * size, msg=lambda m, key=key: f"{key}: {m}"
        )


def test_a_tensor_that_a_hook_keeps_and_changes_later_is_not_what_is_cached_in_inference_mode(
    tokens: torch.Tensor,
) -> None:
    model = make("gpt2")
    kept: list[Tensor] = []

    def clear(value: Tensor, hook: Any) -> None:
        kept[0].zero_()

    names = "blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"
    with torch.inference_mode():
        _, expected = model.run_with_cache(tokens)
        hooks = [(names[0], lambda value, hook: kept.append(value)), (names[1], clear)]
        with model.hooks(hooks):
            _, cache = model.run_with_cache(tokens, names_filter=names[0])
    assert torch.equal(cache[names[0]], expected[names[0]]) and bool(cache[names[0]].any())
