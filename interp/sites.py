"""The one table of activation sites: what can be read, replaced and differentiated, and where it is computed.

A site means the same point of the computation in every family. Names are TransformerLens's. A site that is `on_demand`
costs something beyond the plain forward (an attention pattern that the fused kernel never forms, a copy of the residual
stream for every head); it is computed in those layers where somebody asks for it, and nowhere else.

Axes have one name everywhere: `batch`, `pos`, `head`, `kv_head` (key and value heads, fewer than `head` with grouped
queries), `query`, `key`, `d_model`, `d_head`, `d_mlp`, and `one` for a kept axis of length one.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from interp.config import ModelConfig
from interp.errors import UnknownName, unknown

NameFilter = str | Callable[[str], bool] | Sequence[str] | None


@dataclass(frozen=True)
class Site:
    """One row of the table: `template` is the full name with `{l}` for the layer, if it belongs to one."""

    template: str
    axes: tuple[str, ...]
    meaning: str
    on_demand: bool = False

    @property
    def per_layer(self) -> bool:
        """Whether every layer has one."""
        return "{l}" in self.template

    @functools.cached_property
    def short(self) -> str:
        """The name after `hook_`, as in `cache["z", 3]`; norms are told apart by their module: `ln2.scale`."""
        path, _, last = self.template.rpartition("hook_")
        module = path.rstrip(".").rpartition(".")[2]
        return f"{module}.{last}" if module.startswith("ln") else last

    def name(self, layer: int | None = None) -> str:
        """The full name of this site in one layer."""
        return self.template.format(l=layer)


RESID = ("batch", "pos", "d_model")
SCALE = ("batch", "pos", "one")
QUERIES = ("batch", "pos", "head", "d_head")
KEYS = ("batch", "pos", "kv_head", "d_head")
GRID = ("batch", "head", "query", "key")
NEURONS = ("batch", "pos", "d_mlp")

SITES: tuple[Site, ...] = (
    Site("hook_embed", RESID, "token embedding, W_E[token]"),
    Site("hook_pos_embed", RESID, "position embedding that is added to the token embedding"),
    Site("blocks.{l}.hook_resid_pre", RESID, "residual stream that enters the block"),
    Site("blocks.{l}.hook_q_input", ("batch", "pos", "head", "d_model"), "resid_pre as each query head reads it", True),
    Site(
        "blocks.{l}.hook_k_input", ("batch", "pos", "kv_head", "d_model"), "resid_pre as each key head reads it", True
    ),
    Site(
        "blocks.{l}.hook_v_input", ("batch", "pos", "kv_head", "d_model"), "resid_pre as each value head reads it", True
    ),
    Site("blocks.{l}.ln1.hook_scale", SCALE, "divisor of the attention's norm: standard deviation or root mean square"),
    Site("blocks.{l}.ln1.hook_normalized", RESID, "normalised residual stream, before the norm's weights"),
    Site("blocks.{l}.attn.hook_q", QUERIES, "queries, with bias, before rotation"),
    Site("blocks.{l}.attn.hook_k", KEYS, "keys, with bias, before rotation"),
    Site("blocks.{l}.attn.hook_v", KEYS, "values, with bias"),
    Site("blocks.{l}.attn.hook_rot_q", QUERIES, "queries after the rotary embedding"),
    Site("blocks.{l}.attn.hook_rot_k", KEYS, "keys after the rotary embedding"),
    Site("blocks.{l}.attn.hook_attn_scores", GRID, "scaled scores, masked entries at -inf", True),
    Site("blocks.{l}.attn.hook_pattern", GRID, "attention probabilities, softmax of the scores", True),
    Site("blocks.{l}.attn.hook_z", QUERIES, "values mixed by the pattern, before W_O"),
    Site(
        "blocks.{l}.attn.hook_result", ("batch", "pos", "head", "d_model"), "what each head adds: z W_O, no bias", True
    ),
    Site("blocks.{l}.hook_attn_out", RESID, "what the attention adds to the residual stream, with b_O"),
    Site("blocks.{l}.hook_resid_mid", RESID, "residual stream between attention and MLP"),
    Site("blocks.{l}.hook_mlp_in", RESID, "residual stream as the MLP alone reads it, before ln2", True),
    Site("blocks.{l}.ln2.hook_scale", SCALE, "divisor of the MLP's norm"),
    Site("blocks.{l}.ln2.hook_normalized", RESID, "normalised residual stream, before the norm's weights"),
    Site("blocks.{l}.mlp.hook_pre", NEURONS, "input of the activation function (the gate, in a gated MLP)"),
    Site("blocks.{l}.mlp.hook_pre_linear", NEURONS, "the branch of a gated MLP that has no activation function"),
    Site("blocks.{l}.mlp.hook_post", NEURONS, "neuron activations, as W_out reads them"),
    Site("blocks.{l}.hook_mlp_out", RESID, "what the MLP adds to the residual stream, with b_out"),
    Site("blocks.{l}.hook_resid_post", RESID, "residual stream that leaves the block"),
    Site("ln_final.hook_scale", SCALE, "divisor of the final norm"),
    Site("ln_final.hook_normalized", RESID, "normalised residual stream, before the final norm's weights"),
)

BY_TEMPLATE = {site.template: site for site in SITES}

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


def exists(site: Site, cfg: ModelConfig) -> bool:
    """Whether a model of this configuration computes the site at all."""
    place = site.template
    if "ln" in place.split("hook_")[0]:
        return cfg.normalization_type is not None and (
            cfg.final_norm if "ln_final" in place else "ln2" not in place or not cfg.attn_only
        )
    if place == "hook_pos_embed":
        return cfg.positional_embedding_type in ("standard", "sinusoidal")
    if "hook_rot_" in place:
        return cfg.positional_embedding_type == "rotary"
    if place.endswith("hook_pre_linear"):
        return cfg.gated_mlp
    if place.endswith("hook_resid_mid"):
        return not (cfg.attn_only or cfg.parallel_attn_mlp)
    if "mlp" in place:
        return not cfg.attn_only
    return True


def site_names(cfg: ModelConfig) -> dict[str, Site]:
    """Every full site name of a model, in the order of computation."""
    here = [site for site in SITES if exists(site, cfg)]
    names = {site.name(): site for site in here if not site.per_layer and "ln_final" not in site.template}
    for layer in range(cfg.n_layers):
        names |= {site.name(layer): site for site in here if site.per_layer}
    return names | {site.name(): site for site in here if "ln_final" in site.template}


def axis_sizes(cfg: ModelConfig) -> dict[str, int]:
    """How long the axes are that do not depend on the prompts."""
    return {
        "head": cfg.n_heads,
        "kv_head": cfg.n_kv_heads,
        "d_model": cfg.d_model,
        "d_head": cfg.d_head,
        "d_mlp": cfg.d_mlp or 0,
        "one": 1,
    }


@functools.lru_cache(maxsize=4096)
def get_act_name(site: str, layer: int | None = None, layer_type: str | None = None) -> str:
    """The full name of a site from its short form, as TransformerLens's function of the same name.

    >>> get_act_name("z", 3)
    'blocks.3.attn.hook_z'
    >>> get_act_name("scale", 3, "ln2"), get_act_name("ln2.scale", 3), get_act_name("scale")
    ('blocks.3.ln2.hook_scale', 'blocks.3.ln2.hook_scale', 'ln_final.hook_scale')
    """
    if site.startswith("blocks.") or site in BY_TEMPLATE:
        return site
    short = ALIASES.get(site.removeprefix("hook_"), site.removeprefix("hook_"))
    if layer_type in ("ln1", "ln2", "ln_final"):
        short = f"{layer_type}.{short}"
    elif short in ("scale", "normalized"):
        short = f"ln_final.{short}" if layer is None else f"ln1.{short}"
    for row in SITES:
        if row.short == short and row.per_layer == (layer is not None):
            return row.name(layer)
    if any(row.short == short for row in SITES):
        need = "belongs to no layer" if layer is not None else "needs a layer"
        raise UnknownName(f"site {site!r} {need}")
    raise unknown("site", site, [row.short for row in SITES])


def match(wanted: NameFilter, names: Iterable[str]) -> list[str]:
    """The names that a filter selects: an exact name, a glob, a predicate, a list of these, or None for all.

    Raises:
        UnknownName: an exact name or a glob that selects nothing; the message offers the nearest names.
    """
    names = list(names)
    if wanted is None:
        return names
    if isinstance(wanted, str):
        chosen = [wanted] if wanted in names else [n for n in names if fnmatch.fnmatchcase(n, wanted)]
        if not chosen:
            raise _no_site(wanted, names)
        return chosen
    if callable(wanted):
        chosen = [n for n in names if wanted(n)]
        if not chosen:
            raise UnknownName(
                f"the predicate {getattr(wanted, '__name__', wanted)!s} selects none of {len(names)} sites"
            )
        return chosen
    chosen_set = {name for part in wanted for name in match(part, names)}
    return [n for n in names if n in chosen_set]


def _no_site(wanted: str, names: list[str]) -> UnknownName:
    """An error that knows short names: they stand for a site, but not for one layer of it."""
    try:
        template = get_act_name(wanted) if wanted in ("embed", "pos_embed") else get_act_name(wanted, 0)
    except UnknownName:
        return unknown("site", wanted, names)
    hint = template.replace("blocks.0.", "blocks.*.", 1)
    if wanted == template or not any(fnmatch.fnmatchcase(name, hint) for name in names):
        return unknown("site", wanted, names)
    return UnknownName(f"no site matches {wanted!r}; its full name is {hint!r} (a layer's number in place of *)")
