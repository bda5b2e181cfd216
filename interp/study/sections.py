"""What a study gives to the report of a task: its measurements, its section, and its findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from interp.prompts.pairs import PromptPairs
from interp.ui.page import Section

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

Results = Mapping[str, "pd.DataFrame"]
"""The measurements of the studies that a report made before, by their names."""

MOST_KEPT = 2**26  # numbers of the scores of edges that one study leaves for the next: 256 MB in float32


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """The scores of all edges that a study has made.

    Attributes:
        pairs: on these prompts.
        scores: as `interp.circuits.edge_scores.eap_ig` gives them with its usual options [prompt, sender, receiver].
    """

    pairs: PromptPairs
    scores: Tensor


class ReportResults(dict[str, "pd.DataFrame"]):
    """The measurements of the studies of a report, and what one leaves for a later one beside them.

    Attributes:
        edge_scores: None until a study has made them, and where they are too many to keep.
    """

    edge_scores: EdgeScores | None = None


def leave_edge_scores(results: Results, pairs: PromptPairs, scores: Tensor) -> None:
    """Keep scores for a later study of the same report, if they are not too many."""
    if isinstance(results, ReportResults) and scores.numel() <= MOST_KEPT:
        results.edge_scores = EdgeScores(pairs, scores)


def edge_scores_of(results: Results, pairs: PromptPairs) -> Tensor | None:
    """The scores that an earlier study has left for these very prompts; None where there are none."""
    left = results.edge_scores if isinstance(results, ReportResults) else None
    return left.scores if left is not None and left.pairs is pairs else None


class StudyReport(NamedTuple):
    """What a report has of one study.

    Attributes:
        frame: every measurement; later studies may look at it. A study that names parts of the model has what it says
            of each in `frame.attrs["parts"]`: part -> a few words.
        section: what its section of the page says and shows.
        findings: sentences of the section that can stand alone.
    """

    frame: pd.DataFrame
    section: Section
    findings: list[str]
