"""Estimates of what a sweep would measure, from gradients: attribution patching.

1. An edit changes a value; the change times the metric's gradient there is its effect to first order. One forward and
   one backward serve all edits at all sites, where a sweep runs each.
2. Queries and keys act through a softmax, which is flat where attention is saturated. With `qk_fix` the pattern is
   computed anew for the changed query or key, and the gradient is taken at the pattern, behind the softmax.
3. The direct effect of a value and what later layers make of it can cancel in the gradient and not in fact. With
   `drop` gradients are taken again and again, each time with one layer's writing held constant; the estimate gets
   the mean magnitude, with the sign of the plain one. It ranks cells; it does not add up to effects.
4. With `steps` above 1 gradients are averaged while the input embedding goes from the source run's to the base run's
   (integrated gradients).

Source: Nanda 2023 ("Attribution Patching"); Kramár et al. 2024 ("AtP*", sections 3.1 on queries and keys, 3.2 on
gradients with dropped layers); Hanna et al. 2024 ("Have Faith in Faithfulness", section 3, of integrated gradients).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from einops import reduce
from torch import Tensor

from interp.arguments import checked
from interp.attribution.gradients import INPUT, AnyMetric, check_steps, differentiable, path_slopes, values_at
from interp.attribution.prompt_batches import batches, cut
from interp.edits import Edit, Variant
from interp.errors import ConfigError, InterpError, check_choice, unknown
from interp.forward.forward_context import make_context
from interp.hooked.model import HookedModel
from interp.metrics import is_read
from interp.models.gpt import GPT
from interp.precision import widened
from interp.prompts.pair_checks import check_side
from interp.prompts.pairs import PromptPairs
from interp.sites import get_act_name, site_names
from interp.sweeps.edit_reach import Mask, Placed, Placer
from interp.sweeps.source_values import whole_source

QUERIES_KEYS = ("q", "rot_q", "k", "rot_k")
"""The sites that act through the softmax of attention."""

NEURONS = ("post", "pre", "pre_linear")
"""The sites whose channels are neurons."""

Array = np.ndarray[Any, np.dtype[np.float64]]


@checked
def estimate(
    model: HookedModel,
    pairs: PromptPairs,
    variants: Sequence[Variant],
    metric: AnyMetric = "logit_diff",
    *,
    base: str = "corrupt",
    source: str = "clean",
    steps: int = 1,
    qk_fix: bool = False,
    drop: bool = False,
    max_memory: int | None = None,
) -> Tensor:
    """What `interp.sweep` would measure of the same variants, less the base run: to first order, without running them.

    Args:
        model: the model.
        pairs: the prompts.
        variants: as in `interp.sweep`, of edits that set, add, scale or zero; edits of one variant add up.
        metric: as `interp.attribution.gradients.gradients` takes it.
        base, source: as in `interp.sweep`.
        steps: points at which the gradient is taken, on the way from the source run's input embedding to the base
            run's; 1 is the base run alone.
        qk_fix: compute the pattern of changed queries and keys anew.
        drop: average the magnitude over gradients that each leave out one layer, other than the edits' own.
        max_memory: as in `interp.attribution.gradients.gradients`.

    Returns:
        Estimates of metric(edited run) - metric(base run) [variant, prompt] in float64.

    Raises:
        UnknownName: a site, layer, head, role or side that does not exist, a metric without a slope.
        PromptError: a position outside some prompt, a source that does not fit.
        ConfigError: steps below 1; integrated gradients together with `qk_fix`, or of two sides that are the same.
        InterpError: an edit by a function or a mean; `qk_fix` of a bridged model, or of single channels of a query.
    """
    check_steps(steps)
    for side in (base, source):
        check_side(side)
    if steps > 1 and qk_fix:
        raise ConfigError("qk_fix goes with the gradient of the base run: leave steps at 1")
    if steps > 1 and base == source:
        raise ConfigError(f"integrated gradients go from one side to the other, and base and source are both {base!r}")
    if qk_fix and not isinstance(model, GPT):
        raise InterpError(f"qk_fix computes attention itself, not that of a {type(model).__name__}: leave it out")
    pairs, metric = pairs.to(model.device), differentiable(metric)
    groups = _grouped(model, pairs, variants, is_read(metric, pairs), qk_fix)
    sites = list(dict.fromkeys(name for group in groups for name in group.sites))
    copied = [group.name for group in groups if group.edit.run == "source"]
    moving = [INPUT] if steps > 1 else []
    layers = range(model.cfg.n_layers) if drop else ()
    found = np.zeros((1 + len(layers), len(variants), len(pairs)))  # with all layers, then with each left out
    for at, part in batches(model, pairs, sites, max_memory=max_memory):
        runs = {
            "source": values_at(model, part, dict.fromkeys([*copied, *moving]), source),
            "base": values_at(model, part, dict.fromkeys([*sites, *moving]), base),
        }
        for row, layer in enumerate((None, *layers)):
            slopes = path_slopes(
                model,
                part,
                sites,
                metric,
                path={name: (runs["source"][name], runs["base"][name]) for name in moving},
                steps=steps,
                base=base,
                source=source,
                stop=() if layer is None else _writers(model, layer),
            )
            for group in groups:
                for variant, value in group.effects(model, pairs, part, at, slopes, runs):
                    found[row, variant, at] += value
    return torch.from_numpy(_undropped(found, groups) if drop else found[0])


@checked
def neurons(model: HookedModel, site: str = "post") -> list[Variant]:
    """A variant for every neuron, labelled with site, layer and neuron: its value becomes that of the source run.

    Args:
        model: the model.
        site: "post", the activations; "pre", before the activation function; "pre_linear", a gated MLP's other branch.

    Raises:
        UnknownName: another site, or one that the model does not have.
    """
    check_choice("site of neurons", site, NEURONS)
    layers = [layer for layer in range(model.cfg.n_layers) if get_act_name(site, layer) in model.hook_dict]
    if not layers or model.cfg.d_mlp is None:
        raise unknown("site", get_act_name(site, 0), model.hook_dict)
    return [
        Variant((Edit(site, {"layer": layer, "d_mlp": neuron}),), {"site": site, "layer": layer, "neuron": neuron})
        for layer in layers
        for neuron in range(model.cfg.d_mlp)
    ]


@dataclass(eq=False)
class _EstimateGroup:
    """Edits that do the same at one site, with the same axes named, so that one product serves them all.

    Attributes:
        edit: one of them.
        sites: where their gradients are taken.
        members: for each the number of its variant, and where it acts.
    """

    edit: Edit
    sites: tuple[str, ...]
    members: list[tuple[int, Placed]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The full name of the site."""
        return self.members[0][1].name

    def effects(
        self,
        model: HookedModel,
        pairs: PromptPairs,
        part: PromptPairs,
        at: slice,
        slopes: Mapping[str, Tensor],
        runs: Mapping[str, Mapping[str, Tensor]],
    ) -> Iterator[tuple[int, Array]]:
        """Variants and their effects [prompt] on the prompts of one part."""
        own = widened(runs["base"][self.name])
        change = self._changed(model, pairs, part, at, runs) - own
        change = change.masked_fill(change.isnan(), 0)  # of scores that are -inf before and after
        placed, width = self.members[0][1], part.mask.shape[1]
        if len(self.sites) == 1:
            axis = placed.site.axes.index("query" if "query" in placed.site.axes else "pos")
            product = (change * slopes[self.name]).movedim(axis, -1)  # [prompt, other axes, pos]
            whole = [1 + at for at, index in enumerate(placed.indices) if index is None]
            table = (product.sum(whole) if whole else product).double().cpu().numpy()
            for variant, member in self.members:
                yield variant, (_picked(table, member, at) * member.rows[at, :width]).sum(-1)
            return
        assert isinstance(model, GPT)
        tables: dict[int, Array] = {}
        for variant, member in self.members:
            if id(member.rows) not in tables:
                rows = torch.from_numpy(member.rows[at, :width]).to(model.device)
                changed = own + change * rows[:, :, None, None]
                effect = _through_softmax(model, part, self, changed, slopes, runs["base"])
                effect = effect if placed.indices[0] is not None else effect.sum(1)  # heads that nobody tells apart
                tables[id(member.rows)] = effect[..., None].double().cpu().numpy()
            yield variant, _picked(tables[id(member.rows)], member, at)[:, 0]

    def _changed(
        self,
        model: HookedModel,
        pairs: PromptPairs,
        part: PromptPairs,
        at: slice,
        runs: Mapping[str, Mapping[str, Tensor]],
    ) -> Tensor:
        """The whole site's value as the edits make it, wherever they act."""
        edit, own, site = self.edit, widened(runs["base"][self.name]), self.members[0][1].site
        if edit.op == "zero":
            return torch.zeros_like(own)
        if edit.run is not None:
            given = widened(runs[edit.run][self.name])
        else:
            given = widened(cut(whole_source(edit, self.name, site, model.cfg, pairs), at, part, site))
        return {"set": lambda: given, "add": lambda: own + given, "scale": lambda: own * given}[edit.op]()


