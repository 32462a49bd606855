#!/usr/bin/env bash
# Installs dit_jax into .venv and trains the demo on Twemoji: launch/demo.sh [--config.a.b=value].
# The same line resumes. On an NVIDIA machine: EXTRAS=demo,cuda launch/demo.sh
set -euo pipefail
EXTRAS=${EXTRAS:-demo}
CONFIG=${CONFIG:-configs/demo.py}
WORKDIR=${WORKDIR:-runs/demo}
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

install .venv "$EXTRAS" "${PYTHONS[@]}"
"$python" -m dit_jax.main --config="$CONFIG" --workdir="$WORKDIR" "$@"
"$python" launch/demo_report.py "$WORKDIR"
