"""A head's two circuits, as products of narrow matrices: what it attends to, and what it writes of what it reads.

1. QK = W_Q W_K^T / scale gives a head's attention scores, OV = W_V W_O what it writes of what it reads. They are never
   multiplied out over the vocabulary. A query head that shares its keys and values uses those of its group.
2. The linear parts of the norm before the layer are folded in: its weight and its centring. Its division by the scale
   is not linear and is left out; so are biases.
3. Composition: how much of what one head writes a later one reads, against the same heads rotated at random.
4. Directions: the singular vectors of OV, described by the tokens along what is read and along what is written.

Sources: Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits", sections on QK and OV circuits and on
composition); Millidge and Black 2022 ("The Singular Value Decompositions of Transformer Weight Matrices are Highly
Interpretable").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.arguments import checked, is_whole, shown, whole_number
from interp.errors import InterpError, UnknownName, check_choice
from interp.hooked.decompositions import check_linear_output
from interp.hooked.model import HookedModel
from interp.models.gpt import GPT
from interp.models.layers import Norm
from interp.names import READ_WORDS, Part
from interp.precision import widened

if TYPE_CHECKING:
    import pandas as pd

TINY = 1e-30  # avoids division by zero


@dataclass(frozen=True)
class LowRank:
    """Matrices of low rank, `left @ right`, kept as their two factors.

    Attributes:
        left: [..., d_model, d_head], what is read.
        right: [..., d_head, d_model], what is written (OV), or what it is compared with (QK).
    """

    left: Tensor
    right: Tensor

    def __getitem__(self, index: int | slice) -> LowRank:
        """The circuit of one head, or of some."""
        return LowRank(self.left[index], self.right[index])

    @property
    def matrix(self) -> Tensor:
        """The product itself [..., d_model, d_model]."""
        return self.left @ self.right

    @property
    def norm(self) -> Tensor:
        """Frobenius norm [...]."""
        return (_triangle(self.left) @ self.right).norm(dim=(-2, -1))

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Directions that are read [..., d_model, d_head] in columns, singular values [..., d_head] from the largest,
        and directions that are written [..., d_head, d_model] in rows.
        """
        # With left = Q1 R1 and right^T = Q2 R2 the product is Q1 (R1 R2^T) Q2^T: only a small matrix is decomposed.
        reads, small_left = torch.linalg.qr(self.left)
        writes, small_right = torch.linalg.qr(self.right.mT)
        u, values, v = torch.linalg.svd(small_left @ small_right.mT, full_matrices=False)
        return reads @ u, values, v @ writes.mT


def readable(model: HookedModel) -> GPT:
    """The model, if its weights can be read here.

    Raises:
        InterpError: a bridged model, which another library computes, one with norms on the residual stream, which
            stand between any two layers, or one with shared blocks, whose heads read more than the stream.
    """
    if not isinstance(model, GPT):
        raise InterpError(
            f"the weights of a {type(model).__name__} cannot be read: load its checkpoint with interp.load, or judge "
            "its heads by their patterns"
        )
    if model.cfg.norms_on_stream:
        raise InterpError(
            "the weights of two layers do not compose where norms are on the residual stream between them "
            "(norm_placement='residual'): judge this model's heads by their patterns"
        )
    if model.cfg.shared is not None:
        raise InterpError(
            "the weights of heads do not compose where shared blocks read the token embedding beside the residual "
            "stream and write to the input of a mixer ('shared+mamba2' layers): judge this model's heads by their "
            "patterns"
        )
    return model


@checked
@torch.no_grad()
def ov(model: HookedModel, layer: int) -> LowRank:
    """What the heads of a layer write of what they read: W_V W_O.  # [head, d_model, d_model]

    Raises:
        InterpError: a model whose weights cannot be read here.
        UnknownName: a layer that does not exist.
    """
    attn = readable(model).attention(_layer(model, layer))
    return LowRank(each_head(model, folded(model, layer, attn.W_V)), wide(attn.W_O))


