"""`interp.save`: what is loaded again is the same model, to the bit; what was damaged since is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from checkpoints import CASES, ENCODERS, MIXTURES, STATE_SPACE, attention_of, relative_difference, tiny, tokens_for
from makers import make

import interp
from interp.errors import ConfigError, OutputError, UnknownName, WeightsError
from interp.weights.huggingface.write import computed

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    **{case: given for case, given in CASES.items() if case not in MIXTURES and given[0] not in ENCODERS},
    **{name: (name, options) for name, options in STATE_SPACE.items()},
}
TOKENS = torch.randint(0, 29, (3, 7), generator=torch.Generator().manual_seed(0))
TEXTS = ["w1 w2", " w3  w4", "w1<end>w2", "never seen", "w0w1", ""]


def word_tokenizer(*, special: bool = True) -> interp.Tokenizer:
    """Words and a beginning and an end of the text, which are special tokens unless told otherwise."""
    vocab = {f"w{i}": i for i in range(20)} | {"<begin>": 20, "<end>": 21}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="w0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if special:
        backend.add_special_tokens(["<begin>", "<end>"])
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<begin> $A", pair="<begin> $A $B", special_tokens=[("<begin>", 20)]
    )
    return interp.Tokenizer(backend, bos_token_id=20, eos_token_id=21, pad_token_id=3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_model_comes_back_to_the_bit(any_model: interp.GPT, dtype: str, tmp_path: Path) -> None:
    model = any_model.to(getattr(torch, dtype))
    assert interp.save(model, tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    again = interp.load(tmp_path / "new" / "folder", dtype=dtype)
    assert again.cfg == model.cfg and again.tokenizer is None
    assert torch.equal(again(TOKENS), model(TOKENS))


@pytest.mark.parametrize("case", [case for case, (family, _) in FAMILIES.items() if family != "zamba2"])
def test_every_family_is_a_folder_that_transformers_opens(case: str, tmp_path: Path) -> None:
    theirs = tiny(*FAMILIES[case])
    model, tokens = interp.load(theirs), tokens_for(theirs)
    with torch.no_grad():
        for parameter in model.parameters():  # trained on
            parameter.add_(0.01 * torch.randn_like(parameter))
    interp.save(model, tmp_path, format="huggingface")
    again = interp.load(tmp_path)
    opened, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation=attention_of(FAMILIES[case][1])
    )
    assert computed(again.cfg) == computed(model.cfg)
    assert not (report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"])
    with torch.no_grad():
        assert torch.equal(again(tokens), model(tokens))
        assert relative_difference(model(tokens), opened.eval()(tokens).logits) < 1e-5


def test_shared_blocks_are_saved_in_our_own_format_alone(tmp_path: Path) -> None:
    model = make("shared_blocks")
    with pytest.raises(ConfigError, match=r"shared blocks.*is not written as a Hugging Face folder.*own format"):
        interp.save(model, tmp_path, format="huggingface")
    again = interp.load(interp.save(model, tmp_path))
    first, later = again.blocks[0], again.blocks[3]
    assert later.attn.W_qkv is first.attn.W_qkv and later.mlp.W_down is first.mlp.W_down and later.ln1.w is first.ln1.w
    assert later.attn.adapters["Q"].W_wide is not first.attn.adapters["Q"].W_wide
    assert len(list(again.parameters())) == len(list(model.parameters()))


def test_the_number_type_of_a_model_is_that_of_its_hugging_face_folder(tmp_path: Path) -> None:
    model = make("llama").to(torch.bfloat16)
    interp.save(model, tmp_path, format="huggingface")
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert opened.dtype == torch.bfloat16
    assert torch.equal(interp.load(opened)(TOKENS), model(TOKENS))


@pytest.mark.parametrize(
    ("kind", "because"),
    [
        ("attn_only", r"where this model has \('attn', 'attn'\)"),
        ("gptj_pairs", "rotary_adjacent_pairs=False where this model has True"),
        ("sinusoidal", "positional_embedding_type='standard' where this model has 'sinusoidal'"),
        ("no_norm_relu", "normalization_type='LN' where this model has None"),
        ("hybrid", "where this model has \\('mamba2', 'attn\\+mlp', 'mamba\\+mlp'\\)"),
    ],
)
def test_what_no_family_computes_is_refused_and_leaves_no_folder(kind: str, because: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"no Hugging Face family computes what this model does; .*{because}"):
        interp.save(make(kind), tmp_path / "model", format="huggingface")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("format", ["interp", "huggingface"])
def test_the_tokenizer_comes_back_as_it_is(format: Any, tmp_path: Path) -> None:
    model = make("llama")
    model.tokenizer = word_tokenizer()
    model.tokenizer.backend.add_special_tokens(["w3"])  # the padding token
    model.tokenizer.further_eos_token_ids = (3,)
    interp.save(model, tmp_path, format=format)
    again = interp.load(tmp_path).tokenizer
    assert again is not None and again.digest() == model.tokenizer.digest()
    for text in TEXTS:
        assert again.encode(text) == model.tokenizer.encode(text)
    assert (again.bos_token_id, again.eos_token_id, again.pad_token_id) == (20, 21, 3)
    assert again.eos_token_ids == (21, 3)
    if format == "huggingface":
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        for text in TEXTS:
            assert theirs(text)["input_ids"] == model.tokenizer.encode(text)
        generation = transformers.GenerationConfig.from_pretrained(tmp_path)
        assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (20, [21, 3], 3)


def test_an_ordinary_word_as_end_of_text_is_kept_in_our_format_and_refused_in_theirs(tmp_path: Path) -> None:
    model = make("llama")
    model.tokenizer = word_tokenizer(special=False)
    interp.save(model, tmp_path / "ours")
    again = interp.load(tmp_path / "ours").tokenizer
    assert again is not None and again.digest() == model.tokenizer.digest()
    assert [again.encode(text) for text in TEXTS] == [model.tokenizer.encode(text) for text in TEXTS]
    with pytest.raises(OutputError, match=r"bos_token '<begin>' \(id 20\) is an ordinary entry of the vocabulary"):
        interp.save(model, tmp_path / "theirs", format="huggingface")
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("format", ["interp", "huggingface"])
def test_a_flipped_bit_anywhere_is_refused_by_the_name_of_its_file(format: Any, tmp_path: Path) -> None:
    model = make("llama")
    model.tokenizer = word_tokenizer()
    model.tokenizer.backend.add_special_tokens(["w3"])
    interp.save(model, tmp_path, format=format)
    names = sorted(file.name for file in tmp_path.iterdir() if file.name != "interp.json")
    assert "model.safetensors" in names and "tokenizer.json" in names
    for name in names:
        content = (tmp_path / name).read_bytes()
        for at in (0, len(content) // 2, len(content) - 2):
            (tmp_path / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            with pytest.raises(WeightsError, match=rf"{name} is not as interp.save wrote it: its SHA-256 is"):
                interp.load(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(WeightsError, match=rf"incomplete: interp.json lists {name}"):
            interp.load(tmp_path)
        (tmp_path / name).write_bytes(content)
    interp.load(tmp_path)
    for broken in ({}, {"sha256": 3}, {"sha256": {"../x": "0" * 64}}, {"sha256": {"cfg.json": "0"}}):
        (tmp_path / "interp.json").write_text(json.dumps(broken))
        with pytest.raises(WeightsError, match=r"interp.json is damaged"):
            interp.load(tmp_path)


def test_a_second_save_replaces_the_first_and_leaves_what_others_wrote(tmp_path: Path) -> None:
    first, second = make("llama"), make("gpt2")
    first.tokenizer = word_tokenizer()
    (tmp_path / "notes.txt").write_text("mine")
    interp.save(first, tmp_path)
    interp.save(second, tmp_path)
    again = interp.load(tmp_path)
    assert again.cfg == second.cfg and again.tokenizer is None
    assert torch.equal(again(TOKENS), second(TOKENS))
    interp.save(first.to(torch.float64), tmp_path)
    assert interp.load(tmp_path).cfg == first.cfg
    first.tokenizer.backend.add_special_tokens(["w3"])
    interp.save(first, tmp_path, format="huggingface")
    assert interp.load(tmp_path).source.kind == "huggingface"
    expected = {"notes.txt", "interp.json", "config.json", "generation_config.json", "model.safetensors"}
    assert {file.name for file in tmp_path.iterdir()} == expected | {"tokenizer.json", "tokenizer_config.json"}


def test_a_save_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("gpt2")
    interp.save(model, tmp_path / "model")
    before = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    for folder in (tmp_path / "model", tmp_path / "new"):
        with pytest.raises(OutputError, match=rf"a model cannot be written to '{folder}': No space left"):
            interp.save(make("llama"), folder)
    assert {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_a_save_that_is_cut_off_half_way_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    old, new = make("llama"), make("gpt2")
    old.tokenizer = word_tokenizer()
    real = os.replace
    for kept in range(3):  # moves that happen before the process is killed
        folder = tmp_path / str(kept)
        interp.save(old, folder)
        moves = iter(range(kept))

        def cut(source: Any, target: Any, moves: Any = moves) -> None:
            if next(moves, None) is None:
                raise KeyboardInterrupt
            real(source, target)

        monkeypatch.setattr(os, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            interp.save(new, folder)
        monkeypatch.setattr(os, "replace", real)
        with pytest.raises(WeightsError):
            interp.load(folder)
        interp.save(new, folder)
        assert torch.equal(interp.load(folder)(TOKENS), new(TOKENS))


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    model = make("gpt2")
    with pytest.raises(UnknownName, match=r"no format matches 'hugingface'; did you mean 'huggingface'"):
        interp.save(model, tmp_path, format="hugingface")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"save takes a model of interp, not Linear"):
        interp.save(torch.nn.Linear(2, 2), tmp_path)  # type: ignore[arg-type]
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OutputError, match=r"holds config.json, which interp.save did not write; give a new folder"):
        interp.save(model, tmp_path)
    for folder in (tmp_path / "config.json", tmp_path / "a\0b"):
        with pytest.raises(OutputError, match=r"a model cannot be written to"):
            interp.save(model, folder)
    with torch.no_grad():
        model.embed.W_E[0, 0] = float("nan")
    with pytest.raises(WeightsError, match=r"cannot be saved: 'embed.W_E' holds NaN or infinite values"):
        interp.save(model, tmp_path / "new")
