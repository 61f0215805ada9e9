#!/usr/bin/env bash
# Trains on all GPUs of this machine, in one process.
#
#   launch/gpu_node.sh --config configs/base.py --workdir runs/base --config.data.folder=PREPARED \
#       --config.train.batch=64    # 8 for each of 8 GPUs
#
# When it ends with exit code 75 (it was sent SIGTERM and has saved), it is started again, at most
# RESTARTS times (100). SIGTERM to this script is passed on, and nothing is started again: its exit
# code is 75 then, for whoever restarts this script. Reasons of the settings: launch/README.md.
set -euo pipefail

export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/opensep_jax/compiled}"

left="${RESTARTS:-100}" child=""
stop() {
  left=0
  kill -TERM "$child" 2>/dev/null || true
}
trap stop TERM INT

while true; do
  "${PYTHON:-python}" -m opensep_jax.train --nodistributed "$@" &
  child=$! code=0
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal to this script ends `wait` too early
    code=0
    wait "$child" || code=$?
  done
  if ((code == 143)); then code=75; fi # SIGTERM before Python listened to it: nothing is lost
  if ((code != 75 || left-- <= 0)); then exit "$code"; fi
  echo "told to stop; starting again" >&2
done
