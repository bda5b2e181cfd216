"""`Edit` and `Variant`: what to change in a forward, where, and from which run.

An `Edit` changes one site at some places: it sets, adds, scales, zeroes or mean-ablates. A `Variant` is a set of edits
with labels, and becomes one row of a study for every prompt. Ablation, activation patching, path patching and steering
are all lists of variants; `interp.sweep` runs them.

The two runs of a pair have names: `base` is the run that is edited, `source` the run that edits copy from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import as_index, entries, plain, shown
from interp.config import STACKS, EncoderDecoderConfig, ModelConfig
from interp.errors import ConfigError, UnknownName, check_choice, unknown
from interp.hooked.cache import ActivationCache
from interp.hooked.hooks import HookPoint
from interp.sites import (
    ALIASES,
    AXIS_ALIASES,
    AXIS_WORDS,
    SITES,
    Site,
    axis_sizes,
    find_act_name,
    said_axes,
    site_names,
    unknown_site,
)

POSITIONS = ("pos", "query", "key")
AXES = {"layer", *(axis for site in SITES for axis in site.axes)} - {"batch", "one"}
OPS = ("set", "add", "scale", "zero", "mean")
RUNS = ("base", "source")

RESERVED = ("prompt", "metric", "value", "base_value", "source_value", "effect", "rounding")
"""The columns that every table of a sweep has besides its labels."""

Index = int | str | slice | Sequence[int] | Tensor | np.ndarray[Any, Any] | None
SourceValue = (
    str | float | Tensor | np.ndarray[Any, Any] | ActivationCache | Callable[[Tensor, HookPoint], Tensor] | None
)


@dataclass(frozen=True)
class Edit:
    """One change at one site.

    Args:
        site: short name (`"z"`, with `layer` in `where`) or full name (`"blocks.3.attn.hook_z"`).
        where: axis name -> an index, a list of indices, or a slice; an axis that is missing here, or is None, is
            changed throughout. The axes are the site's (`interp.sites`), without `batch`, and `layer` for a short name;
            `neuron` is another name of `d_mlp`.
            `pos`, `query` and `key` count from the start of each real prompt; they also take a role of the prompts
            (`"S2"`), or -1 for the last real position.
        op: "set" (the default) replaces the value by `source`; "add" adds `source`; "scale" multiplies by it; "zero"
            sets 0 and takes no source; "mean" replaces the value by the mean of `source` over the prompts, position by
            position.
        source: "source" (the default) or "base" for the same site in that run; a cache; a tensor that broadcasts to the
            site's shape; a function `fn(tensor, hook)` that returns a tensor of the same shape; for "scale" a number.

    Raises:
        ConfigError: an op that does not exist, a source that the op does not take, or an index that is not one.
    """

    site: str
    where: Mapping[str, Index] = field(default_factory=dict)
    op: str = "set"
    source: SourceValue = None

    def __post_init__(self) -> None:
        if not isinstance(self.site, str):
            raise ConfigError(f"the site of an edit must be a name, such as 'z', not {shown(self.site)}")
        check_choice("op", self.op, OPS)
        object.__setattr__(self, "where", _settled_where(self.where))
        object.__setattr__(self, "source", _settled_source(self.source))
        if self.op == "scale" and not isinstance(self.source, int | float | Tensor):
            raise ConfigError(f"op='scale' needs a number or tensor as source, not {shown(self.source)}")
        if self.op == "zero" and self.source is not None:
            raise ConfigError("op='zero' takes no source")
        if self.op == "mean" and self.computed:
            raise ConfigError("op='mean' averages values and takes no function; average in the function, with op='set'")
        if isinstance(self.source, str) and self.source not in RUNS:
            raise unknown("run", self.source, RUNS)

    @property
    def run(self) -> str | None:
        """The run whose values this edit reads, if it reads one."""
        if self.op in ("scale", "zero"):
            return None
        if self.source is None:
            return "source"
        return self.source if isinstance(self.source, str) else None

    @property
    def computed(self) -> bool:
        """Whether a function computes the new value."""
        return callable(self.source) and not isinstance(self.source, Tensor | ActivationCache)

    def name(self, cfg: ModelConfig | EncoderDecoderConfig) -> str:
        """The full site name, after checking that the model has it and that `where` fits its axes."""
        layer, names = self.where.get("layer"), site_names(cfg)
        self._check_axes()
        if isinstance(cfg, EncoderDecoderConfig):
            cfg = stack_named(cfg, self.site)
        if layer is not None and not (isinstance(layer, int) and 0 <= layer < cfg.n_layers):
            raise UnknownName(
                f"layer {layer!r} of an edit at {self.site!r} is not one of this model's layers, "
                f"0 to {cfg.n_layers - 1}"
            )
        name = find_act_name(self.site, layer if "blocks." not in self.site else None, names)
        if name not in names:
            raise unknown_site(name, names)
        if names[name].whole:
            self._check_whole(name)
        for axis, index in self.where.items():
            if axis != "layer":
                _check_index(axis, index, names[name], cfg, self)
        return name

    def _check_axes(self) -> None:
        """Refuse a key of `where` that is an axis of no site, before a layer is missed that was misspelt."""
        stack, _, rest = self.site.partition(".")
        given = (rest if stack in STACKS else self.site).removeprefix("hook_")
        short, template = ALIASES.get(given, given), re.sub(r"^blocks\.\d+\.", "blocks.{l}.", given)
        own = [axis for site in SITES if short == site.short or template == site.template for axis in said_axes(site)]
        for axis in self.where:
            if own and axis not in AXES:
                raise unknown(f"axis of {self.site!r}", axis, dict.fromkeys(["layer", *own]))

    def _check_whole(self, name: str) -> None:
        """Refuse what cannot be done to numbers of experts."""
        if self.op != "set":
            raise ConfigError(f"op={self.op!r} at {name!r}: it holds the numbers of experts, which can only be set")
        given = self.source
        if isinstance(given, float) and not given.is_integer():
            raise ConfigError(f"source={given!r} at {name!r}: the number of an expert is a whole number")
        if isinstance(given, Tensor) and not bool((given == given.round()).all()):  # NaN is not equal to itself
            odd = given[given != given.round()].flatten()[0].item()
            raise ConfigError(f"source holds {odd!r} at {name!r}: the number of an expert is a whole number")


def stack_named(cfg: EncoderDecoderConfig, site: str) -> ModelConfig:
    """The configuration of the stack that the name of a site, short or full, begins with.

    Raises:
        UnknownName: it begins with neither.
    """
    stack = site.partition(".")[0]
    if stack not in STACKS:
        raise UnknownName(
            f"which stack's {site!r}? The names of an encoder-decoder's sites begin with it: 'decoder.{site}' or "
            f"'encoder.{site}'"
        )
    return cfg.encoder if stack == "encoder" else cfg.decoder


@dataclass(frozen=True)
class Variant:
    """Edits that are applied together in one forward, and the labels of the row that they become.

    Raises:
        ConfigError: edits that are not `Edit`s, or a label with the name of a column that every table has
            (`RESERVED`).
    """

    edits: Sequence[Edit]
    labels: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.edits, Edit):
            object.__setattr__(self, "edits", (self.edits,))
        if not isinstance(self.edits, Sequence) or not all(isinstance(edit, Edit) for edit in self.edits):
            raise ConfigError(f"a Variant takes a list of Edits, not {shown(self.edits)}")
        if not isinstance(self.labels, Mapping):
            raise ConfigError(f"the labels of a Variant must be a mapping, name to value, not {shown(self.labels)}")
        for label in self.labels:
            if not isinstance(label, str):
                raise ConfigError(f"a label's name must be text, not {shown(label)}: it becomes a column")
            if label in RESERVED:
                raise ConfigError(
                    f"label {label!r} has the name of a column that every table has ({', '.join(RESERVED)}): "
                    f"rename it, for example to {'of_' + label!r}"
                )


def _settled_where(where: Any) -> Mapping[str, Any]:
    """Where an edit acts, in Python's own numbers, so that equal places compare equal."""
    if not isinstance(where, Mapping):
        raise ConfigError(f"where must be a mapping, axis to index, such as {{'layer': 3}}, not {shown(where)}")
    settled: dict[str, Any] = {}
    for given, at in where.items():
        axis = AXIS_ALIASES.get(given, given) if isinstance(given, str) else given
        if axis in settled:
            raise ConfigError(f"where names one axis twice, as {axis!r} and as {given!r}: give one of them")
        also = ", or a role of the prompts" if axis in POSITIONS else ""
        settled[axis] = (
            at if isinstance(at, str) else as_index(f"{given} of an edit", at, also=also, refuse=ConfigError)
        )
    return settled


