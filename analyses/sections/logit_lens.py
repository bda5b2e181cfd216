"""The logit lens in a report: the answer's place and probability by depth, and every position of the first prompt."""

from __future__ import annotations

from analyses.logit_lens import ANSWER, plot_answer, plot_rank, plot_table, run, summary
from interp.hooked.model import HookedModel
from interp.lenses import read as lens
from interp.prompts.pairs import PromptPairs
from interp.study.sections import Results, StudyReport
from interp.study.sentences import answered_at, counted
from interp.ui.page import FigureItem, Section

ORDER = 20


def report(model: HookedModel, pairs: PromptPairs, results: Results, *, progress: bool | None = None) -> StudyReport:
    """The section of a task's report: where the answer first shows, and what is read everywhere in one prompt."""
    frame = run(model, pairs, pos="last")
    grid = run(model, pairs[:1], pos="all", top=1)
    table = summary(frame)
    prob = table[table["metric"] == "prob"].reset_index(drop=True)
    rank = table[table["metric"] == "rank"].reset_index(drop=True)
    final = prob.iloc[-1]
    half = prob[prob["value"] >= final["value"] / 2].iloc[0]
    first = lens.settled(rank, rank["value"] < 1)
    then = (
        "" if first is None else f", and is one of the two likeliest tokens on average from {lens.in_words(first)} on"
    )
    finding = (
        f"Read off layer by layer, the right answer first has half of its final probability ({final['value']:.2f}) at "
        f"{lens.in_words(half)}{then}."
    )
    items = [
        FigureItem(
            "logit_lens_rank",
            "Place of the right answer among all tokens, by depth",
            f"Residual stream {answered_at(pairs)} through the final norm and the unembedding; mean over "
            f"{counted(len(pairs))} on a logarithmic scale, the band is a 95% bootstrap interval.",
            plot_rank(table),
            rank,
        ),
        FigureItem(
            "logit_lens_table",
            "Likeliest token at every layer and position of the first prompt",
            "Rows are the input of each layer and the model's output; the colour is the token's probability.",
            plot_table(grid),
            grid[grid["metric"] == "top_prob"],
            view="lens",
        ),
    ]
    answer = FigureItem(
        "logit_lens_answer",
        "Probability of the right answer and logit difference by depth",
        "Read in the same way; the last point is the model's own output (largest divergence of any prompt: "
        f"{lens.gap(frame):.1e} nats).",
        plot_answer(table),
        table[table["metric"].isin(ANSWER)],
    )
    section = Section(title="Logit lens", anchor="logit-lens", text=[finding], figures=items, appendix=[answer])
    return StudyReport(frame, section, [finding])
