#!/usr/bin/env bash
# Trains by Axolotl on this machine alone, with the launcher that nexa run starts on every node:
#   scripts/run_axolotl.sh [TRAIN.yaml] [--set KEY=VALUE]…
# NPROC: ranks (one a GPU, else one a core) · NEXA_PYTHON: an interpreter with what docker/lock/heavy.txt lists.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/_common.sh
help_if_asked "$@"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
config=configs/train/axolotl.yaml
# A file of the caller's is read where the caller is: there the paths in it begin.
case "${1:-}" in *.yaml | *.yml) cd "$OLDPWD" && config="$1" && shift ;; esac
train=(-m nexa_dist.train.launcher --backend ax --config "$config" "$@")
python="${NEXA_PYTHON:-python3}"
[ -f "$config" ] || die "there is no $config" "name a TRAIN.yaml, from the folder that you are in" 2
"$python" -c 'import sys, importlib.util as i; sys.exit(not (i.find_spec("torch") and i.find_spec("pydantic")))' 2>/dev/null ||
    die "$python has no torch, or not what nexa needs" "scripts/bootstrap_env.sh makes an environment; NEXA_PYTHON names it"
"$python" "${train[@]}" --prepare
exec "$python" -m torch.distributed.run --standalone --nproc_per_node "${NPROC:-auto}" "${train[@]}"
