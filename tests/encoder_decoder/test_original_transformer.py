"""The Transformer of "Attention Is All You Need" is that of torch, and an encoder-decoder reads and writes text."""

from __future__ import annotations

import math

import pytest
import tokenizers
import torch
from torch import Tensor, nn

import interp
from interp.config import EncoderDecoderConfig
from interp.encoder_decoder.model import EncoderDecoder
from interp.encoder_decoder.stack import Stack
from interp.errors import PromptError
from interp.prompts.pairs import PromptPairs
from interp.text.tokenizer import Tokenizer
from tests.makers import close, with_constants

WORDS = ["<pad>", "</s>", "<unk>", "the", "house", "is", "small", "das", "Haus", "ist", "klein", "big"]


@pytest.fixture(scope="module")
def model() -> EncoderDecoder:
    cfg = EncoderDecoderConfig.original_transformer(
        d_vocab=len(WORDS), n_ctx=16, n_layers=2, d_model=16, n_heads=4, d_mlp=24, decoder_start_token_id=0, seed=1,
        initializer_range=0.3,
    )  # fmt: skip
    vocab = {word: at for at, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(WORDS[:3])
    ends = {"single": "$A </s>", "pair": "$A $B </s>", "special_tokens": [("</s>", 1)]}
    backend.post_processor = tokenizers.processors.TemplateProcessing(**ends)
    return with_constants(EncoderDecoder(cfg, Tokenizer(backend, eos_token_id=1, pad_token_id=0)))


def theirs(model: EncoderDecoder) -> nn.Transformer:
    """The same in torch, whose layers have biases that are 0 here, and norms at the end that are left out."""
    cfg = model.cfg.decoder
    sizes = (cfg.d_model, cfg.n_heads, cfg.d_mlp)
    encoder_layer = nn.TransformerEncoderLayer(*sizes, dropout=0.0, batch_first=True)
    decoder_layer = nn.TransformerDecoderLayer(*sizes, dropout=0.0, batch_first=True)
    whole = nn.Transformer(
        cfg.d_model,
        cfg.n_heads,
        custom_encoder=nn.TransformerEncoder(encoder_layer, 2, enable_nested_tensor=False),
        custom_decoder=nn.TransformerDecoder(decoder_layer, 2),
        batch_first=True,
    ).eval()
    with torch.no_grad():
        for stack, layers in ((model.encoder, whole.encoder.layers), (model.decoder, whole.decoder.layers)):
            copy_into(stack, layers)
    return whole


def copy_into(stack: Stack, layers: nn.ModuleList) -> None:
    for block, layer in zip(stack.blocks, layers, strict=True):
        cross = [(block.cross_attn, layer.multihead_attn)] if hasattr(layer, "multihead_attn") else []
        for ours, attention in [(block.attn, layer.self_attn), *cross]:
            attention.in_proj_weight.copy_(ours.W_qkv)
            attention.out_proj.weight.copy_(ours.W_z)
            attention.in_proj_bias.zero_()
            attention.out_proj.bias.zero_()
        norms = [block.ln1, block.ln_cross, block.ln2] if cross else [block.ln1, block.ln2]
        for at, norm in enumerate(norms, start=1):
            getattr(layer, f"norm{at}").weight.copy_(norm.w)
            getattr(layer, f"norm{at}").bias.copy_(norm.b)
        layer.linear1.weight.copy_(block.mlp.W_up)
        layer.linear1.bias.copy_(block.mlp.b_up)
        layer.linear2.weight.copy_(block.mlp.W_down)
        layer.linear2.bias.copy_(block.mlp.b_down)


def embedded(model: EncoderDecoder, tokens: Tensor) -> Tensor:
    """Token embeddings times sqrt(d_model), with sines at even channels and cosines at odd ones."""
    d_model = model.cfg.d_model
    table = torch.zeros(tokens.shape[1], d_model)
    for pos in range(tokens.shape[1]):
        for i in range(0, d_model, 2):
            table[pos, i], table[pos, i + 1] = (
                math.sin(pos / 10000 ** (i / d_model)),
                math.cos(pos / 10000 ** (i / d_model)),
            )
    return model.encoder.embed.W_E[tokens] * math.sqrt(d_model) + table


@torch.no_grad()
def test_it_is_the_transformer_of_torch(model: EncoderDecoder) -> None:
    source, prefix = torch.tensor([[3, 4, 5, 6, 1], [3, 4, 5, 11, 1]]), torch.tensor([[0, 7, 8], [0, 9, 9]])
    mask = nn.Transformer.generate_square_subsequent_mask(3)
    out = theirs(model)(embedded(model, source), embedded(model, prefix), tgt_mask=mask)
    close(model(source, prefix), out @ model.encoder.embed.W_E.T)
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(
        parameter.numel() for name, parameter in model.named_parameters() if "unembed" not in name
    )


def test_texts_go_into_both_stacks_and_come_out(model: EncoderDecoder) -> None:
    ids = torch.tensor([[3, 4, 5, 6, 1]])
    assert torch.equal(model.to_tokens("the house is small"), ids)
    close(model("the house is small", "das Haus"), model(ids, torch.tensor([[0, 7, 8]])))
    logits, cache = model.run_with_cache(["the house is small", "the house"], ["das", "das Haus"])
    assert logits.shape == (2, 3, len(WORDS))
    close(logits[1], model("the house", "das Haus")[0])
    assert not cache["decoder.cross_attn.pattern", 0][1, :, :, 3:].any()
    said = model.generate("the house is small", 4, do_sample=False)
    several = model.generate(["the house is small", "the house"], 4, do_sample=False)
    assert isinstance(said, str) and several[0] == said
    longer = model.generate("the house is small", 2, decoder_input="das Haus", do_sample=False)
    assert longer.startswith("das Haus")
    with pytest.raises(PromptError, match="belongs to token ids"):
        model("the house", "das", decoder_attention_mask=torch.ones(1, 2))


def test_pairs_of_texts(model: EncoderDecoder) -> None:
    pairs = PromptPairs.from_text(
        model,
        ["the house is small", "the house is small"],
        ["the house is big", "the house is big"],
        answers=[(" klein", " ist"), (" klein", " ist")],
        roles={"size": -2},
        decoder="das Haus ist",
    )
    assert pairs.encoder is not None and pairs.encoder.roles[0] == {"size": 3}
    assert pairs.clean.tolist() == [[0, 7, 8, 9]] * 2 and pairs.answers.tolist() == [[10, 9]] * 2
    assert pairs.str_tokens[0][1:] == ("das", "Haus", "ist")
    alone = PromptPairs.from_text(model, "the house", answers=("das", "Haus"))
    assert alone.clean.tolist() == [[0]] and alone.answers.tolist() == [[7, 8]]
    variants = [interp.Variant([interp.Edit("encoder.resid_pre", {"layer": 1, "pos": "size"})])]
    frame = interp.sweep(model, pairs, variants, progress=False)
    assert frame["effect"].notna().all()
    with pytest.raises(PromptError, match="there are 2 clean prompts but 1 texts of the decoder"):
        PromptPairs.from_text(model, ["the", "house"], answers=[(3, 4)] * 2, decoder=["das"])
