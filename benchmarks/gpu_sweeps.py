"""Whole sweeps at published sizes, with random weights, against a loop of full forwards on the same device.

1. The loop is one that a careful person writes: as many cells in a forward as run fastest, all of a batch's edits in
   one hook a layer, the last position alone unembedded. It is timed over some batches, of which each takes new cells,
   and reckoned for all: its cells all cost the same.
2. A round takes the sweep, the loop's batches and a large matrix product in turn (`interleaved.py`); numbers are
   medians.
3. "of peak" is the rate at which the sweep executes floating-point operations, in matrix products and attention, over
   that of the product in the same number type; "x least" is how many it executes over the smallest number (`least.py`).
   "waits" is how often the host had to wait for the device in one sweep. Memory is what was allocated at the most
   beyond the weights.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gpu_checks import LLAMA, Result, build, number_types, random_pairs, swept, tf32, wait
from interleaved import interleaved
from least import executed, least
from torch import Tensor

from interp import GPT, Edit, PromptPairs, Variant
from interp.hooked.hooks import attached
from interp.sweeps import plan as plans

SHAPES: dict[str, dict[str, Any]] = {
    "GPT-2 small": {"n_layers": 12, "d_model": 768, "d_head": 64, "n_heads": 12, "d_vocab": 50257, "n_ctx": 1024,
                    "act_fn": "gelu_new", "tie_word_embeddings": True, "unembed_bias": False},
    "SmolLM2-135M": {"n_layers": 30, "d_model": 576, "d_head": 64, "n_heads": 9, "n_key_value_heads": 3,
                     "d_mlp": 1536, "d_vocab": 49152, "n_ctx": 2048, "tie_word_embeddings": True, **LLAMA},
    "Llama 1B": {"n_layers": 16, "d_model": 2048, "d_head": 64, "n_heads": 32, "n_key_value_heads": 8,
                 "d_mlp": 8192, "d_vocab": 128256, "n_ctx": 2048, "tie_word_embeddings": True, **LLAMA},
}  # fmt: skip
SMALL: dict[str, Any] = {"n_layers": 3, "d_model": 48, "d_head": 12, "n_heads": 4, "d_vocab": 300, "d_mlp": 96}
PROMPTS, LENGTH, FIRST = 8, 32, 10
BATCHES = 2  # of the loop, in a round
CELLS = (32, 128, 512)  # in a forward of the loop: the fastest that fits is taken


@dataclass(frozen=True)
class Cells:
    """The cells of a sweep: one edit each, of a head or of the residual stream at a position."""

    title: str
    site: str
    places: tuple[tuple[int, int], ...]  # layer, and head or position

    @property
    def axis(self) -> str:
        """What a place names beside its layer."""
        return "head" if self.site == "z" else "pos"

    @property
    def variants(self) -> list[Variant]:
        """The cells as a sweep takes them."""
        return [
            Variant([Edit(self.site, {"layer": layer, self.axis: at})], {"cell": cell})
            for cell, (layer, at) in enumerate(self.places)
        ]


class Loop:
    """Full forwards, each with the edits of many cells."""

    def __init__(self, model: GPT, pairs: PromptPairs, cells: Cells) -> None:
        self.model, self.pairs, self.cells = model, pairs, cells
        name = "attn.hook_z" if cells.site == "z" else "hook_resid_pre"
        self.names = [f"blocks.{layer}.{name}" for layer in range(model.cfg.n_layers)]
        _, self.kept = model.run_with_cache(pairs.clean, names_filter=self.names, return_type=None)

    def run(self, chosen: Sequence[int]) -> Tensor:
        """The logit differences of some cells [cell, prompt]."""
        model, n = self.model, len(self.pairs)
        hooks = []
        for layer in range(model.cfg.n_layers):
            here = [
                (at, self.cells.places[cell][1])
                for at, cell in enumerate(chosen)
                if self.cells.places[cell][0] == layer
            ]
            if here:
                hooks.append((self.names[layer], self._patch(layer, here)))
        with attached(model.hook_dict, hooks):
            resid = model(self.pairs.corrupt.repeat(len(chosen), 1), stop_at_layer=model.cfg.n_layers)
        logits = model.unembed(model.ln_final(resid[:, -1]))
        answers = self.pairs.answers.repeat(len(chosen), 1)
        right, wrong = logits.gather(1, answers).float().unbind(1)
        return (right - wrong).view(len(chosen), n)

    def _patch(self, layer: int, here: Sequence[tuple[int, int]]) -> Callable[..., Tensor]:
        n, device = len(self.pairs), self.model.device
        cell, at = (torch.tensor(numbers, device=device) for numbers in zip(*here, strict=True))
        prompt = torch.arange(n, device=device)
        rows, prompts = (cell[:, None] * n + prompt).flatten(), prompt.repeat(len(here))
        at, source, by_head = at.repeat_interleave(n), self.kept[self.names[layer]], self.cells.site == "z"

        def patch(value: Tensor, hook: Any) -> Tensor:
            if by_head:
                value[rows, :, at] = source[prompts, :, at]
            else:
                value[rows, at] = source[prompts, at]
            return value

        return patch


def rows(options: argparse.Namespace) -> Iterator[Result]:
    """Every shape, number type and kind of sweep; the smallest first."""
    for name, sizes in SHAPES.items():
        sizes = {**sizes, **SMALL, "n_ctx": 64} if options.small else sizes
        if "n_key_value_heads" in sizes and options.small:
            sizes = {**sizes, "n_key_value_heads": 2}
        types = number_types(options)
        big = sizes["d_model"] > 1000
        model = build(options, initializer_range=sizes["d_model"] ** -0.5, **sizes)
        for title, dtype, coarse in types:
            if big and title == "float32":
                continue  # the same as TF32, and takes a minute more
            model = model.to(dtype)
            for cells in kinds(model):
                with tf32(coarse):
                    yield {"row": f"{name}, {cells.title}", "dtype": title, **measure(model, cells, options)}
        if name == "SmolLM2-135M":
            yield from by_rows(model, options, f"{name}, {types[-1][0]}")
        del model
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()


def kinds(model: GPT) -> list[Cells]:
    layers = range(model.cfg.n_layers)
    heads = tuple((layer, head) for layer in layers for head in range(model.cfg.n_heads))
    places = tuple((layer, pos) for layer in layers for pos in range(FIRST, LENGTH))
    return [Cells("heads", "z", heads), Cells("residual stream by position", "resid_pre", places)]


@torch.no_grad()
def measure(model: GPT, cells: Cells, options: argparse.Namespace) -> Result:
    """One row: the sweep, the loop and the product."""
    device = model.device
    pairs = random_pairs(PROMPTS, LENGTH, model.cfg.d_vocab, FIRST).to(device)
    variants, loop = cells.variants, Loop(model, pairs, cells)
    size, loop_memory = fastest(loop, len(variants), options)
    batches = [range(at, min(at + size, len(variants))) for at in range(0, len(variants), size)]
    some = [batches[at * len(batches) // BATCHES] for at in range(min(BATCHES, len(batches)))]
    n = 256 if options.small else 8192
    left, right = (torch.randn(n, n, device=device, dtype=model.dtype) for _ in range(2))

    found: dict[str, Any] = {}

    def sweep() -> None:
        found["values"] = swept(model, pairs, variants)

    def forwards() -> None:
        found["loop"] = [(cell, value) for batch in some for cell, value in zip(batch, loop.run(batch), strict=True)]
        wait(device)

    def product() -> None:
        torch.mm(left, right)
        wait(device)

    seconds = {name: statistics.median(times) for name, times in interleaved(
        {"sweep": sweep, "loop": forwards, "product": product}, 2 if options.small else 3
    ).items()}  # fmt: skip
    apart = max(
        float(np.abs(value.double().cpu().numpy() - found["values"][cell]).max()) for cell, value in found["loop"]
    )
    scale = float(model(pairs.corrupt)[:, -1].float().abs().max())
    memory, waits = peak(sweep, device), host_waits(sweep, device)
    operations = executed(sweep)
    smallest = least(model.cfg, pairs.to("cpu"), variants, base="corrupt", source="clean")
    per_cell = seconds["loop"] / sum(len(batch) for batch in some)
    within = 2e-5 if model.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32 else 0.1
    rate, best = operations / seconds["sweep"], 2 * n**3 / seconds["product"]
    return {
        "verdict": "ok" if apart <= within * scale else "wrong",
        "cells": len(variants),
        "prompts": PROMPTS,
        "tokens": LENGTH,
        "seconds": seconds["sweep"],
        "loop seconds": per_cell * len(variants),
        "times faster": per_cell * len(variants) / seconds["sweep"],
        "cells a forward": size,
        "from the loop": apart / scale,
        "MiB": memory,
        "loop MiB": loop_memory,
        "waits": waits,
        "TFLOP": operations / 1e12,
        "x least": operations / smallest,
        "TFLOP/s": rate / 1e12,
        "product TFLOP/s": best / 1e12,
        "of peak": rate / best,
    }


def fastest(loop: Loop, n_cells: int, options: argparse.Namespace) -> tuple[int, float | None]:
    """How many cells in a forward take the least time a cell, and the MiB of such a forward."""
    device, found = loop.model.device, []
    for size in (4, 8) if options.small else CELLS:
        size = min(size, n_cells)
        try:
            run = lambda size=size: loop.run(range(size))  # noqa: E731
            run()
            memory = peak(run, device)
            seconds = statistics.median(interleaved({"run": lambda run=run: (run(), wait(device))}, 2)["run"])
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        found.append((seconds / size, size, memory))
    if not found:
        raise MemoryError(f"not even {CELLS[0]} cells fit into a forward")
    _, size, memory = min(found)
    return size, memory


def peak(run: Callable[[], Any], device: torch.device) -> float | None:
    """MiB allocated at the most during a call, beyond what was there before it."""
    if device.type != "cuda":
        run()
        return None
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    wait(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def host_waits(run: Callable[[], Any], device: torch.device) -> int | None:
    """How often a call makes the host wait for the device."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)


@torch.no_grad()
def by_rows(model: GPT, options: argparse.Namespace, name: str) -> Iterator[Result]:
    """How long the sweep over heads takes by how many rows a chunk has: is `interp.sweeps.machine.ROWS` well chosen?"""
    cells = kinds(model)[0]
    pairs = random_pairs(PROMPTS, LENGTH, model.cfg.d_vocab, FIRST)
    kind = model.device.type
    chosen, times = plans.ROWS[kind], {}
    for factor in (0.25, 1.0, 4.0, 16.0):
        plans.ROWS[kind] = int(factor * chosen)
        try:
            times[plans.ROWS[kind]] = interleaved({"sweep": lambda: swept(model, pairs, cells.variants)}, 2)["sweep"]
        finally:
            plans.ROWS[kind] = chosen
    yield {
        "row": f"{name}, heads, seconds by rows of a chunk",
        "dtype": "",
        "verdict": "ok",
        **{f"{size} rows": statistics.median(seconds) for size, seconds in times.items()},
    }
