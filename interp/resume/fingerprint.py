"""`fingerprint`: does a sweep compute the same thing as last time, in another process?

1. Every value becomes bytes that begin with its type and contain their own length, so that different values cannot give
   the same bytes.
2. Numbers are represented by type and bits, tensors and arrays by dtype, shape and bits (not by device), containers by
   their parts. A cache that an edit copies from is represented by the one tensor that the edit reads.
3. A function is represented by its name, code, defaults, closure and attributes, and by the globals that its code
   names; a class by its methods. What the standard library and installed packages define is not followed further: keep
   their versions beside a fingerprint.
4. Anything else is represented by what `pickle` would store.
5. The fingerprint is the SHA-256 of these bytes.
"""

from __future__ import annotations

import contextlib
import copyreg
import dataclasses
import dis
import functools
import hashlib
import struct
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.config import ModelConfig, RopeScaling
from interp.edits import Edit, Variant
from interp.errors import ConfigError
from interp.hooked.cache import ActivationCache
from interp.sites import get_act_name

MAX_BYTES = 4096  # of one container; a longer one is replaced by its digest: a part used many times would add up
CODE = (
    *("co_name", "co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_flags", "co_code", "co_exceptiontable"),
    *("co_names", "co_varnames", "co_freevars", "co_cellvars", "co_consts"),
)


def fingerprint(value: object) -> str:
    """SHA-256 (hex) of a value's content: the same for equal values in every process, different for different values.

    `1`, `1.0`, `True` and `"1"` differ, and so do lists from tuples; the order of an edit's `where` and of a variant's
    `labels` does not matter.

    Raises:
        ConfigError: something that another process could not recognise, such as a generator or an open file.

    >>> fingerprint([1, 2]) == fingerprint([1, 2]) != fingerprint([12])
    True
    """
    try:
        return hashlib.sha256(_Printer()(value)).hexdigest()
    except RecursionError:
        raise ConfigError(
            f"a {type(value).__qualname__} is nested too deeply to be recognised in a later run; give the edits "
            "tensors, or sweep without out"
        ) from None


@functools.lru_cache(4096)
def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"s%d:%b" % (len(data), data)


def _items(kind: bytes, parts: Iterable[bytes]) -> bytes:
    parts = parts if type(parts) is list else list(parts)
    whole = b"%b%d:%b" % (kind, len(parts), b"".join(parts))
    return whole if len(whole) <= MAX_BYTES else b"#" + hashlib.sha256(whole).digest()


SCALARS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda value: b"N",
    bool: lambda value: b"T" if value else b"F",
    int: functools.lru_cache(4096)(lambda value: b"i%d;" % value),
    float: lambda value: b"f" + struct.pack("<d", value),
    complex: lambda value: b"c" + struct.pack("<dd", value.real, value.imag),
    str: _text,
    bytes: lambda value: b"b%d:%b" % (len(value), value),
}

FIRST_FIELDS: dict[type, tuple[str, ...]] = {
    ModelConfig: (
        *("n_layers", "d_model", "n_ctx", "d_head", "d_vocab", "n_heads", "n_key_value_heads", "d_mlp", "d_vocab_out"),
        *("act_fn", "gated_mlp", "normalization_type", "eps", "final_norm", "positional_embedding_type", "rotary_dim"),
        *("rotary_base", "rotary_adjacent_pairs", "rope_scaling", "attention_dir", "attn_only", "parallel_attn_mlp"),
        *("use_attn_scale", "attn_scale", "tie_word_embeddings", "attn_in_bias", "attn_out_bias", "mlp_bias"),
        *("unembed_bias", "layer_types", "d_inner", "d_state", "d_conv", "dt_rank", "d_ssm_head", "n_ssm_groups"),
        *("dt_limit", "conv_bias", "mamba_bias", "ssm_normalization_type", "ssm_eps", "initializer_range", "seed"),
        "model_name",
    ),
    RopeScaling: ("kind", "factor", "low_freq_factor", "high_freq_factor", "original_n_ctx"),
}
"""The fields that the first fingerprints of configurations had, in their order.

Fields that were added later count where they differ from their default, so that a model has the fingerprint that
sweeps, lenses and circuits were saved with before there was such a field. (`attention_factor` is settled as 1 where its
default, None, has no effect.)
"""


