"""Parts of a model: every name is read back, wrong ones are refused, and the tables of two studies can be joined."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from makers import EDGES, make, pairs_of

from analyses import ablation, edge_attribution, head_attribution, path_patching
from interp.circuits.graph import Graph
from interp.config import ModelConfig
from interp.errors import UnknownName
from interp.names import MIXER_PARTS, PART_KINDS, READS, UNITS, WHOLES, Part, edge_ends, edge_name, part_of, spelled
from interp.sites import SITES, axis_sizes
from interp.variants.components import CUTS, components


def every_part(cfg: ModelConfig) -> list[Part]:
    """All parts of a model, in the order of computation."""
    sizes, made = axis_sizes(cfg), [Part("embed"), Part("pos_embed")]
    for layer in range(cfg.n_layers):
        mixer = MIXER_PARTS.get(cfg.mixer(layer) or "")
        units = {"attn": ["head", "kv_head"], "mamba2": ["ssm_head", "ssm_group"], "mamba": ["channel"], None: []}
        for kind in units[cfg.mixer(layer)]:
            made += [Part(kind, layer, index) for index in range(sizes[kind])]
        made += [] if mixer is None else [Part(mixer.whole, layer)]
        if cfg.mlp_in(layer):
            units = ("neuron", sizes["d_mlp"]) if cfg.experts_in(layer) is None else ("expert", sizes["expert"])
            made += [Part(units[0], layer, index) for index in range(units[1])] + [Part("mlp", layer)]
    return [*made, Part("logits")]


@pytest.mark.parametrize("kind", EDGES)
def test_every_part_of_every_kind_of_layer_is_read_back_from_its_names(kind: str) -> None:
    parts = every_part(make(kind).cfg)
    names = [part.name for part in parts]
    assert len(set(names)) == len(parts)
    for part, name in zip(parts, names, strict=True):
        assert Part.parse(name) == part and Part.parse(name, parts) == part
        assert spelled(f" {name.lower()} ") == spelled(name.upper().replace(" ", "")) == part
        if part.row.node is not None:
            assert Part.parse(part.node) == part
        for read in READS if part.row.inputs else ():
            read_by = Part(part.kind, part.layer, part.index, read)
            spellings = [read_by.name, read_by.node, *(f"{name}{form}" for form in (f":{read}", f"<{read}>"))]
            assert [Part.parse(text) for text in spellings] == [read_by] * 4


@pytest.mark.parametrize("kind", EDGES)
def test_parts_sort_in_the_order_of_computation(kind: str) -> None:
    parts = every_part(make(kind).cfg)
    assert sorted(random.Random(0).sample(parts, len(parts))) == parts
    graph = Graph.of(make(kind))
    for nodes in (graph.senders, graph.receivers):
        assert [node.stage for node in sorted(nodes, key=lambda node: node.part)] == sorted(n.stage for n in nodes)


@pytest.mark.parametrize("kind", EDGES)
def test_nodes_and_edges_are_named_as_files_of_circuits_name_them(kind: str) -> None:
    graph = Graph.of(make(kind))
    for node in (*graph.senders, *graph.receivers):
        assert Part.parse(node.name) == Part.parse(node.label) == node.part
    for sender, receiver in graph.edges:
        name = graph.edge_name(sender, receiver)
        ends = edge_ends(name)
        assert ends == (graph.senders[sender].name, graph.receivers[receiver].name)
        assert edge_name(*map(Part.parse, ends)) == name and graph.edge(name) == (sender, receiver)


def test_names_are_those_of_tables_and_figures() -> None:
    written = {
        Part("mlp", 9): ("MLP 9", "m9"),
        Part("mixer", 9): ("mixer 9", "s9"),
        Part("attention", 9): ("attention 9", None),
        Part("head", 9, 6): ("L9H6", "a9.h6"),
        Part("head", 9, 6, "q"): ("L9H6 q", "a9.h6<q>"),
        Part("kv_head", 9, 1, "k"): ("L9KV1 k", "a9.kv1<k>"),
        Part("ssm_head", 9, 3): ("L9S3", "s9.h3"),
        Part("channel", 9, 12): ("L9C12", None),
        Part("neuron", 9, 5): ("L9N5", None),
        Part("embed"): ("embed", "input"),
        Part("pos_embed"): ("pos_embed", None),
        Part("logits"): ("logits", "logits"),
    }
    assert {part: (part.name, part.node if part.row.node else None) for part in written} == written
    assert Part("head", np.int64(9), np.int64(6)) == Part("head", 9, 6)  # type: ignore[arg-type]
    for kind in (part for part in written if part.row.node is None):
        with pytest.raises(UnknownName, match="not a node of a circuit"):
            _ = kind.node


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("L9Q6", "did you mean 'L9"),
        ("MPL 9", "did you mean 'MLP 9'"),
        ("9_mlp_out", "MLP 9"),
        ("mixr 3", "did you mean 'mixer 3'"),
        ("L9H6:w", "did you mean 'L9H6'"),
        ("MLP 9:q", "did you mean 'MLP 9'"),
        ("embedd", "did you mean 'embed'"),
        ("L9H" + "9" * 5000, "no part matches"),
        ("L９H６", "no part matches"),
        ("", "parts are named embed, pos_embed, token_type_embed, L0H0"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest(text: str, says: str) -> None:
    assert spelled(text) is None
    with pytest.raises(UnknownName, match=says):
        Part.parse(text)


def test_a_part_that_the_model_lacks_is_refused_with_the_nearest() -> None:
    parts = components(make("gpt2"))
    with pytest.raises(UnknownName, match="no part matches 'L1H7'; did you mean 'L1H"):
        Part.parse("L1H7", parts)
    with pytest.raises(UnknownName, match="no part matches 'nonsense'; choose from 'L0H0'"):
        Part.parse("nonsense", parts)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("heads", 1, 1), "no kind of part matches 'heads'; did you mean 'head'"),
        (("head", 1), "index must be an integer >= 0, not None"),
        (("head", -1, 1), "layer must be at least 0, not -1"),
        (("mlp", 1, 1), "of the kind 'mlp' has no index: leave out 1"),
        (("embed", 0), "of the kind 'embed' has no layer"),
        (("head", 1, 1, "w"), "no input of the kind 'head' matches 'w'; choose from 'q', 'k', 'v'"),
        (("mlp", 1, None, "q"), "no input of the kind 'mlp' matches 'q'; there are none"),
    ],
)
def test_a_part_that_contradicts_itself_is_refused(given: tuple[Any, ...], says: str) -> None:
    with pytest.raises(UnknownName, match=says):
        Part(*given)


def test_the_tables_of_kinds_agree_with_those_of_sites() -> None:
    sites = {site.short: site for site in SITES}
    for kind, row in PART_KINDS.items():
        if row.site:
            axes = [site.axes for site in SITES if site.short == row.site.removeprefix("encoder.")]
            assert any(row.axis in (None, *of) for of in axes), kind
    for mixer, own in MIXER_PARTS.items():
        whole, unit = PART_KINDS[own.whole].site, PART_KINDS[own.unit]
        of_mixer = {site.short: site for site in SITES if site.mixers is not None and mixer in site.mixers}
        assert whole in of_mixer and unit.axis in of_mixer[unit.site].axes
        assert own.heads == (mixer != "mamba") and own.usual in (own.unit, own.whole)
    assert set(WHOLES) <= set(sites) and list(CUTS) == [
        *("z", "gated", "cross_attn.z", "encoder.z", "attn_out", "out", "mlp_out", "expert_out", "post")
    ]
    assert set(UNITS) == {
        *("head", "encoder_head", "cross_head", "kv_head", "ssm_head", "ssm_group", "channel", "expert", "neuron")
    }


def test_the_part_of_a_row() -> None:
    row = pd.Series({"layer": 3, "head": pd.NA, "ssm_head": 2, "site": "gated"})
    assert part_of(row) == Part("ssm_head", 3, 2)  # type: ignore[arg-type]
    assert part_of({"layer": np.int64(3), "head": 2.0, "channel": float("nan")}) == Part("head", 3, 2)
    assert part_of({"layer": 3, "site": "attn_out"}) == Part("attention", 3)
    assert part_of({"layer": 3, "site": "resid_pre"}) is part_of({"head": 3}) is None


@pytest.mark.parametrize("kind", ["hybrid", "one_part_a_layer", "gpt2"])
def test_tables_of_two_studies_are_joined_by_their_components(kind: str) -> None:
    model, pairs = make(kind), pairs_of(6, 4, 6)
    sites = [
        site
        for site in ("z", "gated", "out", "mlp_out")
        if any(site == name.rpartition("hook_")[2] for name in model.hook_dict)
    ]
    written = head_attribution.run(model, pairs, channels=0)
    lost = ablation.run(model, pairs, kind="zero", site=sites, progress=False)
    paths = path_patching.run(model, pairs, senders="all", progress=False)
    edges = edge_attribution.run(model, pairs, sample=1, progress=False)
    own = {name: part for name in written["component"].unique() if (part := spelled(name)) is not None}
    gone = {name: Part.parse(name) for name in lost["component"].unique()}
    beside = [
        written.loc[written["component"] == name, "kind"].iloc[0] for name in set(written["component"]) - set(own)
    ]
    assert set(beside) <= {"bias", "total", "residue"}
    # Ablation has channels one by one, and whole mixers beside heads; attribution has embeddings.
    both = written.merge(lost, on=["component", "layer", "prompt"])
    assert set(both["component"]) == own.keys() - {"embed", "pos_embed"}
    assert gone.keys() - set(both["component"]) == {
        name
        for name, part in gone.items()
        if part.kind == "channel" or (part.kind == "mixer" and model.cfg.mixer(part.layer or 0) == "mamba2")
    }
    assert set(edges["sender"]) == set(paths["sender"]) == own.keys() - {"pos_embed"}
