"""Are sweeps and scans right on a device? Against full forwards, and against loops in double precision."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scan import dual, dual_loop, selective, selective_loop
from torch import Tensor

from interp import GPT, Edit, Mamba, ModelConfig, PromptPairs, Variant
from interp.hooked.hooks import attached
from interp.state_space import scan_kernel as recurrence
from interp.state_space.scan import dual_scan, dual_states, selective_scan, selective_states
from interp.sweeps.sweep import sweep_values

Result = dict[str, Any]
ROOT = Path(__file__).parent.parent

LLAMA: dict[str, Any] = {
    "positional_embedding_type": "rotary", "normalization_type": "RMS", "gated_mlp": True, "act_fn": "silu",
    "attn_in_bias": False, "attn_out_bias": False, "mlp_bias": False, "unembed_bias": False,
}  # fmt: skip
STATES: dict[str, Any] = {"normalization_type": "RMS", "unembed_bias": False}
KINDS: dict[str, dict[str, Any]] = {
    "GPT-2": {},
    "Llama, grouped queries": {**LLAMA, "n_key_value_heads": 2},
    "Mamba": {**STATES, "layer_types": ("mamba",) * 4},
    "Mamba-2": {**STATES, "layer_types": ("mamba2",) * 4, "d_ssm_head": 32, "d_state": 32},
    "hybrid": {**STATES, "layer_types": ("mamba2", "attn+mlp", "mamba+mlp", "attn"), "d_ssm_head": 32, "d_state": 32},
}
SITES = ("resid_pre", "z", "v", "pattern", "post", "mlp_out", "conv", "delta", "B", "state", "y", "gate", "mixer_out")


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Whether float32 products may be made of TensorFloat-32 numbers."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def number_types(options: argparse.Namespace) -> list[tuple[str, torch.dtype, bool]]:
    """Name, dtype and whether TensorFloat-32 is allowed."""
    exact, half = ("float32", torch.float32, False), ("bfloat16", torch.bfloat16, False)
    return [exact, ("float32 by TF32", torch.float32, True), half] if options.device == "cuda" else [exact, half]


def build(options: argparse.Namespace, **sizes: Any) -> GPT:
    """A model of random weights, drawn where it is to lie."""
    cfg = ModelConfig(**sizes)
    with torch.device(options.device):
        torch.manual_seed(0)
        model = (Mamba if cfg.has_mamba else GPT)(cfg)
    return model.requires_grad_(False).eval()


def random_pairs(n: int, length: int, d_vocab: int, first: int) -> PromptPairs:
    """Random prompts whose corrupt ones differ from position `first` on."""
    make = torch.Generator().manual_seed(0)
    clean = torch.randint(d_vocab, (n, length), generator=make)
    corrupt = clean.clone()
    corrupt[:, first:] = (clean + torch.randint(1, d_vocab, clean.shape, generator=make))[:, first:] % d_vocab
    half = d_vocab // 2
    answers = torch.randint(half, (n, 2), generator=make) + torch.tensor([0, half])
    return PromptPairs.from_tokens(clean, corrupt, answers=answers, name="random")


def swept(model: GPT, pairs: PromptPairs, variants: Sequence[Variant]) -> np.ndarray[Any, Any]:
    """The values of a sweep [variant, prompt], without the table that needs pandas."""
    return sweep_values(model, pairs, variants, progress=False).values


@torch.no_grad()
def one_by_one(model: GPT, pairs: PromptPairs, variants: Sequence[Variant]) -> tuple[np.ndarray[Any, Any], float]:
    """The same by a full forward for every variant, and the largest logit."""
    pairs = pairs.to(model.device)
    names = sorted({edit.name(model.cfg) for variant in variants for edit in variant.edits})
    _, kept = model.run_with_cache(pairs.clean, names_filter=names)
    rows = torch.arange(len(pairs), device=model.device)[:, None]
    largest = float(model(pairs.corrupt).abs().max())
    values = []
    for variant in variants:
        (edit,) = variant.edits
        name = edit.name(model.cfg)

        def patch(value: Tensor, hook: Any, edit: Edit = edit, name: str = name) -> Tensor:
            new, axes = value.clone(), hook.site.axes
            place = tuple(edit.where.get(axis, slice(None)) for axis in axes)
            new[place] = kept[name][place]
            return new

        with attached(model.hook_dict, [(name, patch)]):
            logits = model(pairs.corrupt)[:, -1].float()
        right, wrong = logits[rows, pairs.answers].unbind(1)
        values.append((right - wrong).double().cpu().numpy())
    return np.stack(values), largest


def some_variants(model: GPT, length: int) -> list[Variant]:
    """Edits of one site each: every site of `SITES` in two layers, whole and at one position, and some heads."""
    edits = []
    for layer in (1, model.cfg.n_layers - 1):
        for site in SITES:
            names = [f"blocks.{layer}.{where}hook_{site}" for where in ("", "attn.", "mlp.", "mixer.")]
            name = next((name for name in names if name in model.hook_dict), None)
            if name is None:
                continue
            axes = model.hook_dict[name].site.axes
            edits.append(Edit(name))
            edits += [Edit(name, {"query" if "query" in axes else "pos": at}) for at in (length // 2, length - 1)]
            edits += [Edit(name, {"head": 1})] if "head" in axes else []
    return [Variant([edit], {"cell": at}) for at, edit in enumerate(edits)]


def sweeps_against_forwards(options: argparse.Namespace) -> Iterator[Result]:
    """Sweeps at many sites, in several number types.

    In float32 every cell must be that of a full forward to 2e-5 of the largest logit. In a coarser type the sweep and
    the forwards round differently: measured against float32, a sweep may be off by no more than twice what they are.
    """
    width, length = (48, 9) if options.small else (256, 24)
    for kind, own in KINDS.items():
        sizes = {"n_layers": 4, "d_model": width, "d_head": width // 8, "n_heads": 8, "n_ctx": 64, "d_vocab": 500}
        model = build(options, **{**sizes, "initializer_range": 1.5 / width**0.5, **own})
        pairs = random_pairs(6, length, 500, length // 3)
        variants = some_variants(model, length)
        with tf32(False):
            truth, largest = one_by_one(model, pairs, variants)
        for name, dtype, coarse in number_types(options):
            now = model if dtype == torch.float32 else build(options, **{**sizes, **own}).to(dtype)
            if dtype != torch.float32:
                now.load_state_dict(model.state_dict())
            with tf32(coarse):
                found, (loop, _) = swept(now, pairs, variants), one_by_one(now, pairs, variants)
            off, theirs = (float(np.abs(value - truth).max() / largest) for value in (found, loop))
            exact = dtype == torch.float32 and not coarse
            apart = float(np.abs(found - loop).max() / largest)
            right = bool(apart <= 2e-5) if exact else bool(off <= 2 * theirs + 1e-6)
            yield {
                "row": f"sweep, {kind}",
                "dtype": name,
                "verdict": "ok" if right else "wrong",
                "cells": found.size,
                "from the loop": apart,
                "from float32": off,
                "the loop from float32": theirs,
            }


@contextmanager
def stepwise(on: bool, device: str) -> Iterator[None]:
    """Whether the recurrence of Mamba-1 is taken position by position or in a tree."""
    before, recurrence.STEPWISE = recurrence.STEPWISE, (device,) if on else ()
    try:
        yield
    finally:
        recurrence.STEPWISE = before


def scans_against_loops(options: argparse.Namespace) -> Iterator[Result]:
    """y, states and gradients of both scans in every form, against a loop in float64; and their times."""
    shapes = [(2, 9)] if options.small else [(4, 16), (8, 256), (1, 2048)]
    sizes: dict[str, Any] = {"channels": 24, "d_state": 4} if options.small else {"channels": 1536, "d_state": 16}
    heads: dict[str, Any] = {"heads": 4, "d_head": 8, "d_state": 8} if options.small else {}
    kinds: list[tuple[str, Callable[..., Any], Callable[..., Any], dict[str, Tensor], Any]] = []
    for batch, length in shapes:
        torch.manual_seed(0)
        one, two = selective(batch, length, **sizes), dual(batch, length, **heads)
        for form in ("tree", "steps"):
            kinds.append((f"Mamba-1, {form}, {batch} x {length}", selective_scan, selective_loop, one, form == "steps"))
        kinds.append((f"Mamba-2, {batch} x {length}", dual_scan, dual_loop, two, False))
    for title, scan, loop, parts, steps in kinds:
        for dtype in (torch.float32, torch.bfloat16):
            given = {name: part.to(options.device, dtype) for name, part in parts.items()}
            long = given["x"].shape[1] > 1000
            with stepwise(steps, options.device), tf32(False):
                yield {"row": title, "dtype": str(dtype)[6:], **_scan_row(scan, loop, given, slopes=not long)}
    for title, states, scan, parts in (
        ("Mamba-1", selective_states, selective_scan, selective(2, 9, channels=24, d_state=4)),
        ("Mamba-2", dual_states, dual_scan, dual(2, 9, heads=4, d_head=8, d_state=8)),
    ):
        given = {name: part.to(options.device) for name, part in parts.items()}
        found = states(**{name: part for name, part in given.items() if name != "C"})[:, -1]
        off = _off(found, scan(**given)[1])
        yield {"row": f"{title}, states", "dtype": "float32", "verdict": _judged(off, 1e-5), "last state": off}


def attention_by_kernels(options: argparse.Namespace) -> Iterator[Result]:
    """Grouped queries under a mask, as the engine asks for them: which way to fused attention is the fastest?"""
    many, heads, kv_heads, length, d_head = (4, 4, 2, 9, 8) if options.small else (512, 32, 8, 32, 64)
    for name, dtype, coarse in number_types(options):
        make = {"device": options.device, "dtype": dtype}
        torch.manual_seed(0)
        q = torch.randn(many, heads, length, d_head, **make)
        k, v = torch.randn(2, many, kv_heads, length, d_head, **make)
        mask = torch.rand(many, 1, length, length, device=options.device) < 0.5
        mask |= torch.eye(length, dtype=torch.bool, device=options.device)
        group = heads // kv_heads

        def flagged(q: Tensor = q, k: Tensor = k, v: Tensor = v, mask: Tensor = mask) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

        def repeated(q: Tensor = q, k: Tensor = k, v: Tensor = v, mask: Tensor = mask, group: int = group) -> Tensor:
            k, v = (x.repeat_interleave(group, 1) for x in (k, v))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

        def products(q: Tensor = q, k: Tensor = k, v: Tensor = v, mask: Tensor = mask) -> Tensor:
            own = (
                q.unflatten(1, (k.shape[1], -1)).flatten(2, 3).flatten(0, 1)
            )  # [sequence kv_head, group query, d_head]
            penalty = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
            penalty = (
                penalty[:, :, None].expand(-1, k.shape[1], q.shape[1] // k.shape[1], -1, -1).flatten(2, 3).flatten(0, 1)
            )
            scores = torch.baddbmm(penalty, own, k.flatten(0, 1).mT, alpha=q.shape[-1] ** -0.5)
            return (scores.softmax(-1) @ v.flatten(0, 1)).view_as(q)

        with tf32(coarse):
            exact = repeated(*(x.double() for x in (q, k, v)))
            ways = {"flag": flagged, "repeated": repeated, "products": products}
            off = max(_off(way().double(), exact) for way in ways.values())
            times = {f"{way} ms": 1e3 * timed(run) for way, run in ways.items()}
        within = 2e-5 if dtype == torch.float32 and not coarse else 2e-2
        yield {"row": "attention, grouped, masked", "dtype": name, "verdict": _judged(off, within), "off": off, **times}


def _scan_row(scan: Any, loop: Any, given: dict[str, Tensor], *, slopes: bool) -> Result:
    exact = {name: part.double() for name, part in given.items()}
    y = scan(**given)[0]
    off = _off(y.double(), loop(**exact))
    narrow = y.dtype == torch.bfloat16
    row: Result = {"y": off}
    within = 2**-8 if narrow else 2e-5
    if slopes and not narrow:
        off_slopes = _off_slopes(lambda **now: scan(**now)[0], loop, given, exact)
        row["gradients"] = off_slopes
        off = max(off, off_slopes)
    row = {"verdict": _judged(off, within), **row}
    ours, theirs = (timed(lambda run=run: run(**given)) for run in (scan, loop))
    return {**row, "ms": 1e3 * ours, "loop ms": 1e3 * theirs}


def _off_slopes(scan: Any, loop: Any, given: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    found = []
    for run, parts in ((scan, given), (loop, exact)):
        now = {name: part.detach().requires_grad_() for name, part in parts.items()}
        y = run(**now)
        found.append(torch.autograd.grad((y * now["x"].detach()).sum(), [*now.values()]))
    return max(_off(one.double(), other) for one, other in zip(*found, strict=True))


def _off(one: Tensor, other: Tensor) -> float:
    """The largest difference, of the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def _judged(off: float, within: float) -> str:
    return "ok" if off <= within else "wrong"


