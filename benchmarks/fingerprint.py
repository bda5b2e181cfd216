"""How long a sweep with `out` takes to recognise its variants: 5,000 small ones, beside pickling and hashing them.

Prints medians in seconds of interleaved runs, in one process. Run with `python benchmarks/fingerprint.py`.
"""

from __future__ import annotations

import hashlib
import pickle
import statistics

from interleaved import interleaved, ratio

from interp.edits import Edit, Variant
from interp.resume.fingerprint import fingerprint

ROUNDS = 15


def main() -> None:
    variants = [
        Variant([Edit("z", {"layer": n % 12, "head": n % 9, "pos": n}, source="base")], {"layer": n % 12, "pos": n})
        for n in range(5000)
    ]
    seconds = interleaved(
        {
            "fingerprint": lambda: fingerprint(variants),
            "pickle and SHA-256": lambda: hashlib.sha256(pickle.dumps(variants)).hexdigest(),
        },
        ROUNDS,
    )
    print(f"{len(variants):,} variants, {ROUNDS} rounds")
    for name, values in seconds.items():
        print(f"  {statistics.median(values):8.4f} s  {ratio(seconds, name, 'pickle and SHA-256'):6.2f} x  {name}")


if __name__ == "__main__":
    main()
