#!/bin/bash
# Workers of a sweep as a Slurm job array:  sbatch --array=1-8 jobs/slurm.sh SWEEP [KEY=VALUE]...
# For several workers on a GPU append --per-device 2. On CPUs:
#   sbatch --array=1-8 --gres=none jobs/slurm.sh SWEEP --devices cpu
# Environment variables give the database, MLflow and the store (docs/clusters.md). The variable SWEEPER gives the
# command that runs sweeper, if it is not on the path.
#SBATCH --job-name=sweeper
#SBATCH --array=1-4
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=sweeper-%A_%a.log

# The worker is a step of the job. Preemption and scancel send it SIGTERM; it then finishes its epoch, stores the state
# and exits with 130. Slurm sends this script USR1 five minutes before the time limit, and the script sends SIGTERM.
# SLURM_JOB_ID alone may mean all tasks of the array, so the task's number is added.
me="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
trap 'scancel --signal=TERM "$me"' USR1
trap 'stopping=1' TERM
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
stopping=
in_vain=0
while true; do
    began=$SECONDS
    srun --nodes=1 --ntasks=1 --kill-on-bad-exit=0 ${SWEEPER:-sweeper} worker "$@" &
    while true; do # a signal interrupts `wait`, but the worker may still run
        wait $!
        code=$?
        kill -0 $! 2>/dev/null || break
    done
    echo "the worker ended with $code" >&2
    if [ "$code" -eq 0 ] || [ -n "$stopping" ]; then
        exit 0 # the sweep is done, or the job was cancelled
    elif [ "$code" -eq 130 ]; then # time limit or preemption: queue this task again
        [ "$(squeue --noheader --format=%T --jobs="$me")" = RUNNING ] && exec scontrol requeue "$me"
        exit 0
    fi
    if [ $((SECONDS - began)) -lt 60 ]; then in_vain=$((in_vain + 1)); else in_vain=0; fi
    [ "$in_vain" -lt 5 ] || exit "$code" # five crashes, each within a minute
    sleep $((in_vain * in_vain))
done
