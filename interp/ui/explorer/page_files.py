"""The page's files: by their addresses, as a server serves them, and as one page that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from interp.ui.views import view
from interp.ui.views.view import csp_hash

PAGE = Path(__file__).parent / "page"
VIEWS = view.HERE
STYLE = re.compile(r'<link rel="stylesheet" href="([^"]+)">\n')
SCRIPT = re.compile(r'<script type="module" src="([^"]+)"></script>\n')


def files() -> dict[str, tuple[Path, str]]:
    """The files of the page: address to file and its kind."""
    script, style = "text/javascript", "text/css"
    found = {"/": (PAGE / "explorer.html", "text/html"), "/views/base.css": (VIEWS / "base.css", style)}
    found |= {f"/{path.name}": (path, style) for path in PAGE.glob("*.css")}
    found |= {f"/{path.name}": (path, script) for path in PAGE.glob("*.js")}
    return found | {f"/views/{path.name}": (path, script) for path in (VIEWS / "js").glob("*.js")}


def whole(instead: Mapping[str, Path]) -> str:
    """The page as one text, with its styles and scripts in it, which may reach nobody.

    Args:
        instead: address to another file than the server's.
    """
    places = {address: path for address, (path, _) in files().items()} | dict(instead)

    def source(address: str) -> str:
        return places[address].read_text(encoding="utf-8")

    page = source("/")
    style = "\n" + "".join(source(address) for address in STYLE.findall(page))
    script = "\n" + view.bundled(SCRIPT.findall(page), source)
    policy = (
        f"default-src 'none'; script-src {csp_hash(script)}; style-src {csp_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    page = SCRIPT.sub("", STYLE.sub("", page))
    head, rest = page.split('<meta charset="utf-8">\n')
    told = f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    head_end = f'<style>{style}</style>\n<script type="module">{script}</script>\n</head>'
    return head + told + rest.replace("</head>", head_end)
