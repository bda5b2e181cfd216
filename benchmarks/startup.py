"""Import and load times, each in processes of its own, taken in turn; peak memory of loading.

1. `import interp` over `import torch` (at most 0.2 s is the aim), and what a peer's import costs.
2. SmolLM2-135M from its GGUF file until the first logits can be computed: interp and transformers.
3. Peak resident memory of loading, above the process that has only imported, over the float32 weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

TIMED = "import time, json, resource; {before}; start = time.perf_counter(); {code}; "
PRINT = "print(json.dumps([time.perf_counter() - start, {extra}]))"
PEAK = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss"

IMPORTS = {
    "import torch": ("pass", "import torch"),
    "import interp after torch": ("import torch", "import interp"),
    "import transformer_lens after torch": ("import torch", "import transformer_lens"),
}
FILE = "from interp.loading.load import find; f = find('smollm2-135m').source.files[0]"
LOADS = {
    "interp": ("import interp", "m = interp.load('smollm2-135m', device='cpu')"),
    "transformers": (
        f"import torch, transformers; {FILE}; from transformers import AutoModelForCausalLM as A, AutoTokenizer as T",
        "m = A.from_pretrained(f.parent, gguf_file=f.name, dtype=torch.float32); "
        "t = T.from_pretrained(f.parent, gguf_file=f.name)",
    ),
}


def run(before: str, code: str, extra: str = "0") -> list[float]:
    """Seconds that `code` takes in a fresh process after `before`, and the value of `extra` at its end."""
    program = (TIMED + PRINT).format(before=before, code=code, extra=extra)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, (before, code) in IMPORTS.items():
            seconds.setdefault(name, []).append(run(before, code)[0])
    print("import, median seconds")
    for name, values in seconds.items():
        print(f"  {statistics.median(values):8.3f} s  {name}")

    loads: dict[str, list[list[float]]] = {}
    for _ in range(rounds):
        for name, (before, code) in LOADS.items():
            loads.setdefault(name, []).append(run(before, code, PEAK))
    weights = run("import interp", "m = interp.load('smollm2-135m')", "sum(p.numel() * 4 for p in m.parameters())")[1]
    print("SmolLM2-135M from GGUF, with its tokenizer")
    for name, values in loads.items():
        base = run(LOADS[name][0], "pass", PEAK)[1]
        peak = statistics.median(value[1] for value in values) - base
        print(
            f"  {statistics.median(v[0] for v in values):8.2f} s  peak {peak * 1024 / weights:5.2f} x weights  {name}"
        )


if __name__ == "__main__":
    main()
