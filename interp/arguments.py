"""Plain arguments: integers, numbers, shares, seeds and indices, checked in one place and refused by name.

An integer may be Python's, NumPy's, or an array or tensor without axes, so that a row of a table serves as an argument.
True and False are not integers. The functions here return Python's own numbers, whatever they were given.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import numbers
import os
import reprlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from interp.errors import ConfigError, InterpError, PromptError, UnknownName, unknown

if TYPE_CHECKING:
    import pandas as pd
    import torch

MOST = 10_000_000  # draws, steps and the like: more than this is a mistake, and would never end
LARGEST_SEED = 2**64 - 1  # torch's limit; NumPy takes larger ones
NO_LISTS = (str, bytes, Mapping)  # iterable, but not lists of numbers

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


F = TypeVar("F", bound=Callable[..., Any])


def checked(function: F) -> F:
    """Make a function refuse arguments of the wrong type, by name, before it does anything.

    Types are those of the annotations. Types that are not known here (`_kind`) and bounds are left to the function.
    Keywords that the function takes together, as `**options: Unpack[SweepOptions]`, are checked like those that it
    takes one by one, and belong to its signature; one that it does not take is an `UnknownName`.

    >>> @checked
    ... def draw(n: int, names: Sequence[str] | None = None) -> None: ...
    >>> draw("4")
    Traceback (most recent call last):
        ...
    interp.errors.ConfigError: n must be an integer, not '4'
    """
    signature = inspect.signature(function)
    apart = _taken_apart(signature, function)
    together, signature = apart is not signature, apart
    kinds = {
        name: list(map(_kind, _alternatives(parameter.annotation)))
        for name, parameter in signature.parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    known = {name: [kind for kind in options if kind] for name, options in kinds.items() if options and all(options)}

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if together and (odd := [name for name in kwargs if name not in signature.parameters]):
            raise unknown(f"argument of {function.__name__}", odd[0], signature.parameters)
        given: Mapping[str, Any] = {}
        with contextlib.suppress(TypeError):  # a missing or unknown argument: the call below raises Python's own error
            given = signature.bind(*args, **kwargs).arguments
        for name, value in given.items():
            if name in known and not any(fits(value) for _, fits in known[name]):
                words = " or ".join(dict.fromkeys(word for word, _ in known[name]))
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
    """The alternatives of an annotation, split at `|`; empty without an annotation."""
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
    "int": ("an integer", lambda value: is_whole(value)),
    "float": ("a number", lambda value: _is_real(plain(value))),
    "Path": ("a path", lambda value: isinstance(value, os.PathLike)),
    "Tensor": ("a tensor", lambda value: _is_a(value, "Tensor")),
    "pd.DataFrame": ("a DataFrame", lambda value: _is_a(value, "DataFrame")),
    "pd.Series[Any]": ("a Series", lambda value: _is_a(value, "Series")),
    **{name: (name, functools.partial(lambda name, value: _is_a(value, name), name)) for name in OURS},
}
"""What annotations mean. Classes are recognised by name, so that nothing has to be imported."""


def _kind(annotation: str) -> Kind | None:
    """One alternative of an annotation: words for it, and a test whether a value fits; None if it is not known here."""
    if annotation in SIMPLE:
        return SIMPLE[annotation]
    outer, _, inner = annotation.removesuffix("]").partition("[")
    if outer in ("Sequence", "Iterable", "list"):
        words, fits = SIMPLE.get(inner, ("values", lambda value: True))
        plurals = {"text": "texts", "an integer": "integers", "a number": "numbers"}
        plural = plurals.get(words, f"{words}s" if inner in OURS else "values")
        return f"a list of {plural}", functools.partial(_are, fits, outer == "Iterable")
    if outer in ("Mapping", "dict"):
        return "a mapping", lambda value: isinstance(value, Mapping)
    return None


def _are(fits: Callable[[Any], bool], mappings: bool, values: Any) -> bool:
    """Whether something can be iterated over, and everything in it fits."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes) or getattr(values, "ndim", 1) == 0:
        return False
    if isinstance(values, Mapping) and not mappings:
        return False
    if hasattr(values, "tolist"):
        values = values.tolist()
    return not isinstance(values, list | tuple | set | frozenset) or all(fits(value) for value in values)


def _is_a(value: Any, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(value).__mro__)


