"""The walk: every number that it shows is the run's own, on all kinds of models, and its page for everybody."""

from __future__ import annotations

import base64
import json
import math
import urllib.parse
from typing import Any

import numpy as np
import pytest
import torch
from browser import opened
from makers import CAUSAL, RECURRENT, make
from served import TOKEN, served
from torch import Tensor
from vocabularies import names_tokenizer, reader

import interp
from interp.errors import InterpError
from interp.hooked.cache import ActivationCache
from interp.hooked.model import HookedModel
from interp.ui.explorer.scene import Scene
from interp.ui.explorer.sight import walked
from interp.ui.walk.walk import walk

TOKENS = torch.tensor([3, 4, 5, 6, 3, 4, 1])
AT = 5
TEXT = " ".join(str(token) for token in TOKENS.tolist())


def walk_of(model: HookedModel, **place: Any) -> dict[str, Any]:
    part = walk(model, TOKENS, labels=TEXT.split(), **{"position": AT, **place})
    json.dumps(part.payload, allow_nan=False)  # as it is sent
    return dict(part.payload)


def cache_of(model: HookedModel) -> ActivationCache:
    with torch.no_grad():
        names = [name for name in model.hook_dict if not name.endswith(("_input", "_in", "result"))]
        return model.run_with_cache(TOKENS[None], names_filter=names)[1]


def step(payload: dict[str, Any], key: str) -> dict[str, Any]:
    return next(one for one in payload["steps"] if one["key"] == key)


def figures(payload: dict[str, Any], key: str) -> list[float]:
    return [piece["number"] for piece in step(payload, key)["text"] if isinstance(piece, dict) and "number" in piece]


def item(payload: dict[str, Any], key: str, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in step(payload, key)["items"] if one["kind"] == kind)
    return found


def drawn(payload: dict[str, Any], key: str) -> dict[str, np.ndarray[Any, Any]]:
    """The vectors of a step."""
    return {row["what"]: unpacked(row["values"]) for row in item(payload, key, "vectors")["rows"]}


def unpacked(values: dict[str, Any]) -> np.ndarray[Any, Any]:
    kind = {"float32": "<f4", "float16": "<f2"}[values["dtype"]]
    return np.frombuffer(base64.b64decode(values["data"]), dtype=kind).reshape(values["shape"])


def close(found: Any, expected: Tensor | float | list[float], relative: float = 1e-4) -> None:
    values = expected.detach().double().numpy() if isinstance(expected, Tensor) else np.asarray(expected)
    np.testing.assert_allclose(found, values, rtol=relative, atol=1e-5)


@pytest.mark.parametrize("kind", [*CAUSAL, *RECURRENT])
def test_the_stream_and_the_output_are_the_runs_own(kind: str) -> None:
    model = make(kind)
    cache, logits = cache_of(model), model(TOKENS[None])[0, AT]
    for layer in range(model.cfg.n_layers):
        payload = walk_of(model, layer=layer)
        close(drawn(payload, "stream")["residual stream"], cache["resid_pre", layer][0, AT])
        close(next(iter(drawn(payload, "embedding").values())), cache["embed"][0, AT])
        rows = item(payload, "logits", "table")["rows"]
        best = logits.topk(len(rows))
        assert [row[0]["id"] for row in rows] == best.indices.tolist()
        close([row[1] for row in rows], best.values)
        close([row[3]["share"] for row in rows], logits.softmax(-1)[best.indices])
        said = item(payload, "stream", "words")["words"]
        with torch.no_grad():
            shares = model.unembed(model.to_unembed(cache["resid_pre", layer][0, AT])).softmax(-1)
        close([word["value"] for word in said], shares[[word["id"] for word in said]])


@pytest.mark.parametrize("kind", [kind for kind in [*CAUSAL, *RECURRENT] if kind not in ("mamba", "mamba2")])
def test_attention_is_the_runs_own(kind: str) -> None:
    model = make(kind)
    cache, cfg = cache_of(model), model.cfg
    for layer in cfg.layers_with("attn"):
        for head in (0, cfg.n_heads - 1):
            payload = walk_of(model, layer=layer, unit=head)
            key_head = head // (cfg.n_heads // cfg.n_kv_heads)
            rows = drawn(payload, "qkv")
            close(rows["query"], cache["q", layer][0, AT, head])
            close(rows["key"], cache["k", layer][0, AT, key_head])
            close(rows["value"], cache["v", layer][0, AT, key_head])
            pattern, scores = cache["pattern", layer][0, head, AT], cache["attn_scores", layer][0, head, AT]
            weights = {row[0]["at"]: row for row in item(payload, "softmax", "table")["rows"] if "at" in row[0]}
            assert sorted(weights) == torch.isfinite(scores).nonzero()[:, 0].tolist()  # the mask
            for key, (_, score, _, weight) in weights.items():
                close(score, scores[key])
                close(weight["share"], pattern[key])
            close(figures(payload, "scores")[-1], scores[pattern.argmax()])
            close(drawn(payload, "z")["values, mixed"], cache["z", layer][0, AT, head])
            written = next(iter(drawn(payload, "write").values()))
            if not cfg.shares(layer):
                close(written, model.head_results(layer, cache["z", layer])[0, AT, head])


