"""The state-space mixer: Mamba-1 and Mamba-2 (Gu and Dao 2023, "Mamba"; Dao and Gu 2024, "Transformers are SSMs").

Attention keeps every earlier position and looks through them again at each step. A state-space layer keeps a state of
fixed size instead, writes each position into it and reads from it:

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t        y_t = C_t h_t + D x_t

| symbol | here | what it is | in the papers |
|---|---|---|---|
| x | `hook_conv` (Mamba-2: its first d_inner channels) | the input, after the convolution | eq. 1a; x of algorithm 2 |
| A | `mixer.A`, [channel, d_state], or [ssm_head] | how fast each number of the state decays, below 0 | eq. 1a, 3.6 |
| delta | `hook_delta` | the step size: near 0 a position is passed over, large ones overwrite | eq. 4, section 3.5.2 |
| B | `hook_B` | how a position is written into the state | eq. 1a; like a key |
| C | `hook_C` | how the state is read at a position | eq. 1b; like a query |
| D | `mixer.D` | what passes by the state | section 3.4, as in S4 |
| h | `hook_state` | the state after a position | eq. 2a |
| conv | `hook_in`, `hook_conv` | each channel's mean over the last `d_conv` positions, with weights | figure 3 |
| gate | `hook_gate` | multiplies y by SiLU of itself | figure 3 |

1. W_in gives each position what goes into the convolution, and its gate (in Mamba-2 also B, C and delta).
2. A causal convolution over a few positions, channel by channel, then SiLU.
3. delta, B and C are read off (selection: they depend on the token; section 3.2). Mamba-1 reads them from x, Mamba-2
   makes them beside it, and has one delta and one A for a whole head of channels (2024, section 7).
4. The recurrence, as a scan (`interp.state_space.scan`). Where somebody asked for the states, they are made one by one;
   where they asked for the pattern, it is formed: y = pattern x, with
   pattern[t, s] = C_t exp(A sum of delta after s) delta_s B_s, and D on the diagonal (Ali et al. 2024, "The Hidden
   Attention of Mamba Models", section 3).
5. y is gated, in Mamba-2 normalised in groups, and W_out writes to the residual stream.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.config import ModelConfig
from interp.errors import HookError, PromptError
from interp.forward.forward_context import Context
from interp.forward.packed_rows import Packed, Piece, at_rows, joined, where
from interp.hooked.hooks import HookPoint
from interp.hooked.past import PastKeyValues
from interp.precision import wide_type
from interp.state_space.states import as_hooks_leave_them, linked, states_one_by_one

# The sites that states and the hidden attention follow from.
RECURRENT = ("conv", "delta", "B", "C")
# Step sizes at the start of training lie between these (Gu and Dao 2023, section 3.6).
LEAST_STEP, MOST_STEP = 0.001, 0.1


class Selected(NamedTuple):
    """What the recurrence runs on; `delta`, `B` and `C` in the shapes of their sites, x in that of `y`."""

    x: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor

    def at(self, place: Tensor | None) -> Selected:
        """The same at some rows [run, length] of a packed batch; None takes all as it is."""
        return self if place is None else Selected(*(value[0, place] for value in self))

    def after(self, position: int) -> Selected:
        """The same at later positions."""
        return Selected(*(value[:, position + 1 :] for value in self))


class MambaMixer(nn.Module, ABC):
    """What both generations share: normalised residual stream [batch, pos, d_model] in, the same shape out.

    Weights lie as the matrix products want them, one row an output: `W_in` [..., d_model], `W_conv` [conv_channel,
    d_conv], `W_out` [d_model, d_inner]; `A_log` and `D` as the papers' code has them.
    """

    A_log: nn.Parameter
    D: nn.Parameter
    b_dt: nn.Parameter
    scan: Callable[..., tuple[Tensor, Tensor]]
    states: Callable[..., Tensor]
    read: Callable[[Tensor, Tensor], Tensor]
    pattern: Callable[..., Tensor]
    rows: Callable[..., Tensor]

    def __init__(self, cfg: ModelConfig, layer: int, points: Mapping[str, HookPoint], parts: Mapping[str, int]) -> None:
        super().__init__()
        assert cfg.d_inner is not None
        self.cfg, self.layer, self.parts = cfg, layer, dict(parts)
        rows, convolved = sum(self.parts.values()), self.parts["in"]
        self.W_in = nn.Parameter(torch.empty(rows, cfg.d_model))
        self.b_in = nn.Parameter(torch.empty(rows)) if cfg.mamba_bias else None
        self.W_conv = nn.Parameter(torch.empty(convolved, cfg.d_conv))
        self.b_conv = nn.Parameter(torch.empty(convolved)) if cfg.conv_bias else None
        self.W_out = nn.Parameter(torch.empty(cfg.d_model, cfg.d_inner))
        self.b_out = nn.Parameter(torch.empty(cfg.d_model)) if cfg.mamba_bias else None
        here = f"blocks.{layer}.mixer.hook_"
        self.hook_in, self.hook_conv, self.hook_delta = (points[here + name] for name in ("in", "conv", "delta"))
        self.hook_B, self.hook_C, self.hook_y = (points[here + name] for name in "BCy")
        self.hook_state, self.hook_pattern = points[here + "state"], points[here + "pattern"]
        self.hook_gate, self.hook_gated, self.hook_out = (points[here + name] for name in ("gate", "gated", "out"))

    @abstractmethod
    def select(self, conv: Tensor, dt: Tensor | None) -> Selected:
        """x, delta, B and C of what left the convolution (and, in Mamba-2, of what W_in gave for delta)."""

    @abstractmethod
    def like_y(self, channels: Tensor) -> Tensor:
        """Channels [..., d_inner] on the axes of `y`."""

    @abstractmethod
    def through_gate(self, y: Tensor, gate: Tensor) -> Tensor:
        """What W_out reads."""

    @property
    def wide(self) -> torch.dtype:
        """The number type of step sizes and states: float32 at least."""
        return wide_type(self.W_in.dtype)

    @property
    def A(self) -> Tensor:
        """The decay rates, below 0: -exp(A_log)."""
        return -self.A_log.to(self.wide).exp()

    def mix(self, x: Tensor, context: Context, *, past: PastKeyValues | None = None) -> Tensor:
        """What W_out reads, before `hook_gated`.  # [batch, pos, channel] or [batch, pos, ssm_head, d_ssm_head]"""
        sizes = list(self.parts.values())
        biases = [None] * len(sizes) if self.b_in is None else self.b_in.split(sizes)
        made = [F.linear(x, W, b) for W, b in zip(self.W_in.split(sizes), biases, strict=True)]  # nobody's view
        parts = dict(zip(self.parts, made, strict=True))
        inner, dt = self.hook_in(parts["in"]), parts.get("dt")
        if context.packed is not None:
            y = self._packed(inner, dt, context.packed)
        else:
            y = self._whole(inner, dt, context.real, past)
        return self.through_gate(self.hook_y(y), self.hook_gate(self.like_y(parts["gate"])))

    def write(self, gated: Tensor) -> Tensor:
        """What the mixer adds to the residual stream.  # [batch, pos, d_model]"""
        return self.hook_out(F.linear(self.hook_gated(gated).flatten(2), self.W_out, self.b_out))

    def convolve(self, inner: Tensor) -> Tensor:
        """SiLU of the causal convolution; the first d_conv - 1 positions are only looked back at.

        [batch, d_conv - 1 + pos, conv_channel] -> [batch, pos, conv_channel].
        """
        n_pos = inner.shape[1] - self.cfg.d_conv + 1
        out = inner[:, :n_pos] * self.W_conv[:, 0]
        if self.b_conv is not None:
            out += self.b_conv
        for at in range(1, self.cfg.d_conv):
            out.addcmul_(inner[:, at : at + n_pos], self.W_conv[:, at])
        return F.silu(out, inplace=True)

    def with_skip(self, y: Tensor, x: Tensor) -> Tensor:
        """y with D x, which passes by the state."""
        return torch.addcmul(y, x, self.D.reshape(-1, *[1] * (x.ndim - 3)))

    def full_pattern(self, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """The attention matrix that the recurrence is equal to, with D on its diagonal.

        [batch, channel, query, key], or [batch, ssm_head, query, key].
        """
        hidden = self.pattern(delta, self.A, B, C)
        return hidden + on_diagonal(self.D, hidden)

    def derive(
        self, site: str, mask: Tensor | None, *, conv: Tensor, delta: Tensor, B: Tensor, C: Tensor
    ) -> Tensor | None:
        """The states or the hidden attention of whole prompts, from the values of other sites."""
        if mask is not None:
            delta = where(mask, delta)
        if site == "pattern":
            return self.full_pattern(delta, B, C)
        return self.states(self.like_y(conv[..., : self.cfg.d_inner]), delta, self.A, B) if site == "state" else None

    def _whole(self, inner: Tensor, dt: Tensor | None, real: Tensor | None, past: PastKeyValues | None) -> Tensor:
        """y of prompts whose positions are all here, or follow on those that went before."""
        if real is not None:
            if past is not None and not bool(real[:, -1].all()):
                raise PromptError("prompts that are to be continued must be padded on the left")
            inner = where(real, inner)
        tail, state = (None, None) if past is None else past.stored_state(self.layer)
        if tail is None:
            tail = inner.new_zeros(inner.shape[0], self.cfg.d_conv - 1, inner.shape[2])
        inner = torch.cat((tail, inner), dim=1)
        s = self._selected(self.hook_conv(self.convolve(inner)), dt, real)
        y, (last,) = self._read(s, [(None, state)])
        if past is not None:
            n_pos = inner.shape[1] - tail.shape[1]
            past.store_state(self.layer, inner[:, n_pos:], last, n_pos)
        if not self.hook_pattern.wanted:
            return y
        if state is not None:
            raise HookError(f"{self.hook_pattern.name!r} is of whole prompts: run them without past_kv_cache")
        return self._by_pattern(y, s, self.full_pattern(s.delta, s.B, s.C), s.x)

    def _packed(self, inner: Tensor, dt: Tensor | None, packed: Packed) -> Tensor:
        """y of rows whose sequences go back to a base run: its inputs and states stand before each run of rows."""
        known = packed.prefix[self.layer]
        n_tail = self.cfg.d_conv - 1
        conv = torch.empty_like(inner, dtype=torch.result_type(inner, self.W_conv))  # autocast makes inner alone narrow
        pieces: list[Piece] = []
        for run in packed.runs:
            before = run.before(known["in"], n_tail, packed.mask)
            conv[0, run.rows] = self.convolve(torch.cat((before, inner[0, run.rows]), dim=1))
            pieces.append((run.rows, run.states(known, packed.mask)))
        s = self._selected(self.hook_conv(conv), dt, None)
        y, _ = self._read(s, pieces)
        if not self.hook_pattern.wanted:
            return y
        delta, B = (packed.completed(known[name], own[0]) for name, own in (("delta", s.delta), ("B", s.B)))
        x = packed.completed(self.like_y(known["conv"][..., : self.cfg.d_inner]), s.x[0])  # [sequence, pos, ...]
        of, query = packed.sequence, packed.position
        rows = self.rows(delta[of], self.A, B[of], s.C[0], query)  # [row, unit, key]
        rows = rows + F.one_hot(query, rows.shape[-1])[:, None] * self.D[:, None].to(rows)
        return self._by_pattern(y, s, rows.transpose(0, 1)[None], x[of])

    def _selected(self, conv: Tensor, dt: Tensor | None, real: Tensor | None) -> Selected:
        s = self.select(conv, dt)
        delta = self.hook_delta(s.delta)
        if real is not None:  # a step of no size leaves the state as it is
            delta = where(real, delta)
        return s._replace(delta=delta, B=self.hook_B(s.B), C=self.hook_C(s.C))

    def _read(self, s: Selected, pieces: Sequence[Piece]) -> tuple[Tensor, list[Tensor]]:
        """y with D, and the last states."""
        if self.hook_state.wanted:
            states = self._states(s, pieces)
            lasts = [at_rows(states, place)[:, -1] for place, _ in pieces]
            return self.with_skip(self.read(states, s.C).to(s.x.dtype), s.x), lasts
        own = [s.at(place) for place, _ in pieces]
        found = [self.scan(*self._arguments(o), o.C, state=state) for o, (_, state) in zip(own, pieces, strict=True)]
        y = joined([y for y, _ in found], pieces)
        return self.with_skip(y, s.x), [last for _, last in found]

    def _arguments(self, s: Selected) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return s.x, s.delta, self.A, s.B

    def _states(self, s: Selected, pieces: Sequence[Piece]) -> Tensor:
        """The states as hooks leave them; those after a change follow from it."""
        if len(pieces) == 1 and not self.hook_state.changes and torch.is_grad_enabled():
            own, decay = states_one_by_one(self.states, *self._arguments(s), pieces[0][1])
            self.hook_state.observe(own)
            return linked(own, decay)

        def run(place: Tensor | None, position: int | None, state: Tensor | None) -> Tensor:
            own = s.at(place)
            return self.states(*self._arguments(own if position is None else own.after(position)), state=state)

        return as_hooks_leave_them(self.hook_state, run, pieces)

    def _by_pattern(self, y: Tensor, s: Selected, pattern: Tensor, x: Tensor) -> Tensor:
        """y from the pattern, where somebody may have changed it; y as it is where they only look.

        `pattern` is [batch, unit, query, key] and `x` [batch, key, unit, ...], or of a packed batch [1, unit, row, key]
        and [row, key, unit, ...].
        """
        if self.hook_pattern.edited and self.hook_state.edited:
            raise HookError(
                f"{self.hook_pattern.name!r} and {self.hook_state.name!r} are two ways to the same y: change one"
            )
        seen = self.hook_pattern(pattern)
        if not self.hook_pattern.edited:
            return y
        rows = seen.transpose(1, 2)  # [batch, query, unit, key]
        x = x.to(rows.dtype)
        if len(x) != len(rows):
            mixed = torch.einsum("quk,qku...->qu...", rows[0], x)[None]
        else:
            mixed = torch.einsum("bquk,bku...->bqu...", rows, x)
        return mixed.to(s.x.dtype)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None) -> None:
        """Step sizes, decay rates, convolution and skip as the authors' code draws them (2023, section 3.6)."""
        log_step = torch.empty(self.b_dt.shape, device=self.b_dt.device)
        log_step.uniform_(math.log(LEAST_STEP), math.log(MOST_STEP), generator=generator)
        self.b_dt.copy_(log_step.exp() + torch.log(-torch.expm1(-log_step.exp())))  # softplus of it is the step
        self.D.fill_(1.0)
        bound = self.cfg.d_conv**-0.5
        self.W_conv.uniform_(-bound, bound, generator=generator)


def normalized(x: Tensor, eps: float) -> Tensor:
    """x over its root mean square on the last axis (Zhang and Sennrich 2019)."""
    return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt()


def on_diagonal(D: Tensor, pattern: Tensor) -> Tensor:
    """D [unit] on the diagonal of a pattern [..., query, key].  # [unit, query, key]"""
    return torch.diag_embed(D[:, None].to(pattern).expand(-1, pattern.shape[-1]))
