"""Ablation in a report: whole layers, every head, the strongest heads again on other prompts, and the curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from analyses.ablation import ORDERS, plot_curves, plot_single, run, summary
from interp import stats
from interp.edits import Edit, Variant
from interp.hooked.model import HookedModel
from interp.names import MIXER_PARTS, PART_KINDS, WHOLES, Part
from interp.prompts.pairs import PromptPairs
from interp.rounding import of_rows, within
from interp.study.fewer_prompts import affordable
from interp.study.sections import Results, StudyReport
from interp.study.sentences import BANDS, counted_of, interval, listed, spelled
from interp.sweeps.sweep import plan_sweep
from interp.ui.page import FigureItem, Section, first_rows
from interp.variants.ablation_runs import recovery
from interp.variants.components import components, having, in_words

if TYPE_CHECKING:
    import pandas as pd

ORDER = 38
HEADS = [own.usual for own in MIXER_PARTS.values() if own.heads]
MOST_OPERATIONS = 1.8e12  # for the map of the heads
MOST_AGAIN, MOST_OTHERS = 6, 8  # heads and prompts of the second look


def report(model: HookedModel, pairs: PromptPairs, results: Results, *, progress: bool | None = None) -> StudyReport:
    """The section of a task's report: layers, heads, the strongest heads again on other prompts, and the curves."""
    import pandas as pd

    # 1. Whole layers, every head or mixer by itself and one after another, and the strongest on other prompts.
    kind = ("mean_by_role" if pairs.role_names else "mean") if len(pairs) > 1 else "zero"
    parts = components(model)
    few = _affordable(model, pairs, parts)
    wholes = having(model, WHOLES)
    layers = run(model, pairs, kind=sorted({"zero", kind}), site=wholes, measured=few, progress=progress)
    most = len(parts).bit_length() - 2 * any(part.row.axis for part in parts)  # of many heads, the first quarter
    sizes = [*(2**at for at in range(most)), len(parts)]
    maps = run(model, pairs, kind=kind, cumulative=sizes, draws=2, measured=few, progress=progress)
    by_layer, single, curves = summary(layers), summary(maps[maps["stage"] == "single"]), recovery(maps)
    again = _again(model, pairs, single["component"].head(MOST_AGAIN), set(maps["prompt"]), kind, progress)

    # 2. What they say.
    what, clean = in_words(parts), float(maps.drop_duplicates("prompt")["base_value"].mean())
    off = float(of_rows(maps, "base_value").mean())
    instead = f"its {spelled(kind)}" if kind != "zero" else "zero"
    fewer = f"The maps are measured on {counted_of(few, len(pairs))}. " * (few < len(pairs))
    intro = (
        f"Each component is taken away at all positions of the clean prompts, {instead} in its place. {fewer}"
        "Later components can make up for one that is missing: a small effect does not say that it does nothing."
    )
    strongest = by_layer.iloc[0]
    of_layers = (
        f"Of whole layers, {strongest['component']} has the largest effect: under {spelled(strongest['kind'])} "
        f"ablation the logit difference of {clean:.2f} changes by {_change(strongest, off)}."
    )
    found, halved = _found(single, again, kind, clean, what, off), _halves(curves, clean, what, off)

    # 3. Figures and tables.
    items = _figures(layers, by_layer, wholes, maps, single, curves, what, f"Mean over {counted_of(few, len(pairs))}.")
    tables = [first_rows(f"The {what} with the largest effect", single, 10)]
    *items, of_curves = items
    more: list[FigureItem | tuple[str, pd.DataFrame]] = [of_curves]
    if again is not None:
        more.append((f"The strongest {what} on other prompts, by kind of ablation", again))
    text = [intro, of_layers, found, halved]
    section = Section(title="Ablation", anchor="ablation", text=text, figures=items, tables=tables, appendix=more)
    return StudyReport(pd.concat([maps, layers], ignore_index=True), section, [found, halved])


def _affordable(model: HookedModel, pairs: PromptPairs, parts: Sequence[Part]) -> int:
    """How many prompts the map of a report takes: all of them where the model is small."""
    zeros = [
        Variant([Edit(part.full_site, {} if part.row.axis is None else {part.row.axis: part.index or 0}, "zero")])
        for part in parts
    ]
    operations = plan_sweep(model, pairs, zeros, base="clean", source="clean").operations
    return min(len(pairs), affordable(operations / len(pairs), MOST_OPERATIONS))


