#!/usr/bin/env bash
# Five data sets x five models, the scope of the LAD paper.
#   bash scripts/tables/lad_paper.sh [--dry-run] [--data-root data] [--bases DIR] [-- flags]
# DeepLabV3 and PSPNet are the release's and follow CIRKD's recipes (COCO-Stuff 10k: MMSegmentation's schedule), FCN, STDC and
# OCRNet are MMSegmentation's and follow its. Backbones and schedules of the paper: not stated. VOC as the release.
source "$(dirname "$0")/rows.sh"

for dataset in voc cityscapes ade20k coco_stuff_10k coco_stuff_164k; do
    cirkd=lad stdc=()
    if [ $dataset = voc ]; then cirkd=lad_release; fi
    # MMSegmentation; elsewhere not stated
    if [ $dataset = cityscapes ]; then stdc=(--batch-size 48 --warmup-iterations 1000); fi
    $cirkd $dataset deeplabv3 resnet18_v1s
    $cirkd $dataset pspnet resnet18_v1s
    lad $dataset fcn resnet18_v1c --recipe ${dataset}_mmseg
    lad $dataset stdc stdc1 --recipe ${dataset}_mmseg ${stdc[@]+"${stdc[@]}"}
    lad $dataset ocrnet hrnet_w18_small_v2 --recipe ${dataset}_mmseg
done
