"""Plain arguments: whole numbers, numbers, shares, seeds and indices, checked in one place and refused by name.

A whole number is of any kind: Python's, NumPy's, or an array or tensor without axes, so that a row of a table serves as
an argument. True and False are none. What a function gets from here is Python's own, whatever it was given.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import numbers
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from interp.errors import ConfigError, InterpError, PromptError, UnknownName, unknown

if TYPE_CHECKING:
    import torch

MOST = 10_000_000  # of draws, steps and the like: more are a mistake, and would never end
LARGEST_SEED = 2**64 - 1  # what torch takes; NumPy takes more
NO_LISTS = (str, bytes, Mapping)  # what can be gone through, and yet is no list of numbers

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


F = TypeVar("F", bound=Callable[..., Any])


def checked(function: F) -> F:
    """Let a function refuse arguments of another kind than its annotations say: by name, and before it does anything.

    What an annotation says beyond kinds that are known here (`_kind`) is left to the function, and so are bounds.
    Keywords that the function takes together, as `**options: Unpack[SweepOptions]`, are checked like those that it
    takes one by one, and stand in its signature; one that it does not take is an `UnknownName`.

    >>> @checked
    ... def draw(n: int, names: Sequence[str] | None = None) -> None: ...
    >>> draw("4")
    Traceback (most recent call last):
        ...
    interp.errors.ConfigError: n must be a whole number, not '4'
    """
    signature = inspect.signature(function)
    apart = _taken_apart(signature, function)
    together, signature = apart is not signature, apart
    kinds = {
        name: list(map(_kind, _alternatives(parameter.annotation)))
        for name, parameter in signature.parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    known = {name: [kind for kind in found if kind] for name, found in kinds.items() if found and all(found)}

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if together and (odd := [name for name in kwargs if name not in signature.parameters]):
            raise unknown(f"argument of {function.__name__}", odd[0], signature.parameters)
        given: Mapping[str, Any] = {}
        with contextlib.suppress(TypeError):  # an argument that is missing or unknown: Python says it best, below
            given = signature.bind(*args, **kwargs).arguments
        for name, value in given.items():
            if name in known and not any(fits(value) for _, fits in known[name]):
                words = " or ".join(dict.fromkeys(said for said, _ in known[name]))
                raise ConfigError(f"{name} must be {words}, not {shown(value)}")
        return function(*args, **kwargs)

    wrapped.__signature__ = signature  # type: ignore[attr-defined]
    return cast(F, wrapped)


def _taken_apart(signature: inspect.Signature, function: Callable[..., Any]) -> inspect.Signature:
    """The signature with every key of `**options: Unpack[SomeTypedDict]` as a keyword of its own."""
    last = next(reversed(list(signature.parameters.values())), None)
    if last is None or last.kind is not last.VAR_KEYWORD or not str(last.annotation).startswith("Unpack["):
        return signature
    named = function.__globals__[last.annotation.removeprefix("Unpack[").removesuffix("]")]
    taken = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=..., annotation=getattr(kind, "__forward_arg__", kind)
        )
        for name, kind in named.__annotations__.items()
    ]
    return signature.replace(parameters=[*list(signature.parameters.values())[:-1], *taken])


def _alternatives(annotation: Any) -> list[str]:
    """What stands between the `|` of an annotation; nothing where there is none."""
    if not isinstance(annotation, str):
        return []
    depth, parts = 0, [""]
    for letter in annotation:
        depth += (letter in "[(") - (letter in "])")
        if letter == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


OURS = (
    *("HookedModel", "GPT", "PromptPairs", "Graph", "Circuit", "Direction", "TunedLens", "KnownModel", "Texts"),
    *("Metric", "Variant", "Edit", "ActivationCache", "Axis"),
)
Kind = tuple[str, Callable[[Any], bool]]
SIMPLE: dict[str, Kind] = {
    "None": ("None", lambda value: value is None),
    "EllipsisType": ("...", lambda value: value is ...),
    "str": ("text", lambda value: isinstance(value, str)),
    "bool": ("True or False", lambda value: isinstance(plain(value), bool)),
    "int": ("a whole number", lambda value: is_whole(value)),
    "float": ("a number", lambda value: _is_real(plain(value))),
    "Path": ("a path", lambda value: isinstance(value, os.PathLike)),
    "Tensor": ("a tensor", lambda value: _is_a(value, "Tensor")),
    "pd.DataFrame": ("a DataFrame", lambda value: _is_a(value, "DataFrame")),
    "pd.Series[Any]": ("a Series", lambda value: _is_a(value, "Series")),
    **{name: (name, functools.partial(lambda name, value: _is_a(value, name), name)) for name in OURS},
}
"""What annotations mean; classes by their names, so that nothing is imported for it."""


def _kind(annotation: str) -> Kind | None:
    """What one alternative of an annotation means: words for it, and whether a value is of it; None if not known."""
    if annotation in SIMPLE:
        return SIMPLE[annotation]
    outer, _, inner = annotation.removesuffix("]").partition("[")
    if outer in ("Sequence", "Iterable", "list"):
        words, fits = SIMPLE.get(inner, ("values", lambda value: True))
        plurals = {"text": "texts", "a whole number": "whole numbers", "a number": "numbers"}
        plural = plurals.get(words, f"{words}s" if inner in OURS else "values")
        return f"several {plural}", functools.partial(_are, fits, outer == "Iterable")
    if outer in ("Mapping", "dict"):
        return "a mapping", lambda value: isinstance(value, Mapping)
    return None


def _are(fits: Callable[[Any], bool], mappings: bool, values: Any) -> bool:
    """Whether something can be gone through, and whether all that it holds fits."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes) or getattr(values, "ndim", 1) == 0:
        return False
    if isinstance(values, Mapping) and not mappings:
        return False
    if hasattr(values, "tolist"):
        values = values.tolist()
    return not isinstance(values, list | tuple) or all(fits(value) for value in values)


