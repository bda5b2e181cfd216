"""A mechanism as a picture: roles of the prompt across, depth downwards, and what the parts that carry the answer do.

1. Every role is a column with the token that stands there in the first prompt; the answer is below the column where it
   is read. Every part is a box in the column of the role where it acts, in the order of computation.
2. A thin grey arrow leads to a head from the role that it looks at. A wide arrow from part to part shows what feeds
   what, one from a part to the answer what it adds to the logit difference directly: blue helps the right answer, red
   works against it, and the width is the effect. Where an arrow leads to several parts, it was measured for them
   together.
3. Arrows run beside the columns, each in a lane of its own: to parts on the left of their column, to the answer on its
   right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch
from matplotlib.path import Path

from interp.arguments import checked, column_of
from interp.figures.axes import numbers
from interp.figures.glyphs import drawable, width, written
from interp.figures.style import INK, MUTED, POINTS, RULE, SMALL, TEXT_WIDTH, TINY, Figure, blank, styled
from interp.names import READ_WORDS, Part

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW, HEAD, FOOT = 18.0, 34.0, 30.0  # points: of a part, above all parts, and below them
LEFT, LANE, TICK = 40.0, 7.0, 8.0  # points: for the names of layers, between two lanes, and from lane to box
BOX, ANSWER = 12.0, 14.0  # heights in points
HELPS, AGAINST, LOOKS = "#2166ac", "#b2182b", "#a6a6a6"
MOST_PATHS = 12
LEGEND = (
    "box: what patching it gives back, or ablating it takes away \N{MIDDLE DOT} grey arrow: looks at (attention)",
    "wide arrow: feeds, or adds to the logit difference \N{MIDDLE DOT} blue helps the answer, red works against it",
)


@dataclass(frozen=True)
class _Box:
    """A part at one role, in points."""

    across: float
    down: float
    half: float


@dataclass(frozen=True)
class _Lane:
    """A path to the parts of one column."""

    row: Any
    ends: tuple[_Box, ...]
    start: _Box


@checked
@styled()
def mechanism(
    frame: pd.DataFrame,
    *,
    roles: Mapping[str, str],
    answer: str,
    right: str = "",
    says: str = "",
    title: str | None = None,
) -> Figure:
    """The parts that carry an answer, what they look at, what they feed, and what they write.

    Args:
        frame: a row for each element: `kind` ("part", "look", "path" or "direct"), `component`, `role` (where it acts),
            `to` (the role that it looks at, the parts that it feeds, joined by " + ", or "answer"), `reads` ("q", "k",
            "v" or ""), `share` (its effect as a part of the difference between the prompts) and `value`.
        roles: each role, in the order of the prompt -> the token that stands there.
        answer: the role where the answer is read.
        right: the right answer.
        says: a sentence in place of parts, where there are none.
        title: as `interp.figures` describes it.

    Raises:
        UnknownName: a column that the frame does not have.
        InterpError: shares that are not numbers.
    """
    for name in ("kind", "component", "role", "to", "reads"):
        column_of(frame, name)
    if len(frame):
        numbers(frame, "share")
    parts = frame[frame["kind"] == "part"]
    looks, paths, direct = (frame[frame["kind"] == kind] for kind in ("look", "path", "direct"))
    paths = paths.head(MOST_PATHS)
    columns = _columns(roles, answer, parts, looks)
    order = _order(parts, paths)
    bottom = HEAD + max(len(order), 2) * ROW + 12
    across, down = TEXT_WIDTH * POINTS, bottom + FOOT
    figure = blank(TEXT_WIDTH, down / POINTS)
    axes = figure.subplots()
    axes.set(xlim=(0, across), ylim=(down, 0))
    axes.set_axis_off()
    places = _across(columns, paths, parts, len(direct), across)
    _header(axes, places, roles, bottom)
    if parts.empty:
        middle = HEAD + ROW + 4
        axes.text(across / 2, middle, written(says), ha="center", va="center", size=7.0, color=MUTED, wrap=True,
                  bbox={"facecolor": "white", "edgecolor": "none"})  # fmt: skip
    boxes = _boxes(axes, parts, order, places)
    _layers(axes, order)
    _looks(axes, looks, boxes, places)
    _paths(axes, paths, boxes)
    _answer(axes, direct, boxes, places.get(answer, across / 2), bottom, right)
    for line, text in enumerate(LEGEND if len(parts) else ()):
        axes.text(0, bottom + 4 + 7 * line, text, ha="left", va="center", size=TINY, color=MUTED)
    if title:
        figure.suptitle(written(title), x=0.01, ha="left", weight="bold", size=7.0)
    return figure


def _columns(roles: Mapping[str, str], answer: str, parts: pd.DataFrame, looks: pd.DataFrame) -> list[str]:
    """The roles that have a column: all of a few, of many those with something in them."""
    used = {*parts["role"], *looks["to"], answer}
    found = [role for role in roles if len(roles) <= 6 or role in used]
    return (["elsewhere"] if "" in used else []) + found


def _order(parts: pd.DataFrame, paths: pd.DataFrame) -> dict[str, int]:
    """The row of each part: by layer, and within a layer those that are fed together side by side."""
    sets = {name: at for at, ends in reversed(list(enumerate(paths["to"]))) for name in ends.split(" + ")}
    names = sorted(set(parts["component"]), key=lambda name: _depth(name, sets.get(name, -1)))
    return {name: at for at, name in enumerate(names)}


def _depth(name: str, together: int) -> tuple[Any, ...]:
    part = Part.parse(name)
    return part.layer, part.kind == "mlp", together, part


def _across(
    columns: Sequence[str], paths: pd.DataFrame, parts: pd.DataFrame, writers: int, across: float
) -> dict[str, float]:
    """The middle of each column: boxes keep clear of the lanes on both sides."""
    half = _half(parts)
    lanes = (len(paths) + 1) * LANE + TICK
    right = across - half - writers * LANE - 30
    left = LEFT + half + (lanes if len(columns) == 1 else 8)
    if len(columns) == 1:
        return {columns[0]: (left + right) / 2}
    # The last column has the lanes to the parts where the answer is read on its left.
    step = (right - left - lanes - 12) / (len(columns) - 1)
    places = {name: left + at * step for at, name in enumerate(columns)}
    return places | {columns[-1]: right}


def _half(parts: pd.DataFrame) -> float:
    texts = [_text(row) for row in parts.itertuples()]
    return max((width(text, SMALL) for text in texts), default=30.0) / 2 + 3


def _text(row: Any) -> str:
    return f"{row.component}  {_percent(row.share)}"


def _percent(share: float) -> str:
    return f"{share:+.0%}".replace("-", "\N{MINUS SIGN}")


def _header(axes: Axes, places: Mapping[str, float], roles: Mapping[str, str], bottom: float) -> None:
    """The roles with their tokens, and a line down from each."""
    for role, at in places.items():
        axes.plot([at, at], [HEAD - 8, bottom - 10], color="#e3e3e3", linewidth=0.8, zorder=0)
        axes.text(at, 8, drawable(role), ha="center", va="center", size=SMALL, color=MUTED)
        token = drawable(roles.get(role, ""))
        axes.text(at, 19, token or "…", ha="center", va="center", size=7.0, color=INK, weight="bold")


def _boxes(
    axes: Axes, parts: pd.DataFrame, order: Mapping[str, int], places: Mapping[str, float]
) -> dict[str, list[_Box]]:
    """Draw every part at its roles, the strongest first."""
    boxes: dict[str, list[_Box]] = {}
    half = _half(parts)
    for row in parts.itertuples():
        place = _Box(places[row.role or "elsewhere"], HEAD + (order[row.component] + 0.5) * ROW, half)
        box = FancyBboxPatch(
            (place.across - half, place.down - BOX / 2), 2 * half, BOX, boxstyle="round,pad=0,rounding_size=2.5"
        )
        box.set(facecolor="white", edgecolor=_colour(row.share), linewidth=0.8, zorder=5)
        axes.add_patch(box)
        style: dict[str, Any] = {"va": "center_baseline", "size": SMALL, "zorder": 6}
        axes.text(place.across - half + 3, place.down, row.component, ha="left", color=INK, **style)
        axes.text(
            place.across + half - 3, place.down, _percent(row.share), ha="right", color=_colour(row.share), **style
        )
        boxes.setdefault(row.component, []).append(place)
    return boxes


def _colour(share: float) -> str:
    return HELPS if share > 0 else AGAINST


def _layers(axes: Axes, order: Mapping[str, int]) -> None:
    """The names of layers on the left, each at its first part."""
    told: set[int | None] = set()
    for name, at in order.items():
        layer = Part.parse(name).layer
        if layer not in told:
            axes.text(
                0, HEAD + (at + 0.5) * ROW, f"layer {layer}", ha="left", va="center_baseline", size=SMALL, color=MUTED
            )
        told.add(layer)


def _looks(axes: Axes, looks: pd.DataFrame, boxes: Mapping[str, list[_Box]], places: Mapping[str, float]) -> None:
    """A thin arrow from the role that is looked at to the part that looks there."""
    for row in looks.itertuples():
        box = next((one for one in boxes.get(row.component, ()) if one.across == places.get(row.role)), None)
        if box is None or row.to not in places:
            continue
        start, side = places[row.to], -1 if places[row.to] < box.across else 1
        end, down = box.across + side * box.half, box.down - 2.5
        axes.plot([start], [down], marker="o", markersize=2.4, color=LOOKS, zorder=3)
        _arrow(axes, (start, down), (end, down), LOOKS, 0.8)
        axes.text(
            start - side * 4, down - 1, f"looks {row.value:.2f}", size=TINY, color=MUTED, va="bottom",
            ha="left" if side < 0 else "right", zorder=3,
        )  # fmt: skip


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, thick: float) -> None:
    size = 3.5 + 1.6 * thick
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=size,
            shrinkA=0,
            shrinkB=0,
            color=colour,
            linewidth=thick,
            zorder=4,
        )
    )


def _thick(share: float) -> float:
    return 0.6 + 3.4 * min(abs(share), 1.0)


def _paths(axes: Axes, paths: pd.DataFrame, boxes: Mapping[str, list[_Box]]) -> None:
    """From part to part: out of the sender, down a lane on the left of the readers' column, and into each of them."""
    lanes = []
    for row in paths.itertuples():
        ends = [boxes[name][0] for name in row.to.split(" + ") if name in boxes]
        if row.component not in boxes or not ends:
            continue
        for across in dict.fromkeys(end.across for end in ends):
            own = sorted((end for end in ends if end.across == across), key=lambda end: end.down)
            lanes.append(_Lane(row, tuple(own), boxes[row.component][0]))
    used: dict[float, int] = {}
    labels: dict[tuple[str, bool], list[tuple[_Lane, float]]] = {}
    # Those that begin highest are furthest to the left, so that few lanes cross.
    for lane in sorted(lanes, key=lambda one: (one.start.down, -one.ends[-1].down), reverse=True):
        across = lane.ends[0].across
        at = used.get(across, 0)
        used[across] = at + 1
        inner = min(end.across - end.half for end in lane.ends)
        if lane.start.across == across:
            inner = min(inner, lane.start.across - lane.start.half)
        place = inner - TICK - at * LANE
        _path(axes, lane, place)
        labels.setdefault((lane.row.component, lane.start.across == across), []).append((lane, place))
    for (_, beside), labelled in labels.items():
        _label(axes, labelled, beside)


