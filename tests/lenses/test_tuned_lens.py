"""The tuned lens against closed forms, autograd, its own identities and runs that were killed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from makers import KINDS, make, pairs_of
from torch import Tensor

import interp
from analyses import logit_lens, tuned_lens
from analyses.sections.tuned_lens import report
from interp.errors import InterpError, OutputError, ParityError, PromptError, UnknownName, WeightsError
from interp.lenses import read as lenses
from interp.lenses import training as lens_training
from interp.lenses import training_text as texts
from interp.lenses.training import train
from interp.lenses.tuned_lens import CONFIG_FILE, WEIGHTS_FILE, TunedLens
from interp.models.gpt import GPT


def text_of(model: GPT, n: int = 40, length: int = 12) -> texts.Texts:
    generator = torch.Generator().manual_seed(2)
    return texts.Texts(torch.randint(model.cfg.d_vocab, (n, length), generator=generator), "random")


def streams(model: GPT, tokens: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """The input of a layer and the last layer's output behind the first position [place, d_model]."""
    _, cache = model.run_with_cache(tokens)
    pair = cache["resid_pre", layer], cache["resid_post", model.cfg.n_layers - 1]
    return pair[0][:, 1:].flatten(0, 1), pair[1][:, 1:].flatten(0, 1)


def training_part(given: texts.Texts, holdout: int, seed: int = 0) -> Tensor:
    order = torch.randperm(len(given), generator=torch.Generator().manual_seed(seed))
    return given.tokens[order[holdout:]]


def test_the_identity_is_the_logit_lens(model: GPT) -> None:
    pairs = pairs_of()
    frame = tuned_lens.run(model, pairs, lens=TunedLens.identity(model))
    parts = [frame[frame["lens"] == which].drop(columns="lens").reset_index(drop=True) for which in ("tuned", "logit")]
    assert parts[0]["top_token"].tolist() == parts[1]["top_token"].tolist()
    assert parts[0]["value"].tolist() == pytest.approx(parts[1]["value"].tolist(), rel=1e-4, abs=1e-5, nan_ok=True)
    alone = logit_lens.run(model, pairs)
    alone = alone[~alone["site"].str.endswith("resid_mid")].reset_index(drop=True)
    assert parts[1].equals(alone)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_row_is_the_models_output_and_training_brings_every_layer_nearer(kind: str) -> None:
    model = make(kind)
    lens = train(model, text_of(model), steps=3, batch=16, lr=0.002, progress=False)
    frame = tuned_lens.run(model, pairs_of(), lens=lens)
    assert set(frame["lens"]) == {"tuned", "logit"} and lenses.gap(frame) < 1e-5
    means = lens.held_out.groupby(["layer", "lens"])["value"].mean().unstack()
    assert (means["tuned"] < means["logit"]).all() and len(means) == 2
    assert len(lens.held_out) == 2 * 2 * 16


def test_the_start_is_ridge_regression_in_closed_form() -> None:
    model, given = make("llama_gqa"), text_of(make("llama_gqa"))
    lens = train(model, given, steps=0, holdout=10, progress=False)
    for layer in (0, 1):
        x, y = (part.double() for part in streams(model, training_part(given, 10), layer))
        centred = x - x.mean(0)
        penalty = centred.square().mean() * 16 / len(x)
        # The penalty as rows of data: least squares of [x; sqrt(n penalty) 1] onto [y; 0].
        rows = torch.cat([centred, (len(x) * penalty).sqrt() * torch.eye(16, dtype=torch.float64)])
        goal = torch.cat([y - y.mean(0), torch.zeros(16, 16, dtype=torch.float64)])
        expected = torch.linalg.lstsq(rows, goal).solution
        assert torch.allclose(lens.A[layer].double(), expected, atol=1e-5)
        assert torch.allclose(lens(x.float(), layer).double(), centred @ expected + y.mean(0), atol=1e-4)


def test_a_step_is_adam_on_the_divergence_of_the_drawn_positions() -> None:
    model, given = make("gpt2"), text_of(make("gpt2"), n=6)
    start, stepped = (train(model, given, steps=n, batch=99, holdout=1, lr=0.01, progress=False) for n in (0, 1))
    tokens = training_part(given, 1)  # 99 positions are more than there are: all of them count
    for layer in (0, 1):
        x, y = streams(model, tokens, layer)
        A, b = (value[layer].clone().requires_grad_() for value in (start.A, start.b))
        output = model.unembed(model.ln_final(y)).log_softmax(-1)
        seen = model.unembed(model.ln_final(x @ A + b)).log_softmax(-1)
        (output.exp() * (output - seen)).sum(-1).mean().backward()
        size = y.square().mean().sqrt()
        moved = {"A": stepped.A[layer] - start.A[layer], "b": stepped.b[layer] - start.b[layer]}
        rates = {"A": 0.01 * size / x.square().mean().sqrt() / 4, "b": 0.01 * size}
        for name, value in (("A", A), ("b", b)):
            assert value.grad is not None
            sure = value.grad.abs() > 1e-5  # Adam's first step is the rate, against the gradient's sign
            expected = -rates[name] * value.grad.sign()
            assert torch.allclose(moved[name][sure], expected[sure], rtol=2e-3, atol=1e-7) and sure.float().mean() > 0.9


