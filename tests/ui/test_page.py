from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from interp import figures
from interp.errors import InterpError, OutputError, UnknownName
from interp.ui import folder, tables
from interp.ui.page import FigureItem, Section, check_output, first_rows, write_report
from interp.ui.page_data import stored
from interp.ui.pictures import LONGEST, shortened

NASTY = """<script>alert("1")</script> </style> & 'quoted' {figure:nowhere} {{ 7 * 7 }}"""
FRAME = pd.DataFrame({"component": ["L9H6", "mlp 3"], "value": [0.5, -1.25], "token": [NASTY, " to"]})


def item(name: str = "bars", **changes: Any) -> FigureItem:
    figure = figures.bars(FRAME, x="component", label=NASTY)
    given = {"title": NASTY, "caption": f"See {{figure:{name}}} and `{NASTY}`.", "figure": figure, "frame": FRAME}
    return FigureItem(name, **{**given, **changes})


def report(out: Path, *items: FigureItem, **changes: Any) -> Path:
    text = [f"{NASTY} {{figure:{items[-1].name}}}"] if items else [NASTY]
    section = Section(NASTY, "first", text, items, [(NASTY, FRAME)], preformatted=f"  {NASTY}\n  two")
    given: dict[str, Any] = {
        "title": NASTY,
        "question": NASTY,
        "summary": [NASTY, "second"],
        "sections": [section, Section("Second", "second")],
        "manifest": {"model": {"name": NASTY}, "seed": 0, "git": None},
    }
    return write_report(out, **{**given, **changes})


