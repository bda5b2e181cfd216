"""Attribution patching: which activation would move the answer, judged by gradients instead of by patching?

1. A clean and a corrupt prompt differ in one respect. Patching an activation changes it by the difference of its two
   values; that change times the metric's gradient at the activation is the effect to first order.
2. One forward and one backward serve every activation of the model, single neurons among them, where activation
   patching runs each.
3. Two failures are known, and can be corrected. Attention that is saturated has a flat softmax: `qk-fix` computes the
   pattern anew. A direct effect can cancel with what later layers make of it: `drop` leaves out one layer after the
   other, which ranks cells and does not estimate effects. `atp-star` is both; `ig` averages gradients along the way
   between the prompts.
4. The cells with the largest estimates, and as many drawn at random, are patched exactly. They say how far the
   estimates are off, and how many large cells they may have missed.

Source: Nanda 2023 (https://www.neelnanda.io/mechanistic-interpretability/attribution-patching, "Attribution Patching");
Kramár et al. 2024 (https://arxiv.org/abs/2403.00745, "AtP*", section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from interp import figures, stats
from interp.arguments import checked
from interp.attribution.estimate_check import agreement, choose, means, ranked, tabulated
from interp.attribution.gradients import AnyMetric, check_steps
from interp.attribution.node_scores import METHODS, NEURONS, cells_or_neurons, estimates
from interp.attribution.run_values import of_sweep
from interp.edits import Variant
from interp.errors import InterpError, check_choice
from interp.figures.axes import Axis
from interp.figures.cell_maps import cell_map
from interp.frames import restoring
from interp.hooked.model import HookedModel
from interp.metrics import get_metric
from interp.prompts.pair_checks import DIRECTIONS
from interp.prompts.pairs import PromptPairs
from interp.study.command import study_command
from interp.study.options import whole
from interp.study.prompts import check_one_stack
from interp.study.shared_options import GRANULARITY, METRIC, by_option, direction_option, method_option, site_option
from interp.study.sweep_options import SweepOptions
from interp.sweeps.sweep import sweep_values
from interp.variants.cell_tables import UNITS, cell_names
from interp.variants.granularity import AXES, by_position, cell_columns, cut_by, described, effect_label

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

MANY = ("channel", "neuron")
SHOWN = 20


@checked
def run(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    site: str | Sequence[str] | None = None,
    by: str | Sequence[str] | EllipsisType | None = ...,
    granularity: str | None = None,
    direction: str = "denoise",
    method: str = "atp",
    steps: int = 5,
    metric: AnyMetric = "logit_diff",
    sample: int = 50,
    most: int = 2000,
    seed: int = 0,
    **options: Unpack[SweepOptions],
) -> pd.DataFrame:
    """Estimate the effect of patching every cell of one or several sites, and measure that of some.

    Args:
        model: the model.
        pairs: clean and corrupt prompts.
        site, by, granularity, direction: as in activation patching; `by="neuron"` cuts the MLPs' "post" (or "pre",
            "pre_linear") into its channels. The "state" of a state-space layer is estimated at single positions.
        method: "atp", "qk-fix", "drop", "atp-star" or "ig".
        steps: points at which "ig" takes the gradient.
        metric: as `interp.sweep` takes it, if it has a gradient.
        sample: how many cells are patched exactly, half of them those with the largest estimates.
        most: how many cells have rows, those with the largest estimates; patched ones always do.
        seed: of the random cells.
        options: `max_memory, out, progress, executor`, as `interp.sweep` takes them.

    Returns:
        A row for each of these cells and every prompt: `direction, site, layer`, what the cell is cut by (`head`, or
        `kv_head` for keys and values, `ssm_head`, `ssm_group`, `channel`, `neuron`, `pos`, `role`, `query`, `key`;
        beside positions the clean prompt's token and role), `method`, `sample` ("top", "random" or ""), `cells` (how
        many were estimated), `prompt, metric, value` (the estimated change of the metric), `exact` (the measured one,
        where it was), `base_value, source_value`, `effect` and `exact_effect` (the changes as parts of the difference
        between the two runs).

    Raises:
        UnknownName: a direction, method, granularity, site or axis that does not exist, a metric without a gradient.
        PromptError: positions of prompts that differ in length, roles that the prompts lack.
        InterpError: what `interp.attribution.node_scores.estimate` and `interp.sweep` refuse; SweepInterrupted as
            there.
    """
    asked = Asked(site, by, granularity, method, most)
    both: dict[str, Any] = {"direction": direction, "steps": steps, "metric": metric, "sample": sample, "seed": seed}
    return run_several(model, pairs, [asked], **both, **options)[0]


@dataclass(frozen=True)
class Asked:
    """What one table of `run_several` is of; the fields are arguments of `run`."""

    site: str | Sequence[str] | None = None
    by: str | Sequence[str] | EllipsisType | None = ...
    granularity: str | None = None
    method: str = "atp"
    most: int = 2000

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)


@checked
def run_several(
    model: HookedModel,
    pairs: PromptPairs,
    asked: Sequence[Asked],
    *,
    direction: str = "denoise",
    steps: int = 5,
    metric: AnyMetric = "logit_diff",
    sample: int = 50,
    seed: int = 0,
    patched: pd.DataFrame | None = None,
    **options: Unpack[SweepOptions],
) -> list[pd.DataFrame]:
    """The tables that `run` makes of several kinds of cells, from the same runs, gradients and one sweep.

    Args:
        model, pairs, direction, steps, metric, sample, seed, options: as in `run`.
        asked: what each table is of.
        patched: what activation patching has measured on the same prompts; its cells are not patched again.

    Raises:
        InterpError: as in `run`; methods that take gradients in different ways ("atp" and "qk-fix" take the same).
    """
    check_one_stack(model, "attribution patching estimates effects in", "activation patching measures them in both")
    check_choice("direction", direction, DIRECTIONS)
    check_steps(steps)
    ways = {(one.method == "ig", METHODS[one.method].get("drop", False)) for one in asked}
    if len(ways) != 1:
        methods = ", ".join(sorted({one.method for one in asked})) or "none"
        raise InterpError(f"tables of one call share their gradients, and these methods do not: {methods}")
    ((integrated, drop),) = ways
    base, source = DIRECTIONS[direction]
    sides = {"base": base, "source": source}
    cells = [cells_or_neurons(model, pairs, one.site, one.by, one.granularity) for one in asked]
    found = estimates(
        model,
        pairs,
        [(some, METHODS[one.method].get("qk_fix", False)) for one, some in zip(asked, cells, strict=True)],
        metric,
        **sides,
        steps=steps if integrated else 1,
        drop=drop,
        max_memory=options.get("max_memory"),
    )  # each [cell, prompt]
    chosen = [choose(some.numpy().mean(1), sample, seed=seed) for some in found]
    # A cell that several tables measure is patched once, and one that was patched before not again.
    once: dict[Any, Variant] = {}
    for some, numbers in zip(cells, chosen, strict=True):
        once |= {_key(some[at]): some[at] for at in numbers}
    changes = {} if patched is None else _known(patched, once, direction, get_metric(metric).name, len(pairs))
    left = [key for key in once if key not in changes] or list(once)[:1]  # one at least, for the values of the runs
    measured = sweep_values(model, pairs, [once[key] for key in left], metric, **sides, **options)
    changes |= dict(zip(left, measured.changes, strict=True))
    frames = []
    for one, some, estimated, numbers in zip(asked, cells, found, chosen, strict=True):
        frame = tabulated(
            partial(_labels, {"direction": direction, "method": one.method}, some),
            estimated.numpy(),
            np.stack([changes[_key(some[at])] for at in numbers]),
            chosen=numbers,
            most=one.most,
            runs=of_sweep(measured),
            metric=get_metric(metric).name,
        )
        frames.append(described(frame, pairs))
    return frames


def _labels(facts: Mapping[str, Any], cells: Sequence[Variant], at: int) -> dict[str, Any]:
    """The columns that identify a cell of a table."""
    return {**facts, **cells[at].labels}


def _known(
    patched: pd.DataFrame, cells: Mapping[Any, Variant], direction: str, metric: str, n_prompts: int
) -> dict[Any, Any]:
    """The changes of the metric [prompt] of those cells that activation patching has measured."""
    import pandas as pd

    rows = patched[(patched["direction"] == direction) & (patched["metric"] == metric)]
    columns = ["site", "layer", *cut_by(rows)]
    every = {
        frozenset(label for label in zip(columns, cell, strict=True) if pd.notna(label[1])): part.sort_values("prompt")
        for cell, part in rows.groupby(columns, sort=False, dropna=False)
    }
    found = {key: every.get(frozenset(cell.labels.items())) for key, cell in cells.items()}
    return {
        key: (part["value"] - part["base_value"]).to_numpy()
        for key, part in found.items()
        if part is not None and part["prompt"].tolist() == list(range(n_prompts))
    }


def _key(cell: Variant) -> Any:
    """What tells a cell from others."""
    return tuple(cell.labels.items())


@checked
@restoring
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean estimated effect of every cell over prompts with intervals, the exact one beside it, largest first.

    `p_adjusted` takes account of all cells that were estimated, those without rows among them.
    """
    return ranked(frame, cell_columns(frame))