@checked
@torch.no_grad()
def qk(model: HookedModel, layer: int) -> LowRank:
    """Attention scores of a layer's heads, before rotation: W_Q W_K^T / scale.  # [head, d_model, d_model]

    Raises:
        InterpError, UnknownName: as `ov`.
    """
    attn = readable(model).attention(_layer(model, layer))
    assert model.cfg.attn_scale is not None
    keys = each_head(model, folded(model, layer, attn.W_K))
    return LowRank(folded(model, layer, attn.W_Q) / model.cfg.attn_scale, keys.mT)


@checked
@torch.no_grad()
def composition(model: HookedModel, reader: str) -> Tensor:
    """How much of what one head writes another reads: ||OV reader|| / (||OV|| ||reader||), in Frobenius norms.

    If one of the two were rotated at random, the root mean square of the ratio would be 1 / sqrt(d_model), whatever
    their singular values: `chance_composition`.

    Args:
        model: the model.
        reader: where the later head reads: "q" and "k" are the two sides of its QK circuit, "v" is its OV circuit.

    Returns:
        [writer's layer, writer's head, reader's layer, reader's head]; NaN unless the reader comes later.

    Raises:
        UnknownName: another reader.
        InterpError: a model whose weights cannot be read here.

    Source: Elhage et al. 2021, on Q-, K- and V-composition.
    """
    check_choice("reader", reader, READ_WORDS)
    layers, heads = readable(model).cfg.n_layers, model.cfg.n_heads
    reads = []
    for layer in range(layers):
        circuit = ov(model, layer) if reader == "v" else qk(model, layer)
        if reader == "k":
            circuit = LowRank(circuit.right.mT, circuit.left.mT)
        # The other side's orthogonal factor changes no norm, so that its triangle is enough.
        reads.append(circuit.left @ _triangle(circuit.right.mT).mT)  # [head, d_model, d_head]
    out = torch.full((layers, heads, layers, heads), float("nan"))
    for layer in range(layers - 1):
        circuit = ov(model, layer)
        writing = _triangle(circuit.left) @ circuit.right  # [head, d_head, d_model]
        reading = torch.stack(reads[layer + 1 :])  # [layer, head, d_model, d_head]
        both = torch.einsum("hdm,lrme->hlrde", writing, reading).norm(dim=(-2, -1))  # [head, layer, head]
        norms = writing.norm(dim=(-2, -1))[:, None, None] * reading.norm(dim=(-2, -1))
        out[layer, :, layer + 1 :] = (both / norms.clamp(min=TINY)).cpu()
    return out


def compositions(
    model: HookedModel, writers: Sequence[tuple[int, int]], readers: Sequence[tuple[int, int]], reader: str
) -> pd.DataFrame:
    """How much of what some heads write some later ones read.

    Args:
        model, reader: as in `composition`.
        writers, readers: heads, each its layer and number.

    Returns:
        Columns `writer, reader, composition` and `rank`, the share of all pairs of heads that compose less.
    """
    import pandas as pd

    ratio = composition(model, reader)
    all_pairs = ratio[~ratio.isnan()]
    rows = [
        (
            *(Part("head", layer, at).name for layer, at in (writer, of)),
            float(ratio[*writer, *of]),
            float((all_pairs < ratio[*writer, *of]).double().mean()),
        )
        for writer in writers
        for of in readers
        if of[0] > writer[0]
    ]
    return pd.DataFrame(rows, columns=["writer", "reader", "composition", "rank"])


def chance_composition(model: HookedModel) -> float:
    """The expected composition of two heads of which one is rotated at random (root mean square)."""
    return float(model.cfg.d_model**-0.5)


