"""Attention patterns in a report: where the heads look that patching or, failing that, attribution found strongest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from analyses.attention_patterns import DARKEST, LEAST_LINK, MOST_HEADS, SHARE, names_of, plot, run, summary
from interp.hooked.model import HookedModel
from interp.names import Part
from interp.prompts.pair_checks import MASK
from interp.prompts.pairs import PromptPairs
from interp.study.mechanism.evidence import main_parts
from interp.study.sections import Results, StudyReport
from interp.ui.page import FigureItem, Section, first_rows

if TYPE_CHECKING:
    import pandas as pd

ORDER = 50
MOST_CHANNELS = 2


def report(model: HookedModel, pairs: PromptPairs, results: Results, *, progress: bool | None = None) -> StudyReport:
    """The section of a task's report: the heads that patching or, failing that, attribution found strongest.

    Of layers without heads, the mixers that patching found strongest, and the channels that write most.
    """
    strongest = _strongest(model, results)
    every = run(model, pairs, heads=strongest and list(dict.fromkeys([*strongest, *_carrying(results)])))
    frame = every if strongest is None else every[names_of(every).isin(strongest)]
    last = MASK if MASK in pairs.role_names else pairs.role_names[-1] if pairs.role_names else ""
    hidden = frame["head"].isna()
    text, items, tables = [], [], []
    for part, what in ((frame[~hidden], "attention"), (frame[hidden], SHARE)):
        if part.empty:
            continue
        table = summary(part)
        links = describe(table, dict.fromkeys(names_of(part)), last)
        text.append(f"Mean {what} over prompts between the roles of the prompt: {links}.")
        items.append(_figure(part))
        tables.append(first_rows("Links between roles" + f" by {what}" * bool(hidden.any()), table, 12))
    if hidden.any():
        text.append(
            "Hidden attention is the matrix that the recurrence of a state-space layer equals. Its share is the "
            "magnitude of an entry as a part of its row, without D, which passes by the state; of a whole mixer, that "
            "of the mean magnitude over its channels."
        )
    section = Section(title="Attention patterns", anchor="attention", text=text, figures=items, tables=tables)
    return StudyReport(every, section, text[:1])


def describe(table: pd.DataFrame, names: Iterable[str], last: str) -> str:
    """From the links between roles: where the last role, or the mask, looks in each head, or else its best link."""
    looks, idle = [], []
    for name in names:
        own = table[(names_of(table) == name) & (table["query_role"] != table["key_role"])]
        strong = own[own["value"] >= LEAST_LINK]
        if strong.empty:
            idle.append(name)
            continue
        from_last = strong[strong["query_role"] == last]
        link = (from_last if len(from_last) else strong).iloc[0]
        looks.append(f"{name} looks from {link['query_role']} to {link['key_role']} ({link['value']:.2f})")
    if idle:
        looks.append(f"no role looks at another with more than {LEAST_LINK} on average in {', '.join(idle)}")
    return "; ".join(looks)


def _carrying(results: Results) -> list[str]:
    """The parts with a pattern that carry the answer, whose reading the drawing of the mechanism shows."""
    return [part.name for part in main_parts(results) if part.kind != "mlp"]


def _strongest(model: HookedModel, results: Results) -> list[str] | None:
    """Names of heads, state-space heads and mixers by their effect, of channels by their direct contribution."""
    if "activation_patching" not in results:
        return None
    cells = results["activation_patching"]
    cells = cells[cells["role"].isna()] if "role" in cells else cells
    names = []
    for column in ("head", "ssm_head"):
        if column in cells:
            means = cells.dropna(subset=[column]).groupby(["layer", column])["effect"].mean().abs()
            best = means.sort_values(ascending=False).index[:MOST_HEADS]
            names += [Part(column, int(layer), int(at)).name for layer, at in best]
    plain = model.cfg.layers_with("mamba")
    whole = cells[(cells["site"] == "out") & cells["layer"].isin(plain)]
    means = whole.groupby("layer")["effect"].mean().abs().sort_values(ascending=False)
    names += [Part("mixer", int(layer)).name for layer in means.index[: MOST_HEADS - MOST_CHANNELS]]
    if plain and "head_attribution" in results:
        frame = results["head_attribution"]
        written = frame[frame["kind"] == "channel"].groupby("component")["value"].mean().abs()
        names += list(written.sort_values(ascending=False).index[:MOST_CHANNELS])
    return names


def _figure(frame: pd.DataFrame) -> FigureItem:
    """The patterns of heads of attention, or those of state-space layers."""
    caption = "First prompt. Rows are the positions that look (destination), columns those that are looked at (source)."
    if frame["head"].notna().any():
        name, what = "attention_patterns", "Attention patterns of the heads"
    else:
        parts = {
            "mixers": frame["ssm_head"].isna() & frame["channel"].isna(),
            "state-space heads": frame["ssm_head"].notna(),
            "channels": frame["channel"].notna(),
        }
        there = [word for word, rows in parts.items() if rows.any()]
        name, what = "hidden_attention", f"Hidden attention of the {' and '.join(there)}"
        caption += f" The darkest colour is the {SHARE} that {1 - DARKEST:.0%} of entries exceed."
    return FigureItem(
        name, f"{what} with the largest effect", caption, plot(frame), frame[frame["prompt"] == 0], view="attention"
    )
