"""How finely a sweep over a model's activations is cut: which sites, and what the cells of each layer are.

1. A granularity names one or several sites and the axes that their cells are cut by: `GRANULARITIES` has those of
   TransformerLens, and any site can be cut by any of its axes.
2. `variants` makes one edit of every cell of every layer, for `interp.sweep`.
3. `described` adds what a reader of the measurements needs: the token and the role at every position.
4. `cut_by`, `cell_columns` and `effect_label` say of a table of measurements what its cells and effects are.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from interp.edits import Edit, Variant
from interp.errors import InterpError, PromptError, unknown
from interp.model import HookedModel
from interp.pairing import DIRECTIONS
from interp.prompts import PromptPairs
from interp.sites import Site, get_act_name, site_names

if TYPE_CHECKING:
    import pandas as pd

AXES = {
    "head": ("head", "kv_head"),
    "pos": ("pos", "query"),
    "role": ("pos", "query"),
    "query": ("query",),
    "key": ("key",),
}
"""What cells may be cut by, and the axes of a site that it can mean: a pattern's position is its destination."""

GRANULARITIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "resid_pre": (("resid_pre",), ("pos",)),
    "resid_mid": (("resid_mid",), ("pos",)),
    "attn_out": (("attn_out",), ("pos",)),
    "mlp_out": (("mlp_out",), ("pos",)),
    "block_every": (("resid_pre", "attn_out", "mlp_out"), ("pos",)),
    "attn_head_out_all_pos": (("z",), ("head",)),
    "attn_head_q_all_pos": (("q",), ("head",)),
    "attn_head_k_all_pos": (("k",), ("head",)),
    "attn_head_v_all_pos": (("v",), ("head",)),
    "attn_head_pattern_all_pos": (("pattern",), ("head",)),
    "attn_head_all_pos_every": (("z", "q", "k", "v", "pattern"), ("head",)),
    "attn_head_out_by_pos": (("z",), ("head", "pos")),
    "attn_head_q_by_pos": (("q",), ("head", "pos")),
    "attn_head_k_by_pos": (("k",), ("head", "pos")),
    "attn_head_v_by_pos": (("v",), ("head", "pos")),
    "attn_head_pattern_by_pos": (("pattern",), ("head", "query")),
    "attn_head_by_pos_every": (("z", "q", "k", "v", "pattern"), ("head", "pos")),
    "attn_head_pattern_dest_src_pos": (("pattern",), ("head", "query", "key")),
}
"""The name behind TransformerLens's `get_act_patch_` -> the sites that are changed, and what their cells are cut by."""

PLACES = ("pos", "role", "query", "key")
COLUMNS = ("head", "kv_head", *PLACES, "neuron")
TOLD = {"pos": ("token", "role"), "query": ("query_token", "query_role"), "key": ("key_token", "key_role")}
"""A column of positions, and the columns that say which token and which role stands there."""


