#!/usr/bin/env bash
# Train a label-assisted teacher:  [NGPUS=4] bash scripts/train_teacher.sh DATASET MODEL BACKBONE [flags]
#   bash scripts/train_teacher.sh voc deeplabv3 resnet18_v1s --data VOCdevkit/VOC2012
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
[ $# -ge 3 ] || { sed -n '2,3s/^# *//p' "$0" >&2; exit 2; }
dataset=$1 model=$2 backbone=$3
shift 3
# shellcheck disable=SC2046,SC2086
launch train_teacher.py $(recipe_for "$dataset") --dataset "$dataset" --model "$model" --backbone "$backbone" \
    --resume auto "$@" ${TRAIN_FLAGS:-}
