"""Head detectors: which heads look at the token before, at duplicates, at what followed them; which copy or count on?

1. Patterns: attention along links on random tokens that occur twice, less the same on tokens that do not; what heads
   write for the tokens that they attend to, on random tokens and on ordered lists (`interp.heads.from_patterns`).
2. Weights: the same jobs read from the QK and OV circuits, without a prompt (`interp.heads.from_weights`).
3. Task: attention along the same links on the task's own prompts, less what an even look would give.
   A model without attention has heads in its Mamba-2 layers, which are judged by their hidden attention.
4. Every head's mean over sequences (or draws of tokens) is tested against its control and corrected for being many.
5. Agreement: rank correlation over heads between what patterns say and what weights say, and the overlap of the heads
   that each puts first.

Source: Olsson et al. 2022 ("In-context Learning and Induction Heads", appendix on head activation evaluators), Elhage
et al. 2021 ("A Mathematical Framework for Transformer Circuits", on copying and induction heads) and Gould et al. 2023
("Successor Heads").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from interp import figures, stats
from interp.arguments import checked, resamples, whole_number
from interp.arguments import seed as check_seed
from interp.figures.glyphs import visible
from interp.heads.detectors import DETECTORS, SOURCES, Material, measured
from interp.heads.qk_ov import chance_composition, composition, singular_tokens
from interp.hooked.model import HookedModel
from interp.models.gpt import GPT
from interp.names import Part
from interp.prompts.pairs import PromptPairs
from interp.study.command import study_command, whole
from interp.ui.page import FigureItem, Section

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

ORDER = 35
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
LEAST, TOP, NAMED = 0.1, 10, 3
HIDDEN = (
    "This model has no attention: its heads are those of its Mamba-2 layers, and their patterns the shares of hidden "
    "attention. A look at the token before may also be the convolution's, which no pattern shows."
)


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
        effective: let later layers read embeddings behind the first MLP, where weights are read.
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
    return measured(Material(model, pairs, n, length, seed, bos, effective), detectors, sources, progress=progress)[0]


@checked
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


def _axis(frame: pd.DataFrame) -> str:
    """The column of heads."""
    return "head" if "head" in frame else "ssm_head"


def _name(row: Any) -> str:
    kind = "head" if hasattr(row, "head") else "ssm_head"
    return Part(kind, row.layer, getattr(row, kind)).name


@checked
def agreement(frame: pd.DataFrame, *, top: int = TOP, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
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
    import numpy as np
    import pandas as pd
    from scipy.stats import spearmanr

    top, n_resamples, seed = whole_number("top", top, least=1), resamples(n_resamples), check_seed(seed)
    means = frame.groupby(["detector", "source", "layer", _axis(frame)], sort=False)["effect"].mean().unstack("source")
    rows = []
    for detector in dict.fromkeys(frame["detector"]):
        for pair in (("patterns", "weights"), ("patterns", "task")):
            if not set(pair) <= set(means):
                continue
            both = means.loc[detector, list(pair)].dropna()
            if both.empty:
                continue
            one, other = both.to_numpy().T
            n = len(both)
            first = max(min(top, n // 2), 1)
            rho = p = low = high = np.nan
            if n > 2 and min(np.ptp(one), np.ptp(other)) > 0:
                found = spearmanr(one, other)
                rho, p = float(found.statistic), float(found.pvalue)
                low, high = _interval(one, other, n_resamples, seed)
            shared = len({*np.argsort(-one, kind="stable")[:first]} & {*np.argsort(-other, kind="stable")[:first]})
            rows.append((detector, " and ".join(pair), rho, low, high, n, p, first, shared, first * first / n))
    columns = ["detector", "sources", "spearman", "ci_low", "ci_high", "n", "p", "top", "shared", "by_chance"]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(7, "p_adjusted", stats.adjusted(table["p"]))
    return table


def _interval(one: stats.Array, other: stats.Array, n_resamples: int, seed: int) -> tuple[float, float]:
    """Percentile interval of the rank correlation, with heads drawn again."""
    import numpy as np
    from scipy.stats import rankdata

    drawn = np.random.default_rng(seed).integers(len(one), size=(n_resamples, len(one)))
    a, b = (rankdata(values[drawn], axis=-1) for values in (one, other))
    a, b = (ranks - ranks.mean(-1, keepdims=True) for ranks in (a, b))
    size = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    rho = (a * b).sum(-1)[size > 0] / size[size > 0]
    low, high = np.quantile(rho, [0.025, 0.975]) if len(rho) else (np.nan, np.nan)
    return float(low), float(high)


@checked
def plot(frame: pd.DataFrame) -> Figure:
    """Every head's score as each kind of head: patterns above weights; the task alone where there is nothing else."""
    shown = frame[frame["source"] != "task"]
    return _maps(frame if shown.empty else shown)


