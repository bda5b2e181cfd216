"""What the tables of a report prove of each part of a model: that it matters, where, what it reads and what it feeds.

A part is a head, a head of a Mamba-2 layer, the mixer of a Mamba-1 layer, or an MLP. Effects are parts of the
difference between the logit differences of the clean and the corrupt prompt: 1 is all of it, positive helps the answer.
Every number is a mean over prompts. It counts only if it is `sure`: its p, corrected for all that the same study
tested, is below `stats.SURE`, it is more than rounding, and its magnitude is at least `LEAST`.

1. `parts_that_matter`: a part matters if patching its clean output into the corrupt prompts moves the answer
   (activation patching; an MLP is patched at one role at a time), or if the clean prompts lose the answer without it
   (ablation).
2. `acting`: it acts at the roles where patching its output there alone counts, and does at least half as much as at the
   strongest of them.
3. `writing`: it writes the answer if its direct contribution to the logit difference counts (direct logit attribution)
   and so does, with the same sign, the direct path from it to the logits (path patching, where that was made).
4. `looking`: at a role where it acts it looks at the role that gets most of its attention there, of another position,
   with at least `LEAST_LINK` on average (attention patterns; the share of hidden attention of a state-space layer).
5. `feeding`: it feeds another part if the direct path from it to what that part reads counts, among all paths between
   parts that matter (path patching). Parts that do the same (`alike`) are patched together: such a path is to all of
   them. A head that shares keys and values with others reads what they read by. Where the path to some of such parts
   alone is as strong, within the interval, it stands for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp import stats
from interp.hooked.model import HookedModel
from interp.names import Part, part_of
from interp.prompts.pair_checks import MASK
from interp.prompts.pairs import PromptPairs
from interp.rounding import of_effect, of_rows
from interp.text.characters import visible_token

if TYPE_CHECKING:
    import pandas as pd

    from interp.study.sections import Results

LEAST = 0.05  # of the difference between the clean and the corrupt prompt
LEAST_LINK = 0.2  # mean attention from one role to another
STRONG = 0.5  # of a part's effect at its strongest role
MOST_PARTS = 12  # that are drawn
KINDS = ("head", "ssm_head", "mixer", "mlp")
WHOLE = {"channel": "mixer", "expert": "mlp"}  # kinds of rows of direct logit attribution, and the part they belong to
LAST = "last position"
NUMBERS = ["value", "ci_low", "ci_high", "n", "p_adjusted"]


@dataclass(frozen=True)
class Layout:
    """The roles of some prompts as the columns of a drawing.

    Attributes:
        roles: the roles in the order of their positions, and the role where the answer is read.
        tokens: of the first prompt, one for each role.
        answer: the role where the answer is read; `LAST` where the last position has no other name.
        right: the first prompt's right answer, as text.
        sharing: how many heads share keys and values.
    """

    roles: tuple[str, ...]
    tokens: tuple[str, ...]
    answer: str
    right: str = ""
    sharing: int = 1

    @property
    def named(self) -> bool:
        """Whether there is another role than that of the answer."""
        return len(self.roles) > 1

    @classmethod
    def of(cls, pairs: PromptPairs, model: HookedModel) -> Layout:
        """The layout of some prompts for a model."""
        means = {role: float(pairs.role_positions(role).float().mean()) for role in pairs.role_names}
        roles = sorted(means, key=lambda role: means[role])
        read_at = pairs.read_at
        at_answer = [role for role in roles if bool((pairs.role_positions(role) == read_at).all())]
        answer = MASK if MASK in roles else at_answer[-1] if at_answer else LAST
        places = dict(pairs.roles[0]) | {answer: int(read_at[0])}
        order = [*(role for role in roles if role != answer), answer] if answer != MASK else roles
        tokens = [visible_token(pairs.str_tokens[0][places[role]]) for role in order]
        right = int(pairs.answers[0, 0])
        said = model.answer_tokenizer.str_tokens([right])[0] if model.answer_tokenizer else str(right)
        sharing = model.cfg.n_heads // max(model.cfg.n_kv_heads, 1) if model.cfg.has_attention else 1
        return cls(tuple(order), tuple(tokens), answer, visible_token(said), max(sharing, 1))


def difference(results: Results) -> float:
    """The mean logit difference of the clean prompts less that of the corrupt ones; 0 where it is not known."""
    frame = results.get("behaviour")
    if frame is None:
        return 0.0
    means = frame[frame["metric"] == "logit_diff"].groupby("side")["value"].mean()
    gap = float(means.get("clean", 0.0) - means.get("corrupt", float("nan")))
    return gap if gap == gap else 0.0


# 1. Which parts matter.
def parts_that_matter(results: Results) -> pd.DataFrame:
    """The parts that matter, the strongest first.

    Returns:
        `component, layer`, `by` ("patching" or "ablation", by which it matters most), `value, ci_low, ci_high, n,
        p_adjusted` in parts of the difference.
    """
    import pandas as pd

    found = []
    if "activation_patching" in results:
        whole, at_role = _patched(results["activation_patching"])
        mlps = _rows(at_role, (Part.parse(name).kind == "mlp" for name in at_role["component"]))
        found += [table.assign(by="patching") for table in (whole, mlps)]
    gap = difference(results)
    if "ablation" in results and gap > 0:
        found.append(_ablated(results["ablation"], gap).assign(by="ablation"))
    columns = ["component", "layer", "by", *NUMBERS]
    table = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)
    table = stats.strongest_first(table.astype({"value": float})).drop_duplicates("component")
    parts = [Part.parse(name) for name in table["component"]]
    headed = _layers_of_heads(results)
    table = table.assign(layer=[part.layer for part in parts])
    kept = _rows(table, (part.kind != "mixer" or part.layer not in headed for part in parts))
    return kept[columns].reset_index(drop=True)


def main_parts(results: Results) -> list[Part]:
    """The strongest of the parts that matter, as many as are drawn."""
    return [Part.parse(name) for name in parts_that_matter(results)["component"].head(MOST_PARTS)]


def found_by(results: Results, study: str) -> dict[str, float]:
    """The parts that count by one study alone, and their effects: in logits of direct logit attribution, else in parts
    of the difference.
    """
    gap = difference(results)
    if study == "activation_patching":
        return _values(parts_that_matter({study: results[study]}))
    if gap <= 0:
        return {}
    if study == "ablation":
        return _values(_ablated(results[study], gap))
    table = _direct(results[study], gap)
    return _values(table.assign(value=table["value"] * gap))


def _values(table: pd.DataFrame) -> dict[str, float]:
    return dict(zip(table["component"], table["value"].astype(float), strict=True))


# 2. Where they act.
def acting(results: Results, names: Sequence[str]) -> pd.DataFrame:
    """The roles at which parts act.

    Returns:
        `component, role, value, ci_low, ci_high, n, p_adjusted`, each part's strongest role first.
    """
    import pandas as pd

    if "activation_patching" not in results:
        return pd.DataFrame(columns=["component", "role", *NUMBERS])
    table = _patched(results["activation_patching"])[1]
    table = stats.strongest_first(table[table["component"].isin(names)])
    most = table["value"].abs().groupby(table["component"]).transform("max")
    return table[table["value"].abs() >= STRONG * most][["component", "role", *NUMBERS]].reset_index(drop=True)


# 3. Which of them write the answer.
def writing(results: Results, names: Sequence[str]) -> pd.DataFrame:
    """The parts that write the answer directly.

    Returns:
        `component, value, ci_low, ci_high, n, p_adjusted`, in logits.
    """
    import pandas as pd

    gap = difference(results)
    if "head_attribution" not in results or gap <= 0:
        return pd.DataFrame(columns=["component", *NUMBERS])
    table = _direct(results["head_attribution"], gap)
    if "path_patching" in results:
        paths = results["path_patching"]
        to_logits = _paths(paths[paths["receiver"] == "logits"])
        sign = dict(zip(to_logits["sender"], to_logits["value"] > 0, strict=True))
        same = [sign.get(name) == (value > 0) for name, value in zip(table["component"], table["value"], strict=True)]
        table = _rows(table, same)
    numbers = {name: table[name] * gap for name in ("value", "ci_low", "ci_high")}
    return table.assign(**numbers)[table["component"].isin(names)][["component", *NUMBERS]].reset_index(drop=True)


# 4. What they look at.
def looking(results: Results, names: Sequence[str], layout: Layout) -> pd.DataFrame:
    """The other role that parts look at most from each role.

    Returns:
        `component, role, looks_at, value, ci_low, ci_high, n`.
    """
    import pandas as pd

    columns = ["component", "role", "looks_at", *NUMBERS[:-1]]
    frame = results.get("attention_patterns")
    if frame is None or not layout.named:
        return pd.DataFrame(columns=columns)
    frame = frame.assign(component=_components(frame)).query("component in @names")
    ends = frame.groupby("prompt")["query"].transform("max")
    role = frame["query_role"].where((frame["query_role"] != "") | (frame["query"] != ends), LAST)
    frame = frame.assign(role=role, looks_at=frame["key_role"], metric="attention")
    named = frame[frame["role"].isin(layout.roles) & frame["looks_at"].isin(layout.roles)]
    if named.empty:
        return pd.DataFrame(columns=columns)
    table = stats.summarise(named, by=["component", "role", "looks_at", "metric"])
    best = stats.strongest_first(table).drop_duplicates(["component", "role"])
    return best[(best["role"] != best["looks_at"]) & (best["value"] >= LEAST_LINK)][columns].reset_index(drop=True)


# 5. Which of them feed one another.
def feeding(results: Results, names: Sequence[str], layout: Layout) -> pd.DataFrame:
    """The direct paths from parts to what other parts read.

    Returns:
        A row for every sender and set of receivers that were patched together: `sender, receiver` (names joined by
        " + "), `reads` ("q", "k", "v" or ""), `value, ci_low, ci_high, n, p_adjusted`.
    """
    import pandas as pd

    columns = ["sender", "receiver", "reads", *NUMBERS]
    if "path_patching" not in results:
        return pd.DataFrame(columns=columns)
    frame = results["path_patching"]
    frame = frame[frame["sender"].isin(names) & (frame["receiver"] != "logits")]
    readers = {end: _readers(end, names, layout.sharing) for end in dict.fromkeys(frame["receiver"])}
    rows = []
    for row in _paths(_rows(frame, (bool(readers[end]) for end in frame["receiver"]))).to_dict("records"):
        sender, reads = Part.parse(row["sender"]), Part.parse(row["receiver"].split(" + ")[0]).reads
        later = [name for name in readers[row["receiver"]] if sender < Part.parse(name)]
        rows.append({**row, "receiver": " + ".join(later), "reads": reads or ""})
    found = stats.strongest_first(pd.DataFrame(rows, columns=columns).astype({"value": float}))
    return _narrowest(found.drop_duplicates(["sender", "receiver", "reads"]).reset_index(drop=True))


def _narrowest(paths: pd.DataFrame) -> pd.DataFrame:
    """Of two paths from one part, by one input, of which one is to more parts than the other: the one to fewer, if its
    effect can be that of both.
    """
    rows = [(row.sender, row.reads, frozenset(row.receiver.split(" + ")), row) for row in paths.itertuples()]
    explained = [
        any(
            (sender, reads) == (other, by) and fewer < ends and not abs(row.value) - abs(one.value) > _half(row)
            for other, by, fewer, one in rows
        )
        for sender, reads, ends, row in rows
    ]
    return _rows(paths, (not one for one in explained)).reset_index(drop=True)


def _half(row: Any) -> float:
    """Half the width of an interval, 0 where there is none."""
    width = (row.ci_high - row.ci_low) / 2
    return float(width) if width == width else 0.0


def alike(results: Results, names: Sequence[str], layout: Layout) -> list[list[str]]:
    """Parts that do the same: heads that act at one role, look at one role, and move the answer one way.

    Each stands in for the others where one is patched, so that paths to them are patched together.
    """
    acts, looks = acting(results, names), looking(results, names, layout)
    value = parts_that_matter(results).set_index("component")["value"]
    role = acts.drop_duplicates("component").set_index("component")["role"]
    target = {(row.component, row.role): row.looks_at for row in looks.itertuples()}
    groups: dict[object, list[str]] = {}
    for name in names:
        part, at = Part.parse(name), role.get(name)
        key = (at, target.get((name, at)), bool(value[name] > 0)) if part.row.inputs else name
        groups.setdefault((part.kind, key), []).append(name)
    return list(groups.values())


def _readers(receiver: str, names: Sequence[str], sharing: int) -> list[str]:
    """The parts among these that read by a set of receivers; none where one of the set is read by no such part."""
    ends = [Part.parse(name) for name in receiver.split(" + ")]
    by_end = [[name for name in names if _reads_by(Part.parse(name), end, sharing)] for end in ends]
    return list(dict.fromkeys(name for own in by_end for name in own)) if all(by_end) else []


def _reads_by(part: Part, end: Part, sharing: int) -> bool:
    """Whether a part reads by this receiver: its own, or one that it shares with other heads of its layer."""
    if part.layer != end.layer or part.index is None or end.index is None:
        return (part.layer, part.kind.replace("ssm_head", "mixer")) == (end.layer, end.kind)
    return part.kind == "head" and end.index == (part.index // sharing if end.kind == "kv_head" else part.index)


def _rows(table: pd.DataFrame, kept: Iterable[bool]) -> pd.DataFrame:
    """The rows for which something holds; of an empty table none."""
    import pandas as pd

    return table[pd.Series(list(kept), table.index, dtype=bool)]


def _layers_of_heads(results: Results) -> set[int]:
    """The state-space layers that have heads, and are told by these."""
    frames = [results[study] for study in ("activation_patching", "ablation") if study in results]
    there = [frame.loc[frame["ssm_head"].notna(), "layer"] for frame in frames if "ssm_head" in frame]
    return {int(layer) for layers in there for layer in layers.unique()}


def _components(frame: pd.DataFrame) -> pd.Series[str]:
    """The parts that rows are about, by name; "" for anything else."""
    import pandas as pd

    if "component" in frame:
        return frame["component"].fillna("")
    columns = [name for name in ("site", "layer", "head", "ssm_head", "channel") if name in frame]
    cells = list(frame[columns].itertuples(index=False, name=None))
    parts = {cell: part_of(dict(zip(columns, cell, strict=True))) for cell in dict.fromkeys(cells)}
    names = {cell: part.name if part is not None and part.kind in KINDS else "" for cell, part in parts.items()}
    return pd.Series([names[cell] for cell in cells], index=frame.index, dtype=object)


def _patched(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What counts of activation patching: of whole parts, and of parts at single roles."""
    import pandas as pd

    frame = frame[(frame["direction"] == "denoise") & (frame["metric"] == "logit_diff")]
    frame = frame.assign(component=_components(frame))
    places = [name for name in ("pos", "query", "key") if name in frame]
    frame = frame[(frame["component"] != "") & frame[places].isna().all(axis=1)]
    role = frame["role"] if "role" in frame else pd.Series(None, frame.index, dtype=object)
    named = role.notna() & (role != "")
    whole, at_role = frame[~named], frame[named]
    return (
        _sure(whole, ["component"], rounding=of_effect(whole)),
        _sure(at_role.assign(role=role[named]), ["component", "role"], rounding=of_effect(at_role)),
    )


