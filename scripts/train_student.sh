#!/usr/bin/env bash
# Train a student, or the baseline with --kd none:  [NGPUS=4] bash scripts/train_student.sh DATASET MODEL BACKBONE [flags]
#   bash scripts/train_student.sh voc deeplabv3 resnet18_v1s --data VOCdevkit/VOC2012 --pretrained BASELINE.pth \
#       --teacher-pretrained TEACHER.pth
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
train train_student.py "$@"