class Page(HTMLParser):
    """Every tag of a page with its attributes, and the text of every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.words.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(tmp_path_factory.mktemp("reports") / "new" / "ioi", item("one"), item("two", alt="two bars"))


@pytest.fixture(scope="module")
def page(made: Path) -> Page:
    return Page(made.read_text(encoding="utf-8"))


def snapshot(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_the_policy_allows_the_pages_own_style_script_and_pictures_and_nothing_else(made: Path, page: Page) -> None:
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    text = made.read_text(encoding="utf-8")
    hashes = []
    for tag in ("<style>(.*?)</style>", '<script type="module">(.*?)</script>'):
        (own,) = re.findall(tag, text, re.DOTALL)
        hashes.append(f"'sha256-{base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()}'")
    style, script = hashes
    assert policy == (
        f"default-src 'none'; img-src data:; style-src {style}; script-src {script}; base-uri 'none'; form-action "
        "'none'"
    )
    assert [one["type"] for one in page.all("script")] == ["application/json", "module"]
    assert not [
        attributes for _, attributes in page.tags if any(k == "style" or k.startswith("on") for k in attributes)
    ]


def test_nothing_is_fetched_and_every_link_leads_somewhere(made: Path, page: Page) -> None:
    assert all((image["src"] or "").startswith("data:image/") for image in page.all("img"))
    text = re.sub('src="data:[^"]*"', "", made.read_text(encoding="utf-8"))
    assert "url(" not in text and "@import" not in text
    assert not page.all("link")
    anchors = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(anchors) == len(set(anchors))
    for link in page.all("a"):
        target = link["href"] or ""
        assert target[1:] in anchors if target.startswith("#") else (made.parent / target).is_file()
    for picture in page.all("img"):
        kind, _, svg = (picture["src"] or "").partition(",")
        assert kind == "data:image/svg+xml" and not re.search(r"(href|src)='(?!#|data:)", unquote(svg))


def test_text_is_shown_as_it_was_written(page: Page) -> None:
    for tag in ("h1", "h2", "title", "p", "td", "pre", "b", "dd"):
        assert NASTY in "".join(page.words[tag]), tag
    assert "".join(page.words["pre"]).endswith("\n  two")


def test_the_page_can_be_read_aloud(page: Page) -> None:
    assert page.all("html")[0]["lang"] == "en"
    assert [image["alt"] for image in page.all("img")] == [NASTY, "two bars"]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(head.get("scope") == "col" for head in page.all("th"))


def test_figures_are_numbered_and_references_follow(page: Page) -> None:
    captions = [words for words in page.words["b"] if words.startswith("Figure ")]
    assert [words.split(".")[0] for words in captions] == ["Figure 1", "Figure 2"]
    links = [(a["href"], words) for a, words in zip(page.all("a"), page.words["a"], strict=True)]
    assert [link for link in links if link[1].startswith("Figure ")] == [
        ("#figure-two", "Figure 2"),
        ("#figure-one", "Figure 1"),
        ("#figure-two", "Figure 2"),
    ]


def test_the_folder_has_every_figure_its_numbers_and_the_record(made: Path) -> None:
    record = json.loads((made.parent / "manifest.json").read_text(encoding="utf-8"))
    files = snapshot(made.parent)
    names = {f"figures/{name}.{suffix}" for name in ("one", "two") for suffix in ("pdf", "svg", "png", "csv")}
    assert set(files) == names | {"index.html", "manifest.json", "tables/table-1.csv"}
    written = record["report"]["files"]
    assert written == {n: hashlib.sha256(b).hexdigest() for n, b in files.items() if n != "manifest.json"}
    assert record["seed"] == 0 and record["model"] == {"name": NASTY}
    assert [figure["number"] for figure in record["report"]["figures"]] == [1, 2]
    for file in ("figures/one.csv", "tables/table-1.csv"):
        pd.testing.assert_frame_equal(pd.read_csv(made.parent / file), FRAME)


def test_the_same_report_has_the_same_bytes_and_takes_the_old_ones_place(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "ioi"
    report(out, item("old"))
    (out / ".DS_Store").touch()
    report(out, item("one"), item("two", alt="two bars"))
    assert snapshot(out) == snapshot(made.parent)
    assert [path.name for path in tmp_path.iterdir()] == ["ioi"]


def test_an_interrupted_report_leaves_the_old_one_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "ioi"
    report(out, summary=["old"])
    before = snapshot(out)

    class Broken(pd.DataFrame):
        def __init__(self, error: BaseException) -> None:
            super().__init__()
            self.attrs["error"] = error

        def to_csv(self, *_: object, **__: object) -> None:
            raise self.attrs["error"]

    for error, raised in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left"), OutputError)):
        with pytest.raises(raised):
            report(out, item(frame=Broken(error)))
        assert snapshot(out) == before
    with pytest.raises(InterpError, match="manifest"):
        report(out, manifest={"loss": float("nan")})
    assert snapshot(out) == before

    rename = Path.rename

    def stuck(self: Path, target: Path) -> Path:
        if (self / "index.html").exists() and self.name != "ioi" and not (target.parent / "ioi").exists() and stop:
            stop.pop()
            raise OSError(5, "Input/output error")
        return rename(self, target)

    stop = [True]
    monkeypatch.setattr(Path, "rename", stuck)
    with pytest.raises(OutputError, match="Input/output error"):
        report(out, summary=["new"])
    assert not stop
    assert snapshot(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["ioi"]


def test_only_a_report_of_ours_is_replaced(tmp_path: Path, made: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert check_output(tmp_path / "empty") == tmp_path / "empty"
    assert check_output(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]

    ours = tmp_path / "ours"
    shutil.copytree(made.parent, ours)
    check_output(ours)
    (ours / "figures" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"ours is not replaced.*figures/notes\.txt"):
        report(ours)
    assert (ours / "figures" / "notes.txt").read_text() == "mine"

    for name, content in (("index.html", "<p>mine"), ("manifest.json", '{"name": "an app"}'), ("manifest.json", "[")):
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        (theirs / name).write_text(content)
        with pytest.raises(OutputError, match=f"theirs is not replaced.*{name}"):
            report(theirs)
        assert (theirs / name).read_text() == content
        shutil.rmtree(theirs)


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file is a file"):
        check_output(tmp_path / "file")
    with pytest.raises(OutputError, match="file is a file"):
        check_output(tmp_path / "file" / "report")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="current folder"):
        check_output(".")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder.Path, "mkdir", denied)
    with pytest.raises(OutputError, match="report cannot be written: Permission denied"):
        check_output(tmp_path / "report")


def test_names_that_are_no_file_names_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for items, says in (([item("../up")], "cannot name a figure"), ([item(), item()], "two figures.* named 'bars'")):
        with pytest.raises(InterpError, match=says):
            report(tmp_path / "ioi", *items)
    with pytest.raises(InterpError, match="two sections"):
        report(tmp_path / "ioi", sections=[Section("A", "a"), Section("B", "a")])
    with pytest.raises(UnknownName, match="did you mean 'cells'"):
        report(tmp_path / "ioi", item(view="cels"))
    assert not list(tmp_path.iterdir())


def test_tables_print_numbers_with_the_digits_they_need() -> None:
    frame = pd.DataFrame(
        {"n": [1, -20], "p_value": [0.12345, -2e-7], "large": [1234.5678, 3.0], "ok": [True, False], "gap": [None, 0.5]}
    )
    table = tables.table("caption", frame)
    assert [column.head for column in table.columns] == ["n", "p value", "large", "ok", "gap"]
    assert [column.numeric for column in table.columns] == [True, True, True, False, True]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["1", "0.123", "1234.6", "yes", "–"],
        ["−20", "−2.0 × 10⁻⁷", "3.0", "no", "0.500"],
    ]
    assert [cell.exact for cell in table.rows[1]] == [("-20",), ("-2e-07",), None, None, ("0.5",)]


def test_what_is_the_same_in_all_rows_goes_into_the_caption_and_an_interval_is_one_column() -> None:
    frame = pd.DataFrame(
        {
            "site": ["z", "z"],
            "value": [0.5, -0.25],
            "ci_low": [0.25, -0.5],
            "ci_high": [0.75, float("nan")],
            "p_adjusted": [1e-9, 0.02],
            "reason": ["", ""],
            "n": [32, 32],
        }
    )
    table = tables.table("caption", frame)
    assert table.same == {"site": "z", "n": "32"}
    assert [column.names for column in table.columns] == [("value",), ("ci_low", "ci_high"), ("p_adjusted",)]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["0.500", "[0.250, 0.750]", "<0.001"],
        ["−0.250", "[−0.500, –]", "0.020"],
    ]
    assert table.rows[0][2].exact == ("1e-09",) and table.rows[1][1].exact == ("-0.5", "")
    alone = tables.table("caption", frame.head(1))
    assert alone.same == {} and len(alone.columns) == 6


def test_long_tables_show_their_first_rows() -> None:
    for n, first in ((3, 3), (tables.FIRST + 2, tables.FIRST + 2), (tables.FIRST + 3, tables.FIRST)):
        table = tables.table("caption", pd.DataFrame({"value": range(n)}))
        assert len(table.first) == first and [*table.first, *table.more] == table.rows
    assert not table.wide
    assert tables.table("caption", pd.DataFrame({f"column {at}": [1.5, 2.5] for at in range(16)})).wide


def test_the_page_holds_the_numbers_of_a_frame_in_few_letters() -> None:
    frame = pd.DataFrame(
        {
            "layer": pd.array([0, None, 2], dtype="Int64"),
            "token": [" to", NASTY, None],
            "ok": [True, False, True],
            "value": [0.1, float("nan"), -3.5],
            "p": [1e-300, 0.5, 1.0],
            "site": ["z"] * 3,
        }
    )
    columns = json.loads(json.dumps(stored(frame)))["columns"]

    def read(column: dict[str, Any]) -> list[Any]:
        if "data" not in column:
            return column["values"] * 3
        numbers = np.frombuffer(base64.b64decode(column["data"]), dtype=column["type"])
        return [column["values"][at] for at in numbers] if "values" in column else numbers.tolist()

    assert read(columns["layer"]) == [0, None, 2] and read(columns["token"]) == [" to", NASTY, None]
    assert read(columns["ok"]) == [True, False, True] and read(columns["site"]) == ["z"] * 3
    assert columns["token"]["shown"][0] == "to" and "shown" not in columns["site"]
    np.testing.assert_allclose(read(columns["value"]), frame["value"], rtol=1e-7)
    assert read(columns["p"]) == frame["p"].tolist()  # single precision holds no such number


def test_a_short_svg_looks_the_same_and_a_long_figure_becomes_dots(tmp_path: Path) -> None:
    cells = [(at, pos, f"t{pos}", f"w{at * pos}", 0.1) for at in range(20) for pos in range(20)]
    matrix = pd.DataFrame(cells, columns=["layer", "pos", "token", "top_token", "value"])
    large = figures.lens_table(matrix, y="layer")
    made = report(tmp_path / "out", item("small"), item("large", figure=large, frame=matrix))
    small, dots = (image["src"] or "" for image in Page(made.read_text(encoding="utf-8")).all("img"))
    assert small.startswith("data:image/svg+xml,") and dots.startswith(("data:image/webp;", "data:image/png;"))
    assert len(dots) < (made.parent / "figures" / "large.svg").stat().st_size and len(small) < LONGEST
    svg = '<g id="p1"><path d="M -12.345678 1e-05 L 0.00012345 7"/></g>'
    assert shortened(svg) == '<g id="p1"><path d="M -12.35 1e-05 L 0.0001234 7"/></g>'


def test_what_cannot_be_seen_is_named_and_what_runs_to_the_left_is_isolated(tmp_path: Path) -> None:
    odd = "a\u202eb\x1b\x00 c\u200b שלום, עולם (0.5)"
    frame = pd.DataFrame({"prompt": [f"{odd}\nnext"], "value": [1.0]})
    figure = FigureItem("odd", odd, odd, figures.bars(FRAME, x="component", label="x"), FRAME.assign(token=odd))
    section = Section(odd, "first", [f"{odd} `{odd}`"], [figure], [(odd, frame)], preformatted=f"{odd}\nnext")
    manifest = {"model": {"name": odd}, "command": odd}
    made = write_report(
        tmp_path / "report", title=odd, question=odd, summary=[odd], sections=[section], manifest=manifest
    )
    text = made.read_text(encoding="utf-8")
    assert not set(text) & set("\u202e\x1b\x00\u200b")
    assert text.count("&lt;U+202E&gt;") == text.count("&lt;U+0000&gt;") >= 12
    assert "<bdi>שלום, עולם</bdi> (0.5)⏎\nnext</td>" in text  # a sentence in a cell
    assert "<bdi>שלום</bdi>, <bdi>עולם</bdi> (0.5) <code>" in text  # a list in prose
    assert "(0.5)\nnext</pre>" in text  # line breaks of preformatted text are its own
    before, _, rest = text.partition("<body>")
    rest = rest.partition("<script")[0]
    assert re.sub(r"<bdi>[^<]*</bdi>|(alt|aria-label|aria-labelledby)=\"[^\"]*\"", "", rest).count("שלום") == 0
    assert before.count("שלום") == 1  # a title holds no tags


def test_a_table_that_is_cut_says_of_how_many() -> None:
    frame = pd.DataFrame({"value": range(30)})
    caption, shown = first_rows("Heads", frame, 10)
    assert caption == "Heads (the first 10 of 30)" and shown.equals(frame.head(10))
    assert first_rows("Heads", frame, 30)[0] == "Heads" and first_rows("Heads", frame.head(3), 10)[0] == "Heads"
    assert first_rows("Cells", frame, 10, of=4000)[0] == "Cells (the first 10 of 4,000)"
