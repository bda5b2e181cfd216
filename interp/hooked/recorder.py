"""`Recorder`: a hook function that keeps what one forward computes, for an `ActivationCache`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interp.errors import HookError
from interp.hooked.slices import PosSlice, take


class Recorder:
    """Fills a dictionary with what readers see.

    Functions that may edit are handed copies (`HookPoint`), so that none of them can change what is stored here, unless
    it kept a tensor that it was given or has returned, and changes that later: `check` notices.
    """

    def __init__(
        self, *, pos_slice: PosSlice, device: str | torch.device | None, detach: bool, copy_views: bool
    ) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._pos_slice = pos_slice
        self._device = device
        self._detach = detach
        self._copy_views = copy_views

    def store(self, value: Tensor, hook: Any, name: str | None = None) -> None:
        """A hook function that keeps `value` under the hook point's name."""
        name = name or hook.name
        if self._detach:
            value = value.detach()
        if self._pos_slice is not None:
            axes = hook.site.axes
            axis = axes.index("query" if "query" in axes else "pos")
            value = take(value, self._pos_slice, axis)
        if self._copy_views and value.untyped_storage().nbytes() > value.nbytes:
            value = value.clone()  # so that the rest of the storage can go
        if self._device is not None:
            value = value.to(self._device)
        self.tensors[name] = value
        if not value.is_inference():
            self._versions[name] = value._version

    def store_gradient(self, gradient: Tensor, hook: Any) -> None:
        """A backward hook function that keeps a gradient under the name followed by `_grad`."""
        self.store(gradient, hook, f"{hook.name}_grad")

    def check(self) -> None:
        """Raise when a stored tensor was changed after it was stored."""
        for name, version in self._versions.items():
            if self.tensors[name]._version != version:
                raise HookError(
                    f"a hook changed in place the tensor that the cache holds as {name!r}; let it return a new tensor "
                    "(x = x.clone() before changing x)"
                )
