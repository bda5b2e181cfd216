"""The one table of activation sites: what can be read, replaced and differentiated, and where it is computed.

A site means the same point of the computation in every family. Names are TransformerLens's. A site that is `on_demand`
costs something beyond the plain forward (an attention pattern that the fused kernel never forms, a copy of the residual
stream for every head); it is computed only in the layers where a hook or a cache asks for it.

Every axis has one name everywhere: `batch`, `pos`, `head`, `kv_head` (key and value heads, fewer than `head` with
grouped queries), `query`, `key`, `d_model`, `d_head`, `d_mlp` (also called `neuron`), and `one` for an axis of length
one. Mixtures of experts have `expert`, `d_expert`, `d_shared` (neurons of the shared expert) and `slot` (the chosen
ones). State-space layers have `channel` (Mamba-1), `ssm_head`, `d_ssm_head` and `ssm_group` (Mamba-2), `d_state`, and
`conv_channel`: channels, B and C side by side, as Mamba-2 convolves them.

Names in an encoder-decoder begin with the stack, `encoder.blocks.3.attn.hook_z`, and so do the short ones, `encoder.z`.
Positions are those of the stack's own prompt; keys and values of a cross-attention, and the keys of its pattern, stand
at the encoder's.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from interp.arguments import is_several, misfit, own_signature, shown, whole_number
from interp.config import STACKS, EncoderDecoderConfig, ModelConfig, check_config
from interp.errors import UnknownName, unknown

NameFilter = str | Callable[[str], bool] | Sequence[str] | None


@dataclass(frozen=True)
class Site:
    """One row of the table: `template` is the full name, with `{l}` for the layer if the site belongs to one.

    `mixers` lists the mixers ("attn", "mamba", "mamba2") whose layers have the site, with "shared" for layers that call
    a shared transformer block; None means every layer for which `exists` holds. A `whole` site holds whole numbers,
    which have no gradient and no mean.
    """

    template: str
    axes: tuple[str, ...]
    meaning: str
    on_demand: bool = False
    mixers: tuple[str, ...] | None = None
    whole: bool = False

    @property
    def per_layer(self) -> bool:
        """Whether every layer has one."""
        return "{l}" in self.template

    @functools.cached_property
    def short(self) -> str:
        """The name after `hook_`, as in `cache["z", 3]`; with its module where several sites share it: `ln2.scale`,
        `mixer.pattern`.
        """
        path, _, last = self.template.rpartition("hook_")
        stack, dot, _ = path.partition(".")
        start = f"{stack}." if dot and stack in STACKS else ""
        module = path.removeprefix(start).rstrip(".").removeprefix("blocks.{l}.").removeprefix("attn.")
        own = module in ("cross_attn", "mlm_head") or (module, last) == ("mixer", "pattern")
        return start + (f"{module}.{last}" if own or last in ("scale", "normalized") else last)

    def name(self, layer: int | None = None) -> str:
        """The full name of this site in one layer."""
        return self.template.format(l=layer)

    def within(self, stack: str) -> Site:
        """The same site in one stack of an encoder-decoder."""
        return replace(self, template=f"{stack}.{self.template}")

    @property
    def short_in_stack(self) -> str:
        """The short name without the stack's, as other models have it."""
        return self.short.removeprefix(f"{self.stack}.") if self.stack else self.short

    @property
    def cross(self) -> bool:
        """Whether it belongs to a cross-attention."""
        return ".cross_attn." in self.template

    @property
    def rows_in(self) -> str:
        """The stack of an encoder-decoder whose positions are those of the site; empty in other models."""
        return "encoder" if self.cross and self.template.endswith(("hook_k", "hook_v")) else self.stack

    @property
    def keys_in(self) -> str:
        """The stack whose positions are those of the site's keys; as `rows_in`."""
        return "encoder" if self.cross else self.rows_in

    @property
    def stack(self) -> str:
        """The stack of an encoder-decoder that the site belongs to; empty in other models."""
        first = self.template.partition(".")[0]
        return first if first in STACKS else ""


