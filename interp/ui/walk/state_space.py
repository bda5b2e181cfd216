"""The steps of a state-space mixer: convolution, step size, state and how it is read, through one channel or head.

Mamba-1 has a step size and decay rates for each channel, Mamba-2 for a whole head of channels, of which the walk
follows the one that writes most. The recurrence is that of `interp.state_space.mixer`:

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t        y_t = C_t h_t + D x_t
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interp.state_space.mixer import MambaMixer
from interp.ui.walk.drawn import Cell, Item, Piece, after, bars, number, size, step, table, vectors
from interp.ui.walk.run import LONGEST_STATES, Run

MOST_BARS = 48  # positions or channels that have a bar each

Step = dict[str, Any]


def mixer_of(run: Run) -> MambaMixer | None:
    """The weights of the mixer, where the model shows them."""
    return None if run.block is None else run.block.mixer


def written(run: Run) -> Tensor | None:
    """What each channel, or each head of Mamba-2, adds to the stream at this position.  # [unit, d_model]"""
    mixer, gated = mixer_of(run), run.at("mixer.hook_gated").float()
    if mixer is None:
        return None
    weights = mixer.W_out.float()  # [d_model, d_inner]
    if gated.ndim == 1:
        return gated[:, None] * weights.T
    return torch.einsum("hd,mhd->hm", gated, weights.unflatten(1, gated.shape))


