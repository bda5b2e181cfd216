"""Draw the figure of docs/architecture.md: the way of the data from a text to a figure, and the folders it passes.

python docs/figures/architecture.py
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from interp.figures.style import FORMATS, OKABE_ITO, SMALL, TEXT_WIDTH, Figure, styled

HERE = Path(__file__).parent
WIDTH, HEIGHT, GAP = 30, 7.4, 4.6  # of a box, and between two rows of them; the page is 100 wide
FOLDER, RED = "#eef3f8", OKABE_ITO[1]

# Column and row of each folder on the way (row 0 is the top), and what it does.
BOXES = {
    "weights/": (0, 0, "readers of checkpoint files,\none table of names a family"),
    "loading/": (0, 1, "load and save a model,\nchecked against transformers"),
    "models/": (0, 2, "attention, MLP, blocks, GPT;\nstate_space/ has Mamba's layers"),
    "hooked/": (0, 3, "hooks, caches, generation:\nwhat every model can do"),
    "files/, forward/": (0, 4.25, "used by the folders above: whole\nfiles; what one forward shares"),
    "text/": (1, 0, "text to token ids and back"),
    "prompts/, tasks/": (1, 1, "pairs of prompts, and the\ntemplates and files they come from"),
    "variants/": (1, 2, "what to change: heads, MLPs,\npositions, ablations (edits)"),
    "sweeps/": (1, 3, "plan, run in one pass, record;\nresume/ has the journal"),
    "figures/": (1, 4.25, "a tidy table to a figure"),
    "study/": (1, 5.25, "what all studies share;\nanalyses/ has the studies"),
    "ui/": (1, 6.25, "the report: one page, its figures\nand the numbers in them"),
    "attribution/": (2, 0, "gradients, and estimates of\nwhat a sweep would measure"),
    "circuits/": (2, 1, "edges: scores, search,\nfaithfulness, paths"),
    "heads/": (2, 2, "what heads do, from patterns\nand from weights"),
    "lenses/, directions/": (2, 3, "reading the stream; probes,\nsteering"),
    "ground_truth/": (2, 4.25, "models whose circuit is known,\nto check all methods"),
}
# From one folder to the next, with what goes along.
WAY = [
    ("weights/", "loading/", "tensors by name"), ("loading/", "models/", "a model"), ("models/", "hooked/", ""),
    ("text/", "prompts/, tasks/", "token ids"), ("prompts/, tasks/", "variants/", "PromptPairs"),
    ("variants/", "sweeps/", "Variants"),
    ("hooked/", "sweeps/", ""), ("figures/", "study/", "Figure"), ("study/", "ui/", "Section"),
    ("sweeps/", "figures/", ""),
]  # fmt: skip


def corner(name: str) -> tuple[float, float]:
    """The lower left corner of a folder's box."""
    column, row, _ = BOXES[name]
    return 2 + 33 * column, -(HEIGHT + GAP) * row


def draw_box(axes: Axes, name: str) -> None:
    """A folder with what it does."""
    x, y = corner(name)
    patch = FancyBboxPatch(
        (x, y), WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=1.2", fc=FOLDER, ec="#8899aa", lw=0.6
    )
    axes.add_patch(patch)
    axes.text(x + 1.2, y + HEIGHT - 1.2, name, va="top", fontsize=SMALL + 0.5, weight="bold")
    axes.text(x + 1.2, y + HEIGHT - 3.3, BOXES[name][2], va="top", fontsize=SMALL - 1, linespacing=1.15)


def draw_step(axes: Axes, start: str, end: str, what: str) -> None:
    """An arrow from one folder to the next, down or to the right, with what goes along."""
    (x, y), (to_x, to_y) = corner(start), corner(end)
    style = {"arrowstyle": "-|>", "color": RED, "lw": 1, "shrinkA": 0, "shrinkB": 0}
    if x == to_x:
        axes.annotate("", (x + 6, to_y + HEIGHT), (x + 6, y), arrowprops=style)
        axes.text(x + 7.4, (y + to_y + HEIGHT) / 2, what, va="center", fontsize=SMALL - 1, color=RED, linespacing=1.1)
    else:
        axes.annotate("", (to_x, y + HEIGHT / 2), (x + WIDTH, y + HEIGHT / 2), arrowprops=style)
        axes.text((x + WIDTH + to_x) / 2, y + HEIGHT / 2 + 0.8, what, ha="center", fontsize=SMALL - 1, color=RED)


def draw() -> Figure:
    """The whole figure."""
    lowest = min(corner(name)[1] for name in BOXES)
    height = TEXT_WIDTH * (HEIGHT - lowest + 12) / 100
    figure = Figure(figsize=(TEXT_WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 100), ylim=(lowest - 2, HEIGHT + 10))
    axes.axis("off")
    for column, title in enumerate(
        ("a model, from files", "a measurement, from text", "other methods on the same model")
    ):
        axes.text(2 + 33 * column, HEIGHT + 6.5, title, fontsize=SMALL + 1, style="italic")
    first = (("weights/", "files of a checkpoint"), ("text/", '"When John and Mary went ..."'))
    for name, what in first:
        x, y = corner(name)
        axes.annotate(
            "", (x + 6, y + HEIGHT), (x + 6, y + HEIGHT + 4), arrowprops={"arrowstyle": "-|>", "color": RED, "lw": 1}
        )
        axes.text(x + 7.4, y + HEIGHT + 2.4, what, va="center", fontsize=SMALL - 1, color=RED)
    x, y = corner("sweeps/")
    axes.text(x + 7.4, y - 1.6, "a table: a row for each", va="center", fontsize=SMALL - 1, color=RED)
    axes.text(x + 7.4, y - 5.6, "variant and prompt (stats: intervals)", va="center", fontsize=SMALL - 1, color=RED)
    for step in WAY:
        draw_step(axes, *step)
    for name in BOXES:
        draw_box(axes, name)
    (x, y), (to_x, to_y) = corner("lenses/, directions/"), corner("figures/")
    level = to_y + HEIGHT + (y - to_y - HEIGHT) / 2  # between the rows of sweeps/ and figures/
    axes.plot((x + 6, x + 6), (y, level), color=RED, lw=1)
    axes.annotate("", (to_x + 6, level), (x + 6, level), arrowprops={"arrowstyle": "-|>", "color": RED, "lw": 1})
    axes.text(x + 7.4, level, "tables of the same form", va="center", fontsize=SMALL - 1, color=RED)
    return figure


if __name__ == "__main__":
    with styled():
        figure = draw()
        for suffix in ("svg", "png"):
            figure.savefig(HERE / f"architecture.{suffix}", **FORMATS[suffix])
