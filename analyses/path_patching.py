"""Path patching: which component tells a receiver what it acts on, and by which paths?

1. Base and source prompts differ in one respect. A sender (a head, a state-space layer, an MLP, the embedding) is set
   to its value in the source run. What its change does to the input of a receiver is found by the paths that are left
   open (`interp.circuits.paths`): `direct` (the residual stream alone), `mlps` (MLPs pass it on, heads and state-space
   layers are frozen) or `all`.
2. The base prompts run with this receiver's input changed, and nothing else. A receiver is the query, key or value
   input of a head, a state-space layer, an MLP or the unembedding (`logits`); several joined by `+` are changed
   together.
3. The effect is 0 where the receiver does not care, and 1 where the answer is that of the source run. Every sender is
   a cell; p is corrected for all of them.

To the logits directly, this is what a sender writes towards the answer, with the final norm as it then is; to the
logits by all paths, it is activation patching.

Source: Wang et al. 2022 (https://arxiv.org/abs/2211.00593, "Interpretability in the Wild", section 3.1 and appendix B);
Goldowsky-Dill et al. 2023 (https://arxiv.org/abs/2304.05969, "Localizing Model Behavior with Path Patching", section
3).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Unpack

import click
from torch import Tensor

from interp import figures, stats
from interp.arguments import checked
from interp.circuits.graph import Graph
from interp.circuits.paths import (
    THROUGH,
    arriving,
    in_groups,
    parse_places,
    parse_receivers,
    parse_senders,
    point,
    routes,
    sender_labels,
)
from interp.edits import Variant
from interp.errors import InterpError, check_choice
from interp.frames import restored, restoring
from interp.hooked.model import HookedModel
from interp.metrics import Metric
from interp.names import MIXER_PARTS, PART_KINDS
from interp.prompts.pair_checks import DIRECTIONS
from interp.prompts.pairs import PromptPairs
from interp.rounding import of_effect
from interp.study.command import study_command
from interp.study.options import choice
from interp.study.shared_options import METRIC, direction_option
from interp.study.sweep_options import SweepOptions, in_folder
from interp.sweeps.sweep import sweep
from interp.variants.granularity import effect_label

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

HEADS = [own.usual for own in MIXER_PARTS.values() if own.heads]
CELL = ["direction", "through", "receiver", "sender", "site", "layer", *HEADS, "pos", "role", "metric"]
MIXED = [PART_KINDS[own.usual].site for own in MIXER_PARTS.values()]
MEASURED = ["prompt", "metric", "value", "base_value", "source_value", "rounding", "effect"]
MOST_ROWS, LONGEST = 20, 40


@checked
def run(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    receivers: str | Sequence[str] = "logits",
    senders: str | Sequence[str] = "mixers",
    through: str = "direct",
    pos: int | str | Sequence[int | str] | None = None,
    direction: str = "noise",
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    **options: Unpack[SweepOptions],
) -> pd.DataFrame:
    """Patch the paths from every sender to every receiver that comes after it.

    Args:
        model: the model.
        pairs: clean and corrupt prompts.
        receivers: as `interp.circuits.paths.parse_receivers` takes them: "logits", "L9H9:q,L9H6:q", or joined
            "L9H9:q+L9H6:q"; "mixer 9" is what a state-space layer reads.
        senders: "mixers" (heads, and state-space layers without heads), "heads", "mlps", "input", "all", or names such
            as "L3H1,MLP 4", "L3S1" (a head of a Mamba-2 layer), "mixer 3" (a Mamba-1 layer).
        through: what may carry the change: "direct", "mlps" or "all".
        pos: where the receiver's input is changed: a position (from the start, or -1 from the end), a role, or several,
            each a cell of its own, as "S2,END"; None is everywhere at once.
        direction: "noise" puts corrupt values into the clean run, as the papers do; "denoise" the reverse.
        metric: as `interp.sweep` takes it.
        options: `max_memory, out, progress, executor`, as `interp.sweep` takes them.

    Returns:
        A row for every sender, receiver, place and prompt: `direction, through, receiver`, the sender's `sender, site,
        layer, head` (of Mamba-2 `ssm_head`), `pos` or `role`, `prompt, metric, value, base_value, source_value,
        effect`.

    Raises:
        UnknownName: a receiver, sender, direction, role or choice of paths that does not exist.
        InterpError: no sender comes before any receiver; a model without inputs for every head; as `interp.sweep`.
    """
    import pandas as pd

    check_choice("direction", direction, DIRECTIONS)
    base, source = DIRECTIONS[direction]
    graph, pairs = Graph.of(model), pairs.to(model.device)
    ends, starts = parse_receivers(receivers, graph, model), parse_senders(senders, graph)
    joined = {node for end in ends for node in end.nodes}
    starts = [start for start in starts if graph.allowed[start, list(joined)].any()]
    if not starts:
        raise InterpError(f"none of the senders {senders!r} comes before {', '.join(end.name for end in ends)}")
    points = dict.fromkeys(point(graph.receivers[node], model) for node in joined)
    everywhere = _changed(model, pairs)
    frames = []
    for group in in_groups(starts, len(points) * pairs.mask.numel() * model.cfg.d_model * model.dtype.itemsize):
        reads = arriving(
            model,
            pairs,
            graph,
            group,
            points,
            through=through,
            base=base,
            source=source,
            progress=options.get("progress"),
        )
        cells = []
        for end, (at, start), place in itertools.product(ends, enumerate(group), parse_places(pos)):
            own = {name: value[at] for name, value in reads.items()}
            edits = routes(model, graph, start, end, own, pos=next(iter(place.values()), everywhere))
            if edits:
                cells.append(Variant(edits, {"receiver": end.name, **sender_labels(graph.senders[start]), **place}))
        kept = in_folder(options, f"senders-{group[0]:05d}")
        frames.append(sweep(model, pairs, cells, metric, base=base, source=source, **kept))
    frame = pd.concat(frames, ignore_index=True).assign(direction=direction, through=through)
    frame = frame.astype({name: "Int64" for name in ("layer", *HEADS, "pos") if name in frame})
    return frame[[name for name in (*CELL[:-1], *MEASURED) if name in frame]]


def _changed(model: HookedModel, pairs: PromptPairs) -> slice | None:
    """The positions at which a path can carry anything: from the first token in which two sides differ; None is all."""
    differs = ((pairs.clean != pairs.corrupt) & pairs.mask).any(0).nonzero()
    return slice(int(differs[0]), None) if model.cfg.causal and len(differs) else None


@checked
@restoring
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean effect of every path over prompts with intervals and p, the largest magnitudes first.

    `p_adjusted` holds the share of false discoveries among all paths (Benjamini-Hochberg).
    """
    table = stats.tested(frame, by=[name for name in CELL if name in frame], value="effect", rounding=of_effect(frame))
    return stats.strongest_first(table.assign(metric="effect on " + table["metric"]))


@checked
@restoring
def plot(frame: pd.DataFrame, *, table: pd.DataFrame | None = None) -> Figure:
    """Heads as a grid, layer by head, a panel for every receiver; blue moves the answer to that of the source run.

    Of a frame without heads, or with few of them, the paths with the largest effects are bars. `table` is the frame's
    summary, where it is there already.
    """
    if why := stats.why_nothing(frame, "effect"):
        return figures.nothing(why)
    table = stats.as_measured(summary(frame) if table is None else restored(table), frame)
    several = [name for name in ("through", "receiver", "pos", "role") if name in table and table[name].nunique() > 1]
    there = [name for name in HEADS if name in table and table[name].notna().any()]
    heads = table[table[there].notna().any(axis=1)]
    label = effect_label(frame)
    end = str(table["receiver"].iloc[0])
    named = f"Paths to {end}" if len(end) < LONGEST else f"Paths to {end.count('+') + 1} receivers together"
    title = None if "receiver" in several else named
    if heads["sender"].nunique() > MOST_ROWS:
        marked, across = 3 if several else 6, there[0]
        if len(there) > 1:  # a layer has heads of one kind, and names that tell which
            heads, marked = heads.assign(head=heads["head"].fillna(heads["ssm_head"])), 0
        return figures.heatmap(
            heads, x=across, y="layer", facet=several or None, label=label, annotate=marked, title=title
        )
    kept, total = stats.strongest_groups(table, "sender", MOST_ROWS)
    if total > MOST_ROWS:
        title = f"{title or 'Paths'}: the {MOST_ROWS} of {total} senders with the largest effects"
    return figures.bars(
        kept, x="sender", facet=several or None, horizontal=True, diverging=True, label=label, title=title
    )


main = study_command(
    run,
    plot=plot,
    summary=summary,
    options=[
        METRIC,
        direction_option("noise"),
        click.option("--pos", help="Where the receiver's input is changed: -1, S2, several as S2,END.  [everywhere]"),
        choice("--through", THROUGH, default="direct"),
        click.option("--sender", "senders", help="mixers, heads, mlps, input, all, or names: L3H1,m4.  [mixers]"),
        click.option("--receiver", "receivers", help="logits, L9H9:q, m4, mixer 3, several: L9H9:q,L9H6:q.  [logits]"),
    ],
)

if __name__ == "__main__":
    main()