class _Followed:
    """The channel that is followed, and where it stands in the sites of both generations."""

    def __init__(self, run: Run, unit: int) -> None:
        gated = run.at("mixer.hook_gated")
        self.run, self.unit, self.heads = run, unit, gated.ndim == 2
        self.within = int(gated[unit].abs().argmax()) if self.heads else 0  # of the head's channels
        self.channel = unit * gated.shape[1] + self.within if self.heads else unit  # of all channels
        self.word = f"head {unit}" if self.heads else f"channel {unit}"
        self.follows = f"channel {self.within} of head {unit}" if self.heads else f"channel {unit}"

    def of(self, site: str) -> Tensor:
        """A site on the axes of y, of this channel at all positions.  # [pos]"""
        value = self.run.every(site)
        return (value[:, self.unit, self.within] if self.heads else value[:, self.unit]).float()

    def shared(self, site: str) -> Tensor:
        """B or C, which heads of a group share, at all positions.  # [pos, d_state]"""
        value = self.run.every(site).float()
        return value[:, self.unit * value.shape[1] // self.run.cfg.n_ssm_heads] if self.heads else value

    @property
    def states(self) -> Tensor:
        """The channel's state after each position.  # [pos, d_state]"""
        value = self.run.every("mixer.hook_state")
        return (value[:, self.unit, self.within] if self.heads else value[:, self.unit]).float()

    @property
    def x(self) -> Tensor:
        """What leaves the convolution in this channel.  # [pos]"""
        return self.run.every("mixer.hook_conv")[:, self.channel].float()

    @property
    def delta(self) -> Tensor:
        """Step sizes.  # [pos]"""
        return self.run.every("mixer.hook_delta")[:, self.unit].float()


def steps(run: Run, unit: int, norm: Step | None) -> list[Step]:
    """All steps of the mixer of this layer, through one of its channels or heads."""
    own = _Followed(run, unit)
    made = [] if norm is None else [norm]
    made += [_convolution(run, own), _selection(run, own)]
    if run.has("mixer.hook_state"):
        made.append(_state(run, own))
    if run.has("mixer.hook_pattern"):
        made.append(_hidden(run, own))
    return [*made, _gate(run, own), *_writes(run, own)]


def _convolution(run: Run, own: _Followed) -> Step:
    mixer, at = mixer_of(run), run.position
    inner = run.every("mixer.hook_in")[:, own.channel].float()
    text: list[Piece] = [
        f"Each channel first blurs what it gets over the last {run.cfg.d_conv} positions, with weights of its own. "
        f"Followed is {own.follows}"
    ]
    if own.heads:
        text.append(", the one of its head that comes out strongest here")
    if mixer is None:
        return step("conv", "Convolution", [*text, "; out comes ", number(own.x[at]), "."])
    kernel = mixer.W_conv[own.channel].float().tolist()
    rows: list[Sequence[Cell]] = []
    total = 0.0
    for weight, place in zip(kernel, range(at - len(kernel) + 1, at + 1), strict=True):
        if place >= 0:
            total += weight * float(inner[place])
            rows.append([run.word(place), float(inner[place]), weight, weight * float(inner[place])])
    if mixer.b_conv is not None:
        bias = float(mixer.b_conv[own.channel])
        total += bias
        rows.append(["bias", None, None, bias])
    text += [": the products add up to ", number(total), ", of which SiLU makes x = ", number(own.x[at]), "."]
    heads = ["position", "input", "weight", "product"]
    return step("conv", "Convolution", text, table(f"The convolution of channel {own.channel}", heads, rows))


def _selection(run: Run, own: _Followed) -> Step:
    at, delta, mixer = run.position, own.delta, mixer_of(run)
    text: list[Piece] = [
        "How much does this token count? The step size says: near 0 the token is passed over and the state stays; a "
        f"large one writes it in and lets what was there fade. For {own.word} it is ", number(delta[at]), " here",
    ]  # fmt: skip
    rows = [
        ("B: how x is written", own.shared("mixer.hook_B")[at]),
        ("C: how it is read", own.shared("mixer.hook_C")[at]),
    ]
    if mixer is not None:
        kept = (delta[at] * mixer.A[own.unit].float()).exp()  # [d_state], or one number
        if kept.ndim:
            text += [f": of the {len(kept)} numbers of the state, the one that fades fastest keeps ",
                     number(kept.min()), " of itself, the slowest ", number(kept.max())]  # fmt: skip
            rows.append(("kept of the state", kept))
        else:
            text += [": the state keeps ", number(kept), " of itself"]
    text.append(". B and C are made from the token, too: that is what selective means.")
    first, labels = _window(run)
    drawn = bars(f"step size of {own.word}", labels, delta[first : first + len(labels)], chosen=at - first,
                 chooses="position")  # fmt: skip
    return step("select", "Step size, B and C", text, drawn, vectors(rows))


def _window(run: Run) -> tuple[int, list[Piece]]:
    """The positions around the chosen one that have a bar: the first, and their labels."""
    first = max(0, min(run.position - MOST_BARS // 2, run.n - MOST_BARS))
    return first, [run.word(place) for place in range(first, min(run.n, first + MOST_BARS))]


def _state(run: Run, own: _Followed) -> Step:
    at, states = run.position, own.states
    before = states[at - 1] if at else torch.zeros_like(states[0])
    read = float(own.shared("mixer.hook_C")[at] @ states[at])
    mixer, x = mixer_of(run), float(own.x[at])
    text: list[Piece] = [
        f"The state is all that this layer remembers: {len(before)} numbers for the channel, however long the prompt. "
        "Its length was ", size(before), " before this token and is ", size(states[at]), " after it. C reads ",
        number(read), " from it",
    ]  # fmt: skip
    if mixer is not None:
        text += ["; D × x = ", number(float(mixer.D[own.unit]) * x), " passes by it"]
    text += [": y = ", number(own.of("mixer.hook_y")[at]), "."]
    rows = [("state before", before), ("state after", states[at])]
    return step("state", "State", text, vectors(rows))


def _hidden(run: Run, own: _Followed) -> Step:
    row = run.every("mixer.hook_pattern")[own.unit, run.position].float()  # [key]
    first, labels = _window(run)
    labels = labels[: run.position + 1 - first]
    text = (
        f"Written out, {own.word} also looks back, as a head of attention does: y is a sum over earlier tokens, each "
        "times what is left of it. There is no softmax, so that weights can be negative and add up to anything "
        "(hidden attention)."
    )
    drawn = bars(f"hidden attention of {own.word}, from position {run.position}", labels,
                 row[first : first + len(labels)], chosen=run.position - first, chooses="position")  # fmt: skip
    return step("hidden", "Where it looks, written out", [text], drawn)


def _gate(run: Run, own: _Followed) -> Step:
    y, gate, out = (own.of(f"mixer.hook_{name}")[run.position] for name in ("y", "gate", "gated"))
    then = ", and normalised" if own.heads else ""
    text: list[Piece] = [
        "A gate, made from the token, lets y through or shuts it off: y = ", number(y), " times SiLU of ", number(gate),
        f"{then} gives ", number(out), ".",
    ]  # fmt: skip
    if run.n > LONGEST_STATES:
        text.append(f" States and hidden attention are drawn for prompts of up to {LONGEST_STATES} tokens.")
    return step("gate", "Gate", text)


def _writes(run: Run, own: _Followed) -> list[Step]:
    writes = written(run)
    if writes is None:
        return []
    vector, lengths = writes[own.unit], writes.norm(dim=-1)
    count = "heads" if own.heads else "channels"
    text: list[Piece] = [
        f"A matrix turns this into {len(vector):,} numbers, which {own.word} adds to the residual stream: a vector of "
        "length ", size(vector), f". All {len(writes):,} {count} together add one of length ",
        size(run.at("mixer.hook_out")), ".",
    ]  # fmt: skip
    told: Item | None = None
    if run.can_promote:
        told = after(run.promotes(vector), f"Read off directly, {own.word} speaks")
    most = lengths.topk(min(MOST_BARS, len(lengths))).indices.sort().values
    if own.unit not in most.tolist():
        most = torch.cat([most, most.new_tensor([own.unit])]).sort().values
    name = "head" if own.heads else "channel"
    drawn = bars(f"length of what each {name} writes" + (", the strongest" if len(most) < len(lengths) else ""),
                 [f"{name} {at}" for at in most.tolist()], lengths[most], chosen=most.tolist().index(own.unit),
                 chooses="unit")  # fmt: skip
    return [step("write", f"What {own.word} writes", text, vectors([(f"{own.word} writes", vector)]), told, drawn)]
