"""Checksums that saved files carry, so that a bit that flipped since is noticed and never becomes a number.

1. JSON has the SHA-256 of its other entries among them (`of_values`). How it is laid out does not count.
2. Other files have the SHA-256 of their bytes inside themselves: where it stands, `BLANK` stood when it was taken
   (`sealed`, `is_sound`).

Files of earlier versions have none, and are read as they are.
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
    """SHA-256 (hex) of plain JSON values: the same before they are written and after they were read.

    >>> of_values({"b": (1, 2), "a": {10: "x", 9: "y"}}) == of_values({"a": {"9": "y", "10": "x"}, "b": [1, 2]})
    True
    """
    plain = json.dumps(json.loads(json.dumps(content)), ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()


def sealed(content: bytes, *, salt: bytes = b"") -> bytes:
    """The same bytes with their checksum in place of the last `BLANK` among them.

    Args:
        content: a file that has `BLANK` in it.
        salt: what else the file belongs to, such as its name.

    >>> is_sound(sealed(b"one " + BLANK + b" two"))
    True
    """
    at = content.rindex(BLANK)
    return content[:at] + MARK + _digest(content, salt) + content[at + len(BLANK) :]


def is_sound(content: bytes, *, salt: bytes = b"") -> bool | None:
    """Whether a file is as `sealed` made it; None where it has no checksum."""
    at = content.rfind(MARK)
    if at < 0:
        return None
    while at >= 0:  # what a user wrote may look like one
        end = at + len(BLANK)
        if content[at + len(MARK) : end] == _digest(content[:at] + BLANK + content[end:], salt):
            return True
        at = content.rfind(MARK, 0, at)
    return False


def _digest(content: bytes, salt: bytes) -> bytes:
    return hashlib.sha256(salt + content).hexdigest().encode()
