#!/usr/bin/env bash
# Set everything up, check the style, run the fast tests:  bash scripts/test.sh [--all] [flags of pytest, such as -k losses]
# --all runs the slow ones too: real experiments, broken runs, a cluster (apt-get install slurm-wlm munge), the page of
# demo.py in a browser (apt-get install chromium chromium-driver).
set -euo pipefail
chosen=(-m "not slow")
if [ "${1:-}" = --all ]; then
    chosen=()
    shift
fi
source "$(dirname "$0")/setup.sh" requirements-dev.txt
ruff check .
ruff format --check .
export OMP_NUM_THREADS=1  # one core a test process: several OpenMP pools on few cores slow each other down
cores=$(getconf _NPROCESSORS_ONLN)
workers=$((cores < 4 ? cores : 4))
# Each worker takes whole files, in the order of their names: the longest come early, and small ones fill up the end.
python -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder ${chosen[@]+"${chosen[@]}"} "$@"
