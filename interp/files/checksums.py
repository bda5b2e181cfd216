"""Checksums inside saved files, so that a damaged file is noticed before its numbers are used.

1. A JSON file holds the SHA-256 of its other entries (`of_values`). Its layout does not count.
2. Other files hold the SHA-256 of their own bytes. It is computed with `BLANK` in the place where it is then written
   (`sealed`, `is_sound`).

Files of earlier versions have no checksum and are read without this check.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from interp.errors import ConfigError

MARK = b"interp-sha256:"
BLANK = MARK + b"0" * 64


def plain_json(name: str, content: Any) -> Any:
    """What may be written as JSON, as it is.

    Raises:
        ConfigError: it holds something else than texts, numbers, lists and mappings.
    """
    try:
        json.dumps(content)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name} must be plain JSON values to be saved: {error}") from None
    return content


def of_values(content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of plain JSON values: the same before writing and after reading.

    >>> of_values({"b": (1, 2), "a": {10: "x", 9: "y"}}) == of_values({"a": {"9": "y", "10": "x"}, "b": [1, 2]})
    True
    """
    plain = json.dumps(json.loads(json.dumps(content)), ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()


def sealed(content: bytes, *, salt: bytes = b"") -> bytes:
    """The same bytes with their checksum in place of the last `BLANK`.

    Args:
        content: the bytes of a file that contains `BLANK`.
        salt: what else the file belongs to, such as its name.

    >>> is_sound(sealed(b"one " + BLANK + b" two"))
    True
    """
    at = content.rindex(BLANK)
    return content[:at] + MARK + _digest(content, salt) + content[at + len(BLANK) :]


def is_sound(content: bytes, *, salt: bytes = b"") -> bool | None:
    """Whether a file is unchanged since `sealed`; None if it has no checksum."""
    at = content.rfind(MARK)
    if at < 0:
        return None
    while at >= 0:  # the user's own text may look like a checksum: try each
        end = at + len(BLANK)
        if content[at + len(MARK) : end] == _digest(content[:at] + BLANK + content[end:], salt):
            return True
        at = content.rfind(MARK, 0, at)
    return False


def _digest(content: bytes, salt: bytes) -> bytes:
    return hashlib.sha256(salt + content).hexdigest().encode()
