"""Metrics: one number for each prompt from the logits at its last real token.

1. A run gives logits; a `Metric` says which positions and tokens of them it reads, so that nothing else is computed.
2. It turns what it reads and the pair of answers into one value a row. 3. `normalised_effect` places a value between a
base run (0) and a source run (1), so that prompts of different difficulty can be averaged.

Where a pair has several right or wrong answers: `logit` is the mean of the right ones' logits, `logit_diff` that mean
minus the mean of the wrong ones'; `prob` is the sum of the right ones' probabilities, `log_prob` its logarithm; `rank`
is the best right one's, and `correct` says whether the best right one is above the best wrong one.

Logits in half precision are computed with in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import as_index, checked, flag, shown
from interp.errors import ConfigError, InterpError, PromptError, check_choice, unknown
from interp.precision import wide_type, widened
from interp.rounding import normalised_effect as normalised_effect  # part of this public room
from interp.rounding import of_logits

if TYPE_CHECKING:
    from interp.prompts.pairs import PromptPairs

DRAWN = 2  # ways of moving logits by their rounding, beside two that are chosen
ROWS = 16  # rows whose logits over a whole vocabulary are copied at once


@dataclass(frozen=True)
class Metric:
    """A number for each prompt.

    Attributes:
        name: how tables call it.
        fn: `fn(logits, answers, reference) -> [rows]`, of logits [rows, d_vocab_out] at each prompt's last real
            position, answers [rows, 2] (right, wrong) and reference logits [rows, d_vocab_out] or None. Where `whole`
            is True: `fn(logits, pairs) -> [rows]`, of logits [rows, pos, d_vocab_out] and the rows' `PromptPairs`.
        definition: what it is, in one line, for provenance and captions.
        unit: what it counts.
        needs_reference: whether `fn` compares with another run.
        whole: whether `fn` takes logits with their positions, and the pairs.
        positions: where `fn` reads, if `whole`: positions or a role, as an `Edit` has them; its logits have only these,
            in this order. None is all positions.
        tokens: which logits `fn` reads: "answers" for the two of each pair (where not `whole`: the vocabulary is then
            these two, and `answers` is 0 and 1), ids, which are then the vocabulary in this order, or None for all.
        sets: whether `fn` takes several answers of each kind, [rows, 2, most] padded with -1, as those of `METRICS` do;
            else a pair that has several is measured by the first right and the first wrong one.
    """

    name: str
    fn: Callable[..., Tensor]
    definition: str
    unit: str
    needs_reference: bool = False
    whole: bool = False
    positions: int | str | Sequence[int] | None = None
    tokens: str | Sequence[int] | None = None
    sets: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ConfigError(f"the name of a metric must be text, not {shown(self.name)}")
        for what, text in (("definition", self.definition), ("unit", self.unit)):
            if not isinstance(text, str):
                raise ConfigError(f"the {what} of metric {self.name!r} must be text, not {shown(text)}")
        flag("whole", self.whole)
        flag("needs_reference", self.needs_reference)
        if not callable(self.fn):
            raise ConfigError(f"metric {self.name!r} needs a function, not {shown(self.fn)}")
        if isinstance(self.tokens, str) and self.tokens != "answers":
            raise unknown("choice of tokens", self.tokens, ["answers"])
        if self.tokens is not None and not isinstance(self.tokens, str):
            found = as_index("tokens of a metric", self.tokens, refuse=ConfigError)
            if isinstance(found, slice) or min(found if isinstance(found, tuple) else (found,)) < 0:
                raise ConfigError(f"tokens of metric {self.name!r} must be ids, 0 or more, not {shown(self.tokens)}")
            object.__setattr__(self, "tokens", found if isinstance(found, tuple) else (found,))
        if not isinstance(self.positions, str):
            object.__setattr__(self, "positions", as_index("positions of a metric", self.positions, refuse=ConfigError))
        if self.positions is not None and not self.whole:
            raise ConfigError(f"metric {self.name!r} reads the last position: positions need whole=True")


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
    """Logits at each prompt's last real position: [rows, pos, d_vocab_out] -> [rows, d_vocab_out].

    Raises:
        PromptError: logits that are not one row of positions for each pair.
    """
    if logits.ndim != 3 or logits.shape[:2] != pairs.mask.shape:
        raise PromptError(
            f"logits are {list(logits.shape)}, expected [rows, pos, d_vocab_out] of {len(pairs)} pairs padded to "
            f"{pairs.mask.shape[1]} positions"
        )
    return logits[torch.arange(len(pairs), device=logits.device), pairs.last.to(logits.device)]


@checked
def measure(
    metric: str | Metric | Callable[..., Tensor],
    logits: Tensor,
    pairs: PromptPairs,
    *,
    reference: Tensor | None = None,
) -> Tensor:
    """A metric for each pair [rows] of the logits [rows, pos, d_vocab_out] that a run on these pairs gave.

    Args:
        metric: as `get_metric` takes it.
        logits: of the run.
        pairs: the prompts of its rows.
        reference: logits of another run on them, of the same shape, for metrics that compare.

    Raises:
        PromptError: logits of another shape, answers outside their vocabulary, a reference that is missing, or a metric
            that does not return one number a row.
    """
    metric = get_metric(metric)
    if metric.needs_reference and reference is None:
        raise PromptError(f"metric {metric.name!r} compares with a reference run, and none was given")
    at_last(logits, pairs)  # refuses another shape, for every metric
    if reference is not None and reference.shape != logits.shape:
        raise PromptError(f"reference is {list(reference.shape)}, expected the shape of logits, {list(logits.shape)}")
    check_answers(pairs.answer_table, logits.shape[-1])
    return evaluate(
        metric, read(metric, logits, pairs), pairs, None if reference is None else read(metric, reference, pairs)
    )


def where_read(metric: Metric, pairs: PromptPairs) -> Tensor:
    """The positions that a metric reads in every prompt [rows, positions]."""
    if not metric.whole:
        return pairs.last[:, None]
    if metric.positions is None:
        return torch.arange(pairs.mask.shape[1], device=pairs.mask.device).expand(len(pairs), -1)
    return pairs.positions(metric.positions)


def is_read(metric: Metric, pairs: PromptPairs) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Whether a metric reads a position of a prompt [rows, pos]."""
    n_rows, n_pos = pairs.mask.shape
    found = np.zeros((n_rows, n_pos), dtype=bool)
    np.put_along_axis(found, where_read(metric, pairs).cpu().numpy(), True, axis=1)
    return found