def asked(
    site: str | Sequence[str] | None = None,
    by: str | Sequence[str] | EllipsisType | None = ...,
    granularity: str | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sites and axes as they were asked for, by a granularity or by themselves; `z` by `head` where nothing was.

    Args:
        site: one or several short site names of a layer, as "z" or "resid_pre,mlp_out".
        by: what the cells of a layer are cut by, one or several of `AXES`, as "head,pos"; None or "layer" for whole
            layers.
        granularity: a name of `GRANULARITIES` instead, with or without TransformerLens's `get_act_patch_`.

    Raises:
        UnknownName: a granularity that does not exist.
        InterpError: a granularity together with a site or axes.

    >>> asked("q,k", by="head,pos"), asked(granularity="attn_out")
    ((('q', 'k'), ('head', 'pos')), (('attn_out',), ('pos',)))
    """
    if granularity is None:
        return _listed("z" if site is None else site), _listed("head" if isinstance(by, EllipsisType) else by)
    if site is not None or by is not ...:
        raise InterpError(f"granularity {granularity!r} says what to patch and how to cut it: leave out site and by")
    name = granularity.removeprefix("get_act_patch_")
    if name not in GRANULARITIES:
        raise unknown("granularity", granularity, GRANULARITIES)
    return GRANULARITIES[name]


def by_position(
    site: str | Sequence[str] | None = None,
    by: str | Sequence[str] | EllipsisType | None = ...,
    granularity: str | None = None,
    **others: Any,
) -> bool:
    """Whether what is asked for is cut by positions, which only prompts that line up have in common.

    Args:
        site, by, granularity: as in `asked`.
        others: a study's other options, which make no difference.

    Raises:
        InterpError: as `asked`.
    """
    return not {"pos", "query", "key"}.isdisjoint(asked(site, by, granularity)[1])


def variants(
    model: HookedModel, pairs: PromptPairs, *, site: str | Sequence[str], by: str | Sequence[str] | None
) -> list[Variant]:
    """One edit for every site, layer and cell, labelled with them: the cell's value becomes that of the source run.

    Args:
        model: the model.
        pairs: the prompts, for their positions and roles.
        site, by: as `asked` takes them. Keys and values have a cell for each kv_head, and a pattern's `pos` is its
            destination.

    Raises:
        UnknownName: a site that the model does not have, or a `by` that the site does not have.
        PromptError: positions of prompts that differ in length, roles that the prompts lack.
    """
    names = [name for name in _listed(by) if name != "layer"]
    made = []
    for row in dict.fromkeys(_site(model, name) for name in _listed(site)):
        axes, cells = _cells(model, pairs, row, names)
        columns = [name if name in PLACES else axis for name, axis in zip(names, axes, strict=True)]
        for layer, cell in itertools.product(range(model.cfg.n_layers), cells):
            where = {"layer": layer, **dict(zip(axes, cell, strict=True))}
            labels = {"site": row.short, "layer": layer, **dict(zip(columns, cell, strict=True))}
            made.append(Variant((Edit(row.short, where),), labels))
    return made


def _listed(words: str | Sequence[str] | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in words.split(",")) if isinstance(words, str) else tuple(words or ())


def _site(model: HookedModel, name: str) -> Site:
    """The site that a short name stands for in every layer."""
    names = site_names(model.cfg)
    row = None if name in names else names.get(get_act_name(name, 0))
    if row is None:
        raise unknown("site", name, dict.fromkeys(row.short for row in names.values() if row.per_layer))
    return row


def _cells(
    model: HookedModel, pairs: PromptPairs, site: Site, by: Sequence[str]
) -> tuple[list[str], list[tuple[int | str, ...]]]:
    """The axes of a site that `by` means, and their values in every cell of a layer."""
    can_mean = {name: axis for name, among in AXES.items() for axis in among if axis in site.axes}
    for at, name in enumerate(by):
        if name not in AXES:
            raise unknown("axis to patch by", name, AXES)
        if name not in can_mean:
            raise unknown(f"axis of {site.short!r}", name, can_mean)
        if can_mean[name] in [can_mean[earlier] for earlier in by[:at]]:
            raise InterpError(f"by={','.join(by)!r} cuts the axis {can_mean[name]!r} of {site.short!r} twice")
    axes = [can_mean[name] for name in by]
    sizes = {"head": model.cfg.n_heads, "kv_head": model.cfg.n_kv_heads}
    values = [
        range(sizes[axis]) if axis in sizes else _positions(pairs, name) for name, axis in zip(by, axes, strict=True)
    ]
    cells = list(itertools.product(*values))
    if model.cfg.causal and "role" not in by and {"query", "key"} <= set(axes):
        query, key = axes.index("query"), axes.index("key")
        cells = [cell for cell in cells if cell[key] <= cell[query]]  # type: ignore[operator]
    return axes, cells


def _positions(pairs: PromptPairs, name: str) -> Sequence[int | str]:
    """The positions, or roles, that every prompt has."""
    if name == "role":
        if not pairs.role_names:
            raise PromptError("by='role' needs prompts with roles; these have none")
        return pairs.role_names
    lengths = Counter(pairs.lengths.tolist())
    if len(lengths) > 1:
        usual, how_many = max(lengths.items(), key=lambda item: (item[1], -item[0]))
        raise PromptError(
            f"by={name!r} needs prompts of one length; these have {min(lengths)} to {max(lengths)} tokens: give "
            f"by='role', a task's prompts with aligned=True, or pairs[pairs.lengths == {usual}], which are {how_many} "
            f"of {len(pairs)}"
        )
    return range(next(iter(lengths)))


def described(frame: pd.DataFrame, pairs: PromptPairs) -> pd.DataFrame:
    """A sweep's table for its reader: what tells cells apart in front, heads as whole numbers (an empty one is NA), and
    beside every position the clean prompt's token and role.
    """
    import numpy as np

    frame = frame.copy(deep=False)
    for column in {"head", "kv_head"} & set(frame):
        if frame[column].isna().any():
            frame[column] = frame[column].astype("Int64")
    roles = [{at: role for role, at in named.items()} for named in pairs.roles]
    for column in TOLD.keys() & set(frame):  # prompts have one length: [prompt, pos]
        tokens = np.array(pairs.str_tokens, dtype=object)
        named = np.array([[of.get(at, "") for at in range(tokens.shape[1])] for of in roles], dtype=object)
        for name, table in zip(TOLD[column], (tokens, named), strict=True):
            frame[name] = table[frame["prompt"], frame[column]]
    told = (part for name in COLUMNS for part in (name, *TOLD.get(name, ())))
    front = [name for name in dict.fromkeys(("direction", "site", "layer", *told)) if name in frame]
    return frame[[*front, *(name for name in frame if name not in front)]]


def cut_by(frame: pd.DataFrame) -> list[str]:
    """What the cells of a layer are cut by; beside positions a role only says what stands there."""
    return [name for name in COLUMNS if name in frame and not (name == "role" and "pos" in frame)]


def cell_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that tell the cells of a patching study apart."""
    return [name for name in ("direction", "method", "site", "layer", *cut_by(frame), "metric") if name in frame]


def effect_label(frame: pd.DataFrame, effect: str = "effect") -> str:
    """What a figure of a patching study writes at its scale, such as `effect on kl (0 clean run, 1 corrupt run)`."""
    directions = set(frame["direction"]) if "direction" in frame else set()
    base, source = DIRECTIONS[directions.pop()] if len(directions) == 1 else ("base", "source")
    metric = f" on {frame['metric'].iloc[0]}".replace("_", " ") if frame["metric"].nunique() == 1 else ""
    return f"{effect}{metric} (0 {base} run, 1 {source} run)"
