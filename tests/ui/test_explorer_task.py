"""The explorer's edits on a whole task, and that what takes long can be cancelled from the page."""

from __future__ import annotations

import threading
import urllib.parse
from typing import Any

import numpy as np
import pytest
import torch
from browser import opened
from served import TOKEN, served

import interp
from interp.errors import InterpError
from interp.hooked.model import HookedModel
from interp.stats import bootstrap
from interp.ui.explorer import answers as asked
from interp.ui.explorer import finder, whole_task
from interp.ui.explorer.answers import answers
from interp.ui.explorer.changes import changes_of, variant_of
from interp.ui.explorer.pace import Pace
from interp.ui.explorer.worker import CancelledRequest, stoppable

PROMPT, SECOND = "3 4 5 6 3 4", "3 4 9 6 3 4"


def ask(model: HookedModel, what: str, task: Any = "induction", **fields: Any) -> Any:
    given = {"scene": {"prompt": PROMPT, "second": SECOND, **fields}, "task": task}
    return answers(model, "model")[what](given, threading.Event())


@pytest.mark.parametrize("edits", [["L1H0:zero"], ["L0H1:patch", "L1H2@end:scale:2"], ["L0H2->L1H0:patch"]])
def test_edits_on_a_task_are_the_sweeps_with_intervals(edits: list[str], toy: HookedModel) -> None:
    pairs = interp.tasks.get_task("induction")(toy, n=16, seed=0)
    variant = variant_of(toy, pairs, changes_of(edits))
    frame = interp.sweep(toy, pairs, [variant], "logit_diff", base="clean", source="corrupt", progress=False)
    values = frame.sort_values("prompt")[["base_value", "value"]].to_numpy().T
    expected = bootstrap(np.stack([*values, values[1] - values[0]]))
    told = ask(toy, "task", edits=edits, answers=["5", "9"])
    assert told["n"] == 16 and told["answers"] == ["5", "9"]
    for at, row in enumerate(told["rows"]):
        found = [row[name] for name in ("mean", "low", "high")]
        own = [float(one[at]) for one in (expected.value, expected.ci_low, expected.ci_high)]
        assert found == pytest.approx(own, rel=1e-3, abs=1e-3)
    logits = toy(torch.tensor([[int(one) for one in PROMPT.split()]]))[0, -1].detach()
    assert told["rows"][0]["own"] == pytest.approx(float(logits[5] - logits[9]), rel=1e-4)
    assert told["rows"][2]["own"] == pytest.approx(told["rows"][1]["own"] - told["rows"][0]["own"], abs=1e-6)


def test_without_edits_a_task_has_one_row_and_the_two_likeliest_tokens(toy: HookedModel) -> None:
    told = ask(toy, "task")
    best = toy(torch.tensor([[int(one) for one in PROMPT.split()]]))[0, -1].detach().topk(2)
    assert [row["what"] for row in told["rows"]] == ["without the edits"]
    assert told["answers"] == [str(one) for one in best.indices.tolist()]
    assert told["rows"][0]["own"] == pytest.approx(float(best.values[0] - best.values[1]), rel=1e-4)
    planned = ask(toy, "plan_task")
    assert planned["prompts"] == 16 and planned["seconds"] > 0


@pytest.mark.parametrize(
    ("task", "fields", "says"),
    [
        ("induction", {"edits": ["L1H0@3:zero"]}, "L1H0@3:zero acts at positions by their numbers"),
        ("induction", {"edits": ["L1H0@2-end:zero"]}, "or at the last, as in L9H6@end:zero"),
        ("induction", {"edits": ["L9H0:zero"]}, "layer 9"),
        ("ioi", {}, "this model has no tokenizer"),
        ("inductoin", {}, "did you mean 'induction'"),
        (3, {}, "task must be one of ioi"),
    ],
)
@pytest.mark.parametrize("what", ["plan_task", "task"])
def test_what_a_task_cannot_take_is_refused_in_words(
    what: str, task: Any, fields: Any, says: str, toy: HookedModel
) -> None:
    with pytest.raises(InterpError) as refused:
        ask(toy, what, task, **fields)
    assert says in str(refused.value)


