"""A prompt's way through a model, step by step, with the run's numbers: tokens, embedding, one layer, the output.

1. The place that is looked at: a position, a layer, and a head (a channel, or a head of Mamba-2) of it; what is not
   given is the last position, the first layer, and the head that writes most.
2. One forward (`Run`), and of it the steps, each a heading, a few sentences and drawings. A step is there if the layer
   computes it: the sites of the model decide (`interp.sites`), not its family.
3. What vectors say in words is read off the unembedding at the end.

What it teaches follows "Transformer Explainer" (Cho et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interp.arguments import whole_number
from interp.errors import PromptError, UnknownName
from interp.hooked.model import HookedModel
from interp.sites import stream_after, stream_between
from interp.ui.views.view import Part
from interp.ui.walk import attention, mlp, positions, state_space
from interp.ui.walk.drawn import Cell, Piece, after, number, size, step, table, vectors
from interp.ui.walk.run import Run

LIKELIEST = 10  # next tokens in the table of the last step
WORDS = {"attn": "head", "mamba": "channel", "mamba2": "head"}

Step = dict[str, Any]


@torch.no_grad()
def walk(
    model: HookedModel,
    tokens: Tensor,
    *,
    labels: Sequence[str],
    position: int | None = None,
    layer: int = 0,
    unit: int | None = None,
) -> Part:
    """The steps of a prompt through a model at one place.

    Args:
        model: a model that predicts the next token.
        tokens: one prompt [pos], without padding.
        labels: its tokens as text.
        position: of the prompt; None is the last.
        layer: of the model.
        unit: a head of the layer, a channel of Mamba-1, or a head of Mamba-2; None is the one that writes most.

    Raises:
        PromptError: a position that the prompt does not have.
        UnknownName: a layer or a head that the model does not have.
    """
    # 1. The place.
    cfg = model.cfg
    if not cfg.n_layers:
        raise UnknownName("a walk goes through a layer, and this model has none")
    last = len(tokens) - 1
    position = last if position is None else whole_number("position", position, least=0, most=last, refuse=PromptError)
    layer = whole_number("layer", layer, least=0, most=cfg.n_layers - 1, refuse=UnknownName)
    # 2. The run and its steps.
    run = Run(model, tokens, list(labels), position, layer)
    units = _units(run)
    unit = _chosen(run, units, unit)
    made = [_tokens(run), _embedding(run), positions.position(run, unit), _enters(run)]
    made += [*_layer(run, unit), _leaves(run)]
    final = _final(run)
    # 3. Words.
    logits = run.speak()
    made += [*final, _next(run, logits), _choice(run, logits)]
    payload = {
        "tokens": run.labels,
        "ids": run.ids,
        "place": {"position": position, "layer": layer, "unit": unit},
        "layers": [cfg.layer_type(at) for at in range(cfg.n_layers)],
        "units": units,
        "unit_word": WORDS.get(_followed(run) or "", ""),
        "steps": made,
        "facts": _facts(run),
    }
    return Part("walk", "The prompt’s way through the model", payload)


def _followed(run: Run) -> str | None:
    """What mixes positions in this layer, and is followed through one of its heads or channels."""
    mixers = run.cfg.mixers_in(run.layer)
    return mixers[0] if mixers else None


def _units(run: Run) -> int:
    kind = _followed(run)
    if kind is None:
        return 0
    site = "attn.hook_z" if kind == "attn" else "mixer.hook_gated"
    return int(run.at(site).shape[0]) if run.has(site) else 0


def _chosen(run: Run, units: int, unit: int | None) -> int:
    """The head or channel that is followed: the given one, or the one that writes most."""
    if units == 0:
        return 0
    if unit is not None:
        return whole_number(WORDS[_followed(run) or "attn"], unit, least=0, most=units - 1, refuse=UnknownName)
    return _strongest(run, "attn" if _followed(run) == "attn" else "mixer")


def _strongest(run: Run, part: str) -> int:
    writes = attention.written(run) if part == "attn" else state_space.written(run)
    return 0 if writes is None else int(writes.norm(dim=-1).argmax())


def _tokens(run: Run) -> Step:
    text: list[Piece] = [
        f"A model reads no letters. The prompt is cut into {run.n:,} tokens, and each is known by its number (id) in a "
        f"vocabulary of {run.cfg.d_vocab:,}. ", run.word(run.position),
        f" is token {run.position} of {run.n:,} (counted from 0) and has id {run.ids[run.position]:,}.",
    ]  # fmt: skip
    return step("tokens", "Tokens", text, {"kind": "tokens"})


def _embedding(run: Run) -> Step:
    row, scale = run.at("hook_embed"), run.cfg.embed_scale
    more = f", times {scale:g}" if scale != 1.0 else ""
    more += ", normalised" if run.has("embed.ln.hook_scale") else ""
    text: list[Piece] = [
        f"The id picks a row of a table: {len(row):,} numbers that were learned for this token{more}. Tokens that are "
        "used alike have rows that are alike. From here on, ", run.word(run.position), " is this vector.",
    ]  # fmt: skip
    return step("embedding", "Embedding", text, vectors([(f"row {run.ids[run.position]:,}", row)]))


def _enters(run: Run) -> Step:
    stream = run.at("hook_resid_pre")
    what = "the embedding, with the position" if run.has("hook_pos_embed") else "the embedding"
    came = what if run.layer == 0 else f"{what} and all that {run.layer} layer{'s' * (run.layer > 1)} added"
    text: list[Piece] = [
        f"The residual stream carries each token’s vector through all {run.cfg.n_layers} layers; each reads it and "
        f"adds to it. What enters layer {run.layer} at ", run.word(run.position), f" is {came}. Its length is ",
        size(stream), ".",
    ]  # fmt: skip
    told = after(run.would_say(stream), "If the model stopped here, it would say")
    return step("stream", f"Into layer {run.layer}", text, vectors([("residual stream", stream)]), told)


def _layer(run: Run, unit: int) -> list[Step]:
    """What the layer does, in the order in which it does it."""
    made: list[Step] = []
    kinds = run.cfg.mixers_in(run.layer)
    shares = run.cfg.shares(run.layer)
    if "attn" in kinds and run.has("attn.hook_z"):
        made += attention.steps(run, unit, _norm(run, "ln1", "the heads read"))
    if shares:
        made += mlp.steps(run)
    if kinds and kinds[-1] != "attn" and run.has("mixer.hook_gated"):
        own = unit if not shares else _strongest(run, "mixer")
        made += state_space.steps(run, own, _norm(run, "ln_mixer" if shares else "ln1", "the mixer reads"))
    if shares or not run.cfg.mlp_in(run.layer):
        return made
    if kinds and run.has(_between(run)):
        made.append(_added(run))
    norm = _norm(run, "ln2", "the MLP reads")
    return [*made, *([] if norm is None else [norm | {"key": "norm2"}]), *mlp.steps(run)]


def _between(run: Run) -> str:
    return stream_between(run.cfg, run.layer)


def _norm(run: Run, name: str, reads: str) -> Step | None:
    """A norm between the stream and a part that reads it; None where there is none."""
    if not run.has(f"{name}.hook_normalized") or run.cfg.norms_on_stream:
        return None
    scale = run.at(f"{name}.hook_scale")
    what = "their standard deviation, once their mean is taken away" if run.cfg.centers else "their root mean square"
    text: list[Piece] = [
        f"Before {reads} the stream, its numbers are divided by {what}, ", number(scale[0]),
        ": so their size does not matter, only their direction.",
    ]  # fmt: skip
    if run.cfg.has_norm_weights:
        text.append(" Then each is multiplied by a learned weight.")
    rows = vectors([("normalised", run.at(f"{name}.hook_normalized"))])
    return step("norm", "Norm", text, rows)


def _added(run: Run) -> Step:
    """The stream between the mixer and the MLP."""
    site = "hook_attn_out" if run.has("hook_attn_out") else "mixer.hook_out"
    before, added, stream = run.at("hook_resid_pre"), run.at(site), run.at(_between(run))
    who = "attention" if site == "hook_attn_out" else "mixer"
    text: list[Piece] = [f"The {who} adds a vector of length ", size(added), " to one of ", size(before)]
    if run.has("ln1_post.hook_scale"):
        text.append(", which was normalised before it was added")
    if run.cfg.norms_on_stream:
        text.append(", and the sum is normalised")
    text += [": the stream is now of length ", size(stream), "."]
    told = after(run.would_say(stream), "If the model stopped here, it would say")
    rows = vectors([("added", added), ("residual stream", stream)])
    return step("mid", f"After the {who}", text, rows, told)


def _leaves(run: Run) -> Step:
    stream, before = run.at(stream_after(run.cfg, run.layer)), run.at("hook_resid_pre")
    text: list[Piece] = [
        f"What leaves layer {run.layer} is what entered it (length ", size(before), ") with all that the layer added: "
        "length ", size(stream), ".",
    ]  # fmt: skip
    if run.cfg.parallel_attn_mlp and run.cfg.mixer(run.layer) is not None and run.cfg.mlp_in(run.layer):
        text.append(" Attention and MLP read the same stream here, side by side.")
    left = run.cfg.n_layers - 1 - run.layer
    text.append(
        f" {left} more layer{'s'[: left != 1]} follow{'s'[: left == 1]}." if left else " It was the last layer."
    )
    told = after(run.would_say(stream), "If the model stopped here, it would say")
    return step("after", f"Out of layer {run.layer}", text, vectors([("residual stream", stream)]), told)


def _final(run: Run) -> list[Step]:
    if not run.has("ln_final.hook_normalized"):
        return []
    text: list[Piece] = [
        f"After all {run.cfg.n_layers} layers the stream is normalised once more: its numbers are divided by ",
        number(run.at("ln_final.hook_scale")[0]), ".",
    ]  # fmt: skip
    return [step("final", "Final norm", text, vectors([("normalised", run.at("ln_final.hook_normalized"))]))]


def _next(run: Run, logits: Tensor) -> Step:
    best = logits.topk(min(LIKELIEST, len(logits)))
    largest, shares = float(best.values[0]), logits.softmax(-1)
    total = float((logits - largest).exp().sum())
    rows: list[Sequence[Cell]] = [
        [{"token": run.text(token), "id": token}, value, float(torch.tensor(value - largest).exp()),
         {"share": float(shares[token])}]
        for token, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]  # fmt: skip
    first = run.text(int(best.indices[0]))
    text: list[Piece] = [
        f"The stream is compared with a vector for each of {len(logits):,} tokens: the better the fit, the higher its "
        "score (logit). Softmax makes probabilities of them, as with attention. After ", run.word(run.position),
        " the likeliest is ", {"token": first}, " with 1 / ", number(total), " = ", number(shares.max()), ".",
    ]  # fmt: skip
    if run.cfg.output_logits_soft_cap is not None:
        text.append(f" Logits are bounded by {run.cfg.output_logits_soft_cap:g} tanh(logit / cap).")
    if run.position < run.n - 1:
        follows = run.ids[run.position + 1]
        text += [" In the prompt there follows ", run.word(run.position + 1)]
        text += [", with probability ", number(shares[follows]), "."] if follows < len(shares) else ["."]
    heads = ["token", "logit", "e^(logit − largest)", "probability"]
    return step("logits", "Logits and probabilities", text, table("The likeliest next tokens", heads, rows))


def _choice(run: Run, logits: Tensor) -> Step:
    shares = logits.softmax(-1).sort(descending=True).values
    within = int((shares.cumsum(0) < 0.9).sum()) + 1
    text: list[Piece] = [
        "One token is drawn, each as often as its probability says, and put at the end of the prompt; then all begins "
        "again. A temperature below 1 makes likely tokens likelier. Top-k keeps the k likeliest, top-p as many as hold "
        f"p of the probability: here {within:,} hold 0.9.",
    ]  # fmt: skip
    return step("choice", "Choose a token", text, {"kind": "choice"})


def _facts(run: Run) -> dict[str, Any]:
    """What the guided tour says of this model and prompt."""
    cfg = run.cfg
    return {
        "model": cfg.model_name or "this model",
        "n": run.n,
        "d_model": cfg.d_model,
        "vocabulary": cfg.d_vocab,
        "layers": cfg.n_layers,
        "heads": cfg.n_heads if cfg.has_attention else 0,
        "d_head": cfg.d_head,
        "mixers": [mixer for mixer in ("attn", "mamba", "mamba2") if mixer in cfg.mixers],
        "mixer": _followed(run),
        "positions": cfg.positional_embedding_type,
        "experts": 0 if cfg.experts is None else cfg.experts.n_experts,
        "neurons": cfg.neurons_in(run.layer),
        "state": cfg.d_state or 0,
    }
