"""Every site against what a module of transformers reads or returns, seen by hooks on both sides.

1. Both models run on the same tokens. Hooks keep what each module of theirs was given and what it gave, and the
   queries, keys and attention weights of its eager attention.
2. Where a weight of ours lies in theirs, the family's own table says; the module that holds it is the counterpart of
   the sites beside that weight. A fused projection is taken apart as its weight is.
3. `COUNTERPARTS` has, for each kind of site, both sides of the comparison. Sites for which no module computes the
   value are listed in the cell.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from interp.config import ModelConfig
from interp.errors import InterpError
from interp.hooked.cache import ActivationCache
from interp.weights.checkpoint import Row
from interp.weights.huggingface import reader

from .cell import Cell, difference, holds
from .subject import Subject, inputs

SITES = 1e-5  # of the largest value, in float32
STACK = re.compile(r"((en|de)coder\.)?")  # how names in a model of two stacks begin


@dataclass
class Seen:
    """What a run of their model showed, by the names of modules as in the family's table."""

    modules: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    attention: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)


@contextlib.contextmanager
def watched(subject: Subject) -> Iterator[Seen]:
    """Keep what modules read and return for as long as the block lasts."""
    seen, names = Seen(), {}
    with contextlib.ExitStack() as stack:
        for name, module in subject.theirs.named_modules():
            names[module] = bare = subject.family.bare(name)
            seen.modules[bare] = module

            def keep(module: Any, args: Any, kwargs: Any, output: Any, bare: str = bare) -> None:
                # Copies, as some models add to a module's output in place.
                read = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
                seen.inputs[bare] = tuple(value.clone() for value in read)
                first = output[0] if isinstance(output, tuple) else output
                if isinstance(first, Tensor):
                    seen.outputs[bare] = first.clone()
                if isinstance(output, tuple) and len(output) > 1 and isinstance(output[-1], Tensor):
                    seen.weights[bare] = output[-1].clone()

            stack.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
        for place in {type(module).__module__ for module in names}:
            modelling = sys.modules[place]
            if (eager := getattr(modelling, "eager_attention_forward", None)) is None:
                continue

            def attend(module: Any, q: Tensor, k: Tensor, *args: Any, eager: Any = eager, **options: Any) -> Any:
                out, weights = eager(module, q, k, *args, **options)
                seen.attention[names[module]] = (q, k, weights)
                return out, weights

            stack.enter_context(mock.patch.object(modelling, "eager_attention_forward", attend))
        yield seen


