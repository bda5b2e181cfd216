"""The residual stream of one forward, taken apart into what wrote it, and read by whoever reads it.

The stream is the sum of what the embedding, every head and every MLP have written to it (Elhage et al. 2021, "A
Mathematical Framework for Transformer Circuits"). Since the norm before a reader is linear once its scale is given, and
so is the unembedding, each part has its own share of what is read. Where the stream itself passes through norms, a part
arrives as the norms on its way hand it on, each with the scale of this run; their biases are parts of their own.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from interp.arguments import checked, is_whole, plain, shown
from interp.config import ModelConfig
from interp.errors import InterpError, PromptError, UnknownName, check_choice
from interp.hooked.slices import PosSlice, take
from interp.sites import norm_on_stream, stream_after, streams_between

# What writes to the residual stream, by kind, and the site of what it writes in a layer.
WRITERS = {
    "attn": "hook_attn_out",
    "mixer": "mixer.hook_out",
    "cross_attn": "hook_cross_attn_out",
    "mlp": "hook_mlp_out",
}

Key = str | tuple[Any, ...]


class Scales(Protocol):
    """A norm, as decompositions see it: linear once its scale is given."""

    @property
    def b(self) -> Tensor | None:
        """The norm's bias [d_model]."""
        ...

    def scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        """x as the norm hands it on, divided by a given scale, without the norm's bias."""
        ...


class CachedModel(Protocol):
    """What a cache asks of the model that ran."""

    cfg: ModelConfig

    def to_unembed(self, resid: Tensor) -> Tensor:
        """What the unembedding reads of the residual stream after the last layer."""
        ...

    @property
    def hook_dict(self) -> Mapping[str, Any]:
        """Every site that the model has, by its full name."""
        ...

    def derive(self, name: str, tensors: Mapping[str, Tensor], attention_mask: Tensor | None) -> Tensor | None:
        """The value of a site from those of its neighbours, or None when they do not determine it."""
        ...

    def head_results(self, layer: int, z: Tensor) -> Tensor:
        """What each head adds to the residual stream.  # [..., head, d_head] -> [..., head, d_model]"""
        ...

    def cross_head_results(self, layer: int, z: Tensor) -> Tensor:
        """The same of the heads of a decoder's cross-attention; asked for where there is one."""
        ...

    def norm_before(self, layer: int, *, mlp_input: bool = False) -> Scales | None:
        """The norm between the residual stream and a reader: a layer, its MLP, or (n_layers) the unembedding."""
        ...

    def get_submodule(self, target: str) -> Any:
        """A part of the model by its path, such as a norm on the stream."""
        ...

    def tokens_to_residual_directions(self, tokens: str | int | Tensor) -> Tensor:
        """Columns of W_U, one for each token."""
        ...


def like_the_cache(method: Callable[..., Any]) -> Callable[..., Any]:
    """Build a graph only when the cached tensors have one: weights alone do not make a result require a gradient."""

    @functools.wraps(method)
    def wrapped(self: Decompositions, *args: Any, **kwargs: Any) -> Any:
        before = torch.is_grad_enabled()
        if not before or self._has_graph:
            return method(self, *args, **kwargs)
        try:
            try:
                torch.set_grad_enabled(False)
                return method(self, *args, **kwargs)
            finally:
                torch.set_grad_enabled(before)
        finally:  # again: an interrupt may have come in place of the first
            torch.set_grad_enabled(before)

    return wrapped


