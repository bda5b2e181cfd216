"""Where a result came from: all that is needed to make it again, or to see why it cannot be.

1. The model: its name, source, revision and configuration, and the SHA-256 of its weights and tokenizer.
2. The measurement: prompts by hash, metric by definition, seed, command line.
3. The surroundings: versions, commit, machine, time. Versions are read without importing anything.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import InterpError, WeightsError
from interp.hooked.model import HookedModel
from interp.metrics import Metric, get_metric
from interp.prompts.pairs import PromptPairs
from interp.version import __version__

PACKAGES = (
    *("torch", "transformers", "transformer_lens", "tokenizers", "safetensors", "gguf"),
    *("numpy", "scipy", "pandas", "matplotlib"),
)
ROOM = Path(__file__).resolve()


def provenance(
    model: HookedModel,
    pairs: PromptPairs | None = None,
    *,
    metric: str | Metric | Callable[..., Tensor] | None = None,
    seed: int | None = None,
    command: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything a result should carry about how it was made, in plain JSON values.

    Args:
        model: the model that was run; the files its weights came from are read again for their digest.
        pairs: the prompts.
        metric: what was measured, as `get_metric` takes it.
        seed: what seeded the run.
        command: the command line; None takes this process's own.
        extra: further groups of facts, under names of their own.

    Raises:
        UnknownName: no metric has that name.
        InterpError: a group of `extra` has a name that is taken.
    """
    record: dict[str, Any] = {
        "model": _model(model),
        "weights": _weights(model),
        "tokenizer": _tokenizer(model),
        "prompts": _prompts(pairs),
        "metric": _metric(metric),
        "seed": seed,
        "command": _command() if command is None else command,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "git": checkout(ROOM),
        "machine": _machine(model),
    }
    if taken := sorted(set(extra or {}) & set(record)):
        raise InterpError(f"provenance already has {taken[0]!r}; give extra facts under another name")
    return {name: _plain(value) for name, value in {**record, **(extra or {})}.items()}


def versions() -> dict[str, str | None]:
    """Versions of Python, of this package and of those whose numbers it depends on; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "interp": __version__}
    for package in PACKAGES:
        found[package] = None
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def checkout(file: Path) -> dict[str, Any] | None:
    """The git commit of the checkout that tracks `file`, and whether anything in it differs from that commit.

    None where there is no git, no commit, or the file is only installed inside somebody else's checkout.
    """

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(file.parent), *words], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _model(model: HookedModel) -> dict[str, Any]:
    source = getattr(model, "source", None)
    return {
        "name": model.cfg.model_name,
        "source": getattr(source, "kind", None),
        "location": getattr(source, "location", None),
        "revision": getattr(source, "revision", None),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "config": model.cfg.to_dict(),
    }


def _weights(model: HookedModel) -> dict[str, Any]:
    """The digest of the weight files, or of the tensors in memory where there are no files any more."""
    source = getattr(model, "source", None)
    with suppress(WeightsError):
        if source is not None and (digest := source.sha256()):
            return {"sha256": digest, "of": "weight files", "files": [Path(file).name for file in source.files]}
    return {"sha256": state_digest(model.state_dict()), "of": "tensors in memory", "files": []}


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors: for each, in order of name, a line `name dtype shape` and its bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tokenizer(model: HookedModel) -> dict[str, Any] | None:
    tokenizer = model.tokenizer
    return None if tokenizer is None else {"name": tokenizer.name, "sha256": tokenizer.digest()}


def _prompts(pairs: PromptPairs | None) -> dict[str, Any] | None:
    if pairs is None:
        return None
    return {"name": pairs.name, "n": len(pairs), "sha256": pairs.digest(), "notes": dict(pairs.notes)}


def _metric(metric: str | Metric | Callable[..., Tensor] | None) -> dict[str, Any] | None:
    if metric is None:
        return None
    found = get_metric(metric)
    return {"name": found.name, "definition": found.definition, "unit": found.unit}


def _command() -> str:
    program, *words = sys.argv or [""]
    if "ipykernel" in program:
        return "in a notebook"
    return shlex.join([Path(program).name or "python", *words])


def _machine(model: HookedModel) -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else None,
    }


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    """JSON's own values: no tensors, paths or NaN; the reader's home folder is `~`."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    try:
        return str(value).replace(str(Path.home()), "~")
    except RuntimeError:  # no home folder
        return str(value)