def test_answers_of_a_task_must_differ(toy: HookedModel) -> None:
    with pytest.raises(InterpError, match="needs two that differ"):
        ask(toy, "task", answers=["5", "5"])


def test_a_task_stops_between_layers(toy: HookedModel) -> None:
    stop = threading.Event()
    stop.set()
    given = {"scene": {"prompt": PROMPT}, "task": "induction"}
    with pytest.raises(CancelledRequest):
        answers(toy, "model")["task"](given, stop)
    assert not any(point.has_hooks for point in toy.hook_dict.values())


def test_a_task_is_run_on_the_page(browser: Any, toy: HookedModel) -> None:
    fields = {"token": TOKEN, "prompt": PROMPT, "edits": "L1H0:zero"}
    with (
        served(toy) as address,
        opened(browser, f"{address}/#{urllib.parse.urlencode(fields)}", width=640) as shown,
    ):
        page = shown.page
        page.select_option("#task", "modular_addition")
        page.select_option("#task", "induction")
        page.click("#run-task:not([disabled])")
        page.wait_for_selector("#task-place >> text=mean of 16 prompts")
        assert page.locator("#task-place tbody th").all_inner_texts() == [
            "without the edits",
            "with the edits",
            "change",
        ]
        assert shown.violations() == [] and shown.sideways() == 0
        page.click("#edits button")  # of another scene: nothing of the old one stays
        page.wait_for_selector("#task-place:empty", state="attached")
        shown.clean(address)


def test_the_map_that_draws_itself_the_finder_and_the_task_are_cancelled(
    browser: Any, toy: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each computes until the page takes its question back, and the next question is answered."""
    endless, ended = threading.Event(), []

    def wait(what: str, stop: threading.Event) -> None:
        assert stop.wait(20)
        ended.append(what)
        raise CancelledRequest

    def executor(what: str) -> Any:
        def made(stop: threading.Event) -> Any:
            return (lambda *_: wait(what, stop)) if endless.is_set() else stoppable(stop)

        return made

    monkeypatch.setattr(Pace, "expected", lambda *_: 0.5)  # quick enough to begin by itself, on any machine
    monkeypatch.setattr(asked, "stoppable", executor("map"))
    monkeypatch.setattr(finder, "stoppable", executor("heads"))
    ran = whole_task.whole_task
    monkeypatch.setattr(
        asked, "whole_task", lambda *given: wait("task", given[-1]) if endless.is_set() else ran(*given)
    )
    fields = {"token": TOKEN, "prompt": PROMPT, "second": SECOND}
    with served(toy) as address, opened(browser, f"{address}/#{urllib.parse.urlencode(fields)}") as shown:
        page = shown.page
        page.wait_for_selector("#map-place canvas")
        page.wait_for_selector("#run-task:not([disabled])")
        endless.set()
        page.fill("#right", "5")  # the map of the new answers draws itself, in line before what follows it
        page.wait_for_selector("#map-told >> text=computing")
        page.click("#cancel-map")
        page.wait_for_selector("#map-told >> text=cancelled")
        page.wait_for_selector("#run-finder:not([disabled])")
        page.click("#run-finder")
        page.wait_for_selector("#finder-told >> text=computing")
        page.click("#cancel-finder")
        page.wait_for_selector("#finder-told >> text=cancelled")
        page.click("#run-task:not([disabled])")
        page.wait_for_selector("#task-told >> text=computing")
        page.click("#cancel-task")
        page.wait_for_selector("#task-told >> text=cancelled")
        endless.clear()
        page.click("#run-finder")
        page.wait_for_selector("#finder-place table")
        assert set(ended) <= {"map", "heads", "task"} and ended[0] == "map" and len(ended) >= 2
        shown.clean(address)
