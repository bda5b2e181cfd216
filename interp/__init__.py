"""A mechanistic interpretability toolkit: models whose every value can be read, replaced and differentiated.

    import interp

    model = interp.load("smollm2-135m")
    logits, cache = model.run_with_cache("When John and Mary went to the store, John gave a bottle of milk to")
    cache["pattern", 19]

Importing does nothing else: what a name stands for loads when it is first used, torch among it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp import errors, figures, metrics, sites, stats, tasks
    from interp.attention import PastKeyValues
    from interp.cache import ActivationCache
    from interp.circuits import Circuit
    from interp.cluster import RayExecutor
    from interp.config import ModelConfig, RopeScaling
    from interp.directions import Direction, steer
    from interp.edits import Edit, Variant
    from interp.errors import InterpError
    from interp.gpt import GPT, Mamba
    from interp.graph import Graph
    from interp.hooks import HookPoint
    from interp.metrics import Metric
    from interp.prompts import PromptPairs
    from interp.sites import get_act_name
    from interp.sweep import plan_sweep, sweep
    from interp.tokens import Tokenizer
    from interp.tuned_lens import TunedLens
    from interp.weights.load import load
    from interp.weights.save import save
    from interp.weights.transformer_lens import load_transformer_lens

__version__ = "0.1.0"

__all__ = [
    "GPT",
    "ActivationCache",
    "Circuit",
    "Direction",
    "Edit",
    "Graph",
    "HookPoint",
    "InterpError",
    "Mamba",
    "Metric",
    "ModelConfig",
    "PastKeyValues",
    "PromptPairs",
    "RayExecutor",
    "RopeScaling",
    "Tokenizer",
    "TunedLens",
    "Variant",
    "errors",
    "figures",
    "get_act_name",
    "load",
    "load_transformer_lens",
    "metrics",
    "plan_sweep",
    "save",
    "sites",
    "stats",
    "steer",
    "sweep",
    "tasks",
]


# Where each public name is; a name of `__all__` that is not here is a module.
_ROOMS = {
    "GPT": "gpt",
    "ActivationCache": "cache",
    "Circuit": "circuits",
    "Direction": "directions",
    "Edit": "edits",
    "Graph": "graph",
    "HookPoint": "hooks",
    "InterpError": "errors",
    "Mamba": "gpt",
    "Metric": "metrics",
    "ModelConfig": "config",
    "PastKeyValues": "attention",
    "PromptPairs": "prompts",
    "RayExecutor": "cluster",
    "RopeScaling": "config",
    "Tokenizer": "tokens",
    "TunedLens": "tuned_lens",
    "Variant": "edits",
    "get_act_name": "sites",
    "load": "weights.load",
    "load_transformer_lens": "weights.transformer_lens",
    "plan_sweep": "sweep",
    "save": "weights.save",
    "steer": "directions",
    "sweep": "sweep",
}


class _Package(ModuleType):
    """This module: `sweep` is the function, also where Python is about to put the room of that name there."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ROOMS and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        value = getattr(importlib.import_module(f"interp.{_ROOMS[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"interp.{name}") is not None:
        return importlib.import_module(f"interp.{name}")
    raise AttributeError(f"module 'interp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
