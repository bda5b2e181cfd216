"""Running the chunks of a plan: many variants in one pass through the layers.

1. The base and source runs of a block of prompts are made once (`interp.sweeps.base_runs`).
2. A chunk goes down the layers as one batch of rows. At each step, rows that are needed from there on join it with
   their values in the base run; edits change their own rows; attention reads the base run's keys and values at
   positions that have no row.
3. In the last layer only rows go on that the metric reads; these alone are normalised and unembedded, for the tokens
   that the metric reads.

A model that cannot be entered at a layer (a bridged one, or one with somebody's hooks) runs whole prompts instead, many
variants in one batch; everything else is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from interp.edits import RUNS, Variant
from interp.forward.forward_context import Context, packed_context
from interp.forward.packed_rows import Packed, PrefixValues, pack
from interp.hooked.cache import ActivationCache
from interp.hooked.hooks import attached
from interp.hooked.model import HookedModel
from interp.metrics import Metric, answers_of, evaluate, is_read, read, score, where_read
from interp.models.block import mixed_site
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.sweeps.base_runs import BaseRunCache, BaseRuns
from interp.sweeps.batched_edits import Changes, Layout
from interp.sweeps.costs import LOGIT_ROWS
from interp.sweeps.edit_reach import (
    Mask,
    Numbers,
    Placement,
    changed,
    events,
    led_back,
    value_differences,
)
from interp.sweeps.machine import watched
from interp.sweeps.plan import Chunk, Plan

Values = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(eq=False)
class Cells:
    """The cells of a chunk that must be run.

    Attributes:
        variant: the variant of every cell, counted in the chunk [cell].
        prompt: the prompt of every cell, counted in the block [cell].
        whole: whether a function is given its value behind the last attention [cell], so that all positions go on.
        joins: by step, cells and the rows that they need from there on [cell, pos].
        changes: their edits.
    """

    variant: Numbers
    prompt: Numbers
    whole: np.ndarray[Any, np.dtype[np.bool_]]
    joins: dict[int, list[tuple[Numbers, Mask]]]
    changes: Changes


@dataclass(eq=False)
class Job:
    """A sweep that is ready to run, chunk by chunk and in any order, here or on another machine.

    Attributes:
        model, pairs, variants, metric, base, source: as `interp.sweep` takes them.
        plan: its chunks.
    """

    model: HookedModel
    pairs: PromptPairs
    variants: Sequence[Variant]
    metric: Metric
    base: str
    source: str
    plan: Plan
    _placement: Placement | None = field(default=None, repr=False)
    _base_runs: BaseRunCache | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        for variant in self.variants:
            for edit in variant.edits:
                if isinstance(edit.source, ActivationCache):
                    edit.source[
                        edit.name(self.model.cfg)
                    ]  # what is derived needs a model, which a pickle leaves behind
        return {**self.__dict__, "_base_runs": None, "_placement": None}

    @property
    def placement(self) -> Placement:
        """Where the edits act."""
        if self._placement is None:
            read = is_read(self.metric, self.pairs)
            self._placement = Placement(self.model, self.pairs, self.variants, read, base=self.base, source=self.source)
        return self._placement

    @property
    def base_runs(self) -> BaseRunCache:
        """The base and source runs."""
        if self._base_runs is None:
            sides = {"base": self.base, "source": self.source}
            self._base_runs = BaseRunCache(self.model, self.pairs, self.variants, self.metric, sides, self.plan)
        return self._base_runs

    def to(self, device: str | torch.device) -> Self:
        """The same job with its model and prompts on a device."""
        return replace(self, model=self.model.to(device), pairs=self.pairs.to(device), _base_runs=None, _placement=None)

    @torch.no_grad()
    def run(self, index: int) -> Values:
        """Run one chunk.

        Returns:
            The metric [variant, prompt] of the chunk's variants on its block of prompts; of a chunk without variants
            that of the base run and of the source run, and how far rounding alone can take either.
        """
        chunk = self.plan.chunks[index]
        block = self.base_runs.at(chunk.prompts)
        if not chunk.variants:
            return torch.stack([*(block.value[run].double() for run in RUNS), block.rounding]).cpu().numpy()
        cells = self._cells(block, chunk)
        values = np.tile(block.value["base"].double().cpu().numpy(), (len(chunk.variants), 1))
        if len(cells.prompt):
            found = _in_one_pass(self, block, cells) if self.plan.packed else _as_whole_prompts(self, block, cells)
            values[cells.variant, cells.prompt] = found.double().cpu().numpy()
        return values

    def _cells(self, block: BaseRuns, chunk: Chunk) -> Cells:
        cfg, placement = self.model.cfg, self.placement.block(chunk.prompts)
        differs = value_differences(block.stored["base"], block.stored["source"], placement.differs)
        every = watched(self.model)  # their hooks expect the prompts as they are
        changes = Changes(lambda placed: self.base_runs.values(placed, block), block.stored["base"])
        variants, prompts, whole, count = [], [], [], 0
        joins: dict[int, list[tuple[Numbers, Mask]]] = {}
        for at, number in enumerate(chunk.variants):
            placed = placement.edits(number)
            found = events(
                [(edit, changed(edit, differs)) for edit in placed], cfg.causal, placement.real, cfg.n_layers
            )
            if not found:
                continue
            if cfg.has_mamba and self.plan.packed:
                found = led_back(found, self.plan.starts)
            live = np.logical_or.reduce([rows.any(1) for _, rows in found]) | every
            own = np.nonzero(live)[0]
            cells = np.arange(count, count + len(own))
            for step, rows in found:
                joins.setdefault(step, []).append((cells, rows[own]))
            changes.add(placed, cells, own)
            variants.append(np.full(len(own), at))
            prompts.append(own)
            late = any(edit.edit.computed and edit.step >= 2 * cfg.n_layers - 1 for edit in placed)
            whole.append(np.full(len(own), late))
            count += len(own)
        none = np.zeros(0, dtype=np.int64)
        variant, prompt = np.concatenate([none, *variants]), np.concatenate([none, *prompts])
        return Cells(variant, prompt, np.concatenate([none.astype(bool), *whole]), joins, changes)


class _Batch:
    """The rows that are in the batch now, and how tensors follow when they change."""

    def __init__(self, cells: Cells, prefix: Mapping[int, PrefixValues], mask: Tensor) -> None:
        self.cells = cells
        self.prefix = prefix
        self.mask = mask
        self.rows: Mask = np.zeros((len(cells.prompt), mask.shape[1]), dtype=bool)
        self.row_of: Numbers = np.full(self.rows.shape, -1)
        self.packed: Packed | None = None
        self._before: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def lay_out(self, rows: Mask) -> bool:
        """Let the batch hold these rows [cell, pos]; whether that is a change."""
        if np.array_equal(rows, self.rows):
            return False
        self.rows = rows.copy()
        prompt = torch.from_numpy(self.cells.prompt)
        packed, *places = pack(torch.from_numpy(self.rows), prompt, self.prefix, self.mask)
        cell, position = (place.numpy() for place in places)
        old, self.row_of = self.row_of, np.full(rows.shape, -1)
        self.row_of[cell, position] = np.arange(len(cell))
        was = old[cell, position]
        stays = np.nonzero(was >= 0)[0]
        device = self.mask.device
        self._before = (torch.from_numpy(stays).to(device), torch.from_numpy(was[stays]).to(device))
        self.packed = packed if len(cell) else None
        self.cells.changes.layout = Layout(self.cells.prompt, self.row_of)
        return True

    def moved(self, value: Tensor, base: Tensor | None) -> Tensor:
        """`value` [1, row, ...] for the new rows; those that were not there have the base run's [prompt, pos, ...]."""
        if self.packed is None:
            return value[:, :0]
        now, was = self._before
        if base is None:
            return value[:, was]
        new = base[self.packed.row_prompt, self.packed.position]
        if len(now):
            new[now] = value[0, was]
        return new[None]


