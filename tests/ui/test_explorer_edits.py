"""What the explorer can change: parts, positions, states, experts and edges, as texts and in the model's run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from makers import make

import interp
from interp.circuits.graph import Graph
from interp.circuits.paths import arriving, edge_edits, parse_receivers, point, routes
from interp.errors import InterpError
from interp.hooked.model import HookedModel
from interp.ui.explorer.changes import change_of, examples
from interp.ui.explorer.scene import CLEAN, CORRUPT, Scene, pairs_of, resolved
from interp.ui.explorer.script import script_of
from interp.ui.explorer.sight import look, run_of

PROMPT, SECOND = "3 4 5 6 3 4", "3 4 9 6 3 4"
IDS, OTHER = (torch.tensor([[int(one) for one in text.split()]]) for text in (PROMPT, SECOND))


def edited(model: HookedModel, *edits: str) -> torch.Tensor:
    """The logits of a scene's run [pos, d_vocab_out]."""
    variant, pairs = resolved(model, Scene(PROMPT, SECOND, edits))
    with torch.no_grad(), run_of(model, pairs, variant):
        return model(pairs.clean)[0]


def by_hook(model: HookedModel, site: str, change: Any) -> torch.Tensor:
    """The same with a hook that is written out: `change(value, value in the second prompt's run)` works in place."""
    _, cache = model.run_with_cache(OTHER)

    def hook(value: torch.Tensor, hook: Any) -> torch.Tensor:
        new = value.clone()
        change(new, cache[hook.name])
        return new

    with torch.no_grad():
        return model.run_with_hooks(IDS, fwd_hooks=[(site, hook)])[0]


def fill(*at: Any, to: float = 0.0) -> Any:
    def change(value: torch.Tensor, other: torch.Tensor) -> None:
        value[at] = to

    return change


def copy(*at: Any) -> Any:
    def change(value: torch.Tensor, other: torch.Tensor) -> None:
        value[at] = other[at]

    return change


ALL, ATTN, MLP, MIXER = slice(None), "blocks.1.attn.hook_", "blocks.1.mlp.hook_", "blocks.1.mixer.hook_"
CASES = [
    ("llama_gqa", "L1H2:zero", ATTN + "z", fill(ALL, ALL, 2)),
    ("llama_gqa", "L1H2@3:zero", ATTN + "z", fill(ALL, 3, 2)),
    ("llama_gqa", "L1H2@2-4:set:0.5", ATTN + "z", fill(ALL, slice(2, 5), 2, to=0.5)),
    ("llama_gqa", "L1H2@4-end:patch", ATTN + "z", copy(ALL, slice(4, None), 2)),
    ("llama_gqa", "L1H2@end:patch", ATTN + "z", copy(ALL, -1, 2)),
    ("llama_gqa", "L1H2 pattern@5:patch", ATTN + "pattern", copy(ALL, 2, 5)),
    ("llama_gqa", "L1H3 q:patch", "blocks.1.hook_q_input", copy(ALL, ALL, 3)),
    ("llama_gqa", "L1H3 k:patch", "blocks.1.hook_k_input", copy(ALL, ALL, 1)),
    ("llama_gqa", "L1N7:set:-2", MLP + "post", fill(ALL, ALL, 7, to=-2.0)),
    ("llama_gqa", "MLP 1@2:patch", "blocks.1.hook_mlp_out", copy(ALL, 2)),
    ("llama_gqa", "attention 1:zero", "blocks.1.hook_attn_out", fill(ALL)),
    ("llama_gqa", "resid_pre 1@2:patch", "blocks.1.hook_resid_pre", copy(ALL, 2)),
    ("llama_gqa", "embed@2:zero", "hook_embed", fill(ALL, 2)),
    ("experts", "L1E2:zero", MLP + "expert_out", fill(ALL, ALL, 2)),
    ("mamba2", "L1S1:zero", MIXER + "gated", fill(ALL, ALL, 1)),
    ("mamba2", "L1S1 state@2:patch", MIXER + "state", copy(ALL, 2, 1)),
    ("mamba2", "state 1@2:zero", MIXER + "state", fill(ALL, 2)),
    ("mamba", "L1C3 state@2-end:patch", MIXER + "state", copy(ALL, slice(2, None), 3)),
    ("mamba", "mixer 1@1:zero", MIXER + "out", fill(ALL, 1)),
]


