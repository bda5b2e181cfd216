"""Reading a model's residual stream at any depth as if it were the last layer's output: what every lens shares.

1. Run the clean prompts once, keeping the stream before every layer, between mixer and MLP, and after the last layer.
2. A lens translates the stream of a depth (the logit lens leaves it unchanged); the model's own final norm and
   unembedding turn it into logits.
3. From these logits: probability, rank and logit difference of the answer, the divergence from the model's own output,
   and the likeliest tokens.
4. The check: after the last layer, where no lens translates, the reading must equal the model's own output.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp import stats
from interp.arguments import checked, whole_number
from interp.encoder_decoder.model import output_stack, run_output_stack
from interp.errors import InterpError, ParityError, PromptError, check_choice
from interp.hooked.model import HookedModel
from interp.metrics import best_logit, check_answers, joint_logit, mean_logit
from interp.prompts.pair_checks import MASK
from interp.prompts.pairs import PromptPairs, fitting
from interp.sites import stream_after, streams_between

if TYPE_CHECKING:
    import pandas as pd

Translate = Callable[[str, Tensor], Tensor]
"""A lens: site name and stream [..., d_model] -> its prediction of the last layer's output, of the same shape."""

LIMIT = {2: 0.05, 4: 1e-4, 8: 1e-4}
"""Bytes of a number -> how far the last row may be from the model's output, in nats."""

COLUMNS = ["lens", "layer", "site", "prompt", "pos", "token", "role", "metric", "k", "top_token", "value"]


