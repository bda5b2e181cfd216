"""A lens is trained once for the same weights and the same way of training, whatever happens to the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from makers import make

import interp
from interp.lenses import kept as keeping
from interp.lenses.kept import cache_folder, kept
from interp.lenses.training import train


class Counted:
    """Trains a lens, and counts how often."""

    def __init__(self, model: interp.GPT) -> None:
        self.model, self.n = model, 0

    def __call__(self) -> interp.TunedLens:
        self.n += 1
        text = torch.randint(0, 29, (6, 9), generator=torch.Generator().manual_seed(0))
        return train(self.model, text, steps=1, progress=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(keeping.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_second_time_it_is_read(folder: Path) -> None:
    model = make("llama")
    once = Counted(model)
    first, second = kept(model, {"steps": 1}, once), kept(model, {"steps": 1}, once)
    assert once.n == 1 and torch.equal(first.A, second.A) and torch.equal(first.b, second.b)
    assert first.held_out.equals(second.held_out) and first.training == second.training
    kept(model, {"steps": 2}, once)  # another way of training
    other = make("llama")
    with torch.no_grad():
        other.blocks[0].mlp.W_in[0, 0] += 1
    assert kept(other, {"steps": 1}, Counted(other)).digest != first.digest
    assert once.n == 2 and len(list((folder / "tuned_lenses").iterdir())) == 3


def test_damage_and_full_disks_train_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    trained = Counted(model)
    kept(model, {}, trained)
    (place,) = (folder / "tuned_lenses").iterdir()
    for file in place.iterdir():
        file.write_bytes(file.read_bytes()[:-7])
    kept(model, {}, trained)
    kept(model, {}, trained)
    assert trained.n == 2  # mended by the second
    folder.joinpath("blocked").write_text("")
    monkeypatch.setenv(keeping.VARIABLE, str(folder / "blocked"))
    assert kept(model, {}, trained).digest and trained.n == 3


def test_nothing_is_kept_where_nothing_shall_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keeping.VARIABLE, "")
    trained = Counted(make("llama"))
    kept(trained.model, {}, trained)
    kept(trained.model, {}, trained)
    assert trained.n == 2 and not folder.exists() and cache_folder() is None
    monkeypatch.delenv(keeping.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/interp")
