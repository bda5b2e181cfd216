"""The components that a model can be taken apart into, and the edits that take some of them away together.

A component is what is ablated at once, at all positions: a head, the attention of a layer, an MLP, a neuron. Edits of
one site and layer are one edit, so that a model without two hundred of its heads is thirty edits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from interp.edits import Edit
from interp.errors import InterpError, unknown
from interp.model import HookedModel
from interp.sites import NameFilter, axis_sizes, get_act_name, match

CUTS = {"z": "head", "attn_out": None, "mlp_out": None, "post": "d_mlp"}
"""The sites of components, and the axis that a layer's components stand on, if it has several."""

COLUMNS = {"z": "head", "post": "neuron"}
NAMES = {"z": "L{}H{}", "attn_out": "attention {}", "mlp_out": "MLP {}", "post": "L{}N{}"}
NESTED = (("z", "attn_out"), ("post", "mlp_out"))


@dataclass(frozen=True)
class Component:
    """A part of a model: a head or neuron of a layer (`index`), or all that a site gives there (None)."""

    site: str
    layer: int
    index: int | None = None

    @property
    def name(self) -> str:
        """As tables write it: `L9H6`, `attention 9`, `MLP 9`, `L9N123`."""
        return NAMES[self.site].format(self.layer, self.index)

    @property
    def full_site(self) -> str:
        """The full name of its site."""
        return get_act_name(self.site, self.layer)

    @property
    def labels(self) -> dict[str, Any]:
        """What a row says of it: `component, site, layer`, and `head` or `neuron`."""
        own = {COLUMNS[self.site]: self.index} if self.site in COLUMNS else {}
        return {"component": self.name, "site": self.site, "layer": self.layer, **own}


def components(model: HookedModel, sites: Iterable[str] = ("z",), only: NameFilter = None) -> list[Component]:
    """The components of a model.

    Args:
        model: the model.
        sites: names of `CUTS`: "z" (heads), "attn_out" (the attention of a layer, with its bias), "mlp_out" (MLPs),
            "post" (neurons).
        only: keep those of these names: exact, glob ("L9H*"), a predicate or a list of these; "L9H6,L9H9" is two.

    Raises:
        UnknownName: a site or name that does not exist, or that this model does not have.
    """
    sizes = axis_sizes(model.cfg)
    made = []
    for site in sites:
        if site not in CUTS:
            raise unknown("site of a component", site, CUTS)
        if get_act_name(site, 0) not in model.hook_dict:
            raise unknown("site of this model", site, [one for one in CUTS if get_act_name(one, 0) in model.hook_dict])
        axis = CUTS[site]
        places = [None] if axis is None else range(sizes[axis])
        made += [Component(site, layer, at) for layer in range(model.cfg.n_layers) for at in places]
    if only is None:
        return made
    names = [part.name for part in made]
    wanted = [name.strip() for name in only.split(",")] if isinstance(only, str) else only
    for name in wanted if isinstance(wanted, list) else ():
        if name not in names and not set(name) & set("*?["):
            raise unknown("component", name, names)
    chosen = set(match(wanted, names))
    return [part for part in made if part.name in chosen]


def check_apart(parts: Iterable[Component]) -> None:
    """Refuse components that contain one another, which cannot be counted together.

    Raises:
        InterpError: heads beside whole attention layers, or neurons beside whole MLPs.
    """
    sites = {part.site for part in parts}
    for part, whole in NESTED:
        if {part, whole} <= sites:
            raise InterpError(f"components are counted, and {whole!r} contains {part!r}: give one of the two")


def replaced(parts: Iterable[Component], stands: Mapping[str, Tensor]) -> list[Edit]:
    """The edits that put other values in the place of some components, one for each site and layer.

    Args:
        parts: what is replaced.
        stands: the values by full site name, as `interp.ablations.replacements` gives them.
    """
    together: dict[str, list[Component]] = {}
    for part in parts:
        together.setdefault(part.full_site, []).append(part)
    return [Edit(name, _where(of_site), "set", stands[name]) for name, of_site in together.items()]


def _where(parts: Sequence[Component]) -> dict[str, list[int]]:
    axis = CUTS[parts[0].site]
    return {} if axis is None else {axis: sorted(part.index for part in parts if part.index is not None)}
