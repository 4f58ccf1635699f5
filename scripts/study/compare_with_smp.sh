#!/usr/bin/env bash
# Compare the recipe `light` with plain loops around segmentation_models_pytorch on both data sets of the results:
#   bash scripts/study/compare_with_smp.sh [flags of compare_with_smp.py for both]
# It takes about 100 minutes of one core. Started again, it does only what is missing.
set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/environment.sh
compare() { python scripts/study/compare_with_smp.py --decoders fpn deeplabv3plus segformer "$@"; }
compare --dataset camvid --data data/camvid_half --crop-size 160 192 "$@"
compare --dataset folder --data data/labelmefacade --crop-size 160 160 "$@"
