"""`EncoderDecoderCache`: what one forward of an encoder-decoder computed, in both stacks.

Names begin with the stack: `cache["decoder.blocks.3.attn.hook_z"]`, or short, `cache["decoder.z", 3]`. Its `encoder`
and `decoder` are caches of one stack each, with the names within it, which take its residual stream apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from interp.arguments import one_of_layers
from interp.config import STACKS
from interp.encoder_decoder.block import DecoderBlock
from interp.encoder_decoder.cross_attention import source_sight
from interp.encoder_decoder.stack import Stack
from interp.errors import UnknownName
from interp.hooked.cache import ActivationCache
from interp.hooked.decompositions import Key, like_the_cache
from interp.hooked.tidy import CachedPrompts
from interp.sites import get_act_name


class StackCache(ActivationCache):
    """The part of a cache that belongs to one stack."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        model: Stack,
        *,
        attention_mask: Tensor | None,
        source_mask: Tensor | None,
        whole: bool,
        prompts: Mapping[str, CachedPrompts] | None = None,
    ) -> None:
        super().__init__(tensors, model, attention_mask=attention_mask, whole=whole, prompts=prompts)
        self._source_mask = source_mask

    def __copy__(self) -> StackCache:
        twin = StackCache(
            self._tensors,
            self.model,  # type: ignore[arg-type]
            attention_mask=self._mask,
            source_mask=self._source_mask,
            whole=self._whole,
            prompts=self._prompts,
        )
        twin.has_batch_dim = self.has_batch_dim
        return twin

    @like_the_cache
    def _derive(self, name: str) -> Tensor:
        made = self._cross(name) if self._whole and ".cross_attn." in name else None
        made = self._ln_cross(name) if made is None and ".ln_cross." in name else made
        return super()._derive(name) if made is None else made

    def _block(self, name: str) -> tuple[str, Any]:
        """How the names of a site's layer begin, and the layer."""
        here = ".".join(name.split(".")[:2])
        block = self.model.block(int(here.split(".")[1])) if name in self.model.hook_dict else None  # type: ignore[attr-defined]
        return here, block

    def _ln_cross(self, name: str) -> Tensor | None:
        here, block = self._block(name)
        resid = self._tensors.get(
            f"{here}.hook_resid_mid{'_cross' if block is not None and block.norms_on_stream else ''}"
        )
        if resid is None or not isinstance(block, DecoderBlock) or block.ln_cross is None:
            return None
        return block.ln_cross.scale(resid) if name.endswith("scale") else block.ln_cross.normalized(resid)

    def _cross(self, name: str) -> Tensor | None:
        """Scores, pattern and results of a cross-attention, from queries, keys and z; None where these are missing."""
        here, block = self._block(name)
        if not isinstance(block, DecoderBlock):
            return None
        attn = block.cross_attn
        stored = {site: self._tensors.get(f"{here}.cross_attn.hook_{site}") for site in ("q", "k", "z", "attn_scores")}
        q, k, z, scores = stored.values()
        if name.endswith("hook_result"):
            return None if z is None else attn.head_results(z)
        if scores is None and q is not None and k is not None:
            scores = attn.scores(q, k, source_sight(self._source_mask))
        if scores is None or name.endswith("hook_attn_scores"):
            return scores
        return attn.softmax(scores) if name.endswith("hook_pattern") else None


class EncoderDecoderCache(ActivationCache):
    """A read-only mapping from the sites of both stacks to the tensors of one forward.

    Attributes:
        model: the model that ran.
        has_batch_dim: False after `remove_batch_dim`.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        model: Any,
        *,
        masks: Mapping[str, Tensor | None],
        whole: bool = True,
        prompts: Mapping[str, CachedPrompts] | None = None,
    ) -> None:
        super().__init__(tensors, model, whole=whole, prompts=prompts)
        self._masks = dict(masks)

    def __copy__(self) -> EncoderDecoderCache:
        twin = EncoderDecoderCache(
            self._tensors, self.model, masks=self._masks, whole=self._whole, prompts=self._prompts
        )
        twin.has_batch_dim = self.has_batch_dim
        return twin

    @property
    def encoder(self) -> StackCache:
        """What the encoder computed, with the names of sites within it."""
        return self._of("encoder")

    @property
    def decoder(self) -> StackCache:
        """What the decoder computed, with the names of sites within it."""
        return self._of("decoder")

    def _of(self, stack: str) -> StackCache:
        start = f"{stack}."
        own, source = (CachedPrompts(mask=self._masks[which]) for which in (stack, "encoder"))
        cache = StackCache(
            {name.removeprefix(start): value for name, value in self._tensors.items() if name.startswith(start)},
            getattr(self.model, stack),
            attention_mask=self._masks[stack],
            source_mask=self._masks["encoder"],
            whole=self._whole,
            prompts={"": self._prompts.get(stack, own), "encoder": self._prompts.get("encoder", source)},
        )
        cache.has_batch_dim = self.has_batch_dim
        return cache

    def full_name(self, key: Key) -> str:
        """The full site name that a key means: `("decoder.z", 3)`; negative layers count from the stack's last."""
        if isinstance(key, str) or not isinstance(key, tuple) or len(key) not in (2, 3) or not isinstance(key[0], str):
            return super().full_name(key)
        site, layer, *kind = key
        stack = site.partition(".")[0]
        if stack not in STACKS:
            raise UnknownName(
                f"which stack's {site!r}? Give cache['decoder.{site}', {layer}] or cache['encoder.{site}', {layer}]"
            )
        if layer is not None:
            layer = one_of_layers(layer, getattr(self.model.cfg, stack).n_layers)
        return get_act_name(site, layer, *kind)

    def _derive(self, name: str) -> Tensor:
        stack, _, rest = name.partition(".")
        if stack not in STACKS or name not in self.model.hook_dict:
            return super()._derive(name)
        cache = self._of(stack)
        cache.has_batch_dim = True
        return cache[rest]
