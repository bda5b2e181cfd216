"""`HookedModel`: what every model here can do, whatever its layers are made of.

Running with hooks and with a cache, text in and out, generation. A subclass provides the forward, its hook points and
the few pieces of the residual stream that decompositions need.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from interp.arguments import checked, device_of, entries, flag, shown
from interp.config import ModelConfig
from interp.errors import ConfigError, HookError, PromptError, UnknownName
from interp.hooked.cache import ActivationCache
from interp.hooked.decompositions import Scales
from interp.hooked.generation import generate
from interp.hooked.hooks import Hook, HookFunction, HookPoint, Kept, attached, by_position, detach, said
from interp.hooked.recorder import Recorder
from interp.hooked.slices import PosSlice
from interp.hooked.text_input import TextInput
from interp.hooked.tidy import CachedPrompts
from interp.hooked.top_tokens import answer_ids, printed, table
from interp.sites import NameFilter, match
from interp.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pandas as pd

HookList = Sequence[tuple[NameFilter, HookFunction]]


class HookedModel(TextInput, nn.Module, ABC):
    """A language model whose every intermediate value can be read, replaced and differentiated.

    Attributes:
        cfg: its configuration.
        tokenizer: text to ids; None when the weights came without one.
        source: where the weights came from (`interp.weights.checkpoint.Source`); None for an untrained model.
        hook_dict: every hook point by its full site name, in the order of computation.
    """

    def __init__(self, cfg: ModelConfig, tokenizer: Tokenizer | None, points: dict[str, HookPoint]) -> None:
        super().__init__()
        if not isinstance(tokenizer, Tokenizer | None):
            raise ConfigError(f"tokenizer must be a Tokenizer of interp or None, not {shown(tokenizer)}")
        self.cfg = cfg
        self.tokenizer = tokenizer
        self.source: Any = None
        self.hook_dict = points
        self._kept = Kept()
        for point in points.values():
            point.kept = self._kept

    @abstractmethod
    def forward(self, input: str | Sequence[str] | Tensor, *args: Any, **kwargs: Any) -> Any:
        """Logits [batch, pos, d_vocab_out] of tokens [batch, pos]."""

    if TYPE_CHECKING:
        # Every model has these two, as modules: resid [batch, pos, d_model] -> normalised, and that -> logits.
        ln_final: Any
        unembed: Any

    @abstractmethod
    def derive(self, name: str, tensors: Mapping[str, Tensor], attention_mask: Tensor | None) -> Tensor | None:
        """The value of a site from those of its neighbours in one run, or None when they do not determine it."""

    @abstractmethod
    def head_results(self, layer: int, z: Tensor) -> Tensor:
        """What each head adds to the residual stream.  # [..., head, d_head] -> [..., head, d_model]"""

    def cross_head_results(self, layer: int, z: Tensor) -> Tensor:
        """What each head of a decoder's cross-attention adds; only the stacks of an encoder-decoder may have one."""
        raise UnknownName(f"layer {layer} has no cross-attention: only the decoder of an interp.EncoderDecoder has")

    def cross_bias(self, layer: int) -> Tensor | None:
        """What a decoder's cross-attention adds beside its heads; as `cross_head_results`."""
        raise UnknownName(f"layer {layer} has no cross-attention: only the decoder of an interp.EncoderDecoder has")

    @abstractmethod
    def norm_before(self, layer: int, *, mlp_input: bool = False) -> Scales | None:
        """The norm between the residual stream and a reader: a layer, its MLP, or (n_layers) the unembedding."""

    def to_unembed(self, resid: Tensor) -> Tensor:
        """What the unembedding reads of the residual stream after the last layer.  # [..., d_model], the same shape"""
        normalized: Tensor = self.ln_final(resid)
        return normalized

    @property
    @abstractmethod
    def W_U(self) -> Tensor:
        """Unembedding [d_model, d_vocab_out]."""

    def uncapped_logits(self, normalized: Tensor) -> Tensor:
        """Logits before a soft cap, linear in the normalised residual stream: what direct attribution is of.

        [..., d_model] -> [..., d_vocab_out]. Without a cap they are the logits.
        """
        return self.unembed(normalized)

    @abstractmethod
    def bias_result(self, layer: int, z: Tensor) -> Tensor | None:
        """What the attention adds beside its heads; None where nothing.  # [..., head, d_head] -> [..., d_model]"""

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' number type."""
        return next(self.parameters()).dtype

    # Hooks

    def hooks(self, fwd_hooks: HookList = (), bwd_hooks: HookList = ()) -> AbstractContextManager[Self]:
        """Attach hooks for the length of a `with` block; they go again even when something raises.

        They belong to the thread that attaches them (or the task, under asyncio): forwards of other threads through
        the same model do not run them, those of a pool's threads included. To share them, attach them inside the
        function that the pool runs, or run it in a copy of this thread's context:
        `pool.submit(contextvars.copy_context().run, model, tokens)`.

        A function gets a tensor of its own, which it may change in place: `x.mul_(0.5)`, with or without a return, is
        `return x * 0.5`. So may a function of gradients.

        Args:
            fwd_hooks: pairs `(names, fn)`. `names` is a full site name, a glob, a predicate or a list of these;
                `fn(tensor, hook)` returns a new tensor, or None to go on with the one that it was given.
            bwd_hooks: the same for gradients.

        Raises:
            UnknownName: a name that matches no site.
            HookError: a function that does not take `(tensor, hook)`; a hook that never ran, or that returned another
                shape or dtype.
        """
        return attached(self.hook_dict, fwd_hooks, bwd_hooks, in_place=True, gives=self)

    def run_with_hooks(
        self,
        input: str | Sequence[str] | Tensor,
        *args: Any,
        fwd_hooks: HookList = (),
        bwd_hooks: HookList = (),
        **kwargs: Any,
    ) -> Any:
        """One forward with hooks attached; arguments as `forward` and `hooks` take them.

        A backward hook stays with this run's graph, so it also runs in a later `backward()` on the result.
        """
        with self.hooks(fwd_hooks, bwd_hooks):
            return self(input, *args, **kwargs)

    def run_with_cache(
        self,
        input: str | Sequence[str] | Tensor,
        *args: Any,
        names_filter: NameFilter = None,
        layers: int | slice | Iterable[int] | None = None,
        pos_slice: PosSlice = None,
        device: str | torch.device | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        detach: bool = True,
        **kwargs: Any,
    ) -> tuple[Any, ActivationCache]:
        """One forward that keeps what it computed.

        Args:
            input: as `forward` takes it, and so are the further arguments.
            names_filter: sites to keep, as a name, glob, predicate or list; None keeps every site that the forward
                computes anyway. On-demand sites that are named here are computed for it.
            layers: keep only sites of these layers, and those that belong to none.
            pos_slice: keep only these positions (query positions of a pattern), as NumPy takes an index; a number
                drops the axis.
            device: move what is kept there.
            remove_batch_dim: drop the batch axis of a batch of one.
            incl_bwd: run `backward()` on the output, a scalar (`return_type="loss"`), and keep gradients under
                `<name>_grad`.
            detach: False keeps the graph, to differentiate through the kept tensors with `torch.autograd.grad`.

        Returns:
            `(output, cache)`.
        """
        for name, value in (("remove_batch_dim", remove_batch_dim), ("incl_bwd", incl_bwd), ("detach", detach)):
            flag(name, value)
        device = None if device is None else device_of(device)
        wanted = self._select(names_filter, layers)
        recorder = Recorder(pos_slice=pos_slice, device=device, detach=detach, copy_views=wanted is not None)
        tokens, mask = self._input(input, kwargs.pop("prepend_bos", None), kwargs.pop("attention_mask", None))
        always = [name for name, point in self.hook_dict.items() if not point.site.on_demand]
        past = kwargs.get("past_kv_cache")
        n_past = len(past) if past else 0
        slopes: HookList = [(wanted or always, recorder.store_gradient)] if incl_bwd else ()
        with attached(self.hook_dict, (), slopes, readers=[(wanted, recorder.store)]):
            output = self(tokens, *args, attention_mask=mask, **kwargs)
            if incl_bwd:
                if output.ndim:
                    raise HookError('incl_bwd=True needs a scalar output to differentiate: pass return_type="loss"')
                output.backward()
        recorder.check()
        known = CachedPrompts(
            None if n_past or tokens.is_floating_point() else tokens,
            mask if past is None or not n_past else past.attention_mask,
            tokens.shape[1],
            n_past,
            pos_slice,
            self.tokenizer,
        )
        whole = pos_slice is None and past is None
        cache = ActivationCache(recorder.tensors, self, attention_mask=mask, whole=whole, prompts={"": known})
        return output, cache.remove_batch_dim() if remove_batch_dim else cache

    def _select(self, names_filter: NameFilter, layers: int | slice | Iterable[int] | None) -> list[str] | None:
        """The site names to keep, or None for all that is computed anyway."""
        if names_filter is None and layers is None:
            return None
        names = match(names_filter, self.hook_dict)
        if names_filter is None:
            names = [n for n in names if not self.hook_dict[n].site.on_demand]
        if layers is not None:
            keep = set(entries("layer", layers, self.cfg.n_layers, refuse=PromptError))
            names = [n for n in names if not self.hook_dict[n].site.per_layer or self.hook_dict[n].layer() in keep]
        return names

    def add_hook(self, names: NameFilter, hook: HookFunction, dir: str = "fwd") -> None:
        """Attach a hook until `reset_hooks`; prefer `hooks`, which detaches by itself.

        It belongs to the model: forwards of every thread run it, before the hooks of `hooks`.

        Args:
            names: full site name, glob, predicate or list.
            hook: `fn(tensor, hook)`, as in `hooks`.
            dir: "fwd" or "bwd".
        """
        if not isinstance(dir, str) or dir not in ("fwd", "bwd"):
            raise HookError(f"dir must be 'fwd' or 'bwd', not {shown(dir)}")
        if not callable(hook):
            raise HookError(f"a hook must be a function of (tensor, hook), not {shown(hook)}")
        chosen = match(names, self.hook_dict)
        call = by_position(hook, said(chosen))
        self._kept.added.append({name: Hook(call, backward=dir == "bwd") for name in chosen})

    def reset_hooks(self) -> None:
        """Detach the model's own hooks, and those of the blocks around this call; forget every point's `ctx`.

        Hooks that other threads have attached with `hooks` stay theirs.
        """
        detach(self.hook_dict)
        self._kept.added = []
        for point in self.hook_dict.values():
            point.ctx.clear()

    # Directions and text

    @checked
    def tokens_to_residual_directions(self, tokens: str | int | Tensor) -> Tensor:
        """Columns of W_U: [d_model] for one token, [batch, d_model] or [batch, pos, d_model] for more."""
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        vast = isinstance(tokens, int) and abs(tokens) > self.cfg.d_vocab_out  # which no tensor may hold
        ids = torch.as_tensor(-1 if vast else tokens, device=self.device)
        n_out = self.cfg.d_vocab_out
        whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
        if not whole or bool(((ids < 0) | (ids >= n_out)).any()):
            raise PromptError(f"tokens must be ids of this model's answers, 0 to {n_out - 1}, not {shown(tokens)}")
        return self.W_U.T[ids]

    @checked
    @torch.no_grad()
    def test_prompt(
        self,
        prompt: str,
        answer: str | None = None,
        top_k: int = 10,
        *,
        prepend_space_to_answer: bool = True,
        prepend_bos: bool | None = None,
    ) -> pd.DataFrame:
        """Print what the model says after a prompt and where the answer stands, as TransformerLens's `test_prompt`.

        Printed are the tokens, the rank, logit and probability of the answer (of each of its tokens, after those before
        it), and the likeliest tokens.

        Args:
            prompt: a text.
            answer: what should follow it; None prints the likeliest tokens alone.
            top_k: how many of these.
            prepend_space_to_answer: put a space before an answer that begins without one.
            prepend_bos: as in `to_tokens`.

        Returns:
            `step` (which token of the answer), `rank` (0 is the likeliest), `token`, `token_id`, `logit`, `prob`,
            `is_answer`: the top_k tokens of each step, and the answer's where it is not among them.

        Raises:
            PromptError: no tokenizer, an empty prompt, an answer that joins the prompt's last token, `top_k` below 1,
                or a model that predicts masked tokens.

        Example:
            >>> model = interp.load("smollm2-135m")  # doctest: +SKIP
            >>> model.test_prompt("The capital of France is", "Paris")  # doctest: +SKIP
        """
        if isinstance(self.cfg, ModelConfig) and not self.cfg.linear_output:
            raise PromptError("test_prompt shows the next token, and this model predicts masked ones")
        tokenizer = self._tokenizer()
        ids = answer_ids(tokenizer, prompt, answer, prepend_space=prepend_space_to_answer)
        tokens = self.to_tokens(prompt, prepend_bos)
        frame = table(self._logits_before(tokens, ids), ids, lambda token: tokenizer.str_tokens([token])[0], top_k)
        print(printed(tokenizer.str_tokens(tokens[0].tolist()), tokenizer.str_tokens(ids), frame))
        return frame

    def _logits_before(self, tokens: Tensor, answer: list[int]) -> Tensor:
        """Logits before each token of an answer to a prompt [1, pos]: [step, d_vocab_out]."""
        longer = torch.cat([tokens, tokens.new_tensor([answer[:-1]])], dim=1)
        logits: Tensor = self(longer)
        return logits[0, tokens.shape[1] - 1 :]

    def generate(self, input: str | Sequence[str] | Tensor, max_new_tokens: int = 10, **options: Any) -> Any:
        """Continue prompts: text in gives text out, ids give ids.

        `interp.hooked.generation.generate` has the options.
        """
        return generate(self, input, max_new_tokens, **options)
