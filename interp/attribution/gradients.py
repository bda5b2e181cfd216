"""Gradients of a metric: how fast would it change with the value at a site, in one forward and one backward?

1. Run one side of the pairs with the graph beginning at the first of the sites that were asked for; the weights take no
   part in it.
2. Sum the metric over the prompts and go back once. Prompts do not look at one another, so that the gradient of the sum
   is, row by row, that of each prompt's own metric.
3. A state of a recurrence is handed on, so that its gradient is made of those of all later states: backwards, each
   gets what the next one has, times the decay between the two.
4. Where memory is short, do so for some prompts after the others.

To first order, a value that changes by d changes the metric by d times its gradient: what attribution patching
(`interp.attribution.node_scores`) and edge attribution (`interp.circuits.edge_scores`) are made of.
`integrated_gradients` averages the gradient along the way from one input to another instead, and so accounts for the
whole difference.

Source: Nanda 2023 ("Attribution Patching"); Sundararajan et al. 2017 ("Axiomatic Attribution for Deep Networks",
section 3).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.arguments import MOST, checked, whole_number
from interp.attribution.logits_read import NOTHING, logits_read
from interp.attribution.prompt_batches import batches, cut, joined_parts
from interp.attribution.shared_start import SharedStart
from interp.errors import HookError, unknown
from interp.hooked.hooks import HookPoint, attached
from interp.hooked.model import HookedModel
from interp.metrics import METRICS, Metric, evaluate, get_metric, read_there
from interp.models.gpt import GPT
from interp.precision import widened
from interp.prompts.pair_checks import other_side
from interp.prompts.pairs import PromptPairs, fitting
from interp.sites import match

AnyMetric = str | Metric | Callable[..., Tensor]

FLAT = ("rank", "correct")
"""Metrics that have steps, and no slope anywhere."""

INPUT = "blocks.0.hook_resid_pre"
STATE = "mixer.hook_state"


@dataclass(frozen=True, eq=False)
class Gradients:
    """Values and gradients of one run.

    Attributes:
        metric: the metric [prompt].
        values: full site name to its value, in the site's shape [prompt, ...].
        slopes: full site name to the gradient of each prompt's metric by that value, in the same shape.
    """

    metric: Tensor
    values: dict[str, Tensor]
    slopes: dict[str, Tensor]


@checked
def gradients(
    model: HookedModel,
    pairs: PromptPairs,
    names: str | Iterable[str],
    metric: AnyMetric = "logit_diff",
    *,
    base: str = "clean",
    source: str | None = None,
    given: Mapping[str, Tensor] | None = None,
    stop: Iterable[str] = (),
    max_memory: int | None = None,
) -> Gradients:
    """Values of some sites and the metric's gradients by them, for every prompt.

    Args:
        model: the model; its weights get no gradients.
        pairs: the prompts.
        names: sites by full name or glob, on-demand ones among them.
        metric: as `interp.sweep` takes it, if it has a slope.
        base: the side that is run, "clean" or "corrupt".
        source: the side whose run is the reference of a metric that compares; the other one by default.
        given: values [prompt, ...] that sites get instead of what is computed there.
        stop: sites whose value is passed on and whose gradient is not, as if they were constant.
        max_memory: bytes of a graph, about; None takes 1 GiB. Prompts that do not fit together go one after the other.

    Returns:
        `Gradients`; values and slopes at padding are 0.

    Raises:
        UnknownName: a site or side that does not exist, a metric without a slope ("rank", "correct").
        HookError: a site that the metric does not depend on in such a run.
        ConfigError: `max_memory` is not a positive number.

    >>> from interp.config import ModelConfig
    >>> from interp.models.gpt import GPT
    >>> model = GPT(ModelConfig(n_layers=2, d_model=16, n_ctx=32, d_head=8, d_vocab=50, seed=0))
    >>> pairs = PromptPairs.from_tokens([[1, 2, 3]], [[1, 4, 3]], answers=[(5, 6)])
    >>> gradients(model, pairs, "blocks.*.attn.hook_z").slopes["blocks.1.attn.hook_z"].shape
    torch.Size([1, 3, 2, 8])
    """
    pairs, sites = (
        fitting(model, pairs).to(model.device),
        match([names] if isinstance(names, str) else list(names), model.hook_dict),
    )
    parts = []
    for at, part in batches(model, pairs, sites, max_memory=max_memory):
        here = {name: cut(value, at, part, model.hook_dict[name].site) for name, value in (given or {}).items()}
        parts.append(differentiate(model, part, sites, metric, base=base, source=source, given=here, stop=stop))
    values, slopes = (
        {
            name: joined_parts([getattr(part, what)[name] for part in parts], model.hook_dict[name].site, pairs)
            for name in sites
        }
        for what in ("values", "slopes")
    )
    return Gradients(torch.cat([part.metric for part in parts]), values, slopes)


def differentiate(
    model: HookedModel,
    pairs: PromptPairs,
    names: Iterable[str],
    metric: AnyMetric = "logit_diff",
    *,
    base: str = "clean",
    source: str | None = None,
    given: Mapping[str, Tensor] | None = None,
    stop: Iterable[str] = (),
    start: SharedStart = NOTHING,
) -> Gradients:
    """`gradients` of all prompts at once: one forward, one backward; `names` are full names.

    With a `start` that both sides share, the run begins after it, and so do the positions of all values and slopes.
    """
    metric, given, sites = differentiable(metric), given or {}, list(dict.fromkeys(names))
    _check(model, base, sites)
    source = other_side(base) if source is None else other_side(other_side(source))
    reference = None
    if metric.needs_reference:
        with torch.no_grad():
            reference = read_there(metric, logits_read(model, pairs, metric, source), pairs)
    leaves = _Leaves(sites, given, set(stop))
    with torch.enable_grad(), constant(model) as fixed, attached(model.hook_dict, [(leaves.hooked, leaves.hook)]):
        # 1. One forward, whose graph begins at the sites.
        there = logits_read(fixed, pairs, metric, base, start)
        value = evaluate(metric, read_there(metric, there, pairs), pairs, reference, side=base)  # [prompt]
        if not value.requires_grad:
            raise HookError(
                f"metric {metric.name!r} gives no gradient at {sites[0]!r}: it must be computed from the logits by "
                "operations that torch can differentiate"
            )
        # 2. One backward of the sum over prompts.
        slopes = torch.autograd.grad(value.sum(), [leaves.seen[name] for name in sites], allow_unused=True)
    values = {name: leaves.seen[name].detach() for name in sites}
    by_site = {}
    for name, slope in zip(sites, slopes, strict=True):
        if slope is None and not leaves.stopped:
            raise HookError(
                f"the metric does not depend on {name!r} in this run: nothing reads it there, or it can only be read"
            )
        by_site[name] = torch.zeros_like(values[name]) if slope is None else slope
    # 3. States are handed on.
    for name in leaves.states:
        delta = leaves.seen[name.replace(STATE, "mixer.hook_delta")].detach()
        by_site[name] = _through_later_states(model, name, by_site[name], delta)
    return Gradients(value.detach(), values, by_site)


class _Leaves:
    """The values of sites in a forward, which its graph begins at.

    Args:
        sites: full names of those whose gradient is asked for.
        given: what sites get instead of what is computed there.
        stopped: those that pass on their value and not its gradient.

    Attributes:
        seen: the values, by full name.
        states: the sites that are states of a recurrence.
        hooked: all sites that `hook` belongs to.
    """

    def __init__(self, sites: list[str], given: Mapping[str, Tensor], stopped: set[str]) -> None:
        self.given, self.stopped = given, stopped
        self.seen: dict[str, Tensor] = {}
        self.states = [name for name in sites if name.endswith(STATE)]
        # A state is read where it was made: the graph begins before it, and its decay is needed.
        beside = [name.replace(STATE, f"mixer.hook_{other}") for name in self.states for other in ("in", "delta")]
        self.begin = {*sites, *beside}
        self.hooked = list(dict.fromkeys([*sites, *beside, *given, *stopped]))

    def hook(self, value: Tensor, hook: HookPoint) -> Tensor:
        """The hook function of every site."""
        if hook.name in self.given:
            value = self.given[hook.name].to(value.dtype)
        if hook.name in self.stopped:
            value = value.detach().requires_grad_()  # a bridge takes no value that is equal and has no graph
        if hook.name in self.begin:
            value = value if value.requires_grad else value.detach().requires_grad_()
            self.seen[hook.name] = value
        return value


def _through_later_states(model: HookedModel, name: str, slope: Tensor, delta: Tensor) -> Tensor:
    """The gradient by the states of a layer [prompt, pos, ...].

    Args:
        model: with the layer's decay rates.
        name: the site, a `hook_state`.
        slope: the gradient by way of what is read of each state at its own position, in the same shape.
        delta: the step sizes [prompt, pos, ...].

    A change of one state makes the next one change by the decay between them, so that its whole gradient is its own and
    that much of the next one's whole gradient: from the last position back.
    """
    assert isinstance(model, GPT)
    mixer = model.block(model.hook_dict[name].layer()).mixer
    assert mixer is not None
    decay = torch.exp(delta.reshape(*delta.shape, *[1] * (mixer.A.ndim - 1)) * mixer.A)
    decay = decay.reshape(*decay.shape, *[1] * (slope.ndim - decay.ndim)).detach()
    whole = list(slope.unbind(1))
    for at in reversed(range(len(whole) - 1)):
        whole[at] = whole[at] + decay[:, at + 1] * whole[at + 1]
    return torch.stack(whole, 1)


@checked
def path_slopes(
    model: HookedModel,
    pairs: PromptPairs,
    names: Iterable[str],
    metric: AnyMetric = "logit_diff",
    *,
    path: Mapping[str, tuple[Tensor, Tensor]],
    steps: int = 1,
    base: str = "clean",
    source: str | None = None,
    stop: Iterable[str] = (),
    start: SharedStart = NOTHING,
) -> dict[str, Tensor]:
    """The mean of the gradients at `steps` points of a straight path, which ends in the base run.

    Args:
        model, pairs, names, metric, base, source, stop, start: as in `differentiate`.
        path: full site name -> the value at the far end, and that of the base run.
        steps: points k / steps of the way, for k from 1 on; the last is the base run as it is, bit for bit, so that one
            step is the plain gradient.

    Returns:
        As `Gradients.slopes`, in float32 at least.
    """
    total: dict[str, Tensor] = {}
    for step in range(1, steps + 1):
        given = {name: widened(far).lerp(widened(own), step / steps) for name, (far, own) in path.items()}
        given = given if step < steps else {}
        here = differentiate(model, pairs, names, metric, base=base, source=source, given=given, stop=stop, start=start)
        for name, slope in here.slopes.items():
            total[name] = total.get(name, 0) + widened(slope) / steps
    return total


@checked
def integrated_gradients(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    metric: AnyMetric = "logit_diff",
    base: str = "clean",
    steps: int = 50,
    max_memory: int | None = None,
) -> Tensor:
    """How much of the metric's difference between the two runs each position's token accounts for.

    The input embedding goes in a straight line from the base run's to the other run's; the gradient is taken in the
    middle of each of `steps` pieces. In a mixture of experts a choice that changes on the way is a jump of the metric,
    which no gradient accounts for.

    Returns:
        [prompt, pos], in the metric's unit; the sum over positions is metric(other run) - metric(base run), but for
        the error of the pieces.

    Raises:
        ConfigError: `steps` below 1.
        InterpError: as `gradients`.

    Source: Sundararajan et al. 2017, section 3; completeness is their proposition 1.
    """
    check_steps(steps)
    pairs = pairs.to(model.device)
    name = input_of(model)
    ends = [values_at(model, pairs, [name], side)[name] for side in (base, other_side(base))]
    ends = [widened(end) for end in ends]
    moved = ends[1] - ends[0]  # [prompt, pos, d_model]
    total = torch.zeros_like(moved)
    for step in range(steps):
        at = torch.lerp(ends[0], ends[1], (step + 0.5) / steps)
        found = gradients(model, pairs, name, metric, base=base, given={name: at}, max_memory=max_memory)
        total += widened(found.slopes[name]) / steps
    return (moved * total).sum(-1)


def input_of(model: HookedModel) -> str:
    """The site through which all of a prompt goes into the layers: shared blocks read the embedding in each layer."""
    return "hook_embed" if isinstance(model, GPT) and model.cfg.shared is not None else INPUT


@torch.no_grad()
def values_at(model: HookedModel, pairs: PromptPairs, names: Iterable[str], side: str) -> dict[str, Tensor]:
    """The values of some sites in one run, by full name and in each site's shape."""
    wanted = list(names)
    if not wanted:
        return {}
    _, cache = model.run_with_cache(**pairs.inputs(side), names_filter=wanted, return_type=None)
    return {name: cache[name] for name in wanted}


