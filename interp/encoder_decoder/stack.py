"""One stack of an encoder-decoder: embeddings, blocks, and the norm after the last of them.

A cache's part of a stack reads from it what it needs (`interp.hooked.decompositions.CachedModel`). Here sites have
their names within the stack, `blocks.3.attn.hook_z`; the model's own begin with the stack's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from interp.config import ModelConfig
from interp.encoder_decoder.block import DecoderBlock
from interp.encoder_decoder.cross_attention import DecoderContext, Encoded
from interp.errors import InterpError, PromptError, UnknownName
from interp.forward.forward_context import Context, make_context
from interp.forward.packed_rows import KeysValues
from interp.hooked.hooks import HookPoint
from interp.hooked.past import PastKeyValues
from interp.models.attention import Attention
from interp.models.block import Block
from interp.models.derivations import AT_THE_END, IN_LAYER, LayerRun
from interp.models.layers import Embed, Norm, PosEmbed, SharedEmbed, SinusoidalEmbed, Unembed
from interp.sites import stream_after


class Stack(nn.Module):
    """The encoder or the decoder of a model.

    Args:
        cfg: the stack's configuration.
        points: its hook points, by their names within the stack.
        shares: the embedding whose table it has; None for one of its own.

    Attributes:
        hook_dict: its hook points.
        W_rel: the table of relative positions [bucket, head] that all layers share; None where there is none.
        unembed: what makes logits of its output; None in an encoder.
    """

    def __init__(self, cfg: ModelConfig, points: Mapping[str, HookPoint], shares: Embed | None = None) -> None:
        super().__init__()
        tables = {"standard": PosEmbed, "sinusoidal": SinusoidalEmbed}
        table = tables.get(cfg.positional_embedding_type)
        block = DecoderBlock if cfg.cross_attention else Block
        self.cfg = cfg
        self.hook_dict = points
        self.embed = Embed(cfg, points) if shares is None else SharedEmbed(cfg, points, shares)
        self.pos_embed = table(cfg) if table else None
        relative = cfg.positional_embedding_type == "relative"
        self.W_rel = nn.Parameter(torch.empty(cfg.relative_buckets, cfg.n_heads)) if relative else None
        self.blocks = nn.ModuleList([block(cfg, layer, points) for layer in range(cfg.n_layers)])
        has_final = cfg.normalization_type is not None and cfg.final_norm
        self.ln_final = Norm(cfg, "ln_final", points) if has_final else nn.Identity()
        self.unembed = Unembed(cfg, self.embed) if cfg.cross_attention else None
        self.hook_embed, self.hook_pos_embed = points["hook_embed"], points.get("hook_pos_embed")

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        *,
        encoded: Encoded | None = None,
        past: PastKeyValues | None = None,
        kept: dict[int, KeysValues] | None = None,
        start_at_layer: int = 0,
    ) -> Tensor:
        """The stack's output, after the final norm if it has one [batch, pos, d_model].

        Args:
            tokens: [batch, pos]; with `start_at_layer` the residual stream [batch, pos, d_model] that enters the layer.
            mask: [batch, earlier and these positions], True at real tokens; None without padding.
            encoded: what a decoder looks at.
            past: keys and values of earlier positions.
            kept: as in `DecoderContext`.
            start_at_layer: skip the layers before this one.

        Raises:
            PromptError: a decoder that is given nothing to look at, or an encoder that is.
        """
        if (encoded is None) == self.cfg.cross_attention:
            raise PromptError(
                "a decoder looks at what its encoder read, and an encoder at nothing: call the whole model, or "
                "model.decode(model.encode(input), decoder_input)"
            )
        context = make_context(
            self.cfg,
            tokens.shape[1],
            n_past=0 if past is None else len(past),
            attention_mask=mask,
            relative=self.W_rel,
            device=self.device,
            dtype=self.dtype,
        )
        if encoded is not None:
            context = DecoderContext(context.positions, context.sights, real=context.real, encoded=encoded, kept=kept)
        resid = tokens if tokens.is_floating_point() else self.embed_tokens(tokens, context)
        for block in self.blocks[start_at_layer:]:
            resid = block(resid, context, past)
        return self.to_unembed(resid)

    def to_unembed(self, resid: Tensor) -> Tensor:
        """What the unembedding, or the other stack, reads of a stream [..., d_model]: it, through the final norm."""
        normalized: Tensor = self.ln_final(resid)
        return normalized

    def embed_tokens(self, tokens: Tensor, context: Context) -> Tensor:
        """The residual stream [batch, pos, d_model] that enters the first layer."""
        resid = self.hook_embed(self.embed(tokens))  # [batch, pos, d_model]
        if self.pos_embed is not None and self.hook_pos_embed is not None:
            table = self.pos_embed(context.positions).to(resid.dtype)
            resid = resid + self.hook_pos_embed(table.expand_as(resid))
        return self.embed.ln(resid) if self.embed.ln is not None and self.embed.norms_sum else resid

    # What a cache asks of the model that ran

    def derive(self, name: str, tensors: Mapping[str, Tensor], attention_mask: Tensor | None) -> Tensor | None:
        """The value of a site from those of its neighbours, as `interp.models.derivations` gives it, or None."""
        point = self.hook_dict[name]
        short = point.site.short_in_stack
        if short in AT_THE_END:
            return AT_THE_END[short](self.ln_final, tensors.get(stream_after(self.cfg, self.cfg.n_layers - 1)))
        if short not in IN_LAYER:
            return None
        layer = point.layer()
        return IN_LAYER[short](LayerRun(self.cfg, layer, self.block(layer), tensors, attention_mask, self.W_rel))

    def block(self, layer: int) -> Block:
        """One layer."""
        block = self.blocks[layer]
        assert isinstance(block, Block)
        return block

    def attention(self, layer: int, *, cross: bool = False) -> Attention:
        """The attention of a layer, or its cross-attention.

        Raises:
            UnknownName: a cross-attention in an encoder.
        """
        block = self.block(layer)
        if cross and not isinstance(block, DecoderBlock):
            raise UnknownName("the encoder has no cross-attention; the decoder has one in every layer")
        attn = block.cross_attn if cross and isinstance(block, DecoderBlock) else block.attn
        assert attn is not None
        return attn

    def head_results(self, layer: int, z: Tensor) -> Tensor:
        """What each head adds to the residual stream: z W_O.  # [..., head, d_head] -> [..., head, d_model]"""
        return self.block(layer).head_results(z)

    def bias_result(self, layer: int, z: Tensor) -> Tensor | None:
        """What the attention adds beside its heads; None where nothing.  # [..., head, d_head] -> [..., d_model]"""
        return self.block(layer).bias_result(z)

    def cross_head_results(self, layer: int, z: Tensor) -> Tensor:
        """What each head of a cross-attention adds to the stream.  # [..., head, d_head] -> [..., head, d_model]"""
        results = self.attention(layer, cross=True).head_results(z)
        return results if self.cfg.residual_scale == 1.0 else results * self.cfg.residual_scale

    def cross_bias(self, layer: int) -> Tensor | None:
        """What a cross-attention adds beside its heads [d_model]; None where nothing."""
        bias = self.attention(layer, cross=True).b_z
        return None if bias is None else bias * self.cfg.residual_scale

    def uncapped_logits(self, normalized: Tensor) -> Tensor:
        """Logits before a soft cap.  # [..., d_model] -> [..., d_vocab_out]"""
        if self.unembed is None:
            raise InterpError("no unembedding reads the encoder's output: logits are the decoder's")
        return self.unembed.uncapped(normalized)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.embed.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' number type."""
        return self.embed.W_E.dtype

    def norm_before(self, layer: int, *, mlp_input: bool = False) -> Norm | None:
        """The norm between the residual stream and a layer, its MLP, or what reads the output; None where none is."""
        if layer == self.cfg.n_layers:
            return self.ln_final if isinstance(self.ln_final, Norm) else None
        return self.block(layer).norm_before_mlp if mlp_input else self.block(layer).norm_before_mixer

    def tokens_to_residual_directions(self, tokens: str | int | Tensor | Sequence[int]) -> Tensor:
        """Columns of W_U, one for each token id.

        Raises:
            InterpError: of an encoder, whose output no unembedding reads; a token that is no id.
        """
        if self.unembed is None:
            raise InterpError("no unembedding reads the encoder's output: logits are the decoder's")
        if isinstance(tokens, str):
            raise InterpError(f"a stack reads ids, not text: give model.to_single_token({tokens!r})")
        return self.W_U.T[torch.as_tensor(tokens, device=self.device)]

    @property
    def W_U(self) -> Tensor:
        """Unembedding [d_model, d_vocab_out], times the logits' factor."""
        if self.unembed is None:
            raise InterpError("no unembedding reads the encoder's output: logits are the decoder's")
        return self.unembed.W_U * self.cfg.logit_scale