class Decompositions(ABC):
    """What an `ActivationCache` says of the residual stream.

    Attributes:
        model: the model that ran.
        has_batch_dim: whether the tensors that are read have a batch axis.
    """

    model: CachedModel
    has_batch_dim: bool
    _has_graph: bool

    @abstractmethod
    def __getitem__(self, key: Key) -> Tensor:
        """The value of a site."""

    def _layer(self, layer: int | None) -> int:
        n_layers = self.model.cfg.n_layers
        layer = plain(layer)
        if layer is None or (is_whole(layer) and layer == -1):
            return n_layers
        if not is_whole(layer) or not 0 <= layer <= n_layers:
            raise UnknownName(f"layer {shown(layer)} is out of range: give 0 to {n_layers}, or -1 for after the last")
        return int(layer)

    def _check_mode(self, mode: str) -> None:
        check_choice("mode", mode, ["all", *WRITERS])
        there = [kind for kind, site in WRITERS.items() if any(n.endswith(f".{site}") for n in self.model.hook_dict)]
        if mode != "all" and mode not in there:
            raise UnknownName(
                f"no component of this model is of mode={mode!r}: choose from {', '.join(['all', *there])}"
            )

    @checked
    @like_the_cache
    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Any:
        """The residual stream before every layer up to `layer`, stacked: the rows of a logit lens.

        Args:
            layer: the layer whose input comes last; None or -1 is the final residual stream.
            incl_mid: the stream between mixer and MLP too, of every layer that has both.
            apply_ln: pass every row through the final norm, each with its own scale (and through a masked-token head),
                as the unembedding expects.
            pos_slice: positions to keep.
            mlp_input: end with the stream that enters the MLP of `layer`.
            return_labels: return `(stack, labels)`; labels are `0_pre`, `0_mid`, ..., `final_post`.

        Returns:
            [rows, batch, pos, d_model].
        """
        last = self._layer(layer)
        names: list[tuple[str, Key]] = []
        for at in range(last + 1):
            if at == self.model.cfg.n_layers:
                names.append(("final_post", stream_after(self.model.cfg, at - 1)))
                continue
            names.append((f"{at}_pre", ("resid_pre", at)))
            between = [mid for mid in streams_between(self.model.cfg, at) if mid in self.model.hook_dict]
            if mlp_input and at == last and not incl_mid:
                between = between[-1:]
            for mid in between if (incl_mid and at < last) or (mlp_input and at == last) else ():
                names.append((f"{at}_{'mid_cross' if mid.endswith('cross') else 'mid'}", mid))
        stack = torch.stack([take(self[key], pos_slice, -2) for _, key in names])
        if apply_ln:
            stack = self.model.to_unembed(stack)
        return (stack, [label for label, _ in names]) if return_labels else stack

    @checked
    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: str = "all",
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Any:
        """What each component wrote to the residual stream before `layer`; with `mode="all"` the rows sum to it.

        Where the stream passes through norms on its way, they are what is left of each there; with `mode="all"` the
        norms' biases are components, too.

        Args:
            layer: the reader; None or -1 is the unembedding.
            mlp_input: read at the MLP of `layer`, its mixer included.
            mode: "all", or one kind of component: "attn", "mixer" (state-space layers), "cross_attn" or "mlp".
            apply_ln: scale the rows as the reader's norm does (`apply_ln_to_stack`).
            pos_slice: positions to keep.
            incl_embeds: token and position embedding too.
            return_labels: return `(stack, labels)`; labels are `embed`, `pos_embed`, `token_type_embed`,
                `0_attn_out` (or `0_mixer_out`), `0_mlp_out`, ..., and of norms on the stream
                `embed_ln_bias`, `0_ln1_bias`, ...

        Returns:
            [component, batch, pos, d_model].

        Raises:
            UnknownName: a mode that does not exist, or of which this model has no component.
        """
        self._check_mode(mode)
        last = self._layer(layer)
        parts = _Parts(self, pos_slice, biases=mode == "all")
        if incl_embeds and "hook_embed" not in self.model.hook_dict:
            raise InterpError("this model does not expose its embedding, so its residual stream cannot be decomposed")
        if incl_embeds:
            for name in ("embed", "pos_embed", "token_type_embed"):
                if f"hook_{name}" in self.model.hook_dict:
                    parts.add(name, take(self[f"hook_{name}"], pos_slice, -2))
            parts.through("embed")
        for at in range(last + (1 if mlp_input and last < self.model.cfg.n_layers else 0)):
            for kind, site in WRITERS.items():
                name = f"blocks.{at}.{site}"
                if name not in self.model.hook_dict or (kind == "mlp" and at >= last):
                    continue
                if mode in ("all", kind):
                    parts.add(f"{at}_{kind}_out", take(self[name], pos_slice, -2))
                parts.through(kind, at)
        if not parts.rows:
            raise InterpError(f"no component of mode={mode!r} writes to the residual stream before layer {last}")
        stack = torch.stack(parts.rows)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, last, mlp_input, pos_slice)
        return (stack, parts.labels) if return_labels else stack

    @checked
    @like_the_cache
    def stack_head_results(
        self,
        layer: int = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: PosSlice = None,
        apply_ln: bool = False,
    ) -> Any:
        """What each attention head of every layer before `layer` wrote to the residual stream.

        Args:
            layer: the reader; -1 is the unembedding.
            return_labels: return `(stack, labels)`; labels are `L0H0`, `L0H1`, ..., `remainder`. The heads of a
                decoder's cross-attention are `L0X0`, `L0X1`, ..., after those of the layer's own attention.
            incl_remainder: a last row with everything that no head wrote, so that the rows sum to the stream.
            pos_slice: positions to keep.
            apply_ln: scale the rows as the reader's norm does.

        Returns:
            [layer * head, batch, pos, d_model], of those layers that have heads.

        Raises:
            UnknownName: no layer has heads.
        """
        last = self._layer(layer)
        n_layers, n_heads = self.model.cfg.n_layers, self.model.cfg.n_heads
        with_heads = [at for at in range(n_layers) if f"blocks.{at}.attn.hook_z" in self.model.hook_dict]
        if with_heads and self.model.cfg.shared is not None:
            with_heads = [at for at in with_heads if not self.model.cfg.shares(at)]
            if not with_heads:
                raise UnknownName(
                    "the attention heads of this model are of shared blocks and write nothing to the residual stream: "
                    "decompose_resid takes what its layers write"
                )
        if n_layers and not with_heads:
            raise UnknownName("this model has no attention heads: decompose_resid takes what its layers write")
        parts = _Parts(self, pos_slice, biases=False)
        for at in range(last):
            if at in with_heads:
                results = self.model.head_results(at, take(self["z", at], pos_slice, -3))
                for head in range(n_heads):
                    parts.add(f"L{at}H{head}", results[..., head, :])
                parts.through("attn", at)
            if f"blocks.{at}.cross_attn.hook_z" in self.model.hook_dict:
                results = self.model.cross_head_results(at, take(self["cross_attn.z", at], pos_slice, -3))
                for head in range(n_heads):
                    parts.add(f"L{at}X{head}", results[..., head, :])
                parts.through("cross_attn", at)
            if f"blocks.{at}.hook_mlp_out" in self.model.hook_dict:
                parts.through("mlp", at)
        total = take(self[stream_after(self.model.cfg, last - 1)] if last else self["resid_pre", 0], pos_slice, -2)
        labels, rows = parts.labels, parts.rows
        if incl_remainder:
            labels.append("remainder")
            rows.append(total - (torch.stack(rows).sum(0) if rows else 0))
        stack = torch.stack(rows) if rows else total.new_zeros(0, *total.shape)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, last, False, pos_slice)
        return (stack, labels) if return_labels else stack

    @checked
    @like_the_cache
    def apply_ln_to_stack(
        self,
        residual_stack: Tensor,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: PosSlice = None,
        batch_slice: PosSlice = None,
        has_batch_dim: bool = True,
    ) -> Tensor:
        """Components of the residual stream as the norm before a reader hands them on, at the whole stream's scale.

        Centred (layer norm), divided by the cached scale and multiplied by the norm's weight, but without its bias,
        which belongs to no component: the rows of a full decomposition sum to the norm's output minus that bias.
        (TransformerLens, whose weights are folded, has the weight in the reader.)

        Args:
            residual_stack: [component, batch, pos, d_model], or without pos.
            layer: the reader; None or -1 is the unembedding.
            mlp_input: the reader is the MLP of `layer`.
            pos_slice, batch_slice: what was already taken of positions (and will be taken of the batch).
            has_batch_dim: whether `residual_stack` has a batch axis.

        Raises:
            UnknownName: `mlp_input` of a layer without an MLP.
            PromptError: a stack that does not fit the prompts.
        """
        reader = self._layer(layer)
        inside = reader < self.model.cfg.n_layers
        if mlp_input and inside and f"blocks.{reader}.hook_mlp_out" not in self.model.hook_dict:
            raise UnknownName(f"layer {reader} has no MLP that could read the residual stream: leave mlp_input out")
        if has_batch_dim and self.has_batch_dim:
            residual_stack = take(residual_stack, batch_slice, 1, "batch_slice")
        norm = self.model.norm_before(reader, mlp_input=mlp_input)
        if norm is None:
            return residual_stack
        name = "ln_final.hook_scale"
        if inside:
            first = not mlp_input and f"blocks.{reader}.ln1.hook_scale" in self.model.hook_dict
            name = f"blocks.{reader}.ln{1 if first else 2}.hook_scale"
        scale = take(self[name], pos_slice, -2)
        if self.has_batch_dim:
            scale = take(scale, batch_slice, 0, "batch_slice")
        if has_batch_dim and self.has_batch_dim and residual_stack.shape[1:-1] != scale.shape[:-1]:
            raise PromptError(
                f"a stack of {list(residual_stack.shape)} does not fit the norm's scale {list(scale.shape)}: pass the "
                "pos_slice that the stack was made with"
            )
        return norm.scaled(residual_stack, scale)

    @checked
    @like_the_cache
    def logit_attrs(
        self,
        residual_stack: Tensor,
        tokens: str | int | Tensor,
        incorrect_tokens: str | int | Tensor | None = None,
        pos_slice: PosSlice = None,
        batch_slice: PosSlice = None,
        has_batch_dim: bool = True,
    ) -> Tensor:
        """Direct contribution of each row to the logit of `tokens`, or to its difference from `incorrect_tokens`.

        Args:
            residual_stack: [component, batch, pos, d_model], or without pos, not yet normalised.
            tokens: one token, one for each prompt [batch], or one for each prompt and position [batch, pos].
            incorrect_tokens: the same shape as `tokens`.
            pos_slice: the positions that `residual_stack` holds.
            batch_slice: prompts to keep.
            has_batch_dim: whether `residual_stack` has a batch axis.

        Returns:
            [component, batch, pos], in logits. Summed over a full decomposition it is the logit (difference), less the
            constant that `ln_final.b` and `b_U` add. Of a model whose logits have a soft cap these are the logits
            before it (`model.uncapped_logits`): the cap bends the sum, and no part of it is anybody's.

        Raises:
            InterpError: a model with a masked-token head, which is not linear, so that no row has a share of a logit.
        """
        check_linear_output(self.model.cfg)
        direction = self.model.tokens_to_residual_directions(tokens)
        if incorrect_tokens is not None:
            other = self.model.tokens_to_residual_directions(incorrect_tokens)
            if other.shape != direction.shape:
                raise PromptError(
                    f"tokens and incorrect_tokens must have one shape, not {list(direction.shape[:-1])} "
                    f"and {list(other.shape[:-1])}"
                )
            direction = direction - other
        scaled = self.apply_ln_to_stack(residual_stack, -1, False, pos_slice, batch_slice, has_batch_dim)
        if scaled.ndim == 4 and direction.ndim == 2:
            direction = direction[:, None]  # one direction for each prompt, at all its positions
        try:
            return (scaled * direction).sum(-1)
        except RuntimeError as error:
            raise PromptError(
                f"tokens of shape {list(direction.shape[:-1])} do not fit a stack of {list(scaled.shape[1:-1])} = "
                "[batch, pos]: give one token, [batch] or [batch, pos]"
            ) from error


