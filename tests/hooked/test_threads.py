"""Whose hooks are they? Those of the thread that attached them, for as long as its block runs, whatever interrupts."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import FrameType
from typing import Any

import pytest
import torch
from makers import KINDS, RECURRENT, make
from torch import Tensor

from interp.edits import Edit, Variant
from interp.errors import HookError
from interp.hooked import hooks
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.sweeps.machine import packs
from interp.sweeps.sweep import sweep

SITES = ["hook_embed", "blocks.0.attn.hook_pattern", "blocks.1.hook_resid_post"]


def negate(x: Tensor, hook: Any) -> Tensor:
    return -x


def elsewhere(fn: Callable[[], Any]) -> Any:
    """What a function returns in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fn).result()


def free(model: GPT) -> bool:
    return not any(
        point.has_hooks or point.wanted or point.edited or point.changes for point in model.hook_dict.values()
    )


@pytest.mark.parametrize("kind", [*KINDS, *RECURRENT])
def test_another_threads_forward_does_not_run_them(kind: str, tokens: Tensor) -> None:
    model = make(kind)
    plain = model(tokens)
    apart = ("mixer.hook_pattern", "attn_scores", "ln1.hook_scale", "ln1.hook_normalized")  # not all at once
    names = [name for name in model.hook_dict if not name.endswith((*apart, "expert_indices"))]
    with model.hooks([(names, negate)]):
        assert elsewhere(lambda: free(model) and packs(model)) and not packs(model)
        assert torch.equal(elsewhere(lambda: model(tokens)), plain)
        assert not torch.equal(model(tokens), plain)
    assert free(model) and torch.equal(model(tokens), plain)


def test_hooks_of_two_threads_stay_apart(tokens: Tensor) -> None:
    model, both = make("gpt2"), threading.Barrier(2, timeout=60)
    expected = [model.run_with_hooks(tokens, fwd_hooks=[(name, negate)]) for name in SITES[:2]]

    def run(name: str) -> Tensor:
        def meet(x: Tensor, hook: Any) -> None:
            both.wait()  # both forwards are under way

        with model.hooks([("blocks.0.hook_resid_pre", meet), (name, negate)]):
            return model.run_with_cache(tokens)[0]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, SITES[:2]))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["gpt2", "llama_gqa", "hybrid"])
def test_sweeps_in_three_threads_are_sweeps_alone(kind: str) -> None:
    model = make(kind)
    generator = torch.Generator().manual_seed(8)
    clean, corrupt = torch.randint(0, 29, (2, 3, 6), generator=generator).tolist()
    pairs = PromptPairs.from_tokens(clean, corrupt, answers=[(1, 2), (3, 4), (5, 6)])
    names = [name for name, point in model.hook_dict.items() if point.site.per_layer]
    variants = [Variant([Edit(name)], labels={"site": name}) for name in names]
    several = [variants, variants[::-1], variants[1::2]]
    alone = [sweep(model, pairs, part, progress=False) for part in several]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            together = list(pool.map(lambda part: sweep(model, pairs, part, progress=False), several))
            for one, other in zip(alone, together, strict=True):
                assert one.equals(other)


def test_what_a_pool_runs_in_a_copy_of_the_context_has_the_hooks(tokens: Tensor) -> None:
    model = make("gpt2")
    with model.hooks([("hook_embed", negate)]), ThreadPoolExecutor(1) as pool:
        edited = model(tokens)
        late = contextvars.copy_context()
        assert torch.equal(pool.submit(late.run, model, tokens).result(), edited)
    assert torch.equal(late.run(model, tokens), model(tokens))  # and no longer than the block


def test_tasks_of_asyncio_keep_theirs_apart(tokens: Tensor) -> None:
    model = make("gpt2")
    expected = [model.run_with_hooks(tokens, fwd_hooks=[(name, negate)]) for name in SITES]

    async def run(name: str) -> Tensor:
        with model.hooks([(name, negate)]):
            await asyncio.sleep(0)
            return model(tokens)

    async def all_of_them() -> list[Tensor]:
        return await asyncio.gather(*map(run, SITES))

    for one, other in zip(asyncio.run(all_of_them()), expected, strict=True):
        assert torch.equal(one, other)


def test_the_models_own_hooks_are_everybodys(tokens: Tensor) -> None:
    model = make("gpt2")
    plain, edited = model(tokens), model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", negate)])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: model.add_hook("blocks.*.hook_resid_post", lambda x, hook: None), range(50)))
    assert len(model.hook_dict["blocks.1.hook_resid_post"].hooks) == 50
    model.add_hook("hook_embed", negate)
    assert torch.equal(elsewhere(lambda: model(tokens)), edited) and not packs(model)
    with model.hooks([("hook_embed", negate)]):
        assert torch.equal(model(tokens), plain)
        elsewhere(model.reset_hooks)
        assert torch.equal(model(tokens), edited)  # this block's hook is still here
    assert free(model)


