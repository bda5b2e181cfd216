"""The guided tour: every step has this model's numbers and shows its part of the page; what it asks for is seen."""

from __future__ import annotations

import urllib.parse
from typing import Any

import pytest
from browser import Shown, opened
from makers import make
from served import TOKEN, served
from vocabularies import names_tokenizer, reader

PROMPT = "3 4 5 6 3 4"
STEPS = 22


def link(address: str, **fields: Any) -> str:
    return f"{address}/#{urllib.parse.urlencode({'token': TOKEN, **fields})}"


def at_step(shown: Shown, number: int) -> str:
    """What the tour says, once it is at a step."""
    shown.page.wait_for_selector(f"#tour >> text=step {number} of {STEPS}")
    return str(shown.page.inner_text("#tour"))


def framed(shown: Shown) -> str:
    """The part of the page that the tour has framed: a step of the walk, or an element by its name."""
    one = shown.page.wait_for_selector(".toured")
    return str(one.get_attribute("data-step") or one.get_attribute("id"))


@pytest.mark.parametrize(
    ("kind", "misses"), [("llama_gqa", "state-space"), ("mamba", "attention|MLPs"), ("hybrid", None)]
)
def test_every_step_tells_of_this_model_and_shows_its_part(kind: str, misses: str | None, browser: Any) -> None:
    model = make(kind)
    with served(model) as address, opened(browser, link(address, prompt=PROMPT)) as shown:
        page = shown.page
        page.wait_for_selector("#at-walk [data-step=choice]")
        page.click("#start-tour")
        missing = 0
        for number in range(1, STEPS + 1):
            at_step(shown, number)
            if misses is None and number > 1:  # a layer that has what the step tells is gone to
                page.wait_for_selector("#tour:not(:has-text('has none of what'))")
            said = at_step(shown, number)
            assert "undefined" not in said and "NaN" not in said and "null" not in said, said
            assert f"tour={number}" in page.evaluate("location.hash")
            if "This model has no" in said:
                missing += 1
                assert (
                    misses is not None
                    and any(one in said for one in misses.split("|"))
                    and "interp explore --model" in said
                )
                assert page.locator(".toured").count() == 0
                if number > 20:  # what it is can be told all the same
                    assert "state of fixed size" in said or "it has to forget" in said
            elif number not in (16,):  # of which nothing is on the page before anything was changed
                framed(shown)
            if number < STEPS:
                page.keyboard.press("ArrowRight")
        assert "That was the tour." in said
        assert (missing > 0) == (misses is not None)
        assert page.get_by_role("button", name="next").is_disabled()
        page.keyboard.press("ArrowLeft")
        at_step(shown, STEPS - 1)
        page.keyboard.press("Escape")
        page.wait_for_selector("#tour", state="hidden")
        assert "tour=" not in page.evaluate("location.hash")
        assert page.evaluate("document.activeElement.id") == "start-tour"
        assert page.locator(".toured").count() == 0
        shown.clean(address)


def test_what_a_step_asks_for_is_seen_when_it_is_done(browser: Any) -> None:
    with served(make("llama_gqa")) as address, opened(browser, link(address)) as shown:
        page = shown.page
        page.click("#start-tour")
        at_step(shown, 1)
        page.click("#tour >> text=take an example")
        page.wait_for_selector("#tour .done >> text=Done")
        page.get_by_role("button", name="next").click()
        said = at_step(shown, 2)
        assert "token 5 of 6" in said and "id is 14" in said and page.inner_text("#tour .done") == ""
        page.click(".chip >> nth=1")
        page.wait_for_selector("#tour .done >> text=Done")
        page.wait_for_selector("#tour >> text=token 1 of 6")
        page.evaluate("location.hash = location.hash.replace(/tour=\\d+/, 'tour=15')")
        page.reload()  # the step is in the address
        at_step(shown, 15)
        page.fill("#part", "L0H1")
        page.click("#change button[value=zero]")
        page.wait_for_selector("#tour .done >> text=Done")
        page.get_by_role("button", name="next").click()
        at_step(shown, 16)
        page.wait_for_selector("#at-compare.toured")
        assert shown.complaints == []


def test_a_state_space_layer_is_gone_to_where_the_model_has_one(browser: Any) -> None:
    with (
        served(make("hybrid")) as address,
        opened(browser, link(address, prompt=PROMPT, walk="5.1.0", tour=21)) as shown,
    ):
        shown.page.wait_for_selector("[data-step=select].toured")
        shown.page.wait_for_selector("#tour >> text=step size")
        assert "walk=5.0." in shown.page.evaluate("location.hash")


def test_a_frame_leaves_the_next_step_alone(browser: Any) -> None:
    with served(make("llama_gqa")) as address, opened(browser, link(address, prompt=PROMPT, tour=3)) as shown:
        shown.page.wait_for_selector("[data-step=embedding].toured")
        style = "getComputedStyle(document.querySelector('.toured'))"
        assert shown.page.evaluate(f"parseFloat({style}.outlineOffset) + parseFloat({style}.outlineWidth)") <= 0


def test_positions_are_told_of_the_layer_that_is_walked(browser: Any) -> None:
    place = {"prompt": PROMPT, "walk": "5.0.", "tour": 5}
    with served(make("hybrid")) as address, opened(browser, link(address, **place)) as shown:
        shown.page.wait_for_selector("#tour >> text=Layer 0 has no attention. Go to layer 1")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (640, True)], ids=["wide-light", "narrow-dark"])
def test_the_tour_is_for_everybody(width: int, dark: bool, browser: Any) -> None:
    text = "<img src=x onerror=alert(1)> שלום 🙂"
    with (
        served(reader(names_tokenizer())) as address,
        opened(browser, link(address, prompt=text, tour=2), width=width, dark=dark) as shown,
    ):
        shown.page.wait_for_selector("[data-step=tokens].toured")
        assert shown.violations() == [] and shown.sideways() == 0
        assert shown.page.locator("#tour img").count() == 0
        shown.clean(address)