@pytest.mark.parametrize("kind", ["gpt2", "llama_gqa", "gemma2", "neox", "hybrid"])
def test_what_a_part_speaks_for_is_its_share_of_the_logits(kind: str) -> None:
    model = make(kind)
    cache = cache_of(model)
    layer = model.cfg.layers_with("attn")[-1]
    told = item(walk_of(model, layer=layer, unit=1), "write", "words")
    wrote = model.head_results(layer, cache["z", layer])[:, :, 1]
    for word in (*told["words"], *told["lowered"]):
        share = cache.logit_attrs(wrote[None], word["id"])[0, 0, AT]
        close(word["value"], share)


def test_neurons_are_those_that_add_most() -> None:
    model = make("llama_gqa")
    post = cache_of(model)["post", 1][0, AT]
    sizes = (post.abs() * model.W_out[1].norm(dim=-1)).detach()
    rows = item(walk_of(model, layer=1), "mlp", "table")["rows"]
    assert [int(row[0]) for row in rows] == sizes.topk(len(rows)).indices.tolist()
    close([row[3] for row in rows], post[[int(row[0]) for row in rows]])
    close([row[4] for row in rows], sizes.topk(len(rows)).values)


@pytest.mark.parametrize("kind", ["experts", "shared_expert", "clamped_experts", "grouped_experts"])
def test_the_chosen_experts_and_what_they_add(kind: str) -> None:
    model = make(kind)
    cache = cache_of(model)
    payload = walk_of(model, layer=0)
    rows = item(payload, "mlp", "table")["rows"]
    chosen = [row for row in rows if row[2] != "not chosen"]
    assert [int(row[0]) for row in chosen] == cache["expert_indices", 0][0, AT].tolist()
    weights, scores = cache["expert_weights", 0][0, AT], cache["router_scores", 0][0, AT]
    made = cache["expert_out", 0][0, AT]
    after = model.block(0).ln2_post
    if after is not None:
        made = after.scaled(made, cache["scale", 0, "ln2_post"][0, AT])
    for expert, score, weight, length, _ in chosen:
        close([score, weight], [float(scores[int(expert)]), float(weights[int(expert)])])
        close(length, made[int(expert)].norm())


@pytest.mark.parametrize(("kind", "layer"), [("mamba", 1), ("mamba2", 1), ("hybrid", 0), ("hybrid", 2)])
def test_state_space_layers_are_the_runs_own(kind: str, layer: int) -> None:
    model, unit = make(kind), 3
    cache, cfg = cache_of(model), model.cfg
    payload = walk_of(model, layer=layer, unit=unit)
    gated = cache["gated", layer][0, AT]
    within = int(gated[unit].abs().argmax()) if gated.ndim == 2 else None
    at = (unit,) if within is None else (unit, within)
    channel = unit if within is None else unit * cfg.d_ssm_head + within
    conv = item(payload, "conv", "table")["rows"]
    out = sum(row[3] for row in conv)
    close(out / (1 + math.exp(-out)), cache["conv", layer][0, AT, channel])  # SiLU of the sum of products
    close(item(payload, "select", "bars")["values"], cache["delta", layer][0, :, unit])
    states = cache["state", layer][0][(slice(None), *at)]
    close(drawn(payload, "state")["state before"], states[AT - 1])
    close(drawn(payload, "state")["state after"], states[AT])
    *_, read, passed, y = figures(payload, "state")
    close(read + passed, y, 1e-3)
    close(y, cache["y", layer][0, AT][at])
    pattern = cache["pattern", layer, "mixer"][0, unit, AT]
    close(item(payload, "hidden", "bars")["values"], pattern[: AT + 1])
    every = item(payload, "write", "bars")["values"]
    mixer = model.block(layer).mixer
    assert mixer is not None and len(every) == payload["units"]
    wide = mixer.W_out.unflatten(1, (payload["units"], -1))  # [d_model, unit, channel of it]
    close(every, torch.einsum("uc,muc->um", gated.reshape(payload["units"], -1), wide).norm(dim=-1))


