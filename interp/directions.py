"""Directions: what tells two kinds of prompts apart in a model's activations, and what adding it does.

1. A contrast gives every prompt a class: by its right answer, by the order in which its answers are named, clean or
   corrupt, or by labels of your own.
2. `states` are the activations of all prompts at one place. A direction is their mean over the prompts of one class
   minus that over the other.
3. `Direction.edit` adds a multiple of it in a sweep, and `steer` while a model runs or generates.

Source: Turner et al. 2023 ("Steering Language Models With Activation Engineering", section 3) and Rimsky et al. 2024
("Steering Llama 2 via Contrastive Activation Addition", section 3).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from interp.edits import Edit, Index
from interp.errors import ConfigError, InterpError, PromptError, unknown
from interp.hooks import HookPoint
from interp.model import HookedModel
from interp.prompts import PromptPairs
from interp.whole_files import write_whole

CONTRASTS = {
    "answer": "which answer is right",
    "order": "whether the right or the wrong answer is named first",
    "side": "whether the prompt is clean or corrupt",
}
FORMAT = "interp.Direction 1"
FEWEST_GROUPS = 5
AT_ONCE = 64  # prompts in one forward

Array = np.ndarray[Any, np.dtype[np.int64]]
Where = Mapping[str, Index]


@dataclass(frozen=True, eq=False)
class Contrast:
    """A class for every prompt.

    Attributes:
        name: what the classes are about, a name of `CONTRASTS` or "labels".
        classes: their names.
        clean: the class of every clean prompt [prompt].
        corrupt: the class of every corrupt prompt [prompt], None where only clean prompts have one.
        group: pairs of one group [prompt] belong together, in training or in what is held out.
        grouped_by: "pair", or "answers" where pairs with the same two answers are one group.
    """

    name: str
    classes: tuple[str, ...]
    clean: Array
    corrupt: Array | None
    group: Array
    grouped_by: str

    @property
    def sides(self) -> dict[str, Array]:
        """The sides of the pairs that have classes, with them."""
        return {"clean": self.clean} if self.corrupt is None else {"clean": self.clean, "corrupt": self.corrupt}


def contrast(
    model: HookedModel,
    pairs: PromptPairs,
    label: str = "auto",
    *,
    labels: Sequence[Any] | None = None,
    most: int | None = None,
) -> Contrast:
    """The classes of prompts.

    Args:
        model: names answers by its tokens.
        pairs: the prompts. A corrupt prompt's right answer is taken to be the pair's wrong one.
        label: "answer", "order" or "side", as `CONTRASTS` says them; "auto" takes the first that these prompts allow.
        labels: classes of your own instead: one for each clean prompt [prompt], or one for each clean and each corrupt
            prompt [prompt, 2].
        most: how many classes there may be.

    Raises:
        UnknownName: a label that does not exist.
        PromptError: prompts that the label does not tell apart, labels of another shape or of a single class, too many
            classes.
    """
    if labels is not None:
        if label != "auto":
            raise PromptError(f"labels of your own were given together with label={label!r}: leave out one of them")
        told = _own(pairs, labels)
        if most is not None and len(told.classes) > most:
            raise PromptError(f"labels have {len(told.classes)} classes, and only {most} can be told apart here")
        return told
    if label != "auto" and label not in CONTRASTS:
        raise unknown("label", label, [*CONTRASTS, "auto"])
    for name in CONTRASTS if label == "auto" else [label]:
        found = {"answer": _by_answer, "order": _by_order, "side": _by_side}[name](model, pairs)
        if isinstance(found, Contrast) and (most is None or len(found.classes) <= most):
            return found
        if isinstance(found, Contrast):
            found = f"{len(found.classes)} classes are more than the {most} that can be told apart here"
        if label == name or name == "side":
            raise PromptError(f"label={name!r} does not tell these prompts apart: {found}")
    raise AssertionError("side is the last contrast")


def _own(pairs: PromptPairs, labels: Sequence[Any]) -> Contrast:
    given = [tuple(row) if isinstance(row, tuple | list | np.ndarray | Tensor) else (row,) for row in labels]
    if len(given) != len(pairs) or {len(row) for row in given} not in ({1}, {2}):
        raise PromptError(
            f"labels must be one for each of {len(pairs)} clean prompts, or [prompt, 2] for clean and corrupt ones, "
            f"not {len(given)} of {sorted({len(row) for row in given})}"
        )
    table = [[one.item() if isinstance(one, Tensor | np.generic) else one for one in row] for row in given]
    classes = sorted({one for row in table for one in row}, key=lambda one: (str(type(one)), one))
    if len(classes) < 2:
        raise PromptError(f"labels need at least two classes, and these are all {classes[0]!r}")
    ids = np.array([[classes.index(one) for one in row] for row in table])  # [prompt, side]
    return _made(pairs, "labels", [str(one) for one in classes], ids[:, 0], ids[:, 1] if ids.shape[1] > 1 else None)


def _made(pairs: PromptPairs, name: str, classes: Sequence[str], clean: Array, corrupt: Array | None) -> Contrast:
    sets = {pair: at for at, pair in enumerate(dict.fromkeys(frozenset(pair) for pair in pairs.answers.tolist()))}
    group = np.array([sets[frozenset(pair)] for pair in pairs.answers.tolist()])
    shared = min(len(pairs), FEWEST_GROUPS) <= len(sets) < len(pairs)
    return Contrast(
        name,
        tuple(classes),
        clean,
        corrupt,
        group if shared else np.arange(len(pairs)),
        "answers" if shared else "pair",
    )


def _by_answer(model: HookedModel, pairs: PromptPairs) -> Contrast | str:
    ids = pairs.answers.cpu().numpy()
    if bool((pairs.clean == pairs.corrupt).all(1).any()):
        return "a corrupt prompt that is its clean one has no other answer"
    classes = list(dict.fromkeys(ids.flatten().tolist()))
    rare = min(int((ids == one).sum()) for one in classes)
    if rare < 2 or len(classes) > max(2, len(pairs) // 4):
        return f"{len(pairs)} pairs have {len(classes)} different answers, the rarest {rare} times"
    shown = [str(one) if model.tokenizer is None else model.tokenizer.str_tokens([one])[0] for one in classes]
    index = {one: at for at, one in enumerate(classes)}
    clean, corrupt = np.array([[index[one] for one in row] for row in ids.tolist()]).T
    return _made(pairs, "answer", shown, clean, corrupt)


def _by_order(model: HookedModel, pairs: PromptPairs) -> Contrast | str:
    found = []
    for side, first in (("clean", 0), ("corrupt", 1)):
        named = (getattr(pairs, side)[:, None] == pairs.answers[:, :, None]) & pairs.mask[:, None]  # [n, 2, pos]
        if not bool(named.any(-1).all()):
            return "not every prompt names both of its answers"
        at = named.int().argmax(-1)
        found.append((at[:, first] > at[:, 1 - first]).long().cpu().numpy())
    if len(np.unique(found)) < 2:
        return "every prompt names its answers in the same order"
    return _made(pairs, "order", ("right answer first", "wrong answer first"), found[0], found[1])


def _by_side(model: HookedModel, pairs: PromptPairs) -> Contrast | str:
    if bool((pairs.clean == pairs.corrupt).all(1).any()):
        return "some corrupt prompt is its clean one"
    zeros = np.zeros(len(pairs), dtype=np.int64)
    return _made(pairs, "side", ("clean", "corrupt"), zeros, zeros + 1)


@torch.no_grad()
def states(
    model: HookedModel, pairs: PromptPairs, site: str, places: Sequence[Where], *, side: str = "clean"
) -> Tensor:
    """Activations of all prompts at some places, in float32 on the CPU: [place, prompt, the site's other axes].

    Args:
        model, pairs, site: what to run, and the short name of a site to read.
        places: each as an `Edit`'s `where`: the layer, one position (a number, a role; the last where it is left out),
            a head. All name the same axes.
        side: "clean" or "corrupt".

    Raises:
        UnknownName: a site, layer, head or role that does not exist.
        PromptError: a position outside some prompt, a site without positions.
    """
    if side not in ("clean", "corrupt"):
        raise unknown("side", side, ["clean", "corrupt"])
    pairs = pairs.to(model.device)
    named = [Edit(site, where).name(model.cfg) for where in places]
    points = [_readable(model, name) for name in named]
    rows = []
    for first in range(0, len(pairs), AT_ONCE):
        part = pairs[first : first + AT_ONCE]
        mask, names = part.attention_mask, sorted(set(named))
        _, cache = model.run_with_cache(getattr(part, side), names_filter=names, attention_mask=mask, return_type=None)
        rows.append(
            [_at(cache[name], point, part, where) for name, point, where in zip(named, points, places, strict=True)]
        )
    return torch.stack([torch.cat(parts) for parts in zip(*rows, strict=True)])


def _readable(model: HookedModel, name: str) -> HookPoint:
    if name not in model.hook_dict:
        raise unknown("site", name, model.hook_dict)
    point = model.hook_dict[name]
    if "pos" not in point.site.axes:
        raise PromptError(f"{name!r} has no state of a position: its axes are {', '.join(point.site.axes)}")
    return point


def _at(value: Tensor, point: HookPoint, pairs: PromptPairs, where: Where) -> Tensor:
    """The state at a place [prompt, ...] of a site's whole value."""
    at = pairs.positions(where.get("pos", -1))
    if at.shape[1] != 1:
        raise PromptError(f"a state is read at one position, not at {where['pos']}")
    value = value[torch.arange(len(pairs), device=value.device), at[:, 0]]
    for axis in reversed(point.site.axes[2:]):
        if axis in where:
            value = value.select(point.site.axes.index(axis) - 1, int(where[axis]))  # type: ignore[arg-type]
    return value.float().cpu()


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector at one site of one layer.

    Attributes:
        vector: float32, in the site's axes behind `pos`, without `head` where a head is named.
        site: its short name.
        layer: the layer.
        head: the axis "head" or "kv_head" and its index, for one head's.
        made: how it was made, in plain JSON values.
    """

    vector: Tensor
    site: str
    layer: int
    head: tuple[str, int] | None = None
    made: Mapping[str, Any] = field(default_factory=dict)

    @property
    def norm(self) -> float:
        """Its length."""
        return float(self.vector.norm())

    @property
    def where(self) -> dict[str, Index]:
        """Layer and head, as an `Edit` takes them."""
        return {"layer": self.layer, **({} if self.head is None else {self.head[0]: self.head[1]})}

    def edit(self, strength: float = 1.0, *, pos: Index | None = None) -> Edit:
        """The edit that adds a multiple of it at some positions, or at all."""
        where = self.where if pos is None else {**self.where, "pos": pos}
        return Edit(self.site, where, "add", strength * self.vector)

    def save(self, path: str | Path) -> None:
        """Write it as one safetensors file, whole or not at all; `load` reads it back.

        Raises:
            OutputError: it cannot be written.
        """
        from safetensors.torch import save

        about = {"site": self.site, "layer": self.layer, "head": self.head, "made": dict(self.made)}
        content = save({"vector": self.vector.contiguous()}, {"format": FORMAT, "about": json.dumps(about)})
        write_whole(Path(path), content, what="a direction")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InterpError: a file that is not there, or that holds no direction.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "pt") as file:
                about = file.metadata() or {}
                if about.get("format") != FORMAT:
                    raise InterpError(f"{str(path)!r} holds no direction: its format is not {FORMAT!r}")
                said, vector = json.loads(about["about"]), file.get_tensor("vector")
        except (OSError, SafetensorError) as error:
            raise InterpError(f"cannot read a direction from {str(path)!r}: {error}") from error
        head = None if said["head"] is None else (said["head"][0], said["head"][1])
        return cls(vector, said["site"], said["layer"], head, said["made"])


def difference_of_means(
    model: HookedModel,
    pairs: PromptPairs,
    site: str = "resid_pre",
    *,
    where: Where,
    label: str = "auto",
    labels: Sequence[Any] | None = None,
) -> Direction:
    """The mean state of the first class's prompts minus that of the second's.

    Args:
        model, pairs: what to run.
        site: the short name of a site with positions.
        where: the layer, and where wanted a head and the position that is read (the last, where it is left out).
        label, labels: as in `contrast`, of two classes; "auto" is clean minus corrupt only where the prompts allow no
            other contrast.

    Raises:
        PromptError: a contrast of more than two classes, and what `contrast` and `states` refuse.
    """
    told = contrast(model, pairs, label, labels=labels, most=2)
    read = [states(model, pairs, site, [where], side=side)[0] for side in told.sides]
    vector = between(torch.cat(read), np.concatenate(list(told.sides.values())), told)
    made = {"contrast": told.name, "classes": list(told.classes), "prompts": pairs.digest()}
    return _direction(model, vector, site, where, made)


def between(read: Tensor, classes: Array, told: Contrast) -> Tensor:
    """The mean of states [row, ...] of the first of two classes minus that of the second; `classes` are theirs [row].

    Raises:
        PromptError: a class without states.
    """
    chosen = [torch.from_numpy(classes == one) for one in (0, 1)]
    for name, rows in zip(told.classes, chosen, strict=True):
        if not bool(rows.any()):
            raise PromptError(f"a difference of means needs prompts of both classes, and none is {name!r}")
    return read[chosen[0]].mean(0) - read[chosen[1]].mean(0)


def difference_of_texts(
    model: HookedModel,
    towards: Sequence[str],
    away: Sequence[str],
    site: str = "resid_pre",
    *,
    where: Where,
) -> Direction:
    """The mean state of some texts minus that of others, which need not pair up: [" Love"] and [" Hate"].

    Args:
        model: a model with a tokenizer.
        towards, away: texts of any lengths.
        site, where: as in `difference_of_means`.
    """
    means = []
    for texts in (towards, away):
        pairs = PromptPairs.from_text(model, list(texts), answers=[(0, 1)] * len(texts))
        means.append(states(model, pairs, site, [where])[0].mean(0))
    return _direction(model, means[0] - means[1], site, where, {"towards": list(towards), "away": list(away)})


def _direction(model: HookedModel, vector: Tensor, site: str, where: Where, made: Mapping[str, Any]) -> Direction:
    head = next(((axis, int(where[axis])) for axis in ("head", "kv_head") if axis in where), None)  # type: ignore[arg-type]
    read = where.get("pos", -1)
    about = {"model": model.cfg.model_name, "method": "difference of means", "pos": read, **made}
    return Direction(vector, site, int(where["layer"]), head, about)  # type: ignore[arg-type]


@contextmanager
def steer(
    model: HookedModel, direction: Direction, strength: float = 1.0, *, pos: str = "all"
) -> Iterator[HookedModel]:
    """Add a multiple of a direction in every forward of a `with` block, those of `model.generate` among them.

    Args:
        model, direction, strength: add it so many times.
        pos: "all" for every position, "last" for the last column of each forward: the end of a prompt and, with kept
            keys and values, each token that was generated.

    Raises:
        UnknownName: a site or layer that the model does not have; another `pos`.
        ConfigError: a direction of another width.
        HookError: nothing was run in the block.

    Example:
        with steer(model, direction, 4.0):
            print(model.generate("I think that", 20))
    """
    if pos not in ("all", "last"):
        raise unknown("pos", pos, ["all", "last"])
    name = Edit(direction.site, direction.where).name(model.cfg)
    _readable(model, name)

    def add(value: Tensor, hook: HookPoint) -> Tensor:
        at: list[Any] = [slice(None)] * value.ndim
        if pos == "last":
            at[1] = slice(-1, None)
        if direction.head is not None:
            at[hook.site.axes.index(direction.head[0])] = direction.head[1]
        if value[tuple(at)].shape[2:] != direction.vector.shape:
            raise ConfigError(
                f"the direction has shape {list(direction.vector.shape)}, and {name!r} of this model "
                f"{list(value[tuple(at)].shape[2:])} at each position"
            )
        new = value.clone()
        new[tuple(at)] += strength * direction.vector.to(new)
        return new

    with model.hooks([(name, add)]):
        yield model
