"""Conformance of every family: what is promised of a loaded model, measured on tiny random models of transformers.

    make conformance                                            # all of it, into docs/families.md
    python -m tests.conformance --only llama --check sites      # one family, one promise

1. `subject` makes a model of transformers for each configuration of a family, and loads it here.
2. Each check of `CHECKS` (`parity`, `sites`, `runs`, `gradients`) compares the two, or what is computed from ours in
   two ways. It gives a `Cell`: the promise holds, with its largest difference; it does not apply; it is refused, with
   the message; or it is wrong.
3. `table` puts the cells into a page, and `__main__` ends with 1 where one of them is wrong.

Nothing here names a family: configurations come from `tests/checkpoints.py`, the places of weights from `FAMILIES`.
"""

import sys
from pathlib import Path

# The tests' own tiny models are used here, too.
sys.path.insert(0, str(Path(__file__).parent.parent))
