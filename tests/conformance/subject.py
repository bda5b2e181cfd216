"""What the checks look at: one tiny random model of transformers, and the same model loaded here."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from checkpoints import CASES, SEQ2SEQ, STATE_SPACE, tiny
from torch import Tensor

import interp
from interp.encoder_decoder.model import EncoderDecoder
from interp.models.gpt import GPT
from interp.weights.huggingface.families import Family, configure

TEXT = "text_config"


@dataclass(frozen=True, eq=False)
class Subject:
    """A model on both sides.

    Attributes:
        family: its family in `FAMILIES`.
        theirs: transformers' model, float32 with eager attention.
        ours: what `interp.load` makes of it.
        thorough: whether checks try all that they can, or a part that takes little time.
    """

    family: Family
    theirs: Any
    ours: GPT | EncoderDecoder
    thorough: bool = True

    @classmethod
    def of(cls, model_type: str, options: dict[str, Any], *, thorough: bool = True) -> Subject:
        """The model of a configuration, with random weights."""
        theirs = tiny(model_type, options)
        return cls(configure(theirs.config.to_dict())[0], theirs, interp.load(theirs), thorough)

    @property
    def one(self) -> GPT:
        """Our model, of a family with one stack."""
        assert isinstance(self.ours, GPT)
        return self.ours

    @property
    def two(self) -> EncoderDecoder:
        """Our model, of a family with an encoder and a decoder."""
        assert isinstance(self.ours, EncoderDecoder)
        return self.ours

    def tokens(self, n_rows: int = 3, n_pos: int = 21) -> Tensor:
        """Prompts drawn at random, as long as the context allows, without the padding token.  # [row, pos]"""
        n_pos = min(n_pos, self.ours.cfg.n_ctx)
        generator = torch.Generator().manual_seed(1)
        return real(self.theirs, torch.randint(1, self.ours.cfg.d_vocab, (n_rows, n_pos), generator=generator))

    @torch.no_grad()
    def logits(self, tokens: Tensor, **options: Any) -> Tensor:
        """Transformers' logits.  # [row, pos] -> [row, pos, d_vocab]"""
        return of_theirs(self.theirs, tokens, **options)

    @functools.cached_property
    def wide(self) -> Subject:
        """The same in float64."""
        theirs = copy.deepcopy(self.theirs).double()
        return Subject(self.family, theirs, interp.load(theirs), self.thorough)


def real(theirs: Any, tokens: Tensor) -> Tensor:
    """Tokens without the padding token, at which some models of transformers count no position."""
    padding = theirs.config.get_text_config().pad_token_id
    return tokens if padding is None else tokens.masked_fill(tokens == padding, 2)


def inputs(model: GPT | EncoderDecoder, tokens: Tensor) -> tuple[Tensor, ...]:
    """What a model of ours is called with: prompts and, where a decoder has some of its own, others made of them."""
    if not isinstance(model, EncoderDecoder):
        return (tokens,)
    n_own = max(1, min(tokens.shape[1] * 2 // 3, model.cfg.decoder.n_ctx))
    return tokens, 2 + tokens.flip(1)[:, :n_own] % (model.cfg.decoder.d_vocab - 2)


def of_theirs(theirs: Any, tokens: Tensor, **options: Any) -> Tensor:
    """Transformers' logits for the same."""
    forget(theirs)
    if theirs.config.is_encoder_decoder:
        n_own = max(1, min(tokens.shape[1] * 2 // 3, getattr(theirs.config, "max_position_embeddings", 2**20)))
        d_vocab = theirs.get_output_embeddings().weight.shape[0]
        options["decoder_input_ids"] = 2 + tokens.flip(1)[:, :n_own] % (d_vocab - 2)
    if "use_cache" in inspect.signature(theirs.forward).parameters:
        options["use_cache"] = False
    return theirs(tokens, return_dict=True, **options).logits


def padded(prompts: Sequence[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Prompts in one batch, and which of its tokens are real."""
    longest = max(len(prompt) for prompt in prompts)
    batch = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(batch, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        real = slice(0, len(prompt)) if side == "right" else slice(longest - len(prompt), longest)
        batch[row, real], mask[row, real] = prompt, True
    return batch, mask


@torch.no_grad()
def in_a_batch(ours: GPT | EncoderDecoder, prompts: Sequence[Tensor], side: str) -> list[Tensor]:
    """Our logits of each prompt's own positions, in one batch that is padded on a side."""
    batch, mask = padded(prompts, side)
    if not isinstance(ours, EncoderDecoder):
        logits = ours(batch, attention_mask=mask)
    else:
        more, own = padded([inputs(ours, prompt[None])[1][0] for prompt in prompts], side)
        logits, mask = ours(batch, more, attention_mask=mask, decoder_attention_mask=own), own
    return [logits[row, mask[row]] for row in range(len(prompts))]


@torch.no_grad()
def forget(theirs: Any) -> None:
    """Undo what longer prompts have left: where rotary angles follow the length, transformers keeps the largest."""
    for module in theirs.modules():
        if getattr(module, "max_seq_len_cached", 0) > getattr(module, "original_max_seq_len", 0):
            theirs(torch.ones(1, 1, dtype=torch.int64), use_cache=False)
            return


def changed(model_type: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A family's plainest configuration with some changes, which belong to its text part if it has several."""
    plain = copy.deepcopy(next(iter(configurations(model_type).values())))
    changes = copy.deepcopy(changes)  # transformers writes into what it is given
    return {**plain, TEXT: {**plain[TEXT], **changes}} if TEXT in plain else {**plain, **changes}


def written(model_type: str, changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What transformers writes of such a configuration: the whole, and the part that belongs to text."""
    whole = transformers.AutoConfig.for_model(model_type, **changed(model_type, changes)).to_dict()
    return whole, whole.get(TEXT, whole)


def configurations(model_type: str) -> dict[str, dict[str, Any]]:
    """The tiny configurations of a family by their names, the plainest first."""
    found = {name: options for name, (kind, options) in (CASES | SEQ2SEQ).items() if kind == model_type}
    return found | ({f"{model_type}-small": STATE_SPACE[model_type]} if model_type in STATE_SPACE else {})
