"""The words in which a model's circuit is written down for `interp.ground_truth.compiler`.

1. A step is an attention head (what its query and key compare, which value it moves, where it writes) or a group of
   neurons (what must be there together, where that is written).
2. Steps speak of subspaces by name: `token`, `position`, and whatever steps write.
3. `schedule` finds when each step can be taken: in the heads or the MLP of the first layer before which everything that
   it reads has been written.
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
        name: a subspace; None is a constant 1, which costs a bias.
        map: [subspace, channel]; None takes the subspace as it is.
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

    A negative strength is for models with learned positions: among rotary ones the other keys would differ too.
    """

    back: int
    strength: float


@dataclass(frozen=True)
class Head:
    """A step that moves something between positions: an attention head.

    Args:
        name: of the step.
        score: what is added up to the score.
        value: what is moved.
        writes: the subspace that it is written to.
    """

    name: str
    score: Sequence[Match | Offset]
    value: Read
    writes: str


@dataclass(frozen=True)
class Gate:
    """A step at each position by itself: neurons that fire where several things are 1 together.

    Args:
        name: of the step.
        groups: of each group of neurons, all that must be 1 (or the neuron stays at 0); one channel is one neuron.
        writes: the subspace that every group writes to, channel by channel.
    """

    name: str
    groups: Sequence[Sequence[Read]]
    writes: str


Step = Head | Gate


def width(read: Read, sizes: Mapping[str, int]) -> int:
    """The channels of what is read, where the subspaces have these sizes."""
    if read.map is not None:
        return read.map.shape[1]
    return 1 if read.name is None else sizes[read.name]


def neurons(step: Step, sizes: Mapping[str, int]) -> int:
    """How many neurons a step takes."""
    return sum(width(group[0], sizes) for group in step.groups) if isinstance(step, Gate) else 0


def score_channels(step: Step, sizes: Mapping[str, int]) -> int:
    """How many channels of queries and keys a step takes."""
    terms = step.score if isinstance(step, Head) else ()
    return sum(width(term.key, sizes) for term in terms if isinstance(term, Match))


def with_positions(step: Step, n_ctx: int) -> Step:
    """The step with every `Offset` as a match of learned positions, a query at p with the key at p - back."""
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
    """When each step is taken, 2 l in the heads of layer l and 2 l + 1 in its MLP, and the sizes of all subspaces.

    A subspace that several steps write is complete after the last of them.

    Args:
        steps: in any order.
        sizes: of the subspaces that are there from the start.

    Raises:
        UnknownName: a step reads what nothing writes.
        ConfigError: steps that wait for one another, channels that do not fit.
    """
    waiting, known, complete = list(steps), dict(sizes), dict.fromkeys(sizes, -1)
    placed: list[tuple[Step, int]] = []
    while waiting:
        unwritten = {step.writes for step in waiting}
        ready = [step for step in waiting if not unwritten & {read.name for read in _reads(step)}]
        if not ready:
            raise ConfigError(f"steps {', '.join(step.name for step in waiting)} wait for one another")
        for step in ready:
            names = [read.name for read in _reads(step) if read.name is not None]
            for name in names:
                if name not in complete:
                    raise unknown(f"subspace read by step {step.name!r}", name, complete)
            _check(step, known)
            after = max((complete[name] for name in names), default=-1) + 1
            placed.append((step, after + (after % 2 if isinstance(step, Head) else 1 - after % 2)))
            written = width(_written(step), known)
            if known.setdefault(step.writes, written) != written:
                raise ConfigError(
                    f"step {step.name!r} writes {written} channels to {step.writes!r}, which has {known[step.writes]}"
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
    """Refuse channels that do not fit one another."""
    together = [(t.query, t.key) for t in step.score if isinstance(t, Match)] if isinstance(step, Head) else step.groups
    for reads in together:
        widths = [width(read, sizes) for read in reads]
        if len(set(widths)) > 1:
            raise ConfigError(f"step {step.name!r} puts {' and '.join(map(str, widths))} channels together")
    if _written(step).name is None:
        raise ConfigError(f"step {step.name!r} has a constant to write: read a subspace")
