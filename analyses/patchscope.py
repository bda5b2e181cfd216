"""Patchscopes: what does a model itself say about a hidden state that is put into another prompt?

1. Take the residual stream of a source prompt at one layer and position.
2. Run a target prompt with the state of its placeholder, at the same layer or at a given one, replaced by it. The
   identity prompt "cat -> cat; 135 -> 135; hello -> hello; ?" asks for what the state stands for.
3. Read what the model says next: the probability of the token at the source position and of the source prompt's right
   answer, and the likeliest token. The untouched target prompt is the base, and the logit lens, which reads the same
   state through the unembedding, the control.

Source: Ghandeharioun et al. 2024 ("Patchscopes: A Unifying Framework for Inspecting Hidden Representations of Language
Models", sections 3 and 4.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from torch import Tensor

from interp import figures, stats
from interp.arguments import checked, entries, is_whole, one_of_layers, shown
from interp.directions.steering import Where, states
from interp.edits import Edit, Variant
from interp.errors import PromptError, UnknownName, check_choice
from interp.figures.axes import Axis
from interp.hooked.hooks import HookPoint
from interp.hooked.model import HookedModel
from interp.metrics import METRICS, Metric
from interp.prompts.pairs import PromptPairs
from interp.sites import get_act_name
from interp.study.command import study_command, whole
from interp.sweeps.sweep import sweep
from interp.ui.page import FigureItem, Section
from interp.variants.granularity import PLACES, cut_by, described, variants

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

ORDER = 90
SITE = "resid_pre"
PLACEHOLDER = "?"
TARGETS = {
    "next": "cat -> cat; 135 -> 135; hello -> hello; ?",
    "token": "cat -> cat; 135 -> 135; hello -> hello; ? ->",
}
"""Identity prompts. "next" is read at the placeholder, where late states bring their next token; "token" behind an
arrow, where the model writes the placeholder's own token."""

READINGS = {"token": "the token at the source position", "answer": "the right answer"}
MOST_PROMPTS = 16
NEW_TOKENS = 4

TOP = Metric("top_token", lambda logits, *_: logits.argmax(-1).double(), "id of the likeliest token", "token id")
TOP_PROB = Metric(
    "top_prob",
    lambda logits, *_: logits.float().softmax(-1).amax(-1),
    "probability of the likeliest token",
    "probability",
)


@dataclass(frozen=True)
class Target:
    """A prompt into which a state is put: its ids, and the position of its placeholder."""

    tokens: tuple[int, ...]
    at: int


@checked
def target_prompt(
    model: HookedModel, pairs: PromptPairs, target: str | Sequence[int] = "next", at: int | None = None
) -> Target:
    """A target prompt and its placeholder.

    Args:
        model: its tokenizer reads texts.
        pairs: where the model has no tokenizer, or one that cannot write an identity prompt, three of their tokens
            stand there twice each, and then the placeholder: `a a b b c c ?`.
        target: a name of `TARGETS`, a text, or ids.
        at: the placeholder's position; None takes the last token with a "?" of a text, and the last of ids.

    Raises:
        PromptError: a text without a placeholder, a position outside the prompt.
    """
    if not isinstance(target, str):
        ids = [int(token) for token in target]
        place = len(ids) - 1 if at is None else at
    else:
        text = TARGETS.get(target, target)
        written = model.tokenizer is not None or target not in TARGETS
        ids = model.to_tokens(text)[0].tolist() if written else []
        marked = [place for place, token in enumerate(ids) if PLACEHOLDER in _shown(model, token)]
        if at is None and not marked and target in TARGETS:
            some = list(dict.fromkeys(pairs.clean[pairs.mask].tolist()))[:3]
            ids = [token for token in some for _ in range(2)] + some[:1]
            marked = [len(ids) - 1]
        if at is None and not marked:
            raise PromptError(f"the target {target!r} has no placeholder {PLACEHOLDER!r}: write one, or say where: at=")
        place = marked[-1] if at is None else at
    if not is_whole(place) or not -len(ids) <= place < len(ids):
        raise PromptError(
            f"the placeholder at {shown(place)} is outside the target prompt, which has {len(ids)} tokens"
        )
    return Target(tuple(ids), int(place) % len(ids))


