"""Patchscopes in a report: the last position of the first prompts, every position of one, and what the model goes on
to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from analyses.patchscope import plot_layers, plot_table, run, summary
from interp import stats
from interp.directions.steering import states
from interp.hooked.model import HookedModel
from interp.lenses.read import token_text
from interp.lenses.target_prompts import SITE, TARGETS, said, target_prompt
from interp.prompts.pairs import PromptPairs
from interp.study.sections import Results, StudyReport
from interp.study.sentences import interval
from interp.ui.page import FigureItem, Section

if TYPE_CHECKING:
    import pandas as pd

ORDER = 90
MOST_PROMPTS = 16
SAID = {"token": "the last token of the prompt that the state is from", "answer": "the right answer"}
LAYERS = 6  # whose states the model goes on from


def report(model: HookedModel, pairs: PromptPairs, results: Results, *, progress: bool | None = None) -> StudyReport:
    """The section of a task's report: the last position of the first prompts, and every position of one."""
    import pandas as pd

    some = pairs[:MOST_PROMPTS]
    frames = {name: run(model, some, by=None, target=name, top=False, progress=progress) for name in TARGETS}
    grid = run(model, pairs[:1], by="pos", target="token", read=(), progress=progress)
    tables = {name: summary(frame) for name, frame in frames.items()}
    findings = [
        _best(tables[target], reading)
        for target, reading in (("token", "token"), ("next", "answer"))
        if reading in set(tables[target]["reading"])
    ]
    by_layer, *more = _figures(model, pairs, len(some), tables, grid)
    section = Section(
        title="Patchscopes",
        anchor="patchscope",
        text=[
            "A hidden state is put into another prompt, in the layer that it is from, and the model says what follows.",
            *findings,
        ],
        figures=[by_layer],
        appendix=more,
        tables=[("What the first prompt's last state makes the model say", _continuations(model, pairs[:1]))],
    )
    every = [frame.assign(target=name) for name, frame in frames.items()]
    return StudyReport(pd.concat([*every, grid.assign(target="token")], ignore_index=True), section, findings)


def _best(table: pd.DataFrame, reading: str) -> str:
    """From which layer the model says what is looked for most, and whether the state is why."""
    rows = table[table["reading"] == reading]
    best = rows.iloc[0]
    lens = rows.loc[rows["control"].idxmax()]
    sure = best["p_adjusted"] < stats.SURE and best["effect"] > 0
    return (
        f"Given the state of the last position, the model says {SAID[reading]} with the largest probability when the "
        f"state is that of layer {best['layer']}: {best['value']:.2f} ({interval(best, after='; ')}"
        f"{best['value'] - best['effect']:.2f} without the state)"
        f"{'' if sure else ', which is not significantly more than without the state'}. The logit lens gives it at "
        f"most {lens['control']:.2f}, at layer {lens['layer']}."
    )


def _figures(
    model: HookedModel, pairs: PromptPairs, n: int, tables: dict[str, pd.DataFrame], grid: pd.DataFrame
) -> list[FigureItem]:
    """The probabilities by layer for every target prompt, and the table of likeliest tokens."""
    count = f"{n} prompts" if n > 1 else "one prompt"
    count = f"the first {n} of {len(pairs)} prompts" if n < len(pairs) else count
    goals = {name: target_prompt(model, pairs, name).tokens for name in TARGETS}
    items = [
        FigureItem(
            f"patchscope_{name}",
            f"What the state of the last position stands for, read through the target prompt {name!r}",
            f"Target: {''.join(token_text(model, token) for token in tokens)}. Mean over {count}, bands are 95% "
            "bootstrap intervals. The logit lens reads the same states through the unembedding.",
            plot_layers(tables[name]),
            tables[name],
        )
        for name, tokens in goals.items()
    ]
    table = FigureItem(
        "patchscope_table",
        "What the model says about every state of the first prompt",
        "The likeliest token after the target prompt 'token', for the state of each layer and position.",
        plot_table(grid),
        grid,
        view="lens",
    )
    return [*items, table]


def _continuations(model: HookedModel, pairs: PromptPairs) -> pd.DataFrame:
    """What follows either target prompt, for the last state of the first prompt at some layers."""
    import pandas as pd

    layers = sorted({round(at) for at in np.linspace(0, model.cfg.n_layers - 1, LAYERS)})
    state = states(model, pairs, SITE, [{"layer": layer} for layer in layers])[:, 0]
    columns: dict[str, Any] = {"layer": layers}
    for name in TARGETS:
        ids = said(model, state, target_prompt(model, pairs, name), layers)
        columns[f"after {name!r}"] = ["".join(token_text(model, token) for token in row) for row in ids.tolist()]
    return pd.DataFrame(columns)
