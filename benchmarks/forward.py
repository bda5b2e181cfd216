"""Forward and caching on SmolLM2-135M: interp, transformers (SDPA) and TransformerLens, interleaved in one process.

Prints medians in seconds and medians of the ratios of neighbouring runs, so that a drift of the machine's speed
cancels. Run with `python benchmarks/forward.py [--peer-lens]`; TransformerLens is left out by default as it takes
long to load.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from interleaved import interleaved, ratio
from peers import lens_bridge, transformers_model

import interp
from interp.loading.load import find

SHAPES = {(1, 16): 40, (8, 16): 20, (8, 256): 6}  # batch, tokens: rounds


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-lens", action="store_true", help="time TransformerLens as well")
    options = parser.parse_args()
    torch.manual_seed(0)

    ours = interp.load("smollm2-135m", device="cpu")
    file = find("smollm2-135m").source.files[0]
    theirs = transformers_model(file)
    bridge = lens_bridge(theirs, file) if options.peer_lens else None
    print(f"SmolLM2-135M, float32, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for (batch, length), rounds in SHAPES.items():
        tokens = torch.randint(0, ours.cfg.d_vocab, (batch, length))
        functions: dict[str, Callable[[], Any]] = {
            "interp": lambda tokens=tokens: ours(tokens),
            "interp, every site cached": lambda tokens=tokens: ours.run_with_cache(tokens),
            "transformers": lambda tokens=tokens: theirs(tokens, use_cache=False).logits,
        }
        if bridge is not None:
            functions["TransformerLens"] = lambda tokens=tokens: bridge(tokens)
            functions["TransformerLens, every site cached"] = lambda tokens=tokens: bridge.run_with_cache(tokens)
        seconds = interleaved(functions, rounds)
        print(f"\n{batch} x {length} tokens, {rounds} rounds")
        for name, values in seconds.items():
            times = ratio(seconds, name, "transformers")
            print(f"  {statistics.median(values):8.4f} s  {times:6.3f} x transformers  {name}")
        print(f"  caching costs {ratio(seconds, 'interp, every site cached', 'interp'):.3f} x the plain forward")


if __name__ == "__main__":
    main()
