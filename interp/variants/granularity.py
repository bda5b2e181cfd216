"""How finely a sweep over a model's activations is cut: which sites, and what the cells of each layer are.

1. A granularity names one or several sites and the axes that their cells are cut by: `GRANULARITIES` has those of
   TransformerLens, `MIXER_GRANULARITIES` some for state-space layers, and any site can be cut by any of its axes.
2. `variants` makes one edit of every cell of every layer, for `interp.sweep`.
3. `described` adds what a reader of the measurements needs: the token and the role at every position.
4. `cut_by`, `cell_columns` and `effect_label` say of a table of measurements what its cells and effects are.

Layers differ in a hybrid model: each is cut where it has the site and the axis, and the others have no cells.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from interp.arguments import checked, shown
from interp.config import ModelConfig
from interp.edits import Edit, Variant
from interp.errors import InterpError, PromptError, check_choice, unknown
from interp.hooked.model import HookedModel
from interp.names import MIXER_PARTS, PART_KINDS
from interp.prompts.pair_checks import DIRECTIONS
from interp.prompts.pairs import PromptPairs
from interp.sites import Site, axis_sizes, find_act_name, site_names

if TYPE_CHECKING:
    import pandas as pd

AXES = {
    "head": ("head", "kv_head", "ssm_head"),
    "pos": ("pos", "query"),
    "role": ("pos", "query"),
    "query": ("query",),
    "key": ("key",),
    "ssm_head": ("ssm_head",),
    "ssm_group": ("ssm_group",),
    "channel": ("channel",),
    "expert": ("expert",),
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

MIXER_GRANULARITIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "mixer_out": (("out",), ("pos",)),
    "mixer_state": (("state",), ("pos",)),
    "mixer_every": (("in", "conv", "delta", "B", "C", "state", "y", "gate", "gated", "out"), ("pos",)),
    "ssm_head_out_all_pos": (("gated",), ("ssm_head",)),
    "ssm_head_out_by_pos": (("gated",), ("ssm_head", "pos")),
}
"""The same for state-space layers, which TransformerLens does not have."""

MIXED = tuple(dict.fromkeys(PART_KINDS[own.whole].site for own in MIXER_PARTS.values()))
"""What mixers add to the residual stream, in layers of attention and in state-space layers."""

READ = tuple(dict.fromkeys(PART_KINDS[own.unit].site for own in MIXER_PARTS.values()))
"""What W_O and W_out read: values that have the heads, or channels, of a mixer."""

PLACES = ("pos", "role", "query", "key")
HEAD_AXES = ("head", "kv_head", "ssm_head", "ssm_group", "channel", "expert")
COLUMNS = (*HEAD_AXES, *PLACES, "neuron")
TOLD = {"pos": ("token", "role"), "query": ("query_token", "query_role"), "key": ("key_token", "key_role")}
"""A column of positions, and the columns that say which token and which role stands there."""


@checked
def asked(
    site: str | Sequence[str] | None = None,
    by: str | Sequence[str] | EllipsisType | None = ...,
    granularity: str | None = None,
    *,
    model: HookedModel | None = None,
    pairs: PromptPairs | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sites and axes as they were asked for, by a granularity or by themselves; `z` by `head` where nothing was.

    Args:
        site: one or several short site names of a layer, as "z" or "resid_pre,mlp_out".
        by: what the cells of a layer are cut by, one or several of `AXES`, as "head,pos"; None or "layer" for whole
            layers.
        granularity: a name of `GRANULARITIES` or `MIXER_GRANULARITIES` instead, with or without TransformerLens's
            `get_act_patch_`.
        model, pairs: what will be cut. Where it has state-space layers, what was not asked for is `MIXED` by role (in
            prompts without roles, whole), and `READ` by heads or channels.

    Raises:
        UnknownName: a granularity that does not exist.
        InterpError: a granularity together with a site or axes.

    >>> asked("q,k", by="head,pos"), asked(granularity="attn_out")
    ((('q', 'k'), ('head', 'pos')), (('attn_out',), ('pos',)))
    """
    if granularity is None:
        axes = None if isinstance(by, EllipsisType) else _listed(by)
        sites = None if site is None else _listed(site)
        if model is None or not model.cfg.has_mamba:
            return _listed("z" if site is None else site), ("head",) if axes is None else axes
        if axes is None:
            axes = ("role",) if pairs is not None and pairs.role_names else ()
        if sites is None:
            units = [AXES[name] for name in axes if name in HEAD_AXES]
            sites = _having(model.cfg, READ if units else MIXED, units)
        return sites, axes
    if site is not None or by is not ...:
        raise InterpError(f"granularity {granularity!r} says what to patch and how to cut it: leave out site and by")
    name, known = granularity.removeprefix("get_act_patch_"), GRANULARITIES | MIXER_GRANULARITIES
    if name not in known:
        raise unknown("granularity", granularity, known)
    return known[name]


