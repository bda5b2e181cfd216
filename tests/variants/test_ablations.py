"""What stands for an activation that is taken away, against its definition in plain loops."""

from __future__ import annotations

import pytest
import torch
from makers import make, pairs_of

from interp.errors import InterpError, PromptError, UnknownName
from interp.prompts.pairs import PromptPairs
from interp.variants.ablations import ABLATIONS, replacements, resampled

NAMES = ["blocks.1.attn.hook_z", "blocks.0.hook_mlp_out"]


@pytest.mark.parametrize("run", ["clean", "corrupt"])
@pytest.mark.parametrize("kind", list(ABLATIONS))
def test_replacements_are_what_their_kind_says(kind: str, run: str) -> None:
    model, pairs = make("llama_gqa"), pairs_of(6, 4, 6, 4, 6)
    made = replacements(model, pairs, NAMES, kind, run=run, seed=3)
    assert list(made) == NAMES
    _, cache = model.run_with_cache(getattr(pairs, run), attention_mask=pairs.mask)
    roles = [{place: role for role, place in named.items()} for named in pairs.roles]
    partner = resampled(pairs, 3).tolist()
    for name, value in made.items():
        run_value = cache[name].detach()
        for prompt, length in enumerate(pairs.lengths.tolist()):
            for pos in range(length):
                if kind == "zero":
                    expected = torch.zeros_like(run_value[0, 0])
                elif kind == "corrupt":
                    expected = run_value[prompt, pos]
                elif kind == "resample":
                    expected = run_value[partner[prompt], pos]
                else:
                    places = [(p, i) for p, n in enumerate(pairs.lengths.tolist()) for i in range(n)]
                    if kind == "mean":
                        alike = [at for at in places if at[1] == pos]
                    else:
                        alike = [at for at in places if roles[at[0]].get(at[1]) == roles[prompt].get(pos)]
                    expected = torch.stack([run_value[at] for at in alike]).mean(0)
                assert torch.allclose(value[prompt, pos], expected, atol=1e-5)


def test_resampling_keeps_no_prompts_own_value_and_no_generator() -> None:
    pairs = pairs_of(*(6, 4) * 8)
    state = torch.get_rng_state()
    partner = resampled(pairs, 1)
    assert sorted(partner.tolist()) == list(range(16)) and (partner != torch.arange(16)).all()
    assert torch.equal(pairs.lengths[partner], pairs.lengths)
    assert not torch.equal(partner, resampled(pairs, 2)) and torch.equal(state, torch.get_rng_state())


def test_what_cannot_stand_for_it_is_refused() -> None:
    model, pairs = make("gpt2"), pairs_of(6, 4, 6)
    bare = PromptPairs.from_tokens([[1, 2]], [[1, 3]], answers=[(0, 1)])
    with pytest.raises(UnknownName, match="did you mean 'mean'"):
        replacements(model, pairs, NAMES, "means")
    with pytest.raises(UnknownName, match="side"):
        replacements(model, pairs, NAMES, run="base")
    with pytest.raises(PromptError, match="prompt 1 is the only one of 4 tokens"):
        replacements(model, pairs, NAMES, "resample")
    with pytest.raises(PromptError, match="these have none"):
        replacements(model, bare, NAMES, "mean_by_role")
    with pytest.raises(InterpError, match="averages over positions"):
        replacements(model, pairs, ["blocks.0.attn.hook_pattern"], "mean_by_role")
    with pytest.raises(UnknownName, match="hook_zz"):
        replacements(model, pairs, ["blocks.0.attn.hook_zz"])
