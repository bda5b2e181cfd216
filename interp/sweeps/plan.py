"""The plan of a sweep: which rows must be run, cut into chunks, and what they cost; made without running anything.

1. For each variant, the rows that it needs at each step of the depth, on every prompt (`interp.sweeps.edit_reach`).
2. Prompts are cut into blocks, whose base and source runs fit into memory at once.
3. In each block, variants are ordered by where they begin in the depth of the model and cut into chunks of about as
   many rows as the machine multiplies best. Variants that make the model form something on demand (a pattern, an input
   for every head) have chunks of their own, so that nobody else pays for it.
   The first chunk of each block is the block's base and source runs; the rest are variants, in any order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interp.config import EncoderDecoderConfig
from interp.errors import ConfigError
from interp.hooked.model import HookedModel
from interp.metrics import Metric, n_answers
from interp.sites import Site
from interp.sweeps.costs import Costs, Load
from interp.sweeps.edit_reach import Mask, Placed, Placement, RowsByStep, changed, rows_by_step, start_positions
from interp.sweeps.encoder_decoder.reach import StackPlacement
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
        prompts: the block of prompts, first and after the last.
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
    cfg = model.cfg.decoder if isinstance(model.cfg, EncoderDecoderConfig) else model.cfg
    x = torch.ones(most_rows(model), cfg.d_model, device=model.device, dtype=model.dtype)
    weight = torch.ones(cfg.d_mlp or cfg.d_model, cfg.d_model, device=x.device, dtype=x.dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product = torch.nn.functional.linear(x, weight)
        product[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - start)
    rate = 2 * x.numel() * weight.shape[0] / min(times)
    return plan.operations / (EFFICIENCY * rate)


def make_plan(placement: Placement, metric: Metric, *, max_memory: int | None = None) -> Plan:
    """Plan a sweep.

    Args:
        placement: of the variants on the prompts.
        metric, max_memory: as `interp.sweep` takes them.

    Raises:
        UnknownName: a site, layer, head or role that does not exist.
        PromptError: a position outside some prompt.
        ConfigError: `max_memory` does not hold one variant on one prompt; the message says what does.
    """
    model, n_prompts, n_variants = placement.model, len(placement.pairs), len(placement.variants)
    max_memory = free_memory(model.device) if max_memory is None else max_memory
    packed = packs(model)
    # 1. The rows of each variant.
    check_sources(placement)
    rows = _rows_of_variants(placement)
    begins = start_positions(rows) if packed and model.cfg.has_mamba else ()
    company = [company_of(placement.edits(variant), variant) for variant in range(n_variants)]
    budget = _budget(placement, metric, rows, company, max_memory=max_memory, n_starts=len(begins))
    # 2. Blocks of prompts.
    size = _block_size(placement, budget)
    # 3. Chunks of variants, in the order in which they begin.
    order = sorted(range(n_variants), key=lambda v: (company[v], rows[v][0][0] if rows[v] else -1, v))
    chunks: list[Chunk] = []
    for first in range(0, n_prompts, size):
        block = (first, min(first + size, n_prompts))
        chunks.append(budget.chunk_of_runs(block))
        chunks.extend(_variant_chunks(block, order, rows, company, budget))
    idle = n_variants * n_prompts - sum(chunk.cells for chunk in chunks)
    joins = sorted({step for steps in rows for step, _ in steps})
    return Plan(tuple(chunks), n_variants, n_prompts, idle, max_memory, packed, tuple(joins), begins)


def check_sources(placement: Placement | StackPlacement) -> None:
    """Refuse tensors and caches that do not fit the site that they are for, before anything is run."""
    for variant in range(len(placement.variants)):
        for placed in placement.edits(variant):
            if isinstance(placed.edit.source, Tensor | Mapping):
                whole_source(placed.edit, placed.name, placed.site, placement.model.cfg, placement.pairs)


def _rows_of_variants(placement: Placement) -> list[RowsByStep]:
    """The rows that each variant needs.

    Many variants need the same rows (every head of a layer, say): these share one object, which is made once.
    """
    cfg = placement.model.cfg
    masks: dict[object, Mask] = {}
    known: dict[object, RowsByStep] = {}
    found = []
    for variant in range(len(placement.variants)):
        changes, key = [], []
        for placed in placement.edits(variant):
            # All that `changed` depends on: the positions, and for copies the run and the sites that are LOCAL_SITES.
            copied = placed.edit.run if placed.edit.op == "set" else None
            where = (id(placed.rows), copied, placed.site.short if placed.step == 0 else None)
            if where not in masks:
                masks[where] = changed(placed, placement.differs)
            changes.append((placed, masks[where]))
            key.append((placed.step, placed.site.short, where))
        if tuple(key) not in known:
            known[tuple(key)] = rows_by_step(changes, cfg.causal, placement.real, cfg.n_layers)
        found.append(known[tuple(key)])
    return found


class Company(NamedTuple):
    """What the variants of one chunk have in common.

    A norm that is edited and inputs of their own for every head exclude each other within a layer, and so do states and
    hidden attention; a variant that has both, in whichever layers, shares a chunk with nobody.

    Attributes:
        formed: short names of the on-demand sites that they make the model form.
        alone: the number of a variant that shares a chunk with nobody; -1 for all others.
        costly_layers: the layers of states and hidden attention, which cost far more than the rest of a layer.
    """

    formed: tuple[str, ...]
    alone: int
    costly_layers: tuple[int, ...]


def company_of(edits: Sequence[Placed], variant: int) -> Company:
    """What a variant has in common with those that share a chunk with it."""
    formed = tuple(sorted({edit.site.short for edit in edits if edit.site.on_demand}))
    norm = any(edit.site.short_in_stack.startswith("ln1.") for edit in edits)
    exclusive = set(COSTLY) <= set(formed) or (norm and any(name.endswith("_input") for name in formed))
    layers = tuple(sorted({edit.step // 2 for edit in edits if edit.site.short in COSTLY}))
    return Company(formed, variant if exclusive else -1, layers)


@dataclass(frozen=True, eq=False)
class _Budget:
    """What blocks of prompts cost, and variants on them, and how much they may.

    Attributes:
        costs: counts for the model and the metric.
        max_memory: bytes that may be allocated.
        most_rows: how many rows a chunk should have at most.
        packed: whether rows of different variants share a batch; else forwards of whole prompts are run.
        hooked: whether somebody's hooks are attached, which see one variant at a time, on all prompts.
        copied: the sites that edits copy from, once for every layer.
        first_layer: the first layer at which any row joins.
        n_starts: before how many positions of each prompt states are kept.
        formed: short names of all on-demand sites that any variant makes the model form.
    """

    costs: Costs
    max_memory: int
    most_rows: int
    packed: bool
    hooked: bool
    copied: Sequence[Site]
    first_layer: int
    n_starts: int
    formed: frozenset[str]

    def chunk_of_runs(self, block: tuple[int, int]) -> Chunk:
        """The base and source runs of a block."""
        n_prompts = block[1] - block[0]
        operations, _ = self._runs(n_prompts)
        return Chunk(block, (), 0, n_prompts * self.costs.width, operations, self.store(n_prompts))

    def store(self, n_prompts: int) -> int:
        """Bytes of a block's runs and of what reads its chunks out."""
        logits = 0 if self.packed else 2 * self.costs.whole(n_prompts).memory
        return self._runs(n_prompts)[1] + self.costs.logits(n_prompts) + logits

    def least(self, n_prompts: int) -> int:
        """Bytes of a block and of one variant on it that changes everything."""
        if self.packed:
            rows = n_prompts * self.costs.width
            variant = self.costs.memory(rows, n_prompts, on_demand=self.formed)
        else:
            variant = self.costs.whole(n_prompts, on_demand=self.formed).memory
        return self.store(n_prompts) + variant

    def load(self, rows: RowsByStep, block: tuple[int, int], formed: Sequence[str]) -> Load:
        """One variant on a block."""
        load = self.costs.variant(rows, *block, on_demand=formed)
        if self.packed or not load.cells:
            return load
        return self.costs.whole(block[1] - block[0] if self.hooked else load.cells, on_demand=formed)

    def _runs(self, n_prompts: int) -> tuple[float, int]:
        return self.costs.runs(n_prompts, self.copied, self.first_layer, states=self.n_starts)