def _ablated(frame: pd.DataFrame, gap: float) -> pd.DataFrame:
    """What counts of single ablations, by the kind with which heads or mixers were ablated: what is lost without it."""
    frame = frame[(frame["stage"] == "single") & (frame["metric"] == "logit_diff")]
    kinds = list(dict.fromkeys(frame["kind"]))
    frame = frame[frame["kind"] == next((kind for kind in kinds if kind != "zero"), "zero")]
    names = {name: Part.parse(name) for name in dict.fromkeys(frame["component"].dropna())}
    frame = frame[frame["component"].isin([name for name, part in names.items() if part.kind in KINDS])]
    return _sure(frame, ["component"], rounding=of_rows(frame, "base_value"), unit=gap)


def _direct(frame: pd.DataFrame, gap: float) -> pd.DataFrame:
    """What counts of direct logit attribution."""
    frame = frame[frame["metric"] == "logit_diff"]
    kind = frame["kind"].replace(WHOLE)
    frame = frame.assign(kind=kind)[kind.isin(KINDS)]
    cells = frame[["component", "kind", "layer"]].drop_duplicates().itertuples(index=False)
    names = {at.component: _whole(at.component, at.kind, int(at.layer)) for at in cells}
    frame = frame.assign(component=frame["component"].map(names))
    frame = frame.groupby(["component", "metric", "prompt"], sort=False, as_index=False)["value"].sum()
    return _sure(frame, ["component"], value="value", rounding=0.0, unit=gap)


