"""`Live`: the widget that `interp.show(model, prompt, live=True)` gives, which needs anywidget.

1. The notebook shows a frame with the explorer's page (`host.js`); what is clicked there comes here as a question.
2. Questions are answered in a thread of the widget, one after another. Hooks belong to the thread that attached them,
   so neither cells nor other widgets see its edits. A question that the page takes back, for a newer one, stops.
3. `scene` is what the page shows, kept in both places.
"""

from __future__ import annotations

import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anywidget
import torch
import traitlets

from interp.arguments import shown
from interp.edits import Variant
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import ConfigError, InterpError, PromptError
from interp.hooked.model import HookedModel
from interp.prompts.pairs import PromptPairs
from interp.ui.explorer.answers import answers
from interp.ui.explorer.page_files import whole
from interp.ui.explorer.scene import Scene, answer_id, pairs_of, patched, resolved, scene_of, token_ids
from interp.ui.explorer.sight import saved_view
from interp.ui.explorer.worker import CancelledRequest
from interp.ui.views.view import View

HERE = Path(__file__).parent
LOADED = "model  # the one of this notebook"
REFUSED, FAILED = 422, 500  # as the explorer's server numbers them


class Live(anywidget.AnyWidget):
    """A prompt, its next token, patterns and lens, in a notebook, where a click changes a head.

    Attributes:
        scene: what the page shows: `prompt`, `second` (the prompt that patches copy from), `edits` such as
            "L9H6:zero", `answers`, and what they are compared with (`kept` edits, `beside`). Setting it changes the
            page.
        name: what the frame is called, for screen readers.
        height: of the frame, in pixels.
    """

    _esm = (HERE / "host.js").read_text(encoding="utf-8")
    scene = traitlets.Dict().tag(sync=True)
    page = traitlets.Unicode().tag(sync=True)
    name = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int(900).tag(sync=True)

    def __init__(self, model: HookedModel, given: Any = None, *, title: str | None = None) -> None:
        if isinstance(model, EncoderDecoder) or not model.cfg.causal:
            raise InterpError("live=True shows models of one stack that predict the next token; this one is another")
        self._shown_model = model
        self._answers = answers(model, LOADED)
        self._stops: dict[tuple[str, int], threading.Event] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="live")
        super().__init__(
            scene=_written(_first_scene(model, given)),
            page=whole({"/ask.js": HERE / "ask.js"}),
            name=title or f"{model.cfg.model_name or 'A model'}, live",
        )
        self.on_msg(self._heard)

    @traitlets.validate("scene")
    def _whole_scene(self, proposal: Any) -> dict[str, Any]:
        return _written(scene_of(dict(proposal["value"])))

    @property
    def variant(self) -> Variant:
        """The edits, as `interp.edited` and `interp.sweep` take them.

        Raises:
            InterpError: a prompt or an edit that the model cannot take.
        """
        return resolved(self._shown_model, scene_of(self.scene))[0]

    @property
    def pairs(self) -> PromptPairs:
        """The prompts: the first is the clean side; the second, where there is one, the corrupt side.

        An edit of the clean side that copies from the corrupt one is `edited(model, pairs, variant, base="clean",
        source="corrupt")`.

        Raises:
            PromptError: a prompt that the model cannot take, or two of different length.
        """
        scene = scene_of(self.scene)
        chosen = [answer_id(self._shown_model, one) for one in scene.answers] if all(scene.answers) else None
        both = bool(scene.second) or patched(scene)
        return pairs_of(self._shown_model, scene, None if chosen is None else (chosen[0], chosen[1]), patched=both)

    def view(self) -> View:
        """What the page shows now, without the kernel: the view that `interp.show` gives, in the edited run."""
        return saved_view(self._shown_model, scene_of(self.scene))

    def save(self, path: str | Path) -> Path:
        """Write what the page shows now as a page that needs nothing else."""
        return self.view().save(path)

    def close(self) -> None:
        """End the widget, and whatever it still computes."""
        for stop in self._stops.values():
            stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget; and for readers without a kernel, as of an exported page, what it shows when it is displayed."""
        data, metadata = super()._repr_mimebundle_(**options) or ({}, {})
        with contextlib.suppress(InterpError):  # no prompt yet, or one that cannot be shown: the page says why
            data = {**data, "text/html": self.view()._repr_html_()}
        return data, metadata

    def _heard(self, widget: Any, message: Any, buffers: Any) -> None:
        """A message of the page: a question, or that one is taken back."""
        view, number = str(message["view"]), int(message["id"])
        if message["kind"] == "stop":
            if stop := self._stops.get((view, number)):
                stop.set()
            return
        stop = self._stops[view, number] = threading.Event()
        self._pool.submit(self._answer, view, number, str(message["what"]), message["given"], stop)

    def _answer(self, view: str, number: int, what: str, given: Any, stop: threading.Event) -> None:
        """Compute one answer (in the thread) and send it."""
        to = {"view": view, "id": number}
        try:
            if stop.is_set():
                return
            self.send({**to, "kind": "begun"})
            told = self._answers[what](given, stop)
            json.dumps(told, allow_nan=False)  # as for a server's page: no number that JSON cannot hold
            self.send({**to, "kind": "answer", "told": told})
        except CancelledRequest:
            pass
        except InterpError as error:
            self.send({**to, "kind": "refused", "status": REFUSED, "error": str(error)})
        except Exception as error:
            words = f"the kernel could not answer: {type(error).__name__}: {error}"
            self.send({**to, "kind": "refused", "status": FAILED, "error": words})
        finally:
            self._stops.pop((view, number), None)


def _written(scene: Scene) -> dict[str, Any]:
    """A scene as plain values, as the page has it."""
    return {
        "prompt": scene.prompt,
        "second": scene.second,
        "edits": list(scene.edits),
        "answers": list(scene.answers),
        "kept": list(scene.kept),
        "beside": scene.beside,
    }


def _first_scene(model: HookedModel, given: Any) -> Scene:
    """The scene of a prompt: a text, token ids [pos], or pairs, of which the first is taken.

    Raises:
        PromptError: ids that their text does not give.
        ConfigError: anything else.
    """
    if given is None:
        return Scene("")
    if isinstance(given, str):
        return Scene(given)
    if not isinstance(given, PromptPairs):
        try:
            return Scene(_text(model, torch.as_tensor(given).reshape(-1)))
        except (TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, InterpError):
                raise
            raise ConfigError(f"a prompt is a text, token ids or PromptPairs, not {shown(given)}") from error
    first, second = given.clean[0][given.mask[0]], given.corrupt[0][given.mask[0]]
    told = ("", "")
    if given.has_answers:
        right, wrong = (int(one) for one in given.answers[0])
        told = (_answer_text(model, right), _answer_text(model, wrong))
    same = torch.equal(first, second)
    return Scene(_text(model, first), "" if same else _text(model, second), answers=told)


def _text(model: HookedModel, ids: torch.Tensor) -> str:
    """A text whose tokens are these: what the page lets a reader change."""
    if model.tokenizer is None:
        return " ".join(map(str, ids.tolist()))
    listed = ids.tolist()
    for start in (0, 1):  # with and without a first token that the tokenizer adds by itself
        text = model.tokenizer.decode(listed[start:])
        if token_ids(model, text, "the prompt") == listed:
            return text
    raise PromptError("this prompt cannot be written as a text with the same tokens; give live=True a text")


def _answer_text(model: HookedModel, token: int) -> str:
    return str(token) if model.answer_tokenizer is None else model.answer_tokenizer.decode([token])