@dataclass(frozen=True, eq=False)
class Place:
    """One site in one layer, with both runs.

    A method raises KeyError where their side has no such module.
    """

    subject: Subject
    seen: Seen
    cache: ActivationCache
    name: str

    @property
    def stack(self) -> str:
        """How names of the site's stack begin, in a model of two."""
        return STACK.match(self.name)[0]  # type: ignore[index]

    @property
    def layer(self) -> int:
        """The site's layer."""
        return int(self.name.removeprefix(self.stack).split(".")[1])

    @property
    def here(self) -> str:
        """The beginning of the names of the layer's weights."""
        return f"{self.stack}blocks.{self.layer}."

    @property
    def attn(self) -> str:
        """The beginning of the names of the weights of the attention that the site belongs to."""
        return self.here + ("cross_attn." if "cross_attn" in self.name else "attn.")

    @property
    def cfg(self) -> ModelConfig:
        """Our configuration, of the stack."""
        return reader.part_of(self.subject.ours.cfg, self.name)

    @property
    def ours(self) -> Tensor:
        """Our value."""
        return self.cache[self.name]

    @property
    def block(self) -> str:
        """The name of their layer."""
        rows = self.subject.family.rows
        first = next(rows[name].theirs for name in rows if name.startswith(f"{self.stack}blocks."))
        return f"{first.partition('.{l}.')[0]}.{self.layer}"

    def row(self, weight: str) -> Row:
        """Where a weight of ours lies."""
        return self.subject.family.row(weight)

    def module(self, weight: str) -> str:
        """The module of theirs that holds a weight of ours."""
        return self.row(weight).theirs.rpartition(".")[0]

    def into(self, module: str) -> Tensor:
        """What a module read first."""
        return self.seen.inputs[module][0]

    def through(self, weight: str) -> Tensor:
        """What the module with a weight returned, taken apart as the weight is.  # [..., batch pos, ...]"""
        module, row = self.module(weight), self.row(weight)
        out = self.seen.outputs[module]
        flat = out.reshape(-1, out.shape[-1])  # [batch pos, out]
        if isinstance(self.seen.modules[module], torch.nn.Linear):
            flat = flat.T
        try:
            return reader._arranged(flat, row=row, cfg=self.cfg, origin=module)
        except InterpError as error:  # no refusal of the model's, which has been loaded
            raise AssertionError(str(error)) from error

    def heads(self, weight: str) -> Tensor:
        """The same of a head's weights.  # [batch, pos, head, d_head]"""
        return rearrange(self.through(weight), "head (b pos) d -> b pos head d", b=self.ours.shape[0])

    def neurons(self, weight: str) -> Tensor:
        """The same of an MLP's weights.  # [batch, pos, d_mlp]"""
        theirs = self.through(weight).reshape(self.ours.shape)
        both = self.adapter("mlp.adapter")  # gate, then input
        return theirs if both is None else theirs + both.chunk(2, dim=-1)[weight.endswith("W_in")]

    def adapter(self, path: str) -> Tensor | None:
        """What the layer's own adapter beside weights that layers share returned; None where there is none."""
        try:
            module = self.module(f"{self.here}{path}.W_wide")
        except KeyError:
            return None
        # Those of all layers lie in the first that calls the block, and each layer calls its own copy.
        return self.seen.outputs[re.sub(r"layers\.\d+", f"layers.{self.layer}", module, count=1)]

    def added(self, weight: str, norm: str) -> Tensor:
        """What a sub-layer added: what a norm after it returned or, without one, the module that holds its weights."""
        known = {name.rpartition("}.")[2] for name in self.subject.family.rows}
        return self.seen.outputs[self.module(self.here + (norm if norm in known else weight))]

    def attention(self) -> tuple[Tensor, Tensor, Tensor]:
        """Turned queries and keys, and attention weights, of the layer's attention."""
        return self.seen.attention[self.module(f"{self.attn}W_Q").rpartition(".")[0]]

    def weights(self) -> Tensor:
        """The attention weights alone, which some modules return instead."""
        with contextlib.suppress(KeyError):
            return self.attention()[2]
        return self.seen.weights[self.module(f"{self.attn}W_Q").rpartition(".")[0]]


Pair = tuple[Tensor, Tensor]


def like(theirs: Tensor, ours: Tensor) -> Tensor:
    """Their value on our axes: heads may stand before positions, or be joined."""
    if theirs.ndim == ours.ndim == 4 and theirs.shape != ours.shape:
        return theirs.transpose(1, 2)
    return theirs.reshape(ours.shape)


def _embedding(at: Place) -> Pair:
    """The token embedding, as scaled and normalised: what enters the first layer, without those of positions and types.

    Where a norm comes after their sum, what this norm reads.
    """
    whole = at.ours + sum(at.cache.get(f"{at.stack}hook_{name}_embed", 0) for name in ("pos", "token_type"))
    if at.cfg.embed_norm_of_sum:
        return whole, at.into(at.module(f"{at.stack}embed.ln.w"))
    first = Place(at.subject, at.seen, at.cache, f"{at.stack}blocks.0.hook_resid_pre")
    return whole, at.into(first.block)


def _positions(at: Place) -> Pair:
    return at.ours, at.seen.outputs[at.module(f"{at.stack}pos_embed.W_pos")].expand_as(at.ours)


def _norm(at: Place) -> tuple[Any, str]:
    prefix = at.name.rpartition(".hook_")[0]
    return at.subject.ours.get_submodule(prefix), at.module(f"{prefix}.w")


def _normalized(at: Place) -> Pair:
    norm, module = _norm(at)
    gain = getattr(norm, "gain", norm.w)
    ours = at.ours if gain is None else at.ours * gain
    return ours if norm.b is None else ours + norm.b, like(at.seen.outputs[module], at.ours)