def test_resetting_detaches_the_blocks_around_it_alone(tokens: Tensor) -> None:
    model, other = make("gpt2"), make("llama")
    plain, edited = model(tokens), other.run_with_hooks(tokens, fwd_hooks=[("hook_embed", negate)])
    with other.hooks([("hook_embed", negate)]), model.hooks([("hook_embed", negate)]):
        model(tokens)
        model.hook_dict["hook_embed"].ctx["note"] = 1
        model.reset_hooks()
        assert torch.equal(model(tokens), plain) and free(model) and not model.hook_dict["hook_embed"].ctx
        assert torch.equal(other(tokens), edited)


def test_blocks_are_left_in_any_order_and_entered_once(tokens: Tensor) -> None:
    model = make("gpt2")
    plain = model(tokens)
    first, second = model.hooks([("hook_embed", negate)]), model.hooks([("hook_embed", negate)])
    assert first.__enter__() is model and second.__enter__() is model
    assert torch.equal(model(tokens), plain)
    first.__exit__(None, None, None)
    assert not torch.equal(model(tokens), plain)
    second.__exit__(None, None, None)
    assert free(model)
    with pytest.raises(HookError, match="attach them anew"), first:
        pass
    with ExitStack() as stack:
        assert stack.enter_context(model.hooks([("hook_embed", negate)])) is model
        assert not torch.equal(model(tokens), plain)
    assert free(model)
    with pytest.raises(HookError, match="never ran"), ExitStack() as stack:
        stack.enter_context(model.hooks([("hook_embed", negate)]))


def test_a_hook_that_fails_in_one_thread_leaves_the_others_theirs(tokens: Tensor) -> None:
    model = make("gpt2")

    def explode(x: Tensor, hook: Any) -> Tensor:
        raise ZeroDivisionError

    def fail() -> None:
        with pytest.raises(ZeroDivisionError):
            model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_pre", explode)])

    with model.hooks([("hook_embed", negate)]):
        edited = model(tokens)
        elsewhere(fail)
        fail()
        assert torch.equal(model(tokens), edited)
    assert free(model)


class Interrupted:
    """Raises KeyboardInterrupt before the n-th instruction that some functions run."""

    def __init__(self, n: int, *codes: Any) -> None:
        self.left, self.codes = n, codes

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code not in self.codes:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
        return self


def in_a_block(model: GPT, tokens: Tensor) -> None:
    with model.hooks([(["hook_embed", "blocks.0.hook_resid_pre"], negate)]):
        model(tokens, stop_at_layer=1)


def in_nested_blocks(model: GPT, tokens: Tensor) -> None:
    with model.hooks([("hook_embed", negate)]) as same, same.hooks([("hook_embed", negate)]):
        same(tokens, stop_at_layer=0)


def in_one_call(model: GPT, tokens: Tensor) -> None:
    model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", negate)], stop_at_layer=0)


def with_a_cache(model: GPT, tokens: Tensor) -> None:
    model.run_with_cache(tokens, names_filter=["hook_embed"], stop_at_layer=0)


ENDS = [
    fn.__code__
    for fn in (
        hooks.attached, hooks._AtEnd.__get__, hooks.Attachment.__enter__, hooks._leave, hooks._check_ran, GPT.hooks,
        GPT.run_with_hooks, GPT.run_with_cache,
    )
]  # fmt: skip


@pytest.mark.parametrize("work", [in_a_block, in_nested_blocks, in_one_call, with_a_cache])
def test_no_interrupt_leaves_a_hook_behind(work: Callable[[GPT, Tensor], None], tokens: Tensor) -> None:
    model = make("gpt2")
    plain = model(tokens)
    n, caught = 0, []
    while len(caught) == n:
        n += 1
        before = sys.gettrace()
        sys.settrace(Interrupted(n, work.__code__, *ENDS))
        try:
            work(model, tokens)
        except KeyboardInterrupt as error:
            caught.append(error)  # with every frame that it went through, as an interactive session keeps them
        finally:
            sys.settrace(before)
        assert free(model), n
    assert torch.equal(model(tokens), plain) and len(caught) > 100


def test_no_interrupt_leaves_half_of_what_is_added_or_reset(tokens: Tensor) -> None:
    model, n = make("gpt2"), 0
    codes = [fn.__code__ for fn in (GPT.add_hook, GPT.reset_hooks, hooks.detach)]
    stopped = True
    while stopped:
        n, stopped = n + 1, False
        before = sys.gettrace()
        sys.settrace(Interrupted(n, *codes))
        try:
            model.add_hook(SITES, negate)
            model.reset_hooks()
        except KeyboardInterrupt:
            stopped = True
        finally:
            sys.settrace(before)
        counts = {len(model.hook_dict[name].hooks) for name in SITES}
        assert len(counts) == 1, n
        model.reset_hooks()
    assert n > 20
