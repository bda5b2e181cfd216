"""The building blocks of an algorithm from which `interp.ground_truth.compiler` makes a model.

1. A step is an attention head (what its query and key compare, which value it moves, where it writes) or a group of
   neurons (what must be present together, where the result is written).
2. Steps name the subspaces that they read and write: `token`, `position`, and any name that a step writes.
3. `schedule` places each step in the heads or the MLP of the first layer before which everything that it reads has been
   written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interp.errors import ConfigError, unknown


@dataclass(frozen=True)
class Read:
    """What a step reads of the residual stream.

    Args:
        name: a subspace; None is a constant 1, which is written as a bias.
        map: [subspace, channel]; None takes the subspace unchanged.
    """

    name: str | None
    map: Tensor | None = None


@dataclass(frozen=True)
class Match:
    """A term of a head's score: `strength` times the product of what query and key read."""

    query: Read
    key: Read
    strength: float


@dataclass(frozen=True)
class Offset:
    """A term of a head's score that depends on position alone: `strength` more at the key `back` tokens before the
    query than at any other.

    A negative strength needs learned positions: with rotary ones the other keys would differ from each other too.
    """

    back: int
    strength: float


@dataclass(frozen=True)
class Head:
    """A step that moves something between positions: an attention head.

    Args:
        name: of the step.
        score: the terms whose sum is the attention score.
        value: what is moved.
        writes: the subspace that it is written to.
    """

    name: str
    score: Sequence[Match | Offset]
    value: Read
    writes: str


@dataclass(frozen=True)
class Gate:
    """A step within each position: neurons that fire where several things are 1 together.

    Args:
        name: of the step.
        groups: for each group of neurons, everything that must be 1 for a neuron to fire; one neuron for each channel.
        writes: the subspace that every group writes to, channel by channel.
    """

    name: str
    groups: Sequence[Sequence[Read]]
    writes: str


Step = Head | Gate


def width(read: Read, sizes: Mapping[str, int]) -> int:
    """How many channels are read, given the sizes of the subspaces."""
    if read.map is not None:
        return read.map.shape[1]
    return 1 if read.name is None else sizes[read.name]


def neurons(step: Step, sizes: Mapping[str, int]) -> int:
    """How many neurons a step needs."""
    return sum(width(group[0], sizes) for group in step.groups) if isinstance(step, Gate) else 0


def score_channels(step: Step, sizes: Mapping[str, int]) -> int:
    """How many channels of queries and keys a step needs."""
    terms = step.score if isinstance(step, Head) else ()
    return sum(width(term.key, sizes) for term in terms if isinstance(term, Match))


def with_positions(step: Step, n_ctx: int) -> Step:
    """The step with every `Offset` as a `Match` of learned positions: a query at p with the key at p - back."""
    if not isinstance(step, Head):
        return step
    here = torch.eye(n_ctx)
    return replace(
        step,
        score=[
            Match(Read("position", here.roll(-term.back, 1).tril(-term.back)), Read("position"), term.strength)
            if isinstance(term, Offset)
            else term
            for term in step.score
        ],
    )


def schedule(steps: Sequence[Step], sizes: Mapping[str, int]) -> tuple[list[tuple[Step, int]], dict[str, int]]:
    """Each step with its stage (2 l for the heads of layer l, 2 l + 1 for its MLP), and the sizes of all subspaces.

    A subspace that several steps write is complete after the last of them.

    Args:
        steps: in any order.
        sizes: of the subspaces that exist from the start.

    Raises:
        UnknownName: a step reads a subspace that nothing writes.
        ConfigError: steps that wait for one another, numbers of channels that do not fit.
    """
    waiting, known, complete = list(steps), dict(sizes), dict.fromkeys(sizes, -1)
    placed: list[tuple[Step, int]] = []
    while waiting:
        unwritten = {step.writes for step in waiting}
        ready = [step for step in waiting if not unwritten & {read.name for read in _reads(step)}]
        if not ready:
            raise ConfigError(
                f"steps {', '.join(step.name for step in waiting)} wait for one another: each of them reads a subspace "
                "that one of them writes"
            )
        for step in ready:
            names = [read.name for read in _reads(step) if read.name is not None]
            for name in names:
                if name not in complete:
                    raise unknown(f"subspace read by step {step.name!r}", name, complete)
            _check(step, known)
            earliest = max((complete[name] for name in names), default=-1) + 1
            # Heads have even stages and MLPs odd ones.
            placed.append((step, earliest + (earliest % 2 if isinstance(step, Head) else 1 - earliest % 2)))
            written = width(_written(step), known)
            if known.setdefault(step.writes, written) != written:
                raise ConfigError(
                    f"step {step.name!r} writes {written} channels to subspace {step.writes!r}, which has "
                    f"{known[step.writes]}"
                )
            waiting.remove(step)
        for step, stage in placed:
            complete[step.writes] = max(complete.get(step.writes, -1), stage)
    return placed, known


def _reads(step: Step) -> Iterator[Read]:
    if isinstance(step, Gate):
        yield from (read for group in step.groups for read in group)
        return
    yield step.value
    for term in step.score:
        if isinstance(term, Match):
            yield from (term.query, term.key)


def _written(step: Step) -> Read:
    return step.value if isinstance(step, Head) else step.groups[0][0]


def _check(step: Step, sizes: Mapping[str, int]) -> None:
    """Refuse a step whose reads have different numbers of channels, or that writes a constant."""
    together = [(t.query, t.key) for t in step.score if isinstance(t, Match)] if isinstance(step, Head) else step.groups
    for reads in together:
        widths = [width(read, sizes) for read in reads]
        if len(set(widths)) > 1:
            raise ConfigError(
                f"step {step.name!r} combines reads of {' and '.join(map(str, widths))} channels, which must be equal"
            )
    if _written(step).name is None:
        raise ConfigError(f"step {step.name!r} would write a constant: give it a subspace to read")
