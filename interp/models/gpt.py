"""The residual stack: blocks between an embedding and an unembedding; `GPT` puts them together.

Every block adds to the residual stream and nothing else touches it:

1. resid_pre = token embedding + position embedding (for the first block).
2. resid_mid = resid_pre + mixer(norm(resid_pre)); the mixer is attention or a state-space layer.
3. resid_post = resid_mid + MLP(norm(resid_mid)); with parallel blocks (GPT-NeoX) both read resid_pre and add at once.
   A block may lack one of the two.
4. logits = unembed(norm(resid_post of the last block)).

A layer may also call a transformer block that it shares with others (`interp.models.shared_block`).

In the first Transformers the norms are on the stream instead: the next part reads norm(resid_mid), the next block
norm(resid_post).

Sources: Vaswani et al. 2017 (attention, positions), Radford et al. 2019 (GPT-2: norm before each part), Black et al.
2022 (GPT-NeoX: parallel blocks, partial rotary), Touvron et al. 2023 (Llama: RMSNorm, rotary, gated MLP).
"""

from __future__ import annotations

import math
import operator
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.arguments import is_whole, plain, shown
from interp.config import ModelConfig, check_config
from interp.errors import ConfigError, PromptError, UnknownName
from interp.forward.forward_context import Context, make_context
from interp.hooked.hooks import HookPoint
from interp.hooked.model import HookedModel
from interp.hooked.past import PastKeyValues
from interp.models.attention import Attention
from interp.models.block import Block
from interp.models.derivations import AT_THE_END, IN_LAYER, LayerRun
from interp.models.layers import (
    Embed,
    MaskedTokenHead,
    Norm,
    PosEmbed,
    SinusoidalEmbed,
    TokenTypeEmbed,
    Unembed,
)
from interp.models.shared_block import SharedBlock
from interp.sites import axis_sizes, site_names, stream_after
from interp.state_space.mixer import MambaMixer
from interp.text.padding import check_attention_mask
from interp.text.tokenizer import Tokenizer

SURELY_FITS = 2**26  # numbers of a model that are not worth counting


def _stacked(part: str, name: str, shape: str) -> property:
    """A property of `GPT`: one weight of every layer in one tensor."""

    def stack(model: GPT) -> Tensor:
        owners = [getattr(block, part) for block in model.blocks]
        there = [layer for layer, owner in enumerate(owners) if getattr(owner, name, None) is not None]
        if not there:
            kinds = ", ".join(dict.fromkeys(map(model.cfg.layer_type, range(len(owners)))))
            raise UnknownName(f"this model has no {name}; its layers are made of: {kinds or 'nothing'}")
        if len(there) < len(owners):
            which = ", ".join(map(str, there))
            raise UnknownName(f"{name} is not in every layer but in {which}: take blocks[l].{part}.{name} of each")
        stacked = [getattr(owner, name) for owner in owners]
        if any(one.shape != stacked[0].shape for one in stacked):
            raise UnknownName(f"{name} has a shape of its own in some layers: take blocks[l].{part}.{name} of each")
        return torch.stack(stacked)

    return property(
        stack, doc=f"`{name}` of every layer, copied: [layer, {shape}]. `blocks[l].{part}.{name}` is a view."
    )


