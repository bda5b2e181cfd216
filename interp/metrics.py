"""Metrics: one number for each prompt from the logits at its last real token, or at its mask if it has that role.

1. A run gives logits; a `Metric` says which positions and tokens of them it reads, so that nothing else is computed.
2. It turns what it reads and the pair's answers into one value a row. 3. `normalised_effect` places a value between a
base run (0) and a source run (1), so that prompts of different difficulty can be averaged.

Where a pair has several right or wrong answers: `logit` is the mean of the right ones' logits, `logit_diff` that mean
minus the mean of the wrong ones'; `prob` is the sum of the right ones' probabilities, `log_prob` its logarithm; `rank`
is that of the best right one, and `correct` says whether the best right one is above the best wrong one.

Half-precision logits are converted to float32 first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import as_index, checked, flag, shown
from interp.errors import ConfigError, InterpError, PromptError, check_choice, unknown
from interp.precision import wide_type, widened
from interp.prompts.answers import NO_ANSWERS, NoAnswers
from interp.prompts.pair_checks import check_side
from interp.rounding import normalised_effect as normalised_effect  # `interp.metrics` has it too

if TYPE_CHECKING:
    from interp.prompts.pairs import PromptPairs

WHOLE = (torch.int64, torch.int32)  # number types of token ids
ROWS = 16  # rows whose logits over a whole vocabulary are copied at once


@dataclass(frozen=True)
class Metric:
    """A number for each prompt.

    Attributes:
        name: its name in tables.
        fn: `fn(logits, answers, reference) -> [rows]`, of logits [rows, d_vocab_out] at each prompt's last real
            position (or at its role "MASK"), answers [rows, 2] (right, wrong) and reference logits [rows, d_vocab_out]
            or None. Where `whole` is True: `fn(logits, pairs) -> [rows]`, of logits [rows, pos, d_vocab_out] and the
            rows' `PromptPairs`.
        definition: what it is, in one line, for provenance and captions.
        unit: the unit of its values.
        needs_reference: whether `fn` compares with a second run.
        whole: whether `fn` takes logits with their positions, and the pairs.
        positions: where `fn` reads, if `whole`: positions or a role, as an `Edit` has them; its logits have only these,
            in this order. None is all positions.
        tokens: which logits `fn` reads: "answers" for those of each pair's answers (`fn` is then given these logits
            alone, and, where not `whole`, `answers` numbers them: 0 and 1 for one of each kind); a list of ids, whose
            logits it is given in this order; or None for all.
        sets: whether `fn` takes several answers of each kind, [rows, 2, most] padded with -1, as those of `METRICS` do;
            if not, a pair that has several is measured by its first right and its first wrong answer.
        of_text: whether `fn`, a `whole` one, compares with the prompts themselves: `fn(logits, pairs, following)` is
            also given the token that follows each position that is read [rows, positions], -1 where none does: of the
            side that is run, in a sweep the base side for both runs.
    """

    name: str
    fn: Callable[..., Tensor]
    definition: str
    unit: str
    needs_reference: bool = False
    whole: bool = False
    positions: int | str | slice | Sequence[int] | None = None
    tokens: str | Sequence[int] | None = None
    sets: bool = False
    of_text: bool = field(default=False, metadata={"later": True})

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ConfigError(f"the name of a metric must be text, not {shown(self.name)}")
        for what, text in (("definition", self.definition), ("unit", self.unit)):
            if not isinstance(text, str):
                raise ConfigError(f"the {what} of metric {self.name!r} must be text, not {shown(text)}")
        flag("whole", self.whole)
        flag("needs_reference", self.needs_reference)
        if flag("of_text", self.of_text) and not self.whole:
            raise ConfigError(f"metric {self.name!r} compares with the text, which needs whole=True")
        if not callable(self.fn):
            raise ConfigError(f"metric {self.name!r} needs a function, not {shown(self.fn)}")
        if isinstance(self.tokens, str) and self.tokens != "answers":
            raise unknown("choice of tokens", self.tokens, ["answers"])
        if self.tokens is not None and not isinstance(self.tokens, str):
            ids = as_index("tokens of a metric", self.tokens, refuse=ConfigError)
            ids = ids if isinstance(ids, tuple | slice) else (ids,)
            if isinstance(ids, slice) or min(ids) < 0:
                raise ConfigError(f"tokens of metric {self.name!r} must be ids >= 0, not {shown(self.tokens)}")
            object.__setattr__(self, "tokens", ids)
        if not isinstance(self.positions, str):
            object.__setattr__(self, "positions", as_index("positions of a metric", self.positions, refuse=ConfigError))
        if self.positions is not None and not self.whole:
            raise ConfigError(f"metric {self.name!r} reads one position only; to choose positions, set whole=True")


def get_metric(metric: str | Metric | Callable[..., Tensor]) -> Metric:
    """A `Metric` from its name, from itself, or from a function `fn(logits [rows, pos, d_vocab_out], pairs) -> [rows]`.

    Raises:
        UnknownName: no metric has this name; the message offers the nearest.

    >>> get_metric("logit_diff").unit
    'logits'
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        check_choice("metric", metric, METRICS)
        return METRICS[metric]
    if not callable(metric):
        raise unknown("metric", metric, METRICS)
    name = getattr(metric, "__name__", "custom")
    says = (getattr(metric, "__doc__", None) or "").strip().partition("\n")[0]
    own = "custom" if name == "<lambda>" else name
    return Metric(own, metric, says or f"the function {own}(logits, pairs)", "", whole=True)


