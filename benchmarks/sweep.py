"""Whole sweeps on SmolLM2-135M: `interp.sweep` against the loops of TransformerLens and nnsight, in one process.

1. A round runs our whole sweep, a few cells of each peer and a large matrix product, one after another; the order turns
   from round to round. A peer's cells are drawn anew each round; all its cells cost the same, so that its whole sweep
   is reckoned as seconds a cell x number of cells. Its run of the source side comes free.
2. Every value of a peer is compared with ours; a difference above 1e-4 of the largest logit ends the benchmark.
3. "x least" is the number of floating-point operations that our sweep executes, in matrix products and attention, over
   the smallest number that can give the answer (`least.py`); "of peak" the rate at which it executes them over the rate
   of the matrix product.

Times and rates are medians over the rounds, and ratios those of medians. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from interleaved import interleaved
from least import executed, least
from peers import Loop, lens_bridge, lens_loop, nnsight_loop, nnsight_model, transformers_model
from torch import Tensor

import interp
from interp import Edit, PromptPairs, Variant
from interp.loading.load import find

TOLERANCE = 1e-4  # of the largest logit
WIDTH, PRODUCTS = 2048, 4  # of the matrix product, and how often a round makes it
PEERS = {"lens": "transformer_lens", "nnsight": "nnsight"}  # option: package


@dataclass(frozen=True)
class Row:
    """One sweep of the table; `aim` is how many times faster than each peer it should be."""

    name: str
    title: str
    pairs: PromptPairs
    variants: Sequence[Variant]
    aim: float
    base: str = "corrupt"
    source: str = "clean"

    @property
    def sides(self) -> dict[str, str]:
        """The arguments that say which side is edited and which is copied from."""
        return {"base": self.base, "source": self.source}


def rows(model: Any) -> list[Row]:
    """The five sweeps. Prompts of equal length, so that nothing is padded."""
    layers, heads, length = range(model.cfg.n_layers), range(model.cfg.n_heads), 16
    pairs = interp.tasks.ioi(model, n=32, seed=0)
    pairs = pairs[[at for at, tokens in enumerate(pairs.lengths.tolist()) if tokens == length][:4]]
    by_head = cells([Edit("z", where={"layer": layer, "head": head}) for layer in layers for head in heads])
    by_pos = cells([Edit("resid_pre", where={"layer": layer, "pos": pos}) for layer in layers for pos in range(length)])
    every = [{"layer": layer, "head": head, "pos": pos} for layer in layers for head in heads for pos in range(length)]
    by_both = cells([Edit("z", where=where) for where in every])
    ioi = "IOI, 4 x 16 tokens"
    return [
        Row("heads", f"heads, {ioi}", pairs, by_head, 11),
        Row("resid", f"residual stream by position, {ioi}", pairs, by_pos, 28),
        Row("heads-pos", f"heads by position, {ioi}", pairs, by_both, 35),
        Row("heads-far", "heads, differing from the first token, 4 x 64", random_pairs(model), by_head, 3),
        Row("circuits", f"random circuits, {ioi}", pairs, circuits(model, 200), 2, base="clean", source="clean"),
    ]


def cells(edits: Sequence[Edit]) -> list[Variant]:
    """A variant for each edit."""
    return [Variant([edit], labels={"cell": cell}) for cell, edit in enumerate(edits)]


def random_pairs(model: Any) -> PromptPairs:
    """4 pairs of 64 random tokens that are different at every position."""
    generator = torch.Generator().manual_seed(0)
    vocab = model.cfg.d_vocab
    clean = torch.randint(vocab, (4, 64), generator=generator)
    corrupt = (clean + torch.randint(1, vocab, clean.shape, generator=generator)) % vocab
    answers = torch.randint(vocab // 2, (4, 2), generator=generator) + torch.tensor([0, vocab // 2])
    return PromptPairs.from_tokens(clean, corrupt, answers=answers, name="random")


def circuits(model: Any, count: int) -> list[Variant]:
    """Variants that each zero a random half of all heads."""
    rng, cfg = random.Random(0), model.cfg
    every = [(layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
    drawn = []
    for cell in range(count):
        off: dict[int, list[int]] = {}
        for layer, head in sorted(rng.sample(every, len(every) // 2)):
            off.setdefault(layer, []).append(head)
        edits = [Edit("z", where={"layer": layer, "head": heads}, op="zero") for layer, heads in off.items()]
        drawn.append(Variant(edits, labels={"cell": cell}))
    return drawn


def ours(model: Any, row: Row) -> pd.DataFrame:
    return interp.sweep(model, row.pairs, row.variants, progress=False, **row.sides)


def operations(model: Any, row: Row) -> tuple[int, int]:
    """Floating-point operations that our sweep executes in matrix products and attention, and the smallest number."""
    return executed(lambda: ours(model, row)), least(model.cfg, row.pairs, row.variants, **row.sides)


def measure(model: Any, loops: dict[str, Callable[..., Loop]], row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table.

    Raises:
        RuntimeError: a peer computes other values than we do.
    """
    rng = random.Random(1)
    found: dict[str, dict[int, Tensor]] = {name: {} for name in loops}
    frames: list[pd.DataFrame] = []
    taken = min(options.peer_cells, len(row.variants))
    left, right = torch.randn(2, WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))

    def some(name: str, run: Loop) -> None:
        for cell in rng.sample(range(len(row.variants)), taken):
            found[name][cell] = run(row.variants[cell])

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right)

    functions: dict[str, Callable[[], Any]] = {"interp": lambda: frames.append(ours(model, row)), "product": products}
    for name, loop in loops.items():
        run = loop(row.pairs, row.variants, **row.sides)
        functions[name] = lambda name=name, run=run: some(name, run)
    seconds = {name: statistics.median(times) for name, times in interleaved(functions, options.rounds).items()}

    scale = float(model(getattr(row.pairs, row.base)).abs().max())
    values = frames[-1].pivot(index="cell", columns="prompt", values="value")
    difference = {name: _largest_difference(values, row, cells) / scale for name, cells in found.items()}
    for name, largest in difference.items():
        if not largest <= TOLERANCE:
            raise RuntimeError(f"{row.name}: {name} differs from us by {largest:.2g} of the largest logit, {scale:.3g}")
    executed, smallest = operations(model, row)
    rate, peak = executed / seconds["interp"], 2 * WIDTH**3 * PRODUCTS / seconds["product"]
    peer_seconds = {name: seconds[name] / taken for name in loops}
    return {
        "row": row.name,
        "title": row.title,
        "cells": len(row.variants),
        "aim": row.aim,
        "seconds": seconds["interp"],
        "peer_seconds_per_cell": peer_seconds,
        "times_faster": {name: each * len(row.variants) / seconds["interp"] for name, each in peer_seconds.items()},
        "peer_cells_compared": {name: len(cells) for name, cells in found.items()},
        "difference": difference,
        "operations": executed,
        "least_operations": smallest,
        "operations_over_least": executed / smallest,
        "gflops": rate / 1e9,
        "peak_gflops": peak / 1e9,
        "of_peak": rate / peak,
    }


