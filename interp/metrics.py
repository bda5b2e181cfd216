"""Metrics: one number for each prompt from the logits at its last real token.

1. A run gives logits; a `Metric` says which positions and tokens of them it reads, so that nothing else is computed.
2. It turns what it reads and the pair of answers into one value a row. 3. `normalised_effect` places a value between a
base run (0) and a source run (1), so that prompts of different difficulty can be averaged.

Logits in half precision are computed with in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import as_index, checked, flag, shown
from interp.errors import ConfigError, InterpError, PromptError, check_choice, unknown

if TYPE_CHECKING:
    from interp.prompts import PromptPairs


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
    """

    name: str
    fn: Callable[..., Tensor]
    definition: str
    unit: str
    needs_reference: bool = False
    whole: bool = False
    positions: int | str | Sequence[int] | None = None
    tokens: str | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ConfigError(f"the name of a metric must be text, not {shown(self.name)}")
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
    check_answers(pairs.answers, logits.shape[-1])
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
        return pairs.answers
    return torch.as_tensor(metric.tokens, device=pairs.answers.device).expand(len(pairs), -1)


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
        return score(metric, seen, pairs.answers, reference)
    return _called(metric, len(pairs), seen, pairs)


def score(metric: Metric, seen: Tensor, answers: Tensor, reference: Tensor | None) -> Tensor:
    """A metric that is not `whole`, of any rows [rows]: what it reads of them, their answers and reference."""
    answers = answers.to(seen.device)
    if metric.tokens == "answers":
        answers = torch.arange(2, device=seen.device).expand_as(answers)
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
    """Refuse answers [rows, 2] that the model cannot give."""
    wrong = (answers < 0) | (answers >= d_vocab_out)
    if bool(wrong.any()):
        row, which = wrong.nonzero()[0].tolist()
        raise PromptError(
            f"pair {row}: the {('right', 'wrong')[which]} answer, id {int(answers[row, which])}, is out of range: "
            f"the model's answers are 0 to {d_vocab_out - 1}"
        )


@checked
def normalised_effect(
    value: Any, base: Any, source: Any, *, least: float = 1e-5
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(value - base) / (source - base): 0 where a run is like the base, 1 where it is like the source.

    NaN where the base and source runs do not differ, |source - base| <= least * max(|source|, |base|): there is nothing
    to explain, and the ratio would be rounding error.

    Args:
        value: metric of the edited run; array, tensor or column, of any shape that broadcasts with the others.
        base: metric of the run that is edited.
        source: metric of the run that edits copy from.
        least: the smallest relative difference that counts.

    >>> normalised_effect([1.0, 3.0], [1.0, 1.0], [5.0, 1.0])
    array([ 0., nan])
    """
    value, base, source = (_plain(x) for x in (value, base, source))
    gap = source - base
    gap = np.where(np.abs(gap) > least * np.maximum(np.abs(source), np.abs(base)), gap, np.nan)
    return np.asarray((value - base) / gap)


def _plain(x: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    if isinstance(x, Tensor):
        x = x.detach().cpu().double()
    return np.asarray(x, dtype=np.float64)


def _full(logits: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return logits.float() if logits.dtype.itemsize < 4 else logits


def _pick(logits: Tensor, answers: Tensor) -> Tensor:
    """Logits of the right and of the wrong answer: [rows, d_vocab_out] -> [rows, 2]."""
    return _full(logits.gather(-1, answers))


def _logit_diff(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    right, wrong = _pick(logits, answers).unbind(-1)
    return right - wrong


def _logit(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    return _pick(logits, answers[:, :1])[:, 0]


def _log_prob(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    return _logit(logits, answers) - _full(logits).logsumexp(-1)


def _prob(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    return _log_prob(logits, answers).exp()


def _rank(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    right = logits.gather(-1, answers[:, :1])  # [rows, 1]
    above = (logits > right).sum(-1)  # [rows]
    return _full(torch.where(right[:, 0].isnan(), right[:, 0], above.to(torch.float32)))


def _correct(logits: Tensor, answers: Tensor, reference: Tensor | None = None) -> Tensor:
    difference = _logit_diff(logits, answers)
    return torch.where(difference.isnan(), difference, (difference > 0).to(difference.dtype))


def _kl(logits: Tensor, answers: Tensor, reference: Tensor | None) -> Tensor:
    if reference is None:
        raise PromptError("metric 'kl' compares with a reference run, and none was given")
    run = _full(logits).log_softmax(-1)  # [rows, d_vocab_out]
    ref = _full(reference).log_softmax(-1)
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
        ),
        Metric("logit", _logit, "logit of the right answer", "logits", tokens="answers"),
        Metric("log_prob", _log_prob, "natural logarithm of the right answer's probability", "nats"),
        Metric("prob", _prob, "probability of the right answer", "probability"),
        Metric("rank", _rank, "number of tokens with a logit strictly above the right answer's; 0 is top", "tokens"),
        Metric(
            "correct",
            _correct,
            "1 where the right answer's logit is above the wrong one's, else 0",
            "fraction",
            tokens="answers",
        ),
        Metric("kl", _kl, "KL(reference run || this run) of next-token distributions", "nats", needs_reference=True),
    )
}
