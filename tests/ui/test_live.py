"""The widget of a notebook: what the kernel answers it, and what a reader sees and clicks in it."""

from __future__ import annotations

import builtins
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from browser import opened
from nbclient import NotebookClient

import interp
from interp.errors import ConfigError, InterpError
from interp.hooked.model import HookedModel

pytest.importorskip("anywidget", reason="anywidget is not installed: pip install interp[live]")

ROOT = Path(__file__).resolve().parents[2]
PROMPT, SECOND = "3 4 5 6 3 4", "3 4 9 6 3 4"
PATIENCE = 30  # seconds


class Heard:
    """What a widget sends: to nobody, or to whoever listens."""

    def __init__(self, widget: Any) -> None:
        self.messages: list[dict[str, Any]] = []
        widget.send = self.take
        self.widget = widget

    def take(self, content: dict[str, Any], buffers: Any = None) -> None:
        self.messages.append(content)

    def ask(self, number: int, what: str, given: Any, view: str = "a") -> None:
        # ipywidgets calls what listens to messages in this way
        self.widget._handle_custom_msg(
            {"kind": "ask", "view": view, "id": number, "what": what, "given": given}, buffers=[]
        )

    def stop(self, number: int, view: str = "a") -> None:
        self.widget._handle_custom_msg({"kind": "stop", "view": view, "id": number}, buffers=[])

    def of(self, number: int, view: str = "a") -> dict[str, Any]:
        """The answer to a question, waited for."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for one in list(self.messages):
                if (one["view"], one["id"]) == (view, number) and one["kind"] != "begun":
                    return one
            time.sleep(0.01)
        raise AssertionError(f"no answer to question {number}: {self.messages}")


@pytest.fixture
def live(toy: HookedModel) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def show(given: Any = PROMPT, **options: Any) -> Any:
        made.append(interp.show(toy, given, live=True, **options))
        return made[-1]

    yield show
    for one in made:
        one.close()


def zeroed(toy: HookedModel, layer: int, head: int) -> torch.Tensor:
    """The next token's probabilities after PROMPT without a head, by a hook that is written out."""

    def zero(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value[:, :, head] = 0
        return value

    ids = torch.tensor([[int(one) for one in PROMPT.split()]])
    with torch.no_grad():
        return toy.run_with_hooks(ids, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", zero)])[0, -1].softmax(-1)


def test_the_kernel_answers_what_the_page_asks(live: Any, toy: HookedModel) -> None:
    heard = Heard(live())
    heard.ask(1, "about", {})
    assert heard.of(1)["told"]["heads"] == toy.cfg.n_heads
    heard.ask(2, "look", {"scene": {"prompt": PROMPT, "edits": ["L1H0:zero"]}, "parts": ["compare"]})
    after = zeroed(toy, 1, 0)
    for row in heard.of(2)["told"]["parts"][0]["rows"]:
        assert row["after"] == pytest.approx(float(after[int(row["token"])]), rel=1e-4, abs=1e-9)
    heard.ask(3, "look", {"scene": {"prompt": ""}, "parts": ["compare"]})
    assert "the prompt is empty" in heard.of(3)["error"] and heard.of(3)["status"] == 422
    heard.ask(4, "nothing", {})
    assert "the kernel could not answer" in heard.of(4)["error"]


def test_a_question_that_is_taken_back_stops_and_the_next_is_answered(live: Any, toy: HookedModel) -> None:
    heard = Heard(live())
    began = threading.Event()
    held: list[bool] = []

    def slow(given: Any, stop: threading.Event) -> Any:
        began.set()
        held.append(stop.wait(PATIENCE))
        return {}

    heard.widget._answers = {**heard.widget._answers, "map": slow}
    heard.ask(1, "map", {})
    assert began.wait(PATIENCE)
    heard.ask(2, "look", {"scene": {"prompt": PROMPT}, "parts": ["lens"]})
    heard.stop(2)  # waits still, and never begins
    heard.stop(1)
    heard.ask(3, "about", {})
    heard.of(3)
    assert held == [True]
    assert [one["id"] for one in heard.messages if one["kind"] == "begun"] == [1, 3]


def test_two_widgets_and_the_cells_do_not_disturb_each_other(live: Any, toy: HookedModel) -> None:
    ids = torch.tensor([[int(one) for one in PROMPT.split()]])
    with torch.no_grad():
        own = toy(ids)[0, -1]
    first, second = Heard(live()), Heard(live())
    scenes = [{"prompt": PROMPT, "edits": [edit]} for edit in ("L0H1:zero", "L1H0:zero")]
    for number in range(1, 9):
        for heard, scene in zip((first, second), scenes, strict=True):
            heard.ask(number, "look", {"scene": scene, "parts": ["compare"]})
        with torch.no_grad():
            torch.testing.assert_close(toy(ids)[0, -1], own)  # meanwhile a cell runs the model
    for heard, (layer, head) in zip((first, second), ((0, 1), (1, 0)), strict=True):
        after = zeroed(toy, layer, head)
        for number in range(1, 9):
            rows = heard.of(number)["told"]["parts"][0]["rows"]
            assert [row["after"] for row in rows] == pytest.approx(
                [float(after[int(row["token"])]) for row in rows], rel=1e-4, abs=1e-9
            )
    first.widget.scene = {"prompt": "3 4"}
    assert second.widget.scene["prompt"] == PROMPT


def test_the_scene_is_used_in_the_next_cell(live: Any, toy: HookedModel) -> None:
    widget = live()
    widget.scene = {"prompt": PROMPT, "edits": ["L1H0:zero"]}  # as the page sets it
    with torch.no_grad(), interp.edited(toy, widget.pairs, widget.variant, base="clean", source="clean"):
        after = toy(widget.pairs.clean)[0, -1].softmax(-1)
    torch.testing.assert_close(after, zeroed(toy, 1, 0))
    with pytest.raises(ConfigError, match="edits must be a list"):
        widget.scene = {"prompt": PROMPT, "edits": "L1H0:zero"}
    with pytest.raises(InterpError, match="did you mean 'prompt'"):
        widget.scene = {"promt": PROMPT}


def test_prompts_are_texts_ids_or_pairs(live: Any) -> None:
    ids = [int(one) for one in PROMPT.split()]
    assert live(torch.tensor(ids)).scene["prompt"] == PROMPT
    pairs = interp.PromptPairs.from_tokens([ids], [[int(one) for one in SECOND.split()]], answers=[(5, 9)])
    scene = {"prompt": PROMPT, "second": SECOND, "edits": [], "answers": ["5", "9"], "kept": [], "beside": ""}
    assert live(pairs).scene == scene
    assert live(None).scene["prompt"] == ""
    with pytest.raises(ConfigError, match="a prompt is a text, token ids or PromptPairs"):
        live({"prompt": 3})


def test_an_export_has_the_view_and_a_page_without_a_prompt_has_none(live: Any, tmp_path: Path) -> None:
    data, _ = live()._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data and "<iframe srcdoc=" in data["text/html"]
    assert "text/html" not in live(None)._repr_mimebundle_()[0]
    assert live().save(tmp_path / "kept.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_what_live_cannot_take_is_refused(toy: HookedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="and not effects"):
        interp.show(toy, PROMPT, effects="zero", live=True)
    with pytest.raises(InterpError, match="live=True is of a model and a prompt"):
        interp.show(["a", "b"], [1, 2], live=True)
    own = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "interp.ui.live.widget":
            raise ModuleNotFoundError("No module named 'anywidget'", name="anywidget")
        return own(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"needs anywidget.*pip install 'interp\[live\]'"):
        interp.show(toy, PROMPT, live=True)


# What anywidget gives to the widget's script, for as much as that uses; `asked` and `kept` are Python's.
HOST = """
<!doctype html><html lang="en"><head><title>A notebook</title></head><body><main><h1>A notebook</h1></main>
<script type="module">
HOST_JS
const listeners = {}, state = STATE;
window.models = [];
for (let which = 0; which < 2; which++) {
  const own = { ...state }, on = {};
  const model = {
    get: (name) => own[name],
    set: (name, value) => { own[name] = value; },
    save_changes: () => window.kept(which, own.scene),
    send: (message) => window.asked(which, message),
    on: (name, call) => { (on[name] ??= new Set()).add(call); },
    off: (name, call) => on[name].delete(call),
    tell: (message) => { for (const call of on["msg:custom"]) call(message); },
    give: (scene) => { own.scene = scene; for (const call of on["change:scene"]) call(); },
  };
  window.models.push(model);
  render({ model, el: document.querySelector("main") });
}
</script></body></html>
"""


def hosted(tmp_path: Path, widget: Any) -> Path:
    """A page that shows two widgets."""
    state = {name: getattr(widget, name) for name in ("scene", "page", "name", "height")}
    script = widget._esm.replace("export default { render };", "")
    data = json.dumps(state).replace("<", "\\u003c")
    path = tmp_path / "notebook.html"
    path.write_text(HOST.replace("HOST_JS", script).replace("STATE", data), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (640, True)])
def test_a_head_is_clicked_and_ablated_in_the_notebook(
    width: int, dark: bool, browser: Any, live: Any, toy: HookedModel, tmp_path: Path
) -> None:
    heard = [Heard(live()), Heard(live())]
    with opened(browser, hosted(tmp_path, heard[0].widget), width=width, dark=dark) as shown:
        page = shown.page

        def asked(which: int, message: Any) -> None:
            heard[which].widget._handle_custom_msg(message, buffers=[])

        def kept(which: int, scene: Any) -> None:
            heard[which].widget.scene = scene

        page.expose_function("asked", asked)
        page.expose_function("kept", kept)
        shown.complaints.clear()  # of the page without these functions
        page.reload()

        def deliver() -> None:
            for which, one in enumerate(heard):
                for message in list(one.messages):
                    page.evaluate("([which, message]) => models[which].tell(message)", [which, message])
                    one.messages.remove(message)

        def until(check: Callable[[], bool]) -> None:
            end = time.monotonic() + PATIENCE
            while not check():
                assert time.monotonic() < end, page.frames[1].content()[-3000:]
                deliver()
                page.wait_for_timeout(50)

        until(lambda: len(page.frames) == 3)
        frame, other = page.frames[1:]
        until(lambda: frame.is_visible("#at-lens") and other.is_visible("#at-lens"))
        frame.locator(".thumb").nth(toy.cfg.n_heads).click()  # L1H0
        assert frame.input_value("#part") == "L1H0"
        frame.click("#change button[value=zero]")
        until(lambda: frame.is_visible("#at-compare"))
        until(lambda: heard[0].widget.scene["edits"] == ["L1H0:zero"])
        assert heard[1].widget.scene["edits"] == [] and not other.is_visible("#at-compare")
        first = frame.locator("#at-compare tbody tr").first.inner_text().split("\t")
        assert float(first[2].rstrip("%")) == pytest.approx(100 * float(zeroed(toy, 1, 0)[int(first[0])]), abs=0.051)
        # By keyboard, and back; what the kernel refuses is told in words.
        frame.focus("#part")
        page.keyboard.press("ControlOrMeta+A")
        page.keyboard.type("L9H0")
        page.keyboard.press("Enter")
        until(lambda: "layer 9" in frame.inner_text("#problem"))
        page.evaluate("models[0].give({ prompt: '3 4', second: '', edits: [], answers: ['', ''] })")
        until(lambda: frame.inner_text("#tokens").startswith("2 tokens") and not frame.is_visible("#at-compare"))
        with page.expect_download() as download:
            frame.click("#save")
            until(lambda: any("page" in message.get("told", {}) for message in heard[0].messages))
            deliver()
        download.value.save_as(tmp_path / "explored.html")
        assert "<!doctype html>" in (tmp_path / "explored.html").read_text(encoding="utf-8")[:20]
        assert shown.violations() == [] and frame.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert all(one.startswith(("file:", "about:", "data:", "blob:")) for one in shown.requests), shown.requests
        assert not shown.complaints, shown.complaints


CELLS = [
    'import interp\nmodel = interp.load("toy")\nwidget = interp.show(model, "3 4 5 6 3 4", live=True)\nwidget',
    'widget.scene = {"prompt": "3 4 5 6 3 4", "edits": ["L1H0:zero"]}\n'
    'with interp.edited(model, widget.pairs, widget.variant, base="clean", source="clean"):\n'
    "    print(float(model(widget.pairs.clean)[0, -1].softmax(-1).max()))",
]


def test_a_notebook_makes_the_widget(tmp_path: Path, toy: HookedModel) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    client.execute(env=os.environ | {"PYTHONPATH": paths})
    data = notebook.cells[0].outputs[0].data
    state = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    own = state[data["application/vnd.jupyter.widget-view+json"]["model_id"]]["state"]
    assert own["scene"]["edits"] == ["L1H0:zero"] and own["page"].startswith("<!doctype html>")
    assert data["text/html"].startswith("<iframe srcdoc=")
    assert float(notebook.cells[1].outputs[0].text) == pytest.approx(float(zeroed(toy, 1, 0).max()), rel=1e-4)