RESID = ("batch", "pos", "d_model")
BOTH = ("batch", "pos", "d_both")
SCALE = ("batch", "pos", "one")
QUERY_AXES = ("batch", "pos", "head", "d_head")
KEYS = ("batch", "pos", "kv_head", "d_head")
GRID = ("batch", "head", "query", "key")
NEURONS = ("batch", "pos", "d_mlp")
PER_EXPERT = ("batch", "pos", "expert")
EXPERT_NEURONS = (*PER_EXPERT, "d_expert")
SHARED_NEURONS = ("batch", "pos", "d_shared")
CHANNELS = ("batch", "pos", "channel")
SSM_HEADS = ("batch", "pos", "ssm_head", "d_ssm_head")
ATTN, MAMBA, MAMBA2, SHARED = ("attn",), ("mamba",), ("mamba2",), ("shared",)


def _mamba_sites(
    mixers: tuple[str, ...],
    convolved: tuple[str, ...],
    channels: tuple[str, ...],
    steps: tuple[str, ...],
    unit: tuple[str, ...],
    shared: tuple[str, ...],
) -> tuple[Site, ...]:
    """The sites of a state-space mixer: Mamba-1 and Mamba-2 have the same ones, on axes of their own."""
    here, of = "blocks.{l}.mixer.hook_", "Mamba-1" if mixers == MAMBA else "Mamba-2"
    last = "what W_out reads: y silu(gate)" + (", normalised" if mixers == MAMBA2 else "")
    grid = ("batch", *unit, "query", "key")
    return (
        Site(here + "in", convolved, f"{of}: what enters the convolution", mixers=mixers),
        Site(here + "conv", convolved, f"{of}: what leaves the convolution, after its activation", mixers=mixers),
        Site(here + "delta", steps, f"{of}: step sizes, after softplus", mixers=mixers),
        Site(here + "B", shared, f"{of}: how the input is written into the state", mixers=mixers),
        Site(here + "C", shared, f"{of}: how the state is read", mixers=mixers),
        Site(here + "state", (*channels, "d_state"), f"{of}: the state after each position", True, mixers),
        Site(here + "pattern", grid, f"{of}: hidden attention: y = pattern x", True, mixers),
        Site(here + "y", channels, f"{of}: what is read from the state, with D x", mixers=mixers),
        Site(here + "gate", channels, f"{of}: the gate, before its activation", mixers=mixers),
        Site(here + "gated", channels, f"{of}: {last}", mixers=mixers),
        Site(here + "out", RESID, f"{of}: what the mixer adds to the residual stream", mixers=mixers),
    )


# The second mixer of a decoder's layer. Its keys and values stand at the positions of what the encoder has read.
CROSS_SITES = (
    Site("blocks.{l}.ln_cross.hook_scale", SCALE, "divisor of the cross-attention's norm"),
    Site("blocks.{l}.ln_cross.hook_normalized", RESID, "normalised residual stream, before the norm's weights"),
    Site("blocks.{l}.cross_attn.hook_q", QUERY_AXES, "queries of the cross-attention, with bias"),
    Site("blocks.{l}.cross_attn.hook_k", KEYS, "keys, of the encoder's output, with bias"),
    Site("blocks.{l}.cross_attn.hook_v", KEYS, "values, of the encoder's output, with bias"),
    Site("blocks.{l}.cross_attn.hook_attn_scores", GRID, "scaled scores of the cross-attention", True),
    Site("blocks.{l}.cross_attn.hook_pattern", GRID, "probabilities of the cross-attention", True),
    Site("blocks.{l}.cross_attn.hook_z", QUERY_AXES, "values mixed by the pattern, before W_O"),
    Site(
        "blocks.{l}.cross_attn.hook_result",
        ("batch", "pos", "head", "d_model"),
        "z W_O of each head, without bias",
        True,
    ),
    Site("blocks.{l}.hook_cross_attn_out", RESID, "what the cross-attention adds to the residual stream, with b_O"),
    Site("blocks.{l}.hook_resid_mid_cross", RESID, "residual stream between cross-attention and MLP"),
    Site("blocks.{l}.hook_normalized_resid_mid_cross", RESID, "resid_mid_cross after the norm on the stream"),
)

