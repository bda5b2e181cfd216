"""Contrasts, states and directions against plain forwards of single prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import make, named_pairs
from torch import Tensor

from interp.directions.classes import contrast
from interp.directions.steering import Direction, between, difference_of_means, difference_of_texts, states, steer
from interp.edits import Variant
from interp.errors import ConfigError, HookError, InterpError, OutputError, PromptError, UnknownName
from interp.models.gpt import GPT
from interp.sweeps.sweep import sweep


@pytest.mark.parametrize(
    ("kind", "site", "where"),
    [
        ("gpt2", "resid_pre", {"layer": 1, "pos": "A"}),
        ("llama_gqa", "z", {"layer": 0, "pos": "END", "head": 2}),
        ("llama_gqa", "v", {"layer": 1, "kv_head": 1}),
        ("attn_only", "z", {"layer": 1, "pos": 1}),
        ("no_norm_relu", "post", {"layer": 0, "pos": -2}),
    ],
)
@pytest.mark.parametrize("side", ["clean", "corrupt"])
def test_states_are_those_of_each_prompt_alone(kind: str, site: str, where: dict[str, Any], side: str) -> None:
    model, pairs = make(kind), named_pairs(5)
    found = states(model, pairs, site, [where, {**where, "layer": 0}], side=side)
    for i, n in enumerate(pairs.lengths.tolist()):
        _, cache = model.run_with_cache(getattr(pairs, side)[i : i + 1, :n])
        at = int(pairs.positions(where.get("pos", -1))[i, 0])
        for place, layer in enumerate((where["layer"], 0)):
            value = cache[site, layer][0, at]
            head = where.get("head", where.get("kv_head"))
            torch.testing.assert_close(found[place, i], value if head is None else value[head], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("site", "where", "error", "says"),
    [
        ("pattern", {"layer": 0}, PromptError, "has no .pos. axis"),
        ("resid_pre", {"layer": 0, "pos": [0, 1]}, PromptError, "at a single position"),
        ("resid_pre", {"layer": 0, "head": 1}, UnknownName, "axis of 'resid_pre'"),
        ("resid_pre", {"layer": 5}, UnknownName, "layer 5"),
        ("resid_pre", {"layer": 0, "pos": "B"}, UnknownName, "no role matches 'B'"),
    ],
)
def test_states_that_are_nowhere_are_refused(
    site: str, where: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        states(make("gpt2"), named_pairs(), site, [where])


def test_a_difference_of_means_is_that_of_the_classes() -> None:
    model, pairs = make("llama_gqa"), named_pairs(6)
    made = difference_of_means(model, pairs, where={"layer": 1, "pos": "END"})
    read = {
        side: states(model, pairs, "resid_pre", [{"layer": 1, "pos": "END"}], side=side)[0]
        for side in ("clean", "corrupt")
    }
    told = contrast(model, pairs)
    first = [read[side][i] for side, of in told.sides.items() for i in range(6) if of[i] == 0]
    second = [read[side][i] for side, of in told.sides.items() for i in range(6) if of[i] == 1]
    torch.testing.assert_close(made.vector, torch.stack(first).mean(0) - torch.stack(second).mean(0))
    assert made.made["contrast"] == "order" and made.norm == pytest.approx(float(made.vector.norm()))
    other_way = [(1 - a, 1 - b) for a, b in zip(*told.sides.values(), strict=True)]
    reverse = difference_of_means(model, pairs, where={"layer": 1, "pos": "END"}, labels=other_way)
    torch.testing.assert_close(reverse.vector, -made.vector)
    with pytest.raises(PromptError, match="none is of class 'right answer first'"):
        between(read["clean"], np.ones(6, dtype=np.int64), told)


def test_texts_need_not_pair_up(talker: Path) -> None:
    import interp

    model = interp.load(talker, device="cpu")
    made = difference_of_texts(model, ["John gave", "Mary and John"], ["the store"], where={"layer": 1})
    ends = [
        model.run_with_cache(text)[1]["resid_pre", 1][0, -1] for text in ("John gave", "Mary and John", "the store")
    ]
    torch.testing.assert_close(made.vector, (ends[0] + ends[1]) / 2 - ends[2], rtol=1e-4, atol=1e-5)


def test_a_direction_that_was_saved_is_the_same(tmp_path: Path) -> None:
    model = make("llama_gqa")
    made = difference_of_means(model, named_pairs(), "z", where={"layer": 1, "head": 3, "pos": "END"})
    assert list(made.vector.shape) == [4] and made.where == {"layer": 1, "head": 3}
    made.save(tmp_path / "one.safetensors")
    again = Direction.load(tmp_path / "one.safetensors")
    assert torch.equal(again.vector, made.vector)
    assert (again.site, again.layer, again.head, again.made) == (made.site, made.layer, made.head, made.made)
    with pytest.raises(OutputError, match="a direction cannot be written"):
        made.save(tmp_path / "missing" / "one.safetensors")
    (tmp_path / "none").write_text("nothing")
    with pytest.raises(InterpError, match="cannot read a direction"):
        Direction.load(tmp_path / "none")
    with pytest.raises(InterpError, match="cannot read a direction"):
        Direction.load(tmp_path / "missing")


@pytest.mark.parametrize("site", ["resid_pre", "z", "mlp_out"])
def test_steering_adds_the_vector_where_it_says(model: GPT, tokens: Tensor, site: str) -> None:
    if site == "mlp_out" and model.cfg.attn_only:
        pytest.skip("this model has no MLP")
    shape = {"resid_pre": (16,), "z": (model.cfg.n_heads, 4), "mlp_out": (16,)}[site]
    direction = Direction(torch.randn(shape), site, 1)
    name = direction.edit().name(model.cfg)
    for pos, rows in (("all", slice(None)), ("last", slice(-1, None))):

        def added(value: Tensor, hook: object, rows: slice = rows) -> Tensor:
            new = value.clone()
            new[:, rows] = new[:, rows] - 2 * direction.vector
            return new

        with steer(model, direction, -2.0, pos=pos):
            steered = model(tokens)
        torch.testing.assert_close(steered, model.run_with_hooks(tokens, fwd_hooks=[(name, added)]))
    assert torch.equal(model(tokens), model(tokens)) and not model.hook_dict[name].has_hooks


def test_one_heads_direction_changes_that_head_alone(tokens: Tensor) -> None:
    model = make("llama_gqa")
    direction = Direction(torch.ones(4), "z", 1, ("head", 2))
    with steer(model, direction, 3.0):
        _, cache = model.run_with_cache(tokens)
    change = cache["z", 1] - model.run_with_cache(tokens)[1]["z", 1]
    assert torch.allclose(change[:, :, 2], torch.full_like(change[:, :, 2], 3.0), atol=1e-5)
    assert torch.equal(change[:, :, [0, 1, 3]], torch.zeros_like(change[:, :, [0, 1, 3]]))


def test_an_edit_of_a_sweep_and_steering_are_the_same() -> None:
    model, pairs = make("neox"), named_pairs()
    direction = difference_of_means(model, pairs, where={"layer": 1})
    frame = sweep(model, pairs, [Variant([direction.edit(1.5)])], "logit", progress=False)
    for i, n in enumerate(pairs.lengths.tolist()):
        with steer(model, direction, 1.5):
            logits = model(pairs.corrupt[i : i + 1, :n])
        assert frame["value"][i] == pytest.approx(
            float(logits[0, -1, pairs.answers[i, 0]].detach()), rel=1e-4, abs=1e-5
        )


@pytest.mark.parametrize("kind", ["gpt2", "llama_gqa"])
def test_generation_is_steered_at_every_step(kind: str, tokens: Tensor) -> None:
    model, start = make(kind), tokens[:, :5]
    direction = Direction(4 * torch.randn(16), "resid_pre", 1)
    with steer(model, direction):
        kept = model.generate(start, 6, do_sample=False, stop_at_eos=False)
        again = model.generate(start, 6, do_sample=False, stop_at_eos=False, use_past_kv_cache=False)
    assert torch.equal(kept, again)

    def from_the_end(value: Tensor, hook: object) -> Tensor:
        on = (torch.arange(value.shape[1]) >= 4)[:, None]
        return value + on * direction.vector

    naive = start
    for _ in range(6):
        logits = model.run_with_hooks(naive, fwd_hooks=[("blocks.1.hook_resid_pre", from_the_end)])
        naive = torch.cat([naive, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    with steer(model, direction, pos="last"):
        assert torch.equal(model.generate(start, 6, do_sample=False, stop_at_eos=False), naive)
    assert not torch.equal(naive, model.generate(start, 6, do_sample=False, stop_at_eos=False))


def test_directions_of_another_model_are_refused(tokens: Tensor) -> None:
    model, here = make("gpt2"), Direction(torch.ones(16), "resid_pre", 0)
    says = r"shape \[7\], and site 'blocks.1.hook_resid_pre' of this model needs \[16\]"
    with pytest.raises(ConfigError, match=says), steer(model, Direction(torch.ones(7), "resid_pre", 1)):
        model(tokens)
    with pytest.raises(UnknownName, match="layer 9"), steer(model, Direction(torch.ones(16), "resid_pre", 9)):
        pass
    with pytest.raises(UnknownName, match="no pos matches 'end'"), steer(model, here, pos="end"):
        pass
    with pytest.raises(HookError, match="never ran"), steer(model, here):
        pass
