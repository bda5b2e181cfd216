from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from makers import make

import interp
from interp.errors import InterpError, UnknownName
from interp.metrics import METRICS
from interp.prompts.pairs import PromptPairs
from interp.study.provenance import checkout, provenance, state_digest, versions
from interp.weights.checkpoint import Source


def pairs() -> PromptPairs:
    return PromptPairs.from_tokens([[1, 2, 3]], [[1, 4, 3]], answers=[[5, 6]], name="toy", notes={"seed": 1})


def test_it_says_what_was_run_on_what_and_is_json() -> None:
    model = make("llama_gqa")
    record = provenance(
        model, pairs(), metric="logit_diff", seed=7, command="interp report toy", extra={"checks": {"a": 1}}
    )
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["model"]["config"] == json.loads(json.dumps(model.cfg.to_dict()))
    assert record["model"]["dtype"] == "float32" and record["model"]["device"] == "cpu"
    assert record["model"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert record["prompts"] == {"name": "toy", "n": 1, "sha256": pairs().digest(), "notes": {"seed": 1}}
    assert record["metric"]["definition"] == METRICS["logit_diff"].definition
    assert (record["seed"], record["command"], record["checks"]) == (7, "interp report toy", {"a": 1})
    assert record["versions"]["interp"] == interp.__version__
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert record["time"].endswith("+00:00") and record["machine"]["threads"] == torch.get_num_threads()


def test_weights_in_memory_are_told_apart_by_every_bit() -> None:
    model, same, other = make("gpt2"), make("gpt2"), make("gpt2")
    with torch.no_grad():
        other.W_E[0, 0] += 1e-6
    digests = [provenance(m)["weights"]["sha256"] for m in (model, same, other)]
    assert digests[0] == digests[1] != digests[2]
    half = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    assert state_digest(half) != digests[0]
    assert state_digest(dict(reversed(half.items()))) == state_digest(half)


def test_weights_of_a_file_have_the_files_digest_and_no_path(tmp_path: Path) -> None:
    file = tmp_path / "weights.gguf"
    file.write_bytes(b"weights")
    model = make("gpt2")
    model.source = Source("gguf", "package toy 0.1", None, (file,))
    record = provenance(model)
    expected = hashlib.sha256(b"weights").hexdigest()
    assert record["weights"] == {"sha256": expected, "of": "weight files", "files": ["weights.gguf"]}
    assert record["model"]["location"] == "package toy 0.1"
    assert str(tmp_path) not in json.dumps(record)
    file.unlink()
    assert provenance(model)["weights"]["of"] == "tensors in memory"


def test_the_home_folder_is_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["/opt/bin/interp", "report", "ioi", "--out", f"{tmp_path}/my report"])
    extra = {"more": {"path": tmp_path / "x", "value": float("nan"), "ids": torch.tensor([1, 2])}}
    record = provenance(make("gpt2"), extra=extra)
    assert record["command"] == "interp report ioi --out '~/my report'"
    assert record["more"] == {"path": "~/x", "value": "nan", "ids": [1, 2]}


def test_what_cannot_be_recorded_is_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'logit_diff'"):
        provenance(make("gpt2"), metric="logit_dif")
    with pytest.raises(InterpError, match="already has 'seed'"):
        provenance(make("gpt2"), extra={"seed": 1})


def test_the_commit_is_that_of_a_checkout_that_tracks_the_file(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        name = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *name, *words], capture_output=True, text=True, check=True
        ).stdout

    file = tmp_path / "room.py"
    file.write_text("")
    assert checkout(file) is None
    git("init", "--quiet")
    assert checkout(file) is None
    git("add", "room.py")
    git("commit", "--quiet", "-m", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert checkout(file) == {"commit": commit, "dirty": False}
    (tmp_path / "other.py").write_text("")
    assert checkout(file) == {"commit": commit, "dirty": True}
    assert checkout(tmp_path / "other.py") is None


def test_versions_import_nothing() -> None:
    code = (
        "import sys; from interp.study.provenance import versions; found = versions();"
        "assert found['transformers'] and found['pandas'], found;"
        "print(sorted({'transformers', 'transformer_lens', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    root = Path(interp.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
    assert versions()["python"] == ".".join(map(str, sys.version_info[:3]))