def test_a_lens_of_some_layers_reads_those(tmp_path: Path) -> None:
    model = make("neox")
    lens = train(model, text_of(model), layers=[1], steps=1, progress=False)
    frame = tuned_lens.run(model, pairs_of(), lens=lens, top=2)
    assert list(dict.fromkeys(zip(frame["layer"], frame["site"], strict=True))) == [(1, "resid_pre"), (1, "resid_post")]
    whole = train(model, text_of(model), steps=1, progress=False)
    assert torch.allclose(whole.A[1], lens.A[0], atol=1e-6)  # layers are trained by themselves
    with pytest.raises(UnknownName, match="no layer of this lens matches '0'; choose from '1'"):
        lens(torch.zeros(16), 0)


def test_a_saved_lens_is_the_same_and_refuses_another_model(tmp_path: Path) -> None:
    model = make("gpt2", model_name="first")
    lens = train(model, text_of(model), steps=2, progress=False)
    again = TunedLens.load(lens.save(tmp_path / "lens"), model)
    assert torch.equal(again.A, lens.A) and torch.equal(again.b, lens.b)
    assert again.held_out.equals(lens.held_out) and again.training == lens.training and again.layers == (0, 1)
    other = make("gpt2", model_name="second", seed=4)
    for use in (lambda: TunedLens.load(tmp_path / "lens", other), lambda: tuned_lens.run(other, pairs_of(), lens=lens)):
        with pytest.raises(InterpError, match=r"was trained for 'first' .*, not for 'second'"):
            use()
    renamed = make("gpt2", model_name="third")
    assert torch.equal(TunedLens.load(tmp_path / "lens", renamed).A, lens.A)
    with pytest.raises(WeightsError, match="no tuned lens can be read"):
        TunedLens.load(tmp_path / "nowhere", model)
    file = tmp_path / "lens" / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(WeightsError, match="is damaged"):
        TunedLens.load(tmp_path / "lens", model)
    (tmp_path / "lens" / CONFIG_FILE).write_text('{"format": "other"}')
    with pytest.raises(WeightsError, match="is not a tuned lens"):
        TunedLens.load(tmp_path / "lens", model)


