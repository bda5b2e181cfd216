"""Direct logit attribution: which heads, mixers, MLPs and embeddings write the answer into the residual stream?

1. The last position's residual stream is the sum of the embedding, every head's result, every bias and every MLP's
   output. A state-space layer adds what its heads write (Mamba-2) or its channels (Mamba-1, which has no heads).
2. The final norm, with the scale that it has in this run, and the unembedding are linear: the answer's logit (or its
   difference from the wrong answer's) is the sum of what each part contributes.
3. What the sum leaves over is reported as `residue`; it is rounding error.

Source: Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits", section "Residual stream") and Wang et
al. 2022 ("Interpretability in the Wild", section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp import figures, stats
from interp.arguments import checked, whole_number
from interp.errors import check_choice
from interp.figures.axes import Axis
from interp.hooked.cache import ActivationCache
from interp.hooked.model import HookedModel
from interp.metrics import logit_weights
from interp.models.gpt import GPT
from interp.names import MIXER_PARTS, Part
from interp.prompts.pairs import PromptPairs
from interp.study.command import study_command
from interp.study.options import choice, whole

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

METRICS = ("logit_diff", "logit")
PARTS = [own.unit for own in MIXER_PARTS.values()]  # kinds of parts of mixers that have rows of their own
SUMS = ("head", "mixer", "mlp")
Label = tuple[str, str, int | None, int | None]
"""Of a part: its name, its kind, its layer and its number there."""

MIXERS = ("ssm_head", "channel", "mixer")  # kinds that a state-space layer's rows have
CHANNELS = 12


@checked
@torch.no_grad()
def run(
    model: HookedModel, pairs: PromptPairs, *, metric: str = "logit_diff", channels: int = CHANNELS
) -> pd.DataFrame:
    """Contribution of every component to the answer at the last position of the clean prompts.

    Args:
        model: the model.
        pairs: the prompts; their clean side is read.
        metric: "logit_diff" (right minus wrong) or "logit" (right).
        channels: how many channels of Mamba-1 layers have rows of their own: those of all layers whose mean
            contribution is largest in magnitude.

    Returns:
        Columns `component, kind, layer, head, prompt, metric, value`, in logits. Kinds: `embed`, `head` (`L9H6`), `mlp`
        (`MLP 9`, with its bias), `bias` (the b_O or b_out of a layer; the final norm's and the unembedding's bias),
        `total` (the metric itself) and `residue` (the metric less the sum of all parts). With state-space layers there
        are the columns `ssm_head, channel`, and the kinds `ssm_head` (`L9S6`, of Mamba-2), `channel` (`L9C123`, of
        Mamba-1) and `mixer` (`mixer 9`, a Mamba-1 layer; `rest of mixer 9` where channels of it have rows of their
        own).

    Raises:
        UnknownName: another metric.
        InterpError: a number of channels below 0.
    """
    check_choice("metric of head attribution", metric, METRICS)
    channels = whole_number("channels", channels, least=0)
    cfg = model.cfg
    pairs = pairs.to(model.device)
    ends = ("hook_embed", "hook_pos_embed", "hook_z", "mixer.hook_gated", "hook_mlp_out", "ln_final.hook_scale")
    names = [name for name in model.hook_dict if name.endswith(ends)]
    mask = pairs.attention_mask
    logits, cache = model.run_with_cache(pairs.clean, names_filter=names, attention_mask=mask)
    at = (torch.arange(len(pairs), device=model.device), pairs.last)  # the last position of every prompt

    # 1. What each part wrote.
    labels, written = _written(model, cache, at)

    # 2. What that is worth in logits, with the scale of the final norm as it was.
    norm, scale = model.norm_before(cfg.n_layers), None
    stack = torch.stack(written)  # [component, prompt, d_model]
    if norm is not None:
        scale = cache["ln_final.hook_scale"][at]
        stack = norm.scaled(stack, scale)
    answers, weights = logit_weights(pairs)  # [prompt, answer]
    weights = weights if metric == "logit_diff" else weights.clamp(min=0)
    direction = (model.W_U.T[answers] * weights[..., None]).sum(1)  # [prompt, d_model]
    values = list((stack * direction).sum(-1).double().unbind(0))  # [prompt] for every component
    if cfg.has_mamba:
        names_of, worth = _of_mixers(model, cache, at, _seen_through(norm, scale, direction), channels)
        labels += names_of
        values += worth
    none = torch.zeros(cfg.d_model, device=model.device, dtype=model.dtype)
    bias = none if norm is None or norm.b is None else norm.b
    labels.append(("bias", "bias", None, None))
    values.append((model.unembed(bias)[answers] * weights).sum(-1).double())

    # 3. The metric itself, and what the sum leaves over.
    total = (logits[at].gather(-1, answers).double() * weights).sum(-1)
    labels += [("total", "total", None, None), ("residue", "residue", None, None)]
    values += [total, total - torch.stack(values).sum(0)]
    return _tabulated(labels, values, metric, PARTS if cfg.has_mamba else ["head"])


def _tabulated(labels: Sequence[Label], values: Sequence[Tensor], metric: str, own: Sequence[str]) -> pd.DataFrame:
    """A row for every part and prompt; the number of a part stands in the column of its kind, one of `own`."""
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


def _written(model: HookedModel, cache: ActivationCache, at: tuple[Tensor, Tensor]) -> tuple[list[Label], list[Tensor]]:
    """What embeddings, heads, biases and MLPs wrote at these positions, each [prompt, d_model], and their labels."""
    labels: list[Label] = []
    written: list[Tensor] = []
    for name in (Part("embed").name, Part("pos_embed").name):
        if f"hook_{name}" in cache:
            labels.append((name, "embed", None, None))
            written.append(cache[name][at])
    for layer in range(model.cfg.n_layers):
        if model.cfg.mixer(layer) == "attn":
            labels += [(Part("head", layer, head).name, "head", layer, head) for head in range(model.cfg.n_heads)]
            written += model.head_results(layer, cache["z", layer][at]).unbind(1)
        for name, bias in _biases(model, layer):
            labels.append((name, "bias", layer, None))
            written.append(bias.expand(len(at[0]), -1))
        if model.cfg.mlp_in(layer):
            labels.append((Part("mlp", layer).name, "mlp", layer, None))
            written.append(cache["mlp_out", layer][at])
    return labels, written


def _biases(model: HookedModel, layer: int) -> Iterator[tuple[str, Tensor]]:
    """The output bias [d_model] of a layer's mixer with its name, if it has one."""
    if model.cfg.mixer(layer) == "attn" and model.cfg.attn_out_bias:
        yield f"b_O_{layer}", model.attention(layer).b_O if isinstance(model, GPT) else model.b_O[layer]
    mixer = model.block(layer).mixer if isinstance(model, GPT) else None
    if mixer is not None and mixer.b_out is not None:
        yield f"b_out_{layer}", mixer.b_out


