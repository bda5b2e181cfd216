"""How figures are styled, shown and saved, whatever is drawn on them.

1. `blank` makes a `Figure` without pyplot, in a style that starts from matplotlib's own defaults; the reader's
   settings are neither used nor changed.
2. `Figure` keeps that style whenever it is drawn, and shows itself in a notebook.
3. `save` writes PDF and SVG with text as text, PNG, and the numbers as CSV; the same frame gives the same bytes.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import matplotlib
from matplotlib import figure as mpl

from interp.arguments import checked, shown
from interp.errors import ConfigError, InterpError, OutputError
from interp.figures.glyphs import FAMILY, written
from interp.files.whole_files import place_of

if TYPE_CHECKING:
    import pandas as pd

TEXT_WIDTH = 6.5
"""Width of a page's text in inches; no figure is wider."""

POINTS = 72.0
"""Points in an inch: fonts are measured in points, figures in inches."""

PNG_DPI = 200
TALLEST = 300.0  # inches: a picture has at most 65,535 dots on a side
RASTER_DPI = 300
SMALL, TINY = 6.0, 5.0  # font sizes
INK, MUTED, RULE = "#1a1a1a", "#595959", "#8c8c8c"
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito 2008, "Color Universal Design"; first those that differ most from each other on white."""

STYLE: dict[str, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": [FAMILY, "Verdana", "Arial", "Helvetica"],  # the others serve SVG where DejaVu is not installed
    "font.size": 7.0,
    "text.color": INK,
    "text.parse_math": False,
    "axes.titlesize": 7.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 3.0,
    "axes.labelsize": 7.0,
    "axes.labelpad": 3.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.4,
    "hatch.color": "#bdbdbd",
    "hatch.linewidth": 0.4,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.borderpad": 0.0,
    "legend.handlelength": 1.4,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.1,
    "lines.solid_capstyle": "round",
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    **{f"{axis}tick.{key}": value for axis in "xy" for key, value in {
        "color": RULE, "labelcolor": INK, "major.size": 2.0, "major.width": 0.5, "major.pad": 2.0, "minor.size": 1.2,
        "minor.width": 0.4}.items()},
    "figure.dpi": 100.0,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.05,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "interp",
}  # fmt: skip

DRAWN = (
    *("agg", "axes", "errorbar", "figure", "font", "grid", "hatch", "image", "legend", "lines", "markers", "mathtext"),
    *("patch", "path", "pcolor", "pcolormesh", "pdf", "savefig", "svg", "text", "xaxis", "xtick", "yaxis", "ytick"),
)
"""The groups of matplotlib's settings that decide how a figure looks."""

NOT_LOOKS = ("figure.hooks", "figure.max_open_warning", "figure.raise_window", "savefig.directory")
"""The settings of these groups that have nothing to do with looks; the reader's are kept."""


@contextmanager
def styled(**changes: Any) -> Iterator[None]:
    """Use matplotlib's defaults with this project's style in a `with` block."""
    settings: dict[Any, Any] = {
        key: value
        for key, value in matplotlib.rcParamsDefault.items()
        if key.partition(".")[0] in DRAWN and key not in NOT_LOOKS
    }
    with matplotlib.rc_context(settings | STYLE | changes):
        yield


@final
class Figure(mpl.Figure):
    """A matplotlib figure that keeps this project's style when it is drawn and shows itself in a notebook.

    `style` holds matplotlib settings that differ from `STYLE` for this figure alone.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.style: dict[str, Any] = {}
        with styled():
            super().__init__(*args, **kwargs)

    def draw(self, renderer: Any) -> None:
        """Draw in the figure's own style, because matplotlib makes ticks and chooses fonts only when it draws."""
        with styled(**self.style):
            super().draw(renderer)

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        """Write to a file, as matplotlib's `savefig` does, in the figure's own style."""
        with styled(**self.style):
            super().savefig(fname, **kwargs)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        # Without pyplot, Jupyter has no other way to show a figure. Twice the pixels, for sharp screens.
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=2 * self.dpi)
        across, down = self.get_size_inches() * self.dpi
        return buffer.getvalue(), {"width": round(across), "height": round(down)}


def blank(across: float, down: float) -> Figure:
    """An empty figure of a size in inches, whose axes will fill it.

    Raises:
        InterpError: it would be too large for a picture.
    """
    if not (0 < across <= TALLEST and 0 < down <= TALLEST):
        raise InterpError(f"a figure of {across:.4g} x {down:.4g} inches cannot be drawn: show fewer panels or rows")
    return Figure(figsize=(across, down), layout="constrained")


