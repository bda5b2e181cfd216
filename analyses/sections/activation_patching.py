"""Activation patching in a report: residual stream, mixers and MLP by role, and every head, or whole mixers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analyses.activation_patching import plot, run, summary
from interp import figures, stats
from interp.edits import Edit, Variant
from interp.hooked.model import HookedModel
from interp.names import MIXER_PARTS, PART_KINDS, WHOLES, part_of
from interp.prompts.pairs import PromptPairs
from interp.rounding import no_effect
from interp.study.mechanism.evidence import main_parts
from interp.study.sections import Results, StudyReport
from interp.study.sentences import counted, interval, listed
from interp.sweeps.sweep import sweep
from interp.ui.page import FigureItem, Section, first_rows
from interp.variants.components import having
from interp.variants.granularity import HEAD_AXES, described, effect_label

if TYPE_CHECKING:
    import pandas as pd

ORDER = 40
PARTS = {mixer: PART_KINDS[own.usual] for mixer, own in MIXER_PARTS.items()}
"""By what mixes positions in a layer, what is patched there: heads, or the mixer of Mamba-1, which has none."""

FIGURES = {"attn": "patching_heads", "mamba2": "patching_ssm_heads", "mamba": "patching_mixers"}
BY_ROLE = ("resid_pre", "attn_out", "out", "state", "mlp_out")
STATES = "The state is set after one position; later ones follow from it."


def report(model: HookedModel, pairs: PromptPairs, results: Results, *, progress: bool | None = None) -> StudyReport:
    """The section of a task's report: residual stream, mixers and MLP by role, and every head, or whole mixers."""
    import pandas as pd

    sites = having(model, BY_ROLE)
    by_role = run(model, pairs, site=sites, by="role", progress=progress)
    kinds = [kind for kind in PARTS if kind in model.cfg.mixers]
    by_part = {kind: run(model, pairs, site=PARTS[kind].site, by=PARTS[kind].axis, progress=progress) for kind in kinds}
    of_roles, of_parts = summary(by_role), {kind: summary(frame) for kind, frame in by_part.items()}
    ranked = _together(list(of_parts.values()))

    frame = pd.concat([*by_part.values(), by_role], ignore_index=True)
    tables = []
    if (acting := _at_roles(model, pairs, {**results, "activation_patching": frame}, progress)) is not None:
        frame = pd.concat([frame, acting], ignore_index=True)
        tables.append(first_rows("Where the strongest heads act: each is patched at one role", summary(acting), 10))

    what = PARTS[kinds[0]].word if len(kinds) == 1 else "head or mixer" if "mamba" in kinds else "head"
    where, strongest = _where(of_roles[of_roles["site"] == "resid_pre"], pairs.role_names), _strongest(ranked, what)
    intro = (
        "Each cell runs the corrupt prompt with one activation set to its value in the clean run. The effect is 0 "
        "where nothing changes and 1 where the clean logit difference is back."
    )
    figure_of_roles = FigureItem(
        "patching_roles",
        f"Effect of patching {_in_words(sites)} by role",
        f"Mean over {counted(len(pairs))}." + (f" {STATES}" if "state" in sites else ""),
        plot(by_role),
        of_roles,
        view="cells",
    )
    section = Section(
        title="Activation patching",
        anchor="patching",
        text=[intro, where, strongest],
        figures=[figure_of_roles, *(_figure(kind, by_part[kind], of_parts[kind], len(pairs)) for kind in kinds)],
        tables=[first_rows(f"The {_several(what)} with the largest effect", ranked, 10), *tables],
    )
    return StudyReport(frame, section, list(dict.fromkeys([where, strongest])))


