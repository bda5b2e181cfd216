from __future__ import annotations

import csv
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection, QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from shown import panels, texts

from interp import figures
from interp.errors import InterpError, OutputError, UnknownName
from interp.figures import axes as scales
from interp.figures import glyphs
from interp.figures import style as canvas

TOKENS = ["When", " $x$", " 中文", "\n"]


def grid(n_layers: int = 4, n_heads: int = 3) -> pd.DataFrame:
    rows = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    frame = pd.DataFrame(rows, columns=["layer", "head"])
    return frame.assign(metric="logit_diff", value=np.linspace(-1.0, 2.0, len(frame)))


def curve() -> pd.DataFrame:
    frame = pd.DataFrame(
        [(layer, name) for layer in range(5) for name in ("Mary", "John")], columns=["layer", "answer"]
    )
    value = frame["layer"] * np.where(frame["answer"] == "Mary", 1.0, -1.0)
    return frame.assign(value=value, n=8, ci_low=value - 0.5, ci_high=value + 0.25)


def patterns(causal: bool = True) -> pd.DataFrame:
    rows = []
    for layer, head in ((9, 6), (3, 0)):
        for query in range(4):
            for key in range(query + 1 if causal else 4):
                rows.append((layer, head, query, key, 1.0 / (query + 1 if causal else 4)))
    return pd.DataFrame(rows, columns=["layer", "head", "query", "key", "value"])


def mesh(axes: Axes) -> np.ma.MaskedArray:
    (found,) = [artist for artist in axes.collections if isinstance(artist, QuadMesh)]
    return found.get_array()


def test_heatmap_puts_layer_0_on_top_and_draws_the_frames_own_numbers() -> None:
    frame = grid().sample(frac=1, random_state=0)
    figure = figures.heatmap(frame, x="head", y="layer")
    (axes,) = panels(figure)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    np.testing.assert_array_equal(mesh(axes), frame.pivot(index="layer", columns="head", values="value"))


def test_heatmap_is_symmetric_around_zero_with_positive_blue() -> None:
    (axes,) = panels(figures.heatmap(grid(), x="head", y="layer"))
    colours = axes.collections[0]
    assert (colours.norm.vmin, colours.norm.vmax) == (-2.0, 2.0)
    red, _, blue = colours.cmap(colours.norm(1.5))[:3]
    assert blue > red
    red, _, blue = colours.cmap(colours.norm(-1.5))[:3]
    assert red > blue
    (axes,) = panels(figures.heatmap(grid(), x="head", y="layer", limit=5.0))
    assert (axes.collections[0].norm.vmin, axes.collections[0].norm.vmax) == (-5.0, 5.0)
    (axes,) = panels(figures.heatmap(grid().assign(value=1.0), x="head", y="layer", diverging=False))
    assert (axes.collections[0].norm.vmin, axes.collections[0].norm.vmax) == (0.0, 1.0)


def test_cells_that_the_frame_lacks_are_hatched_and_not_drawn() -> None:
    frame = grid().drop(index=4)
    frame.loc[7, "value"] = np.nan
    (axes,) = panels(figures.heatmap(frame, x="head", y="layer"))
    assert [tuple(cell) for cell in np.argwhere(mesh(axes).mask)] == [(1, 1), (2, 1)]
    assert [patch.get_hatch() for patch in axes.patches] == ["//////"]
    (axes,) = panels(figures.heatmap(grid(), x="head", y="layer"))
    assert not axes.patches


def test_an_axis_can_be_wider_than_the_data_and_whole_numbers_have_no_gaps() -> None:
    frame = grid().query("layer in (1, 3)")
    (axes,) = panels(figures.heatmap(frame, x="head", y=figures.Axis("layer", values=range(6))))
    assert mesh(axes).shape == (6, 3)
    (axes,) = panels(figures.heatmap(frame, x="head", y="layer"))
    assert mesh(axes).mask[:, 0].tolist() == [False, True, False]


