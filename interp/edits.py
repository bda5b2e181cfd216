"""`Edit` and `Variant`: what to change in a forward, where, and from which run.

An `Edit` changes one site at some places: it sets, adds, scales, zeroes or mean-ablates. A `Variant` is a set of edits
with labels, and becomes one row of a study for every prompt. Ablation, activation patching, path patching and steering
are all lists of variants; `interp.sweep` runs them.

Two runs of a pair are named: `base` is the run that gets edited, `source` the run that edits copy from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from interp.cache import ActivationCache
from interp.config import ModelConfig
from interp.errors import ConfigError, UnknownName, unknown
from interp.hooks import HookPoint
from interp.sites import Site, axis_sizes, find_act_name, site_names, unknown_site

OPS = ("set", "add", "scale", "zero", "mean")
RUNS = ("base", "source")

Index = int | str | Sequence[int]
SourceValue = str | float | Tensor | ActivationCache | Callable[[Tensor, HookPoint], Tensor] | None


@dataclass(frozen=True)
class Edit:
    """One change at one site.

    Args:
        site: short name (`"z"`, with `layer` in `where`) or full name (`"blocks.3.attn.hook_z"`).
        where: axis name -> index or indices; an axis that is not named is changed throughout. The axes are the site's
            (`interp.sites`), without `batch`, and `layer` for a short name. `pos`, `query` and `key` count from the
            start of each real prompt; they also take a role of the prompts (`"S2"`), or -1 for the last real position.
        op: "set" (the default) replaces by `source`; "add" adds it; "scale" multiplies by it; "zero" needs none; "mean"
            replaces by the mean of `source` over the prompts, position by position.
        source: "source" (the default) or "base" for the same site in that run; a cache, a tensor that broadcasts to the
            site's shape, a function `fn(tensor, hook)`; for "scale" a number.

    Raises:
        ConfigError: an op that does not exist, or a source that does not go with it.
    """

    site: str
    where: Mapping[str, Index] = field(default_factory=dict)
    op: str = "set"
    source: SourceValue = None

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise unknown("op", self.op, OPS)
        if self.op == "scale" and not isinstance(self.source, int | float | Tensor):
            raise ConfigError(f"op='scale' needs a number or tensor as source, not {self.source!r}")
        if self.op == "zero" and self.source is not None:
            raise ConfigError("op='zero' takes no source")
        if self.op == "mean" and self.computed:
            raise ConfigError("op='mean' needs values to average, not a function: average in it, with op='set'")
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
        """Whether a function makes the new value."""
        return callable(self.source) and not isinstance(self.source, Tensor | ActivationCache)

    def name(self, cfg: ModelConfig) -> str:
        """The full site name, after checking that the model has it and that `where` fits its axes."""
        layer = self.where.get("layer")
        if layer is not None and not (isinstance(layer, int) and 0 <= layer < cfg.n_layers):
            raise UnknownName(f"layer {layer!r} of {self} is not one of this model's layers, 0 to {cfg.n_layers - 1}")
        names = _names(cfg)
        name = find_act_name(self.site, layer if "blocks." not in self.site else None, names)
        if name not in names:
            raise unknown_site(name, names)
        for axis, index in self.where.items():
            if axis != "layer":
                _check_index(axis, index, names[name], cfg, self)
        return name


@dataclass(frozen=True)
class Variant:
    """Edits that are made together in one forward, and the labels of the row that they become."""

    edits: Sequence[Edit]
    labels: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.edits, Edit):
            object.__setattr__(self, "edits", (self.edits,))


@functools.lru_cache(maxsize=8)
def _names(cfg: ModelConfig) -> dict[str, Site]:
    return site_names(cfg)  # some hundred names, looked up for every edit


def _check_index(axis: str, index: Index, site: Site, cfg: ModelConfig, edit: Edit) -> None:
    if axis not in site.axes or axis == "batch":
        raise unknown(f"axis of {site.short!r}", axis, [a for a in site.axes if a not in ("batch", "one")])
    if isinstance(index, str):
        if axis not in ("pos", "query", "key"):
            raise UnknownName(f"{axis}={index!r} in {edit}: only positions can be given by role")
        return
    size = axis_sizes(cfg).get(axis)
    for one in [index] if isinstance(index, int) else index:
        if size is not None and not 0 <= one < size:
            raise UnknownName(f"{axis} {one} is not one of this model's {size}, 0 to {size - 1}")
