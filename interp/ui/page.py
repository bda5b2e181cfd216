"""The figure report: one page that opens without a network, its figures as files, and the record of how it was made.

1. `write_report` writes every figure as PDF, SVG, PNG and CSV, then `index.html` and `manifest.json`, into a temporary
   folder that takes the place of the old one when it is complete (`folder.py`).
2. The page holds its style and pictures itself. Its content security policy allows those and nothing else: no script,
   no request. All text is escaped, what cannot be seen in it is named, and what runs from right to left is isolated.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from interp.errors import InterpError
from interp.figures.style import TEXT_WIDTH, outlined_svg, save, settled
from interp.text import characters
from interp.ui.folder import FORMAT, MANIFEST, check_output, replacing
from interp.ui.tables import table

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

__all__ = ["FigureItem", "Section", "check_output", "first_rows", "write_report"]

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
ROOM = Path(__file__).parent
LARGEST_SVG = 600_000
FORMATS = {"pdf": "PDF", "svg": "SVG", "png": "PNG", "csv": "data (CSV)"}


@dataclass(frozen=True)
class FigureItem:
    """A figure of a report.

    Attributes:
        name: its files' name: lower case letters, digits, `-` and `_`.
        title: what it shows, in a few words.
        caption: how to read it, in sentences.
        figure: from `interp.figures`.
        frame: the numbers in it.
        alt: what it shows, for those who do not see it; "" takes the title.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    frame: pd.DataFrame
    alt: str = ""


@dataclass(frozen=True)
class Section:
    """A section of a report: paragraphs, then preformatted text, figures and tables.

    In a paragraph or caption, `code` in backticks is set as such and `{figure:name}` becomes "Figure 3", with a link.

    Attributes:
        title: its heading.
        anchor: its id in the page: lower case letters, digits, `-` and `_`.
        text: its paragraphs.
        figures: its figures, numbered through the report.
        tables: pairs of a caption and a frame, numbered through the report.
        preformatted: text whose spaces and line breaks count, such as prompts.
    """

    title: str
    anchor: str
    text: Sequence[str] = ()
    figures: Sequence[FigureItem] = ()
    tables: Sequence[tuple[str, pd.DataFrame]] = ()
    preformatted: str = ""


def first_rows(caption: str, frame: pd.DataFrame, most: int, *, of: int | None = None) -> tuple[str, pd.DataFrame]:
    """A table of a section that may have too many rows: the first of them, and a caption that says of how many.

    Args:
        caption: what the table shows.
        frame: all rows, those that matter most first.
        most: how many are shown.
        of: how many there would be, where `frame` itself has not all.
    """
    total = max(len(frame), of or 0)
    shown = min(most, len(frame))
    return (caption if shown == total else f"{caption} (the first {shown} of {total:,})"), frame.head(most)


@dataclass
class Picture:
    """A figure as the page shows it; `width` and `height` in pixels."""

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
) -> Path:
    """Write a report folder: `index.html`, `figures/` and `manifest.json`. Returns the path of the page.

    Args:
        out: the folder; missing, empty, or an earlier report, which is replaced as a whole when all is written.
        title: heads the page.
        question: what was asked, in one sentence.
        summary: the answer, in paragraphs that may refer to figures as those of a `Section`.
        sections: the body, in order; a section on provenance is added from the manifest.
        manifest: how it was made (`interp.study.provenance`), as JSON has it; the report adds its own files under
            `report`.

    Raises:
        OutputError: the folder holds something else or cannot be written; what was there stays as it was.
        InterpError: two figures or sections of one name, a name that is no file name, or a manifest that is not JSON.
    """
    _check_names(sections)
    numbers = count(1)
    pictures = {item.name: _picture(next(numbers), item) for section in sections for item in section.figures}
    with replacing(out) as folder:
        (folder / "figures").mkdir()
        for picture in pictures.values():
            _draw(picture, folder)
        page = _render(pictures, title=title, question=question, summary=summary, sections=sections, manifest=manifest)
        (folder / "index.html").write_text(page, encoding="utf-8", newline="\n")
        record = {**manifest, "report": _record(folder, title, question, summary, pictures)}
        (folder / MANIFEST).write_text(_json(record), encoding="utf-8", newline="\n")
    return check_output(out) / "index.html"


