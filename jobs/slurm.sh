#!/bin/bash
# Workers of a sweep as a Slurm job array:  sbatch --array=1-8 jobs/slurm.sh SWEEP [KEY=VALUE]...
# Several on a GPU: append --per-device 2.  On CPUs:  sbatch --array=1-8 --gres=none jobs/slurm.sh SWEEP --devices cpu
# Where databases and store are, the environment says (docs/clusters.md). SWEEPER: how to call it, if not by name.
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

# The worker is a step of the job: it gets SIGTERM from preemption and scancel, ends after the epoch in progress, its
# state stored, and exits with 130. The time limit is announced here, 5 minutes before, and passed on.
me="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}" # SLURM_JOB_ID may mean all tasks
trap 'scancel --signal=TERM "$me"' USR1
trap 'stopping=1' TERM
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
stopping=
in_vain=0
while true; do
    began=$SECONDS
    srun --nodes=1 --ntasks=1 --kill-on-bad-exit=0 ${SWEEPER:-sweeper} worker "$@" &
    while true; do # a signal ends the waiting, not the worker
        wait $!
        code=$?
        kill -0 $! 2>/dev/null || break
    done
    echo "the worker ended with $code" >&2
    if [ "$code" -eq 0 ] || [ -n "$stopping" ]; then
        exit 0 # the sweep is done, or scancel
    elif [ "$code" -eq 130 ]; then # time limit or preemption: this task queues again
        [ "$(squeue --noheader --format=%T --jobs="$me")" = RUNNING ] && exec scontrol requeue "$me"
        exit 0
    fi
    if [ $((SECONDS - began)) -lt 60 ]; then in_vain=$((in_vain + 1)); else in_vain=0; fi
    [ "$in_vain" -lt 5 ] || exit "$code" # it cannot live
    sleep $((in_vain * in_vain))
done
