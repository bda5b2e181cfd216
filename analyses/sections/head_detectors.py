"""Kinds of heads in a report: who does what by patterns and by weights, how far the two agree, what weights compose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from analyses.head_detectors import (
    LEAST,
    SHORT,
    agreement,
    plot_scores,
    repeats_in_words,
    repetition,
    repetition_summary,
    stands_out,
    summary,
)
from interp import stats
from interp.errors import InterpError
from interp.figures.glyphs import visible
from interp.heads.detectors import DETECTORS, Material, measured
from interp.heads.from_patterns import random_sequences
from interp.heads.qk_ov import chance_composition, compositions, singular_tokens
from interp.hooked.model import HookedModel
from interp.models.gpt import GPT
from interp.names import Part
from interp.prompts.pairs import PromptPairs
from interp.study.sections import Results, StudyReport
from interp.ui.page import FigureItem, Section, first_rows
from interp.variants.repetition import Repeating, repeating

if TYPE_CHECKING:
    import pandas as pd

ORDER = 35
NAMED = 3  # heads of a kind
REPEATED, LENGTH, CAUSES = 3, 10, 10  # sequences and tokens of the ablations, and heads that are listed
HIDDEN = (
    "This model has no attention: its heads are those of its Mamba-2 layers, and their patterns the shares of hidden "
    "attention. A look at the token before may also be the convolution's, which no pattern shows."
)


def report(model: HookedModel, pairs: PromptPairs, results: Results, *, progress: bool | None = None) -> StudyReport:
    """The section of a task's report: which heads do what, whatever the task."""
    frame, missing = measured(Material(model, pairs), None, None, progress=progress)
    table, agreed = summary(frame), agreement(frame)
    best = table[table["effect"].notna()].groupby(["detector", "source"], sort=False).head(NAMED)
    lost = _repetition(model, progress)
    text = [
        "Heads are scored by their patterns on random tokens, where no meaning can help, and on ordered lists, by "
        "their weights alone, and on the prompts of the task. An effect is what a score has beyond its control: the "
        "same places without a repetition, an even look, or chance.",
        *sentences(table),
        *_by_weights(agreed),
        *_causes(table, lost),
        *_left_out(missing),
        *([HIDDEN] if "ssm_head" in table else []),
    ]
    caption = f"The first {NAMED} heads of each kind, with 95% bootstrap intervals over sequences"
    more: list[FigureItem | tuple[str, pd.DataFrame]] = [(caption, best)]
    if len(agreed):
        more.append(("Agreement of two sources over heads", agreed))
    if lost is not None:
        caption = f"How much worse the model repeats random tokens without each head, over {REPEATED} sequences"
        more.append(first_rows(caption, lost, CAUSES))
    if isinstance(model, GPT) and "weights" in set(frame["source"]):
        more += list(_of_weights(model, table))
    items, on_task = _figures(table, len(pairs))
    more = [*on_task, *more]
    section = Section(title="Kinds of heads", anchor="head-detectors", text=text, figures=items, appendix=more)
    frame.attrs["parts"] = _kinds(table)
    return StudyReport(frame, section, list(in_short(table, agreed)))


def _kinds(table: pd.DataFrame) -> dict[str, str]:
    """The kinds that heads are of, by their patterns: those that stand out."""
    found: dict[str, list[str]] = {}
    by_patterns = table[(table["source"] == "patterns") & table["p"].notna()]
    for row in by_patterns[stands_out(by_patterns)].itertuples():
        found.setdefault(_head(row), []).append(SHORT[row.detector])
    return {name: ", ".join(kinds) for name, kinds in found.items()}


def _repetition(model: HookedModel, progress: bool | None) -> pd.DataFrame | None:
    """How much worse the model repeats without each head; None where it does not repeat, or its loss says nothing.

    The sequences are few and short, because every head costs a run.
    """
    try:
        longest = min(LENGTH, random_sequences(model, 1).length)
        if not repeating(model, random_sequences(model, REPEATED, length=longest)).repeats:
            return None
        return repetition_summary(repetition(model, n=REPEATED, length=longest, progress=progress))
    except InterpError:
        return None


def _causes(table: pd.DataFrame, lost: pd.DataFrame | None) -> Iterator[str]:
    """Whether the model repeats, whether a head has the stripe for it, and which heads it does so with."""
    if lost is None:
        return
    yield repeats_in_words(Repeating(lost["whole"].iloc[0], lost["new_tokens"].iloc[0]), table)
    heads = lost[lost["value"] > 0].head(NAMED)
    if len(heads):
        named = ", ".join(f"{row.value:.2f} without {_head(row)}" for row in heads.itertuples())
        yield f"Ablated one by one, the heads that raise this loss most do so by {named}."


