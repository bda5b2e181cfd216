"""Direct logit attribution: the parts of a model that write into its residual stream, and what each is worth in logits.

1. `written`: embeddings, heads, biases, MLPs and experts write vectors, whose sum, with what state-space layers write,
   is the stream. Where the stream itself passes through norms, a vector is what these leave of it, and their biases are
   parts.
2. The final norm, with the scale that it has in a run, and the unembedding are linear: a direction of logits is one
   direction of the stream (`seen_through`). Heads and channels of state-space layers are read in it without their
   vectors (`of_mixers`), since a layer of Mamba-1 has thousands of channels.
3. `contribution_table` has a row for every part and prompt.

Source: Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits", section "Residual stream").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.config import ModelConfig
from interp.encoder_decoder.model import output_stack
from interp.hooked.cache import ActivationCache
from interp.hooked.model import HookedModel
from interp.models.derivations import LayerRun
from interp.models.gpt import GPT
from interp.models.layers import Norm
from interp.names import MIXER_PARTS, Part
from interp.sites import norm_on_stream

if TYPE_CHECKING:
    import pandas as pd

SITES = (
    "hook_embed", "hook_pos_embed", "hook_token_type_embed", "hook_z", "mixer.hook_gated", "hook_mlp_out",
    "ln_final.hook_scale", "embed.ln.hook_scale", "ln1.hook_scale", "ln_cross.hook_scale", "ln2.hook_scale",
)  # fmt: skip
"""How the names of the sites end that a run has to keep."""

EXPERT_SITES = (
    "hook_resid_pre", "hook_resid_mid", "ln2.hook_normalized", "mlp.hook_expert_weights", "ln2_post.hook_scale",
)  # fmt: skip
"""The same for layers with experts."""

MIXED = [own.unit for own in MIXER_PARTS.values()]
PARTS = [*MIXED, "cross_head", "expert"]  # kinds of parts of layers that have rows of their own
Label = tuple[str, str, int | None, int | None]
"""Of a part: its name, its kind, its layer and its number there."""

Written = tuple[Label, Tensor]
"""A part's label, and what it wrote for each prompt [prompt, d_model]."""


def kept(model: HookedModel) -> list[str]:
    """The sites that a run has to keep."""
    routed = {f"blocks.{at}." for at in range(model.cfg.n_layers) if model.cfg.experts_in(at) is not None}
    return [
        name
        for name in model.hook_dict
        if name.endswith(SITES) or (name.endswith(EXPERT_SITES) and name.startswith(tuple(routed)))
    ]


def columns(cfg: ModelConfig) -> list[str]:
    """Those of `PARTS` that have a column in tables of a model."""
    mixers = MIXED if cfg.has_mamba else ["head", "cross_head"] if cfg.cross_attention else ["head"]
    return mixers + (["expert"] if cfg.experts is not None else [])


def written(model: HookedModel, cache: ActivationCache, at: tuple[Tensor, Tensor]) -> tuple[list[Label], list[Tensor]]:
    """What embeddings, heads, biases, MLPs and experts wrote into the residual stream, a vector for every prompt.

    Args:
        model, cache: what ran, and the sites of `kept`.
        at: numbers of prompts and a position of each, both [prompt].

    Returns:
        The parts' labels, and what each wrote [prompt, d_model]. Of experts those that any of the prompts is sent to;
        what their MLP wrote beside them has a row of its own.
    """
    model = output_stack(model)  # a decoder, or the model itself
    labels: list[Label] = []
    wrote: list[Tensor] = []

    def through(writer: str, layer: int | None = None) -> None:
        """All vectors so far, as a norm on the stream hands them on."""
        path = norm_on_stream(model.cfg, writer, layer)
        if path is None:
            return
        norm, scale = model.get_submodule(path), cache[f"{path}.hook_scale"][at]
        assert isinstance(norm, Norm)
        wrote[:] = [norm.scaled(vector, scale) for vector in wrote]
        if norm.b is not None:
            labels.append((f"b of {path}", "bias", layer, None))
            wrote.append(norm.b.expand(len(at[0]), -1))

    for name in _embeddings(cache):
        labels.append((name, "embed", None, None))
        wrote.append(cache[name][at])
    through("embed")
    for layer in range(model.cfg.n_layers):
        for writer, parts in _of_layer(model, cache, layer, at):
            labels += [label for label, _ in parts]
            wrote += [vector for _, vector in parts]
            through(writer, layer)
    return labels, wrote