def which_read(metric: Metric, pairs: PromptPairs) -> Tensor | None:
    """The tokens that a metric reads in every prompt [rows, tokens], or None for the whole vocabulary."""
    if metric.tokens is None:
        return None
    if metric.tokens == "answers":
        return answers_of(metric, pairs).flatten(1).clamp(min=0)
    return torch.as_tensor(metric.tokens, device=pairs.answers.device).expand(len(pairs), -1)


@checked
def answers_of(metric: Metric, pairs: PromptPairs) -> Tensor:
    """The answers that a metric takes: [rows, 2, most] if it takes several of each kind, else [rows, 2]."""
    return pairs.answer_table if metric.sets else pairs.answers


@checked
def logit_weights(pairs: PromptPairs) -> tuple[Tensor, Tensor]:
    """Token ids and weights, both [rows, tokens]: the logit difference is the sum of these logits, so weighted.

    The right answers' weights sum to 1 and come first, in the first half; the wrong ones' sum to -1.
    """
    table = pairs.answer_table
    there = table >= 0
    share = there / there.sum(-1, keepdim=True)
    return table.flatten(1).clamp(min=0), (share * share.new_tensor([[1.0], [-1.0]])).flatten(1)


def read(metric: Metric, logits: Tensor, pairs: PromptPairs, prompt: Tensor | None = None) -> Tensor:
    """What a metric reads of logits [rows, pos, d_vocab_out]: [rows, tokens], with positions between if `whole`.

    `prompt` [rows] says which of the pairs each row is; None is one row for each.
    """
    rows = torch.arange(len(logits), device=logits.device)
    prompt = rows if prompt is None else prompt
    at = where_read(metric, pairs).to(logits.device)[prompt]  # [rows, positions]
    seen = logits[rows[:, None], at]  # [rows, positions, d_vocab_out]
    tokens = which_read(metric, pairs)
    if tokens is not None:
        seen = seen.gather(-1, tokens.to(logits.device)[prompt, None].expand(-1, at.shape[1], -1))
    return seen if metric.whole else seen[:, 0]


