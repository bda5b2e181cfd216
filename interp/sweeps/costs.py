"""What rows cost: floating-point operations and bytes, from a model's configuration.

A row is one position of one edited run. It costs its matrix products (two operations for each weight), its attention
(two products with every key) or its recurrence, and the memory of what is held with it at the widest place of a layer.
Layers are counted one by one: they may be of different kinds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from interp.config import MAMBAS, ModelConfig
from interp.metrics import Metric
from interp.sites import Site, axis_sizes
from interp.sweeps.edit_reach import RowsByStep

# Temporaries that kernels hold beside their inputs and outputs, as a factor.
SLACK = 1.25
# Rows whose logits over a whole vocabulary are formed at once.
LOGIT_ROWS = 64
# Operations of the recurrence for each number of a state: its decay, what is added, what is read.
RECURRENCE = 6


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


class RowCost(NamedTuple):
    """What a row costs in one layer.

    Attributes:
        mix: operations before and while positions look at one another.
        look: operations for each key that it looks at.
        write: operations of the layer's second half.
        numbers: how many are held with it at the widest place.
        kept: how many a base run keeps, for rows to look back at; without states.
    """

    mix: float
    look: float
    write: float
    numbers: int
    kept: int


def row_in(cfg: ModelConfig, layer: int, wide: int) -> RowCost:
    """What a row costs in a layer; `wide` numbers of the model's type fill one of a step size or a state."""
    d_model, d_mlp = cfg.d_model, cfg.neurons_in(layer)
    router = 0 if (experts := cfg.experts_in(layer)) is None else experts.n_experts
    mlp = 2 * d_model * ((3 if cfg.gated_mlp else 2) * d_mlp + router)
    mixer, beside_mlp = cfg.mixer(layer), 3 * d_mlp + d_model + 3 * router
    if mixer == "attn":
        heads, kv_heads = cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head
        beside = max(3 * (heads + 2 * kv_heads) + 2 * heads, beside_mlp)
        return RowCost(
            2 * d_model * (heads + 2 * kv_heads), 4 * heads, 2 * d_model * heads + mlp, beside, heads + 2 * kv_heads
        )
    if mixer is None:
        return RowCost(0, 0, mlp, beside_mlp, 0)
    assert cfg.d_inner is not None and cfg.d_state is not None and cfg.dt_rank is not None
    d_inner, shared = cfg.d_inner, 2 * cfg.d_state
    if mixer == "mamba":
        convolved, made = d_inner, 2 * d_inner
        selected = 2 * d_inner * (cfg.dt_rank + shared) + 2 * cfg.dt_rank * d_inner
    else:
        convolved, selected = d_inner + cfg.n_ssm_groups * shared, 0
        made = d_inner + convolved + cfg.n_ssm_heads
    mix = 2 * d_model * made + 2 * cfg.d_conv * convolved + selected + RECURRENCE * d_inner * cfg.d_state
    beside = max(made + 3 * convolved + (3 + 4 * wide) * d_inner, beside_mlp)
    if cfg.shares(layer):  # attention on twice the width, and the MLP, before the mixer
        heads, kv_heads = cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head
        called = 2 * d_model * (2 * (heads + 2 * kv_heads) + heads + d_model) + mlp
        beside = max(beside, 3 * (heads + 2 * kv_heads) + 2 * heads) + 4 * d_model
        kept = convolved + d_inner + heads + 2 * kv_heads
        return RowCost(mix + called, 4 * heads, 2 * d_model * d_inner, beside, kept)
    return RowCost(mix, 0, 2 * d_model * d_inner + mlp, beside, convolved + d_inner)


