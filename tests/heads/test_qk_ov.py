"""Circuits, scores from weights and scores from patterns, against whole matrices and against heads made by hand."""

from __future__ import annotations

import pytest
import torch
from makers import SUMS, make
from torch import Tensor

import interp
from interp.config import ModelConfig
from interp.errors import InterpError, PromptError, UnknownName
from interp.heads import from_patterns as head_patterns
from interp.heads import from_weights as head_weights
from interp.heads import qk_ov as head_circuits
from interp.hooked.model import HookedModel
from interp.models.gpt import GPT

V, N = 12, 24  # tokens and positions of the models that are made by hand
IDS = torch.arange(V)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(a.float(), b.float(), rtol=tolerance, atol=tolerance)


def handmade() -> GPT:
    """Heads with one job each. Tokens, positions and copies of both have channels of their own.

    Layer 0: H0 looks one back and writes what it reads to a second block of channels; H1 looks at the same token.
    Layer 1: H0 is the induction head on that second block; it copies. H1 maps every token to the next one.
    """
    d_model = 3 * V + N
    cfg = ModelConfig(n_layers=2, d_model=d_model, n_ctx=N, d_head=N, d_vocab=V, n_heads=2, attn_only=True,
                      normalization_type=None, use_attn_scale=False, attn_in_bias=False, attn_out_bias=False,
                      unembed_bias=False)  # fmt: skip
    model = GPT(cfg)
    token, before, out, place = (slice(0, V), slice(V, 2 * V), slice(2 * V, 3 * V), slice(3 * V, d_model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.W_E[:, token] = torch.eye(V)
        model.W_pos[:, place] = torch.eye(N)
        model.W_U[out] = torch.eye(V)

        def wire(layer: int, head: int, q: slice, k: slice, into: slice, ov: Tensor, shift: int = 0) -> None:
            attn = model.block(layer).attn
            size = q.stop - q.start
            attn.W_Q[head, q, :size] = 20 * torch.eye(size)
            attn.W_K[head, k, :size] = 20 * torch.eye(size).roll(shift, 1)
            attn.W_V[head, token, :V] = torch.eye(V)
            attn.W_O[head, :V, into] = ov

        wire(0, 0, place, place, before, torch.eye(V), shift=1)  # the key of position p answers the query of p + 1
        wire(0, 1, token, token, before, torch.zeros(V, V))
        wire(1, 0, token, before, out, torch.eye(V))
        wire(1, 1, place, place, out, torch.eye(V).roll(1, 1))
    return model


@pytest.mark.parametrize("kind", ["gpt2", "llama_gqa", "bidirectional", "attn_only", "gptj_pairs"])
def test_circuits_are_the_products_that_the_model_computes(kind: str) -> None:
    model = make(kind, attn_in_bias=False)
    layer, group = 1, model.cfg.n_heads // model.cfg.n_kv_heads
    norm = model.norm_before(layer)
    x = torch.randn(5, model.cfg.d_model)
    scaled = x if norm is None else norm.scaled(x, torch.ones(()))
    attn = model.block(layer).attn
    ov, qk = head_circuits.ov(model, layer), head_circuits.qk(model, layer)
    for head in range(model.cfg.n_heads):
        close(x @ ov[head].matrix, scaled @ attn.W_V[head // group] @ attn.W_O[head], 1e-3)
        scores = (scaled @ attn.W_Q[head]) @ (scaled @ attn.W_K[head // group]).T / model.cfg.attn_scale
        close(x @ qk[head].matrix @ x.T, scores, 1e-3)
    reads, values, writes = ov.svd()
    close(reads @ torch.diag_embed(values) @ writes, ov.matrix)
    close(values, torch.linalg.svdvals(ov.matrix)[:, : values.shape[-1]])
    close(ov.norm, ov.matrix.norm(dim=(-2, -1)))


@pytest.mark.parametrize("reader", ["q", "k", "v"])
def test_composition_is_the_ratio_of_whole_matrices(reader: str) -> None:
    model = make("llama_gqa", n_layers=3)
    found = head_circuits.composition(model, reader)
    for a, i, b, j in [(0, 0, 1, 3), (0, 2, 2, 1), (1, 3, 2, 0)]:
        writes = head_circuits.ov(model, a)[i].matrix
        reads = (head_circuits.ov if reader == "v" else head_circuits.qk)(model, b)[j].matrix
        reads = reads.T if reader == "k" else reads
        close(found[a, i, b, j], (writes @ reads).norm() / (writes.norm() * reads.norm()))
    assert bool(found[1, :, :2].isnan().all()) and not bool(found[0, :, 1:].isnan().any())


def test_chance_composition_is_that_of_circuits_turned_at_random() -> None:
    model = make("gpt2")
    writes, reads = head_circuits.ov(model, 0)[1].matrix, head_circuits.qk(model, 1)[2].matrix
    generator = torch.Generator().manual_seed(0)
    turns = torch.linalg.qr(torch.randn(3000, 16, 16, generator=generator)).Q
    ratios = (writes @ turns @ reads).norm(dim=(-2, -1)) / (writes.norm() * reads.norm())
    assert float(ratios.square().mean().sqrt()) == pytest.approx(head_circuits.chance_composition(model), rel=0.02)


@pytest.mark.parametrize("kind", ["gpt2", "llama_gqa", "no_norm_relu", "gptj_pairs"])
def test_copying_has_the_eigenvalues_of_the_whole_map_of_tokens(kind: str) -> None:
    model = make(kind).requires_grad_(False)
    tokens = torch.arange(29)
    found = head_weights.copying(model, tokens)
    layer, head = 1, 3
    resid = model.W_E
    first = model.block(0)
    assert first.mlp is not None
    resid = resid + first.mlp(resid if first.ln2 is None else first.ln2(resid))
    norm, last = model.norm_before(layer), model.norm_before(2)
    x = resid if norm is None else norm(resid)
    out = (x - x.mean(0)) @ model.W_V[layer, head // (4 // model.cfg.n_kv_heads)] @ model.W_O[layer, head]
    logits = (out if last is None else last.scaled(out, torch.ones(()))) @ model.W_U
    logits = logits - logits.mean(1, keepdim=True)
    eigenvalues = torch.linalg.eigvals(logits.double())
    assert float(found[layer, head]) == pytest.approx(float(eigenvalues.real.sum() / eigenvalues.abs().sum()), abs=2e-3)


@pytest.mark.parametrize("effective", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "llama_gqa", "alibi", "sinusoidal", "gptj_pairs", "bidirectional"])
def test_a_pattern_of_the_average_token_is_the_models_own_where_all_tokens_are_one(kind: str, effective: bool) -> None:
    model = make(kind)
    token = torch.tensor([7])
    found = head_weights.previous_token(model, token, length=9, effective=effective)
    _, cache = model.run_with_cache(token.expand(1, 9), names_filter="blocks.0.attn.hook_pattern")
    close(found[0], cache["pattern", 0][0].detach().diagonal(-1, 1, 2)[:, 1:].mean(-1))


def test_matching_by_weights_averages_the_scores_over_distances() -> None:
    model = make("llama_gqa")
    tokens = torch.tensor([3, 9, 11, 20])
    found = head_weights.duplicate_token(model, tokens, reach=5)[0]
    names = ["blocks.0.attn.hook_attn_scores"]
    total = torch.zeros(4, 4, 4)  # [head, query, key]
    for distance in range(1, 6):
        for a, query in enumerate(tokens):
            for b, key in enumerate(tokens):
                prompt = torch.tensor([[int(key), *[1] * (distance - 1), int(query)]])
                _, cache = model.run_with_cache(prompt, names_filter=names)
                total[:, a, b] += cache[names[0]][0, :, distance, 0].detach()
    own = total.diagonal(0, 1, 2)[..., None]  # [head, query, 1]
    expected = ((own > total).sum(-1) - (own < total).sum(-1)).float().mean(-1) / 3
    close(found, expected)


def test_weights_know_the_heads_that_were_made_by_hand() -> None:
    model = handmade()
    before = head_weights.previous_token(model, IDS, length=N)
    even = head_weights.even_attention(model, N)
    assert float(before[0, 0]) > 0.99 and float(before[0, 1]) == pytest.approx(even, abs=1e-5)
    assert even == pytest.approx(sum(1 / (q + 1) for q in range(2, N)) / (N - 2))
    same = head_weights.duplicate_token(model, IDS)
    assert float(same[0, 1]) == 1 and float(same[0, 0]) == 0 == float(same[1, 0])
    found = head_weights.induction(model, IDS, before - even)
    assert float(found[1, 0]) == 1 and float(found[0].abs().max()) == 0 == float(found[1, 1])
    copying = head_weights.copying(model, IDS)
    assert float(copying[1, 0]) == pytest.approx(1, abs=1e-4) and abs(float(copying[1, 1])) < 0.2
    assert abs(float(head_weights.copying(model, IDS, targets=IDS.roll(-1))[1, 1]) - 1) < 1e-4
    assert head_weights.successor(model, IDS).tolist() == [[0, 0], [0, 1]]
    assert head_weights.hits(model, IDS, IDS, top=1).tolist() == [[0, 0], [1, 0]]
    assert float(head_circuits.composition(model, "k")[0, 0, 1, 0]) > 2 * head_circuits.chance_composition(model)


def test_patterns_know_the_heads_that_were_made_by_hand() -> None:
    model = handmade()
    material = head_patterns.random_sequences(model, 6, length=6)
    linked = head_patterns.links(material.repeated)
    found = {name: score.mean(0) for name, score in head_patterns.look(model, material.repeated, linked).items()}
    control = {name: score.mean(0) for name, score in head_patterns.look(model, material.fresh, linked).items()}
    assert float(found["previous_token"][0, 0]) > 0.99
    # A token sees itself and its earlier occurrence alike.
    assert float(found["duplicate_token"][0, 1]) == pytest.approx(0.5, abs=1e-3)
    assert float(found["induction"][1, 0]) > 0.99
    assert float(control["duplicate_token"][0, 1]) < 0.01 and float(control["induction"][1, 0]) < 0.2
    copies = head_patterns.copies(model, material).mean(0)
    assert float(copies[1, 0]) > 0.95 and float(copies[0].abs().max()) == 0
    shuffled = head_patterns.shuffled_list(model, IDS, 5)
    steps = head_patterns.steps(model, shuffled, IDS).mean(0)
    assert float(steps[1, 1]) == pytest.approx(1, abs=1e-3) and float(steps[0].max()) == 0


def test_chance_scores_are_what_heads_of_random_weights_get() -> None:
    scores = []
    for seed in range(12):
        model = GPT(ModelConfig(n_layers=2, d_model=32, n_ctx=40, d_head=8, d_vocab=40, n_heads=4, seed=seed))
        tokens = torch.arange(40)
        material = head_patterns.random_sequences(model, 4, length=8, seed=seed)
        scores.append([
            float(head_weights.duplicate_token(model, tokens).mean()),
            float(head_weights.copying(model, tokens).mean()),
            float(head_patterns.copies(model, material).mean()),
            float(head_weights.hits(model, tokens, tokens, top=4).mean()) - 0.1,
        ])  # fmt: skip
    means = torch.tensor(scores).mean(0)
    assert float(means.abs().max()) < 0.06, means


def test_links_are_those_of_a_loop() -> None:
    tokens = torch.tensor([[5, 2, 5, 2, 2, 9], [1, 1, 3, 1, 0, 0]])
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    found = head_patterns.links(tokens, mask)
    for row in range(2):
        for query in range(6):
            for key in range(6):
                inside = bool(mask[row, query]) and 0 < key < query
                same = inside and bool(tokens[row, query] == tokens[row, key])
                after = inside and key > 1 and bool(tokens[row, query] == tokens[row, key - 1])
                expected = {"previous_token": inside and key == query - 1, "duplicate_token": same, "induction": after}
                assert {name: bool(of[row, query, key]) for name, of in found.items()} == expected


def test_attention_along_links_of_padded_prompts_is_that_of_each_alone() -> None:
    model = make("llama_gqa")
    tokens = [[4, 7, 8, 7, 8, 3], [5, 6, 6, 1]]
    pairs = interp.PromptPairs.from_tokens(tokens, answers=[(0, 1), (0, 1)])
    together = head_patterns.of_prompts(model, pairs)
    for at in range(2):
        alone = head_patterns.of_prompts(model, pairs[at])
        for name, (value, even) in together.items():
            torch.testing.assert_close(value[at], alone[name][0][0], rtol=1e-4, atol=1e-5, equal_nan=True)
            torch.testing.assert_close(even[at], alone[name][1][0], equal_nan=True)
    value, even = together["duplicate_token"]
    _, cache = model.run_with_cache(pairs.clean[:1])
    close(value[0, 1], (cache["pattern", 1][0, :, 3, 1] + cache["pattern", 1][0, :, 4, 2]).detach() / 2)
    assert float(even[0]) == pytest.approx((1 / 4 + 1 / 5) / 2)


def test_standing_counts_what_is_lower_and_higher() -> None:
    values = torch.tensor([[4.0, 1.0, 1.0, 3.0], [2.0, 2.0, 2.0, 2.0]])
    assert head_weights.standing(values, values).tolist() == [pytest.approx([1, -2 / 3, -2 / 3, 1 / 3]), [0, 0, 0, 0]]


@pytest.mark.parametrize("kind", SUMS)
def test_every_kind_of_model_has_scores_within_their_range_or_a_reason(kind: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = make(kind).to(dtype)
        tokens = torch.arange(5, 20)
        shape = (2, model.cfg.n_heads)
        if kind == "no_positions":
            with pytest.raises(InterpError, match="no positions"):
                head_weights.previous_token(model, tokens, length=8)
            before = torch.rand(shape)
        else:
            before = head_weights.previous_token(model, tokens, length=8)
            assert before.shape == shape and 0 <= float(before.min()) <= float(before.max()) <= 1
        for score in (head_weights.duplicate_token(model, tokens), head_weights.induction(model, tokens, before)):
            assert score.shape == shape and score.dtype == torch.float32 and float(score.abs().max()) <= 1
        if kind == "attn_only":
            with pytest.raises(InterpError, match="answers with another one of 11"):
                head_weights.copying(model, tokens)
        else:
            assert float(head_weights.copying(model, tokens).abs().max()) <= 1
            assert head_weights.hits(model, tokens, tokens, top=29).eq(1).all()
        directions = head_circuits.singular_tokens(model, 1, 0, directions=2, top=3)
        assert len(directions) == 2 * 2 * 3 and directions["value"].notna().all()


def test_the_directions_of_a_copying_head_read_and_write_the_same_tokens() -> None:
    table = head_circuits.singular_tokens(handmade(), 1, 1, directions=V, top=1)
    strongest = table.pivot(index="direction", columns="side", values="token").astype(int)
    assert ((strongest["reads"] + 1) % V == strongest["writes"]).all()  # this head maps every token to the next
    assert table["share"].iloc[0] == pytest.approx(1 / V)


def test_the_toy_models_circuit_is_told_from_its_weights() -> None:
    model = interp.load("toy", device="cpu")
    tokens = torch.arange(1, 64)
    before = head_weights.previous_token(model, tokens, length=41)
    head = int(before[0].argmax())
    assert float(before[0, head]) > 0.5
    found = head_weights.induction(model, tokens, before - head_weights.even_attention(model, 41))
    assert float(found[1].min()) > 0.9
    assert float(head_weights.copying(model, tokens)[1].min()) > 0.9
    k = head_circuits.composition(model, "k")[0, :, 1]
    assert int(k.mean(-1).argmax()) == head and float(k[head].min()) > 2 * head_circuits.chance_composition(model)


class Strange(HookedModel):
    """A model whose weights lie elsewhere."""

    __init__ = forward = derive = head_results = norm_before = W_U = b_O = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m: head_circuits.composition(m, "o"), UnknownName, "choose from 'q', 'k', 'v'"),
        (lambda m: head_circuits.ov(m, 2), UnknownName, "layer 2 is not one of this model's 2 layers"),
        (lambda m: head_circuits.singular_tokens(m, 0, 9), UnknownName, "head 9 is not one of this model's 4"),
        (lambda m: head_weights.previous_token(m, IDS, length=99), PromptError, "from 3 to the model's context of 24"),
        (lambda m: head_weights.hits(m, IDS, IDS, among=IDS[:3]), PromptError, "not among those that compete"),
        (lambda m: head_patterns.random_sequences(m, 2, length=13), PromptError, "at most 12"),
        (lambda m: head_patterns.random_sequences(m, 0), PromptError, "n must be at least 1, not 0"),
        (lambda m: head_patterns.random_sequences(m, 1, bos=29), PromptError, "bos=29 is not a token id"),
        (lambda m: head_patterns.ordered_lists(m), InterpError, "no tokenizer"),
        (lambda m: head_circuits.readable(object.__new__(Strange)), InterpError, "weights of a Strange"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused(call: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call(make("gpt2"))  # type: ignore[operator]
