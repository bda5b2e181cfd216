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
from typing import TYPE_CHECKING, Any

from interp.version import __version__ as __version__

if TYPE_CHECKING:
    from interp import errors, figures, metrics, sites, stats, tasks
    from interp.circuits.circuit import Circuit
    from interp.circuits.graph import Graph
    from interp.config import EncoderDecoderConfig, Experts, ModelConfig, RopeScaling, SharedBlocks
    from interp.directions.steering import Direction, steer
    from interp.edits import Edit, Variant
    from interp.encoder_decoder.model import EncoderDecoder
    from interp.errors import InterpError
    from interp.hooked.cache import ActivationCache
    from interp.hooked.hooks import HookPoint
    from interp.hooked.past import PastKeyValues
    from interp.lenses.tuned_lens import TunedLens
    from interp.loading.load import load
    from interp.loading.save import save
    from interp.loading.to_bridge import to_bridge
    from interp.metrics import Metric
    from interp.models.encoder import Encoder
    from interp.models.gpt import GPT, Mamba
    from interp.prompts.pairs import PromptPairs
    from interp.sites import get_act_name
    from interp.sweeps.ray_executor import RayExecutor
    from interp.sweeps.sweep import plan_sweep, sweep
    from interp.text.tokenizer import Tokenizer
    from interp.ui.views.show import show
    from interp.variants.edited import edited
    from interp.weights.transformer_lens import load_transformer_lens

__all__ = [
    "GPT",
    "ActivationCache",
    "Circuit",
    "Direction",
    "Edit",
    "Encoder",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "Experts",
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
    "SharedBlocks",
    "Tokenizer",
    "TunedLens",
    "Variant",
    "edited",
    "errors",
    "figures",
    "get_act_name",
    "load",
    "load_transformer_lens",
    "metrics",
    "plan_sweep",
    "save",
    "show",
    "sites",
    "stats",
    "steer",
    "sweep",
    "tasks",
    "to_bridge",
]


# Where each public name is defined; a name of `__all__` that is not here is a module.
_DEFINED_IN = {
    "GPT": "models.gpt",
    "ActivationCache": "hooked.cache",
    "Circuit": "circuits.circuit",
    "Direction": "directions.steering",
    "Edit": "edits",
    "Encoder": "models.encoder",
    "EncoderDecoder": "encoder_decoder.model",
    "EncoderDecoderConfig": "config",
    "Experts": "config",
    "Graph": "circuits.graph",
    "HookPoint": "hooked.hooks",
    "InterpError": "errors",
    "Mamba": "models.gpt",
    "Metric": "metrics",
    "ModelConfig": "config",
    "PastKeyValues": "hooked.past",
    "PromptPairs": "prompts.pairs",
    "RayExecutor": "sweeps.ray_executor",
    "RopeScaling": "config",
    "SharedBlocks": "config",
    "Tokenizer": "text.tokenizer",
    "TunedLens": "lenses.tuned_lens",
    "Variant": "edits",
    "edited": "variants.edited",
    "get_act_name": "sites",
    "load": "loading.load",
    "load_transformer_lens": "weights.transformer_lens",
    "plan_sweep": "sweeps.sweep",
    "save": "loading.save",
    "show": "ui.views.show",
    "steer": "directions.steering",
    "sweep": "sweeps.sweep",
    "to_bridge": "loading.to_bridge",
}


def __getattr__(name: str) -> Any:
    if name in _DEFINED_IN:
        value = getattr(importlib.import_module(f"interp.{_DEFINED_IN[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"interp.{name}") is not None:
        return importlib.import_module(f"interp.{name}")
    raise AttributeError(f"module 'interp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
