"""Directions: what tells two kinds of prompts apart in a model's activations, and what adding it does.

1. A contrast gives every prompt a class (`interp.directions.classes`).
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

from interp.arguments import checked, is_whole, real_number, shown, whole_number
from interp.directions.classes import Array, Contrast, contrast
from interp.edits import Edit, Index
from interp.errors import ConfigError, InterpError, PromptError, check_choice, unknown
from interp.files.checksums import BLANK, is_sound, plain_json, sealed
from interp.files.whole_files import write_whole
from interp.hooked.hooks import HookPoint
from interp.hooked.model import HookedModel
from interp.hooked.slices import take
from interp.prompts.pairs import PromptPairs
from interp.variants.granularity import HEAD_AXES

FORMAT = "interp.Direction 1"
AT_ONCE = 64  # prompts in one forward

Where = Mapping[str, Index]


@checked
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
    check_choice("side", side, ["clean", "corrupt"])
    pairs = pairs.to(model.device)
    edits = [Edit(site, where) for where in places]
    if not edits:
        raise PromptError("states are read at places, and none was given")
    named = [edit.name(model.cfg) for edit in edits]
    points = [_readable(model, name) for name in named]
    rows = []
    for first in range(0, len(pairs), AT_ONCE):
        part = pairs[first : first + AT_ONCE]
        mask, names = part.attention_mask, sorted(set(named))
        _, cache = model.run_with_cache(getattr(part, side), names_filter=names, attention_mask=mask, return_type=None)
        rows.append(
            [_at(cache[name], point, part, edit.where) for name, point, edit in zip(named, points, edits, strict=True)]
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
        at_axis = where.get(axis)
        assert not isinstance(at_axis, str)  # an edit refuses it
        value = take(value, at_axis, point.site.axes.index(axis) - 1, axis)
    return value.float().cpu()


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector at one site of one layer.

    Attributes:
        vector: float32, in the site's axes behind `pos`, without `head` where a head is named.
        site: its short name.
        layer: the layer.
        head: the axis of heads, groups or channels ("head", "kv_head", "ssm_head", ...) and its index, for one's own.
        made: how it was made, in plain JSON values.

    Raises:
        ConfigError: a part of another kind.
    """

    vector: Tensor
    site: str
    layer: int
    head: tuple[str, int] | None = None
    made: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.vector, Tensor) or self.vector.dtype == torch.bool or self.vector.is_complex():
            raise ConfigError(f"the vector of a direction must be a tensor of numbers, not {shown(self.vector)}")
        if not isinstance(self.site, str):
            raise ConfigError(f"the site of a direction must be a name, such as 'resid_pre', not {shown(self.site)}")
        object.__setattr__(self, "layer", whole_number("the layer of a direction", self.layer, least=0))
        pair = isinstance(self.head, tuple) and len(self.head) == 2 and isinstance(self.head[0], str)
        if self.head is not None and not (pair and is_whole(self.head[1])):
            raise ConfigError(
                f"the head of a direction must be its axis and its index, such as ('head', 3), or None, not "
                f"{shown(self.head)}"
            )
        if not isinstance(self.made, Mapping):
            raise ConfigError(f"how a direction was made must be a mapping, not {shown(self.made)}")

    @property
    def norm(self) -> float:
        """Its length."""
        return float(self.vector.norm())

    @property
    def where(self) -> dict[str, Index]:
        """Layer and head, as an `Edit` takes them."""
        return {"layer": self.layer, **({} if self.head is None else {self.head[0]: self.head[1]})}

    @checked
    def edit(self, strength: float = 1.0, *, pos: Index | None = None) -> Edit:
        """The edit that adds a multiple of it at some positions, or at all."""
        where = self.where if pos is None else {**self.where, "pos": pos}
        return Edit(self.site, where, "add", real_number("strength", strength) * self.vector)

    @checked
    def save(self, path: str | Path) -> None:
        """Write it as one safetensors file, whole or not at all; `load` reads it back.

        Raises:
            OutputError: it cannot be written.
        """
        from safetensors.torch import save

        made = plain_json("how a direction was made", dict(self.made))
        about = {"site": self.site, "layer": self.layer, "head": self.head, "made": made}
        metadata = {"format": FORMAT, "about": json.dumps(about), "checksum": BLANK.decode()}
        content = save({"vector": self.vector.contiguous()}, metadata)
        write_whole(Path(path), sealed(content), what="a direction")

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InterpError: a file that is not there, holds no direction, or was changed since.
        """
        from safetensors import SafetensorError, safe_open

        try:
            if Path(path).exists() and not Path(path).is_file():
                raise OSError("it is a folder, a pipe or a device, not a file")
            with safe_open(str(path), "pt") as file:
                about = file.metadata() or {}
                if about.get("format") != FORMAT:
                    raise InterpError(f"{str(path)!r} holds no direction: its format is not {FORMAT!r}")
                said, vector = json.loads(about["about"]), file.get_tensor("vector")
            if is_sound(Path(path).read_bytes()) is False:
                raise InterpError(f"{str(path)!r} was changed after it was saved: it does not have its checksum")
            head = None if said["head"] is None else (said["head"][0], said["head"][1])
            return cls(vector, said["site"], said["layer"], head, said["made"])
        except (OSError, SafetensorError) as error:
            raise InterpError(f"cannot read a direction from {str(path)!r}: {error}") from error
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InterpError(f"the direction in {str(path)!r} lacks a part or is damaged: {error}") from error


@checked
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


@checked
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
    settled = Edit(site, where).where
    layer, units = settled.get("layer"), [(axis, settled[axis]) for axis in HEAD_AXES if settled.get(axis) is not None]
    if not isinstance(layer, int) or not all(isinstance(unit, int) for _, unit in units):
        raise ConfigError(f"a direction is of one layer, and of one head or of all, not at {dict(where)}")
    about = {"model": model.cfg.model_name, "method": "difference of means", "pos": settled.get("pos", -1), **made}
    return Direction(vector, site, layer, units[0] if units else None, about)  # type: ignore[arg-type]


@checked
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
    check_choice("pos", pos, ["all", "last"])
    strength = real_number("strength", strength)
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