def _having(cfg: ModelConfig, sites: Iterable[str], units: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Those of some sites that have an axis of each kind in some layer; where none has, those that the model has."""
    there = {name: [row for _, row in _rows(cfg, name)] for name in sites}
    cut = [
        name
        for name, rows in there.items()
        if any(all(not set(among).isdisjoint(row.axes) for among in units) for row in rows)
    ]
    return tuple(cut or [name for name, rows in there.items() if rows])


@checked
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


@checked
def variants(
    model: HookedModel, pairs: PromptPairs, *, site: str | Sequence[str], by: str | Sequence[str] | None
) -> list[Variant]:
    """One edit for every site, layer and cell, labelled with them: the cell's value becomes that of the source run.

    Args:
        model: the model.
        pairs: the prompts, for their positions and roles.
        site, by: as `asked` takes them. Keys and values have a cell for each kv_head, and a pattern's `pos` is its
            destination. "pattern" is the hidden attention in state-space layers.

    Raises:
        UnknownName: a site that the model does not have, or a `by` that the site does not have in any layer.
        PromptError: positions of prompts that differ in length, roles that the prompts lack.
    """
    names = [name for name in _listed(by) if name != "layer"]
    for name in names:
        check_choice("axis to patch by", name, AXES)
    if not _listed(site):
        raise InterpError(f"site must name at least one site, such as 'z', not {shown(site)}")
    made: list[Variant] = []
    of_sites = dict.fromkeys(tuple(_of_layers(model.cfg, name)) for name in _listed(site))
    for of_layers in of_sites:
        cut = [(layer, row) for layer, row in of_layers if all(name in _meant(row) for name in names)]
        for layer, row in cut or of_layers[:1]:  # where no layer can be cut, the first says why
            axes, cells = _cells(model, pairs, row, names)
            columns = [name if name in PLACES else axis for name, axis in zip(names, axes, strict=True)]
            for cell in cells:
                where = {"layer": layer, **dict(zip(axes, cell, strict=True))}
                labels = {"site": row.short, "layer": layer, **dict(zip(columns, cell, strict=True))}
                made.append(Variant((Edit(row.short, where),), labels))
    return made


def _listed(words: str | Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(words, str):
        return tuple(part.strip() for part in words.split(","))
    return () if words is None else tuple(words)


def _rows(cfg: ModelConfig, name: str) -> list[tuple[int, Site]]:
    """The layers that have a site, by its short name, and what it is there."""
    names = site_names(cfg)
    if name in names:  # a full name is of one layer
        return []
    full = ((layer, find_act_name(name, layer, names)) for layer in range(cfg.n_layers))
    return [(layer, names[one]) for layer, one in full if one in names]


def _of_layers(cfg: ModelConfig, name: str) -> list[tuple[int, Site]]:
    """As `_rows`, of a site that some layer has."""
    found = _rows(cfg, name)
    if not found:
        raise unknown("site", name, dict.fromkeys(row.short for row in site_names(cfg).values() if row.per_layer))
    return found


def _meant(site: Site) -> dict[str, str]:
    """What the cells of a site can be cut by -> the axis that it means there."""
    return {name: axis for name, among in AXES.items() for axis in among if axis in site.axes}


def _cells(
    model: HookedModel, pairs: PromptPairs, site: Site, by: Sequence[str]
) -> tuple[list[str], list[tuple[int | str, ...]]]:
    """The axes of a site that `by` means, and their values in every cell of a layer."""
    can_mean = _meant(site)
    for at, name in enumerate(by):
        if name not in can_mean:
            raise unknown(f"axis of {site.short!r}", name, can_mean)
        if can_mean[name] in [can_mean[earlier] for earlier in by[:at]]:
            raise InterpError(f"by={','.join(by)!r} cuts the axis {can_mean[name]!r} of {site.short!r} twice")
    axes = [can_mean[name] for name in by]
    sizes = axis_sizes(model.cfg)
    values = [
        range(sizes[axis]) if axis in HEAD_AXES else _positions(pairs, name)
        for name, axis in zip(by, axes, strict=True)
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
    for column in set(HEAD_AXES) & set(frame):
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
