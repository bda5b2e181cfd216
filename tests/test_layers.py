"""The folders: imports run one way, importing loads little, no folder holds two ideas, tests lie as the code does."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Each imports only its own files and what stands above it. A file at the top of the package is a layer of its own.
LAYERS = [
    "version", "errors", "progress", "arguments", "files", "frames", "rounding", "precision", "config", "text", "stats",
    "sites", "names", "forward", "hooked", "edits", "state_space", "models", "encoder_decoder", "resume", "prompts",
    "metrics", "metric_rounding", "weights", "weights/huggingface", "weights/gguf", "loading", "loading/toy", "tasks",
    "heads", "lenses", "sweeps", "variants", "attribution", "circuits", "directions", "ground_truth", "figures", "ui",
    "study",
]  # fmt: skip
BANNED = {"utils", "util", "common", "helpers", "base", "types", "misc"}
MOST_FILES = 12  # in a folder: more do not fit into a head
MODULES = [path for path in sorted((ROOT / "interp").rglob("*.py")) if path != ROOT / "interp" / "__init__.py"]


def layer(dotted: str) -> str | None:
    """The layer of a module `interp.a.b`; None for the package's face, `interp` itself."""
    parts = dotted.split(".")[1:]
    nested = "/".join(parts[:2])
    return nested if nested in LAYERS else parts[0] if parts else None


def imported(path: Path) -> Iterator[str]:
    """The modules of this project that a file imports anywhere, for a type checker too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in ("interp", "analyses"))
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            if node.module.partition(".")[0] in ("interp", "analyses"):
                for alias in node.names:
                    full = ROOT / f"{node.module}.{alias.name}".replace(".", "/")
                    is_module = full.with_suffix(".py").exists() or full.is_dir()
                    yield f"{node.module}.{alias.name}" if is_module else node.module


def dotted(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_imports_only_its_own_layer_and_those_above(path: Path) -> None:
    own = layer(dotted(path))
    assert own in LAYERS, f"{path} stands in no layer"
    for module in imported(path):
        other = layer(module)
        assert module.startswith("interp") and other is not None, f"{own} imports {module}"
        assert LAYERS.index(other) <= LAYERS.index(own), f"{own} imports {other}, which stands below it"


def test_no_two_files_need_each_other() -> None:
    needs = {dotted(path): set(imported(path)) for path in MODULES}
    done: set[str] = set()
    while ready := {name for name in needs if name not in done and not needs[name] & needs.keys() - done - {name}}:
        done |= ready
    assert done == needs.keys(), f"a circle among {sorted(needs.keys() - done)}"


def test_folders_are_one_idea_each() -> None:
    for folder in {path.parent for path in MODULES}:
        files = [path for path in folder.glob("*.py") if path.name not in ("__init__.py", "version.py")]
        assert len(files) <= MOST_FILES, f"{folder.name} has {len(files)} files: it holds two ideas"
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))), folder
        assert not BANNED & {folder.name, *(path.stem for path in files)}


def test_studies_do_not_import_each_other() -> None:
    for path in (ROOT / "analyses").glob("*.py"):
        if path.stem in ("cli", "report", "__init__"):
            continue
        assert not [module for module in imported(path) if module.startswith("analyses")], path.name


def test_a_section_of_a_report_imports_its_own_study_and_no_other() -> None:
    for path in (ROOT / "analyses" / "sections").glob("*.py"):
        others = {module for module in imported(path) if module.startswith("analyses")}
        assert others <= {f"analyses.{path.stem}"}, path.name


def test_what_a_file_has_for_itself_is_used_there() -> None:
    for path in [*MODULES, *(ROOT / "analyses").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        unused = [name for name in own if name.startswith("_") and not name.startswith("__") and name not in used]
        assert not unused, f"{path} defines {unused} and does not use them"


def test_light_modules_are_imported_at_the_top() -> None:
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        late = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.col_offset}
        assert not late & {"interp.version", "interp.errors", "interp.arguments"}, path


TESTS = [*(ROOT / "tests").rglob("test_*.py")]
TESTS += [path for folder in ("campaign", "conformance") for path in (ROOT / "tests" / folder).glob("*.py")]


def test_tests_lie_in_folders_of_the_code_and_none_imports_another() -> None:
    for path in TESTS:
        folder = path.parent.relative_to(ROOT / "tests")
        assert (ROOT / "interp" / folder).is_dir() or folder.name in ("analyses", "docs", "campaign", "conformance"), (
            path
        )
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            others = [name for name in names if name.rpartition(".")[2].startswith("test_")]
            assert not others, f"{path} imports {others}: what both need belongs to makers.py or a file beside it"


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


def test_every_public_name_is_there_and_no_other() -> None:
    import interp

    for name in interp.__all__:
        assert getattr(interp, name) is not None and name in dir(interp)
    assert interp.circuits.Circuit is interp.Circuit  # a folder is there without an import of its own
    assert callable(interp.sweep)
    assert dir(interp) == sorted([*interp.__all__, "__version__"])
    with pytest.raises(AttributeError, match="module 'interp' has no attribute 'sweeper'"):
        _ = interp.sweeper
    with pytest.raises(ImportError):
        from interp import nothing  # noqa: F401
