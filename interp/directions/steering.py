"""Directions: the difference between two kinds of prompts in a model's activations, and the effect of adding it.

1. A contrast gives every prompt a class (`interp.directions.classes`).
2. `states` are the activations of all prompts at one place. A direction is their mean over the prompts of one class
   minus their mean over the other's.
3. `Direction.edit` adds a multiple of it in a sweep; `steer` adds it while a model runs or generates.

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
from interp.prompts.pairs import PromptPairs, fitting
from interp.variants.granularity import HEAD_AXES

FORMAT = "interp.Direction 1"
FORWARD_PROMPTS = 64  # prompts in one forward

Where = Mapping[str, Index]


@checked
@torch.no_grad()
def states(
    model: HookedModel, pairs: PromptPairs, site: str, places: Sequence[Where], *, side: str = "clean"
) -> Tensor:
    """Activations of all prompts at some places, in float32 on the CPU: [place, prompt, the site's other axes].

    Args:
        model, pairs, site: what to run, and the short name of the site to read.
        places: each as an `Edit`'s `where`: the layer, one position (a number or a role; where the answer is read, if
            left out: the last, or the role "MASK"), a head. All must name the same axes.
        side: "clean" or "corrupt".

    Raises:
        UnknownName: a site, layer, head or role that does not exist.
        PromptError: a position outside some prompt, a site without positions.
    """
    check_choice("side", side, ["clean", "corrupt"])
    pairs = fitting(model, pairs).to(model.device)
    edits = [Edit(site, where) for where in places]
    if not edits:
        raise PromptError("no places were given: name at least one to read states at")
    names = [edit.name(model.cfg) for edit in edits]
    points = [_readable(model, name) for name in names]
    batches = []
    for first in range(0, len(pairs), FORWARD_PROMPTS):
        part = pairs[first : first + FORWARD_PROMPTS]
        _, cache = model.run_with_cache(**part.inputs(side), names_filter=sorted(set(names)), return_type=None)
        batches.append(
            [_at(cache[name], point, part, edit.where) for name, point, edit in zip(names, points, edits, strict=True)]
        )
    return torch.stack([torch.cat(parts) for parts in zip(*batches, strict=True)])


def _readable(model: HookedModel, name: str) -> HookPoint:
    """The hook point of a site that has positions."""
    if name not in model.hook_dict:
        raise unknown("site", name, model.hook_dict)
    point = model.hook_dict[name]
    if "pos" not in point.site.axes:
        raise PromptError(
            f"site {name!r} has no 'pos' axis to read a position of; its axes are {', '.join(point.site.axes)}"
        )
    return point


def _at(value: Tensor, point: HookPoint, pairs: PromptPairs, where: Where) -> Tensor:
    """The state at a place [prompt, ...], out of a site's whole value [prompt, pos, ...]."""
    own = pairs.at(point.site)
    at = own.positions(where.get("pos", own.answer_place))
    if at.shape[1] != 1:
        raise PromptError(f"a state is read at a single position, not at {where['pos']}")
    value = value[torch.arange(len(pairs), device=value.device), at[:, 0]]  # [prompt, the axes after pos]
    for axis in reversed(point.site.axes[2:]):
        at_axis = where.get(axis)
        assert not isinstance(at_axis, str)  # `Edit` refuses text for these axes
        value = take(value, at_axis, point.site.axes.index(axis) - 1, axis)
    return value.float().cpu()


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector at one site of one layer.

    Attributes:
        vector: float32, in the site's axes after `pos`, without the axis of `head` where a head is named.
        site: the short name of the site.
        layer: the layer.
        head: for a single head, group or channel: its axis ("head", "kv_head", "ssm_head", ...) and its index.
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
        """The vector's length."""
        return float(self.vector.norm())

    @property
    def where(self) -> dict[str, Index]:
        """Layer and head, as an `Edit` takes them."""
        return {"layer": self.layer, **({} if self.head is None else {self.head[0]: self.head[1]})}

    @checked
    def edit(self, strength: float = 1.0, *, pos: Index | None = None) -> Edit:
        """The edit that adds a multiple of the vector at some positions; None means all."""
        where = self.where if pos is None else {**self.where, "pos": pos}
        return Edit(self.site, where, "add", real_number("strength", strength) * self.vector)

    @checked
    def save(self, path: str | Path) -> None:
        """Write it as one safetensors file, completely or not at all; `load` reads it back.

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
            InterpError: a file that does not exist, is not a direction, or was changed after it was saved.
        """
        from safetensors import SafetensorError, safe_open

        try:
            if Path(path).exists() and not Path(path).is_file():
                raise OSError("it is a folder, a pipe or a device, not a regular file")
            with safe_open(str(path), "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise InterpError(f"{str(path)!r} is not a direction: its format is not {FORMAT!r}")
                about, vector = json.loads(metadata["about"]), file.get_tensor("vector")
            if is_sound(Path(path).read_bytes()) is False:
                raise InterpError(f"{str(path)!r} was changed after it was saved: its checksum does not match")
            head = None if about["head"] is None else (about["head"][0], about["head"][1])
            return cls(vector, about["site"], about["layer"], head, about["made"])
        except (OSError, SafetensorError) as error:
            raise InterpError(f"cannot read a direction from {str(path)!r}: {error}") from error
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InterpError(f"the direction in {str(path)!r} is incomplete or damaged: {error}") from error


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
        where: the layer; optionally a head, and the position to read (the last, if left out).
        label, labels: as in `contrast`, of two classes; "auto" falls back on clean minus corrupt where the prompts
            allow no other contrast.

    Raises:
        PromptError: a contrast of more than two classes, and what `contrast` and `states` refuse.
    """
    classes = contrast(model, pairs, label, labels=labels, most=2)
    read = [states(model, pairs, site, [where], side=side)[0] for side in classes.sides]
    vector = between(torch.cat(read), np.concatenate(list(classes.sides.values())), classes)
    made = {"contrast": classes.name, "classes": list(classes.classes), "prompts": pairs.digest()}
    return _direction(model, vector, site, where, made)


def between(read: Tensor, classes: Array, contrast: Contrast) -> Tensor:
    """The mean state of the first of a contrast's two classes minus that of the second.

    Args:
        read: states [row, ...].
        classes: the class of each state [row].
        contrast: names the classes.

    Raises:
        PromptError: a class without states.
    """
    chosen = [torch.from_numpy(classes == one) for one in (0, 1)]
    for name, rows in zip(contrast.classes, chosen, strict=True):
        if not bool(rows.any()):
            raise PromptError(f"a difference of means needs prompts of both classes, and none is of class {name!r}")
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
    """The mean state of some texts minus that of others, such as [" Love"] and [" Hate"]; they need not form pairs.

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
    place = Edit(site, where).where
    layer, units = place.get("layer"), [(axis, place[axis]) for axis in HEAD_AXES if place.get(axis) is not None]
    if not isinstance(layer, int) or not all(isinstance(unit, int) for _, unit in units):
        raise ConfigError(f"a direction needs one layer, and one head or none, not {dict(where)}")
    about = {"model": model.cfg.model_name, "method": "difference of means", "pos": place.get("pos", -1), **made}
    return Direction(vector, site, layer, units[0] if units else None, about)  # type: ignore[arg-type]


@checked
@contextmanager
def steer(
    model: HookedModel, direction: Direction, strength: float = 1.0, *, pos: str = "all"
) -> Iterator[HookedModel]:
    """Add a multiple of a direction in every forward of a `with` block, including those of `model.generate`.

    Args:
        model: the model.
        direction: what to add.
        strength: how many times it is added.
        pos: "all" for every position, "last" for the last column of each forward: the end of a prompt and then, while
            generating with a cache of keys and values, each new token.

    Raises:
        UnknownName: a site or layer that the model does not have; another `pos`.
        ConfigError: a direction whose shape does not fit the site.
        HookError: the model was not run in the block.

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
                f"the direction has shape {list(direction.vector.shape)}, and site {name!r} of this model needs "
                f"{list(value[tuple(at)].shape[2:])}"
            )
        new = value.clone()
        new[tuple(at)] += strength * direction.vector.to(new)
        return new

    with model.hooks([(name, add)]):
        yield model
