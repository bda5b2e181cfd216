"""What all configurations check of their fields: numbers, choices, and the names of fields themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from interp.arguments import real_number, shown, whole_number
from interp.errors import ConfigError, nearest

MAX_SIZE = 2**48  # a larger size is a mistake: no machine holds such a tensor, and sums of several would overflow


def check_fields(cls: type, values: Mapping[str, Any]) -> None:
    """Refuse fields that a class does not have, and missing fields that it needs."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{cls.__name__} is made from a mapping of its fields, not from {shown(values)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            close = nearest(str(name), fields)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{cls.__name__} has no field {shown(name)}{hint}")
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values]
    if missing:
        raise ConfigError(
            f"{cls.__name__} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not given"
        )


def is_open(value: Any) -> bool:
    """Whether a field has TransformerLens's -1, which means "not given"."""
    return type(value) is int and value == -1


def settle_number(
    owner: object, name: str, where: str = "", *, least: float | None = None, above: float | None = None
) -> None:
    """Refuse a field that is not a finite number within bounds; NumPy's and torch's numbers become Python's own."""
    given = getattr(owner, name)
    number = real_number(f"{name}{where}", given, least=least, above=above)
    if not isinstance(given, int | float):  # an int stays an int, so that files and fingerprints keep their bytes
        object.__setattr__(owner, name, number)


def settle_whole(owner: object, name: str, least: int, where: str = "") -> None:
    """Refuse a field that is not a whole number within bounds; NumPy's and torch's numbers become Python's own."""
    number = whole_number(f"{name}{where}", getattr(owner, name), least=least, most=MAX_SIZE)
    object.__setattr__(owner, name, number)


def check_flag(owner: object, name: str, where: str = "") -> None:
    """Refuse a field that is not True or False."""
    if not isinstance(getattr(owner, name), bool):
        raise ConfigError(f"{name}{where} must be True or False, not {shown(getattr(owner, name))}")


def check_choice(field: str, value: object, choices: tuple[str | None, ...]) -> None:
    """Refuse a value that is not one of a field's choices, and name the nearest."""
    if isinstance(value, str | None) and value in choices:
        return
    close = nearest(str(value), [c for c in choices if c])
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"{field}={shown(value)} is not one of {', '.join(map(repr, choices))}{hint}")