class GPT(HookedModel):
    """A decoder (or bidirectional) transformer, untrained until weights are loaded.

    Args:
        cfg: what to build; see `ModelConfig`.
        tokenizer: text to ids, if there is text.

    Raises:
        ConfigError: no configuration, or one whose weights no tensor, or not this machine's memory, could hold.

    Example:
        >>> model = GPT(ModelConfig(n_layers=2, d_model=16, n_ctx=32, d_head=8, d_vocab=50, seed=0))
        >>> logits, cache = model.run_with_cache(torch.tensor([[1, 2, 3]]))
        >>> logits.shape, cache["pattern", 1].shape
        (torch.Size([1, 3, 50]), torch.Size([1, 2, 3, 3]))
    """

    def __init__(self, cfg: ModelConfig, tokenizer: Tokenizer | None = None) -> None:
        check_config(cfg)
        if cfg.cross_attention or cfg.positional_embedding_type == "relative":
            what = "cross_attention" if cfg.cross_attention else "positional_embedding_type='relative'"
            raise ConfigError(f"{what} is of the stacks of an interp.EncoderDecoder, and a GPT does not have it")
        _check_size(cfg)
        points = {name: HookPoint(name, site) for name, site in site_names(cfg).items()}
        super().__init__(cfg, tokenizer, points)
        tables = {"standard": PosEmbed, "sinusoidal": SinusoidalEmbed}
        table = tables.get(cfg.positional_embedding_type)
        self.embed = Embed(cfg, points)
        self.pos_embed = table(cfg) if table else None
        self.blocks = nn.ModuleList()
        for layer in range(cfg.n_layers):
            self.blocks.append(_block(cfg, layer, points, self.blocks))
        has_final = cfg.normalization_type is not None and cfg.final_norm
        self.ln_final = Norm(cfg, "ln_final", points) if has_final else nn.Identity()
        self.mlm_head = None if cfg.mlm_act_fn is None else MaskedTokenHead(cfg, points)
        self.unembed = Unembed(cfg, self.embed)
        self.token_type_embed = TokenTypeEmbed(cfg) if cfg.n_token_types else None
        self.hook_embed, self.hook_pos_embed = points["hook_embed"], points.get("hook_pos_embed")
        self.hook_token_type_embed = points.get("hook_token_type_embed")
        if self.embed.W_E.device.type != "meta":
            self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw weights as GPT-2 does (Radford et al. 2019, section 2.3), from `cfg.seed` if it is given.

        What makes the recurrence of a state-space layer is drawn as `MambaMixer.init_weights` says, and the rest as
        `draw_weights`.
        """
        generator = None if self.cfg.seed is None else torch.Generator(self.device).manual_seed(self.cfg.seed)
        draw_weights(self, self.cfg, generator)
        for block in self.blocks:
            if isinstance(block.mixer, MambaMixer):
                block.mixer.init_weights(generator)

    def forward(
        self,
        input: str | Sequence[str] | Tensor,
        return_type: str | None = "logits",
        *,
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        attention_mask: Tensor | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: PastKeyValues | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input: tokens [batch, pos] (or [pos], a batch of one), a text, several texts; with `start_at_layer` the
                residual stream [batch, pos, d_model] that enters that layer.
            return_type: "logits", "loss" (mean next-token cross-entropy in nats), "both", or None, which unembeds
                nothing.
            loss_per_token: the loss of every prediction [batch, pos - 1] instead of the mean.
            prepend_bos: for text, as in `to_tokens`.
            attention_mask: [batch, pos], True at real tokens, for a batch padded on either side. With `past_kv_cache`
                it may cover the earlier positions as well.
            start_at_layer: skip the layers before this one.
            stop_at_layer: return the residual stream that enters this layer; negative counts from the last.
            past_kv_cache: keys and values, or states, of earlier positions; this call's are appended.
            token_type_ids: [batch, pos], the segment of each token, in a model that embeds it; None is the first
                everywhere.

        Returns:
            Logits [batch, pos, d_vocab_out], or what `return_type` or `stop_at_layer` say.

        Raises:
            PromptError: an empty prompt, one longer than the context, ids out of range, a mask of another shape; what
                another model left in `past_kv_cache`, or keys that a longer prompt turns by other angles.
        """
        _check_past(past_kv_cache)
        if not isinstance(return_type, str | None) or return_type not in ("logits", "loss", "both", None):
            raise PromptError(f"return_type must be 'logits', 'loss', 'both' or None, not {return_type!r}")
        tokens, mask = self._input(input, prepend_bos, attention_mask)
        first, last = self._layers(start_at_layer, stop_at_layer)
        past = None if past_kv_cache is None else self._draft(past_kv_cache, tokens.shape[0])
        n_past = 0 if past is None else len(past)
        if start_at_layer is None:
            self._check_tokens(tokens, n_past)
        elif not tokens.is_floating_point():
            raise PromptError("start_at_layer needs the residual stream [batch, pos, d_model] as input, not tokens")
        if mask is not None:
            mask = check_attention_mask(
                self._whole_mask(mask, past, tokens.shape[1]),
                (tokens.shape[0], n_past + tokens.shape[1]),
                gaps=not self.cfg.has_mamba,
            )
        if n_past and self.cfg.turns_by_length:
            self._check_kept(n_past, tokens, mask)
        context = make_context(
            self.cfg, tokens.shape[1], n_past=n_past, attention_mask=mask, device=self.device, dtype=self.dtype
        )
        # 1. The embedding; 2. and 3. the blocks; 4. the unembedding.
        types = self._token_types(token_type_ids, tokens)
        resid = tokens if start_at_layer is not None else self.embed_tokens(tokens, context, types)
        if start_at_layer is None and self.cfg.shared is not None:
            context = replace(context, embedded=resid)
            resid = resid.clone()  # so that what is changed in the stream alone, and its gradient, are its own
        for block in self.blocks[first:last]:
            resid = block(resid, context, past)
        out = resid
        if stop_at_layer is None:
            real = mask if n_past == 0 else None
            out = self._read_out(resid, return_type, tokens if start_at_layer is None else None, real, loss_per_token)
        if past_kv_cache is not None and past is not None:
            past_kv_cache.become(past)  # last, so that a forward that fails leaves it as it was
        return out

    def _draft(self, past: PastKeyValues, n_prompts: int) -> PastKeyValues:
        """What a forward of so many prompts extends in place of `past`, which stays as it is if it fails."""
        if not self.cfg.causal:
            raise PromptError(
                "past_kv_cache needs causal attention: where earlier positions look at later ones, nothing of them can "
                "be kept"
            )
        draft = past.draft()
        draft.claim(self, self.cfg.n_layers, n_prompts)
        return draft

    def _check_kept(self, n_past: int, tokens: Tensor, mask: Tensor | None) -> None:
        """Refuse keys that would have been turned by other angles in the whole prompt."""
        n_new = tokens.shape[1]
        if mask is None:
            lengths = [(n_past, n_past + n_new)]
        else:
            lengths = list(zip(mask[:, :n_past].sum(1).tolist(), mask.sum(1).tolist(), strict=True))
        for before, after in lengths:
            if not self.cfg.keys_stay(before, after):
                raise PromptError(
                    f"keys of {before} earlier positions cannot be kept for a prompt of {after}: this model's rotary "
                    "angles depend on the length of the whole prompt (rope_scaling). Run all tokens at once, without "
                    "past_kv_cache; model.generate does so by itself"
                )

    def _read_out(
        self, resid: Tensor, return_type: str | None, tokens: Tensor | None, mask: Tensor | None, per_token: bool
    ) -> Any:
        """What `return_type` says, from the residual stream after the last layer; without tokens there is no loss."""
        if return_type in ("loss", "both") and self.mlm_head is not None:
            raise PromptError(f"return_type={return_type!r} is of the next token, and this model predicts masked ones")
        normalized = self.to_unembed(resid)
        if return_type is None:
            return None
        logits = self.unembed(normalized)
        if return_type == "logits":
            return logits
        if tokens is None:
            raise PromptError(f"return_type={return_type!r} needs tokens to predict, but start_at_layer was given")
        loss = next_token_loss(logits, tokens, mask, per_token=per_token)
        return loss if return_type == "loss" else (logits, loss)

    def block(self, layer: int) -> Block:
        """One layer."""
        block = self.blocks[layer]
        assert isinstance(block, Block)
        return block

    def attention(self, layer: int) -> Attention:
        """The attention of a layer.

        Raises:
            UnknownName: the layer has none.
        """
        attn = self.block(layer).attn
        if attn is None:
            where = ", ".join(map(str, self.cfg.layers_with("attn"))) or "none"
            raise UnknownName(f"layer {layer} has no attention heads; layers of this model that have: {where}")
        return attn

    def to_unembed(self, resid: Tensor) -> Tensor:
        """What the unembedding reads of a stream [..., d_model]: through final norm and masked-token head."""
        normalized: Tensor = self.ln_final(resid)
        return normalized if self.mlm_head is None else self.mlm_head(normalized)

    def _token_types(self, given: Tensor | None, tokens: Tensor) -> Tensor | None:
        """Checked segments [batch, pos]."""
        if given is None:
            return None
        if self.token_type_embed is None or tokens.is_floating_point():
            why = "it starts at a layer" if self.token_type_embed is not None else "this model does not embed segments"
            raise PromptError(f"token_type_ids cannot be taken: {why}")
        if isinstance(given, Tensor) and given.is_floating_point():
            raise PromptError(f"token_type_ids must be whole numbers [batch, pos], not {given.dtype}")
        types = self._input(given, None, None)[0]
        if types.shape != tokens.shape:
            raise PromptError(f"token_type_ids are {list(types.shape)}, expected those of tokens, {list(tokens.shape)}")
        low, high, n = int(types.min()), int(types.max()), self.cfg.n_token_types
        if low < 0 or high >= n:
            raise PromptError(f"token type {low if low < 0 else high} is out of range: this model's are 0 to {n - 1}")
        return types

    def embed_tokens(self, tokens: Tensor, context: Context, token_types: Tensor | None = None) -> Tensor:
        """The residual stream [batch, pos, d_model] that enters the first layer."""
        resid = self.hook_embed(self.embed(tokens))  # [batch, pos, d_model]
        if self.pos_embed is not None and self.hook_pos_embed is not None:
            table = self.pos_embed(context.positions).to(resid.dtype)
            resid = resid + self.hook_pos_embed(table.expand_as(resid))
        if self.token_type_embed is not None and self.hook_token_type_embed is not None:
            types = torch.zeros_like(tokens) if token_types is None else token_types
            resid = resid + self.hook_token_type_embed(self.token_type_embed(types))
        return self.embed.ln(resid) if self.embed.ln is not None and self.embed.norms_sum else resid

    def _layers(self, start: int | None, stop: int | None) -> tuple[int, int]:
        n_layers = self.cfg.n_layers
        start, stop = plain(start), plain(stop)
        for name, value in (("start_at_layer", start), ("stop_at_layer", stop)):
            if value is not None and not (is_whole(value) and -n_layers <= value <= n_layers):
                raise UnknownName(f"{name}={shown(value)} is out of range for a model of {n_layers} layers")
        first = 0 if start is None else start % n_layers if start < 0 else start
        last = n_layers if stop is None else stop % n_layers if stop < 0 else stop
        if last < first:
            raise UnknownName(f"stop_at_layer={stop} comes before start_at_layer={start}")
        return first, last

    def _whole_mask(self, mask: Tensor, past: PastKeyValues | None, n_pos: int) -> Tensor:
        """The mask over earlier and new positions; earlier ones are remembered in `past`."""
        if past is None:
            return mask
        n_past = len(past)
        if n_past and mask.shape[1] == n_pos:
            earlier = mask.new_ones(mask.shape[0], n_past) if past.attention_mask is None else past.attention_mask
            mask = torch.cat([earlier.to(mask.dtype), mask], dim=1)
        past.attention_mask = mask
        return mask

    def derive(self, name: str, tensors: Mapping[str, Tensor], attention_mask: Tensor | None) -> Tensor | None:
        """Patterns from queries and keys, results from z, norms and split inputs from the residual stream.

        `interp.models.derivations` has the table.
        """
        point = self.hook_dict[name]
        short = point.site.short
        if short in AT_THE_END:
            return AT_THE_END[short](self.ln_final, tensors.get(stream_after(self.cfg, self.cfg.n_layers - 1)))
        if short not in IN_LAYER:
            return None
        layer = point.layer()
        return IN_LAYER[short](LayerRun(self.cfg, layer, self.block(layer), tensors, attention_mask))

    def head_results(self, layer: int, z: Tensor) -> Tensor:
        """What each head adds to the residual stream: z W_O.  # [..., head, d_head] -> [..., head, d_model]

        Where a norm follows the attention, at the scale that it has for these z.
        """
        return self._writing_heads(layer).head_results(z)

    def _writing_heads(self, layer: int) -> Block:
        """A layer whose heads write to the residual stream; any other is refused."""
        self.attention(layer)  # refuses a layer without heads
        if self.cfg.shares(layer):
            raise UnknownName(
                f"the heads of layer {layer} are of a shared block, which writes nothing to the residual stream: it "
                "adds to the input of the layer's mixer ('shared_block_out')"
            )
        return self.block(layer)

    def uncapped_logits(self, normalized: Tensor) -> Tensor:
        """Logits before the soft cap of `cfg.output_logits_soft_cap`.  # [..., d_model] -> [..., d_vocab_out]"""
        return self.unembed.uncapped(normalized)

    def bias_result(self, layer: int, z: Tensor) -> Tensor | None:
        """What the attention adds beside its heads; None where nothing.  # [..., head, d_head] -> [..., d_model]"""
        return self._writing_heads(layer).bias_result(z)

    def norm_before(self, layer: int, *, mlp_input: bool = False) -> Norm | None:
        """The norm between the residual stream and a layer, its MLP, or the unembedding; None where there is none."""
        if layer == self.cfg.n_layers:
            return self.ln_final if isinstance(self.ln_final, Norm) else None
        block = self.block(layer)
        if isinstance(block, SharedBlock):
            raise UnknownName(
                f"layer {layer} reads the residual stream twice, in a shared block beside the token embedding and in "
                "its mixer together with what the block makes: no one norm says what it reads"
            )
        return block.norm_before_mlp if mlp_input or self.cfg.mixer(layer) is None else block.norm_before_mixer

    @property
    def W_E(self) -> Tensor:
        """Token embedding [d_vocab, d_model], as it is in the residual stream: times its factor, through its norm."""
        return self.embed.table

    @property
    def W_pos(self) -> Tensor:
        """Position embedding [n_ctx, d_model], learned or sinusoidal."""
        if self.pos_embed is None:
            raise UnknownName(
                f"this model has no position embedding: its positions are {self.cfg.positional_embedding_type!r}"
            )
        table = self.pos_embed.W_pos
        assert isinstance(table, Tensor)
        return table.to(self.device)  # the fixed one has no parameter that would lie somewhere

    @property
    def W_U(self) -> Tensor:
        """Unembedding [d_model, d_vocab_out], times the logits' factor; a view where that is 1."""
        W_U, factor = self.unembed.W_U, self.cfg.logit_scale
        return W_U if factor == 1.0 else W_U * factor

    @property
    def b_U(self) -> Tensor:
        """Unembedding bias [d_vocab_out]; zeros where the model has none."""
        b_U = self.unembed.b_U
        return self.W_E.new_zeros(self.cfg.d_vocab_out) if b_U is None else b_U * self.cfg.logit_scale

    W_Q = _stacked("attn", "W_Q", "head, d_model, d_head")
    W_K = _stacked("attn", "W_K", "kv_head, d_model, d_head")
    W_V = _stacked("attn", "W_V", "kv_head, d_model, d_head")
    W_O = _stacked("attn", "W_O", "head, d_head, d_model")
    b_Q = _stacked("attn", "b_Q", "head, d_head")
    b_K = _stacked("attn", "b_K", "kv_head, d_head")
    b_V = _stacked("attn", "b_V", "kv_head, d_head")
    b_O = _stacked("attn", "b_O", "d_model")
    W_in = _stacked("mlp", "W_in", "d_model, d_mlp")
    W_gate = _stacked("mlp", "W_gate", "d_model, d_mlp")
    W_out = _stacked("mlp", "W_out", "d_mlp, d_model")
    W_router = _stacked("mlp", "W_router", "d_model, expert")
    b_in = _stacked("mlp", "b_in", "d_mlp")
    b_gate = _stacked("mlp", "b_gate", "d_mlp")
    b_out = _stacked("mlp", "b_out", "d_model")


