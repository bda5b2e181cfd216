"""Head detectors: which heads look at the token before, at duplicates, at what followed them; which copy or count on?

1. Patterns: attention along links on random tokens that occur twice, less the same on tokens that do not; what heads
   write for the tokens that they attend to, on random tokens and on ordered lists (`interp.heads.from_patterns`).
2. Weights: the same jobs read from the QK and OV circuits, without a prompt (`interp.heads.from_weights`).
3. Task: attention along the same links on the task's own prompts, less what an even look would give.
   A model without attention has heads in its Mamba-2 layers, which are judged by their hidden attention.
4. Every head's mean over sequences (or draws of tokens) is tested against its control and corrected for being many.
5. Agreement: rank correlation over heads between what patterns say and what weights say, and the overlap of the heads
   that each puts first.
6. Cause: how much worse the model repeats random tokens without each head (`interp.variants.repetition`). A model may
   repeat though no head has the stripe of induction, which is one pattern of several.

Source: Olsson et al. 2022 (https://arxiv.org/abs/2209.11895, "In-context Learning and Induction Heads", appendix on
head activation evaluators), Elhage et al. 2021 (https://transformer-circuits.pub/2021/framework, "A Mathematical
Framework for Transformer Circuits", on copying and induction heads) and Gould et al. 2023
(https://arxiv.org/abs/2312.09230, "Successor Heads").
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from interp import figures, stats
from interp.arguments import checked
from interp.errors import InterpError
from interp.frames import restored, restoring, summarised
from interp.heads.detectors import DETECTORS, SOURCES, Material, measured
from interp.heads.from_patterns import random_sequences
from interp.hooked.model import HookedModel
from interp.prompts.pairs import PromptPairs
from interp.study.command import study_command
from interp.study.options import whole
from interp.study.prompts import check_one_stack
from interp.variants.repetition import Repeating, repeating, without_each_head

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

SHORT = {
    "previous_token": "previous",
    "duplicate_token": "duplicate",
    "induction": "induction",
    "copying": "copying",
    "successor": "successor",
}
CIRCUIT = {kind: ": OV" if kind in ("copying", "successor") else ": QK" for kind in DETECTORS}
"""Which circuit tells of a kind of head, as a panel's title says it."""

KNOWN = {"detector": DETECTORS, "source": SOURCES}
LEAST = 0.1  # an effect that counts
SAMPLE = 4  # sequences that tell whether a model repeats
COMPARED = (("patterns", "weights"), ("patterns", "task"))
"""The sources that `agreement` compares."""


@checked
def run(
    model: HookedModel,
    pairs: PromptPairs | None = None,
    *,
    detectors: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
    n: int = 16,
    length: int | None = None,
    seed: int = 0,
    bos: int | None = None,
    effective: bool = True,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Score every head as each kind of head, from its patterns and from its weights.

    Args:
        model: the model; weights are read of `interp.GPT` alone.
        pairs: prompts whose clean side is looked at too; None leaves the task out.
        detectors: names of `DETECTORS`; None takes all that the model has what is needed for.
        sources: "patterns", "weights", "task"; None takes all that can be had.
        n: how many random sequences, and how many draws of tokens for the weights (eight at most).
        length: tokens before they repeat; None takes 25 or as many as the model can take.
        seed: of sequences and draws.
        bos: id in front of sequences; None takes what the tokenizer adds.
        effective: let later layers read embeddings after the first MLP, where weights are read.
        progress: a bar on stderr; None shows it on a terminal.

    Returns:
        A row for every detector, source, head and sequence: `detector, source, layer, head, prompt, metric, value,
        control, effect`, with `ssm_head` in the place of `head` where the model has no attention. `prompt` numbers the
        sequence, the draw of tokens, the list or the task's prompt. `metric` says what the value is: "attention" (from
        0 to 1), "standing" (of the right token among others, from -1 to 1), "eigenvalues" (the sum over that of their
        magnitudes, from -1 to 1) or "share" (of words whose next one is raised most). `effect` is `value` less
        `control`.

    Raises:
        UnknownName: a detector or source that does not exist.
        PromptError: a length that the model cannot take.
        InterpError: a detector or source that was asked for and cannot be had; nothing that can.
    """
    check_one_stack(
        model,
        "head detectors score the heads of",
        "read cache['encoder.pattern', layer] or cache['decoder.pattern', layer] of run_with_cache",
    )
    return measured(Material(model, pairs, n, length, seed, bos, effective), detectors, sources, progress=progress)[0]


@checked
@restoring
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean scores of every head with intervals, those that are furthest beyond their control first.

    `p` and `p_adjusted` are of the effect: its mean over sequences against 0, corrected over the heads of a metric.
    """
    by = ["detector", "source", "layer", _axis(frame)]
    table = stats.summarise(frame, by=by, value="value")
    tested = stats.tested(frame, by=by, value="effect", n_resamples=1)
    table["control"] = frame.groupby([*by, "metric"], sort=False)["control"].mean().to_numpy()
    table = table.assign(effect=tested["value"], p=tested["p"], p_adjusted=tested["p_adjusted"])
    table["detector"] = table["detector"].astype("category").cat.set_categories(list(DETECTORS))
    table["source"] = table["source"].astype("category").cat.set_categories(list(SOURCES))
    table = table.sort_values(
        ["detector", "source", "effect"], ascending=[True, True, False], kind="stable", ignore_index=True
    )
    return table.astype({"detector": str, "source": str})


