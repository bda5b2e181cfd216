#!/usr/bin/env bash
# Is interp right on a GPU, and how fast is it? Correctness first, then whole sweeps against loops of full forwards.
#
#   benchmarks/on_gpu.sh [--json FILE] [--limit SECONDS] [--device cuda|cpu] [--small] [--only PART,...]
#
# It needs a Python with torch >= 2.11, and no network. What else is missing is installed from the folder $WHEELS
# where that is given, else from a registry where one answers; without pandas, transformers or pytest it does what can
# be done without. PYTHON names the interpreter (python3). It ends by itself within 6 minutes, with a table of what was
# found and what was left out; the exit code is 1 where anything was wrong, and 2 where nothing could be run.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
START=$(date +%s)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" INTERP_GPU_START="$START" PYTHONUNBUFFERED=1

missing=$("$PYTHON" - <<'PY'
import importlib.util as found
names = ["torch", "numpy", "einops", "pandas", "scipy", "pytest", "hypothesis", "xdist", "tqdm", "safetensors"]
pip = {"xdist": "pytest-xdist"}
print(*[pip.get(name, name) for name in names if found.find_spec(name) is None])
PY
) || { echo "on_gpu.sh: '$PYTHON' is no Python that runs; name one with PYTHON=..." >&2; exit 2; }
case " $missing " in *" torch "*) echo "on_gpu.sh: '$PYTHON' has no torch; name another with PYTHON=..." >&2; exit 2 ;; esac
if [ -n "$missing" ]; then
  from=(--retries 0 --timeout 5)
  [ -n "${WHEELS:-}" ] && from=(--no-index --find-links "$WHEELS")
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  for name in $missing; do # one by one, so that one that cannot be had keeps no other away; torch and numpy stay as they are
    timeout 30 "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-input --no-deps --target "$site" \
      "${from[@]}" "$name" >/dev/null 2>&1 || echo "on_gpu.sh: $name is missing and could not be installed" >&2
  done
  export PYTHONPATH="$PYTHONPATH:$site"
fi
limit=360
for at in $(seq 1 $#); do [ "${!at}" = --limit ] && next=$((at + 1)) && limit=${!next}; done
# A kernel that hangs cannot be interrupted from inside.
timeout --kill-after=5 "$limit" "$PYTHON" benchmarks/on_gpu.py "$@"
code=$?
[ $code -lt 124 ] || echo "on_gpu.sh: stopped after $limit s; what was found until then is above, and in the file of --json" >&2
exit $code
