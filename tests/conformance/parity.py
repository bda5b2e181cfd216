"""Logits, padded batches and generated text against transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interp.hooked.past import PastKeyValues

from .cell import Cell, NotApplicable, difference, holds
from .subject import Subject, forget

LOGITS = 1e-5  # of the largest logit, in float32
LENGTHS = (1, 2, 9, 40)
N_NEW = 8


@torch.no_grad()
def logits(subject: Subject) -> Cell:
    """Logits of prompts of several lengths."""
    longest = subject.tokens(n_pos=max(LENGTHS))
    prompts = [longest[:, :n] for n in LENGTHS]
    return holds(max(difference(subject.ours(one), subject.logits(one)) for one in prompts), LOGITS)


@torch.no_grad()
def padding(subject: Subject) -> Cell:
    """Prompts of different lengths in one batch, padded on either side, against transformers on each alone."""
    lengths = (20, 7, 1)
    drawn = subject.tokens(len(lengths), lengths[0])
    found = []
    for side in ("left", "right"):
        batch, mask = torch.zeros_like(drawn), torch.zeros_like(drawn, dtype=torch.bool)
        for row, n in enumerate(lengths):
            real = slice(0, n) if side == "right" else slice(drawn.shape[1] - n, None)
            batch[row, real], mask[row, real] = drawn[row, :n], True
        padded = subject.ours(batch, attention_mask=mask)
        for row, n in enumerate(lengths):
            found.append(difference(padded[row, mask[row]], subject.logits(drawn[row : row + 1, :n])[0]))
    return holds(max(found), LOGITS)


@torch.no_grad()
def generation(subject: Subject) -> Cell:
    """Greedy text as transformers writes it, and logits of a prompt that comes in pieces as of the whole one."""
    theirs, ours = subject.theirs, subject.ours
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
    stepwise = torch.cat([ours(piece, past_kv_cache=past) for piece in pieces], dim=1)
    found = difference(stepwise, subject.logits(plain))
    if not found <= LOGITS:  # what depends on the length so far, as some rotary angles do
        found = difference(stepwise, in_pieces(theirs, pieces))
        told = told or "logits with a cache, as transformers' own, are not those of the whole prompt"
    return holds(found, LOGITS, told)


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


def in_pieces(theirs: Any, pieces: Sequence[Tensor]) -> Tensor:
    """Logits of transformers for a prompt that comes in pieces."""
    forget(theirs)
    found, cache = [], None
    for piece in pieces:
        out = theirs(piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        found.append(out.logits)
    return torch.cat(found, dim=1)


CHECKS = {"logits": logits, "padding": padding, "generation": generation}