def _whole(component: str, kind: str, layer: int) -> str:
    """The part that a row of direct logit attribution belongs to."""
    return component if kind in ("head", "ssm_head") else Part(kind, layer).name


def _paths(frame: pd.DataFrame) -> pd.DataFrame:
    """What counts of direct paths that were patched."""
    frame = frame[(frame["metric"] == "logit_diff") & (frame["direction"] == "noise") & (frame["through"] == "direct")]
    by = [name for name in ("receiver", "sender", "pos", "role") if name in frame]
    return _sure(frame, by, rounding=of_effect(frame))


def _sure(
    frame: pd.DataFrame, by: list[str], *, rounding: Any, value: str = "effect", unit: float = 1.0
) -> pd.DataFrame:
    """The cells of a study that count, among all that it tested, with their intervals, in multiples of `unit`."""
    import pandas as pd

    by = [*by, "metric"]
    if frame.empty:
        return pd.DataFrame(columns=[*by, *NUMBERS])
    table = stats.tested(frame, by=by, value=value, rounding=rounding, n_resamples=1)
    kept = table[(table["p_adjusted"] < stats.SURE) & (table["value"].abs() >= LEAST * unit)]
    if kept.empty:
        return kept
    # Intervals take long, and few cells need one.
    cells = frame[[*by, "prompt", value]].merge(kept[by], on=by)
    exact = stats.summarise(cells, by=by, value=value).merge(kept[[*by, "p_adjusted"]], on=by)
    return exact.assign(**{name: exact[name] / unit for name in ("value", "ci_low", "ci_high")})
