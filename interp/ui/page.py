"""The figure report: one page that needs no network, its figures as files, and the record of how it was made.

1. `write_report` writes every figure as PDF, SVG, PNG and CSV, then `index.html` and `manifest.json`, into a temporary
   folder that replaces the old one when it is complete (`folder.py`).
2. The page contains its style, its pictures, the numbers behind them and one script. Its content security policy names
   style and script by what is in them and allows nothing else: no request. All text is escaped, invisible characters
   are named, and right-to-left text is isolated.
3. Without script the page is complete, as it is on paper: the script adds views of the numbers that can be pointed at,
   a look-up of everything that was measured of one head, and files made of the numbers that the page holds.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from interp.errors import InterpError, check_choice
from interp.figures.style import TEXT_WIDTH, outlined_svg, save, settled
from interp.text import characters
from interp.ui.folder import FORMAT, MANIFEST, check_output, replacing
from interp.ui.page_data import VIEWS, pointed, stored
from interp.ui.pictures import address
from interp.ui.tables import Table, table
from interp.ui.views.view import SCHEMA, as_json, csp_hash, script_of, style_of_views

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

__all__ = ["FigureItem", "Section", "check_output", "first_rows", "write_report"]

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
TEMPLATES = Path(__file__).parent
FORMATS = {"pdf": "PDF", "svg": "SVG", "png": "PNG", "csv": "data (CSV)"}


@dataclass(frozen=True)
class FigureItem:
    """A figure of a report.

    Attributes:
        name: the name of its files: lower case letters, digits, `-` and `_`.
        title: what it shows, in a few words.
        caption: how to read it, in sentences.
        figure: from `interp.figures`.
        frame: the numbers in it.
        alt: a description for readers who cannot see it; "" takes the title.
        view: how its numbers can be pointed at: "cells" (a map or bars, by the columns of `frame`), "attention",
            "lens", "circuit", or "" (not at all).
        tells: what `value` says of a row's head or other part, in a few words, for the look-up of one part; "" leaves
            the figure out of it.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    frame: pd.DataFrame
    alt: str = ""
    view: str = ""
    tells: str = ""


@dataclass(frozen=True)
class Section:
    """A section of a report: paragraphs, then preformatted text, figures and tables.

    In a paragraph or caption, `code` in backticks is set as code and `{figure:name}` becomes "Figure 3", with a link.

    Attributes:
        title: its heading.
        anchor: its id in the page: lower case letters, digits, `-` and `_`.
        text: its paragraphs.
        figures: its figures, numbered throughout the report.
        tables: pairs of a caption and a frame, numbered throughout the report.
        preformatted: text whose spaces and line breaks are kept, such as prompts.
        appendix: figures, and tables with their captions, that stand at the end of the report, with a link from here.
    """

    title: str
    anchor: str
    text: Sequence[str] = ()
    figures: Sequence[FigureItem] = ()
    tables: Sequence[tuple[str, pd.DataFrame]] = ()
    preformatted: str = ""
    appendix: Sequence[FigureItem | tuple[str, pd.DataFrame]] = ()

    @property
    def appended_figures(self) -> list[FigureItem]:
        """The figures of its appendix."""
        return [one for one in self.appendix if isinstance(one, FigureItem)]

    @property
    def appended_tables(self) -> list[tuple[str, pd.DataFrame]]:
        """The tables of its appendix."""
        return [one for one in self.appendix if not isinstance(one, FigureItem)]


def first_rows(caption: str, frame: pd.DataFrame, most: int, *, of: int | None = None) -> tuple[str, pd.DataFrame]:
    """A table with at most `most` rows, and a caption that says how many there are in all.

    Args:
        caption: what the table shows.
        frame: all rows, the most important first.
        most: how many rows to show.
        of: how many rows there are in all, if `frame` does not have all of them.
    """
    total = max(len(frame), of or 0)
    shown = min(most, len(frame))
    return (caption if shown == total else f"{caption} (the first {shown} of {total:,})"), frame.head(most)


@dataclass(frozen=True)
class Printed:
    """A table as the page prints it, with the path of its file."""

    number: int
    table: Table
    frame: pd.DataFrame
    file: str


@dataclass
class Picture:
    """A figure as the page shows it; `width` and `height` are in pixels."""

    number: int
    item: FigureItem
    width: int
    height: int
    uri: str = ""
    files: dict[str, str] = field(default_factory=dict)


