#!/usr/bin/env bash
# Five data sets x five models, the scope of the LAD paper.
#   bash scripts/tables/lad_paper.sh [--dry-run] [--data-root data] [--bases DIR] [-- flags]
# DeepLabV3 and PSPNet are CIRKD's and follow its recipes (COCO-Stuff 10k: MMSegmentation's schedule), FCN, STDC and
# OCRNet are MMSegmentation's and follow its. Backbones and schedules of the paper: not stated. VOC as the release.
source "$(dirname "$0")/rows.sh"

stdc=(--batch-size 48 --warmup-iterations 1000) # MMSegmentation, Cityscapes; elsewhere not stated

lad_release voc deeplabv3 resnet18_v1s
lad_release voc pspnet resnet18_v1s
lad voc fcn resnet18_v1c --recipe voc_mmseg
lad voc stdc stdc1 --recipe voc_mmseg
lad voc ocrnet hrnet_w18_small_v2 --recipe voc_mmseg

lad cityscapes deeplabv3 resnet18_v1s
lad cityscapes pspnet resnet18_v1s
lad cityscapes fcn resnet18_v1c --recipe cityscapes_mmseg
lad cityscapes stdc stdc1 --recipe cityscapes_mmseg "${stdc[@]}"
lad cityscapes ocrnet hrnet_w18_small_v2 --recipe cityscapes_mmseg

lad ade20k deeplabv3 resnet18_v1s
lad ade20k pspnet resnet18_v1s
lad ade20k fcn resnet18_v1c --recipe ade20k_mmseg
lad ade20k stdc stdc1 --recipe ade20k_mmseg
lad ade20k ocrnet hrnet_w18_small_v2 --recipe ade20k_mmseg

lad coco_stuff_10k deeplabv3 resnet18_v1s
lad coco_stuff_10k pspnet resnet18_v1s
lad coco_stuff_10k fcn resnet18_v1c --recipe coco_stuff_10k_mmseg
lad coco_stuff_10k stdc stdc1 --recipe coco_stuff_10k_mmseg
lad coco_stuff_10k ocrnet hrnet_w18_small_v2 --recipe coco_stuff_10k_mmseg

lad coco_stuff_164k deeplabv3 resnet18_v1s
lad coco_stuff_164k pspnet resnet18_v1s
lad coco_stuff_164k fcn resnet18_v1c --recipe coco_stuff_164k_mmseg
lad coco_stuff_164k stdc stdc1 --recipe coco_stuff_164k_mmseg
lad coco_stuff_164k ocrnet hrnet_w18_small_v2 --recipe coco_stuff_164k_mmseg