def _budget(
    placement: Placement,
    metric: Metric,
    rows: Sequence[RowsByStep],
    company: Sequence[Company],
    *,
    max_memory: int,
    n_starts: int,
) -> _Budget:
    model, pairs = placement.model, placement.pairs
    edits = [edit for variant in range(len(placement.variants)) for edit in placement.edits(variant)]
    return _Budget(
        Costs(model.cfg, metric, pairs.mask.shape[1], model.dtype.itemsize, n_answers(metric, pairs)),
        max_memory,
        most_rows(model),
        packed=packs(model),
        hooked=watched(model),
        copied=list({edit.name: edit.site for edit in edits if edit.edit.run is not None}.values()),
        first_layer=min((steps[0][0] for steps in rows if steps), default=0) // 2,
        n_starts=n_starts,
        formed=frozenset(name for own in company for name in own.formed),
    )


def _block_size(placement: Placement, budget: _Budget) -> int:
    """How many prompts a block has: enough to fill a chunk, halved until the block and one variant fit into memory.

    All of them where somebody's hooks, or a function that is an edit's source, see them together.
    """
    together = budget.hooked or any(edit.computed for variant in placement.variants for edit in variant.edits)
    size = len(placement.pairs)
    if not together:
        size = max(1, min(size, budget.most_rows // budget.costs.width))
        while size > 1 and budget.least(size) > budget.max_memory:
            size = (size + 1) // 2
    if budget.least(size) > budget.max_memory:
        why = "all prompts at once, as a function or somebody's hook sees them together," if together else "one prompt"
        raise ConfigError(
            f"max_memory={budget.max_memory:,} bytes is too little: one variant on {why} needs about "
            f"{budget.least(size):,}"
        )
    return size


def _variant_chunks(
    block: tuple[int, int],
    order: Sequence[int],
    rows: Sequence[RowsByStep],
    company: Sequence[Company],
    budget: _Budget,
) -> Iterator[Chunk]:
    """The variants in chunks of neighbours, each as large as rows and memory allow; hooks see one variant at a time."""
    store = budget.store(block[1] - block[0])
    loads: dict[object, Load] = {}
    members: list[int] = []
    total = Load()
    for v in order:
        formed = company[v].formed
        key = (id(rows[v]), formed)
        if key not in loads:
            loads[key] = budget.load(rows[v], block, formed)
        load = loads[key]
        if not load.cells:
            continue  # it changes nothing on these prompts
        full = total.rows + load.rows > budget.most_rows or store + total.memory + load.memory > budget.max_memory
        if members and (full or budget.hooked or company[v] != company[members[-1]]):
            yield _chunk(block, members, total, store)
            members, total = [], Load()
        members.append(v)
        total = total + load
    if members:
        yield _chunk(block, members, total, store)


def _chunk(block: tuple[int, int], members: Sequence[int], load: Load, store: int) -> Chunk:
    return Chunk(block, tuple(members), load.cells, load.rows, load.operations, store + load.memory)


def most_rows(model: HookedModel) -> int:
    """How many rows a chunk should have at its widest."""
    return ROWS.get(model.device.type, ROWS["cpu"])
