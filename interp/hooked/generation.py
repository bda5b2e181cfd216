"""Continuing a prompt token by token, with the keys and values of what came before kept.

1. The prompt goes through the model once. 2. The last position's logits give the next token: the most likely one, or a
draw from softmax(logits / temperature) restricted to the `top_k` likeliest and to the smallest set that holds the
probability `top_p` (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1). 3. Only the new
token goes through the model, reading earlier keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from interp.arguments import as_index, checked, is_several, real_number, shown, whole_number
from interp.arguments import seed as check_seed
from interp.config import ModelConfig
from interp.errors import PromptError
from interp.hooked.past import PastKeyValues
from interp.text.padding import check_attention_mask, padding_of
from interp.text.tokenizer import Tokenizer


class Generator(Protocol):
    """What generation asks of a model."""

    cfg: ModelConfig
    tokenizer: Tokenizer | None

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        ...

    def to_batch(
        self, text: str | Sequence[str], prepend_bos: bool | None, padding_side: Literal["right", "left"]
    ) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, both [batch, pos]."""
        ...

    def to_string(self, tokens: Sequence[int]) -> str | list[str]:
        """Text of token ids."""
        ...

    def __call__(self, input: Tensor, **options: Any) -> Any:
        """Logits [batch, pos, d_vocab_out]."""
        ...


@checked
def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a token from each row of logits [batch, d_vocab] -> [batch].

    Raises:
        PromptError: an argument that is not a number, or out of range.
    """
    temperature, top_k, top_p = _checked(temperature, top_k, top_p)
    if logits.ndim != 2 or not logits.is_floating_point():
        raise PromptError(f"logits must be [batch, d_vocab], not {list(logits.shape)} of {logits.dtype}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise PromptError(f"generator must be a torch.Generator or None, not {shown(generator)}")
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p is not None:
        ordered, index = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # probability of the likelier tokens
        ordered = ordered.masked_fill(before >= top_p, float("-inf"))
        logits = torch.full_like(logits, float("-inf")).scatter(-1, index, ordered)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def _checked(temperature: Any, top_k: Any, top_p: Any) -> tuple[float, int | None, float | None]:
    """How to draw, refused where it makes no sense."""
    top_k = None if top_k is None else whole_number("top_k", top_k, least=1, refuse=PromptError)
    if top_p is not None:
        top_p = real_number("top_p", top_p, above=0, most=1, refuse=PromptError)
    return real_number("temperature", temperature, least=0, refuse=PromptError), top_k, top_p


def _ends(model: Generator, given: Any) -> list[int]:
    """The ids that end a prompt: those given, or the tokenizer's own."""
    if given is None:
        return [] if model.tokenizer is None else list(model.tokenizer.eos_token_ids)
    return _ids("eos_token_id", given, model.cfg.d_vocab)


def _ids(name: str, given: Any, d_vocab: int) -> list[int]:
    """Token ids that were given: one, several or none."""
    if given is None or (is_several(given) and not len(given)):
        return []
    found = as_index(name, given)
    if isinstance(found, slice):
        raise PromptError(f"{name} must be a token id, or several, not {given}")
    return [
        whole_number(name, one, least=0, most=d_vocab - 1, refuse=PromptError)
        for one in ([found] if isinstance(found, int) else found)
    ]


