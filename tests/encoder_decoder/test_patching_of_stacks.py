"""Activation patching in both stacks: numbers of plain forwards, and tables and figures that say which stack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors

import interp
from analyses.activation_patching import plot, run, summary
from analyses.cli import main
from interp.edits import Edit, Variant
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import InterpError, PromptError, UnknownName
from interp.prompts.pairs import PromptPairs
from interp.tasks import from_file
from interp.text.tokenizer import Tokenizer
from tests.makers import STACKS, encoder_decoder, plain_forwards, stack_pairs

PAIRS = stack_pairs(decoder_differs=True)
ALIKE = PAIRS[[0]]  # whose positions line up


@pytest.fixture(params=STACKS, scope="module")
def model(request: pytest.FixtureRequest) -> EncoderDecoder:
    return encoder_decoder(request.param)


def where_of(row: dict[str, Any], site: str) -> dict[str, Any]:
    """Where the edit of a cell acts, by the columns of its row."""
    rows = "query" if "pattern" in site else "pos"
    heads = {"head": "head", "encoder_head": "head", "cross_head": "head", "kv_head": "kv_head"}
    axes = {**heads, "layer": "layer", "role": rows, "pos": rows, "query": "query", "key": "key"}
    # Beside a position a role only says what stands there.
    return {axis: row[name] for name, axis in axes.items() if name in row and not (name == "role" and "pos" in row)}


@pytest.mark.parametrize(
    ("site", "by", "column"),
    [
        ("encoder.resid_pre", "pos", "pos"),
        ("encoder.resid_pre", "role", "role"),
        ("encoder.z", "head", "encoder_head"),
        ("encoder.pattern", "head,query", "encoder_head"),
        ("decoder.z", "head", "head"),
        ("decoder.cross_attn.z", "head", "cross_head"),
        ("decoder.cross_attn.z", "head,pos", "cross_head"),
        ("decoder.cross_attn.k", "head,role", "kv_head"),
        ("decoder.cross_attn.pattern", "head,query,key", "cross_head"),
        ("decoder.mlp_out", "role", "role"),
        ("decoder.cross_attn_out", None, "layer"),
    ],
)
@torch.no_grad()
def test_a_cell_is_a_plain_forward_with_a_hook(model: EncoderDecoder, site: str, by: str | None, column: str) -> None:
    pairs = ALIKE if by and not {"pos", "query", "key"}.isdisjoint(by.split(",")) else PAIRS
    frame = run(model, pairs, site=site, by=by, progress=False)
    assert set(frame["site"]) == {site} and column in frame
    cells = frame["value"].to_numpy().reshape(-1, len(pairs))
    for at in range(0, len(cells), max(1, len(cells) // 4)):
        edit = Edit(site, where_of(frame.iloc[at * len(pairs)].to_dict(), site))
        found = plain_forwards(model, pairs, Variant([edit]), "corrupt", "clean")
        for value, logits, (right, wrong) in zip(cells[at], found, pairs.answers.tolist(), strict=True):
            assert value == pytest.approx(float(logits[right] - logits[wrong]), abs=2e-5 * float(logits.abs().max()))
    assert frame["effect"].abs().max() > 1e-3


def test_left_out_it_is_the_heads_of_all_three_attentions(model: EncoderDecoder) -> None:
    frame = run(model, PAIRS, progress=False)
    cfg = model.cfg
    own, other = cfg.encoder.n_layers * cfg.encoder.n_heads, cfg.decoder.n_layers * cfg.decoder.n_heads
    assert frame["site"].value_counts().to_dict() == {
        "encoder.z": 3 * own, "decoder.z": 3 * other, "decoder.cross_attn.z": 3 * other,
    }  # fmt: skip
    for site, column in (("encoder.z", "encoder_head"), ("decoder.z", "head"), ("decoder.cross_attn.z", "cross_head")):
        assert frame.loc[frame["site"] == site, column].notna().all()
        assert frame.loc[frame["site"] != site, column].isna().all()
    assert len(summary(frame)) == own + 2 * other
    assert [axes.get_title(loc="left") for axes in plot(frame).axes[:3]] == list(dict.fromkeys(frame["site"]))


def test_tokens_and_roles_are_those_of_the_sites_stack(model: EncoderDecoder) -> None:
    sites = "encoder.resid_pre,decoder.resid_pre,decoder.cross_attn.v"
    frame = run(model, ALIKE, site=sites, by="pos", progress=False)
    assert ALIKE.encoder is not None
    for site, pairs in (("encoder.resid_pre", ALIKE.encoder), ("decoder.resid_pre", ALIKE)):
        own = frame[(frame["site"] == site) & (frame["layer"] == 0)]
        assert tuple(own["token"]) == pairs.str_tokens[0]
        assert {at: role for at, role in zip(own["pos"], own["role"], strict=True) if role} == {
            at: role for role, at in pairs.roles[0].items()
        }
    values = frame[(frame["site"] == "decoder.cross_attn.v") & (frame["layer"] == 1)]
    assert tuple(values["token"]) == ALIKE.encoder.str_tokens[0]
    table = summary(frame).set_index(["site", "layer", "pos"])
    assert table.loc[("decoder.resid_pre", 1, 2), "token"] == ALIKE.str_tokens[0][2]
    assert table.loc[("encoder.resid_pre", 1, 2), "token"] == ALIKE.encoder.str_tokens[0][2]
    pattern = run(model, ALIKE, site="decoder.cross_attn.pattern", by="query,key", progress=False)
    cell = pattern[(pattern["query"] == 1) & (pattern["key"] == 5)].iloc[0]
    assert (cell["query_token"], cell["key_token"]) == (ALIKE.str_tokens[0][1], ALIKE.encoder.str_tokens[0][5])


@pytest.mark.parametrize(
    ("site", "by", "down", "across"),
    [
        ("encoder.resid_pre", "role", "layer (encoder)", "role (encoder)"),
        ("decoder.resid_pre", "pos", "layer (decoder)", "position (decoder)"),
        ("decoder.cross_attn.k", "pos", "layer (decoder)", "position (encoder)"),
        ("decoder.cross_attn.z", "head", "layer (decoder)", "cross-attention head"),
        ("encoder.z", "head", "layer (encoder)", "encoder head"),
        ("decoder.cross_attn.pattern", "query,key", "query (decoder)", "key (encoder)"),
        ("encoder.resid_pre,decoder.resid_pre", "pos", "layer", "position (of its stack)"),
    ],
)
def test_a_figure_says_which_stack(site: str, by: str, down: str, across: str) -> None:
    model = encoder_decoder("t5")
    figure = plot(run(model, ALIKE, site=site, by=by, progress=False))
    assert figure.axes[0].get_ylabel() == down
    assert across in {axes.get_xlabel() for axes in figure.axes}


def test_heads_of_a_figure_have_the_names_of_their_attention() -> None:
    model = encoder_decoder("pre_norm")
    figure = plot(run(model, ALIKE, site="encoder.z,decoder.cross_attn.k", by="head,pos", progress=False))
    names = {label.get_text() for label in figure.axes[0].get_yticklabels()}
    assert {"E1H0", "L1KV1"} <= names  # two heads of the decoder read a key, and the table does not say which
    figure = plot(run(model, ALIKE, site="decoder.z,decoder.k", by="head,pos", progress=False))
    assert {"L1H0", "L1H3"} <= {label.get_text() for label in figure.axes[0].get_yticklabels()}


def test_what_is_of_one_stack_is_refused_with_what_to_use(model: EncoderDecoder) -> None:
    with pytest.raises(InterpError, match=r"is of one stack.*site='encoder\.z' and by='head,pos'"):
        run(model, PAIRS, granularity="attn_head_out_by_pos", progress=False)
    with pytest.raises(UnknownName, match=r"which stack's 'z'\? .* 'decoder\.z' or 'encoder\.z'"):
        run(model, PAIRS, site="z", progress=False)
    with pytest.raises(PromptError, match="these of the decoder have none"):
        run(model, stack_pairs(), site="decoder.resid_pre", by="role", progress=False)
    with pytest.raises(PromptError, match=r"of the encoder have 4 to 6 tokens.*pairs\[pairs\.encoder\.lengths == 6\]"):
        run(model, PAIRS, site="encoder.resid_pre", by="pos", progress=False)


WORDS = ["translate", ":", "the", "house", "is", "small", "large", "Das", "Haus", "ist", "klein", "groß"]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and its tokenizer, and a file of prompts."""
    folder = tmp_path_factory.mktemp("reader")
    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS)]
    backend = Backend(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    backend.add_special_tokens(pieces[:3])
    model = encoder_decoder("t5")
    model.tokenizer = Tokenizer(backend, eos_token_id=1, pad_token_id=0)
    interp.save(model, folder)
    start = "translate : the house is"
    rows = [("small", "large", " klein", " groß"), ("large", "small", " groß", " klein")]
    lines = [f"{start} {one},{start} {other},Das Haus ist,{right},{wrong}, {one}" for one, other, right, wrong in rows]
    header = "clean,corrupt,decoder,answer,wrong_answer,role:size"
    (folder / "pairs.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder


def test_a_file_says_what_the_decoder_continues(reader: Path) -> None:
    model = interp.load(reader)
    pairs = from_file(model, reader / "pairs.csv")
    by_hand = PromptPairs.from_text(
        model,
        ["translate : the house is small", "translate : the house is large"],
        ["translate : the house is large", "translate : the house is small"],
        answers=[(" klein", " groß"), (" groß", " klein")],
        roles=[{"size": " small", "END": -1}, {"size": " large", "END": -1}],
        decoder="Das Haus ist",
    )
    assert pairs.digest() == by_hand.digest()
    ids = [{"clean": [3, 4], "corrupt": [3, 5], "answer": 6, "wrong_answer": 7, "decoder": [0, 8]}]
    (reader / "ids.json").write_text(json.dumps(ids))
    assert from_file(model, reader / "ids.json").clean.tolist() == [[0, 8]]
    (reader / "ids.json").write_text(json.dumps([{**ids[0], "decoder": None}]))
    assert from_file(model, reader / "ids.json").clean.tolist() == [[1]]  # the start token
    (reader / "ids.json").write_text(json.dumps([{**ids[0], "decoder": "Das"}]))
    with pytest.raises(PromptError, match="column 'decoder': it must be a list of ids, as the prompts are"):
        from_file(model, reader / "ids.json")


@pytest.mark.parametrize(
    ("words", "column"),
    [
        (["--site", "encoder.resid_pre", "--by", "role"], "role"),
        ([], "encoder_head"),
    ],
)
def test_the_command_line_patches_either_stack(reader: Path, tmp_path: Path, words: list[str], column: str) -> None:
    base = ["run", "activation-patching", "--model", str(reader), "--task", str(reader / "pairs.csv"), "--quiet"]
    result = CliRunner().invoke(main, [*base, *words, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    saved = pd.read_csv(tmp_path / "activation-patching.csv")
    model = interp.load(reader)
    options = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    own: Any = run(model, from_file(model, reader / "pairs.csv"), progress=False, **options)
    assert column in saved and saved["value"].tolist() == pytest.approx(own["value"].tolist(), rel=1e-4, abs=1e-5)
    refused = CliRunner().invoke(main, [*base, "--granularity", "resid_pre"])
    assert refused.exit_code == 2 and "give site and by" in refused.output and len(refused.output.splitlines()) == 1