def colours_by_name(hue: str, names: Sequence[Any]) -> dict[Any, str]:
    """A colour for each of up to eight names of the hue's column.

    Raises:
        InterpError: more names than colours.
    """
    if len(names) > len(OKABE_ITO):
        raise InterpError(
            f"column {hue!r} has {len(names)} different names, and {len(OKABE_ITO)} colours can be told apart: leave "
            "some out, or make the column a facet"
        )
    return dict(zip(names, OKABE_ITO, strict=False))


def explained(figure: Figure, frame: pd.DataFrame) -> Figure:
    """The figure with a line below it that says why values are missing, if the frame has a column `reason`."""
    if "reason" in frame:
        reasons = [str(text) for text in frame["reason"].value_counts().index if text]
        if reasons:
            more = f"; {len(reasons) - 1} more reasons in the table" if len(reasons) > 1 else ""
            text = f"Where a value is missing: {reasons[0]}{more}"
            across = int(figure.get_figwidth() * POINTS / (0.55 * TINY))  # letters in a line
            figure.supxlabel(textwrap.fill(text, across), x=0.01, ha="left", size=TINY, color=MUTED)
    return figure


@checked
def nothing(why: str) -> Figure:
    """A figure that says why there is nothing to draw, in place of one without data."""
    figure = blank(TEXT_WIDTH, 0.5)
    figure.text(0.01, 0.5, f"Nothing to draw: {written(why)}", ha="left", va="center", size=7.0, color=MUTED)
    return figure


FORMATS: dict[str, dict[str, Any]] = {
    "pdf": {"dpi": RASTER_DPI, "metadata": {"CreationDate": None, "Producer": None, "Creator": None}},
    "svg": {"dpi": RASTER_DPI, "metadata": {"Date": None, "Creator": None}},
    "png": {"dpi": PNG_DPI, "metadata": {"Software": None}},
}
"""Options of each format, so that files do not depend on the day or the machine; `dpi` is of rasterised parts."""


@contextmanager
def settled(figure: mpl.Figure) -> Iterator[None]:
    """Compute the figure's layout once for a `with` block, rather than again for every file that is written."""
    engine = figure.get_layout_engine()
    if engine is None:
        yield
        return
    with styled():
        engine.execute(figure)
        figure.set_layout_engine(None)  # with any engine, even "none", every file costs a second drawing
    try:
        yield
    finally:
        figure.set_layout_engine(engine)


@checked
def save(figure: mpl.Figure, frame: pd.DataFrame, stem: str | Path) -> list[Path]:
    """Write a figure and its numbers; returns the paths of `stem.pdf`, `stem.svg`, `stem.png` and `stem.csv`.

    PDF and SVG keep text as text; PNG has 200 dots per inch; the CSV has every row of `frame` at full precision.

    Raises:
        OutputError: the folder does not exist or a file cannot be written.
    """
    if not isinstance(figure, mpl.Figure):
        raise ConfigError(f"figure must be a figure of matplotlib, not {shown(figure)}")
    stem = place_of(stem, what="a figure")
    if not stem.name:
        raise OutputError(f"a figure cannot be written to {str(stem)!r}: this is a folder, and no name of a file")
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in (*FORMATS, "csv")]
    for path in paths:
        if place_of(path, what="a figure").exists() and not path.is_file():
            raise OutputError(f"figure {stem.name!r} cannot be written: {str(path)!r} is a folder, a pipe or a device")
    try:
        with styled(), settled(figure):
            for path, options in zip(paths, FORMATS.values(), strict=False):
                figure.savefig(path, **options)
        frame.to_csv(paths[-1], index=False, lineterminator="\n")
    except OSError as error:
        raise OutputError(
            f"figure {stem.name!r} cannot be written to {stem.parent}: {error.strerror or error}"
        ) from error
    return paths


def outlined_svg(figure: Figure) -> bytes:
    """The figure as SVG with letters drawn as shapes, which looks the same without the font."""
    buffer = io.BytesIO()
    before = figure.style
    figure.style = {**before, "svg.fonttype": "path"}
    try:
        figure.savefig(buffer, format="svg", **FORMATS["svg"])
    finally:
        figure.style = before
    return buffer.getvalue()
