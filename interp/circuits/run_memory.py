"""How many prompts and circuits run together: what fits into memory and is no slower."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from interp.circuits.graph import Graph
from interp.errors import ConfigError
from interp.hooked.model import HookedModel
from interp.metrics import Metric
from interp.prompts.pairs import PromptPairs

MOST_TOKENS = 2048  # positions of all rows of a batch; more are not faster
COPIES = 5  # of the residual stream for every reader: repeated, changed, normalised, and what the kernels need
CHANNELS = 12  # numbers that a state-space layer holds at a time, for each of its channels


def _row_bytes(model: HookedModel, metric: Metric, width: int, n_senders: int) -> int:
    """Bytes of one circuit on one prompt, with so many senders that some edge reads."""
    cfg = model.cfg
    neurons = max(map(cfg.neurons_in, range(cfg.n_layers)), default=0)
    readers = COPIES * (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.d_model + 4 * neurons + 8 * cfg.d_model
    readers += CHANNELS * (cfg.d_inner or 0)
    logits = 4 * cfg.d_vocab_out * (width if metric.whole and metric.positions is None else 1)
    return 4 * width * (readers + n_senders * cfg.d_model) + 4 * logits * (metric.tokens is None)


def prompt_blocks(model: HookedModel, graph: Graph, pairs: PromptPairs, metric: Metric, budget: int) -> Iterator[range]:
    """Prompts whose common values, and one circuit on all of them, take half of the memory each."""
    width = pairs.mask.shape[1]
    stages = len({node.stage for node in graph.receivers})
    common = 8 * (stages + len(graph.sender_sites)) * width * model.cfg.d_model
    row = _row_bytes(model, metric, width, len(graph.senders))
    size = min(budget // (2 * max(common, row)), len(pairs), max(1, MOST_TOKENS // width))
    if size < 1:
        raise ConfigError(
            f"max_memory={budget:,} bytes is too little: one circuit on one prompt of {width} tokens needs about "
            f"{2 * max(common, row):,}"
        )
    yield from (range(start, min(start + size, len(pairs))) for start in range(0, len(pairs), size))


def circuit_chunks(
    model: HookedModel, masks: Tensor, order: Tensor, n_prompts: int, width: int, metric: Metric, budget: int
) -> Iterator[Tensor]:
    """Circuits, small ones first, that are run together."""
    members: list[int] = []
    union = torch.zeros(masks.shape[1], dtype=torch.bool)
    for circuit in order.tolist():
        grown = union | masks[circuit].any(1)
        rows = (len(members) + 1) * n_prompts
        size = rows * _row_bytes(model, metric, width, int(grown.sum()))
        if members and (size > budget // 2 or rows * width > MOST_TOKENS):
            yield torch.tensor(members)
            members, grown = [], masks[circuit].any(1)
        members.append(circuit)
        union = grown
    if members:
        yield torch.tensor(members)
