"""Logits, padded batches and generated text against transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interp.encoder_decoder.model import EncoderDecoder
from interp.hooked.past import PastKeyValues

from .cell import Cell, NotApplicable, difference, holds
from .subject import Subject, forget, in_a_batch, inputs

LOGITS = 1e-5  # of the largest logit, in float32
LENGTHS = (1, 2, 9, 40)
N_NEW = 8


@torch.no_grad()
def logits(subject: Subject) -> Cell:
    """Logits of prompts of several lengths."""
    longest = subject.tokens(n_pos=max(LENGTHS))
    prompts = [longest[:, :n] for n in LENGTHS]
    ours = subject.ours
    return holds(max(difference(ours(*inputs(ours, one)), subject.logits(one)) for one in prompts), LOGITS)


@torch.no_grad()
def padding(subject: Subject) -> Cell:
    """Prompts of different lengths in one batch, padded on either side, against transformers on each alone."""
    drawn = subject.tokens(3, 20)
    prompts = [row[:n] for row, n in zip(drawn, (20, 7, 1), strict=True)]
    alone = [subject.logits(prompt[None])[0] for prompt in prompts]
    sides = [in_a_batch(subject.ours, prompts, side) for side in ("left", "right")]
    return holds(max(difference(*both) for own in sides for both in zip(own, alone, strict=True)), LOGITS)


@torch.no_grad()
def generation(subject: Subject) -> Cell:
    """Greedy text as transformers writes it, and logits of a prompt that comes in pieces as of the whole one."""
    if isinstance(subject.ours, EncoderDecoder):
        return of_a_decoder(subject)
    theirs, ours = subject.theirs, subject.one
    if not (ours.cfg.causal and theirs.can_generate()):
        raise NotApplicable("it writes no text")
    tokens = subject.tokens(2, 9)
    theirs.generation_config.eos_token_id = None
    cached, plain = (written(theirs, tokens, use_cache) for use_cache in (True, False))
    # Some models of transformers write another text with a cache; ours may then follow either of the two.
    told = "" if torch.equal(cached, plain) else "transformers' cached text is not its own text without a cache"
    for use_cache, allowed in ((True, (cached, plain)), (False, (plain,))):
        text = ours.generate(tokens, N_NEW, do_sample=False, use_past_kv_cache=use_cache)
        if not any(torch.equal(text, one) for one in allowed):
            return Cell("wrong", told=f"text {text} with use_past_kv_cache={use_cache} instead of {allowed}")
    # Padded on the left, a row is continued as it is alone.
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :4] = False
    alone = ours.generate(tokens[:1, 4:], N_NEW, do_sample=False)
    padded = ours.generate(tokens, N_NEW, do_sample=False, attention_mask=mask)
    if not torch.equal(padded[0, 4:], alone[0]):
        return Cell("wrong", told=f"padded text {padded[0, 4:]} instead of {alone[0]}")
    past, pieces = PastKeyValues(ours.cfg.n_layers), plain.split([5, 1, 1, 4, plain.shape[1] - 11], dim=1)
    if ours.cfg.turns_by_length:  # such keys cannot be kept, and `generate` does not
        return holds(difference(ours(plain), subject.logits(plain)), LOGITS, told)
    stepwise = torch.cat([ours(piece, past_kv_cache=past) for piece in pieces], dim=1)
    return holds(difference(stepwise, subject.logits(plain)), LOGITS, told)


def of_a_decoder(subject: Subject) -> Cell:
    """The same where a decoder continues its own prompt: its logits come out of pieces in `generate` alone."""
    theirs, ours = subject.theirs, subject.two
    tokens = subject.tokens(2, 9)
    options = {"eos_token_id": None, "forced_eos_token_id": None, "num_beams": 1, "bad_words_ids": None}
    # With a cache transformers needs as many layers of the encoder as of the decoder.
    expected = theirs.generate(tokens, do_sample=False, max_new_tokens=N_NEW, use_cache=False, **options)
    for use_cache in (True, False):
        text = ours.generate(tokens, N_NEW, do_sample=False, use_past_kv_cache=use_cache)
        if not torch.equal(text, expected):
            return Cell("wrong", told=f"text {text} with use_past_kv_cache={use_cache} instead of {expected}")
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :4] = False
    alone = ours.generate(tokens[:1, 4:], N_NEW, do_sample=False)
    text = ours.generate(tokens, N_NEW, do_sample=False, attention_mask=mask)
    if not torch.equal(text[0], alone[0]):
        return Cell("wrong", told=f"text of a padded prompt {text[0]} instead of {alone[0]}")
    logits = theirs(tokens, decoder_input_ids=expected, use_cache=False).logits
    return holds(difference(ours(tokens, expected), logits), LOGITS)


def written(theirs: Any, tokens: Tensor, use_cache: bool) -> Tensor:
    """Greedy text of transformers."""
    forget(theirs)
    return theirs.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=N_NEW,
        pad_token_id=0,
        use_cache=use_cache,
    )


CHECKS = {"logits": logits, "padding": padding, "generation": generation}