def test_heatmap_names_the_strongest_heads_and_its_colour_bar() -> None:
    frame = grid()
    frame.loc[frame.index[4], "value"] = -9.0
    figure = figures.heatmap(frame, x="head", y="layer", annotate=2, label="effect", baseline="corrupt")
    found = texts(figure)
    assert {"L1H1", "L3H2", "effect (baseline: corrupt)"} <= found
    assert sum(text.startswith("L") and "H" in text for text in found) == 2
    assert "logit diff" in texts(figures.heatmap(frame, x="head", y="layer"))


def test_names_of_neighbours_share_a_label_and_others_keep_out_of_each_others_way() -> None:
    rows = [{"layer": layer, "head": head, "value": 0.1} for layer in range(20) for head in range(9)]
    frame = pd.DataFrame(rows)
    strong = frame[["layer", "head"]].apply(tuple, axis=1).isin([(7, 3), (7, 4), (12, 0), (12, 8), (15, 2), (15, 5)])
    frame["value"] = frame["value"].mask(strong, 1.0)
    whole = pd.concat([frame.assign(site=site) for site in "abc"])  # three panels: narrow cells
    figure = figures.heatmap(whole, x="head", y="layer", facet="site", annotate=6)
    assert {"L7H3, H4", "L12H0", "L12H8", "L15H2", "L15H5"} <= texts(figure)
    figure.canvas.draw()
    for axes in panels(figure):
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text().startswith("L")]
        assert len(boxes) == 5
        assert not any(one.overlaps(other) for at, one in enumerate(boxes) for other in boxes[:at])


def test_facets_share_one_scale_and_keep_the_order_of_the_frame() -> None:
    frame = pd.concat([grid().assign(site="z"), grid().assign(site="attn_out", value=0.5)])
    figure = figures.heatmap(frame, x="head", y="layer", facet="site")
    first, second = panels(figure)
    assert [first.get_title("left"), second.get_title("left")] == ["z", "attn_out"]
    assert first.collections[0].norm.vmax == second.collections[0].norm.vmax == 2.0


def test_rows_that_belong_to_no_layer_are_left_out() -> None:
    frame = pd.concat([grid().astype({"layer": float}), pd.DataFrame({"value": [3.0, 4.0]})])
    figure = figures.heatmap(frame, x="head", y="layer", annotate=1)
    assert mesh(panels(figure)[0]).shape == (4, 3)
    assert "L3H2" in texts(figure)


@pytest.mark.parametrize(
    ("frame", "options", "error", "says"),
    [
        (grid(), {"y": "layers"}, UnknownName, "did you mean 'layer'"),
        (grid(), {"value": "metric"}, InterpError, "must hold numbers"),
        (pd.concat([grid(), grid()]), {}, InterpError, "24 rows share theirs, such as head=0 and layer=0"),
        (grid().iloc[:0], {}, InterpError, "no rows"),
        (grid(), {"x": figures.Axis("head", labels=["a"])}, InterpError, "a label for every head from 0 to 2"),
        (grid(), {"x": figures.Axis("head", values=[0, 1])}, InterpError, "head=2"),
    ],
)
def test_frames_that_cannot_be_drawn_are_refused(frame, options, error, says) -> None:
    with pytest.raises(error, match=says):
        figures.heatmap(frame, **{"x": "head", "y": "layer", **options})


TWICE = pd.concat([grid(), grid()[["value"]]], axis=1)
MANY = pd.concat([grid().assign(prompt=prompt) for prompt in range(200)])


