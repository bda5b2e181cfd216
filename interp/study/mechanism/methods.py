"""Which parts each method of a report finds, in one table.

1. A part has a row if it counts by direct logit attribution, ablation or activation patching (the rules of
   `interp.study.mechanism.evidence`), or if a study names it: a node of the circuit, a head of a known kind.
2. Those that most methods find are first; among equals, those with the largest effects. To be of a known kind is no
   finding about the task, and is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from interp.names import Part
from interp.study.mechanism.evidence import found_by

if TYPE_CHECKING:
    import pandas as pd

    from interp.study.sections import Results

MEASURED = {
    "head_attribution": "direct effect (logits)",
    "ablation": "lost when ablated",
    "activation_patching": "given back when patched",
}
KIND = "kind of head"
NAMED = {"circuit": "in the circuit", "head_detectors": KIND}


def by_method(results: Results) -> pd.DataFrame:
    """One row for each part that some method finds.

    Args:
        results: the measurements of the studies by their names; a study that names parts has them in `attrs`, as
            `StudyReport` says.

    Returns:
        `part`, `methods` (how many find it), and a column for each method that was used: its effect, empty where it
        does not count, or what it says of the part.
    """
    import pandas as pd

    columns: dict[str, Mapping[str, object]] = {
        title: found_by(results, study) for study, title in MEASURED.items() if study in results
    }
    columns |= {title: results[study].attrs.get("parts", {}) for study, title in NAMED.items() if study in results}
    parts = sorted({part for column in columns.values() for part in column}, key=Part.parse)
    table = pd.DataFrame({title: [column.get(part) for part in parts] for title, column in columns.items()})
    table = table.astype({title: float for title in MEASURED.values() if title in table})
    table.insert(0, "part", parts)
    finding = [column for title, column in columns.items() if title != KIND]
    table.insert(1, "methods", [sum(part in column for column in finding) for part in parts])
    largest = table[[title for title in MEASURED.values() if title in table]].abs().max(axis=1)
    order = table.assign(largest=largest).sort_values(["methods", "largest"], ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)