def write_report(
    out: str | Path,
    *,
    title: str,
    question: str,
    summary: Sequence[str],
    sections: Sequence[Section],
    manifest: Mapping[str, Any],
    drawn: dict[str, Picture] | None = None,
) -> Path:
    """Write a report folder: `index.html`, `figures/` and `manifest.json`. Returns the path of the page.

    Args:
        out: the folder; missing, empty, or an earlier report, which is replaced as a whole when everything is written.
        title: the heading of the page.
        question: the question of the report, in one sentence.
        summary: the answer, in paragraphs that may refer to figures, as those of a `Section` may.
        sections: the body, in order; a section on provenance is added from the manifest.
        manifest: how it was made (`interp.study.provenance`), in JSON values; the report adds its own files under
            `report`.
        drawn: figures that an earlier call for the same folder has drawn, whose files are taken from there; those of
            this call are added. None draws all.

    Raises:
        OutputError: the folder holds something else or cannot be written; its content stays as it was.
        InterpError: two figures or sections with one name, a name with other characters, or a manifest that is not
            JSON.
    """
    _check_names(sections)
    parts = [item for section in sections for item in section.figures]
    parts += [item for section in sections for item in section.appended_figures]
    pictures = {item.name: _picture(number, item) for number, item in enumerate(parts, start=1)}
    chapters = _chapters(sections)
    earlier = {} if drawn is None else dict(drawn)
    with replacing(out) as folder:
        (folder / "figures").mkdir()
        for name, picture in pictures.items():
            if name in earlier and earlier[name].item is picture.item:
                _copy(earlier[name], picture, check_output(out), folder)
            else:
                _draw(picture, folder)
        _write_tables(chapters, folder)
        page = _render(pictures, chapters, title=title, question=question, summary=summary, manifest=manifest)
        (folder / "index.html").write_text(page, encoding="utf-8", newline="\n")
        record = {**manifest, "report": _record(folder, title, question, summary, pictures)}
        (folder / MANIFEST).write_text(_json(record), encoding="utf-8", newline="\n")
    if drawn is not None:
        drawn.update(pictures)
    return check_output(out) / "index.html"


def _check_names(sections: Sequence[Section]) -> None:
    items = [item for section in sections for item in (*section.figures, *section.appended_figures)]
    for item in items:
        check_choice("view", item.view, ["", "cells", *VIEWS])
    figures = [item.name for item in items]
    for kind, names in (("figure", figures), ("section", [section.anchor for section in sections])):
        for at, name in enumerate(names):
            if not NAME.fullmatch(name):
                raise InterpError(f"{name!r} cannot name a {kind}: use lower case letters, digits, '-' and '_'")
            if name in names[:at]:
                raise InterpError(f"two {kind}s of the report are named {name!r}: rename one of them")


@dataclass(frozen=True)
class Chapter:
    """A section with its tables as they are printed, in its own place and in the appendix."""

    section: Section
    tables: list[Printed]
    appended: list[Printed]


def _chapters(sections: Sequence[Section]) -> list[Chapter]:
    """The sections with their tables, which are numbered as figures are: those of the appendix come last."""
    numbers = count(1)

    def printed(pairs: Sequence[tuple[str, pd.DataFrame]]) -> list[Printed]:
        made = zip(pairs, numbers, strict=False)  # in this order, no number is lost at the end
        return [Printed(at, table(*pair), pair[1], f"tables/table-{at}.csv") for pair, at in made]

    own = [printed(section.tables) for section in sections]
    return [
        Chapter(section, tables, printed(section.appended_tables))
        for section, tables in zip(sections, own, strict=True)
    ]


def _write_tables(chapters: Sequence[Chapter], folder: Path) -> None:
    for chapter in chapters:
        for one in (*chapter.tables, *chapter.appended):
            (folder / "tables").mkdir(exist_ok=True)
            one.frame.to_csv(folder / one.file, index=False, lineterminator="\n")


def _picture(number: int, item: FigureItem) -> Picture:
    """A figure with its size on the page, not drawn yet."""
    across, down = item.figure.get_size_inches()
    pixels = 704 / TEXT_WIDTH  # a full-width figure fills the page's column of 44 rem
    return Picture(number, item, round(across * pixels), round(down * pixels))


def _draw(picture: Picture, folder: Path) -> None:
    """Write a figure's files, and put its image and their paths into `picture`."""
    figure = picture.item.figure
    with settled(figure):
        paths = save(figure, picture.item.frame, folder / "figures" / picture.item.name)
        image = outlined_svg(figure)
    picture.uri = address(image, next(path for path in paths if path.suffix == ".png"))
    picture.files = {path.suffix[1:]: path.relative_to(folder).as_posix() for path in paths}


