"""Steering in a report: every layer where the answer is read, what it breaks, and how the first prompt goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from analyses.steering import plot_strengths, run, summary
from interp import stats
from interp.directions.classes import CONTRASTS, Contrast, contrast
from interp.directions.held_out import HELD_OUT, NEUTRAL, held_out_vectors, pulled
from interp.directions.steering import Direction, steer
from interp.hooked.model import HookedModel
from interp.prompts.pairs import PromptPairs
from interp.rounding import no_effect
from interp.study.sections import Results, StudyReport
from interp.study.sentences import answered_at, interval
from interp.ui.page import FigureItem, Section, first_rows

if TYPE_CHECKING:
    import pandas as pd

ORDER = 85
STRENGTHS = (1.0, 2.0)
NEW_TOKENS = 8


def report(model: HookedModel, pairs: PromptPairs, results: Results, *, progress: bool | None = None) -> StudyReport:
    """The section of a task's report: every layer where the answer is read, and how the first prompt goes on."""
    classes = contrast(model, pairs, most=2)
    frame = run(model, pairs, strengths=STRENGTHS, progress=progress)
    table = summary(frame)
    held = table[(table["prompts"] == HELD_OUT) & (table["vector"] == "difference")]
    best = held.iloc[0]
    cost = _same_cell(table, best, NEUTRAL)
    finding = no_effect(held) or _finding(best, classes, answered_at(pairs))
    says = "the next token" if model.cfg.causal else "their last token"
    harm = (
        f"The same vectors on neutral prompts, the task's own cut off at a random position, change the distribution of "
        f"{says} by {cost['value']:.2f} nats (random vectors: {cost['control']:.2f})."
    )
    section = Section(
        title="Steering",
        anchor="steering",
        text=[
            "A direction is a difference of means over one half of the pairs and is tried on the other, both ways.",
            finding,
            harm,
        ],
        figures=[
            FigureItem(
                "steering",
                "What adding a difference of means does, by layer and strength",
                f"Left, corrupt prompts of {len(pairs)} held-out pairs; right, neutral prompts. Means over prompts, "
                "bands are 95% bootstrap intervals; random: vectors of the same length at the largest strength.",
                plot_strengths(table),
                table,
            )
        ],
        appendix=[
            first_rows(
                "The layers and strengths with the largest effects", held.drop(columns=["vector", "prompts"]), 10
            )
        ],
        preformatted=_continued(model, pairs, classes, best),
    )
    return StudyReport(frame, section, [finding])


def _finding(best: Any, classes: Contrast, where: str) -> str:
    """The layer and strength with the largest effect, and whether random vectors do as much."""
    beyond = best["p_adjusted"] < stats.SURE and best["value"] > best["control"]
    p = "unknown: too few prompts" if np.isnan(best["p_adjusted"]) else f"{best['p_adjusted']:.2g}"
    return (
        f"Steering corrupt prompts {where} by the direction that tells {CONTRASTS[classes.name]}, made "
        f"from other prompts, has the largest effect with {best['strength']:g} times the direction at layer "
        f"{best['layer']}: effect {best['value']:+.2f} ({interval(best, after='; ')}1 is the clean prompt's answer), "
        f"with random vectors of its length {best['control']:+.2f}"
        + ("." if beyond else f"; that is not beyond them for sure (corrected p {p}).")
    )


def _same_cell(table: pd.DataFrame, row: Any, prompts: str) -> Any:
    """The row of the same layer, strength and vector on other prompts."""
    same = (table[["layer", "strength", "vector"]] == row[["layer", "strength", "vector"]].tolist()).all(axis=1)
    return table[same & (table["prompts"] == prompts)].iloc[0]


def _continued(model: HookedModel, pairs: PromptPairs, classes: Contrast, best: Any) -> str:
    """How the first pair's corrupt prompt goes on by itself and steered, greedily."""
    if model.tokenizer is None or not model.cfg.causal:
        return ""
    chosen, some, _ = pulled(classes, pairs)
    vector = held_out_vectors(model, some, chosen, "resid_pre", [{"layer": int(best["layer"])}])[0, 0]
    direction = Direction(vector, "resid_pre", int(best["layer"]))
    prompt = some.corrupt[:1, : int(some.lengths[0])]
    plain = model.generate(prompt, NEW_TOKENS, do_sample=False)
    with steer(model, direction, float(best["strength"]), pos="last"):
        steered = model.generate(prompt, NEW_TOKENS, do_sample=False)
    said = [model.to_string(row[prompt.shape[1] :]) for row in (plain[0], steered[0])]
    return f"{some.corrupt_texts[0]}\n  as it is: {said[0]!r}\n  steered:  {said[1]!r}"
