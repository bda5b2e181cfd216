"""Tensors as frames: one row for each entry, a column for each axis, and `value`.

1. The axes get names: those that were given, those of a site, or in order those that the figure draws.
2. A leading batch axis of one prompt is dropped.
3. What the figure was not told falls to the axes that are left: the last goes across, the one before it downwards (or
   to the lines' colours), and any others to the panels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from interp.arguments import as_numbers, is_several, shown
from interp.config import STACKS
from interp.errors import ConfigError, InterpError, unknown
from interp.figures.axes import Axis, Grid, name
from interp.frames import filled
from interp.hooked.cache import ActivationCache
from interp.sites import SITES

Values = pd.DataFrame | Tensor | Grid | Sequence[Any]
Where = str | Axis | None
Facet = str | Sequence[str] | None


def framed(
    values: Any,
    axes: str | Sequence[str] | None,
    along: Mapping[str, Where],
    facet: Facet,
    *,
    optional: Sequence[str] = (),
) -> tuple[pd.DataFrame, list[Any], Facet]:
    """What a figure was given as a frame, and what it draws along which axes.

    Args:
        values: a frame, which is returned as it is, or a tensor, an array or nested lists of numbers.
        axes: names of a tensor's axes, or a site's short name; None takes those of `facet` and `along`, in this order.
        along: the figure's own axes by the names of its arguments, the one across last.
        facet: columns whose values split the frame into panels.
        optional: those of `along` that may stay None.

    Returns:
        The frame, what is drawn along each of `along`, and the facet.

    Raises:
        ConfigError: neither a frame nor numbers; names that do not fit the axes; an axis that nothing names.
    """
    drawn = dict(along)
    if isinstance(values, pd.DataFrame):
        values = filled(values)
        if axes is not None:
            raise ConfigError("axes names the axes of a tensor, but a frame has columns: leave it out")
    else:
        array = _array(values)
        named = [*_names(facet), *(name(axis) for axis in along.values() if axis is not None)]
        array, names = _named(array, axes, named)
        left = [axis for axis in names if axis not in named]
        for argument in reversed(drawn):
            if drawn[argument] is None and left:
                drawn[argument] = left.pop()
        if left:
            facet = [*_names(facet), *left]
        values = frame_of(array, names)
    missing = [argument for argument, axis in drawn.items() if axis is None and argument not in optional]
    if missing:
        raise ConfigError(f"{missing[0]} must name what is drawn along it: a column of the frame, or an axis")
    return values, list(drawn.values()), facet


def patterns(values: Any, axes: str | Sequence[str] | None, query: str, key: str, facet: Facet) -> tuple[Any, Facet]:
    """Attention patterns as a frame with a row for each query and key, and the facet as far as they have its axes.

    Args:
        values: a frame; a tensor [query, key], [head, query, key], or with other axes by name; or a cache of one
            prompt, of which the patterns of all layers are read.
        axes: as `framed` takes them.
        query, key: the columns of the two positions.
        facet: the columns of panels.
    """
    if isinstance(values, ActivationCache):
        values = _of_cache(values, query, key)
    if isinstance(values, pd.DataFrame):
        return framed(values, axes, {"y": query, "x": key}, facet)[::2]
    array = _array(values)
    if axes is None:
        array = array[0] if array.ndim == 4 and len(array) == 1 else array
        axes = ["head", query, key][3 - array.ndim :]
        if array.ndim not in (2, 3):
            raise ConfigError(
                f"a tensor of {array.ndim} axes is not the pattern of one prompt, [query, key] or [head, query, key]: "
                "take one prompt's, such as cache['pattern', 3][0], or name the axes: "
                "axes=('layer', 'head', 'query', 'key')"
            )
    array, names = _named(array, axes, ())
    for needed in (query, key):
        if needed not in names:
            raise ConfigError(f"a pattern needs the axis {needed!r}; these are {', '.join(names)}")
    return frame_of(array, names), [axis for axis in names if axis not in (query, key)] or None


def frame_of(array: Grid, names: Sequence[str]) -> pd.DataFrame:
    """A row for each entry: its index on every axis, and its value.

    >>> frame_of(np.array([[0.5, 2.0]]), ["layer", "head"])
       layer  head  value
    0      0     0    0.5
    1      0     1    2.0
    """
    where = {axis: at.ravel() for axis, at in zip(names, np.indices(array.shape), strict=True)}
    return pd.DataFrame({**where, "value": array.ravel()})


def _of_cache(cache: ActivationCache, query: str, key: str) -> pd.DataFrame:
    """The patterns of all layers with attention, with `layer` and `head`."""
    parts = []
    for layer in range(cache.model.cfg.n_layers):
        if f"blocks.{layer}.attn.hook_pattern" in cache.model.hook_dict:
            pattern = _array(cache["pattern", layer])
            if pattern.ndim == 4 and len(pattern) > 1:
                raise ConfigError(
                    f"attention draws one prompt, and the cache has {len(pattern)}: run one alone, or give one's "
                    "pattern, such as cache['pattern', 3][0]"
                )
            grid = pattern.reshape(-1, *pattern.shape[-2:])  # [head, query, key]
            parts.append(frame_of(grid, ["head", query, key]).assign(layer=layer))
    if not parts:
        raise InterpError("there is nothing to draw: no layer of the cached model has an attention pattern")
    return pd.concat(parts, ignore_index=True)


def _array(values: Any) -> Grid:
    if isinstance(values, ActivationCache):
        raise ConfigError(
            "a cache holds many values: give the figure one of them, such as cache['z', 3][0], with axes='z'"
        )
    array = as_numbers("what a figure draws", values)
    if array.ndim == 0 or array.size == 0:
        raise InterpError(f"there is nothing to draw: the values have the shape {list(array.shape)}")
    return array


def _named(array: Grid, axes: str | Sequence[str] | None, named: Sequence[str]) -> tuple[Grid, list[str]]:
    """The array and a name for each of its axes, without a batch axis of one prompt."""
    if isinstance(axes, str):
        whole = _axes_of_site(axes)
        names = whole[max(len(whole) - array.ndim, 0) :]
    elif axes is None:
        names = list(named)
    elif is_several(axes) and all(isinstance(axis, str) for axis in axes) and len(set(axes)) == len(axes):
        names = list(axes)
    else:
        raise ConfigError(f"axes must be different names, such as ('layer', 'head'), or a site's, not {shown(axes)}")
    if array.ndim == len(names) + 1 and len(array) == 1:
        array = array[0]
    elif len(names) == array.ndim and names[:1] == ["batch"] and len(array) == 1 and "batch" not in named:
        array, names = array[0], names[1:]
    if array.ndim != len(names):
        raise ConfigError(
            f"values with {array.ndim} axes, {list(array.shape)}, need as many names, and there are {len(names)} "
            f"({', '.join(names) or 'none'}): name them, such as axes=('layer', 'head')"
        )
    absent = [axis for axis in named if axis not in names]
    if absent:
        raise ConfigError(f"{absent[0]!r} is to be drawn, but is no axis of the values; these are {', '.join(names)}")
    return array, names


def _axes_of_site(short: str) -> list[str]:
    """The axes of a site by its short name; in an encoder-decoder with the stack's name before it, or without."""
    known = {site.short: site.axes for site in reversed(SITES)}  # the first of a name wins
    stack, _, within = short.partition(".")
    found = known.get(within if stack in STACKS else short)
    if found is None:
        raise unknown("site", short, known)
    return list(found)


def _names(facet: Facet) -> list[str]:
    return [] if facet is None else [facet] if isinstance(facet, str) else list(facet)
