"""Which of many prompts a study measures, and how many of them a report can afford."""

from __future__ import annotations


def evenly(total: int, most: int) -> list[int]:
    """At most so many of the numbers below `total`, evenly drawn.

    >>> evenly(8, 3), evenly(2, 5)
    ([0, 2, 5], [0, 1])
    """
    count = min(most, total)
    return [at * total // count for at in range(count)]


def affordable(operations: float, budget: float, *, least: int = 4) -> int:
    """For how many prompts a budget of operations is enough, and no fewer than `least`, where each takes so many.

    >>> affordable(1e9, 1e11), affordable(1e12, 2e12)
    (100, 4)
    """
    return max(least, int(budget / operations))
