"""Compiled models do what their steps say, beside heads that do something else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from interp.circuits.graph import Graph
from interp.errors import ConfigError, UnknownName
from interp.ground_truth.algorithm import Gate, Head, Match, Offset, Read, Step
from interp.ground_truth.compiler import Build, Compiled, compile_steps

D_VOCAB, N_CTX = 6, 9
TOKEN = Read("token")
BUILDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer norm": {"norm": "LN"},
    "RMS norm, grouped queries": {"norm": "RMS", "n_key_value_heads": 2, "idle_heads": 3},
    "rotary": {"positions": "rotary"},
    "rotary, layer norm, grouped queries": {"positions": "rotary", "norm": "LN", "n_key_value_heads": 2},
    "neurons": {"idle_neurons": 5, "seed": 4},
}


def tokens(n: int = 32) -> Tensor:
    return torch.randint(0, D_VOCAB, (n, N_CTX), generator=torch.Generator().manual_seed(1))


def copy_back(*backs: int) -> list[Step]:
    """A head for each distance; the last one's value is the output."""
    names = [*(f"back {at}" for at in range(len(backs) - 1)), "output"]
    values = ["token", *names[:-1]]
    return [Head(f"copy {at}", [Offset(back, 12.0)], Read(values[at]), names[at]) for at, back in enumerate(backs)]


def compiled(steps: list[Step], **build: Any) -> Compiled:
    return compile_steps(steps, d_vocab=D_VOCAB, typical=tokens(), build=Build(**build))


def node(made: Compiled, step: str) -> tuple[int, int]:
    place = Graph.of(made.model).senders[Graph.of(made.model).sender(made.nodes[step])]
    assert place.head is not None
    return place.layer, place.head


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
@pytest.mark.parametrize("back", [0, 1, 3])
def test_an_offset_looks_that_many_tokens_back(build: dict[str, Any], back: int) -> None:
    made = compiled(copy_back(back), **build)
    layer, head = node(made, "copy 0")
    _, cache = made.model.run_with_cache(tokens())
    seen = cache["pattern", layer][:, head].diagonal(-back, -2, -1)  # [prompt, query from back on]
    assert seen.min() > 0.98
    said = made.model(tokens())[:, back:].argmax(-1)
    assert torch.equal(said, tokens()[:, : N_CTX - back])


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_steps_feed_one_another_through_the_stream(build: dict[str, Any]) -> None:
    made = compiled(copy_back(1, 1, 2), **build)
    assert [node(made, f"copy {at}")[0] for at in range(3)] == [0, 1, 2]
    assert (made.model(tokens())[:, 4:].argmax(-1) == tokens()[:, :-4]).float().mean() > 0.97


@pytest.mark.parametrize("norm", [None, "LN", "RMS"])
def test_a_gate_opens_when_all_that_it_reads_is_there(norm: str | None) -> None:
    first, second = 2, 4

    def of(name: str, token: int) -> Read:
        return Read(name, torch.eye(D_VOCAB)[:, [token]].expand(D_VOCAB, D_VOCAB))

    steps = [
        Head("previous", [Offset(1, 12.0)], TOKEN, "previous"),
        Gate("both", [[of("token", second), of("previous", first), Read("token")]], "output"),
    ]
    made = compiled(steps, norm=norm, idle_size=0.0)
    assert made.nodes["both"] == "m0" and made.model.cfg.d_mlp == D_VOCAB
    prompt = torch.tensor([[0, 1, 2, 4, 4, 2, 3, 1, 5], [3, 4, 2, 2, 4, 1, 1, 0, 2]])
    logits = made.model(prompt)
    here = (prompt[:, 1:] == second) & (prompt[:, :-1] == first)
    opened = logits.amax(-1) > 0.5 * made.model.W_U.norm(dim=0).max()
    assert torch.equal(opened[:, 1:], here) and not opened[:, 0].any()
    assert (logits[:, 1:][here].argmax(-1) == second).all()


def test_a_match_compares_what_query_and_key_read() -> None:
    """Attention to earlier occurrences of the same token alone."""
    same = Head("same", [Match(TOKEN, TOKEN, 16.0), Offset(0, -30.0)], Read("position"), "seen")
    said = Head("say", [Offset(0, 12.0)], TOKEN, "output")
    made = compiled([same, said])
    layer, head = node(made, "same")
    _, cache = made.model.run_with_cache(tokens())
    pattern = cache["pattern", layer][:, head]
    earlier = (tokens()[:, :, None] == tokens()[:, None]) & torch.ones(N_CTX, N_CTX).tril(-1).bool()
    has = earlier.any(-1)
    assert has.any() and (pattern * earlier).sum(-1)[has].min() > 0.98


