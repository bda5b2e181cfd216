"""Held-out scores against scikit-learn's own pipeline and its area under the curve."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from interp.directions.classes import Contrast
from interp.directions.probes import Probe, _placement, held_out, per_prompt, rows_of, sign_test
from interp.errors import ConfigError, PromptError


def told(n: int = 12, classes: int = 2, seed: int = 0) -> Contrast:
    generator = np.random.default_rng(seed)
    clean = generator.permutation(np.arange(n) % classes)
    return Contrast("test", tuple("abc")[:classes], clean, (clean + 1) % classes, np.arange(n), "pair")


def states(of: Contrast, width: int, strength: float, seed: int = 1) -> Any:
    """Noise, with the class along one axis for each."""
    generator = np.random.default_rng(seed)
    classes = np.concatenate(list(of.sides.values()))
    found = generator.normal(size=(len(classes), width)) * generator.uniform(0.5, 3.0, width)
    found[np.arange(len(classes)), classes] += strength
    return found


@pytest.mark.parametrize("width", [5, 60])
@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_those_of_the_plain_pipeline(width: int, classes: int) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    of, probe = told(classes=classes), Probe(regularisation=0.1, folds=3)
    rows, read = rows_of(of, probe), states(of, width, 2.0)
    values, control = held_out(read, rows, probe)
    for fold in range(3):
        out = rows.fold == fold
        plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8, max_iter=10_000))
        plain.fit(read[~out], rows.classes[~out])
        right = plain.predict(read[out]) == rows.classes[out]
        assert right.tolist() == values["accuracy"][out].tolist()
    assert 0 < values["accuracy"].mean() < 1
    assert control["accuracy"].shape == values["accuracy"].shape


def test_placements_average_to_the_area_under_the_curve() -> None:
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(3)
    target = np.array([0, 1, 1, 0, 1, 0, 1, 1])
    score = generator.normal(size=8).round(1) + target
    found = _placement(np.stack([-score, score], axis=1), target)
    expected = roc_auc_score(target, score)
    assert found[target == 1].mean() == pytest.approx(expected)
    assert found[target == 0].mean() == pytest.approx(expected)
    assert np.isnan(_placement(np.zeros((3, 2)), np.array([1, 1, 1]))).all()


def test_what_can_be_told_is_told_and_noise_is_not() -> None:
    of, probe = told(30), Probe(shuffles=20)
    rows = rows_of(of, probe)
    clear, control = held_out(states(of, 20, 30.0), rows, probe)
    assert clear["accuracy"].mean() == 1 and clear["auroc"].mean() == 1
    assert abs(control["accuracy"].mean() - 0.5) < 0.1
    noise, _ = held_out(states(of, 20, 0.0), rows, probe)
    assert abs(noise["accuracy"].mean() - 0.5) < 0.25


def test_pairs_whose_two_prompts_are_alike_score_exactly_half() -> None:
    of, probe = told(10), Probe()
    one = np.random.default_rng(0).normal(size=(10, 6))
    values, control = held_out(np.concatenate([one, one]), rows_of(of, probe), probe)
    for metric in ("accuracy", "auroc"):
        assert per_prompt(values[metric], np.tile(np.arange(10), 2)).tolist() == pytest.approx([0.5] * 10)
        assert per_prompt(control[metric], np.tile(np.arange(10), 2)).tolist() == pytest.approx([0.5] * 10)


def test_groups_are_never_split_and_every_fold_has_some() -> None:
    of = told(20)
    grouped = Contrast("test", of.classes, of.clean, of.corrupt, np.arange(20) // 3, "answers")
    rows = rows_of(grouped, Probe(folds=4))
    assert all(len(set(rows.fold[rows.group == one])) == 1 for one in rows.group)
    assert set(rows.fold.tolist()) == {0, 1, 2, 3}
    assert rows.fold[:20].tolist() == rows.fold[20:].tolist()
    assert not np.array_equal(rows.fold, rows_of(grouped, Probe(folds=4, seed=1)).fold)


def test_shuffled_labels_stay_in_their_group() -> None:
    of = told(15)
    rows = rows_of(of, Probe(shuffles=8))
    assert rows.shuffled.shape == (8, 30)
    for labels in rows.shuffled:
        assert (labels[:15] != labels[15:]).all()  # each pair has one prompt of either class
    assert (rows.shuffled != rows.classes).any()
    single = Contrast("test", ("a", "b"), np.arange(14) % 2, None, np.arange(14), "pair")
    among = rows_of(single, Probe(shuffles=8)).shuffled
    assert (among.sum(1) == 7).all() and (among != single.clean).any()


def test_probes_without_enough_prompts_say_what_they_need() -> None:
    with pytest.raises(PromptError, match=r"every class of 'test' needs at least 2 pairs.*of 1 pairs"):
        rows_of(told(1), Probe())
    lonely = Contrast("test", ("a", "b"), np.array([0, 0, 0, 1]), None, np.arange(4), "pair")
    with pytest.raises(PromptError, match="some class has 1"):
        rows_of(lonely, Probe())
    rows = rows_of(told(2), Probe())
    assert set(rows.fold.tolist()) == {0, 1}


@pytest.mark.parametrize("options", [{"regularisation": 0.0}, {"folds": 1}, {"shuffles": 0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Probe(**options)


def test_the_sign_test_is_scipys_binomial_test() -> None:
    from scipy.stats import binomtest

    above, below = np.array([9, 0, 3, 5, 0]), np.array([0, 7, 4, 5, 0])
    expected = [binomtest(int(a), int(a + b)).pvalue for a, b in zip(above[:4], below[:4], strict=True)]
    assert sign_test(above, below).tolist() == pytest.approx([*expected, 1.0])
