"""Damaged files that `interp` itself wrote: nothing may be different without a word, because each has a checksum.

1. Prompt pairs, a circuit, a direction, a tuned lens, its checkpoint, the journals of a sweep and of ACDC, and a model
   are saved.
2. In one file bits flip, or bytes are zeroed, left out, repeated or exchanged with another file's.
3. What is read back, or computed by going on from it, must be what was saved, or refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from makers import make, make_pairs

import interp
from interp.circuits.circuit import Circuit, random_circuits
from interp.circuits.graph import Graph
from interp.circuits.search import acdc
from interp.directions.steering import Direction
from interp.edits import Edit, Variant
from interp.lenses.training import train
from interp.lenses.tuned_lens import TunedLens
from interp.prompts.pairs import PromptPairs
from interp.resume.fingerprint import fingerprint

from .damage import flip
from .trial import Case, Outcome, tell

TOGETHER = 10


@dataclass(frozen=True)
class Saved:
    """One kind of saved thing: the folder it is in, how to read it or go on from it, what that gives (a digest)."""

    name: str
    folder: Path
    read: Callable[[Path], str]
    expected: str


KINDS: list[Saved] = []


def prepare(home: Path) -> None:
    model, pairs = make("llama_gqa"), make_pairs((6, 4, 7, 5), shared=1)
    graph = Graph.of(model)
    (drawn,) = random_circuits(graph, 12, 1)
    circuit = Circuit(graph, drawn.edges, torch.rand(graph.allowed.shape), {"method": "drawn"})
    direction = Direction(torch.randn(4), "z", 1, ("head", 2), {"classes": ["a", "b"]})
    start = TunedLens.identity(model)
    drawn_A, drawn_b = torch.randn(start.A.shape), torch.randn(start.b.shape)
    lens = TunedLens(drawn_A, drawn_b, start.layers, start.model_name, start.digest, {"steps": 1}, {})
    heads = [Variant([Edit("z", {"layer": la, "head": h})], {"head": f"{la}.{h}"}) for la in (0, 1) for h in range(4)]
    text = torch.randint(0, 29, (6, 8), generator=torch.Generator().manual_seed(0))

    def of_lens(one: TunedLens) -> str:
        return fingerprint([one.A, one.b, one.layers, one.model_name, one.digest, dict(one.divergences)])

    def of_circuit(one: Circuit) -> str:
        return fingerprint([one.edges, one.scores, dict(one.found)])

    def of_pairs(one: PromptPairs) -> str:
        texts = [one.clean_texts, one.corrupt_texts, one.str_tokens, one.corrupt_str_tokens]
        return fingerprint([one.digest(), one.name, dict(one.notes), texts, one.clean, one.corrupt])

    def of_model(one: Any) -> str:
        with torch.no_grad():
            return fingerprint([one(pairs.clean), one.cfg.replace(model_name="")])

    def swept(folder: Path) -> str:
        frame = interp.sweep(model, pairs, heads, out=folder, progress=False, max_memory=400_000)
        return fingerprint(frame.to_dict("list"))

    def trained(folder: Path) -> str:
        return of_lens(train(model, text, steps=14, batch=8, holdout=2, out=folder, progress=False))

    def discovered(folder: Path) -> str:
        return of_circuit(acdc(model, pairs[:2], tau=0.05, out=folder, progress=False))

    kinds: dict[str, tuple[Callable[[Path], object], Callable[[Path], str]]] = {
        "prompt pairs": (lambda at: pairs.save(at / "pairs"), lambda at: of_pairs(PromptPairs.load(at / "pairs"))),
        "circuit": (lambda at: circuit.save(at / "c"), lambda at: of_circuit(Circuit.load(at / "c", model))),
        "direction": (
            lambda at: direction.save(at / "d"),
            lambda at: fingerprint(vars(Direction.load(at / "d"))),
        ),
        "tuned lens": (lens.save, lambda at: of_lens(TunedLens.load(at, model))),
        "checkpoint of a lens": (lambda at: _stopped(trained, at), trained),
        "journal of a sweep": (swept, swept),
        "journal of ACDC": (discovered, discovered),
        "model": (lambda at: interp.save(model, at), lambda at: of_model(interp.load(at))),
    }
    KINDS.clear()
    for name, (write, read) in kinds.items():
        folder = home / name.replace(" ", "-")
        folder.mkdir()
        write(folder)
        kept = Path(shutil.copytree(folder, home / f"read-{folder.name}"))
        KINDS.append(Saved(name, folder, read, read(kept)))


def _stopped(trained: Callable[[Path], str], folder: Path) -> None:
    """The checkpoint that a training leaves which ends before its lens is saved."""
    save = TunedLens.save
    try:
        TunedLens.save = _stop  # type: ignore[method-assign]
        trained(folder)
    except KeyboardInterrupt:
        return
    finally:
        TunedLens.save = save  # type: ignore[method-assign]


def _stop(*args: Any) -> Any:
    raise KeyboardInterrupt


def count() -> int:
    return 3000


def case(seed: int, number: int) -> Case:
    def run() -> Outcome:
        rng = Random(f"saved {seed} {number}")
        saved = rng.choice(KINDS)
        folder = Path(shutil.copytree(saved.folder, Path("saved").absolute()))
        file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        content, what = damaged(rng, file.read_bytes(), file)
        file.write_bytes(content)
        title = f"{saved.name}: {file.name}: {what}"
        tell(title)
        return Outcome("right" if saved.read(folder) == saved.expected else "different", title)

    return run


def damaged(rng: Random, content: bytes, file: Path) -> tuple[bytes, str]:
    """The content of a file, damaged, and what was done."""
    at, size = rng.randrange(len(content)), rng.choice([1, 4, 64, 512])
    way = rng.randrange(9)
    if way < 4:
        bit = rng.randrange(8)
        return flip(content, at, bit), f"bit {bit} of byte {at} flipped"
    if way == 4:
        return content[:at], f"cut to {at} bytes"
    if way == 5:
        return content[:at] + bytes(len(content[at : at + size])) + content[at + size :], f"{size} zeros at {at}"
    if way == 6:
        return content[:at] + content[at + size :], f"{size} bytes left out at {at}"
    if way == 7:
        return content[:at] + content[at : at + size] + content[at:], f"{size} bytes repeated at {at}"
    others = sorted(path for path in file.parent.iterdir() if path.is_file() and path != file)
    other = rng.choice(others or [file])
    return other.read_bytes(), f"the content of {other.name}"
