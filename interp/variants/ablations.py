"""The values that replace an ablated activation.

1. `corrupt`: its value in the other run of the pair (an interchange). 2. `zero`: zeros. 3. `mean`: its mean over the
prompts, position by position. 4. `mean_by_role`: its mean over the prompts at the position of the same role, wherever
that is in each prompt; positions without a role share one mean. 5. `resample`: its value in another prompt of the same
length, drawn so that no prompt keeps its own value.

The choice changes what a component seems to do, so every table names it.

Source: Wang et al. 2022 ("Interpretability in the Wild", section 2, mean ablation), Chan et al. 2022 ("Causal
Scrubbing", resampling), Zhang and Nanda 2024 ("Towards Best Practices of Activation Patching", section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from interp.arguments import checked
from interp.arguments import seed as check_seed
from interp.errors import InterpError, PromptError, check_choice
from interp.hooked.model import HookedModel
from interp.prompts.pair_checks import check_side
from interp.prompts.pairs import PromptPairs, fitting
from interp.sites import Site
from interp.sweeps.source_values import mean_over_prompts

ABLATIONS = {
    "corrupt": "the value in the other run of the pair",
    "zero": "zero",
    "mean": "the mean over prompts at the same position",
    "mean_by_role": "the mean over prompts at the same role",
    "resample": "the value in another prompt of the same length",
}


@checked
@torch.no_grad()
def replacements(
    model: HookedModel,
    pairs: PromptPairs,
    names: Iterable[str],
    kind: str = "corrupt",
    *,
    run: str = "corrupt",
    seed: int = 0,
) -> dict[str, Tensor]:
    """The values that replace those of some sites when these are ablated.

    Args:
        model: the model.
        pairs: the prompts.
        names: full site names.
        kind: a name of `ABLATIONS`.
        run: the side whose values are taken, averaged or drawn from: "corrupt" or "clean".
        seed: of the draws of `resample`.

    Returns:
        Name -> values of the site's shape [prompt, ...] on the model's device, in the model's number type.

    Raises:
        UnknownName: a kind, side or site that does not exist.
        PromptError: `mean_by_role` of prompts without roles, `resample` where no other prompt has a prompt's length.
        InterpError: `mean_by_role` of a site without positions of its own, such as a pattern; a mean of whole numbers.

    Source: see the module.
    """
    check_choice("ablation", kind, ABLATIONS)
    check_side(run)
    pairs = fitting(model, pairs).to(model.device)
    names = list(dict.fromkeys(names))
    whole = next((name for name in names if name in model.hook_dict and model.hook_dict[name].site.whole), None)
    if whole is not None and kind in ("mean", "mean_by_role"):
        raise InterpError(f"{whole!r} holds whole numbers, of which there is no mean: choose another ablation")
    _, cache = model.run_with_cache(**pairs.inputs(run), names_filter=names, return_type=None)
    replace = _replacement(kind, pairs, seed)
    return {name: replace(cache[name], model.hook_dict[name].site) for name in names}


def _replacement(kind: str, pairs: PromptPairs, seed: int) -> Callable[[Tensor, Site], Tensor]:
    """The function from a site's values in a run to those that replace them."""
    if kind == "mean":
        return lambda value, site: mean_over_prompts(value, site, pairs.masks(site)[0]).expand_as(value)
    if pairs.encoder is not None and kind in ("mean_by_role", "resample"):
        raise PromptError(f"{kind} is of one prompt, and these pairs have one for each stack: use 'mean' or 'corrupt'")
    if kind == "mean_by_role":
        if not pairs.role_names:
            raise PromptError("mean_by_role needs prompts with roles, and these have none: use 'mean'")
        groups = _role_numbers(pairs).to(pairs.mask.device)
        return lambda value, site: _mean_by_group(value, site, groups)
    if kind == "resample":
        partner = resampled(pairs, seed).to(pairs.mask.device)
        return lambda value, site: value[partner]
    return (lambda value, site: torch.zeros_like(value)) if kind == "zero" else (lambda value, site: value)


@checked
def resampled(pairs: PromptPairs, seed: int = 0) -> Tensor:
    """For each prompt another one of the same length; no prompt is drawn twice.  # [prompt] int64

    Raises:
        PromptError: a prompt whose length no other prompt has.
    """
    rng = np.random.default_rng(check_seed(seed))
    partner = torch.empty(len(pairs), dtype=torch.int64)
    for length in pairs.lengths.unique().tolist():
        among = torch.nonzero(pairs.lengths.cpu() == length).flatten()
        if len(among) == 1:
            raise PromptError(
                f"resample takes values from another prompt of the same length, and prompt {int(among)} is the only "
                f"one of {length} tokens: give more prompts, a task's with aligned=True, or use 'mean'"
            )
        order = among[torch.from_numpy(rng.permutation(len(among)))]
        partner[order] = order.roll(1)
    return partner


def _role_numbers(pairs: PromptPairs) -> Tensor:
    """The number of the role at each position, 0 where there is none and -1 at padding.  # [prompt, pos]"""
    numbers = torch.where(pairs.mask.cpu(), 0, -1)
    for number, role in enumerate(pairs.role_names, start=1):
        for prompt, named in enumerate(pairs.roles):
            if role in named:
                numbers[prompt, named[role]] = number
    return numbers


def _mean_by_group(value: Tensor, site: Site, groups: Tensor) -> Tensor:
    """Every position's mean over the positions of its group.  # [prompt, pos, ...]"""
    if site.axes[:2] != ("batch", "pos"):
        raise InterpError(
            f"mean_by_role averages over positions, and site {site.short!r} has the axes [{', '.join(site.axes)}]: "
            "use 'mean'"
        )
    means = torch.zeros_like(value)
    for group in groups.unique().tolist():
        at = groups == group
        means[at] = value[at].float().mean(0).to(value.dtype)
    return means