def _copy(done: Picture, picture: Picture, source: Path, folder: Path) -> None:
    """Take a figure's files from the report of an earlier call, and what that call put into `done`."""
    for path in done.files.values():
        shutil.copyfile(source / path, folder / path)
    picture.uri, picture.files = done.uri, done.files


def _render(
    pictures: Mapping[str, Picture],
    chapters: Sequence[Chapter],
    *,
    title: str,
    question: str,
    summary: Sequence[str],
    manifest: Mapping[str, Any],
) -> str:
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    data = _data(pictures)
    script = script_of(
        tuple(sorted({one["view"] for one in data["figures"].values() if "view" in one})), start="report"
    )
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    return environment.get_template("page.html.j2").render(
        policy=f"default-src 'none'; img-src data:; style-src {csp_hash(style)}; script-src {csp_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        data=Markup(as_json(data)),
        lookup=any(picture.item.tells for picture in pictures.values()),
        title=title,
        question=question,
        summary=summary,
        byline=_byline(manifest),
        chapters=chapters,
        pictures=pictures,
        uris={name: Markup(picture.uri) for name, picture in pictures.items()},
        formats=FORMATS,
        provenance=[group for group in _groups(manifest) if group[1]],
        prose=lambda text: _prose(text, pictures),
        text=lambda value: _isolated(characters.visible_lines(str(value))),
        written=lambda value: _isolated("\n".join(map(characters.visible, str(value).split("\n")))),
    )


def _data(pictures: Mapping[str, Picture]) -> dict[str, Any]:
    """The numbers of all figures, how they can be pointed at, and what draws them."""
    figures = {}
    for name, picture in pictures.items():
        item = picture.item
        figures[name] = {
            "number": picture.number,
            "title": characters.visible(item.title),
            "tells": item.tells,
            **pointed(item.frame, item.view),
            **stored(item.frame),
        }
    return {"schema": SCHEMA, "style": style_of_views(), "figures": figures}


def _visible(value: Any) -> Any:
    """A value of the template: text with its invisible characters named; markup and other values unchanged."""
    return characters.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _isolated(text: str, *, sentences: bool = True) -> Markup:
    """Escaped text whose right-to-left parts are isolated, so that they do not move the text around them."""
    return Markup("").join(
        Markup("<bdi>{}</bdi>").format(piece) if is_rtl else escape(piece)
        for piece, is_rtl in characters.runs(text, sentences=sentences)
    )


def _prose(text: str, pictures: Mapping[str, Picture]) -> Markup:
    """Escaped text with `code` and `{figure:name}` as HTML; names of figures that do not exist stay as they are."""

    def reference(match: re.Match[str]) -> str:
        name = match[1]
        return f'<a href="#figure-{name}">Figure {pictures[name].number}</a>' if name in pictures else match[0]

    marked = re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(_isolated(characters.visible(text), sentences=False)))
    return Markup(re.sub(r"\{figure:([a-z0-9_-]+)\}", reference, marked))


def _byline(manifest: Mapping[str, Any]) -> list[str]:
    """Model, number of prompts, day and version, as far as the manifest has them."""
    model, prompts, versions = (manifest.get(name) or {} for name in ("model", "prompts", "versions"))
    parts = [
        model.get("name"),
        f"{prompts['n']} prompts" if "n" in prompts else None,
        str(manifest["time"])[:10] if manifest.get("time") else None,
        f"interp {versions['interp']}" if versions.get("interp") else None,
    ]
    return [str(part) for part in parts if part]


def _groups(manifest: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The manifest as groups of names and values; deeper nesting becomes a single value."""
    yield "run", [(name, _value(value)) for name, value in manifest.items() if not isinstance(value, Mapping)]
    for name, group in manifest.items():
        if isinstance(group, Mapping):
            yield name, [(key, _value(value)) for key, value in group.items()]


def _value(value: Any) -> str:
    """A value of the manifest as text; None inside mappings is left out."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(inner)}" for name, inner in value.items() if inner is not None) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(inner) for inner in value) or "–"
    return str(value)


def _record(
    folder: Path, title: str, question: str, summary: Sequence[str], pictures: Mapping[str, Picture]
) -> dict[str, Any]:
    """The contents of the report, with the SHA-256 of each file; by this record `folder.py` knows a report."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "format": FORMAT,
        "title": title,
        "question": question,
        "summary": list(summary),
        "figures": [
            {"number": at.number, "name": at.item.name, "title": at.item.title, "caption": at.item.caption}
            for at in pictures.values()
        ],
        "files": {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }


def _json(record: Mapping[str, Any]) -> str:
    try:
        return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InterpError(f"the manifest must hold only values that JSON allows: {error}") from error
