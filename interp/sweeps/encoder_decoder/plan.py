"""The plan of a sweep over a model with an encoder and a decoder, as `interp.sweeps.plan` makes it for one stack.

1. Each variant enters the stacks at the layer of its first edit (`interp.sweeps.encoder_decoder.reach`).
2. Prompts are cut into blocks, and in each block variants that enter at the same place into chunks.
3. A chunk costs its positions times the layers that it runs; only what the metric reads is unembedded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from interp.config import ModelConfig
from interp.errors import ConfigError
from interp.metrics import Metric, n_answers, where_read
from interp.sites import axis_sizes, config_of
from interp.sweeps.costs import SLACK, row_in
from interp.sweeps.edit_reach import changed
from interp.sweeps.encoder_decoder.reach import StackPlacement, Start, start_of
from interp.sweeps.machine import free_memory, watched
from interp.sweeps.plan import Chunk, Company, Plan, check_sources, company_of, most_rows


class StackCosts:
    """Operations and bytes of the forwards of both stacks, for one prompt of the widest.

    Args:
        placement: of the variants.
        metric: decides how much is unembedded.
    """

    def __init__(self, placement: StackPlacement, metric: Metric) -> None:
        model, cfg = placement.model, placement.model.cfg
        self.source, self.width = placement.real["encoder"].shape[1], placement.real["decoder"].shape[1]
        encoder = [self._layer(cfg.encoder, layer, self.source) for layer in range(cfg.encoder.n_layers)]
        decoder = [self._layer(cfg.decoder, layer, self.width) for layer in range(cfg.decoder.n_layers)]
        heads, kv_heads = cfg.decoder.n_heads * cfg.decoder.d_head, cfg.decoder.n_kv_heads * cfg.decoder.d_head
        # Queries, output and products with every key; keys and values of every position of the encoder.
        self.cross = self.width * (4 * cfg.d_model * heads + 4 * heads * self.source)
        self.keys = self.source * 4 * cfg.d_model * kv_heads
        # What remains from a layer on, the norm after the last included.
        self.encoder = np.cumsum([0.0, *reversed(encoder)])[::-1]
        self.decoder = np.cumsum([0.0, *(ops + self.cross for ops in reversed(decoder))])[::-1]
        tokens = metric.tokens
        n_tokens = (
            cfg.d_vocab_out
            if tokens is None
            else n_answers(metric, placement.pairs)
            if tokens == "answers"
            else len(tokens)
        )
        n_read = where_read(metric, placement.pairs).shape[1]
        self.read_out = 2.0 * cfg.d_model * n_read * n_tokens
        self._bytes = model.dtype.itemsize
        self._logits = n_read * n_tokens
        self._whole_logits = self.width * cfg.d_vocab_out

    @staticmethod
    def _layer(cfg: ModelConfig, layer: int, width: int) -> float:
        row = row_in(cfg, layer, 1)
        return width * (row.mix + row.write + row.look * (width + 1) / (2 if cfg.causal else 1))

    def operations(self, start: Start, n_layers: int) -> float:
        """Of one variant on one prompt that enters there."""
        if start.encoder is None:
            return float(self.decoder[start.decoder]) + self.read_out
        return float(self.encoder[start.encoder] + self.decoder[0]) + n_layers * self.keys + self.read_out

    def rows(self, start: Start) -> int:
        """Positions of one variant on one prompt."""
        return self.width + (0 if start.encoder is None else self.source)

    def memory(self, cfg: ModelConfig, start: Start, *, formed: bool) -> int:
        """Bytes that one variant on one prompt holds at the widest place of a layer."""
        row = 6 * cfg.d_model + row_in(cfg, 0, 1).numbers
        # Keys and values of all layers are handed to variants of the decoder alone.
        kept = 2 * self.source * cfg.n_kv_heads * cfg.d_head * (cfg.n_layers if start.encoder is None else 1)
        grid = 3 * cfg.n_heads * (self.source + self.width) * (self.source + cfg.d_model) if formed else 0
        numbers = row * self.rows(start) + 2 * self.source * cfg.d_model + kept + grid + 3 * self._logits
        return int(SLACK * self._bytes * numbers)

    def store(self, placement: StackPlacement, starts: Sequence[Start]) -> int:
        """Bytes that the base and source runs of one prompt keep."""
        cfg = placement.model.cfg
        copied = {
            edit.name: edit.site
            for variant in range(len(placement.variants))
            for edit in placement.edits(variant)
            if edit.edit.run is not None or edit.edit.computed
        }
        numbers = len(set(starts)) * 2 * (self.source + self.width) * cfg.d_model
        numbers += 2 * cfg.decoder.n_layers * self.source * cfg.decoder.n_kv_heads * cfg.decoder.d_head
        for site in copied.values():
            rows = self.source if site.rows_in == "encoder" else self.width
            keys = self.source if site.rows_in == "encoder" or site.cross else self.width
            sizes = {**axis_sizes(config_of(cfg, site)), "pos": rows, "query": rows, "key": keys}
            numbers += 2 * int(np.prod([sizes.get(axis, 1) for axis in site.axes]))
        return int(self._bytes * (numbers + 2 * self._whole_logits))


def make_stack_plan(placement: StackPlacement, metric: Metric, *, max_memory: int | None = None) -> Plan:
    """Plan a sweep; arguments and errors are those of `interp.sweeps.plan.make_plan`."""
    model, cfg = placement.model, placement.model.cfg
    n_prompts, n_variants = len(placement.pairs), len(placement.variants)
    max_memory = free_memory(model.device) if max_memory is None else max_memory
    hooked = watched(model)
    check_sources(placement)
    # 1. Where each variant enters, and the prompts on which it changes anything.
    starts = [Start(0, 0) if hooked else start_of(variant, cfg) for variant in placement.variants]
    live = np.zeros((n_variants, n_prompts), dtype=bool)
    for variant in range(n_variants):
        for edit in placement.edits(variant):
            live[variant] |= changed(edit, placement.differs).any(1)
    # 2. Blocks of prompts, and chunks of variants.
    costs = StackCosts(placement, metric)
    formed = any(edit.site.on_demand for variant in range(n_variants) for edit in placement.edits(variant))
    store = costs.store(placement, starts)
    each = max(costs.memory(cfg.decoder, start, formed=formed) for start in starts)
    together = hooked or any(edit.computed for variant in placement.variants for edit in variant.edits)
    size = n_prompts if together else max(1, min(n_prompts, most_rows(model) // (costs.source + costs.width)))
    while not together and size > 1 and size * (store + each) > max_memory:
        size = (size + 1) // 2
    if size * (store + each) > max_memory:
        why = "all prompts at once, as a function or somebody's hook sees them together," if together else "one prompt"
        raise ConfigError(
            f"max_memory={max_memory:,} bytes is too little: one variant on {why} needs about {size * (store + each):,}"
        )
    most_cells = [
        1 if hooked else min(most_rows(model) // costs.rows(start), (max_memory - size * store) // each)
        for start in starts
    ]
    groups = [(start, company_of(placement.edits(v), v)) for v, start in enumerate(starts)]
    order = sorted(
        range(n_variants),
        key=lambda v: (starts[v].encoder is None, starts[v].encoder or 0, starts[v].decoder, groups[v][1], v),
    )
    chunks: list[Chunk] = []
    for first in range(0, n_prompts, size):
        block = (first, min(first + size, n_prompts))
        n = block[1] - block[0]
        # 3. What the runs and the chunks cost.
        runs = 2 * n * costs.operations(Start(0, 0), cfg.decoder.n_layers)
        chunks.append(Chunk(block, (), 0, n * costs.rows(Start(0, 0)), runs, n * store))
        counts = live[:, slice(*block)].sum(1) if not hooked else np.full(n_variants, n)
        for members in _chunks(order, groups, counts.tolist(), most_cells):
            start = starts[members[0]]
            cells = int(counts[members].sum())
            operations = cells * costs.operations(start, cfg.decoder.n_layers)
            chunks.append(
                Chunk(block, tuple(members), cells, cells * costs.rows(start), operations, n * store + cells * each)
            )
    idle = n_variants * n_prompts - sum(chunk.cells for chunk in chunks)
    return Plan(tuple(chunks), n_variants, n_prompts, idle, max_memory, False, ())


def _chunks(
    order: Sequence[int], groups: Sequence[tuple[Start, Company]], counts: Sequence[int], most: Sequence[int]
) -> Iterator[list[int]]:
    """Neighbours that enter at the same place and may share a forward, with about so many cells in each chunk."""
    members: list[int] = []
    total = 0
    for variant in order:
        if not counts[variant]:
            continue  # it changes nothing on these prompts
        if members and (groups[variant] != groups[members[0]] or total + counts[variant] > most[variant]):
            yield members
            members, total = [], 0
        members.append(variant)
        total += counts[variant]
    if members:
        yield members