@checked
def at_last(logits: Tensor, pairs: PromptPairs) -> Tensor:
    """Logits where each prompt's answer is read: [rows, pos, d_vocab_out] -> [rows, d_vocab_out].

    Raises:
        PromptError: logits that are not one row of positions for each pair.
    """
    if logits.ndim != 3 or logits.shape[:2] != pairs.mask.shape:
        raise PromptError(
            f"logits are {list(logits.shape)}, expected [rows, pos, d_vocab_out] of {len(pairs)} pairs padded to "
            f"{pairs.mask.shape[1]} positions"
        )
    return logits[torch.arange(len(pairs), device=logits.device), pairs.read_at.to(logits.device)]


@checked
def measure(
    metric: str | Metric | Callable[..., Tensor],
    logits: Tensor,
    pairs: PromptPairs,
    *,
    reference: Tensor | None = None,
    side: str | None = None,
) -> Tensor:
    """A metric for each pair [rows] of the logits [rows, pos, d_vocab_out] that a run on these pairs gave.

    Args:
        metric: as `get_metric` takes it.
        logits: of the run.
        pairs: the prompts of its rows.
        reference: logits of another run on them, of the same shape, for metrics that compare.
        side: the side that was run, "clean" or "corrupt", for metrics of the text itself, such as "loss"; not needed
            where both sides are the same.

    Raises:
        PromptError: logits of the wrong shape, answers outside their vocabulary, missing answers, reference or side, or
            a metric that does not return one number a row.
    """
    metric = get_metric(metric)
    if metric.needs_reference and reference is None:
        raise PromptError(f"metric {metric.name!r} compares with a reference run: give the reference logits")
    at_last(logits, pairs)  # refuses logits of the wrong shape
    if reference is not None and reference.shape != logits.shape:
        raise PromptError(f"reference is {list(reference.shape)}, expected the shape of logits, {list(logits.shape)}")
    check_metric(metric, pairs, logits.shape[-1])
    seen = read(metric, logits, pairs)
    compared = None if reference is None else read(metric, reference, pairs)
    return evaluate(metric, seen, pairs, compared, side=side)


def where_read(metric: Metric, pairs: PromptPairs) -> Tensor:
    """The positions that a metric reads in every prompt [rows, positions]."""
    if not metric.whole:
        return pairs.read_at[:, None]
    if metric.positions is None:
        return torch.arange(pairs.mask.shape[1], device=pairs.mask.device).expand(len(pairs), -1)
    return pairs.positions(metric.positions)


