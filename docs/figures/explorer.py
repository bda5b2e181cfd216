"""Take the picture of docs/explorer.md from the live page: `interp explore` is started, and Chromium opens it.

    python docs/figures/explorer.py

It needs the extras `explore` and `browser`, and a Chromium (`python -m playwright install chromium`, or the system's).
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
SCENE = {"prompt": "When John and Mary went to the store, John gave a drink to", "edits": "L29H1:zero"}
NAMES = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Take the picture."""
    words = [sys.executable, "-m", "analyses.cli", "explore", "--model", "smollm2-135m", "--no-browser"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as command, sync_playwright() as made:
        assert command.stdout is not None
        address = command.stdout.readline().strip()
        path = next(filter(None, map(shutil.which, NAMES)), None)
        browser = made.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 860})
        page.goto(f"{address}&{urlencode(SCENE)}")
        page.wait_for_selector("#at-compare table")
        page.wait_for_selector("#views[aria-busy=false]")
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=HERE / "explorer.png")
        browser.close()
        command.send_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
