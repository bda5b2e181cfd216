"""The components that a model can be taken apart into, and the edits that take some of them away together.

A component is what is ablated at once, at all positions: a head, the attention or state-space mixer of a layer, an MLP,
an expert, a neuron, a channel. Edits of one site and layer are one edit, so that a model without two hundred of its
heads is thirty edits. Taken away one after another, components make a curve; so they do when they are given back.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from interp.arguments import MOST, checked, is_whole, shown, whole_number
from interp.arguments import seed as check_seed
from interp.edits import Edit, Variant
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import InterpError, UnknownName, check_choice, unknown
from interp.hooked.model import HookedModel
from interp.names import MIXER_PARTS, PART_KINDS, WHOLES, Part, spelled
from interp.sites import NameFilter, axis_sizes, config_of, get_act_name, match

CUTS: dict[str, tuple[str, ...]] = {
    "z": ("head",),
    "gated": ("ssm_head", "channel"),
    "cross_attn.z": ("cross_head",),
    "encoder.z": ("encoder_head",),
    **{site: (kind,) for site, kind in WHOLES.items()},
    "expert_out": ("expert",),
    "post": ("neuron",),
}
"""The sites of components, and the kinds of part that a layer's components may be there."""

STAGES = {"ablate": "ablated", "restore": "restored"}
"""The curves: components go, or come back when all have gone."""

NESTED = (*((own.unit, own.whole) for own in MIXER_PARTS.values()), ("expert", "mlp"), ("neuron", "mlp"))
"""Kinds of part, and the kind that contains them."""


@checked
def components(model: HookedModel, sites: Iterable[str] | None = None, only: NameFilter = None) -> list[Part]:
    """The components of a model.

    Args:
        model: the model.
        sites: names of `CUTS`: "z" (heads), "gated" (heads of Mamba-2 layers, channels of Mamba-1 layers), "attn_out"
            (the attention of a layer, with its bias), "out" (the state-space mixer of a layer), "mlp_out" (MLPs),
            "expert_out" (experts), "post" (neurons). None takes heads, and the mixers of layers without any. Of a model
            with an encoder and a decoder these are the decoder's; "cross_attn.z" are the heads of its cross-attention,
            "encoder.z" those of the encoder, and None takes all three.
        only: keep those of these names: as `Part.parse` reads them, a glob ("L9H*"), a predicate or a list of these;
            "L9H6,L9H9" is two.

    Raises:
        UnknownName: a site or name that does not exist, or that this model does not have.
    """
    cfg, two = model.cfg, isinstance(model, EncoderDecoder)
    layers = range(_most_layers(model))
    if two and sites is None:
        sites = ("encoder.z", "z", "cross_attn.z")
    if sites is None:
        mixers = [(layer, mixer) for layer in layers for mixer in cfg.mixers_in(layer)]
        places = [(PART_KINDS[MIXER_PARTS[mixer].usual].site, layer) for layer, mixer in mixers]
    else:
        places = [(site, layer) for site in _checked(model, sites) for layer in layers]
    made = [part for site, layer in places for part in _of_layer(model, site, layer)]
    if only is None:
        return made
    names = [part.name for part in made]
    wanted = [name.strip() for name in only.split(",")] if isinstance(only, str) else only
    if isinstance(wanted, list):
        wanted = [_as_written(name) for name in wanted]
        for name in wanted:
            if not isinstance(name, str) or (name not in names and not set(str(name)) & set("*?[")):
                _refuse_other_site(name, made, having(model, CUTS))
                raise unknown("component", name, names)
    chosen = set(match(wanted, names))
    return [part for part in made if part.name in chosen]


def _refuse_other_site(name: Any, made: Sequence[Part], there: Sequence[str]) -> None:
    """Refuse a part of another site than those that were asked for, and say which to ask for."""
    part = spelled(name) if isinstance(name, str) else None
    asked = sorted({one.row.site for one in made})
    if part is not None and part.row.site in there and part.row.site not in asked:
        raise UnknownName(
            f"{name!r} is of the site {part.row.site!r}, and components of {' and '.join(map(repr, asked))} were asked "
            f"for: name its site (sites=[{part.row.site!r}], on the command line --site {part.row.site})"
        )


def _as_written(name: Any) -> Any:
    """A part's name as tables write it, of any spelling; globs, and what is no name, as they are."""
    part = spelled(name) if isinstance(name, str) else None
    return name if part is None else part.name


def having(model: HookedModel, sites: Iterable[str]) -> list[str]:
    """Those of some sites, by short names, that some layer of the model has."""
    layers = range(_most_layers(model))
    return [one for one in sites if any(_named(one, layer, model.hook_dict) in model.hook_dict for layer in layers)]


def _checked(model: HookedModel, sites: Iterable[str]) -> list[str]:
    """Sites that some layer of the model has."""
    sites, there = list(sites), having(model, CUTS)
    for site in sites:
        check_choice("site of a component", site, CUTS)
        if site not in there:
            raise unknown("site of this model", site, there)
    return sites


