"""Files that are wrong in every way that was found: one sentence with the file's name, nothing built or guessed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import safetensors.torch
import torch
from checkpoints import CASES, STATE_SPACE, change_weights, gpt2, tiny, word_tokenizer
from gguf_files import GGUF_LLAMA, byte_level, llama_weights, write
from makers import make

import interp
from interp.config import ModelConfig, RopeScaling
from interp.errors import ConfigError, InterpError, UnknownName, WeightsError
from interp.weights.gguf.tokenizer import PRE_TOKENIZERS
from interp.weights.transformer_lens import load_transformer_lens, to_transformer_lens

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 548105171\n"
DEEP = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A saved model of a case, by its name, made once; copy it before you change it."""
    made: dict[str, Path] = {}

    def folder(case: str) -> Path:
        if case not in made:
            made[case] = tmp_path_factory.mktemp(case)
            kind, options = CASES[case] if case in CASES else (case, STATE_SPACE[case])
            tiny(kind, options).save_pretrained(made[case])
        return made[case]

    return folder


@pytest.fixture
def changed(folders: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a saved model with some options of its config.json replaced."""

    def copy(case: str, **options: Any) -> Path:
        for file in folders(case).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, **options}))
        return tmp_path

    return copy


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        ("gpt2", {"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false, not 'false'"),
        ("gpt2", {"scale_attn_weights": 1}, "scale_attn_weights must be true or false, not 1"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": "false"}, "scale_attn_by_inverse_layer_idx='false' is not supp"),
        ("gpt2", {"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon must be a finite number > 0, not nan"),
        ("gpt2", {"n_inner": "128"}, "n_inner must be an integer >= 1, not '128'"),
        ("gpt2", {"n_head": 4.0}, "n_head must be an integer >= 1, not 4.0"),
        ("gpt2", {"activation_function": ["gelu"]}, "activation_function=\\['gelu'\\] is not supported"),
        ("gpt_neox", {"use_parallel_residual": "false"}, "use_parallel_residual must be true or false"),
        ("gpt_neox", {"attention_bias": None}, "attention_bias must be true or false, not None"),
        ("llama", {"rms_norm_eps": -1}, "rms_norm_eps must be a finite number > 0, not -1"),
        ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number > 0, not nan"),
        ("llama", {"rope_parameters": {"rope_theta": 0}}, "rope_theta must be a finite number > 0, not 0"),
        ("llama", {"rope_parameters": None, "rope_theta": 0.0}, "rope_theta must be a finite number > 0, not 0.0"),
        ("llama", {"rope_parameters": ["x"]}, "rope_parameters must be an object, not \\['x'\\]"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "has no entry 'factor'"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": "4"}}, "factor must be a finite number > 0"),
        ("llama", {"rope_parameters": {"rope_type": ["x"]}}, "rope_type=\\['x'\\] is not supported"),
        ("llama", {"attention_bias": "false"}, "attention_bias must be true or false, not 'false'"),
        ("llama", {"mlp_bias": "no"}, "mlp_bias must be true or false, not 'no'"),
        ("llama", {"num_key_value_heads": "2"}, "num_key_value_heads must be an integer"),
        ("llama", {"head_dim": 8.5}, "head_dim must be an integer >= 1, not 8.5"),
        ("llama", {"model_type": ["llama"]}, "model_type \\['llama'\\] is not supported"),
        ("llama", {"initializer_range": "x"}, "initializer_range must be a finite number >= 0, not 'x'"),
        ("llama", {"rms_norm_eps": 10**400}, "rms_norm_eps must be a finite number > 0, not 1000"),
        ("mistral", {"sliding_window": "no"}, "sliding_window must be an integer"),
        ("qwen2", {"use_sliding_window": "false"}, "use_sliding_window must be true or false"),
        ("qwen2", {"layer_types": 3}, "layer_types must be a list with the kind of each layer, not 3"),
        ("mamba", {"use_bias": "false"}, "use_bias must be true or false"),
        ("mamba2", {"time_step_limit": [True, 2]}, "time_step_limit must be the smallest and the largest step size"),
        ("bamba", {"attn_layer_indices": 1}, "attn_layer_indices must be a list of layers, not 1"),
        ("bamba", {"attn_layer_indices": [1.0]}, "attn_layer_indices has 1.0, expected layers below 4"),
        ("jamba", {"attn_layer_offset": 1.0}, "attn_layer_offset must be an integer >= 0, not 1.0"),
        ("jamba", {"num_experts": "1"}, "num_experts must be an integer"),
        ("nemotron_h", {"layers_block_type": {"mamba": 1}}, "layers_block_type must be a list"),
        ("nemotron_h", {"layers_block_type": [["mamba"]]}, "no kind of layer matches"),
    ],
)
def test_an_option_of_a_wrong_kind_is_named_with_its_file(
    case: str, options: dict[str, Any], message: str, changed: Callable[..., Path]
) -> None:
    with pytest.raises(InterpError, match=rf"config.json: .*{message}"):
        interp.load(changed(case, **options))


def test_a_family_that_is_not_here_names_the_bridge(changed: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'gemma9'.*interp.load\(TransformerBridge.boot_transformers\(NAME\)\)"):
        interp.load(changed("llama", model_type="gemma9"))
    with pytest.raises(ConfigError) as refused:
        interp.load(changed("llama", model_type="gemma9"))
    lines = [line.strip() for line in str(refused.value).splitlines()[1:]]
    assert len(lines) == 3 and lines[0] == "import interp"
    compile("\n".join(lines), "the lines that load it", "exec")
    path = write(tmp_path / "gemma9.gguf", "gemma9", {}, {})
    with pytest.raises(ConfigError, match=r"'gemma9' is not supported.*TransformerBridge.boot_transformers"):
        interp.load(path)


@pytest.mark.parametrize(
    ("case", "option"),
    [
        ("gpt2", "n_layer"),
        ("llama", "num_hidden_layers"),
        ("mamba", "num_hidden_layers"),
        ("bamba", "num_hidden_layers"),
    ],
)
@pytest.mark.parametrize("number", [5, 10_000, 10**12])
def test_layers_that_no_file_holds_are_counted_before_any_is_made(
    case: str, option: str, number: int, changed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed(case, **{option: number})
    monkeypatch.setattr(interp.ModelConfig, "__post_init__", lambda self: pytest.fail("a configuration was made"))
    held = 4 if case == "bamba" else 2
    with pytest.raises(WeightsError, match=rf"have {held} layers, but their configuration has {number}"):
        interp.load(folder)


@pytest.mark.parametrize("number", [5, 10_000, 10**12])
def test_experts_that_no_file_holds_are_named_before_memory_is_filled(
    number: int, changed: Callable[..., Path]
) -> None:
    with pytest.raises(WeightsError, match=r"do not fit its config.json: missing: .*experts"):
        interp.load(changed("mixtral", num_local_experts=number))


def test_our_own_format_and_a_list_of_layers_are_counted_too(changed: Callable[..., Path], tmp_path: Path) -> None:
    folder = changed("nemotron_h", layers_block_type=["mamba"] * 10_000, num_hidden_layers=10_000)
    with pytest.raises(WeightsError, match=r"their configuration has 10000"):
        interp.load(folder)
    model = make("llama")
    with pytest.raises(WeightsError, match=r"have 2 layers, but their configuration has 1000000000"):
        load_transformer_lens(model.cfg.to_dict() | {"n_layers": 10**9}, to_transformer_lens(model))


@pytest.mark.parametrize("number", [10_000, 10**9, 2**47, 10**30])
@pytest.mark.parametrize(
    "option", ["vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim"]
)
def test_sizes_are_held_against_the_header_before_memory_is_reserved(
    option: str, number: int, changed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = changed("llama", **{option: number})
    monkeypatch.setattr("interp.weights.build._reserve", lambda *_: pytest.fail("memory was reserved"))
    monkeypatch.setattr("interp.weights.files._from_safetensors", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(InterpError):
        interp.load(folder)


@pytest.mark.parametrize("kind", ["int8", "int64", "bool", "uint8", "float8_e4m3fn", "float8_e5m2"])
def test_numbers_that_are_no_floating_point_are_refused(
    kind: str, changed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = changed("gpt2")
    dtype = getattr(torch, kind)
    change_weights(folder, transformer__h__1__mlp__c_fc__weight=torch.ones(32, 128).to(dtype))
    with pytest.raises(
        WeightsError, match=r"'transformer.h.1.mlp.c_fc.weight'\) is of type \w+, expected one of float32"
    ):
        interp.load(folder)
    model = make("gpt2")
    state = to_transformer_lens(model)
    state["embed.W_E"] = torch.ones(29, 16).to(dtype)
    with pytest.raises(WeightsError, match=rf"'embed.W_E' is of type {kind}, expected one of float32.*\.float\(\)"):
        load_transformer_lens(model.cfg, state)
    state["unembed.W_U"] = state["embed.W_E"].T
    with pytest.raises(WeightsError, match=rf"is of type {kind}"):
        load_transformer_lens({**model.cfg.to_dict(), "tie_word_embeddings": True, "unembed_bias": True}, state)


def test_half_precision_that_overflows_does_not_blame_the_file(changed: Callable[..., Path]) -> None:
    folder = changed("gpt2")
    weight = torch.zeros(32, 128)
    weight[3, 5] = -70_000.0
    change_weights(folder, transformer__h__1__mlp__c_fc__weight=weight)
    with pytest.raises(
        WeightsError,
        match=r"holds values up to 70000, but float16 holds at most 65504; the file is sound: load it with",
    ):
        interp.load(folder, dtype="float16")
    for dtype in ("float32", "bfloat16"):
        assert interp.load(folder, dtype=dtype).blocks[1].mlp.W_in[3, 5] == torch.tensor(-70_000.0).to(
            getattr(torch, dtype)
        )
    weight[0, 0] = float("inf")
    change_weights(folder, transformer__h__1__mlp__c_fc__weight=weight)
    with pytest.raises(WeightsError, match=r"c_fc.weight'\) holds NaN or infinite values"):
        interp.load(folder, dtype="float16")


def test_tensors_that_overlap_are_refused(changed: Callable[..., Path], tmp_path: Path) -> None:
    folder = changed("gpt2")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    one, other = "transformer.h.0.ln_1.weight", "transformer.h.1.ln_1.weight"
    header[one]["data_offsets"] = header[other]["data_offsets"]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(WeightsError, match=r"model.safetensors is not a readable safetensors file"):
        interp.load(folder)


@pytest.fixture
def llama_gguf(tmp_path: Path) -> Callable[..., Path]:
    """A GGUF file of a tiny Llama with more metadata, and what is in it changed, if asked for."""

    def make_file(metadata: dict[str, Any] | None = None, offset: int = 0) -> Path:
        path = write(tmp_path / "llama.gguf", "llama", GGUF_LLAMA | (metadata or {}), llama_weights()[0])
        if offset:  # the second tensor of the table is said to lie elsewhere
            reader = gguf.GGUFReader(path)
            at, field = 0, reader.tensors[1].field
            at = int(field.offset + sum(part.nbytes for part in field.parts[:-1]))
            moved = int(field.parts[-1][0]) + offset
            content = path.read_bytes()
            path.write_bytes(content[:at] + moved.to_bytes(8, "little") + content[at + 8 :])
        return path

    return make_file


@pytest.mark.parametrize("offset", [-32, 32])
def test_tensors_of_a_gguf_that_overlap_or_leave_gaps_are_refused(offset: int, llama_gguf: Callable[..., Path]) -> None:
    interp.load(llama_gguf())
    with pytest.raises(WeightsError, match=r"llama.gguf is damaged: tensor '.*' is at byte .*, expected .*overlap"):
        interp.load(llama_gguf(offset=offset))


def test_a_part_of_a_split_gguf_says_how_to_merge(llama_gguf: Callable[..., Path]) -> None:
    parts = {"split.count": 3, "split.no": 1, "split.tensors.count": 20}
    with pytest.raises(WeightsError, match=r"llama.gguf is part 2 of 3 of one model: .*llama-gguf-split --merge"):
        interp.load(llama_gguf(parts))
    assert interp.load(llama_gguf({**parts, "split.count": 1, "split.no": 0})).cfg.n_layers == 2
    with pytest.raises(WeightsError, match=r"split.count and split.no must be integers, not 'x'"):
        interp.load(llama_gguf({"split.count": "x"}))


@pytest.mark.parametrize("pre", [None, "", "default"])
def test_a_gguf_that_does_not_say_how_it_cuts_text_is_refused_and_can_be_told(
    pre: str | None, llama_gguf: Callable[..., Path]
) -> None:
    _, metadata = byte_level("qwen2")
    del metadata["tokenizer.ggml.pre"]
    path = llama_gguf(metadata if pre is None else {**metadata, "tokenizer.ggml.pre": pre})
    names = ", ".join(PRE_TOKENIZERS)
    with pytest.raises(WeightsError, match=rf"llama.gguf does not say how its tokenizer splits text.*one of {names}"):
        interp.load(path)
    told = interp.load(path, pre_tokenizer="qwen2").tokenizer
    said = interp.load(llama_gguf({**metadata, "tokenizer.ggml.pre": "qwen2"})).tokenizer
    assert told is not None and said is not None and told.digest() == said.digest()
    with pytest.raises(WeightsError, match=r"'qwen-2' is not supported.*did you mean 'qwen2'"):
        interp.load(llama_gguf(metadata), pre_tokenizer="qwen-2")
    own = interp.Tokenizer(word_tokenizer())
    assert interp.load(llama_gguf(metadata), tokenizer=own).tokenizer is own


def test_a_pre_tokenizer_where_none_is_wanted_is_refused(
    llama_gguf: Callable[..., Path], folders: Callable[[str], Path]
) -> None:
    path = llama_gguf(byte_level("smollm")[1])
    with pytest.raises(WeightsError, match=r"already has tokenizer.ggml.pre='smollm'; leave out pre_tokenizer='qwen2'"):
        interp.load(path, pre_tokenizer="qwen2")
    with pytest.raises(UnknownName, match=r"pre_tokenizer='qwen2' is for .gguf files"):
        interp.load(folders("gpt2"), pre_tokenizer="qwen2")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"tokenizer.ggml.add_bos_token": "no"}, "add_bos_token must be true or false, not 'no'"),
        ({"tokenizer.ggml.bos_token_id": True}, "bos_token_id=True is outside"),
        ({"tokenizer.ggml.pre": 3}, "tokenizer.ggml.pre=3 is not supported"),
        ({"tokenizer.ggml.model": 3}, "tokenizer.ggml.model=3 is not supported"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "rms_epsilon=nan must be a finite number"),
        ({"llama.attention.layer_norm_rms_epsilon": 0}, "rms_epsilon=0 must be of type float"),
        ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "eps must be a finite number >= 0, not -1.0"),
        ({"llama.rope.freq_base": 0.0}, "rotary_base must be a finite number > 0, not 0.0"),
        ({"general.alignment": True}, "general.alignment=True is not a power of two"),
        ({"llama.block_count": 2**31}, "have 2 layers, but their configuration has 2147483648"),
        ({"llama.feed_forward_length": 2**31}, "which cannot be rearranged to the W_in of shape"),
    ],
)
def test_metadata_of_a_wrong_kind_is_named_with_its_file(
    entries: dict[str, Any], message: str, llama_gguf: Callable[..., Path]
) -> None:
    path = llama_gguf({**byte_level("gpt-2")[1], **entries})
    with pytest.raises(InterpError, match=rf"llama.gguf.*{message}"):
        interp.load(path)


def test_shards_in_folders_below_are_read_and_those_outside_are_refused(tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside.safetensors"
    gpt2().save_pretrained(folder, max_shard_size="40KB")
    expected = interp.load(folder)(torch.arange(9)[None])
    index = folder / "model.safetensors.index.json"
    where: dict[str, Any] = json.loads(index.read_text())
    shards = sorted({*where["weight_map"].values()})
    (folder / "blobs").mkdir()
    for shard in shards:
        (folder / shard).rename(folder / "blobs" / shard)

    def named(name: Callable[[str], Any]) -> None:
        content = {key: name(shard) for key, shard in where["weight_map"].items()}
        index.write_text(json.dumps({**where, "weight_map": content}))

    named(lambda shard: f"blobs/{shard}")
    model = interp.load(folder)
    assert torch.equal(model(torch.arange(9)[None]), expected)
    assert len(model.source.files) == len(shards) and len(model.source.sha256() or "") == 64
    # As the hub's cache has them: links that lead elsewhere, under names that stay inside.
    (folder / "blobs").rename(tmp_path / "blobs")
    for shard in shards:
        (folder / shard).symlink_to(Path("..") / "blobs" / shard)
    named(lambda shard: shard)
    assert torch.equal(interp.load(folder)(torch.arange(9)[None]), expected)
    outside.write_bytes((tmp_path / "blobs" / shards[0]).read_bytes())
    for bad in (
        "../outside.safetensors",
        str(outside),
        "a/../../outside.safetensors",
        "..\\x",
        "C:\\x",
        "",
        3,
        None,
        "a\0",
    ):
        named(lambda shard, bad=bad: bad)  # type: ignore[misc]
        with pytest.raises(WeightsError, match=r"index.json says that '.*' is in .*; expected a file in"):
            interp.load(folder)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(where["weight_map"], "x" * 5000 + ".safetensors")}))
    with pytest.raises(WeightsError, match=r"index.json names shards that do not exist: 'xxx"):
        interp.load(folder)
    for weight_map in ([], "x", None):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(WeightsError, match=r"index.json has no 'weight_map'"):
            interp.load(folder)


def test_git_lfs_pointers_are_told_from_files(changed: Callable[..., Path], llama_gguf: Callable[..., Path]) -> None:
    folder = changed("gpt2")
    word_tokenizer().save(str(folder / "tokenizer.json"))
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_text(LFS)
        with pytest.raises(WeightsError, match=rf"{name} is a Git LFS pointer, not the file.* `git lfs pull`"):
            interp.load(folder)
        (folder / name).write_bytes(content)
    interp.load(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_text(LFS)
    with pytest.raises(WeightsError, match=r"pytorch_model.bin is a Git LFS pointer"):
        interp.load(folder)
    path = llama_gguf()
    path.write_text(LFS)
    with pytest.raises(WeightsError, match=r"llama.gguf is a Git LFS pointer"):
        interp.load(path)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "generation_config.json", "model.safetensors.index.json"]
)
def test_json_without_end_is_one_sentence(name: str, changed: Callable[..., Path]) -> None:
    folder = changed("gpt2")
    word_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / name).write_text(DEEP)
    if name == "model.safetensors.index.json":
        (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=rf"{name} is not readable JSON: it is nested too deeply"):
        interp.load(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", {"bos_token": 3}, "a token must be text, or an object with the text"),
        ("tokenizer_config.json", {"eos_token": {"content": ["x"]}}, "a token must be text, or an object"),
        ("tokenizer_config.json", {"split_special_tokens": "false"}, "split_special_tokens must be true or false"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "added_tokens_decoder must be an object, not \\[\\]"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}, "must have token ids as its keys"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": "a"}}, "must be an object with 'content', not 'a'"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"1": {"content": "a", "lstrip": 1}}},
            "lstrip must be true",
        ),
        ("tokenizer_config.json", {"extra_special_tokens": 3}, "extra_special_tokens must be a list or an object"),
        ("tokenizer_config.json", {"extra_special_tokens": [3]}, "a token must be text"),
        ("special_tokens_map.json", {"additional_special_tokens": "x"}, "must be a list or an object, not 'x'"),
        ("generation_config.json", {"eos_token_id": "1"}, "eos_token_id must be an integer or a list, not '1'"),
        ("generation_config.json", {"eos_token_id": [1, "2"]}, "eos_token_id must be a token id or a list of them"),
        ("generation_config.json", {"eos_token_id": True}, "eos_token_id must be an integer or a list, not True"),
    ],
)
def test_tokenizer_settings_of_a_wrong_kind_are_named(
    name: str, content: dict[str, Any], message: str, changed: Callable[..., Path]
) -> None:
    folder = changed("gpt2", bos_token_id=None, eos_token_id=None)
    word_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message) as caught:
        interp.load(folder)
    assert str(folder) in str(caught.value)


def test_a_panic_of_the_tokenizer_library_is_an_error_and_an_interrupt_is_none(
    changed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        """As pyo3 has it: no subclass of Exception."""

    folder = changed("gpt2")
    word_tokenizer().save(str(folder / "tokenizer.json"))

    class Panics:
        error: BaseException = PanicException("index out of bounds\nsecond line")

        @classmethod
        def from_file(cls, file: str) -> Any:
            raise cls.error

    monkeypatch.setattr("tokenizers.Tokenizer", Panics)
    with pytest.raises(WeightsError, match=r"tokenizer.json is not a readable tokenizer: index out of bounds$"):
        interp.load(folder)
    Panics.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        interp.load(folder)


@pytest.mark.parametrize("device", ["xx", "", "meta", 3.5, -1])
def test_devices_that_do_not_exist_are_named_wherever_weights_are_put(
    device: Any, folders: Callable[[str], Path]
) -> None:
    model = make("gpt2")
    with pytest.raises(UnknownName, match=r"device '.*' cannot be used here"):
        interp.load(folders("gpt2"), device=device)
    with pytest.raises(UnknownName, match=r"device '.*' cannot be used here"):
        load_transformer_lens(model.cfg, to_transformer_lens(model), device=device)


@pytest.mark.parametrize("dtype", ["half", 3, ["float32"], "int8", "float8_e4m3fn"])
def test_number_types_that_do_not_compute_are_named_everywhere(dtype: Any, folders: Callable[[str], Path]) -> None:
    model = make("gpt2")
    with pytest.raises(UnknownName, match=r"no dtype matches .*; choose from float32, float64"):
        interp.load(folders("gpt2"), dtype=dtype)
    with pytest.raises(UnknownName, match=r"no dtype matches .*; choose from float32, float64"):
        load_transformer_lens(model.cfg, to_transformer_lens(model), dtype=dtype)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("eps", -1.0, "eps must be a finite number >= 0, not -1.0"),
        ("eps", float("nan"), "eps must be a finite number"),
        ("eps", "1e-5", "eps must be a finite number"),
        ("rotary_base", 0, "rotary_base must be a finite number > 0, not 0"),
        ("attn_scale", float("inf"), "attn_scale must be a finite number > 0"),
        ("gated_mlp", "false", "gated_mlp must be True or False, not 'false'"),
        ("attn_only", 1, "attn_only must be True or False, not 1"),
        ("d_mlp", 2.5, "d_mlp must be an integer"),
        ("n_ctx", 2**60, "n_ctx must be at most"),
        ("rope_scaling", {"kind": "linear"}, "rope_scaling must be a RopeScaling or None"),
        ("layer_types", "attn", "layer_types must be a list with the kind of each layer, not 'attn'"),
        ("seed", 1.5, "seed must be an integer"),
        ("model_name", 3, "model_name must be text, not 3"),
    ],
)
def test_fields_of_a_configuration_that_are_of_a_wrong_kind_are_named(field: str, value: Any, message: str) -> None:
    sizes: dict[str, Any] = {"n_layers": 1, "d_model": 8, "n_ctx": 8, "d_head": 4, "d_vocab": 5}
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**(sizes | {field: value}))


def test_a_scaling_that_is_none_is_refused() -> None:
    for values in ({"factor": 0.0}, {"factor": float("nan")}, {"factor": "8"}, {"factor": 8.0, "original_n_ctx": 0}):
        with pytest.raises(ConfigError, match=r"of the rope scaling must be"):
            RopeScaling("llama3", **values)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"low_freq_factor=4.0 of the rope scaling must be below high_freq_fac"):
        RopeScaling("llama3", 8.0, low_freq_factor=4.0)
    with pytest.raises(ConfigError, match=r"RopeScaling needs factor"):
        ModelConfig.from_dict({**make("llama").cfg.to_dict(), "rope_scaling": {"kind": "linear"}})


def test_whole_numbers_of_any_kind_become_pythons() -> None:
    import numpy as np

    cfg = ModelConfig(n_layers=np.int64(1), d_model=torch.tensor(8), n_ctx=8, d_head=4, d_vocab=5)  # type: ignore[arg-type]
    assert type(cfg.n_layers) is int and type(cfg.d_model) is int and json.dumps(cfg.to_dict())


def test_a_pipe_in_place_of_a_file_does_not_hang(changed: Callable[..., Path]) -> None:
    folder = changed("gpt2")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    began = time.process_time()
    with pytest.raises(WeightsError, match=r"holds no model.safetensors"):
        interp.load(folder)
    assert time.process_time() - began < 60


def test_our_own_files_with_safetensors_of_other_names_are_refused(tmp_path: Path) -> None:
    model = make("gpt2")
    interp.save(model, tmp_path)
    (tmp_path / "interp.json").unlink()
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    for broken, message in (
        ({"n_heads": "4"}, "n_heads must be an integer"),
        ({"act_fn": ["gelu"]}, "act_fn=\\['gelu'\\] is not one of"),
        ({"dt_limit": "x"}, ""),
        ({"rope_scaling": 3}, "rope_scaling must be"),
        ({"d_vocab": 10**9}, "shape"),
    ):
        (tmp_path / "cfg.json").write_text(json.dumps({**cfg, **broken}))
        if message:
            with pytest.raises(InterpError, match=message):
                interp.load(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    safetensors.torch.save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"have 0 layers, but their configuration has 2"):
        interp.load(tmp_path)


def test_a_token_id_far_beyond_the_vocabulary_is_refused(changed: Callable[..., Path]) -> None:
    folder = changed("gpt2")
    word_tokenizer().save(str(folder / "tokenizer.json"))
    content = json.loads((folder / "tokenizer.json").read_text())
    for far, fits in ((2000, True), (2**31, False)):
        content["model"]["vocab"]["w7"] = far
        (folder / "tokenizer.json").write_text(json.dumps(content))
        if fits:
            tokenizer = interp.load(folder).tokenizer
            assert tokenizer is not None and tokenizer.encode("w7") == [far]
        else:
            with pytest.raises(WeightsError, match=r"json gives 'w7' the id 2147483648, in a vocabulary of 61"):
                interp.load(folder)


def test_every_end_of_text_is_known_where_a_model_has_several(changed: Callable[..., Path]) -> None:
    folder = changed("gpt2", eos_token_id=5)
    backend = word_tokenizer()
    backend.add_special_tokens(["w7", "w9"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7, 8]}))  # 8 is an ordinary word
    tokenizer = interp.load(folder).tokenizer
    assert tokenizer is not None and tokenizer.eos_token_ids == (9, 7)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "w7"}))
    tokenizer = interp.load(folder).tokenizer
    assert tokenizer is not None and (tokenizer.eos_token_id, tokenizer.eos_token_ids) == (7, (7, 9))


def test_shards_in_folders_of_a_repository_are_fetched_by_the_names_of_its_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fnmatch
    import shutil

    there, here = tmp_path / "hub", tmp_path / "cache"
    gpt2().save_pretrained(there, max_shard_size="40KB")
    expected = interp.load(there)(torch.arange(9)[None])
    index = there / "model.safetensors.index.json"
    where = json.loads(index.read_text())
    (there / "parts").mkdir()
    for shard in {*where["weight_map"].values()}:
        (there / shard).rename(there / "parts" / shard)
    content = {name: f"parts/{shard}" for name, shard in where["weight_map"].items()}
    index.write_text(json.dumps({"weight_map": content}))

    def snapshot_download(repository: str, *, revision: Any, allow_patterns: list[str]) -> str:
        for file in there.rglob("*.*"):
            name = file.relative_to(there).as_posix()
            if file.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (here / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, here / name)
        return str(here)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert torch.equal(interp.load("someone/sharded")(torch.arange(9)[None]), expected)


def test_weights_that_do_not_fit_into_memory_say_how_many_bytes_they_need(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("can't allocate memory: you tried to allocate 99 bytes")

    model = interp.load(folders("gpt2"))
    needed = sum(parameter.numel() for parameter in model.parameters()) * 8
    monkeypatch.setattr("interp.weights.build.torch.empty", lambda *a, **k: full() if "dtype" in k else real(*a, **k))
    with pytest.raises(WeightsError, match=rf"{needed:,} bytes, do not fit on cpu: can't allocate memory"):
        interp.load(folders("gpt2"), dtype="float64")


real = torch.empty
