"""`BridgedModel`: a model that a transformer_lens bridge computes, with our names, hooks and cache.

1. For every site with a hook, a function is attached to the bridge's hook point of the same name.
2. The bridge runs; the functions call our hook points with values in our shapes, and return what these return.
3. The functions are removed, whatever happens; any that an interrupt leaves attached do nothing.

All threads share the bridge's hook points, so only one forward runs at a time: other threads wait.

A trial run decides which sites the model has (see `bridge_trial`).
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from torch import Tensor

from interp.config import ModelConfig
from interp.errors import ConfigError, HookError, InterpError, PromptError, UnknownName
from interp.hooked.hooks import Attachment, HookPoint
from interp.hooked.model import HookedModel
from interp.hooked.past import PastKeyValues
from interp.loading.bridge_trial import Findings, examine, norm_parts, tapped
from interp.models.gpt import next_token_loss
from interp.sites import site_names
from interp.text.padding import check_attention_mask
from interp.text.tokenizer import Tokenizer
from interp.weights.checkpoint import Source

NO_READ_OUT = "its logits are not an unembedding of its normalised residual stream"


@dataclass(frozen=True)
class BridgedConfig(ModelConfig):
    """What a bridge reports about its model: sizes, and the kinds of its parts, in transformers' words.

    Details that the bridge does not report (of rotary embeddings, of scales) keep their defaults here: see
    `bridge.original_model.config`.
    """

    any_words = True  # nothing is built from this configuration


@dataclass(frozen=True)
class BridgedNorm:
    """A norm of the bridge, as decompositions see it."""

    w: Tensor
    b: Tensor | None
    centers: bool

    def scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        """x divided by `scale` and multiplied by the weight, without the bias: linear in x."""
        return (x - x.mean(-1, keepdim=True) if self.centers else x) / scale * self.w


class _Stopped(Exception):
    """Carries the residual stream out of a forward that stops before its last layer."""

    def __init__(self, resid: Tensor) -> None:
        super().__init__()
        self.resid = resid


class BridgedModel(HookedModel):
    """A model that a bridge computes, with our names, hooks and cache. `from_bridge` makes it.

    It has those of our sites that a trial run showed to mean the same. Keys and values of a prefix are not kept, and
    with `start_at_layer` the earlier layers still run, although their results are not used.

    Attributes:
        bridge: the bridge, which is run and never changed.
        left_out: names of our sites that the bridge also uses, but for another or an unproven point of the computation.
        read_only: sites that can be cached but not changed.
    """

    bridge: Any

    def __init__(self, bridge: Any, tokenizer: Tokenizer | None) -> None:
        cfg = _describe(bridge)
        theirs = bridge.hook_dict
        points = {name: HookPoint(name, site) for name, site in site_names(cfg).items() if name in theirs}
        super().__init__(cfg, tokenizer, points)
        object.__setattr__(self, "bridge", bridge)  # not as a submodule: `transformers_model` has the same modules
        self.transformers_model = bridge.original_model
        self._theirs = {name: theirs[name] for name in points}
        self.read_only: frozenset[str] = frozenset()
        self.source = Source(kind="bridge", location=cfg.model_name)
        self._findings = Findings(restarts=True)  # the trial itself runs the model
        self._findings = findings = examine(self, bridge)
        self.cfg = cfg.replace(
            act_fn=findings.act_fn,
            d_mlp=findings.d_mlp or cfg.d_mlp,
            attention_dir="causal" if findings.causal else "bidirectional",
        )
        self.read_only = frozenset(findings.read_only)
        self.hook_dict = {name: point for name, point in points.items() if name in findings.sites}
        self.left_out = tuple(name for name in points if name not in self.hook_dict)

    def forward(
        self,
        input: str | Sequence[str] | Tensor,
        return_type: str | None = "logits",
        *,
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        attention_mask: Tensor | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: PastKeyValues | None = None,
    ) -> Any:
        """Run the model; arguments and results as in `GPT.forward`.

        Raises:
            InterpError: `past_kv_cache`, which a bridged model does not have.
            PromptError: an empty prompt, one longer than the context, ids out of range, a mask of the wrong shape.
        """
        if past_kv_cache is not None:
            raise InterpError("a bridged model keeps no keys and values: generate with use_past_kv_cache=False")
        if return_type not in ("logits", "loss", "both", None):
            raise PromptError(f"return_type must be 'logits', 'loss', 'both' or None, not {return_type!r}")
        values, mask = self._input(input, prepend_bos, attention_mask)
        first = self._layer(start_at_layer, "start_at_layer", 0)
        last = self._layer(stop_at_layer, "stop_at_layer", None)
        if last is not None and last < first:
            raise UnknownName(f"stop_at_layer={stop_at_layer} comes before start_at_layer={start_at_layer}")
        resid = None if start_at_layer is None else values
        if resid is None:
            self._check_tokens(values, 0)
        elif not resid.is_floating_point():
            raise PromptError("start_at_layer needs the residual stream [batch, pos, d_model] as input, not tokens")
        else:
            self._needs(self._findings.restarts, "its layers read more than the residual stream")
        tokens = values if resid is None else torch.zeros(values.shape[:2], dtype=torch.long, device=self.device)
        if mask is not None:
            mask = check_attention_mask(mask, (tokens.shape[0], tokens.shape[1]))
        if resid is not None and first == (self.cfg.n_layers if last is None else last):
            out = resid if last is not None else self.unembed(self.ln_final(resid))
        else:
            out = self._run(tokens, mask, resid, first, last)
        if stop_at_layer is not None or return_type == "logits":
            return out
        if return_type is None:
            return None
        if resid is not None:
            raise PromptError(f"return_type={return_type!r} needs tokens to predict, but start_at_layer was given")
        loss = next_token_loss(out, tokens, mask, per_token=loss_per_token)
        return loss if return_type == "loss" else (out, loss)

    def _layer(self, value: int | None, name: str, default: Any) -> Any:
        if value is None:
            return default
        if not -self.cfg.n_layers <= value <= self.cfg.n_layers:
            raise UnknownName(f"{name}={value} is out of range for a model of {self.cfg.n_layers} layers")
        return value % self.cfg.n_layers if value < 0 else value

    def _run(self, tokens: Tensor, mask: Tensor | None, resid: Tensor | None, first: int, last: int | None) -> Tensor:
        """Logits, or the input of layer `last`; `resid`, if given, replaces the input of layer `first`."""
        blocks, n_layers = self.bridge.blocks, self.cfg.n_layers
        kept: dict[int, Tensor] = {}
        run = Attachment(None, {}, ())
        with _one_at_a_time(self.bridge), run, ExitStack() as stack, warnings.catch_warnings():

            def tap(theirs: Any, fn: Callable[[Any], Any]) -> None:
                stack.enter_context(tapped(theirs, lambda value: fn(value) if run.in_force else None))

            # 1. Functions at the bridge's hook points.
            warnings.filterwarnings("ignore", message="(?s).*(hook_scale/hook_normalized|already consumed)")
            if resid is not None:
                tap(blocks[first].hook_in, lambda value: resid)
            for name, point in self.hook_dict.items():
                if point.wanted and self._runs(point, resid is not None, first, last):
                    tap(self._theirs[name], self._through(point, kept))
                    if point.site.short == "resid_mid":
                        layer = point.layer()
                        tap(blocks[layer].hook_out, _adder(kept, layer))
            if last is not None:
                tap(blocks[last].hook_in if last < n_layers else blocks[-1].hook_out, _stop)
            # 2. The bridge runs; 3. leaving the block removes the functions.
            try:
                return self.bridge(tokens, **({} if mask is None else {"attention_mask": mask.long()}))
            except _Stopped as stopped:
                return stopped.resid

    def _runs(self, point: HookPoint, started: bool, first: int, last: int | None) -> bool:
        """Whether a run from layer `first` to before layer `last` computes a site."""
        if point.site.per_layer:
            return first <= point.layer() < (self.cfg.n_layers if last is None else last)
        return last is None if "ln_final" in point.name else not started

    def _through(self, point: HookPoint, kept: dict[int, Tensor]) -> Callable[[Any], Tensor | None]:
        """A function for the bridge's hook point that calls our hook point."""

        def call(value: Any) -> Tensor | None:
            if not isinstance(value, Tensor):
                return None
            least = torch.finfo(value.dtype).min
            masked = point.site.short == "attn_scores"
            ours = value.masked_fill(value <= least / 2, float("-inf")) if masked else value
            out = point(ours.clone())  # a copy, because transformers may write into the same memory later
            same = torch.equal(out, ours)
            if point.name in self.read_only:
                if same and not point.watches_gradient:
                    return None
                raise HookError(
                    f"{point.name!r} can be read but not changed: the bridge of {self.cfg.model_name!r} shows it after "
                    "using it"
                )
            if same and not out.requires_grad:
                return None
            if point.site.short == "resid_mid":
                kept[point.layer()] = out - value  # the bridge passes `out` only to the norm: see `_adder`
            return out.masked_fill(out == float("-inf"), least) if masked else out

        return call

    def generate(self, input: str | Sequence[str] | Tensor, max_new_tokens: int = 10, **options: Any) -> Any:
        """As `interp.hooked.generation.generate`, with the whole text run again for each token."""
        return super().generate(input, max_new_tokens, **{"use_past_kv_cache": False, **options})

    def derive(self, name: str, tensors: Mapping[str, Tensor], attention_mask: Tensor | None) -> Tensor | None:
        """None: a bridged model computes nothing from other cached values."""
        return None

    def ln_final(self, resid: Tensor) -> Tensor:
        """The final norm, without hooks."""
        self._needs(self._findings.reads_out, NO_READ_OUT)
        norm = self.bridge._modules.get("ln_final")
        return resid if norm is None else norm.original_component(resid)

    def unembed(self, x: Tensor) -> Tensor:
        """Logits of the normalised residual stream, without hooks."""
        self._needs(self._findings.reads_out, NO_READ_OUT)
        logits = (x @ self.bridge.unembed.W_U + self.bridge.unembed.b_U) * self._findings.logit_factor
        cap = self._findings.logit_cap
        return logits if cap is None else cap * (logits / cap).tanh()

    @property
    def W_U(self) -> Tensor:
        """Unembedding [d_model, d_vocab_out], times the factor that the model multiplies its logits by."""
        self._needs(self._findings.reads_out, NO_READ_OUT)
        self._needs(self._findings.logit_cap is None, "the logits are capped and so not linear in the residual stream")
        return self.bridge.unembed.W_U * self._findings.logit_factor

    def head_results(self, layer: int, z: Tensor) -> Tensor:
        """What each head adds to the residual stream.  # [..., head, d_head] -> [..., head, d_model]"""
        return einsum(z, self._heads(layer).W_O, "... head d_head, head d_head d_model -> ... head d_model")

    def bias_result(self, layer: int, z: Tensor) -> Tensor | None:
        """What the attention adds beside its heads; None where nothing.  # [..., head, d_head] -> [..., d_model]"""
        bias: Tensor | None = self._heads(layer).b_O
        return None if bias is None else bias.expand(*z.shape[:-2], -1)

    def norm_before(self, layer: int, *, mlp_input: bool = False) -> BridgedNorm | None:
        """The norm before a reader of the residual stream: a layer, its MLP, or (n_layers) the unembedding."""
        last = layer == self.cfg.n_layers
        path = "ln_final" if last else f"blocks.{layer}.ln{1 + mlp_input}"
        owner = self.bridge if last else self.bridge.blocks[layer]
        norm = owner._modules.get(path.rpartition(".")[2])
        is_plain = norm is not None and path in self._findings.norms
        self._needs(is_plain, f"{path} is not a plain norm of the residual stream")
        return BridgedNorm(*norm_parts(norm))

    def _heads(self, layer: int) -> Any:
        plain = layer in self._findings.heads_add
        self._needs(plain, f"the heads of layer {layer} do not add up to what its attention adds")
        return self.bridge.blocks[layer].attn

    def _needs(self, holds: bool, why: str) -> None:
        if not holds:
            raise InterpError(f"the bridge of {self.cfg.model_name!r} cannot provide this: {why}")