def wait(device: torch.device) -> None:
    """Until all that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], Any], *, rounds: int = 3) -> float:
    """The median of seconds that a call takes, after one that is not counted."""
    seconds = []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for turn in range(rounds + 1):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        if turn:
            seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def device_tests(options: argparse.Namespace, until: float) -> Iterator[Result]:
    """The tests that take a device, as pytest runs them."""
    absent = [name for name in ("pytest", "hypothesis", "pandas") if importlib.util.find_spec(name) is None]
    if absent:
        yield {"row": "tests", "verdict": f"left out: {', '.join(absent)} could not be had"}
        return
    workers = min(8, os.cpu_count() or 1)
    spread = ["-n", str(workers)] if workers > 2 and importlib.util.find_spec("xdist") else []
    # Other versions of pytest and of the libraries than those that the tests are run with have other warnings.
    lenient = ["-W", "default", "-o", "minversion=7.0", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "--device", options.device, "--maxfail=20", "--tb=short"]
    command += [*lenient, *spread, "tests/test_device.py", *(["-k", "forward or metric"] if options.small else [])]
    done = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        told, _ = done.communicate(timeout=max(1.0, until - time.time() - 3))
    except subprocess.TimeoutExpired:
        done.kill()
        told, _ = done.communicate()
        yield {"row": "tests", "verdict": "left out: they were not through", "last line": told.splitlines()[-1:]}
        return
    counted = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|errors?|skipped)", told)}
    right = done.returncode == 0
    failures = re.findall(r"^(?:FAILED|ERROR) (.*)$", told, flags=re.M)
    if not right:
        print(told[-6000:], file=sys.stderr)
    yield {
        "row": "tests",
        "verdict": "ok" if right else "wrong",
        **counted,
        **({"which": failures} if failures else {}),
    }
