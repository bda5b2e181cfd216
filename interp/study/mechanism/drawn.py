"""The mechanism that the tables of a report support: the elements of one drawing.

1. Nothing is drawn of a model that does not do the task better than by guessing, or of prompts whose two sides do not
   differ: there is nothing to explain, and `says` tells it.
2. The parts that matter are drawn (`parts_that_matter`), at most `MOST_PARTS`, the strongest; how many more passed is
   said.
3. Each stands at the roles where it acts; one that acts at no single role, where the answer is read if it writes the
   answer, else in a column for other places.
4. What it looks at, what it feeds and what it writes is drawn where the tables support it (`interp.study.mechanism.
   evidence` has the rules), and nothing else. A study that was not made leaves its elements out, which is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.names import Part
from interp.study.behaviour import able
from interp.study.mechanism.evidence import (
    LEAST,
    MOST_PARTS,
    Layout,
    acting,
    difference,
    feeding,
    looking,
    parts_that_matter,
    writing,
)
from interp.study.sentences import counted

if TYPE_CHECKING:
    import pandas as pd

    from interp.study.sections import Results

ELEMENT = [
    *("kind", "component", "layer", "role", "to", "reads", "by", "share"),
    *("value", "ci_low", "ci_high", "n", "p_adjusted"),
]
SHOWS = {
    "activation_patching": "at which role a part acts",
    "head_attribution": "which parts write the answer directly",
    "attention_patterns": "what each head looks at",
    "path_patching": "which part feeds another",
}
"""Studies, and what a drawing without them leaves out."""


@dataclass(frozen=True)
class Mechanism:
    """What is drawn, and what is said of it.

    Attributes:
        layout: the columns.
        frame: a row for every element, as `interp.figures.mechanism` takes it; effects are in `share` as parts of the
            difference between the clean and the corrupt prompts, in `value` as they were measured.
        passed: how many parts matter, also those that are not drawn.
        says: why nothing is drawn; "" where something is.
        left_out: what was not measured, in words.
    """

    layout: Layout
    frame: pd.DataFrame
    passed: int
    says: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def parts(self) -> list[str]:
        """The parts that are drawn, in the order of computation."""
        own = self.frame[self.frame["kind"] == "part"]["component"]
        return sorted(set(own), key=Part.parse)


def mechanism(results: Results, layout: Layout) -> Mechanism:
    """The mechanism that the tables of a report support.

    Args:
        results: the measurements of the studies by their names, and those of `interp.study.behaviour` as "behaviour".
        layout: the roles of the prompts.
    """
    import pandas as pd

    # 1. Whether there is anything to explain.
    nothing = pd.DataFrame(columns=ELEMENT)
    why = why_nothing(results)
    if why:
        return Mechanism(layout, nothing, 0, why)
    # 2. The parts that matter.
    every = parts_that_matter(results)
    chosen = every.head(MOST_PARTS)
    if chosen.empty:
        what = "no part of the model moves the answer" + f" by {LEAST:.0%} or more for sure"
        return Mechanism(layout, nothing, 0, f"Nothing is drawn: {what}.")
    names = list(chosen["component"])
    # 3. Where they stand.
    direct, acts = writing(results, names), acting(results, names)
    parts = _placed(chosen, acts, set(direct["component"]), layout)
    # 4. What they do.
    looks = looking(results, names, layout).merge(parts[["component", "role"]], on=["component", "role"])
    elements = [
        parts.assign(kind="part", to="", reads="", share=parts["value"]),
        looks.assign(kind="look", to=looks["looks_at"], reads="", share=looks["value"]),
        _paths(feeding(results, names, layout)),
        direct.assign(
            kind="direct", to="answer", reads="", role=layout.answer, share=direct["value"] / difference(results)
        ),
    ]
    frame = pd.concat([one.reindex(columns=ELEMENT) for one in elements if len(one)], ignore_index=True)
    frame["layer"] = [Part.parse(name).layer for name in frame["component"]]
    has_pattern = any(Part.parse(name).kind != "mlp" for name in names) and layout.named
    left_out = [
        f"{what} (`{study.replace('_', '-')}`)"
        for study, what in SHOWS.items()
        if study not in results and (study != "attention_patterns" or has_pattern)
    ]
    return Mechanism(layout, frame, len(every), left_out=tuple(left_out))


def why_nothing(results: Results) -> str:
    """Why no mechanism can be drawn, before any part is looked at; "" where one may be."""
    if "behaviour" not in results:
        return "Nothing is drawn: it was not measured whether the model does the task."
    ability = able(results["behaviour"])
    if ability.does is None:
        return f"Nothing is drawn: {counted(ability.n)} cannot tell whether the model does the task."
    if not ability.does:
        return "Nothing is drawn: the model does not do the task, so that there is nothing to explain."
    if difference(results) <= 0:
        return "Nothing is drawn: the right answer is no more preferred on the clean prompts than on the corrupt ones."
    if not {"activation_patching", "ablation"} & results.keys():
        return (
            "Nothing is drawn: which parts carry the answer was not measured (the studies `activation-patching` and "
            "`ablation` would show it)."
        )
    return ""


def _placed(chosen: pd.DataFrame, acts: pd.DataFrame, writers: set[str], layout: Layout) -> pd.DataFrame:
    """A row for every part and role where it acts; the numbers are those of the part at all positions."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for part in chosen.to_dict("records"):
        own = acts[acts["component"] == part["component"]]
        roles = [role for role in own["role"] if role in layout.roles]
        if not roles:
            roles = [layout.answer] if part["component"] in writers else [""]
        rows += [{**part, "role": role} for role in roles]
    return pd.DataFrame(rows)


def _paths(paths: pd.DataFrame) -> pd.DataFrame:
    """The strongest path from each part to each set of others, whatever it changes of them."""
    best = paths.drop_duplicates(["sender", "receiver"]) if len(paths) else paths
    return best.assign(kind="path", component=best["sender"], to=best["receiver"], share=best["value"], role="")
