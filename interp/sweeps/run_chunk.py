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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from interp.edits import RUNS, Variant
from interp.encoder_decoder.model import EncoderDecoder
from interp.forward.forward_context import Context, packed_context
from interp.forward.packed_rows import Packed, pack
from interp.hooked.cache import ActivationCache
from interp.hooked.hooks import attached
from interp.hooked.model import HookedModel
from interp.metrics import Metric, answers_of, evaluate, is_read, read, score, where_read
from interp.models.block import mixed_site
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.sites import stream_after
from interp.sweeps.base_runs import BaseRunCache, BaseRuns
from interp.sweeps.batched_edits import Changes, Layout
from interp.sweeps.costs import LOGIT_ROWS
from interp.sweeps.edit_reach import (
    Mask,
    Numbers,
    Placement,
    changed,
    from_planned_starts,
    rows_by_step,
    value_differences,
)
from interp.sweeps.encoder_decoder.reach import StackPlacement
from interp.sweeps.encoder_decoder.run import StackCells, cells_of, decoded
from interp.sweeps.machine import watched
from interp.sweeps.plan import Chunk, Plan

Values = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(eq=False)
class Cells:
    """The cells of a chunk that must be run.

    Attributes:
        variant: the variant of every cell, counted in the chunk [cell].
        prompt: the prompt of every cell, counted in the block [cell].
        whole: whether a function is given its value after the last attention [cell], so that all positions go on.
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
    _placement: Placement | StackPlacement | None = field(default=None, repr=False)
    _base_runs: BaseRunCache | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        for edit in (edit for variant in self.variants for edit in variant.edits):
            if isinstance(edit.source, ActivationCache):
                edit.source[edit.name(self.model.cfg)]  # derived now: that needs a model, which a pickle leaves behind
        return {**self.__dict__, "_base_runs": None, "_placement": None}

    @property
    def placement(self) -> Placement | StackPlacement:
        """Where the edits act; a pickle leaves it behind, and another process places the edits of its own chunks."""
        if self._placement is None:
            sides = {"base": self.base, "source": self.source}
            self._placement = placement_of(self.model, self.pairs, self.variants, self.metric, **sides)
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
        # 1. The base and source runs of its prompts.
        runs = self.base_runs.of(chunk.prompts)
        if not chunk.variants:
            return torch.stack([*(runs.value[run].double() for run in RUNS), runs.rounding]).cpu().numpy()
        values = np.tile(runs.value["base"].double().cpu().numpy(), (len(chunk.variants), 1))
        # 2. and 3. The cells that differ from the base run.
        cells: Cells | StackCells
        if isinstance(self.placement, StackPlacement):
            cells, found = self._in_both_stacks(self.placement, runs, chunk)
        else:
            cells, found = self._in_one_stack(self.placement, runs, chunk)
        if found is not None:
            values[cells.variant, cells.prompt] = found.double().cpu().numpy()
        return values

    def _in_one_stack(self, placement: Placement, runs: BaseRuns, chunk: Chunk) -> tuple[Cells, Tensor | None]:
        """The cells of a chunk, and their metric; None where there are none."""
        cells = self._cells(placement, runs, chunk)
        run = _in_one_pass if self.plan.packed else _as_whole_prompts
        return cells, run(self, runs, cells) if len(cells.prompt) else None

    def _in_both_stacks(
        self, placement: StackPlacement, runs: BaseRuns, chunk: Chunk
    ) -> tuple[StackCells, Tensor | None]:
        """The cells of a chunk for a model of two stacks, and their metric; None where there are none."""
        model = placement.model
        cells = cells_of(
            placement,
            chunk.prompts,
            chunk.variants,
            runs.stored,
            lambda placed: self.base_runs.source_of(placed, runs),
            watched=watched(model),
        )
        if not len(cells.prompt):
            return cells, None
        out = decoded(model, runs.pairs, self.base, runs.stored["base"], cells)  # [cell, pos, d_model]
        read = where_read(self.metric, runs.pairs).to(out.device)[torch.from_numpy(cells.prompt).to(out.device)]
        out = out[torch.arange(len(out), device=out.device)[:, None], read]  # [cell, read, d_model]

        def logits(chosen: Numbers) -> Tensor:
            return self.base_runs.unembedded(out[chosen], cells.prompt[chosen], runs.pairs)

        return cells, _measured(self, runs, cells, logits)

    def _cells(self, every: Placement, runs: BaseRuns, chunk: Chunk) -> Cells:
        """The cells of a chunk that must be run: where an edit names no position whose value differs, none."""
        cfg, placement = self.model.cfg, every.block(chunk.prompts)
        differs = value_differences(runs.stored["base"], runs.stored["source"], placement.differs)
        hooked = watched(self.model)  # somebody's hooks expect all prompts
        changes = Changes(lambda placed: self.base_runs.source_of(placed, runs), runs.stored["base"])
        none = np.zeros(0, dtype=np.int64)
        variant, prompt, whole, n_cells = [none], [none], [none.astype(bool)], 0
        joins: dict[int, list[tuple[Numbers, Mask]]] = {}
        for at, number in enumerate(chunk.variants):
            # The plan went by tokens; now it is known where the two runs have different values.
            edits = placement.edits(number)
            changes_of_edits = [(edit, changed(edit, differs)) for edit in edits]
            needed = rows_by_step(changes_of_edits, cfg.causal, placement.real, cfg.n_layers)
            if not needed:
                continue
            if cfg.has_mamba and self.plan.packed:
                needed = from_planned_starts(needed, self.plan.starts)
            # A cell for each prompt with any row.
            own = np.nonzero(np.logical_or.reduce([rows.any(1) for _, rows in needed]) | hooked)[0]
            cells = np.arange(n_cells, n_cells + len(own))
            for step, rows in needed:
                joins.setdefault(step, []).append((cells, rows[own]))
            changes.add(edits, cells, own)
            late = any(edit.edit.computed and edit.step >= 2 * cfg.n_layers - 1 for edit in edits)
            variant.append(np.full(len(own), at))
            prompt.append(own)
            whole.append(np.full(len(own), late))
            n_cells += len(own)
        return Cells(np.concatenate(variant), np.concatenate(prompt), np.concatenate(whole), joins, changes)


def _in_one_pass(job: Job, runs: BaseRuns, cells: Cells) -> Tensor:
    """The metric of every cell [cell]; its rows join the batch on the way down."""
    model, hook = job.model, cells.changes.hook
    batch = _Batch(job, runs, cells)
    with attached(model.hook_dict, [(name, hook) for name in cells.changes.names], must_run=False):
        for layer in range(batch.first_layer, model.cfg.n_layers):
            batch.mix(layer)
            batch.write(layer)
        normalized = batch.normalize()  # [row, d_model]
    read = where_read(job.metric, runs.pairs).cpu().numpy()[cells.prompt]  # [cell, read], positions
    row = torch.from_numpy(np.take_along_axis(batch.row_of, read, axis=1)).to(model.device)  # [cell, read]

    def logits(chosen: Numbers) -> Tensor:
        return job.base_runs.unembedded(normalized[row[chosen]], cells.prompt[chosen], runs.pairs)

    return _measured(job, runs, cells, logits)


class _Batch:
    """The rows of a chunk on their way down the layers.

    Before each half of a layer the batch is laid out anew where other rows are needed from there on: those that join
    come in with their values in the base run, in the last layer those go that the metric does not read.

    Attributes:
        needed: the rows that any edit of a cell has reached [cell, pos].
        read: the rows whose final values are needed [cell, pos].
        rows: those that are in the batch now [cell, pos].
        row_of: which row of the batch each of them is [cell, pos], -1 where there is none.
        packed: the batch as the layers see it; None while it has no rows.
        resid: the residual stream [1, row, d_model].
        embedded: the token embedding of the same rows, for layers that read it beside the stream; None without any.
        mixed: what the mixer of a layer made, between its two halves [1, row, ...].
    """

    def __init__(self, job: Job, runs: BaseRuns, cells: Cells) -> None:
        assert isinstance(job.model, GPT)
        self.model = job.model
        self.cells = cells
        self.first_layer = min(cells.joins) // 2
        self.mask = runs.pairs.mask
        self.base = runs.stored["base"]
        self.tokens: Tensor = getattr(runs.pairs, job.base)
        self.prefix = job.base_runs.prefix(runs, self.first_layer)
        self.read: Mask = is_read(job.metric, runs.pairs)[cells.prompt]
        self.read[cells.whole] = self.mask.cpu().numpy()[cells.prompt[cells.whole]]
        self.needed = np.zeros_like(self.read)
        self.rows = np.zeros_like(self.read)
        self.row_of: Numbers = np.full(self.read.shape, -1)
        self.packed: Packed | None = None
        self.context: Context | None = None
        self.resid = self.mixed = torch.empty(1, 0, device=self.model.device)
        self.embedded = self.resid if self.model.cfg.shared is not None else None
        # Of the rows that the last layout left in the batch: where they are now, and where they were.
        self._stayed: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def mix(self, layer: int) -> None:
        """The first half of a layer, where positions look at one another."""
        self._join(2 * layer)
        joined = self._lay_out(self.needed)
        if self.packed is None:
            return
        if self.context is None or self.context.packed is not self.packed:
            self.context = packed_context(self.model.cfg, self.packed, self.model.dtype)
        if joined and layer == 0:
            tokens = self.tokens[self.packed.row_prompt, self.packed.position]  # [row]
            self.resid = self.model.embed_tokens(tokens[None], self.context)
            self.embedded = None if self.embedded is None else self.resid.clone()
        elif joined:
            self.resid = self._moved(self.resid, self.base.get(f"blocks.{layer}.hook_resid_pre"))
            self._move_embedded()
        if self.embedded is not None:
            self.context = replace(self.context, embedded=self.embedded)
        self.resid, self.mixed = self.model.block(layer).mix(self.resid, self.context)

    def write(self, layer: int) -> None:
        """The second half of a layer, where each position is by itself; of the last one only for what is read."""
        self._join(2 * layer + 1)
        last = layer == self.model.cfg.n_layers - 1
        if self._lay_out(self.needed & self.read if last else self.needed):
            self.resid = self._moved(self.resid, self.base.get(f"blocks.{layer}.hook_resid_pre"))
            self.mixed = self._moved(self.mixed, self.base.get(mixed_site(self.model.cfg, layer) or ""))
            self._move_embedded()
        if self.packed is not None:
            self.resid = self.model.block(layer).write(self.resid, self.mixed)

    def normalize(self) -> Tensor:
        """What the unembedding reads of every row whose final value is needed [row, d_model]."""
        if self._lay_out(self.read):
            last = stream_after(self.model.cfg, self.model.cfg.n_layers - 1)
            self.resid = self._moved(self.resid, self.base[last])
        return self.model.to_unembed(self.resid)[0]

    def _join(self, step: int) -> None:
        """Take note of the rows that cells need from a step of the depth on; they only become more."""
        for cells, rows in self.cells.joins.get(step, ()):
            self.needed[cells] = rows

    def _lay_out(self, rows: Mask) -> bool:
        """Let the batch hold these rows [cell, pos]; whether that is a change."""
        if np.array_equal(rows, self.rows):
            return False
        self.rows = rows.copy()
        prompt = torch.from_numpy(self.cells.prompt)
        packed, *places = pack(torch.from_numpy(self.rows), prompt, self.prefix, self.mask)
        cell, position = (place.numpy() for place in places)  # [row], [row]
        old, self.row_of = self.row_of, np.full(rows.shape, -1)
        self.row_of[cell, position] = np.arange(len(cell))
        was = old[cell, position]  # [row]
        stays = np.nonzero(was >= 0)[0]
        device = self.mask.device
        self._stayed = (torch.from_numpy(stays).to(device), torch.from_numpy(was[stays]).to(device))
        self.packed = packed if len(cell) else None
        self.cells.changes.layout = Layout(self.cells.prompt, self.row_of)
        return True

    def _moved(self, value: Tensor, base: Tensor | None) -> Tensor:
        """`value` [1, row, ...] for the new rows; those that were not there have the base run's [prompt, pos, ...]."""
        if self.packed is None:
            return value[:, :0]
        now, was = self._stayed
        if base is None:
            return value[:, was]
        new = base[self.packed.row_prompt, self.packed.position]
        if len(now):
            new[now] = value[0, was]
        return new[None]

    def _move_embedded(self) -> None:
        """The token embedding for the new rows."""
        if self.embedded is not None:
            self.embedded = self._moved(self.embedded, self.base["hook_embed"])


