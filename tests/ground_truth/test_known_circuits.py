"""Models whose circuit is known: they do their task in every form, and the truth about them is what was built."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from interp import Edit, InterpError, Variant, sweep
from interp.circuits.edge_scores import exact
from interp.circuits.graph import Graph
from interp.errors import UnknownName
from interp.ground_truth.known_circuits import KNOWN, KnownModel, parts, truth
from interp.metrics import measure

FORMS: list[dict[str, Any]] = [
    {"norm": norm, "positions": positions, **grouped}
    for norm, positions, grouped in itertools.product(
        (None, "LN", "RMS"), ("standard", "rotary"), ({}, {"n_key_value_heads": 3, "idle_heads": 4})
    )
]
ABLATIONS = ("corrupt", "zero", "mean", "mean_by_role", "resample")


def said(form: dict[str, Any]) -> str:
    return " ".join(str(value) for value in form.values())


@pytest.mark.parametrize("form", FORMS, ids=said)
@pytest.mark.parametrize("name", KNOWN)
def test_every_form_does_its_task_on_prompts_it_was_not_set_up_on(name: str, form: dict[str, Any]) -> None:
    for seed in range(2):
        known = KNOWN[name](seed=seed, **form)
        pairs = known.prompts(100, seed=7)
        logits = known.model(pairs.clean).detach()[:, -1]
        assert (logits.argmax(-1) == pairs.answers[:, 0]).float().mean() >= 0.98
        assert measure("logit_diff", known.model(pairs.clean).detach(), pairs).mean() > 4


def answer(name: str, tokens: list[int]) -> int:
    """The task done by hand."""
    if name == "induction":
        return tokens[tokens.index(tokens[-1]) + 1]
    if name == "names":
        people = [token for token in tokens if token >= 6]
        return next(token for token in people if people.count(token) == 1)
    marker = 4 if 2 in tokens else 5
    return tokens[tokens.index(marker) + 1]


@pytest.mark.parametrize("name", KNOWN)
def test_prompts_ask_for_what_the_answers_say(name: str) -> None:
    pairs = KNOWN[name]().prompts(60, seed=3)
    flipped = 0
    for row, (clean, corrupt) in enumerate(zip(pairs.clean.tolist(), pairs.corrupt.tolist(), strict=True)):
        right, wrong = pairs.answers[row].tolist()
        assert answer(name, clean) == right and answer(name, corrupt) in (right, wrong) and clean != corrupt
        flipped += answer(name, corrupt) == wrong
    assert flipped == (40 if name == "names" else 60)  # names in the other order leave the answer as it is
    assert KNOWN[name]().prompts(7, seed=3).digest() == pairs[:7].digest()
    assert KNOWN[name]().prompts(7, seed=4).digest() != pairs[:7].digest()


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize(
    ("ablation", "form"),
    [*((ablation, FORMS[0]) for ablation in ABLATIONS), ("corrupt", FORMS[5]), ("zero", FORMS[8])],
    ids=lambda given: given if isinstance(given, str) else said(given),
)
def test_what_changes_the_output_is_what_was_built(name: str, ablation: str, form: dict[str, Any]) -> None:
    known = KNOWN[name](**form)
    frame = truth(known, known.prompts(12), ablation=ablation).set_index(["kind", "name"])
    own = {"input", "logits", *known.steps.values()}
    nodes, edges = frame.loc["node"]["effect"], frame.loc["edge"]["effect"]
    for place in known.steps.values() if ablation != "mean_by_role" else ():  # what a role tells, its mean keeps
        assert nodes[place] > 0.2 and edges[[edge for edge in edges.index if edge.startswith(f"{place}->")]].max() > 0.2
    graph = Graph.of(known.model)
    group = known.model.cfg.n_heads // known.model.cfg.n_kv_heads
    readers = own | {node.name for node in graph.receivers if reader_of(node.name, group) & own}
    aside = [edge for edge in edges.index if edge.split("->")[0] not in own or edge.split("->")[1] not in readers]
    assert len(aside) > 10 and edges[aside].max() < 0.2
    assert (frame["changes"] == (frame["effect"] > 0.1)).all()


def reader_of(name: str, group: int) -> set[str]:
    """The heads that read by a receiver: `a1.kv0<k>` serves all of its group."""
    head = name.split("<")[0]
    if "kv" not in head:
        return {head}
    layer, number = head.split(".kv")
    return {f"{layer}.h{int(number) * group + at}" for at in range(group)}


def test_an_interchange_of_what_is_the_same_is_silent() -> None:
    known = KNOWN["induction"]()
    pairs = known.prompts(12)
    by_position = f"input->{known.steps['previous']}<q>"
    effects = {
        ablation: truth(known, pairs[[0]], ablation=ablation).set_index("name")["effect"][by_position]
        for ablation in ("corrupt", "zero")
    }
    # The first prompt's corruption is at its end alone, where the previous-token head's query does not matter.
    assert effects["corrupt"] < 1e-3 and effects["zero"] > 0.5


@pytest.mark.parametrize("ablation", ["corrupt", "mean", "resample"])
@pytest.mark.parametrize("form", [FORMS[4], FORMS[11]], ids=said)
def test_the_truth_is_what_the_engines_measure_by_another_way(ablation: str, form: dict[str, Any]) -> None:
    known = KNOWN["router"](**form)
    pairs, graph = known.prompts(9), Graph.of(known.model)
    frame = truth(known, pairs, ablation=ablation)
    scores = exact(known.model, pairs, graph=graph, ablation=ablation, progress=False).abs().mean(0)
    edges = frame[frame["kind"] == "edge"]
    expected = [float(scores[graph.edge(name)]) for name in edges["name"]]
    assert edges["value"].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    if ablation == "corrupt":
        nodes = frame[frame["kind"] == "node"]
        cells = [
            Variant([Edit(part.site, {} if part.axis is None else {part.axis: part.head or 0})])
            for part in parts(graph)
        ]
        swept = sweep(known.model, pairs, cells, base="clean", source="corrupt", progress=False)
        change = (swept["value"] - swept["base_value"]).abs().to_numpy().reshape(len(cells), -1).mean(1)
        assert nodes["value"].tolist() == pytest.approx(change.tolist(), rel=1e-3, abs=1e-4)


def test_a_tolerance_and_a_metric_can_be_chosen() -> None:
    known = KNOWN["induction"]()
    pairs = known.prompts(6)
    loose, strict = (truth(known, pairs, tolerance=at, metric="log_prob") for at in (0.0, 0.5))
    assert loose["changes"].sum() > strict["changes"].sum() > 0
    assert torch.tensor(loose["value"]).allclose(torch.tensor(strict["value"]))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"normal": "LN"}, UnknownName, "no option of a build matches 'normal'; did you mean 'norm'"),
        ({"norm": "batch"}, UnknownName, "no norm matches 'batch'"),
        ({"n_key_value_heads": 1}, InterpError, "n_key_value_heads=1 is too few"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        KNOWN["router"](**options)


def test_prompts_are_at_least_one() -> None:
    known: KnownModel = KNOWN["names"]()
    with pytest.raises(InterpError, match="n must be at least 1, not 0"):
        known.prompts(0)
