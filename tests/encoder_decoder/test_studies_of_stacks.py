"""Studies of an encoder-decoder: decompositions, the logit lens, direct attribution and ablation of heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import interp
from analyses import (
    ablation,
    attention_patterns,
    attribution_patching,
    circuit,
    edge_attribution,
    head_attribution,
    head_detectors,
    logit_lens,
    patchscope,
    path_patching,
    probes,
    steering,
    tuned_lens,
)
from interp.attribution.gradients import gradients
from interp.attribution.node_scores import estimate
from interp.directions.classes import contrast
from interp.directions.steering import difference_of_means, steer
from interp.edits import Edit, Variant
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import ConfigError, InterpError, PromptError, UnknownName
from interp.heads import qk_ov
from interp.metrics import measure
from interp.prompts.pairs import PromptPairs
from interp.sites import get_act_name, stream_after, stream_between
from tests.makers import STACKS, close, encoder_decoder, stack_pairs

SOURCE = torch.tensor([[3, 5, 7, 11, 2], [4, 6, 8, 10, 12]])
PREFIX = torch.tensor([[1, 9, 13], [1, 2, 20]])
PAIRS = PromptPairs.from_tokens([[3, 5, 7], [4, 6, 8, 2]], answers=[(1, 2), (3, 4)], decoder=[[1, 9], [1, 3, 5]])


@pytest.fixture(params=STACKS, scope="module")
def model(request: pytest.FixtureRequest) -> EncoderDecoder:
    return encoder_decoder(request.param)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_what_is_written_sums_to_the_stream_of_each_stack(model: EncoderDecoder, stack: str) -> None:
    _, cache = model.run_with_cache(SOURCE, PREFIX)
    own = getattr(cache, stack)
    cfg = own.model.cfg
    n_layers = cfg.n_layers
    for layer in range(n_layers + 1):
        stream = own[stream_after(cfg, layer - 1)] if layer else own["resid_pre", 0]
        rows, labels = own.decompose_resid(layer, return_labels=True)
        close(rows.sum(0), stream)
        assert (stack == "decoder" and layer > 0) == any("cross_attn_out" in label for label in labels)
        heads, names = own.stack_head_results(layer if layer else 0, return_labels=True, incl_remainder=True)
        close(heads.sum(0), stream)
        assert len(set(names)) == len(names) == len(heads)
        if layer < n_layers:
            between = own[stream_between(cfg, layer)]
            close(own.decompose_resid(layer, mlp_input=True).sum(0), between)
            close(own.accumulated_resid(layer, mlp_input=True)[-1], between)
    rows, labels = own.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels[:3] == (["0_pre", "0_mid", "0_mid_cross"] if stack == "decoder" else ["0_pre", "0_mid", "1_pre"])
    close(rows[-1], own[stream_after(cfg, n_layers - 1)])


def test_what_components_are_worth_sums_to_the_logits(model: EncoderDecoder) -> None:
    logits, cache = model.run_with_cache(SOURCE, PREFIX)
    own = cache.decoder
    worth = own.logit_attrs(own.decompose_resid(), torch.tensor([3, 4])).sum(0)
    norm, b_U = model.ln_final, model.unembed.b_U
    b = getattr(norm, "b", None)
    constant = 0 if b is None else b @ model.W_U[:, [3, 4]]
    constant = constant + (0 if b_U is None else b_U[[3, 4]])
    expected = torch.stack([logits[at, :, token] for at, token in enumerate((3, 4))])
    close(worth, expected - (constant[:, None] if isinstance(constant, torch.Tensor) else 0), 1e-4)
    with pytest.raises(InterpError, match="no unembedding reads the encoder's output"):
        cache.encoder.logit_attrs(cache.encoder.decompose_resid(), 3)
    with pytest.raises(InterpError, match="made for one stack"):
        cache.decompose_resid()


@torch.no_grad()
def test_the_logit_lens_ends_with_the_models_own_output(model: EncoderDecoder) -> None:
    frame = logit_lens.run(model, PAIRS)
    site = stream_after(model.cfg.decoder, 1).rpartition("hook_")[2]
    last = frame[(frame["site"] == site) & (frame["metric"] == "logit_diff")]["value"].to_numpy()
    expected = measure("logit_diff", model(**PAIRS.inputs("clean")), PAIRS)
    assert last == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-5)
    assert site.replace("post", "mid_cross") in set(frame["site"])
    table = logit_lens.summary(frame)
    assert np.isfinite(table[table["metric"] != "logit_diff"]["value"]).all()
    logit_lens.plot(frame)


def test_heads_of_both_attentions_are_credited_with_the_answer(model: EncoderDecoder) -> None:
    frame = head_attribution.run(model, PAIRS)
    residue = frame[frame["kind"] == "residue"]["value"]
    assert float(residue.abs().max()) < 1e-4 * float(frame["value"].abs().max())
    assert (frame["kind"] == "cross_head").sum() == 2 * model.cfg.decoder.n_layers * model.cfg.decoder.n_heads
    assert "L1X0" in set(frame["component"])
    head_attribution.plot(frame)
    assert "cross_head" in head_attribution.summary(frame)


@torch.no_grad()
def test_heads_of_all_three_attentions_can_be_ablated(model: EncoderDecoder) -> None:
    frame = ablation.run(model, PAIRS, kind="zero", progress=False)
    cfg = model.cfg
    heads = cfg.encoder.n_layers * cfg.encoder.n_heads + 2 * cfg.decoder.n_layers * cfg.decoder.n_heads
    assert frame["component"].nunique() == heads and {"E1H0", "L1H0", "L1X1"} <= set(frame["component"])
    for component, site in (("E1H0", "encoder.blocks.1.attn"), ("L1X1", "decoder.blocks.1.cross_attn")):

        def without(value: torch.Tensor, hook: object, head: int = int(component[-1])) -> torch.Tensor:
            value[:, :, head] = 0
            return value

        logits = model.run_with_hooks(**PAIRS.inputs("clean"), fwd_hooks=[(f"{site}.hook_z", without)])
        expected = measure("logit_diff", logits, PAIRS).numpy()
        assert frame[frame["component"] == component]["value"].to_numpy() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    ablation.plot(frame)
    curves = ablation.run(model, PAIRS, kind="mean", only="L*X*,E1*", cumulative=2, draws=1, progress=False)
    ablation.plot(curves)
    assert set(curves[curves["stage"] != "single"]["number"]) == {0, 1, 2}
    mlps = ablation.run(model, PAIRS, kind="zero", site="mlp_out", progress=False)
    assert set(mlps["component"]) == {"MLP 0", "MLP 1"}


def test_gradients_at_both_stacks_are_those_of_small_changes() -> None:
    model = encoder_decoder("pre_norm").double()
    names = ["encoder.blocks.1.attn.hook_z", "decoder.blocks.0.cross_attn.hook_v", "decoder.blocks.1.hook_resid_pre"]
    found = gradients(model, PAIRS, names)
    in_parts = gradients(model, PAIRS, names, max_memory=1)
    for name in names:
        close(in_parts.slopes[name], found.slopes[name])
        for prompt, pos in ((0, 1), (1, 0)):
            change = torch.zeros_like(found.values[name])
            change[prompt, pos] = torch.randn(
                change[prompt, pos].shape, generator=torch.Generator().manual_seed(1)
            ).double()
            values = []
            for step in (1e-4, -1e-4):
                hooks = [(name, lambda value, hook, step=step, change=change: value + step * change)]
                logits = model.run_with_hooks(**PAIRS.inputs("clean"), fwd_hooks=hooks)
                values.append(float(measure("logit_diff", logits.detach(), PAIRS)[prompt]))
            expected = float((found.slopes[name][prompt, pos] * change[prompt, pos]).sum())
            assert (values[0] - values[1]) / 2e-4 == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_a_saved_model_is_the_same(model: EncoderDecoder, tmp_path: Path) -> None:
    interp.save(model, tmp_path / "saved")
    loaded = interp.load(tmp_path / "saved")
    assert isinstance(loaded, EncoderDecoder) and loaded.cfg == model.cfg
    assert torch.equal(loaded(SOURCE, PREFIX), model(SOURCE, PREFIX))
    with pytest.raises(ConfigError, match="is saved with format='interp'"):
        interp.save(model, tmp_path / "other", format="huggingface")


def test_studies_of_one_stack_say_so(model: EncoderDecoder) -> None:
    for study, what in (
        (lambda: interp.Graph.of(model), "edges are between the parts of one residual stream"),
        (lambda: path_patching.run(model, PAIRS, progress=False), "edges are between the parts of one residual stream"),
        (lambda: edge_attribution.run(model, PAIRS, progress=False), "edges are between"),
        (lambda: circuit.run(model, PAIRS, progress=False), "edges are between"),
        (lambda: interp.TunedLens.identity(model), "made for one stack"),
        (lambda: estimate(model, PAIRS, [Variant([Edit("decoder.z", {"layer": 1})])]), "made for one stack"),
        (lambda: attribution_patching.run(model, PAIRS, progress=False), "attribution patching estimates effects in"),
        (lambda: attention_patterns.run(model, PAIRS), "attention patterns are drawn of one stack"),
        (lambda: head_detectors.run(model, PAIRS), "head detectors score the heads of one stack"),
        (lambda: patchscope.run(model, PAIRS), "a patchscope puts states into the prompt of one stack"),
        (lambda: tuned_lens.run(model, PAIRS, progress=False), "a tuned lens is trained for one stack"),
        (lambda: steering.run(model, PAIRS, progress=False), "this study steers one stack"),
        (lambda: probes.run(model, PAIRS, site="encoder.resid_pre", progress=False), "this study probes one stack"),
    ):
        with pytest.raises(InterpError, match=what):
            study()
    for study in (lambda: head_attribution.run(model, PAIRS.encoder), lambda: logit_lens.run(model, PAIRS.encoder)):
        with pytest.raises(PromptError, match="needs pairs with a prompt for each"):
            study()
    with pytest.raises(InterpError, match="weights of a EncoderDecoder cannot be read"):
        qk_ov.readable(model)
    with pytest.raises(PromptError, match="mean_by_role is of one prompt"):
        ablation.run(model, PAIRS, kind="mean_by_role", progress=False)


def test_sides_are_told_apart_by_what_either_stack_reads() -> None:
    pairs = stack_pairs()
    assert bool((pairs.clean == pairs.corrupt).all()) and pairs.encoder is not None
    assert contrast(encoder_decoder("t5"), pairs, "side").classes == ("clean", "corrupt")
    with pytest.raises(PromptError, match="some corrupt prompt equals its clean one"):
        contrast(encoder_decoder("t5"), PAIRS, "side")


def test_directions_are_read_and_added_in_either_stack(model: EncoderDecoder) -> None:
    _, cache = model.run_with_cache(**PAIRS.inputs("clean"))
    for site, at in (("encoder.resid_pre", [2, 3]), ("decoder.resid_pre", [1, 2])):
        found = difference_of_means(model, PAIRS, site, where={"layer": 1}, labels=["one", "two"])
        each = cache[site, 1][torch.arange(2), torch.tensor(at)]
        close(found.vector, each[0] - each[1], 1e-4)
        with steer(model, found, 3.0), torch.no_grad():
            steered = model(**PAIRS.inputs("clean"))
        moved = [(get_act_name(site, 1), lambda value, hook, vector=found.vector: value + 3 * vector)]
        close(steered, model.run_with_hooks(**PAIRS.inputs("clean"), fwd_hooks=moved).detach())
    with pytest.raises(UnknownName, match="which stack's 'resid_pre'"):
        difference_of_means(model, PAIRS, "resid_pre", where={"layer": 1}, labels=["one", "two"])
    with pytest.raises(PromptError, match="needs pairs with a prompt for each"):
        difference_of_means(model, PAIRS.encoder, "encoder.resid_pre", where={"layer": 1}, labels=["one", "two"])
