#!/usr/bin/env bash
# Set everything up, check the style, run all tests. Further arguments go to pytest: bash scripts/test.sh -k losses
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements-dev.txt
ruff check .
ruff format --check .
export OMP_NUM_THREADS=1  # one core a test process: several OpenMP pools on few cores slow each other down
cores=$(getconf _NPROCESSORS_ONLN)
python -m pytest -n "$((cores < 4 ? cores : 4))" --dist loadfile "$@"
