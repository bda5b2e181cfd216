"""Make the gallery: the reports of SmolLM2-135M on some tasks, as pages of this folder.

1. Write a report, as `interp report TASK` does.
2. Take its summary, its figures and each study's time from its manifest.
3. Write them as a page, with figures scaled to the page's width.

    python docs/gallery/make.py [TASK ...]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from analyses.report import write

HERE = Path(__file__).parent
TASKS = ("ioi", "greater_than", "agreement", "induction")
WIDTH, COLOURS = 1400, 240
PROMPTS = 32


def main() -> None:
    """Write the pages of the tasks on the command line, or of all tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"one of the tasks; by default {', '.join(TASKS)}")
    parser.add_argument("--n", type=int, default=PROMPTS, help="how many prompts (default: %(default)s)")
    parser.add_argument("--reports", type=Path, help="keep the whole reports in this folder")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for task in chosen.tasks or TASKS:
            page = write(task, out=(chosen.reports or Path(temporary)) / task, n=chosen.n)
            print(gallery_page(task, page.parent), flush=True)


def gallery_page(task: str, report: Path) -> Path:
    """Write the page of a task from its report, and return its path."""
    manifest = json.loads((report / "manifest.json").read_text(encoding="utf-8"))
    record = manifest["report"]
    pictures = HERE / task
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir()
    numbers = {figure["name"]: figure["number"] for figure in record["figures"]}

    def prose(text: str) -> str:
        return re.sub(r"\{figure:([a-z0-9_-]+)\}", lambda match: f"figure {numbers[match[1]]}", text)

    lines = [f"# {record['title']}", "", record["question"], "", "## Summary", ""]
    lines += [f"- {prose(sentence)}" for sentence in record["summary"]]
    for figure in record["figures"]:
        name = f"{figure['name']}.png"
        _scaled(report / "figures" / name, pictures / name)
        lines += ["", f"## {figure['title']}", "", f"![{figure['title']}]({task}/{name})", "", prose(figure["caption"])]
    lines += ["", *_how(task, manifest)]
    page = HERE / f"{task}.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


def _how(task: str, manifest: Mapping[str, Any]) -> list[str]:
    """How the page was made, and how long each study took."""
    seconds = manifest["seconds"]
    command = f"interp report {task} --n {manifest['n_prompts']}"
    return [
        "## How it was made",
        "",
        f"`{command}`, {sum(seconds.values()) / 60:.0f} minutes on {_threads(manifest)} of a CPU:",
        "",
        "| step | seconds |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {value:.0f} |" for name, value in seconds.items()),
    ]


def _threads(manifest: Mapping[str, Any]) -> str:
    count = manifest["machine"]["threads"]
    return "one thread" if count == 1 else f"{count} threads"


def _scaled(source: Path, target: Path) -> None:
    """Write a picture at most as wide as a page needs, with its own palette."""
    with Image.open(source) as picture:
        plain = picture.convert("RGB")
        plain.thumbnail((WIDTH, 10 * WIDTH))
        plain.quantize(COLOURS).save(target, optimize=True)


if __name__ == "__main__":
    main()