SITES: tuple[Site, ...] = (
    Site("embed.ln.hook_scale", SCALE, "divisor of the norm after the token embedding"),
    Site("embed.ln.hook_normalized", RESID, "normalised token embedding, before the norm's weights"),
    Site("hook_embed", RESID, "token embedding, W_E[token]"),
    Site("hook_pos_embed", RESID, "position embedding that is added to the token embedding"),
    Site("hook_token_type_embed", RESID, "embedding of the segment, which is added to the token embedding"),
    Site("blocks.{l}.hook_resid_pre", RESID, "residual stream that enters the block"),
    Site(
        "blocks.{l}.hook_shared_block_in",
        BOTH,
        "resid_pre and the token embedding, for the shared block",
        mixers=SHARED,
    ),
    Site(
        "blocks.{l}.ln1.hook_normalized", BOTH, "normalised shared_block_in, before the norm's weights", mixers=SHARED
    ),
    *(
        Site(
            f"blocks.{{l}}.hook_{letter}_input",
            ("batch", "pos", head, width),
            f"{what} as each {word} head reads it",
            True,
            mixers,
        )
        for what, width, mixers in (("shared_block_in", "d_both", SHARED), ("resid_pre", "d_model", ATTN))
        for letter, head, word in (("q", "head", "query"), ("k", "kv_head", "key"), ("v", "kv_head", "value"))
    ),
    Site(
        "blocks.{l}.hook_mixer_in",
        RESID,
        "resid_pre (with shared_block_out) as a Mamba mixer alone reads it",
        True,
        MAMBA + MAMBA2,
    ),
    Site("blocks.{l}.ln1.hook_scale", SCALE, "divisor of the mixer's norm: standard deviation or root mean square"),
    Site("blocks.{l}.ln1.hook_normalized", RESID, "normalised residual stream, before the norm's weights"),
    Site("blocks.{l}.attn.hook_q", QUERY_AXES, "queries, with bias, before rotation", mixers=ATTN),
    Site("blocks.{l}.attn.hook_k", KEYS, "keys, with bias, before rotation", mixers=ATTN),
    Site("blocks.{l}.attn.hook_v", KEYS, "values, with bias", mixers=ATTN),
    *(
        Site(
            f"blocks.{{l}}.attn.{letter}_norm.hook_{name}",
            (*axes[:3], last),
            f"{what} of the norm of {word}",
            mixers=ATTN,
        )
        for letter, axes, word in (("q", QUERY_AXES, "queries"), ("k", KEYS, "keys"))
        for name, last, what in (("scale", "one", "divisor"), ("normalized", "d_head", "outcome, before the weights,"))
    ),
    Site("blocks.{l}.attn.hook_rot_q", QUERY_AXES, "queries as scores compare them: normalised, rotated", mixers=ATTN),
    Site("blocks.{l}.attn.hook_rot_k", KEYS, "keys as scores compare them: normalised, rotated", mixers=ATTN),
    Site("blocks.{l}.attn.hook_sinks", ("batch", "pos", "head"), "each query's score of looking nowhere", mixers=ATTN),
    Site("blocks.{l}.attn.hook_attn_scores", GRID, "scaled scores, masked entries at -inf", True, ATTN),
    Site("blocks.{l}.attn.hook_pattern", GRID, "attention probabilities, softmax of the scores", True, ATTN),
    Site("blocks.{l}.attn.hook_z", QUERY_AXES, "values mixed by the pattern, before W_O", mixers=ATTN),
    Site(
        "blocks.{l}.attn.hook_result",
        ("batch", "pos", "head", "d_model"),
        "z W_O of each head, without bias, before any norm",
        True,
        ATTN,
    ),
    Site("blocks.{l}.ln1_post.hook_scale", SCALE, "divisor of the norm after the attention", mixers=ATTN),
    Site(
        "blocks.{l}.ln1_post.hook_normalized", RESID, "normalised output of the attention, before weights", mixers=ATTN
    ),
    Site(
        "blocks.{l}.hook_shared_block_mid",
        RESID,
        "output of the shared attention, as the shared MLP reads it",
        mixers=SHARED,
    ),
    Site("blocks.{l}.hook_attn_out", RESID, "what the attention adds to the residual stream, with b_O", mixers=ATTN),
    *_mamba_sites(MAMBA, CHANNELS, CHANNELS, CHANNELS, ("channel",), ("batch", "pos", "d_state")),
    *_mamba_sites(
        MAMBA2,
        ("batch", "pos", "conv_channel"),
        SSM_HEADS,
        ("batch", "pos", "ssm_head"),
        ("ssm_head",),
        ("batch", "pos", "ssm_group", "d_state"),
    ),
    Site("blocks.{l}.hook_resid_mid", RESID, "residual stream between mixer and what follows it"),
    Site(
        "blocks.{l}.hook_normalized_resid_mid",
        RESID,
        "resid_mid after the norm on the stream, as the next part reads it",
    ),
    *CROSS_SITES,
    Site("blocks.{l}.hook_mlp_in", RESID, "residual stream as the MLP alone reads it, before ln2", True),
    Site("blocks.{l}.ln2.hook_scale", SCALE, "divisor of the MLP's norm"),
    Site("blocks.{l}.ln2.hook_normalized", RESID, "normalised residual stream, before the norm's weights"),
    Site("blocks.{l}.mlp.hook_pre", NEURONS, "input of the activation function (the gate, in a gated MLP)"),
    Site("blocks.{l}.mlp.hook_pre_linear", NEURONS, "the branch of a gated MLP that has no activation function"),
    Site("blocks.{l}.mlp.hook_post", NEURONS, "neuron activations, as W_out reads them"),
    Site("blocks.{l}.mlp.hook_router_scores", PER_EXPERT, "the router's logits, by which experts are chosen"),
    Site(
        "blocks.{l}.mlp.hook_expert_indices",
        ("batch", "pos", "slot"),
        "the chosen experts' numbers, best first",
        whole=True,
    ),
    Site("blocks.{l}.mlp.hook_expert_weights", PER_EXPERT, "the factor of each expert's output, 0 if it is not chosen"),
    Site("blocks.{l}.mlp.hook_expert_pre", EXPERT_NEURONS, "each expert's hook_pre, chosen or not", True),
    Site("blocks.{l}.mlp.hook_expert_pre_linear", EXPERT_NEURONS, "each expert's hook_pre_linear, chosen or not", True),
    Site("blocks.{l}.mlp.hook_expert_post", EXPERT_NEURONS, "each expert's hook_post, chosen or not", True),
    Site(
        "blocks.{l}.mlp.hook_expert_out",
        (*PER_EXPERT, "d_model"),
        "each expert's output times its weight, before any norm",
        True,
    ),
    Site("blocks.{l}.mlp.hook_shared_pre", SHARED_NEURONS, "the shared expert's hook_pre"),
    Site("blocks.{l}.mlp.hook_shared_pre_linear", SHARED_NEURONS, "the shared expert's hook_pre_linear"),
    Site("blocks.{l}.mlp.hook_shared_post", SHARED_NEURONS, "the shared expert's hook_post"),
    Site("blocks.{l}.mlp.hook_shared_out", RESID, "the shared expert's output, times its gate"),
    Site("blocks.{l}.ln2_post.hook_scale", SCALE, "divisor of the norm after the MLP"),
    Site("blocks.{l}.ln2_post.hook_normalized", RESID, "normalised output of the MLP, before the weights"),
    Site(
        "blocks.{l}.hook_shared_block_out",
        RESID,
        "what the shared block adds to the input of the layer's mixer, after the layer's linear map",
        mixers=SHARED,
    ),
    Site(
        "blocks.{l}.ln_mixer.hook_scale",
        SCALE,
        "divisor of the norm before the mixer, ln1 being the shared block's",
        mixers=SHARED,
    ),
    Site("blocks.{l}.ln_mixer.hook_normalized", RESID, "normalised mixer_in, before the norm's weights", mixers=SHARED),
    Site("blocks.{l}.hook_mlp_out", RESID, "what the MLP adds to the residual stream, with b_out"),
    Site("blocks.{l}.hook_resid_post", RESID, "residual stream that leaves the block"),
    Site(
        "blocks.{l}.hook_normalized_resid_post",
        RESID,
        "resid_post after the norm on the stream, as the next block reads it",
    ),
    Site("ln_final.hook_scale", SCALE, "divisor of the final norm"),
    Site("ln_final.hook_normalized", RESID, "normalised residual stream, before the final norm's weights"),
    Site("mlm_head.hook_pre", RESID, "input of the activation function of the masked-token head"),
    Site("mlm_head.hook_post", RESID, "output of the activation function, as the norm of the head reads it"),
    Site("mlm_head.ln.hook_scale", SCALE, "divisor of the norm of the masked-token head"),
    Site("mlm_head.ln.hook_normalized", RESID, "normalised output of the head, before the norm's weights"),
)

