"""Where does a copying model keep the value that it will need? Patching, looking, and cuts of entries of a pattern.

1. `patching` moves clean values into the corrupt run, at every position; `looking` is where the query looks.
2. `entries` cuts every entry of the query's row by itself, in all heads or channels of its layer; `ranked` puts them in
   the order of what the answer loses without each.
3. `cumulative` cuts the first ones together; `needed` says how many bring the answer down to a guess among the prompt's
   values.
4. `cuts` does so on other prompts, beside its controls: as many entries drawn at random, the same positions in the
   other layer, the value's own position, and the head at all positions but the query.

`measures` is all of this, of one model. The models and their prompts are those of `interp.ground_truth.copying_models`.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from interp import stats
from interp.edits import Edit, Variant
from interp.ground_truth.copying_models import PAIRS, QUERY
from interp.heads.hidden_attention import mixer_of, together
from interp.metrics import METRICS, Metric
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.sweeps.sweep import sweep
from interp.variants.granularity import described, variants

if TYPE_CHECKING:
    import pandas as pd

SITES = {"attention": ("resid_pre", "k", "v"), "mamba": ("resid_pre", "conv", "state")}  # what is patched

STRONGEST, RANDOM = "strongest", "random"
OTHER_LAYER, OWN, HEAD, ELSEWHERE = "other layer", "value's own", "the head", "the head elsewhere"
CONTROLS = {
    OTHER_LAYER: "the same positions of the other layer",
    OWN: "the value's own position",
    HEAD: "the head at the query",
    ELSEWHERE: "the head at all other positions",
}
"""What is cut beside the strongest entries and as many random ones, in words."""

CUTS = (STRONGEST, RANDOM, *CONTROLS)  # what is cut; of the first two, up to `MOST` entries

MOST = 6
CARRIES = 0.1  # the effect of a site that has the value, at least
Entry = tuple[int, int]  # layer, key


def _is_top(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    return (logits.argmax(-1) == answers[:, 0]).float()


ACCURACY = Metric("accuracy", _is_top, "1 where the right answer is the likeliest token, else 0", "fraction")
LOGIT_DIFF = METRICS["logit_diff"]


def measures(
    kind: str, model: GPT, known: PromptPairs, new: PromptPairs, *, seed: int = 0, progress: bool | None = None
) -> dict[str, pd.DataFrame]:
    """Everything that is measured of a model.

    Args:
        kind: one of `interp.ground_truth.copying_models.KINDS`.
        model: a model of this kind.
        known: the prompts on which entries are found.
        new: those on which they are cut.
        seed: of the random entries.
        progress: bars on stderr; None shows them on a terminal.

    Returns:
        "patching", "looking", "entry" (one cut), "found" (the strongest cut together) and "cut", with the tables of
        `patching`, `looking`, `entries`, `cumulative` and `cuts`.
    """
    tried = entries(model, known, progress=progress)
    order = ranked(tried)
    found = cumulative(model, known, order, progress=progress)
    head = strongest_unit(model, known, order[0]) if model.cfg.has_attention else None
    return {
        "patching": patching(model, known, sites=SITES[kind], progress=progress),
        "looking": looking(model, known),
        "entry": tried,
        "found": found,
        "cut": cuts(model, new, order, needed(found), head=head, seed=seed, progress=progress),
    }


def patching(model: GPT, pairs: PromptPairs, *, sites: Sequence[str], progress: bool | None = None) -> pd.DataFrame:
    """Clean values in the corrupt run, one site, layer and position at a time: the effect on the logit difference."""
    frame = sweep(model, pairs, variants(model, pairs, site=sites, by="pos"), "logit_diff", progress=progress)
    return described(frame, pairs)


def carriers(frame: pd.DataFrame) -> pd.DataFrame:
    """The sites that have the value: `site, layer`, the largest mean `effect`, and the first `pos` with half of it.

    Args:
        frame: from `patching`.
    """
    import pandas as pd

    means = frame.groupby(["site", "layer", "pos"], sort=False)["effect"].mean()
    rows = []
    for (site, layer), effects in means.groupby(["site", "layer"], sort=False):
        most = float(effects.max())
        if most >= CARRIES:
            first = next(pos for (_, _, pos), effect in effects.items() if effect >= most / 2)
            rows.append((site, layer, first, most))
    return pd.DataFrame(rows, columns=["site", "layer", "pos", "effect"])


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


def first_needed(frame: pd.DataFrame) -> list[Entry]:
    """The entries that are needed, the strongest first.

    Args:
        frame: the rows of a model in which `measure` is "entry" or "found", as `measures` names them.
    """
    tables = dict(iter(frame.groupby("measure")))
    return ranked(tables["entry"])[: needed(tables["found"])]


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
