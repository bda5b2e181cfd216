"""`Edit` and `Variant`: what to change in a forward, where, and from which run.

An `Edit` changes one site at some places: it sets, adds, scales, zeroes or mean-ablates. A `Variant` is a set of edits
with labels, and becomes one row of a study for every prompt. Ablation, activation patching, path patching and steering
are all lists of variants; `interp.sweep` runs them.

Two runs of a pair are named: `base` is the run that gets edited, `source` the run that edits copy from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interp.cache import ActivationCache
from interp.config import ModelConfig
from interp.errors import ConfigError, PromptError, UnknownName, unknown
from interp.hooks import HookFunction, HookPoint
from interp.prompts import PromptPairs
from interp.sites import Site, get_act_name, site_names

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

    def name(self, cfg: ModelConfig) -> str:
        """The full site name, after checking that the model has it and that `where` fits its axes."""
        layer = self.where.get("layer")
        if layer is not None and not (isinstance(layer, int) and 0 <= layer < cfg.n_layers):
            raise UnknownName(f"layer {layer!r} of {self} is not one of this model's layers, 0 to {cfg.n_layers - 1}")
        name = get_act_name(self.site, layer if "blocks." not in self.site else None)
        names = site_names(cfg)
        if name not in names:
            raise unknown("site", name, names)
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


def _check_index(axis: str, index: Index, site: Site, cfg: ModelConfig, edit: Edit) -> None:
    if axis not in site.axes or axis == "batch":
        raise unknown(f"axis of {site.short!r}", axis, [a for a in site.axes if a not in ("batch", "one")])
    if isinstance(index, str):
        if axis not in ("pos", "query", "key"):
            raise UnknownName(f"{axis}={index!r} in {edit}: only positions can be given by role")
        return
    size = {
        "head": cfg.n_heads,
        "kv_head": cfg.n_kv_heads,
        "d_model": cfg.d_model,
        "d_head": cfg.d_head,
        "d_mlp": cfg.d_mlp,
    }.get(axis)
    for one in [index] if isinstance(index, int) else index:
        if size is not None and not 0 <= one < size:
            raise UnknownName(f"{axis} {one} is not one of this model's {size}, 0 to {size - 1}")


def edit_hook(edit: Edit, name: str, pairs: PromptPairs, runs: Mapping[str, Mapping[str, Tensor]]) -> HookFunction:
    """The hook function that makes an edit.

    Args:
        edit: the edit.
        name: its full site name.
        pairs: the prompts of the rows, in order.
        runs: "base" and "source" to the stored tensors of these prompts, by site name.
    """

    def hook(value: Tensor, hook: HookPoint) -> Tensor:
        new = _replacement(edit, name, value, hook, pairs, runs)
        return torch.where(_places(edit, value, hook.site, pairs), new.to(value.dtype), value)

    return hook


def changes_nothing(
    edit: Edit, name: str, pairs: PromptPairs, runs: Mapping[str, Mapping[str, Tensor]], site: Site
) -> bool:
    """Whether an edit sets values that the base run has already, bit for bit."""
    if edit.op != "set" or edit.run is None or name not in runs["base"]:
        return False
    base = runs["base"][name]
    return torch.equal(torch.where(_places(edit, base, site, pairs), runs[edit.run][name], base), base)


def _replacement(
    edit: Edit, name: str, value: Tensor, hook: HookPoint, pairs: PromptPairs, runs: Mapping[str, Mapping[str, Tensor]]
) -> Tensor:
    if edit.op == "zero":
        return torch.zeros_like(value)
    if edit.run is not None:
        source = runs[edit.run][name]
    elif isinstance(edit.source, ActivationCache):
        source = edit.source[name]
    elif callable(edit.source):
        source = edit.source(value, hook)
    else:
        source = torch.as_tensor(edit.source, device=value.device)
    if edit.op == "mean":
        source = _mean_over_prompts(source, hook.site, pairs)
    elif edit.op == "add":
        source = value + source
    elif edit.op == "scale":
        source = value * source
    try:
        return source.expand_as(value)
    except RuntimeError as error:
        raise PromptError(
            f"the source of {edit.op!r} at {name!r} has shape {list(source.shape)}, which does not broadcast to "
            f"{list(value.shape)} = [{', '.join(hook.site.axes)}]"
        ) from error


def _mean_over_prompts(source: Tensor, site: Site, pairs: PromptPairs) -> Tensor:
    """The mean over those prompts that have the position; patterns are averaged as they are."""
    if "pos" not in site.axes or source.shape[:2] != pairs.mask.shape:
        return source.mean(0, keepdim=True)
    real = pairs.mask.to(source.device).reshape(*pairs.mask.shape, *[1] * (source.ndim - 2))
    return (source * real).sum(0, keepdim=True) / real.sum(0, keepdim=True).clamp(min=1)


def _places(edit: Edit, value: Tensor, site: Site, pairs: PromptPairs) -> Tensor:
    """True where the edit applies, broadcastable to the site's shape."""
    places = torch.ones((), dtype=torch.bool, device=value.device)
    if "key" in site.axes and not bool(pairs.mask.all()):
        # A key of padding that gets a score would be looked at; elsewhere what is set at padding reaches nothing.
        places = pairs.mask.to(value.device)[:, None, None, :]
    for axis, index in edit.where.items():
        if axis == "layer":
            continue
        at = site.axes.index(axis)
        shape = [1] * value.ndim
        if axis in ("pos", "query", "key"):
            chosen = positions(index, pairs).to(value.device)  # [batch, how many]
            hit = torch.zeros(value.shape[0], value.shape[at], dtype=torch.bool, device=value.device)
            hit = hit.scatter(1, chosen, True)
            shape[0] = value.shape[0]
        else:
            hit = torch.zeros(value.shape[at], dtype=torch.bool, device=value.device)
            hit[torch.as_tensor(index)] = True
        shape[at] = value.shape[at]
        places = places & hit.reshape(shape)
    return places


def positions(index: Index, pairs: PromptPairs) -> Tensor:
    """Positions of every prompt that an index stands for.  # [batch, how many]"""
    if isinstance(index, str):
        return pairs.role_positions(index)[:, None]
    chosen = torch.tensor([index] if isinstance(index, int) else list(index))[None].repeat(len(pairs), 1)
    chosen = torch.where(chosen < 0, chosen + pairs.lengths[:, None], chosen)
    outside = (chosen < 0) | (chosen >= pairs.lengths[:, None])
    if bool(outside.any()):
        row = int(outside.any(1).nonzero()[0])
        raise PromptError(f"position {index} is outside prompt {row}, which has {int(pairs.lengths[row])} tokens")
    return chosen
