#!/usr/bin/env bash
# The table of LAD's README: VOC val mIoU.  bash scripts/tables/lad_voc.sh [--dry-run] [--data-root data] [-- flags]
#   published     DeepLabV3-R18 PSPNet-R18
#   Baseline      73.21         73.33      (as CIRKD v1 prints them)
#   CIRKD         74.50         74.78      (as CIRKD v1 prints them; its losses are no --kd here: not run)
#   LAD           75.0          75.4
source "$(dirname "$0")/rows.sh"
lad_release voc deeplabv3 resnet18_v1s
lad_release voc pspnet resnet18_v1s
