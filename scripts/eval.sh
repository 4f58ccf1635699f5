#!/usr/bin/env bash
# Evaluate a checkpoint:  [NGPUS=4] bash scripts/eval.sh FILE [flags]
#   bash scripts/eval.sh runs/student-voc-deeplabv3-resnet18_v1s/best.pth --data VOCdevkit/VOC2012 --json scores.json
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
[ $# -ge 1 ] || usage
launch eval.py --pretrained "$@"
