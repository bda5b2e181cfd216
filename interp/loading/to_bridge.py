"""From one of our models to a transformer_lens `TransformerBridge` over the same weights.

1. The model is written as the Hugging Face family that computes what it does, in a temporary folder.
2. transformers opens it, and transformer_lens puts its bridge around that.
3. The bridge's logits are compared with the model's.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from interp.arguments import shown
from interp.errors import ConfigError, WeightsError
from interp.loading.bridge import HALF_PRECISION_TOLERANCE, TOLERANCE
from interp.loading.save import save
from interp.models.gpt import GPT


def to_bridge(model: GPT) -> Any:
    """A `TransformerBridge` with this model's weights and tokenizer, for tools that take one.

    Args:
        model: a model of this package that a Hugging Face family computes. Its weights are copied.

    Returns:
        `transformer_lens.model_bridge.TransformerBridge`, in evaluation mode, on the model's device and in its dtype.

    Raises:
        ConfigError: no Hugging Face family computes what the model does, or transformer_lens has no bridge for it.
        WeightsError: the bridge's logits are not the model's.

    Example:
        ::

            bridge = interp.to_bridge(interp.load("gemma-3-270m"))
            logits, cache = bridge.run_with_cache(model.to_tokens("When John and Mary went"))
    """
    if not isinstance(model, GPT):
        given = type(model).__name__ if isinstance(model, torch.nn.Module) else shown(model)
        raise ConfigError(f"to_bridge takes an interp.GPT, of one stack that writes text, not {given}")
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # 1. and 2. Written, opened, and bridged.
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder, format="huggingface")
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype, attn_implementation="eager").eval()
        tokenizer = None if model.tokenizer is None else AutoTokenizer.from_pretrained(folder)
    tokens = torch.randint(
        0, model.cfg.d_vocab, (2, min(8, model.cfg.n_ctx)), generator=torch.Generator().manual_seed(0)
    )
    kind = type(theirs).__name__
    with torch.no_grad():
        try:
            bridge = build_bridge_from_module(
                theirs.to(model.device),
                kind,
                hf_config=theirs.config,
                tokenizer=tokenizer,
                model_name=model.cfg.model_name,
            )
            given = bridge(tokens.to(model.device)).double()
        except Exception as error:  # transformer_lens's, of any kind
            reason = str(error) or f"it gives no reason ({type(error).__name__})"
            raise ConfigError(f"transformer_lens makes no bridge of this {kind}: {reason}") from error
        # 3. The same logits.
        expected = model(tokens).double()
    difference = float((given - expected).abs().max() / expected.abs().max())
    if not difference <= (HALF_PRECISION_TOLERANCE if model.dtype.itemsize < 4 else TOLERANCE):
        raise WeightsError(f"the bridge's logits differ from the model's by {difference:.2g} of the largest")
    return bridge
