#!/usr/bin/env bash
# The table of LAD's README: VOC val mIoU.  bash scripts/tables/lad_voc.sh [--dry-run] [--data-root data] [-- flags]
#   published     DeepLabV3-R18 PSPNet-R18
#   Baseline      73.21         73.33      (as CIRKD v1 prints them)
#   CIRKD         74.50         74.78      (as CIRKD v1 prints them; teacher DeepLabV3-R101, 77.67)
#   LAD           75.0          75.4
source "$(dirname "$0")/rows.sh"

# cirkd DATASET MODEL BACKBONE: CIRKD v1 with its weights for VOC, on the schedule and from the start of the baseline
cirkd() {
    row cirkd train_student "$@" --recipe voc:cirkd --pretrained '' --lr 0.02 --aux-weight 0.4 \
        --teacher-pretrained "runs/$table/baseline-voc-deeplabv3_cirkd1-resnet101_v1s/best.pth"
}

lad_release voc deeplabv3 resnet18_v1s
lad_release voc pspnet resnet18_v1s
baseline voc deeplabv3_cirkd1 resnet101_v1s
cirkd voc deeplabv3_cirkd1 resnet18_v1s
cirkd voc pspnet resnet18_v1s
