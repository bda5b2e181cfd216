"""Estimates of what a sweep would measure, from gradients: attribution patching.

1. An edit changes a value; the change times the metric's gradient there is the edit's effect to first order. One
   forward and one backward serve all edits at all sites, where a sweep runs the model for each.
2. Queries and keys act through a softmax, which is flat where attention is saturated. With `qk_fix` the pattern is
   computed again for the changed query or key, and the gradient is taken at the pattern, after the softmax.
3. A value's direct effect and its effect through later layers can cancel in the gradient although they do not cancel in
   the model. With `drop` gradients are taken once for each layer, with that layer's outputs held constant; the estimate
   is the mean magnitude, with the sign of the plain estimate. It ranks cells; it does not estimate their effects.
4. With `steps` above 1 gradients are averaged while the input embedding moves from the source run's to the base run's
   (integrated gradients).

Source: Nanda 2023 ("Attribution Patching"); Kramár et al. 2024 ("AtP*", sections 3.1 on queries and keys, 3.2 on
gradients with dropped layers); Hanna et al. 2024 ("Have Faith in Faithfulness", section 3, of integrated gradients).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

import numpy as np
import torch
from einops import reduce
from torch import Tensor

from interp.arguments import checked
from interp.attribution.gradients import AnyMetric, check_steps, differentiable, input_of, path_slopes, values_at
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
from interp.variants.granularity import asked
from interp.variants.granularity import variants as cells

QUERIES_KEYS = ("q", "rot_q", "k", "rot_k")
"""The sites that act through the softmax of attention."""

NEURONS = ("post", "pre", "pre_linear")
"""The sites whose channels are neurons."""

METHODS: dict[str, dict[str, bool]] = {
    "atp": {},
    "qk-fix": {"qk_fix": True},
    "drop": {"drop": True},
    "atp-star": {"qk_fix": True, "drop": True},
    "ig": {},
}
"""The published methods, and what each asks of `estimate`; "ig" takes several `steps`."""

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
    """Estimates of what `interp.sweep` would measure for the same variants, minus the base run, without running them.

    Args:
        model: the model.
        pairs: the prompts.
        variants: as in `interp.sweep`, with edits that set, add, scale or zero; those of one variant are summed.
        metric: as `interp.attribution.gradients.gradients` takes it.
        base, source: as in `interp.sweep`.
        steps: points at which the gradient is taken, on the way from the source run's input embedding to the base
            run's; 1 is the base run alone.
        qk_fix: compute the attention pattern again for changed queries and keys.
        drop: average magnitudes over gradients that each leave out one layer, other than the edit's own.
        max_memory: as in `interp.attribution.gradients.gradients`.

    Returns:
        Estimates of metric(edited run) - metric(base run) [variant, prompt] in float64.

    Raises:
        UnknownName: a site, layer, head, role or side that does not exist, a metric without a gradient.
        PromptError: a position outside some prompt, a source of the wrong shape.
        ConfigError: steps below 1; integrated gradients together with `qk_fix`, or of two sides that are the same.
        InterpError: an edit by a function or a mean; `qk_fix` of a bridged model, or of single channels of a query.
    """
    several = [(variants, qk_fix)]
    return estimates(
        model, pairs, several, metric, base=base, source=source, steps=steps, drop=drop, max_memory=max_memory
    )[0]


@checked
def estimates(
    model: HookedModel,
    pairs: PromptPairs,
    several: Sequence[tuple[Sequence[Variant], bool]],
    metric: AnyMetric = "logit_diff",
    *,
    base: str = "corrupt",
    source: str = "clean",
    steps: int = 1,
    drop: bool = False,
    max_memory: int | None = None,
) -> list[Tensor]:
    """`estimate` of several lists of variants, each with its own `qk_fix`, from the same runs and gradients.

    Args:
        model, pairs, metric, base, source, steps, drop, max_memory: as in `estimate`.
        several: lists of variants, each with whether the attention pattern is computed again for it.

    Returns:
        The estimates of each list [variant, prompt].

    Raises:
        InterpError: as `estimate`.
    """
    check_steps(steps)
    for side in (base, source):
        check_side(side)
    any_fix = any(qk_fix for _, qk_fix in several)
    if steps > 1 and any_fix:
        raise ConfigError(f"qk_fix uses the gradient of the base run alone, and steps is {steps}: leave steps at 1")
    if steps > 1 and base == source:
        raise ConfigError(
            f"integrated gradients need two different sides to go between, and base and source are both {base!r}"
        )
    if any_fix and not isinstance(model, GPT):
        raise InterpError(f"qk_fix cannot compute the attention of a {type(model).__name__}: leave it out")
    pairs, metric = pairs.to(model.device), differentiable(metric)
    groups: list[_EstimateGroup] = []
    sizes = [len(variants) for variants, _ in several]
    for (variants, qk_fix), first in zip(several, np.cumsum([0, *sizes]), strict=False):
        groups += _grouped(model, pairs, variants, is_read(metric, pairs), qk_fix, int(first))
    sites = list(dict.fromkeys(name for group in groups for name in group.sites))
    from_source = [group.name for group in groups if group.edit.run == "source"]
    moving = [input_of(model)] if steps > 1 else []
    layers = range(model.cfg.n_layers) if drop else ()
    found = np.zeros((1 + len(layers), sum(sizes), len(pairs)))  # row 0: all layers; then without each layer
    for at, part in batches(model, pairs, sites, max_memory=max_memory):
        runs = {
            "source": values_at(model, part, dict.fromkeys([*from_source, *moving]), source),
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
    table = torch.from_numpy(_mean_magnitude(found, groups) if drop else found[0])
    return list(table.split(sizes))


@checked
def neurons(model: HookedModel, site: str = "post") -> list[Variant]:
    """A variant for every neuron, labelled with site, layer and neuron: its value is set to that of the source run.

    Args:
        model: the model.
        site: "post", after the activation function; "pre", before it; "pre_linear", a gated MLP's other branch.

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


