"""A Chromium that shows pages of files, without any network, and of this machine: what tests of views need."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT = 20_000  # milliseconds


@dataclass
class Shown:
    """A page in a browser, with what it asked of anybody and what it complained about."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def clean(self, host: str | None = None) -> None:
        """Nothing but the file, or `host`, was asked for, and nothing went wrong."""
        if host is None:
            assert len(self.requests) == 1 and self.requests[0].startswith("file:"), self.requests
        assert all(one.startswith((f"{host}/", "data:", f"blob:{host}/")) for one in self.requests if host), (
            self.requests
        )
        assert not self.complaints, self.complaints

    def violations(self) -> list[str]:
        """What axe-core finds wrong for readers who use a keyboard or a screen reader."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [f"{one['id']}: {one['help']} ({one['nodes'][0]['html'][:200]})" for one in found]

    def sideways(self) -> int:
        """By how many pixels the page is wider than its window."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        return width


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser: playwright's own or the system's.

    Where there is none, tests that need one are skipped, and say so; with INTERP_NEEDS_BROWSER they fail.
    """
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install interp[browser]"
    )
    with sync_api.sync_playwright() as made:
        own = Path(made.chromium.executable_path)
        path = str(own) if own.exists() else next(filter(None, map(shutil.which, NAMES)), None)
        if path is None:
            assert not os.environ.get("INTERP_NEEDS_BROWSER"), "no Chromium, and INTERP_NEEDS_BROWSER is set"
            pytest.skip("no Chromium: run `python -m playwright install chromium`, or install one")
        browser = made.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, place: Path | str, *, width: int = 1280, dark: bool = False) -> Iterator[Shown]:
    """A page of a file, in a context without network, or one at an address of this machine."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        offline=isinstance(place, Path),
        color_scheme="dark" if dark else "light",
        bypass_csp=False,
    )
    context.set_default_timeout(TIMEOUT)
    page = context.new_page()
    shown = Shown(page)
    page.on("request", lambda request: shown.requests.append(request.url))
    page.on("console", lambda message: shown.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: shown.complaints.append(str(error)))
    page.goto(place.as_uri() if isinstance(place, Path) else place)
    try:
        yield shown
    finally:
        context.close()