_LOCKS: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()


def _one_at_a_time(bridge: Any) -> threading.RLock:
    """The lock that a thread holds while it runs a bridge; all models of that bridge share it."""
    return _LOCKS.setdefault(bridge, threading.RLock())


def _adder(kept: dict[int, Tensor], layer: int) -> Callable[[Tensor], Tensor | None]:
    """A function that adds a change of resid_mid at the end of its block, where the residual stream would carry it."""
    return lambda value: value + kept.pop(layer) if layer in kept else None


def _stop(value: Tensor) -> None:
    raise _Stopped(value)


def _describe(bridge: Any) -> BridgedConfig:
    """The configuration of a bridge's model.

    Raises:
        ConfigError: it is not a decoder of text with one stack of blocks.
    """
    cfg, first = bridge.cfg, next(iter(bridge._modules.get("blocks") or []), None)
    options = bridge.original_model.config
    other = [kind for kind in ("is_multimodal", "is_audio_model", "is_visual_model") if getattr(cfg, kind, False)]
    if first is None or other or getattr(options, "is_encoder_decoder", False) or "attn" not in first._modules:
        raise ConfigError(f"a {options.model_type} model is not a decoder of text with one stack of attention blocks")
    attn, mlp = first.attn, first._modules.get("mlp")
    return BridgedConfig(
        n_layers=len(bridge.blocks),
        d_model=cfg.d_model,
        n_ctx=cfg.n_ctx,
        d_head=cfg.d_head,
        d_vocab=cfg.d_vocab,
        d_vocab_out=bridge.unembed.W_U.shape[1],
        n_heads=cfg.n_heads,
        n_key_value_heads=getattr(cfg, "n_key_value_heads", None),
        act_fn=None,
        gated_mlp=cfg.gated_mlp,
        normalization_type=cfg.normalization_type,
        eps=cfg.eps,
        final_norm="ln_final" in bridge._modules,
        positional_embedding_type=cfg.positional_embedding_type,
        attn_only=mlp is None,
        parallel_attn_mlp=cfg.parallel_attn_mlp,
        tie_word_embeddings=bool(getattr(options, "tie_word_embeddings", False)),
        attn_in_bias=getattr(attn, "b_Q", None) is not None,
        attn_out_bias=getattr(attn, "b_O", None) is not None,
        mlp_bias=getattr(mlp, "b_in", None) is not None,
        unembed_bias="bias" in bridge.unembed.original_component._parameters,
        model_name=getattr(options, "_name_or_path", "") or options.model_type,
    )
