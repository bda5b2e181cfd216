"""`model.test_prompt`: its ranks, logits and probabilities are those of plain forwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from interp.config import STACKS
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import PromptError
from interp.models.encoder import Encoder
from tests.makers import encoder_decoder, make
from tests.vocabularies import names_tokenizer, reader


@torch.no_grad()
def test_ranks_and_probabilities_are_the_forward_s(capsys: pytest.CaptureFixture[str]) -> None:
    model = reader(names_tokenizer())
    assert model.tokenizer is not None
    prompt = "Then John gave"
    frame = model.test_prompt(prompt, "Mary saw", top_k=4)
    said = capsys.readouterr().out
    ids = model.tokenizer.following(prompt, " Mary saw")
    assert ids and len(ids) > 1 and frame["step"].nunique() == len(ids)
    for step, wanted in enumerate(ids):
        tokens = torch.tensor([[*model.tokenizer.encode(prompt), *ids[:step]]])
        logits = model(tokens)[0, -1]
        own = frame[frame["step"] == step]
        assert own["token_id"].tolist()[:4] == logits.topk(4).indices.tolist()
        torch.testing.assert_close(torch.tensor(own["logit"].to_numpy()).float(), logits[own["token_id"].tolist()])
        prob = logits.softmax(-1)[own["token_id"].tolist()]
        torch.testing.assert_close(torch.tensor(own["prob"].to_numpy()).float(), prob)
        answer = own[own["is_answer"]].iloc[0]
        assert answer["token_id"] == wanted and answer["rank"] == int((logits > logits[wanted]).sum())
        assert f"Rank: {answer['rank']}" in said
    assert f"Tokenized prompt: {model.to_str_tokens(prompt)}" in said and "Ranks of the answer tokens" in said
    assert said.count("Top 0") == len(ids) and said.count("Top 4") == 0


def test_without_an_answer_and_of_two_stacks(capsys: pytest.CaptureFixture[str]) -> None:
    model = reader(names_tokenizer())
    frame = model.test_prompt("Then John", top_k=3)
    assert len(frame) == 3 and frame["rank"].tolist() == [0, 1, 2] and not frame["is_answer"].any()
    assert "answer" not in capsys.readouterr().out
    assert model.tokenizer is not None
    cfg = encoder_decoder("t5").cfg
    n = len(model.tokenizer)
    wide = {stack: replace(getattr(cfg, stack), d_vocab=n, d_vocab_out=n) for stack in STACKS}
    both = EncoderDecoder(replace(cfg, **wide), model.tokenizer)
    with torch.no_grad():
        frame = both.test_prompt("Then John", "gave", top_k=2)
        logits = both(both.to_tokens("Then John"))[0, -1]
    assert frame["token_id"].tolist()[:2] == logits.topk(2).indices.tolist()


def test_what_cannot_be_shown_is_refused() -> None:
    model = reader(names_tokenizer())
    with pytest.raises(PromptError, match="top_k must be at least 1"):
        model.test_prompt("Then John", top_k=0)
    with pytest.raises(PromptError, match="no tokenizer"):
        make("gpt2").test_prompt("Then John")
    masked = make("bert_mlm")
    assert isinstance(masked, Encoder)
    with pytest.raises(PromptError, match="this model predicts masked ones"):
        masked.test_prompt("Then John")