def _largest_difference(values: pd.DataFrame, row: Row, found: dict[int, Tensor]) -> float:
    """Between our values (a row for each label `cell`, a column for each prompt) and a peer's, by number of variant."""
    label = {at: row.variants[at].labels["cell"] for at in found}
    return max(float(abs(values.loc[label[at]].to_numpy() - theirs.numpy()).max()) for at, theirs in found.items())


def table(results: Sequence[dict[str, Any]], peers: Sequence[str]) -> str:
    """The results as text, a line for each sweep."""
    lines = [["sweep", "cells", "seconds"]]
    lines[0] += [f"{peer} {what}" for peer in peers for what in ("s/cell", "times", "differs")]
    lines[0] += ["aim", "GFLOP", "x least", "GFLOP/s", "of peak"]
    for r in results:
        line = [r["title"], f"{r['cells']:,}", f"{r['seconds']:.2f}"]
        for peer in peers:
            each, times, differs = (r[of][peer] for of in ("peer_seconds_per_cell", "times_faster", "difference"))
            line += [f"{each:.4f}", f"{times:.1f}", f"{differs:.0e}"]
        line += [f"{r['aim']:g}", f"{r['operations'] / 1e9:,.0f}", f"{r['operations_over_least']:.3f}"]
        lines.append([*line, f"{r['gflops']:.0f}", f"{r['of_peak']:.2f}"])
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(wide[0]), *(text.rjust(w) for text, w in zip(line[1:], wide[1:], strict=True))])
        for line in lines
    )


