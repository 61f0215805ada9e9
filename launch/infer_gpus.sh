#!/usr/bin/env bash
# Separates on all GPUs of this machine, a shard of the inputs on each, and joins their manifests.
#
#   launch/infer_gpus.sh INPUT... --out DIR [any other flag of opensep_jax.infer]
#
# CUDA_VISIBLE_DEVICES=0,2 picks some of them. The lines of a shard begin with its number. The exit
# code is 0, or 1 if some inputs failed, or 2 if a shard could not go on: what is done is kept then,
# and the same command goes on. SIGTERM to this script is passed on.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=children.sh
source "$(dirname "${BASH_SOURCE[0]}")/children.sh"

out=""
for ((i = 1; i <= $#; i++)); do
  case "${!i}" in
    --out) next=$((i + 1)) && out="${!next:-}" ;;
    --out=*) out="${!i#--out=}" ;;
  esac
done
if [[ -z "$out" ]]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi

devices="${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader)}"
IFS=$', \n' read -r -d '' -a gpus <<<"$devices" || true
python="${PYTHON:-python}"
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/opensep_jax/compiled}"

children=()
stop() {
  kill -TERM "${children[@]}" 2>/dev/null || true
}
trap stop TERM INT

for number in "${!gpus[@]}"; do
  CUDA_VISIBLE_DEVICES="${gpus[number]}" "$python" -m opensep_jax.infer "$@" \
    --num_shards="${#gpus[@]}" --shard="$number" 2> >(sed -u "s/^/[$number] /" >&2) &
  children+=("$!")
done
worst=0
for child in "${children[@]}"; do
  code=0
  exit_code_of "$child" || code=$?
  if ((code > worst)); then worst=$code; fi
done
if ((worst > 1)); then exit "$worst"; fi
"$python" -m opensep_jax.infer --merge "$out"
