"""How positions act in a model, from its own parameters.

A table of rows that are added (learned or sinusoidal), an angle by which queries and keys are turned, a number that is
taken from scores with distance, or nothing at all.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from interp.forward.forward_context import Context, make_context
from interp.forward.rotary import pair_axis
from interp.models.gpt import GPT
from interp.ui.walk.drawn import Item, Piece, lines, number, step, vectors
from interp.ui.walk.run import Run

TITLE = "Where the token stands"
FURTHEST = 64  # distances that are drawn, at least


def position(run: Run, head: int) -> dict[str, Any]:
    """The step of the walk that says how this layer knows the order of tokens."""
    kind = run.cfg.positional_embedding_type
    if run.has("hook_pos_embed"):
        return _added(run)
    if not run.cfg.attends(run.layer):
        recurs = run.cfg.mixer(run.layer) is not None
        why = (
            "it reads the tokens one after another, and what came earlier has faded more"
            if recurs
            else "it has no mixer, and works on each position by itself"
        )
        return step("position", TITLE, [f"Layer {run.layer} needs no positions: {why}."])
    if kind == "rotary" and run.cfg.attention_kind(run.layer).rotary_base is not None:
        return _turned(run, head)
    if kind == "alibi":
        return _lowered(run, head)
    text = (
        f"Layer {run.layer} of this model is told nothing about positions. What it knows of order comes from the mask: "
        "a token sees the tokens before it and none after it."
    )
    return step("position", TITLE, [text])


def _window(run: Run) -> list[Piece]:
    window = run.cfg.attention_kind(run.layer).window
    return [] if window is None else [f" In this layer a token sees the last {window:,} positions only."]


def _added(run: Run) -> dict[str, Any]:
    """A row for each position, learned or of sines and cosines, is added to the token's."""
    row = run.at("hook_pos_embed")
    fixed = run.cfg.positional_embedding_type == "sinusoidal"
    made = "is computed from sines and cosines of many wavelengths" if fixed else "was learned, like the embedding"
    text: list[Piece] = [
        f"Position {run.position} has a row of {len(row):,} numbers of its own, which is added to the token’s row. It "
        f"{made}. Below: how alike the row of this position and those of others are (1 is the same direction)."
    ]
    return step("position", TITLE, text, vectors([(f"row {run.position} of the positions", row)]), _alike(run, row))


def _alike(run: Run, row: Tensor) -> Item:
    model, n_rows = run.model, max(run.n, FURTHEST)
    there = model.W_pos[:n_rows] if isinstance(model, GPT) else run.every("hook_pos_embed")  # [pos, d_model]
    alike = torch.cosine_similarity(there.float(), row.float()[None], dim=-1)  # [pos]
    return lines("likeness to the row of", "position", [("", alike)], chosen=0, mark=run.position)


def _turned(run: Run, head: int) -> dict[str, Any]:
    """Pairs of the numbers of queries and keys are turned, by an angle that grows with the position."""
    cfg = run.cfg
    context = _context(run, run.n if cfg.turns_by_length else max(run.n, 2))
    angles = _angles(run, context)  # [pos, pair]
    here, half = angles[run.position], len(angles[0])
    pairs = [(2 * at, 2 * at + 1) if pair_axis(cfg) == -1 else (at, at + half) for at in range(half)]
    steps = angles[1 if len(angles) > 1 else 0].tolist()  # by which each pair is turned from one position to the next
    periods = [2 * math.pi / one if one > 0 else None for one in steps]
    dials = {"kind": "dials", "angles": here.tolist(), "periods": periods, "pairs": pairs}
    text: list[Piece] = [
        f"Nothing is added to the stream. In each layer the numbers of a query and of a key are taken in {half} pairs, "
        f"and each pair is turned, as a hand on a dial, by an angle that grows with the position: at position "
        f"{run.position} by those below.",
    ]
    if (fastest := periods[0]) and (slowest := periods[-1]):
        text += [
            " The first pair turns once in ",
            number(fastest),
            " positions, the last once in ",
            number(slowest),
            ".",
        ]
    text.append(" Turned both, query and key fit as before when both move on together: their distance alone counts.")
    if cfg.rotary_dim is not None and cfg.rotary_dim < cfg.d_head:
        text.append(f" The other {cfg.d_head - cfg.rotary_dim} of the {cfg.d_head} numbers of a head are not turned.")
    return step("position", TITLE, [*text, *_window(run)], dials, _by_distance(run, head))


def _context(run: Run, n_pos: int, dtype: torch.dtype = torch.float32) -> Context:
    return make_context(run.cfg, min(n_pos, run.cfg.n_ctx), device=run.model.device, dtype=dtype)


def _angles(run: Run, context: Context) -> Tensor:
    """By how much each pair is turned at each position, up to whole turns.  # [pos, pair]"""
    sight, axis = context.sights[run.cfg.attention_kind(run.layer)], pair_axis(run.cfg)
    assert sight.cos is not None and sight.sin is not None
    cos, sin = sight.cos[0, :, 0].squeeze(axis), sight.sin[0, :, 0].select(axis, 1)
    return torch.atan2(sin, cos) % (2 * math.pi)


def _by_distance(run: Run, head: int) -> Item | None:
    """What the score of this query and the key it likes best would be at other distances."""
    attn = None if run.block is None else run.block.attn
    if attn is None or run.cfg.attn_scale is None:
        return None
    group = run.cfg.n_heads // run.cfg.n_kv_heads
    best = int(run.every("attn.hook_pattern")[head, run.position].argmax())
    n_pos = run.n if run.cfg.turns_by_length else max(run.n, FURTHEST)
    context = _context(run, n_pos, run.model.dtype)
    n_pos = context.positions.shape[1]
    q = run.at("attn.hook_q").expand(1, n_pos, -1, -1)  # [batch, pos, head, d_head]
    k = run.every("attn.hook_k")[best].expand(1, n_pos, -1, -1)
    q, k = attn.turn(q, k, context.sights[attn.kind])
    scores = (q[0, :, head] @ k[0, 0, head // group]).float() / run.cfg.attn_scale  # key at 0, query at each distance
    key = f"“{run.labels[best]}” (position {best})"
    what = f"the score of this query with the key of {key}, if they stood further apart or nearer"
    return lines(what, "distance", [("", scores)], chosen=0, mark=run.position - best)


def _lowered(run: Run, head: int) -> dict[str, Any]:
    """Every head takes a number from its scores that grows with the distance, each with a slope of its own."""
    sight = _context(run, max(run.n, 2)).sights[run.cfg.attention_kind(run.layer)]
    assert sight.bias is not None
    bias = sight.bias[0, :, run.position, : run.position + 1].flip(-1)  # [head, distance]
    if run.cfg.alibi_bfloat16:  # depends on the key's position; the same for all keys of a query is no difference
        bias = bias - bias[:, :1]
    text: list[Piece] = [
        "Nothing is added to the stream. Each head lowers its scores with distance (ALiBi), and each by a slope of its "
        f"own: head {head} by ",
        number(float(bias[head, 0] - bias[head, 1]) if bias.shape[1] > 1 else 0.0),
        " for each position. Heads with a steep slope look nearby, others far.",
    ]
    made = [(f"head {at}", row) for at, row in enumerate(bias)]
    return step("position", TITLE, [*text, *_window(run)], lines("added to the score", "distance", made, chosen=head))