def _of_layer(model: HookedModel, site: str, layer: int) -> list[Part]:
    """The components that a site gives in a layer; none where the layer does not have it."""
    name = _named(site, layer, model.hook_dict)
    if name not in model.hook_dict:
        return []
    axes = {kind: PART_KINDS[kind].axis for kind in CUTS[site]}
    kind, axis = next((k, axis) for k, axis in axes.items() if axis in (None, *model.hook_dict[name].site.axes))
    if axis is None:
        return [Part(kind, layer)]
    cfg = config_of(model.cfg, model.hook_dict[name].site)
    return [Part(kind, layer, at) for at in range(axis_sizes(cfg)[axis])]


def _most_layers(model: HookedModel) -> int:
    """How many layers the model has; of two stacks the deeper one."""
    if isinstance(model, EncoderDecoder):
        return max(model.cfg.encoder.n_layers, model.cfg.decoder.n_layers)
    return model.cfg.n_layers


def _named(site: str, layer: int | None, names: Container[str]) -> str:
    """The full name of a site among these; where there are two stacks, the decoder's unless it names the encoder."""
    return _in_decoder(get_act_name(site, layer), names)


def _in_decoder(name: str, names: Container[str]) -> str:
    return f"decoder.{name}" if name not in names and f"decoder.{name}" in names else name


def site_of(part: Part, names: Container[str]) -> str:
    """The full name of the site that holds what a part writes, in a model that has the sites `names`."""
    return _in_decoder(part.full_site, names)


def check_apart(parts: Iterable[Part]) -> None:
    """Refuse components that contain one another, which cannot be counted together.

    Raises:
        InterpError: heads beside the whole attention of their layer, channels beside its mixer, or experts or neurons
            beside its MLP.
    """
    there = {(part.kind, part.layer) for part in parts}
    for part, whole in NESTED:
        if any((part, layer) in there for kind, layer in there if kind == whole):
            sites = [PART_KINDS[kind].site for kind in (whole, part)]
            raise InterpError("components are counted, and {!r} contains {!r}: give one of the two".format(*sites))


@checked
def replaced(parts: Iterable[Part], stands: Mapping[str, Tensor]) -> list[Edit]:
    """The edits that put other values in the place of some components, one for each site and layer.

    Args:
        parts: what is replaced.
        stands: the values by full site name, as `interp.variants.ablations.replacements` gives them.
    """
    together: dict[str, list[Part]] = {}
    for part in parts:
        together.setdefault(site_of(part, stands), []).append(part)
    return [Edit(name, _where(of_site), "set", stands[name]) for name, of_site in together.items()]


def _where(parts: Sequence[Part]) -> dict[str, list[int]]:
    axis = parts[0].row.axis
    return {} if axis is None else {axis: sorted(part.index for part in parts if part.index is not None)}


def steps(cumulative: int | Sequence[int], total: int) -> list[int]:
    """How many of `total` components are gone at each step, beginning with none; [] where it is never any.

    Raises:
        InterpError: a number below 0.
    """
    several = isinstance(cumulative, Iterable) and not isinstance(cumulative, str) and not is_whole(cumulative)
    given: list[Any] = list(cumulative) if several else [cumulative]  # type: ignore[arg-type]
    if not given or not all(is_whole(number) and number >= 0 for number in given):
        raise InterpError(f"cumulative must be a number of components, or several, not {shown(cumulative)}")
    given = list(range(min(int(given[0]), total) + 1)) if not several else [int(number) for number in given]
    return sorted({0, *(min(number, total) for number in given)}) if max(given) else []


def one_after_another(
    kind: str, ranked: Sequence[Part], numbers: Sequence[int], draws: int, seed: int, stands: Mapping[str, Tensor]
) -> list[Variant]:
    """Both curves of an ablation, in the order given and in random ones.

    Args:
        kind: the ablation, for the labels.
        ranked: the components in their order.
        numbers: how many of them are ablated (`stage` "ablate"), or all but so many ("restore").
        draws: how many random orders (`order` "random", beside "importance").
        seed: of these.
        stands: as in `replaced`.
    """
    draws, rng = whole_number("draws", draws, least=0, most=MOST), np.random.default_rng(check_seed(seed))
    orders = [("importance", 0, list(ranked))]
    orders += [("random", draw, [ranked[at] for at in rng.permutation(len(ranked))]) for draw in range(draws)]
    made = []
    for order, draw, parts in orders:
        for number in numbers:
            gone = {"ablate": parts[:number], "restore": parts[number:]}
            for stage in STAGES:
                labels = {"kind": kind, "stage": stage, "order": order, "draw": draw, "number": number}
                made.append(Variant(replaced(gone[stage], stands), labels))
    return made


def in_words(parts: Sequence[Part]) -> str:
    """What heads and mixers are called together: heads, state-space heads, mixers, or heads and mixers."""
    there = {part.kind for part in parts}
    kinds = dict.fromkeys(own.usual for own in MIXER_PARTS.values() if own.usual in there)
    if {"head", "ssm_head"} <= there:
        del kinds["ssm_head"]
    return " and ".join(PART_KINDS[kind].plural for kind in kinds)
