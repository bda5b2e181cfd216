"""Draw the figure of docs/one_pass.md and print its tables: which rows of one IOI pair are run, layer by layer.

1. `interp.sweeps.edit_reach` says which positions a variant needs from which step of the depth on; nothing is run.
2. A row is one position in one layer. It may be run up to the heads' mix, from there on, or both.
3. What that costs is counted by `interp.sweeps.costs`, as the planner does. A plain forward runs every row, and
   unembeds every position for the whole vocabulary.

    python docs/figures/one_pass.py
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

import interp
from interp.edits import Edit, Variant
from interp.figures.cell_panels import POINTS
from interp.figures.glyphs import position_labels
from interp.figures.style import (
    FORMATS,
    OKABE_ITO,
    RASTER_DPI,
    RULE,
    SMALL,
    TEXT_WIDTH,
    Figure,
    blank,
    settled,
    styled,
)
from interp.hooked.model import HookedModel
from interp.metrics import Metric, get_metric, is_read
from interp.prompts.pairs import PromptPairs
from interp.sweeps.costs import Costs
from interp.sweeps.edit_reach import Placer, changed, rows_by_step, token_differences
from interp.sweeps.plan import Plan
from interp.sweeps.sweep import plan_sweep

Counts = np.ndarray[Any, np.dtype[np.int64]]  # [layer, pos]

HERE = Path(__file__).parent
DARK, LIGHT, AMBER, RED = OKABE_ITO[0], OKABE_ITO[5], OKABE_ITO[4], OKABE_ITO[1]
NOT_RUN = "#efefef"
HALVES = ("not run", "first half: norm, q, k, v, mixing", "second half: W_O and MLP", "both halves")
SHARES = LinearSegmentedColormap.from_list("shares", [NOT_RUN, "#3f007d"])
MEMORY = 2**30  # a plan depends on it, and must not depend on the machine


@dataclass(frozen=True)
class Rows:
    """How many variants and prompts run each row.

    Attributes:
        mixed: the first half of a layer, up to what its heads mix [layer, pos].
        written: the second half, W_O and MLP [layer, pos].
        either: at least one half [layer, pos].
        edited: where an edit changes something [layer, pos].
        cells: variants times prompts.
    """

    mixed: Counts
    written: Counts
    either: Counts
    edited: Counts
    cells: int


@dataclass(frozen=True)
class Sweep:
    """Variants of one pair; `name` stands in the table, `title` above a panel, with `where` below it."""

    variants: Sequence[Variant]
    name: str = ""
    title: str = ""
    where: str = ""
    base: str = "corrupt"
    source: str = "clean"

    def rows(self, model: HookedModel, pairs: PromptPairs) -> Rows:
        """The rows that it needs."""
        return rows_run(model, pairs, self.variants, base=self.base, source=self.source)

    def plan(self, model: HookedModel, pairs: PromptPairs, metric: str | Metric = "logit_diff") -> Plan:
        """What the engine is going to do."""
        return plan_sweep(model, pairs, self.variants, metric, base=self.base, source=self.source, max_memory=MEMORY)


def example() -> tuple[HookedModel, PromptPairs]:
    """The model and the one pair of prompts that everything is counted for."""
    model = interp.load("smollm2-135m")
    return model, interp.tasks.ioi(model, n=1, seed=0)


def rows_run(model: HookedModel, pairs: PromptPairs, variants: Sequence[Variant], *, base: str, source: str) -> Rows:
    """The rows that variants need, for a metric that reads the last position."""
    cfg = model.cfg
    read = is_read(get_metric("logit_diff"), pairs)
    placer = Placer(model, pairs, read)
    differs = token_differences(pairs, base, source, cfg)
    mixed, written, either, edited = (np.zeros((cfg.n_layers, read.shape[1]), dtype=np.int64) for _ in range(4))
    for variant in variants:
        placed = [placer.place(edit) for edit in variant.edits]
        changes = [(edit, changed(edit, differs)) for edit in placed]
        found = dict(rows_by_step(changes, cfg.causal, placer.real, cfg.n_layers))
        for edit, where in changes:
            edited[min(edit.step // 2, cfg.n_layers - 1)] += where.sum(0)
        now = np.zeros_like(read)
        for layer in range(cfg.n_layers):
            before = now = found.get(2 * layer, now)
            now = found.get(2 * layer + 1, now)
            after = now & read if layer == cfg.n_layers - 1 else now
            mixed[layer] += before.sum(0)
            written[layer] += after.sum(0)
            either[layer] += (before | after).sum(0)
    return Rows(mixed, written, either, edited, len(variants) * len(pairs))


def costs_of(model: HookedModel, pairs: PromptPairs) -> Costs:
    """The planner's counts, for the metric `logit_diff`."""
    return Costs(model.cfg, get_metric("logit_diff"), pairs.mask.shape[1], model.dtype.itemsize)


