"""Where do an attention model and a Mamba keep the token that they will need?

1. Two models of two layers learn the same in-context copying (`interp.ground_truth.copying_models`): pairs of a key and
   a value, then one of the keys again; the answer is its value. What follows are the same calls for both.
2. Patching: the corrupt prompt has another value. Which activation, at which position, brings the clean one back?
   (`resid_pre` of both; `k` and `v`, or `conv` and `state`.)
3. Looking: the query's row of the attention pattern, or of the hidden attention that a Mamba layer is equal to.
4. Cutting: one entry of that row is set to 0, in all heads or channels of its layer, and its part of the sum is gone.
   Entries are ranked by what the answer loses without each. Those that bring it down to a guess among the prompt's
   values are cut on other prompts than those on which they were found.
5. Controls: as many entries drawn at random, anew for each prompt; the same positions in the other layer; the value's
   own position; and the head at all positions but the query.

Source: Gu and Dao 2023 (https://arxiv.org/abs/2312.00752, "Mamba: Linear-Time Sequence Modeling with Selective State
Spaces", section 4.1); Ali et al. 2024 (https://arxiv.org/abs/2403.01590, "The Hidden Attention of Mamba Models",
section 3); Olsson et al. 2022 (https://arxiv.org/abs/2209.11895, "In-context Learning and Induction Heads").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from interp import figures, stats
from interp.arguments import checked
from interp.figures.axes import Axis
from interp.frames import restoring
from interp.ground_truth.copying_measures import ACCURACY, CONTROLS, RANDOM, STRONGEST, carriers, first_needed, measures
from interp.ground_truth.copying_models import KINDS, PAIRS, SLOT, STEPS, config, prompts, train
from interp.models.gpt import GPT
from interp.rounding import of_rows, quotient
from interp.study.command import OwnModels, study_command
from interp.study.options import number_options, whole
from interp.study.provenance import state_digest
from interp.study.sentences import bounds

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure


@checked
def run(
    models: Mapping[str, GPT] | None = None,
    *,
    n: int = 128,
    seed: int = 0,
    slot: int = SLOT,
    steps: int = STEPS,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Everything that is measured, of both kinds of models.

    Args:
        models: trained models by their kind; None trains one of each.
        n: how many prompts entries are found on, and on how many others they are cut.
        seed: of training, prompts and draws.
        slot: which pair is asked for.
        steps: of training, at most.
        progress: bars on stderr; None shows them on a terminal.

    Returns:
        Columns `model, slot, measure, site, layer, pos, key, condition, count, prompt, metric, value, base_value,
        source_value, rounding, effect`; those that a measure has not are empty. Measures: "patching" (`effect` of
        `site` at `pos`), "looking" (the share of `key` in the query's row), "entry" (one entry cut), "found" (the
        `count` strongest cut, on the same prompts) and "cut" (`condition`, one of `CUTS`, of `count` entries, on new
        prompts).

    Raises:
        UnknownName: a kind of model that does not exist.
        InterpError: as `interp.ground_truth.copying_models.train` and `prompts`.
    """
    import pandas as pd

    for kind in models or ():
        config(kind)
    known, new = (prompts(n, seed=seed + first, slot=slot) for first in (1000, 2000))
    if models is None:
        models = {kind: train(kind, seed=seed, steps=steps, progress=progress) for kind in KINDS}
    parts = []
    for kind, model in models.items():
        measured = measures(kind, model, known, new, seed=seed, progress=progress)
        parts += [part.assign(model=kind, slot=slot, measure=measure) for measure, part in measured.items()]
    columns = ["model", "slot", "measure", "site", "layer", "pos", "key", "condition", "count"]
    frame = pd.concat(parts, ignore_index=True)
    frame = frame[[*columns, "prompt", "metric", "value", "base_value", "source_value", "rounding", "effect"]]
    return frame.astype({name: "Int64" for name in ("layer", "pos", "key", "count")})


@restoring
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """What is left after every cut on new prompts, with intervals over them."""
    return stats.summarise(frame[frame["measure"] == "cut"], by=["model", "condition", "count"])


@restoring
def plot(frame: pd.DataFrame) -> Figure:
    """Accuracy without the strongest entries, and without random ones."""
    table = summary(frame)
    table = table[table["condition"].isin((STRONGEST, RANDOM)) & (table["metric"] == ACCURACY.name)]
    none = table[table["count"] == 0].assign(condition=RANDOM)
    both = table.merge(none, how="outer").sort_values(["model", "condition", "count"], ascending=[True, False, True])
    across = Axis("count", "entries of the query's row that are cut")
    return figures.lines(both, x=across, hue="condition", facet="model", label="accuracy on new prompts")


@restoring
def plot_patching(frame: pd.DataFrame) -> Figure:
    """Effect of every site at every position, a panel for each site of a model."""
    part = frame[frame["measure"] == "patching"]
    means = stats.summarise(part, by=["model", "site", "layer", "pos"], value="effect")
    label = "effect (0 corrupt run, 1 clean run)"
    return figures.heatmap(
        means, x=_places("pos", frame), y="layer", facet=["model", "site"], columns=3, limit=1.0, label=label
    )


