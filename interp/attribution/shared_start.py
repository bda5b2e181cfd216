"""What the runs of a prompt have in common before the first token in which its two sides differ.

1. Under interchange, positions before that token are the same in every run that mixes values of both sides.
2. What the layers keep of them is computed once: keys and values, or what a convolution has last read and the state.
3. A run then begins after them, and reads back at what was kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.config import MAMBAS, ModelConfig
from interp.hooked.model import HookedModel
from interp.hooked.past import PastKeyValues
from interp.metrics import Metric, where_read
from interp.models.block import key_site
from interp.prompts.pairs import PromptPairs
from interp.sweeps.machine import packs


@dataclass(frozen=True, eq=False)
class SharedStart:
    """The start that all runs of some prompts share.

    Attributes:
        first: the position after it; 0 where nothing is shared.
        kept: what every layer keeps of it: keys and values [prompt, pos, kv_head, d_head], or what a convolution has
            last read and the state; None in a layer without a mixer.
    """

    first: int = 0
    kept: tuple[tuple[Tensor, Tensor] | None, ...] = ()

    def past(self, cfg: ModelConfig, prompt: Tensor | slice = slice(None)) -> PastKeyValues | None:
        """What a forward of rows of these prompts [row] goes on from; None where nothing is shared."""
        if not self.first:
            return None
        past = PastKeyValues(cfg.n_layers)
        for layer, pair in enumerate(self.kept):
            if pair is None:
                continue
            one, other = (value[prompt] for value in pair)
            if cfg.mixer(layer) == "attn":
                past.extend(layer, one, other)
            else:
                past.store_state(layer, one, other, self.first)
        return past


@torch.no_grad()
def shared_start(model: HookedModel, pairs: PromptPairs, metric: Metric, side: str) -> SharedStart:
    """The start that both sides of every pair share, and that the metric does not read.

    Nothing is shared where the layers are not ours to enter, or somebody's hooks watch them; where later positions are
    looked at; and where keys are turned by the length of the whole prompt, so that the start alone has others.
    """
    cfg = model.cfg
    looks_back = cfg.causal and not cfg.turns_by_length and (cfg.has_attention or cfg.has_mamba)
    if not packs(model) or not looks_back:
        return SharedStart()
    differs = ((pairs.clean != pairs.corrupt) & pairs.mask).any(0).nonzero()
    first = int(differs[0]) if len(differs) else pairs.mask.shape[1]
    first = min(first, int(where_read(metric, pairs).min()))
    return SharedStart(first, tuple(_kept(model, getattr(pairs, side)[:, :first]))) if first else SharedStart()


def _kept(model: HookedModel, tokens: Tensor) -> list[tuple[Tensor, Tensor] | None]:
    """What every layer keeps of the first positions, as `SharedStart.kept` has it."""
    cfg, past = model.cfg, PastKeyValues(model.cfg.n_layers)
    names = [name for layer in cfg.layers_with("attn") for name in _keys_values(cfg, layer)]
    keep = past if cfg.has_mamba else None
    _, cache = model.run_with_cache(tokens, names_filter=names, return_type=None, past_kv_cache=keep)
    found: list[tuple[Tensor, Tensor] | None] = []
    for layer in range(cfg.n_layers):
        tail, state = past.stored_state(layer) if cfg.mixer(layer) in MAMBAS else (None, None)
        kept = None if tail is None or state is None else (tail, state)
        if cfg.mixer(layer) == "attn":
            key, value = _keys_values(cfg, layer)
            kept = cache[key], cache[value]
        found.append(kept)
    return found


def _keys_values(cfg: ModelConfig, layer: int) -> tuple[str, str]:
    """The sites of a layer's keys, as its scores compare them, and of its values."""
    return key_site(cfg, layer), f"blocks.{layer}.attn.hook_v"
