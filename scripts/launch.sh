# Sourced by the launchers, with the environment: without one, a python that has PyTorch is good as well (a container).
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if ! python -c 'import importlib.util as i, sys; sys.exit(not i.find_spec("torch"))' 2>/dev/null; then
    echo "error: no Python environment with PyTorch: activate one, or make .venv by: bash $repository/scripts/setup.sh" >&2
    exit 2
fi

# launch SCRIPT ARGS.. becomes it, in NGPUS processes (default: all GPUs, or one on the CPU), in the folder of the caller.
launch() {
    set -- "$repository/$1" "${@:2}"
    if [ "${NGPUS:=$(python -c 'import torch; print(torch.cuda.is_available() and torch.cuda.device_count() or 1)')}" -gt 1 ]; then
        exec python "$repository/scripts/torchrun.py" --standalone --nproc-per-node "$NGPUS" "$@"
    else
        exec python "$@"
    fi
}

# recipe_for DATASET: its flags, when scripts/recipes has one
recipe_for() {
    if [ -e "$repository/scripts/recipes/$1.yaml" ]; then echo "--recipe $1"; fi
}

# usage: the comment at the top of the launcher
usage() {
    sed -n '2,${/^#/!q;s/^# *//p}' "$0" >&2
    exit 2
}

# train SCRIPT DATASET MODEL BACKBONE [flags]
train() {
    [ $# -ge 4 ] || usage
    # shellcheck disable=SC2046,SC2086
    launch "$1" $(recipe_for "$2") --dataset "$2" --model "$3" --backbone "$4" --resume auto "${@:5}" ${TRAIN_FLAGS:-}
}
