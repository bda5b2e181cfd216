"""How finely a sweep over a model's activations is cut: which sites, and what the cells of each layer are.

1. A granularity names one or several sites and the axes that their cells are cut by: `GRANULARITIES` has those of
   TransformerLens, `MIXER_GRANULARITIES` some for state-space layers, and any site can be cut by any of its axes.
2. `variants` makes one edit of every cell of every layer, for `interp.sweep`.
3. `described` adds what a reader of the measurements needs: the token and the role at every position.
4. `cut_by`, `cell_columns` and `effect_label` say of a table of measurements what its cells and effects are.

Layers differ in a hybrid model: each is cut where it has the site and the axis, and the others have no cells.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from interp.arguments import checked, shown
from interp.config import STACKS, EncoderDecoderConfig, ModelConfig
from interp.edits import Edit, Variant, stack_named
from interp.errors import InterpError, PromptError, check_choice, unknown
from interp.hooked.model import HookedModel
from interp.names import MIXER_PARTS, PART_KINDS
from interp.prompts.pair_checks import DIRECTIONS
from interp.prompts.pairs import PromptPairs
from interp.sites import AXIS_WORDS, SITES, Site, axis_sizes, config_of, find_act_name, site_names

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
    "neuron": ("d_mlp",),
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

STACK_HEADS = ("encoder.z", "decoder.z", "decoder.cross_attn.z")
"""The heads of a model with an encoder and a decoder."""

MIXED = tuple(dict.fromkeys(PART_KINDS[own.whole].site for own in MIXER_PARTS.values()))
"""What mixers add to the residual stream, in layers of attention and in state-space layers."""

READ = tuple(dict.fromkeys(PART_KINDS[own.unit].site for own in MIXER_PARTS.values()))
"""What W_O and W_out read: values that have the heads, or channels, of a mixer."""

PLACES = ("pos", "role", "query", "key")
HEAD_AXES = ("head", "kv_head", "ssm_head", "ssm_group", "channel", "expert")
HEAD_COLUMNS = ("head", "encoder_head", "cross_head", *HEAD_AXES[1:])
"""The columns of these numbers: heads of an encoder and of a cross-attention, beside a decoder's, have their own."""

