"""Attribution patching in a report: heads and mixers, neurons and channels, what a recurrence is made of, and queries
and keys with and without the correction.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from analyses.attribution_patching import Asked, compared, plot, plot_agreement, run_several, summary
from interp import figures
from interp.hooked.model import HookedModel
from interp.models.gpt import GPT
from interp.names import MIXER_PARTS, PART_KINDS, Part, part_of
from interp.prompts.pairs import PromptPairs
from interp.rounding import no_effect
from interp.study.sections import Results, StudyReport
from interp.study.sentences import counted, how_estimates_agree
from interp.ui.page import FigureItem, Section, first_rows
from interp.variants.components import having
from interp.variants.granularity import effect_label

if TYPE_CHECKING:
    import pandas as pd

ORDER = 45
"""By what mixes positions in a layer, the site that holds what its heads give, and their axis; Mamba-1 has none."""

RECURRENCE = ("conv", "delta", "B", "C", "state", "gate")
LISTED = 200  # neurons or channels that have rows


def report(model: HookedModel, pairs: PromptPairs, results: Results, *, progress: bool | None = None) -> StudyReport:
    """The section of a task's report: heads and mixers, neurons and channels, what the recurrence of state-space layers
    is made of, and queries and keys with and without the correction.
    """
    import pandas as pd

    # 1. One gradient and one sweep serve all tables; what activation patching has measured is not measured again.
    asked, patched = _asked(model, pairs), results.get("activation_patching")
    frames = run_several(model, pairs, list(asked.values()), patched=patched, progress=progress)
    by_kind = dict(zip(asked, frames, strict=True))

    # 2. Heads and mixers, one by one.
    items, findings = [], []
    more: list[FigureItem | tuple[str, pd.DataFrame]] = []
    for word in _parts(model):
        frame = by_kind[word]
        table, agreed = summary(frame), compared(frame)
        findings.append(_strongest(table, agreed, word))
        more += [_map(word, frame, table, len(pairs)), _agreement(word, frame, table)]
        more.append((f"How far the estimates for {word}s agree", agreed))
    text = [
        "Each estimate is the difference of an activation between the clean and the corrupt run, times the gradient of "
        "the metric there in the corrupt run. Where patching runs each cell, this takes one backward for all of them; "
        "a sample is patched exactly, to see how far the estimates hold.",
        *findings,
    ]
    # 3. What the recurrence of state-space layers is made of.
    if "recurrence" in by_kind:
        cells = by_kind["recurrence"]
        text.append(
            f"Of what the recurrence of state-space layers is made of: {how_estimates_agree(compared(cells), 'cells')}"
        )
        items.append(_recurrence(cells, len(pairs)))
    # 4. The smallest parts: neurons and channels.
    for word in _many(model):
        cells = by_kind[word]
        total = int(cells["cells"].iloc[0])
        text.append(f"Of {total:,} {word}: {how_estimates_agree(compared(cells), word)}")
        more.append(first_rows(f"The {word} with the largest estimates", summary(cells), 10, of=total))
    # 5. Queries and keys, which act through a softmax.
    errors = {}
    for method in ("atp", "qk-fix"):
        if method in by_kind:
            agreed = compared(by_kind[method])
            errors[method] = agreed.set_index("quantity").loc["relative error", "value"]
            more.append((f"How far the estimates for queries and keys agree ({method})", agreed))
    if errors and not any(math.isnan(error) for error in errors.values()):
        text.append(
            "Queries and keys act through a softmax, which gradients take to be linear. Estimates for them are off "
            f"by {errors['atp']:.0%} of the mean exact magnitude, and by {errors['qk-fix']:.0%} when the pattern "
            "is computed anew, each on a sample of its own."
        )
    section = Section(
        title="Attribution patching",
        anchor="attribution-patching",
        text=text,
        figures=items,
        appendix=more,
    )
    return StudyReport(pd.concat(by_kind.values(), ignore_index=True), section, findings)


def _asked(model: HookedModel, pairs: PromptPairs) -> dict[str, Asked]:
    """All that is estimated, in the order of the section's sentences."""
    asked = dict(_parts(model))
    if model.cfg.has_mamba and pairs.role_names:
        asked["recurrence"] = Asked(RECURRENCE, "role")
    asked |= _many(model)
    if isinstance(model, GPT) and model.cfg.has_attention:
        asked |= {method: Asked(["q", "k"], "head", method=method) for method in ("atp", "qk-fix")}
    return asked


def _parts(model: HookedModel) -> dict[str, Asked]:
    """What is estimated one by one: heads, or the mixers of layers without any."""
    found: dict[str, Asked] = {}
    heads = [own.usual for mixer, own in MIXER_PARTS.items() if own.heads and mixer in model.cfg.mixers]
    sites = [PART_KINDS[kind].site for kind in heads]
    if sites:
        found["head"] = Asked(sites, "head")
    if "mamba" in model.cfg.mixers:
        found["mixer"] = Asked("out", None)
    return found


def _many(model: HookedModel) -> dict[str, Asked]:
    """The smallest parts of layers: neurons, and channels of Mamba-1."""
    found = {"neurons": Asked(by="neuron", most=LISTED)} if having(model, ["post"]) else {}
    return found | ({"channels": Asked("gated", "channel", most=LISTED)} if "mamba" in model.cfg.mixers else {})


def _strongest(table: pd.DataFrame, agreed: pd.DataFrame, word: str) -> str:
    """The head or mixer with the largest estimate, and how far estimates hold."""
    best = table.iloc[0]
    return (
        no_effect(table)
        or f"By gradients, the {word} whose patching moves the answer most is {_named(best)} "
        f"({best['value']:+.2f} of the difference between the runs). {how_estimates_agree(agreed, word + 's')}"
    )


def _named(row: Any) -> str:
    """A head or mixer as a sentence calls it."""
    return (part_of(row) or Part("mixer", row["layer"])).name


def _map(word: str, frame: pd.DataFrame, table: pd.DataFrame, n: int) -> FigureItem:
    """The map of heads, or the curve of mixers over layers."""
    by_layer = table.sort_values("layer")
    return FigureItem(
        f"attribution_patching_{word}s",
        f"Estimated effect of patching the output of every {word}",
        f"Mean over {counted(n)}.",
        figures.lines(by_layer, x="layer", label=effect_label(frame)) if word == "mixer" else plot(frame),
        table,
        view="" if word == "mixer" else "cells",
        tells="what comes back with it alone, as gradients estimate it",
    )


def _agreement(word: str, frame: pd.DataFrame, table: pd.DataFrame) -> FigureItem:
    """How far the map can be trusted."""
    own = "" if word == "head" else f"_{word}"
    return FigureItem(
        f"attribution_patching_agreement{own}",
        f"Estimated against exact effects of {word}s",
        f"Half of these {word}s have the largest estimates, half were drawn at random among the others.",
        plot_agreement(frame),
        table[table["sample"] != ""],
    )


def _recurrence(cells: pd.DataFrame, n: int) -> FigureItem:
    return FigureItem(
        "attribution_patching_recurrence",
        "Estimated effect of patching what enters the recurrence, its steps, its state and what is read of it",
        f"By role, mean over {counted(n)}. The state is set after one position; later ones follow from it.",
        plot(cells),
        summary(cells),
        view="cells",
    )