def _settled_source(source: Any) -> Any:
    """The source of an edit, with arrays as tensors and numbers as Python's own."""
    source = plain(source) if not isinstance(source, Tensor) else source
    if isinstance(source, np.ndarray) and source.dtype.kind in "fiu":
        source = torch.from_numpy(source if source.flags.writeable else source.copy())
    if isinstance(source, int) and not isinstance(source, bool) and abs(source) < 1e300:
        source = float(source)
    supported = isinstance(source, str | float | Tensor | Mapping) or source is None or callable(source)
    if not supported or (isinstance(source, Tensor) and source.is_complex()):
        raise ConfigError(
            "the source of an edit must be 'source', 'base', a cache, a tensor, a number or a function, "
            f"not {shown(source)}"
        )
    return source


def _check_index(axis: str, index: Index, site: Site, cfg: ModelConfig, edit: Edit) -> None:
    if axis not in site.axes or axis == "batch":
        raise unknown(f"axis of {site.short!r}", axis, said_axes(site))
    if isinstance(index, str):
        if axis not in POSITIONS:
            raise UnknownName(f"{axis}={index!r} of an edit at {edit.site!r}: only positions can be given by role")
        return
    size = axis_sizes(cfg).get(axis)
    if index is None or size is None:
        return
    for one in [index] if isinstance(index, int) else () if isinstance(index, slice) else index:
        if not 0 <= one < size:
            raise UnknownName(f"{AXIS_WORDS.get(axis, axis)} {one} is not one of this model's {size}, 0 to {size - 1}")
    if isinstance(index, slice) and not entries(axis, index, size):
        raise UnknownName(f"{AXIS_WORDS.get(axis, axis)} {index} selects none of this model's {size}, 0 to {size - 1}")
