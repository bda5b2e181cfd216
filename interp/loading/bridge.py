"""From a transformer_lens `TransformerBridge` to one of our models, for architectures without a family here.

1. If the transformers model in the bridge belongs to one of our families, its weights are read into a `GPT`.
2. Any other becomes a `BridgedModel`: the bridge computes, and its hook points get our names where they mean the same
   (see `bridge_trial`).

Weights that the bridge has folded or centred are refused, because all numbers here must equal transformers'.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from interp.config import EncoderDecoderConfig
from interp.errors import ConfigError, WeightsError
from interp.hooked.model import HookedModel
from interp.loading.bridged_model import BridgedModel
from interp.text.tokenizer import Tokenizer
from interp.weights.build import build
from interp.weights.checkpoint import Checkpoint
from interp.weights.huggingface import reader as huggingface

TOLERANCE, HALF_PRECISION_TOLERANCE = 1e-4, 5e-2  # of the largest logit


def is_bridge(source: object) -> bool:
    """Whether an object is a `TransformerBridge`, without importing transformer_lens."""
    return any(
        kind.__name__ == "TransformerBridge" and kind.__module__.split(".")[0] == "transformer_lens"
        for kind in type(source).__mro__
    )


def from_bridge(
    bridge: Any, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> HookedModel:
    """A bridge as one of our models, with the bridge's tokenizer.

    TransformerLens makes the tokenizers that it loads put a BOS in front of every text; `to_tokens` then does the same.

    Args:
        bridge: a `TransformerBridge` around a transformers model, in evaluation mode.
        device: where the weights go; None leaves them on the bridge's device. A `BridgedModel` runs the bridge itself,
            which cannot be moved here.
        dtype: the number type of the weights; None keeps the bridge's, and the same restriction holds.

    Raises:
        ConfigError: not a bridge, not around a model of transformers with one stack of blocks, or in training mode.
        WeightsError: weights that were folded or centred, or that differ from those that the bridge computes with.
    """
    if not is_bridge(bridge):
        raise ConfigError(f"from_bridge takes a TransformerBridge of transformer_lens, not {type(bridge).__name__}")
    config: Any = getattr(getattr(bridge, "original_model", None), "config", None)
    if not hasattr(config, "to_dict"):
        raise ConfigError("this bridge holds no transformers model: make it with TransformerBridge.boot_transformers")
    if bridge._weights_processed:
        raise WeightsError(
            "this bridge's weights are folded or centred (enable_compatibility_mode, process_weights), no longer the "
            "published ones: boot it again without these calls, or with enable_compatibility_mode(no_processing=True)"
        )
    if bridge.original_model.training:
        raise ConfigError("this bridge is in training mode, where dropout changes every run: call bridge.eval() first")
    tokenizer = _tokenizer(bridge)
    here = next(bridge.original_model.parameters())
    state = dict(_published(bridge.original_model))
    try:
        checkpoint = huggingface.from_transformers(SimpleNamespace(config=config, state_dict=lambda: state), tokenizer)
    except ConfigError:  # a family or an option that our own models do not have
        pass
    else:
        if isinstance(checkpoint.cfg, EncoderDecoderConfig):
            raise ConfigError(
                f"a {config.model_type} model has an encoder and a decoder, which no bridge is taken for: load its "
                "directory, interp.load(path), as an interp.EncoderDecoder"
            )
        return _native(checkpoint, bridge, here.device if device is None else device, dtype or here.dtype)
    if (device is not None and torch.empty(0, device=device).device != here.device) or dtype not in (None, here.dtype):
        raise ConfigError(
            f"a {config.model_type} model runs in the bridge itself, on {here.device} in {here.dtype}: "
            "move it with bridge.to(...), and leave out device and dtype"
        )
    return BridgedModel(bridge, tokenizer)


def _tokenizer(bridge: Any) -> Tokenizer | None:
    """The bridge's tokenizer; None if it has none, or one that transformers made up for want of files."""
    if bridge.tokenizer is None:
        return None
    tokenizer = Tokenizer.from_transformers(bridge.tokenizer)
    return tokenizer if len(tokenizer) > len(tokenizer.backend.get_added_tokens_decoder()) else None


def _native(checkpoint: Checkpoint, bridge: Any, device: str | torch.device, dtype: torch.dtype) -> HookedModel:
    """Our own model with the bridge's weights; its logits must equal the bridge's."""
    model = build(checkpoint, device=device, dtype=dtype)
    tokens = torch.randint(
        0, model.cfg.d_vocab, (2, min(8, model.cfg.n_ctx)), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        expected = bridge(tokens.to(bridge.original_model.device)).double().cpu()
        difference = float((model(tokens).double().cpu() - expected).abs().max() / expected.abs().max())
    half = min(dtype.itemsize, bridge.original_model.dtype.itemsize) < 4
    if not difference <= (HALF_PRECISION_TOLERANCE if half else TOLERANCE):
        raise WeightsError(
            f"the bridge's logits differ from those of its weights by {difference:.2g} of the largest: hooks are "
            "attached to it, or weights were changed after it was built (it holds copies of some)"
        )
    return model


def _published(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters under the names that they had before the bridge wrapped their modules."""
    inner = module._modules.get("_original_component")
    if inner is not None:
        yield from _published(inner, prefix)
        return
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield prefix + name, parameter.detach()
    for name, child in module._modules.items():
        if child is not None:
            yield from _published(child, f"{prefix}{name}.")
