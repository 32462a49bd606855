#!/usr/bin/env bash
# Installs dit_jax into .venv and runs the tests: launch/test.sh [--all] [pytest arguments].
# --all adds the tests that take minutes (memorising, kills, the demo, notebooks), parity with
# PyTorch, and a run on Python 3.12.
set -euo pipefail
EXTRAS=demo,dev
WORKERS=2
PYTHONS_312=(python3.12 "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.12*/bin/python)
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

smoke() { # every module and the innermost room, on another Python
  install .venv/py312 "$EXTRAS" "$1"
  "$python" -m pytest -q tests/test_imports.py tests/core
}

all= args=()
for arg in "$@"; do
  [ "$arg" = --all ] && all=yes || args+=("$arg")
done

install .venv "$EXTRAS${all:+,parity}" "${PYTHONS[@]}"
# Its metrics are a reference; alone, as it asks for torchvision, which breaks the CPU's diffusers.
[ -z "$all" ] || "$python" -m pip install -qq --no-deps torch-fidelity==0.4.0
"$python" -m ruff check
"$python" -m ruff format --check
if [ "$all" ]; then
  if python312=$(find_python "${PYTHONS_312[@]}"); then
    (smoke "$python312")
  else
    echo "Found no Python 3.12: the smoke run on it is left out"
  fi
fi
# One file's tests share a process, so that they share what it compiled; tests/conftest.py says which
# files come first.
"$python" -m pytest -n "$WORKERS" --dist=loadfile --no-loadscope-reorder -rs \
  ${all:+-m "all or not all"} ${args[@]+"${args[@]}"}
