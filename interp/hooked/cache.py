"""`ActivationCache`: what one forward computed, by site name.

Stored are the sites that were asked for; they share memory with the forward and are never copied. An on-demand site
that was not asked for is computed from its neighbours when it is first read: the pattern from queries and keys,
per-head results from z, split inputs from the residual stream.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.arguments import device_of, one_of_layers, shown, whole_number
from interp.errors import InterpError, PromptError, UnknownName
from interp.hooked.decompositions import CachedModel, Decompositions, Key, like_the_cache
from interp.hooked.pickling import AbsentModel, alone
from interp.hooked.tidy import CachedPrompts, tidy
from interp.sites import find_act_name, get_act_name, site_names, unknown_site

if TYPE_CHECKING:
    import pandas as pd


class ActivationCache(Decompositions, Mapping[str, Tensor]):
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

    # What is known of the prompts, by the stack that read them: "" where there is one. Older pickles have none.
    _prompts: Mapping[str, CachedPrompts] = MappingProxyType({})

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        model: CachedModel,
        *,
        attention_mask: Tensor | None = None,
        whole: bool = True,
        prompts: Mapping[str, CachedPrompts] | None = None,
    ) -> None:
        self._tensors = dict(tensors)
        self._mask = attention_mask
        self._whole = whole
        self._prompts = {} if prompts is None else dict(prompts)
        self._has_graph = any(value.requires_grad for value in self._tensors.values())
        self.model = model
        self.has_batch_dim = True

    def __getstate__(self) -> dict[str, Any]:
        tensors = {name: alone(value) for name, value in self._tensors.items()}
        model = AbsentModel(self.model.cfg, tuple(self.model.hook_dict))
        return {**self.__dict__, "_tensors": tensors, "_has_graph": False, "model": model}

    def __copy__(self) -> ActivationCache:
        twin = ActivationCache(
            self._tensors, self.model, attention_mask=self._mask, whole=self._whole, prompts=self._prompts
        )
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
        """The full site name that a key means; negative layers count from the last."""
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

    def tidy(
        self, site: str, layer: int | None = None, layer_type: str | None = None, *, prompt: int | None = None
    ) -> pd.DataFrame:
        """One site as a tidy table, for figures and pandas: a row for every entry, padding left out.

        Args:
            site, layer, layer_type: as `cache[site, layer, layer_type]` takes them; a full name needs no layer.
            prompt: only this one, counted from 0; None takes all.

        Returns:
            `layer` (of a site that belongs to one), `prompt`, then a column for each axis of the site by its name
            (`interp.sites`): `pos`, `head`, `query`, `key`, `d_model`, ..., `neuron` for `d_mlp`; and `value`.
            Positions count from the start of each real prompt. Where the tokens are known, `token` stands beside `pos`,
            `query_token` beside `query` and `key_token` beside `key`: `9: John`.

        Raises:
            UnknownName: a site that the cache does not have and cannot derive (the message offers the nearest), or a
                prompt that it does not have.

        Example:
            >>> import torch
            >>> from interp import GPT, ModelConfig
            >>> model = GPT(ModelConfig(n_layers=2, d_model=16, n_ctx=32, d_head=8, d_vocab=50, seed=0))
            >>> _, cache = model.run_with_cache(torch.tensor([[4, 7]]))
            >>> cache.tidy("pattern", 1)[["layer", "head", "query_token", "key_token"]][:3]
               layer  head query_token key_token
            0      1     0        0: 4      0: 4
            1      1     0        0: 4      1: 7
            2      1     0        1: 7      0: 4
        """
        key: Any = site if layer is None and layer_type is None else (site, layer)
        name = self.full_name((site, layer, layer_type) if layer_type is not None else key)
        value = self[name]
        row = site_names(self.model.cfg)[name.removesuffix("_grad")]
        number = re.search(r"blocks\.(\d+)\.", name)
        rows, keys = (self._prompts.get(stack, CachedPrompts(mask=self._mask)) for stack in (row.rows_in, row.keys_in))
        value = value if self.has_batch_dim else value[None]
        if prompt is not None:
            at = whole_number("prompt", prompt, least=0, most=len(value) - 1, refuse=UnknownName)
            value, rows, keys = value[at : at + 1], rows.only(at), keys.only(at)
        frame = tidy(value, row, int(number[1]) if number else None, rows, keys)
        return frame if prompt is None else frame.assign(prompt=prompt)

    @like_the_cache
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
