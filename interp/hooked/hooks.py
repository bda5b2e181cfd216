"""Hook points: where a forward hands a tensor to whoever asked for it, and takes back what they return.

The forward calls a `HookPoint` at each site, as `x = self.hook_z(x)`. With nothing attached it returns its argument.

Who sees which hook?
1. `attached` puts all hooks of a `with` block into one value of the calling context (a thread, or a task of asyncio) in
   one step. A forward runs the hooks of the context that calls it, so threads that share a model share no hooks.
2. They are in force as long as the `with` statement runs, and no longer: they hang on an object that it alone holds.
   That object is gone when the statement is, even if an interrupt comes before the first line that would detach them.
3. `HookedModel.add_hook` gives hooks to the model itself, until `reset_hooks`; every thread sees these.

Who may write where? A function that may edit is handed a copy, so that one that edits in place changes neither what the
model still needs nor what a cache holds. Functions that only read get the tensor itself. Where nobody edits, nothing is
copied.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from torch import Tensor

from interp.arguments import is_several, misfit, own_signature, shown
from interp.errors import HookError
from interp.sites import NameFilter, Site, match

T = TypeVar("T")
HookFunction = Callable[..., Tensor | None]


def by_position(fn: HookFunction, where: str) -> HookFunction:
    """`fn(tensor, hook)`, whichever way `fn` takes its hook point: as the keyword `hook`, or as second argument.

    Args:
        fn: the function.
        where: what it is attached to, for the message.

    Raises:
        HookError: a function that cannot be called so, as far as its signature says.
    """
    own = own_signature(fn)
    if own is None:
        return fn
    named = "hook" in (inspect.signature(fn) if hasattr(fn, "__wrapped__") else own).parameters
    if wrong := misfit(fn, own, None, hook=None) if named else misfit(fn, own, None, None):
        raise HookError(f"the function for {where} is called with (value, hook), and {wrong}")
    return (lambda value, point: fn(value, hook=point)) if named else fn


@dataclass(eq=False)
class Hook:
    """One function at one hook point.

    `demands` says whether the hook makes an on-demand site be computed; `reads` that it only looks; `in_place` that it
    may change the tensor that it is given, and so needs a copy.
    """

    fn: HookFunction
    backward: bool = False
    demands: bool = True
    reads: bool = False
    in_place: bool = True
    ran: bool = False

    def call(self, value: Tensor, point: HookPoint) -> Tensor:
        """The value, or the gradient, as the function leaves it."""
        given = value.clone() if self.in_place and not self.reads else value
        returned = self.fn(given, point)
        if returned is None:
            returned = given
        else:
            point.check(returned, value)
        # Who has it may go on to change it. Where torch counts changes, a cache notices (`Recorder.check`).
        kept = self.in_place and not self.reads and returned.is_inference()
        return returned.clone() if kept else returned


class Kept:
    """The hooks of the model itself: one hook by site name for each call that added some.

    The list grows and is replaced, each in one step, so that threads need no lock and an interrupt leaves nothing half.
    """

    def __init__(self) -> None:
        self.added: list[Mapping[str, Hook]] = []

    def at(self, name: str) -> tuple[Hook, ...]:
        """The hooks of a site, in the order in which they were added."""
        return tuple(hooks[name] for hooks in self.added if name in hooks)


class HookPoint:
    """One site of one layer: a callable that the forward passes its value through.

    `name` is the full site name, `ctx` a dictionary for the user's own notes, which every thread shares; `kept` holds
    the hooks of the model itself.
    """

    def __init__(self, name: str, site: Site) -> None:
        self.name = name
        self.site = site
        self.ctx: dict[str, Any] = {}
        self.kept = Kept()

    def layer(self) -> int:
        """The layer this point belongs to."""
        if not self.site.per_layer:
            raise HookError(f"{self.name} belongs to no layer")
        parts = self.name.split(".")
        return int(parts[parts.index("blocks") + 1])

    @property
    def hooks(self) -> tuple[Hook, ...]:
        """The hooks in force for whoever asks: the model's own, then those of the calling context, in their order."""
        attached = _ATTACHED.get()
        if not (attached or self.kept.added):
            return ()
        found = self.kept.at(self.name)
        for attachment in attached:
            here = attachment.hooks.get(self)
            if here and attachment.in_force:
                found += here
        return found

    @property
    def has_hooks(self) -> bool:
        """Whether anything is attached."""
        return bool(self.hooks)

    @property
    def edited(self) -> bool:
        """Whether a hook that may change the value is attached."""
        return any(not hook.reads for hook in self.hooks)

    @property
    def changes(self) -> bool:
        """Whether a hook is attached that may change the value itself, not only its gradient."""
        return any(not (hook.reads or hook.backward) for hook in self.hooks)

    @property
    def watches_gradient(self) -> bool:
        """Whether a backward hook is attached."""
        return any(hook.backward for hook in self.hooks)

    @property
    def wanted(self) -> bool:
        """Whether somebody needs this site to be computed, which may be one that is formed on demand."""
        return bool(_ATTACHED.get() or self.kept.added) and any(hook.demands for hook in self.hooks)

    def __call__(self, value: Tensor) -> Tensor:
        """The value, as the hooks leave it."""
        return self._run(value, self.hooks) if _ATTACHED.get() or self.kept.added else value

    def change(self, value: Tensor) -> Tensor:
        """The value as those hooks leave it that may change it; `observe` shows it to the others.

        For values that are made in several steps, such as the states of a recurrence.
        """
        return self._run(value, [hook for hook in self.hooks if not (hook.reads or hook.backward)])

    def observe(self, value: Tensor) -> None:
        """Show the value to the hooks that only look at it or at its gradient."""
        self._run(value, [hook for hook in self.hooks if hook.reads or hook.backward])

    def _run(self, value: Tensor, hooks: Iterable[Hook]) -> Tensor:
        for hook in hooks:
            hook.ran = True
            if hook.backward:
                self._watch_gradient(value, hook)
            else:
                value = hook.call(value, self)
        return value

    def _watch_gradient(self, value: Tensor, hook: Hook) -> None:
        if not value.requires_grad:
            raise HookError(
                f"a backward hook on {self.name!r} needs a gradient, but none flows there: run outside torch.no_grad() "
                "and with parameters (or an earlier hook's tensor) that require one"
            )
        value.register_hook(lambda gradient: hook.call(gradient, self))

    def check(self, returned: object, value: Tensor) -> None:
        """Refuse what cannot take the value's place.

        Raises:
            HookError: no tensor, or one of another shape or number type.
        """
        if not isinstance(returned, Tensor):
            raise HookError(f"the hook on {self.name!r} returned {type(returned).__name__}, expected a tensor or None")
        if returned.shape != value.shape or returned.dtype != value.dtype:
            axes = ", ".join(self.site.axes)
            raise HookError(
                f"the hook on {self.name!r} returned {list(returned.shape)} {returned.dtype}, "
                f"expected [{axes}] = {list(value.shape)} {value.dtype}"
            )

    def __repr__(self) -> str:
        return f"HookPoint({self.name!r}, axes={self.site.axes}, hooks={len(self.hooks)})"


