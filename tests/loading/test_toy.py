"""The toy model that comes with the package: it copies by induction, and its training does what it says."""

from __future__ import annotations

import math

import torch

import interp
from interp.loading.toy import train


def test_the_toy_model_copies_by_a_previous_token_head_and_induction_heads() -> None:
    model = interp.load("toy", device="cpu")
    assert model.cfg == train.CFG and model.tokenizer is None
    tokens = train.repeated(32, 20, torch.Generator().manual_seed(99))
    assert float(train.copying_loss(model, tokens).detach()) < 0.1 < math.log(63)
    _, cache = model.run_with_cache(tokens, names_filter="*pattern")
    previous = cache["pattern", 0].diagonal(-1, 2, 3).mean((0, 2))  # [head]
    back = cache["pattern", 1].diagonal(-19, 2, 3)[..., 2:].mean((0, 2))  # from a token to what followed it before
    assert float(previous.max()) > 0.5 and float(back.max()) > 0.5
    head = int(previous.argmax())

    def cut(z: torch.Tensor, hook: object) -> torch.Tensor:
        return torch.cat([z[:, :, :head], 0 * z[:, :, head : head + 1], z[:, :, head + 1 :]], dim=2)

    with model.hooks([("blocks.0.attn.hook_z", cut)]):
        assert float(train.copying_loss(model, tokens).detach()) > 1


def test_training_lowers_the_loss_and_is_repeatable() -> None:
    tokens = train.repeated(16, 12, torch.Generator().manual_seed(7))
    first, again = train.train(8), train.train(8)
    assert torch.equal(first.W_E, again.W_E)
    untrained = float(train.copying_loss(interp.GPT(train.CFG), tokens).detach())
    assert float(train.copying_loss(first, tokens).detach()) < untrained
