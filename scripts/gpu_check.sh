#!/usr/bin/env bash
# Check the project on a GPU: tests, training against the CPU, speed and memory. What it
# writes belongs in results/ and in the tables of docs/speed.md.
#   bash scripts/gpu_check.sh [tests] [training] [benchmark] [flags of scripts/study/gpu_check.py]
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements-dev.txt
exec python scripts/study/gpu_check.py "$@"
