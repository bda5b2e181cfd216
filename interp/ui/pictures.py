"""A figure as the page holds it: an SVG that is as short as its looks allow, or dots where an SVG would be too long.

1. Numbers of the SVG have two digits after the point, which is a hundredth of a point on paper; what is not drawn goes.
2. Of what is still long, such as a map with a word in every cell, the page holds dots: WebP in 256 colours, made of the
   PNG that stands beside the page.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from urllib.parse import quote

from PIL import Image, features

LONGEST = 48_000  # letters of an SVG; dots take the place of a longer one, if they are shorter
COLOURS = 256
FRACTION = re.compile(r"-?\d+\.\d{3,}")
NOT_DRAWN = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<!--.*?-->", re.DOTALL)
KEPT = " !$()*+,-./:;=?@[]^_'{}|~"  # letters that an address in double quotes may hold as they are


def address(svg: bytes, png: Path) -> str:
    """The figure as an address of itself (`data:`), which needs no escaping between double quotes.

    Args:
        svg: the figure, its letters drawn as shapes (`outlined_svg`).
        png: the file of the same figure as dots.
    """
    drawn = "data:image/svg+xml," + quote(shortened(svg.decode("utf-8")).replace('"', "'"), safe=KEPT)
    if len(drawn) <= LONGEST:
        return drawn
    dots = _dots(png)
    return dots if len(dots) < len(drawn) else drawn


def shortened(svg: str) -> str:
    r"""An SVG without comments, and with the digits that can be seen.

    >>> shortened('<g>\n  <!-- axis -->\n  <path d="M 1.234567 20.5 L 0.0156250 -3.100000"/>\n</g>')
    '<g><path d="M 1.23 20.5 L 0.01562 -3.1"/></g>'
    """
    text = re.sub(r"\s+", " ", re.sub(r">\s+<", "><", NOT_DRAWN.sub("", svg)))
    return FRACTION.sub(_rounded, text).strip()


def _rounded(found: re.Match[str]) -> str:
    value = float(found[0])
    return f"{round(value, 2):.10g}" if abs(value) >= 1 else f"{value:.4g}" if abs(value) >= 1e-4 else "0"


def _dots(png: Path) -> str:
    kind, content = "png", png.read_bytes()
    if features.check("webp"):  # Pillow can be built without
        made = io.BytesIO()
        with Image.open(png) as image:
            few = image.convert("RGB").quantize(COLOURS).convert("RGB")
            few.save(made, "WEBP", lossless=True, quality=80, method=4)
        kind, content = min([("webp", made.getvalue()), (kind, content)], key=lambda one: len(one[1]))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
