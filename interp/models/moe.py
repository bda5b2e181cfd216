"""A mixture of experts in place of an MLP: a router sends each position to a few of many MLPs (Shazeer et al. 2017).

1. The router gives every expert a score: scores = x W_router [+ b_router].
2. The experts with the best scores are chosen. Of equal scores the expert with the lower number is better.
3. The chosen ones have weights, which follow from their scores; all others have the weight 0.
4. out = sum over experts of weight (act(x W_in + b_in) W_out + b_out), gated where the model's MLPs are; beside it,
   where there is one, the shared expert's output.

Scores, choice and weights pass through hook points in this order, so that an edit of scores changes who is chosen, an
edit of the choice changes who is computed (with weights from the scores of those), and an edit of weights changes only
how much of each is added. An expert is computed at the positions where it is chosen or has a weight, and nowhere else;
all of them are where somebody asks for the neurons or the output of each expert.

Where two experts are about equally good, rounding decides between them; two runs that differ in nothing else may then
choose differently.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.config import Experts, ModelConfig
from interp.errors import HookError
from interp.hooked.hooks import HookPoint
from interp.models.layers import ACTIVATIONS, MLP
from interp.precision import widened


class Latent(nn.Module):
    """A linear map between the stream and the channels that experts read and write."""

    def __init__(self, d_in: int, d_out: int, biased: bool) -> None:
        super().__init__()
        self.W_rows = nn.Parameter(torch.empty(d_out, d_in))
        self.b = nn.Parameter(torch.empty(d_out)) if biased else None

    def forward(self, x: Tensor) -> Tensor:
        """With its bias.  # [..., d_in] -> [..., d_out]"""
        return F.linear(x, self.W_rows, self.b)

    def linear(self, x: Tensor) -> Tensor:
        """Without its bias.  # [..., d_in] -> [..., d_out]"""
        return F.linear(x, self.W_rows)

    @property
    def W(self) -> Tensor:
        """[d_in, d_out]; a view."""
        return self.W_rows.T


