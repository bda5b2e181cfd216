"""Path patching in a report: back from the logits, to what the heads or layers that write there read, and one on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analyses.path_patching import HEADS, MIXED, plot, run, summary
from interp import stats
from interp.circuits.graph import n_heads
from interp.hooked.model import HookedModel
from interp.names import READS, Part, part_of
from interp.prompts.pairs import PromptPairs
from interp.study.fewer_prompts import affordable, evenly
from interp.study.mechanism.evidence import Layout, alike, main_parts
from interp.study.sections import Results, StudyReport
from interp.study.sentences import answered_at, counted, interval
from interp.ui.page import FigureItem, Section, first_rows

if TYPE_CHECKING:
    import pandas as pd

ORDER = 55
MOST_PROMPTS, MOST_QUERIES = 16, 8  # for the paths to the logits, and to queries
MOST_SET = 6  # receivers that are patched together
MOST_OPERATIONS = 2e12  # for the inputs of one head or mixer


def report(model: HookedModel, pairs: PromptPairs, results: Results, *, progress: bool | None = None) -> StudyReport:
    """The section of a task's report: back from the logits, to what the heads or layers that write there read, and on.

    Of heads these are the queries where the answer is read; a state-space layer reads everywhere.
    """
    import pandas as pd

    # 1. Who writes the answer.
    frame = run(model, _some(pairs, MOST_PROMPTS), senders="all", progress=progress)
    table = summary(frame)
    mixers = table[table["site"].isin(MIXED)]
    first_layer, writers = mixers["layer"].min(), _writers(mixers)
    frames, findings = [frame], [_of_the_logits(table)]
    title = f"Direct paths from every {_called(mixers)} to the logits"
    items = [_figure("paths_logits", title, frame, table, len(pairs))]

    # 2. What those read.
    intos: list[pd.DataFrame] = []
    more: list[FigureItem | tuple[str, pd.DataFrame]] = []
    for kind, names in _kinds(writers).items():
        if max(map(_layer, names)) <= first_layer:
            continue
        paths, into, title, read = _into(model, pairs, kind, names, progress)
        findings.append(
            f"The {kind}s that help most there are {', '.join(names)}. Of {read}, all patched together, "
            f"{_strongest(into)}."
        )
        tag = "queries" if kind == "head" else kind.split()[-1] + "s"
        more.append(_figure(f"paths_{tag}", title, paths, into, len(pairs)))
        frames.append(paths)
        intos.append(into)

    # 3. One step further back.
    into = stats.strongest_first(pd.concat(intos)) if intos else table[:0]
    earlier = _earlier(results, into[into["layer"] > first_layer], writers) if intos else None
    if earlier is not None:
        receivers = _inputs([earlier], list(READS))
        inputs = run(
            model, _some(pairs, _affordable(model, pairs, earlier, receivers)), receivers=receivers, progress=progress
        )
        reads = summary(inputs)
        findings.append(f"One step further back, of what {earlier} reads, {_strongest(reads, to=True)}.")
        more.append(_figure("paths_inputs", f"Direct paths to the inputs of {earlier}", inputs, reads, len(pairs)))
        frames.append(inputs)

    # 4. From one to another of the parts that carry the answer.
    if (among := _among(model, pairs, results, progress)) is not None:
        frames.append(among)
        findings.append(f"Among the parts that carry the answer, {_strongest(summary(among), to=True)}.")
    intro = (
        "A path is patched: the clean prompt runs with one receiver's input as if one sender had written what it "
        "writes in the corrupt prompt. The effect is 0 where that changes nothing and 1 where it gives the corrupt "
        "prompt's answer. Receivers that do the same stand in for one another, so those are patched together."
    )
    more.insert(0, first_rows("The direct paths to the logits with the largest effect", table, 10))
    text = [intro, *findings]
    section = Section(title="Path patching", anchor="paths", text=text, figures=items, appendix=more)
    return StudyReport(pd.concat(frames, ignore_index=True), section, findings)


def _into(
    model: HookedModel, pairs: PromptPairs, kind: str, names: Sequence[str], progress: bool | None
) -> tuple[pd.DataFrame, pd.DataFrame, str, str]:
    """The paths to what some heads or mixers read, all patched together: measured, summed up, and called two ways."""
    receivers = _inputs(names, ["q"])
    if kind == "head":
        most, pos, ends = MOST_QUERIES, pairs.answer_place, f"the queries of {', '.join(names)}"
        read = f"what their queries {answered_at(pairs)} read"
    else:
        most = min(MOST_QUERIES, _affordable(model, pairs, names[0], receivers))
        pos, ends, read = None, ", ".join(receivers), "what their layers read"
    paths = run(model, _some(pairs, most), receivers="+".join(receivers), pos=pos, progress=progress)
    return paths, summary(paths), f"Direct paths to {ends}", read


def _among(model: HookedModel, pairs: PromptPairs, results: Results, progress: bool | None) -> pd.DataFrame | None:
    """The paths from each part that carries the answer to what the others read; those that do the same together."""
    names = [part.name for part in main_parts(results)]
    receivers = []
    for group in alike(results, names, Layout.of(pairs, model)):
        parts = [Part.parse(name) for name in group]
        reads = READS if parts[0].row.inputs else [""]
        after = any(Part.parse(name) < part for name in names for part in parts)
        receivers += ["+".join(_input(part, read) for part in parts) for read in reads if after]
    if not receivers:
        return None
    weights = sum(weight.numel() for name, weight in model.named_parameters() if "blocks." in name)
    operations = 2 * weights * pairs.mask.shape[1] * len(receivers) * len(names)
    some = _some(pairs, affordable(operations, MOST_OPERATIONS, least=MOST_QUERIES))
    return run(model, some, receivers=list(dict.fromkeys(receivers)), senders=names, progress=progress)


def _some(pairs: PromptPairs, most: int) -> PromptPairs:
    """At most so many of the prompts, evenly drawn."""
    return pairs[evenly(len(pairs), most)]


def _affordable(model: HookedModel, pairs: PromptPairs, name: str, receivers: Sequence[str]) -> int:
    """For how many prompts what a head or mixer reads is patched: all of them where the model is small."""
    layer = _layer(name)
    weights = sum(weight.numel() for name, weight in model.named_parameters() if "blocks." in name)
    later = (model.cfg.n_layers - layer) / model.cfg.n_layers
    cells = len(receivers) * sum(max(n_heads(model.cfg, at), 1) for at in range(layer))
    return affordable(2 * weights * later * pairs.mask.shape[1] * cells, MOST_OPERATIONS)


def _writers(mixers: pd.DataFrame) -> list[str]:
    """The heads, or mixers, with the largest effects that help the answer; where none is certain, the best one."""
    helping = mixers[(mixers["p_adjusted"] < stats.SURE) & (mixers["value"] > 0)]
    best = mixers.sort_values("value", ascending=False)
    return list((helping if len(helping) else best.head(1))["sender"].head(MOST_SET))


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
    return list(dict.fromkeys(_input(Part.parse(name), read) for name in names for read in reads))


def _input(part: Part, read: str) -> str:
    """The receiver that a part reads by: of a head one of three, and all heads of a state-space layer share one."""
    if part.row.inputs:
        return f"{part.name}:{read}"
    return part.name if part.kind == "mlp" else Part("mixer", part.layer).name


def _called(table: pd.DataFrame) -> str:
    """What the senders of a table are called: head, mixer, or both."""
    words = {"mixer" if Part.parse(name).kind == "mixer" else "head" for name in table["sender"]}
    return " and ".join(sorted(words))


def _earlier(results: Results, into: pd.DataFrame, writers: Sequence[str]) -> str | None:
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


def _of_the_logits(table: pd.DataFrame) -> str:
    sure = table[table["p_adjusted"] < stats.SURE]["value"]
    return (
        f"Directly to the logits, {_strongest(table)}. Of {len(table)} senders {(sure > 0).sum()} move the answer when "
        f"they are patched towards that of the corrupt prompt, and {(sure < 0).sum()} away from it (p < {stats.SURE}, "
        "corrected for all)."
    )


def _strongest(table: pd.DataFrame, *, to: bool = False) -> str:
    """The path with the largest effect, in words."""
    best = table.iloc[0]
    if best["value"] != best["value"]:
        return f"there is no effect to measure: {best['reason']}"
    path = f"the path from {best['sender']}" + (f" to {best['receiver']}" if to else "")
    return (
        f"{path} has the largest effect ({best['value']:+.2f}{interval(best, '+.2f', before=', ')}, "
        f"{counted(best['n'])})"
    )


def _figure(name: str, title: str, frame: pd.DataFrame, table: pd.DataFrame, n: int) -> FigureItem:
    where = "at the mask" if "role" in frame else "at the last position" if "pos" in frame else "everywhere"
    some = frame["prompt"].nunique()
    count = counted(some) if some == n else f"{some} of {n} prompts, evenly drawn"
    caption = f"Mean over {count}; the receiver's input is changed {where}."
    tells = "what its direct path to the logits carries" if name == "paths_logits" else ""
    return FigureItem(name, title, caption, plot(frame, table=table), table, view="cells", tells=tells)
