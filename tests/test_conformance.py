"""Conformance of every family in short, and the measure itself: what is planted is found.

`make conformance` measures all configurations, and writes docs/families.md.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conformance import gradients, parity, runs, sites, table
from conformance.cell import Cell, NotApplicable, difference, measured, worst
from conformance.subject import Subject, configurations

import interp
from interp.errors import InterpError
from interp.weights.huggingface import about
from interp.weights.huggingface.families import FAMILIES

CHECKS = parity.CHECKS | sites.CHECKS | runs.CHECKS | gradients.CHECKS
PAGE = Path(__file__).parent.parent / "docs" / "families.md"


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_wrong_in_any_family(family: str) -> None:
    options = next(iter(configurations(family).values()))
    subject = Subject.of(family, options, thorough=False)
    cells = {name: measured(check, subject) for name, check in CHECKS.items()}
    assert not {name: cell for name, cell in cells.items() if cell.kind == "wrong"}
    assert any(cell.kind == "holds" for cell in cells.values())
    assert type(subject.theirs).__name__ == about.checked_against(family)


def test_the_page_has_every_family_and_nothing_wrong() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert table.families_of(text) == list(FAMILIES)
    assert table.WORDS["wrong"] not in text
    assert about.QUIRKS.keys() <= FAMILIES.keys()
    for row in about.families():
        assert row["family"] and row["family"] in text and row["quirks"] in text


@pytest.fixture(scope="module")
def sound() -> Subject:
    return Subject.of("llama", configurations("llama")["llama-gqa-tied"], thorough=False)


PLANTED = {
    "blocks.0.attn.W_qkv": {"logits", "padding", "generation", "sites", "gradients"},
    "blocks.1.mlp.W_down": {"logits", "padding", "generation", "sites", "gradients"},
    "ln_final.w": {"logits", "padding", "generation", "sites", "gradients"},
}


@pytest.mark.parametrize("weight", PLANTED)
def test_a_changed_weight_is_found_by_every_comparison_with_transformers(sound: Subject, weight: str) -> None:
    ours = interp.load(sound.theirs)
    with torch.no_grad():
        ours.get_parameter(weight).mul_(1.01)
    subject = Subject(sound.family, sound.theirs, ours, thorough=False)
    wide = copy.deepcopy(ours).double()
    object.__setattr__(subject, "wide", Subject(sound.family, sound.wide.theirs, wide, thorough=False))
    cells = {name: measured(check, subject) for name, check in CHECKS.items()}
    assert {name for name, cell in cells.items() if cell.kind == "wrong"} == PLANTED[weight]
    assert weight.split(".")[0] in cells["sites"].told


def test_what_comes_of_a_check() -> None:
    def ends(error: Exception) -> Cell:
        raise error

    assert measured(lambda _: ends(InterpError("no such layer")), None) == Cell("refused", None, "no such layer")
    assert measured(lambda _: ends(NotApplicable("no text")), None) == Cell("does not apply", None, "no text")
    raw = measured(lambda _: ends(KeyError("x")), None)
    assert raw.kind == "wrong" and raw.told.startswith("KeyError: 'x' (ends, line")
    small, large, refused = Cell("holds", 1e-7), Cell("holds", 1e-6, "a note"), Cell("refused", None, "no")
    assert worst([small, large, refused]) == large
    assert worst([small, raw, large]) == raw and worst([refused, refused]) == refused


def test_differences_are_shares_of_the_largest_value() -> None:
    values = torch.tensor([1.0, -4.0, float("-inf")])
    assert difference(values + torch.tensor([0.0, 0.4, 0.0]), values) == pytest.approx(0.1)
    assert difference(torch.tensor([1.0, -4.0, 0.0]), values) == float("inf")
    assert difference(torch.tensor([0.0, float("nan")]), torch.zeros(2)) != 0
    with pytest.raises(AssertionError, match="shapes"):
        difference(torch.zeros(2), torch.zeros(3))


def test_the_page_gets_the_tables(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    cells = {"logits": Cell("holds", 2.34e-7), "sites": Cell("refused", None, "said\nwhy"), "sweep": Cell("wrong")}
    for _ in range(2):
        table.into_page(page, {"llama": cells, "gpt2": cells})
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| `llama` | 2e-07 | refused (1) | **WRONG** |" in text and text.count("\n1. said why\n") == 1
    assert table.families_of(text) == ["llama", "gpt2"]
