"""Mamba-2: heads of channels with one step size and one decay rate each (Dao and Gu 2024)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.config import ModelConfig
from interp.hooked.hooks import HookPoint
from interp.state_space.mixer import MambaMixer, Selected, normalized
from interp.state_space.scan import (
    dual_pattern,
    dual_read,
    dual_rows,
    dual_scan,
    dual_states,
)


class Mamba2(MambaMixer):
    """The state space dual of Dao and Gu 2024: heads of channels with one step size and one decay rate each.

    B and C are shared by groups of heads, as values of grouped-query attention share keys; a norm in groups follows the
    gate (2024, section 7.1).
    """

    scan = staticmethod(dual_scan)
    states = staticmethod(dual_states)
    read = staticmethod(dual_read)
    pattern = staticmethod(dual_pattern)
    rows = staticmethod(dual_rows)

    def __init__(self, cfg: ModelConfig, layer: int, points: Mapping[str, HookPoint]) -> None:
        assert cfg.d_inner is not None and cfg.d_state is not None
        heads, shared = cfg.n_ssm_heads, cfg.n_ssm_groups * cfg.d_state
        super().__init__(cfg, layer, points, {"gate": cfg.d_inner, "in": cfg.d_inner + 2 * shared, "dt": heads})
        self.selects = [cfg.d_inner, shared, shared]
        self.b_dt = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.w_norm = nn.Parameter(torch.empty(cfg.d_inner))

    def select(self, conv: Tensor, dt: Tensor | None) -> Selected:
        """B and C went through the convolution beside x; delta comes straight from W_in (2024, section 7.1)."""
        assert dt is not None
        x, B, C = conv.split(self.selects, dim=-1)
        delta = F.softplus(dt.to(self.wide) + self.b_dt)
        if self.cfg.dt_limit is not None:
            delta = delta.clamp(*self.cfg.dt_limit)
        groups = (self.cfg.n_ssm_groups, -1)
        return Selected(self.like_y(x), delta, B.unflatten(-1, groups), C.unflatten(-1, groups))

    def like_y(self, channels: Tensor) -> Tensor:
        """In heads.  # [..., ssm_head, d_ssm_head]"""
        return channels.unflatten(-1, (-1, self.cfg.d_ssm_head))

    def through_gate(self, y: Tensor, gate: Tensor) -> Tensor:
        """RMS norm of y silu(gate) over each group of channels."""
        gated = (y.to(self.wide) * F.silu(gate.to(self.wide))).flatten(2)
        groups = gated.unflatten(-1, (self.cfg.n_ssm_groups, -1))
        normed = normalized(groups, self.cfg.eps).flatten(-2)
        return self.like_y(normed.to(y.dtype) * self.w_norm)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None) -> None:
        """As the authors' code, with A drawn between -16 and -1."""
        super().init_weights(generator)
        self.A_log.copy_(self.A_log.uniform_(1, 16, generator=generator).log())
        self.w_norm.fill_(1.0)