def _again(
    model: HookedModel, pairs: PromptPairs, heads: Iterable[str], seen: set[int], kind: str, progress: bool | None
) -> pd.DataFrame | None:
    """The effects of heads on prompts that did not choose them, under every ablation that these prompts allow."""
    others = [at for at in range(len(pairs)) if at not in seen][:MOST_OTHERS]
    if len(others) < 2:
        return None
    rest = pairs[others]
    alone = rest.lengths.unique(return_counts=True)[1].min() == 1
    kinds = [kind, "zero", *([] if alone else ["resample"]), "corrupt"]
    return summary(run(model, rest, kind=kinds, only=list(heads), progress=progress))


def _change(row: Any, off: float) -> str:
    """The change of the metric, which is the loss the other way round, with its interval."""
    sure = interval(row, "+.2f", turned=True, before=" (", after=")")
    return f"{-row['value']:+.2f}{sure}{within(row['value'], off)}"


def _found(single: pd.DataFrame, again: pd.DataFrame | None, kind: str, clean: float, what: str, off: float) -> str:
    """Which head or mixer matters most, and how many of the strongest still do on prompts that did not choose them."""
    best = single.iloc[0]
    opening = (
        f"Of {len(single)} {what}, {best['component']} has the largest effect: without it ({spelled(kind)} ablation) "
        f"the logit difference of {clean:.2f} changes by "
    )
    if again is None:
        return f"{opening}{_change(best, off)}."
    same = again[again["kind"] == kind]
    row = same[same["component"] == best["component"]].iloc[0]
    sure = same[same["p_adjusted"] < stats.SURE]["value"]
    return (
        f"{opening}{-best['value']:+.2f}, and on {row['n']} other prompts by {_change(row, off)}. "
        f"Of the {len(same)} {what} with the largest effects {(sure > 0).sum()} help there, too, and "
        f"{(sure < 0).sum()} work against the answer (p < {stats.SURE}, corrected for all that was tested there)."
    )


def _halves(curves: pd.DataFrame, clean: float, what: str, off: float) -> str:
    """How many heads or mixers must go, or come back, for half of the metric."""
    if clean <= off:
        return f"The clean logit difference is {clean:.2f}: there is no right answer that ablation could take away."
    means = {key: part.set_index("number")["value"] for key, part in curves.groupby(["stage", "order"])}
    fell = {}
    for order in ORDERS:
        curve = means["ablate", order]
        low = curve.index[curve <= clean / 2]
        fell[order] = f"after {low.min()}" if len(low) else "never"
    back = means["restore", "importance"]
    again = f"; giving them back by importance, half is there again with {back.index[back >= clean / 2].min()}"
    return (
        f"Taking {what} away by importance, the logit difference of {clean:.2f} falls to half {fell['importance']}; in "
        f"random order, {fell['random']}. With all {back.index.max()} ablated it is {back.loc[0]:.2f}"
        f"{again if back.loc[0] < clean / 2 else ''}. (Numbers tried: {', '.join(map(str, back.index))}.)"
    )


def _figures(
    layers: pd.DataFrame,
    by_layer: pd.DataFrame,
    wholes: Sequence[str],
    maps: pd.DataFrame,
    single: pd.DataFrame,
    curves: pd.DataFrame,
    what: str,
    caption: str,
) -> list[FigureItem]:
    """The curve of layers, a map of every kind of heads, and the curves of ablation one after another."""
    mixers = listed([PART_KINDS[kind].word for site, kind in WHOLES.items() if site in wholes and kind != "mlp"])
    items = [
        FigureItem(
            "ablation_layers",
            f"What is lost without each layer's {mixers}" + (", and without its MLP" if "mlp_out" in wholes else ""),
            f"{caption} {BANDS.capitalize()}.",
            plot_single(stats.as_measured(by_layer, layers)),
            by_layer,
            tells="what the logit difference loses without it",
        )
    ]
    heads = [name for name in HEADS if name in single]
    for name in heads:
        own = single[single[name].notna()].drop(columns=[other for other in heads if other != name])
        items.append(
            FigureItem(
                f"ablation_{name}s",
                f"What is lost without each {PART_KINDS[name].word}",
                f"{caption} Blue heads help, red heads work against the answer.",
                plot_single(stats.as_measured(own, maps)),
                own,
                view="cells",
                tells="what the logit difference loses without it",
            )
        )
    order = (
        "The order of importance is that of the single ablations on these prompts, the random one the mean of two "
        "draws."
    )
    title = f"{what.capitalize()} taken away one after another, and given back"
    return [*items, FigureItem("ablation_curves", title, f"{caption} {order}", plot_curves(curves), curves)]