def is_read(metric: Metric, pairs: PromptPairs) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Whether a metric reads a position of a prompt [rows, pos]."""
    n_rows, n_pos = pairs.mask.shape
    reads = np.zeros((n_rows, n_pos), dtype=bool)
    np.put_along_axis(reads, where_read(metric, pairs).cpu().numpy(), True, axis=1)
    return reads


def which_read(metric: Metric, pairs: PromptPairs) -> Tensor | None:
    """The tokens that a metric reads in every prompt [rows, tokens], or None for the whole vocabulary."""
    if metric.tokens is None:
        return None
    if metric.tokens == "answers":
        return answers_of(metric, pairs).flatten(1).clamp(min=0)
    return torch.as_tensor(metric.tokens, device=pairs.answers.device).expand(len(pairs), -1)


@checked
def answers_of(metric: Metric, pairs: PromptPairs, rows: Any = None) -> Tensor:
    """The answers that a metric takes: [rows, 2, most] if it takes several of each kind, else [rows, 2].

    `rows` chooses some of the pairs. Pairs without answers give what stands for them, which no metric can use.
    """
    if not pairs.has_answers:
        return pairs.answers
    answers = pairs.answer_table if metric.sets else pairs.answers
    return answers if rows is None else answers[rows]


def n_answers(metric: Metric, pairs: PromptPairs) -> int:
    """How many answers of each pair a metric takes."""
    return answers_of(metric, pairs)[0].numel() if pairs.has_answers else 0


def following(metric: Metric, pairs: PromptPairs, side: str | None) -> Tensor:
    """The token after each position that a metric reads, in the prompts of one side [rows, positions]; -1 for none.

    Raises:
        PromptError: the side is not known, or a prompt has no such token.
    """
    if side is None and pairs.contrast:
        raise PromptError(
            f"metric {metric.name!r} is of the tokens that were run: say side='clean' or side='corrupt', whose logits "
            "these are"
        )
    check_side(side or "clean")
    at = where_read(metric, pairs) + 1
    there = at < pairs.lengths[:, None]
    empty = (~there.any(1)).nonzero().flatten().tolist()
    if empty:
        raise PromptError(
            f"metric {metric.name!r} is of the tokens that follow the positions that it reads, and prompt {empty[0]} "
            "has none"
        )
    tokens: Tensor = getattr(pairs, side or "clean")
    return torch.where(there, tokens.gather(1, at.clamp(max=tokens.shape[1] - 1)), -1)


@checked
def logit_weights(pairs: PromptPairs) -> tuple[Tensor, Tensor]:
    """Token ids and weights, both [rows, tokens]: the logit difference is the sum of these logits times the weights.

    The right answers' weights sum to 1 and come first, in the first half; the wrong ones' sum to -1.
    """
    table = pairs.answer_table
    there = table >= 0
    share = there / there.sum(-1, keepdim=True)
    return table.flatten(1).clamp(min=0), (share * share.new_tensor([[1.0], [-1.0]])).flatten(1)


def read(metric: Metric, logits: Tensor, pairs: PromptPairs, prompt: Tensor | None = None) -> Tensor:
    """What a metric reads of logits [rows, pos, d_vocab_out]: [rows, tokens], or [rows, positions, tokens] if `whole`.

    `prompt` [rows] says which of the pairs each row is; None is one row for each.
    """
    rows = torch.arange(len(logits), device=logits.device)
    prompt = rows if prompt is None else prompt
    at = where_read(metric, pairs).to(logits.device)[prompt]  # [rows, positions]
    return read_there(metric, logits[rows[:, None], at], pairs, prompt)


def read_there(metric: Metric, there: Tensor, pairs: PromptPairs, prompt: Tensor | None = None) -> Tensor:
    """`read` from logits where the metric reads alone [rows, positions, d_vocab_out]."""
    tokens = which_read(metric, pairs)
    if tokens is not None:
        tokens = tokens.to(there.device)
        tokens = tokens if prompt is None else tokens[prompt]
        there = there.gather(-1, tokens[:, None].expand(-1, there.shape[1], -1))
    return there if metric.whole else there[:, 0]


def evaluate(
    metric: Metric, seen: Tensor, pairs: PromptPairs, reference: Tensor | None, *, side: str | None = None
) -> Tensor:
    """A metric for each pair [rows] from what `read` gave of a run and of its reference run.

    `side` is the side whose text a metric that is `of_text` compares with.

    Raises:
        PromptError: the metric raises, or does not return one real number a row; the message names it.
    """
    if not metric.whole:
        return score(metric, seen, answers_of(metric, pairs), reference)
    if metric.of_text:
        return _called(metric, len(pairs), seen, pairs, following(metric, pairs, side).to(seen.device))
    return _called(metric, len(pairs), seen, pairs)


def score(metric: Metric, seen: Tensor, answers: Tensor, reference: Tensor | None) -> Tensor:
    """A metric that is not `whole`, of any rows [rows], from what it reads, the rows' answers and their reference."""
    if isinstance(answers, NoAnswers):  # a metric that needs none does not look
        return _called(metric, len(seen), seen, answers, reference)
    answers = answers.to(seen.device)
    if metric.tokens == "answers":  # `seen` holds the answers' logits alone, so that answers are numbered anew
        order = torch.arange(answers[0].numel(), device=seen.device).view_as(answers[0])
        answers = torch.where(answers < 0, answers, order)
    return _called(metric, len(seen), seen, answers, reference)


