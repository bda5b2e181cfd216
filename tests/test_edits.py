"""Where edits act: the names of axes, and what is said when one is misspelt."""

from __future__ import annotations

import re
from typing import Any

import pytest

from interp.edits import Edit, Variant
from interp.errors import ConfigError, InterpError, UnknownName
from interp.sweeps.sweep import sweep
from interp.variants.granularity import variants
from tests.makers import compare, encoder_decoder, make, pairs_of


def test_neurons_are_the_axis_of_an_mlp() -> None:
    old, new = (Edit("post", {"layer": 1, axis: [3, 5]}, op="zero") for axis in ("d_mlp", "neuron"))
    assert old == new
    compare(make("llama"), pairs_of(), [Variant([new])], "corrupt", "clean")
    with pytest.raises(ConfigError, match="where names one axis twice, as 'd_mlp' and as 'neuron'"):
        Edit("post", {"layer": 1, "d_mlp": 3, "neuron": 4})
    with pytest.raises(UnknownName, match="neuron 64 is not one of this model's 64"):
        Edit("post", {"layer": 1, "neuron": 64}).name(make("llama").cfg)
    with pytest.raises(ConfigError, match="neuron of an edit must be an integer"):
        Edit("post", {"layer": 1, "neuron": 0.5})  # type: ignore[dict-item]


def test_cells_of_a_study_can_be_neurons() -> None:
    model = make("no_norm_relu")
    made = variants(model, pairs_of(), site="post", by="neuron")
    assert [(v.labels["layer"], v.labels["neuron"]) for v in made] == [(la, n) for la in range(2) for n in range(24)]
    assert made[30].edits[0] == Edit("post", {"layer": 1, "neuron": 6})


@pytest.mark.parametrize(
    ("site", "where", "says"),
    [
        ("z", {"layer": 0, "haed": 1}, "no axis of 'z' matches 'haed'; did you mean 'head'"),
        ("z", {"laeyr": 0, "head": 1}, "no axis of 'z' matches 'laeyr'; did you mean 'layer'"),
        ("blocks.0.attn.hook_z", {"heads": 1}, "did you mean 'head'"),
        ("post", {"layer": 0, "neurons": 1}, "did you mean 'neuron'"),
        ("pattern", {"layer": 0, "keys": 1}, "did you mean 'key'"),
        ("embed", {"positon": 1}, "did you mean 'pos'"),
        ("z", {"layer": 0, "batch": 1}, "no axis of 'z' matches 'batch'; choose from 'layer', 'pos', 'head', 'd_head'"),
    ],
)
def test_a_misspelt_axis_is_named_with_the_nearest(site: str, where: dict[str, Any], says: str) -> None:
    with pytest.raises(InterpError, match=re.escape(says)):
        sweep(make("gpt2"), pairs_of(), [Variant([Edit(site, where)])], progress=False)


def test_a_misspelt_axis_of_two_stacks_is_named() -> None:
    model = encoder_decoder("pre_norm")
    with pytest.raises(UnknownName, match="did you mean 'head'"):
        Edit("decoder.cross_attn.z", {"layer": 0, "haed": 1}).name(model.cfg)
    with pytest.raises(UnknownName, match="did you mean 'layer'"):
        Edit("encoder.z", {"laeyr": 0, "head": 1}).name(model.cfg)
