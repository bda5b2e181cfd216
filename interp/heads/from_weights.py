"""What a head does, judged from its weights alone: no prompt is run.

1. Tokens enter as rows of the embedding. For heads of later layers, the output of the first layer's MLP is added to
   them, because it turns embeddings into what those layers expect (`effective=True`). Each layer's norm is applied.
2. Previous-token heads: the pattern of a head when every position holds the average token, so that keys differ by their
   positions alone. From these heads follows what a position holds of the token before it.
3. Matching: whether a token's query prefers the key of the same token (duplicate-token heads), or the key of the
   position after it, by what previous-token heads wrote there (induction heads).
4. Writing: whether OV maps tokens to themselves (copying), or to the next one of an ordered list (successor heads).

Sources: Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits", on copying and on induction heads);
Wang et al. 2022 ("Interpretability in the Wild", on the copy score and the first MLP); Gould et al. 2023 ("Successor
Heads"); McDougall et al. 2023 ("Copy Suppression", on the effective embedding).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from einops import einsum
from torch import Tensor

from interp.errors import InterpError, PromptError
from interp.forward.forward_context import make_context
from interp.heads.qk_ov import TINY, each_head, folded, readable, unembedding, wide
from interp.hooked.decompositions import check_linear_output
from interp.hooked.model import HookedModel
from interp.models.gpt import GPT

MIN_LENGTH = 3


@torch.no_grad()
def previous_token(model: HookedModel, tokens: Tensor, *, length: int = 50, effective: bool = True) -> Tensor:
    """Attention to the previous position, from the third position on, when every position holds the average token.

    Learned and sinusoidal positions are read from the residual stream, where the embedding puts them; rotary ones and
    ALiBi act on the average query and key.

    Args:
        model: the model.
        tokens: ids [token] to average over.
        length: positions of the pattern.
        effective: let heads of later layers read embeddings to which the first MLP's output was added.

    Returns:
        [layer, head], 1 for a head that looks only at the previous position, `even_attention` for one that spreads its
        attention evenly.

    Raises:
        InterpError: a model without positions, or whose weights cannot be read here.
        PromptError: fewer than three positions, or more than the model has.
    """
    model = readable(model)
    cfg = model.cfg
    if cfg.positional_embedding_type == "none":
        raise InterpError(
            "this model has no positions, so that its weights alone do not tell the previous token from others; judge "
            "its heads by their patterns"
        )
    if not MIN_LENGTH <= length <= cfg.n_ctx:
        raise PromptError(f"length={length} must be from {MIN_LENGTH} to the model's context of {cfg.n_ctx}")
    resid = model.embed(tokens.to(model.device))[:, None]  # [token, 1, d_model]
    if model.pos_embed is not None:
        resid = resid + model.W_pos[:length].to(resid)  # [token, pos, d_model]
    scores = []
    for layer, x in _readings(model, resid, effective):
        attn = model.attention(layer)
        sight = make_context(cfg, length, device=model.device, dtype=x.dtype).sights[attn.kind]
        # The tokens of two positions are drawn independently: the mean score is that of the mean query and mean key.
        q, k = (
            (einsum(x.mean(0), wide(W), "pos d_model, head d_model d -> pos head d") + wide(b)).expand(length, -1, -1)
            for W, b in ((attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K))
        )
        pattern = attn.softmax(attn.scores(*attn.turn(q[None], k[None], sight), sight))[0]  # [head, query, key]
        scores.append(pattern.diagonal(-1, 1, 2)[:, 1:].mean(-1))
    return _by_layer(model, scores)


def even_attention(model: HookedModel, length: int) -> float:
    """What `previous_token` gives for a head that spreads its attention evenly over all allowed keys."""
    keys = [query + 1 if model.cfg.causal else length for query in range(2, length)]
    return sum(1 / n for n in keys) / len(keys)


@torch.no_grad()
def duplicate_token(model: HookedModel, tokens: Tensor, *, reach: int = 50, effective: bool = True) -> Tensor:
    """Whether a token's query prefers the key of the same token at an earlier position.

    Args:
        model: the model.
        tokens: different ids [token]; each token's query is compared with the keys of all.
        reach: rotary scores are averaged over distances from 1 to this; otherwise contents alone are compared.
        effective: as in `previous_token`.

    Returns:
        [layer, head] from -1 to 1: the mean `standing` of a token's own key among all keys, 0 by chance.

    Raises:
        InterpError: a model whose weights cannot be read here.
    """
    model = readable(model)
    scores = []
    for layer, x in _readings(model, model.embed(tokens.to(model.device)), effective):
        attn = model.attention(layer)
        keys = einsum(x, wide(attn.W_K), "token d_model, head d_model d -> token head d") + wide(attn.b_K)
        scores.append(_matching(model, layer, x, keys, reach))
    return _by_layer(model, scores)


@torch.no_grad()
def induction(
    model: HookedModel, tokens: Tensor, previous: Tensor, *, reach: int = 50, effective: bool = True
) -> Tensor:
    """Whether a token's query prefers the key of a position after the same token, by what earlier heads wrote there.

    What earlier heads write at a position about the previous one is the sum of their OV circuits, each times the head's
    attention to the previous position. The keys of a later head read that sum: composition through keys, the first half
    of the circuit of Elhage et al. 2021.

    Args:
        model, tokens, reach, effective: as in `duplicate_token`.
        previous: [layer, head], the result of `previous_token` minus `even_attention`; negative values count as 0.

    Returns:
        [layer, head] from -1 to 1, as `duplicate_token`; 0 in the first layer, which has no earlier head.

    Raises:
        InterpError: a model whose weights cannot be read here.
    """
    model = readable(model)
    embedded = model.embed(tokens.to(model.device))
    moved = torch.zeros_like(wide(embedded))  # what a position holds of the token before it [token, d_model]
    scores = []
    for layer, x in _readings(model, embedded, effective):
        attn = model.attention(layer)
        keys = einsum(moved, folded(model, layer, attn.W_K), "token d_model, head d_model d -> token head d")
        scores.append(_matching(model, layer, x, keys, reach))
        attention = previous[layer].to(moved).clamp(min=0)[:, None, None]
        values = x @ each_head(model, wide(attn.W_V)) * attention  # [head, token, d_head]
        moved = moved + (values @ wide(attn.W_O)).sum(0)
    return _by_layer(model, scores)


@torch.no_grad()
def copying(model: HookedModel, tokens: Tensor, *, targets: Tensor | None = None, effective: bool = True) -> Tensor:
    """How positive the eigenvalues of each OV circuit are, as a map from tokens to logits.

    Positive eigenvalues mean that a token raises its own logit, or that a group of tokens raise each other's. The mean
    over tokens is taken out of both sides first. The eigenvalues are those of a [d_head, d_head] matrix, which are the
    nonzero ones of the [token, token] map.

    Args:
        model: the model.
        tokens: ids [token], the vocabulary of the map.
        targets: ids [token] whose logits count instead of the tokens' own: shuffled ones are a control.
        effective: as in `previous_token`.

    Returns:
        [layer, head]: sum of the eigenvalues / sum of their magnitudes, from -1 to 1.

    Raises:
        InterpError: a model whose output vocabulary is not its input vocabulary, or whose weights cannot be read here.

    Source: Elhage et al. 2021, on detecting copying by eigenvalues.
    """
    model = readable(model)
    check_one_vocabulary(model)
    writes = unembedding(model, tokens if targets is None else targets)
    writes = writes - writes.mean(-1, keepdim=True)  # [d_model, token]
    scores = []
    for layer, x in _readings(model, model.embed(tokens.to(model.device)), effective):
        attn = model.attention(layer)
        small = wide(attn.W_O) @ (writes @ (x - x.mean(0))) @ each_head(model, wide(attn.W_V))
        eigenvalues = torch.linalg.eigvals(small)  # [head, d_head]
        scores.append(eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1).clamp(min=TINY))
    return _by_layer(model, scores)


@torch.no_grad()
def hits(
    model: HookedModel,
    tokens: Tensor,
    wanted: Tensor,
    *,
    among: Tensor | None = None,
    top: int = 1,
    effective: bool = True,
) -> Tensor:
    """The share of tokens for which each OV circuit raises the wanted token most.

    With `wanted` the tokens themselves this is Wang et al.'s copy score (`top=5`); with `wanted` the next words of an
    ordered list, among the list, it is Gould et al.'s successor score.

    Args:
        model: the model.
        tokens: ids [token].
        wanted: ids [token]: the token whose logit each of `tokens` should raise.
        among: ids of the competing tokens; None takes the whole vocabulary.
        top: how many of the highest logits count.
        effective: as in `previous_token`.

    Returns:
        [layer, head] from 0 to 1; `top` / (number of competing tokens) by chance.

    Raises:
        InterpError: as `copying`.
        PromptError: a wanted token that is not in `among`.
    """
    model = readable(model)
    check_one_vocabulary(model)
    rivals = torch.arange(model.cfg.d_vocab, device=model.device) if among is None else among.to(model.device)
    places = wanted.to(model.device)[:, None] == rivals  # [token, rival]
    if not bool(places.any(-1).all()):
        raise PromptError("a wanted token is not among those that compete: add it to `among`")
    place = places.int().argmax(-1)
    writes = unembedding(model, rivals)
    shares = []
    for layer, x in _readings(model, model.embed(tokens.to(model.device)), effective):
        attn = model.attention(layer)
        values = x @ each_head(model, wide(attn.W_V)) + each_head(model, wide(attn.b_V))[:, None]
        logits = values @ (wide(attn.W_O) @ writes)  # [head, token, rival]
        own = logits.gather(-1, place.expand(len(logits), -1)[..., None])
        shares.append(((logits >= own).sum(-1) <= top).float().mean(-1))
    return _by_layer(model, shares)


def successor(model: HookedModel, ordered: Tensor, *, effective: bool = True) -> Tensor:
    """`hits` on the next word, for the words of an ordered list: ids [token] -> [layer, head]."""
    return hits(model, ordered[:-1], ordered[1:], among=ordered, effective=effective)


def standing(values: Tensor, own: Tensor) -> Tensor:
    """How high values rank among others: the share that is lower minus the share that is higher.

    Args:
        values: [..., n], the values to rank among.
        own: [..., m], the values to rank, out of the same rows.

    Returns:
        [..., m] from -1 (the lowest) to 1 (the highest); 0 in the middle, or where all are equal.

    >>> standing(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([3.0, 2.0])).tolist()
    [1.0, 0.0]
    """
    ordered = values.sort(-1).values.contiguous()
    lower, upto = (torch.searchsorted(ordered, own.contiguous(), right=right) for right in (False, True))
    return (lower - (values.shape[-1] - upto)) / max(values.shape[-1] - 1, 1)


def check_one_vocabulary(model: HookedModel) -> None:
    """Refuse a model whose input tokens have no logits, or none that are linear in what a head writes.

    Raises:
        InterpError: its output vocabulary is not its input vocabulary, or it has a masked-token head.
    """
    cfg = model.cfg
    check_linear_output(cfg)
    if cfg.d_vocab_out != cfg.d_vocab:
        raise InterpError(
            f"this model reads a vocabulary of {cfg.d_vocab} tokens and answers with another one of {cfg.d_vocab_out}: "
            "copying and successor heads need a logit for every token that the model reads"
        )


def _readings(model: GPT, resid: Tensor, effective: bool) -> Iterator[tuple[int, Tensor]]:
    """Each layer, and what its heads read of embeddings [..., d_model]: after the norm, in float32 at least."""
    first = model.block(0) if effective and model.cfg.n_layers else None
    later = resid
    if first is not None and first.mlp is not None:
        later = resid + first.mlp_added(resid)
    for layer in range(model.cfg.n_layers):
        norm, x = model.norm_before(layer), later if layer else resid
        yield layer, wide(x if norm is None else norm.unhooked(x))


def _matching(model: GPT, layer: int, x: Tensor, keys: Tensor, reach: int) -> Tensor:
    """The mean standing of every token's own key [head]: x [token, d_model], keys [token, kv_head, d_head]."""
    attn = model.attention(layer)
    q = einsum(x, wide(attn.W_Q), "token d_model, head d_model d -> token head d") + wide(attn.b_Q)
    distances = min(reach, model.cfg.n_ctx - 1)
    sight = make_context(model.cfg, distances + 1, device=model.device, dtype=q.dtype).sights[attn.kind]
    if attn.q_norm is not None and attn.k_norm is not None:
        q, keys = attn.q_norm.unhooked(q), attn.k_norm.unhooked(keys)
    if sight.cos is not None and sight.sin is not None and distances:
        # A rotation is linear in its cosine and sine. So the mean over distances 1, 2, ... from a key at position 0 is
        # one rotation with the mean cosine and the mean sine.
        cos, sin = (table[:, 1:].mean(1, keepdim=True) for table in (sight.cos, sight.sin))
        q = attn.rotate(q[None], dataclasses.replace(sight, cos=cos, sin=sin))[0]
    scores = einsum(q, attn.to_query_heads(keys[None])[0], "query head d, key head d -> head query key")
    return standing(scores, scores.diagonal(0, 1, 2)[..., None])[..., 0].mean(-1)


def _by_layer(model: GPT, rows: Sequence[Tensor]) -> Tensor:
    """Scores of every head [layer, head], in float32 on the CPU."""
    return torch.stack(list(rows)).float().cpu() if rows else torch.zeros(0, model.cfg.n_heads)
