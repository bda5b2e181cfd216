"""Edge attribution in a report: the strongest edges, and how far their estimates can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyses.edge_attribution import SHOWN, compared, plot, plot_agreement, scored, summary, table_of
from interp import stats
from interp.config import ModelConfig
from interp.hooked.model import HookedModel
from interp.prompts.pairs import PromptPairs
from interp.rounding import no_effect
from interp.study.sections import Results, StudyReport, leave_edge_scores
from interp.study.sentences import counted, how_estimates_agree
from interp.ui.page import FigureItem, Section

if TYPE_CHECKING:
    import pandas as pd

ORDER = 60


def report(model: HookedModel, pairs: PromptPairs, results: Results, *, progress: bool | None = None) -> StudyReport:
    """The section of a task's report: the strongest edges, and how far their estimates can be trusted."""
    scores = scored(model, pairs)
    leave_edge_scores(results, pairs, scores)
    frame = table_of(model, pairs, scores, progress=progress)
    table, agreed = summary(frame), compared(frame)
    finding = _strongest(table, agreed, int(frame["cells"].iloc[0]))
    n_sure = int((table["p_adjusted"] < stats.SURE).sum())
    text = [
        "An edge is what one component reads of another. Its effect is the part of the difference between the clean "
        "and the corrupt run that is there when this reader alone reads what the writer wrote in the corrupt run. "
        "Integrated gradients estimate all edges at once.",
        finding,
        f"Of the {frame['edge'].nunique():,} edges that are listed, those with the largest estimates and the measured "
        f"ones, the estimates of {n_sure:,} differ from 0 over prompts (t test, false discovery rate "
        f"{stats.SURE:.0%} among all edges).",
    ]
    items = [
        FigureItem(
            "edges_top",
            "The edges with the largest estimated effects",
            f"Mean over {counted(len(pairs))}; bars are 95% bootstrap intervals over prompts. {_names(model.cfg)}",
            plot(frame, table=table),
            table.head(SHOWN),
        )
    ]
    more: list[FigureItem | tuple[str, pd.DataFrame]] = [
        FigureItem(
            "edges_agreement",
            "Estimated against exact effects of edges",
            "Half of these edges have the largest estimates, half were drawn at random among the others.",
            plot_agreement(frame),
            table[table["sample"] != ""],
        ),
        ("How far the estimates agree with exact effects", agreed),
    ]
    section = Section(title="Edge attribution", anchor="edges", text=text, figures=items, appendix=more)
    return StudyReport(frame, section, [finding])


def _strongest(table: pd.DataFrame, agreed: pd.DataFrame, cells: int) -> str:
    """The edge with the largest estimate, and how far estimates hold."""
    first = table.iloc[0]
    measured = "" if first["exact"] != first["exact"] else f"; measured exactly, {first['exact']:+.2f}"
    return no_effect(table) or (
        f"The edge with the largest estimated effect, of {cells:,}, is `{first['edge']}` "
        f"({first['value']:+.2f} of the difference between the clean and the corrupt run{measured}). "
        f"{how_estimates_agree(agreed, 'edges')}"
    )


def _names(cfg: ModelConfig) -> str:
    """What the names of nodes mean."""
    heads = "`q`, `k` and `v` are what a head reads by, `KV` is a key-value head." if cfg.has_attention else ""
    layers = "A `mixer` is a state-space layer." if cfg.has_mamba else ""
    parts = "`L0S1` is its head 1 in layer 0 (Mamba-2)." if "mamba2" in cfg.mixers else ""
    return " ".join(filter(None, (heads, layers, parts)))