@pytest.mark.parametrize(("kind", "edit", "site", "change"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])
def test_a_change_is_what_a_hook_by_hand_does(kind: str, edit: str, site: str, change: Any) -> None:
    model = make(kind)
    expected = by_hook(model, site, change)
    assert not torch.equal(expected, model(IDS)[0])
    torch.testing.assert_close(edited(model, edit), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama_gqa", "gemma2", "mamba2"])
def test_an_edge_is_the_direct_path_of_path_patching(kind: str) -> None:
    model = make(kind)
    graph, pairs = Graph.of(model), pairs_of(model, Scene(PROMPT, SECOND), patched=True)
    senders = [next(node.label for node in graph.senders if node.layer == 0), "embed"]
    targets = {node.label for node in graph.receivers if node.layer == 1 and node.head in (None, 1)} | {"logits"}
    for sender in senders:
        for target in sorted(targets):
            (receivers,) = parse_receivers(target, graph, model)
            at, there = graph.sender(sender), point(graph.receivers[receivers.nodes[0]], model)
            reads = arriving(model, pairs, graph, [at], [there], base=CLEAN, source=CORRUPT)
            edits = routes(model, graph, at, receivers, {there: reads[there][0]})
            with torch.no_grad(), interp.edited(model, pairs, edits, base=CLEAN, source=CORRUPT):
                expected = model(pairs.clean)[0]
            found = edited(model, f"{sender}->{target}:patch")
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_all_senders_give_is_what_a_reader_reads() -> None:
    """Edges add: without any of them the unembedding reads nothing but the biases."""
    model = make("llama_gqa")
    graph = Graph.of(model)
    logits = edited(model, *(f"{node.label}->logits:zero" for node in graph.senders))
    torch.testing.assert_close(logits, torch.zeros_like(logits), rtol=0, atol=1e-3)
    edges = [f"{node.label}->logits:scale:2" for node in graph.senders]  # the final norm takes a factor out again
    torch.testing.assert_close(edited(model, *edges), model(IDS)[0].detach(), rtol=1e-3, atol=1e-3)


def test_an_edge_at_one_position_changes_it_alone() -> None:
    model = make("llama_gqa")
    plain, found = model(IDS)[0], edited(model, "L0H1->logits@3:zero")
    same = (plain - found).abs().amax(-1) < 1e-5
    assert same.tolist() == [at != 3 for at in range(IDS.shape[1])]
    pairs = pairs_of(model, Scene(PROMPT), patched=False)
    assert [edit.where for edit in edge_edits(model, pairs, "L0H1->L1H3", factor=0.0, pos=-1)] == [
        {"pos": -1, "head": 3},
        {"pos": -1, "kv_head": 1},
        {"pos": -1, "kv_head": 1},
    ]


@pytest.mark.parametrize(
    ("kind", "edit", "says"),
    [
        ("llama_gqa", "L0H0@6:zero", "position 6 of a change is beyond the prompt, which has 6 tokens"),
        ("llama_gqa", "L0H0@2-9:zero", "position 9 of a change is beyond"),
        ("llama_gqa", "L0H0@8-end:zero", "position 8 of a change is beyond"),
        ("llama_gqa", "L0H0@4-2:zero", "'4-2' end before they begin"),
        ("llama_gqa", "L0H0@end-2:zero", "'end-2' end before they begin"),
        ("llama_gqa", "L0H0@last:zero", "positions are written @3, @2-4, @3-end or @end"),
        ("llama_gqa", "L0H0@:zero", "positions are written"),
        ("llama_gqa", "L0H0:set:inf", "the value of a change must be a finite number"),
        ("llama_gqa", "L0H0:set", "PART:set:NUMBER"),
        ("llama_gqa", "L0N9999:zero", "neuron 9999 is not one of this model's"),
        ("llama_gqa", "L0S1:zero", "layer 0 has no state-space mixer"),
        ("llama_gqa", "L0KV1:zero", "L0KV1 has no single site"),
        ("llama_gqa", "residpre 0:zero", "no site matches"),
        ("llama_gqa", "L0H1 stat:zero", "no site matches"),
        ("llama_gqa", "L0H1 post:zero", "no axis of 'post' matches 'head'"),
        ("llama_gqa", "L1H0->L0H0 q:zero", "no edge matches 'L1H0->L0H0 q': L0H0 q comes before L1H0"),
        ("llama_gqa", "L1H9->logits:zero", "no sender matches 'L1H9'"),
        ("llama_gqa", "L0H0->L1H0 q:set:1", "and not set"),
        ("llama_gqa", "->:zero", "no sender matches ''"),
        ("vaswani", "L0H0->logits:zero", "edges need a residual stream that is the sum"),
    ],
)
def test_what_a_model_does_not_have_is_refused_in_words(kind: str, edit: str, says: str) -> None:
    model = make(kind)
    with pytest.raises(InterpError) as refused:
        resolved(model, Scene(PROMPT, SECOND, (edit,)))
    assert says in str(refused.value)


@pytest.mark.parametrize("kind", ["llama_gqa", "experts", "mamba", "mamba2"])
def test_what_is_offered_can_be_changed(kind: str) -> None:
    model = make(kind)
    offered = [name for one in examples(model) for name in one["names"]]
    assert offered
    for name in offered:
        change_of(f"{name}:zero").edit(model)


@pytest.mark.parametrize(("beside", "kept"), [("", ()), ("kept", ("L1H3:zero", "L0H0@2:patch")), ("second", ())])
def test_the_script_compares_as_the_page_does(
    beside: str, kept: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    model = make("llama_gqa")
    scene = Scene(PROMPT, SECOND, ("L1H2:scale:3",), kept=kept, beside=beside)
    names: dict[str, Any] = {"model": model}
    monkeypatch.chdir(tmp_path)
    exec(script_of(model, "model", scene).replace("model = model\n", ""), names)
    (part,) = look(model, scene, ["compare"])["parts"]
    for row in part["rows"]:
        found = [float(names[name][int(row["token"])].exp()) for name in ("before", "after")]
        assert found == pytest.approx([row["before"], row["after"]], rel=1e-4)


def test_the_script_makes_the_same_edits(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    model = make("llama_gqa")
    texts = ("L1H2@2-4:set:0.5", "L0N3@end:scale:2", "L0H1->L1H3 q@3:patch", "L0H2->logits:zero", "resid_pre 1@2:patch")
    script = script_of(model, "model", Scene(PROMPT, SECOND, texts)).replace("model = model\n", "")
    names: dict[str, Any] = {"model": model}
    monkeypatch.chdir(tmp_path)
    exec(script, names)
    pairs = names["pairs"]
    expected = edited(model, *texts)
    with torch.no_grad(), interp.edited(model, pairs, interp.Variant(names["edits"]), base=CLEAN, source=CORRUPT):
        torch.testing.assert_close(model(pairs.clean)[0], expected, rtol=1e-4, atol=1e-5)