COLUMNS = (*HEAD_COLUMNS, *PLACES, "neuron")
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
            prompts without roles, whole), and `READ` by heads or channels; where it has two stacks, `STACK_HEADS`.

    Raises:
        UnknownName: a granularity that does not exist.
        InterpError: a granularity together with a site or axes, or of a model with two stacks.

    >>> asked("q,k", by="head,pos"), asked(granularity="attn_out")
    ((('q', 'k'), ('head', 'pos')), (('attn_out',), ('pos',)))
    """
    if granularity is None:
        axes = None if isinstance(by, EllipsisType) else _listed(by)
        if site is None and model is not None and isinstance(model.cfg, EncoderDecoderConfig):
            site = STACK_HEADS
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
    if model is not None and isinstance(model.cfg, EncoderDecoderConfig):
        (first, *_), by = GRANULARITIES.get(name, (("z",), ("head",)))
        raise InterpError(
            f"granularity {granularity!r} is of one stack, and this model has an encoder and a decoder: give site and "
            f"by, such as site='encoder.{first}' and by={','.join(by)!r}"
        )
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
            columns = [_column(row, name, axis) for name, axis in zip(names, axes, strict=True)]
            for cell in cells:
                where = {"layer": layer, **dict(zip(axes, cell, strict=True))}
                labels = {"site": row.short, "layer": layer, **dict(zip(columns, cell, strict=True))}
                made.append(Variant((Edit(row.short, where),), labels))
    return made


def _listed(words: str | Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(words, str):
        return tuple(part.strip() for part in words.split(","))
    return () if words is None else tuple(words)


def _rows(cfg: ModelConfig | EncoderDecoderConfig, name: str) -> list[tuple[int, Site]]:
    """The layers that have a site, by its short name, and what it is there."""
    names = site_names(cfg)
    if name in names:  # a full name is of one layer
        return []
    own = stack_named(cfg, name) if isinstance(cfg, EncoderDecoderConfig) else cfg
    full = ((layer, find_act_name(name, layer, names)) for layer in range(own.n_layers))
    return [(layer, names[one]) for layer, one in full if one in names]


def _of_layers(cfg: ModelConfig | EncoderDecoderConfig, name: str) -> list[tuple[int, Site]]:
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
    cfg = config_of(model.cfg, site)
    sizes = axis_sizes(cfg)
    values = [
        range(sizes[axis]) if axis in sizes else _positions(pairs, stack_of(site.short, axis), name)
        for name, axis in zip(by, axes, strict=True)
    ]
    cells = list(itertools.product(*values))
    if cfg.causal and not site.cross and "role" not in by and {"query", "key"} <= set(axes):
        query, key = axes.index("query"), axes.index("key")
        cells = [cell for cell in cells if cell[key] <= cell[query]]  # type: ignore[operator]
    return axes, cells


def _column(site: Site, name: str, axis: str) -> str:
    """The column for what cells are cut by: heads of an encoder and of a cross-attention have their own."""
    if name in PLACES:
        return name
    own = f"{'cross' if site.cross else site.stack}_{axis}"
    return own if own in HEAD_COLUMNS else AXIS_WORDS.get(axis, axis)


def stack_of(site: str, column: str) -> str:
    """The stack, of two, whose layers or positions a column counts in rows of a site; empty in other models.

    >>> stack_of("decoder.cross_attn.pattern", "key"), stack_of("decoder.cross_attn.z", "pos"), stack_of("z", "pos")
    ('encoder', 'decoder', '')
    """
    own = _of_two_stacks().get(site)
    if own is None:
        return ""
    if column == "layer":
        return own.stack
    return "encoder" if column == "key" and own.cross else own.rows_in


@functools.cache
def _of_two_stacks() -> dict[str, Site]:
    """The sites of an encoder-decoder by their short names."""
    return {own.short: own for stack in STACKS for row in SITES for own in [row.within(stack)]}


def _prompts_of(pairs: PromptPairs, stack: str) -> PromptPairs:
    """The pairs whose positions those of a stack are."""
    return pairs.encoder if pairs.encoder is not None and stack == "encoder" else pairs


def _positions(pairs: PromptPairs, stack: str, name: str) -> Sequence[int | str]:
    """The positions, or roles, that every prompt of a stack has."""
    own, whose = _prompts_of(pairs, stack), f" of the {stack}" if stack else ""
    if name == "role":
        if not own.role_names:
            raise PromptError(f"by='role' needs prompts with roles; these{whose} have none")
        return own.role_names
    lengths = Counter(own.lengths.tolist())
    if len(lengths) > 1:
        usual, how_many = max(lengths.items(), key=lambda item: (item[1], -item[0]))
        chosen = "pairs.encoder.lengths" if stack == "encoder" else "pairs.lengths"
        raise PromptError(
            f"by={name!r} needs prompts of one length; these{whose} have {min(lengths)} to {max(lengths)} tokens: give "
            f"by='role', a task's prompts with aligned=True, or pairs[{chosen} == {usual}], which are {how_many} "
            f"of {len(pairs)}"
        )
    return range(next(iter(lengths)))


def described(frame: pd.DataFrame, pairs: PromptPairs) -> pd.DataFrame:
    """A sweep's table for its reader: what tells cells apart in front, heads as whole numbers (an empty one is NA), and
    beside every position the clean prompt's token and role.
    """
    import numpy as np

    frame = frame.copy(deep=False)
    for column in set(HEAD_COLUMNS) & set(frame):
        if frame[column].isna().any():
            frame[column] = frame[column].astype("Int64")
    for column in TOLD.keys() & set(frame):  # prompts have one length: [prompt, pos]
        told = np.full((len(TOLD[column]), len(frame)), "", dtype=object)
        sites = frame["site"].unique() if pairs.encoder is not None else [None]
        for site in sites:
            own = pairs if site is None else _prompts_of(pairs, stack_of(site, column))
            rows = slice(None) if site is None else (frame["site"] == site).to_numpy()
            tokens = np.array(own.str_tokens, dtype=object)
            roles = [{at: role for role, at in named.items()} for named in own.roles]
            named = np.array([[of.get(at, "") for at in range(tokens.shape[1])] for of in roles], dtype=object)
            for values, table in zip(told, (tokens, named), strict=True):
                values[rows] = table[frame["prompt"][rows], frame[column][rows]]
        for name, values in zip(TOLD[column], told, strict=True):
            frame[name] = values
    own_columns = (part for name in COLUMNS for part in (name, *TOLD.get(name, ())))
    front = [name for name in dict.fromkeys(("direction", "site", "layer", *own_columns)) if name in frame]
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