def _of_layer(
    model: HookedModel, cache: ActivationCache, layer: int, at: tuple[Tensor, Tensor]
) -> Iterator[tuple[str, list[Written]]]:
    """What each writer of a layer wrote, in their order. A state-space layer's channels and heads are left out."""
    mixer = model.cfg.mixer(layer)
    if mixer is not None:
        heads = model.head_results(layer, cache["z", layer][at]).unbind(1) if mixer == "attn" else ()
        parts = [((Part("head", layer, head).name, "head", layer, head), vector) for head, vector in enumerate(heads)]
        yield mixer, [*parts, *_biases(model, layer, cache, at)]
    if model.cfg.cross_attention:
        yield "cross_attn", list(_of_cross_attention(model, layer, cache, at))
    if model.cfg.experts_in(layer) is not None:
        yield "mlp", _experts(model, cache, layer, at)
    elif model.cfg.mlp_in(layer):
        yield "mlp", [((Part("mlp", layer).name, "mlp", layer, None), cache["mlp_out", layer][at])]


def _experts(model: HookedModel, cache: ActivationCache, layer: int, at: tuple[Tensor, Tensor]) -> list[Written]:
    """What the experts of a layer wrote, and what its MLP wrote beside them: a shared expert, biases."""
    assert isinstance(model, GPT)
    block, here = model.block(layer), f"blocks.{layer}."
    own = {name: cache[name][at] for name in cache if name.startswith(here) and name.endswith(EXPERT_SITES)}
    made = LayerRun(model.cfg, layer, block, own, None).expert_out()  # [prompt, expert, d_model]
    assert made is not None
    parts = block.mlp_results(made, own.get(f"{here}ln2_post.hook_scale"))
    used = own[f"{here}mlp.hook_expert_weights"].ne(0).any(0).nonzero()[:, 0].tolist()
    wrote: list[Written] = [
        ((Part("expert", layer, expert).name, "expert", layer, expert), parts[:, expert]) for expert in used
    ]
    if block.has_beside_experts:
        rest = cache["mlp_out", layer][at] - parts.sum(1)
        wrote.append(((f"rest of {Part('mlp', layer).name}", "mlp", layer, None), rest))
    return wrote


def _embeddings(cache: ActivationCache) -> list[str]:
    """The names of the embeddings that the model has."""
    names = (Part(kind).name for kind in ("embed", "pos_embed", "token_type_embed"))
    return [name for name in names if f"hook_{name}" in cache]


def _of_cross_attention(
    model: HookedModel, layer: int, cache: ActivationCache, at: tuple[Tensor, Tensor]
) -> Iterator[Written]:
    """What the heads of a decoder's cross-attention wrote, and its bias [prompt, d_model]."""
    results = model.cross_head_results(layer, cache["cross_attn.z", layer][at])
    for head, vector in enumerate(results.unbind(1)):
        yield (Part("cross_head", layer, head).name, "cross_head", layer, head), vector
    bias = model.cross_bias(layer)
    if bias is not None:
        yield (f"cross_b_O_{layer}", "bias", layer, None), bias.expand(len(at[0]), -1)


def _biases(model: HookedModel, layer: int, cache: ActivationCache, at: tuple[Tensor, Tensor]) -> Iterator[Written]:
    """What the output bias of a layer's mixer wrote [prompt, d_model], if it has one."""
    if model.cfg.mixer(layer) == "attn" and model.cfg.attn_out_bias:
        bias = model.bias_result(layer, cache["z", layer][at])
        assert bias is not None
        yield (f"b_O_{layer}", "bias", layer, None), bias
    mixer = model.block(layer).mixer if isinstance(model, GPT) else None
    if mixer is not None and mixer.b_out is not None:
        yield (f"b_out_{layer}", "bias", layer, None), mixer.b_out.expand(len(at[0]), -1)