def _path(axes: Axes, lane: _Lane, at: float) -> None:
    """One lane at a distance from the left."""
    start, colour, thick = lane.start, _colour(lane.row.share), _thick(lane.row.share)
    low = lane.ends[-1].down + 2.5
    turn, side = 4.0, -1 if start.across >= at else 1
    out = start.down + 2.5
    points = [(start.across + side * start.half, out), (at - side * turn, out), (at, out), (at, out + turn)]
    codes = [Path.MOVETO, Path.LINETO, Path.CURVE3, Path.CURVE3]
    points.append((at, low - turn if low - turn > points[-1][1] else points[-1][1]))
    codes.append(Path.LINETO)
    line = PathPatch(Path(points, codes), facecolor="none", edgecolor=colour, linewidth=thick, zorder=3.5)
    line.set(capstyle="butt", joinstyle="round")
    axes.add_patch(line)
    for end in lane.ends:
        down = end.down + 2.5
        bend = Path([(at, down - turn), (at, down), (at + turn, down)], [Path.MOVETO, Path.CURVE3, Path.CURVE3])
        corner = PathPatch(bend, facecolor="none", edgecolor=colour, linewidth=thick, zorder=3.5)
        axes.add_patch(corner)
        _arrow(axes, (at + turn - 0.5, down), (end.across - end.half, down), colour, min(thick, 1.6))