def plot_task(frame: pd.DataFrame) -> Figure:
    """The scores on the task's own prompts."""
    return _maps(frame[frame["source"] == "task"])


def _maps(frame: pd.DataFrame) -> Figure:
    import pandas as pd

    table = frame.groupby(["detector", "source", "layer", _axis(frame)], sort=False)["value"].mean().reset_index()
    kinds, sources = ([name for name in known if name in set(table[column])] for column, known in KNOWN.items())
    wide = table.pivot(index=["layer", _axis(frame)], columns=["detector", "source"], values="value")
    # A panel for every kind and source, so that they stand above each other; what was not measured is hatched.
    absent = math.nan * wide.iloc[:, 0]
    parts = []
    for source in sources:
        for kind in kinds:
            title = SHORT[kind] + (CIRCUIT[kind] if source == "weights" else "")
            parts.append(wide.get((kind, source), absent).rename("value").reset_index().assign(panel=title))
    return figures.heatmap(
        pd.concat(parts),
        x=_axis(frame),
        y="layer",
        facet="panel",
        columns=len(kinds),
        limit=1.0,
        label="score",
        annotate=1,
    )


def sentences(table: pd.DataFrame, agreed: pd.DataFrame) -> Iterator[str]:
    """What the numbers say of each kind of head: who they are, how sure that is, whether weights agree."""
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
        names = ", ".join(f"{_name(row)} ({row.value:.2f})" for row in best.itertuples())
        text = f"The heads that most {does}, by their {source}, are {names}"
        if own["p"].notna().any():
            sure = int(((own["p_adjusted"] < stats.SURE) & (own["effect"] >= LEAST)).sum())
            text += (
                f"; {sure or 'none'} of {len(own)} heads {'score' if sure != 1 else 'scores'} at least {LEAST} above "
                f"their control with a corrected p below {stats.SURE}"
            )
        compared = agreed[(agreed["detector"] == detector) & (agreed["sources"] == "patterns and weights")]
        for row in compared[compared["spearman"].notna()].itertuples():
            text += (
                f". Weights rank heads {_alike(row.spearman, row.p_adjusted)} (rank correlation {row.spearman:.2f}, "
                f"95% interval {row.ci_low:.2f} to {row.ci_high:.2f}), and {row.shared} of the first {row.top} are the "
                f"same ({row.by_chance:.1f} by chance)"
            )
        against = own[(own["p_adjusted"] < stats.SURE) & (own["effect"] <= -LEAST)].tail(NAMED)[::-1]
        if detector == "copying" and len(against):
            names = ", ".join(f"{_name(row)} ({row.value:.2f})" for row in against.itertuples())
            text += f". Against what they read, as copy suppression does, write {names}"
        yield text + "."


def in_short(table: pd.DataFrame, agreed: pd.DataFrame) -> Iterator[str]:
    """One sentence on the heads that stand out, and one on how far weights and patterns agree."""
    first: list[str] = []
    none: list[str] = []
    for detector in DETECTORS:
        own = table[(table["detector"] == detector) & (table["source"] == "patterns")]
        if own["p"].notna().any():
            best = own[(own["p_adjusted"] < stats.SURE) & (own["effect"] >= LEAST)].head(NAMED)
            names = ", ".join(_name(row) for row in best.itertuples())
            (first if len(best) else none).append(f"{names} ({SHORT[detector]})" if names else SHORT[detector])
    if first:
        yield f"By their patterns, the first heads of each kind are {'; '.join(first)}."
    if none:
        yield f"No head stands out by its patterns for: {', '.join(none)}."
    known = agreed[(agreed["sources"] == "patterns and weights") & agreed["spearman"].notna()]
    if len(known):
        told = ", ".join(f"{SHORT[row.detector]} {row.spearman:.2f}" for row in known.itertuples())
        yield f"Weights alone and patterns rank the {known['n'].max()} heads with these correlations: {told}."


