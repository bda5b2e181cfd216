"""Make docs/copying.md: run the code blocks of its template, save their figures, fill in the numbers.

1. The blocks of page.md.jinja are run one after another. A block that ends with a figure gives the next picture.
2. Numbers in the text are looked up in the variables that the blocks have set.
3. Models of other seeds are trained and measured in the same way.

    python docs/copying/make.py
"""

from __future__ import annotations

import ast
import re
import textwrap
import time
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from analyses import copying
from interp.figures.style import Figure
from interp.ground_truth.copying_measures import RANDOM, STRONGEST, needed, ranked
from interp.ground_truth.copying_models import QUERY, train

HERE = Path(__file__).parent
TEMPLATE = HERE / "page.md.jinja"
PART = re.compile(r"```python\n(?P<code>.*?)```|!\[[^\]]*\]\(copying/(?P<picture>\w+)\.png\)", re.DOTALL)
SEEDS = (0, 1, 2)
DPI, LINE = 170, 120


def main() -> None:
    """Write the page and its figures."""
    start = time.process_time()
    template = TEMPLATE.read_text(encoding="utf-8")
    space = run_blocks(template)
    frames = {0: space["frame"]}
    for seed in SEEDS[1:]:
        frames[seed] = copying.run({kind: train(kind, seed=seed) for kind in space["models"]}, seed=seed)
    values = {**space, **looked_up(space["frame"]), "seeds": over_seeds(frames), "table": conditions(space["frame"])}
    values["four_said"] = "\n".join(f"- {sentence}" for sentence in copying.findings(space["four"]))
    values["minutes"] = f"{(time.process_time() - start) / 60:.0f}"
    page = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(template)
    (HERE.parent / "copying.md").write_text(filled(page.render(values)), encoding="utf-8")


def filled(page: str) -> str:
    """The page with its paragraphs wrapped; code, tables and figures are left unchanged."""
    parts = re.split(r"(```python\n.*?```)", page, flags=re.DOTALL)
    return "".join(part if part.startswith("```") else _filled(part) for part in parts)


def _filled(text: str) -> str:
    paragraphs = re.split(r"(\n\n+)", text)
    for at, paragraph in enumerate(paragraphs):
        if paragraph.startswith("- "):
            items = (textwrap.fill(item, LINE, subsequent_indent="  ") for item in paragraph.split("\n"))
            paragraphs[at] = "\n".join(items)
        elif paragraph.strip() and paragraph[0] not in "#|! \n":
            end = "\n" if paragraph.endswith("\n") else ""
            paragraphs[at] = textwrap.fill(" ".join(paragraph.split()), LINE, break_on_hyphens=False) + end
    return "".join(paragraphs)


def run_blocks(template: str) -> dict[str, Any]:
    """Run the code blocks in one namespace, save the figures that they end with, and return the namespace."""
    space: dict[str, Any] = {}
    result: Any = None
    for part in PART.finditer(template):
        if part["picture"]:
            assert isinstance(result, Figure), f"no figure before {part['picture']}.png"
            result.savefig(HERE / f"{part['picture']}.png", dpi=DPI, metadata={"Software": None})
            continue
        body = ast.parse(part["code"]).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), str(TEMPLATE), "exec"), space)
        result = eval(compile(ast.Expression(last.value), str(TEMPLATE), "eval"), space) if last else None
    return space


def looked_up(frame: pd.DataFrame) -> dict[str, Any]:
    """The functions and numbers that the template uses, by name."""
    slot = int(frame["slot"].iloc[0])
    at = {"key": 2 * slot, "value": 2 * slot + 1, "query": QUERY}
    table = copying.summary(frame)
    table = table[table["metric"] == "accuracy"]

    def of(model: str, measure: str) -> pd.DataFrame:
        return frame[(frame["model"] == model) & (frame["measure"] == measure)]

    def right(model: str, condition: str, count: int | None = None) -> str:
        rows = table[(table["model"] == model) & (table["condition"] == condition)]
        rows = rows if count is None else rows[rows["count"] == count]
        return f"{rows['value'].item():.0%}"

    def effects(model: str, site: str, layer: int) -> pd.Series[float]:
        rows = of(model, "patching")
        return rows[(rows["site"] == site) & (rows["layer"] == layer)].groupby("pos")["effect"].mean()

    def effect(model: str, site: str, layer: int, role: str) -> str:
        return f"{round(effects(model, site, layer)[at[role]], 2) + 0.0:.2f}"

    def enters(layer: int) -> str:
        rises = effects("mamba", "state", layer).diff()
        return copying.offset(int(rises.idxmax()) - at["value"])

    def share(model: str, layer: int, role: str) -> str:
        rows = of(model, "looking")
        return f"{rows[(rows['layer'] == layer) & (rows['key'] == at[role])]['value'].mean():.0%}"

    counts = {model: needed(of(model, "found")) for model in ("attention", "mamba")}

    cut_first = {model: ranked(of(model, "entry"))[:count] for model, count in counts.items()}

    def where(model: str) -> str:
        return ", ".join(f"{copying.offset(key - at['value'])} in layer {layer}" for layer, key in cut_first[model])

    def places(model: str) -> str:
        return ", ".join(f"L{layer} {key - at['value']:+d}" for layer, key in cut_first[model])

    looks: dict[str, Any] = {
        "places": places,
        "right": right,
        "effect": effect,
        "enters": enters,
        "share": share,
        "where": where,
    }
    return {**looks, "needed": counts, "gap": at["query"] - at["value"]}


def conditions(frame: pd.DataFrame) -> str:
    """A table of what was cut, with the accuracy and its interval."""
    table = copying.summary(frame)
    table = table[table["metric"] == "accuracy"].assign(count=table["count"].fillna(-1))
    lines = ["| model | cut | entries | right | 95% interval |", "|---|---|---:|---:|---|"]
    for row in table.itertuples():
        most = needed(frame[(frame["model"] == row.model) & (frame["measure"] == "found")])
        if row.condition in (STRONGEST, RANDOM) and row.count not in (0, most):
            continue
        cut = "nothing" if row.count == 0 else row.condition
        count = "" if row.count < 0 else row.count
        lines.append(f"| {row.model} | {cut} | {count} | {row.value:.0%} | {row.ci_low:.0%} to {row.ci_high:.0%} |")
    return "\n".join(lines)


def over_seeds(frames: dict[int, pd.DataFrame]) -> str:
    """For each seed and model the entries that are needed, and the accuracy with them, without them, without others."""
    lines = [
        "| seed | model | strongest entries | right | without them | without random ones |",
        "|---:|---|---|---:|---:|---:|",
    ]
    for seed, frame in frames.items():
        numbers = looked_up(frame)
        for model in ("attention", "mamba"):
            count = numbers["needed"][model]
            cuts = (("strongest", 0), ("strongest", count), ("random", count))
            shares = (numbers["right"](model, *cut) for cut in cuts)
            lines.append(f"| {seed} | {model} | {numbers['places'](model)} | {' | '.join(shares)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
