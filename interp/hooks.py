"""Hook points: where a forward hands a tensor to whoever asked for it, and takes back what they return.

A `HookPoint` stands in the forward at each site as `x = self.hook_z(x)`. With nothing attached it returns its argument.
Everything is attached through `attached`, which detaches again whatever happens, and which complains about a hook that
was asked for and never ran.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from interp.errors import HookError
from interp.sites import NameFilter, Site, match

HookFunction = Callable[..., Tensor | None]


def by_position(fn: HookFunction) -> HookFunction:
    """`fn(tensor, hook)`, whichever way `fn` takes its hook point: as the keyword `hook`, or as second argument."""
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return fn
    if "hook" not in parameters:
        return fn
    return lambda value, point: fn(value, hook=point)


@dataclass(eq=False)
class Hook:
    """One function at one hook point.

    `demands` says whether the hook makes an on-demand site be computed; `reads` that it only looks.
    """

    fn: HookFunction
    backward: bool = False
    demands: bool = True
    reads: bool = False
    ran: bool = False


class HookPoint:
    """One site of one layer: a callable that stands in the forward.

    `name` is the full site name, `ctx` a dictionary for the user's own notes. Truth value: whether somebody needs this
    site to be computed.
    """

    def __init__(self, name: str, site: Site) -> None:
        self.name = name
        self.site = site
        self.ctx: dict[str, Any] = {}
        self._hooks: list[Hook] = []

    def layer(self) -> int:
        """The layer this point belongs to."""
        if not self.site.per_layer:
            raise HookError(f"{self.name} belongs to no layer")
        return int(self.name.split(".")[1])

    def attach(self, hook: Hook) -> None:
        """Add a hook behind those that are there."""
        self._hooks.append(hook)

    def detach(self, hook: Hook) -> None:
        """Remove a hook, if it is there."""
        if hook in self._hooks:
            self._hooks.remove(hook)

    def clear(self) -> None:
        """Remove every hook and forget `ctx`."""
        self._hooks.clear()
        self.ctx.clear()

    @property
    def has_hooks(self) -> bool:
        """Whether anything is attached."""
        return bool(self._hooks)

    @property
    def edited(self) -> bool:
        """Whether a hook that may change the value is attached."""
        return any(not hook.reads for hook in self._hooks)

    @property
    def changes(self) -> bool:
        """Whether a hook is attached that may change the value itself, not only its gradient."""
        return any(not (hook.reads or hook.backward) for hook in self._hooks)

    @property
    def watches_gradient(self) -> bool:
        """Whether a backward hook is attached."""
        return any(hook.backward for hook in self._hooks)

    def __bool__(self) -> bool:
        return bool(self._hooks) and any(hook.demands for hook in self._hooks)

    def __call__(self, value: Tensor) -> Tensor:
        """The value, as the hooks leave it."""
        return self._run(value, tuple(self._hooks)) if self._hooks else value

    def change(self, value: Tensor) -> Tensor:
        """The value as those hooks leave it that may change it; `observe` shows it to the others.

        For values that are made in several steps, such as the states of a recurrence.
        """
        return self._run(value, [hook for hook in self._hooks if not (hook.reads or hook.backward)])

    def observe(self, value: Tensor) -> None:
        """Show the value to the hooks that only look at it or at its gradient."""
        self._run(value, [hook for hook in self._hooks if hook.reads or hook.backward])

    def _run(self, value: Tensor, hooks: Iterable[Hook]) -> Tensor:
        for hook in hooks:
            hook.ran = True
            if hook.backward:
                self._watch_gradient(value, hook)
                continue
            returned = hook.fn(value, self)
            if returned is not None:
                self._check(returned, value)
                value = returned
        return value

    def _watch_gradient(self, value: Tensor, hook: Hook) -> None:
        if not value.requires_grad:
            raise HookError(
                f"a backward hook on {self.name!r} needs a gradient, but none flows there: run outside torch.no_grad() "
                "and with parameters (or an earlier hook's tensor) that require one"
            )
        value.register_hook(lambda gradient: hook.fn(gradient, self))

    def _check(self, returned: object, value: Tensor) -> None:
        if not isinstance(returned, Tensor):
            raise HookError(f"the hook on {self.name!r} returned {type(returned).__name__}, expected a tensor or None")
        if returned.shape != value.shape or returned.dtype != value.dtype:
            axes = ", ".join(self.site.axes)
            raise HookError(
                f"the hook on {self.name!r} returned {list(returned.shape)} {returned.dtype}, "
                f"expected [{axes}] = {list(value.shape)} {value.dtype}"
            )

    def __repr__(self) -> str:
        return f"HookPoint({self.name!r}, axes={self.site.axes}, hooks={len(self._hooks)})"


@dataclass
class _Request:
    """What one entry of a hook list asked for, and the hooks that were attached for it."""

    wanted: NameFilter
    hooks: list[tuple[HookPoint, Hook]] = field(default_factory=list)


@contextmanager
def attached(
    points: Mapping[str, HookPoint],
    fwd_hooks: Sequence[tuple[NameFilter, HookFunction]] = (),
    bwd_hooks: Sequence[tuple[NameFilter, HookFunction]] = (),
    *,
    readers: Sequence[tuple[NameFilter, HookFunction]] = (),
    must_run: bool = True,
) -> Iterator[None]:
    """Attach hooks for the length of a `with` block.

    Each entry is `(names, fn)`; `names` is a full name, a glob, a predicate or a list of these. `readers` only look,
    and come last. A reader whose filter is None takes what is computed anyway, without making anything be computed.
    With `must_run=False` a hook that never ran is no error.

    Raises:
        UnknownName: `names` selects nothing.
        HookError: nothing that an entry asked for has run by the end of the block.
    """
    requests: list[_Request] = []
    kinds = [(fwd_hooks, False, False), (bwd_hooks, True, False), (readers, False, True)]
    try:
        for entries, backward, reads in kinds:
            for entry in entries:
                if not (isinstance(entry, (tuple, list)) and len(entry) == 2 and callable(entry[1])):
                    raise HookError(f"hooks are a list of pairs (names, function), but one of them is {entry!r}")
                wanted, fn = entry
                request = _Request(wanted)
                requests.append(request)
                call = by_position(fn)
                for name in match(wanted, points):
                    point = points[name]
                    demands = not (reads and wanted is None and point.site.on_demand)
                    hook = Hook(call, backward=backward, demands=demands, reads=reads)
                    point.attach(hook)
                    request.hooks.append((point, hook))
        yield
        for request in requests if must_run else ():
            _check_ran(request)
    finally:
        for request in requests:
            for point, hook in request.hooks:
                point.detach(hook)


def _check_ran(request: _Request) -> None:
    exact = isinstance(request.wanted, str) and len(request.hooks) == 1
    lists = isinstance(request.wanted, Sequence) and not isinstance(request.wanted, str)
    idle = [point.name for point, hook in request.hooks if not hook.ran]
    if idle and (exact or lists or len(idle) == len(request.hooks)):
        raise HookError(
            f"the hook on {idle[0]!r} never ran: the model was not called inside the block, "
            "or the forward started after this site or stopped before it"
        )