@pytest.mark.parametrize(
    ("draw", "options", "says"),
    [
        *[
            (figures.lines, {"interval": wrong}, "interval must be the names of two columns")
            for wrong in (5, "ab", ["n"], [[]])
        ],
        *[(figures.lines, {"interval": torch.ones(shape)}, "interval must be") for shape in ((), (0,), (2,), (2, 3))],
        *[
            (figures.bars, {"interval": wrong}, "interval must be")
            for wrong in (1.5, (), np.zeros((2, 2)), [None, "n"])
        ],
        *[(figures.bars, {"facet": wrong}, "no column of the frame matches") for wrong in ("", "x", ["n", "x"])],
        *[
            (draw, {"columns": n}, "columns must be at least 1")
            for draw in (figures.lines, figures.bars)
            for n in (0, -1)
        ],
        (figures.lines, {"frame": MANY, "facet": "prompt", "columns": 100}, "do not fit side by side"),
        (figures.lines, {"frame": MANY, "facet": "prompt", "columns": 1}, "inches cannot be drawn"),
        (figures.heatmap, {"frame": MANY, "facet": "prompt"}, "do not fit on a page"),
        *[
            (figures.heatmap, {"limit": n}, "limit must be a finite number > 0")
            for n in (float("nan"), 0, -1, float("inf"))
        ],
        (figures.heatmap, {"annotate": -1}, "annotate must be at least 0"),
        (figures.heatmap, {"frame": TWICE}, "2 columns of the frame are called 'value'"),
        (figures.heatmap, {"frame": grid().assign(head=[[1]] * 12)}, "column 'head' must hold numbers, texts"),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused_by_name(draw, options, says) -> None:
    given = {
        "frame": grid(),
        "x": "head",
        **({"y": "layer"} if draw is figures.heatmap else {"hue": "layer"}),
        **options,
    }
    with pytest.raises(InterpError, match=says):
        draw(given.pop("frame"), **given)


@pytest.mark.parametrize("limit", [float("nan"), 0, -1])
def test_the_darkest_attention_is_a_number_above_zero(limit: float) -> None:
    with pytest.raises(InterpError, match="limit must be a finite number > 0"):
        figures.attention(patterns(), tokens=TOKENS, limit=limit)


@pytest.mark.parametrize(
    ("part", "wrong"),
    [*[("labels", wrong) for wrong in (5, "ab", [5], iter("ab"))], *[("values", wrong) for wrong in (5, "ab", [[1]])]],
)
def test_an_axis_of_something_else_is_refused(part: str, wrong: object) -> None:
    with pytest.raises(InterpError, match=f"the {part} of an axis must be"):
        figures.Axis("layer", **{part: wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "file/x", ""])
def test_a_figure_that_cannot_be_written_names_its_path(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    with pytest.raises(OutputError, match="a figure cannot be written to '"):
        canvas.save(figures.nothing("a lone \udcff"), grid(), name)


def test_positions_carry_their_tokens_and_dollars_are_no_formulas() -> None:
    frame = pd.DataFrame({"layer": 0, "pos": range(4), "token": TOKENS, "value": 1.0})
    figure = figures.heatmap(frame, x="pos", y="layer")
    assert {"0: When", "1: $x$", "2: <4E2D 6587>", "3: ⏎"} <= texts(figure)
    assert not any(text.get_parse_math() for text in figure.findobj(Text))


def test_every_drawn_character_has_a_glyph() -> None:
    strange = "".join(map(chr, [0x4E2D, 0x1F999, 0x0E01, 0xD55C, 0x200B, 0x41, 0x416, 0x20, 0xAD]))
    assert {ord(c) for c in glyphs.drawable(strange)} <= glyphs._glyphs()
    assert glyphs.drawable("A Ж") == "A Ж"


def test_long_labels_are_cut_to_fit() -> None:
    cut = glyphs.shorten("internationalisation", 6, 30)
    assert cut.endswith("…")
    assert glyphs.width(cut, 6) <= 30 < glyphs.width("internationalisation", 6)


def test_attention_has_queries_down_keys_across_and_greys_what_a_causal_mask_hides() -> None:
    zeros = pd.DataFrame({"layer": 9, "head": 6, "query": 0, "key": [1, 2, 3], "value": 0.0})
    figure = figures.attention(pd.concat([patterns(), zeros]), tokens=TOKENS)
    first, second = panels(figure)
    assert [first.get_title("left"), second.get_title("left")] == ["L9H6", "L3H0"]
    assert mesh(first)[2, 0] == pytest.approx(1 / 3)
    assert mesh(first).mask[0, 2] and mesh(first).mask.sum() == 6
    assert first.patches[0].get_hatch() is None
    assert {"destination (query)", "source (key)", "1: $x$"} <= texts(figure)
    first, _ = panels(figures.attention(patterns(causal=False), tokens=TOKENS))
    assert not np.ma.getmaskarray(mesh(first)).any()
    with pytest.raises(InterpError, match="key=3"):
        figures.attention(patterns(), tokens=TOKENS[:3])


def test_lens_table_prints_top_tokens_in_a_colour_that_can_be_read() -> None:
    frame = pd.DataFrame(
        {"layer": [0, 0, 1], "pos": [0, 1, 0], "value": [0.05, 0.95, 0.5], "top_token": [" a", "$$", "中"]}
    )
    other = frame.assign(metric="prob", top_token="wrong")
    figure = figures.lens_table(pd.concat([frame.assign(metric="top_prob"), other]))
    cells = {text.get_text(): text.get_color() for text in panels(figure)[0].texts}
    assert set(cells) == {"a", "$$", "<4E2D>"}
    assert sum(to_rgb(cells["a"])) < 0.6 and sum(to_rgb(cells["$$"])) == 3.0


def test_lines_have_bands_names_and_n() -> None:
    figure = figures.lines(curve(), x="layer", hue="answer", label="logit")
    (axes,) = panels(figure)
    bands = [artist for artist in axes.collections if isinstance(artist, PolyCollection)]
    assert [line.get_color() for line in axes.lines[:2]] == ["#0072B2", "#D55E00"]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [0, 1, 2, 3, 4])
    edges = bands[0].get_paths()[0].vertices
    assert (edges[:, 1].min(), edges[:, 1].max()) == (-0.5, 4.25)
    assert {"Mary", "John", "n = 8", "logit", "layer"} <= texts(figure)


def test_lines_keep_the_order_of_text_and_refuse_too_many_names() -> None:
    frame = pd.DataFrame({"site": ["embed", "0.attn", "0.mlp"], "value": [1.0, 2.0, 3.0]})
    (axes,) = panels(figures.lines(frame.iloc[[0, 1, 2]], x="site"))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["embed", "0.attn", "0.mlp"]
    many = pd.DataFrame({"x": 0, "value": 1.0, "name": [f"name {i}" for i in range(9)]})
    with pytest.raises(InterpError, match="9 different names"):
        figures.lines(many, x="x", hue="name")
    with pytest.raises(InterpError, match=r"10 rows share theirs.* or hue"):
        figures.lines(curve(), x="layer")
    assert len(panels(figures.lines(many.assign(name=range(9)), x="x", hue="name"))[0].lines) == 9


def test_bars_stand_or_lie_with_error_bars() -> None:
    frame = pd.DataFrame(
        {"component": ["L9H6", "mlp 3"], "value": [2.0, -1.0], "ci_low": [1.5, -2.0], "ci_high": [2.25, 0.0]}
    )
    (axes,) = panels(figures.bars(frame, x="component", diverging=True))
    assert [bar.get_height() for bar in axes.patches] == [2.0, -1.0]
    blue, red = (bar.get_facecolor() for bar in axes.patches)
    assert blue[2] > blue[0] and red[0] > red[2]
    (axes,) = panels(figures.bars(frame, x="component", horizontal=True))
    assert [bar.get_width() for bar in axes.patches] == [2.0, -1.0]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    (whiskers,) = [artist for artist in axes.collections if isinstance(artist, LineCollection)]
    assert [segment[:, 0].tolist() for segment in whiskers.get_segments()] == [[1.5, 2.25], [-2.0, 0.0]]


def test_bars_of_several_hues_stand_side_by_side_with_a_legend() -> None:
    frame = pd.DataFrame({"layer": [0, 0, 1, 1], "kind": ["attn", "mlp"] * 2, "value": [1.0, 2.0, 3.0, 4.0]})
    figure = figures.bars(frame, x="layer", hue="kind")
    (axes,) = panels(figure)
    places = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches)
    assert all(right <= left + 1e-9 for (_, right), (left, _) in pairwise(places))
    assert {"attn", "mlp"} <= texts(figure)


def test_labels_of_lines_are_moved_apart_no_further_than_needed() -> None:
    assert scales.spread([5.0, 1.0], 1.0) == [5.0, 1.0]
    apart = scales.spread([0.0, 0.0, 0.1, 9.0], 1.0)
    assert np.diff(sorted(apart)).min() == pytest.approx(1.0, abs=1e-9)
    assert apart[3] == 9.0 and sum(apart[:3]) == pytest.approx(0.1)


def test_save_writes_the_numbers_and_text_as_text(tmp_path: Path) -> None:
    frame = pd.DataFrame({"pos": range(4), "token": TOKENS, "layer": 0, "value": [0.1, 1 / 3, -1e-17, 2.0]})
    figure = figures.heatmap(frame, x="pos", y="layer", label="café")
    engine = figure.get_layout_engine()
    paths = figures.save(figure, frame, tmp_path / "fig.1")
    assert [path.name for path in paths] == ["fig.1.pdf", "fig.1.svg", "fig.1.png", "fig.1.csv"]
    pdf, svg, png, _ = (path.read_bytes() for path in paths)
    with paths[3].open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["value"]) for row in rows] == frame["value"].tolist()
    assert [row["token"] for row in rows] == TOKENS
    assert ">1: $x$</text>" in svg.decode() and "café" in svg.decode()
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf
    assert b"CreationDate" not in pdf and b"<dc:date>" not in svg
    assert png.startswith(b"\x89PNG")
    assert figure.get_layout_engine() is engine
    with pytest.raises(OutputError, match="cannot be written"):
        figures.save(figure, frame, tmp_path / "missing" / "figure")


