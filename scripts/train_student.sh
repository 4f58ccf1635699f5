#!/usr/bin/env bash
# Train a student, or the baseline with --kd none:  [NGPUS=4] bash scripts/train_student.sh DATASET MODEL BACKBONE [flags]
#   bash scripts/train_student.sh voc deeplabv3 resnet18_v1s --data VOCdevkit/VOC2012 --pretrained BASELINE.pth \
#       --teacher-pretrained TEACHER.pth
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
[ $# -ge 3 ] || { sed -n '2,4s/^# *//p' "$0" >&2; exit 2; }
dataset=$1 model=$2 backbone=$3
shift 3
# shellcheck disable=SC2046,SC2086
launch train_student.py $(recipe_for "$dataset") --dataset "$dataset" --model "$model" --backbone "$backbone" \
    --resume auto "$@" ${TRAIN_FLAGS:-}
