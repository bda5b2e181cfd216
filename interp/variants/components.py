"""The components that a model can be taken apart into, and the edits that take some of them away together.

A component is what is ablated at once, at all positions: a head, the attention or state-space mixer of a layer, an MLP,
a neuron, a channel. Edits of one site and layer are one edit, so that a model without two hundred of its heads is
thirty edits. Taken away one after another, components make a curve; so they do when they are given back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from interp.arguments import MOST, checked, is_whole, shown, whole_number
from interp.arguments import seed as check_seed
from interp.edits import Edit, Variant
from interp.errors import InterpError, check_choice, unknown
from interp.hooked.model import HookedModel
from interp.sites import NameFilter, axis_sizes, get_act_name, match, part_name

CUTS: dict[str, tuple[str, ...]] = {
    "z": ("head",),
    "gated": ("ssm_head", "channel"),
    "attn_out": (),
    "out": (),
    "mlp_out": (),
    "post": ("d_mlp",),
}
"""The sites of components, and the axes that a layer's components may stand on, if it has several."""

USUAL = {"attn": "z", "mamba2": "gated", "mamba": "out"}
"""By what mixes positions in a layer, the site of its components where none is asked for: Mamba-1 has no heads."""

COLUMNS = {"head": "head", "ssm_head": "ssm_head", "channel": "channel", "d_mlp": "neuron"}
WHOLES = {"attn_out": "attention {}", "out": "mixer {}", "mlp_out": "MLP {}"}
STAGES = {"ablate": "ablated", "restore": "restored"}
"""The curves: components go, or come back when all have gone."""

NESTED = (("z", "attn_out"), ("gated", "out"), ("post", "mlp_out"))


@dataclass(frozen=True)
class Component:
    """A part of a model: a head, channel or neuron of a layer (`index` on `axis`), or all that a site gives there."""

    site: str
    layer: int
    index: int | None = None
    axis: str | None = None

    @property
    def name(self) -> str:
        """As tables write it: `L9H6`, `L9S6`, `L9C123`, `L9N123`, `attention 9`, `mixer 9`, `MLP 9`."""
        if self.axis is None or self.index is None:
            return WHOLES[self.site].format(self.layer)
        return part_name(self.layer, COLUMNS[self.axis], self.index)

    @property
    def full_site(self) -> str:
        """The full name of its site."""
        return get_act_name(self.site, self.layer)

    @property
    def labels(self) -> dict[str, Any]:
        """What a row says of it: `component, site, layer`, and `head`, `ssm_head`, `channel` or `neuron`."""
        own = {} if self.axis is None else {COLUMNS[self.axis]: self.index}
        return {"component": self.name, "site": self.site, "layer": self.layer, **own}


@checked
def components(model: HookedModel, sites: Iterable[str] | None = None, only: NameFilter = None) -> list[Component]:
    """The components of a model.

    Args:
        model: the model.
        sites: names of `CUTS`: "z" (heads), "gated" (heads of Mamba-2 layers, channels of Mamba-1 layers), "attn_out"
            (the attention of a layer, with its bias), "out" (the state-space mixer of a layer), "mlp_out" (MLPs),
            "post" (neurons). None takes heads, and the mixers of layers without any.
        only: keep those of these names: exact, glob ("L9H*"), a predicate or a list of these; "L9H6,L9H9" is two.

    Raises:
        UnknownName: a site or name that does not exist, or that this model does not have.
    """
    cfg = model.cfg
    layers = range(cfg.n_layers)
    if sites is None:
        mixers = [(layer, cfg.mixer(layer)) for layer in layers]
        places = [(USUAL[mixer], layer) for layer, mixer in mixers if mixer is not None]
    else:
        places = [(site, layer) for site in _checked(model, sites) for layer in layers]
    made = [part for site, layer in places for part in _of_layer(model, site, layer)]
    if only is None:
        return made
    names = [part.name for part in made]
    wanted = [name.strip() for name in only.split(",")] if isinstance(only, str) else only
    for name in wanted if isinstance(wanted, list) else ():
        if not isinstance(name, str) or (name not in names and not set(str(name)) & set("*?[")):
            raise unknown("component", name, names)
    chosen = set(match(wanted, names))
    return [part for part in made if part.name in chosen]


def having(model: HookedModel, sites: Iterable[str]) -> list[str]:
    """Those of some sites, by short names, that some layer of the model has."""
    layers = range(model.cfg.n_layers)
    return [one for one in sites if any(get_act_name(one, layer) in model.hook_dict for layer in layers)]


def _checked(model: HookedModel, sites: Iterable[str]) -> list[str]:
    """Sites that some layer of the model has."""
    sites, there = list(sites), having(model, CUTS)
    for site in sites:
        check_choice("site of a component", site, CUTS)
        if site not in there:
            raise unknown("site of this model", site, there)
    return sites


def _of_layer(model: HookedModel, site: str, layer: int) -> list[Component]:
    """The components that a site gives in a layer; none where the layer does not have it."""
    name = get_act_name(site, layer)
    if name not in model.hook_dict:
        return []
    axis = next((axis for axis in CUTS[site] if axis in model.hook_dict[name].site.axes), None)
    if axis is None:
        return [Component(site, layer)]
    return [Component(site, layer, at, axis) for at in range(axis_sizes(model.cfg)[axis])]


def check_apart(parts: Iterable[Component]) -> None:
    """Refuse components that contain one another, which cannot be counted together.

    Raises:
        InterpError: heads beside the whole attention of their layer, channels beside its mixer, or neurons beside its
            MLP.
    """
    there = {(part.site, part.layer) for part in parts}
    for part, whole in NESTED:
        if any((part, layer) in there for site, layer in there if site == whole):
            raise InterpError(f"components are counted, and {whole!r} contains {part!r}: give one of the two")


@checked
def replaced(parts: Iterable[Component], stands: Mapping[str, Tensor]) -> list[Edit]:
    """The edits that put other values in the place of some components, one for each site and layer.

    Args:
        parts: what is replaced.
        stands: the values by full site name, as `interp.variants.ablations.replacements` gives them.
    """
    together: dict[str, list[Component]] = {}
    for part in parts:
        together.setdefault(part.full_site, []).append(part)
    return [Edit(name, _where(of_site), "set", stands[name]) for name, of_site in together.items()]


def _where(parts: Sequence[Component]) -> dict[str, list[int]]:
    axis = parts[0].axis
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
    kind: str, ranked: Sequence[Component], numbers: Sequence[int], draws: int, seed: int, stands: Mapping[str, Tensor]
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


def in_words(parts: Sequence[Component]) -> str:
    """What heads and mixers are called together: heads, state-space heads, mixers, or heads and mixers."""
    there = {part.axis for part in parts}
    words = {"head": "heads", "ssm_head": "heads" if "head" in there else "state-space heads", None: "mixers"}
    return " and ".join(dict.fromkeys(word for axis, word in words.items() if axis in there))
