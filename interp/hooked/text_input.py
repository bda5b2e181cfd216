"""Text into a model and out of it: tokens, batches of prompts, and the checks that every forward makes of its input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from interp.arguments import checked, shown
from interp.config import ModelConfig
from interp.errors import PromptError
from interp.text.padding import MASK_OF, as_mask, pad, padding_of
from interp.text.tokenizer import Tokenizer


class TextInput:
    """What a model does with text and token ids before it computes.

    Attributes:
        cfg: the model's configuration.
        tokenizer: text to ids; None when the weights came without one.
    """

    cfg: ModelConfig
    tokenizer: Tokenizer | None

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        raise NotImplementedError

    @property
    def answer_tokenizer(self) -> Tokenizer | None:
        """The tokenizer of what the model writes: answers, predictions, generated text."""
        return self.tokenizer

    def _tokenizer(self) -> Tokenizer:
        return _present(self.tokenizer)

    def _answer_tokenizer(self) -> Tokenizer:
        return _present(self.answer_tokenizer)

    @checked
    def to_tokens(
        self,
        text: str | Sequence[str],
        prepend_bos: bool | None = None,
        padding_side: Literal["right", "left"] = "right",
    ) -> Tensor:
        """Token ids [batch, pos] of a text or of several, which are padded to one length.

        Args:
            text: one text or several.
            prepend_bos: True puts one beginning-of-sequence token first, False none; None does what the model's own
                tokenizer does. (TransformerLens 1-3 always put one.)
            padding_side: "right" or "left". A padded batch carries its mask, and a forward of this tensor takes it; of
                one that was changed since (a slice, a copy) give the mask of `to_batch`.
        """
        tokens, mask = self.to_batch(text, prepend_bos, padding_side)
        if not bool(mask.all()):
            setattr(tokens, MASK_OF, mask)  # so that nobody takes the padding for a part of the prompts unnoticed
        return tokens

    @checked
    def to_batch(
        self,
        text: str | Sequence[str],
        prepend_bos: bool | None = None,
        padding_side: Literal["right", "left"] = "right",
    ) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, both [batch, pos]; the mask is True at real tokens."""
        texts = [text] if isinstance(text, str) else list(text)
        tokenizer = self._tokenizer()
        rows = [tokenizer.encode(one, prepend_bos=prepend_bos) for one in texts]
        if not rows:
            raise PromptError("no prompt was given")
        for at, row in enumerate(rows):
            if not row:
                raise PromptError(f"prompt {at} is empty: {texts[at]!r} has no token")
        fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
        tokens, mask = pad(rows, fill, padding_side)
        return tokens.to(self.device), mask.to(self.device)

    @checked
    def to_string(self, tokens: Tensor | Sequence[int] | int) -> str | list[str]:
        """Text of token ids: a list for [batch, pos], one text for [pos] or a single id.

        Of a model with an encoder and a decoder they are the decoder's; `model.tokenizer.decode` reads the encoder's.
        """
        ids, tokenizer = _as_ids("tokens", tokens), self._answer_tokenizer()
        if ids.ndim == 2:
            return [tokenizer.decode(row) for row in ids.tolist()]
        return tokenizer.decode(ids.reshape(-1).tolist())

    @checked
    def to_str_tokens(self, input: str | Tensor | Sequence[int], prepend_bos: bool | None = None) -> list[str]:
        """The tokens of one prompt, each as text with the space that belongs to it: " the" is not "the".

        Of a model with an encoder and a decoder it is the encoder's prompt, as in `to_tokens`.
        """
        if isinstance(input, str):
            return self._tokenizer().str_tokens(self._tokenizer().encode(input, prepend_bos=prepend_bos))
        ids = _as_ids("input", input)
        if ids.ndim == 2 and ids.shape[0] != 1:
            raise PromptError(f"to_str_tokens takes one prompt, not a batch of {ids.shape[0]}")
        return self._tokenizer().str_tokens(ids.reshape(-1).tolist())

    @checked
    def to_single_token(self, text: str) -> int:
        """The id of a text that, within running text, is exactly one token: an answer, which a decoder writes.

        Raises:
            PromptError: it is none or several; the message shows them.
        """
        tokenizer = self._answer_tokenizer()
        token = tokenizer.single_id(text)
        if token is not None and tokenizer.is_unknown(token, text):
            raise PromptError(
                f"{text!r} is unknown to this tokenizer, which reads {self.to_string([token])!r} in its place"
            )
        if token is None:
            pieces = tokenizer.str_tokens(tokenizer.within(text))
            spaced = tokenizer.single_id(" " + text) is not None
            hint = f"; with a space in front, {' ' + text!r} is one" if spaced else ""
            raise PromptError(f"{text!r} is not one token but {len(pieces)}: {pieces}{hint}")
        return token

    def _input(
        self, input: str | Sequence[str] | Tensor, prepend_bos: bool | None, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens [batch, pos] (or a residual stream, unchanged) and the mask of a padded batch."""
        if not isinstance(input, Tensor):
            texts = [input] if isinstance(input, str) else input
            if not (isinstance(texts, Sequence) and all(isinstance(text, str) for text in texts)):
                also = (
                    "; of PromptPairs give .clean or .corrupt, with attention_mask=.mask"
                    if hasattr(input, "corrupt")
                    else ""
                )
                raise PromptError(
                    f"the input must be token ids, a text or several texts, not {type(input).__name__}{also}"
                )
            if attention_mask is not None:
                raise PromptError("attention_mask belongs to token ids; text brings its own")
            tokens, mask = self.to_batch(cast(Any, input), prepend_bos)
            return tokens, None if bool(mask.all()) else mask
        attention_mask = padding_of(input) if attention_mask is None else attention_mask
        if attention_mask is not None:
            attention_mask = as_mask(attention_mask).to(self.device)
        if input.is_floating_point():
            return input, attention_mask
        tokens = input[None] if input.ndim == 1 else input
        if tokens.ndim != 2 or tokens.dtype == torch.bool or tokens.is_complex():
            raise PromptError(f"tokens must be whole numbers [batch, pos], not {list(input.shape)} {input.dtype}")
        return tokens.to(self.device, torch.int64), attention_mask

    def _check_tokens(self, tokens: Tensor, n_past: int) -> None:
        self._check_ids(tokens, n_past, self.cfg, "the prompt")

    def _check_ids(self, tokens: Tensor, n_past: int, cfg: ModelConfig, what: str) -> None:
        """Refuse tokens that a model (or a stack) of this configuration cannot read."""
        if tokens.is_floating_point():
            raise PromptError(
                f"tokens must be whole numbers [batch, pos], not {list(tokens.shape)} {tokens.dtype}; a residual "
                "stream needs start_at_layer"
            )
        if tokens.numel() == 0:
            raise PromptError(
                f"{what} is empty: tokens have shape {list(tokens.shape)}, expected [batch, pos] with pos > 0"
            )
        if tokens.shape[1] + n_past > cfg.n_ctx:
            raise PromptError(
                f"a prompt of {tokens.shape[1] + n_past} tokens is longer than the model's context of {cfg.n_ctx}"
            )
        low, high = (int(x) for x in torch.aminmax(tokens))
        if low < 0 or high >= cfg.d_vocab:
            raise PromptError(
                f"token id {low if low < 0 else high} is out of range: this model's ids are 0 to {cfg.d_vocab - 1}"
            )


def _present(tokenizer: Tokenizer | None) -> Tokenizer:
    """A model's tokenizer, refused where it has none."""
    if tokenizer is None:
        raise PromptError("this model has no tokenizer: give token ids, or set model.tokenizer")
    return tokenizer


def _as_ids(name: str, given: Any) -> Tensor:
    """Token ids of one prompt, or of several of one length."""
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # rows of different lengths, no numbers, vast ones
        raise PromptError(f"{name} must be token ids, [pos] or [batch, pos], not {shown(given)}") from None
