"""Reading one option of a configuration file: a number, a whole number, or true or false."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interp.arguments import real_number, shown, whole_number
from interp.errors import ConfigError

Options = Mapping[str, Any]


def number(options: Options, name: str, default: float | None = None) -> float:
    """A number above 0; an option without a default must be present."""
    value = options[name] if default is None else options.get(name, default)
    real_number(name, value, above=0)
    return value


def whole(options: Options, name: str, default: int | None = None, least: int = 1) -> int:
    """An integer of `least` or more; an option without a default must be present."""
    value = options[name] if default is None else options.get(name, default)
    return whole_number(name, value, least=least)


def flag(options: Options, name: str, default: bool) -> bool:
    """True or false."""
    value = options.get(name, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {shown(value)}")
    return value


def is_number(value: object) -> bool:
    """Whether a value is a number (true and false are not) that fits into a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) < 2**1000