BY_TEMPLATE = {site.template: site for site in SITES}
SHARED_TEMPLATES = {site.template for site in SITES if site.mixers == SHARED}
ORDER = {site.template: at for at, site in enumerate(SITES)}
SHORT_WITH_MODULE = {site.short for site in SITES if "." in site.short}

AFTER_LAYERS = ("ln_final.", "mlm_head.")  # how the sites after the last layer begin
NORMS = re.compile(r"blocks\.\{l\}\.(?P<norm>ln(?P<part>[12]|_cross))(?P<after>_post)?\.")

# The parts that a layer may have.
PARTS = {"attn": "attention", "mixer": "state-space mixer", "mlp": "MLP"}
ARTICLES = {"attn": "", "mixer": "a ", "mlp": "an "}

# TransformerLens's other words for the same sites.
ALIASES = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "mlp_pre": "pre",
    "mlp_post": "post",
    "query": "q",
    "key": "k",
    "value": "v",
}

# Another word for an axis: what people call the places on it.
AXIS_ALIASES = {"neuron": "d_mlp"}
AXIS_WORDS = {axis: word for word, axis in AXIS_ALIASES.items()}


def said_axes(site: Site) -> list[str]:
    """The axes of a site that can be chosen from, as messages and tables name them: `neuron` for `d_mlp`."""
    return [AXIS_WORDS.get(axis, axis) for axis in site.axes if axis not in ("batch", "one")]


