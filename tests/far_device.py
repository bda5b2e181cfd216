"""A device that is not the CPU, on any machine: tensors that say they are on it, and whose numbers lie on the CPU.

It finds what would fail on a GPU without having one: an operation whose tensors are on two devices, a NumPy array asked
of a device tensor, a device that is taken for the CPU. It knows nothing of speed, nor of the rounding of a GPU, and
torch does not differentiate on a device that no driver has announced.

1. Inside `far_device()` every operation passes `_run`, in which tensors are made that are asked for on `FAR`.
2. An operation with such tensors is refused where a GPU would refuse it: a CPU tensor beside them may be a single
   number (0 dimensions), an index, or one side of a copy.
3. It runs on the numbers, and its results are on the device again, except for copies to the CPU.

It counts operations, copies between the devices, and waits: where the host asks for a number or for a shape that the
device has to compute first.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
FAR = torch.device("privateuseone", 0)  # torch's name for a device of somebody's own
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten._unique2.default, aten.unique_consecutive.default}

counts: Counter[str] = Counter()
_libraries: list[torch.library.Library] = []  # which are gone with the objects


class FarTensor(Tensor):
    """A tensor on `FAR`; `inner` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> FarTensor:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=FAR,
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FarTensor({self.inner!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    """Sees operations that have no tensor yet: those that make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors: list[Tensor] = []
    plain_args, plain = _plain(args, tensors), {name: _plain(value, tensors) for name, value in kwargs.items()}
    far = {id(value.inner): value for value in tensors if isinstance(value, FarTensor)}
    asked = kwargs.get("device")
    to_far = asked is not None and torch.device(asked).type == FAR.type
    if not far and not to_far:
        return func(*args, **kwargs)
    if func is aten._fused_sdp_choice.default:
        return 0  # attention by plain products: the names of fused kernels differ from device to device
    _check(func, args, tensors)
    _count(func, args, moved=asked is not None and to_far != bool(far))
    found = func(*plain_args, **(plain | {"device": torch.device("cpu")} if to_far else plain))

    def back(value: Any) -> Any:
        if not isinstance(value, Tensor) or any(value is one for one in tensors):
            return value
        if id(value) in far:  # changed in place
            return far[id(value)]
        return FarTensor(value) if to_far or asked is None else value

    return [back(value) for value in found] if isinstance(found, list | tuple) else back(found)


def _plain(value: Any, tensors: list[Tensor]) -> Any:
    """An argument with the numbers of far tensors in their place; every tensor is added to `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.inner if isinstance(value, FarTensor) else value
    return [_plain(one, tensors) for one in value] if isinstance(value, list | tuple) else value


def _check(func: Any, args: Any, tensors: list[Tensor]) -> None:
    beside = [value for value in tensors if not isinstance(value, FarTensor)]
    refused = func not in COPIES and any(value.ndim for value in beside)
    if func in INDEXED:
        values = [value for value in args[2:] if isinstance(value, Tensor) and not isinstance(value, FarTensor)]
        refused = not isinstance(args[0], FarTensor) or any(value.ndim for value in values)
    if refused:
        shapes = ", ".join(f"{list(value.shape)} on {value.device}" for value in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} of {shapes}")


def _count(func: Any, args: Any, *, moved: bool) -> None:
    by_mask = func in INDEXED and any(index is not None and index.dtype == torch.bool for index in args[1])
    to_host = func in COPIES and isinstance(args[0], FarTensor) == (func is aten._to_copy.default)
    crosses = moved if func is not aten.copy_.default else type(args[0]) is not type(args[1])
    counts["operations"] += 1
    counts["copies"] += crosses
    counts["waits"] += func in WAITS or by_mask or (crosses and to_host)


def _empty_strided(size: Any, stride: Any, **kwargs: Any) -> Tensor:
    return FarTensor(torch.empty_strided(size, stride, dtype=kwargs.get("dtype")))


def _copy(into: FarTensor, value: Tensor, non_blocking: bool = False) -> Tensor:
    into.inner.copy_(value.inner if isinstance(value, FarTensor) else value)
    return into


@functools.cache
def _register() -> None:
    set_up = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if set_up is None:
        pytest.skip(f"torch {torch.__version__} makes no devices in Python")
    set_up()
    library = torch.library.Library("aten", "IMPL")  # for lists, of which torch makes tensors where no mode looks
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl("copy_", _copy, "PrivateUse1")
    _libraries.append(library)


@contextmanager
def far_device() -> Iterator[Counter[str]]:
    """Let there be `FAR`, and count from 0."""
    _register()
    counts.clear()
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter cannot take a FarTensor's place
    try:
        with _Everywhere():
            yield counts
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