def evaluate(metric: Metric, seen: Tensor, pairs: PromptPairs, reference: Tensor | None) -> Tensor:
    """A metric for each pair [rows] from what `read` gave of a run and of its reference run.

    Raises:
        PromptError: the metric raises, or does not return one real number a row; the message names it.
    """
    if not metric.whole:
        return score(metric, seen, answers_of(metric, pairs), reference)
    return _called(metric, len(pairs), seen, pairs)


def score(metric: Metric, seen: Tensor, answers: Tensor, reference: Tensor | None) -> Tensor:
    """A metric that is not `whole`, of any rows [rows]: what it reads of them, their `answers_of` and reference."""
    answers = answers.to(seen.device)
    if metric.tokens == "answers":
        order = torch.arange(answers[0].numel(), device=seen.device).view_as(answers[0])
        answers = torch.where(answers < 0, answers, order)
    return _called(metric, len(seen), seen, answers, reference)


def _called(metric: Metric, rows: int, *given: Any) -> Tensor:
    """What a metric's function makes of its arguments, one number a row; somebody may have written it just now."""
    try:
        value = metric.fn(*given)
    except InterpError:
        raise
    except Exception as error:
        raise PromptError(f"metric {metric.name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(value, Tensor) or list(value.shape) != [rows] or value.is_complex():
        what = type(value).__name__
        if isinstance(value, Tensor):
            what = f"{list(value.shape)}" + (f" of {value.dtype}" if value.is_complex() else "")
        raise PromptError(f"metric {metric.name!r} returned {what}, expected a tensor [{rows}], one number a row")
    return value


@checked
def check_answers(answers: Tensor, d_vocab_out: int) -> None:
    """Refuse answers [rows, 2], or [rows, 2, most] with -1 behind the last, that the model cannot give."""
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
    """The largest finite magnitude among each row's logits: [rows, ..., d_vocab_out] -> [rows]."""
    return logits.masked_fill(~logits.isfinite(), 0).flatten(1).abs().amax(1)


def rounding(metric: Metric, seen: Tensor, pairs: PromptPairs, reference: Tensor | None, largest: Tensor) -> Tensor:
    """How far rounding alone can take a metric of each pair [rows], in float64; see `interp.rounding`.

    The logits that the metric reads are moved up and down by what each of them may be off, in several patterns; what
    counts is the largest change. So it holds for every metric: twice the step for a difference of two logits, a whole
    token for a rank that rounding can change.

    Args:
        metric, seen, pairs, reference: as `evaluate` takes them.
        largest: the largest magnitude among the logits where the metric reads, of the whole vocabulary [rows].
    """
    if not metric.whole and len(pairs) > ROWS:  # so that moved copies of a large vocabulary stay few
        parts = [slice(start, start + ROWS) for start in range(0, len(pairs), ROWS)]
        refs = [None if reference is None else reference[part] for part in parts]
        found = [
            rounding(metric, seen[part], pairs[part], ref, largest[part]) for part, ref in zip(parts, refs, strict=True)
        ]
        return torch.cat(found)
    step = of_logits(largest, seen.dtype).to(seen.device)
    step, seen = step.reshape(-1, *[1] * (seen.ndim - 1)), widened(seen)
    value = evaluate(metric, seen, pairs, reference).double()
    worst = torch.zeros_like(value)
    for pattern in _patterns(seen):
        for sign in (1, -1):
            moved = seen + (sign * step).to(seen.dtype) * pattern
            change = (evaluate(metric, moved, pairs, reference).double() - value).abs()
            worst = torch.maximum(worst, change.nan_to_num(float("inf")))
    return worst


def _patterns(seen: Tensor) -> Iterator[Tensor]:
    """Directions in which logits are moved together, of +1 and -1.

    The first half of the tokens against the second, which parts the right answers from the wrong ones; every other one
    by size, which parts the likeliest token from the next; then drawn ones.
    """
    n_tokens = seen.shape[-1]
    place = torch.arange(n_tokens, device=seen.device)
    turns = (1 - 2 * (place % 2)).to(seen.dtype)
    yield (1 - 2 * (2 * place >= n_tokens).long()).to(seen.dtype)
    yield torch.empty_like(seen).scatter_(-1, seen.argsort(-1, descending=True), turns.expand_as(seen))
    rng = np.random.default_rng(0)
    for _ in range(DRAWN):
        yield torch.from_numpy(1.0 - 2.0 * rng.integers(2, size=n_tokens)).to(seen)


def _pick(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of ids [rows, most], and which of them there are: those that are not padded with -1."""
    return widened(logits.gather(-1, ids.clamp(min=0))), ids >= 0


@checked
def mean_logit(logits: Tensor, ids: Tensor) -> Tensor:
    """The mean logit of each row's ids: [rows, d_vocab_out], ids [rows, most] padded with -1 -> [rows]."""
    found, there = _pick(logits, ids)
    return found[:, 0] if ids.shape[1] == 1 else found.masked_fill(~there, 0).sum(-1) / there.sum(-1)


@checked
def joint_logit(logits: Tensor, ids: Tensor) -> Tensor:
    """The logit that one token with the probability of all of a row's ids would have; shapes as in `mean_logit`."""
    found, there = _pick(logits, ids)
    return found[:, 0] if ids.shape[1] == 1 else found.masked_fill(~there, float("-inf")).logsumexp(-1)


@checked
def best_logit(logits: Tensor, ids: Tensor) -> Tensor:
    """The largest logit of each row's ids; shapes as in `mean_logit`."""
    found, there = _pick(logits, ids)
    return found[:, 0] if ids.shape[1] == 1 else found.masked_fill(~there, float("-inf")).amax(-1)


@checked
def sides(answers: Tensor) -> tuple[Tensor, Tensor]:
    """The right and the wrong answers, each [rows, most]."""
    right, wrong = (answers[..., None] if answers.ndim == 2 else answers).unbind(1)
    return right, wrong


def _logit_diff(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    right, wrong = sides(answers)
    return mean_logit(logits, right) - mean_logit(logits, wrong)


def _logit(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    return mean_logit(logits, sides(answers)[0])


@checked
def joint_log_prob(logits: Tensor, ids: Tensor) -> Tensor:
    """The logarithm of the probability of all of a row's ids together, in nats; shapes as in `mean_logit`."""
    return joint_logit(logits, ids) - widened(logits).logsumexp(-1)


def _log_prob(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    return joint_log_prob(logits, sides(answers)[0])


def _prob(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    return _log_prob(logits, answers).exp()


def _rank(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    best = best_logit(logits, sides(answers)[0])
    above = (logits > best[:, None]).sum(-1)  # [rows]
    return torch.where(best.isnan(), best, above.to(best.dtype))


def _correct(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    right, wrong = sides(answers)
    difference = best_logit(logits, right) - best_logit(logits, wrong)
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
    )
}
