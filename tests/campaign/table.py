"""What came of a campaign: counts by part and kind, and everything that should not have been, with how to repeat it."""

from __future__ import annotations

import csv
import io
import platform
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

import interp

from .trial import KINDS, Ended

HEADS = {
    "refused": "refused",
    "right": "right",
    "unseen": "value changed, unseen",
    "different": "silently different",
    "accepted": "nonsense accepted",
    "raw": "raw exception",
    "crash": "crash",
    "hang": "hang",
    "memory": "out of memory",
}
BEGIN, END = "<!-- campaign: begin -->", "<!-- campaign: end -->"
Parts = Mapping[str, tuple[float, str]]


@dataclass
class Counts:
    """Outcomes as they come in."""

    by_part: dict[str, Counter[str]] = field(default_factory=dict)
    missed: list[tuple[str, Ended]] = field(default_factory=list)
    all: list[tuple[str, Ended]] = field(default_factory=list)

    def add(self, part: str, ended: Ended) -> None:
        """Count one case."""
        self.by_part.setdefault(part, Counter())[ended.outcome.kind] += 1
        self.all.append((part, ended))
        if not KINDS[ended.outcome.kind]:
            self.missed.append((part, ended))

    def goals_met(self) -> bool:
        """Whether every outcome is as it should be, and there are some."""
        return bool(self.all) and not self.missed


def again(part: str, number: int, seed: int) -> str:
    """The command that repeats a case."""
    return f"python -m tests.campaign --only {part} --seed {seed} --case {number}"


def show(part: str, ended: Ended, seed: int) -> None:
    """Say on stderr what came of a case."""
    outcome = ended.outcome
    print(f"{HEADS[outcome.kind]}: {outcome.title}\n    {outcome.detail.strip()}", file=sys.stderr)
    print(f"    {again(part, ended.number, seed)}", file=sys.stderr, flush=True)


def rows(counts: Counts, seconds: Mapping[str, float], parts: Parts) -> list[list[str]]:
    """The table, its head first."""
    found = [["what is tried", "cases", *HEADS.values(), "seconds"]]
    total: Counter[str] = Counter()
    for part, counter in counts.by_part.items():
        total += counter
        cells = [str(counter[kind]) for kind in HEADS]
        found.append([parts[part][1], str(counter.total()), *cells, f"{seconds[part]:.0f}"])
    found.append(["all", str(total.total()), *(str(total[kind]) for kind in HEADS), f"{sum(seconds.values()):.0f}"])
    return found


def markdown(counts: Counts, seconds: Mapping[str, float], parts: Parts) -> str:
    """The table in Markdown."""
    head, *body = rows(counts, seconds, parts)
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)])


def write(folder: Path, counts: Counts, seconds: Mapping[str, float], parts: Parts, seed: int) -> None:
    """`table.csv`, `table.md`, `outcomes.csv` (every case), `findings.md` (what should not have been)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.csv").write_text(_csv(rows(counts, seconds, parts)), encoding="utf-8")
    (folder / "table.md").write_text(markdown(counts, seconds, parts) + "\n", encoding="utf-8")
    every = [
        [part, str(e.number), e.outcome.kind, e.outcome.title, e.outcome.detail, f"{e.seconds:.2f}"]
        for part, e in sorted(counts.all, key=lambda one: (one[0], one[1].number))
    ]
    head = ["part", "case", "kind", "title", "detail", "seconds"]
    (folder / "outcomes.csv").write_text(_csv([head, *every]), encoding="utf-8", errors="backslashreplace")
    (folder / "findings.md").write_text(findings(counts, seed), encoding="utf-8", errors="backslashreplace")


def findings(counts: Counts, seed: int) -> str:
    """Every outcome that should not have been, those of one kind and place together."""
    groups: dict[tuple[str, str, str], list[tuple[str, Ended]]] = {}
    for part, ended in counts.missed:
        detail = ended.outcome.detail
        place = detail.rpartition("\n")[2] if ended.outcome.kind == "raw" else ""
        groups.setdefault((part, ended.outcome.kind, re.sub(r"\s+", " ", place)), []).append((part, ended))
    lines = [f"# Findings ({len(counts.missed)} of {len(counts.all)} cases)"]
    for (part, kind, place), members in sorted(groups.items(), key=lambda one: (one[0][:2], -len(one[1]))):
        lines.append(f"\n## {part}: {HEADS[kind]}: {len(members)} {'at ' + place if place else ''}\n")
        for _, ended in members[: 40 if not place else 8]:
            said = " ".join(ended.outcome.detail.split())
            lines += [f"- {ended.outcome.title}: {said[:300]}", f"  `{again(part, ended.number, seed)}`"]
    return "\n".join(lines) + "\n"


def into_page(page: Path, counts: Counts, seconds: Mapping[str, float], parts: Parts, seed: int) -> None:
    """Write the table anew between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page} has no place for the table: {BEGIN} ... {END}")
    made = (
        f"Seed {seed}, interp {interp.__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{sum(seconds.values()) / 60:.0f} minutes."
    )
    page.write_text(f"{before}{BEGIN}\n{markdown(counts, seconds, parts)}\n\n{made}\n{END}{after}", encoding="utf-8")


def _csv(lines: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
