"""Linear probes: can a linear reader tell the class of a prompt from activations, for prompts it was not fitted to?

1. Groups of pairs are dealt into folds; a clean prompt and its corrupt partner are in the same group, so that a probe
   fitted to one is never tested on the other.
2. For each fold, activations are scaled to mean 0 and variance 1 over the other folds, and a logistic regression with
   an L2 penalty is fitted to those. It is fitted in the span of its own rows, where the best weights lie, which changes
   no prediction.
3. Each held-out prompt gets two scores: whether its class is the likeliest (`accuracy`), and the share of the fold's
   prompts of other classes that look less like its class than it does (`auroc`: the mean is the area under the curve).
4. The control: the same with labels shuffled within groups. A probe that scores no better than this reads nothing.

Source: Alain and Bengio 2016 ("Understanding intermediate layers using linear classifier probes", section 3); Hewitt
and Liang 2019 ("Designing and Interpreting Probes with Control Tasks", section 2: selectivity is the score beyond the
control); DeLong et al. 1988 (area under the curve as a mean over cases).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.arguments import MOST, checked, real_number, whole_number
from interp.arguments import seed as check_seed
from interp.directions.classes import Contrast
from interp.errors import PromptError

METRICS = ("accuracy", "auroc")
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Probe:
    """How probes are fitted and tested.

    Attributes:
        regularisation: scikit-learn's `C`, the inverse of the L2 penalty, for activations of variance 1.
        folds: how many parts the groups are dealt into; fewer where a class has fewer groups.
        shuffles: how often the control's labels are shuffled.
        seed: of folds and shuffles.

    Raises:
        ConfigError: a number out of range.
    """

    regularisation: float = 0.01
    folds: int = 5
    shuffles: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = {
            "regularisation": real_number("regularisation", self.regularisation, above=0),
            "folds": whole_number("folds", self.folds, least=2),
            "shuffles": whole_number("shuffles", self.shuffles, least=1, most=MOST),  # the control needs one
            "seed": check_seed(self.seed),
        }
        for name, value in numbers.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False)
class Rows:
    """The prompts of all sides of a contrast, one after another.

    Attributes:
        classes: the class of each row [row].
        prompt: the pair of each row [row].
        group: the group of that pair [row].
        fold: the fold in which the row is held out [row].
        shuffled: the row's class in each shuffle [shuffle, row].
    """

    classes: Array
    prompt: Array
    group: Array
    fold: Array
    shuffled: Array

    @property
    def chance(self) -> float:
        """The share of the commonest class: the accuracy of always answering with it."""
        return float(np.bincount(self.classes).max() / len(self.classes))


def rows_of(contrast: Contrast, probe: Probe) -> Rows:
    """The rows of a contrast, dealt into folds, with their control labels.

    Raises:
        PromptError: some class has fewer than two groups of prompts, so that nothing can be held out.
    """
    classes = np.concatenate(list(contrast.sides.values()))
    prompt = np.tile(np.arange(len(contrast.clean)), len(contrast.sides))
    group = contrast.group[prompt]
    fewest = min(len(np.unique(group[classes == one])) for one in range(len(contrast.classes)))
    if fewest < 2:
        raise PromptError(
            f"every class of {contrast.name!r} needs at least 2 pairs, one to fit and one to hold out, and of "
            f"{len(contrast.clean)} pairs some class has {fewest}: give more prompts"
        )
    generator = np.random.default_rng(probe.seed)
    fold = _dealt(group, classes, min(probe.folds, fewest), generator)
    shuffled = np.stack([_shuffled(classes, group, generator) for _ in range(probe.shuffles)])
    return Rows(classes, prompt, group, fold, shuffled)


def _dealt(group: Array, classes: Array, folds: int, generator: np.random.Generator) -> Array:
    """The fold of every row [row]: groups with the same classes are dealt out one after another, in random order."""
    order = generator.permutation(np.unique(group))
    kinds = {int(one): tuple(sorted(classes[group == one].tolist())) for one in order}
    dealt = sorted(order.tolist(), key=lambda one: kinds[one])
    at = {one: place % folds for place, one in enumerate(dealt)}
    return np.array([at[int(one)] for one in group])


def _shuffled(classes: Array, group: Array, generator: np.random.Generator) -> Array:
    """Classes shuffled among the rows of each group, or among groups where each of them has a single class."""
    new = classes.copy()
    names = np.unique(group)
    if all(len(np.unique(classes[group == one])) == 1 for one in names):
        first = np.array([classes[group == one][0] for one in names])
        return generator.permutation(first)[np.searchsorted(names, group)]
    for one in names:
        rows = np.flatnonzero(group == one)
        new[rows] = generator.permutation(classes[rows])
    return new


@checked
def held_out(read: Any, rows: Rows, probe: Probe) -> tuple[dict[str, Array], dict[str, Array]]:
    """Scores of every held-out row [row], and the mean scores of its shuffles.

    Args:
        read: states [row, ...], in the order of `rows`.
        rows: classes, folds and shuffles.
        probe: how to fit.

    Returns:
        For `accuracy` and `auroc` the scores, and the control's. NaN where there is no score: the rows to fit have a
        single class or, for `auroc`, the rows held out have no other class to compare with.
    """
    read = np.asarray(read, dtype=np.float64).reshape(len(rows.classes), -1)
    targets = np.concatenate([rows.classes[None], rows.shuffled])  # [labelling, row]: the true classes, then shuffled
    scored = {metric: np.full(targets.shape, np.nan) for metric in METRICS}
    for fold in np.unique(rows.fold):
        out = rows.fold == fold
        fit, test = _in_their_span(read[~out], read[out])
        for at, target in enumerate(targets):
            if len(np.unique(target[~out])) < 2:
                continue
            scores = _log_odds(fit, target[~out], test, probe, int(targets.max()) + 1)
            scored["accuracy"][at, out] = scores.argmax(1) == target[out]
            scored["auroc"][at, out] = _placement(scores, target[out])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean over nothing is NaN
        control = {metric: np.nanmean(values[1:], axis=0) for metric, values in scored.items()}
    return {metric: values[0] for metric, values in scored.items()}, control


def _in_their_span(fit: Array, test: Array) -> tuple[Array, Array]:
    """Both scaled by the mean and variance of `fit`; in coordinates of the span of its rows, if channels are more."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(fit)
    fit, test = scaler.transform(fit), scaler.transform(test)
    if fit.shape[1] <= fit.shape[0]:
        return fit, test
    axes, coordinates = np.linalg.qr(fit.T)  # orthonormal axes, so that the penalty is the same as on the channels
    return coordinates.T, test @ axes


