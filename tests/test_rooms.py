"""The rooms: imports run one way, nothing is loaded on import that only some need, no file holds two ideas."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Each file imports only files above it. A new file takes its place here.
ROOMS = [
    "errors",
    "arguments",
    "whole_files",
    "foreign_files",
    "characters",
    "checksums",
    "config",
    "absent",
    "rounding",
    "sites",
    "hooks",
    "tokenizer_files",
    "tokens",
    "cache",
    "recorder",
    "recurrence",
    "scan",
    "state_gradients",
    "packed",
    "state_edits",
    "context",
    "attention",
    "mamba",
    "layers",
    "residual",
    "generation",
    "model",
    "gpt",
    "weights/named",
    "weights/checkpoint",
    "weights/build",
    "weights/hf_options",
    "weights/hf_config",
    "weights/hf_mamba",
    "weights/hf_hybrids",
    "weights/families",
    "weights/files",
    "weights/huggingface",
    "weights/gguf_file",
    "weights/gguf_config",
    "weights/gguf_tokenizer",
    "weights/gguf",
    "weights/transformer_lens",
    "weights/to_huggingface",
    "weights/manifest",
    "weights/save",
    "weights/parity",
    "bridge_sites",
    "bridged",
    "bridge",
    "weights/load",
    "weights/toy/train",
    "pairing",
    "answers",
    "prompts",
    "metrics",
    "tasks/words",
    "tasks/writing",
    "tasks/answer_sets",
    "tasks/indirect_object",
    "tasks/later_years",
    "tasks/repeated_tokens",
    "tasks/subject_verb",
    "tasks/docstring_arguments",
    "tasks/factual_recall",
    "tasks/gendered_pronouns",
    "tasks/modular_sums",
    "tasks/digit_sums",
    "tasks/data_columns",
    "tasks/data_files",
    "tasks",
    "edits",
    "graph",
    "fingerprint",
    "journal",
    "reach",
    "ablations",
    "components",
    "gradients",
    "metric_rounding",
    "run_values",
    "costs",
    "plan",
    "changes",
    "blocks",
    "passes",
    "progress",
    "recall",
    "connection",
    "cluster",
    "sweep",
    "granularity",
    "stats",
    "agreement",
    "behaviour",
    "node_scores",
    "edge_scores",
    "circuits",
    "circuit_runs",
    "discovery",
    "faithfulness",
    "paths",
    "hidden_attention",
    "head_circuits",
    "head_weights",
    "head_patterns",
    "head_scores",
    "texts",
    "lens",
    "tuned_lens",
    "lens_training",
    "contrasts",
    "directions",
    "probing",
    "steps",
    "compiler",
    "known",
    "localisers",
    "identities",
    "glyphs",
    "scales",
    "canvas",
    "cells",
    "grids",
    "charts",
    "scatter",
    "diagram",
    "figures",
    "provenance",
    "ui/tables",
    "ui/folder",
    "ui/page",
    "ui/terminal",
    "sweep_options",
    "command",
]
BANNED = {"utils", "util", "common", "helpers", "base", "types", "misc"}


def files(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py"))


def room(path: Path) -> str:
    name = path.relative_to(ROOT / path.relative_to(ROOT).parts[0]).with_suffix("").as_posix()
    return name.removesuffix("/__init__")


def imported(path: Path) -> Iterator[str]:
    """Modules that a file imports anywhere, except where only a type checker looks."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module


def is_room(name: str) -> str | None:
    path = name.removeprefix("interp.").replace(".", "/")
    return path if path in ROOMS else None


def test_every_file_of_the_package_has_its_place() -> None:
    here = {room(path) for path in files("interp")} - {"__init__", "", "interp"}
    packages = {"weights", "ui", "weights/toy"}  # a docstring each
    assert here - packages == set(ROOMS)
    assert not BANNED & {part for name in here for part in name.split("/")}


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_rooms_above_it(name: str) -> None:
    path = ROOT / "interp" / f"{name}.py"
    path = path if path.exists() else ROOT / "interp" / name / "__init__.py"
    for module in imported(path):
        assert not module.startswith("analyses"), f"{name} imports {module}"
        other = is_room(module) if module.startswith("interp.") else None
        if other is not None and other != name:
            assert ROOMS.index(other) < ROOMS.index(name), f"{name} imports {other}, which stands below it"


def test_studies_do_not_import_each_other() -> None:
    for path in files("analyses"):
        if path.stem in ("cli", "report", "__init__"):
            continue
        assert not [module for module in imported(path) if module.startswith("analyses")], path.name


@pytest.mark.parametrize("package", ["interp", "analyses"])
def test_files_hold_one_idea(package: str) -> None:
    for path in files(package):
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 450, f"{path.name} has {lines} lines: it holds two ideas"


def test_importing_loads_nothing_that_only_some_need() -> None:
    slow = [
        "torch",
        "numpy",
        "pandas",
        "matplotlib",
        "transformers",
        "transformer_lens",
        "scipy",
        "jinja2",
        "gguf",
        "tokenizers",
        "click",
    ]
    program = f"import sys, interp; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "first",
    [
        "import interp.sweep",
        "from interp.sweep import plan_sweep",
        "from interp import sweep",
    ],
)
def test_sweep_is_the_function_whoever_imports_what_first(first: str) -> None:
    program = (
        f"{first}\nimport interp, pickle, sys\nfrom interp import sweep as named\n"
        "from interp.sweep import sweep as own\n"
        "assert interp.sweep is named is own is sys.modules['interp.sweep'].sweep and callable(interp.sweep)\n"
        "assert pickle.loads(pickle.dumps(interp.sweep)) is interp.sweep"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_every_public_name_is_there_and_no_other() -> None:
    import interp

    for name in interp.__all__:
        assert getattr(interp, name) is not None and name in dir(interp)
    assert interp.hooks.HookPoint is interp.HookPoint  # a room is there without an import of its own
    with pytest.raises(AttributeError, match="module 'interp' has no attribute 'sweeps'"):
        _ = interp.sweeps
    with pytest.raises(ImportError):
        from interp import nothing  # noqa: F401