def _label(axes: Axes, lanes: Sequence[tuple[_Lane, float]], beside: bool) -> None:
    """What the lanes from one part carry, the strongest first: left of them, or above the line beside its box."""
    own = sorted((lane.row for lane, _ in lanes), key=lambda row: -abs(row.share))
    parts = [(f"{_percent(row.share)} {READ_WORDS.get(row.reads, '')}".rstrip(), _colour(row.share)) for row in own]
    start, places = lanes[0][0].start, [at for _, at in lanes]
    wide = sum(width(text, TINY) for text, _ in parts) + 4 * (len(parts) - 1)
    if beside:  # left of all lanes, so that none crosses it
        across, down = min(places) - 3 - wide, start.down + 7
    else:
        side = -1 if start.across >= min(places) else 1
        across = start.across + side * (start.half + 3) - (wide if side < 0 else 0)
        down = start.down - 2
    back = {"facecolor": "white", "edgecolor": "none", "pad": 0.2}
    for text, colour in parts:
        axes.text(across, down, text, ha="left", va="center", size=TINY, color=colour, zorder=7, bbox=back)
        across += width(text, TINY) + 4


def _answer(
    axes: Axes, direct: pd.DataFrame, boxes: Mapping[str, list[_Box]], at: float, bottom: float, right: str
) -> None:
    """The answer, and what is written to it: out of each part to the right, and down a lane of its own."""
    text = f"answer: {drawable(right)}" if right else "answer"
    rows = [row for row in direct.itertuples() if row.component in boxes]
    rows.sort(key=lambda row: boxes[row.component][0].down, reverse=True)
    edge = max((boxes[row.component][0].half for row in rows), default=0.0)
    half = max(width(text, 7.0) / 2 + 6, edge + len(rows) * LANE + 8 if rows else 0.0)
    box = FancyBboxPatch((at - half, bottom), 2 * half, ANSWER, boxstyle="round,pad=0,rounding_size=3")
    box.set(facecolor="#f2f2f2", edgecolor=RULE, linewidth=0.8, zorder=5)
    axes.add_patch(box)
    axes.text(at, bottom + ANSWER / 2, text, ha="center", va="center_baseline", size=7.0, color=INK, zorder=6)
    for number, row in enumerate(rows):
        start, lane = boxes[row.component][0], at + edge + LANE * (number + 0.8)
        colour, thick = _colour(row.share), _thick(row.share)
        turn = 4.0
        line = Path(
            [(start.across + start.half, start.down), (lane - turn, start.down), (lane, start.down),
             (lane, start.down + turn), (lane, bottom - 3)],
            [Path.MOVETO, Path.LINETO, Path.CURVE3, Path.CURVE3, Path.LINETO],
        )  # fmt: skip
        axes.add_patch(PathPatch(line, facecolor="none", edgecolor=colour, linewidth=thick, zorder=3))
        _arrow(axes, (lane, bottom - 4), (lane, bottom), colour, min(thick, 1.6))
        axes.text(at + edge + LANE * (len(rows) + 0.4), start.down, f"{row.value:+.2f}".replace("-", "\N{MINUS SIGN}"),
                  ha="left", va="center_baseline", size=SMALL, color=colour, zorder=6)  # fmt: skip