@checked
@torch.no_grad()
def run(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    by: str | EllipsisType | None = ...,
    side: str = "clean",
    layers: Sequence[int] | None = None,
    target: str | Sequence[int] = "next",
    at: int | None = None,
    target_layer: int | None = None,
    read: str | Sequence[str] | None = None,
    top: bool = True,
    max_memory: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Put states of the prompts into a target prompt, and read what comes next there.

    Args:
        model: the model.
        pairs: the source prompts.
        by: "role" or "pos" for states at each of them, "layer" or None for the last position. Left out it is "role" for
            prompts that have roles.
        side: which prompts, "clean" or "corrupt". The right answer of a corrupt prompt is taken to be the wrong one.
        layers: the source layers; None takes all.
        target, at: as in `target_prompt`.
        target_layer: where the state is put in; None puts it into the layer that it is from.
        read: what is looked for, of "token" and "answer"; None takes both, where the model's answers are tokens.
        top: also the likeliest token and its probability.
        max_memory, progress: as `interp.sweep` takes them.

    Returns:
        Columns `layer, target_layer`, `role` or `pos`, `prompt, reading, metric, top_token, value, base_value, control,
        effect`. For each of `reading`, `metric` is "prob": `value` with the state, `base_value` of the untouched target
        prompt, `effect` their difference, and `control` the logit lens's of the same state. Rows of "top_prob" have the
        likeliest token and no reading.

    Raises:
        UnknownName: a layer, axis, role, side or reading that does not exist.
        PromptError: no placeholder; positions of prompts that differ in length.
    """
    import pandas as pd

    pairs = pairs.to(model.device)
    goal = target_prompt(model, pairs, target, at)
    if isinstance(by, EllipsisType):
        by = "role" if pairs.role_names else None
    n_layers = model.cfg.n_layers
    layers = None if layers is None else entries("layer", layers, n_layers, refuse=UnknownName)
    target_layer = None if target_layer is None else one_of_layers(target_layer, n_layers, "target_layer")
    cells = variants(model, pairs, site=SITE, by=by)
    cells = [cell for cell in cells if layers is None or cell.labels["layer"] in layers]
    if not cells:
        raise PromptError("patchscopes need at least one source layer")
    places = [cell.edits[0].where for cell in cells]
    found = states(model, pairs, SITE, places, side=side)  # [cell, prompt, d_model]
    put = [
        _put(goal, state, cell.labels, cell.labels["layer"] if target_layer is None else target_layer)
        for cell, state in zip(cells, found, strict=True)
    ]
    options: dict[str, Any] = {"base": "clean", "source": "clean", "max_memory": max_memory, "progress": progress}

    def measure(metric: Metric, chosen: Sequence[int], wanted: Tensor) -> pd.DataFrame:
        copies = _copies(goal, wanted.tolist(), model.cfg.d_vocab_out)
        return sweep(model, copies, [put[i] for i in chosen], metric, **options)

    frames = []
    for reading in _readings(model, read):
        for chosen, wanted in _wanted(pairs, places, reading, side):
            lens = torch.cat([_lens(model, found[i], wanted) for i in chosen])  # [row]
            frames.append(measure(METRICS["prob"], chosen, wanted).assign(reading=reading, control=lens.numpy()))
    if top:
        every, any_token = range(len(put)), pairs.answers[:, 0]
        ids = measure(TOP, every, any_token)["value"]
        tokens = [_shown(model, int(token)) for token in ids]
        frames.append(measure(TOP_PROB, every, any_token).assign(top_token=tokens))
    frame = pd.concat(frames, ignore_index=True)
    frame["effect"] = (frame["value"] - frame["base_value"]).where(frame["metric"] != TOP_PROB.name)
    for name in {"reading", "top_token", "control"} - set(frame):
        frame[name] = np.nan if name == "control" else None
    columns = ["layer", "target_layer", *(name for name in PLACES if name in frame), "prompt", "reading", "metric"]
    return described(frame[[*columns, "top_token", "value", "base_value", "control", "effect"]], pairs)


def _put(goal: Target, state: Tensor, labels: Mapping[str, Any], layer: int) -> Variant:
    """The target prompt with every prompt's state [prompt, d_model] at its placeholder."""
    edit = Edit(SITE, {"layer": layer, "pos": goal.at}, source=state[:, None])
    return Variant((edit,), {**{key: at for key, at in labels.items() if key != "site"}, "target_layer": layer})


def _copies(goal: Target, wanted: Sequence[int], d_vocab_out: int) -> PromptPairs:
    """The target prompt for every prompt, with what is looked for as its right answer."""
    answers = [(token, (token + 1) % d_vocab_out) for token in wanted]
    return PromptPairs.from_tokens([goal.tokens] * len(wanted), answers=answers)


def _readings(model: HookedModel, read: str | Sequence[str] | None) -> tuple[str, ...]:
    tokens = model.cfg.d_vocab_out == model.cfg.d_vocab
    if read is None:
        return tuple(READINGS) if tokens else ("answer",)
    names = tuple(part.strip() for part in read.split(",")) if isinstance(read, str) else tuple(read)
    for name in names:
        check_choice("reading", name, READINGS)
    if "token" in names and not tokens:
        raise PromptError(
            f"this model has {model.cfg.d_vocab} tokens and {model.cfg.d_vocab_out} answers, so that it cannot say a "
            "token: read='answer'"
        )
    return names


def _wanted(pairs: PromptPairs, places: Sequence[Where], reading: str, side: str) -> Iterator[tuple[list[int], Tensor]]:
    """What is looked for in each prompt [prompt], and the cells in which it is the same."""
    if reading == "answer":
        yield list(range(len(places))), pairs.answers[:, int(side == "corrupt")]
        return
    for pos in dict.fromkeys(where.get("pos", -1) for where in places):
        at = pairs.positions(pos)[:, 0]
        chosen = [i for i, where in enumerate(places) if where.get("pos", -1) == pos]
        yield chosen, getattr(pairs, side)[torch.arange(len(pairs), device=at.device), at]


def _lens(model: HookedModel, state: Tensor, wanted: Tensor) -> Tensor:
    """The probability of a token [prompt] by the logit lens of states [prompt, d_model]."""
    logits = model.unembed(model.ln_final(state.to(model.device, model.dtype)[:, None]))[:, 0]
    return METRICS["prob"].fn(logits, wanted[:, None].expand(-1, 2), None).double().cpu()


def _shown(model: HookedModel, token: int) -> str:
    return str(token) if model.tokenizer is None else model.tokenizer.str_tokens([token])[0]


@checked
@torch.no_grad()
def said(
    model: HookedModel, state: Tensor, goal: Target, layers: Sequence[int], *, max_new_tokens: int = NEW_TOKENS
) -> Tensor:
    """What the model goes on to say, greedily, with states in the place of the target's placeholder.

    Args:
        model, goal: the model, and the target prompt.
        state: [row, d_model].
        layers: where each row's state is put in [row].
        max_new_tokens: how many tokens at most.

    Returns:
        Ids of what follows the target prompt [row, new].
    """
    waiting = set(layers)

    def put(value: Tensor, hook: HookPoint) -> Tensor | None:
        layer = hook.layer()
        if layer not in waiting:
            return None  # the prompt is over
        waiting.remove(layer)
        rows = torch.tensor([at for at, one in enumerate(layers) if one == layer], device=value.device)
        new = value.clone()
        new[rows, goal.at] = state.to(value)[rows]
        return new

    tokens = torch.tensor(goal.tokens, device=model.device).expand(len(layers), -1)
    with model.hooks([([get_act_name(SITE, layer) for layer in sorted(waiting)], put)]):
        found: Tensor = model.generate(tokens, max_new_tokens, do_sample=False, stop_at_eos=False)
    return found[:, tokens.shape[1] :]


@checked
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean probability of what is looked for at every layer and place, with intervals, the largest first.

    `p` and `p_adjusted` are of the effect, what the state adds to the untouched target prompt.
    """
    cell = ["layer", "target_layer", *cut_by(frame), "reading", "metric"]
    looked = frame[frame["reading"].notna()]
    table, tested = stats.summarise(looked, by=cell), stats.tested(looked, by=cell, value="effect")
    table["control"] = stats.summarise(looked, by=cell, value="control")["value"]
    table = table.assign(effect=tested["value"], p=tested["p"], p_adjusted=tested["p_adjusted"])
    return table.sort_values("value", ascending=False, kind="stable", ignore_index=True)


@checked
def plot(frame: pd.DataFrame) -> Figure:
    """Of states by position the table of likeliest tokens of the first prompt, else the probabilities by layer."""
    if "pos" in frame and (frame["metric"] == TOP_PROB.name).any():
        return plot_table(frame)
    import pandas as pd

    table = summary(frame)
    table = table.sort_values("layer", kind="stable")
    place = next((name for name in PLACES if name in table), None)
    lens = table[["layer", "target_layer", *cut_by(table), "reading", "control"]].rename(columns={"control": "value"})
    both = pd.concat(
        [table.assign(line=table["reading"]), lens.assign(line=table["reading"] + ", logit lens")], ignore_index=True
    )
    both["n"] = int(table["n"].max())
    return figures.lines(both.assign(metric="prob"), x="layer", hue="line", facet=place, label="probability")


def plot_table(frame: pd.DataFrame) -> Figure:
    """The likeliest token at every layer and place of the first prompt."""
    first = frame[(frame["metric"] == TOP_PROB.name) & (frame["prompt"] == frame["prompt"].min())]
    place = next((name for name in PLACES if name in first), None)
    if place is None:
        return figures.lens_table(first.assign(place="last"), x=Axis("place", title=""))
    return figures.lens_table(first, x=place)


def report(
    model: HookedModel, pairs: PromptPairs, results: Mapping[str, pd.DataFrame], *, progress: bool | None = None
) -> tuple[pd.DataFrame, Section, list[str]]:
    """The section of a task's report: the last position of the first prompts, and every position of one."""
    import pandas as pd

    some = pairs[:MOST_PROMPTS]
    targets = {name: run(model, some, by=None, target=name, top=False, progress=progress) for name in TARGETS}
    grid = run(model, pairs[:1], by="pos", target="token", read=(), progress=progress)
    frames = {name: frame.assign(target=name) for name, frame in targets.items()}
    tables = {name: summary(frame) for name, frame in targets.items()}
    told = [
        _best(tables[target], reading)
        for target, reading in (("token", "token"), ("next", "answer"))
        if reading in set(tables[target]["reading"])
    ]
    goals = {name: target_prompt(model, pairs, name).tokens for name in TARGETS}
    shown = {name: "".join(_shown(model, token) for token in tokens) for name, tokens in goals.items()}
    count = f"{len(some)} prompts" if len(some) > 1 else "one prompt"
    count = f"the first {len(some)} of {len(pairs)} prompts" if len(some) < len(pairs) else count
    items = [
        FigureItem(
            f"patchscope_{name}",
            f"What the state of the last position stands for, read through the target prompt {name!r}",
            f"Target: {shown[name]}. Mean over {count}, bands are 95% bootstrap intervals. The logit lens reads the "
            "same states through the unembedding.",
            plot(targets[name]),
            tables[name],
        )
        for name in TARGETS
    ]
    items.append(
        FigureItem(
            "patchscope_table",
            "What the model says about every state of the first prompt",
            "The likeliest token behind the target prompt 'token', for the state of each layer and position.",
            plot_table(grid),
            grid,
        )
    )
    section = Section(
        title="Patchscopes",
        anchor="patchscope",
        text=[
            "A hidden state is put into another prompt, in the layer that it is from, and the model says what follows.",
            *told,
        ],
        figures=items,
        tables=[("What the first prompt's last state makes the model say", _continuations(model, pairs[:1]))],
    )
    return pd.concat([*frames.values(), grid.assign(target="token")], ignore_index=True), section, told


def _best(table: pd.DataFrame, reading: str) -> str:
    rows = table[table["reading"] == reading]
    best = rows.iloc[0]
    interval = f"95% interval {best['ci_low']:.2f} to {best['ci_high']:.2f}; " if best["n"] > 1 else ""
    lens = rows.loc[rows["control"].idxmax()]
    sure = (
        ""
        if best["p_adjusted"] < stats.SURE and best["effect"] > 0
        else ", which is not more for sure than without the state"
    )
    return (
        f"Asked what the state of the last position stands for, the model says {READINGS[reading]} most from layer "
        f"{best['layer']}: probability {best['value']:.2f} ({interval}{best['value'] - best['effect']:.2f} without the "
        f"state){sure}; the logit lens gives it at most {lens['control']:.2f}, at layer {lens['layer']}."
    )


def _continuations(model: HookedModel, pairs: PromptPairs) -> pd.DataFrame:
    """What follows either target prompt, for the last state of the first prompt at some layers."""
    import pandas as pd

    layers = sorted({round(at) for at in np.linspace(0, model.cfg.n_layers - 1, 6)})
    state = states(model, pairs, SITE, [{"layer": layer} for layer in layers])[:, 0]
    columns: dict[str, Any] = {"layer": layers}
    for name in TARGETS:
        ids = said(model, state, target_prompt(model, pairs, name), layers)
        columns[f"behind {name!r}"] = ["".join(_shown(model, token) for token in row) for row in ids.tolist()]
    return pd.DataFrame(columns)


main = study_command(
    run,
    plot=plot,
    summary=summary,
    by_position=lambda by=None, **others: by == "pos",
    options=[
        whole("--target-layer", "Where states are put in; the layer that they are from.", least=0),
        click.option("--target", default="next", show_default=True, help="next, token, or a text with a ?."),
        click.option("--side", type=click.Choice(["clean", "corrupt"]), default="clean", show_default=True),
        click.option("--by", help="role, pos, or layer for the last position."),
    ],
)

if __name__ == "__main__":
    main()
