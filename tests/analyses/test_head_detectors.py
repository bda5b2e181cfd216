"""The study of kinds of heads: its table, its agreement and what it says, on every kind of model."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from makers import KINDS, SUMS, make
from scipy.stats import spearmanr
from shown import ok

import interp
from analyses import head_detectors
from analyses.sections import head_detectors as told
from interp.errors import InterpError, PromptError, UnknownName
from interp.heads import from_patterns as head_patterns
from interp.heads.detectors import DETECTORS
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs

COLUMNS = ["detector", "source", "layer", "head", "prompt", "metric", "value", "control", "effect"]
LINKED = ["previous_token", "duplicate_token", "induction"]


def repeating(n: int = 3) -> PromptPairs:
    clean = [[4, 7, 8, 7, 8, 3, 9], [5, 6, 2, 6, 1], [3]][:n]
    return PromptPairs.from_tokens(clean, answers=[(0, 1)] * n)


@pytest.fixture(scope="module")
def toy() -> pd.DataFrame:
    return head_detectors.run(interp.load("toy", device="cpu"), n=6, bos=0)


def test_the_toy_model_has_its_previous_token_head_and_induction_heads(toy: pd.DataFrame) -> None:
    table = head_detectors.summary(toy)
    assert list(toy.columns) == COLUMNS and set(toy["detector"]) == set(DETECTORS) - {"successor"}
    first = table.drop_duplicates(["detector", "source"]).set_index(["detector", "source"]).sort_index()
    for source in ("patterns", "weights"):
        assert first.loc[("previous_token", source), "layer"] == 0
        assert first.loc[("induction", source), "layer"] == first.loc[("copying", source), "layer"] == 1
    best = first.loc[("induction", "patterns")]
    assert best["value"] > 0.9 > 0.1 > best["control"] and best["p_adjusted"] < 1e-4
    text = " ".join(told.sentences(head_detectors.summary(toy)))
    assert re.search(r"token before, by their patterns, \w+ (L\d+H\d+)", text)[1] == "L0H0"


def test_effects_are_values_less_controls_and_means_are_tested_against_none(toy: pd.DataFrame) -> None:
    assert toy["effect"].tolist() == pytest.approx((toy["value"] - toy["control"]).tolist())
    table = head_detectors.summary(toy)
    row = table[(table["detector"] == "duplicate_token") & (table["source"] == "patterns")].iloc[0]
    own = toy.merge(row.to_frame().T[["detector", "source", "layer", "head"]])
    assert row["effect"] == pytest.approx(own["effect"].mean()) and row["control"] == pytest.approx(
        own["control"].mean()
    )
    assert row["n"] == 6 and row["ci_low"] <= row["value"] <= row["ci_high"]


def test_agreement_is_the_rank_correlation_over_heads(toy: pd.DataFrame) -> None:
    table = head_detectors.agreement(toy, top=4).set_index("detector")
    means = toy.groupby(["detector", "source", "layer", "head"])["effect"].mean()
    for kind in table.index:
        expected = spearmanr(means[kind]["patterns"], means[kind]["weights"])
        assert table.loc[kind, "spearman"] == pytest.approx(expected.statistic)
        assert table.loc[kind, "p"] == pytest.approx(expected.pvalue) and table.loc[kind, "n"] == 8
        assert table.loc[kind, "ci_low"] <= table.loc[kind, "spearman"] <= table.loc[kind, "ci_high"]
    assert table.loc["induction", "shared"] == 4 and table.loc["induction", "by_chance"] == pytest.approx(2)
    same = toy[toy["source"] == "patterns"]
    copied = pd.concat([same, same.assign(source="weights")])
    assert head_detectors.agreement(copied)["spearman"].tolist() == pytest.approx([1] * 4)
    turned = pd.concat([same, same.assign(source="weights", effect=-same["effect"])])
    again = head_detectors.agreement(turned)
    assert again["spearman"].tolist() == pytest.approx([-1] * 4)
    assert "induction -1.00" in " ".join(told.in_short(head_detectors.summary(turned), again))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_gives_a_table_a_figure_and_a_section(kind: str) -> None:
    model, pairs = make(kind), repeating()
    frame, section, findings = told.report(model, pairs, {}, progress=False)
    text = " ".join(section.text)
    had = set(zip(frame["detector"], frame["source"], strict=True))
    assert {(name, "task") for name in LINKED} | {("induction", "patterns")} <= had
    assert len(frame) == len(frame.drop_duplicates(["detector", "source", "layer", "head", "prompt"]))
    assert (("copying", "weights") in had) == (kind in SUMS and kind != "attn_only")
    assert (("previous_token", "weights") in had) == (kind in SUMS and kind != "no_positions")
    assert "no tokenizer" in text and (("no positions" in text) == (kind == "no_positions"))
    assert frame["value"].abs().max() <= 1 + 1e-6 and findings and all(line.endswith(".") for line in findings)
    task = frame[(frame["source"] == "task") & (frame["detector"] == "duplicate_token")]
    assert task.groupby("prompt")["value"].apply(lambda values: values.isna().all()).tolist() == [False, False, True]
    for item in section.figures:
        item.figure.canvas.draw()


def test_one_sequence_and_one_layer_are_told_without_tests() -> None:
    model = make("gpt2", n_layers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = head_detectors.run(model, repeating(1), n=1)
        table, agreed = head_detectors.summary(frame), head_detectors.agreement(frame)
    assert table["p"].isna().all() and table["ci_low"].isna().all()
    text = " ".join(told.sentences(table))
    assert "corrected p" not in text and "L0H" in text
    induction = agreed[(agreed["detector"] == "induction") & (agreed["sources"] == "patterns and weights")]
    assert induction["spearman"].isna().all()  # weights give no head of the only layer anything
    head_detectors.plot(frame).canvas.draw()


def test_seeds_repeat_and_leave_the_global_generator_alone() -> None:
    model = make("llama_gqa")
    state = torch.get_rng_state()
    first, again, other = (head_detectors.run(model, n=3, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not np.allclose(first["value"], other["value"])
    assert torch.equal(state, torch.get_rng_state())
    assert len(first[(first["detector"] == "induction") & (first["source"] == "patterns")]) == 3 * 2 * 4


def test_random_tokens_are_different_plain_and_behind_what_the_tokenizer_adds(talker: Path) -> None:
    model = interp.load(talker, device="cpu")
    assert isinstance(model, GPT) and model.tokenizer is not None
    material = head_patterns.random_sequences(model, 3, length=8)
    special = set(model.tokenizer.backend.get_added_tokens_decoder())
    for repeated, fresh in zip(material.repeated.tolist(), material.fresh.tolist(), strict=True):
        assert repeated[-16:-8] == repeated[-8:] == fresh[-16:-8]
        assert len(set(fresh[-16:])) == 16 and not special & set(fresh[-16:])
    material = head_patterns.random_sequences(make("gpt2"), 2, length=4, bos=28)
    assert material.start == 1 and material.repeated[:, 0].tolist() == [28, 28]
    assert not bool((material.fresh[:, 1:] == 28).any())


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"detectors": ["inductoin"]}, UnknownName, "did you mean 'induction'"),
        ({"sources": ["weight"]}, UnknownName, "did you mean 'weights'"),
        ({"detectors": ["successor"]}, InterpError, "no tokenizer"),
        ({"sources": ["task"]}, InterpError, "nothing to measure: source 'task' needs prompts"),
        ({"length": 40}, PromptError, "length=40"),
        ({"bos": 77}, PromptError, "bos=77 is not a token id"),
        ({"n": 0}, PromptError, "n must be at least 1, not 0"),
    ],
)
def test_what_the_study_cannot_do_is_refused(options: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        head_detectors.run(make("gpt2"), **options)  # type: ignore[arg-type]


def test_asking_for_what_weights_cannot_tell_is_refused_and_leaving_it_open_is_not() -> None:
    model = make("no_positions")
    with pytest.raises(InterpError, match="previous_token heads cannot be judged from weights: this model has no pos"):
        head_detectors.run(model, detectors=["previous_token"], sources=["weights"])
    assert set(head_detectors.run(model, n=2, detectors=["previous_token"])["source"]) == {"patterns"}


@pytest.mark.slow
def test_smollm_has_induction_heads_that_weights_alone_find() -> None:
    model = interp.load("smollm2-135m", device="cpu")
    frame = head_detectors.run(model, n=4, detectors=["previous_token", "induction", "successor"])
    means = frame.groupby(["detector", "source", "layer", "head"])["effect"].mean()
    seen, told = (means["induction"][source].nlargest(5).index for source in ("patterns", "weights"))
    assert means["induction"]["patterns"].max() > 0.7 and len(set(seen) & set(told)) >= 3
    agreed = head_detectors.agreement(frame).set_index("detector")
    assert agreed.loc["induction", "ci_low"] > 0.2 and agreed.loc["previous_token", "ci_low"] > 0.2
    assert frame[(frame["detector"] == "successor") & (frame["source"] == "weights")]["prompt"].nunique() == 6


def test_heads_of_mamba_2_are_judged_by_their_hidden_attention() -> None:
    model, pairs = make("mamba2"), repeating()
    frame = head_detectors.run(model, pairs, n=2, length=5, progress=False)
    assert list(frame.columns) == [name.replace("head", "ssm_head") if name == "head" else name for name in COLUMNS]
    assert set(frame["detector"]) == set(LINKED) and set(frame["source"]) == {"patterns", "task"}
    tokens = head_patterns.random_sequences(model, 2, length=5).repeated
    _, cache = model.run_with_cache(tokens)
    pattern = cache["pattern", 1].detach() - torch.diag_embed(model.block(1).mixer.D.detach()[:, None].expand(-1, 10))
    size = pattern.abs() / pattern.abs().sum(-1, keepdim=True)  # [batch, ssm_head, query, key]
    before = size[0, 4].diagonal(-1)[1:].mean()  # the first position is no key
    row = frame.query("detector == 'previous_token' and source == 'patterns' and layer == 1 and ssm_head == 4")
    assert row["value"].iloc[0] == pytest.approx(float(before), rel=1e-4)
    head_detectors.plot(frame).canvas.draw()
    _, section, findings = told.report(model, pairs, {}, progress=False)
    assert "hidden attention" in section.text[-1] and any("S" in text for text in section.text) and findings
    with pytest.raises(InterpError, match="copying heads cannot be judged from patterns"):
        head_detectors.run(model, detectors=["copying"], sources=["patterns"], n=2, length=5, progress=False)


@pytest.mark.parametrize("kind", ["hybrid", "one_part_a_layer"])
def test_of_a_hybrid_the_layers_of_attention_are_judged(kind: str) -> None:
    model, pairs = make(kind), repeating()
    frame = head_detectors.run(model, pairs, n=2, length=5, progress=False)
    there = {layer for layer in range(model.cfg.n_layers) if model.cfg.mixer(layer) == "attn"}
    assert set(frame["layer"]) == there and set(frame["head"]) == set(range(4))
    assert set(frame["source"]) == {"patterns", "task"}
    _, section, _ = told.report(model, pairs, {}, progress=False)
    assert any("has no attention heads" in text for text in section.text)


def test_a_model_of_channels_alone_says_what_applies() -> None:
    with pytest.raises(InterpError, match="only the channels of Mamba-1 layers; use attention-patterns"):
        head_detectors.run(make("mamba"), repeating(), progress=False)


def test_ablating_a_head_gives_the_loss_of_a_plain_forward_without_it() -> None:
    model = interp.load("toy", device="cpu")
    sequences = head_patterns.random_sequences(model, 4, bos=0)
    frame = head_detectors.repetition(model, n=4, bos=0, progress=False)
    tokens, start = sequences.repeated, sequences.start + sequences.length

    def loss(logits: torch.Tensor, of: torch.Tensor) -> list[float]:
        probs = logits.detach().double().softmax(-1)
        own = [
            [float(-probs[row, at - 1, of[row, at]].log()) for at in range(start + 1, of.shape[1])] for row in range(4)
        ]
        return [float(np.mean(each)) for each in own]

    for layer, head in ((0, 0), (1, 2)):

        def without(z: torch.Tensor, hook: object, head: int = head) -> torch.Tensor:
            mean = z[:, :, head].mean(0, keepdim=True).expand_as(z[:, :, head])
            return torch.cat([z[:, :, :head], mean[:, :, None], z[:, :, head + 1 :]], dim=2)

        cut = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", without)])
        own = frame[(frame["layer"] == layer) & (frame["head"] == head)].sort_values("prompt")
        assert own["value"].tolist() == pytest.approx(loss(cut, tokens), rel=1e-4, abs=1e-5)
        assert own["base_value"].tolist() == pytest.approx(loss(model(tokens), tokens), rel=1e-4, abs=1e-5)
        assert own["control"].tolist() == pytest.approx(loss(model(sequences.fresh), sequences.fresh), rel=1e-4)
    assert frame["effect"].tolist() == pytest.approx((frame["value"] - frame["base_value"]).tolist())
    table = head_detectors.repetition_summary(frame)
    assert (table["layer"][0], table["head"][0]) == (0, 0)  # without the look to the token before, nothing is repeated
    assert table["value"][0] > 5 > table["whole"][0] and table["p_adjusted"][0] < 0.01
    assert table["loss"].tolist() == pytest.approx((table["value"] + table["whole"]).tolist())


def test_a_model_that_repeats_without_a_stripe_is_told(toy: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    model = interp.load("toy", device="cpu")
    assert [("repeats random tokens" in told, "no head" in told) for told in head_detectors.says(model, toy)] == [
        (True, False)
    ]
    plain = toy.assign(effect=0.0)
    (says,) = head_detectors.says(model, plain)
    assert "Yet no head has the stripe of induction" in says and "--repetition" in says
    assert not list(head_detectors.says(make("gpt2"), toy))  # it does not repeat
    assert not list(head_detectors.says(make("bidirectional"), toy))  # no next token
    _, section, _ = told.report(model, repeating(), {}, progress=False)
    text = " ".join(section.text)
    assert "repeats random tokens" in text and re.search(r"raise this loss most do so by [\d.]+ without L0H0", text)
    assert any("without each head" in caption for caption, _ in section.appended_tables)


@pytest.mark.parametrize("kind", ["hybrid", "mamba2", "neox"])
def test_every_kind_of_head_can_be_ablated_in_a_repetition(kind: str) -> None:
    model = make(kind)
    frame = head_detectors.repetition(model, n=2, progress=False)
    axis, layers = head_patterns.heads_of(model)
    assert axis in frame and set(frame["layer"]) == set(layers) and frame["value"].notna().all()
    assert len(head_detectors.repetition_summary(frame)) == len(frame) / 2


def test_the_command_shows_the_heads_of_a_repetition() -> None:
    shown = ok("run", "head-detectors", "--model", "toy", "--repetition", "--n", 2, "--quiet").stdout.splitlines()
    assert shown[0].split()[:2] == ["layer", "head"] and shown[1].split()[:2] == ["0", "0"] and len(shown) == 9