def _grouped(
    model: HookedModel, pairs: PromptPairs, variants: Sequence[Variant], read: Mask, qk_fix: bool
) -> list[_EstimateGroup]:
    """The edits of all variants, in groups."""
    placer = Placer(model, pairs, read)
    groups: dict[object, _EstimateGroup] = {}
    for number, variant in enumerate(variants):
        for edit in variant.edits:
            if edit.computed or edit.op == "mean":
                raise InterpError(
                    f"an estimate needs values to compare with, and {edit.site!r} is edited by "
                    f"{'a function' if edit.computed else 'a mean'}: give a tensor, "
                    "as `interp.variants.ablations` makes them"
                )
            placed = placer.place(edit)
            if placed.site.short == "state" and (placed.rows.sum(1) > 1).any():
                raise InterpError(
                    "a state that is set stands in for what earlier ones would hand on, which gradients do not know: "
                    "estimate 'state' at one position at a time, by pos or role"
                )
            fixed = qk_fix and placed.site.short in QUERIES_KEYS
            if fixed and placed.indices[1] is not None:
                raise InterpError("qk_fix changes whole queries and keys: leave d_head out of where")
            source = edit.run if edit.run is not None or isinstance(edit.source, float | int) else id(edit.source)
            value = edit.source if isinstance(edit.source, float | int) else None
            key = (placed.name, edit.op, source, value, tuple(index is None for index in placed.indices))
            if key not in groups:
                groups[key] = _EstimateGroup(edit, _read_by_softmax(placed) if fixed else (placed.name,))
            groups[key].members.append((number, placed))
    return list(groups.values())