def test_the_same_frame_gives_the_same_bytes_in_another_process_and_leaves_matplotlib_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    frame = grid()
    frame.to_pickle(tmp_path / "frame.pickle")
    for stem in ("one", "two"):
        figures.save(figures.heatmap(frame, x="head", y="layer", annotate=2), frame, tmp_path / stem)
    assert dict(matplotlib.rcParams) == before
    code = f"""
import sys
import matplotlib
matplotlib.rcParams.update({{"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "black"}})
import pandas as pd
from interp import figures
frame = pd.read_pickle({str(tmp_path / "frame.pickle")!r})
figures.save(figures.heatmap(frame, x="head", y="layer", annotate=2), frame, {str(tmp_path / "three")!r})
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams["font.size"] == 30
"""
    root = Path(figures.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={**os.environ, "PYTHONHASHSEED": "7"})
    for suffix in ("pdf", "svg", "png", "csv"):
        one, two, three = ((tmp_path / f"{stem}.{suffix}").read_bytes() for stem in ("one", "two", "three"))
        assert one == two == three, suffix


def test_many_cells_are_one_picture_in_vector_files() -> None:
    figure = figures.heatmap(grid(80, 50), x="head", y="layer")
    svg = canvas.outlined_svg(figure)
    assert len(svg) < 150_000
    assert b"<image" in svg


def test_outlined_svg_needs_no_font_and_changes_nothing() -> None:
    figure = figures.bars(pd.DataFrame({"x": ["a"], "value": [1.0]}), x="x")
    assert b"<text" not in canvas.outlined_svg(figure)
    assert figure.style == {}


def test_a_figure_shows_itself_in_a_notebook() -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    figure = figures.bars(pd.DataFrame({"x": ["a"], "value": [1.0]}), x="x")
    data, metadata = formatters.DisplayFormatter().format(figure)
    assert data["image/png"].startswith(b"\x89PNG")
    assert metadata["image/png"]["width"] == 460
