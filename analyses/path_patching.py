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

Source: Wang et al. 2022 ("Interpretability in the Wild", section 3.1 and appendix B); Goldowsky-Dill et al. 2023
("Localizing Model Behavior with Path Patching", section 3).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from torch import Tensor

from interp import figures, stats
from interp.arguments import checked, is_whole, shown
from interp.circuits.graph import Graph, Node, n_heads
from interp.circuits.paths import THROUGH, arriving, parse_receivers, parse_senders, point, routes
from interp.edits import Variant
from interp.errors import InterpError, PromptError, check_choice
from interp.hooked.model import HookedModel
from interp.metrics import Metric
from interp.names import MIXER_PARTS, PART_KINDS, READS, Part, part_of
from interp.prompts.pair_checks import DIRECTIONS
from interp.prompts.pairs import PromptPairs
from interp.rounding import of_effect
from interp.study.command import study_command
from interp.sweeps.sweep import Executor, sweep
from interp.ui.page import FigureItem, Section, first_rows
from interp.variants.granularity import effect_label

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

ORDER = 55
HEADS = [own.usual for own in MIXER_PARTS.values() if own.heads]
CELL = ["direction", "through", "receiver", "sender", "site", "layer", *HEADS, "pos", "role", "metric"]
MIXED = [PART_KINDS[own.usual].site for own in MIXER_PARTS.values()]
MEASURED = ["prompt", "metric", "value", "base_value", "source_value", "rounding", "effect"]
MOST_BYTES = 2**28  # of what reaches the receivers, held at a time
MOST_ROWS, LONGEST = 20, 40
# Of a report: prompts for the paths to the logits and to queries, receivers in a set, operations for a head's inputs.
MOST_PROMPTS, MOST_QUERIES, MOST_SET, MOST_OPERATIONS = 16, 8, 6, 2e12


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
    max_memory: int | None = None,
    out: str | Path | None = None,
    progress: bool | None = None,
    executor: str | Executor = "local",
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
        metric, max_memory, out, progress, executor: as `interp.sweep` takes them.

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
    frames = []
    for group in _groups(starts, len(points) * pairs.mask.numel() * model.cfg.d_model * model.dtype.itemsize):
        reads = arriving(
            model, pairs, graph, group, points, through=through, base=base, source=source, progress=progress
        )
        cells = []
        for end, (at, start), place in itertools.product(ends, enumerate(group), _places(pos)):
            own = {name: value[at] for name, value in reads.items()}
            edits = routes(model, graph, start, end, own, pos=next(iter(place.values()), None))
            if edits:
                cells.append(Variant(edits, {"receiver": end.name, **_labels(graph.senders[start]), **place}))
        frames.append(
            sweep(
                model,
                pairs,
                cells,
                metric,
                base=base,
                source=source,
                max_memory=max_memory,
                out=None if out is None else Path(out) / f"senders-{group[0]:05d}",
                progress=progress,
                executor=executor,
            )
        )
    frame = pd.concat(frames, ignore_index=True).assign(direction=direction, through=through)
    frame = frame.astype({name: "Int64" for name in ("layer", *HEADS, "pos") if name in frame})
    return frame[[name for name in (*CELL[:-1], *MEASURED) if name in frame]]


