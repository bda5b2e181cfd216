"""`View`: a picture that can be pointed at, in a notebook, as a file, or inside another page.

A view has parts, one below the other; each is a payload (one JSON object) and the name of the ES module in `js/` that
draws it. The page has no other script, asks nothing of any server, and takes a payload's text as text.
"""

from __future__ import annotations

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
from interp.ui.page import csp_hash

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
        style = "\n" + (HERE / "base.css").read_text(encoding="utf-8")
        # Styles of single elements (a bar's width) are set by the script, which no policy forbids.
        policy = f"default-src 'none'; script-src {csp_hash(script)}; style-src {csp_hash(style)}"
        parts = [{"view": part.name, "title": part.title, **part.payload} for part in self.parts]
        body = {"schema": SCHEMA, "title": self.title, "parts": parts}
        # Within a script element only "</script" and "<!--" have a meaning, and neither is left.
        data = json.dumps(body, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
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
        return f"View of {len(self.parts)} parts: {', '.join(part.title for part in self.parts)}"


@lru_cache
def script_of(names: Iterable[str]) -> str:
    """The modules of some views and all that they import, as one script without imports."""

    def source(address: str) -> str:
        return (HERE / "js" / address.removeprefix("/")).read_text(encoding="utf-8")

    views = ", ".join(f'{name}: modules["/{name}.js"].render' for name in names)
    return f"{bundled([f'/{name}.js' for name in names], source)}const VIEWS = {{ {views} }};\n{source('/start.js')}"


def bundled(entries: Iterable[str], source: Callable[[str], str]) -> str:
    """Modules and all that they import, as one script without imports: `modules` has what each exports.

    Args:
        entries: addresses, such as "/views/lens.js".
        source: the text of the module at an address.

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
    return "const modules = {};\n" + "".join(made.values())
