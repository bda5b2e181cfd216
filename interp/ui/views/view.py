"""`View`: a picture that can be pointed at, in a notebook, as a file, or inside another page.

A view has parts, one below the other; each is a payload (one JSON object) and the name of the ES module in `js/` that
draws it. The page has no other script, asks nothing of any server, and takes a payload's text as text.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from interp.files.whole_files import write_whole
from interp.ui.page import csp_hash

SCHEMA = 1
"""The version of payloads: a page refuses one that it cannot read."""

HERE = Path(__file__).parent
EXPORTED = re.compile(r"^export (?=function|const|let)", re.MULTILINE)
IMPORTED = re.compile(r"^import \{([^}]*)\} from \"\./(\w+)\.js\";\n", re.MULTILINE)
NAMES = re.compile(r"^export (?:function|const|let) (\w+)", re.MULTILINE)


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
    made: dict[str, str] = {}

    def add(module: str) -> None:
        source = (HERE / "js" / f"{module}.js").read_text(encoding="utf-8")
        needed = IMPORTED.findall(source)
        for _, other in needed:
            if other not in made:
                add(other)
        head = "".join(f"const {{{listed}}} = modules.{other};\n" for listed, other in needed)
        own = EXPORTED.sub("", IMPORTED.sub("", source))
        made[module] = (
            f"modules.{module} = (() => {{\n{head}{own}return {{ {', '.join(NAMES.findall(source))} }};\n}})();\n"
        )

    for name in names:
        add(name)
    views = f"const VIEWS = {{ {', '.join(f'{name}: modules.{name}.render' for name in names)} }};\n"
    return (
        "const modules = {};\n"
        + "".join(made.values())
        + views
        + (HERE / "js" / "start.js").read_text(encoding="utf-8")
    )