def _alike(correlation: float, p: float) -> str:
    if p >= stats.SURE:
        return "in an order that cannot be told from chance"
    if correlation < 0:
        return "the other way round"
    return "much alike" if correlation >= 0.5 else "somewhat alike"


def report(
    model: HookedModel, pairs: PromptPairs, results: Mapping[str, pd.DataFrame], *, progress: bool | None = None
) -> tuple[pd.DataFrame, Section, list[str]]:
    """The section of a task's report: which heads do what, whatever the task."""
    material = Material(model, pairs)
    frame, missing = measured(material, None, None, progress=progress)
    table, agreed = summary(frame), agreement(frame)
    best = table[table["effect"].notna()].groupby(["detector", "source"], sort=False).head(NAMED)
    text = [
        "Heads are scored by their patterns on random tokens, where no meaning can help, and on ordered lists, by "
        "their weights alone, and on the prompts of the task. An effect is what a score has beyond its control: the "
        "same places without a repetition, an even look, or chance.",
        *sentences(table, agreed),
        *_left_out(missing),
        *([HIDDEN] if _axis(frame) == "ssm_head" else []),
    ]
    items = [
        FigureItem(
            "head_detectors",
            "Scores of every head as each kind of head",
            "Above what the patterns say, below what the QK or OV circuits alone say; 1 is a head that does nothing "
            "else. The strongest head of each panel is named; what could not be measured is hatched.",
            plot(frame),
            table[table["source"] != "task"] if set(table["source"]) != {"task"} else table,
        )
    ]
    if "task" in set(frame["source"]):
        items.append(
            FigureItem(
                "head_detectors_task",
                "The same on the task's prompts",
                f"Attention along links, mean over those of the {len(pairs)} clean prompts that have such a link.",
                plot_task(frame),
                table[table["source"] == "task"],
            )
        )
    tables = [(f"The first {NAMED} heads of each kind, with 95% bootstrap intervals over sequences", best)]
    if len(agreed):
        tables.append(("Agreement of two sources over heads", agreed))
    if isinstance(model, GPT) and "weights" in set(frame["source"]):
        tables += list(_of_weights(model, table))
    section = Section(title="Kinds of heads", anchor="head-detectors", text=text, figures=items, tables=tables)
    return frame, section, list(in_short(table, agreed))


def _left_out(missing: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """What could not be measured, once for each reason."""
    for why in dict.fromkeys(missing.values()):
        what = ", ".join(f"{SHORT[kind]} by {source}" for (kind, source), of in missing.items() if of == why)
        yield f"Not measured: {what} ({why})."


def _of_weights(model: GPT, table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """What the first induction heads read of previous-token heads; the directions of the first copying head."""
    import pandas as pd

    first = {
        detector: [(int(row.layer), int(row.head)) for row in part.head(NAMED).itertuples()]
        for detector, part in table[table["source"] == "patterns"].groupby("detector")
    }
    ratio = composition(model, "k")
    all_pairs = ratio[~ratio.isnan()]
    rows = [
        (
            Part("head", a, i).name,
            Part("head", b, j).name,
            float(ratio[a, i, b, j]),
            float((all_pairs < ratio[a, i, b, j]).double().mean()),
        )
        for a, i in first.get("previous_token", [])
        for b, j in first.get("induction", [])
        if b > a
    ]
    if rows:
        yield (
            "How much the keys of the first induction heads read of what the first previous-token heads write "
            f"(K-composition; {chance_composition(model):.3f} if one is turned at random), and the share of all pairs "
            "of heads that compose less",
            pd.DataFrame(rows, columns=["writer", "reader", "composition", "rank"]),
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


main = study_command(
    run,
    plot=plot,
    summary=summary,
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
    ],
)

if __name__ == "__main__":
    main()