def _is_a(value: Any, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(value).__mro__)


def shown(value: Any) -> str:
    """A given value in an error's message: short, and of an array its shape and number type."""
    if getattr(value, "shape", None) and hasattr(value, "dtype"):
        return f"{type(value).__name__.lower()} {list(value.shape)} of {value.dtype}"
    return " ".join(_REPR.repr(plain(value)).split())


def plain(value: Any) -> Any:
    """A NumPy number, or an array or tensor without axes, as Python's own number; anything else as it is."""
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "tolist", None)):
        return value.tolist()
    return value


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number of some kind.

    >>> import numpy as np
    >>> is_whole(np.uint8(3)), is_whole(np.array(3)), is_whole(3.0), is_whole(True)
    (True, True, False, False)
    """
    value = plain(value)
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def whole_number(
    name: str,
    value: Any,
    *,
    least: int | None = None,
    most: int | None = None,
    refuse: type[InterpError] = ConfigError,
) -> int:
    """A whole number within bounds, which belong to it.

    Raises:
        ConfigError (or `refuse`): something else; the message has the name, the bounds and what was given.

    >>> whole_number("top_k", 1.5, least=1)
    Traceback (most recent call last):
        ...
    interp.errors.ConfigError: top_k must be a whole number from 1 on, not 1.5
    """
    if not is_whole(value):
        raise refuse(f"{name} must be a whole number{_between(least, most)}, not {shown(value)}")
    number = int(plain(value))
    if least is not None and number < least:
        raise refuse(f"{name} must be at least {least:,}, not {shown(value)}")
    if most is not None and number > most:
        raise refuse(f"{name} must be at most {most:,}, not {shown(value)}")
    return number


def real_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    refuse: type[InterpError] = ConfigError,
) -> float:
    """A finite number within bounds: `least` and `most` belong to it, `above` and `below` do not.

    Raises:
        ConfigError (or `refuse`): something else, NaN and infinity among them.

    >>> real_number("lr", float("nan"), above=0)
    Traceback (most recent call last):
        ...
    interp.errors.ConfigError: lr must be a number above 0, not nan
    """
    given = plain(value)
    if _is_real(given):
        inside = (least is None or given >= least) and (most is None or given <= most)
        inside = inside and (above is None or given > above) and (below is None or given < below)
        if inside and abs(given) < 1e300:  # NaN is not
            return float(given)
    bounds = _between(least, most)
    bounds += f" above {above:g}" if above is not None else ""
    bounds += (" and" if above is not None else "") + f" below {below:g}" if below is not None else ""
    raise refuse(f"{name} must be a number{bounds}, not {shown(value)}")


def resamples(value: Any) -> int:
    """`n_resamples`: how often prompts are drawn again, at least once.

    Raises:
        ConfigError: something else.
    """
    return whole_number("n_resamples", value, least=1, most=MOST)


def as_numbers(name: str, values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers of any kind, a tensor's or a table's among them, as an array in double precision.

    Raises:
        ConfigError: something else, such as text, or rows of different lengths.
    """
    values = values.detach().cpu().double() if hasattr(values, "detach") else values
    try:
        array = np.asarray(values)
        if array.dtype.kind in "biuf" or (array.dtype.kind == "O" and not any(map(_is_text, array.flat))):
            return array.astype(np.float64)
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"{name} must be numbers, an array of any shape, not {shown(values)}")


