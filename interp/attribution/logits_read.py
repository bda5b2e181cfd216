"""The logits of a run where a metric reads them: nothing else is normalised and unembedded.

A large vocabulary is a good part of a small model, and a metric reads one position of a prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp.hooked.model import HookedModel
from interp.metrics import Metric, where_read
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs

AFTER_LAYERS = ("ln_final.", "mlm_head.")
"""How the sites between the last layer and the logits begin."""


def logits_read(model: HookedModel, pairs: PromptPairs, metric: Metric, side: str) -> Tensor:
    """The logits of one side's run where a metric reads them [prompt, read, d_vocab_out].

    Args:
        model: the model; the whole prompt is unembedded where a hook sees that, or the layers are not ours.
        pairs: the prompts.
        metric: says where.
        side: which side is run.
    """
    rows = torch.arange(len(pairs), device=model.device)[:, None]
    at = where_read(metric, pairs).to(model.device)  # [prompt, read]
    after = (point for name, point in model.hook_dict.items() if name.startswith(AFTER_LAYERS))
    if not isinstance(model, GPT) or any(point.has_hooks for point in after):
        whole: Tensor = model(**pairs.inputs(side))
        return whole[rows, at]
    resid = model(**pairs.inputs(side), stop_at_layer=model.cfg.n_layers)
    there: Tensor = model.unembed(model.to_unembed(resid[rows, at]))
    return there