def _groups(starts: Sequence[int], each: int) -> Iterator[Sequence[int]]:
    """Senders whose arriving values fit into memory together; which they are depends on the prompts and model alone."""
    size = max(1, MOST_BYTES // each)
    for first in range(0, len(starts), size):
        yield starts[first : first + size]


def _labels(node: Node) -> dict[str, Any]:
    site = "embed" if node.kind == "input" else node.site.rpartition("hook_")[2]
    own = {"head": None} if node.axis is None else {node.axis: node.head}
    return {"sender": node.label, "site": site, "layer": max(node.layer, 0), **own}


def _places(pos: int | str | Sequence[int | str] | None) -> list[dict[str, int | str]]:
    """The label of every place: a position, a role, or nothing for all positions at once."""
    if pos is None:
        return [{}]
    given: list[Any] = [pos]
    if isinstance(pos, Iterable) and not is_whole(pos):
        given = pos.split(",") if isinstance(pos, str) else list(pos)
    found: list[dict[str, int | str]] = []
    for one in given:
        if not isinstance(one, str) and not is_whole(one):
            raise PromptError(f"pos must be a position, a role, or several of them, not {shown(pos)}")
        text = str(one).strip() if isinstance(one, str) else str(int(one))
        found.append({"pos": int(text)} if text.lstrip("-").isdecimal() else {"role": text})
    return found


@checked
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean effect of every path over prompts with intervals and p, the largest magnitudes first.

    `p_adjusted` holds the share of false discoveries among all paths (Benjamini-Hochberg).
    """
    table = stats.tested(frame, by=[name for name in CELL if name in frame], value="effect", rounding=of_effect(frame))
    table["metric"] = "effect on " + table["metric"]
    return table.sort_values("value", key=abs, ascending=False, kind="stable", ignore_index=True)


@checked
def plot(frame: pd.DataFrame) -> Figure:
    """Heads as a grid, layer by head, a panel for every receiver; blue moves the answer to that of the source run.

    Of a frame without heads, or with few of them, the paths with the largest effects are bars.
    """
    if why := stats.why_nothing(frame, "effect"):
        return figures.nothing(why)
    table = stats.summarise(frame, by=[name for name in CELL if name in frame], value="effect")
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
    strongest = table["value"].abs().groupby(table["sender"], sort=False).max().nlargest(MOST_ROWS).index
    kept = table[table["sender"].isin(strongest)]
    if table["sender"].nunique() > len(strongest):
        title = (
            f"{title or 'Paths'}: the {len(strongest)} of {table['sender'].nunique()} senders with the largest effects"
        )
    return figures.bars(
        kept, x="sender", facet=several or None, horizontal=True, diverging=True, label=label, title=title
    )


def report(
    model: HookedModel, pairs: PromptPairs, results: Mapping[str, pd.DataFrame], *, progress: bool | None = None
) -> tuple[pd.DataFrame, Section, list[str]]:
    """The section of a task's report: back from the logits, to what the heads or layers that write there read, and on.

    Of heads these are the queries at the last position; a state-space layer reads everywhere.
    """
    import pandas as pd

    first = _some(pairs, MOST_PROMPTS)
    frame = run(model, first, senders="all", progress=progress)
    table = summary(frame)
    mixers = table[table["site"].isin(MIXED)]
    first_layer = mixers["layer"].min()
    writers = _writers(mixers)
    sure = table[table["p_adjusted"] < stats.SURE]["value"]
    told = [
        f"Directly to the logits, {_strongest(table)}. Of {len(table)} senders {(sure > 0).sum()} move the answer when "
        f"they are patched towards that of the corrupt prompt, and {(sure < 0).sum()} away from it (p < {stats.SURE}, "
        "corrected for all)."
    ]
    frames, tables = [frame], [first_rows("The direct paths to the logits with the largest effect", table, 10)]
    items = [
        _item("paths_logits", f"Direct paths from every {_told_of(mixers)} to the logits", frame, table, len(pairs))
    ]
    intos = []
    for kind, names in _kinds(writers).items():
        receivers = _inputs(names, ["q"])
        if max(map(_layer, names)) <= first_layer:
            continue
        most = MOST_QUERIES if kind == "head" else min(MOST_QUERIES, _affordable(model, pairs, names[0], receivers))
        pos = -1 if kind == "head" else None
        paths = run(model, _some(pairs, most), receivers="+".join(receivers), pos=pos, progress=progress)
        intos.append(summary(paths))
        read = "what their queries at the last position read" if kind == "head" else "what their layers read"
        told.append(
            f"The {kind}s that help most there are {', '.join(names)}. Of {read}, all patched together, "
            f"{_strongest(intos[-1])}."
        )
        frames.append(paths)
        whose, tag = ("the queries of ", "queries") if kind == "head" else ("", kind.split()[-1] + "s")
        ends = ", ".join(names if kind == "head" else receivers)
        items.append(_item(f"paths_{tag}", f"Direct paths to {whose}{ends}", paths, intos[-1], len(pairs)))
    if intos:
        into = pd.concat(intos).sort_values("value", key=abs, ascending=False, kind="stable")
        earlier = _earlier(results, into[into["layer"] > first_layer], writers)
        if earlier is not None:
            receivers = _inputs([earlier], list(READS))
            few = _some(pairs, _affordable(model, pairs, earlier, receivers))
            inputs = run(model, few, receivers=receivers, progress=progress)
            reads = summary(inputs)
            told.append(f"One step further back, of what {earlier} reads, {_strongest(reads, to=True)}.")
            frames.append(inputs)
            items.append(_item("paths_inputs", f"Direct paths to the inputs of {earlier}", inputs, reads, len(pairs)))
    intro = (
        "A path is patched: the clean prompt runs with one receiver's input as if one sender had written what it "
        "writes in the corrupt prompt. The effect is 0 where that changes nothing and 1 where it gives the corrupt "
        "prompt's answer. Receivers that do the same stand in for one another, so those are patched together."
    )
    section = Section(title="Path patching", anchor="paths", text=[intro, *told], figures=items, tables=tables)
    return pd.concat(frames, ignore_index=True), section, told


def _some(pairs: PromptPairs, most: int) -> PromptPairs:
    """At most so many of the prompts, evenly drawn."""
    count = min(most, len(pairs))
    return pairs[[at * len(pairs) // count for at in range(count)]]


def _kinds(writers: Sequence[str]) -> dict[str, list[str]]:
    """What writes, by what it is called: heads, heads of Mamba-2, and whole mixers."""
    found: dict[str, list[str]] = {}
    for name in writers:
        found.setdefault(Part.parse(name).row.word, []).append(name)
    return found


def _layer(name: str) -> int:
    """The layer of a head or mixer."""
    return Part.parse(name).layer or 0


def _inputs(names: Sequence[str], reads: Sequence[str]) -> list[str]:
    """The receivers that heads and mixers read by; a state-space layer has one."""
    found = [
        f"{name}:{read}" if part.row.inputs else Part("mixer", part.layer).name
        for name, part in ((name, Part.parse(name)) for name in names)
        for read in reads
    ]
    return list(dict.fromkeys(found))


def _told_of(table: pd.DataFrame) -> str:
    """What a report calls the senders of a table: head, mixer, or both."""
    words = {"mixer" if Part.parse(name).kind == "mixer" else "head" for name in table["sender"]}
    return " and ".join(sorted(words))


def _affordable(model: HookedModel, pairs: PromptPairs, name: str, receivers: Sequence[str]) -> int:
    """For how many prompts a report patches what a head or mixer reads: all of them where the model is small."""
    layer = _layer(name)
    weights = sum(weight.numel() for name, weight in model.named_parameters() if "blocks." in name)
    behind = (model.cfg.n_layers - layer) / model.cfg.n_layers
    cells = len(receivers) * sum(max(n_heads(model.cfg, at), 1) for at in range(layer))
    return max(4, int(MOST_OPERATIONS / (2 * weights * behind * pairs.mask.shape[1] * cells)))


def _writers(mixers: pd.DataFrame) -> list[str]:
    """The heads, or mixers, with the largest effects that help the answer; where none is certain, the best one."""
    helping = mixers[(mixers["p_adjusted"] < stats.SURE) & (mixers["value"] > 0)]
    best = mixers.sort_values("value", ascending=False)
    return list((helping if len(helping) else best.head(1))["sender"].head(MOST_SET))


def _earlier(results: Mapping[str, pd.DataFrame], into: pd.DataFrame, writers: Sequence[str]) -> str | None:
    """What to ask next: by activation patching where it was measured, else the sender that tells the writers most."""
    patched = results.get("activation_patching")
    names = list(into["sender"])
    if patched is not None and {"site", "layer", "effect"} <= set(patched):
        means = patched.assign(sender=_patched_names(patched)).groupby("sender")["effect"].mean()
        ranked = means.sort_values(key=abs, ascending=False).index
        names = [name for name in ranked if name in names] or names
    return next((name for name in names if name not in writers), None)


def _patched_names(patched: pd.DataFrame) -> list[str | None]:
    """What the rows of activation patching patch at all positions, as senders are called; None for anything else."""
    places = {"pos", "role", "query", "key", "channel"} & set(patched)
    somewhere = patched[list(places)].notna().any(axis=1) if places else [False] * len(patched)
    columns = [name for name in ("site", "layer", *HEADS) if name in patched]
    found: list[str | None] = []
    for *row, elsewhere in zip(*(patched[name] for name in columns), somewhere, strict=True):
        part = None if elsewhere else part_of(dict(zip(columns, row, strict=True)))
        found.append(None if part is None or row[0] != part.row.site or row[0] not in MIXED else part.name)
    return found


def _strongest(table: pd.DataFrame, *, to: bool = False) -> str:
    """The path with the largest effect, in words."""
    best = table.iloc[0]
    if best["value"] != best["value"]:
        return f"there is no effect to measure: {best['reason']}"
    bounds = f", 95% interval {best['ci_low']:+.2f} to {best['ci_high']:+.2f}" if best["n"] > 1 else ""
    path = f"the path from {best['sender']}" + (f" to {best['receiver']}" if to else "")
    prompts = "1 prompt" if best["n"] == 1 else f"{best['n']} prompts"
    return f"{path} has the largest effect ({best['value']:+.2f}{bounds}, {prompts})"


def _item(name: str, title: str, frame: pd.DataFrame, table: pd.DataFrame, n: int) -> FigureItem:
    where = " at the last position" if "pos" in frame else ""
    some = frame["prompt"].nunique()
    count = f"{some} prompts" if some == n else f"{some} of {n} prompts, evenly drawn"
    caption = f"Mean over {count}; the receiver's input is changed{where or ' everywhere'}."
    return FigureItem(name, title, caption, plot(frame), table)


main = study_command(
    run,
    plot=plot,
    summary=summary,
    options=[
        click.option("--metric", default="logit_diff", show_default=True, help="logit_diff, log_prob, kl, ..."),
        click.option("--direction", type=click.Choice(list(DIRECTIONS)), default="noise", show_default=True),
        click.option("--pos", help="Where the receiver's input is changed: -1, S2, several as S2,END.  [everywhere]"),
        click.option("--through", type=click.Choice(list(THROUGH)), default="direct", show_default=True),
        click.option("--sender", "senders", help="mixers, heads, mlps, input, all, or names: L3H1,m4.  [mixers]"),
        click.option("--receiver", "receivers", help="logits, L9H9:q, m4, mixer 3, several: L9H9:q,L9H6:q.  [logits]"),
    ],
)

if __name__ == "__main__":
    main()
