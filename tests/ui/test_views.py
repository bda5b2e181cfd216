"""Views in a browser without network: they show the model's numbers, by mouse and by keyboard, whatever the text is."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from browser import opened
from makers import encoder_decoder, make, named_pairs, pairs_of, stack_pairs

import interp
from interp.circuits.edge_scores import eap
from interp.errors import ConfigError, InterpError, PromptError
from interp.figures.circuit_diagram import edge_table
from interp.lenses.read import depths, read_out
from interp.sites import get_act_name
from interp.ui.views.arrays import LARGEST_HALVES, exact, packed
from interp.ui.views.prompts import head_effects
from interp.ui.views.view import Part, View, bundled

HOSTILE = [
    "<script>document.title='owned'</script>", "</script>", '"quoted"', "'", "<!--", "\x00", "🙂", "שלום", "\u202eabc",
    "a\nb", "  ", "&lt;", "x" * 300,
]  # fmt: skip


@pytest.fixture
def on_prompt() -> View:
    return interp.show(make("llama"), pairs_of(9, 7), effects="zero")


def views() -> dict[str, Callable[[], View]]:
    """One of every kind."""
    model, pairs = make("llama"), named_pairs(4)
    _, cache = model.run_with_cache(pairs.clean, attention_mask=pairs.attention_mask)
    z = [
        interp.Variant([interp.Edit("z", {"layer": at, "head": h})], {"layer": at, "head": h})
        for at in (0, 1)
        for h in (0, 1)
    ]
    frame = interp.sweep(model, pairs, z, progress=False)
    graph = interp.Graph.of(model)
    circuit = interp.Circuit(graph, graph.allowed, eap(model, pairs).mean(0))
    return {
        "circuit": lambda: interp.show(circuit),
        "prompt": lambda: interp.show(model, pairs, effects="zero"),
        "cache": lambda: interp.show(cache, "z", 1),
        "pattern": lambda: interp.show(cache, "pattern", 0),
        "map": lambda: interp.show(frame),
        "bars": lambda: interp.show(frame.drop(columns="head")),
        "tokens": lambda: interp.show(["a", " b", "c"], {"loss": [0.1, 2.0, float("nan")], "share": [-1.0, 0.5, 0.0]}),
    }


KINDS = ("circuit", "prompt", "cache", "pattern", "map", "bars", "tokens")


@pytest.mark.parametrize("width", [640, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_view_draws_quietly_for_everybody(
    kind: str, dark: bool, width: int, browser: Any, tmp_path: Path
) -> None:
    file = views()[kind]().save(tmp_path / "view.html")
    with opened(browser, file, width=width, dark=dark) as shown:
        shown.page.wait_for_selector("section")
        assert shown.violations() == []
        assert shown.sideways() == 0
        shown.clean()


def test_every_element_of_a_view_can_be_reached_by_keyboard(on_prompt: View, browser: Any, tmp_path: Path) -> None:
    with opened(browser, on_prompt.save(tmp_path / "view.html")) as shown:
        reached = set()
        for _ in range(40):
            shown.page.keyboard.press("Tab")
            reached.add(shown.page.evaluate("document.activeElement.tagName + '.' + document.activeElement.className"))
        assert {"CANVAS.large", "SELECT.", "BUTTON.thumb", "INPUT."} <= reached
        assert any(name.startswith("BUTTON.word") for name in reached)


def test_attention_shows_the_models_weights_and_exact_effects(browser: Any, tmp_path: Path) -> None:
    model, pairs = make("llama"), pairs_of(9, 7)
    view = interp.show(model, pairs, effects="zero")
    pattern = model.run_with_cache(pairs.clean[:1, :9])[1]["pattern", 1][0]
    table = head_effects(model, pairs, kind="zero", metric="logit_diff").set_index("component")
    with opened(browser, view.save(tmp_path / "view.html")) as shown:
        names = shown.page.locator(".thumb").evaluate_all("all => all.map((one) => one.getAttribute('aria-label'))")
        assert [name.split(",")[0] for name in names] == [
            f"L{at}H{h}" for at in (0, 1) for h in range(model.cfg.n_heads)
        ]
        for name in names:
            component, value = re.match(r"(\w+), effect ([+−]?[\d.e−+]+)", name).groups()  # type: ignore[union-attr]
            number = float(value.replace("−", "-"))
            assert number == pytest.approx(table.loc[component, "value"], rel=6e-3, abs=1e-4)
        shown.page.locator(".thumb").nth(model.cfg.n_heads + 1).click()  # L1H1
        canvas = shown.page.locator("canvas.large").last
        canvas.focus()
        for _ in range(9):  # to the first row and column
            canvas.press("ArrowUp")
            canvas.press("ArrowLeft")
        for _ in range(5):
            canvas.press("ArrowDown")
        for _ in range(2):
            canvas.press("ArrowRight")
        said = canvas.get_attribute("aria-label")
        assert said.startswith("L1H1: 5 ") and float(said.split(": ")[-1]) == pytest.approx(
            float(pattern[1, 5, 2]), rel=1e-2
        )
        steps = shown.page.locator(".steps").inner_text()
        assert float(steps.split("= ")[-1]) == pytest.approx(float(pattern[1, 5, 2]), rel=1e-2)
        canvas.press("End")
        for _ in range(4):
            canvas.press("ArrowRight")
        assert "masked" in shown.page.locator(".cell").last.inner_text()


def test_the_next_token_is_the_models_after_every_setting(browser: Any, tmp_path: Path) -> None:
    model, pairs = make("llama"), pairs_of(9)
    view = interp.show(model, pairs)
    logits = model(pairs.clean)[0, -1].detach()
    with opened(browser, view.save(tmp_path / "view.html")) as shown:
        for name, value in (("temperature", 0.5), ("top-k", 10), ("top-p", 0.6)):
            control = shown.page.locator("label.range", has_text=name).locator("input")
            control.evaluate("(one, value) => { one.value = value; one.dispatchEvent(new Event('input')); }", value)
        rows = shown.page.locator("table.numbers tbody tr").all_inner_texts()
        probs = (logits / 0.5).softmax(-1).sort(descending=True).values
        kept = probs[:10] / probs[:10].sum()
        n = int((kept.cumsum(0) - kept < 0.6).sum())
        drawn = [row.split("\t")[-1].strip() for row in rows]
        assert [one == "never" for one in drawn] == [at >= n for at in range(len(rows))]
        assert float(drawn[0].rstrip("%")) == pytest.approx(100 * float(kept[0] / kept[:n].sum()), abs=0.051)


def test_without_top_k_and_top_p_nothing_is_cut_however_unlikely(browser: Any, tmp_path: Path) -> None:
    logits = torch.linspace(40, -40, 5000)
    payload = {"logits": exact(logits), "labels": [str(at) for at in range(20)], "after": "a prompt"}
    with opened(
        browser, View("next", [Part("next_token", "Next token", payload)]).save(tmp_path / "view.html")
    ) as shown:
        assert "Nothing is cut" in shown.page.locator(".arithmetic").inner_text()
        assert "never" not in shown.page.locator("table.numbers").inner_text()


def test_a_lens_shows_what_each_layer_would_say(browser: Any, tmp_path: Path) -> None:
    model, pairs = make("llama"), pairs_of(9)
    name = depths(model, halves=False)[1]
    stream = model.run_with_cache(pairs.clean, names_filter=[name])[1][name][0]
    top = read_out(model, stream).argmax(-1).tolist()
    with opened(browser, interp.show(model, pairs).save(tmp_path / "view.html")) as shown:
        row = shown.page.locator(".lens tbody tr").nth(1).locator("td").all_inner_texts()
        assert row == [str(token) for token in top]


def test_text_is_never_markup(browser: Any, tmp_path: Path) -> None:
    view = View(
        "<b>title</b></title><script>1</script>",
        [
            Part(
                "tokens",
                "<i>",
                {"tokens": HOSTILE, "series": [{"what": "<u>", "signed": False, "values": [1.0] * len(HOSTILE)}]},
            )
        ],
    )
    with opened(browser, view.save(tmp_path / "view.html"), width=640) as shown:
        words = shown.page.locator(".words .token-text").evaluate_all("all => all.map((one) => one.textContent)")
        assert words == HOSTILE
        assert shown.page.title() == view.title and shown.page.locator("b, i, u").count() == 1  # the value, in bold
        assert shown.sideways() == 0 and shown.violations() == []
        shown.clean()
    frame = view._repr_html_()
    assert frame.count("<iframe") == 1 and 'sandbox="allow-scripts"' in frame and "allow-same-origin" not in frame
    (tmp_path / "host.html").write_text(
        f"<!doctype html><html lang=en><title>host</title>{frame}</html>", encoding="utf-8"
    )
    with opened(browser, tmp_path / "host.html") as shown:
        inner = shown.page.frame_locator("iframe")
        assert inner.locator(".words .token-text").first.text_content() == HOSTILE[0]
        assert shown.page.title() == "host"


def test_many_heads_stay_small_and_quick(browser: Any, tmp_path: Path) -> None:
    pattern = torch.rand(12, 12, 64, 64).tril()
    payload = {
        "tokens": ["word"] * 64,
        "layers": list(range(12)),
        "heads": 12,
        "causal": True,
        "effect": None,
        "stages": None,
    }
    view = View("Heads", [Part("attention", "Heads", payload | {"pattern": packed(pattern, causal=True)})])
    file = view.save(tmp_path / "view.html")
    assert file.stat().st_size < 1_000_000
    with opened(browser, file) as shown:
        shown.page.wait_for_selector(".thumb")
        assert shown.page.locator(".thumb").count() == 144
        shown.clean()


@pytest.mark.parametrize("shape", [(3, 5, 5), (2, 2, 4, 4)])
def test_arrays_are_stored_as_they_are(shape: tuple[int, ...]) -> None:
    import numpy as np

    value = torch.randn(shape)
    stored = exact(value)
    assert torch.equal(
        torch.frombuffer(bytearray(base64.b64decode(stored["data"])), dtype=torch.float32).view(shape), value
    )
    halves = np.frombuffer(base64.b64decode(packed(value, causal=True)["data"]), dtype="<f2").astype(np.float32)
    rows, columns = np.tril_indices(shape[-1])
    assert np.allclose(halves, value.numpy()[..., rows, columns].ravel(), rtol=1e-3)
    many = torch.rand(LARGEST_HALVES + 1)
    small = packed(many)
    assert small["dtype"] == "uint8"
    read = torch.frombuffer(bytearray(base64.b64decode(small["data"])), dtype=torch.uint8) * small["scale"]
    assert float((read - many).abs().max()) <= 0.5 * small["scale"] + 1e-7


def test_what_cannot_be_shown_is_refused_by_name() -> None:
    model = make("llama")
    _, cache = model.run_with_cache(torch.tensor([[1, 2, 3]]))
    frame = pd.DataFrame({"layer": [0], "colour": ["red"]})
    for call, kind, says in (
        (lambda: interp.show(3), InterpError, "must be HookedModel or .*, not 3"),
        (lambda: interp.show(model), PromptError, "needs a prompt"),
        (lambda: interp.show(model, torch.tensor([], dtype=torch.long)), PromptError, "the prompt is empty"),
        (lambda: interp.show(model, [1, 2], effects="zero"), PromptError, "effects are of an answer"),
        (lambda: interp.show(cache), InterpError, "needs the name of a site"),
        (lambda: interp.show(cache, "zz", 0), InterpError, "did you mean 'z'|no .*'zz'"),
        (lambda: interp.show(cache, "z", 0, tokens=["a"]), PromptError, "1 tokens were given, and .* has 3 positions"),
        (lambda: interp.show(frame), InterpError, "a column 'effect' or 'value'"),
        (lambda: interp.show(["a", "b"], [1.0]), InterpError, "1 values for 2 tokens"),
        (lambda: interp.show(["a", "b"], ["x", "y"]), InterpError, "a number for each token, not 'x'"),
        (lambda: interp.show(["a", "b"], [1.0, None]), InterpError, "a number for each token, not None"),
        (
            lambda: interp.show(model, ["a b", "c d"]),
            PromptError,
            "takes one prompt: text, token ids",
        ),
        (lambda: interp.show(model, {"a": 1}), PromptError, "takes one prompt"),
        (lambda: interp.show(model, torch.tensor([[1, 2], [3, 4]])), PromptError, r"of shape \[2, 2\]: give a row"),
        (lambda: interp.show(model, [1, 2], 0), ConfigError, "does not take layer"),
    ):
        with pytest.raises(kind, match=says):
            call()


def cells(part: Part, at: int = 0) -> torch.Tensor:
    """The numbers of a map, as its page reads them."""
    stored = part.payload["maps"][at]["values"]
    return torch.frombuffer(bytearray(base64.b64decode(stored["data"])), dtype=torch.float32).view(stored["shape"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cache_shows_its_first_prompt_without_padding_and_with_its_own_tokens(side: str) -> None:
    model, ids = make("llama"), pairs_of(7).clean[0]
    pad = torch.zeros(2, dtype=torch.long)
    row = torch.cat([pad, ids] if side == "left" else [ids, pad])[None]
    mask = torch.tensor([0, 0] + [1] * 7 if side == "left" else [1] * 7 + [0, 0])[None].bool()
    _, cache = model.run_with_cache(row, attention_mask=mask)
    for site, axes in (
        ("mlp_out", ("pos", "d_model")),
        ("pattern", ("head", "query x key")),
        ("z", ("pos", "head x d_head")),
    ):
        (part,) = interp.show(cache, site, 1).parts
        expected = cache[site, 1][0]
        expected = expected[:, mask[0]][:, :, mask[0]] if site == "pattern" else expected[mask[0]]
        assert tuple(part.payload["named"]) == axes and torch.equal(cells(part), expected.reshape(len(expected), -1))
        if site != "pattern":
            assert part.payload["rows"] == [f"{at}: {token}" for at, token in enumerate(ids.tolist())]
    (part,) = interp.show(cache, "ln_final.hook_scale", tokens=list("abcdefg")).parts
    assert part.payload["rows"][2] == "2: c" and part.payload["columns"] == ["value"]


def test_a_cache_of_two_stacks_shows_sites_of_both() -> None:
    model, pairs = encoder_decoder("t5"), stack_pairs()
    _, cache = model.run_with_cache(**pairs.inputs("clean"))
    (part,) = interp.show(cache, "encoder.blocks.0.hook_resid_post").parts
    n = int(pairs.encoder.mask[0].sum())
    assert len(part.payload["rows"]) == n
    real = cache["encoder.blocks.0.hook_resid_post"][0][pairs.encoder.mask[0]]
    assert torch.equal(cells(part), real)


def test_rows_that_differ_in_more_than_their_cell_are_not_averaged() -> None:
    model, pairs = make("llama"), named_pairs(4)
    places = [(at, head, pos) for at in (0, 1) for head in (0, 1) for pos in (2, 3)]
    variants = [
        interp.Variant(
            [interp.Edit("z", {"layer": at, "head": head, "pos": pos})], {"layer": at, "head": head, "pos": pos}
        )
        for at, head, pos in places
    ]
    frame = interp.sweep(model, pairs, variants, progress=False)
    both = pd.concat([frame, frame.assign(metric="other", effect=frame["effect"] + 1)], ignore_index=True)
    (part,) = interp.show(both).parts
    assert [one["what"].partition(":")[0] for one in part.payload["maps"]] == [
        f"head {head}, metric {metric}" for metric in ("logit_diff", "other") for head in (0, 1)
    ]
    means = frame.groupby(["head", "layer", "pos"])["effect"].mean()
    for at, (metric, head) in enumerate((metric, head) for metric in range(2) for head in range(2)):
        expected = torch.tensor([[means[head, layer, pos] + metric for pos in (2, 3)] for layer in (0, 1)])
        assert torch.allclose(cells(part, at).double(), expected, rtol=1e-5, atol=1e-6)
    (bars,) = interp.show(both.drop(columns=["head", "pos", "layer"]).assign(role="S")).parts
    assert bars.name == "bars" and [label.endswith(("diff", "other")) for label in bars.payload["labels"]] == [True] * 2


def test_a_table_from_a_file_shows_the_same(tmp_path: Path) -> None:
    frame = interp.sweep(
        make("llama"), named_pairs(4),
        [interp.Variant([interp.Edit("resid_pre", {"layer": at, "pos": role})], {"layer": at, "role": role})
         for at in (0, 1) for role in ("A", "END")],
        progress=False,
    )  # fmt: skip
    frame.to_csv(tmp_path / "frame.csv", index=False)
    assert interp.show(pd.read_csv(tmp_path / "frame.csv")).parts[0].payload == interp.show(frame).parts[0].payload


def test_prompts_without_answers_have_no_rank() -> None:
    model = make("llama")
    pairs = interp.PromptPairs.from_tokens([[1, 2, 3]])
    lens = next(part for part in interp.show(model, pairs).parts if part.name == "lens")
    assert lens.payload["answer"] is None and lens.payload["lenses"]["logit lens"]["ranks"] is None


def test_payloads_are_plain_json(on_prompt: View) -> None:
    for part in on_prompt.parts:
        json.dumps(part.payload, allow_nan=False)


def test_a_circuit_can_be_pruned_pinned_and_grouped(browser: Any, tmp_path: Path) -> None:
    model = make("llama")
    graph, scores = interp.Graph.of(model), eap(model, named_pairs(4)).mean(0)
    circuit = interp.Circuit(graph, graph.allowed, scores)
    table = edge_table(circuit)
    with opened(browser, interp.show(circuit).save(tmp_path / "view.html")) as shown:
        page, slider = shown.page, shown.page.locator("input[type=range]")

        def edges(n: int) -> int:
            slider.evaluate("(one, n) => { one.value = n; one.dispatchEvent(new Event('input')); }", n)
            return int(page.locator("path").count())

        assert edges(len(table)) == len(table) and edges(5) == 5
        strongest = table.reindex(table["value"].abs().sort_values(ascending=False).index).head(5)
        titles = page.locator("path title").evaluate_all("all => all.map((one) => one.textContent)")
        ends = {(row.from_label, row.to_label) for row in strongest.itertuples()}
        assert {tuple(title.split(":")[0].split(",")[0].split(" to ")) for title in titles} == ends
        node = page.locator(".node").first
        label = node.get_attribute("aria-label")
        node.click()
        page.get_by_role("button", name="pin").click()
        mine = int(((table["from_label"] == label) | (table["to_label"] == label)).sum())
        assert int(page.locator("path").count()) >= mine
        edges(len(table))
        names = page.locator(".node").evaluate_all("all => all.map((one) => one.getAttribute('aria-label'))")
        for at in (1, 2):
            page.locator(".node").nth(at).click(modifiers=["Shift"])
        page.get_by_label("Name of the group").fill("mine")
        page.get_by_role("button", name="group the selection").click()
        after = page.locator(".node").evaluate_all("all => all.map((one) => one.getAttribute('aria-label'))")
        assert "mine" in after and len(after) == len(names) - 1
        shown.clean()


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "hybrid"])
def test_state_space_layers_show_their_steps_and_hidden_attention(kind: str, browser: Any, tmp_path: Path) -> None:
    model, pairs = make(kind), pairs_of(9)
    view = interp.show(model, pairs)
    parts = {part.title: part.payload for part in view.parts}
    layers = [at for at in range(model.cfg.n_layers) if get_act_name("delta", at) in model.hook_dict]
    _, cache = model.run_with_cache(pairs.clean, names_filter="*mixer*")
    with opened(browser, view.save(tmp_path / "view.html")) as shown:
        canvas = shown.page.locator("canvas[aria-roledescription=map]")
        for at, expected in (
            (0, cache["delta", layers[0]][0, 1].mean()),
            (1, cache[f"blocks.{layers[0]}.mixer.hook_pattern"][0][..., 1, 0].abs().mean()),
        ):
            own = canvas.nth(at)
            own.press("ArrowDown" if at else "ArrowRight")
            said = own.get_attribute("aria-label").split(": ")[-1]
            assert float(said.replace("−", "-")) == pytest.approx(float(expected), rel=6e-3)
        shown.clean()
    assert parts["Step size, mean over channels"]["rows"] == [str(at) for at in layers]
    by_head = parts.get("Hidden attention of each head")
    assert (by_head is None) == (kind == "mamba")  # which has channels and no heads
    if by_head is not None:
        last = by_head["layers"][-1]
        full = cache[f"blocks.{last}.mixer.hook_pattern"][0, 1]  # [query, key] of the second head
        hidden = (full - torch.diag(model.blocks[last].mixer.D[1].expand(len(full)))).abs()
        made = by_head["pattern"]
        stored = np.frombuffer(base64.b64decode(made["data"]), "<f2").reshape(*made["shape"][:2], -1)[-1, 1]
        np.testing.assert_allclose(
            stored, (hidden / hidden.sum(-1, keepdim=True))[*np.tril_indices(len(full))].detach(), atol=1e-3
        )


def test_modules_are_bundled_without_imports() -> None:
    sources = {
        "/a/one.js": 'import * as two from "./two.js";\nimport { three as third } from "../three.js";\n'
        "export const told = [two.word(), third].join();\n",
        "/a/two.js": 'import { three } from "../three.js";\nexport function word() { return three + 1; }\n',
        "/three.js": "export let three = 3;\n",
    }
    script = bundled(["/a/one.js"], sources.__getitem__)
    assert script.count('modules["/three.js"] =') == 1 and "import" not in script and "export" not in script
    assert script.index('modules["/three.js"] =') < script.index('modules["/a/two.js"] =')
    assert 'const {three: third } = modules["/three.js"]' in script.replace("{ ", "{")
    with pytest.raises(InterpError, match="cannot be bundled"):
        bundled(["/x.js"], {"/x.js": 'import whole from "./y.js";\n'}.__getitem__)
