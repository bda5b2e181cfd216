"""Logits, padded batches and generated text against transformers."""

from __future__ import annotations

import torch

from interp.hooked.past import PastKeyValues

from .cell import Cell, NotApplicable, difference, holds
from .subject import Subject

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
    with_cache, expected = (
        theirs.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=N_NEW,
            pad_token_id=0,
            use_cache=cached,
        )
        for cached in (True, False)
    )
    told = "" if torch.equal(with_cache, expected) else "transformers' cached text is not its own text without a cache"
    for cached in (True, False):
        written = ours.generate(tokens, N_NEW, do_sample=False, use_past_kv_cache=cached)
        if not torch.equal(written, expected):
            return Cell("wrong", told=f"{'cached' if cached else 'uncached'} text {written} instead of {expected}")
    # Padded on the left, a row is continued as it is alone.
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :4] = False
    alone = ours.generate(tokens[:1, 4:], N_NEW, do_sample=False)
    padded = ours.generate(tokens, N_NEW, do_sample=False, attention_mask=mask)
    if not torch.equal(padded[0, 4:], alone[0]):
        return Cell("wrong", told=f"padded text {padded[0, 4:]} instead of {alone[0]}")
    past, pieces = PastKeyValues(ours.cfg.n_layers), expected.split([5, 1, 1, 4, expected.shape[1] - 11], dim=1)
    stepwise = torch.cat([ours(piece, past_kv_cache=past) for piece in pieces], dim=1)
    return holds(difference(stepwise, subject.logits(expected)), LOGITS, told)


CHECKS = {"logits": logits, "padding": padding, "generation": generation}
