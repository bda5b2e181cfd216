"""Identities that hold in any model: parts that sum to a whole, methods that are special cases of others.

1. The direct attributions of everything written to the residual stream sum to the metric.
2. Integrated gradients of the inputs sum to the difference between the two runs; not in a mixture of experts, where
   another choice of experts is a jump.
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
from interp.models.layers import soft_cap
from interp.prompts.pairs import PromptPairs
from interp.variants.ablations import replacements

if TYPE_CHECKING:
    import pandas as pd


@checked
def facts(model: HookedModel, pairs: PromptPairs, *, steps: int = 50) -> pd.DataFrame:
    """The identities that hold in any model, and how far off each is.

    Args:
        model: the model.
        pairs: the prompts.
        steps: of integrated gradients.

    Returns:
        Columns `fact`, `value` (how far off), `limit`, `holds`. `value` is, in the order of the module's list: 1. the
        largest difference over prompts, divided by the prompt's logit difference where that is above 1; 2. the
        difference of the means over prompts, divided by the difference between the runs; 3. the largest difference over
        edges' scores, divided by the largest score; 4. the difference in faithfulness.

    Raises:
        PromptError: the two runs' metrics differ by no more than rounding (`interp.rounding`), so that there is no
            difference to account for.
    """
    import pandas as pd

    pairs = pairs.to(model.device)
    clean, corrupt, rounding = (values.detach().double() for values in run_values(model, pairs))  # each [prompt]
    gap, mean_rounding = float((clean - corrupt).mean()), float(rounding.mean())
    if abs(gap) <= mean_rounding:
        raise PromptError(
            "there is no difference to account for: the logit differences of the clean and the corrupt runs are "
            f"{abs(gap):.2g} apart, no more than rounding ({mean_rounding:.2g}); give prompts whose runs differ"
        )
    exact = max(1e-4, mean_rounding / abs(gap))  # the limit for what is equal on paper

    # 1. Direct attributions, and 2. integrated gradients.
    direct = _direct(model, pairs)
    direct_off = ((direct - clean).abs() / torch.maximum(clean.abs().clamp(min=1), rounding * 1e4)).max()
    summed = {}
    if model.cfg.experts is None:
        integrated = integrated_gradients(model, pairs, steps=steps).double().sum(1)
        integrated_off = abs(float((integrated - (corrupt - clean)).mean()) / gap)
        summed[f"integrated gradients sum to the difference ({steps} steps)"] = (integrated_off, 0.02)

    # 3. EAP.
    graph = Graph.of(model)
    one_step, defined = eap_ig(model, pairs, graph, steps=1).double(), _eap_by_definition(model, pairs, graph)
    allowed = graph.allowed.to(one_step.device)
    largest = defined[:, allowed].abs().max()
    eap_off = (one_step - defined)[:, allowed].abs().max() / largest

    # 4. Faithfulness of the full and of the empty circuit.
    masks = torch.stack([graph.allowed, torch.zeros_like(graph.allowed)])
    full, empty = run_circuits(model, pairs, masks, graph, progress=False).mean(1).tolist()
    full_off, empty_off = (abs((value - float(corrupt.mean())) / gap - goal) for value, goal in ((full, 1), (empty, 0)))

    off = {
        "direct attributions sum to the metric": (direct_off, 1e-4),
        **summed,
        "EAP-IG with one step is EAP": (eap_off, max(1e-4, mean_rounding / float(largest))),
        "the full circuit has faithfulness 1": (full_off, exact),
        "the empty circuit has faithfulness 0": (empty_off, exact),
    }
    rows = [(fact, float(value), limit, float(value) <= limit) for fact, (value, limit) in off.items()]
    return pd.DataFrame(rows, columns=["fact", "value", "limit", "holds"])


@torch.no_grad()
def _direct(model: HookedModel, pairs: PromptPairs) -> Tensor:
    """What all parts of the residual stream add to the logit difference directly, plus the constant.  # [prompt]

    A soft cap comes after the sum of each logit.
    """
    _, cache = model.run_with_cache(pairs.clean, attention_mask=pairs.attention_mask)
    at = torch.arange(len(pairs), device=model.device), pairs.read_at
    ids, weights = logit_weights(pairs)  # [prompt, answer]
    resid = cache.decompose_resid()
    written = [cache.logit_attrs(resid, ids[:, i])[:, at[0], at[1]].double().sum(0) for i in range(ids.shape[1])]
    norm = model.norm_before(model.cfg.n_layers)
    bias = torch.zeros(model.cfg.d_model, device=model.device, dtype=model.dtype)
    constant = model.uncapped_logits(bias if norm is None or norm.b is None else norm.b)
    logits = torch.stack(written, dim=1) + constant[ids].double()  # [prompt, answer]
    cap = model.cfg.output_logits_soft_cap
    return ((logits if cap is None else soft_cap(logits, cap)) * weights.double()).sum(1)


def _eap_by_definition(model: HookedModel, pairs: PromptPairs, graph: Graph) -> Tensor:
    """The change of each sender's output from the clean to the corrupt run, times the gradient at each receiver's input
    in the clean run.

    Source: Syed et al. 2023, section 3.
    """
    clean = gradients(model, pairs, [*graph.sender_sites, *graph.receiver_sites])
    corrupt = replacements(model, pairs, graph.sender_sites)
    change = graph.sent(model, corrupt).detach() - graph.sent(model, clean.values).detach()
    read = graph.received(clean.slopes)  # [receiver, prompt, pos, d_model]
    product = einsum(change, read, "sender n pos d_model, receiver n pos d_model -> n sender receiver")
    return product.double()
