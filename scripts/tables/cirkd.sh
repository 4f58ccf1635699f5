#!/usr/bin/env bash
# CIRKD v1's comparison of methods and LAD beside it; each method from a plain teacher, then from LAD's (<method>_lad).
#   bash scripts/tables/cirkd.sh [--dry-run] [--data-root data] [--bases DIR] [-- flags]
#   published   Cityscapes: DL-R18  DL-MBV2  PSP-R18   CamVid: DL-R18  PSP-R18   VOC: DL-R18  PSP-R18   (val mIoU)
#   DL-R101                 78.07                              69.84                  77.67
#   baseline                74.21   73.12    72.55             66.92   66.73          73.21   73.33
#   SKD                     75.42   73.82
#   IFVD                    75.59   73.50
#   CWD                     75.55   74.66
#   DSD                     74.81   74.11
#   CIRKD                   76.38   75.42    74.73             68.21   68.65          74.50   74.78
source "$(dirname "$0")/rows.sh"

# methods DATASET MODEL BACKBONE [flags]: weights of the data set's recipe
methods() {
    local method
    for method in skd ifvd cwd dsd cirkd; do
        row "$method" train_student "$@" --recipe "$1:$method" \
            --teacher-pretrained "runs/$table/baseline-$1-deeplabv3_cirkd1-resnet101_v1s/best.pth"
        row "${method}_lad" train_student "$@" --recipe "$1:$method" \
            --teacher-pretrained "runs/$table/teacher-$1-$2-$3/last.pth"
    done
}

for dataset in cityscapes camvid; do
    schedule=()
    # its author on the Cityscapes teacher (CIRKD, thread 4)
    if [ $dataset = cityscapes ]; then schedule=(--max-iterations 80000 --batch-size 8 --lr 0.01); fi
    baseline $dataset deeplabv3_cirkd1 resnet101_v1s ${schedule[@]+"${schedule[@]}"}
    for network in "deeplabv3_cirkd1 resnet18_v1s" "pspnet resnet18_v1s"; do
        lad $dataset $network
        methods $dataset $network
    done
done
lad cityscapes deeplabv3_cirkd1 mobilenetv2_100
methods cityscapes deeplabv3_cirkd1 mobilenetv2_100

# VOC's recipe is LAD's fine-tuning; the methods train from the start of the baseline, on its schedule
baseline voc deeplabv3_cirkd1 resnet101_v1s
for model in deeplabv3_cirkd1 pspnet; do
    lad_release voc $model resnet18_v1s
    methods voc $model resnet18_v1s --pretrained '' --lr 0.02 --aux-weight 0.4
done