@checked
def depths(model: HookedModel, *, halves: bool = True) -> list[str]:
    """The sites of the residual stream from the first layer's input to the last layer's output, in order.

    Args:
        model: the model.
        halves: include the sites between mixer and MLP, where the model has them.

    Raises:
        InterpError: a model without layers, or a bridged one without the residual stream of some layer.
    """
    model = output_stack(model)
    if not model.cfg.n_layers:
        raise InterpError("a lens reads the outputs of layers, and this model has no layers")
    names, pre = [], [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
    for layer, entering in enumerate(pre):
        between = [name for name in streams_between(model.cfg, layer) if name in model.hook_dict]
        names += [entering, *between] if halves else [entering]
    names.append(stream_after(model.cfg, model.cfg.n_layers - 1))
    absent = [name for name in (*pre, names[-1]) if name not in model.hook_dict]
    if absent:
        raise InterpError(f"a lens needs the residual stream of every layer, and this model has no site {absent[0]!r}")
    return names


def read_out(model: HookedModel, stream: Tensor) -> Tensor:
    """Logits of a stream through final norm and unembedding, in float32.  # [..., d_model] -> [..., d_vocab_out]"""
    logits: Tensor = model.unembed(model.to_unembed(stream.to(model.dtype)))
    return logits.float()


def divergence(output: Tensor, log_prob: Tensor) -> Tensor:
    """KL(output || read) in nats, of log-probabilities.  # [..., d_vocab_out] twice -> [...]"""
    ratio = (output - log_prob).masked_fill(output == float("-inf"), 0)
    return (output.exp() * ratio).sum(-1)


@checked
@torch.no_grad()
def read(
    model: HookedModel,
    pairs: PromptPairs,
    names: Sequence[str],
    *,
    lenses: Mapping[str, Translate | None],
    pos: str = "last",
    top: int = 5,
) -> pd.DataFrame:
    """Read the clean prompts at some depths through one or several lenses.

    Args:
        model: the model.
        pairs: the prompts; their clean side is read.
        names: sites of the residual stream; the last must be the output of the last layer, which is the check.
        lenses: name -> the function that translates streams before they are read; None leaves them unchanged.
        pos: "last" for the last position of every prompt (or its role "MASK"), "all" for every position. The answer at
            another position is the prompt's own next token, of an encoder the token that stands there.
        top: how many of the likeliest tokens to keep.

    Returns:
        Columns `lens, layer, site, prompt, pos, token, role, metric, k, top_token, value`, in order of depth. The
        answer's metrics are `prob`, `log_prob` (nats), `rank` (0 is first) and, where the prompt's answer is read,
        `logit_diff` (right minus wrong); `kl` is the divergence of the model's output from this row, in nats;
        `top_prob` is the probability of the k-th likeliest token, which `top_token` names.

    Raises:
        UnknownName: another `pos`.
        PromptError: `top` below 1, or `pos="all"` for a model whose output vocabulary is the smaller one.
        ParityError: the reading after the last layer is not the model's own output.
    """
    import pandas as pd

    check_choice("pos", pos, ["last", "all"])
    top = whole_number("top, the likeliest tokens to keep,", top, least=1, refuse=PromptError)
    cfg = output_stack(model).cfg
    if pos == "all" and cfg.d_vocab_out < cfg.d_vocab:
        raise PromptError(
            f"pos='all' takes a prompt's next token as the answer, and this model's output vocabulary of "
            f"{cfg.d_vocab_out} is smaller than its input vocabulary of {cfg.d_vocab}: choose pos='last'"
        )
    check_answers(pairs.answer_table, model.cfg.d_vocab_out)

    # 1. Run the prompts, and list the places (prompt and position) to read.
    pairs = fitting(model, pairs).to(model.device)
    logits, cache = run_output_stack(model, pairs.inputs("clean"), names)
    prompt, at = pairs.mask.nonzero(as_tuple=True)  # [place]: every real position
    if pos == "last":
        prompt, at = torch.arange(len(pairs), device=model.device), pairs.read_at
    is_last = at == pairs.read_at[prompt]
    right, wrong = pairs.answer_table[prompt].unbind(1)  # [place, answer], filled up with -1
    predicted = (at + output_stack(model).cfg.linear_output).clamp(
        max=pairs.clean.shape[1] - 1
    )  # an encoder predicts in place
    next_token = pairs.clean[prompt, predicted]
    next_token = torch.nn.functional.pad(next_token[:, None], (0, right.shape[1] - 1), value=-1)
    right = torch.where(is_last[:, None], right, next_token)
    output = logits[prompt, at].float().log_softmax(-1)  # [place, d_vocab_out]
    place = pd.DataFrame({"prompt": prompt.tolist(), "pos": at.tolist()})
    place["token"] = [pairs.str_tokens[p][i] for p, i in zip(place["prompt"], place["pos"], strict=True)]
    place["role"] = [_role(pairs, p, i) for p, i in zip(place["prompt"], place["pos"], strict=True)]

    # 2. and 3. Translate each stream, turn it into logits, and measure these.
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS if name not in place}
    for lens, translate in lenses.items():
        for name in names:
            stream = cache[name][prompt, at]  # [place, d_model]
            read_logits = read_out(model, stream if translate is None else translate(name, stream))
            point = output_stack(model).hook_dict[name]
            depth = {"lens": lens, "layer": point.layer(), "site": point.site.short_in_stack}
            for measured in _measure(model, read_logits, output, right, wrong, is_last, top):
                for column, value in (depth | measured).items():
                    columns[column] += value if isinstance(value, list) else [value] * len(place)
    again = np.tile(np.arange(len(place)), len(columns["value"]) // len(place))
    tokens = pd.Series(columns.pop("top_token"), dtype=object)
    frame = place.iloc[again].reset_index(drop=True).assign(**columns, top_token=tokens)[COLUMNS]

    # 4. Compare the last reading with the model's output.
    _check(model, frame)
    return frame


def gap(frame: pd.DataFrame) -> float:
    """How far the rows after the last layer are from the model's own output, in nats: the largest over all places."""
    last = frame[frame["site"].str.endswith("resid_post") & (frame["metric"] == "kl")]
    return float(last["value"].abs().max(skipna=False))


def _check(model: HookedModel, frame: pd.DataFrame) -> None:
    nats = gap(frame)
    if not nats <= LIMIT[model.dtype.itemsize]:
        raise ParityError(
            "the stream after the last layer, read through the final norm and unembedding, is not the model's own "
            f"output: they diverge by {nats:.2g} nats, so no lens can be trusted; remove any hooks on the final norm, "
            "the unembedding and the last layer's output"
        )


def _measure(
    model: HookedModel, logits: Tensor, output: Tensor, right: Tensor, wrong: Tensor, is_last: Tensor, top: int
) -> list[dict[str, Any]]:
    """The columns `metric, k, top_token, value` of one depth, one dictionary for every metric."""
    log_prob = logits.log_softmax(-1)
    difference = (mean_logit(logits, right) - mean_logit(logits, wrong)).masked_fill(~is_last, float("nan"))
    values = {
        "prob": joint_logit(log_prob, right).exp(),
        "log_prob": joint_logit(log_prob, right),
        "rank": (logits > best_logit(logits, right)[:, None]).sum(-1).float(),
        "logit_diff": difference,
        "kl": divergence(output, log_prob),
    }
    columns: list[dict[str, Any]] = [
        {"metric": metric, "k": 0, "top_token": None, "value": value.tolist()} for metric, value in values.items()
    ]
    best = log_prob.topk(min(top, log_prob.shape[-1]), dim=-1)
    for k in range(best.indices.shape[-1]):
        tokens = [token_text(model, token) for token in best.indices[:, k].tolist()]
        columns.append({"metric": "top_prob", "k": k, "top_token": tokens, "value": best.values[:, k].exp().tolist()})
    return columns


def token_text(model: HookedModel, token: int) -> str:
    """A token that the model writes as text; its id where the model has no tokenizer."""
    return str(token) if model.answer_tokenizer is None else model.answer_tokenizer.str_tokens([token])[0]


def _role(pairs: PromptPairs, prompt: int, at: int) -> str:
    return ", ".join(role for role, place in pairs.roles[prompt].items() if place == at)


@checked
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over prompts, where their answers are read, for every lens and depth, with intervals.

    `depth` counts layers, as `depth` gives it; `top_token` is that of the first prompt.
    """
    where = ["lens", "layer", "site"]
    masked = frame["role"].str.split(", ").map(lambda roles: MASK in roles)  # else the last position of a prompt
    places = frame["pos"].where(masked, frame["pos"] - frame["pos"].max() - 1)
    last = frame[places == places.groupby(frame["prompt"]).transform("max")]
    order = {place: i for i, place in enumerate(dict.fromkeys(_places(last, where)))}
    table = stats.summarise(last[last["metric"] != "top_prob"], by=[*where, "metric"], value="value")
    table.insert(3, "depth", [depth(layer, site) for layer, site in zip(table["layer"], table["site"], strict=True)])
    best = last[(last["metric"] == "top_prob") & (last["k"] == 0) & (last["prompt"] == last["prompt"].min())]
    tops = dict(zip(_places(best, where), best["top_token"], strict=True))
    table["top_token"] = [tops[place] for place in _places(table, where)]
    table["order"] = [order[place] for place in _places(table, where)]
    return table.sort_values(["metric", "order"], ignore_index=True).drop(columns="order")


def _places(frame: pd.DataFrame, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    return list(zip(*(frame[column] for column in columns), strict=True))


def depth(layer: int, site: str) -> float:
    """A site's depth in layers: the stream enters layer 3 at 3 and passes its middle at 3.5."""
    places = {"resid_pre": 0.0, "resid_mid": 0.5, "resid_mid_cross": 0.75, "resid_post": 1.0}
    return layer + places[site.removeprefix("normalized_")]


def in_words(row: pd.Series[Any]) -> str:
    """The depth of a table's row, such as `the input of layer 3`."""
    where = {
        "resid_pre": "the input of layer",
        "resid_mid": "the middle of layer",
        "resid_mid_cross": "what the MLP reads in layer",
        "resid_post": "the output of layer",
    }
    return f"{where[row['site'].removeprefix('normalized_')]} {row['layer']}"


def settled(table: pd.DataFrame, holds: pd.Series[bool]) -> pd.Series[Any] | None:
    """The row from which on a condition holds in all rows to the last, or None if it does not hold in the last."""
    condition = holds.to_numpy()
    start = len(condition) - int(condition[::-1].cumprod().sum())  # the length of the last run of True
    return table.iloc[start] if start < len(condition) else None
