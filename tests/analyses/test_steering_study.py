"""The study of steering against differences of means by hand and full forwards with a hook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from makers import make, named_pairs
from matplotlib.colors import to_rgb
from torch import Tensor

import interp
from analyses import steering
from analyses.sections.steering import report
from interp.directions.classes import contrast
from interp.directions.held_out import neutral_prompts, random_like
from interp.directions.probes import Probe, rows_of
from interp.directions.steering import states
from interp.errors import ConfigError, PromptError, UnknownName
from interp.metrics import METRICS
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.tasks import ioi


def by_hand(model: GPT, pairs: PromptPairs, place: dict[str, Any]) -> Tensor:
    """For every prompt the difference of means over the other half, towards the clean prompt's class [prompt, ...]."""
    told = contrast(model, pairs, most=2)
    half = rows_of(told, Probe(folds=2)).fold[: len(pairs)]
    read = {side: states(model, pairs, "resid_pre", [place], side=side)[0] for side in ("clean", "corrupt")}
    found = []
    for i in range(len(pairs)):
        means = []
        for one in (told.clean[i], 1 - told.clean[i]):
            means.append(
                torch.stack(
                    [
                        read[side][j]
                        for side, classes in told.sides.items()
                        for j in range(len(pairs))
                        if half[j] != half[i] and classes[j] == one
                    ]
                ).mean(0)
            )
        found.append(means[0] - means[1])
    return torch.stack(found)


def test_prompts_are_steered_by_directions_of_the_other_half(model: GPT) -> None:
    pairs = swapped_pairs()
    frame = steering.run(model, pairs, layers=[1], strengths=[0.5, -2.0], progress=False)
    vectors = by_hand(model, pairs, {"layer": 1})
    held = frame[(frame["vector"] == "difference") & (frame["prompts"] == "held out")]
    for strength, part in held.groupby("strength"):
        for i, n in enumerate(pairs.lengths.tolist()):

            def added(value: Tensor, hook: object, change: Tensor = strength * vectors[i]) -> Tensor:
                new = value.clone()
                new[:, -1] = new[:, -1] + change
                return new

            logits = model.run_with_hooks(pairs.corrupt[i : i + 1, :n], fwd_hooks=[("blocks.1.hook_resid_pre", added)])
            expected = METRICS["logit_diff"].fn(logits[:, -1], pairs.answers[i : i + 1] % model.cfg.d_vocab_out, None)
            value = part.set_index("prompt")["value"][i]
            assert value == pytest.approx(float(expected.detach()), rel=1e-3, abs=1e-4)


def swapped_pairs() -> PromptPairs:
    """Answers that are few enough for a model of eleven; the order in which they are named turns round."""
    clean, corrupt, answers = [], [], []
    for i in range(6):
        right, wrong = 1 + i % 3, 5 + i % 4
        names = (right, wrong) if i % 2 else (wrong, right)
        clean.append([20 + i, *[15] * (i % 2), *names, 9])
        corrupt.append([20 + i, *[15] * (i % 2), *names[::-1], 9])
        answers.append((right, wrong))
    # Named in the same order as the right answers change places: the class of both prompts is the same.
    corrupt = [[*row[:-3], row[-2], row[-3], 10] for row in corrupt]
    roles = [{"name": len(row) - 3} for row in clean]
    return PromptPairs.from_tokens(clean, corrupt, answers=answers, roles=roles)


@pytest.mark.parametrize("add", ["onward", "there", "all"])
def test_a_direction_is_added_from_its_position_on_there_or_everywhere(add: str) -> None:
    model, pairs = make("llama_gqa"), swapped_pairs()
    frame = steering.run(model, pairs, layers=[0], strengths=[1.0], pos="name", add=add, progress=False)
    vectors = by_hand(model, pairs, {"layer": 0, "pos": "name"})
    held = frame[(frame["vector"] == "difference") & (frame["prompts"] == "held out")].set_index("prompt")["value"]
    for i, n in enumerate(pairs.lengths.tolist()):
        at = int(pairs.role_positions("name")[i])
        on = {"onward": torch.arange(n) >= at, "there": torch.arange(n) == at, "all": torch.ones(n)}[add]

        def added(value: Tensor, hook: object, change: Tensor = on[:, None] * vectors[i]) -> Tensor:
            return value + change

        logits = model.run_with_hooks(pairs.corrupt[i : i + 1, :n], fwd_hooks=[("blocks.0.hook_resid_pre", added)])
        expected = METRICS["logit_diff"].fn(logits[:, -1], pairs.answers[i : i + 1], None)
        assert held[i] == pytest.approx(float(expected.detach()), rel=1e-3, abs=1e-4)