def exists(site: Site, cfg: ModelConfig, layer: int | None = None) -> bool:
    """Whether a model of this configuration computes the site; for a site of a layer, whether this layer does."""
    place = site.template
    if layer is None:
        return _exists_once(place, cfg)
    mixer, has_mlp = cfg.mixer(layer), cfg.mlp_in(layer)
    if "cross" in place:
        return _exists_across(place, cfg)
    if cfg.shares(layer):
        return _exists_beside_shared(site, cfg, layer)
    if site.mixers is not None and mixer not in site.mixers:
        return False
    norm = NORMS.match(place)
    if norm is not None:
        part = mixer is not None and (layer > 0 or cfg.first_norm) if norm["part"] == "1" else has_mlp
        return part and (cfg.norms_after if norm["after"] else cfg.norms_before or cfg.norms_on_stream)
    if "_norm." in place or "hook_rot_" in place or place.endswith("hook_sinks"):
        return _in_attention(place, cfg, layer)
    if ".mlp." in place:
        return _in_mlp(place.rpartition("hook_")[2], cfg, layer)
    if "hook_normalized_" in place and not cfg.norms_on_stream:
        return False
    if place.endswith("resid_mid"):
        return has_mlp and mixer is not None and not cfg.parallel_attn_mlp
    return has_mlp or "mlp" not in place


def _exists_beside_shared(site: Site, cfg: ModelConfig, layer: int) -> bool:
    """Whether a layer that calls a shared block has a site: the block's own, or its mixer's."""
    place, shorts = site.template, ("attn_out", "mlp_in", "mlp_out", "resid_mid")
    if site.mixers == SHARED:
        return True
    if place in SHARED_TEMPLATES or "_post." in place or place.endswith(shorts) or "hook_normalized_" in place:
        return False
    if site.mixers is not None and site.mixers != ATTN:
        return cfg.mixer(layer) in site.mixers
    if "_norm." in place or "hook_rot_" in place or place.endswith("hook_sinks"):
        return _in_attention(place, cfg, layer)
    name = place.rpartition("hook_")[2]
    return ".mlp." not in place or name in ("pre", "pre_linear", "post")


def in_shared_block(site: Site) -> bool:
    """Whether a site of a layer that calls a shared block comes before the layer's mixer: all that the block has."""
    own = (".attn.", ".ln1.", ".ln2.", ".mlp.", "hook_shared_block_", "_input", "hook_resid_pre")
    return any(part in site.template for part in own)


def _in_attention(place: str, cfg: ModelConfig, layer: int) -> bool:
    """Whether the attention of a layer has a site that some attention does not have."""
    if place.endswith("hook_sinks"):
        return cfg.attn_sinks
    turned = "hook_rot_" in place and cfg.attention_kind(layer).rotary_base is not None
    return turned or cfg.qk_norm is not None


def _in_mlp(name: str, cfg: ModelConfig, layer: int) -> bool:
    """Whether the MLP of a layer, or its mixture of experts, has a site."""
    experts = cfg.experts_in(layer)
    if name.endswith("pre_linear") and not cfg.gated_mlp:
        return False
    if name.startswith("shared_"):
        return experts is not None and experts.d_shared is not None
    if name.startswith(("router_", "expert_")):
        return experts is not None
    return experts is None and cfg.mlp_in(layer)


