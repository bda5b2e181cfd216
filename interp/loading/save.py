"""`save`: a model with its tokenizer in a folder, in interp's own format or as a Hugging Face model.

1. The content is settled first: the configuration, the tokenizer's settings, the weights.
2. All files are written to a temporary folder, and the tokenizer is read back and compared. `interp.json` gets the
   SHA-256 of every file, which `interp.load` checks (`interp.weights.manifest`).
3. The files move into the folder; files of an earlier `save` that this one does not have are removed.

Own format: `cfg.json` (the fields of `ModelConfig`), `model.safetensors` (TransformerLens's names and shapes),
`tokenizer.json` and `interp_tokenizer.json`. Hugging Face: what `transformers` reads.
"""

from __future__ import annotations

import fnmatch
import json
import os
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from interp.arguments import shown
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import ConfigError, OutputError, WeightsError, check_choice
from interp.files.whole_files import place_of, whole_folder
from interp.models.gpt import GPT
from interp.text import tokenizer_files
from interp.text.tokenizer import Tokenizer
from interp.weights import manifest
from interp.weights.build import weights
from interp.weights.huggingface import write as to_huggingface
from interp.weights.huggingface.configs.written import ARCHITECTURES
from interp.weights.huggingface.reader import PICKLED_FILES, SAFE_FILES, TOKENIZER_FILES
from interp.weights.transformer_lens import CONFIG_FILE, WEIGHTS_FILE

FORMATS = ("interp", "huggingface")
# All files that a loader would read in a folder.
READ = ["config.json", CONFIG_FILE, tokenizer_files.OWN_FILE, *tokenizer_files.OTHER_FILES]
READ += [*TOKENIZER_FILES, *SAFE_FILES, *PICKLED_FILES]


def save(
    model: GPT | EncoderDecoder, folder: str | Path, *, format: Literal["interp", "huggingface"] = "interp"
) -> Path:
    """Write a model and its tokenizer; `interp.load(folder)` gives the same logits, bit for bit, in the same dtype.

    Args:
        model: any model of this package, trained further or not; for a bridge, save its transformers model instead.
        folder: a new or an empty folder, one with other files, or one that an earlier `save` wrote, which is replaced.
        format: "interp" holds every configuration; "huggingface" is a folder that transformers opens, for models that
            that one of its families computes.

    Returns:
        The folder.

    Raises:
        ConfigError: no Hugging Face family computes what the model does.
        OutputError: the folder cannot be written, or holds a model that `save` did not write.
        WeightsError: weights that are not finite, which no loader would accept.
        UnknownName: a format that does not exist.

    Example:
        ::

            interp.save(model, "finetuned", format="huggingface")
            transformers.AutoModelForCausalLM.from_pretrained("finetuned")
    """
    check_choice("format", format, FORMATS)
    if not isinstance(folder, str | os.PathLike):
        raise ConfigError(f"folder must be a path, not {shown(folder)}")
    if isinstance(model, EncoderDecoder) and format != "interp":
        raise ConfigError(
            "a model with an encoder and a decoder is saved with format='interp'; transformers' is not written"
        )
    if not isinstance(model, GPT | EncoderDecoder):
        raise ConfigError(
            f"save takes a model of interp, not {type(model).__name__}; for a TransformerBridge, save the transformers "
            "model: bridge.original_model.save_pretrained(folder)"
        )
    bad = [name for name, weight in weights(model).items() if not bool(weight.isfinite().all())]
    if bad:
        raise WeightsError(
            f"the model cannot be saved: {bad[0]!r} holds NaN or infinite values ({len(bad)} such weights)"
        )
    folder = place_of(folder, what="a model")
    # 1. The content.
    if format == "interp":
        settings = {CONFIG_FILE: model.cfg.to_dict()}
        tensors = {name: weight.cpu().contiguous() for name, weight in weights(model).items()}
    else:
        assert isinstance(model, GPT)
        family, options = to_huggingface.describe(model.cfg)
        settings = _huggingface_settings(model, options)
        tensors = to_huggingface.tensors(model, family)
    _refuse_foreign(folder)
    earlier = set(manifest.files(folder)) if folder.is_dir() else set()
    # 2. All files, in a temporary folder; 3. their move, when the block ends.
    with whole_folder(folder, what="a model", first=manifest.FILE) as staged:
        for name, content in settings.items():
            (staged / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if model.tokenizer is not None:
            _write_tokenizer(model.tokenizer, staged, own=format == "interp")
        _write_tensors(tensors, staged / WEIGHTS_FILE)
        manifest.write(staged)
        for name in earlier - {file.name for file in staged.iterdir()}:
            (folder / name).unlink(missing_ok=True)
    return folder


def _huggingface_settings(model: GPT, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """config.json and generation_config.json."""
    tokenizer = model.tokenizer
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(tokenizer, name) for name in names} if tokenizer is not None else dict.fromkeys(names)
    if tokenizer is not None and tokenizer.further_eos_token_ids:
        ids["eos_token_id"] = list(tokenizer.eos_token_ids)
    architecture = ARCHITECTURES[options["model_type"]]
    dtype = str(model.dtype).removeprefix("torch.")
    config = {"architectures": [architecture], **options, **ids, "dtype": dtype, "use_cache": True}
    return {"config.json": config, "generation_config.json": ids}


def _write_tokenizer(tokenizer: Tokenizer, folder: Path, *, own: bool) -> None:
    if isinstance(tokenizer.backend, tokenizer_files.CalledBackend):
        tokenizer.backend.tokenizer.save_pretrained(str(folder))
    else:
        (folder / "tokenizer.json").write_text(tokenizer.backend.to_str(), encoding="utf-8")
        ids = {name: getattr(tokenizer, name) for name in tokenizer_files.OWN_IDS}
        if own:
            content = {**ids, "split_special_tokens": tokenizer.split_special_tokens}
            content["further_eos_token_ids"] = list(tokenizer.further_eos_token_ids)
            (folder / tokenizer_files.OWN_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        else:
            (folder / "tokenizer_config.json").write_text(
                json.dumps(_tokenizer_config(tokenizer), indent=1) + "\n", encoding="utf-8"
            )
    read_back = Tokenizer.from_directory(folder)
    if read_back is None or (read_back.digest(), read_back.eos_token_ids) != (
        tokenizer.digest(),
        tokenizer.eos_token_ids,
    ):
        raise OutputError(
            f"tokenizer {tokenizer.name!r} changes when it is saved and read back; set model.tokenizer = None to save "
            "the weights alone, and give the tokenizer to interp.load(..., tokenizer=)"
        )


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    special = {id_ for id_, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}
    content: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": tokenizer.split_special_tokens,
    }
    for name in ("bos_token", "eos_token", "pad_token"):
        id_, content[name] = getattr(tokenizer, f"{name}_id"), getattr(tokenizer, name)
        if id_ is not None and id_ not in special:
            raise OutputError(
                f"{name} {content[name]!r} (id {id_}) is an ordinary entry of the vocabulary, which a Hugging Face "
                "folder would turn into a special token: declare it with tokenizer.backend.add_special_tokens, or save "
                "in interp's own format"
            )
    return content


def _write_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    try:
        safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, among others
        raise OSError(str(error)) from error


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder whose files a loader would take for parts of this model, unless `save` wrote them."""
    if not folder.is_dir() or (folder / manifest.FILE).is_file():
        return
    there = [file.name for file in sorted(folder.iterdir()) if any(fnmatch.fnmatch(file.name, name) for name in READ)]
    if there:
        raise OutputError(
            f"{str(folder)!r} holds {', '.join(there)}, which interp.save did not write; give a new folder"
        )
