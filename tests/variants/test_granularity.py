"""How a sweep is cut: every cell is one edit where its labels say, and its row says what stands there."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import pandas as pd
import pytest
from makers import make, started_pairs

from interp.edits import Edit
from interp.errors import InterpError, PromptError, UnknownName
from interp.prompts.pairs import PromptPairs
from interp.sweeps.sweep import sweep
from interp.variants.granularity import (
    GRANULARITIES,
    MIXER_GRANULARITIES,
    asked,
    by_position,
    cell_columns,
    cut_by,
    described,
    effect_label,
    variants,
)


@pytest.mark.slow  # transformer_lens takes seconds to import
@pytest.mark.filterwarnings("ignore")  # ... and imports what is deprecated
def test_the_names_are_those_of_transformer_lens() -> None:
    from transformer_lens import patching

    known = {name.removeprefix("get_act_patch_") for name in vars(patching) if name.startswith("get_act_patch_")}
    paths = {name for name in known if name.startswith("direct_path")}  # from a sender to a receiver: no cells
    assert known - paths == set(GRANULARITIES)


def test_what_is_asked_for_is_a_granularity_or_a_site_and_its_axes() -> None:
    assert asked() == (("z",), ("head",)) and asked(by=None) == (("z",), ()) and asked(["q"]) == (("q",), ("head",))
    for name, expected in GRANULARITIES.items():
        assert asked(granularity=name) == asked(granularity=f"get_act_patch_{name}") == expected
        assert asked(*expected) == asked(",".join(expected[0]), ", ".join(expected[1])) == expected


def test_positions_are_asked_for_by_name_or_by_axis() -> None:
    by_pos = {name for name in GRANULARITIES if by_position(granularity=name)}
    assert set(GRANULARITIES) - by_pos == {name for name in GRANULARITIES if "all_pos" in name}
    assert by_position(by="head,key") and by_position("z", ["pos"], metric="kl")
    assert not by_position(by="head,role") and not by_position(by=None) and not by_position()


def test_a_cell_is_one_edit_where_its_labels_say() -> None:
    made = variants(make("llama_gqa"), started_pairs(3, 3), site="v,pattern", by="head,pos")
    assert len(made) == 2 * (2 + 4) * 3
    first, last = made[0], made[-1]
    assert first.edits == (Edit("v", {"layer": 0, "kv_head": 0, "pos": 0}),)
    assert first.labels == {"site": "v", "layer": 0, "kv_head": 0, "pos": 0}
    assert last.edits == (Edit("pattern", {"layer": 1, "head": 3, "query": 2}),)
    assert last.labels == {"site": "pattern", "layer": 1, "head": 3, "pos": 2}
    (whole,) = variants(make("gpt2", n_layers=1), started_pairs(3), site="hook_z, z", by="layer")
    assert whole.edits == (Edit("z", {"layer": 0}),)


@pytest.mark.parametrize(("kind", "cells"), [("gpt2", 6), ("bidirectional", 9)])
def test_a_causal_model_has_links_from_what_was_before(kind: str, cells: int) -> None:
    model = make(kind, n_layers=1)
    made = [variant.labels for variant in variants(model, started_pairs(3), site="pattern", by=["key", "query"])]
    links = {(label["query"], label["key"]) for label in made}
    assert len(made) == len(links) == cells
    assert all(key <= query for query, key in links) == model.cfg.causal


def test_roles_serve_prompts_of_different_lengths_and_are_refused_where_there_are_none() -> None:
    pairs = started_pairs(6, 4)
    assert len(variants(make("gpt2"), pairs, site="z,q", by="role,head")) == 2 * 2 * 2 * 4
    bare = PromptPairs.from_tokens([[1, 2]], [[1, 3]], answers=[(4, 5)])
    with pytest.raises(PromptError, match="these have none"):
        variants(make("gpt2"), bare, site="z", by="role")


def test_positions_of_unequal_prompts_are_refused_with_the_largest_part_that_will_do() -> None:
    pairs = started_pairs(6, 4, 5, 4)
    with pytest.raises(PromptError, match=r"these have 4 to 6 tokens.*pairs\[pairs.lengths == 4\], which are 2 of 4"):
        variants(make("gpt2"), pairs, site="z", by="pos")
    assert variants(make("gpt2"), pairs[pairs.lengths == 4], site="z", by="pos")


@pytest.mark.parametrize(
    ("kind", "options", "error", "says"),
    [
        ("gpt2", {"granularity": "attn_head_z_by_pos"}, UnknownName, "or 'attn_head_q_by_pos'"),
        ("gpt2", {"granularity": "resid_pre", "site": "z"}, InterpError, "leave out site and by"),
        ("gpt2", {"granularity": "resid_pre", "by": "head"}, InterpError, "leave out site and by"),
        ("gpt2", {"granularity": "resid_pre", "by": None}, InterpError, "leave out site and by"),
        ("neox", {"granularity": "resid_mid"}, UnknownName, "no site matches 'resid_mid'; did you mean 'resid_p"),
        ("attn_only", {"granularity": "block_every"}, UnknownName, "'mlp_out'; did you mean 'attn_out'"),
        ("gpt2", {"site": "blocks.1.attn.hook_z"}, UnknownName, "no site matches 'blocks.1.attn.hook_z'"),
        ("gpt2", {"site": "z,"}, UnknownName, "no site matches ''"),
        ("gpt2", {"site": "embed"}, UnknownName, "belongs to no layer"),
        ("gpt2", {"site": "z", "by": "head,key"}, UnknownName, "of 'z' matches 'key'; choose from 'head', 'pos'"),
        ("gpt2", {"site": "pattern", "by": "head,qery"}, UnknownName, "did you mean 'query'"),
        ("gpt2", {"site": "pattern", "by": "pos,query"}, InterpError, "cuts the axis 'query' of 'pattern' twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused(kind: str, options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        sites, axes = asked(**options)
        variants(make(kind), started_pairs(5, 5), site=sites, by=axes)


def shape(made: list[Any]) -> dict[int, int]:
    """Layer -> how many cells it has."""
    return dict(Counter(variant.labels["layer"] for variant in made))


@pytest.mark.parametrize(
    ("site", "by", "cells"),
    [
        ("out", "role", {0: 2, 2: 2}),
        ("attn_out,out", None, {0: 1, 1: 1, 2: 1}),
        ("pattern", "head", {0: 6, 1: 4}),
        ("y", "head,pos", {0: 30}),
        ("gated", "channel", {2: 24}),
        ("B", "ssm_group", {0: 2}),
        ("state", "pos", {0: 5, 2: 5}),
    ],
)
def test_layers_of_a_hybrid_are_cut_where_they_have_the_site_and_the_axis(
    site: str, by: str | None, cells: dict[int, int]
) -> None:
    made = variants(make("hybrid"), started_pairs(5, 5), site=site, by=by)
    assert shape(made) == cells
    for variant in made:
        assert variant.edits[0].name(make("hybrid").cfg).startswith(f"blocks.{variant.labels['layer']}.")


def test_what_is_not_asked_for_depends_on_the_layers() -> None:
    pairs, bare = started_pairs(4), PromptPairs.from_tokens([[1, 2]], [[1, 3]], answers=[(4, 5)])

    def of(kind: str, prompts: PromptPairs = pairs, **options: Any) -> object:
        return asked(**options, model=make(kind), pairs=prompts)

    assert of("gpt2") == asked() and of("gpt2", site="q") == asked("q")
    assert of("mamba") == (("out",), ("role",)) and of("mamba", bare) == (("out",), ())
    assert of("hybrid") == (("attn_out", "out"), ("role",)) and of("hybrid", site="y") == (("y",), ("role",))
    assert of("mamba2", by="head") == (("gated",), ("head",)) and of("mamba", by="channel") == (
        ("gated",),
        ("channel",),
    )
    assert of("hybrid", by="head,pos") == (("z", "gated"), ("head", "pos"))
    for name, expected in MIXER_GRANULARITIES.items():
        assert of("mamba2", granularity=name) == expected
        assert by_position(granularity=name) != ("all_pos" in name)


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("mamba", {"by": "head"}, "no axis of 'gated' matches 'head'; choose from 'pos', 'role', 'channel'"),
        ("mamba2", {"site": "gated", "by": "channel"}, "no axis of 'gated' matches 'channel'"),
        ("mamba", {"site": "z"}, "no site matches 'z'"),
        ("gpt2", {"site": "state", "by": "pos"}, "no site matches 'state'"),
    ],
)  # fmt: skip
def test_what_a_model_does_not_have_is_refused_with_what_it_has(kind: str, options: dict[str, Any], says: str) -> None:
    model, pairs = make(kind), started_pairs(5, 5)
    with pytest.raises(UnknownName, match=says):
        sites, axes = asked(**options, model=model, pairs=pairs)
        variants(model, pairs, site=sites, by=axes)


def test_heads_of_both_kinds_of_layers_have_columns_of_their_own() -> None:
    model, pairs = make("hybrid"), started_pairs(4, 4)
    frame = described(sweep(model, pairs, variants(model, pairs, site="z,gated", by="head"), progress=False), pairs)
    assert cell_columns(frame) == ["site", "layer", "head", "ssm_head", "metric"]
    assert str(frame["head"].dtype) == str(frame["ssm_head"].dtype) == "Int64"
    assert frame["head"].notna().sum() == 8 and frame["ssm_head"].notna().sum() == 12


def measured(granularity: str, pairs: PromptPairs) -> pd.DataFrame:
    model = make("llama_gqa")
    sites, axes = asked(granularity=granularity)
    return sweep(model, pairs, variants(model, pairs, site=sites, by=axes), progress=False)


def test_heads_and_key_value_heads_are_whole_numbers_in_columns_of_their_own() -> None:
    pairs = started_pairs(5)
    plain = measured("attn_head_all_pos_every", pairs)
    before = plain.copy()
    frame = described(plain, pairs)
    pd.testing.assert_frame_equal(plain, before)
    own = frame["site"].isin(["k", "v"])
    assert frame["head"].isna().equals(own) and frame["kv_head"].isna().equals(~own)
    assert set(frame["head"].dropna()) == {0, 1, 2, 3} and set(frame["kv_head"].dropna()) == {0, 1}
    text = frame.to_csv(index=False)
    assert ",0,," in text and ",0.0,," not in text
    assert pd.read_csv(io.StringIO(text))["kv_head"].max() == 1


def test_positions_carry_the_clean_token_and_its_role() -> None:
    pairs = started_pairs(5, 5)
    frame = described(measured("attn_head_pattern_dest_src_pos", pairs), pairs)
    front = ["site", "layer", "head", "query", "query_token", "query_role", "key", "key_token", "key_role", "prompt"]
    assert list(frame)[: len(front)] == front and list(frame)[-1] == "effect"
    at = frame[(frame["prompt"] == 1) & (frame["query"] == 4) & (frame["key"] == 1)].iloc[0]
    query, key = map(str, pairs.clean[1, [4, 1]].tolist())
    assert (at["query_token"], at["query_role"], at["key_token"], at["key_role"]) == (query, "END", key, "changed")
    assert set(frame[frame["query"] == 2]["query_role"]) == {""}


def test_a_table_tells_what_its_cells_and_effects_are() -> None:
    pairs = started_pairs(5, 5)
    frame = described(measured("attn_head_by_pos_every", pairs), pairs)
    assert "role" in frame and cut_by(frame) == ["head", "kv_head", "pos"]
    assert cell_columns(frame) == ["site", "layer", "head", "kv_head", "pos", "metric"]
    cells = frame.groupby(cell_columns(frame), dropna=False).ngroups
    assert cells * len(pairs) == len(frame) == len(frame.drop_duplicates([*cell_columns(frame), "prompt"]))
    assert cut_by(frame.drop(columns="pos")) == ["head", "kv_head", "role"]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({}, "effect on logit diff (0 base run, 1 source run)"),
        ({"direction": "noise"}, "effect on logit diff (0 clean run, 1 corrupt run)"),
        ({"direction": ["noise", "denoise"]}, "effect on logit diff (0 base run, 1 source run)"),
        ({"direction": "denoise", "metric": ["kl", "rank"]}, "effect (0 corrupt run, 1 clean run)"),
    ],
)
def test_a_label_says_only_what_all_rows_have_in_common(columns: dict[str, Any], says: str) -> None:
    frame = pd.DataFrame({"metric": ["logit_diff"] * 2}).assign(**columns)
    assert effect_label(frame) == says
    assert effect_label(frame, "estimated effect") == f"estimated {says}"
