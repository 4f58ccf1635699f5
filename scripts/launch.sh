# Sourced by the launchers: launch SCRIPT ARGS.. runs it on NGPUS processes (default: all GPUs, or one on the CPU).
launch() {
    if [ "${NGPUS:=$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}" -gt 1 ]; then
        torchrun --standalone --nproc-per-node "$NGPUS" "$@"
    else
        python "$@"
    fi
}

# recipe_for DATASET: its flags, when scripts/recipes has one
recipe_for() {
    if [ -e "scripts/recipes/$1.yaml" ]; then echo "--recipe $1"; fi
}