@checked
@torch.no_grad()
def generate(
    model: Generator,
    input: str | Sequence[str] | Tensor,
    max_new_tokens: int = 10,
    *,
    do_sample: bool = True,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_at_eos: bool = True,
    eos_token_id: int | Sequence[int] | None = None,
    suppress_tokens: int | Sequence[int] = (),
    use_past_kv_cache: bool = True,
    prepend_bos: bool | None = None,
    attention_mask: Tensor | Sequence[Any] | None = None,
) -> Any:
    """Continue each prompt by up to `max_new_tokens` tokens. Hooks on the model run at every step.

    With kept keys and values (the default) a hook sees the whole prompt once and then one position at a time.

    Args:
        model: the model.
        input: a text, several texts (padded on the left), or token ids [batch, pos].
        max_new_tokens: how many to add at most; 0 adds none.
        do_sample: draw; False always takes the likeliest token (greedy), as `temperature=0` does.
        temperature: divides the logits.
        top_k: draw among so many likeliest tokens.
        top_p: draw among the likeliest tokens that together hold this probability.
        seed: makes the draw repeatable, without touching torch's global generator.
        stop_at_eos: end a prompt at its end-of-sequence token; the rest of its row is padding.
        eos_token_id: that token, if not the tokenizer's, or several, each of which ends a prompt.
        suppress_tokens: ids that are never written. Of the settings of generation that files have, an encoder-decoder
            takes these from its configuration; others (beams, lengths, repetition, a forced first token) count for
            nothing here.
        use_past_kv_cache: keep keys and values; False runs the whole text again for each token.
        prepend_bos: as in `to_tokens`.
        attention_mask: [batch, pos], True at real tokens; ids that are padded must be so on the left.

    Returns:
        The prompt and its continuation: text for a text, a list for several, ids [batch, pos + new] for ids.

    Raises:
        PromptError: an argument that is not a number, or out of range; prompts that do not end where they are to be
            continued.
    """
    max_new_tokens = whole_number("max_new_tokens", max_new_tokens, least=0, refuse=PromptError)
    temperature, top_k, top_p = _checked(temperature, top_k, top_p)
    ends = _ends(model, eos_token_id) if stop_at_eos else []
    never = _ids("suppress_tokens", suppress_tokens, model.cfg.d_vocab_out)
    tokens, mask = _prompts(model, input, prepend_bos, attention_mask)
    generator = None if seed is None else torch.Generator(model.device).manual_seed(check_seed(seed))

    def draw(logits: Tensor) -> Tensor:
        if never:
            logits = logits.index_fill(-1, torch.tensor(never, device=logits.device), -torch.inf)
        return sample(
            logits, temperature=temperature if do_sample else 0, top_k=top_k, top_p=top_p, generator=generator
        )

    past = PastKeyValues(model.cfg.n_layers) if use_past_kv_cache and model.cfg.causal else None
    longer = _continued(model, tokens, mask, max_new_tokens, draw, ends, past)
    if isinstance(input, Tensor):
        return longer
    n_prompt, lengths = tokens.shape[1], mask.sum(1).tolist()
    texts = [_text(model, row[n_prompt - n :], n, ends) for row, n in zip(longer, lengths, strict=True)]
    return texts[0] if isinstance(input, str) else texts


def _prompts(
    model: Generator,
    input: str | Sequence[str] | Tensor,
    prepend_bos: bool | None,
    attention_mask: Tensor | Sequence[Any] | None,
) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both [batch, pos], of prompts that all end at the last position."""
    if not isinstance(input, Tensor):
        if attention_mask is not None:
            raise PromptError("attention_mask belongs to token ids; text brings its own")
        return model.to_batch(input, prepend_bos, "left")
    attention_mask = padding_of(input) if attention_mask is None else attention_mask
    tokens = (input[None] if input.ndim == 1 else input).to(model.device)
    if tokens.ndim != 2 or 0 in tokens.shape or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise PromptError(f"the prompts to continue must be token ids, integers [batch, pos], not {shown(input)}")
    if attention_mask is None:
        return tokens, torch.ones_like(tokens, dtype=torch.bool)
    mask = check_attention_mask(attention_mask, (tokens.shape[0], tokens.shape[1])).to(model.device)
    if not bool(mask[:, -1].all()):
        raise PromptError("prompts of different lengths must be padded on the left to be continued")
    return tokens, mask


def _continued(
    model: Generator,
    tokens: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    draw: Callable[[Tensor], Tensor],
    ends: Sequence[int],
    past: PastKeyValues | None,
) -> Tensor:
    """The prompts and up to so many tokens more [batch, pos + new]; after the end of a prompt its row is padded.

    Args:
        model, tokens, mask, max_new_tokens: as in `generate`, tokens and mask [batch, pos].
        draw: logits [batch, d_vocab] -> the next token of each prompt [batch].
        ends: the ids that end a prompt.
        past: where to keep keys and values; None runs all tokens again for each new one, as is done, too, where a
            longer prompt turns earlier keys by other angles.
    """
    pad = None if model.tokenizer is None else model.tokenizer.pad_token_id
    fill = ends[0] if pad is None and ends else pad
    ending = torch.tensor(ends, dtype=torch.int64, device=model.device)
    done = torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)
    for _ in range(max_new_tokens):
        # 1. The prompt, once; 3. then the new token alone.
        if past is not None and model.cfg.turns_by_length:
            lengths = mask.sum(1).tolist()
            if not all(model.cfg.keys_stay(length - 1, length) for length in lengths):
                past = PastKeyValues(model.cfg.n_layers)
        seen = tokens[:, -1:] if past is not None and len(past) else tokens
        logits = model(seen, attention_mask=mask, past_kv_cache=past)[:, -1]  # [batch, d_vocab_out]
        # 2. The next token.
        new = draw(logits)  # [batch]
        if ends:
            assert fill is not None
            new = torch.where(done, fill, new)
            done = done | torch.isin(new, ending)
        tokens = torch.cat([tokens, new[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        if bool(done.all()):
            break
    return tokens


def _text(model: Generator, row: Tensor, n_prompt: int, ends: Sequence[int]) -> str:
    """A row as text, without its padding and without the end-of-sequence token that ended it."""
    ids = row.tolist()
    ids = ids[: next((at for at in range(n_prompt, len(ids)) if ids[at] in ends), len(ids))]
    text = model.to_string(ids)
    assert isinstance(text, str)
    return text