class Mamba(GPT):
    """A language model of state-space layers, alone or between layers of attention; untrained until loaded.

    The same residual stack as `GPT`: everything that runs on one runs on the other, where it does not need heads.

    Args:
        cfg: what to build; its `layer_types` name at least one "mamba" or "mamba2" layer.
        tokenizer: text to ids, if there is text.

    Raises:
        ConfigError: a configuration without such a layer.

    Example:
        >>> model = Mamba(ModelConfig(n_layers=2, d_model=16, n_ctx=32, d_vocab=50, layer_types=("mamba",) * 2, seed=0))
        >>> logits, cache = model.run_with_cache(torch.tensor([[1, 2, 3]]))
        >>> logits.shape, cache["state", 1].shape
        (torch.Size([1, 3, 50]), torch.Size([1, 3, 32, 16]))
    """

    def __init__(self, cfg: ModelConfig, tokenizer: Tokenizer | None = None) -> None:
        check_config(cfg)
        if not cfg.has_mamba:
            raise ConfigError("a Mamba has state-space layers: name them in layer_types, as ('mamba',) * n_layers")
        super().__init__(cfg, tokenizer)


def _block(cfg: ModelConfig, layer: int, points: Mapping[str, HookPoint], earlier: nn.ModuleList) -> Block:
    """A layer, which may share weights with one of the earlier ones."""
    if not cfg.shares(layer):
        return Block(cfg, layer, points)
    first = cfg.first_call(layer)
    owner = None if first == layer else earlier[first]
    assert isinstance(owner, SharedBlock | None)
    return SharedBlock(cfg, layer, points, owner)


