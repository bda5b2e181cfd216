"""Processes that are killed while they write: does going on end with the same bytes?

1. A journalled sweep, ACDC, or the training of a lens is killed (SIGKILL) at a drawn line or after a drawn time, up to
   three times in a row. Then it goes on to its end. Its folder and its result must be, byte for byte, those of a run
   that nobody disturbed.
2. A thing is saved over an earlier one and killed. What is read must be the one, the other, or (where one thing is
   several files) refused; and saving it once more must give the new one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from makers import make, make_pairs

import interp
from interp.circuits.circuit import Circuit, random_circuits
from interp.circuits.graph import Graph
from interp.circuits.search import acdc
from interp.directions.steering import Direction
from interp.edits import Edit, Variant
from interp.errors import InterpError
from interp.lenses.training import train
from interp.lenses.tuned_lens import TunedLens
from interp.prompts.pairs import PromptPairs
from interp.resume.fingerprint import fingerprint

from .lines import counted
from .trial import Case, Outcome, tell


@dataclass
class Deed:
    """Something that writes into a folder and gives a digest of its result."""

    name: str
    do: Callable[[Path], str]
    lines: int = 0
    seconds: float = 0.0
    result: str = ""
    files: dict[str, bytes] | None = None


@dataclass
class Saving:
    """Something that is saved over another: how to write either, and how to read."""

    name: str
    write: Callable[[Path, int], object]
    read: Callable[[Path], str]
    several: bool = False
    lines: int = 0
    expected: tuple[str, str] = ("", "")


DEEDS: list[Deed] = []
SAVINGS: list[Saving] = []


def prepare(home: Path) -> None:
    model, pairs = make("llama_gqa"), make_pairs((6, 4, 7, 5), shared=1)
    heads = [Variant([Edit("z", {"layer": la, "head": h})], {"head": f"{la}.{h}"}) for la in (0, 1) for h in range(4)]
    text = torch.randint(0, 29, (6, 8), generator=torch.Generator().manual_seed(0))
    graph = Graph.of(model)
    circuits = [Circuit(graph, next(random_circuits(graph, 12, 1, seed=seed)).edges) for seed in (0, 1)]
    models = [model, make("llama_gqa", seed=9)]
    start = TunedLens.identity(model)
    lenses = [
        TunedLens(start.A + add, start.b, start.layers, start.model_name, start.digest, {"added": add}, {})
        for add in (0, 1)
    ]
    directions = [Direction(torch.randn(4), "z", 1, ("head", number), {}) for number in (0, 1)]
    prompts = [pairs, make_pairs((5, 5), seed=4)]

    def of_lens(one: TunedLens) -> str:
        return fingerprint([one.A, one.b, one.layers, dict(one.divergences), one.training.get("added")])

    def of_model(one: interp.GPT) -> str:
        with torch.no_grad():
            return fingerprint(one(pairs.clean))

    def swept(folder: Path) -> str:
        frame = interp.sweep(model, pairs, heads, out=folder, progress=False, max_memory=400_000)
        return fingerprint(frame.to_dict("list"))

    def trained(folder: Path) -> str:
        return of_lens(train(model, text, steps=22, batch=8, holdout=2, out=folder, progress=False))

    def discovered(folder: Path) -> str:
        found = acdc(model, pairs[:2], tau=0.05, out=folder, progress=False)
        return fingerprint([found.edges, found.scores])

    DEEDS[:] = [Deed("sweep", swept), Deed("ACDC", discovered), Deed("training of a lens", trained)]
    SAVINGS[:] = [
        Saving("pairs", lambda at, n: prompts[n].save(at / "p"), lambda at: PromptPairs.load(at / "p").digest()),
        Saving(
            "circuit",
            lambda at, n: circuits[n].save(at / "c"),
            lambda at: fingerprint(Circuit.load(at / "c", model).edges),
        ),
        Saving("direction", lambda at, n: directions[n].save(at / "d"), lambda at: str(Direction.load(at / "d").head)),
        Saving("tuned lens", lambda at, n: lenses[n].save(at), lambda at: of_lens(TunedLens.load(at, model)), True),
        Saving("model", lambda at, n: interp.save(models[n], at), lambda at: of_model(interp.load(at)), True),
    ]
    for deed in DEEDS:
        deed.do(_made(home / f"{deed.name} first"))
        begun = time.monotonic()
        deed.result = deed.do(_made(home / deed.name))
        deed.seconds, deed.files = time.monotonic() - begun, _content(home / deed.name)
        with counted() as count:
            deed.do(_made(home / f"{deed.name} counted"))
        deed.lines = count.lines
    for saving in SAVINGS:
        folder, read = _made(home / saving.name), []
        for number in (0, 1):
            with counted() as count:
                saving.write(folder, number)
            saving.lines = count.lines
            read.append(saving.read(folder))
        assert read[0] != read[1], saving.name
        saving.expected = (read[0], read[1])


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _content(folder: Path) -> dict[str, bytes]:
    """What a folder holds, but for the time that a training took."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    found.pop("tuned_lens.json", None)  # it says how long the training took
    return found


def count() -> int:
    return 2000


def case(seed: int, number: int) -> Case:
    def run() -> Outcome:
        rng = Random(f"kills {seed} {number}")
        return _resumed(rng, rng.choice(DEEDS)) if rng.random() < 0.6 else _saved(rng, rng.choice(SAVINGS))

    return run


def _resumed(rng: Random, deed: Deed) -> Outcome:
    folder, moments = _made(Path("here")), list[tuple[int | None, float]]()
    for _ in range(rng.randint(1, 3)):
        line = rng.randint(1, deed.lines) if rng.random() < 0.6 else None
        moments.append((line, rng.random() * deed.seconds))
    shown = ", ".join(f"after {seconds:.3f} s" if line is None else f"at line {line}" for line, seconds in moments)
    title = f"{deed.name}: killed {shown}"
    tell(title)
    for line, seconds in moments:
        _killed(lambda: deed.do(folder), line, seconds)
    result = deed.do(folder)
    assert deed.files is not None
    found = _content(folder)
    problems = [] if result == deed.result else ["the result is another"]
    problems += [f"{name} differs or is missing" for name in deed.files if found.get(name) != deed.files[name]]
    problems += [f"{name} is left" for name in found if name not in deed.files]
    return Outcome("different" if problems else "right", title, "; ".join(problems))


def _saved(rng: Random, saving: Saving) -> Outcome:
    folder, line = _made(Path("here")), rng.randint(1, saving.lines)
    earlier = rng.random() < 0.7
    title = f"{saving.name}: saved{' over another' * earlier}, killed at line {line}"
    tell(title)
    if earlier:
        saving.write(folder, 0)
    _killed(lambda: saving.write(folder, 1), line)
    problems = []
    try:
        if saving.read(folder) not in saving.expected[not earlier :]:
            problems.append("what is read is neither the old nor the new one")
    except InterpError as error:
        if earlier and not saving.several:
            problems.append(f"nothing can be read: {error}")
    saving.write(folder, 1)
    if saving.read(folder) != saving.expected[1]:
        problems.append("saved once more, it is not the new one")
    return Outcome("different" if problems else "right", title, "; ".join(problems))


def _killed(do: Callable[[], object], line: int | None, seconds: float = 0.0) -> None:
    """Do something in a process of its own, and kill it before a line that it runs, or after some seconds."""
    process = os.fork()
    if not process:
        with contextlib.suppress(BaseException), counted(line, _die) if line else contextlib.nullcontext():
            do()
        os._exit(0)
    if line is None:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