def _in_one_pass(job: Job, block: BaseRuns, cells: Cells) -> Tensor:
    """The metric of every cell [cell]; its rows join the batch on the way down."""
    model = job.model
    assert isinstance(model, GPT)
    n_layers, pairs, base = model.cfg.n_layers, block.pairs, block.stored["base"]
    first = min(cells.joins) // 2
    at = where_read(job.metric, pairs).cpu().numpy()[cells.prompt]  # [cell, read]
    end = is_read(job.metric, pairs)[cells.prompt]  # [cell, pos]
    end[cells.whole] = pairs.mask.cpu().numpy()[cells.prompt[cells.whole]]
    batch = _Batch(cells, job.base_runs.prefix(block, first), pairs.mask)
    wanted = np.zeros_like(end)
    resid = z = torch.empty(1, 0, device=model.device)
    context: Context | None = None
    with attached(model.hook_dict, [(name, cells.changes.hook) for name in cells.changes.names], must_run=False):
        for layer in range(first, n_layers):
            pre, mixed = base.get(f"blocks.{layer}.hook_resid_pre"), base.get(mixed_site(model.cfg, layer) or "")
            _join(wanted, cells.joins.get(2 * layer))
            joined = batch.lay_out(wanted)
            if batch.packed is not None:
                if context is None or context.packed is not batch.packed:
                    context = packed_context(model.cfg, batch.packed, model.dtype)
                if joined and layer == 0:
                    tokens = getattr(pairs, job.base)[batch.packed.row_prompt, batch.packed.position]
                    resid = model.embed_tokens(tokens[None], context)
                elif joined:
                    resid = batch.moved(resid, pre)
                resid, z = model.block(layer).mix(resid, context)
            _join(wanted, cells.joins.get(2 * layer + 1))
            if batch.lay_out(wanted & end if layer == n_layers - 1 else wanted):
                resid, z = batch.moved(resid, pre), batch.moved(z, mixed)
            if batch.packed is not None:
                resid = model.block(layer).write(resid, z)
        if batch.lay_out(end):
            resid = batch.moved(resid, base[f"blocks.{n_layers - 1}.hook_resid_post"])
        normalized = model.ln_final(resid)[0]
    row = torch.from_numpy(np.take_along_axis(batch.row_of, at, axis=1)).to(model.device)  # [cell, read]
    return _measured(
        job, block, cells, lambda chosen: job.base_runs.unembedded(normalized[row[chosen]], cells.prompt[chosen], pairs)
    )


