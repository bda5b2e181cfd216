"""The study of patchscopes against full forwards of the target prompt with a hook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from makers import make, pairs_of
from torch import Tensor

import interp
from analyses import patchscope
from analyses.sections.patchscope import report
from interp.directions.steering import states
from interp.errors import PromptError, UnknownName
from interp.lenses.target_prompts import Target, said, target_prompt
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.tasks import ioi

TARGET = [3, 3, 8, 8, 12, 5, 6]


def naive(model: GPT, state: Tensor, layer: int, tokens: list[int], at: int) -> Tensor:
    """Log-probabilities behind the target prompt with a state in it."""

    def put(value: Tensor, hook: object) -> Tensor:
        new = value.clone()
        new[:, at] = state
        return new

    with torch.no_grad():
        logits = model.run_with_hooks(torch.tensor([tokens]), fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", put)])
    return logits[0, -1].log_softmax(-1)


@pytest.mark.parametrize("side", ["clean", "corrupt"])
@pytest.mark.parametrize("target_layer", [None, 0])
def test_a_state_is_read_as_by_a_full_forward_of_the_target(model: GPT, side: str, target_layer: int | None) -> None:
    pairs = pairs_of()
    frame = patchscope.run(
        model, pairs, side=side, target=TARGET, at=4, target_layer=target_layer, progress=False
    )  # [layer 2] x [role 2] x [prompt 3]
    says_tokens = model.cfg.d_vocab_out == model.cfg.d_vocab
    assert set(frame["reading"].dropna()) == ({"token", "answer"} if says_tokens else {"answer"})
    _, cache = model.run_with_cache(getattr(pairs, side), attention_mask=pairs.mask)
    for row in frame.itertuples():
        at = int(pairs.role_positions(row.role)[row.prompt])
        into = row.layer if target_layer is None else target_layer
        assert row.target_layer == into
        state = cache["resid_pre", row.layer][row.prompt, at]
        log_prob = naive(model, state, into, TARGET, 4)
        if row.metric == "top_prob":
            assert row.value == pytest.approx(float(log_prob.max().exp()), rel=1e-3)
            assert row.top_token == str(int(log_prob.argmax()))
            continue
        token = int(getattr(pairs, side)[row.prompt, at])
        wanted = token if row.reading == "token" else int(pairs.answers[row.prompt, int(side == "corrupt")])
        assert row.value == pytest.approx(float(log_prob[wanted].exp()), rel=1e-3, abs=1e-6)
        with torch.no_grad():
            lens = model.unembed(model.ln_final(state)).softmax(-1)
            plain = model(torch.tensor([TARGET]))[0, -1].softmax(-1)
        assert row.control == pytest.approx(float(lens[wanted]), rel=1e-3, abs=1e-6)
        assert row.effect == pytest.approx(row.value - float(plain[wanted]), rel=1e-3, abs=1e-5)


def test_a_prompts_own_state_put_back_changes_nothing() -> None:
    model = make("llama_gqa")
    pairs = PromptPairs.from_tokens([TARGET], answers=[(1, 2)])
    frame = patchscope.run(model, pairs, by="pos", target=TARGET, at=4, progress=False)
    own = frame[(frame["pos"] == 4) & (frame["reading"] == "answer")]
    assert own["effect"].abs().max() < 1e-6
    others = frame[(frame["pos"] != 4) & (frame["reading"] == "answer") & (frame["layer"] == 1)]
    assert others["effect"].abs().min() > 1e-6


def test_what_is_said_is_what_a_naive_loop_says() -> None:
    model, pairs = make("llama_gqa"), pairs_of()
    layers = [0, 1, 1]
    state = torch.stack([states(model, pairs, "resid_pre", [{"layer": layer}])[0, i] for i, layer in enumerate(layers)])
    found = said(model, state, Target(tuple(TARGET), 4), layers, max_new_tokens=5)
    for i, layer in enumerate(layers):
        tokens = list(TARGET)
        for _ in range(5):
            tokens.append(int(naive(model, state[i], layer, tokens, 4).argmax()))
        assert found[i].tolist() == tokens[len(TARGET) :]
    one = said(model, state[:1], Target((7,), 0), [0], max_new_tokens=3)
    tokens = [7]
    for _ in range(3):
        tokens.append(int(naive(model, state[0], 0, tokens, 0).argmax()))
    assert one[0].tolist() == tokens[1:]


def test_targets_are_names_texts_or_ids(talker: Path) -> None:
    model, pairs = interp.load(talker, device="cpu"), pairs_of()
    ids = target_prompt(model, pairs, [4, 5, 6])
    assert ids == Target((4, 5, 6), 2) and target_prompt(model, pairs, [4, 5, 6], 1).at == 1
    text = target_prompt(model, pairs, "John gave Mary", at=1)
    assert model.to_string(list(text.tokens)) == "John gave Mary" and text.at == 1
    made = target_prompt(make("gpt2"), pairs)
    some = list(dict.fromkeys(pairs.clean[pairs.mask].tolist()))
    assert made.tokens == tuple([some[0]] * 2 + [some[1]] * 2 + [some[2]] * 2 + some[:1]) and made.at == 6


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"target": "what is it"}, PromptError, "no tokenizer: give token ids"),
        ({"target": [1, 2, 3], "at": 3}, PromptError, "outside the target prompt, which has 3 tokens"),
        ({"target": []}, PromptError, "outside the target prompt, which has 0 tokens"),
        ({"read": "meaning"}, UnknownName, "no reading matches 'meaning'"),
        ({"layers": [4]}, UnknownName, "layer 4"),
        ({"layers": []}, UnknownName, r"layer must be .*, not \[\]"),
        ({"target_layer": 2}, UnknownName, "layer 2"),
        ({"by": "pos"}, PromptError, "prompts of one length"),
        ({"side": "both"}, UnknownName, "no side matches 'both'"),
    ],
)
def test_what_cannot_be_read_is_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        patchscope.run(make("gpt2"), pairs_of(), progress=False, **options)


def test_a_model_whose_answers_are_no_tokens_cannot_say_a_token() -> None:
    with pytest.raises(PromptError, match="29 tokens and 11 answers"):
        patchscope.run(make("attn_only"), pairs_of(), read="token", progress=False)


@pytest.mark.parametrize("by", ["role", "pos", None])
def test_tables_and_figures_hold_every_cell(by: str | None) -> None:
    model, pairs = make("gpt2"), pairs_of(5, 5)
    frame = patchscope.run(model, pairs, by=by, progress=False)
    cells = 2 * {"role": 3, "pos": 5, None: 1}[by]
    assert len(frame) == cells * 2 * 3
    table = patchscope.summary(frame)
    assert len(table) == cells * 2 and table["n"].eq(2).all()
    patchscope.plot(frame).canvas.draw()
    patchscope.plot_table(frame).canvas.draw()
    without = patchscope.run(model, pairs, by=by, top=False, progress=False)
    assert not without["metric"].eq("top_prob").any()


@pytest.mark.parametrize("n", [1, 3])
def test_the_sentences_of_a_report_are_those_of_its_numbers(talker: Path, n: int) -> None:
    model = interp.load(talker, device="cpu")
    frame, section, findings = report(model, ioi(model, n=n), {}, progress=False)
    for target, reading, finding in (("token", "token", findings[0]), ("next", "answer", findings[1])):
        part = frame[(frame["target"] == target) & (frame["reading"] == reading) & frame["pos"].isna()]
        mean = part.groupby("layer")["value"].mean()
        assert f"when the state is that of layer {mean.idxmax()}: {mean.max():.2f}" in finding
    assert len(section.figures) == 1 and len(section.appended_figures) == 2 and len(section.tables[0][1]) == 2


def test_the_command_reads_a_prompt(talker: Path) -> None:
    done = CliRunner().invoke(patchscope.main, ["--model", str(talker), "--n", "2", "--by", "layer", "--quiet"])
    assert done.exit_code == 0, done.output
    assert "reading" in done.stdout and "p_adjusted" in done.stdout
