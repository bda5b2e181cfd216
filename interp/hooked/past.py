"""What the layers keep of the part of a prompt that went through the model before."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from interp.arguments import whole_number
from interp.errors import PromptError
from interp.hooked.pickling import alone

MOST_LAYERS = 1_000_000  # of any model; a larger number is a mistake


class PastKeyValues:
    """What the layers keep of the part of a prompt that went through the model before.

    Attention keeps keys and values of every position; a state-space layer its state, and the last inputs of its
    convolution. Pass the same object to one forward after another; each appends its own positions, or none if it fails.
    Room grows by doubling, so that a token costs its own copy and no other; only where gradients are recorded do all
    positions move into a tensor of their own with each forward, so that a later one leaves their graph alone.
    """

    def __init__(self, n_layers: int) -> None:
        n_layers = whole_number("n_layers", n_layers, least=0, most=MOST_LAYERS)
        self._room: list[tuple[Tensor, Tensor] | None] = [None] * n_layers
        self._states: dict[int, tuple[Tensor, Tensor]] = {}  # of state-space layers, which may have attention, too
        self._lengths = [0] * n_layers
        self._owner: weakref.ref[object] | None = None
        self.attention_mask: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        room = [None if room is None else (alone(room[0]), alone(room[1])) for room in self._room]
        states = {layer: (alone(tail), alone(state)) for layer, (tail, state) in self._states.items()}
        # In another process every model is another object.
        return {**self.__dict__, "_room": room, "_states": states, "_owner": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> PastKeyValues:
        twin = self.draft()
        twin._room = [None if room is None else (room[0].clone(), room[1].clone()) for room in self._room]
        twin._states = {layer: (tail.clone(), state.clone()) for layer, (tail, state) in self._states.items()}
        twin.attention_mask = None if self.attention_mask is None else self.attention_mask.clone()
        return twin

    def draft(self) -> PastKeyValues:
        """Another one that holds the same, for a forward to extend: what it adds comes after what this one holds."""
        twin = PastKeyValues(0)
        own = {"_room": list(self._room), "_states": dict(self._states), "_lengths": list(self._lengths)}
        twin.__dict__ = {**self.__dict__, **own}
        return twin

    def become(self, draft: PastKeyValues) -> None:
        """Hold what a draft of this one holds, which is not used any more."""
        self.__dict__ = draft.__dict__  # in one step, whatever interrupts

    def __len__(self) -> int:
        """Positions that the layers hold."""
        return max(self._lengths, default=0)

    def claim(self, owner: object, n_layers: int, batch: int) -> None:
        """Belong to a model from its first forward on.

        Raises:
            PromptError: it holds what another model, or another number of prompts, has left.
        """
        if len(self._room) != n_layers:
            raise PromptError(f"past_kv_cache was made for {len(self._room)} layers; this model has {n_layers}")
        if self._owner is not None and self._owner() is not owner:
            raise PromptError("past_kv_cache holds what another model has computed: give each model one of its own")
        rooms = [*self._room, *self._states.values()]
        held = next((room[0].shape[0] for room in rooms if room is not None), batch)
        if held != batch:
            raise PromptError(f"past_kv_cache holds {held} prompts, but {batch} are to be continued")
        self._owner = weakref.ref(owner)

    def stored_state(self, layer: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """The last inputs of a layer's convolution [batch, d_conv - 1, conv_channel], and its state [batch, ...]."""
        room = self._states.get(layer)
        if room is None:
            return None, None
        return room if _writable(room[1]) else (room[0].clone(), room[1].clone())

    def store_state(self, layer: int, tail: Tensor, state: Tensor, n_pos: int) -> None:
        """Replace what a layer keeps of its convolution's inputs and its state, after `n_pos` more positions."""
        self._states[layer] = (tail, state)
        if self._room[layer] is None:  # otherwise the layer's attention has counted them
            self._lengths[layer] += n_pos

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v [batch, pos, kv_head, d_head] to a layer and return all that it holds now."""
        start = self._lengths[layer]
        stop = start + k.shape[1]
        room = self._room[layer]
        self._lengths[layer] = stop
        if torch.is_grad_enabled():
            if room is not None:
                k, v = torch.cat((room[0][:, :start], k), dim=1), torch.cat((room[1][:, :start], v), dim=1)
            self._room[layer] = (k, v)
            return k, v
        if room is None or room[0].shape[1] < stop or not _writable(room[0]):
            grown = tuple(new.new_empty(new.shape[0], max(2 * start, stop), *new.shape[2:]) for new in (k, v))
            if room is not None:
                grown[0][:, :start], grown[1][:, :start] = room[0][:, :start], room[1][:, :start]
            room = self._room[layer] = (grown[0], grown[1])
        room[0][:, start:stop], room[1][:, start:stop] = k, v
        return room[0][:, :stop], room[1][:, :stop]


def _writable(room: Tensor) -> bool:
    """Whether torch lets us write there, or put it in a graph: one of inference mode is of use in that mode alone."""
    return torch.is_inference_mode_enabled() or not room.is_inference()