def seen_through(norm: Any, scale: Tensor | None, direction: Tensor) -> Tensor:
    """The direction of the residual stream that the final norm turns into `direction`, so that products are equal.

    Args:
        norm: the final norm, or None.
        scale: what it divided by in this run, [prompt, 1].
        direction: in what the unembedding reads, [prompt, d_model].

    Returns:
        [prompt, d_model].
    """
    if norm is None:
        return direction
    with torch.enable_grad():
        probe = torch.zeros_like(direction, requires_grad=True)
        (seen,) = torch.autograd.grad((norm.scaled(probe, scale) * direction).sum(), probe)  # it is linear
    return seen


def of_mixers(
    model: HookedModel, cache: ActivationCache, at: tuple[Tensor, Tensor], seen: Tensor, channels: int
) -> tuple[list[Label], list[Tensor]]:
    """What state-space layers contribute: each head of Mamba-2, and the channels of Mamba-1 that contribute most.

    Args:
        model, cache: what ran, and the sites of `kept`.
        at: numbers of prompts and a position of each, both [prompt].
        seen: the direction of the residual stream that counts, as `seen_through` gives it, [prompt, d_model].
        channels: how many channels of all Mamba-1 layers have rows, the largest mean magnitudes.

    Returns:
        The parts' labels, and what each contributes [prompt]. What is left of a Mamba-1 layer has a row of its own.
    """
    assert isinstance(model, GPT)
    each: dict[int, Tensor] = {}  # layer -> [prompt, channel]
    for layer in range(model.cfg.n_layers):
        mixer = model.block(layer).mixer
        if mixer is not None:
            gated = cache["gated", layer][at].flatten(1)
            each[layer] = gated.double() * (seen.double() @ mixer.W_out.double())
    plain = {layer: own for layer, own in each.items() if model.cfg.mixer(layer) == "mamba"}
    sizes = {(layer, c): size for layer, own in plain.items() for c, size in enumerate(own.mean(0).abs().tolist())}
    chosen = sorted(sorted(sizes, key=lambda one: -sizes[one])[:channels])
    labels: list[Label] = []
    values: list[Tensor] = []
    for layer, own in each.items():
        if layer not in plain:
            heads = own.unflatten(1, (-1, model.cfg.d_ssm_head)).sum(-1)  # [prompt, ssm_head]
            labels += [
                (Part("ssm_head", layer, head).name, "ssm_head", layer, head) for head in range(model.cfg.n_ssm_heads)
            ]
            values += heads.unbind(1)
            continue
        apart = [channel for of, channel in chosen if of == layer]
        labels += [(Part("channel", layer, channel).name, "channel", layer, channel) for channel in apart]
        values += [own[:, channel] for channel in apart]
        whole = Part("mixer", layer).name
        labels.append((f"rest of {whole}" if apart else whole, "mixer", layer, None))
        values.append(own.sum(1) - own[:, apart].sum(1))
    return labels, values


def contribution_table(
    labels: Sequence[Label], values: Sequence[Tensor], metric: str, own: Sequence[str]
) -> pd.DataFrame:
    """Contributions as a study's table, a row for every part and prompt.

    Args:
        labels: of the parts.
        values: what each contributes [prompt].
        metric: the metric's name.
        own: kinds of parts whose number stands in a column of that name.
    """
    import pandas as pd

    frame = pd.DataFrame(labels, columns=["component", "kind", "layer", "number"])
    frame = frame.astype({"layer": "Int64", "number": "Int64"})
    for name in own:
        frame[name] = frame["number"].where(frame["kind"] == name)
    frame["metric"] = metric
    frame["prompt"] = [list(range(len(values[0])))] * len(frame)
    frame["value"] = [value.tolist() for value in values]
    frame = frame.explode(["prompt", "value"], ignore_index=True).astype({"prompt": int, "value": float})
    return frame[["component", "kind", "layer", *own, "prompt", "metric", "value"]]