def _means(frame: pd.DataFrame) -> pd.DataFrame:
    """The mean scores alone, which need no intervals."""
    by = ["detector", "source", "layer", _axis(frame)]
    return restored(frame).groupby(by, sort=False)["value"].mean().reset_index()


def _axis(frame: pd.DataFrame) -> str:
    """The column of heads."""
    return "head" if "head" in frame else "ssm_head"


@checked
def repetition(
    model: HookedModel,
    *,
    n: int = 16,
    length: int | None = None,
    seed: int = 0,
    bos: int | None = None,
    max_memory: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """How much worse the model repeats random tokens without each head: exact, every head ablated by itself.

    Args:
        model: the model.
        n, length, seed, bos: of the sequences, as in `run`.
        max_memory, progress: as `interp.sweep` takes them.

    Returns:
        A row for every head and sequence, as `interp.variants.repetition.without_each_head` gives it: `value` is the
        loss on the second copy without the head, in nats a token, `base_value` that of the whole model, `control` the
        loss on new tokens, and `effect` = value - base_value.

    Raises:
        PromptError: a length that the model cannot take.
        InterpError: a model without heads, or one that does not say which token comes next.
    """
    check_one_stack(model, "head detectors score the heads of", "ablation takes the heads of both")
    sequences = random_sequences(model, n, length=length, seed=seed, bos=bos)
    return without_each_head(model, sequences, max_memory=max_memory, progress=progress)


@checked
@restoring
def repetition_summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean rise of the loss on the second copy without each head, with intervals, the largest first.

    `value` is the rise, `loss` what the loss is without the head, `whole` with it, and `new_tokens` where nothing is
    repeated. `p` and `p_adjusted` are of no rise, corrected over heads.
    """
    by = ["layer", _axis(frame)]
    means = frame.groupby(by, sort=False)[["value", "base_value", "control"]].mean()
    table = stats.tested(frame.assign(metric="rise of the loss (nats)"), by=by, value="effect")
    table["loss"], table["whole"], table["new_tokens"] = means.to_numpy().T
    return table.sort_values("value", ascending=False, kind="stable", ignore_index=True)


@checked
@restoring
def agreement(frame: pd.DataFrame, *, top: int = 10, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Do two sources put the same heads first?

    Args:
        frame: from `run`.
        top: how many heads each source puts first; half of them at most.
        n_resamples: how often heads are drawn again for the interval.
        seed: of these draws.

    Returns:
        A row for each detector that two sources have: `detector, sources, spearman, ci_low, ci_high, n` (heads), `p`
        and `p_adjusted` (of the correlation being none; corrected over rows), `top, shared, by_chance` (heads that both
        put among their first, and how many chance would). NaN where a source gives all heads the same.
    """
    import pandas as pd

    options = {"top": top, "n_resamples": n_resamples, "seed": seed}
    means = frame.groupby(["detector", "source", "layer", _axis(frame)], sort=False)["effect"].mean().unstack("source")
    rows = []
    for detector, sources in itertools.product(dict.fromkeys(frame["detector"]), COMPARED):
        both = means.loc[detector, list(sources)].dropna() if set(sources) <= set(means) else means[:0]
        if len(both):
            same = stats.rank_agreement(*both.to_numpy().T, **options)
            rows.append({"detector": detector, "sources": " and ".join(sources), **same._asdict()})
    table = pd.DataFrame(rows, columns=["detector", "sources", *stats.RankAgreement._fields])
    table.insert(table.columns.get_loc("p") + 1, "p_adjusted", stats.adjusted(table["p"]))
    return table


@checked
@restoring
def plot(frame: pd.DataFrame) -> Figure:
    """Every head's score as each kind of head: patterns above weights; the task alone where there is nothing else."""
    shown = frame[frame["source"] != "task"]
    return plot_scores(frame if shown.empty else shown)


@checked
def plot_scores(frame: pd.DataFrame) -> Figure:
    """The scores of a frame or its summary: a panel for every kind of head and source, sources above each other."""
    import pandas as pd

    table = summarised(frame, _means)
    axis = _axis(table)
    kinds, sources = ([name for name in known if name in set(table[column])] for column, known in KNOWN.items())
    wide = table.pivot(index=["layer", axis], columns=["detector", "source"], values="value")
    absent = math.nan * wide.iloc[:, 0]  # what was not measured is hatched
    parts = []
    for source, kind in itertools.product(sources, kinds):
        title = SHORT[kind] + (CIRCUIT[kind] if source == "weights" else "")
        title += ", on the task" if source == "task" and len(sources) > 1 else ""
        parts.append(wide.get((kind, source), absent).rename("value").reset_index().assign(panel=title))
    return figures.heatmap(
        pd.concat(parts), x=axis, y="layer", facet="panel", columns=len(kinds), limit=1.0, label="score", annotate=1
    )


def stands_out(own: pd.DataFrame) -> pd.Series[bool]:
    """Which rows of a summary score above their control by enough, and surely."""
    return (own["p_adjusted"] < stats.SURE) & (own["effect"] >= LEAST)


def repeats_in_words(found: Repeating, table: pd.DataFrame) -> str:
    """That the model repeats random tokens, and whether a head has the stripe for it.

    Args:
        found: its losses.
        table: the summary of scores.
    """
    text = (
        f"The model repeats random tokens: its loss is {found.loss:.2f} nats a token where they repeat, and "
        f"{found.new:.2f} on new ones"
    )
    stripe = table[(table["detector"] == "induction") & (table["source"] == "patterns")]
    if len(stripe) and not stands_out(stripe).any():
        text += ". Yet no head has the stripe of induction: detectors look for one pattern, and others repeat as well"
    return f"{text}."


def says(model: HookedModel, frame: pd.DataFrame) -> Iterator[str]:
    """Whether the model repeats, with or without the stripe, and where the heads that do it are found."""
    try:
        found = repeating(model, random_sequences(model, SAMPLE))
    except InterpError:  # no loss on the next token
        return
    if found.repeats:
        yield f"{repeats_in_words(found, summary(frame))} --repetition shows which heads it repeats with."


main = study_command(
    run,
    plot=plot,
    summary=summary,
    says=says,
    instead={"repetition_only": (repetition, repetition_summary)},
    options=[
        click.option(
            "--detector",
            "detectors",
            multiple=True,
            type=click.Choice(list(DETECTORS)),
            help="A kind of head; repeat for several.  [all]",
        ),
        click.option(
            "--source",
            "sources",
            multiple=True,
            type=click.Choice(list(SOURCES)),
            help="What heads are judged by; repeat for several.  [all]",
        ),
        whole("--length", "Random tokens before they repeat.  [25]"),
        click.option(
            "--repetition", "repetition_only", is_flag=True, help="Instead: what ablating each head does to repetition."
        ),
    ],
)

if __name__ == "__main__":
    main()