class Costs:
    """Counts for one model and metric.

    Args:
        cfg: the model's configuration.
        metric: decides how much is unembedded.
        width: positions of the longest prompt.
        itemsize: bytes of a number.
        n_answers: how many answers of a prompt such a metric reads at most.
    """

    def __init__(self, cfg: ModelConfig, metric: Metric, width: int, itemsize: int, n_answers: int = 2) -> None:
        self.cfg, self.metric, self.width, self.itemsize = cfg, metric, width, itemsize
        # Numbers of the model's type that fill one of a step size or a state, which are float32 at least.
        self.wide = max(4, itemsize) // itemsize
        self.layers = [row_in(cfg, layer, self.wide) for layer in range(cfg.n_layers)]
        # Operations of a row in all layers before one, [layer], and at the end.
        self.mix, self.look, self.write = (np.cumsum([0.0, *(row[part] for row in self.layers)]) for part in range(3))
        # ... and of a position of a whole prompt in all layers of a plain forward.
        self.forward = float(self.mix[-1] + self.write[-1] + self.look[-1] * (width + 1) / 2)
        self.state = self.wide * (cfg.d_inner or 0) * (cfg.d_state or 0) if cfg.has_mamba else 0
        # Scores that a row forms with every key, and their pattern, where no fused kernel does without them.
        formed = cfg.attn_sinks or cfg.attn_scores_soft_cap is not None
        self.scores = 3 * cfg.n_heads * width if formed else 0
        # Positions of a prompt that the metric reads, and tokens at each.
        all_positions = metric.whole and metric.positions is None
        several = isinstance(metric.positions, list | tuple)
        self.reads = width if all_positions else len(metric.positions) if several else 1  # type: ignore[arg-type]
        tokens = metric.tokens
        self.tokens = cfg.d_vocab_out if tokens is None else n_answers if tokens == "answers" else len(tokens)

    def variant(self, found: RowsByStep, first: int, last: int, *, on_demand: Collection[str] = ()) -> Load:
        """One variant on the prompts `first` to before `last`, which needs the rows that `rows_by_step` gives.

        `on_demand` are the short names of the sites that it makes the model form.
        """
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
            mixed, written = slice((step + 1) // 2, (then + 1) // 2 + 1), slice(step // 2, then // 2 + 1)
            operations += rows * _between(self.mix[mixed]) + keys * _between(self.look[mixed])
            operations += rows * _between(self.write[written])
            if then == end and step < end:  # in the last layer only what the metric reads is written
                operations -= (rows - min(rows, cells * self.reads)) * self.layers[-1].write
        widest = max(int(mask.sum()) for _, mask in steps)
        return Load(cells, widest, operations, self.memory(widest, cells, on_demand=on_demand))

    def memory(self, rows: int, cells: int, *, on_demand: Collection[str] = ()) -> int:
        """Bytes that rows of so many cells hold at the widest place of a layer.

        `on_demand` are the short names of the sites that edits make the model form.
        """
        cfg, width = self.cfg, self.width
        heads, kv_heads = cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head
        row = 4 * cfg.d_model + max((layer.numbers for layer in self.layers), default=0) + self.scores
        sequence = 2 * width * (kv_heads + (heads if kv_heads < heads else 0))
        sequence += 3 * self.state  # of a run of rows: before it, after it, in between
        if on_demand:
            row += 3 * max(cfg.n_heads, 1) * (cfg.d_model + width)
        if cfg.experts is not None and any(name.startswith("expert_") for name in on_demand):
            row += cfg.experts.n_experts * (4 * cfg.experts.d_expert + 3 * cfg.d_model)
        if "state" in on_demand:
            row += 6 * self.state
        if "mixer.pattern" in on_demand:
            units = (cfg.d_inner or 0) if "mamba" in cfg.mixers else cfg.n_ssm_heads
            row += 3 * self.wide * units * width
            sequence += 4 * self.wide * units * width**2
        return int(SLACK * self.itemsize * (rows * row + cells * sequence))

    def logits(self, n_prompts: int) -> int:
        """Bytes of the logits that the metric is given at once: of some rows, or of all prompts of one variant."""
        rows = n_prompts * self.reads if self.metric.whole else LOGIT_ROWS
        return int(3 * self.itemsize * rows * self.tokens)

    def whole(self, cells: int, *, on_demand: Collection[str] = ()) -> Load:
        """Forwards of whole prompts, with all their logits."""
        rows = cells * self.width
        logits = rows * self.cfg.d_vocab_out
        formed = {*on_demand, "pattern"}  # somebody's hooks may want what no edit does
        memory = self.memory(rows, cells, on_demand=formed) + int(SLACK * self.itemsize * 2 * logits)
        return Load(cells, rows, rows * self.forward + 2.0 * self.cfg.d_model * logits, memory)

    def runs(self, n_prompts: int, kept: Iterable[Site], first_layer: int, *, states: int = 0) -> tuple[float, int]:
        """Operations and bytes of the base and source runs of some prompts.

        Args:
            n_prompts: how many, each as wide as the longest.
            kept: the sites that edits read, once for every layer.
            first_layer: the layer from which on is kept what mixers look back at, and the residual stream.
            states: before how many positions of each prompt the states are kept.
        """
        cfg, positions = self.cfg, n_prompts * self.width
        operations = 2.0 * positions * self.forward
        operations += 2 * 2.0 * cfg.d_model * n_prompts * self.reads * self.tokens
        store = sum(cfg.d_model + row.kept for row in self.layers[first_layer:]) + 2 * cfg.d_model
        sizes = {**axis_sizes(cfg), "key": self.width}
        formed = bool(states)
        for site in kept:
            formed = formed or site.short == "state"
            numbers = int(np.prod([sizes.get(axis, 1) for axis in site.axes]))
            store += 2 * numbers * (self.wide if site.short in ("state", "delta") else 1)
        working = 4 * cfg.d_model + max((row.numbers for row in self.layers), default=0) + self.scores
        working += 2 * self.state if formed else 0
        recurrent = sum(cfg.mixer(layer) in MAMBAS for layer in range(first_layer, cfg.n_layers))
        logits = 2 * n_prompts * self.reads * self.tokens
        before = n_prompts * states * recurrent * self.state
        return operations, int(self.itemsize * (positions * (store + SLACK * working) + before + SLACK * logits))


def _between(sums: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """What was added between the first and the last of some sums."""
    return float(sums[-1] - sums[0])