def test_random_vectors_have_the_length_of_the_differences() -> None:
    vectors = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    drawn = random_like(vectors, torch.Generator().manual_seed(0))
    assert drawn.flatten(1).norm(dim=1).tolist() == pytest.approx(vectors.flatten(1).norm(dim=1).tolist())
    assert not torch.allclose(drawn, vectors)
    again = random_like(vectors, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


def test_no_strength_changes_nothing_and_the_mean_is_paired_with_the_control() -> None:
    model, pairs = make("gpt2"), swapped_pairs()
    frame = steering.run(model, pairs, strengths=[0.0, 3.0], progress=False)
    nothing = frame[frame["strength"] == 0]
    assert nothing["value"].tolist() == pytest.approx(nothing["base_value"].tolist(), abs=1e-5)
    neutral = frame[frame["prompts"] == "neutral"]
    assert (neutral["metric"] == "kl").all() and (neutral["value"] >= -1e-6).all()
    assert neutral[neutral["strength"] == 3]["value"].min() > 0
    table = steering.summary(frame)
    row = table[(table["vector"] == "difference") & (table["prompts"] == "held out") & (table["strength"] == 3)].iloc[0]
    same = frame[(frame["layer"] == row["layer"]) & (frame["strength"] == 3) & (frame["prompts"] == "held out")]
    by_vector = same.pivot(index="prompt", columns="vector", values="effect")
    assert row["value"] == pytest.approx(by_vector["difference"].mean())
    assert row["control"] == pytest.approx(by_vector["random"].mean())
    assert row["value"] == table[(table["vector"] == "difference") & (table["prompts"] == "held out")]["value"].max()
    steering.plot(frame).canvas.draw()


def test_neutral_prompts_are_the_tasks_own_cut_off_or_yours(talker: Path) -> None:
    pairs = named_pairs(6)
    cut = neutral_prompts(make("gpt2"), pairs, None, 0)
    for i in range(6):
        n = int(cut.lengths[i])
        assert 2 <= n < int(pairs.lengths[i]) and cut.clean[i, :n].tolist() == pairs.clean[i, :n].tolist()
    model = interp.load(talker, device="cpu")
    texts = ["John gave", "the store", "Mary"]
    frame = steering.run(model, ioi(model, n=4), layers=[1], strengths=[2.0], neutral=texts, progress=False)
    assert sorted(frame[frame["prompts"] == "neutral"]["prompt"].unique()) == [0, 1, 2]


def test_pairs_of_one_class_are_left_out() -> None:
    model, pairs = make("gpt2"), named_pairs(6)  # every third pair changes its order
    labels = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 1), (1, 0)]
    frame = steering.run(model, pairs, layers=[0], strengths=[1.0], labels=labels, progress=False)
    assert sorted(frame[frame["prompts"] == "held out"]["prompt"].unique()) == [1, 2, 4, 5]


def test_many_strengths_are_drawn_from_dark_to_light() -> None:
    strengths = np.linspace(0.5, 5, 9)
    frame = steering.run(make("gpt2"), swapped_pairs(), strengths=strengths, progress=False)
    table = steering.summary(frame)
    held = table[(table["vector"] == "difference") & (table["prompts"] == "held out")]
    axes = steering.plot(frame).axes[0]
    light = []
    for strength in strengths:
        expected = held[held["strength"] == strength].sort_values("layer")["value"]
        (line,) = [line for line in axes.lines if np.array_equal(line.get_ydata(), expected)]
        light.append(np.dot(to_rgb(line.get_color()), (0.2126, 0.7152, 0.0722)))  # luminance, as ITU-R BT.709 weighs it
    assert np.all(np.diff(light) > 0.02)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"add": "then"}, UnknownName, "way to add"),
        ({"strengths": []}, ConfigError, "at least one strength"),
        ({"labels": [0, 1, 0, 1, 0, 1]}, PromptError, r"labels of both, \[6, 2\]"),
        ({"labels": [(0, 0), (1, 1)] * 3}, PromptError, "nothing pulls them apart"),
        ({"labels": [(0, 1), (1, 2)] * 3}, PromptError, "3 classes"),
        ({"site": "pattern"}, UnknownName, "axis of 'pattern'"),
        ({"layers": [7]}, UnknownName, "layer 7"),
    ],
)
def test_what_cannot_be_steered_is_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        steering.run(make("gpt2"), swapped_pairs(), progress=False, **options)


@pytest.mark.parametrize("n", [2, 5])
def test_the_sentences_of_a_report_are_those_of_its_numbers(talker: Path, n: int) -> None:
    model = interp.load(talker, device="cpu")
    frame, section, findings = report(model, ioi(model, n=n), {}, progress=False)
    table = steering.summary(frame)
    best = table.iloc[0]
    assert f"effect {best['value']:+.2f}" in findings[0] and f"at layer {best['layer']}" in findings[0]
    beyond = best["p_adjusted"] < 0.05 and best["value"] > best["control"]
    assert ("not beyond them for sure" in findings[0]) != beyond
    assert "as it is:" in section.preformatted and section.figures


def test_one_pair_is_refused_with_what_is_needed() -> None:
    with pytest.raises(PromptError, match="at least 2 pairs"):
        steering.run(make("gpt2"), swapped_pairs()[:1], progress=False)


def test_the_command_takes_strengths_and_a_place(talker: Path) -> None:
    words = [
        "--model",
        str(talker),
        "--n",
        "4",
        "--strengths",
        "0.5,2",
        "--pos",
        "S2",
        "--add",
        "there",
        "--quiet",
        "--csv",
    ]
    done = CliRunner().invoke(steering.main, words)
    assert done.exit_code == 0, done.output
    assert {line.split(",")[1] for line in done.stdout.splitlines()[1:]} == {"0.5", "2.0"}
    wrong = CliRunner().invoke(steering.main, ["--strengths", "much"])
    assert wrong.exit_code == 2 and "not a list of finite numbers" in wrong.stderr