def _as_whole_prompts(job: Job, runs: BaseRuns, cells: Cells) -> Tensor:
    """The metric of every cell [cell], from a forward of whole prompts: a row for each of their positions."""
    model, pairs = job.model, runs.pairs
    prompt = torch.from_numpy(cells.prompt).to(model.device)
    n_cells, width = len(prompt), pairs.mask.shape[1]
    cells.changes.layout = Layout(cells.prompt, np.arange(n_cells * width).reshape(n_cells, width))
    mask = pairs.mask[prompt]
    with attached(model.hook_dict, [(name, cells.changes.hook) for name in cells.changes.names]):
        logits = model(getattr(pairs, job.base)[prompt], attention_mask=None if bool(mask.all()) else mask)
    seen = read(job.metric, logits, pairs, prompt)
    return _measured(job, runs, cells, lambda chosen: seen[chosen])


def placement_of(
    model: HookedModel, pairs: PromptPairs, variants: Sequence[Variant], metric: Metric, *, base: str, source: str
) -> Placement | StackPlacement:
    """Where the edits of variants act in a model of one stack, or of two."""
    if isinstance(model, EncoderDecoder):
        return StackPlacement(model, pairs, variants, base=base, source=source)
    return Placement(model, pairs, variants, is_read(metric, pairs), base=base, source=source)


def _measured(job: Job, runs: BaseRuns, cells: Cells | StackCells, seen: Callable[[Numbers], Tensor]) -> Tensor:
    """The metric of every cell [cell], from what `seen` gives of the logits of some cells [cell, ...]."""
    metric, n_cells = job.metric, len(cells.prompt)
    parts = []
    if metric.whole:  # a user's function is given all prompts of one variant
        for variant in np.unique(cells.variant):
            own = np.nonzero(cells.variant == variant)[0]
            logits, prompts = runs.seen["base"].clone(), torch.from_numpy(cells.prompt[own])
            logits[prompts] = seen(own)
            parts.append(evaluate(metric, logits, runs.pairs, None, side=job.base)[prompts])
        return torch.cat(parts)
    size = LOGIT_ROWS if metric.tokens is None else n_cells  # never all logits of a large vocabulary at once
    for start in range(0, n_cells, size):
        chosen = np.arange(start, min(start + size, n_cells))
        prompts = torch.from_numpy(cells.prompt[chosen]).to(runs.pairs.mask.device)
        reference = runs.seen["source"][prompts] if metric.needs_reference else None
        parts.append(score(metric, seen(chosen), answers_of(metric, runs.pairs, prompts), reference))
    return torch.cat(parts)