@restoring
def plot_looking(frame: pd.DataFrame) -> Figure:
    """Where the query looks: the share of every position."""
    means = stats.summarise(frame[frame["measure"] == "looking"], by=["model", "layer", "key"])
    label = "share of the query's row"
    return figures.bars(means, x=_places("key", frame), hue="layer", facet="model", columns=1, label=label)


@restoring
def plot_entries(frame: pd.DataFrame) -> Figure:
    """How much of the logit difference is lost without each entry of the query's row."""
    part = frame[frame["measure"] == "entry"]
    lost = part.assign(
        value=quotient(part["base_value"] - part["value"], part["base_value"], of_rows(part, "base_value"))
    )
    means = stats.summarise(lost, by=["model", "layer", "key"])
    label = "share of logit difference lost"
    return figures.heatmap(
        means, x=_places("key", frame), y="layer", facet="model", columns=1, limit=1.0, label=label, annotate=2
    )


PLOTS = {"patching": plot_patching, "looking": plot_looking, "entries": plot_entries, "cuts": plot}
"""The figures, by the names of their files."""


def _places(column: str, frame: pd.DataFrame) -> Axis:
    """An axis of positions, named by what stands there."""
    slot = int(frame["slot"].iloc[0])
    names = [word for at in range(PAIRS) for word in (("key", "value") if at == slot else ("k", "v"))]
    return Axis(column, "", labels=[*names, "query"])


@restoring
def findings(frame: pd.DataFrame) -> list[str]:
    """What the numbers say of every model, in sentences."""
    table = summary(frame)
    table = table[table["metric"] == ACCURACY.name]
    value = 2 * int(frame["slot"].iloc[0]) + 1
    said = []
    for kind, part in frame.groupby("model", sort=False):
        rows = table[table["model"] == kind].set_index(["condition", "count"])
        right = {at: _share(row) for at, row in rows.iterrows()}
        entries = first_needed(part)
        count = len(entries)
        where = ", ".join(f"{offset(key - value)} in layer {layer}" for layer, key in entries)
        found = [
            f"{one.site} of layer {one.layer} {offset(one.pos - value)} ({one.effect:.2f})"
            for one in carriers(part[part["measure"] == "patching"]).itertuples()
        ]
        said += [
            f"{kind}: right on {right[STRONGEST, 0]} of {int(rows['n'].iloc[0])} new prompts.",
            f"{kind}: patching finds the value in {'; '.join(found) or 'no place'}.",
            f"{kind}: entries of the query's row that matter most: {where}.",
            f"{kind}: right on {right[STRONGEST, count]} without {'it' if count == 1 else f'these {count}'}, and on "
            f"{right[RANDOM, count]} without as many random ones.",
        ]
        left = {condition: text for (condition, _), text in right.items() if condition in CONTROLS}
        said.append(f"{kind}: right on " + ", ".join(f"{left[at]} without {CONTROLS[at]}" for at in left) + ".")
    return said


def _share(row: pd.Series[Any]) -> str:
    """A share with its interval, where it has one."""
    return f"{row['value']:.0%}" + (bounds(row, ".0%", before=" (", after=")") if row["n"] > 1 else "")


def offset(after: int) -> str:
    """Where a position lies, in words.

    >>> offset(0), offset(1), offset(-2)
    ('at the value', '1 after the value', '2 before the value')
    """
    return f"{abs(after)} {'after' if after > 0 else 'before'} the value" if after else "at the value"


def made(*, n: int, seed: int, slot: int, steps: int, progress: bool | None) -> dict[str, GPT]:
    """A trained model of each kind, if the prompts can be written: training takes minutes."""
    prompts(n, seed=seed, slot=slot)
    return {kind: train(kind, seed=seed, steps=steps, progress=progress) for kind in KINDS}


def record(models: Mapping[str, GPT], frame: pd.DataFrame, **asked: int) -> dict[str, Any]:
    """What a manifest says of the models, and of what was found."""
    of_models = {
        kind: {"cfg": model.cfg.to_dict(), "weights": state_digest(model.state_dict())}
        for kind, model in models.items()
    }
    return {**asked, "models": of_models, "findings": findings(frame)}


NUMBERS = number_options(
    "How many prompts entries are found on, and are cut on.", "Seed of training and prompts.", default=128
)

main = study_command(
    run,
    plot={f"copying_{name}": draw for name, draw in PLOTS.items()},
    summary=summary,
    natural="",
    own=OwnModels(NUMBERS, made, record, says=findings),
    options=[
        click.option("--slot", default=SLOT, show_default=True, help=f"Which pair is asked for, 0 to {PAIRS - 1}."),
        whole("--steps", "Steps of training, at most.", default=STEPS),
    ],
)

if __name__ == "__main__":
    main()
