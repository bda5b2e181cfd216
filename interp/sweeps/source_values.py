"""The values that edits copy from, as wide as their site, and means of them over prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.config import EncoderDecoderConfig, ModelConfig
from interp.edits import RUNS, Edit, Variant
from interp.errors import PromptError, UnknownName
from interp.hooked.cache import ActivationCache
from interp.hooked.model import HookedModel
from interp.prompts.pairs import PromptPairs
from interp.sites import Site, axis_sizes, config_of
from interp.sweeps.edit_reach import Placed


def copied_sites(variants: Sequence[Variant], model: HookedModel) -> dict[str, set[str]]:
    """The sites of each run whose values edits copy as they are."""
    found: dict[str, set[str]] = {run: set() for run in RUNS}
    for variant in variants:
        for edit in variant.edits:
            if edit.run is not None and edit.op != "mean":
                found[edit.run].add(edit.name(model.cfg))
    return found


class Sources:
    """What the edits of some variants copy from, or multiply by; means over all prompts are made once.

    Args:
        model, pairs, variants: as `interp.sweep` takes them.
        sides: "base" and "source" to the side of the pairs that each run is of.
        blocks: the blocks of prompts, first and after the last, that one forward takes.
    """

    def __init__(
        self,
        model: HookedModel,
        pairs: PromptPairs,
        variants: Sequence[Variant],
        sides: Mapping[str, str],
        blocks: Sequence[tuple[int, int]],
    ) -> None:
        self.model = model
        self.pairs = pairs
        self.variants = variants
        self.sides = sides
        self.blocks = blocks
        self._means: dict[tuple[str, str], Tensor] = {}

    def of(self, placed: Placed, stored: Mapping[str, Mapping[str, Tensor]], prompts: tuple[int, int]) -> Tensor:
        """What an edit copies from, in the site's axes.

        Args:
            placed: the edit.
            stored: "base" and "source" to what was stored of each run on these prompts.
            prompts: first and after the last.
        """
        edit, site = placed.edit, placed.site
        if edit.run is not None and edit.op != "mean":
            return stored[edit.run][placed.name]
        if edit.run is not None:
            whole = self._mean(edit.run, placed)
        else:
            whole = whole_source(edit, placed.name, site, self.model.cfg, self.pairs)
        rows, keys = (slice(int(mask[slice(*prompts)].sum(1).max())) for mask in self.pairs.masks(site))
        part = {"batch": slice(*prompts), "pos": rows, "query": rows, "key": keys}
        return whole[tuple(part.get(axis, slice(None)) for axis in site.axes)]

    def _mean(self, run: str, placed: Placed) -> Tensor:
        """The mean of a site over all prompts in one run, in the shape of all prompts."""
        if (run, placed.name) not in self._means:
            names = {
                edit.name(self.model.cfg)
                for variant in self.variants
                for edit in variant.edits
                if edit.op == "mean" and edit.run == run
            }
            self._means |= self._all_means(run, names)
        return self._means[run, placed.name]

    def _all_means(self, run: str, names: set[str]) -> dict[tuple[str, str], Tensor]:
        """The means of some sites, by run and name [prompt, ...]: one forward for each block of prompts."""
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for first, last in self.blocks:
            whole = self.pairs.inputs(self.sides[run])  # as wide as all prompts, so that blocks can be added
            inputs: dict[str, Any] = {
                what: None if value is None else value[first:last] for what, value in whole.items()
            }
            _, cache = self.model.run_with_cache(**inputs, names_filter=sorted(names), return_type=None)
            for name, value in cache.items():
                site = self.model.hook_dict[name].site
                total, count = sum_over_prompts(value, site, self.pairs.masks(site)[0][first:last])
                sums[name] = sums[name] + total if name in sums else total
                counts[name] = counts[name] + count if name in counts else count
        n = len(self.pairs)
        return {
            (run, name): (total / counts[name].clamp(min=1)).expand(n, *total.shape[1:]) for name, total in sums.items()
        }


def whole_source(
    edit: Edit, name: str, site: Site, cfg: ModelConfig | EncoderDecoderConfig, pairs: PromptPairs
) -> Tensor:
    """A source that was given as a value, as wide as the site is for all prompts; for op="mean" averaged over them.

    Raises:
        PromptError: it does not broadcast to the site's shape.
        UnknownName: a cache without the site.
    """
    given = edit.source
    if isinstance(given, Mapping):
        if name not in given and not isinstance(given, ActivationCache):  # a cache derives what it lacks
            raise UnknownName(f"the source of {edit.op!r} at {name!r} has no such site: {', '.join(map(repr, given))}")
        given = given[name]
    exact = torch.float64 if isinstance(given, float) else None  # of the model's own type only when it is used
    value = torch.as_tensor(given, dtype=exact, device=pairs.mask.device)
    rows, keys = pairs.masks(site)
    n, width = rows.shape
    sizes = {**axis_sizes(config_of(cfg, site)), "batch": n, "pos": width, "query": width, "key": keys.shape[1]}
    shape = [sizes[axis] for axis in site.axes]
    try:
        value = value.expand(shape)
        return mean_over_prompts(value, site, rows).expand(shape) if edit.op == "mean" else value
    except RuntimeError as error:
        raise PromptError(
            f"the source of {edit.op!r} at {name!r} has shape {list(value.shape)}, which does not broadcast to "
            f"{shape} = [{', '.join(site.axes)}]"
        ) from error


def mean_over_prompts(value: Tensor, site: Site, mask: Tensor) -> Tensor:
    """The mean over those prompts that have the position [1, ...]; patterns are averaged as they are."""
    total, count = sum_over_prompts(value, site, mask)
    return total / count.clamp(min=1)


def sum_over_prompts(value: Tensor, site: Site, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The sum that `mean_over_prompts` divides [1, ...], and over how many prompts it is."""
    if "pos" not in site.axes or value.shape[:2] != mask.shape:
        return value.sum(0, keepdim=True), torch.tensor(len(value), device=value.device)
    real = mask.to(value.device).reshape(*mask.shape, *[1] * (value.ndim - 2))
    return (value * real).sum(0, keepdim=True), real.sum(0, keepdim=True)
