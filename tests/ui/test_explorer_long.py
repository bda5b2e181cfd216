"""Prompts that are too long to draw whole: one layer's patterns, a window of the lens, and a page that stays usable."""

from __future__ import annotations

import base64
import threading
import urllib.parse
from typing import Any

import numpy as np
import pytest
import torch
from browser import chromium, opened
from makers import make
from served import TOKEN, served

from interp.errors import ConfigError
from interp.hooked.model import HookedModel
from interp.ui.explorer import sight
from interp.ui.explorer.answers import answers
from interp.ui.explorer.sight import LENS_WINDOW

N = 300
PROMPT = " ".join(str(at * at % 29) for at in range(N))
IDS = torch.tensor([[int(one) for one in PROMPT.split()]])


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return make("llama_gqa", n_ctx=400, n_layers=3)


def look(model: HookedModel, part: str, **focus: Any) -> Any:
    given = {"scene": {"prompt": PROMPT}, "parts": [part], "focus": focus}
    (found,) = answers(model, "model")["look"](given, threading.Event())["parts"]
    return found


def unpacked(array: Any) -> Any:
    """Causal patterns [layer, head, query, key] as the page reads them."""
    stored = {"float16": "<f2", "uint8": "u1"}[array["dtype"]]
    values = np.frombuffer(base64.b64decode(array["data"]), dtype=stored) * array.get("scale", 1.0)
    found = np.zeros(array["shape"])
    found[..., *np.tril_indices(found.shape[-1])] = values.reshape(*found.shape[:2], -1)
    return found


def test_one_layer_of_patterns_is_shown(model: HookedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _, cache = model.run_with_cache(IDS)
    told = look(model, "attention", layer=2)
    assert told["layers"] == [2] and told["long"] == {"first": 0, "last": N - 1, "tokens": N, "layers": [0, 1, 2]}
    np.testing.assert_allclose(unpacked(told["pattern"])[0], cache["pattern", 2][0].detach(), atol=5e-3)
    assert look(model, "attention", layer=99)["layers"] == [2]  # the nearest
    monkeypatch.setattr(sight, "MOST_WEIGHTS", 4 * 50 * 50 // 2)  # of four heads, windows of 50 positions
    told = look(model, "attention", layer=1, position=120)
    assert (told["start"], told["tokens"]) == (71, PROMPT.split()[71:121])
    found = unpacked(told["pattern"])[0]
    np.testing.assert_allclose(found, cache["pattern", 1][0, :, 71:121, 71:121].detach(), atol=5e-3)
    assert look(model, "attention", position=3)["start"] == 0 and look(model, "attention")["start"] == N - 50


def test_the_lens_shows_a_window(model: HookedModel) -> None:
    told = look(model, "lens", position=199)
    first = 200 - LENS_WINDOW
    assert told["start"] == first and told["tokens"] == PROMPT.split()[first:200]
    best = model(IDS)[0].argmax(-1)[first:200].tolist()  # what the output says is what the model predicts
    words = told["lenses"]["logit lens"]["words"]
    assert [int(words[row[0]]) for row in told["lenses"]["logit lens"]["tops"][-1]] == best
    assert look(model, "lens")["start"] == N - LENS_WINDOW


@pytest.mark.parametrize("focus", [{"layer": -1}, {"layer": "1"}, {"head": 1}, {"position": 0.5}])
def test_what_is_no_place_of_a_long_prompt_is_refused(focus: Any, model: HookedModel) -> None:
    with pytest.raises(ConfigError):
        look(model, "lens", **focus)


def test_a_long_prompt_is_turned_through_on_the_page(model: HookedModel) -> None:
    fields = urllib.parse.urlencode({"token": TOKEN, "prompt": PROMPT})
    with (
        chromium() as browser,
        served(model) as address,
        opened(browser, f"{address}/#{fields}", width=640) as shown,
    ):
        page = shown.page
        page.wait_for_selector("#at-walk:not([hidden])")
        assert page.locator("#at-attention .thumb").count() == model.cfg.n_heads
        page.locator("#at-attention .long select").select_option("2")
        page.wait_for_selector("#at-attention .head-name >> text=L2H")
        canvas = page.locator("#at-attention canvas.large")
        canvas.click(position={"x": 2, "y": 250})
        assert page.input_value("#part").startswith("L2H") and int(page.input_value("#place")) > 200
        page.get_by_role("button", name="earlier window").click()
        first = N - 2 * LENS_WINDOW
        page.wait_for_selector(f"#at-lens >> text=positions {first} to {first + LENS_WINDOW - 1} of {N}")
        page.locator("#at-walk").get_by_label("layer: one more").click()  # the walk's layer is shown
        page.wait_for_selector("#at-attention .head-name >> text=L1H")
        assert shown.violations() == [] and shown.sideways() == 0
        shown.clean(address)
