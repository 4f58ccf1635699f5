#!/usr/bin/env bash
# Train on one machine or several under SLURM:  sbatch --nodes 2 --gpus-per-node 8 --cpus-per-task 64 scripts/slurm.sh train_teacher.py [flags]
# Two minutes before the time limit the run saves itself, is queued again, and continues by --resume auto.
# `--then SCRIPT [flags]`, as often as wanted, runs further scripts on the first machine when the training is done.
# Paths among the flags are relative to the folder that sbatch was called in.
# Hosts whose own names lead to 127.0.0.1 need GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME: the network interface, such as eth0.
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,6s/^# *//p' "$0" >&2; exit 2; }
# slurmd runs a copy of this file; the job's record has the path of the original
command=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
file="${command%%.sh *}"  # its path may have blanks; the flags of the training follow
file="${file%.sh}.sh"
[ -f "$file" ] || file=$0
root=$(unset CDPATH; cd "$(dirname "$file")/.." && pwd)
# shellcheck source=scripts/environment.sh
if [ -f "$root/scripts/environment.sh" ]; then source "$root/scripts/environment.sh"; fi
script=$1
[ -f "$script" ] || script=$root/$script
shift
# the flags of the training. A job that was queued again must not begin anew: then --overwrite is left out.
flags=()
while [ $# -gt 0 ] && [ "$1" != --then ]; do
    if [ "$1" != --overwrite ] || [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then
        flags+=("$1")
    fi
    shift
done
# srun does not take the number of cores from the job by itself
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# How many seconds torchrun gives the processes to save, from torch 2.12 on. Older ones always give 30 seconds: then
# --signal may be set to B:USR1@60.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-100}
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=${PORT:-$((20000 + SLURM_JOB_ID % 10000))}  # jobs that share a machine must not share a port

# run COMMAND..: waits for a command in the background, because the shell handles no signal during one in the foreground
run() {
    "$@" &
    job=$!
    wait $job
}
# the two minutes' warning: USR1 tells the run to save itself. At SIGTERM, srun would kill its tasks.
trap 'kill -USR1 $job || true; wait $job || true; scontrol requeue "$SLURM_JOB_ID"; exit 0' USR1
run srun python "$root/scripts/torchrun.py" --nnodes "$SLURM_NNODES" \
    --nproc-per-node "${NGPUS:-${SLURM_GPUS_ON_NODE:-1}}" --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-endpoint "$host:$port" "$script" "${flags[@]}" --resume auto
while [ $# -gt 0 ]; do
    shift  # --then
    command=()
    while [ $# -gt 0 ] && [ "$1" != --then ]; do
        command+=("$1")
        shift
    done
    run python "${command[@]}"
done
