"""What has to hold in any model: parts that sum to a whole, methods that are each other's special case.

1. The direct attributions of everything that was written to the residual stream sum to the metric.
2. Integrated gradients of the inputs sum to the difference between the two runs.
3. EAP-IG with one step is EAP, which is computed here from its definition.
4. The circuit of all edges has faithfulness 1, the circuit of none 0.

Source: Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits"); Sundararajan et al. 2017 ("Axiomatic
Attribution for Deep Networks", proposition 1); Syed et al. 2023 ("Attribution Patching Outperforms Automated Circuit
Discovery", section 3); Hanna et al. 2024 ("Have Faith in Faithfulness", section 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import einsum
from torch import Tensor

from interp.arguments import checked
from interp.attribution.gradients import gradients, integrated_gradients
from interp.attribution.run_values import run_values
from interp.circuits.edge_scores import eap_ig
from interp.circuits.graph import Graph
from interp.circuits.run import run_circuits
from interp.errors import PromptError
from interp.hooked.model import HookedModel
from interp.metrics import logit_weights
from interp.prompts.pairs import PromptPairs
from interp.variants.ablations import replacements

if TYPE_CHECKING:
    import pandas as pd


@checked
def facts(model: HookedModel, pairs: PromptPairs, *, steps: int = 50) -> pd.DataFrame:
    """What has to hold in any model, and how far it is off.

    Args:
        model: the model.
        pairs: the prompts.
        steps: of integrated gradients.

    Returns:
        Columns `fact`, `value` (how far off), `limit`, `holds`. How far off is, in the order of the facts above: the
        largest difference of a prompt, against its logit difference where that is above 1; the difference of the
        means over prompts, against that between the runs; the largest difference of an edge's score, against the
        largest score; the difference in faithfulness.

    Raises:
        PromptError: the two runs' metrics differ by no more than rounding (`interp.rounding`): there is no difference
            to account for.
    """
    import pandas as pd

    pairs = pairs.to(model.device)
    clean, corrupt, each_off = (values.detach().double() for values in run_values(model, pairs))
    gap, least = float((clean - corrupt).mean()), float(each_off.mean())
    if abs(gap) <= least:
        raise PromptError(
            f"there is nothing to account for: the clean and the corrupt runs' logit differences are {abs(gap):.2g} "
            f"apart, which is no more than rounding ({least:.2g})"
        )
    exact = max(1e-4, least / abs(gap))  # of what is equal on paper
    summed = _direct(model, pairs)
    moved = integrated_gradients(model, pairs, steps=steps).double().sum(1)
    graph = Graph.of(model)
    one, defined = eap_ig(model, pairs, graph, steps=1).double(), _eap_by_definition(model, pairs, graph)
    allowed = graph.allowed.to(one.device)
    masks = torch.stack([graph.allowed, torch.zeros_like(graph.allowed)])
    full, empty = run_circuits(model, pairs, masks, graph, progress=False).mean(1).tolist()
    off = {
        "direct attributions sum to the metric": (
            ((summed - clean).abs() / torch.maximum(clean.abs().clamp(min=1), each_off * 1e4)).max(),
            1e-4,
        ),
        f"integrated gradients sum to the difference ({steps} steps)": (
            abs(float((moved - (corrupt - clean)).mean()) / gap),
            0.02,
        ),
        "EAP-IG with one step is EAP": (
            (one - defined)[:, allowed].abs().max() / defined[:, allowed].abs().max(),
            max(1e-4, least / float(defined[:, allowed].abs().max())),
        ),
        "the full circuit has faithfulness 1": (abs((full - float(corrupt.mean())) / gap - 1), exact),
        "the empty circuit has faithfulness 0": (abs((empty - float(corrupt.mean())) / gap), exact),
    }
    rows = [(fact, float(value), limit, float(value) <= limit) for fact, (value, limit) in off.items()]
    return pd.DataFrame(rows, columns=["fact", "value", "limit", "holds"])


@torch.no_grad()
def _direct(model: HookedModel, pairs: PromptPairs) -> Tensor:
    """What all parts of the residual stream add to the logit difference directly, and the constant.  # [prompt]"""
    _, cache = model.run_with_cache(pairs.clean, attention_mask=pairs.attention_mask)
    at = torch.arange(len(pairs), device=model.device), pairs.last
    ids, weights = logit_weights(pairs)  # [prompt, answer]
    resid = cache.decompose_resid()
    written = sum(
        cache.logit_attrs(resid, ids[:, i])[:, at[0], at[1]] * weights[:, i] for i in range(ids.shape[1])
    )  # [component, prompt]
    norm = model.norm_before(model.cfg.n_layers)
    bias = torch.zeros(model.cfg.d_model, device=model.device, dtype=model.dtype)
    constant = model.unembed(bias if norm is None or norm.b is None else norm.b)
    return written.double().sum(0) + (constant[ids] * weights).sum(1).double()


def _eap_by_definition(model: HookedModel, pairs: PromptPairs, graph: Graph) -> Tensor:
    """What each sender changes from the clean to the corrupt run, times the gradient that a receiver has in the former.

    Source: Syed et al. 2023, section 3.
    """
    found = gradients(model, pairs, [*graph.sender_sites, *graph.receiver_sites])
    other = replacements(model, pairs, graph.sender_sites)
    change = graph.sent(model, other).detach() - graph.sent(model, found.values).detach()
    read = graph.received(found.slopes)
    product = einsum(change, read, "sender n pos d_model, receiver n pos d_model -> n sender receiver")
    return product.double()
