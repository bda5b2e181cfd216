"""The numerical part of the tests under other kernels than this processor's best: `make test-kernels`.

A last bit that a kernel rounds otherwise must change no result and no sentence. torch, oneDNN and MKL each choose their
kernels when they are loaded, by these variables, so each setting is a process of its own; together the settings have
every value of each variable, with one thread and with two.

    python tests/kernels.py [oldest] [avx2] [mixed] [vendor]

runs the named settings, or all; what follows `--` is given to pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parent

# Variable -> value; INTERP_TEST_THREADS is read by conftest.py.
SETTINGS: dict[str, dict[str, str]] = {
    "oldest": {
        "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE",
        "INTERP_TEST_THREADS": "1",
    },
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "INTERP_TEST_THREADS": "2"},
    "mixed": {
        "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2", "INTERP_TEST_THREADS": "2",
    },
    "vendor": {
        "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE",
        "INTERP_TEST_THREADS": "1",
    },
}  # fmt: skip

# The folders and files whose tests compute with models; what reads files, draws figures or writes pages has no kernels.
NUMERICAL = (
    "hooked", "models", "state_space", "lenses/test_tuned_lens.py", "variants", "attribution/test_gradients.py",
    "attribution/test_node_scores.py", "circuits", "directions", "ground_truth", "heads",
    *(f"sweeps/test_{name}.py" for name in ("edits_in_place", "run_chunk", "sweep")),
    *(
        f"analyses/test_{name}.py"
        for name in (
            "ablation", "activation_patching", "attribution_patching", "circuit_study", "edge_attribution",
            "head_detectors", "path_patching", "probes_study", "report", "steering_study", "studies",
        )
    ),
    "test_device.py", "test_metrics.py", "test_rounding.py",
)  # fmt: skip

KERNELS = (
    "import torch; print(f'torch {torch.__version__}, kernels {torch.backends.cpu.get_cpu_capability()},"
    " MKL {torch.backends.mkl.is_available()}, oneDNN {torch.backends.mkldnn.is_available()}')"
)


def run(name: str, more: list[str]) -> tuple[int, float]:
    """One setting: pytest's exit code, and the seconds it took."""
    setting = SETTINGS[name]
    own = {
        variable: value for variable, value in os.environ.items() if all(variable not in s for s in SETTINGS.values())
    }
    environment = {**own, **setting, "OMP_NUM_THREADS": setting["INTERP_TEST_THREADS"]}
    told = ", ".join(f"{variable}={value}" for variable, value in setting.items())
    kernels = subprocess.run(
        [sys.executable, "-c", KERNELS], env=environment, capture_output=True, text=True, check=True
    )
    print(f"== {name}: {told} ({kernels.stdout.strip()})", flush=True)
    files = [str(TESTS / path) for path in NUMERICAL]
    # Threads that wait for each other spin: more of them than cores take several times as long.
    workers = min(4, max(1, (os.cpu_count() or 1) // int(setting["INTERP_TEST_THREADS"])))
    spread = ["-n", str(workers), "--dist", "worksteal"]
    chosen = [*files, "-q", "-m", "not slow and not alone", "-p", "no:cacheprovider"]
    start = time.monotonic()
    code = subprocess.run(
        [sys.executable, "-m", "pytest", *spread, *chosen, *more], env=environment, cwd=TESTS.parent
    ).returncode
    return code, time.monotonic() - start


def main() -> None:
    """Run settings one after another; the exit code is 1 where any failed."""
    given = sys.argv[1:]
    at = given.index("--") if "--" in given else len(given)
    names, more = given[:at] or list(SETTINGS), given[at + 1 :]
    for name in names:
        if name not in SETTINGS:
            sys.exit(f"no setting is called {name!r}; choose from {', '.join(SETTINGS)}")
    found = {name: run(name, more) for name in names}
    for name, (code, seconds) in found.items():
        print(f"{name}: {'passed' if code == 0 else f'failed (pytest ended with {code})'}, {seconds:.0f} s")
    sys.exit(int(any(code for code, _ in found.values())))


if __name__ == "__main__":
    main()
