"""In-context copying: small models that learn it in a minute or two, and the prompts to study them with.

1. A sequence has random pairs of a key and a value, then the same pairs in another order. The value after the second
   occurrence of a key can be known from the first occurrence, and from nothing else.
2. Two layers of attention, or of Mamba, learn it (`train`). Attention needs a first layer that writes at each value
   which key comes before it, and a second that looks there (Olsson et al. 2022); in Mamba the convolution before the
   recurrence reaches back far enough for a single layer.
3. `prompts` end at the first key that occurs again. The corrupt prompt has another value after its first occurrence.

Source: Gu and Dao 2023 ("Mamba: Linear-Time Sequence Modeling with Selective State Spaces", section 4.1, on selective
copying and induction heads); Arora et al. 2023 ("Zoology: Measuring and Improving Recall in Efficient Language Models",
section 3, on associative recall).
"""

from __future__ import annotations

import dataclasses
import random
import string
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interp.arguments import MOST, checked, is_whole, real_number, whole_number
from interp.arguments import seed as check_seed
from interp.arguments import shown as in_words
from interp.config import ModelConfig
from interp.errors import InterpError, PromptError, check_choice
from interp.models.gpt import GPT, Mamba
from interp.progress import counting
from interp.prompts.pairs import PromptPairs

KINDS = ("attention", "mamba")
KEYS = VALUES = 16
PAIRS, SLOT = 6, 1
QUERY = 2 * PAIRS
"""The position at which a key occurs again, where the answer is read."""

WIDTH, BATCH, RATE, STEPS = 64, 64, 3e-3, 2500


@checked
def config(kind: str, *, seed: int = 0, n_heads: int = 1) -> ModelConfig:
    """The configuration of a model to train: two layers of one kind, of the same width, without MLPs.

    Args:
        kind: one of `KINDS`.
        seed: of the weights.
        n_heads: heads of an attention layer, which share its width.

    Raises:
        UnknownName: a kind that does not exist.
    """
    check_choice("kind of model", kind, KINDS)
    mixer: dict[str, Any] = {"layer_types": ("mamba", "mamba")}
    if kind == "attention":
        mixer = {"layer_types": ("attn", "attn"), "n_heads": n_heads, "attn_in_bias": False, "attn_out_bias": False}
    return ModelConfig(
        n_layers=2,
        d_model=WIDTH,
        n_ctx=4 * PAIRS,
        d_vocab=KEYS + VALUES,
        normalization_type="RMS",
        unembed_bias=False,
        initializer_range=0.1,
        seed=seed,
        model_name=kind,
        **mixer,
    )


def draw(n: int, generator: torch.Generator, *, n_pairs: int = PAIRS) -> Tensor:
    """Pairs, then the same pairs in another order: ids [n, 4 n_pairs]; keys are ids below `KEYS`, values the others.

    Within a sequence no two pairs share a key or a value.
    """
    keys = torch.rand(n, KEYS, generator=generator).argsort(1)[:, :n_pairs]
    values = KEYS + torch.rand(n, VALUES, generator=generator).argsort(1)[:, :n_pairs]
    order = torch.rand(n, n_pairs, generator=generator).argsort(1)
    first = torch.stack((keys, values), 2)  # [n, pair, 2]
    again = first.gather(1, order[..., None].expand(-1, -1, 2))
    return torch.cat((first, again), 1).flatten(1)


