"""Damaged files of models: is every one refused, or read as what it says now?

1. A tiny model of some family is copied, and one of its files damaged (`damage`).
2. It is loaded, and computes the logits of a few ids and the ids of a few texts.
3. The original's numbers are right; so are those that transformers gets from the same damaged files (an option that
   was changed to another sound one describes another sound model). Others are different without a word, and numbers
   that are not finite are always different. After a change to nothing but a value they count by themselves: a
   file that has no checksum cannot know.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

import interp

from . import damage
from .originals import Numbers, Original, make, numbers, oracle, same
from .trial import Case, Outcome, tell

TOGETHER = 20  # cases in a process
ORACLE = 1e-4  # of the largest logit
ORIGINALS: list[Original] = []


def prepare(home: Path) -> None:
    ORIGINALS[:] = make(home)


def count() -> int:
    return 6000


def case(seed: int, number: int) -> Case:
    def run() -> Outcome:
        rng = Random(f"files {seed} {number}")
        original = rng.choice(ORIGINALS)
        folder = original.copied()
        what, follows = damaged(rng, original, folder)
        title = f"{original.name}: {what}"
        tell(title)
        place = folder / original.file if original.file else folder
        return _tried(title, place, original, follows)

    return run


def damaged(rng: Random, original: Original, folder: Path) -> damage.Damage:
    """Damage one file of a model; what was done, and what may follow."""
    if original.file:
        ways = [damage.gguf_bytes, damage.gguf_bytes, damage.gguf_number, damage.gguf_entry, damage.gguf_tensors]
        return rng.choice([*ways, damage.whole_file] if rng.random() < 0.2 else ways)(rng, folder / original.file)
    weights = rng.choice(sorted(folder.glob("*.safetensors")))
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    index = folder / "model.safetensors.index.json"
    if index.exists() and rng.random() < 0.4:
        names = [index.name]
    kind = rng.random()
    if kind < 0.35:
        ways = [damage.safetensors_bytes, damage.safetensors_header, damage.safetensors_tensor, damage.safetensors_text]
        return rng.choice([ways[0], *ways])(rng, weights)
    if kind < 0.42:
        return damage.whole_file(rng, rng.choice([weights, folder / rng.choice(names)]))
    if index.exists() and kind < 0.7:
        return damage.index(rng, index)
    if kind < 0.55:
        return damage.nonsense(rng, folder / "config.json")
    file = folder / rng.choice([names[0], *names])
    return rng.choice([damage.text_file, damage.json_value, damage.json_value])(rng, file)


def _tried(title: str, place: Path, original: Original, follows: str) -> Outcome:
    found = numbers(interp.load(place))
    if not found.ids:  # without a tokenizer every text is refused
        found = Numbers(found.logits, original.numbers.ids)
    if same(found, original.numbers):
        # What is nonsense for one family is no option of another, and a value may have been what it was.
        return Outcome("right", title)
    finite = bool(found.logits.isfinite().all())
    ids = "" if found.ids == original.numbers.ids else f"; ids {found.ids} instead of {original.numbers.ids}"
    if follows == "refuse":
        return Outcome("accepted", title, f"it was loaded{ids}")
    if follows == "values":
        return Outcome("unseen" if finite else "different", title, "the logits are not finite" * (not finite))
    if not finite:
        return Outcome("different", title, "the logits are not finite")
    try:
        expected = _expected(place)
    except Exception as error:
        return Outcome("different", title, f"transformers refuses it: {type(error).__name__}: {error!s:.200}{ids}")
    if same(found, expected, within=ORACLE):
        return Outcome("right", title, "as transformers reads it")
    return Outcome("different", title, f"transformers reads it otherwise{ids}")


def _expected(place: Path) -> Numbers:
    """What transformers reads; it refuses 1 where it wants 1.0, which are one number."""
    try:
        return oracle(place)
    except Exception as error:
        field = re.search(r"Field '(\w+)' expected float, got int", str(error))
        if field is None:
            raise
        options = json.loads((place / "config.json").read_text(encoding="utf-8"))
        options[field[1]] = float(options[field[1]])
        (place / "config.json").write_text(json.dumps(options), encoding="utf-8")
        return oracle(place)
