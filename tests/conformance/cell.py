"""One cell of the table: what came of a check, and how much was left between the two sides."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from interp.errors import InterpError

KINDS = ("wrong", "holds", "refused", "does not apply")
"""What can come of a check; of several configurations the first of these is the family's."""


@dataclass(frozen=True)
class Cell:
    """What came of one check.

    Attributes:
        kind: one of `KINDS`.
        difference: the largest one, as a share of the largest value compared.
        told: the message of a refusal, why a check does not apply, what is wrong, or what was left out.
    """

    kind: str
    difference: float | None = None
    told: str = ""


class NotApplicable(Exception):
    """The promise says nothing about this model; the message says why."""


def holds(difference: float, within: float, told: str = "") -> Cell:
    """A cell that holds if the difference is small enough; NaN never is."""
    return Cell("holds" if difference <= within else "wrong", difference, told)


def measured(check: Callable[[Any], Cell], subject: Any) -> Cell:
    """What comes of a check; an exception that is no refusal is wrong, too."""
    try:
        return check(subject)
    except NotApplicable as reason:
        return Cell("does not apply", told=str(reason))
    except InterpError as refusal:
        return Cell("refused", told=str(refusal))
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return Cell("wrong", told=f"{type(error).__name__}: {error} ({last.name}, line {last.lineno})")


def worst(cells: Iterable[Cell]) -> Cell:
    """One cell for several configurations: the worst kind, the largest difference, each message once."""
    cells = list(cells)
    kind = min((cell.kind for cell in cells), key=KINDS.index)
    differences = [cell.difference for cell in cells if cell.kind == kind and cell.difference is not None]
    largest = max(differences, key=lambda one: math.inf if math.isnan(one) else one, default=None)
    return Cell(kind, largest, "; ".join(dict.fromkeys(cell.told for cell in cells if cell.kind == kind and cell.told)))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference as a share of the largest value; what is infinite must be so on both sides."""
    ours, theirs = ours.detach(), theirs.detach()
    if ours.shape != theirs.shape:
        raise AssertionError(f"shapes {list(ours.shape)} and {list(theirs.shape)}")
    finite = theirs.isfinite()
    if not bool((ours[~finite] == theirs[~finite]).all()):
        return math.inf
    ours, theirs = ours[finite].double(), theirs[finite].double()
    if not theirs.numel():
        return 0.0
    largest, apart = float(theirs.abs().max()), float((ours - theirs).abs().max())
    return apart / largest if largest else apart