def _log_odds(fit: Array, target: Array, test: Array, probe: Probe, n_classes: int) -> Array:
    """How much every test row looks like every class [row, class]."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=probe.regularisation, max_iter=1000).fit(fit, target)
    decision = fitted.decision_function(test)
    scores = np.full((len(test), n_classes), -np.inf)
    scores[:, fitted.classes_] = np.stack([-decision, decision], 1) if decision.ndim == 1 else decision
    return scores


def _placement(scores: Array, target: Array) -> Array:
    """The share of rows of other classes that look less like a row's class than it does [row]; ties count half."""
    own = scores[np.arange(len(target)), target]
    others = scores[:, target].T  # [row, other row]: how much the other looks like the row's class
    different = target[:, None] != target
    below = (others < own[:, None]) + 0.5 * (others == own[:, None])
    count = different.sum(1)
    return np.where(count > 0, (below * different).sum(1) / np.maximum(count, 1), np.nan)


def per_prompt(values: Array, prompt: Sequence[int] | Array) -> Array:
    """The mean of the rows of each pair [prompt]; NaN for a pair without rows."""
    prompt = np.asarray(prompt)
    known = ~np.isnan(values)
    total = np.bincount(prompt, np.where(known, values, 0.0))
    count = np.bincount(prompt, known)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def sign_test(above: Any, below: Any) -> Array:
    """Two-sided p of the exact sign test [cell], from how many pairs lie above and how many below their control.

    A t test would not do: a pair's scores take few values and are often the same for all pairs, with no variance.
    """
    from scipy import stats

    more, count = np.maximum(above, below), np.asarray(above) + np.asarray(below)
    return np.minimum(2 * stats.binom.sf(more - 1, count, 0.5), 1.0)
