"""In-context copying: the task is what it says, a cut takes one term away, trained models lose the value with it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from analyses import copying
from interp.edits import Variant
from interp.errors import InterpError, PromptError, UnknownName
from interp.figures import Figure
from interp.ground_truth import copying_measures
from interp.ground_truth.copying_models import (
    KEYS,
    KINDS,
    PAIRS,
    QUERY,
    accuracy,
    config,
    copying_loss,
    draw,
    prompts,
    train,
)
from interp.models.gpt import GPT, Mamba
from interp.rounding import of_effect
from interp.sweeps.sweep import sweep

PAGE = Path(__file__).parents[2] / "docs" / "copying.md"


def untrained(kind: str) -> GPT:
    cfg = config(kind, seed=1)
    return (Mamba(cfg) if kind == "mamba" else GPT(cfg)).requires_grad_(False)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return copying.run({kind: untrained(kind) for kind in KINDS}, n=4, progress=False)


def test_sequences_say_every_pair_twice_and_no_key_or_value_in_two_pairs() -> None:
    tokens = draw(50, torch.Generator().manual_seed(0), n_pairs=4)
    assert tokens.shape == (50, 16)
    for row in tokens.view(50, 2, 4, 2).tolist():
        first, again = ({tuple(pair) for pair in half} for half in row)
        assert first == again and len({key for key, _ in first}) == len({value for _, value in first}) == 4
        assert all(key < KEYS <= value for key, value in first)
    assert any(row[0] != row[1] for row in tokens.view(50, 2, 4, 2).tolist())  # in another order


@pytest.mark.parametrize("slot", range(PAIRS))
def test_prompts_differ_in_the_value_that_is_asked_for(slot: int) -> None:
    pairs = prompts(20, seed=slot, slot=slot)
    at = 2 * slot + 1
    assert torch.equal((pairs.clean != pairs.corrupt).nonzero()[:, 1], torch.full((20,), at))
    assert torch.equal(pairs.clean[:, QUERY], pairs.clean[:, at - 1]) and pairs.clean.shape == (20, QUERY + 1)
    assert torch.equal(pairs.answers, torch.stack((pairs.clean[:, at], pairs.corrupt[:, at]), 1))
    assert not (pairs.clean == pairs.answers[:, 1:]).any()
    assert set(pairs.roles[0].items()) == {("key", at - 1), ("value", at), ("query", QUERY)}
    assert pairs.str_tokens[3][QUERY].islower() and pairs.str_tokens[3][at].isupper()


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_repeatable_and_lowers_the_loss(kind: str) -> None:
    tokens = draw(64, torch.Generator().manual_seed(5), n_pairs=2)
    first, again = (train(kind, seed=3, steps=12, least=0, progress=False) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    other = train(kind, seed=4, steps=1, least=0, progress=False)
    assert not torch.equal(first.W_E, other.W_E)
    cfg = config(kind, seed=3)
    untouched = (Mamba if kind == "mamba" else GPT)(cfg)
    assert copying_loss(first, tokens).item() < copying_loss(untouched, tokens).item()


def test_accuracy_counts_what_the_model_says_to_the_first_key_that_comes_again() -> None:
    model, tokens = untrained("attention"), draw(40, torch.Generator().manual_seed(2))
    said = model(tokens)[:, QUERY].argmax(-1)
    tokens[::2, QUERY + 1] = said[::2]
    assert accuracy(model, tokens) == pytest.approx(float((said == tokens[:, QUERY + 1]).float().mean()))
    assert accuracy(model, tokens) >= 0.5


def test_what_cannot_be_trained_or_asked_is_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'mamba'"):
        train("mambo")
    with pytest.raises(UnknownName, match="kind of model"):
        copying.run({"lstm": untrained("mamba")})
    with pytest.raises(InterpError, match=r"after 2 steps the attention model answers .*% of new sequences"):
        train("attention", steps=2, progress=False)
    with pytest.raises(InterpError, match="steps must be at least 1"):
        train("attention", steps=0)
    with pytest.raises(PromptError, match="slot must be the number of a pair, 0 to 5, not 6"):
        prompts(3, slot=6)
    with pytest.raises(PromptError, match="n must be at least 1"):
        prompts(0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_cut_takes_one_term_out_of_the_sum(kind: str, layer: int) -> None:
    model, pairs, key = untrained(kind), prompts(3, seed=7), 4
    mixed = "z" if kind == "attention" else "y"
    _, cache = model.run_with_cache(pairs.clean)
    pattern, before = cache["pattern", layer][:, :, QUERY, key], cache[mixed, layer]
    if kind == "attention":
        term = pattern[..., None] * cache["v", layer][:, key]  # [batch, head, d_head]
    else:
        term = pattern * cache["conv", layer][:, key]  # [batch, channel]
    wanted = before.clone()
    wanted[:, QUERY] -= term
    name = f"blocks.{layer}.{'attn' if kind == 'attention' else 'mixer'}.hook_{mixed}"
    logits = model.run_with_hooks(pairs.clean, fwd_hooks=[(name, lambda value, hook: wanted)])[:, -1]
    left = logits.gather(1, pairs.answers).diff()[:, 0].neg()
    assert term.abs().max() > 1e-6
    tried = copying_measures.entries(model, pairs, progress=False)
    found = tried[(tried["layer"] == layer) & (tried["key"] == key)]["value"]
    assert found.tolist() == pytest.approx(left.tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_head_or_channel_is_one_part_of_the_entry(kind: str) -> None:
    model, pairs = untrained(kind), prompts(2, seed=3)
    layer, unit = copying_measures.strongest_unit(model, pairs, (1, 3))
    axis, size = ("head", 1) if kind == "attention" else ("channel", 128)
    each = [
        sweep(model, pairs, [Variant([copying_measures.cut(1, 3, **{axis: at})])], base="clean", source="clean")
        for at in range(size)
    ]
    lowest = min(range(size), key=lambda at: each[at]["value"].mean())
    assert (layer, unit) == (1, lowest)


def test_controls_cut_what_they_say() -> None:
    model, pairs = untrained("mamba"), prompts(3, seed=11)
    tried = copying_measures.entries(model, pairs, progress=False).set_index(["layer", "key"])["value"]
    order = [(1, 5), (0, 3), (1, 3), (0, 7)]
    left = copying_measures.cuts(model, pairs, order, 1, progress=False).query("metric == 'logit_diff'")

    def of(condition: str, count: int) -> list[float]:
        return left[(left["condition"] == condition) & (left["count"] == count)]["value"].tolist()

    assert of(copying_measures.STRONGEST, 1) == pytest.approx(tried[1, 5].tolist(), abs=1e-5)
    assert of(copying_measures.OTHER_LAYER, 1) == pytest.approx(tried[0, 5].tolist(), abs=1e-5)
    for prompt, value in enumerate(
        of(copying_measures.RANDOM, 1)
    ):  # some entry of the same layer that is not in the order
        others = [tried[1, key].tolist()[prompt] for key in range(QUERY) if key not in (3, 5)]
        assert min(abs(value - other) for other in others) < 1e-5
    both = sweep(
        model, pairs, [Variant([copying_measures.cut(0, 3), copying_measures.cut(1, 3)])], base="clean", source="clean"
    )
    assert of(copying_measures.OWN, 2) == pytest.approx(both["value"].tolist(), abs=1e-5)
    assert of(copying_measures.STRONGEST, 0) == left[left["count"] == 0]["base_value"].tolist()


def test_a_run_has_every_measure_of_both_models(frame: pd.DataFrame) -> None:
    assert set(frame["model"]) == set(KINDS)
    for kind, part in frame.groupby("model"):
        count = part.groupby("measure").size()
        assert count["patching"] == 3 * 2 * (QUERY + 1) * 4 and count["looking"] == count["entry"] == 2 * 13 * 4
        assert count["found"] == (copying_measures.MOST + 1) * 4
        looks = part[part["measure"] == "looking"].groupby(["layer", "prompt"])["value"].sum()
        assert looks.tolist() == pytest.approx([1.0] * 8, abs=1e-5)
        patched = part[(part["measure"] == "patching") & (part["site"] == "resid_pre") & (part["layer"] == 0)]
        there = patched[patched["pos"] == 3]  # where the two prompts differ: the other run's input is the other run
        assert there["effect"].notna().any() and not ((there["effect"] - 1).abs() > of_effect(there)).any()
        assert patched[patched["pos"] != 3]["effect"].abs().max() == 0
        cut = part[part["measure"] == "cut"]
        assert set(cut["condition"]) >= {copying_measures.STRONGEST, copying_measures.RANDOM, copying_measures.OWN}
        assert (copying_measures.HEAD in set(cut["condition"])) == (kind == "attention")
        assert set(cut["metric"]) == {"accuracy", "logit_diff"} and cut["value"].notna().all()


def test_entries_are_ranked_by_what_is_left(frame: pd.DataFrame) -> None:
    tried = frame[(frame["measure"] == "entry") & (frame["model"] == "mamba")]
    order = copying_measures.ranked(tried)
    means = tried.groupby(["layer", "key"])["value"].mean()
    assert sorted(order) == [(layer, key) for layer in range(2) for key in range(QUERY)]  # the query itself is not cut
    assert [means[at] for at in order] == sorted(means[at] for at in order)


def test_as_many_are_needed_as_leave_a_guess() -> None:
    def found(*right: float) -> pd.DataFrame:
        rows = [(count, at, float(at < 20 * one)) for count, one in enumerate(right) for at in range(20)]
        return pd.DataFrame(rows, columns=["count", "prompt", "value"])

    assert copying_measures.needed(found(1.0, 0.6, 0.2, 0.0)) == 2  # 4 of 20 may be guessed, 12 may not
    assert copying_measures.needed(found(0.1, 0.1, 0.1)) == 1
    assert copying_measures.needed(found(1.0, 0.9, 0.8)) == copying_measures.MOST
    assert copying_measures.needed(found(1.0, 1.0, 0.0)[::20]) == 2  # one prompt


def test_figures_and_sentences_come_from_any_models(frame: pd.DataFrame) -> None:
    assert all(isinstance(draw_figure(frame), Figure) for draw_figure in copying.PLOTS.values())
    said = copying.findings(frame)
    assert sum(sentence.startswith("mamba:") for sentence in said) == 5 == len(said) / 2
    assert "nan" not in " ".join(said)
    alone = copying.findings(copying.run({"mamba": untrained("mamba")}, n=1, progress=False))
    assert "nan" not in " ".join(alone)


def test_the_command_refuses_before_it_trains_and_says_what_was_not_reached(tmp_path: Path) -> None:
    refused = CliRunner().invoke(copying.main, ["--slot", "9", "--quiet"])
    assert refused.exit_code == 2 and "slot must be the number of a pair" in refused.output
    stopped = CliRunner().invoke(copying.main, ["--steps", "1", "--quiet", "--out", str(tmp_path)])
    assert stopped.exit_code == 2 and "after 1 steps the attention model" in stopped.output


def test_the_page_is_its_template_with_numbers() -> None:
    blocks = re.compile(r"```python\n.*?```", re.DOTALL)
    template = (PAGE.parent / "copying" / "page.md.jinja").read_text(encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    assert blocks.findall(page) == blocks.findall(template) and "{{" not in page and "nan%" not in page


@pytest.mark.slow
def test_trained_models_lose_the_value_with_few_entries_and_keep_it_without_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {kind: train(kind, seed=0, progress=False) for kind in KINDS}
    monkeypatch.setattr(copying, "train", lambda kind, **options: models[kind])
    done = CliRunner().invoke(copying.main, ["--n", "48", "--quiet", "--json", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    whole = {name: "Int64" for name in ("layer", "pos", "key", "count")}
    frame = pd.read_csv(tmp_path / "copying_cuts.csv").astype(whole)
    assert json.loads((tmp_path / "copying.manifest.json").read_text())["findings"] == copying.findings(frame)
    assert len(list(tmp_path.glob("*.png"))) == len(copying.PLOTS)
    right = copying.summary(frame).query("metric == 'accuracy'").set_index(["model", "condition", "count"])["value"]
    for kind in KINDS:
        part = frame[frame["model"] == kind]
        count = copying_measures.needed(part[part["measure"] == "found"])
        assert right[kind, "strongest", 0] > 0.95
        assert right[kind, "strongest", count] < 0.3
        assert right[kind, "random", count] > 0.9
    heads = (
        copying.summary(frame).query("model == 'attention' and metric == 'accuracy'").set_index("condition")["value"]
    )
    assert heads["the head"] < 0.3 and heads["the head elsewhere"] > 0.95
    patched = frame[frame["measure"] == "patching"].groupby(["model", "site", "layer", "pos"])["effect"].mean()
    assert patched["attention", "v", 1, 3] > 0.8 and abs(patched["attention", "k", 1, 3]) < 0.1
    states = [patched["mamba", "state", layer] for layer in range(2)]
    assert max(float(state[3]) for state in states) < 0.3  # not where the value stands, but behind it
    assert sum(float(state[QUERY]) for state in states) > 0.5


def test_a_frame_from_a_file_gives_the_same_tables_figures_and_sentences(frame: pd.DataFrame) -> None:
    back = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    pd.testing.assert_frame_equal(copying.summary(back), copying.summary(frame), check_dtype=False)
    assert copying.findings(back) == copying.findings(frame)
    for plot in copying.PLOTS.values():
        drawn = [io.BytesIO(), io.BytesIO()]
        for one, file in zip((frame, back), drawn, strict=True):
            plot(one).savefig(file, format="png", dpi=50)
        assert drawn[0].getvalue() == drawn[1].getvalue(), plot.__name__