class MoE(nn.Module):
    """A router and its experts.

    Weights lie as the matrix products want them, one row an output: `W_router_rows` [expert, d_model], `W_up` and, when
    gated, `W_gate_up` [expert, d_expert, d_model], `W_down` [expert, d_model, d_expert]. `W_router`, `W_in`, `W_gate`
    and `W_out` are views in TransformerLens's order of axes. `b_choice` [expert] is added to sigmoids for the choice
    alone, `w_shared` [d_model] gates the shared expert. Where experts read and write channels of their own, those stand
    in the place of `d_model`, and `latent_in` and `latent_out` connect them with the stream.
    """

    def __init__(self, cfg: ModelConfig, layer: int, points: Mapping[str, HookPoint]) -> None:
        super().__init__()
        experts = cfg.experts_in(layer)
        assert experts is not None and cfg.act_fn is not None
        self.experts = experts
        self.act = ACTIVATIONS[cfg.act_fn]
        self._make_weights(cfg, experts)
        here = f"blocks.{layer}.mlp.hook_"
        self.hook_scores, self.hook_indices = points[here + "router_scores"], points[here + "expert_indices"]
        self.hook_weights = points[here + "expert_weights"]
        self.hook_pre, self.hook_post = points[here + "expert_pre"], points[here + "expert_post"]
        self.hook_pre_linear = points.get(here + "expert_pre_linear")
        self.hook_out, self.hook_shared_out = points[here + "expert_out"], points.get(here + "shared_out")
        wide = experts.d_shared
        self.shared = None if wide is None else MLP(cfg, wide, here + "shared_", points)

    def _make_weights(self, cfg: ModelConfig, experts: Experts) -> None:
        n, d_expert, d_model = experts.n_experts, experts.d_expert, experts.d_latent or cfg.d_model
        biased = experts.expert_bias

        def weight(there: bool, *shape: int) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(shape)) if there else None

        self.W_router_rows = nn.Parameter(torch.empty(n, cfg.d_model))
        self.b_router = weight(experts.router_bias, n)
        self.b_choice = weight(experts.router == "sigmoid", n)
        self.W_up = nn.Parameter(torch.empty(n, d_expert, d_model))
        self.W_gate_up = weight(cfg.gated_mlp, n, d_expert, d_model)
        self.W_down = nn.Parameter(torch.empty(n, d_model, d_expert))
        self.b_up = weight(biased, n, d_expert)
        self.b_gate_up = weight(biased and cfg.gated_mlp, n, d_expert)
        self.b_down = weight(biased, n, d_model)
        self.w_shared = weight(experts.shared_gate, cfg.d_model)
        self.latent_in = self.latent_out = None
        if experts.d_latent is not None:
            self.latent_in = Latent(cfg.d_model, experts.d_latent, cfg.mlp_bias)
            self.latent_out = Latent(experts.d_latent, cfg.d_model, cfg.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer's experts add.  # [batch, pos, d_model] -> [batch, pos, d_model]"""
        # 1. Scores; 2. the choice; 3. weights.
        scores = self.hook_scores(self.scores(x))  # [batch, pos, expert]
        indices = self.hook_indices(self.choose(scores.detach()))  # [batch, pos, slot]
        if self.hook_indices.changes:
            self._check_indices(indices)
        weights = self.hook_weights(self.weights(scores, indices))  # [batch, pos, expert]
        # 4. The experts.
        each = (self.hook_pre, self.hook_post, self.hook_pre_linear, self.hook_out)
        if any(point is not None and point.wanted for point in each):
            out = self.hook_out(self.outputs(self.neurons(x), weights)).sum(-2)
        else:
            used = (weights != 0).scatter(-1, indices, True)  # [batch, pos, expert]
            out = self._used(x, used, weights)
            if self.hook_weights.edited and weights.requires_grad:
                # An expert that is not computed adds nothing, but its weight has a gradient.
                others = weights.masked_fill(used, 0.0)
                out = out + self.outputs(self.activate(*self.inputs(x)), others).sum(-2)
        beside = self.beside(x)
        return out if beside is None else out + beside

    def beside(self, x: Tensor) -> Tensor | None:
        """What is added beside the experts: the shared expert, a bias.  # [..., d_model]"""
        bias = None if self.latent_out is None else self.latent_out.b
        if self.shared is None:
            return bias
        out = self.shared_out(x)
        return out if bias is None else out + bias

    def scores(self, x: Tensor) -> Tensor:
        """The router's logits.  # [..., d_model] -> [..., expert]"""
        return F.linear(x, self.W_router_rows, self.b_router)

    def choose(self, scores: Tensor) -> Tensor:
        """The numbers of the chosen experts, best first.  # [..., expert] -> [..., slot]

        An expert with the score -inf is not chosen while there are others.
        """
        value = widened(scores)
        if self.b_choice is not None:
            value = (value.sigmoid() + widened(self.b_choice)).masked_fill(scores == -torch.inf, -torch.inf)
            value = self._among_groups(value)
        # Stable, so that equal scores are told apart in the same way everywhere.
        return value.sort(dim=-1, descending=True, stable=True).indices[..., : self.experts.experts_per_token]

    def _among_groups(self, value: Tensor) -> Tensor:
        """The values of experts in the best groups; -inf for the others.  # [..., expert]"""
        experts = self.experts
        if experts.n_groups == experts.groups_per_token:
            return value
        grouped = value.unflatten(-1, (experts.n_groups, -1))  # [..., group, expert of the group]
        there = grouped.masked_fill(grouped == -torch.inf, 0.0)
        worth = there.sort(dim=-1, descending=True).values[..., :2].sum(-1)  # [..., group]
        best = worth.sort(dim=-1, descending=True, stable=True).indices[..., : experts.groups_per_token]
        chosen = torch.zeros_like(worth, dtype=torch.bool).scatter(-1, best, True)
        return grouped.masked_fill(~chosen[..., None], -torch.inf).flatten(-2)

    def weights(self, scores: Tensor, indices: Tensor) -> Tensor:
        """What each expert's output is multiplied by, 0 where it is not chosen.

        [..., expert], [..., slot] -> [..., expert]. An expert that is chosen twice counts once.
        """
        experts, wide = self.experts, widened(scores)
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, indices, True)
        if experts.router == "sigmoid":
            weights = wide.sigmoid() * chosen
            if experts.normalize_weights:
                weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        elif experts.normalize_weights:
            weights = wide.masked_fill(~chosen, -torch.inf).softmax(-1)
        else:
            weights = wide.softmax(-1) * chosen
        return (weights * experts.weight_factor).to(scores.dtype)

    def shared_out(self, x: Tensor) -> Tensor:
        """The shared expert's output, times its gate.  # [..., d_model] -> [..., d_model]"""
        assert self.shared is not None and self.hook_shared_out is not None
        out = self.shared(x)
        if self.w_shared is not None:
            out = (x @ self.w_shared).sigmoid()[..., None] * out
        return self.hook_shared_out(out)

    def _used(self, x: Tensor, used: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of outputs, each expert at the positions where it is `used`.  # [..., d_model]"""
        rows = x if self.latent_in is None else self.latent_in(x)
        rows, factors = rows.flatten(0, -2), weights.flatten(0, -2)  # [row, d_model], [row, expert]
        used = used.flatten(0, -2)
        out = torch.zeros_like(rows)
        for expert in used.any(0).nonzero()[:, 0].tolist():
            at = used[:, expert].nonzero()[:, 0]
            neurons = self.activate(*self._pre(rows[at], expert))  # [row of the expert, d_expert]
            made = F.linear(neurons, self.W_down[expert], None if self.b_down is None else self.b_down[expert])
            out.index_add_(0, at, (made * factors[at, expert, None]).to(out.dtype))
        out = out.to(weights.dtype).unflatten(0, x.shape[:-1])  # which autocast leaves narrower than x
        return out if self.latent_out is None else self.latent_out.linear(out)

    def neurons(self, x: Tensor) -> Tensor:
        """The neurons of every expert.  # [..., d_model] -> [..., expert, d_expert]"""
        pre, linear = self.inputs(x)
        pre = self.hook_pre(pre)
        if linear is not None and self.hook_pre_linear is not None:
            linear = self.hook_pre_linear(linear)
        return self.hook_post(self.activate(pre, linear))

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the neurons of every expert are made of: `hook_expert_pre` and, when gated, `hook_expert_pre_linear`.

        [..., d_model] -> [..., expert, d_expert].
        """
        x = x if self.latent_in is None else self.latent_in(x)
        linear = torch.einsum("...d,efd->...ef", x, self.W_up)
        linear = linear if self.b_up is None else linear + self.b_up
        if self.W_gate_up is None:
            return linear, None
        gate = torch.einsum("...d,efd->...ef", x, self.W_gate_up)
        return gate if self.b_gate_up is None else gate + self.b_gate_up, linear

    def outputs(self, neurons: Tensor, weights: Tensor) -> Tensor:
        """The weighted output of every expert.  # [..., expert, d_expert], [..., expert] -> [..., expert, d_model]"""
        made = torch.einsum("...ef,edf->...ed", neurons, self.W_down)
        made = made if self.b_down is None else made + self.b_down
        made = made * weights[..., None]
        return made if self.latent_out is None else self.latent_out.linear(made)

    def _pre(self, x: Tensor, expert: int) -> tuple[Tensor, Tensor | None]:
        """The same of one expert.  # [row, d_model] -> [row, d_expert]"""

        def project(weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.linear(x, weight[expert], None if bias is None else bias[expert])

        linear = project(self.W_up, self.b_up)
        return (linear, None) if self.W_gate_up is None else (project(self.W_gate_up, self.b_gate_up), linear)

    def activate(self, pre: Tensor, linear: Tensor | None) -> Tensor:
        """Neurons from what they are made of.  # [..., d_expert]"""
        if linear is None:
            return self.act(pre)
        limit = self.experts.swiglu_limit
        if limit is None:
            return self.act(pre) * linear
        pre, linear = pre.clamp(max=limit), linear.clamp(-limit, limit)
        return (linear + 1) * pre * (self.experts.swiglu_alpha * pre).sigmoid()

    def _check_indices(self, indices: Tensor) -> None:
        """Refuse a choice of experts that there are not.

        Raises:
            HookError: a number that no expert has.
        """
        wrong = indices[(indices < 0) | (indices >= self.experts.n_experts)]
        if len(wrong):
            raise HookError(
                f"{self.hook_indices.name!r} holds the numbers of experts, 0 to {self.experts.n_experts - 1}, but an "
                f"edit put {int(wrong[0])} there"
            )

    @property
    def W_router(self) -> Tensor:
        """Router weights [d_model, expert]; a view, as the other weights here."""
        return self.W_router_rows.T

    @property
    def W_in(self) -> Tensor:
        """Input weights [expert, d_model, d_expert]."""
        return self.W_up.mT

    @property
    def W_gate(self) -> Tensor | None:
        """Gate weights [expert, d_model, d_expert]; None where there is no gate."""
        return None if self.W_gate_up is None else self.W_gate_up.mT

    @property
    def W_out(self) -> Tensor:
        """Output weights [expert, d_expert, d_model]."""
        return self.W_down.mT

    @property
    def b_in(self) -> Tensor:
        """Input biases [expert, d_expert]; zeros where the model has none."""
        return self.W_up.new_zeros(self.W_up.shape[:2]) if self.b_up is None else self.b_up

    @property
    def b_gate(self) -> Tensor | None:
        """Gate biases [expert, d_expert]; zeros where the model has none, None where there is no gate."""
        if self.W_gate_up is None:
            return None
        return self.W_up.new_zeros(self.W_up.shape[:2]) if self.b_gate_up is None else self.b_gate_up

    @property
    def b_out(self) -> Tensor:
        """Output biases [expert, d_model]; zeros where the model has none."""
        return self.W_down.new_zeros(self.W_down.shape[:2]) if self.b_down is None else self.b_down
