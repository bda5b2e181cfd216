"""What a scene looks like: the parts that the page draws, before and after its edits.

1. `run_of` is the run that is looked at: the model's own where nothing is edited, else the edited one.
2. `look` draws the parts that are asked for, each a function of a `Sight`. Their views are those of `interp.show`;
   beside them stands what the edits change (`compare`).
3. A patching map, by head or by position, is one sweep; what it will cost is known before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from interp.edits import Variant
from interp.errors import PromptError, check_choice
from interp.hooked.model import HookedModel
from interp.lenses.read import depths, divergence, read_out, token_text
from interp.prompts.pairs import PromptPairs
from interp.sites import site_names
from interp.sweeps.plan import Plan, expected_seconds
from interp.sweeps.sweep import Executor, plan_sweep, sweep
from interp.text.characters import visible_token
from interp.ui.explorer.pace import Pace
from interp.ui.explorer.scene import (
    CLEAN,
    CORRUPT,
    Other,
    Run,
    Scene,
    answer_id,
    compared_with,
    pairs_of,
    patched,
    resolved,
)
from interp.ui.explorer.script import map_script_of
from interp.ui.views import frames, prompts
from interp.ui.views.of_model import labels_of, of_model
from interp.ui.views.view import Part, View
from interp.ui.walk.walk import walk
from interp.variants.edited import edited
from interp.variants.granularity import variants

MOST_TOKENS = 256
"""Of longer prompts one layer's patterns and the lens of a window are drawn: all would be some 100 MB in a page."""

MOST_WEIGHTS = 6_000_000  # of the patterns of one layer: 8 MB in a request
LENS_WINDOW = 96  # positions

TOP = 10  # tokens of each run that are compared


@dataclass(frozen=True)
class Focus:
    """What is shown of a prompt of more than `MOST_TOKENS` tokens.

    Attributes:
        layer: the one whose patterns are shown; where it has none, the nearest one that has.
        position: the last of the positions that are shown, if there are as many before it; None is the prompt's last.
    """

    layer: int = 0
    position: int | None = None

    def window(self, n: int, most: int) -> range:
        """The positions that are shown, of `n`, at most `most`."""
        last = n - 1 if self.position is None else min(self.position, n - 1)
        first = max(0, min(last + 1 - most, n - most))
        return range(first, min(n, first + most))


@dataclass(frozen=True)
class Sight:
    """What parts are drawn of.

    Attributes:
        model, pairs, variant: the run that is looked at; `pairs` has its prompt on the clean side.
        labels: the prompt's tokens.
        scene: what the page asks for.
        other: a second model to compare with.
        at: what is shown of a long prompt.
    """

    model: HookedModel
    pairs: PromptPairs
    variant: Variant
    labels: Sequence[str]
    scene: Scene
    other: Other | None
    at: Focus

    def run(self) -> AbstractContextManager[None]:
        """The run: every forward of its prompt in a `with` block is edited."""
        return run_of(self.model, self.pairs, self.variant)


def look(
    model: HookedModel, scene: Scene, wanted: Sequence[str], other: Other | None = None, at: Focus = Focus()
) -> dict[str, Any]:
    """The tokens of a scene's prompts and the parts that are wanted, in the order in which they are asked for.

    Args:
        model: the model.
        scene: what is looked at.
        wanted: names of `PARTS`.
        other: a second model to compare with.
        at: what is shown of a long prompt.

    Raises:
        InterpError: a scene that the model cannot take; another part.
    """
    for name in wanted:
        check_choice("part", name, PARTS)
    variant, pairs = resolved(model, scene)
    labels = labels_of(model, pairs.clean[0])
    sight = Sight(model, pairs, variant, labels, scene, other, at)
    parts = [PARTS[name](sight) for name in wanted]
    shown = [{"view": part.name, "title": part.title, **part.payload} for part in parts if part is not None]
    return {"ids": pairs.clean[0].tolist(), "labels": labels, "parts": shown}


@contextmanager
def run_of(model: HookedModel, pairs: PromptPairs, variant: Variant) -> Iterator[None]:
    """The run of a scene: every forward of its prompt in the block is edited as it says."""
    with edited(model, pairs, variant, base=CLEAN, source=CORRUPT) if variant.edits else nullcontext():
        yield


def _next_token(of: Sight) -> Part:
    with of.run():
        after = f"“{of.labels[-1]}”, at position {len(of.labels) - 1}"
        return prompts.next_token(of.model, of.pairs.clean[0], after=after)


