"""Tuned lenses that are kept between runs, so that a second report of a model does not train one again.

They lie in a folder of the user's cache, a folder for each model and way of training: INTERP_CACHE names another place,
and an empty INTERP_CACHE keeps nothing. A lens belongs to weights, not to a name: its folder is named by their digest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from interp.errors import InterpError
from interp.hooked.model import HookedModel
from interp.lenses.tuned_lens import TunedLens, model_digest
from interp.resume.fingerprint import fingerprint

VARIABLE = "INTERP_CACHE"


def cache_folder() -> Path | None:
    """Where lenses are kept; None where the user wants none."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return Path(os.path.expanduser(given)) if given else None
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "interp"


def kept(model: HookedModel, recipe: Mapping[str, Any], train: Callable[[], TunedLens]) -> TunedLens:
    """The lens that was kept for a model's weights and a way of training, or one that is trained now and kept.

    A lens that cannot be read is trained again, and one that cannot be written is not kept.

    Args:
        model: the model.
        recipe: plain values that say how `train` trains; another recipe is another lens.
        train: trains it.
    """
    folder = cache_folder()
    if folder is None:
        return train()
    place = folder / "tuned_lenses" / f"{model_digest(model)[:32]}-{fingerprint(dict(recipe))[:16]}"
    try:
        return TunedLens.load(place, model)
    except InterpError:
        pass  # there is none yet, or it is damaged
    lens = train()
    with suppress(InterpError):  # a cache that cannot be written, such as a full disk: the lens is used all the same
        lens.save(place)
    return lens
