"""Every kind of file that `interp` saves notices each bit that flips; files without a checksum are read as before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from makers import make, make_pairs

from interp.circuits.circuit import Circuit, random_circuits
from interp.circuits.graph import Graph
from interp.directions.steering import Direction
from interp.errors import InterpError, WeightsError
from interp.files.checksums import BLANK, MARK, is_sound, of_values, sealed
from interp.lenses.tuned_lens import CONFIG_FILE, WEIGHTS_FILE, TunedLens
from interp.prompts.pairs import PromptPairs
from interp.resume.fingerprint import fingerprint

MODEL = make("llama_gqa", n_layers=1)


def pairs() -> PromptPairs:
    made = make_pairs((6, 4, 5), shared=2)
    made.notes["of"] = "a test"
    return made


def lens() -> TunedLens:
    start = TunedLens.identity(MODEL)
    return TunedLens(
        start.A + 0.25, start.b + 0.5, start.layers, start.model_name, start.digest, {"steps": 3}, {"tuned": [[0.1]]}
    )


def circuit() -> Circuit:
    graph = Graph.of(MODEL)
    (drawn,) = random_circuits(graph, 5, 1)
    return Circuit(graph, drawn.edges, torch.rand(graph.allowed.shape, dtype=torch.float64), {"method": "drawn"})


DIRECTION = Direction(torch.arange(16.0), "z", 0, ("head", 1), {"classes": ["a", "b"], "said": MARK.decode()})
# What is saved, how it is read back, and all that it says.
KINDS: dict[str, tuple[Callable[[], Any], Callable[[Path], Any], Callable[[Any], Any]]] = {
    "pairs": (pairs, PromptPairs.load, lambda one: (one.digest(), one.name, one.notes, one.clean_texts, one.clean)),
    "circuit": (circuit, lambda path: Circuit.load(path, MODEL), lambda one: one._plain()),
    "direction": (
        lambda: DIRECTION,
        Direction.load,
        lambda one: (one.vector, one.site, one.layer, one.head, dict(one.made)),
    ),
    "lens": (
        lens,
        lambda path: TunedLens.load(path, MODEL),
        lambda one: (one.A, one.b, one.layers, one.model_name, one.digest, one.training, one.divergences),
    ),
}


def files(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_refused_or_changes_nothing(kind: str, tmp_path: Path) -> None:
    made, load, said = KINDS[kind]
    path, thing = tmp_path / "saved", made()
    thing.save(path)
    expected, refused = fingerprint(said(thing)), 0
    assert fingerprint(said(load(path))) == expected
    for file in files(path):
        whole = file.read_bytes()
        for at in range(0, len(whole), 3):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 7)]) + whole[at + 1 :])
            try:
                assert fingerprint(said(load(path))) == expected, (file.name, at)
            except InterpError:
                refused += 1
        file.write_bytes(whole)
    assert refused > 100


def test_a_number_that_was_changed_is_named(tmp_path: Path) -> None:
    lens().save(tmp_path)
    file = tmp_path / WEIGHTS_FILE
    tensors = safetensors.torch.load(file.read_bytes())
    file.write_bytes(safetensors.torch.save({**tensors, "b": tensors["b"] + 1}))
    with pytest.raises(WeightsError, match=r"is damaged: tuned_lens.safetensors was changed, or was saved without"):
        TunedLens.load(tmp_path, MODEL)
    lens().save(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**config, "training": {"steps": 4}}))
    with pytest.raises(WeightsError, match=r"is damaged: tuned_lens.json was changed"):
        TunedLens.load(tmp_path, MODEL)


@pytest.mark.parametrize("kind", KINDS)
def test_files_without_a_checksum_are_read(kind: str, tmp_path: Path) -> None:
    made, load, said = KINDS[kind]
    path, thing = tmp_path / "saved", made()
    thing.save(path)
    for file in files(path):
        if file.suffix == ".safetensors":
            continue
        if kind == "direction":
            with safetensors.safe_open(file, "pt") as opened:
                metadata = {name: text for name, text in opened.metadata().items() if name != "checksum"}
                tensors = {"vector": opened.get_tensor("vector")}
            metadata["about"] = metadata["about"].replace(MARK.decode(), "")
            file.write_bytes(safetensors.torch.save(tensors, metadata))
            assert torch.equal(load(path).vector, thing.vector)
            return
        content = json.loads(file.read_text())
        old = {name: value for name, value in content.items() if name not in ("sha256", "weights_sha256")}
        assert kind == "circuit" or old != content
        file.write_text(json.dumps(old))
    assert fingerprint(said(load(path))) == fingerprint(said(thing))


def test_keys_that_are_numbers_do_not_change_a_checksum(tmp_path: Path) -> None:
    graph = Graph.of(MODEL)
    (drawn,) = random_circuits(graph, 5, 1)
    found = Circuit(graph, drawn.edges, None, {"layers": dict.fromkeys(range(12), "x")})
    found.save(tmp_path / "circuit.json")
    assert Circuit.load(tmp_path / "circuit.json", MODEL).found["layers"]["11"] == "x"


def test_a_seal_is_found_among_what_looks_like_one() -> None:
    whole = sealed(b"head " + MARK + b"no checksum " + BLANK + b" tail " + MARK)
    assert is_sound(whole) and not is_sound(whole, salt=b"another file")
    assert is_sound(whole + b".") is False and is_sound(b"no mark") is None
    assert of_values({"a": 1}) != of_values({"a": 2})