def _scale(at: Place) -> Pair:
    norm, module = _norm(at)
    normalized = at.cache[at.name.replace("hook_scale", "hook_normalized")]
    x = like(at.into(module), normalized)
    return at.ours * normalized, x - x.mean(-1, keepdim=True) if norm.centers else x


def _layer_input(at: Place) -> Pair:
    x = at.into(at.block)
    if at.cfg.shares(at.layer) and not at.name.endswith("resid_pre"):  # what the norm before the part reads
        x = at.into(at.module(at.here + ("ln_mixer.w" if at.name.endswith("mixer_in") else "ln1.w")))
    return at.ours, (x if at.ours.ndim == x.ndim else x[:, :, None]).expand_as(at.ours)


def _before_mlp(at: Place) -> Pair:
    """What the norm before the MLP reads or, where it is the mixer's or none, what the layer or the MLP reads.

    Of norms on the stream the first one comes before the MLP, and the MLP reads what it gives.
    """
    if at.cfg.norms_on_stream and at.name.endswith("mlp_in"):
        return at.ours, at.seen.outputs[at.module(at.here + ("ln_cross.w" if at.cfg.cross_attention else "ln1.w"))]
    with contextlib.suppress(KeyError):
        return at.ours, at.into(at.module(at.here + ("ln1.w" if at.cfg.norms_on_stream else "ln2.w")))
    if at.cfg.parallel_attn_mlp:
        return _layer_input(at)
    return at.ours, at.into(at.module(at.here + "mlp.W_in"))


def _middle(at: Place) -> Pair:
    """The stream after the first of two or three parts of a layer, before a norm on it."""
    if at.cfg.cross_attention and not at.cfg.norms_on_stream:
        return at.ours, at.into(at.module(at.here + "ln_cross.w"))
    return _before_mlp(at)


def _after_cross(at: Place) -> Pair:
    """The stream after a layer's cross-attention, before a norm on it."""
    return at.ours, at.into(at.module(at.here + ("ln_cross.w" if at.cfg.norms_on_stream else "ln2.w")))


def _after(at: Place) -> Pair:
    """The stream after a layer, before a norm on it."""
    return at.ours, at.into(at.module(at.here + "ln2.w")) if at.cfg.norms_on_stream else at.seen.outputs[at.block]


def _added(weight: str, norm: str) -> Callable[[Place], Pair]:
    """What a part of a layer adds, with the factor that some configurations have."""

    def pair(at: Place) -> Pair:
        factor = getattr(at.subject.theirs.config.get_text_config(), "residual_multiplier", 1.0)
        return at.ours, factor * at.added(weight, norm)

    return pair


def _query_key_value(at: Place) -> Pair:
    """What a projection gives, within the bounds that some models set."""
    theirs, cfg = at.heads(f"{at.attn}W_{at.name[-1].upper()}"), at.cfg
    if (more := at.adapter(f"attn.adapters.{at.name[-1].upper()}")) is not None:
        theirs = theirs + more.reshape(theirs.shape)
    bounded = cfg.clip_qkv is not None and (cfg.qk_norm is None or at.name.endswith("v"))  # else after the norm
    return at.ours, theirs.clamp(-cfg.clip_qkv, cfg.clip_qkv) if bounded and cfg.clip_qkv is not None else theirs


def _result(at: Place) -> Pair:
    bias = getattr(at.subject.ours.get_submodule(at.attn.rstrip(".")), "b_O", None)
    theirs = at.seen.outputs[at.module(f"{at.attn}W_O")]
    return at.ours.sum(2) if bias is None else at.ours.sum(2) + bias, theirs


def _gate_or_in(at: Place) -> Pair:
    return at.ours, at.neurons(at.here + ("mlp.W_gate" if at.cfg.gated_mlp else "mlp.W_in"))


def _scores(at: Place) -> Pair:
    """The pattern that follows from the scores; with a sink, which takes a share, as one more score."""
    scores, n_keys = at.ours, at.ours.shape[-1]
    if (sinks := at.cache.get(at.name.replace("attn_scores", "sinks"))) is not None:
        scores = torch.cat((scores, sinks.transpose(1, 2)[..., None]), dim=-1)
    return scores.softmax(-1)[..., :n_keys], at.weights()


