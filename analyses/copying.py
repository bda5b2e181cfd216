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

Source: Gu and Dao 2023 ("Mamba: Linear-Time Sequence Modeling with Selective State Spaces", section 4.1); Ali et al.
2024 ("The Hidden Attention of Mamba Models", section 3); Olsson et al. 2022 ("In-context Learning and Induction
Heads").
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from torch import Tensor

from interp import figures, stats
from interp.arguments import checked
from interp.edits import Edit, Variant
from interp.figures.axes import Axis
from interp.ground_truth.copying_models import KINDS, PAIRS, QUERY, SLOT, STEPS, config, prompts, train
from interp.heads.hidden_attention import mixer_of, together
from interp.metrics import METRICS, Metric
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.rounding import of_rows, quotient
from interp.study.command import PLACE, Refusing, check_folder, number_options, whole
from interp.study.provenance import checkout, state_digest, versions
from interp.sweeps.sweep import sweep
from interp.ui.terminal import show
from interp.variants.granularity import described, variants

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

SITES = {"attention": ("resid_pre", "k", "v"), "mamba": ("resid_pre", "conv", "state")}  # what is patched

STRONGEST, RANDOM = "strongest", "random"
OTHER_LAYER, OWN, HEAD, ELSEWHERE = "other layer", "value's own", "the head", "the head elsewhere"
CUTS = (STRONGEST, RANDOM, OTHER_LAYER, OWN, HEAD, ELSEWHERE)  # what is cut; of the first two, up to `MOST` entries

MOST = 6
Entry = tuple[int, int]  # layer, key


def _is_top(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    return (logits.argmax(-1) == answers[:, 0]).float()


ACCURACY = Metric("accuracy", _is_top, "1 where the right answer is the likeliest token, else 0", "fraction")
LOGIT_DIFF = METRICS["logit_diff"]


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
        tried = entries(model, known, progress=progress)
        order = ranked(tried)
        found = cumulative(model, known, order, progress=progress)
        head = strongest_unit(model, known, order[0]) if model.cfg.has_attention else None
        measured = {
            "patching": patching(model, known, sites=SITES[kind], progress=progress),
            "looking": looking(model, known),
            "entry": tried,
            "found": found,
            "cut": cuts(model, new, order, needed(found), head=head, seed=seed, progress=progress),
        }
        parts += [part.assign(model=kind, slot=slot, measure=measure) for measure, part in measured.items()]
    columns = ["model", "slot", "measure", "site", "layer", "pos", "key", "condition", "count"]
    frame = pd.concat(parts, ignore_index=True)
    frame = frame[[*columns, "prompt", "metric", "value", "base_value", "source_value", "rounding", "effect"]]
    return frame.astype({name: "Int64" for name in ("layer", "pos", "key", "count")})


def patching(model: GPT, pairs: PromptPairs, *, sites: Sequence[str], progress: bool | None = None) -> pd.DataFrame:
    """Clean values in the corrupt run, one site, layer and position at a time: the effect on the logit difference."""
    frame = sweep(model, pairs, variants(model, pairs, site=sites, by="pos"), "logit_diff", progress=progress)
    return described(frame, pairs)


def looking(model: GPT, pairs: PromptPairs) -> pd.DataFrame:
    """The share of every position in the query's row: of attention probabilities, or of magnitudes without D.

    Mean over heads or channels. Columns `site, layer, key, prompt, metric, value`.
    """
    import pandas as pd

    _, cache = model.run_with_cache(pairs.clean, names_filter="*hook_pattern")
    parts = []
    for layer in range(model.cfg.n_layers):
        pattern = cache["pattern", layer]  # [prompt, head or channel, query, key]
        hidden = model.cfg.mixer(layer) != "attn"
        mean = together(pattern, mixer_of(model, layer).D) if hidden else pattern.mean(1)
        wide = pd.DataFrame(mean[:, -1].cpu().numpy()).rename_axis("prompt")
        parts.append(wide.melt(var_name="key", ignore_index=False).reset_index().assign(layer=layer))
    return pd.concat(parts, ignore_index=True).assign(site="pattern", metric="share")


def entries(model: GPT, pairs: PromptPairs, *, progress: bool | None = None) -> pd.DataFrame:
    """Every entry of the query's row cut by itself, in every layer: the logit difference that is left."""
    every = [
        Variant([cut(layer, key)], labels={"site": "pattern", "layer": layer, "key": key})
        for layer in range(model.cfg.n_layers)
        for key in range(QUERY + 1)
    ]
    return _measured(model, pairs, every, (LOGIT_DIFF,), progress)


def ranked(tried: pd.DataFrame) -> list[Entry]:
    """Layer and key of the entries of earlier positions, from `entries`; first what the answer loses most without."""
    means = tried[tried["key"] < QUERY].groupby(["layer", "key"])["value"].mean().sort_values(kind="stable")
    return [(int(layer), int(key)) for layer, key in means.index]


def cumulative(model: GPT, pairs: PromptPairs, order: Sequence[Entry], *, progress: bool | None = None) -> pd.DataFrame:
    """The first entries of an order cut together: none, one, two, ... up to `MOST`."""
    return _measured(model, pairs, _first_ones(STRONGEST, order), (ACCURACY,), progress)


def needed(found: pd.DataFrame) -> int:
    """How many entries have to be cut until not for sure more is right than by a guess among the prompt's values.

    Args:
        found: from `cumulative`.

    Returns:
        At least 1; `MOST` where even these do not do it.
    """
    table = stats.summarise(found, by="count")
    least = table["ci_low"].fillna(table["value"])  # one prompt has no interval
    enough = table[(least <= 1 / PAIRS) & (table["count"] > 0)]["count"]
    return int(enough.min()) if len(enough) else MOST


def strongest_unit(model: GPT, pairs: PromptPairs, entry: Entry) -> tuple[int, int]:
    """The layer, and the head or channel whose own part of an entry the answer loses most without."""
    layer, key = entry
    axis, size = ("head", model.cfg.n_heads) if model.cfg.mixer(layer) == "attn" else ("channel", model.cfg.d_inner)
    assert size is not None
    each = [Variant([cut(layer, key, **{axis: unit})], labels={"unit": unit}) for unit in range(size)]
    frame = sweep(model, pairs, each, "logit_diff", base="clean", source="clean", progress=False)
    return layer, int(frame.groupby("unit")["value"].mean().idxmin())


def cuts(
    model: GPT,
    pairs: PromptPairs,
    order: Sequence[Entry],
    count: int,
    *,
    head: tuple[int, int] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> pd.DataFrame:
    """What is left without the strongest entries, and without others.

    Args:
        model: the model.
        pairs: prompts on which the entries were not found.
        order: layer and key of entries, the strongest first.
        count: how many of them are needed; the other layer's are at the same positions.
        head: layer and head whose output is cut, at the query and at all other positions; None leaves both out.
        seed: of the random entries, in the layers of the strongest, drawn for each prompt among the others.
        progress: a bar on stderr; None shows it on a terminal.

    Returns:
        Columns `condition`, `count`, `prompt`, `metric`, `value` and `base_value`.
    """
    rng, taken = random.Random(seed), order[:MOST]
    free = {layer: sorted(set(range(QUERY)) - {key for at, key in taken if at == layer}) for layer, _ in taken}
    drawn = []
    for roles in pairs.roles:
        left = {layer: iter(rng.sample(keys, len(keys))) for layer, keys in free.items()}
        drawn.append({**roles, **{f"random {at}": next(left[layer]) for at, (layer, _) in enumerate(taken)}})
    pairs = dataclasses.replace(pairs, roles=tuple(drawn))
    what = _first_ones(STRONGEST, order)
    what += _first_ones(RANDOM, [(layer, f"random {at}") for at, (layer, _) in enumerate(taken)])[1:]
    last = model.cfg.n_layers - 1
    controls = {
        OTHER_LAYER: {(last - layer, key) for layer, key in order[:count]} - set(order[:count]),
        OWN: {(layer, pairs.roles[0]["value"]) for layer in range(last + 1)},
    }
    for condition, chosen in controls.items():
        if chosen:
            labels = {"condition": condition, "count": len(chosen)}
            what.append(Variant([cut(*entry) for entry in sorted(chosen)], labels))
    if head is not None:
        for condition, at in ((HEAD, [QUERY]), (ELSEWHERE, list(range(QUERY)))):
            z = Edit("z", {"layer": head[0], "head": head[1], "pos": at}, "zero")
            what.append(Variant([z], labels={"condition": condition}))
    return _measured(model, pairs, what, (ACCURACY, LOGIT_DIFF), progress)


def cut(layer: int, key: int | str, **unit: int) -> Edit:
    """The entry of the last position's row at one position, in all heads or channels or in one, set to 0.

    What it adds is taken away; other entries are not made larger for it.
    """
    return Edit("pattern", {"layer": layer, "query": -1, "key": key, **unit}, "zero")


def _first_ones(condition: str, order: Sequence[tuple[int, int | str]]) -> list[Variant]:
    """None, one, two, ... of some entries cut together."""
    return [
        Variant([cut(*entry) for entry in order[:count]], labels={"condition": condition, "count": count})
        for count in range(min(MOST, len(order)) + 1)
    ]


def _measured(
    model: GPT, pairs: PromptPairs, what: Sequence[Variant], metrics: Sequence[Metric], progress: bool | None
) -> pd.DataFrame:
    """The clean run with each of these edits."""
    import pandas as pd

    frames = [sweep(model, pairs, what, metric, base="clean", source="clean", progress=progress) for metric in metrics]
    return pd.concat(frames, ignore_index=True)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """What is left behind every cut on new prompts, with intervals over them."""
    return stats.summarise(frame[frame["measure"] == "cut"], by=["model", "condition", "count"])


def plot(frame: pd.DataFrame) -> Figure:
    """Accuracy without the strongest entries, and without random ones."""
    table = summary(frame)
    table = table[table["condition"].isin((STRONGEST, RANDOM)) & (table["metric"] == ACCURACY.name)]
    none = table[table["count"] == 0].assign(condition=RANDOM)
    both = table.merge(none, how="outer").sort_values(["model", "condition", "count"], ascending=[True, False, True])
    across = Axis("count", "entries of the query's row that are cut")
    return figures.lines(both, x=across, hue="condition", facet="model", label="accuracy on new prompts")


def plot_patching(frame: pd.DataFrame) -> Figure:
    """Effect of every site at every position, a panel for each site of a model."""
    part = frame[frame["measure"] == "patching"]
    means = stats.summarise(part, by=["model", "site", "layer", "pos"], value="effect")
    label = "effect (0 corrupt run, 1 clean run)"
    return figures.heatmap(
        means, x=_places("pos", frame), y="layer", facet=["model", "site"], columns=3, limit=1.0, label=label
    )


def plot_looking(frame: pd.DataFrame) -> Figure:
    """Where the query looks: the share of every position."""
    means = stats.summarise(frame[frame["measure"] == "looking"], by=["model", "layer", "key"])
    label = "share of the query's row"
    return figures.bars(means, x=_places("key", frame), hue="layer", facet="model", columns=1, label=label)


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


def findings(frame: pd.DataFrame) -> list[str]:
    """What the numbers say of every model, in sentences."""
    table = summary(frame)
    table = table[table["metric"] == ACCURACY.name]
    value = 2 * int(frame["slot"].iloc[0]) + 1
    said = []
    for kind, part in frame.groupby("model", sort=False):
        rows = table[table["model"] == kind].set_index(["condition", "count"])
        right = {at: _share(row) for at, row in rows.iterrows()}
        count = needed(part[part["measure"] == "found"])
        order = ranked(part[part["measure"] == "entry"])[:count]
        where = ", ".join(f"{offset(key - value)} in layer {layer}" for layer, key in order)
        said += [
            f"{kind}: right on {right[STRONGEST, 0]} of {int(rows['n'].iloc[0])} new prompts.",
            f"{kind}: patching finds the value in {'; '.join(_carriers(part, value)) or 'no place'}.",
            f"{kind}: entries of the query's row that matter most: {where}.",
            f"{kind}: right on {right[STRONGEST, count]} without {'it' if count == 1 else f'these {count}'}, and on "
            f"{right[RANDOM, count]} without as many random ones.",
        ]
        others = {OTHER_LAYER: "the same positions of the other layer", OWN: "the value's own position"}
        others |= {HEAD: "the head at the query", ELSEWHERE: "the head at all other positions"}
        left = {condition: text for (condition, _), text in right.items() if condition in others}
        said.append(f"{kind}: right on " + ", ".join(f"{left[at]} without {others[at]}" for at in left) + ".")
    return said


def _share(row: pd.Series[Any]) -> str:
    """A share with its interval, where it has one."""
    interval = f" ({row['ci_low']:.0%} to {row['ci_high']:.0%})" if row["n"] > 1 else ""
    return f"{row['value']:.0%}{interval}"


def _carriers(frame: pd.DataFrame, value: int) -> list[str]:
    """Sites with an effect of 0.1 at least, with the largest and the first position that has half of it."""
    means = frame[frame["measure"] == "patching"].groupby(["site", "layer", "pos"], sort=False)["effect"].mean()
    told = []
    for (site, layer), effects in means.groupby(["site", "layer"], sort=False):
        most = float(effects.max())
        if most >= 0.1:
            first = next(pos for (_, _, pos), effect in effects.items() if effect >= most / 2)
            told.append(f"{site} of layer {layer} {offset(first - value)} ({most:.2f})")
    return told


def offset(behind: int) -> str:
    """Where a position lies, in words.

    >>> offset(0), offset(1), offset(-2)
    ('at the value', '1 behind the value', '2 before the value')
    """
    return f"{abs(behind)} {'behind' if behind > 0 else 'before'} the value" if behind else "at the value"


@click.command("copying", cls=Refusing, help=(__doc__ or "").replace("\n1. ", "\n\b\n1. ", 1))
@number_options("How many prompts entries are found on, and are cut on.", "Seed of training and prompts.", default=128)
@click.option("--slot", default=SLOT, show_default=True, help=f"Which pair is asked for, 0 to {PAIRS - 1}.")
@whole("--steps", "Steps of training, at most.", default=STEPS)
@click.option("--out", type=PLACE, help="Folder for figures, CSV and a manifest.")
@click.option("--json", "as_json", is_flag=True, help="Print every measurement as JSON lines.")
@click.option("--csv", "as_csv", is_flag=True, help="Print every measurement as CSV.")
@click.option("--quiet", is_flag=True, help="No progress.")
def main(n: int, seed: int, slot: int, steps: int, out: Path | None, as_json: bool, as_csv: bool, quiet: bool) -> None:
    """The command of this study."""
    if out is not None:
        check_folder(out)
    progress = False if quiet else None
    prompts(n, seed=seed, slot=slot)  # refused before minutes of training
    models = {kind: train(kind, seed=seed, steps=steps, progress=progress) for kind in KINDS}
    frame = run(models, n=n, seed=seed, slot=slot, progress=progress)
    show(frame if as_json or as_csv else summary(frame), as_json=as_json, as_csv=as_csv)
    for sentence in findings(frame):
        click.echo(sentence, err=True)
    if out is not None:
        for path in _save(out, frame, models, n=n, seed=seed, slot=slot, steps=steps):
            click.echo(path, err=True)


def _save(out: Path, frame: pd.DataFrame, models: Mapping[str, GPT], **asked: int) -> list[Path]:
    """The figures, every measurement, and what they were made of."""
    from interp.figures.style import save

    paths = [path for name, draw in PLOTS.items() for path in save(draw(frame), frame, out / f"copying_{name}")]
    made = {
        kind: {"cfg": model.cfg.to_dict(), "weights": state_digest(model.state_dict())}
        for kind, model in models.items()
    }
    record = {"study": "copying", **asked, "models": made, "findings": findings(frame)}
    record |= {"versions": versions(), "git": checkout(Path(__file__))}
    manifest = out / "copying.manifest.json"
    manifest.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return [*paths, manifest]


if __name__ == "__main__":
    main()
