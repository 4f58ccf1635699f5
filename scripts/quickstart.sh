#!/usr/bin/env bash
# From nothing to a distilled student on the built-in data: assisted teacher, baseline, LAD student, scores, a picture.
# Run again, it continues an interrupted run and skips what is finished.
set -euo pipefail
source "$(dirname "$0")/setup.sh" requirements.txt
runs=runs/quickstart
train=(--recipe toy --pretrained-base package --resume auto)  # ImageNet weights of an installed package
# shellcheck disable=SC2206
train+=(${TRAIN_FLAGS:-})  # such as --max-iterations 4, for a try

# Codes near a fixed table: with the release's random ones a teacher needs far more than minutes to read its label.
python train_teacher.py "${train[@]}" --label-codes near --code-std 0.1 --save-dir $runs/teacher
python train_student.py "${train[@]}" --kd none --save-dir $runs/baseline
python train_student.py "${train[@]}" --teacher-pretrained $runs/teacher/last.pth --save-dir $runs/student

# score RUN FOLDER [flags of eval.py]: evaluates the last checkpoint of a run, unless FOLDER has its scores already
score() {
    local file=$runs/$1/last.pth folder=$runs/$2
    [[ $folder/eval.json -nt $file ]] && return
    mkdir -p "$folder"
    python eval.py "$file" --json "$folder/eval.json" "${@:3}" > "$folder/eval.txt"
}
score teacher teacher
score teacher teacher_no_label --without-label  # the same teacher, shown a zero plane
score baseline baseline
score student student
python scripts/study/results_table.py $runs/{teacher,teacher_no_label,baseline,student}/eval.json | tee $runs/results.md
[[ $runs/grid.png -nt $runs/student/last.pth ]] ||
    python scripts/study/visualize.py --teacher $runs/teacher/last.pth --student $runs/{baseline,student}/last.pth \
        --output $runs/grid.png
python - $runs/{student,baseline}/eval.json <<'END'
import json, sys
student, baseline = (100 * json.load(open(path))["miou"] for path in sys.argv[1:])
print(f"student {student:.2f} minus baseline {baseline:.2f}: {student - baseline:+.2f} points of mIoU, one seed")
END
echo "One seed and minutes of training: a demonstration, not evidence. The teacher's score is of a network that reads the label."
echo "per-class scores: $runs/*/eval.txt   picture: $runs/grid.png   curves: tensorboard --logdir $runs"
