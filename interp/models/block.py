"""One block of the residual stack: it reads the residual stream, and adds to it.

1. The mixer, attention or a state-space layer, reads the normalised stream and lets positions look at one another.
2. What it made is written to the stream, then the MLP reads that and adds in turn; with parallel blocks both read what
   came in. A block may lack one of the two. Some models normalise what is added too, or multiply it by a factor.
   Where the norms are on the stream, a part reads the stream as it is, which is normalised after the part has added.

The halves are apart because a sweep runs fewer positions through the second than through the first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import repeat
from torch import Tensor, nn

from interp.config import ModelConfig
from interp.errors import HookError
from interp.forward.forward_context import Context
from interp.hooked.hooks import HookPoint
from interp.hooked.past import PastKeyValues
from interp.models.attention import Attention
from interp.models.layers import MLP, Norm, SharedNorm
from interp.models.moe import MoE
from interp.state_space.mamba1 import Mamba1
from interp.state_space.mamba2 import Mamba2

MIXERS: dict[str | None, type[Mamba1] | type[Mamba2]] = {"mamba": Mamba1, "mamba2": Mamba2}


class Block(nn.Module):
    """One layer: a mixer that moves information between positions, and an MLP that works on each by itself."""

    def __init__(self, cfg: ModelConfig, layer: int, points: Mapping[str, HookPoint]) -> None:
        super().__init__()
        here = f"blocks.{layer}"
        mixer, has_mlp = cfg.mixer(layer), cfg.mlp_in(layer)
        self.parallel = cfg.parallel_attn_mlp and mixer is not None
        self.residual_scale = cfg.residual_scale
        self.norms_on_stream, normed = cfg.norms_on_stream, cfg.norms_before or cfg.norms_on_stream
        own = normed and mixer is not None and (layer > 0 or cfg.first_norm)
        self.ln1 = Norm(cfg, f"{here}.ln1", points) if own else None
        self.attn = Attention(cfg, layer, points) if mixer == "attn" else None
        self.ln_mixer: Norm | None = None  # of a layer whose ln1 is of another part
        self.mixer = MIXERS[mixer](cfg, layer, points) if mixer in MIXERS else None
        self.ln1_post = Norm(cfg, f"{here}.ln1_post", points) if cfg.norms_after and mixer == "attn" else None
        self.ln2: Norm | None = None
        if normed and has_mlp:
            owner, path = self.ln1 if cfg.shared_norm else None, f"{here}.ln2"
            self.ln2 = Norm(cfg, path, points) if owner is None else SharedNorm(cfg, path, points, owner)
        self.ln2_post = Norm(cfg, f"{here}.ln2_post", points) if cfg.norms_after and has_mlp else None
        self.mlp: MLP | MoE | None = None
        if cfg.experts_in(layer) is not None:
            self.mlp = MoE(cfg, layer, points)
        elif has_mlp:
            assert cfg.d_mlp is not None
            self.mlp = MLP(cfg, cfg.d_mlp, f"{here}.mlp.hook_", points)
        self.heads = {"q": cfg.n_heads, "k": cfg.n_kv_heads, "v": cfg.n_kv_heads}
        self.hook_split = {name: points[f"{here}.hook_{name}_input"] for name in self.heads if self.attn is not None}
        self.hook_resid_pre, self.hook_resid_post = points[f"{here}.hook_resid_pre"], points[f"{here}.hook_resid_post"]
        self.hook_attn_out, self.hook_mixer_in = (
            points.get(f"{here}.hook_attn_out"),
            points.get(f"{here}.hook_mixer_in"),
        )
        self.hook_resid_mid = points.get(f"{here}.hook_resid_mid")
        self.hook_normalized_resid_mid, self.hook_normalized_resid_post = (
            points.get(f"{here}.hook_normalized_resid_mid"),
            points.get(f"{here}.hook_normalized_resid_post"),
        )
        self.hook_mlp_in, self.hook_mlp_out = points.get(f"{here}.hook_mlp_in"), points.get(f"{here}.hook_mlp_out")

    def forward(self, resid: Tensor, context: Context, past: PastKeyValues | None = None) -> Tensor:
        """The residual stream [batch, pos, d_model] after this layer."""
        return self.write(*self.mix(resid, context, past))

    def mix(self, resid: Tensor, context: Context, past: PastKeyValues | None = None) -> tuple[Tensor, Tensor]:
        """The first half, where positions look at one another: the residual stream, and what the mixer made of it.

        That is z [batch, pos, head, d_head], or what W_out of a state-space layer reads; nothing without a mixer.
        """
        resid = self.hook_resid_pre(resid)
        norm = self.norm_before_mixer
        if self.attn is not None:
            x = resid if norm is None else norm(resid)
            return resid, self.attn.mix(x, context, split=self._split_inputs(resid, x), past=past)
        if self.mixer is None:
            return resid, resid[..., :0]
        assert self.hook_mixer_in is not None
        own = self.hook_mixer_in(resid.clone()) if self.hook_mixer_in.wanted else resid
        return resid, self.mixer.mix(own if norm is None else norm(own), context, past=past)

    def write(self, resid: Tensor, mixed: Tensor) -> Tensor:
        """The second half, where each position is by itself: what mixer and MLP add to the residual stream."""
        if self.attn is not None:
            assert self.hook_attn_out is not None
            added = resid + self.hook_attn_out(self._added(self.attn.write(mixed), self.ln1_post))
        else:
            added = resid if self.mixer is None else resid + self.mixer.write(mixed)
        if self.mlp is None:
            return self._left(added)
        if self.parallel:
            return self._left(added + self._mlp_out(resid))
        resid = added if self.hook_resid_mid is None else self.hook_resid_mid(added)
        if self.hook_normalized_resid_mid is not None and self.ln1 is not None:
            resid = self.hook_normalized_resid_mid(self.ln1(resid))
        return self._left(resid + self._mlp_out(resid))

    def _left(self, added: Tensor) -> Tensor:
        """The residual stream that leaves the block, of what it is with all that the block added."""
        resid, norm = self.hook_resid_post(added), self.ln1 if self.mlp is None else self.ln2
        if self.hook_normalized_resid_post is None or norm is None:
            return resid
        return self.hook_normalized_resid_post(norm(resid))

    @property
    def norm_before_mixer(self) -> Norm | None:
        """The norm between the residual stream and the mixer; None where it reads the stream as it is."""
        return None if self.norms_on_stream else self.ln1

    @property
    def norm_before_mlp(self) -> Norm | None:
        """The norm between the residual stream and the MLP; None where it reads the stream as it is."""
        return None if self.norms_on_stream else self.ln2

    def _mlp_out(self, resid: Tensor) -> Tensor:
        assert self.mlp is not None and self.hook_mlp_in is not None and self.hook_mlp_out is not None
        if self.hook_mlp_in.wanted:
            resid = self.hook_mlp_in(resid.clone())
        norm = self.norm_before_mlp
        x = resid if norm is None else norm(resid)
        return self.hook_mlp_out(self._added(self.mlp(x), self.ln2_post))

    def mlp_added(self, resid: Tensor) -> Tensor:
        """What the MLP adds to a stream [..., d_model], without the hook points of the norms: for other inputs."""
        assert self.mlp is not None
        norm = self.norm_before_mlp
        made = self.mlp(resid if norm is None else norm.unhooked(resid))
        made = made if self.ln2_post is None else self.ln2_post.unhooked(made)
        return made if self.residual_scale == 1.0 else made * self.residual_scale

    def _added(self, made: Tensor, norm: Norm | None) -> Tensor:
        """What is added to the stream of what attention or MLP made."""
        made = made if norm is None else norm(made)
        return made if self.residual_scale == 1.0 else made * self.residual_scale

    @property
    def has_beside_experts(self) -> bool:
        """Whether a mixture adds anything that none of its experts makes: a shared expert, a bias."""
        mlp, after = self.mlp, self.ln2_post
        if not isinstance(mlp, MoE) or mlp.shared is not None or (after is not None and after.b is not None):
            return True
        return mlp.latent_out is not None and mlp.latent_out.b is not None

    def mlp_results(self, parts: Tensor, scale: Tensor | None) -> Tensor:
        """Parts of what the MLP made, as they are added to the stream: through the norm after it, which is linear.

        Args:
            parts: [..., part, d_model].
            scale: the divisor of the norm after the MLP [..., 1]; None where there is none.
        """
        if self.ln2_post is not None and scale is not None:
            parts = self.ln2_post.scaled(parts, scale[..., None, :])
        return parts if self.residual_scale == 1.0 else parts * self.residual_scale

    def head_results(self, z: Tensor) -> Tensor:
        """What each head adds to the residual stream.  # [..., head, d_head] -> [..., head, d_model]

        Where a norm follows the attention it is the norm with the scale that these z give it, which is linear.
        """
        assert self.attn is not None
        return self._at_scale_of(z, self.attn.head_results(z))

    def bias_result(self, z: Tensor) -> Tensor | None:
        """What the attention adds beside its heads [..., d_model]; None where they are all that it adds."""
        assert self.attn is not None
        after = None if self.ln1_post is None else self.ln1_post.b
        if self.attn.b_z is None and after is None:
            return None
        b_z = self.attn.b_z if self.attn.b_z is not None else torch.zeros_like(self.attn.W_z[:, 0])
        result = self._at_scale_of(z, b_z.expand(*z.shape[:-2], 1, -1))[..., 0, :]
        return result if after is None else result + after * self.residual_scale

    def _at_scale_of(self, z: Tensor, results: Tensor) -> Tensor:
        """Parts of the attention's output, as the norm after it and the block's factor scale them.

        [..., part, d_model], of the attention's output for z [..., head, d_head].
        """
        assert self.attn is not None
        if self.ln1_post is not None:
            scale = self.ln1_post.scale(self.attn.output(z))
            results = self.ln1_post.scaled(results, scale[..., None, :])
        return results if self.residual_scale == 1.0 else results * self.residual_scale

    def _split_inputs(self, resid: Tensor, x: Tensor) -> dict[str, Tensor]:
        """A normalised residual stream of its own for every head, where somebody asked for it."""
        split, norm = {}, self.norm_before_mixer
        for name, point in self.hook_split.items():
            if not point.wanted:
                continue
            if norm is not None and norm.edited and not torch.equal(x, norm.unhooked(resid)):
                raise HookError(
                    f"{point.name!r} does not pass through what a hook on this layer's ln1 changed: choose one"
                )
            every = repeat(resid, "batch pos d_model -> batch pos head d_model", head=self.heads[name])
            own = point(every.contiguous())  # one memory for each head, so that they can be changed apart
            split[name] = own if norm is None else norm.unhooked(own)
        return split


def mixed_site(cfg: ModelConfig, layer: int) -> str | None:
    """The site of what the first half of a block hands to the second; None where no mixer does."""
    mixer = cfg.mixer(layer)
    return None if mixer is None else f"blocks.{layer}.{'attn.hook_z' if mixer == 'attn' else 'mixer.hook_gated'}"


def key_site(cfg: ModelConfig, layer: int) -> str:
    """The site of a layer's keys as its scores compare them: normalised, and turned by their positions."""
    plain = cfg.qk_norm is None and cfg.attention_kind(layer).rotary_base is None
    return f"blocks.{layer}.attn.hook_{'k' if plain else 'rot_k'}"
