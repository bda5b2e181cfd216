"""`ActivationCache`: what one forward computed, by site name, and the decompositions of its residual stream.

Stored are the sites that were asked for; they share memory with the forward and are never copied. An on-demand site
that was not asked for is computed from its neighbours when it is first read: the pattern from queries and keys,
per-head results from z, split inputs from the residual stream.

Decompositions follow Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits"): the residual stream is
the sum of what the embedding, every head and every MLP have written to it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import checked, device_of, entries, is_whole, one_of_layers, plain, shown
from interp.errors import InterpError, PromptError, UnknownName, check_choice
from interp.hooked.absent import AbsentModel, alone
from interp.sites import find_act_name, get_act_name, unknown_site

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel

# What writes to the residual stream, by kind, and the site of what it writes in a layer.
WRITERS = {"attn": "hook_attn_out", "mixer": "mixer.hook_out", "mlp": "hook_mlp_out"}

Key = str | tuple[Any, ...]
PosSlice = int | slice | Sequence[int] | Tensor | np.ndarray[Any, Any] | None


def take(value: Tensor, wanted: PosSlice, axis: int, name: str = "pos_slice") -> Tensor:
    """`value` at some indices of one axis: a number drops the axis, a slice or a list keeps it, None takes all.

    Raises:
        PromptError: no index, or one outside the axis; `name` is what it was given as.
    """
    if wanted is None:
        return value
    found = entries(name, wanted, value.shape[axis])
    if is_whole(wanted):
        return value.select(axis, found[0])
    steps = range(found[0], found[-1] + 1) if found else range(0)
    if found == list(steps):  # a view, as a slice without steps gives it
        return value.narrow(axis, steps.start, len(steps))
    return value.index_select(axis, torch.tensor(found, device=value.device))


def _like_the_cache(method: Callable[..., Any]) -> Callable[..., Any]:
    """Build a graph only when the cached tensors have one: weights alone do not make a result require a gradient."""

    @functools.wraps(method)
    def wrapped(self: ActivationCache, *args: Any, **kwargs: Any) -> Any:
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


class ActivationCache(Mapping[str, Tensor]):
    """A read-only mapping from site names to the tensors of one forward.

    Keys are full names or short forms: `cache["blocks.3.attn.hook_z"]`, `cache["z", 3]`, `cache["scale", 3, "ln2"]`,
    `cache["resid_post", -1]`, `cache["embed"]`. Iterating gives the stored names; reading also gives what can be
    derived.

    A pickle holds the tensors and not the model: set `model` anew for what only the model can give. A deep copy shares
    the model.

    Attributes:
        model: the model that ran.
        has_batch_dim: False after `remove_batch_dim`.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        model: HookedModel,
        *,
        attention_mask: Tensor | None = None,
        whole: bool = True,
    ) -> None:
        self._tensors = dict(tensors)
        self._mask = attention_mask
        self._whole = whole
        self._has_graph = any(value.requires_grad for value in self._tensors.values())
        self.model = model
        self.has_batch_dim = True

    def __getstate__(self) -> dict[str, Any]:
        tensors = {name: alone(value) for name, value in self._tensors.items()}
        model = AbsentModel(self.model.cfg, tuple(self.model.hook_dict))
        return {**self.__dict__, "_tensors": tensors, "_has_graph": False, "model": model}

    def __copy__(self) -> ActivationCache:
        twin = ActivationCache(self._tensors, self.model, attention_mask=self._mask, whole=self._whole)
        twin.has_batch_dim = self.has_batch_dim
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> ActivationCache:
        twin = copy.copy(self)
        twin._tensors = {name: value.clone() for name, value in self._tensors.items()}
        return twin

    def __getitem__(self, key: Key) -> Tensor:
        name = self.full_name(key)
        if name not in self._tensors:
            self._tensors[name] = self._derive(name)
        value = self._tensors[name]
        return value if self.has_batch_dim else value[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, key: object) -> bool:
        try:
            return self.full_name(key) in self._tensors  # type: ignore[arg-type]
        except InterpError:
            return False

    def __repr__(self) -> str:
        return f"ActivationCache of {len(self)} tensors: {', '.join(list(self)[:4])}, ..."

    def full_name(self, key: Key) -> str:
        """The full site name that a key stands for; negative layers count from the last."""
        if isinstance(key, str):
            return key if key in self._tensors else get_act_name(key)
        if not isinstance(key, tuple) or len(key) not in (2, 3) or not isinstance(key[0], str):
            raise UnknownName(
                f"a cache is read by a site's name, alone or with a layer, such as cache['z', 3], not {shown(key)}"
            )
        site, layer, *kind = key
        if layer is not None:
            layer = one_of_layers(layer, self.model.cfg.n_layers)
        return find_act_name(site, layer, self.model.hook_dict, *kind)

    @_like_the_cache
    def _derive(self, name: str) -> Tensor:
        if name not in self.model.hook_dict:
            raise unknown_site(name, list(self._tensors) + list(self.model.hook_dict))
        missing = f"{name!r} was not cached and cannot be derived from what was: add it to names_filter" + (
            "" if self._whole else " (only whole prompts, without pos_slice or earlier keys, can be derived from)"
        )
        if not self._whole:
            raise UnknownName(missing)
        value = self.model.derive(name, self._tensors, self._mask)
        if value is None:
            raise UnknownName(missing)
        return value

    def to(self, device: str | torch.device) -> ActivationCache:
        """Move every tensor to a device, here in this cache, and return it."""
        place = device_of(device)
        self._tensors = {name: value.to(place) for name, value in self._tensors.items()}
        return self

    def remove_batch_dim(self) -> ActivationCache:
        """Drop the batch axis of a batch of one, here in this cache, and return it."""
        for name, value in self._tensors.items():
            if value.shape[0] != 1:
                raise PromptError(
                    f"remove_batch_dim needs a batch of one, but {name!r} has a batch of {value.shape[0]}"
                )
        self.has_batch_dim = False
        return self

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
    @_like_the_cache
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
            apply_ln: pass every row through the final norm, each with its own scale, as the unembedding expects.
            pos_slice: positions to keep.
            mlp_input: end with the stream that enters the MLP of `layer`.
            return_labels: return `(stack, labels)`; labels are `0_pre`, `0_mid`, ..., `final_post`.

        Returns:
            [rows, batch, pos, d_model].
        """
        last = self._layer(layer)
        names: list[tuple[str, tuple[str, int]]] = []
        for at in range(last + 1):
            if at == self.model.cfg.n_layers:
                names.append(("final_post", ("resid_post", at - 1)))
                continue
            names.append((f"{at}_pre", ("resid_pre", at)))
            has_mid = f"blocks.{at}.hook_resid_mid" in self.model.hook_dict
            if has_mid and ((incl_mid and at < last) or (mlp_input and at == last)):
                names.append((f"{at}_mid", ("resid_mid", at)))
        stack = torch.stack([take(self[key], pos_slice, -2) for _, key in names])
        if apply_ln:
            stack = self.model.ln_final(stack)
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

        Args:
            layer: the reader; None or -1 is the unembedding.
            mlp_input: read at the MLP of `layer`, its mixer included.
            mode: "all", or one kind of component: "attn", "mixer" (state-space layers) or "mlp".
            apply_ln: scale the rows as the reader's norm does (`apply_ln_to_stack`).
            pos_slice: positions to keep.
            incl_embeds: token and position embedding too.
            return_labels: return `(stack, labels)`; labels are `embed`, `pos_embed`, `0_attn_out` (or
                `0_mixer_out`), `0_mlp_out`, ...

        Returns:
            [component, batch, pos, d_model].

        Raises:
            UnknownName: a mode that does not exist, or of which this model has no component.
        """
        self._check_mode(mode)
        last = self._layer(layer)
        labels: list[str] = []
        keys: list[Key] = []
        if incl_embeds and "hook_embed" not in self.model.hook_dict:
            raise InterpError("this model does not expose its embedding, so its residual stream cannot be decomposed")
        if incl_embeds:
            for name in ("embed", "pos_embed"):
                if f"hook_{name}" in self.model.hook_dict:
                    labels.append(name)
                    keys.append(f"hook_{name}")
        for at in range(last + (1 if mlp_input and last < self.model.cfg.n_layers else 0)):
            for kind, site in WRITERS.items():
                name = f"blocks.{at}.{site}"
                if mode in ("all", kind) and name in self.model.hook_dict and (kind != "mlp" or at < last):
                    labels.append(f"{at}_{kind}_out")
                    keys.append(name)
        if not keys:
            raise InterpError(f"no component of mode={mode!r} writes to the residual stream before layer {last}")
        stack = torch.stack([take(self[key], pos_slice, -2) for key in keys])
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, last, mlp_input, pos_slice)
        return (stack, labels) if return_labels else stack

    @checked
    @_like_the_cache
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
            return_labels: return `(stack, labels)`; labels are `L0H0`, `L0H1`, ..., `remainder`.
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
        if n_layers and not with_heads:
            raise UnknownName("this model has no attention heads: decompose_resid takes what its layers write")
        labels = [f"L{at}H{head}" for at in with_heads if at < last for head in range(n_heads)]
        rows: list[Tensor] = []
        for at in with_heads:
            if at >= last:
                break
            z = take(self["z", at], pos_slice, -3)
            rows.extend(self.model.head_results(at, z).unbind(-2))
        total = take(self["resid_post", last - 1] if last else self["resid_pre", 0], pos_slice, -2)
        if incl_remainder:
            labels.append("remainder")
            rows.append(total - (torch.stack(rows).sum(0) if rows else 0))
        stack = torch.stack(rows) if rows else total.new_zeros(0, *total.shape)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, last, False, pos_slice)
        return (stack, labels) if return_labels else stack

    @checked
    @_like_the_cache
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
    @_like_the_cache
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
            constant that `ln_final.b` and `b_U` add.
        """
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