def check_linear_output(cfg: ModelConfig) -> None:
    """Refuse a model whose logits are no sum of what the parts of the stream are worth.

    Raises:
        InterpError: it has a masked-token head.
    """
    if not cfg.linear_output:
        raise InterpError(
            "this model reads logits through a masked-token head (linear map, activation function, norm), which is not "
            "linear, so that no part of the stream has a share of a logit: take gradients (attribution patching), a "
            "lens, which reads through the head, or `interp.sweep`"
        )


class _Parts:
    """Parts of the residual stream on their way up, which grow in number.

    Args:
        run: where they and the scales of norms are read.
        pos_slice: positions to keep.
        biases: whether the bias of a norm on the stream is a part, too.
    """

    def __init__(self, run: Decompositions, pos_slice: PosSlice, *, biases: bool) -> None:
        self.run = run
        self.pos_slice = pos_slice
        self.biases = biases
        self.labels: list[str] = []
        self.rows: list[Tensor] = []  # each [batch, pos, d_model]

    def add(self, label: str, value: Tensor) -> None:
        """One more part, from where it is written, at the positions to keep."""
        self.labels.append(label)
        self.rows.append(value)

    def through(self, writer: str, layer: int | None = None) -> None:
        """All parts so far, as they leave the norm that the stream passes through after a writer, if there is one."""
        path = norm_on_stream(self.run.model.cfg, writer, layer)
        if path is None:
            return
        norm = self.run.model.get_submodule(path)
        scale = take(self.run[f"{path}.hook_scale"], self.pos_slice, -2)
        self.rows = [norm.scaled(row, scale) for row in self.rows]
        if self.biases and norm.b is not None:
            self.add(f"{path.removeprefix('blocks.').replace('.', '_')}_bias", norm.b.expand(*scale.shape[:-1], -1))