@checked
@restoring
def compared(frame: pd.DataFrame) -> pd.DataFrame:
    """How estimates and exact effects agree, as `interp.attribution.estimate_check.agreement` has it."""
    return agreement(frame, by=cell_columns(frame), n_cells=int(frame["cells"].iloc[0]))


@checked
@restoring
def plot(frame: pd.DataFrame) -> Figure:
    """The mean estimated effects: a map of layers by heads, positions or roles, a panel for every site.

    Cells that are cut by two axes, channels and neurons are too many for a map: those with the largest estimates are
    bars.

    Raises:
        InterpError: a frame that holds several granularities.
    """
    if why := stats.why_nothing(frame, "effect"):
        return figures.nothing(why)
    cuts = cut_by(frame)
    heads = [name for name in cuts if name in UNITS and name not in MANY]
    if frame[[name for name in cuts if name not in heads]].isna().any(axis=None):
        raise InterpError(f"one figure shows one granularity; this frame mixes cells by {', '.join(cuts)}")
    several = [name for name in ("direction", "method", "site") if frame[name].nunique() > 1]
    cell, label = cell_columns(frame), effect_label(frame, "estimated effect")
    if not set(MANY).isdisjoint(cuts) or len(cuts) - max(len(heads) - 1, 0) > 1:
        table = stats.summarise(frame, by=cell, value="effect")
        total = int(frame["cells"].iloc[0])
        table = table.loc[table["value"].abs().nlargest(SHOWN).index].assign(name=lambda rows: cell_names(rows))
        title = f"The {len(table)} of {total:,} cells with the largest estimates" if len(table) < total else None
        x = Axis("name", title="")
        return figures.bars(
            table, x=x, horizontal=True, diverging=True, facet=several or None, label=label, title=title
        )
    table = frame.groupby(cell, sort=False, dropna=False)["effect"].mean().reset_index(name="value")
    return cell_map(table, facet=several, label=label)


@checked
@restoring
def plot_agreement(frame: pd.DataFrame) -> Figure:
    """Estimated against exact effect of every cell that was patched; on the diagonal they are equal."""
    if why := stats.why_nothing(frame, "effect"):
        return figures.nothing(why)
    table = means(frame, cell_columns(frame))
    return figures.estimates(table.assign(name=cell_names(table)))


main = study_command(
    run,
    plot=plot,
    summary=summary,
    by_position=by_position,
    options=[
        METRIC,
        whole("--sample", "How many cells are patched exactly.", default=50, least=0),
        whole("--most", "How many cells are listed.", default=2000, least=0),
        whole("--steps", "Points at which ig takes the gradient.", default=5),
        method_option(METHODS, "atp"),
        direction_option("denoise"),
        GRANULARITY,
        by_option(f"{', '.join(AXES)}, several as head,pos.  [head]"),
        site_option(f"Short site names: z, resid_pre, ..., with neuron {', '.join(NEURONS)}.  [z]"),
    ],
)

if __name__ == "__main__":
    main()
