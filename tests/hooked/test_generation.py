"""Generation: kept keys change nothing, sampling follows its distribution, hooks run, prompts of different lengths."""

from __future__ import annotations

import pytest
import torch
from makers import CAUSAL, RECURRENT, make
from torch import Tensor

from interp.errors import PromptError
from interp.heads.from_patterns import evenly, links
from interp.hooked.generation import sample
from interp.hooked.past import PastKeyValues

CONTINUED = [kind for kind in (*CAUSAL, *RECURRENT) if kind != "attn_only"]


@pytest.mark.parametrize("kind", CONTINUED)
def test_kept_keys_give_what_running_everything_again_gives(kind: str, tokens: Tensor) -> None:
    model = make(kind)
    kept = model.generate(tokens, 8, do_sample=False)
    again = model.generate(tokens, 8, do_sample=False, use_past_kv_cache=False)
    assert kept.shape == (3, 15) and torch.equal(kept, again)
    for step in range(7, 15):
        assert torch.equal(model(kept[:, :step])[:, -1].argmax(-1), kept[:, step])
    drawn = [model.generate(tokens, 8, seed=4, top_k=5, top_p=0.9, use_past_kv_cache=use) for use in (True, False)]
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], model.generate(tokens, 8, seed=5, top_k=5, top_p=0.9))


@pytest.mark.parametrize("kind", ["gpt2", "llama_gqa", "alibi", *RECURRENT])
def test_prompts_padded_on_the_left_continue_as_alone(kind: str, tokens: Tensor) -> None:
    model = make(kind)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, :4] = False
    mask[1, :6] = False
    batch = model.generate(tokens, 6, do_sample=False, attention_mask=mask)
    for row, start in enumerate((4, 6, 0)):
        alone = model.generate(tokens[row : row + 1, start:], 6, do_sample=False)
        assert torch.equal(batch[row, start:], alone[0])
    with pytest.raises(PromptError, match="on the left"):
        model.generate(tokens, 2, attention_mask=mask.flip(1))


def test_a_prompt_ends_at_its_end_token(tokens: Tensor) -> None:
    model = make("gpt2")
    free = model.generate(tokens, 10, do_sample=False, stop_at_eos=False)
    stop = int(free[0, 8])
    ended = model.generate(tokens, 10, do_sample=False, eos_token_id=stop)
    assert torch.equal(ended[0, :9], free[0, :9]) and bool((ended[0, 9:] == stop).all())
    assert ended.shape[1] <= 17
    assert model.generate(tokens[:1], 10, do_sample=False, eos_token_id=stop).shape[1] == 9


def test_hooks_run_at_every_step(tokens: Tensor) -> None:
    model = make("llama_gqa")
    seen: list[tuple[int, ...]] = []
    with model.hooks([("blocks.1.attn.hook_pattern", lambda x, hook: seen.append(tuple(x.shape)))]):
        model.generate(tokens, 3, do_sample=False)
    assert seen == [(3, 4, 7, 7), (3, 4, 1, 8), (3, 4, 1, 9)]
    plain = model.generate(tokens, 8, do_sample=False)
    with model.hooks([("blocks.*.hook_mlp_out", lambda x, hook: -5 * x)]):
        assert not torch.equal(model.generate(tokens, 8, do_sample=False), plain)
    assert torch.equal(model.generate(tokens, 0), tokens)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    generator = torch.Generator().manual_seed(0)

    def frequency(**options: float) -> Tensor:
        draws = sample(logits.expand(20000, -1), generator=generator, **options)
        return draws.bincount(minlength=4) / 20000

    p = logits[0].softmax(-1)
    torch.testing.assert_close(frequency(), p, rtol=0, atol=0.015)
    torch.testing.assert_close(frequency(temperature=0.5), (2 * logits[0]).softmax(-1), rtol=0, atol=0.015)
    torch.testing.assert_close(frequency(top_k=2), torch.cat([p[:2] / p[:2].sum(), torch.zeros(2)]), rtol=0, atol=0.015)
    nucleus = float(p[:2].sum()) - 0.01  # the smallest set that holds this is the first two
    torch.testing.assert_close(frequency(top_p=nucleus), frequency(top_k=2), rtol=0, atol=0.02)
    assert frequency(top_p=1e-6)[0] == 1 and frequency(temperature=0)[0] == 1


def test_the_global_generator_is_left_alone_by_a_seed(tokens: Tensor) -> None:
    state = torch.get_rng_state()
    make("gpt2").generate(tokens, 3, seed=1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_options_out_of_range_are_refused(options: dict[str, float], tokens: Tensor) -> None:
    with pytest.raises(PromptError, match=next(iter(options))):
        make("gpt2").generate(tokens, 1, **options)


def test_the_context_is_not_overrun(tokens: Tensor) -> None:
    with pytest.raises(PromptError, match="context of 24"):
        make("gpt2").generate(tokens, 40, do_sample=False)


def test_a_mask_is_read_as_every_forward_reads_it() -> None:
    model = make("llama")
    tokens = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]])
    mask = torch.tensor([[False, False, True, True], [True] * 4])
    expected = model.generate(tokens, 4, do_sample=False, attention_mask=mask)
    added = torch.zeros(2, 4).masked_fill(~mask, float("-inf"))
    for same in (mask.tolist(), mask.long(), mask.float(), mask.numpy()):
        assert torch.equal(model.generate(tokens, 4, do_sample=False, attention_mask=same), expected)
        torch.testing.assert_close(model(tokens, attention_mask=same), model(tokens, attention_mask=mask))
    calls = (
        lambda m: model.generate(tokens, 4, attention_mask=m),
        lambda m: model(tokens, attention_mask=m),
        lambda m: model.run_with_cache(tokens, attention_mask=m),
        lambda m: links(tokens, m),
        lambda m: evenly(torch.ones(2, 4, 4, dtype=torch.bool), causal=True, mask=m),
    )
    for call in calls:
        call(mask)
        with pytest.raises(PromptError, match="not -inf; this looks like one that is added to scores"):
            call(added)
    with pytest.raises(PromptError, match=r"attention_mask has shape \[2, 3\], expected \[batch, pos\] = \[2, 4\]"):
        model.generate(tokens, 4, attention_mask=mask[:, 1:])


def test_a_model_that_looks_ahead_keeps_nothing(tokens: torch.Tensor) -> None:
    model = make("bidirectional")
    free = model.generate(tokens, 4, do_sample=False, use_past_kv_cache=False)
    assert torch.equal(model.generate(tokens, 4, do_sample=False), free)
    with pytest.raises(PromptError, match="past_kv_cache needs causal attention"):
        model(tokens, past_kv_cache=PastKeyValues(model.cfg.n_layers))