def _check_names(sections: Sequence[Section]) -> None:
    figures = [item.name for section in sections for item in section.figures]
    for kind, names in (("figure", figures), ("section", [section.anchor for section in sections])):
        for at, name in enumerate(names):
            if not NAME.fullmatch(name):
                raise InterpError(f"{name!r} cannot name a {kind}: take lower case letters, digits, '-' and '_'")
            if name in names[:at]:
                raise InterpError(f"two {kind}s of the report are named {name!r}")


def _picture(number: int, item: FigureItem) -> Picture:
    across, down = item.figure.get_size_inches()
    pixels = 704 / TEXT_WIDTH  # a full-width figure fills the page's column of 44 rem
    return Picture(number, item, round(across * pixels), round(down * pixels))


def _draw(picture: Picture, folder: Path) -> None:
    figure = picture.item.figure
    with settled(figure):
        paths = save(figure, picture.item.frame, folder / "figures" / picture.item.name)
        image, kind = outlined_svg(figure), "svg+xml"
    if len(image) > LARGEST_SVG:
        image, kind = next(path for path in paths if path.suffix == ".png").read_bytes(), "png"
    picture.uri = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    picture.files = {path.suffix[1:]: path.relative_to(folder).as_posix() for path in paths}


def _render(
    pictures: Mapping[str, Picture],
    *,
    title: str,
    question: str,
    summary: Sequence[str],
    sections: Sequence[Section],
    manifest: Mapping[str, Any],
) -> str:
    style = (ROOM / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    numbers = count(1)
    environment = Environment(
        loader=FileSystemLoader(ROOM),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_seen,
    )
    return environment.get_template("page.html.j2").render(
        policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        style=Markup(style),
        title=title,
        question=question,
        summary=summary,
        byline=_byline(manifest),
        sections=[(section, [(next(numbers), table(*pair)) for pair in section.tables]) for section in sections],
        pictures=pictures,
        formats=FORMATS,
        provenance=[group for group in _groups(manifest) if group[1]],
        prose=lambda text: _prose(text, pictures),
        text=lambda value: _isolated(characters.visible_lines(str(value))),
        written=lambda value: _isolated("\n".join(map(characters.visible, str(value).split("\n")))),
    )


def _seen(value: Any) -> Any:
    """What a template writes: text with all of it visible, unless it is markup already."""
    return characters.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _isolated(text: str, *, sentences: bool = True) -> Markup:
    """Escaped text whose pieces that run from right to left do not move what stands beside them."""
    return Markup("").join(
        Markup("<bdi>{}</bdi>").format(piece) if turned else escape(piece)
        for piece, turned in characters.runs(text, sentences=sentences)
    )


def _prose(text: str, pictures: Mapping[str, Picture]) -> Markup:
    """Escaped text with `code` and `{figure:name}` set; a figure that does not exist stays as it was written."""

    def reference(found: re.Match[str]) -> str:
        name = found[1]
        return f'<a href="#figure-{name}">Figure {pictures[name].number}</a>' if name in pictures else found[0]

    marked = re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(_isolated(characters.visible(text), sentences=False)))
    return Markup(re.sub(r"\{figure:([a-z0-9_-]+)\}", reference, marked))


def _byline(manifest: Mapping[str, Any]) -> list[str]:
    model, prompts, versions = (manifest.get(name) or {} for name in ("model", "prompts", "versions"))
    parts = [
        model.get("name"),
        f"{prompts['n']} prompts" if "n" in prompts else None,
        str(manifest["time"])[:10] if manifest.get("time") else None,
        f"interp {versions['interp']}" if versions.get("interp") else None,
    ]
    return [str(part) for part in parts if part]


def _groups(manifest: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The manifest as groups of names and values; what is nested deeper is one value."""
    yield "run", [(name, _value(value)) for name, value in manifest.items() if not isinstance(value, Mapping)]
    for name, group in manifest.items():
        if isinstance(group, Mapping):
            yield name, [(key, _value(value)) for key, value in group.items()]


def _value(value: Any) -> str:
    """A value of the manifest in print; inside lists and mappings nothing is said of what is None."""
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
    """What the report consists of, with the SHA-256 of each file; it marks the folder as ours."""
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
        raise InterpError(f"the manifest must be made of JSON's values: {error}") from error
