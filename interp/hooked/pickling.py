"""How caches and past keys are pickled: without the model, without graphs, and without memory that others share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from interp.config import ModelConfig
from interp.errors import InterpError


@dataclass
class AbsentModel:
    """Stands for a model that stayed behind.

    Attributes:
        cfg: the model's configuration.
        hook_dict: the names of its sites.
    """

    cfg: ModelConfig
    hook_dict: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what `copy` and `pickle` look for
            raise AttributeError(name)
        raise InterpError(
            f"this needs {name!r} of the model, but the cache was pickled, and its model stayed behind: "
            "set cache.model to the model that ran"
        )


def alone(value: Tensor) -> Tensor:
    """A tensor as it should be pickled: without its graph, and in memory of its own, all of which a pickle holds."""
    value = value.detach()
    return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
