"""Direct logit attribution in a report: what all heads, mixers and MLPs write together, and which write most."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyses.head_attribution import SUMS, WHOLES, by_layer, plot_layers, plot_parts, run, summary
from interp.attribution.direct import PARTS, columns
from interp.hooked.model import HookedModel
from interp.names import PART_KINDS
from interp.prompts.pairs import PromptPairs
from interp.study.sections import Results, StudyReport
from interp.study.sentences import BANDS, counted, interval
from interp.ui.page import FigureItem, Section, first_rows

if TYPE_CHECKING:
    import pandas as pd

ORDER = 30


def report(model: HookedModel, pairs: PromptPairs, results: Results, *, progress: bool | None = None) -> StudyReport:
    """The section of a task's report: the sum, the parts that contribute most, and the layers."""
    frame = run(model, pairs)
    table, layers = summary(frame), by_layer(frame)
    parts = table[table["kind"].isin(PARTS)]
    finding = _finding(frame, parts)
    items = [
        FigureItem(
            "attribution_layers",
            f"Direct contribution of every layer's {_of_layers(set(layers['kind']))}",
            f"Mean over {counted(len(pairs))}; {BANDS}.",
            plot_layers(frame),
            layers,
        ),
        *(_figure(parts, kind) for kind in PARTS if kind in set(parts["kind"])),
    ]
    shown = table[table["kind"].isin([*PARTS, "mixer", "mlp", "embed"])]
    if model.cfg.has_mamba or model.cfg.experts is not None:  # names say where parts stand
        shown = shown.drop(columns=columns(model.cfg))
    section = Section(
        title="Direct logit attribution",
        anchor="attribution",
        text=[_sum(frame, table), _strongest(parts)],
        figures=items[1:],
        tables=[first_rows("The largest direct contributions", shown, 10)],
        appendix=items[:1],
    )
    return StudyReport(frame, section, [finding])


def _added(frame: pd.DataFrame) -> tuple[list[tuple[str, float]], float]:
    """What all heads, mixers and MLPs add, each in a word, and what biases add: means over prompts."""
    kinds = frame["kind"].replace(WHOLES)
    sums = frame["value"].groupby([kinds, frame["prompt"]]).sum().groupby(level=0).mean()
    return [(PART_KINDS[kind].plural, float(sums[kind])) for kind in SUMS if kind in sums], float(sums["bias"])


def _of_layers(there: set[str]) -> str:
    """What is summed in every layer: its heads, its mixer, its MLP."""
    kinds = [kind for kind in SUMS if kind in there]
    return " and ".join(PART_KINDS[kind].plural if kind in PARTS else PART_KINDS[kind].word for kind in kinds)


def _finding(frame: pd.DataFrame, parts: pd.DataFrame) -> str:
    (first, most), *others = _added(frame)[0]
    what = " and ".join(PART_KINDS[kind].plural for kind in PARTS if kind in set(parts["kind"]))
    return (
        f"The {what} whose direct contribution is largest are "
        + ", ".join(f"{row.component} ({row.value:+.2f})" for row in parts.head(3).itertuples())
        + f"; all {first} together write {most:+.2f}"
        + "".join(f", all {word} {value:+.2f}" for word, value in others)
        + " of the logit difference."
    )


def _sum(frame: pd.DataFrame, table: pd.DataFrame) -> str:
    """The logit difference as a sum of parts, and what the sum leaves over."""
    total = table[table["kind"] == "total"].iloc[0]
    added, bias = _added(frame)
    embed = frame[frame["kind"] == "embed"].groupby("prompt")["value"].sum().mean()
    residue = frame.loc[frame["kind"] == "residue", "value"].abs().max()
    return (
        f"The logit difference at the last position, {total['value']:.2f} on average, is the sum of what each part "
        f"writes there: {''.join(f'{word} {value:+.2f}, ' for word, value in added)}embeddings {embed:+.2f}, "
        f"biases {bias:+.2f} (largest residue of any prompt: {residue:.1e})." + _capped(table)
    )


def _capped(table: pd.DataFrame) -> str:
    """What a soft cap makes of the sum, if the model has one."""
    capped = table[table["kind"] == "capped"]
    if capped.empty:
        return ""
    return (
        " These are logits before the model's soft cap, which bends the sum as a whole; after it the difference is "
        f"{capped.iloc[0]['value']:.2f}."
    )


def _strongest(parts: pd.DataFrame) -> str:
    strongest, weakest = parts.iloc[0], parts.sort_values("value").iloc[0]
    return (
        f"The {PART_KINDS[strongest['kind']].word} with the largest direct contribution is {strongest['component']} "
        f"({strongest['value']:+.2f}{interval(strongest, before=', ')}); the strongest against the answer is "
        f"{weakest['component']} ({weakest['value']:+.2f})."
    )


def _figure(parts: pd.DataFrame, kind: str) -> FigureItem:
    """Every head, or the channels with rows."""
    own = parts[parts["kind"] == kind]
    row = PART_KINDS[kind]
    some = {"channel": "the channels with the largest ones", "expert": "every expert that a last position is sent to"}
    which = some.get(kind, f"every {row.word}")
    return FigureItem(
        f"attribution_{kind}s",
        f"Direct contribution of {which}",
        f"Blue {row.plural} write towards the right answer, red {row.plural} towards the wrong one.",
        plot_parts(own, kind),
        own.drop(columns=[name for name in PARTS if name in own and name != kind]),
        view="cells",
        tells="what it writes to the logit difference itself",
    )