def _exists_across(place: str, cfg: ModelConfig) -> bool:
    """Whether a layer computes a site of its cross-attention, or beside it."""
    normed = cfg.norms_before or cfg.norms_on_stream
    there = cfg.norms_on_stream if "hook_normalized_" in place else normed or "ln_cross" not in place
    return cfg.cross_attention and there


def _exists_once(place: str, cfg: ModelConfig) -> bool:
    """Whether a model computes a site that belongs to no layer."""
    if "ln_final" in place:
        return cfg.normalization_type is not None and cfg.final_norm
    if "embed.ln" in place:
        return cfg.embed_norm
    if "mlm_head" in place:
        return cfg.mlm_act_fn is not None
    if place == "hook_token_type_embed":
        return cfg.n_token_types > 0
    return place != "hook_pos_embed" or cfg.positional_embedding_type in ("standard", "sinusoidal")


def site_names(cfg: ModelConfig | EncoderDecoderConfig) -> Mapping[str, Site]:
    """Every full site name of a model, in the order of computation; made once, as it is asked for again and again."""
    if not isinstance(cfg, EncoderDecoderConfig):
        check_config(cfg)
    return _site_names(cfg)


@functools.lru_cache(maxsize=8)
def _site_names(cfg: ModelConfig | EncoderDecoderConfig) -> Mapping[str, Site]:
    if isinstance(cfg, EncoderDecoderConfig):
        stacks = {stack: _site_names(getattr(cfg, stack)) for stack in STACKS}
        every = ((stack, name, site) for stack, sites in stacks.items() for name, site in sites.items())
        return MappingProxyType({f"{stack}.{name}": site.within(stack) for stack, name, site in every})
    ordered = sorted(SITES, key=lambda site: _turn(site, cfg))
    names = {site.name(): site for site in ordered if not site.per_layer and exists(site, cfg)}
    last = {name: names.pop(name) for name in list(names) if name.startswith(AFTER_LAYERS)}
    for layer in range(cfg.n_layers):
        own: Sequence[Site] = SITES
        if cfg.norms_on_stream:
            own = sorted(SITES, key=lambda site: _turn(site, cfg, layer))
        elif cfg.shares(layer):
            own = sorted(
                SITES,
                key=lambda site: (not in_shared_block(site), ".mixer." in site.template, "resid_post" in site.template),
            )
        names |= {site.name(layer): site for site in own if site.per_layer and exists(site, cfg, layer)}
    return MappingProxyType(names | last)


def _turn(site: Site, cfg: ModelConfig, layer: int | None = None) -> tuple[int, int]:
    """What sites are sorted by: their place in the table, of a norm on the stream that of what it normalises."""
    own = ORDER[site.template]
    if "embed.ln" in site.template and cfg.embed_norm_of_sum:
        return ORDER["hook_token_type_embed"], own
    if layer is not None and cfg.norms_on_stream and (norm := NORMS.match(site.template)):
        return ORDER[normed_on_stream(cfg, layer, norm["norm"]).replace(f".{layer}.", ".{l}.")], own
    return own, -1


def normed_on_stream(cfg: ModelConfig, layer: int, norm: str) -> str:
    """The site that a norm on the stream ("ln1", "ln_cross" or "ln2") normalises."""
    places = {"ln1": "mid" if cfg.mlp_in(layer) else "post", "ln_cross": "mid_cross", "ln2": "post"}
    return f"blocks.{layer}.hook_resid_{places[norm]}"


def stream_after(cfg: ModelConfig, layer: int) -> str:
    """The site of the residual stream after a layer, as the next layer or the unembedding reads it."""
    return f"blocks.{layer}.hook_{'normalized_' if cfg.norms_on_stream else ''}resid_post"


def streams_between(cfg: ModelConfig, layer: int) -> tuple[str, ...]:
    """The sites of the residual stream between the parts of a layer, each as the next part reads it: the MLP the last.

    There are two where a layer has a cross-attention.
    """
    here = f"blocks.{layer}.hook_{'normalized_' if cfg.norms_on_stream else ''}resid_mid"
    return (here, f"{here}_cross") if cfg.cross_attention else (here,)


def stream_between(cfg: ModelConfig, layer: int) -> str:
    """The site of the residual stream before a layer's MLP, as the MLP reads it."""
    return streams_between(cfg, layer)[-1]


