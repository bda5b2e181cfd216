"""Forward and caching on SmolLM2-135M: interp, transformers (SDPA) and TransformerLens, interleaved in one process.

Prints medians in seconds and medians of the ratios of neighbouring runs, so that a drift of the machine's speed
cancels. Run with `python benchmarks/forward.py [--peer-lens]`; TransformerLens is left out by default as it takes
long to load.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import interp
from interp.weights.load import find

SHAPES = {(1, 16): 40, (8, 16): 20, (8, 256): 6}  # batch, tokens: rounds


def interleaved(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every function in every round, after one round that is not counted; the order turns each round."""
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            result = functions[name]()
            elapsed = time.perf_counter() - start
            del result
            if turn:
                seconds[name].append(elapsed)
    return seconds


def ratio(seconds: dict[str, list[float]], above: str, below: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-lens", action="store_true", help="time TransformerLens as well")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)

    ours = interp.load("smollm2-135m", device="cpu")
    file = find("smollm2-135m").source.files[0]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="sdpa"
    )
    bridge = lens_bridge(file) if options.peer_lens else None
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


def lens_bridge(file: Path) -> Any:
    """The same weights behind TransformerLens's bridge, which changes the model that it is given."""
    from transformer_lens.model_bridge import TransformerBridge

    model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return TransformerBridge.boot_transformers("HuggingFaceTB/SmolLM2-135M-Instruct", hf_model=model, device="cpu")


if __name__ == "__main__":
    main()