def _check_size(cfg: ModelConfig) -> None:
    """Refuse a model that is larger than the memory, before anything is made.

    Raises:
        ConfigError: it is.
    """
    place = torch.get_default_device()
    widest = cfg.d_model + sum(axis_sizes(cfg).values()) + cfg.n_heads * cfg.d_head
    n_mlps = 1 if cfg.experts is None else cfg.experts.n_experts
    at_most = cfg.d_model * (cfg.d_vocab + cfg.d_vocab_out + cfg.n_ctx) + cfg.n_layers * n_mlps * widest**2
    if place.type == "meta" or at_most < SURELY_FITS:
        return
    # One layer of each kind, without memory, is enough to count them all.
    kinds = Counter(cfg.layer_types or ["every layer"] * min(cfg.n_layers, 1))
    layer_types = None if cfg.layer_types is None else tuple(kinds)
    few = cfg.replace(n_layers=len(kinds), layer_types=layer_types, attn_types=None, nope_layers=())
    try:
        with torch.device("meta"):
            model = GPT(few)
    except (RuntimeError, TypeError, OverflowError) as error:  # torch's own, of a size beyond its numbers
        reason = str(error).splitlines()[0]
        raise ConfigError(f"no tensor can have the sizes that this configuration asks for ({reason}): {cfg}") from error
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in model.blocks]
    every = sum(parameter.numel() for parameter in model.parameters()) - sum(sizes)
    counts = kinds.values() if cfg.layer_types is not None else [cfg.n_layers] * len(sizes)
    repeated = sum(
        parameter.numel() * max(0, len(cfg.layers_that_share) - cfg.shared.n_blocks)
        for block in model.blocks
        if isinstance(block, SharedBlock) and cfg.shared is not None
        for _, _, parameter in block.in_common()
    )
    numbers = every + sum(map(operator.mul, sizes, counts)) - repeated
    needed = numbers * torch.get_default_dtype().itemsize
    there = _memory(place)
    if there is not None and needed > there:
        raise ConfigError(
            f"this configuration asks for {needed / 1e9:,.1f} GB of weights, and {place} has {there / 1e9:,.1f} GB of "
            f"memory: {cfg}"
        )