class _Printer:
    """The bytes of values; each object is visited once, and a reference back to an object becomes its number."""

    def __init__(self) -> None:
        self.met: dict[int, bytes] = {}  # id of an object -> its bytes
        self.kept: list[Any] = []  # keeps the objects alive, so that no other object gets the same id
        self.named: dict[int, list[str]] = {}  # id of a code object -> the globals that it reads
        self.orders: dict[tuple[Any, ...], list[tuple[bytes, Any]]] = {}  # the keys of a mapping, sorted
        self.inside: list[str] = []  # the functions and classes around the current value, for messages
        self.kinds: list[tuple[type | tuple[type, ...], Callable[[Any], bytes]]] = [
            (Tensor, self.tensor),
            (ActivationCache, self.cache),
            (types.FunctionType, self.function),
            (types.CodeType, lambda code: _items(b"C", (self(getattr(code, name)) for name in CODE))),
            (types.ModuleType, self.module),
            (type, self.class_),
            (np.generic, lambda value: self.array(np.asarray(value), b"g")),
        ]
        self.exact: dict[type, Callable[[Any], bytes]] = {
            list: lambda value: _items(b"l", map(self, value)),
            tuple: lambda value: _items(b"t", map(self, value)),
            dict: lambda value: _items(b"d", map(self, _flat(value.items()))),
            types.MappingProxyType: lambda value: _items(b"p", map(self, _flat(value.items()))),
            set: lambda value: _items(b"S", sorted(map(_alone, value))),
            frozenset: lambda value: _items(b"Z", sorted(map(_alone, value))),
            np.ndarray: self.array,
        }

    def __call__(self, value: Any) -> bytes:
        kind = type(value)
        scalar = SCALARS.get(kind)
        if scalar is not None:
            return scalar(value)
        if kind is Edit or kind is Variant:
            return self.part(value)
        known = self.met.get(id(value))
        if known is not None:
            return known
        self.met[id(value)] = b"^%d;" % len(self.kept)  # how it appears inside itself
        self.kept.append(value)
        known = self.met[id(value)] = self.method(value)(value)
        return known

    def method(self, value: Any) -> Callable[[Any], bytes]:
        """The function that writes values of this type."""
        exact = self.exact.get(type(value))
        if exact is not None:
            return exact
        for kind, method in self.kinds:
            if isinstance(value, kind):
                return method
        return self.record if dataclasses.is_dataclass(value) else self.pickled

    def part(self, value: Edit | Variant) -> bytes:
        """An edit or a variant, of which there are many: mappings without order, any sequence as a tuple."""
        whole: Any = type(value)
        parts = [self(whole)]
        for name in _fields(whole):
            inner = getattr(value, name)
            kind = type(inner)
            if kind is dict:
                parts.append(self.unordered(inner))
            elif kind is list or kind is tuple:
                parts.append(_items(b"t", map(self, inner)))
            elif kind is ActivationCache and isinstance(value, Edit):
                parts.append(self(inner[_site_name(value)]))
            else:
                parts.append(self(inner))
        return _items(b"V", parts)

    def unordered(self, value: dict[Any, Any]) -> bytes:
        names = tuple(value)
        order = self.orders.get(names)
        if order is None:
            order = sorted(((self(key), key) for key in names), key=itemgetter(0))
            if all(type(key) is str for key in names):  # 1 and True are equal keys and would share an order
                self.orders[names] = order
        parts = []
        for printed, key in order:
            inner = value[key]
            scalar = SCALARS.get(type(inner))
            parts.append(printed)
            parts.append(scalar(inner) if scalar else self(tuple(inner) if type(inner) in (list, range) else inner))
        return _items(b"m", parts)

    def tensor(self, value: Tensor) -> bytes:
        try:
            flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            bits = hashlib.sha256(flat.view(torch.uint8).numpy().data).digest()
        except (RuntimeError, TypeError, ValueError) as error:
            raise self.refusal(value, f"a {value.layout} tensor on {value.device}") from error
        return _items(b"T", [_text(str(value.dtype)), self(tuple(value.shape)), bits])

    def array(self, value: np.ndarray, kind: bytes = b"A") -> bytes:
        content = self(value.tolist()) if value.dtype.hasobject else hashlib.sha256(value.tobytes()).digest()
        return _items(kind, [_text(repr(value.dtype)), self(value.shape), content])

    def cache(self, value: ActivationCache) -> bytes:
        return _items(b"K", [self(value.has_batch_dim), *(self(part) for n in sorted(value) for part in (n, value[n]))])

    def record(self, value: Any) -> bytes:
        """A dataclass: only its fields, because cached properties may or may not be there."""
        whole: Any = type(value)
        names = FIRST_FIELDS.get(whole)
        if names is None:
            kind = self(whole)
            names = tuple(n for n in _fields(whole) if not _later(whole, n) or getattr(value, n) != getattr(whole, n))
        else:
            kind = _items(b"X", [_text("interp.config"), _text(whole.__name__)])  # the module they were first in
            later = [n for n in _fields(whole) if n not in names]
            unsaid = {n: 1.0 if n == "attention_factor" else getattr(whole, n) for n in later}
            names += tuple(n for n in later if getattr(value, n) != unsaid[n])
        return _items(b"D", [kind, *(self(part) for n in names for part in (n, getattr(value, n)))])

    def function(self, value: types.FunctionType) -> bytes:
        self.inside.append(f"{value.__module__}.{value.__qualname__}")
        code, known = value.__code__, value.__globals__
        parts = [value.__module__, value.__qualname__, code, value.__defaults__, value.__kwdefaults__, value.__dict__]
        whole = [*map(self, parts), *(self.cell(cell) for cell in value.__closure__ or ())]
        if not _installed(str(known.get("__name__"))):
            if id(code) not in self.named:
                self.named[id(code)] = _named(code)
            whole += [self(part) for name in self.named[id(code)] if name in known for part in (name, known[name])]
        self.inside.pop()
        return _items(b"L", whole)

    def cell(self, cell: types.CellType) -> bytes:
        try:
            content = cell.cell_contents
        except ValueError:  # not bound yet
            return b"?"
        return self(content)

    def module(self, value: types.ModuleType) -> bytes:
        """An installed module by name; the user's own also by its source."""
        source = b""
        if not _installed(value.__name__):
            with contextlib.suppress(OSError):
                source = Path(getattr(value, "__file__", None) or "").read_bytes()
        return _items(b"M", [_text(value.__name__), hashlib.sha256(source).digest()])

    def class_(self, value: type) -> bytes:
        """An installed class by name; the user's own also by its bases, methods and attributes."""
        name = [_text(value.__module__ or ""), _text(value.__qualname__)]
        if _installed(value.__module__ or ""):
            return _items(b"X", name)
        self.inside.append(f"{value.__module__}.{value.__qualname__}")
        whole = _items(b"X", [*name, self(value.__bases__), self(dict(_members(value)))])
        self.inside.pop()
        return whole

    def pickled(self, value: Any) -> bytes:
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            recipe: Any = reduce(value) if reduce else value.__reduce_ex__(4)
        except RecursionError:
            raise
        except Exception as error:
            raise self.refusal(value) from error
        if isinstance(recipe, str):  # a global name in its module; a function that it wraps may be the user's own
            recipe = (type(value), getattr(value, "__module__", None), recipe, getattr(value, "__wrapped__", None))
        else:
            recipe = (*recipe[:3], *(list(more) if isinstance(more, Iterator) else more for more in recipe[3:]))
        return _items(b"P", map(self, recipe))

    def refusal(self, value: Any, shown: str = "") -> ConfigError:
        shown = shown or f"{value!r:.80} ({type(value).__qualname__})"
        reader = f", which {self.inside[-1]} reads," if self.inside else ""
        return ConfigError(
            f"{shown}{reader} could not be recognised in a later run; give the edit a tensor, or sweep without out"
        )