def cells_or_neurons(
    model: HookedModel,
    pairs: PromptPairs,
    site: str | Sequence[str] | None = None,
    by: str | Sequence[str] | EllipsisType | None = ...,
    granularity: str | None = None,
) -> list[Variant]:
    """The cells of `interp.variants.granularity.variants`; for `by="neuron"` every neuron of one or several sites.

    Raises:
        UnknownName, PromptError, InterpError: as `interp.variants.granularity.asked` and `variants`, or `neurons`.
    """
    if by == "neuron" and granularity is None:
        return [variant for name in asked("post" if site is None else site)[0] for variant in neurons(model, name)]
    sites, axes = asked(site, by, granularity, model=model, pairs=pairs)
    return cells(model, pairs, site=sites, by=axes)


@dataclass(eq=False)
class _EstimateGroup:
    """Edits that make the same change at one site and name the same axes, so that one product serves them all.

    Attributes:
        edit: one of them.
        sites: the sites at which gradients are taken: the edits' own or, with `qk_fix`, queries, keys and pattern.
        members: for each edit the number of its variant, and where it acts.
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
        """Variants and their effects [prompt] on the prompts of one part, which are those of `at` among all."""
        own = widened(runs["base"][self.name])
        change = self._changed(model, pairs, part, at, runs) - own
        change = change.masked_fill(change.isnan(), 0)  # attention scores can be -inf before and after
        placed, width = self.members[0][1], part.mask.shape[1]

        # Change times gradient, summed over the axes that no edit names.
        if len(self.sites) == 1:
            axis = placed.site.axes.index("query" if "query" in placed.site.axes else "pos")
            product = (change * slopes[self.name]).movedim(axis, -1)  # [prompt, other axes, pos]
            unnamed = [1 + at for at, index in enumerate(placed.indices) if index is None]
            table = (product.sum(unnamed) if unnamed else product).double().cpu().numpy()
            for variant, member in self.members:
                yield variant, (_picked(table, member, at) * member.rows[at, :width]).sum(-1)
            return

        # With `qk_fix`: one softmax for each set of positions, which many heads' edits share.
        assert isinstance(model, GPT)
        tables: dict[int, Array] = {}
        for variant, member in self.members:
            if id(member.rows) not in tables:
                rows = torch.from_numpy(member.rows[at, :width]).to(model.device)
                changed = own + change * rows[:, :, None, None]
                effect = _through_softmax(model, part, self, changed, slopes, runs["base"])  # [prompt, head]
                effect = effect if placed.indices[0] is not None else effect.sum(1)  # edits of all heads together
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
        """The site's value if the edits acted everywhere."""
        edit, own, site = self.edit, widened(runs["base"][self.name]), self.members[0][1].site
        if edit.op == "zero":
            return torch.zeros_like(own)
        if edit.run is not None:
            given = widened(runs[edit.run][self.name])
        else:
            given = widened(cut(whole_source(edit, self.name, site, model.cfg, pairs), at, part, site))
        return {"set": lambda: given, "add": lambda: own + given, "scale": lambda: own * given}[edit.op]()


