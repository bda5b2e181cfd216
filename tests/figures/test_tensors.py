"""Figures of tensors and caches draw the same numbers as figures of the frames that hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from makers import make, pairs_of
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from shown import panels, texts

from interp import figures
from interp.errors import InterpError
from interp.figures.tensors import frame_of

TOKENS = ["When", " Mary", " and", " John"]
GRID = torch.linspace(-1.0, 2.0, 12).reshape(4, 3)  # [layer, head]


def cells(axes: Axes) -> np.ma.MaskedArray[Any, Any]:
    (found,) = [artist for artist in axes.collections if isinstance(artist, QuadMesh)]
    return found.get_array()


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (GRID, {"x": "head", "y": "layer"}),
        (GRID, {"axes": ("layer", "head")}),
        (GRID.T, {"x": "head", "y": "layer", "axes": ("head", "layer")}),
        (GRID.numpy(), {"x": "head", "y": "layer"}),
        (GRID.tolist(), {"x": "head", "y": "layer"}),
        (GRID[None].clone().requires_grad_(), {"x": "head", "y": "layer"}),
        (GRID.double(), {"x": figures.Axis("head", title="head"), "y": "layer"}),
    ],
)
def test_a_heatmap_of_a_tensor_is_that_of_its_frame(values: Any, options: dict[str, Any]) -> None:
    (axes,) = panels(figures.heatmap(values, **options))
    np.testing.assert_allclose(cells(axes), GRID, rtol=1e-6)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("head", "layer")


def test_axes_that_nothing_draws_become_panels() -> None:
    values = torch.arange(24.0).reshape(2, 4, 3)
    for options in ({"axes": ("site", "layer", "head")}, {"facet": "site", "x": "head", "y": "layer"}):
        drawn = panels(figures.heatmap(values, **options))  # type: ignore[arg-type]
        for axes, grid in zip(drawn, values, strict=True):
            np.testing.assert_array_equal(cells(axes), grid)
    several = figures.lines(values + 5, axes=("site", "head", "pos"))
    assert [len(axes.lines) for axes in panels(several)] == [4, 4]


def test_a_sites_name_names_the_axes_of_what_is_read_from_it() -> None:
    model, pairs = make("gpt2"), pairs_of(6)
    _, cache = model.run_with_cache(pairs.clean)
    (axes,) = panels(figures.heatmap(cache["resid_post", 1], axes="resid_post", tokens=[*TOKENS, ".", "!"]))
    assert axes.get_ylabel() == "position" and axes.get_xlabel() == "d model"
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["0: When", "1: Mary"]
    np.testing.assert_allclose(cells(axes), cache["resid_post", 1][0].detach(), rtol=1e-6)
    (axes,) = panels(figures.heatmap(cache["z", 1][0, -1], axes="z"))
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("head", "d head")
    scores = cache["attn_scores", 1][0, 0]
    (axes,) = panels(figures.heatmap(scores, axes="attn_scores"))  # masked scores are −∞, and drawn as not measured
    np.testing.assert_array_equal(cells(axes).mask, ~torch.isfinite(scores))
    assert axes.collections[0].norm.vmax == pytest.approx(float(scores[scores.isfinite()].abs().max()))


def test_attention_takes_a_pattern_all_heads_of_a_layer_and_a_whole_cache() -> None:
    model, pairs = make("llama_gqa"), pairs_of(4)
    _, cache = model.run_with_cache(pairs.clean)
    pattern = cache["pattern", 1].detach()  # [batch, head, query, key]
    lower = np.tril_indices(4)
    for given in (pattern, pattern[0]):
        drawn = panels(figures.attention(given, TOKENS))
        assert [axes.get_title(loc="left") for axes in drawn] == [f"head {head}" for head in range(4)]
        for axes, grid in zip(drawn, pattern[0], strict=True):
            np.testing.assert_allclose(cells(axes).filled(0)[lower], grid[lower], rtol=1e-6)
    figure = figures.attention(pattern[0, 2], TOKENS)
    (axes,) = panels(figure)
    assert {"0: When", "3: John"} <= texts(figure) and cells(axes).shape == (4, 4)
    whole = panels(figures.attention(cache, TOKENS))
    assert [axes.get_title(loc="left") for axes in whole] == [f"L{at}H{head}" for at in range(2) for head in range(4)]
    np.testing.assert_allclose(cells(whole[6]).filled(0)[lower], pattern[0, 2][lower], rtol=1e-6)


def test_bars_and_lines_of_tensors_have_tokens_as_labels() -> None:
    losses = torch.tensor([0.5, 1.5, 0.25, 3.0], dtype=torch.bfloat16)
    (axes,) = panels(figures.bars(losses, x="pos", tokens=TOKENS))
    assert [bar.get_height() for bar in axes.patches] == [0.5, 1.5, 0.25, 3.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0: When", "1: Mary", "2: and", "3: John"]
    (axes,) = panels(figures.lines(losses[None], x="pos", tokens=TOKENS))
    assert axes.lines[0].get_ydata().tolist() == losses.tolist()
    frame = frame_of(losses.float().numpy(), ["pos"])
    (other,) = panels(figures.bars(frame, x="pos", tokens=TOKENS))
    assert [label.get_text() for label in other.get_xticklabels()][1] == "1: Mary"


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda: figures.heatmap(GRID), "2 axes, .4, 3., need as many names, and there are 0"),
        (lambda: figures.heatmap(GRID, x="head", y="layr", axes=("layer", "head")), "'layr' is to be drawn"),
        (lambda: figures.heatmap(GRID, axes=("layer", "layer")), "axes must be different names"),
        (lambda: figures.heatmap(GRID, axes="zz"), "no site matches 'zz'"),
        (lambda: figures.heatmap(GRID[0], axes=("head",)), "y must name what is drawn"),
        (lambda: figures.heatmap(pd.DataFrame({"head": [0], "value": [1.0]}), x="head"), "y must name"),
        (lambda: figures.heatmap(pd.DataFrame({"head": [0]}), axes=("head",)), "a frame has columns"),
        (lambda: figures.bars("text", x="head"), "must be"),
        (lambda: figures.bars([], x="head"), "nothing to draw"),
        (lambda: figures.bars(torch.tensor(1.0), x="head"), "nothing to draw"),
        (lambda: figures.attention(torch.ones(2, 3, 4, 4), TOKENS), "take one prompt's"),
        (lambda: figures.attention(torch.ones(4, 4), TOKENS[:3]), "key=3, which is not among"),
    ],
)
def test_tensors_that_cannot_be_drawn_are_refused(draw: Any, says: str) -> None:
    with pytest.raises(InterpError, match=says):
        draw()


def test_a_cache_of_several_prompts_is_refused_and_one_of_its_values_asked_for() -> None:
    model, pairs = make("gpt2"), pairs_of(4, 4)
    _, cache = model.run_with_cache(pairs.clean)
    with pytest.raises(InterpError, match="draws one prompt, and the cache has 2"):
        figures.attention(cache, TOKENS)
    with pytest.raises(InterpError, match="a cache holds many values"):
        figures.heatmap(cache, x="head", y="layer")  # type: ignore[arg-type]
    figures.attention(cache["pattern", 0][1], TOKENS).canvas.draw()
