"""`View`: a picture that can be pointed at, in a notebook, as a file, or inside another page.

A view has parts, one below the other; each is a payload (one JSON object) and the name of the ES module in `js/` that
draws it. The page has no other script, asks nothing of any server, and takes a payload's text as text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from interp.errors import InterpError
from interp.files.whole_files import write_whole

SCHEMA = 1
"""The version of payloads: a page refuses one that it cannot read."""

HERE = Path(__file__).parent
EXPORTED = re.compile(r"^export (?=(?:(?:async )?function|class|const|let) (\w+))", re.MULTILINE)
LEFT = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)
IMPORTED = re.compile(r'^import (?:\* as (\w+)|\{([^}]*)\}) from "([^"]+)";\n', re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """One picture of a view.

    Attributes:
        name: the module that draws it, such as "attention".
        title: what it shows, in a few words.
        payload: plain values, and arrays as `interp.ui.views.arrays` writes them.
    """

    name: str
    title: str
    payload: Mapping[str, Any]


@dataclass(frozen=True)
class View:
    """What `interp.show` gives.

    In a notebook it displays itself, in a frame of its own that no other output can disturb. `save` writes a page that
    needs nothing else.

    Attributes:
        title: what it shows, in a few words.
        parts: its pictures, from top to bottom.
        height: of the frame in a notebook, in pixels.
    """

    title: str
    parts: Sequence[Part]
    height: int = 760

    def to_html(self) -> str:
        """The view as a page that needs nothing else, nor the network."""
        script = script_of(tuple(sorted({part.name for part in self.parts})))
        style = "\n" + style_of_views()
        # Styles of single elements (a bar's width) are set by the script, which no policy forbids.
        policy = f"default-src 'none'; script-src {csp_hash(script)}; style-src {csp_hash(style)}"
        parts = [{"view": part.name, "title": part.title, **part.payload} for part in self.parts]
        body = {"schema": SCHEMA, "title": self.title, "parts": parts}
        data = as_json(body)
        title = html.escape(self.title)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n"
            f'<main><h1 id="title">{title}</h1><div id="views"></div></main>\n'
            f'<script type="application/json" id="payload">{data}</script>\n'
            f'<script type="module">{script}</script>\n</body>\n</html>\n'
        )

    def save(self, path: str | Path) -> Path:
        """Write the page; a file that was there is replaced when the new one is whole.

        Raises:
            OutputError: the file cannot be written.
        """
        path = Path(path)
        write_whole(path, self.to_html().encode(), what="view")
        return path

    def _repr_html_(self) -> str:
        """A frame with the page in it, which may run its own script and reach nothing else."""
        page, title = html.escape(self.to_html()), html.escape(self.title)
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="{title}" '
            f'style="width: 100%; height: {self.height}px; border: 0"></iframe>'
        )

    def __repr__(self) -> str:
        parts = "1 part" if len(self.parts) == 1 else f"{len(self.parts)} parts"
        return f"View of {parts}: {', '.join(part.title for part in self.parts)}"


def csp_hash(content: str) -> str:
    """How a content security policy names a script or style by what is in it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def as_json(value: Any) -> str:
    """Plain values as JSON that can stand in a script element."""
    # There only "</script" and "<!--" have a meaning, and neither is left.
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def style_of_views() -> str:
    """The style that views need."""
    return (HERE / "base.css").read_text(encoding="utf-8")


@lru_cache
def script_of(names: Iterable[str], *, start: str = "start") -> str:
    """The modules of some views and all that they import, as one script without imports.

    Args:
        names: of the views.
        start: the module that runs when all are there, with `VIEWS`, the functions that draw them, by name.
    """

    def source(address: str) -> str:
        return (HERE / "js" / address.removeprefix("/")).read_text(encoding="utf-8")

    views = ", ".join(f'{name}: modules["/{name}.js"].render' for name in names)
    modules = [f"/{name}.js" for name in [*names, start]]
    return bundled(modules, source, before_last=f"const VIEWS = {{ {views} }};\n")


def bundled(entries: Iterable[str], source: Callable[[str], str], *, before_last: str = "") -> str:
    """Modules and all that they import, as one script without imports: `modules` has what each exports.

    Args:
        entries: addresses, such as "/views/lens.js".
        source: the text of the module at an address.
        before_last: a script that runs before the last entry.

    Raises:
        InterpError: a module with imports or exports of another form than `IMPORTED` and `EXPORTED`.
    """
    made: dict[str, str] = {}

    def add(address: str) -> None:
        text, head = source(address), ""
        for whole, listed, place in IMPORTED.findall(text):
            other = posixpath.normpath(posixpath.join(posixpath.dirname(address), place))
            if other not in made:
                add(other)
            taken = whole or f"{{{listed.replace(' as ', ': ')}}}"
            head += f'const {taken} = modules["{other}"];\n'
        own = EXPORTED.sub("", IMPORTED.sub("", text))
        if left := LEFT.search(own):
            raise InterpError(f"{address} cannot be bundled: it has {left[0]!r}, of another form than other modules")
        given = ", ".join(EXPORTED.findall(text))
        made[address] = f'modules["{address}"] = (() => {{\n{head}{own}return {{ {given} }};\n}})();\n'

    for entry in entries:
        add(entry)
    *others, last = made.values()
    return "const modules = {};\n" + "".join(others) + before_last + last
