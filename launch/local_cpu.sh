#!/usr/bin/env bash
# Rehearses a run of several processes on the CPU of this machine.
#
#   launch/local_cpu.sh PROCESSES DEVICES --config configs/debug.py --workdir runs/rehearsal \
#       --config.data.folder=PREPARED [any other flag of opensep_jax.train]
#
# Each of PROCESSES processes has DEVICES simulated devices. When they end with exit code 75 (one of
# them was sent SIGTERM: all have saved), they are started again, at most RESTARTS times (100).
# SIGTERM to this script is passed on to them, and nothing is started again.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=children.sh
source "$(dirname "${BASH_SOURCE[0]}")/children.sh"

if (($# < 3)); then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
processes="$1" devices="$2"
shift 2

export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
python="${PYTHON:-python}"
left="${RESTARTS:-100}"

children=()
stop() {
  left=0
  kill -TERM "${children[@]}" 2>/dev/null || true
}
trap stop TERM INT
trap 'kill -KILL "${children[@]}" 2>/dev/null || true' EXIT

# run_once FLAGS...: start all processes; return the exit code of one that failed, else 75 or 0.
run_once() {
  local port code worst=0 number child
  port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
  children=()
  for ((number = 0; number < processes; number++)); do
    "$python" -m opensep_jax.train "$@" --coordinator_address="127.0.0.1:$port" \
      --num_processes="$processes" --process_id="$number" &
    children+=("$!")
  done
  for child in "${children[@]}"; do
    code=0
    exit_code_of "$child" || code=$?
    if ((code == 143)); then code=75; fi # SIGTERM before Python listened to it: nothing is lost
    if ((code != 0 && (worst == 0 || worst == 75))); then worst=$code; fi
  done
  children=()
  return "$worst"
}

while true; do
  code=0
  run_once "$@" || code=$?
  if ((code != 75 || left-- <= 0)); then exit "$code"; fi
  echo "told to stop; starting again" >&2
done
