"""A mechanistic interpretability toolkit: models whose every value can be read, replaced and differentiated.

    import interp

    model = interp.load("smollm2-135m")
    logits, cache = model.run_with_cache("When John and Mary went to the store, John gave a bottle of milk to")
    cache["pattern", 19]

Importing does nothing else. What needs slow imports (figures, loading, pandas, transformers) loads when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from interp import errors, metrics, sites, stats, tasks
from interp.attention import PastKeyValues
from interp.cache import ActivationCache
from interp.config import ModelConfig, RopeScaling
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

if TYPE_CHECKING:
    from interp import figures
    from interp.circuits import Circuit
    from interp.cluster import RayExecutor
    from interp.directions import Direction, steer
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


_LATER = {
    "Circuit": "interp.circuits",
    "Direction": "interp.directions",
    "RayExecutor": "interp.cluster",
    "TunedLens": "interp.tuned_lens",
    "load": "interp.weights.load",
    "load_transformer_lens": "interp.weights.transformer_lens",
    "save": "interp.weights.save",
    "steer": "interp.directions",
}


def __getattr__(name: str) -> Any:
    if name == "figures":
        return importlib.import_module("interp.figures")
    if name in _LATER:
        value = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
        return value
    raise AttributeError(f"module 'interp' has no attribute {name!r}")