def _flat(items: Iterable[tuple[Any, Any]]) -> Iterator[Any]:
    return (part for item in items for part in item)


def _alone(value: Any) -> bytes:
    """The bytes of a set's member on its own: sets have no order, so it must not refer to objects met before."""
    return bytes.fromhex(fingerprint(value))


def _site_name(edit: Edit) -> str:
    layer: Any = None if "blocks." in edit.site else edit.where.get("layer")
    return get_act_name(edit.site, layer)


@functools.cache
def _later(kind: Any, name: str) -> bool:
    """Whether a field was added, with a default, to a dataclass whose fingerprints are in files."""
    return bool(kind.__dataclass_fields__[name].metadata.get("later"))


def _fields(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _named(code: types.CodeType) -> list[str]:
    """The globals that code names, including the functions and classes inside it."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _named(part)]
    return sorted(names.union(inner))


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """The members that the body of a class defines, without those that Python adds."""
    for name, member in vars(kind).items():
        if isinstance(member, staticmethod | classmethod):
            yield name, (type(member), member.__func__)
        elif isinstance(member, property):
            yield name, (member.fget, member.fset, member.fdel)
        elif isinstance(member, functools.cached_property):
            yield name, member.func
        elif isinstance(member, types.FunctionType) or not (name.startswith("__") or name == "_abc_impl"):
            yield name, member


@functools.cache
def _installed(module: str) -> bool:
    """Whether a module belongs to Python, to this package or to an installed package."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return True
    files = [getattr(sys.modules.get(name), "__file__", None) for name in (module, top)]
    return any({"site-packages", "dist-packages"} & set(Path(file).parts) for file in files if file)