def share(name: str, value: Any) -> float:
    """A probability or part between 0 and 1, neither of which belongs to it.

    Raises:
        ConfigError: something else.
    """
    given = plain(value)
    if _is_real(given) and 0 < given < 1:
        return float(given)
    raise ConfigError(f"{name} must lie between 0 and 1, such as 0.95, not {shown(value)}")


def seed(value: Any, name: str = "seed") -> int:
    """The seed of a draw, 0 to 2**64 - 1.

    Raises:
        ConfigError: something else.
    """
    if is_whole(value) and 0 <= plain(value) <= LARGEST_SEED:
        return int(plain(value))
    raise ConfigError(f"{name} must be a whole number from 0 to 2**64 - 1, not {shown(value)}")


def flag(name: str, value: Any) -> bool:
    """True or False, and nothing that could stand for one of them.

    Raises:
        ConfigError: something else.
    """
    value = plain(value)
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{name} must be True or False, not {shown(value)}")


def byte_budget(value: Any) -> int | None:
    """`max_memory`: a positive number of bytes, or None for a part of what is free.

    Raises:
        ConfigError: something else.
    """
    if value is None:
        return None
    if is_whole(value) and plain(value) > 0:
        return int(plain(value))
    raise ConfigError(f"max_memory must be a positive number of bytes, or None, not {shown(value)}")


def device_of(device: str | torch.device, *, with_values: bool = False) -> torch.device:
    """A device that tensors can be put on here; `with_values` refuses "meta", whose tensors have none.

    Raises:
        UnknownName: there is no such device here.
    """
    import torch  # not before it is needed: the command line lists its commands without it

    try:
        found = torch.empty(0, device=device).device
    except Exception as error:  # of an unknown device, and of one that is not there, in many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnknownName(f"device {str(device)!r} cannot be used here: {reason}") from error
    if with_values and found.type == "meta":
        raise UnknownName("device 'meta' cannot be used here: it holds no values; choose 'cpu' or 'cuda'")
    return found


def as_index(name: str, value: Any, *, also: str = "", refuse: type[InterpError] = PromptError) -> Any:
    """An index as NumPy takes it, in Python's own numbers: one, a tuple of several, a slice, or None for all.

    It is not held against an axis: see `entries`. `also` names what else the caller takes, for the message.

    Raises:
        PromptError (or `refuse`): something else, such as bools, fractions, text, or a list without entries.

    >>> import numpy as np
    >>> as_index("head", np.int64(3)), as_index("head", np.arange(3)), as_index("pos", slice(None, -1))
    (3, (0, 1, 2), slice(None, -1, None))
    """
    if type(value) is int or value is None:
        return value
    if is_whole(value):
        return int(plain(value))
    if isinstance(value, slice):
        ends = [value.start, value.stop, value.step]
        if all(end is None or is_whole(end) for end in ends) and plain(value.step) != 0:
            return slice(*(None if end is None else int(plain(end)) for end in ends))
    elif isinstance(value, Iterable) and not isinstance(value, NO_LISTS) and getattr(value, "ndim", 1) == 1:
        given = value.tolist() if hasattr(value, "tolist") else list(value)
        if given and all(is_whole(one) for one in given):
            return tuple(int(plain(one)) for one in given)
    raise refuse(f"{name} must be a whole number, several, a slice or None{also}, not {shown(value)}")


def entries(name: str, value: Any, size: int, *, refuse: type[InterpError] = PromptError) -> list[int]:
    """The entries of an axis of `size` that an index stands for, counted from 0; negative ones count from the end.

    Raises:
        PromptError (or `refuse`): no index, or one outside the axis.

    >>> entries("pos_slice", [0, -1], 5), entries("pos_slice", slice(1, None, 2), 5)
    ([0, 4], [1, 3])
    """
    wanted = as_index(name, value, refuse=refuse)
    if wanted is None or isinstance(wanted, slice):
        return list(range(size)[slice(None) if wanted is None else wanted])
    found = [wanted] if isinstance(wanted, int) else wanted
    for one in found:
        if not -size <= one < size:
            raise refuse(f"{name} {one} is out of range: there are {size}, 0 to {size - 1} (or -1 for the last)")
    return [one % size for one in found]


def one_of_layers(layer: Any, n_layers: int, name: str = "layer") -> int:
    """The number of a layer; negative ones count from the last.

    Raises:
        UnknownName: no whole number, or not one of the model's layers.
    """
    if is_whole(layer) and -n_layers <= plain(layer) < n_layers:
        return int(plain(layer)) % n_layers
    raise UnknownName(f"{name} {shown(layer)} is not one of this model's {n_layers} layers (0 to {n_layers - 1})")


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str | bytes)


def _between(least: float | None, most: float | None) -> str:
    if least is None:
        return "" if most is None else f" of at most {most:g}"
    return f" from {least:,} on" if most is None else f" from {least:,} to {most:,}"