def _lens(of: Sight) -> Part:
    n = len(of.labels)
    window = of.at.window(n, LENS_WINDOW) if n > MOST_TOKENS else None
    with of.run():
        part = prompts.lens(of.model, of.pairs.clean[0], labels=of.labels, lenses={"logit lens": None}, window=window)
    return part if window is None else _of_long(part, window, of.labels)


def _attention(of: Sight) -> Part | None:
    layers, n = prompts.attention_layers(of.model), len(of.labels)
    if not of.model.cfg.has_attention or not layers:
        return None
    layer, window = None, None
    if n > MOST_TOKENS:
        layer = min(layers, key=lambda one: abs(one - of.at.layer))  # the nearest that has attention
        window = of.at.window(n, isqrt(2 * MOST_WEIGHTS // of.model.cfg.n_heads))
    with of.run():
        part = prompts.attention(of.model, of.pairs.clean[0], labels=of.labels, layer=layer, window=window)
    return part if window is None else _of_long(part, window, of.labels, layers)


def _of_long(part: Part, window: range, labels: Sequence[str], layers: Sequence[int] = ()) -> Part:
    """A part of a long prompt, with what there is to choose from."""
    long = {"first": window.start, "last": window.stop - 1, "tokens": len(labels), "layers": [*layers]}
    return Part(part.name, part.title, {**part.payload, "long": long})


@torch.no_grad()
def compare(model: HookedModel, pairs: PromptPairs, variant: Variant, before: Run) -> Part | None:
    """Two runs at the last position: probabilities of next tokens, and of the first choice of one, by layer.

    Args:
        model: the model.
        pairs, variant: the run that is looked at.
        before: what it is compared with, as `compared_with` gives it.

    Returns:
        None where both are the same run.
    """
    two = before.model is not model
    if not two and not variant.edits and not before.variant.edits and torch.equal(pairs.clean, before.pairs.clean):
        return None
    # The last layer's reading is the model's own output.
    logits = [_read_at_end(*run) for run in ((before.model, before.pairs, before.variant), (model, pairs, variant))]
    depth = [len(one) for one in logits]
    outputs = torch.stack([one[-1] for one in logits])  # [run, d_vocab_out]
    ours, after = outputs.log_softmax(-1)
    # Where one model is deeper, each of its layers stands beside the other's at the same share of the way.
    deepest = max(depth) - 1
    at_depth = [[round(at * (n - 1) / max(deepest, 1)) for at in range(deepest + 1)] for n in depth]
    read = torch.stack([one[places] for one, places in zip(logits, at_depth, strict=True)]).log_softmax(-1)
    tokens = torch.cat([one.topk(min(TOP, len(one))).indices for one in (ours, after)]).unique()
    tokens = tokens[torch.maximum(ours, after)[tokens].argsort(descending=True)]
    first = int(ours.argmax())
    best, of_first = read.max(-1), read[..., first].exp().tolist()
    layers = [
        {
            "layer": _depth_name([places[at] for places in at_depth], depth),
            "words": [visible_token(token_text(model, int(best.indices[run, at]))) for run in (0, 1)],
            "first": [of_first[run][at] for run in (0, 1)],
        }
        for at in range(deepest + 1)
    ]
    rows = [
        {
            "token": visible_token(token_text(model, token)),
            "before": float(ours[token].exp()),
            "after": float(after[token].exp()),
            "logits": outputs[:, token].tolist(),
        }
        for token in tokens.tolist()
    ]
    payload = {
        "rows": rows,
        "layers": layers,
        "first": visible_token(token_text(model, first)),
        "divergence": float(divergence(ours, after)),
        "with": before.what,
        "alone": (model.cfg.model_name or "the first model") if two and variant.edits else "",
    }
    return Part("compare", "Two models" if two else "Before and after", payload)


def _read_at_end(model: HookedModel, pairs: PromptPairs, variant: Variant) -> Tensor:
    """What each depth would say at the last position, on the processor [depth, d_vocab_out]."""
    names = depths(model, halves=False)
    with run_of(model, pairs, variant):
        _, cache = model.run_with_cache(pairs.clean[:1], names_filter=names, return_type=None)
    # No other position need be unembedded.
    return read_out(model, torch.stack([cache[name][0, -1] for name in names])).float().cpu()


def _depth_name(places: Sequence[int], depth: Sequence[int]) -> str:
    """Where the streams of both runs are read; of two models of different depth, both places."""
    told = ["output" if at == n - 1 else f"into {at}" for at, n in zip(places, depth, strict=True)]
    return told[1] if told[0] == told[1] else f"{told[1]} (before: {told[0]})"


def _compare(of: Sight) -> Part | None:
    return compare(of.model, of.pairs, of.variant, compared_with(of.model, of.scene, of.other))


PARTS: dict[str, Callable[[Sight], Part | None]] = {
    "compare": _compare,
    "next_token": _next_token,
    "attention": _attention,
    "lens": _lens,
}


def walked(model: HookedModel, scene: Scene, place: Mapping[str, Any]) -> dict[str, Any]:
    """The walk of a scene's prompt through the model, in the run of the scene.

    Args:
        model: the model.
        scene: what is looked at.
        place: `position`, `layer` and `unit` of `walk`; what is missing or None is the walk's own choice.
    """
    variant, pairs = resolved(model, scene)
    given = {name: value for name, value in place.items() if value is not None}
    for name in given:
        check_choice("field of a place", name, ("position", "layer", "unit"))
    with run_of(model, pairs, variant):
        part = walk(model, pairs.clean[0], labels=labels_of(model, pairs.clean[0]), **given)
    return {"part": {"view": part.name, "title": part.title, **part.payload}}


@torch.no_grad()
def continued(model: HookedModel, scene: Scene, at: int) -> dict[str, Any]:
    """The prompt with one more token.

    Args:
        model: the model.
        scene: what is looked at.
        at: the token's place among the likeliest, 0 for the first.

    Returns:
        `prompt`, and `alike`: whether the new text has the tokens of the old one and then the new one.
    """
    variant, pairs = resolved(model, scene)
    ids = pairs.clean[0].tolist()
    with run_of(model, pairs, variant):
        logits = model(pairs.clean[:1])[0, -1].float()
    if not 0 <= at < len(logits):
        raise PromptError(f"a next token is one of the likeliest, 0 to {len(logits) - 1}, not {at}")
    token = int(logits.sort(descending=True).indices[at])
    if model.tokenizer is None:
        return {"prompt": " ".join(map(str, [*ids, token])), "alike": True}
    old, new = (str(model.to_string(one)) for one in (ids, [*ids, token]))
    prompt = scene.prompt + (new[len(old) :] if new.startswith(old) else token_text(model, token))
    return {"prompt": prompt, "alike": list(model.tokenizer.encode(prompt)) == [*ids, token]}


def _contrast(model: HookedModel, scene: Scene) -> PromptPairs:
    """Both prompts of a scene, with the answers of its map: those that were given, or each prompt's own next token."""
    pairs = pairs_of(model, scene, patched=True).to(model.device)
    with torch.no_grad():
        own = [int(model(one)[0, -1].argmax()) for one in (pairs.clean, pairs.corrupt)]
    right, wrong = (answer_id(model, text) if text else first for text, first in zip(scene.answers, own, strict=True))
    if right == wrong:
        text = visible_token(token_text(model, right))
        raise PromptError(
            f"the map needs two answers that differ, and both prompts are continued by {text!r}: give the answers"
        )
    return pairs_of(model, scene, (right, wrong), patched=True)


@dataclass(frozen=True)
class Cut:
    """What the patching map gives the second prompt's value, one at a time.

    Attributes:
        title: what the page calls it.
        site, by: as `interp.variants.granularity.variants` takes them.
        name: what a cell is called where changes are written.
    """

    title: str
    site: str
    by: str
    name: str


CUTS = {
    "head": Cut("heads", "z", "head", "L{row}H{column}"),
    "ssm_head": Cut("state-space heads", "gated", "ssm_head", "L{row}S{column}"),
    "resid_pre": Cut("residual stream by position", "resid_pre", "pos", "resid_pre {row}"),
    "attn_out": Cut("attention by position", "attn_out", "pos", "attention {row}"),
    "out": Cut("state-space mixers by position", "out", "pos", "mixer {row}"),
    "mlp_out": Cut("MLPs by position", "mlp_out", "pos", "MLP {row}"),
}


def cuts_of(model: HookedModel) -> dict[str, Cut]:
    """The maps that a model has."""
    sites = {(site.short, axis) for site in site_names(model.cfg).values() for axis in site.axes}
    return {name: cut for name, cut in CUTS.items() if (cut.site, cut.by) in sites}


def _cells(model: HookedModel, pairs: PromptPairs, name: str) -> list[Variant]:
    """The cells of a map."""
    return variants(model, pairs, site=CUTS[name].site, by=CUTS[name].by)


def _forecast(model: HookedModel, pairs: PromptPairs, cells: Sequence[Variant]) -> tuple[Plan, float]:
    plan = plan_sweep(model, pairs, cells, base=CLEAN, source=CORRUPT)
    return plan, expected_seconds(plan, model)


SAMPLED = 30  # cells that are timed before the first map of a server


def plan_map(
    model: HookedModel, scene: Scene, cut: str = "head", pace: Pace | None = None, executor: Executor | None = None
) -> dict[str, Any]:
    """What a patching map will cost.

    Args:
        model: the model.
        scene: both prompts, and the answers.
        cut: a name of `CUTS`.
        pace: of this server. Where it knows nothing yet, a few cells are run to learn it.
        executor: runs the chunks of these.
    """
    check_choice("map", cut, cuts_of(model))
    pairs, pace = _contrast(model, scene), pace or Pace()
    cells = _cells(model, pairs, cut)
    if not pace.known and executor is not None:
        some = cells[:: max(1, len(cells) // SAMPLED)]
        with pace.timed(cut, _forecast(model, pairs, some)[1]):
            sweep(model, pairs, some, base=CLEAN, source=CORRUPT, progress=False, executor=executor)
    plan, seconds = _forecast(model, pairs, cells)
    return {
        "cells": plan.n_variants,
        "operations": plan.operations,
        "seconds": pace.expected(cut, seconds),
        "answers": _answers(model, pairs),
    }


def patching_map(
    model: HookedModel, scene: Scene, loaded: str, executor: Executor, cut: str = "head", pace: Pace | None = None
) -> dict[str, Any]:
    """The patching map: each cell alone is given what it has on the second prompt.

    Args:
        model: the model.
        scene: both prompts, and the answers.
        loaded: the call that loads the model, for the script.
        executor: runs the chunks.
        cut: a name of `CUTS`.
        pace: of this server, which learns from it.
    """
    check_choice("map", cut, cuts_of(model))
    pairs = _contrast(model, scene)
    cells = _cells(model, pairs, cut)
    with (pace or Pace()).timed(cut, _forecast(model, pairs, cells)[1]):
        frame = sweep(model, pairs, cells, base=CLEAN, source=CORRUPT, progress=False, executor=executor)
    if frame["effect"].isna().all():
        raise PromptError("the two prompts lead to the same difference of logits: there is no effect to map")
    part, own = frames.of_frame(frame), CUTS[cut]
    maps = [one | {"low": None, "high": None} for one in part.payload["maps"]]  # one prompt has no interval
    payload = {**part.payload, "maps": maps}
    if own.by == "pos":
        labels = labels_of(model, pairs.clean[0])
        payload |= {"columns": [labels[int(at)] for at in payload["columns"]], "tokens": True}
    right, wrong = (int(one) for one in pairs.answers[0])
    return {
        "part": {"view": part.name, "title": part.title, **payload},
        "name": own.name,
        "by": own.by,
        "answers": _answers(model, pairs),
        "script": map_script_of(model, loaded, scene, (right, wrong), own.site, own.by),
    }


def _answers(model: HookedModel, pairs: PromptPairs) -> list[str]:
    return [visible_token(token_text(model, int(one))) for one in pairs.answers[0]]


def saved(model: HookedModel, scene: Scene) -> str:
    """A scene as a page that needs nothing else."""
    return saved_view(model, scene).to_html()


def saved_view(model: HookedModel, scene: Scene) -> View:
    """The view of `interp.show`, in the run of a scene."""
    variant, pairs = resolved(model, scene)
    shown: Any = pairs.clean[0]
    if len(shown) > MOST_TOKENS:
        raise PromptError(f"a page is saved of prompts of up to {MOST_TOKENS} tokens; this one has {len(shown):,}")
    if all(scene.answers):
        right, wrong = (answer_id(model, one) for one in scene.answers)
        shown = pairs_of(model, scene, (right, wrong), patched=patched(scene))
    with run_of(model, pairs, variant):
        return of_model(model, shown, title=title_of(model, scene))


def title_of(model: HookedModel, scene: Scene) -> str:
    """What a saved page is called."""
    edits = f" with {', '.join(scene.edits)}" if scene.edits else ""
    return f"{model.cfg.model_name or 'A model'} on one prompt{edits}"