@pytest.mark.parametrize("norm", [None, "LN"])
def test_subspaces_are_apart_and_out_of_the_way_of_centring(norm: str | None) -> None:
    made = compiled(copy_back(1, 1), norm=norm)
    rows = torch.cat(list(made.subspaces.values()))
    assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-5)
    assert rows.sum(-1).abs().max() < 1e-4


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_idle_heads_write_and_are_of_the_size_asked_for(build: dict[str, Any]) -> None:
    sizes = {}
    for idle_size in (0.2, 0.4):
        made = compiled(copy_back(1, 1), **{**build, "idle_size": idle_size})
        _, cache = made.model.run_with_cache(tokens())
        own = {node(made, step) for step in made.nodes}
        written = {
            (layer, head): float(result.detach().norm(dim=-1).mean())
            for layer in range(2)
            for head, result in enumerate(made.model.head_results(layer, cache["z", layer]).unbind(2))
        }
        idle = torch.tensor([size for place, size in written.items() if place not in own])
        assert len(idle) >= 2 and all(written[place] > 0.8 for place in own)
        assert (idle > 0.2 * idle_size).all() and (idle < 3 * idle_size).all()
        sizes[idle_size] = float(idle.mean())
    assert sizes[0.2] < sizes[0.4]


def test_a_seed_makes_the_same_model_and_another_seed_another() -> None:
    one, again, other = (compiled(copy_back(1, 1), seed=seed) for seed in (0, 0, 1))
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name])
    assert not torch.allclose(one.model.W_E, other.model.W_E)
    places = {tuple(compiled(copy_back(1, 1), seed=seed).nodes.values()) for seed in range(8)}
    assert len(places) > 2


def test_steps_may_be_named_in_any_order() -> None:
    steps = copy_back(1, 1, 2)
    made = compiled(steps[::-1])
    assert list(made.nodes) == ["copy 2", "copy 1", "copy 0"]
    assert [node(made, f"copy {at}")[0] for at in range(3)] == [0, 1, 2]


def test_grouped_heads_share_the_keys_of_a_step() -> None:
    made = compiled(copy_back(1), n_key_value_heads=2, idle_heads=3)
    cfg = made.model.cfg
    assert (cfg.n_heads, cfg.n_kv_heads) == (4, 2)
    with pytest.raises(ConfigError, match="n_key_value_heads=1 is too few: some layer has 2 steps"):
        compiled([*copy_back(1), Head("beside", [Offset(2, 9.0)], TOKEN, "other")], n_key_value_heads=1)


@pytest.mark.parametrize(
    ("steps", "build", "error", "says"),
    [
        ([Head("a", [], Read("tokens"), "output")], {}, UnknownName, "read by step 'a' matches 'tokens'; did you mean"),
        (copy_back(1), {"norm": "LNN"}, UnknownName, "no norm matches 'LNN'"),
        (copy_back(1), {"positions": "alibi"}, UnknownName, "no kind of positions matches 'alibi'"),
        ([Head("a", [], TOKEN, "aside")], {}, UnknownName, "no subspace of the output matches 'output'"),
        (
            [Head("a", [], Read("position"), "output")],
            {},
            ConfigError,
            "'output' has 9 channels, and needs one .* 6 tokens",
        ),
        ([Head("a", [], Read("output"), "output")], {}, ConfigError, "steps a wait for one another"),
        ([Head("a", [], Read(None), "output")], {}, ConfigError, "would write a constant"),
        (
            [Head("a", [Match(TOKEN, Read("position"), 1.0)], TOKEN, "output")],
            {},
            ConfigError,
            "combines reads of 6 and 9 channels",
        ),
        (
            [*copy_back(1), Head("b", [], Read("position"), "output")],
            {},
            ConfigError,
            "step 'b' writes 9 channels to subspace 'output', which has 6",
        ),
        (
            [Head("a", [Offset(0, -3.0)], TOKEN, "output")],
            {"positions": "rotary"},
            ConfigError,
            "one Offset, of positive strength",
        ),
    ],
)
def test_steps_that_make_no_model_are_refused(
    steps: list[Step], build: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        compiled(steps, **build)
