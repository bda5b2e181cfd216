"""How few floating-point operations can an exact sweep take, when nothing is computed that the base run has already?

It is counted from the definition of a transformer with causal attention, without a look at how our engine plans.

1. The base run is computed once, whole, and the source run from the first token on in which it differs; in the last
   layer both need queries, W_O and MLP only where the metric reads, at the last position.
2. A cell follows the set of positions whose residual stream is no longer the base run's. They need queries, keys and
   values; every position that sees a changed key mixes anew; W_O and MLP run where the mixed values or an edit
   changed them. In the last layer only the last position goes that far.
3. A row of a matrix product costs 2 x the weights that it meets; a query that sees k keys costs 2 x d_head x k a head
   for its scores and as much for mixing; the two answers cost a column of the unembedding each.

Norms, rotation, softmax and activation functions are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from interp import ModelConfig, PromptPairs, Variant

# Fused attention: torch's counter knows some of them, but not with fewer heads of keys than of queries.
FUSED = [
    f"_scaled_dot_product_{kernel}"
    for kernel in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
]

Places = tuple[int, str, frozenset[int]]  # layer, short site name, positions


def executed(run: Callable[[], Any]) -> int:
    """Operations that a call executes, in matrix products and attention."""

    def attention(query: Any, key: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        batch, heads, queries, d_head = query
        return 4 * batch * heads * queries * key[2] * d_head  # as without the causal mask

    formulas = {getattr(torch.ops.aten, name): attention for name in FUSED}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        run()
    return counter.get_total_flops()


def least(cfg: ModelConfig, pairs: PromptPairs, variants: Sequence[Variant], *, base: str, source: str) -> int:
    """Operations that a sweep needs at least.

    Args:
        cfg: of the model.
        pairs: the prompts.
        variants: of edits at `z` and `resid_pre`: one that sets, or any number that zero.
        base: the side that is edited.
        source: the side that is copied from.
    """
    total = 0
    for prompt, length in enumerate(pairs.lengths.tolist()):
        tokens = [getattr(pairs, side)[prompt, :length] for side in (base, source)]
        differ = torch.nonzero(tokens[0] != tokens[1])[:, 0].tolist()
        total += _forward(cfg, 0, length)
        if differ:
            total += _forward(cfg, differ[0], length)
        total += sum(_cell(cfg, _changes(variant, differ, length), length) for variant in variants)
    return total


def _forward(cfg: ModelConfig, first: int, length: int) -> int:
    """A run from its position `first` on."""
    return _cell(cfg, ((0, "resid_pre", frozenset(range(first, length))),), length)


def _changes(variant: Variant, differ: list[int], length: int) -> tuple[Places, ...]:
    """Where a variant's edits give values that are not the base run's."""
    found = []
    for edit in variant.edits:
        if edit.site not in ("z", "resid_pre") or edit.op not in ("set", "zero"):
            raise ValueError(f"{edit} is no edit that is counted here: z or resid_pre, set or zeroed")
        if edit.op == "set" and len(variant.edits) > 1:
            raise ValueError(f"a variant that sets is counted here with one edit, not {len(variant.edits)}")
        layer, pos = edit.where["layer"], edit.where.get("pos")
        edited = set(range(length)) if pos is None else {pos}
        if edit.op == "set" and edit.site == "resid_pre" and layer == 0:
            edited &= set(differ)  # nothing has been mixed yet
        elif edit.op == "set":
            edited &= set(range(differ[0], length)) if differ else set()
        found.append((layer, edit.site, frozenset(edited)))
    return tuple(found)


@cache
def _cell(cfg: ModelConfig, changes: tuple[Places, ...], length: int) -> int:
    """One variant on one prompt; equal costs, such as those of the heads of a layer, are counted once."""
    query = cfg.d_model * cfg.n_heads * cfg.d_head
    key_value = 2 * cfg.d_model * cfg.n_kv_heads * cfg.d_head
    out = query + (3 if cfg.gated_mlp else 2) * cfg.d_model * (cfg.d_mlp or 0)
    last, at = length - 1, {(layer, site): positions for layer, site, positions in changes}
    weights = mixed = 0
    changed: frozenset[int] = frozenset()
    for layer in range(cfg.n_layers):
        changed |= at.get((layer, "resid_pre"), frozenset())
        zeroed = at.get((layer, "z"), frozenset())
        reached = frozenset({last}) if layer == cfg.n_layers - 1 else frozenset(range(length))
        queries = frozenset(range(min(changed), length)) & reached if changed else frozenset()
        weights += key_value * len(changed) + query * len(changed & queries)
        mixed += sum(query_at + 1 for query_at in queries)
        changed = queries | (zeroed & reached)
        weights += out * len(changed)
    answers = 2 * cfg.d_model * (last in changed)
    return 2 * (weights + answers) + 4 * cfg.d_head * cfg.n_heads * mixed