def _projected(at: Place) -> Pair:
    """One of the parts of what a state-space layer's W_in gives."""
    mixer = at.subject.one.block(at.layer).mixer
    assert mixer is not None
    out = at.seen.outputs[at.module(at.here + "mixer.W_in")]
    parts = dict(zip(mixer.parts, out.split(list(mixer.parts.values()), dim=-1), strict=True))
    return at.ours, parts[at.name.rpartition("_")[2]].reshape(at.ours.shape)


def _convolved(at: Place) -> Pair:
    return at.ours, at.into(at.module(at.here + "mixer.W_x"))


def _selected(at: Place) -> Pair:
    """B or C of Mamba-1: a norm's output or, where there is none, a part of what W_x gives."""
    letter = at.name[-1]
    with contextlib.suppress(KeyError):
        return at.ours, at.seen.outputs[at.module(f"{at.here}mixer.w_{letter}_norm")]
    cfg = at.cfg
    if cfg.ssm_normalization_type is not None or cfg.dt_rank is None or cfg.d_state is None:
        raise KeyError(at.name)
    out = at.seen.outputs[at.module(at.here + "mixer.W_x")]
    return at.ours, dict(zip("dBC", out.split([cfg.dt_rank, cfg.d_state, cfg.d_state], dim=-1), strict=True))[letter]


def _gated_norm(input: int) -> Callable[[Place], Pair]:
    """What the norm of Mamba-2 reads: y, and the gate."""

    def pair(at: Place) -> Pair:
        read = at.seen.inputs[at.module(at.here + "mixer.w_norm")][input]
        return at.ours.flatten(2), read.reshape(at.ours.flatten(2).shape)

    return pair


def _steps(at: Place) -> Pair:
    """The step sizes of Mamba-2, of their bias and what W_in gives."""
    cfg, mixer = at.cfg, at.subject.one.block(at.layer).mixer
    assert mixer is not None
    if "dt" not in mixer.parts:
        raise KeyError(at.name)
    out = at.seen.outputs[at.module(at.here + "mixer.W_in")]
    dt = dict(zip(mixer.parts, out.split(list(mixer.parts.values()), dim=-1), strict=True))["dt"]
    least, most = cfg.dt_limit or (0.0, float("inf"))
    return at.ours, F.softplus(dt + at.subject.theirs.get_parameter(_full(at, "mixer.b_dt"))).clamp(least, most)


def _full(at: Place, weight: str) -> str:
    """The name of a parameter of theirs, as the whole model has it."""
    bare = at.row(at.here + weight).theirs
    return next(name for name, _ in at.subject.theirs.named_parameters() if at.subject.family.bare(name) == bare)


