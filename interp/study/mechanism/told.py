"""A mechanism in words: one sentence for each part that is drawn, and two or three for the summary of a report.

1. A percentage is a part of the difference between the clean and the corrupt prompts, with its 95% interval in
   brackets: of a part alone what patching it gives back (or, where it is said, what ablating it takes away), of what it
   feeds what passes there.
2. Only what is drawn is said. What was not measured is named, with the study that would measure it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.names import Part
from interp.study.mechanism.evidence import LAST
from interp.study.sentences import counted, listed

if TYPE_CHECKING:
    import pandas as pd

    from interp.study.mechanism.drawn import Mechanism

INPUTS = {"q": "the queries of ", "k": "the keys of ", "v": "the values of ", "": ""}
NAMED = 3  # parts that one sentence of the summary names
PERCENT = "Percentages are parts of the difference between the clean and the corrupt prompts."
HOW = (
    f"{PERCENT[:-1]}, with 95% intervals over prompts in brackets. A part's own is what patching its clean output into "
    "the corrupt prompts gives back. Heads read by their queries and keys (where they look) and their values (what "
    "they take from there)."
)


def sentences(found: Mechanism) -> list[str]:
    """A sentence for every part that is drawn, in the order of computation, with the intervals of its numbers."""
    if found.says:
        return [found.says]
    told = [_of_part(found, name) for name in found.parts]
    more = found.passed - len(found.parts)
    if more > 0:
        told.append(
            f"{counted(more, 'weaker part')} also passed the tests and {'is' if more == 1 else 'are'} not drawn."
        )
    if found.left_out:
        told.append(f"Not measured, and so not drawn: {listed(found.left_out)}.")
    return told


def _of_part(found: Mechanism, name: str) -> str:
    """What one part does."""
    own = found.frame[found.frame["component"] == name]
    parts, looks, paths, direct = (own[own["kind"] == kind] for kind in ("part", "look", "path", "direct"))
    best, roles = next(parts.itertuples()), [f"`{role}`" for role in parts["role"] if role]
    how = "" if best.by == "patching" else "when ablated "
    does = [f"looks from `{row.role}` at `{row.to}` (attention {_number(row, '.2f')})" for row in looks.itertuples()]
    if not does:
        does = [
            f"acts at {listed(roles) if roles else 'no single role'}"
            + (" against the right answer" if best.share < 0 else "")
        ]
    for row in direct.itertuples():
        does.append(f"adds {_number(row, '+.2f')} to the logit difference directly")
    for row in paths.itertuples():
        does.append(f"feeds {_readers(row)} ({_number(row, '+.0%')})")
    return f"{name} ({how}{_number(best, '+.0%')}) {listed(does)}."


def in_short(found: Mechanism) -> list[str]:
    """What a summary says: who writes the answer, where the parts look, and what tells them."""
    if found.says:
        return [found.says]
    direct, looks, paths = (found.frame[found.frame["kind"] == kind] for kind in ("direct", "look", "path"))
    told = [*_written(found, direct), *_looked(looks), *_fed(paths)]
    if not told:
        parts = found.frame[found.frame["kind"] == "part"].drop_duplicates("component").head(NAMED)
        told.append(f"The parts that move the answer most are {_named(parts, '+.0%')}.")
    return [f"{one[:-1]} ({{figure:mechanism}})." if at == 0 else one for at, one in enumerate(told)]


def _written(found: Mechanism, direct: pd.DataFrame) -> list[str]:
    """Who writes for the right answer, and who against it."""
    where = "the last position" if found.layout.answer == LAST else f"`{found.layout.answer}`"
    sides = []
    for does, rows in (("for the right answer", direct["value"] > 0), ("against it", direct["value"] < 0)):
        own = direct[rows].sort_values("value", key=abs, ascending=False).head(NAMED)
        if len(own):
            sides.append(f"{_named(own, '+.2f')} {_verb('write', len(own))} {does}")
    if not sides:
        return []
    said = "; ".join(sides)
    said = said if len(sides) == 2 else said.replace("against it", "against the right answer")
    return [f"At {where}, where the answer is read, {said}. Numbers are what each adds to the logit difference."]


def _looked(looks: pd.DataFrame) -> list[str]:
    """Which parts look from where at what: those of the strongest parts first."""
    strongest = looks.sort_values("share", key=abs, ascending=False)
    told = [
        f"{listed(sorted(own['component'], key=Part.parse))} {_verb('look', len(own))} from `{role}` at `{to}`"
        for (role, to), own in strongest.groupby(["role", "to"], sort=False)
    ]
    return [f"{'; '.join(told[:NAMED])}."] if told else []


def _fed(paths: pd.DataFrame) -> list[str]:
    """What the strongest paths feed, those to the same parts in one clause."""
    if paths.empty:
        return []
    clauses = [
        f"{_named(own, '+.0%')} {_verb('feed', len(own))} {_readers(next(own.itertuples()))}"
        for _, own in paths.head(NAMED).groupby(["to", "reads"], sort=False)
    ]
    return [f"{'; '.join(clauses)}. {PERCENT}"]


def _named(rows: pd.DataFrame, form: str) -> str:
    return listed([f"{row.component} ({_number(row, form)})" for row in rows.itertuples()])


def _verb(word: str, number: int) -> str:
    return f"{word}s" if number == 1 else word


def description(found: Mechanism) -> str:
    """The drawing for readers who cannot see it."""
    roles = ", ".join(found.layout.roles)
    return f"The roles {roles} as columns, depth downwards. {' '.join(sentences(found))}".replace("`", "")


def _readers(row: Any) -> str:
    return INPUTS[row.reads] + listed(sorted(row.to.split(" + "), key=Part.parse))


def _number(row: Any, form: str) -> str:
    """A number with its interval, as `+1.20 [0.90, 1.50]`."""
    bare = form.lstrip("+")
    sure = "" if row.ci_low != row.ci_low else f" [{row.ci_low:{bare}}, {row.ci_high:{bare}}]"
    return f"{row.value:{form}}{sure}"
