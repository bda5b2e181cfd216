"""Direct logit attribution: which heads, mixers, MLPs and embeddings write the answer into the residual stream?

1. The last position's residual stream is the sum of the embedding, every head's result, every bias and every MLP's
   output. A state-space layer adds what its heads write (Mamba-2) or its channels (Mamba-1, which has no heads), a
   mixture what the experts write that the position is sent to.
2. The final norm, with the scale that it has in this run, and the unembedding are linear: the answer's logit (or its
   difference from the wrong answer's) is the sum of what each part contributes.
3. What the sum leaves over is reported as `residue`; it is rounding error.

Source: Elhage et al. 2021 (https://transformer-circuits.pub/2021/framework, "A Mathematical Framework for Transformer
Circuits", section "Residual stream") and Wang et al. 2022 (https://arxiv.org/abs/2211.00593, "Interpretability in the
Wild", section 3.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from interp import figures, stats
from interp.arguments import checked, whole_number
from interp.attribution.direct import PARTS, columns, contribution_table, kept, of_mixers, seen_through, written
from interp.encoder_decoder.model import output_stack, run_output_stack
from interp.errors import check_choice
from interp.figures.axes import Axis
from interp.frames import restoring, summarised
from interp.hooked.decompositions import check_linear_output
from interp.hooked.model import HookedModel
from interp.metrics import logit_weights
from interp.prompts.pairs import PromptPairs, fitting
from interp.sites import stream_after
from interp.study.command import study_command
from interp.study.options import choice, whole

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

METRICS = ("logit_diff", "logit")
HEADS, CROSS = "head", "cross_head"
SUMS = (HEADS, CROSS, "mixer", "mlp")
MIXERS = ("ssm_head", "channel", "mixer")  # kinds that a state-space layer's rows have
WHOLES = {**dict.fromkeys(MIXERS, "mixer"), "expert": "mlp"}  # kinds of rows, and of the part of a layer that they make
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
        `total` (the metric itself) and `residue` (the metric less the sum of all parts). Of a model whose logits have
        a soft cap all these are of the logits before it, and `capped` is the metric after it. With state-space layers
        there are the columns `ssm_head, channel`, and the kinds `ssm_head` (`L9S6`, of Mamba-2), `channel` (`L9C123`,
        of Mamba-1) and `mixer` (`mixer 9`, a Mamba-1 layer; `rest of mixer 9` where channels of it have rows of their
        own). With mixtures there is the column `expert` and the kind `expert` (`L9E5`, for every expert that some
        prompt is sent to; `rest of MLP 9` is a shared expert, and biases). Of a model with an encoder and a decoder it
        is the decoder, with the column and the kind `cross_head` (`L9X6`).

    Raises:
        UnknownName: another metric.
        InterpError: a number of channels below 0; a model with a masked-token head, which is not linear.
    """
    check_choice("metric of head attribution", metric, METRICS)
    channels = whole_number("channels", channels, least=0)
    whole, model, pairs = model, output_stack(model), fitting(model, pairs).to(model.device)
    cfg = model.cfg
    check_linear_output(cfg)
    names = kept(model)
    capped = cfg.output_logits_soft_cap is not None
    names += [stream_after(cfg, cfg.n_layers - 1)] if capped and cfg.n_layers else []
    logits, cache = run_output_stack(whole, pairs.inputs("clean"), names)
    at = (torch.arange(len(pairs), device=model.device), pairs.read_at)  # one position of every prompt

    # 1. What each part wrote.
    labels, wrote = written(model, cache, at)

    # 2. What that is worth in logits, with the scale of the final norm as it was.
    norm, scale = model.norm_before(cfg.n_layers), None
    stack = torch.stack(wrote)  # [component, prompt, d_model]
    if norm is not None:
        scale = cache["ln_final.hook_scale"][at]
        stack = norm.scaled(stack, scale)
    answers, weights = logit_weights(pairs)  # [prompt, answer]
    weights = weights if metric == "logit_diff" else weights.clamp(min=0)
    direction = (model.W_U.T[answers] * weights[..., None]).sum(1)  # [prompt, d_model]
    values = list((stack * direction).sum(-1).double().unbind(0))  # [prompt] for every component
    if cfg.has_mamba:
        own, worth = of_mixers(model, cache, at, seen_through(norm, scale, direction), channels)
        labels += own
        values += worth
    none = torch.zeros(cfg.d_model, device=model.device, dtype=model.dtype)
    bias = none if norm is None or norm.b is None else norm.b
    labels.append(("bias", "bias", None, None))
    values.append((model.uncapped_logits(bias)[answers] * weights).sum(-1).double())

    # 3. The metric itself, and what the sum leaves over; a soft cap comes after the sum.
    read = logits[at]
    if capped:
        read = model.uncapped_logits(model.to_unembed(cache[names[-1]][at]))
        labels.append(("after the soft cap", "capped", None, None))
    total, seen = ((one.gather(-1, answers).double() * weights).sum(-1) for one in (read, logits[at]))
    labels += [("total", "total", None, None), ("residue", "residue", None, None)]
    residue = total - torch.stack(values).sum(0)
    values += [*([seen] if capped else []), total, residue]
    return contribution_table(labels, values, metric, columns(cfg))


@checked
@restoring
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over prompts with intervals and corrected p, the largest magnitudes first."""
    own = [name for name in PARTS if name in frame]
    table = stats.tested(frame, by=["component", "kind", "layer", *own, "metric"], value="value")
    return stats.strongest_first(table)


@checked
@restoring
def plot(frame: pd.DataFrame) -> Figure:
    """Heads as a grid, layer by head; without any those of state-space layers, channels with rows, or whole layers."""
    kinds = set(frame["kind"])
    kind = next((kind for kind in PARTS if kind in kinds), None)
    return plot_layers(frame) if kind is None else plot_parts(frame, kind)


@checked
def plot_parts(frame: pd.DataFrame, kind: str) -> Figure:
    """One kind of parts of a frame or its summary: "channel" as bars, the others as a grid."""
    table = summarised(frame, summary)
    if CROSS in table:
        return _plot_both(table)
    table = table[table["kind"] == kind]
    if kind != "channel":
        return figures.heatmap(table, x=kind, y="layer", label=_label(table), annotate=6)
    table = table.sort_values("value", ascending=False)
    x = Axis("component", title="channel")
    title = f"The {len(table)} channels with the largest contributions"
    return figures.bars(table, x=x, horizontal=True, diverging=True, label=_label(table), title=title)


def _plot_both(table: pd.DataFrame) -> Figure:
    """The heads of a decoder's own attention beside those of its cross-attention, layer by head."""
    table = table[table["kind"].isin([HEADS, CROSS])]
    attention = table["kind"].map({HEADS: "attention", CROSS: "cross-attention"})
    table = table.assign(head=table[HEADS].fillna(table[CROSS]), attention=attention)
    return figures.heatmap(table, x=HEADS, y="layer", facet="attention", label=_label(table))


@checked
@restoring
def plot_layers(frame: pd.DataFrame) -> Figure:
    """What the heads of each layer together, its state-space mixer, and its MLP, add."""
    parts = by_layer(frame)
    sums = parts.groupby(["kind", "layer", "prompt", "metric"], as_index=False)["value"].sum()
    table = stats.summarise(sums, by=["kind", "layer", "metric"], value="value")
    return figures.lines(table, x="layer", hue="kind", label=_label(frame))


@checked
@restoring
def by_layer(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of layers; all parts of a state-space layer are of the kind `mixer`, experts of the kind `mlp`."""
    kinds = frame["kind"].replace(WHOLES)
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
