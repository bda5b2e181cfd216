"""What a study gives to the report of a task: its measurements, its section, and its findings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from interp.ui.page import Section

if TYPE_CHECKING:
    import pandas as pd

Results = Mapping[str, "pd.DataFrame"]
"""The measurements of the studies that a report made before, by their names."""


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
