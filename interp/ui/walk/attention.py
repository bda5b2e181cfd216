"""The steps of attention: query, key and value of one head, scores, mask, softmax, and what the heads write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interp.forward.forward_context import make_context
from interp.models.block import key_site
from interp.ui.walk.drawn import Cell, Item, Piece, after, bars, number, size, step, table, triangles, vectors
from interp.ui.walk.run import Run

MOST_KEYS = 16  # rows of the table of a softmax; the others have one row together
LONGEST_TRIANGLE = 96  # positions of a matrix that is drawn

Step = dict[str, Any]


def written(run: Run) -> Tensor | None:
    """What each head writes at this position [head, d_model]; None where only the model could say it and does not."""
    z = run.at("attn.hook_z")
    if not run.cfg.shares(run.layer):
        return run.model.head_results(run.layer, z).float()
    attn = None if run.block is None else run.block.attn
    return None if attn is None else attn.head_results(z).float()


def steps(run: Run, head: int, norm: Step | None) -> list[Step]:
    """All steps of the attention of this layer, through one of its heads."""
    made = [] if norm is None else [norm]
    seen = _Seen(run, head)
    made.append(_projected(run, head, seen.key_head))
    if run.has(key_site(run.cfg, run.layer)) and run.has("attn.hook_attn_scores") and run.has("attn.hook_pattern"):
        made += [_scores(run, head, seen), _mask(run, head, seen), _softmax(run, head, seen)]
    return [*made, _mixed(run, head), *_heads(run, head)]


class _Seen:
    """The scores of one query of one head, and what they come from."""

    def __init__(self, run: Run, head: int) -> None:
        cfg, at = run.cfg, run.position
        self.group = cfg.n_heads // cfg.n_kv_heads
        self.key_head = head // self.group
        turned = "rot_" if run.has("attn.hook_rot_q") else ""
        self.q = run.every(f"attn.hook_{turned}q")[:, head].float()  # [pos, d_head]
        self.k = run.every(f"attn.hook_{turned}k")[:, self.key_head].float()
        self.products = self.q @ self.k.T  # [query, key], also of keys that come later
        self.scale = cfg.attn_scale or 1.0
        self.scaled = self.products / self.scale
        self.there = run.has("attn.hook_attn_scores")
        if self.there:
            self.scores = run.every("attn.hook_attn_scores")[head].float()  # [query, key], -inf where masked
            self.row = self.scores[at]
            self.pattern = run.every("attn.hook_pattern")[head].float()
            self.weights = self.pattern[at]
            self.best = int(self.weights.argmax())

    def bias(self, run: Run, head: int) -> Tensor | None:
        """What distance adds to the scores of this query [key]; None in models where it adds nothing."""
        if run.cfg.positional_embedding_type != "alibi":
            return None
        context = make_context(run.cfg, run.n, device=self.q.device, dtype=torch.float32)
        bias = context.sights[run.cfg.attention_kind(run.layer)].bias
        return None if bias is None else bias[0, head, run.position]


def _projected(run: Run, head: int, key_head: int) -> Step:
    cfg = run.cfg
    rows = [("query", run.at("attn.hook_q")[head])]
    rows += [(name, run.at(f"attn.hook_{name[0]}")[key_head]) for name in ("key", "value")]
    text: list[Piece] = [
        f"Head {head} makes three vectors of {cfg.d_head} numbers from what it reads at ", run.word(run.position),
        ": a query (what this token looks for), a key (what it can be found by) and a value (what it hands on when it "
        "is found).",
    ]  # fmt: skip
    group = cfg.n_heads // cfg.n_kv_heads
    if group > 1:
        first = key_head * group
        text.append(f" Heads {first} to {first + group - 1} share this key and this value.")
    if cfg.qk_norm is not None:
        text.append(" Queries and keys are then normalised, so that their lengths say nothing.")
    if cfg.clip_qkv is not None:
        text.append(f" Numbers beyond ±{cfg.clip_qkv:g} are cut off.")
    if run.has("attn.hook_rot_q"):
        rows += [
            ("query as compared", run.at("attn.hook_rot_q")[head]),
            ("key as compared", run.at("attn.hook_rot_k")[key_head]),
        ]
    return step("qkv", f"Query, key and value of head {head}", text, vectors(rows))


def _scores(run: Run, head: int, seen: _Seen) -> Step:
    q, k, best = seen.q[run.position], seen.k[seen.best], seen.best
    text: list[Piece] = [
        "How well does the query of ", run.word(run.position), " fit the key of ", run.word(best),
        ", where this head looks most? Multiply the two number by number and add up: ",
        number(seen.products[run.position, best]),
        ". Divided by ", number(seen.scale), " that is ", number(seen.scaled[run.position, best]), ".",
    ]  # fmt: skip
    cap, bias = run.cfg.attn_scores_soft_cap, seen.bias(run, head)
    if cap is not None:
        text.append(f" It is bounded by {cap:g} tanh(score / {cap:g}).")
    if bias is not None:
        text += [" Distance adds ", number(bias[best]), "."]
    text += [" The score is ", number(seen.row[best]), "."]
    rows = [("query", q), (f"key at {best}", k), ("their products", q * k)]
    return step("scores", "Scores", text, vectors(rows))


def _mask(run: Run, head: int, seen: _Seen) -> Step:
    later, window = run.n - 1 - run.position, run.cfg.attention_kind(run.layer).window
    text = (
        "No token may look at those after it, since it has to predict them: their scores are set to −∞. "
        f"At position {run.position} that hides {later} of {run.n} tokens."
    )
    if window is not None and run.position >= window:
        hidden = run.position + 1 - window
        text += f" This layer also hides those more than {window - 1:,} positions back, here {hidden:,}."
    drawn = None
    if run.n <= LONGEST_TRIANGLE:
        text += " Rows look, columns are looked at."
        made = [
            ("query · key, scaled", seen.scaled),
            ("score, masked", seen.scores),
            ("weight, after softmax", seen.pattern),
        ]
        drawn = triangles(made)
    return step("mask", "Mask", [text], drawn)


def _softmax(run: Run, head: int, seen: _Seen) -> Step:
    row, weights = seen.row, seen.weights
    sink = float(run.at("attn.hook_sinks")[head]) if run.has("attn.hook_sinks") else None
    largest = max(float(row.max()), float("-inf") if sink is None else sink)
    raised = (row - largest).exp()  # [key]
    total = float(raised.sum()) + (0.0 if sink is None else float(torch.tensor(sink - largest).exp()))
    visible = torch.isfinite(row).nonzero()[:, 0].tolist()
    kept = sorted(sorted(visible, key=lambda key: -float(weights[key]))[:MOST_KEYS])
    rows: list[Sequence[Cell]] = [
        [run.word(key), float(row[key]), float(raised[key]), {"share": float(weights[key])}] for key in kept
    ]
    if len(visible) > len(kept):
        others = [key for key in visible if key not in set(kept)]
        rest = {"share": float(weights[others].sum())}
        rows.append([f"the other {len(others):,} keys", None, float(raised[others].sum()), rest])
    if sink is not None:
        away = {"share": float(torch.tensor(sink - largest).exp()) / total}
        rows.append(["nowhere (the sink)", sink, float(torch.tensor(sink - largest).exp()), away])
    best = seen.best
    text: list[Piece] = [
        "Scores become weights that add up to 1: e to the power of each (less the largest, ", number(largest),
        ", which changes no weight), divided by their sum, ", number(total), ". For ", run.word(best), ": ",
        number(raised[best]), " / ", number(total), " = ", number(raised[best] / total), ".",
    ]  # fmt: skip
    heads = ["looks at", "score", "e^(score − largest)", "weight"]
    return step(
        "softmax", "Softmax", text, table(f"The weights of head {head} at position {run.position}", heads, rows)
    )


def _mixed(run: Run, head: int) -> Step:
    z, group = run.at("attn.hook_z")[head], run.cfg.n_heads // run.cfg.n_kv_heads
    text: list[Piece] = ["The head adds up the values of the tokens that it looks at, each times its weight"]
    rows = [("values, mixed", z)]
    if run.has("attn.hook_pattern"):
        weights = run.every("attn.hook_pattern")[head, run.position].float()
        best = weights.topk(min(3, len(weights))).indices.tolist()
        values = run.every("attn.hook_v")[:, head // group].float()  # [key, d_head]
        rows = [(f"{float(weights[at]):.2f} × value at {at}", weights[at] * values[at]) for at in best] + rows
        text.append("; the largest three are drawn" if len(weights) > 3 else "")
    return step("z", "Values, mixed by the weights", [*text, "."], vectors(rows))


def _heads(run: Run, head: int) -> list[Step]:
    writes = written(run)
    if writes is None:
        return []
    own = writes[head]
    shared = run.cfg.shares(run.layer)
    where = "to the input of the layer’s mixer, not to the stream" if shared else "to the residual stream"
    text: list[Piece] = [
        f"A matrix turns the mixed values of head {head} into {len(own):,} numbers, which it adds {where}: a vector of "
        "length ", size(own), ". All heads of the layer do so at once.",
    ]  # fmt: skip
    told: Item | None = None
    if run.can_promote and not shared:
        told = after(run.promotes(own), f"Read off directly, head {head} speaks")
    lengths = bars("length of what each head writes", [f"head {at}" for at in range(len(writes))], writes.norm(dim=-1),
                   chosen=head, chooses="unit")  # fmt: skip
    rows = vectors([(f"head {head} writes", own)])
    return [step("write", f"What head {head} writes", text, rows, told, lengths)]
