"""Direct logit attribution: which heads, MLPs and embeddings write the answer into the residual stream?

1. The last position's residual stream is the sum of the embedding, every head's result, every bias and every MLP's
   output.
2. The final norm, with the scale that it has in this run, and the unembedding are linear: the answer's logit (or its
   difference from the wrong answer's) is the sum of what each part contributes.
3. What the sum leaves over is reported as `residue`; it is rounding error.

Source: Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits", section "Residual stream") and Wang et
al. 2022 ("Interpretability in the Wild", section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click
import torch
from torch import Tensor

from interp import figures, stats
from interp.command import study_command
from interp.errors import unknown
from interp.model import HookedModel
from interp.prompts import PromptPairs
from interp.ui.page import FigureItem, Section

if TYPE_CHECKING:
    import pandas as pd

    from interp.canvas import Figure

ORDER = 30
METRICS = ("logit_diff", "logit")


@torch.no_grad()
def run(model: HookedModel, pairs: PromptPairs, *, metric: str = "logit_diff") -> pd.DataFrame:
    """Contribution of every component to the answer at the last position of the clean prompts.

    Args:
        model: the model.
        pairs: the prompts; their clean side is read.
        metric: "logit_diff" (right minus wrong) or "logit" (right).

    Returns:
        Columns `component, kind, layer, head, prompt, metric, value`, in logits. Kinds: `embed`, `head` (`L9H6`), `mlp`
        (`mlp_9`, with its bias), `bias` (the attention's b_O of a layer; the final norm's and the unembedding's bias),
        `total` (the metric itself) and `residue` (the metric less the sum of all parts).
    """
    import pandas as pd

    if metric not in METRICS:
        raise unknown("metric of head attribution", metric, METRICS)
    cfg = model.cfg
    pairs = pairs.to(model.device)
    ends = ("hook_embed", "hook_pos_embed", "hook_z", "hook_mlp_out", "ln_final.hook_scale")
    names = [name for name in model.hook_dict if name.endswith(ends)]
    mask = pairs.attention_mask
    logits, cache = model.run_with_cache(pairs.clean, names_filter=names, attention_mask=mask)
    at = (torch.arange(len(pairs), device=model.device), pairs.last)  # the last position of every prompt

    # 1. What each part wrote: labels, and vectors [component, prompt, d_model].
    labels: list[tuple[str, str, int | None, int | None]] = []
    written: list[Tensor] = []
    for name in ("embed", "pos_embed"):
        if f"hook_{name}" in cache:
            labels.append((name, "embed", None, None))
            written.append(cache[name][at])
    for layer in range(cfg.n_layers):
        labels += [(f"L{layer}H{head}", "head", layer, head) for head in range(cfg.n_heads)]
        written += model.head_results(layer, cache["z", layer][at]).unbind(1)
        if cfg.attn_out_bias:
            labels.append((f"b_O_{layer}", "bias", layer, None))
            written.append(model.b_O[layer].expand(len(pairs), -1))
        if not cfg.attn_only:
            labels.append((f"mlp_{layer}", "mlp", layer, None))
            written.append(cache["mlp_out", layer][at])

    # 2. What that is worth in logits, with the scale of the final norm as it was.
    norm = model.norm_before(cfg.n_layers)
    stack = torch.stack(written)
    if norm is not None:
        stack = norm.scaled(stack, cache["ln_final.hook_scale"][at])
    sign = torch.tensor([1.0, -1.0 if metric == "logit_diff" else 0.0], device=model.device)
    direction = (model.W_U.T[pairs.answers] * sign[:, None]).sum(1)  # [prompt, d_model]
    values = list((stack * direction).sum(-1).double().unbind(0))  # [prompt] for every component
    bias = (
        torch.zeros(cfg.d_model, device=model.device, dtype=model.dtype) if norm is None or norm.b is None else norm.b
    )
    labels.append(("bias", "bias", None, None))
    values.append((model.unembed(bias)[pairs.answers] * sign).sum(-1).double())

    # 3. The metric itself, and what the sum leaves over.
    total = (logits[at].gather(-1, pairs.answers).double() * sign).sum(-1)
    labels += [("total", "total", None, None), ("residue", "residue", None, None)]
    values += [total, total - torch.stack(values).sum(0)]
    frame = pd.DataFrame(labels, columns=["component", "kind", "layer", "head"]).astype(
        {"layer": "Int64", "head": "Int64"}
    )
    frame["metric"] = metric
    frame["prompt"] = [list(range(len(pairs)))] * len(frame)
    frame["value"] = [value.tolist() for value in values]
    frame = frame.explode(["prompt", "value"], ignore_index=True).astype({"prompt": int, "value": float})
    return frame[["component", "kind", "layer", "head", "prompt", "metric", "value"]]


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean over prompts with intervals and corrected p, the largest magnitudes first."""
    table = stats.tested(frame, by=["component", "kind", "layer", "head", "metric"], value="value")
    return table.sort_values("value", key=abs, ascending=False, kind="stable", ignore_index=True)


def plot(frame: pd.DataFrame) -> Figure:
    """Heads as a grid, layer by head."""
    table = summary(frame)
    return figures.heatmap(table[table["kind"] == "head"], x="head", y="layer", label=_label(frame), annotate=6)


def plot_layers(frame: pd.DataFrame) -> Figure:
    """What the heads of each layer together, and its MLP, add."""
    parts = frame[frame["kind"].isin(["head", "mlp"])]
    sums = parts.groupby(["kind", "layer", "prompt", "metric"], as_index=False)["value"].sum()
    table = stats.summarise(sums, by=["kind", "layer", "metric"], value="value")
    return figures.lines(table, x="layer", y="value", hue="kind", label=_label(frame))


def _label(frame: pd.DataFrame) -> str:
    named = {"logit_diff": "direct contribution to the logit difference", "logit": "direct contribution to the logit"}
    return named[frame["metric"].iloc[0]]


def report(
    model: HookedModel, pairs: PromptPairs, results: Mapping[str, pd.DataFrame], *, progress: bool | None = None
) -> tuple[pd.DataFrame, Section, list[str]]:
    """The section of a task's report: its measurements, and how they are told."""
    frame = run(model, pairs)
    table = summary(frame)
    heads = table[table["kind"] == "head"]
    total = table[table["kind"] == "total"].iloc[0]
    embed = frame[frame["kind"] == "embed"].groupby("prompt")["value"].sum().mean()
    residue = frame.loc[frame["kind"] == "residue", "value"].abs().max()
    sums = {
        kind: frame[frame["kind"] == kind].groupby("prompt")["value"].sum().mean() for kind in ("head", "mlp", "bias")
    }
    strongest = heads.iloc[0]
    finding = (
        "The heads whose direct contribution is largest are "
        + ", ".join(f"{row.component} ({row.value:+.2f})" for row in heads.head(3).itertuples())
        + f"; all heads together write {sums['head']:+.2f}, all MLPs {sums['mlp']:+.2f} of the logit difference."
    )
    text = [
        f"The logit difference at the last position, {total['value']:.2f} on average, is the sum of what each part "
        f"writes there: heads {sums['head']:+.2f}, MLPs {sums['mlp']:+.2f}, embeddings {embed:+.2f}, biases "
        f"{sums['bias']:+.2f} (largest residue of any prompt: {residue:.1e}).",
        f"The head with the largest direct contribution is {strongest['component']} ({strongest['value']:+.2f}, "
        f"95% interval {strongest['ci_low']:.2f} to {strongest['ci_high']:.2f}); the strongest against the answer is "
        f"{heads.sort_values('value').iloc[0]['component']} ({heads['value'].min():+.2f}).",
    ]
    section = Section(
        title="Direct logit attribution",
        anchor="attribution",
        text=text,
        figures=[
            FigureItem(
                "attribution_layers",
                "Direct contribution of every layer's heads and MLP",
                f"Mean over {len(pairs)} prompts; bands are 95% bootstrap intervals over prompts.",
                plot_layers(frame),
                frame[frame["kind"].isin(["head", "mlp"])],
            ),
            FigureItem(
                "attribution_heads",
                "Direct contribution of every head",
                "Blue heads write towards the right answer, red heads towards the wrong one.",
                plot(frame),
                heads,
            ),
        ],
        tables=[("The ten largest direct contributions", table[table["kind"].isin(["head", "mlp", "embed"])].head(10))],
    )
    return frame, section, [finding]


main = study_command(
    run,
    plot=plot,
    summary=summary,
    options=[click.option("--metric", type=click.Choice(METRICS), default="logit_diff", show_default=True)],
)

if __name__ == "__main__":
    main()