def differentiable(metric: AnyMetric) -> Metric:
    """A metric that has a slope.

    Raises:
        UnknownName: "rank" or "correct", or no metric at all.
    """
    found = get_metric(metric)
    if found.name in FLAT and found is METRICS[found.name]:
        raise unknown("metric with a gradient", found.name, [name for name in METRICS if name not in FLAT])
    return found


def check_steps(steps: int) -> None:
    """Refuse anything but a positive number of steps."""
    whole_number("steps", steps, least=1, most=MOST)


@contextmanager
def constant(model: HookedModel) -> Iterator[HookedModel]:
    """A model of the same weights, hook points and hooks, in which the weights are constants.

    Nothing of the model itself changes, so that other threads may train it or take other gradients meanwhile, and an
    interrupt leaves it as it was. Of a bridged model, which cannot be had twice, the weights are constants until the
    end of the block.
    """
    if isinstance(model, GPT):
        shared: list[Any] = [model.cfg, model.tokenizer, model.source, *model.hook_dict.values()]
        weights = {id(weight): weight.detach() for weight in model.parameters()}
        yield copy.deepcopy(model, {id(part): part for part in shared} | weights)
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield model
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _check(model: HookedModel, base: str, names: list[str]) -> None:
    other_side(base)
    for name in names:
        if name not in model.hook_dict:
            raise unknown("site", name, model.hook_dict)
    if not names:
        raise HookError("gradients need at least one site")
    points = [model.hook_dict[name] for name in names]
    whole = next((point.name for point in points if point.site.whole), None)
    if whole is not None:
        raise HookError(f"{whole!r} holds whole numbers, which have no gradient")
    inputs = ("q_input", "k_input", "v_input")
    split = {(point.site.stack, point.layer()) for point in points if point.site.short_in_stack in inputs}
    for point in points:
        if point.site.short_in_stack.startswith("ln1.") and (point.site.stack, point.layer()) in split:
            raise HookError(
                f"{point.name!r} is not what heads with inputs of their own read: take its gradient in a run of its own"
            )
