# Sourced by the tables: the rows they are made of. Each row runs one command, or prints it with --dry-run.
#   bash scripts/tables/TABLE.sh [--dry-run] [--data-root data] [--bases DIR] [-- flags for every command]
# Data sets lie in DATA_ROOT/<name>, ImageNet weights in BASES/<backbone>.pth (left out: random weights); runs go to
# runs/<table>/<role>-<dataset>-<model>-<backbone> below the current folder. A table that is started again continues:
# finished runs are passed over.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scripts=${scripts#"$PWD/"}
table=$(basename "$0" .sh) dry_run=false data_root=data bases=
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry_run=true ;;
        --data-root) data_root=${2:?--data-root needs a folder}; shift ;;
        --bases) bases=${2:?--bases needs a folder}; shift ;;
        --) shift; break ;;
        *)
            echo "error: unknown flag $1 (known: --dry-run, --data-root DIR, --bases DIR, -- flags for every command)" >&2
            exit 2
            ;;
    esac
    shift
done
everywhere=("$@")

# row ROLE SCRIPT DATASET MODEL BACKBONE [flags]
row() {
    local folder="runs/$table/$1-$3-$4-$5"
    local command=(bash "$scripts/$2.sh" "${@:3:3}" --data "$data_root/$3" --save-dir "$folder" "${@:6}")
    command+=(${bases:+--pretrained-base "$bases/$5.pth"} ${everywhere[@]+"${everywhere[@]}"})
    if $dry_run; then
        printf '%q ' "${command[@]}" | sed 's/ $//'
        echo
    else
        "${command[@]}"
    fi
}

baseline() { row baseline train_student "$@" --kd none; }
teacher() { row teacher train_teacher "$@"; }
student() { row student train_student "$@"; }

# lad DATASET MODEL BACKBONE [flags]: teacher and student of one network, beside its baseline of the same recipe
lad() {
    local name="$1-$2-$3"
    baseline "$@"
    teacher "$@"
    student "$@" --teacher-pretrained "runs/$table/teacher-$name/last.pth"
}

# lad_release DATASET MODEL BACKBONE [flags]: the same, teacher and student started from the trained baseline
lad_release() {
    local name="$1-$2-$3"
    local start="runs/$table/baseline-$name/best.pth"
    baseline "$@"
    teacher "$@" --pretrained "$start"
    student "$@" --pretrained "$start" --teacher-pretrained "runs/$table/teacher-$name/last.pth"
}
