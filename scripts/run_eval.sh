#!/usr/bin/env bash
# Evaluates a run on the cluster: scripts/run_eval.sh RUN [EVAL.yaml] [--cluster NAME] [--set a.b=c] …
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/_common.sh
help_if_asked "$@"
[ $# -gt 0 ] || die "no RUN is named" "nexa runs lists them" 2
run="$1" config="$PWD/configs/stages/eval.yaml"
shift
case "${1:-}" in *.yaml | *.yml) config="$1" && shift ;; esac
run_nexa run "$config" --set "inputs.model=run:$run" "$@"
