"""A bridge over our weights has our logits, and comes back as the model that it was made from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checkpoints import CASES, tiny, tokens_for
from makers import close, encoder_decoder, make

import interp
from interp.errors import ConfigError, WeightsError

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformer_lens and transformers, on what they make
KINDS = ["gpt2", "llama-gqa-tied", "qwen3", "gemma2", "gemma3_text", "olmo2", "phi", "mistral-window", "mamba"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bridge_has_the_same_logits_and_comes_back(kind: str) -> None:
    theirs = tiny(*CASES[kind])
    model = interp.load(theirs)
    bridge = interp.to_bridge(model)
    tokens = tokens_for(theirs, (2, 12))
    with torch.no_grad():
        close(bridge(tokens), model(tokens))
        close(interp.load(bridge)(tokens), model(tokens))
    assert type(bridge).__name__ == "TransformerBridge" and not bridge.original_model.training


def test_a_bridge_shares_no_memory_with_the_model() -> None:
    model = interp.load(tiny(*CASES["gpt2"]))
    before, tokens = model.W_E.detach().clone(), torch.tensor([[1, 2, 3]])
    bridge = interp.to_bridge(model)
    with torch.no_grad():
        for parameter in bridge.original_model.parameters():
            parameter.zero_()
    assert torch.equal(model.W_E, before) and bool(model(tokens).any())


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (lambda: make("attn_only"), "no Hugging Face family computes"),
        (lambda: "gpt2", "takes an interp.GPT, of one stack that writes text, not 'gpt2'"),
        (lambda: encoder_decoder("t5"), "takes an interp.GPT, of one stack that writes text, not EncoderDecoder"),
        (lambda: interp.load(tiny(*CASES["gpt_neox-sequential"])), "makes no bridge of this GPTNeoXForCausalLM"),
        (lambda: interp.load(tiny(*CASES["opt-no-biases"])), "makes no bridge of this OPTForCausalLM"),
    ],
)
def test_what_has_no_bridge_is_refused(source: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        interp.to_bridge(source())


def test_a_bridge_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.loading.to_bridge.TOLERANCE", -1.0)
    with pytest.raises(WeightsError, match=r"differ from the model's by"):
        interp.to_bridge(interp.load(tiny(*CASES["gpt2"])))
