"""Train the model of `interp.load("toy")`: two layers of attention that learn to copy by induction.

1. Every sequence is a beginning token and a run of random tokens, given twice: the second half can be predicted only
   from the first.
2. A 2-layer attention-only model with grouped-query attention learns it, by a previous-token head and an induction head
   (Olsson et al. 2022, "In-context Learning and Induction Heads", section "Mechanistic view").
3. The weights go to this folder. `python -m interp.loading.toy.train` trains them again, seeded, in a few minutes.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from interp.config import ModelConfig
from interp.loading.save import save
from interp.models.gpt import GPT

CFG = ModelConfig(
    n_layers=2,
    d_model=64,
    n_ctx=64,
    d_head=16,
    n_heads=4,
    n_key_value_heads=2,
    d_vocab=64,
    attn_only=True,
    normalization_type="RMS",
    positional_embedding_type="rotary",
    attn_in_bias=False,
    attn_out_bias=False,
    unembed_bias=False,
    seed=0,
    model_name="toy",
)
BOS = 0
STEPS, BATCH, HALF = 2000, 64, 20


def repeated(batch: int, half: int, generator: torch.Generator) -> Tensor:
    """Tokens [batch, 1 + 2 half]: the beginning token, random tokens, and the same tokens again."""
    run = torch.randint(1, CFG.d_vocab, (batch, half), generator=generator)
    return torch.cat([torch.full((batch, 1), BOS), run, run], dim=1)


def copying_loss(model: GPT, tokens: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of the second half's tokens after its first."""
    half = tokens.shape[1] // 2
    logits = model(tokens)[:, half + 1 : -1]  # positions that have seen their token before
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, half + 2 :].flatten())


def train(steps: int = STEPS) -> GPT:
    """A trained model; a progress bar shows the loss."""
    generator = torch.Generator().manual_seed(0)
    model = GPT(CFG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.05)
    bar = tqdm(range(steps), desc="toy")
    for _ in bar:
        half = int(torch.randint(8, HALF + 1, (), generator=generator))
        loss = copying_loss(model, repeated(BATCH, half, generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
    return model


if __name__ == "__main__":
    save(train(), Path(__file__).parent)