def _memory(place: torch.device) -> int | None:
    """The bytes of a device's memory, free or not; None where the system does not say."""
    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[1])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def draw_weights(model: nn.Module, cfg: ModelConfig, generator: torch.Generator | None) -> None:
    """Draw the weights of a residual stack: normal with `cfg.initializer_range`, what writes to the residual stream
    divided by sqrt(2 n_layers), norms one and biases zero.
    """
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        if last == "w":
            parameter.fill_(0.0 if cfg.norm_unit_offset else 1.0)
        elif last.startswith("b"):
            parameter.zero_()
        else:
            writes = last in ("W_z", "W_down") or name.endswith("mixer.W_out")
            std = cfg.initializer_range / (math.sqrt(2 * cfg.n_layers) if writes else 1.0)
            parameter.normal_(0.0, std, generator=generator)


def _check_past(past: object) -> None:
    if past is not None and not isinstance(past, PastKeyValues):
        raise PromptError(f"past_kv_cache must be a PastKeyValues or None, not {shown(past)}")


def next_token_loss(logits: Tensor, tokens: Tensor, mask: Tensor | None, *, per_token: bool) -> Tensor:
    """Cross-entropy of every next token, in nats; padding does not count.

    Args:
        logits: [batch, pos, d_vocab_out].
        tokens: [batch, pos].
        mask: [batch, pos] or None.
        per_token: [batch, pos - 1], zero at padding, instead of the mean.
    """
    loss = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")  # [batch, pos - 1]
    real = torch.ones_like(loss) if mask is None else (mask[:, 1:] & mask[:, :-1]).to(loss.dtype)
    return loss * real if per_token else (loss * real).sum() / real.sum()