def norm_on_stream(cfg: ModelConfig, writer: str, layer: int | None = None) -> str | None:
    """The norm that the stream passes through after something was added: "embed", or a part of a layer, such as "attn".

    None where it passes through none.
    """
    if writer == "embed":
        return "embed.ln" if cfg.embed_norm_of_sum else None
    norms = {"mlp": "ln2", "cross_attn": "ln_cross"}
    return f"blocks.{layer}.{norms.get(writer, 'ln1')}" if cfg.norms_on_stream else None


def config_of(cfg: ModelConfig | EncoderDecoderConfig, site: Site) -> ModelConfig:
    """The configuration of the stack that a site belongs to; of other models the model's own."""
    return getattr(cfg, site.stack) if isinstance(cfg, EncoderDecoderConfig) else cfg


def axis_sizes(cfg: ModelConfig) -> dict[str, int]:
    """The lengths of the axes that do not depend on the prompts."""
    check_config(cfg)
    d_inner, d_state = cfg.d_inner or 0, cfg.d_state or 0
    of = cfg.experts
    experts = (0, 0, 0, 0) if of is None else (of.n_experts, of.experts_per_token, of.d_expert, of.d_shared or 0)
    return {
        "head": cfg.n_heads,
        "kv_head": cfg.n_kv_heads,
        "d_model": cfg.d_model,
        "d_head": cfg.d_head,
        "d_mlp": cfg.d_mlp or 0,
        "channel": d_inner,
        "ssm_head": cfg.n_ssm_heads,
        "d_ssm_head": cfg.d_ssm_head,
        "ssm_group": cfg.n_ssm_groups,
        "d_state": d_state,
        "conv_channel": d_inner + 2 * cfg.n_ssm_groups * d_state,
        **({"d_both": 2 * cfg.d_model} if cfg.shared is not None else {}),
        **dict(zip(("expert", "slot", "d_expert", "d_shared"), experts, strict=True)),
        "one": 1,
    }


def get_act_name(site: str, layer: int | None = None, layer_type: str | None = None) -> str:
    """The full name of a site from its short form, as TransformerLens's function of the same name.

    >>> get_act_name("z", 3)
    'blocks.3.attn.hook_z'
    >>> get_act_name("scale", 3, "ln2"), get_act_name("ln2.scale", 3), get_act_name("scale")
    ('blocks.3.ln2.hook_scale', 'blocks.3.ln2.hook_scale', 'ln_final.hook_scale')
    """
    if type(layer) is not int and layer is not None:
        layer = whole_number("layer", layer, least=0, refuse=UnknownName)
    if not isinstance(site, str) or not (layer_type is None or isinstance(layer_type, str)):
        wrong = layer_type if isinstance(site, str) else site
        raise UnknownName(f"a site's name must be text, such as 'z' or 'ln2.scale', not {shown(wrong)}")
    return _act_name(site, layer, layer_type)


@functools.lru_cache(maxsize=4096)
def _act_name(site: str, layer: int | None, layer_type: str | None) -> str:
    """`get_act_name` of checked arguments, cached because sweeps ask for the same names many times."""
    stack, dot, rest = site.partition(".")
    if dot and stack in STACKS:
        return f"{stack}.{_act_name(rest, layer, layer_type)}"
    if site.startswith("blocks.") or site in BY_TEMPLATE:
        return site
    short = ALIASES.get(site.removeprefix("hook_"), site.removeprefix("hook_"))
    if layer_type is not None and f"{layer_type}.{short}" in SHORT_WITH_MODULE:
        short = f"{layer_type}.{short}"
    elif short in ("scale", "normalized"):
        short = f"ln_final.{short}" if layer is None else f"ln1.{short}"
    for row in SITES:
        if row.short == short and row.per_layer == (layer is not None):
            return row.name(layer)
    if any(row.short == short for row in SITES):
        need = "belongs to no layer" if layer is not None else "needs a layer"
        raise UnknownName(f"site {site!r} {need}")
    raise unknown("site", site, dict.fromkeys(row.short for row in SITES))


def find_act_name(site: str, layer: int | None, names: Container[str], layer_type: str | None = None) -> str:
    """As `get_act_name`, for a model with these sites: its `pattern` in a Mamba layer is the hidden attention."""
    name = get_act_name(site, layer, layer_type)
    hidden = name.replace(".attn.hook_pattern", ".mixer.hook_pattern")
    return hidden if name not in names and hidden in names else name


