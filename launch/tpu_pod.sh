#!/usr/bin/env bash
# Trains on a TPU slice of any size: asks for it, installs HEAD of this checkout on its machines, runs.
#
#   NAME=opensep ZONE=us-west4-a TYPE=v5litepod-256 VERSION=v2-alpha-tpuv5-lite WORKDIR=/mnt/runs/base \
#       launch/tpu_pod.sh --config configs/base.py --config.data.folder=/mnt/data/PREPARED
#
# NAME        of the slice and of its queued resource
# TYPE        accelerator type, VERSION its runtime: `gcloud compute tpus accelerator-types list`
# WORKDIR     on a file system that all its machines mount (Filestore, or a bucket by gcsfuse)
# SETUP       command that mounts it on each machine, also where it is mounted (none by default)
# CAPACITY    --spot (default), --guaranteed or --best-effort
# PYTHON      of the machines (python3.11); where it is not there or makes no venv, uv fetches a 3.11
#
# On each machine the run starts again when it was told to stop (exit code 75: it has saved). If the
# whole slice is taken away, it is asked for anew; if only a connection or a machine is lost, this
# connects again, at most RESTARTS times (100). The run itself needs no connection: when this script
# has ended, the same command finds the run and shows its log. What stops it: launch/README.md.
# At the end the slice is still there, and costs:
#   gcloud compute tpus queued-resources delete $NAME --zone=$ZONE --force
set -euo pipefail

: "${NAME:?}" "${ZONE:?}" "${TYPE:?}" "${VERSION:?}" "${WORKDIR:?}"
tpus=(gcloud compute tpus)
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

# look: set `state` to that of the queued resource, NONE if there is no such thing. Any other error
# (no network, say) tells nothing about it: it is asked for again, for ten minutes.
look() {
  local tries=20
  until state="$("${tpus[@]}" queued-resources describe "$NAME" --zone="$ZONE" \
    --format='value(state.state)' 2>"$scratch/error")"; do
    if grep --quiet NOT_FOUND "$scratch/error"; then
      state=NONE
      return
    fi
    cat "$scratch/error" >&2
    if ((--tries == 0)); then exit 1; fi
    sleep 30
  done
}

# everywhere COMMAND: run it on all machines of the slice.
everywhere() {
  "${tpus[@]}" tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

acquire() {
  while true; do
    look
    case "$state" in
      ACTIVE) return ;;
      NONE)
        "${tpus[@]}" queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
          --accelerator-type="$TYPE" --runtime-version="$VERSION" "${CAPACITY:---spot}"
        ;;
      SUSPENDED | FAILED)
        "${tpus[@]}" queued-resources delete "$NAME" --zone="$ZONE" --quiet --force
        ;;
    esac
    sleep 30
  done
}

if ! git diff --quiet HEAD; then
  echo "warning: the machines get HEAD; changes here that are not committed stay behind" >&2
fi
git archive --format=tar.gz --prefix=opensep/ --output="$scratch/opensep.tar.gz" HEAD
flags="$(printf '%q ' "--workdir=$WORKDIR" "$@")"

# What the machines do. gcloud and this script both repeat a command whose connection was lost, so
# each may find its forerunner still at work: locks tell, which end with those who hold them.
install="set -e; exec 8>install.lock; flock 8; flock --nonblock run.lock true || exit 0
  { ${SETUP:-true}; } 8>&-
  tar -xzf opensep.tar.gz
  test -x .opensep/bin/pip || ${PYTHON:-python3.11} -m venv .opensep || {
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --clear --seed --python 3.11 .opensep
  }
  .opensep/bin/pip install --quiet './opensep[tpu]'"
# All machines stop at the same step, so each can start again by itself: they wait for each other.
# 143 is SIGTERM before Python listens to it.
run="exec 9>run.lock
  if flock --nonblock 9; then
    rm -f run.code
    set -m # a process group of its own, which run.pid names: SIGTERM to all of it stops the run
    (
      trap '' HUP; trap told=yes TERM
      cd opensep; code=75 told=no
      while [[ \$told == no && ( \$code == 75 || \$code == 143 ) ]]; do
        code=0; ../.opensep/bin/python -m opensep_jax.train $flags || code=\$?
      done
      echo \$code >../run.code
    ) </dev/null >run.log 2>&1 &
    echo \$! >run.pid
  else
    echo 'a run is on: this is its log' >&2
  fi
  exec 9>&-
  tail --lines=+1 --follow --pid=\"\$(cat run.pid)\" run.log
  exit \"\$(cat run.code || echo 1)\""

left="${RESTARTS:-100}"
while true; do
  acquire
  code=0
  {
    "${tpus[@]}" tpu-vm scp "$scratch/opensep.tar.gz" "$NAME:opensep.tar.gz" --zone="$ZONE" \
      --worker=all && everywhere "$install" && everywhere "$run"
  } || code=$?
  if ((code == 0 || code == 75 || left-- <= 0)); then exit "$code"; fi
  # That a slice is taken away may show late. In these minutes all processes also notice a lost one.
  echo "it ended with exit code $code; watching for five minutes whether the slice stays" >&2
  for _ in {1..10}; do
    look
    if [[ "$state" != ACTIVE ]]; then break; fi
    sleep 30
  done
  case "$state $code" in
    "ACTIVE 255" | "ACTIVE 134") # of ssh, and of a process that has lost another one
      echo "the slice is still there; connecting again" >&2
      ;;
    ACTIVE*) exit "$code" ;; # the run's own error
    *) echo "the slice was taken away; asking for another" >&2 ;;
  esac
done