COUNTERPARTS: dict[str, Callable[[Place], Pair]] = {
    r"hook_embed": _embedding,
    r"hook_pos_embed": _positions,
    r"hook_token_type_embed": lambda at: (at.ours, at.seen.outputs[at.module("token_type_embed.W_token_type")]),
    r".*\.hook_normalized": _normalized,
    r".*\.hook_scale": _scale,
    r"blocks\.\d+\.hook_(resid_pre|[qkv]_input|mixer_in)": _layer_input,
    r"blocks\.\d+\.hook_resid_mid": _middle,
    r"blocks\.\d+\.hook_mlp_in": _before_mlp,
    r"blocks\.\d+\.hook_normalized_resid_mid": lambda at: (at.ours, at.seen.outputs[at.module(at.here + "ln1.w")]),
    r"blocks\.\d+\.hook_normalized_resid_post": lambda at: (at.ours, at.seen.outputs[at.block]),
    r"blocks\.\d+\.hook_resid_post": _after,
    r"blocks\.\d+\.hook_resid_mid_cross": _after_cross,
    r"blocks\.\d+\.hook_normalized_resid_mid_cross": (
        lambda at: (at.ours, at.seen.outputs[at.module(at.here + "ln_cross.w")])
    ),
    r"blocks\.\d+\.hook_cross_attn_out": lambda at: (at.ours, at.seen.outputs[at.module(f"{at.here}cross_attn.W_O")]),
    r"blocks\.\d+\.hook_shared_block_in": _layer_input,
    r"blocks\.\d+\.hook_shared_block_mid": lambda at: (at.ours, at.seen.outputs[at.module(at.here + "attn.W_O")]),
    r"blocks\.\d+\.hook_shared_block_out": lambda at: (at.ours, at.seen.outputs[at.module(at.here + "W_shared")]),
    r"blocks\.\d+\.hook_attn_out": _added("attn.W_O", "ln1_post.w"),
    r"blocks\.\d+\.hook_mlp_out": _added("mlp.W_out", "ln2_post.w"),
    r".*attn\.hook_[qkv]": _query_key_value,
    r".*\.attn\.hook_rot_q": lambda at: (at.ours, at.attention()[0].transpose(1, 2)),
    r".*\.attn\.hook_rot_k": lambda at: (at.ours, at.attention()[1].transpose(1, 2)),
    r".*attn\.hook_attn_scores": _scores,
    r".*attn\.hook_pattern": lambda at: (at.ours, at.weights()),
    r".*attn\.hook_z": lambda at: (at.ours.flatten(2), at.into(at.module(f"{at.attn}W_O"))),
    r".*attn\.hook_result": _result,
    r".*\.mlp\.hook_pre": _gate_or_in,
    r".*\.mlp\.hook_pre_linear": lambda at: (at.ours, at.neurons(at.here + "mlp.W_in")),
    r".*\.mlp\.hook_post": lambda at: (at.ours, at.into(at.module(at.here + "mlp.W_out"))),
    r"mlm_head\.hook_pre": lambda at: (at.ours, at.seen.outputs[at.module("mlm_head.W")]),
    r"mlm_head\.hook_post": lambda at: (at.ours, at.into(at.module("mlm_head.ln.w"))),
    r".*\.mixer\.hook_in": _projected,
    r".*\.mixer\.hook_conv": _convolved,
    r".*\.mixer\.hook_[BC]": _selected,
    r".*\.mixer\.hook_delta": _steps,
    r".*\.mixer\.hook_y": _gated_norm(0),
    r".*\.mixer\.hook_gate": _projected,
    r".*\.mixer\.hook_gated": lambda at: (at.ours.flatten(2), at.into(at.module(at.here + "mixer.W_out"))),
    r".*\.mixer\.hook_out": lambda at: (at.ours, at.seen.outputs[at.module(at.here + "mixer.W_out")]),
}
"""Both sides of the comparison, for each kind of site: a pattern of names, and what gives (ours, theirs)."""


def counterpart(name: str) -> Callable[[Place], Pair] | None:
    """What gives both sides for a site; None where no module of theirs computes it."""
    within = STACK.sub("", name, count=1)
    return next((both for pattern, both in COUNTERPARTS.items() if re.fullmatch(pattern, within)), None)


@torch.no_grad()
def sites(subject: Subject) -> Cell:
    """Every site that has a counterpart, computed alone and beside all others."""
    tokens = subject.tokens(2, 11)
    # 1. Both models run; with every site wanted, attention and states go their explicit ways.
    with watched(subject) as seen:
        subject.logits(tokens, **({"output_attentions": True} if subject.family.head == "Seq2SeqLM" else {}))
    given = inputs(subject.ours, tokens)
    caches = [subject.ours.run_with_cache(*given)[1]]
    caches.append(subject.ours.run_with_cache(*given, names_filter=list(subject.ours.hook_dict))[1])
    largest, worst, missing = 0.0, "", dict[str, None]()
    for cache in caches:
        for name in [name for name in subject.ours.hook_dict if cache is caches[1] or name in dict(cache.items())]:
            # 2. and 3. The two sides, or a note that theirs is missing.
            both = counterpart(name)
            try:
                pair = None if both is None else both(Place(subject, seen, cache, name))
            except KeyError:
                pair = None
            if pair is None:
                missing[re.sub(r"blocks\.\d+\.|hook_", "", name)] = None
                continue
            ours, theirs = pair
            flat = theirs.ndim == 2 and theirs.numel() == ours.numel()  # positions of all prompts in one axis
            found = difference(ours, theirs.reshape(ours.shape) if flat else theirs)
            if not found <= largest:
                largest, worst = found, name
    cell = holds(largest, SITES, f"no counterpart: {', '.join(missing)}" if missing else "")
    return cell if cell.kind == "holds" else Cell("wrong", largest, f"largest at {worst}")


CHECKS = {"sites": sites}
