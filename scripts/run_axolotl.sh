#!/usr/bin/env bash
# Trains by Axolotl on this machine alone, with the launcher that nexa run starts on every node:
#   scripts/run_axolotl.sh [TRAIN.yaml] [--set KEY=VALUE]…
# NPROC: ranks (one a GPU, else one a core) · NEXA_PYTHON: an interpreter with what docker/lock/heavy.txt lists.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/_common.sh
help_if_asked "$@"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
cd "$OLDPWD" # where the paths in TRAIN.yaml begin
config=configs/train/axolotl.yaml
case "${1:-}" in *.yaml | *.yml) config="$1" && shift ;; esac
train=(-m nexa_dist.train.launcher --backend ax --config "$config" "$@")
python="${NEXA_PYTHON:-python3}"
"$python" "${train[@]}" --prepare
exec "$python" -m torch.distributed.run --standalone --nproc_per_node "${NPROC:-auto}" "${train[@]}"