def _grouped(
    model: HookedModel, pairs: PromptPairs, variants: Sequence[Variant], read: Mask, qk_fix: bool, first: int
) -> list[_EstimateGroup]:
    """The edits of all variants, which are numbered from `first` on, in groups."""
    placer = Placer(model, pairs, read)
    groups: dict[object, _EstimateGroup] = {}
    for number, variant in enumerate(variants, start=first):
        for edit in variant.edits:
            if edit.computed or edit.op == "mean":
                raise InterpError(
                    f"an estimate needs the new values as a tensor, and {edit.site!r} is edited by "
                    f"{'a function' if edit.computed else 'a mean'}: give a tensor, such as those of "
                    "`interp.variants.ablations`"
                )
            placed = placer.place(edit)
            if placed.site.short == "state" and (placed.rows.sum(1) > 1).any():
                raise InterpError(
                    "site 'state' is edited at several positions of a prompt, where each later state replaces what the "
                    "earlier ones passed on, which gradients cannot show: edit one position at a time, by pos or role"
                )
            fixed = qk_fix and placed.site.short in QUERIES_KEYS
            if fixed and placed.indices[1] is not None:
                raise InterpError("qk_fix works on whole queries and keys: leave d_head out of `where`")
            source = edit.run if edit.run is not None or isinstance(edit.source, float | int) else id(edit.source)
            value = edit.source if isinstance(edit.source, float | int) else None
            key = (placed.name, edit.op, source, value, tuple(index is None for index in placed.indices))
            if key not in groups:
                groups[key] = _EstimateGroup(edit, _read_by_softmax(placed) if fixed else (placed.name,))
            groups[key].members.append((number, placed))
    return list(groups.values())


def _read_by_softmax(placed: Placed) -> tuple[str, ...]:
    """The sites of a layer's queries, keys (both before or both after rotation, as the edited site) and pattern."""
    path, short = placed.name.rsplit(".hook_", 1)
    rotated = "rot_" if short.startswith("rot_") else ""
    return tuple(f"{path}.hook_{name}" for name in (f"{rotated}q", f"{rotated}k", "pattern"))


@torch.no_grad()
def _through_softmax(
    model: GPT,
    part: PromptPairs,
    group: _EstimateGroup,
    changed: Tensor,
    slopes: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
) -> Tensor:
    """The effect of changed queries or keys through the pattern.  # [prompt, head or kv_head]"""
    queries, keys, pattern = group.sites
    attn = model.attention(model.hook_dict[pattern].layer())
    context = make_context(
        model.cfg, part.mask.shape[1], attention_mask=part.attention_mask, device=model.device, dtype=model.dtype
    )
    sight, to_turn = context.sights[attn.kind], not queries.endswith("rot_q")

    def pattern_of(values: Mapping[str, Tensor]) -> Tensor:
        q, k = (values[name].to(model.dtype) for name in (queries, keys))
        q, k = attn.turn(q, k, sight) if to_turn else (q, k)
        return widened(attn.softmax(attn.scores(q, k, sight)))

    change = pattern_of({**own, group.name: changed}) - pattern_of(own)  # [prompt, head, query, key]
    effect = (change * slopes[pattern]).sum((2, 3))
    return effect if group.name == queries else reduce(effect, "n (kv g) -> n kv", "sum", kv=model.cfg.n_kv_heads)


def _picked(table: Array, placed: Placed, at: slice) -> Array:
    """The entries that an edit names, summed.  # [prompt, named axes, pos] -> [prompt, pos]"""
    named = [index[at] for index in placed.indices if index is not None]  # each [prompt, entry]
    shape = [len(table), *[1] * len(named)]
    where: list[Any] = [np.arange(len(table)).reshape(shape)]
    is_real: Any = 1.0
    for axis, index in enumerate(named, start=1):
        own_shape = [len(table), *[1] * len(named)]
        own_shape[axis] = index.shape[1]
        where.append(index.reshape(own_shape))
        if (index < 0).any():  # keys of shorter prompts are padded
            is_real = is_real * (index.reshape(own_shape) >= 0)[..., None]
    entries = table[tuple(where)] * is_real  # [prompt, the entries of each named axis, pos]
    return np.asarray(entries.sum(tuple(range(1, 1 + len(named)))))


def _writers(model: HookedModel, layer: int) -> list[str]:
    """The sites through which a layer writes to the residual stream."""
    parts = ("hook_attn_out", "mixer.hook_out", "hook_mlp_out")
    names = [name for part in parts if (name := f"blocks.{layer}.{part}") in site_names(model.cfg)]
    if any(name not in model.hook_dict for name in names):
        raise InterpError(
            f"drop holds a layer's outputs constant at the sites {', '.join(names)}, and this {type(model).__name__} "
            "does not have all of them: leave it out"
        )
    return names


def _mean_magnitude(estimates: Array, groups: Sequence[_EstimateGroup]) -> Array:
    """The mean magnitude over dropped layers, with the plain sign.  # [1 + layer, variant, prompt] -> [variant, prompt]

    A variant's own layers do not count: without its layer nothing of an edit's effect is left.
    """
    plain, dropped = estimates[0], np.abs(estimates[1:])
    others = np.ones(dropped.shape[:2], dtype=bool)  # [layer, variant]
    for group in groups:
        for variant, placed in group.members:
            if placed.site.per_layer:
                others[placed.step // 2, variant] = False
    n_others = others.sum(0)[:, None]
    mean = (dropped * others[..., None]).sum(0) / np.maximum(n_others, 1)
    return np.where(n_others, np.sign(plain) * mean, plain)
