"""Mamba and Mamba-2 at the size of their 130M models on a CPU: interp and transformers, interleaved in one process.

1. Whole forwards: 24 layers of width 768 with random weights in float32, 8 x 256 tokens. The vocabulary is 1,024
   instead of 50,280, since the unembedding is the same matrix product in both.
2. The scan of one layer alone, behind the products that both have.

transformers runs plain torch in each of its settings: Mamba one position after another, by mambapy where that is
installed, and with `--compile` by torch's associative scan, which it takes only under torch.compile (of whole forwards
alone, and compiling takes minutes a layer: give `--layers 1`); Mamba-2 in chunks of 256, its default, of 64 and of 16.

Prints medians in seconds and medians of the ratios of neighbouring runs, so that a drift of the machine's speed
cancels. Run with `python benchmarks/mamba.py [--rounds N] [--layers N] [--vocabulary N] [--compile]`; `--layers 0`
times the scans alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from interleaved import interleaved, ratio
from torch import Tensor
from transformers.models.mamba.modeling_mamba import mamba_selective_scan
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

import interp
from interp.state_space.scan import dual_scan, selective_scan

Runs = dict[str, Callable[[], Tensor]]

BATCH, LENGTH = 8, 256
SIZES: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 768, "state_size": 16},
    "mamba2": {"hidden_size": 768, "state_size": 128, "num_heads": 24, "head_dim": 64, "n_groups": 1},
}
CHUNKS = (256, 64, 16)
HAS_MAMBAPY = importlib.util.find_spec("mambapy") is not None


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--compile", action="store_true", help="time the associative scan as well")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{BATCH} x {LENGTH} tokens, float32, {torch.get_num_threads()} threads, {versions}")
    if not HAS_MAMBAPY:
        print("mambapy is not installed: transformers is timed without it (pip install --no-deps mambapy)")
    for kind, sizes in SIZES.items():
        if options.layers:
            title = f"{kind}, {options.layers} layers, {options.vocabulary} tokens in the vocabulary"
            config = transformers.AutoConfig.for_model(
                kind, **sizes, num_hidden_layers=options.layers, vocab_size=options.vocabulary
            )
            report(title, forwards(config, compiled=options.compile), options.rounds)
        scans = selective_scans(sizes) if kind == "mamba" else dual_scans(sizes)
        report(f"{kind}, the scan of one layer", scans, options.rounds)


def report(title: str, runs: Runs, rounds: int) -> None:
    """Time functions of which the first is ours, and print how far theirs are from it, in time and in values."""
    ours, *peers = runs
    seconds = interleaved(runs, rounds)
    values = runs[ours]()
    print(f"\n{title}, {rounds} rounds")
    for name, taken in seconds.items():
        apart = float((runs[name]() - values).abs().max() / values.abs().max())
        times = f"{statistics.median(taken):8.3f} s  {ratio(seconds, name, ours):6.2f} x interp"
        print(f"  {times}  {name} ({apart:.0e} apart)")
    best = min(peers, key=lambda name: statistics.median(seconds[name]))
    print(f"  interp is {ratio(seconds, best, ours):.2f} times as fast as {best}", flush=True)


def forwards(config: Any, *, compiled: bool) -> Runs:
    """The logits of the same tokens and weights by both libraries, transformers in each of its settings."""
    torch.manual_seed(0)
    theirs: Any = transformers.AutoModelForCausalLM.from_config(config).eval()
    ours = interp.load(theirs)
    tokens = torch.randint(0, config.vocab_size, (BATCH, LENGTH))
    mixers = [layer.mixer for layer in theirs.backbone.layers]

    def run(model: Any, name: str, value: Any) -> Tensor:
        for mixer in mixers:
            assert hasattr(mixer, name), f"transformers has no setting {name!r}"
            setattr(mixer, name, value)
        logits = model(tokens, use_cache=False).logits
        assert isinstance(logits, Tensor)
        return logits

    runs: Runs = {"interp": lambda: ours(tokens)}
    if config.model_type == "mamba2":
        for size in CHUNKS:
            runs[f"transformers, chunks of {size}"] = partial(run, theirs, "chunk_size", size)
        return runs
    runs["transformers, one position after another"] = partial(run, theirs, "use_mambapy", False)
    if HAS_MAMBAPY:
        runs["transformers, mambapy"] = partial(run, theirs, "use_mambapy", True)
    if compiled:
        graph = torch.compile(theirs)
        runs["transformers, associative scan"] = partial(run, graph, "use_mambapy", False)
    return runs


def selective_scans(sizes: dict[str, Any]) -> Runs:
    """y of Mamba's recurrence on random numbers, where both libraries have them in their memory."""
    torch.manual_seed(0)
    channels, n = 2 * sizes["hidden_size"], sizes["state_size"]
    x, delta = torch.randn(BATCH, LENGTH, channels), 0.1 * torch.rand(BATCH, LENGTH, channels)
    A, (B, C) = -torch.rand(channels, n), torch.randn(2, BATCH, LENGTH, n)

    def run(use_mambapy: bool) -> Tensor:
        u, dt, b, c = (part.transpose(1, 2) for part in (x, delta, B, C))
        return mamba_selective_scan(u, dt, A, b, c, use_mambapy=use_mambapy).transpose(1, 2)

    runs: Runs = {"interp": lambda: selective_scan(x, delta, A, B, C)[0]}
    runs["transformers, one position after another"] = partial(run, False)
    if HAS_MAMBAPY:
        runs["transformers, mambapy"] = partial(run, True)
    return runs


def dual_scans(sizes: dict[str, Any]) -> Runs:
    """The same of Mamba-2."""
    torch.manual_seed(0)
    heads, shared = sizes["num_heads"], (BATCH, LENGTH, sizes["n_groups"], sizes["state_size"])
    x, delta = torch.randn(BATCH, LENGTH, heads, sizes["head_dim"]), 0.1 * torch.rand(BATCH, LENGTH, heads)
    A, (B, C) = -torch.rand(heads), torch.randn(2, *shared)
    runs: Runs = {"interp": lambda: dual_scan(x, delta, A, B, C)[0]}
    for size in CHUNKS:
        runs[f"transformers, chunks of {size}"] = partial(mamba2_chunk_scan, x, delta, A, B, C, size)
    return runs


if __name__ == "__main__":
    main()
