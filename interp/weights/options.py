"""Values of a configuration file, each of the kind that it must be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from interp.errors import ConfigError
from interp.files.foreign_files import shown

Options = Mapping[str, Any]


def number(options: Options, name: str, default: float | None = None) -> float:
    """A number above 0; one without a default has to be there."""
    value = options[name] if default is None else options.get(name, default)
    if not is_number(value) or not 0 < value < math.inf:
        raise ConfigError(f"{name} must be a number above 0, not {shown(value)}")
    return value


def whole(options: Options, name: str, default: int | None = None, least: int = 1) -> int:
    """A whole number of `least` or more; one without a default has to be there."""
    value = options[name] if default is None else options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number from {least} on, not {shown(value)}")
    return value


def flag(options: Options, name: str, default: bool) -> bool:
    """True or false."""
    value = options.get(name, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {shown(value)}")
    return value


def is_number(value: object) -> bool:
    """Whether a value is a number (true and false are none) that a float can hold."""
    # A whole number that no float can hold is none: it would overflow where it is used.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) < 2**1000
