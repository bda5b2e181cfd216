"""The drawing of a mechanism is the circuit of a model whose circuit is known, nothing else; of noise it is empty."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from makers import make

from analyses import report
from interp import figures
from interp.ground_truth.known_circuits import BUILDS, KNOWN, KnownModel
from interp.names import Part
from interp.prompts.pairs import PromptPairs
from interp.study import behaviour as doing
from interp.study.mechanism import evidence
from interp.study.mechanism.conclusion import Made, conclusion
from interp.study.mechanism.drawn import Mechanism, mechanism
from interp.study.mechanism.evidence import MOST_PARTS, Layout
from interp.study.mechanism.methods import by_method
from interp.study.mechanism.told import description, in_short, sentences

STUDIES = ["head-attribution", "ablation", "activation-patching", "attention-patterns", "path-patching"]
PATHS = {
    "induction": {("previous", "induction", "k")},
    "names": {("duplicate", "inhibition", "v"), ("inhibition", "mover", "q")},
    "router": {("previous", "left", "k"), ("previous", "right", "k"), ("left", "gate", ""), ("right", "gate", ""),
               ("switch", "gate", "")},
}  # fmt: skip
WRITERS = {"induction": "induction", "names": "mover", "router": "gate"}
LOOKS = {
    "induction": {("previous", "B", "A"), ("previous", "D", "C"), ("induction", "END", "B")},
    "names": {("duplicate", "S2", "S1"), ("inhibition", "END", "S2"), ("mover", "END", "IO")},
    "router": {("previous", "A", "L"), ("previous", "B", "R"), ("left", "END", "A"), ("right", "END", "B"),
               ("switch", "END", "switch")},
}  # fmt: skip


def tables(model: Any, pairs: PromptPairs) -> dict[str, pd.DataFrame]:
    """What the studies of a report measure."""
    results = {"behaviour": doing.behaviour(model, pairs)}
    for module in report.chosen_studies(STUDIES):
        results[module.__name__.rpartition(".")[2]] = module.report(model, pairs, results, progress=False).frame
    return results


@functools.cache
def known(name: str, build: int = 0) -> tuple[KnownModel, PromptPairs, dict[str, pd.DataFrame]]:
    """A known model, pairs of prompts whose answers differ, and what the studies measure."""
    one = KNOWN[name](**BUILDS[build])
    pairs = one.prompts(36)
    # Names in the other order leave the answer as it is: such a pair has no difference to explain.
    pairs = pairs[[at for at in range(36) if at % 3 != 1]] if name == "names" else pairs
    return one, pairs, tables(one.model, pairs)


def drawn(name: str, build: int = 0, **without: Any) -> tuple[Mechanism, dict[str, str]]:
    """Its mechanism, and part -> step."""
    one, pairs, results = known(name, build)
    results = {study: frame for study, frame in results.items() if study not in without}
    steps = {Part.parse(node).name: step for step, node in one.steps.items()}
    return mechanism(results, Layout.of(pairs, one.model)), steps


def rows(found: Mechanism, kind: str) -> list[Any]:
    return list(found.frame[found.frame["kind"] == kind].itertuples())


@pytest.mark.parametrize(("name", "build"), [("induction", 0), ("names", 1), ("router", 0)])
def test_the_drawing_is_the_known_circuit(name: str, build: int) -> None:
    found, step = drawn(name, build)
    assert set(found.parts) == set(step) and found.passed == len(step) and not found.left_out
    paths = {(step[row.component], step[to], row.reads) for row in rows(found, "path") for to in row.to.split(" + ")}
    assert paths == PATHS[name]
    assert {step[row.component] for row in rows(found, "direct")} == {WRITERS[name]}
    assert {(step[row.component], row.role, row.to) for row in rows(found, "look")} == LOOKS[name]
    assert all(row.share > 0 for row in rows(found, "part")) and len(sentences(found)) == len(step)


@pytest.mark.slow
def test_with_rotary_positions_the_names_circuit_has_one_step_more() -> None:
    found, step = drawn("names", 2)
    assert set(found.parts) == set(step)
    paths = {(step[row.component], step[to], row.reads) for row in rows(found, "path") for to in row.to.split(" + ")}
    assert paths == PATHS["names"] | {("previous", "duplicate", "v")}


def test_sentences_have_the_numbers_of_the_tables() -> None:
    found, step = drawn("induction")
    previous, inducing = found.parts
    (path,), (direct,) = rows(found, "path"), rows(found, "direct")
    first, second = sentences(found)
    assert step[previous] == "previous" and first.startswith(f"{previous} (")
    assert f"feeds the keys of {inducing} ({path.value:+.0%} [{path.ci_low:.0%}, {path.ci_high:.0%}])" in first
    assert f"adds {direct.value:+.2f} [{direct.ci_low:.2f}, {direct.ci_high:.2f}] to the logit difference" in second
    written, looks, fed = in_short(found)
    assert f"{inducing} (" in written and "writes for the right answer" in written and "{figure:mechanism}" in written
    assert f"{inducing} looks from `END` at `B`" in looks and f"{previous} looks from `B` at `A`" in looks
    assert fed.startswith(f"{previous} (") and f"feeds the keys of {inducing}." in fed
    assert "`" not in description(found) and "Percentages" not in description(found)


def test_a_summary_says_who_writes_against_the_answer_and_joins_what_feeds_the_same_parts() -> None:
    ends = {"role": "END", "ci_low": 0.1, "ci_high": 0.4, "share": 0.2}
    rows_of = [("direct", "L2H0", "answer", "", 2.0), ("direct", "L2H1", "answer", "", -1.0)]
    rows_of += [("path", "MLP 0", "L2H0 + L2H1", "v", 0.3), ("path", "L1H0", "L2H0 + L2H1", "v", 0.2)]
    frame = pd.DataFrame(rows_of, columns=["kind", "component", "to", "reads", "value"]).assign(**ends)
    written, fed = in_short(Mechanism(Layout(("END",), ("to",), "END"), frame, 4))
    assert (
        "L2H0 (+2.00 [0.10, 0.40]) writes for the right answer; L2H1 (-1.00" in written
        and "writes against it" in written
    )
    assert fed.startswith("MLP 0 (+30% [10%, 40%]) and L1H0 (+20% [10%, 40%]) feed the values of L2H0 and L2H1.")


def test_of_nested_sets_of_receivers_the_smaller_is_drawn_where_it_is_as_strong() -> None:
    columns = ["sender", "receiver", "reads", "value", "ci_low", "ci_high"]
    wide, narrow = ("L0H0", "L1H0 + L2H0", "v", 0.11, 0.08, 0.14), ("L0H0", "L2H0", "v", 0.10, 0.08, 0.12)
    other = ("L0H0", "L2H0", "q", 0.5, 0.4, 0.6)
    kept = evidence._narrowest(pd.DataFrame([other, wide, narrow], columns=columns))
    assert list(kept["receiver"]) == ["L2H0", "L2H0"] and list(kept["reads"]) == ["q", "v"]
    weak = (*narrow[:3], 0.05, 0.03, 0.07)
    assert len(evidence._narrowest(pd.DataFrame([wide, weak], columns=columns))) == 2


def test_a_study_that_was_not_made_leaves_its_arrows_out_and_is_named() -> None:
    found, _ = drawn("induction", path_patching=None)
    assert not rows(found, "path") and rows(found, "direct")
    assert sentences(found)[-1] == "Not measured, and so not drawn: which part feeds another (`path-patching`)."
    found, _ = drawn("induction", head_attribution=None, attention_patterns=None)
    assert not rows(found, "direct") and not rows(found, "look") and rows(found, "path")
    assert "`head-attribution`" in sentences(found)[-1] and "`attention-patterns`" in sentences(found)[-1]
    found, _ = drawn("induction", activation_patching=None, ablation=None)
    assert found.frame.empty and "`activation-patching`" in found.says


def test_of_noise_nothing_is_drawn() -> None:
    one, pairs, results = known("induction")
    rng = np.random.default_rng(0)
    noisy = dict(results)
    for study in ("ablation", "activation_patching", "path_patching"):
        frame = results[study]
        noisy[study] = frame.assign(effect=rng.normal(0, 1, len(frame)))
    found = mechanism(noisy, Layout.of(pairs, one.model))
    assert found.frame.empty and found.says.startswith("Nothing is drawn: no part of the model")
    assert sentences(found) == in_short(found) == [found.says]


@pytest.mark.parametrize("kind", ["gpt2", "mamba", "mamba2"])
def test_of_a_random_model_nothing_is_drawn(kind: str) -> None:
    model = make(kind)
    pairs = KNOWN["induction"]().prompts(16)
    found = mechanism({"behaviour": doing.behaviour(model, pairs)}, Layout.of(pairs, model))
    assert found.frame.empty and "does not do the task" in found.says


def planted(n: int = 8, many: int = 30) -> dict[str, pd.DataFrame]:
    """Tables in which many heads count, of a model that does its task."""
    prompts = np.arange(n)
    side = [("clean", "logit_diff", 4.0), ("corrupt", "logit_diff", -4.0), ("clean", "correct", 1.0)]
    told = [(name, at, metric, value, "x") for name, metric, value in side for at in prompts]
    doing_it = pd.DataFrame(told, columns=["side", "prompt", "metric", "value", "says"])
    cells = pd.DataFrame([(layer, head, at) for layer in range(many // 3) for head in range(3) for at in prompts],
                         columns=["layer", "head", "prompt"])  # fmt: skip
    cells = cells.assign(
        direction="denoise", site="z", role=None, metric="logit_diff", base_value=-4.0, source_value=4.0
    )
    effect = 0.06 + 0.01 * cells["layer"] + 0.001 * (cells["prompt"] % 3)
    return {
        "behaviour": doing_it,
        "activation_patching": cells.assign(effect=effect, value=8 * effect - 4, rounding=1e-5),
    }


def test_of_many_parts_the_strongest_are_drawn_and_the_rest_counted() -> None:
    layout = Layout(("last position",), ("x",), "last position")
    found = mechanism(planted(), layout)
    assert len(found.parts) == MOST_PARTS and found.passed == 30
    assert found.parts[0].startswith("L6") and set(found.frame["role"]) == {""}
    assert "18 weaker parts also passed the tests and are not drawn." in sentences(found)


def test_too_few_prompts_are_said_and_nothing_is_drawn() -> None:
    found = mechanism(planted(n=4), Layout(("last position",), ("x",), "last position"))
    assert (
        found.frame.empty and found.says == "Nothing is drawn: 4 prompts cannot tell whether the model does the task."
    )


def test_the_table_of_methods_has_what_each_finds_and_the_conclusion_what_is_open() -> None:
    _, _, results = known("induction")
    found, step = drawn("induction")
    named = pd.DataFrame()
    named.attrs["parts"] = dict.fromkeys(found.parts, "in it")
    table = by_method({**results, "circuit": named})
    assert set(table["part"]) == set(step)
    first = table.iloc[0]
    assert step[first["part"]] == "induction" and first["methods"] == 4
    assert table["lost when ablated"].notna().all()
    held = pd.DataFrame({"check": ["a sum", "parity"], "result": ["FAILS", "not checked"]})
    paragraphs = conclusion(found, table, Made("induction", 8, held, {"probes": "no classes"}, ["steering"]))
    established, open_, then = paragraphs
    assert "2 parts of the model move the answer" in established and "1 path between them" in established
    assert "These checks failed: a sum." in open_ and "Not checked: parity." in open_ and "`steering`" in open_
    assert "--n 32" in then


@pytest.mark.parametrize("name", ["induction", "router"])
def test_every_part_stands_in_the_picture_once_for_each_of_its_roles(name: str) -> None:
    found, _ = drawn(name)
    layout = found.layout
    figure = figures.mechanism(
        found.frame, roles=dict(zip(layout.roles, layout.tokens, strict=True)), answer=layout.answer, right=layout.right
    )
    written = [text.get_text() for text in figure.axes[0].texts]
    for part in found.parts:
        assert written.count(part) == sum(row.component == part for row in rows(found, "part"))
    assert f"answer: {layout.right}" in written and all(role in written for role in layout.roles)
    assert len([text for text in written if text.startswith("looks ")]) == len(LOOKS[name])


def test_an_empty_drawing_says_why() -> None:
    empty = pd.DataFrame(columns=["kind", "component", "role", "to", "reads", "share", "value"])
    figure = figures.mechanism(empty, roles={"END": "to"}, answer="END", says="Nothing is drawn: there is nothing.")
    written = [text.get_text() for text in figure.axes[0].texts]
    assert "Nothing is drawn: there is nothing." in written and "END" in written and "answer" in written