@dataclass
class _Request:
    """What one entry of a hook list asked for, and the hooks that were attached for it."""

    wanted: NameFilter
    hooks: list[tuple[HookPoint, Hook]] = field(default_factory=list)


class _Life:
    """Lives as long as the `with` statement that holds it."""

    __slots__ = ("__weakref__",)


class _End(functools.partial[None]):
    """What a `with` statement calls at its end; nothing else holds it, and so nothing else holds `life`."""

    life: _Life


class _AtEnd:
    """`Attachment.__exit__`: a new `_End`, which the `with` statement looks up before it enters."""

    def __get__(self, attachment: Attachment[Any] | None, owner: type) -> Callable[..., None]:
        if attachment is None:  # contextlib.ExitStack binds it by itself
            return _leave
        end = _End(_leave, attachment)
        if not attachment.entered:
            end.life = life = _Life()
            attachment.life = weakref.ref(life)
        return end


@dataclass(eq=False)
class Attachment(Generic[T]):
    """The hooks of one `with` block.

    An ordinary `__exit__` cannot be relied upon to detach them: an interrupt (Ctrl-C) may come at its first
    instruction. So the hooks are in force while `life` is there, which belongs to the `with` statement: Python lets go
    of it on every way out. What `_leave` does beside that is tidying.

    Attributes:
        gives: what the block is given: `with ... as gives`.
        hooks: the hooks at each point.
        requests: what was asked for, to see that it ran.
        entered: whether the block has begun.
        life: refers to what the block holds; None before it.
    """

    gives: T
    hooks: dict[HookPoint, tuple[Hook, ...]]
    requests: Sequence[_Request]
    entered: bool = False
    life: weakref.ref[_Life] | None = None
    _held: _Life | None = None

    @property
    def in_force(self) -> bool:
        """Whether the block runs."""
        return self.life is not None and self.life() is not None

    def __enter__(self) -> T:
        if self.entered:
            raise HookError("these hooks were attached before: attach them anew for another block")
        if not self.in_force:  # called by hand or by an ExitStack, which hold no `_End`
            self._held = _Life()
            self.life = weakref.ref(self._held)
        self.entered = True
        _ATTACHED.set((*(other for other in _ATTACHED.get() if other.in_force), self))
        return self.gives

    __exit__ = _AtEnd()


