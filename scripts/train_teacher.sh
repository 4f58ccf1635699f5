#!/usr/bin/env bash
# Train a label-assisted teacher:  [NGPUS=4] bash scripts/train_teacher.sh DATASET MODEL BACKBONE [flags]
#   bash scripts/train_teacher.sh voc deeplabv3 resnet18_v1s --data VOCdevkit/VOC2012
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
train train_teacher.py "$@"
