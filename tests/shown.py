"""What a user sees: the panels and the words of a figure, and what the command line says."""

from __future__ import annotations

from click.testing import CliRunner, Result
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from analyses.cli import main
from interp import figures


def panels(figure: figures.Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def texts(figure: figures.Figure) -> set[str]:
    FigureCanvasAgg(figure).draw()
    return {text.get_text() for text in figure.findobj(Text) if text.get_visible()} - {""}


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def ok(*words: object) -> Result:
    result = call(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result