def test_a_killed_training_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = make("llama_gqa"), text_of(make("llama_gqa"))
    options = {"steps": 25, "batch": 16, "progress": False}
    whole = train(model, given, **options)  # type: ignore[arg-type]
    step, done = lens_training._step, []

    def killed(*args: object, **kwargs: object) -> float:
        done.append(args[4])
        if len(done) == 24:
            raise KeyboardInterrupt
        return step(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(lens_training, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(model, given, out=tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(OutputError, match=r"trained in another way: lr \(was 0.005, is 0.5\)"):
        train(model, given, out=tmp_path, lr=0.5, **options)  # type: ignore[arg-type]
    lens = train(model, given, out=tmp_path, **options)  # type: ignore[arg-type]
    assert done == [*range(1, 25), *range(21, 26)]
    assert torch.equal(lens.A, whole.A) and torch.equal(lens.b, whole.b)
    assert lens.held_out.equals(whole.held_out)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    train(model, given, out=tmp_path, **options)  # type: ignore[arg-type]
    assert len(done) == 29  # a finished lens is loaded
    with pytest.raises(OutputError, match="trained in another way: steps"):
        train(model, given, out=tmp_path, **{**options, "steps": 3})  # type: ignore[arg-type]


def test_training_changes_neither_the_model_nor_the_global_generator() -> None:
    model = make("gpt2")
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    train(model, text_of(model), steps=2, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_half_precision_models_have_a_lens_in_float32() -> None:
    model = make("llama_gqa").to(torch.bfloat16)
    lens = train(model, text_of(model), steps=2, progress=False)
    assert lens.A.dtype == torch.float32
    means = lens.held_out.groupby("lens")["value"].mean()
    assert means["tuned"] < means["logit"]
    assert lenses.gap(tuned_lens.run(model, pairs_of(), lens=lens)) < 1e-3


def test_a_read_out_that_is_not_the_models_is_refused() -> None:
    model = make("gpt2")
    with (
        model.hooks([("ln_final.hook_normalized", lambda x, hook: x * 0.5 if x.ndim == 3 else None)]),
        pytest.raises(ParityError, match="is not the model's own output: they diverge by"),
    ):
        logit_lens.run(model, pairs_of())


@pytest.mark.parametrize(
    ("holds", "expected"), [([1, 0, 1, 1, 1], 2), ([1] * 5, 0), ([1, 1, 1, 1, 0], None), ([0, 0, 0, 0, 1], 4)]
)
def test_what_has_settled_no_later_depth_takes_back(holds: list[int], expected: int | None) -> None:
    first = lenses.settled(pd.DataFrame({"depth": range(5)}), pd.Series(holds) == 1)
    assert first is None if expected is None else first is not None and first["depth"] == expected


def test_a_study_trains_saves_and_loads(tmp_path: Path) -> None:
    model, pairs = make("llama_gqa"), pairs_of()
    options = {"sequences": 24, "length": 10, "steps": 2, "progress": False}
    with pytest.raises(InterpError, match=r"there is no tuned lens in .*'generated'"):
        tuned_lens.run(model, pairs, lens=tmp_path / "lens")
    frame = tuned_lens.run(model, pairs, lens=tmp_path / "lens", train_on="generated", **options)  # type: ignore[arg-type]
    assert frame.equals(tuned_lens.run(model, pairs, lens=tmp_path / "lens"))
    assert frame.equals(tuned_lens.run(model, pairs, **options))  # type: ignore[arg-type]
    table = tuned_lens.summary(frame)
    assert len(table) == 2 * 3 * 5 and table["n"].max() == 3
    tuned_lens.plot(frame).canvas.draw()
    every = tuned_lens.run(model, pairs, lens=tmp_path / "lens", pos="all")
    tuned_lens.plot(every).canvas.draw()


@pytest.mark.parametrize("kind", ["gpt2", "attn_only"])
def test_the_section_says_what_was_measured(kind: str) -> None:
    model, pairs = make(kind, n_layers=1), pairs_of(5)
    frame, section, findings = report(model, pairs, {}, progress=False)
    assert [len(section.figures), len(section.appended_figures), len(findings)] == [1, 2, 1]
    assert "in 1 of 1 layers" in section.text[0]
    nearer = section.appended_tables[0][1]
    lens = tuned_lens.trained(model, None, None, progress=False)
    means = lens.held_out.groupby("lens")["value"].mean()
    assert nearer["value"].item() == pytest.approx(means["logit"] - means["tuned"])
    assert f"{means['tuned']:.2f} nats on held-out text" in section.text[0]
    kl = tuned_lens.summary(frame).query("metric == 'kl' and lens == 'tuned'")["value"].tolist()
    assert findings[0].endswith(f"by most in layer 0, from {kl[0]:.2f} to {kl[1]:.2f} nats.")
    for item in section.figures:
        item.figure.canvas.draw()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"steps": -1}, PromptError, "steps must be at least 0, not -1"),
        ({"holdout": 0}, PromptError, "holdout must be at least 1"),
        ({"layers": [7]}, UnknownName, "layer 7 is out of range: there are 2, 0 to 1"),
        ({"source": torch.ones(5, 1, dtype=torch.int64)}, PromptError, "at least 2 sequences of at least 2 tokens"),
    ],
)
def test_what_cannot_be_trained_is_refused(options: dict[str, object], error: type[Exception], says: str) -> None:
    model = make("gpt2")
    with pytest.raises(error, match=says):
        train(model, **{"source": text_of(model), **options})  # type: ignore[arg-type]


def test_a_model_without_layers_has_no_lens() -> None:
    with pytest.raises(InterpError, match="this model has no layers"):
        logit_lens.run(make("gpt2", n_layers=0), pairs_of())


def test_the_command_trains_on_a_file_and_loads_what_it_trained(talker: Path, tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text("When John and Mary went to the store , John gave a bottle to Mary . " * 30, encoding="utf-8")
    words = ["--model", str(talker), "--n", "2", "--lens", str(tmp_path / "lens"), "--csv", "--quiet"]
    more = ["--train-on", str(text), "--length", "8", "--steps", "1"]
    first = CliRunner().invoke(tuned_lens.main, [*words, *more])
    assert first.exit_code == 0, first.output
    assert first.stdout.startswith("lens,layer,site,prompt")
    assert CliRunner().invoke(tuned_lens.main, words).stdout == first.stdout
    assert TunedLens.load(tmp_path / "lens", interp.load(talker, device="cpu")).training["text"] == "words.txt"
    refused = CliRunner().invoke(tuned_lens.main, [*words[:4], "--lens", str(tmp_path / "none")])
    assert refused.exit_code == 2 and "there is no tuned lens" in refused.stderr


@pytest.mark.slow
def test_on_a_real_model_a_short_training_is_far_nearer_than_the_logit_lens() -> None:
    model = interp.load("smollm2-135m", device="cpu")
    lens = train(model, texts.write(model, 24, length=32), layers=[15, 24], steps=4, holdout=6, progress=False)
    means = lens.held_out.groupby(["layer", "lens"])["value"].mean().unstack()
    assert (means["tuned"] < means["logit"] / 3).all()
    frame = tuned_lens.run(model, interp.tasks.ioi(model, n=4), lens=lens)
    assert lenses.gap(frame) < 1e-4
    kl = frame[(frame["metric"] == "kl") & (frame["layer"] == 24)].groupby("lens")["value"].mean()
    assert kl["tuned"] < kl["logit"] / 3
