"""The logits of a run where a metric reads them: nothing else is normalised and unembedded.

A large vocabulary is a good part of a small model, and a metric reads one position of a prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp.attribution.shared_start import SharedStart
from interp.hooked.model import HookedModel
from interp.metrics import Metric, where_read
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs

NOTHING = SharedStart()
AFTER_LAYERS = ("ln_final.", "mlm_head.")
"""How the sites between the last layer and the logits begin."""


def logits_read(
    model: HookedModel, pairs: PromptPairs, metric: Metric, side: str, start: SharedStart = NOTHING
) -> Tensor:
    """The logits of one side's run where a metric reads them [prompt, read, d_vocab_out].

    Args:
        model: the model; the whole prompt is unembedded where a hook sees that, or the layers are not ours.
        pairs: the prompts.
        metric: says where.
        side: which side is run.
        start: what both sides share, which is not run again.
    """
    rows = torch.arange(len(pairs), device=model.device)[:, None]
    at = where_read(metric, pairs).to(model.device) - start.first  # [prompt, read]
    inputs = pairs.inputs(side)
    if start.first:
        inputs |= {"input": inputs["input"][:, start.first :], "past_kv_cache": start.past(model.cfg)}
    if start.first and model.cfg.has_mamba:
        inputs["attention_mask"] = None  # padding comes after all that is read, and a state is not continued from it
    after = (point for name, point in model.hook_dict.items() if name.startswith(AFTER_LAYERS))
    if not isinstance(model, GPT) or any(point.has_hooks for point in after):
        whole: Tensor = model(**inputs)
        return whole[rows, at]
    resid = model(**inputs, stop_at_layer=model.cfg.n_layers)
    there: Tensor = model.unembed(model.to_unembed(resid[rows, at]))
    return there
