"""Linear probes in a report: the residual stream by role, and every head's output at the last position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analyses.probes import CONTROL, plot_scores, run, summary
from interp import stats
from interp.directions.classes import CONTRASTS
from interp.directions.probes import Probe
from interp.hooked.model import HookedModel
from interp.names import MIXER_PARTS, PART_KINDS, part_of
from interp.prompts.pairs import PromptPairs
from interp.study.sections import Results, StudyReport
from interp.study.sentences import interval
from interp.ui.page import FigureItem, Section, first_rows
from interp.variants.components import having

if TYPE_CHECKING:
    import pandas as pd

ORDER = 80

SHUFFLES = 1
METHOD = (
    "A logistic regression (scikit-learn, L2 penalty with C = "
    f"{Probe.regularisation:g} on activations scaled to variance 1) is fitted to the activations of most prompts "
    "and scored on the others; a pair's two prompts are never split. A probe shows that something can be read, not "
    "that the model uses it."
)


def report(model: HookedModel, pairs: PromptPairs, results: Results, *, progress: bool | None = None) -> StudyReport:
    """The section of a task's report: the residual stream by role, and every head's output at the last position."""
    import pandas as pd

    stream = run(model, pairs, shuffles=SHUFFLES, progress=progress)
    table = summary(stream)
    what = CONTRASTS[stream["label"].iloc[0]]
    frames, findings = [stream], [_finding(table, what, "the residual stream")]
    items = [
        FigureItem(
            "probes_stream",
            "Held-out accuracy of linear probes on the residual stream, by layer",
            f"What is read: {what}. Mean over {len(pairs)} pairs of prompts, bands are 95% bootstrap intervals; "
            f"{CONTROL}: the same probes fitted to classes shuffled within pairs, their mean.",
            plot_scores(table, pairs.role_names),
            table,
            view="cells" if pairs.role_names else "",
        )
    ]
    caption = "The cells of the residual stream whose probes are furthest beyond shuffled labels"
    more: list[FigureItem | tuple[str, pd.DataFrame]] = [first_rows(caption, _accuracies(table), 10)]
    for mixer, own in MIXER_PARTS.items():
        part = PART_KINDS[own.usual]
        if not own.heads or mixer not in model.cfg.mixers or not having(model, [part.site]):
            continue
        heads = run(model, pairs, site=part.site, by=part.axis, shuffles=SHUFFLES, progress=progress)
        by_head = summary(heads)
        frames.append(heads)
        findings.append(_finding(by_head, what, f"the output of a single {part.word} at the last position"))
        more.append(
            FigureItem(
                f"probes_{part.axis}s",
                f"What probes on the output of every {part.word} tell at the last position",
                f"Held-out accuracy less that with {CONTROL}, or less chance where that is more; mean over "
                f"{len(pairs)} pairs.",
                plot_scores(by_head, ()),
                by_head,
                view="cells",
            )
        )
        caption = f"The {part.plural} whose probes are furthest beyond shuffled labels"
        more.append(first_rows(caption, _accuracies(by_head), 10))
    text = [METHOD, *findings]
    section = Section(title="Linear probes", anchor="probes", text=text, figures=items, appendix=more)
    return StudyReport(pd.concat(frames, ignore_index=True), section, findings[:1])


def _accuracies(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["metric"] == "accuracy"].drop(columns=["site", "label", "metric"])


def _finding(table: pd.DataFrame, what: str, where: str) -> str:
    """What the accuracies of a table say."""
    table = table[table["metric"] == "accuracy"]
    best = table.iloc[0]
    read = table[(table["p_adjusted"] < stats.SURE) & (table["effect"] > 0)]
    score = (
        f"{best['value']:.0%} of held-out prompts ({interval(best, '.0%', after='; ')}"
        f"{best['control']:.0%} with {CONTROL})"
    )
    if read.empty:
        return (
            f"No linear probe on {where} tells {what} beyond {CONTROL} for sure (corrected p "
            f"{best['p_adjusted']:.2g}); the best is right on {score}, at {_place(best)}."
        )
    strong = read[read["effect"] >= read["effect"].max() / 2]
    first = strong.loc[strong["layer"].idxmin()]
    return (
        f"A linear probe on {where} tells {what} for {score} at {_place(best)}. Better than with {CONTROL} it can be "
        f"read at {len(read)} of {len(table)} places; the earliest with at least half of the best margin is "
        f"{_place(first)}."
    )


def _place(row: Any) -> str:
    part = part_of(row.drop("site", errors="ignore"))
    if part is not None:
        return part.name
    return f"layer {row['layer']}" + (f", {row['role']}" if "role" in row else ", last position")
