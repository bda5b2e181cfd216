"""Interrupts and hooks that raise, at drawn moments: is the model afterwards what it was?

1. Something is done with a small model: a forward, with a cache, in a `hooks` block, with gradients, a sweep with a
   journal, generation, saving.
2. At a drawn line of `interp` (or of what Python's context managers run for it) the process gets SIGINT, as from
   Ctrl-C; or the hook that is attached raises at a drawn call.
3. What was raised must come out. Afterwards the same forward must give the same bits, no hook may be attached, torch's
   own state must be as before, no half file may be left, and what was saved must be read, or not be there.
"""

from __future__ import annotations

import contextlib
import signal
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
from interp.directions.steering import Direction
from interp.edits import Edit, Variant
from interp.lenses.training import train
from interp.lenses.tuned_lens import TunedLens
from interp.prompts.pairs import PromptPairs

from .lines import counted
from .trial import Case, Outcome, tell

TOGETHER = 10
FAMILIES = ("gpt2", "llama_gqa", "hybrid")


class PlannedError(Exception):
    """What a hook raises."""


@dataclass(frozen=True)
class Deed:
    """Something that is done with a model; `lines` are how many lines of Python it runs, for each family."""

    name: str
    do: Callable[[Any, Callable[..., Any]], object]
    lines: dict[str, int]


DEEDS: list[Deed] = []
MODELS: dict[str, Any] = {}
EXPECTED: dict[str, torch.Tensor] = {}
TOKENS = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(0))
PAIRS = make_pairs((6, 5), shared=2)


def prepare(home: Path) -> None:
    heads = [Variant([Edit("resid_pre", {"layer": layer, "pos": -1})], {"layer": layer}) for layer in (0, 1)]
    text = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0))

    def steer(model: Any, hook: Callable[..., Any]) -> None:
        direction = Direction(torch.ones(model.cfg.d_model), "resid_pre", 1)
        with interp.steer(model, direction, 2.0), model.hooks([("blocks.0.hook_resid_post", hook)]):
            model(TOKENS)

    def block(model: Any, hook: Callable[..., Any]) -> None:
        with model.hooks([(lambda name: "resid" in name, hook), ("ln_final.hook_scale", hook)]):
            model(TOKENS)
            model.run_with_cache(TOKENS, names_filter="*resid_post")

    def backward(model: Any, hook: Callable[..., Any]) -> None:
        loss = model.run_with_hooks(
            TOKENS, return_type="loss", fwd_hooks=[("*resid_mid", hook)], bwd_hooks=[("*resid_post", hook)]
        )
        loss.backward()
        model.zero_grad()

    def circuit(model: Any, hook: Callable[..., Any]) -> None:
        (drawn,) = random_circuits(Graph.of(model), 4, 1)
        drawn.save("circuit.json")

    deeds: dict[str, Callable[[Any, Callable[..., Any]], object]] = {
        "forward": lambda model, hook: model.run_with_hooks(TOKENS, fwd_hooks=[("*resid_post", hook)]),
        "run_with_cache": lambda model, hook: model.run_with_cache(TOKENS)[1].accumulated_resid(),
        "run_with_cache of one site": lambda model, hook: model.run_with_cache(TOKENS, names_filter="blocks.1.*"),
        "with model.hooks": block,
        "backward hooks": backward,
        "steer": steer,
        "generate": lambda model, hook: (
            model.run_with_hooks(TOKENS, fwd_hooks=[("*resid_pre", hook)]) is model.generate(TOKENS, 3, seed=0)
        ),
        "sweep": lambda model, hook: interp.sweep(model, PAIRS, heads, progress=False),
        "sweep with a journal": lambda model, hook: interp.sweep(model, PAIRS, heads, out="out", progress=False),
        "save pairs": lambda model, hook: PAIRS.save("pairs.json"),
        "save a circuit": circuit,
        "save a model": lambda model, hook: interp.save(model, "model"),
        "train a lens": lambda model, hook: train(model, text, steps=2, batch=4, holdout=1, out="lens", progress=False),
    }
    DEEDS.clear()
    with torch.no_grad():
        for family in FAMILIES:
            MODELS[family] = make(family)
            EXPECTED[family] = MODELS[family](TOKENS)
    for name, do in deeds.items():
        lines = {}
        for family, model in MODELS.items():
            with contextlib.chdir(_empty(home / f"{family} {name} first")):
                do(model, _idle)  # so that what is made once is made
            with contextlib.chdir(_empty(home / f"{family} {name}")), counted() as count:
                do(model, _idle)
            lines[family] = count.lines
        DEEDS.append(Deed(name, do, lines))


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _idle(value: Any, hook: Any) -> None:
    return None


def count() -> int:
    return 6000


def case(seed: int, number: int) -> Case:
    def run() -> Outcome:
        rng = Random(f"interrupts {seed} {number}")
        deed, family = rng.choice(DEEDS), rng.choice(FAMILIES)
        model = MODELS[family]
        raises = deed.name in ("forward", "with model.hooks", "backward hooks", "steer") and rng.random() < 0.4
        at = rng.randint(1, 12) if raises else rng.randint(1, deed.lines[family])
        title = f"{deed.name} ({family}): " + (f"the hook raises in call {at}" if raises else f"Ctrl-C at line {at}")
        tell(title)
        calls = [0]

        def hook(value: Any, hook: Any) -> None:
            calls[0] += 1
            if raises and calls[0] == at:
                raise PlannedError

        ended = "nothing"
        before = _state()
        try:
            with contextlib.nullcontext() if raises else counted(at, _interrupt):
                deed.do(model, hook)
        except (KeyboardInterrupt, PlannedError) as error:
            ended = type(error).__name__
        except Exception as error:
            return Outcome("different", title, f"another exception came out: {type(error).__name__}: {error}")
        due = not raises or calls[0] >= at
        problems = [] if ended != "nothing" or not due else ["what was raised did not come out"]
        problems += _problems(model, family, before)
        return Outcome("different" if problems else "right", title, "; ".join(problems))

    return run


def _interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def _state() -> tuple[Any, ...]:
    handler = signal.getsignal(signal.SIGINT)
    return torch.is_grad_enabled(), torch.get_num_threads(), torch.is_inference_mode_enabled(), handler


def _problems(model: Any, family: str, before: tuple[Any, ...]) -> list[str]:
    problems = []
    if _state() != before:
        problems.append(f"torch's state or the handler of SIGINT was {before} and is {_state()}")
    attached = [name for name, point in model.hook_dict.items() if point.has_hooks]
    if attached:
        problems.append(f"{len(attached)} hooks are still attached, such as at {attached[0]}")
    try:
        with torch.no_grad():
            if not torch.equal(model(TOKENS), EXPECTED[family]):
                problems.append("the same forward gives other bits")
    except Exception as error:
        problems.append(f"the same forward raises {type(error).__name__}: {error}")
    partial = [str(path) for path in Path().rglob("*partial*")]
    if partial:
        problems.append(f"part of a file is left: {partial[0]}")
    readers: dict[str, Callable[[Path], object]] = {
        "pairs.json": PromptPairs.load,
        "circuit.json": lambda path: Circuit.load(path, model),
        "model": interp.load,
        "saved": interp.load,
        "lens/tuned_lens.json": lambda path: TunedLens.load(path.parent, model),
    }
    for name, read in readers.items():
        path = Path(name)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            try:
                read(path)
            except Exception as error:
                problems.append(f"{name} cannot be read: {type(error).__name__}: {error!s:.150}")
    return problems