def copying_loss(model: GPT, tokens: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of the values in the second half of sequences of `draw`."""
    half = tokens.shape[1] // 2
    logits = model(tokens)[:, half:-1:2]  # at every key of the second half
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, half + 1 :: 2].flatten())


@torch.no_grad()
def accuracy(model: GPT, tokens: Tensor) -> float:
    """The share of sequences of `draw` whose first repeated value is the model's likeliest token."""
    half = tokens.shape[1] // 2
    logits = model(tokens[:, : half + 1])[:, -1]
    return float((logits.argmax(-1) == tokens[:, half + 1]).float().mean())


@checked
def train(
    kind: str,
    *,
    seed: int = 0,
    steps: int = STEPS,
    least: float = 0.99,
    n_heads: int = 1,
    progress: bool | None = None,
) -> GPT:
    """A model that has learned to copy: some seconds of one core for attention, about two minutes for Mamba.

    AdamW on `copying_loss`. Each batch has 2 to `PAIRS` pairs: sequences with few pairs are learned first and help with
    the longer ones. Training ends when the share `least` of new sequences of `PAIRS` pairs is right.

    Args:
        kind: one of `KINDS`.
        seed: of weights and sequences; no global generator is touched.
        steps: the largest number of steps, of `BATCH` sequences each.
        least: the accuracy to reach; 0 takes all the steps.
        n_heads: heads of an attention layer.
        progress: a bar on stderr; None shows it on a terminal.

    Raises:
        UnknownName: a kind that does not exist.
        InterpError: no steps, or an accuracy that is too low after all of them.
    """
    steps, seed = whole_number("steps", steps, least=1, most=MOST), check_seed(seed)
    least = real_number("least", least, least=0, most=1)
    cfg = config(kind, seed=seed, n_heads=n_heads)
    model = Mamba(cfg) if cfg.has_mamba else GPT(cfg)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, total_iters=50)
    right = 0.0
    with counting(range(1, steps + 1), desc=f"training {kind}", progress=progress, unit=" steps") as bar:
        for step in bar:
            n_pairs = int(torch.randint(2, PAIRS + 1, (), generator=generator))
            loss = copying_loss(model, draw(BATCH, generator, n_pairs=n_pairs))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            warm.step()
            if step % 50 == 0 or step == steps:
                right = accuracy(model, draw(512, generator))
                bar.set_postfix(right=f"{right:.2f}")
                if 0 < least <= right:
                    break
    if right < least:
        raise InterpError(
            f"after {steps} steps the {kind} model answers {right:.1%} of new sequences correctly, less than "
            f"{least:.1%}: try more steps or another seed"
        )
    return model.requires_grad_(False)


@checked
def prompts(n: int = 128, *, seed: int = 1000, slot: int = SLOT) -> PromptPairs:
    """Prompts that ask for the value of one pair, at the same place in all; corrupt prompts have another value there.

    The other value occurs nowhere in the clean prompt, and is the wrong answer. Tokens are shown as letters: keys a, b,
    ..., values A, B, ... Roles: `key`, `value`, `query`.

    Args:
        n: how many pairs of prompts.
        seed: of the draws.
        slot: the place of the pair that is asked for, counted from 0.

    Raises:
        PromptError: a pair that does not exist, or no prompts.
    """
    if not is_whole(slot) or not 0 <= slot < PAIRS:
        raise PromptError(f"slot must be the number of a pair, 0 to {PAIRS - 1}, not {in_words(slot)}")
    n, slot, seed = whole_number("n", n, least=1, most=MOST, refuse=PromptError), int(slot), check_seed(seed)
    rng, at = random.Random(seed), 2 * slot + 1
    clean = draw(n, torch.Generator().manual_seed(seed))[:, : QUERY + 1]
    clean[:, QUERY] = clean[:, at - 1]
    corrupt = clean.clone()
    for row in corrupt:
        row[at] = rng.choice(sorted(set(range(KEYS, KEYS + VALUES)) - set(row.tolist())))
    pairs = PromptPairs.from_tokens(
        clean,
        corrupt,
        answers=torch.stack((clean[:, at], corrupt[:, at]), 1),
        roles={"key": at - 1, "value": at, "query": QUERY},
        name="copying",
        notes={"seed": seed, "slot": slot},
    )
    letters = string.ascii_lowercase[:KEYS] + string.ascii_uppercase[:VALUES]
    shown, corrupt_shown = (
        tuple(tuple(letters[token] for token in row) for row in side.tolist()) for side in (clean, corrupt)
    )
    return dataclasses.replace(
        pairs,
        clean_texts=tuple(map(" ".join, shown)),
        corrupt_texts=tuple(map(" ".join, corrupt_shown)),
        str_tokens=shown,
        corrupt_str_tokens=corrupt_shown,
    )
