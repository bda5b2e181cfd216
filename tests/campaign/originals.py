"""Tiny models of several families as files, sound, with the numbers that they have: what the campaign then damages."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoints import GPT2_SIZES, SIZES, STATE_SPACE, tiny
from gguf_files import GGUF_LLAMA, byte_level, llama_weights, with_tokenizer, write
from torch import Tensor
from vocabularies import names_tokenizer

import interp
from interp.models.gpt import GPT

TEXTS = ["When John and Mary went to the store,", " Tom", "a\n b 12345"]


@dataclass(frozen=True)
class Numbers:
    """What a model computes: the logits of some ids [batch, pos, d_vocab_out], and the ids of `TEXTS`."""

    logits: Tensor
    ids: list[list[int]]


@dataclass(frozen=True)
class Original:
    """A model on disk, in a folder of its own; `file` is what is loaded in it, "" the folder itself."""

    name: str
    folder: Path
    file: str
    numbers: Numbers

    def copied(self) -> Path:
        """A copy in the working folder, to be damaged."""
        return Path(shutil.copytree(self.folder, Path("model").absolute()))


def tokens_for() -> Tensor:
    return torch.randint(0, 61, (2, 11), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def numbers(model: GPT) -> Numbers:
    """What a loaded model computes."""
    texts = [model.to_tokens(text)[0].tolist() for text in TEXTS] if model.tokenizer is not None else []
    return Numbers(model(tokens_for()), texts)


def same(one: Numbers, other: Numbers, *, within: float = 0.0) -> bool:
    """Whether two models computed the same; `within` is a share of the largest logit."""
    if one.ids != other.ids or one.logits.shape != other.logits.shape:
        return False
    if within == 0.0:
        return torch.equal(one.logits, other.logits)
    return bool((one.logits - other.logits).abs().max() <= within * other.logits.abs().max())


@torch.no_grad()
def oracle(path: Path) -> Numbers:
    """What transformers and its tokenizers make of the same files; whatever they raise passes through."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    place: dict[str, Any] = {"local_files_only": True}
    folder = path
    if path.is_file():
        folder, place = path.parent, {"gguf_file": path.name, **place}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, attn_implementation="eager", **place
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **place)
    logits = model.eval()(tokens_for(), use_cache=False).logits
    return Numbers(logits, [list(tokenizer(text)["input_ids"]) for text in TEXTS])


def make(home: Path) -> list[Original]:
    """Every original, under a folder."""
    backend = names_tokenizer()
    vocabulary = {"vocab_size": backend.get_vocab_size()}
    grouped = {**SIZES, **vocabulary, "num_key_value_heads": 2}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "gpt2": ("gpt2", {**GPT2_SIZES, **vocabulary}),
        "llama": ("llama", grouped),
        "llama in shards": ("llama", grouped),
        "qwen2": ("qwen2", {**grouped, "tie_word_embeddings": True}),
        "gpt_neox": ("gpt_neox", {**SIZES, **vocabulary}),
        "mamba": ("mamba", {**STATE_SPACE["mamba"], **vocabulary}),
        "mamba2": ("mamba2", {**STATE_SPACE["mamba2"], **vocabulary}),
        "bamba": ("bamba", {**STATE_SPACE["bamba"], **vocabulary}),
    }
    made = []
    for name, (family, options) in kinds.items():
        folder = home / name.replace(" ", "-")
        shards = {"max_shard_size": "60KB"} if "shards" in name else {}
        tiny(family, options).save_pretrained(folder, **shards)
        backend.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        made.append(_made(name, folder, ""))
    (home / "gguf").mkdir()
    file = with_tokenizer(home / "gguf", byte_level("gpt-2")[1])
    made.append(_made("llama in GGUF", file.parent, file.name))
    (home / "qwen2-gguf").mkdir()
    tensors, _ = llama_weights(tied=False, bias=True)
    kept = {name: t for name, t in tensors.items() if not name.endswith("bias") or name[6:12] in QKV_BIASES}
    metadata = {key.replace("llama.", "qwen2."): v for key, v in GGUF_LLAMA.items() if "dimension_count" not in key}
    file = write(home / "qwen2-gguf" / "tiny.gguf", "qwen2", {**metadata, **byte_level("qwen2")[1]}, kept)
    made.append(_made("qwen2 in GGUF", file.parent, file.name))
    return made


QKV_BIASES = ("attn_q", "attn_k", "attn_v")


def _made(name: str, folder: Path, file: str) -> Original:
    return Original(name, folder, file, numbers(interp.load(folder / file if file else folder)))
