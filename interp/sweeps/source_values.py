"""The values that edits copy from, as wide as their site, and means of them over prompts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from interp.config import EncoderDecoderConfig, ModelConfig
from interp.edits import Edit
from interp.errors import PromptError, UnknownName
from interp.hooked.cache import ActivationCache
from interp.prompts.pairs import PromptPairs
from interp.sites import Site, axis_sizes, config_of


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
