#!/usr/bin/env bash
# Trains on a TPU slice of any size: asks for it, installs HEAD of this checkout on its machines, runs.
#
#   NAME=opensep ZONE=us-west4-a TYPE=v5litepod-256 VERSION=v2-alpha-tpuv5-lite WORKDIR=/mnt/runs/base \
#       launch/tpu_pod.sh --config configs/base.py --config.data.folder=/mnt/data/PREPARED
#
# NAME        of the slice and of its queued resource
# TYPE        accelerator type, VERSION its runtime: `gcloud compute tpus accelerator-types list`
# WORKDIR     on a file system that all its machines mount (Filestore, or a bucket by gcsfuse)
# SETUP       command that mounts it on each machine (none by default)
# CAPACITY    --spot (default), --guaranteed or --best-effort
#
# On each machine the run starts again when it was told to stop (exit code 75: it has saved). If the
# whole slice is taken away, it is asked for anew. At the end the slice is still there, and costs:
#   gcloud compute tpus queued-resources delete $NAME --zone=$ZONE --force
set -euo pipefail

: "${NAME:?}" "${ZONE:?}" "${TYPE:?}" "${VERSION:?}" "${WORKDIR:?}"
tpus=(gcloud compute tpus)

state() {
  "${tpus[@]}" queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)' 2>/dev/null ||
    echo NONE
}

# everywhere COMMAND: run it on all machines of the slice.
everywhere() {
  "${tpus[@]}" tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

acquire() {
  while true; do
    case "$(state)" in
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

install() {
  local archive
  archive="$(mktemp --suffix=.tar.gz)"
  git archive --format=tar.gz --prefix=opensep/ --output="$archive" HEAD
  "${tpus[@]}" tpu-vm scp "$archive" "$NAME:opensep.tar.gz" --zone="$ZONE" --worker=all
  rm "$archive"
  everywhere "set -e; ${SETUP:-true}; tar -xzf opensep.tar.gz
    python3.11 -m venv .opensep; .opensep/bin/pip install --quiet './opensep[tpu]'"
}

if ! git diff --quiet HEAD; then
  echo "warning: the machines get HEAD; changes here that are not committed stay behind" >&2
fi
flags="$(printf '%q ' "--workdir=$WORKDIR" "$@")"
while true; do
  acquire
  code=0
  # All machines stop at the same step, so each can start again by itself: they wait for each other.
  if install && everywhere "cd opensep; code=75
      while [ \$code = 75 ]; do code=0; ../.opensep/bin/python -m opensep_jax.train $flags || code=\$?; done
      exit \$code"; then
    exit 0
  else
    code=$?
  fi
  if [[ "$(state)" == ACTIVE ]]; then exit "$code"; fi # the run's own error
  echo "the slice was taken away; asking for another" >&2
done
