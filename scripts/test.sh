#!/usr/bin/env bash
# Set everything up, check the style, run all tests. Further arguments go to pytest: bash scripts/test.sh -k losses
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements-dev.txt
ruff check .
ruff format --check .
python -m pytest "$@"