def is_several(values: Any) -> bool:
    """Whether something is a list of things of some kind: a text, a mapping and an array without axes are none.

    >>> is_several(("z", "q")), is_several("z"), is_several({"z": 1}), is_several(np.array(3)), is_several(None)
    (True, False, False, False, False)
    """
    return isinstance(values, Iterable) and not isinstance(values, NO_LISTS) and getattr(values, "ndim", 1) != 0


def own_signature(function: Any) -> inspect.Signature | None:
    """What a function takes; of a decorated one, whatever the one within it takes. None where it cannot be known."""
    try:
        return inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # many a function written in C has none
        return None


def misfit(function: Any, signature: inspect.Signature | None, *args: Any, **kwargs: Any) -> str:
    """Why a function with this signature cannot be called so; "" where it can, or where that cannot be known.

    >>> function = lambda value: value
    >>> misfit(function, own_signature(function), None, None)
    '<lambda>(value) does not take that: too many positional arguments'
    """
    if signature is None:
        return ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name = getattr(function, "__name__", None) or type(function).__name__
        return f"{name}{signature} does not take that: {error}"
    return ""


def shown(value: Any) -> str:
    """A value as error messages show it: in one line, shortened, and an array by its shape and number type."""
    if getattr(value, "shape", None) and hasattr(value, "dtype"):
        return f"{type(value).__name__.lower()} {list(value.shape)} of {value.dtype}"
    try:
        return " ".join(_REPR.repr(plain(value)).split())
    except ValueError:  # Python refuses to write an integer of more than 4,300 digits
        return f"a {type(value).__name__} that is too long to show"


def plain(value: Any) -> Any:
    """A NumPy number, or an array or tensor without axes, as Python's own number; anything else unchanged."""
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "tolist", None)):
        return value.tolist()
    return value


def is_whole(value: Any) -> bool:
    """Whether a value is an integer of any type.

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
    """An integer from `least` to `most`, as Python's own.

    Raises:
        ConfigError (or `refuse`): anything else; the message has the name, the bounds and the value.

    >>> whole_number("top_k", 1.5, least=1)
    Traceback (most recent call last):
        ...
    interp.errors.ConfigError: top_k must be an integer >= 1, not 1.5
    """
    if not is_whole(value):
        raise refuse(f"{name} must be an integer{_between(least, most)}, not {shown(value)}")
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
    """A finite number within bounds: from `least` to `most`, both allowed, or between `above` and `below`, both not.

    Raises:
        ConfigError (or `refuse`): anything else, NaN and infinity too.

    >>> real_number("lr", float("nan"), above=0)
    Traceback (most recent call last):
        ...
    interp.errors.ConfigError: lr must be a finite number > 0, not nan
    """
    number = plain(value)
    if _is_real(number):
        inside = (least is None or number >= least) and (most is None or number <= most)
        inside = inside and (above is None or number > above) and (below is None or number < below)
        if inside and abs(number) < 1e300:  # False for NaN
            return float(number)
    bounds = _between(least, most)
    bounds += f" > {above:g}" if above is not None else ""
    bounds += (" and" if above is not None else "") + f" < {below:g}" if below is not None else ""
    raise refuse(f"{name} must be a finite number{bounds}, not {shown(value)}")


def resamples(value: Any) -> int:
    """`n_resamples`: how often prompts are resampled, at least once.

    Raises:
        ConfigError: anything else.
    """
    return whole_number("n_resamples", value, least=1, most=MOST)


def as_numbers(name: str, values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers from a list, an array, a tensor or a column of a table, as an array in double precision.

    Raises:
        ConfigError: anything else, such as text, or rows of different lengths.
    """
    values = values.detach().cpu().double() if hasattr(values, "detach") else values
    try:
        array = np.asarray(values)
        if array.dtype.kind in "biuf" or (array.dtype.kind == "O" and not any(map(_is_text, array.flat))):
            return array.astype(np.float64)
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"{name} must be numbers, alone or in an array, not {shown(values)}")


def share(name: str, value: Any) -> float:
    """A probability or share above 0 and below 1.

    Raises:
        ConfigError: anything else.
    """
    number = plain(value)
    if _is_real(number) and 0 < number < 1:
        return float(number)
    raise ConfigError(f"{name} must lie between 0 and 1, such as 0.95, not {shown(value)}")


def seed(value: Any, name: str = "seed") -> int:
    """The seed of a draw, 0 to 2**64 - 1.

    Raises:
        ConfigError: anything else.
    """
    if is_whole(value) and 0 <= plain(value) <= LARGEST_SEED:
        return int(plain(value))
    raise ConfigError(f"{name} must be an integer from 0 to 2**64 - 1, not {shown(value)}")


