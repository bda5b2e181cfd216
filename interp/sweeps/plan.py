"""The plan of a sweep: which rows must be run, cut into chunks, and what they cost; made without running anything.

1. Prompts are cut into blocks, whose base and source runs fit into memory at once.
2. In each block, variants are ordered by where they begin in the depth of the model and cut into chunks of about as
   many rows as the machine multiplies best. Variants that make the model form something on demand (a pattern, an input
   for every head) have chunks of their own, so that nobody else pays for it.
3. The first chunk of each block is the block's base and source runs; the rest are variants, in any order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.edits import Variant
from interp.errors import ConfigError
from interp.hooked.model import HookedModel
from interp.metrics import Metric, answers_of, is_read
from interp.prompts.pairs import PromptPairs
from interp.sweeps.costs import Costs, Load
from interp.sweeps.edit_reach import Events, Placed, Placer, changed, events, starts, token_differences
from interp.sweeps.machine import ROWS, free_memory, packs, watched
from interp.sweeps.source_values import whole_source

# The part of a matrix product's rate that a sweep reaches (benchmarks/sweep.py).
EFFICIENCY = 0.75

# Sites that are formed for all rows of a layer where anything edits one, at more than the price of the layer.
COSTLY = ("mixer.pattern", "state")


@dataclass(frozen=True)
class Chunk:
    """Some variants on some prompts.

    Attributes:
        prompts: the block of prompts, first and behind the last.
        variants: their numbers; none for the base and source runs of the block.
        cells: variants times prompts that are run; the others change nothing.
        rows: positions that are run at the widest step.
        operations: floating-point operations, a multiplication and an addition counted as two.
        memory: bytes that are allocated, about.
    """

    prompts: tuple[int, int]
    variants: tuple[int, ...]
    cells: int
    rows: int
    operations: float
    memory: int


@dataclass(frozen=True)
class Plan:
    """How a sweep is going to be run; `print` it.

    Attributes:
        chunks: what is run, in order; those without variants are base and source runs.
        n_variants: how many variants there are.
        n_prompts: how many prompts.
        idle: cells (variant and prompt) that change nothing, so that nothing is run for them.
        max_memory: bytes that may be allocated beyond the weights.
        packed: whether rows of different variants share a batch and skip what they do not change.
        joins: the steps of the depth (`interp.sweeps.edit_reach`) at which rows join a batch.
        starts: the positions from which on rows are run; of state-space layers what is known of earlier positions is
            kept before these alone.
    """

    chunks: tuple[Chunk, ...]
    n_variants: int
    n_prompts: int
    idle: int
    max_memory: int
    packed: bool
    joins: tuple[int, ...]
    starts: tuple[int, ...] = ()

    @property
    def cells(self) -> int:
        """Variants times prompts."""
        return self.n_variants * self.n_prompts

    @property
    def operations(self) -> float:
        """Floating-point operations of all chunks."""
        return sum(chunk.operations for chunk in self.chunks)

    def __str__(self) -> str:
        rows = [chunk.rows for chunk in self.chunks if chunk.variants]
        widest = f", {min(rows):,} to {max(rows):,} rows each" if rows else ""
        how = "" if self.packed else "; each a batch of whole forwards"
        return (
            f"{self.n_variants:,} variants x {self.n_prompts:,} prompts = {self.cells:,} cells, of which {self.idle:,} "
            f"change nothing and cost nothing\n"
            f"{len(rows):,} chunks{widest}{how}\n"
            f"{self.operations:.3g} floating-point operations\n"
            f"about {max(chunk.memory for chunk in self.chunks) / 2**20:,.0f} MiB beyond the weights, of "
            f"{self.max_memory / 2**20:,.0f} MiB allowed"
        )

    def to_plain(self) -> dict[str, Any]:
        """What a journal remembers of it, in plain JSON values: not the memory that was free."""
        return {
            "idle": self.idle,
            "packed": self.packed,
            "joins": list(self.joins),
            "starts": list(self.starts),
            "chunks": [[*c.prompts, list(c.variants), c.cells, c.rows, c.operations, c.memory] for c in self.chunks],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], n_variants: int, n_prompts: int, max_memory: int) -> Plan:
        """The plan that `to_plain` gave; the rest is of this process."""
        chunks = tuple(
            Chunk((first, last), tuple(variants), *counts) for first, last, variants, *counts in plain["chunks"]
        )
        joins, starts = tuple(plain["joins"]), tuple(plain["starts"])
        return cls(chunks, n_variants, n_prompts, plain["idle"], max_memory, plain["packed"], joins, starts)


def expected_seconds(plan: Plan, model: HookedModel) -> float:
    """How long a plan should take, from the time of a matrix product of this model's shape on this machine."""
    rows = ROWS.get(model.device.type, ROWS["cpu"])
    x = torch.ones(rows, model.cfg.d_model, device=model.device, dtype=model.dtype)
    weight = torch.ones(model.cfg.d_mlp or model.cfg.d_model, model.cfg.d_model, device=x.device, dtype=x.dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product = torch.nn.functional.linear(x, weight)
        product[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - start)
    rate = 2 * x.numel() * weight.shape[0] / min(times)
    return plan.operations / (EFFICIENCY * rate)


def make_plan(
    model: HookedModel,
    pairs: PromptPairs,
    variants: Sequence[Variant],
    metric: Metric,
    *,
    base: str,
    source: str,
    max_memory: int | None = None,
) -> Plan:
    """Plan a sweep; arguments as `interp.sweep` takes them.

    Raises:
        UnknownName: a site, layer, head or role that does not exist.
        PromptError: a position outside some prompt.
        ConfigError: `max_memory` does not hold one variant on one prompt; the message says what does.
    """
    budget = free_memory(model.device) if max_memory is None else max_memory
    placer = Placer(model, pairs, is_read(metric, pairs))
    placed = [[placer.place(edit) for edit in variant.edits] for variant in variants]
    for row in placed:
        for one in row:
            if isinstance(one.edit.source, Tensor | Mapping):
                whole_source(one.edit, one.name, one.site, model.cfg, pairs)  # refuses what does not fit
    found = _events(placed, placer, pairs, base, source, model)
    apart = [_apart(row, number) for number, row in enumerate(placed)]
    costs = Costs(model.cfg, metric, pairs.mask.shape[1], model.dtype.itemsize, answers_of(metric, pairs)[0].numel())
    packed, guests = packs(model), watched(model)
    kept = {p.name: p.site for row in placed for p in row if p.edit.run is not None}
    start = min((steps[0][0] for steps in found if steps), default=0) // 2
    begins = starts(found) if packed and model.cfg.has_mamba else ()
    formed = {name for names, *_ in apart for name in names}

    def runs(n_prompts: int) -> tuple[float, int]:
        return costs.runs(n_prompts, kept.values(), start, states=len(begins))

    def store(n_prompts: int) -> int:
        """Bytes of a block's runs and of what reads its chunks out."""
        logits = 0 if packed else 2 * costs.whole(n_prompts).memory
        return runs(n_prompts)[1] + costs.logits(n_prompts) + logits

    def widest(n_prompts: int) -> int:
        """Bytes of a variant that changes everything."""
        rows = n_prompts * costs.width
        return (
            costs.memory(rows, n_prompts, on_demand=formed)
            if packed
            else costs.whole(n_prompts, on_demand=formed).memory
        )

    together = guests or any(edit.computed for variant in variants for edit in variant.edits)
    target = ROWS.get(model.device.type, ROWS["cpu"])
    size = len(pairs) if together else max(1, min(len(pairs), target // costs.width))
    while not together and size > 1 and store(size) + widest(size) > budget:
        size = (size + 1) // 2
    if store(size) + widest(size) > budget:
        why = "all prompts at once, as a function or somebody's hook sees them together," if together else "one prompt"
        raise ConfigError(
            f"max_memory={budget:,} bytes is too little: one variant on {why} needs about "
            f"{store(size) + widest(size):,}"
        )
    order = sorted(range(len(variants)), key=lambda v: (apart[v], found[v][0][0] if found[v] else -1, v))
    chunks: list[Chunk] = []
    for first in range(0, len(pairs), size):
        last = min(first + size, len(pairs))
        operations, base_memory = runs(last - first)[0], store(last - first)
        chunks.append(Chunk((first, last), (), 0, (last - first) * costs.width, operations, base_memory))
        loads: dict[object, Load] = {}
        taken: list[int] = []
        total = Load()
        for v in order:
            names = apart[v][0]
            key = (id(found[v]), names)
            if key not in loads:
                load = costs.variant(found[v], first, last, on_demand=names)
                if not packed and load.cells:
                    load = costs.whole(last - first if guests else load.cells, on_demand=names)
                loads[key] = load
            load = loads[key]
            full = total.rows + load.rows > target or base_memory + total.memory + load.memory > budget
            if taken and load.cells and (full or guests or apart[v] != apart[taken[-1]]):
                chunks.append(_chunk(first, last, taken, total, base_memory))
                taken, total = [], Load()
            if load.cells:
                taken.append(v)
                total = total + load
        if taken:
            chunks.append(_chunk(first, last, taken, total, base_memory))
    idle = len(variants) * len(pairs) - sum(chunk.cells for chunk in chunks)
    joins = sorted({step for steps in found for step, _ in steps})
    return Plan(tuple(chunks), len(variants), len(pairs), idle, budget, packed, tuple(joins), begins)


def _chunk(first: int, last: int, variants: Sequence[int], load: Load, store: int) -> Chunk:
    return Chunk((first, last), tuple(variants), load.cells, load.rows, load.operations, store + load.memory)


Apart = tuple[tuple[str, ...], int, tuple[int, ...]]


def _apart(placed: Sequence[Placed], number: int) -> Apart:
    """What variants of one chunk have in common: the on-demand sites that they make the model form, and of states and
    hidden attention, which cost far more than the rest of a layer, the layers too.

    A norm that is edited and inputs of their own for every head exclude each other within a layer, and so do states and
    hidden attention; a variant that has both, in whichever layers, shares a chunk with nobody.
    """
    names = tuple(sorted({edit.site.short for edit in placed if edit.site.on_demand}))
    norm = any(edit.site.short.startswith("ln1.") for edit in placed)
    both = set(COSTLY) <= set(names) or (norm and any(name.endswith("_input") for name in names))
    layers = tuple(sorted({edit.step // 2 for edit in placed if edit.site.short in COSTLY}))
    return names, number if both else -1, layers


def _events(
    placed: Sequence[Sequence[Placed]], placer: Placer, pairs: PromptPairs, base: str, source: str, model: HookedModel
) -> list[Events]:
    """The rows that each variant needs; variants with the same needs share one object."""
    n_layers, causal = model.cfg.n_layers, model.cfg.causal
    differs = token_differences(pairs, base, source, causal)
    masks: dict[object, object] = {}
    known: dict[object, Events] = {}
    found = []
    for row in placed:
        changes = []
        key = []
        for edit in row:
            copies = edit.edit.op == "set" and edit.edit.run is not None
            what = (id(edit.rows), copies and (edit.edit.run, edit.site.short if edit.step == 0 else None))
            if what not in masks:
                masks[what] = changed(edit, differs)
            changes.append((edit, masks[what]))
            key.append((edit.step, edit.site.short, what))
        if tuple(key) not in known:
            known[tuple(key)] = events(changes, causal, placer.real, n_layers)  # type: ignore[arg-type]
        found.append(known[tuple(key)])
    return found
