"""Parts of prompts whose graphs fit into memory, and putting their results together again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from interp.arguments import byte_budget
from interp.config import MAMBAS, ModelConfig
from interp.encoder_decoder.model import EncoderDecoder
from interp.hooked.model import HookedModel
from interp.prompts.pairs import PromptPairs
from interp.sites import Site, axis_sizes

MOST_MEMORY = 2**30  # bytes of one graph by default
# Numbers that a graph keeps for every position of a layer, in units of its sizes: the widths of the residual stream, of
# the MLP, of all heads and of all channels of a state-space layer; and in the layers of a site that is formed on demand
# also those of split inputs, of scores and patterns, of states, and of all experts.
KEPT = {"d_model": 14, "d_mlp": 7, "heads": 7, "channels": 24, "inputs": 5, "grids": 5, "states": 5}


def batches(
    model: HookedModel, pairs: PromptPairs, names: Iterable[str], *, max_memory: int | None = None
) -> Iterator[tuple[slice, PromptPairs]]:
    """The prompts in parts whose graphs fit into memory; what a part needs no padding for is cut off.

    Args:
        names: the sites at which gradients are taken, which makes some of them cost more.
        max_memory: bytes, as in `gradients`; a single prompt is run whatever it takes.

    Raises:
        ConfigError: `max_memory` is not a positive number.
    """
    max_memory = byte_budget(max_memory)
    sites = [model.hook_dict[name].site for name in names]
    if isinstance(model, EncoderDecoder):
        encoder = pairs if pairs.encoder is None else pairs.encoder
        stacks = [(model.cfg.encoder, "encoder", encoder), (model.cfg.decoder, "decoder", pairs)]
    else:
        stacks = [(model.cfg, "", pairs)]
    numbers = 0
    for cfg, stack, own in stacks:
        width = own.mask.shape[1]
        numbers += _numbers_kept(cfg, [site for site in sites if site.stack == stack], width) * width
    each = numbers * model.dtype.itemsize
    size = max(1, (MOST_MEMORY if max_memory is None else max_memory) // each)
    for first in range(0, len(pairs), size):
        at = slice(first, min(first + size, len(pairs)))
        yield at, pairs[at]


def _numbers_kept(cfg: ModelConfig, sites: Iterable[Site], width: int) -> int:
    """How many numbers a graph keeps for every position of prompts of this length."""
    sizes = axis_sizes(cfg)
    numbers = 3 * cfg.d_vocab_out
    mixers = {"attn": KEPT["heads"] * cfg.n_heads * cfg.d_head}
    mixers |= dict.fromkeys(MAMBAS, KEPT["channels"] * (cfg.d_inner or 0))
    for layer in range(cfg.n_layers):
        mixed = sum(mixers[mixer] for mixer in cfg.mixers_in(layer)) * (1 + cfg.cross_attention)
        numbers += KEPT["d_model"] * cfg.d_model * (3 if cfg.shares(layer) else 1) + mixed
        numbers += KEPT["d_mlp"] * cfg.neurons_in(layer)
    for site in sites:
        if "query" in site.axes:
            each = KEPT["grids"] + (sizes["d_state"] if "channel" in site.axes else 0)
            numbers += each * sizes[site.axes[1]] * width
        elif "d_state" in site.axes and site.on_demand:
            numbers += KEPT["states"] * sizes["channel"] * sizes["d_state"]
        elif site.short.startswith("expert_"):
            numbers += KEPT["inputs"] * (3 * sizes["d_expert"] + cfg.d_model) * sizes["expert"]
        elif site.on_demand:
            heads = next((sizes[axis] for axis in ("head", "kv_head") if axis in site.axes), 1)
            numbers += KEPT["inputs"] * cfg.d_model * heads
    return numbers


def cut(value: Tensor, at: slice, part: PromptPairs, site: Site) -> Tensor:
    """The rows of some prompts of a site's value, without the positions that `batches` has cut off."""
    rows, keys = (slice(mask.shape[1]) for mask in part.masks(site))
    kept = {"batch": at, "pos": rows, "query": rows, "key": keys}
    return value[tuple(kept.get(axis, slice(None)) for axis in site.axes)]


def joined_parts(parts: list[Tensor], site: Site, pairs: PromptPairs) -> Tensor:
    """The values of all prompts from those of parts of them, with 0 at padding."""
    rows, keys = pairs.masks(site)
    masks = {"pos": rows, "query": rows, "key": keys}
    axes = {at: masks[axis] for at, axis in enumerate(site.axes) if axis in masks}
    shape = [axes[at].shape[1] if at in axes else size for at, size in enumerate(parts[0].shape)]
    whole = parts[0].new_zeros([len(pairs), *shape[1:]])
    first = 0
    for part in parts:
        whole[first : first + len(part)][tuple(slice(size) for size in part.shape)] = part
        first += len(part)
    for at, mask in axes.items():
        shape = [len(pairs), *(mask.shape[1] if axis == at else 1 for axis in range(1, whole.ndim))]
        padding = ~mask.reshape(shape)
        whole = whole.masked_fill(padding, 0)
    return whole