@checked
@torch.no_grad()
def singular_tokens(model: HookedModel, layer: int, head: int, *, directions: int = 4, top: int = 6) -> pd.DataFrame:
    """The directions that a head's OV circuit transmits most strongly, described by the tokens along them.

    The sign of a singular direction is arbitrary: each is given the sign that makes its largest logit positive.

    Args:
        model: the model.
        layer, head: which head.
        directions: how many, the largest singular values first.
        top: how many tokens for each.

    Returns:
        Columns `direction, singular_value, share` (of the sum of squares), `side` ("reads" or "writes"), `rank, token,
        value`. For "reads", `value` is a token's normalised embedding projected on the direction; for "writes" it is
        the token's logit minus the mean logit.

    Raises:
        UnknownName: a layer or head that does not exist.
        InterpError: a model whose weights cannot be read here.

    Source: Millidge and Black 2022.
    """
    import pandas as pd

    model = readable(model)
    if not is_whole(head) or not 0 <= head < model.cfg.n_heads:
        raise UnknownName(
            f"head {shown(head)} is not one of this model's {model.cfg.n_heads} heads (0 to {model.cfg.n_heads - 1})"
        )
    directions, top = whole_number("directions", directions, least=1), whole_number("top", top, least=1)
    reads, values, writes = ov(model, layer)[head].svd()
    written = writes[:directions] @ unembedding(model, torch.arange(model.cfg.d_vocab_out, device=model.device))
    written = written - written.mean(-1, keepdim=True)  # [direction, d_vocab_out]
    sign = written.gather(-1, written.abs().argmax(-1, keepdim=True)).sign()
    norm = model.norm_before(layer)
    rows = wide(model.W_E if norm is None else norm.normalized(model.W_E))
    tables = {"reads": (rows @ reads[:, :directions]).T * sign, "writes": written * sign}
    share = values.square() / values.square().sum().clamp(min=TINY)
    lines = []
    for at in range(len(written)):
        for side, table in tables.items():
            best = table[at].topk(min(top, table.shape[1]))
            for rank, (value, token) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                name = str(token) if model.tokenizer is None else model.to_str_tokens([token])[0]
                lines.append((at, float(values[at]), float(share[at]), side, rank, name, value))
    return pd.DataFrame(lines, columns=["direction", "singular_value", "share", "side", "rank", "token", "value"])


def unembedding(model: GPT, tokens: Tensor) -> Tensor:
    """Columns of W_U with the final norm's weight and centring folded in.  # [d_model, token]"""
    check_linear_output(model.cfg)
    return _after_norm(model.norm_before(model.cfg.n_layers), wide(model.W_U[:, tokens.to(model.device)]))


def folded(model: HookedModel, layer: int, weight: Tensor) -> Tensor:
    """A weight [..., d_model, d] of a layer's heads, with the weight and centring of the layer's norm folded in."""
    return _after_norm(readable(model).norm_before(layer), wide(weight))


def each_head(model: HookedModel, shared: Tensor) -> Tensor:
    """Keys' or values' weights, repeated for every query head that shares them.  # [kv_head, ...] -> [head, ...]"""
    return shared.repeat_interleave(model.cfg.n_heads // model.cfg.n_kv_heads, 0)


def wide(x: Tensor) -> Tensor:
    """Half precision as float32, other types as they are; detached from the autograd graph."""
    return widened(x).detach()


def _after_norm(norm: Norm | None, weight: Tensor) -> Tensor:
    """A weight that reads a norm's output, as one that reads its input, but for the division by the norm's scale."""
    if norm is None:
        return weight
    if norm.gain is not None:
        weight = weight * wide(norm.gain)[:, None]
    return weight - weight.mean(-2, keepdim=True) if norm.centers else weight


def _triangle(narrow: Tensor) -> Tensor:
    """R of a QR decomposition: |R x| = |narrow x| for every x."""
    return torch.linalg.qr(narrow, mode="r").R


def _layer(model: HookedModel, layer: int) -> int:
    n = model.cfg.n_layers
    if not is_whole(layer) or not 0 <= layer < n:
        raise UnknownName(f"layer {shown(layer)} is not one of this model's {n} layers (0 to {n - 1})")
    return int(layer)