def _seen_through(norm: Any, scale: Tensor | None, direction: Tensor) -> Tensor:
    """The direction of the residual stream that the final norm turns into `direction`.  # [prompt, d_model]"""
    if norm is None:
        return direction
    with torch.enable_grad():
        probe = torch.zeros_like(direction, requires_grad=True)
        (seen,) = torch.autograd.grad((norm.scaled(probe, scale) * direction).sum(), probe)  # it is linear
    return seen


def _of_mixers(
    model: HookedModel, cache: ActivationCache, at: tuple[Tensor, Tensor], seen: Tensor, channels: int
) -> tuple[list[Label], list[Tensor]]:
    """Labels of the state-space layers' rows, and what each is worth [prompt].

    Args:
        model, cache: what ran, and its `gated` sites.
        at: the last position of every prompt.
        seen: what a vector in the residual stream is worth [prompt, d_model].
        channels: how many channels have rows.
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
            labels += [(Part("ssm_head", layer, at).name, "ssm_head", layer, at) for at in range(model.cfg.n_ssm_heads)]
            values += heads.unbind(1)
            continue
        apart = [channel for of, channel in chosen if of == layer]
        labels += [(Part("channel", layer, channel).name, "channel", layer, channel) for channel in apart]
        values += [own[:, channel] for channel in apart]
        whole = Part("mixer", layer).name
        labels.append((f"rest of {whole}" if apart else whole, "mixer", layer, None))
        values.append(own.sum(1) - own[:, apart].sum(1))
    return labels, values


@checked
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over prompts with intervals and corrected p, the largest magnitudes first."""
    own = [name for name in PARTS if name in frame]
    table = stats.tested(frame, by=["component", "kind", "layer", *own, "metric"], value="value")
    return stats.strongest_first(table)


@checked
def plot(frame: pd.DataFrame) -> Figure:
    """Heads as a grid, layer by head; without any those of state-space layers, channels with rows, or whole layers."""
    kinds = set(frame["kind"])
    kind = next((kind for kind in PARTS if kind in kinds), None)
    return plot_layers(frame) if kind is None else plot_parts(summary(frame), kind)


def plot_parts(table: pd.DataFrame, kind: str) -> Figure:
    """One kind of parts of a summary: "head" and "ssm_head" as a grid, "channel" as bars."""
    table = table[table["kind"] == kind]
    if kind != "channel":
        return figures.heatmap(table, x=kind, y="layer", label=_label(table), annotate=6)
    table = table.sort_values("value", ascending=False)
    x = Axis("component", title="channel")
    title = f"The {len(table)} channels with the largest contributions"
    return figures.bars(table, x=x, horizontal=True, diverging=True, label=_label(table), title=title)


def plot_layers(frame: pd.DataFrame) -> Figure:
    """What the heads of each layer together, its state-space mixer, and its MLP, add."""
    parts = by_layer(frame)
    sums = parts.groupby(["kind", "layer", "prompt", "metric"], as_index=False)["value"].sum()
    table = stats.summarise(sums, by=["kind", "layer", "metric"], value="value")
    return figures.lines(table, x="layer", y="value", hue="kind", label=_label(frame))


def by_layer(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of layers; all parts of a state-space layer are of the kind `mixer`."""
    kinds = frame["kind"].replace(dict.fromkeys(MIXERS, "mixer"))
    return frame.assign(kind=kinds)[kinds.isin(SUMS)]


def _label(frame: pd.DataFrame) -> str:
    named = {"logit_diff": "direct contribution to the logit difference", "logit": "direct contribution to the logit"}
    return named[frame["metric"].iloc[0]]


main = study_command(
    run,
    plot=plot,
    summary=summary,
    options=[
        whole("--channels", f"Channels of Mamba-1 layers with rows of their own.  [{CHANNELS}]", least=0),
        choice("--metric", METRICS, default="logit_diff"),
    ],
)

if __name__ == "__main__":
    main()
