"""A report's page in a browser without network: its numbers can be pointed at, looked up and saved, by keyboard too."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browser import opened

from interp import figures
from interp.ui.page import FigureItem, Section, write_report
from interp.ui.page_data import pointed
from interp.ui.tables import FIRST
from interp.ui.views.frames import layout

HOSTILE = ["<script>document.title='owned'</script>", '"quoted", with a comma', "\u202eabc", "שלום", "🙂\x00", "a\nb"]
LAYERS, HEADS = 4, 3


def of_heads(seed: int, **columns: Any) -> pd.DataFrame:
    """A summary with a row for each head, as studies give it."""
    value = np.random.default_rng(seed).normal(size=LAYERS * HEADS)
    layer, head = np.divmod(np.arange(LAYERS * HEADS), HEADS)
    frame = pd.DataFrame({"site": "z", "layer": layer, "head": head, "metric": "logit_diff", "value": value, "n": 5})
    p = np.linspace(1e-9, 0.9, len(value))
    return frame.assign(ci_low=value - 0.25, ci_high=value + 0.5, p=p, p_adjusted=p, **columns)


def patterns() -> pd.DataFrame:
    """Attention of two heads on a hostile prompt."""
    n = len(HOSTILE)
    cells = [
        (1, head, query, key, HOSTILE[query], 1 / (query + 1))
        for head in (0, 2)
        for query in range(n)
        for key in range(query + 1)
    ]
    return pd.DataFrame(cells, columns=["layer", "head", "query", "key", "query_token", "value"])


def lens() -> pd.DataFrame:
    """What two lenses read on a hostile prompt, halves of layers included."""
    cells = [
        (kind, layer, site, pos, HOSTILE[pos], f"{kind}{layer}{site[-3:]}", 0.5)
        for kind in ("tuned", "logit")
        for layer, site in ((0, "resid_pre"), (0, "resid_mid"), (1, "resid_pre"), (1, "resid_post"))
        for pos in range(len(HOSTILE))
    ]
    return pd.DataFrame(cells, columns=["lens", "layer", "site", "pos", "token", "top_token", "value"])


def circuit() -> pd.DataFrame:
    """A chain of three edges."""
    names = ["input", "L0H1", "L2H0", "logits"]
    rows = [
        (f"{a}>{b}", a, b, "", b, a, b, at, at + 1, value)
        for at, (a, b, value) in enumerate(zip(names, names[1:], (0.5, -1.0, 2.0), strict=False))
    ]
    columns = ["edge", "sender", "receiver", "reads", "receiver_node", "from_label", "to_label", "from_row", "to_row"]
    return pd.DataFrame(rows, columns=[*columns, "value"])


ABLATED, PATCHED = of_heads(0).assign(kind="zero"), of_heads(1).drop(index=[1])
LONG = pd.DataFrame({f"a long name of column {at}": np.linspace(-at, 1.25, 30) for at in range(9)} | {"same": "z"})


def item(name: str, frame: pd.DataFrame, view: str = "", tells: str = "") -> FigureItem:
    drawn = figures.bars(pd.DataFrame({"component": ["a"], "value": [1.0]}), x="component")
    return FigureItem(name, f"Figure of {name}", "Caption.", drawn, frame, view=view, tells=tells)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = pd.DataFrame({"prompt": HOSTILE, "difference": np.arange(6) / 7, "n": 5})
    first = Section(
        "Heads",
        "heads",
        ["One.", "See {figure:patterns}."],
        [item("ablated", ABLATED, "cells", "what is lost"), item("patched", PATCHED, "cells", "what comes back")],
        [("Prompts", prompts), ("Many rows", LONG)],
        appendix=[item("circuit", circuit(), "circuit"), ("Apart", of_heads(3))],
    )
    second = Section(
        "Views", "views", figures=[item("patterns", patterns(), "attention"), item("lens", lens(), "lens")]
    )
    return write_report(
        tmp_path_factory.mktemp("report") / "out",
        title="A report",
        question="Which?",
        summary=["This."],
        sections=[first, second],
        manifest={"model": {"name": "toy"}},
    )


def test_nothing_is_drawn_before_it_is_opened_and_every_view_draws(browser: Any, made: Path) -> None:
    with opened(browser, made) as shown:
        folds = shown.page.locator("details.view")
        folds.nth(4).wait_for(state="attached")
        assert folds.count() == 5 and not shown.page.locator("canvas, table.lens, .graph svg").count()
        for name, drawn in (
            ("ablated", "canvas.large"), ("patched", "canvas.large"), ("patterns", ".thumb"), ("lens", "table.lens"),
            ("circuit", ".node"),
        ):  # fmt: skip
            shown.page.evaluate("(name) => { location.hash = name }", f"figure-{name}")  # unfolds the appendix
            figure = shown.page.locator(f"#figure-{name}")
            figure.locator("summary").click()
            figure.locator(drawn).first.wait_for()
        shown.clean()


@pytest.mark.parametrize("width", [640, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_is_for_everybody_folded_and_unfolded(browser: Any, made: Path, width: int, dark: bool) -> None:
    with opened(browser, made, width=width, dark=dark) as shown:
        shown.page.locator("#one-part table").wait_for()
        assert shown.violations() == [] and shown.sideways() == 0
        shown.page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
        shown.page.locator(".node").first.wait_for()
        assert shown.violations() == [] and shown.sideways() == 0
        if width == 1280:
            cut = "all => all.filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.outerHTML)"
            assert shown.page.locator("main .table .scroll").evaluate_all(cut) == []
        shown.clean()


def test_a_map_says_the_numbers_of_the_frame(browser: Any, made: Path) -> None:
    with opened(browser, made) as shown:
        figure = shown.page.locator("#figure-ablated")
        figure.locator("summary").click()
        canvas = figure.locator("canvas.large")
        canvas.press("ArrowDown")
        canvas.press("ArrowRight")
        row = ABLATED[(ABLATED["layer"] == 1) & (ABLATED["head"] == 1)].iloc[0]
        said = canvas.get_attribute("aria-label").replace("−", "-")
        numbers = [float(text) for text in said.split(": ")[1].translate(str.maketrans("[],", "   ")).split()]
        assert numbers == pytest.approx([row["value"], row["ci_low"], row["ci_high"]], rel=6e-3)
        canvas.press("Enter")
        told = figure.locator("table[aria-label='All measurements of L1H1']")
        told.wait_for()
        assert told.locator("tbody tr").count() == 2


def test_a_part_is_looked_up_in_all_figures_and_what_was_not_computed_is_said(browser: Any, made: Path) -> None:
    with opened(browser, made) as shown:
        panel, part = shown.page.locator("#one-part"), shown.page.locator("#part")
        part.fill("l0h1")
        rows = panel.locator("tbody tr")
        panel.get_by_text("not computed").wait_for()
        assert [text.split("\t")[0] for text in rows.all_inner_texts()] == ["what is lost", "what comes back"]
        value = ABLATED.set_index(["layer", "head"]).loc[(0, 1), "value"]
        printed = rows.first.locator("td").first.inner_text().replace("−", "-")
        assert float(printed) == pytest.approx(value, rel=6e-3)
        part.fill("L1H2")
        panel.get_by_text("where it looks").wait_for()
        assert rows.count() == 3 and rows.last.locator("a").get_attribute("href") == "#figure-patterns"
        part.fill("L9H9 <b>")
        panel.get_by_text("Nothing of “L9H9 <b>” was computed").wait_for()
        assert panel.locator("b").count() == 0


def saved(shown: Any, button: Any) -> pd.DataFrame:
    """The table of the file that a button gives."""
    with shown.page.expect_download() as waiting:
        button.click()
    return pd.read_csv(io.BytesIO(Path(waiting.value.path()).read_bytes()), keep_default_na=False, na_values={})


def test_files_made_by_the_page_have_the_numbers_of_the_frames(browser: Any, made: Path) -> None:
    with opened(browser, made) as shown:
        for name, frame in (("patched", PATCHED), ("patterns", patterns())):
            found = saved(shown, shown.page.locator(f"#figure-{name} figcaption button"))
            assert list(found) == list(frame)
            pd.testing.assert_frame_equal(found, frame.reset_index(drop=True), check_dtype=False, rtol=1e-6)
        table = saved(shown, shown.page.locator("#table-2 button"))
        assert list(table) == list(LONG)[:-1]
        np.testing.assert_array_equal(table.to_numpy(), LONG.drop(columns="same").to_numpy())  # in all their digits
        shown.page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
        apart = saved(shown, shown.page.locator("#table-3 button"))
        assert {"ci_low", "ci_high"} <= set(apart)
        np.testing.assert_array_equal(apart["ci_low"], of_heads(3)["ci_low"])
        assert not shown.complaints


def test_a_folded_table_is_unfolded_by_keyboard(browser: Any, made: Path) -> None:
    with opened(browser, made) as shown:
        table = shown.page.locator(".table", has=shown.page.locator("#table-2"))
        rows = table.locator("tbody tr >> visible=true")
        assert rows.count() == FIRST
        for _ in range(60):
            shown.page.keyboard.press("Tab")
            if shown.page.evaluate("document.activeElement.matches('.rows summary')"):
                break
        shown.page.keyboard.press("Enter")
        table.locator("tbody tr").last.wait_for()
        assert rows.count() == len(LONG)
        shown.page.emulate_media(media="print")
        assert rows.count() == len(LONG) and shown.page.locator("details.view").first.is_hidden()


def test_text_of_prompts_is_text(browser: Any, made: Path) -> None:
    with opened(browser, made) as shown:
        figure = shown.page.locator("#figure-patterns")
        figure.locator("summary").click()
        words = figure.locator(".words").first.locator(".token-text")
        words.first.wait_for()
        assert words.all_text_contents() == [
            HOSTILE[0],
            HOSTILE[1].replace(" ", "·"),
            "<U+202E>abc",
            HOSTILE[3],
            "🙂<U+0000>",
            "a⏎b",
        ]
        lens = shown.page.locator("#figure-lens")
        lens.locator("summary").click()
        lens.locator("tbody tr").first.wait_for()
        assert lens.locator("tbody th").all_inner_texts() == ["into 0", "into 1", "output"]
        assert shown.page.title() == "A report"
        shown.clean()


def test_without_script_the_page_is_complete(browser: Any, made: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 900}, offline=True)
    try:
        page = context.new_page()
        page.goto(made.as_uri())
        assert page.locator("#one-part").is_hidden() and not page.locator("details.view, button").count()
        assert page.locator("figure img >> visible=true").count() == 4
        page.locator(".rows summary").first.click()
        assert page.locator(".table", has=page.locator("#table-2")).locator("tbody tr >> visible=true").count() == 30
    finally:
        context.close()


def test_a_summary_is_shown_by_what_its_interval_is_of() -> None:
    frame = of_heads(0).assign(effect=0.0)
    assert pointed(of_heads(0).assign(value=float("nan")), "cells") == pointed(frame, "") == {}
    assert layout(frame).value == "value" and layout(frame.drop(columns=["ci_low", "ci_high"])).value == "effect"
