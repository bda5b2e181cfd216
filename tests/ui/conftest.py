"""What tests of pages share: a browser, and a model that is small and at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browser import chromium

import interp
from interp.hooked.model import HookedModel


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium, or the reason why there is none."""
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def toy() -> HookedModel:
    """Random weights, without a tokenizer."""
    return interp.load("toy")
