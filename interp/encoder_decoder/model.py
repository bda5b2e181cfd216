"""`EncoderDecoder`: a model that reads one prompt in both directions and continues another.

1. The encoder, a stack of bidirectional blocks, turns the prompt into its output: one vector for each position.
2. The decoder, a stack of causal blocks, runs over a second prompt; every layer looks at itself, then at the encoder's
   output (cross-attention), then goes through its MLP.
3. Logits are the unembedding of the decoder's normalised residual stream.

Sources: Vaswani et al. 2017 ("Attention Is All You Need"), Raffel et al. 2020 ("T5"), Lewis et al. 2020 ("BART"),
Junczys-Dowmunt et al. 2018 ("Marian").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.arguments import shown, whole_number
from interp.config import STACKS, EncoderDecoderConfig
from interp.encoder_decoder.cache import EncoderDecoderCache
from interp.encoder_decoder.cross_attention import Encoded
from interp.encoder_decoder.stack import Stack
from interp.errors import ConfigError, InterpError, PromptError, UnknownName
from interp.forward.packed_rows import KeysValues
from interp.hooked.cache import ActivationCache
from interp.hooked.generation import generate
from interp.hooked.hooks import HookPoint
from interp.hooked.model import HookedModel
from interp.hooked.past import PastKeyValues
from interp.hooked.tidy import CachedPrompts
from interp.models.gpt import draw_weights, next_token_loss
from interp.sites import NameFilter, site_names
from interp.text.padding import as_mask, check_attention_mask, pad, padding_of
from interp.text.tokenizer import Tokenizer

Prompts = str | Sequence[str] | Tensor


class EncoderDecoder(HookedModel):
    """An encoder-decoder transformer, untrained until weights are loaded.

    Args:
        cfg: what to build; see `EncoderDecoderConfig`.
        tokenizer: text to ids, if there is text.

    Attributes:
        encoder, decoder: the two stacks.

    Raises:
        ConfigError: no such configuration.

    Example:
        >>> from interp.config import ModelConfig
        >>> sizes = {"n_layers": 2, "d_model": 16, "n_ctx": 32, "d_head": 8, "d_vocab": 50, "seed": 0}
        >>> encoder = ModelConfig(**sizes, attention_dir="bidirectional")
        >>> model = EncoderDecoder(EncoderDecoderConfig(encoder, ModelConfig(**sizes, cross_attention=True)))
        >>> logits, cache = model.run_with_cache(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[5, 6]]))
        >>> logits.shape, cache["decoder.cross_attn.pattern", 1].shape
        (torch.Size([1, 2, 50]), torch.Size([1, 2, 2, 4]))
    """

    cfg: EncoderDecoderConfig  # type: ignore[assignment]

    def __init__(self, cfg: EncoderDecoderConfig, tokenizer: Tokenizer | None = None) -> None:
        if not isinstance(cfg, EncoderDecoderConfig):
            raise ConfigError(f"cfg must be an EncoderDecoderConfig, not {shown(cfg)}")
        points = {name: HookPoint(name, site) for name, site in site_names(cfg).items()}
        super().__init__(cfg, tokenizer, points)  # type: ignore[arg-type]
        own = {
            stack: {name.removeprefix(f"{stack}."): point for name, point in points.items() if name.startswith(stack)}
            for stack in STACKS
        }
        self.encoder = Stack(cfg.encoder, own["encoder"])
        self.decoder = Stack(cfg.decoder, own["decoder"], self.encoder.embed if cfg.shared_embeddings else None)
        if self.encoder.embed.W_E.device.type != "meta":
            self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the weights of both stacks as `draw_weights` does, from the decoder's `seed` if it is given."""
        seed = self.cfg.decoder.seed
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        for stack in (self.encoder, self.decoder):
            draw_weights(stack, stack.cfg, generator)

    def forward(
        self,
        input: Prompts,
        decoder_input: Prompts | None = None,
        return_type: str | None = "logits",
        *,
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
    ) -> Any:
        """Run both stacks.

        Args:
            input: what the encoder reads: tokens [batch, source pos] (or [source pos]), a text, several texts.
            decoder_input: what the decoder continues: tokens [batch, pos], which begin with the start token, or texts,
                in front of which it is put; None is the start token alone.
            return_type: "logits", "loss" (mean next-token cross-entropy of the decoder's tokens, in nats), "both", or
                None, which unembeds nothing.
            loss_per_token: the loss of every prediction [batch, pos - 1] instead of the mean.
            prepend_bos: for the encoder's text, as in `to_tokens`.
            attention_mask: [batch, source pos], True at real tokens, for a batch padded on either side.
            decoder_attention_mask: the same for the decoder's tokens [batch, pos].

        Returns:
            Logits [batch, pos, d_vocab_out], or what `return_type` says.

        Raises:
            PromptError: an empty prompt, one longer than the context, ids out of range, a mask of another shape, stacks
                with different numbers of prompts.
        """
        if not isinstance(return_type, str | None) or return_type not in ("logits", "loss", "both", None):
            raise PromptError(f"return_type must be 'logits', 'loss', 'both' or None, not {return_type!r}")
        # 1. The encoder.
        encoded = self.encode(input, prepend_bos=prepend_bos, attention_mask=attention_mask)
        # 2. The decoder; 3. logits.
        tokens, mask = self.decoder_tokens(decoder_input, len(encoded.stream), decoder_attention_mask)
        normalized = self._decoded(encoded, tokens, mask)
        if return_type is None:
            return None
        assert self.decoder.unembed is not None
        logits = self.decoder.unembed(normalized)
        if return_type == "logits":
            return logits
        loss = next_token_loss(logits, tokens, mask, per_token=loss_per_token)
        return loss if return_type == "loss" else (logits, loss)

    def encode(
        self,
        input: Prompts,
        *,
        prepend_bos: bool | None = None,
        attention_mask: Tensor | None = None,
        start_at_layer: int = 0,
    ) -> Encoded:
        """The encoder's output, for `decode`; arguments as in `forward`.

        With `start_at_layer` the input is the residual stream [batch, source pos, d_model] that enters that layer.
        """
        start = self._start(start_at_layer, self.encoder)
        tokens, mask = self._input(input, prepend_bos, attention_mask)
        mask = self._checked_prompt(self.encoder, tokens, mask, start_at_layer=start)
        return Encoded(self.encoder(tokens, mask, start_at_layer=start), mask)

    def decode(
        self,
        encoded: Encoded,
        decoder_input: Prompts | None = None,
        *,
        decoder_attention_mask: Tensor | None = None,
        start_at_layer: int = 0,
    ) -> Tensor:
        """Logits [batch, pos, d_vocab_out] of the decoder, which looks at what `encode` gave.

        Arguments are those of `forward`.

        With `start_at_layer` the input is the residual stream [batch, pos, d_model] that enters that layer.
        """
        if not isinstance(encoded, Encoded):
            raise PromptError(f"encoded must be what model.encode gives, not {shown(encoded)}")
        tokens, mask = self.decoder_tokens(decoder_input, len(encoded.stream), decoder_attention_mask)
        assert self.decoder.unembed is not None
        start = self._start(start_at_layer, self.decoder)
        logits: Tensor = self.decoder.unembed(self._decoded(encoded, tokens, mask, start_at_layer=start))
        return logits

    def _decoded(self, encoded: Encoded, tokens: Tensor, mask: Tensor | None, *, start_at_layer: int = 0) -> Tensor:
        """The decoder's normalised residual stream [batch, pos, d_model]."""
        if len(tokens) != len(encoded.stream):
            raise PromptError(
                f"the encoder has {len(encoded.stream)} prompts and the decoder {len(tokens)}: give equally many"
            )
        mask = self._checked_prompt(self.decoder, tokens, mask, start_at_layer=start_at_layer)
        out: Tensor = self.decoder(tokens, mask, encoded=encoded, start_at_layer=start_at_layer)
        return out

    def _start(self, layer: Any, stack: Stack) -> int:
        return whole_number("start_at_layer", layer, least=0, most=stack.cfg.n_layers, refuse=UnknownName)

    def _checked_prompt(
        self, stack: Stack, tokens: Tensor, mask: Tensor | None, *, start_at_layer: int = 0, n_past: int = 0
    ) -> Tensor | None:
        """The mask of a prompt of one stack, after checking both."""
        which = "encoder" if stack is self.encoder else "decoder"
        if start_at_layer and not tokens.is_floating_point():
            raise PromptError("start_at_layer needs the residual stream [batch, pos, d_model] as input, not tokens")
        if not start_at_layer:
            self._check_ids(tokens, n_past, stack.cfg, f"the {which}'s prompt")
        if mask is None:
            return None
        mask = check_attention_mask(mask, (tokens.shape[0], n_past + tokens.shape[1]))
        return None if bool(mask.all()) else mask

    # Prompts of the decoder

    @property
    def answer_tokenizer(self) -> Tokenizer | None:
        """The tokenizer of what the decoder continues and writes; `tokenizer` is that of what the encoder reads."""
        return None if self.tokenizer is None else self.tokenizer.of_decoder

    def decoder_tokens(
        self, decoder_input: Prompts | None, n_prompts: int, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens [batch, pos] that the decoder continues, and their mask; arguments as in `forward`.

        Raises:
            PromptError: texts, or None, for a model without a start token.
        """
        if isinstance(decoder_input, Tensor):
            if attention_mask is None:
                attention_mask = padding_of(decoder_input)
            tokens = decoder_input[None] if decoder_input.ndim == 1 else decoder_input
            if not tokens.is_floating_point():
                tokens = tokens.to(self.device)
            return tokens, None if attention_mask is None else as_mask(attention_mask).to(self.device)
        if attention_mask is not None:
            raise PromptError("decoder_attention_mask belongs to token ids; text brings its own")
        start = self.cfg.decoder_start_token_id
        if start is None:
            raise PromptError(
                "this model does not say which token a decoder's prompt begins with: give its token ids, or set "
                "decoder_start_token_id in the configuration"
            )
        if decoder_input is None:
            return torch.full((n_prompts, 1), start, device=self.device), None
        texts = [decoder_input] * n_prompts if isinstance(decoder_input, str) else decoder_input
        if not (isinstance(texts, Sequence) and all(isinstance(text, str) for text in texts)):
            raise PromptError(f"decoder_input must be token ids, a text or several texts, not {shown(decoder_input)}")
        rows = [[start, *self._answer_tokenizer().at_start(text)] for text in texts]
        tokens, mask = pad(rows, start, "right")
        return tokens.to(self.device), None if bool(mask.all()) else mask.to(self.device)

    # Caches

    def run_with_cache(
        self,
        input: Prompts,
        decoder_input: Prompts | None = None,
        *args: Any,
        names_filter: NameFilter = None,
        layers: int | slice | Iterable[int] | None = None,
        pos_slice: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, EncoderDecoderCache]:
        """One forward that keeps what both stacks computed; arguments as in `forward` and `HookedModel.run_with_cache`.

        Returns:
            `(output, cache)`.

        Raises:
            PromptError: `layers` or `pos_slice`, which do not say of which stack: give `names_filter`.
        """
        for name, given in (("layers", layers), ("pos_slice", pos_slice)):
            if given is not None:
                raise PromptError(
                    f"{name} does not say of which stack: choose sites by names_filter, such as 'decoder.*'"
                )
        tokens, mask = self._input(input, kwargs.pop("prepend_bos", None), kwargs.pop("attention_mask", None))
        more, own_mask = self.decoder_tokens(decoder_input, len(tokens), kwargs.pop("decoder_attention_mask", None))
        drop = kwargs.pop("remove_batch_dim", False)
        output, cache = super().run_with_cache(
            tokens,
            more,
            *args,
            names_filter=names_filter,
            attention_mask=mask,
            decoder_attention_mask=own_mask,
            **kwargs,
        )
        known = {
            stack: CachedPrompts(
                ids if not ids.is_floating_point() else None, real, ids.shape[1], tokenizer=self.tokenizer
            )
            for stack, ids, real in (("encoder", tokens, mask), ("decoder", more, own_mask))
        }
        both = EncoderDecoderCache(dict(cache), self, masks={"encoder": mask, "decoder": own_mask}, prompts=known)
        if drop:
            both.remove_batch_dim()
        return output, both

    def generate(
        self,
        input: Prompts,
        max_new_tokens: int = 10,
        *,
        decoder_input: Prompts | None = None,
        prepend_bos: bool | None = None,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Continue the decoder's prompts, looking at what the encoder read: it runs once, and its keys are kept.

        Args:
            input, decoder_input, prepend_bos, attention_mask, decoder_attention_mask: as in `forward`; the decoder's
                prompts are padded on the left.
            max_new_tokens: how many to add at most.
            options: of `interp.hooked.generation.generate`; `suppress_tokens` are the configuration's, unless given.

        Returns:
            For ids the decoder's tokens [batch, pos + new]; for a text the decoder's text, a list for several.
        """
        encoded = self.encode(input, prepend_bos=prepend_bos, attention_mask=attention_mask)
        tokens, mask = self.decoder_tokens(decoder_input, len(encoded.stream), decoder_attention_mask)
        options = {"suppress_tokens": self.cfg.suppress_tokens, **options}
        longer: Tensor = generate(_Continuing(self, encoded), tokens, max_new_tokens, attention_mask=mask, **options)
        if isinstance(input, Tensor):
            return longer
        texts = [self._answer_tokenizer().decode(row, skip_special_tokens=True) for row in longer.tolist()]
        return texts[0] if isinstance(input, str) else texts

    def _logits_before(self, tokens: Tensor, answer: list[int]) -> Tensor:
        start, _ = self.decoder_tokens(None, 1)
        logits: Tensor = self(tokens, torch.cat([start, start.new_tensor([answer[:-1]])], dim=1))
        return logits[0]

    # What belongs to one of the stacks

    def derive(self, name: str, tensors: Mapping[str, Tensor], attention_mask: Tensor | None) -> Tensor | None:
        """None: a cache of both stacks derives values in the part that belongs to one (`EncoderDecoderCache`)."""
        return None

    def head_results(self, layer: int, z: Tensor) -> Tensor:
        """Refused: a layer is of one of the stacks."""
        raise InterpError("which stack's layer? Give model.decoder.head_results(layer, z), or that of model.encoder")

    def bias_result(self, layer: int, z: Tensor) -> Tensor | None:
        """Refused: a layer is of one of the stacks."""
        raise InterpError("which stack's layer? Give model.decoder.attention(layer).b_O, or that of model.encoder")

    def norm_before(self, layer: int, *, mlp_input: bool = False) -> Any:
        """Refused: a layer is of one of the stacks."""
        raise InterpError("which stack's layer? Give model.decoder.norm_before(layer), or that of model.encoder")

    @property
    def ln_final(self) -> Any:
        """The norm between the decoder's residual stream and the unembedding."""
        return self.decoder.ln_final

    @property
    def unembed(self) -> Any:
        """What makes logits of the decoder's normalised residual stream."""
        return self.decoder.unembed

    @property
    def W_U(self) -> Tensor:
        """Unembedding [d_model, d_vocab_out], times the logits' factor."""
        return self.decoder.W_U


def output_stack(model: HookedModel) -> Any:
    """What has the residual stream that logits are read from: the decoder of two stacks, or the model itself.

    Of a decoder the names of sites are those within it.
    """
    return model.decoder if isinstance(model, EncoderDecoder) else model


def run_output_stack(
    model: HookedModel, inputs: Mapping[str, Any], names: Sequence[str]
) -> tuple[Tensor, ActivationCache]:
    """Logits of a forward, and the cache of its `output_stack`.

    Args:
        model: the model.
        inputs: of the forward, as `PromptPairs.inputs` gives them.
        names: the sites to keep, by their names in the stack.
    """
    if not isinstance(model, EncoderDecoder):
        return model.run_with_cache(**inputs, names_filter=list(names))
    logits, cache = model.run_with_cache(**inputs, names_filter=[f"decoder.{name}" for name in names])
    return logits, cache.decoder


class _Continuing:
    """A decoder that looks at what was encoded, as generation sees a model."""

    def __init__(self, model: EncoderDecoder, encoded: Encoded) -> None:
        self.model = model
        self.encoded = encoded
        self.cfg = model.cfg.decoder
        self.tokenizer = model.answer_tokenizer
        self.device = model.device
        self.to_batch, self.to_string = model.to_batch, model.to_string
        self.kept: dict[int, KeysValues] = {}

    def __call__(self, input: Tensor, **options: Any) -> Any:
        """Logits [batch, pos, d_vocab_out] of the decoder's tokens [batch, pos] after those in `past_kv_cache`."""
        model: EncoderDecoder = self.model
        past: PastKeyValues | None = options["past_kv_cache"]
        n_past = 0 if past is None else len(past)
        mask = model._checked_prompt(model.decoder, input, options["attention_mask"], n_past=n_past)
        kept = None if past is None else self.kept
        out = model.decoder(input, mask, encoded=self.encoded, past=past, kept=kept)
        return model.unembed(out)
