"""Encoders against transformers and identities: padding, segments, sites, and every study that reads at the mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch
from checkpoints import CASES, DISTILBERT_SIZES, ENCODERS, SIZES, relative_difference, tiny, tokens_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from makers import MASKED, close, make, plain_forwards
from torch import Tensor

import interp
from analyses import attribution_patching, head_attribution, logit_lens, patchscope
from interp.attribution.node_scores import estimate
from interp.directions.steering import states
from interp.edits import Edit, Variant
from interp.errors import ConfigError, InterpError, PromptError
from interp.heads import qk_ov
from interp.metrics import METRICS, measure
from interp.models import gpt
from interp.models.encoder import Encoder
from interp.prompts.pairs import PromptPairs
from interp.sites import stream_after
from interp.study.prompts import check_masked, load_prompts
from interp.sweeps.sweep import sweep
from interp.text.tokenizer import Tokenizer

FAMILIES = ("bert", "roberta", "distilbert", "modernbert", "modernbert-biases")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "cat", "dog", "sat", "ran", "."]


@pytest.fixture(params=MASKED)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    model = make(request.param)
    assert isinstance(model, Encoder)
    return model


@pytest.fixture
def masked_pairs() -> PromptPairs:
    """Prompts of two lengths with a mask before their end, which differ in a token on either side of it."""
    generator = torch.Generator().manual_seed(4)
    clean = [torch.randint(5, 29, (n,), generator=generator).tolist() for n in (7, 5, 7)]
    clean = [[*row[:2], 3, *row[3:]] for row in clean]
    corrupt = [[row[0], row[1] - 1, *row[2:-1], row[-1] - 1] for row in clean]
    answers, roles = [(1, 8), (2, 9), (0, 7)], [{"MASK": 2, "END": len(row) - 1} for row in clean]
    return PromptPairs.from_tokens(clean, corrupt, answers=answers, roles=roles)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", FAMILIES)
def test_padded_rows_equal_transformers_unpadded_prompts(case: str, side: str) -> None:
    theirs = tiny(*CASES[case])
    model, prompts = interp.load(theirs), [tokens_for(theirs)[row, :n] for row, n in enumerate((20, 7, 1))]
    batch, mask = torch.zeros(3, 20, dtype=torch.int64), torch.zeros(3, 20, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        real = slice(0, len(prompt)) if side == "right" else slice(20 - len(prompt), 20)
        batch[row, real], mask[row, real] = prompt, True
    with torch.no_grad():
        padded = model(batch, attention_mask=mask)
        for row, prompt in enumerate(prompts):
            assert relative_difference(padded[row, mask[row]], theirs(prompt[None]).logits[0]) < 1e-5


@torch.no_grad()
def test_published_files_of_bert_have_older_names_and_further_heads(tmp_path: Path) -> None:
    theirs = tiny(*CASES["bert"])
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(file)
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, old in older.items():
        state = {name.replace(new, old): value for name, value in state.items()}
    state |= {"bert.pooler.dense.weight": torch.ones(32, 32), "cls.seq_relationship.bias": torch.ones(2)}
    state["bert.embeddings.position_ids"] = torch.arange(48)[None]
    assert "cls.predictions.bias" in state and "cls.predictions.decoder.bias" not in state
    safetensors.torch.save_file(state, file, metadata={"format": "pt"})
    tokens = tokens_for(theirs)
    assert relative_difference(interp.load(tmp_path)(tokens), theirs(tokens).logits) < 1e-5


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    model_type=st.sampled_from(sorted(ENCODERS)),
    n_layers=st.integers(1, 3),
    n_heads=st.sampled_from([1, 2, 4]),
    tied=st.booleans(),
    act=st.sampled_from(["gelu", "relu", "silu", "gelu_new"]),
    window=st.integers(2, 12),
    every=st.integers(1, 3),
)
def test_drawn_configurations_equal_transformers(
    model_type: str, n_layers: int, n_heads: int, tied: bool, act: str, window: int, every: int
) -> None:
    options: dict[str, Any] = {**SIZES, "num_hidden_layers": n_layers, "num_attention_heads": n_heads}
    options |= {"pad_token_id": 1, "tie_word_embeddings": tied}
    if model_type in ("bert", "roberta"):
        options |= {"hidden_act": act, "type_vocab_size": every}
    if model_type == "distilbert":
        options = {**DISTILBERT_SIZES, "n_layers": n_layers, "n_heads": n_heads, "activation": act}
        options["tie_word_embeddings"] = tied
    if model_type == "modernbert":
        options |= {"hidden_activation": act, "classifier_activation": act, "local_attention": window}
        options |= {"global_attn_every_n_layers": every, "norm_bias": tied, "cls_token_id": 0, "sep_token_id": 0}
    theirs = tiny(model_type, options, seed=n_layers)
    tokens = tokens_for(theirs, (2, 30))
    with torch.no_grad():
        assert relative_difference(interp.load(theirs)(tokens), theirs(tokens).logits) < 1e-5


@torch.no_grad()
def test_segments_are_those_of_transformers() -> None:
    theirs = tiny(*CASES["bert-untied"])
    model, tokens = interp.load(theirs), tokens_for(theirs)
    types = torch.arange(48).expand_as(tokens) // 20
    with_types = model(tokens, token_type_ids=types)
    assert relative_difference(with_types, theirs(tokens, token_type_ids=types).logits) < 1e-5
    assert relative_difference(model(tokens, token_type_ids=types * 0), model(tokens)) == 0
    assert relative_difference(with_types, model(tokens)) > 1e-2
    _, cache = model.run_with_cache(tokens, token_type_ids=types)
    close(cache["token_type_embed"], theirs.bert.embeddings.token_type_embeddings(types))


@torch.no_grad()
@pytest.mark.parametrize("case", ["bert", "distilbert", "modernbert"])
def test_streams_are_transformers_hidden_states(case: str) -> None:
    theirs = tiny(*CASES[case])
    model, tokens = interp.load(theirs), tokens_for(theirs)
    hidden = theirs(tokens, output_hidden_states=True).hidden_states
    _, cache = model.run_with_cache(tokens)
    for layer in range(model.cfg.n_layers):
        close(cache["resid_pre", layer], hidden[layer])
    last = cache[stream_after(model.cfg, model.cfg.n_layers - 1)]
    close(model.ln_final(last), hidden[-1])
    head = {"bert": "cls.predictions.transform", "modernbert": "head"}.get(case)
    if head is not None:
        close(model.to_unembed(last), theirs.get_submodule(head)(hidden[-1]))


@torch.no_grad()
def test_a_window_looks_both_ways() -> None:
    model = make("modernbert")
    _, cache = model.run_with_cache(torch.arange(7)[None], names_filter="*pattern")
    distance = (torch.arange(7)[:, None] - torch.arange(7)).abs()
    assert bool((cache["pattern", 0] > 0).all())
    assert torch.equal(cache["pattern", 1] > 0, (distance < 2).expand(1, 4, 7, 7))


@torch.no_grad()
def test_a_sweep_reads_at_the_mask(encoder: Encoder, masked_pairs: PromptPairs) -> None:
    variants = [Variant([Edit(name)]) for name in encoder.hook_dict]
    variants += [Variant([Edit("z", {"layer": 0, "head": head, "pos": "MASK"}, "zero")]) for head in range(4)]
    found = sweep(encoder, masked_pairs, variants, base="corrupt", source="clean", progress=False)
    found = found["value"].to_numpy().reshape(len(variants), -1)
    for at, variant in enumerate(variants):
        runs = plain_forwards(encoder, masked_pairs, variant, "corrupt", "clean", read=2)
        for prompt, logits in enumerate(runs):
            right, wrong = masked_pairs.answers[prompt]
            within = 2e-5 * float(logits.abs().max())
            assert found[at, prompt] == pytest.approx(float(logits[right] - logits[wrong]), abs=within), variant


def test_a_lens_reads_through_the_head_at_the_mask(encoder: Encoder, masked_pairs: PromptPairs) -> None:
    frame = logit_lens.run(encoder, masked_pairs)
    assert set(frame["pos"]) == {2} and set(frame["role"]) == {"MASK"}
    last = frame[frame["site"].str.endswith("resid_post")].set_index("metric")["value"]
    with torch.no_grad():
        logits = encoder(masked_pairs.clean, attention_mask=masked_pairs.mask)[:, 2]
        _, cache = encoder.run_with_cache(masked_pairs.clean, attention_mask=masked_pairs.mask)
        streams, labels = cache.accumulated_resid(apply_ln=True, return_labels=True)
        first = encoder.unembed(streams[labels.index("1_pre")][:, 2])
    for metric in ("prob", "rank", "logit_diff"):
        expected = METRICS[metric].fn(logits, masked_pairs.answers, None)
        assert last[metric].tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)
    entering = frame[(frame["layer"] == 1) & (frame["site"] == "resid_pre") & (frame["metric"] == "prob")]["value"]
    expected = METRICS["prob"].fn(first, masked_pairs.answers, None)
    assert entering.tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)
    every = logit_lens.run(encoder, masked_pairs, pos="all")
    table, alone = (logit_lens.summary(one) for one in (every, frame))
    assert table["value"].tolist() == pytest.approx(alone["value"].tolist(), rel=1e-4, abs=1e-5, nan_ok=True)


def test_attribution_patching_estimates_what_patching_does_at_the_mask(
    encoder: Encoder, masked_pairs: PromptPairs
) -> None:
    model = encoder.double()
    small = 1e-4 * torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    names = ["hook_embed", "blocks.0.hook_mlp_out", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid"]
    cells = [Variant([Edit(name, op="add", source=small)]) for name in names]
    swept = sweep(model, masked_pairs, cells, base="clean", source="corrupt", progress=False)
    expected = (swept["value"] - swept["base_value"]).to_numpy().reshape(len(cells), -1)
    found = estimate(model, masked_pairs, cells, base="clean", source="corrupt").numpy()
    assert np.abs(found - expected).max() < 1e-2 * np.abs(expected).max()
    frame = attribution_patching.run(model, masked_pairs, progress=False)
    assert len(frame) and bool(frame["value"].notna().all())


def test_components_sum_to_the_stream_that_the_head_reads(encoder: Encoder, tokens: Tensor) -> None:
    _, cache = encoder.run_with_cache(tokens)
    stack, labels = cache.decompose_resid(return_labels=True)
    close(stack.sum(0), cache[stream_after(encoder.cfg, 1)])
    assert ("token_type_embed" in labels) == bool(encoder.cfg.n_token_types)
    close(cache.stack_head_results(incl_remainder=True).sum(0), cache[stream_after(encoder.cfg, 1)])


def test_what_is_not_linear_has_no_shares(encoder: Encoder, tokens: Tensor, masked_pairs: PromptPairs) -> None:
    _, cache = encoder.run_with_cache(tokens)
    for call in (
        lambda: cache.logit_attrs(cache.decompose_resid(), 1, 2),
        lambda: head_attribution.run(encoder, masked_pairs),
        lambda: qk_ov.unembedding(encoder, tokens[0]),
    ):
        with pytest.raises(InterpError, match=r"masked-token head .* is not linear"):
            call()


def test_states_are_read_at_the_mask(encoder: Encoder, masked_pairs: PromptPairs) -> None:
    found = states(encoder, masked_pairs, "resid_pre", [{"layer": 1}])[0]
    _, cache = encoder.run_with_cache(masked_pairs.clean, attention_mask=masked_pairs.mask)
    close(found, cache["resid_pre", 1][:, 2].detach())


def test_what_predicts_the_next_token_is_refused(encoder: Encoder, tokens: Tensor, masked_pairs: PromptPairs) -> None:
    with pytest.raises(PromptError, match="a patchscope asks how a text goes on"):
        patchscope.run(encoder, masked_pairs)
    with pytest.raises(PromptError, match="give a data file with a column 'role:MASK'"):
        check_masked(encoder, PromptPairs.from_tokens([[5, 6]], answers=[(1, 2)]))
    with pytest.raises(PromptError, match="does not continue a text"):
        encoder.generate(tokens)
    with pytest.raises(PromptError, match="return_type='loss' is of the next token"):
        encoder(tokens, return_type="loss")


@pytest.mark.parametrize(
    ("kind", "types", "says"),
    [
        ("modernbert", torch.zeros(3, 7, dtype=torch.long), "does not embed segments"),
        ("bert_mlm", torch.zeros(3, 6, dtype=torch.long), r"are \[3, 6\], expected those of tokens, \[3, 7\]"),
        ("bert_mlm", torch.zeros(3, 7), "token_type_ids must be whole numbers .* not torch.float32"),
        ("bert_mlm", torch.full((3, 7), 2), "token type 2 is out of range: this model's are 0 to 1"),
    ],
)
def test_segments_that_do_not_fit_are_refused(kind: str, types: Tensor, says: str, tokens: Tensor) -> None:
    with pytest.raises(PromptError, match=says):
        make(kind)(tokens, token_type_ids=types)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mlm_act_fn": None}, "an Encoder has a masked-token head"),
        ({"attention_dir": "causal", "mlm_act_fn": None}, "an Encoder looks both ways"),
        ({"attention_dir": "causal"}, "needs attention_dir='bidirectional'"),
        ({"mlm_act_fn": "gleu"}, "did you mean 'gelu'"),
        ({"embed_norm": False}, "embed_norm_of_sum=True needs embed_norm=True"),
        ({"first_norm": False}, "first_norm=False needs norms before the parts"),
        ({"parallel_attn_mlp": True}, "norm_placement='residual' contradicts parallel_attn_mlp=True"),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make("bert_mlm", **changes)


def test_it_is_saved_and_loaded_bit_for_bit(encoder: Encoder, tokens: Tensor, tmp_path: Path) -> None:
    interp.save(encoder, tmp_path / "model")
    again = interp.load(tmp_path / "model", device="cpu")
    assert isinstance(again, interp.Encoder) and torch.equal(again(tokens), encoder(tokens))
    with pytest.raises(ConfigError, match="Save the model in interp's own format"):
        interp.save(encoder, tmp_path / "theirs", format="huggingface")


@torch.no_grad()
def test_text_with_a_mask(masked_pairs: PromptPairs) -> None:
    vocabulary = {word: at for at, word in enumerate(SPECIAL + WORDS)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    backend.add_special_tokens(SPECIAL)
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    model = make("bert_mlm")
    model.tokenizer = Tokenizer(backend, pad_token_id=0)
    assert model.to_tokens("the [MASK] sat.").tolist() == [[2, 5, 4, 8, 10, 3]]
    texts = ["the [MASK] sat.", "[MASK] sat"]
    pairs = PromptPairs.from_text(model, texts, answers=[(" cat", " dog")] * 2, roles={"MASK": "[MASK]"})
    assert pairs.answers.tolist() == [[6, 7]] * 2 and pairs.read_at.tolist() == [2, 1]
    logits = model(pairs.clean, attention_mask=pairs.attention_mask)
    expected = [float(logits[row, at, 6] - logits[row, at, 7]) for row, at in enumerate((2, 1))]
    assert measure("logit_diff", logits, pairs).tolist() == pytest.approx(expected)
    assert masked_pairs[[0]].read_at.tolist() == [2]
    typed = load_prompts(model, prompt=texts[0])
    assert typed.read_at.tolist() == [2] and typed.answer_place == "MASK"
    assert typed.answers.tolist() == [model(texts[0])[0, 2].topk(2).indices.tolist()]
    found = PromptPairs.from_text(model, texts, answers=[(" cat", " dog")] * 2)  # without roles
    assert found.roles == pairs.roles and found.read_at.tolist() == [2, 1]
    for prompt, times in (("the cat sat", 0), ("[MASK] cat [MASK]", 2)):
        with pytest.raises(PromptError, match=rf"pair 0: .* the prompt has \[MASK\] {times} times: write it once"):
            load_prompts(model, prompt=prompt)
        with pytest.raises(PromptError, match=rf"has \[MASK\] {times} times"):
            PromptPairs.from_text(model, prompt, answers=(" cat", " dog"))


def test_sizes_are_checked_where_layers_see_differently_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt, "SURELY_FITS", 0)
    assert make("modernbert").cfg.attn_types == ("global", "local")
