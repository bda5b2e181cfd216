"""What a report ends with: what is established and how surely, what is not, and what to run next.

1. Established is what the drawing shows: its parts, those that write the answer, and the paths between them, each with
   a corrected p below `stats.SURE`.
2. Not established: parts that move the answer in a way that no study shows, parts that one method finds and others do
   not, checks that failed or were not made, studies that were not made.
3. Next: more prompts where there are few, the studies that are missing, and a closer look at the strongest part whose
   way is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp import stats
from interp.names import Part
from interp.study.mechanism.evidence import LEAST
from interp.study.mechanism.methods import MEASURED, NAMED
from interp.study.sentences import counted, listed

if TYPE_CHECKING:
    import pandas as pd

    from interp.study.mechanism.drawn import Mechanism

FEW = 32  # prompts: with fewer, more are the first thing to try
MOST_NAMED = 6


@dataclass(frozen=True)
class Made:
    """What a report did.

    Attributes:
        task: its name, or the file of its prompts.
        n: how many prompts.
        checks: its checks, with the columns `check` and `result`.
        refused: study -> why it was not made.
        left_out: studies that were not asked for.
    """

    task: str
    n: int
    checks: pd.DataFrame
    refused: Mapping[str, str]
    left_out: Sequence[str]


def conclusion(found: Mechanism, methods: pd.DataFrame, made: Made) -> list[str]:
    """The paragraphs of a conclusion.

    Args:
        found: the mechanism.
        methods: as `interp.study.mechanism.methods.by_method` gives it.
        made: what the report did.
    """
    unknown = [] if found.says else _unexplained(found)
    doubts = [_open(unknown), _disagreement(methods), _of_checks(made.checks), _missing(made)]
    return [
        f"Established. {_established(found)}",
        f"Not established. {' '.join(filter(None, doubts)) or 'Nothing that was asked is left open.'}",
        f"Next. {_next(found, unknown, made)}",
    ]


def _established(found: Mechanism) -> str:
    if found.says:
        return found.says
    count = {kind: found.frame[found.frame["kind"] == kind]["component"].nunique() for kind in ("part", "direct")}
    paths = int((found.frame["kind"] == "path").sum())
    n = int(found.frame["n"].max())
    move = "moves" if found.passed == 1 else "move"
    return (
        f"{counted(found.passed, 'part')} of the model {move} the answer by at least {LEAST:.0%} of the difference "
        f"between the clean and the corrupt prompts (p below {stats.SURE}, corrected for all that was tested; "
        f"{counted(n)}). Of the {count['part']} that are drawn, {count['direct']} write the answer directly, and "
        f"{counted(paths, 'path')} between them passed the same test."
    )


def _unexplained(found: Mechanism) -> list[str]:
    """Parts that move the answer, and neither write it nor feed another part that is drawn; the strongest first."""
    acting = found.frame[found.frame["kind"].isin(["direct", "path"])]["component"]
    parts = found.frame[found.frame["kind"] == "part"].sort_values("share", key=abs, ascending=False)["component"]
    return [name for name in dict.fromkeys(parts) if name not in set(acting)]


def _open(names: Sequence[str]) -> str:
    if not names:
        return ""
    return (
        f"How {_some(names)} {'moves' if len(names) == 1 else 'move'} the answer: no path from there passed the test."
    )


def _disagreement(methods: pd.DataFrame) -> str:
    """Parts that one of several methods finds alone."""
    measured = [name for name in MEASURED.values() if name in methods]
    used = [name for name in (*measured, NAMED["circuit"]) if name in methods]
    if len(used) < 2 or methods.empty:
        return ""
    # A circuit has many nodes that matter little: those that it alone has are no disagreement.
    alone = methods[(methods["methods"] == 1) & methods[measured].notna().any(axis=1)]["part"]
    if alone.empty:
        return ""
    each = "it" if len(alone) == 1 else "each"
    return f"Methods disagree on {_some(list(alone))}: only one of {len(used)} finds {each}."


def _of_checks(checks: pd.DataFrame) -> str:
    failed, not_made = (checks[checks["result"] == result]["check"] for result in ("FAILS", "not checked"))
    told = [f"These checks failed: {listed(list(failed))}."] if len(failed) else []
    told += [f"Not checked: {listed(list(not_made))}."] if len(not_made) else []
    return " ".join(told)


def _missing(made: Made) -> str:
    names = [name.replace("_", "-") for name in (*made.refused, *made.left_out)]
    return f"Studies that were not made: {listed([f'`{name}`' for name in names])}." if names else ""


def _next(found: Mechanism, unknown: Sequence[str], made: Made) -> str:
    steps = []
    if made.n < FEW:
        steps.append(f"`interp report {made.task} --n {FEW}` for narrower intervals and weaker parts")
    needed = [name for name in made.left_out if any(f"`{name.replace('_', '-')}`" in said for said in found.left_out)]
    if needed:
        steps.append(f"the studies {listed([f'`{name.replace(chr(95), chr(45))}`' for name in needed])}")
    part = next((Part.parse(name) for name in unknown), None)
    if part is not None and part.row.node is not None:
        steps.append(
            f"`interp run path-patching --task {made.task} --sender {part.node} --through all` to see what carries "
            f"the effect of {part.name}"
        )
    if not steps:
        steps.append("the same report of another task or model, to see whether the same parts do it there")
    return f"Run {listed(steps)}."


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return listed(list(names)) if more <= 0 else f"{', '.join(names[:MOST_NAMED])} and {more} more"
