"""Edits of a router: which experts of a mixture compute a position.

1. `send_to` puts an expert in the place of those that were chosen, whatever the router's scores are.
2. `without_expert` takes one out of the choice, so that the next best comes in for it.

Both leave it to the model to weigh the experts that are computed then, by their scores. Of weights alone, edit the site
`expert_weights`; of what an expert adds, `expert_out`.

>>> from interp.edits import Variant
>>> Variant(without_expert(3, 7), {"layer": 3, "expert": 7}).edits[0].site
'router_scores'
"""

from __future__ import annotations

import math

from interp.arguments import whole_number
from interp.edits import Edit, Index
from interp.errors import UnknownName


def send_to(layer: int, expert: int, *, pos: Index = None, slot: Index = None) -> Edit:
    """An expert that computes positions, alone or in the place of some that were chosen.

    Args:
        layer: the layer of the router.
        expert: the expert's number.
        pos: the positions, as an `Edit` takes them: numbers, a role of the prompts, or None for all.
        slot: in whose place, 0 for the best of the chosen experts; None for all of them, so that it is alone. An
            expert that is chosen twice counts once.

    Raises:
        UnknownName: a layer or an expert that is no whole number from 0 on. A number that the model does not have is
            refused when the edit is made.
    """
    layer, expert = _number("layer", layer), _number("expert", expert)
    return Edit("expert_indices", {"layer": layer, "pos": pos, "slot": slot}, "set", float(expert))


def without_expert(layer: int, expert: int, *, pos: Index = None) -> Edit:
    """A router that does not choose an expert, if there are others.

    Args:
        layer, expert, pos: as in `send_to`.

    Raises:
        UnknownName: as `send_to`.
    """
    layer, expert = _number("layer", layer), _number("expert", expert)
    return Edit("router_scores", {"layer": layer, "expert": expert, "pos": pos}, "set", -math.inf)


def _number(name: str, given: int) -> int:
    return whole_number(name, given, least=0, refuse=UnknownName)