def operations(rows: Rows, costs: Costs) -> Any:
    """Floating-point operations of rows in the layers [layer, pos]."""
    keys = np.arange(1, costs.width + 1)
    mix, look, write = (np.diff(of)[:, None] for of in (costs.mix, costs.look, costs.write))  # [layer, 1]
    return rows.mixed * (mix + keys * look) + rows.written * write


def whole(model: HookedModel, pairs: PromptPairs) -> Rows:
    """The rows of a plain forward of one prompt."""
    ones = np.ones((model.cfg.n_layers, pairs.mask.shape[1]), dtype=np.int64)
    return Rows(ones, ones, ones, 0 * ones, 1)


def plain_operations(model: HookedModel, pairs: PromptPairs) -> float:
    """Operations of a plain forward, which gives the logits of the whole vocabulary at every position."""
    costs = costs_of(model, pairs)
    unembedding = 2.0 * model.cfg.d_model * model.cfg.d_vocab_out * costs.width
    return float(operations(whole(model, pairs), costs).sum()) + unembedding


def sweeps(model: HookedModel, pairs: PromptPairs) -> dict[str, Sweep]:
    """The variants of the figure and the table."""
    cfg, length = model.cfg, pairs.mask.shape[1]
    layers, heads, positions = range(cfg.n_layers), range(cfg.n_heads), range(length)
    draw = random.Random(0)

    def each(site: str, places: Sequence[dict[str, int]]) -> list[Variant]:
        return [Variant([Edit(site, where)], where) for where in places]

    every_head = [{"layer": layer, "head": head} for layer in layers for head in heads]
    every_pos = [{"layer": layer, "pos": pos} for layer in layers for pos in positions]
    both = [{**where, "pos": pos} for where in every_head for pos in positions]
    halves = [draw.sample(every_head, len(every_head) // 2) for _ in range(200)]
    circuits = [Variant([Edit("z", where, "zero") for where in half]) for half in halves]
    layer, head, pos = 12, 6, length - 3
    one, at_pos = {"layer": layer, "head": head}, f"at position {pos}"
    return {
        "head": Sweep(each("z", [one]), title=f"z of L{layer}H{head}", where="at all positions"),
        "head at pos": Sweep(each("z", [{**one, "pos": pos}]), title=f"z of L{layer}H{head}", where=at_pos),
        "resid at pos": Sweep(
            each("resid_pre", [{"layer": layer, "pos": pos}]), title=f"resid_pre of layer {layer}", where=at_pos
        ),
        "heads": Sweep(each("z", every_head), "`z` of every head", "z of every head"),
        "resid": Sweep(each("resid_pre", every_pos), "`resid_pre` at every position", "resid_pre at every position"),
        "both": Sweep(each("z", both), "`z` of every head at every position"),
        "circuits": Sweep(circuits, "200 knock-outs of a random half of the heads", source="corrupt"),
    }


def table(model: HookedModel, pairs: PromptPairs) -> list[str]:
    """The lines of the page's table, in Markdown."""
    plain = plain_operations(model, pairs)
    n_rows = model.cfg.n_layers * pairs.mask.shape[1]
    lines = ["| sweep | cells | of these run | rows, plain loop | rows, one pass | operations, fewer by |"]
    lines.append("|---|---|---|---|---|---|")
    for sweep in sweeps(model, pairs).values():
        if sweep.name:
            plan, rows = sweep.plan(model, pairs), sweep.rows(model, pairs)
            numbers = [plan.cells, plan.cells - plan.idle, plan.cells * n_rows, int(rows.either.sum())]
            told = [f"{number:,}" for number in numbers]
            lines.append(f"| {' | '.join([sweep.name, *told, f'{plan.cells * plain / plan.operations:.1f}×'])} |")
    return lines


def metrics_table(model: HookedModel, pairs: PromptPairs) -> list[str]:
    """What a metric of one's own saves by saying what it reads, in Markdown."""

    def fn(logits: Any, rows: PromptPairs) -> Any:
        return logits[:, 0, 0] - logits[:, 0, 1]  # only planned with, never run

    plain, heads = plain_operations(model, pairs), sweeps(model, pairs)["heads"]
    lines = ["| the metric says | operations, fewer by |", "|---|---|"]
    for says, told in (
        ("nothing", {}),
        ("`positions=-1`", {"positions": -1}),
        ('`positions=-1, tokens="answers"`', {"positions": -1, "tokens": "answers"}),
    ):
        plan = heads.plan(model, pairs, Metric("own", fn, "a function", "logits", whole=True, **told))
        lines.append(f"| {says} | {plan.cells * plain / plan.operations:.1f}× |")
    return lines


def titles(model: HookedModel, pairs: PromptPairs) -> dict[str, tuple[str, str, str]]:
    """The three lines above each panel: what is run, in how many rows, and what that saves.

    A sweep is charged with its base and source runs, as in the table; a single variant is not.
    """
    plain, n_rows = plain_operations(model, pairs), model.cfg.n_layers * pairs.mask.shape[1]
    found = {"plain": ("a plain forward", f"{n_rows:,} rows", "")}
    for key, sweep in sweeps(model, pairs).items():
        if sweep.title:
            rows, plan = sweep.rows(model, pairs), sweep.plan(model, pairs)
            where = sweep.where or f"{rows.cells:,} variants"
            own = sum(chunk.operations for chunk in plan.chunks if chunk.variants)
            count = f"{where}: {rows.either.sum():,} of {rows.cells * n_rows:,} rows"
            saving = rows.cells * plain / (plan.operations if rows.cells > 1 else own)
            found[key] = (sweep.title, count, f"{saving:.1f}× fewer operations")
    return found


@styled()
def draw(model: HookedModel, pairs: PromptPairs) -> Figure:
    """Six panels of layers and positions: four single runs, two sweeps."""
    figure = blank(TEXT_WIDTH, 5.6)
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    costs, chosen = costs_of(model, pairs), sweeps(model, pairs)
    one = operations(whole(model, pairs), costs)
    labels = position_labels(model.to_str_tokens(pairs.corrupt[0]))
    first = int((pairs.clean[0] != pairs.corrupt[0]).nonzero()[0])
    for panel, (key, (head, *numbers)) in zip(axes.flat, titles(model, pairs).items(), strict=True):
        rows = chosen[key].rows(model, pairs) if key in chosen else whole(model, pairs)
        if rows.cells == 1:
            _grid(panel, rows.mixed + 2 * rows.written, ListedColormap([NOT_RUN, LIGHT, AMBER, DARK]), 3)
        else:
            _grid(panel, operations(rows, costs) / (rows.cells * one), SHARES, 1)
        _logits(panel, rows, model.cfg.n_layers, everything=key == "plain")
        if rows.cells == 1:
            _outline(panel, rows.edited)
        panel.set_title(head, pad=18)
        told = panel.annotate("\n".join(numbers), (0, 1), (0, 16), "axes fraction", textcoords="offset points")
        told.set(size=SMALL, va="top", linespacing=1.25)
        _ticks(panel, labels, model.cfg.n_layers, bold=first)
    for panel in axes[:, 0]:
        panel.set_ylabel("layer")
    axes[1, 1].set_xlabel("position: token of the base run (bold: the first that differs in the source run)")
    shown = ScalarMappable(Normalize(0, 1), SHARES)
    bar = figure.colorbar(shown, ax=axes, shrink=0.36, anchor=(0.0, 0.08), aspect=18, pad=0.015, fraction=0.05)
    bar.set_label("share of the plain loop's operations")
    bar.outline.set_linewidth(0.4)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=3, borderpad=0.7)
    return figure


def _grid(panel: Axes, values: Any, colours: Any, most: int) -> None:
    n_layers, n_pos = values.shape
    edges = np.arange(n_pos + 1) - 0.5, np.arange(n_layers + 1) - 0.5
    line = {"edgecolors": "white", "linewidth": POINTS / RASTER_DPI}
    panel.pcolormesh(*edges, values, cmap=colours, vmin=0, vmax=most, rasterized=True, **line)
    panel.set(xlim=(-0.5, n_pos - 0.5), ylim=(n_layers + 1.6, -0.5))
    for side in ("left", "bottom"):
        panel.spines[side].set_visible(False)


def _logits(panel: Axes, rows: Rows, n_layers: int, *, everything: bool) -> None:
    """A strip below the layers: which positions are unembedded, whole cells for the whole vocabulary."""
    for pos, count in enumerate(rows.written[-1]):
        colour = DARK if everything else NOT_RUN
        panel.add_patch(Rectangle((pos - 0.5, n_layers), 1, 1.6, facecolor=colour, edgecolor="white", linewidth=0.3))
        if count and not everything:
            panel.plot(pos, n_layers + 0.8, marker="s", markersize=2.2, color=DARK, markeredgewidth=0)


def _outline(panel: Axes, edited: Counts) -> None:
    layers, positions = np.nonzero(edited)
    if len(layers):
        across, down = float(np.ptp(positions)) + 1, float(np.ptp(layers)) + 1
        corner = (positions.min() - 0.5, layers.min() - 0.5)
        panel.add_patch(Rectangle(corner, across, down, facecolor="none", edgecolor=RED, linewidth=1.1, clip_on=False))


def _ticks(panel: Axes, labels: Sequence[str], n_layers: int, *, bold: int) -> None:
    panel.set_xticks(range(len(labels)), labels=labels, rotation=90)
    panel.xaxis.get_major_ticks()[bold].label1.set_fontweight("bold")
    layers = range(0, n_layers, 5)
    panel.set_yticks([*layers, n_layers + 0.8], labels=[*map(str, layers), "logits"])
    panel.tick_params(length=1.5)


def _legend() -> list[Any]:
    patches = [Patch(facecolor=c, label=h) for c, h in zip((NOT_RUN, LIGHT, AMBER, DARK), HALVES, strict=True)]
    patches[0].set(edgecolor=RULE, linewidth=0.4)
    edit = Patch(facecolor="none", edgecolor=RED, linewidth=1.1, label="what the edit changes")
    few = Line2D([], [], linestyle="", marker="s", markersize=2.2, color=DARK, label="logits of the two answers alone")
    return [patches[0], patches[3], patches[1], patches[2], edit, few]


def main() -> None:
    """Write the figure beside this file and print the tables."""
    model, pairs = example()
    figure = draw(model, pairs)
    with styled(), settled(figure):
        for suffix in ("svg", "png"):
            figure.savefig(HERE / f"one_pass.{suffix}", **FORMATS[suffix])
    print("\n".join([*table(model, pairs), "", *metrics_table(model, pairs)]))


if __name__ == "__main__":
    main()