def _read_by_softmax(placed: Placed) -> tuple[str, ...]:
    """The queries and keys of a layer, as the site has them, and the pattern that they make."""
    path, short = placed.name.rsplit(".hook_", 1)
    turned = "rot_" if short.startswith("rot_") else ""
    return tuple(f"{path}.hook_{name}" for name in (f"{turned}q", f"{turned}k", "pattern"))


def _through_softmax(
    model: GPT,
    part: PromptPairs,
    group: _EstimateGroup,
    changed: Tensor,
    slopes: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
) -> Tensor:
    """The effect of changed queries or keys by way of the pattern.  # [prompt, head or kv_head]"""
    queries, keys, pattern = group.sites
    attn = model.attention(model.hook_dict[pattern].layer())
    context = make_context(
        model.cfg, part.mask.shape[1], attention_mask=part.attention_mask, device=model.device, dtype=model.dtype
    )
    turns = context.cos is not None and not queries.endswith("rot_q")

    def mixed(values: Mapping[str, Tensor]) -> Tensor:
        q, k = (values[name].to(model.dtype) for name in (queries, keys))
        q, k = (attn.rotate(x, context) if turns else x for x in (q, k))
        return widened(attn.softmax(attn.scores(q, k, context)))

    change = mixed({**own, group.name: changed}) - mixed(own)  # [prompt, head, query, key]
    effect = (change * slopes[pattern]).sum((2, 3))
    return effect if group.name == queries else reduce(effect, "n (kv g) -> n kv", "sum", kv=model.cfg.n_kv_heads)


def _picked(table: Array, placed: Placed, at: slice) -> Array:
    """The entries that an edit names, summed.  # [prompt, named axes, pos] -> [prompt, pos]"""
    named = [index[at] for index in placed.indices if index is not None]
    shape = [len(table), *[1] * len(named)]
    where: list[Any] = [np.arange(len(table)).reshape(shape)]
    there: Any = 1.0
    for axis, index in enumerate(named, start=1):
        own = [len(table), *[1] * len(named)]
        own[axis] = index.shape[1]
        where.append(index.reshape(own))
        if (index < 0).any():  # keys of shorter prompts are padded
            there = there * (index.reshape(own) >= 0)[..., None]
    taken = table[tuple(where)] * there  # [prompt, how many of each, pos]
    return np.asarray(taken.sum(tuple(range(1, 1 + len(named)))))


def _writers(model: HookedModel, layer: int) -> list[str]:
    """The sites through which a layer writes to the residual stream."""
    parts = ("hook_attn_out", "mixer.hook_out", "hook_mlp_out")
    names = [name for part in parts if (name := f"blocks.{layer}.{part}") in site_names(model.cfg)]
    if any(name not in model.hook_dict for name in names):
        raise InterpError(f"dropping a layer needs {names}, which this {type(model).__name__} does not have")
    return names


def _undropped(found: Array, groups: Sequence[_EstimateGroup]) -> Array:
    """The mean magnitude over dropped layers, with the plain estimate's sign.  # [1 + layer, variant, prompt]"""
    plain, dropped = found[0], np.abs(found[1:])
    others = np.ones(dropped.shape[:2], dtype=bool)  # an edit's own layer would leave nothing of it
    for group in groups:
        for variant, placed in group.members:
            if placed.site.per_layer:
                others[placed.step // 2, variant] = False
    n_others = others.sum(0)[:, None]
    mean = (dropped * others[..., None]).sum(0) / np.maximum(n_others, 1)
    return np.where(n_others, np.sign(plain) * mean, plain)
