"""`sweep`: many variants of the same prompts, one row for every variant and prompt.

1. The base run (the prompts that get edited) and the source run (the one edits copy from) are made once, keeping the
   sites that edits read and the residual stream before every layer where a variant begins.
2. For every variant the layers from its first edit on are run again, with its edits attached; a variant that only sets
   what the base run has already is not run.
3. The metric reads the logits of each prompt's last position; nothing else is unembedded unless the metric asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.edits import RUNS, Edit, Variant, changes_nothing, edit_hook
from interp.errors import PromptError, unknown
from interp.metrics import Metric, check_answers, evaluate, get_metric, normalised_effect, read
from interp.model import HookedModel
from interp.prompts import PromptPairs

if TYPE_CHECKING:
    import pandas as pd

SIDES = ("clean", "corrupt")


@torch.no_grad()
def sweep(
    model: HookedModel,
    pairs: PromptPairs,
    variants: Sequence[Variant],
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    *,
    base: str = "corrupt",
    source: str = "clean",
    progress: bool | None = None,
) -> pd.DataFrame:
    """Run every variant on every prompt and measure it.

    Args:
        model: the model.
        pairs: the prompts.
        variants: what to change; see `interp.edits`.
        metric: a name of `interp.metrics.METRICS`, a `Metric`, or a function of logits and pairs.
        base: the side that gets edited, "clean" or "corrupt". Corrupt patched from clean is denoising.
        source: the side that edits copy from; the same as `base` for ablations.
        progress: a bar on stderr; None shows it on a terminal.

    Returns:
        A row for every variant and prompt: the variant's labels, `prompt`, `metric`, `value`, `base_value`,
        `source_value` and `effect`, which is 0 at the base run and 1 at the source run.

    Raises:
        UnknownName: a site, layer, head, role, metric or side that does not exist; before anything is run.
    """
    import pandas as pd
    from tqdm import tqdm

    for side in (base, source):
        if side not in SIDES:
            raise unknown("side", side, SIDES)
    if isinstance(variants, Variant) or not all(isinstance(variant, Variant) for variant in variants):
        raise PromptError(f"sweep takes a list of Variants, each a set of edits, not {variants!r:.80}")
    if not variants:
        raise PromptError("sweep needs at least one variant")
    measure = get_metric(metric)
    names = [[edit.name(model.cfg) for edit in variant.edits] for variant in variants]
    starts = [_first_layer(model, row) for row in names]
    pairs = pairs.to(model.device)
    tokens = {"base": getattr(pairs, base), "source": getattr(pairs, source)}
    mask = pairs.attention_mask

    keep = {run: _needed(variants, names, run) for run in RUNS}
    keep["base"] |= keep["source"] | {f"blocks.{layer}.hook_resid_pre" for layer in starts if layer is not None}
    runs: dict[str, dict[str, Tensor]] = {}
    logits: dict[str, Tensor] = {}
    check_answers(pairs.answers, model.cfg.d_vocab_out)
    for run in RUNS:
        runs[run] = _run(model, tokens[run], mask, keep[run] | {f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"})
        logits[run] = _unembed(model, measure, runs[run][f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"], pairs)
    reference = logits["source"]
    base_value = evaluate(measure, logits["base"], pairs, reference)
    source_value = evaluate(measure, reference, pairs, reference)

    rows: list[dict[str, object]] = []
    for variant, sites, start in tqdm(
        list(zip(variants, names, starts, strict=True)),
        desc="sweep",
        unit="cell",
        disable=None if progress is None else not progress,
    ):
        made = list(zip(variant.edits, sites, strict=True))
        if all(changes_nothing(e, n, pairs, runs, model.hook_dict[n].site) for e, n in made):
            made = []  # one edit alone must not be dropped: another may change what it would have set back
        hooks = [(n, edit_hook(e, n, pairs, runs)) for e, n in made]
        with model.hooks(fwd_hooks=hooks):
            if not hooks:
                out = logits["base"]
            elif start is None:
                out = read(measure, model(tokens["base"], attention_mask=mask), pairs)
            else:
                resid = runs["base"][f"blocks.{start}.hook_resid_pre"]
                out = model(resid, attention_mask=mask, start_at_layer=start, stop_at_layer=model.cfg.n_layers)
                out = _unembed(model, measure, out, pairs)
        value = evaluate(measure, out, pairs, reference)
        effect = normalised_effect(value, base_value, source_value)
        for prompt in range(len(pairs)):
            rows.append(
                {
                    **variant.labels,
                    "prompt": prompt,
                    "metric": measure.name,
                    "value": float(value[prompt]),
                    "base_value": float(base_value[prompt]),
                    "source_value": float(source_value[prompt]),
                    "effect": float(effect[prompt]),
                }
            )
    return pd.DataFrame(rows)


def _first_layer(model: HookedModel, names: Iterable[str]) -> int | None:
    """The layer where a variant begins; None when an edit lies outside the layers, so that all must run."""
    points = [model.hook_dict[name] for name in names]
    if not points or not all(point.site.per_layer for point in points):
        return None
    return min(point.layer() for point in points)


def _needed(variants: Sequence[Variant], names: Sequence[Sequence[str]], run: str) -> set[str]:
    def reads(edit: Edit) -> bool:
        return edit.run == run

    return {
        n
        for variant, row in zip(variants, names, strict=True)
        for edit, n in zip(variant.edits, row, strict=True)
        if reads(edit)
    }


def _run(model: HookedModel, tokens: Tensor, mask: Tensor | None, keep: set[str]) -> dict[str, Tensor]:
    """The sites of one run that are read later."""
    return dict(model.run_with_cache(tokens, names_filter=sorted(keep), attention_mask=mask, return_type=None)[1])


def _unembed(model: HookedModel, measure: Metric, resid: Tensor, pairs: PromptPairs) -> Tensor:
    if measure.whole:
        return model.unembed(model.ln_final(resid))
    last = resid[torch.arange(len(pairs), device=resid.device), pairs.last]
    return model.unembed(model.ln_final(last[:, None]))[:, 0]