def _called(metric: Metric, rows: int, *arguments: Any) -> Tensor:
    """What a metric's function returns, after checking it: the function may be the user's own."""
    try:
        value = metric.fn(*arguments)
    except InterpError:
        raise
    except Exception as error:
        raise PromptError(f"metric {metric.name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(value, Tensor) or list(value.shape) != [rows] or value.is_complex():
        returned = type(value).__name__
        if isinstance(value, Tensor):
            returned = f"{list(value.shape)}" + (f" of {value.dtype}" if value.is_complex() else "")
        raise PromptError(f"metric {metric.name!r} returned {returned}, expected a tensor [{rows}], one number a row")
    return value


def check_metric(metric: Metric, pairs: PromptPairs, d_vocab_out: int) -> None:
    """Refuse pairs whose answers the model cannot give, or that have none where the metric needs them.

    Raises:
        PromptError: they are refused.
    """
    if pairs.has_answers:
        check_answers(pairs.answer_table, d_vocab_out)
    elif metric.sets or metric.tokens == "answers":
        raise PromptError(NO_ANSWERS.format(needs=f", and metric {metric.name!r} is of them"))


@checked
def check_answers(answers: Tensor, d_vocab_out: int) -> None:
    """Refuse answers [rows, 2], or [rows, 2, most] padded with -1, that the model cannot give."""
    _check_kind(answers)
    answers = answers[..., None] if answers.ndim == 2 else answers
    wrong = answers >= d_vocab_out
    wrong[..., 0] |= answers[..., 0] < 0
    if bool(wrong.any()):
        row, which, at = wrong.nonzero()[0].tolist()
        raise PromptError(
            f"pair {row}: the {('right', 'wrong')[which]} answer, id {int(answers[row, which, at])}, is out of range: "
            f"the model's answers are 0 to {d_vocab_out - 1}"
        )


@checked
def largest_logit(logits: Tensor) -> Tensor:
    """The largest finite magnitude among each row's logits: [rows, ..., d_vocab_out] -> [rows].

    Raises:
        PromptError: no real numbers, or of another shape.
    """
    if not logits.is_floating_point() or logits.ndim < 2 or 0 in logits.shape[1:]:
        raise PromptError(f"logits must be real numbers [rows, ..., d_vocab_out], not {shown(logits)}")
    return logits.masked_fill(~logits.isfinite(), 0).flatten(1).abs().amax(1)


def _pick(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of ids [rows, most], and whether each is an id and not padding (-1)."""
    return widened(logits.gather(-1, ids.clamp(min=0))), ids >= 0


def _check_ids(logits: Tensor, ids: Tensor) -> None:
    """Refuse what are not logits [rows, d_vocab_out], or not ids of them [rows, most], padded with -1."""
    if not logits.is_floating_point() or logits.ndim != 2:
        raise PromptError(f"logits must be real numbers [rows, d_vocab_out], not {shown(logits)}")
    if ids.dtype not in WHOLE or ids.ndim != 2 or len(ids) != len(logits) or not ids.shape[1]:
        raise PromptError(
            f"ids must be token ids [{len(logits)} rows, most], whole numbers padded with -1, not {shown(ids)}"
        )
    wrong = ids[(ids < -1) | (ids >= logits.shape[1])]
    if len(wrong):
        raise PromptError(f"id {int(wrong[0])} is out of range: these logits have ids 0 to {logits.shape[1] - 1}")


@checked
def mean_logit(logits: Tensor, ids: Tensor) -> Tensor:
    """The mean logit of each row's ids: [rows, d_vocab_out], ids [rows, most] padded with -1 -> [rows].

    Raises:
        PromptError: tensors of another kind or shape, or ids out of range.
    """
    _check_ids(logits, ids)
    return _mean(logits, ids)


def _mean(logits: Tensor, ids: Tensor) -> Tensor:
    values, real = _pick(logits, ids)
    return values[:, 0] if ids.shape[1] == 1 else values.masked_fill(~real, 0).sum(-1) / real.sum(-1)


@checked
def joint_logit(logits: Tensor, ids: Tensor) -> Tensor:
    """The logit that one token with the probability of all of a row's ids would have; arguments as in `mean_logit`."""
    _check_ids(logits, ids)
    return _joint(logits, ids)


def _joint(logits: Tensor, ids: Tensor) -> Tensor:
    values, real = _pick(logits, ids)
    return values[:, 0] if ids.shape[1] == 1 else values.masked_fill(~real, float("-inf")).logsumexp(-1)


@checked
def best_logit(logits: Tensor, ids: Tensor) -> Tensor:
    """The largest logit of each row's ids; arguments as in `mean_logit`."""
    _check_ids(logits, ids)
    return _best(logits, ids)


def _best(logits: Tensor, ids: Tensor) -> Tensor:
    values, real = _pick(logits, ids)
    return values[:, 0] if ids.shape[1] == 1 else values.masked_fill(~real, float("-inf")).amax(-1)


def _check_kind(answers: Tensor) -> None:
    if answers.dtype not in WHOLE or answers.ndim not in (2, 3) or answers.shape[1] != 2:
        raise PromptError(f"answers must be token ids [rows, 2] or [rows, 2, most], not {shown(answers)}")


@checked
def sides(answers: Tensor) -> tuple[Tensor, Tensor]:
    """The right and the wrong answers, each [rows, most].

    Raises:
        PromptError: no answers [rows, 2], or [rows, 2, most].
    """
    _check_kind(answers)
    right, wrong = (answers[..., None] if answers.ndim == 2 else answers).unbind(1)
    return right, wrong


def _logit_diff(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    right, wrong = sides(answers)
    return _mean(logits, right) - _mean(logits, wrong)


def _logit(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    return _mean(logits, sides(answers)[0])


@checked
def joint_log_prob(logits: Tensor, ids: Tensor) -> Tensor:
    """The logarithm of the probability of all of a row's ids together, in nats; arguments as in `mean_logit`."""
    _check_ids(logits, ids)
    return _joint_log_prob(logits, ids)


def _joint_log_prob(logits: Tensor, ids: Tensor) -> Tensor:
    return _joint(logits, ids) - widened(logits).logsumexp(-1)


def _log_prob(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    return _joint_log_prob(logits, sides(answers)[0])


def _prob(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    return _log_prob(logits, answers).exp()


def _rank(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    best = _best(logits, sides(answers)[0])
    above = (logits > best[:, None]).sum(-1)  # [rows]
    return torch.where(best.isnan(), best, above.to(best.dtype))


def _correct(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    right, wrong = sides(answers)
    difference = _best(logits, right) - _best(logits, wrong)
    return torch.where(difference.isnan(), difference, (difference > 0).to(difference.dtype))


def _kl(logits: Tensor, answers: Tensor, reference: Tensor | None) -> Tensor:
    if reference is None:
        raise PromptError("metric 'kl' compares with a reference run, and none was given")
    parts = zip(logits.split(ROWS), reference.split(ROWS), strict=True)
    return torch.cat([_kl_of_rows(*part) for part in parts]).to(wide_type(logits.dtype))


def _kl_of_rows(logits: Tensor, reference: Tensor) -> Tensor:
    # In float64: of two equal runs it then has what their logits are off, squared, and no rounding of its own.
    run = logits.double().log_softmax(-1)  # [rows, d_vocab_out]
    ref = reference.double().log_softmax(-1)
    ratio = (ref - run).masked_fill(ref == float("-inf"), 0)  # what the reference never says costs nothing
    return (ref.exp() * ratio).sum(-1)


def _loss(logits: Tensor, pairs: PromptPairs, following: Tensor) -> Tensor:
    """The mean cross entropy of the tokens that follow [rows]."""
    real = following >= 0  # [rows, positions]
    if int(following.max()) >= logits.shape[-1]:
        raise PromptError(
            f"the loss is of the next token, and token {int(following.max())} is none of this model's "
            f"{logits.shape[-1]} outputs"
        )
    each = zip(logits.split(ROWS), following.clamp(min=0).split(ROWS), strict=True)
    nats = torch.cat(
        [
            own.logsumexp(-1) - own.gather(-1, next_[..., None])[..., 0]
            for part, next_ in each
            for own in [widened(part)]
        ]
    )
    return nats.masked_fill(~real, 0).sum(-1) / real.sum(-1)


def loss(positions: int | str | slice | Sequence[int] | None = None) -> Metric:
    """The mean loss on the next token, in nats, for `interp.sweep`; `metric="loss"` is that of all positions.

    Args:
        positions: where the predictions are made, as an `Edit` has them, from the start of each real prompt; the loss
            at a position is of the token after it. The last real position, which has none after it, does not count.
            None is all of them: the mean is then what transformers gives as the loss of the prompt alone.

    Raises:
        ConfigError: positions that are not.

    Example, of a text of which the second half repeats the first: the loss on the second copy, from its second token.

        >>> half = 3
        >>> loss(positions=slice(half, None)).definition
        'mean cross entropy of the next token at positions 3 to the end'
    """
    return Metric("loss", _loss, _loss_of(positions), "nats", whole=True, positions=positions, of_text=True)


def _loss_of(positions: object) -> str:
    if isinstance(positions, slice) and positions.step is None:
        first, last = positions.start or 0, "the end" if positions.stop is None else f"before {positions.stop}"
        return f"mean cross entropy of the next token at positions {first} to {last}"
    return "mean cross entropy of the next token" + ("" if positions is None else f" at {positions}")


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "logit_diff",
            _logit_diff,
            "logit of the right answer minus logit of the wrong answer",
            "logits",
            tokens="answers",
            sets=True,
        ),
        Metric("logit", _logit, "logit of the right answer", "logits", tokens="answers", sets=True),
        Metric("log_prob", _log_prob, "natural logarithm of the right answer's probability", "nats", sets=True),
        Metric("prob", _prob, "probability of the right answer", "probability", sets=True),
        Metric(
            "rank",
            _rank,
            "number of tokens with a logit strictly above the right answer's; 0 is top",
            "tokens",
            sets=True,
        ),
        Metric(
            "correct",
            _correct,
            "1 where the right answer's logit is above the wrong one's, else 0",
            "fraction",
            tokens="answers",
            sets=True,
        ),
        Metric("kl", _kl, "KL(reference run || this run) of next-token distributions", "nats", needs_reference=True),
        loss(),
    )
}

# What journals know these metrics by. A metric that measures something else from now on gets another one; how its code
# is written does not count, so that a sweep goes on after it was rewritten. Every row of `METRICS` has one: its
# `fingerprint`, taken when it is added or measures something else.
DIGESTS = {
    "logit_diff": "bbe243cd161965cd9398790423be052be611031f75ebeaef99203783ac4495b9",
    "logit": "aad860cae437fcc2a3776fab1f2a26a854caef9f24719cca64562e2686c827b5",
    "log_prob": "0552abd25566160929a359f8dacfdf0a151d2c4d9f7ca9f6935e592a069ba4ab",
    "prob": "de55340d77454e5f9d0e18caff8a77a29806d251447a1ad97f78be857626e3b1",
    "rank": "838960864a45c90ac99b8aa29a8543e45b545a2b47fef2db44ba02e608502e92",
    "correct": "357c1e1ca99843195a178f6fcd8947393f6294e8cb4bf229733398dc2d3d8a4a",
    "kl": "917993ba07ce99905681d0a95e3fbf37fed844b11e5d8e479b72a8e547bee953",
    "loss": "a979953921ea3d7bae3f563491e23b2201fbf2bce64a2488219c2eb5a508d581",
}


@checked
def digest(metric: Metric) -> str:
    """What a journal knows a metric by: a fixed digest for `METRICS`, that of its code and values for a user's own.

    >>> digest(METRICS["logit_diff"])[:8]
    'bbe243cd'
    """
    from interp.resume.fingerprint import fingerprint

    ours = METRICS.get(metric.name) is metric and metric.name in DIGESTS  # a user may have added one to METRICS
    return DIGESTS[metric.name] if ours else fingerprint(metric)
