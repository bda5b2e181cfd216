"""How long sweeps take here: a plan's forecast, corrected by what the last sweeps of this server took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

KEPT = 0.5  # of what was known, when a new sweep was timed


class Pace:
    """The time that sweeps took as a multiple of what was forecast, by what they cut the model into."""

    def __init__(self) -> None:
        self._factors: dict[str, float] = {}

    @property
    def known(self) -> bool:
        """Whether any sweep was timed."""
        return bool(self._factors)

    def expected(self, cut: str, forecast: float) -> float:
        """Seconds that a sweep should take; of a cut that was never timed, at the pace of the one timed last."""
        last = next(reversed(self._factors.values()), 1.0)
        return forecast * self._factors.get(cut, last)

    def took(self, cut: str, forecast: float, seconds: float) -> None:
        """Learn from a sweep."""
        found, known = seconds / max(forecast, 1e-9), self._factors.pop(cut, None)
        self._factors[cut] = found if known is None else known**KEPT * found ** (1 - KEPT)

    @contextmanager
    def timed(self, cut: str, forecast: float) -> Iterator[None]:
        """Time a sweep that ends well."""
        began = time.perf_counter()
        yield
        self.took(cut, forecast, time.perf_counter() - began)