def _at_roles(model: HookedModel, pairs: PromptPairs, results: Results, progress: bool | None) -> pd.DataFrame | None:
    """The heads that matter, each patched at one role at a time; None without such heads, or without roles."""
    heads = [part for part in main_parts(results) if part.row.axis is not None]
    cells = []
    for part, role in itertools.product(heads, pairs.role_names):
        own = {"layer": part.layer, part.kind: part.index}
        where: dict[str, Any] = {"layer": part.layer, part.row.axis or "": part.index, "pos": role}
        cells.append(Variant([Edit(part.row.site, where)], {"site": part.row.site, **own, "role": role}))
    if not cells:
        return None
    frame = sweep(model, pairs, cells, base="corrupt", source="clean", progress=progress)
    return described(frame.assign(direction="denoise"), pairs)


def _together(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Several summaries as one, its p corrected for all that was tested."""
    import pandas as pd

    table = stats.strongest_first(pd.concat(tables, ignore_index=True))
    cell = [name for name in ("direction", "site", "layer", *HEAD_AXES) if name in table]
    table = table[[*cell, *(name for name in table if name not in cell)]]
    return table.assign(p_adjusted=stats.adjusted(table["p"], table["metric"]))


def _where(resid: pd.DataFrame, roles: Sequence[str]) -> str:
    """At which roles, and in which layers, the residual stream carries what decides the answer."""
    carried, ends = [], int(resid["layer"].max())
    for role in roles:
        strong = resid[(resid["role"] == role) & (resid["value"] >= 0.5)]["layer"]
        if len(strong):
            carried.append(f"at `{role}` {_layers(int(strong.min()), int(strong.max()), ends)}")
    if not carried:
        return no_effect(resid) or (
            "No single role's residual stream gives back half of the clean logit difference ({figure:patching_roles})."
        )
    return (
        f"What decides the answer is {listed(carried)}: the clean prompt's residual stream there, at the input "
        "of the layer, put into the corrupt prompt, gives back at least half of the clean logit difference "
        "({figure:patching_roles})."
    )


def _layers(first: int, last: int, ends: int) -> str:
    """Layers from a first to a last one, of which `ends` is the model's last."""
    if first == 0:
        return "in every layer" if last == ends else f"up to layer {last}" if last else "in layer 0"
    if last == ends:
        return f"from layer {first} on" if first < last else f"in layer {last}"
    return f"in layer {first}" if first == last else f"from layer {first} to {last}"


def _strongest(ranked: pd.DataFrame, what: str) -> str:
    """The head or mixer that restores most, and the one that works most against it."""
    best, worst = ranked.sort_values("value", ascending=False).iloc[0], ranked.sort_values("value").iloc[0]
    return no_effect(ranked) or (
        f"The {what} whose output restores most is {_unit(best)} ({best['value']:+.2f}{interval(best, before=', ')}); "
        f"the one that works most against it is {_unit(worst)} ({worst['value']:+.2f})."
    )


def _figure(kind: str, frame: pd.DataFrame, table: pd.DataFrame, n: int) -> FigureItem:
    """The map of one kind of heads, or the curve of whole mixers over layers."""
    part = PARTS[kind]
    whole = part.axis is None
    curve = figures.lines(table.sort_values("layer"), x="layer", label=effect_label(frame)) if whole else None
    return FigureItem(
        FIGURES[kind],
        f"Effect of patching the output of every {part.word}",
        f"The clean output is put into the corrupt prompt at all positions; mean over {counted(n)}.",
        plot(frame) if curve is None else curve,
        table,
        view="" if whole else "cells",
        tells="what of the clean answer comes back with it alone (1 is all)",
    )


def _unit(row: pd.Series) -> str:
    """The name of the head, or of the whole layer, that a row is about."""
    part = part_of(row.drop("site"))
    return f"that of layer {row['layer']}" if part is None else part.name


def _in_words(sites: Sequence[str]) -> str:
    """What is patched by role: the residual stream, attention and MLP outputs, perhaps states."""
    words = [PART_KINDS[WHOLES[site]].word for site in BY_ROLE if site in sites and site in WHOLES]
    outputs = f"{listed(words)} outputs"
    if len(words) == 1 and "state" not in sites:
        return f"the residual stream and {outputs}"
    return f"the residual stream, {outputs}" + " and the state" * ("state" in sites)


def _several(what: str) -> str:
    return " or ".join(f"{word}s" for word in what.split(" or "))
