# shellcheck shell=bash
# The exit statuses of sdecor/core/commands.py, and the status of a job from those of its processes (docs/cluster.md).
# slurm.sh and tpu_vm.sh source this file; scripts/launch_local.py has the same rule in Python.

RETRY=75
INTERRUPTED=130

# Print the status of a job: an error of any process (1 to 127, not 75) first, then 75, then 130. A process that a
# signal killed (128 and more) counts as 75 beside another 75 or 130; alone it is its own status.
job_status() {
  local status failed=0 killed=0 retry=0 interrupted=0
  for status in "$@"; do
    if ((status == 0)); then
      continue
    elif ((status == RETRY)); then
      retry=1
    elif ((status == INTERRUPTED)); then
      interrupted=1
    elif ((status >= 128)); then
      ((status < killed)) || killed=$status
    elif ((failed == 0 || status < failed)); then
      failed=$status
    fi
  done
  if ((failed)); then
    echo "$failed"
  elif ((retry || (killed && interrupted))); then
    echo "$RETRY"
  elif ((killed)); then
    echo "$killed"
  elif ((interrupted)); then
    echo "$INTERRUPTED"
  else
    echo 0
  fi
}

# Tell whether the same command continues a job that ended with this status.
continues() {
  (($1 == RETRY || $1 == INTERRUPTED))
}