def _join(wanted: Mask, joining: Sequence[tuple[Numbers, Mask]] | None) -> None:
    for cells, rows in joining or ():
        wanted[cells] = rows


def _as_whole_prompts(job: Job, block: BaseRuns, cells: Cells) -> Tensor:
    """The metric of every cell [cell], from a forward of whole prompts."""
    model, pairs = job.model, block.pairs
    prompt = torch.from_numpy(cells.prompt).to(model.device)
    n_cells, width = len(prompt), pairs.mask.shape[1]
    cells.changes.layout = Layout(cells.prompt, np.arange(n_cells * width).reshape(n_cells, width))
    mask = pairs.mask[prompt]
    with attached(model.hook_dict, [(name, cells.changes.hook) for name in cells.changes.names]):
        logits = model(getattr(pairs, job.base)[prompt], attention_mask=None if bool(mask.all()) else mask)
    seen = read(job.metric, logits, pairs, prompt)
    return _measured(job, block, cells, lambda chosen: seen[chosen])


def _measured(job: Job, block: BaseRuns, cells: Cells, seen: Callable[[Numbers], Tensor]) -> Tensor:
    """The metric of every cell, of what `seen` gives of the logits of some cells; never all of a large vocabulary."""
    metric, n_cells = job.metric, len(cells.prompt)
    parts = []
    if metric.whole:
        for variant in np.unique(cells.variant):
            own = np.nonzero(cells.variant == variant)[0]
            logits, prompts = block.seen["base"].clone(), torch.from_numpy(cells.prompt[own])
            logits[prompts] = seen(own)
            parts.append(evaluate(metric, logits, block.pairs, None)[prompts])
        return torch.cat(parts)
    size = LOGIT_ROWS if metric.tokens is None else n_cells
    for start in range(0, n_cells, size):
        chosen = np.arange(start, min(start + size, n_cells))
        prompts = torch.from_numpy(cells.prompt[chosen]).to(block.pairs.mask.device)
        reference = block.seen["source"][prompts] if metric.needs_reference else None
        parts.append(score(metric, seen(chosen), answers_of(metric, block.pairs)[prompts], reference))
    return torch.cat(parts)