def test_the_curve_over_distance_has_the_score_of_the_run_at_its_mark() -> None:
    for kind in ("llama", "llama_gqa", "gptj_pairs", "gemma3", "neox", "longrope", "dynamic"):
        model = make(kind)
        scores, pattern = (cache_of(model)[site, 1][0, 2, AT] for site in ("attn_scores", "pattern"))
        curve = item(walk_of(model, layer=1, unit=2), "position", "lines")
        close(curve["lines"][0]["values"][curve["mark"]], scores[pattern.argmax()])
        dials = item(walk_of(model, layer=1, unit=2), "position", "dials")
        if model.cfg.rope_scaling is None:
            dim, base = model.cfg.rotary_dim or 1, model.cfg.rotary_base
            expected = [AT * base ** (-2 * pair / dim) % (2 * math.pi) for pair in range(dim // 2)]
            close(dials["angles"], expected)


def test_other_positions_are_drawn_from_their_own_parameters() -> None:
    for kind in ("gpt2", "sinusoidal"):
        model = make(kind)
        payload = walk_of(model)
        row = model.W_pos[AT]
        close(next(iter(drawn(payload, "position").values())), row)
        alike = item(payload, "position", "lines")["lines"][0]["values"]
        close(alike, torch.cosine_similarity(model.W_pos, row[None], dim=-1)[: len(alike)])
    curves = item(walk_of(make("alibi"), unit=1), "position", "lines")
    slopes = [2**-4, 2**-8, 2**-2]  # of three heads (Press et al. 2021, section 3)
    for curve, slope in zip(curves["lines"], slopes, strict=True):
        close(curve["values"], [-slope * distance for distance in range(AT + 1)])
    assert "told nothing about positions" in "".join(step(walk_of(make("no_positions")), "position")["text"])
    assert "sees the last 2 positions only" in json.dumps(step(walk_of(make("sinks"), layer=0), "position")["text"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["llama_gqa", "alibi", "mamba2", "clamped_experts"])
def test_weights_of_other_number_types_are_walked(kind: str, dtype: torch.dtype) -> None:
    model = make(kind).to(dtype)
    payload = walk_of(model, layer=1)
    stream = cache_of(model)["resid_pre", 1][0, AT].double().numpy()
    found = drawn(payload, "stream")["residual stream"]
    assert np.linalg.norm(found - stream) < 0.03 * np.linalg.norm(stream)  # other kernels round bfloat16 otherwise
    assert item(payload, "write", "words")["words"]


def test_an_edited_run_is_walked_as_it_is() -> None:
    model = interp.load("toy")
    scene = Scene(TEXT, edits=("L0H1:zero", "L1H2:scale:0.5"))
    part = walked(model, scene, {"position": AT, "layer": 1, "unit": 2})["part"]
    pairs = interp.PromptPairs.from_tokens([TOKENS.tolist()])
    edits = [
        interp.Edit("z", {"layer": 0, "head": 1}, "zero"),
        interp.Edit("z", {"layer": 1, "head": 2}, "scale", 0.5),
    ]
    with torch.no_grad(), interp.edited(model, pairs, interp.Variant(edits), base="clean"):
        _, cache = model.run_with_cache(pairs.clean)
    close(drawn(part, "stream")["residual stream"], cache["resid_pre", 1][0, AT])
    close(drawn(part, "z")["values, mixed"], cache["z", 1][0, AT, 2])
    plain = walked(model, Scene(TEXT), {"position": AT, "layer": 1, "unit": 2})["part"]
    assert drawn(plain, "z")["values, mixed"].tolist() != drawn(part, "z")["values, mixed"].tolist()


def test_what_is_not_there_is_refused_in_words() -> None:
    model = interp.load("toy")
    for place, says in (
        ({"position": 7}, "position must be .*6"),
        ({"layer": 2}, "layer must be .*1"),
        ({"unit": 4}, "head must be .*3"),
        ({"layer": "x"}, "layer must be"),
        ({"hed": 1}, "no field of a place matches 'hed'"),
    ):
        with pytest.raises(InterpError, match=says):
            walked(model, Scene(TEXT), place)


def test_a_long_prompt_stays_small() -> None:
    model = make("llama_gqa", n_ctx=1000)
    tokens = torch.arange(1000) % 29
    payload = walk(model, tokens, labels=[str(one) for one in tokens.tolist()], layer=1).payload
    assert len(json.dumps(payload)) < 300_000
    rows = item(dict(payload), "softmax", "table")["rows"]
    assert rows[-1][0] == "the other 984 keys"
    close(sum(row[3]["share"] for row in rows), 1.0)


# The page


def link(address: str, **fields: str) -> str:
    return f"{address}/#{urllib.parse.urlencode({'token': TOKEN, **fields})}"


@pytest.mark.parametrize(
    ("kind", "width", "dark"),
    [("llama_gqa", 1280, False), ("mamba2", 640, False), ("experts", 640, True), ("hybrid", 1280, True)],
)
def test_the_walk_is_drawn_for_everybody(kind: str, width: int, dark: bool, browser: Any) -> None:
    with served(make(kind)) as address, opened(browser, link(address, prompt=TEXT), width=width, dark=dark) as shown:
        page = shown.page
        page.wait_for_selector("#at-walk [data-step=choice]")
        assert shown.sideways() == 0
        page.click("[aria-label='layer: one more']")
        page.wait_for_selector("[data-step=after] >> text=Out of layer 1")
        assert shown.violations() == [] and shown.sideways() == 0
        shown.clean(address)


def test_position_layer_and_head_are_chosen_by_mouse_and_by_keyboard(browser: Any) -> None:
    with served(make("llama_gqa")) as address, opened(browser, link(address, prompt=TEXT)) as shown:
        page = shown.page
        page.wait_for_selector("#at-walk [data-step=choice]")
        page.click(".chip >> nth=2")
        page.wait_for_selector("[data-step=tokens] >> text=is token 2 of 7")
        assert page.evaluate("document.activeElement.dataset.choice") == "token:2"
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.wait_for_selector("[data-step=tokens] >> text=is token 3 of 7")
        page.click("[aria-label='layer: one more']")
        page.wait_for_selector("[data-step=stream] >> text=Into layer 1")
        page.click("[data-choice='unit:3']")
        page.wait_for_selector("[data-step=qkv] >> text=value of head 3")
        assert page.evaluate("location.hash").endswith("walk=3.1.3")
        page.get_by_label("head", exact=True).fill("0")
        page.wait_for_selector("[data-step=qkv] >> text=value of head 0")
        page.focus("[data-step=embedding] canvas")
        page.keyboard.press("ArrowRight")
        label = page.get_attribute("[data-step=embedding] canvas", "aria-label")
        assert label.startswith("row 6, number 1: ")
        page.focus("[data-step=mask] canvas")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
        page.wait_for_selector("[data-step=tokens] >> text=is token 2 of 7")
        page.reload()  # the address restores the place
        page.wait_for_selector("[data-step=qkv] >> text=value of head 0")
        page.wait_for_selector("[data-step=tokens] >> text=is token 2 of 7")
        # A longer prompt is walked from its end, and a place that it does not have is left.
        page.fill("#prompt", f"{TEXT} 9 9")
        page.wait_for_selector("[data-step=tokens] >> text=is token 8 of 9")
        page.goto(link(address, prompt=TEXT, walk="99.1.0"))
        page.reload()
        page.wait_for_selector("[data-step=tokens] >> text=is token 6 of 7")
        page.click("[data-step=choice] button")
        assert page.evaluate("document.activeElement.closest('section').id") == "at-next_token"


def test_a_long_prompt_is_drawn_around_the_chosen_token(browser: Any) -> None:
    prompt = " ".join(str(at % 29) for at in range(1000))
    with served(make("llama", n_ctx=1000)) as address, opened(browser, link(address, prompt=prompt)) as shown:
        page = shown.page
        page.wait_for_selector("[data-step=tokens] >> text=is token 999 of 1,000")
        assert page.locator(".chip").count() == 120
        page.get_by_label("position", exact=True).fill("300")
        page.wait_for_selector("[data-step=tokens] >> text=is token 300 of 1,000")
        assert shown.sideways() == 0 and shown.complaints == []


def test_text_in_the_walk_is_never_markup(browser: Any) -> None:
    text = "<script>document.title='owned'</script> \"quoted\" 🙂 שלום \u202eabc\x00"
    with served(reader(names_tokenizer())) as address, opened(browser, link(address), width=640) as shown:
        shown.page.fill("#prompt", text)
        shown.page.wait_for_selector("#at-walk [data-step=choice]")
        assert shown.violations() == []
        assert "owned" not in shown.page.title() and shown.sideways() == 0
        shown.clean(address)
