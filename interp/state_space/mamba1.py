"""Mamba-1: every channel has a step size and decay rates of its own (Gu and Dao 2023)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.config import ModelConfig
from interp.hooked.hooks import HookPoint
from interp.state_space.mixer import MambaMixer, Selected, normalized
from interp.state_space.scan import (
    selective_pattern,
    selective_read,
    selective_rows,
    selective_scan,
    selective_states,
)


class Mamba1(MambaMixer):
    """The selective state space of Gu and Dao 2023: every channel has a step size and decay rates of its own."""

    scan = staticmethod(selective_scan)
    states = staticmethod(selective_states)
    read = staticmethod(selective_read)
    pattern = staticmethod(selective_pattern)
    rows = staticmethod(selective_rows)

    def __init__(self, cfg: ModelConfig, layer: int, points: Mapping[str, HookPoint]) -> None:
        assert cfg.d_inner is not None and cfg.d_state is not None and cfg.dt_rank is not None
        super().__init__(cfg, layer, points, {"in": cfg.d_inner, "gate": cfg.d_inner})
        self.selects = [cfg.dt_rank, cfg.d_state, cfg.d_state]
        self.W_x = nn.Parameter(torch.empty(sum(self.selects), cfg.d_inner))
        self.W_dt = nn.Parameter(torch.empty(cfg.d_inner, cfg.dt_rank))
        self.b_dt = nn.Parameter(torch.empty(cfg.d_inner))
        self.A_log = nn.Parameter(torch.empty(cfg.d_inner, cfg.d_state))
        self.D = nn.Parameter(torch.empty(cfg.d_inner))
        weighed = cfg.ssm_normalization_type == "RMS"
        self.w_dt_norm, self.w_B_norm, self.w_C_norm = (
            nn.Parameter(torch.empty(size)) if weighed else None for size in self.selects
        )

    def select(self, conv: Tensor, dt: Tensor | None) -> Selected:
        """delta, B and C are linear in x; delta through few numbers and softplus (2023, section 3.2, algorithm 2).

        Some models normalise the three first.
        """
        low, B, C = F.linear(conv, self.W_x).split(self.selects, dim=-1)
        if self.cfg.ssm_normalization_type is not None:
            weights = (self.w_dt_norm, self.w_B_norm, self.w_C_norm)
            low, B, C = (self._normed(x, w) for x, w in zip((low, B, C), weights, strict=True))
        delta = F.softplus(F.linear(low, self.W_dt).to(self.wide).add_(self.b_dt))
        return Selected(conv, delta, B, C)

    def like_y(self, channels: Tensor) -> Tensor:
        """As they are: y has channels."""
        return channels

    def through_gate(self, y: Tensor, gate: Tensor) -> Tensor:
        """y silu(gate)."""
        return y * F.silu(gate)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None) -> None:
        """As the authors' code, with A = -1, -2, ... in every channel (S4D-Real)."""
        super().init_weights(generator)
        self.A_log.copy_(torch.arange(1, self.A_log.shape[1] + 1, device=self.A_log.device).log().expand_as(self.A_log))
        bound = self.W_dt.shape[1] ** -0.5
        self.W_dt.uniform_(-bound, bound, generator=generator)
        for weight in (self.w_dt_norm, self.w_B_norm, self.w_C_norm):
            if weight is not None:
                weight.fill_(1.0)

    def _normed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """RMS norm over the last axis."""
        normed = normalized(x.to(self.wide), self.cfg.ssm_eps).to(x.dtype)
        return normed if weight is None else normed * weight
