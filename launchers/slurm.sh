#!/bin/bash
# Train, evaluate or export on GPU nodes with Slurm (docs/cluster.md).
#
#   sbatch --nodes=4 launchers/slurm.sh --config=configs/imagenet2012.py:method=sdecor --workdir=/shared/runs/sdecor
#   sbatch --nodes=4 --ntasks-per-node=1 --cpus-per-task=64 launchers/slurm.sh --config=… --workdir=…
#   PROGRAM=evaluate.py sbatch --nodes=1 launchers/slurm.sh --workdir=/shared/runs/sdecor --export=/shared/maps.zarr
#
# Add what your cluster asks for, such as --partition=… and --account=…. Nodes of four GPUs: --gpus-per-node=4
# --ntasks-per-node=4. Submit from the folder of the clone.
#
# The first form starts one process a GPU, the second one process a node. The run's folder, the data and this clone are
# on a file system that all nodes share. Options of sbatch replace the lines below.
# https://slurm.schedmd.com/sbatch.html, https://slurm.schedmd.com/srun.html
#
#SBATCH --job-name=sdecor
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.log
# A requeued job continues its log.
#SBATCH --open-mode=append
# Slurm itself requeues the job after a preemption or the failure of a node.
#SBATCH --requeue
# SIGTERM to the processes 120 s before the time limit. With the prefix "B:" it would go to this script alone.
#SBATCH --signal=TERM@120

set -euo pipefail

PROGRAM=${PROGRAM:-train.py}        # train.py or evaluate.py
VENV=${VENV:-.venv}                 # the environment that has the requirements and jax[cuda13] (or jax[cuda12])
MOST_RESTARTS=${MOST_RESTARTS:-100} # how often this script puts the job back into the queue
WAIT=${WAIT:-180}                   # seconds that the others have once one process has ended; more than --heartbeat

cd "${SLURM_SUBMIT_DIR:-.}" # the clone: Slurm runs a copy of this script elsewhere
[[ -f launchers/job_status.sh ]] || { echo "slurm.sh: $PWD is not the clone: call sbatch there" >&2 && exit 1; }
# shellcheck source=launchers/job_status.sh
source launchers/job_status.sh
# shellcheck disable=SC1091
[[ ! -f $VENV/bin/activate ]] || source "$VENV/bin/activate"

# In a Slurm job JAX gives each process the GPU of its SLURM_LOCALID. So every process must see all GPUs of its node
# (no --gpus-per-task), and a process that is alone on its node must ask for all of them.
# https://docs.jax.dev/en/latest/_autosummary/jax.distributed.initialize.html: JAX_LOCAL_DEVICE_IDS
processes=${SLURM_NTASKS_PER_NODE:-1} gpus=${SLURM_GPUS_ON_NODE:-1}
if ((processes == 1)); then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus - 1)))
  export JAX_LOCAL_DEVICE_IDS
elif ((processes != gpus)); then
  echo "slurm.sh: --ntasks-per-node=$processes: take 1 or $gpus, the number of GPUs of a node"
  exit 1
fi

# srun's own status is the largest of all processes, which hides an error (1) behind a peer's 75. So each process leaves
# its status in a file. The trap keeps this shell alive until the program has ended; the program gets the signal too.
statuses=slurm-$SLURM_JOB_ID.statuses
rm -rf "$statuses"
mkdir "$statuses"
export statuses
# shellcheck disable=SC2016
one_process='trap : TERM INT; status=0; "$@" || status=$?; echo "$status" > "$statuses/$SLURM_PROCID"; exit "$status"'

# A process that has saved may end while others still write: --wait bounds them, --kill-on-bad-exit would kill them.
# srun takes no --cpus-per-task from sbatch since Slurm 22.05.
joined=0
srun --kill-on-bad-exit=0 --wait="$WAIT" --gpu-bind=none --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --cpu-bind=cores \
  bash -c "$one_process" process python "$PROGRAM" --distributed "$@" || joined=$?

left=()
for file in "$statuses"/*; do
  [[ ! -f $file ]] || left+=("$(cat "$file")")
done
status=$(job_status "${left[@]}")
((status)) || status=$joined # a process that could not leave its status
if continues "$status" && ((${SLURM_RESTART_COUNT:-0} < MOST_RESTARTS)); then
  echo "slurm.sh: status $status, back into the queue: restart $((${SLURM_RESTART_COUNT:-0} + 1))"
  scontrol requeue "$SLURM_JOB_ID"
elif ((status)); then
  echo "slurm.sh: status $status, not requeued"
fi
exit "$status"
