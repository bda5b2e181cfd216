"""The tuned lens in a report: one trained on what the model writes, its quality, and its reading of the task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analyses.tuned_lens import (
    LEAST,
    PANELS,
    compared,
    plot_depth,
    plot_held_out,
    plot_table,
    run,
    summary,
    trained,
)
from interp import stats
from interp.hooked.model import HookedModel
from interp.lenses import read as lenses
from interp.lenses.kept import kept
from interp.lenses.tuned_lens import TunedLens
from interp.prompts.pairs import PromptPairs
from interp.study.sections import Results, StudyReport
from interp.study.sentences import answered_at, counted
from interp.ui.page import FigureItem, Section
from interp.version import __version__

if TYPE_CHECKING:
    import pandas as pd

ORDER = 25
TRAINING: dict[str, Any] = {"sequences": 96, "length": 48, "seed": 0, "steps": 12}  # of the lens that is kept


def report(model: HookedModel, pairs: PromptPairs, results: Results, *, progress: bool | None = None) -> StudyReport:
    """The section of a task's report: a lens trained on what the model writes, its quality, its reading of the task."""
    recipe = {"version": __version__, **TRAINING}
    lens = kept(model, recipe, lambda: trained(model, None, None, progress=progress, **TRAINING))
    frame = run(model, pairs, lens=lens)
    grid = run(model, pairs[:1], lens=lens, pos="all" if model.cfg.d_vocab_out >= model.cfg.d_vocab else "last", top=1)
    table, nearer = summary(frame), compared(lens)
    finding = _story(table)
    text = [
        _quality(lens, nearer),
        finding,
        "The lens has learned how streams continue in general, not this task, so that what it reads early is what such "
        "streams usually become. After the last layer both lenses are the model's own output (largest divergence of "
        f"any prompt: {lenses.gap(frame):.1e} nats).",
    ]
    by_depth, *more = _figures(lens, table, grid, pairs)
    section = Section(
        title="Tuned lens",
        anchor="tuned-lens",
        text=text,
        figures=[by_depth],
        appendix=[*more, ("Nats by which the tuned lens is nearer to the output on held-out text", nearer)],
    )
    return StudyReport(frame, section, [finding])


def _quality(lens: TunedLens, nearer: pd.DataFrame) -> str:
    """How much nearer the lens is to the output on held-out text."""
    notes, means = lens.training, lens.held_out.groupby("lens")["value"].mean()
    better = int(((nearer["value"] > 0) & (nearer["p_adjusted"] < stats.SURE)).sum())
    return (
        f"A tuned lens, trained for {notes['seconds']:.0f} s on {notes['tokens']} tokens ({notes['text']}), diverges "
        f"from the model's output by {means['tuned']:.2f} nats on held-out text, the logit lens by "
        f"{means['logit']:.2f} (means over layers and {notes['held_out_sequences']} sequences); it is nearer in "
        f"{better} of {len(nearer)} layers (adjusted p below {stats.SURE})."
    )


def _story(table: pd.DataFrame) -> str:
    """Where each lens first has the answer, and which layer brings the reading nearest to the output."""
    parts = []
    for lens in ("tuned", "logit"):
        prob = table[(table["metric"] == "prob") & (table["lens"] == lens)]
        first = prob[prob["value"] >= prob["value"].iloc[-1] / 2].iloc[0]
        parts.append(f"at {lenses.in_words(first)} by the {lens} lens")
    final = table[(table["metric"] == "prob") & (table["lens"] == "tuned")]["value"].iloc[-1]
    says = f"The right answer has half of its final probability ({final:.2f}) for the first time {', '.join(parts)}"
    kl = table[(table["metric"] == "kl") & (table["lens"] == "tuned")].reset_index(drop=True)
    falls = kl["value"].to_numpy()[:-1] - kl["value"].to_numpy()[1:]
    most = int(falls.argmax())
    if falls[most] <= 0:
        return f"{says}."
    return (
        f"{says}; the tuned lens comes nearer to the output by most in layer {kl['layer'][most]}, from "
        f"{kl['value'][most]:.2f} to {kl['value'][most + 1]:.2f} nats."
    )


def _figures(lens: TunedLens, table: pd.DataFrame, grid: pd.DataFrame, pairs: PromptPairs) -> list[FigureItem]:
    """Both lenses by depth, on held-out text, and the tokens of the first prompt."""
    held_out = stats.summarise(lens.held_out, by=["lens", "layer"])
    return [
        FigureItem(
            "tuned_lens_depth",
            "Probability and place of the right answer, and divergence from the output, by depth",
            f"Residual stream {answered_at(pairs)}, through the tuned lens and as it is (logit lens); mean over "
            f"{counted(len(pairs))} on logarithmic scales, bands are 95% bootstrap intervals. What is below {LEAST:g} "
            "is drawn there.",
            plot_depth(table),
            table[table["metric"].isin(PANELS)],
        ),
        FigureItem(
            "tuned_lens_held_out",
            "How far each lens is from the model's output on held-out text",
            f"Mean over {lens.training['held_out_sequences']} sequences; bands are 95% bootstrap intervals over "
            "sequences.",
            plot_held_out(held_out),
            held_out,
        ),
        FigureItem(
            "tuned_lens_table",
            "Likeliest token by the tuned lens at every layer and position of the first prompt",
            "Rows are the input of each layer and the model's output; the colour is the token's probability.",
            plot_table(grid),
            grid[grid["metric"] == "top_prob"],
            view="lens",
        ),
    ]