_ATTACHED: ContextVar[tuple[Attachment[Any], ...]] = ContextVar("interp_hooks", default=())


def _leave(attachment: Attachment[Any], kind: type[BaseException] | None = None, *_: object) -> None:
    attachment.life = attachment._held = None
    _ATTACHED.set(tuple(other for other in _ATTACHED.get() if other is not attachment))
    for request in attachment.requests if kind is None else ():
        _check_ran(request)


def attached(
    points: Mapping[str, HookPoint],
    fwd_hooks: Sequence[tuple[NameFilter, HookFunction]] = (),
    bwd_hooks: Sequence[tuple[NameFilter, HookFunction]] = (),
    *,
    readers: Sequence[tuple[NameFilter, HookFunction]] = (),
    must_run: bool = True,
    in_place: bool = False,
    gives: T = None,  # type: ignore[assignment]
) -> AbstractContextManager[T]:
    """Attach hooks for the length of a `with` block, for the calling thread (or asyncio task).

    Each entry is `(names, fn)`; `names` is a full name, a glob, a predicate or a list of these. `readers` only look,
    and come last. A reader whose filter is None takes what is computed anyway, without making anything be computed.

    Args:
        points: the hook points that there are.
        fwd_hooks, bwd_hooks, readers: the entries.
        must_run: False if a hook may never run.
        in_place: whether the functions may change what they are given, and so need copies; readers never do.
        gives: what the block is given.

    Raises:
        UnknownName: `names` selects nothing.
        HookError: no list of pairs; nothing that an entry asked for has run by the end of the block.
    """
    requests: list[_Request] = []
    hooks: dict[HookPoint, tuple[Hook, ...]] = {}
    for entries, backward, reads in ((fwd_hooks, False, False), (bwd_hooks, True, False), (readers, False, True)):
        if not is_several(entries):
            raise HookError(f"hooks are a list of pairs (names, function), not {shown(entries)}")
        for entry in entries:
            if not (isinstance(entry, (tuple, list)) and len(entry) == 2 and callable(entry[1])):
                raise HookError(f"hooks are a list of pairs (names, function), but one of them is {shown(entry)}")
            wanted, fn = entry
            request = _Request(wanted)
            requests.append(request)
            names = match(wanted, points)
            call = by_position(fn, said(names))
            for name in names:
                point = points[name]
                demands = not (reads and wanted is None and point.site.on_demand)
                hook = Hook(call, backward=backward, demands=demands, reads=reads, in_place=in_place)
                hooks[point] = (*hooks.get(point, ()), hook)
                request.hooks.append((point, hook))
    attachment = Attachment(gives, hooks, requests if must_run else ())
    return cast(AbstractContextManager[T], attachment)


def said(names: Sequence[str]) -> str:
    """Some sites in a message."""
    return f"{names[0]!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "") if names else "no site"


def detach(points: Mapping[str, HookPoint]) -> None:
    """Detach what `attached` has attached to some points in the calling context."""
    own = set(points.values())
    _ATTACHED.set(tuple(other for other in _ATTACHED.get() if own.isdisjoint(other.hooks)))


def _check_ran(request: _Request) -> None:
    exact = isinstance(request.wanted, str) and len(request.hooks) == 1
    lists = isinstance(request.wanted, Sequence) and not isinstance(request.wanted, str)
    idle = [point.name for point, hook in request.hooks if not hook.ran]
    if idle and (exact or lists or len(idle) == len(request.hooks)):
        raise HookError(
            f"the hook on {idle[0]!r} never ran: the model was not called inside the block, "
            "or the forward started after this site or stopped before it"
        )