def unknown_site(name: str, names: Iterable[str]) -> UnknownName:
    """An error for a site that a model does not have; if the layer lacks the part, it says which parts it has.

    >>> print(unknown_site("blocks.0.attn.hook_z", ["blocks.0.mixer.hook_y", "blocks.0.mixer.hook_out"]))
    no site matches 'blocks.0.attn.hook_z': layer 0 has no attention, but a state-space mixer with the sites y, out
    """
    names = list(names)
    parsed = re.match(r"blocks\.(\d+|\*)\.(.*)", name)
    site = parsed and BY_TEMPLATE.get(f"blocks.{{l}}.{parsed[2]}")
    if parsed is None or site is None or name in names:
        return unknown("site", name, names)
    layers = r"\d+" if parsed[1] == "*" else parsed[1]
    here = [hit for one in names if (hit := re.match(rf"blocks\.{layers}\.(attn|mixer|mlp)\.hook_(\w+)", one))]
    there = {hit[1]: dict.fromkeys(other[2] for other in here if other[1] == hit[1]) for hit in here}
    missing = "mlp" if "mlp" in name else "mixer" if "mixer" in name else "attn" if site.mixers == ATTN else None
    if missing is None or missing in there or not there:
        return unknown("site", name, names)
    has = ", and ".join(f"{ARTICLES[part]}{PARTS[part]} with the sites {', '.join(own)}" for part, own in there.items())
    who = "this model" if parsed[1] == "*" else f"layer {parsed[1]}"
    return UnknownName(f"no site matches {name!r}: {who} has no {PARTS[missing]}, but {has}")


def match(wanted: NameFilter, names: Iterable[str]) -> list[str]:
    """The names that a filter selects: an exact name, a glob, a predicate, a list of these, or None for all.

    Raises:
        UnknownName: an exact name or a glob that selects nothing (the message offers the nearest names), or `names`
            that are none.
    """
    if isinstance(names, str) or not (isinstance(names, Mapping) or is_several(names)):
        raise UnknownName(f"names must be the names of sites, in a list, not {shown(names)}")
    listed = list(names)
    if set(map(type, listed)) - {str}:  # a quick look, as every attached hook comes here
        for name in listed:
            if not isinstance(name, str):
                raise UnknownName(f"names must be the names of sites, but one of them is {shown(name)}")
    return _matching(wanted, listed)


def _matching(wanted: NameFilter, names: list[str]) -> list[str]:
    """`match`, among names that were looked at."""
    if wanted is None:
        return names
    if isinstance(wanted, str):
        chosen = [wanted] if wanted in names else [n for n in names if fnmatch.fnmatchcase(n, wanted)]
        if not chosen:
            raise _no_site(wanted, names)
        return chosen
    if callable(wanted):
        if wrong := misfit(wanted, own_signature(wanted), ""):
            raise UnknownName(f"a predicate is called with the name of a site, and {wrong}")
        chosen = [n for n in names if wanted(n)]
        if not chosen:
            raise UnknownName(
                f"the predicate {getattr(wanted, '__name__', wanted)!s} selects none of {len(names)} sites"
            )
        return chosen
    if not isinstance(wanted, Iterable) or getattr(wanted, "ndim", 1) != 1:
        raise UnknownName(f"sites are chosen by a name, a glob, a predicate or a list of these, not {shown(wanted)}")
    chosen_set = {name for part in wanted for name in _matching(part, names)}
    return [n for n in names if n in chosen_set]


def _no_site(wanted: str, names: list[str]) -> UnknownName:
    """An error that, for a short name, gives the full name: a short name does not say which layer."""
    try:
        layer = None if wanted in ("embed", "pos_embed", "token_type_embed") else 0
        full = get_act_name(wanted, layer)
    except UnknownName:
        known = [site.name(0) for site in SITES if fnmatch.fnmatchcase(site.name(0), wanted)]
        return unknown_site(known[0].replace(".0.", ".*."), names) if known else unknown("site", wanted, names)
    hint = full if wanted == full else full.replace("blocks.0.", "blocks.*.", 1)
    hidden = hint.replace(".attn.hook_pattern", ".mixer.hook_pattern")
    for one in (hint, hidden) if wanted != full else ():
        if any(fnmatch.fnmatchcase(name, one) for name in names):
            return UnknownName(f"no site matches {wanted!r}; its full name is {one!r}, with the layer's number for *")
    return unknown_site(hint, names)
