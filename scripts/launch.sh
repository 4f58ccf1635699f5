# Sourced by the launchers: finds the environment. Without one, a `python` that has PyTorch will do, as in a container.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if ! python -c 'import importlib.util as i, sys; sys.exit(not i.find_spec("torch"))' 2>/dev/null; then
    echo "error: no Python environment with PyTorch: activate one, or make .venv by: bash $repository/scripts/setup.sh" >&2
    exit 2
fi

# count_processes: prints the number of GPUs, or 1 without a GPU
count_processes() {
    python -c 'import torch; print(torch.cuda.is_available() and torch.cuda.device_count() or 1)'
}

# launch SCRIPT ARGS..: replaces this shell by the script, in NGPUS processes (default: one for each GPU; one on the CPU).
# SCRIPT is relative to the repository; the current folder stays that of the caller.
launch() {
    set -- "$repository/$1" "${@:2}"
    : "${NGPUS:=$(count_processes)}"
    if ! [[ $NGPUS =~ ^[0-9]+$ ]]; then
        echo "error: NGPUS=$NGPUS: give the number of processes, such as 2" >&2
        exit 2
    fi
    if [ "$NGPUS" -gt 1 ]; then
        exec python "$repository/scripts/torchrun.py" --standalone --nproc-per-node "$NGPUS" "$@"
    else
        exec python "$@"
    fi
}

# recipe_for DATASET: prints the flag for the recipe of a data set, or nothing if scripts/recipes has none
recipe_for() {
    if [ -e "$repository/scripts/recipes/$1.yaml" ]; then
        echo "--recipe $1"
    fi
}

# usage: prints the comment at the top of the launcher, and ends the launcher
usage() {
    sed -n '2,${/^#/!q;s/^# *//p}' "$0" >&2
    exit 2
}

# train SCRIPT DATASET MODEL BACKBONE [flags]: launches a training with the data set's recipe, or resumes an earlier one.
# TRAIN_FLAGS in the environment may hold more flags; they are split at blanks, as is the recipe's flag.
train() {
    [ $# -ge 4 ] || usage
    # shellcheck disable=SC2046,SC2086
    launch "$1" $(recipe_for "$2") --dataset "$2" --model "$3" --backbone "$4" --resume auto "${@:5}" ${TRAIN_FLAGS:-}
}
