"""A campaign against `interp`: mutated files, kills, interrupts and bad calls, thousands of them, each by itself.

    make campaign                                               # all of it, for about a quarter of an hour
    python -m tests.campaign --only files --case 1234           # one case again, with everything that it said

It is no part of `make test`: what it finds is mended, and gets a test among the others.

1. The parent process imports what is slow and makes tiny models, once.
2. Each case is a forked child with limits of time and memory (`trial`). What came of it is one of `trial.KINDS`.
3. The parts (`files`, `saved`, `kills`, `interrupts`, `calls`, `commands`) say what is tried. A case is made from the
   seed and its number alone, so that these two and the part's name bring it back.
4. `table` counts the kinds, `__main__` writes them and ends with 1 where a goal is missed.

It needs Linux, for `fork`, limits and `/proc`.
"""

import sys
from pathlib import Path

# The tests' own tiny models are used here, too.
sys.path.insert(0, str(Path(__file__).parent.parent))