def arguments() -> argparse.Namespace:
    names = ["heads", "resid", "heads-pos", "heads-far", "circuits"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count; one more goes before them")
    parser.add_argument("--peer-cells", type=int, default=24, help="cells of each peer a round (24)")
    parser.add_argument("--cells", type=int, help="only so many cells of each sweep, drawn at random: a quick check")
    parser.add_argument("--only", default=",".join(names), help=f"sweeps, of {','.join(names)}")
    parser.add_argument("--peers", help="lens,nnsight or none; those that are installed if not given")
    parser.add_argument("--json", type=Path, help="write the numbers to this file as well")
    options = parser.parse_args()
    options.only = options.only.split(",")
    installed = [name for name, package in PEERS.items() if importlib.util.find_spec(package)]
    wanted = ",".join(installed) if options.peers is None else options.peers
    options.peers = [name for name in wanted.split(",") if name and name != "none"]
    for what, given, known in (("sweep", options.only, names), ("installed peer", options.peers, installed)):
        for name in given:
            if name not in known:
                parser.error(f"no {what} is called {name!r}; choose from {', '.join(known)}")
    if min(options.rounds, options.peer_cells, options.cells or 1) < 1:
        parser.error("rounds and cells are counted from 1")
    return options


def peer_loops(peers: Sequence[str], file: Path) -> dict[str, Callable[..., Loop]]:
    """The loops of the peers by name, each around a model of its own."""
    loops: dict[str, Callable[..., Loop]] = {}
    if not peers:
        return loops
    theirs = transformers_model(file)
    if "lens" in peers:
        bridge = lens_bridge(theirs, file)
        loops["lens"] = lambda *args, **kwargs: lens_loop(bridge, *args, **kwargs)
    if "nnsight" in peers:
        traced = nnsight_model(theirs)
        loops["nnsight"] = lambda *args, **kwargs: nnsight_loop(traced, *args, **kwargs)
    return loops


@torch.no_grad()
def main() -> None:
    options = arguments()
    model = interp.load("smollm2-135m", device="cpu")
    loops = peer_loops(options.peers, find("smollm2-135m").source.files[0])
    results: list[dict[str, Any]] = []
    for row in rows(model):
        if row.name not in options.only:
            continue
        if options.cells is not None:
            few = random.Random(2).sample(row.variants, min(options.cells, len(row.variants)))
            row = dataclasses.replace(row, variants=few)
        print(f"{row.title}: {len(row.variants):,} cells", file=sys.stderr, flush=True)
        result = measure(model, loops, row, options)
        times = ", ".join(f"{factor:.1f} x {name}" for name, factor in result["times_faster"].items())
        print(f"  {result['seconds']:.2f} s {times}".rstrip(), file=sys.stderr, flush=True)
        results.append(result)

    threads, version = torch.get_num_threads(), torch.__version__
    peak = statistics.median(result["peak_gflops"] for result in results)
    print(f"SmolLM2-135M, float32, {threads} threads, torch {version}; rounds: {options.rounds}")
    print(f"A matrix product of {WIDTH} x {WIDTH} reaches {peak:.0f} GFLOP/s.")
    if options.peers:
        print(
            f"A peer is timed over {options.peer_cells} cells a round, drawn anew each time. times: its seconds a cell"
        )
        print("x cells / our seconds for the whole sweep. differs: largest difference from our values / largest logit.")
    print(f"\n{table(results, options.peers)}")
    if options.json is not None:
        about = {"model": "SmolLM2-135M", "dtype": "float32", "threads": threads, "torch": version}
        content = {**about, "rounds": options.rounds, "rows": results}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
