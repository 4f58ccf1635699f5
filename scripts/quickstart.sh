#!/usr/bin/env bash
# From nothing to a distilled student on the built-in data: assisted teacher, baseline, LAD student, scores, a picture.
# Run again, it continues an interrupted run and skips what is finished.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
runs=runs/quickstart

python train_teacher.py --recipe toy --save-dir $runs/teacher --resume auto
python train_student.py --recipe toy --kd none --save-dir $runs/baseline --resume auto
python train_student.py --recipe toy --teacher-pretrained $runs/teacher/last.pth --save-dir $runs/student --resume auto

for run in teacher baseline student; do
    python eval.py --pretrained $runs/$run/last.pth --json $runs/$run/eval.json > $runs/$run/eval.txt
done
python scripts/results_table.py $runs/{teacher,baseline,student}/eval.json | tee $runs/results.md
python scripts/visualize.py --teacher $runs/teacher/last.pth --student $runs/student/last.pth --output $runs/grid.png
echo "Minutes of training show that everything works, not what LAD gains. The teacher's score is of a network that reads the label."
echo "per-class scores: $runs/*/eval.txt   picture: $runs/grid.png   curves: tensorboard --logdir $runs"