def flag(name: str, value: Any) -> bool:
    """True or False; 0, 1, "yes" and the like are refused.

    Raises:
        ConfigError: anything else.
    """
    value = plain(value)
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{name} must be True or False, not {shown(value)}")


def byte_budget(value: Any) -> int | None:
    """`max_memory`: a positive number of bytes, or None for a share of what is free.

    Raises:
        ConfigError: anything else.
    """
    if value is None:
        return None
    if is_whole(value) and plain(value) > 0:
        return int(plain(value))
    raise ConfigError(f"max_memory must be a positive number of bytes, or None, not {shown(value)}")


def device_of(device: str | torch.device, *, with_values: bool = False) -> torch.device:
    """A device that tensors can be put on here; `with_values` refuses "meta", whose tensors hold no values.

    Raises:
        UnknownName: there is no such device here.
    """
    import torch  # imported here, because the command line lists its commands without it

    try:
        usable = torch.empty(0, device=device).device
    except Exception as error:  # torch raises many types, for unknown devices and for absent ones
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnknownName(f"device {str(device)!r} cannot be used here: {reason}") from error
    if with_values and usable.type == "meta":
        raise UnknownName("device 'meta' cannot be used here: it holds no values; choose 'cpu' or 'cuda'")
    return usable


def column_of(frame: pd.DataFrame, name: str) -> pd.Series[Any]:
    """A column by its name, of values that can be told apart.

    Raises:
        UnknownName: there is none of this name.
        ConfigError: there are several, or its values are lists or the like.
    """
    if name not in frame.columns:
        raise unknown("column of the frame", name, map(str, frame.columns))
    if (count := list(frame.columns).count(name)) > 1:
        raise ConfigError(f"{count} columns of the frame are called {name!r}: rename all but one")
    values = frame[name]
    if values.dtype == object:
        bad = next((value for value in values if not isinstance(value, Hashable)), None)
        if bad is not None:
            raise ConfigError(f"column {name!r} must hold numbers, texts or the like, not {shown(bad)}")
    return values


def as_index(name: str, value: Any, *, also: str = "", refuse: type[InterpError] = PromptError) -> Any:
    """An index as NumPy takes it, in Python's own integers: one, a tuple of several, a slice, or None for all.

    Whether an axis is that long is not checked: see `entries`. `also` names what else the caller takes, for the
    message.

    Raises:
        PromptError (or `refuse`): anything else, such as bools, fractions, text, or an empty list.

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
        listed = value.tolist() if hasattr(value, "tolist") else list(value)
        if listed and all(is_whole(one) for one in listed):
            return tuple(int(plain(one)) for one in listed)
    raise refuse(f"{name} must be an integer, a list of integers, a slice or None{also}, not {shown(value)}")


def entries(name: str, value: Any, size: int, *, refuse: type[InterpError] = PromptError) -> list[int]:
    """The entries that an index selects on an axis of `size`, counted from 0; negative indices count from the end.

    Raises:
        PromptError (or `refuse`): not an index, or one outside the axis.

    >>> entries("pos_slice", [0, -1], 5), entries("pos_slice", slice(1, None, 2), 5)
    ([0, 4], [1, 3])
    """
    index = as_index(name, value, refuse=refuse)
    if index is None or isinstance(index, slice):
        return list(range(size)[slice(None) if index is None else index])
    numbers = [index] if isinstance(index, int) else index
    for one in numbers:
        if not -size <= one < size:
            raise refuse(f"{name} {one} is out of range: there are {size}, 0 to {size - 1} (or -1 for the last)")
    return [one % size for one in numbers]


def one_of_layers(layer: Any, n_layers: int, name: str = "layer") -> int:
    """The number of a layer; negative numbers count from the last.

    Raises:
        UnknownName: not an integer, or not one of the model's layers.
    """
    if is_whole(layer) and -n_layers <= plain(layer) < n_layers:
        return int(plain(layer)) % n_layers
    raise UnknownName(f"{name} {shown(layer)} is not one of this model's {n_layers} layers (0 to {n_layers - 1})")


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str | bytes)


def _between(least: float | None, most: float | None) -> str:
    """The bounds in words; an upper bound that only a mistake reaches is left out."""
    if most is not None and most >= MOST:
        most = None
    if least is None:
        return "" if most is None else f" <= {most:,}"
    return f" >= {least:,}" if most is None else f" from {least:,} to {most:,}"