def _figures(table: pd.DataFrame, n: int) -> tuple[list[FigureItem], list[FigureItem]]:
    """The scores by patterns and weights, and apart from them those on the task's prompts."""
    on_task = table["source"] == "task"
    shown = table if on_task.all() else table[~on_task]
    items = [
        FigureItem(
            "head_detectors",
            "Scores of every head as each kind of head",
            "Above what the patterns say, below what the QK or OV circuits alone say; 1 is a head that does nothing "
            "else. The strongest head of each panel is named; what could not be measured is hatched.",
            plot_scores(shown),
            shown,
            view="cells",
        )
    ]
    if not on_task.any():
        return items, []
    same = FigureItem(
        "head_detectors_task",
        "Scores of every head as each kind of head, on the task's prompts",
        f"Attention along links, mean over those of the {n} clean prompts that have such a link.",
        plot_scores(table[on_task]),
        table[on_task],
        view="cells",
    )
    return items, [same]


def sentences(table: pd.DataFrame) -> Iterator[str]:
    """What the numbers say of each kind of head: who they are, and how sure that is."""
    for detector, does in DETECTORS.items():
        own = table[(table["detector"] == detector) & table["effect"].notna()]
        if own.empty:
            continue
        source = "patterns" if "patterns" in set(own["source"]) else own["source"].iloc[0]
        own = own[own["source"] == source]
        best = own[own["effect"] > 0].head(NAMED)
        if best.empty:
            yield f"No head seems to {does}, by its {source}: none scores above its control."
            continue
        names = ", ".join(f"{_head(row)} ({row.value:.2f})" for row in best.itertuples())
        text = f"The heads that most {does}, by their {source}, are {names}"
        if own["p"].notna().any():
            sure = int(stands_out(own).sum())
            text += (
                f"; {sure or 'none'} of {len(own)} heads {'score' if sure != 1 else 'scores'} at least {LEAST} above "
                f"their control with a corrected p below {stats.SURE}"
            )
        against = own[(own["p_adjusted"] < stats.SURE) & (own["effect"] <= -LEAST)].tail(NAMED)[::-1]
        if detector == "copying" and len(against):
            names = ", ".join(f"{_head(row)} ({row.value:.2f})" for row in against.itertuples())
            text += f". Against what they read, as copy suppression does, write {names}"
        yield text + "."


def in_short(table: pd.DataFrame, agreed: pd.DataFrame) -> Iterator[str]:
    """One sentence on the heads that stand out, and one on how far weights and patterns agree."""
    first: list[str] = []
    none: list[str] = []
    for detector in DETECTORS:
        own = table[(table["detector"] == detector) & (table["source"] == "patterns")]
        if own["p"].notna().any():
            best = own[stands_out(own)].head(NAMED)
            names = ", ".join(_head(row) for row in best.itertuples())
            (first if len(best) else none).append(f"{names} ({SHORT[detector]})" if names else SHORT[detector])
    if first:
        yield f"By their patterns, the first heads of each kind are {'; '.join(first)}."
    if none:
        yield f"No head stands out by its patterns for: {', '.join(none)}."
    yield from _by_weights(agreed)


def _by_weights(agreed: pd.DataFrame) -> Iterator[str]:
    """How far weights alone rank the heads as patterns do."""
    known = agreed[(agreed["sources"] == "patterns and weights") & agreed["spearman"].notna()]
    if len(known):
        told = ", ".join(f"{SHORT[row.detector]} {row.spearman:.2f}" for row in known.itertuples())
        yield f"Weights alone and patterns rank the {known['n'].max()} heads with these correlations: {told}."


def _head(row: Any) -> str:
    axis = "head" if hasattr(row, "head") else "ssm_head"
    return Part(axis, row.layer, getattr(row, axis)).name


def _left_out(missing: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """What could not be measured, once for each reason."""
    for why in dict.fromkeys(missing.values()):
        what = ", ".join(f"{SHORT[kind]} by {source}" for (kind, source), of in missing.items() if of == why)
        yield f"Not measured: {what} ({why})."


def _of_weights(model: GPT, table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """What the first induction heads read of previous-token heads; the directions of the first copying head."""
    first = {
        detector: [(int(row.layer), int(row.head)) for row in part.head(NAMED).itertuples()]
        for detector, part in table[table["source"] == "patterns"].groupby("detector")
    }
    composed = compositions(model, first.get("previous_token", []), first.get("induction", []), "k")
    if len(composed):
        yield (
            "How much the keys of the first induction heads read of what the first previous-token heads write "
            f"(K-composition; {chance_composition(model):.3f} if one is turned at random), and the share of all pairs "
            "of heads that compose less",
            composed,
        )
    if first.get("copying"):
        layer, head = first["copying"][0]
        tokens = singular_tokens(model, layer, head)
        joined = tokens.groupby(["direction", "singular_value", "share", "side"], sort=False)["token"]
        yield (
            f"The directions that the OV circuit of {Part('head', layer, head).name}, the first copying head, carries "
            "most, by tokens",
            joined.agg(lambda texts: " · ".join(map(visible, texts))).unstack("side").reset_index(),
        )
