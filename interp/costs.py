"""What rows cost: floating-point operations and bytes, from a model's configuration.

A row is one position of one edited run. It costs its matrix products (two operations for each weight), its attention
(two products with every key), and the memory of what stands beside it in the widest place of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from interp.config import ModelConfig
from interp.metrics import Metric
from interp.reach import Events
from interp.sites import Site, axis_sizes

# Temporaries that kernels hold beside their inputs and outputs, as a factor.
SLACK = 1.25
# Rows whose logits over a whole vocabulary are formed at once.
LOGIT_ROWS = 64


@dataclass(frozen=True)
class Load:
    """What some variants cost together: cells that are run, rows at the widest step, operations, bytes."""

    cells: int = 0
    rows: int = 0
    operations: float = 0.0
    memory: int = 0

    def __add__(self, other: Load) -> Load:
        return Load(
            self.cells + other.cells,
            self.rows + other.rows,
            self.operations + other.operations,
            self.memory + other.memory,
        )


class Costs:
    """Counts for one model and metric.

    Args:
        cfg: the model's configuration.
        metric: decides how much is unembedded.
        width: positions of the longest prompt.
        itemsize: bytes of a number.
    """

    def __init__(self, cfg: ModelConfig, metric: Metric, width: int, itemsize: int) -> None:
        self.cfg, self.metric, self.width, self.itemsize = cfg, metric, width, itemsize
        self.heads, self.kv_heads, self.d_mlp = cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head, cfg.d_mlp or 0
        # Operations of a row before positions look at one another, for each key that it looks at, and after it.
        self.mix = 2 * cfg.d_model * (self.heads + 2 * self.kv_heads)
        self.look = 4 * self.heads
        self.write = 2 * cfg.d_model * (self.heads + (3 if cfg.gated_mlp else 2) * self.d_mlp)
        # ... and of a position of a whole prompt in all layers of a plain forward.
        self.forward = cfg.n_layers * (self.mix + self.write + self.look * (width + 1) / 2)
        # Positions of a prompt that the metric reads, and tokens at each.
        all_positions = metric.whole and metric.positions is None
        several = isinstance(metric.positions, list | tuple)
        self.reads = width if all_positions else len(metric.positions) if several else 1  # type: ignore[arg-type]
        tokens = metric.tokens
        self.tokens = cfg.d_vocab_out if tokens is None else 2 if tokens == "answers" else len(tokens)

    def variant(self, found: Events, first: int, last: int, *, on_demand: bool = False) -> Load:
        """One variant on the prompts `first` to before `last`, which needs the rows that `events` found."""
        end = 2 * self.cfg.n_layers
        if not found:
            return Load()
        steps = [(step, mask[first:last]) for step, mask in found]
        live = np.logical_or.reduce([mask.any(1) for _, mask in steps])
        cells = int(live.sum())
        if not cells:
            return Load()
        operations = 2.0 * self.cfg.d_model * cells * self.reads * self.tokens
        for (step, mask), then in zip(steps, [*(step for step, _ in steps[1:]), end], strict=True):
            rows = int(mask.sum())
            keys = float((mask * np.arange(1, mask.shape[1] + 1)).sum()) if self.cfg.causal else rows * self.width
            operations += ((then + 1) // 2 - (step + 1) // 2) * (rows * self.mix + keys * self.look)
            operations += (then // 2 - step // 2) * rows * self.write
            if then == end and step < end:  # in the last layer only what the metric reads is written
                operations -= (rows - min(rows, cells * self.reads)) * self.write
        widest = max(int(mask.sum()) for _, mask in steps)
        return Load(cells, widest, operations, self.memory(widest, cells, on_demand=on_demand))

    def memory(self, rows: int, cells: int, *, on_demand: bool) -> int:
        """Bytes that rows of so many cells hold at the widest place of a layer."""
        cfg = self.cfg
        looking = 3 * (self.heads + 2 * self.kv_heads) + 2 * self.heads
        row = 4 * cfg.d_model + max(looking, 3 * self.d_mlp + cfg.d_model)
        if on_demand:
            row += 3 * cfg.n_heads * (cfg.d_model + self.width)
        sequence = 2 * self.width * (self.kv_heads + (self.heads if self.kv_heads < self.heads else 0))
        return int(SLACK * self.itemsize * (rows * row + cells * sequence))

    def logits(self, n_prompts: int) -> int:
        """Bytes of the logits that the metric is given at once: of some rows, or of all prompts of one variant."""
        rows = n_prompts * self.reads if self.metric.whole else LOGIT_ROWS
        return int(3 * self.itemsize * rows * self.tokens)

    def whole(self, cells: int) -> Load:
        """Forwards of whole prompts, with all their logits."""
        rows = cells * self.width
        logits = rows * self.cfg.d_vocab_out
        memory = self.memory(rows, cells, on_demand=True) + int(SLACK * self.itemsize * 2 * logits)
        return Load(cells, rows, rows * self.forward + 2.0 * self.cfg.d_model * logits, memory)

    def runs(self, n_prompts: int, kept: Iterable[Site], first_layer: int) -> tuple[float, int]:
        """Operations and bytes of the base and source runs of some prompts.

        Args:
            n_prompts: how many, each as wide as the longest.
            kept: the sites that edits read, once for every layer.
            first_layer: the layer from which on keys, values and the residual stream are kept.
        """
        cfg, positions = self.cfg, n_prompts * self.width
        operations = 2.0 * positions * self.forward
        operations += 2 * 2.0 * cfg.d_model * n_prompts * self.reads * self.tokens
        store = (cfg.n_layers - first_layer) * (cfg.d_model + self.heads + 2 * self.kv_heads) + 2 * cfg.d_model
        sizes = {**axis_sizes(cfg), "key": self.width}
        for site in kept:
            store += 2 * int(np.prod([sizes.get(axis, 1) for axis in site.axes]))
        working = 4 * cfg.d_model + max(3 * (self.heads + 2 * self.kv_heads), 3 * self.d_mlp)
        logits = 2 * n_prompts * self.reads * self.tokens
        return operations, int(self.itemsize * (positions * (store + SLACK * working) + SLACK * logits))
