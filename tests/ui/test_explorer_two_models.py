"""The explorer with a second model: what is compared, what is refused, and two readers at once."""

from __future__ import annotations

import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from browser import opened
from makers import make
from served import TOKEN, served
from vocabularies import names_tokenizer, reader

import interp
from interp.errors import ConfigError, InterpError
from interp.hooked.model import HookedModel
from interp.ui.explorer.answers import answers
from interp.ui.explorer.scene import Other, Scene, check_other
from interp.ui.explorer.script import script_of
from interp.ui.explorer.serve import serve
from interp.ui.explorer.sight import look

PROMPT, SECOND = "3 4 5 6 3 4", "3 4 9 6 3 4"
IDS = torch.tensor([[int(one) for one in PROMPT.split()]])


def other_of(model: HookedModel, name: str = "the deep one") -> Other:
    return Other(model, "other_model", name)


@pytest.fixture(scope="module")
def models() -> tuple[HookedModel, Other]:
    """Two models of the same tokens, of which the second is deeper and knows fewer positions."""
    return make("llama_gqa"), other_of(make("llama_gqa", n_layers=4, seed=8, n_ctx=8))


def compared(model: HookedModel, other: Other, **fields: Any) -> Any:
    (part,) = look(model, Scene(PROMPT, beside="other", **fields), ["compare"], other)["parts"]
    return part


@pytest.mark.parametrize("edits", [(), ("L1H2:zero",)])
def test_both_models_stand_side_by_side_and_edits_act_in_the_first(
    edits: tuple[str, ...], models: tuple[HookedModel, Other]
) -> None:
    model, other = models
    part = compared(model, other, edits=edits)
    assert part["title"] == "Two models" and part["with"] == "the other model, the deep one"
    assert bool(part["alone"]) == bool(edits)
    variant = interp.Variant([interp.Edit("z", {"layer": 1, "head": 2}, "zero")])
    pairs = interp.PromptPairs.from_tokens(IDS.tolist())
    with torch.no_grad():
        before, after = (one(IDS)[0, -1].softmax(-1) for one in (other.model, model))
        if edits:
            with interp.edited(model, pairs, variant, base="clean", source="clean"):
                after = model(pairs.clean)[0, -1].softmax(-1)
    for row in part["rows"]:
        token = int(row["token"])
        assert [row["before"], row["after"]] == pytest.approx([float(before[token]), float(after[token])], rel=1e-4)
    assert part["divergence"] == pytest.approx(float((before * (before / after).log()).sum()), rel=1e-3)


def test_layers_of_models_of_different_depth_stand_at_the_same_share_of_the_way(
    models: tuple[HookedModel, Other],
) -> None:
    model, other = models
    layers = compared(model, other)["layers"]
    named = ["into 0", "into 0 (before: into 1)", "into 1 (before: into 2)", "output (before: into 3)", "output"]
    assert [one["layer"] for one in layers] == named
    first = int(other.model(IDS)[0, -1].argmax())
    for at, name in enumerate([*(f"blocks.{layer}.hook_resid_pre" for layer in range(4)), "blocks.3.hook_resid_post"]):
        _, cache = other.model.run_with_cache(IDS)
        logits = other.model.unembed(other.model.ln_final(cache[name]))[0, -1]
        assert layers[at]["first"][0] == pytest.approx(float(logits.detach().softmax(-1)[first]), rel=1e-3)


def test_the_script_compares_both_models(
    models: tuple[HookedModel, Other], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    model, other = models
    names: dict[str, Any] = {"model": model, "other_model": other.model}
    monkeypatch.chdir(tmp_path)
    scene = Scene(PROMPT, edits=("L0H1:zero",), beside="other")
    exec(script_of(model, "model", scene, other).replace("model = model\n", ""), names)
    for row in compared(model, other, edits=scene.edits)["rows"]:
        found = [float(names[name][int(row["token"])].exp()) for name in ("before", "after")]
        assert found == pytest.approx([row["before"], row["after"]], rel=1e-4)


def test_a_model_of_other_tokens_is_refused_before_anything_is_served() -> None:
    model = make("llama_gqa")

    def serving(other: HookedModel) -> None:
        serve(model, loaded="", port=0, browser=False, tell=pytest.fail, other=other_of(other))

    with pytest.raises(ConfigError, match=r"needs the same vocabulary: .* 29 and 29 tokens, .* 31 and 31"):
        serving(make("llama_gqa", d_vocab=31))
    with pytest.raises(ConfigError, match=r"has no tokenizer and .* a vocabulary of"):
        serving(reader(names_tokenizer()))
    with pytest.raises(ConfigError, match="models of one stack that predict the next token"):
        serving(make("bidirectional"))
    check_other(reader(names_tokenizer()), reader(names_tokenizer()))


def test_what_cannot_be_compared_is_refused_in_words(models: tuple[HookedModel, Other]) -> None:
    model, other = models
    with pytest.raises(ConfigError, match="no other model to compare with: start with `interp explore --against"):
        look(model, Scene(PROMPT, beside="other"), ["compare"])
    with pytest.raises(InterpError, match="the prompt has 9 tokens, more than the context of the deep one, 8"):
        look(model, Scene("1 2 3 4 5 6 7 8 9", beside="other"), ["compare"], other)
    assert answers(model, "model", other)["about"]({}, None)["against"] == "the deep one"  # type: ignore[arg-type]


def test_two_readers_at_once_with_two_models(models: tuple[HookedModel, Other]) -> None:
    """Each has the answers to its own scene, whatever the other asks, and no hook stays on either model."""
    model, other = models
    scenes = [
        {"prompt": PROMPT, "edits": ["L1H2:zero"], "beside": "other"},
        {"prompt": SECOND, "second": PROMPT, "edits": ["L0H1:patch"], "beside": "second"},
    ]
    with served(model, other) as address:
        headers = {"x-interp-token": TOKEN, "origin": address}

        def ask(scene: Any) -> Any:
            given = {"scene": scene, "parts": ["compare", "next_token", "lens"]}
            answer = httpx.post(f"{address}/api/look", json=given, headers=headers, timeout=30)
            assert answer.status_code == 200, answer.text
            return answer.json()

        alone = [ask(scene) for scene in scenes]
        with ThreadPoolExecutor(2) as readers:
            told = list(readers.map(lambda scene: [ask(scene) for _ in range(10)], scenes))
    assert alone[0] != alone[1]
    assert told == [[one] * 10 for one in alone]
    assert not any(point.has_hooks for one in (model, other.model) for point in one.hook_dict.values())


def test_the_page_compares_two_models(browser: Any, models: tuple[HookedModel, Other]) -> None:
    with served(*models) as address:
        fields = {"token": TOKEN, "prompt": PROMPT, "edits": "L1H2:zero"}
        with opened(browser, f"{address}/#{urllib.parse.urlencode(fields)}", width=640) as shown:
            page = shown.page
            page.wait_for_selector("#about >> text=To compare with: the deep one")
            page.wait_for_selector("#at-lens:not([hidden])")
            page.select_option("#beside", "other")
            page.wait_for_selector("#at-compare >> text=Before: the other model, the deep one.")
            assert "The edits act in" in page.inner_text("#at-compare")
            page.reload()
            page.wait_for_selector("#at-compare >> text=Before: the other model, the deep one.")
            assert shown.violations() == [] and shown.sideways() == 0
            shown.clean(address)
    with served(models[0]) as address, opened(browser, f"{address}/#token={TOKEN}&prompt=3+4") as shown:
        shown.page.wait_for_selector("#at-lens:not([hidden])")
        assert shown.page.locator("#beside-other").is_disabled()
